//! Promise: code that others put into their tables, types and functions runs with their rights, never with those of who uses what
//! they made.

use harness::roles::{Role, another, column, forbidden, role, run};
use harness::*;

/// A role that owns the schema `app` and, in it, `app.rise()`, which makes the role a superuser whenever it runs with the rights
/// to, and triggers that call it: `app.now()` before a row is written and `app.later()` after.
fn climber<'d>(db: &'d Database<'d>) -> (Role<'d>, postgres::Client) {
    let (name, mut client) = role(db);
    run(
        &mut client,
        &format!(
            "CREATE TABLE app.ran (acting_role text);
             CREATE FUNCTION app.rise() RETURNS boolean LANGUAGE plpgsql AS $$
             BEGIN
                 ALTER ROLE {name} SUPERUSER;
                 RETURN true;
             EXCEPTION WHEN OTHERS THEN RETURN true;
             END $$;
             CREATE FUNCTION app.before() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM app.rise(); RETURN NEW; END $$;
             CREATE FUNCTION app.later() RETURNS trigger LANGUAGE plpgsql AS
                 $$ BEGIN PERFORM app.rise(); INSERT INTO app.ran VALUES (current_user); RETURN NULL; END $$"
        ),
    );
    (name, client)
}

#[track_caller]
fn has_not_risen(db: &Database, name: &str) {
    assert!(
        !db.one::<bool>(&format!(
            "SELECT rolsuper FROM pg_roles WHERE rolname = '{name}'"
        )),
        "{name} is a superuser"
    );
}

/// What `app.later()` saw, which goes.
fn ran(client: &mut postgres::Client) -> Vec<String> {
    column(client, "DELETE FROM app.ran RETURNING acting_role")
}

/// A chunk of the document `k` in `app.docs`, as its owner may write it.
const CHUNK: &str = "INSERT INTO app.docs (document_key, chunk_no, content, tokens, embedding)
                     SELECT 'x', 0, 'x', 1, array_fill(0.1, ARRAY[384])::vector";

#[test]
fn what_a_transaction_has_deferred_runs_as_whoever_would_commit_it() {
    let db = Database::new();
    let (name, mut client) = climber(&db);
    // Those of one name in a schema are set together, whatever tables they are on.
    run(
        &mut client,
        "SELECT ingest.create_pipeline('mine', target => 'app.docs');
         CREATE TABLE app.other (n int);
         CREATE TABLE app.watched (id int PRIMARY KEY, body text);
         CREATE CONSTRAINT TRIGGER later AFTER INSERT ON app.docs DEFERRABLE INITIALLY DEFERRED FOR EACH ROW
             EXECUTE FUNCTION app.later();
         CREATE CONSTRAINT TRIGGER later AFTER INSERT ON app.other DEFERRABLE INITIALLY DEFERRED FOR EACH ROW
             EXECUTE FUNCTION app.later();
         SELECT ingest.watch('app.watched', 'body', 'mine')",
    );
    run(
        &mut client,
        "INSERT INTO app.watched VALUES (1, 'A body.');
         INSERT INTO ingest.documents (pipeline, key, content) VALUES ('mine', 'k', 'A text.'), ('mine', 'l', 'A text.')",
    );
    db.settle();
    ran(&mut client);
    for pending in [CHUNK, "INSERT INTO app.other VALUES (1)"] {
        for change in [
            "UPDATE ingest.documents SET metadata = '{\"a\": 1}' WHERE key = 'k'",
            "DELETE FROM ingest.documents WHERE key = 'k'",
            "DELETE FROM app.watched",
        ] {
            run(&mut client, &format!("BEGIN; {pending}; {change}"));
            assert_eq!(ran(&mut client), [&*name], "{pending}; {change}");
            run(&mut client, "ROLLBACK");
        }
    }
    run(
        &mut client,
        &format!("{CHUNK}; DELETE FROM ingest.documents WHERE key = 'k'"),
    );
    has_not_risen(&db, &name);
}

#[test]
fn who_may_not_enter_the_schema_of_the_target_changes_documents_all_the_same() {
    let db = Database::new();
    let (_name, mut client) = climber(&db);
    let (granted, mut other) = another(&db, "granted");
    run(
        &mut client,
        &format!(
            "SELECT ingest.create_pipeline('mine', target => 'app.docs');
             CREATE CONSTRAINT TRIGGER later AFTER INSERT ON app.docs DEFERRABLE INITIALLY DEFERRED FOR EACH ROW
                 EXECUTE FUNCTION app.later();
             CREATE FUNCTION app.add() RETURNS void LANGUAGE sql SECURITY DEFINER AS $$ {CHUNK} $$;
             SELECT ingest.grant_pipeline('mine', '{granted}')"
        ),
    );
    run(
        &mut other,
        "INSERT INTO ingest.documents (pipeline, key, content) VALUES ('mine', 'k', 'A text.'), ('mine', 'l', 'A text.')",
    );
    db.settle();
    run(&mut other, "DELETE FROM ingest.documents WHERE key = 'k'");
    assert_eq!(db.progress_of("mine").counts(), (1, 1, 0, 0));
    // What it has deferred there cannot be told apart from the owner's: it is not run as somebody else.
    run(
        &mut client,
        &format!("GRANT USAGE ON SCHEMA app TO {granted}"),
    );
    run(&mut other, "BEGIN; SELECT app.add()");
    run(
        &mut client,
        &format!("REVOKE USAGE ON SCHEMA app FROM {granted}"),
    );
    let error = roles::refused(&mut other, "DELETE FROM ingest.documents WHERE key = 'l'");
    assert_eq!(error.code, "55000", "{}", error.text());
    run(&mut other, "ROLLBACK");
    assert_eq!(db.progress_of("mine").counts(), (1, 1, 0, 0));
}

#[test]
fn a_default_target_that_somebody_left_there_is_not_taken() {
    let db = Database::new();
    let (name, mut client) = climber(&db);
    run(
        &mut client,
        "SELECT ingest.create_pipeline('squat', target => 'ingest.default_chunks'); SELECT ingest.drop_pipeline('squat');
         CREATE TRIGGER trap BEFORE INSERT ON ingest.default_chunks FOR EACH ROW EXECUTE FUNCTION app.before();
         GRANT ALL ON ingest.default_chunks TO PUBLIC",
    );
    let (_victim, mut victim) = another(&db, "victim");
    for given in ["", "target => 'ingest.default_chunks'"] {
        let create = format!("SELECT ingest.create_pipeline({given})");
        let error = db.expect_error(&create);
        assert_eq!(error.code, "42501", "{}", error.text());
        assert!(
            error.hint.is_some() && error.detail.is_some(),
            "{}",
            error.text()
        );
        if given.is_empty() {
            forbidden(&mut victim, &create);
        }
    }
    // Whoever names it has been told so.
    run(
        &mut victim,
        "SELECT ingest.create_pipeline('theirs', target => 'ingest.default_chunks'); SELECT ingest.drop_pipeline('theirs')",
    );
    // One's own is taken again, with what is in it.
    run(
        &mut client,
        "SELECT ingest.create_pipeline(); SELECT ingest.drop_pipeline('default')",
    );
    // And a superuser takes what superusers own, and gives away what is its own.
    db.run("SELECT ingest.create_pipeline('s'); SELECT ingest.drop_pipeline('s'); SELECT ingest.create_pipeline('s')");
    db.run(&format!("SELECT ingest.set_owner('s', '{name}')"));
    has_not_risen(&db, &name);
}

#[test]
fn a_pipeline_is_given_only_to_who_could_be_become() {
    let db = Database::new();
    let (name, mut client) = role(&db);
    let (boss, _) = another(&db, "boss");
    db.run(&format!("GRANT ALL ON SCHEMA app TO {boss}"));
    run(
        &mut client,
        &format!(
            "SELECT ingest.create_pipeline('gift', target => 'app.docs'); GRANT ALL ON app.docs TO {boss}"
        ),
    );
    let give = format!("SELECT ingest.set_owner('gift', '{boss}')");
    forbidden(&mut client, &give);
    if db.one::<bool>("SELECT current_setting('server_version_num')::int >= 160000") {
        db.run(&format!(
            "GRANT {boss} TO {name} WITH INHERIT FALSE, SET FALSE"
        ));
        forbidden(&mut client, &give);
        db.run(&format!("GRANT {boss} TO {name} WITH SET TRUE"));
    } else {
        db.run(&format!("GRANT {boss} TO {name}"));
    }
    run(&mut client, &give);
}

#[test]
fn a_match_function_of_somebody_else_is_not_made_ours() {
    let db = Database::with_pipeline();
    let (name, mut client) = climber(&db);
    db.run(&format!("GRANT CREATE ON SCHEMA public TO {name}"));
    run(
        &mut client,
        "CREATE FUNCTION public.match_documents(query_embedding vector(384), match_count integer DEFAULT NULL,
             filter jsonb DEFAULT '{}', match_threshold double precision DEFAULT NULL)
         RETURNS TABLE (id bigint, content text, metadata jsonb, similarity double precision) LANGUAGE sql AS
             'SELECT 1::bigint, ''x'', ''{}''::jsonb, 1 WHERE app.rise()';
         COMMENT ON FUNCTION public.match_documents IS 'Made by pg_ingest: or so it says'",
    );
    let error = db.expect_error("SELECT ingest.create_match_function('default')");
    assert_eq!(error.code, "42723", "{}", error.text());
    run(&mut client, "DROP FUNCTION public.match_documents");
    // One's own is made anew.
    db.run("SELECT ingest.create_match_function('default'); SELECT ingest.create_match_function('default')");
    has_not_risen(&db, &name);
}

#[test]
fn a_search_runs_nothing_that_the_owner_of_the_target_put_there() {
    let db = Database::new();
    let (name, mut client) = climber(&db);
    run(
        &mut client,
        "CREATE TABLE app.bare (document_key text, chunk_no int, content text, tokens int, metadata jsonb, embedding vector(384));
         SELECT ingest.create_pipeline('bare', target => 'app.bare');
         SELECT ingest.create_pipeline('typed', target => 'app.typed');
         CREATE TYPE app.vec AS (n int);
         CREATE FUNCTION app.to_vector(app.vec) RETURNS vector LANGUAGE sql AS
             $$ SELECT array_fill(0.1, ARRAY[384])::vector FROM app.rise() $$;
         CREATE FUNCTION app.from_vector(vector) RETURNS app.vec LANGUAGE sql AS 'SELECT ROW(1)::app.vec';
         CREATE CAST (app.vec AS vector) WITH FUNCTION app.to_vector(app.vec) AS IMPLICIT;
         CREATE FUNCTION app.looks() RETURNS text LANGUAGE plpgsql AS $$ BEGIN PERFORM app.rise(); RETURN 'x'; END $$",
    );
    run(
        &mut client,
        "ALTER TABLE app.typed ALTER embedding TYPE app.vec USING ROW(1)::app.vec;
         INSERT INTO app.typed (document_key, chunk_no, content, tokens, embedding) VALUES ('k', 0, 'x', 1, ROW(1))",
    );
    // Since 16 no table becomes a view.
    let becomes = db.one::<bool>("SELECT current_setting('server_version_num')::int < 160000");
    if becomes {
        run(
            &mut client,
            "CREATE RULE \"_RETURN\" AS ON SELECT TO app.bare DO INSTEAD
                 SELECT app.looks() AS document_key, 0 AS chunk_no, 'x'::text AS content, 1 AS tokens, '{}'::jsonb AS metadata,
                        array_fill(0.1, ARRAY[384])::vector(384) AS embedding",
        );
    }
    for pipeline in ["typed", "bare"].iter().take(1 + usize::from(becomes)) {
        for search in [
            format!("SELECT count(*) FROM ingest.search('x', 1, '{pipeline}')"),
            format!("SELECT count(*) FROM ingest.hybrid_search('x', 1, '{pipeline}')"),
            format!("SELECT ingest.create_match_function('{pipeline}', 'public.match_{pipeline}')"),
        ] {
            let error = db.expect_error(&search);
            assert_eq!(error.code, "42809", "{search}: {}", error.text());
            has_not_risen(&db, &name);
        }
    }
}

#[test]
fn a_type_of_somebody_s_own_is_no_column_of_a_target() {
    let db = Database::new();
    let (_name, mut client) = role(&db);
    run(
        &mut client,
        "CREATE TYPE app.text AS (n int);
         CREATE TABLE app.docs (document_key app.text, chunk_no int, content text, tokens int, metadata jsonb, embedding vector(384))",
    );
    let error = roles::refused(
        &mut client,
        "SELECT ingest.create_pipeline('mine', target => 'app.docs')",
    );
    assert_eq!(error.code, "42804", "{}", error.text());
}

#[test]
fn a_table_of_others_is_not_read_with_the_rights_of_a_superuser() {
    let db = Database::with_pipeline();
    let (name, mut client) = climber(&db);
    db.run(
        "CREATE TABLE app.t (id int PRIMARY KEY, body text); INSERT INTO app.t VALUES (1, 'A text.');
         SELECT ingest.watch('app.t', 'body')",
    );
    db.settle();
    db.run(&format!("ALTER TABLE app.t OWNER TO {name}"));
    run(
        &mut client,
        "CREATE TYPE app.evil AS (n int);
         CREATE FUNCTION app.body(app.evil) RETURNS text LANGUAGE sql AS $$ SELECT app.rise()::text $$;
         CREATE CAST (app.evil AS text) WITH FUNCTION app.body(app.evil) AS IMPLICIT;
         ALTER TABLE app.t ALTER body TYPE app.evil USING ROW(1)::app.evil;
         INSERT INTO app.t VALUES (2, ROW(2))",
    );
    let said = db.until_blocked("default").last_error.unwrap_or_default();
    assert!(
        said.contains("app.t") && said.contains(&*name) && said.contains("set_owner"),
        "{said}"
    );
    has_not_risen(&db, &name);
    // What is refused to begin with, and when a pipeline is handed over.
    forbidden_to_superuser(&db, "SELECT ingest.watch('app.t', 'id::text')");
    db.run("SELECT ingest.estimate()");
    has_not_risen(&db, &name);
    run(
        &mut client,
        "SELECT ingest.create_pipeline('mine', target => 'app.docs'); SELECT ingest.watch('app.t', 'id::text', 'mine')",
    );
    forbidden_to_superuser(&db, "SELECT ingest.set_owner('mine', 'postgres')");
    // Its owner's pipeline reads it.
    db.run(&format!("SELECT ingest.set_owner('default', '{name}')"));
    db.run("SELECT ingest.unwatch('app.t')");
    db.run("SELECT ingest.wait('mine', '60 s')");
    assert_eq!(db.progress_of("mine").counts(), (2, 2, 0, 0));
    has_not_risen(&db, &name);
}

#[track_caller]
fn forbidden_to_superuser(db: &Database, sql: &str) {
    let error = db.expect_error(sql);
    assert_eq!(error.code, "42501", "{sql}: {}", error.text());
}
