"""Through a real pgbouncer in transaction mode: each transaction may get another session of the server.

It is not collected by itself, because it needs the program pgbouncer: ./dev test tests/optin_pgbouncer.py
"""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from urllib.parse import parse_qs, urlsplit, urlunsplit

import pytest
from clusters import Cluster, connected, execute, with_database, with_user
from graphs import image

from comfyflow import migrations
from comfyflow.binaries import account
from comfyflow.database import Connections
from comfyflow.errors import StoreError, StoreUnavailable
from comfyflow.journal import Journal
from comfyflow.models import JobResult, JobState
from comfyflow.postgres import PostgresStore
from comfyflow.store import Added, Job, Worker
from comfyflow.workflow import Workflow

PORT = 6432

# `ignore_startup_parameters` is left out: what comfyflow sends must be accepted as it is.
SETTINGS = """
[databases]
* = host={sockets} port={server}
[pgbouncer]
listen_port = {port}
unix_socket_dir = {home}
auth_type = scram-sha-256
auth_file = {home}/users
pool_mode = transaction
default_pool_size = 3
server_reset_query = DISCARD ALL
"""


class Bouncer:
    """pgbouncer in front of a cluster; `dsn` is the cluster's database through it."""

    def __init__(self, cluster: Cluster) -> None:
        there = urlsplit(cluster.dsn)
        self.home = Path(tempfile.mkdtemp(prefix="comfyflow-", dir="/tmp"))
        self.dsn = urlunsplit(there._replace(query=f"host={self.home}&port={PORT}"))
        self._owner = account(cluster.home / "data")
        os.chown(self.home, self._owner.uid, self._owner.gid)
        self._write("users", f'"{there.username}" "{there.password}"\n')
        server = parse_qs(there.query)
        settings = self._write(
            "bouncer.ini",
            SETTINGS.format(home=self.home, port=PORT, sockets=server["host"][0], server=server["port"][0]),
        )
        program = shutil.which("pgbouncer", path=f"{os.environ['PATH']}:/usr/sbin")
        assert program, "install pgbouncer for this test: apt-get install pgbouncer"
        self._command = [program, "--quiet", str(settings)]

    def start(self) -> None:
        self._process = subprocess.Popen(
            self._command, stderr=subprocess.DEVNULL, cwd="/", **self._owner.options
        )
        deadline = time.monotonic() + 10
        while not self._answers():
            assert time.monotonic() < deadline
            assert self._process.poll() is None

    def _answers(self) -> bool:
        """The file is there a moment before the socket takes anybody."""
        with socket.socket(socket.AF_UNIX) as probe:
            return probe.connect_ex(str(self.home / f".s.PGSQL.{PORT}")) == 0

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()
        (self.home / f".s.PGSQL.{PORT}").unlink(missing_ok=True)

    def remove(self) -> None:
        self.stop()
        shutil.rmtree(self.home)

    def _write(self, name: str, text: str) -> Path:
        path = self.home / name
        path.write_text(text, encoding="utf-8")
        path.chmod(0o644)  # in a folder that is closed to others
        return path


@pytest.fixture
def bouncer(cluster: Cluster) -> Iterator[Bouncer]:
    started = Bouncer(cluster)
    started.start()
    yield started
    started.remove()


def job(number: int) -> Job:
    return Job(f"job-{number}", Workflow.load(image()), "me", "http://gpu:8188", 1_700_000_000.0 + number)


async def whole_road(store: PostgresStore, number: int) -> None:
    """What a runner writes about one job."""
    mine = job(number)
    await store.add(mine)
    await store.accepted(mine, mine.prompt_id)
    await store.advance(mine.prompt_id, JobState.RUNNING)
    await store.finish(mine, JobResult(mine.prompt_id, JobState.SUCCEEDED))


async def test_a_pooler_is_noticed_and_the_server_is_told_by_its_version(
    bouncer: Bouncer, cluster: Cluster
) -> None:
    async with (
        await Connections.open(bouncer.dsn) as pooled,
        await Connections.open(cluster.dsn) as straight,
    ):
        await pooled.fetch("SELECT 1")
        await straight.fetch("SELECT 1")
        assert (pooled.direct, straight.direct) == (False, True)
        assert pooled.server_version == straight.server_version


async def test_four_upgrades_at_once_through_a_pooler_apply_each_file_once(
    bouncer: Bouncer, cluster: Cluster
) -> None:
    execute(cluster.dsn, "CREATE DATABASE fresh")

    async def one() -> tuple[str, ...]:
        async with await Connections.open(with_database(bouncer.dsn, "fresh")) as connections:
            return await migrations.upgrade(connections)

    applied = await asyncio.gather(*(one() for _ in range(4)))
    assert sorted(applied) == [(), (), (), tuple(script.name for script in migrations.scripts())]


async def test_many_jobs_are_recorded_over_few_sessions(bouncer: Bouncer, tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    async with await PostgresStore.open(bouncer.dsn, journal=journal) as store:
        await asyncio.gather(*(whole_road(store, number) for number in range(40)))
        records = [await store.get(f"job-{number}") for number in range(40)]
        assert {record.state for record in records if record} == {JobState.SUCCEEDED}
        assert store.fault is None
        assert [left.prompt_id async for left in store.unfinished()] == []
    assert journal.summary().records == 0


async def test_through_a_pooler_too_each_job_goes_to_one_of_those_who_claim_at_once(bouncer: Bouncer) -> None:
    async def claimed(store: PostgresStore, number: int) -> list[str]:
        worker, mine = Worker(f"w{number}", "host", number), list[str]()
        await store.renew(worker, 30.0)
        while found := await store.claim(worker, "http://gpu:8188", limit=3, busy=mine):
            mine += [record.job.prompt_id for record in found]
        return mine

    async with (
        await PostgresStore.open(bouncer.dsn, journal=None) as one,
        await PostgresStore.open(bouncer.dsn, journal=None) as other,
    ):
        await one.write(*(Added(job(number)) for number in range(40)))
        found = await asyncio.gather(*(claimed(store, n) for n, store in enumerate([one, other] * 4)))
    assert sorted(chain(*found)) == sorted(f"job-{number}" for number in range(40))


async def test_nothing_is_left_behind_in_the_sessions_of_the_server(bouncer: Bouncer, tmp_path: Path) -> None:
    async with await PostgresStore.open(bouncer.dsn, journal=Journal(tmp_path)) as store:
        await whole_road(store, 1)
        left = (
            "SELECT count(*) FROM pg_prepared_statements WHERE name <> ''"
            " UNION ALL SELECT count(*) FROM pg_settings WHERE source = 'session' AND name LIKE '%timeout'"
        )
        for _ in range(5):
            assert [row[0] for row in await store.connections.fetch(left)] == [0, 0]


async def test_jobs_go_on_when_the_pooler_was_away(bouncer: Bouncer, tmp_path: Path) -> None:
    async with await PostgresStore.open(bouncer.dsn, journal=Journal(tmp_path)) as store:
        await whole_road(store, 1)
        bouncer.stop()
        await whole_road(store, 2)
        assert isinstance(store.fault, StoreUnavailable)
        bouncer.start()
        await store.flush()
        record = await store.get("job-2")
        assert record is not None
        assert record.state is JobState.SUCCEEDED


@pytest.mark.parametrize("which", ["password", "database"])
async def test_a_pooler_that_refuses_is_understood(bouncer: Bouncer, which: str) -> None:
    secret = "s3cr3t-Pa55"
    wrong = with_user(bouncer.dsn, "comfyflow", secret)
    async with await Connections.open(
        wrong if which == "password" else with_database(bouncer.dsn, "no")
    ) as pool:
        with pytest.raises(StoreError) as caught:
            await pool.fetch("SELECT 1")
    expected = {"password": "refused the user name or the password", "database": "is not there"}
    assert expected[which] in str(caught.value)
    assert secret not in str(caught.value)


async def test_a_statement_that_takes_too_long_frees_its_session(bouncer: Bouncer, cluster: Cluster) -> None:
    async with await Connections.open(bouncer.dsn, statement_timeout=0.2) as connections:
        with pytest.raises(StoreUnavailable):
            await connections.fetch("SELECT pg_sleep(600)")
        assert await connections.execute("SELECT 1") == "SELECT 1"
    async with connected(cluster.dsn) as watcher, asyncio.timeout(10):
        while await watcher.fetchval(
            "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query LIKE 'SELECT pg_sleep(6%'"
        ):
            pass
