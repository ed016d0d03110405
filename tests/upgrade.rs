//! Promise: a database with an earlier release's SQL goes on working under this release's library, says that it wants
//! `ALTER EXTENSION pg_ingest UPDATE`, and is afterwards the same as one that was made anew.

use std::collections::BTreeMap;

use harness::*;

const OBJECTS: &str = include_str!("upgrade/objects.sql");
const DATA_0_1_0: &str = include_str!("upgrade/data-0.1.0.sql");

/// The releases whose SQL is kept.
const RELEASES: [&str; 1] = ["0.1.0"];

/// What the extension is made of: properties by object and name.
type Objects = BTreeMap<(String, String), String>;

fn objects(db: &Database) -> Objects {
    db.run("SET search_path = pg_catalog");
    db.rows(OBJECTS)
        .iter()
        .map(|row| {
            (
                (row.get(0), row.get(1)),
                row.get::<_, Option<String>>(2).unwrap_or_default(),
            )
        })
        .collect()
}

/// What is not the same, as whoever writes the upgrade script wants to read it.
fn differences(fresh: &Objects, upgraded: &Objects) -> Vec<String> {
    let mut keys: Vec<_> = fresh.keys().chain(upgraded.keys()).collect();
    keys.sort();
    keys.dedup();
    let of = |side: &Objects, key| {
        side.get(key)
            .cloned()
            .unwrap_or_else(|| "(not there)".into())
    };
    keys.into_iter()
        .filter(|key| fresh.get(key) != upgraded.get(key))
        .map(|key| {
            let (object, property) = key;
            format!(
                "{object}, {property}:\n  fresh:    {}\n  upgraded: {}",
                of(fresh, key),
                of(upgraded, key)
            )
        })
        .collect()
}

fn update(db: &Database) {
    db.run("ALTER EXTENSION pg_ingest UPDATE");
}

#[test]
fn an_updated_database_is_the_same_as_a_new_one() {
    let fresh = objects(&Database::new());
    assert!(
        fresh.len() > 300,
        "the query finds what there is: {}",
        fresh.len()
    );
    for release in RELEASES {
        let db = Database::of_release(release);
        update(&db);
        let found = differences(&fresh, &objects(&db));
        assert!(
            found.is_empty(),
            "{} differences after ALTER EXTENSION pg_ingest UPDATE from {release}; the script in sql/upgrade has to see to them:\n\n{}",
            found.len(),
            found.join("\n\n")
        );
    }
}

#[test]
fn every_difference_is_seen() {
    let db = Database::new();
    let fresh = objects(&db);
    for (change, object) in [
        (
            "ALTER TABLE ingest.documents ADD COLUMN more text",
            "table ingest.documents",
        ),
        (
            "ALTER TABLE ingest.queue ALTER COLUMN bytes TYPE bigint",
            "table ingest.queue",
        ),
        (
            "ALTER TABLE ingest.queue ALTER COLUMN attempts SET DEFAULT 1",
            "table ingest.queue",
        ),
        (
            "ALTER TABLE ingest.queue ALTER COLUMN bytes DROP NOT NULL",
            "table ingest.queue",
        ),
        (
            "ALTER TABLE ingest.failures ADD CHECK (attempts > 0)",
            "table ingest.failures",
        ),
        (
            "ALTER TABLE ingest.documents DISABLE ROW LEVEL SECURITY",
            "table ingest.documents",
        ),
        (
            "ALTER TABLE ingest.queue RESET (autovacuum_vacuum_threshold)",
            "table ingest.queue",
        ),
        (
            "CREATE POLICY p ON ingest.documents USING (true)",
            "table ingest.documents",
        ),
        ("DROP INDEX ingest.queue_delayed", "table ingest.queue"),
        (
            "ALTER TABLE ingest.documents DISABLE TRIGGER documents_updated",
            "table ingest.documents",
        ),
        (
            "GRANT TRIGGER ON ingest.documents TO PUBLIC",
            "table ingest.documents",
        ),
        (
            "GRANT EXECUTE ON FUNCTION ingest.remove_pipeline(int) TO PUBLIC",
            "function ingest.remove_pipeline(integer)",
        ),
        (
            "ALTER FUNCTION ingest.wake() STABLE",
            "function ingest.wake()",
        ),
        (
            "ALTER FUNCTION ingest.pause(text) RESET search_path",
            "function ingest.pause(text)",
        ),
        (
            "ALTER FUNCTION ingest.target_of(text) SECURITY INVOKER",
            "function ingest.target_of(text)",
        ),
        (
            "ALTER VIEW ingest.workers RESET (security_barrier)",
            "view ingest.workers",
        ),
        (
            "CREATE OR REPLACE VIEW ingest.totals AS SELECT * FROM ingest.counter",
            "view ingest.totals",
        ),
        (
            "COMMENT ON COLUMN ingest.workers.state IS 'another'",
            "column state of view ingest.workers",
        ),
        (
            "ALTER EXTENSION pg_ingest DROP TABLE ingest.queue",
            "table ingest.queue",
        ),
        (
            "UPDATE pg_extension SET extcondition[1] = 'WHERE false' WHERE extname = 'pg_ingest'",
            "extension",
        ),
        ("GRANT USAGE ON SCHEMA ingest TO PUBLIC", "schema ingest"),
    ] {
        db.run(&format!("BEGIN; {change}"));
        let found = differences(&fresh, &objects(&db));
        db.run("ROLLBACK");
        assert!(
            found
                .iter()
                .any(|difference| difference.starts_with(&format!("{object},"))),
            "{change}: not seen in {found:?}"
        );
    }
    assert_eq!(differences(&fresh, &objects(&db)), Vec::<String>::new());
}

/// A C function keeps its name in the library only as long as it takes and returns the same: the SQL of an earlier release
/// may be calling it.
#[test]
fn the_library_understands_the_calls_of_earlier_releases() {
    let functions = |db: &Database| -> BTreeMap<String, String> {
        db.rows(
            "SELECT p.prosrc, format('(%s) RETURNS %s', pg_get_function_identity_arguments(p.oid), pg_get_function_result(p.oid))
             FROM pg_proc p WHERE p.pronamespace = 'ingest'::regnamespace AND p.probin LIKE '%pg_ingest%'",
        )
        .iter()
        .map(|row| (row.get(0), row.get(1)))
        .collect()
    };
    let now = functions(&Database::new());
    for release in RELEASES {
        // That it can be made at all says that the library has every function of it.
        for (name, call) in functions(&Database::of_release(release)) {
            let other = now.get(&name).filter(|known| **known != call);
            assert!(
                other.is_none(),
                "{name} is {call} in {release} and {} now: give the new function another name in Rust, and leave one of the old name \
                 and without arguments that says ALTER EXTENSION pg_ingest UPDATE",
                other.unwrap()
            );
        }
    }
}

#[test]
fn what_was_under_way_in_0_1_0_goes_on_by_itself_after_the_update() {
    // A cluster of its own, for its log.
    let cluster = Cluster::start(&[]);
    let db = Database::empty_in(&cluster);
    db.run("CREATE EXTENSION pg_ingest VERSION '0.1.0' CASCADE");
    db.run(DATA_0_1_0);
    wait_until("the worker says what it waits for", SOON, || {
        db.all::<String>("SELECT state FROM ingest.workers WHERE database = current_database()")
            == ["needs_update"]
    });
    let problem = db.progress().last_error.expect("why it is blocked");
    assert!(
        problem.contains("0.1.0") && problem.contains("ALTER EXTENSION pg_ingest UPDATE"),
        "{problem}"
    );
    assert_eq!(db.progress().state, "blocked");
    assert_eq!(
        db.all::<String>("SELECT hint FROM ingest.doctor() WHERE \"check\" = 'version' AND NOT ok"),
        [
            "ALTER EXTENSION pg_ingest UPDATE; and restart the server if it still runs the old library."
        ]
    );
    let refused = db
        .try_run("SELECT ingest.embed('a text')")
        .expect_err("nobody embeds");
    assert_eq!(refused.code, "55000");
    assert!(
        refused.text().contains("ALTER EXTENSION pg_ingest UPDATE"),
        "{}",
        refused.text()
    );
    // Documents are taken as ever.
    db.run("INSERT INTO ingest.documents (key, content) VALUES ('new', 'A text that came before the update.')");
    assert_eq!(db.progress().counts(), (6, 1, 4, 1));

    update(&db);
    db.settle();
    assert_eq!(db.progress().counts(), (6, 4, 0, 2));
    // What was embedded is left as it is.
    assert_eq!(
        db.one::<f32>(
            "SELECT (embedding::real[])[1] FROM ingest.default_chunks WHERE document_key = 'done'"
        ),
        1.0
    );
    assert_eq!(
        db.all::<String>("SELECT document_key FROM ingest.default_chunks ORDER BY 1"),
        ["done", "in flight", "new", "waits"]
    );
    assert_eq!(
        db.rows_as_text("SELECT key, attempts FROM ingest.failures ORDER BY key"),
        [
            r#"{"key": "again", "attempts": 2}"#,
            r#"{"key": "failed", "attempts": 1}"#
        ]
    );
    assert_eq!(
        db.one::<String>("SELECT key FROM ingest.search('how do I rotate a key?', 1)"),
        "waits"
    );
    assert!(db.one::<bool>("SELECT bool_and(ok) FROM ingest.doctor()"));
    db.run("UPDATE ingest.documents SET content = 'Another text.' WHERE key = 'done'; DELETE FROM ingest.documents WHERE key = 'waits'");
    db.settle();
    assert_eq!(
        db.all::<String>(
            "SELECT content FROM ingest.default_chunks WHERE document_key IN ('done', 'waits')"
        ),
        ["Another text."]
    );
    // It waited quietly.
    let log = cluster.log_tail("LOG:");
    assert_eq!(
        log.matches("has the SQL of pg_ingest 0.1.0").count(),
        1,
        "{log}"
    );
    assert!(
        !cluster
            .log_tail("")
            .contains("pg_ingest: the worker cannot start")
    );
}

#[test]
fn a_database_that_waits_for_its_update_can_be_dropped_and_keeps_nobody_waiting() {
    let cluster = Cluster::start(&[]);
    let waiting: Vec<Database> = (0..3)
        .map(|_| {
            let db = Database::empty_in(&cluster);
            db.run("CREATE EXTENSION pg_ingest VERSION '0.1.0' CASCADE");
            db
        })
        .collect();
    let served = Database::new_in(&cluster);
    served.worker();
    wait_until("the others wait", SOON, || {
        served.one::<i64>("SELECT count(*) FROM ingest.workers WHERE state = 'needs_update'") == 3
    });
    cluster.restart(&[]);
    served.reconnect();
    served.worker();
    waiting[0].reconnect();
    waiting[0].run("DROP EXTENSION pg_ingest");
    waiting[1].disconnect();
    served.run(&format!("DROP DATABASE {}", waiting[1].name()));
    wait_until("one waits", SOON, || {
        served.one::<i64>("SELECT count(*) FROM ingest.workers WHERE state = 'needs_update'") == 1
    });
}
