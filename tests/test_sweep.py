"""Abandoned parts go, those in work stay, whoever works on them."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from comfyflow.sweep import OLD, hold, part_name, sweep

HOLD = """
import os, sys
from pathlib import Path
from comfyflow.sweep import hold, part_name
path = Path(sys.argv[1]) / part_name()
assert hold(os.open(path, os.O_RDWR | os.O_CREAT), path)
print(path, flush=True)
sys.stdin.read()
"""


def abandoned(folder: Path) -> Path:
    path = folder / part_name()
    path.write_bytes(b"half a pic")
    return path


def test_the_part_of_a_process_stays_until_it_is_killed(tmp_path: Path) -> None:
    pipe = subprocess.PIPE
    line = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(line, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdout is not None
        path = Path(process.stdout.readline().rstrip())
        assert sweep(tmp_path) == []
        process.kill()
        process.wait()
        assert sweep(tmp_path) == [path]
    assert not path.exists()


def test_a_part_of_this_process_stays_until_it_is_closed(tmp_path: Path) -> None:
    path = abandoned(tmp_path)
    file, again = os.open(path, os.O_RDWR), os.open(path, os.O_RDWR)
    assert hold(file, path)
    assert not hold(again, path)
    os.close(again)
    assert sweep(tmp_path) == []
    os.close(file)
    assert sweep(tmp_path) == [path]


def test_links_to_one_file_are_held_by_several_at_once(tmp_path: Path) -> None:
    precious = tmp_path / "precious.png"
    precious.write_bytes(b"x")
    here, there = tmp_path / part_name(), tmp_path / part_name()
    files = []
    for path in (here, there):
        os.link(precious, path)
        files.append(os.open(path, os.O_RDONLY))
        assert hold(files[-1], path, alone=False)
    os.close(files[0])
    assert sweep(tmp_path) == []
    os.close(files[1])
    assert sorted(sweep(tmp_path)) == sorted([here, there])
    assert precious.read_bytes() == b"x"


@pytest.mark.parametrize(
    "name",
    [
        ".comfyflow-notes.part",
        "comfyflow-1-0123456789ab-1.part",
        ".comfyflow-1-0123456789ab-1.part.png",
        "a.part",
    ],
)
def test_only_our_own_names_count(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"mine")
    assert sweep(tmp_path) == []
    assert (tmp_path / name).exists()


def test_links_folders_and_what_is_not_there_are_left_alone(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_bytes(b"x")
    (tmp_path / part_name()).symlink_to(precious)
    (tmp_path / part_name()).mkdir()
    os.mkfifo(tmp_path / part_name())
    (tmp_path / "deeper").mkdir()
    abandoned(tmp_path / "deeper")
    assert sweep(tmp_path) == []
    assert sweep(tmp_path / "nowhere") == []
    assert precious.exists()


def test_who_comes_after_the_sweep_is_told(tmp_path: Path) -> None:
    path = abandoned(tmp_path)
    file = os.open(path, os.O_RDWR)
    path.unlink()
    assert not hold(file, path)
    abandoned(tmp_path).rename(path)  # another file of that name
    assert not hold(file, path)
    os.close(file)


def test_a_sweep_in_progress_wins(tmp_path: Path) -> None:
    path = abandoned(tmp_path)
    sweeping, file = os.open(path, os.O_RDONLY), os.open(path, os.O_RDWR)
    fcntl.flock(sweeping, fcntl.LOCK_EX)
    assert not hold(file, path)
    os.close(sweeping)
    assert hold(file, path)
    os.close(file)


def test_without_locks_a_part_goes_after_a_day_without_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = abandoned(tmp_path)
    os.utime(path, (1.0, 1.0))  # a link has the times of its content

    def unsupported(file: int, operation: int) -> None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(fcntl, "flock", unsupported)
    file = os.open(path, os.O_RDWR)
    assert hold(file, path)
    os.close(file)
    assert sweep(tmp_path) == []
    later = time.time() + OLD + 60
    monkeypatch.setattr(time, "time", lambda: later)
    assert sweep(tmp_path) == [path]


def refused(*_args: object) -> int:
    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def test_what_may_not_be_opened_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = abandoned(tmp_path)
    monkeypatch.setattr(os, "open", refused)
    assert sweep(tmp_path) == []
    assert path.exists()


def test_what_may_not_be_removed_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = abandoned(tmp_path)
    monkeypatch.setattr(os, "unlink", refused)
    assert sweep(tmp_path) == []
    assert path.exists()


def test_what_may_only_be_read_goes_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, opened = abandoned(tmp_path), os.open
    monkeypatch.setattr(
        os, "open", lambda path, flags: refused() if flags & os.O_RDWR else opened(path, flags)
    )
    assert sweep(tmp_path) == [path]
