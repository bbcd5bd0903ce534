"""The SQL of the templates as n8n's PostgreSQL node sends it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

_TOKEN = re.compile(
    r"(\$[a-z_]*\$).*?\1|'(?:[^']|'')*'|\"[^\"]*\"|--[^\n]*|/\*.*?\*/|;|.", re.DOTALL | re.IGNORECASE
)


def statements(sql: str) -> Iterator[str]:
    """The statements of a text: cut at semicolons that are in no string, comment or body."""
    parts = [""]
    for found in _TOKEN.finditer(sql):
        if found[0] == ";":
            parts.append("")
        elif not found[0].startswith(("--", "/*")):
            parts[-1] += found[0]
    yield from (part.strip() for part in parts if part.strip())


def numbered(statement: str) -> str:
    """The statement with parameters from $1 on: one of several need not use them all."""
    used = sorted({int(number) for number in re.findall(r"\$(\d+)", statement)})
    return re.sub(r"\$(\d+)", lambda found: f"${used.index(int(found[1])) + 1}", statement)


def filled(sql: str, values: Sequence[Any]) -> str:
    """The values in place of $1, $2, ...: pg-promise writes them into the text."""
    return re.sub(r"\$(\d+)", lambda found: _literal(values[int(found[1]) - 1]), sql)


def _literal(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool | int | float):
        return json.dumps(value)
    text = value if isinstance(value, str) else json.dumps(value)
    return "'" + text.replace("'", "''") + "'"
