"""Lists of files for other programs: CSV and JSON Lines, a row at a time."""

from __future__ import annotations

import csv
import json
from collections.abc import AsyncIterable
from datetime import UTC, datetime
from typing import Any, TextIO

from .queries import AssetRow

COLUMNS = ("id", "prompt_id", "prompt_text", "output_path", "metadata", "created_at")

# A spreadsheet runs a cell that begins so (OWASP, "CSV Injection"), and prompts come from anybody.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


async def write_csv(assets: AsyncIterable[AssetRow], stream: TextIO, *, guard: bool = True) -> int:
    """Write a head line and one line a file; returns how many files. `metadata` is JSON text.

    `guard` puts an apostrophe before a text that a spreadsheet would run as a formula; without it the texts
    are exactly those of the database, as they always are in JSON Lines. Open the stream with `newline=""`.
    """
    writer = csv.writer(stream)  # RFC 4180; with another line end a lone \r is not quoted (Python 3.11)
    writer.writerow(COLUMNS)
    count = 0
    async for asset in assets:
        values = _values(asset)
        values["metadata"] = _json(values["metadata"])
        writer.writerow([_guarded(value) if guard else value for value in values.values()])
        count += 1
    return count


async def write_jsonl(assets: AsyncIterable[AssetRow], stream: TextIO) -> int:
    """Write one JSON object a line; returns how many files."""
    count = 0
    async for asset in assets:
        stream.write(_json(_values(asset)) + "\n")
        count += 1
    return count


def _values(asset: AssetRow) -> dict[str, Any]:
    number = asset.id if isinstance(asset.id, int) else str(asset.id)
    moment = datetime.fromtimestamp(asset.created_at, UTC).isoformat()
    parts = (number, asset.prompt_id, asset.prompt_text, asset.output_path, dict(asset.metadata), moment)
    return dict(zip(COLUMNS, parts, strict=True))


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _guarded(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value
