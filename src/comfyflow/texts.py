"""What the page replaces in texts when it sends them: `{a|b}`, comments, `%date:...%`, `%Node.widget%`.

Sources: formatUtil.ts (processDynamicPrompt, formatDate) and applyTextReplacements of the official frontend,
1.45.20.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Mapping
from datetime import datetime

from .ui import Graph, Node, Saved
from .widgets import Classes

_COMMENT = re.compile(r"/[/*]")
_LINE_END = re.compile(r"[\n\r\u2028\u2029]")
_ESCAPED = re.compile(r"\\([{}|])")
_PLACEHOLDER = re.compile(r"%([^%]+)%")
_DATE = re.compile(r"dd?|MM?|hh?|mm?|ss?|yyy?y?")
_UNSAFE = re.compile(r'[/?<>\\:*|"\x00-\x1F\x7F]')
_DEPTH = 50  # choices inside of choices; deeper ones stay as they are


def pick(text: str, salt: str) -> tuple[str, bool]:
    """Leave out comments and pick one of each `{a|b}`; also tells whether there was anything to choose.

    The page picks at random each time. Here the text and `salt` decide: a file is always the same prompt.
    """
    chance = random.Random(f"{salt}\n{text}".encode("utf-8", "surrogatepass"))
    chosen: list[bool] = []
    return _picked(text, chance, chosen, 0), any(chosen)


def _picked(text: str, chance: random.Random, chosen: list[bool], depth: int) -> str:
    text = _uncommented(text)
    if depth >= _DEPTH:
        return text
    made: list[str] = []
    at = 0
    while at < len(text):
        if text[at] == "\\":
            made.append(text[at : at + 2])
            at += 2
        elif text[at] == "{":
            options, at = _options(text, at + 1)
            chosen.append(len(options) > 1)
            made.append(_picked(chance.choice(options), chance, chosen, depth + 1))
        else:
            made.append(text[at])
            at += 1
    return _ESCAPED.sub(r"\1", "".join(made))


def _uncommented(text: str) -> str:
    """Leave out `/* ... */`, and `// ...` to the end of its line, in a time that only the length decides."""
    kept: list[str] = []
    at = search = 0
    last = text.rfind("*/")
    while found := _COMMENT.search(text, search):
        start, inside = found.span()
        if found[0] == "/*" and last < inside:  # it has no end, so it is no comment
            search = start + 1
            continue
        kept.append(text[at:start])
        at = search = _line_end(text, inside) if found[0] == "//" else text.index("*/", inside) + 2
    return "".join([*kept, text[at:]])


def _line_end(text: str, at: int) -> int:
    found = _LINE_END.search(text, at)
    return found.start() if found else len(text)


def _options(text: str, at: int) -> tuple[list[str], int]:
    """The options of the braces that opened before `at`, and where they end; the last may lack its brace."""
    options, start, depth = [], at, 0
    while at < len(text):
        sign = text[at]
        if sign == "}" and not depth:
            break
        if sign == "|" and not depth:
            options.append(text[start:at])
            start = at + 1
        depth += {"{": 1, "}": -1}.get(sign, 0)
        at += 2 if sign == "\\" else 1
    return [*options, text[start:at]], at + 1


class Replacements:
    """`%date:...%` and `%Node.widget%` in the file names of one workflow."""

    def __init__(self, saved: Saved, classes: Classes, now: datetime | None) -> None:
        self._saved = saved
        self._classes = classes
        self._now = now
        self._names: Mapping[str, Node] | None = None

    def applied(self, text: str) -> str:
        """The text with everything replaced that is known; what is not stays as it is."""
        return _PLACEHOLDER.sub(self._replacement, text)

    def _replacement(self, match: re.Match[str]) -> str:
        found = self._replaced(match[1])
        return match[0] if found is None else found

    def _replaced(self, text: str) -> str | None:
        name, dot, widget = text.partition(".")
        if not dot or "." in widget:
            is_date = text.startswith("date:") and self._now is not None
            return _dated(name.removeprefix("date:"), self._now) if is_date and self._now else None
        node = self._node(name)
        values = self._classes.filled(node).values if node is not None else {}
        if widget not in values:
            return None
        return _UNSAFE.sub("_", _text(values[widget]))

    def _node(self, name: str) -> Node | None:
        """The first node that was registered under this name, else the first with this title."""
        if self._names is None:
            self._names = _named(self._saved)
        return self._names.get(name)


def _named(saved: Saved) -> Mapping[str, Node]:
    found: dict[str, Node] = {}
    for node in _all(saved.root, saved):
        registered = node.properties.get("Node name for S&R", node.type)
        if isinstance(registered, str):
            found.setdefault(registered, node)
    for node in _all(saved.root, saved):
        if node.title:
            found.setdefault(node.title, node)
    return found


def _all(graph: Graph, saved: Saved) -> Iterator[Node]:
    for each in (graph, *saved.subgraphs.values()):
        yield from each.nodes.values()


def _text(value: object) -> str:
    """A value as JavaScript would write it into a text."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    whole = isinstance(value, float) and value.is_integer()
    return str(int(value)) if whole and isinstance(value, float) else str(value)


def _dated(form: str, now: datetime) -> str:
    parts = {"d": now.day, "M": now.month, "h": now.hour, "m": now.minute, "s": now.second}

    def part(match: re.Match[str]) -> str:
        text = match[0]
        if text[0] in parts:
            return f"{parts[text[0]]:0{len(text)}}"
        return {"yy": f"{now.year}"[2:], "yyyy": f"{now.year}"}.get(text, text)

    return _DATE.sub(part, form)
