"""What all tests share: the simulator as users get it, real PostgreSQL databases, and an aioresponses that
knows aiohttp 3.14."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import aiohttp
import pytest
from aioresponses import core
from caller import Caller
from clusters import Cluster, Databases, migrate
from commands import Cli, serving
from hypothesis import settings

from comfyflow import testing
from comfyflow.sim import Sim

# The same examples in every run, so that what is red is what a change broke; HYPOTHESIS_PROFILE=default
# searches for new ones.
settings.register_profile("repeatable", derandomize=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))

# the users' fixtures, also where the plugin is not installed
comfyui = testing.comfyui
comfyui_proxy = testing.comfyui_proxy
comfyui_proxy_for = testing.comfyui_proxy_for


@pytest.fixture
async def caller(comfyui: Sim) -> AsyncIterator[Caller]:
    """A bare client of the test's own simulator."""
    async with aiohttp.ClientSession() as session:
        yield Caller(comfyui, session)


@pytest.fixture
def cli(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    """Runs commands in a folder of the test's own."""
    return Cli(tmp_path, capsys, monkeypatch)


@pytest.fixture
async def server(cli: Cli) -> AsyncIterator[Sim]:
    """A simulator that the commands of `cli` find."""
    async with serving(cli) as sim:
        yield sim


@pytest.fixture(scope="session")
def databases() -> Iterator[Databases]:
    """Databases on a server of this run's own, or on the one that COMFYFLOW_TEST_DATABASE names (the DSN of a
    user who may create databases)."""
    if server := os.environ.get("COMFYFLOW_TEST_DATABASE"):
        given = Databases(server)
        yield given
        given.close()
        return
    shared = Cluster()
    yield Databases(shared.dsn)
    shared.remove()


@pytest.fixture
def database(databases: Databases) -> Iterator[str]:
    """The DSN of a migrated, empty database of the test's own."""
    dsn = databases.make(migrated=True)
    yield dsn
    databases.drop(dsn)


@pytest.fixture
def empty_database(databases: Databases) -> Iterator[str]:
    """The DSN of a database of the test's own that has no tables."""
    dsn = databases.make(migrated=False)
    yield dsn
    databases.drop(dsn)


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """A started PostgreSQL of the test's own, to be stopped and started: `cluster.dsn` is a migrated database
    on it, `cluster.stop()` and `cluster.start()` block."""
    private = Cluster()
    migrate(private.dsn)
    yield private
    private.remove()


class _Response(aiohttp.ClientResponse):
    """aiohttp 3.14 wants to know what was sent; aioresponses 0.7.9 does not tell (its issue 289)."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("stream_writer", Mock(output_size=0))
        super().__init__(*args, **kwargs)


_build_response = core.RequestMatch._build_response
_stream_reader = vars(core)["stream_reader_factory"]


def _build(match: core.RequestMatch, *args: Any, **kwargs: Any) -> aiohttp.ClientResponse:
    if kwargs.get("response_class") is None:
        kwargs["response_class"] = _Response
    return _build_response(match, *args, **kwargs)


def _reader(loop: asyncio.AbstractEventLoop | None = None) -> aiohttp.StreamReader:
    """A reader whose protocol has a parser: aiohttp 3.14 asks it when a paused body goes on."""
    reader: aiohttp.StreamReader = _stream_reader(loop)
    reader._protocol._parser = Mock(feed_data=Mock(return_value=((), False, b"")))
    return reader


@pytest.fixture(autouse=True)
def _repaired_aioresponses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(core.RequestMatch, "_build_response", _build)
    monkeypatch.setattr(core, "stream_reader_factory", _reader)
