//! An exchange: one request of documents' chunks, and what its answer means for them.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use embedder::ErrorClass;
use embedder::remote::Purpose;

use super::call::Refusal;
use super::{Event, Lane, Remotes};
use crate::assembly::{Part, marks};
use crate::pack::Item;
use crate::pipeline::Pipeline;

impl Remotes {
    /// Sends one request and tells the documents.
    pub(super) async fn exchange(
        &self,
        lane: &Lane,
        pipeline: Arc<Pipeline>,
        items: Vec<Item<Part>>,
        texts: Vec<String>,
        tokens: usize,
    ) {
        if items.is_empty() {
            return;
        }
        let marks = marks(items.iter().map(|item| &item.value));
        self.requests.fetch_add(1, Ordering::Relaxed);
        let result = self
            .call(&pipeline, Purpose::Document, texts, tokens, marks)
            .await;
        self.requests.fetch_sub(1, Ordering::Relaxed);
        match result {
            Ok(answer) => {
                let recipe = self.once.recipe(&pipeline);
                for (item, vector) in items.into_iter().zip(answer.vectors) {
                    item.value.embedded(vector, recipe);
                }
            }
            Err(Refusal {
                error,
                wait: Some(wait),
            }) => {
                let mut items = items;
                let mut attempt = 0;
                for item in &mut items {
                    item.refused += 1;
                    attempt = attempt.max(item.refused);
                }
                self.note(Event::Throttled {
                    pipeline: pipeline.id,
                    inputs: items.len(),
                    attempt,
                    error,
                    wait,
                });
                lane.put_back([items].into_iter());
            }
            // The key has been changed since this request was sent.
            Err(Refusal { error, wait: None })
                if error.class == ErrorClass::Auth && lane.has_another_key(&pipeline) =>
            {
                lane.put_back([items].into_iter());
            }
            Err(Refusal { error, wait: None }) if error.blocks_pipeline() => {
                for item in items {
                    item.value.failed(error.clone());
                }
                // What waits would be refused alike.
                lane.fail_all(&error);
            }
            Err(Refusal { error, wait: None }) => {
                if items.len() > 1 && error.blames_the_inputs() {
                    let mut left = items;
                    let right = left.split_off(left.len() / 2);
                    lane.put_back([left, right].into_iter());
                } else {
                    for item in items {
                        item.value.failed(error.clone());
                    }
                }
            }
        }
    }
}
