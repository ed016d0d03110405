//! Promise: what the documentation tells people to type can be typed as it stands.
//!
//! Each test types one file from top to bottom into one session, statement by statement, as psql sends them: every block that
//! opens with "```sql". Blocks that need a second server, or only show what something looks like, are marked with a word after
//! it (see [`NOT_TYPED`]), and render the same. A provider is a fake one, in the place of [`PROVIDERS_KEY`]; what a file takes
//! for granted (roles, a pipeline that is there already) is said by its test.

use std::fs;
use std::path::{Path, PathBuf};

use fake_api::FakeApi;
use harness::remote::{KEY, api};
use harness::*;
use postgres::{Client, SimpleQueryMessage};

/// The files that are typed here.
const TYPED: [&str; 8] = [
    "README.md",
    "docs/changing-a-pipeline.md",
    "docs/installing.md",
    "docs/limits.md",
    "docs/roles.md",
    "docs/supabase.md",
    "docs/targets.md",
    "docs/watching-tables.md",
];

/// The marks of blocks that are not: for another server than this one, and to look at.
const NOT_TYPED: [&str; 2] = ["remote", "sketch"];

/// The argument that gets the fake provider's address and key.
const PROVIDERS_KEY: &str = "api_key => 'env:OPENAI_API_KEY'";

/// A block of SQL and the line of its file at which it begins, counted from 1.
struct Block {
    line: usize,
    mark: String,
    sql: String,
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// All blocks of SQL of a file, marked or not.
fn all_blocks(file: &str) -> Vec<Block> {
    let text = fs::read_to_string(root().join(file)).expect(file);
    let mut blocks = Vec::new();
    let mut lines = text.lines().enumerate();
    while let Some((number, line)) = lines.next() {
        let Some(info) = line.strip_prefix("```") else {
            continue;
        };
        let body = lines.by_ref().take_while(|(_, line)| *line != "```");
        let sql = body.map(|(_, line)| format!("{line}\n")).collect();
        let (language, mark) = info.split_once(' ').unwrap_or((info, ""));
        if language == "sql" {
            blocks.push(Block {
                line: number + 2,
                mark: mark.to_owned(),
                sql,
            });
        }
    }
    blocks
}

/// Those that are typed.
fn blocks(file: &str) -> Vec<Block> {
    let mut blocks = all_blocks(file);
    blocks.retain(|block| block.mark.is_empty());
    assert!(!blocks.is_empty(), "nothing to type in {file}");
    blocks
}

/// The statements of a script, each with the line at which it begins, counted from 0. Knows quotes, `$$` and comments to the
/// end of the line.
fn statements(script: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let (mut statement, mut begins) = (String::new(), 0);
    let mut quote: Option<char> = None;
    for (number, line) in script.lines().enumerate() {
        let mut characters = line.chars().peekable();
        while let Some(character) = characters.next() {
            match (quote, character) {
                (Some(open), _) if open == character => quote = None,
                (None, '\'' | '"') => quote = Some(character),
                (None, '-') if characters.peek() == Some(&'-') => break,
                (None, '$') => panic!("this reader of SQL knows no dollar quotes: {line}"),
                (None, ';') => {
                    found.push((begins, std::mem::take(&mut statement)));
                    continue;
                }
                _ => {}
            }
            if statement.is_empty() {
                if character.is_whitespace() {
                    continue;
                }
                begins = number;
            }
            statement.push(character);
        }
        if !statement.is_empty() {
            statement.push('\n');
        }
    }
    let rest = statement.trim_end();
    assert_eq!(rest, "", "a statement without a semicolon");
    found
}

/// Types blocks; `adapt` puts in what cannot stand in a document, such as a key.
///
/// # Panics
/// When a statement fails, a `wait()` gives up, or a search finds nothing.
fn type_in(client: &mut Client, file: &str, blocks: &[Block], adapt: &dyn Fn(&str) -> String) {
    for block in blocks {
        for (offset, statement) in statements(&block.sql) {
            let place = format!("{file}:{}: {statement}", block.line + offset);
            let answer = client
                .simple_query(&adapt(&statement))
                .unwrap_or_else(|error| panic!("{place}: {}", ServerError::from(error).text()));
            let first = answer.iter().find_map(|message| match message {
                SimpleQueryMessage::Row(row) => Some(row.get(0).map(str::to_owned)),
                _ => None,
            });
            if statement.starts_with("SELECT ingest.wait(") {
                assert_eq!(first, Some(Some("t".to_owned())), "{place}");
            } else if statement.contains("search(") {
                assert!(first.is_some(), "{place}: nothing is found");
            }
        }
    }
}

/// Types a file that asks no provider.
fn type_file(db: &Database, file: &str) {
    type_in(&mut db.connect(), file, &blocks(file), &str::to_owned);
}

/// Types a file whose provider is this one.
fn type_file_at(db: &Database, api: &FakeApi, file: &str) {
    let key = db.cluster().write_key(KEY);
    let given = format!("base_url => '{}', api_key => '{key}'", api.openai_url());
    type_in(&mut db.connect(), file, &blocks(file), &|sql| {
        sql.replace(PROVIDERS_KEY, &given)
    });
}

fn without_extension() -> Database<'static> {
    Database::empty_in(shared_cluster(&[]))
}

#[test]
fn no_block_of_sql_is_left_out() {
    let docs = fs::read_dir(root().join("docs")).expect("docs");
    let docs = docs.map(|entry| {
        entry
            .expect("docs")
            .file_name()
            .into_string()
            .expect("UTF-8")
    });
    let mut files: Vec<String> = docs
        .filter(|name| name.ends_with(".md"))
        .map(|name| format!("docs/{name}"))
        .collect();
    files.push("README.md".into());
    for file in files {
        let mut blocks = all_blocks(&file);
        for Block { line, mark, .. } in &blocks {
            assert!(
                mark.is_empty() || NOT_TYPED.contains(&mark.as_str()),
                "{file}:{line}: what is {mark:?}?"
            );
        }
        blocks.retain(|block| block.mark.is_empty());
        assert_eq!(
            !blocks.is_empty(),
            TYPED.contains(&file.as_str()),
            "{file} and the list of files that are typed here"
        );
    }
}

#[test]
fn the_readme_can_be_typed() {
    let api = api();
    let db = without_extension();
    db.run("CREATE TABLE my_files (path text, body text); INSERT INTO my_files VALUES ('c.md', 'Whales feed on krill.')");
    type_file_at(&db, &api, "README.md");
    db.settle();
    assert_eq!(db.progress().counts(), (2, 2, 0, 0));
    assert_eq!(db.progress_of("docs").counts(), (1, 1, 0, 0));
}

#[test]
fn installing_can_be_typed() {
    let db = without_extension();
    type_file(&db, "docs/installing.md");
    assert!(db.one::<bool>("SELECT bool_and(ok) FROM ingest.doctor()"));
}

#[test]
fn watching_tables_can_be_typed() {
    let db = without_extension();
    type_file(&db, "docs/watching-tables.md");
    db.settle();
    let left = "SELECT (SELECT count(*) FROM ingest.documents) + (SELECT count(*) FROM public.article_chunks)
                     + (SELECT count(*) FROM pg_trigger WHERE tgrelid = 'public.articles'::regclass)";
    assert_eq!(db.one::<i64>(left), 0);
}

#[test]
fn changing_a_pipeline_can_be_typed() {
    let api = api();
    let db = Database::new();
    db.create_remote_pipeline("docs", &api, "target => 'public.docs'");
    db.insert_prose("docs", "prose", 20, 60);
    db.settle();
    type_file_at(&db, &api, "docs/changing-a-pipeline.md");
    db.settle();
    assert_eq!(
        db.all::<String>("SELECT model FROM ingest.pipelines"),
        ["openai/text-embedding-3-large"]
    );
    assert_eq!(db.progress_of("docs").counts(), (20, 20, 0, 0));
}

#[test]
fn targets_can_be_typed() {
    let db = Database::new();
    db.run("CREATE ROLE authenticated");
    type_file(&db, "docs/targets.md");
    assert_eq!(
        db.all::<String>("SELECT target::text FROM ingest.pipelines ORDER BY 1"),
        ["docs", "manuals", "vecs.notes"]
    );
}

#[test]
fn roles_can_be_typed() {
    let db = Database::new();
    db.run("CREATE ROLE app; CREATE ROLE importer; CREATE ROLE team; SELECT ingest.create_pipeline('docs')");
    type_file(&db, "docs/roles.md");
    assert_eq!(
        db.all::<String>("SELECT tableowner::text FROM pg_tables WHERE tablename = 'docs_chunks'"),
        ["team"]
    );
    db.run("DROP OWNED BY app, importer; SELECT ingest.drop_pipeline('docs', true)");
}

#[test]
fn limits_can_be_typed() {
    let api = api();
    let db = Database::new();
    type_file_at(&db, &api, "docs/limits.md");
    assert_eq!(
        db.all::<String>("SELECT limits FROM ingest.pipelines"),
        ["openai"]
    );
}

/// From the third section on; the first two need Docker.
#[test]
fn supabase_can_be_typed() {
    let file = "docs/supabase.md";
    let api = api();
    let cluster = supabase::start(&[("pg_ingest.allowed_hosts", "*")]);
    let db = Database::present_in(&cluster, "postgres");
    let typed = blocks(file);
    let (as_superuser, as_postgres) = typed.split_at(1);
    let key = "api_key => 'vault:openai'";
    let adapt = |sql: &str| {
        let given = format!("base_url => '{}', {key}", api.openai_url());
        sql.replace("sk-…", KEY).replace(key, &given)
    };
    type_in(&mut db.connect(), file, as_superuser, &adapt);
    type_in(&mut db.connect_as("postgres"), file, as_postgres, &adapt);
    assert_eq!(db.progress_of("docs").counts(), (1, 1, 0, 0));
}
