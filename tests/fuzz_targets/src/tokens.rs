//! Counting.

use crate::tools::{repeated, tokenizer};

/// Three characters of settings, then the text: the tokenizer (`o`, `w`, else cl100k_base), how many tokens to cut at, how
/// often the text is repeated ([`repeated`]).
///
/// Counts are those of the tokenizer that is counted for; a text that is cut is a beginning that fits.
pub fn tokens(bytes: &[u8]) {
    let [letter, most, times, text @ ..] = bytes else {
        return;
    };
    let text = repeated(&String::from_utf8_lossy(text), *times);
    let most = usize::from(*most);
    let tokenizer = tokenizer(*letter);
    let count = tokenizer.count(&text);
    let cut = tokenizer.truncated(&text, most);
    assert!(text.starts_with(cut));
    assert!(tokenizer.count(cut) <= most);
    assert!(count > most || cut == text);
    match letter {
        b'w' => {
            let ids = |most| tokenizer.encode(&text, most).expect("ids").ids;
            let special = tokenizer.special_tokens();
            let all = ids(usize::MAX);
            assert_eq!(all.len(), count + special);
            let few = ids(most.max(special));
            assert_eq!(few.len(), all.len().min(most.max(special)));
            let same = few.len() - 1;
            assert_eq!(few[..same], all[..same]);
        }
        b'o' => {
            let exact = tiktoken_rs::o200k_base_singleton().count_ordinary(&text);
            assert_eq!(count, exact);
        }
        _ => {
            let exact = tiktoken_rs::cl100k_base_singleton().count_ordinary(&text);
            assert_eq!(count, exact);
        }
    }
}
