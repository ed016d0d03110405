//! What arrived, and what became of it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Map, Value};

use crate::server::Shared;
use crate::vectors::hash_of;

/// A request as it is remembered.
#[derive(Debug, Clone)]
pub struct Record {
    /// Counted from 0, at the start and at each [`reset`](crate::FakeApi::reset).
    pub number: u64,
    /// When all of it was there. Where a later one was judged by the budgets before it, that one's arrival.
    pub arrived: Instant,
    /// The method.
    pub method: String,
    /// The path, with the query.
    pub path: String,
    /// The key that it showed.
    pub key: Option<String>,
    /// The headers, names in lower case.
    pub headers: Vec<(String, String)>,
    /// How many texts it held.
    pub inputs: usize,
    /// How many tokens they have.
    pub tokens: u64,
    /// The body without its texts.
    pub fields: Map<String, Value>,
    /// The texts, if [`Behaviour::keep_texts`](crate::Behaviour::keep_texts).
    pub texts: Vec<String>,
    /// What the API thought of it.
    pub verdict: Verdict,
    /// The status that was answered, if one was.
    pub status: Option<u16>,
    /// Whether the last byte of the answer left for the connection.
    pub sent_fully: bool,
    /// When the answer, or the client's patience, ended. None: it still goes on.
    pub ended: Option<Instant>,
}

impl Record {
    /// A header by its name in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        header(&self.headers, name)
    }
}

pub(crate) fn header<'a>(headers: &'a [(String, String)], name: &str) -> Option<&'a str> {
    let mut found = headers.iter().filter(|(key, _)| key == name);
    found.next().map(|(_, value)| value.as_str())
}

/// What the API thought of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// It is still being looked at (or the looking panicked).
    Open,
    /// In order, and within the budgets. A fault may have befallen it then.
    Accepted,
    /// Over a budget.
    RateLimited,
    /// Over the quota.
    QuotaExhausted,
    /// Not in order: path, key, JSON, model or sizes.
    Rejected,
}

/// The most within any window of some length. Each figure has a window of its own.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Busiest {
    /// Requests.
    pub requests: u64,
    /// Tokens.
    pub tokens: u64,
}

/// Which part of a budget was used: 1.0 is all of it.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Share {
    /// Of the requests.
    pub requests: f64,
    /// Of the tokens.
    pub tokens: f64,
}

/// What happened in a second.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Second {
    /// Requests that were accepted.
    pub requests: u64,
    /// Tokens of these.
    pub tokens: u64,
    /// Requests over a budget or the quota.
    pub refused: u64,
}

/// When, and how many tokens.
pub(crate) type Event = (Instant, u64);

/// The most in any window `[t, t + window)`. A window that holds the most can be moved to begin with an event.
pub(crate) fn busiest(mut events: Vec<Event>, window: Duration) -> Busiest {
    events.sort_unstable();
    let mut most = Busiest::default();
    let (mut first, mut tokens) = (0, 0);
    for (last, (at, added)) in events.iter().enumerate() {
        tokens += added;
        while events[first].0 + window <= *at {
            tokens -= events[first].1;
            first += 1;
        }
        most.requests = most.requests.max((last + 1 - first) as u64);
        most.tokens = most.tokens.max(tokens);
    }
    most
}

/// The share of `rpm` and `tpm` that was used from so long after the first event to so long before the last one.
pub(crate) fn share_used(
    events: &[Event],
    after_first: Duration,
    before_last: Duration,
    rpm: u64,
    tpm: u64,
) -> Share {
    let instants = || events.iter().map(|(at, _)| *at);
    let Some((start, end)) = instants().min().zip(instants().max()) else {
        return Share::default();
    };
    let start = start + after_first;
    let Some(length) = (end - before_last).checked_duration_since(start) else {
        return Share::default();
    };
    if length.is_zero() {
        return Share::default();
    }
    let within = events
        .iter()
        .filter(|(at, _)| (start..start + length).contains(at));
    let (requests, tokens) = within.fold((0, 0), |(requests, sum), (_, tokens)| {
        (requests + 1, sum + tokens)
    });
    let minutes = length.as_secs_f64() / 60.0;
    Share {
        requests: f64::from(requests) / (rpm as f64 * minutes),
        tokens: tokens as f64 / (tpm as f64 * minutes),
    }
}

/// What the API remembers.
#[derive(Debug, Default)]
pub(crate) struct Log {
    /// Raised by [`reset`](Self::reset), so that what ends later is not taken for another.
    generation: u64,
    pub records: Vec<Record>,
    pub in_flight: usize,
    pub max_in_flight: usize,
    pub connections: u64,
    /// How often each text was accepted, by its hash.
    sent: HashMap<u64, u64>,
}

/// Where in the log a request is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Slot {
    generation: u64,
    index: usize,
}

impl Log {
    /// Takes in a request.
    pub(crate) fn enter(&mut self, make: impl FnOnce(u64) -> Record) -> Slot {
        self.in_flight += 1;
        self.max_in_flight = self.max_in_flight.max(self.in_flight);
        let index = self.records.len();
        self.records.push(make(index as u64));
        Slot {
            generation: self.generation,
            index,
        }
    }

    /// Adds to what is known of a request. Nothing, if it has been forgotten.
    pub(crate) fn update(&mut self, slot: Slot, change: impl FnOnce(&mut Record)) {
        if slot.generation == self.generation {
            change(&mut self.records[slot.index]);
        }
    }

    /// Counts the texts of an accepted request.
    pub(crate) fn count_texts(&mut self, slot: Slot, hashes: &[u64]) {
        if slot.generation == self.generation {
            for hash in hashes {
                *self.sent.entry(*hash).or_default() += 1;
            }
        }
    }

    pub(crate) fn times_sent(&self, text: &str) -> u64 {
        self.sent.get(&hash_of(text)).copied().unwrap_or(0)
    }

    pub(crate) fn distinct_inputs(&self) -> u64 {
        self.sent.len() as u64
    }

    pub(crate) fn repeated_inputs(&self) -> u64 {
        self.sent.values().map(|times| times - 1).sum()
    }

    pub(crate) fn with(&self, verdict: Verdict) -> impl Iterator<Item = &Record> {
        let records = self.records.iter();
        records.filter(move |record| record.verdict == verdict)
    }

    pub(crate) fn accepted_events(&self) -> Vec<Event> {
        self.with(Verdict::Accepted)
            .map(|record| (record.arrived, record.tokens))
            .collect()
    }

    pub(crate) fn per_second(&self) -> Vec<Second> {
        let mut seconds: Vec<Second> = Vec::new();
        let Some(start) = self.records.iter().map(|record| record.arrived).min() else {
            return seconds;
        };
        for record in &self.records {
            let number = record.arrived.duration_since(start).as_secs() as usize;
            if seconds.len() <= number {
                seconds.resize(number + 1, Second::default());
            }
            let second = &mut seconds[number];
            match record.verdict {
                Verdict::Accepted => {
                    second.requests += 1;
                    second.tokens += record.tokens;
                }
                Verdict::RateLimited | Verdict::QuotaExhausted => second.refused += 1,
                Verdict::Open | Verdict::Rejected => {}
            }
        }
        seconds
    }

    /// Forgets all but what is in flight now.
    pub(crate) fn reset(&mut self) {
        *self = Self {
            generation: self.generation + 1,
            in_flight: self.in_flight,
            max_in_flight: self.in_flight,
            ..Self::default()
        };
    }
}

/// A request in flight. Its end, however it comes, is written down when this is dropped.
pub(crate) struct Ticket {
    pub shared: Arc<Shared>,
    pub slot: Slot,
    pub sent_fully: bool,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut log = self.shared.log();
        log.in_flight -= 1;
        log.update(self.slot, |record| {
            record.sent_fully = self.sent_fully;
            record.ended = Some(Instant::now());
        });
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn events(spec: &[(u64, u64)]) -> Vec<Event> {
        let start = Instant::now();
        spec.iter()
            .map(|(at, tokens)| (start + Duration::from_millis(*at), *tokens))
            .collect()
    }

    #[test]
    fn a_window_ends_before_its_length_is_over() {
        let minute = Duration::from_secs(60);
        let just_within = busiest(events(&[(0, 5), (59_999, 6)]), minute);
        assert_eq!((just_within.requests, just_within.tokens), (2, 11));
        let just_out = busiest(events(&[(0, 5), (60_000, 6)]), minute);
        assert_eq!((just_out.requests, just_out.tokens), (1, 6));
    }

    #[test]
    fn requests_and_tokens_have_their_own_busiest_window() {
        let spec = [(0, 1), (1, 1), (2, 1), (500, 100)];
        let most = busiest(events(&spec), Duration::from_millis(100));
        assert_eq!((most.requests, most.tokens), (3, 100));
    }

    proptest! {
        #[test]
        fn the_busiest_window_agrees_with_a_naive_count(
            spec in prop::collection::vec((0_u64..5_000, 0_u64..100), 0..60),
            window in 1_u64..2_000,
        ) {
            let in_window = |from: u64| {
                let inside = spec.iter().filter(move |(at, _)| (from..from + window).contains(at));
                (inside.clone().count() as u64, inside.map(|(_, tokens)| tokens).sum::<u64>())
            };
            let naive = Busiest {
                requests: (0..5_000).map(|from| in_window(from).0).max().unwrap_or(0),
                tokens: (0..5_000).map(|from| in_window(from).1).max().unwrap_or(0),
            };
            prop_assert_eq!(busiest(events(&spec), Duration::from_millis(window)), naive);
        }
    }

    #[test]
    fn the_share_used_leaves_out_both_ends() {
        // One request of 10 tokens each second for 100 s, and a crowd at both ends.
        let mut spec: Vec<(u64, u64)> = (0..=100).map(|second| (second * 1000, 10)).collect();
        spec.extend([(0, 10_000); 50]);
        spec.extend([(99_500, 10_000); 50]);
        let secs = Duration::from_secs;
        let share = share_used(&events(&spec), secs(10), secs(10), 120, 600);
        assert_eq!(
            share,
            Share {
                requests: 0.5,
                tokens: 1.0
            }
        );
        assert_eq!(
            share_used(&events(&spec), secs(60), secs(60), 120, 600),
            Share::default()
        );
        assert_eq!(share_used(&[], secs(1), secs(1), 1, 1), Share::default());
    }
}
