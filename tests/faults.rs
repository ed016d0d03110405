//! Promise: only the document at fault fails, and what changes while a request is in flight is never overtaken by its
//! answer.

use std::time::{Duration, Instant};

use fake_api::{Behaviour, FakeApi, Fault, Place};
use harness::remote::{all_embedded, api, behaviour};
use harness::*;

#[test]
fn a_poison_text_fails_alone_after_few_requests() {
    let db = Database::new();
    let api = FakeApi::start(behaviour());
    api.refuse_text("poison");
    db.create_remote_pipeline("p", &api, "max_attempts => 1");
    db.run("SELECT ingest.pause('p')");
    db.insert_prose("p", "d", 200, 5);
    db.run("UPDATE ingest.documents SET content = 'A poison text.' WHERE key = 'd77'");
    db.run("SELECT ingest.resume('p')");
    db.settle();
    assert_eq!(db.progress_of("p").counts(), (200, 199, 0, 1));
    assert_eq!(db.check_vectors("ingest.p_chunks"), 199);
    let rows = db.rows(
        "SELECT key, error_class, http_status, attempts, retryable, message FROM ingest.failures",
    );
    let row = &rows[0];
    assert_eq!(row.get::<_, String>(0), "d77");
    assert_eq!(row.get::<_, String>(1), "invalid_request");
    assert_eq!(row.get::<_, Option<i32>>(2), Some(400));
    assert_eq!((row.get::<_, i32>(3), row.get::<_, bool>(4)), (1, false));
    let message: String = row.get(5);
    assert!(message.contains("'$.input' is invalid"), "{message}");
    // Two for each of the eight halvings, and those that 200 documents take anyway.
    println!("{} requests", api.arrived());
    assert!(api.arrived() <= 16 + 4, "{} requests", api.arrived());
    // Mended, it is embedded.
    db.run("UPDATE ingest.documents SET content = 'A wholesome text.' WHERE key = 'd77'");
    all_embedded(&db, "p", 200);
    // One bad chunk is its whole document's failure, of which nothing is stored.
    db.run("SELECT ingest.alter_pipeline('p', chunk_tokens => 20)");
    db.settle();
    db.run(
        "INSERT INTO ingest.documents (pipeline, key, content)
         SELECT 'p', 'long' || n, string_agg(CASE WHEN n = 2 AND w = 150 THEN 'poison' ELSE 'word' || w END, ' ')
         FROM generate_series(1, 3) n, generate_series(1, 300) w GROUP BY n",
    );
    db.settle();
    assert_eq!(db.progress_of("p").counts(), (203, 202, 0, 1));
    assert_eq!(
        db.all::<String>("SELECT key FROM ingest.failures"),
        ["long2"]
    );
    assert_eq!(
        db.all::<String>("SELECT DISTINCT document_key FROM ingest.p_chunks WHERE document_key LIKE 'long%' ORDER BY 1"),
        ["long1", "long3"]
    );
}

#[test]
fn a_poison_text_is_found_in_a_logarithm_of_requests() {
    let db = Database::new();
    for documents in [16_usize, 128, 512] {
        let api = FakeApi::start(behaviour());
        api.refuse_text("poison");
        let name = format!("p{documents}");
        db.create_remote_pipeline(&name, &api, "max_attempts => 1");
        db.run(&format!("SELECT ingest.pause('{name}')"));
        db.insert_prose(&name, "d", documents, 5);
        db.run(&format!(
            "UPDATE ingest.documents SET content = 'A poison text.' WHERE pipeline = '{name}' AND key = 'd{}';
             SELECT ingest.resume('{name}')",
            documents / 3
        ));
        db.settle();
        let all = documents as i64;
        assert_eq!(db.progress_of(&name).counts(), (all, all - 1, 0, 1));
        // Of each refused request one half is refused again; how many there are of the others is up to the splitters.
        let requests = api.requests();
        let refused = requests.iter().filter(|r| r.status == Some(400)).count();
        let halvings = documents.ilog2() as usize;
        println!(
            "{documents} documents: {refused} of {} requests refused for {halvings} halvings",
            requests.len()
        );
        assert!(
            (1..=halvings + 1).contains(&refused),
            "{refused} requests refused for one of {documents} documents"
        );
    }
}

#[test]
fn a_text_that_is_too_long_for_the_provider_fails_alone() {
    let db = Database::new();
    let api = FakeApi::start(Behaviour {
        max_input_tokens: 60,
        ..behaviour()
    });
    db.create_remote_pipeline("p", &api, "");
    db.run("SELECT ingest.pause('p')");
    db.insert_prose("p", "d", 50, 5);
    db.insert_prose("p", "long", 1, 100);
    db.run("SELECT ingest.resume('p')");
    db.settle();
    assert_eq!(db.progress_of("p").counts(), (51, 50, 0, 1));
    let row = &db
        .rows("SELECT key, error_class, http_status, retryable, message FROM ingest.failures")[0];
    assert_eq!(row.get::<_, String>(0), "long1");
    assert_eq!(row.get::<_, String>(1), "too_large");
    assert_eq!(row.get::<_, Option<i32>>(2), Some(400));
    assert!(!row.get::<_, bool>(3));
    let message: String = row.get(4);
    assert!(
        message.contains("maximum context length is 60"),
        "{message}"
    );
    // Split smaller, it goes through.
    db.run("SELECT ingest.alter_pipeline('p', chunk_tokens => 50)");
    all_embedded(&db, "p", 51);
}

#[test]
fn a_request_that_is_too_large_as_a_whole_is_halved() {
    let db = Database::new();
    for (name, change) in [
        (
            "inputs",
            (|b: &mut Behaviour| b.max_inputs = 16) as fn(&mut Behaviour),
        ),
        ("tokens", |b: &mut Behaviour| b.max_request_tokens = 200),
    ] {
        let api = FakeApi::start(behaviour());
        api.change(change);
        db.create_remote_pipeline(name, &api, "max_attempts => 1");
        db.run(&format!("SELECT ingest.pause('{name}')"));
        db.insert_prose(name, "d", 100, 5);
        db.run(&format!("SELECT ingest.resume('{name}')"));
        all_embedded(&db, name, 100);
    }
}

/// Notes every content that a target is given, whether or not it stays.
fn note_what_is_stored(db: &Database, table: &str) {
    db.run(&format!(
        "CREATE TABLE IF NOT EXISTS public.stored (content text);
         CREATE OR REPLACE FUNCTION public.note() RETURNS trigger LANGUAGE plpgsql AS
             'BEGIN INSERT INTO public.stored VALUES (NEW.content); RETURN NEW; END';
         CREATE TRIGGER note BEFORE INSERT ON {table} FOR EACH ROW EXECUTE FUNCTION public.note()"
    ));
}

#[test]
fn an_answer_for_an_old_content_is_thrown_away() {
    let db = Database::new();
    let api = api();
    db.create_remote_pipeline("p", &api, "batch_size => 1, concurrency => 20");
    note_what_is_stored(&db, "ingest.p_chunks");
    api.hold_answers();
    db.run(
        "INSERT INTO ingest.documents (pipeline, key, content)
         SELECT 'p', k, 'Old text of ' || k FROM unnest(ARRAY['changed', 'deleted', 'moved', 'twice', 'kept']) k",
    );
    wait_until("all are in flight", SOON, || api.in_flight() == 5);
    db.run(
        "UPDATE ingest.documents SET content = 'New text.' WHERE key = 'changed';
         DELETE FROM ingest.documents WHERE key = 'deleted';
         UPDATE ingest.documents SET key = 'elsewhere' WHERE key = 'moved';
         UPDATE ingest.documents SET content = 'Second text.' WHERE key = 'twice'",
    );
    wait_until("the new contents are in flight, too", SOON, || {
        api.in_flight() >= 7
    });
    db.run("UPDATE ingest.documents SET content = 'Third text.' WHERE key = 'twice'");
    api.release_answers();
    all_embedded(&db, "p", 4);
    db.quiesce();
    let contents: Vec<String> =
        db.all("SELECT document_key || ': ' || content FROM ingest.p_chunks ORDER BY 1");
    assert_eq!(
        contents,
        [
            "changed: New text.",
            "elsewhere: Old text of moved",
            "kept: Old text of kept",
            "twice: Third text."
        ]
    );
    let ever: Vec<String> = db.all("SELECT DISTINCT content FROM public.stored ORDER BY 1");
    for old in [
        "Old text of changed",
        "Old text of deleted",
        "Old text of twice",
        "Second text.",
    ] {
        assert!(
            !ever.iter().any(|content| content == old),
            "{old} was stored"
        );
    }
}

#[test]
fn a_refusal_that_comes_after_its_pipeline_was_dropped_leaves_nothing() {
    let db = Database::new();
    let api = FakeApi::start(behaviour());
    api.on_request(|_| Some(Fault::rate_limited(Duration::from_secs(1))));
    db.create_remote_pipeline("p", &api, "batch_size => 2, concurrency => 3");
    api.hold_answers();
    db.insert_prose("p", "d", 30, 5);
    wait_until("requests are in flight", SOON, || api.in_flight() == 3);
    db.run("SELECT ingest.drop_pipeline('p', drop_target => true)");
    api.release_answers();
    wait_until("the worker holds nothing", SOON, || {
        db.one("SELECT bool_and(in_flight_documents = 0 AND in_flight_requests = 0) FROM ingest.workers WHERE database = current_database()")
    });
}

#[test]
fn a_pipeline_dropped_with_requests_in_flight_leaves_nothing() {
    let db = Database::new();
    let api = FakeApi::start(behaviour());
    db.create_remote_pipeline("stays", &api, "");
    db.create_remote_pipeline("p", &api, "batch_size => 2, concurrency => 3");
    let worker = db.worker();
    api.hold_answers();
    db.insert_prose("p", "d", 30, 5);
    wait_until("requests are in flight", SOON, || api.in_flight() == 3);
    let start = Instant::now();
    db.run("SELECT ingest.drop_pipeline('p', drop_target => true)");
    assert!(
        start.elapsed() < Duration::from_secs(5),
        "it waited for the network"
    );
    // One of the same name is another one: the answers for the old one's documents are not its own.
    db.create_remote_pipeline("p", &api, "batch_size => 2, concurrency => 3");
    note_what_is_stored(&db, "ingest.p_chunks");
    db.run("INSERT INTO ingest.documents (pipeline, key, content) SELECT 'p', 'd' || n, 'New ' || n FROM generate_series(1, 6) n");
    wait_until("its requests are in flight", SOON, || api.in_flight() == 6);
    api.release_answers();
    all_embedded(&db, "p", 6);
    db.insert_prose("stays", "d", 5, 5);
    all_embedded(&db, "stays", 5);
    db.quiesce();
    assert_eq!(
        db.one::<i64>("SELECT count(*) FROM public.stored WHERE content NOT LIKE 'New%'"),
        0
    );
    db.run("SELECT ingest.drop_pipeline('p', drop_target => true)");
    wait_until("the worker holds nothing", SOON, || {
        db.one("SELECT bool_and(in_flight_documents = 0 AND in_flight_requests = 0) FROM ingest.workers WHERE database = current_database()")
    });
    for table in ["queue", "counter", "counter_delta"] {
        let left = format!(
            "SELECT count(*) FROM ingest.{table} t WHERE NOT EXISTS (SELECT FROM ingest.pipeline p WHERE p.pipeline_id = t.pipeline_id)"
        );
        assert_eq!(db.one::<i64>(&left), 0, "{table}");
    }
    for table in ["documents", "failures"] {
        let left = format!("SELECT count(*) FROM ingest.{table} WHERE pipeline = 'p'");
        assert_eq!(db.one::<i64>(&left), 0, "{table}");
    }
    assert!(db.one::<bool>("SELECT to_regclass('ingest.p_chunks') IS NULL"));
    assert_eq!(db.worker(), worker, "the worker was restarted");
}

#[test]
fn a_paused_pipeline_finishes_what_is_in_flight_and_sends_no_more() {
    let db = Database::new();
    let api = FakeApi::start(behaviour());
    db.create_remote_pipeline("p", &api, "batch_size => 1, concurrency => 2");
    api.hold_answers();
    db.insert_prose("p", "d", 2, 5);
    wait_until("two are in flight", SOON, || api.in_flight() == 2);
    db.run("SELECT ingest.pause('p')");
    db.insert_prose("p", "e", 5, 5);
    api.release_answers();
    wait_until("they are embedded", SOON, || {
        db.progress_of("p").embedded == 2
    });
    assert_eq!(db.progress_of("p").state, "paused");
    assert_eq!(api.arrived(), 2);
    db.run("SELECT ingest.resume('p')");
    all_embedded(&db, "p", 7);
}

#[test]
fn no_transaction_is_open_while_the_provider_is_waited_for() {
    let db = Database::new();
    let api = FakeApi::start(behaviour());
    db.create_remote_pipeline("p", &api, "batch_size => 2, concurrency => 3");
    api.hold_answers();
    db.insert_prose("p", "d", 20, 5);
    wait_until("requests are in flight", SOON, || api.in_flight() == 3);
    let worker = db.worker();
    wait_until("the worker has no transaction and no lock", SOON, || {
        db.one(&format!(
            "SELECT xact_start IS NULL AND backend_xid IS NULL AND backend_xmin IS NULL
                    AND NOT EXISTS (SELECT FROM pg_locks WHERE pid = {worker} AND locktype IN ('relation', 'tuple', 'transactionid'))
             FROM pg_stat_activity WHERE pid = {worker}"
        ))
    });
    assert_eq!(api.in_flight(), 3);
    // Whoever changes documents and tables waits for nobody.
    db.run("SET lock_timeout = '5s'");
    db.run("UPDATE ingest.documents SET content = content || '!'; ALTER TABLE ingest.p_chunks ADD COLUMN note text");
    db.run("DELETE FROM ingest.documents WHERE key = 'd1'");
    db.run("VACUUM FULL ingest.documents");
    api.release_answers();
    all_embedded(&db, "p", 19);
}

/// Whether something took no longer than it may that waits for no answer.
#[track_caller]
fn swiftly(what: &str, action: impl FnOnce()) {
    let start = Instant::now();
    action();
    let took = start.elapsed();
    println!("{what}: {took:?}");
    assert!(took < Duration::from_secs(5), "{what} took {took:?}");
}

#[test]
fn nothing_waits_for_a_provider_that_hangs() {
    let cluster = Cluster::start(&[]);
    let api = FakeApi::start(behaviour());
    api.on_request(|_| Some(Fault::Hang(Place::BeforeAnswer)));
    let busy = |documents| {
        let db = Database::new_in(&cluster);
        api.reset();
        let before = api.in_flight();
        db.create_remote_pipeline("p", &api, "batch_size => 1, concurrency => 4");
        db.insert_prose("p", "d", documents, 5);
        wait_until("requests hang", SOON, || api.in_flight() >= before + 4);
        db
    };
    let [first, second, third] = [busy(20), busy(20), busy(20)];
    swiftly("DROP EXTENSION", || {
        first.run("DROP EXTENSION pg_ingest CASCADE")
    });
    second.disconnect();
    swiftly("DROP DATABASE", || {
        let sql = format!("DROP DATABASE {}", second.name());
        let dropped = cluster.client("postgres").batch_execute(&sql);
        dropped.unwrap_or_else(|error| panic!("{}", ServerError::from(error).text()));
    });
    let worker = third.worker();
    swiftly("the end of a worker", || {
        third.run(&format!("SELECT pg_terminate_backend({worker})"));
        wait_until("another worker runs", SOON, || {
            third.worker_pids().iter().any(|pid| *pid != worker)
        });
    });
    first.disconnect();
    third.disconnect();
    swiftly("a fast shutdown", || cluster.stop_server("fast"));
    api.clear_faults();
    cluster.start_server();
    third.reconnect();
    all_embedded(&third, "p", 20);
}
