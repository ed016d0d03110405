//! Rows of watched tables that cannot be read: one whose expression fails ends in the failures, a table that cannot be read at
//! all blocks its pipeline.

use std::time::Instant;

use embedder::{EmbedError, ErrorClass};
use pgrx::prelude::*;

use crate::errors::OrRaise;
use crate::impatience::Impatience;
use crate::sources::{self, PATIENCE, Place};
use crate::worker::pipelines::Active;
use crate::worker::transaction::{SqlError, run, transaction};
use crate::worker::write::block_now;

/// A row whose expressions fail.
pub struct UnreadableRow {
    /// Its document.
    pub document: i64,
    /// What kind of failure that is.
    pub class: ErrorClass,
    /// What happened.
    pub message: String,
}

/// What an error while rows were read comes of.
pub enum Found {
    /// No row: the pipeline is blocked now.
    Nothing,
    /// Reading as many took too long.
    Slow,
    /// A row.
    Row(UnreadableRow),
}

impl UnreadableRow {
    /// Finds out what the error comes of. Fails with it when it may be gone a moment later.
    pub fn find(error: SqlError, place: &Place, pipeline: &Active) -> Result<Found, SqlError> {
        let too_slow = place.was_too_slow(error.code);
        if too_slow && place.before > 0 {
            return Ok(Found::Slow);
        }
        if error.is_transient() && !too_slow {
            return Err(error);
        }
        let start = Instant::now();
        if let Err(problem) = read_no_row(place) {
            if problem.is_transient() && !sources::was_too_slow(problem.code, start) {
                return Err(problem);
            }
            let message = place.source.blocking_message(&problem.to_string());
            let blocked = EmbedError::model_unusable(message).with_hint(place.source.advice());
            transaction(|| block_now(pipeline, &blocked))?;
            return Ok(Found::Nothing);
        }
        let name = place.source.name();
        let (class, message) = if too_slow {
            let seconds = PATIENCE.as_secs();
            (
                ErrorClass::Timeout,
                format!("the row of {name} takes longer than {seconds} s to read"),
            )
        } else {
            (
                ErrorClass::InvalidRequest,
                format!("the row of {name} cannot be read: {error}"),
            )
        };
        Ok(Found::Row(Self {
            document: place.document,
            class,
            message,
        }))
    }
}

/// What reading any row would fail with: a column or a right that is not there.
fn read_no_row(place: &Place) -> Result<(), SqlError> {
    transaction(|| {
        Spi::connect_mut(|client| {
            let statement = &place.source.statements().reading;
            let arguments = sources::reading_arguments(None, 0);
            let _impatience = Impatience::new(PATIENCE);
            place
                .source
                .run(|| run(client, statement, &arguments))
                .map(drop)
        })
        .or_raise();
    })
}
