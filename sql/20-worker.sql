-- The worker as SQL sees it.

CREATE FUNCTION ingest.wake() RETURNS void
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'wake_wrapper';
COMMENT ON FUNCTION ingest.wake() IS 'Wakes this database''s workers when the transaction commits; the triggers call it';

CREATE FUNCTION ingest.wake_to_review() RETURNS void
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'wake_to_review_wrapper';
COMMENT ON FUNCTION ingest.wake_to_review() IS 'Wakes this database''s workers when the transaction commits, and has them take back what they hold and should not send any more';

CREATE FUNCTION ingest.wakes_at_commit() RETURNS boolean
LANGUAGE c VOLATILE PARALLEL RESTRICTED AS 'MODULE_PATHNAME', 'wakes_at_commit_wrapper';
COMMENT ON FUNCTION ingest.wakes_at_commit() IS 'Whether this transaction has made work for the workers, who see it when it commits';

CREATE FUNCTION ingest.worker_states()
RETURNS TABLE (pid int, database text, state text, pipeline_id int, in_flight_requests int, in_flight_documents int,
               started_at timestamptz, last_error text)
LANGUAGE c VOLATILE PARALLEL RESTRICTED AS 'MODULE_PATHNAME', 'worker_states_wrapper';
COMMENT ON FUNCTION ingest.worker_states() IS 'The worker processes of the whole server, from shared memory';

CREATE FUNCTION ingest.rates()
RETURNS TABLE (pipeline_id int, documents_per_minute float8, tokens_per_minute float8, bytes_per_minute float8)
LANGUAGE c VOLATILE PARALLEL RESTRICTED AS 'MODULE_PATHNAME', 'rates_wrapper';
COMMENT ON FUNCTION ingest.rates() IS 'What the pipelines of this database got done in the last 60 seconds, per minute, from shared memory';

CREATE FUNCTION ingest.worker_problem() RETURNS text
LANGUAGE c VOLATILE PARALLEL RESTRICTED AS 'MODULE_PATHNAME', 'worker_problem_wrapper';
COMMENT ON FUNCTION ingest.worker_problem() IS 'Why no worker serves this database; null when one does';

CREATE FUNCTION ingest.is_preloaded() RETURNS boolean
LANGUAGE c STABLE PARALLEL RESTRICTED AS 'MODULE_PATHNAME', 'is_preloaded_wrapper';
COMMENT ON FUNCTION ingest.is_preloaded() IS 'Whether the server loaded pg_ingest at its start (shared_preload_libraries)';

-- Work that triggers do on a target: as the pipeline's owner and in a security-restricted context.
CREATE FUNCTION ingest.delete_chunks(pipeline_id int, keys text[]) RETURNS TABLE (chunks bigint, tokens bigint)
LANGUAGE c VOLATILE PARALLEL UNSAFE ROWS 1 SET search_path = pg_catalog, pg_temp AS 'MODULE_PATHNAME', 'delete_chunks_wrapper';
COMMENT ON FUNCTION ingest.delete_chunks(int, text[]) IS 'Removes the chunks of the documents with these keys (all when null) as the pipeline''s owner';

CREATE FUNCTION ingest.replace_metadata(pipeline_id int, keys text[], metadata text[]) RETURNS void
LANGUAGE c VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS 'MODULE_PATHNAME', 'replace_metadata_0_2_wrapper';
COMMENT ON FUNCTION ingest.replace_metadata(int, text[], text[]) IS 'Writes changed metadata, given as text, to the chunks of documents as the pipeline''s owner';

CREATE FUNCTION ingest.worker_is_archiving() RETURNS boolean
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'worker_is_archiving_wrapper';
COMMENT ON FUNCTION ingest.worker_is_archiving() IS 'True in the worker while it deletes embedded documents of a pipeline with on_success => ''delete'', whose chunks stay';

REVOKE ALL ON FUNCTION ingest.delete_chunks(int, text[]), ingest.replace_metadata(int, text[], text[]) FROM PUBLIC;

CREATE VIEW ingest.workers WITH (security_barrier) AS
SELECT w.pid, w.database, w.state, v.name AS pipeline, w.in_flight_requests, w.in_flight_documents, w.started_at, w.last_error
FROM ingest.worker_states() AS w
LEFT JOIN ingest.visible_pipelines AS v ON v.pipeline_id = w.pipeline_id AND w.database = current_database();
COMMENT ON VIEW ingest.workers IS 'The worker processes of this server, live from shared memory';
COMMENT ON COLUMN ingest.workers.state IS 'starting, idle, running, building_index, or needs_update (the SQL of the database is another release''s)';
COMMENT ON COLUMN ingest.workers.pipeline IS 'the pipeline whose documents it took last, when it is one of this database that you see';
COMMENT ON COLUMN ingest.workers.in_flight_requests IS 'embedding requests being answered';
COMMENT ON COLUMN ingest.workers.in_flight_documents IS 'documents claimed and not yet written';
COMMENT ON COLUMN ingest.workers.last_error IS 'what went wrong in this process last; for superusers, roles with BYPASSRLS and members of pg_read_all_stats';
