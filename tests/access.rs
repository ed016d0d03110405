//! Promise: one GRANT is all that a role needs, and it sees and adds documents only in pipelines that it owns or was granted.

use std::io::Write;

use harness::roles::{Role, another, column, forbidden, pipeline_owner, refused, role, run};
use harness::*;

/// Two roles, each with a pipeline of its own with two documents, one of them a failure. The second's documents speak of a
/// secret.
struct Neighbours<'d> {
    our: postgres::Client,
    their: postgres::Client,
    ours: Role<'d>,
    _theirs: Role<'d>,
}

impl<'d> Neighbours<'d> {
    fn new(db: &'d Database<'d>) -> Self {
        let (ours, mut our) = role(db);
        let (theirs, mut their) = another(db, "neighbour");
        run(&mut our, "SELECT ingest.create_pipeline('ours')");
        run(&mut their, "SELECT ingest.create_pipeline('theirs')");
        for (client, pipeline, text) in [
            (&mut our, "ours", "a text"),
            (&mut their, "theirs", "a secret"),
        ] {
            run(
                client,
                &format!(
                    "INSERT INTO ingest.documents (pipeline, key, content) VALUES
                         ('{pipeline}', '{pipeline} good', '{text}'), ('{pipeline}', '{pipeline} bad', '')"
                ),
            );
        }
        db.settle();
        Self {
            our,
            their,
            ours,
            _theirs: theirs,
        }
    }
}

const EVERY_VIEW: [(&str, &str); 4] = [
    ("ingest.documents", "pipeline"),
    ("ingest.failures", "pipeline"),
    ("ingest.progress", "pipeline"),
    ("ingest.pipelines", "name"),
];

#[test]
fn the_quickstart_needs_one_grant() {
    let db = Database::new();
    let (owner, mut client) = another(&db, "newcomer");
    run(
        &mut client,
        "SELECT ingest.create_pipeline();
         INSERT INTO ingest.documents (key, content) VALUES
             ('a.md', 'Rotate an API key: make a new one, deploy it, then revoke the old one.'), ('b.md', '')",
    );
    run(&mut client, "SELECT ingest.wait('default', '60 s')");
    assert_eq!(
        column::<String>(
            &mut client,
            "SELECT key FROM ingest.search('how do I rotate a key?', 5)"
        ),
        ["a.md"]
    );
    assert_eq!(
        column::<String>(
            &mut client,
            "SELECT format('%s %s %s', documents, embedded, failed) FROM ingest.progress"
        ),
        ["2 1 1"]
    );
    assert_eq!(
        column::<String>(&mut client, "SELECT key FROM ingest.failures"),
        ["b.md"]
    );
    assert_eq!(column::<i64>(&mut client, "SELECT ingest.retry()"), [1]);
    assert_eq!(
        column::<String>(
            &mut client,
            "SELECT \"check\" || ': ' || detail FROM ingest.doctor() WHERE NOT ok"
        ),
        Vec::<String>::new()
    );
    run(
        &mut client,
        "SELECT * FROM ingest.limits; SELECT * FROM ingest.workers; SELECT * FROM ingest.estimate()",
    );
    run(
        &mut client,
        "SELECT ingest.split('A text.'); SELECT ingest.embed('A text.')",
    );
    // The table is the role's, also where it lies in a schema in which it may create nothing.
    assert_eq!(
        db.one::<String>("SELECT relowner::regrole::text FROM pg_class WHERE oid = 'ingest.default_chunks'::regclass"),
        &*owner
    );
    run(
        &mut client,
        "SELECT ingest.alter_pipeline('default', index => 'immediate')",
    );
    assert_eq!(
        db.one::<String>("SELECT tableowner::text FROM pg_indexes JOIN pg_tables USING (schemaname, tablename) WHERE indexdef LIKE '%hnsw%'"),
        &*owner
    );
    forbidden(&mut client, "CREATE TABLE ingest.mine (a int)");
    forbidden(
        &mut client,
        "SELECT ingest.create_pipeline('other', target => 'ingest.mine')",
    );
    run(&mut client, "SELECT ingest.drop_pipeline('default', true)");
    assert_eq!(
        db.one::<i64>("SELECT count(*) FROM pg_class WHERE relname = 'default_chunks'"),
        0
    );
}

#[test]
fn a_role_sees_its_own_pipelines_only() {
    let db = Database::new();
    let mut two = Neighbours::new(&db);
    for (relation, pipeline) in EVERY_VIEW {
        let query = format!("SELECT DISTINCT {pipeline} FROM {relation} ORDER BY 1");
        assert_eq!(
            column::<String>(&mut two.our, &query),
            ["ours"],
            "{relation}"
        );
        assert_eq!(
            column::<String>(&mut two.their, &query),
            ["theirs"],
            "{relation}"
        );
        assert_eq!(db.all::<String>(&query), ["ours", "theirs"], "{relation}");
    }
    assert_eq!(
        column::<String>(
            &mut two.our,
            "SELECT \"check\" FROM ingest.doctor() WHERE \"check\" LIKE 'model of %'"
        ),
        ["model of ours"]
    );
    let error = refused(
        &mut two.our,
        "INSERT INTO ingest.documents (pipeline, content) VALUES ('thiers', 'x')",
    );
    assert_eq!(error.code, "42704");
    assert!(
        error.text().contains("Pipelines here: 'ours'."),
        "{}",
        error.text()
    );
    assert!(!error.text().contains("'theirs'"), "{}", error.text());
}

#[test]
fn what_everybody_may_read_is_guarded() {
    let db = Database::new();
    let open = "FROM pg_class c, aclexplode(c.relacl) a WHERE c.relnamespace = 'ingest'::regnamespace AND a.grantee = 0";
    assert!(db.one::<i64>(&format!("SELECT count(DISTINCT c.oid) {open}")) >= 6);
    let unguarded = db.all::<String>(&format!(
        "SELECT DISTINCT c.relname::text {open} AND NOT (c.relkind = 'r' AND c.relrowsecurity
             OR c.relkind = 'v' AND coalesce(c.reloptions, '{{}}') @> '{{security_barrier=true}}')"
    ));
    assert_eq!(unguarded, Vec::<String>::new());
}

#[test]
fn a_document_for_somebody_else_is_refused_in_plain_words() {
    let db = Database::new();
    let mut two = Neighbours::new(&db);
    let ours = two.ours.to_string();
    for sql in [
        "INSERT INTO ingest.documents (pipeline, key, content) VALUES ('theirs', 'k', 'x')",
        "INSERT INTO ingest.documents (pipeline, key, content) VALUES ('ours', 'k', 'x'), ('theirs', 'k', 'x') RETURNING id",
        "INSERT INTO ingest.documents (pipeline, key, content) VALUES ('theirs', 'theirs good', 'x')
         ON CONFLICT (pipeline, key) DO UPDATE SET content = EXCLUDED.content",
        "INSERT INTO ingest.documents (pipeline, key, content) VALUES ('theirs', 'theirs good', 'x') ON CONFLICT DO NOTHING",
        "UPDATE ingest.documents SET pipeline = 'theirs'",
        "SELECT ingest.retry('theirs')",
        "SELECT ingest.wait('theirs')",
        "SELECT * FROM ingest.split('A text.', 'theirs')",
        "SELECT ingest.pipeline_problem('theirs')",
    ] {
        let error = forbidden(&mut two.our, sql);
        assert!(error.message.contains("permission denied for pipeline"), "{sql}: {}", error.text());
        assert!(error.message.contains("theirs"), "{sql}: {}", error.text());
        assert!(
            error.text().contains(&format!("SELECT ingest.grant_pipeline('theirs', '{ours}')"))
                || error.text().contains("GRANT SELECT"),
            "{sql}: {}",
            error.text()
        );
    }
    // What is not seen cannot be changed, and nothing says that it is there.
    for sql in [
        "UPDATE ingest.documents SET content = 'x' WHERE pipeline = 'theirs'",
        "DELETE FROM ingest.documents WHERE pipeline = 'theirs'",
    ] {
        assert_eq!(two.our.execute(sql, &[]).expect(sql), 0, "{sql}");
    }
    // Nor through the id of one that is known.
    let id: i64 = db.one("SELECT id FROM ingest.documents WHERE key = 'theirs good'");
    forbidden(
        &mut two.our,
        &format!(
            "INSERT INTO ingest.documents (id, pipeline, key, content) OVERRIDING SYSTEM VALUE VALUES ({id}, 'ours', 'mine', 'x')
             ON CONFLICT (id) DO UPDATE SET content = 'x'"
        ),
    );
    for sql in [
        "TRUNCATE ingest.documents",
        "DELETE FROM ingest.failures",
        "SELECT * FROM ingest.pipeline",
        "SELECT * FROM ingest.pipeline_grant",
        "SELECT * FROM ingest.queue",
        "SELECT * FROM ingest.counter",
        "ALTER TABLE ingest.documents DISABLE ROW LEVEL SECURITY",
        "SELECT ingest.grant_pipeline('theirs', current_user::regrole)",
        "SELECT ingest.revoke_pipeline('theirs', current_user::regrole)",
        "SELECT ingest.set_owner('theirs', current_user::regrole)",
    ] {
        forbidden(&mut two.our, sql);
    }
    assert_eq!(db.progress_of("theirs").counts(), (2, 1, 0, 1));
    assert_eq!(db.progress_of("ours").counts(), (2, 1, 0, 1));
}

#[test]
fn a_granted_pipeline_is_used_and_not_owned() {
    let db = Database::new();
    let mut two = Neighbours::new(&db);
    run(
        &mut two.their,
        &format!("SELECT ingest.grant_pipeline('theirs', '{}')", two.ours),
    );
    run(
        &mut two.their,
        &format!("SELECT ingest.grant_pipeline('theirs', '{}')", two.ours),
    );
    assert_eq!(
        column::<String>(
            &mut two.our,
            "SELECT granted_to::text FROM ingest.pipelines WHERE name = 'theirs'"
        ),
        [format!("{{{}}}", two.ours)]
    );
    for (relation, pipeline) in EVERY_VIEW {
        let query = format!("SELECT DISTINCT {pipeline} FROM {relation} ORDER BY 1");
        assert_eq!(
            column::<String>(&mut two.our, &query),
            ["ours", "theirs"],
            "{relation}"
        );
        assert_eq!(
            column::<String>(&mut two.their, &query),
            ["theirs"],
            "{relation}"
        );
    }
    run(
        &mut two.our,
        "INSERT INTO ingest.documents (pipeline, key, content) VALUES ('theirs', 'new', 'x') RETURNING id, key;
         INSERT INTO ingest.documents (pipeline, key, content) VALUES ('theirs', 'new', 'y')
         ON CONFLICT (pipeline, key) DO UPDATE SET content = EXCLUDED.content RETURNING id;
         UPDATE ingest.documents SET content = 'another secret' WHERE key = 'theirs good';
         SELECT ingest.retry('theirs', key => 'theirs bad');
         DELETE FROM ingest.documents WHERE key = 'new'; SELECT ingest.embed('a question', 'theirs')",
    );
    db.settle();
    assert_eq!(db.progress_of("theirs").counts(), (2, 1, 0, 1));
    for sql in [
        "SELECT ingest.pause('theirs')",
        "SELECT ingest.alter_pipeline('theirs', chunk_tokens => 20)",
        "SELECT ingest.drop_pipeline('theirs')",
        "SELECT ingest.grant_pipeline('theirs', 'postgres')",
        "SELECT * FROM ingest.search('a question', 5, 'theirs')",
    ] {
        forbidden(&mut two.our, sql);
    }
    run(
        &mut two.their,
        &format!("GRANT SELECT ON ingest.theirs_chunks TO {}", two.ours),
    );
    assert_eq!(
        column::<String>(
            &mut two.our,
            "SELECT key FROM ingest.search('a question', 5, 'theirs')"
        ),
        ["theirs good"]
    );
    run(
        &mut two.their,
        &format!("SELECT ingest.revoke_pipeline('theirs', '{}')", two.ours),
    );
    for (relation, pipeline) in EVERY_VIEW {
        let query = format!("SELECT DISTINCT {pipeline} FROM {relation} ORDER BY 1");
        assert_eq!(
            column::<String>(&mut two.our, &query),
            ["ours"],
            "{relation}"
        );
    }
}

#[test]
fn what_a_pipeline_sends_with_its_requests_is_its_owners_to_see() {
    let db = Database::new();
    let (_owner, mut client) = role(&db);
    let (_guest, mut guest) = another(&db, "guest");
    run(
        &mut client,
        r#"SELECT ingest.create_pipeline('p', model => 'openai/text-embedding-3-small', api_key => 'vault:openai',
                                         request => '{"headers": {"x-project": "hush"}}')"#,
    );
    run(
        &mut client,
        &format!("SELECT ingest.grant_pipeline('p', 'guest_{}')", db.name()),
    );
    let query = "SELECT format('%s %s %s', base_url, api_key, request) FROM ingest.pipelines";
    assert!(column::<String>(&mut client, query)[0].contains("hush"));
    assert_eq!(column::<String>(&mut guest, query), ["  "]);
}

#[test]
fn a_member_of_the_owning_or_granted_role_counts() {
    let db = Database::new();
    let (team, mut client) = role(&db);
    let (member, mut colleague) = another(&db, "member");
    let (guests, _guests_client) = another(&db, "guests");
    let (guest, mut visitor) = another(&db, "visitor");
    db.run(&format!(
        "GRANT {team} TO {member}; GRANT {guests} TO {guest}"
    ));
    run(
        &mut client,
        &format!(
            "SELECT ingest.create_pipeline('p'); SELECT ingest.grant_pipeline('p', '{guests}')"
        ),
    );
    run(
        &mut colleague,
        "INSERT INTO ingest.documents (pipeline, key, content) VALUES ('p', 'a', 'x'); SELECT ingest.pause('p')",
    );
    run(
        &mut visitor,
        "INSERT INTO ingest.documents (pipeline, key, content) VALUES ('p', 'b', 'x')",
    );
    assert_eq!(
        column::<i64>(&mut visitor, "SELECT count(*) FROM ingest.documents"),
        [2]
    );
    db.run(&format!("REVOKE {guests} FROM {guest}"));
    assert_eq!(
        column::<i64>(&mut visitor, "SELECT count(*) FROM ingest.documents"),
        [0]
    );
    // A role that bypasses row security sees all of it.
    db.run(&format!("ALTER ROLE {guest} BYPASSRLS"));
    for (relation, _) in EVERY_VIEW {
        let rows = column::<i64>(&mut visitor, &format!("SELECT count(*) FROM {relation}"))[0];
        assert_eq!(
            rows,
            db.one::<i64>(&format!("SELECT count(*) FROM {relation}")),
            "{relation}"
        );
    }
    run(&mut visitor, "SELECT * FROM ingest.doctor()");
}

#[test]
fn a_role_that_may_not_enter_the_schema_gets_nowhere_whatever_default_privileges_say() {
    let db = Database::empty_in(shared_cluster(&[]));
    let anon = format!("anon_{}", db.name());
    db.run(&format!(
        "CREATE ROLE {anon} LOGIN;
         ALTER DEFAULT PRIVILEGES GRANT ALL ON SCHEMAS TO {anon}; ALTER DEFAULT PRIVILEGES GRANT ALL ON TABLES TO {anon};
         ALTER DEFAULT PRIVILEGES GRANT ALL ON SEQUENCES TO {anon}; ALTER DEFAULT PRIVILEGES GRANT ALL ON FUNCTIONS TO {anon}"
    ));
    db.run("CREATE EXTENSION pg_ingest CASCADE; SELECT ingest.create_pipeline(); SELECT ingest.create_pipeline('p', target => 'public.docs')");
    db.run("INSERT INTO ingest.documents (key, content) VALUES ('k', 'x'); INSERT INTO ingest.documents (pipeline, content) VALUES ('p', 'x')");
    db.settle();
    let mut client = db.connect_as(&anon);
    for sql in [
        "SELECT * FROM ingest.documents",
        "SELECT * FROM ingest.progress",
        "SELECT * FROM ingest.default_chunks",
        "SELECT ingest.create_pipeline('mine')",
        "INSERT INTO ingest.documents (content) VALUES ('x')",
    ] {
        forbidden(&mut client, sql);
    }
    // The chunks themselves lie where it may look: row security hides them.
    assert_eq!(
        column::<i64>(&mut client, "SELECT count(*) FROM public.docs"),
        [0]
    );
    assert_eq!(db.one::<i64>("SELECT count(*) FROM public.docs"), 1);
    // Once it may enter, it has what everybody has, and no more.
    db.run(&format!("GRANT USAGE ON SCHEMA ingest TO {anon}"));
    assert_eq!(
        column::<i64>(&mut client, "SELECT count(*) FROM ingest.documents"),
        [0]
    );
    for sql in [
        "SELECT * FROM ingest.pipeline",
        "TRUNCATE ingest.documents",
        "SELECT ingest.remove_pipeline(1)",
        "CREATE TABLE ingest.x ()",
    ] {
        forbidden(&mut client, sql);
    }
}

#[test]
fn row_security_is_cheap() {
    let db = Database::new();
    let (_owner, mut client) = role(&db);
    run(
        &mut client,
        "SELECT ingest.create_pipeline('p'); SELECT ingest.pause('p')",
    );
    run(
        &mut client,
        "INSERT INTO ingest.documents (pipeline, key, content) SELECT 'p', 'k' || n, 'x' FROM generate_series(1, 20000) n",
    );
    db.run("ANALYZE ingest.documents");
    for query in [
        "SELECT * FROM ingest.documents WHERE pipeline = 'p' AND key = 'k77'",
        "SELECT * FROM ingest.documents WHERE id = 77",
        "UPDATE ingest.documents SET content = 'y' WHERE id = 77",
        "DELETE FROM ingest.documents WHERE pipeline = 'p' AND key = 'k78'",
    ] {
        let plan = column::<String>(&mut client, &format!("EXPLAIN {query}")).join("\n");
        assert!(
            plan.contains("Index Scan using documents_"),
            "{query}\n{plan}"
        );
        assert!(!plan.contains("Seq Scan on documents"), "{query}\n{plan}");
    }
}

#[test]
fn copy_and_dump_work_for_those_who_may() {
    let db = Database::new();
    let mut two = Neighbours::new(&db);
    let copy = |client: &mut postgres::Client, pipeline: &str| -> Result<u64, ServerError> {
        let mut writer =
            client.copy_in("COPY ingest.documents (pipeline, key, content) FROM STDIN")?;
        for n in 1..=3 {
            writeln!(writer, "{pipeline}\tcopied {n}\tA text.").expect("a row");
        }
        Ok(writer.finish()?)
    };
    assert_eq!(
        copy(&mut db.connect(), "ours").expect("a superuser copies"),
        3
    );
    db.run("DELETE FROM ingest.documents WHERE key LIKE 'copied%'");
    assert_eq!(copy(&mut two.our, "ours").expect("an owner copies"), 3);
    let error = copy(&mut two.our, "theirs").expect_err("it is refused");
    assert_eq!(error.code, "42501", "{}", error.text());
    db.settle();
    assert_eq!(db.progress_of("ours").counts(), (5, 4, 0, 1));
    assert_eq!(db.progress_of("theirs").counts(), (2, 1, 0, 1));
    let mut dump = db.cluster().program("pg_dump");
    let dump = db.cluster().run(dump.arg(db.name()));
    assert!(dump.contains("theirs good") && dump.contains("ours good"));
}

#[test]
fn what_a_copy_cannot_do_it_says_of_the_copy() {
    let db = Database::new();
    let (owner, mut client) = pipeline_owner(&db, "");
    let copy = "COPY ingest.documents (pipeline, content) FROM STDIN";
    run(&mut client, "BEGIN READ ONLY");
    let error = refused(&mut client, copy);
    assert_eq!(
        (error.code.as_str(), error.message.as_str()),
        (
            "25006",
            "cannot execute COPY FROM in a read-only transaction"
        )
    );
    run(&mut client, "ROLLBACK");
    db.run(&format!(
        "REVOKE TEMPORARY ON DATABASE {} FROM PUBLIC",
        db.name()
    ));
    let error = refused(&mut client, copy);
    assert_eq!(
        (error.code.as_str(), error.message.as_str()),
        ("42501", "permission denied for COPY to ingest.documents")
    );
    let grant = format!("GRANT TEMPORARY ON DATABASE {} TO {owner};", db.name());
    assert!(error.text().contains(&grant), "{}", error.text());
    db.run(&grant);
    let mut writer = client.copy_in(copy).expect("it begins");
    writer.write_all(b"mine\tA text.\n").expect("a row");
    assert_eq!(writer.finish().expect("it ends"), 1);
}

#[test]
fn the_hint_names_a_role_as_sql_wants_it() {
    let db = Database::with_pipeline();
    let name = format!("Mixed Case {}", db.name());
    db.run(&format!(
        "CREATE ROLE \"{name}\"; GRANT USAGE ON SCHEMA ingest TO \"{name}\"; SET ROLE \"{name}\""
    ));
    let insert = "INSERT INTO ingest.documents (content) VALUES ('x')";
    let hint = db.expect_error(insert).hint.expect("a hint");
    db.run("RESET ROLE");
    let advice = hint.split_once("may say: ").expect("what to say").1;
    db.run(advice);
    db.run(&format!("SET ROLE \"{name}\"; {insert}; RESET ROLE"));
    db.run(&format!("DROP OWNED BY \"{name}\"; DROP ROLE \"{name}\""));
}
