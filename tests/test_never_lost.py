"""Every phase of a job x everything that may befall it x both surfaces: one outcome, whole files, and nothing
twice."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from clusters import Cluster, Databases, execute
from fate import Cell, Phase, Stage, Surface, Trouble

from comfyflow.journal import Journal
from comfyflow.sim import Sim

pytestmark = pytest.mark.usefixtures("ahead")  # they are played while the others run

CELLS = [Cell(*place) for place in product(Phase, Trouble, Surface)]
AWAY = [cell for cell in CELLS if cell.trouble is Trouble.DATABASE]
LIBRARY = [cell for cell in CELLS if cell.surface is Surface.LIBRARY and cell not in AWAY]
COMMANDS = [cell for cell in CELLS if cell.surface is Surface.CLI and cell not in AWAY]
# What happens, but cannot meet the job. These cells are played all the same.
UNTOUCHED = {
    (Phase.RECORDING, Trouble.RESET): "the files are here and verified: there is no request left to be reset",
    (Phase.RECORDING, Trouble.STALL): "the files are here and verified: there is no request left to stall",
}
# A server that is killed with the job in its memory has lost it: how often it may have to be sent again.
AGAIN = {Phase.PENDING: {1}, Phase.RUNNING: {1}, Phase.ENDED: {0, 1}}
RUNS = """
    SELECT prompt_id, state, replaces, attempt, finished_at IS NOT NULL, folder
    FROM workflow_runs ORDER BY attempt"""
ASSETS = "SELECT prompt_id, output_path, metadata::text FROM generated_assets ORDER BY output_path"
EVENTS = """
    SELECT prompt_id, kind FROM run_events
    WHERE kind IN ('submitted', 'finished', 'failed', 'lost', 'resubmitted')"""
WORKERS = "SELECT worker FROM run_workers"


class MortalDatabases(Databases):
    """Databases on a server of their own, which is stopped and started."""

    def __init__(self, cluster: Cluster) -> None:
        super().__init__(cluster.dsn)
        self.cluster = cluster


@pytest.fixture(scope="module")
def mortal() -> Iterator[MortalDatabases]:
    """One for all tests of this file: starting another takes half a second."""
    cluster = Cluster()
    yield MortalDatabases(cluster)
    cluster.remove()


@pytest.fixture(scope="module")
def ahead(
    request: pytest.FixtureRequest, databases: Databases, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[Cell, Future[None]]]:
    """The cells of the command line, played ahead in threads: they spend their time in other processes, and
    with a deaf socket in waiting until it is found out."""
    databases.drop(databases.make(migrated=True))  # the template is made before two ask for it at once

    def played(cell: Cell) -> None:
        dsn = databases.make(migrated=True)
        asyncio.run(prove(cell, tmp_path_factory.mktemp("cell"), dsn))
        databases.drop(dsn)

    chosen = sorted(_chosen(request.session.items), key=lambda cell: cell.trouble is not Trouble.DEAF)
    with ThreadPoolExecutor(6) as threads:
        yield {cell: threads.submit(played, cell) for cell in chosen}


def _chosen(items: list[Any]) -> list[Cell]:
    """The cells of those tests of `ahead` that are to run."""
    mine = test_a_command_loses_nothing_and_runs_nothing_twice.__name__
    return [item.callspec.params["cell"] for item in items if getattr(item, "originalname", "") == mine]


@pytest.mark.parametrize("cell", LIBRARY, ids=str)
async def test_a_program_loses_nothing_and_runs_nothing_twice(
    cell: Cell, tmp_path: Path, database: str
) -> None:
    await prove(cell, tmp_path, database)


@pytest.mark.parametrize("cell", AWAY, ids=str)
async def test_nothing_is_lost_while_postgresql_is_away(
    cell: Cell, tmp_path: Path, mortal: MortalDatabases
) -> None:
    await prove(cell, tmp_path, mortal.make(migrated=True), mortal.cluster)


@pytest.mark.parametrize("cell", COMMANDS, ids=str)
async def test_a_command_loses_nothing_and_runs_nothing_twice(
    cell: Cell, ahead: dict[Cell, Future[None]]
) -> None:
    await asyncio.wrap_future(ahead[cell])


@pytest.mark.parametrize("surface", Surface)
async def test_a_lost_job_is_not_sent_again_unless_that_was_asked_for(
    surface: Surface, tmp_path: Path, database: str
) -> None:
    async with Sim() as sim:
        cell = Cell(Phase.RUNNING, Trouble.RESTART, surface)
        stage = Stage(cell, sim, tmp_path, database, resubmit=False)
        try:
            await stage.play()  # which sees JobLost, or exit code 5
        finally:
            await stage.close()
        [(prompt_id, state, *_)] = execute(database, RUNS)[0]
        assert state == "lost"
        assert sim.executed == {prompt_id: 1}
        assert sorted(kind for _, kind in execute(database, EVENTS)[0]) == ["lost", "submitted"]
        nothing_left(stage)


def test_the_table_is_complete_and_tells_why_a_cell_is_without_effect() -> None:
    places = {(cell.phase, cell.trouble, cell.surface) for cell in [*COMMANDS, *LIBRARY, *AWAY]}
    assert places == set(product(Phase, Trouble, Surface))
    assert set(UNTOUCHED) <= set(product(Phase, Trouble))
    assert all(len(reason) > 20 for reason in UNTOUCHED.values())


async def prove(cell: Cell, folder: Path, dsn: str, cluster: Cluster | None = None) -> None:
    """Play a cell, and look at what is left."""
    before = asyncio.all_tasks()
    async with Sim() as sim:
        stage = Stage(cell, sim, folder, dsn, cluster)
        try:
            await stage.play()
        finally:
            await stage.close()
        await sim.wait_sockets(0)
        ids = one_chain(stage)
        told_once(stage, ids)
        executed_once(stage, ids)
        whole_files(stage, ids)
        nothing_left(stage)
    assert asyncio.all_tasks() == before


def one_chain(stage: Stage) -> list[str]:
    """One outcome, in the last of the rows, each of which replaces the one before, which is lost. Their
    ids."""
    cell, rows = stage.cell, execute(stage.dsn, RUNS)[0]
    ids = [row[0] for row in rows]
    states = ["lost"] * (len(rows) - 1) + ["failed" if cell.refused else "succeeded"]
    expected = [
        [*row, number, True, str(stage.output)]
        for number, row in enumerate(zip(ids, states, [None, *ids], strict=False), 1)
    ]
    assert [list(row) for row in rows] == expected
    assert len(rows) - 1 in (AGAIN.get(cell.phase, {0}) if cell.trouble is Trouble.RESTART else {0})
    return ids


def told_once(stage: Stage, ids: list[str]) -> None:
    """Each job was submitted once and ended once."""
    told = [tuple(row) for row in execute(stage.dsn, EVENTS)[0]]
    ends = [(prompt_id, kind) for prompt_id in ids[:-1] for kind in ("lost", "resubmitted")]
    sent = [(prompt_id, "submitted") for prompt_id in ids if not stage.cell.refused]
    last = (ids[-1], "failed" if stage.cell.refused else "finished")
    assert sorted(told) == sorted([*sent, *ends, last])


def executed_once(stage: Stage, ids: list[str]) -> None:
    """The server counts: once, and once in the life of a server that lost it while it ran."""
    counts = {job: count for job, count in stage.sim.executed.items() if job != stage.blocker}
    before = [] if stage.cell.phase is Phase.PENDING else ids[:-1]
    assert counts == dict.fromkeys([*before, *([] if stage.cell.refused else ids[-1:])], 1)


def whole_files(stage: Stage, ids: list[str]) -> None:
    """Here is what the server has, under the names that are recorded, and nothing else."""
    assets = execute(stage.dsn, ASSETS)[0]
    here = {str(path.relative_to(stage.output)): path for path in stage.output.rglob("*") if path.is_file()}
    assert {row[1] for row in assets} == set(here)
    assert [row[0] for row in assets] == ids[-1:] * (0 if stage.cell.refused else 2)
    for _, path, text in assets:
        told = json.loads(text)
        there = stage.sim.folders.base(told["type"]) / told["subfolder"] / told["filename"]
        assert told["sha256"] == sha256(here[path]) == sha256(there)


def nothing_left(stage: Stage) -> None:
    """Neither in the journal, nor of the workers; the one who could not say goodbye is forgotten after a
    day."""
    assert Journal(stage.state / "journal").summary().records == 0
    rude = stage.cell.trouble in (Trouble.KILL, Trouble.DATABASE)
    assert len(execute(stage.dsn, WORKERS)[0]) <= rude
    if stage.next is not None and stage.cell.trouble is Trouble.RESET:
        untouched = (stage.cell.phase, stage.cell.trouble) in UNTOUCHED
        assert (stage.next.hits == 0) == untouched


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
