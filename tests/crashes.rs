//! Whatever dies, and wherever on a document's way: nothing is lost, stale or double, only what was in flight is sent again,
//! and a document that kills the worker is set aside.

use std::sync::Arc;
use std::sync::atomic::{AtomicI32, AtomicUsize, Ordering};
use std::time::Duration;

use fake_api::{FakeApi, Fault, Place};
use harness::remote::{all_embedded, api, behaviour};
use harness::torture::{kills, seed};
use harness::*;

#[test]
fn a_death_at_any_point_loses_and_doubles_nothing() {
    println!("{}", kills(seed().unwrap_or(16), 16));
}

/// A pipeline whose target kills whoever writes a chunk with the word `hemlock`.
fn deadly_pipeline(db: &Database, api: &FakeApi, more: &str) {
    db.create_remote_pipeline("p", api, more);
    db.run(
        "CREATE FUNCTION public.deadly() RETURNS trigger LANGUAGE plpgsql AS $$
         BEGIN
             EXECUTE format('COPY (SELECT 1) TO PROGRAM %L', 'kill -s KILL ' || pg_backend_pid());
             RETURN NULL;
         END $$;
         CREATE TRIGGER deadly AFTER INSERT ON ingest.p_chunks FOR EACH ROW
         WHEN (NEW.content LIKE '%hemlock%') EXECUTE FUNCTION public.deadly()",
    );
}

/// Waits over any number of crashes.
fn settled(db: &Database) {
    wait_until("all has settled", Duration::from_secs(120), || {
        let pending = db
            .try_one::<i64>("SELECT pending + in_flight FROM ingest.progress WHERE pipeline = 'p'");
        if pending.is_err() {
            db.reconnect();
        }
        pending.is_ok_and(|pending| pending == 0)
    });
}

#[test]
fn a_document_that_kills_the_worker_is_set_aside_and_harms_no_other() {
    let cluster = Cluster::start(&[]);
    let api = api();
    let db = Database::new_in(&cluster);
    deadly_pipeline(&db, &api, "max_attempts => 3");
    db.run("SELECT ingest.pause('p')");
    db.insert_prose("p", "d", 100, 20);
    db.run(
        "UPDATE ingest.documents SET content = 'hemlock: ' || content WHERE key = 'd40';
         SELECT ingest.resume('p')",
    );
    settled(&db);
    let failures = db.rows_as_text(
        "SELECT key, error_class, http_status, attempts, retryable, message FROM ingest.failures",
    );
    assert_eq!(failures.len(), 1, "{failures:?}");
    println!("{failures:?}");
    assert!(
        failures[0].contains("the worker process died 3 times while it worked on this document"),
        "{failures:?}"
    );
    assert_eq!(
        db.one::<String>(
            "SELECT concat_ws(' ', key, error_class, attempts, retryable) FROM ingest.failures"
        ),
        "d40 internal 3 f"
    );
    assert_eq!(db.progress_of("p").counts(), (100, 99, 0, 1));
    assert_eq!(db.check_vectors("ingest.p_chunks") as i64, 99);
    let log = cluster.log_tail("is set aside");
    assert!(log.contains("of pipeline \"p\" is set aside"), "{log}");
    // Changed, it is like any other.
    db.run("UPDATE ingest.documents SET content = 'a harmless herb' WHERE key = 'd40'");
    all_embedded(&db, "p", 100);
}

#[test]
fn a_death_that_is_no_documents_fault_is_laid_to_none() {
    let cluster = Cluster::start(&[]);
    let api = FakeApi::start(behaviour());
    let db = Database::new_in(&cluster);
    db.create_remote_pipeline("p", &api, "max_attempts => 1, concurrency => 30");
    // Another process crashes, the server is stopped at once, and the worker is killed while it waits for answers.
    for round in 0..3 {
        api.hold_answers();
        db.insert_prose("p", &format!("r{round}-"), 30, 10);
        wait_until("all is in flight, and nothing is worked on", SOON, || {
            api.requests()
                .iter()
                .map(|request| request.inputs)
                .sum::<usize>()
                >= 30
        });
        match round {
            0 => signal(db.one::<i32>("SELECT pg_backend_pid()"), "KILL"),
            1 => {
                cluster.stop_server("immediate");
                cluster.start_server();
            }
            _ => signal(db.worker(), "KILL"),
        }
        wait_until("the server has noticed", SOON, || {
            db.try_run("SELECT 1").is_err()
        });
        let mut suspects = None;
        wait_until("the server is there again, with its worker", SOON, || {
            let seen = db.try_one::<i64>(
                "SELECT count(*) FROM ingest.queue WHERE crashes > 0
                 HAVING EXISTS (SELECT FROM ingest.workers WHERE state = 'running')",
            );
            if seen.as_ref().is_err_and(|error| error.code.is_empty()) {
                db.reconnect();
            }
            suspects = seen.ok();
            suspects.is_some()
        });
        assert_eq!(suspects, Some(0), "round {round}");
        api.release_answers();
        settled(&db);
        api.reset();
    }
    all_embedded(&db, "p", 90);
}

#[test]
fn a_document_of_which_the_worker_dies_while_it_waits_is_found_too() {
    let cluster = Cluster::start(&[]);
    let api = api();
    let db = Database::new_in(&cluster);
    db.create_remote_pipeline("p", &api, "max_attempts => 2, batch_size => 4");
    db.insert_prose("p", "d", 20, 10);
    all_embedded(&db, "p", 20);
    // Whenever the API sees the word, the worker dies: of what, nobody can tell from within.
    let worker = Arc::new(AtomicI32::new(0));
    let deaths = Arc::new(AtomicUsize::new(0));
    {
        let (worker, deaths) = (Arc::clone(&worker), Arc::clone(&deaths));
        api.on_request(move |request| {
            let deadly = request.texts.iter().any(|text| text.contains("hemlock"));
            let pid = if deadly {
                worker.swap(0, Ordering::SeqCst)
            } else {
                0
            };
            if pid != 0 {
                deaths.fetch_add(1, Ordering::SeqCst);
                signal(pid, "KILL");
            }
            deadly.then_some(Fault::Hang(Place::BeforeAnswer))
        });
    }
    db.run(
        "INSERT INTO ingest.documents (pipeline, key, content) VALUES ('p', 'bad', 'hemlock'), ('p', 'good', 'parsley')",
    );
    let mut known = 0;
    let present = "SELECT min(pid) FROM ingest.workers WHERE database = current_database()";
    wait_until("it is set aside", Duration::from_secs(180), || {
        match db.try_one::<Option<i32>>(present) {
            Err(_) => db.reconnect(),
            Ok(Some(pid)) if pid != known => {
                known = pid;
                worker.store(pid, Ordering::SeqCst);
            }
            Ok(_) => {}
        }
        db.try_one::<i64>("SELECT count(*) FROM ingest.failures WHERE key = 'bad'")
            .is_ok_and(|failed| failed == 1)
    });
    settled(&db);
    println!("set aside after {} deaths", deaths.load(Ordering::SeqCst));
    assert_eq!(db.progress_of("p").counts(), (22, 21, 0, 1));
}

#[test]
fn a_pipeline_that_is_dropped_while_a_document_is_split_leaves_nothing_behind() {
    let cluster = Cluster::start_injecting(&[]);
    let api = FakeApi::start(behaviour());
    let db = Database::new_in(&cluster);
    db.create_remote_pipeline("p", &api, "");
    // So that there is a lane.
    db.insert_prose("p", "first", 1, 10);
    all_embedded(&db, "p", 1);
    db.run("SELECT ingest.inject('after_split', 'wait')");
    db.insert_prose("p", "d", 1, 10);
    wait_until("it is being split", SOON, || {
        db.one::<i64>("SELECT ingest.waiting_at('after_split')") == 1
    });
    db.run("SELECT ingest.drop_pipeline('p'); SELECT ingest.create_pipeline('other', on_success => 'keep')");
    let held = "SELECT in_flight_documents FROM ingest.workers WHERE database = current_database()";
    // The worker has seen the definitions when it takes a document of the other pipeline.
    db.run(
        "INSERT INTO ingest.documents (pipeline, key, content) VALUES ('other', 'x', 'A text.')",
    );
    wait_until("the other is taken", SOON, || db.one::<i32>(held) == 2);
    db.run("SELECT ingest.inject('after_split', 'pass')");
    wait_until("nothing is held", SOON, || db.one::<i32>(held) == 0);
}
