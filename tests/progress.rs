//! Promise: `ingest.progress` is exact in every snapshot, whoever writes at the same time; it makes nobody wait and does
//! not count rows.

use std::sync::atomic::{AtomicBool, Ordering};

use harness::*;
use postgres::{Client, IsolationLevel};

/// Counts what `progress` says and what the tables hold, in one snapshot; returns the difference, if there is one.
fn difference(client: &mut Client) -> Option<String> {
    let mut snapshot = client
        .build_transaction()
        .isolation_level(IsolationLevel::RepeatableRead)
        .read_only(true)
        .start()
        .expect("a snapshot");
    let said = snapshot
        .query_one(
            "SELECT ROW(documents, embedded, pending, in_flight, failed, chunks, tokens)::text,
                    documents = embedded + pending + in_flight + failed
             FROM ingest.progress WHERE pipeline = 'default'",
            &[],
        )
        .expect("progress");
    let counted = snapshot
        .query_one(
            "SELECT ROW((SELECT count(*) FROM ingest.documents),
                        (SELECT count(*) FROM ingest.documents d
                         WHERE NOT EXISTS (SELECT FROM ingest.queue q WHERE q.document_id = d.id)
                           AND NOT EXISTS (SELECT FROM ingest.failures f WHERE f.document_id = d.id)),
                        (SELECT count(*) FROM ingest.queue WHERE claimed_by IS NULL),
                        (SELECT count(*) FROM ingest.queue WHERE claimed_by IS NOT NULL),
                        (SELECT count(*) FROM ingest.failures f
                         WHERE NOT EXISTS (SELECT FROM ingest.queue q WHERE q.document_id = f.document_id)),
                        (SELECT count(*) FROM ingest.default_chunks),
                        (SELECT coalesce(sum(tokens), 0) FROM ingest.default_chunks))::text",
            &[],
        )
        .expect("the tables");
    let (said, adds_up, counted): (String, bool, String) =
        (said.get(0), said.get(1), counted.get(0));
    (said != counted || !adds_up)
        .then(|| format!("progress says {said}, the tables hold {counted}"))
}

/// A cheap sequence of numbers that is the same in every run.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % sides
    }
}

/// One statement of a busy user on documents `w<writer>-<n>`. Some of its documents cannot be embedded.
fn statement(writer: u64, dice: &mut Dice) -> String {
    let key = format!("w{writer}-{}", dice.roll(12));
    let content = match dice.roll(4) {
        0 => "''".to_owned(),
        _ => format!("'Text number {} of writer {writer}.'", dice.roll(1000)),
    };
    match dice.roll(7) {
        0..=2 => format!(
            "INSERT INTO ingest.documents (key, content) VALUES ('{key}', {content})
             ON CONFLICT (pipeline, key) DO UPDATE SET content = EXCLUDED.content"
        ),
        3 => format!("UPDATE ingest.documents SET content = {content} WHERE key = '{key}'"),
        4 => format!(
            r#"UPDATE ingest.documents SET metadata = '{{"n": {}}}' WHERE key = '{key}'"#,
            dice.roll(100)
        ),
        5 => format!("DELETE FROM ingest.documents WHERE key = '{key}'"),
        _ => "SELECT ingest.retry()".to_owned(),
    }
}

#[test]
fn every_snapshot_adds_up_while_everybody_writes() {
    let db = Database::with_pipeline();
    db.worker();
    let done = AtomicBool::new(false);
    let (cluster, name) = (db.cluster(), db.name());
    let (samples, wrong) = std::thread::scope(|scope| {
        let writers: Vec<_> = (0..3)
            .map(|writer| {
                scope.spawn(move || {
                    let mut client = cluster.client(name);
                    let mut dice = Dice(writer + 1);
                    for _ in 0..300 {
                        let sql = statement(writer, &mut dice);
                        client.batch_execute(&sql).unwrap_or_else(|error| {
                            panic!("{sql}: {}", ServerError::from(error).text())
                        });
                    }
                })
            })
            .collect();
        let sampler = scope.spawn(|| {
            let mut client = cluster.client(name);
            let mut samples = 0;
            let mut wrong = Vec::new();
            while !done.load(Ordering::Relaxed) {
                samples += 1;
                wrong.extend(difference(&mut client));
            }
            (samples, wrong)
        });
        let ends: Vec<_> = writers.into_iter().map(|writer| writer.join()).collect();
        done.store(true, Ordering::Relaxed);
        let result = sampler.join().expect("the sampler ends well");
        for end in ends {
            end.expect("the writer ends well");
        }
        result
    });
    assert!(samples > 20, "{samples} samples");
    assert!(
        wrong.is_empty(),
        "{} of {samples} snapshots do not add up, first: {}",
        wrong.len(),
        wrong[0]
    );
    db.quiesce();
    assert_eq!(db.with_client(difference), None);
    assert_eq!(db.one::<i64>("SELECT count(*) FROM ingest.failures f WHERE NOT EXISTS (SELECT FROM ingest.documents d WHERE d.id = f.document_id)"), 0);
    assert_eq!(
        db.one::<i64>("SELECT count(*) FROM ingest.default_chunks c LEFT JOIN ingest.documents d ON d.key = c.document_key WHERE d.id IS NULL"),
        0,
        "chunks of deleted documents"
    );
    // Every document that is not in failures has its present content in the target.
    assert_eq!(
        db.one::<i64>(
            "SELECT count(*) FROM ingest.documents d LEFT JOIN ingest.default_chunks c ON c.document_key = d.key
             WHERE NOT EXISTS (SELECT FROM ingest.failures f WHERE f.document_id = d.id)
               AND (c.content IS DISTINCT FROM d.content OR c.metadata IS DISTINCT FROM d.metadata)"
        ),
        0,
        "stale chunks"
    );
}

#[test]
fn a_document_deleted_or_changed_while_it_fails_leaves_no_trace() {
    let db = Database::with_pipeline();
    db.worker();
    let (cluster, name) = (db.cluster(), db.name());
    // Each round hits the instant at which the worker notes the failure somewhere else.
    std::thread::scope(|scope| {
        for writer in 0..3 {
            scope.spawn(move || {
                let mut client = cluster.client(name);
                let mut dice = Dice(writer + 100);
                for round in 0..150 {
                    let key = format!("bad{writer}-{round}");
                    let end = match round % 3 {
                        0 => format!(
                            "UPDATE ingest.documents SET content = 'Good now.' WHERE key = '{key}'"
                        ),
                        _ => format!("DELETE FROM ingest.documents WHERE key = '{key}'"),
                    };
                    client
                        .batch_execute(&format!(
                            "INSERT INTO ingest.documents (key, content) VALUES ('{key}', '')"
                        ))
                        .expect("INSERT");
                    std::thread::sleep(std::time::Duration::from_micros(dice.roll(8000)));
                    client.batch_execute(&end).unwrap_or_else(|error| {
                        panic!("{end}: {}", ServerError::from(error).text())
                    });
                }
            });
        }
    });
    db.quiesce();
    assert_eq!(
        db.rows_as_text("SELECT * FROM ingest.failures"),
        Vec::<String>::new()
    );
    assert_eq!(db.with_client(difference), None);
    assert_eq!(db.progress().counts(), (150, 150, 0, 0));
}

#[test]
fn open_transactions_do_not_wait_for_each_other() {
    let db = Database::with_pipeline();
    db.run("SET lock_timeout = '3 s'");
    let mut other = db.connect();
    other.batch_execute("BEGIN; INSERT INTO ingest.documents (key, content) SELECT 'o' || n, 'Text ' || n FROM generate_series(1, 30) n").expect("the other's INSERT");
    db.run("INSERT INTO ingest.documents (key, content) SELECT 'm' || n, 'Text ' || n FROM generate_series(1, 30) n");
    db.run("UPDATE ingest.documents SET content = content || '!'");
    db.run("DELETE FROM ingest.documents WHERE key = 'm1'");
    db.settle();
    assert_eq!(db.progress().counts(), (29, 29, 0, 0));
    wait_until("the counters are folded", SOON, || {
        db.one("SELECT NOT EXISTS (SELECT FROM ingest.counter_delta)")
    });
    other.batch_execute("COMMIT").expect("COMMIT");
    db.settle();
    assert_eq!(db.progress().counts(), (59, 59, 0, 0));
    assert_eq!(db.with_client(difference), None);
}

#[test]
fn a_reader_in_a_transaction_holds_up_nobody() {
    let db = Database::with_pipeline();
    let mut reader = db.connect();
    reader.batch_execute("BEGIN; SELECT * FROM ingest.progress; SELECT * FROM ingest.failures; SELECT count(*) FROM ingest.documents").expect("a look");
    db.run(&texts::insert_passages());
    db.quiesce();
    assert_eq!(db.progress().counts(), (8, 8, 0, 0));
    reader.batch_execute("COMMIT").expect("COMMIT");
}

#[test]
fn progress_does_not_read_the_waiting_documents() {
    let db = Database::new();
    db.run("SELECT ingest.create_pipeline(); SELECT ingest.pause('default')");
    db.run("INSERT INTO ingest.documents (key, content) SELECT 'k' || n, 'Text number ' || n FROM generate_series(1, 100000) n");
    for analyzed in [false, true] {
        if analyzed {
            db.run("VACUUM ANALYZE ingest.queue, ingest.documents, ingest.counter, ingest.counter_delta, ingest.failures");
        }
        let plan = db
            .all::<String>("EXPLAIN (ANALYZE, BUFFERS, COSTS OFF) SELECT * FROM ingest.progress")
            .join("\n");
        for table in ["queue", "documents", "default_chunks"] {
            assert!(
                !plan.contains(&format!("Seq Scan on {table}")),
                "analyzed {analyzed}:\n{plan}"
            );
        }
        assert!(
            !plan.contains("queue_ready") && !plan.contains("queue_pkey"),
            "analyzed {analyzed}:\n{plan}"
        );
        let buffers: u64 = plan
            .lines()
            .find_map(|line| line.trim().strip_prefix("Buffers: shared hit="))
            .and_then(|rest| rest.split_whitespace().next()?.parse().ok())
            .expect("EXPLAIN tells the buffers");
        assert!(
            buffers < 200,
            "{buffers} buffers, analyzed {analyzed}:\n{plan}"
        );
    }
}

#[test]
fn archived_documents_still_count() {
    let db = Database::new();
    db.run("SELECT ingest.create_pipeline(on_success => 'delete')");
    db.run(&texts::insert_passages());
    db.run("INSERT INTO ingest.documents (key, content) VALUES ('bad', '')");
    db.quiesce();
    assert_eq!(
        db.all::<String>("SELECT key FROM ingest.documents"),
        ["bad"]
    );
    assert_eq!(db.progress().counts(), (9, 8, 0, 1));
    assert_eq!(db.progress().chunks, 8);
    assert_eq!(
        db.one::<i64>("SELECT count(*) FROM ingest.default_chunks"),
        8
    );
    assert_eq!(
        db.one::<String>("SELECT key FROM ingest.search('how do I rotate a key?', 1)"),
        "keys.md"
    );
    // The same key again replaces the chunks; what is counted is how often something was embedded and deleted.
    db.run("INSERT INTO ingest.documents (key, content) VALUES ('keys.md', 'Rotate keys every ninety days.')");
    db.quiesce();
    assert_eq!(db.progress().counts(), (10, 9, 0, 1));
    assert_eq!(
        db.all::<String>(
            "SELECT content FROM ingest.default_chunks WHERE document_key = 'keys.md'"
        ),
        ["Rotate keys every ninety days."]
    );
    assert_eq!(db.progress().chunks, 8);
    // A user's DELETE of what is not archived takes it out.
    db.run("DELETE FROM ingest.documents");
    assert_eq!(db.progress().counts(), (9, 9, 0, 0));
    assert_eq!(
        db.one::<i64>("SELECT count(*) FROM ingest.default_chunks"),
        8
    );
}

#[test]
fn truncate_under_an_old_snapshot_keeps_the_counters_right() {
    let db = Database::new();
    db.run("SELECT ingest.create_pipeline(); SELECT ingest.pause('default')");
    db.run("INSERT INTO ingest.documents (key, content) VALUES ('seen', 'A text.')");
    let mut old = db.connect();
    old.batch_execute(
        "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM ingest.documents",
    )
    .expect("a snapshot");
    db.run("INSERT INTO ingest.documents (key, content) VALUES ('unseen', 'Another text.')");
    // Either it is refused, or it does what TRUNCATE does.
    if old
        .batch_execute("TRUNCATE ingest.documents; COMMIT")
        .is_err()
    {
        old.batch_execute("ROLLBACK").expect("ROLLBACK");
    }
    let counted: i64 = db.one("SELECT count(*) FROM ingest.documents");
    assert_eq!(db.progress().counts(), (counted, 0, counted, 0));
    assert_eq!(db.one::<i64>("SELECT count(*) FROM ingest.queue"), counted);
}

#[test]
fn a_target_that_holds_chunks_already_is_counted() {
    let db = Database::with_pipeline();
    db.run(&texts::insert_passages());
    db.quiesce();
    db.run("SELECT ingest.drop_pipeline('default')");
    assert_eq!(
        db.one::<i64>("SELECT count(*) FROM ingest.default_chunks"),
        8
    );
    db.run("SELECT ingest.create_pipeline()");
    db.run("INSERT INTO ingest.documents (key, content) VALUES ('keys.md', 'Rotate keys every ninety days.')");
    db.quiesce();
    let counted = &db.rows("SELECT count(*), sum(tokens)::bigint FROM ingest.default_chunks")[0];
    let progress = db.progress();
    assert_eq!(
        (progress.chunks, progress.tokens),
        (counted.get(0), counted.get(1))
    );
}
