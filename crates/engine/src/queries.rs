//! Queries: one text, one vector, at once, while a backlog is being embedded.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use embedder::local::InferenceThreads;
use embedder::{EmbedError, ErrorClass, ModelName};

use crate::models::Models;

/// Embeds queries on the thread that asks, at its priority: the backlog's threads run at the lowest, so the system lets
/// a query go first.
#[derive(Clone)]
pub struct Queries {
    models: Arc<Models>,
}

impl Queries {
    pub(crate) fn new(models: Arc<Models>) -> Self {
        Self { models }
    }

    /// The vector of `text`. Text beyond the model's input limit does not count.
    ///
    /// # Errors
    /// The model cannot be used, or failed on this text.
    pub fn embed(
        &self,
        model: &ModelName,
        text: &str,
        threads: &InferenceThreads,
    ) -> Result<Vec<f32>, EmbedError> {
        let model = self.models.get(model)?;
        catch_unwind(AssertUnwindSafe(|| model.embed(&[text], threads)))
            .unwrap_or_else(|_| Err(failed("the model failed on this text")))?
            .pop()
            .ok_or_else(|| failed("the model answered with nothing"))
    }
}

fn failed(message: &str) -> EmbedError {
    EmbedError::new(ErrorClass::Internal, message)
}
