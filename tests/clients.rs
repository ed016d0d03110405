//! Promise: clients that know nothing of pg_ingest read what it writes: supabase-js and LangChain by the match function,
//! vecs and LlamaIndex by the layout of their own table; and words find what vectors miss.

use std::path::{Path, PathBuf};
use std::process::Command;

use fake_api::FakeApi;
use harness::remote::{behaviour, embed};
use harness::*;

/// A database as Supabase has it: pgvector in `extensions`, and roles that an API lends to everybody and to its users.
fn supabase(api: &FakeApi, more: &str) -> Database<'static> {
    let db = Database::empty_in(shared_cluster(&[]));
    db.run(&format!(
        "CREATE SCHEMA extensions; CREATE EXTENSION vector SCHEMA extensions; CREATE EXTENSION pg_ingest;
         ALTER DATABASE {} SET search_path = public, extensions; SET search_path = public, extensions;
         DO $$ BEGIN CREATE ROLE anon NOLOGIN; CREATE ROLE authenticated NOLOGIN; EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL; END $$;
         GRANT USAGE ON SCHEMA public, extensions TO anon, authenticated",
        db.name()
    ));
    db.create_remote_pipeline("docs", api, more);
    db.run(
        r#"INSERT INTO ingest.documents (pipeline, key, content, metadata) VALUES
            ('docs', 'a.md', 'Rotate a key by making a new one first.', '{"lang": "en", "year": 2024, "tags": ["keys", "ops"]}'),
            ('docs', 'b.md', 'Cats sleep for most of the day.', '{"lang": "en", "year": 2021, "tags": ["cats"]}'),
            ('docs', 'c.md', 'Katzen schlafen den halben Tag.', '{"lang": "de", "year": 2022, "tags": ["cats"]}'),
            ('docs', 'it''s #1', 'A key with odd characters.', '{}')"#,
    );
    db.settle();
    db
}

/// The folder of the scripts.
fn scripts() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("clients")
}

/// Where scripts/clients.sh has installed the clients.
fn clients() -> PathBuf {
    std::env::var_os("PG_INGEST_CLIENTS").map(PathBuf::from).unwrap_or_else(|| {
        panic!("PG_INGEST_CLIENTS does not say where the clients are: run scripts/clients.sh, which prints it")
    })
}

/// The program that a file of these clients names.
fn program(file: &str) -> String {
    let name = std::fs::read_to_string(clients().join(file)).expect("the name of a program");
    name.trim().to_owned()
}

/// A script of tests/clients for this database, with the packages of Python that scripts/clients.sh installs.
fn python(script: &str, db: &Database) -> Command {
    let mut python = Command::new(program("python"));
    python
        .arg(scripts().join(script))
        .arg(db.cluster().home())
        .arg(db.name())
        .env("PYTHONPATH", clients().join("lib"))
        .env("PYTHONDONTWRITEBYTECODE", "1");
    python
}

/// Runs it.
fn succeeds(mut script: Command) {
    let done = script.output().expect("a program");
    assert!(
        done.status.success(),
        "{:?}: {}{}",
        script.get_args(),
        String::from_utf8_lossy(&done.stdout),
        String::from_utf8_lossy(&done.stderr)
    );
}

#[test]
fn the_vecs_client_finds_the_collection_and_its_index() {
    let api = FakeApi::start(behaviour());
    let db = supabase(&api, "layout => 'vecs', index => 'immediate'");
    succeeds(python("vecs_reads.py", &db));
}

#[test]
fn llama_index_gets_its_nodes_back() {
    let api = FakeApi::start(behaviour());
    let db = supabase(&api, "layout => 'vecs', index => 'immediate'");
    succeeds(python("llama_index_reads.py", &db));
}

#[test]
fn langchain_asks_through_the_api() {
    let api = FakeApi::start(behaviour());
    for target in ["target => 'public.docs'", "layout => 'vecs'"] {
        let db = supabase(&api, target);
        db.run("SELECT ingest.create_match_function('docs')");
        db.run("GRANT SELECT ON ALL TABLES IN SCHEMA public TO anon");
        if target.contains("vecs") {
            db.run("GRANT USAGE ON SCHEMA vecs TO anon; GRANT SELECT ON vecs.docs TO anon");
        }
        succeeds(python("langchain_reads.py", &db));
    }
}

#[test]
fn supabase_js_asks_through_the_api() {
    let packages = clients().join("javascript");
    if !packages.join("node").exists() {
        println!(
            "skipped: scripts/clients.sh has not installed supabase-js, for want of Node.js 18 or newer, npm or a network"
        );
        return;
    }
    let api = FakeApi::start(behaviour());
    let db = supabase(&api, "target => 'public.docs'");
    db.run(
        r#"SELECT ingest.create_match_function('docs'); GRANT SELECT ON public.docs TO authenticated;
           UPDATE ingest.documents SET metadata = metadata || '{"public": true}' WHERE key = 'b.md'"#,
    );
    db.settle();
    let question = embed(&db, "Cats sleep for most of the day.", "docs");
    let mut asks = python("postgrest.py", &db);
    asks.arg(program("javascript/node"))
        .arg(scripts().join("supabase_js_reads.mjs"))
        .arg(packages)
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs"))
        .env("QUESTION", format!("{question:?}"));
    succeeds(asks);
}

#[test]
fn a_match_function_lends_nobody_rights() {
    let api = FakeApi::start(behaviour());
    let db = supabase(&api, "target => 'public.docs'");
    db.run("SELECT ingest.create_match_function('docs')");
    let ask = "SELECT string_agg(content, '|') FROM public.match_documents(array_fill(0.1, ARRAY[1536])::extensions.vector)";
    db.run("SET ROLE anon; SET search_path = public");
    let error = db.expect_error(ask);
    assert_eq!(error.code, "42501", "{error:?}");
    db.run(
        "RESET ROLE; GRANT SELECT ON public.docs TO anon; ALTER TABLE public.docs ENABLE ROW LEVEL SECURITY;
         CREATE POLICY cats ON public.docs TO anon USING (document_key = 'b.md'); SET ROLE anon; SET search_path = public",
    );
    assert_eq!(db.one::<String>(ask), "Cats sleep for most of the day.");
    db.run("RESET ROLE");
    let comment: String =
        db.one("SELECT obj_description('public.match_documents'::regproc, 'pg_proc')");
    assert!(comment.contains("caller's rights"), "{comment}");
}

#[test]
fn a_match_function_counts_filters_and_bounds() {
    let api = FakeApi::start(behaviour());
    for more in [
        "index => 'immediate'",
        "index => 'immediate', layout => 'vecs'",
    ] {
        let db = supabase(&api, more);
        db.run(
            r#"INSERT INTO ingest.documents (pipeline, key, content, metadata)
               SELECT 'docs', 'n' || n, 'Number ' || n, jsonb_build_object('shelf', n % 10) FROM generate_series(1, 100) n;
               INSERT INTO ingest.documents (pipeline, key, content, metadata) VALUES ('docs', 'odd', 'Odd metadata', '[1]')"#,
        );
        db.settle();
        db.run("SELECT ingest.create_match_function('docs', 'public.find'); SET enable_seqscan = off; SET enable_sort = off");
        let count = |arguments: &str| -> i64 {
            db.one(&format!(
                "SELECT count(*) FROM public.find(ingest.embed('Number 7', 'docs'){arguments})"
            ))
        };
        assert_eq!(count(""), 105, "{more}");
        assert_eq!(count(", match_count => 70"), 70, "{more}");
        assert_eq!(count(r#", filter => '{"shelf": 7}'"#), 10, "{more}");
        assert_eq!(count(r#", 3, '{"shelf": 7}'"#), 3, "{more}");
        assert_eq!(count(", filter => NULL"), 105, "{more}");
        assert_eq!(count(", match_threshold => 0.99"), 1, "{more}");
        let order: bool = db.one(
            "SELECT array_agg(similarity) = array_agg(similarity ORDER BY similarity DESC)
             FROM public.find(ingest.embed('Number 7', 'docs'), 50)",
        );
        assert!(order, "{more}");
        let error = db.expect_error("SELECT * FROM public.find('[1, 2, 3]')");
        assert!(error.text().contains("dimensions"), "{error:?}");
    }
}

#[test]
fn a_match_function_takes_no_ones_place() {
    let api = FakeApi::start(behaviour());
    let db = supabase(&api, "");
    db.run(
        "CREATE FUNCTION public.match_documents(query_embedding extensions.vector, match_count int) RETURNS int LANGUAGE sql AS 'SELECT 1'",
    );
    for (arguments, code, words) in [
        ("'docs'", "42723", "DROP FUNCTION"),
        ("'none'", "42704", "create_pipeline"),
        ("'docs', 'match'", "42602", "public.match_documents"),
        ("'docs', 'a.b.c'", "42602", "public.match_documents"),
        ("'docs', '\"'", "22023", "identifier"),
        ("'docs', 'nowhere.match'", "3F000", "nowhere"),
        ("NULL", "22004", "name"),
    ] {
        let error = db.expect_error(&format!("SELECT ingest.create_match_function({arguments})"));
        assert_eq!(error.code, code, "{arguments}: {error:?}");
        assert!(error.text().contains(words), "{arguments}: {error:?}");
    }
    let long = "m".repeat(64);
    let error = db.expect_error(&format!(
        "SELECT ingest.create_match_function('docs', 'public.{long}')"
    ));
    assert_eq!(error.code, "42622", "{error:?}");
    db.run("DROP FUNCTION public.match_documents");
    // Made anew for another pipeline whose ids are of another type.
    db.run("SELECT ingest.create_match_function('docs')");
    db.run("SELECT ingest.create_match_function('docs')");
    db.create_remote_pipeline("other", &api, "layout => 'vecs'");
    db.run("SELECT ingest.create_match_function('other')");
    assert_eq!(
        db.one::<i64>("SELECT count(*) FROM pg_proc WHERE proname = 'match_documents'"),
        1
    );
    // Who may call it is who could before, though it was dropped for the other ids.
    db.run(
        "REVOKE ALL ON FUNCTION public.match_documents FROM PUBLIC; GRANT EXECUTE ON FUNCTION public.match_documents TO authenticated;
         ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT EXECUTE ON FUNCTIONS TO anon; SELECT ingest.create_match_function('docs')",
    );
    assert_eq!(
        db.all::<String>(
            "SELECT a.grantee::regrole || ' ' || a.privilege_type FROM pg_proc f, aclexplode(f.proacl) a
             WHERE f.proname = 'match_documents' AND a.grantee <> f.proowner"
        ),
        ["authenticated EXECUTE"]
    );
    // Names and all that is in them stay names.
    db.run(r#"SELECT ingest.create_match_function('docs', 'public."it''s; -- "')"#);
    assert_eq!(
        db.one::<i64>(r#"SELECT count(*) FROM public."it's; -- "(ingest.embed('text', 'docs'))"#),
        4
    );
}

#[test]
fn hybrid_search_fuses_words_and_vectors() {
    let api = FakeApi::start(behaviour());
    for layout in ["chunks", "vecs"] {
        let db = supabase(
            &api,
            &format!("layout => '{layout}', index => 'immediate', language => 'english'"),
        );
        db.run(
            "INSERT INTO ingest.documents (pipeline, key, content)
             SELECT 'docs', 'n' || n, 'Number ' || n || ' of many ' || CASE WHEN n % 7 = 0 THEN 'keys' ELSE 'locks' END
             FROM generate_series(1, 60) n",
        );
        db.settle();
        // The words in another form, which no vector of this model is near to.
        let found =
            db.all::<String>("SELECT key FROM ingest.hybrid_search('rotating keys', 3, 'docs', semantic_weight => 0.5)");
        assert_eq!(found[0], "a.md", "{layout}");
        let columns = db.one::<bool>(
            "SELECT key = 'a.md' AND chunk_no = 0 AND content LIKE 'Rotate%' AND metadata ->> 'lang' = 'en'
                    AND similarity BETWEEN -1 AND 1 AND score > 0
             FROM ingest.hybrid_search('rotating keys', 1, 'docs', semantic_weight => 0.5)",
        );
        assert!(columns, "{layout}");
        // The formula of the guide, of places that are found by other means.
        let (table, id, content, embedding) = match layout {
            "vecs" => ("vecs.docs", "id", "metadata ->> 'text'", "vec"),
            _ => (
                "ingest.docs_chunks",
                "document_key || '#' || chunk_no",
                "content",
                "embedding",
            ),
        };
        for (query, weights) in [
            ("number -locks", "1, 1, 50"),
            ("\"of many\" keys", "2.5, 0.5, 10"),
            ("cats or katzen", "0, 1, 50"),
            ("nothing that is there", "1, 1, 50"),
        ] {
            let differences: i64 = db.one(&format!(
                "WITH w(f, s, k) AS (VALUES ({weights})), everything AS (
                     SELECT {id} AS id, to_tsvector('english', {content}) AS words, {embedding} <=> ingest.embed({query}, 'docs') AS distance
                     FROM {table}
                 ), near AS (
                     SELECT id, row_number() OVER (ORDER BY distance, id) AS place FROM everything ORDER BY distance, id LIMIT 20
                 ), matching AS (
                     SELECT id, row_number() OVER (ORDER BY ts_rank_cd(words, q) DESC, id) AS place
                     FROM everything, websearch_to_tsquery('english', {query}) q WHERE words @@ q
                     ORDER BY ts_rank_cd(words, q) DESC, id LIMIT 20
                 ), expected AS (
                     SELECT coalesce(f::float8 / (k + m.place), 0) + coalesce(s::float8 / (k + n.place), 0) AS score
                     FROM w, near n FULL JOIN matching m USING (id) ORDER BY 1 DESC LIMIT 10
                 ), found AS (
                     SELECT score FROM w, ingest.hybrid_search({query}, 10, 'docs', NULL, w.f, w.s, w.k)
                 )
                 SELECT count(*) FROM (SELECT score, row_number() OVER (ORDER BY score DESC) FROM expected) e(score, n)
                 FULL JOIN (SELECT score, row_number() OVER (ORDER BY score DESC) FROM found) h(score, n) USING (n)
                 WHERE e.score IS NULL OR h.score IS NULL OR abs(e.score - h.score) > 1e-9",
                query = quoted(query)
            ));
            assert_eq!(differences, 0, "{layout} {query}");
        }
        assert_eq!(
            db.all::<String>(
                r#"SELECT key FROM ingest.hybrid_search('cats', 10, 'docs', '{"lang": "de"}')"#
            ),
            ["c.md"],
            "{layout}"
        );
        assert_eq!(
            db.one::<i64>("SELECT count(*) FROM ingest.hybrid_search('keys', 100, 'docs')"),
            64,
            "{layout}"
        );
    }
}

#[test]
fn full_text_uses_an_index_in_the_language_of_the_pipeline() {
    let api = FakeApi::start(behaviour());
    for (layout, table) in [("chunks", "ingest.docs_chunks"), ("vecs", "vecs.docs")] {
        let db = supabase(&api, &format!("layout => '{layout}'"));
        let words: String = db.one(&format!(
            "SELECT ingest.text_search_of('{layout}', 'simple')"
        ));
        let indexed = |words: &str| {
            db.run("SET enable_seqscan = off");
            db.explain(&format!(
                "SELECT * FROM {table} AS c WHERE {words} @@ websearch_to_tsquery('simple', 'keys')"
            ))
            .contains("Index")
        };
        assert!(!indexed(&words), "{layout}");
        db.run("SELECT ingest.alter_pipeline('docs', index => 'immediate')");
        assert!(indexed(&words), "{layout}");
        db.run("SELECT ingest.alter_pipeline('docs', language => 'german')");
        assert!(!indexed(&words), "{layout}");
        assert!(indexed(&words.replace("simple", "german")), "{layout}");
        db.run("CREATE TEXT SEARCH CONFIGURATION public.\"our own\" (COPY = english); SELECT ingest.alter_pipeline('docs', language => 'public.\"our own\"')");
        assert!(
            indexed(&words.replace("simple", "public.\"our own\"")),
            "{layout}"
        );
        assert_eq!(
            db.one::<String>("SELECT key FROM ingest.hybrid_search('rotating', 1, 'docs', semantic_weight => 0.5)"),
            "a.md"
        );
        db.run("SELECT ingest.alter_pipeline('docs', index => 'none')");
        assert!(
            !indexed(&words.replace("simple", "public.\"our own\"")),
            "{layout}"
        );
        for (call, code, hint) in [
            (
                "SELECT ingest.alter_pipeline('docs', language => 'klingon')",
                "42704",
                "pg_ts_config",
            ),
            (
                "SELECT ingest.create_pipeline('p', language => 'our own')",
                "22023",
                "identifier",
            ),
            (
                "SELECT * FROM ingest.hybrid_search('x', 0, 'docs')",
                "22023",
                "at least 1",
            ),
            (
                "SELECT * FROM ingest.hybrid_search('x', 1, 'docs', semantic_weight => -1)",
                "22023",
                "weight",
            ),
            (
                "SELECT * FROM ingest.hybrid_search('x', 1, 'docs', full_text_weight => 'NaN')",
                "22023",
                "weight",
            ),
            (
                "SELECT * FROM ingest.hybrid_search('x', 1, 'docs', rrf_k => NULL)",
                "22023",
                "rrf_k",
            ),
        ] {
            let error = db.expect_error(call);
            assert_eq!(error.code, code, "{call}: {error:?}");
            assert!(error.text().contains(hint), "{call}: {error:?}");
        }
    }
}
