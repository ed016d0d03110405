//! Promise: the worker is there when there is work and costs nothing when there is none; several never do the same work;
//! whatever happens to it or to its database, nothing is lost, nothing is doubled, and nobody has to wait for it.

use std::time::{Duration, Instant};

use harness::*;

/// Documents that keep a worker busy for some seconds.
fn insert_backlog(db: &Database, documents: usize) {
    db.run(&format!(
        "INSERT INTO ingest.documents (key, content)
         SELECT 'k' || n, repeat('This is sentence number ' || n || ' of a longer text. ', 8) FROM generate_series(1, {documents}) n"
    ));
}

/// Waits until the backlog is neither untouched nor done.
fn halfway(db: &Database) {
    wait_until("the backlog is half done", SOON, || {
        let progress = db.progress();
        progress.embedded > 0 && progress.in_flight > 0
    });
}

/// Every document has its chunks once, the counters agree with the tables, and the content is the present one.
fn all_embedded_once(db: &Database, documents: i64) {
    db.quiesce();
    assert_eq!(db.progress().counts(), (documents, documents, 0, 0));
    let row = &db.rows("SELECT count(DISTINCT document_key), count(*), count(DISTINCT (document_key, chunk_no)) FROM ingest.default_chunks")[0];
    let (keys, chunks, distinct): (i64, i64, i64) = (row.get(0), row.get(1), row.get(2));
    assert_eq!((keys, chunks), (documents, distinct));
    assert_eq!(db.progress().chunks, chunks);
}

#[test]
fn an_idle_worker_costs_nothing() {
    let cluster = Cluster::start(&[
        ("autovacuum", "off"),
        ("checkpoint_timeout", "1d"),
        ("wal_level", "minimal"),
        ("max_wal_senders", "0"),
    ]);
    let db = Database::new_in(&cluster);
    db.run("SELECT ingest.create_pipeline()");
    db.run(&texts::insert_passages());
    db.quiesce();
    db.run("CHECKPOINT");
    let pids: Vec<i32> =
        db.all("SELECT pid FROM pg_stat_activity WHERE backend_type LIKE 'pg_ingest%'");
    assert_eq!(pids.len(), 2, "a launcher and a worker");
    let measure = || -> (String, Vec<u64>) {
        let lsn = db.one("SELECT pg_current_wal_insert_lsn()::text");
        (lsn, pids.iter().map(|pid| cpu_ticks(*pid)).collect())
    };
    // Whatever the commits before have set going, it ends.
    let mut before = measure();
    wait_until("the worker has come to rest", SOON, || {
        std::thread::sleep(Duration::from_millis(300));
        let now = measure();
        std::mem::replace(&mut before, now) == before
    });
    let before = measure();
    // Two seconds are the measurement here, not a wait for something.
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(
        measure(),
        before,
        "WAL position and processor time of launcher and worker over two idle seconds"
    );
}

#[test]
fn a_commit_wakes_the_worker_at_once() {
    let db = Database::with_pipeline();
    db.run(&texts::insert_passages());
    db.quiesce();
    let mut latencies: Vec<Duration> = (0..15)
        .map(|number| {
            let start = Instant::now();
            db.run(&format!("INSERT INTO ingest.documents (key, content) VALUES ('late {number}', 'A late text, number {number}.')"));
            while !db.one::<bool>(&format!("SELECT EXISTS (SELECT FROM ingest.default_chunks WHERE document_key = 'late {number}')")) {
                assert!(start.elapsed() < SOON, "nobody woke the worker");
            }
            start.elapsed()
        })
        .collect();
    latencies.sort();
    println!(
        "commit to visible: median {:?}, longest {:?}",
        latencies[7], latencies[14]
    );
    assert!(
        latencies[7] < Duration::from_secs(1),
        "the median is {:?}",
        latencies[7]
    );
}

#[test]
fn several_workers_never_embed_a_document_twice() {
    let cluster = Cluster::start(&[("pg_ingest.workers", "3"), ("pg_ingest.model_threads", "1")]);
    let db = Database::new_in(&cluster);
    db.run("SELECT ingest.create_pipeline()");
    wait_until("three workers run", SOON, || db.worker_pids().len() == 3);
    db.run(
        "CREATE TABLE public.written (document_key text, chunk_no int, pid int DEFAULT pg_backend_pid());
         CREATE FUNCTION public.note() RETURNS trigger LANGUAGE plpgsql AS
             'BEGIN INSERT INTO public.written (document_key, chunk_no) VALUES (NEW.document_key, NEW.chunk_no); RETURN NEW; END';
         CREATE TRIGGER note BEFORE INSERT ON ingest.default_chunks FOR EACH ROW EXECUTE FUNCTION public.note()",
    );
    for part in 0..3 {
        db.run(&format!(
            "INSERT INTO ingest.documents (key, content) SELECT 'k' || n, 'Text number ' || n FROM generate_series({}, {}) n",
            part * 100 + 1,
            part * 100 + 100
        ));
    }
    all_embedded_once(&db, 300);
    assert_eq!(
        db.one::<i64>("SELECT count(*) FROM public.written"),
        300,
        "a document was written twice"
    );
    let shares = db.rows_as_text("SELECT pid, count(*) FROM public.written GROUP BY pid");
    println!("documents by worker: {shares:?}");
    // Fewer are enough from now on, and none is enough for a backlog to wait.
    cluster.reload(&[("pg_ingest.workers", "1")]);
    wait_until("two workers have left", SOON, || {
        db.worker_pids().len() == 1
    });
    cluster.reload(&[("pg_ingest.workers", "0")]);
    wait_until("the last worker has left", SOON, || {
        db.worker_pids().is_empty()
    });
    db.run("INSERT INTO ingest.documents (key, content) VALUES ('late', 'A late text.')");
    assert!(!db.one::<bool>("SELECT ingest.wait(timeout => '0.3 s')"));
    assert_eq!(db.progress().state, "blocked");
    assert!(
        db.progress()
            .last_error
            .is_some_and(|error| error.contains("pg_ingest.workers"))
    );
    cluster.reload(&[("pg_ingest.workers", "2")]);
    all_embedded_once(&db, 301);
}

#[test]
fn only_the_databases_that_are_named_get_workers() {
    let cluster = Cluster::start(&[("pg_ingest.databases", "t9999, \"other\"")]);
    let db = Database::new_in(&cluster);
    db.run("SELECT ingest.create_pipeline()");
    db.run("INSERT INTO ingest.documents (key, content) VALUES ('k', 'A text.')");
    assert!(!db.one::<bool>("SELECT ingest.wait(timeout => '1 s')"));
    assert!(db.worker_pids().is_empty());
    let error = db.expect_error("SELECT ingest.embed('text')");
    assert_eq!(error.code, "55000");
    assert!(error.text().contains("pg_ingest.databases"), "{error:?}");
    cluster.reload(&[("pg_ingest.databases", &format!("other, {}", db.name()))]);
    db.settle();
    assert_eq!(db.progress().counts(), (1, 1, 0, 0));
}

#[test]
fn a_database_that_gets_the_extension_later_gets_its_worker_at_once() {
    let db = Database::empty_in(shared_cluster(&[]));
    // One that has just looked whether it has the extension leaves again.
    let there = format!(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = '{}' AND backend_type LIKE 'pg_ingest%'",
        db.name()
    );
    wait_until("nobody works there", SOON, || db.one::<i64>(&there) == 0);
    db.run("CREATE EXTENSION pg_ingest CASCADE");
    let start = Instant::now();
    db.worker();
    println!("a worker after {:?}", start.elapsed());
    // A CREATE EXTENSION that is rolled back gets none in the end.
    let other = Database::empty_in(shared_cluster(&[]));
    other.run("BEGIN; CREATE EXTENSION pg_ingest CASCADE; ROLLBACK");
    other.run("CREATE EXTENSION vector");
    let workers = format!(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = '{}' AND backend_type LIKE 'pg_ingest%'",
        other.name()
    );
    wait_until("no worker stays", SOON, || other.one::<i64>(&workers) == 0);
}

#[test]
fn a_restarted_server_goes_on() {
    let cluster = Cluster::start(&[]);
    let db = Database::new_in(&cluster);
    db.run("SELECT ingest.create_pipeline()");
    insert_backlog(&db, 300);
    halfway(&db);
    db.disconnect();
    let start = Instant::now();
    cluster.stop_server("fast");
    let took = start.elapsed();
    println!("fast shutdown in {took:?}");
    assert!(
        took < Duration::from_secs(3),
        "a fast shutdown with work in flight took {took:?}"
    );
    cluster.configure(&[("pg_ingest.workers", "0")]);
    cluster.start_server();
    db.reconnect();
    assert!(db.progress().pending > 0, "it waited for the backlog");
    cluster.reload(&[("pg_ingest.workers", "1")]);
    all_embedded_once(&db, 300);
}

#[test]
fn a_smart_shutdown_does_not_wait_for_the_backlog() {
    let cluster = Cluster::start(&[]);
    let db = Database::new_in(&cluster);
    db.run("SELECT ingest.create_pipeline()");
    insert_backlog(&db, 400);
    halfway(&db);
    db.disconnect();
    let start = Instant::now();
    cluster.stop_server("smart");
    println!("smart shutdown in {:?}", start.elapsed());
    cluster.start_server();
    db.reconnect();
    assert!(db.progress().pending > 0, "it waited for all of it");
}

#[test]
fn a_terminated_worker_is_replaced() {
    let db = Database::with_pipeline();
    let first = db.worker();
    insert_backlog(&db, 120);
    halfway(&db);
    assert!(db.one::<bool>(&format!("SELECT pg_terminate_backend({first})")));
    wait_until("another worker runs", SOON, || {
        db.worker_pids().iter().any(|pid| *pid != first)
    });
    all_embedded_once(&db, 120);
    // Cancelling it harms nothing either.
    db.run("INSERT INTO ingest.documents (key, content) SELECT 'c' || n, 'Text ' || n FROM generate_series(1, 30) n");
    db.run(&format!("SELECT pg_cancel_backend({})", db.worker()));
    all_embedded_once(&db, 150);
}

#[test]
fn a_killed_worker_loses_and_doubles_nothing() {
    let cluster = Cluster::start(&[]);
    let db = Database::new_in(&cluster);
    db.run("SELECT ingest.create_pipeline()");
    insert_backlog(&db, 200);
    for _ in 0..2 {
        halfway(&db);
        let worker = db.worker();
        signal(worker, "KILL");
        wait_until("the server has noticed", SOON, || {
            db.try_run("SELECT 1").is_err()
        });
        db.reconnect();
    }
    all_embedded_once(&db, 200);
}

#[test]
fn a_killed_launcher_is_replaced() {
    let cluster = Cluster::start(&[]);
    let db = Database::new_in(&cluster);
    db.run("SELECT ingest.create_pipeline()");
    db.worker();
    let launcher = || -> Option<i32> {
        db.all("SELECT pid FROM pg_stat_activity WHERE backend_type = 'pg_ingest launcher'")
            .pop()
    };
    let first = launcher().expect("a launcher runs");
    db.run(&format!("SELECT pg_terminate_backend({first})"));
    wait_until("another launcher runs", SOON, || {
        launcher().is_some_and(|pid| pid != first)
    });
    let other = Database::new_in(&cluster);
    other.run("SELECT ingest.create_pipeline()");
    for db in [&db, &other] {
        db.run(&texts::insert_passages());
        all_embedded_once(db, 8);
        assert_eq!(db.worker_pids().len(), 1);
    }
}

#[test]
fn the_extension_can_be_dropped_and_made_again_while_it_works() {
    let db = Database::with_pipeline();
    db.worker();
    for round in 0..3 {
        insert_backlog(&db, 60);
        if round > 0 {
            halfway(&db);
        }
        let start = Instant::now();
        db.run("DROP EXTENSION pg_ingest CASCADE");
        println!("dropped in {:?}", start.elapsed());
        let left: Vec<String> = db.all("SELECT relname::text FROM pg_class WHERE relnamespace = 'ingest'::regnamespace AND relkind = 'r'");
        assert_eq!(left, ["default_chunks"], "the chunks are the user's");
        db.run("DROP TABLE ingest.default_chunks");
        db.run("CREATE EXTENSION pg_ingest; SELECT ingest.create_pipeline()");
    }
    db.run(&texts::insert_passages());
    all_embedded_once(&db, 8);
    assert_eq!(db.worker_pids().len(), 1);
    // Gone for good, its worker goes too.
    db.run("DROP EXTENSION pg_ingest CASCADE");
    wait_until("the worker has left", SOON, || {
        db.one::<i64>("SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND backend_type LIKE 'pg_ingest%'") == 0
    });
}

#[test]
fn a_rolled_back_drop_leaves_it_working() {
    let db = Database::with_pipeline();
    db.worker();
    db.run("BEGIN; DROP EXTENSION pg_ingest CASCADE; ROLLBACK");
    db.run(&texts::insert_passages());
    all_embedded_once(&db, 8);
}

#[test]
fn a_database_can_be_dropped_while_its_worker_works() {
    let db = Database::with_pipeline();
    insert_backlog(&db, 200);
    halfway(&db);
    db.disconnect();
    let mut maintenance = db.cluster().client("postgres");
    let start = Instant::now();
    maintenance
        .batch_execute(&format!("DROP DATABASE {}", db.name()))
        .unwrap_or_else(|error| panic!("{}", ServerError::from(error).text()));
    println!("dropped in {:?}", start.elapsed());
    assert!(start.elapsed() < Duration::from_secs(5));
    // The others' workers were not disturbed.
    let other = Database::with_pipeline();
    other.run(&texts::insert_passages());
    all_embedded_once(&other, 8);
}

#[test]
fn a_database_can_be_renamed_and_copied_while_its_worker_works() {
    let mut db = Database::with_pipeline();
    insert_backlog(&db, 100);
    halfway(&db);
    db.disconnect();
    let mut maintenance = db.cluster().client("postgres");
    let renamed = format!("{}_renamed", db.name());
    maintenance
        .batch_execute(&format!("ALTER DATABASE {} RENAME TO {renamed}", db.name()))
        .unwrap_or_else(|error| panic!("{}", ServerError::from(error).text()));
    db.rename(&renamed);
    db.worker();
    assert_eq!(
        db.one::<String>("SELECT database FROM ingest.workers WHERE database = current_database()"),
        renamed
    );
    halfway(&db);
    db.disconnect();
    let copy = format!("{}_copy", db.name());
    maintenance
        .batch_execute(&format!("CREATE DATABASE {copy} TEMPLATE {renamed}"))
        .unwrap_or_else(|error| panic!("{}", ServerError::from(error).text()));
    db.reconnect();
    all_embedded_once(&db, 100);
    // The copy's own backlog is worked off by a worker of its own.
    db.rename(&copy);
    all_embedded_once(&db, 100);
    maintenance
        .batch_execute(&format!("DROP DATABASE {renamed}"))
        .unwrap_or_else(|error| panic!("{}", ServerError::from(error).text()));
}

#[test]
fn a_user_connected_keeps_the_database_and_the_worker() {
    let db = Database::with_pipeline();
    db.worker();
    let mut maintenance = db.cluster().client("postgres");
    let error = maintenance
        .batch_execute(&format!("DROP DATABASE {}", db.name()))
        .expect_err("somebody is connected");
    assert_eq!(ServerError::from(error).code, "55006");
    db.run(&texts::insert_passages());
    all_embedded_once(&db, 8);
}

#[test]
fn a_crash_right_after_the_commit_loses_nothing() {
    let cluster = Cluster::start(&[]);
    let db = Database::new_in(&cluster);
    db.run("SELECT ingest.create_pipeline()");
    db.worker();
    insert_backlog(&db, 40);
    cluster.stop_server("immediate");
    cluster.start_server();
    db.reconnect();
    all_embedded_once(&db, 40);
    db.run("UPDATE ingest.documents SET content = 'Short now: ' || key");
    cluster.stop_server("immediate");
    cluster.start_server();
    db.reconnect();
    all_embedded_once(&db, 40);
    assert_eq!(db.one::<i64>("SELECT count(*) FROM ingest.default_chunks WHERE content <> 'Short now: ' || document_key"), 0);
}

#[test]
fn without_preload_everything_says_what_to_do() {
    let cluster = Cluster::start(&[("shared_preload_libraries", "")]);
    let db = Database::new_in(&cluster);
    db.run("SELECT ingest.create_pipeline()");
    db.run(&texts::insert_passages());
    assert_eq!(db.progress().counts(), (8, 0, 8, 0));
    assert_eq!(db.progress().state, "blocked");
    assert!(
        db.progress()
            .last_error
            .is_some_and(|error| error.contains("shared_preload_libraries"))
    );
    for sql in [
        "SELECT ingest.embed('text')",
        "SELECT * FROM ingest.search('text', 3)",
    ] {
        let error = db.expect_error(sql);
        assert_eq!(error.code, "55000", "{error:?}");
        assert!(
            error
                .hint
                .as_ref()
                .is_some_and(|hint| hint.contains("shared_preload_libraries")),
            "{error:?}"
        );
    }
    let hint: String =
        db.one(r#"SELECT hint FROM ingest.doctor() WHERE "check" = 'preload' AND NOT ok"#);
    assert!(hint.contains("shared_preload_libraries"));
    assert!(!db.one::<bool>("SELECT ingest.wait(timeout => '0.3 s')"));
    assert!(db.rows("SELECT * FROM ingest.workers").is_empty());
    db.run("UPDATE ingest.documents SET content = content || ' More.'; DELETE FROM ingest.documents WHERE key = 'moon.md'");
    assert_eq!(
        db.one::<i64>("SELECT count(*) FROM ingest.split('A text.')"),
        1
    );
    // What the hint says is all that is needed.
    cluster.restart(&[("shared_preload_libraries", "pg_ingest")]);
    db.reconnect();
    all_embedded_once(&db, 7);
}

#[test]
fn a_session_that_keeps_a_document_locked_holds_up_only_that_document() {
    let db = Database::with_pipeline();
    db.run(&texts::insert_passages());
    db.settle();
    let mut locker = db.connect();
    locker
        .batch_execute("BEGIN; UPDATE ingest.documents SET content = content || ' Locked.' WHERE key = 'keys.md'")
        .expect("an open transaction");
    db.run("UPDATE ingest.documents SET content = content || ' More.' WHERE key <> 'keys.md'");
    db.run("INSERT INTO ingest.documents (key, content) VALUES ('new', 'A new text.')");
    db.settle();
    assert_eq!(
        db.one::<i64>("SELECT count(*) FROM ingest.default_chunks WHERE content LIKE '% More.'"),
        7
    );
    locker.batch_execute("COMMIT").expect("COMMIT");
    all_embedded_once(&db, 9);
    assert_eq!(
        db.one::<i64>("SELECT count(*) FROM ingest.default_chunks WHERE content LIKE '% Locked.'"),
        1
    );
    // So does one that locks chunks.
    locker
        .batch_execute(
            "BEGIN; SELECT * FROM ingest.default_chunks WHERE document_key = 'keys.md' FOR UPDATE",
        )
        .expect("an open transaction");
    db.run("UPDATE ingest.documents SET content = content || ' Once more.' WHERE key IN ('keys.md', 'moon.md')");
    wait_until("the other document is embedded", SOON, || {
        db.one("SELECT EXISTS (SELECT FROM ingest.default_chunks WHERE document_key = 'moon.md' AND content LIKE '% Once more.')")
    });
    locker.batch_execute("COMMIT").expect("COMMIT");
    all_embedded_once(&db, 9);
    assert_eq!(
        db.one::<i64>(
            "SELECT count(*) FROM ingest.default_chunks WHERE content LIKE '% Once more.'"
        ),
        2
    );
    assert_eq!(db.rows("SELECT * FROM ingest.failures").len(), 0);
}

#[test]
fn a_locked_target_holds_up_only_its_pipeline() {
    let db = Database::with_pipeline();
    db.run("SELECT ingest.create_pipeline('other')");
    db.worker();
    let mut locker = db.connect();
    locker
        .batch_execute("BEGIN; LOCK TABLE ingest.other_chunks")
        .expect("a lock");
    db.run("INSERT INTO ingest.documents (pipeline, key, content) SELECT 'other', 'o' || n, 'Text ' || n FROM generate_series(1, 5) n");
    for round in 0..3 {
        db.run(&format!(
            "INSERT INTO ingest.documents (key, content) VALUES ('k{round}', 'Text number {round}.')"
        ));
        wait_until("the other pipeline goes on", SOON, || {
            db.progress().embedded == round + 1
        });
    }
    assert_eq!(db.progress_of("other").counts(), (5, 0, 5, 0));
    locker.batch_execute("COMMIT").expect("COMMIT");
    db.settle();
    assert_eq!(db.progress_of("other").counts(), (5, 5, 0, 0));
}

#[test]
fn the_worker_comes_back_when_drop_database_is_given_up() {
    let db = Database::with_pipeline();
    let first = db.worker();
    let mut dropper = db.cluster().client("postgres");
    let pid: i32 = dropper
        .query_one("SELECT pg_backend_pid()", &[])
        .expect("a pid")
        .get(0);
    let drop_database = format!("DROP DATABASE {}", db.name());
    std::thread::scope(|scope| {
        let dropping = scope.spawn(move || dropper.batch_execute(&drop_database));
        wait_until("the worker has made way", SOON, || {
            db.worker_pids().is_empty()
        });
        db.run(&format!("SELECT pg_terminate_backend({pid})"));
        dropping
            .join()
            .expect("the thread ends well")
            .expect_err("it is terminated");
    });
    wait_until("another worker runs", SOON, || {
        db.worker_pids().iter().any(|pid| *pid != first)
    });
    db.run(&texts::insert_passages());
    all_embedded_once(&db, 8);
}

#[test]
fn a_paused_pipeline_with_a_retry_overdue_costs_nothing() {
    let db = Database::with_pipeline();
    db.run("SELECT ingest.create_pipeline('other'); SELECT ingest.pause('default')");
    db.run("INSERT INTO ingest.documents (key, content) VALUES ('k', 'A text.')");
    db.run("UPDATE ingest.queue SET retry_at = now() - interval '1 minute', attempts = 1");
    // This wakes the worker, which finds the overdue one.
    db.run(
        "INSERT INTO ingest.documents (pipeline, key, content) VALUES ('other', 'k', 'A text.')",
    );
    wait_until("the other pipeline is done", SOON, || {
        db.progress_of("other").embedded == 1
    });
    let worker = db.worker();
    let mut before = cpu_ticks(worker);
    // A spinning worker uses a hundred ticks a second; one at rest comes to use none.
    wait_until("the worker comes to rest", SOON, || {
        std::thread::sleep(Duration::from_secs(1));
        let now = cpu_ticks(worker);
        std::mem::replace(&mut before, now) + 2 > now
    });
    db.run("SELECT ingest.resume('default')");
    db.settle();
    assert_eq!(db.progress().counts(), (1, 1, 0, 0));
}

#[test]
fn every_database_is_served_again_after_a_restart() {
    let cluster = Cluster::start(&[]);
    let databases: Vec<Database> = (0..5).map(|_| Database::new_in(&cluster)).collect();
    cluster.restart(&[]);
    for db in &databases {
        db.reconnect();
        db.worker();
    }
}
