"""Connections over real PostgreSQL servers: what is sent, what is repeated, and what each fault is called."""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import pytest
import trustme
from clusters import Cluster, connected, restricted, with_database, with_options, with_user
from wire import Relay, as_pooler

from comfyflow.database import ABSENCES, FAILURES, REFUSALS, Connections, translated
from comfyflow.dsn import Database, DatabaseKind
from comfyflow.errors import StoreError, StoreUnavailable

SECRET = "s3cr3t-Pa55"
SERVER = Database(DatabaseKind.SERVER, "DATABASE_URL", f"postgresql://me:{SECRET}@db:5432/jobs")
OWN = Database(DatabaseKind.EMBEDDED, "default", f"postgresql://me:{SECRET}@/jobs?host=/here/run", "/here")


async def refusal(dsn: str, sql: str = "SELECT 1", *, timeout: float = 10.0) -> StoreError:
    """What the statement fails with; `timeout` to connect, in seconds. No error shows the password."""
    async with await Connections.open(dsn, connect_timeout=timeout) as connections:
        with pytest.raises(StoreError) as caught:
            await connections.fetch(sql)
        assert SECRET not in repr(connections)
    return checked(caught.value)


def checked(error: StoreError) -> StoreError:
    told = "".join(traceback.format_exception(error)) + repr(error) + repr(error.__context__)
    assert SECRET not in told
    assert "\n" not in str(error)
    return error


@asynccontextmanager
async def listening(
    serve: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
) -> AsyncIterator[str]:
    """Something that is no PostgreSQL; a DSN that leads to it. It hangs up when `serve` returns."""
    tasks: set[asyncio.Task[None]] = set()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await serve(reader, writer)
        finally:
            writer.transport.abort()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.add(asyncio.create_task(answer(reader, writer)))

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    yield f"postgresql://me:{SECRET}@127.0.0.1:{port}/jobs"
    server.close()
    if tasks:
        await asyncio.wait(tasks)
    await asyncio.sleep(0)  # the loop tells the transports


# --- opening ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["mysql://h/d", "none", "embedded", ""])
async def test_what_names_no_server_is_refused_at_once(source: str) -> None:
    with pytest.raises(StoreError, match=r"postgresql://|Embedded"):
        await Connections.open(source)


async def test_a_server_that_is_away_does_not_matter_until_the_first_use(tmp_path: Path) -> None:
    dsn = f"postgresql://me:{SECRET}@/jobs?host={tmp_path}"
    async with await Connections.open(dsn) as connections:
        assert not connections.server_version
        with pytest.raises(StoreUnavailable, match="not running, or not at this address"):
            await connections.fetch("SELECT 1")


async def test_an_embedded_database_is_opened_by_the_dsn_that_it_got(database: str) -> None:
    async with await Connections.open(Database(DatabaseKind.EMBEDDED, "default", database)) as connections:
        assert [row[0] for row in await connections.fetch("SELECT 1")] == [1]
        with pytest.raises(StoreError, match=r"^the embedded database has not the tables"):
            await connections.fetch("SELECT * FROM nothing")


async def test_connections_that_were_closed_say_so(database: str) -> None:
    connections = await Connections.open(database)
    await connections.fetch("SELECT 1")
    await connections.close()
    await connections.close()
    with pytest.raises(StoreError, match="closed"):
        await connections.fetch("SELECT 1")


async def test_closing_before_the_first_use_is_nothing() -> None:
    await (await Connections.open(SERVER)).close()


async def test_closing_waits_for_work_that_ends_and_cuts_what_does_not(database: str) -> None:
    connections = await Connections.open(database, connect_timeout=0.3)
    short = asyncio.create_task(connections.fetch("SELECT pg_sleep(0.05)"))
    await under_way(database, "pg_sleep")
    await connections.close()
    assert len(await short) == 1
    connections = await Connections.open(database, connect_timeout=0.3)
    endless = asyncio.create_task(connections.fetch("SELECT pg_sleep(600)"))
    await under_way(database, "pg_sleep")
    await connections.close()
    with pytest.raises(StoreError, match="are closed: open them again"):
        await endless


async def under_way(dsn: str, text: str) -> None:
    """Until a statement with this text runs."""
    running = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE $1 AND state = 'active' AND pid <> $2"
    async with connected(dsn) as connection, asyncio.timeout(10):
        me = connection.get_server_pid()
        while not await connection.fetchval(running, f"%{text}%", me):
            pass


# --- what a connection is like ------------------------------------------------------------------------


async def test_a_server_gets_our_limits_and_our_name(database: str) -> None:
    async with await Connections.open(database, statement_timeout=90, lock_timeout=2.5) as connections:
        assert await settings(connections) == {
            "application_name": "comfyflow",
            "idle_in_transaction_session_timeout": "90000",
            "lock_timeout": "2500",
            "statement_timeout": "90000",
        }
        assert connections.direct
        assert connections.server_version[:2].isdigit()


async def test_the_limits_in_a_dsn_go_before_ours(database: str) -> None:
    given = {"statement_timeout": 1234, "application_name": "mine", "options": "-clock_timeout=77"}
    dsn = with_options(database, **given)
    async with await Connections.open(dsn, statement_timeout=0) as connections:
        assert await settings(connections) == {
            "application_name": "mine",
            "idle_in_transaction_session_timeout": "0",
            "lock_timeout": "77",
            "statement_timeout": "1234",
        }


async def settings(connections: Connections) -> dict[str, str]:
    names = "application_name", "idle_in_transaction_session_timeout", "lock_timeout", "statement_timeout"
    rows = await connections.fetch("SELECT name, setting FROM pg_settings WHERE name = ANY ($1)", names)
    return {row["name"]: row["setting"] for row in rows}


async def test_a_statement_that_is_known_costs_one_round_trip(database: str) -> None:
    async with Relay(database) as relay, await Connections.open(relay.dsn) as connections:
        await connections.fetch("SELECT $1::int", 1)
        before = relay.answers
        await connections.fetch("SELECT $1::int", 2)
        assert relay.answers - before == 1
        assert (connections.direct, relay.connected) == (True, 1)


async def test_behind_a_pooler_nothing_is_named_and_nothing_is_set(database: str) -> None:
    async with Relay(database, as_pooler) as relay, await Connections.open(relay.dsn) as connections:
        assert [row[0] for row in await connections.fetch("SELECT $1::int", 1)] == [1]
        assert not connections.direct
        assert (await settings(connections))["statement_timeout"] == "0"
        assert b"_timeout = " not in relay.sent
        assert b"__asyncpg_" not in relay.sent


async def test_as_many_connections_as_wanted_are_opened_at_first(database: str) -> None:
    async with Relay(database) as relay, await Connections.open(relay.dsn, min_size=3) as connections:
        await connections.fetch("SELECT 1")
        assert relay.connected == 3


async def test_work_that_is_cancelled_gives_its_connection_back(database: str) -> None:
    async with await Connections.open(database, max_size=1) as connections:
        task = asyncio.create_task(connections.fetch("SELECT pg_sleep(600)"))
        await under_way(database, "pg_sleep")
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await connections.execute("SELECT 1") == "SELECT 1"


@pytest.mark.parametrize("error", [FileNotFoundError(2, "a file"), ValueError("x"), StoreError("y")])
async def test_errors_of_the_work_itself_pass_through(database: str, error: Exception) -> None:
    async def work(connection: Any) -> None:
        await connection.execute("SELECT 1")
        raise error

    async with await Connections.open(database) as connections:
        with pytest.raises(type(error)) as caught:
            await connections.run(work)
    assert caught.value is error


# --- doing it again -----------------------------------------------------------------------------------


def failing(code: str, times: int) -> tuple[list[int], Callable[[Any], Awaitable[str]]]:
    """Work that PostgreSQL fails with `code`, that many times; and the process ids it was done by."""
    done: list[int] = []

    async def work(connection: Any) -> str:
        done.append(connection.get_server_pid())
        if len(done) <= times:
            await connection.execute(f"DO $$ BEGIN RAISE 'no' USING ERRCODE = '{code}'; END $$")
        return "done"

    return done, work


@pytest.mark.parametrize("code", ["40001", "40P01"])
async def test_what_was_rolled_back_is_done_again(database: str, code: str) -> None:
    done, work = failing(code, times=2)
    async with await Connections.open(database) as connections:
        assert await connections.run(work) == "done"
    assert len(done) == 3


async def test_it_is_not_done_again_for_ever(database: str) -> None:
    done, work = failing("40001", times=99)
    async with await Connections.open(database) as connections:
        with pytest.raises(StoreUnavailable, match="busy with others"):
            await connections.run(work)
    assert len(done) == 4


@pytest.mark.parametrize(("code", "repeat"), [("40001", False), ("23505", True)])
async def test_what_must_not_or_need_not_be_done_again_is_not(database: str, code: str, repeat: bool) -> None:
    done, work = failing(code, times=1)
    async with await Connections.open(database) as connections:
        with pytest.raises(StoreError):
            await connections.run(work, repeat=repeat)
    assert len(done) == 1


async def test_work_on_a_connection_that_was_killed_is_done_on_another(database: str) -> None:
    done: list[int] = []

    async def work(connection: Any) -> int:
        done.append(connection.get_server_pid())
        if len(done) == 1:
            await connection.execute("SELECT pg_terminate_backend(pg_backend_pid())")
        return int(await connection.fetchval("SELECT pg_backend_pid()"))

    async with await Connections.open(database) as connections:
        assert await connections.run(work) == done[1] != done[0]


async def test_statements_survive_a_change_of_the_table(database: str) -> None:
    async def work(connection: Any) -> list[Any]:
        async with connection.transaction():
            return list(await connection.fetch("SELECT * FROM shape"))

    async with await Connections.open(database, max_size=1) as connections:
        await connections.execute("CREATE TABLE shape (a int)")
        assert await connections.run(work) == []
        async with connected(database) as somebody:
            await somebody.execute("ALTER TABLE shape ADD b text; INSERT INTO shape VALUES (1, 'x')")
        assert [tuple(row) for row in await connections.run(work)] == [(1, "x")]


async def test_a_server_that_stops_is_away_and_used_again_when_it_is_back(cluster: Cluster) -> None:
    async def work(connection: Any) -> int:
        number = await connection.fetchval("SELECT 1")
        if not stopped:
            await asyncio.to_thread(cluster.stop)
            stopped.append(True)
        return int(number + await connection.fetchval("SELECT 1"))

    stopped: list[bool] = []
    async with await Connections.open(cluster.dsn) as connections:
        with pytest.raises(StoreUnavailable, match="is not running"):
            await connections.run(work)
        await asyncio.to_thread(cluster.start)
        assert await connections.run(work) == 2


async def test_a_lost_connection_is_unavailable_where_work_is_not_repeated(database: str) -> None:
    async def work(connection: Any) -> None:
        relay.cut()
        await connection.fetchval("SELECT 1")

    async with Relay(database) as relay, await Connections.open(relay.dsn) as connections:
        with pytest.raises(StoreUnavailable, match=r"connection to the database .* broke"):
            await connections.run(work, repeat=False)


async def test_those_who_wait_for_a_server_that_does_not_answer_wait_once() -> None:
    seen: list[asyncio.StreamWriter] = []

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(writer)
        await reader.read()

    async with listening(silent) as dsn, await Connections.open(dsn, connect_timeout=0.2) as connections:
        failures = await asyncio.gather(*(attempt(connections) for _ in range(5)))
        assert [type(failure) for failure in failures] == [StoreUnavailable] * 5
        assert len(seen) == 1
        await attempt(connections)
        assert len(seen) == 2


async def attempt(connections: Connections) -> StoreError:
    with pytest.raises(StoreError) as caught:
        await connections.fetch("SELECT 1")
    return caught.value


# --- what faults are called ---------------------------------------------------------------------------


async def test_a_wrong_password_and_an_unknown_user_are_refused(cluster: Cluster) -> None:
    for user in ("comfyflow", "nobody-such"):
        error = await refusal(with_user(cluster.dsn, user, SECRET))
        assert "refused the user name or the password: check the DSN" in str(error)
        assert not isinstance(error, StoreUnavailable)


async def test_an_unknown_database_is_named(database: str) -> None:
    error = await refusal(with_database(database, "no_such"))
    assert 'database "no_such" does not exist' in str(error)
    assert not isinstance(error, StoreUnavailable)


async def test_a_database_that_takes_no_connections_is_refused_with_what_its_owner_can_do(
    database: str, empty_database: str
) -> None:
    name = urlsplit(empty_database).path.removeprefix("/")
    async with connected(database) as somebody:
        await somebody.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS false')
        error = await refusal(empty_database)
        await somebody.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS true')
    assert type(error) is StoreError
    assert f'(database "{name}" is not currently accepting connections)' in str(error)
    assert "ALLOW_CONNECTIONS true where it takes no connections), or change the DSN" in str(error)


@pytest.mark.parametrize("setting", [{"no_such": "1"}, {"work_mem": "much"}])
async def test_a_setting_that_the_server_does_not_know_is_a_fault_of_the_dsn(
    database: str, setting: dict[str, str]
) -> None:
    error = await refusal(with_options(database, **setting))
    assert type(error) is StoreError
    assert "does not take a setting of the connection" in str(error)
    assert "check the options in the DSN" in str(error)


async def test_a_role_that_may_not_log_in_is_told_why(database: str) -> None:
    with restricted(database, "NOLOGIN", SECRET) as dsn:
        error = await refusal(dsn)
        assert "is not permitted to log in" in str(error)
        assert not isinstance(error, StoreUnavailable)


async def test_missing_rights_name_the_table(database: str) -> None:
    with restricted(database, password=SECRET) as dsn:
        error = await refusal(dsn, "SELECT * FROM workflow_runs")
        assert "permission denied for table workflow_runs" in str(error)
        assert "sql/roles.sql" in str(error)


async def test_too_many_connections_are_tried_again_and_then_unavailable(database: str) -> None:
    with restricted(database, "LOGIN CONNECTION LIMIT 1", SECRET) as dsn:
        async with connected(dsn):
            error = await refusal(dsn)
        assert isinstance(error, StoreUnavailable)
        assert "takes no more connections" in str(error)
        async with connected(dsn) as first, await Connections.open(dsn) as connections:
            waiting = asyncio.create_task(connections.fetch("SELECT 1"))
            await asyncio.sleep(0)
            await first.close()
            assert len(await waiting) == 1


async def test_a_port_where_nobody_listens_is_unavailable() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        error = await refusal(f"postgresql://me:{SECRET}@127.0.0.1:{free.getsockname()[1]}/jobs")
    assert isinstance(error, StoreUnavailable)
    assert "is not running, or not at this address" in str(error)


async def test_a_server_that_never_answers_is_unavailable() -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async with listening(silent) as dsn:
        error = await refusal(dsn, timeout=0.1)
    assert isinstance(error, StoreUnavailable)
    assert "did not answer in time" in str(error)


async def test_something_that_hangs_up_is_unavailable() -> None:
    async def rude(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Hang up at once."""

    async with listening(rude) as dsn:
        assert isinstance(await refusal(dsn), StoreUnavailable)


async def test_a_server_without_tls_is_unavailable_where_tls_is_asked_for() -> None:
    async def plain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(8)
        writer.write(b"N")
        await reader.read()

    async with listening(plain) as dsn:
        error = await refusal(f"{dsn}?sslmode=require")
    assert isinstance(error, StoreUnavailable)
    assert "no safe connection" in str(error)


async def test_a_certificate_of_somebody_else_is_not_trusted(tmp_path: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(context)
    trustme.CA().cert_pem.write_to_path(tmp_path / "other.pem")

    async def safe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(8)
        writer.write(b"S")
        with pytest.raises(OSError):
            await writer.start_tls(context)

    async with listening(safe) as dsn:
        error = await refusal(f"{dsn}?sslmode=verify-full&sslrootcert={tmp_path / 'other.pem'}")
    assert isinstance(error, StoreUnavailable)
    assert "no safe connection" in str(error)


async def test_a_certificate_file_that_is_missing_is_a_fault_of_the_dsn(tmp_path: Path) -> None:
    dsn = f"postgresql://me:{SECRET}@127.0.0.1:1/jobs?sslmode=verify-full&sslrootcert={tmp_path / 'none.pem'}"
    error = await refusal(dsn)
    assert "none.pem" in str(error) or "the DSN" in str(error)


async def test_a_server_that_is_too_old_is_refused_with_its_version(database: str) -> None:
    def older(data: bytes) -> bytes:
        place = data.find(b"server_version\0") + len(b"server_version\0")
        return data[:place] + b"12" + data[place + 2 :] if b"server_version\0" in data else data

    async with Relay(database, older) as relay:
        error = await refusal(relay.dsn)
    assert " is PostgreSQL 12." in str(error)
    assert "comfyflow needs 13 or newer" in str(error)


async def test_a_statement_that_takes_too_long_is_unavailable(database: str) -> None:
    async with await Connections.open(database, statement_timeout=0.05) as connections:
        with pytest.raises(StoreUnavailable, match="took longer than allowed"):
            await connections.fetch("SELECT pg_sleep(600)")
        assert await connections.execute("SELECT 1") == "SELECT 1"


async def test_behind_a_pooler_we_stop_waiting_ourselves(database: str) -> None:
    async with (
        Relay(database, as_pooler) as relay,
        await Connections.open(relay.dsn, statement_timeout=0.05, connect_timeout=0.5) as connections,
    ):
        with pytest.raises(StoreUnavailable, match="did not answer in time"):
            await connections.fetch("SELECT pg_sleep(600)")


async def test_a_lock_that_others_keep_is_unavailable(database: str) -> None:
    async with connected(database) as somebody, somebody.transaction():
        await somebody.execute("LOCK TABLE workflow_runs")
        async with await Connections.open(database, lock_timeout=0.05) as connections:
            with pytest.raises(StoreUnavailable, match="locked for too long"):
                await connections.fetch("SELECT * FROM workflow_runs")


async def test_missing_tables_name_the_command(empty_database: str) -> None:
    for sql in ("SELECT * FROM workflow_runs", "SELECT comfyflow_state_rank('x')"):
        error = await refusal(empty_database, sql)
        assert "run `comfyflow db upgrade`" in str(error)


async def test_a_row_that_breaks_a_rule_names_the_rule(database: str) -> None:
    error = await refusal(database, "INSERT INTO generated_assets (prompt_id, output_path) VALUES ('', 'x')")
    assert "generated_assets_prompt_id_check" in str(error)
    error = await refusal(database, "INSERT INTO generated_assets (prompt_id) VALUES ('a')")
    assert 'null value in column "output_path"' in str(error)
    assert not isinstance(error, StoreUnavailable)


async def test_a_read_only_server_is_unavailable(database: str) -> None:
    error = await refusal(
        with_options(database, default_transaction_read_only="on"),
        "INSERT INTO generated_assets (prompt_id, output_path) VALUES ('a', 'b')",
    )
    assert isinstance(error, StoreUnavailable)
    assert "standby or read-only" in str(error)


async def test_a_server_of_the_wrong_kind_is_unavailable(database: str) -> None:
    error = await refusal(with_options(database, target_session_attrs="standby"))
    assert isinstance(error, StoreUnavailable)
    assert "target_session_attrs" in str(error)


@pytest.mark.parametrize(
    ("code", "kind", "words"),
    [
        ("53100", StoreError, "no space left on its disk"),
        ("53200", StoreUnavailable, "has come to a limit (no)"),
        ("57P01", StoreUnavailable, "going down or starting up"),
        ("57P03", StoreUnavailable, "going down or starting up"),
        ("57P04", StoreError, "has been dropped"),
        ("58030", StoreUnavailable, "look into its log"),
        ("25P03", StoreUnavailable, "took too long"),
        ("08006", StoreUnavailable, "broke (no)"),
        ("22021", StoreError, "cannot hold a value (no)"),
        ("42703", StoreError, "run `comfyflow db upgrade`"),
        ("XX000", StoreError, "could not do this (no)"),
    ],
)
async def test_the_faults_of_a_server_are_told_apart(
    database: str, code: str, kind: type[StoreError], words: str
) -> None:
    error = await refusal(database, f"DO $$ BEGIN RAISE 'no' USING ERRCODE = '{code}'; END $$")
    assert type(error) is kind
    assert words in str(error)


@pytest.mark.parametrize(
    ("fault", "kind", "words"),
    [
        (socket.gaierror(-2, "Name or service not known"), StoreUnavailable, "host of the database"),
        (
            OSError("Multiple exceptions: [Errno 111] Connect call failed ('::1', 1), [Errno 111] ..."),
            StoreUnavailable,
            "is not running",
        ),
        (OSError(113, "No route to host"), StoreUnavailable, "cannot be reached (No route to host)"),
        (asyncpg.ClientConfigurationError(f"bad {SECRET}"), StoreError, "DATABASE_URL cannot be used"),
        (ValueError(f"invalid literal: '{SECRET}'"), StoreError, "DATABASE_URL cannot be used"),
        (KeyError("getpwuid(): uid not found"), StoreError, "DATABASE_URL cannot be used"),
        (asyncpg.DataError("invalid input for query argument $1"), StoreError, "argument $1"),
        (asyncpg.InterfaceError(SECRET), StoreError, "could not do this (InterfaceError)"),
    ],
)
def test_other_faults_are_told_apart_without_what_they_say(
    fault: Exception, kind: type[StoreError], words: str
) -> None:
    error = checked(translated(fault, SERVER))
    assert type(error) is kind
    assert words in str(error)


@pytest.mark.parametrize(
    ("said", "kind", "words"),
    [
        ("SASL authentication failed", StoreError, "refused the user name or the password"),
        ("no such user: me", StoreError, "refused the user name or the password"),
        ("no such database: jobs", StoreError, "is not there (no such database: jobs)"),
        ('database "jobs" does not exist', StoreError, "is not there"),
        ("unsupported startup parameter: x", StoreError, "does not let this user in"),
        ('database "jobs" is not currently accepting connections', StoreError, "let its owner allow it"),
        ("no more connections allowed (max_client_conn)", StoreUnavailable, "takes no more connections"),
        ("query_wait_timeout", StoreUnavailable, "broke (query_wait_timeout)"),
    ],
)
def test_the_words_of_pgbouncer_are_understood(said: str, kind: type[StoreError], words: str) -> None:
    error = translated(asyncpg.ProtocolViolationError(said), SERVER)
    assert type(error) is kind
    assert words in str(error)


def test_an_error_that_is_ours_already_stays_as_it_is() -> None:
    error = StoreError("said")
    assert translated(error, SERVER) is error


# --- a PostgreSQL of our own --------------------------------------------------------------------------


async def test_a_database_of_our_own_that_was_killed_is_started_by_the_next_command(cluster: Cluster) -> None:
    own = Database(DatabaseKind.EMBEDDED, "default", cluster.dsn, folder="/here")
    async with await Connections.open(own) as connections:
        await connections.execute("SELECT 1")
        await asyncio.to_thread(cluster.stop)
        error = await attempt(connections)
    assert type(error) is StoreUnavailable
    assert str(error) == (
        "the embedded database has stopped: run the command again, which starts it; what it said is in"
        " /here/server.log"
    )


@pytest.mark.parametrize("folder", ["/here", ""])
def test_of_a_database_of_our_own_nothing_is_said_that_nobody_can_do(folder: str) -> None:
    """It has no flag or variable to check, no host and no port, and no limit that a user can raise."""
    codes = [code.ljust(5, "0") for code in (*ABSENCES, *REFUSALS)]
    faults = [asyncpg.PostgresError.new({"C": code, "M": "no", "V": "FATAL"}) for code in codes]
    faults += [
        error("no") for kinds, _ in FAILURES for error in (kinds if isinstance(kinds, tuple) else (kinds,))
    ]
    faults += [asyncpg.ClientConfigurationError("no"), ValueError("no"), KeyError("no")]
    for fault in faults:
        told = str(checked(translated(fault, replace(OWN, folder=folder))))
        assert "the embedded database" in told
        assert not re.search("default(?!_)|check host|sslmode|max_connections|create the database", told), (
            told
        )
        assert (
            "server.log" not in told or (f"{folder}/server.log" if folder else "`comfyflow db where`") in told
        )


@pytest.mark.parametrize(
    ("fault", "kind", "words"),
    [
        (
            ConnectionRefusedError(111, "Connection refused"),
            StoreUnavailable,
            "has stopped: run the command again",
        ),
        (FileNotFoundError(2, "No such file"), StoreUnavailable, "has stopped: run the command again"),
        (
            TimeoutError(),
            StoreUnavailable,
            "did not answer in time: try again when this machine has less to do",
        ),
        (
            asyncpg.AdminShutdownError("ended"),
            StoreUnavailable,
            "is stopping or starting (ended): run the command",
        ),
        (asyncpg.InvalidPasswordError("no"), StoreError, "put the file 'password' in its folder back"),
        (asyncpg.InvalidCatalogNameError("gone"), StoreError, "has lost its tables (gone)"),
        (asyncpg.UndefinedTableError("gone"), StoreError, "run `comfyflow db upgrade`"),
        (ValueError(SECRET), StoreError, "could not do this (ValueError)"),
    ],
)
def test_faults_of_a_database_of_our_own_are_told_apart(
    fault: Exception, kind: type[StoreError], words: str
) -> None:
    error = checked(translated(fault, OWN))
    assert type(error) is kind
    assert words in str(error)
