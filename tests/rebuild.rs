//! Promise: one may change one's mind about a pipeline with data. Another model, other dimensions or other chunks are made beside
//! the old ones, which stay complete and fresh until the new ones take their place at once; no search mixes the two, and it can
//! be watched and given up.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use harness::rebuild::*;
use harness::remote::{api, embed};
use harness::roles::{self, run};
use harness::*;

#[test]
fn the_old_vectors_stay_complete_and_fresh_until_the_new_ones_take_their_place() {
    let db = Database::new();
    let (_old, new) = pipeline(&db, &["stays", "changes", "goes", "moves", "is labelled"]);
    begin(&db, &new, ", dimensions => 96");
    wait_until("the new vectors are asked for", SOON, || {
        new.in_flight() > 0
    });
    assert_eq!(db.progress_of("p").counts(), (5, 5, 0, 0));
    assert_eq!(db.progress_of("p").percent, 100.0);
    assert_eq!(
        db.one::<String>("SELECT rebuilding FROM ingest.progress"),
        "0.0 % of openai/text-embedding-3-small"
    );
    assert_eq!(rebuild(&db), ["running 5 0 0"]);
    assert_eq!(
        db.all::<String>("SELECT concat_ws(' ', pipeline, documents) FROM ingest.estimate('p')"),
        ["p 0", "p (rebuild) 5"]
    );
    assert_eq!(db.all::<String>("SELECT name FROM ingest.pipelines"), ["p"]);
    assert!(!db.one::<bool>("SELECT ingest.wait('p', '0.3 s')"));
    // Every change is seen at once, though the other model says nothing.
    db.run(
        "INSERT INTO ingest.documents (pipeline, key, content) VALUES ('p', 'comes', 'Old text of comes.');
         UPDATE ingest.documents SET content = 'New text.' WHERE key = 'changes';
         DELETE FROM ingest.documents WHERE key = 'goes';
         UPDATE ingest.documents SET key = 'moved' WHERE key = 'moves';
         UPDATE ingest.documents SET metadata = '{\"a\": 1}' WHERE key = 'is labelled'",
    );
    finds(&db, "Old text of comes.", "comes");
    finds(&db, "New text.", "changes");
    finds(&db, "Old text of moves.", "moved");
    finds(&db, "Old text of stays.", "stays");
    assert_eq!(found(&db, "Old text of goes."), None);
    assert_eq!(found(&db, "Old text of changes."), None);
    assert_eq!(embed(&db, "x", "p").len(), 64);
    new.release_answers();
    db.settle();
    assert_eq!(embed(&db, "x", "p").len(), 96);
    for (text, key) in [
        ("Old text of comes.", "comes"),
        ("New text.", "changes"),
        ("Old text of moves.", "moved"),
        ("Old text of stays.", "stays"),
        ("Old text of is labelled.", "is labelled"),
    ] {
        assert_eq!(found(&db, text).as_deref(), Some(key));
    }
    assert_eq!(
        db.one::<String>(
            "SELECT metadata::text FROM ingest.p_chunks WHERE document_key = 'is labelled'"
        ),
        "{\"a\": 1}"
    );
    assert_eq!(db.one::<i64>("SELECT count(*) FROM ingest.p_chunks"), 5);
    assert!(db.one::<bool>(
        "SELECT target = 'ingest.p_chunks'::regclass AND dimensions = 96 FROM ingest.pipelines"
    ));
    nothing_left(&db);
    // And it goes on as ever.
    db.run("UPDATE ingest.documents SET content = 'Newest text.' WHERE key = 'changes'; DELETE FROM ingest.documents WHERE key = 'stays'");
    db.settle();
    assert_eq!(found(&db, "Newest text.").as_deref(), Some("changes"));
    nothing_left(&db);
}

#[test]
fn no_search_fails_or_mixes_models_while_they_are_switched() {
    let db = Database::new();
    let (old, new) = pipeline(&db, &["a", "b", "c", "d"]);
    let (stop, searched) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        let storm: Vec<_> = (0..4)
            .map(|_| {
                let mut client = db.connect();
                let (stop, searched) = (&stop, &searched);
                scope.spawn(move || {
                    let prepared = client
                        .prepare(
                            "SELECT key, similarity FROM ingest.search('Old text of c.', 1, 'p')",
                        )
                        .expect("a statement");
                    while !stop.load(Ordering::SeqCst) {
                        let row = client
                            .query_one(&prepared, &[])
                            .unwrap_or_else(|error| panic!("{}", ServerError::from(error).text()));
                        let (key, similarity): (String, f64) = (row.get(0), row.get(1));
                        assert!(key == "c" && similarity > 0.99, "{key} {similarity}");
                        searched.fetch_add(1, Ordering::SeqCst);
                    }
                })
            })
            .collect();
        let stopping = Stop(&stop);
        for round in 0..12 {
            let (api, request) = if round % 2 == 0 {
                (&new, OTHER)
            } else {
                (&old, "request => '{}'")
            };
            db.run(&format!(
                "SELECT ingest.alter_pipeline('p', base_url => {}, {request})",
                quoted(&api.openai_url())
            ));
            db.settle();
            assert_eq!(found(&db, "Old text of b.").as_deref(), Some("b"));
            // Each switch has searches around it, however fast it was.
            let before = searched.load(Ordering::SeqCst);
            wait_until("others have searched", SOON, || {
                searched.load(Ordering::SeqCst) >= before + 9
                    || storm.iter().any(|s| s.is_finished())
            });
        }
        drop(stopping);
        for thread in storm {
            thread.join().expect("every search succeeds");
        }
    });
    println!("{searched:?} searches over 12 switches");
    nothing_left(&db);
}

#[test]
fn a_rebuild_is_given_up_at_a_word_and_another_one_takes_its_place() {
    let db = Database::new();
    let (_old, new) = pipeline(&db, &["a", "b"]);
    assert!(!db.one::<bool>("SELECT ingest.cancel_rebuild('p')"));
    begin(&db, &new, "");
    wait_until("it is on its way", SOON, || new.in_flight() > 0);
    assert!(db.one::<bool>("SELECT ingest.cancel_rebuild('p')"));
    new.release_answers();
    nothing_left(&db);
    assert_eq!(found(&db, "Old text of a.").as_deref(), Some("a"));
    // Back to what is in use is the same.
    begin(&db, &new, ", dimensions => 96");
    db.run("SELECT ingest.alter_pipeline('p', request => '{}', dimensions => 64)");
    new.release_answers();
    nothing_left(&db);
    // What changes no vector goes to both, and another change begins anew with what was asked before.
    begin(&db, &new, ", dimensions => 96");
    db.run("SELECT ingest.alter_pipeline('p', max_attempts => 9)");
    assert_eq!(
        db.all::<i32>("SELECT max_attempts FROM ingest.pipeline"),
        [9, 9]
    );
    let before: i32 = db.one("SELECT max(pipeline_id) FROM ingest.pipeline");
    db.run("SELECT ingest.alter_pipeline('p', chunk_tokens => 100)");
    assert_eq!(
        db.all::<String>("SELECT concat_ws(' ', dimensions, chunk_tokens) FROM ingest.rebuilds"),
        ["96 100"]
    );
    assert!(db.one::<i32>("SELECT max(pipeline_id) FROM ingest.pipeline") > before);
    // Both are paused and resumed together.
    db.run("SELECT ingest.pause('p')");
    assert_eq!(
        db.all::<bool>("SELECT paused FROM ingest.pipeline"),
        [true, true]
    );
    assert_eq!(rebuild(&db), ["paused 2 0 0"]);
    new.release_answers();
    db.run("SELECT ingest.resume('p')");
    db.settle();
    assert_eq!(
        db.one::<String>(
            "SELECT concat_ws(' ', dimensions, chunk_tokens, max_attempts) FROM ingest.pipelines"
        ),
        "96 100 9"
    );
    assert_eq!(found(&db, "Old text of a.").as_deref(), Some("a"));
    nothing_left(&db);
}

#[test]
fn documents_that_fail_only_anew_wait_for_a_person() {
    let db = Database::new();
    let (_old, new) = pipeline(&db, &["a", "hemlock", "b"]);
    db.run("INSERT INTO ingest.documents (pipeline, key, content) VALUES ('p', 'blank', '')");
    db.settle();
    new.refuse_text("hemlock");
    begin(&db, &new, "");
    new.release_answers();
    wait_until("it waits", SOON, || rebuild(&db) == ["failed 4 2 2"]);
    assert_eq!(
        db.all::<String>("SELECT key || ' ' || rebuild FROM ingest.failures ORDER BY 1"),
        ["blank false", "blank true", "hemlock true"]
    );
    assert_eq!(db.progress_of("p").counts(), (4, 3, 0, 1));
    assert_eq!(
        found(&db, "Old text of hemlock.").as_deref(),
        Some("hemlock")
    );
    assert!(!db.one::<bool>("SELECT ingest.wait('p', '0.3 s')"));
    assert!(
        db.one::<String>("SELECT hint FROM ingest.doctor() WHERE \"check\" = 'rebuild of p'")
            .contains("finish_rebuild")
    );
    // Tried again in vain, and then done without it; what failed before keeps nobody.
    assert_eq!(
        db.one::<i64>("SELECT ingest.retry('p', key => 'hemlock')"),
        1
    );
    wait_until("it waits again", SOON, || rebuild(&db) == ["failed 4 2 2"]);
    assert!(db.one::<bool>("SELECT ingest.finish_rebuild('p')"));
    db.settle();
    assert_eq!(db.progress_of("p").counts(), (4, 2, 0, 2));
    assert_eq!(
        db.one::<i64>("SELECT count(*) FROM ingest.p_chunks WHERE document_key = 'hemlock'"),
        0
    );
    assert_eq!(found(&db, "Old text of a.").as_deref(), Some("a"));
    nothing_left(&db);
    assert!(!db.one::<bool>("SELECT ingest.finish_rebuild('p')"));
    // Or it succeeds in the second try.
    new.clear_faults();
    assert_eq!(
        db.one::<i64>("SELECT ingest.retry('p', key => 'hemlock')"),
        1
    );
    db.settle();
    assert_eq!(
        found(&db, "Old text of hemlock.").as_deref(),
        Some("hemlock")
    );
}

#[test]
fn a_pipeline_that_is_dropped_takes_its_rebuild_along() {
    let db = Database::new();
    let (_old, new) = pipeline(&db, &["a"]);
    begin(&db, &new, "");
    wait_until("it is on its way", SOON, || new.in_flight() > 0);
    db.run("SELECT ingest.drop_pipeline('p')");
    assert_eq!(db.one::<i64>("SELECT count(*) FROM ingest.p_chunks"), 1);
    for left in [
        "ingest.pipeline",
        "ingest.queue",
        "ingest.counter",
        "ingest.counter_delta",
        "ingest.documents",
    ] {
        assert_eq!(
            db.one::<i64>(&format!("SELECT count(*) FROM {left}")),
            0,
            "{left}"
        );
    }
    assert!(db.one::<bool>("SELECT to_regclass('ingest.p_chunks_next') IS NULL"));
}

#[test]
fn truncate_empties_both() {
    let db = Database::new();
    let (_old, new) = pipeline(&db, &["a", "b"]);
    begin(&db, &new, "");
    wait_until("it is on its way", SOON, || new.in_flight() > 0);
    db.run("TRUNCATE ingest.documents");
    new.release_answers();
    db.settle();
    assert_eq!(db.progress_of("p").counts(), (0, 0, 0, 0));
    nothing_left(&db);
}

#[test]
fn an_empty_pipeline_changes_at_once() {
    let db = Database::with_pipeline();
    let api = api();
    let key = db.cluster().write_key(harness::remote::KEY);
    // Documents may wait already.
    db.run("SELECT ingest.pause('default'); INSERT INTO ingest.documents (key, content) VALUES ('k', 'A text.')");
    db.run(&format!(
        "SELECT ingest.alter_pipeline('default', model => 'openai/text-embedding-3-large', dimensions => 2100, base_url => {}, api_key => {},
             index => 'immediate')",
        quoted(&api.openai_url()),
        quoted(&key)
    ));
    assert_eq!(db.one::<i64>("SELECT count(*) FROM ingest.rebuilds"), 0);
    db.run("SELECT ingest.resume('default')");
    db.settle();
    assert_eq!(
        db.one::<String>("SELECT format_type(atttypid, atttypmod) FROM pg_attribute WHERE attrelid = 'ingest.default_chunks'::regclass AND attname = 'embedding'"),
        "halfvec(2100)"
    );
    assert!(db.one::<f64>("SELECT similarity FROM ingest.search('A text.', 1)") > 0.99);
    assert_eq!(
        db.one::<i32>("SELECT chunk_tokens FROM ingest.pipelines"),
        512
    );
    // And back to the local one, with data: nothing is left of the connection.
    db.run("SELECT ingest.alter_pipeline('default', model => 'local/all-MiniLM-L6-v2')");
    db.settle();
    assert_eq!(
        db.one::<String>("SELECT concat_ws(' ', dimensions, base_url, api_key, chunk_tokens, chunk_overlap) FROM ingest.pipelines"),
        "384 254 25"
    );
    assert!(db.one::<f64>("SELECT similarity FROM ingest.search('A text.', 1)") > 0.99);
    assert_eq!(
        db.all::<String>("SELECT indexrelid::regclass::text FROM pg_index WHERE indrelid = 'ingest.default_chunks'::regclass ORDER BY 1"),
        [
            "ingest.default_chunks_document_key_chunk_no_key",
            "ingest.default_chunks_embedding_idx",
            "ingest.default_chunks_pkey",
            "ingest.default_chunks_to_tsvector_idx",
        ]
    );
}

#[test]
fn a_transaction_that_does_not_see_the_rebuild_changes_no_document() {
    let db = Database::new();
    let (_old, new) = pipeline(&db, &["a", "b", "c"]);
    for sql in [
        "INSERT INTO ingest.documents (pipeline, key, content) VALUES ('p', 'x', 'Text.')",
        "UPDATE ingest.documents SET content = 'New text.' WHERE key = 'a'",
        "UPDATE ingest.documents SET metadata = '{\"a\": 1}' WHERE key = 'a'",
        "DELETE FROM ingest.documents WHERE key = 'a'",
    ] {
        for seen in [false, true] {
            let mut old = db.connect();
            run(
                &mut old,
                "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM ingest.documents",
            );
            if seen {
                // The other way round: it sees one that has ended.
                begin(&db, &new, "");
                run(
                    &mut old,
                    "ROLLBACK; BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM ingest.documents",
                );
                db.run("SELECT ingest.cancel_rebuild('p')");
            } else {
                begin(&db, &new, "");
            }
            let error = old.batch_execute(sql).map_err(ServerError::from);
            assert_eq!(
                error.map_err(|error| error.code),
                Err("40001".to_owned()),
                "{sql}, {seen}"
            );
            run(&mut old, "ROLLBACK");
            db.run("SELECT ingest.cancel_rebuild('p')");
        }
    }
    new.release_answers();
    nothing_left(&db);
}

#[test]
fn a_search_with_an_old_snapshot_is_told_to_try_again() {
    let db = Database::new();
    let (_old, new) = pipeline(&db, &["a"]);
    let mut old = db.connect();
    run(
        &mut old,
        "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM ingest.documents",
    );
    begin(&db, &new, "");
    new.release_answers();
    db.settle();
    let error = roles::refused(&mut old, "SELECT * FROM ingest.search('x', 1, 'p')");
    assert_eq!(error.code, "40001", "{error:?}");
}

#[test]
fn those_who_change_a_pipeline_at_the_same_time_do_it_one_after_the_other() {
    let db = Database::new();
    let (_old, _new) = pipeline(&db, &["a", "b"]);
    let mut other = db.connect();
    run(&mut other, "BEGIN");
    run(
        &mut other,
        "SELECT ingest.alter_pipeline('p', dimensions => 96)",
    );
    std::thread::scope(|scope| {
        let mut client = db.connect();
        let second = scope.spawn(move || {
            run(
                &mut client,
                "SELECT ingest.alter_pipeline('p', chunk_tokens => 100)",
            );
        });
        wait_until("the second one waits", SOON, || {
            db.one::<i64>(
                "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted",
            ) == 1
        });
        run(&mut other, "COMMIT");
        second.join().expect("the second one succeeds");
    });
    db.settle();
    assert_eq!(
        db.one::<String>("SELECT concat_ws(' ', dimensions, chunk_tokens) FROM ingest.pipelines"),
        "96 100"
    );
    nothing_left(&db);
}

#[test]
fn a_rebuild_goes_on_after_a_crash_and_a_restore() {
    let cluster = Cluster::start(&[]);
    let db = Database::new_in(&cluster);
    let (_old, new) = pipeline(&db, &["a", "b", "c"]);
    begin(&db, &new, ", dimensions => 96");
    wait_until("it is on its way", SOON, || new.in_flight() > 0);
    cluster.stop_server("immediate");
    cluster.start_server();
    db.reconnect();
    assert_eq!(db.one::<i64>("SELECT count(*) FROM ingest.rebuilds"), 1);
    assert_eq!(found(&db, "Old text of a.").as_deref(), Some("a"));
    let file = db.dump(&[]);
    db.run("SELECT ingest.drop_pipeline('p', true)");
    let restored = Database::empty_in(&cluster);
    restored.restore(&file);
    assert_eq!(rebuild(&restored).len(), 1);
    assert_eq!(found(&restored, "Old text of a.").as_deref(), Some("a"));
    assert_eq!(embed(&restored, "x", "p").len(), 64);
    new.release_answers();
    restored.settle();
    assert_eq!(embed(&restored, "x", "p").len(), 96);
    assert_eq!(found(&restored, "Old text of a.").as_deref(), Some("a"));
    nothing_left(&restored);
}

#[test]
fn nothing_is_lost_while_writers_never_rest() {
    let cluster = Cluster::start(&[("pg_ingest.workers", "2")]);
    let db = Database::new_in(&cluster);
    let (old, new) = pipeline(&db, &["a", "b", "c"]);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for number in 0..2 {
            let mut client = db.connect();
            let stop = &stop;
            scope.spawn(move || {
                let mut round = 0;
                while !stop.load(Ordering::SeqCst) {
                    round += 1;
                    for sql in [
                        format!("INSERT INTO ingest.documents (pipeline, key, content) VALUES ('p', 'w{number}-{round}', 'Text {round} of {number}.')"),
                        format!("UPDATE ingest.documents SET content = content || ' More.' WHERE key = 'w{number}-{}'", round / 2),
                        format!("UPDATE ingest.documents SET metadata = '{{\"n\": {round}}}' WHERE key = 'w{number}-{}'", round / 3),
                        format!("DELETE FROM ingest.documents WHERE key = 'w{number}-{}'", round / 4),
                    ] {
                        client.batch_execute(&sql).unwrap_or_else(|error| panic!("{sql}: {}", ServerError::from(error).text()));
                    }
                    std::thread::sleep(std::time::Duration::from_millis(20));
                }
            });
        }
        let stopping = Stop(&stop);
        for round in 0..4 {
            let (api, request) = if round % 2 == 0 {
                (&new, OTHER)
            } else {
                (&old, "request => '{}'")
            };
            db.run(&format!(
                "SELECT ingest.alter_pipeline('p', base_url => {}, {request})",
                quoted(&api.openai_url())
            ));
            wait_until("the new vectors are in use", SOON * 2, || {
                rebuild(&db).is_empty()
            });
        }
        drop(stopping);
    });
    db.settle();
    nothing_left(&db);
    all_is_as_written(&db);
}

#[test]
fn a_rebuild_ends_wherever_pgvector_lives() {
    let db = Database::empty_in(shared_cluster(&[]));
    db.run(r#"CREATE SCHEMA "My""Ext"; CREATE EXTENSION vector SCHEMA "My""Ext"; CREATE EXTENSION pg_ingest"#);
    let (_old, new) = pipeline(&db, &["a", "b"]);
    db.run(
        r#"CREATE INDEX by_hand ON ingest.p_chunks USING hnsw (embedding "My""Ext".vector_ip_ops)"#,
    );
    begin(&db, &new, ", dimensions => 96");
    new.release_answers();
    db.settle();
    assert_eq!(embed(&db, "x", "p").len(), 96);
    nothing_left(&db);
    assert_eq!(
        db.all::<String>("SELECT tablename::text FROM pg_indexes WHERE indexname = 'by_hand'"),
        ["p_chunks"]
    );
}
