"""The house rules that no linter knows: names, docstrings, documents and sizes agree with the code."""

from __future__ import annotations

import ast
import re
import subprocess
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import comfyflow
from comfyflow import errors, sim
from comfyflow.exits import ExitCode, code_of

ROOT = Path(__file__).parent.parent
SOURCES = sorted((ROOT / "src" / "comfyflow").rglob("*.py"))
TESTS = sorted((ROOT / "tests").glob("*.py"))
README = (ROOT / "README.md").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))

Function = ast.FunctionDef | ast.AsyncFunctionDef
Documented = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
BLOCKS = (ast.If, ast.For, ast.AsyncFor, ast.While, ast.With, ast.AsyncWith, ast.Try, ast.Match)

# Spelled in two parts, so that this file does not find itself.
FORBIDDEN_TEXT = [
    "pypi" + ".org",
    "python" + "hosted.org",
    "npmjs" + ".",
    "/opt/" + "pypi",
    "/work/" + "main",
]
FORBIDDEN_TEXT += ["/work/" + "shared", "/." + "pyenv", "/root" + "/", ".mirror" + "/"]


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def short(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def public_things(body: list[ast.stmt]) -> Iterator[Documented]:
    """Public functions, classes and their methods; not what is inside functions."""
    for node in body:
        if not isinstance(node, Documented) or node.name.startswith("_"):
            continue
        yield node
        if isinstance(node, ast.ClassDef):
            yield from public_things(node.body)


def constructors(body: list[ast.stmt]) -> Iterator[tuple[Function, ast.ClassDef]]:
    """The `__init__` of every public class: its parameters are documented by the class."""
    for node in body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            inits = [
                item for item in node.body if isinstance(item, ast.FunctionDef) and item.name == "__init__"
            ]
            yield from ((init, node) for init in inits)


def functions(path: Path) -> list[Function]:
    return [node for node in ast.walk(tree(path)) if isinstance(node, Function)]


def parameters(function: Function) -> list[tuple[str, str]]:
    """Names and annotations, as written."""
    spec = function.args
    arguments = [*spec.posonlyargs, *spec.args, *spec.kwonlyargs]
    return [(argument.arg, ast.unparse(argument.annotation or ast.Constant(None))) for argument in arguments]


def length(function: Function) -> int:
    """Lines without the docstring."""
    documented = ast.get_docstring(function) is not None
    first = function.body[0]
    docstring = (first.end_lineno or 0) - first.lineno + 1 if documented else 0
    return (function.end_lineno or 0) - function.lineno + 1 - docstring


def depth(node: ast.AST, above: int = 0) -> int:
    """How deep blocks stand in blocks; an elif is as deep as its if."""
    deepest = above
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (*Documented.__args__, ast.Lambda)):
            continue
        is_elif = isinstance(node, ast.If) and isinstance(child, ast.If) and node.orelse == [child]
        deepest = max(deepest, depth(child, above + (isinstance(child, BLOCKS) and not is_elif)))
    return deepest


def tracked_files() -> list[Path]:
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, text=True).stdout
    return [ROOT / name for name in names.split("\0") if name and (ROOT / name).is_file()]


def test_the_package_exports_what_it_lists_in_order() -> None:
    assert list(comfyflow.__all__) == sorted(comfyflow.__all__)
    assert all(hasattr(comfyflow, name) for name in comfyflow.__all__)


def test_type_checkers_see_the_same_names_as_programs() -> None:
    package = tree(ROOT / "src" / "comfyflow" / "__init__.py")
    imports = [node for node in ast.walk(package) if isinstance(node, ast.ImportFrom) and node.level]
    names = {alias.name for node in imports for alias in node.names}
    assert names | {"__version__"} == set(comfyflow.__all__)


@pytest.mark.parametrize(("module", "inner"), [("errors", set()), ("models", {"Submission"})])
def test_every_error_and_every_value_is_exported(module: str, inner: set[str]) -> None:
    path = ROOT / "src" / "comfyflow" / f"{module}.py"
    names = {node.name for node in tree(path).body if isinstance(node, ast.ClassDef) and node.name[0] != "_"}
    assert names - set(comfyflow.__all__) == inner


def test_the_version_is_the_same_everywhere() -> None:
    version = PROJECT["project"]["version"]
    assert comfyflow.__version__ == version
    assert f"## [{version}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def exported(path: Path) -> list[ast.stmt]:
    """What of a file is for others: everything, or in a package's file what the package passes on."""
    if path.parent.name == "comfyflow":
        return tree(path).body
    passed_on = {alias.name for node in imports_of(path.parent / "__init__.py") for alias in node.names}
    return [node for node in tree(path).body if isinstance(node, Documented) and node.name in passed_on]


def imports_of(path: Path) -> list[ast.ImportFrom]:
    return [node for node in tree(path).body if isinstance(node, ast.ImportFrom) and node.level]


@pytest.mark.parametrize("path", SOURCES, ids=short)
def test_every_public_thing_says_what_it_is_for(path: Path) -> None:
    silent = [thing.name for thing in public_things(exported(path)) if not ast.get_docstring(thing)]
    assert silent == []
    assert not tree(path).body or ast.get_docstring(tree(path))


@pytest.mark.parametrize("path", SOURCES, ids=short)
def test_every_time_and_size_parameter_has_its_unit_in_the_docstring(path: Path) -> None:
    documented = [(node, node) for node in public_things(exported(path)) if isinstance(node, Function)]
    both = [*documented, *constructors(exported(path))]
    assert [text for function, described in both for text in without_unit(function, described)] == []


def without_unit(function: Function, described: Documented) -> Iterator[str]:
    """The parameters with a name of a time or a size whose unit is told nowhere. Only for numbers."""
    text = (
        (ast.get_docstring(described) or "")
        + (ast.get_docstring(function) or "")
        + ast.unparse(function.args)
    )
    for name, kind in parameters(function):
        times = re.search(r"(^|_)(timeout|every|after)$", name) and not re.search(
            r"second|metavar", text, re.I
        )
        sizes = re.search(r"(^|_)size$", name) and "byte" not in text
        if (times or sizes) and re.search(r"float|int", kind):
            yield f"{function.name}({name})"


@pytest.mark.parametrize("path", SOURCES, ids=short)
def test_functions_are_short_and_flat(path: Path) -> None:
    assert [function.name for function in functions(path) if length(function) > 40] == []
    assert [function.name for function in functions(path) if depth(function) > 3] == []


def test_the_mean_function_is_shorter_than_ten_lines() -> None:
    lengths = [length(function) for path in SOURCES for function in functions(path)]
    assert sum(lengths) / len(lengths) < 10


def test_no_module_outgrows_its_duty() -> None:
    assert [short(path) for path in SOURCES if len(path.read_text(encoding="utf-8").splitlines()) > 600] == []


def test_every_module_has_its_test_file() -> None:
    modules = {path.stem for path in SOURCES if path.parent.name == "comfyflow" and functions(path)}
    modules -= {"__init__", "__main__"}
    modules |= {path.parent.name for path in SOURCES} - {"comfyflow"}
    tested = {path.stem.removeprefix("test_") for path in TESTS}
    assert [
        name for name in sorted(modules) if not any(t == name or t.startswith(f"{name}_") for t in tested)
    ] == []


def test_no_line_is_hidden_from_a_checker_without_a_reason() -> None:
    hidden = re.compile(r"pragma: no |# type: ignore(?!\[[\w-]+\] +(#|-) \w)|# noqa(?!: [A-Z]+\d+ +(#|-) \w)")
    found = [
        f"{short(path)}:{number}"
        for path in SOURCES
        for number, line in numbered_lines(path)
        if hidden.search(line)
    ]
    assert found == []


def numbered_lines(path: Path) -> Iterator[tuple[int, str]]:
    return enumerate(path.read_text(encoding="utf-8").splitlines(), 1)


def test_no_test_skips_or_sleeps() -> None:
    forbidden = re.compile(r"pytest\.(mark\.)?(skip|xfail|importorskip)|\bsleep\((?!0\))")
    lines = [(path, number, line) for path in TESTS for number, line in numbered_lines(path)]
    found = [f"{short(path)}:{number}" for path, number, line in lines if forbidden.search(line)]
    assert [place for place in found if not place.startswith("tests/test_house.py")] == []


def test_no_file_names_a_registry_host_or_a_path_of_one_machine() -> None:
    found = []
    for path in tracked_files():
        text = path.read_bytes().decode("utf-8", "replace")
        found += [f"{short(path)}: {word}" for word in FORBIDDEN_TEXT if word in text]
    assert found == []


@pytest.mark.parametrize("page", ["README.md", "docs/errors-and-exit-codes.md"])
def test_the_exit_codes_of_the_documents_are_those_of_the_program(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    documented = re.findall(r"^\| (\d+) \| `(\w+)` \| (.*) \|$", text, re.MULTILINE)
    assert documented == [(f"{code:d}", code.name.lower(), code.meaning) for code in ExitCode]


def test_the_table_of_errors_is_complete_and_has_their_exit_codes() -> None:
    text = (ROOT / "docs" / "errors-and-exit-codes.md").read_text(encoding="utf-8")
    documented = dict(re.findall(r"^\| `(\w+)` \|.*\| (\d+) \|$", text, re.MULTILINE))
    family = [
        thing for thing in vars(errors).values() if isinstance(thing, type) and issubclass(thing, Exception)
    ]
    codes = {error.__name__: code_of(error) for error in family if error is not errors.ComfyflowError}
    assert documented == {name: f"{code:d}" for name, code in codes.items() if code is not None}
    assert None not in codes.values()


def test_every_dev_command_of_the_readme_exists() -> None:
    commands = set(re.findall(r"^(\w+)\)", (ROOT / "dev").read_text(encoding="utf-8"), re.MULTILINE))
    named = set(re.findall(r"\./dev (\w+)", README))
    assert {"demo", "test"} <= named <= commands


def test_the_readme_lists_every_environment_variable() -> None:
    pattern = re.compile(r"\b(?:COMFYFLOW|COMFYUI)_[A-Z_]+[A-Z]\b")
    used = {name for path in SOURCES for name in pattern.findall(path.read_text(encoding="utf-8"))}
    of_the_tests = {"COMFYFLOW_TEST_SERVER", "COMFYFLOW_TEST_DATABASE"}
    assert set(pattern.findall(README)) - of_the_tests == used


def test_the_code_of_the_readme_is_a_file_of_the_examples() -> None:
    examples = [path.read_text(encoding="utf-8") for path in (ROOT / "examples").glob("*.py")]
    blocks = re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    assert blocks
    assert [block for block in blocks if not any(block.strip() in text for text in examples)] == []


def test_the_page_about_the_simulator_names_what_is_there() -> None:
    text = (ROOT / "docs" / "simulator.md").read_text(encoding="utf-8")
    assert attributes_told(text, "sim") - {"faults", "requests", "events"} - set(dir(sim.Sim)) == set()
    imported = re.findall(r"^from comfyflow\.sim import (.*)$", text, re.MULTILINE)
    assert {name for line in imported for name in line.split(", ") if not hasattr(sim, name)} == set()


def attributes_told(text: str, name: str) -> set[str]:
    """What a page says there is of an object."""
    found = set(re.findall(rf"\b{name}\.(\w+)", text)) - {"url"}
    assert found
    return found


def test_the_page_about_testing_names_what_is_there() -> None:
    text = (ROOT / "docs" / "testing.md").read_text(encoding="utf-8")
    assert attributes_told(text, "comfyui") - set(dir(sim.Sim)) == set()
    made = {"faults", "requests", "sent", "taken", "refuse_sockets", "sockets_opened"}  # by __init__
    public = made | {name for name in vars(sim.FaultProxy) if name[0] != "_"} - {"start", "stop", "url"}
    assert attributes_told(text, "proxy") | attributes_told(text, "comfyui_proxy") == public
    effects = {name for name in sim.__all__ if name[0].islower()} - {"serve"}
    assert set(re.findall(r"`(\w+)\(", text.partition("| Effect |")[2].partition("\n\n")[0])) == effects


def test_the_pinned_versions_cover_every_requirement() -> None:
    pinned = re.findall(r"^([\w-]+)==", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE)
    extras = PROJECT["project"]["optional-dependencies"].values()
    required = PROJECT["project"]["dependencies"] + [line for extra in extras for line in extra]
    assert {re.split(r"[>=<\[]", line)[0] for line in required} - set(pinned) == set()
