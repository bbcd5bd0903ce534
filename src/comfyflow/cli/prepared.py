"""From FILE to the workflow that is sent: recognised, converted, changed, checked."""

# ruff: noqa: PLC0415 - what takes long to import is imported where it is needed

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .. import report
from ..console import Call, attended, tell
from ..errors import UsageError, WorkflowInvalid
from ..sources import Form, Source
from ..workflow import Workflow
from .app import Asking, connected, found

if TYPE_CHECKING:
    from ..checking import Checker
    from ..client import ComfyClient
    from ..nodeinfo import NodeInfo
    from ..pool import ServerPool

ObjectInfoOption = Annotated[
    Path | None,
    typer.Option(
        "--object-info",
        metavar="FILE",
        help="Take the node classes from this file, a saved answer of the server's /object_info.",
    ),
]

SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="NODE.INPUT=VALUE", help="Change an input; NODE is an id, a title or a class name."
    ),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Checking:
    """A command that converts and checks what it sends."""

    no_check: Annotated[
        bool, typer.Option("--no-check", help="Send without looking for faults beforehand.")
    ] = False
    object_info: ObjectInfoOption = None

    def checker(
        self, client: ComfyClient | ServerPool, info: NodeInfo | None, *, allow_partial: bool = False
    ) -> Checker | None:
        """What a runner asks before it sends; None with --no-check."""
        if self.no_check:
            return None
        from ..checking import Checker

        return Checker(client, allow_partial=allow_partial, info=info)


@dataclass(frozen=True, slots=True)
class Prepared:
    """FILE, and what is to be done to it before it is sent.

    `early` is the workflow where no server is needed to make it, so that faults of FILE and of options are
    told before anything is asked.
    """

    call: Call
    source: Source
    change: Callable[[Workflow], Workflow]
    checking: Checking
    info: NodeInfo | None
    early: Workflow | None

    @classmethod
    def of(
        cls,
        call: Call,
        file: str,
        change: Callable[[Workflow], Workflow],
        checking: Checking,
    ) -> Prepared:
        """Read FILE. Raises UsageError, WorkflowInvalid."""
        source = found(file)
        info = classes_of(checking.object_info)
        early = None
        if source.form is Form.API or info is not None:
            early = change(noted(call, Workflow.made(source, object_info=info.classes if info else None)))
        call.workflow = early
        return cls(call, source, change, checking, info, early)

    async def ready(self, client: ComfyClient | ServerPool) -> Workflow:
        """The workflow as it is to be sent. Raises WorkflowInvalid, ServerError."""
        workflow = self.early
        if workflow is None:
            from ..checking import made

            workflow = self.change(noted(self.call, await made(client.clients, self.source)))
        self.call.workflow = workflow
        return workflow


def classes_of(path: Path | None) -> NodeInfo | None:
    """The node classes of `--object-info`. Raises UsageError."""
    if path is None:
        return None
    from ..nodeinfo import from_file

    return from_file(path)


def noted(call: Call, workflow: Workflow) -> Workflow:
    """Say on stderr what was recognised, unless it is what it always is, and what a conversion left open."""
    name = report.printable(workflow.name or "the workflow")
    if not call.quiet and workflow.recognised != Form.API.described:
        tell([f"comfyflow: {name}: {workflow.recognised}"])
    tell(f"comfyflow: {name}: {report.printable(warning)}" for warning in workflow.warnings)
    return workflow


def made_now(call: Call, source: Source, info: NodeInfo | None, options: Asking) -> Workflow:
    """The workflow of a source; a server is asked where that must be. Raises WorkflowInvalid, ServerError."""
    if source.form is Form.API or info is not None:
        made = Workflow.made(source, object_info=info.classes if info else None)
    else:
        made = attended(_made(source, options))
    call.workflow = noted(call, made)
    return made


async def _made(source: Source, options: Asking) -> Workflow:
    from ..checking import made

    async with connected(options.settings(), websocket=False) as client:
        return await made(client.clients, source)


def info_now(options: Asking) -> NodeInfo:
    """The node classes of the first server that answers. Raises ServerError."""
    return attended(_info(options))


async def _info(options: Asking) -> NodeInfo:
    from ..nodeinfo import node_info

    async with connected(options.settings(), websocket=False) as client:
        return await node_info(client.clients[0], fresh=True)


def patched(workflow: Workflow, *, assignments: Iterable[str], seed: int | None = None) -> Workflow:
    """The workflow with `--seed` and every `--set`. Raises UsageError."""
    option = "--seed"
    try:
        changed = workflow if seed is None else workflow.seed(seed)
        option = "--set"
        for assignment in assignments:
            changed = changed.set_text(assignment)
    except WorkflowInvalid as error:
        raise UsageError(f"{option}: {error.reason}") from error.__cause__
    return changed
