//! Promise: at home in Supabase. Where `postgres` is no superuser, pgvector lies in `extensions`, keys lie in Vault and whatever
//! is new in `public` is open to the API, all works as documented and nothing shows that should not.

use harness::remote::{KEY, MODEL, api};
use harness::roles::{column, forbidden, refused, run};
use harness::*;

/// One of its own for each test: all of them work in the database `postgres`.
fn cluster() -> Cluster {
    let cluster = supabase::start(&[("pg_ingest.allowed_hosts", "*")]);
    supabase::create_extension(&Database::present_in(&cluster, "postgres"));
    cluster
}

/// Roles that a JWT chooses, as PostgREST does it.
fn api_role(db: &Database, name: &str) -> postgres::Client {
    let mut client = db.connect_as("authenticator");
    run(
        &mut client,
        &format!("SET ROLE {name}; SET search_path = public"),
    );
    client
}

#[test]
fn the_quickstart_works_for_postgres_that_is_no_superuser() {
    let cluster = cluster();
    let db = Database::present_in(&cluster, "postgres");
    let mut postgres = db.connect_as("postgres");
    assert_eq!(
        column::<bool>(
            &mut postgres,
            "SELECT rolsuper FROM pg_roles WHERE rolname = 'postgres'"
        ),
        [false]
    );
    run(&mut postgres, "SELECT ingest.create_pipeline('quick')");
    run(
        &mut postgres,
        "INSERT INTO ingest.documents (pipeline, key, content) VALUES
             ('quick', 'a.md', 'Rotate an API key: make a new one, deploy it, then revoke the old one.'),
             ('quick', 'b.md', 'Cats sleep for most of the day.'), ('quick', 'c.md', '')",
    );
    run(&mut postgres, "SELECT ingest.wait('quick', '60 s')");
    assert_eq!(
        column::<String>(
            &mut postgres,
            "SELECT key FROM ingest.search('how do I rotate a key?', 1, 'quick')"
        ),
        ["a.md"]
    );
    assert_eq!(db.progress_of("quick").counts(), (3, 2, 0, 1));
    assert_eq!(
        column::<String>(
            &mut postgres,
            "SELECT key FROM ingest.failures WHERE pipeline = 'quick'"
        ),
        ["c.md"]
    );
    assert_eq!(
        column::<i64>(&mut postgres, "SELECT ingest.retry('quick')"),
        [1]
    );
    assert_eq!(
        column::<String>(
            &mut postgres,
            "SELECT \"check\" || ': ' || detail FROM ingest.doctor() WHERE NOT ok"
        ),
        Vec::<String>::new()
    );
    run(&mut postgres, "SELECT ingest.drop_pipeline('quick', true)");
}

#[test]
fn a_key_in_vault_serves_and_its_chunks_are_not_open_to_the_api() {
    let api = api();
    let cluster = cluster();
    let db = Database::present_in(&cluster, "postgres");
    let mut postgres = db.connect_as("postgres");
    run(
        &mut postgres,
        &format!("SELECT vault.create_secret('{KEY}', 'openai')"),
    );
    run(
        &mut postgres,
        &format!(
            "SELECT ingest.create_pipeline('docs', model => '{MODEL}', base_url => '{}', api_key => 'vault:openai', target => 'public.docs')",
            api.openai_url()
        ),
    );
    run(
        &mut postgres,
        "INSERT INTO ingest.documents (pipeline, key, content) VALUES ('docs', 'a', 'A text.'), ('docs', 'b', 'Another text.')",
    );
    run(&mut postgres, "SELECT ingest.wait('docs', '60 s')");
    assert_eq!(
        db.progress_of("docs").counts(),
        (2, 2, 0, 0),
        "{:?}",
        db.progress_of("docs")
    );
    assert_eq!(db.check_vectors("public.docs"), 2);

    let chunks = "SELECT count(*) FROM public.docs";
    for role in ["anon", "authenticated"] {
        let mut client = api_role(&db, role);
        assert_eq!(column::<i64>(&mut client, chunks), [0], "{role}");
        for sql in [
            "SELECT * FROM ingest.documents",
            "SELECT * FROM ingest.progress",
            "SELECT ingest.create_pipeline('x')",
            "INSERT INTO ingest.documents (pipeline, content) VALUES ('docs', 'x')",
            "SELECT * FROM ingest.search('text', 1, 'docs')",
            "INSERT INTO public.docs (document_key, chunk_no, content, tokens, embedding) SELECT '', 0, '', 0, embedding FROM public.docs
             UNION ALL SELECT 'x', 0, 'x', 1, array_fill(0.1, ARRAY[1536])::extensions.vector",
        ] {
            assert_eq!(refused(&mut client, sql).code, "42501", "{role}: {sql}");
        }
    }
    let mut service = api_role(&db, "service_role");
    assert_eq!(column::<i64>(&mut service, chunks), [2]);
    forbidden(&mut service, "SELECT * FROM ingest.documents");
    run(
        &mut postgres,
        "GRANT USAGE ON SCHEMA ingest TO service_role",
    );
    assert_eq!(
        column::<String>(
            &mut service,
            "SELECT key FROM ingest.documents WHERE pipeline = 'docs' ORDER BY 1"
        ),
        ["a", "b"]
    );
    run(
        &mut service,
        "INSERT INTO ingest.documents (pipeline, key, content) VALUES ('docs', 'c', 'A third text.')",
    );
    run(&mut postgres, "SELECT ingest.wait('docs', '60 s')");
    assert_eq!(
        column::<i64>(
            &mut service,
            "SELECT count(*) FROM ingest.search('A third text.', 3, 'docs')"
        ),
        [3]
    );

    // A policy opens them, as for any table there.
    run(
        &mut postgres,
        "CREATE POLICY everybody_reads ON public.docs FOR SELECT TO authenticated USING (metadata @> '{\"public\": true}')",
    );
    run(
        &mut postgres,
        "UPDATE ingest.documents SET metadata = '{\"public\": true}' WHERE pipeline = 'docs' AND key = 'a'",
    );
    assert_eq!(
        column::<String>(
            &mut api_role(&db, "authenticated"),
            "SELECT document_key FROM public.docs"
        ),
        ["a"]
    );
    assert_eq!(column::<i64>(&mut api_role(&db, "anon"), chunks), [0]);
    run(
        &mut postgres,
        "REVOKE USAGE ON SCHEMA ingest FROM service_role; SELECT ingest.drop_pipeline('docs', true)",
    );
}

#[test]
fn postgres_passes_the_schema_on_and_dumps_the_database() {
    let cluster = cluster();
    let db = Database::present_in(&cluster, "postgres");
    let mut postgres = db.connect_as("postgres");
    run(
        &mut postgres,
        "CREATE ROLE app LOGIN; GRANT USAGE ON SCHEMA ingest TO app; SELECT ingest.create_pipeline('dumped')",
    );
    let mut app = db.connect_as("app");
    let error = forbidden(&mut app, "SELECT ingest.create_pipeline('apps')");
    assert!(
        error.text().contains("GRANT USAGE ON SCHEMA extensions"),
        "{}",
        error.text()
    );
    db.run("GRANT USAGE ON SCHEMA extensions TO app");
    run(&mut app, "SELECT ingest.create_pipeline('apps')");
    run(
        &mut app,
        "INSERT INTO ingest.documents (pipeline, key, content) VALUES ('apps', 'of the app', 'x')",
    );
    run(&mut app, "SELECT ingest.wait('apps', '60 s')");
    run(&mut app, "SELECT * FROM ingest.search('x', 1, 'apps')");
    assert_eq!(
        column::<String>(&mut app, "SELECT pipeline FROM ingest.progress"),
        ["apps"]
    );
    let mut dump = cluster.program("pg_dump");
    dump.args(["--username=postgres", "postgres"]);
    assert!(cluster.run(&mut dump).contains("of the app"));
    run(&mut app, "SELECT ingest.drop_pipeline('apps', true)");
}
