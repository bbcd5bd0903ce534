-- comfyflow, schema version 4: the jobs of a batch are found by the beginning of their keys.
--
-- Run it with `comfyflow db upgrade`, or by hand after 0003: psql -v ON_ERROR_STOP=1 -f sql/0004_batches.sql
-- One transaction, and running it again changes nothing. Writers wait while the index is made: seconds for millions of rows.

BEGIN;

SET LOCAL lock_timeout = '10s';

-- workflow_runs_by_key finds beginnings under the collation "C" only.
CREATE INDEX IF NOT EXISTS workflow_runs_by_batch ON workflow_runs (key text_pattern_ops) WHERE key IS NOT NULL;

INSERT INTO comfyflow_schema (version, name) VALUES (4, '0004_batches.sql') ON CONFLICT DO NOTHING;

COMMIT;
