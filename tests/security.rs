//! Promise: the worker lends nobody its rights, no function can be led astray by a `search_path`, and every object says what
//! it is.

use harness::roles::{another, column, forbidden, pipeline_owner, role, run};
use harness::*;

#[test]
fn the_target_is_written_as_the_pipelines_owner() {
    let db = Database::new();
    let (owner, mut client) = pipeline_owner(&db, "max_attempts => 1, index => 'immediate'");
    assert!(db.one::<bool>(&format!(
        "SELECT owner::text = '{owner}' FROM ingest.pipelines"
    )));
    assert!(db.one::<bool>(&format!(
        "SELECT relowner::regrole::text = '{owner}' FROM pg_class WHERE oid = 'app.docs'::regclass"
    )));
    run(
        &mut client,
        "CREATE TABLE app.who (what text, session_role text, acting_role text, superuser text);
         CREATE FUNCTION app.note() RETURNS trigger LANGUAGE plpgsql AS $$
         BEGIN
             INSERT INTO app.who VALUES (TG_OP, session_user, current_user, current_setting('is_superuser'));
             IF TG_OP = 'INSERT' AND NEW.content LIKE '%evil%' THEN
                 EXECUTE 'ALTER ROLE ' || current_user || ' SUPERUSER';
             END IF;
             IF TG_OP = 'INSERT' AND NEW.content LIKE '%reset%' THEN
                 EXECUTE 'RESET ROLE';
             END IF;
             IF TG_OP = 'INSERT' AND NEW.content LIKE '%read%' THEN
                 PERFORM pg_read_file('postgresql.conf');
             END IF;
             RETURN coalesce(NEW, OLD);
         END $$;
         CREATE TRIGGER note BEFORE INSERT OR UPDATE OR DELETE ON app.docs FOR EACH ROW EXECUTE FUNCTION app.note()",
    );
    run(
        &mut client,
        "INSERT INTO ingest.documents (pipeline, key, content) VALUES
             ('mine', 'good', 'A good text.'), ('mine', 'evil', 'An evil text.'), ('mine', 'fine', 'A fine text.')",
    );
    db.run("SELECT ingest.pause('mine'); SELECT ingest.resume('mine')");
    wait_until("the good ones are there", SOON, || {
        db.one::<i64>("SELECT count(*) FROM app.docs") == 2
    });
    assert!(
        !db.one::<bool>(&format!(
            "SELECT rolsuper FROM pg_roles WHERE rolname = '{owner}'"
        )),
        "the owner became a superuser"
    );
    assert_eq!(
        db.one::<i64>("SELECT count(*) FROM app.docs WHERE document_key = 'evil'"),
        0
    );
    run(
        &mut client,
        "DELETE FROM ingest.documents WHERE key = 'evil'",
    );
    for key in ["reset", "read"] {
        run(
            &mut client,
            &format!(
                "INSERT INTO ingest.documents (pipeline, key, content) VALUES ('mine', '{key}', 'A text to {key}.')"
            ),
        );
        db.run("SELECT ingest.resume('mine')");
        wait_until("it is refused", SOON, || db.progress_of("mine").tried());
        assert_eq!(
            db.one::<i64>(&format!(
                "SELECT count(*) FROM app.docs WHERE document_key = '{key}'"
            )),
            0,
            "{key}"
        );
        run(
            &mut client,
            &format!("DELETE FROM ingest.documents WHERE key = '{key}'"),
        );
    }
    run(
        &mut client,
        "UPDATE ingest.documents SET metadata = '{\"a\": 1}' WHERE key = 'good'; DELETE FROM ingest.documents WHERE key = 'fine'",
    );
    let acting = || db.all::<String>("SELECT DISTINCT acting_role FROM app.who");
    assert_eq!(acting(), [&*owner]);
    // A trigger of the owner runs as the owner also when a superuser deletes the document.
    db.run("DELETE FROM ingest.documents WHERE key = 'good'");
    assert_eq!(acting(), [&*owner]);
}

#[test]
fn a_forbidden_action_harms_only_its_document() {
    let db = Database::new();
    let (_owner, mut client) = pipeline_owner(&db, "max_attempts => 1");
    run(
        &mut client,
        "CREATE FUNCTION app.note() RETURNS trigger LANGUAGE plpgsql AS $$
         BEGIN
             IF NEW.content LIKE '%evil%' THEN
                 EXECUTE 'CREATE ROLE intruder SUPERUSER';
             END IF;
             RETURN NEW;
         END $$;
         CREATE TRIGGER note BEFORE INSERT ON app.docs FOR EACH ROW EXECUTE FUNCTION app.note()",
    );
    run(
        &mut client,
        "INSERT INTO ingest.documents (pipeline, key, content)
         SELECT 'mine', 'k' || n, CASE n WHEN 5 THEN 'An evil text.' ELSE 'Text number ' || n END FROM generate_series(1, 10) n",
    );
    wait_until("the others are embedded and it has failed", SOON, || {
        db.progress_of("mine").counts() == (10, 9, 0, 1)
    });
    assert_eq!(
        db.one::<String>("SELECT key || ' ' || error_class FROM ingest.failures"),
        "k5 internal"
    );
    assert_eq!(
        db.one::<i64>("SELECT count(*) FROM pg_roles WHERE rolname = 'intruder'"),
        0
    );
    run(
        &mut client,
        "INSERT INTO ingest.documents (pipeline, key, content) VALUES ('mine', 'later', 'A later text.')",
    );
    assert!(db.one::<bool>("SELECT ingest.wait('mine', '20 s')"));
    assert_eq!(db.progress_of("mine").counts(), (11, 10, 0, 1));
}

#[test]
fn a_pipeline_obeys_its_owner_only() {
    let db = Database::with_pipeline();
    let (_owner, mut client) = role(&db);
    db.run(&texts::insert_passages());
    db.settle();
    for sql in [
        "SELECT ingest.pause('default')",
        "SELECT ingest.resume('default')",
        "SELECT ingest.alter_pipeline('default', chunk_tokens => 20)",
        "SELECT ingest.drop_pipeline('default')",
        "SELECT ingest.create_pipeline('p', target => 'ingest.default_chunks')",
        "UPDATE ingest.pipeline SET owner = 'postgres'",
        "INSERT INTO ingest.queue (document_id, pipeline_id, bytes) VALUES (1, 1, 1)",
        "SELECT * FROM ingest.delete_chunks(1, NULL)",
        "SELECT ingest.forget_documents(ARRAY[1], ARRAY['default'], ARRAY['keys.md'])",
        "SELECT ingest.set_paused(1, true)",
        "SELECT ingest.remove_pipeline(1)",
        "SELECT ingest.requeue_all(1)",
        "SELECT ingest.cancel_rebuild('default')",
        "SELECT ingest.finish_rebuild('default')",
        "SELECT ingest.take_place(1)",
        "SELECT ingest.remove_successor(1)",
        "SELECT ingest.replace_metadata(1, ARRAY['keys.md'], ARRAY['{}'])",
        "SELECT ingest.stage_files('default', ARRAY['k'], ARRAY['x'], ARRAY['{}'::jsonb], ARRAY[NULL])",
    ] {
        forbidden(&mut client, sql);
    }
    assert_eq!(db.progress().counts(), (8, 8, 0, 0));
    // Its own it can do all this with.
    run(
        &mut client,
        "SELECT ingest.create_pipeline('mine', target => 'app.docs')",
    );
    run(
        &mut client,
        "SELECT ingest.pause('mine'); SELECT ingest.resume('mine'); SELECT ingest.alter_pipeline('mine', chunk_tokens => 20)",
    );
    run(
        &mut client,
        "INSERT INTO ingest.documents (pipeline, key, content) VALUES ('mine', 'k', 'A text.')",
    );
    run(
        &mut client,
        "SELECT ingest.wait('mine', '60 s'); SELECT * FROM ingest.search('text', 1, 'mine')",
    );
    run(
        &mut client,
        "SELECT * FROM ingest.progress; SELECT * FROM ingest.doctor(); SELECT ingest.retry('mine')",
    );
    run(&mut client, "SELECT ingest.drop_pipeline('mine', true)");
}

#[test]
fn a_waiting_role_needs_no_right_to_the_tables() {
    let db = Database::with_pipeline();
    let (_waiter, mut client) = another(&db, "waiter");
    db.run("SELECT ingest.pause('default'); INSERT INTO ingest.documents (key, content) VALUES ('k', 'A text.')");
    run(&mut client, "SELECT ingest.wait(timeout => '1 s')");
}

#[test]
fn an_owner_that_is_dropped_blocks_its_pipeline() {
    let db = Database::with_pipeline();
    let (owner, client) = pipeline_owner(&db, "");
    drop(client);
    db.run(&format!(
        "REASSIGN OWNED BY {owner} TO postgres; DROP OWNED BY {owner}; DROP ROLE {owner}"
    ));
    db.run("INSERT INTO ingest.documents (pipeline, key, content) VALUES ('mine', 'k', 'A text.')");
    db.until_blocked("mine");
    db.run(&texts::insert_passages());
    wait_until("the other goes on", SOON, || db.progress().embedded == 8);
    db.run("SELECT ingest.drop_pipeline('mine')");
}

#[test]
fn nobody_else_can_write_where_functions_look() {
    let db = Database::new();
    // Whoever can create objects in a schema of the caller's search_path must not change what our functions do.
    db.run(
        "CREATE SCHEMA trap;
         CREATE FUNCTION trap.now() RETURNS timestamptz LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'trapped'; END $$;
         CREATE FUNCTION trap.octet_length(text) RETURNS int LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'trapped'; END $$;
         CREATE FUNCTION trap.unnest(anyarray) RETURNS SETOF anyelement LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'trapped'; END $$;
         CREATE FUNCTION trap.parse_ident(text) RETURNS text[] LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'trapped'; END $$;
         CREATE FUNCTION trap.eq(text, text) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'trapped'; END $$;
         CREATE OPERATOR trap.= (LEFTARG = text, RIGHTARG = text, PROCEDURE = trap.eq);
         SET search_path = trap, pg_catalog, public",
    );
    db.run("SELECT ingest.create_pipeline('p', target => 'public.docs')");
    db.run("INSERT INTO ingest.documents (pipeline, key, content) VALUES ('p', 'k', 'A text.'), ('p', 'bad', '')");
    db.settle();
    db.run("SELECT * FROM ingest.search('text', 3, 'p'); SELECT ingest.retry('p')");
    db.run("UPDATE ingest.documents SET content = content || ' More.', metadata = '{\"a\": 1}'");
    db.run("UPDATE ingest.documents SET metadata = '{\"a\": 2}'");
    db.run("SELECT ingest.alter_pipeline('p', chunk_tokens => 20)");
    db.settle();
    db.run("DELETE FROM ingest.documents; SELECT ingest.drop_pipeline('p', true)");
}

#[test]
fn every_function_pins_its_search_path() {
    let db = Database::new();
    let unpinned = db.all::<String>(
        "SELECT p.oid::regprocedure::text FROM pg_proc p JOIN pg_language l ON l.oid = p.prolang
         WHERE p.pronamespace = 'ingest'::regnamespace AND l.lanname IN ('plpgsql', 'sql')
           AND NOT EXISTS (SELECT FROM unnest(p.proconfig) AS setting WHERE setting LIKE 'search_path=%')",
    );
    assert_eq!(unpinned, Vec::<String>::new());
    let definers = db.all::<String>(
        "SELECT p.oid::regprocedure::text FROM pg_proc p
         WHERE p.pronamespace = 'ingest'::regnamespace AND p.prosecdef
           AND NOT EXISTS (SELECT FROM unnest(p.proconfig) AS setting WHERE setting = 'search_path=pg_catalog, pg_temp')",
    );
    assert_eq!(definers, Vec::<String>::new());
}

#[test]
fn every_object_says_what_it_is() {
    let db = Database::with_pipeline();
    let silent = db.all::<String>(
        "SELECT 'function ' || p.oid::regprocedure FROM pg_proc p
         WHERE p.pronamespace = 'ingest'::regnamespace AND obj_description(p.oid, 'pg_proc') IS NULL
         UNION ALL
         SELECT 'relation ' || c.oid::regclass FROM pg_class c
         WHERE c.relnamespace = 'ingest'::regnamespace AND c.relkind IN ('r', 'v', 'p') AND obj_description(c.oid, 'pg_class') IS NULL
         UNION ALL
         SELECT 'schema ingest' WHERE obj_description('ingest'::regnamespace, 'pg_namespace') IS NULL
         ORDER BY 1",
    );
    assert_eq!(silent, Vec::<String>::new());
}

#[test]
fn columns_that_do_not_explain_themselves_are_explained() {
    let db = Database::with_pipeline();
    for (relation, least) in [
        ("documents", 4),
        ("failures", 2),
        ("progress", 10),
        ("pipelines", 4),
        ("workers", 4),
        ("default_chunks", 4),
    ] {
        let explained: i64 = db.one(&format!(
            "SELECT count(*) FROM pg_attribute a WHERE a.attrelid = 'ingest.{relation}'::regclass AND a.attnum > 0
             AND col_description(a.attrelid, a.attnum) IS NOT NULL"
        ));
        assert!(
            explained >= least,
            "{explained} columns of {relation} have a comment"
        );
    }
}

#[test]
fn the_names_are_those_of_the_contract() {
    let db = Database::new();
    let columns = |relation: &str| -> String {
        db.one(&format!(
            "SELECT string_agg(attname, ', ' ORDER BY attnum) FROM pg_attribute
             WHERE attrelid = 'ingest.{relation}'::regclass AND attnum > 0 AND NOT attisdropped"
        ))
    };
    assert_eq!(
        columns("documents"),
        "id, pipeline, key, content, metadata, created_at, updated_at, \
         watch_id, source_key, source_bytes, source_version"
    );
    assert_eq!(
        columns("progress"),
        "pipeline, state, documents, embedded, pending, in_flight, failed, percent, bar, chunks, tokens, \
         documents_per_minute, tokens_per_minute, eta, cost_usd, last_error, \
         reused_tokens, saved_usd, rebuilding"
    );
    assert_eq!(
        columns("failures"),
        "pipeline, document_id, key, error_class, http_status, message, attempts, first_failed_at, last_failed_at, retryable, \
         rebuild"
    );
    assert_eq!(
        columns("workers"),
        "pid, database, state, pipeline, in_flight_requests, in_flight_documents, started_at, last_error"
    );
    let signature = |function: &str| -> String {
        db.one(&format!(
            "SELECT pg_get_function_arguments(oid) || ' -> ' || pg_get_function_result(oid) FROM pg_proc
             WHERE pronamespace = 'ingest'::regnamespace AND proname = '{function}'"
        ))
    };
    for (function, expected) in [
        ("pause", "pipeline text -> void"),
        ("resume", "pipeline text -> void"),
        (
            "drop_pipeline",
            "name text, drop_target boolean DEFAULT false -> void",
        ),
        (
            "retry",
            "pipeline text DEFAULT NULL::text, key text DEFAULT NULL::text, error_class text DEFAULT NULL::text -> bigint",
        ),
        (
            "wait",
            "pipeline text DEFAULT NULL::text, timeout interval DEFAULT NULL::interval -> boolean",
        ),
        (
            "embed",
            "input text, pipeline text DEFAULT 'default'::text -> vector",
        ),
        (
            "search",
            "query text, k integer DEFAULT 10, pipeline text DEFAULT 'default'::text, filter jsonb DEFAULT NULL::jsonb \
             -> TABLE(key text, chunk_no integer, content text, metadata jsonb, similarity double precision)",
        ),
        ("count_tokens", "input text, model text -> integer"),
        (
            "load_files",
            "directory text, pattern text DEFAULT '**/*'::text, pipeline text DEFAULT 'default'::text -> bigint",
        ),
        (
            "doctor",
            " -> TABLE(\"check\" text, ok boolean, detail text, hint text)",
        ),
    ] {
        assert_eq!(signature(function), expected, "{function}");
    }
}

#[test]
fn a_target_that_its_owner_may_not_write_any_more_blocks_and_fails_nothing() {
    let db = Database::with_pipeline();
    let (owner, mut client) = role(&db);
    db.run(&format!(
        "CREATE TABLE public.docs (LIKE ingest.default_chunks INCLUDING ALL);
         GRANT SELECT, INSERT, UPDATE, DELETE ON public.docs TO {owner}"
    ));
    run(
        &mut client,
        "SELECT ingest.create_pipeline('mine', target => 'public.docs')",
    );
    db.run(&format!("REVOKE INSERT ON public.docs FROM {owner}"));
    run(
        &mut client,
        "INSERT INTO ingest.documents (pipeline, key, content)
         SELECT 'mine', 'k' || n, 'Text number ' || n FROM generate_series(1, 5) n",
    );
    let progress = db.until_blocked("mine");
    assert_eq!(progress.counts(), (5, 0, 5, 0));
    assert!(
        progress
            .last_error
            .as_ref()
            .is_some_and(|error| error.contains("permission denied")),
        "{progress:?}"
    );
    db.run(&format!("GRANT INSERT ON public.docs TO {owner}"));
    run(&mut client, "SELECT ingest.resume('mine')");
    db.settle();
    assert_eq!(db.progress_of("mine").counts(), (5, 5, 0, 0));
}

#[test]
fn trigger_functions_serve_their_own_tables_only() {
    let db = Database::with_pipeline();
    let (_owner, mut client) = role(&db);
    run(
        &mut client,
        "CREATE TABLE app.forged (id bigint, pipeline text, key text, content text, metadata jsonb)",
    );
    for (event, function, tables) in [
        ("INSERT", "documents_inserted", "NEW TABLE AS new_rows"),
        ("DELETE", "documents_deleted", "OLD TABLE AS old_rows"),
        (
            "UPDATE",
            "documents_updated",
            "OLD TABLE AS old_rows NEW TABLE AS new_rows",
        ),
        ("TRUNCATE", "documents_truncated", ""),
    ] {
        let referencing = match tables {
            "" => String::new(),
            tables => format!("REFERENCING {tables}"),
        };
        forbidden(
            &mut client,
            &format!(
                "CREATE TRIGGER forged AFTER {event} ON app.forged {referencing}
                 FOR EACH STATEMENT EXECUTE FUNCTION ingest.{function}()"
            ),
        );
    }
}

#[test]
fn a_trigger_on_the_target_cannot_change_the_workers_session() {
    let db = Database::with_pipeline();
    let (_owner, mut client) = pipeline_owner(&db, "");
    run(
        &mut client,
        "CREATE FUNCTION app.clock_timestamp() RETURNS timestamptz LANGUAGE plpgsql AS
             $$ BEGIN RAISE EXCEPTION 'trapped'; END $$;
         CREATE FUNCTION app.note() RETURNS trigger LANGUAGE plpgsql AS $$
         BEGIN
             PERFORM set_config('search_path', 'app, pg_catalog', false);
             PERFORM set_config('default_transaction_read_only', 'on', false);
             PERFORM set_config('statement_timeout', '1', false);
             RETURN NEW;
         END $$;
         CREATE TRIGGER note BEFORE INSERT ON app.docs FOR EACH ROW EXECUTE FUNCTION app.note()",
    );
    run(
        &mut client,
        "INSERT INTO ingest.documents (pipeline, key, content) VALUES ('mine', 'k', 'A text.')",
    );
    // Embedded or failed, it has run by now.
    assert!(db.one::<bool>("SELECT ingest.wait('mine', '60 s')"));
    db.run(&texts::insert_passages());
    db.settle();
    assert_eq!(db.progress().counts(), (8, 8, 0, 0));
}

#[test]
fn only_the_owner_has_failures_tried_again() {
    let db = Database::with_pipeline();
    let (_owner, mut client) = role(&db);
    db.run("INSERT INTO ingest.documents (key, content) VALUES ('bad', '')");
    db.settle();
    db.run("SELECT ingest.pause('default')");
    forbidden(&mut client, "SELECT ingest.retry('default')");
    assert_eq!(column::<i64>(&mut client, "SELECT ingest.retry()"), [0]);
    assert_eq!(db.progress().counts(), (1, 0, 0, 1));
    assert_eq!(db.one::<i64>("SELECT ingest.retry()"), 1);
}

#[test]
fn deferred_triggers_run_as_the_owner_too() {
    let db = Database::new();
    let (owner, mut client) = pipeline_owner(&db, "");
    run(
        &mut client,
        "CREATE TABLE app.who (what text, acting_role text);
         CREATE FUNCTION app.note() RETURNS trigger LANGUAGE plpgsql AS
             $$ BEGIN INSERT INTO app.who VALUES (TG_OP, current_user); RETURN NULL; END $$;
         CREATE CONSTRAINT TRIGGER note AFTER INSERT OR UPDATE OR DELETE ON app.docs
             DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION app.note()",
    );
    db.run("INSERT INTO ingest.documents (pipeline, key, content) VALUES ('mine', 'k', 'A text.')");
    db.settle();
    db.run("UPDATE ingest.documents SET metadata = '{\"a\": 1}'");
    db.run("DELETE FROM ingest.documents");
    assert_eq!(
        db.all::<String>("SELECT DISTINCT what || ' ' || acting_role FROM app.who ORDER BY 1"),
        ["DELETE", "INSERT", "UPDATE"].map(|what| format!("{what} {owner}"))
    );
}

#[test]
fn a_query_is_paid_by_the_owner_and_so_for_those_who_may_read_the_chunks() {
    let db = Database::with_pipeline();
    db.run(&texts::insert_passages());
    db.settle();
    let (owner, mut client) = role(&db);
    for sql in [
        "SELECT ingest.embed('a question')",
        "SELECT * FROM ingest.search('a question')",
        "SELECT ingest.pipeline_named('default')",
        "SELECT * FROM ingest.estimate('default')",
    ] {
        forbidden(&mut client, sql);
    }
    db.run(&format!("GRANT SELECT ON ingest.default_chunks TO {owner}"));
    run(
        &mut client,
        "SELECT ingest.embed('a question'); SELECT * FROM ingest.search('a question'); SELECT * FROM ingest.estimate()",
    );
}
