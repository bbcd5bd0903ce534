-- comfyflow: two roles with the least rights. Run it as the owner of the tables, after the numbered files:
--     psql -v ON_ERROR_STOP=1 -f sql/roles.sql
-- It needs the right to create roles. Then make your own users members of them:
--     CREATE ROLE n8n LOGIN PASSWORD '...' IN ROLE comfyflow_writer;
--     CREATE ROLE dashboards LOGIN PASSWORD '...' IN ROLE comfyflow_reader;
-- Nobody but the owner deletes jobs (`comfyflow db prune`) or changes tables (`comfyflow db upgrade`).
-- Running it again changes nothing; run it again after an upgrade that brings new tables.

BEGIN;

DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'comfyflow_reader') THEN
        CREATE ROLE comfyflow_reader NOLOGIN;
    END IF;
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'comfyflow_writer') THEN
        CREATE ROLE comfyflow_writer NOLOGIN;
    END IF;
    EXECUTE format('GRANT USAGE ON SCHEMA %I TO comfyflow_reader, comfyflow_writer', current_schema());
END
$$;

GRANT SELECT ON
    comfyflow_schema, workflow_runs, run_workers, run_events, generated_assets, asset_contents,
    server_checks, alerts,
    recent_assets, run_summary, asset_files
TO comfyflow_reader, comfyflow_writer;
GRANT INSERT, UPDATE ON workflow_runs, generated_assets TO comfyflow_writer;
GRANT INSERT ON run_events, asset_contents TO comfyflow_writer;
GRANT INSERT, UPDATE, DELETE ON run_workers TO comfyflow_writer;
GRANT INSERT, DELETE ON server_checks TO comfyflow_writer;
GRANT INSERT, UPDATE ON alerts TO comfyflow_writer;

COMMENT ON ROLE comfyflow_reader IS 'May read the record of comfyflow: dashboards, BI.';
COMMENT ON ROLE comfyflow_writer IS 'May read and add to the record of comfyflow: comfyflow itself, n8n.';

COMMIT;
