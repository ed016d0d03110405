//! Promise: text is text. A name or argument of any kind works all the way, or is refused in plain words; none is taken for SQL.

use harness::*;

/// Strings that a query put together by hand would trip over.
fn nasty() -> Vec<String> {
    let injected = "CREATE TABLE public.injected (); --";
    let mut all: Vec<String> = [
        "'; ", "\"; ", "'); ", "\"); ", "$$; ", "$1; ", "\\'; ", "*/ ", "%I%L%s ", "{}'; ",
    ]
    .iter()
    .map(|opening| format!("x{opening}{injected}"))
    .collect();
    all.extend(
        [
            "",
            " ",
            "\\x00",
            "\\000",
            "a\nb",
            "a\tb",
            "üñïçødé ☃ 日本",
            "\u{202e}\u{feff}",
            "NULL",
            "ingest.documents",
            "-1",
            "pg_catalog",
        ]
        .map(String::from),
    );
    all.push("n".repeat(64));
    all.push("ü".repeat(32));
    all.push("l".repeat(100_000));
    all
}

#[test]
fn no_text_argument_is_taken_for_sql() {
    let db = Database::with_pipeline();
    db.run("SET statement_timeout = '10 s'");
    let functions = db.rows(
        "SELECT p.oid::regproc::text, array_agg(format_type(t, NULL) ORDER BY n)
         FROM pg_proc p, unnest(p.proargtypes::oid[]) WITH ORDINALITY AS u(t, n)
         WHERE p.pronamespace = 'ingest'::regnamespace AND p.prorettype <> 'trigger'::regtype
         GROUP BY p.oid HAVING 'text' = ANY (array_agg(format_type(t, NULL))) ORDER BY 1",
    );
    assert!(functions.len() > 15, "{} functions", functions.len());
    for row in &functions {
        let (function, types): (String, Vec<String>) = (row.get(0), row.get(1));
        for (place, _) in types.iter().enumerate().filter(|(_, kind)| *kind == "text") {
            for text in nasty() {
                let arguments: Vec<String> = types
                    .iter()
                    .enumerate()
                    .map(|(n, kind)| match kind.as_str() {
                        _ if n == place => quoted(&text),
                        "text" => "'default'".to_owned(),
                        "integer" | "bigint" => format!("1::{kind}"),
                        "interval" => "'1 ms'::interval".to_owned(),
                        other => format!("NULL::{other}"),
                    })
                    .collect();
                let sql = format!("SELECT {function}({})", arguments.join(", "));
                if let Err(error) = db.try_run(&sql) {
                    let short: String = sql.chars().take(200).collect();
                    assert!(
                        !error.code.is_empty(),
                        "{short}: the connection was lost: {}",
                        error.text()
                    );
                    assert!(
                        !error.code.starts_with("XX"),
                        "{short}: {} {}",
                        error.code,
                        error.text()
                    );
                    assert_ne!(error.code, "42601", "{short}: {}", error.text());
                }
            }
        }
    }
    assert!(!db.one::<bool>("SELECT EXISTS (SELECT FROM pg_class WHERE relname = 'injected')"));
    db.run("SELECT * FROM ingest.doctor()");
}

#[test]
fn names_of_any_kind_work_all_the_way() {
    let db = Database::new();
    let names = [
        "o'brien",
        "semi;colon",
        "quo\"te",
        "new\nline",
        "日本の文書",
        "back\\x00slash",
        "per%cent $1 $$",
        &"n".repeat(63),
    ];
    for (number, name) in names.iter().enumerate() {
        let name = quoted(name);
        let target = if number + 1 == names.len() {
            ", target => 'public.long'"
        } else {
            ""
        };
        db.run(&format!("SELECT ingest.create_pipeline({name}{target})"));
        db.run(&format!("INSERT INTO ingest.documents (pipeline, key, content) VALUES ({name}, {name}, 'A text.'), ({name}, 'bad', '')"));
    }
    db.settle();
    for name in names {
        let progress = db.progress_of(name);
        assert_eq!(progress.counts(), (2, 1, 0, 1), "{name}");
        let name = quoted(name);
        assert_eq!(
            db.all::<String>(&format!(
                "SELECT key FROM ingest.search('text', 5, {name}, '{{}}')"
            ))
            .len(),
            1,
            "{name}"
        );
        db.run(&format!("SELECT ingest.alter_pipeline({name}, index => 'immediate'); SELECT ingest.pause({name})"));
        assert_eq!(
            db.one::<i64>(&format!("SELECT ingest.retry({name}, 'bad')")),
            1
        );
        db.run(&format!(
            "UPDATE ingest.documents SET metadata = '{{\"a\": 1}}' WHERE pipeline = {name}"
        ));
        db.run(&format!(
            "DELETE FROM ingest.documents WHERE pipeline = {name} AND key = {name}"
        ));
        db.run(&format!("SELECT ingest.drop_pipeline({name}, true)"));
    }
    assert_eq!(db.rows("SELECT FROM ingest.documents").len(), 0);
}
