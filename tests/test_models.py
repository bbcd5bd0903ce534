"""The values: what they derive from themselves."""

from __future__ import annotations

import pytest

from comfyflow.models import TERMINAL, JobState, MediaKind, OutputFile, UploadedFile


def test_states_climb_and_all_ends_stand_equally_high() -> None:
    climbing = [state for state in JobState if not state.terminal]
    assert [state.rank for state in climbing] == sorted({state.rank for state in climbing})
    assert {state.rank for state in TERMINAL} == {max(state.rank for state in climbing) + 1}


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.PNG", MediaKind.IMAGE),
        ("a.webm", MediaKind.VIDEO),
        ("a.flac", MediaKind.AUDIO),
        ("a.glb", MediaKind.MODEL),
        ("a.latent", MediaKind.OTHER),
        ("noname", MediaKind.OTHER),
    ],
)
def test_the_suffix_tells_the_kind(name: str, kind: MediaKind) -> None:
    assert OutputFile("1", name).kind is kind


@pytest.mark.parametrize(
    ("file", "reference"),
    [
        (UploadedFile("x.png"), "x.png"),
        (UploadedFile("x.png", "sub"), "sub/x.png"),
        (UploadedFile("x.png", "sub", "temp"), "sub/x.png [temp]"),
    ],
)
def test_an_upload_is_spelled_as_nodes_take_it(file: UploadedFile, reference: str) -> None:
    assert file.reference == reference
