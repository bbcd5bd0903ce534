"""Files that are given for inputs of a workflow: local ones and ones from the web, uploaded under a name made
of their content, so that no job can change what another one reads.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, Protocol

from .errors import UsageError
from .listing import upload_of
from .remote import fetch_file, is_url
from .served import ServedClass
from .workflow import Workflow

_LOCAL = ("./", "../", "/", "~/", ".\\", "..\\")
Places = Mapping[tuple[str, str], str]  # by node id and input: what was given


class Uploads(Protocol):
    """Who puts files onto servers: a ComfyClient or a ServerPool."""

    async def input_file(self, source: Path | str | bytes) -> str:
        """The name to put into a workflow."""


def candidates(places: Places) -> dict[tuple[str, str], str]:
    """Those values that may name a file or a URL: whether they do depends on the input."""
    return {place: text for place, text in places.items() if is_url(text) or _is_local(text)}


def _is_local(text: str) -> bool:
    try:
        return text.startswith(_LOCAL) or Path(text).is_file()
    except (OSError, ValueError):
        return False  # no name of a file


async def with_files(
    workflow: Workflow,
    places: Places,
    client: Uploads,
    object_info: Mapping[str, Any],
    folder: Path,
    *,
    private: bool = False,
) -> Workflow:
    """The workflow, whose inputs that take uploads name the files that were given for them.

    Other inputs stay as they are: a text may well look like a path. What comes from the web is saved in
    `folder` first; addresses inside of a network are refused unless `private`. Raises UsageError for a file
    that is not there, InputUnavailable for a URL.
    """
    for (node_id, name), text in candidates(places).items():
        node = workflow.nodes.get(node_id)
        info = object_info.get(node["class_type"]) if node is not None else None
        if node is None or not isinstance(info, Mapping):
            continue
        given = ServedClass(node["class_type"], info).inputs(node["inputs"]).get(name)
        if given is None or upload_of(given) is None:
            continue
        path = await _fetched(text, folder, private) if is_url(text) else _local(text)
        workflow = workflow.set_at(node_id, name, await _uploaded(client, path, workflow.label(node_id)))
    return workflow


def _local(text: str) -> Path:
    return Path(text).expanduser()


async def _fetched(url: str, folder: Path, private: bool) -> Path:
    """In a folder of its own: many addresses end with the same name, and all are read later."""
    return await fetch_file(url, Path(mkdtemp(dir=folder)), private=private)


async def _uploaded(client: Uploads, path: Path, label: str) -> str:
    try:
        return await client.input_file(path)
    except UsageError as error:
        raise UsageError(f"node {label}: {error}") from error
