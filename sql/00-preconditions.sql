\echo Use "CREATE EXTENSION pg_ingest CASCADE" to load this file. \quit

-- What this script says means what Postgres itself means by it: an operator or a function that somebody has put beside pgvector, and
-- that fits better, would else be run by whoever creates the extension, and stand in the views.
SELECT pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);

DO $$
DECLARE
    strangers text;
BEGIN
    IF current_setting('server_encoding') <> 'UTF8' THEN
        RAISE EXCEPTION 'pg_ingest needs a database with encoding UTF8'
            USING ERRCODE = 'feature_not_supported',
                  DETAIL  = format('The encoding of database %I is %s.', current_database(), current_setting('server_encoding')),
                  HINT    = 'CREATE DATABASE … ENCODING ''UTF8'' TEMPLATE template0';
    END IF;
    -- Whoever owns the schema, or a function in it, could have it taken for one of ours. Targets of former times may be there.
    SELECT string_agg(s.what, ', ') INTO strangers
    FROM (SELECT format('it belongs to role %I', pg_get_userbyid(n.nspowner)) AS what
          FROM pg_namespace n JOIN pg_roles r ON r.oid = n.nspowner
          WHERE n.nspname = 'ingest' AND r.rolname <> current_user AND NOT r.rolsuper
          UNION ALL
          (SELECT format('it holds the function %s', f.oid::regprocedure) FROM pg_proc f WHERE f.pronamespace = 'ingest'::regnamespace LIMIT 5)
          UNION ALL
          (SELECT format('it holds the operator %s', o.oid::regoperator) FROM pg_operator o WHERE o.oprnamespace = 'ingest'::regnamespace LIMIT 5)
          UNION ALL
          (SELECT format('it holds the type %s', t.oid::regtype)
           FROM pg_type t LEFT JOIN pg_class c ON c.oid = t.typrelid
           WHERE t.typnamespace = 'ingest'::regnamespace AND t.typelem = 0 AND (c.oid IS NULL OR c.relkind = 'c') LIMIT 5)) AS s;
    IF strangers IS NOT NULL THEN
        RAISE EXCEPTION 'schema ingest is in use by somebody else'
            USING ERRCODE = 'object_not_in_prerequisite_state',
                  DETAIL  = format('Of this schema: %s.', strangers),
                  HINT    = 'Drop or rename what is there: ALTER SCHEMA ingest RENAME TO …; then create the extension again.';
    END IF;
END $$;

COMMENT ON SCHEMA ingest IS 'pg_ingest: INSERT a document into ingest.documents, get vectors';
