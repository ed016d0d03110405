//! Promise: what becomes of a table while its successor is built is not lost with it: it blocks the switch in words, until it is taken
//! back or the rebuild is given up.

use harness::rebuild::*;
use harness::*;

/// The reason why the rebuild of `p` is blocked.
fn reason(db: &Database) -> String {
    wait_until("the switch is blocked", SOON, || {
        db.one::<bool>("SELECT EXISTS (SELECT FROM ingest.rebuilds WHERE state = 'blocked')")
    });
    db.one("SELECT last_error FROM ingest.rebuilds")
}

#[test]
fn what_is_made_on_the_table_in_use_meanwhile_blocks_the_switch_in_words() {
    let db = Database::new();
    let (old, new) = pipeline(&db, &["a", "b"]);
    let row = "INSERT INTO ingest.p_chunks (document_key, chunk_no, content, tokens, embedding)
               SELECT 'mine', 0, 'Mine.', 1, embedding FROM ingest.p_chunks WHERE document_key = 'a'";
    for (round, (made, taken_back, words)) in [
        (
            "ALTER TABLE ingest.p_chunks ADD COLUMN note text",
            "ALTER TABLE ingest.p_chunks DROP COLUMN note",
            "column note text",
        ),
        (
            "ALTER TABLE ingest.p_chunks ADD CHECK (chunk_no < 1000)",
            "ALTER TABLE ingest.p_chunks DROP CONSTRAINT p_chunks_chunk_no_check",
            "chunk_no < 1000",
        ),
        (
            "CREATE INDEX made ON ingest.p_chunks (tokens)",
            "DROP INDEX ingest.made",
            "index btree",
        ),
        (
            "ALTER TABLE ingest.p_chunks SET (fillfactor = 70)",
            "ALTER TABLE ingest.p_chunks RESET (fillfactor)",
            "fillfactor=70",
        ),
        (
            "CREATE FUNCTION public.nothing() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
             CREATE TRIGGER made BEFORE UPDATE ON ingest.p_chunks FOR EACH ROW EXECUTE FUNCTION public.nothing()",
            "DROP TRIGGER made ON ingest.p_chunks",
            "trigger made",
        ),
        (row, "DELETE FROM ingest.p_chunks WHERE document_key = 'mine'", "has 1 rows"),
    ]
    .into_iter()
    .enumerate()
    {
        let (api, request) = if round % 2 == 0 {
            (&new, OTHER)
        } else {
            (&old, "request => '{}'")
        };
        db.run("SELECT ingest.pause('p')");
        db.run(&format!(
            "SELECT ingest.alter_pipeline('p', base_url => {}, {request})",
            quoted(&api.openai_url())
        ));
        db.run(made);
        db.run("SELECT ingest.resume('p')");
        let reason = reason(&db);
        assert!(reason.contains(words), "{made}: {reason}");
        assert_eq!(db.progress_of("p").counts(), (2, 2, 0, 0));
        db.run(taken_back);
        db.run("SELECT ingest.resume('p')");
        db.settle();
        finds(&db, "Old text of a.", "a");
        nothing_left(&db);
    }
}

#[test]
fn a_document_that_fails_and_is_found_by_what_it_was_before_is_not_lost() {
    let db = Database::new();
    let (_old, new) = pipeline(&db, &["a", "b"]);
    db.run("UPDATE ingest.documents SET content = '' WHERE key = 'b'");
    db.settle();
    finds(&db, "Old text of b.", "b");
    begin(&db, &new, "");
    new.release_answers();
    let reason = reason(&db);
    assert!(
        reason.contains("documents failed that search finds"),
        "{reason}"
    );
    finds(&db, "Old text of b.", "b");
    db.run("UPDATE ingest.documents SET content = 'Old text of b.' WHERE key = 'b'; SELECT ingest.resume('p')");
    db.settle();
    finds(&db, "Old text of b.", "b");
    nothing_left(&db);
}

#[test]
fn it_is_lost_at_a_word() {
    let db = Database::new();
    let (_old, new) = pipeline(&db, &["a", "b"]);
    db.run("UPDATE ingest.documents SET content = '' WHERE key = 'b'");
    db.settle();
    begin(&db, &new, "");
    new.release_answers();
    reason(&db);
    assert!(db.one::<bool>("SELECT ingest.finish_rebuild('p')"));
    db.settle();
    finds(&db, "Old text of a.", "a");
    assert_eq!(found(&db, "Old text of b."), None);
    assert!(rebuild(&db).is_empty());
}

#[test]
fn a_rebuild_that_waits_for_a_lock_keeps_no_other_one_waiting() {
    let db = Database::new();
    let (_old, new) = pipeline(&db, &["a"]);
    db.create_remote_pipeline("q", &new, "dimensions => 64");
    db.run("INSERT INTO ingest.documents (pipeline, key, content) VALUES ('q', 'x', 'X.')");
    db.settle();
    let mut reader = db.connect();
    reader
        .batch_execute("BEGIN; SELECT FROM ingest.p_chunks LIMIT 0")
        .expect("the table is read");
    db.run("SELECT ingest.alter_pipeline('p', dimensions => 32); SELECT ingest.alter_pipeline('q', dimensions => 32)");
    wait_until("the other one is switched", SOON, || {
        db.one::<i32>("SELECT dimensions FROM ingest.pipelines WHERE name = 'q'") == 32
    });
    assert_eq!(
        db.one::<i32>("SELECT dimensions FROM ingest.pipelines WHERE name = 'p'"),
        64
    );
    drop(reader);
    db.settle();
    assert_eq!(
        db.one::<i32>("SELECT dimensions FROM ingest.pipelines WHERE name = 'p'"),
        32
    );
}

#[test]
fn a_pause_holds_for_a_rebuild_that_another_session_has_begun_and_not_committed() {
    let db = Database::new();
    let (_old, new) = pipeline(&db, &["a"]);
    let mut altering = db.connect();
    altering
        .batch_execute(&format!(
            "BEGIN; SELECT ingest.alter_pipeline('p', base_url => {}, {OTHER})",
            quoted(&new.openai_url())
        ))
        .expect("it is altered");
    let mut pausing = db.connect();
    let pid: i32 = pausing
        .query_one("SELECT pg_backend_pid()", &[])
        .expect("a row")
        .get(0);
    std::thread::scope(|scope| {
        scope.spawn(move || {
            pausing
                .batch_execute("SELECT ingest.pause('p')")
                .expect("it is paused");
        });
        wait_until("it waits", SOON, || {
            db.one::<bool>(&format!(
                "SELECT EXISTS (SELECT FROM pg_locks WHERE pid = {pid} AND NOT granted)"
            ))
        });
        altering.batch_execute("COMMIT").expect("a commit");
    });
    assert_eq!(
        db.all::<bool>("SELECT paused FROM ingest.pipeline"),
        [true, true]
    );
}

#[test]
fn the_key_of_one_service_is_not_shown_to_another_ones_model() {
    let db = Database::new();
    db.run("SELECT ingest.create_pipeline('p', model => 'openai/text-embedding-3-small', api_key => 'env:A_KEY', limits => 'openai-tier-3')");
    let error = db.expect_error("SELECT ingest.alter_pipeline('p', model => 'openai/voyage-3.5')");
    assert!(
        error.text().contains("needs an api_key"),
        "{}",
        error.text()
    );
    db.run(
        "SELECT ingest.alter_pipeline('p', model => 'openai/voyage-3.5', api_key => 'env:ANOTHER')",
    );
    assert_eq!(
        db.one::<String>("SELECT concat_ws(' ', api_key, limits) FROM ingest.pipelines"),
        "env:ANOTHER"
    );
    db.run("SELECT ingest.alter_pipeline('p', model => 'openai/text-embedding-3-large', api_key => 'env:A_KEY')");
    db.run("SELECT ingest.alter_pipeline('p', model => 'openai/text-embedding-3-small')");
    assert_eq!(
        db.one::<String>("SELECT api_key FROM ingest.pipelines"),
        "env:A_KEY"
    );
}
