//! Local models: threads that take requests from a common backlog, run the model, and hand the vectors to the documents.

use std::collections::VecDeque;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use embedder::local::{InferenceThreads, LocalModel};
use embedder::{EmbedError, ErrorClass};

use crate::Pipeline;
use crate::assembly::{Part, marks};
use crate::mark::{Mark, Working};
use crate::once::{Home, Once};
use crate::pack::{Backlog, Item};
use crate::threads::{INFERENCE_NICE, lower_priority, spawn_with_signals_blocked};

/// Chunks to embed together.
struct Request {
    pipeline: Arc<Pipeline>,
    model: Arc<LocalModel>,
    parts: Vec<Part>,
}

/// What waits for a local model.
pub(crate) struct LocalQueue {
    once: Arc<Once>,
    waiting: Mutex<Waiting>,
    arrived: Condvar,
    requests: &'static AtomicI32,
}

#[derive(Default)]
struct Waiting {
    pipelines: VecDeque<(Arc<Pipeline>, Arc<LocalModel>, Backlog<Part>)>,
    closed: bool,
}

impl LocalQueue {
    pub(crate) fn new(once: Arc<Once>, requests: &'static AtomicI32) -> Self {
        Self {
            once,
            waiting: Mutex::default(),
            arrived: Condvar::new(),
            requests,
        }
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds those of a document's chunks whose vectors are not known or on their way.
    pub(crate) fn push(
        self: &Arc<Self>,
        pipeline: &Arc<Pipeline>,
        model: &Arc<LocalModel>,
        items: impl Iterator<Item = Item<Part>>,
    ) {
        let place: Arc<dyn Home> = Arc::new(Place {
            queue: Arc::clone(self),
            pipeline: Arc::clone(pipeline),
            model: Arc::clone(model),
        });
        place.take_in(self.once.sift(&place, items));
    }

    /// The next request, the pipelines in turns; waits for one. `None` when there will be no more.
    fn next(&self) -> Option<Request> {
        let mut waiting = self.waiting();
        loop {
            if waiting.closed {
                return None;
            }
            if let Some((pipeline, model, mut backlog)) = waiting.pipelines.pop_front() {
                if let Some(packed) = backlog.peek(pipeline.capacity()) {
                    let items = backlog.take(packed);
                    let request = Request {
                        pipeline: Arc::clone(&pipeline),
                        model: Arc::clone(&model),
                        parts: items.into_iter().map(|item| item.value).collect(),
                    };
                    if !backlog.is_empty() {
                        waiting.pipelines.push_back((pipeline, model, backlog));
                    }
                    return Some(request);
                }
                continue;
            }
            waiting = self
                .arrived
                .wait(waiting)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Ends the callers after what they are doing, and what waits.
    pub(crate) fn close(&self) {
        let waiting = {
            let mut waiting = self.waiting();
            waiting.closed = true;
            std::mem::take(&mut waiting.pipelines)
        };
        self.arrived.notify_all();
        for (_, _, mut backlog) in waiting {
            for item in backlog.drain() {
                item.value.failed(closed());
            }
        }
    }
}

/// Where the chunks of a pipeline wait.
struct Place {
    queue: Arc<LocalQueue>,
    pipeline: Arc<Pipeline>,
    model: Arc<LocalModel>,
}

impl Home for Place {
    fn take_in(&self, items: Vec<Item<Part>>) {
        if items.is_empty() {
            return;
        }
        let mut waiting = self.queue.waiting();
        if waiting.closed {
            drop(waiting);
            for item in items {
                item.value.failed(closed());
            }
            return;
        }
        let known = waiting
            .pipelines
            .iter()
            .position(|(p, ..)| *p == self.pipeline);
        let index = known.unwrap_or_else(|| {
            let (pipeline, model) = (Arc::clone(&self.pipeline), Arc::clone(&self.model));
            waiting
                .pipelines
                .push_back((pipeline, model, Backlog::default()));
            waiting.pipelines.len() - 1
        });
        for item in items {
            waiting.pipelines[index].2.push(item);
        }
        drop(waiting);
        self.queue.arrived.notify_all();
    }
}

/// What ends documents when the engine ends; nobody reads it.
fn closed() -> EmbedError {
    internal("the engine has ended")
}

pub(crate) fn start(threads: usize, queue: &Arc<LocalQueue>) -> io::Result<()> {
    for number in 0..threads {
        let queue = Arc::clone(queue);
        spawn_with_signals_blocked(&format!("ingest call {number}"), move || {
            lower_priority(INFERENCE_NICE);
            // One thread an inference and several inferences at once: no thread waits for another inside a matrix product.
            let threads = InferenceThreads::new(1);
            while let Some(mut request) = queue.next() {
                queue.requests.fetch_add(1, Ordering::Relaxed);
                let working: Vec<Working> = marks(request.parts.iter())
                    .into_iter()
                    .map(Mark::work)
                    .collect();
                let parts = std::mem::take(&mut request.parts);
                let recipe = queue.once.recipe(&request.pipeline);
                answer(parts, request.pipeline.dimensions, recipe, |inputs| {
                    let texts: Vec<&str> = inputs.iter().map(String::as_str).collect();
                    request.model.embed(&texts, &threads)
                });
                drop(working);
                queue.requests.fetch_sub(1, Ordering::Relaxed);
            }
        })?;
    }
    Ok(())
}

/// Embeds a request's chunks and tells their documents.
fn answer(
    parts: Vec<Part>,
    dimensions: usize,
    recipe: u32,
    mut embed: impl FnMut(&[String]) -> Result<Vec<Vec<f32>>, EmbedError>,
) {
    // Chunks of documents that have failed meanwhile are not worth a call.
    let (parts, inputs): (Vec<Part>, Vec<String>) = parts
        .into_iter()
        .filter_map(|part| {
            let text = part.document.text(part.chunk)?;
            Some((part, text))
        })
        .unzip();
    let answers = bisect(&inputs, &mut |inputs| {
        catch_unwind(AssertUnwindSafe(|| embed(inputs)))
            .unwrap_or_else(|_| Err(internal("the model failed on this input")))
            .and_then(|vectors| check(vectors, inputs.len(), dimensions))
    });
    for (part, answer) in parts.into_iter().zip(answers) {
        match answer {
            Ok(vector) => part.embedded(vector, recipe),
            Err(error) => part.failed(error),
        }
    }
}

/// An answer for each input, in order. A refused request is halved until the bad inputs stand alone: `O(bad · log n)`
/// calls, and no input that was fine is lost.
fn bisect<I, O>(
    inputs: &[I],
    call: &mut impl FnMut(&[I]) -> Result<Vec<O>, EmbedError>,
) -> Vec<Result<O, EmbedError>> {
    if inputs.is_empty() {
        return Vec::new();
    }
    match call(inputs) {
        Ok(answers) => answers.into_iter().map(Ok).collect(),
        Err(error) if inputs.len() > 1 && error.blames_the_inputs() => {
            let (left, right) = inputs.split_at(inputs.len() / 2);
            let mut answers = bisect(left, call);
            answers.extend(bisect(right, call));
            answers
        }
        Err(error) => inputs.iter().map(|_| Err(error.clone())).collect(),
    }
}

/// An answer is as many vectors as inputs, each of the right length and finite.
fn check(
    vectors: Vec<Vec<f32>>,
    inputs: usize,
    dimensions: usize,
) -> Result<Vec<Vec<f32>>, EmbedError> {
    if vectors.len() != inputs {
        return Err(internal(&format!(
            "{} vectors for {inputs} inputs",
            vectors.len()
        )));
    }
    if let Some(wrong) = vectors.iter().find(|v| v.len() != dimensions) {
        return Err(EmbedError {
            model_unusable: true,
            ..internal(&format!(
                "the model answers with {} dimensions, the pipeline has {dimensions}",
                wrong.len()
            ))
        });
    }
    if vectors.iter().flatten().any(|x| !x.is_finite()) {
        return Err(internal(
            "the model answers with a number that is not finite",
        ));
    }
    Ok(vectors)
}

fn internal(message: &str) -> EmbedError {
    EmbedError::new(ErrorClass::Internal, message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_bad_input_harms_only_itself_and_costs_a_logarithm_of_calls(
            inputs in 1usize..300,
            bad in prop::collection::btree_set(0usize..300, 0..4),
        ) {
            let items: Vec<usize> = (0..inputs).collect();
            let mut calls = 0usize;
            let answers = bisect(&items, &mut |some: &[usize]| {
                calls += 1;
                if some.iter().any(|i| bad.contains(i)) {
                    Err(EmbedError { class: ErrorClass::InvalidRequest, ..internal("bad") })
                } else {
                    Ok(some.to_vec())
                }
            });
            prop_assert_eq!(answers.len(), inputs);
            for (i, answer) in answers.iter().enumerate() {
                prop_assert_eq!(answer.is_err(), bad.contains(&i));
                if let Ok(value) = answer { prop_assert_eq!(*value, i); }
            }
            let depth = (inputs as f64).log2().ceil() as usize;
            let here = bad.iter().filter(|i| **i < inputs).count();
            prop_assert!(calls <= 1 + 2 * here * depth, "{} calls for {} bad of {}", calls, here, inputs);
        }
    }

    #[test]
    fn throttling_is_not_bisected() {
        let mut calls = 0;
        let answers = bisect(
            &[1, 2, 3, 4],
            &mut |_: &[i32]| -> Result<Vec<i32>, EmbedError> {
                calls += 1;
                Err(EmbedError {
                    class: ErrorClass::RateLimited,
                    ..internal("slow down")
                })
            },
        );
        assert_eq!(calls, 1);
        assert!(answers.iter().all(Result::is_err));
    }

    #[test]
    fn an_answer_of_the_wrong_shape_is_refused() {
        assert!(check(vec![vec![1.0; 3]], 2, 3).is_err());
        assert!(check(vec![vec![1.0; 2]], 1, 3).unwrap_err().model_unusable);
        assert!(check(vec![vec![f32::NAN; 3]], 1, 3).is_err());
        assert!(check(vec![vec![0.5; 3]], 1, 3).is_ok());
    }
}
