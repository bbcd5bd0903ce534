"""Commands about the database itself: db upgrade, status, where, sql, flush, prune."""

# ruff: noqa: PLC0415 - what takes long to import is imported where it is needed

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .. import report, tables
from ..console import attended, tell
from ..dsn import Database, DatabaseKind
from ..errors import StoreError, UsageError
from ..exits import ExitCode
from ..figures import counted, size_text
from ..settings import age, shared_folder
from .app import Reading, SharedOption, Speaking, app, command
from .records import archived

if TYPE_CHECKING:
    from ..database import Connections
    from ..embedded import Embedded
    from ..journal import Journal
    from ..prune import Pruned

ROLES = "roles.sql"

db_app = typer.Typer(rich_markup_mode=None, no_args_is_help=True, help="Look after the database.")
app.add_typer(db_app, name="db")


@command(db_app)
def upgrade(*, options: Reading) -> None:
    """Make the tables, or bring them up to date."""
    call = options.call()
    with call.guarded():
        from ..migrations import scripts

        version = scripts()[-1].version
        applied = attended(_upgrade(options))
        lines = [f"applied: {name}" for name in applied] or [f"the tables are at version {version} already"]
        call.answer({"applied": list(applied), "version": version}, lines)


@command(db_app)
def status(*, options: Reading) -> None:
    """Tell which database is used and why, its version, tables and sizes, and what waits in the journal.

    Nothing is changed, but that a PostgreSQL of our own is started and brought up to date. The exit code
    is 8 when jobs cannot be recorded in it as it is.
    """
    call = options.call()
    with call.guarded():
        document, faults = attended(_status(options))
        call.answer(document, map(report.printable, _status_lines(document)))
        for fault in faults:
            why, *causes = report.error_lines(fault, verbose=call.verbose)
            tell([f"comfyflow: {why}", *causes])
        raise SystemExit(ExitCode.DATABASE if faults else ExitCode.OK)


@command(db_app)
def where(*, options: Reading) -> None:
    """Tell which database would be used, and by which rule, without connecting to it."""
    call = options.call()
    with call.guarded():
        from ..embedded import Embedded
        from ..journal import Journal

        database = _database_of(options)
        call.known.update(_chosen(database), data=None, journal=str(Journal().folder))
        place = database.shown
        if database.kind is DatabaseKind.EMBEDDED:
            call.known["data"] = str(Embedded().home)
            place = f"{place}, in {call.known['data']}"
        call.answer(call.known, [report.printable(f"{place} ({database.rule})")])


@command(db_app)
def sql(
    *,
    file: Annotated[str | None, typer.Option("--file", metavar="NAME", help="This file alone.")] = None,
    roles: Annotated[
        bool, typer.Option("--roles", help="The roles for reading and writing instead of the tables.")
    ] = False,
    listed: Annotated[bool, typer.Option("--list", help="Only the names of the files.")] = False,
    options: Speaking,
) -> None:
    """Print the SQL that makes the tables, to be read or run by hand: comfyflow db sql | psql."""
    call = options.call()
    with call.guarded():
        if (file is not None) + roles + listed > 1:
            raise UsageError("--file, --roles and --list exclude each other: give one of them")
        files = _sql_files(listed, ROLES if roles else file)
        if listed:
            call.answer({"files": [name for name, _ in files]}, [name for name, _ in files])
        else:
            document = {"files": [{"name": name, "text": text} for name, text in files]}
            call.answer(document, [text.removesuffix("\n") for _, text in files])


@command(db_app)
def flush(
    *,
    everything: Annotated[
        bool, typer.Option("--all", help="Also what was meant for other databases.")
    ] = False,
    options: Reading,
) -> None:
    """Write what waits in the journal into the database.

    The exit code is 8 when something had to be set aside, because no database can take it.
    """
    call = options.call()
    with call.guarded():
        from ..journal import Journal

        journal = Journal()
        before = _aside(journal)
        written = attended(_flush(options, journal, everything))
        refused, waiting = sorted(_aside(journal) - before), dict(journal.summary().targets)
        document = {"written": written, "waiting": waiting, "set_aside": list(map(str, refused))}
        call.answer(document, map(report.printable, _flush_lines(written, waiting)))
        tell(
            f"comfyflow: set aside, since no database can take it (its first line says why):"
            f" {report.printable(path)}"
            for path in refused
        )
        raise SystemExit(ExitCode.DATABASE if refused else ExitCode.OK)


@command(db_app)
def prune(
    *,
    older_than: Annotated[
        str, typer.Option(metavar="30d|12h|8w", help="What ended longer ago than this goes.")
    ],
    files: Annotated[
        bool, typer.Option("--files", help="Delete the files as well, in the shared folder only.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Change nothing, tell what would go.")] = False,
    shared: SharedOption = None,
    options: Reading,
) -> None:
    """Delete old jobs from the record. Jobs that have not ended stay."""
    call = options.call()
    with call.guarded():
        before = max(0.0, time.time() - age(older_than))  # PostgreSQL knows no moment before 4713 BC
        root = shared_folder(options.environment(), shared)
        if files and root is None:
            raise UsageError(
                "--files needs --shared DIR, or COMFYFLOW_SHARED: files are deleted only in there"
            )

        async def work() -> Pruned:
            async with archived(options) as archive:
                return await archive.prune(before, files=files, dry_run=dry_run, root=root)

        pruned = attended(work())
        call.answer({**asdict(pruned), "dry_run": dry_run}, tables.pruned_lines(pruned, dry_run=dry_run))


# the work


def _database_of(options: Reading) -> Database:
    from ..recording import chosen

    return chosen(options.environment(), options.database)


@asynccontextmanager
async def _connected(database: Database, server: Embedded | None = None) -> AsyncIterator[Connections]:
    """The database as it is: its tables need not be there, or not be those of this version."""
    from ..database import Connections
    from ..recording import started

    async with AsyncExitStack() as stack:
        if database.kind is DatabaseKind.EMBEDDED:
            database = await started(stack, database, server)
        yield await stack.enter_async_context(await Connections.open(database))


async def _settle(connections: Connections) -> None:
    """A PostgreSQL of our own is brought up to date by itself; of others, StoreError says what is wrong."""
    from .. import migrations

    if connections.database.kind is DatabaseKind.EMBEDDED:
        await migrations.upgrade(connections)
    await migrations.check(connections)


async def _upgrade(options: Reading) -> tuple[str, ...]:
    from ..migrations import upgrade

    async with _connected(_database_of(options)) as connections:
        return await upgrade(connections)


async def _flush(options: Reading, journal: Journal, everything: bool) -> int:
    """How many records were written. A database that cannot be used is told even when nothing waits."""
    from ..postgres import PostgresStore

    async with _connected(_database_of(options)) as connections:
        await _settle(connections)
        # not by PostgresStore.open, which writes what waits without telling how much that was
        async with PostgresStore(connections, journal) as store:
            return await store.flush(everything=everything)


def _flush_lines(written: int, waiting: Mapping[str, int]) -> Iterator[str]:
    yield f"{counted(written, 'record')} written"
    for target, count in waiting.items():
        yield f"{counted(count, 'record')} for {target}: name that database, or write them here by --all"


def _aside(journal: Journal) -> set[Path]:
    return set(journal.folder.glob("*.aside"))


def _sql_files(everything: bool, wanted: str | None) -> list[tuple[str, str]]:
    """Name and text. Raises UsageError when there is no such file."""
    from .. import migrations

    numbered = [(file.name, file.text) for file in migrations.scripts()]
    every = [*numbered, (ROLES, migrations.roles())]
    if wanted is None:
        return every if everything else numbered
    found = [one for one in every if one[0] == wanted]
    if not found:
        raise UsageError(f"--file: there is no {wanted!r}; there are: {', '.join(name for name, _ in every)}")
    return found


# status


async def _status(options: Reading) -> tuple[dict[str, Any], list[StoreError]]:
    """All that can be told, and the faults that kept the rest from being told."""
    document: dict[str, Any] = dict.fromkeys(("database", "kind", "rule", "connected", "version", "direct"))
    document |= {"embedded": None, "schema": None, "tables": [], "journal": None}
    faults = []
    for look in (_look_at_database, _look_at_journal):
        try:
            await look(document, options)
        except StoreError as error:
            faults.append(error)
    return {**document, "error": report.error_document(faults[0]) if faults else None}, faults


async def _look_at_database(document: dict[str, Any], options: Reading) -> None:
    database = _database_of(options)
    document.update(_chosen(database))
    if database.kind is DatabaseKind.NONE:
        return
    document["connected"] = False
    if database.kind is DatabaseKind.EMBEDDED:
        await _look_at_our_own(document, database)
    else:
        async with _connected(database) as connections:
            await _look_at_tables(document, connections)


async def _look_at_our_own(document: dict[str, Any], database: Database) -> None:
    from anyio import to_thread

    from ..embedded import Embedded

    server = Embedded()
    home, binaries = await to_thread.run_sync(lambda: (server.home, server.binaries))
    document["embedded"] = {"data": str(home), "binaries": str(binaries), "was_running": None}
    async with _connected(database, server) as connections:
        document["embedded"]["was_running"] = server.attached
        await _look_at_tables(document, connections)


async def _look_at_tables(document: dict[str, Any], connections: Connections) -> None:
    from .. import migrations
    from ..archive import Archive

    try:
        if connections.database.kind is DatabaseKind.EMBEDDED:
            await migrations.upgrade(connections)
        schema = await migrations.status(connections)
    finally:
        if connections.server_version:
            version, direct = connections.server_version, connections.direct
            document.update(connected=True, version=version, direct=direct)
    document["schema"] = {**asdict(schema), "pending": list(schema.pending)}
    await migrations.check(connections)
    document["tables"] = [asdict(size) for size in await Archive(connections).sizes()]


async def _look_at_journal(document: dict[str, Any], _: Reading) -> None:
    from anyio import to_thread

    from ..journal import Journal

    journal = Journal()
    document["journal"] = {"folder": str(journal.folder)}
    summary = await to_thread.run_sync(journal.summary)
    document["journal"] |= {**asdict(summary), "oldest": tables.utc_time(summary.oldest)}


def _chosen(database: Database) -> dict[str, Any]:
    return {"database": database.shown, "kind": database.kind.value, "rule": database.rule}


# status, for people


def _status_lines(document: Mapping[str, Any]) -> Iterator[str]:
    yield f"database: {document['database'] or 'unknown'}"
    if document["rule"] is not None:
        yield f"chosen by: {document['rule']}"
    if document["embedded"] is not None:
        yield f"data: {document['embedded']['data']}"
        yield f"programs: {document['embedded']['binaries']}"
    if document["connected"] is not None:
        yield f"connected: {_connection(document)}"
    if document["schema"] is not None:
        yield f"tables: {_schema(document['schema'])}"
    for table in document["tables"]:
        yield f"table {table['table']}: {counted(table['rows'], 'row')}, {size_text(table['bytes'])}"
    yield from _journal_lines(document["journal"])


def _connection(document: Mapping[str, Any]) -> str:
    if not document["connected"]:
        return "no"
    way = "" if document["direct"] else " through a pooler"
    if document["embedded"] is not None:
        way = ", which was running" if document["embedded"]["was_running"] else ", started for this"
    return f"PostgreSQL {document['version']}{way}"


def _schema(schema: Mapping[str, Any]) -> str:
    version, pending = schema["version"], ", ".join(schema["pending"])
    found = "none" if version is None else f"version {version}"
    if version is not None and version > schema["wanted"]:
        return f"{found}, and this comfyflow knows only version {schema['wanted']}"
    return found + (f", not applied yet: {pending}" if pending else "")


def _journal_lines(journal: Mapping[str, Any]) -> Iterator[str]:
    folder = journal["folder"]
    if "records" not in journal:
        yield f"journal: {folder}"
        return
    since = f" since {journal['oldest']}" if journal["oldest"] else ""
    waits = f"{counted(journal['records'], 'record')}{since}, {size_text(journal['bytes'])}"
    yield f"journal: {waits if journal['records'] else 'empty'}, in {folder}"
    for target, count in journal["targets"].items():
        yield f"journal for {target}: {counted(count, 'record')}"
    if journal["set_aside"]:
        yield f"set aside, since no database can take it: {counted(journal['set_aside'], 'file')} *.aside"
