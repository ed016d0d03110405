//! Promise: the index of vectors is there when and as the pipeline says: at once, after the backlog, or never.

use harness::*;

/// The HNSW indexes of the database, whatever table they are on.
fn indexes(db: &Database) -> Vec<String> {
    db.all(
        "SELECT i.indexrelid::regclass::text FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_am m ON m.oid = c.relam
         WHERE m.amname = 'hnsw'",
    )
}

const NEAREST: &str = "SELECT * FROM ingest.default_chunks ORDER BY embedding <=> array_fill(0.1, ARRAY[384])::vector LIMIT 3";

#[test]
fn an_immediate_index_is_there_from_the_start() {
    let db = Database::new();
    db.run("SELECT ingest.create_pipeline(index => 'immediate')");
    assert_eq!(indexes(&db), ["ingest.default_chunks_embedding_idx"]);
    db.run(&texts::insert_passages());
    db.settle();
    db.run("SET enable_seqscan = off; SET enable_sort = off");
    assert!(db.explain(NEAREST).contains("default_chunks_embedding_idx"));
    db.run("SELECT ingest.alter_pipeline('default', index => 'none')");
    assert_eq!(indexes(&db), Vec::<String>::new());
    db.run("SELECT ingest.alter_pipeline('default', index => 'immediate')");
    assert_eq!(indexes(&db), ["ingest.default_chunks_embedding_idx"]);
    assert_eq!(
        db.one::<String>("SELECT key FROM ingest.search('how do I rotate a key?', 1)"),
        "keys.md"
    );
}

#[test]
fn a_deferred_index_comes_after_the_backlog() {
    // A cluster of its own, for the setting is the server's.
    let cluster = Cluster::start(&[]);
    let db = Database::new_in(&cluster);
    db.run("SELECT ingest.create_pipeline('none_here', index => 'none'); SELECT ingest.create_pipeline()");
    db.run("INSERT INTO ingest.documents (key, content) SELECT 'k' || n, 'Text number ' || n FROM generate_series(1, 30) n");
    db.quiesce();
    assert_eq!(
        indexes(&db),
        Vec::<String>::new(),
        "30 chunks need no index"
    );
    cluster.reload(&[("pg_ingest.deferred_index_min_chunks", "40")]);
    db.run("INSERT INTO ingest.documents (key, content) SELECT 'l' || n, 'Text number ' || n FROM generate_series(1, 5) n");
    db.run("INSERT INTO ingest.documents (pipeline, key, content) SELECT 'none_here', 'l' || n, 'Text number ' || n FROM generate_series(1, 45) n");
    db.quiesce();
    assert_eq!(
        indexes(&db),
        Vec::<String>::new(),
        "35 chunks are fewer than 40"
    );
    db.run("INSERT INTO ingest.documents (key, content) SELECT 'm' || n, 'Text number ' || n FROM generate_series(1, 10) n");
    db.settle();
    wait_until(
        "the index is built, and none where none is wanted",
        SOON,
        || indexes(&db) == ["ingest.default_chunks_embedding_idx"],
    );
    db.run("SET enable_seqscan = off; SET enable_sort = off");
    assert!(db.explain(NEAREST).contains("default_chunks_embedding_idx"));
    assert_eq!(
        db.one::<String>("SELECT content FROM ingest.search('Text number 17', 1)"),
        "Text number 17"
    );
    assert_eq!(
        db.one::<i64>("SELECT count(*) FROM ingest.search('Text number 17', 45)"),
        45
    );
}

/// Whether a search finds what is nearest by an index.
fn serves(db: &Database) -> bool {
    db.run("SET enable_seqscan = off; SET enable_sort = off");
    let plan = db.explain(NEAREST);
    db.run("RESET enable_seqscan; RESET enable_sort");
    plan.contains("Index Scan using default_chunks_embedding_idx")
}

#[test]
fn an_index_that_serves_no_search_is_not_taken_for_one() {
    // A cluster of its own, for the setting is the server's.
    let cluster = Cluster::start(&[("pg_ingest.deferred_index_min_chunks", "10")]);
    for other in [
        "CREATE INDEX other ON ingest.default_chunks USING hnsw (embedding vector_ip_ops)",
        "CREATE INDEX other ON ingest.default_chunks USING hnsw (embedding vector_cosine_ops) WHERE chunk_no = 0",
        "CREATE INDEX other ON ingest.default_chunks USING hnsw (embedding vector_cosine_ops);
         UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'ingest.other'::regclass",
        "ALTER TABLE ingest.default_chunks ADD COLUMN theirs vector(3);
         CREATE INDEX other ON ingest.default_chunks USING hnsw (theirs vector_cosine_ops)",
    ] {
        let db = Database::new_in(&cluster);
        db.run("SELECT ingest.create_pipeline(index => 'none')");
        db.run(other);
        assert!(!serves(&db), "{other}");
        db.run("SELECT ingest.alter_pipeline('default', index => 'immediate')");
        assert!(serves(&db), "{other}");
        let count = indexes(&db).len();
        db.run("SELECT ingest.alter_pipeline('default', index => 'immediate')");
        assert_eq!(indexes(&db).len(), count, "{other}");
        // And after a backlog.
        db.run("DROP INDEX ingest.default_chunks_embedding_idx; SELECT ingest.alter_pipeline('default', index => 'deferred')");
        db.run("INSERT INTO ingest.documents (key, content) SELECT 'k' || n, 'Text number ' || n FROM generate_series(1, 12) n");
        db.settle();
        wait_until("the index is built", SOON, || serves(&db));
    }
}

#[test]
fn no_index_means_none_whoever_made_it() {
    let db = Database::with_pipeline();
    let table = "x".repeat(63);
    db.run(&format!(
        "SELECT ingest.create_pipeline('long', target => 'public.{table}', index => 'immediate')"
    ));
    db.run(
        "CREATE INDEX by_hand ON ingest.default_chunks USING hnsw (embedding vector_cosine_ops)",
    );
    db.run(
        "SELECT ingest.alter_pipeline('long', index => 'none'); SELECT ingest.alter_pipeline('default', index => 'none')",
    );
    assert_eq!(indexes(&db), Vec::<String>::new());
}
