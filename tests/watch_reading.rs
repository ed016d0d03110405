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
