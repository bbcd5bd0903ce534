"""Filters become SQL with parameters, rows become values. What PostgreSQL makes of it: test_archive.py."""

from __future__ import annotations

import json
from math import inf
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from comfyflow.errors import StoreError, UsageError
from comfyflow.models import JobState
from comfyflow.queries import (
    AssetFilter,
    AssetRow,
    RunFilter,
    RunRow,
    Stored,
    asset_of,
    assets_query,
    event_of,
    events_query,
    graph_of,
    graph_query,
    named_query,
    run_of,
    run_query,
    runs_query,
)
from comfyflow.store import JobEvent

EVIL = "'; DROP TABLE workflow_runs; --"


def test_without_a_filter_the_newest_fifty_are_asked_for() -> None:
    runs, assets = runs_query(RunFilter()), assets_query(AssetFilter())
    assert "WHERE r." not in runs.sql.partition("FROM workflow_runs")[2]
    assert runs.sql.endswith("ORDER BY r.created_at DESC, r.prompt_id LIMIT $1")
    assert assets.sql.endswith("FROM generated_assets AS a ORDER BY a.created_at DESC, a.id DESC LIMIT $1")
    assert runs.args == assets.args == (50,)


def test_no_limit_asks_for_all() -> None:
    assert "LIMIT" not in runs_query(RunFilter(limit=None)).sql
    assert "LIMIT" not in assets_query(AssetFilter(limit=None)).sql


def test_every_filter_of_runs_becomes_a_parameter() -> None:
    wanted = RunFilter(
        state=JobState.FAILED, since=1.0, until=2.0, text=EVIL, digest="AB", server=EVIL, limit=7, batch=EVIL
    )
    query = runs_query(wanted)
    assert query.args == ("failed", 1.0, 2.0, EVIL, "ab", "abg", EVIL, f"batch:{EVIL}:", f"batch:{EVIL};", 7)
    assert "DROP" not in query.sql
    assert all(f"${number}" in query.sql for number in range(1, 11))


def test_every_filter_of_assets_becomes_a_parameter() -> None:
    wanted = AssetFilter(
        text=EVIL, seed=2**64 - 1, model="m.ckpt", node=EVIL, since=1.0, until=2.0, prompt_id=EVIL,
        sha256="0" * 64, limit=7, batch=EVIL,
    )  # fmt: skip
    query = assets_query(wanted)
    assert [json.loads(query.args[n]) for n in (1, 3, 4)] == [
        {"seed": 18446744073709551615}, {"node_id": EVIL}, {"node_title": EVIL},
    ]  # fmt: skip
    assert query.args[2] == ["m.ckpt"]
    assert query.args[5:] == (1.0, 2.0, EVIL, "0" * 64, f"batch:{EVIL}:", f"batch:{EVIL};", 7)
    assert "DROP" not in query.sql


def test_a_seed_of_zero_is_a_filter() -> None:
    assert assets_query(AssetFilter(seed=0)).args == ('{"seed": 0}', 50)


def test_a_model_may_be_named_without_its_suffix() -> None:
    names = assets_query(AssetFilter(model="flux1-dev")).args[0]
    assert names[:2] == ["flux1-dev", "flux1-dev.safetensors"]
    assert "flux1-dev.gguf" in names


def test_a_whole_digest_is_compared_and_a_beginning_is_a_range() -> None:
    assert runs_query(RunFilter(digest="a" * 64)).args == ("a" * 64, 50)
    assert runs_query(RunFilter(digest=" aB ")).args == ("ab", "abg", 50)


@pytest.mark.parametrize("digest", ["", "xyz", "a" * 65, "ab%"])
def test_what_cannot_be_a_digest_is_refused(digest: str) -> None:
    with pytest.raises(UsageError, match="is no digest"):
        runs_query(RunFilter(digest=digest))


def test_the_next_page_starts_after_the_last_row() -> None:
    query = assets_query(AssetFilter(limit=10), after=("infinity", 7))
    assert "WHERE (a.created_at, a.id) < ($1::text::timestamp, $2)" in query.sql
    assert query.args == ("infinity", 7, 10)


@pytest.mark.parametrize(
    ("page_at", "kind"),
    [
        ("2026-11-01T00:00:00.5+00:00", "timestamptz"),
        ("2026-11-01T00:00:00-07:30", "timestamptz"),
        ("0044-03-15T00:00:00+00:53:28 BC", "timestamptz"),
        ("12000-01-01T00:00:00+00:00", "timestamptz"),
        ("2026-11-01T00:00:00.5", "timestamp"),
        ("12000-01-01T00:00:00", "timestamp"),
    ],
)
def test_the_next_page_is_asked_for_in_the_type_of_the_column(page_at: str, kind: str) -> None:
    assert f"$1::text::{kind}," in assets_query(AssetFilter(), after=(page_at, 7)).sql


@pytest.mark.parametrize(
    ("moment", "asked"),
    [(1.0, 1.0), (-1e10, -1e10), (-1e13, -inf), (1e13, inf), (inf, inf), (-inf, -inf), (None, None)],
)
def test_moments_that_postgresql_does_not_know_are_infinitely_far_away(
    moment: float | None, asked: float | None
) -> None:
    args = runs_query(RunFilter(since=moment, until=moment, limit=None)).args
    assert args == (() if asked is None else (asked, asked))


def test_a_limit_that_postgresql_cannot_count_to_is_the_highest_one() -> None:
    assert (
        runs_query(RunFilter(limit=10**20)).args
        == assets_query(AssetFilter(limit=2**63)).args
        == (2**63 - 1,)
    )


def test_the_page_after_a_row_without_a_moment_holds_all_with_one() -> None:
    query = assets_query(AssetFilter(limit=10), after=(None, 7))
    assert "WHERE (a.created_at IS NOT NULL OR a.id < $1)" in query.sql
    assert query.args == (7, 10)


@pytest.mark.parametrize("query", [run_query, events_query, graph_query])
def test_an_id_that_postgresql_cannot_hold_is_asked_for_as_it_was_recorded(query: Any) -> None:
    assert query("a\0b\ud800").args == ("a\ufffdb\ufffd",)


def test_paths_are_asked_for_as_they_were_recorded() -> None:
    assert named_query(["a", "b\udcff"]).args == (["a", "b\ufffd"], ["a", "b\ufffd"])


def test_an_absolute_path_may_be_recorded_by_its_end_alone() -> None:
    ends = ["b/c.png", "/a/b/c.png", "a/b/c.png", "c.png"]
    assert named_query(["b/c.png", "/a/b/c.png"]).args == (ends, ["b/c.png", "/a/b/c.png"])


def test_a_run_is_read_from_its_row() -> None:
    row = {
        "prompt_id": "p", "server": "http://s", "state": "failed", "created_at": 1.0, "submitted_at": 2.0,
        "started_at": 3.0, "finished_at": 4.0, "execution_seconds": 1.0, "prompt_text": "a cat",
        "digest": None, "client_id": "c", "error_message": "boom", "error_node": "3", "files": 2,
        "key": "k", "attempt": 2, "replaces": "o", "replaced_by": "q",
    }  # fmt: skip
    assert run_of(row) == RunRow(
        "p", "http://s", JobState.FAILED, 1.0, 2.0, 3.0, 4.0, 1.0, "a cat", None, "c", "boom", "3", 2,
        "k", 2, "o", "q",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("text", "metadata"),
    [
        ('{"seed": 18446744073709551615}', {"seed": 2**64 - 1}),
        (None, {}),
        ("[1]", {}),
        (f'{{"seed": {"9" * 5000}}}', {"seed": "9" * 5000}),
        (f'{{"width": {"9" * 400}.5, "height": 1.5}}', {"width": "9" * 400 + ".5", "height": 1.5}),
        (f'{{"a": {"[" * 98}1{"]" * 98}, "b": {{"c": 1}}}}', None),
        (f'{{"a": {"[" * 200}1{"]" * 200}}}', {}),
        (f'{{"a": {"[" * 100_000}1{"]" * 100_000}}}', {}),
    ],
)
def test_an_asset_is_read_from_its_row_whatever_its_metadata(text: str | None, metadata: Any) -> None:
    row = {
        "id": 1, "prompt_id": "p", "prompt_text": None, "output_path": "a.png", "metadata": text,
        "created_at": 1.0, "page_at": "1970-01-01T00:00:01+00:00",
    }  # fmt: skip
    found = asset_of(row)
    assert found == AssetRow(
        1, "p", None, "a.png", json.loads(text or "") if metadata is None else metadata, 1.0
    )
    assert found.stored == Stored("p", "a.png", text, "1970-01-01T00:00:01+00:00")


def test_a_row_that_holds_nothing_is_read_and_known_as_such() -> None:
    nothing = dict.fromkeys(["id", "prompt_id", "prompt_text", "output_path", "metadata", "page_at"])
    found = asset_of({**nothing, "id": 1, "created_at": 0.0})
    assert found == AssetRow(1, "", None, "", {}, 0.0)
    assert found.stored == Stored(None, None, None, None)


def test_a_graph_is_read_and_one_that_is_nested_too_deep_is_told() -> None:
    assert graph_of({"graph": None}) is None
    assert graph_of({"graph": '{"1": {"class_type": "A"}}'}) == {"1": {"class_type": "A"}}
    with pytest.raises(StoreError, match="nested too deep"):
        graph_of({"graph": "[" * 100_000 + "]" * 100_000})


def test_an_event_is_read_from_its_row() -> None:
    row = {"prompt_id": "p", "kind": "failed", "detail": '{"reason": "x"}', "at": 1.5, "event_id": "e"}
    event = event_of(row)
    assert event == JobEvent("p", "failed", {"reason": "x"})
    assert (event.at, event.event_id) == (1.5, "e")


def asset(path: str, **metadata: Any) -> AssetRow:
    return AssetRow(UUID(int=1), "p", None, path, metadata)


@pytest.mark.parametrize(
    ("path", "is_url"),
    [("https://cdn/a.png", True), ("s3://bucket/a.png", True), ("a.png", False), ("C://a.png", False)],
)
def test_a_url_is_told_from_a_path(path: str, is_url: bool) -> None:
    assert asset(path).is_url is is_url


@pytest.mark.parametrize("value", [None, "12", True, 1.5, -1, 2**63, 10**400, [], {}])
def test_sizes_and_hashes_of_other_kinds_are_unknown(value: Any) -> None:
    row = asset("a.png", bytes=value, sha256=12)
    assert (row.size, row.sha256) == (None, None)
    assert (asset("a", bytes=0).size, asset("a", sha256="ab").sha256) == (0, "ab")


def test_a_file_is_found_in_the_shared_folder_first(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    for folder in (here, there):
        folder.mkdir()
    (there / "a.png").touch()
    row = asset("a.png", folder=str(there))
    assert row.find(here) == there / "a.png"
    (here / "a.png").touch()
    assert row.find(here) == here / "a.png"
    assert row.find() == there / "a.png"


def test_a_file_that_is_nowhere_should_be_in_the_shared_folder(tmp_path: Path) -> None:
    assert asset("a.png", folder="/gone").find(tmp_path) == tmp_path / "a.png"
    assert asset("a.png", folder="/gone").find() == Path("/gone/a.png")
    assert asset("no-such-file.png").find() == Path("no-such-file.png")


def test_an_absolute_path_stays_what_it_is(tmp_path: Path) -> None:
    assert asset("/data/a.png", folder="/x").find(tmp_path) == Path("/data/a.png")
