//! Looking for vectors where they were written: the engine asks, and whoever can read targets answers.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::{Held, Home, Known, Once, Table, reuse};
use crate::assembly::{EmbeddedChunk, Outcome, Part};
use crate::pack::Item;
use crate::split::by_text;
use crate::vectors::Vector;
use crate::{FormerChunk, Pipeline};

/// A handle for noting what was written, for any thread.
#[derive(Clone)]
pub struct Written(pub(crate) Arc<Once>);

impl Written {
    /// Notes that a document's chunks are in the target of its pipeline now, under its key. Nothing for other outcomes.
    pub fn note(&self, pipeline: i32, key: &str, outcome: &Outcome) {
        if let Outcome::Embedded { chunks, recipe, .. } = outcome {
            self.0.written(pipeline, *recipe, key, chunks);
        }
    }
}

/// Chunks of a pipeline that wait for a look at what documents have in its target. They are sent when it is dropped.
pub struct LookUp {
    once: Arc<Once>,
    pipeline: i32,
    recipe: u32,
    keys: BTreeSet<String>,
    /// Each with the fingerprint of its text's vector.
    waiting: Vec<(Held, u32)>,
}

impl Once {
    fn written(&self, pipeline: i32, recipe: u32, key: &str, chunks: &[EmbeddedChunk]) {
        let place = |chunk: &EmbeddedChunk| {
            let text = self.key(pipeline, recipe, &chunk.content);
            (text.place(), signs(&chunk.embedding))
        };
        if self.remembers {
            let places: Vec<(u64, u32)> = chunks.iter().map(place).collect();
            self.table().places.put(key, &places);
        }
    }

    /// The next that is to be looked for: what waits longest, and what waits with it for the same pipeline, up to as many chunks
    /// in the target as `most` says for the number of a pipeline, or one document.
    pub(crate) fn next_look_up(self: &Arc<Self>, most: impl Fn(i32) -> usize) -> Option<LookUp> {
        let mut table = self.table();
        let first = &table.held.front()?.1.value.text.key;
        let (pipeline, recipe) = (first.pipeline, first.recipe);
        let room = most(pipeline);
        let mut look_up = LookUp {
            once: Arc::clone(self),
            pipeline,
            recipe,
            keys: BTreeSet::new(),
            waiting: Vec::new(),
        };
        let (mut rest, mut others, mut chunks) = (Rest::default(), Vec::new(), 0);
        while let Some((home, item)) = table.held.pop_front() {
            let key = item.value.text.key;
            if (key.pipeline, key.recipe) != (pipeline, recipe) {
                others.push((home, item));
                continue;
            }
            // More may be known by now.
            let Some((home, item)) = rest.take_known(&mut table, (home, item)) else {
                continue;
            };
            let Some(place) = table.places.get(key.place()) else {
                rest.send(&mut table, (home, item));
                continue;
            };
            if !look_up.keys.contains(&place.key) {
                if chunks + place.chunks > room && !look_up.keys.is_empty() {
                    table.held.push_front((home, item));
                    break;
                }
                chunks += place.chunks;
                look_up.keys.insert(place.key);
            }
            look_up.waiting.push(((home, item), place.vector));
        }
        for held in others.into_iter().rev() {
            table.held.push_front(held);
        }
        drop(table);
        rest.go();
        Some(look_up)
    }
}

impl LookUp {
    /// The number of the pipeline.
    pub fn pipeline(&self) -> i32 {
        self.pipeline
    }

    /// Answers it: `read` is given the keys of documents, and returns their chunks in the target, in any order, if these were made
    /// as `pipeline`, the present definition, says.
    pub fn answer(mut self, pipeline: &Pipeline, read: impl FnOnce(&[&str]) -> Vec<FormerChunk>) {
        if self.keys.is_empty() || self.once.recipe(pipeline) != self.recipe {
            return;
        }
        let keys: Vec<&str> = self.keys.iter().map(String::as_str).collect();
        let found = by_text(read(&keys), pipeline.dimensions);
        let mut known = Vec::new();
        let mut table = self.once.table();
        for ((home, item), told_by) in std::mem::take(&mut self.waiting) {
            let text = item.value.document.text(item.value.chunk);
            // Somebody else may have written a vector for that text.
            let vector = text
                .and_then(|text| found.get(&text))
                .filter(|vector| signs(vector) == told_by);
            match vector {
                Some(vector) => {
                    table.vectors.put(item.value.text.key, Arc::clone(vector));
                    known.push((item, Arc::clone(vector)));
                }
                None => self.waiting.push(((home, item), told_by)),
            }
        }
        drop(table);
        reuse(known);
    }
}

impl Drop for LookUp {
    fn drop(&mut self) {
        let mut rest = Rest::default();
        let mut table = self.once.table();
        for (held, _) in self.waiting.drain(..) {
            if let Some(held) = rest.take_known(&mut table, held) {
                rest.send(&mut table, held);
            }
        }
        drop(table);
        rest.go();
    }
}

/// Chunks that are held no longer, to be told when the table is free.
#[derive(Default)]
struct Rest {
    known: Vec<(Item<Part>, Vector)>,
    sent: Vec<Returned>,
}

/// Chunks that go home together.
type Returned = (Arc<dyn Home>, Vec<Item<Part>>);

impl Rest {
    /// Takes a chunk whose vector is known or under way.
    fn take_known(&mut self, table: &mut Table, (home, item): Held) -> Option<Held> {
        match table.known(item) {
            Known::Vector(item, vector) => self.known.push((item, vector)),
            Known::UnderWay => {}
            Known::No(item) => return Some((home, item)),
        }
        None
    }

    /// Takes a chunk that is to be sent, together with others of its home.
    fn send(&mut self, table: &mut Table, (home, item): Held) {
        let item = table.lead(item, &home);
        match self.sent.last_mut() {
            Some((last, items)) if std::ptr::addr_eq(Arc::as_ptr(last), Arc::as_ptr(&home)) => {
                items.push(item);
            }
            _ => self.sent.push((home, vec![item])),
        }
    }

    fn go(self) {
        reuse(self.known);
        for (home, items) in self.sent {
            home.take_in(items);
        }
    }
}

/// A fingerprint of a vector: of the signs of its numbers, which rounding to half precision leaves as they are.
pub(super) fn signs(vector: &[f32]) -> u32 {
    let mixed = vector.chunks(64).fold(0u64, |mixed, numbers| {
        let signs = numbers.iter().fold(1, |signs: u64, x| {
            signs << 1 | u64::from(x.is_sign_negative())
        });
        (mixed ^ signs)
            .wrapping_mul(0x9e37_79b9_7f4a_7c15)
            .rotate_left(31)
    });
    (mixed ^ mixed >> 32) as u32
}
