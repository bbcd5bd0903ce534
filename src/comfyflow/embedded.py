"""A PostgreSQL of our own, for whoever has none: started on first use, shared by processes, never open to the
network.

    home/data         the cluster; it gets this name when it is whole, so there is no half-made one
    home/password     of the one role, "comfyflow"; mode 0600
    home/run          the socket, in a folder of mode 0700 (in /tmp, when this path is too long for one)
    home/server.log   what the server says; server.log.1 is what it said before
    home/programs-*   a copy of PostgreSQL's programs, where root has them in a folder that is shut for others
    home/start.lock   held while a server is started or stopped
    home/users.lock   held, shared, by every process that uses the server; the kernel frees it

The last one out stops the server. A process that was killed leaves it running: the next one to start takes it
over, and stops it when it is the last.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import re
import secrets
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import quote

from platformdirs import user_data_path

from .binaries import WAYS_OUT, Account, Binaries, account, environment, installed, obstacle, reachable
from .errors import PostgresMissing, StoreError, StoreUnavailable

if sys.platform != "win32":
    import fcntl

ROLE = DATABASE = "comfyflow"
SYSTEM_HOME = Path("/var/lib/comfyflow")  # of root, whose own folder the server's user cannot enter
PORT = 5432  # of the socket's name alone
LOG_SIZE = 5 << 20  # bytes after which a log is set aside when the server starts
_LONGEST_SOCKET = 100  # bytes; sun_path holds 104 on macOS and 108 on Linux, with the zero at its end
_PATIENCE = 60.0  # seconds for a server to start or to stop, and for others who are at it
_PAUSE = 0.01  # seconds between two looks
_ANSWER = 5.0  # seconds that a server may think before it asks for the password
_PASSWORD_LENGTH = 32  # characters of 6 bits each

_SETTINGS = {
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    "shared_buffers": "32MB",
    "max_connections": "60",
    "max_wal_senders": "0",
    "max_logical_replication_workers": "0",
    "wal_level": "minimal",
    "max_wal_size": "256MB",
    "jit": "off",
    "log_min_error_statement": "fatal",  # no statements in the log
}
_CARELESS = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}

# A startup packet of protocol 3.0: the answer tells whether sessions are taken (postgres
# tcop/backend_startup.c, 18): "R" asks for a password, "E" with 57P03 means starting or stopping.
_ASKS = b"\x00\x03\x00\x00user\x00" + ROLE.encode() + b"\x00database\x00" + DATABASE.encode() + b"\x00\x00"
_NOT_NOW = b"C57P03\x00"

log = logging.getLogger(__name__)


class Embedded:
    """A PostgreSQL server over a folder of the user's own. Blocking: call it in a worker thread.

    `home` is the folder for everything, else COMFYFLOW_DATA or the user's data folder with a folder for each
    major version in it ("pg18"): data of another version stays where it is. Where several versions are
    installed, the one that has data already is taken. `binaries` is the folder of PostgreSQL's programs, else
    they are looked for. `durable=False` risks the data for speed: for tests alone.

    For root everything is run by, and belongs to, another user: the owner of the data, "postgres", "nobody".
    """

    def __init__(
        self, home: Path | None = None, *, binaries: Path | None = None, durable: bool = True
    ) -> None:
        self._given = None if home is None else Path(os.path.abspath(home))
        self._named, self._durable = binaries, durable
        self._users: int | None = None
        self._dsn, self._attached = "", False

    def __repr__(self) -> str:
        state = "stopped" if self._users is None else "attached" if self._attached else "started"
        return f"<Embedded {self._given or ''} {state}>"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def dsn(self) -> str:
        """The URL for asyncpg, with the password in it. Raises StoreError unless started."""
        if self._users is None:
            raise StoreError("the embedded PostgreSQL is not started: call start() first")
        return self._dsn

    @property
    def home(self) -> Path:
        """The folder for everything. Raises PostgresMissing."""
        return self._located[1]

    @property
    def version(self) -> str:
        """Of PostgreSQL's programs, like "18.6". Raises PostgresMissing."""
        return self._located[0].version

    @property
    def binaries(self) -> Path:
        """The folder of PostgreSQL's programs. Raises PostgresMissing."""
        return self._located[0].folder

    @property
    def attached(self) -> bool:
        """Whether the server was running already when this one was started."""
        return self._attached

    def start(self) -> None:
        """Bring the server up, or use the one that is up; the first time ever, make the cluster (a second).

        Raises PostgresMissing when there are no programs to run, StoreError when the folder cannot be used or
        the server refuses, StoreUnavailable when it does not answer within a minute.
        """
        if self._users is not None:
            return
        binaries, home = self._located
        with _explained(home):
            server = _Server(home, binaries, account(home / "data"), self._durable)
            server.prepare()
            with server.locked("start.lock"):
                self._users = server.take_part()
                try:
                    self._attached = server.up()
                    self._dsn = server.dsn
                except BaseException:
                    self._leave()
                    raise

    def stop(self) -> None:
        """Leave the server; the last one out stops it, and waits for its end. What cannot be done is logged:
        the data is safe however the server ends."""
        if self._users is None:
            return
        binaries, home = self._located
        server = _Server(home, binaries, account(home / "data"), self._durable)
        try:
            with server.locked("start.lock"):
                self._leave()
                if server.is_unused():
                    server.down()
        except (OSError, StoreError) as error:
            log.warning("the embedded PostgreSQL in %s could not be stopped: %s", home, error)
        finally:
            self._leave()

    def _leave(self) -> None:
        if self._users is not None:
            os.close(self._users)
        self._users, self._dsn = None, ""

    @cached_property
    def _located(self) -> tuple[Binaries, Path]:
        if sys.platform == "win32":
            raise PostgresMissing(
                "an embedded PostgreSQL is not possible on Windows yet: name a database with --database"
                " postgresql://user@host/database"
            )
        known = []
        for binaries in installed(self._named):
            home = self._given or _base() / f"pg{binaries.major}"
            if _version_of(home) == binaries.major:
                return binaries, home
            known.append((binaries, home))
        if not known:
            raise PostgresMissing(f"there is no PostgreSQL on this machine: {WAYS_OUT}")
        return _for_new(*known[0])


def _base() -> Path:
    """The folder for the homes of all versions."""
    if named := os.environ.get("COMFYFLOW_DATA"):
        return Path(os.path.abspath(named))
    usual = user_data_path("comfyflow")
    is_shut = os.geteuid() == 0 and obstacle(usual, account()) is not None
    return SYSTEM_HOME if is_shut else usual


def _version_of(home: Path) -> int | None:
    with suppress(OSError, ValueError):
        return int((home / "data" / "PG_VERSION").read_text(encoding="ascii"))
    return None


def _for_new(binaries: Binaries, home: Path) -> tuple[Binaries, Path]:
    """Programs for a folder that none of those found has made. Another version cannot open it."""
    if (made_by := _version_of(home)) is not None:
        raise StoreError(
            f"the data in {home} was made by PostgreSQL {made_by} and {binaries.version} cannot open it: name"
            f" the folder of PostgreSQL {made_by}'s programs by COMFYFLOW_PG_BIN, or another data folder"
        )
    with suppress(OSError):
        for other in sorted(home.parent.glob("pg*/data")):
            log.warning("earlier records are in %s, of another version; they are not used", other.parent)
    return binaries, home


@contextmanager
def _explained(home: Path) -> Iterator[None]:
    """What the system refuses becomes one sentence."""
    try:
        yield
    except OSError as error:
        raise StoreError(f"the embedded PostgreSQL cannot use {home}: {_reason(error)}") from error


def _reason(error: OSError) -> str:
    place = f" ({error.filename})" if error.filename else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"the disk is full{place}; make room there, or name another folder by COMFYFLOW_DATA"
    if error.errno in (errno.EACCES, errno.EPERM):
        return (
            f"it may not be used by {account().name!r}{place}; run this as the user it belongs to, or name"
            " another folder by COMFYFLOW_DATA"
        )
    return f"{(error.strerror or str(error)).lower()}{place}; name another folder by COMFYFLOW_DATA"


class _Server:
    """The folder, and the server over it. Raises OSError and StoreError."""

    def __init__(self, home: Path, binaries: Binaries, who: Account, durable: bool) -> None:
        self.home, self.binaries, self.who, self.durable = home, binaries, who, durable
        self.data, self.log = home / "data", home / "server.log"

    @property
    def dsn(self) -> str:
        # Port and the rest are told, or asyncpg takes them from a user's PGPORT, PGSSLMODE, ...
        place = f"host={quote(str(self.sockets))}&port={PORT}&sslmode=disable&target_session_attrs=any"
        return f"postgresql://{ROLE}:{quote(self.password(), safe='')}@/{DATABASE}?{place}"

    # the folder

    def prepare(self) -> None:
        """Make the folder, where another user can get to it if need be. No folder above it is changed."""
        self._passable(self.home.parent)
        for folder in reversed([one for one in self.home.parents if not one.exists()]):
            folder.mkdir(exist_ok=True)
            if self.who.switched:
                folder.chmod(0o755)  # ours, and root's umask may be strict
        self.home.mkdir(mode=0o700, exist_ok=True)
        if self.who.switched and self.home.stat().st_uid == 0 and not any(self.home.iterdir()):
            self.home.chmod(0o700)
            os.chown(self.home, self.who.uid, self.who.gid)
        self._passable(self.home)

    def _passable(self, path: Path) -> None:
        if self.who.switched and (folder := obstacle(path, self.who)):
            raise StoreError(
                f"the user {self.who.name!r}, as whom root runs PostgreSQL, may not enter {folder}: name"
                f" a data folder elsewhere by COMFYFLOW_DATA (else it is {SYSTEM_HOME})"
            )

    def open(self, name: str, flags: int = 0) -> int:
        """A file in the folder, made if need be, for the server's user alone."""
        path = self.home / name
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | flags, 0o600)
        if self.who.switched and os.fstat(file).st_uid == 0:
            os.fchown(file, self.who.uid, self.who.gid)
        return file

    def folder(self, path: Path) -> Path:
        """A folder for the server's user alone."""
        with suppress(FileExistsError):
            path.mkdir(mode=0o700)
        found = path.lstat()
        if self.who.switched and found.st_uid == 0:
            os.chown(path, self.who.uid, self.who.gid, follow_symlinks=False)
            found = path.lstat()
        if found.st_uid != self.who.uid or found.st_mode & 0o170077 != 0o040000:
            raise StoreError(
                f"{path} is not a folder of the user {self.who.name!r} alone, so PostgreSQL does not use it:"
                " run this as the user it belongs to, or name another data folder by COMFYFLOW_DATA"
            )
        return path

    @cached_property
    def sockets(self) -> Path:
        """The folder of the socket. The name of a socket may be about 100 bytes long, all in all."""
        usual = self.home / "run"
        if len(os.fsencode(usual / f".s.PGSQL.{PORT}")) <= _LONGEST_SOCKET:
            return usual
        key = hashlib.sha256(os.fsencode(os.path.realpath(self.home))).hexdigest()[:12]
        return Path(f"/tmp/comfyflow-{self.who.uid}-{key}")

    def password(self) -> str:
        """Of the role. Raises StoreError when it was lost."""
        try:
            return (self.home / "password").read_text(encoding="ascii")
        except FileNotFoundError as error:
            raise StoreError(
                f"the password of the PostgreSQL in {self.home} is gone: put the file 'password' back, or"
                " move the folder away to begin with an empty one"
            ) from error

    # who uses it

    @contextmanager
    def locked(self, name: str) -> Iterator[None]:
        """Alone. Raises StoreUnavailable after a minute."""
        file, deadline = self.open(name), time.monotonic() + _PATIENCE
        try:
            while True:
                with suppress(BlockingIOError):
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                if time.monotonic() > deadline:
                    raise StoreUnavailable(
                        f"another process has been starting or stopping the PostgreSQL in {self.home} for"
                        f" {_PATIENCE:.0f} s: look whether it hangs, and end it"
                    )
                time.sleep(_PAUSE)
            yield
        finally:
            os.close(file)

    def take_part(self) -> int:
        """Become a user of the server, until the file that is returned is closed."""
        file = self.open("users.lock")
        fcntl.flock(file, fcntl.LOCK_SH)
        return file

    def is_unused(self) -> bool:
        """Whether nobody takes part. Only meaningful under start.lock."""
        file = self.open("users.lock")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        finally:
            os.close(file)
        return True

    # the cluster

    def up(self) -> bool:
        """Make what is missing and start what is not running; tells whether the server was up already."""
        self.folder(self.sockets)
        if self.data.exists():
            self.folder(self.data)
        if self.is_ready():
            return True
        self.binaries = reachable(self.binaries, self.who, self.home)
        if not self.data.exists():
            self._make()
        self._start()
        return False

    def _make(self) -> None:
        """A new cluster. It is made under another name, so one that is called `data` is whole. The name is a
        new one each time: initdb may still be at work for a process that was killed."""
        for left in self.home.glob("making-*"):
            shutil.rmtree(left, ignore_errors=True)
        making = self.folder(self.home / f"making-{secrets.token_hex(4)}")
        self._choose_password()
        self._initialise(making)
        create = f"CREATE DATABASE {DATABASE}\n".encode()
        self._run("postgres", "--single", "-c", "fsync=off", "-D", making, "postgres", said=create)
        if self.durable:
            self._run("initdb", "--sync-only", "-D", making)
        making.rename(self.data)
        folder = os.open(self.home, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)

    def _choose_password(self) -> None:
        """One that is there is kept: somebody may put data back that was moved away."""
        file = self.open("password")
        with open(file, "r+", encoding="ascii") as stream:
            if len(stream.read()) < _PASSWORD_LENGTH:
                stream.seek(0)
                stream.write(secrets.token_urlsafe(_PASSWORD_LENGTH)[:_PASSWORD_LENGTH])
                stream.flush()
                os.fsync(file)

    def _initialise(self, making: Path) -> None:
        """Run initdb. The order of texts is that of their code points, in every version and on every system;
        upper and lower case are known for all alphabets where the system or PostgreSQL itself knows them."""
        fixed = ["--username", ROLE, "--auth=scram-sha-256", f"--pwfile={self.home / 'password'}"]
        fixed += ["--encoding=UTF8", "--data-checksums", "--no-sync", "-D", str(making)]
        fixed += [] if self.durable else ["--wal-segsize=1"]  # megabytes: half the disk for each test
        builtin = (
            ["--locale-provider=builtin", "--builtin-locale=C.UTF-8"] if self.binaries.major >= 17 else []
        )
        try:
            self._run("initdb", "--locale=C.UTF-8", *builtin, *fixed)
        except StoreError:
            shutil.rmtree(making, ignore_errors=True)
            self.folder(making)
            self._run("initdb", "--locale=C", *builtin, *fixed)  # a system without C.UTF-8

    def _run(self, program: str, *arguments: Path | str, said: bytes = b"") -> None:
        command = [self.binaries.folder / program, *arguments]
        done = subprocess.run(
            command,
            input=said,
            capture_output=True,
            check=False,
            env=environment(),
            cwd="/",
            **self.who.options,
        )
        told = (done.stderr + done.stdout).decode("utf-8", "replace")
        if done.returncode or "ERROR:" in told:  # a single-user server ends well even so
            raise StoreError(f"{program} could not make a database in {self.home}: {_fault(told)}")

    # the server

    def is_ready(self) -> bool:
        """Whether a server takes sessions here."""
        try:
            with self._connected() as probe:
                probe.sendall((len(_ASKS) + 4).to_bytes(4, "big") + _ASKS)
                answer = probe.recv(4096)
        except OSError:
            return False
        return answer[:1] == b"R" or (answer[:1] == b"E" and _NOT_NOW not in answer)

    def _connected(self) -> socket.socket:
        probe = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            probe.settimeout(_ANSWER)
            probe.connect(os.fspath(self.sockets / f".s.PGSQL.{PORT}"))
        except BaseException:
            probe.close()
            raise
        return probe

    def _start(self) -> None:
        deadline = time.monotonic() + _PATIENCE
        while not self.is_ready():
            if time.monotonic() > deadline:
                raise StoreUnavailable(
                    f"PostgreSQL did not answer within {_PATIENCE:.0f} s: see what it says in {self.log}"
                )
            if self._running() is None:
                self._attempt(deadline)
            time.sleep(_PAUSE)

    def _attempt(self, deadline: float) -> None:
        """Start a server and wait until it answers or ends. Raises StoreError unless trying again may help:
        what a killed server leaves behind goes away by itself."""
        self._forget_the_dead()
        with suppress(FileNotFoundError):
            if self.log.stat().st_size > LOG_SIZE:
                self.log.replace(self.log.with_name("server.log.1"))
        file = self.open("server.log", os.O_APPEND)
        try:
            before = os.fstat(file).st_size
            server = self._launched(file)
            while server.is_alive() and not self.is_ready() and time.monotonic() < deadline:
                time.sleep(_PAUSE)
            if server.is_alive():
                return
            told = os.pread(file, 1 << 16, before).decode("utf-8", "replace")
        finally:
            os.close(file)
        if "shared memory block" not in told and '"postmaster.pid" already exists' not in told:
            raise StoreError(
                f"PostgreSQL could not be started over {self.home}: {_fault(told)}"
                f" (the rest is in {self.log})"
            )

    def _launched(self, output: int) -> threading.Thread:
        """The server, and a thread that lives as long as it: whoever ends it, it must not stay as a zombie
        whose number looks like that of a running server."""
        settings = _SETTINGS if self.durable else _SETTINGS | _CARELESS
        process = subprocess.Popen(
            [
                *(self.binaries.folder / "postgres", "-D", self.data, "-k", self.sockets, "-p", str(PORT)),
                *(part for name, value in settings.items() for part in ("-c", f"{name}={value}")),
            ],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=environment(),
            cwd="/",
            start_new_session=True,  # Ctrl-C is not for it
            **self.who.options,
        )
        thread = threading.Thread(target=process.wait, name="comfyflow-postgresql", daemon=True)
        thread.start()
        return thread

    def _noted(self) -> list[str]:
        with suppress(FileNotFoundError):
            return (self.data / "postmaster.pid").read_text(encoding="utf-8", errors="replace").splitlines()
        return []

    def _running(self) -> int | None:
        """The process that the cluster's own lock file names, if it is a living server."""
        lines = self._noted()
        if lines and lines[0].isdecimal() and _is_server(int(lines[0]), self.data):
            return int(lines[0])
        return None

    def _forget_the_dead(self) -> None:
        """The lock files of a server that is no more name a process that may live again as something else, or
        be a zombie that nobody takes away (a container whose first process does not): the new server would
        give up. It passes over its parent's number, and goes on to look whether the shared memory is still in
        use (postgres miscinit.c, CreateLockFile), so the cluster's file is not just taken away."""
        (self.sockets / f".s.PGSQL.{PORT}.lock").unlink(missing_ok=True)
        if lines := self._noted():
            file = os.open(self.data / "postmaster.pid", os.O_WRONLY | os.O_TRUNC | os.O_NOFOLLOW)
            with open(file, "w", encoding="utf-8") as stream:
                stream.write("\n".join([str(os.getpid()), *lines[1:]]) + "\n")

    def down(self) -> None:
        """Stop the server that answers here, and wait for its end. Open transactions are undone."""
        number = self._listener() or self._running()
        if number is None:
            return
        deadline = time.monotonic() + _PATIENCE
        with suppress(ProcessLookupError):
            os.kill(number, signal.SIGINT)  # "fast", in PostgreSQL's words
        while _is_server(number, self.data):
            if time.monotonic() > deadline:
                raise StoreUnavailable(f"it has not ended within {_PATIENCE:.0f} s")
            time.sleep(_PAUSE)

    def _listener(self) -> int | None:
        """The process at the other end of the socket. A number in a file may be one of another container."""
        if not hasattr(socket, "SO_PEERCRED"):  # macOS
            return None
        with suppress(OSError), self._connected() as probe:
            told = probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
            return int(struct.unpack("3i", told)[0]) or None
        return None


def _is_server(number: int, data: Path) -> bool:
    """Whether this process lives and is the server over `data`, as far as one can see. A zombie is not: it
    has neither folder nor command line."""
    if not Path("/proc/self/stat").exists():
        return _is_server_by_ps(number)
    process = Path("/proc") / str(number)
    try:
        with suppress(PermissionError):
            return (process / "cwd").samefile(data)  # a server works in its folder
        program = (process / "cmdline").read_bytes().split(b"\0")[0]
    except OSError:
        return False
    return os.path.basename(program) in (b"postgres", b"postmaster")


def _is_server_by_ps(number: int) -> bool:
    command = ["ps", "-o", "stat=,command=", "-p", str(number)]
    told = subprocess.run(command, capture_output=True, check=False, stdin=subprocess.DEVNULL).stdout.strip()
    return b"postgres" in told and not told.startswith(b"Z")


def _fault(told: str) -> str:
    """The line of PostgreSQL's own words that says why."""
    lines = [line.strip() for line in told.splitlines() if line.strip()]
    faults = [line for line in lines if re.search("FATAL:|PANIC:|ERROR:|error:", line)]
    if not lines:
        return "it said nothing"
    line = faults[0] if faults else lines[-1]
    return line.partition("FATAL:")[2].strip() or line
