"""Files on disk beside their rows, without a database: missing, changed, orphaned."""

from __future__ import annotations

import hashlib
import os
import tracemalloc
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comfyflow.errors import UsageError
from comfyflow.queries import AssetRow
from comfyflow.verify import Checked, Verdict, check, sha256_of, verified

BYTES = b"a picture"


def asset(path: str, data: bytes | None = BYTES, **metadata: Any) -> AssetRow:
    """A row that says the file has these bytes."""
    known = {} if data is None else {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    return AssetRow(1, "p", None, path, known | metadata)


async def each(rows: Iterable[AssetRow]) -> AsyncIterator[AssetRow]:
    for row in rows:
        yield row


async def checked(root: Path | None, *rows: AssetRow) -> list[Checked]:
    async def named(paths: list[str]) -> set[str]:
        return {path for path in paths if path in {row.output_path for row in rows}}

    return [found async for found in verified(each(rows), named, root)]


async def verdict(root: Path | None, row: AssetRow) -> tuple[Verdict, str | None]:
    (first, *_) = await checked(root, row)
    return first.verdict, first.reason


async def test_a_file_with_the_recorded_bytes_is_fine(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.png").write_bytes(BYTES)
    (found,) = await checked(tmp_path, asset("sub/a.png"))
    assert (found.verdict, found.path) == (Verdict.OK, tmp_path / "sub" / "a.png")


async def test_without_a_root_the_folder_of_the_writer_counts(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(BYTES)
    assert await verdict(None, asset("a.png", folder=str(tmp_path))) == (Verdict.OK, None)
    assert await verdict(None, asset(str(tmp_path / "a.png"))) == (Verdict.OK, None)


@pytest.mark.parametrize("path", ["gone.png", "no/such/folder/a.png", "a.png/below-a-file.png", "x" * 300])
async def test_a_file_that_is_not_there_is_missing(tmp_path: Path, path: str) -> None:
    (tmp_path / "a.png").write_bytes(BYTES)
    found, _ = await verdict(tmp_path, asset(path))
    assert found is (Verdict.UNVERIFIABLE if path.startswith("x") else Verdict.MISSING)


@pytest.mark.parametrize("data", [b"A picture", b"a picture!", b""])
async def test_other_bytes_are_a_change_of_the_same_size_or_not(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.png").write_bytes(data)
    found, reason = await verdict(tmp_path, asset("a.png"))
    assert found is Verdict.CHANGED
    assert reason == ("its bytes are others" if len(data) == 9 else f"it has {len(data)} bytes instead of 9")


async def test_a_folder_in_the_place_of_a_file_is_a_change(tmp_path: Path) -> None:
    (tmp_path / "a.png").mkdir()
    assert await verdict(tmp_path, asset("a.png")) == (Verdict.CHANGED, "it is not an ordinary file")


async def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.png")
    assert await verdict(tmp_path, asset("a.png")) == (Verdict.CHANGED, "it is not an ordinary file")


async def test_a_row_without_a_hash_is_not_verifiable_but_its_size_is(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(BYTES)
    assert await verdict(tmp_path, asset("a.png", None)) == (
        Verdict.UNVERIFIABLE, "its row has no sha256",
    )  # fmt: skip
    assert (await verdict(tmp_path, asset("a.png", None, bytes=1)))[0] is Verdict.CHANGED
    assert (await verdict(tmp_path, asset("b.png", None)))[0] is Verdict.MISSING


async def test_a_url_is_not_verifiable() -> None:
    (found,) = await checked(None, asset("https://cdn/a.png"))
    assert (found.verdict, found.path) == (Verdict.UNVERIFIABLE, None)


async def test_a_row_that_names_no_file_is_not_verifiable(tmp_path: Path) -> None:
    (found,) = await checked(tmp_path, asset(""))
    assert (found.verdict, found.path) == (Verdict.UNVERIFIABLE, None)
    assert found.reason == "its row names no file"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.just(10**400),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
KNOWN = ("bytes", "sha256", "folder", "width", "seed")


@given(path=st.text(max_size=20), metadata=st.dictionaries(st.sampled_from(KNOWN), JSON))
def test_whatever_others_wrote_has_a_verdict(path: str, metadata: dict[str, Any]) -> None:
    row = AssetRow(1, "p", None, path, metadata)
    for root in (None, Path("/no/such/folder")):
        assert check(row, root).verdict in set(Verdict)


@pytest.mark.parametrize("how", ["link", "folder link", "dots"])
async def test_what_leads_out_of_the_folder_is_not_followed(tmp_path: Path, how: str) -> None:
    root, secret = tmp_path / "root", tmp_path / "secret"
    root.mkdir()
    secret.mkdir()
    (secret / "a.png").write_bytes(BYTES)
    (root / "a.png").symlink_to(secret / "a.png")
    (root / "out").symlink_to(secret)
    path = {"link": "a.png", "folder link": "out/a.png", "dots": "../secret/a.png"}[how]
    rows = await checked(root, asset(path))
    assert [(row.verdict, row.reason) for row in rows] == [
        (Verdict.UNVERIFIABLE, "its path leads out of the folder")
    ]


async def test_a_link_at_an_absolute_path_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(BYTES)
    (tmp_path / "link.png").symlink_to(tmp_path / "a.png")
    assert (await verdict(None, asset(str(tmp_path / "link.png"))))[0] is Verdict.UNVERIFIABLE


async def test_links_in_a_circle_end(tmp_path: Path) -> None:
    (tmp_path / "a.png").symlink_to(tmp_path / "b.png")
    (tmp_path / "b.png").symlink_to(tmp_path / "a.png")
    found, _ = await verdict(tmp_path, asset("a.png"))
    assert found in {Verdict.UNVERIFIABLE, Verdict.MISSING, Verdict.CHANGED}


async def test_files_that_no_row_names_are_orphans(tmp_path: Path) -> None:
    for name in ("a.png", "extra.png", "sub/extra.png", "sub/b.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(BYTES)
    found = await checked(tmp_path, asset("a.png"), asset(str(tmp_path / "sub" / "b.png")))
    assert [row.verdict for row in found[:2]] == [Verdict.OK, Verdict.OK]
    assert {(row.asset, row.path, row.verdict) for row in found[2:]} == {
        (None, tmp_path / "extra.png", Verdict.ORPHANED),
        (None, tmp_path / "sub" / "extra.png", Verdict.ORPHANED),
    }


async def test_hidden_and_unfinished_files_links_and_pipes_are_no_orphans(tmp_path: Path) -> None:
    (tmp_path / ".hidden").mkdir()
    for name in (".hidden/a.png", ".comfyflow-1.part", "b.part", ".c.png"):
        (tmp_path / name).touch()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / ".c.png")
    (tmp_path / "folder").symlink_to(tmp_path / ".hidden")
    assert await checked(tmp_path) == []


async def test_a_relative_root_is_the_same_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.png").write_bytes(BYTES)
    monkeypatch.chdir(tmp_path)
    (found,) = await checked(Path(), asset(str(tmp_path / "a.png")))
    assert found.verdict is Verdict.OK


async def test_without_names_orphans_are_not_looked_for(tmp_path: Path) -> None:
    (tmp_path / "extra.png").touch()
    assert [found async for found in verified(each([]), None, tmp_path)] == []


async def test_a_folder_that_goes_while_it_is_looked_at_is_told(tmp_path: Path) -> None:
    for number in range(600):  # more than are asked about at once
        (tmp_path / f"{number}.png").touch()
    (tmp_path / "sub").mkdir()

    async def named(paths: list[str]) -> list[str]:
        if (tmp_path / "sub").exists():
            (tmp_path / "sub").rmdir()
        return paths

    found = [row async for row in verified(each([]), named, tmp_path)]
    assert all(row.verdict is Verdict.UNVERIFIABLE and row.path == tmp_path / "sub" for row in found)


@pytest.mark.parametrize("name", ["none", "file"])
async def test_a_root_that_is_no_folder_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="is not a folder"):
        await checked(tmp_path / name)


async def test_many_files_come_in_the_order_of_their_rows(tmp_path: Path) -> None:
    rows = [asset(f"{number}.png", b"x" * number) for number in range(200)]
    for number, row in enumerate(rows):
        (tmp_path / row.output_path).write_bytes(b"x" * number)
    found = await checked(tmp_path, *rows)
    assert [row.asset for row in found] == rows
    assert {row.verdict for row in found} == {Verdict.OK}


def test_hashing_takes_the_same_memory_for_any_size(tmp_path: Path) -> None:
    big = tmp_path / "big"
    with big.open("wb") as file:
        file.truncate(40 << 20)
    tracemalloc.start()
    assert len(sha256_of(big)) == 64
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 4 << 20
