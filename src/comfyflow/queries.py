"""What is asked of the record: filters in, SQL and its parameters out; rows in, values out.

Moments are seconds since the Unix epoch. Lists are newest first. Everything that a person typed goes into
parameters, never into the text of a statement.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import chain
from math import inf, isfinite
from pathlib import Path
from typing import Any, Protocol
from uuid import UUID

from .batch import key_start
from .errors import StoreError, UsageError
from .models import JobState
from .rows import cleaned
from .store import JobEvent

PAGE = 1000  # rows that are fetched at once where all are wanted
MAX_DEPTH = 100  # levels of JSON that others wrote; what is nested deeper is not read

_MOST = 2**63 - 1  # of a bigint
_FIRST, _LAST = (
    -210_866_803_200.0,
    9_224_318_016_000.0,
)  # s; a timestamptz of PostgreSQL holds 4714 BC to 294276
_ZONED = re.compile(r"[+-]\d\d(:\d\d){0,2}( BC)?")

_MODEL_SUFFIXES = (".safetensors", ".ckpt", ".sft", ".gguf", ".pt", ".pth", ".bin")
_DIGEST = re.compile(r"[0-9a-f]{1,64}")
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
# The very expression of the indexes *_words (sql/0001_record.sql): another one would not use them.
_WORDS = (
    "to_tsvector('simple'::regconfig, left({}.prompt_text, 20000))"
    " @@ websearch_to_tsquery('simple'::regconfig, {{}})"
)


class Row(Protocol):
    """A row of an answer, as asyncpg gives it."""

    def __getitem__(self, key: str, /) -> Any:
        """The value of a column."""


@dataclass(frozen=True, slots=True)
class Query:
    """A statement and its parameters. `skewed`: some values are in most rows and others in few, so the best
    plan depends on the value."""

    sql: str
    args: tuple[Any, ...] = ()
    skewed: bool = False


@dataclass(frozen=True, slots=True)
class RunFilter:
    """Which jobs. `text`: words of the prompt, as for a web search ("two words", or, -not). `digest`: the
    workflow's digest or its beginning. `batch`: the name of one. At most `limit` jobs, None for all."""

    state: JobState | None = None
    since: float | None = None
    until: float | None = None
    text: str | None = None
    digest: str | None = None
    server: str | None = None
    limit: int | None = 50
    batch: str | None = None


@dataclass(frozen=True, slots=True)
class AssetFilter:
    """Which files. `text` as in RunFilter. `model`: the name of the file, its suffix may be left out.
    `node`: id or title. `batch`: the name of one. At most `limit` files, None for all."""

    text: str | None = None
    seed: int | None = None
    model: str | None = None
    node: str | None = None
    since: float | None = None
    until: float | None = None
    prompt_id: str | None = None
    sha256: str | None = None
    limit: int | None = 50
    batch: str | None = None


@dataclass(frozen=True, slots=True)
class RunRow:
    """A job as lists show it. `execution_seconds` by the server's clock; `files` counts its assets. A lost
    job that was sent again is `replaced_by` the new one."""

    prompt_id: str
    server: str
    state: JobState
    created_at: float
    submitted_at: float | None
    started_at: float | None
    finished_at: float | None
    execution_seconds: float | None
    prompt_text: str | None
    digest: str | None
    client_id: str | None
    error_message: str | None
    error_node: str | None
    files: int
    key: str | None = None
    attempt: int = 1
    replaces: str | None = None
    replaced_by: str | None = None


@dataclass(frozen=True, slots=True)
class Stored:
    """What a row of generated_assets holds to the letter: NULL is None, `metadata` is JSON text, `created_at`
    ISO 8601, or "infinity"."""

    prompt_id: str | None
    output_path: str | None
    metadata: str | None
    created_at: str | None


@dataclass(frozen=True, slots=True)
class AssetRow:
    """A row of generated_assets. The keys of `metadata` are in docs/database.md.

    Others write into that table too: what is NULL there is "" or {} or 0.0 here, and metadata that is no
    object is {}. `stored` has it as it is.
    """

    id: int | UUID
    prompt_id: str
    prompt_text: str | None
    output_path: str
    metadata: Mapping[str, Any] = field(default_factory=dict)
    created_at: float = 0.0
    stored: Stored | None = field(default=None, compare=False, repr=False)

    @property
    def is_url(self) -> bool:
        """Whether the file is somewhere else than in a folder."""
        return _URL.match(self.output_path) is not None

    @property
    def sha256(self) -> str | None:
        """SHA-256 of the file, where the writer knew it."""
        return _text(self.metadata.get("sha256"))

    @property
    def size(self) -> int | None:
        """Bytes of the file, where the writer knew them."""
        size = self.metadata.get("bytes")
        known = isinstance(size, int) and not isinstance(size, bool) and 0 <= size <= _MOST
        return size if known else None

    def bases(self, root: Path | None) -> tuple[Path, ...]:
        """The folders that `output_path` may be meant in, the likeliest first."""
        folder = _text(self.metadata.get("folder"))
        told = () if folder is None else (Path(folder),)
        return (*(() if root is None else (root,)), *told) or (Path(),)

    def find(self, root: Path | None = None) -> Path:
        """Where the file is: in `root` (the shared folder as it is mounted here), else in the folder that its
        writer named; if it is in neither, where it should be."""
        places = [base / self.output_path for base in self.bases(root)]
        return next((place for place in places if os.path.exists(place)), places[0])


class _Conditions:
    """The clauses of a WHERE and their parameters."""

    def __init__(self) -> None:
        self.clauses: list[str] = []
        self.args: list[Any] = []

    def parameter(self, value: Any) -> str:
        self.args.append(cleaned(value) if isinstance(value, str) else value)
        return f"${len(self.args)}"

    def add(self, clause: str, value: Any) -> None:
        if value is not None:
            self.clauses.append(clause.format(self.parameter(value)))

    def contains(self, column: str, choices: list[dict[str, Any]]) -> None:
        """Any of these is in the JSON of `column`."""
        texts = [f"{column} @> {self.parameter(json.dumps(choice))}::jsonb" for choice in choices]
        self.clauses.append(f"({' OR '.join(texts)})")

    @property
    def where(self) -> str:
        return f" WHERE {' AND '.join(self.clauses)}" if self.clauses else ""


RUN_COLUMNS = """
    r.prompt_id, r.server, r.state, r.execution_seconds, r.prompt_text, r.digest, r.client_id,
    r.key, r.attempt, r.replaces,
    (SELECT s.prompt_id FROM workflow_runs AS s WHERE s.replaces = r.prompt_id) AS replaced_by,
    extract(epoch FROM r.created_at)::float8 AS created_at,
    extract(epoch FROM r.submitted_at)::float8 AS submitted_at,
    extract(epoch FROM r.started_at)::float8 AS started_at,
    extract(epoch FROM r.finished_at)::float8 AS finished_at,
    r.error ->> 'message' AS error_message, r.error ->> 'node_id' AS error_node,
    (SELECT count(*) FROM generated_assets AS a WHERE a.prompt_id = r.prompt_id) AS files"""

# A table that was there before ours may hold NULL anywhere, and moments without a time zone. `page_at` is
# text, since PostgreSQL knows moments that Python does not ("infinity", the year 12000); in JSON they are ISO
# 8601.
ASSET_COLUMNS = """
    a.id, a.prompt_id, a.prompt_text, a.output_path, a.metadata::text AS metadata,
    to_json(a.created_at) #>> '{}' AS page_at,
    coalesce(extract(epoch FROM a.created_at::timestamptz)::float8, 0) AS created_at"""


def runs_query(wanted: RunFilter) -> Query:
    """The jobs that are wanted. Raises UsageError for a digest that cannot be one."""
    found = _Conditions()
    found.add("r.state = {}", wanted.state)
    _between(found, "r.created_at", wanted.since, wanted.until)
    found.add(_WORDS.format("r"), wanted.text)
    if wanted.digest is not None:
        _by_digest(found, wanted.digest.strip().lower())
    found.add("r.server = {}", wanted.server)
    if wanted.batch is not None:
        found.clauses.append(_of_batch(found, "r", wanted.batch))
    sql = (
        f"SELECT {RUN_COLUMNS} FROM workflow_runs AS r{found.where}"
        f" ORDER BY r.created_at DESC, r.prompt_id{_limit(found, wanted.limit)}"
    )
    return Query(sql, tuple(found.args), _any(wanted.text, wanted.digest, wanted.server, wanted.batch))


def run_query(prompt_id: str) -> Query:
    """One job."""
    return Query(
        f"SELECT {RUN_COLUMNS} FROM workflow_runs AS r WHERE r.prompt_id = $1", (cleaned(prompt_id),)
    )


def assets_query(wanted: AssetFilter, *, after: tuple[str | None, Any] | None = None) -> Query:
    """The files that are wanted; `after`: `page_at` and `id` of the last row of the page before."""
    found = _Conditions()
    found.add(_WORDS.format("a"), wanted.text)
    if wanted.seed is not None:
        found.contains("a.metadata", [{"seed": wanted.seed}])
    if wanted.model is not None:
        found.add("a.metadata ->> 'model' = ANY ({}::text[])", _model_names(cleaned(wanted.model)))
    if wanted.node is not None:
        node = cleaned(wanted.node)
        found.contains("a.metadata", [{"node_id": node}, {"node_title": node}])
    _between(found, "a.created_at", wanted.since, wanted.until)
    found.add("a.prompt_id = {}", wanted.prompt_id)
    found.add("a.metadata ->> 'sha256' = {}", wanted.sha256)
    if wanted.batch is not None:
        jobs = f"SELECT b.prompt_id FROM workflow_runs AS b WHERE {_of_batch(found, 'b', wanted.batch)}"
        found.clauses.append(f"a.prompt_id IN ({jobs})")
    if after is not None:
        _follow(found, *after)
    sql = (
        f"SELECT {ASSET_COLUMNS} FROM generated_assets AS a{found.where}"
        f" ORDER BY a.created_at DESC, a.id DESC{_limit(found, wanted.limit)}"
    )
    return Query(sql, tuple(found.args), _any(wanted.text, wanted.model, wanted.node, wanted.batch))


def events_query(prompt_id: str) -> Query:
    """The log of a job, in order."""
    return Query(
        "SELECT e.prompt_id, e.kind, e.detail::text AS detail, e.event_id::text AS event_id,"
        " extract(epoch FROM e.created_at)::float8 AS at"
        " FROM run_events AS e WHERE e.prompt_id = $1 ORDER BY e.created_at, e.id",
        (cleaned(prompt_id),),
    )


def graph_query(prompt_id: str) -> Query:
    """The graph of a job, as JSON text."""
    return Query(
        "SELECT r.graph::text AS graph FROM workflow_runs AS r WHERE r.prompt_id = $1", (cleaned(prompt_id),)
    )


def named_query(paths: list[str]) -> Query:
    """Which of these paths some row names: by `output_path`, or by `folder` and that together, as
    AssetRow.find looks for a file."""
    names = [cleaned(path) for path in paths]
    ends = dict.fromkeys(end for name in names for end in (name, *_ends(name)))
    return Query(
        "SELECT DISTINCT named.path FROM generated_assets AS a, unnest(ARRAY["
        "a.output_path, rtrim(a.metadata ->> 'folder', '/') || '/' || a.output_path]) AS named (path)"
        " WHERE a.output_path = ANY ($1::text[]) AND named.path = ANY ($2::text[])",
        (list(ends), names),
    )


def _ends(path: str) -> list[str]:
    """What may be the relative part of an absolute path."""
    parts = path.split("/")[1:] if path.startswith("/") else []
    return ["/".join(parts[place:]) for place in range(len(parts))]


def run_of(row: Row) -> RunRow:
    """A row of `runs_query` as a value."""
    return RunRow(
        row["prompt_id"], row["server"], JobState(row["state"]), row["created_at"], row["submitted_at"],
        row["started_at"], row["finished_at"], row["execution_seconds"], row["prompt_text"], row["digest"],
        row["client_id"], row["error_message"], row["error_node"], row["files"],
        row["key"], row["attempt"], row["replaces"], row["replaced_by"],
    )  # fmt: skip


def asset_of(row: Row) -> AssetRow:
    """A row of `assets_query` as a value."""
    stored = Stored(row["prompt_id"], row["output_path"], row["metadata"], row["page_at"])
    return AssetRow(
        row["id"], stored.prompt_id or "", row["prompt_text"], stored.output_path or "",
        _object(stored.metadata), row["created_at"], stored,
    )  # fmt: skip


def event_of(row: Row) -> JobEvent:
    """A row of `events_query` as a value."""
    return JobEvent(row["prompt_id"], row["kind"], _object(row["detail"]), row["at"], row["event_id"])


def graph_of(row: Row) -> dict[str, Any] | None:
    """A row of `graph_query` as a value. Raises StoreError for a graph that is nested too deep."""
    try:
        graph: dict[str, Any] | None = _decoded(row["graph"] or "null")
    except RecursionError:
        raise StoreError(
            "the workflow of this job is nested too deep: read the column graph itself"
        ) from None
    return graph


def _between(found: _Conditions, column: str, since: float | None, until: float | None) -> None:
    found.add(f"{column} >= to_timestamp({{}})", _timestamp(since))
    found.add(f"{column} < to_timestamp({{}})", _timestamp(until))


def _timestamp(moment: float | None) -> float | None:
    """PostgreSQL has no moments so far away, but it has infinity."""
    if moment is None or _FIRST <= moment < _LAST:
        return moment
    return -inf if moment < 0 else inf


def _by_digest(found: _Conditions, digest: str) -> None:
    if not _DIGEST.fullmatch(digest):
        raise UsageError(f"{digest!r} is no digest: write its first characters, at most 64 of 0-9 and a-f")
    if len(digest) == 64:
        found.add("r.digest = {}", digest)
    else:  # a range: LIKE uses the index under the collation "C" only
        found.add("r.digest >= {}", digest)
        found.add("r.digest < {}", digest + "g")


def _of_batch(found: _Conditions, alias: str, batch: str) -> str:
    """The jobs of a batch, by the index of sql/0004_batches.sql: its order is that of bytes, whatever the
    collation."""
    start = key_start(batch)
    first, end = found.parameter(start), found.parameter(f"{start[:-1]};")  # the next one after ":"
    return f"{alias}.key ~>=~ {first} AND {alias}.key ~<~ {end}"


def _follow(found: _Conditions, page_at: str | None, row_id: Any) -> None:
    if page_at is None:  # NULLs come first in this order
        found.add("(a.created_at IS NOT NULL OR a.id < {})", row_id)
    else:  # in the type of the column: only moments with a zone are written with one
        kind = "timestamptz" if _ZONED.search(page_at, 11) else "timestamp"
        pair = f"({found.parameter(page_at)}::text::{kind}, {found.parameter(row_id)})"
        found.clauses.append(f"(a.created_at, a.id) < {pair}")


def _limit(found: _Conditions, limit: int | None) -> str:
    return "" if limit is None else f" LIMIT {found.parameter(min(limit, _MOST))}"


def _model_names(model: str) -> list[str]:
    if model.lower().endswith(_MODEL_SUFFIXES):
        return [model]
    return [model, *(model + suffix for suffix in _MODEL_SUFFIXES)]


def _any(*values: str | None) -> bool:
    return any(value is not None for value in values)


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def _object(text: str | None) -> dict[str, Any]:
    """An object that anybody may have written; what is none, or cannot be read, is empty."""
    try:
        found = _decoded(text or "{}")
    except RecursionError:
        return {}
    return found if isinstance(found, dict) and not _too_deep(found) else {}


def _decoded(text: str) -> Any:
    return json.loads(text, parse_int=_integer, parse_float=_fraction)


def _integer(text: str) -> int | str:
    """jsonb holds 131072 digits; Python reads 4300, and this is no number that anybody calculates with."""
    try:
        return int(text)
    except ValueError:
        return text


def _fraction(text: str) -> float | str:
    number = float(text)
    return number if isfinite(number) else text


def _too_deep(value: Any) -> bool:
    level = [value]
    for _ in range(MAX_DEPTH):
        parts = (part.values() if isinstance(part, dict) else part for part in level)
        level = [part for part in chain.from_iterable(parts) if isinstance(part, dict | list)]
        if not level:
            return False
    return True
