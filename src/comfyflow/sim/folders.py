"""The three folders of a server: where nodes write, what /view may read, where uploads go."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random

from aiohttp import web

KINDS = ("output", "temp", "input")
_ANNOTATED = {f" [{kind}]": kind for kind in KINDS}
_LETTERS = "abcdefghijklmnopqrstupvxyz"  # as in ComfyUI's nodes.py


class BadName(Exception):
    """A name that ComfyUI refuses; `status` is the answer's."""

    def __init__(self, status: int) -> None:
        super().__init__(f"refused with {status}")
        self.status = status


class Stored(web.FileResponse):
    """A file as /view answers it; aiohttp does ranges, ETag and conditions, as it does for ComfyUI."""

    def __init__(self, path: Path, headers: Mapping[str, str]) -> None:
        super().__init__(path, headers=headers)
        self.path = path


@dataclass(frozen=True, slots=True)
class Spot:
    """Where to write next: `folder / f"{stem}_{counter:05}_.png"`."""

    folder: Path
    stem: str
    counter: int
    subfolder: str


class Folders:
    """output, temp and input below one root."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._last: dict[tuple[str, str], tuple[int, int, Path]] = {}
        for kind in KINDS:
            self.base(kind).mkdir(parents=True, exist_ok=True)
        self.temp_prefix = _temp_prefix()

    def base(self, kind: str) -> Path:
        """The folder of a kind. KeyError for a kind that does not exist."""
        if kind not in KINDS:
            raise KeyError(kind)
        return self.root / kind

    def boot(self) -> None:
        """What a server does when it starts: temp is emptied, output and input stay (recording 16)."""
        for path in sorted(self.base("temp").rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        self._last.clear()
        self.temp_prefix = _temp_prefix()

    def spot(self, prefix: str, kind: str = "output") -> Spot:
        """The next free counter for a prefix, counted over what lies in the folder (ComfyUI
        folder_paths.py)."""
        subfolder, _, stem = prefix.rpartition("/")
        folder = self.base(kind) / subfolder
        if not folder.resolve().is_relative_to(self.base(kind).resolve()):
            raise ValueError("Saving image outside the output folder is not allowed.")
        folder.mkdir(parents=True, exist_ok=True)
        return Spot(folder, stem, self._next(folder, stem), subfolder)

    def _next(self, folder: Path, stem: str) -> int:
        counter, stamp, path = self._last.get((str(folder), stem), (0, -1, folder))
        if stamp == folder.stat().st_mtime_ns and path.exists():
            return counter + 1  # nobody touched the folder since our own last file: no need to list it again
        pattern = re.compile(re.escape(stem) + r"_(\d+)")
        found = (pattern.match(entry.name) for entry in os.scandir(folder))
        return max((int(match[1]) for match in found if match), default=0) + 1

    def write(self, spot: Spot, name: str, data: bytes) -> None:
        """Write one file of a spot and remember how far its counter is."""
        path = spot.folder / name
        path.write_bytes(data)
        match = re.match(re.escape(spot.stem) + r"_(\d+)", name)
        counter = int(match[1]) if match else spot.counter
        self._last[str(spot.folder), spot.stem] = (counter, spot.folder.stat().st_mtime_ns, path)

    def viewed(self, query: Mapping[str, str]) -> Path:
        """The file that a /view query names (recording 20). BadName with ComfyUI's status when it may not be
        read."""
        if "filename" not in query:
            raise BadName(404)
        filename, kind = _annotated(query["filename"])
        if not filename or filename[0] == "/" or ".." in filename:
            raise BadName(400)
        kind = kind or query.get("type", "output")
        if kind not in KINDS:
            raise BadName(400)
        base = self.base(kind)
        folder = base / query.get("subfolder", "")
        if not Path(os.path.abspath(folder)).is_relative_to(base):
            raise BadName(403)
        path = folder / os.path.basename(filename)
        if "\0" in filename or len(path.name) > 255 or not path.is_file():
            raise BadName(404)
        return path

    def loaded(self, reference: str) -> Path:
        """The file that LoadImage's `image` names: `subfolder/name [type]`, the input folder by default."""
        name, kind = _annotated(reference)
        return self.base(kind or "input") / name

    def uploads(self) -> list[str]:
        """Names in the input folder, as LoadImage lists them."""
        return sorted(entry.name for entry in os.scandir(self.base("input")) if entry.is_file())

    def upload(self, name: str, data: bytes, *, kind: str, subfolder: str, overwrite: bool) -> str:
        """Store an upload and return the name it got (recording 19): another file of that name is not
        replaced."""
        base = self.base(kind)
        folder = Path(os.path.abspath(base / subfolder))
        path = Path(os.path.abspath(folder / name))
        if not folder.is_relative_to(base) or not path.is_relative_to(folder) or path == folder:
            raise BadName(400)
        folder.mkdir(parents=True, exist_ok=True)
        if not overwrite:
            path = _free(path, data)
        path.write_bytes(data)
        return str(path.relative_to(folder))


def _free(path: Path, data: bytes) -> Path:
    stem, suffix, number = path.stem, path.suffix, 1
    digest = hashlib.sha256(data).digest()
    while path.exists() and hashlib.sha256(path.read_bytes()).digest() != digest:
        path = path.with_name(f"{stem} ({number}){suffix}")
        number += 1
    return path


def _annotated(name: str) -> tuple[str, str | None]:
    for ending, kind in _ANNOTATED.items():
        if name.endswith(ending):
            return name.removesuffix(ending), kind
    return name, None


def _temp_prefix() -> str:
    letters = Random()
    return "ComfyUI_temp_" + "".join(letters.choice(_LETTERS) for _ in range(5))
