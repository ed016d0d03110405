//! `load_files`: files on the server into the staging table.

use std::path::Path;

use files::{FileContent, FilesError, Format};
use pgrx::prelude::*;
use serde_json::json;

use crate::api::definition::Definition;
use crate::errors::{OrRaise, UserError};
use crate::owner::ActingAs;
use crate::reading::refuse_if_read_only;
use crate::settings;

/// Files written by one statement: enough that statements cost nothing, few enough that memory stays small.
const BATCH_FILES: usize = 200;
/// Bytes of text written by one statement; the last file may exceed it.
const BATCH_BYTES: usize = 16 * 1024 * 1024;

#[derive(Default)]
struct Batch {
    keys: Vec<String>,
    contents: Vec<Option<String>>,
    metadata: Vec<pgrx::JsonB>,
    errors: Vec<Option<String>>,
    bytes: usize,
}

impl Batch {
    fn add(
        &mut self,
        key: String,
        content: Option<String>,
        metadata: serde_json::Value,
        error: Option<String>,
    ) {
        self.bytes += content.as_ref().map_or(0, String::len);
        self.keys.push(key);
        self.contents.push(content);
        self.metadata.push(pgrx::JsonB(metadata));
        self.errors.push(error);
    }

    fn is_full(&self) -> bool {
        self.keys.len() >= BATCH_FILES || self.bytes >= BATCH_BYTES
    }

    fn write(&mut self, pipeline: &str) {
        let full = std::mem::take(self);
        if full.keys.is_empty() {
            return;
        }
        let _acting = ActingAs::extension_owner();
        Spi::run_with_args(
            "SELECT ingest.stage_files($1, $2, $3, $4, $5)",
            &[
                pipeline.into(),
                full.keys.into(),
                full.contents.into(),
                full.metadata.into(),
                full.errors.into(),
            ],
        )
        .or_raise();
    }
}

#[pg_extern(sql = false)]
fn load_files(directory: &str, pattern: &str, pipeline: &str) -> i64 {
    refuse_if_read_only(c"ingest.load_files()");
    require_server_file_access();
    let definition = Definition::named(pipeline);
    definition.require_access();
    let pipeline = definition.name;
    if !Path::new(directory).is_absolute() {
        UserError::new(
            PgSqlErrorCode::ERRCODE_INVALID_NAME,
            format!("{directory:?} is not an absolute path"),
        )
        .detail("load_files() reads a directory of the database server.")
        .raise();
    }
    let mut loaded = 0;
    let mut failed = 0;
    let mut not_text = Vec::new();
    let mut batch = Batch::default();
    for found in files::find(Path::new(directory), pattern)
        .map_err(unfindable)
        .or_raise()
    {
        pgrx::check_for_interrupts!();
        // A name or file that cannot be read is one file's trouble, not the end of the load.
        let file = match found {
            Ok(file) => file,
            Err(error) => {
                warning!("skipped: {error}");
                continue;
            }
        };
        let source =
            |format: &str| json!({ "source": file.path.to_string_lossy(), "format": format });
        match files::read(&file.path, settings::max_document_size() as u64) {
            Err(error) => {
                warning!("skipped: {error}");
                continue;
            }
            Ok(FileContent::NotText) => {
                not_text.push(file.key);
                continue;
            }
            Ok(FileContent::Text { text, format }) => {
                let content = match format {
                    Format::Html => files::html_to_markdown(&text),
                    Format::Text | Format::Markdown => text,
                };
                batch.add(file.key, Some(content), source(name_of(format)), None);
            }
            Ok(FileContent::BadEncoding { format, message }) => {
                failed += 1;
                batch.add(file.key, None, source(name_of(format)), Some(message));
            }
            Ok(FileContent::TooLarge { size, limit }) => {
                failed += 1;
                let message =
                    format!("the file has {size} bytes; pg_ingest.max_document_size is {limit}");
                batch.add(file.key, None, source("text"), Some(message));
            }
        }
        loaded += 1;
        if batch.is_full() {
            batch.write(&pipeline);
        }
    }
    batch.write(&pipeline);
    if !not_text.is_empty() {
        let some = not_text
            .iter()
            .take(5)
            .cloned()
            .collect::<Vec<_>>()
            .join(", ");
        let more = if not_text.len() > 5 { ", …" } else { "" };
        notice!(
            "{} files are not text and were skipped: {some}{more}",
            not_text.len()
        );
    }
    if failed > 0 {
        notice!("{failed} files could not be read as text: SELECT * FROM ingest.failures");
    }
    if loaded == 0 && failed == 0 && not_text.is_empty() {
        notice!("no file below {directory:?} matches {pattern:?}");
    }
    loaded
}

fn require_server_file_access() {
    // SAFETY: catalog look-ups inside a transaction.
    let allowed = unsafe {
        pg_sys::has_privs_of_role(
            pg_sys::GetUserId(),
            pg_sys::Oid::from(pg_sys::ROLE_PG_READ_SERVER_FILES),
        )
    };
    if !allowed {
        UserError::new(
            PgSqlErrorCode::ERRCODE_INSUFFICIENT_PRIVILEGE,
            "permission denied to read files of the server",
        )
        .detail("load_files() needs the privileges of role pg_read_server_files.")
        .hint("Read the files in the client and INSERT INTO ingest.documents (key, content).")
        .raise();
    }
}

fn unfindable(error: FilesError) -> UserError {
    let code = match error {
        FilesError::BadPattern { .. } => PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE,
        _ => PgSqlErrorCode::ERRCODE_UNDEFINED_FILE,
    };
    UserError::new(code, error.to_string())
}

fn name_of(format: Format) -> &'static str {
    match format {
        Format::Text => "text",
        Format::Markdown => "markdown",
        Format::Html => "html",
    }
}
