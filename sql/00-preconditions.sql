\echo Use "CREATE EXTENSION pg_ingest CASCADE" to load this file. \quit

DO $$
BEGIN
    IF current_setting('server_encoding') <> 'UTF8' THEN
        RAISE EXCEPTION 'pg_ingest needs a database with encoding UTF8'
            USING ERRCODE = 'feature_not_supported',
                  DETAIL  = format('The encoding of database %I is %s.', current_database(), current_setting('server_encoding')),
                  HINT    = 'CREATE DATABASE … ENCODING ''UTF8'' TEMPLATE template0';
    END IF;
END $$;

COMMENT ON SCHEMA ingest IS 'pg_ingest: INSERT a document into ingest.documents, get vectors';
