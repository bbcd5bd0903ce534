"""Hidden `.part` files: how they are named, how one shows that it is in work, and how abandoned ones go.

A part is locked (flock) as long as the process lives that writes it. The system gives a lock up with the
process, whatever ended that, and it counts in other containers that mount the same folder too.
"""

from __future__ import annotations

import itertools
import os
import re
import stat
import sys
import time
import uuid
from pathlib import Path

OLD = 86400.0  # s after which a part counts as abandoned where the file system knows no locks
_NAME = re.compile(r"\.comfyflow-\d+-[0-9a-f]{12}-\d+\.part")
_RUN, _numbers = uuid.uuid4().hex[:12], itertools.count(1)  # without asking for random bytes each time
_READ = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
_WRITE = _READ ^ os.O_RDONLY | os.O_RDWR


def part_name() -> str:
    """A name for a part, never the same twice."""
    return f".comfyflow-{os.getpid()}-{_RUN}-{next(_numbers)}.part"


def hold(file: int, path: Path, *, alone: bool = True) -> bool:
    """Show that the open part `file` is in work, until it is closed. False when `path` is not it any more, or
    will not be: a sweep was quicker.

    Not `alone`: it is a link to a file of somebody else's, who may hold it too; `file` is only read then.
    Otherwise the lock is an exclusive one: on an SMB mount a shared one forbids writing to its own holder too
    (Samba's `brl_conflict_other`; github.com/dotnet/runtime/issues/42790).
    """
    if _locked(file, alone=alone) is False:
        return False
    try:
        return os.path.samestat(os.fstat(file), os.stat(path, follow_symlinks=False))
    except FileNotFoundError:
        return False


def sweep(folder: Path) -> list[Path]:
    """Remove the parts in `folder` (not deeper) that nobody works on any more; which those were.

    Links and files of other names stay. What cannot be opened or removed stays too. Where the file system
    knows no locks a part goes when nothing has happened to it for a day. Blocks; raises nothing.
    """
    try:
        with os.scandir(folder) as entries:
            found = [Path(entry.path) for entry in entries if _NAME.fullmatch(entry.name)]
    except OSError:
        return []
    return [path for path in found if _removed(path)]


def _removed(path: Path) -> bool:
    try:
        file = _opened(path)
    except OSError:  # just gone, a link, somebody else's
        return False
    try:
        if not _is_abandoned(file):
            return False
        if sys.platform == "win32":
            os.close(file)  # what anybody has open cannot be removed there: all the protection it needs
            file = -1
        os.unlink(path)
    except OSError:
        return False
    finally:
        if file != -1:
            os.close(file)
    return True


def _opened(path: Path) -> int:
    """For writing where that is allowed: NFS gives an exclusive lock to nobody else."""
    try:
        return os.open(path, _WRITE)
    except PermissionError:
        return os.open(path, _READ)


def _is_abandoned(file: int) -> bool:
    status = os.fstat(file)
    if not stat.S_ISREG(status.st_mode):
        return False
    free = _locked(file, alone=True)
    # The time of the last change of any kind: a link has the content's own time, which may be years ago.
    return time.time() - status.st_ctime > OLD if free is None else free


if sys.platform == "win32":

    def _locked(file: int, *, alone: bool) -> bool | None:
        return True

else:
    import fcntl

    def _locked(file: int, *, alone: bool) -> bool | None:
        """Whether it could be locked; None where the file system knows no locks."""
        try:
            fcntl.flock(file, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:
            return None
        return True
