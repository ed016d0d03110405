-- Of test builds only: points of a document's way at which the worker can be made to wait, fail or die.

CREATE FUNCTION ingest.inject(point text, action text, skip bigint = 0) RETURNS void
LANGUAGE c VOLATILE STRICT SET search_path = pg_catalog, pg_temp AS 'MODULE_PATHNAME', 'inject_wrapper';
COMMENT ON FUNCTION ingest.inject(text, text, bigint) IS 'Has pass, wait, error or abort happen at a point (after_claim, after_split, after_admit, after_send, mid_answer, before_commit, after_commit, before_release), after so many arrivals there';
REVOKE ALL ON FUNCTION ingest.inject(text, text, bigint) FROM PUBLIC;

CREATE FUNCTION ingest.arrivals(point text) RETURNS bigint
LANGUAGE c VOLATILE STRICT SET search_path = pg_catalog, pg_temp AS 'MODULE_PATHNAME', 'arrivals_wrapper';
COMMENT ON FUNCTION ingest.arrivals(text) IS 'Arrivals at a point since the last inject()';
REVOKE ALL ON FUNCTION ingest.arrivals(text) FROM PUBLIC;

CREATE FUNCTION ingest.waiting_at(point text) RETURNS bigint
LANGUAGE c VOLATILE STRICT SET search_path = pg_catalog, pg_temp AS 'MODULE_PATHNAME', 'waiting_at_wrapper';
COMMENT ON FUNCTION ingest.waiting_at(text) IS 'Threads and tasks that wait at a point';
REVOKE ALL ON FUNCTION ingest.waiting_at(text) FROM PUBLIC;
