//! Splitting.

use chunker::{Chunk, SplitError, SplitOptions, Splitter, Tokenizer, split};

use crate::tools::{repeated, tokenizer};

/// Five characters of settings, then the text: the splitter (`m`: Markdown, `n`: none, else text), the tokenizer (`o`, `w`,
/// else cl100k_base), the tokens of a chunk (the character's code), those of the overlap (the same, modulo those of the
/// chunk), how often the text is repeated ([`repeated`]; not at all where chunks are tiny or more than half overlap, for
/// then the splitter takes seconds, whatever the text).
///
/// Chunks are parts of the text, in order; all but white space is in one; none is larger than asked; the tokens told are
/// those that it has.
pub fn chunks(bytes: &[u8]) {
    let [splitter, letter, chunk_tokens, overlap, times, text @ ..] = bytes else {
        return;
    };
    let chunk_tokens = usize::from(*chunk_tokens).max(1);
    let chunk_overlap = usize::from(*overlap) % chunk_tokens;
    let text = String::from_utf8_lossy(text);
    let text = match chunk_tokens < 16 || chunk_overlap * 2 > chunk_tokens {
        true => text.into_owned(),
        false => repeated(&text, *times),
    };
    let options = SplitOptions {
        splitter: match splitter {
            b'm' => Splitter::Markdown,
            b'n' => Splitter::None,
            _ => Splitter::Text,
        },
        chunk_tokens,
        chunk_overlap,
    };
    let tokenizer = tokenizer(*letter);
    match split(&text, &options, tokenizer) {
        Ok(chunks) => assert_kept(&text, &chunks, &options, tokenizer),
        Err(SplitError::TooLarge { tokens, limit }) => {
            assert!(options.splitter == Splitter::None && tokens > limit);
        }
        Err(SplitError::CharacterTooLarge {
            character,
            tokens,
            limit,
        }) => {
            assert!(tokens > limit && text.contains(character));
            assert_eq!(tokens, tokenizer.count(&character.to_string()));
        }
        Err(other) => panic!("{other}"),
    }
}

fn assert_kept(text: &str, chunks: &[Chunk], options: &SplitOptions, tokenizer: &Tokenizer) {
    let mut covered = 0;
    let mut last_offset = None;
    for chunk in chunks {
        let end = chunk.offset + chunk.text.len();
        assert_eq!(text.get(chunk.offset..end), Some(chunk.text));
        assert!(!chunk.text.trim().is_empty(), "a chunk of nothing");
        assert!(chunk.tokens <= options.chunk_tokens, "too large: {chunk:?}");
        assert_eq!(chunk.tokens, tokenizer.count(chunk.text), "{chunk:?}");
        assert!(last_offset < Some(chunk.offset), "out of order: {chunk:?}");
        assert!(end > covered, "nothing new: {chunk:?}");
        last_offset = Some(chunk.offset);
        if chunk.offset > covered {
            let between = &text[covered..chunk.offset];
            assert!(between.trim().is_empty(), "lost {between:?}");
        } else {
            let repeated = tokenizer.count(&text[chunk.offset..covered]);
            assert!(
                repeated <= options.chunk_overlap,
                "{repeated} tokens repeated"
            );
        }
        covered = end;
    }
    assert!(text[covered..].trim().is_empty(), "lost the end");
}
