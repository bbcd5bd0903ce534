"""The command that runs many jobs: batch."""

# ruff: noqa: PLC0415 - what takes long to import is imported where it is needed

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing, nullcontext
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import partial
from itertools import chain, islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO

import typer

from .. import batch as rows_of
from .. import report
from ..batch import Row
from ..console import Call, Interrupted, attended, tell
from ..errors import ComfyflowError, UsageError, WorkflowInvalid
from ..exits import ExitCode
from ..figures import counted
from ..models import Ambiguous
from ..overview import Overview, overview_on
from ..settings import Settings
from ..several import aside
from ..sources import Form, find
from ..workflow import Workflow
from .app import Following, KeepOption, Pooling, SharedOption, app, command, connected, found
from .prepared import Change, Changing, Checking, Places, base_of, classes_of, info_now, with_given
from .recorded import answer, check_folder, recorded

if TYPE_CHECKING:
    from ..client import ComfyClient
    from ..many import Batch, Policy, RowResult
    from ..nodeinfo import NodeInfo
    from ..pool import ServerPool
    from ..runner import Runner
    from ..store import Store

STDIN = "-"
FORGETFUL = (
    "comfyflow: --database none records nothing: running this again repeats what the server has forgotten"
)
READERS: dict[str, Callable[[Iterable[str], str, Path], Iterator[Row]]] = {
    ".csv": rows_of.csv_rows,
    ".jsonl": rows_of.jsonl_rows,
    ".ndjson": rows_of.jsonl_rows,
}
PER_SERVER = 8  # rows at a time
COUNTED = 200_000  # rows that are counted beforehand, for the time that is left; more are not waited for


class Order(StrEnum):
    """In which order rows are begun."""

    GIVEN = "given"
    RANDOM = "random"


RowsArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="[ROWS]",
        help="A file of JSON Lines or CSV, a folder of workflows, or - for standard input.",
    ),
]
WorkflowOption = Annotated[
    str | None, typer.Option("--workflow", metavar="FILE", help="The workflow whose inputs the rows change.")
]
MatrixOption = Annotated[
    list[str] | None,
    typer.Option(
        "--matrix",
        metavar="NODE.INPUT=VALUES",
        help="Instead of ROWS: every combination of seed=1..100, KSampler.cfg=6,7,8, 6.text=@prompts.txt.",
    ),
]
NameOption = Annotated[
    str | None,
    typer.Option(
        "--name",
        metavar="TEXT",
        help="Under one name each row runs once. [default: the name of ROWS, else of the workflow]",
    ),
]
ConcurrencyOption = Annotated[
    int | None,
    typer.Option("--concurrency", min=1, metavar="N", help="Rows at a time. [default: 8 for each server]"),
]
LimitOption = Annotated[
    int | None, typer.Option("--limit", min=0, metavar="N", help="Take only the first N rows.")
]
OrderOption = Annotated[
    Order, typer.Option("--order", help="As given, or random (drawn from 10,000 rows at a time).")
]
FailFastOption = Annotated[
    bool, typer.Option("--fail-fast", help="Begin no further row after the first that fails.")
]
MaxFailuresOption = Annotated[
    int | None,
    typer.Option("--max-failures", min=1, metavar="N", help="Begin no further row after N that have failed."),
]
RetryOption = Annotated[
    int,
    typer.Option(
        "--retry",
        min=0,
        metavar="N",
        help="Try a row again up to N times when the server or the database was away, the server forgot the "
        "job, or a file did not come whole.",
    ),
]
RetryFailedOption = Annotated[
    bool,
    typer.Option(
        "--retry-failed", help="Also when the job failed on the server, now or when the batch ran before."
    ),
]
OutputOption = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="Folder for files. [default: COMFYFLOW_OUTPUT, ./comfyflow-output]"),
]
AmbiguousOption = Annotated[
    Ambiguous,
    typer.Option(help="When nobody can tell whether the server has read a job: as for `run`."),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Trying:
    """How many rows at a time, and what becomes of failed ones."""

    concurrency: ConcurrencyOption = None
    fail_fast: FailFastOption = False
    max_failures: MaxFailuresOption = None
    retry: RetryOption = 2
    retry_failed: RetryFailedOption = False

    def policy(self, settings: Settings) -> Policy:
        """The same for `Batch`."""
        from ..many import Policy

        return Policy(
            concurrency=self.concurrency or PER_SERVER * len(settings.servers),
            retries=self.retry,
            retry_failed=self.retry_failed,
            max_failures=1 if self.fail_fast else self.max_failures,
            timeout=settings.timeouts.total,
        )


@command(app)
def batch(
    rows: RowsArgument = None,
    *,
    workflow: WorkflowOption = None,
    matrix: MatrixOption = None,
    name: NameOption = None,
    limit: LimitOption = None,
    order: OrderOption = Order.GIVEN,
    output: OutputOption = None,
    shared: SharedOption = None,
    keep_content: KeepOption = False,
    ambiguous: AmbiguousOption = Ambiguous.WAIT,
    changing: Changing,
    checking: Checking,
    trying: Trying,
    pooling: Pooling,
    options: Following,
) -> None:
    """Run a workflow once for each row, and save the files.

    Run the same command again, after a crash too, and only what is not done runs. Paths are printed as rows
    end; with --json a line for each row, and one with the summary. The exit code is that of the worst
    failure. Ctrl-C leaves sent jobs on the server: the next run finds them.
    """
    call = options.call(quiet=options.quiet)
    call.in_lines = True
    with call.guarded():
        settings = options.settings(output=output, shared=shared, keep_content=keep_content)
        info = classes_of(checking.object_info)
        change, ranges = _change(changing, rows)
        load = partial(_base, call, change, info, options)
        sides = [*(matrix or ()), *ranges]
        source = _Source.of(rows, sides, workflow, load, order=order, limit=limit)
        source.check(changing)
        source = source.with_classes(info, options)
        given = source.open()
        policy = trying.policy(settings)
        check_folder(settings.output)
        known = call, settings, options, policy, source, name or source.name, ambiguous, pooling, checking
        road = _Road(*known, info, changing.allow_private)
        attended(road.run(given))


def _change(changing: Changing, rows: str | None) -> tuple[Change, list[str]]:
    """What is changed in the workflow of all rows, and ranges, which make rows. Raises UsageError."""
    change = Change.of(changing)
    values, ranges = rows_of.ranges_apart(change.assignments)
    if rows is not None and ranges:
        raise UsageError(f"--set: {ranges[0]} makes rows of its own, like --matrix: leave ROWS out")
    return replace(change, assignments=values), ranges


def _base(
    call: Call, change: Change, info: NodeInfo | None, options: Following, file: str
) -> tuple[Workflow, Places]:
    return base_of(call, found(file), change, info, options)


# rows


@dataclass(frozen=True, slots=True)
class _Source:
    """Where the rows come from."""

    rows: str | None
    matrix: Sequence[str]
    base: Workflow | None
    order: Order
    limit: int | None
    base_name: str
    given: Places = field(default_factory=dict)  # what --set says, where it may name a file or a URL
    classes: Mapping[str, Any] | None = None  # for files of rows in UI format

    @classmethod
    def of(
        cls,
        rows: str | None,
        matrix: Sequence[str],
        workflow: str | None,
        load: Callable[[str], tuple[Workflow, Places]],
        **which: Any,
    ) -> _Source:
        """Read the workflow, if there is one. Raises UsageError, WorkflowInvalid, ServerError."""
        if (rows is None) is not bool(matrix):
            both = "ROWS and --matrix exclude each other" if matrix else "there are no rows"
            raise UsageError(f"{both}: give a file, a folder or -, or else --matrix")
        folder = rows is not None and rows != STDIN and Path(rows).is_dir()
        if folder and workflow is not None:
            raise UsageError(f"--workflow: {rows} is a folder of workflows, which has its own: leave it out")
        if not folder and workflow is None:
            raise UsageError("--workflow is missing: name the workflow whose inputs the rows change")
        if workflow == rows == STDIN:
            raise UsageError("both the workflow and the rows cannot come from standard input: name a file")
        base, given = (None, {}) if workflow is None else load(workflow)
        return cls(rows, matrix, base, base_name=Path(workflow or "").name, given=given, **which)

    def check(self, changing: Changing) -> None:
        """Raises UsageError for options that would change nothing."""
        if self.base is None and changing != Changing():
            raise UsageError(
                "--set, --preset, --only, --bypass and --mute change the workflow of --workflow: leave them "
                f"out, {self.rows} is a folder of workflows"
            )

    def with_classes(self, info: NodeInfo | None, options: Following) -> _Source:
        """Ask for the node classes where a file of a folder needs them. Raises ServerError."""
        folder = self.rows is not None and self.rows != STDIN and Path(self.rows).is_dir()
        if folder and info is None and any(map(_is_ui, rows_of.folder_rows(Path(str(self.rows))))):
            info = info_now(options)
        return replace(self, classes=info.classes) if info is not None else self

    @property
    def name(self) -> str:
        """What the batch is called unless it is given a name."""
        return self.base_name if self.rows in (None, STDIN) else Path(str(self.rows)).absolute().name

    def open(self) -> Iterator[Row | ComfyflowError]:
        """The rows, the first of them read and found to make a workflow. Raises UsageError,
        WorkflowInvalid."""
        from ..many import readable, shuffled

        rows = self._all()
        first = list(islice(rows, 1))
        for row in first:
            rows_of.workflow_of(row, self.base, self.classes)
        given = chain(first, readable(rows))
        return islice(shuffled(given) if self.order is Order.RANDOM else given, self.limit)

    def count(self) -> int | None:
        """How many rows there will be; None where that cannot be told beforehand."""
        most = COUNTED if self.limit is None else min(self.limit, COUNTED)
        try:
            number = None if self.rows == STDIN else sum(1 for _ in islice(self._all(), most))
        except ComfyflowError:
            return None  # told when it is that row's turn
        return None if number == COUNTED else number

    def _all(self) -> Iterator[Row]:
        if self.rows is None:
            return rows_of.matrix_rows(self.matrix, _lines)
        if self.rows == STDIN:
            return _table(_decoded(_stdin(), "standard input"), "standard input", Path())
        path = Path(self.rows)
        return rows_of.folder_rows(path) if path.is_dir() else _table(_lines(self.rows), path.name, path)


def _is_ui(row: Row) -> bool:
    """Whether a file has to be converted; one that cannot be read is told of when it is its turn."""
    try:
        return row.file is not None and find(row.file).form is Form.UI
    except WorkflowInvalid:
        return False


def _table(lines: Iterator[str], name: str, path: Path) -> Iterator[Row]:
    """JSON Lines or CSV, by the suffix of its path, else by how the text begins."""
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        blank = list(_first_lines(lines))
        reader = rows_of.jsonl_rows if blank and blank[-1].lstrip().startswith("{") else rows_of.csv_rows
        lines = chain(blank, lines)
    return reader(lines, name, path.parent)


def _first_lines(lines: Iterator[str]) -> Iterator[str]:
    """The lines up to the first that is not blank, and that."""
    for line in lines:
        yield line
        if line.strip():
            return


def _lines(path: str) -> Iterator[str]:
    try:
        with open(path, "rb") as file:
            yield from _decoded(file, path)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"{path} cannot be read: {reason}") from error


def _decoded(file: BinaryIO, name: str) -> Iterator[str]:
    """Line by line, so that a fault is told where it is; a byte order mark is fine."""
    number = 0
    try:
        with file:
            for number, line in enumerate(file, 1):
                yield line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{name}, line {number}: this is not UTF-8 text, and nothing after it is read: save it as UTF-8"
        ) from error
    except OSError as error:
        raise UsageError(f"{name} cannot be read after line {number}: {error.strerror}") from error


def _stdin() -> BinaryIO:
    if sys.stdin is None:  # closed by whoever called us (`<&-`)
        raise UsageError("there is nothing on standard input: name a file")
    try:
        # Not sys.stdin: Python takes the lock of that at its end, which a thread that still reads has.
        return open(sys.stdin.fileno(), "rb", closefd=False)
    except OSError:  # a stand-in for stdin has no descriptor
        return sys.stdin.buffer


# from the rows to what is printed


@dataclass(frozen=True, slots=True)
class _Road:
    """`batch`, from the settings to what is printed."""

    call: Call
    settings: Settings
    options: Following
    policy: Policy
    source: _Source
    name: str
    ambiguous: Ambiguous
    pooling: Pooling
    checking: Checking
    info: NodeInfo | None
    private: bool  # whether files are fetched from addresses inside of a network, too

    async def run(self, rows: Iterator[Row | ComfyflowError]) -> None:
        """Run the rows, tell of each as it ends, and of all at the end."""
        from ..many import Batch

        self.call.known |= {"batch": self.name, "server": self.settings.shown_url}
        async with recorded(self.call, self.options, required=True) as record, AsyncExitStack() as stack:
            if record.name == "none":
                tell([FORGETFUL])
            folder = stack.enter_context(TemporaryDirectory(prefix="comfyflow-"))
            runner = await self._runner(stack, record.store)
            await runner.client.ready()  # a wrong address is told at once, not row by row
            base, classes = await self._base(runner.client, Path(folder)), self.source.classes
            batch = Batch(runner, self.name, base, self.policy, object_info=classes)
            try:
                await self._work(batch, rows)
            except asyncio.CancelledError:
                left = counted(batch.tally.running, "job")
                text = f"stopped; up to {left} left on the server: run the same command again to go on"
                raise Interrupted(text) from None
            finally:
                self._sum_up(batch)
        answer(self.call, record, self.call.known, ())
        raise SystemExit(int(batch.tally.exit_code))

    async def _base(self, client: ComfyClient | ServerPool, folder: Path) -> Workflow | None:
        base, given = self.source.base, self.source.given
        if base is None:
            return None
        return await with_given(base, given, client, self.info, folder, private=self.private)

    async def _runner(self, stack: AsyncExitStack, store: Store) -> Runner:
        from ..runner import Runner

        settings, websocket = self.settings, not self.options.no_websocket
        client = connected(settings, websocket=websocket, ambiguous=self.ambiguous, pooling=self.pooling)
        opened: ComfyClient | ServerPool = await stack.enter_async_context(client)
        runner = Runner(
            opened,
            store,
            settings.output,
            shared=settings.shared,
            keep_content=settings.keep_content,
            check=self.checking.checker(opened, self.info),
            on_cached=self.checking.on_cached,
        )
        return await stack.enter_async_context(runner)

    async def _work(self, batch: Batch, rows: Iterator[Row | ComfyflowError]) -> None:
        total = self.source.count() if sys.stderr is not None and sys.stderr.isatty() else None
        given = aside(rows) if self.source.rows == STDIN else rows
        shown = overview_on(sys.stderr, batch.tally, total, servers=batch.servers, quiet=self.call.quiet)
        with shown as overview:
            async with aclosing(batch.run(given)) as results:
                async for one in results:
                    self._tell(one, overview)
                    overview.show()

    def _tell(self, one: RowResult, overview: Overview) -> None:
        if one.error is not None:
            overview.say(_failure_lines(one, verbose=self.call.verbose))
        lines = [str(file.path) for file in one.files]
        if self.call.as_json:
            lines = [report.dump(_document(one), in_line=True)]
        shares = sys.stdout is not None and sys.stdout.isatty()
        with overview.aside() if shares and lines else nullcontext():
            self.call.emit(lines)

    def _sum_up(self, batch: Batch) -> None:
        summary = batch.tally.document()
        self.call.known["summary"] = {**summary, "stopped": batch.stopped}
        if batch.stopped is not None:
            tell([f"comfyflow: stopped, {batch.stopped}; run the same command again to go on"])
        if not (self.call.quiet and batch.tally.exit_code is ExitCode.OK):
            tell([f"comfyflow: {report.printable(self.name)}: {_summary_line(summary)}"])


def _summary_line(summary: Mapping[str, Any]) -> str:
    failed = ", ".join(f"{count} {kind}" for kind, count in summary["failed"].items())
    resent = summary["sent_again"]
    again = f" ({resent} of them sent again, being lost)" if resent else ""
    words = [
        counted(summary["rows"], "row"),
        f"{summary['succeeded']} done{again}",
        f"{summary['done_before']} done before",
        f"{sum(summary['failed'].values())} failed{f' ({failed})' if failed else ''}",
        counted(summary["files"], "file"),
        f"{summary['seconds']:.1f} s",
    ]
    return ", ".join(words)


def _failure_lines(one: RowResult, *, verbose: bool) -> list[str]:
    assert one.error is not None
    first, *more = report.error_lines(one.error, one.workflow, verbose=verbose)
    if one.row is not None and one.row.place not in first:
        first = f"{one.row.place}: {first}"
    if one.again:
        first = f"{first} (when the batch ran before: --retry-failed sends it again)"
    return [
        report.printable(f"comfyflow: {first}"),
        *(line if line[:1] == " " else f"  {line}" for line in more),
    ]


def _document(one: RowResult) -> dict[str, Any]:
    row = one.row
    return {
        "row": None if row is None else row.number,
        "key": None if row is None else row.key,
        "place": None if row is None else row.place,
        "prompt_id": one.prompt_id,
        "state": None if one.state is None else one.state.value,
        "files": [report.file_document(file, one.workflow) for file in one.files],
        "error": None if one.error is None else report.error_document(one.error, one.workflow),
        "again": one.again,
    }
