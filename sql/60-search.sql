CREATE FUNCTION ingest.embed_array(input text, pipeline text) RETURNS real[]
LANGUAGE c VOLATILE PARALLEL RESTRICTED SET search_path = pg_catalog, pg_temp AS 'MODULE_PATHNAME', 'embed_array_wrapper';
COMMENT ON FUNCTION ingest.embed_array(text, text) IS 'What embed() casts to a vector';

CREATE FUNCTION ingest.embed(input text, pipeline text = 'default') RETURNS vector
LANGUAGE plpgsql VOLATILE PARALLEL RESTRICTED SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN ingest.embed_array(input, pipeline);
END $$;
COMMENT ON FUNCTION ingest.embed(text, text) IS 'The vector of a query, made by the worker with the pipeline''s model';

CREATE FUNCTION ingest.vector_schema() RETURNS text
LANGUAGE sql STABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
    SELECT quote_ident(n.nspname) FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace WHERE e.extname = 'vector'
$$;
COMMENT ON FUNCTION ingest.vector_schema() IS 'The schema of pgvector, quoted for use in SQL';

-- A rebuild may end while the query is being embedded, and its vector belongs to the old table then. From the moment that
-- the table is locked, which costs nothing more than reading it later does, none can.
CREATE FUNCTION ingest.embed_for_search(query text, pipeline text) RETURNS TABLE (target text, dimensions int, embedding real[])
LANGUAGE plpgsql VOLATILE ROWS 1 SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    asked record;
    present record;
BEGIN
    LOOP
        SELECT t.generation, t.dimensions, t.target::text AS place INTO asked FROM ingest.target_of(pipeline) AS t;
        -- A table that is gone has a number and no name.
        IF asked.place !~ '^[0-9]+$' THEN
            embedding := ingest.embed_array(query, pipeline);
            EXECUTE format('SELECT FROM %s WHERE false', asked.place);
        END IF;
        SELECT t.generation INTO present FROM ingest.target_of(pipeline) AS t;
        IF present.generation = asked.generation THEN
            IF asked.place ~ '^[0-9]+$' AND ingest.has_old_snapshot() THEN
                RAISE EXCEPTION 'the vectors of pipeline % were replaced after this transaction began', embed_for_search.pipeline
                    USING ERRCODE = 'serialization_failure', HINT = 'Try the transaction again.';
            ELSIF asked.place ~ '^[0-9]+$' THEN
                RAISE EXCEPTION 'the target table of pipeline % was dropped', embed_for_search.pipeline USING ERRCODE = 'undefined_table',
                    HINT = format('SELECT ingest.drop_pipeline(%L); then create it again.', embed_for_search.pipeline);
            END IF;
            target := asked.place;
            dimensions := asked.dimensions;
            RETURN NEXT;
            RETURN;
        END IF;
    END LOOP;
END $$;
COMMENT ON FUNCTION ingest.embed_for_search(text, text) IS 'The vector of a query and the table of vectors that it may be compared with, which is locked against being replaced until the transaction ends';

CREATE FUNCTION ingest.search(query text, k int = 10, pipeline text = 'default', filter jsonb = NULL)
RETURNS TABLE (key text, chunk_no int, content text, metadata jsonb, similarity float8)
LANGUAGE plpgsql VOLATILE ROWS 10 SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    p record;
    vectors text := ingest.vector_schema();
    ef_search text := current_setting('hnsw.ef_search', true);
    iterative_scan text := current_setting('hnsw.iterative_scan', true);
BEGIN
    IF k IS NULL OR k < 1 THEN
        RAISE EXCEPTION 'k must be at least 1' USING ERRCODE = 'invalid_parameter_value',
            DETAIL = format('It is %s.', coalesce(k::text, 'null')), HINT = 'k is how many chunks search() returns.';
    END IF;
    SELECT * INTO p FROM ingest.embed_for_search(query, pipeline);
    -- An HNSW scan returns ef_search rows at the most, and with a filter fewer; both settings are put back below.
    PERFORM set_config('hnsw.ef_search', least(greatest(k, coalesce(nullif(ef_search, '')::int, 40)), 1000)::text, true);
    IF filter IS NOT NULL OR k > 1000 THEN
        PERFORM set_config('hnsw.iterative_scan', 'strict_order', true);
    END IF;
    RETURN QUERY EXECUTE format(
        'SELECT c.document_key, c.chunk_no, c.content, c.metadata, 1 - (c.embedding OPERATOR(%1$s.<=>) $1::%1$s.%2$s)'
        ' FROM %3$s AS c WHERE $3 IS NULL OR c.metadata @> $3'
        ' ORDER BY c.embedding OPERATOR(%1$s.<=>) $1::%1$s.%2$s LIMIT $2',
        vectors, CASE WHEN p.dimensions > 2000 THEN 'halfvec' ELSE 'vector' END, p.target)
        USING p.embedding, k, filter;
    PERFORM set_config('hnsw.ef_search', coalesce(nullif(ef_search, ''), '40'), true);
    PERFORM set_config('hnsw.iterative_scan', coalesce(nullif(iterative_scan, ''), 'off'), true);
END $$;
COMMENT ON FUNCTION ingest.search(text, int, text, jsonb) IS 'The k chunks nearest to the query by cosine similarity, among those whose metadata contains the filter';
