//! Promise: `ingest.load_files` puts a directory's text files into the staging table: recursively by glob, HTML and
//! Markdown as text, what is not text skipped and said, and only for those who may read the server's files.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use harness::roles::{another, forbidden, run};
use harness::*;

const HTML: &[u8] = b"<!DOCTYPE html><html><head><title>Lanterns</title><style>p {color: red}</style><script>alert(1)</script></head>
<body><h1>On lanterns</h1><p>A lantern &amp; its <b>light</b>.</p><ul><li>oil</li><li>wick</li></ul></body></html>";

fn load(directory: &Path, rest: &str) -> String {
    format!(
        "SELECT ingest.load_files({}{rest})",
        quoted(&directory.to_string_lossy())
    )
}

/// A tree of files below a directory that only this test uses.
fn tree(db: &Database) -> std::path::PathBuf {
    db.cluster().directory(
        &format!("tree-{}", db.name()),
        &[
            ("readme.md", b"# Lanterns\n\nA text about *lanterns*."),
            ("notes.txt", b"Plain notes about bread."),
            ("page.html", HTML),
            (
                "deep/er/whale.txt",
                "The blue whale (Größe: 30 m) is the largest animal.".as_bytes(),
            ),
            (
                "deep/bom.txt",
                b"\xef\xbb\xbfA text behind a byte order mark.",
            ),
            ("picture.png", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\x01\0"),
            ("program", b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x03\0"),
            (".hidden/secret.txt", b"Not to be loaded."),
        ],
    )
}

fn keys(db: &Database) -> Vec<String> {
    db.all("SELECT key FROM ingest.documents ORDER BY key COLLATE \"C\"")
}

#[test]
fn a_tree_is_loaded_with_relative_paths_as_keys() {
    let db = Database::with_pipeline();
    let tree = tree(&db);
    let (loaded, notices) = db.one_with_notices::<i64>("", &load(&tree, ""));
    assert_eq!(loaded, 5);
    let notices = notices.join("\n");
    assert!(notices.contains("2 files are not text"), "{notices}");
    assert!(
        notices.contains("picture.png") && notices.contains("program"),
        "{notices}"
    );
    assert_eq!(
        keys(&db),
        [
            "deep/bom.txt",
            "deep/er/whale.txt",
            "notes.txt",
            "page.html",
            "readme.md"
        ]
    );
    db.settle();
    assert_eq!(db.progress().counts(), (5, 5, 0, 0));

    let content = |key: &str| -> String {
        db.one(&format!(
            "SELECT content FROM ingest.documents WHERE key = '{key}'"
        ))
    };
    assert_eq!(content("notes.txt"), "Plain notes about bread.");
    assert_eq!(content("deep/bom.txt"), "A text behind a byte order mark.");
    assert_eq!(
        content("deep/er/whale.txt"),
        "The blue whale (Größe: 30 m) is the largest animal."
    );
    assert!(content("readme.md").starts_with("# Lanterns"));
    let page = content("page.html");
    for part in ["On lanterns", "A lantern & its", "light", "oil", "wick"] {
        assert!(page.contains(part), "{page}");
    }
    for no_part in ["<p>", "<b>", "alert", "color: red"] {
        assert!(!page.contains(no_part), "{page}");
    }
    let metadata: String = db.one("SELECT metadata->>'format' || ' ' || (metadata->>'source') FROM ingest.documents WHERE key = 'page.html'");
    assert_eq!(metadata, format!("html {}/page.html", tree.display()));
    assert_eq!(
        db.one::<String>("SELECT key FROM ingest.search('which animal is the largest?', 1)"),
        "deep/er/whale.txt"
    );
}

#[test]
fn a_pattern_chooses() {
    let db = Database::with_pipeline();
    db.run("SELECT ingest.pause('default')");
    let tree = tree(&db);
    for (pattern, expected) in [
        ("*.txt", vec!["notes.txt"]),
        (
            "**/*.txt",
            vec!["deep/bom.txt", "deep/er/whale.txt", "notes.txt"],
        ),
        ("deep/**", vec!["deep/bom.txt", "deep/er/whale.txt"]),
        ("*.{md,html}", vec!["page.html", "readme.md"]),
        ("[nr]*", vec!["notes.txt", "readme.md"]),
        ("nothing*", vec![]),
    ] {
        db.run("TRUNCATE ingest.documents");
        assert_eq!(
            db.one::<i64>(&load(&tree, &format!(", '{pattern}'"))),
            expected.len() as i64,
            "{pattern}"
        );
        assert_eq!(keys(&db), expected, "{pattern}");
    }
    let error = db.expect_error(&load(&tree, ", '[z-a'"));
    assert_eq!(error.code, "22023", "{error:?}");
}

#[test]
fn a_second_load_embeds_only_what_changed() {
    let db = Database::with_pipeline();
    let tree = tree(&db);
    db.run(&load(&tree, ""));
    db.settle();
    let ids = || -> Vec<(String, i64)> {
        db.rows("SELECT document_key, id FROM ingest.default_chunks ORDER BY document_key, id")
            .iter()
            .map(|row| (row.get(0), row.get(1)))
            .collect()
    };
    let before = ids();
    assert_eq!(db.one::<i64>(&load(&tree, "")), 5);
    assert_eq!(db.one::<i64>("SELECT count(*) FROM ingest.queue"), 0);
    fs::write(tree.join("notes.txt"), "Other notes, about cheese.").expect("a file");
    assert_eq!(db.one::<i64>(&load(&tree, "")), 5);
    db.settle();
    let after = ids();
    let changed: Vec<&String> = before
        .iter()
        .filter(|row| !after.contains(row))
        .map(|(key, _)| key)
        .collect();
    assert_eq!(changed, ["notes.txt"]);
    assert_eq!(db.progress().counts(), (5, 5, 0, 0));
}

#[test]
fn an_empty_directory_is_no_error() {
    let db = Database::with_pipeline();
    let empty = db.cluster().directory(&format!("empty-{}", db.name()), &[]);
    let (loaded, notices) = db.one_with_notices::<i64>("", &load(&empty, ""));
    assert_eq!(loaded, 0);
    assert!(!notices.is_empty(), "nothing is said");
}

#[test]
fn what_is_no_directory_is_refused() {
    let db = Database::with_pipeline();
    let tree = tree(&db);
    for (path, code) in [
        (tree.join("missing"), "58P01"),
        (tree.join("notes.txt"), "58P01"),
        ("relative/path".into(), "42602"),
        ("".into(), "42602"),
    ] {
        let error = db.expect_error(&load(&path, ""));
        assert_eq!(error.code, code, "{error:?}");
    }
    assert!(db.one::<bool>("SELECT ingest.load_files(NULL) IS NULL"));
}

#[test]
fn only_those_who_may_read_server_files_load_them() {
    let db = Database::with_pipeline();
    let tree = tree(&db);
    let (role, mut client) = another(&db, "loader");
    let error = forbidden(&mut client, &load(&tree, ""));
    assert!(
        error
            .detail
            .is_some_and(|detail| detail.contains("pg_read_server_files"))
    );
    assert!(error.hint.is_some());
    assert_eq!(keys(&db), Vec::<String>::new());
    db.run(&format!("GRANT pg_read_server_files TO {role}"));
    // Not into another's pipeline.
    forbidden(&mut client, &load(&tree, ""));
    db.run(&format!("UPDATE ingest.pipeline SET owner = '{role}'"));
    run(&mut client, &load(&tree, ""));
    assert_eq!(keys(&db).len(), 5);
}

#[test]
fn links_and_pipes_do_not_lead_astray() {
    let db = Database::with_pipeline();
    let tree = tree(&db);
    symlink(&tree, tree.join("deep/circle")).expect("a link");
    symlink("/nonexistent", tree.join("dangling.txt")).expect("a link");
    let made = std::process::Command::new("mkfifo")
        .arg(tree.join("pipe.txt"))
        .status()
        .expect("mkfifo runs");
    assert!(made.success());
    db.run("SET statement_timeout = '20s'");
    assert_eq!(db.one::<i64>(&load(&tree, "")), 5);
}

#[test]
fn many_files_are_loaded_in_one_go() {
    let db = Database::with_pipeline();
    db.run("SELECT ingest.pause('default')");
    let directory = db.cluster().directory(&format!("many-{}", db.name()), &[]);
    for number in 0..1000 {
        fs::write(
            directory.join(format!("f{number:04}.txt")),
            texts::numbered(number),
        )
        .expect("a file");
    }
    assert_eq!(db.one::<i64>(&load(&directory, "")), 1000);
    assert_eq!(db.progress().counts(), (1000, 0, 1000, 0));
    assert_eq!(db.one::<i64>(&load(&directory, "")), 1000);
    assert_eq!(db.progress().counts(), (1000, 0, 1000, 0));
    db.run("TRUNCATE ingest.documents");
}
