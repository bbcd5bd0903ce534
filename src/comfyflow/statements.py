"""The SQL of PostgresStore: pure text.

A write is one statement, so it is one transaction and one round trip. It is given all rows as one jsonb,
locks the runs that they are about, and writes nothing when one of them is unknown or another job's: those
come back. States only move forward, the first outcome stays, and a row is touched only where something
changes.
"""

from __future__ import annotations

from .rows import Batch

PAGE = 200  # jobs read at once

_RUNS = """
WITH runs AS MATERIALIZED ( -- beside each row what is known of it, locked
    SELECT
        run.*, here.server AS known_server, here.prompt_id IS NULL AS unknown,
        here.finished_at IS NOT NULL AND here.state <> run.state AND run.finished_at IS NOT NULL AS late,
        CASE WHEN here.prompt_id IS NULL THEN run.added IS NOT TRUE
            ELSE here.digest <> run.digest END AS wrong
    FROM jsonb_to_recordset($1::jsonb -> 'runs') AS run (
        prompt_id text, added boolean, client_id text, server text, state text, graph jsonb, digest text,
        prompt_text text, error jsonb, outcome jsonb, execution_seconds float8, created_at float8,
        submitted_at float8, started_at float8, finished_at float8, key text, worker text, replaces text,
        attempt integer, folder text, moves boolean
    ) LEFT JOIN LATERAL (
        SELECT prompt_id, server, state, digest, finished_at FROM workflow_runs AS w
        WHERE w.prompt_id = run.prompt_id
        FOR NO KEY UPDATE
    ) AS here ON true
), wrong AS MATERIALIZED (
    SELECT prompt_id, unknown FROM runs WHERE wrong
), late AS MATERIALIZED ( -- a second outcome
    SELECT prompt_id FROM runs WHERE late
)"""

_FORWARD = """
        client_id = coalesce(w.client_id, new.client_id),
        graph = coalesce(w.graph, new.graph),
        digest = coalesce(w.digest, new.digest),
        prompt_text = coalesce(w.prompt_text, new.prompt_text),
        submitted_at = coalesce(w.submitted_at, new.submitted_at),
        started_at = coalesce(w.started_at, new.started_at),
        finished_at = coalesce(w.finished_at, new.finished_at),
        state = CASE WHEN comfyflow_state_rank(new.state) > comfyflow_state_rank(w.state)
            THEN new.state ELSE w.state END,
        error = CASE WHEN w.finished_at IS NULL AND new.finished_at IS NOT NULL THEN new.error
            WHEN w.outcome IS NULL AND w.state = new.state THEN coalesce(w.error, new.error)
            ELSE w.error END,
        outcome = CASE WHEN w.finished_at IS NULL OR w.state = new.state
            THEN coalesce(w.outcome, new.outcome) ELSE w.outcome END,
        execution_seconds = CASE WHEN w.finished_at IS NULL OR w.state = new.state
            THEN coalesce(w.execution_seconds, new.execution_seconds) ELSE w.execution_seconds END
"""

_FIRST = """
        key = coalesce(w.key, new.key),
        worker = coalesce(w.worker, new.worker),
        replaces = coalesce(w.replaces, new.replaces),
        folder = coalesce(w.folder, new.folder),"""

_SOMETHING_FIRST = """num_nulls(w.key, w.worker, w.replaces, w.folder) > num_nulls(
        coalesce(w.key, new.key), coalesce(w.worker, new.worker), coalesce(w.replaces, new.replaces),
        coalesce(w.folder, new.folder)
    )"""

_SOMETHING_NEW = """(
        comfyflow_state_rank(new.state) > comfyflow_state_rank(w.state)
        OR (w.outcome IS NULL AND new.outcome IS NOT NULL AND w.state = new.state)
        OR num_nulls(w.client_id, w.graph, w.digest, w.prompt_text, w.submitted_at, w.started_at) > num_nulls(
            coalesce(w.client_id, new.client_id), coalesce(w.graph, new.graph),
            coalesce(w.digest, new.digest), coalesce(w.prompt_text, new.prompt_text),
            coalesce(w.submitted_at, new.submitted_at), coalesce(w.started_at, new.started_at)
        )
    )"""

_ANY = f""", written AS (
    INSERT INTO workflow_runs AS w (
        prompt_id, client_id, server, state, graph, digest, prompt_text, error, outcome, execution_seconds,
        created_at, submitted_at, started_at, finished_at, key, worker, replaces, attempt, folder
    )
    SELECT
        prompt_id, client_id, coalesce(known_server, server), state, graph, digest, prompt_text, error,
        outcome, execution_seconds, coalesce(to_timestamp(created_at), now()), to_timestamp(submitted_at),
        to_timestamp(started_at), to_timestamp(finished_at), key, worker, replaces, coalesce(attempt, 1),
        folder
    FROM runs WHERE state IS NOT NULL AND NOT EXISTS (SELECT FROM wrong)
        AND NOT EXISTS (SELECT FROM late WHERE late.prompt_id = runs.replaces) -- not lost: it has another end
    ON CONFLICT (prompt_id) DO UPDATE SET {(_FIRST + _FORWARD).replace("new.", "excluded.")}
    WHERE {f"{_SOMETHING_NEW} OR {_SOMETHING_FIRST}".replace("new.", "excluded.")}
)"""

# Only what is not written to in the same statement: a second change of a row would be dropped.
_MOVED = """, moved AS (
    UPDATE workflow_runs AS w SET server = run.server, client_id = run.client_id
    FROM runs AS run
    WHERE run.moves AND run.state IS NULL AND w.prompt_id = run.prompt_id AND w.state = 'created'
        AND NOT EXISTS (SELECT FROM wrong)
)"""

# The usual case is cheaper: one run that is there already.
_ONE = f""", written AS (
    UPDATE workflow_runs AS w SET {_FORWARD}
    FROM (
        SELECT client_id, state, graph, digest, prompt_text, error, outcome, execution_seconds,
            to_timestamp(submitted_at) AS submitted_at, to_timestamp(started_at) AS started_at,
            to_timestamp(finished_at) AS finished_at
        FROM runs
    ) AS new
    WHERE w.prompt_id = (SELECT prompt_id FROM runs) AND NOT EXISTS (SELECT FROM wrong) AND {_SOMETHING_NEW}
)"""

_FILED = """, filed AS (
    INSERT INTO generated_assets AS a (prompt_id, prompt_text, output_path, metadata, created_at)
    SELECT prompt_id, prompt_text, output_path, metadata, coalesce(to_timestamp(at), now())
    FROM ROWS FROM (jsonb_to_recordset($1::jsonb -> 'assets') AS (
        prompt_id text, prompt_text text, output_path text, metadata jsonb, at float8
    )) WITH ORDINALITY AS asset (prompt_id, prompt_text, output_path, metadata, at, place)
    WHERE NOT EXISTS (SELECT FROM wrong) AND prompt_id NOT IN (SELECT late.prompt_id FROM late)
    ORDER BY place
    ON CONFLICT (prompt_id, output_path) DO UPDATE SET
        prompt_text = coalesce(excluded.prompt_text, a.prompt_text),
        metadata = CASE jsonb_typeof(a.metadata) WHEN 'object' THEN a.metadata || excluded.metadata
            ELSE excluded.metadata END
    WHERE a.prompt_text IS DISTINCT FROM coalesce(excluded.prompt_text, a.prompt_text)
        OR NOT coalesce(jsonb_typeof(a.metadata) = 'object' AND a.metadata @> excluded.metadata, false)
)"""

_LOGGED = """, logged AS (
    INSERT INTO run_events (event_id, prompt_id, kind, detail, created_at)
    SELECT event_id, prompt_id, kind, detail, coalesce(to_timestamp(at), now())
    FROM ROWS FROM (jsonb_to_recordset($1::jsonb -> 'events') AS (
        event_id uuid, prompt_id text, kind text, detail jsonb, at float8, ends boolean
    )) WITH ORDINALITY AS event (event_id, prompt_id, kind, detail, at, ends, place)
    WHERE NOT EXISTS (SELECT FROM wrong)
        AND (ends IS NOT TRUE OR prompt_id NOT IN (SELECT late.prompt_id FROM late))
    ORDER BY place
    ON CONFLICT DO NOTHING
)"""

_WORKING = """, working AS (
    INSERT INTO run_workers AS k (worker, host, pid, place, alive_until)
    SELECT DISTINCT ON (worker) worker, host, pid, place, now() + make_interval(secs => seconds)
    FROM jsonb_to_recordset($1::jsonb -> 'workers') AS one (
        worker text, host text, pid integer, place text, seconds float8
    )
    WHERE NOT EXISTS (SELECT FROM wrong)
    ORDER BY worker, seconds DESC
    ON CONFLICT (worker) DO UPDATE SET alive_until = greatest(k.alive_until, excluded.alive_until)
)"""

_WRONG = " SELECT prompt_id, unknown FROM wrong"

# A row that was there, be it since a moment ago, is updated or left alone: only one that was not has no xmax.
_ANY_TOLD = _ANY.removesuffix(")") + "    RETURNING w.prompt_id, w.xmax = 0 AS new\n)"
_NEW = " UNION ALL SELECT prompt_id, NULL FROM written WHERE new"


def statement_for(batch: Batch, *, news: bool = False) -> str:
    """The statement that writes a batch: only the parts that it needs, which makes a few different ones.

    Its one parameter is `batch.to_json()`; its rows are (prompt_id, unknown) of what is wrong. With `news`
    those of added jobs that nobody knew before come too, where `unknown` is null.
    """
    parts = [_RUNS]
    news = news and any("added" in run for run in batch.runs)
    if any("state" in run for run in batch.runs):
        one = len(batch.runs) == 1 and "added" not in batch.runs[0]
        parts.append(_ONE if one else _ANY_TOLD if news else _ANY)
    if any("moves" in run for run in batch.runs):
        parts.append(_MOVED)
    if batch.assets:
        parts.append(_FILED)
    if batch.events:
        parts.append(_LOGGED)
    if batch.workers:
        parts.append(_WORKING)
    return "".join(parts) + _WRONG + (_NEW if news else "")


RENAME = """
UPDATE workflow_runs SET prompt_id = $1
WHERE prompt_id = $2 AND NOT EXISTS (SELECT FROM workflow_runs WHERE prompt_id = $1)
"""

_JOB = """
    prompt_id, client_id, server, state, graph::text AS graph, key, replaces, attempt, folder, worker,
    extract(epoch FROM created_at)::float8 AS created_at, created_at AS place
"""

_RECORD = f"""
SELECT {_JOB}, outcome::text AS outcome, error::text AS error, (
    SELECT jsonb_agg(jsonb_build_object('output_path', output_path, 'metadata', metadata) ORDER BY id)::text
    FROM generated_assets AS a WHERE a.prompt_id = w.prompt_id
) AS assets, (
    SELECT jsonb_agg(jsonb_build_object(
        'event_id', event_id, 'kind', kind, 'detail', detail, 'at', extract(epoch FROM created_at)::float8
    ) ORDER BY created_at, id)::text
    FROM run_events AS e WHERE e.prompt_id = w.prompt_id
) AS events
FROM workflow_runs AS w WHERE prompt_id = """

GET = _RECORD + "$1"

_CHAIN = """
WITH RECURSIVE chain AS ( -- a job, and what replaces it
    SELECT $1::text AS prompt_id, 0 AS place
    UNION ALL
    SELECT w.prompt_id, place + 1 FROM chain JOIN workflow_runs AS w ON w.replaces = chain.prompt_id
    WHERE place < 10000
)"""

SUCCESSOR = (
    f"{_CHAIN}{_RECORD}(SELECT c.prompt_id FROM chain AS c WHERE c.place > 0 ORDER BY c.place DESC LIMIT 1)"
)

LATEST = f"{_CHAIN}{_RECORD}(SELECT c.prompt_id FROM chain AS c ORDER BY c.place DESC LIMIT 1)"

# By the index on (digest, created_at).
SUCCEEDED = """
SELECT prompt_id FROM workflow_runs WHERE digest = $1 AND state = 'succeeded'
ORDER BY created_at DESC LIMIT $2
"""

UNFINISHED = f"""
SELECT {_JOB} FROM workflow_runs
WHERE finished_at IS NULL AND (created_at, prompt_id) > ($1, $2)
ORDER BY workflow_runs.created_at, prompt_id LIMIT {PAGE}
"""

# Who works on what. A job is free when nobody alive holds it.

TURN = (
    "SELECT pg_advisory_xact_lock(7236836093160311)"  # one claim after the other: each sees those before it
)

RENEW = """
INSERT INTO run_workers AS k (worker, host, pid, place, alive_until)
VALUES ($1, $2, $3, $4, now() + make_interval(secs => $5::float8))
ON CONFLICT (worker) DO UPDATE SET alive_until = excluded.alive_until
"""

FORGET = "DELETE FROM run_workers WHERE alive_until < now() - interval '1 day'"

RETIRE = "DELETE FROM run_workers WHERE worker = $1"

_FREE = """finished_at IS NULL AND (
        run.worker IS NULL OR run.worker = $1 OR run.worker = ANY ($2::text[]) OR NOT EXISTS (
            SELECT FROM run_workers AS k WHERE k.worker = run.worker AND k.alive_until > now()
        )
    )"""

ONE = "SELECT prompt_id FROM workflow_runs WHERE prompt_id = $1 FOR NO KEY UPDATE"

FREE = f"""
SELECT prompt_id FROM workflow_runs AS run
WHERE server = $3 AND prompt_id <> ALL ($4::text[]) AND {_FREE}
ORDER BY created_at, prompt_id LIMIT $5 FOR NO KEY UPDATE SKIP LOCKED
"""

# Asked anew, in a statement that begins behind the locks: while ONE or FREE waited for one of them, somebody
# else may have taken the job, and they do not see that worker's row.
HOLD = f"""
WITH held AS (
    UPDATE workflow_runs AS run SET worker = $1 WHERE prompt_id = ANY ($3::text[]) AND {_FREE}
    RETURNING run.*
)
SELECT {_JOB}, outcome::text AS outcome, error::text AS error FROM held ORDER BY place, prompt_id
"""

HOLDERS = """
SELECT k.worker, k.host, k.pid, k.place, count(*) AS jobs,
    greatest(0, extract(epoch FROM k.alive_until - now()))::float8 AS left
FROM workflow_runs AS run JOIN run_workers AS k USING (worker)
WHERE run.finished_at IS NULL AND run.server = $1
GROUP BY k.worker ORDER BY k.started_at, k.worker
"""
