-- Who sees which pipeline: its owner, whoever was granted it, their members, and roles that row security does not apply to
-- (superusers, BYPASSRLS, the extension's owner). What rests on it is in 80-access.sql.

CREATE TABLE ingest.pipeline_grant (
    pipeline_id int     NOT NULL REFERENCES ingest.pipeline ON DELETE CASCADE,
    grantee     regrole NOT NULL,
    PRIMARY KEY (pipeline_id, grantee)
);
COMMENT ON TABLE ingest.pipeline_grant IS 'Roles that use a pipeline without owning it; change it with ingest.grant_pipeline() and ingest.revoke_pipeline()';
-- A role that was dropped is a number there, which may be somebody else's elsewhere.
SELECT pg_catalog.pg_extension_config_dump('ingest.pipeline_grant',
    'WHERE EXISTS (SELECT FROM pg_catalog.pg_roles r WHERE r.oid OPERATOR(pg_catalog.=) grantee::pg_catalog.oid)');

-- A barrier: a function in a query's WHERE must not see the rows that are left out.
CREATE VIEW ingest.visible_pipelines WITH (security_barrier) AS
SELECT p.pipeline_id, p.name
FROM ingest.pipeline AS p
WHERE pg_has_role(p.owner::oid, 'USAGE')
   OR EXISTS (SELECT FROM ingest.pipeline_grant g
              WHERE g.pipeline_id IN (p.pipeline_id, p.successor_of) AND pg_has_role(g.grantee::oid, 'USAGE'))
   OR NOT row_security_active('ingest.documents'::regclass);
COMMENT ON VIEW ingest.visible_pipelines IS 'The pipelines whose documents the current role sees and adds to';

-- For the policies. In plpgsql, whose plans a session keeps: otherwise every statement would plan the view anew.
CREATE FUNCTION ingest.visible_names() RETURNS text[]
LANGUAGE plpgsql STABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN ARRAY(SELECT v.name FROM ingest.visible_pipelines v);
END $$;
COMMENT ON FUNCTION ingest.visible_names() IS 'Names of the pipelines whose documents the current role sees and adds to';

CREATE FUNCTION ingest.pipeline_exists(name text) RETURNS boolean
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT EXISTS (SELECT FROM ingest.pipeline p WHERE p.name = pipeline_exists.name)
$$;
COMMENT ON FUNCTION ingest.pipeline_exists(text) IS 'Whether anybody has a pipeline of this name';

CREATE FUNCTION ingest.refuse_pipeline(name text) RETURNS boolean
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF NOT ingest.pipeline_exists(name) THEN
        PERFORM ingest.unknown_pipeline(coalesce(name, 'null'));
    END IF;
    RAISE EXCEPTION 'permission denied for pipeline %', quote_literal(name)
        USING ERRCODE = 'insufficient_privilege',
              DETAIL = format('Role %I neither owns it nor was granted it.', current_user),
              HINT = format('Its owner may say: SELECT ingest.grant_pipeline(%L, %L);', name, quote_ident(current_user));
END $$;
COMMENT ON FUNCTION ingest.refuse_pipeline(text) IS 'Raises the error for a pipeline that the current role may not use, or that does not exist';

CREATE FUNCTION ingest.require_pipeline(name text) RETURNS void
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF NOT EXISTS (SELECT FROM ingest.visible_pipelines v WHERE v.name = require_pipeline.name) THEN
        PERFORM ingest.refuse_pipeline(name);
    END IF;
END $$;
COMMENT ON FUNCTION ingest.require_pipeline(text) IS 'Raises an error unless the current role owns the pipeline or was granted it';

-- Of the role that reads the message, whoever raises it.
CREATE FUNCTION ingest.pipeline_list() RETURNS text
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT string_agg(quote_literal(p.name), ', ' ORDER BY p.name)
    FROM (SELECT CASE current_setting('role') WHEN 'none' THEN session_user ELSE current_setting('role')::name END AS reader) AS r,
         ingest.pipeline AS p
    WHERE p.successor_of IS NULL
      AND (pg_has_role(r.reader, p.owner::oid, 'USAGE')
           OR EXISTS (SELECT FROM ingest.pipeline_grant g
                      WHERE g.pipeline_id = p.pipeline_id AND pg_has_role(r.reader, g.grantee::oid, 'USAGE')))
$$;
COMMENT ON FUNCTION ingest.pipeline_list() IS 'Names of pipelines that the session''s role owns or was granted, for messages; null when there are none';
