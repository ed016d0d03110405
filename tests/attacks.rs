//! Promise: whoever may use the extension gets no rights that are not theirs, and sees nothing of others, whatever they try.

use std::fmt::Write as _;

use harness::remote::MODEL;
use harness::roles::{Role, another, column, forbidden, pipeline_owner, refused, role, run};
use harness::*;

/// Words that an attack must not bring to light.
const SECRETS: [&str; 3] = ["crown jewels", "theirs", "vault:hidden"];

/// A neighbour with a pipeline, documents, a failure, a blocked pipeline and a limit, all of which speak of [`SECRETS`].
fn neighbour<'d>(db: &'d Database<'d>) -> Role<'d> {
    let (name, mut client) = another(db, "neighbour");
    run(
        &mut client,
        &format!(
            "SELECT ingest.set_limit('limit of theirs', rpm => 7);
             SELECT ingest.create_pipeline('theirs');
             SELECT ingest.create_pipeline('also theirs', model => '{MODEL}', api_key => 'vault:hidden', limits => 'limit of theirs')"
        ),
    );
    run(
        &mut client,
        "INSERT INTO ingest.documents (pipeline, key, content, metadata) VALUES
             ('theirs', 'where the crown jewels are', 'The crown jewels are in the cellar.', '{\"what\": \"crown jewels\"}'),
             ('theirs', 'no crown jewels', '', '{}'), ('also theirs', 'crown jewels', 'The crown jewels.', '{}')",
    );
    drop(client);
    wait_until(
        "one is embedded, one has failed, one is blocked",
        SOON,
        || {
            db.progress_of("theirs").counts() == (2, 1, 0, 1)
                && db.progress_of("also theirs").state == "blocked"
        },
    );
    name
}

fn nobody_became_superuser(db: &Database, after: &str) {
    assert_eq!(
        db.all::<String>("SELECT rolname::text FROM pg_roles WHERE rolsuper"),
        ["postgres"],
        "after {after}"
    );
}

#[test]
fn nothing_of_a_neighbour_is_shown_by_any_view_or_function() {
    let db = Database::new();
    let _theirs = neighbour(&db);
    let (_ours, mut client) = role(&db);
    run(&mut client, "SELECT ingest.create_pipeline('ours')");
    let queries = [
        "SELECT to_jsonb(d) FROM ingest.documents d",
        "SELECT to_jsonb(f) FROM ingest.failures f",
        "SELECT to_jsonb(p) FROM ingest.progress p",
        "SELECT to_jsonb(p) FROM ingest.pipelines p",
        "SELECT to_jsonb(w) FROM ingest.workers w",
        "SELECT to_jsonb(w) FROM ingest.worker_states() w",
        "SELECT to_jsonb(l) FROM ingest.limits l",
        "SELECT to_jsonb(b) FROM ingest.budget_states() b",
        "SELECT to_jsonb(d) FROM ingest.doctor() d",
        "SELECT to_jsonb(e) FROM ingest.estimate() e",
        "SELECT to_jsonb(r) FROM ingest.rates() r",
        "SELECT to_jsonb(v) FROM ingest.visible_pipelines v",
        "SELECT to_jsonb(v) FROM ingest.visible_limits v",
        "SELECT to_jsonb(ingest.pipeline_list())",
        "SELECT to_jsonb(s) FROM pg_stats s WHERE schemaname = 'ingest'",
        "SELECT to_jsonb(ingest.wait(timeout => '1 s'))",
        "SELECT to_jsonb(ingest.retry())",
    ];
    db.run("ANALYZE");
    for query in queries {
        let shown = column::<String>(
            &mut client,
            &format!("SELECT to_jsonb::text FROM ({query}) q"),
        )
        .join("\n");
        for secret in SECRETS {
            assert!(!shown.contains(secret), "{query}: {shown}");
        }
    }
    for sql in [
        "SELECT * FROM ingest.search('where are the jewels?', 5, 'theirs')",
        "SELECT ingest.embed('a question', 'theirs')",
        "SELECT * FROM ingest.split('A text.', 'theirs')",
        "SELECT * FROM ingest.estimate('theirs')",
        "SELECT * FROM ingest.theirs_chunks",
        "SELECT ingest.pipeline_problem('also theirs')",
        "SELECT ingest.alter_pipeline('also theirs', base_url => 'https://evil.example/v1')",
        "SELECT ingest.create_pipeline('mine', model => 'openai/text-embedding-3-small', api_key => 'vault:x', limits => 'limit of theirs')",
        "SELECT ingest.set_limit('limit of theirs', rpm => 1)",
        "SELECT ingest.drop_limit('limit of theirs')",
        "SELECT ingest.create_pipeline('mine', target => 'ingest.theirs_chunks')",
        "SELECT ingest.load_files('/etc', '*', 'ours')",
        "SELECT ingest.load_files('/etc', '*', 'theirs')",
    ] {
        let error = forbidden(&mut client, sql);
        assert!(
            !error.text().contains("jewels") && !error.text().contains("vault:hidden"),
            "{sql}: {}",
            error.text()
        );
    }
    for sql in [
        "SELECT ingest.drop_limit('none')",
        "SELECT ingest.create_pipeline('x', model => 'openai/text-embedding-3-small', api_key => 'vault:x', limits => 'none')",
        "SELECT ingest.pause('none')",
    ] {
        let error = refused(&mut client, sql);
        assert_eq!(error.code, "42704", "{sql}: {}", error.text());
        assert!(!error.text().contains("theirs"), "{sql}: {}", error.text());
    }
}

#[test]
fn a_function_in_a_condition_does_not_see_rows_that_are_left_out() {
    let db = Database::new();
    let _theirs = neighbour(&db);
    let (_ours, mut client) = role(&db);
    run(
        &mut client,
        "CREATE TABLE app.seen (what text);
         CREATE FUNCTION app.spy(what text) RETURNS boolean LANGUAGE plpgsql COST 0.0001 AS
             $$ BEGIN INSERT INTO app.seen VALUES (what); RETURN true; END $$;
         CREATE FUNCTION app.same(a text, b text) RETURNS boolean LANGUAGE plpgsql COST 0.0001 AS
             $$ BEGIN INSERT INTO app.seen VALUES (a); RETURN true; END $$;
         CREATE OPERATOR app.=== (LEFTARG = text, RIGHTARG = text, PROCEDURE = app.same)",
    );
    for (relation, pipeline) in [
        ("documents", "pipeline"),
        ("failures", "pipeline"),
        ("progress", "pipeline"),
        ("pipelines", "name"),
        ("limits", "name"),
        ("workers", "last_error"),
        ("visible_pipelines", "name"),
        ("visible_limits", "name"),
    ] {
        run(
            &mut client,
            &format!(
                "SELECT * FROM ingest.{relation} r WHERE app.spy(r::text) AND app.spy({pipeline})"
            ),
        );
        run(
            &mut client,
            &format!("SELECT * FROM ingest.{relation} r WHERE {pipeline} OPERATOR(app.===) ''"),
        );
    }
    run(
        &mut client,
        "UPDATE ingest.documents SET content = 'x' WHERE app.spy(content)",
    );
    run(
        &mut client,
        "DELETE FROM ingest.documents WHERE app.spy(key)",
    );
    let seen = column::<Option<String>>(&mut client, "SELECT what FROM app.seen");
    for secret in SECRETS {
        let told = seen.iter().flatten().find(|what| what.contains(secret));
        assert_eq!(told, None);
    }
    assert_eq!(
        db.one::<i64>("SELECT count(*) FROM ingest.documents WHERE content = 'x'"),
        0
    );
}

#[test]
fn a_trigger_on_the_target_gets_no_further_than_its_owner() {
    let db = Database::new();
    let (_owner, mut client) = pipeline_owner(&db, "max_attempts => 1");
    // The trigger does what the document says.
    run(
        &mut client,
        "CREATE TABLE app.later (n int);
         CREATE FUNCTION app.rise() RETURNS text LANGUAGE plpgsql AS $$
         BEGIN
             EXECUTE format('ALTER ROLE %I SUPERUSER', (SELECT relowner::regrole::text FROM pg_class WHERE oid = 'app.docs'::regclass));
             RETURN 'risen';
         END $$;
         CREATE FUNCTION app.rise_later() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM app.rise(); RETURN NULL; END $$;
         CREATE FUNCTION app.obey() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN EXECUTE NEW.content; RETURN NEW; END $$;
         CREATE TRIGGER obey BEFORE INSERT ON app.docs FOR EACH ROW EXECUTE FUNCTION app.obey()",
    );
    let attacks = [
        "SELECT app.rise()",
        "SET ROLE postgres",
        "SET SESSION AUTHORIZATION postgres",
        "RESET SESSION AUTHORIZATION",
        "SET LOCAL session_authorization = DEFAULT",
        "DECLARE held CURSOR WITH HOLD FOR SELECT app.rise()",
        "CREATE TEMPORARY TABLE trap (n int)",
        "CREATE CONSTRAINT TRIGGER later AFTER INSERT ON app.later DEFERRABLE INITIALLY DEFERRED FOR EACH ROW
             EXECUTE FUNCTION app.rise_later(); INSERT INTO app.later VALUES (1)",
        "COPY (SELECT 1) TO PROGRAM 'true'",
        "COPY app.later FROM '/etc/passwd'",
        "ALTER SYSTEM SET pg_ingest.allowed_hosts = '*'",
        "GRANT CREATE ON SCHEMA ingest TO PUBLIC",
        "UPDATE ingest.pipeline SET trusted = true",
        "ALTER TABLE ingest.documents DISABLE ROW LEVEL SECURITY",
        "SELECT pg_read_file('postgresql.conf')",
        "LOAD 'nothing'",
        "PREPARE TRANSACTION 'x'",
        "LISTEN x",
        "CREATE EXTENSION file_fdw",
    ];
    for (number, attack) in attacks.iter().enumerate() {
        db.execute(
            "INSERT INTO ingest.documents (pipeline, key, content) VALUES ('mine', $1, $2)",
            &[&number.to_string(), attack],
        );
        wait_until(attack, SOON, || db.progress_of("mine").tried());
        nobody_became_superuser(&db, attack);
        // One that is refused for want of a right looks like a target that may not be written.
        db.run("DELETE FROM ingest.documents; SELECT ingest.resume('mine')");
    }
    assert!(!db.one::<bool>("SELECT has_schema_privilege('public', 'ingest', 'CREATE')"));
    assert!(db.one::<bool>(
        "SELECT relrowsecurity FROM pg_class WHERE oid = 'ingest.documents'::regclass"
    ));
    assert_eq!(
        db.one::<String>("SELECT current_setting('pg_ingest.allowed_hosts')"),
        ""
    );
    // The session is what it was, and goes on.
    run(&mut client, "ALTER TABLE app.docs DISABLE TRIGGER obey");
    run(
        &mut client,
        "INSERT INTO ingest.documents (pipeline, key, content) VALUES ('mine', 'good', 'A text.')",
    );
    assert!(db.one::<bool>("SELECT ingest.wait('mine', '60 s')"));
    assert_eq!(db.progress_of("mine").counts(), (1, 1, 0, 0));
}

#[test]
fn rules_and_views_in_place_of_the_target_lend_nothing() {
    let db = Database::new();
    let (owner, mut client) = pipeline_owner(&db, "max_attempts => 1");
    db.run("CREATE TABLE public.hidden (n int); INSERT INTO public.hidden VALUES (1)");
    run(
        &mut client,
        "CREATE VIEW app.looks AS SELECT * FROM app.docs",
    );
    let error = refused(
        &mut client,
        "SELECT ingest.create_pipeline('view', target => 'app.looks')",
    );
    assert!(error.text().contains("It is a view."), "{}", error.text());
    run(
        &mut client,
        "CREATE TABLE app.who (acting_role text);
         CREATE RULE note AS ON INSERT TO app.docs DO ALSO INSERT INTO app.who VALUES (current_user);
         CREATE RULE steal AS ON DELETE TO app.docs DO ALSO INSERT INTO app.who SELECT n::text FROM public.hidden",
    );
    db.run("INSERT INTO ingest.documents (pipeline, key, content) VALUES ('mine', 'k', 'A text.')");
    wait_until("it has been tried", SOON, || db.progress_of("mine").tried());
    let acting = db.all::<String>("SELECT DISTINCT acting_role FROM app.who");
    assert!(acting.is_empty() || acting == [&*owner], "{acting:?}");
}

#[test]
fn what_shadows_names_operators_and_casts_is_not_taken() {
    let db = Database::new();
    let (owner, mut client) = role(&db);
    db.run(&format!("GRANT CREATE ON SCHEMA public TO {owner}"));
    let rise = format!(
        "CREATE FUNCTION app.rise() RETURNS boolean LANGUAGE plpgsql AS $$
         BEGIN
             IF current_setting('is_superuser') = 'on' OR pg_has_role(current_user, 'postgres', 'USAGE') THEN
                 ALTER ROLE {owner} SUPERUSER;
             END IF;
             RETURN true;
         END $$"
    );
    run(&mut client, &rise);
    // In the schema that is first on everybody's path, and with types that match better than the built-in ones.
    for schema in ["app", "public"] {
        let mut sql = String::new();
        for (number, (operator, left, right)) in [
            ("=", "text", "text"),
            ("=", "int", "int"),
            ("<>", "text", "text"),
            ("||", "text", "text"),
            ("@>", "jsonb", "jsonb"),
            ("->>", "jsonb", "text"),
            ("+", "bigint", "bigint"),
            ("-", "int", "float8"),
        ]
        .iter()
        .enumerate()
        {
            let _ = write!(
                sql,
                "CREATE FUNCTION {schema}.op{number}({left}, {right}) RETURNS boolean LANGUAGE sql AS 'SELECT app.rise()';
                 CREATE OPERATOR {schema}.{operator} (LEFTARG = {left}, RIGHTARG = {right}, PROCEDURE = {schema}.op{number});"
            );
        }
        for signature in [
            "count()",
            "now()",
            "format(text, text)",
            "quote_ident(text)",
            "coalesce_(text)",
            "octet_length(text)",
            "unnest(text[])",
        ] {
            let _ = write!(
                sql,
                "CREATE FUNCTION {schema}.{signature} RETURNS boolean LANGUAGE sql AS 'SELECT app.rise()';"
            );
        }
        run(&mut client, &sql);
    }
    // Temporary objects, which are looked for first where a path does not say otherwise.
    run(
        &mut client,
        "CREATE TEMPORARY TABLE pg_class (oid oid, relname text); CREATE TEMPORARY TABLE pg_extension (extname text, extowner oid);
         CREATE TEMPORARY TABLE pipeline (pipeline_id int); CREATE TEMPORARY TABLE documents (id int);
         CREATE TEMPORARY TABLE pg_roles (oid oid, rolsuper boolean);
         SET search_path = pg_temp, app, public, pg_catalog, ingest",
    );
    db.run("SET search_path = app, public, pg_catalog");
    db.run(&format!(
        "ALTER ROLE {owner} SET search_path = app, public, pg_catalog"
    ));
    run(
        &mut client,
        "SELECT ingest.create_pipeline('mine', target => 'app.docs', index => 'immediate')",
    );
    run(
        &mut client,
        "INSERT INTO ingest.documents (pipeline, key, content) VALUES ('mine', 'k', 'A text.'), ('mine', 'bad', '')",
    );
    for sql in [
        "SELECT ingest.wait('mine', '60 s')",
        "SELECT * FROM ingest.search('text', 3, 'mine', '{}')",
        "SELECT ingest.retry('mine')",
        "SELECT ingest.alter_pipeline('mine', chunk_tokens => 20)",
        "SELECT ingest.pause('mine')",
        "SELECT ingest.resume('mine')",
        "SELECT * FROM ingest.doctor()",
        "SELECT * FROM ingest.estimate('mine')",
        "SELECT pg_catalog.count(*) FROM ingest.progress, ingest.limits, ingest.workers, ingest.pipelines",
        "SELECT ingest.grant_pipeline('mine', 'postgres')",
        "SELECT ingest.revoke_pipeline('mine', 'postgres')",
        "UPDATE ingest.documents SET metadata = '{\"a\": 1}' WHERE id > 0",
        "DELETE FROM ingest.documents WHERE id > 0",
    ] {
        run(&mut client, sql);
        db.run(sql);
        nobody_became_superuser(&db, sql);
    }
    run(&mut client, "SELECT ingest.drop_pipeline('mine', true)");
}

#[test]
fn a_key_goes_nowhere_but_to_its_provider() {
    let db = Database::new();
    let (_owner, mut client) = role(&db);
    for url in [
        "https://evil.example/v1",
        "https://api.openai.com@evil.example/v1",
        "https://api.openai.com:secret@evil.example/v1",
        "https://api.openai.com.evil.example/v1",
        "https://evil.example/api.openai.com",
        "https://evil.example#@api.openai.com/",
        "https://evil.example\\@api.openai.com/",
        "http://api.openai.com/v1",
        "https://api.openai.com:8443/v1",
        "https://127.0.0.1/v1",
        "https://[::1]/v1",
        "file:///etc/passwd",
        "https://api.openai.com\r\nhost: evil.example",
    ] {
        let made = client.execute(
            "SELECT ingest.create_pipeline('mine', model => $1, base_url => $2, api_key => 'vault:openai', target => 'app.docs')",
            &[&MODEL, &url],
        );
        let error = ServerError::from(made.expect_err(url));
        assert!(
            ["42501", "22023"].contains(&error.code.as_str()),
            "{url}: {} {}",
            error.code,
            error.text()
        );
    }
    for header in [
        r#"{"authorization": "x"}"#,
        r#"{"host": "evil.example"}"#,
        r#"{"content-length": "0"}"#,
        r#"{"x": "a\r\nhost: evil"}"#,
    ] {
        let request = format!(r#"{{"headers": {header}}}"#);
        let made = client.execute(
            "SELECT ingest.create_pipeline('mine', model => $1, api_key => 'vault:openai', request => $2::text::jsonb, target => 'app.docs')",
            &[&MODEL, &request],
        );
        let error = ServerError::from(made.expect_err(&request));
        assert_eq!(error.code, "22023", "{request}: {}", error.text());
    }
}

#[test]
fn nobody_counts_the_documents_of_a_neighbour() {
    let db = Database::new();
    let (_theirs, mut neighbour) = another(&db, "neighbour");
    run(
        &mut neighbour,
        "SELECT ingest.create_pipeline('theirs'); SELECT ingest.pause('theirs')",
    );
    run(
        &mut neighbour,
        "INSERT INTO ingest.documents (pipeline, content) VALUES ('theirs', 'x'), ('theirs', 'y')",
    );
    let (_ours, mut client) = role(&db);
    let id: i32 = db.one("SELECT pipeline_id FROM ingest.pipeline");
    let count = format!("SELECT ingest.pending_documents(ARRAY[{id}])");
    assert_eq!(column::<i64>(&mut neighbour, &count), [2]);
    assert_eq!(column::<i64>(&mut client, &count), [0]);
    forbidden(&mut client, &format!("SELECT ingest.new_failures({id})"));
    // In flight, as far as the table says so.
    db.run("UPDATE ingest.queue SET claimed_by = 7, claim_token = 1");
    let held = "SELECT coalesce(sum(claimed), 0)::bigint FROM ingest.claimed_documents()";
    assert_eq!(column::<i64>(&mut neighbour, held), [2]);
    assert_eq!(column::<i64>(&mut client, held), [0]);
}

#[test]
fn a_column_that_may_not_be_read_names_no_documents() {
    let db = Database::new();
    let (name, mut client) = pipeline_owner(&db, "");
    db.run(&format!(
        "CREATE TABLE public.people (id int PRIMARY KEY, body text, secret text);
         INSERT INTO public.people VALUES (1, 'A text.', 'crown jewels');
         GRANT SELECT (id, body), TRIGGER ON public.people TO {name}"
    ));
    forbidden(
        &mut client,
        "SELECT ingest.watch('public.people', 'body', 'mine', key => 'secret')",
    );
    run(
        &mut client,
        "SELECT ingest.watch('public.people', 'body', 'mine', key => 'body')",
    );
    run(&mut client, "SELECT ingest.wait('mine', '60 s')");
    assert_eq!(
        column::<String>(&mut client, "SELECT key FROM ingest.documents"),
        ["A text."]
    );
}
