//! An HTML page as Markdown: `cargo run -p files --example convert PAGE`.

use std::path::PathBuf;

fn main() {
    for page in std::env::args_os().skip(1).map(PathBuf::from) {
        match files::read(&page, 64 << 20) {
            Ok(files::FileContent::Text { text, .. }) => {
                println!("{}", files::html_to_markdown(&text))
            }
            other => eprintln!("{}: {other:?}", page.display()),
        }
    }
}
