"""Rows of a batch: what differs from job to job, from JSON Lines, CSV, a folder, or combinations of values.

Nothing is read before it is asked for, so a million rows are never a million objects. A row that cannot be
read raises, and the one behind it can be asked for all the same.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .errors import UsageError, WorkflowInvalid
from .workflow import Workflow

KEY = "key"  # the column that names a row
SEED = "seed"  # the target that stands for every seed of a workflow
SEEDS = (SEED, "noise_seed")
RANDOM = "random"
FILE = ":file"  # how a target ends whose value is the path of a local file
_RANGE = re.compile(r"(-?\d+)\.\.(-?\d+)(?:\.\.(-?\d+))?")


@dataclass(frozen=True, slots=True)
class Row:
    """One job of a batch. `values` maps a target, as `Workflow.set` takes it, to what it is to be; `texts`
    says that they are texts, to be read as the kind that the input has. `uploads` maps targets to local files
    that the inputs are to name. `number` counts from one, `place` tells people where the row stands. A row of
    a folder is a `file`."""

    number: int
    key: str | None
    values: Mapping[str, Any]
    workflow: Workflow | None
    place: str
    texts: bool = False
    file: Path | None = None
    uploads: Mapping[str, Path] = field(default_factory=dict)


def jsonl_rows(lines: Iterable[str], name: str, folder: Path = Path()) -> Iterator[Row]:
    """Rows of JSON Lines: an object a line. `name` is for messages, local files are relative to `folder`.
    Raises UsageError for a line that is none."""
    return _Rows(_numbered(lines), lambda number, part: _json_row(number, part[0], part[1], name, folder))


def csv_rows(lines: Iterable[str], name: str, folder: Path = Path()) -> Iterator[Row]:
    """Rows of CSV whose first line names the targets; an empty cell leaves the input as it is. `name` is for
    messages, local files are relative to `folder`.

    Raises UsageError for what is no such table, or a row with more cells than there are names.
    """
    table = csv.reader(_with_ends(lines), strict=True)
    header = _header(table, name)
    return _Rows(
        filter(None, _Table(table, name)),
        lambda number, cells: _csv_row(number, cells, header, f"{name}, line {table.line_num}", folder),
    )


def folder_rows(path: Path) -> Iterator[Row]:
    """A row for each `*.json` of the folder, by name. Raises UsageError when there is none."""
    files = sorted(path.glob("*.json"))
    if not files:
        raise UsageError(f"{path} has no workflow in it: a batch of a folder runs its *.json files")
    return (Row(number, None, {}, None, str(file), file=file) for number, file in enumerate(files, 1))


def matrix_rows(assignments: Sequence[str], read: Callable[[str], Iterable[str]]) -> Iterator[Row]:
    """Every combination of values, the last assignment changing fastest: `seed=1..100` (or `1..100..5`),
    `6.cfg=6,7,8`, `6.text=@prompts.txt` (one a line, by `read`). Raises UsageError."""
    sides = [_side(assignment, read) for assignment in assignments]
    targets = [target for target, _ in sides]
    twice = next((target for target in targets if targets.count(target) > 1), None)
    if twice is not None:
        raise UsageError(f"{twice} has two lists of values: give it one")
    combined = _combined([values for _, values in sides])
    return (
        _row(number, None, dict(zip(targets, values, strict=True)), _told(targets, values), texts=True)
        for number, values in enumerate(combined, 1)
    )


def ranges_apart(assignments: Iterable[str]) -> tuple[list[str], list[str]]:
    """The assignments of one value, and those of a range (`3.seed=1..100`), which make rows of their own."""
    one: list[str] = []
    many: list[str] = []
    for assignment in assignments:
        (many if _RANGE.fullmatch(assignment.partition("=")[2]) else one).append(assignment)
    return one, many


def workflow_of(row: Row, base: Workflow | None, object_info: Mapping[str, Any] | None = None) -> Workflow:
    """The workflow of a row: its own, or `base`, with its values, but not yet with its `uploads`.

    A file in UI format is converted with the node classes `object_info`.
    Raises WorkflowInvalid, which names the row, also where there is no input for one of the uploads.
    """
    if row.file is not None:
        return Workflow.load(row.file, object_info=object_info, links=False)
    workflow = row.workflow or base
    if workflow is None:
        raise UsageError(f"{row.place}: there is no workflow that its values could go into")
    try:
        for target, value in row.values.items():
            workflow = _with(workflow, target, value, row.texts)
        for target, path in row.uploads.items():
            workflow.set(target, path.name)
    except WorkflowInvalid as error:
        raise WorkflowInvalid(error.reason, path=row.place) from error
    return workflow


def with_uploads(workflow: Workflow, row: Row, references: Mapping[str, str]) -> Workflow:
    """The workflow of a row, whose `uploads` are called so on a server. Raises WorkflowInvalid."""
    try:
        for target, reference in references.items():
            workflow = workflow.set(target, reference)
    except WorkflowInvalid as error:
        raise WorkflowInvalid(error.reason, path=row.place) from error
    return workflow


def key_of(batch: str, row: Row, workflow: Workflow) -> str:
    """The idempotency key of a row: rows of a batch that compute the same are one job, unless they have keys
    of their own."""
    return f"{key_start(batch)}{row.key if row.key is not None else workflow.digest}"


def key_start(batch: str) -> str:
    """How the keys of a batch begin, and those of no other one, whatever the names and keys are."""
    return f"batch:{batch.replace('%', '%25').replace(':', '%3A')}:"


def upload_name(digest: str, path: Path) -> str:
    """What a local file is called on a server: made of the `digest` of its content (hexadecimal), so that
    no job changes what another one reads."""
    suffix = re.sub(r"[^a-z0-9.]", "", path.suffix.lower())[:10]
    return f"comfyflow-{digest[:32]}{suffix}"


class _Rows:
    """Rows made of what `parts` gives. Unlike a generator it goes on after a part that makes none."""

    def __init__(self, parts: Iterator[Any], make: Callable[[int, Any], Row]) -> None:
        self._parts, self._make, self._number = parts, make, 0

    def __iter__(self) -> Iterator[Row]:
        return self

    def __next__(self) -> Row:
        part = next(self._parts)
        self._number += 1
        return self._make(self._number, part)


class _Table:
    """The records of a CSV reader, whose errors tell the place."""

    def __init__(self, table: Any, name: str) -> None:
        self._table, self._name = table, name

    def __iter__(self) -> Iterator[list[str]]:
        return self

    def __next__(self) -> list[str]:
        try:
            record: list[str] = next(self._table)
        except csv.Error as error:
            raise UsageError(f"{self._name}, line {self._table.line_num}: this is no CSV: {error}") from error
        return record


def _numbered(lines: Iterable[str]) -> Iterator[tuple[int, str]]:
    return ((number, line) for number, line in enumerate(lines, 1) if line.strip())


def _with_ends(lines: Iterable[str]) -> Iterator[str]:
    """A cell may go over several lines; then their ends belong to it."""
    return (line if line.endswith("\n") else f"{line}\n" for line in lines)


def _row(
    number: int, key: str | None, given: Mapping[str, Any], place: str, folder: Path = Path(), *, texts: bool
) -> Row:
    """Tell files from values."""
    uploads: dict[str, Path] = {}
    for target, path in given.items():
        if target.endswith(FILE) and not (isinstance(path, str) and path):
            raise UsageError(f"{place}: {target} wants the path of a file, not {json.dumps(path)}")
        if target.endswith(FILE):
            uploads[target.removesuffix(FILE)] = folder / path
    values = {target: value for target, value in given.items() if not target.endswith(FILE)}
    return Row(number, key, values, None, place, texts=texts, uploads=uploads)


def _json_row(number: int, line: int, text: str, name: str, folder: Path) -> Row:
    place = f"{name}, line {line}"
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        reason = getattr(error, "msg", None) or "it cannot be read"
        raise UsageError(f"{place}: this is not JSON: {reason}") from error
    if not isinstance(values, dict):
        raise UsageError(f'{place}: a row is a JSON object of inputs, like {{"6.text": "a fox"}}')
    key = values.pop(KEY, None)
    if key is not None and (isinstance(key, bool) or not isinstance(key, str | int) or key == ""):
        raise UsageError(f"{place}: the key of a row is a text or a whole number, not {json.dumps(key)}")
    return _row(number, None if key is None else str(key), values, place, folder, texts=False)


def _header(table: Iterator[list[str]], name: str) -> list[str]:
    header = [cell.strip() for cell in next(filter(None, _Table(table, name)), [])]
    if header:
        header[0] = header[0].removeprefix("\ufeff")
    if not header or "" in header:
        raise UsageError(f"{name}: the first line names the inputs of the columns, like 6.text,seed")
    if len(header) == 1 and (mark := re.search(r"[;\t]", header[0])):
        sign = "a tab" if mark[0] == "\t" else mark[0]
        raise UsageError(f"{name}: {sign} stands between its columns: save it with commas, or as JSON Lines")
    twice = next((cell for cell in header if header.count(cell) > 1), None)
    if twice is not None:
        raise UsageError(f"{name}: the column {twice} is there twice")
    return header


def _csv_row(number: int, cells: list[str], header: list[str], place: str, folder: Path) -> Row:
    if len(cells) > len(header):
        more = f"{len(cells)} cells under {len(header)} names"
        raise UsageError(f'{place}: there are {more}: a text with a comma in it needs quotes ("a, b")')
    values = {name: cell for name, cell in zip(header, cells, strict=False) if cell != ""}
    return _row(number, values.pop(KEY, None), values, place, folder, texts=True)


def _side(assignment: str, read: Callable[[str], Iterable[str]]) -> tuple[str, Sequence[Any]]:
    """One dimension of a matrix: its target, and its values."""
    target, mark, text = assignment.partition("=")
    if not (mark and target.strip() and text):
        raise UsageError(
            f"{assignment!r} is no list of values: write TARGET=1..100, TARGET=a,b or TARGET=@FILE"
        )
    if text.startswith("@"):
        values: Sequence[Any] = [line.rstrip("\r\n") for line in read(text[1:]) if line.strip()]
    elif match := _RANGE.fullmatch(text):
        values = _range(assignment, *(None if number is None else int(number) for number in match.groups()))
    else:
        values = [part for part in text.split(",") if part != ""]
    if not values:
        raise UsageError(f"{assignment!r} has no value in it")
    return target.strip(), values


def _range(assignment: str, first: int | None, last: int | None, step: int | None) -> Sequence[int]:
    assert first is not None and last is not None  # the pattern has them
    size = step if step is not None else (1 if first <= last else -1)
    if size == 0:
        raise UsageError(f"{assignment!r} never gets anywhere: a step is not 0")
    return range(first, last + (1 if size > 0 else -1), size)


def _combined(sides: Sequence[Sequence[Any]]) -> Iterator[tuple[Any, ...]]:
    """Like itertools.product, which would make a tuple of each side first."""
    if not sides:
        yield ()
        return
    for value in sides[0]:
        for rest in _combined(sides[1:]):
            yield (value, *rest)


def _told(targets: Sequence[str], values: Sequence[Any]) -> str:
    return ", ".join(f"{target}={value}" for target, value in zip(targets, values, strict=True))


def _with(workflow: Workflow, target: str, value: Any, texts: bool) -> Workflow:
    if value == RANDOM and target.rpartition(".")[2] in SEEDS:
        raise WorkflowInvalid("a random seed makes another job each time that the batch runs: write numbers")
    if target == SEED:
        return workflow.seed(_seed(value))
    return workflow.set_text(f"{target}={value}") if texts else workflow.set(target, value)


def _seed(value: Any) -> Any:
    """A whole number, or "random", or what `Workflow.seed` refuses."""
    return int(value) if isinstance(value, str) and re.fullmatch(r"\s*\d+\s*", value) else value
