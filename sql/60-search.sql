CREATE FUNCTION ingest.embed_array(input text, pipeline text) RETURNS real[]
LANGUAGE c VOLATILE PARALLEL RESTRICTED SET search_path = pg_catalog, pg_temp AS 'MODULE_PATHNAME', 'embed_array_wrapper';
COMMENT ON FUNCTION ingest.embed_array(text, text) IS 'What embed() casts to a vector';

CREATE FUNCTION ingest.vector_schema() RETURNS text
LANGUAGE sql STABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
    SELECT quote_ident(n.nspname) FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace WHERE e.extname = 'vector'
$$;
COMMENT ON FUNCTION ingest.vector_schema() IS 'The schema of pgvector, quoted for use in SQL';

DO $embed$
BEGIN
    EXECUTE format($create$
        CREATE FUNCTION ingest.embed(input text, pipeline text = 'default') RETURNS %s.vector
        LANGUAGE plpgsql VOLATILE PARALLEL RESTRICTED SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN ingest.embed_array(input, pipeline);
END $$
    $create$, ingest.vector_schema());
END $embed$;
COMMENT ON FUNCTION ingest.embed(text, text) IS 'The vector of a query, made by the worker with the pipeline''s model';

-- A rebuild may end while the query is being embedded, and its vector belongs to the old table then. From the moment that
-- the table is locked, which costs nothing more than reading it later does, none can.
CREATE FUNCTION ingest.embed_for_search(query text, pipeline text) RETURNS real[]
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    asked record;
    present record;
    vector real[];
BEGIN
    LOOP
        SELECT t.generation, t.target, t.layout, t.target::text AS place INTO asked FROM ingest.target_of(pipeline) AS t;
        -- A table that is gone has a number and no name.
        IF asked.place !~ '^[0-9]+$' THEN
            vector := ingest.embed_array(query, pipeline);
            PERFORM ingest.refuse_strange(pipeline, asked.target, asked.layout);
            EXECUTE format('SELECT FROM %s WHERE false', asked.place);
        END IF;
        SELECT t.generation INTO present FROM ingest.target_of(pipeline) AS t;
        IF present.generation = asked.generation THEN
            IF asked.place ~ '^[0-9]+$' AND ingest.has_old_snapshot() THEN
                RAISE EXCEPTION 'the vectors of pipeline % were replaced after this transaction began', quote_literal(pipeline)
                    USING ERRCODE = 'serialization_failure', HINT = 'Try the transaction again.';
            END IF;
            RETURN vector;
        END IF;
    END LOOP;
END $$;
COMMENT ON FUNCTION ingest.embed_for_search(text, text) IS 'The vector of a query, to be compared with what is in the pipeline''s table, which is locked against being replaced until the transaction ends';

CREATE FUNCTION ingest.search(query text, k int = 10, pipeline text = 'default', filter jsonb = NULL)
RETURNS TABLE (key text, chunk_no int, content text, metadata jsonb, similarity float8)
LANGUAGE plpgsql VOLATILE ROWS 10 SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    t record;
    vector real[];
    before text[];
BEGIN
    PERFORM ingest.check_k(k);
    vector := ingest.embed_for_search(query, pipeline);
    SELECT * INTO t FROM ingest.searched(pipeline);
    before := ingest.widen_scan(k, filter IS NOT NULL);
    RETURN QUERY EXECUTE format(
        'SELECT n.key, n.chunk_no, n.content, n.metadata, 1 - n.distance FROM (%s) AS n ORDER BY n.distance',
        ingest.nearest(format('%s AS key, %s AS chunk_no, %s AS content, %s AS metadata, %s %s $1::%s AS distance',
                              t.key, t.chunk_no, t.content, t.metadata, t.embedding, t.distance, t.vector_type),
                       t.target::text, format('$3 IS NULL OR %s @> $3', t.filtered), '$2'))
        USING vector, k, filter;
    PERFORM ingest.restore_scan(before);
END $$;
COMMENT ON FUNCTION ingest.search(text, int, text, jsonb) IS 'The k chunks nearest to the query by cosine similarity, among those whose metadata contains the filter';
