CREATE FUNCTION ingest.create_pipeline(
    name text = 'default', model text = 'local/all-MiniLM-L6-v2', dimensions int = NULL, base_url text = NULL,
    api_key text = NULL, target text = NULL, layout text = 'chunks', chunk_tokens int = NULL, chunk_overlap int = NULL,
    splitter text = 'text', limits text = NULL, concurrency int = 10, batch_size int = NULL, max_attempts int = 5,
    index text = 'deferred', on_success text = 'keep', request jsonb = NULL, language text = 'simple')
RETURNS void
LANGUAGE c VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS 'MODULE_PATHNAME', 'create_pipeline_0_2_wrapper';
COMMENT ON FUNCTION ingest.create_pipeline(text, text, int, text, text, text, text, int, int, text, text, int, int, int, text, text, jsonb, text)
    IS 'Defines a pipeline and creates its target table (ingest.<name>_chunks, or vecs.<name> with layout vecs, unless target is given)';

CREATE FUNCTION ingest.alter_pipeline(
    name text, model text = NULL, dimensions int = NULL, base_url text = NULL, api_key text = NULL, target text = NULL,
    layout text = NULL, chunk_tokens int = NULL, chunk_overlap int = NULL, splitter text = NULL, limits text = NULL,
    concurrency int = NULL, batch_size int = NULL, max_attempts int = NULL, index text = NULL, on_success text = NULL,
    request jsonb = NULL, language text = NULL)
RETURNS void
LANGUAGE c VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS 'MODULE_PATHNAME', 'alter_pipeline_0_2_wrapper';
COMMENT ON FUNCTION ingest.alter_pipeline(text, text, int, text, text, text, text, int, int, text, text, int, int, int, text, text, jsonb, text)
    IS 'Changes what is given of a pipeline, at once. What the vectors of a pipeline with data depend on (model, dimensions, chunks, request) is built beside them and takes their place when it is complete: see ingest.rebuilds';

CREATE FUNCTION ingest.drop_pipeline(name text, drop_target boolean = false) RETURNS void
LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS 'MODULE_PATHNAME', 'drop_pipeline_wrapper';
COMMENT ON FUNCTION ingest.drop_pipeline(text, boolean) IS 'Removes a pipeline with its staged documents and failures; its target table too when drop_target is true';

-- The definition of a pipeline, or the error that lists those there are. Functions that show some of it decide what.
CREATE FUNCTION ingest.pipeline_named(name text) RETURNS ingest.pipeline
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    found_row ingest.pipeline;
BEGIN
    SELECT * INTO found_row FROM ingest.pipeline p WHERE p.name = pipeline_named.name AND p.successor_of IS NULL;
    IF NOT FOUND THEN
        PERFORM ingest.unknown_pipeline(coalesce(name, 'null'));
    END IF;
    RETURN found_row;
END $$;
COMMENT ON FUNCTION ingest.pipeline_named(text) IS 'The definition of the pipeline with this name; an error when there is none';
REVOKE ALL ON FUNCTION ingest.pipeline_named(text) FROM PUBLIC;

CREATE FUNCTION ingest.target_of(pipeline text)
RETURNS TABLE (target regclass, dimensions int, layout text, language text, generation int)
LANGUAGE sql STABLE SECURITY DEFINER ROWS 1 SET search_path = pg_catalog, pg_temp AS $$
    SELECT p.target, p.dimensions, p.layout, p.language, p.generation FROM ingest.pipeline_named(pipeline) AS p
$$;
COMMENT ON FUNCTION ingest.target_of(text) IS 'Where the pipeline of this name keeps its chunks; an error when there is none. Whoever may read the table may search it';

CREATE FUNCTION ingest.set_paused(pipeline_id int, paused boolean) RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    UPDATE ingest.pipeline p
    SET paused = set_paused.paused, blocked_error = NULL, blocked_until = NULL, blocked_times = 0
    WHERE set_paused.pipeline_id IN (p.pipeline_id, p.successor_of);
    PERFORM ingest.wake_to_review();
END $$;
COMMENT ON FUNCTION ingest.set_paused(int, boolean) IS 'What pause() and resume() write';
REVOKE ALL ON FUNCTION ingest.set_paused(int, boolean) FROM PUBLIC;

CREATE FUNCTION ingest.pause(pipeline text) RETURNS void
LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS 'MODULE_PATHNAME', 'pause_wrapper';
COMMENT ON FUNCTION ingest.pause(text) IS 'The worker sends no further documents of the pipeline; requests that are being answered are finished';

CREATE FUNCTION ingest.resume(pipeline text) RETURNS void
LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS 'MODULE_PATHNAME', 'resume_wrapper';
COMMENT ON FUNCTION ingest.resume(text) IS 'Goes on after pause(), tries a blocked pipeline again at once, and ends a cool-down';

CREATE VIEW ingest.pipelines WITH (security_barrier) AS
SELECT p.name, p.owner, p.model, p.dimensions,
       CASE WHEN o.owned THEN p.base_url END AS base_url, CASE WHEN o.owned THEN p.api_key END AS api_key, p.target, p.layout, p.chunk_tokens, p.chunk_overlap,
       p.splitter, p.limits, p.concurrency, p.batch_size, p.max_attempts, p.index, p.on_success,
       CASE WHEN o.owned THEN p.request END AS request, p.paused, p.created_at, p.language,
       ARRAY(SELECT g.grantee FROM ingest.pipeline_grant g WHERE g.pipeline_id = p.pipeline_id ORDER BY g.grantee::oid) AS granted_to
FROM ingest.pipeline AS p
JOIN ingest.visible_pipelines AS v USING (pipeline_id)
CROSS JOIN LATERAL (SELECT pg_has_role(p.owner::oid, 'USAGE') AS owned) AS o
WHERE p.successor_of IS NULL;
COMMENT ON VIEW ingest.pipelines IS 'The definitions of the pipelines that you own or were granted. api_key is a reference to a key, never a key; it, base_url and request are the owner''s to see';
COMMENT ON COLUMN ingest.pipelines.target IS 'the table that holds the chunks and their vectors';
COMMENT ON COLUMN ingest.pipelines.chunk_tokens IS 'longest chunk, in tokens of the model';
COMMENT ON COLUMN ingest.pipelines.chunk_overlap IS 'tokens that neighbouring chunks share at most';
COMMENT ON COLUMN ingest.pipelines.limits IS 'the limit whose budget it uses: see ingest.limits';
COMMENT ON COLUMN ingest.pipelines.concurrency IS 'requests in flight at most, over all worker processes';
COMMENT ON COLUMN ingest.pipelines.batch_size IS 'inputs of a request at most; null for what the model takes';
COMMENT ON COLUMN ingest.pipelines.request IS 'extra headers and fields of its requests';
COMMENT ON COLUMN ingest.pipelines.granted_to IS 'roles that grant_pipeline() let in';
COMMENT ON COLUMN ingest.pipelines.language IS 'the text search configuration of hybrid_search() and its index';
COMMENT ON COLUMN ingest.pipelines.base_url IS 'where the model''s API is, when it is not the provider''s own; the owner''s to see';
COMMENT ON COLUMN ingest.pipelines.api_key IS 'a reference to the key (env:NAME, file:PATH, vault:NAME), never a key; the owner''s to see';
COMMENT ON COLUMN ingest.pipelines.layout IS 'what the target looks like: chunks, or vecs for the vecs client and LlamaIndex';
COMMENT ON COLUMN ingest.pipelines.splitter IS 'text, markdown, or none for a document as one chunk';
COMMENT ON COLUMN ingest.pipelines.index IS 'none, immediate, or deferred: built when there are enough chunks and the backlog is done';
COMMENT ON COLUMN ingest.pipelines.on_success IS 'keep or delete: what becomes of a document when it is embedded';
COMMENT ON COLUMN ingest.pipelines.paused IS 'whether somebody paused it';
COMMENT ON COLUMN ingest.pipelines.max_attempts IS 'how often a document is tried before it is a failure';

CREATE FUNCTION ingest.progress_bar(fraction float8, width int = 10) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
    SELECT repeat('█', eighths / 8)
           || CASE WHEN eighths % 8 > 0 THEN substr('▏▎▍▌▋▊▉', eighths % 8, 1) ELSE '' END
           || repeat(' ', width - (eighths + 7) / 8)
    FROM (SELECT floor(least(greatest(fraction, 0), 1) * width * 8)::int AS eighths) AS e
$$;
COMMENT ON FUNCTION ingest.progress_bar(float8, int) IS 'A fraction (0 to 1) drawn in eighths of a character';

CREATE VIEW ingest.claims WITH (security_barrier) AS
SELECT q.pipeline_id FROM ingest.queue q
WHERE q.claimed_by IS NOT NULL AND q.pipeline_id IN (SELECT v.pipeline_id FROM ingest.visible_pipelines v);
COMMENT ON VIEW ingest.claims IS 'Behind claimed_documents(): a row for each document that a worker holds, of the pipelines that you see';

-- Documents in flight are few, whatever the length of the queue; the settings keep a planner without statistics from
-- reading all of it. A plain index scan also marks the entries of finished documents dead, a bitmap scan would not.
CREATE FUNCTION ingest.claimed_documents() RETURNS TABLE (pipeline_id int, claimed bigint)
LANGUAGE sql STABLE ROWS 10
SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET enable_bitmapscan = off AS $$
    SELECT c.pipeline_id, count(*) FROM ingest.claims c GROUP BY c.pipeline_id
$$;
COMMENT ON FUNCTION ingest.claimed_documents() IS 'Documents that workers hold, by pipeline';

-- Of all pipelines that the role sees, those that are being rebuilt and their rebuilds, which have their name.
CREATE VIEW ingest.progress_of_all WITH (security_barrier) AS
WITH counted AS (
    SELECT p.*, t.documents + t.archived AS total, t.queued, t.queued_bytes, t.failed AS settled_failed, t.chunks, t.tokens,
           t.reused_tokens,
           coalesce(c.claimed, 0) AS claimed
    FROM ingest.pipeline p JOIN ingest.visible_pipelines v USING (pipeline_id) JOIN ingest.totals t USING (pipeline_id) LEFT JOIN ingest.claimed_documents() c USING (pipeline_id)
), named AS (
    SELECT c.*, c.total - c.queued - c.settled_failed AS done,
           CASE WHEN c.queued > 0 AND NOT c.paused THEN ingest.worker_problem() END AS problem,
           b.cooling_down, b.target_tpm, b.target_rpm
    FROM counted c LEFT JOIN ingest.budget_states() b ON b.name = c.limits OR b.pipeline_id = c.pipeline_id AND c.limits IS NULL
)
SELECT n.name AS pipeline,
       CASE WHEN n.paused THEN 'paused'
            WHEN n.blocked_error IS NOT NULL OR n.problem IS NOT NULL THEN 'blocked'
            WHEN n.queued > 0 AND n.cooling_down IS NOT NULL THEN 'cooling_down'
            WHEN n.queued > 0 OR EXISTS (SELECT FROM ingest.watch w WHERE w.pipeline_id = n.pipeline_id AND w.phase <> 'done') THEN 'running'
            ELSE 'idle' END AS state,
       n.total AS documents, n.done AS embedded, n.queued - n.claimed AS pending, n.claimed AS in_flight,
       n.settled_failed AS failed,
       CASE WHEN n.total > 0 THEN trunc(100.0 * n.done / n.total, 1) ELSE 100.0 END AS percent,
       ingest.progress_bar(CASE WHEN n.total > 0 THEN n.done::float8 / n.total ELSE 1 END) AS bar,
       n.chunks, n.tokens,
       round(coalesce(r.documents_per_minute, 0)::numeric, 1) AS documents_per_minute,
       round(coalesce(r.tokens_per_minute, 0)::numeric) AS tokens_per_minute,
       CASE WHEN n.queued = 0 THEN interval '0'
            WHEN n.paused OR n.blocked_error IS NOT NULL OR n.problem IS NOT NULL THEN NULL
            -- The day's budget is used up: how many days it takes is what estimate() says.
            WHEN n.cooling_down > interval '1 hour' THEN NULL
            WHEN n.queued_bytes > 0 AND r.bytes_per_minute > 0 AND n.queued_bytes / r.bytes_per_minute < 1e7
            THEN make_interval(secs => ceil(60 * n.queued_bytes / r.bytes_per_minute)) + coalesce(n.cooling_down, interval '0')
            -- Nothing is done yet: what the budget allows, with four bytes to a token of ordinary text.
            WHEN n.queued_bytes > 0 AND n.target_tpm > 0 AND n.queued_bytes / 4.0 / n.target_tpm < 1e7
            THEN make_interval(secs => ceil(60 * n.queued_bytes / 4.0 / n.target_tpm)) + coalesce(n.cooling_down, interval '0')
            END AS eta,
       ingest.cost_usd(n.model, n.tokens) AS cost_usd,
       coalesce(CASE WHEN starts_with(n.blocked_error, 'the host or key of the pipeline cannot be used') AND NOT pg_has_role(n.owner::oid, 'USAGE')
                     THEN 'the host or key of the pipeline cannot be used: its owner can see why' ELSE n.blocked_error END, n.problem,
                (SELECT f.message FROM ingest.failures f
                 WHERE f.pipeline = n.name AND f.rebuild = (n.successor_of IS NOT NULL)
                 ORDER BY f.last_failed_at DESC LIMIT 1)) AS last_error,
       n.reused_tokens, ingest.cost_usd(n.model, n.reused_tokens) AS saved_usd, n.pipeline_id, n.successor_of
FROM named n LEFT JOIN ingest.rates() r USING (pipeline_id);
COMMENT ON VIEW ingest.progress_of_all IS 'Behind the views ingest.progress and ingest.rebuilds';

CREATE VIEW ingest.progress WITH (security_barrier) AS
-- Once, for planning it takes longer than running it.
WITH shown AS (TABLE ingest.progress_of_all)
SELECT a.pipeline, a.state, a.documents, a.embedded, a.pending, a.in_flight, a.failed, a.percent, a.bar, a.chunks, a.tokens,
       a.documents_per_minute, a.tokens_per_minute, a.eta, a.cost_usd, a.last_error, a.reused_tokens, a.saved_usd,
       (SELECT format('%s %% of %s', r.percent, p.model) FROM shown r JOIN ingest.pipeline p USING (pipeline_id)
        WHERE r.successor_of = a.pipeline_id) AS rebuilding
FROM shown a
WHERE a.successor_of IS NULL
ORDER BY a.pipeline;
COMMENT ON VIEW ingest.progress IS 'How far each pipeline is: SELECT * FROM ingest.progress \watch 1';
COMMENT ON COLUMN ingest.progress.state IS 'idle, running, cooling_down, paused, or blocked (needs a person: see last_error)';
COMMENT ON COLUMN ingest.progress.documents IS 'documents staged, and those embedded and deleted with on_success => ''delete''';
COMMENT ON COLUMN ingest.progress.embedded IS 'documents whose present content is in the target';
COMMENT ON COLUMN ingest.progress.pending IS 'documents waiting, for the worker or for their next attempt';
COMMENT ON COLUMN ingest.progress.in_flight IS 'documents that a worker holds';
COMMENT ON COLUMN ingest.progress.failed IS 'documents in ingest.failures that are not queued again';
COMMENT ON COLUMN ingest.progress.percent IS 'embedded of documents';
COMMENT ON COLUMN ingest.progress.tokens IS 'tokens of all chunks in the target';
COMMENT ON COLUMN ingest.progress.documents_per_minute IS 'embedded in the last 60 seconds of work, as a rate';
COMMENT ON COLUMN ingest.progress.eta IS 'time to embed what is queued: its bytes at the last minute''s rate, before that at what the budget allows; null when unknown';
COMMENT ON COLUMN ingest.progress.cost_usd IS 'price of tokens by the model catalogue, in US dollars: what embedding all that is in the target costs, each chunk once';
COMMENT ON COLUMN ingest.progress.last_error IS 'why the pipeline is blocked, else the latest failure';
COMMENT ON COLUMN ingest.progress.reused_tokens IS 'tokens that were not sent because the vectors of the same texts were there, since the pipeline was created: chunks of changed documents that did not change, and texts that occur more than once';
COMMENT ON COLUMN ingest.progress.saved_usd IS 'price of reused_tokens by the model catalogue, in US dollars';
COMMENT ON COLUMN ingest.progress.rebuilding IS 'how far the new vectors are that alter_pipeline() asked for: see ingest.rebuilds; null when none are made';
COMMENT ON COLUMN ingest.progress.bar IS 'percent, drawn';
COMMENT ON COLUMN ingest.progress.chunks IS 'chunks in the target';
COMMENT ON COLUMN ingest.progress.tokens_per_minute IS 'tokens of the chunks written in the last 60 seconds of work, as a rate';

-- What drop_pipeline() removes of ours. The lock keeps documents out that would find no pipeline afterwards.
CREATE FUNCTION ingest.remove_pipeline(pipeline_id int) RETURNS void
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    gone ingest.pipeline;
BEGIN
    PERFORM ingest.require_read_committed('drop_pipeline()', 'does not see all documents that it would remove');
    -- Whoever writes to a watched table holds it before the documents.
    PERFORM ingest.detach_source(w.watch_id) FROM ingest.watch w WHERE w.pipeline_id = remove_pipeline.pipeline_id;
    DELETE FROM ingest.watch w WHERE w.pipeline_id = remove_pipeline.pipeline_id;
    -- In the order in which a worker locks: documents, queue, pipeline, differences, counter.
    LOCK TABLE ingest.documents IN SHARE ROW EXCLUSIVE MODE;
    PERFORM ingest.remove_successor(remove_pipeline.pipeline_id);
    DELETE FROM ingest.queue q WHERE q.pipeline_id = remove_pipeline.pipeline_id;
    DELETE FROM ingest.pipeline p WHERE p.pipeline_id = remove_pipeline.pipeline_id RETURNING p.* INTO gone;
    DELETE FROM ingest.failures f WHERE f.pipeline = gone.name;
    -- The trigger finds no pipeline of this name any more, and so leaves the chunks alone.
    DELETE FROM ingest.documents d WHERE d.pipeline = gone.name;
    DELETE FROM ingest.counter_delta c WHERE c.pipeline_id = remove_pipeline.pipeline_id;
    DELETE FROM ingest.counter c WHERE c.pipeline_id = remove_pipeline.pipeline_id;
END $$;
COMMENT ON FUNCTION ingest.remove_pipeline(int) IS 'Deletes a pipeline''s definition, documents, queue, failures and counters';
REVOKE ALL ON FUNCTION ingest.remove_pipeline(int) FROM PUBLIC;

CREATE FUNCTION ingest.requeue_all(pipeline_id int) RETURNS bigint
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    queued_again bigint;
BEGIN
    PERFORM ingest.require_read_committed('splitting documents in another way', 'does not see all documents that it would queue');
    -- Writers are kept out and the worker is waited for, so that the statement after sees what they left.
    LOCK TABLE ingest.documents IN SHARE ROW EXCLUSIVE MODE;
    PERFORM FROM ingest.queue q WHERE q.pipeline_id = requeue_all.pipeline_id FOR UPDATE;
    WITH again AS (
        INSERT INTO ingest.queue AS q (document_id, pipeline_id, bytes, revised)
        SELECT d.id, p.pipeline_id, coalesce(octet_length(d.content), d.source_bytes, 0),
               NOT EXISTS (SELECT FROM ingest.failures f WHERE f.document_id = d.id AND f.rebuild = (p.successor_of IS NOT NULL))
        FROM ingest.documents d JOIN ingest.pipeline p ON p.name = d.pipeline
        WHERE p.pipeline_id = requeue_all.pipeline_id
        ON CONFLICT ON CONSTRAINT queue_pkey DO UPDATE SET claimed_by = NULL, claim_token = NULL, retry_at = NULL, attempts = 0
        RETURNING q.document_id, q.bytes, (q.xmax = 0) AS is_new
    ), counted AS (
        INSERT INTO ingest.counter_delta (pipeline_id, queued, queued_bytes, failed)
        SELECT requeue_all.pipeline_id, count(*), coalesce(sum(a.bytes), 0), -count(f.document_id)
        FROM again a LEFT JOIN ingest.failures f ON f.document_id = a.document_id AND NOT f.rebuild
        WHERE a.is_new
        RETURNING queued
    )
    SELECT count(*) INTO queued_again FROM again;
    RETURN queued_again;
END $$;
COMMENT ON FUNCTION ingest.requeue_all(int) IS 'Queues every document of a pipeline, embedded or not';
REVOKE ALL ON FUNCTION ingest.requeue_all(int) FROM PUBLIC;
