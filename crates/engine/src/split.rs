//! The splitters' threads: documents become chunks, chunks join the backlog of their pipeline.

use std::collections::HashMap;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use chunker::{SplitError, Tokenizer};
use embedder::local::LocalModel;
use embedder::remote::Purpose;
use embedder::{EmbedError, ErrorClass};
use injection::Point;

use crate::assembly::{Assembly, EmbeddedChunk, Outcome, Part, Results};
use crate::local::LocalQueue;
use crate::models::Models;
use crate::once::{Once, Text};
use crate::pack::Item;
use crate::remote::{Lane, Remotes};
use crate::threads::{SPLIT_NICE, lower_priority, spawn_with_signals_blocked};
use crate::usage::Reservation;
use crate::vectors::Vector;
use crate::{Document, FormerChunk, Pipeline};

/// Between two looks of a splitter that a test has told to wait.
const NAP: Duration = Duration::from_millis(1);

/// A document on its way to be split.
pub(crate) struct Submitted {
    pub(crate) document: Document,
    pub(crate) room: Reservation,
    /// Held for its former chunks until they have been compared.
    pub(crate) former: Reservation<1>,
    /// Where its chunks go when its model is a remote one.
    pub(crate) lane: Option<Arc<Lane>>,
}

/// What the splitters need.
pub(crate) struct Context {
    pub(crate) models: Arc<Models>,
    pub(crate) once: Arc<Once>,
    pub(crate) results: Results,
    pub(crate) local: Arc<LocalQueue>,
    pub(crate) remotes: Arc<Remotes>,
}

pub(crate) fn start(
    threads: usize,
    documents: Receiver<Submitted>,
    context: Context,
) -> io::Result<()> {
    let documents = Arc::new(Mutex::new(documents));
    let context = Arc::new(context);
    for number in 0..threads {
        let documents = Arc::clone(&documents);
        let context = Arc::clone(&context);
        spawn_with_signals_blocked(&format!("ingest split {number}"), move || {
            lower_priority(SPLIT_NICE);
            loop {
                let next = documents
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .recv();
                let Ok(submitted) = next else { return };
                context.split(submitted);
            }
        })?;
    }
    Ok(())
}

impl Context {
    fn split(&self, submitted: Submitted) {
        let Submitted {
            mut document,
            room,
            former: former_room,
            lane,
        } = submitted;
        let former = std::mem::take(&mut document.former);
        let ticket = document.ticket;
        let prepared = {
            let _working = document.mark.work();
            let prepared = prepare(&document, &self.models);
            injection::reach(Point::AfterSplit, || std::thread::sleep(NAP))
                .map_err(|injected| EmbedError::new(ErrorClass::Internal, injected.to_string()))
                .and(prepared)
        };
        match prepared {
            Err(error) => self.results.send(Outcome::from_error(ticket, error), room),
            Ok((cutter, chunks)) => {
                let pipeline = &document.pipeline;
                let extra = cutter.extra_tokens(pipeline);
                let recipe = self.once.recipe(pipeline);
                let kept = kept(former, &chunks, pipeline.dimensions);
                drop(former_room);
                let texts: Vec<(usize, usize, Text)> = chunks
                    .iter()
                    .enumerate()
                    .filter(|(chunk, _)| !kept.contains_key(chunk))
                    .map(|(no, chunk)| {
                        let text = self.once.text(pipeline.id, recipe, &chunk.content);
                        (no, chunk.tokens + extra, text)
                    })
                    .collect();
                let assembly = Arc::new(Assembly::new(
                    (ticket, document.mark, recipe),
                    room,
                    chunks,
                    self.results.clone(),
                ));
                for (chunk, vector) in kept {
                    assembly.reused(chunk, vector);
                }
                let items = texts.into_iter().map(|(chunk, tokens, text)| Item {
                    value: Part {
                        document: Arc::clone(&assembly),
                        chunk,
                        text,
                    },
                    tokens,
                    alone: document.alone,
                    refused: 0,
                });
                match (cutter, &lane) {
                    (Cutter::Local(model), _) => self.local.push(pipeline, &model, items),
                    (Cutter::Remote(_), Some(lane)) => self.remotes.push(lane, items),
                    (Cutter::Remote(_), None) => {}
                }
            }
        }
        if let Some(lane) = lane {
            lane.was_split();
        }
    }
}

/// The vectors of chunks that a document had already, by their place among its present ones.
fn kept(
    former: Vec<FormerChunk>,
    chunks: &[EmbeddedChunk],
    dimensions: usize,
) -> HashMap<usize, Vector> {
    let known = by_text(former, dimensions);
    let places = chunks.iter().enumerate();
    places
        .filter_map(|(place, chunk)| Some((place, Arc::clone(known.get(&chunk.content)?))))
        .collect()
}

/// The vectors of chunks that can be those of a pipeline of so many dimensions, by their texts.
pub(crate) fn by_text(chunks: Vec<FormerChunk>, dimensions: usize) -> HashMap<String, Vector> {
    let usable = |chunk: &FormerChunk| {
        chunk.embedding.len() == dimensions && chunk.embedding.iter().all(|x| x.is_finite())
    };
    let usable = chunks.into_iter().filter(usable);
    usable
        .map(|chunk| (chunk.content, Arc::new(chunk.embedding)))
        .collect()
}

/// What cuts a document and counts its tokens.
enum Cutter {
    Local(Arc<LocalModel>),
    Remote(Tokenizer),
}

impl Cutter {
    fn tokenizer(&self) -> &Tokenizer {
        match self {
            Self::Local(model) => model.tokenizer(),
            Self::Remote(tokenizer) => tokenizer,
        }
    }

    /// Tokens that every input has besides those of its chunk.
    fn extra_tokens(&self, pipeline: &Pipeline) -> usize {
        let prefix = pipeline
            .remote
            .as_ref()
            .map_or("", |remote| remote.prefix(Purpose::Document));
        let prefix = if prefix.is_empty() {
            0
        } else {
            self.tokenizer().count(prefix)
        };
        prefix + self.tokenizer().special_tokens()
    }
}

/// Loads the model if need be and cuts the document. Never panics: a tokenizer that does is that document's failure.
fn prepare(
    document: &Document,
    models: &Models,
) -> Result<(Cutter, Vec<EmbeddedChunk>), EmbedError> {
    let pipeline = &document.pipeline;
    let cutter = match &pipeline.remote {
        None => Cutter::Local(models.get(&pipeline.model)?),
        Some(remote) => Cutter::Remote(models.tokenizer(&remote.encoding)?),
    };
    let chunks = catch_unwind(AssertUnwindSafe(|| {
        let chunks = chunker::split(&document.content, &pipeline.split, cutter.tokenizer())?;
        Ok(chunks
            .into_iter()
            .map(|chunk| EmbeddedChunk {
                content: chunk.text.to_owned(),
                tokens: chunk.tokens,
                embedding: Arc::default(),
                reused: false,
            })
            .collect::<Vec<_>>())
    }))
    .unwrap_or(Err(PrepareError::Panic))
    .map_err(failure)?;
    if chunks.is_empty() {
        return Err(failure(PrepareError::Blank));
    }
    Ok((cutter, chunks))
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

#[cfg(test)]
mod tests {
    use super::*;

    fn former(content: &str, embedding: &[f32]) -> FormerChunk {
        FormerChunk {
            content: content.into(),
            embedding: embedding.into(),
        }
    }

    #[test]
    fn a_vector_is_kept_wherever_its_text_stands_now_and_only_if_it_can_be_one_of_the_pipeline() {
        let before = vec![
            former("same", &[1.0, 2.0]),
            former("gone", &[3.0, 4.0]),
            former("too long", &[1.0, 2.0, 3.0]),
            former("not finite", &[1.0, f32::NAN]),
        ];
        let now = ["new", "same", "too long", "not finite", "same"].map(|content| EmbeddedChunk {
            content: content.into(),
            tokens: 1,
            embedding: Arc::default(),
            reused: false,
        });
        let kept = kept(before, &now, 2);
        let mut places: Vec<usize> = kept.keys().copied().collect();
        places.sort_unstable();
        assert_eq!(places, [1, 4]);
        assert!(kept.values().all(|vector| ***vector == [1.0, 2.0]));
    }
}
