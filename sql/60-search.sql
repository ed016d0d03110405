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

CREATE FUNCTION ingest.columns_of(layout text)
RETURNS TABLE (id text, key text, chunk_no text, content text, metadata text, filtered text, embedding text)
LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE ROWS 1 SET search_path = pg_catalog, pg_temp AS 'MODULE_PATHNAME', 'columns_of_wrapper';
COMMENT ON FUNCTION ingest.columns_of(text) IS 'What a chunk has, as SQL over the row c of a target of this layout; filtered is what a filter is compared with';

CREATE FUNCTION ingest.search(query text, k int = 10, pipeline text = 'default', filter jsonb = NULL)
RETURNS TABLE (key text, chunk_no int, content text, metadata jsonb, similarity float8)
LANGUAGE plpgsql VOLATILE ROWS 10 SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    p record;
    columns record;
    vectors text := ingest.vector_schema();
    ef_search text := current_setting('hnsw.ef_search', true);
    iterative_scan text := current_setting('hnsw.iterative_scan', true);
BEGIN
    IF k IS NULL OR k < 1 THEN
        RAISE EXCEPTION 'k must be at least 1' USING ERRCODE = 'invalid_parameter_value',
            DETAIL = format('It is %s.', coalesce(k::text, 'null')), HINT = 'k is how many chunks search() returns.';
    END IF;
    SELECT * INTO p FROM ingest.target_of(pipeline);
    IF NOT EXISTS (SELECT FROM pg_class c WHERE c.oid = p.target) THEN
        RAISE EXCEPTION 'the target table of pipeline % was dropped', search.pipeline USING ERRCODE = 'undefined_table',
            HINT = format('SELECT ingest.drop_pipeline(%L); then create it again.', search.pipeline);
    END IF;
    SELECT * INTO columns FROM ingest.columns_of(p.layout);
    -- An HNSW scan returns ef_search rows at the most, and with a filter fewer; both settings are put back below.
    PERFORM set_config('hnsw.ef_search', least(greatest(k, coalesce(nullif(ef_search, '')::int, 40)), 1000)::text, true);
    IF filter IS NOT NULL OR k > 1000 THEN
        PERFORM set_config('hnsw.iterative_scan', 'strict_order', true);
    END IF;
    RETURN QUERY EXECUTE format(
        'SELECT %4$s, %5$s, %6$s, %7$s, 1 - (%9$s OPERATOR(%1$s.<=>) $1::%1$s.%2$s)'
        ' FROM %3$s AS c WHERE $3 IS NULL OR %8$s @> $3'
        ' ORDER BY %9$s OPERATOR(%1$s.<=>) $1::%1$s.%2$s LIMIT $2',
        vectors, CASE WHEN p.dimensions > 2000 THEN 'halfvec' ELSE 'vector' END, p.target,
        columns.key, columns.chunk_no, columns.content, columns.metadata, columns.filtered, columns.embedding)
        USING ingest.embed(query, pipeline), k, filter;
    PERFORM set_config('hnsw.ef_search', coalesce(nullif(ef_search, ''), '40'), true);
    PERFORM set_config('hnsw.iterative_scan', coalesce(nullif(iterative_scan, ''), 'off'), true);
END $$;
COMMENT ON FUNCTION ingest.search(text, int, text, jsonb) IS 'The k chunks nearest to the query by cosine similarity, among those whose metadata contains the filter';
