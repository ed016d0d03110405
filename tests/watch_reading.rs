//! Promise: whatever the expressions and policies of a watched table do to the worker that reads it, they hold up or harm nobody
//! else for long: the row is set aside, or its pipeline is blocked.

use std::time::Duration;

use harness::remote::api;
use harness::roles::{role, run};
use harness::*;

/// Waits over any number of deaths.
fn settled(db: &Database) {
    wait_until("all has settled", Duration::from_secs(180), || {
        let pending = db.try_one::<i64>(
            "SELECT pending + in_flight + (SELECT count(*) FROM ingest.watches WHERE state <> 'watching')
             FROM ingest.progress WHERE pipeline = 'p'",
        );
        if pending.is_err() {
            db.reconnect();
        }
        pending.is_ok_and(|pending| pending == 0)
    });
}

#[test]
fn a_row_that_kills_who_reads_it_is_set_aside_and_harms_no_other() {
    let cluster = Cluster::start(&[]);
    let db = Database::new_in(&cluster);
    let api = api();
    db.create_remote_pipeline("p", &api, "max_attempts => 2");
    db.run(
        "CREATE FUNCTION public.deadly(body text) RETURNS text LANGUAGE sql STABLE AS 'SELECT body';
         CREATE TABLE public.articles (id int PRIMARY KEY, body text);
         INSERT INTO public.articles SELECT n, 'Body ' || n FROM generate_series(1, 20) n;
         SELECT ingest.pause('p'); SELECT ingest.watch('public.articles', 'public.deadly(body)', 'p');
         CREATE OR REPLACE FUNCTION public.deadly(body text) RETURNS text LANGUAGE plpgsql VOLATILE AS $$
         BEGIN
             IF body = 'Body 7' THEN
                 EXECUTE format('COPY (SELECT 1) TO PROGRAM %L', 'kill -s KILL ' || pg_backend_pid());
             END IF;
             RETURN body;
         END $$;
         SELECT ingest.resume('p')",
    );
    settled(&db);
    assert_eq!(db.progress_of("p").counts(), (20, 19, 0, 1));
    let failures = db.rows_as_text("SELECT key, error_class, message FROM ingest.failures");
    assert!(
        failures[0].contains("\"key\": \"7\"")
            && failures[0].contains("the worker process died 2 times"),
        "{failures:?}"
    );
}

#[test]
fn a_row_that_catches_its_cancellation_ends_in_the_failures() {
    let cluster = Cluster::start(&[]);
    let db = Database::new_in(&cluster);
    let (owner, mut client) = role(&db);
    run(
        &mut client,
        "SELECT ingest.create_pipeline('p', target => 'app.p_chunks', max_attempts => 1);
         CREATE FUNCTION app.evil(t text) RETURNS text LANGUAGE plpgsql STABLE AS $$ BEGIN RETURN t; END $$;
         CREATE TABLE app.t (id int PRIMARY KEY, t text);
         INSERT INTO app.t VALUES (1, 'quick'), (2, 'once'), (3, 'always'), (4, 'last');
         SELECT ingest.pause('p'); SELECT ingest.watch('app.t', 'app.evil(t)', 'p');
         CREATE OR REPLACE FUNCTION app.evil(t text) RETURNS text LANGUAGE plpgsql STABLE AS $$ BEGIN
             IF t = 'once' THEN
                 BEGIN PERFORM pg_sleep(3600); EXCEPTION WHEN query_canceled THEN PERFORM pg_sleep(3600); END;
             END IF;
             WHILE t = 'always' LOOP
                 BEGIN PERFORM pg_sleep(3600); EXCEPTION WHEN query_canceled THEN NULL; END;
             END LOOP;
             RETURN t;
         END $$;
         SELECT ingest.resume('p')",
    );
    let began = "SELECT pg_postmaster_start_time()::text || (SELECT count(*) FROM pg_stat_activity WHERE pid = pg_backend_pid())";
    let before: String = db.one(began);
    settled(&db);
    assert_eq!(
        db.all::<String>("SELECT content FROM app.p_chunks ORDER BY 1"),
        ["last", "quick"],
        "{owner}"
    );
    let failures =
        db.rows_as_text("SELECT key, error_class, message FROM ingest.failures ORDER BY key");
    assert!(
        failures[0].contains("longer than 5 s") && failures[1].contains("the worker process died"),
        "{failures:?}"
    );
    // No crash: the server, and whoever is connected, goes on.
    assert_eq!(db.one::<String>(began), before);
}

#[test]
fn a_policy_that_takes_its_time_blocks_its_own_pipeline_only() {
    let db = Database::new();
    let api = api();
    db.create_remote_pipeline("other", &api, "");
    let (owner, mut client) = role(&db);
    run(
        &mut client,
        "SELECT ingest.create_pipeline('p', target => 'app.p_chunks');
         CREATE FUNCTION app.slow(n int) RETURNS boolean LANGUAGE plpgsql STABLE AS $$ BEGIN PERFORM pg_sleep(n); RETURN true; END $$",
    );
    db.run(&format!(
        "CREATE TABLE public.articles (id int PRIMARY KEY, body text, sleep int);
         GRANT SELECT, TRIGGER ON public.articles TO {owner};
         ALTER TABLE public.articles ENABLE ROW LEVEL SECURITY;
         CREATE POLICY slow ON public.articles TO {owner} USING (app.slow(sleep));
         INSERT INTO public.articles VALUES (1, 'One.', 0), (2, 'Two.', 3600), (3, 'Three.', 0)"
    ));
    run(
        &mut client,
        "SELECT ingest.watch('public.articles', 'body', 'p')",
    );
    db.run(
        "INSERT INTO ingest.documents (pipeline, key, content) VALUES ('other', 'x', 'Meanwhile.')",
    );
    wait_until("the other pipeline's document is embedded", SOON, || {
        db.progress_of("other").counts() == (1, 1, 0, 0)
    });
    wait_until("the pipeline is blocked", SOON * 2, || {
        db.progress_of("p").state == "blocked"
    });
    let error = db.progress_of("p").last_error.expect("why");
    assert!(
        error.contains("public.articles") && error.contains("longer than 5 s"),
        "{error}"
    );
    db.run("UPDATE public.articles SET sleep = 0; SELECT ingest.resume('p')");
    db.settle();
    assert_eq!(
        db.all::<String>("SELECT document_key FROM app.p_chunks ORDER BY 1"),
        ["1", "2", "3"]
    );
}

#[test]
fn a_policy_that_catches_its_cancellation_blocks_its_own_pipeline_only() {
    let cluster = Cluster::start(&[]);
    let db = Database::new_in(&cluster);
    let api = api();
    db.create_remote_pipeline("other", &api, "");
    let (owner, mut client) = role(&db);
    run(
        &mut client,
        "SELECT ingest.create_pipeline('p', target => 'app.p_chunks');
         CREATE FUNCTION app.stubborn(blind boolean) RETURNS boolean LANGUAGE plpgsql STABLE AS $$ BEGIN
             WHILE blind LOOP
                 BEGIN PERFORM pg_sleep(3600); EXCEPTION WHEN query_canceled THEN NULL; END;
             END LOOP;
             RETURN true;
         END $$",
    );
    db.run(&format!(
        "CREATE TABLE public.articles (id int PRIMARY KEY, body text, blind boolean);
         GRANT SELECT, TRIGGER ON public.articles TO {owner};
         ALTER TABLE public.articles ENABLE ROW LEVEL SECURITY;
         CREATE POLICY stubborn ON public.articles TO {owner} USING (app.stubborn(blind));
         INSERT INTO public.articles VALUES (1, 'One.', false), (2, 'Two.', true)"
    ));
    run(
        &mut client,
        "SELECT ingest.watch('public.articles', 'body', 'p')",
    );
    wait_until("the pipeline is blocked", SOON * 2, || {
        db.progress_of("p").state == "blocked"
    });
    let error = db.progress_of("p").last_error.expect("why");
    assert!(
        error.contains("public.articles") && error.contains("the worker process died"),
        "{error}"
    );
    db.run(
        "INSERT INTO ingest.documents (pipeline, key, content) VALUES ('other', 'x', 'Meanwhile.')",
    );
    wait_until("the other pipeline's document is embedded", SOON, || {
        db.progress_of("other").counts() == (1, 1, 0, 0)
    });
    db.run("UPDATE public.articles SET blind = false; SELECT ingest.resume('p')");
    db.settle();
    assert_eq!(
        db.all::<String>("SELECT document_key FROM app.p_chunks ORDER BY 1"),
        ["1", "2"]
    );
}
