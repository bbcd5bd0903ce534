-- comfyflow, schema version 1: the record of jobs.
--
-- Run it with `comfyflow db upgrade`, or by hand: psql -v ON_ERROR_STOP=1 -f sql/0001_record.sql
-- One transaction, and running it again changes nothing. PostgreSQL 13 or newer; no extension is needed.
-- An applied file is never edited (`comfyflow db upgrade` compares its SHA-256): changes come in the next file.

BEGIN;

SET LOCAL lock_timeout = '10s'; -- rather fail than stand in a queue that others then stand behind

-- A table generated_assets may be there already, made by hand or by n8n: with these six columns it is used.
DO $$
DECLARE
    wanted CONSTANT text[] := ARRAY['id', 'prompt_id', 'prompt_text', 'output_path', 'metadata', 'created_at'];
    present text[];
    wrong text;
BEGIN
    IF to_regclass('generated_assets') IS NULL THEN
        RETURN;
    END IF;
    SELECT array_agg(attname::text) INTO present
    FROM pg_attribute
    WHERE attrelid = to_regclass('generated_assets') AND attnum > 0 AND NOT attisdropped;
    SELECT string_agg(line, '; ' ORDER BY line) INTO wrong
    FROM (
        SELECT 'column ' || quote_ident(name) || ' is missing' AS line
        FROM unnest(wanted) AS name WHERE name <> ALL (present)
        UNION ALL
        SELECT 'column ' || quote_ident(name) || ' is not one of the six'
        FROM unnest(present) AS name WHERE name <> ALL (wanted)
        UNION ALL
        SELECT 'column ' || quote_ident(a.attname) || ' is ' || format_type(a.atttypid, a.atttypmod)
            || ', not ' || expected.kinds[1]
        FROM (VALUES
            ('id', ARRAY['bigint', 'integer', 'uuid']),
            ('prompt_id', ARRAY['text', 'character varying']),
            ('prompt_text', ARRAY['text', 'character varying']),
            ('output_path', ARRAY['text', 'character varying']),
            ('metadata', ARRAY['jsonb']),
            ('created_at', ARRAY['timestamp with time zone', 'timestamp without time zone'])
        ) AS expected (name, kinds)
        JOIN pg_attribute AS a
            ON a.attrelid = to_regclass('generated_assets') AND a.attname = expected.name AND NOT a.attisdropped
        WHERE format_type(a.atttypid, NULL) <> ALL (expected.kinds)
        UNION ALL
        SELECT 'column id has no default'
        FROM pg_attribute AS a
        WHERE a.attrelid = to_regclass('generated_assets') AND a.attname = 'id'
            AND NOT a.atthasdef AND a.attidentity = ''
        UNION ALL
        SELECT 'it is no ordinary table'
        FROM pg_class AS c WHERE c.oid = to_regclass('generated_assets') AND c.relkind NOT IN ('r', 'p')
    ) AS faults;
    IF wrong IS NOT NULL THEN
        RAISE EXCEPTION 'the table generated_assets that is here is not comfyflow''s: %', wrong
            USING ERRCODE = 'datatype_mismatch',
                  HINT = 'Rename it or change it, or give comfyflow a database or schema of its own.';
    END IF;
    IF EXISTS (SELECT FROM generated_assets GROUP BY prompt_id, output_path HAVING count(*) > 1) THEN
        RAISE EXCEPTION 'the table generated_assets that is here holds some (prompt_id, output_path) twice'
            USING ERRCODE = 'unique_violation', HINT = 'Delete the older rows of each pair, then try again.';
    END IF;
END
$$;

CREATE TABLE IF NOT EXISTS comfyflow_schema (
    version integer PRIMARY KEY CHECK (version > 0),
    name text NOT NULL,
    sha256 text CHECK (sha256 ~ '^[0-9a-f]{64}$'),
    applied_at timestamptz NOT NULL DEFAULT now()
);

COMMENT ON TABLE comfyflow_schema IS 'Which files of sql/ were applied to this database.';
COMMENT ON COLUMN comfyflow_schema.version IS 'The number in the name of the file.';
COMMENT ON COLUMN comfyflow_schema.name IS 'The name of the file.';
COMMENT ON COLUMN comfyflow_schema.sha256 IS
    'SHA-256 of the file; NULL until "comfyflow db upgrade" has seen a file that was run by hand.';
COMMENT ON COLUMN comfyflow_schema.applied_at IS 'When it was applied.';

-- Jobs ------------------------------------------------------------------------------------------------

CREATE TABLE IF NOT EXISTS workflow_runs (
    prompt_id text PRIMARY KEY CHECK (prompt_id <> '' AND octet_length(prompt_id) <= 500),
    client_id text,
    server text NOT NULL,
    state text NOT NULL DEFAULT 'created' CHECK (state IN (
        'created', 'submitted', 'queued', 'running', 'finishing', 'succeeded', 'failed', 'cancelled', 'lost'
    )),
    graph jsonb CHECK (jsonb_typeof(graph) = 'object'),
    digest text CHECK (digest ~ '^[0-9a-f]{64}$'),
    prompt_text text,
    error jsonb CHECK (jsonb_typeof(error) = 'object'),
    outcome jsonb CHECK (jsonb_typeof(outcome) = 'object'),
    execution_seconds double precision CHECK (execution_seconds >= 0),
    created_at timestamptz NOT NULL DEFAULT now(),
    submitted_at timestamptz,
    started_at timestamptz,
    finished_at timestamptz,
    updated_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT workflow_runs_finished_at_belongs_to_an_end CHECK (
        (finished_at IS NOT NULL) = (state IN ('succeeded', 'failed', 'cancelled', 'lost'))
    ),
    CONSTRAINT workflow_runs_success_has_no_error CHECK (state <> 'succeeded' OR error IS NULL)
);

COMMENT ON TABLE workflow_runs IS 'One row a job: what was sent where, where it stands, and its one outcome.';
COMMENT ON COLUMN workflow_runs.prompt_id IS 'The id of the job on the server (ComfyUI''s prompt_id).';
COMMENT ON COLUMN workflow_runs.client_id IS 'The WebSocket client that the job was sent by.';
COMMENT ON COLUMN workflow_runs.server IS 'URL of the ComfyUI server, without user name and password.';
COMMENT ON COLUMN workflow_runs.state IS
    'created, submitted, queued, running, finishing; then one of the ends succeeded, failed, cancelled, lost. It never goes back.';
COMMENT ON COLUMN workflow_runs.graph IS
    'The workflow in API format, as it was sent; NULL when the job was seen only by its id. NUL characters and lone surrogates are replaced by U+FFFD.';
COMMENT ON COLUMN workflow_runs.digest IS
    'SHA-256 of what is computed: the same for two graphs that differ only in titles and in the order of keys.';
COMMENT ON COLUMN workflow_runs.prompt_text IS 'The positive prompt of the graph, one text a line.';
COMMENT ON COLUMN workflow_runs.error IS
    'Why it did not succeed: message, node_id, node_type, exception_type, traceback.';
COMMENT ON COLUMN workflow_runs.outcome IS
    'What the server told at the end: outputs, texts, reused_nodes, source, started_at and ended_at by its clock.';
COMMENT ON COLUMN workflow_runs.execution_seconds IS 'How long the server worked on it, in seconds by its own clock.';
COMMENT ON COLUMN workflow_runs.created_at IS 'When the job was known here, before it was sent.';
COMMENT ON COLUMN workflow_runs.submitted_at IS 'When the server had accepted it.';
COMMENT ON COLUMN workflow_runs.started_at IS 'When it was seen running.';
COMMENT ON COLUMN workflow_runs.finished_at IS 'When its end was known here; NULL until then.';
COMMENT ON COLUMN workflow_runs.updated_at IS 'When this row was last changed.';

CREATE INDEX IF NOT EXISTS workflow_runs_newest ON workflow_runs (created_at DESC, prompt_id);
CREATE INDEX IF NOT EXISTS workflow_runs_by_state ON workflow_runs (state, created_at DESC);
CREATE INDEX IF NOT EXISTS workflow_runs_unfinished ON workflow_runs (created_at) WHERE finished_at IS NULL;
CREATE INDEX IF NOT EXISTS workflow_runs_by_digest ON workflow_runs (digest, created_at DESC);
CREATE INDEX IF NOT EXISTS workflow_runs_finished ON workflow_runs (finished_at) WHERE finished_at IS NOT NULL;
CREATE INDEX IF NOT EXISTS workflow_runs_words ON workflow_runs
    USING gin (to_tsvector('simple'::regconfig, left(prompt_text, 20000)));

CREATE OR REPLACE FUNCTION comfyflow_state_rank(state text) RETURNS integer
    LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT CASE state
        WHEN 'created' THEN 0 WHEN 'submitted' THEN 1 WHEN 'queued' THEN 2
        WHEN 'running' THEN 3 WHEN 'finishing' THEN 4 ELSE 5
    END
$$;

COMMENT ON FUNCTION comfyflow_state_rank(text) IS
    'Height of a state of workflow_runs; every end has the same, highest one.';

CREATE OR REPLACE FUNCTION comfyflow_run_moves_forward() RETURNS trigger
    LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    IF TG_OP = 'UPDATE' AND NEW.state <> OLD.state
        AND comfyflow_state_rank(NEW.state) <= comfyflow_state_rank(OLD.state) THEN
        RAISE EXCEPTION 'run % is %: it cannot become % any more', OLD.prompt_id, OLD.state, NEW.state
            USING ERRCODE = 'check_violation', CONSTRAINT = 'workflow_runs_moves_forward';
    END IF;
    IF NEW.finished_at IS NULL AND NEW.state IN ('succeeded', 'failed', 'cancelled', 'lost') THEN
        NEW.finished_at := now();
    END IF;
    NEW.updated_at := now();
    RETURN NEW;
END
$$;

COMMENT ON FUNCTION comfyflow_run_moves_forward() IS
    'Trigger of workflow_runs: refuses a step back or a second end, fills finished_at and updated_at.';

DROP TRIGGER IF EXISTS workflow_runs_moves_forward ON workflow_runs;
CREATE TRIGGER workflow_runs_moves_forward BEFORE INSERT OR UPDATE ON workflow_runs
    FOR EACH ROW EXECUTE FUNCTION comfyflow_run_moves_forward();

-- What happened ---------------------------------------------------------------------------------------

CREATE TABLE IF NOT EXISTS run_events (
    id bigint GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY,
    event_id uuid NOT NULL DEFAULT gen_random_uuid() UNIQUE,
    prompt_id text NOT NULL REFERENCES workflow_runs ON UPDATE CASCADE ON DELETE CASCADE,
    kind text NOT NULL CHECK (kind <> '' AND octet_length(kind) <= 200),
    detail jsonb NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(detail) = 'object'),
    created_at timestamptz NOT NULL DEFAULT now()
);

COMMENT ON TABLE run_events IS 'The log of each job: one row an event, never changed.';
COMMENT ON COLUMN run_events.id IS 'In the order of writing.';
COMMENT ON COLUMN run_events.event_id IS 'Given by the writer, so that an event that is written again is there once.';
COMMENT ON COLUMN run_events.prompt_id IS 'The job.';
COMMENT ON COLUMN run_events.kind IS
    'submitted, started, download_started, download_failed, finished, failed, cancelled, lost; others may come.';
COMMENT ON COLUMN run_events.detail IS 'What else is to be said, by kind: server, files, reason, ...';
COMMENT ON COLUMN run_events.created_at IS 'When it happened, by the clock of who wrote it.';

CREATE INDEX IF NOT EXISTS run_events_of_a_run ON run_events (prompt_id, created_at, id);
CREATE INDEX IF NOT EXISTS run_events_by_kind ON run_events (kind, created_at DESC);

-- Files -----------------------------------------------------------------------------------------------

CREATE TABLE IF NOT EXISTS generated_assets (
    id bigint GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY,
    prompt_id text NOT NULL CHECK (prompt_id <> ''),
    prompt_text text,
    output_path text NOT NULL CHECK (output_path <> ''),
    metadata jsonb NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(metadata) = 'object'),
    created_at timestamptz NOT NULL DEFAULT now(),
    -- the unique index below cannot hold longer ones
    CONSTRAINT generated_assets_path_fits_its_index CHECK (
        octet_length(prompt_id) + octet_length(output_path) <= 2500
    )
);

COMMENT ON TABLE generated_assets IS
    'One row a file that a job made. No foreign key: n8n and others may write rows of their own.';
COMMENT ON COLUMN generated_assets.id IS 'Number of the row.';
COMMENT ON COLUMN generated_assets.prompt_id IS 'The job that made it (workflow_runs.prompt_id where comfyflow ran it).';
COMMENT ON COLUMN generated_assets.prompt_text IS 'The positive prompt, one text a line.';
COMMENT ON COLUMN generated_assets.output_path IS
    'Where the file is: relative to the shared folder, with / between folders; or a URL.';
COMMENT ON COLUMN generated_assets.metadata IS
    'node_id, node_title, filename, sha256, bytes, media_type, width, height, duration, seed, model, server, client_id, workflow_digest, reused and more: see docs/database.md.';
COMMENT ON COLUMN generated_assets.created_at IS 'When the row was written first.';

CREATE UNIQUE INDEX IF NOT EXISTS generated_assets_once ON generated_assets (prompt_id, output_path);
CREATE INDEX IF NOT EXISTS generated_assets_newest ON generated_assets (created_at DESC, id DESC);
CREATE INDEX IF NOT EXISTS generated_assets_by_path ON generated_assets (output_path);
CREATE INDEX IF NOT EXISTS generated_assets_by_content ON generated_assets ((metadata ->> 'sha256'));
CREATE INDEX IF NOT EXISTS generated_assets_by_model ON generated_assets ((metadata ->> 'model'), created_at DESC, id DESC);
CREATE INDEX IF NOT EXISTS generated_assets_metadata ON generated_assets USING gin (metadata jsonb_path_ops);
CREATE INDEX IF NOT EXISTS generated_assets_words ON generated_assets
    USING gin (to_tsvector('simple'::regconfig, left(prompt_text, 20000)));

CREATE TABLE IF NOT EXISTS asset_contents (
    sha256 text NOT NULL CHECK (sha256 ~ '^[0-9a-f]{64}$'),
    part integer NOT NULL CHECK (part >= 0),
    bytes bigint NOT NULL CHECK (bytes >= 0),
    data bytea NOT NULL CHECK (octet_length(data) <= 1048576),
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (sha256, part)
);

ALTER TABLE asset_contents ALTER COLUMN data SET STORAGE EXTERNAL; -- pictures do not get smaller

COMMENT ON TABLE asset_contents IS
    'The bytes of files, where "--keep-content" asks for it: once for each content, in parts of 1 MiB.';
COMMENT ON COLUMN asset_contents.sha256 IS 'SHA-256 of the whole file: generated_assets.metadata ->> ''sha256''.';
COMMENT ON COLUMN asset_contents.part IS '0, 1, 2, ... in the order of the file.';
COMMENT ON COLUMN asset_contents.bytes IS 'Size of the whole file in bytes.';
COMMENT ON COLUMN asset_contents.data IS 'The bytes of this part.';
COMMENT ON COLUMN asset_contents.created_at IS 'When it was stored.';

-- For people ------------------------------------------------------------------------------------------

CREATE OR REPLACE VIEW recent_assets AS
SELECT
    a.id,
    a.created_at,
    a.prompt_id,
    a.output_path,
    a.prompt_text,
    a.metadata ->> 'node_title' AS node_title,
    a.metadata ->> 'media_type' AS media_type,
    CASE jsonb_typeof(a.metadata -> 'width') WHEN 'number' THEN (a.metadata ->> 'width')::numeric END AS width,
    CASE jsonb_typeof(a.metadata -> 'height') WHEN 'number' THEN (a.metadata ->> 'height')::numeric END AS height,
    CASE jsonb_typeof(a.metadata -> 'bytes') WHEN 'number' THEN (a.metadata ->> 'bytes')::numeric END AS bytes,
    CASE jsonb_typeof(a.metadata -> 'seed') WHEN 'number' THEN (a.metadata ->> 'seed')::numeric END AS seed,
    a.metadata ->> 'model' AS model,
    coalesce(r.server, a.metadata ->> 'server') AS server,
    r.state,
    r.execution_seconds
FROM (SELECT * FROM generated_assets ORDER BY created_at DESC, id DESC LIMIT 1000) AS a
LEFT JOIN workflow_runs AS r USING (prompt_id)
ORDER BY a.created_at DESC, a.id DESC;

COMMENT ON VIEW recent_assets IS 'The newest 1000 files, with what people ask for in columns of their own.';

CREATE OR REPLACE VIEW run_summary AS
SELECT
    digest,
    server,
    count(*) AS runs,
    count(*) FILTER (WHERE state = 'succeeded') AS succeeded,
    count(*) FILTER (WHERE state = 'failed') AS failed,
    count(*) FILTER (WHERE state = 'cancelled') AS cancelled,
    count(*) FILTER (WHERE state = 'lost') AS lost,
    count(*) FILTER (WHERE finished_at IS NULL) AS unfinished,
    avg(execution_seconds) FILTER (WHERE state = 'succeeded') AS mean_seconds,
    percentile_cont(0.95) WITHIN GROUP (ORDER BY execution_seconds)
        FILTER (WHERE state = 'succeeded') AS p95_seconds,
    min(created_at) AS first_run_at,
    max(created_at) AS last_run_at
FROM workflow_runs
GROUP BY digest, server;

COMMENT ON VIEW run_summary IS
    'For each workflow (by digest) and server: how many runs, how they ended, mean and 95th percentile of execution_seconds of the successful ones.';

CREATE OR REPLACE VIEW asset_files AS
SELECT sha256, bytes, string_agg(data, ''::bytea ORDER BY part) AS data, min(created_at) AS created_at
FROM asset_contents
GROUP BY sha256, bytes;

COMMENT ON VIEW asset_files IS 'asset_contents with the parts put together: one row a file, for files that fit into memory.';

INSERT INTO comfyflow_schema (version, name) VALUES (1, '0001_record.sql') ON CONFLICT DO NOTHING;

COMMIT;
