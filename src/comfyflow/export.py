"""Lists of files for other programs: CSV and JSON Lines, a row at a time."""

from __future__ import annotations

import csv
import json
from collections.abc import AsyncIterable
from datetime import UTC, datetime
from typing import Any, TextIO

from .queries import AssetRow, Stored

COLUMNS = ("id", "prompt_id", "prompt_text", "output_path", "metadata", "created_at")

# A spreadsheet runs a cell that begins so (OWASP, "CSV Injection"), and prompts come from anybody.
_FORMULA = tuple("=+-@\t\r\n\uff1d\uff0b\uff0d\uff20")  # the last four are wide "=+-@"


async def write_csv(assets: AsyncIterable[AssetRow], stream: TextIO, *, guard: bool = True) -> int:
    """Write a head line and one line a file; returns how many files. `metadata` is JSON text.

    `guard` puts an apostrophe before a text that a spreadsheet would run as a formula; without it the texts
    are exactly those of the database, as they always are in JSON Lines. NULL is an empty cell. Open the
    stream with `newline=""`.
    """
    writer = csv.writer(stream)  # RFC 4180; with another line end a lone \r is not quoted (Python 3.11)
    writer.writerow(COLUMNS)
    count = 0
    async for asset in assets:
        writer.writerow([_guarded(value) if guard else value for value in _values(asset).values()])
        count += 1
    return count


async def write_jsonl(assets: AsyncIterable[AssetRow], stream: TextIO) -> int:
    """Write one JSON object a line, with exactly what is in the table; returns how many files.

    NULL is null, and `metadata` stands there as PostgreSQL writes it, with all digits of its numbers.
    """
    count = 0
    async for asset in assets:
        values = {name: _json(value) for name, value in _values(asset).items()}
        values["metadata"] = _metadata(asset) or "null"
        stream.write(f"{{{', '.join(f'{_json(name)}: {text}' for name, text in values.items())}}}\n")
        count += 1
    return count


def _values(asset: AssetRow) -> dict[str, Any]:
    """What the columns hold, `metadata` as JSON text."""
    stored = asset.stored or Stored(asset.prompt_id, asset.output_path, None, "")
    number = asset.id if isinstance(asset.id, int) else str(asset.id)
    moment = None if stored.created_at is None else _moment(asset.created_at, stored.created_at)
    parts = (number, stored.prompt_id, asset.prompt_text, stored.output_path, _metadata(asset), moment)
    return dict(zip(COLUMNS, parts, strict=True))


def _metadata(asset: AssetRow) -> str | None:
    return _json(dict(asset.metadata)) if asset.stored is None else asset.stored.metadata


def _moment(seconds: float, text: str) -> str:
    """In UTC; what only PostgreSQL knows ("infinity", the year 12000) stays as it is written there."""
    try:
        return datetime.fromtimestamp(seconds, UTC).isoformat()
    except (ValueError, OverflowError, OSError):
        return text


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _guarded(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value
