"""Files arrive whole under a safe name or not at all, whatever the server, the network and the disk do."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import io
import os
import resource
import shutil
import sys
import threading
from collections import namedtuple
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import pytest
from aiohttp import web
from PIL import Image

from comfyflow import part, sim
from comfyflow.api import Api, Server
from comfyflow.download import Retries, save, save_all, save_local
from comfyflow.errors import DownloadError, OutputUnavailable, ServerUnreachable
from comfyflow.models import OutputFile, SavedFile, Timeouts
from comfyflow.sim.faults import LOGIN_PAGE, Effect, Fault, Handler
from comfyflow.sim.folders import Stored
from comfyflow.sweep import sweep

AT_ONCE = Retries(first=0)
MEBI = 1 << 20


@pytest.fixture
async def api(comfyui: sim.Sim) -> AsyncIterator[Api]:
    api = Api(Server.at(comfyui.url), Timeouts(connect=5, answer=5))
    yield api
    await api.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "here"
    path.mkdir()
    return path


def picture(seed: int = 0) -> bytes:
    buffer = io.BytesIO()
    Image.frombytes("RGB", (32, 32), bytes((i * 7 + seed) % 256 for i in range(32 * 32 * 3))).save(
        buffer, "PNG"
    )
    return buffer.getvalue()


PICTURE = picture()
LONG = b"".join(
    hashlib.sha256(bytes([i % 256, i // 256])).digest() * 64 for i in range(1500)
)  # 3 MB, no block twice
PNG = OutputFile("9", "x.png")
TEXT = OutputFile("9", "long.txt")


@pytest.fixture
def there(comfyui: sim.Sim) -> Callable[[str, bytes], Path]:
    """Put a file into the server's output folder."""

    def put(name: str, data: bytes) -> Path:
        path = comfyui.folders.base("output") / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return path

    put("x.png", PICTURE)
    put("long.txt", LONG)
    return put


pytestmark = pytest.mark.usefixtures("there")


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def asked(*headers: str, then: Effect | None = None) -> tuple[Effect, list[tuple[str | None, ...]]]:
    """An effect that notes request headers, and what it noted."""
    seen: list[tuple[str | None, ...]] = []

    async def effect(request: web.Request, handler: Handler, fault: Fault) -> web.StreamResponse:
        seen.append(tuple(request.headers.get(header) for header in headers))
        return await (handler(request) if then is None else then(request, handler, fault))

    return effect, seen


def with_headers(**changes: str | None) -> Effect:
    """The true answer with other headers; None takes one away."""

    def change(body: sim.Body) -> sim.Body:
        kept = {key: value for key, value in body.headers.items() if key.lower() not in changes}
        body.headers = kept | {key: value for key, value in changes.items() if value is not None}
        return body

    return sim.alter(change)


def stop_after(size: int) -> Effect:
    """The first bytes of the long file, then silence until the fault is released."""

    async def effect(request: web.Request, handler: Handler, fault: Fault) -> web.StreamResponse:
        stored = await handler(request)
        assert isinstance(stored, Stored)
        stat = stored.path.stat()
        etag = f'"{stat.st_mtime_ns:x}-{stat.st_size:x}"'  # as aiohttp makes it
        response = web.StreamResponse(headers={"Content-Length": str(len(LONG)), "ETag": etag})
        await response.prepare(request)
        await response.write(LONG[:size])
        await fault.released()
        return response

    return effect


@asynccontextmanager
async def impatient(comfyui: sim.Sim) -> AsyncIterator[Api]:
    """An Api that does not wait long for an answer."""
    api = Api(Server.at(comfyui.url), Timeouts(connect=5, answer=0.3))
    yield api
    comfyui.faults.clear()
    await api.close()


def small_picture() -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (3, 2), 7).save(buffer, "PNG")
    return buffer.getvalue()


# -- the ordinary road --


async def test_a_picture_is_saved_under_its_name_with_what_is_known_of_it(api: Api, folder: Path) -> None:
    saved = await save(api, PNG, folder)
    digest = hashlib.sha256(PICTURE).hexdigest()
    assert saved == SavedFile(PNG, folder / "x.png", len(PICTURE), digest, "image/png", 32, 32)
    assert saved.path.read_bytes() == PICTURE
    assert names(folder) == ["x.png"]


async def test_a_long_file_arrives_whole_and_reports_its_bytes(api: Api, folder: Path) -> None:
    heard: list[tuple[int, int | None]] = []
    saved = await save(api, TEXT, folder, on_bytes=lambda here, total: heard.append((here, total)))
    assert saved.path.read_bytes() == LONG
    assert saved.sha256 == hashlib.sha256(LONG).hexdigest()
    assert heard == sorted(heard)
    assert heard[-1] == (len(LONG), len(LONG))


async def test_an_empty_text_is_a_file_too(
    api: Api, folder: Path, there: Callable[[str, bytes], Path]
) -> None:
    there("empty.txt", b"")
    saved = await save(api, OutputFile("9", "empty.txt"), folder)
    assert (saved.size, saved.path.read_bytes()) == (0, b"")


async def test_the_path_is_absolute_and_the_mode_the_usual_one(
    api: Api, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder.parent)
    saved = await save(api, PNG, Path("here"))
    (folder / "other").touch()
    assert saved.path == folder / "x.png"
    assert saved.path.stat().st_mode == (folder / "other").stat().st_mode


async def test_the_content_is_on_the_disk_before_the_name_appears(
    api: Api, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[bool, list[str]]] = []
    fsync = os.fsync

    def watched(file: int) -> None:
        seen.append(
            (os.path.isdir(f"/proc/self/fd/{file}"), [name for name in names(folder) if name[0] != "."])
        )
        fsync(file)

    monkeypatch.setattr(os, "fsync", watched)
    await save(api, PNG, folder)
    assert seen == [(False, []), (True, ["x.png"])]


async def test_a_disk_that_takes_less_than_offered_gets_the_rest_too(
    api: Api, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda file, data: write(file, bytes(data[: max(1, len(data) // 2)])))
    saved = await save(api, PNG, folder)
    assert saved.path.read_bytes() == PICTURE


# -- broken connections --


async def test_a_broken_download_goes_on_where_it_stopped(comfyui: sim.Sim, api: Api, folder: Path) -> None:
    comfyui.faults.add("GET", "/view", sim.truncate(2 * MEBI))
    again, seen = asked("Range", "If-Match")
    comfyui.faults.add("GET", "/view", again)
    heard: list[int] = []
    saved = await save(api, TEXT, folder, retries=AT_ONCE, on_bytes=lambda here, _: heard.append(here))
    assert saved.path.read_bytes() == LONG
    assert heard == sorted(heard)
    ((wanted, etag),) = seen
    assert wanted == f"bytes={2 * MEBI}-"
    assert etag is not None
    assert etag.startswith('"')


async def test_a_server_that_stays_away_is_given_up(comfyui: sim.Sim, api: Api, folder: Path) -> None:
    reset = comfyui.faults.add("GET", "/view", sim.reset(), times=None)
    with pytest.raises(
        DownloadError, match=r"'x\.png' could not be saved: http://\S+ does not answer"
    ) as caught:
        await save(api, PNG, folder, retries=Retries(attempts=3, first=0, patience=0))
    assert isinstance(caught.value.__cause__, ServerUnreachable)
    assert (caught.value.output, caught.value.destination) == (PNG, folder)
    assert 3 <= reset.hits <= 6  # aiohttp itself repeats a GET once on a connection that was kept


async def test_a_file_that_changes_in_between_is_read_from_its_start(
    comfyui: sim.Sim, api: Api, folder: Path, there: Callable[[str, bytes], Path]
) -> None:
    comfyui.faults.add("GET", "/view", sim.truncate(2 * MEBI))
    comfyui.faults.add("GET", "/view", sim.changed())

    def rewritten(here: int, _total: int | None) -> None:
        if here == 2 * MEBI:
            there("long.txt", LONG[::-1])

    saved = await save(api, TEXT, folder, retries=AT_ONCE, on_bytes=rewritten)
    assert saved.path.read_bytes() == LONG[::-1]


@pytest.mark.parametrize(
    "second",
    [
        pytest.param(sim.ignore_range(), id="200: the server knows no ranges"),
        pytest.param(sim.answer(412), id="412: the file is another one"),
        pytest.param(sim.answer(416, headers={"Content-Range": "bytes */77"}), id="416: the file is shorter"),
        pytest.param(with_headers(etag=None, ETag='"other"'), id="206 of another file"),
        pytest.param(
            sim.alter(lambda body: sim.Body(206, body.headers | {"Content-Range": "bytes 5-9/10"}, b"wrong")),
            id="206 of another size",
        ),
        pytest.param(
            sim.alter(lambda body: sim.Body(206, body.headers | {"Content-Range": "bytes 5-9/*"}, b"wrong")),
            id="206 of another length",
        ),
    ],
)
async def test_a_rest_that_does_not_belong_is_not_taken(
    comfyui: sim.Sim, api: Api, folder: Path, second: Effect
) -> None:
    comfyui.faults.add("GET", "/view", sim.truncate(2 * MEBI))
    met = comfyui.faults.add("GET", "/view", second)
    saved = await save(api, TEXT, folder, retries=AT_ONCE)
    assert met.hits == 1
    assert saved.path.read_bytes() == LONG


@pytest.mark.parametrize("etag", [None, 'W/"weak"'])
async def test_without_a_strong_etag_a_file_is_read_from_its_start(
    comfyui: sim.Sim, api: Api, folder: Path, etag: str | None
) -> None:
    def change(body: sim.Body) -> sim.Body:
        body.headers = {key: value for key, value in body.headers.items() if key.lower() != "etag"}
        body.headers |= {} if etag is None else {"ETag": etag}
        body.length, body.cut, body.data = len(body.data), True, body.data[: 2 * MEBI]
        return body

    comfyui.faults.add("GET", "/view", sim.alter(change))
    again, seen = asked("Range")
    comfyui.faults.add("GET", "/view", again)
    saved = await save(api, TEXT, folder, retries=AT_ONCE)
    assert saved.path.read_bytes() == LONG
    assert seen == [(None,)]


async def test_a_416_right_behind_the_last_byte_means_complete(
    comfyui: sim.Sim, api: Api, folder: Path
) -> None:
    comfyui.faults.add("GET", "/view", sim.lie(+5))
    again, seen = asked("Range")
    comfyui.faults.add("GET", "/view", again)
    saved = await save(api, TEXT, folder, retries=AT_ONCE)
    assert saved.path.read_bytes() == LONG
    assert seen == [(f"bytes={len(LONG)}-",)]


async def test_a_part_that_nobody_asked_for_is_not_the_file(comfyui: sim.Sim, api: Api, folder: Path) -> None:
    part = sim.alter(
        lambda body: sim.Body(206, body.headers | {"Content-Range": "bytes 0-9/10"}, b"0123456789")
    )
    comfyui.faults.add("GET", "/view", part, times=None)
    with pytest.raises(DownloadError, match="changes on the server while it is read"):
        await save(api, TEXT, folder, retries=Retries(attempts=2, first=0))
    assert names(folder) == []


# -- answers that are no file --


async def test_a_file_that_is_gone_is_asked_for_once_more(comfyui: sim.Sim, api: Api, folder: Path) -> None:
    gone = comfyui.faults.add("GET", "/view", sim.gone(), times=None)
    with pytest.raises(OutputUnavailable, match="no longer has this file: run the workflow again"):
        await save(api, PNG, folder, retries=AT_ONCE)
    assert gone.hits == 2
    assert names(folder) == []


async def test_one_answer_that_a_file_is_gone_is_no_verdict(comfyui: sim.Sim, api: Api, folder: Path) -> None:
    comfyui.faults.add("GET", "/view", sim.gone())
    saved = await save(api, PNG, folder, retries=Retries(attempts=1, first=0))
    assert saved.path.read_bytes() == PICTURE


async def test_two_answers_that_a_file_is_gone_are_none_when_it_was_there_in_between(
    comfyui: sim.Sim, api: Api, folder: Path
) -> None:
    for effect in (sim.truncate(MEBI), sim.gone(), sim.truncate(MEBI), sim.gone()):
        comfyui.faults.add("GET", "/view", effect)
    again, seen = asked("Range")
    comfyui.faults.add("GET", "/view", again)
    assert (await save(api, TEXT, folder, retries=AT_ONCE)).path.read_bytes() == LONG
    assert seen == [(f"bytes={2 * MEBI}-",)]


async def test_a_file_that_goes_during_the_download_is_gone(comfyui: sim.Sim, api: Api, folder: Path) -> None:
    comfyui.faults.add("GET", "/view", sim.truncate(MEBI))
    gone = comfyui.faults.add("GET", "/view", sim.gone(), times=None)
    with pytest.raises(OutputUnavailable):
        await save(api, TEXT, folder, retries=AT_ONCE)
    assert gone.hits == 2
    assert names(folder) == []


async def test_a_404_of_somebody_in_front_of_the_server_is_no_verdict(
    comfyui: sim.Sim, api: Api, folder: Path
) -> None:
    """Traefik, ngrok and others answer so while ComfyUI starts behind them."""
    comfyui.faults.add("GET", "/view", sim.answer(404, "404 page not found"), times=6)
    saved = await save(api, PNG, folder, retries=Retries(attempts=1, first=0))
    assert saved.path.read_bytes() == PICTURE
    comfyui.faults.add("GET", "/view", sim.answer(404, "404 page not found"), times=None)
    with pytest.raises(DownloadError, match="in front of the server answers 404") as caught:
        await save(api, PNG, folder, retries=Retries(attempts=2, first=0, patience=0))
    assert not isinstance(caught.value, OutputUnavailable)


async def test_a_server_that_starts_again_is_waited_for(comfyui: sim.Sim, api: Api, folder: Path) -> None:
    await comfyui.kill()
    tries = Retries(attempts=1, first=0.01, ceiling=0.01)
    saving = asyncio.create_task(save(api, PNG, folder, retries=tries))
    await asyncio.wait([saving], timeout=0.1)
    assert not saving.done()
    await comfyui.start()
    assert (await saving).path.read_bytes() == PICTURE


@pytest.mark.parametrize("away", [sim.answer(502), sim.answer(530), sim.reset()])
async def test_a_long_absence_leaves_the_other_budgets_as_they_were(
    comfyui: sim.Sim, api: Api, folder: Path, away: Effect
) -> None:
    comfyui.faults.add("GET", "/view", away, times=8)
    for effect in (sim.gone(), sim.truncate(100)):
        comfyui.faults.add("GET", "/view", effect)
    saved = await save(api, PNG, folder, retries=Retries(attempts=2, first=0))
    assert saved.path.read_bytes() == PICTURE


@pytest.mark.parametrize("kind", ["output", "temp"])
async def test_a_restart_in_the_middle_of_a_download(
    comfyui: sim.Sim, api: Api, folder: Path, kind: str
) -> None:
    """It empties the folder for temporary files; the others are read on."""
    (comfyui.folders.base(kind) / "long.txt").write_bytes(LONG)
    comfyui.faults.add("GET", "/view", stop_after(2 * MEBI))
    again, seen = asked("Range")
    comfyui.faults.add("GET", "/view", again, times=None)
    arrived = asyncio.Event()
    output = OutputFile("9", "long.txt", type=kind)

    def heard(here: int, _total: int | None) -> None:
        if here == 2 * MEBI:
            arrived.set()

    tries = Retries(attempts=2, first=0.01, ceiling=0.01)
    saving = asyncio.create_task(save(api, output, folder, retries=tries, on_bytes=heard))
    await arrived.wait()
    await comfyui.restart()
    if kind == "output":
        assert (await saving).path.read_bytes() == LONG
    else:
        with pytest.raises(OutputUnavailable):
            await saving
        assert names(folder) == []
    assert seen[0] == (f"bytes={2 * MEBI}-",)


async def test_a_server_that_stays_away_is_waited_for_once_and_not_for_each_file(folder: Path) -> None:
    source = Away()
    outputs = [OutputFile("9", f"{number}.png") for number in range(5)]
    tries = Retries(attempts=2, first=0.01, ceiling=0.01, patience=0.1)
    with pytest.raises(DownloadError, match="gone for lunch"):
        await save_all(source, outputs, folder, downloads=1, retries=tries)
    assert [source.asked.count(output) for output in outputs[1:]] == [2, 2, 2, 2]
    assert source.asked.count(outputs[0]) > 2


async def test_files_that_came_are_told_with_the_one_that_did_not(
    comfyui: sim.Sim, api: Api, folder: Path
) -> None:
    lost = OutputFile("9", "lost.png")
    with pytest.raises(OutputUnavailable) as caught:
        await save_all(api, [PNG, lost], folder, retries=AT_ONCE)
    assert [saved.path.name for saved in caught.value.saved] == ["x.png"]


@pytest.mark.parametrize(("status", "hits"), [(403, 1), (400, 1), (503, 3), (500, 3)])
async def test_only_a_passing_trouble_is_worth_another_try(
    comfyui: sim.Sim, api: Api, folder: Path, status: int, hits: int
) -> None:
    fault = comfyui.faults.add("GET", "/view", sim.answer(status), times=None)
    with pytest.raises(DownloadError, match=str(status)):
        await save(api, PNG, folder, retries=Retries(attempts=3, first=0, patience=0))
    assert fault.hits == hits


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504, 520, 524, 530])
async def test_a_passing_trouble_passes(comfyui: sim.Sim, api: Api, folder: Path, status: int) -> None:
    comfyui.faults.add("GET", "/view", sim.answer(status, LOGIN_PAGE), times=2)
    assert (await save(api, PNG, folder, retries=AT_ONCE)).path.read_bytes() == PICTURE


@pytest.mark.parametrize("make", [sim.truncate, sim.corrupt])
async def test_a_cut_or_a_changed_byte_anywhere_is_mended(
    comfyui: sim.Sim,
    api: Api,
    folder: Path,
    there: Callable[[str, bytes], Path],
    make: Callable[[int], Effect],
) -> None:
    data = small_picture()
    there("small.png", data)
    for place in range(len(data)):
        fault = comfyui.faults.add("GET", "/view", make(place))
        saved = await save(api, OutputFile("9", "small.png"), folder, retries=AT_ONCE)
        assert (fault.hits, saved.path.read_bytes()) == (1, data)
        saved.path.unlink()
    assert names(folder) == []


async def test_a_cut_anywhere_shows_without_an_announced_length_too(folder: Path) -> None:
    data = small_picture()
    for place in range(len(data)):
        source = Scripted([Answer([data[:place]]), Answer([data])])
        saved = await save(source, PNG, folder, retries=AT_ONCE)
        assert (source.offsets, saved.path.read_bytes()) == ([0, 0], data)
        saved.path.unlink()
    assert names(folder) == []


@pytest.mark.parametrize("stalled", [sim.stall(), sim.stall(after=True)])
async def test_a_server_that_stalls_is_asked_again(comfyui: sim.Sim, folder: Path, stalled: Effect) -> None:
    fault = comfyui.faults.add("GET", "/view", stalled)
    async with impatient(comfyui) as api:
        assert (await save(api, PNG, folder, retries=AT_ONCE)).path.read_bytes() == PICTURE
    assert fault.hits == 1


async def test_a_stall_in_the_middle_goes_on_where_it_stopped(comfyui: sim.Sim, folder: Path) -> None:
    comfyui.faults.add("GET", "/view", stop_after(2 * MEBI))
    again, seen = asked("Range")
    comfyui.faults.add("GET", "/view", again)
    async with impatient(comfyui) as api:
        assert (await save(api, TEXT, folder, retries=AT_ONCE)).path.read_bytes() == LONG
    assert seen == [(f"bytes={2 * MEBI}-",)]


async def test_a_damaged_file_is_read_again(comfyui: sim.Sim, api: Api, folder: Path) -> None:
    comfyui.faults.add("GET", "/view", sim.corrupt())
    comfyui.faults.add("GET", "/view", sim.replace_body(sim.faults.LOGIN_PAGE.encode()))
    saved = await save(api, PNG, folder, retries=AT_ONCE)
    assert saved.path.read_bytes() == PICTURE
    assert names(folder) == ["x.png"]


@pytest.mark.parametrize(
    ("effect", "told"),
    [
        (sim.corrupt(), "the PNG's IDAT chunk does not match its checksum"),
        (sim.zero_tail(30), "the PNG"),
        (sim.lie(-30), "the PNG is cut short"),
        (sim.login_page(), "the server sent an HTML page instead of an image"),
        (sim.answer(200, '{"error": "no such file"}'), "the server sent JSON instead of an image"),
        (sim.answer(200), "the server sent only 0 bytes instead of an image"),
    ],
)
async def test_a_file_that_stays_damaged_is_an_error_and_leaves_nothing(
    comfyui: sim.Sim, api: Api, folder: Path, effect: Effect, told: str
) -> None:
    fault = comfyui.faults.add("GET", "/view", effect, times=None)
    with pytest.raises(DownloadError) as caught:
        await save(api, PNG, folder, retries=AT_ONCE)
    assert caught.value.reason.startswith(told)
    assert fault.hits == 3
    assert names(folder) == []


async def test_damage_in_a_long_file_ends_the_download_at_once(
    comfyui: sim.Sim, api: Api, folder: Path, there: Callable[[str, bytes], Path]
) -> None:
    there("long.png", PICTURE[:60] + LONG)
    with pytest.raises(DownloadError, match="the PNG"):
        await save(api, OutputFile("9", "long.png"), folder, retries=AT_ONCE)
    assert names(folder) == []


async def test_an_endless_body_is_bounded(comfyui: sim.Sim, api: Api, folder: Path) -> None:
    comfyui.faults.add("GET", "/view", sim.endless())
    with pytest.raises(DownloadError, match="more than the 5000000 bytes that are allowed"):
        await save(api, TEXT, folder, max_size=5_000_000)
    assert names(folder) == []


async def test_a_file_that_is_announced_too_large_is_not_read(api: Api, folder: Path) -> None:
    heard: list[int] = []
    with pytest.raises(DownloadError, match="more than the 2000000 bytes that are allowed"):
        await save(api, TEXT, folder, max_size=2_000_000, on_bytes=lambda here, _: heard.append(here))
    assert heard == []


# -- a source that HTTP could not be --


@dataclass(slots=True)
class Answer:
    """An answer of /view without HTTP."""

    body: list[bytes]
    length: int | None = None
    status: int = 200
    etag: str | None = '"1"'
    total: int | None = None
    sent: int = 0

    async def chunks(self) -> AsyncIterator[bytes]:
        for chunk in self.body:
            self.sent += len(chunk)
            yield chunk


@dataclass(slots=True)
class Scripted:
    """A source that gives the answers in order, the last one for ever."""

    answers: list[Answer]
    offsets: list[int] = field(default_factory=list)

    @asynccontextmanager
    async def open_view(
        self, output: OutputFile, *, offset: int = 0, etag: str | None = None
    ) -> AsyncIterator[Answer]:
        self.offsets.append(offset)
        yield self.answers[min(len(self.offsets), len(self.answers)) - 1]

    async def view_size(self, output: OutputFile) -> int | None:
        return None


class Away(Scripted):
    """Nobody answers."""

    def __init__(self) -> None:
        super().__init__([])
        self.asked: list[OutputFile] = []

    @asynccontextmanager
    async def open_view(
        self, output: OutputFile, *, offset: int = 0, etag: str | None = None
    ) -> AsyncIterator[Answer]:
        self.asked.append(output)
        if self.asked:
            raise ServerUnreachable("gone for lunch", method="GET", url="http://x")
        yield Answer([])


async def test_more_bytes_than_announced_are_an_error(folder: Path) -> None:
    source = Scripted([Answer([b"1234", b"5678"], length=6)])
    with pytest.raises(DownloadError, match="more than the 6 bytes that it announced"):
        await save(source, TEXT, folder, retries=AT_ONCE)
    assert names(folder) == []


async def test_fewer_bytes_than_announced_are_asked_for(folder: Path) -> None:
    source = Scripted([Answer([b"1234"], length=6), Answer([b"56"], length=2, status=206, total=6)])
    saved = await save(source, TEXT, folder, retries=AT_ONCE)
    assert saved.path.read_bytes() == b"123456"
    assert source.offsets == [0, 4]


async def test_a_body_without_length_ends_where_it_ends(folder: Path) -> None:
    saved = await save(Scripted([Answer([b"1234", b"56"])]), TEXT, folder)
    assert saved.path.read_bytes() == b"123456"


class Breaking(Answer):
    """Breaks off after its body."""

    async def chunks(self) -> AsyncIterator[bytes]:
        for chunk in self.body:
            yield chunk
        raise ServerUnreachable("it broke", method="GET", url="http://x")


async def test_a_body_without_length_is_resumed_by_the_size_in_the_answer(folder: Path) -> None:
    source = Scripted([Breaking([b"1234"]), Answer([b"56"], length=2, status=206, total=6)])
    saved = await save(source, TEXT, folder, retries=AT_ONCE)
    assert saved.path.read_bytes() == b"123456"


async def test_every_step_forward_renews_the_budget(folder: Path) -> None:
    step, whole = LONG[:100_000], 1_000_000
    parts: list[Answer] = [
        Breaking([step], length=whole - start, status=206 if start else 200, total=whole if start else None)
        for start in range(0, whole, len(step))
    ]
    source = Scripted([*parts[:-1], Answer([step], length=len(step), status=206, total=whole)])
    saved = await save(source, TEXT, folder, retries=Retries(attempts=2, first=0))
    assert saved.path.read_bytes() == step * 10
    assert source.offsets == list(range(0, whole, len(step)))


async def test_starting_over_and_over_is_no_progress(folder: Path) -> None:
    source = Scripted([Breaking([LONG[:200_000]], length=1_000_000, etag=None)])
    with pytest.raises(DownloadError, match="it broke"):
        await save(source, TEXT, folder, retries=Retries(attempts=3, first=0, patience=0))
    assert source.offsets == [0, 0, 0]
    assert names(folder) == []


class Lazy(Answer):
    """Chunks that cannot be closed, as any iterator."""

    def chunks(self) -> AsyncIterator[bytes]:
        return _Iterator(iter(self.body))


class _Iterator:
    def __init__(self, chunks: Any) -> None:
        self._chunks = chunks

    def __aiter__(self) -> _Iterator:
        return self

    async def __anext__(self) -> bytes:
        for chunk in self._chunks:
            return bytes(chunk)
        raise StopAsyncIteration


async def test_any_iterator_of_chunks_will_do(folder: Path) -> None:
    saved = await save(Scripted([Lazy([b"12", b"34"])]), TEXT, folder)
    assert saved.path.read_bytes() == b"1234"


async def test_a_slow_disk_holds_the_reading_back(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long the file: what is read and not yet written stays at a few MiB."""
    answer = Answer([bytes(256 << 10)] * 200)
    ahead: list[int] = []
    written = 0
    write = os.write

    def watched(file: int, data: bytes) -> int:
        nonlocal written
        ahead.append(answer.sent - written)
        written += len(data)
        return write(file, data)

    monkeypatch.setattr(os, "write", watched)
    saved = await save(Scripted([answer]), OutputFile("1", "x.bin"), folder)
    assert saved.size == 50 * MEBI
    assert max(ahead) <= 5 * part.BLOCK_SIZE


# -- names --


async def test_the_same_content_is_not_written_twice(api: Api, folder: Path) -> None:
    first = await save(api, PNG, folder)
    before = first.path.stat()
    again = await save(api, PNG, folder)
    assert again == first
    after = again.path.stat()  # reading it to compare may have moved its time of access
    assert (after.st_ino, after.st_mtime_ns, after.st_ctime_ns) == (
        before.st_ino,
        before.st_mtime_ns,
        before.st_ctime_ns,
    )
    assert names(folder) == ["x.png"]


async def test_a_different_file_of_that_name_is_never_touched(api: Api, folder: Path) -> None:
    (folder / "x.png").write_bytes(b"mine")
    (folder / "x (1).png").write_bytes(PICTURE[::-1])
    saved = await save(api, PNG, folder)
    assert saved.path == folder / "x (2).png"
    assert (await save(api, PNG, folder)).path == saved.path
    assert (folder / "x.png").read_bytes() == b"mine"
    assert names(folder) == ["x (1).png", "x (2).png", "x.png"]


@pytest.mark.parametrize("target", ["victim", "nowhere", "x.png"])
async def test_a_link_at_that_name_is_neither_followed_nor_replaced(
    api: Api, folder: Path, target: str
) -> None:
    (folder.parent / "victim").write_bytes(PICTURE)
    link = folder / "x.png"
    link.symlink_to(folder.parent / target if target != "x.png" else link)
    saved = await save(api, PNG, folder)
    assert saved.path == folder / "x (1).png"
    assert link.is_symlink()
    assert names(folder.parent) == ["here", "victim"]


async def test_a_folder_or_a_pipe_at_that_name_is_left_alone(api: Api, folder: Path) -> None:
    (folder / "x.png").mkdir()
    os.mkfifo(folder / "x (1).png")
    saved = await save(api, PNG, folder)
    assert saved.path == folder / "x (2).png"


async def test_too_many_files_of_a_name_are_an_error(
    api: Api, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(part, "MAX_NUMBER", 1)
    for name in ("x.png", "x (1).png"):
        (folder / name).touch()
    with pytest.raises(DownloadError, match="has too many files of this name"):
        await save(api, PNG, folder)
    assert names(folder) == ["x (1).png", "x.png"]


@pytest.mark.parametrize(
    ("hostile", "safe"),
    [
        ("../../escaped.png", "escaped.png"),
        ("/etc/cron.d/job.png", "job.png"),
        ("..\\evil.png", "evil.png"),
        ("CON.png", "_CON.png"),
        ("a\0b.png", "a_b.png"),
        (".hidden.png", "hidden.png"),
        ("x" * 300 + ".png", "x" * 196 + ".png"),
    ],
)
async def test_a_hostile_name_stays_inside_the_folder(
    comfyui: sim.Sim, api: Api, folder: Path, hostile: str, safe: str
) -> None:
    comfyui.faults.aliases[hostile] = comfyui.folders.base("output") / "x.png"
    saved = await save(api, OutputFile("9", hostile), folder)
    assert saved.path == folder / safe
    assert names(folder) == [safe]
    assert names(folder.parent) == ["here"]


# -- disks --


async def test_a_missing_folder_is_told(api: Api, tmp_path: Path) -> None:
    for output in (PNG, TEXT):
        with pytest.raises(DownloadError, match="no/where does not exist, create it first"):
            await save(api, output, tmp_path / "no/where")
    assert names(tmp_path) == []


async def test_a_file_in_place_of_the_folder_is_told(api: Api, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DownloadError, match="file is not a folder"):
        await save(api, PNG, tmp_path / "file")


async def test_a_limit_of_the_system_on_file_sizes_is_told(api: Api, folder: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (MEBI // 2, hard))
    try:
        with pytest.raises(DownloadError, match="cannot hold a file of this size"):
            await save(api, TEXT, folder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert names(folder) == []


Usage = namedtuple("Usage", "total used free")


async def test_a_disk_without_room_is_told_before_anything_is_read(
    api: Api, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(1, 1, len(LONG) - 1))
    heard: list[int] = []
    with pytest.raises(DownloadError, match="here is full"):
        await save(api, TEXT, folder, on_bytes=lambda here, _: heard.append(here))
    assert heard == []


async def test_a_body_without_length_leaves_some_room_on_the_disk(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(1, 1, 60 * MEBI))
    with pytest.raises(DownloadError, match="here is full"):
        await save(Scripted([Answer([bytes(MEBI)] * 40)]), TEXT, folder)
    assert names(folder) == []


def failing(error: int, *, only: Callable[[Any], bool] = lambda _: True) -> Callable[..., None]:
    link = os.link

    def call(source: Any, target: Any, **options: Any) -> None:
        if only(target):
            raise OSError(error, os.strerror(error))
        link(source, target, **options)

    return call


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (errno.ENOSPC, "is full"),
        (errno.EROFS, "is read-only"),
        (errno.EBUSY, "cannot take it .Device or resource busy"),
    ],
)
async def test_what_the_system_refuses_is_told_and_nothing_is_left(
    api: Api, folder: Path, monkeypatch: pytest.MonkeyPatch, error: int, told: str
) -> None:
    monkeypatch.setattr(os, "link", failing(error))
    with pytest.raises(DownloadError, match=told):
        await save(api, PNG, folder)
    assert names(folder) == []


async def test_without_hard_links_nothing_is_overwritten_either(
    api: Api, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "link", failing(errno.EPERM))
    (folder / "x.png").write_bytes(b"mine")
    saved = await save(api, PNG, folder)
    assert saved.path == folder / "x (1).png"
    assert saved.path.read_bytes() == PICTURE
    assert (await save(api, PNG, folder)).path == saved.path
    assert names(folder) == ["x (1).png", "x.png"]
    assert (folder / "x.png").read_bytes() == b"mine"


async def test_a_folder_that_cannot_be_synced_is_no_error(
    api: Api, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync = os.fsync

    def refusing(file: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{file}"):
            raise OSError(errno.EINVAL, "not here")
        fsync(file)

    monkeypatch.setattr(os, "fsync", refusing)
    assert (await save(api, PNG, folder)).path.exists()


# -- cancelling --


async def test_cancelling_removes_the_part(comfyui: sim.Sim, api: Api, folder: Path) -> None:
    comfyui.faults.add("GET", "/view", stop_after(2 * MEBI))
    arrived = anyio.Event()
    parts: list[str] = []

    def heard(here: int, _total: int | None) -> None:
        parts.extend(names(folder))
        if here == 2 * MEBI:
            arrived.set()

    async with anyio.create_task_group() as group:
        group.start_soon(lambda: save(api, TEXT, folder, on_bytes=heard))
        await arrived.wait()
        group.cancel_scope.cancel()
    assert names(folder) == []
    assert all(name.startswith(".comfyflow-") and name.endswith(".part") for name in parts)


async def test_cancelling_a_plain_task_removes_the_part(comfyui: sim.Sim, api: Api, folder: Path) -> None:
    comfyui.faults.add("GET", "/view", stop_after(2 * MEBI))
    arrived = asyncio.Event()
    task = asyncio.create_task(
        save(api, TEXT, folder, on_bytes=lambda here, _: arrived.set() if here == 2 * MEBI else None)
    )
    await arrived.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert names(folder) == []


async def test_cancelling_while_a_thread_is_at_work_leaves_nothing_behind(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = asyncio.get_running_loop()
    started, cancelled = asyncio.Event(), threading.Event()
    write = os.write

    def slow(file: int, data: bytes) -> int:
        loop.call_soon_threadsafe(started.set)
        assert cancelled.wait(10)
        return write(file, data)

    monkeypatch.setattr(os, "write", slow)
    task = asyncio.create_task(save(Scripted([Answer([bytes(256 << 10)] * 40)]), TEXT, folder))
    await started.wait()
    task.cancel()
    loop.call_later(0.05, cancelled.set)  # by then the task waits for the thread
    with pytest.raises(asyncio.CancelledError):
        await task
    assert names(folder) == []


# -- killed --

PROGRAM = """
import anyio, os, sys
from pathlib import Path
from comfyflow.api import Api, Server
from comfyflow.download import save
from comfyflow.models import OutputFile, Timeouts

url, folder, enough = sys.argv[1:]
written, write = 0, os.write

def told(file, data):
    global written
    written += len(data)
    if written >= int(enough):
        print(flush=True)
    return write(file, data)

async def main():
    await save(Api(Server.at(url), Timeouts()), OutputFile("9", "long.txt"), Path(folder))

os.write = told
anyio.run(main)
"""


@pytest.mark.parametrize("written", [1, MEBI + 1])
async def test_a_killed_download_leaves_a_part_that_the_next_sweep_removes(
    comfyui: sim.Sim, api: Api, folder: Path, written: int
) -> None:
    comfyui.faults.add("GET", "/view", stop_after(2 * MEBI + 1000))
    line = [sys.executable, "-c", PROGRAM, comfyui.url, str(folder), str(written)]
    process = await asyncio.create_subprocess_exec(*line, stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    await process.stdout.readline()
    (left,) = names(folder)
    assert sweep(folder) == []
    process.kill()
    await process.wait()
    assert sweep(folder) == [folder / left]
    assert names(folder) == []
    assert (await save(api, TEXT, folder)).path.read_bytes() == LONG


# -- ComfyUI's own folder, mounted here --


@pytest.fixture
def mounted(comfyui: sim.Sim) -> Path:
    return comfyui.folders.base("output")


async def test_a_mounted_file_is_linked(mounted: Path, folder: Path) -> None:
    saved = await save_local(mounted, PNG, folder, expected_size=len(PICTURE))
    assert saved == SavedFile(
        PNG, folder / "x.png", len(PICTURE), hashlib.sha256(PICTURE).hexdigest(), "image/png", 32, 32
    )
    assert (folder / "x.png").samefile(mounted / "x.png")
    assert names(folder) == ["x.png"]


async def test_a_mounted_file_is_copied_where_it_cannot_be_linked(
    mounted: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "link", failing(errno.EXDEV, only=lambda target: str(target).endswith(".part")))
    saved = await save_local(mounted, TEXT, folder)
    assert saved is not None
    assert saved.path.read_bytes() == LONG
    assert not saved.path.samefile(mounted / "long.txt")
    assert names(folder) == ["long.txt"]


async def test_saving_into_the_mounted_folder_itself_finds_the_file_there(mounted: Path) -> None:
    before = names(mounted)
    saved = await save_local(mounted, PNG, mounted)
    assert saved is not None
    assert saved.path == mounted / "x.png"
    assert names(mounted) == before


async def test_a_file_in_a_subfolder_is_found(
    mounted: Path, folder: Path, there: Callable[[str, bytes], Path]
) -> None:
    there("deep/er/y.png", picture(1))
    saved = await save_local(mounted, OutputFile("9", "y.png", "deep/er"), folder)
    assert saved is not None
    assert saved.path == folder / "y.png"


@pytest.mark.parametrize(
    "output",
    [
        OutputFile("9", "missing.png"),
        OutputFile("9", "x.png", "no/such"),
        OutputFile("9", "x.png", type="temp"),
        OutputFile("9", "secret.png", ".."),
        OutputFile("9", "../secret.png"),
        OutputFile("9", "link.png"),
        OutputFile("9", "x\0.png"),
        OutputFile("9", "loop.png"),
        OutputFile("9", "folder.png"),
        OutputFile("9", "damaged.png"),
    ],
    ids=lambda output: f"{output.subfolder}/{output.filename!r}/{output.type}",
)
async def test_what_is_not_a_whole_file_inside_the_mounted_folder_is_left_to_the_server(
    mounted: Path, folder: Path, there: Callable[[str, bytes], Path], output: OutputFile
) -> None:
    there("../secret.png", PICTURE)
    there("damaged.png", PICTURE[:-20])
    (mounted / "link.png").symlink_to(mounted.parent / "secret.png")
    (mounted / "loop.png").symlink_to(mounted / "loop.png")
    (mounted / "folder.png").mkdir()
    assert await save_local(mounted, output, folder) is None
    assert names(folder) == []


async def test_an_absolute_name_does_not_leave_the_mounted_folder(mounted: Path, folder: Path) -> None:
    (folder.parent / "secret.png").write_bytes(PICTURE)
    assert await save_local(mounted, OutputFile("9", str(folder.parent / "secret.png")), folder) is None


async def test_a_mounted_file_of_another_size_is_another_file(mounted: Path, folder: Path) -> None:
    assert await save_local(mounted, PNG, folder, expected_size=len(PICTURE) + 1) is None
    assert names(folder) == []


async def test_a_mounted_file_that_cannot_be_read_is_left_to_the_server(
    mounted: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(file: int, size: int) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "link", failing(errno.EPERM))
    monkeypatch.setattr(os, "read", refused)
    assert await save_local(mounted, PNG, folder) is None
    assert names(folder) == []


async def test_a_missing_destination_is_told_for_a_mounted_file_too(mounted: Path, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match="does not exist, create it first"):
        await save_local(mounted, PNG, tmp_path / "nowhere")


# -- many files --


@pytest.fixture
def many(there: Callable[[str, bytes], Path]) -> list[OutputFile]:
    for number in range(8):
        there(f"many/{number}.png", picture(number))
    return [OutputFile("9", f"{number}.png", "many") for number in range(8)]


async def test_many_files_come_in_order_and_a_few_at_a_time(
    comfyui: sim.Sim, api: Api, folder: Path, many: list[OutputFile]
) -> None:
    now = most = 0

    async def counted(request: web.Request, handler: Handler, fault: Fault) -> web.StreamResponse:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await asyncio.sleep(0)
        now -= 1
        return await handler(request)

    comfyui.faults.add("GET", "/view", counted, times=None)
    heard: set[str] = set()
    saved = await save_all(
        api, many, folder, downloads=3, on_bytes=lambda output, here, total: heard.add(output.filename)
    )
    assert [file.output for file in saved] == many
    assert [file.path.read_bytes() for file in saved] == [picture(number) for number in range(8)]
    assert 1 <= most <= 3
    assert heard == {output.filename for output in many}


async def test_files_of_the_same_name_from_two_folders_both_stay(
    api: Api, folder: Path, there: Callable[[str, bytes], Path]
) -> None:
    there("a/x.png", picture(1))
    outputs = [PNG, OutputFile("9", "x.png", "a"), PNG]
    saved = await save_all(api, outputs, folder)
    assert {file.path.name for file in saved} == {"x.png", "x (1).png"}
    assert saved[0].path == saved[2].path


async def test_a_shared_limiter_bounds_single_files_too(api: Api, folder: Path) -> None:
    limiter = anyio.CapacityLimiter(1)
    borrowed: list[int] = []
    await save(
        api,
        PNG,
        folder,
        limiter=limiter,
        on_bytes=lambda here, total: borrowed.append(limiter.borrowed_tokens),
    )
    await save_all(
        api, [PNG], folder, limiter=limiter, on_bytes=lambda *_: borrowed.append(limiter.borrowed_tokens)
    )
    assert set(borrowed) == {1}
    assert limiter.borrowed_tokens == 0


async def test_one_failure_does_not_keep_the_others_from_arriving(
    api: Api, folder: Path, many: list[OutputFile]
) -> None:
    missing = [OutputFile("9", "first.png"), OutputFile("9", "second.png")]
    with pytest.raises(OutputUnavailable, match=r"first\.png"):
        await save_all(api, [many[0], *missing, many[1]], folder)
    assert names(folder) == ["0.png", "1.png"]


async def test_no_files_are_no_work(api: Api, folder: Path) -> None:
    assert await save_all(api, [], folder) == []


async def test_a_mounted_folder_saves_the_download(
    comfyui: sim.Sim, api: Api, folder: Path, mounted: Path, many: list[OutputFile]
) -> None:
    temp = comfyui.folders.base("temp") / "t.png"
    temp.write_bytes(PICTURE)
    saved = await save_all(api, [*many, OutputFile("9", "t.png", type="temp")], folder, mounted=mounted)
    assert len(saved) == 9
    assert comfyui.requests.count(("GET", "/view")) == 1  # the temporary one
    assert saved[0].path.samefile(mounted / "many" / "0.png")


async def test_a_file_of_another_server_in_the_mounted_folder_is_not_taken(
    api: Api, folder: Path, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "x.png").write_bytes(picture(1) + b"tail")
    (saved,) = await save_all(api, [PNG], folder, mounted=elsewhere)
    assert saved.path.read_bytes() == PICTURE


async def test_a_mounted_file_is_taken_even_when_the_server_is_gone(
    comfyui: sim.Sim, api: Api, folder: Path, mounted: Path
) -> None:
    comfyui.faults.add("*", "/view", sim.reset(), times=None)
    (saved,) = await save_all(api, [PNG], folder, mounted=mounted)
    assert saved.path.read_bytes() == PICTURE


def test_waits_grow_up_to_a_ceiling_and_are_spread_by_chance() -> None:
    retries = Retries(first=1, factor=3, ceiling=5)
    for failures, longest in ((1, 1), (2, 3), (3, 5), (9, 5)):
        waits = [retries.wait(failures) for _ in range(50)]
        assert all(longest / 2 <= wait <= longest for wait in waits)
        assert len(set(waits)) > 1
