"""The contact sheet: what is drawn, what becomes a grey tile, and how little memory it takes."""

from __future__ import annotations

import sys
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from comfyflow import sheet
from comfyflow.errors import UsageError
from comfyflow.sheet import contact_sheet

RED, BLUE, GREY = (255, 0, 0), (0, 0, 255), (200, 200, 200)


def picture(path: Path, size: tuple[int, int] = (100, 100), colour: tuple[int, ...] = RED) -> Path:
    Image.new("RGB" if len(colour) == 3 else "RGBA", size, colour).save(path)
    return path


def colours(path: Path) -> list[tuple[int, ...]]:
    """The colour in the middle of each tile of a sheet of one row with tiles of 100 pixels."""
    with Image.open(path) as image:
        image.load()
        middles = range(8 + 50, image.width, 108)
        # a third down: the text of a grey tile stands in the middle
        return [pixel for x in middles if isinstance(pixel := image.getpixel((x, 8 + 32)), tuple)]


def test_each_file_is_a_tile_in_the_order_given(tmp_path: Path) -> None:
    items = [(picture(tmp_path / f"{n}.png", colour=c), f"no {n}") for n, c in enumerate((RED, BLUE))]
    assert contact_sheet(items, tmp_path / "sheet.png", thumb=100) == 2
    assert colours(tmp_path / "sheet.png") == [RED, BLUE]


def test_the_sheet_is_a_whole_png_of_the_expected_size(tmp_path: Path) -> None:
    path = picture(tmp_path / "a.png")
    contact_sheet([(path, "")] * 7, tmp_path / "sheet.png", columns=3, thumb=50)
    with Image.open(tmp_path / "sheet.png") as image:
        image.verify()
        assert image.size == (8 + 3 * 58, 8 + 3 * (50 + 16 + 8))


def test_captions_are_drawn_and_long_ones_stay_in_their_tile(tmp_path: Path) -> None:
    path = picture(tmp_path / "a.png")
    contact_sheet([(path, "a castle " * 50), (path, "")], tmp_path / "sheet.png", thumb=100)
    with Image.open(tmp_path / "sheet.png") as image:
        caption = (0, 8 + 100, image.width, 8 + 100 + 16)
        left, right = image.crop(caption).crop((0, 0, 110, 16)), image.crop(caption).crop((116, 0, 216, 16))
        assert len(left.getcolors() or []) > 1
        assert len(right.getcolors() or []) == 1


@pytest.mark.parametrize("suffix", ["png", "webp", "jpg", "gif"])
def test_a_broken_picture_becomes_a_grey_tile(tmp_path: Path, suffix: str) -> None:
    whole = picture(tmp_path / f"whole.{suffix}", (300, 300)).read_bytes()
    cut = tmp_path / f"cut.{suffix}"
    cut.write_bytes(whole[: len(whole) // 2])
    noise = tmp_path / f"noise.{suffix}"
    noise.write_bytes(bytes(range(256)) * 9)
    contact_sheet([(cut, ""), (noise, "")], tmp_path / "sheet.png", thumb=100)
    assert colours(tmp_path / "sheet.png") == [GREY, GREY]


@pytest.mark.parametrize("name", ["clip.mp4", "song.flac", "mesh.glb", "gone.png", "notes.txt"])
def test_what_is_no_picture_becomes_a_grey_tile(tmp_path: Path, name: str) -> None:
    if not name.startswith("gone"):
        (tmp_path / name).write_bytes(b"no picture")
    contact_sheet([(tmp_path / name, "x")], tmp_path / "sheet.png", thumb=100)
    assert colours(tmp_path / "sheet.png") == [GREY]


@pytest.mark.parametrize("limit", ["ours", "Pillow's"])
def test_a_picture_with_too_many_pixels_is_not_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    path = picture(tmp_path / "huge.png", (400, 400))
    if limit == "ours":
        monkeypatch.setattr(sheet, "MAX_PIXELS", 1000)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100_000 if limit == "ours" else 1000)
    contact_sheet([(path, "")], tmp_path / "sheet.png", thumb=100)
    monkeypatch.undo()  # the sheet itself has more pixels than that
    assert colours(tmp_path / "sheet.png") == [GREY]


def test_transparent_pixels_show_the_paper(tmp_path: Path) -> None:
    path = picture(tmp_path / "glass.png", (100, 100), (255, 0, 0, 0))
    contact_sheet([(path, "")], tmp_path / "sheet.png", thumb=100)
    assert colours(tmp_path / "sheet.png") == [(250, 250, 250)]


def test_a_name_that_is_no_unicode_is_shown_somehow(tmp_path: Path) -> None:
    contact_sheet([(tmp_path / "\udcff.png", "\ud800 lone")], tmp_path / "sheet.png", thumb=100)
    assert colours(tmp_path / "sheet.png") == [GREY]


def test_an_older_sheet_is_replaced_and_nothing_else_is_left(tmp_path: Path) -> None:
    (tmp_path / "sheet.png").write_text("old")
    contact_sheet([(picture(tmp_path / "a.png"), "")], tmp_path / "sheet.png", thumb=100)
    assert colours(tmp_path / "sheet.png") == [RED]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "sheet.png"]


def test_items_that_fail_half_way_leave_the_older_sheet(tmp_path: Path) -> None:
    def items() -> Iterator[tuple[Path, str]]:
        yield picture(tmp_path / "a.png"), ""
        raise KeyError("stop")

    (tmp_path / "sheet.png").write_text("old")
    with pytest.raises(KeyError):
        contact_sheet(items(), tmp_path / "sheet.png", columns=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "sheet.png"]
    assert (tmp_path / "sheet.png").read_text() == "old"


def test_memory_does_not_grow_with_the_number_of_pictures(tmp_path: Path) -> None:
    path = picture(tmp_path / "a.png")

    def peak(count: int) -> int:
        tracemalloc.start()
        contact_sheet(((path, "") for _ in range(count)), tmp_path / "sheet.png", columns=4, thumb=64)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    peak(4)  # what is loaded at the first use does not count
    assert peak(400) < peak(40) + 200_000


def test_no_items_are_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nothing to put on a contact sheet"):
        contact_sheet([], tmp_path / "sheet.png")


@pytest.mark.parametrize("name", ["sheet.jpg", "sheet"])
def test_only_png_can_be_written(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match=r"ends in \.png"):
        contact_sheet([(tmp_path / "a.png", "")], tmp_path / name)


def test_a_folder_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be written: No such file or directory"):
        contact_sheet([(tmp_path / "a.png", "")], tmp_path / "none" / "sheet.png")


def test_without_pillow_the_install_line_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(UsageError, match="pip install pillow"):
        contact_sheet([(tmp_path / "a.png", "")], tmp_path / "sheet.png")
