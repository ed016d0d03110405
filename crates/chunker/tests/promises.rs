//! What a split promises, for any text, any splitter, both kinds of tokenizer.

use std::sync::LazyLock;

use chunker::{Chunk, SplitError, SplitOptions, Splitter, Tokenizer, split};
use proptest::prelude::*;

/// A WordPiece tokenizer with the parts of all-MiniLM-L6-v2's and a vocabulary of letters and a few words.
fn word_piece() -> Tokenizer {
    static SHARED: LazyLock<Tokenizer> = LazyLock::new(|| {
        let mut vocabulary: Vec<String> = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
            .map(String::from)
            .into();
        let letters = ('a'..='z')
            .chain('0'..='9')
            .chain("éßабвгд中文字数据库日本語กขคאבג".chars());
        vocabulary.extend(letters.flat_map(|c| [c.to_string(), format!("##{c}")]));
        vocabulary.extend(
            (33_u8..127)
                .map(char::from)
                .filter(char::is_ascii_punctuation)
                .map(String::from),
        );
        vocabulary.extend(
            [
                "the", "##ing", "vector", "data", "##base", "post", "##gres", "😀",
            ]
            .map(String::from),
        );
        let entries: Vec<String> = vocabulary
            .iter()
            .enumerate()
            .map(|(id, token)| {
                format!(
                    "\"{}\":{id}",
                    token.replace('\\', "\\\\").replace('"', "\\\"")
                )
            })
            .collect();
        let json =
            include_str!("fixtures/word_piece.json").replace("VOCABULARY", &entries.join(","));
        let path =
            std::env::temp_dir().join(format!("chunker-word-piece-{}.json", std::process::id()));
        std::fs::write(&path, json).unwrap();
        let tokenizer = Tokenizer::from_file(&path);
        std::fs::remove_file(&path).unwrap();
        tokenizer.unwrap()
    });
    SHARED.clone()
}

fn openai() -> Tokenizer {
    Tokenizer::tiktoken("cl100k_base").unwrap()
}

fn tokenizers() -> [Tokenizer; 3] {
    [
        openai(),
        Tokenizer::tiktoken("o200k_base").unwrap(),
        word_piece(),
    ]
}

fn options(splitter: Splitter, chunk_tokens: usize, chunk_overlap: usize) -> SplitOptions {
    SplitOptions {
        splitter,
        chunk_tokens,
        chunk_overlap,
    }
}

/// Checks every promise about `chunks` of `text`.
fn assert_kept(text: &str, chunks: &[Chunk], options: &SplitOptions, tokenizer: &Tokenizer) {
    let mut covered = 0;
    let mut last_offset = None;
    for chunk in chunks {
        assert_eq!(
            text.get(chunk.offset..chunk.offset + chunk.text.len()),
            Some(chunk.text),
            "an offset is wrong"
        );
        assert!(
            chunk.tokens <= options.chunk_tokens,
            "{} tokens in {:?}",
            chunk.tokens,
            chunk.text
        );
        assert_eq!(
            chunk.tokens,
            tokenizer.count(chunk.text),
            "{:?}",
            chunk.text
        );
        assert!(!chunk.text.trim().is_empty(), "a chunk of nothing");
        assert!(last_offset < Some(chunk.offset), "chunks out of order");
        last_offset = Some(chunk.offset);
        if chunk.offset > covered {
            assert!(
                text[covered..chunk.offset].trim().is_empty(),
                "lost {:?}",
                &text[covered..chunk.offset]
            );
        }
        if options.chunk_overlap == 0 {
            assert!(chunk.offset >= covered, "repeated without being asked");
        }
        let end = chunk.offset + chunk.text.len();
        assert!(end > covered, "{:?} only repeats", chunk.text);
        covered = end;
    }
    assert!(
        text[covered..].trim().is_empty(),
        "lost {:?}",
        &text[covered..]
    );
}

fn some_splitter() -> impl Strategy<Value = Splitter> {
    prop_oneof![Just(Splitter::Text), Just(Splitter::Markdown)]
}

/// Pieces that tokenizers and Markdown parsers stumble over.
fn nasty_text() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        4 => "[a-zA-Z']{1,12}",
        2 => "[ \t\n\r]{1,6}",
        1 => "[0-9]{1,8}",
        1 => "\\PC{1,8}",
        1 => ".{0,6}",
        1 => prop::sample::select(vec![
            "\n\n", "\r\n", "# ", "\n## ", "> ", "- ", "\n1. ", "```\n", "|---|", "\n---\n", "<|endoftext|>", "[CLS]", "[SEP]",
            "**", "[", "](", "<div>", "&amp;", "😀", "👩‍👩‍👧‍👦", "🏳️‍🌈", "e\u{301}", "\u{301}\u{302}", "中文字数据库，", "数据库。", "日本語「",
            "שלום", "مرحبا", "กขค", "\u{200b}", "\u{a0}", "\u{3000}", "\u{2028}", "\u{85}", "\u{feff}", "İ", "ﬁ", "\u{1f}", "'s", "'LL",
            ";\n", "/\n/", "\n ", " \n", "\u{202e}",
        ]).prop_map(String::from),
    ];
    prop::collection::vec(piece, 0..120).prop_map(|pieces| pieces.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn nothing_is_lost_reordered_or_too_large(
        text in nasty_text(),
        splitter in some_splitter(),
        chunk_tokens in 8_usize..60,
        overlap in 0_usize..8,
    ) {
        for tokenizer in tokenizers() {
            let options = options(splitter, chunk_tokens, overlap);
            let chunks = split(&text, &options, &tokenizer).unwrap();
            assert_kept(&text, &chunks, &options, &tokenizer);
        }
    }

    #[test]
    fn a_limit_of_a_few_tokens_is_kept_or_refused(text in nasty_text(), splitter in some_splitter(), chunk_tokens in 1_usize..4) {
        for tokenizer in tokenizers() {
            let options = options(splitter, chunk_tokens, 0);
            match split(&text, &options, &tokenizer) {
                Ok(chunks) => assert_kept(&text, &chunks, &options, &tokenizer),
                Err(SplitError::CharacterTooLarge { character, tokens, limit }) => {
                    prop_assert!(tokens > limit && tokenizer.count(&character.to_string()) == tokens);
                }
                Err(other) => prop_assert!(false, "{other}"),
            }
        }
    }

    #[test]
    fn counts_of_openai_are_those_of_its_own_encoder(text in nasty_text()) {
        let (small, large) = (tiktoken_rs::cl100k_base_singleton(), tiktoken_rs::o200k_base_singleton());
        prop_assert_eq!(openai().count(&text), small.encode_ordinary(&text).len());
        prop_assert_eq!(Tokenizer::tiktoken("o200k_base").unwrap().count(&text), large.encode_ordinary(&text).len());
    }

    #[test]
    fn counts_of_a_local_model_are_the_ids_it_is_given(text in nasty_text()) {
        let tokenizer = word_piece();
        let encoded = tokenizer.encode(&text, usize::MAX).unwrap();
        prop_assert_eq!(tokenizer.count(&text) + tokenizer.special_tokens(), encoded.ids.len());
        prop_assert_eq!(encoded.ids.len(), encoded.type_ids.len());
    }

    #[test]
    fn encoding_cuts_at_the_end_only(text in nasty_text(), max_tokens in 3_usize..40) {
        let tokenizer = word_piece();
        let whole = tokenizer.encode(&text, usize::MAX).unwrap().ids;
        let cut = tokenizer.encode(&text, max_tokens).unwrap().ids;
        prop_assert!(cut.len() <= max_tokens);
        prop_assert_eq!(cut.len(), whole.len().min(max_tokens));
        prop_assert_eq!(&cut[..cut.len() - 1], &whole[..cut.len() - 1]);
        prop_assert_eq!(cut.last(), whole.last(), "the last one is [SEP]");
    }
}

#[test]
fn truncation_and_padding_of_the_file_are_switched_off() {
    let tokenizer = word_piece();
    assert_eq!(tokenizer.special_tokens(), 2);
    assert_eq!(tokenizer.count("the data"), 2);
    assert_eq!(tokenizer.count(&"the ".repeat(100)), 100);
    assert_eq!(tokenizer.encode("the", 512).unwrap().ids.len(), 3);
}

#[test]
fn special_tokens_in_a_text_are_plain_text_to_openai() {
    assert_eq!(openai().special_tokens(), 0);
    assert!(openai().count("<|endoftext|>") > 1);
}

#[test]
fn known_counts_are_met() {
    // OpenAI Cookbook, "How to count tokens with tiktoken".
    assert_eq!(openai().count("tiktoken is great!"), 6);
    assert_eq!(openai().count("antidisestablishmentarianism"), 6);
    assert_eq!(openai().count("お誕生日おめでとう"), 9);
}

#[test]
fn an_encoding_that_only_counts_says_so() {
    assert!(
        openai()
            .encode("x", 10)
            .unwrap_err()
            .to_string()
            .contains("only counts")
    );
    assert!(
        Tokenizer::tiktoken("gpt2")
            .unwrap_err()
            .to_string()
            .contains("cl100k_base")
    );
}

#[test]
fn a_file_that_is_no_tokenizer_is_named_in_the_error() {
    let missing = std::path::Path::new("/nowhere/tokenizer.json");
    assert!(
        Tokenizer::from_file(missing)
            .unwrap_err()
            .to_string()
            .contains("/nowhere/tokenizer.json")
    );
}

#[test]
fn white_space_alone_has_no_chunks() {
    for splitter in [Splitter::Text, Splitter::Markdown, Splitter::None] {
        for text in ["", " ", "\n\n\t \r\n", "\u{a0}\u{3000}"] {
            assert_eq!(
                split(text, &options(splitter, 10, 0), &openai()),
                Ok(vec![])
            );
        }
    }
}

#[test]
fn a_document_that_is_not_to_be_split_is_one_chunk_or_refused() {
    let text = "  one two three\n";
    let whole = split(text, &options(Splitter::None, 3, 0), &openai()).unwrap();
    assert_eq!(
        whole,
        [Chunk {
            text: "one two three",
            tokens: 3,
            offset: 2
        }]
    );
    let refused = split(text, &options(Splitter::None, 2, 0), &openai());
    assert_eq!(
        refused,
        Err(SplitError::TooLarge {
            tokens: 3,
            limit: 2
        })
    );
}

#[test]
fn impossible_options_are_refused() {
    assert_eq!(
        options(Splitter::Text, 0, 0).validate(),
        Err(SplitError::NoTokens)
    );
    let overlap = SplitError::OverlapTooLarge {
        overlap: 10,
        chunk_tokens: 10,
    };
    assert_eq!(
        split("x", &options(Splitter::Text, 10, 10), &openai()),
        Err(overlap)
    );
}

#[test]
fn splitters_are_read_as_they_are_written() {
    for splitter in [Splitter::Text, Splitter::Markdown, Splitter::None] {
        assert_eq!(splitter.to_string().parse(), Ok(splitter));
    }
    assert!(
        "Text"
            .parse::<Splitter>()
            .unwrap_err()
            .to_string()
            .contains("text, markdown and none")
    );
}

#[test]
fn paragraphs_stay_whole_where_they_fit() {
    let text = "First paragraph, of some words.\n\nSecond paragraph, of some more words.\n\nThird.";
    let chunks = split(text, &options(Splitter::Text, 12, 0), &openai()).unwrap();
    let texts: Vec<&str> = chunks.iter().map(|chunk| chunk.text).collect();
    assert_eq!(
        texts,
        [
            "First paragraph, of some words.",
            "Second paragraph, of some more words.\n\nThird."
        ]
    );
}

#[test]
fn markdown_is_cut_at_its_headings() {
    let section = |n: usize| format!("# Heading {n}\n\nSome words of section {n}.\n\n");
    let text: String = (0..6).map(section).collect();
    let chunks = split(&text, &options(Splitter::Markdown, 16, 0), &openai()).unwrap();
    assert_eq!(chunks.len(), 6);
    assert!(
        chunks
            .iter()
            .all(|chunk| chunk.text.starts_with("# Heading"))
    );
}

#[test]
fn overlap_repeats_the_end_of_the_chunk_before() {
    let text: String = (0..20_000).map(|n| format!("word{n} ")).collect();
    let chunks = split(&text, &options(Splitter::Text, 64, 16), &openai()).unwrap();
    assert!(chunks.len() > 500);
    for pair in chunks.windows(2) {
        let end = pair[0].offset + pair[0].text.len();
        assert!(pair[1].offset < end, "no overlap at byte {end}");
        assert!(openai().count(&text[pair[1].offset..end]) <= 16);
    }
}

#[test]
fn no_chunk_is_made_of_overlap_alone() {
    let text = "- \0\0\0\u{c} ".repeat(4096);
    let options = options(Splitter::Markdown, 32, 5);
    let chunks = split(&text, &options, &word_piece()).unwrap();
    assert_kept(&text, &chunks, &options, &word_piece());
}

#[test]
fn where_a_window_ends_leaves_no_trace() {
    let sentence =
        "All work and no play makes a database administrator a dull person, says an old proverb. ";
    let text = sentence.repeat(4000);
    let chunks = split(&text, &options(Splitter::Text, 100, 0), &word_piece()).unwrap();
    let smallest = chunks[..chunks.len() - 1]
        .iter()
        .map(|chunk| chunk.tokens)
        .min();
    let largest = chunks.iter().map(|chunk| chunk.tokens).max();
    assert_eq!(smallest, largest, "a window's end cut a chunk short");
}

/// Megabytes that have been seen to bring splitters down: each must end, quickly, with every promise kept.
#[test]
fn hostile_megabytes_are_split_like_any_other() {
    // Without optimisation a fifth of it takes as long.
    let million = if cfg!(debug_assertions) {
        200_000
    } else {
        1_000_000
    };
    let texts = [
        "x".repeat(million),
        format!("{}a", "\n".repeat(200)).repeat(million / 201),
        "ab9_".repeat(million / 4),
        "a ".repeat(million / 2),
        "\n".repeat(million),
        format!("a{}b", "\n".repeat(2 * million)),
        format!("a{}b", " ".repeat(2 * million)),
        "数据库系统将文档切分为片段".repeat(million / 39),
        "😀👩‍👩‍👧‍👦".repeat(million / 29),
        ">".repeat(million),
        format!("{} x\n", ">".repeat(1000)).repeat(200),
        (0..1000)
            .map(|depth| format!("{}- x\n", "  ".repeat(depth)))
            .collect(),
        "[".repeat(million),
        "*a **b _c ".repeat(million / 10),
        "`".repeat(million),
        "<div>".repeat(million / 5),
        "| a ".repeat(million / 4),
    ];
    for tokenizer in [openai(), word_piece()] {
        for splitter in [Splitter::Text, Splitter::Markdown] {
            for text in &texts {
                let options = options(splitter, 200, 20);
                let chunks = split(text, &options, &tokenizer).unwrap();
                assert_kept(text, &chunks, &options, &tokenizer);
            }
        }
    }
}

proptest! {
    #[test]
    fn a_truncated_text_fits_and_is_a_beginning(text in any::<String>(), words in 0usize..60, max in 0usize..40) {
        let text = format!("{text}{}", " the vector database".repeat(words));
        let tokenizer = Tokenizer::tiktoken("cl100k_base").unwrap();
        let cut = tokenizer.truncated(&text, max);
        prop_assert!(text.starts_with(cut));
        prop_assert!(tokenizer.count(cut) <= max);
        if tokenizer.count(&text) <= max {
            prop_assert_eq!(cut, text.as_str());
        } else if max >= 16 {
            // Not far from the longest there is; one character may be several tokens.
            prop_assert!(tokenizer.count(cut) >= max / 2, "{} of {max} tokens", tokenizer.count(cut));
        }
    }
}
