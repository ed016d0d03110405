//! Promise: whatever is done to `ingest.documents` — INSERT, COPY, UPDATE, DELETE, TRUNCATE, one row or a hundred thousand,
//! committed, rolled back or prepared — the chunks follow, and nothing is embedded that need not be.

use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};

use harness::*;

const PAUSED: &str = "SELECT ingest.create_pipeline(); SELECT ingest.pause('default')";

/// `(key, ids of the chunks, metadata of the chunks)` in the target of `default`.
fn chunks(db: &Database) -> Vec<(String, Vec<i64>, String)> {
    db.rows(
        "SELECT document_key, array_agg(id ORDER BY chunk_no), min(metadata::text)
         FROM ingest.default_chunks GROUP BY document_key ORDER BY document_key",
    )
    .iter()
    .map(|row| (row.get(0), row.get(1), row.get(2)))
    .collect()
}

fn keys(db: &Database) -> Vec<String> {
    chunks(db).into_iter().map(|(key, ..)| key).collect()
}

#[test]
fn a_document_without_a_key_is_known_by_its_id() {
    let db = Database::with_pipeline();
    db.run("INSERT INTO ingest.documents (content) VALUES ('A nameless text about gardens.')");
    db.settle();
    let (id, key): (i64, String) = {
        let row = &db.rows("SELECT id, key FROM ingest.documents")[0];
        (row.get(0), row.get(1))
    };
    assert_eq!(key, id.to_string());
    assert_eq!(keys(&db), [key]);
}

#[test]
fn chunks_carry_the_document_in_order() {
    let db = Database::new();
    db.run("SELECT ingest.create_pipeline(chunk_tokens => 24, chunk_overlap => 0)");
    let text = texts::long("lantern", 12);
    db.execute(
        r#"INSERT INTO ingest.documents (key, content, metadata) VALUES ('long', $1, '{"shelf": 7}')"#,
        &[&text],
    );
    db.settle();
    let rows = db.rows("SELECT chunk_no, content, tokens, metadata::text, vector_dims(embedding) FROM ingest.default_chunks ORDER BY chunk_no");
    assert!(rows.len() > 5, "{} chunks", rows.len());
    let mut from = 0;
    for (number, row) in rows.iter().enumerate() {
        assert_eq!(row.get::<_, i32>(0), number as i32);
        let content: String = row.get(1);
        let at = text[from..]
            .find(&content)
            .expect("chunks come in the text's order");
        assert!(
            text[from..from + at].trim().is_empty(),
            "text is lost before chunk {number}"
        );
        from += at + content.len();
        assert!((1..=24).contains(&row.get::<_, i32>(2)));
        assert_eq!(row.get::<_, String>(3), r#"{"shelf": 7}"#);
        assert_eq!(row.get::<_, i32>(4), 384);
    }
    assert!(text[from..].trim().is_empty(), "text is lost at the end");
    let progress = db.progress();
    assert_eq!(progress.chunks, rows.len() as i64);
    assert_eq!(
        progress.tokens,
        rows.iter()
            .map(|row| i64::from(row.get::<_, i32>(2)))
            .sum::<i64>()
    );
}

#[test]
fn an_update_replaces_the_chunks_at_once() {
    let db = Database::new();
    db.run("SELECT ingest.create_pipeline(chunk_tokens => 20, chunk_overlap => 0)");
    let versions = ["alpha", "beta"].map(|word| texts::long(word, 8));
    db.execute(
        "INSERT INTO ingest.documents (key, content) VALUES ('doc', $1)",
        &[&versions[0]],
    );
    db.settle();
    let first = db.one::<i64>("SELECT count(*) FROM ingest.default_chunks");
    assert!(first >= 4);

    let (cluster, name, stop) = (db.cluster(), db.name(), &AtomicBool::new(false));
    let seen = std::thread::scope(|scope| {
        let watcher = scope.spawn(move || {
            let mut client = cluster.client(name);
            let mut seen = Vec::new();
            while !stop.load(Ordering::Relaxed) {
                let row = client
                    .query_one(
                        "SELECT count(*) FILTER (WHERE content LIKE '%alpha%'), count(*) FILTER (WHERE content LIKE '%beta%'),
                                count(DISTINCT chunk_no), max(chunk_no)
                         FROM ingest.default_chunks WHERE document_key = 'doc'",
                        &[],
                    )
                    .expect("a look at the chunks");
                let sample: (i64, i64, i64, i32) = (row.get(0), row.get(1), row.get(2), row.get(3));
                if seen.last() != Some(&sample) {
                    seen.push(sample);
                }
            }
            seen
        });
        for round in 1..=8 {
            db.execute(
                "UPDATE ingest.documents SET content = $1 WHERE key = 'doc'",
                &[&versions[round % 2]],
            );
            db.settle();
        }
        stop.store(true, Ordering::Relaxed);
        watcher.join().expect("the watcher ends well")
    });
    assert!(seen.len() > 2, "the watcher saw {seen:?}");
    for (alpha, beta, distinct, last) in seen {
        assert!(
            (alpha == 0) != (beta == 0),
            "{alpha} old and {beta} new chunks at one instant"
        );
        assert_eq!(alpha + beta, distinct);
        assert_eq!(
            distinct,
            i64::from(last) + 1,
            "a part of a document is visible"
        );
    }
}

#[test]
fn unchanged_content_is_not_embedded_again() {
    let db = Database::with_pipeline();
    db.run(&texts::insert_passages());
    db.settle();
    let before = chunks(&db);
    for update in [
        "UPDATE ingest.documents SET content = content",
        "UPDATE ingest.documents SET updated_at = now(), metadata = metadata",
        "INSERT INTO ingest.documents (key, content) SELECT key, content FROM ingest.documents
         ON CONFLICT (pipeline, key) DO UPDATE SET content = EXCLUDED.content",
    ] {
        db.run("BEGIN");
        db.run(update);
        assert_eq!(
            db.one::<i64>("SELECT count(*) FROM ingest.queue"),
            0,
            "{update}"
        );
        db.run("COMMIT");
    }
    assert_eq!(chunks(&db), before);
    assert_eq!(db.progress().counts(), (8, 8, 0, 0));
}

#[test]
fn new_metadata_reaches_the_chunks_without_embedding() {
    let db = Database::with_pipeline();
    db.run(&texts::insert_passages());
    db.settle();
    let before = chunks(&db);
    db.run("BEGIN");
    db.run(
        r#"UPDATE ingest.documents SET metadata = jsonb_build_object('name', key) WHERE key < 'm'"#,
    );
    assert_eq!(db.one::<i64>("SELECT count(*) FROM ingest.queue"), 0);
    db.run("COMMIT");
    for ((key, ids, metadata), (_, old_ids, old_metadata)) in chunks(&db).iter().zip(&before) {
        assert_eq!(ids, old_ids);
        if key.as_str() < "m" {
            assert_eq!(*metadata, format!(r#"{{"name": "{key}"}}"#));
        } else {
            assert_eq!(metadata, old_metadata);
        }
    }
    // Together with new content, the chunks get both at the same time.
    db.run(r#"UPDATE ingest.documents SET metadata = '{"both": true}', content = content || ' More.' WHERE key = 'bread.md'"#);
    db.settle();
    assert!(
        db.one::<bool>("SELECT metadata = '{\"both\": true}' AND content LIKE '%More.' FROM ingest.default_chunks WHERE document_key = 'bread.md'")
    );
}

#[test]
fn metadata_that_changes_on_the_way_is_not_lost() {
    let db = Database::with_pipeline();
    db.worker();
    for round in 0..10 {
        db.run(&format!(
            "INSERT INTO ingest.documents (key, content) SELECT 'r{round}-' || n, 'Text number ' || n FROM generate_series(1, 20) n"
        ));
        db.run(&format!(
            r#"UPDATE ingest.documents SET metadata = '{{"round": {round}}}' WHERE key LIKE 'r{round}-%'"#
        ));
    }
    db.settle();
    assert_eq!(
        db.one::<i64>("SELECT count(*) FROM ingest.default_chunks"),
        200
    );
    assert_eq!(
        db.one::<i64>("SELECT count(*) FROM ingest.default_chunks c JOIN ingest.documents d ON d.key = c.document_key WHERE c.metadata <> d.metadata"),
        0
    );
}

#[test]
fn another_key_is_another_document() {
    let db = Database::with_pipeline();
    db.run("INSERT INTO ingest.documents (key, content) VALUES ('old', 'A text about lanterns.'), ('stays', 'Another text.')");
    db.settle();
    db.run("SELECT ingest.pause('default')");
    db.run("UPDATE ingest.documents SET key = 'new' WHERE key = 'old'");
    assert_eq!(keys(&db), ["stays"], "search would still find the old key");
    db.run("SELECT ingest.resume('default')");
    db.settle();
    assert_eq!(keys(&db), ["new", "stays"]);
    db.run("UPDATE ingest.documents SET key = NULL WHERE key = 'new'");
    db.settle();
    let id: i64 = db.one("SELECT id FROM ingest.documents WHERE key <> 'stays'");
    assert_eq!(keys(&db), [id.to_string(), "stays".into()]);
    assert_eq!(db.progress().counts(), (2, 2, 0, 0));
    assert_eq!(db.progress().chunks, 2);
}

#[test]
fn a_document_moves_to_another_pipeline() {
    let db = Database::with_pipeline();
    db.run("SELECT ingest.create_pipeline('other')");
    db.run("INSERT INTO ingest.documents (key, content) VALUES ('moves', 'A text about lanterns.'), ('stays', 'Another text.')");
    db.settle();
    db.run("UPDATE ingest.documents SET pipeline = 'other' WHERE key = 'moves'");
    db.settle();
    assert_eq!(keys(&db), ["stays"]);
    assert_eq!(
        db.all::<String>("SELECT document_key FROM ingest.other_chunks"),
        ["moves"]
    );
    assert_eq!(db.progress().counts(), (1, 1, 0, 0));
    assert_eq!(db.progress_of("other").counts(), (1, 1, 0, 0));
    assert_eq!(
        (db.progress().chunks, db.progress_of("other").chunks),
        (1, 1)
    );
}

#[test]
fn delete_takes_the_chunks_along() {
    let db = Database::with_pipeline();
    db.run(&texts::insert_passages());
    db.settle();
    db.run("DELETE FROM ingest.documents WHERE key IN ('moon.md', 'piano.md')");
    assert_eq!(
        keys(&db),
        [
            "bicycle.md",
            "bread.md",
            "keys.md",
            "vacuum.md",
            "volcano.md",
            "whales.md"
        ]
    );
    assert_eq!(db.progress().counts(), (6, 6, 0, 0));
    assert_eq!(db.progress().chunks, 6);
    // Also while they wait, and while they are in flight.
    db.run("SELECT ingest.pause('default')");
    db.run("INSERT INTO ingest.documents (key, content) VALUES ('waits', 'Text.'); DELETE FROM ingest.documents WHERE key = 'waits'");
    db.run("SELECT ingest.resume('default')");
    for round in 0..10 {
        db.run(&format!("INSERT INTO ingest.documents (key, content) SELECT 'd{round}-' || n, 'Text ' || n FROM generate_series(1, 20) n"));
        db.run(&format!(
            "DELETE FROM ingest.documents WHERE key LIKE 'd{round}-%'"
        ));
    }
    db.settle();
    db.run("DELETE FROM ingest.documents");
    db.quiesce();
    assert_eq!(keys(&db), Vec::<String>::new());
    assert_eq!(db.progress().counts(), (0, 0, 0, 0));
    assert_eq!(
        (
            db.progress().chunks,
            db.progress().tokens,
            db.progress().percent
        ),
        (0, 0, 100.0)
    );
}

#[test]
fn truncate_takes_everything_along() {
    let db = Database::with_pipeline();
    db.run("SELECT ingest.create_pipeline('other')");
    db.run(&texts::insert_passages());
    db.run("INSERT INTO ingest.documents (pipeline, key, content) VALUES ('other', 'x', 'A text.'), ('other', 'blank', '')");
    db.settle();
    db.run("SELECT ingest.pause('other')");
    db.run("INSERT INTO ingest.documents (pipeline, key, content) VALUES ('other', 'waits', 'A text.')");
    db.run("TRUNCATE ingest.documents");
    for table in ["queue", "failures", "default_chunks", "other_chunks"] {
        assert_eq!(
            db.one::<i64>(&format!("SELECT count(*) FROM ingest.{table}")),
            0,
            "{table}"
        );
    }
    for pipeline in ["default", "other"] {
        let progress = db.progress_of(pipeline);
        assert_eq!(progress.counts(), (0, 0, 0, 0), "{pipeline}");
        assert_eq!((progress.chunks, progress.tokens), (0, 0), "{pipeline}");
    }
    db.run("INSERT INTO ingest.documents (key, content) VALUES ('again', 'A text after it all.')");
    db.settle();
    assert_eq!(keys(&db), ["again"]);
}

#[test]
fn truncate_meets_a_busy_worker() {
    let db = Database::with_pipeline();
    db.worker();
    for _ in 0..8 {
        db.run("INSERT INTO ingest.documents (key, content) SELECT n::text, 'Text number ' || n FROM generate_series(1, 40) n");
        db.run("TRUNCATE ingest.documents");
    }
    db.quiesce();
    assert_eq!(keys(&db), Vec::<String>::new());
    assert_eq!(db.progress().counts(), (0, 0, 0, 0));
    assert_eq!(db.progress().chunks, 0);
}

#[test]
fn an_upsert_inserts_or_replaces() {
    let db = Database::with_pipeline();
    db.run("INSERT INTO ingest.documents (key, content) VALUES ('a', 'First text.'), ('b', 'Second text.')");
    db.settle();
    let before = chunks(&db);
    db.run(
        "INSERT INTO ingest.documents (key, content) VALUES ('a', 'First text.'), ('b', 'Second text, changed.'), ('c', 'Third text.')
         ON CONFLICT (pipeline, key) DO UPDATE SET content = EXCLUDED.content",
    );
    db.settle();
    let after = chunks(&db);
    assert_eq!(keys(&db), ["a", "b", "c"]);
    assert_eq!(after[0], before[0]);
    assert_ne!(after[1], before[1]);
    db.run("INSERT INTO ingest.documents (key, content) VALUES ('a', 'Ignored.') ON CONFLICT DO NOTHING");
    db.settle();
    assert_eq!(chunks(&db), after);
    assert_eq!(db.progress().counts(), (3, 3, 0, 0));
}

#[test]
fn merge_does_what_its_parts_do() {
    let db = Database::with_pipeline();
    let version: i32 = db.one("SELECT current_setting('server_version_num')::int");
    if version < 150_000 {
        return;
    }
    db.run("INSERT INTO ingest.documents (key, content) VALUES ('a', 'First text.'), ('b', 'Second text.'), ('c', 'Third text.')");
    db.settle();
    db.run(
        "MERGE INTO ingest.documents AS d USING (VALUES ('a', 'First, changed.'), ('b', NULL), ('d', 'Fourth.')) AS n (key, content)
         ON d.key = n.key
         WHEN MATCHED AND n.content IS NULL THEN DELETE
         WHEN MATCHED THEN UPDATE SET content = n.content
         WHEN NOT MATCHED THEN INSERT (key, content) VALUES (n.key, n.content)",
    );
    db.settle();
    assert_eq!(keys(&db), ["a", "c", "d"]);
    assert_eq!(db.progress().counts(), (3, 3, 0, 0));
}

#[test]
fn copy_inserts_like_any_other() {
    let db = Database::with_pipeline();
    db.with_client(|client| {
        let mut writer = client
            .copy_in("COPY ingest.documents (key, content) FROM STDIN")
            .expect("COPY starts");
        for number in 0..50 {
            writeln!(writer, "k{number}\t{}", texts::numbered(number)).expect("COPY takes a row");
        }
        assert_eq!(writer.finish().expect("COPY ends"), 50);
    });
    db.settle();
    assert_eq!(db.progress().counts(), (50, 50, 0, 0));
    assert_eq!(keys(&db).len(), 50);
}

#[test]
fn a_hundred_thousand_documents_in_one_statement() {
    let db = Database::new();
    db.run(PAUSED);
    db.run("INSERT INTO ingest.documents (key, content) SELECT 'k' || n, 'Text number ' || n FROM generate_series(1, 100000) n");
    assert_eq!(db.progress().counts(), (100_000, 0, 100_000, 0));
    assert_eq!(db.progress().pending, 100_000);
    assert_eq!(db.progress().state, "paused");
    assert_eq!(db.one::<i64>("SELECT count(*) FROM ingest.queue"), 100_000);
    assert!(db.one::<bool>(
        "SELECT sum(q.bytes) = (SELECT queued_bytes FROM ingest.totals) FROM ingest.queue q"
    ));
    db.run("UPDATE ingest.documents SET content = content || ', changed' WHERE id % 4 = 0");
    assert_eq!(db.progress().pending, 100_000);
    assert!(db.one::<bool>(
        "SELECT sum(q.bytes) = (SELECT queued_bytes FROM ingest.totals) FROM ingest.queue q"
    ));
    db.run("DELETE FROM ingest.documents WHERE id % 2 = 0");
    let left: i64 = db.one("SELECT count(*) FROM ingest.documents");
    assert_eq!(db.progress().counts(), (left, 0, left, 0));
    assert_eq!(db.one::<i64>("SELECT count(*) FROM ingest.queue"), left);
    assert!(db.one::<bool>(
        "SELECT sum(q.bytes) = (SELECT queued_bytes FROM ingest.totals) FROM ingest.queue q"
    ));
    db.run("TRUNCATE ingest.documents");
    assert_eq!(db.progress().counts(), (0, 0, 0, 0));
}

#[test]
fn what_is_rolled_back_has_never_been() {
    let db = Database::with_pipeline();
    db.run("INSERT INTO ingest.documents (key, content) VALUES ('stays', 'A text that stays.')");
    db.settle();
    let before = chunks(&db);
    db.run(
        "BEGIN;
         INSERT INTO ingest.documents (key, content) VALUES ('gone', 'Never committed.');
         UPDATE ingest.documents SET content = 'Changed.', metadata = '{\"a\": 1}' WHERE key = 'stays';
         DELETE FROM ingest.documents WHERE key = 'stays';
         ROLLBACK",
    );
    db.run("BEGIN; TRUNCATE ingest.documents; ROLLBACK");
    db.quiesce();
    assert_eq!(chunks(&db), before);
    assert_eq!(db.progress().counts(), (1, 1, 0, 0));
    assert_eq!(db.one::<i64>("SELECT count(*) FROM ingest.queue"), 0);
}

#[test]
fn savepoints_keep_what_they_keep() {
    let db = Database::with_pipeline();
    db.run(
        "BEGIN;
         INSERT INTO ingest.documents (key, content) VALUES ('one', 'The first text.');
         SAVEPOINT s;
         INSERT INTO ingest.documents (key, content) VALUES ('two', 'The second text.');
         UPDATE ingest.documents SET content = 'The first text, changed in vain.' WHERE key = 'one';
         ROLLBACK TO s;
         INSERT INTO ingest.documents (key, content) VALUES ('three', 'The third text.');
         RELEASE s;
         COMMIT",
    );
    db.settle();
    assert_eq!(
        db.all::<String>(
            "SELECT document_key || ': ' || content FROM ingest.default_chunks ORDER BY 1"
        ),
        ["one: The first text.", "three: The third text."]
    );
    assert_eq!(db.progress().counts(), (2, 2, 0, 0));
    // The last thing that happens is a savepoint that is rolled back: the commit wakes the worker all the same.
    db.run(
        "BEGIN;
         INSERT INTO ingest.documents (key, content) VALUES ('four', 'The fourth text.');
         SAVEPOINT s;
         INSERT INTO ingest.documents (key, content) VALUES ('five', 'The fifth text.');
         ROLLBACK TO s;
         COMMIT",
    );
    db.settle();
    assert_eq!(keys(&db), ["four", "one", "three"]);
}

#[test]
fn inserters_do_not_make_each_other_fail() {
    let db = Database::with_pipeline();
    // SERIALIZABLE promises less: whoever uses it tries again when told to.
    for level in ["READ COMMITTED", "REPEATABLE READ"] {
        let mut clients = [db.connect(), db.connect()];
        for client in &mut clients {
            client
                .batch_execute(&format!("BEGIN ISOLATION LEVEL {level}"))
                .expect("BEGIN");
            client
                .query(
                    "SELECT count(*) FROM ingest.documents WHERE key = 'none'",
                    &[],
                )
                .expect("a snapshot is taken");
        }
        for (number, client) in clients.iter_mut().enumerate() {
            client
                .execute(
                    "INSERT INTO ingest.documents (key, content) VALUES ($1, 'A text.')",
                    &[&format!("{level} {number}")],
                )
                .expect("INSERT");
        }
        for client in &mut clients {
            client
                .batch_execute("COMMIT")
                .unwrap_or_else(|error| panic!("{level}: {error:?}"));
        }
    }
    db.settle();
    assert_eq!(keys(&db).len(), 4);
    assert_eq!(db.progress().counts(), (4, 4, 0, 0));
}

#[test]
fn commit_prepared_wakes_the_worker() {
    let db = Database::with_pipeline();
    db.quiesce();
    let gid = format!("{}_prepared", db.name());
    db.run(&format!(
        "BEGIN; INSERT INTO ingest.documents (key, content) VALUES ('p', 'A prepared text.'); PREPARE TRANSACTION '{gid}'"
    ));
    assert_eq!(db.progress().counts(), (0, 0, 0, 0));
    db.run(&format!("COMMIT PREPARED '{gid}'"));
    wait_until("the prepared document is embedded", SOON, || {
        keys(&db) == ["p"]
    });
    db.run(&format!(
        "BEGIN; INSERT INTO ingest.documents (key, content) VALUES ('q', 'Never.'); PREPARE TRANSACTION '{gid}'"
    ));
    db.run(&format!("ROLLBACK PREPARED '{gid}'"));
    db.quiesce();
    assert_eq!(db.progress().counts(), (1, 1, 0, 0));
}

#[test]
fn an_unknown_pipeline_is_an_error_that_names_the_known_ones() {
    let db = Database::new();
    let none = db.expect_error("INSERT INTO ingest.documents (content) VALUES ('Too early.')");
    assert_eq!(none.code, "42704");
    assert!(none.message.contains("'default'"), "{none:?}");
    assert!(
        none.hint
            .as_ref()
            .is_some_and(|hint| hint.contains("ingest.create_pipeline")),
        "{none:?}"
    );
    db.run("SELECT ingest.create_pipeline()");
    let other = db.expect_error(
        "INSERT INTO ingest.documents (pipeline, key, content) VALUES ('default', 'a', 'Text.'), ('defualt', 'b', 'Text.')",
    );
    assert_eq!(other.code, "42704");
    assert!(
        other
            .hint
            .as_ref()
            .is_some_and(|hint| hint.contains("'default'")),
        "{other:?}"
    );
    db.run("INSERT INTO ingest.documents (key, content) VALUES ('a', 'Text.')");
    let moved = db.expect_error("UPDATE ingest.documents SET pipeline = 'nowhere'");
    assert_eq!(moved.code, "42704");
    db.settle();
    assert_eq!(db.progress().counts(), (1, 1, 0, 0));
}

#[test]
fn updates_in_quick_succession_end_with_the_last() {
    let db = Database::with_pipeline();
    db.worker();
    db.run("INSERT INTO ingest.documents (key, content) VALUES ('doc', 'Version 0.')");
    for version in 1..=60 {
        db.run(&format!(
            "UPDATE ingest.documents SET content = 'Version {version}.' WHERE key = 'doc'"
        ));
    }
    db.settle();
    assert_eq!(
        db.all::<String>("SELECT content FROM ingest.default_chunks"),
        ["Version 60."]
    );
    assert_eq!(db.progress().counts(), (1, 1, 0, 0));
}

#[test]
fn a_long_text_becomes_visible_whole() {
    let db = Database::new();
    db.run("SELECT ingest.create_pipeline(chunk_tokens => 32, chunk_overlap => 0)");
    db.execute(
        "INSERT INTO ingest.documents (key, content) VALUES ('book', $1)",
        &[&texts::long("book", 300)],
    );
    let mut seen = Vec::new();
    wait_until("the book is embedded", SOON * 3, || {
        let count: i64 = db.one("SELECT count(*) FROM ingest.default_chunks");
        if seen.last() != Some(&count) {
            seen.push(count);
        }
        count > 0
    });
    assert_eq!(seen.len(), 2, "parts of the book were visible: {seen:?}");
    assert!(seen[1] > 100);
    assert_eq!(db.progress().chunks, seen[1]);
}
