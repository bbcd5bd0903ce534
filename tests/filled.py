"""A record for tests of reading and housekeeping: many jobs and files, written by one statement each."""

from __future__ import annotations

from typing import Any

from comfyflow.database import Connections

NOW = 1_800_000_000.0  # the moment of the newest row, seconds since the Unix epoch
DAY = 86_400.0

# A prompt of a usual length, the same words in each.
PROMPT = (
    "highly detailed photograph, soft morning light through tall windows, shallow depth of field, 85mm lens,"
    " film grain, muted colours, intricate texture, calm mood, volumetric fog, golden hour, reflections on"
    " wet stone, award winning composition, sharp focus on the subject, natural skin tones, 8k"
)
# One job a minute, going back from NOW: $1 jobs with the graph $2 and $3 in their prompts. Of each hundred
# one fails, one has no end.
RUNS = f"""
    INSERT INTO workflow_runs (prompt_id, client_id, server, state, graph, digest, prompt_text, error,
        execution_seconds, created_at, submitted_at, started_at, finished_at)
    SELECT 'job-' || n, 'client-' || n % 10, 'http://gpu-' || n % 4 || ':8188',
        CASE n % 100 WHEN 7 THEN 'failed' WHEN 11 THEN 'running' ELSE 'succeeded' END,
        jsonb_set($2::jsonb, '{{3,inputs,seed}}', to_jsonb(n)),
        encode(sha256(convert_to('workflow ' || n % 50, 'UTF8')), 'hex'),
        'a picture of ' || (ARRAY['cats', 'dogs', 'ships', 'towns'])[n % 4 + 1] || ' number' || n % 1000
            || ' ' || $3::text,
        CASE n % 100 WHEN 7 THEN jsonb_build_object('message', 'out of memory', 'node_id', '3') END,
        CASE n % 100 WHEN 11 THEN NULL ELSE n % 60 END,
        at, at + interval '1 s', at + interval '2 s',
        CASE n % 100 WHEN 11 THEN NULL ELSE at + interval '1 min' END
    FROM generate_series(0, $1::int - 1) AS n,
        LATERAL (SELECT to_timestamp({NOW}) - n * interval '1 min' AS at) AS moments"""
EVENTS = """
    INSERT INTO run_events (prompt_id, kind, created_at)
    SELECT prompt_id, kind, created_at + number * interval '1 s'
    FROM workflow_runs, unnest(ARRAY['submitted', 'started', 'finished']) WITH ORDINALITY AS k (kind, number)
    WHERE number < 3 OR finished_at IS NOT NULL"""
ASSETS = """
    INSERT INTO generated_assets (prompt_id, prompt_text, output_path, metadata, created_at)
    SELECT r.prompt_id, r.prompt_text, 'day-' || n / 1440 || '/' || n || '_' || f || '.png',
        jsonb_build_object('node_id', (9 + f)::text, 'node_title', 'Save ' || f,
            'filename', n || '_' || f || '.png',
            'subfolder', 'day-' || n / 1440, 'type', 'output', 'key', 'images',
            'sha256', encode(sha256(convert_to(n || ' ' || f, 'UTF8')), 'hex'), 'bytes', 1000000 + n,
            'media_type', 'image/png', 'width', 1024, 'height', 1024, 'seed', n,
            'model', (ARRAY['sdxl.safetensors', 'flux1-dev.safetensors', 'rare.safetensors'])[
                CASE WHEN n % 1000 = 5 THEN 3 ELSE n % 2 + 1 END],
            'server', r.server, 'client_id', r.client_id, 'workflow_digest', r.digest, 'reused', false,
            'folder', '/srv/pictures'),
        r.created_at + interval '50 s'
    FROM workflow_runs AS r, LATERAL (SELECT substr(r.prompt_id, 5)::int AS n) AS numbers,
        generate_series(0, $1::int - 1) AS f"""


async def fill(
    connections: Connections,
    runs: int,
    *,
    files: int = 1,
    graph: str = '{"3": {"class_type": "KSampler", "inputs": {}}}',
    prompt: str = "",
) -> None:
    """Write the jobs `job-0` (the newest) and so on, with events and files, and let PostgreSQL count them."""

    async def work(connection: Any) -> None:
        await connection.execute(RUNS, runs, graph, prompt)
        await connection.execute(EVENTS)
        await connection.execute(ASSETS, files)
        await connection.execute("VACUUM ANALYZE")  # as autovacuum does it

    await connections.run(work, repeat=False)
