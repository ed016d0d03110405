//! Promise: whatever a target looks like, a document's chunks are exactly its own, and all that is done to a pipeline is
//! done to its target.

use fake_api::FakeApi;
use harness::remote::{KEY, behaviour};
use harness::roles::{forbidden, role, run};
use harness::*;

/// Keys that a careless id or pattern would confuse.
const KEYS: [&str; 12] = [
    "a",
    "a#1",
    "a#1#2",
    "a#",
    "#",
    "A",
    "a%",
    "a_",
    "it's \"quoted\" \\ {braces}",
    "ключ/鍵/🔑",
    " a ",
    "a\n#0",
];

/// A pipeline of short chunks with each layout, and where it writes.
const LAYOUTS: [(&str, &str); 2] = [
    ("chunks", "ingest.default_chunks"),
    ("vecs", "vecs.\"default\""),
];

/// A document's chunks, as `ingest.search()` would show them: key, number, content, metadata.
fn chunks(db: &Database, layout: &str, table: &str) -> Vec<(String, i32, String, String)> {
    let columns = db.rows(&format!(
        "SELECT concat_ws(', ', key, chunk_no, content, '(' || metadata || ')::text') FROM ingest.columns_of('{layout}')"
    ));
    let columns: String = columns[0].get(0);
    db.rows(&format!("SELECT {columns} FROM {table} AS c ORDER BY 1, 2"))
        .iter()
        .map(|row| (row.get(0), row.get(1), row.get(2), row.get(3)))
        .collect()
}

/// A database in which a deferred index is built at 30 chunks.
fn database() -> Database<'static> {
    Database::new_in(shared_cluster(&[(
        "pg_ingest.deferred_index_min_chunks",
        "30",
    )]))
}

fn create(layout: &str, api: &FakeApi) -> Database<'static> {
    let db = database();
    db.create_remote_pipeline(
        "default",
        api,
        &format!("layout => '{layout}', chunk_tokens => 8, chunk_overlap => 0"),
    );
    db
}

/// `n` sentences, each a chunk.
fn text(word: &str, n: usize) -> String {
    (0..n)
        .map(|i| format!("The {word} number {i} stands here.\n\n"))
        .collect()
}

#[test]
fn a_changed_document_replaces_its_own_chunks_and_no_others() {
    let api = FakeApi::start(behaviour());
    for (layout, table) in LAYOUTS {
        let db = create(layout, &api);
        for key in KEYS {
            db.execute(
                "INSERT INTO ingest.documents (key, content) VALUES ($1, $2)",
                &[&key, &text("first", 3)],
            );
        }
        db.settle();
        let first = chunks(&db, layout, table);
        assert_eq!(first.len(), 3 * KEYS.len(), "{layout}");
        for (number, key) in KEYS.into_iter().enumerate() {
            let before = chunks(&db, layout, table);
            let n = 1 + number % 5;
            db.execute(
                "UPDATE ingest.documents SET content = $2 WHERE key = $1",
                &[&key, &text("second", n)],
            );
            db.settle();
            let after = chunks(&db, layout, table);
            let of = |rows: &[(String, i32, String, String)], own: bool| -> Vec<_> {
                let rows = rows.iter().filter(|row| (row.0 == key) == own);
                rows.cloned().collect()
            };
            assert_eq!(of(&before, false), of(&after, false), "{layout} {key:?}");
            let own = of(&after, true);
            assert_eq!(own.len(), n, "{layout} {key:?}");
            assert!(own.iter().all(|row| row.2.contains("second")), "{own:?}");
            assert_eq!(db.progress().chunks, after.len() as i64, "{layout} {key:?}");
        }
        let left = db.progress();
        db.execute("DELETE FROM ingest.documents WHERE key = $1", &[&"a"]);
        assert!(chunks(&db, layout, table).iter().all(|row| row.0 != "a"));
        assert_eq!(db.progress().chunks, left.chunks - 1, "{layout}");
        db.execute(
            "UPDATE ingest.documents SET key = 'b' WHERE key = $1",
            &[&"a#1"],
        );
        db.settle();
        let keys: Vec<String> = chunks(&db, layout, table)
            .into_iter()
            .map(|r| r.0)
            .collect();
        assert!(
            keys.contains(&"b".into()) && !keys.contains(&"a#1".into()),
            "{keys:?}"
        );
        db.run("TRUNCATE ingest.documents");
        assert_eq!(chunks(&db, layout, table), [], "{layout}");
        let progress = db.progress();
        assert_eq!((progress.chunks, progress.tokens), (0, 0), "{layout}");
    }
}

#[test]
fn metadata_reaches_the_chunks_and_filters_them() {
    let api = FakeApi::start(behaviour());
    for (layout, table) in LAYOUTS {
        let db = create(layout, &api);
        db.run(
            r#"INSERT INTO ingest.documents (key, content, metadata) VALUES
                ('a', 'One text.', '{"lang": "en", "text": "mine", "doc_id": 7}'), ('b', 'Another text.', '[1, "two"]'),
                ('c', 'A third text.', '{}')"#,
        );
        db.settle();
        let metadata = || -> Vec<String> {
            let rows = chunks(&db, layout, table);
            rows.into_iter().map(|row| row.3).collect()
        };
        let odd = match layout {
            "vecs" => r#"{"metadata": [1, "two"]}"#,
            _ => r#"[1, "two"]"#,
        };
        let mine = r#"{"lang": "en", "text": "mine", "doc_id": 7}"#;
        assert_eq!(metadata(), [mine, odd, "{}"], "{layout}");
        db.run(r#"UPDATE ingest.documents SET metadata = '{"lang": "de"}' WHERE key = 'c'"#);
        assert_eq!(metadata(), [mine, odd, r#"{"lang": "de"}"#], "{layout}");
        assert_eq!(
            db.all::<String>(
                r#"SELECT key || chunk_no || content || metadata FROM ingest.search('text', 5, filter => '{"lang": "de"}')"#
            ),
            [r#"c0A third text.{"lang": "de"}"#],
            "{layout}"
        );
        assert_eq!(
            db.one::<i64>("SELECT count(*) FROM ingest.search('One text.')"),
            3
        );
    }
}

#[test]
fn the_chunks_of_a_document_are_found_by_an_index() {
    let api = FakeApi::start(behaviour());
    for (layout, table) in LAYOUTS {
        let db = create(layout, &api);
        db.run("INSERT INTO ingest.documents (key, content) SELECT 'k' || n, 'Text ' || n FROM generate_series(1, 50) n");
        db.settle();
        let scans = || -> (i64, i64) {
            let rows = db.rows(&format!(
                "SELECT coalesce(seq_scan, 0), coalesce(idx_scan, 0) FROM pg_stat_xact_user_tables WHERE relid = '{table}'::regclass"
            ));
            (rows[0].get(0), rows[0].get(1))
        };
        db.run("SET enable_seqscan = off; BEGIN");
        let before = scans();
        db.run("DELETE FROM ingest.documents WHERE key IN ('k1', 'k2')");
        let after = scans();
        db.run("COMMIT");
        assert_eq!(after.0, before.0, "{layout}: sequential scans");
        assert!(after.1 > before.1, "{layout}: scans of an index");
        assert_eq!(db.progress().chunks, 48, "{layout}");
    }
}

#[test]
fn a_pipeline_with_another_layout_is_altered_and_dropped_like_any() {
    let api = FakeApi::start(behaviour());
    for (layout, table) in LAYOUTS {
        let db = create(layout, &api);
        db.run("INSERT INTO ingest.documents (key, content) VALUES ('a', 'One text.')");
        db.settle();
        let indexes = || -> i64 {
            db.one(&format!(
                "SELECT count(*) FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_am m ON m.oid = c.relam
                 WHERE i.indrelid = '{table}'::regclass AND m.amname = 'hnsw'"
            ))
        };
        assert_eq!(indexes(), 0);
        db.run("SELECT ingest.alter_pipeline('default', index => 'immediate')");
        db.run("SELECT ingest.alter_pipeline('default', index => 'immediate')");
        assert_eq!(indexes(), 1, "{layout}");
        db.run("SELECT ingest.alter_pipeline('default', index => 'none')");
        assert_eq!(indexes(), 0, "{layout}");
        db.run(&format!(
            "SELECT ingest.alter_pipeline('default', layout => '{layout}', chunk_tokens => 16)"
        ));
        db.settle();
        assert_eq!(db.progress().chunks, 1);
        db.run("SELECT ingest.drop_pipeline('default')");
        assert_eq!(db.one::<i64>(&format!("SELECT count(*) FROM {table}")), 1);
        // The table serves again, and what is in it counts.
        db.create_remote_pipeline("default", &api, &format!("layout => '{layout}'"));
        assert_eq!(db.progress().chunks, 1, "{layout}");
        db.run("SELECT ingest.drop_pipeline('default', drop_target => true)");
        assert!(db.one::<bool>(&format!("SELECT to_regclass('{table}') IS NULL")));
    }
}

#[test]
fn new_metadata_arrives_as_it_was_written() {
    let api = FakeApi::start(behaviour());
    for (layout, table) in LAYOUTS {
        let db = create(layout, &api);
        db.run("INSERT INTO ingest.documents (key, content) VALUES ('a', 'One text.')");
        db.settle();
        for metadata in [
            r#"'{"big": 12345678901234567890123, "p": 1.10}'"#,
            r#"'{"n": 1e400}'"#,
            "repeat('[', 200) || repeat(']', 200)",
            r#"'"text"'"#,
        ] {
            db.run(&format!(
                "UPDATE ingest.documents SET metadata = ({metadata})::jsonb"
            ));
            let expected = match (layout, metadata.contains('{')) {
                ("vecs", false) => format!("jsonb_build_object('metadata', ({metadata})::jsonb)"),
                _ => format!("({metadata})::jsonb"),
            };
            assert_eq!(
                chunks(&db, layout, table)[0].3,
                db.one::<String>(&format!("SELECT ({expected})::text")),
                "{layout}"
            );
        }
    }
}

#[test]
fn a_target_that_the_vecs_client_would_not_find_is_refused() {
    let db = database();
    for (arguments, code, words) in [
        ("target => 'public.docs'", "42602", "vecs.docs"),
        ("target => 'vecs._docs'", "42602", "'_'"),
        ("name => '_docs'", "42602", "'_'"),
    ] {
        let error = db.expect_error(&format!(
            "SELECT ingest.create_pipeline(layout => 'vecs', {arguments})"
        ));
        assert_eq!(error.code, code, "{error:?}");
        assert!(error.text().contains(words), "{error:?}");
    }
    db.run("CREATE SCHEMA vecs");
    for (columns, words) in [
        (
            "id varchar PRIMARY KEY, vec vector(3) NOT NULL, metadata jsonb",
            "vector(3), not vector(384)",
        ),
        (
            "id text PRIMARY KEY, vec vector(384), metadata jsonb",
            "character varying",
        ),
        (
            "id varchar PRIMARY KEY, vec vector(384)",
            "metadata is missing",
        ),
    ] {
        db.run(&format!(
            "DROP TABLE IF EXISTS vecs.docs; CREATE TABLE vecs.docs ({columns})"
        ));
        let error = db.expect_error("SELECT ingest.create_pipeline('docs', layout => 'vecs')");
        assert_eq!(error.code, "42804", "{error:?}");
        assert!(error.text().contains(words), "{error:?}");
    }
    for (table, words) in [
        (
            "CREATE TABLE vecs.docs (id varchar, vec vector(384), metadata jsonb) PARTITION BY HASH (id)",
            "partitioned table",
        ),
        (
            "CREATE FOREIGN DATA WRAPPER w; CREATE SERVER s FOREIGN DATA WRAPPER w;
             CREATE FOREIGN TABLE vecs.docs (id varchar, vec vector(384), metadata jsonb) SERVER s",
            "foreign table",
        ),
    ] {
        db.run(&format!("DROP TABLE IF EXISTS vecs.docs; {table}"));
        let error = db.expect_error("SELECT ingest.create_pipeline('docs', layout => 'vecs')");
        assert_eq!(error.code, "42804", "{error:?}");
        assert!(error.text().contains(words), "{error:?}");
    }
    let api = FakeApi::start(behaviour());
    let key = db.cluster().write_key(KEY);
    let error = db.expect_error(&format!(
        "SELECT ingest.create_pipeline('large', model => 'openai/text-embedding-3-large', base_url => '{}', api_key => '{key}',
                                       layout => 'vecs')",
        api.openai_url()
    ));
    assert_eq!(error.code, "22023", "{error:?}");
    assert!(error.text().contains("layout => 'chunks'"), "{error:?}");
    assert_eq!(db.one::<i64>("SELECT count(*) FROM ingest.pipelines"), 0);
}

#[test]
fn what_others_put_into_a_collection_stays() {
    let api = FakeApi::start(behaviour());
    let db = database();
    db.run(
        "CREATE SCHEMA vecs;
         CREATE TABLE vecs.\"default\" (id varchar PRIMARY KEY, vec vector(1536) NOT NULL, metadata jsonb NOT NULL DEFAULT '{}');
         INSERT INTO vecs.\"default\" VALUES ('theirs', array_fill(0.5, ARRAY[1536])::vector, '{\"doc_id\": \"a\", \"lang\": \"en\"}')",
    );
    db.create_remote_pipeline("default", &api, "layout => 'vecs'");
    assert_eq!(db.progress().chunks, 0);
    assert_eq!(
        db.one::<i64>("SELECT count(*) FROM pg_indexes WHERE tablename = 'default' AND indexdef LIKE '%doc_id%'"),
        1
    );
    db.run("INSERT INTO ingest.documents (key, content) VALUES ('a', 'One text.')");
    db.settle();
    assert_eq!(
        db.one::<i64>("SELECT count(*) FROM ingest.search('text')"),
        2
    );
    db.run("UPDATE ingest.documents SET content = 'Another text.'");
    db.settle();
    db.run("TRUNCATE ingest.documents");
    assert_eq!(
        db.all::<String>("SELECT id FROM vecs.\"default\""),
        ["theirs"]
    );
    assert_eq!(db.progress().chunks, 0);
}

#[test]
fn what_others_put_into_a_collection_is_found_whatever_is_in_it() {
    let api = FakeApi::start(behaviour());
    let db = database();
    db.create_remote_pipeline("default", &api, "layout => 'vecs'");
    let rows = [
        r#"{"_node_content": "not json", "lang": "en"}"#,
        r#"{"_node_content": "{\"text\": \"cut off", "_node_type": "TextNode"}"#,
        r#"{"_node_content": "{\"text\": \"a \\ud800 b\"}", "_node_type": "TextNode"}"#,
        r#"{"_node_content": "{\"text\": \"a \\u0000 b\"}", "_node_type": "TextNode"}"#,
        r#"{"_node_content": "{\"text\": \"a \\x b\"}", "_node_type": "TextNode"}"#,
        r#"{"_node_content": null, "_node_type": "TextNode"}"#,
        r#"{"text": "a text of the vecs client's", "doc_id": "theirs"}"#,
        r#"["_chunk_no", "_node_type"]"#,
        r#""_chunk_no""#,
        "null",
    ];
    for (number, row) in rows.iter().enumerate() {
        db.execute(
            "INSERT INTO vecs.\"default\" VALUES ($1::text, array_fill(0.5, ARRAY[1536])::vector, $2::text::jsonb)",
            &[&format!("r{number}"), row],
        );
    }
    // As LlamaIndex writes it.
    let text = "He said: \"a\tb\" \\ é 🔑\n";
    for (id, ascii) in [("plain", "é 🔑"), ("ascii", "\\u00e9 \\ud83d\\udd11")] {
        let node = r#"{"id_": "x", "embedding": null, "metadata": {"lang": "de"}, "text": "He said: \"a\tb\" \\ KEY\n", "class_name": "TextNode"}"#;
        db.execute(
            "INSERT INTO vecs.\"default\" VALUES ($1::text, array_fill(0.5, ARRAY[1536])::vector,
                 jsonb_build_object('lang', 'de', '_node_content', $2::text, '_node_type', 'TextNode', 'doc_id', 'd'))",
            &[&id, &node.replace("KEY", ascii)],
        );
    }
    db.run("SELECT ingest.create_match_function('default')");
    for search in [
        "ingest.search('text', 50)",
        "ingest.hybrid_search('text', 50)",
        "public.match_documents(ingest.embed('text'))",
    ] {
        assert_eq!(
            db.one::<i64>(&format!("SELECT count(*) FROM {search}")),
            rows.len() as i64 + 2,
            "{search}"
        );
        let found = db.rows(&format!(
            "SELECT content, metadata::text FROM {search} WHERE metadata ->> 'lang' = 'de'"
        ));
        assert_eq!(found.len(), 2, "{search}");
        for row in found {
            assert_eq!(row.get::<_, &str>(0), text, "{search}");
            assert_eq!(row.get::<_, &str>(1), r#"{"lang": "de"}"#, "{search}");
        }
        assert_eq!(
            db.one::<String>(&format!(
                "SELECT content || metadata FROM {search} WHERE content LIKE '%client%'"
            )),
            r#"a text of the vecs client's{"text": "a text of the vecs client's", "doc_id": "theirs"}"#,
            "{search}"
        );
    }
}

#[test]
fn deferred_indexes_are_built_for_vectors_and_for_words() {
    let api = FakeApi::start(behaviour());
    for (layout, table) in LAYOUTS {
        let db = create(layout, &api);
        let indexes = || -> Vec<String> {
            db.all(&format!(
                "SELECT indexdef FROM pg_indexes WHERE format('%I.%I', schemaname, tablename)::regclass = '{table}'::regclass
                   AND indexdef ~ '(USING hnsw|to_tsvector)' ORDER BY indexdef ~ 'hnsw'"
            ))
        };
        db.run("INSERT INTO ingest.documents (key, content) SELECT 'k' || n, 'Text ' || n FROM generate_series(1, 20) n");
        db.settle();
        assert!(indexes().is_empty(), "{layout}");
        db.run("INSERT INTO ingest.documents (key, content) SELECT 'm' || n, 'Text ' || n FROM generate_series(1, 20) n");
        wait_until("the indexes are built", SOON, || indexes().len() == 2);
        let found = indexes();
        assert!(
            found[0].contains("to_tsvector('simple'::regconfig"),
            "{found:?}"
        );
        if layout == "vecs" {
            assert!(!found[0].contains("ix_vector"), "{found:?}");
            assert!(
                found[1].contains(" ix_vector_cosine_ops_hnsw_m16_efc64_"),
                "{found:?}"
            );
        }
    }
}

#[test]
fn a_target_that_lost_a_column_blocks_its_pipeline_and_fails_nothing() {
    let api = FakeApi::start(behaviour());
    for (layout, table) in LAYOUTS {
        let db = create(layout, &api);
        db.run(&format!(
            "ALTER TABLE {table} RENAME COLUMN metadata TO elsewhere"
        ));
        db.run("INSERT INTO ingest.documents (key, content) VALUES ('a', 'One text.')");
        wait_until("the pipeline is blocked", SOON, || {
            let progress = db.progress();
            assert_eq!(progress.failed, 0, "{layout} {progress:?}");
            progress.state == "blocked"
        });
        db.run(&format!(
            "ALTER TABLE {table} RENAME COLUMN elsewhere TO metadata"
        ));
        db.run("SELECT ingest.resume('default')");
        db.settle();
        assert_eq!(chunks(&db, layout, table).len(), 1, "{layout}");
    }
}

#[test]
fn an_owner_without_rights_in_the_database_is_told_what_is_missing() {
    let db = database();
    let (owner, mut client) = role(&db);
    let create = "SELECT ingest.create_pipeline('docs', layout => 'vecs')";
    let error = forbidden(&mut client, create);
    assert!(error.text().contains("CREATE SCHEMA vecs"), "{error:?}");
    db.run(&format!(
        "CREATE SCHEMA vecs; GRANT USAGE, CREATE ON SCHEMA vecs TO {owner}"
    ));
    run(&mut client, create);
    run(
        &mut client,
        "INSERT INTO ingest.documents (pipeline, key, content) VALUES ('docs', 'a', 'One text.')",
    );
    db.settle();
    run(
        &mut client,
        "UPDATE ingest.documents SET content = 'Another text.', metadata = '{\"lang\": \"en\"}'",
    );
    db.settle();
    assert_eq!(
        db.all::<String>("SELECT metadata ->> 'text' || (metadata ->> 'lang') FROM vecs.docs"),
        ["Another text.en"]
    );
    assert_eq!(
        db.one::<String>("SELECT tableowner::text FROM pg_tables WHERE schemaname = 'vecs'"),
        &*owner
    );
}
