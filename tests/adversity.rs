//! Promise: a target that is full, locked, changed or gone stops its pipeline, visibly, and loses nothing: no document, no
//! attempt, and hardly a paid call. One that refuses a row fails that document alone, and says which rule refused it.

use fake_api::FakeApi;
use harness::*;

/// A pipeline `docs` of this API that writes `public.docs`, in requests of `batch` texts.
fn pipeline(api: &FakeApi, batch: usize, more: &str) -> Database<'static> {
    let db = Database::new();
    let more = format!("target => 'public.docs', index => 'none', batch_size => {batch}{more}");
    db.create_remote_pipeline("docs", api, &more);
    db
}

fn blocked(db: &Database, words: &str) {
    let mut error = None;
    wait_until("the pipeline is blocked", SOON, || {
        let progress = db.progress_of("docs");
        error = progress.last_error;
        progress.state == "blocked"
    });
    let error = error.expect("a blocked pipeline says why");
    assert!(error.contains(words), "{error}");
}

/// Has a blocked pipeline tried again as if its wait were over.
fn wait_is_over(db: &Database) {
    db.run("UPDATE ingest.pipeline SET blocked_until = clock_timestamp() WHERE blocked_until > clock_timestamp(); SELECT ingest.wake()");
}

/// The same, and waits until that was in vain.
fn tried_in_vain(db: &Database, words: &str) {
    let times = || db.one::<i32>("SELECT blocked_times FROM ingest.pipeline WHERE name = 'docs'");
    let before = times();
    wait_is_over(db);
    wait_until("it was tried again", SOON, || times() > before);
    blocked(db, words);
}

/// A pipeline that has been blocked, and nothing of which has failed.
fn nothing_has_failed(db: &Database) {
    assert_eq!(db.rows_as_text("SELECT * FROM ingest.failures"), [""; 0]);
    assert_eq!(
        db.one::<i64>("SELECT count(*) FROM ingest.queue WHERE attempts > 0"),
        0
    );
}

#[test]
fn a_full_disk_blocks_loses_nothing_and_is_not_paid_for() {
    let api = remote::api();
    let db = pipeline(&api, 8, ", concurrency => 4");
    db.insert_prose("docs", "before", 20, 30);
    remote::all_embedded(&db, "docs", 20);
    db.run(
        "CREATE TABLE public.disk (used boolean); INSERT INTO public.disk VALUES (true);
         CREATE FUNCTION public.extend() RETURNS trigger LANGUAGE plpgsql AS $$
         BEGIN
             IF EXISTS (SELECT FROM public.disk) THEN
                 RAISE EXCEPTION 'could not extend file \"base/5/16384\": No space left on device' USING ERRCODE = 'disk_full';
             END IF;
             RETURN NEW;
         END $$;
         CREATE TRIGGER extend BEFORE INSERT ON public.docs FOR EACH ROW EXECUTE FUNCTION public.extend()",
    );
    db.insert_prose("docs", "after", 300, 30);
    blocked(&db, "No space left");
    let first = api.arrived();
    for _ in 0..10 {
        tried_in_vain(&db, "No space left");
    }
    let (tries, repeated) = (api.arrived() - first, api.repeated_inputs());
    println!(
        "sent before the block {first} requests, in 10 tries {tries}; texts sent again {repeated}"
    );
    nothing_has_failed(&db);
    assert_eq!(db.progress_of("docs").counts(), (320, 20, 300, 0));
    let doctor: Vec<String> =
        db.all(r#"SELECT detail FROM ingest.doctor() WHERE NOT ok AND "check" = 'state of docs'"#);
    assert!(
        doctor.len() == 1 && doctor[0].contains("No space left"),
        "{doctor:?}"
    );
    db.run("TRUNCATE public.disk");
    wait_is_over(&db);
    remote::all_embedded(&db, "docs", 320);
    nothing_has_failed(&db);
    println!("texts sent again in all: {}", api.repeated_inputs());
    assert_eq!(api.repeated_inputs(), 0);
}

#[test]
fn a_row_that_the_target_refuses_fails_its_document_alone_and_says_why() {
    let api = remote::api();
    let db = pipeline(&api, 100, ", max_attempts => 1");
    db.run(
        "ALTER TABLE public.docs
             ADD CONSTRAINT no_forbidden_word CHECK (content NOT LIKE '%forbidden%'),
             ADD COLUMN language text GENERATED ALWAYS AS (coalesce(metadata ->> 'language', 'en')) STORED,
             ADD COLUMN author text GENERATED ALWAYS AS (CASE WHEN metadata ? 'anonymous' THEN NULL ELSE 'somebody' END) STORED NOT NULL,
             ADD CONSTRAINT one_of_each EXCLUDE USING hash ((metadata ->> 'only') WITH =) WHERE (metadata ? 'only');
         CREATE UNIQUE INDEX one_number ON public.docs ((metadata ->> 'number'));
         CREATE FUNCTION public.censor() RETURNS trigger LANGUAGE plpgsql AS $$
         BEGIN
             IF NEW.content LIKE '%secret%' THEN
                 RAISE EXCEPTION 'document % is secret', NEW.document_key USING ERRCODE = 'raise_exception';
             END IF;
             RETURN NEW;
         END $$;
         CREATE TRIGGER censor BEFORE INSERT ON public.docs FOR EACH ROW EXECUTE FUNCTION public.censor()",
    );
    // They come back in one answer and are written in one transaction.
    db.run("SELECT ingest.pause('docs')");
    db.insert_prose("docs", "good", 40, 20);
    db.run(
        r#"INSERT INTO ingest.documents (pipeline, key, content, metadata) VALUES
             ('docs', 'check', 'A forbidden text.', '{}'),
             ('docs', 'not null', 'A text by nobody.', '{"anonymous": true}'),
             ('docs', 'trigger', 'A secret text.', '{}'),
             ('docs', 'unique 1', 'A text with a number.', '{"number": 1}'),
             ('docs', 'unique 2', 'Another text with a number.', '{"number": 1}'),
             ('docs', 'exclusion 1', 'An only text.', '{"only": "a"}'),
             ('docs', 'exclusion 2', 'Another only text.', '{"only": "a"}')"#,
    );
    db.insert_prose("docs", "late", 40, 20);
    db.run("SELECT ingest.resume('docs')");
    remote::all_embedded_but(&db, "docs", 87, 5);
    assert_eq!(api.repeated_inputs(), 0, "neighbours were sent again");
    let said = |key: &str| -> (String, String, i32) {
        let rows = db.rows(&format!(
            "SELECT error_class, message, attempts FROM ingest.failures WHERE key LIKE '{key}%'"
        ));
        assert_eq!(rows.len(), 1, "{key}");
        (rows[0].get(0), rows[0].get(1), rows[0].get(2))
    };
    for (key, words) in [
        ("check", "no_forbidden_word"),
        ("not null", r#""author""#),
        ("trigger", "document trigger is secret"),
        ("unique", "one_number"),
        ("exclusion", "one_of_each"),
    ] {
        let (class, message, attempts) = said(key);
        println!("{key}: {message}");
        assert_eq!((class.as_str(), attempts), ("internal", 1), "{message}");
        assert!(message.contains(words), "{message}");
    }
}

#[test]
fn a_refused_row_is_paid_once_for_each_attempt_and_its_neighbours_once() {
    let api = remote::api();
    let db = pipeline(&api, 100, ", max_attempts => 3");
    db.run("ALTER TABLE public.docs ADD CHECK (content NOT LIKE '%forbidden%'); SELECT ingest.pause('docs')");
    db.insert_prose("docs", "good", 20, 20);
    db.run("INSERT INTO ingest.documents (pipeline, key, content) VALUES ('docs', 'bad', 'A forbidden text.'); SELECT ingest.resume('docs')");
    remote::all_embedded_but(&db, "docs", 21, 1);
    assert_eq!(api.times_sent("A forbidden text."), 3);
    assert_eq!(api.repeated_inputs(), 2, "neighbours were sent again");
    assert_eq!(db.one::<i32>("SELECT attempts FROM ingest.failures"), 3);
}

#[test]
fn a_changed_target_blocks_until_it_is_as_before() {
    let api = remote::api();
    let db = pipeline(&api, 8, "");
    db.insert_prose("docs", "first", 4, 20);
    remote::all_embedded(&db, "docs", 4);
    let mut documents = 4;
    for (change, words, undo) in [
        (
            "ALTER TABLE public.docs RENAME content TO body",
            "content",
            "ALTER TABLE public.docs RENAME body TO content",
        ),
        (
            "ALTER TABLE public.docs DROP COLUMN metadata",
            "metadata",
            "ALTER TABLE public.docs ADD COLUMN metadata jsonb NOT NULL DEFAULT '{}'",
        ),
        (
            "ALTER TABLE public.docs DROP COLUMN tokens",
            "tokens",
            "ALTER TABLE public.docs ADD COLUMN tokens int NOT NULL DEFAULT 30",
        ),
        (
            "ALTER TABLE public.docs ALTER COLUMN tokens TYPE text",
            "text",
            "ALTER TABLE public.docs ALTER COLUMN tokens TYPE int USING tokens::int",
        ),
        (
            "ALTER TABLE public.docs ALTER COLUMN content TYPE bytea USING convert_to(content, 'UTF8')",
            "content",
            "ALTER TABLE public.docs ALTER COLUMN content TYPE text USING convert_from(content, 'UTF8')",
        ),
        (
            "TRUNCATE public.docs; ALTER TABLE public.docs ALTER COLUMN embedding TYPE vector(3)",
            "dimensions",
            "ALTER TABLE public.docs ALTER COLUMN embedding TYPE vector(1536)",
        ),
    ] {
        db.run(change);
        let before = api.distinct_inputs();
        db.insert_prose("docs", change, 20, 20);
        blocked(&db, words);
        for _ in 0..3 {
            tried_in_vain(&db, words);
        }
        nothing_has_failed(&db);
        println!(
            "{change}: {:?}; sent {} texts, {} again",
            db.progress_of("docs").last_error,
            api.distinct_inputs() - before,
            api.repeated_inputs()
        );
        documents += 20;
        db.run(undo);
        wait_is_over(&db);
        assert!(
            db.one::<bool>("SELECT ingest.wait('docs', timeout => '60 s')"),
            "{change}"
        );
        assert_eq!(
            db.progress_of("docs").counts(),
            (documents, documents, 0, 0),
            "{change}"
        );
        db.check_vectors("public.docs");
        println!("{} again", api.repeated_inputs());
    }
    assert_eq!(api.repeated_inputs(), 0);
}

#[test]
fn a_target_renamed_or_dropped_on_the_way_loses_nothing() {
    let api = remote::api();
    let db = pipeline(&api, 4, ", concurrency => 2");
    api.hold_answers();
    db.insert_prose("docs", "d", 16, 20);
    wait_until("requests are being answered", SOON, || api.in_flight() == 2);
    db.run("CREATE SCHEMA moved; ALTER TABLE public.docs RENAME TO papers; ALTER TABLE public.papers SET SCHEMA moved");
    api.release_answers();
    remote::all_embedded(&db, "docs", 16);
    assert_eq!(db.check_vectors("moved.papers"), 16);
    assert_eq!(api.repeated_inputs(), 0);
    // Dropped, it is not made again by itself; nothing fails, and the documents are all there for another pipeline.
    api.hold_answers();
    db.insert_prose("docs", "e", 16, 20);
    wait_until("requests are being answered", SOON, || api.in_flight() == 2);
    db.run("DROP TABLE moved.papers");
    api.release_answers();
    blocked(&db, "target");
    nothing_has_failed(&db);
    assert_eq!(db.progress_of("docs").counts(), (32, 16, 16, 0));
    db.create_remote_pipeline("next", &api, "");
    db.run("UPDATE ingest.documents SET pipeline = 'next'");
    remote::all_embedded(&db, "next", 32);
    assert_eq!(db.progress_of("docs").counts(), (0, 0, 0, 0));
}

#[test]
fn a_target_locked_for_long_holds_up_nobody_else_and_nothing_is_sent_twice() {
    let api = remote::api();
    let db = pipeline(&api, 8, "");
    db.create_remote_pipeline("other", &api, "batch_size => 8");
    let mut locker = db.connect();
    locker
        .batch_execute("BEGIN; LOCK TABLE public.docs IN ACCESS EXCLUSIVE MODE")
        .expect("a lock");
    db.insert_prose("docs", "d", 200, 20);
    for round in 1..=10 {
        db.insert_prose("other", &format!("o{round} "), 5, 20);
        wait_until("the other pipeline goes on", SOON, || {
            db.progress_of("other").embedded == 5 * round
        });
    }
    let progress = db.progress_of("docs");
    assert_eq!(progress.counts(), (200, 0, 200, 0));
    println!("while it is locked: {progress:?}");
    assert!(db.one::<bool>("SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE backend_type LIKE 'pg_ingest%' AND datname = current_database() AND xact_start < now() - interval '5 s')"));
    locker.batch_execute("COMMIT").expect("COMMIT");
    remote::all_embedded(&db, "docs", 200);
    remote::all_embedded(&db, "other", 50);
    assert_eq!(api.repeated_inputs(), 0);
    nothing_has_failed(&db);
}

#[test]
fn what_is_said_of_one_document_as_of_a_full_disk_harms_only_it() {
    let db = Database::new();
    let api = harness::remote::api();
    db.create_remote_pipeline("p", &api, "max_attempts => 2, batch_size => 1");
    db.run(
        "CREATE FUNCTION public.dislike() RETURNS trigger LANGUAGE plpgsql AS $$
         BEGIN RAISE 'no memory for this' USING ERRCODE = 'out_of_memory'; END $$;
         CREATE TRIGGER dislike BEFORE INSERT ON ingest.p_chunks FOR EACH ROW
         WHEN (NEW.content LIKE '%hemlock%') EXECUTE FUNCTION public.dislike();
         INSERT INTO ingest.documents (pipeline, key, content) VALUES ('p', 'bad', 'hemlock')",
    );
    db.until_blocked("p");
    db.insert_prose("p", "d", 5, 5);
    // What a person would do; by itself it goes on after 10 seconds.
    let failed = "SELECT count(*) FROM ingest.failures WHERE key = 'bad' AND attempts = 2";
    wait_until("it fails", 2 * SOON, || {
        db.run("SELECT ingest.resume('p')");
        std::thread::sleep(std::time::Duration::from_millis(300));
        db.one::<i64>(failed) == 1
    });
    db.settle();
    assert_eq!(db.progress_of("p").counts(), (6, 5, 0, 1));
    db.check_vectors("ingest.p_chunks");
}

#[test]
fn an_internal_error_of_the_target_that_passes_costs_nothing() {
    let db = Database::new();
    let api = remote::api();
    db.create_remote_pipeline("p", &api, "max_attempts => 1");
    // As Postgres says while indexes are rebuilt: of the whole, of a half, of a document alone; and then no more.
    db.run(
        "CREATE SEQUENCE public.times; GRANT USAGE ON SEQUENCE public.times TO PUBLIC;
         CREATE FUNCTION public.stumble() RETURNS trigger LANGUAGE plpgsql AS $$
         BEGIN
             IF NEW.content LIKE '%always%' OR nextval('public.times') <= 5 THEN
                 RAISE 'no valid index found for toast relation with Oid 1' USING ERRCODE = 'internal_error';
             END IF;
             RETURN NEW;
         END $$;
         CREATE TRIGGER stumble BEFORE INSERT ON ingest.p_chunks FOR EACH ROW EXECUTE FUNCTION public.stumble()",
    );
    db.insert_prose("p", "d", 4, 5);
    remote::all_embedded(&db, "p", 4);
    assert!(db.one::<i64>("SELECT last_value FROM public.times") > 5);
    assert_eq!(api.repeated_inputs(), 0);
    assert_eq!(db.rows("SELECT * FROM ingest.failures").len(), 0);
    // One that does not pass is the document's.
    db.run("INSERT INTO ingest.documents (pipeline, key, content) VALUES ('p', 'bad', 'It always stumbles.')");
    db.settle();
    assert_eq!(db.progress_of("p").counts(), (5, 4, 0, 1));
    assert_eq!(
        db.all::<String>("SELECT key || ' ' || error_class FROM ingest.failures"),
        ["bad internal"]
    );
}

#[test]
fn a_chunk_that_somebody_has_locked_keeps_only_its_document_waiting() {
    const DOCUMENTS: usize = 600;
    let api = remote::api();
    // In requests so large that all come back together, and are written together.
    let db = pipeline(&api, 2000, "");
    db.insert_prose("docs", "d", DOCUMENTS, 5);
    remote::all_embedded(&db, "docs", DOCUMENTS);
    api.hold_answers();
    db.run("UPDATE ingest.documents SET content = 'Changed: ' || content");
    wait_until("they are asked for", SOON, || api.in_flight() > 0);
    let mut other = db.connect();
    other
        .batch_execute("BEGIN; SELECT FROM public.docs ORDER BY id LIMIT 1 FOR UPDATE")
        .expect("a row is locked");
    api.release_answers();
    wait_until("all others are written", SOON, || {
        db.progress_of("docs").embedded == DOCUMENTS as i64 - 1
    });
    drop(other);
    remote::all_embedded(&db, "docs", DOCUMENTS);
    nothing_has_failed(&db);
}
