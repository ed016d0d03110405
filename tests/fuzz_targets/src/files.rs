//! Files and pages.

use files::{FileContent, Format, decode, html_to_markdown};

/// One letter (`h`: HTML, `m`: Markdown, else text), then the file.
///
/// A text has no NUL, which Postgres could not store, and a page's text is not much longer than the page.
pub fn files(bytes: &[u8]) {
    let Some((letter, bytes)) = bytes.split_first() else {
        return;
    };
    let format = match letter {
        b'h' => Format::Html,
        b'm' => Format::Markdown,
        _ => Format::Text,
    };
    let FileContent::Text { text, .. } = decode(bytes.to_vec(), format) else {
        return;
    };
    assert!(!text.contains('\0'));
    if format == Format::Html {
        let markdown = html_to_markdown(&text);
        assert!(!markdown.contains('\0'), "a NUL out of a page without one");
        assert!(
            markdown.len() <= 64 * text.len() + 1024,
            "a page that grows"
        );
    }
}
