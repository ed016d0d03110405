//! Each text once: what is being embedded already, or was a moment ago, is not sent again.
//!
//! Of the chunks of a pipeline that have the same text, one leads: it is sent. The others follow: they wait for its answer.
//! When the leader is given up unsent (its document was changed, deleted or failed elsewhere), a follower leads. When it is
//! refused, the followers are sent each by itself, so that none suffers for another document. A document that may be to
//! blame for what befell others neither leads nor follows.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use embedder::remote::Endpoint;
use embedder::{EmbedError, ModelName};

use crate::Pipeline;
use crate::assembly::Part;
use crate::pack::Item;
use crate::vectors::Vectors;

/// What stands for a text of a pipeline: by a hash of 128 bits with keys that nobody outside knows, so that no two texts
/// can be made to have the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    pipeline: i32,
    recipe: u32,
    text: [u64; 2],
}

/// What a vector depends on besides the text.
#[derive(PartialEq)]
struct Recipe {
    model: ModelName,
    dimensions: usize,
    endpoint: Option<Arc<Endpoint>>,
}

/// Where parts wait to be sent.
pub(crate) trait Home: Send + Sync {
    /// Takes parts that must be sent after all; ends their documents when it sends nothing any more.
    fn take_in(&self, items: Vec<Item<Part>>);
}

/// The texts of an engine.
pub(crate) struct Once {
    hashers: [RandomState; 2],
    /// The last recipe of each pipeline, and its number.
    recipes: Mutex<HashMap<i32, (u32, Recipe)>>,
    table: Mutex<Table>,
}

struct Table {
    /// Those who wait for the answer to another one's text.
    followers: HashMap<Key, VecDeque<Item<Part>>>,
    vectors: Vectors<Key>,
}

impl Once {
    /// Remembers vectors in so many bytes at most.
    pub(crate) fn new(bytes: usize) -> Self {
        Self {
            hashers: [RandomState::new(), RandomState::new()],
            recipes: Mutex::default(),
            table: Mutex::new(Table {
                followers: HashMap::new(),
                vectors: Vectors::new(bytes),
            }),
        }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the texts of a pipeline, as it is defined here, are known by.
    pub(crate) fn recipe(&self, pipeline: &Pipeline) -> u32 {
        let mut recipes = self.recipes.lock().unwrap_or_else(PoisonError::into_inner);
        let endpoint = pipeline.remote.as_ref().map(|remote| &remote.endpoint);
        let mut number = 0;
        if let Some((known, recipe)) = recipes.get(&pipeline.id) {
            let same_place = match (&recipe.endpoint, endpoint) {
                (Some(known), Some(now)) => Arc::ptr_eq(known, now) || known == now,
                (None, None) => true,
                _ => false,
            };
            if same_place
                && recipe.model == pipeline.model
                && recipe.dimensions == pipeline.dimensions
            {
                return *known;
            }
            number = known + 1;
        }
        let recipe = Recipe {
            model: pipeline.model.clone(),
            dimensions: pipeline.dimensions,
            endpoint: endpoint.map(Arc::clone),
        };
        recipes.insert(pipeline.id, (number, recipe));
        number
    }

    /// A text to be embedded by a recipe of a pipeline.
    pub(crate) fn text(self: &Arc<Self>, pipeline: i32, recipe: u32, text: &str) -> Text {
        let [first, second] = &self.hashers;
        Text {
            once: Arc::clone(self),
            key: Key {
                pipeline,
                recipe,
                text: [first.hash_one(text), second.hash_one(text)],
            },
            leads: None,
        }
    }

    /// Answers what is known, has what is under way followed, and returns the rest, which is to be sent from `home`.
    pub(crate) fn sift(
        &self,
        home: &Arc<dyn Home>,
        items: impl Iterator<Item = Item<Part>>,
    ) -> Vec<Item<Part>> {
        let mut known = Vec::new();
        let mut rest = Vec::new();
        let mut table = self.table();
        for mut item in items {
            let key = item.value.text.key;
            if let Some(vector) = table.vectors.get(&key) {
                known.push((item, vector));
            } else if item.alone {
                rest.push(item);
            } else if let Some(followers) = table.followers.get_mut(&key) {
                followers.push_back(item);
            } else {
                table.followers.insert(key, VecDeque::new());
                item.value.text.leads = Some(Arc::clone(home));
                rest.push(item);
            }
        }
        drop(table);
        for (item, vector) in known {
            item.value.document.reused(item.value.chunk, vector);
        }
        rest
    }

    /// Takes out those who follow and that `leaves` says, which is given the number of the pipeline, too.
    pub(crate) fn extract(&self, mut leaves: impl FnMut(i32, &Part) -> bool) -> Vec<Item<Part>> {
        let mut gone = Vec::new();
        for (key, followers) in &mut self.table().followers {
            for item in std::mem::take(followers) {
                if leaves(key.pipeline, &item.value) {
                    gone.push(item);
                } else {
                    followers.push_back(item);
                }
            }
        }
        gone
    }
}

/// The text of a chunk that is to be sent. One that leads and is dropped has another one lead.
pub(crate) struct Text {
    once: Arc<Once>,
    key: Key,
    /// Where those who follow it go when it is not answered.
    leads: Option<Arc<dyn Home>>,
}

impl Text {
    /// Takes the vector, made by a recipe of its pipeline that may be newer; returns those who waited for it.
    fn answered(&mut self, vector: &Arc<[f32]>, recipe: u32) -> VecDeque<Item<Part>> {
        let mut table = self.once.table();
        let made = Key { recipe, ..self.key };
        table.vectors.put(made, Arc::clone(vector));
        match self.leads.take() {
            Some(_) => table.followers.remove(&self.key).unwrap_or_default(),
            None => VecDeque::new(),
        }
    }

    /// Has all who follow be sent, each by itself.
    fn refused(&mut self) {
        let Some(home) = self.leads.take() else {
            return;
        };
        let followers = self.once.table().followers.remove(&self.key);
        let followers: Vec<Item<Part>> = followers.into_iter().flatten().collect();
        if !followers.is_empty() {
            home.take_in(followers);
        }
    }
}

impl Drop for Text {
    fn drop(&mut self) {
        let Some(home) = self.leads.take() else {
            return;
        };
        let mut ended = Vec::new();
        let next = {
            let mut table = self.once.table();
            let followers = table.followers.get_mut(&self.key);
            let next = followers.and_then(|followers| {
                loop {
                    let item = followers.pop_front()?;
                    if !item.value.document.has_ended() {
                        return Some(item);
                    }
                    ended.push(item);
                }
            });
            if next.is_none() {
                table.followers.remove(&self.key);
            }
            next
        };
        if let Some(mut item) = next {
            item.value.text.leads = Some(Arc::clone(&home));
            home.take_in(vec![item]);
        }
    }
}

impl Part {
    /// Takes the vector of its text, made with the present `recipe` of its pipeline, for all that wait for it.
    pub(crate) fn embedded(mut self, vector: Vec<f32>, recipe: u32) {
        let vector: Arc<[f32]> = vector.into();
        let followers = self.text.answered(&vector, recipe);
        for Item { value, .. } in followers {
            value.document.reused(value.chunk, Arc::clone(&vector));
        }
        self.document.embedded(self.chunk, vector);
    }

    /// Ends its document with an error that its text, or the call with it, met.
    pub(crate) fn failed(mut self, error: EmbedError) {
        self.document.failed(error);
        self.text.refused();
    }
}

#[cfg(test)]
mod tests;
