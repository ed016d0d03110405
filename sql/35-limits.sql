-- Budgets that pipelines share by name.

CREATE FUNCTION ingest.budget_states()
RETURNS TABLE (name text, pipeline_id int, requests_last_minute bigint, tokens_last_minute bigint, requests_today bigint,
               tokens_today bigint, rate_limited bigint, cooling_down interval, target_rpm bigint, target_tpm bigint,
               target_rpd bigint, target_tpd bigint, stricter_elsewhere boolean)
LANGUAGE c VOLATILE PARALLEL RESTRICTED ROWS 10 AS 'MODULE_PATHNAME', 'budget_states_wrapper';
COMMENT ON FUNCTION ingest.budget_states() IS 'What is used of the limits that this database defines, by all databases of the server, and what the workers aim at, from shared memory; a limit that belongs to one pipeline has its number and no name';

CREATE FUNCTION ingest.set_limit(name text, rpm bigint = NULL, tpm bigint = NULL, rpd bigint = NULL, tpd bigint = NULL,
                                 utilization float8 = 0.8) RETURNS void
LANGUAGE c VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS 'MODULE_PATHNAME', 'set_limit_wrapper';
COMMENT ON FUNCTION ingest.set_limit(text, bigint, bigint, bigint, bigint, float8) IS 'Defines or redefines a budget, at once: requests and tokens per minute and per day (UTC), null for no such limit, and the share of them to use';

CREATE FUNCTION ingest.drop_limit(name text) RETURNS void
LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS 'MODULE_PATHNAME', 'drop_limit_wrapper';
COMMENT ON FUNCTION ingest.drop_limit(text) IS 'Removes a limit that no pipeline uses';

CREATE FUNCTION ingest.limit_presets() RETURNS TABLE (name text, rpm bigint, tpm bigint, rpd bigint, tpd bigint, source text, as_of text)
LANGUAGE c STABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS 'MODULE_PATHNAME', 'limit_presets_wrapper';
COMMENT ON FUNCTION ingest.limit_presets() IS 'Limits that are known by name: create_pipeline(limits => ''openai-tier-3'') defines one at its first use';

CREATE VIEW ingest.visible_limits WITH (security_barrier) AS
SELECT l.name
FROM ingest.limit_definition AS l
WHERE pg_has_role(l.owner::oid, 'USAGE') OR NOT row_security_active('ingest.documents'::regclass)
   OR EXISTS (SELECT FROM pg_roles r WHERE r.oid = l.owner::oid AND r.rolsuper)
   OR EXISTS (SELECT FROM ingest.pipeline p JOIN ingest.visible_pipelines v USING (pipeline_id) WHERE p.limits = l.name);
COMMENT ON VIEW ingest.visible_limits IS 'The limits that the current role owns, uses or, because a superuser has set them, may use';

CREATE VIEW ingest.limits WITH (security_barrier) AS
SELECT l.name, l.rpm, l.tpm, l.rpd, l.tpd, l.utilization,
       coalesce(b.requests_last_minute, 0) AS requests_last_minute, coalesce(b.tokens_last_minute, 0) AS tokens_last_minute,
       coalesce(b.requests_today, d.requests, 0) AS requests_today, coalesce(b.tokens_today, d.tokens, 0) AS tokens_today,
       coalesce(b.rate_limited, 0) AS rate_limited, date_trunc('second', clock_timestamp() + b.cooling_down) AS cooling_down_until
FROM ingest.limit_definition l
LEFT JOIN ingest.budget_states() b USING (name)
LEFT JOIN LATERAL (SELECT sum(w.requests)::bigint AS requests, sum(w.tokens)::bigint AS tokens FROM ingest.limit_day w
                   WHERE w.name = l.name AND w.day = (clock_timestamp() AT TIME ZONE 'UTC')::date) d ON true
WHERE EXISTS (SELECT FROM ingest.visible_limits v WHERE v.name = l.name)
ORDER BY l.name;
COMMENT ON VIEW ingest.limits IS 'Budgets that you own, use or may use, and what is used of them, live from shared memory, by all databases that name them';
COMMENT ON COLUMN ingest.limits.rpm IS 'requests a minute; null for no bound';
COMMENT ON COLUMN ingest.limits.tpm IS 'tokens a minute; null for no bound';
COMMENT ON COLUMN ingest.limits.rpd IS 'requests a day (UTC); null for no bound';
COMMENT ON COLUMN ingest.limits.tpd IS 'tokens a day (UTC); null for no bound';
COMMENT ON COLUMN ingest.limits.utilization IS 'the share of each figure that is used at most';
COMMENT ON COLUMN ingest.limits.requests_last_minute IS 'requests sent in the last 60 seconds';
COMMENT ON COLUMN ingest.limits.tokens_last_minute IS 'tokens sent in the last 60 seconds';
COMMENT ON COLUMN ingest.limits.requests_today IS 'requests sent since midnight UTC';
COMMENT ON COLUMN ingest.limits.tokens_today IS 'tokens sent since midnight UTC';
COMMENT ON COLUMN ingest.limits.rate_limited IS 'answers that refused a request for the moment (HTTP 429), since the server started';
COMMENT ON COLUMN ingest.limits.cooling_down_until IS 'until when nothing is sent: the provider asked for it, or the day''s budget is used up; null when nothing is in the way';
