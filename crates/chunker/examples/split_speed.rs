//! How fast documents are counted and cut, on one core: `cargo run --release -p chunker --example split_speed [FILE…]`.
//!
//! The files are joined to one text; with `PG_INGEST_MODEL_DIR` set, `all-MiniLM-L6-v2/tokenizer.json` below it is measured
//! beside `cl100k_base`. Then come texts made to be hard, of `MB` (20) megabytes each; `ONLY` picks those whose name holds it.

use std::path::PathBuf;
use std::time::Instant;

use chunker::{SplitOptions, Splitter, Tokenizer, split};

fn main() {
    let mut texts = vec![];
    let files: String = std::env::args()
        .skip(1)
        .filter_map(|file| std::fs::read(file).ok())
        .map(|bytes| String::from_utf8_lossy(&bytes).into_owned() + "\n\n")
        .collect();
    if !files.is_empty() {
        texts.push(("the files", files.clone()));
    }
    let megabytes =
        std::env::var("MB").map_or(20, |megabytes| megabytes.parse().expect("a number"));
    let size = megabytes << 20;
    let repeated = |pattern: &str| pattern.repeat(size / pattern.len());
    texts.push((
        "one line without white space",
        repeated("abcdefghijklmnopqrstuvwxyz0123456789"),
    ));
    texts.push(("one letter, again and again", repeated("x")));
    texts.push(("a a a a", repeated("a ")));
    texts.push((
        "letters among newlines",
        repeated(&format!("{}a", "\n".repeat(200))),
    ));
    texts.push(("newlines", "\n".repeat(1_000_000)));
    texts.push((
        "text, a million newlines, text",
        format!("a{}b", "\n".repeat(1_000_000)),
    ));
    texts.push((
        "text, 20 MB of spaces, text",
        format!("a{}b", " ".repeat(size)),
    ));
    texts.push((
        "Chinese",
        repeated("数据库系统将文档切分为片段并计算向量，然后写入索引。"),
    ));
    texts.push((
        "Chinese without a break",
        repeated("数据库系统将文档切分为片段"),
    ));
    texts.push(("emoji", repeated("😀👩‍👩‍👧‍👦🏳️‍🌈")));
    texts.push((
        "quotes in quotes",
        repeated(&format!("{} x\n", ">".repeat(500))),
    ));
    texts.push(("one line of quotes", repeated(">")));
    texts.push((
        "lists in lists",
        (0..2000)
            .cycle()
            .take(9000)
            .map(|i| format!("{}- x\n", " ".repeat(i)))
            .collect(),
    ));
    texts.push(("open brackets", repeated("[")));
    texts.push(("open emphasis", repeated("*a **b _c ")));
    texts.push(("table", repeated("| a | b | c |\n|---|---|---|\n")));
    texts.push((
        "base64 lines",
        repeated("QUJDREVGR0hJSktMTU5PUFFSU1RVVldYWVphYmNkZWZnaGlqa2xtbm9wcXJzdHV2d3h5\n"),
    ));
    let only = std::env::var("ONLY").unwrap_or_default();
    for (name, tokenizer) in tokenizers() {
        for (what, text) in texts.iter().filter(|(what, _)| what.contains(&only)) {
            let megabytes = text.len() as f64 / 1e6;
            let start = Instant::now();
            let tokens = tokenizer.count(text);
            let counting = start.elapsed().as_secs_f64();
            print!(
                "{name:12} {what:32} {megabytes:6.1} MB, {tokens:9} tokens: count {:7.1} MB/s",
                megabytes / counting
            );
            for splitter in [Splitter::Text, Splitter::Markdown] {
                for (chunk_tokens, chunk_overlap) in [(254, 32), (512, 0)] {
                    let start = Instant::now();
                    let options = SplitOptions {
                        splitter,
                        chunk_tokens,
                        chunk_overlap,
                    };
                    let chunks = split(text, &options, &tokenizer).map_or(0, |chunks| chunks.len());
                    let speed = megabytes / start.elapsed().as_secs_f64();
                    print!(", {splitter} {chunk_tokens}: {speed:.1} MB/s ({chunks})");
                }
            }
            println!();
        }
    }
}

fn tokenizers() -> Vec<(&'static str, Tokenizer)> {
    let mut tokenizers = vec![(
        "cl100k_base",
        Tokenizer::tiktoken("cl100k_base").expect("built in"),
    )];
    if let Some(models) = std::env::var_os("PG_INGEST_MODEL_DIR") {
        let file = PathBuf::from(models).join("all-MiniLM-L6-v2/tokenizer.json");
        tokenizers.push((
            "WordPiece",
            Tokenizer::from_file(&file).expect("a tokenizer"),
        ));
    }
    tokenizers
}
