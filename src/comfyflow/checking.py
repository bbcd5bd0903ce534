"""Would a server take this workflow? The check, with all that the server itself can be asked.

A kept `/object_info` may be out of date, so nothing is refused because of it: the server is asked anew first.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections import defaultdict
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from math import inf
from typing import Any, Protocol

from .check import check
from .errors import BadAnswer, ServerError, WorkflowFaulty, WorkflowInvalid
from .faults import FaultKind, Rule, Verdict
from .figures import counted
from .nodeinfo import Asked, NodeInfo, first_answer, node_info
from .served import ServedClass
from .sources import Form, Source
from .workflow import Workflow

log = logging.getLogger("comfyflow.checking")

KEPT = 300.0  # s; after that the disk is asked again, and by what is refused the server
REST = 60.0  # s for which a server that did not answer is left out
JUST = 2.0  # s; what the server has told since then is not asked again

_ANNOTATED = re.compile(r"(?P<path>.*?)(?: ?\[(?P<type>input|output|temp)\])?", re.DOTALL)


class _Asks(Protocol):
    @property
    def clients(self) -> Sequence[Server]:
        """The servers: of a ComfyClient, or of a ServerPool."""


class Server(Asked, Protocol):
    """A server that can be asked all of it: a ComfyClient."""

    async def node_replacements(self) -> dict[str, Any]:
        """GET /node_replacements."""

    def brings(self, workflow: Workflow) -> Collection[str]:
        """Files that it will be given before the workflow is sent."""

    async def has_file(self, name: str, *, type: str = ..., subfolder: str = ...) -> bool:
        """HEAD /view."""


@dataclass(frozen=True, slots=True)
class Judged:
    """A verdict, and whose it is: a server's URL, or a file's name.

    `complete` tells of a refusal that no server was left out because it could not be asked: it might see it
    otherwise. `others` are the verdicts of further servers, where none would take all of the workflow.
    """

    verdict: Verdict
    source: str
    complete: bool = True
    others: tuple[Judged, ...] = ()

    @property
    def partial(self) -> bool:
        """Whether some outputs would be left out, and others not."""
        return self.verdict.accepted is not False and bool(self.verdict.dropped)

    def refusal(self, workflow: Workflow, *, allow_partial: bool) -> WorkflowFaulty | None:
        """The error of a workflow that is not to be sent; None for one that is."""
        found = self.verdict
        if found.accepted is not False and (allow_partial or not self.partial):
            return None
        asked = (self, *self.others)
        sources = defaultdict[str, list[str]](list)
        for one in asked:
            sources[one._sentence()].append(one.source)
        reason = "; ".join(f"{', '.join(urls)} {sentence}" for sentence, urls in sources.items())
        servers = {one.source: one.verdict.faults for one in asked} if self.others else None
        return WorkflowFaulty(reason, faults=found.faults, servers=servers, path=workflow.name)

    def _sentence(self) -> str:
        """Without its subject."""
        found = self.verdict
        would = "run a part of this only" if found.accepted else "refuse this"
        return f"would {would}: {counted(len(found.faults), 'fault')}"


class Checker:
    """Look at workflows before they are sent, for `Runner(check=...)`.

    Raises WorkflowFaulty for what no server of `client` would take, or would run a part of only unless
    `allow_partial`. Where a server cannot be asked only links to nothing are refused (WorkflowInvalid). With
    `info` (a saved `/object_info`) no server is asked. Node classes are kept for five minutes, and asked for
    anew before anything is refused.
    """

    def __init__(self, client: _Asks, *, allow_partial: bool = False, info: NodeInfo | None = None) -> None:
        self._client, self._partial, self._info = client, allow_partial, info
        self._told = Told()

    async def __call__(self, workflow: Workflow) -> None:
        """Raises WorkflowFaulty, or WorkflowInvalid where no server can be asked."""
        if self._info is not None:
            found = judge_by(self._info, workflow)
        else:
            try:
                found = await judge(self._client.clients, workflow, told=self._told)
            except ServerError as error:
                log.info("the workflow is sent unchecked: %s", error)
                workflow.with_sound_links()
                return
        refusal = found.refusal(workflow, allow_partial=self._partial)
        if refusal is not None and found.complete:
            raise refusal


class Told:
    """What servers have told, for the checks that follow. Of many at once one asks."""

    def __init__(self) -> None:
        self._infos: dict[str, tuple[float, NodeInfo]] = {}
        self._asking = defaultdict[str, asyncio.Lock](asyncio.Lock)
        self._away: dict[str, float] = {}

    def ready(self, servers: Sequence[Server]) -> Sequence[Server]:
        """Those that have not just failed to answer."""
        now = time.monotonic()
        return [one for one in servers if now - self._away.get(one.addresses[0], -inf) > REST]

    def is_away(self, server: Server) -> None:
        """It did not answer."""
        self._away[server.addresses[0]] = time.monotonic()

    async def info(self, server: Server, *, doubt: NodeInfo | None = None) -> tuple[float, NodeInfo]:
        """The classes of a server, and when it was asked for them; asked anew when they are those in `doubt`.
        Raises ServerError."""
        url = server.addresses[0]
        async with self._asking[url]:
            at, info = self._infos.get(url, (-inf, None))
            if info is None or info is doubt or time.monotonic() - at > KEPT:
                info = await node_info(server, fresh=doubt is not None)
                at, _ = self._infos[url] = time.monotonic(), info
            return at, info


async def judge(
    servers: Sequence[Server],
    workflow: Workflow,
    *,
    targets: Collection[str] | None = None,
    told: Told | None = None,
) -> Judged:
    """The verdict of the first server that would take the workflow, else of one that would run a part of it,
    else the one with the fewest faults, with those of the others.

    `targets` are the output nodes that alone are to run; `told` is filled with what servers have told, for
    the next call; one that did not answer is left out for a minute then. Raises ServerError when no server
    can be asked.
    """
    judged: list[Judged] = []
    fault: ServerError | None = None
    told = told or Told()
    ready = told.ready(servers)
    for server in ready or servers:
        try:
            found = await _judge(server, workflow, targets, told)
        except ServerError as error:
            fault = error
            told.is_away(server)
            continue
        if found.verdict.accepted is not False and not found.partial:
            return found
        judged.append(found)
    if not judged:
        assert fault is not None  # there is at least one server
        raise fault
    best, *others = sorted(judged, key=_rank)
    return replace(best, complete=fault is None and len(ready) == len(servers), others=tuple(others))


def _rank(found: Judged) -> tuple[bool, bool, int]:
    """The smaller the better."""
    return found.verdict.accepted is False, found.partial, len(found.verdict.faults)


def judge_by(info: NodeInfo, workflow: Workflow, *, targets: Collection[str] | None = None) -> Judged:
    """The verdict by a saved `/object_info` alone."""
    found = check(workflow.nodes, info.classes, packs=workflow.packs, targets=targets)
    return Judged(found, info.source)


async def _judge(server: Server, workflow: Workflow, targets: Collection[str] | None, told: Told) -> Judged:
    at, info = await told.info(server)
    options: dict[str, Any] = {"packs": workflow.packs, "targets": targets}
    found = check(workflow.nodes, info.classes, **options)
    old = info.cached or time.monotonic() - at > JUST
    if old and (found.faults or (info.cached and found.undecided)):
        _, info = await told.info(server, doubt=info)
        found = check(workflow.nodes, info.classes, **options)
    asked = await _asked(server, found, server.brings(workflow))
    return Judged(check(workflow.nodes, info.classes, **options, **asked) if asked else found, info.source)


async def _asked(server: Server, found: Verdict, brought: Collection[str]) -> dict[str, Any]:
    """What the server tells of what the classes alone do not decide."""
    asked: dict[str, Any] = {}
    kinds = {*(fault.kind for fault in found.faults), *(one.kind for one in found.undecided)}
    if FaultKind.MISSING_NODE_TYPE in kinds:
        with suppress(BadAnswer):  # a server that is too old to replace anything
            asked["replacements"] = await server.node_replacements()
    files = {one.value for one in found.undecided if one.rule is Rule.FILE and isinstance(one.value, str)}
    there = {name: await _has(server, name) for name in sorted(files - set(brought))}
    if there or brought:
        asked["uploads"] = {*brought, *(name for name in there if there[name])}
        asked["absent"] = {name for name in there if not there[name]}
    return asked


async def _has(server: Server, annotated: str) -> bool:
    """Whether it has a file as nodes name it: `folder/name.png [output]` (folder_paths.py, 0.27.0)."""
    match = _ANNOTATED.fullmatch(annotated)
    assert match is not None  # it takes anything
    folder, _, name = match["path"].rpartition("/")
    if not name:
        return False
    return await server.has_file(name, type=match["type"] or "input", subfolder=folder)


async def made(servers: Sequence[Asked], source: Source) -> Workflow:
    """The workflow of a source; one in UI format is converted with the classes of the first server that
    answers.

    Raises WorkflowInvalid, and ServerError when none can be asked.
    """
    if source.form is Form.API:
        return Workflow.made(source)
    return await first_answer(servers, partial(_converted, source))


async def _converted(source: Source, server: Asked) -> Workflow:
    """A kept answer is good for ComfyUI's own classes, as it is kept by version; packs change without one."""
    info = await node_info(server)
    if info.cached:
        with suppress(WorkflowInvalid):
            workflow = Workflow.made(source, object_info=info.classes)
            kinds = {node["class_type"] for node in workflow.nodes.values()}
            if all(kind in info.classes and ServedClass(kind, info.classes[kind]).own for kind in kinds):
                return workflow
        info = await node_info(server, fresh=True)
    return Workflow.made(source, object_info=info.classes)
