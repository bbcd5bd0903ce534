"""Queue, worker and history: one prompt at a time, with ComfyUI's events in ComfyUI's order (execution.py,
0.27.0)."""

from __future__ import annotations

import asyncio
import hashlib
import heapq
import json
import struct
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .catalog import CATALOG
from .folders import Folders
from .nodes import NODES, Blocker, Done, NodeError, Preview, WorkerDied
from .profiles import Profile

Graph = dict[str, Any]
# number, prompt_id, graph, extra_data, outputs_to_execute, what is not shown
Item = tuple[float, str, Graph, dict[str, Any], list[str], dict[str, Any]]
Send = Callable[[str, Any, Any], None]  # type, data, client id or None for everybody
_THROTTLE = 0.1  # seconds between two progress messages (>= 0.9.2)
# What a node may raise by accident ends its prompt, as it would on a server.
_NODE_ERRORS = (NodeError, ArithmeticError, AttributeError, LookupError, OSError, TypeError, ValueError)
_SECRETS = ("auth_token_comfy_org", "api_key_comfy_org")
_TRACEBACK = [
    '  File "/comfyui/execution.py", line 542, in execute\n    await get_output_data(...)\n',
    '  File "/comfyui/execution.py", line 341, in get_output_data\n    await _async_map_node(...)\n',
]


class _Interrupted(Exception):
    """Somebody asked to stop, and a node looked."""


@dataclass(slots=True)
class Outcome:
    """What one prompt has come to so far."""

    success: bool = True
    messages: list[list[Any]] = field(default_factory=list)
    outputs: dict[str, Any] = field(default_factory=dict)
    meta: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Place:
    """A node's names on the wire; they differ only for the inner nodes of an expanded one."""

    node_id: str
    display: str
    parent: str | None

    def meta(self) -> dict[str, Any]:
        return {
            "node_id": self.node_id,
            "display_node": self.display,
            "parent_node": self.parent,
            "real_node_id": self.display,
        }

    def on_wire(self) -> dict[str, Any]:
        return {
            "display_node_id": self.display,
            "parent_node_id": self.parent,
            "real_node_id": self.display,
        }


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast it works (seconds), what it shows, how much it remembers: see `Sim`."""

    step_delay: float = 0.0
    history_gap: float = 0.0
    time_scale: float = 1.0
    previews: bool = True
    max_history: int = 10000


@dataclass(frozen=True, slots=True)
class Outside:
    """What the engine needs of the server around it.

    `send` hands a message to the sockets; `changed` is called whenever something moved; `wants_metadata`
    tells whether a client's socket asked for previews of the newer kind; `reported` names a new file;
    `started` is told of each prompt whose execution begins.
    """

    send: Send
    changed: Callable[[], None]
    wants_metadata: Callable[[Any], bool]
    reported: Callable[[str, Path], str]
    started: Callable[[str], None]


class Engine:
    """The server's inside."""

    def __init__(self, profile: Profile, folders: Folders, pace: Pace, outside: Outside) -> None:
        self.profile, self.folders, self.pace = profile, folders, pace
        self.send, self.changed = outside.send, outside.changed
        self.wants_metadata, self.reported = outside.wants_metadata, outside.reported
        self.started = outside.started
        self.executed: Counter[str] = Counter()
        self._gate = asyncio.Event()
        self._gate.set()
        self._passes = 0
        self.boot()

    def boot(self) -> None:
        """Forget everything that a server process keeps in memory. `executed` goes on counting."""
        self.number = 0
        self.pending: list[Item] = []
        self.running: Item | None = None
        self.history: dict[str, dict[str, Any]] = {}
        self.client_id: Any = None
        self.last_node: str | None = None
        self.interrupted = False
        self._cache: dict[str, Done] = {}
        self._wake = asyncio.Event()

    # Queue

    @property
    def remaining(self) -> int:
        """Prompts waiting and running."""
        return len(self.pending) + (self.running is not None)

    def next_number(self, front: bool) -> int:
        """The priority of a prompt that names none; every one counts, also those refused later."""
        number = -self.number if front else self.number
        self.number += 1
        return number

    def put(self, item: Item) -> None:
        """Queue a prompt. TypeError when the same id and number wait already, though it is in the queue then
        (17)."""
        heapq.heappush(self.pending, item)
        self.tell_status()
        self._wake.set()

    def remove(self, prompt_id: str) -> bool:
        """Take the first waiting prompt of that id out, without a trace."""
        for place, item in enumerate(self.pending):
            if item[1] == prompt_id:
                self.pending.pop(place)
                heapq.heapify(self.pending)
                self.tell_status()
                return True
        return False

    def wipe(self) -> None:
        """Empty the queue; the running prompt stays."""
        self.pending = []
        self.tell_status()

    def tell_status(self) -> None:
        """Tell everybody how long the queue is, as of now."""
        self.send("status", {"status": {"exec_info": {"queue_remaining": self.remaining}}}, None)
        self.changed()

    def free(self) -> None:
        """Drop the cache of nodes."""
        self._cache.clear()

    # Gate, for tests

    def hold(self) -> None:
        """Stop the worker before its next node or step."""
        self._passes = 0
        self._gate.clear()

    def release(self, steps: int | None = None) -> None:
        """Let the worker go on: for ever, or for that many nodes and steps."""
        self._passes = steps or 0
        self._gate.set()

    async def gate(self) -> None:
        await self._gate.wait()
        if self._passes:
            self._passes -= 1
            if not self._passes:
                self._gate.clear()

    # Worker

    async def work(self) -> None:
        """Run prompts until cancelled, or until one kills the worker."""
        while True:
            while not self.pending:
                self._wake.clear()
                await self._wake.wait()
            self.running = item = heapq.heappop(self.pending)
            self.tell_status()
            try:
                outcome = await _Run(self, item).execute()
            except WorkerDied:
                return
            await asyncio.sleep(self.pace.history_gap)
            self._finish(item, outcome)

    def _finish(self, item: Item, outcome: Outcome) -> None:
        if len(self.history) > self.pace.max_history:
            self.history.pop(next(iter(self.history)))
        self.history[item[1]] = {
            "prompt": list(item[:5]),
            "outputs": outcome.outputs,
            "status": {
                "status_str": "success" if outcome.success else "error",
                "completed": outcome.success,
                "messages": outcome.messages,
            },
            "meta": outcome.meta,
        }
        self.running = None
        self.tell_status()
        if self.client_id is not None:
            self.send("executing", {"node": None, "prompt_id": item[1]}, self.client_id)
        self.changed()

    def submission(
        self, number: float, prompt_id: str, graph: Graph, extra: dict[str, Any], outputs: list[str]
    ) -> Item:
        """The queue's item for a prompt that was taken."""
        secrets: dict[str, Any] = {}
        if self.profile.hides_secrets:
            secrets = {key: extra.pop(key) for key in _SECRETS if key in extra}
        if self.profile.create_time:
            extra["create_time"] = time.time_ns() // 1_000_000
        return number, prompt_id, graph, extra, outputs, secrets


class _Run:
    """One prompt on its way through the worker."""

    def __init__(self, engine: Engine, item: Item) -> None:
        self.engine = engine
        self.prompt_id, self.graph, self.extra, self.targets = item[1], item[2], item[3], item[4]
        self.outcome = Outcome()
        self.executed: list[str] = []
        self.nodes: dict[str, dict[str, Any]] = {}
        self.signatures: dict[str, str] = {}
        self.blocked = False

    @property
    def client(self) -> Any:
        return self.engine.client_id

    # Messages

    def _tell(self, kind: str, data: dict[str, Any], *, everyone: bool = False) -> None:
        """A message that history keeps too."""
        data = {**data, "timestamp": time.time_ns() // 1_000_000}
        self.outcome.messages.append([kind, data])
        if self.client is not None or everyone:
            self.engine.send(kind, data, self.client)

    def _tell_owner(self, kind: str, data: dict[str, Any]) -> None:
        if self.client is not None:
            self.engine.send(kind, data, self.client)

    def tell_nodes(self) -> None:
        """The cumulative state of all nodes; without an owner everybody gets it (recording 25)."""
        if self.engine.profile.progress_state:
            nodes = {node_id: dict(state) for node_id, state in self.nodes.items()}
            self.engine.send("progress_state", {"prompt_id": self.prompt_id, "nodes": nodes}, self.client)

    def state(self, place: _Place, value: float, total: float, word: str) -> None:
        self.nodes[place.node_id] = {
            "value": value,
            "max": total,
            "state": word,
            "node_id": place.node_id,
            "prompt_id": self.prompt_id,
            **place.on_wire(),
        }
        self.tell_nodes()

    def finished(self, place: _Place) -> None:
        total = self.nodes[place.node_id]["max"] if place.node_id in self.nodes else 1
        self.state(place, total, total, "finished")

    # Execution

    async def execute(self) -> Outcome:
        engine = self.engine
        engine.executed[self.prompt_id] += 1
        engine.started(self.prompt_id)
        engine.interrupted = False
        engine.client_id, engine.last_node = self.extra.get("client_id"), None
        for node_id in self.graph:
            self._sign(node_id)
        kept = set(self.signatures.values())
        engine._cache = {key: done for key, done in engine._cache.items() if key in kept}
        self._tell("execution_start", {"prompt_id": self.prompt_id})
        cached = [node_id for node_id in self.graph if self.signatures.get(node_id) in engine._cache]
        self._tell("execution_cached", {"nodes": cached, "prompt_id": self.prompt_id})
        engine.changed()
        await self._nodes(_Order(self.graph, self.targets, cached))
        if self.outcome.success:
            self._tell("execution_success", {"prompt_id": self.prompt_id})
        engine.last_node = None
        return self.outcome

    async def _nodes(self, order: _Order) -> None:
        while (node_id := order.pick()) is not None:
            place = _Place(node_id, node_id, None)
            try:
                await self._node(place)
            except _Interrupted:
                self._interrupted(place)
                return
            except _NODE_ERRORS as error:
                self._failed(place, error)
                return
            order.done(node_id)

    def _sign(self, node_id: str) -> str:
        """What a node's result depends on: its class, its inputs and everything upstream."""
        if node_id in self.signatures:
            return self.signatures[node_id]
        node = self.graph.get(node_id, {})
        parts: list[Any] = [node.get("class_type")]
        for name, value in sorted(node.get("inputs", {}).items()):
            link = isinstance(value, list) and len(value) == 2 and value[0] in self.graph
            parts.append([name, [self._sign(value[0]), value[1]] if link else value])
        if node.get("class_type") == "LoadImage":
            parts.append(_stamp(self.engine.folders.loaded(str(node["inputs"].get("image")))))
        self.signatures[node_id] = hashlib.sha1(json.dumps(parts).encode(), usedforsecurity=False).hexdigest()
        return self.signatures[node_id]

    async def _node(self, place: _Place) -> None:
        done = self.engine._cache.get(self.signatures[place.node_id])
        if done is not None:
            self._from_cache(place, done)
            return
        node = self.graph[place.node_id]
        inputs = {name: self._resolve(value) for name, value in node["inputs"].items()}
        self.engine._cache[self.signatures[place.node_id]] = await self.run(place, node["class_type"], inputs)

    def _resolve(self, value: Any) -> Any:
        if not (isinstance(value, list) and len(value) == 2 and value[0] in self.graph):
            return value
        values = self.engine._cache[self.signatures[value[0]]].values
        return values[value[1]]

    def _from_cache(self, place: _Place, done: Done) -> None:
        """Tell the old result again; 0.27 forgets to record it when nobody owns the prompt (recording 06)."""
        self._tell_owner("executed", self._executed(place, done.ui))
        if done.ui is not None and (self.client is not None or not self.engine.profile.empty_cached):
            self._record(place, done.ui)
        self.finished(place)

    def _executed(self, place: _Place, ui: dict[str, Any] | None) -> dict[str, Any]:
        return {
            "node": place.node_id,
            "display_node": place.display,
            "output": ui,
            "prompt_id": self.prompt_id,
        }

    def _record(self, place: _Place, ui: dict[str, Any]) -> None:
        self.outcome.outputs[place.node_id] = ui
        self.outcome.meta[place.node_id] = place.meta()

    async def run(self, place: _Place, class_type: str, inputs: Mapping[str, Any]) -> Done:
        """Run one node that is not cached, with all that is told about it."""
        await self.engine.gate()
        self.state(place, 0.0, 1.0, "running")
        if self.client is not None:
            self.engine.last_node = place.display
            names = {"node": place.node_id, "display_node": place.display, "prompt_id": self.prompt_id}
            self.engine.send("executing", names, self.client)
        self.engine.changed()
        self.look()
        done = self._blocked(place, class_type, inputs)
        if done is None:
            known = {key for group in CATALOG[class_type]["input"].values() for key in group}
            wanted = {key: value for key, value in inputs.items() if key in known}
            done = await NODES[class_type](_Here(self, place), **wanted)
        if done.ui is not None:
            self._record(place, done.ui)
            self._tell_owner("executed", self._executed(place, done.ui))
        self.finished(place)
        self.executed.append(place.node_id)
        return done

    def look(self) -> None:
        """Look at the interrupt flag, as a node does when it starts and at each progress update."""
        if self.engine.interrupted:
            self.engine.interrupted = False
            raise _Interrupted

    def _blocked(self, place: _Place, class_type: str, inputs: Mapping[str, Any]) -> Done | None:
        """The silent result of a node that a blocker reaches. Its error is no end, and is not in history
        (09)."""
        blocker = next((value for value in inputs.values() if isinstance(value, Blocker)), None)
        if blocker is None:
            return None
        if blocker.message is not None:
            error = self._error(place, class_type) | {
                "exception_message": f"Execution Blocked: {blocker.message}",
                "exception_type": "ExecutionBlocked",
                "traceback": [],
                "current_inputs": [],
                "current_outputs": [],
            }
            self.engine.send("execution_error", error, self.client)
        return Done((Blocker(None),) * len(CATALOG[class_type]["output"]))

    def _error(self, place: _Place, class_type: str) -> dict[str, Any]:
        return {
            "prompt_id": self.prompt_id,
            "node_id": place.node_id,
            "node_type": class_type,
            "executed": list(self.executed),
        }

    def _interrupted(self, place: _Place) -> None:
        self.outcome.success = False
        data = self._error(place, self.graph[place.node_id]["class_type"])
        self._tell("execution_interrupted", data, everyone=True)

    def _failed(self, place: _Place, error: Exception) -> None:
        self.outcome.success = False
        node = self.graph[place.node_id]
        data = self._error(place, node["class_type"]) | {
            "exception_message": f"{error}\n",
            "exception_type": error.kind if isinstance(error, NodeError) else type(error).__name__,
            "traceback": [*_TRACEBACK, f'  File "/comfyui/nodes.py", line 1, in {node["class_type"]}\n'],
            "current_inputs": {name: [self._as_text(value)] for name, value in node["inputs"].items()},
            "current_outputs": list(self.graph),
        }
        self._tell("execution_error", data)

    def _as_text(self, value: Any) -> Any:
        if isinstance(value, list):
            return "tensor([[[[0.5000, 0.5000, 0.5000]]]])"
        return value if isinstance(value, int | float) or value is None else str(value)


class _Here:
    """`nodes.At`: what one node may do."""

    def __init__(self, run: _Run, place: _Place) -> None:
        self._run, self._place = run, place
        self.node_id = place.node_id
        self.folders, self.step_delay = run.engine.folders, run.engine.pace.step_delay
        self.previews, self.graph, self.extra = run.engine.pace.previews, run.graph, run.extra
        self.reported = run.engine.reported
        self._sent_value, self._sent_at = -1.0, 0.0

    async def pause(self, seconds: float) -> None:
        await asyncio.sleep(seconds * self._run.engine.pace.time_scale)
        await self._run.engine.gate()

    async def step(self, value: float, total: float, preview: Preview | None = None) -> None:
        self._run.look()
        if self._too_soon(value, total, preview):
            return
        self._sent_value, self._sent_at = value, time.monotonic()
        run = self._run
        run.state(self._place, value, total, "running")
        metadata = preview is not None and run.engine.wants_metadata(run.client)
        if preview is not None and metadata:
            run.engine.send("binary", self._with_metadata(preview), run.client)
        data = {"value": value, "max": total, "prompt_id": run.prompt_id, "node": self.node_id}
        run.engine.send("progress", data, run.client)
        if preview is not None and not metadata:
            run.engine.send("binary", struct.pack(">II", 1, preview.format) + preview.data, run.client)
        run.engine.changed()

    def _too_soon(self, value: float, total: float, preview: Preview | None) -> bool:
        """Whether 0.9.2 and newer leave this update out (comfy/utils.py)."""
        if not self._run.engine.profile.throttled or preview or self._sent_value < 0 or value >= total:
            return False
        return time.monotonic() - self._sent_at < _THROTTLE or (value - self._sent_value) / total < 0.005

    def _with_metadata(self, preview: Preview) -> bytes:
        metadata = {
            "node_id": self.node_id,
            "prompt_id": self._run.prompt_id,
            **self._place.on_wire(),
            "image_type": "image/jpeg" if preview.format == 1 else "image/png",
        }
        text = json.dumps(metadata).encode()
        return struct.pack(">II", 4, len(text)) + text + preview.data

    async def child(self, number: int, class_type: str, inputs: Mapping[str, Any]) -> tuple[Any, ...]:
        place = _Place(f"{self.node_id}.0.0.{number}", self._place.display, self.node_id)
        return (await self._run.run(place, class_type, inputs)).values

    def say(self, text: str, *, everyone: bool) -> None:
        name = self.node_id.encode()
        frame = struct.pack(">II", 3, len(name)) + name + text.encode()
        self._run.engine.send("binary", frame, None if everyone else self._run.client)

    def send(self, kind: str, data: Any, *, everyone: bool) -> None:
        self._run.engine.send(kind, data, None if everyone else self._run.client)


class _Order:
    """Which node is next: outputs as soon as they can, then what leads to them (comfy_execution/graph.py)."""

    def __init__(self, graph: Graph, targets: list[str], cached: list[str]) -> None:
        self._graph, self._cached = graph, set(cached)
        self._waits: dict[str, int] = {}
        self._blocks: dict[str, list[str]] = {}
        for target in targets:
            self._add(target)

    def _add(self, target: str) -> None:
        todo, links = [target], []
        while todo:
            node_id = todo.pop()
            if node_id in self._waits:
                continue
            self._waits[node_id], self._blocks[node_id] = 0, []
            for value in self._graph[node_id]["inputs"].values():
                source = value[0] if isinstance(value, list) and len(value) == 2 else None
                if source in self._graph and source not in self._cached:
                    todo.append(source)
                    links.append((source, node_id))
        for source, node_id in links:
            if node_id not in self._blocks[source]:
                self._blocks[source].append(node_id)
                self._waits[node_id] += 1

    def pick(self) -> str | None:
        ready = [node_id for node_id, count in self._waits.items() if not count]
        for leads in (self._is_output, self._leads_to_output, self._leads_far):
            found = next(filter(leads, ready), None)
            if found is not None:
                return found
        return ready[0] if ready else None

    def done(self, node_id: str) -> None:
        del self._waits[node_id]
        for blocked in self._blocks[node_id]:
            self._waits[blocked] -= 1

    def _is_output(self, node_id: str) -> bool:
        return bool(CATALOG[self._graph[node_id]["class_type"]]["output_node"])

    def _leads_to_output(self, node_id: str) -> bool:
        return any(map(self._is_output, self._blocks[node_id]))

    def _leads_far(self, node_id: str) -> bool:
        return any(map(self._leads_to_output, self._blocks[node_id]))


def _stamp(path: Path) -> list[int]:
    if not path.is_file():
        return []
    stat = path.stat()
    return [stat.st_mtime_ns, stat.st_size]
