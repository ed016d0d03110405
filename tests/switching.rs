//! Promise: who changes a pipeline in the very moment in which its new vectors take the old ones' place comes after that, and
//! harms nothing.

use harness::rebuild::*;
use harness::roles::{column, run};
use harness::*;

/// A pipeline `p` whose worker stands just before the commit of a switch; `act` is called in another session, which has to
/// wait, before the worker goes on. `see` is given what it returned.
fn in_the_moment<T: Send>(
    act: impl FnOnce(&mut postgres::Client) -> T + Send,
    see: impl FnOnce(&Database, T),
) {
    let cluster = Cluster::start_injecting(&[]);
    let db = Database::new_in(&cluster);
    let (_old, new) = pipeline(&db, &["a", "b"]);
    begin(&db, &new, ", dimensions => 96");
    let mut reader = db.connect();
    reader
        .batch_execute("BEGIN; SELECT FROM ingest.p_chunks LIMIT 0")
        .expect("the old table is read");
    new.release_answers();
    wait_until("all is embedded", SOON, || {
        rebuild(&db) == ["switching 2 2 0"]
    });
    db.run("SELECT ingest.inject('before_commit', 'wait')");
    drop(reader);
    wait_until("the worker is about to commit", SOON, || {
        db.one::<i64>("SELECT ingest.waiting_at('before_commit')") == 1
    });
    let mut client = db.connect();
    let pid: i32 = client
        .query_one("SELECT pg_backend_pid()", &[])
        .expect("a row")
        .get(0);
    let returned = std::thread::scope(|scope| {
        let other = scope.spawn(move || act(&mut client));
        wait_until("it waits", SOON, || {
            db.one::<bool>(&format!(
                "SELECT EXISTS (SELECT FROM pg_locks WHERE pid = {pid} AND NOT granted)"
            ))
        });
        db.run("SELECT ingest.inject('before_commit', 'pass')");
        other.join().expect("it succeeds")
    });
    see(&db, returned);
}

#[test]
fn a_rebuild_that_is_just_taking_its_place_cannot_be_given_up() {
    in_the_moment(
        |client| column::<bool>(client, "SELECT ingest.cancel_rebuild('p')"),
        |db, given_up| {
            assert_eq!(given_up, [false]);
            finds(db, "Old text of a.", "a");
            assert_eq!(db.one::<i32>("SELECT dimensions FROM ingest.pipelines"), 96);
            nothing_left(db);
        },
    );
}

#[test]
fn a_pipeline_that_is_altered_while_it_is_switched_is_altered_after_that() {
    in_the_moment(
        |client| {
            run(
                client,
                "SELECT ingest.alter_pipeline('p', chunk_tokens => 100)",
            )
        },
        |db, ()| {
            db.settle();
            assert_eq!(
                db.one::<String>(
                    "SELECT concat_ws(' ', dimensions, chunk_tokens) FROM ingest.pipelines"
                ),
                "96 100"
            );
            finds(db, "Old text of a.", "a");
            nothing_left(db);
        },
    );
}
