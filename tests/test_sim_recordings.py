"""The simulator against recordings of real servers: each scenario is played again, and every frame and every
answer has to be the same.

What is masked: times, ids that a server makes up, pixel values and lengths. Steps of one node count once,
since the clock decides how many are told; `status` is compared as a stream of its own, since it comes from
whoever changes the queue and not from the worker.
"""

from __future__ import annotations

import asyncio
import base64
import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import pytest
from recorded import Scenario, scenario

from comfyflow.sim import Sim

SCENARIOS = {
    "0.27.0": "01 02 03 04 05 06 07 08 09 10 11 12 13 14 15 16 17 18 19 20 23 24 25 26 28 29 33 38",
    "0.3.64": "01 02 03 06 07 08 10 11 14 16 17",
}
PROFILES = {"0.27.0": "0.27", "0.3.64": "0.3.64"}
STEPS = ("progress", "binary")
# In 24 three sockets share one client id: which one still hears what was told when the other closes.
OF_ONE_CLIENT = {"second": "third"}
FILE = re.compile(r"^(?:(.*)/)?(.*?)_(\d{5})(_?\.\w+)$")
UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
HEADERS = ("Content-Type", "Content-Disposition", "X-Content-Type-Options", "Accept-Ranges", "Allow",
           "Connection",
           "Transfer-Encoding")  # fmt: skip
MASKED = {"timestamp", "create_time", "traceback", "execution_start_time", "execution_end_time"}
SETS = {"executed", "current_outputs", "nodes", "errors", "jobs"}


# What is compared


def masked(value: Any, key: str = "") -> Any:
    """The value with everything replaced that no two runs share, and sorted where the server has a set."""
    if key == "current_inputs":
        return len(value)
    if key in MASKED:
        return key
    if isinstance(value, dict):
        return {name: masked(each, name) for name, each in value.items()}
    if not isinstance(value, list):
        return value
    if key == "prompt":
        return [*value[:3], masked(value[3]), sorted(value[4])]
    items = [masked(each) for each in value]
    return sorted(items, key=str) if key in SETS else items


@dataclass(slots=True)
class Stream:
    """What one socket heard, as it is compared."""

    told: list[Any] = field(default_factory=list)
    status: list[Any] = field(default_factory=list)

    def add(self, frame: str | bytes) -> None:
        message = self._binary(frame) if isinstance(frame, bytes) else masked(json.loads(frame))
        if message["type"] == "status":
            self.status.append(message["data"])
            return
        if not self._repeats(message):
            self.told.append(message)

    def _binary(self, frame: bytes) -> dict[str, Any]:
        kind = int.from_bytes(frame[:4], "big")
        size = int.from_bytes(frame[4:8], "big")
        if kind == 1:
            return {"type": "binary", "data": ["preview", size, frame[8:10].hex()]}
        if kind == 3:
            return {"type": "text", "data": [frame[8 : 8 + size].decode(), frame[8 + size :].decode()]}
        return {"type": "binary", "data": [json.loads(frame[8 : 8 + size]), frame[8 + size :][:2].hex()]}

    def _repeats(self, message: dict[str, Any]) -> bool:
        """Whether this is one more step of a node; the first one of each kind is kept, without its value."""
        if not is_step(message):
            return False
        message["type"] += " of a step"
        if message["type"].startswith("progress"):
            message["data"] = sorted(message["data"])
        steps = []
        for told in reversed(self.told):
            if not told["type"].endswith(" of a step"):
                break
            steps.append(told)
        return message in steps


def is_step(message: dict[str, Any]) -> bool:
    if message["type"] != "progress_state":
        return message["type"] in STEPS
    last = list(message["data"]["nodes"].values())[-1]
    return bool(last["state"] == "running" and last["value"])


# Playing a recording


@dataclass(slots=True)
class Socket:
    ws: aiohttp.ClientWebSocketResponse
    heard: Stream
    reader: asyncio.Task[None]
    barrier: asyncio.Event


class Player:
    """Does to a simulator what the recorder did to a server."""

    def __init__(self, recording: Scenario, sim: Sim, session: aiohttp.ClientSession) -> None:
        self.recording, self.sim, self.session = recording, sim, session
        self.ids: dict[str, str] = {}  # of the recording -> of this run
        self.sockets: dict[str, Socket] = {}
        self.alive = True
        self.wanted: dict[str, Counter[str]] = {}
        self.answers: list[tuple[dict[str, Any], dict[str, Any]]] = []
        self.cut: set[str] = set()
        self.facts: dict[str, str] = {}  # size, ETag and date of the file that is viewed
        self.order = outputs_in_order(recording)

    async def play(self) -> None:
        lines = [(line.get("t_ms") or 0.0, "ws", line) for line in self.recording.ws]
        lines += [(line.get("t_ms") or 0.0, "http", line) for line in self.recording.http if "method" in line]
        for _, source, line in sorted(lines, key=lambda each: each[0]):
            await (self.request(line) if source == "http" else self.line(line))
        for socket in self.sockets.values():
            socket.reader.cancel()

    # Pace: an action waits until the server has told what it had told by then; then the worker stands

    def note(self, line: dict[str, Any]) -> None:
        mark = milestone(json.loads(line["text"])) if "text" in line else None
        if mark is not None:
            counter = self.wanted.setdefault(line["conn"], Counter())
            counter[mark] = 1 if mark.startswith("progress") else counter[mark] + 1

    async def pace(self) -> None:
        wanted: Counter[str] = Counter()
        for counter in self.wanted.values():
            wanted |= counter

        def reached() -> bool:
            sent = Counter(filter(None, map(milestone, self.sim.events)))
            translated = Counter({self.here(mark): count for mark, count in wanted.items()})
            if not translated <= sent:
                return False
            self.sim.engine.hold()
            return True

        if reached():
            return
        await self.sim.release()
        await self.sim.wait_for(reached)

    def here(self, text: str) -> str:
        return UUID.sub(lambda match: self.ids.get(match[0], match[0]), text)

    def there(self, text: str) -> str:
        back = {here: there for there, here in self.ids.items()}
        return UUID.sub(lambda match: back.get(match[0], match[0]), text)

    # Sockets

    async def line(self, line: dict[str, Any]) -> None:
        kind, conn = line["kind"], line.get("conn", "")
        if line["dir"] == "in" and kind == "text":
            self.note(line)
        elif kind == "handshake":
            await self.open(conn, line["query"]["clientId"])
        elif line["dir"] == "out" and kind == "text":
            await self.sockets[conn].ws.send_str(line["text"])
        elif line["dir"] == "out" and kind == "close":
            await self.close(conn)
        elif kind == "tcp_abort":
            await self.abort(conn)
        elif kind == "note" and line["text"].startswith("SIGKILL"):
            await self.kill(next(iter(self.sockets)))
        elif kind == "close" and line.get("close_code") == 1006 and conn not in self.cut:
            await self.kill(conn)
            await asyncio.wait_for(self.sockets[conn].reader, 5)
            assert self.sockets[conn].ws.close_code == aiohttp.WSCloseCode.ABNORMAL_CLOSURE

    async def open(self, conn: str, client_id: str) -> None:
        await self.pace()
        if not self.alive:
            await self.sim.start()
            self.alive = True
        ws = await self.session.ws_connect(
            f"{self.sim.url}/ws", params={"clientId": client_id}, max_msg_size=0
        )
        socket = Socket(ws, Stream(), asyncio.create_task(asyncio.sleep(0)), asyncio.Event())
        socket.reader = asyncio.create_task(self.read(socket))
        self.sockets[conn] = socket

    async def read(self, socket: Socket) -> None:
        async for message in socket.ws:
            if message.data == "barrier":
                socket.barrier.set()
            elif message.type is aiohttp.WSMsgType.TEXT:
                socket.heard.add(self.there(message.data))
            else:
                text = message.data.decode("latin-1")
                socket.heard.add(self.there(text).encode("latin-1"))

    async def close(self, conn: str) -> None:
        await self.pace()
        await self.sim.release()
        socket = self.sockets[conn]
        hearing = OF_ONE_CLIENT.get(conn) if self.recording.name.startswith("24") else conn
        if hearing is not None:
            await self.barrier(hearing)
        await socket.ws.close()
        await self.sim.wait_for(lambda: socket.ws.closed)

    async def barrier(self, conn: str) -> None:
        """Wait until everything that was told has arrived."""
        self.sim.send_raw("barrier")
        async with asyncio.timeout(5):
            await self.sockets[conn].barrier.wait()
        self.sockets[conn].barrier.clear()

    async def abort(self, conn: str) -> None:
        await self.pace()
        self.cut.add(conn)
        await self.barrier(conn)
        connection = self.sockets[conn].ws._response.connection
        assert connection is not None
        assert connection.transport is not None
        sockets = self.sim.sockets
        connection.transport.abort()
        await self.sim.wait_sockets(sockets - 1)

    async def kill(self, conn: str) -> None:
        if self.alive:
            await self.pace()
            await self.barrier(conn)
            await self.sim.kill()
            self.alive = False

    # HTTP

    async def request(self, line: dict[str, Any]) -> None:
        await self.pace()
        if "exception" in line:
            with pytest.raises(aiohttp.ClientConnectorError):
                await self.session.get(f"{self.sim.url}{line['path']}")
            await self.sim.start()
            self.alive = True
            return
        await self.until_told(line)
        path = self.here(line["path"])
        headers = {name: self.as_here(value) for name, value in line["request_headers"].items()}
        data = self.body(line, headers)
        url = f"{self.sim.url}{path}"
        async with self.session.request(
            line["method"], url, params=line["query"], data=data, headers=headers
        ) as response:
            answer = {"status": response.status, "headers": response.headers, "body": await response.read()}
        self.learn(line, answer)
        self.answers.append((line, answer))

    async def until_told(self, line: dict[str, Any]) -> None:
        """Where no socket set the pace: wait until the server can answer what it answered."""
        recorded = line.get("response_json")
        prompt_id = line["path"].rpartition("/")[2]
        if prompt_id not in self.ids or not isinstance(recorded, dict):
            return
        if prompt_id in recorded or "execution_status" in recorded:
            await self.sim.release()
            await self.sim.wait_done(self.ids[prompt_id])

    def as_here(self, text: str) -> str:
        for there, here in self.facts.items():
            text = text.replace(there, here)
        return text

    def body(self, line: dict[str, Any], headers: dict[str, str]) -> bytes | None:
        if "request_json" in line:
            return self.here(json.dumps(self.reordered(line))).encode()
        if "request_raw" in line:
            return self.here(line["request_raw"]).encode()
        if "request_multipart" in line:
            headers["Content-Type"] = "multipart/form-data; boundary=frontier"
            return multipart(line)
        return None

    def reordered(self, line: dict[str, Any]) -> Any:
        """The same request with its output nodes in the order of the recording (a server has a set)."""
        body = line["request_json"]
        answer = line.get("response_json") or {}
        order = self.order.get(answer.get("prompt_id", "refused"), [])
        if not order:
            return body
        first = {node_id: body["prompt"][node_id] for node_id in order}
        return {**body, "prompt": {**first, **body["prompt"]}}

    def learn(self, line: dict[str, Any], answer: dict[str, Any]) -> None:
        """A prompt id made by the server has another value in this run."""
        if line["path"] == "/view" and line["status"] == 200 and not self.facts:
            there, here = dict(line["response_headers"]), answer["headers"]
            self.facts = {there[name]: here[name] for name in ("Etag", "Last-Modified")}
            sizes = int(there["Content-Length"]), int(here["Content-Length"])
            self.facts |= {f"={sizes[0] + more}-": f"={sizes[1] + more}-" for more in (0, 10)}
        if line["path"] != "/prompt" or line["method"] != "POST" or line["status"] != 200:
            return
        assert answer["status"] == 200, answer
        self.ids[line["response_json"]["prompt_id"]] = json.loads(answer["body"])["prompt_id"]


def milestone(message: dict[str, Any]) -> str | None:
    """What the recorder waited for: everything but the later steps of a node."""
    kind, data = message["type"], message["data"]
    if kind == "status":
        return None if "sid" in data else "status"
    if kind in ("progress_state", "feature_flags") or "prompt_id" not in data:
        return None
    return f"{kind} {data.get('node', data.get('node_id'))} {data['prompt_id']}"


def outputs_in_order(recording: Scenario) -> dict[str, list[str]]:
    """The output nodes of each prompt in the order in which the server ran them."""
    order: dict[str, list[str]] = {}
    for frame in recording.frames():
        message = json.loads(frame) if isinstance(frame, str) else {}
        if message.get("type") == "executed":
            nodes = order.setdefault(message["data"]["prompt_id"], [])
            nodes += [node for node in [message["data"]["node"]] if node not in nodes]
    return order


def multipart(line: dict[str, Any]) -> bytes:
    parts = []
    for part in line["request_multipart"]:
        head = f'Content-Disposition: form-data; name="{part["name"]}"'
        data = base64.b64decode(part["base64"]) if "base64" in part else part.get("value", "").encode()
        if "filename" in part:
            name = part["filename"].replace('"', '\\"')
            answered = line.get("response_json") or {}
            if "%" in answered.get("name", ""):  # what aiohttp's own forms send
                name = answered["name"]
            head += f'; filename="{name}"\r\nContent-Type: {part["content_type"]}'
        parts.append(b"--frontier\r\n" + head.encode() + b"\r\n\r\n" + data + b"\r\n")
    return b"".join(parts) + b"--frontier--\r\n"


# Setting the stage: the recorded server had files and a counter already


def prepare(recording: Scenario, sim: Sim) -> None:
    sim.engine.number = first_number(recording)
    for kind, subfolder, stem, counter, ending in first_files(recording):
        if kind == "temp":
            sim.folders.temp_prefix = stem
        elif counter > 1:
            folder = sim.folders.base(kind) / subfolder
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{stem}_{counter - 1:05}{ending}").write_bytes(b"")
    for name in ("rec_mask.png", "b.png"):
        (sim.folders.base("input") / name).write_bytes(b"of an earlier day")


def first_number(recording: Scenario) -> int:
    taken = 0
    for line in recording.http:
        if line.get("path") != "/prompt" or line.get("method") != "POST" or line.get("status") == 500:
            continue
        number = (line.get("response_json") or {}).get("number")
        if number is not None:
            return int(number) - taken
        taken += 1
    return 0


def first_files(recording: Scenario) -> list[tuple[str, str, str, int, str]]:
    found: dict[tuple[str, str, str], tuple[int, str]] = {}
    for output in reported(recording):
        for item in (item for items in output.values() for item in items if isinstance(item, dict)):
            match = FILE.match(item["filename"])
            if match is not None:
                key = (item["type"], item["subfolder"], match[2])
                found[key] = min(found.get(key, (99999, "")), (int(match[3]), match[4]))
    return [(*key, *value) for key, value in found.items()]


def reported(recording: Scenario) -> Iterator[dict[str, Any]]:
    for frame in recording.frames():
        message = json.loads(frame) if isinstance(frame, str) else {}
        if message.get("type") == "executed":
            yield message["data"]["output"] or {}
    for line in recording.http:
        answer = line.get("response_json")
        for entry in answer.values() if isinstance(answer, dict) and "/history/" in line["path"] else ():
            yield from entry["outputs"].values()


# The tests


@pytest.mark.parametrize(
    ("version", "number"),
    [(version, number) for version in SCENARIOS for number in SCENARIOS[version].split()],
)
async def test_the_simulator_tells_and_answers_what_the_server_did(version: str, number: str) -> None:
    recording = scenario(number, version)
    async with Sim(profile=PROFILES[version], time_scale=0.01) as sim, aiohttp.ClientSession() as session:
        prepare(recording, sim)
        player = Player(recording, sim, session)
        await player.play()
        for line, answer in player.answers:
            compare_answer(line, answer, player)
        for conn, socket in player.sockets.items():
            recorded = Stream()
            for frame in recording.frames(conn):
                recorded.add(frame)
            assert socket.heard.told == recorded.told, conn
            if number == "07":  # many prompts at once: their statuses mix as the clock wants
                assert len(socket.heard.status) == len(recorded.status), conn
            else:
                assert socket.heard.status == recorded.status, conn


def compare_answer(line: dict[str, Any], answer: dict[str, Any], player: Player) -> None:
    what = f"{line['method']} {line['path']} {line['query']} {str(line.get('request_json'))[:300]}"
    assert answer["status"] == line["status"], what
    recorded = dict(line["response_headers"])
    for name in HEADERS:
        assert answer["headers"].get(name) == recorded.get(name), f"{what}: {name}"
    for name in ("Etag", "Last-Modified", "Content-Range"):
        assert (name in answer["headers"]) == (name in recorded), f"{what}: {name}"
    if "response_json" in line and not line.get("response_trimmed") and "object_info" not in line["path"]:
        body = json.loads(player.there(answer["body"].decode()))
        assert masked(body) == masked(line["response_json"]), what
    elif "text/plain" in recorded.get("Content-Type", ""):
        assert answer["body"].decode() == line["response_text"], what
