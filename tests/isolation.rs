//! Promise: whoever changes a document while its text is being embedded, in whatever kind of transaction, gets the chunks of
//! what was committed last: never a stale one, never some of the old and some of the new, never one without its document.
//! The provider holds its answers back here, so that each of them comes at the worst moment.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use harness::flight::{SINGLY, chunks, counted, has_chunks, in_flight, refused, send};
use harness::remote::{all_embedded, api};
use harness::roles::run;
use harness::*;

#[test]
fn old_chunks_serve_until_all_new_ones_are_there() {
    let db = Database::new();
    let api = api();
    db.create_remote_pipeline(
        "p",
        &api,
        "batch_size => 1, concurrency => 20, chunk_tokens => 20, chunk_overlap => 0",
    );
    let [old, new] = ["alpha", "beta"].map(|word| texts::long(word, 6));
    db.execute(
        "INSERT INTO ingest.documents (pipeline, key, content) VALUES ('p', 'd', $1)",
        &[&old],
    );
    all_embedded(&db, "p", 1);
    let before = chunks(&db, "p");
    assert!(before.len() > 3, "{before:?}");

    let (last, open) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicBool::new(false)),
    );
    let (arrived, gate) = (Arc::clone(&last), Arc::clone(&open));
    api.on_request(move |request| {
        if request.texts.iter().any(|text| text.contains("sentence 5")) {
            arrived.store(true, Ordering::Relaxed);
            wait_until("the test has seen enough", SOON, || {
                gate.load(Ordering::Relaxed)
            });
        }
        None
    });
    db.execute("UPDATE ingest.documents SET content = $1", &[&new]);
    wait_until("all but the last one are answered", SOON, || {
        last.load(Ordering::Relaxed) && api.in_flight() == 1
    });
    assert_eq!(chunks(&db, "p"), before);
    assert_eq!(db.progress_of("p").counts(), (1, 0, 1, 0));
    // The same for whoever reads while they are being replaced: one statement sees one of the two.
    let (cluster, name) = (db.cluster(), db.name().to_owned());
    let watcher = std::thread::spawn(move || {
        let mut client = cluster.client(&name);
        let mut look = || -> (i64, i64) {
            let row = client.query_one(
                "SELECT count(*) FILTER (WHERE content LIKE '%alpha%'), count(*) FILTER (WHERE content LIKE '%beta%') FROM ingest.p_chunks",
                &[],
            );
            let row = row.expect("a look at the chunks");
            (row.get(0), row.get(1))
        };
        wait_until("the new chunks are there", SOON, || {
            let (alpha, beta) = look();
            assert!(
                (alpha == 0) != (beta == 0),
                "{alpha} old and {beta} new ones"
            );
            beta > 0
        });
    });
    open.store(true, Ordering::Relaxed);
    watcher.join().expect("old and new are not mixed");
    all_embedded(&db, "p", 1);
    assert!(!chunks(&db, "p").concat().contains("alpha"));
}

#[test]
fn a_content_that_comes_back_while_another_is_in_flight_is_the_one_that_stays() {
    let (db, api) = in_flight(&["new"]);
    db.run("UPDATE ingest.documents SET content = 'Another text.'");
    wait_until("the other is in flight, too", SOON, || api.in_flight() == 2);
    db.run("UPDATE ingest.documents SET content = 'Old text of new.'");
    api.release_answers();
    all_embedded(&db, "p", 1);
    assert_eq!(chunks(&db, "p"), ["new: Old text of new."]);
    // The same for one that is embedded already.
    api.hold_answers();
    db.run("UPDATE ingest.documents SET content = 'Another text.'");
    wait_until("the other is in flight", SOON, || api.in_flight() == 1);
    db.run("UPDATE ingest.documents SET content = 'Old text of new.'");
    assert_eq!(chunks(&db, "p"), ["new: Old text of new."]);
    api.release_answers();
    all_embedded(&db, "p", 1);
    assert_eq!(chunks(&db, "p"), ["new: Old text of new."]);
    counted(&db, "p");
}

#[test]
fn an_answer_waits_for_the_transaction_that_is_changing_its_document() {
    let all = ["changed", "not changed", "deleted", "not deleted", "free"];
    let (db, api) = in_flight(&all);
    let [mut commits, mut rolls_back] = [db.connect(), db.connect()];
    run(
        &mut commits,
        "BEGIN; UPDATE ingest.documents SET content = 'New text.' WHERE key = 'changed';
         DELETE FROM ingest.documents WHERE key = 'deleted'",
    );
    run(
        &mut rolls_back,
        "BEGIN; UPDATE ingest.documents SET content = 'New text.' WHERE key = 'not changed';
         DELETE FROM ingest.documents WHERE key = 'not deleted'",
    );
    api.release_answers();
    wait_until("the others are not held up", SOON, || {
        chunks(&db, "p") == ["free: Old text of free."]
    });
    run(&mut rolls_back, "ROLLBACK");
    has_chunks("what has not changed is written", &db, "p", 3);
    run(&mut commits, "COMMIT");
    all_embedded(&db, "p", 4);
    assert_eq!(
        chunks(&db, "p"),
        [
            "changed: New text.",
            "free: Old text of free.",
            "not changed: Old text of not changed.",
            "not deleted: Old text of not deleted.",
        ]
    );
    for key in all {
        assert_eq!(api.times_sent(&format!("Old text of {key}.")), 1, "{key}");
    }
    counted(&db, "p");
}

#[test]
fn a_prepared_transaction_holds_up_only_its_documents() {
    let cluster = Cluster::start(&[]);
    let db = Database::new_in(&cluster);
    let api = api();
    db.create_remote_pipeline("p", &api, SINGLY);
    send(&db, &api, &["changed", "not changed", "deleted", "free"]);
    db.run(
        "BEGIN; UPDATE ingest.documents SET content = 'New text.' WHERE key = 'changed';
         DELETE FROM ingest.documents WHERE key = 'deleted'; PREPARE TRANSACTION 'commits'",
    );
    db.run(
        "BEGIN; UPDATE ingest.documents SET content = 'New text.' WHERE key = 'not changed';
         INSERT INTO ingest.documents (pipeline, key, content) VALUES ('p', 'never', 'A text that never was.');
         PREPARE TRANSACTION 'rolls back'",
    );
    api.release_answers();
    wait_until("the others are not held up", SOON, || {
        chunks(&db, "p") == ["free: Old text of free."]
    });
    // It outlives a crash, in which the worker that held its documents ends.
    cluster.stop_server("immediate");
    cluster.start_server();
    db.reconnect();
    db.run("INSERT INTO ingest.documents (pipeline, key, content) VALUES ('p', 'later', 'A later text.')");
    has_chunks("later ones are not held up either", &db, "p", 2);
    db.run("ROLLBACK PREPARED 'rolls back'");
    has_chunks("what has not changed is embedded", &db, "p", 3);
    db.run("COMMIT PREPARED 'commits'");
    all_embedded(&db, "p", 4);
    assert_eq!(
        chunks(&db, "p"),
        [
            "changed: New text.",
            "free: Old text of free.",
            "later: A later text.",
            "not changed: Old text of not changed.",
        ]
    );
    counted(&db, "p");
}

#[test]
fn a_document_that_moves_on_its_way_arrives_only_where_it_went() {
    let (db, api) = in_flight(&["moves", "stays", "is called so"]);
    db.create_remote_pipeline("q", &api, SINGLY);
    db.run(
        "UPDATE ingest.documents SET pipeline = 'q' WHERE key = 'moves';
         UPDATE ingest.documents SET key = 'moves' WHERE key = 'is called so'",
    );
    api.release_answers();
    all_embedded(&db, "p", 2);
    all_embedded(&db, "q", 1);
    assert_eq!(
        chunks(&db, "p"),
        [
            "moves: Old text of is called so.",
            "stays: Old text of stays."
        ]
    );
    assert_eq!(chunks(&db, "q"), ["moves: Old text of moves."]);
    // There and back again, while it is on its way to both.
    api.hold_answers();
    db.run("UPDATE ingest.documents SET content = 'New text.', pipeline = 'q' WHERE key = 'stays'");
    wait_until("it is on its way", SOON, || api.in_flight() == 1);
    db.run("UPDATE ingest.documents SET pipeline = 'p' WHERE key = 'stays'");
    wait_until("it is on its way back", SOON, || api.in_flight() == 2);
    api.release_answers();
    all_embedded(&db, "p", 2);
    all_embedded(&db, "q", 1);
    assert_eq!(chunks(&db, "p")[1], "stays: New text.");
    counted(&db, "p");
    counted(&db, "q");
}

#[test]
fn a_document_stays_the_one_that_is_in_flight() {
    let (db, api) = in_flight(&["new"]);
    let error = db.expect_error("UPDATE ingest.documents SET id = DEFAULT");
    assert_eq!(error.code, "428C9", "{}", error.text());
    api.release_answers();
    all_embedded(&db, "p", 1);
}

#[test]
fn truncate_leaves_nothing_of_what_is_in_flight() {
    let db = Database::new();
    let api = api();
    db.create_remote_pipeline("p", &api, SINGLY);
    // The first pipeline may be one whose documents leave by themselves.
    db.create_remote_pipeline("archive", &api, "batch_size => 1, on_success => 'delete'");
    db.run("INSERT INTO ingest.documents (pipeline, key, content) VALUES ('archive', 'a', 'An archived text.')");
    all_embedded(&db, "archive", 1);
    send(&db, &api, &["a", "b"]);
    db.run(
        "INSERT INTO ingest.documents (pipeline, key, content) VALUES ('archive', 'b', 'A text.')",
    );
    wait_until("it is in flight, too", SOON, || api.in_flight() == 3);
    db.run("TRUNCATE ingest.documents");
    db.run("INSERT INTO ingest.documents (pipeline, key, content) VALUES ('p', 'a', 'A text after it all.')");
    wait_until("it is in flight, too", SOON, || api.in_flight() == 4);
    api.release_answers();
    all_embedded(&db, "p", 1);
    all_embedded(&db, "archive", 1);
    assert_eq!(chunks(&db, "p"), ["a: A text after it all."]);
    assert_eq!(chunks(&db, "archive"), ["a: An archived text."]);
    counted(&db, "p");
}

#[test]
fn truncate_works_whatever_pipelines_do_with_their_documents() {
    let db = Database::new();
    db.run("SELECT ingest.create_pipeline('archive', on_success => 'delete')");
    db.run("TRUNCATE ingest.documents");
    db.run(
        "INSERT INTO ingest.documents (pipeline, key, content) VALUES ('archive', 'a', 'A text.')",
    );
    db.settle();
    db.run("TRUNCATE ingest.documents");
    assert_eq!(chunks(&db, "archive"), ["a: A text."]);
    assert_eq!(db.progress_of("archive").counts(), (1, 1, 0, 0));
    assert_eq!(db.progress_of("archive").chunks, 1);
}

#[test]
fn metadata_that_changes_in_flight_arrives() {
    let (db, api) = in_flight(&["first", "again"]);
    let metadata = || -> Vec<String> {
        db.all("SELECT document_key || ' ' || metadata FROM ingest.p_chunks ORDER BY 1")
    };
    db.run(r#"UPDATE ingest.documents SET metadata = '{"n": 1}'"#);
    api.release_answers();
    all_embedded(&db, "p", 2);
    assert_eq!(metadata(), [r#"again {"n": 1}"#, r#"first {"n": 1}"#]);
    // Of a document whose new content is in flight, the old chunks get it at once.
    api.hold_answers();
    db.run("UPDATE ingest.documents SET content = 'New text.' WHERE key = 'again'");
    wait_until("it is in flight", SOON, || api.in_flight() == 1);
    db.run(r#"UPDATE ingest.documents SET metadata = '{"n": 2}' WHERE key = 'again'"#);
    assert_eq!(metadata(), [r#"again {"n": 2}"#, r#"first {"n": 1}"#]);
    api.release_answers();
    all_embedded(&db, "p", 2);
    assert_eq!(metadata(), [r#"again {"n": 2}"#, r#"first {"n": 1}"#]);
    assert_eq!(chunks(&db, "p")[0], "again: New text.");
}

#[test]
fn retry_leaves_alone_what_is_in_flight() {
    let (db, api) = refused();
    api.clear_faults();
    api.hold_answers();
    let retry = || db.one::<i64>("SELECT ingest.retry()");
    assert_eq!(retry(), 1);
    wait_until("it is in flight", SOON, || api.in_flight() == 1);
    assert_eq!(retry(), 0);
    assert_eq!(db.progress_of("p").counts(), (1, 0, 1, 0));
    // The content that is in flight is not the one that is retried.
    db.run("UPDATE ingest.documents SET content = 'A mended text.'");
    assert_eq!(retry(), 0);
    wait_until("the new content is in flight", SOON, || {
        api.in_flight() == 2
    });
    api.release_answers();
    all_embedded(&db, "p", 1);
    assert_eq!(chunks(&db, "p"), ["bad: A mended text."]);
    assert_eq!(api.times_sent("A poison text."), 2);
    assert_eq!(api.times_sent("A mended text."), 1);
    counted(&db, "p");
}

#[test]
fn a_document_that_is_locked_when_the_worker_looks_is_taken_when_it_is_let_go() {
    let db = Database::new();
    let api = api();
    db.create_remote_pipeline("p", &api, "");
    // With others beside it, and as the only one there is.
    for others in [2, 0] {
        db.run("SELECT ingest.pause('p'); DELETE FROM ingest.documents");
        db.insert_prose("p", "d", others + 1, 5);
        let mut other = db.connect();
        let mut change = other.transaction().expect("BEGIN");
        change
            .execute(
                "UPDATE ingest.documents SET content = 'another' WHERE key = 'd1'",
                &[],
            )
            .expect("UPDATE");
        db.run("SELECT ingest.resume('p')");
        wait_until("the others are embedded", SOON, || {
            db.progress_of("p").embedded == others as i64
        });
        wait_until("the worker rests", SOON, || {
            db.one::<String>("SELECT state FROM ingest.workers WHERE database = current_database()")
                == "idle"
        });
        // Nobody tells the worker of it.
        change.rollback().expect("ROLLBACK");
        all_embedded(&db, "p", others + 1);
    }
}
