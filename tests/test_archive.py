"""What the record answers, and that no question needs a look at every row."""

from __future__ import annotations

import io
import json
from collections.abc import AsyncIterator
from contextlib import aclosing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from filled import NOW, fill

from comfyflow import prune, queries, tables
from comfyflow.archive import TABLES, Archive, AssetFilter, RunFilter, Verdict
from comfyflow.database import Connections
from comfyflow.export import write_jsonl
from comfyflow.models import JobState
from comfyflow.queries import Query
from comfyflow.report import dump

Opened = AsyncIterator[Connections]


@pytest.fixture
async def connections(database: str) -> Opened:
    async with await Connections.open(database) as opened:
        yield opened


@pytest.fixture
async def small(connections: Connections) -> Archive:
    """400 jobs with two files each."""
    await fill(connections, 400, files=2)
    return Archive(connections)


async def test_an_empty_record_answers_with_nothing(connections: Connections) -> None:
    archive = Archive(connections)
    assert await archive.runs() == []
    assert await archive.assets() == []
    assert await archive.run("x") is None
    assert await archive.events("x") == []
    assert await archive.graph("x") is None
    assert [size.rows for size in await archive.sizes()] == [0, 0, 0, 0]


async def test_runs_come_newest_first_with_what_people_ask_for(small: Archive) -> None:
    runs = await small.runs()
    assert [run.prompt_id for run in runs] == [f"job-{n}" for n in range(50)]
    failed = runs[7]
    assert (failed.state, failed.error_message, failed.error_node) == (JobState.FAILED, "out of memory", "3")
    assert (failed.created_at, failed.finished_at) == (NOW - 7 * 60, NOW - 6 * 60)
    assert (failed.execution_seconds, failed.files, failed.server) == (7.0, 2, "http://gpu-3:8188")


@pytest.mark.parametrize(
    ("wanted", "numbers"),
    [
        (RunFilter(state=JobState.FAILED), [7, 107, 207, 307]),
        (RunFilter(state=JobState.RUNNING, limit=2), [11, 111]),
        (RunFilter(since=NOW - 119), [0, 1]),
        (RunFilter(until=NOW - 60, limit=1), [2]),
        (RunFilter(since=NOW - 60, until=NOW), [1]),
        (RunFilter(text="number17"), [17]),
        (RunFilter(text="cats number16 or number20"), [16, 20]),
        (RunFilter(text="dogs -number1", until=NOW - 60, limit=1), [5]),
        (RunFilter(server="http://gpu-1:8188", limit=2), [1, 5]),
        (RunFilter(server="http://nobody"), []),
        (RunFilter(text="***"), []),
    ],
)
async def test_runs_are_filtered(small: Archive, wanted: RunFilter, numbers: list[int]) -> None:
    assert [run.prompt_id for run in await small.runs(wanted)] == [f"job-{n}" for n in numbers]


async def test_runs_are_found_by_their_digest_and_its_beginning(small: Archive) -> None:
    digest = (await small.runs(RunFilter(limit=1)))[0].digest
    assert digest is not None
    expected = [f"job-{n}" for n in range(0, 400, 50)]
    for part in (digest, digest[:12], digest[:8].upper()):
        assert [run.prompt_id for run in await small.runs(RunFilter(digest=part))] == expected


@pytest.mark.parametrize(
    ("wanted", "paths"),
    [
        (AssetFilter(seed=12), ["12_1", "12_0"]),
        (AssetFilter(model="rare.safetensors", limit=1), ["5_1"]),
        (AssetFilter(model="rare"), ["5_1", "5_0"]),
        (AssetFilter(model="rar"), []),
        (AssetFilter(node="9", limit=2), ["0_0", "1_0"]),
        (AssetFilter(node="Save 1", limit=2), ["0_1", "1_1"]),
        (AssetFilter(text="number17"), ["17_1", "17_0"]),
        (AssetFilter(prompt_id="job-3"), ["3_1", "3_0"]),
        (AssetFilter(since=NOW - 60), ["0_1", "0_0", "1_1", "1_0"]),
        (AssetFilter(until=NOW - 60, limit=1), ["2_1"]),
        (AssetFilter(seed=12, node="Save 0"), ["12_0"]),
        (AssetFilter(seed=2**64 - 1), []),
    ],
)
async def test_assets_are_filtered(small: Archive, wanted: AssetFilter, paths: list[str]) -> None:
    found = [asset.output_path for asset in await small.assets(wanted)]
    assert sorted(found) == sorted(f"day-0/{path}.png" for path in paths)


KEYS = {
    1: "batch:cats:a",
    2: "batch:cats:\U0001f98a",
    3: "batch:cats.csv:a",
    4: "batch:cat:s",
    5: "batch:Cats:a",
    6: "batch:dogs:a:b",
    7: "batch:dogs%3Aa:b",
}


@pytest.mark.parametrize(
    ("batch", "numbers"),
    [
        ("cats", [1, 2]),
        ("cats.csv", [3]),
        ("cat", [4]),
        ("ca", []),
        ("c%", []),
        ("", []),
        ("\0", []),
        ("dogs", [6]),
        ("dogs:a", [7]),
    ],
)
async def test_jobs_and_files_of_a_batch_are_found(
    small: Archive, connections: Connections, batch: str, numbers: list[int]
) -> None:
    for number, key in KEYS.items():
        await connections.execute(
            "UPDATE workflow_runs SET key = $1 WHERE prompt_id = $2", key, f"job-{number}"
        )
    found = await small.runs(RunFilter(batch=batch))
    assert [run.prompt_id for run in found] == [f"job-{number}" for number in numbers]
    files = [asset.prompt_id for asset in await small.assets(AssetFilter(batch=batch))]
    assert sorted(files) == [f"job-{number}" for number in numbers for _ in range(2)]


async def test_an_asset_is_found_by_its_content(small: Archive) -> None:
    (one,) = await small.assets(AssetFilter(seed=3, node="9"))
    assert await small.assets(AssetFilter(sha256=one.sha256)) == [one]
    assert one.metadata["folder"] == "/srv/pictures"
    assert one.created_at == NOW - 3 * 60 + 50


async def test_every_asset_comes_once_in_pages(small: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("comfyflow.archive.PAGE", 7)
    found = [asset async for asset in small.every_asset()]
    assert len({asset.id for asset in found}) == len(found) == 800
    assert found == sorted(found, key=lambda asset: (asset.created_at, asset.id), reverse=True)
    some = [asset async for asset in small.every_asset(AssetFilter(model="sdxl", limit=20))]
    assert len(some) == 20


async def test_pages_go_on_past_rows_that_hold_nothing(empty_database: str) -> None:
    """A table that n8n made before us: ids are UUIDs, moments have no time zone, everything may be NULL."""
    async with await Connections.open(empty_database) as connections:
        await connections.execute(
            "CREATE TABLE generated_assets (id uuid DEFAULT gen_random_uuid() PRIMARY KEY, prompt_id varchar,"
            " prompt_text varchar, output_path varchar, metadata jsonb, created_at timestamp)"
        )
        script = Path(__file__).parent.parent / "sql" / "0001_record.sql"
        await connections.execute(script.read_text(encoding="utf-8"))
        await connections.execute(
            "INSERT INTO generated_assets (output_path, created_at)"
            " SELECT n::text, CASE WHEN n > 1500 THEN now() + n * interval '1 s' END"
            " FROM generate_series(1, 3000) AS n"
        )
        found = [asset async for asset in Archive(connections).every_asset()]
    assert sorted(int(asset.output_path) for asset in found) == list(range(1, 3001))
    assert {(asset.prompt_id, asset.created_at > 0) for asset in found} == {("", False), ("", True)}


ODD = [
    '{"bytes": 1e400, "seed": 1e131000, "width": -1, "node_title": {"a": [1]}, "model": 7}',
    '{"bytes": "many", "sha256": 12, "folder": [], "duration": "NaN", "height": 1.5, "seed": -1}',
    f'{{"seed": {"[" * 3000}{"]" * 3000}}}',
]
MOMENTS = ["infinity", "-infinity", "294276-01-01", "4000-01-01 BC"]


async def test_a_row_of_any_kind_breaks_no_list(connections: Connections, tmp_path: Path) -> None:
    insert = (
        "INSERT INTO generated_assets (prompt_id, output_path, metadata, created_at)"
        " VALUES ($1, $2, $3::jsonb, "
    )
    for text in ODD:
        for moment in [*MOMENTS, "2026-01-01"]:
            await connections.execute(insert + f"'{moment}')", moment, str(ODD.index(text)), text)
    archive = Archive(connections)
    found = await archive.assets()
    assert len(found) == 15
    assert {asset.size for asset in found} == {None}
    cells = [tables.asset_cells(asset, asset.output_path) for asset in found]
    assert all(all(row) for row in cells)
    assert all(dump(tables.asset_document(asset, "x")) for asset in found)
    verdicts = [checked.verdict async for checked in archive.verify(tmp_path)]
    assert verdicts == [Verdict.MISSING] * 15
    lines = io.StringIO()
    assert await write_jsonl(archive.every_asset(), lines) == 15
    assert lines.getvalue().count('"created_at": "infinity"') == 3


@pytest.mark.parametrize("kind", ["timestamptz", "timestamp"])
async def test_pages_go_on_past_every_moment(
    connections: Connections, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("comfyflow.archive.PAGE", 2)
    await connections.execute("DROP VIEW recent_assets")
    await connections.execute(f"ALTER TABLE generated_assets ALTER COLUMN created_at TYPE {kind}")
    for moment in [*MOMENTS, "2026-10-25 02:30:00.123456", "2026-01-01", "0001-01-01"]:
        for n in range(3):
            await connections.execute(
                "INSERT INTO generated_assets (prompt_id, output_path, created_at)"
                f" VALUES ('p', $1, '{moment}')",
                f"{moment} {n}",
            )
    found = await Archive(connections).assets(AssetFilter(limit=None))
    assert len({asset.output_path for asset in found}) == len(found) == 21
    assert [asset.output_path[:8] for asset in found[::3]] == [
        "infinity", "294276-0", "2026-10-", "2026-01-", "0001-01-", "4000-01-", "-infinit",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("wanted", "count"),
    [
        (RunFilter(limit=10**20), 400),
        (RunFilter(since=-1e300, until=1e300, limit=None), 400),
        (RunFilter(since=1e300), 0),
    ],
)
async def test_numbers_that_are_too_big_for_postgresql_are_no_fault(
    small: Archive, wanted: RunFilter, count: int
) -> None:
    assert len(await small.runs(wanted)) == count
    assert await small.assets(AssetFilter(seed=10**30)) == []


async def test_the_log_of_a_run_comes_in_order(small: Archive) -> None:
    events = await small.events("job-3")
    assert [event.kind for event in events] == ["submitted", "started", "finished"]
    assert [event.at for event in events] == [NOW - 180 + n for n in (1, 2, 3)]


async def test_a_graph_comes_back_and_one_that_is_not_recorded_is_none(
    small: Archive, connections: Connections
) -> None:
    assert await small.graph("job-3") == {"3": {"class_type": "KSampler", "inputs": {"seed": 3}}}
    await connections.execute("UPDATE workflow_runs SET graph = NULL WHERE prompt_id = 'job-4'")
    assert await small.graph("job-4") is None


async def test_one_run_is_found_by_its_id(small: Archive) -> None:
    run = await small.run("job-3")
    assert run is not None
    assert run == (await small.runs())[3]


async def test_sizes_are_told_for_each_table(small: Archive) -> None:
    sizes = {size.table: size for size in await small.sizes()}
    assert tuple(sizes) == TABLES
    assert (sizes["workflow_runs"].rows, sizes["generated_assets"].rows) == (400, 800)
    assert sizes["generated_assets"].bytes > 100_000


async def test_a_table_that_was_dropped_has_no_size(connections: Connections) -> None:
    await connections.execute("DROP TABLE asset_contents CASCADE")
    assert "asset_contents" not in {size.table for size in await Archive(connections).sizes()}


async def test_sizes_of_a_partitioned_table_are_those_of_its_parts(connections: Connections) -> None:
    await connections.execute(
        "DROP TABLE run_events; CREATE TABLE run_events (id int) PARTITION BY RANGE (id);"
        "CREATE TABLE e1 PARTITION OF run_events FOR VALUES FROM (0) TO (1000);"
        "CREATE TABLE e2 PARTITION OF run_events FOR VALUES FROM (1000) TO (3000);"
        "INSERT INTO run_events SELECT generate_series(0, 2999); ANALYZE"
    )
    events = (await Archive(connections).sizes())[1]
    assert events.rows == 3000
    assert events.bytes > 80_000


async def test_verify_tells_files_apart(small: Archive, connections: Connections, tmp_path: Path) -> None:
    await connections.execute("DELETE FROM generated_assets WHERE prompt_id NOT IN ('job-1', 'job-2')")
    (tmp_path / "day-0").mkdir()
    (tmp_path / "day-0" / "1_0.png").write_bytes(b"others")
    (tmp_path / "extra.png").touch()
    found = [checked async for checked in small.verify(tmp_path)]
    verdicts = {checked.path.name: checked.verdict for checked in found if checked.path is not None}
    assert verdicts == {
        "1_0.png": Verdict.CHANGED, "1_1.png": Verdict.MISSING, "2_0.png": Verdict.MISSING,
        "2_1.png": Verdict.MISSING, "extra.png": Verdict.ORPHANED,
    }  # fmt: skip


async def test_a_file_that_was_recorded_relative_to_another_folder_is_no_orphan(
    small: Archive, tmp_path: Path
) -> None:
    """Written without --shared, looked at with it: what is found for its row is not called orphaned too."""
    for name in ("sub", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.png").write_bytes(b"x")
    await small._connections.execute(
        "INSERT INTO generated_assets (prompt_id, output_path, metadata) VALUES"
        " ('they', 'x.png', jsonb_build_object('folder', $1::text, 'bytes', 1))",
        str(tmp_path / "sub"),
    )
    found = [(one.path, one.verdict) async for one in small.verify(tmp_path) if one.verdict != "missing"]
    assert found == [
        (tmp_path / "sub" / "x.png", Verdict.UNVERIFIABLE),
        (tmp_path / "other" / "x.png", Verdict.ORPHANED),
    ]


async def test_verify_of_some_files_looks_for_no_orphans(small: Archive, tmp_path: Path) -> None:
    (tmp_path / "extra.png").touch()
    found = [checked.verdict async for checked in small.verify(tmp_path, AssetFilter(seed=1))]
    assert found == [Verdict.MISSING, Verdict.MISSING]


async def test_reading_may_stop_anywhere(small: Archive, connections: Connections) -> None:
    async with aclosing(small.every_asset()) as assets:
        async for _ in assets:
            break
    assert len(await small.runs()) == 50


# -- how PostgreSQL answers --

DIGEST = "6d4b0c8bfd2a4a30a2f6e0f4b0b9b9c0d1e2f3a4b5c6d7e8f9a0b1c2d3e4f5a6"
PLANS: dict[str, tuple[Query, str]] = {
    "runs": (queries.runs_query(RunFilter()), "workflow_runs_newest"),
    "runs by state": (queries.runs_query(RunFilter(state=JobState.FAILED)), "workflow_runs_by_state"),
    "runs since": (queries.runs_query(RunFilter(since=NOW - 3600)), "workflow_runs_newest"),
    "runs by words": (queries.runs_query(RunFilter(text="number17")), "workflow_runs_words"),
    "runs by digest": (queries.runs_query(RunFilter(digest=DIGEST)), "workflow_runs_by_digest"),
    "runs by its beginning": (queries.runs_query(RunFilter(digest=DIGEST[:8])), "workflow_runs_by_digest"),
    "runs by server": (queries.runs_query(RunFilter(server="http://gpu-1:8188")), "workflow_runs_newest"),
    "runs of a batch": (queries.runs_query(RunFilter(batch="cats")), "workflow_runs_by_batch"),
    "one run": (queries.run_query("job-3"), "workflow_runs_pkey"),
    "graph": (queries.graph_query("job-3"), "workflow_runs_pkey"),
    "events": (queries.events_query("job-3"), "run_events_of_a_run"),
    "assets": (queries.assets_query(AssetFilter()), "generated_assets_newest"),
    "next page": (
        queries.assets_query(AssetFilter(), after=(datetime.fromtimestamp(NOW - 3600, UTC).isoformat(), 100)),
        "generated_assets_newest",
    ),
    "assets since": (queries.assets_query(AssetFilter(since=NOW - 3600)), "generated_assets_newest"),
    "assets by words": (queries.assets_query(AssetFilter(text="number17")), "generated_assets_words"),
    "assets by seed": (queries.assets_query(AssetFilter(seed=-1)), "generated_assets_metadata"),
    "assets by model": (queries.assets_query(AssetFilter(model="none")), "generated_assets_by_model"),
    "assets by node": (queries.assets_query(AssetFilter(node="77")), "generated_assets_metadata"),
    "assets of a run": (queries.assets_query(AssetFilter(prompt_id="job-3")), "generated_assets_once"),
    "assets of a batch": (queries.assets_query(AssetFilter(batch="cats")), "workflow_runs_by_batch"),
    "assets by content": (queries.assets_query(AssetFilter(sha256=DIGEST)), "generated_assets_by_content"),
    "known paths": (queries.named_query(["a.png", "b.png"]), "generated_assets_by_path"),
    "old runs": (Query(prune.DELETE_RUNS, (NOW - 19_000 * 60, 1000)), "workflow_runs_finished"),
    "old rows of others": (
        Query(prune.DELETE_LONE_ASSETS, (NOW - 19_000 * 60, 1000, 0.0)),
        "generated_assets_newest",
    ),
    "files that others name": (Query(prune.REMAINING, (["a.png"], [DIGEST])), "generated_assets_by_content"),
    "old contents": (Query(prune.OLD_CONTENTS, (NOW, 100, "")), "asset_contents_pkey"),
    "recent_assets": (Query("SELECT * FROM recent_assets LIMIT 50"), "generated_assets_newest"),
}


def nodes(plan: dict[str, Any]) -> list[dict[str, Any]]:
    return [plan, *(inner for part in plan.get("Plans", ()) for inner in nodes(part))]


async def plan_of(connections: Connections, query: Query) -> list[dict[str, Any]]:
    (row,) = await connections.fetch(f"EXPLAIN (FORMAT JSON) {query.sql}", *query.args)
    return nodes(json.loads(row[0])[0]["Plan"])


async def test_no_question_needs_a_look_at_every_row(connections: Connections) -> None:
    await fill(connections, 20_000)
    await connections.execute(
        "INSERT INTO asset_contents (sha256, part, bytes, data)"
        " SELECT encode(sha256(n::text::bytea), 'hex'), 0, 0, '' FROM generate_series(1, 5000) AS n"
    )
    await connections.execute("ANALYZE asset_contents")
    wrong = {}
    for name, (query, index) in PLANS.items():
        plan = await plan_of(connections, query)
        used = {node.get("Index Name") for node in plan}
        whole = [node["Relation Name"] for node in plan if node["Node Type"] == "Seq Scan"]
        if index not in used or whole:
            wrong[name] = (used, whole)
    assert wrong == {}
