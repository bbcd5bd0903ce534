"""Each pure module is covered by its own test file alone, every branch. A script; pytest does not collect it.

Coverage that comes by accident, from a test of something else, does not count: the lines that ran are kept
apart by the test file that was running ("contexts" of coverage.py), and a report looks at one file only.
"""

from __future__ import annotations

import io
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import coverage
import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "src" / "comfyflow"
AT_IMPORT = "^$"  # what ran before any test: imports, class bodies


class ContextByFile:
    """Tells coverage.py which test file is running."""

    def __init__(self, measured: coverage.Coverage) -> None:
        self.measured = measured

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        self.measured.switch_context(item.path.name)
        try:
            return (yield)
        finally:
            self.measured.switch_context("")


def pure_modules() -> list[str]:
    """The modules of import-linter's purity contract, but for those that hold nothing that could run."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    contracts = settings["tool"]["importlinter"]["contracts"]
    (pure,) = [contract for contract in contracts if contract["name"].startswith("the core is pure")]
    names = [name.removeprefix("comfyflow.") for name in pure["source_modules"]]
    return [name for name in names if any("def " in path.read_text("utf-8") for path in sources(name))]


def sources(name: str) -> list[Path]:
    """The file of a module, or all files of a package."""
    return [*PACKAGE.glob(f"{name}.py"), *PACKAGE.glob(f"{name}/**/*.py")]


def own_tests(name: str) -> list[Path]:
    """test_NAME.py; for a package also test_NAME_PART.py."""
    whole = ROOT / "tests" / f"test_{name}.py"
    parts = whole.parent.glob(f"test_{name}_*.py") if (PACKAGE / name).is_dir() else []
    return [whole, *parts]


def run(modules: list[str]) -> coverage.Coverage:
    """Run the modules' test files once, measured; exit when a test fails or a file is missing."""
    measured = coverage.Coverage(branch=True, data_file=None, source=[str(PACKAGE)])
    measured.start()
    files = [str(path) for name in modules for path in own_tests(name)]
    code = pytest.main(["-q", "-p", "no:cacheprovider", "--no-header", *files], [ContextByFile(measured)])
    measured.stop()
    if code:
        sys.exit(int(code))
    return measured


def gaps(measured: coverage.Coverage, name: str) -> str:
    """What the module's own test file leaves out, as coverage.py's table; empty when that is nothing."""
    table = io.StringIO()
    share = measured.report(
        morfs=[str(path) for path in sources(name)],
        contexts=[AT_IMPORT, *(f"^{re.escape(path.name)}$" for path in own_tests(name))],
        file=table,
        show_missing=True,
        skip_covered=False,
    )
    return table.getvalue() if share < 100 else ""  # coverage.py shows 100 only when nothing is missing


def main() -> int:
    modules = pure_modules()
    measured = run(modules)
    tables = [table for name in modules if (table := gaps(measured, name))]
    print(*tables, sep="\n")
    print(f"{len(modules) - len(tables)} of {len(modules)} pure modules are covered by their own test file")
    return 1 if tables else 0


if __name__ == "__main__":
    sys.exit(main())
