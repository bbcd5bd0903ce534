"""This process as other programs see it, and whether one of them still runs."""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

from .store import Worker


def this_worker() -> Worker:
    """A new worker of this process."""
    pid = os.getpid()
    machine, began = _machine(), _began(pid)
    place = f"{machine}/{began}" if machine and began else None
    return Worker(str(uuid4()), socket.gethostname(), pid, place)


def is_dead(worker: Worker) -> bool:
    """Whether it is certain that the worker's process is gone. False for one on another machine or in another
    container: only its lease tells."""
    machine, _, began = (worker.place or "").rpartition("/")
    if not machine or machine != _machine():
        return False
    try:
        os.kill(worker.pid, 0)
    except ProcessLookupError:
        return True
    except OSError:  # somebody else's process: it is there
        pass
    now = _began(worker.pid)  # None where the processes of others are hidden
    return now is not None and now != began


def _machine() -> str | None:
    """This boot of this machine, and the space in which process ids count. Linux tells; others do not."""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot}/{Path('/proc/self/ns/pid').stat().st_ino}"
    return None


def _began(pid: int) -> str | None:
    """When a process began, in ticks since the boot: ids are used again. "ended" for one that only waits to
    be collected. The fields are those of proc(5): the name may hold spaces and brackets."""
    with suppress(OSError, IndexError):
        fields = (
            Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        )
        return "ended" if fields[0] in "ZX" else fields[19]
    return None
