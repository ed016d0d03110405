//! Promise: a server that preloads pg_ingest is the same for whoever does not use it, and creating the extension runs nobody's code.

use harness::*;

/// A database without the extension.
fn bare(cluster: &Cluster, name: &str) -> postgres::Client {
    let mut client = cluster.client("postgres");
    client
        .batch_execute(&format!("CREATE DATABASE {name}"))
        .expect("a database");
    cluster.client(name)
}

#[test]
fn errors_of_utility_statements_tell_what_they_tell_elsewhere() {
    let cluster = Cluster::start(&[]);
    let mut client = bare(&cluster, "bare");
    client
        .batch_execute(
            "CREATE TABLE positive (a int CONSTRAINT is_positive CHECK (a > 0));
             CREATE PROCEDURE lost() LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'no such page' USING ERRCODE = 'PT404'; END $$",
        )
        .expect("a table and a procedure");
    let mut fails = |sql: &str| client.batch_execute(sql).expect_err(sql);
    let error = fails("COPY positive FROM PROGRAM 'printf ''1\\n0\\n'''");
    let told = error.as_db_error().expect("the server's error");
    assert_eq!(told.constraint(), Some("is_positive"));
    assert_eq!(told.table(), Some("positive"));
    assert!(
        told.where_().is_some_and(|at| at.contains("line 2")),
        "{told:?}"
    );
    let error = fails("CREATE TABLE b (a int, b no_such_type)");
    let told = error.as_db_error().expect("the server's error");
    assert!(told.position().is_some(), "{told:?}");
    let error = fails("CALL lost()");
    let told = error.as_db_error().expect("the server's error");
    assert_eq!(told.code().code(), "PT404");
    client
        .batch_execute("DO $$ BEGIN CALL lost(); EXCEPTION WHEN SQLSTATE 'PT404' THEN NULL; END $$")
        .expect("it is handled");
}

#[test]
fn operators_and_functions_beside_pgvector_are_not_taken_up_when_the_extension_is_created() {
    let cluster = Cluster::start(&[]);
    let mut client = bare(&cluster, "shadowed");
    client
        .batch_execute(
            "CREATE TABLE public.seen (what text);
             CREATE FUNCTION public.eq(oid, regnamespace) RETURNS boolean LANGUAGE plpgsql AS
                 $$ BEGIN INSERT INTO public.seen VALUES ('='); RETURN $1 OPERATOR(pg_catalog.=) $2::oid; END $$;
             CREATE OPERATOR public.= (LEFTARG = oid, RIGHTARG = regnamespace, PROCEDURE = public.eq);
             CREATE FUNCTION public.mul(numeric, bigint) RETURNS numeric LANGUAGE plpgsql AS
                 $$ BEGIN INSERT INTO public.seen VALUES ('*'); RETURN $1 OPERATOR(pg_catalog.*) $2::numeric; END $$;
             CREATE OPERATOR public.* (LEFTARG = numeric, RIGHTARG = bigint, PROCEDURE = public.mul);
             CREATE EXTENSION pg_ingest CASCADE;
             SELECT ingest.create_pipeline(); SELECT percent FROM ingest.progress",
        )
        .expect("the extension");
    let seen: i64 = client
        .query_one("SELECT count(*) FROM public.seen", &[])
        .expect("a count")
        .get(0);
    assert_eq!(seen, 0);
}

#[test]
fn a_schema_of_somebody_elses_is_not_taken_for_the_extensions_own() {
    let cluster = Cluster::start(&[]);
    let mut client = bare(&cluster, "squatted");
    client
        .batch_execute(
            "CREATE ROLE squatter; CREATE SCHEMA ingest AUTHORIZATION squatter;
             CREATE TABLE ingest.old_chunks (a int);
             CREATE FUNCTION ingest.refuse_old_snapshot(text, text[]) RETURNS void LANGUAGE sql AS ''",
        )
        .expect("a schema");
    let error = client
        .batch_execute("CREATE EXTENSION pg_ingest CASCADE")
        .expect_err("it is refused");
    let told = error.as_db_error().expect("the server's error");
    assert_eq!(told.code().code(), "55000");
    let detail = told.detail().unwrap_or_default();
    assert!(
        detail.contains("squatter") && detail.contains("refuse_old_snapshot(text,text[])"),
        "{detail}"
    );
    // Tables that were targets once may stay.
    client
        .batch_execute(
            "DROP FUNCTION ingest.refuse_old_snapshot(text, text[]); ALTER SCHEMA ingest OWNER TO CURRENT_USER;
             CREATE EXTENSION pg_ingest CASCADE",
        )
        .expect("the extension");
}

#[test]
fn a_table_that_is_dropped_where_the_extension_is_not_starts_no_process() {
    let cluster = Cluster::start(&[("log_min_messages", "debug1")]);
    let mut client = bare(&cluster, "dropping");
    let started = || {
        let log = harness::remote::server_log(&cluster);
        log.matches("starting background worker process \"pg_ingest worker")
            .count()
    };
    let db = Database::new_in(&cluster);
    db.run("SELECT ingest.create_pipeline()");
    // The launcher may be looking at databases that were there before; not in each round.
    wait_until("nobody looks at the database of the tables", SOON, || {
        let before = started();
        for _ in 0..5 {
            client
                .batch_execute("CREATE TABLE t (); DROP TABLE t; CREATE SCHEMA s; DROP SCHEMA s")
                .expect("a table comes and goes");
        }
        // Whoever asks for a worker after them has one when those before have had theirs.
        db.run("DROP EXTENSION pg_ingest CASCADE; CREATE EXTENSION pg_ingest; SELECT ingest.create_pipeline()");
        wait_until("this database has its worker again", SOON, || {
            db.one::<i64>("SELECT count(*) FROM ingest.workers WHERE state = 'idle'") == 1
        });
        started() - before == 1
    });
}
