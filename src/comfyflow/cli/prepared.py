"""From FILE to the workflow that is sent: recognised, converted, changed, checked."""

# ruff: noqa: PLC0415 - what takes long to import is imported where it is needed

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .. import report
from ..console import Call, attended, tell
from ..errors import UsageError, WorkflowInvalid
from ..models import OnCached
from ..sources import Form, Source
from ..upstream import is_link
from ..workflow import Workflow, random_seed
from .app import Asking, connected, found

if TYPE_CHECKING:
    from ..checking import Checker
    from ..client import ComfyClient
    from ..nodeinfo import NodeInfo
    from ..pool import ServerPool

RANDOM = "%random"
Places = dict[tuple[str, str], str]  # by node id and input: what was given

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
        "--set",
        metavar="NODE.INPUT=VALUE",
        help="Change an input; NODE is an id, a title or a class name. VALUE may be @FILE (its text), "
        "%random (a seed), and for images and the like a file or a URL, which is uploaded.",
    ),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Checking:
    """A command that converts and checks what it sends."""

    no_check: Annotated[
        bool, typer.Option("--no-check", help="Send without looking for faults beforehand.")
    ] = False
    object_info: ObjectInfoOption = None
    on_cached: Annotated[
        OnCached,
        typer.Option(
            help="When ComfyUI answers from its cache of an earlier job: accept its files, force new ones, "
            "or take it for an error."
        ),
    ] = OnCached.ACCEPT

    def checker(
        self, client: ComfyClient | ServerPool, info: NodeInfo | None, *, allow_partial: bool = False
    ) -> Checker | None:
        """What a runner asks before it sends; None with --no-check."""
        if self.no_check:
            return None
        from ..checking import Checker

        return Checker(client, allow_partial=allow_partial, info=info)


@dataclass(frozen=True, slots=True, kw_only=True)
class Changing:
    """A command that changes a workflow before it uses it."""

    assignments: SetOption = None
    preset: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Use the values that were kept under this name.")
    ] = None
    save_preset: Annotated[
        str | None, typer.Option(metavar="NAME", help="Keep the values of --set under this name.")
    ] = None
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="NODE", help="Run this output node, and what it needs, alone."),
    ] = None
    bypass: Annotated[
        list[str] | None,
        typer.Option(metavar="NODE", help="Leave this node out; what it gets goes straight on."),
    ] = None
    mute: Annotated[
        list[str] | None,
        typer.Option(metavar="NODE", help="Leave this node out, and the links to it."),
    ] = None
    allow_private: Annotated[
        bool,
        typer.Option("--allow-private", help="Fetch files from addresses inside of a network, too."),
    ] = False

    def values(self) -> list[str]:
        """All assignments, those of presets first. Raises UsageError."""
        from .. import presets

        return [*(one for name in self.preset or () for one in presets.load(name)), *(self.assignments or ())]

    def keep(self, workflow: Workflow) -> None:
        """Save the preset, if one is wanted. Raises UsageError."""
        if self.save_preset is not None:
            from .. import presets

            presets.save(self.save_preset, self.values(), workflow.digest)


@dataclass(frozen=True, slots=True)
class Change:
    """What is done to a workflow before it is sent."""

    options: Changing
    seed: int | None = None
    assignments: Sequence[str] = ()

    @classmethod
    def of(cls, options: Changing, seed: int | None = None) -> Change:
        """Read the presets. Raises UsageError."""
        return cls(options, seed, options.values())

    def set(self, workflow: Workflow) -> tuple[Workflow, Places]:
        """With all values; also tells what was given for which input. Raises UsageError."""
        return patched(workflow, self.assignments, self.seed)

    def cut(self, workflow: Workflow, object_info: Mapping[str, Any] | None) -> Workflow:
        """With --bypass, --mute and --only. Raises UsageError."""
        options, option = self.options, "--bypass"
        try:
            if options.bypass:
                workflow = workflow.bypass(*options.bypass, object_info=object_info or {})
            option = "--mute"
            workflow = workflow.mute(*options.mute) if options.mute else workflow
            option = "--only"
            return workflow.only(*options.only) if options.only else workflow
        except WorkflowInvalid as error:
            raise UsageError(f"{option}: {error.reason}") from error


@dataclass(frozen=True, slots=True)
class Prepared:
    """FILE, and what is to be done to it before it is sent.

    `early` is the workflow where no server is needed to make it, so that faults of FILE and of options are
    told before anything is asked.
    """

    call: Call
    source: Source
    change: Change
    checking: Checking
    info: NodeInfo | None
    early: Workflow | None
    given: Places = field(default_factory=dict)

    @classmethod
    def of(cls, call: Call, file: str, change: Change, checking: Checking) -> Prepared:
        """Read FILE. Raises UsageError, WorkflowInvalid."""
        source = found(file)
        info = classes_of(checking.object_info)
        early: Workflow | None = None
        check_form(source)
        given: Places = {}
        if source.form is Form.API or info is not None:
            classes = info.classes if info else None
            made = noted(call, Workflow.made(source, object_info=classes, links=False))
            early, given = change.set(made)
            change.options.keep(made)
            if info is not None or not change.options.bypass:
                change.cut(early, classes)
        call.workflow = early
        return cls(call, source, change, checking, info, early, given)

    @asynccontextmanager
    async def ready(self, client: ComfyClient | ServerPool) -> AsyncIterator[Workflow]:
        """The workflow as it is to be sent; files from the web are there as long as the context is.

        Raises WorkflowInvalid, UsageError, and ServerError when no server can be asked.
        """
        workflow, given = self.early, self.given
        if workflow is None:
            from ..checking import made

            plain = noted(self.call, await made(client.clients, self.source))
            self.change.options.keep(plain)
            workflow, given = self.change.set(plain)
        self.call.workflow = workflow
        from tempfile import TemporaryDirectory

        with TemporaryDirectory(prefix="comfyflow-") as folder:
            private, bypass = self.change.options.allow_private, self.change.options.bypass
            workflow = await with_given(workflow, given, client, self.info, Path(folder), private=private)
            workflow = self.change.cut(workflow, await _classes(client, self.info) if bypass else None)
            self.call.workflow = workflow
            yield workflow


def base_of(
    call: Call, source: Source, change: Change, info: NodeInfo | None, options: Asking
) -> tuple[Workflow, Places]:
    """The workflow that the rows of a batch change, without the files that were given for its inputs, and
    what was given. Raises UsageError, WorkflowInvalid, ServerError."""
    made = made_now(call, source, info, options, links=False)
    changed, given = change.set(made)
    for (node_id, name), text in given.items():
        if text == RANDOM and changed.nodes[node_id]["inputs"][name] != text:
            raise UsageError(
                "--set: a random value makes another job each time that the batch runs: give a range, like "
                f"{node_id}.{name}=1..100"
            )
    change.options.keep(made)
    if change.options.bypass and info is None:
        info = info_now(options)
    return change.cut(changed, info.classes if info else None), given


async def with_given(
    workflow: Workflow,
    given: Places,
    client: ComfyClient | ServerPool,
    info: NodeInfo | None,
    folder: Path,
    *,
    private: bool,
) -> Workflow:
    """The workflow with the files that were given for its inputs; those from the web are saved in `folder`.

    Raises UsageError, and ServerError when no server can be asked which inputs take files.
    """
    from ..given import candidates, with_files

    if not candidates(given):
        return workflow
    classes = await _classes(client, info)
    return await with_files(workflow, given, client, classes, folder, private=private)


async def _classes(client: ComfyClient | ServerPool, info: NodeInfo | None) -> Mapping[str, Any]:
    if info is not None:
        return info.classes
    from ..nodeinfo import first_info

    return (await first_info(client.clients)).classes


def check_form(source: Source) -> None:
    """Find what can be found before a server is asked. Raises WorkflowInvalid."""
    if source.form is Form.UI:
        try:
            source.check_form()
        except WorkflowInvalid as error:
            raise WorkflowInvalid(error.reason, path=source.name) from error


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


def made_now(
    call: Call, source: Source, info: NodeInfo | None, options: Asking, *, links: bool = True
) -> Workflow:
    """The workflow of a source; a server is asked where that must be. Its `links` need not be looked at where
    the verdict tells which of them matter. Raises WorkflowInvalid, ServerError."""
    check_form(source)
    if source.form is Form.API or info is not None:
        made = Workflow.made(source, object_info=info.classes if info else None, links=links)
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
    from ..nodeinfo import first_info

    async with connected(options.settings(), websocket=False) as client:
        return await first_info(client.clients)


def patched(
    workflow: Workflow, assignments: Iterable[str], seed: int | None = None
) -> tuple[Workflow, Places]:
    """The workflow with `--seed` and every `--set`, and what was given for which input. Raises UsageError."""
    option = "--seed"
    given: Places = {}
    try:
        changed = workflow if seed is None else workflow.seed(seed)
        option = "--set"
        for assignment in assignments:
            node_id, name, text = changed.assignment(assignment)
            changed = _assigned(changed, node_id, name, text)
            given[node_id, name] = text
    except WorkflowInvalid as error:
        raise UsageError(f"{option}: {error.reason}") from error.__cause__
    return changed, given


def _assigned(workflow: Workflow, node_id: str, name: str, text: str) -> Workflow:
    """`@FILE` is the text of a file, `@@` an @; `%random` is a seed where a number or a link stands.

    A text that stands in place of a link is not read as JSON when it comes from a file.
    """
    current = workflow.nodes[node_id]["inputs"][name]
    if text == RANDOM and (is_link(current) or isinstance(current, int)) and not isinstance(current, bool):
        return workflow.set_at(node_id, name, random_seed())
    if text.startswith("@@"):
        text = text[1:]
    elif text.startswith("@"):
        text = _file_text(text[1:])
        if is_link(current):
            return workflow.set_at(node_id, name, text)
    return workflow.set_text_at(node_id, name, text)


def _file_text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8-sig").removesuffix("\n")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise UsageError(f"--set: {path} cannot be read: {reason} (a leading @ is written @@)") from error
