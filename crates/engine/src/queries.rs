//! Queries: one text, one vector, at once, while a backlog is being embedded.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use embedder::local::InferenceThreads;
use embedder::remote::Purpose;
use embedder::{EmbedError, ErrorClass, ModelName, Provider};

use crate::models::Models;
use crate::pipeline::{Definitions, Pipeline};
use crate::remote::Remotes;

/// How long a question about a pipeline that was created a moment ago waits for its definition to arrive here.
const DEFINITION_WAIT: Duration = Duration::from_secs(3);

/// Embeds queries on the thread that asks, at its priority: the backlog's threads run at the lowest, so the system lets
/// a query go first; and a query to a remote model goes first in its budget.
#[derive(Clone)]
pub struct Queries {
    models: Arc<Models>,
    remotes: Arc<Remotes>,
    definitions: Arc<Mutex<Definitions>>,
}

impl Queries {
    pub(crate) fn new(models: Arc<Models>, remotes: Arc<Remotes>) -> Self {
        Self {
            models,
            remotes,
            definitions: Arc::default(),
        }
    }

    pub(crate) fn configure(&self, definitions: Definitions) {
        *self.definitions() = definitions;
    }

    fn definitions(&self) -> MutexGuard<'_, Definitions> {
        self.definitions
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// The vector of `text`, with the model of the pipeline `pipeline`, by its definition of this generation or a later one. Text
    /// beyond the model's input limit does not count. Asks `wanted` now and then, and gives up when nobody waits any more.
    ///
    /// # Errors
    /// The model cannot be used or reached, or failed on this text.
    pub fn embed(
        &self,
        (pipeline, generation): (i32, i32),
        model: &ModelName,
        text: &str,
        wanted: impl Fn() -> bool,
    ) -> Result<Vec<f32>, EmbedError> {
        if model.provider == Provider::Local {
            return self.embed_locally(model, text);
        }
        let pipeline = self.definition(pipeline, generation, model, &wanted)?;
        let Some(remote) = &pipeline.remote else {
            return Err(failed("the pipeline has no remote model"));
        };
        let tokenizer = self.models.tokenizer(&remote.encoding)?;
        let text = tokenizer.truncated(text, remote.max_input_tokens);
        let tokens = tokenizer.count(text) + tokenizer.count(remote.prefix(Purpose::Query));
        let deadline = Instant::now() + remote.timeout;
        self.remotes
            .query(&pipeline, text.to_owned(), tokens, deadline, wanted)
    }

    fn embed_locally(&self, model: &ModelName, text: &str) -> Result<Vec<f32>, EmbedError> {
        let model = self.models.get(model)?;
        let threads = InferenceThreads::new(1);
        catch_unwind(AssertUnwindSafe(|| model.embed(&[text], &threads)))
            .unwrap_or_else(|_| Err(failed("the model failed on this text")))?
            .pop()
            .ok_or_else(|| failed("the model answered with nothing"))
    }

    /// The definition with which the worker works, which arrives a moment after the commit that made it.
    fn definition(
        &self,
        id: i32,
        generation: i32,
        model: &ModelName,
        wanted: &impl Fn() -> bool,
    ) -> Result<Arc<Pipeline>, EmbedError> {
        let start = Instant::now();
        loop {
            let known = self.definitions().get(&id).cloned();
            match known {
                Some(Ok(pipeline))
                    if pipeline.generation > generation
                        || pipeline.generation == generation && pipeline.model == *model =>
                {
                    return Ok(pipeline);
                }
                Some(Err(error)) => return Err(error),
                _ if start.elapsed() < DEFINITION_WAIT && wanted() => {
                    std::thread::sleep(Duration::from_millis(5));
                }
                _ => {
                    return Err(failed("the worker cannot use this pipeline yet").with_hint(
                        "A pipeline is known to the worker when the transaction that made it has committed; \
                         SELECT * FROM ingest.doctor() tells more.",
                    ));
                }
            }
        }
    }
}

fn failed(message: &str) -> EmbedError {
    EmbedError::new(ErrorClass::Internal, message)
}
