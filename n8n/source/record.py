"""The SQL of the templates. Every statement ends with one row that says `recorded: true`; when the database
is away n8n hands on what came in, which does not say so.

Parameters are jsonb texts. What is written about jobs is comfyflow's own statement, so the templates cannot
drift from the tables.
"""

from __future__ import annotations

from comfyflow.rows import Batch
from comfyflow.statements import TURN, statement_for

# Who asks: $1 = {prompt_id, worker, seconds, state, graph, server, submitted_id, anybody}
_ASKED = """jsonb_to_record($1::jsonb) AS job (
        prompt_id text, worker text, seconds float8, state text, graph boolean, server text,
        submitted_id uuid, anybody boolean
    )"""

# The lease: nobody else takes the job before it is over.
_LEASE = """
INSERT INTO run_workers AS k (worker, host, pid, alive_until)
SELECT job.worker, 'n8n', 0, now() + make_interval(secs => job.seconds)
FROM jsonb_to_record($1::jsonb) AS job (worker text, seconds float8)
ON CONFLICT (worker) DO UPDATE SET alive_until = excluded.alive_until;
"""

_RECORD = """
    true AS recorded, w.prompt_id, w.client_id, w.server, w.state, w.digest, w.attempt,
    coalesce(
        nullif(btrim(w.graph #>> ARRAY[w.error ->> 'node_id', '_meta', 'title']), ''),
        w.graph #>> ARRAY[w.error ->> 'node_id', 'class_type']
    ) AS node_title,
    w.worker = job.worker AS mine, w.error::text AS error, w.outcome::text AS outcome, w.execution_seconds,
    EXISTS (SELECT FROM run_events AS e WHERE e.prompt_id = w.prompt_id AND e.kind = 'submitted') AS sent,
    (
        SELECT jsonb_agg(
            a.metadata || jsonb_build_object('id', a.id, 'output_path', a.output_path) ORDER BY a.id
        )::text
        FROM generated_assets AS a WHERE a.prompt_id = w.prompt_id
    ) AS assets"""

KNOWN = f"""
SELECT {_RECORD}, CASE WHEN job.graph THEN w.graph::text END AS graph
FROM {_ASKED} LEFT JOIN workflow_runs AS w ON w.prompt_id = job.prompt_id
"""

# A new job, before it is sent. With an idempotency key `ids` are the id of the key and those that may replace
# a job that never came to the server; the last job of that chain is what the key stands for.
_CHAIN = """
chain AS (
    SELECT w.prompt_id, 1 AS place FROM job JOIN workflow_runs AS w
        ON w.prompt_id = job.ids ->> 0 OR (w.key = job.key AND w.replaces IS NULL)
    UNION ALL
    SELECT w.prompt_id, place + 1 FROM chain JOIN workflow_runs AS w ON w.replaces = chain.prompt_id
    WHERE place < 1000
), latest AS (
    SELECT prompt_id, place FROM chain ORDER BY place DESC LIMIT 1
)"""

BEGIN = f"""{_LEASE}
WITH RECURSIVE job AS (
    SELECT * FROM jsonb_to_record($1::jsonb) AS job (
        ids jsonb, client_id text, server text, digest text, prompt_text text, key text, worker text,
        folder text
    )
), {_CHAIN}
INSERT INTO workflow_runs (
    prompt_id, client_id, server, graph, digest, prompt_text, key, worker, replaces, attempt, folder
)
SELECT
    coalesce(job.ids ->> coalesce(latest.place, 0), gen_random_uuid()::text), job.client_id, job.server,
    $2::jsonb, job.digest, job.prompt_text, job.key, job.worker, latest.prompt_id,
    coalesce(w.attempt, 0) + 1, job.folder
FROM job LEFT JOIN latest ON true LEFT JOIN workflow_runs AS w ON w.prompt_id = latest.prompt_id
WHERE (
    latest.prompt_id IS NULL OR w.state = 'failed' AND w.digest = job.digest AND NOT EXISTS (
        SELECT FROM run_events AS e WHERE e.prompt_id = w.prompt_id AND e.kind = 'submitted'
    )
)
ON CONFLICT DO NOTHING;
WITH RECURSIVE job AS (
    SELECT * FROM jsonb_to_record($1::jsonb) AS job (ids jsonb, worker text, key text)
), {_CHAIN}
SELECT {_RECORD}
FROM job LEFT JOIN latest ON true LEFT JOIN workflow_runs AS w ON w.prompt_id = latest.prompt_id
"""

# A turn of the loop: the lease goes on, a job that nobody alive follows is taken, and the record is read.
# One claim after the other and behind the row's lock, as all programs of comfyflow do it (docs/database.md).
# `anybody`: also a job that was not n8n's, which is otherwise left to `comfyflow resume`.
TAKE = f"""
DO $do$ BEGIN PERFORM {TURN.removeprefix("SELECT ")}; END $do$;
WITH locked AS MATERIALIZED (
    SELECT w.prompt_id FROM {_ASKED} JOIN workflow_runs AS w ON w.prompt_id = job.prompt_id
    FOR NO KEY UPDATE OF w
)
INSERT INTO run_workers AS k (worker, host, pid, alive_until)
SELECT job.worker, 'n8n', 0, now() + make_interval(secs => job.seconds) FROM {_ASKED} LEFT JOIN locked ON true
ON CONFLICT (worker) DO UPDATE SET alive_until = excluded.alive_until;
UPDATE workflow_runs AS w SET worker = job.worker
FROM {_ASKED}
WHERE w.prompt_id = job.prompt_id AND w.server = job.server AND w.finished_at IS NULL
    AND w.worker IS DISTINCT FROM job.worker AND (job.anybody OR w.client_id LIKE 'n8n-%')
    AND NOT EXISTS (SELECT FROM run_workers AS k WHERE k.worker = w.worker AND k.alive_until > now());
UPDATE workflow_runs AS w
SET state = job.state,
    started_at = CASE job.state WHEN 'running' THEN coalesce(w.started_at, now()) ELSE w.started_at END
FROM {_ASKED}
WHERE w.prompt_id = job.prompt_id AND w.worker = job.worker AND w.finished_at IS NULL
    AND comfyflow_state_rank(job.state) > comfyflow_state_rank(w.state);
INSERT INTO run_events (event_id, prompt_id, kind, detail)
SELECT job.submitted_id, w.prompt_id, 'submitted', jsonb_build_object('server', w.server, 'by', 'n8n')
FROM {_ASKED} JOIN workflow_runs AS w ON w.prompt_id = job.prompt_id AND w.worker = job.worker
WHERE job.submitted_id IS NOT NULL AND job.state IN ('queued', 'running') AND NOT EXISTS (
    SELECT FROM run_events AS e WHERE e.prompt_id = w.prompt_id AND e.kind = 'submitted'
)
ON CONFLICT DO NOTHING;
{KNOWN}"""

# $1 as above, $2 = the rows (comfyflow.rows.Batch). Rows that are refused come before the last one.
_WRITE = statement_for(Batch(runs=({"added": True, "state": ""},), assets=({},), events=({},), workers=({},)))
WRITE = f"{_WRITE.replace('$1', '$2').strip()};\n{KNOWN}"
# ... after the server has chosen an id of its own, as ComfyUI did before 0.3.45
SUBMITTED = f"""
UPDATE workflow_runs SET prompt_id = $1::jsonb ->> 'prompt_id'
WHERE prompt_id = $1::jsonb ->> 'renamed_from'
    AND NOT EXISTS (SELECT FROM workflow_runs WHERE prompt_id = $1::jsonb ->> 'prompt_id');
{WRITE}"""
# ... and nobody follows the job any more
END = f"DELETE FROM run_workers WHERE worker = $1::jsonb ->> 'worker';\n{WRITE}"

# $1 = the server: a job of n8n's without an end that nobody alive follows, the longest untouched one first
FORGOTTEN = """
SELECT true AS recorded, w.prompt_id
FROM workflow_runs AS w LEFT JOIN run_workers AS k ON k.worker = w.worker AND k.alive_until > now()
WHERE w.finished_at IS NULL AND k.worker IS NULL AND w.server = $1 AND w.client_id LIKE 'n8n-%'
    AND w.updated_at < now() - interval '30 seconds' AND w.created_at > now() - interval '7 days'
ORDER BY w.updated_at LIMIT 1
"""
