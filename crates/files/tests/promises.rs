//! What finding and reading files promises.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use files::{FileContent, FilesError, Format, find, html_to_markdown, read};

/// A directory of its own for each test, gone when the test is over.
struct Directory(PathBuf);

impl Directory {
    fn new(test: &str) -> Self {
        let path = std::env::temp_dir().join(format!("files-{test}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn with(self, files: &[&str]) -> Self {
        for file in files {
            self.put(file, b"x");
        }
        self
    }

    fn put(&self, file: &str, content: &[u8]) -> PathBuf {
        let path = self.0.join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        path
    }

    fn keys(&self, pattern: &str) -> Vec<String> {
        find(&self.0, pattern)
            .unwrap()
            .map(|found| found.unwrap().key)
            .collect()
    }

    fn read(&self, name: &str, content: &[u8]) -> FileContent {
        read(&self.put(name, content), 1 << 20).unwrap()
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn text(content: FileContent) -> String {
    match content {
        FileContent::Text { text, .. } => text,
        other => panic!("no text: {other:?}"),
    }
}

#[test]
fn keys_are_relative_paths_in_order() {
    let directory =
        Directory::new("order").with(&["b.md", "a/c.md", "a.md", "a/b/d.md", "a-b/x.md", "A.md"]);
    let keys = directory.keys("**/*");
    assert_eq!(
        keys,
        ["A.md", "a-b/x.md", "a.md", "a/b/d.md", "a/c.md", "b.md"]
    );
    assert!(keys.is_sorted());
}

#[test]
fn a_pattern_names_files_as_a_shell_would() {
    let directory =
        Directory::new("patterns").with(&["a.md", "b.txt", "d/a.md", "d/e/a.html", "d/[x].md"]);
    assert_eq!(directory.keys("*.md"), ["a.md"]);
    assert_eq!(directory.keys("**/*.md"), ["a.md", "d/[x].md", "d/a.md"]);
    assert_eq!(directory.keys("d/**"), ["d/[x].md", "d/a.md", "d/e/a.html"]);
    assert_eq!(
        directory.keys("**/*.{md,html}"),
        ["a.md", "d/[x].md", "d/a.md", "d/e/a.html"]
    );
    assert_eq!(directory.keys(r"d/\[x\].md"), ["d/[x].md"]);
    assert!(directory.keys("nothing").is_empty());
}

#[test]
fn hidden_files_are_found_only_by_a_pattern_that_names_them() {
    let directory = Directory::new("hidden").with(&["a", ".b", ".git/config", "d/.e"]);
    assert_eq!(directory.keys("**/*"), ["a"]);
    assert_eq!(directory.keys(".git/*"), [".git/config"]);
    assert_eq!(directory.keys("**/.*"), [".b", "d/.e"]);
}

#[test]
fn a_link_to_a_file_is_read_and_one_to_a_directory_is_not_entered() {
    let directory = Directory::new("links").with(&["a", "d/b"]);
    std::os::unix::fs::symlink(directory.0.join("a"), directory.0.join("link")).unwrap();
    std::os::unix::fs::symlink(&directory.0, directory.0.join("d/circle")).unwrap();
    std::os::unix::fs::symlink("/nowhere", directory.0.join("dangling")).unwrap();
    let (found, failed): (Vec<_>, Vec<_>) =
        find(&directory.0, "**/*").unwrap().partition(Result::is_ok);
    let keys: Vec<String> = found.into_iter().map(|found| found.unwrap().key).collect();
    assert_eq!(keys, ["a", "d/b", "link"]);
    assert_eq!(failed.len(), 1);
    assert!(
        failed[0]
            .as_ref()
            .unwrap_err()
            .to_string()
            .contains("dangling")
    );
}

#[test]
fn a_name_that_is_no_text_is_an_error_item_and_the_others_are_found() {
    use std::os::unix::ffi::OsStrExt;
    let directory = Directory::new("names").with(&["a", "z"]);
    fs::write(directory.0.join(std::ffi::OsStr::from_bytes(b"m\xff")), "x").unwrap();
    let items: Vec<_> = find(&directory.0, "*").unwrap().collect();
    assert_eq!(items.len(), 3);
    assert!(matches!(items[1], Err(FilesError::NameNotUtf8(_))));
}

#[test]
fn what_is_wrong_with_the_arguments_is_told_apart() {
    let directory = Directory::new("arguments").with(&["file"]);
    assert!(matches!(
        find(Path::new("/nowhere"), "*"),
        Err(FilesError::NoDirectory(_))
    ));
    assert!(matches!(
        find(&directory.0.join("file"), "*"),
        Err(FilesError::NotADirectory(_))
    ));
    let bad = find(&directory.0, "a[").unwrap_err();
    assert!(
        matches!(bad, FilesError::BadPattern { .. }) && bad.to_string().contains("a["),
        "{bad}"
    );
}

#[test]
fn text_is_told_from_binary_by_its_content() {
    let directory = Directory::new("binary");
    for (name, content) in [
        ("nul.txt", b"abc\0def".as_slice()),
        ("fake.md", b"%PDF-1.7\n1 0 obj"),
        ("zip.txt", b"PK\x03\x04rest"),
        ("gzip.txt", b"\x1f\x8b\x08rest"),
        ("png.html", b"\x89PNG\r\n\x1a\n"),
        ("control.txt", b"\x01\x02\x03\x04abcdefgh"),
        ("nul16.txt", b"\xff\xfea\0\0\0b\0"),
    ] {
        assert_eq!(
            directory.read(name, content),
            FileContent::NotText,
            "{name}"
        );
    }
    assert_eq!(
        text(directory.read("plain.bin", "täxt\t\x1b[1mbold\n".as_bytes())),
        "täxt\t\x1b[1mbold\n"
    );
    assert_eq!(text(directory.read("empty", b"")), "");
}

#[test]
fn encodings_are_understood_or_said_to_be_wrong() {
    let directory = Directory::new("encodings");
    assert_eq!(text(directory.read("bom.txt", b"\xef\xbb\xbfabc")), "abc");
    let little: Vec<u8> = "\u{feff}aé😀"
        .encode_utf16()
        .flat_map(u16::to_le_bytes)
        .collect();
    let big: Vec<u8> = "\u{feff}aé😀"
        .encode_utf16()
        .flat_map(u16::to_be_bytes)
        .collect();
    assert_eq!(text(directory.read("le.txt", &little)), "aé😀");
    assert_eq!(text(directory.read("be.txt", &big)), "aé😀");
    let latin = b"<html><meta charset=iso-8859-1><p>caf\xe9 \x80 \x93x\x94</p>";
    assert_eq!(
        text(directory.read("latin.html", latin)),
        "<html><meta charset=iso-8859-1><p>café € “x”</p>"
    );
    let wrong = |content: FileContent| match content {
        FileContent::BadEncoding { message, .. } => message,
        other => panic!("{other:?}"),
    };
    assert_eq!(
        wrong(directory.read("a.txt", b"sixteen letters \xff")),
        "not valid UTF-8 at byte 16"
    );
    assert!(wrong(directory.read("a.html", b"<meta charset='koi8-r'>\xc1\xc2")).contains("koi8-r"));
    assert!(wrong(directory.read("odd.txt", b"\xff\xfea\0b")).contains("UTF-16"));
    assert!(wrong(directory.read("lone.txt", b"\xff\xfe\x00\xd8")).contains("UTF-16"));
}

#[test]
fn the_format_follows_the_extension() {
    for (name, format) in [
        ("a.md", Format::Markdown),
        ("a.MDX", Format::Markdown),
        ("a.markdown", Format::Markdown),
        ("a.html", Format::Html),
        ("a.HTM", Format::Html),
        ("a.xhtml", Format::Html),
        ("a.rs", Format::Text),
        ("md", Format::Text),
    ] {
        assert_eq!(Format::of(Path::new(name)), format, "{name}");
    }
}

#[test]
fn a_large_file_is_not_read() {
    let directory = Directory::new("large");
    let path = directory.put("a", &[b'x'; 100]);
    assert_eq!(
        read(&path, 99).unwrap(),
        FileContent::TooLarge {
            size: 100,
            limit: 99
        }
    );
    assert!(matches!(
        read(&path, 100).unwrap(),
        FileContent::Text { .. }
    ));
    assert!(matches!(
        read(Path::new("/dev/zero"), 10),
        Err(FilesError::NotAFile(_))
    ));
    assert!(matches!(
        read(&directory.0, 10),
        Err(FilesError::NotAFile(_))
    ));
    assert!(matches!(
        read(Path::new("/nowhere"), 10),
        Err(FilesError::Io { .. })
    ));
}

#[test]
fn a_manual_page_becomes_readable_markdown() {
    let page = r##"<?xml version="1.0" encoding="UTF-8"?><html><head><title>VACUUM</title><style>p {}</style></head><body>
        <div class="navheader"><table><tr><td><a href="a.html">Prev</a></td></tr></table></div>
        <div class="refentry"><h2><span class="refentrytitle">VACUUM</span></h2><p>VACUUM — garbage-collect a
        database. See <a href="sql-analyze.html">ANALYZE</a> and <code class="literal">max_connections</code>, or
        default_toast_compression [sic].</p>
        <pre class="synopsis">
VACUUM [ <em class="replaceable"><code>option</code></em> ]
    FULL [ <em><code>boolean</code></em> ]
</pre><table><thead><tr><th>Name</th><th>Type</th></tr></thead><tbody><tr><td>id</td><td><code>int</code></td></tr></tbody></table>
        <ul><li><p>first</p></li><li><p>second</p></li></ul><script>alert(1)</script><nav>menu</nav></div>
        <div class="navfooter"><a href="b.html">Next</a></div></body></html>"##;
    let markdown = html_to_markdown(page);
    println!("{markdown}");
    for expected in [
        "## VACUUM\n",
        "See ANALYZE and `max_connections`, or default_toast_compression [sic].",
        "```\nVACUUM [ option ]\n    FULL [ boolean ]\n```",
        "| Name | Type |\n| --- | --- |\n| id | `int` |",
        "`int`",
        "- first",
    ] {
        assert!(
            markdown.contains(expected),
            "{expected:?} is missing in:\n{markdown}"
        );
    }
    for unwanted in ["Prev", "Next", "alert", "menu", "html", "p {}", "\\_"] {
        assert!(
            !markdown.contains(unwanted),
            "{unwanted:?} is in:\n{markdown}"
        );
    }
}

#[test]
fn a_page_without_headings_is_headed_by_its_title() {
    assert_eq!(
        html_to_markdown("<title>A\n title</title><p>Text</p>"),
        "# A title\n\nText"
    );
    assert_eq!(
        html_to_markdown("<title>A</title><h1>B</h1><p>Text</p>"),
        "# B\n\nText"
    );
}

/// Each of these has brought an HTML parser down, or to a crawl; a backend converts them on its own stack.
#[test]
fn hostile_html_ends_quickly_and_keeps_its_text() {
    let many = 100_000;
    let pages = [
        format!("{}text", "<div>".repeat(many)),
        format!("{}text", "<b>".repeat(many)),
        format!(
            "{}text",
            (0..20_000)
                .map(|n| format!("<b a={n}><p>"))
                .collect::<String>()
        ),
        format!("{}text", "<table><tr><td>".repeat(many)),
        format!("{}text{}", "<div>".repeat(180), "</div>".repeat(180)),
        format!("{}text", "<div/>".repeat(many)),
        format!("{}text", "<a href=x>".repeat(many)),
        format!("{}text", "<svg><g>".repeat(many)).replace("<svg>", "<x>"),
        format!("{}text", "<ul><li>".repeat(many)),
        format!("{}text", "<rt>".repeat(many)),
        format!("{}text", "<font color=a></p>".repeat(many)),
        format!("{} text", "<b>x</b>".repeat(many)),
        format!("{} text", "&amp;".repeat(many)),
        format!("{}text", "</p>".repeat(many)),
        format!("text{}", "<".repeat(many)),
        format!("text<!--{}", "<!--".repeat(many)),
        format!("text<a {}", "x=\"".repeat(many)),
        format!("<p>text<?xml {} ?>", "x".repeat(many)),
        "<p>text\0\u{1}\u{fffe}".to_owned(),
    ];
    for page in pages {
        let start = Instant::now();
        let markdown = html_to_markdown(&page);
        let beginning: String = page.chars().take(30).collect();
        assert!(
            start.elapsed() < Duration::from_secs(60),
            "{beginning} took {:?}",
            start.elapsed()
        );
        assert!(markdown.contains("text"), "{beginning}");
    }
}

/// Debian's postgresql-doc, where it is installed.
#[test]
fn the_postgresql_manual_converts() {
    let manual = Path::new("/usr/share/doc/postgresql-doc-15/html");
    if !manual.is_dir() {
        eprintln!("skipped: {} is not installed", manual.display());
        return;
    }
    for found in find(manual, "sql-*.html").unwrap() {
        let found = found.unwrap();
        let page = text(read(&found.path, 1 << 20).unwrap());
        let markdown = html_to_markdown(&page);
        assert!(
            markdown.contains("# ") && !markdown.contains("<div") && !markdown.contains(".html"),
            "{}",
            found.key
        );
        assert!(
            !markdown.starts_with("Prev") && !markdown.contains("Up SQL Commands"),
            "{}",
            found.key
        );
    }
}

proptest::proptest! {
    #[test]
    fn no_html_panics(page in "(<[a-z/!?]{0,6}[ a-z=\"'/]{0,8}>?|[ -~]{0,8}|\\PC{0,3}|&[a-z#0-9]{0,5};?){0,40}") {
        html_to_markdown(&page);
    }
}
