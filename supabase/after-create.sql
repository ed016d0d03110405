-- What supautils runs as the superuser after CREATE EXTENSION pg_ingest by a role that is none:
-- <supautils.extension_custom_scripts_path>/pg_ingest/after-create.sql. Row security does the rest (docs/supabase.md).
DO $$
BEGIN
    EXECUTE format('GRANT USAGE ON SCHEMA ingest TO %I WITH GRANT OPTION',
                   coalesce(nullif(current_setting('supautils.privileged_role', true), ''), 'postgres'));
END $$;
