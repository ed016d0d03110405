//! Promise: a document is its row's, whatever becomes of the row's key and of the name that a column gives it: no row is without
//! its document, no document without its row, and no statement of the table's users fails for the names.

use std::thread::JoinHandle;

use harness::flight::counted;
use harness::remote::api;
use harness::roles::{refused, role, run};
use harness::*;

/// A database with a pipeline `p` at a fake API.
fn pipeline() -> (Database<'static>, fake_api::FakeApi) {
    let db = Database::new();
    let api = api();
    db.create_remote_pipeline("p", &api, "index => 'none'");
    (db, api)
}

/// A table of pages `(id, slug, text)`, watched by slug, all of them embedded.
fn pages(slugs: &[&str]) -> (Database<'static>, fake_api::FakeApi) {
    let (db, api) = pipeline();
    db.run("CREATE TABLE public.pages (id int PRIMARY KEY, slug text, text text)");
    for (number, slug) in slugs.iter().enumerate() {
        let id = number + 1;
        db.run(&format!(
            "INSERT INTO public.pages VALUES ({id}, '{slug}', 'Text {id}.')"
        ));
    }
    db.run(WATCH_BY_SLUG);
    db.settle();
    (db, api)
}

const WATCH_BY_SLUG: &str = "SELECT ingest.watch('public.pages', 'text', 'p', key => 'slug')";

/// `key: content` of each chunk, when all has settled.
fn embedded(db: &Database) -> Vec<String> {
    db.settle();
    counted(db, "p");
    let mut there: Vec<String> =
        db.all("SELECT document_key || ': ' || content FROM ingest.p_chunks");
    there.sort();
    there
}

/// Runs a statement in a session of its own, which is waiting for somebody when this returns.
fn begun(db: &Database<'static>, sql: &str) -> JoinHandle<()> {
    let (cluster, name, sql) = (db.cluster(), db.name().to_owned(), sql.to_owned());
    let waiting = "SELECT count(*) FROM pg_locks l JOIN pg_stat_activity a USING (pid)
                   WHERE NOT l.granted AND a.datname = current_database() AND a.backend_type = 'client backend'";
    let statement = std::thread::spawn(move || run(&mut cluster.client(&name), &sql));
    wait_until("the statement waits", SOON, || db.one::<i64>(waiting) > 0);
    statement
}

#[test]
fn keys_are_the_same_whoever_wrote_them() {
    let cluster = Cluster::start(&[
        ("timezone", "Europe/Berlin"),
        ("datestyle", "German"),
        ("intervalstyle", "iso_8601"),
        ("bytea_output", "escape"),
        ("extra_float_digits", "-3"),
    ]);
    let db = Database::new_in(&cluster);
    let api = api();
    db.create_remote_pipeline("p", &api, "index => 'none'");
    db.run(
        "CREATE TABLE public.events (at timestamptz, lasts interval, raw bytea, ratio float8, body text, PRIMARY KEY (at, lasts, raw, ratio));
         INSERT INTO public.events SELECT '2024-06-01 12:00+02', '1 day 2 hours', '\\x00ff', 1 / 3::float8, body FROM (VALUES ('First.')) v(body);
         INSERT INTO public.events VALUES ('2024-12-01 12:00+01', '1 month', '\\x0a', 0.1, 'Second.');
         SELECT ingest.watch('public.events', 'body', 'p')",
    );
    db.settle();
    db.run("INSERT INTO public.events VALUES ('2025-01-01', '0', '', 2, 'Third.')");
    db.settle();
    db.run(
        "UPDATE public.events SET body = 'Changed.' WHERE body = 'First.'; DELETE FROM public.events WHERE body = 'Second.'",
    );
    let there = embedded(&db);
    assert_eq!(there.len(), 2, "{there:?}");
    assert!(
        there[0].starts_with(r#"["2024-06-01 10:00:00+00", "1 day 02:00:00", "\\x00ff", "0.333"#)
            && there[0].ends_with(": Changed."),
        "{there:?}"
    );
}
