-- comfyflow, schema version 2: who works on which job, idempotency keys, jobs that were sent again.
--
-- Run it with `comfyflow db upgrade`, or by hand after 0001: psql -v ON_ERROR_STOP=1 -f sql/0002_workers.sql
-- One transaction, and running it again changes nothing. No row is rewritten, so it is quick on large tables.

BEGIN;

SET LOCAL lock_timeout = '10s';

ALTER TABLE workflow_runs
    ADD COLUMN IF NOT EXISTS key text,
    ADD COLUMN IF NOT EXISTS worker text,
    ADD COLUMN IF NOT EXISTS replaces text,
    ADD COLUMN IF NOT EXISTS attempt integer NOT NULL DEFAULT 1,
    ADD COLUMN IF NOT EXISTS folder text;

DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_constraint
        WHERE conname = 'workflow_runs_replaces_a_run' AND conrelid = 'workflow_runs'::regclass) THEN
        ALTER TABLE workflow_runs
            ADD CONSTRAINT workflow_runs_replaces_a_run FOREIGN KEY (replaces) REFERENCES workflow_runs
                ON UPDATE CASCADE ON DELETE SET NULL,
            ADD CONSTRAINT workflow_runs_attempt_counts_from_one CHECK (attempt >= 1);
    END IF;
END
$$;

CREATE UNIQUE INDEX IF NOT EXISTS workflow_runs_replaced_once ON workflow_runs (replaces) WHERE replaces IS NOT NULL;
CREATE INDEX IF NOT EXISTS workflow_runs_by_key ON workflow_runs (key) WHERE key IS NOT NULL;

COMMENT ON COLUMN workflow_runs.key IS
    'The caller''s idempotency key. The prompt_id of the first job of a key is made from it, so there is only one.';
COMMENT ON COLUMN workflow_runs.worker IS 'Who works on it, or did last: run_workers.worker while that program runs.';
COMMENT ON COLUMN workflow_runs.replaces IS 'The lost job that was sent again as this one. A job is replaced once.';
COMMENT ON COLUMN workflow_runs.attempt IS '1 for a first job, one more for each that replaces another one.';
COMMENT ON COLUMN workflow_runs.folder IS 'Where its files were to be saved, on the machine that sent it.';
COMMENT ON COLUMN run_events.kind IS
    'submitted, started, download_started, download_failed, finished, failed, cancelled, lost, resubmitted, cancel_requested; others may come.';

CREATE TABLE IF NOT EXISTS run_workers (
    worker text PRIMARY KEY CHECK (worker <> ''),
    host text NOT NULL,
    pid integer NOT NULL,
    place text,
    started_at timestamptz NOT NULL DEFAULT now(),
    alive_until timestamptz NOT NULL
);

COMMENT ON TABLE run_workers IS
    'Programs that work on jobs. Nobody else takes the unfinished jobs of one before alive_until, which it moves on while it lives.';
COMMENT ON COLUMN run_workers.worker IS 'A new UUID for each.';
COMMENT ON COLUMN run_workers.host IS 'Name of its machine or container.';
COMMENT ON COLUMN run_workers.pid IS 'Number of its process there.';
COMMENT ON COLUMN run_workers.place IS
    'What lets others on the same machine see that the process is gone; NULL where that cannot be told.';
COMMENT ON COLUMN run_workers.started_at IS 'When it was written here first.';
COMMENT ON COLUMN run_workers.alive_until IS 'End of its lease. The row goes when the program ends as it should.';

INSERT INTO comfyflow_schema (version, name) VALUES (2, '0002_workers.sql') ON CONFLICT DO NOTHING;

COMMIT;
