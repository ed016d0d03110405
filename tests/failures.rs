//! Promise: a bad document harms only itself, a bad model or target harms only its pipeline and fails no document, and
//! `ingest.failures` says what happened and whether it is worth another try.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use harness::*;

/// The cluster of this file: small documents only, and models in a directory that tests may spoil.
fn cluster() -> &'static Cluster {
    let cluster = shared_cluster(&[
        ("pg_ingest.max_document_size", "64kB"),
        ("pg_ingest.model_dir", "{home}/models"),
    ]);
    static LINKED: std::sync::Once = std::sync::Once::new();
    LINKED.call_once(|| {
        provide_model(cluster, "all-MiniLM-L6-v2");
    });
    cluster
}

/// A model directory of this name with links to the installed files.
fn provide_model(cluster: &Cluster, name: &str) -> PathBuf {
    let directory = cluster.home().join("models").join(name);
    fs::create_dir_all(&directory).expect("a directory");
    let installed = Cluster::installed_models().join("all-MiniLM-L6-v2");
    for file in
        fs::read_dir(&installed).unwrap_or_else(|error| panic!("{}: {error}", installed.display()))
    {
        let file = file.expect("a file of the model");
        symlink(file.path(), directory.join(file.file_name())).expect("a link");
    }
    directory
}

fn database() -> Database<'static> {
    let db = Database::new_in(cluster());
    db.run("SELECT ingest.create_pipeline()");
    db
}

/// `(key, error_class, retryable)` of all failures, and their messages.
fn failures(db: &Database) -> (Vec<(String, String, bool)>, Vec<String>) {
    db.rows("SELECT key, error_class, retryable, message FROM ingest.failures ORDER BY key")
        .iter()
        .map(|row| ((row.get(0), row.get(1), row.get(2)), row.get(3)))
        .unzip()
}

fn invalid(key: &str) -> (String, String, bool) {
    (key.into(), "invalid_request".into(), false)
}

#[test]
fn a_bad_document_harms_only_itself() {
    let db = database();
    db.run(&texts::insert_passages());
    db.run(
        "INSERT INTO ingest.documents (key, content) VALUES
             ('0-null', NULL), ('1-empty', ''), ('2-blank', E' \\t\\n\\u00a0\\u3000 '), ('3-large', repeat('word ', 14000)),
             ('4-good', 'A good text after them all.')",
    );
    db.settle();
    let (rows, messages) = failures(&db);
    assert_eq!(
        rows,
        [
            invalid("0-null"),
            invalid("1-empty"),
            invalid("2-blank"),
            ("3-large".into(), "too_large".into(), false)
        ]
    );
    assert!(messages[0].contains("null"), "{messages:?}");
    assert!(
        messages[3].contains("70000") && messages[3].contains("max_document_size"),
        "{messages:?}"
    );
    assert_eq!(db.progress().counts(), (13, 9, 0, 4));
    assert_eq!(db.progress().state, "idle");
    assert_eq!(db.progress().percent, 69.2);
    assert!(db.progress().last_error.is_some());
    let details = db.rows("SELECT pipeline, document_id = (SELECT id FROM ingest.documents d WHERE d.key = f.key), attempts, first_failed_at <= last_failed_at, http_status FROM ingest.failures f");
    for row in details {
        assert_eq!(row.get::<_, String>(0), "default");
        assert!(row.get::<_, bool>(1));
        assert_eq!(row.get::<_, i32>(2), 1);
        assert!(row.get::<_, bool>(3));
        assert_eq!(row.get::<_, Option<i32>>(4), None);
    }
}

#[test]
fn fifty_megabytes_are_one_failure_row() {
    let db = database();
    db.run("INSERT INTO ingest.documents (key, content) VALUES ('huge', repeat('0123456789', 5000000)), ('small', 'A small text.')");
    db.settle();
    assert_eq!(
        failures(&db).0,
        [("huge".into(), "too_large".into(), false)]
    );
    assert_eq!(db.progress().counts(), (2, 1, 0, 1));
}

#[test]
fn strange_text_is_embedded_like_any_other() {
    let db = database();
    let strange = [
        ("emoji", "👩‍👩‍👧‍👦🏳️‍🌈".repeat(50)),
        ("one word", "x".repeat(60_000)),
        ("controls", "a\u{1}b\u{7f}c\u{feff}d\u{200b}".to_owned()),
        ("right to left", "مرحبا بالعالم ".repeat(100)),
        (
            "chinese",
            "人人生而自由,在尊严和权利上一律平等。".repeat(100),
        ),
        ("unassigned", "\u{10ffff}\u{e000}".repeat(100)),
        ("punctuation", "!?;:—…".repeat(1000)),
        ("combining", format!("e{}", "\u{301}".repeat(5000))),
    ];
    for (key, text) in &strange {
        db.execute(
            "INSERT INTO ingest.documents (key, content) VALUES ($1, $2)",
            &[key, text],
        );
    }
    db.settle();
    // Some have no token that means anything: then they are failures of their own. None may hang or harm the others.
    let (rows, messages) = failures(&db);
    assert!(
        rows.iter()
            .all(|(_, class, retryable)| class == "invalid_request" && !retryable),
        "{rows:?} {messages:?}"
    );
    let progress = db.progress();
    assert_eq!(progress.embedded + progress.failed, strange.len() as i64);
    assert!(progress.failed <= 2, "{rows:?} {messages:?}");
    assert_eq!(db.worker_pids().len(), 1);
}

#[test]
fn files_that_are_no_text_fail_alone() {
    let db = database();
    let directory = db.cluster().directory(
        &format!("files-{}", db.name()),
        &[
            ("good.md", b"# Lanterns\n\nA text about lanterns."),
            (
                "latin1.txt",
                b"Der B\xe4r geht \xfcber die Stra\xdfe und schl\xe4ft.",
            ),
            ("empty.txt", b""),
        ],
    );
    let load = format!(
        "SELECT ingest.load_files({})",
        quoted(&directory.to_string_lossy())
    );
    assert_eq!(db.one::<i64>(&load), 3);
    db.settle();
    let (rows, messages) = failures(&db);
    assert_eq!(rows, [invalid("empty.txt"), invalid("latin1.txt")]);
    assert!(messages[1].contains("UTF-8"), "{messages:?}");
    assert_eq!(db.progress().counts(), (3, 1, 0, 2));
    // Loaded again as it is, it stays one failure; mended, it is embedded.
    assert_eq!(db.one::<i64>(&load), 3);
    db.settle();
    assert_eq!(db.progress().counts(), (3, 1, 0, 2));
    fs::write(
        directory.join("latin1.txt"),
        "Der Bär geht über die Straße und schläft.",
    )
    .expect("a file");
    assert_eq!(db.one::<i64>(&load), 3);
    db.settle();
    assert_eq!(failures(&db).0, [invalid("empty.txt")]);
    assert_eq!(db.progress().counts(), (3, 2, 0, 1));
    // And spoiled again, its old chunks serve until it is mended.
    fs::write(directory.join("latin1.txt"), b"Der B\xe4r.").expect("a file");
    db.run(&load);
    db.settle();
    assert_eq!(db.progress().counts(), (3, 1, 0, 2));
    assert_eq!(
        db.one::<i64>(
            "SELECT count(*) FROM ingest.default_chunks WHERE document_key = 'latin1.txt'"
        ),
        1
    );
}

const TARGET: &str = "CREATE TABLE public.docs (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, document_key text NOT NULL, chunk_no int NOT NULL,
    content text NOT NULL CHECK (content NOT LIKE '%forbidden%'), tokens int NOT NULL,
    metadata jsonb NOT NULL, embedding vector(384) NOT NULL, UNIQUE (document_key, chunk_no))";

#[test]
fn a_document_that_the_target_refuses_fails_alone() {
    let db = database();
    db.run(TARGET);
    db.run("SELECT ingest.create_pipeline('picky', target => 'public.docs', max_attempts => 1)");
    db.run(
        "INSERT INTO ingest.documents (pipeline, key, content)
         SELECT 'picky', 'k' || n, CASE n WHEN 7 THEN 'A forbidden text.' ELSE 'Text number ' || n END FROM generate_series(1, 20) n",
    );
    db.settle();
    assert_eq!(db.one::<i64>("SELECT count(*) FROM public.docs"), 19);
    let (rows, messages) = failures(&db);
    assert_eq!(rows, [("k7".into(), "internal".into(), true)]);
    assert!(messages[0].contains("docs_content_check"), "{messages:?}");
    assert_eq!(db.progress_of("picky").counts(), (20, 19, 0, 1));
    db.run("ALTER TABLE public.docs DROP CONSTRAINT docs_content_check");
    assert_eq!(db.one::<i64>("SELECT ingest.retry('picky')"), 1);
    db.settle();
    assert_eq!(db.progress_of("picky").counts(), (20, 20, 0, 0));
}

#[test]
fn a_refused_document_is_tried_again_later_by_itself() {
    let db = database();
    db.run(TARGET);
    db.run("SELECT ingest.create_pipeline('picky', target => 'public.docs', max_attempts => 10)");
    db.run("INSERT INTO ingest.documents (pipeline, key, content) VALUES ('picky', 'k', 'A forbidden text.')");
    wait_until("an attempt has failed", SOON, || {
        db.one(
            "SELECT EXISTS (SELECT FROM ingest.queue WHERE attempts > 0 AND retry_at IS NOT NULL)",
        )
    });
    assert_eq!(db.progress_of("picky").counts(), (1, 0, 1, 0));
    db.run("ALTER TABLE public.docs DROP CONSTRAINT docs_content_check");
    wait_until("it is embedded", SOON, || {
        db.progress_of("picky").embedded == 1
    });
    assert_eq!(db.rows("SELECT * FROM ingest.failures").len(), 0);
}

#[test]
fn a_dropped_target_blocks_its_pipeline_and_fails_nothing() {
    let db = database();
    db.run("SELECT ingest.create_pipeline('doomed')");
    db.run("INSERT INTO ingest.documents (pipeline, key, content) VALUES ('doomed', 'before', 'A text.')");
    db.settle();
    db.run("DROP TABLE ingest.doomed_chunks");
    db.run("INSERT INTO ingest.documents (pipeline, key, content) SELECT 'doomed', 'k' || n, 'Text ' || n FROM generate_series(1, 5) n");
    db.until_blocked("doomed");
    wait_until("its documents are given back", SOON, || {
        db.progress_of("doomed").in_flight == 0
    });
    let progress = db.progress_of("doomed");
    assert_eq!(progress.counts(), (6, 1, 5, 0));
    assert!(
        progress
            .last_error
            .as_ref()
            .is_some_and(|error| error.contains("target")),
        "{progress:?}"
    );
    db.run(&texts::insert_passages());
    wait_until("the other pipeline goes on", SOON, || {
        db.progress().embedded == 8
    });
    assert!(
        db.one::<bool>(r#"SELECT NOT ok AND hint IS NOT NULL FROM ingest.doctor() WHERE "check" = 'target of doomed'"#),
        "the doctor says so"
    );
    assert_eq!(
        db.expect_error("SELECT * FROM ingest.search('text', 1, 'doomed')")
            .code,
        "42P01"
    );
    // Documents can still be changed and deleted, and the pipeline dropped.
    db.run("UPDATE ingest.documents SET metadata = '{\"a\": 1}' WHERE pipeline = 'doomed'");
    db.run("DELETE FROM ingest.documents WHERE key = 'k1'");
    assert_eq!(db.progress_of("doomed").counts(), (5, 1, 4, 0));
    db.run("SELECT ingest.drop_pipeline('doomed', drop_target => true)");
    assert_eq!(
        db.all::<String>("SELECT pipeline FROM ingest.progress"),
        ["default"]
    );
}

#[test]
fn a_missing_model_blocks_its_pipeline_until_it_is_back() {
    let db = database();
    let model = provide_model(db.cluster(), &format!("spare-{}", db.name()));
    let name = model
        .file_name()
        .expect("a name")
        .to_string_lossy()
        .into_owned();
    db.run(&format!(
        "SELECT ingest.create_pipeline('spare', model => 'local/{name}')"
    ));
    let hidden = model.with_file_name(format!("{name}-away"));
    fs::rename(&model, &hidden).expect("a rename");
    db.run("INSERT INTO ingest.documents (pipeline, key, content) VALUES ('spare', 'a', 'A text.'), ('spare', 'b', 'Another.')");
    blocked(&db, "spare", &model);
    db.run(&texts::insert_passages());
    wait_until("the other pipeline goes on", SOON, || {
        db.progress().embedded == 8
    });
    let embed = db.expect_error("SELECT ingest.embed('a question', 'spare')");
    assert!(embed.text().contains(&name), "{embed:?}");
    let doctor = db.rows(
        r#"SELECT detail, hint FROM ingest.doctor() WHERE NOT ok AND "check" = 'model of spare'"#,
    );
    assert_eq!(doctor.len(), 1);
    fs::rename(&hidden, &model).expect("a rename");
    db.run("SELECT ingest.resume('spare')");
    db.settle();
    assert_eq!(db.progress_of("spare").counts(), (2, 2, 0, 0));
    assert_eq!(db.progress_of("spare").last_error, None);
}

#[test]
fn a_corrupt_model_blocks_its_pipeline_and_kills_nobody() {
    let db = database();
    let model = provide_model(db.cluster(), &format!("spoiled-{}", db.name()));
    let name = model
        .file_name()
        .expect("a name")
        .to_string_lossy()
        .into_owned();
    db.run(&format!(
        "SELECT ingest.create_pipeline('spoiled', model => 'local/{name}')"
    ));
    let worker = db.worker();
    let file = model.join("model.onnx");
    let whole = fs::read(&file).expect("the model");
    for (spoiled, what) in [
        (whole[..whole.len() / 2].to_vec(), "half"),
        (b"This is no model.".to_vec(), "text"),
        (Vec::new(), "empty"),
        (
            whole
                .iter()
                .enumerate()
                .map(|(at, byte)| if at % 997 == 0 { !byte } else { *byte })
                .collect(),
            "noise",
        ),
    ] {
        fs::remove_file(&file).expect("a link goes");
        fs::write(&file, &spoiled).expect("a file");
        let created = db.try_run(&format!(
            "SELECT ingest.create_pipeline('late-{what}', model => 'local/{name}')"
        ));
        // Noise in the weights alone makes a model that loads.
        if what != "noise" {
            let error = created.expect_err("a corrupt model is refused");
            assert_eq!(error.code, "58P01", "{what}: {error:?}");
            assert!(error.text().contains("model.onnx"), "{what}: {error:?}");
            db.run(&format!("INSERT INTO ingest.documents (pipeline, key, content) VALUES ('spoiled', '{what}', 'A text.')"));
            db.run("SELECT ingest.resume('spoiled')");
            blocked(&db, "spoiled", &model);
        }
    }
    fs::write(&file, &whole).expect("a file");
    db.run("SELECT ingest.resume('spoiled')");
    db.settle();
    assert_eq!(db.progress_of("spoiled").counts(), (3, 3, 0, 0));
    assert_eq!(db.worker(), worker, "the worker was restarted");
}

fn blocked(db: &Database, pipeline: &str, model: &Path) {
    let progress = db.until_blocked(pipeline);
    assert_eq!(progress.failed, 0);
    let message = progress.last_error.expect("a blocked pipeline says why");
    let name = model
        .file_name()
        .expect("a name")
        .to_string_lossy()
        .into_owned();
    assert!(message.contains(&name), "{message}");
}

#[test]
fn retry_chooses_by_pipeline_key_and_class() {
    let db = database();
    db.run("SELECT ingest.create_pipeline('other')");
    db.run(
        "INSERT INTO ingest.documents (pipeline, key, content) VALUES
             ('default', 'a', ''), ('default', 'b', ''), ('default', 'large', repeat('word ', 14000)), ('other', 'a', '')",
    );
    db.settle();
    let first: String = db.one("SELECT min(first_failed_at)::text FROM ingest.failures");
    assert_eq!(db.progress().failed + db.progress_of("other").failed, 4);
    for (call, expected) in [
        ("ingest.retry('other')", 1),
        ("ingest.retry(key => 'a')", 2),
        ("ingest.retry('default', 'a')", 1),
        ("ingest.retry(error_class => 'too_large')", 1),
        ("ingest.retry('other', error_class => 'too_large')", 0),
        ("ingest.retry(key => 'nothing')", 0),
        ("ingest.retry()", 4),
    ] {
        assert_eq!(db.one::<i64>(&format!("SELECT {call}")), expected, "{call}");
        db.settle();
        assert_eq!(
            db.progress().failed + db.progress_of("other").failed,
            4,
            "{call}"
        );
    }
    assert_eq!(
        db.one::<String>("SELECT min(first_failed_at)::text FROM ingest.failures"),
        first
    );
    assert!(db.one::<bool>("SELECT attempts = 4 AND last_failed_at > first_failed_at FROM ingest.failures WHERE pipeline = 'default' AND key = 'a'"));
    assert_eq!(
        db.expect_error("SELECT ingest.retry('nowhere')").code,
        "42704"
    );
    let class = db.expect_error("SELECT ingest.retry(error_class => 'bad')");
    assert_eq!(class.code, "22023");
    assert!(class.hint.is_some_and(|hint| hint.contains("too_large")));
}

#[test]
fn while_it_is_tried_again_a_failure_is_pending() {
    let db = database();
    db.run("INSERT INTO ingest.documents (key, content) VALUES ('a', ''), ('b', '')");
    db.settle();
    db.run("SELECT ingest.pause('default')");
    assert_eq!(db.one::<i64>("SELECT ingest.retry(key => 'a')"), 1);
    assert_eq!(
        db.one::<i64>("SELECT ingest.retry(key => 'a')"),
        0,
        "it is queued already"
    );
    assert_eq!(db.progress().counts(), (2, 0, 1, 1));
    // Deleted or changed meanwhile, it is counted once.
    db.run("DELETE FROM ingest.documents WHERE key = 'a'");
    assert_eq!(db.progress().counts(), (1, 0, 0, 1));
    db.run("SELECT ingest.retry()");
    db.run("UPDATE ingest.documents SET content = 'Good now.' WHERE key = 'b'");
    assert_eq!(db.progress().counts(), (1, 0, 1, 0));
    db.run("SELECT ingest.resume('default')");
    db.settle();
    assert_eq!(db.progress().counts(), (1, 1, 0, 0));
    assert_eq!(db.rows("SELECT * FROM ingest.failures").len(), 0);
}

#[test]
fn a_mended_document_is_no_failure_any_more() {
    let db = database();
    db.run("INSERT INTO ingest.documents (key, content) VALUES ('a', NULL)");
    db.settle();
    assert_eq!(db.progress().counts(), (1, 0, 0, 1));
    db.run("UPDATE ingest.documents SET content = 'Now it says something.' WHERE key = 'a'");
    db.settle();
    assert_eq!(db.progress().counts(), (1, 1, 0, 0));
    assert_eq!(db.rows("SELECT * FROM ingest.failures").len(), 0);
    assert_eq!(db.progress().last_error, None);
}

#[test]
fn old_chunks_serve_while_the_new_content_fails() {
    let db = database();
    db.run("INSERT INTO ingest.documents (key, content) VALUES ('a', 'Lanterns light the harbour at night.')");
    db.settle();
    db.run("UPDATE ingest.documents SET content = '   ' WHERE key = 'a'");
    db.settle();
    assert_eq!(db.progress().counts(), (1, 0, 0, 1));
    assert_eq!(
        db.one::<String>("SELECT content FROM ingest.search('harbour lights', 1)"),
        "Lanterns light the harbour at night."
    );
    assert_eq!(db.progress().chunks, 1);
}

#[test]
fn what_is_too_large_to_be_embedded_is_not_estimated_either() {
    let db = database();
    db.run("SELECT ingest.pause('default'); INSERT INTO ingest.documents (content) VALUES (repeat('word ', 14000)), ('A text.')");
    assert_eq!(
        db.all::<String>("SELECT concat_ws(' ', documents, chunks) FROM ingest.estimate()"),
        ["2 1"]
    );
}
