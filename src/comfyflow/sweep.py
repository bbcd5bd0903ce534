"""Hidden `.part` files: how they are named, how one shows that it is in work, and how abandoned ones go.

A part is locked (flock, shared) as long as the process lives that writes it. The system gives a lock up with
the process, whatever ended that, and it counts in other containers that mount the same folder too.
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


def part_name() -> str:
    """A name for a part, never the same twice."""
    return f".comfyflow-{os.getpid()}-{_RUN}-{next(_numbers)}.part"


def hold(file: int, path: Path) -> bool:
    """Show that the open part `file` is in work, until it is closed. False when `path` is not it any more: a
    sweep was quicker."""
    if _locked(file, shared=True) is False:
        return False
    try:
        return os.path.samestat(os.fstat(file), os.stat(path, follow_symlinks=False))
    except FileNotFoundError:
        return False


def sweep(folder: Path) -> list[Path]:
    """Remove the parts in `folder` that nobody works on any more; which those were. Blocks; raises
    nothing."""
    try:
        with os.scandir(folder) as entries:
            found = [Path(entry.path) for entry in entries if _NAME.fullmatch(entry.name)]
    except OSError:
        return []
    return [path for path in found if _removed(path)]


def _removed(path: Path) -> bool:
    try:
        file = os.open(path, _READ)
    except OSError:  # just gone, a link, somebody else's
        return False
    try:
        if not _is_abandoned(file):
            return False
        if (
            sys.platform != "win32"
        ):  # there an open file cannot be removed, which is all the protection it needs
            os.unlink(path)
    except OSError:
        return False
    finally:
        os.close(file)
    return sys.platform != "win32" or _unlinked(path)


def _unlinked(path: Path) -> bool:
    try:
        os.unlink(path)
    except OSError:
        return False
    return True


def _is_abandoned(file: int) -> bool:
    status = os.fstat(file)
    if not stat.S_ISREG(status.st_mode):
        return False
    free = _locked(file, shared=False)
    return time.time() - status.st_mtime > OLD if free is None else free


if sys.platform == "win32":

    def _locked(file: int, *, shared: bool) -> bool | None:
        return True

else:
    import fcntl

    def _locked(file: int, *, shared: bool) -> bool | None:
        """Whether the lock was free; None where the file system knows no locks."""
        try:
            fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:
            return None
        return True
