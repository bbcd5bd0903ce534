"""Commands about workflow files: convert, validate, inputs."""

# ruff: noqa: PLC0415 - what takes long to import is imported where it is needed

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .. import report
from ..console import Call, attended, tell
from ..errors import ServerError, UsageError
from ..figures import counted
from ..workflow import Workflow
from .app import Asking, FileArgument, app, command, connected, found
from .prepared import ObjectInfoOption, SetOption, classes_of, info_now, made_now, patched

if TYPE_CHECKING:
    from ..checking import Judged
    from ..listing import Settable
    from ..nodeinfo import NodeInfo

OutOption = Annotated[
    Path | None, typer.Option("--output", "-o", metavar="OUT", help="Write to this file, not to stdout.")
]
OfflineOption = Annotated[
    bool, typer.Option("--offline", help="Look at the form of the file alone, and ask no server.")
]


SchemaOption = Annotated[
    bool, typer.Option("--schema", help="Print a JSON Schema (2020-12) of what can be set.")
]
SavePresetOption = Annotated[
    str | None,
    typer.Option("--save-preset", metavar="NAME", help="Keep the values of --set under this name."),
]


@command(app)
def convert(
    file: FileArgument,
    *,
    out: OutOption = None,
    object_info: ObjectInfoOption = None,
    options: Asking,
) -> None:
    """Write a workflow in API format, whatever FILE is.

    The UI format is converted with the node classes of a server, or of --object-info.
    """
    call = options.call(quiet=False)
    with call.guarded():
        workflow = made_now(call, found(file), classes_of(object_info), options)
        text = json.dumps(workflow.to_dict(), indent=2, ensure_ascii=False)
        if out is not None:
            _write(out, f"{text}\n")
        nodes = len(workflow.nodes)
        document = {
            "output": None if out is None else str(out),
            "recognised": workflow.recognised,
            "warnings": list(workflow.warnings),
            "nodes": nodes,
            "digest": workflow.digest,
            "workflow": workflow.to_dict(),
        }
        call.answer(document, [text] if out is None else [f"{out}: {counted(nodes, 'node')}"])


@command(app)
def validate(
    file: FileArgument,
    *,
    offline: OfflineOption = False,
    object_info: ObjectInfoOption = None,
    options: Asking,
) -> None:
    """Tell whether a server would run a workflow, and everything that is wrong with it.

    The exit code is 0 when it would, 3 when it would not, and 4 when it could not be asked.
    """
    call = options.call(quiet=False, valid=False)
    with call.guarded():
        if offline and (object_info or options.server):
            raise UsageError("--offline asks nobody: leave --server and --object-info out")
        info = classes_of(object_info)
        workflow = made_now(call, found(file), info, options, links=offline)
        call.known |= {
            "nodes": len(workflow.nodes),
            "digest": workflow.digest,
            "prompt_text": workflow.prompt_text,
        }
        said = f"{report.printable(file)}: a workflow of {counted(len(workflow.nodes), 'node')}"
        if offline:
            call.answer({**call.known, "valid": True}, [said])
            return
        judged = _judged(workflow, info, options)
        _tell(call, judged, workflow, said)


@command(app)
def inputs(
    file: FileArgument,
    *,
    schema: SchemaOption = False,
    offline: OfflineOption = False,
    object_info: ObjectInfoOption = None,
    assignments: SetOption = None,
    save_preset: SavePresetOption = None,
    options: Asking,
) -> None:
    """List what --set can change: the name to use, type, range and value of every input.

    Types and ranges are those of the server, or of --object-info; without either they are guessed from the
    values.
    """
    from ..listing import json_schema, settable

    call = options.call(quiet=False)
    with call.guarded():
        info = classes_of(object_info)
        workflow = made_now(call, found(file), info, options)
        digest = workflow.digest
        workflow, _ = patched(workflow, assignments or ())
        if save_preset is not None:
            from .. import presets

            presets.save(save_preset, assignments or (), digest)
        info = info if info is not None or offline else _info(options)
        listed = settable(workflow, info.classes if info else None)
        if schema:
            call.emit([report.dump(json_schema(listed, Path(file).name))])
            return
        rows = [_row(one) for one in listed]
        call.table({"inputs": [asdict(one) for one in listed]}, _COLUMNS, rows)


_COLUMNS = ("INPUT", "NODE", "TYPE", "RANGE", "VALUE")


def _row(one: Settable) -> tuple[str, ...]:
    from ..listing import range_text

    cells = one.target, one.title, one.type, range_text(one), _value(one.value)
    return tuple(report.printable(cell) for cell in cells)


def _value(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _info(options: Asking) -> NodeInfo | None:
    """The server's classes; without them the types are guessed."""
    try:
        return info_now(options)
    except ServerError as error:
        tell([f"comfyflow: types are guessed from values: {report.printable(error)}"])
        return None


def _tell(call: Call, judged: Judged, workflow: Workflow, said: str) -> None:
    verdict = judged.verdict
    call.known |= {
        "checked_by": judged.source,
        "partial": judged.partial,
        "outputs": {"run": verdict.runs, "left_out": verdict.dropped, "undecided": verdict.unsure},
        "faults": [report.finding_document(one) for one in verdict.faults],
        "undecided": [report.finding_document(one) for one in verdict.undecided],
    }
    tell(
        f"comfyflow: only the server can decide: {report.printable(one.message)}" for one in verdict.undecided
    )
    refusal = judged.refusal(workflow, allow_partial=True)
    if refusal is not None:
        raise refusal
    if judged.partial:
        tell(f"comfyflow: {line}" for line in _partial_lines(judged))
    part = "a part of it" if judged.partial else "it"
    call.answer({**call.known, "valid": True}, [f"{said}; {judged.source} would run {part}"])


def _partial_lines(judged: Judged) -> Iterator[str]:
    outputs = counted(len(judged.verdict.dropped), "output")
    yield f"{judged.source} would leave out {outputs} (`run` asks for --allow-partial then):"
    yield from (report.printable(fault.message) for fault in judged.verdict.faults)


def _judged(workflow: Workflow, info: NodeInfo | None, options: Asking) -> Judged:
    from ..checking import judge_by

    return attended(_judge(workflow, options)) if info is None else judge_by(info, workflow)


async def _judge(workflow: Workflow, options: Asking) -> Judged:
    from ..checking import judge

    async with connected(options.settings(), websocket=False) as client:
        try:
            return await judge(client.clients, workflow)
        except ServerError:
            workflow.with_sound_links()
            raise


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"--output: {path} cannot be written: {error.strerror or error}") from error
