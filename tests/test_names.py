"""Names from a hostile server, and ordinary ones that must not change."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comfyflow.names import MAX_NAME_SIZE, numbered, safe_name, split_suffix


@pytest.mark.parametrize(
    "name",
    [
        "ComfyUI_00001_.png",
        "audio_00001.flac",
        "x (1).png",
        "Großes Bild – 猫 🐈.webp",
        "👨\u200d👩\u200d👧.png",
        "a..b.png",
        "no suffix",
        "console.png",
        "x.tar.gz",
        "e\u0301.png",
    ],
)
def test_an_ordinary_name_comes_back_unchanged(name: str) -> None:
    assert safe_name(name) == name


@pytest.mark.parametrize(
    ("hostile", "safe"),
    [
        ("../../etc/passwd", "passwd"),
        ("..\\..\\boot.ini", "boot.ini"),
        ("/etc/hostname", "hostname"),
        ("C:\\Windows\\x.png", "x.png"),
        ("C:x.png", "x.png"),
        ("a/b\\c.png", "c.png"),
        ("x.png:stream", "x.png_stream"),
        (".bashrc", "bashrc"),
        ("..", "output"),
        ("", "output"),
        ("dir/", "output"),
        (" . . ", "output"),
        ("x.png. ", "x.png"),
        ("  x.png", "x.png"),
        ("a\x00b.png", "a_b.png"),
        ("a\nb\x7f\u2028.png", "a_b__.png"),
        ("\ud800.png", "_.png"),
        ('a<b>|c?*".png', "a_b__c___.png"),
        ("exe\u202egpj.png", "exe_gpj.png"),
    ],
)
def test_what_could_do_harm_is_taken_out(hostile: str, safe: str) -> None:
    assert safe_name(hostile) == safe


@pytest.mark.parametrize("name", ["CON", "nul.png", "Com1.tar.gz", "LPT9 .txt", "aux", "COM¹.png", "conin$"])
def test_a_device_name_gets_an_underscore(name: str) -> None:
    assert safe_name(name) == f"_{name}"


def test_a_name_of_which_nothing_is_left_gets_the_suffix_of_its_kind() -> None:
    assert safe_name("..", ".png") == "output.png"
    assert safe_name("x.webp", ".png") == "x.webp"


def test_a_long_name_keeps_its_suffix_and_whole_characters() -> None:
    name = safe_name("猫" * 300 + ".png")
    assert name == "猫" * 65 + ".png"
    assert safe_name("a" * 300) == "a" * MAX_NAME_SIZE
    assert safe_name("a." + "b" * 300) == "a." + "b" * (MAX_NAME_SIZE - 2)
    assert safe_name("a" * 190 + " " * 50 + ".png") == "a" * 190 + ".png"


def test_a_long_device_name_stays_within_the_limit() -> None:
    assert safe_name("CON." + "a" * 196) == "_CON." + "a" * 195


@given(st.text(st.characters(codec=None)) | st.text("./\\:CONnul \x00猫.png", max_size=300))
def test_every_name_becomes_a_base_name_that_can_be_created(filename: str) -> None:
    name = safe_name(filename)
    assert 0 < len(name.encode()) <= MAX_NAME_SIZE
    assert name[0] not in ". "
    assert name[-1] not in ". "
    assert not set(name) & set('/\\:<>|?*"\x00')
    assert not {unicodedata.category(char) for char in name} & {"Cc", "Cs"}
    assert safe_name(name) == name


@pytest.mark.parametrize(
    ("name", "number", "expected"),
    [
        ("x.png", 1, "x (1).png"),
        ("x", 2, "x (2)"),
        ("x (1).png", 1, "x (1) (1).png"),
        ("x.tar.gz", 3, "x.tar (3).gz"),
        (".hidden", 1, ".hidden (1)"),
    ],
)
def test_a_taken_name_is_numbered_before_its_suffix(name: str, number: int, expected: str) -> None:
    assert numbered(name, number) == expected


def test_a_very_long_suffix_is_part_of_the_stem() -> None:
    assert split_suffix("a." + "b" * 21) == ("a." + "b" * 21, "")
    assert split_suffix("a.\ud800") == ("a", ".\ud800")
