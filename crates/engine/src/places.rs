//! Places: which document has the vector of a text in its pipeline's target, for as many texts as fit into so many bytes, the
//! ones noted first forgotten first.
//!
//! A text is an entry of 20 bytes in a queue, found by its hash through chains that lead from newer entries to older ones, so that
//! an entry that has left the queue ends its chain. The entries of a document follow one another and share its key, which
//! stands in a second queue.

use std::collections::VecDeque;

/// Bytes of all places at most, so that numbers of 32 bits serve.
const MOST: usize = 1 << 30;
/// Bytes of a document's record besides its key: the key's length and the number of its chunks.
const RECORD: usize = 4;
/// The end of a chain. It is a number like any other once so many places have been noted; a chain then goes on in vain.
const NONE: u32 = u32::MAX;
/// Bytes that a text takes: its entry and the beginning of a chain.
const TEXT: usize = size_of::<Entry>() + size_of::<u32>();

/// Where a text is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    /// The key of the document that has it.
    pub(crate) key: String,
    /// How many chunks that document has; 65,535 when it has more.
    pub(crate) chunks: usize,
    /// Fingerprint of its vector.
    pub(crate) vector: u32,
}

struct Entry {
    hash: [u32; 2],
    vector: u32,
    /// Where the record of its document begins.
    document: u32,
    /// The number of the next older entry of its chain.
    next: u32,
}

/// Places by the hashes of their texts.
pub(crate) struct Places {
    most: usize,
    entries: VecDeque<Entry>,
    /// The number of the oldest entry. Numbers count up and begin again.
    oldest: u32,
    /// The newest entry of each chain.
    heads: Vec<u32>,
    records: VecDeque<u8>,
    /// Where the oldest record begins, likewise.
    first: u32,
}

impl Places {
    /// None yet, and `most` bytes of them at most.
    pub(crate) fn new(most: usize) -> Self {
        Self {
            most: most.min(MOST),
            entries: VecDeque::new(),
            oldest: 0,
            heads: Vec::new(),
            records: VecDeque::new(),
            first: 0,
        }
    }

    /// Bytes held, with what is kept free: an eighth.
    fn held(&self) -> usize {
        let held = self.entries.len() * TEXT + self.records.len();
        held + held / 8
    }

    /// Notes the texts of a document: their hashes, and the fingerprints of their vectors.
    pub(crate) fn put(&mut self, key: &str, texts: &[(u64, u32)]) {
        let Ok(length) = u16::try_from(key.len()) else {
            return;
        };
        let record = RECORD + key.len();
        if texts.is_empty() || (record + TEXT) * 2 > self.most {
            return;
        }
        let document = self.first.wrapping_add(self.records.len() as u32);
        let chunks = u16::try_from(texts.len()).unwrap_or(u16::MAX);
        make_room(&mut self.records, record);
        self.records.extend(length.to_le_bytes());
        self.records.extend(chunks.to_le_bytes());
        self.records.extend(key.as_bytes());
        for (hash, vector) in texts {
            self.push(*hash, *vector, document);
            while self.held() > self.most && self.entries.len() > 1 {
                self.forget_oldest();
            }
        }
    }

    /// Where a text is, if that is known.
    pub(crate) fn get(&self, hash: u64) -> Option<Place> {
        let entry = &self.entries[self.find(hash)?.1];
        let start = entry.document.wrapping_sub(self.first) as usize;
        let number =
            |at: usize| usize::from(u16::from_le_bytes([self.records[at], self.records[at + 1]]));
        let key = start + RECORD..start + RECORD + number(start);
        Some(Place {
            key: String::from_utf8(self.records.range(key).copied().collect()).ok()?,
            chunks: number(start + 2),
            vector: entry.vector,
        })
    }

    /// Whether it is known where a text is.
    pub(crate) fn contains(&self, hash: u64) -> bool {
        self.find(hash).is_some()
    }

    /// The places in the queue of an entry and of the one before it in its chain.
    fn find(&self, hash: u64) -> Option<(Option<usize>, usize)> {
        let mut next = *self.heads.get(self.chain(hash))?;
        let mut before = None;
        loop {
            let place = next.wrapping_sub(self.oldest) as usize;
            // Chains lead to older entries.
            if before.map_or(place >= self.entries.len(), |newer| place >= newer) {
                return None;
            }
            let entry = &self.entries[place];
            if entry.hash == halves(hash) {
                return Some((before, place));
            }
            before = Some(place);
            next = entry.next;
        }
    }

    /// The number of a hash's chain.
    fn chain(&self, hash: u64) -> usize {
        ((u128::from(hash) * self.heads.len() as u128) >> u64::BITS) as usize
    }

    fn push(&mut self, hash: u64, vector: u32, document: u32) {
        // Chains stay short, however often a text comes: it is found at its newest place only.
        if let Some((before, place)) = self.find(hash) {
            let next = self.entries[place].next;
            match before {
                Some(before) => self.entries[before].next = next,
                None => {
                    let chain = self.chain(hash);
                    self.heads[chain] = next;
                }
            }
        }
        make_room(&mut self.entries, 1);
        self.entries.push_back(Entry {
            hash: halves(hash),
            vector,
            document,
            next: NONE,
        });
        let length = self.entries.len();
        if length > self.heads.len() || length + length / 4 + 128 < self.heads.len() {
            self.heads = vec![NONE; length + length / 8];
            for place in 0..length {
                self.link(place);
            }
        } else {
            self.link(length - 1);
        }
    }

    /// Puts an entry at the beginning of its chain.
    fn link(&mut self, place: usize) {
        let [high, low] = self.entries[place].hash;
        let chain = self.chain(u64::from(high) << 32 | u64::from(low));
        let number = self.oldest.wrapping_add(place as u32);
        self.entries[place].next = std::mem::replace(&mut self.heads[chain], number);
    }

    fn forget_oldest(&mut self) {
        self.entries.pop_front();
        self.oldest = self.oldest.wrapping_add(1);
        let Some(next) = self.entries.front() else {
            return;
        };
        let gone = next.document.wrapping_sub(self.first) as usize;
        self.records.drain(..gone);
        self.first = next.document;
    }
}

fn halves(hash: u64) -> [u32; 2] {
    [(hash >> 32) as u32, hash as u32]
}

/// Has a queue take so many more, with an eighth to spare and not much more than that.
fn make_room<T>(queue: &mut VecDeque<T>, more: usize) {
    let length = queue.len() + more;
    if length > queue.capacity() {
        queue.reserve_exact(more + length / 8);
    } else if length + length / 4 + 128 < queue.capacity() {
        queue.shrink_to(length + length / 8);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Spread as a hash is.
    fn hash(text: u8) -> u64 {
        u64::from(text).wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }

    proptest! {
        #[test]
        fn a_text_is_where_it_was_noted_last_until_too_many_came_after_it(
            documents in prop::collection::vec(("[a-zé]{0,9}", prop::collection::vec(any::<u8>(), 0..6)), 0..80),
            most in 0usize..4000,
            wrapped in any::<bool>(),
        ) {
            let mut places = Places::new(most);
            if wrapped {
                (places.oldest, places.first) = (u32::MAX - 20, u32::MAX - 100);
            }
            // The oracle: what was noted, in order.
            let mut noted: Vec<(u8, String, usize)> = Vec::new();
            for (key, texts) in documents {
                let entries: Vec<(u64, u32)> = texts.iter().map(|text| (hash(*text), u32::from(*text))).collect();
                places.put(&key, &entries);
                if (RECORD + key.len() + TEXT) * 2 > most {
                    continue;
                }
                noted.extend(texts.iter().map(|text| (*text, key.clone(), texts.len())));
                prop_assert!(places.held() <= places.most);
                let kept = &noted[noted.len().saturating_sub(places.entries.len())..];
                for text in 0..=u8::MAX {
                    let newest = kept.iter().rfind(|(other, _, _)| *other == text);
                    let expected = newest.map(|(text, key, chunks)| Place { key: key.clone(), chunks: *chunks, vector: u32::from(*text) });
                    prop_assert_eq!(places.get(hash(text)), expected);
                }
            }
        }
    }

    #[test]
    fn a_hundred_thousand_places_take_what_is_said_and_a_text_that_comes_always_slows_nothing() {
        let most = 4 * 1024 * 1024;
        let mut places = Places::new(most);
        let spread = |number: u64| number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        for document in 1..=300_000u64 {
            places.put(
                &format!("document {document:07}"),
                &[(spread(document), 1), (0, 1)],
            );
        }
        assert!(places.held() <= most && places.held() > most - 1000);
        // Two texts and a key of 16 bytes a document.
        let documents = most / (2 * TEXT + RECORD + 16) * 8 / 9;
        assert!(
            places.entries.len() / 2 >= documents - 2 && documents > 50_000,
            "{}",
            places.entries.len()
        );
        assert!(
            places.contains(spread(300_000))
                && places.contains(spread(300_000 - documents as u64 + 2))
        );
        assert!(!places.contains(spread(1)));
        let capacity = places.entries.capacity() * size_of::<Entry>()
            + places.heads.capacity() * 4
            + places.records.capacity();
        assert!(capacity <= most + most / 8, "{capacity}");
    }

    #[test]
    fn what_was_kept_free_for_entries_goes_to_keys() {
        let most = 1024 * 1024;
        let mut places = Places::new(most);
        let texts =
            |from: u64| -> Vec<(u64, u32)> { (from..from + 1000).map(|n| (n << 32, 0)).collect() };
        for document in 0..100 {
            places.put("k", &texts(document * 1000));
        }
        let many = places.entries.len();
        for document in 0..20_000u64 {
            places.put(&format!("{document:0100}"), &[(document << 40, 0)]);
        }
        assert!(places.entries.len() < many / 2);
        let capacity = places.entries.capacity() * size_of::<Entry>()
            + places.heads.capacity() * 4
            + places.records.capacity();
        assert!(capacity <= most + most / 4, "{capacity}");
    }

    #[test]
    fn without_memory_nothing_is_known() {
        let mut places = Places::new(0);
        places.put("k", &[(1, 1)]);
        assert!(places.get(1).is_none() && places.heads.is_empty());
    }
}
