"""What differs between the ComfyUI versions that the simulator can play."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

MAX_UPLOAD = 104_857_600  # bytes: ComfyUI's default for --max-upload-size; it bounds every request body


@dataclass(frozen=True, slots=True)
class Profile:
    """One version's ways. The defaults are those of 0.27.0."""

    version: str
    jobs: bool = True  # /api/jobs (>= 0.6)
    prompt_ids: str = "uuid"  # what a client may choose: "uuid" (>= 0.25), "any" (>= 0.3.45), "none"
    features: Mapping[str, Any] | None = None  # /features and the flags on the socket (>= 0.3.45)
    progress_state: bool = True  # >= 0.3.45
    targeted_interrupt: bool = True  # >= 0.3.57
    partial_targets: bool = True  # >= 0.3.48
    throttled: bool = True  # progress at most every 100 ms (>= 0.9.2)
    create_time: bool = True  # in extra_data (>= 0.3.69)
    hides_secrets: bool = True  # keys for partner nodes are taken out of queue and history
    empty_cached: bool = (
        True  # cached outputs are not recorded for a prompt without client_id (0.3.68 - 0.27)
    )
    missing_node_type: bool = True  # the newer wording for unknown classes (>= 0.12)
    dependency_cycle: bool = True  # cycles are explained (>= 0.20)
    replaces_nodes: bool = True  # a prompt that is no graph breaks node replacement: 500 (>= 0.14)
    nosniff: bool = True  # /view says X-Content-Type-Options (July 2026)


_FLAGS = {"supports_preview_metadata": True, "max_upload_size": MAX_UPLOAD}

PROFILES: Mapping[str, Profile] = {
    "0.27": Profile(
        version="0.27.0",
        features={
            **_FLAGS,
            "extension": {"manager": {"supports_v4": True}},
            "node_replacements": True,
            "assets": False,
        },
    ),
    "0.3.64": Profile(
        version="0.3.64",
        jobs=False,
        prompt_ids="any",
        features=_FLAGS,
        throttled=False,
        create_time=False,
        hides_secrets=False,
        empty_cached=False,
        missing_node_type=False,
        dependency_cycle=False,
        replaces_nodes=False,
        nosniff=False,
    ),
    "0.3.40": Profile(
        version="0.3.40",
        jobs=False,
        prompt_ids="none",
        features=None,
        progress_state=False,
        targeted_interrupt=False,
        partial_targets=False,
        throttled=False,
        create_time=False,
        hides_secrets=False,
        empty_cached=False,
        missing_node_type=False,
        dependency_cycle=False,
        replaces_nodes=False,
        nosniff=False,
    ),
}
