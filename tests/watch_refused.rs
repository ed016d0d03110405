//! Promise: what cannot be watched is refused with the reason, a row that cannot be read fails alone, and a table that cannot be
//! read any more blocks its pipeline in words that say what to do. Nothing of it fails the statements of the table's users.

use harness::flight::counted;
use harness::remote::api;
use harness::roles::{forbidden, refused, role, run};
use harness::*;

fn articles() -> (Database<'static>, fake_api::FakeApi) {
    let db = Database::new();
    let api = api();
    db.create_remote_pipeline("p", &api, "");
    db.run(
        "CREATE TABLE public.articles (id int PRIMARY KEY, title text, body text, data bytea, n int);
         INSERT INTO public.articles SELECT n, 'Title ' || n, 'Body ' || n, '\\x00', n FROM generate_series(1, 40) n",
    );
    (db, api)
}

#[test]
fn what_is_no_table_of_rows_with_a_key_is_refused() {
    let (db, _api) = articles();
    db.run(
        "CREATE TABLE public.keyless (body text); CREATE VIEW public.a_view AS SELECT * FROM public.articles;
         CREATE MATERIALIZED VIEW public.stored AS SELECT * FROM public.articles; CREATE SEQUENCE public.numbers;
         CREATE TEMP TABLE passing (id int PRIMARY KEY, body text);
         CREATE TABLE public.parent (id int PRIMARY KEY, body text); CREATE TABLE public.child () INHERITS (public.parent);
         CREATE TYPE public.pair AS (a int, b int); CREATE TABLE public.odd (id public.pair PRIMARY KEY, body text);
         CREATE FOREIGN DATA WRAPPER nothing; CREATE SERVER nowhere FOREIGN DATA WRAPPER nothing;
         CREATE FOREIGN TABLE public.far (id int, body text) SERVER nowhere",
    );
    for (source, code, words) in [
        ("public.keyless", "55000", "It has no primary key."),
        ("public.a_view", "42809", "It is a view."),
        ("public.stored", "42809", "It is a materialized view."),
        ("public.numbers", "42809", "It is a sequence."),
        ("public.far", "42809", "It is a foreign table."),
        ("passing", "42809", "It is a temporary table."),
        (
            "pg_catalog.pg_class",
            "42501",
            "It is a table of the system.",
        ),
        ("pg_catalog.pg_stats", "42809", "It is a view."),
        (
            "information_schema.sql_features",
            "42501",
            "It is a table of the system.",
        ),
        ("ingest.documents", "42809", "It is a table of pg_ingest."),
        ("ingest.p_chunks", "42809", "It is the target of a pipeline"),
        ("public.parent", "42809", "It inherits rows from"),
        ("public.child", "42809", "It inherits rows from"),
        ("public.odd", "0A000", "is of type public.pair"),
    ] {
        let error = db.expect_error(&format!("SELECT ingest.watch('{source}', 'body', 'p')"));
        assert_eq!(error.code, code, "{source}: {}", error.text());
        assert!(error.text().contains(words), "{source}: {}", error.text());
        assert!(error.hint.is_some(), "{source}: {}", error.text());
    }
    assert_eq!(
        db.expect_error("SELECT ingest.watch('other.public.articles', 'body', 'p')")
            .code,
        "0A000"
    );
    assert_eq!(
        db.expect_error("SELECT ingest.watch('public.nowhere', 'body', 'p')")
            .code,
        "42P01"
    );
    assert_eq!(
        db.expect_error("SELECT ingest.watch('public.articles', 'body', 'nobody')")
            .code,
        "42704"
    );
    assert_eq!(
        db.expect_error("SELECT ingest.watch(NULL, 'body', 'p')")
            .code,
        "22023"
    );
    assert_eq!(
        db.expect_error("SELECT ingest.watch('public.articles', NULL, 'p')")
            .code,
        "22023"
    );
    assert_eq!(db.one::<i64>("SELECT count(*) FROM ingest.watch"), 0);
}

#[test]
fn what_is_not_one_expression_over_the_row_is_refused() {
    let (db, _api) = articles();
    db.run(
        "CREATE FUNCTION public.shout(text) RETURNS text LANGUAGE sql IMMUTABLE AS 'SELECT upper($1)';
         CREATE FUNCTION public.fickle(text) RETURNS text LANGUAGE sql VOLATILE AS 'SELECT $1'; CREATE TABLE public.victim ();
         CREATE TYPE public.no_columns AS (); ALTER TABLE public.articles ADD COLUMN nothing public.no_columns",
    );
    for (content, code, words) in [
        ("boddy", "42703", "column \"boddy\" does not exist"),
        ("", "22023", "is empty"),
        ("  ", "22023", "is empty"),
        ("title, body", "22023", "is not one expression"),
        ("title AS body", "22023", "is not one expression"),
        (
            "title FROM public.articles",
            "22023",
            "is not one expression",
        ),
        (
            "title; DROP TABLE public.victim",
            "22023",
            "is not one expression",
        ),
        (
            "title)::text AS content FROM public.articles; DROP TABLE public.victim; SELECT (title",
            "42601",
            "syntax error",
        ),
        ("title UNION SELECT body", "22023", "is not one expression"),
        ("title LIMIT 1", "22023", "is not one expression"),
        ("articles.*", "22023", "is not one expression"),
        ("(ROW()).*", "22023", "is not one expression"),
        ("(nothing).*", "22023", "is not one expression"),
        ("1) + (2", "42601", "syntax error"),
        ("title || /* body", "42601", "comment"),
        ("*", "42601", ""),
        ("title || $1", "42P02", "no parameter"),
        ("data", "42804", "bytea"),
        ("n", "42804", "integer"),
        ("id = 1", "42804", "boolean"),
        ("xmin::text", "22023", "system column"),
        ("ctid::text", "22023", "system column"),
        (
            "(SELECT string_agg(body, '') FROM public.articles)",
            "0A000",
            "subquery",
        ),
        ("string_agg(body, '')", "0A000", "aggregate"),
        ("first_value(body) OVER ()", "0A000", "window"),
        ("regexp_split_to_table(body, ' ')", "0A000", "set"),
        ("body || random()", "0A000", "volatile"),
        ("public.fickle(body)", "0A000", "volatile"),
        ("shout(body)", "42883", "does not exist"),
        ("set_config('a.b', body, false)", "0A000", "volatile"),
    ] {
        let error = db.expect_error(&format!(
            "SELECT ingest.watch('public.articles', {}, 'p')",
            quoted(content)
        ));
        assert_eq!(error.code, code, "{content}: {}", error.text());
        assert!(error.text().contains(words), "{content}: {}", error.text());
        assert!(error.hint.is_some(), "{content}: {}", error.text());
    }
    let error =
        db.expect_error("SELECT ingest.watch('public.articles', 'body', 'p', metadata => 'title')");
    assert_eq!(
        (error.code.as_str(), error.message.as_str()),
        ("42804", "metadata is of type text, not jsonb")
    );
    assert_eq!(
        db.expect_error("SELECT ingest.watch('public.articles', 'body', 'p', key => 'slug')")
            .code,
        "42703"
    );
    db.run("SELECT 1 FROM public.victim");
    // These are.
    for content in [
        "body -- what it is about",
        "public.shout(body)",
        "articles.title || coalesce(articles.body, '')",
        "to_jsonb(articles)",
        "CASE WHEN n > 3 THEN title ELSE body END",
        "format('%s: %s', title, body)",
        "'a constant'",
    ] {
        db.run(&format!(
            "SELECT ingest.watch('public.articles', {}, 'p')",
            quoted(content)
        ));
        db.settle();
        counted(&db, "p");
        assert_eq!(db.progress_of("p").counts(), (40, 40, 0, 0), "{content}");
    }
}

#[test]
fn documents_that_are_deleted_cannot_follow_a_table() {
    let (db, _api) = articles();
    db.run("SELECT ingest.alter_pipeline('p', on_success => 'delete')");
    let error = db.expect_error("SELECT ingest.watch('public.articles', 'body', 'p')");
    assert!(error.text().contains("on_success"), "{}", error.text());
    db.run("SELECT ingest.alter_pipeline('p', on_success => 'keep'); SELECT ingest.watch('public.articles', 'body', 'p')");
    let error = db.expect_error("SELECT ingest.alter_pipeline('p', on_success => 'delete')");
    assert!(error.text().contains("watches tables"), "{}", error.text());
}

#[test]
fn a_row_whose_expression_fails_fails_alone_and_never_its_insert() {
    let (db, _api) = articles();
    db.run("SELECT ingest.watch('public.articles', $$body || 100 / (n - 7)$$, 'p')");
    db.settle();
    counted(&db, "p");
    assert_eq!(db.progress_of("p").counts(), (40, 39, 0, 1));
    db.run("INSERT INTO public.articles (id, body, n) SELECT i, 'Body', CASE WHEN i % 5 = 0 THEN 7 ELSE i END FROM generate_series(101, 150) i");
    db.run("INSERT INTO public.articles (id, body, n) VALUES (200, NULL, 1), (201, '', 1000)");
    db.settle();
    counted(&db, "p");
    assert_eq!(db.progress_of("p").counts(), (92, 80, 0, 12));
    assert_eq!(
        db.rows_as_text(
            "SELECT DISTINCT error_class, message, retryable FROM ingest.failures ORDER BY 2"
        ),
        [
            r#"{"message": "the content is null", "retryable": false, "error_class": "invalid_request"}"#,
            r#"{"message": "the row of public.articles cannot be read: division by zero", "retryable": false, "error_class": "invalid_request"}"#
        ]
    );
    db.run("UPDATE public.articles SET n = 8 WHERE n = 7");
    db.settle();
    assert_eq!(db.progress_of("p").counts(), (92, 91, 0, 1));
}

#[test]
fn a_column_that_is_renamed_or_dropped_blocks_in_words_until_watch_is_called_again() {
    for (change, missing) in [("RENAME body TO text", "body"), ("DROP body", "body")] {
        let (db, api) = articles();
        db.run("SELECT ingest.watch('public.articles', $$title || ' ' || body$$, 'p')");
        db.settle();
        let worker = db.worker();
        db.run(&format!("ALTER TABLE public.articles {change}"));
        // The users of the table notice nothing.
        db.run("INSERT INTO public.articles (id, title) VALUES (100, 'New'); UPDATE public.articles SET title = 'Changed' WHERE id = 1;
                DELETE FROM public.articles WHERE id = 2");
        let progress = db.until_blocked("p");
        assert_eq!(progress.counts(), (40, 38, 2, 0), "nothing fails");
        let error = progress.last_error.expect("why");
        assert!(
            error.contains("public.articles")
                && error.contains(missing)
                && error.contains("ingest.watch("),
            "{error}"
        );
        assert_eq!(db.worker(), worker, "the worker lives on");
        let before = api.requests().len();
        db.run("SELECT ingest.watch('public.articles', 'title', 'p')");
        db.settle();
        counted(&db, "p");
        assert_eq!(db.progress_of("p").counts(), (40, 40, 0, 0));
        assert!(api.requests().len() > before);
        assert_eq!(
            db.one::<String>("SELECT content FROM ingest.p_chunks WHERE document_key = '1'"),
            "Changed"
        );
    }
}

#[test]
fn a_primary_key_that_changes_is_followed_and_one_that_is_gone_is_told() {
    let (db, _api) = articles();
    db.run("SELECT ingest.watch('public.articles', 'title', 'p')");
    db.settle();
    db.run("ALTER TABLE public.articles RENAME id TO number; UPDATE public.articles SET title = 'Changed' WHERE number = 1");
    db.settle();
    counted(&db, "p");
    assert_eq!(db.progress_of("p").counts(), (40, 40, 0, 0));
    db.run("ALTER TABLE public.articles DROP CONSTRAINT articles_pkey; INSERT INTO public.articles (number, title, n) VALUES (41, 'New', 41)");
    let error = db.until_blocked("p").last_error.expect("why");
    assert!(error.contains("primary key"), "{error}");
    db.run("ALTER TABLE public.articles ADD COLUMN id uuid DEFAULT gen_random_uuid() PRIMARY KEY; SELECT ingest.resume('p')");
    db.settle();
    counted(&db, "p");
    assert_eq!(
        db.all::<String>("SELECT document_key FROM ingest.p_chunks ORDER BY 1"),
        db.all::<String>("SELECT id::text FROM public.articles ORDER BY 1")
    );
}

#[test]
fn a_right_that_is_taken_away_blocks_and_who_has_none_cannot_watch() {
    let db = Database::new();
    let (owner, mut client) = role(&db);
    run(
        &mut client,
        "SELECT ingest.create_pipeline('p', target => 'app.p_chunks')",
    );
    db.run("CREATE TABLE public.articles (id int PRIMARY KEY, title text, secret text); INSERT INTO public.articles VALUES (1, 'A title.', 'Hush.')");
    let watch = "SELECT ingest.watch('public.articles', 'title', 'p')";
    forbidden(&mut client, watch);
    db.run(&format!("GRANT TRIGGER ON public.articles TO {owner}"));
    forbidden(&mut client, watch);
    db.run(&format!(
        "GRANT SELECT (id, title) ON public.articles TO {owner}"
    ));
    assert_eq!(
        refused(
            &mut client,
            "SELECT ingest.watch('public.articles', 'secret', 'p')"
        )
        .code,
        "42501"
    );
    run(&mut client, watch);
    db.settle();
    db.run(&format!("REVOKE ALL ON public.articles FROM {owner}; GRANT SELECT (id, title) ON public.articles TO PUBLIC; REVOKE SELECT (title) ON public.articles FROM PUBLIC"));
    // Not in one transaction: whoever begins while that ends may find the rights as they were.
    db.run("UPDATE public.articles SET title = 'Changed.'");
    let error = db.until_blocked("p").last_error.expect("why");
    assert!(error.contains("permission denied"), "{error}");
    db.run(&format!(
        "GRANT SELECT ON public.articles TO {owner}; SELECT ingest.resume('p')"
    ));
    db.settle();
    assert_eq!(
        db.all::<String>("SELECT content FROM app.p_chunks"),
        ["Changed."]
    );
    // Another's pipeline, and another's watch.
    db.run("SELECT ingest.create_pipeline('q')");
    assert_eq!(
        refused(
            &mut client,
            "SELECT ingest.watch('public.articles', 'title', 'q')"
        )
        .code,
        "42501"
    );
    forbidden(&mut client, "SELECT ingest.unwatch('public.articles', 'q')");
    run(&mut client, "SELECT ingest.unwatch('public.articles', 'p')");
}

#[test]
fn the_trigger_function_is_nobodys_to_use() {
    let db = Database::new();
    let (_owner, mut client) = role(&db);
    let error = refused(
        &mut client,
        "CREATE TABLE app.t (id int PRIMARY KEY);
         CREATE TRIGGER mine AFTER INSERT ON app.t REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION ingest.source_changed('1')",
    );
    assert_eq!(error.code, "42501");
    // And on another table it does nothing.
    db.run(
        "SELECT ingest.create_pipeline('p');
         CREATE TABLE public.a (id int PRIMARY KEY, t text); SELECT ingest.watch('public.a', 't', 'p');
         CREATE TABLE public.b (id int PRIMARY KEY, t text);
         CREATE TRIGGER pg_ingest_watch_1_x AFTER INSERT ON public.b REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION ingest.source_changed('1');
         INSERT INTO public.b VALUES (1, 'B')",
    );
    db.settle();
    assert_eq!(db.progress_of("p").documents, 0);
}

#[test]
fn a_malicious_expression_has_its_owners_rights_and_a_few_seconds() {
    let db = Database::new();
    let (owner, mut client) = role(&db);
    run(
        &mut client,
        "SELECT ingest.create_pipeline('p', target => 'app.p_chunks', max_attempts => 1)",
    );
    run(
        &mut client,
        "CREATE TABLE app.t (id int PRIMARY KEY, t text);
         CREATE FUNCTION app.evil(t text) RETURNS text LANGUAGE plpgsql STABLE AS $$ BEGIN RETURN t; END $$;
         INSERT INTO app.t VALUES (1, 'quick'), (2, 'escape'), (3, 'write'), (4, 'slow'), (5, 'last');
         SELECT ingest.pause('p'); SELECT ingest.watch('app.t', 'app.evil(t)', 'p');
         CREATE OR REPLACE FUNCTION app.evil(t text) RETURNS text LANGUAGE plpgsql VOLATILE AS $$ BEGIN
             IF t = 'escape' THEN RESET ROLE; SET LOCAL ROLE postgres; END IF;
             IF t = 'write' THEN DELETE FROM ingest.pipeline; END IF;
             IF t = 'slow' THEN PERFORM pg_sleep(3600); END IF;
             RETURN current_user || ' ' || t;
         END $$;
         SELECT ingest.resume('p')",
    );
    db.settle();
    assert_eq!(
        db.all::<String>("SELECT content FROM app.p_chunks ORDER BY 1"),
        [format!("{owner} last"), format!("{owner} quick")]
    );
    let failures =
        db.rows_as_text("SELECT key, error_class, message FROM ingest.failures ORDER BY key");
    assert_eq!(failures.len(), 3);
    assert!(failures[0].contains("cannot set parameter"), "{failures:?}");
    assert!(failures[1].contains("permission denied"), "{failures:?}");
    assert!(
        failures[2].contains("timeout") && failures[2].contains("longer than 5 s"),
        "{failures:?}"
    );
}
