//! Promise: whatever the database or its server is set to, and whatever is done to the tables behind it, the worker works, or
//! says once what it lacks and goes on by itself when that is there.

use std::time::Duration;

use fake_api::{FakeApi, Latency};
use harness::*;
use postgres::NoTls;

/// Documents that came at once, in requests of ten that take their time.
fn backlog(db: &Database, api: &FakeApi, documents: usize) {
    api.set_latency(Latency::fixed(Duration::from_millis(30)));
    db.create_remote_pipeline("docs", api, "batch_size => 10, concurrency => 2");
    db.insert_prose("docs", "d", documents, 20);
}

/// Lines of the server's log that hold these words.
fn logged(cluster: &Cluster, words: &str) -> usize {
    let log = remote::server_log(cluster);
    log.lines().filter(|line| line.contains(words)).count()
}

/// Settings that would each keep a worker from working that obeyed them.
const HOSTILE: [&str; 24] = [
    "default_transaction_read_only = on",
    "default_transaction_isolation = 'serializable'",
    "default_transaction_deferrable = on",
    "statement_timeout = '1ms'",
    "lock_timeout = '1ms'",
    "idle_in_transaction_session_timeout = '1ms'",
    "idle_session_timeout = '1ms'",
    "search_path = 'nowhere'",
    "role = 'nobody_special'",
    "session_replication_role = 'replica'",
    "row_security = off",
    "check_function_bodies = off",
    "standard_conforming_strings = off",
    "transform_null_equals = on",
    "quote_all_identifiers = on",
    "client_encoding = 'LATIN1'",
    "DateStyle = 'German'",
    "IntervalStyle = 'sql_standard'",
    "TimeZone = 'Asia/Kathmandu'",
    "extra_float_digits = -15",
    "enable_indexscan = off",
    "work_mem = '64kB'",
    "temp_file_limit = 0",
    "client_min_messages = 'debug5'",
];

#[test]
fn settings_of_the_database_and_of_the_role_do_not_reach_the_worker() {
    let api = remote::api();
    let cluster = Cluster::start(&[]);
    let db = Database::new_in(&cluster);
    db.create_remote_pipeline("docs", &api, "target => 'public.docs'");
    db.create_remote_pipeline(
        "archived",
        &api,
        "on_success => 'delete', max_attempts => 1",
    );
    db.run("CREATE ROLE nobody_special");
    let newest = db.one::<bool>("SELECT current_setting('server_version_num')::int >= 170000");
    let newest = newest.then_some("transaction_timeout = '1s'");
    for whose in [
        format!("DATABASE {}", db.name()),
        "ROLE postgres".to_owned(),
        format!("ROLE postgres IN DATABASE {}", db.name()),
    ] {
        let settings: String = HOSTILE
            .into_iter()
            .chain(newest)
            .map(|setting| format!("ALTER {whose} SET {setting};"))
            .collect();
        db.run(&settings);
        // This session keeps the settings that it began with; the next worker begins with the new ones.
        let first = db.worker();
        db.run(&format!("SELECT pg_terminate_backend({first})"));
        wait_until("another worker runs", SOON, || {
            db.worker_pids().iter().any(|pid| *pid != first)
        });
        let prefix = whose.replace(' ', "-");
        db.insert_prose("docs", &prefix, 20, 20);
        db.insert_prose("archived", &prefix, 20, 20);
        db.run(&format!(
            "INSERT INTO ingest.documents (pipeline, key, content) VALUES ('archived', '{prefix} bad', '')"
        ));
        db.quiesce();
        db.run(&format!("ALTER {whose} RESET ALL"));
    }
    remote::all_embedded(&db, "docs", 60);
    remote::all_embedded_but(&db, "archived", 63, 3);
    assert_eq!(
        db.one::<i64>("SELECT count(*) FROM ingest.documents WHERE pipeline = 'archived'"),
        3
    );
    assert_eq!(
        api.repeated_inputs(),
        60,
        "each text was sent for either pipeline"
    );
    assert!(db.one::<bool>("SELECT bool_and(ok) FROM ingest.doctor()"));
    assert_eq!(
        db.rows_as_text("SELECT last_error FROM ingest.workers WHERE last_error IS NOT NULL"),
        [""; 0]
    );
}

#[test]
fn the_worker_needs_none_of_the_connections() {
    let api = remote::api();
    let cluster = Cluster::start(&[("max_connections", "8")]);
    let db = Database::new_in(&cluster);
    db.create_remote_pipeline("docs", &api, "");
    db.run(&format!("ALTER DATABASE {} CONNECTION LIMIT 0", db.name()));
    let mut others = Vec::new();
    while let Ok(client) = cluster.config("postgres").connect(NoTls) {
        others.push(client);
    }
    assert!(others.len() >= 5, "{} connections", others.len());
    let first = db.worker();
    db.run(&format!("SELECT pg_terminate_backend({first})"));
    db.insert_prose("docs", "d", 30, 20);
    remote::all_embedded(&db, "docs", 30);
    assert_ne!(db.worker(), first);
    assert_eq!(
        db.one::<Vec<f32>>("SELECT ingest.embed('harbour', 'docs')::real[]")
            .len(),
        1536
    );
}

#[test]
fn a_database_that_takes_no_connections_is_left_alone_until_it_does() {
    let api = remote::api();
    let cluster = Cluster::start(&[]);
    let db = Database::new_in(&cluster);
    backlog(&db, &api, 3_000);
    let mut admin = cluster.client("postgres");
    let mut allow = |allowed: bool| {
        admin
            .batch_execute(&format!(
                "ALTER DATABASE {} ALLOW_CONNECTIONS {allowed}",
                db.name()
            ))
            .unwrap_or_else(|error| panic!("{}", ServerError::from(error).text()));
    };
    wait_until("some are embedded", SOON, || {
        db.progress_of("docs").embedded > 0
    });
    allow(false);
    // Sessions that are there stay; the worker, whom nobody has connected, leaves.
    wait_until("the worker has left", SOON, || db.worker_pids().is_empty());
    let progress = db.progress_of("docs");
    assert_eq!(
        (progress.in_flight, progress.state.as_str()),
        (0, "blocked"),
        "{progress:?}"
    );
    assert!(progress.pending > 0);
    let fatal = logged(&cluster, "FATAL");
    // Whoever adds work asks for a worker.
    db.insert_prose("docs", "e", 10, 20);
    assert!(!db.one::<bool>("SELECT ingest.wait(timeout => '0.5 s')"));
    assert_eq!(
        logged(&cluster, "FATAL"),
        fatal,
        "a worker was started in vain"
    );
    allow(true);
    remote::all_embedded(&db, "docs", 3_010);
}

#[test]
fn a_database_whose_drop_was_interrupted_is_left_alone() {
    let cluster = Cluster::start(&[]);
    let db = Database::new_in(&cluster);
    let other = Database::new_in(&cluster);
    other.run("SELECT ingest.create_pipeline()");
    db.worker();
    db.disconnect();
    // What such a DROP leaves: nobody can connect to it any more.
    other.run(&format!(
        "UPDATE pg_database SET datconnlimit = -2 WHERE datname = '{}'",
        db.name()
    ));
    cluster.reload(&[("pg_ingest.workers", "2")]);
    wait_until("its worker has left", SOON, || {
        other.one::<i64>("SELECT count(DISTINCT database) FROM ingest.workers") == 1
    });
    cluster.restart(&[]);
    other.reconnect();
    other.run(&texts::insert_passages());
    other.quiesce();
    assert_eq!(
        logged(&cluster, "invalid database"),
        0,
        "{}",
        cluster.log_tail("invalid")
    );
}

#[test]
fn a_worker_that_cannot_work_says_so_once_and_goes_on_when_it_can() {
    let api = remote::api();
    let cluster = Cluster::start(&[]);
    let db = Database::new_in(&cluster);
    db.create_remote_pipeline("docs", &api, "");
    // As when the disk is full on which the queue itself lies.
    db.run(
        "CREATE FUNCTION public.extend() RETURNS trigger LANGUAGE plpgsql AS $$
         BEGIN
             RAISE EXCEPTION 'could not extend file: No space left on device' USING ERRCODE = 'disk_full';
         END $$;
         CREATE TRIGGER extend BEFORE UPDATE ON ingest.queue FOR EACH ROW EXECUTE FUNCTION public.extend()",
    );
    for round in 0..20 {
        db.insert_prose("docs", &format!("r{round} "), 1, 20);
    }
    let words = "pg_ingest: could not extend file";
    wait_until("the log says so", SOON, || logged(&cluster, words) > 0);
    assert!(!db.one::<bool>("SELECT ingest.wait(timeout => '2.5 s')"));
    assert_eq!(logged(&cluster, words), 1, "{}", cluster.log_tail(words));
    let doctor: String = db.one(r#"SELECT detail FROM ingest.doctor() WHERE "check" = 'worker'"#);
    assert!(doctor.contains("No space left"), "{doctor}");
    assert_eq!(api.arrived(), 0);
    db.run("DROP TRIGGER extend ON ingest.queue");
    remote::all_embedded(&db, "docs", 20);
    assert_eq!(api.repeated_inputs(), 0);
}

#[test]
fn without_a_free_worker_process_the_server_says_so_once_and_goes_on_when_there_is_one() {
    let api = remote::api();
    // One is the launcher's, one is Postgres's own for logical replication.
    let cluster = Cluster::start(&[("max_worker_processes", "3")]);
    let first = Database::new_in(&cluster);
    first.create_remote_pipeline("docs", &api, "");
    first.worker();
    let second = Database::new_in(&cluster);
    second.create_remote_pipeline("docs", &api, "");
    let words = "raise max_worker_processes";
    for round in 0..20 {
        second.insert_prose("docs", &format!("r{round} "), 1, 20);
    }
    wait_until("the log says so", SOON, || logged(&cluster, words) > 0);
    let (done, notices) =
        second.one_with_notices::<bool>("", "SELECT ingest.wait(timeout => '1 s')");
    assert!(!done);
    assert!(
        notices.len() == 1 && notices[0].contains("nobody embeds now: pipeline docs is blocked"),
        "{notices:?}"
    );
    assert_eq!(logged(&cluster, words), 1, "{}", cluster.log_tail(words));
    let progress = second.progress_of("docs");
    assert_eq!((progress.pending, progress.state.as_str()), (20, "blocked"));
    assert!(
        progress
            .last_error
            .is_some_and(|error| error.contains("max_worker_processes"))
    );
    let doctor: String = second.one(r#"SELECT detail || hint FROM ingest.doctor() WHERE NOT ok"#);
    assert!(doctor.contains("max_worker_processes"), "{doctor}");
    // The launcher does not spin.
    let launcher: i32 =
        second.one("SELECT pid FROM pg_stat_activity WHERE backend_type = 'pg_ingest launcher'");
    let before = cpu_ticks(launcher);
    assert!(!second.one::<bool>("SELECT ingest.wait(timeout => '1 s')"));
    assert!(
        cpu_ticks(launcher) - before < 10,
        "{} ticks in a second",
        cpu_ticks(launcher) - before
    );
    // The first goes on as ever, and makes room when it is done for good.
    first.insert_prose("docs", "d", 5, 20);
    remote::all_embedded(&first, "docs", 5);
    first.run("DROP EXTENSION pg_ingest CASCADE");
    remote::all_embedded(&second, "docs", 20);
    assert_eq!(logged(&cluster, words), 1, "{}", cluster.log_tail(words));
}

#[test]
fn the_tables_behind_it_may_be_rewritten_while_it_works() {
    let api = remote::api();
    // Nobody else: with a transaction in another database, VACUUM FULL may miss what a vacuum of the TOAST table has taken away, on
    // any table (Postgres's bug 18351).
    let cluster = Cluster::start(&[("autovacuum", "off")]);
    let db = Database::new_in(&cluster);
    cluster.reload(&[("pg_ingest.databases", db.name())]);
    wait_until("no worker looks at another database", SOON, || {
        db.one::<i64>("SELECT count(*) FROM pg_stat_activity WHERE datname <> current_database()")
            == 0
    });
    backlog(&db, &api, 600);
    let tables = [
        "queue",
        "documents",
        "counter",
        "counter_delta",
        "pipeline",
        "failures",
        "docs_chunks",
    ];
    let mut rounds = 0;
    while db.progress_of("docs").embedded < 600 {
        for table in tables {
            db.run(&format!("VACUUM FULL ingest.{table}"));
            db.run(&format!("REINDEX TABLE ingest.{table}"));
            db.run(&format!("REINDEX TABLE CONCURRENTLY ingest.{table}"));
            db.run(&format!("ANALYZE ingest.{table}"));
        }
        db.run(
            "CLUSTER ingest.queue USING queue_pkey; CLUSTER ingest.documents USING documents_pkey",
        );
        db.run("ALTER TABLE ingest.queue SET (fillfactor = 70); ALTER TABLE ingest.documents ALTER COLUMN content SET STORAGE EXTERNAL");
        rounds += 1;
    }
    println!("{rounds} rounds");
    remote::all_embedded(&db, "docs", 600);
    assert_eq!(api.repeated_inputs(), 0);
    assert_eq!(db.rows("SELECT * FROM ingest.failures").len(), 0);
}

#[test]
fn settings_change_and_tables_move_while_it_works() {
    let api = remote::api();
    let cluster = Cluster::start(&[]);
    let db = Database::new_in(&cluster);
    let directory = cluster.directory("space", &[]);
    cluster.own(&directory);
    db.run(&format!(
        "CREATE TABLESPACE elsewhere LOCATION {}",
        quoted(&directory.to_string_lossy())
    ));
    backlog(&db, &api, 400);
    // For this session, which is to move them.
    db.run("SET default_transaction_read_only = off; SET lock_timeout = 0");
    let mut round = 0;
    while db.progress_of("docs").embedded < 200 {
        round += 1;
        for setting in [
            format!("pg_ingest.request_timeout = '{}s'", 20 + round % 20),
            format!("pg_ingest.connect_timeout = '{}s'", 5 + round % 20),
            format!("pg_ingest.max_document_size = '{}MB'", 1 + round % 20),
            "default_transaction_read_only = on".to_owned(),
            "lock_timeout = '1ms'".to_owned(),
        ] {
            db.run(&format!("ALTER SYSTEM SET {setting}"));
        }
        db.run("SELECT pg_reload_conf()");
        let space = if round % 2 == 0 {
            "pg_default"
        } else {
            "elsewhere"
        };
        for table in ["queue", "docs_chunks"] {
            db.run(&format!(
                "ALTER TABLE ingest.{table} SET TABLESPACE {space}"
            ));
        }
    }
    println!("{round} rounds");
    db.run("ALTER SYSTEM RESET ALL");
    db.run("SELECT pg_reload_conf()");
    // What lies elsewhere by its own choice would stand in the way of the database.
    for table in ["queue", "docs_chunks"] {
        db.run(&format!(
            "ALTER TABLE ingest.{table} SET TABLESPACE pg_default"
        ));
    }
    wait_until("new sessions may write", SOON, || {
        let mut client = cluster.client(db.name());
        client.batch_execute("CREATE TEMP TABLE t ()").is_ok()
    });
    // The whole database moves: its worker makes way and comes back.
    db.disconnect();
    let mut admin = cluster.client("postgres");
    for space in ["elsewhere", "pg_default"] {
        let move_it = format!("ALTER DATABASE {} SET TABLESPACE {space}", db.name());
        wait_until("it can be moved", SOON, || {
            match admin.batch_execute(&move_it) {
                Ok(()) => true,
                Err(error) => {
                    let error = ServerError::from(error);
                    // The connection before is still being closed.
                    assert_eq!(error.code, "55006", "{error:?}");
                    false
                }
            }
        });
    }
    db.reconnect();
    remote::all_embedded(&db, "docs", 400);
    assert_eq!(db.rows("SELECT * FROM ingest.failures").len(), 0);
}

#[test]
fn a_crash_in_the_middle_of_a_remote_backlog_repeats_only_what_was_on_its_way() {
    let api = remote::api();
    let cluster = Cluster::start(&[]);
    let db = Database::new_in(&cluster);
    db.run("SELECT ingest.set_limit('budget', rpm => 60000, rpd => 100000)");
    api.set_latency(Latency::fixed(Duration::from_millis(150)));
    db.create_remote_pipeline(
        "docs",
        &api,
        "batch_size => 10, concurrency => 4, limits => 'budget'",
    );
    db.insert_prose("docs", "d", 800, 20);
    let mut on_their_way = 0;
    for round in 1..=2 {
        wait_until("it is in the middle", SOON, || {
            let progress = db.progress_of("docs");
            progress.embedded > 150 * round && progress.in_flight > 0
        });
        db.disconnect();
        cluster.stop_server("immediate");
        wait_until("what was on its way has ended", SOON, || {
            api.in_flight() == 0
        });
        cluster.configure(&[("pg_ingest.workers", "0")]);
        cluster.start_server();
        db.reconnect();
        let progress = db.progress_of("docs");
        // In flight, or answered and not yet committed.
        let these = api.distinct_inputs() - progress.embedded as u64;
        println!(
            "{these} texts were on their way, {} sent again so far",
            api.repeated_inputs()
        );
        assert!(api.repeated_inputs() <= on_their_way);
        on_their_way += these;
        assert_eq!(
            db.check_vectors("ingest.docs_chunks") as i64,
            progress.chunks
        );
        cluster.reload(&[("pg_ingest.workers", "1")]);
    }
    remote::all_embedded(&db, "docs", 800);
    println!("{} texts sent again in all", api.repeated_inputs());
    assert_eq!(api.distinct_inputs(), 800);
    assert!(api.repeated_inputs() <= on_their_way);
    // The day's total lacks nothing. What was counted when the server died may not have been sent: four requests at most, twice.
    db.quiesce();
    let today: i64 = db.one("SELECT requests_today FROM ingest.limits");
    println!("{today} requests written down of {}", api.accepted());
    let accepted = api.accepted() as i64;
    assert!((accepted..=accepted + 2 * 4).contains(&today));
}

#[test]
fn a_document_that_cannot_be_read_holds_up_no_other() {
    let cluster = Cluster::start(&[]);
    let api = harness::remote::api();
    let db = Database::new_in(&cluster);
    for pipeline in ["p", "other"] {
        db.create_remote_pipeline(pipeline, &api, "max_attempts => 2");
        db.run(&format!("SELECT ingest.pause('{pipeline}')"));
        db.insert_prose(pipeline, "d", 20, 5);
    }
    // Only the damaged one is long enough to lie apart from its row.
    db.run(
        "ALTER TABLE ingest.documents ALTER content SET STORAGE EXTERNAL;
         UPDATE ingest.documents SET content = repeat('long and damaged ', 1000) WHERE pipeline = 'p' AND key = 'd7';
         CHECKPOINT",
    );
    let file: String = db.one(
        "SELECT pg_relation_filepath(reltoastrelid) FROM pg_class WHERE oid = 'ingest.documents'::regclass",
    );
    cluster.stop_server("fast");
    let file = cluster.data().join(file);
    let length = std::fs::metadata(&file).expect("the file is there").len() as usize;
    std::fs::write(&file, vec![0; length]).expect("zeros for what was there");
    cluster.start_server();
    db.reconnect();
    db.run("SELECT ingest.resume('p'), ingest.resume('other')");
    assert!(db.one::<bool>("SELECT ingest.wait(timeout => '60 s')"));
    assert_eq!(db.progress_of("other").counts(), (20, 20, 0, 0));
    assert_eq!(db.progress_of("p").counts(), (20, 19, 0, 1));
    let failure: String =
        db.one("SELECT concat_ws(' ', key, error_class, attempts, message) FROM ingest.failures");
    assert!(
        failure.starts_with("d7 internal 2 the document cannot be read: "),
        "{failure}"
    );
}
