//! From a file's bytes to its text.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use crate::FilesError;

/// How a text is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Plain, or nothing known.
    Text,
    /// `.md`, `.markdown`, `.mdx`.
    Markdown,
    /// `.html`, `.htm`, `.xhtml`.
    Html,
}

impl Format {
    /// What a file's extension says.
    pub fn of(path: &Path) -> Self {
        let extension = path
            .extension()
            .and_then(|extension| extension.to_str())
            .unwrap_or("")
            .to_ascii_lowercase();
        match extension.as_str() {
            "md" | "markdown" | "mdx" => Self::Markdown,
            "html" | "htm" | "xhtml" => Self::Html,
            _ => Self::Text,
        }
    }
}

/// What a file holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FileContent {
    /// A text, decoded, without byte order mark. It holds no NUL, which Postgres could not store.
    Text {
        /// As it stands in the file; HTML is still HTML.
        text: String,
        /// How it is written.
        format: Format,
    },
    /// Something else: an image, an archive, a program.
    NotText,
    /// It seems to be text, but in no encoding that is understood.
    BadEncoding {
        /// How it is written.
        format: Format,
        /// What is wrong and where.
        message: String,
    },
    /// More than was asked for.
    TooLarge {
        /// Bytes.
        size: u64,
        /// Bytes.
        limit: u64,
    },
}

/// Reads a file of at most `limit` bytes. UTF-8 is understood, UTF-16 with a byte order mark, and in HTML a declared
/// windows-1252 or ISO 8859-1.
///
/// # Errors
/// [`FilesError::NotAFile`] for a pipe, a socket or a directory, which reading could wait for without end;
/// [`FilesError::Io`] when the operating system refuses. What the file holds is never an error.
pub fn read(path: &Path, limit: u64) -> Result<FileContent, FilesError> {
    let io_error = |source| FilesError::Io {
        path: path.to_owned(),
        source,
    };
    let metadata = path.metadata().map_err(io_error)?;
    if !metadata.is_file() {
        return Err(FilesError::NotAFile(path.to_owned()));
    }
    if metadata.len() > limit {
        return Ok(FileContent::TooLarge {
            size: metadata.len(),
            limit,
        });
    }
    let mut bytes = Vec::with_capacity(usize::try_from(metadata.len()).unwrap_or(0));
    let file = File::open(path).map_err(io_error)?;
    // The file may have grown since, and files in /proc have no size.
    file.take(limit.saturating_add(1))
        .read_to_end(&mut bytes)
        .map_err(io_error)?;
    if bytes.len() as u64 > limit {
        return Ok(FileContent::TooLarge {
            size: bytes.len() as u64,
            limit,
        });
    }
    Ok(decode(bytes, Format::of(path)))
}

/// How common files that are no text begin, where their first bytes alone do not give them away.
const MAGIC: [&[u8]; 9] = [
    b"%PDF-",
    b"PK\x03\x04",
    b"\x1f\x8b",
    b"\x89PNG",
    b"\xff\xd8\xff",
    b"GIF87a",
    b"GIF89a",
    b"\x7fELF",
    b"{\\rtf",
];

/// How much of a file is looked at for control characters, in bytes.
const LOOKED_AT: usize = 64 * 1024;

/// The text in a file's bytes.
pub fn decode(bytes: Vec<u8>, format: Format) -> FileContent {
    let bad = |message: String| FileContent::BadEncoding { format, message };
    match bytes.as_slice() {
        [0xff, 0xfe, rest @ ..]
            if rest.first().zip(rest.get(1)) != Some((&0, &0)) || rest.len() < 2 =>
        {
            return decode_utf16(rest, u16::from_le_bytes, format);
        }
        [0xfe, 0xff, rest @ ..] => return decode_utf16(rest, u16::from_be_bytes, format),
        _ => {}
    }
    if MAGIC.iter().any(|magic| bytes.starts_with(magic))
        || bytes.contains(&0)
        || mostly_control(&bytes)
    {
        return FileContent::NotText;
    }
    match String::from_utf8(bytes) {
        Ok(mut text) => {
            if text.starts_with('\u{feff}') {
                text.drain(..'\u{feff}'.len_utf8());
            }
            FileContent::Text { text, format }
        }
        Err(error) => {
            let at = error.utf8_error().valid_up_to();
            let bytes = error.into_bytes();
            match (format, declared_charset(&bytes)) {
                (Format::Html, Some(charset)) if is_windows_1252(&charset) => FileContent::Text {
                    text: bytes.iter().map(|byte| windows_1252(*byte)).collect(),
                    format,
                },
                (Format::Html, Some(charset)) if charset != "utf-8" && charset != "utf8" => {
                    bad(format!(
                        "not valid UTF-8 at byte {at}, and the declared encoding {charset} is not understood"
                    ))
                }
                _ => bad(format!("not valid UTF-8 at byte {at}")),
            }
        }
    }
}

/// `bytes` after the byte order mark.
fn decode_utf16(bytes: &[u8], unit: fn([u8; 2]) -> u16, format: Format) -> FileContent {
    let (pairs, left) = bytes.as_chunks::<2>();
    let units = pairs.iter().map(|pair| unit(*pair));
    let mut text = String::with_capacity(bytes.len());
    for (at, character) in char::decode_utf16(units).enumerate() {
        match character {
            Ok('\0') => return FileContent::NotText,
            Ok(character) => text.push(character),
            Err(_) => {
                let message = format!("not valid UTF-16 at character {at}");
                return FileContent::BadEncoding { format, message };
            }
        }
    }
    if !left.is_empty() {
        return FileContent::BadEncoding {
            format,
            message: "UTF-16 with half a character at its end".to_owned(),
        };
    }
    FileContent::Text { text, format }
}

/// Whether control characters, other than those of layout, make up more than one byte in thirty. Escape is let be, for
/// logs with colours.
fn mostly_control(bytes: &[u8]) -> bool {
    let beginning = &bytes[..bytes.len().min(LOOKED_AT)];
    let control = beginning
        .iter()
        .filter(|byte| matches!(byte, 0x01..=0x08 | 0x0e..=0x1a | 0x1c..=0x1f | 0x7f))
        .count();
    control * 30 > beginning.len()
}

/// The encoding that an HTML page names in its first kilobyte (WHATWG HTML, "prescan a byte stream"), in lower case.
fn declared_charset(bytes: &[u8]) -> Option<String> {
    let beginning = String::from_utf8_lossy(&bytes[..bytes.len().min(1024)]).to_ascii_lowercase();
    let at = ["charset=", "encoding="]
        .iter()
        .find_map(|key| beginning.find(key).map(|at| at + key.len()))?;
    let name: String = beginning[at..]
        .trim_start_matches(['"', '\'', ' '])
        .chars()
        .take_while(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_'))
        .collect();
    (!name.is_empty()).then_some(name)
}

/// Names under which the web means windows-1252 (WHATWG Encoding, table of labels).
fn is_windows_1252(charset: &str) -> bool {
    matches!(
        charset,
        "windows-1252"
            | "cp1252"
            | "iso-8859-1"
            | "iso8859-1"
            | "iso_8859-1"
            | "latin1"
            | "us-ascii"
            | "ascii"
    )
}

/// WHATWG Encoding, index windows-1252; the five bytes it leaves open become C1 controls there.
fn windows_1252(byte: u8) -> char {
    const HIGH: [char; 32] = [
        '€', '\u{81}', '‚', 'ƒ', '„', '…', '†', '‡', 'ˆ', '‰', 'Š', '‹', 'Œ', '\u{8d}', 'Ž',
        '\u{8f}', '\u{90}', '‘', '’', '“', '”', '•', '–', '—', '˜', '™', 'š', '›', 'œ', '\u{9d}',
        'ž', 'Ÿ',
    ];
    match byte {
        0x80..=0x9f => HIGH[usize::from(byte - 0x80)],
        _ => char::from(byte),
    }
}
