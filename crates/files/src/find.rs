//! Which files of a directory a pattern names.

use std::cmp::Ordering;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use globset::{GlobBuilder, GlobMatcher};
use walkdir::{DirEntry, WalkDir};

/// Files cannot be found or read.
#[derive(Debug, thiserror::Error)]
pub enum FilesError {
    /// The directory is not there.
    #[error("the directory {path} does not exist", path = .0.display())]
    NoDirectory(PathBuf),
    /// Something is there, and it is no directory.
    #[error("{path} is not a directory", path = .0.display())]
    NotADirectory(PathBuf),
    /// The pattern cannot be understood.
    #[error("bad pattern \"{pattern}\": {message}")]
    BadPattern {
        /// As given.
        pattern: String,
        /// What is wrong with it.
        message: String,
    },
    /// A file's name is no text, so it can be no key.
    #[error("the file name {path} is not valid UTF-8", path = .0.display())]
    NameNotUtf8(PathBuf),
    /// Neither a file nor a directory: a pipe, a socket, a device.
    #[error("{path} is not a regular file", path = .0.display())]
    NotAFile(PathBuf),
    /// The operating system refuses.
    #[error("cannot read {path}: {source}", path = .path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What the operating system says.
        source: std::io::Error,
    },
}

/// A file that the pattern names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundFile {
    /// The path relative to the directory, with `/` between its parts.
    pub key: String,
    /// Where to read it.
    pub path: PathBuf,
    /// Bytes, at the time it was found.
    pub size: u64,
}

/// The files that a pattern names, in the order of their keys, one by one: memory does not grow with their number, except
/// for the names within one directory. An entry that cannot be read is an error item and the walk goes on.
pub struct FileSet {
    root: PathBuf,
    walk: Box<dyn Iterator<Item = walkdir::Result<DirEntry>>>,
    matcher: GlobMatcher,
}

/// Finds the files below `directory` whose relative path matches `pattern`: `*` and `?` stay within a part of the path,
/// `**` crosses parts, `{a,b}` and `[a-z]` are understood; `**/*` is all.
///
/// Hidden files and directories (a leading `.`) are passed over unless the pattern names one, as in `.config/*` or
/// `**/.*`. Symbolic links to files are read, those to directories are not entered: they may lead in circles.
///
/// # Errors
/// [`FilesError::NoDirectory`], [`FilesError::NotADirectory`], [`FilesError::BadPattern`]; [`FilesError::Io`] when the
/// directory cannot be looked at.
pub fn find(directory: &Path, pattern: &str) -> Result<FileSet, FilesError> {
    let matcher = GlobBuilder::new(pattern)
        .literal_separator(true)
        .backslash_escape(true)
        .build()
        .map_err(|error| FilesError::BadPattern {
            pattern: pattern.to_owned(),
            message: error.kind().to_string(),
        })?
        .compile_matcher();
    match directory.metadata() {
        Ok(metadata) if metadata.is_dir() => {}
        Ok(_) => return Err(FilesError::NotADirectory(directory.to_owned())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(FilesError::NoDirectory(directory.to_owned()));
        }
        Err(source) => {
            return Err(FilesError::Io {
                path: directory.to_owned(),
                source,
            });
        }
    }
    let names_hidden = pattern.starts_with('.') || pattern.contains("/.") || pattern.contains("{.");
    let walk = WalkDir::new(directory)
        .follow_links(false)
        .sort_by(key_order)
        .into_iter()
        .filter_entry(move |entry| {
            names_hidden || entry.depth() == 0 || !is_hidden(entry.file_name())
        });
    Ok(FileSet {
        root: directory.to_owned(),
        walk: Box::new(walk),
        matcher,
    })
}

impl Iterator for FileSet {
    type Item = Result<FoundFile, FilesError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            match self.walk.next()? {
                Ok(entry) => {
                    if let Some(found) = self.look_at(&entry) {
                        return Some(found);
                    }
                }
                Err(error) => {
                    let path = error.path().unwrap_or(&self.root).to_owned();
                    let source = error
                        .into_io_error()
                        .unwrap_or_else(|| std::io::Error::other("it leads in a circle"));
                    return Some(Err(FilesError::Io { path, source }));
                }
            }
        }
    }
}

impl FileSet {
    /// None when the entry is no file of the pattern.
    fn look_at(&self, entry: &DirEntry) -> Option<Result<FoundFile, FilesError>> {
        if entry.file_type().is_dir() {
            return None;
        }
        let relative = entry.path().strip_prefix(&self.root).ok()?;
        if !self.matcher.is_match(relative) {
            return None;
        }
        let path = entry.path().to_owned();
        // Follows a symbolic link, so a link to a directory falls out here as well.
        let metadata = match path.metadata() {
            Ok(metadata) if metadata.is_file() => metadata,
            Ok(_) => return None,
            Err(source) => return Some(Err(FilesError::Io { path, source })),
        };
        Some(match relative.to_str() {
            Some(key) => Ok(FoundFile {
                key: key.to_owned(),
                path,
                size: metadata.len(),
            }),
            None => Err(FilesError::NameNotUtf8(path)),
        })
    }
}

impl std::fmt::Debug for FileSet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FileSet")
            .field("root", &self.root)
            .finish_non_exhaustive()
    }
}

fn is_hidden(name: &OsStr) -> bool {
    name.as_encoded_bytes().first() == Some(&b'.')
}

/// The order of the keys, byte by byte: a directory's name counts with the slash that follows it.
fn key_order(a: &DirEntry, b: &DirEntry) -> Ordering {
    fn bytes(entry: &DirEntry) -> impl Iterator<Item = u8> + '_ {
        let slash = entry.file_type().is_dir().then_some(b'/');
        entry
            .file_name()
            .as_encoded_bytes()
            .iter()
            .copied()
            .chain(slash)
    }
    bytes(a).cmp(bytes(b))
}
