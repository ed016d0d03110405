\echo Use "ALTER EXTENSION pg_ingest UPDATE TO '0.2.0'" to load this file. \quit

COMMENT ON COLUMN ingest.workers.state IS 'starting, idle, running, building_index, or needs_update (the SQL of the database is another release''s)';
