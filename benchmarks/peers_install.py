"""Other programs' clients for ComfyUI, for comparison: installed once, outside the checkout, and kept.

They get a virtual environment of their own in the cache folder of the user, never the one of this project.
"""

from __future__ import annotations

import fcntl
import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

from platformdirs import user_cache_path

PEERS = {"comfy-api-simplified": "1.6.0", "comfykit": "0.1.12", "comfyui-utils": "0.0.1"}
# What carries their requests, so that their figures are comparable from one day to the next.
BELOW = {"aiohttp": "3.14.5", "requests": "2.34.2", "urllib3": "2.8.0", "websockets": "17.4"}
WHOLE = "whole"  # the file that says that an installation came to its end


class InstallFailed(Exception):
    """pip could not install them. The text has the end of what it said."""


def install() -> Path:
    """The Python that has them; blocks while pip is at work. Raises InstallFailed.

    Two that come at once follow one another. An install that was killed half way is begun again.
    """
    wanted = [f"{name}=={version}" for name, version in (PEERS | BELOW).items()]
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    digest = hashlib.sha256(" ".join([python, *wanted]).encode()).hexdigest()[:12]
    folder = user_cache_path("comfyflow") / f"peers-{digest}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_suffix(".lock").open("w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the kernel frees it however this process ends
        if not (folder / WHOLE).exists():
            _install(folder, wanted)
    return folder / "bin" / "python"


def _install(folder: Path, wanted: list[str]) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    # pip comes from here: a Python may be without the means to put one into a new environment.
    _run([sys.executable, "-m", "venv", "--without-pip", str(folder)])
    pip = [sys.executable, "-m", "pip", "--python", str(folder / "bin" / "python")]
    _run([*pip, "install", "--quiet", "--disable-pip-version-check", "--only-binary", ":all:", *wanted])
    (folder / WHOLE).touch()


def _run(command: list[str]) -> None:
    ended = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if ended.returncode:
        raise InstallFailed(f"{' '.join(command)} ended with {ended.returncode}:\n{ended.stdout[-4000:]}")


if __name__ == "__main__":
    print(install())
