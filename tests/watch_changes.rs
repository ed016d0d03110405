//! Promise: a watched table may be emptied, split, extended, hidden and dropped, under whatever isolation level: what is embedded
//! follows, and whoever writes to it is not held up.

use harness::flight::counted;
use harness::remote::api;
use harness::roles::{another, refused, role, run};
use harness::*;

/// A database with a pipeline `p`, and a table of so many articles that it watches, all of them embedded.
fn articles(rows: usize, content: &str) -> (Database<'static>, fake_api::FakeApi) {
    let db = Database::new();
    let api = api();
    db.create_remote_pipeline("p", &api, "index => 'none'");
    db.run(&format!(
        "CREATE TABLE public.articles (id int PRIMARY KEY, body text);
         INSERT INTO public.articles SELECT n, 'Body ' || n FROM generate_series(1, {rows}) n;
         SELECT ingest.watch('public.articles', '{content}', 'p')"
    ));
    db.settle();
    (db, api)
}

/// `key: content` of each chunk, when all has settled.
fn embedded(db: &Database) -> Vec<String> {
    db.settle();
    counted(db, "p");
    let mut there: Vec<String> =
        db.all("SELECT document_key || ': ' || content FROM ingest.p_chunks");
    there.sort();
    there
}

#[test]
fn a_table_emptied_by_a_transaction_that_does_not_see_all_of_it_leaves_nothing() {
    for level in ["REPEATABLE READ", "SERIALIZABLE"] {
        let (db, _api) = articles(2, "body");
        let mut client = db.connect();
        run(
            &mut client,
            &format!("BEGIN ISOLATION LEVEL {level}; SELECT count(*) FROM ingest.documents"),
        );
        db.run("INSERT INTO public.articles VALUES (3, 'Unseen.')");
        assert_eq!(embedded(&db).len(), 3);
        run(&mut client, "TRUNCATE public.articles; COMMIT");
        assert_eq!(embedded(&db), [""; 0], "{level}");
        assert_eq!(db.progress_of("p").counts(), (0, 0, 0, 0));
    }
}

#[test]
fn a_partition_that_was_detached_is_a_table_like_any_other() {
    let db = Database::new();
    let api = api();
    db.create_remote_pipeline("p", &api, "index => 'none'");
    db.run(
        "CREATE TABLE public.articles (id int PRIMARY KEY, body text) PARTITION BY RANGE (id);
         CREATE TABLE public.a PARTITION OF public.articles FOR VALUES FROM (0) TO (100);
         CREATE TABLE public.b PARTITION OF public.articles FOR VALUES FROM (100) TO (200);
         INSERT INTO public.articles VALUES (1, 'One.'), (101, 'Two.');
         SELECT ingest.watch('public.articles', 'body', 'p')",
    );
    assert_eq!(embedded(&db), ["101: Two.", "1: One."]);
    db.run("ALTER TABLE public.articles DETACH PARTITION public.b");
    let write = |level: &str, statement: &str| {
        run(
            &mut db.connect(),
            &format!("BEGIN ISOLATION LEVEL {level}; {statement}; COMMIT"),
        );
    };
    write(
        "SERIALIZABLE",
        "INSERT INTO public.b VALUES (102, 'Three.')",
    );
    write("READ COMMITTED", "UPDATE public.b SET body = 'Changed.'");
    db.run("SELECT ingest.watch('public.articles', 'body', 'p')");
    assert_eq!(embedded(&db), ["1: One."]);
    assert_eq!(
        db.all::<String>(
            "SELECT DISTINCT tgrelid::regclass::text FROM pg_trigger
             WHERE tgname LIKE 'pg\\_ingest\\_watch%' ORDER BY 1"
        ),
        ["a", "articles"]
    );
    // What the dump of another database's watched table brings along.
    db.run("CREATE TRIGGER pg_ingest_watch_99_insert AFTER INSERT ON public.b REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT
            EXECUTE FUNCTION ingest.source_changed('99')");
    write(
        "REPEATABLE READ",
        "INSERT INTO public.b VALUES (103, 'Four.')",
    );
    write("SERIALIZABLE", "INSERT INTO public.b VALUES (104, 'Five.')");
    assert_eq!(embedded(&db), ["1: One."]);
    assert_eq!(db.one::<i64>("SELECT count(*) FROM ingest.watch"), 1);
}

#[test]
fn a_row_that_is_read_as_a_whole_is_read_with_the_columns_that_come() {
    let (db, _api) = articles(1, "to_jsonb(articles)");
    assert_eq!(embedded(&db), [r#"1: {"id": 1, "body": "Body 1"}"#]);
    db.run("ALTER TABLE public.articles ADD likes int");
    db.run("UPDATE public.articles SET likes = 7");
    assert_eq!(
        embedded(&db),
        [r#"1: {"id": 1, "body": "Body 1", "likes": 7}"#]
    );
    db.run("ALTER TABLE public.articles DROP body; UPDATE public.articles SET likes = 8");
    assert_eq!(embedded(&db), [r#"1: {"id": 1, "likes": 8}"#]);
}

#[test]
fn a_column_that_is_computed_when_it_is_read_is_followed() {
    let (db, _api) = articles(1, "body");
    if db.one::<i32>("SELECT current_setting('server_version_num')::int") < 180_000 {
        return;
    }
    db.run(
        "CREATE TABLE public.pages (id int PRIMARY KEY, title text, shout text GENERATED ALWAYS AS (upper(title)) VIRTUAL);
         INSERT INTO public.pages (id, title) VALUES (100, 'a')",
    );
    assert_eq!(
        db.expect_error("SELECT ingest.watch('public.pages', 'title', 'p', key => 'shout')")
            .code,
        "0A000"
    );
    db.run("SELECT ingest.watch('public.pages', 'shout', 'p')");
    assert_eq!(embedded(&db)[1..], ["public.pages/100: A"]);
    db.run("UPDATE public.pages SET title = 'b'");
    assert_eq!(embedded(&db)[1..], ["public.pages/100: B"]);
}

#[test]
fn a_row_that_an_update_hides_loses_its_chunks_and_one_that_it_shows_gets_them() {
    let db = Database::new();
    let (owner, mut client) = role(&db);
    run(
        &mut client,
        "SELECT ingest.create_pipeline('p', target => 'app.p_chunks')",
    );
    db.run(&format!(
        "CREATE TABLE public.articles (id int PRIMARY KEY, title text, tenant text);
         GRANT SELECT, TRIGGER ON public.articles TO {owner};
         ALTER TABLE public.articles ENABLE ROW LEVEL SECURITY;
         CREATE POLICY own ON public.articles TO {owner} USING (tenant = 'own');
         INSERT INTO public.articles VALUES (1, 'One.', 'own'), (2, 'Two.', 'other')"
    ));
    run(
        &mut client,
        "SELECT ingest.watch('public.articles', 'title', 'p')",
    );
    let there = || {
        db.settle();
        db.all::<String>("SELECT content FROM app.p_chunks ORDER BY 1")
    };
    assert_eq!(there(), ["One."]);
    db.run("UPDATE public.articles SET tenant = CASE id WHEN 1 THEN 'other' ELSE 'own' END");
    assert_eq!(there(), ["Two."]);
}

#[test]
fn a_table_that_goes_with_its_owner_takes_its_documents_along() {
    // Of a local model, whose worker nothing else wakes.
    let db = Database::new();
    let (owner, mut client) = role(&db);
    run(
        &mut client,
        "SELECT ingest.create_pipeline('p', target => 'app.p_chunks', index => 'none')",
    );
    let (other, mut theirs) = another(&db, "other");
    db.run(&format!("GRANT CREATE ON SCHEMA public TO {other}"));
    run(
        &mut theirs,
        &format!(
            "CREATE TABLE public.notes (id int PRIMARY KEY, body text); INSERT INTO public.notes VALUES (1, 'A note.');
             GRANT SELECT, TRIGGER ON public.notes TO {owner}"
        ),
    );
    run(
        &mut client,
        "SELECT ingest.watch('public.notes', 'body', 'p')",
    );
    db.settle();
    assert_eq!(db.progress_of("p").counts(), (1, 1, 0, 0));
    db.quiesce();
    db.run(&format!("DROP OWNED BY {other}"));
    wait_until("its documents are gone", SOON, || {
        db.progress_of("p").counts() == (0, 0, 0, 0)
    });
}

#[test]
fn a_table_that_is_dropped_while_it_blocks_its_pipeline_unblocks_it() {
    let (db, _api) = articles(2, "body");
    db.run("INSERT INTO ingest.documents (pipeline, key, content) VALUES ('p', 'own', 'By hand.')");
    db.settle();
    db.run("ALTER TABLE public.articles RENAME body TO text; INSERT INTO public.articles VALUES (3, 'Three.')");
    db.until_blocked("p");
    // Not as long as it would stay blocked.
    db.run("UPDATE ingest.pipeline SET blocked_until = now() + interval '1 hour'; DROP TABLE public.articles");
    wait_until("its documents are gone", SOON, || {
        let progress = db.progress_of("p");
        progress.counts() == (1, 1, 0, 0) && progress.state == "idle"
    });
    assert_eq!(embedded(&db), ["own: By hand."]);
}

#[test]
fn watching_where_a_constraint_is_still_to_be_looked_at_says_what_to_do() {
    let (db, _api) = articles(1, "body");
    db.run(
        "CREATE TABLE public.comments (id int PRIMARY KEY, body text,
                                      article int REFERENCES public.articles DEFERRABLE INITIALLY DEFERRED)",
    );
    let mut client = db.connect();
    run(
        &mut client,
        "BEGIN; INSERT INTO public.comments VALUES (1, 'A comment.', 1)",
    );
    let error = refused(
        &mut client,
        "SELECT ingest.watch('public.comments', 'body', 'p')",
    );
    assert_eq!(error.code, "55006");
    assert!(
        error.text().contains("pending trigger events"),
        "{}",
        error.text()
    );
    assert!(
        error
            .hint
            .is_some_and(|hint| hint.contains("SET CONSTRAINTS")),
        "a hint"
    );
}
