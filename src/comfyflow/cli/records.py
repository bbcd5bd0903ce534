"""Commands that read the record: runs, assets, events, show."""

# ruff: noqa: PLC0415 - what takes long to import is imported where it is needed

from __future__ import annotations

import time
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, TextIO

import typer

from .. import report, tables
from ..console import Call, attended, tell
from ..errors import StoreError, StoreUnavailable, UsageError
from ..exits import ExitCode
from ..models import JobState
from ..names import safe_name
from ..settings import moment, normalise_url, shared_folder, without_credentials
from .app import JobArgument, Reading, SharedOption, app, command, spread

if TYPE_CHECKING:
    from ..archive import Archive
    from ..queries import AssetFilter, AssetRow
    from ..verify import Checked

assets_app = typer.Typer(rich_markup_mode=None)
app.add_typer(assets_app, name="assets")

SinceOption = Annotated[
    str | None, typer.Option(metavar="2h|3d|DATE", help="Not older than this. [default: any age]")
]
UntilOption = Annotated[str | None, typer.Option(metavar="2h|3d|DATE", help="Older than this.")]
TextOption = Annotated[
    str | None, typer.Option(metavar="WORDS", help='Words of the prompt; also "two words", or, -without.')
]
BatchOption = Annotated[str | None, typer.Option(metavar="NAME", help="Of the batch of this name.")]
LimitOption = Annotated[int, typer.Option(min=1, metavar="N", help="At most so many, the newest.")]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Which files."""

    text: TextOption = None
    seed: Annotated[int | None, typer.Option(metavar="N", help="Made with this seed.")] = None
    model: Annotated[str | None, typer.Option(metavar="NAME", help="Made with this model.")] = None
    node: Annotated[str | None, typer.Option(metavar="NODE", help="Saved by this node, id or title.")] = None
    job: Annotated[str | None, typer.Option(metavar="ID", help="Of this job.")] = None
    sha256: Annotated[str | None, typer.Option(metavar="HEX", help="With these very bytes.")] = None
    batch: BatchOption = None
    since: SinceOption = None
    until: UntilOption = None

    def filter(self, limit: int | None) -> AssetFilter:
        """The same for the archive. Raises UsageError."""
        from ..archive import AssetFilter

        since, until = _moments(self.since, self.until)
        return AssetFilter(
            text=self.text,
            seed=self.seed,
            model=self.model,
            node=self.node,
            since=since,
            until=until,
            prompt_id=self.job,
            sha256=None if self.sha256 is None else self.sha256.lower(),
            limit=limit,
            batch=self.batch,
        )


@command(app)
def runs(
    *,
    state: Annotated[JobState | None, typer.Option(help="Only jobs that are in this state.")] = None,
    since: SinceOption = None,
    until: UntilOption = None,
    text: TextOption = None,
    digest: Annotated[
        str | None, typer.Option(metavar="HEX", help="Of this workflow: its digest or the beginning of it.")
    ] = None,
    server: Annotated[str | None, typer.Option(metavar="URL", help="Sent to this server.")] = None,
    batch: BatchOption = None,
    limit: LimitOption = 50,
    options: Reading,
) -> None:
    """List recorded jobs, newest first."""
    call = options.call()
    with call.guarded():
        from ..archive import RunFilter

        after, before = _moments(since, until)
        address = None if server is None else without_credentials(normalise_url(server, source="--server"))
        wanted = RunFilter(state, after, before, text, digest, address, limit, batch)
        found = attended(_read(options, lambda archive: archive.runs(wanted)))
        call.table(
            {"runs": [tables.run_document(run) for run in found]},
            tables.RUN_COLUMNS,
            [tables.run_cells(run) for run in found],
        )


@command(app)
def show(
    prompt_id: JobArgument,
    *,
    workflow: Annotated[
        bool, typer.Option("--workflow", help="Print the workflow as it was sent, to run it again.")
    ] = False,
    shared: SharedOption = None,
    options: Reading,
) -> None:
    """Tell all that is recorded of a job. The exit code is 5 when it is not recorded."""
    call = options.call()
    with call.guarded():
        root = shared_folder(options.environment(), shared)
        attended(_graph(call, options, prompt_id) if workflow else _show(call, options, prompt_id, root))


@command(app)
def events(prompt_id: JobArgument, *, options: Reading) -> None:
    """Print the log of a job, in order. The exit code is 5 when it is not recorded."""
    call = options.call()
    with call.guarded():
        found = attended(_read(options, lambda archive: archive.events(prompt_id)))
        if not found and attended(_read(options, lambda archive: archive.run(prompt_id))) is None:
            _unknown(prompt_id)
        document = {"prompt_id": prompt_id, "events": [tables.event_document(event) for event in found]}
        call.table(document, tables.EVENT_COLUMNS, [tables.event_cells(event) for event in found])


def assets(
    context: typer.Context,
    *,
    limit: LimitOption = 50,
    sheet: Annotated[
        Path | None, typer.Option(metavar="FILE.png", help="Draw thumbnails of them onto one picture.")
    ] = None,
    shared: SharedOption = None,
    wanted: Wanted,
    options: Reading,
) -> None:
    """List recorded files, newest first; or check them, or export them."""
    if context.invoked_subcommand is not None:
        return
    call = options.call()
    with call.guarded():
        root = shared_folder(options.environment(), shared)
        chosen = wanted.filter(limit)
        found = attended(_read(options, lambda archive: archive.assets(chosen)))
        placed = [(asset, _place(asset, root)) for asset in found]
        document = {"assets": [tables.asset_document(*both) for both in placed]}
        if sheet is None:
            call.table(document, tables.ASSET_COLUMNS, [tables.asset_cells(*both) for both in placed])
        else:
            drawn = _drawn(placed, sheet)
            call.answer({**document, "sheet": str(drawn)}, [str(drawn)])


assets_app.callback(invoke_without_command=True)(spread(assets))


@command(assets_app)
def verify(*, shared: SharedOption = None, options: Reading) -> None:
    """Compare the files on disk with the record: missing, changed, orphaned.

    Orphans (files that no row names) are looked for in the shared folder only. The exit code is 1 when a file
    is missing or changed.
    """
    call = options.call()
    with call.guarded():
        root = shared_folder(options.environment(), shared)
        counts = attended(_verify(call, options, root))
        raise SystemExit(ExitCode.FAILED if counts["missing"] or counts["changed"] else ExitCode.OK)


@command(assets_app)
def export(
    *,
    form: Annotated[str, typer.Option("--format", metavar="csv|jsonl", help="How to write them.")] = "csv",
    output: Annotated[
        str, typer.Option("--output", "-o", metavar="FILE", help="Where to; - is standard output.")
    ] = "-",
    files: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Write the files that are kept in the database into this folder."),
    ] = None,
    wanted: Wanted,
    options: Reading,
) -> None:
    """Write the record of files as CSV or JSON Lines, or the files themselves (--files)."""
    call = options.call()
    with call.guarded():
        if form not in ("csv", "jsonl"):
            raise UsageError(f"--format: {form!r} is neither csv nor jsonl")
        if call.as_json and output == "-" and files is None:
            raise UsageError(
                "--json needs --output FILE or --files DIR: standard output is taken by the export"
            )
        chosen = wanted.filter(None)
        if files is not None:
            attended(_restore(call, options, chosen, files))
        else:
            attended(_export(call, options, chosen, form, output))


# the work


@asynccontextmanager
async def archived(options: Reading) -> AsyncIterator[Archive]:
    """The record, to be read. Raises StoreError."""
    from ..archive import Archive
    from ..recording import reading

    async with reading(options.environment(), options.database) as store:
        yield Archive(store.connections)


async def _read(options: Reading, question: Any) -> Any:
    """One question to the record."""
    async with archived(options) as archive:
        return await question(archive)


async def _show(call: Call, options: Reading, prompt_id: str, root: Path | None) -> None:
    async with archived(options) as archive:
        run = await archive.run(prompt_id)
        if run is None:
            _unknown(prompt_id)
        from ..archive import AssetFilter

        found = await archive.assets(AssetFilter(prompt_id=prompt_id, limit=None))
        log, graph = await archive.events(prompt_id), await archive.graph(prompt_id)
    placed = [(asset, _place(asset, root)) for asset in found]
    document = {
        **tables.run_document(run),
        "assets": [tables.asset_document(*both) for both in placed],
        "events": [tables.event_document(event) for event in log],
        "workflow": graph,
    }
    call.answer(document, tables.run_lines(run, placed, log))


async def _graph(call: Call, options: Reading, prompt_id: str) -> None:
    async with archived(options) as archive:
        graph = await archive.graph(prompt_id)
        if graph is None and await archive.run(prompt_id) is None:
            _unknown(prompt_id)
    if graph is None:
        raise StoreError(f"the workflow of job {prompt_id} is not recorded: somebody else sent it")
    call.emit([report.dump(graph)])


def _unknown(prompt_id: str) -> NoReturn:
    from ..errors import JobLost
    from ..models import JobView

    raise JobLost(f"job {prompt_id} is not in the record", view=JobView(prompt_id, JobState.LOST))


async def _verify(call: Call, options: Reading, root: Path | None) -> Counter[str]:
    """Lines come as they are found; a document has to wait for the end."""
    counts: Counter[str] = Counter()
    told: list[dict[str, Any]] = []
    async with archived(options) as archive, aclosing(_generated(archive, root)) as checks:
        async for checked in checks:
            counts[checked.verdict.value] += 1
            if checked.verdict == "ok":
                continue
            if call.as_json:
                told.append(_checked_document(checked))
            else:
                call.emit([_checked_line(checked)])
    document = {name: counts[name] for name in ("ok", "missing", "changed", "orphaned", "unverifiable")}
    said = ", ".join(f"{count} {name}" for name, count in document.items())
    call.answer({**document, "files": told}, [said])
    return counts


async def _generated(archive: Archive, root: Path | None) -> AsyncGenerator[Checked]:
    async for checked in archive.verify(root):
        yield checked


def _checked_document(checked: Checked) -> dict[str, Any]:
    asset = checked.asset
    return {
        "verdict": checked.verdict.value,
        "path": None if checked.path is None else str(checked.path),
        "output_path": None if asset is None else asset.output_path,
        "prompt_id": None if asset is None else asset.prompt_id,
        "reason": checked.reason,
    }


def _checked_line(checked: Checked) -> str:
    named = checked.path or (_named(checked.asset) if checked.asset else "?")
    reason = f" ({checked.reason})" if checked.reason else ""
    return report.printable(f"{checked.verdict.value}: {named}{reason}")


def _named(asset: AssetRow) -> str:
    """How people find the row."""
    return asset.output_path or f"row {asset.id}"


async def _export(call: Call, options: Reading, wanted: AssetFilter, form: str, output: str) -> None:
    from ..export import write_csv, write_jsonl

    write = write_csv if form == "csv" else write_jsonl
    async with archived(options) as archive:
        if output == "-":
            with call.stream() as stream:
                await write(archive.every_asset(wanted), stream)
            return
        with _opened(Path(output)) as file:
            count = await write(archive.every_asset(wanted), file)
    call.answer({"assets": count, "file": output}, [output])


@contextmanager
def _opened(path: Path) -> Iterator[TextIO]:
    """A new file; after an error what has been written of it stays, to be seen."""
    try:
        with path.open("w", encoding="utf-8", newline="") as file:
            yield file
    except OSError as error:
        raise UsageError(f"--output: {path} cannot be written: {error.strerror}") from error


async def _restore(call: Call, options: Reading, wanted: AssetFilter, folder: Path) -> None:
    """Every file that can be had; what cannot is told, and makes the exit code 8."""
    from ..archive import Archive
    from ..contents import restore
    from ..recording import reading

    written: list[dict[str, Any]] = []
    failed: list[str] = []
    async with reading(options.environment(), options.database) as store:
        async for asset in Archive(store.connections).every_asset(wanted):
            try:
                target = _target(folder, asset)
                path = await restore(store.connections, _content(asset), target)
                written.append({**_identity(asset), "path": str(path)})
            except StoreUnavailable:
                raise
            except StoreError as error:
                failed.append(f"{_named(asset)}: {error}")
    tell(f"comfyflow: {report.printable(line)}" for line in failed)
    restored = [file["path"] for file in written]
    call.answer({"files": restored, "written": written, "failed": failed}, restored)
    raise SystemExit(ExitCode.DATABASE if failed else ExitCode.OK)


def _identity(asset: AssetRow) -> dict[str, Any]:
    """Two files may have one recorded path, and are numbered then; this tells which is which."""
    number = asset.id if isinstance(asset.id, int) else str(asset.id)
    return {"id": number, "prompt_id": asset.prompt_id, "output_path": asset.output_path}


def _content(asset: AssetRow) -> str:
    if asset.sha256 is None:
        raise StoreError("its row has no sha256, so its content is not known")
    return asset.sha256


def _target(folder: Path, asset: AssetRow) -> Path:
    """Where a file goes: its recorded path below the folder, and nowhere else, whatever the row says. Raises
    StoreError when it says nothing."""
    if not asset.output_path:
        raise StoreError("its row names no file")
    if asset.is_url or asset.output_path.startswith("/"):
        return folder / safe_name(PurePosixPath(asset.output_path).name)
    parts = PurePosixPath(asset.output_path).parts or ("",)  # "." has none
    return folder.joinpath(*(safe_name(part) for part in parts))


def _place(asset: AssetRow, root: Path | None) -> Path | str:
    return asset.output_path if asset.is_url else asset.find(root)


def _drawn(placed: list[tuple[AssetRow, Path | str]], sheet: Path) -> Path:
    from ..sheet import contact_sheet

    if not placed:
        raise UsageError("--sheet: no file fits, so there is nothing to draw")
    contact_sheet([(Path(path), tables.caption(asset)) for asset, path in placed], sheet)
    return sheet


def _moments(since: str | None, until: str | None) -> tuple[float | None, float | None]:
    now = time.time()
    return (
        None if since is None else moment(since, now, source="--since"),
        None if until is None else moment(until, now, source="--until"),
    )
