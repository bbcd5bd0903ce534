"""The program that runs the JavaScript of n8n/source in tests."""

from __future__ import annotations

from pathlib import Path

import pytest
from plain_node import ScriptFailed, evaluate, node_program


def test_files_come_in_front_of_the_script_and_inputs_are_variables(tmp_path: Path) -> None:
    (tmp_path / "a.js").write_text("function twice(x) { return [x, x]; }", encoding="utf-8")
    assert evaluate([tmp_path / "a.js"], "twice(word)", word="é\ud800") == ["é\ud800", "é\ud800"]
    assert evaluate([tmp_path / "a.js"], "const [a] = await twice(5); return a;") == 5


def test_code_has_no_more_than_a_code_node_has() -> None:
    names = [
        "require",
        "process",
        "URL",
        "fetch",
        "crypto",
        "structuredClone",
        "Buffer",
        "encodeURIComponent",
    ]
    found = evaluate([], f"[{', '.join(f'typeof {name}' for name in names)}]")
    assert found == ["undefined"] * 6 + ["function"] * 2


def test_a_missing_node_is_an_error_that_says_what_to_do() -> None:
    with pytest.raises(RuntimeError, match=r"no Node \(no_such_package\).*pip install"):
        node_program("no_such_package")
    with pytest.raises(RuntimeError, match=r"no Node \(json\)"):
        node_program("json")


@pytest.mark.parametrize(
    ("script", "message"),
    [("nothing.there", "ReferenceError: nothing"), ("throw 'a text'; return 1;", "a text")],
)
def test_what_a_script_throws_is_raised(script: str, message: str) -> None:
    with pytest.raises(ScriptFailed, match=message):
        evaluate([], script)


def test_a_script_without_an_end_is_stopped() -> None:
    with pytest.raises(ScriptFailed, match=r"did not end within 0.3 s"):
        evaluate([], "for (;;) {} return 1;", timeout=0.3)


def test_a_script_without_a_result_is_told_from_one_that_gives_nothing() -> None:
    assert evaluate([], "undefined") is None
    with pytest.raises(ScriptFailed, match="without a result"):
        evaluate([], "return new Promise(() => {});")


def test_a_script_that_is_no_javascript_is_an_error() -> None:
    with pytest.raises(ScriptFailed, match="SyntaxError"):
        evaluate([], "1 +")
