-- How a target is read: by search() and hybrid_search(), and by clients that know nothing of pg_ingest.

CREATE FUNCTION ingest.columns_of(layout text)
RETURNS TABLE (id text, key text, chunk_no text, content text, metadata text, filtered text, embedding text)
LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE ROWS 1 SET search_path = pg_catalog, pg_temp AS 'MODULE_PATHNAME', 'columns_of_wrapper';
COMMENT ON FUNCTION ingest.columns_of(text) IS 'What a chunk has, as SQL over the row c of a target of this layout; filtered is what a filter is compared with';

CREATE FUNCTION ingest.text_search_of(layout text, language text) RETURNS text
LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS 'MODULE_PATHNAME', 'text_search_of_wrapper';
COMMENT ON FUNCTION ingest.text_search_of(text, text) IS 'The tsvector of a chunk, as SQL over its row, as the full-text index on a target has it';

CREATE FUNCTION ingest.refuse_strange(pipeline text, target regclass, layout text) RETURNS void
LANGUAGE c VOLATILE STRICT PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS 'MODULE_PATHNAME', 'refuse_strange_wrapper';
COMMENT ON FUNCTION ingest.refuse_strange(text, regclass, text)
    IS 'Raises an error where reading a target would run code of its owner: it is a view by now, or a column has a type of somebody''s own';

CREATE FUNCTION ingest.searched(pipeline text)
RETURNS TABLE (target regclass, layout text, dimensions int, language text, vector_type text, distance text,
               id text, key text, chunk_no text, content text, metadata text, filtered text, embedding text)
LANGUAGE plpgsql STABLE ROWS 1 SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    vectors text := ingest.vector_schema();
BEGIN
    RETURN QUERY
        SELECT t.target, t.layout, t.dimensions, t.language,
               format('%s.%s', vectors, CASE WHEN t.dimensions > 2000 THEN 'halfvec' ELSE 'vector' END),
               format('OPERATOR(%s.<=>)', vectors), c.*
        FROM ingest.target_of(pipeline) AS t JOIN pg_class r ON r.oid = t.target CROSS JOIN ingest.columns_of(t.layout) AS c;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'the target table of pipeline % was dropped', quote_literal(searched.pipeline) USING ERRCODE = 'undefined_table',
            HINT = format('Create another pipeline; UPDATE ingest.documents SET pipeline = ''<the other>'' WHERE pipeline = %1$L; then SELECT '
                          'ingest.drop_pipeline(%1$L);', searched.pipeline);
    END IF;
    PERFORM ingest.refuse_strange(searched.pipeline, t.target, t.layout) FROM ingest.target_of(searched.pipeline) AS t;
END $$;
COMMENT ON FUNCTION ingest.searched(text) IS 'Where the pipeline of this name keeps its chunks, and what a query over them is written with; an error when there is nothing to search';

CREATE FUNCTION ingest.check_k(k int) RETURNS void
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF k IS NULL OR k < 1 THEN
        RAISE EXCEPTION 'k must be at least 1' USING ERRCODE = 'invalid_parameter_value',
            DETAIL = format('It is %s.', coalesce(k::text, 'null')), HINT = 'k is how many chunks are returned.';
    END IF;
END $$;
COMMENT ON FUNCTION ingest.check_k(int) IS 'Raises the error for a number of chunks that cannot be returned';

-- An HNSW scan returns ef_search rows at the most, and with a filter fewer.
CREATE FUNCTION ingest.widen_scan(k bigint, filtered boolean) RETURNS text[]
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    before text[];
BEGIN
    IF current_setting('hnsw.ef_search', true) IS NULL THEN
        -- Loads pgvector, which then has its settings.
        EXECUTE format('SELECT %L::%s.vector', '[0]', ingest.vector_schema());
    END IF;
    -- pgvector 0.7 knows no iterative scan, and lets nobody set one.
    before := ARRAY[current_setting('hnsw.ef_search'), current_setting('hnsw.iterative_scan', true)];
    PERFORM set_config('hnsw.ef_search', least(greatest(k, before[1]::int), 1000)::text, true);
    IF (filtered OR k > 1000) AND before[2] IS NOT NULL THEN
        PERFORM set_config('hnsw.iterative_scan', 'strict_order', true);
    END IF;
    RETURN before;
END $$;
COMMENT ON FUNCTION ingest.widen_scan(bigint, boolean) IS 'Has HNSW scans of this transaction return k rows; returns the settings before, for restore_scan()';

CREATE FUNCTION ingest.restore_scan(before text[]) RETURNS void
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM set_config('hnsw.ef_search', before[1], true);
    IF before[2] IS NOT NULL THEN
        PERFORM set_config('hnsw.iterative_scan', before[2], true);
    END IF;
END $$;
COMMENT ON FUNCTION ingest.restore_scan(text[]) IS 'Puts back what widen_scan() changed';

-- By an index only ef_search rows, hnsw.max_scan_tuples or the lists probed are looked at; of these a filter or a policy may leave
-- fewer than k. Then all rows are compared one by one, which takes no memory that grows with the table, as a longer scan of
-- the index does.
CREATE FUNCTION ingest.nearest(chunk text, target text, condition text, k text) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
    SELECT format(
        'WITH by_index AS MATERIALIZED ('
        '    SELECT %1$s FROM %2$s AS c WHERE %3$s ORDER BY distance LIMIT %4$s'
        '), one_by_one AS ('
        '    SELECT r.* FROM (SELECT %1$s FROM %2$s AS c WHERE (%3$s) AND (SELECT count(*) FROM by_index) < %4$s) AS r'
        '    ORDER BY r.distance + 0 LIMIT %4$s'
        ') SELECT * FROM by_index WHERE (SELECT count(*) FROM by_index) >= %4$s UNION ALL TABLE one_by_one',
        chunk, target, condition, k)
$$;
COMMENT ON FUNCTION ingest.nearest(text, text, text, text) IS 'The query for the k chunks of a target that are nearest, among those of a condition; the last column of chunk is called distance';

-- Reciprocal rank fusion as in the Supabase guide on hybrid search: of two lists of 2k chunks, each gives its n-th chunk
-- weight / (rrf_k + n). (The guide's lists end at 60.)
CREATE FUNCTION ingest.hybrid_search(
    query text, k int = 10, pipeline text = 'default', filter jsonb = NULL, full_text_weight float8 = 1,
    semantic_weight float8 = 1, rrf_k int = 50)
RETURNS TABLE (key text, chunk_no int, content text, metadata jsonb, similarity float8, score float8)
LANGUAGE plpgsql VOLATILE ROWS 10 SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    t record;
    vector real[];
    before text[];
    identity text;
    chunk text;
BEGIN
    PERFORM ingest.check_k(k);
    IF full_text_weight IS NULL OR NOT full_text_weight BETWEEN 0 AND 1e100
       OR semantic_weight IS NULL OR NOT semantic_weight BETWEEN 0 AND 1e100 OR rrf_k IS NULL OR rrf_k < 0 THEN
        RAISE EXCEPTION 'the weights and rrf_k must be numbers of at least 0' USING ERRCODE = 'invalid_parameter_value',
            DETAIL = format('full_text_weight is %s, semantic_weight is %s, rrf_k is %s.', coalesce(full_text_weight::text, 'null'),
                            coalesce(semantic_weight::text, 'null'), coalesce(rrf_k::text, 'null')),
            HINT = 'A weight of 0 leaves a list out of the score; the larger rrf_k, the less the first places stand out.';
    END IF;
    vector := ingest.embed_for_search(query, pipeline);
    SELECT * INTO t FROM ingest.searched(pipeline);
    before := ingest.widen_scan(2 * k::bigint, filter IS NOT NULL);
    -- In a table that somebody else made several chunks may have the same key and place, or none.
    SELECT CASE r.relkind WHEN 'f' THEN t.id ELSE 'c.tableoid::text || c.ctid::text' END INTO identity FROM pg_class r WHERE r.oid = t.target;
    chunk := format('%s AS itself, %s AS id, %s AS key, %s AS chunk_no, %s AS content, %s AS metadata, %s %s $1::%s AS distance',
                    identity, t.id, t.key, t.chunk_no, t.content, t.metadata, t.embedding, t.distance, t.vector_type);
    RETURN QUERY EXECUTE format(
        'WITH near AS ('
        '    SELECT n.*, 0::real AS rank FROM (%6$s) AS n'
        '), matching AS ('
        '    SELECT %1$s, ts_rank_cd(%4$s, websearch_to_tsquery(%5$L::regconfig, $2)) AS rank FROM %2$s AS c'
        '    WHERE %4$s @@ websearch_to_tsquery(%5$L::regconfig, $2) AND ($3 IS NULL OR %3$s @> $3) ORDER BY rank DESC, id LIMIT $4'
        '), places AS ('
        '    SELECT n.*, $6 / ($7 + row_number() OVER (ORDER BY n.distance, n.id)) AS part FROM near AS n UNION ALL'
        '    SELECT m.*, $5 / ($7 + row_number() OVER (ORDER BY m.rank DESC, m.id)) FROM matching AS m'
        '), fused AS ('
        '    SELECT p.*, sum(p.part) OVER same AS score, row_number() OVER same AS copy FROM places AS p'
        '    WINDOW same AS (PARTITION BY p.itself ROWS BETWEEN UNBOUNDED PRECEDING AND UNBOUNDED FOLLOWING)'
        ') SELECT f.key, f.chunk_no, f.content, f.metadata, 1 - f.distance, f.score FROM fused AS f WHERE f.copy = 1'
        '  ORDER BY f.score DESC, f.distance, f.id LIMIT $8',
        chunk, t.target, t.filtered, ingest.text_search_of(t.layout, t.language), t.language,
        ingest.nearest(chunk, t.target::text, format('$3 IS NULL OR %s @> $3', t.filtered), '$4'))
        USING vector, query, filter, 2 * k::bigint, full_text_weight, semantic_weight, rrf_k, k;
    PERFORM ingest.restore_scan(before);
END $$;
COMMENT ON FUNCTION ingest.hybrid_search(text, int, text, jsonb, float8, float8, int)
    IS 'The k chunks that come first when the nearest and those that match the words (as in a web search: "a phrase", or, -without) are fused by reciprocal rank; score is what they are ordered by';

CREATE FUNCTION ingest.create_match_function(pipeline text, function_name text = 'public.match_documents') RETURNS void
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    vectors text := ingest.vector_schema();
    parts text[] := parse_ident(function_name);
    qualified text;
    marker CONSTANT text := 'Made by pg_ingest: ';
    t record;
    table_name text;
    id_column record;
    present record;
    signature text;
    given text;
BEGIN
    IF pipeline IS NULL OR function_name IS NULL THEN
        RAISE EXCEPTION 'create_match_function() needs the name of a pipeline and of a function' USING ERRCODE = 'null_value_not_allowed';
    END IF;
    IF cardinality(parts) <> 2 THEN
        RAISE EXCEPTION 'function_name % must name a schema and a function', quote_literal(function_name)
            USING ERRCODE = 'invalid_name', HINT = 'For example function_name => ''public.match_documents''.';
    END IF;
    IF octet_length(parts[1]) > 63 OR octet_length(parts[2]) > 63 THEN
        RAISE EXCEPTION 'function_name % has a name of more than 63 bytes', quote_literal(function_name)
            USING ERRCODE = 'name_too_long';
    END IF;
    qualified := format('%I.%I', parts[1], parts[2]);
    SELECT * INTO t FROM ingest.searched(pipeline);
    SELECT format('%I.%I', n.nspname, r.relname) INTO table_name
    FROM pg_class r JOIN pg_namespace n ON n.oid = r.relnamespace WHERE r.oid = t.target;
    -- A target that somebody else made may have ids of any type, or none.
    SELECT 'c.id' AS value, format_type(a.atttypid, NULL) AS type INTO id_column
    FROM pg_attribute a WHERE a.attrelid = t.target AND a.attname = 'id' AND NOT a.attisdropped;
    IF NOT FOUND THEN
        SELECT t.id AS value, 'text' AS type INTO id_column;
    END IF;

    -- PostgREST cannot choose between functions of one name.
    SELECT f.oid::regprocedure AS signature, pg_get_userbyid(f.proowner) = current_user
               AND coalesce(obj_description(f.oid, 'pg_proc') LIKE marker || '%', false) AS ours,
           f.proallargtypes[5] = id_column.type::regtype AS same, f.proowner, coalesce(f.proacl, acldefault('f', f.proowner)) AS acl
    INTO present
    FROM pg_proc f JOIN pg_namespace n ON n.oid = f.pronamespace
    WHERE n.nspname = parts[1] AND f.proname = parts[2]
    ORDER BY ours LIMIT 1;
    IF FOUND AND NOT present.ours THEN
        RAISE EXCEPTION 'function % already exists', qualified USING ERRCODE = 'duplicate_function',
            DETAIL = format('There is %s, which pg_ingest did not make for role %I.', present.signature, current_user),
            HINT = format('Give another function_name, or DROP FUNCTION %s;', present.signature);
    ELSIF FOUND AND NOT present.same THEN
        EXECUTE format('DROP FUNCTION %s', present.signature);
    END IF;

    -- Loads pgvector, whose setting can be named then.
    EXECUTE format('SELECT %L::%s.vector', '[0]', vectors);
    -- All that the body names has a schema or is in pg_catalog. A thousand rows are what PostgREST returns at most in
    -- Supabase; without a limit, LangChain's first four would be taken of all the table, sorted.
    EXECUTE format(
        'CREATE OR REPLACE FUNCTION %1$s(query_embedding %2$s.vector(%3$s), match_count integer DEFAULT NULL,'
        ' filter jsonb DEFAULT %4$L, match_threshold double precision DEFAULT NULL)'
        ' RETURNS TABLE (id %5$s, content text, metadata jsonb, similarity double precision)'
        ' LANGUAGE plpgsql STABLE ROWS 10 SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_custom_plan %6$s AS %7$L',
        qualified, vectors, t.dimensions, '{}', id_column.type,
        CASE WHEN current_setting('hnsw.iterative_scan', true) IS NOT NULL THEN 'SET hnsw.iterative_scan = strict_order' END,
        format(E'\nBEGIN\n'
               '    RETURN QUERY SELECT m.id, m.content, m.metadata, 1 - m.distance FROM (\n'
               '        %s\n'
               '    ) AS m\n'
               '    WHERE $4 IS NULL OR 1 - m.distance > $4\n'
               '    ORDER BY m.distance;\n'
               'END ',
               ingest.nearest(format('%s AS id, %s AS content, %s AS metadata, %s %s $1::%s AS distance', id_column.value, t.content,
                                     t.metadata, t.embedding, t.distance, t.vector_type),
                              table_name, format('coalesce($3, %1$L) = %1$L OR %2$s @> $3', '{}', t.filtered), 'coalesce($2, 1000)')));
    EXECUTE format('COMMENT ON FUNCTION %s(%s.vector, integer, jsonb, double precision) IS %L', qualified, vectors,
                   marker || format('the chunks of pipeline %L nearest to query_embedding, match_count of them (1000 when null), among those '
                                    'whose metadata contains filter, more similar than match_threshold if given. Runs with its '
                                    'caller''s rights: call it who may SELECT from %s and use its schema', pipeline, table_name));
    -- Who could call the one that was dropped can call this one, and nobody else.
    IF NOT present.same THEN
        signature := format('%s(%s.vector, integer, jsonb, double precision)', qualified, vectors);
        FOR given IN
            SELECT s.statement FROM (
                SELECT 1, format('REVOKE ALL ON FUNCTION %s FROM %s', signature,
                                 CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE a.grantee::regrole::text END)
                FROM pg_proc f, aclexplode(coalesce(f.proacl, acldefault('f', f.proowner))) a
                WHERE f.oid = signature::regprocedure AND a.grantee <> f.proowner
                UNION ALL
                SELECT 2, format('GRANT EXECUTE ON FUNCTION %s TO %s%s', signature,
                                 CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE a.grantee::regrole::text END,
                                 CASE WHEN a.is_grantable THEN ' WITH GRANT OPTION' END)
                FROM aclexplode(present.acl) a WHERE a.grantee <> present.proowner
            ) AS s(step, statement)
            ORDER BY s.step
        LOOP
            EXECUTE given;
        END LOOP;
    END IF;
END $$;
COMMENT ON FUNCTION ingest.create_match_function(text, text)
    IS 'Makes, or makes anew, the function that supabase-js and LangChain call through PostgREST (query_embedding, match_count, filter, match_threshold). It lends nobody rights: who calls it must be allowed to SELECT from the target';
