"""What all tests share: the simulator as users get it, and an aioresponses that knows aiohttp 3.14."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any
from unittest.mock import Mock

import aiohttp
import pytest
from aioresponses import core
from caller import Caller

from comfyflow import testing
from comfyflow.sim import Sim

comfyui = testing.comfyui  # the users' fixture, also where the plugin is not installed


@pytest.fixture
async def caller(comfyui: Sim) -> AsyncIterator[Caller]:
    """A bare client of the test's own simulator."""
    async with aiohttp.ClientSession() as session:
        yield Caller(comfyui, session)


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
