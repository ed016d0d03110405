//! Promise: `count_tokens` counts as the model's own tokenizer does, and `split` shows exactly what the worker writes.

use harness::*;

/// `(chunk_no, content, tokens)` of a query's rows.
fn pieces(db: &Database, sql: &str) -> Vec<(i32, String, i32)> {
    db.rows(sql)
        .iter()
        .map(|row| (row.get(0), row.get(1), row.get(2)))
        .collect()
}

#[test]
fn tokens_are_those_of_the_model() {
    let db = Database::new();
    let count = |text: &str, model: &str| -> i32 {
        db.one(&format!(
            "SELECT ingest.count_tokens({}, '{model}')",
            quoted(text)
        ))
    };
    // cl100k_base, as published examples of tiktoken have it.
    let openai = "openai/text-embedding-3-small";
    for (text, tokens) in [
        ("", 0),
        ("hello world", 2),
        ("tiktoken is great!", 6),
        ("antidisestablishmentarianism", 6),
        ("2 + 2 = 4", 7),
        ("お誕生日おめでとう", 9),
    ] {
        assert_eq!(count(text, openai), tokens, "{text}");
        assert_eq!(
            count(text, "openai/text-embedding-3-large"),
            tokens,
            "{text}"
        );
    }
    // WordPiece of bert-base-uncased: whole words, pieces that go on with ##, punctuation by itself; without [CLS] and [SEP].
    let local = "local/all-MiniLM-L6-v2";
    for (text, tokens) in [
        ("", 0),
        ("hello world", 2),
        ("Hello, World!", 4),
        ("embeddings", 4),
        ("2 + 2 = 4", 5),
        ("naïve", 1),
    ] {
        assert_eq!(count(text, local), tokens, "{text}");
    }
    assert!(db.one::<bool>(&format!(
        "SELECT ingest.count_tokens(NULL, '{local}') IS NULL"
    )));
    assert_eq!(count(&"word ".repeat(100_000), local), 100_000);
}

#[test]
fn an_unknown_model_has_no_tokens() {
    let db = Database::new();
    for (model, code) in [
        ("MiniLM", "22023"),
        ("nobody/x", "22023"),
        ("openai/unheard-of", "22023"),
        ("local/none", "58P01"),
    ] {
        let error = db.expect_error(&format!("SELECT ingest.count_tokens('x', '{model}')"));
        assert_eq!(error.code, code, "{model}: {error:?}");
        assert!(error.hint.is_some(), "{model}: {error:?}");
    }
}

#[test]
fn split_shows_what_the_worker_writes() {
    let db = Database::new();
    let markdown = "# Lanterns\n\nA lantern gives light.\n\n## Oil\n\nOil burns with a yellow flame. It must be refilled every night, and the wick be cut.\n\n\
                    - first, open the lid\n- then, pour the oil\n\n```\npour(oil)\n```\n\nÜber die Straße: größer als 👩‍👩‍👧‍👦.\n";
    let long = texts::long("lantern", 30);
    let one_word = "x".repeat(3000);
    for splitter in ["text", "markdown"] {
        for (tokens, overlap) in [(16, 0), (40, 10), (254, 25)] {
            let name = format!("{splitter}_{tokens}");
            db.run(&format!("SELECT ingest.create_pipeline('{name}', splitter => '{splitter}', chunk_tokens => {tokens}, chunk_overlap => {overlap})"));
            for (key, text) in [("markdown", markdown), ("long", &long), ("word", &one_word)] {
                db.execute(
                    "INSERT INTO ingest.documents (pipeline, key, content) VALUES ($1, $2, $3)",
                    &[&name, &key, &text],
                );
            }
        }
    }
    db.settle();
    for name in db.all::<String>("SELECT name FROM ingest.pipelines ORDER BY name") {
        for key in ["markdown", "long", "word"] {
            let written = pieces(
                &db,
                &format!(
                    "SELECT chunk_no, content, tokens FROM ingest.\"{name}_chunks\" WHERE document_key = '{key}' ORDER BY chunk_no"
                ),
            );
            let shown = pieces(
                &db,
                &format!(
                    "SELECT s.* FROM ingest.documents d, ingest.split(d.content, '{name}') s WHERE d.pipeline = '{name}' AND d.key = '{key}' ORDER BY s.chunk_no"
                ),
            );
            assert_eq!(written, shown, "{name} {key}");
            assert!(!written.is_empty(), "{name} {key}");
            let recounted = db.one::<bool>(&format!(
                "SELECT bool_and(tokens = ingest.count_tokens(content, 'local/all-MiniLM-L6-v2')
                                 AND tokens <= (SELECT chunk_tokens FROM ingest.pipelines WHERE name = '{name}'))
                 FROM ingest.\"{name}_chunks\""
            ));
            assert!(
                recounted,
                "{name}: tokens are not those of the content, or too many"
            );
        }
    }
}

#[test]
fn a_splitter_of_none_keeps_the_document_whole() {
    let db = Database::new();
    db.run("SELECT ingest.create_pipeline('whole', splitter => 'none')");
    let short = "Two paragraphs.\n\nThat stay together.";
    assert_eq!(
        pieces(
            &db,
            &format!("SELECT * FROM ingest.split({}, 'whole')", quoted(short))
        )
        .len(),
        1
    );
    db.execute(
        "INSERT INTO ingest.documents (pipeline, key, content) VALUES ('whole', 'short', $1), ('whole', 'long', $2)",
        &[&short, &texts::long("lantern", 100)],
    );
    db.settle();
    assert_eq!(
        db.all::<String>("SELECT content FROM ingest.whole_chunks"),
        [short]
    );
    // It is longer than the model reads, and may not be cut.
    assert_eq!(
        db.all::<String>("SELECT key || ' ' || error_class FROM ingest.failures"),
        ["long too_large"]
    );
}

#[test]
fn markdown_is_cut_at_its_headings() {
    let db = Database::new();
    db.run("SELECT ingest.create_pipeline('md', splitter => 'markdown', chunk_tokens => 24, chunk_overlap => 0)");
    let text = "# One\n\nThe first part speaks of lanterns and of their oil.\n\n# Two\n\nThe second part speaks of whales and of the sea.\n";
    let parts = pieces(
        &db,
        &format!("SELECT * FROM ingest.split({}, 'md')", quoted(text)),
    );
    assert!(
        parts
            .iter()
            .any(|(_, content, _)| content.starts_with("# Two")),
        "{parts:?}"
    );
    assert!(
        parts
            .iter()
            .all(|(_, content, _)| !(content.contains("lanterns") && content.contains("whales"))),
        "{parts:?}"
    );
}

#[test]
fn nothing_comes_of_nothing() {
    let db = Database::with_pipeline();
    assert_eq!(db.rows("SELECT * FROM ingest.split('')").len(), 0);
    assert_eq!(db.rows("SELECT * FROM ingest.split(E' \\n\\t ')").len(), 0);
    assert_eq!(db.rows("SELECT * FROM ingest.split(NULL)").len(), 0);
    assert_eq!(db.rows("SELECT * FROM ingest.split('text')").len(), 1);
}
