-- A database of pg_ingest 0.1.0 in use: a document that is embedded, one that waits, one in flight when its worker ended,
-- one that failed, one that failed and is queued again. Plain rows, so that it needs nothing of the library.
CREATE TABLE ingest.default_chunks (
    id           bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    document_key text   NOT NULL,
    chunk_no     int    NOT NULL,
    content      text   NOT NULL,
    tokens       int    NOT NULL,
    metadata     jsonb  NOT NULL DEFAULT '{}',
    embedding    vector(384) NOT NULL,
    UNIQUE (document_key, chunk_no)
);
INSERT INTO ingest.pipeline (name, owner, model, dimensions, target, layout, chunk_tokens, chunk_overlap, splitter, concurrency,
                             max_attempts, index, on_success)
VALUES ('default', 'postgres', 'local/all-MiniLM-L6-v2', 384, 'ingest.default_chunks', 'chunks', 254, 0, 'text', 10, 5, 'none', 'keep');
INSERT INTO ingest.counter (pipeline_id) SELECT pipeline_id FROM ingest.pipeline;

INSERT INTO ingest.documents (key, content, metadata) VALUES
    ('done', 'A text that was embedded before the update.', '{"lang": "en"}'),
    ('waits', 'How to rotate an API key: revoke the old one, then issue a new one.', '{}'),
    ('in flight', 'The cat sleeps on the warm stone all day.', '{}'),
    ('failed', '', '{}'),
    ('again', ' ', '{}');

INSERT INTO ingest.default_chunks (document_key, chunk_no, content, tokens, metadata, embedding)
VALUES ('done', 0, 'A text that was embedded before the update.', 9, '{"lang": "en"}',
        (SELECT array_agg(CASE n WHEN 1 THEN 1 ELSE 0 END)::real[]::vector FROM generate_series(1, 384) AS n));
DELETE FROM ingest.queue q USING ingest.documents d WHERE d.id = q.document_id AND d.key IN ('done', 'failed');
INSERT INTO ingest.failures (pipeline, document_id, key, error_class, message, attempts, retryable)
SELECT d.pipeline, d.id, d.key, 'invalid_request', 'the content is empty', 1, true
FROM ingest.documents d WHERE d.key IN ('failed', 'again');
UPDATE ingest.queue q SET claimed_by = 0, claim_token = 42 FROM ingest.documents d WHERE d.id = q.document_id AND d.key = 'in flight';
INSERT INTO ingest.counter_delta (pipeline_id, queued, queued_bytes, failed, chunks, tokens)
SELECT p.pipeline_id, -2, -octet_length('A text that was embedded before the update.'), 1, 1, 9 FROM ingest.pipeline p;
