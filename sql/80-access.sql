-- GRANT USAGE ON SCHEMA ingest is all that an administrator says: the tables and views that are meant for users are everybody's
-- who may enter the schema, and row security decides what each sees and changes.

CREATE FUNCTION ingest.grant_pipeline(pipeline text, role regrole) RETURNS void
LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS 'MODULE_PATHNAME', 'grant_pipeline_wrapper';
COMMENT ON FUNCTION ingest.grant_pipeline(text, regrole) IS 'Lets a role see, add, change and delete documents of a pipeline, see its progress and failures, and retry() them. For the pipeline''s owner';

CREATE FUNCTION ingest.revoke_pipeline(pipeline text, role regrole) RETURNS void
LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS 'MODULE_PATHNAME', 'revoke_pipeline_wrapper';
COMMENT ON FUNCTION ingest.revoke_pipeline(text, regrole) IS 'Takes back what grant_pipeline() gave';

CREATE FUNCTION ingest.set_owner(pipeline text, owner regrole) RETURNS void
LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS 'MODULE_PATHNAME', 'set_owner_wrapper';
COMMENT ON FUNCTION ingest.set_owner(text, regrole) IS 'Gives a pipeline to another role, and its target if the former owner owns that. For superusers, and for the owner where it can SET ROLE to the other role';

-- The list of names is read once a statement, not once a row, and compared by an operator that an index and the planner know.
ALTER TABLE ingest.documents ENABLE ROW LEVEL SECURITY;
CREATE POLICY own_pipelines ON ingest.documents
    USING (pipeline = ANY ((SELECT ingest.visible_names())::text[]))
    WITH CHECK (pipeline = ANY ((SELECT ingest.visible_names())::text[]) OR ingest.refuse_pipeline(pipeline));
COMMENT ON POLICY own_pipelines ON ingest.documents IS 'Documents of pipelines that the role owns or was granted';

ALTER TABLE ingest.failures ENABLE ROW LEVEL SECURITY;
CREATE POLICY own_pipelines ON ingest.failures FOR SELECT
    USING (pipeline = ANY ((SELECT ingest.visible_names())::text[]));
COMMENT ON POLICY own_pipelines ON ingest.failures IS 'Failures of pipelines that the role owns or was granted';

-- Default privileges may have given other roles rights on all that was made above, and on the schema if this transaction made it.
DO $$
DECLARE
    given text;
BEGIN
    FOR given IN
        WITH member AS (
            SELECT d.classid, d.objid FROM pg_depend d JOIN pg_extension e ON e.oid = d.refobjid AND e.extname = 'pg_ingest'
            WHERE d.refclassid = 'pg_extension'::regclass AND d.deptype = 'e'
        ), given (kind, name, owner, grantee) AS (
            SELECT 'SCHEMA', 'ingest', n.nspowner, a.grantee
            FROM pg_namespace n, aclexplode(n.nspacl) a
            JOIN (SELECT t.defaclrole, g.* FROM pg_default_acl t, aclexplode(t.defaclacl) g WHERE t.defaclobjtype = 'n') AS t
                USING (grantee, privilege_type)
            WHERE n.nspname = 'ingest' AND n.nspowner = t.defaclrole AND age(n.xmin) <= 0
            UNION
            SELECT CASE c.relkind WHEN 'S' THEN 'SEQUENCE' ELSE 'TABLE' END, c.oid::regclass::text, c.relowner, a.grantee
            FROM member m JOIN pg_class c ON m.classid = 'pg_class'::regclass AND c.oid = m.objid, aclexplode(c.relacl) a
            WHERE c.relkind IN ('r', 'v', 'S')
            UNION
            -- What everybody may execute is said where the function is defined.
            SELECT 'ROUTINE', f.oid::regprocedure::text, f.proowner, a.grantee
            FROM member m JOIN pg_proc f ON m.classid = 'pg_proc'::regclass AND f.oid = m.objid, aclexplode(f.proacl) a
            WHERE a.grantee <> 0
        )
        SELECT format('REVOKE ALL ON %s %s FROM %s CASCADE', g.kind, g.name,
                      CASE g.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(g.grantee)) END)
        FROM given g WHERE g.grantee <> g.owner
    LOOP
        EXECUTE given;
    END LOOP;
END $$;

-- Which row of a watched table a document stands for is for watch() alone to say.
GRANT SELECT, DELETE, INSERT (id, pipeline, key, content, metadata, created_at, updated_at),
    UPDATE (id, pipeline, key, content, metadata, created_at, updated_at) ON ingest.documents TO PUBLIC;
GRANT SELECT ON ingest.failures, ingest.progress, ingest.rebuilds, ingest.watches, ingest.pipelines, ingest.limits, ingest.workers, ingest.visible_pipelines,
    ingest.visible_limits, ingest.claims, ingest.pending TO PUBLIC;
