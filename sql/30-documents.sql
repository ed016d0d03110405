-- What INSERT, UPDATE, DELETE and TRUNCATE on ingest.documents set going. Statement-level triggers: a statement costs
-- one function call and one counter row, however many documents it touches. A pipeline that is being rebuilt has two rows of
-- its name in ingest.pipeline, and all of it happens for both.

CREATE FUNCTION ingest.unknown_pipeline(name text) RETURNS int
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RAISE EXCEPTION 'pipeline % does not exist', quote_literal(name)
        USING ERRCODE = 'undefined_object',
              HINT = coalesce('Pipelines here: ' || ingest.pipeline_list() || '. ', '')
                              || format('Create it: SELECT ingest.create_pipeline(%L);', name);
END $$;
COMMENT ON FUNCTION ingest.unknown_pipeline(text) IS 'Raises the error for a pipeline that does not exist';

CREATE FUNCTION ingest.document_without_key() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    NEW.key := NEW.id::text;
    RETURN NEW;
END $$;
COMMENT ON FUNCTION ingest.document_without_key() IS 'A document inserted without a key gets its id as key';

CREATE FUNCTION ingest.document_changed() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF NEW.id <> OLD.id THEN
        RAISE EXCEPTION 'the id of a document cannot be changed' USING ERRCODE = 'generated_always';
    END IF;
    NEW.key := coalesce(NEW.key, NEW.id::text);
    NEW.updated_at := now();
    RETURN NEW;
END $$;
COMMENT ON FUNCTION ingest.document_changed() IS 'Keeps id and updated_at';

-- Where the isolation level is REPEATABLE READ or SERIALIZABLE, the triggers do not see what workers, retry(), alter_pipeline()
-- and drop_pipeline() have done since the transaction began. As with any row that was changed meanwhile, the transaction has
-- to be tried again (SQLSTATE 40001): Postgres says so when a row that has changed or gone is locked, and when one is
-- inserted that has come. A rebuild that has begun or ended changes the key of its pipeline's row.
CREATE FUNCTION ingest.refuse_old_snapshot(ids bigint[], pipelines text[]) RETURNS void
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    probes bigint[];
BEGIN
    PERFORM FROM ingest.pipeline p WHERE p.name = ANY (pipelines) FOR KEY SHARE;
    PERFORM FROM ingest.queue q WHERE q.document_id = ANY (ids) FOR UPDATE;
    PERFORM FROM ingest.failures f WHERE f.document_id = ANY (ids) FOR UPDATE;
    WITH probe AS (
        INSERT INTO ingest.queue (document_id, pipeline_id, bytes)
        SELECT u.id, p.pipeline_id, -1 FROM unnest(ids) AS u(id), ingest.pipeline p WHERE p.name = ANY (pipelines)
        ON CONFLICT DO NOTHING RETURNING document_id
    )
    SELECT array_agg(document_id) INTO probes FROM probe;
    DELETE FROM ingest.queue q WHERE q.document_id = ANY (probes) AND q.bytes = -1;
    WITH probe AS (
        INSERT INTO ingest.failures (pipeline, document_id, key, error_class, message, attempts, retryable, rebuild)
        SELECT '', u.id, '', 'internal', '', 0, false, r.rebuild FROM unnest(ids) AS u(id), (VALUES (false), (true)) AS r(rebuild)
        ON CONFLICT DO NOTHING RETURNING document_id
    )
    SELECT array_agg(document_id) INTO probes FROM probe;
    DELETE FROM ingest.failures f WHERE f.document_id = ANY (probes) AND f.pipeline = '';
END $$;
COMMENT ON FUNCTION ingest.refuse_old_snapshot(bigint[], text[]) IS 'Raises a serialization failure where the transaction''s snapshot does not show what became of these documents and pipelines';
REVOKE ALL ON FUNCTION ingest.refuse_old_snapshot(bigint[], text[]) FROM PUBLIC;

CREATE FUNCTION ingest.has_old_snapshot() RETURNS boolean
LANGUAGE sql STABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
    SELECT current_setting('transaction_isolation') NOT IN ('read committed', 'read uncommitted')
$$;
COMMENT ON FUNCTION ingest.has_old_snapshot() IS 'Whether the transaction sees only what was committed when it began';

CREATE FUNCTION ingest.require_read_committed(what text, because text, advice text = 'BEGIN ISOLATION LEVEL READ COMMITTED;') RETURNS void
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF ingest.has_old_snapshot() THEN
        RAISE EXCEPTION '% needs isolation level READ COMMITTED', what
            USING ERRCODE = 'invalid_transaction_state',
                  DETAIL = format('A %s transaction %s.', current_setting('transaction_isolation'), because),
                  HINT = advice;
    END IF;
END $$;
COMMENT ON FUNCTION ingest.require_read_committed(text, text, text) IS 'Raises an error in a transaction that sees only what was committed when it began';

CREATE FUNCTION ingest.documents_inserted() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF TG_RELID <> 'ingest.documents'::regclass THEN
        RAISE EXCEPTION 'this trigger belongs to ingest.documents' USING ERRCODE = 'insufficient_privilege';
    END IF;
    -- pg_dump's output turns both settings off before it copies data. A restored document must not be queued: whether
    -- it was embedded, waiting or failed is in the other tables of the same dump.
    IF current_setting('check_function_bodies') = 'off' AND current_setting('row_security') = 'off' THEN
        PERFORM ingest.wake();
        RETURN NULL;
    END IF;
    -- Documents that others add have the ids to come.
    IF EXISTS (SELECT FROM pg_roles r
               WHERE r.rolname = CASE current_setting('role') WHEN 'none' THEN session_user ELSE current_setting('role')::name END
                 AND NOT (r.rolsuper OR r.rolbypassrls))
       AND EXISTS (SELECT FROM new_rows n WHERE n.id NOT BETWEEN 1 AND (SELECT s.last_value - (NOT s.is_called)::int FROM ingest.documents_id_seq s)) THEN
        RAISE EXCEPTION 'a document has an id that is still to be given' USING ERRCODE = 'generated_always',
            DETAIL = format('Ids up to %s have been given.', (SELECT s.last_value - (NOT s.is_called)::int FROM ingest.documents_id_seq s)),
            HINT = 'Leave out id, or OVERRIDING SYSTEM VALUE; your own name for a document is its key.';
    END IF;
    IF ingest.has_old_snapshot() THEN
        PERFORM ingest.refuse_old_snapshot(NULL, ARRAY(SELECT DISTINCT n.pipeline FROM new_rows n));
    END IF;
    WITH added AS (
        INSERT INTO ingest.queue (document_id, pipeline_id, bytes)
        SELECT n.id, coalesce(p.pipeline_id, ingest.unknown_pipeline(n.pipeline)), coalesce(octet_length(n.content), n.source_bytes, 0)
        FROM new_rows n LEFT JOIN ingest.pipeline p ON p.name = n.pipeline
        RETURNING pipeline_id, bytes
    )
    INSERT INTO ingest.counter_delta (pipeline_id, documents, queued, queued_bytes)
    SELECT pipeline_id, count(*), count(*), sum(bytes) FROM added GROUP BY pipeline_id;
    IF FOUND THEN
        PERFORM ingest.wake();
    END IF;
    RETURN NULL;
END $$;
COMMENT ON FUNCTION ingest.documents_inserted() IS 'Queues inserted documents';

-- Takes documents that left the staging table (or moved to another key or pipeline) out of queue, failures and target.
-- The queue comes first: a worker that is just writing such a document holds its queue row, and the chunks that it
-- writes must be seen, and deleted, by the statement after.
CREATE FUNCTION ingest.forget_documents(ids bigint[], pipelines text[], keys text[]) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    archiving boolean := ingest.worker_is_archiving();
    gone record;
    removed record;
BEGIN
    -- A worker that is settling one of them is waited for here, so that the next statement sees what it settled.
    PERFORM FROM ingest.queue q WHERE q.document_id = ANY (ids) FOR UPDATE;
    -- Documents with neither row were embedded and leave no other trace.
    WITH dequeued AS (
        DELETE FROM ingest.queue q WHERE q.document_id = ANY (ids) RETURNING q.document_id, q.pipeline_id, q.bytes
    ), unfailed AS (
        DELETE FROM ingest.failures f WHERE f.document_id = ANY (ids) RETURNING f.document_id, f.pipeline, f.rebuild
    ), changes AS (
        SELECT pipeline_id, 0 AS documents, 1 AS queued, bytes, 0 AS failed FROM dequeued
        UNION ALL
        SELECT p.pipeline_id, 0, 0, 0, 1 FROM unfailed f
        JOIN ingest.pipeline p ON p.name = f.pipeline AND (p.successor_of IS NOT NULL) = f.rebuild
        WHERE NOT EXISTS (SELECT FROM dequeued d WHERE d.document_id = f.document_id AND d.pipeline_id = p.pipeline_id)
        UNION ALL
        SELECT p.pipeline_id, count(*), 0, 0, 0 FROM unnest(pipelines) AS u(name) JOIN ingest.pipeline p ON p.name = u.name
        GROUP BY p.pipeline_id
    )
    INSERT INTO ingest.counter_delta (pipeline_id, documents, queued, queued_bytes, failed)
    SELECT pipeline_id, -sum(documents), -sum(queued), -sum(bytes), -sum(failed) FROM changes GROUP BY pipeline_id;

    IF NOT archiving THEN
        FOR gone IN
            SELECT p.pipeline_id, array_agg(u.key) AS keys
            FROM unnest(pipelines, keys) AS u(name, key) JOIN ingest.pipeline p ON p.name = u.name
            GROUP BY p.pipeline_id
        LOOP
            SELECT * INTO removed FROM ingest.delete_chunks(gone.pipeline_id, gone.keys);
            IF removed.chunks > 0 THEN
                INSERT INTO ingest.counter_delta (pipeline_id, chunks, tokens)
                VALUES (gone.pipeline_id, -removed.chunks, -removed.tokens);
            END IF;
        END LOOP;
    END IF;
END $$;
COMMENT ON FUNCTION ingest.forget_documents(bigint[], text[], text[]) IS 'Removes queue and failure rows and chunks of documents';
REVOKE ALL ON FUNCTION ingest.forget_documents(bigint[], text[], text[]) FROM PUBLIC;

CREATE FUNCTION ingest.documents_deleted() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    ids bigint[];
    pipelines text[];
    keys text[];
BEGIN
    IF TG_RELID <> 'ingest.documents'::regclass THEN
        RAISE EXCEPTION 'this trigger belongs to ingest.documents' USING ERRCODE = 'insufficient_privilege';
    END IF;
    SELECT array_agg(id), array_agg(pipeline), array_agg(key) INTO ids, pipelines, keys FROM old_rows;
    IF ids IS NOT NULL THEN
        IF ingest.has_old_snapshot() THEN
            PERFORM ingest.refuse_old_snapshot(ids, pipelines);
        END IF;
        PERFORM ingest.forget_documents(ids, pipelines, keys);
        PERFORM ingest.wake_to_review();
    END IF;
    RETURN NULL;
END $$;
COMMENT ON FUNCTION ingest.documents_deleted() IS 'Removes what belongs to deleted documents, chunks included';

-- A session keeps the plans that it made when few rows changed. Without nested loops these do for many, too; and queue and
-- failures are asked by document, so that nothing but the changed rows is joined.
CREATE FUNCTION ingest.documents_updated() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET enable_nestloop = off AS $$
DECLARE
    changed_ids bigint[];
    moved_ids bigint[];
    moved_pipelines text[];
    moved_keys text[];
    relabelled record;
    woken boolean := false;
BEGIN
    IF TG_RELID <> 'ingest.documents'::regclass THEN
        RAISE EXCEPTION 'this trigger belongs to ingest.documents' USING ERRCODE = 'insufficient_privilege';
    END IF;
    IF ingest.has_old_snapshot() THEN
        PERFORM ingest.refuse_old_snapshot(ARRAY(SELECT n.id FROM new_rows n),
            ARRAY(SELECT n.pipeline FROM new_rows n UNION SELECT o.pipeline FROM old_rows o));
    END IF;
    -- Another pipeline or key is another document: the old one goes, the new one is queued.
    SELECT array_agg(o.id), array_agg(o.pipeline), array_agg(o.key) INTO moved_ids, moved_pipelines, moved_keys
    FROM old_rows o JOIN new_rows n ON n.id = o.id
    WHERE n.pipeline <> o.pipeline OR n.key <> o.key;
    IF moved_ids IS NOT NULL THEN
        PERFORM ingest.forget_documents(moved_ids, moved_pipelines, moved_keys);
        WITH added AS (
            INSERT INTO ingest.queue (document_id, pipeline_id, bytes)
            SELECT n.id, coalesce(p.pipeline_id, ingest.unknown_pipeline(n.pipeline)), coalesce(octet_length(n.content), n.source_bytes, 0)
            FROM new_rows n LEFT JOIN ingest.pipeline p ON p.name = n.pipeline
            WHERE n.id = ANY (moved_ids)
            RETURNING pipeline_id, bytes
        )
        INSERT INTO ingest.counter_delta (pipeline_id, documents, queued, queued_bytes)
        SELECT pipeline_id, count(*), count(*), sum(bytes) FROM added GROUP BY pipeline_id;
        woken := true;
    END IF;

    -- New content is queued once, whatever was waiting; a claim on the old content is void. A worker that is settling
    -- one of the documents is waited for first, so that the statement after sees what it settled.
    changed_ids := ARRAY(SELECT n.id FROM new_rows n);
    PERFORM FROM ingest.queue q WHERE q.document_id = ANY (changed_ids) FOR UPDATE;
    changed_ids := ARRAY(SELECT n.id FROM old_rows o JOIN new_rows n ON n.id = o.id
                         WHERE (n.content, n.source_version) IS DISTINCT FROM (o.content, o.source_version)
                           AND n.pipeline = o.pipeline AND n.key = o.key);
    WITH changed AS (
        SELECT n.id, p.pipeline_id, p.successor_of IS NOT NULL AS rebuild, coalesce(octet_length(n.content), n.source_bytes, 0) AS bytes
        FROM new_rows n JOIN ingest.pipeline p ON p.name = n.pipeline
        WHERE n.id = ANY (changed_ids)
    ), before AS (
        SELECT q.document_id, q.pipeline_id, q.bytes FROM ingest.queue q WHERE q.document_id = ANY (changed_ids) FOR UPDATE
    ), queued AS (
        -- With neither queue row nor failure it was embedded: what of it has not changed is not paid for again.
        INSERT INTO ingest.queue AS q (document_id, pipeline_id, bytes, revised)
        SELECT c.id, c.pipeline_id, c.bytes,
               NOT EXISTS (SELECT FROM ingest.failures f WHERE f.document_id = c.id AND f.rebuild = c.rebuild)
        FROM changed c LEFT JOIN before b ON b.document_id = c.id AND b.pipeline_id = c.pipeline_id
        ON CONFLICT (document_id, pipeline_id) DO UPDATE
            SET bytes = EXCLUDED.bytes, attempts = 0, crashes = 0, claimed_by = NULL, claim_token = NULL, retry_at = NULL
        RETURNING q.document_id, q.pipeline_id, q.bytes, (q.xmax = 0) AS is_new
    )
    INSERT INTO ingest.counter_delta (pipeline_id, queued, queued_bytes, failed)
    SELECT q.pipeline_id, count(*) FILTER (WHERE q.is_new), sum(q.bytes - coalesce(b.bytes, 0)),
           -count(f.document_id) FILTER (WHERE q.is_new)
    FROM queued q
    JOIN changed c ON c.id = q.document_id AND c.pipeline_id = q.pipeline_id
    LEFT JOIN before b ON b.document_id = q.document_id AND b.pipeline_id = q.pipeline_id
    LEFT JOIN (SELECT g.document_id, g.rebuild FROM ingest.failures g WHERE g.document_id = ANY (changed_ids)) f
        ON f.document_id = q.document_id AND f.rebuild = c.rebuild
    GROUP BY q.pipeline_id;
    woken := woken OR FOUND;

    -- New metadata alone costs no request. A document in flight carries the old metadata: it is taken back.
    FOR relabelled IN
        SELECT p.pipeline_id, array_agg(n.id) AS ids, array_agg(n.key) AS keys, array_agg(n.metadata::text) AS metadata
        FROM old_rows o JOIN new_rows n ON n.id = o.id JOIN ingest.pipeline p ON p.name = n.pipeline
        WHERE n.metadata IS DISTINCT FROM o.metadata AND n.content IS NOT DISTINCT FROM o.content
          AND n.pipeline = o.pipeline AND n.key = o.key
        GROUP BY p.pipeline_id
    LOOP
        UPDATE ingest.queue SET claimed_by = NULL, claim_token = NULL
        WHERE document_id = ANY (relabelled.ids) AND pipeline_id = relabelled.pipeline_id AND claimed_by IS NOT NULL;
        PERFORM ingest.replace_metadata(relabelled.pipeline_id, relabelled.keys, relabelled.metadata);
        woken := true;
    END LOOP;

    IF woken THEN
        PERFORM ingest.wake_to_review();
    END IF;
    RETURN NULL;
END $$;
COMMENT ON FUNCTION ingest.documents_updated() IS 'Queues documents whose content changed; unchanged content is not embedded again';

CREATE FUNCTION ingest.documents_truncated() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    emptied record;
    removed_chunks bigint;
    removed_tokens bigint;
BEGIN
    IF TG_RELID <> 'ingest.documents'::regclass THEN
        RAISE EXCEPTION 'this trigger belongs to ingest.documents' USING ERRCODE = 'insufficient_privilege';
    END IF;
    PERFORM ingest.require_read_committed('TRUNCATE ingest.documents', 'does not see all that it would remove', 'Use DELETE FROM ingest.documents.');
    DELETE FROM ingest.queue;
    DELETE FROM ingest.failures;
    FOR emptied IN SELECT t.*, p.on_success FROM ingest.totals t JOIN ingest.pipeline p USING (pipeline_id) LOOP
        removed_chunks := 0;
        removed_tokens := 0;
        -- Chunks of archived documents have no staging row; they were never this table's to remove.
        IF emptied.on_success = 'keep' THEN
            SELECT c.chunks, c.tokens INTO removed_chunks, removed_tokens FROM ingest.delete_chunks(emptied.pipeline_id, NULL) c;
        END IF;
        INSERT INTO ingest.counter_delta (pipeline_id, documents, queued, queued_bytes, failed, chunks, tokens)
        VALUES (emptied.pipeline_id, -emptied.documents, -emptied.queued, -emptied.queued_bytes, -emptied.failed,
                -removed_chunks, -removed_tokens);
    END LOOP;
    PERFORM ingest.wake_to_review();
    RETURN NULL;
END $$;
COMMENT ON FUNCTION ingest.documents_truncated() IS 'TRUNCATE ingest.documents removes the chunks too';

CREATE VIEW ingest.totals AS
SELECT pipeline_id, sum(documents)::bigint AS documents, sum(archived)::bigint AS archived, sum(queued)::bigint AS queued,
       sum(queued_bytes)::bigint AS queued_bytes, sum(failed)::bigint AS failed, sum(chunks)::bigint AS chunks,
       sum(tokens)::bigint AS tokens, sum(reused_tokens)::bigint AS reused_tokens
FROM (TABLE ingest.counter UNION ALL TABLE ingest.counter_delta) AS c
GROUP BY pipeline_id;
COMMENT ON VIEW ingest.totals IS 'The counters of each pipeline, differences included';

CREATE TRIGGER document_without_key BEFORE INSERT ON ingest.documents
    FOR EACH ROW WHEN (NEW.key IS NULL) EXECUTE FUNCTION ingest.document_without_key();
CREATE TRIGGER document_changed BEFORE UPDATE ON ingest.documents
    FOR EACH ROW WHEN (OLD.* IS DISTINCT FROM NEW.*) EXECUTE FUNCTION ingest.document_changed();
CREATE TRIGGER documents_inserted AFTER INSERT ON ingest.documents
    REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION ingest.documents_inserted();
CREATE TRIGGER documents_updated AFTER UPDATE ON ingest.documents
    REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION ingest.documents_updated();
CREATE TRIGGER documents_deleted AFTER DELETE ON ingest.documents
    REFERENCING OLD TABLE AS old_rows FOR EACH STATEMENT EXECUTE FUNCTION ingest.documents_deleted();
CREATE TRIGGER documents_truncated AFTER TRUNCATE ON ingest.documents
    FOR EACH STATEMENT EXECUTE FUNCTION ingest.documents_truncated();

-- A restored queue: claims of the server that was dumped mean nothing here, and nobody else wakes the worker for it.
CREATE FUNCTION ingest.claim_without_worker() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    NEW.claimed_by := NULL;
    NEW.claim_token := NULL;
    RETURN NEW;
END $$;
COMMENT ON FUNCTION ingest.claim_without_worker() IS 'Frees restored documents that were in flight when they were dumped';
CREATE TRIGGER claim_without_worker BEFORE INSERT ON ingest.queue
    FOR EACH ROW WHEN (NEW.claimed_by IS NOT NULL) EXECUTE FUNCTION ingest.claim_without_worker();

CREATE FUNCTION ingest.hold_for_restore() RETURNS void
LANGUAGE c VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS 'MODULE_PATHNAME', 'hold_for_restore_wrapper';
COMMENT ON FUNCTION ingest.hold_for_restore() IS 'Keeps workers from claiming while a dump is restored, until the session ends';
REVOKE ALL ON FUNCTION ingest.hold_for_restore() FROM PUBLIC;

CREATE FUNCTION ingest.queue_restored() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    -- Until the session that restores ends: the target's keys and sequences come later in the dump than its rows.
    IF current_setting('check_function_bodies') = 'off' AND current_setting('row_security') = 'off' THEN
        PERFORM ingest.hold_for_restore();
    END IF;
    PERFORM ingest.wake();
    RETURN NULL;
END $$;
COMMENT ON FUNCTION ingest.queue_restored() IS 'Wakes the worker for a restored queue';
CREATE TRIGGER queue_restored AFTER INSERT ON ingest.queue
    FOR EACH STATEMENT WHEN (pg_trigger_depth() = 0) EXECUTE FUNCTION ingest.queue_restored();

CREATE FUNCTION ingest.pipeline_added() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    -- A dump of 0.1.0 does not say whether these were other ones when the vectors were made that are in the target.
    NEW.reuses := NOT (current_setting('check_function_bodies') = 'off' AND current_setting('row_security') = 'off'
                       AND (NEW.base_url IS NOT NULL OR NEW.request IS NOT NULL));
    RETURN NEW;
END $$;
COMMENT ON FUNCTION ingest.pipeline_added() IS 'Whether a pipeline keeps vectors that are there: a new one does, a restored one where that is known';
CREATE TRIGGER pipeline_added BEFORE INSERT ON ingest.pipeline
    FOR EACH ROW WHEN (NEW.reuses IS NULL) EXECUTE FUNCTION ingest.pipeline_added();

-- Only the tables above fire these; a role that could attach them to a table of its own would run them on what it likes.
REVOKE ALL ON FUNCTION ingest.document_without_key(), ingest.document_changed(), ingest.documents_inserted(),
    ingest.documents_updated(), ingest.documents_deleted(), ingest.documents_truncated(), ingest.claim_without_worker(),
    ingest.queue_restored(), ingest.pipeline_added() FROM PUBLIC;
