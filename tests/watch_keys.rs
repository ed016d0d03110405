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

#[test]
fn keys_that_are_written_in_another_way_are_found_by_watch() {
    let (db, _api) = pipeline();
    db.run(
        "CREATE TABLE public.prices (id numeric(8,2) PRIMARY KEY, body text);
         INSERT INTO public.prices VALUES (1.5, 'One.'), (2.5, 'Two.');
         SELECT ingest.watch('public.prices', 'body', 'p')",
    );
    assert_eq!(embedded(&db), ["1.50: One.", "2.50: Two."]);
    db.run(
        "ALTER TABLE public.prices ALTER id TYPE numeric(8,3);
         UPDATE public.prices SET body = 'Changed.' WHERE id = 1.5;
         SELECT ingest.watch('public.prices', 'body', 'p')",
    );
    assert_eq!(embedded(&db), ["1.500: Changed.", "2.500: Two."]);
}

#[test]
fn rows_that_get_the_same_name_keep_their_documents() {
    let (db, _api) = pages(&["a", "b", "c"]);
    db.run("UPDATE public.pages SET slug = 'draft' WHERE id IN (1, 2)");
    assert_eq!(
        embedded(&db),
        [
            "c: Text 3.",
            "draft (public.pages 2): Text 2.",
            "draft: Text 1."
        ]
    );
    // Names that other rows had until this very statement.
    db.run("UPDATE public.pages SET slug = CASE id WHEN 1 THEN 'c' ELSE 'draft' END WHERE id IN (1, 3)");
    let there = embedded(&db);
    assert!(
        there.contains(&"c: Text 1.".to_owned()) && there.len() == 3,
        "{there:?}"
    );
    // A name once told apart stays, whatever becomes of the table's name.
    db.run("UPDATE public.pages SET slug = NULL; UPDATE public.pages SET slug = 'x'");
    let before = db.rows_as_text("SELECT id, key FROM ingest.documents ORDER BY id");
    db.run(
        "ALTER TABLE public.pages RENAME TO sheets; UPDATE public.sheets SET text = 'New ' || id",
    );
    assert_eq!(
        embedded(&db),
        [
            "x (public.pages 2): New 2",
            "x (public.pages 3): New 3",
            "x: New 1"
        ]
    );
    assert_eq!(
        db.rows_as_text("SELECT id, key FROM ingest.documents ORDER BY id"),
        before
    );
    // Another column, which names all rows the same.
    db.run(
        "ALTER TABLE public.sheets ADD title text DEFAULT 'Untitled';
            SELECT ingest.watch('public.sheets', 'text', 'p', key => 'title')",
    );
    assert_eq!(
        embedded(&db),
        [
            "Untitled (public.sheets 2): New 2",
            "Untitled (public.sheets 3): New 3",
            "Untitled: New 1"
        ]
    );
}

#[test]
fn two_sessions_may_give_the_same_name() {
    let (db, _api) = pages(&["a", "b", "c"]);
    let mut first = db.connect();
    run(
        &mut first,
        "BEGIN; UPDATE public.pages SET slug = 'x' WHERE id = 1",
    );
    let second = begun(&db, "UPDATE public.pages SET slug = 'x' WHERE id = 2");
    run(&mut first, "COMMIT");
    second.join().expect("the second does not fail");
    assert_eq!(
        embedded(&db),
        ["c: Text 3.", "x (public.pages 2): Text 2.", "x: Text 1."]
    );
    // An open transaction takes the name of a row that comes, of one that changes, and of one that is read for the first time.
    let taken = |name: &str, statement: &str| {
        let mut taker = db.connect();
        run(
            &mut taker,
            &format!(
                "BEGIN; INSERT INTO ingest.documents (pipeline, key, content) VALUES ('p', '{name}', 'By hand.')"
            ),
        );
        let waiting = begun(&db, statement);
        run(&mut taker, "COMMIT");
        waiting.join().expect("the statement goes on");
    };
    taken("d", "INSERT INTO public.pages VALUES (4, 'd', 'Text 4.')");
    taken("e", "UPDATE public.pages SET slug = 'e' WHERE id = 3");
    db.settle();
    // As while a dump is restored, no worker takes anything.
    let mut quiet = db.connect();
    run(
        &mut quiet,
        "SET check_function_bodies = off; SET row_security = off; INSERT INTO ingest.queue SELECT * FROM ingest.queue WHERE false",
    );
    db.run("ALTER TABLE public.pages DISABLE TRIGGER USER; INSERT INTO public.pages VALUES (5, 'f', 'Text 5.'); ALTER TABLE public.pages ENABLE TRIGGER USER;
            UPDATE ingest.watch SET phase = 'scan'");
    taken(
        "f",
        "SELECT ingest.stage_rows(1, '{5}', '{f}', '{7}', true)",
    );
    drop(quiet);
    db.run("SELECT ingest.wake()");
    assert_eq!(
        embedded(&db),
        [
            "d (public.pages 4): Text 4.",
            "d: By hand.",
            "e (public.pages 3): Text 3.",
            "e: By hand.",
            "f (public.pages 5): Text 5.",
            "f: By hand.",
            "x (public.pages 2): Text 2.",
            "x: Text 1."
        ]
    );
}

#[test]
fn keys_that_two_rows_have_until_the_commit_lose_no_document() {
    let (db, _api) = pipeline();
    db.run(
        "CREATE TABLE public.notes (id int PRIMARY KEY DEFERRABLE INITIALLY DEFERRED, body text);
         INSERT INTO public.notes VALUES (1, 'One.'), (2, 'Two.');
         SELECT ingest.watch('public.notes', 'body', 'p')",
    );
    assert_eq!(embedded(&db), ["1: One.", "2: Two."]);
    db.run("BEGIN; UPDATE public.notes SET id = 2 WHERE body = 'One.'; UPDATE public.notes SET id = 1 WHERE body = 'Two.'; COMMIT");
    assert_eq!(embedded(&db), ["1: Two.", "2: One."]);
    db.run("BEGIN; INSERT INTO public.notes VALUES (1, 'New.'); DELETE FROM public.notes WHERE body = 'Two.'; COMMIT");
    assert_eq!(embedded(&db), ["1: New.", "2: One."]);
    db.run("DELETE FROM public.notes WHERE id = 2");
    assert_eq!(embedded(&db), ["1: New."]);
}

#[test]
fn a_row_of_a_table_that_others_inherit_from_is_not_taken_for_one_of_theirs() {
    let (db, _api) = pages(&["a", "b"]);
    db.run(
        "CREATE TABLE public.child () INHERITS (public.pages);
         INSERT INTO public.child VALUES (1, 'z', 'A child.');
         DELETE FROM public.pages WHERE text = 'A child.'",
    );
    assert_eq!(embedded(&db), ["a: Text 1.", "b: Text 2."]);
    db.run("DELETE FROM public.pages WHERE id = 2");
    assert_eq!(embedded(&db), ["a: Text 1."]);
}

#[test]
fn a_value_too_long_for_a_name_is_cut_and_fails_no_statement() {
    let (db, _api) = pages(&["a"]);
    let long = "(SELECT string_agg(md5(n::text), '') FROM generate_series(1, 300) n)";
    db.run(&format!(
        "INSERT INTO public.pages VALUES (2, {long} || '1', 'Text 2.'), (3, {long} || '2', 'Text 3.');
         UPDATE public.pages SET slug = {long} WHERE id = 1"
    ));
    db.settle();
    let lengths = |db: &Database| {
        db.all::<String>(
            "SELECT d.source_key || ' ' || (octet_length(d.key) < 1000 AND starts_with(p.slug, left(d.key, 100)))
             FROM ingest.documents d JOIN public.pages p ON p.id::text = d.source_key ORDER BY 1",
        )
    };
    assert_eq!(lengths(&db), ["1 true", "2 true", "3 true"]);
    assert_eq!(
        db.one::<i64>("SELECT count(DISTINCT key) FROM ingest.documents"),
        3
    );
    let before = db.rows_as_text("SELECT id, key FROM ingest.documents ORDER BY id");
    db.run("UPDATE public.pages SET text = 'New ' || id");
    assert_eq!(embedded(&db).len(), 3);
    assert_eq!(
        db.rows_as_text("SELECT id, key FROM ingest.documents ORDER BY id"),
        before
    );
    // So it is for rows that were there before.
    db.run("SELECT ingest.unwatch('public.pages', 'p')");
    db.run(WATCH_BY_SLUG);
    assert_eq!(embedded(&db).len(), 3);
    assert_eq!(lengths(&db), ["1 true", "2 true", "3 true"]);
}

#[test]
fn a_naming_column_that_is_gone_blocks_in_words_and_comes_back() {
    let (db, _api) = pages(&["a", "b"]);
    db.run("ALTER TABLE public.pages RENAME slug TO label");
    db.run("INSERT INTO public.pages VALUES (3, 'c', 'Text 3.'); UPDATE public.pages SET text = 'New.' WHERE id = 1; DELETE FROM public.pages WHERE id = 2");
    let error = db.until_blocked("p").last_error.expect("why");
    assert!(
        error.contains("public.pages") && error.contains("slug") && error.contains("ingest.watch("),
        "{error}"
    );
    db.run("ALTER TABLE public.pages RENAME label TO slug; SELECT ingest.resume('p')");
    assert_eq!(embedded(&db), ["a: New.", "c: Text 3."]);
    db.run(
        "ALTER TABLE public.pages DROP slug; UPDATE public.pages SET text = 'Newer.' WHERE id = 1",
    );
    db.until_blocked("p");
    db.run("SELECT ingest.watch('public.pages', 'text', 'p')");
    assert_eq!(embedded(&db), ["1: Newer.", "3: Text 3."]);
}

#[test]
fn names_are_those_of_the_table_as_it_is_when_its_rows_are_read() {
    let (db, _api) = pages(&["a", "b"]);
    db.run("ALTER TABLE public.pages RENAME slug TO label");
    // It comes back while the worker, which has seen that it is gone, waits for the table.
    let mut owner = db.connect();
    owner
        .batch_execute("BEGIN; ALTER TABLE public.pages RENAME label TO slug")
        .unwrap();
    db.run("UPDATE ingest.watch SET phase = 'scan', position = NULL, refresh = true; SELECT ingest.wake()");
    db.until_worker_waits();
    owner.batch_execute("COMMIT").unwrap();
    wait_until("the rows have been looked at", SOON, || {
        db.one::<bool>("SELECT bool_and(phase = 'done') FROM ingest.watch")
    });
    assert_eq!(embedded(&db), ["a: Text 1.", "b: Text 2."]);
}

#[test]
fn a_naming_column_that_the_owner_may_not_read_names_nothing() {
    let db = Database::new();
    let (owner, mut client) = role(&db);
    run(
        &mut client,
        "SELECT ingest.create_pipeline('p', target => 'app.p_chunks')",
    );
    db.run(&format!(
        "CREATE TABLE public.people (id int PRIMARY KEY, name text, body text);
         INSERT INTO public.people VALUES (1, 'Secret', 'A body.');
         GRANT SELECT (id, body), TRIGGER ON public.people TO {owner}"
    ));
    let watch = "SELECT ingest.watch('public.people', 'body', 'p', key => 'name')";
    assert_eq!(refused(&mut client, watch).code, "42501");
    db.run(&format!("GRANT SELECT (name) ON public.people TO {owner}"));
    run(&mut client, watch);
    db.settle();
    db.run(&format!(
        "REVOKE SELECT (name) ON public.people FROM {owner}"
    ));
    db.run("INSERT INTO public.people VALUES (2, 'Hush', 'Another body.')");
    let error = db.until_blocked("p").last_error.expect("why");
    assert!(error.contains("permission denied"), "{error}");
    assert_eq!(
        db.all::<String>("SELECT key FROM ingest.documents ORDER BY 1"),
        ["2", "Secret"]
    );
}

#[test]
fn writers_do_not_wait_for_each_other_while_the_primary_key_is_missing() {
    let (db, _api) = pages(&["a", "b"]);
    db.run("ALTER TABLE public.pages DROP CONSTRAINT pages_pkey; INSERT INTO public.pages VALUES (3, 'c', 'Text 3.')");
    db.until_blocked("p");
    let mut first = db.connect();
    run(
        &mut first,
        "BEGIN; INSERT INTO public.pages VALUES (4, 'd', 'Text 4.')",
    );
    db.run("SET lock_timeout = '1s'; INSERT INTO public.pages VALUES (5, 'e', 'Text 5.'); RESET lock_timeout");
    run(&mut first, "COMMIT");
    db.run("ALTER TABLE public.pages ADD PRIMARY KEY (id); SELECT ingest.resume('p')");
    assert_eq!(embedded(&db).len(), 5);
}
