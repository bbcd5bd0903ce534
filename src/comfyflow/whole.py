"""Small files of ours that are written whole or not at all."""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from pathlib import Path


def write_whole(path: Path, *parts: bytes, suffix: str = "") -> None:
    """Write a file that its owner alone may read, and its folder where that is missing.

    Whoever reads it meanwhile finds the old one or the new one. What a kill leaves has the `suffix`. Raises
    OSError; the old file is as it was then.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(suffix=suffix, dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.writelines(parts)
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise
