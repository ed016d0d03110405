//! Each text once: what is being embedded already, or was a moment ago, is not sent again.
//!
//! Of the chunks of a pipeline that have the same text, one leads: it is sent. The others follow: they wait for its answer.
//! When the leader is given up unsent (its document was changed, deleted or failed elsewhere), a follower leads. When it is
//! refused, the followers are sent each by itself, so that none suffers for another document. A document that may be to
//! blame for what befell others neither leads nor follows.
//!
//! A vector that has been written and forgotten since is still in the target: what has its text is held until somebody has
//! looked there ([`LookUp`]), and then goes on as if nothing had been known, unless it was found.

mod look_up;

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use embedder::remote::Endpoint;
use embedder::{EmbedError, ModelName};

use crate::Pipeline;
use crate::assembly::Part;
use crate::pack::Item;
use crate::places::Places;
use crate::vectors::{Vector, Vectors};

pub use look_up::{LookUp, Written};

/// The share of the memory that places take, in quarters. A vector that is remembered spares a look at the target, a place spares
/// a payment, and takes a hundredth of it.
const PLACES_QUARTERS: usize = 3;

/// What stands for a text of a pipeline: by a hash of 128 bits with keys that nobody outside knows, so that no two texts
/// can be made to have the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    pipeline: i32,
    recipe: u32,
    text: [u64; 2],
}

impl Key {
    /// What a text is looked up by in [`Places`]. Two keys may have the same; the texts are compared then.
    fn place(&self) -> u64 {
        let recipe = u64::from(self.pipeline.cast_unsigned()) << 32 | u64::from(self.recipe);
        self.text[0] ^ recipe.wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }
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
    /// Whether it remembers anything that is not under way.
    remembers: bool,
    /// Called when somebody is to look into a target.
    ring: Arc<dyn Fn() + Send + Sync>,
}

struct Table {
    /// Those who wait for the answer to another one's text.
    followers: HashMap<Key, VecDeque<Item<Part>>>,
    vectors: Vectors<Key>,
    /// Where vectors were written.
    places: Places,
    /// Those who wait for a look at the place of their text, with their homes.
    held: VecDeque<Held>,
}

type Held = (Arc<dyn Home>, Item<Part>);

/// What is known of the text of a chunk.
enum Known {
    /// Its vector.
    Vector(Item<Part>, Vector),
    /// It is under way. The chunk follows.
    UnderWay,
    /// Neither.
    No(Item<Part>),
}

impl Table {
    fn known(&mut self, item: Item<Part>) -> Known {
        let key = &item.value.text.key;
        if let Some(vector) = self.vectors.get(key) {
            return Known::Vector(item, vector);
        }
        match self.followers.get_mut(key) {
            Some(followers) if !item.alone => {
                followers.push_back(item);
                Known::UnderWay
            }
            _ => Known::No(item),
        }
    }

    /// Has a chunk that is to be sent from `home` lead, unless it must be alone.
    fn lead(&mut self, mut item: Item<Part>, home: &Arc<dyn Home>) -> Item<Part> {
        if !item.alone {
            let text = &mut item.value.text;
            self.followers.insert(text.key, VecDeque::new());
            text.leads = Some(Arc::clone(home));
        }
        item
    }
}

impl Once {
    /// Remembers vectors and places in so many bytes at most. `ring` is called from any thread when [`Once::next_look_up`] has
    /// something.
    pub(crate) fn new(bytes: usize, ring: Arc<dyn Fn() + Send + Sync>) -> Self {
        let places = bytes / 4 * PLACES_QUARTERS;
        Self {
            hashers: [RandomState::new(), RandomState::new()],
            recipes: Mutex::default(),
            table: Mutex::new(Table {
                followers: HashMap::new(),
                vectors: Vectors::new(bytes - places),
                places: Places::new(places),
                held: VecDeque::new(),
            }),
            remembers: bytes > 0,
            ring,
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
        Text {
            once: Arc::clone(self),
            key: self.key(pipeline, recipe, text),
            leads: None,
        }
    }

    fn key(&self, pipeline: i32, recipe: u32, text: &str) -> Key {
        let [first, second] = &self.hashers;
        Key {
            pipeline,
            recipe,
            text: [first.hash_one(text), second.hash_one(text)],
        }
    }

    /// Answers what is known, has what is under way followed, holds what has a place, and returns the rest, which is to be sent
    /// from `home`.
    pub(crate) fn sift(
        &self,
        home: &Arc<dyn Home>,
        items: impl Iterator<Item = Item<Part>>,
    ) -> Vec<Item<Part>> {
        let mut known = Vec::new();
        let mut rest = Vec::new();
        let mut holds = false;
        let mut table = self.table();
        for item in items {
            match table.known(item) {
                Known::Vector(item, vector) => known.push((item, vector)),
                Known::UnderWay => {}
                Known::No(item)
                    if !item.alone && table.places.contains(item.value.text.key.place()) =>
                {
                    table.held.push_back((Arc::clone(home), item));
                    holds = true;
                }
                Known::No(item) => rest.push(table.lead(item, home)),
            }
        }
        drop(table);
        if holds {
            (self.ring)();
        }
        reuse(known);
        rest
    }

    /// Takes out those who follow or are held and that `leaves` says, which is given the number of the pipeline, too.
    pub(crate) fn extract(&self, mut leaves: impl FnMut(i32, &Part) -> bool) -> Vec<Item<Part>> {
        let mut gone = Vec::new();
        let mut table = self.table();
        for (home, item) in std::mem::take(&mut table.held) {
            if leaves(item.value.text.key.pipeline, &item.value) {
                gone.push(item);
            } else {
                table.held.push_back((home, item));
            }
        }
        for (key, followers) in &mut table.followers {
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

/// Gives chunks the vectors that are known of their texts.
fn reuse(known: Vec<(Item<Part>, Vector)>) {
    for (item, vector) in known {
        item.value.document.reused(item.value.chunk, vector);
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
    fn answered(&mut self, vector: &Vector, recipe: u32) -> VecDeque<Item<Part>> {
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
        let vector: Vector = Arc::new(vector);
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
