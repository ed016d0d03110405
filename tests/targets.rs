//! Promise: a target is plain SQL's: a table that was there before, a partitioned one, one on another server, one of any name, and
//! vectors of more dimensions than type vector can be indexed for, serve like any other; a table that cannot be one is refused.

use fake_api::FakeApi;
use harness::remote::{KEY, behaviour};
use harness::roles::{forbidden, role};
use harness::*;

/// The columns of a target that a user makes, for 1,536 dimensions.
const COLUMNS: &str =
    "document_key text NOT NULL, chunk_no int NOT NULL, content text NOT NULL, tokens int NOT NULL,
                       metadata jsonb NOT NULL, embedding vector(1536) NOT NULL";

/// Documents come, change, are relabelled, move and go; the chunks of `public.docs` follow.
fn lives_through_everything(db: &Database) {
    let keys =
        || db.all::<String>("SELECT document_key || ' ' || content FROM public.docs ORDER BY 1");
    db.run("INSERT INTO ingest.documents (key, content) SELECT 'k' || n, 'Text ' || n FROM generate_series(1, 40) n");
    db.settle();
    assert_eq!(keys().len(), 40);
    assert_eq!(db.check_vectors("public.docs"), 40);
    db.run("DELETE FROM ingest.documents WHERE key NOT IN ('k1', 'k2', 'k3')");
    db.run("UPDATE ingest.documents SET content = 'Another text' WHERE key = 'k1'");
    db.run("UPDATE ingest.documents SET key = 'moved' WHERE key = 'k2'");
    db.run(r#"UPDATE ingest.documents SET metadata = '{"lang": "en"}' WHERE key = 'k3'"#);
    db.settle();
    assert_eq!(keys(), ["k1 Another text", "k3 Text 3", "moved Text 2"]);
    assert_eq!(db.progress().chunks, 3);
    assert_eq!(
        db.one::<String>("SELECT key FROM ingest.search('Another text', 1)"),
        "k1"
    );
    assert_eq!(
        db.all::<String>(
            r#"SELECT key FROM ingest.hybrid_search('text', filter => '{"lang": "en"}')"#
        ),
        ["k3"]
    );
}

#[test]
fn a_partitioned_target_serves() {
    let api = FakeApi::start(behaviour());
    let db = Database::new();
    db.run(&format!(
        "CREATE TABLE public.docs ({COLUMNS}, UNIQUE (document_key, chunk_no)) PARTITION BY HASH (document_key);
         CREATE TABLE public.docs_0 PARTITION OF public.docs FOR VALUES WITH (MODULUS 3, REMAINDER 0);
         CREATE TABLE public.docs_1 PARTITION OF public.docs FOR VALUES WITH (MODULUS 3, REMAINDER 1);
         CREATE TABLE public.docs_2 PARTITION OF public.docs FOR VALUES WITH (MODULUS 3, REMAINDER 2)"
    ));
    db.create_remote_pipeline("default", &api, "target => 'public.docs'");
    lives_through_everything(&db);
    db.run("SELECT ingest.alter_pipeline('default', index => 'immediate')");
    let indexes = db.all::<i64>(
        "SELECT count(*) FROM pg_indexes WHERE tablename ~ '^docs_[0-9]$' AND indexdef ~ 'USING (hnsw|gin)' GROUP BY tablename",
    );
    assert_eq!(indexes, [2, 2, 2]);
    db.run("SELECT ingest.alter_pipeline('default', index => 'none')");
    db.run("SELECT ingest.drop_pipeline('default', drop_target => true)");
}

/// Another server, and a database with `public.docs` on it, whose columns are these and of which `more` is said over there. Nothing
/// where there is no postgres_fdw.
fn on_another_server(columns: &str, more: &str) -> Option<(Cluster, Database<'static>)> {
    let there = "SELECT EXISTS (SELECT FROM pg_available_extensions WHERE name = 'postgres_fdw')";
    let db = Database::new();
    if !db.one::<bool>(there) {
        println!("skipped: this Postgres came without postgres_fdw");
        return None;
    }
    let elsewhere = Cluster::start(&[]);
    elsewhere
        .client("postgres")
        .batch_execute(&format!(
            "CREATE EXTENSION vector; CREATE TABLE public.there ({columns}, UNIQUE (document_key, chunk_no)) {more}"
        ))
        .expect("a table on the other server");
    db.run(&format!(
        "CREATE EXTENSION postgres_fdw;
         CREATE SERVER elsewhere FOREIGN DATA WRAPPER postgres_fdw
             OPTIONS (host '{}', port '5432', dbname 'postgres', extensions 'vector', batch_size '100');
         CREATE USER MAPPING FOR postgres SERVER elsewhere OPTIONS (user 'postgres');
         CREATE FOREIGN TABLE public.docs ({columns}) SERVER elsewhere OPTIONS (table_name 'there')",
        elsewhere.home().display()
    ));
    Some((elsewhere, db))
}

#[test]
fn a_partitioned_target_on_another_server_serves() {
    let parts = "PARTITION BY HASH (document_key);
                 CREATE TABLE public.there_0 PARTITION OF public.there FOR VALUES WITH (MODULUS 4, REMAINDER 0);
                 CREATE TABLE public.there_1 PARTITION OF public.there FOR VALUES WITH (MODULUS 4, REMAINDER 1);
                 CREATE TABLE public.there_2 PARTITION OF public.there FOR VALUES WITH (MODULUS 4, REMAINDER 2);
                 CREATE TABLE public.there_3 PARTITION OF public.there FOR VALUES WITH (MODULUS 4, REMAINDER 3)";
    let Some((_elsewhere, db)) = on_another_server(COLUMNS, parts) else {
        return;
    };
    let api = FakeApi::start(behaviour());
    db.create_remote_pipeline("default", &api, "target => 'public.docs'");
    lives_through_everything(&db);
    db.run("INSERT INTO ingest.documents (key, content) SELECT 'k' || n, 'Text ' || n FROM generate_series(4, 40) n");
    db.settle();
    // Rows of several partitions lie at the same place.
    db.run("UPDATE ingest.documents SET metadata = jsonb_build_object('of', key, 'quoted', E'it\\'s \\\\ \"so\"')");
    let wrong = "SELECT document_key || ' has ' || metadata FROM public.docs
                 WHERE metadata <> jsonb_build_object('of', document_key, 'quoted', E'it\\'s \\\\ \"so\"')";
    assert_eq!(db.all::<String>(wrong), Vec::<String>::new());
    db.run("UPDATE ingest.documents SET content = content || ' More.' WHERE key = 'k7'; DELETE FROM ingest.documents WHERE key = 'k8'");
    db.settle();
    assert_eq!(
        db.all::<String>(
            "SELECT concat(document_key, docs.content) FROM public.docs FULL JOIN ingest.documents d ON key = document_key
             WHERE d.key IS NULL OR document_key IS NULL OR docs.content <> d.content"
        ),
        Vec::<String>::new()
    );
}

#[test]
fn a_target_on_another_server_serves() {
    let Some((elsewhere, db)) = on_another_server(COLUMNS, "") else {
        return;
    };
    let api = FakeApi::start(behaviour());
    let key = db.cluster().write_key(KEY);
    let error = db.expect_error(&format!(
        "SELECT ingest.create_pipeline(model => 'openai/text-embedding-3-small', base_url => '{}', api_key => '{key}',
                                       target => 'public.docs', index => 'immediate')",
        api.openai_url()
    ));
    assert_eq!(error.code, "42809", "{error:?}");
    assert!(error.text().contains("index => 'none'"), "{error:?}");
    db.create_remote_pipeline("default", &api, "target => 'public.docs'");
    lives_through_everything(&db);
    let plan = db.explain(
        "SELECT document_key FROM public.docs ORDER BY embedding <=> array_fill(0.5, ARRAY[1536])::vector LIMIT 3",
    );
    assert!(
        plan.contains("Foreign Scan") && !plan.contains("Sort"),
        "{plan}"
    );

    // New metadata touches its document's rows over there and no other's.
    let mut other = elsewhere.client("postgres");
    other
        .batch_execute("BEGIN; SELECT FROM public.there WHERE document_key = 'k1' FOR UPDATE")
        .expect("a row is locked on the other server");
    db.run("SET statement_timeout = '20s'");
    db.run(r#"UPDATE ingest.documents SET metadata = '{"lang": "de"}' WHERE key = 'k3'"#);
    db.run("RESET statement_timeout");
    drop(other);
    assert_eq!(
        db.all::<String>("SELECT document_key FROM public.docs WHERE metadata ->> 'lang' = 'de'"),
        ["k3"]
    );

    // While the other server is away the documents wait, and nothing fails.
    elsewhere.stop_server("fast");
    db.run("INSERT INTO ingest.documents (key, content) VALUES ('late', 'A late text')");
    wait_until("the pipeline is blocked", SOON, || {
        let progress = db.progress();
        assert_eq!(progress.failed, 0, "{progress:?}");
        progress.state == "blocked"
    });
    elsewhere.start_server();
    db.run("SELECT ingest.resume('default')");
    db.settle();
    assert_eq!(
        db.one::<i64>("SELECT count(*) FROM public.docs WHERE document_key = 'late'"),
        1
    );
}

#[test]
fn more_than_two_thousand_dimensions_are_indexed() {
    let api = FakeApi::start(behaviour());
    let db = Database::new();
    db.run(&format!(
        "SELECT ingest.create_pipeline(model => 'openai/text-embedding-3-large', base_url => '{}', api_key => '{}',
                                       target => 'public.large', index => 'immediate')",
        api.openai_url(),
        db.cluster().write_key(KEY)
    ));
    db.run("INSERT INTO ingest.documents (key, content) SELECT 'k' || n, 'Text ' || n FROM generate_series(1, 60) n");
    db.settle();
    assert_eq!(
        db.one::<String>("SELECT format_type(atttypid, atttypmod) FROM pg_attribute WHERE attrelid = 'public.large'::regclass AND attname = 'embedding'"),
        "halfvec(3072)"
    );
    db.run("SET enable_seqscan = off; SET enable_sort = off");
    let plan = db.explain("SELECT * FROM public.large ORDER BY embedding <=> array_fill(0.1, ARRAY[3072])::halfvec LIMIT 3");
    assert!(plan.contains("embedding_idx"), "{plan}");
    db.run("SELECT ingest.create_match_function('default')");
    for search in [
        "SELECT key FROM ingest.search('Text 7', 1)",
        "SELECT key FROM ingest.hybrid_search('Text 7', 1)",
        "SELECT 'k' || split_part(content, ' ', 2) FROM public.match_documents(ingest.embed('Text 7'), 1)",
    ] {
        assert_eq!(db.one::<String>(search), "k7", "{search}");
    }
}

#[test]
fn a_table_that_cannot_be_the_target_is_refused() {
    let db = Database::with_pipeline();
    db.run(
        "CREATE TABLE public.other_columns (id int, body text);
         CREATE TABLE public.other_dimensions (document_key text, chunk_no int, content text, tokens int, metadata jsonb, embedding vector(3));
         CREATE TABLE public.other_types (document_key text, chunk_no text, content text, tokens int, metadata jsonb, embedding vector(384));
         CREATE TABLE public.wants_more (document_key text, chunk_no int, content text, tokens int, metadata jsonb, embedding vector(384), tenant int NOT NULL);
         CREATE TABLE public.generated (document_key text, chunk_no int GENERATED ALWAYS AS (tokens) STORED, content text, tokens int, metadata jsonb, embedding vector(384));
         CREATE TABLE public.numbered (document_key text, chunk_no int GENERATED ALWAYS AS IDENTITY, content text, tokens int, metadata jsonb, embedding vector(384));
         CREATE DOMAIN public.filled AS int NOT NULL;
         CREATE DOMAIN public.filled_by_itself AS int NOT NULL DEFAULT 1;
         CREATE TABLE public.wants_domain (document_key text, chunk_no int, content text, tokens int, metadata jsonb, embedding vector(384), tenant public.filled);
         CREATE TABLE public.has_domain (document_key text, chunk_no int, content text, tokens int, metadata jsonb, embedding vector(384), tenant public.filled_by_itself, other public.filled DEFAULT 2);
         CREATE TEMPORARY TABLE docs (document_key text, chunk_no int, content text, tokens int, metadata jsonb, embedding vector(384));
         CREATE VIEW public.a_view AS SELECT * FROM ingest.default_chunks;
         CREATE SEQUENCE public.a_sequence",
    );
    refused_all(
        &db,
        &[
            (
                "SELECT ingest.create_pipeline('p', target => 'public.other_columns')",
                "42804",
                "document_key is missing",
            ),
            (
                "SELECT ingest.create_pipeline('p', target => 'public.other_dimensions')",
                "42804",
                "vector(3)",
            ),
            (
                "SELECT ingest.create_pipeline('p', target => 'public.other_types')",
                "42804",
                "chunk_no",
            ),
            (
                "SELECT ingest.create_pipeline('p', target => 'public.wants_more')",
                "42804",
                "tenant",
            ),
            (
                "SELECT ingest.create_pipeline('p', target => 'public.a_view')",
                "42804",
                "view",
            ),
            (
                "SELECT ingest.create_pipeline('p', target => 'public.a_sequence')",
                "42804",
                "sequence",
            ),
            (
                "SELECT ingest.create_pipeline('p', target => 'ingest.default_chunks')",
                "55006",
                "is the target of pipeline \"default\"",
            ),
            (
                "SELECT ingest.create_pipeline('p', target => 'public.generated')",
                "42804",
                "chunk_no is generated",
            ),
            (
                "SELECT ingest.create_pipeline('p', target => 'public.numbered')",
                "42804",
                "chunk_no is generated",
            ),
            (
                "SELECT ingest.create_pipeline('p', target => 'public.wants_domain')",
                "42804",
                "tenant",
            ),
            (
                "SELECT ingest.create_pipeline('p', target => 'pg_temp.docs')",
                "42P16",
                "temporary",
            ),
            (
                "SELECT ingest.create_pipeline('p', target => 'pg_temp.new')",
                "42P16",
                "temporary",
            ),
        ],
    );
    let none = db.expect_error("SELECT ingest.create_pipeline('p', target => 'nowhere.docs')");
    assert_eq!(none.code, "3F000", "{none:?}");
    db.run("SELECT ingest.create_pipeline('p', target => 'public.has_domain')");
}

#[test]
fn two_pipelines_share_no_rows() {
    let db = Database::new();
    let columns = "(document_key text, chunk_no int, content text, tokens int, metadata jsonb, embedding vector(384))";
    db.run(&format!(
        "CREATE TABLE public.whole {columns} PARTITION BY LIST (chunk_no);
         CREATE TABLE public.half PARTITION OF public.whole DEFAULT PARTITION BY HASH (document_key);
         CREATE TABLE public.quarter PARTITION OF public.half FOR VALUES WITH (MODULUS 2, REMAINDER 0);
         CREATE TABLE public.other_quarter PARTITION OF public.half FOR VALUES WITH (MODULUS 2, REMAINDER 1);
         CREATE TABLE public.parent {columns}; CREATE TABLE public.child () INHERITS (public.parent)"
    ));
    for (taken, wanted) in [
        ("whole", "half"),
        ("whole", "quarter"),
        ("quarter", "whole"),
        ("half", "whole"),
        ("parent", "child"),
        ("child", "parent"),
    ] {
        db.run(&format!(
            "SELECT ingest.create_pipeline('first', target => 'public.{taken}')"
        ));
        let error = db.expect_error(&format!(
            "SELECT ingest.create_pipeline('second', target => 'public.{wanted}')"
        ));
        assert_eq!(error.code, "55006", "{taken} {wanted}: {error:?}");
        let words = format!("shares rows with public.{taken}, the target of pipeline \"first\"");
        assert!(error.message.contains(&words), "{error:?}");
        db.run("SELECT ingest.drop_pipeline('first')");
    }
    db.run("SELECT ingest.create_pipeline('first', target => 'public.quarter'); SELECT ingest.create_pipeline('second', target => 'public.other_quarter')");
}

#[test]
fn rows_without_a_key_and_rows_alike_are_left_as_they_are() {
    let api = FakeApi::start(behaviour());
    let db = Database::new();
    db.run(&format!(
        "CREATE TABLE public.docs ({});
         INSERT INTO public.docs (content, embedding)
         SELECT 'Their text ' || n, array_fill(0.5 + n / 10.0, ARRAY[1536])::vector FROM generate_series(1, 3) n",
        COLUMNS.replace(" NOT NULL", "")
    ));
    db.create_remote_pipeline(
        "default",
        &api,
        "target => 'public.docs', on_success => 'keep'",
    );
    assert_eq!(db.progress().chunks, 0);
    db.run("INSERT INTO ingest.documents (key, content) VALUES ('a', 'A text of mine.')");
    db.settle();
    // The same chunk twice, as a table without a unique index can have it.
    db.run("INSERT INTO public.docs SELECT * FROM public.docs WHERE document_key = 'a'");
    let found = db.all::<String>("SELECT content FROM ingest.hybrid_search('text', 10) ORDER BY 1");
    assert_eq!(
        found,
        [
            "A text of mine.",
            "A text of mine.",
            "Their text 1",
            "Their text 2",
            "Their text 3"
        ]
    );
    let best: f64 = db.one("SELECT max(score) FROM ingest.hybrid_search('text', 10)");
    assert!(best <= 2.0 / 51.0 + 1e-9, "{best} is of two chunks");
    db.run("UPDATE ingest.documents SET metadata = '{\"a\": 1}'");
    let error = db.expect_error("SELECT ingest.alter_pipeline('default', dimensions => 64)");
    assert_eq!(error.code, "55000", "{error:?}");
    assert!(
        error.text().contains("3 rows that pg_ingest did not write"),
        "{error:?}"
    );
    db.run("TRUNCATE ingest.documents");
    assert_eq!(
        db.one::<i64>("SELECT count(*) FROM public.docs WHERE metadata IS NULL"),
        3
    );
    assert_eq!(db.one::<i64>("SELECT count(*) FROM public.docs"), 3);
}

#[test]
fn an_empty_target_on_another_server_keeps_its_dimensions() {
    let Some((_elsewhere, db)) = on_another_server(COLUMNS, "") else {
        return;
    };
    let api = FakeApi::start(behaviour());
    db.create_remote_pipeline("default", &api, "target => 'public.docs'");
    let error = db.expect_error("SELECT ingest.alter_pipeline('default', dimensions => 64)");
    assert_eq!(error.code, "55000", "{error:?}");
    assert!(error.text().contains("another server"), "{error:?}");
    db.run("INSERT INTO ingest.documents (key, content) VALUES ('a', 'One text.')");
    db.settle();
    assert_eq!(db.check_vectors("public.docs"), 1);
    db.run("SELECT ingest.drop_pipeline('default', drop_target => true)");
    assert!(db.one::<bool>("SELECT to_regclass('public.docs') IS NULL"));
}

#[test]
fn an_existing_table_serves_as_target() {
    let db = Database::new();
    db.run(
        "CREATE SCHEMA app;
         CREATE TABLE app.docs (
             id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, document_key text, chunk_no int, content text, tokens int,
             metadata jsonb, embedding vector(384), loaded_at timestamptz DEFAULT now(), note text);
         CREATE TABLE app.parts (LIKE app.docs INCLUDING DEFAULTS INCLUDING IDENTITY) PARTITION BY HASH (document_key);
         CREATE TABLE app.parts_0 PARTITION OF app.parts FOR VALUES WITH (MODULUS 2, REMAINDER 0);
         CREATE TABLE app.parts_1 PARTITION OF app.parts FOR VALUES WITH (MODULUS 2, REMAINDER 1)",
    );
    db.run("SELECT ingest.create_pipeline('plain', target => 'app.docs')");
    db.run("SELECT ingest.create_pipeline('parted', target => 'app.parts')");
    for pipeline in ["plain", "parted"] {
        db.run(&format!("INSERT INTO ingest.documents (pipeline, key, content) SELECT '{pipeline}', 'k' || n, 'Text number ' || n FROM generate_series(1, 10) n"));
    }
    db.settle();
    db.run("UPDATE ingest.documents SET content = content || ', changed' WHERE key = 'k1'; DELETE FROM ingest.documents WHERE key = 'k2'");
    db.settle();
    for (pipeline, table) in [("plain", "app.docs"), ("parted", "app.parts")] {
        assert_eq!(db.progress_of(pipeline).counts(), (9, 9, 0, 0));
        assert_eq!(db.one::<i64>(&format!("SELECT count(*) FROM {table}")), 9);
        assert_eq!(
            db.one::<String>(&format!(
                "SELECT content FROM ingest.search('Text number 1, changed', 1, '{pipeline}')"
            )),
            "Text number 1, changed"
        );
    }
}

#[test]
fn a_target_may_need_quoting_and_a_long_name() {
    let db = Database::new();
    db.run(r#"CREATE SCHEMA "My Schema""#);
    let table = "x".repeat(63);
    db.run(&format!(r#"SELECT ingest.create_pipeline('p', target => '"My Schema"."{table}"', index => 'immediate')"#));
    db.run("INSERT INTO ingest.documents (pipeline, key, content) VALUES ('p', 'k', 'A text.')");
    db.settle();
    assert_eq!(
        db.one::<i64>(&format!(r#"SELECT count(*) FROM "My Schema"."{table}""#)),
        1
    );
    assert_eq!(
        db.one::<String>("SELECT key FROM ingest.search('text', 1, 'p')"),
        "k"
    );
    let name = "n".repeat(63);
    db.run(&format!(
        "SELECT ingest.create_pipeline('{name}', target => 'public.short')"
    ));
    assert_eq!(db.progress_of(&name).state, "idle");
}

#[test]
fn a_target_may_be_renamed_and_moved() {
    let db = Database::with_pipeline();
    db.run(&texts::insert_passages());
    db.settle();
    db.run("CREATE SCHEMA app; ALTER TABLE ingest.default_chunks RENAME TO passages; ALTER TABLE ingest.passages SET SCHEMA app");
    db.run("INSERT INTO ingest.documents (key, content) VALUES ('late', 'Lanterns light the harbour at night.')");
    db.run("DELETE FROM ingest.documents WHERE key = 'keys.md'");
    db.settle();
    assert_eq!(db.one::<i64>("SELECT count(*) FROM app.passages"), 8);
    assert_eq!(
        db.one::<String>("SELECT key FROM ingest.search('harbour lights', 1)"),
        "late"
    );
}

#[test]
fn a_target_may_defer_its_constraints() {
    let db = Database::new();
    db.run(
        "CREATE TABLE public.known (key text PRIMARY KEY);
         INSERT INTO public.known SELECT 'k' || n FROM generate_series(1, 9) n;
         CREATE TABLE public.docs (
             document_key text REFERENCES public.known DEFERRABLE INITIALLY DEFERRED, chunk_no int, content text, tokens int,
             metadata jsonb, embedding vector(384), UNIQUE (document_key, chunk_no) DEFERRABLE INITIALLY DEFERRED)",
    );
    db.run("SELECT ingest.create_pipeline('p', target => 'public.docs', max_attempts => 1)");
    db.run(
        "INSERT INTO ingest.documents (pipeline, key, content)
         SELECT 'p', 'k' || n, 'Text number ' || n FROM generate_series(1, 10) n",
    );
    db.settle();
    // The tenth is not among the known: that shows when the constraint is checked, and fails this one alone.
    assert_eq!(db.progress_of("p").counts(), (10, 9, 0, 1));
    db.run(
        "UPDATE ingest.documents SET content = content || ', changed' WHERE key = 'k1';
         UPDATE ingest.documents SET metadata = '{\"a\": 1}' WHERE key = 'k2';
         DELETE FROM ingest.documents WHERE key IN ('k3', 'k10')",
    );
    db.settle();
    assert_eq!(db.progress_of("p").counts(), (8, 8, 0, 0));
    assert_eq!(db.one::<i64>("SELECT count(*) FROM public.docs"), 8);
    // What the user has deferred elsewhere in the transaction stays deferred.
    db.run("CREATE TABLE public.notes (key text REFERENCES public.known DEFERRABLE INITIALLY DEFERRED)");
    db.run(
        "BEGIN;
         INSERT INTO public.notes VALUES ('unknown yet');
         DELETE FROM ingest.documents WHERE key = 'k4';
         UPDATE ingest.documents SET metadata = '{\"a\": 2}' WHERE key = 'k5';
         INSERT INTO public.known VALUES ('unknown yet');
         COMMIT",
    );
}

#[test]
fn what_an_index_is_wanted_for_is_said_to_who_cannot_make_it() {
    let db = Database::new();
    let (owner, mut client) = role(&db);
    db.run(&format!(
        "CREATE TABLE public.docs (document_key text, chunk_no int, content text, tokens int, metadata jsonb, embedding vector(384));
         GRANT SELECT, INSERT, UPDATE, DELETE ON public.docs TO {owner}"
    ));
    let error = forbidden(
        &mut client,
        "SELECT ingest.create_pipeline('theirs', target => 'public.docs', index => 'immediate')",
    );
    for words in [
        "must be owner of table public.docs",
        "CREATE INDEX ON public.docs USING hnsw (embedding public.vector_cosine_ops)",
        "USING gin (to_tsvector(",
        "index => 'none'",
    ] {
        assert!(error.text().contains(words), "{words}: {error:?}");
    }
    // A table without an index on the key is slow to change.
    let create = |name: &str| {
        let create = format!(
            "SELECT ingest.create_pipeline('{name}', target => 'public.docs', index => 'none') IS NULL"
        );
        let (_, notices) = db.one_with_notices::<bool>("", &create);
        db.run(&format!("SELECT ingest.drop_pipeline('{name}')"));
        notices
    };
    let hint = "CREATE INDEX ON public.docs (document_key);";
    let notices = create("slow");
    assert!(
        notices
            .iter()
            .any(|n| n.starts_with("WARNING") && n.contains(hint)),
        "{notices:?}"
    );
    db.run(hint);
    assert_eq!(create("fast"), Vec::<String>::new());
}

#[test]
fn a_dropped_target_takes_no_documents_along_if_its_hint_is_followed() {
    let db = Database::with_pipeline();
    db.run("INSERT INTO ingest.documents (key, content) VALUES ('a', 'One text.')");
    db.settle();
    db.run("DROP TABLE ingest.default_chunks");
    let search = db.expect_error("SELECT * FROM ingest.search('text')");
    assert_eq!(search.code, "42P01", "{search:?}");
    let doctor: String =
        db.one("SELECT hint FROM ingest.doctor() WHERE \"check\" = 'target of default'");
    for hint in [search.hint.expect("a hint"), doctor] {
        let steps = [
            "UPDATE ingest.documents SET pipeline = '<the other>' WHERE pipeline = 'default'",
            "SELECT ingest.drop_pipeline('default');",
        ];
        for step in steps {
            assert!(hint.contains(step), "{hint}");
        }
    }
    db.run(
        "SELECT ingest.create_pipeline('new'); UPDATE ingest.documents SET pipeline = 'new' WHERE pipeline = 'default';
         SELECT ingest.drop_pipeline('default')",
    );
    db.settle();
    assert_eq!(
        db.one::<String>("SELECT key FROM ingest.search('text', 1, 'new')"),
        "a"
    );
}
