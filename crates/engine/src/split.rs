//! The splitter's thread: documents become chunks, chunks become requests.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError};

use chunker::SplitError;
use embedder::local::LocalModel;
use embedder::{EmbedError, ErrorClass};

use crate::assembly::{Assembly, EmbeddedChunk, Outcome, Results};
use crate::call::Request;
use crate::models::Models;
use crate::pack::{Capacity, Packer};
use crate::threads::{lower_priority, spawn_with_signals_blocked};
use crate::{Document, Pipeline};

/// Tokens in a request for a local model: about a quarter of a second of work on one core, so that no request keeps a
/// query or a shutdown waiting, and enough to fill a batch. Longer batches are not faster: inference is bound by
/// arithmetic from some 512 tokens on.
const LOCAL_REQUEST_TOKENS: usize = 1024;

/// Inputs in a request for a local model.
const LOCAL_REQUEST_INPUTS: usize = 64;

/// A chunk on its way into a request.
pub(crate) struct Part {
    pub(crate) document: Arc<Assembly>,
    pub(crate) chunk: usize,
}

pub(crate) fn start(
    documents: Receiver<Document>,
    requests: SyncSender<Request>,
    results: Results,
    models: &Arc<Models>,
) -> io::Result<()> {
    let models = Arc::clone(models);
    spawn_with_signals_blocked("ingest split", move || {
        lower_priority();
        run(&documents, &requests, &results, &models);
    })
}

fn run(
    documents: &Receiver<Document>,
    requests: &SyncSender<Request>,
    results: &Results,
    models: &Models,
) {
    // One open request at a time: the worker submits pipelines in turns, in runs of documents.
    let mut open: Option<(Arc<Pipeline>, Arc<LocalModel>, Packer<Part>)> = None;
    loop {
        let document = match documents.try_recv() {
            Ok(document) => document,
            Err(TryRecvError::Disconnected) => return,
            Err(TryRecvError::Empty) => {
                // Nothing else is coming: what has been gathered goes now, full or not.
                if let Some((pipeline, model, mut packer)) = open.take() {
                    send(requests, &pipeline, &model, packer.take());
                }
                match documents.recv() {
                    Ok(document) => document,
                    Err(_) => return,
                }
            }
        };
        if !matches!(&open, Some((pipeline, _, _)) if *pipeline == document.pipeline)
            && let Some((pipeline, model, mut packer)) = open.take()
        {
            send(requests, &pipeline, &model, packer.take());
        }
        let bytes = document.content.len();
        let ticket = document.ticket;
        match prepare(&document, models) {
            Err(error) => results.send(Outcome::from_error(ticket, error), bytes),
            Ok((model, chunks)) => {
                let (pipeline, model, packer) = open.get_or_insert_with(|| {
                    let capacity = Capacity {
                        inputs: document.pipeline.batch_size.unwrap_or(LOCAL_REQUEST_INPUTS),
                        tokens: LOCAL_REQUEST_TOKENS,
                    };
                    (Arc::clone(&document.pipeline), model, Packer::new(capacity))
                });
                let counts: Vec<usize> = chunks.iter().map(|c| c.tokens).collect();
                let assembly = Arc::new(Assembly::new(ticket, bytes, chunks, results.clone()));
                for (chunk, tokens) in counts.into_iter().enumerate() {
                    let part = Part {
                        document: Arc::clone(&assembly),
                        chunk,
                    };
                    let full = packer.add(part, tokens + model.tokenizer().special_tokens());
                    send(requests, pipeline, model, full);
                }
            }
        }
    }
}

fn send(
    requests: &SyncSender<Request>,
    pipeline: &Arc<Pipeline>,
    model: &Arc<LocalModel>,
    parts: Option<Vec<Part>>,
) {
    if let Some(parts) = parts {
        // Callers live as long as this sender.
        let _ = requests.send(Request {
            pipeline: Arc::clone(pipeline),
            model: Arc::clone(model),
            parts,
        });
    }
}

/// Loads the model if need be and cuts the document. Never panics: a tokenizer that does is that document's failure.
fn prepare(
    document: &Document,
    models: &Models,
) -> Result<(Arc<LocalModel>, Vec<EmbeddedChunk>), EmbedError> {
    let model = models.get(&document.pipeline.model)?;
    let options = &document.pipeline.split;
    let chunks = catch_unwind(AssertUnwindSafe(|| {
        let chunks = chunker::split(&document.content, options, model.tokenizer())?;
        Ok(chunks
            .into_iter()
            .map(|chunk| EmbeddedChunk {
                content: chunk.text.to_owned(),
                tokens: chunk.tokens,
                embedding: Vec::new(),
            })
            .collect::<Vec<_>>())
    }))
    .unwrap_or(Err(PrepareError::Panic))
    .map_err(failure)?;
    if chunks.is_empty() {
        return Err(failure(PrepareError::Blank));
    }
    Ok((model, chunks))
}

enum PrepareError {
    Split(SplitError),
    Blank,
    Panic,
}

impl From<SplitError> for PrepareError {
    fn from(error: SplitError) -> Self {
        Self::Split(error)
    }
}

fn failure(error: PrepareError) -> EmbedError {
    let (class, message) = match error {
        PrepareError::Blank => (
            ErrorClass::InvalidRequest,
            "the content is empty or blank".to_owned(),
        ),
        PrepareError::Panic => (
            ErrorClass::Internal,
            "the text could not be split: the tokenizer failed on it".to_owned(),
        ),
        PrepareError::Split(error @ SplitError::TooLarge { .. }) => {
            (ErrorClass::TooLarge, error.to_string())
        }
        PrepareError::Split(error) => (ErrorClass::InvalidRequest, error.to_string()),
    };
    EmbedError::new(class, message)
}
