CREATE FUNCTION ingest.retry(pipeline text = NULL, key text = NULL, error_class text = NULL) RETURNS bigint
LANGUAGE c VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS 'MODULE_PATHNAME', 'retry_wrapper';
COMMENT ON FUNCTION ingest.retry(text, text, text) IS 'Queues failed documents of your pipelines again, attempts reset, by pipeline, key and error class; returns how many';

CREATE FUNCTION ingest.retry_failures(pipelines int[], key text, error_class text) RETURNS bigint
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    queued_again bigint;
BEGIN
    IF error_class IS NOT NULL AND error_class NOT IN ('rate_limited', 'quota_exhausted', 'auth', 'invalid_request',
            'too_large', 'timeout', 'unavailable', 'bad_response', 'internal') THEN
        RAISE EXCEPTION 'error class % does not exist', quote_literal(error_class) USING ERRCODE = 'invalid_parameter_value',
            HINT = 'Classes: rate_limited, quota_exhausted, auth, invalid_request, too_large, timeout, unavailable, bad_response, internal.';
    END IF;
    -- The failure row stays until the document succeeds, so that first_failed_at tells the whole story.
    -- First whoever is deleting or changing one of the documents is waited for, and kept out: the statement after sees
    -- what they left. Documents queued already are the worker's, which must not be waited for while they are locked.
    -- Whoever ends a rebuild, or gives it up, locks the table and must see all that is queued for it.
    LOCK TABLE ingest.documents IN ROW EXCLUSIVE MODE;
    PERFORM FROM ingest.documents d
    WHERE d.id IN (SELECT f.document_id FROM ingest.failures f JOIN ingest.pipeline p ON p.name = f.pipeline
                   WHERE p.pipeline_id = ANY (retry_failures.pipelines)
                     AND (retry_failures.key IS NULL OR f.key = retry_failures.key)
                     AND (retry_failures.error_class IS NULL OR f.error_class = retry_failures.error_class))
    ORDER BY d.id FOR NO KEY UPDATE;
    IF ingest.has_old_snapshot() THEN
        PERFORM ingest.refuse_old_snapshot(ARRAY(
            SELECT f.document_id FROM ingest.failures f JOIN ingest.pipeline p ON p.name = f.pipeline
            WHERE p.pipeline_id = ANY (retry_failures.pipelines)),
            ARRAY(SELECT p.name FROM ingest.pipeline p WHERE p.pipeline_id = ANY (retry_failures.pipelines)));
    END IF;
    WITH again AS (
        -- What the worker died of is tried with care, and not as often again.
        INSERT INTO ingest.queue (document_id, pipeline_id, bytes, crashes)
        SELECT f.document_id, p.pipeline_id, coalesce(octet_length(d.content), d.source_bytes, 0),
               CASE WHEN f.error_class = 'internal' AND NOT f.retryable THEN 1 ELSE 0 END
        FROM ingest.failures f
        JOIN ingest.pipeline p ON p.name = f.pipeline AND (p.successor_of IS NOT NULL) = f.rebuild
        JOIN ingest.documents d ON d.id = f.document_id
        WHERE (p.pipeline_id = ANY (retry_failures.pipelines) OR p.successor_of = ANY (retry_failures.pipelines))
          AND (retry_failures.key IS NULL OR f.key = retry_failures.key)
          AND (retry_failures.error_class IS NULL OR f.error_class = retry_failures.error_class)
          AND NOT EXISTS (SELECT FROM ingest.queue q WHERE q.document_id = f.document_id AND q.pipeline_id = p.pipeline_id)
        ON CONFLICT (document_id, pipeline_id) DO NOTHING
        RETURNING pipeline_id, bytes
    ), counted AS (
        INSERT INTO ingest.counter_delta (pipeline_id, queued, queued_bytes, failed)
        SELECT a.pipeline_id, count(*), sum(a.bytes), -count(*) FROM again a GROUP BY a.pipeline_id
        RETURNING queued
    )
    SELECT coalesce(sum(queued), 0) INTO queued_again FROM counted;
    IF queued_again > 0 THEN
        PERFORM ingest.wake();
    END IF;
    RETURN queued_again;
END $$;
COMMENT ON FUNCTION ingest.retry_failures(int[], text, text) IS 'What retry() does, on the pipelines that the user owns';
REVOKE ALL ON FUNCTION ingest.retry_failures(int[], text, text) FROM PUBLIC;

-- A rebuild is pending until it has taken the old one's place, and a watched table until all of it has been read.
CREATE VIEW ingest.pending WITH (security_barrier) AS
SELECT p.pipeline_id,
       t.queued + (SELECT count(*) FROM ingest.watch w WHERE w.pipeline_id = p.pipeline_id AND w.phase <> 'done')
                + CASE WHEN p.successor_of IS NULL THEN 0 ELSE 1 END AS documents
FROM ingest.totals t JOIN ingest.pipeline p USING (pipeline_id) JOIN ingest.visible_pipelines v USING (pipeline_id);
COMMENT ON VIEW ingest.pending IS 'Behind pending_documents(): what is pending in the pipelines that you see';

CREATE FUNCTION ingest.pending_documents(pipelines int[]) RETURNS bigint
LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
    SELECT coalesce(sum(p.documents), 0)::bigint FROM ingest.pending p WHERE p.pipeline_id = ANY (pending_documents.pipelines)
$$;
COMMENT ON FUNCTION ingest.pending_documents(int[]) IS 'Documents waiting or in flight in these pipelines, rebuilds among them that have not ended, and watched tables being read';

CREATE FUNCTION ingest.stuck_pipelines(pipeline text) RETURNS text
LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
    SELECT string_agg(format('%s is %s', p.pipeline, p.state), '; ')
    FROM (SELECT g.pipeline, g.state FROM ingest.progress g
          WHERE g.state IN ('paused', 'blocked') AND g.pending > 0 OR g.state = 'blocked' AND g.in_flight > 0
             OR g.state = 'blocked' AND EXISTS (SELECT FROM ingest.watches w WHERE w.pipeline = g.pipeline AND w.state <> 'watching')
          UNION ALL
          SELECT format('%s (rebuild)', r.pipeline), r.state FROM ingest.rebuilds r
          WHERE r.state IN ('paused', 'blocked', 'failed')) AS p(pipeline, state)
    WHERE (stuck_pipelines.pipeline IS NULL OR p.pipeline IN (stuck_pipelines.pipeline, format('%s (rebuild)', stuck_pipelines.pipeline)))
$$;
COMMENT ON FUNCTION ingest.stuck_pipelines(text) IS 'Paused or blocked pipelines with documents waiting, and rebuilds that wait for a person, as a sentence; null when there are none';

CREATE FUNCTION ingest.wait(pipeline text = NULL, timeout interval = NULL) RETURNS boolean
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    deadline timestamptz := clock_timestamp() + timeout;
    nap float8 := 0.001;
    warned boolean := false;
    stuck text;
BEGIN
    IF pipeline IS NOT NULL THEN
        PERFORM ingest.require_pipeline(pipeline);
    END IF;
    PERFORM ingest.require_read_committed('ingest.wait()', 'never sees what the worker commits meanwhile');
    LOOP
        IF ingest.pending_documents(ARRAY(SELECT v.pipeline_id FROM ingest.visible_pipelines v
                                          WHERE wait.pipeline IS NULL OR v.name = wait.pipeline)) = 0 THEN
            RETURN true;
        END IF;
        IF ingest.wakes_at_commit() THEN
            RAISE WARNING 'what this transaction has changed is embedded after it commits: ingest.wait() does not wait for it'
                USING HINT = 'Send SELECT ingest.wait() by itself. What is sent at once, as SQL editors do, is one transaction.';
            RETURN false;
        END IF;
        IF clock_timestamp() >= deadline THEN
            RETURN false;
        END IF;
        IF NOT warned AND nap >= 0.1 THEN
            stuck := ingest.stuck_pipelines(pipeline);
            IF stuck IS NOT NULL THEN
                RAISE WARNING 'waiting for documents that nobody embeds now: pipeline %', stuck
                    USING HINT = 'SELECT * FROM ingest.doctor() tells why.';
                warned := true;
            END IF;
        END IF;
        PERFORM pg_sleep(least(nap, extract(epoch FROM deadline - clock_timestamp())));
        nap := least(nap * 1.5, 0.2);
    END LOOP;
END $$;
COMMENT ON FUNCTION ingest.wait(text, interval) IS 'Returns true when nothing is pending in the pipelines that you own or were granted, false at the timeout, and at once in the transaction that queued documents: they are embedded after it commits';

CREATE FUNCTION ingest.load_files(directory text, pattern text = '**/*', pipeline text = 'default') RETURNS bigint
LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS 'MODULE_PATHNAME', 'load_files_wrapper';
COMMENT ON FUNCTION ingest.load_files(text, text, text) IS 'Puts the text, Markdown and HTML files of a directory on the server into the staging table, key = path below it; returns how many. Needs pg_read_server_files';

-- Where load_files() puts a batch of files. A file that is no valid text is there with its failure and no content.
CREATE FUNCTION ingest.stage_files(pipeline text, keys text[], contents text[], metadata jsonb[], errors text[]) RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    staged bigint[];
BEGIN
    INSERT INTO ingest.documents AS d (pipeline, key, content, metadata)
    SELECT stage_files.pipeline, u.key, u.content, u.meta FROM unnest(keys, contents, metadata) AS u(key, content, meta)
    ON CONFLICT ON CONSTRAINT documents_pipeline_key_key DO UPDATE SET content = EXCLUDED.content, metadata = EXCLUDED.metadata
    WHERE d.content IS DISTINCT FROM EXCLUDED.content OR d.metadata IS DISTINCT FROM EXCLUDED.metadata;

    WITH bad AS (
        SELECT d.id, d.pipeline, d.key, u.error FROM unnest(keys, errors) AS u(key, error)
        JOIN ingest.documents d ON d.pipeline = stage_files.pipeline AND d.key = u.key
        WHERE u.error IS NOT NULL
    ), dequeued AS (
        DELETE FROM ingest.queue q USING bad b WHERE q.document_id = b.id RETURNING q.document_id, q.pipeline_id, q.bytes
    ), failed AS (
        INSERT INTO ingest.failures AS f (pipeline, document_id, key, error_class, message, attempts, retryable, rebuild)
        SELECT b.pipeline, b.id, b.key, 'invalid_request', b.error, 1, false, p.successor_of IS NOT NULL
        FROM bad b JOIN dequeued q ON q.document_id = b.id JOIN ingest.pipeline p USING (pipeline_id)
        ON CONFLICT (document_id, rebuild) DO UPDATE
            SET error_class = EXCLUDED.error_class, http_status = NULL, message = EXCLUDED.message,
                attempts = f.attempts + 1, last_failed_at = now(), retryable = false
    )
    INSERT INTO ingest.counter_delta (pipeline_id, queued, queued_bytes, failed)
    SELECT q.pipeline_id, -count(*), -sum(q.bytes), count(*) FROM dequeued q GROUP BY q.pipeline_id;
END $$;
COMMENT ON FUNCTION ingest.stage_files(text, text[], text[], jsonb[], text[]) IS 'Writes a batch of files for load_files()';
REVOKE ALL ON FUNCTION ingest.stage_files(text, text[], text[], jsonb[], text[]) FROM PUBLIC;

-- Documents that lie evenly in the backlog: the oldest at or after each of so many ids. The ids of a long backlog are
-- dense enough for that.
CREATE FUNCTION ingest.sample_backlog(pipeline_id int, most int) RETURNS TABLE (document_id bigint)
LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp SET enable_seqscan = off AS $$
    WITH ends AS (
        SELECT (SELECT q.document_id FROM ingest.queue q
                WHERE q.pipeline_id = sample_backlog.pipeline_id AND q.claimed_by IS NULL AND q.retry_at IS NULL
                ORDER BY q.document_id LIMIT 1) AS first,
               (SELECT q.document_id FROM ingest.queue q
                WHERE q.pipeline_id = sample_backlog.pipeline_id AND q.claimed_by IS NULL AND q.retry_at IS NULL
                ORDER BY q.document_id DESC LIMIT 1) AS last,
               (SELECT t.queued FROM ingest.totals t WHERE t.pipeline_id = sample_backlog.pipeline_id) AS queued
    ), steps AS (
        SELECT e.first + (e.last - e.first + 1) * n / sample_backlog.most AS at
        FROM ends e, generate_series(0, sample_backlog.most - 1) AS n
        WHERE e.queued > sample_backlog.most
    ), chosen AS (
        SELECT (SELECT q.document_id FROM ingest.queue q
                WHERE q.pipeline_id = sample_backlog.pipeline_id AND q.claimed_by IS NULL AND q.retry_at IS NULL
                  AND q.document_id >= s.at ORDER BY q.document_id LIMIT 1) AS document_id
        FROM steps s
        UNION
        SELECT q.document_id
        FROM ends e CROSS JOIN LATERAL (SELECT q.document_id FROM ingest.queue q
                                        WHERE q.pipeline_id = sample_backlog.pipeline_id LIMIT sample_backlog.most) AS q
        WHERE e.queued <= sample_backlog.most
    ), others AS (
        -- Hardly any is ready: those in flight, or waiting for their next attempt, stand for all.
        SELECT q.document_id
        FROM (SELECT count(*) AS ready FROM chosen c WHERE c.document_id IS NOT NULL) AS r
        CROSS JOIN LATERAL (
            (SELECT q.document_id FROM ingest.queue q
             WHERE q.claimed_by IS NOT NULL AND q.pipeline_id = sample_backlog.pipeline_id LIMIT sample_backlog.most)
            UNION ALL
            (SELECT q.document_id FROM ingest.queue q
             WHERE q.retry_at IS NOT NULL AND q.pipeline_id = sample_backlog.pipeline_id LIMIT sample_backlog.most)
        ) AS q
        WHERE r.ready < least(sample_backlog.most, (SELECT e.queued FROM ends e)) / 2
    )
    SELECT s.document_id
    FROM (TABLE chosen UNION TABLE others) AS s
    WHERE s.document_id IS NOT NULL
    ORDER BY hashint8(s.document_id)
$$;
COMMENT ON FUNCTION ingest.sample_backlog(int, int) IS 'Queued documents, all or so many, in no order, for estimate()';
REVOKE ALL ON FUNCTION ingest.sample_backlog(int, int) FROM PUBLIC;

CREATE FUNCTION ingest.estimate(pipeline text = NULL)
RETURNS TABLE (pipeline text, documents bigint, chunks bigint, tokens bigint, requests bigint, cost_usd numeric, duration interval)
LANGUAGE c VOLATILE PARALLEL UNSAFE ROWS 5 SET search_path = pg_catalog, pg_temp AS 'MODULE_PATHNAME', 'estimate_wrapper';
COMMENT ON FUNCTION ingest.estimate(text) IS 'What the backlog of your pipelines will cost, and how long their budgets make it take, before it is spent; counted on a sample when it is long, and as if every chunk had to be sent: texts that are there already or occur twice cost less (see reused_tokens in ingest.progress)';

CREATE FUNCTION ingest.split(input text, pipeline text = 'default') RETURNS TABLE (chunk_no int, content text, tokens int)
LANGUAGE c STABLE STRICT PARALLEL SAFE ROWS 10 SET search_path = pg_catalog, pg_temp AS 'MODULE_PATHNAME', 'split_wrapper';
COMMENT ON FUNCTION ingest.split(text, text) IS 'The chunks that the worker would cut from the text';

CREATE FUNCTION ingest.doctor() RETURNS TABLE ("check" text, ok boolean, detail text, hint text)
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    problem text := ingest.worker_problem();
    preloaded boolean := ingest.is_preloaded();
    vector_version text := (SELECT extversion FROM pg_extension WHERE extname = 'vector');
    p record;
    model_error text;
BEGIN
    -- A worker starts when CREATE EXTENSION has committed, which may have been a moment ago.
    FOR tenth IN 1 .. 10 LOOP
        EXIT WHEN problem IS NULL OR NOT preloaded OR pg_is_in_recovery();
        PERFORM pg_sleep(0.1);
        problem := ingest.worker_problem();
    END LOOP;

    "check" := 'preload'; ok := preloaded;
    detail := CASE WHEN preloaded THEN 'the library was loaded at server start' ELSE 'the library was not loaded at server start' END;
    hint := CASE WHEN NOT preloaded THEN 'Add pg_ingest to shared_preload_libraries in postgresql.conf and restart the server.' END;
    RETURN NEXT;

    "check" := 'worker'; ok := problem IS NULL;
    detail := coalesce(problem, (SELECT format('%s worker process(es) serve this database', count(*))
                                        || coalesce('; last error: ' || string_agg(DISTINCT w.last_error, '; '), '')
                                 FROM ingest.worker_states() w WHERE w.database = current_database()));
    hint := CASE WHEN problem IS NULL OR NOT preloaded THEN NULL
                 WHEN pg_is_in_recovery() THEN 'Documents are embedded on the primary, and what it writes can be read here.'
                 ELSE 'Look at pg_ingest.databases, max_worker_processes and the server log.' END;
    RETURN NEXT;

    "check" := 'vector'; ok := string_to_array(substring(vector_version FROM '^[0-9]+(?:[.][0-9]+)*'), '.')::int[] >= ARRAY[0, 7, 0];
    detail := format('pgvector %s in schema %s', vector_version,
                     (SELECT extnamespace::regnamespace FROM pg_extension WHERE extname = 'vector'));
    hint := CASE WHEN NOT ok THEN 'pgvector 0.7 or later is needed for halfvec: ALTER EXTENSION vector UPDATE;' END;
    RETURN NEXT;

    "check" := 'version'; ok := (SELECT extversion FROM pg_extension WHERE extname = 'pg_ingest') = ingest.library_version();
    detail := format('SQL %s, library %s', (SELECT extversion FROM pg_extension WHERE extname = 'pg_ingest'), ingest.library_version());
    hint := CASE WHEN NOT ok THEN 'ALTER EXTENSION pg_ingest UPDATE; and restart the server if it still runs the old library.' END;
    RETURN NEXT;

    FOR p IN SELECT * FROM ingest.pipelines ORDER BY name LOOP
        "check" := format('model of %s', p.name);
        model_error := ingest.pipeline_problem(p.name);
        ok := model_error IS NULL; detail := coalesce(model_error, p.model);
        hint := CASE WHEN NOT ok THEN
                    CASE WHEN p.model LIKE 'local/%' THEN 'Install the model below pg_ingest.model_dir (make model)'
                         ELSE 'Correct what the detail names, or point the pipeline elsewhere with ingest.alter_pipeline()' END
                    || ', then SELECT ingest.resume(' || quote_literal(p.name) || ');' END;
        RETURN NEXT;

        "check" := format('target of %s', p.name);
        ok := EXISTS (SELECT FROM pg_class WHERE oid = p.target);
        detail := p.target::text;
        hint := CASE WHEN NOT ok THEN format('The table was dropped. Create another pipeline; UPDATE ingest.documents SET pipeline = ''<the other>'' '
                                             'WHERE pipeline = %1$L; then SELECT ingest.drop_pipeline(%1$L);', p.name) END;
        RETURN NEXT;
    END LOOP;

    FOR p IN SELECT * FROM ingest.budget_states() b WHERE b.name IS NOT NULL ORDER BY b.name LOOP
        "check" := format('limit %s', p.name); ok := NOT p.stricter_elsewhere;
        detail := concat_ws(', ', p.target_rpm || ' requests/min', p.target_tpm || ' tokens/min', p.target_rpd || ' requests/day',
                            p.target_tpd || ' tokens/day') || ' are used'
                  || CASE WHEN p.stricter_elsewhere THEN '; another database of this server defines it more strictly, which holds' ELSE '' END;
        hint := CASE WHEN NOT ok THEN 'Compare ingest.limits in the other databases; the stricter figures hold for all.' END;
        RETURN NEXT;
    END LOOP;

    -- That no worker runs is said above.
    FOR p IN
        SELECT g.*, h.heir FROM ingest.progress g
        -- REASSIGN OWNED gives the target to another role, and not the pipeline.
        LEFT JOIN LATERAL (
            SELECT c.relowner::regrole::text AS heir FROM ingest.pipelines l JOIN pg_class c ON c.oid = l.target
            WHERE l.name = g.pipeline AND c.relowner <> l.owner::oid
              AND (NOT EXISTS (SELECT FROM pg_roles r WHERE r.oid = l.owner::oid)
                   OR NOT has_table_privilege(l.owner::oid, c.oid, 'INSERT') OR NOT has_table_privilege(l.owner::oid, c.oid, 'DELETE'))
        ) AS h ON true
        WHERE g.state IN ('blocked', 'paused') AND g.last_error IS DISTINCT FROM problem
    LOOP
        "check" := format('state of %s', p.pipeline); ok := p.state <> 'blocked';
        detail := p.state || coalesce(': ' || p.last_error, '');
        hint := CASE WHEN p.state = 'blocked' AND p.heir IS NOT NULL
                     THEN format('Its target belongs to %s, who gets the pipeline, too, by SELECT ingest.set_owner(%L, %L); ', p.heir, p.pipeline, p.heir)
                          || 'then ' ELSE '' END || format('SELECT ingest.resume(%L);', p.pipeline);
        RETURN NEXT;
    END LOOP;

    IF NOT has_table_privilege('ingest.rebuilds', 'SELECT') THEN
        RETURN;
    END IF;
    FOR p IN SELECT * FROM ingest.rebuilds r WHERE r.state IN ('blocked', 'failed') AND r.last_error IS DISTINCT FROM problem LOOP
        "check" := format('rebuild of %s', p.pipeline); ok := false;
        detail := concat_ws(': ', p.state, p.last_error);
        hint := CASE WHEN p.state = 'failed'
                     THEN format('SELECT ingest.retry(%1$L); to try those again that fail only with the new definition, or SELECT '
                                 'ingest.finish_rebuild(%1$L); to switch without them.', p.pipeline)
                     ELSE format('SELECT ingest.resume(%1$L); when it is put right, or SELECT ingest.cancel_rebuild(%1$L);', p.pipeline) END;
        RETURN NEXT;
    END LOOP;
END $$;
COMMENT ON FUNCTION ingest.doctor() IS 'What is wrong and what to do about it';

CREATE FUNCTION ingest.library_version() RETURNS text
LANGUAGE c STABLE PARALLEL SAFE AS 'MODULE_PATHNAME', 'library_version_wrapper';
COMMENT ON FUNCTION ingest.library_version() IS 'Version of the loaded shared library';

CREATE FUNCTION ingest.pipeline_problem(pipeline text) RETURNS text
LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS 'MODULE_PATHNAME', 'pipeline_problem_wrapper';
COMMENT ON FUNCTION ingest.pipeline_problem(text) IS 'Why the pipeline''s model, host or key cannot be used on this server; null when nothing is in the way. Sends nothing';
