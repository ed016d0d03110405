use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, channel};

use embedder::ErrorClass;
use proptest::prelude::*;

mod looking;

use super::*;
use crate::FormerChunk;
use crate::assembly::{Assembly, EmbeddedChunk, Outcome, Results};
use crate::mark::Mark;
use crate::usage::{Reservation, Usage};

/// Bytes enough for all vectors of these tests.
const ALL: usize = 4 * 1024 * 1024;
/// Bytes enough for all places of these tests, and for one vector.
const FEW: usize = 24 * 1024;
/// Numbers in a vector.
const DIMENSIONS: usize = 1024;
/// The pipeline of all documents.
const PIPELINE: i32 = 7;

/// That pipeline, as it is defined the first time, the second, and so on.
fn pipeline(definition: u32) -> Pipeline {
    Pipeline {
        id: PIPELINE,
        generation: definition as i32,
        model: format!("local/model-{definition}").parse().expect("a name"),
        dimensions: DIMENSIONS,
        split: chunker::SplitOptions {
            splitter: chunker::Splitter::Text,
            chunk_tokens: 100,
            chunk_overlap: 0,
        },
        batch_size: None,
        remote: None,
    }
}

/// What waits to be sent.
#[derive(Default)]
struct Waiting(Mutex<VecDeque<Item<Part>>>);

impl Waiting {
    fn items(&self) -> MutexGuard<'_, VecDeque<Item<Part>>> {
        self.0.lock().expect("no panic")
    }
}

impl Home for Waiting {
    fn take_in(&self, items: Vec<Item<Part>>) {
        self.items().extend(items);
    }
}

/// What happens to the documents of a pipeline, step by step.
#[derive(Debug, Clone)]
enum Step {
    /// A document of these texts comes, perhaps one that must be alone.
    Submit(Vec<u8>, bool),
    /// So many chunks are sent as one request.
    Send(usize),
    /// One of the requests is answered.
    Answer(usize),
    /// One of the requests fails.
    Fail(usize),
    /// One of the requests is put back, to be sent again.
    PutBack(usize),
    /// A document is taken back.
    Withdraw(usize),
    /// The pipeline is defined anew.
    Redefine,
    /// What has ended is written.
    Write,
    /// The target is looked into, as it is or as if it could not be read.
    LookUp(bool),
    /// A document is deleted from the target.
    Delete(usize),
    /// Somebody puts vectors of his own into the target.
    Meddle(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let texts = prop::collection::vec(0u8..6, 1..5);
    prop_oneof![
        4 => (texts, prop::bool::weighted(0.1)).prop_map(|(texts, alone)| Step::Submit(texts, alone)),
        4 => (1usize..6).prop_map(Step::Send),
        3 => (0usize..9).prop_map(Step::Answer),
        1 => (0usize..9).prop_map(Step::Fail),
        1 => (0usize..9).prop_map(Step::PutBack),
        1 => (0usize..30).prop_map(Step::Withdraw),
        1 => Just(Step::Redefine),
        3 => Just(Step::Write),
        3 => prop::bool::weighted(0.8).prop_map(Step::LookUp),
        1 => (0usize..30).prop_map(Step::Delete),
        1 => (0usize..30).prop_map(Step::Meddle),
    ]
}

/// The vector that a text has by a recipe.
fn vector_of(text: &str, recipe: u32) -> Vec<f32> {
    let mut vector = vec![0.0; DIMENSIONS];
    vector[0] = text.parse().expect("a number");
    vector[1] = recipe as f32;
    vector
}

/// A vector of that text that nobody here made.
fn foreign_vector() -> Vec<f32> {
    vec![-1.0; DIMENSIONS]
}

/// An engine reduced to what is sent once, and what is known of its documents.
struct World {
    once: Arc<Once>,
    waiting: Arc<Waiting>,
    in_flight: Vec<Vec<Item<Part>>>,
    results: Results,
    outcomes: Receiver<(Outcome, Reservation)>,
    recipe: u32,
    /// Each document's texts, and the recipe when it came.
    documents: Vec<(Vec<String>, u32)>,
    /// Documents that may fail: they were in a failed request, or taken back.
    hit: BTreeSet<u64>,
    sent: HashMap<String, usize>,
    ended: BTreeMap<u64, Outcome>,
    /// The chunks of each document that is written, by its key.
    target: BTreeMap<String, Vec<FormerChunk>>,
    /// How often somebody was asked to look into it, and how often documents were read there.
    asked: Arc<AtomicUsize>,
    read: usize,
}

impl World {
    fn new(bytes: usize) -> Self {
        let (sender, outcomes) = channel();
        let asked = Arc::new(AtomicUsize::new(0));
        let rung = Arc::clone(&asked);
        let ring = move || {
            rung.fetch_add(1, Ordering::Relaxed);
        };
        let once = Arc::new(Once::new(bytes, Arc::new(ring)));
        Self {
            recipe: once.recipe(&pipeline(0)),
            once,
            waiting: Arc::default(),
            in_flight: Vec::new(),
            results: Results::new(sender, Arc::new(|| ())),
            outcomes,
            documents: Vec::new(),
            hit: BTreeSet::new(),
            sent: HashMap::new(),
            ended: BTreeMap::new(),
            target: BTreeMap::new(),
            asked,
            read: 0,
        }
    }

    fn submit(&mut self, texts: &[u8], alone: bool) {
        let texts: Vec<String> = texts.iter().map(u8::to_string).collect();
        let chunks = texts.iter().map(|text| EmbeddedChunk {
            content: text.clone(),
            tokens: 1,
            embedding: Arc::default(),
            reused: false,
        });
        let usage = Arc::new(Usage::default());
        let document = Arc::new(Assembly::new(
            (self.documents.len() as u64, Mark::unseen(), self.recipe),
            Reservation::new([Arc::clone(&usage), usage], 1, 1),
            chunks.collect(),
            self.results.clone(),
        ));
        let items = texts.iter().enumerate().map(|(chunk, text)| Item {
            value: Part {
                document: Arc::clone(&document),
                chunk,
                text: self.once.text(PIPELINE, self.recipe, text),
            },
            tokens: 1,
            alone,
            refused: 0,
        });
        let home: Arc<dyn Home> = Arc::clone(&self.waiting) as Arc<dyn Home>;
        let rest = self.once.sift(&home, items);
        home.take_in(rest);
        self.documents.push((texts, self.recipe));
    }

    fn send(&mut self, most: usize) {
        let mut request = Vec::new();
        loop {
            let next = self.waiting.items().pop_front();
            let Some(item) = next else { break };
            // Dropped when its document has ended, as the engine does it.
            let Some(text) = item.value.document.text(item.value.chunk) else {
                continue;
            };
            *self.sent.entry(text).or_default() += 1;
            request.push(item);
            if request.len() == most {
                break;
            }
        }
        if !request.is_empty() {
            self.in_flight.push(request);
        }
    }

    fn request(&mut self, number: usize) -> Vec<Item<Part>> {
        if self.in_flight.is_empty() {
            return Vec::new();
        }
        self.in_flight.remove(number % self.in_flight.len())
    }

    fn answer(&mut self, number: usize) {
        for item in self.request(number) {
            // What was answered for a document that has ended meanwhile serves others.
            let (texts, _) = &self.documents[item.value.document.ticket() as usize];
            let vector = vector_of(&texts[item.value.chunk], self.recipe);
            item.value.embedded(vector, self.recipe);
        }
    }

    fn fail(&mut self, number: usize) {
        for item in self.request(number) {
            self.hit.insert(item.value.document.ticket());
            item.value.failed(error());
        }
    }

    fn withdraw(&mut self, ticket: u64) {
        let leaves = |part: &Part| part.document.ticket() == ticket;
        let following = self.once.extract(|_, part| leaves(part));
        let (gone, staying) = std::mem::take(&mut *self.waiting.items())
            .into_iter()
            .partition(|item| leaves(&item.value));
        *self.waiting.items() = staying;
        let gone: VecDeque<Item<Part>> = gone;
        for item in following.into_iter().chain(gone) {
            self.hit.insert(ticket);
            item.value.document.failed(error());
        }
    }

    fn take(&mut self, step: &Step) {
        match step {
            Step::Submit(texts, alone) => self.submit(texts, *alone),
            Step::Send(most) => self.send(*most),
            Step::Answer(number) => self.answer(*number),
            Step::Fail(number) => self.fail(*number),
            Step::PutBack(number) => {
                let request = self.request(*number);
                let mut waiting = self.waiting.items();
                for item in request.into_iter().rev() {
                    waiting.push_front(item);
                }
            }
            Step::Withdraw(ticket) => self.withdraw(*ticket as u64),
            Step::Redefine => {
                // A recipe counts as another one when it is first seen.
                self.recipe = self.once.recipe(&pipeline(self.recipe + 1));
                // As a rebuild puts other vectors of the same texts into the target.
                for chunk in self.target.values_mut().flatten() {
                    chunk.embedding = vector_of(&chunk.content, self.recipe);
                }
            }
            Step::Write => self.write(),
            Step::LookUp(readable) => drop(self.look_up(*readable)),
            Step::Delete(number) => drop(self.target.remove(&key(*number as u64))),
            Step::Meddle(number) => {
                for chunk in self
                    .target
                    .get_mut(&key(*number as u64))
                    .into_iter()
                    .flatten()
                {
                    chunk.embedding = foreign_vector();
                }
            }
        }
    }

    /// Writes what has ended into the target, unless the definition is another one by now: that has voided it.
    fn write(&mut self) {
        for (mut outcome, _room) in self.outcomes.try_iter() {
            let ticket = outcome.ticket();
            if let Outcome::Embedded { chunks, recipe, .. } = &outcome
                && *recipe == self.recipe
            {
                let chunks = chunks.iter().map(|chunk| FormerChunk {
                    content: chunk.content.clone(),
                    embedding: chunk.embedding.to_vec(),
                });
                self.target.insert(key(ticket), chunks.collect());
                Written(Arc::clone(&self.once)).note(PIPELINE, &key(ticket), &outcome);
            }
            if let Outcome::Embedded { chunks, .. } = &mut outcome {
                for chunk in chunks {
                    // What is written is held no longer.
                    chunk.embedding = Arc::new(chunk.embedding.to_vec());
                }
            }
            let before = self.ended.insert(ticket, outcome);
            assert!(before.is_none(), "ended twice");
        }
    }

    /// Whether somebody waited for it.
    fn look_up(&mut self, readable: bool) -> bool {
        let Some(wanted) = self.once.next_look_up(|_| 5) else {
            return false;
        };
        assert!(self.asked.load(Ordering::Relaxed) > 0, "nobody had rung");
        if readable {
            wanted.answer(&pipeline(self.recipe), |keys| {
                self.read += keys.len();
                let found = keys.iter().filter_map(|key| self.target.get(*key));
                found.flatten().cloned().collect()
            });
        }
        true
    }

    /// Sends, answers, looks for and writes what is left; how the documents ended.
    fn finish(&mut self) -> BTreeMap<u64, Outcome> {
        loop {
            while self.look_up(true) {}
            if self.waiting.items().is_empty() && self.in_flight.is_empty() {
                break;
            }
            self.send(3);
            self.answer(0);
        }
        let table = self.once.table();
        assert!(
            table.followers.is_empty() && table.held.is_empty(),
            "nobody is left"
        );
        drop(table);
        self.write();
        std::mem::take(&mut self.ended)
    }

    fn sent(&self) -> usize {
        self.sent.values().sum()
    }
}

/// The key of a document.
fn key(ticket: u64) -> String {
    format!("document {ticket}")
}

fn error() -> EmbedError {
    EmbedError::new(ErrorClass::Unavailable, "out of order")
}

proptest! {
    #[test]
    fn whatever_happens_each_document_gets_the_vectors_of_its_own_texts_or_its_own_error(
        steps in prop::collection::vec(step(), 0..120),
        bytes in prop_oneof![Just(0), Just(ALL), Just(FEW), 0usize..20_000],
    ) {
        let mut world = World::new(bytes);
        for step in &steps {
            world.take(step);
        }
        let ended = world.finish();
        prop_assert_eq!(ended.len(), world.documents.len());
        for (ticket, outcome) in ended {
            let (texts, recipe) = &world.documents[ticket as usize];
            match outcome {
                Outcome::Embedded { chunks, .. } => {
                    prop_assert_eq!(chunks.len(), texts.len());
                    for (chunk, text) in chunks.iter().zip(texts) {
                        prop_assert_eq!(&chunk.content, text);
                        prop_assert_eq!(chunk.embedding[0], vector_of(text, 0)[0]);
                        // No vector by a definition from before it came.
                        prop_assert!(chunk.embedding[1] >= *recipe as f32);
                    }
                }
                _ => prop_assert!(world.hit.contains(&ticket), "{ticket} failed for another document"),
            }
        }
    }

    #[test]
    fn when_nothing_fails_each_text_is_sent_once_and_what_was_not_sent_is_told(
        steps in prop::collection::vec(step(), 0..120),
        bytes in prop_oneof![Just(ALL), Just(FEW)],
    ) {
        let mut world = World::new(bytes);
        for step in &steps {
            match step {
                Step::Submit(texts, _) => world.submit(texts, false),
                Step::Send(_) | Step::Answer(_) | Step::PutBack(_) | Step::Write => world.take(step),
                Step::LookUp(_) => drop(world.look_up(true)),
                Step::Fail(_) | Step::Withdraw(_) | Step::Redefine | Step::Delete(_) | Step::Meddle(_) => {}
            }
        }
        let ended = world.finish();
        let texts: Vec<&String> = world.documents.iter().flat_map(|(texts, _)| texts).collect();
        let distinct: BTreeSet<&String> = texts.iter().copied().collect();
        let chunks = ended.values().flat_map(|outcome| match outcome {
            Outcome::Embedded { chunks, .. } => chunks.as_slice(),
            _ => &[],
        });
        let reused = chunks.filter(|chunk| chunk.reused).count();
        prop_assert_eq!(reused, texts.len() - distinct.len());
        // A request that is put back counts again.
        let again = steps.iter().any(|step| matches!(step, Step::PutBack(_)));
        prop_assert!(again || world.sent() == distinct.len(), "{} sent of {}", world.sent(), distinct.len());
    }
}

#[test]
fn when_the_first_of_a_hundred_is_taken_back_one_of_the_others_is_sent() {
    let mut world = World::new(ALL);
    for _ in 0..100 {
        world.submit(&[1], false);
    }
    world.withdraw(0);
    let ended = world.finish();
    assert_eq!(world.sent(), 1);
    let embedded = ended
        .values()
        .filter(|outcome| matches!(outcome, Outcome::Embedded { .. }));
    assert_eq!(embedded.count(), 99);
}

#[test]
fn when_the_first_of_a_hundred_fails_the_others_are_sent_together_and_not_one_after_the_other() {
    let mut world = World::new(ALL);
    for _ in 0..100 {
        world.submit(&[1], false);
    }
    world.send(10);
    assert_eq!(world.sent(), 1);
    world.fail(0);
    assert_eq!(world.waiting.items().len(), 99);
}

#[test]
fn a_document_that_may_be_to_blame_leads_nobody_and_waits_for_nobody() {
    let mut world = World::new(ALL);
    world.submit(&[1], true);
    world.submit(&[1], false);
    world.submit(&[1], true);
    world.submit(&[1], false);
    assert_eq!(world.waiting.items().len(), 3);
    world.finish();
    // Its vector, once it is there, is as good as any.
    world.submit(&[1], true);
    assert!(world.waiting.items().is_empty());
}
