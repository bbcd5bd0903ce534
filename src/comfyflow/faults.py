"""What a check of a graph may find: faults, and what only the server can decide. Pure.

Kinds carry the server's own names where it has one (POST /prompt, ComfyUI execution.py, 0.3.64 to 0.33).
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

_KEPT = 1000  # characters of a value that a fault carries; names of files are shorter
_SHOWN = 80  # characters of a value or a title that a message repeats
_COMPARED = 200  # characters; a longer text is no name that somebody mistyped
_SEARCHED = 5000  # names; a folder of models has hundreds
_SEARCHES = 50  # near matches are looked for that often in one check: each compares with every name there is


class FaultKind(StrEnum):
    """What is wrong; `server_type` tells how the server itself calls it."""

    MISSING_NODE_TYPE = "missing_node_type"
    PROMPT_NO_OUTPUTS = "prompt_no_outputs"
    DEPENDENCY_CYCLE = "dependency_cycle"
    REQUIRED_INPUT_MISSING = "required_input_missing"
    BAD_LINKED_INPUT = "bad_linked_input"
    RETURN_TYPE_MISMATCH = "return_type_mismatch"
    INVALID_INPUT_TYPE = "invalid_input_type"
    VALUE_SMALLER_THAN_MIN = "value_smaller_than_min"
    VALUE_BIGGER_THAN_MAX = "value_bigger_than_max"
    VALUE_NOT_IN_LIST = "value_not_in_list"
    CUSTOM_VALIDATION_FAILED = "custom_validation_failed"
    MISSING_MODEL = "missing_model"
    MISSING_FILE = "missing_file"
    LINK_TO_NOTHING = "link_to_nothing"
    NO_SUCH_OUTPUT = "no_such_output"
    INCOMPARABLE_VALUE = "incomparable_value"
    MALFORMED_NODE = "malformed_node"

    @property
    def server_type(self) -> str:
        """The `type` of the server's own error; faults that it runs into, without a name, are exceptions."""
        return _SERVER_TYPES.get(self, self.value)


_SERVER_TYPES = {
    FaultKind.MISSING_MODEL: "value_not_in_list",
    FaultKind.MISSING_FILE: "custom_validation_failed",
    FaultKind.LINK_TO_NOTHING: "exception_during_validation",
    FaultKind.NO_SUCH_OUTPUT: "exception_during_validation",
    FaultKind.INCOMPARABLE_VALUE: "exception_during_validation",
    FaultKind.MALFORMED_NODE: "exception_during_validation",
}


class Rule(StrEnum):
    """Why only the server can decide."""

    OWN_CHECK = "own_check"  # the class judges its inputs by code of its own (VALIDATE_INPUTS)
    FILE = "file"  # whether a file is there: subfolders, outputs and uploads are not in /object_info
    LIST = "list"  # choices that the server fetches while the page is open
    VERSION = "version"  # releases of ComfyUI differ
    REPLACED = "replaced"  # the server puts another class in its place (/node_replacements)
    DEPTH = "depth"  # the server walks a chain of nodes by recursion


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that the server refuses.

    `node_id`, `title` and `node_class` are None where the whole graph is meant, `input` where the whole node
    is. `value` is the missing file or the value refused (None where it is long, or no JSON), `folder` the
    models folder it is looked for in, `near` what the server has instead.
    """

    kind: FaultKind
    message: str
    node_id: str | None = None
    title: str | None = None
    node_class: str | None = None
    input: str | None = None
    value: Any = None
    near: tuple[str, ...] = ()
    folder: str | None = None
    pack: str | None = None


@dataclass(frozen=True, slots=True)
class Undecided:
    """One thing that only the server can decide: by which `rule`, and in `message` why.

    `kind` is the fault that it may turn out to be; None where no rule that is known here is broken.
    """

    rule: Rule
    message: str
    node_id: str
    title: str
    node_class: str
    input: str | None = None
    kind: FaultKind | None = None
    value: Any = None
    near: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Verdict:
    """All faults at once, in the order of the graph, and what is left to the server.

    The outputs (ids of output nodes) are told apart as the server does, which accepts a graph when at least
    one of them is right and silently leaves out the others: `runs` will run, `dropped` will not, and for
    `unsure` it is the server's word.
    """

    faults: tuple[Fault, ...]
    undecided: tuple[Undecided, ...]
    runs: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()
    unsure: tuple[str, ...] = ()

    @property
    def accepted(self) -> bool | None:
        """What POST /prompt would say: True (200), False (400), None when only the server can tell."""
        if self.runs:
            return True
        return None if self.unsure else False


class Near:
    """Finds names that resemble a mistyped one, for a bounded number of times; each answer is kept."""

    def __init__(self) -> None:
        self._left = _SEARCHES
        self._found: dict[tuple[str, str], tuple[str, ...]] = {}

    def find(self, value: Any, names: Iterable[Any], where: str) -> tuple[str, ...]:
        """At most three of `names` like `value`, best first: the same file in another folder, the same text
        in another case, then similar ones. `where` names the list (it is searched once for each value)."""
        if not isinstance(value, str) or not 0 < len(value) <= _COMPARED:
            return ()
        key = (where, value)
        if key not in self._found:
            self._left -= 1
            self._found[key] = _nearest(value, names) if self._left >= 0 else ()
        return self._found[key]


def _nearest(value: str, names: Iterable[Any]) -> tuple[str, ...]:
    texts = [name for name in names if isinstance(name, str)]
    same = [name for name in texts if _file(name) == _file(value)]
    return tuple(same[:3]) or tuple(difflib.get_close_matches(value, texts[:_SEARCHED], 3))


def _file(name: str) -> str:
    return name.replace("\\", "/").rpartition("/")[2].casefold()


def told(value: Any) -> str:
    """A value as a message repeats it: as it is written in Python, and never long."""
    if isinstance(value, str):
        return repr(value if len(value) <= _SHOWN else value[: _SHOWN - 1] + "…")
    if isinstance(value, int) and value.bit_length() > 256:
        return f"a whole number of {value.bit_length()} bits"
    if isinstance(value, list | tuple | dict):
        return f"{'an object' if isinstance(value, dict) else 'a list'} of {len(value)}"
    return repr(value)


def kept(value: Any) -> Any:
    """The value as a report may repeat it: a text, number, yes/no that JSON can hold and that is not long;
    else None."""
    if isinstance(value, str):
        return value if len(value) <= _KEPT else None
    if isinstance(value, int):
        return value if value.bit_length() <= 64 else None
    return value if isinstance(value, float) and math.isfinite(value) else None


def hint(near: tuple[str, ...]) -> str:
    """`; did you mean 'a' or 'b'?`, or nothing."""
    return f"; did you mean {' or '.join(told(name) for name in near)}?" if near else ""


def title_of(node: Any, node_id: str) -> str:
    """What a person calls a node, whatever it may be: its title, else its class, else its id."""
    parts = node if isinstance(node, Mapping) else {}
    meta = parts.get("_meta")
    title = meta.get("title") if isinstance(meta, Mapping) else None
    name = title if isinstance(title, str) and title else parts.get("class_type")
    text = name if isinstance(name, str) and name else node_id
    return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"
