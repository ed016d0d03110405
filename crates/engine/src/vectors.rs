//! Vectors that were paid for lately, the least recently used forgotten first, but not before their documents are written.

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;
use std::sync::{Arc, Weak};

/// The numbers of a vector, which several chunks may have.
pub type Vector = Arc<Vec<f32>>;

/// Bytes that an entry takes besides its numbers, about.
const ENTRY: usize = 160;

/// Vectors by key, in so many bytes at most.
pub(crate) struct Vectors<K> {
    most: usize,
    held: usize,
    /// With the time of the last use, which counts uses.
    known: HashMap<K, (Vector, u64)>,
    by_use: BTreeMap<u64, K>,
    uses: u64,
    /// Forgotten, and still held by others: chunks of documents that are not written yet.
    elsewhere: HashMap<K, Weak<Vec<f32>>>,
    /// How many of them there are before those are looked for that nobody holds any more.
    look_at: usize,
}

impl<K: Copy + Eq + Hash> Vectors<K> {
    /// None yet, and `most` bytes of them at most.
    pub(crate) fn new(most: usize) -> Self {
        Self {
            most,
            held: 0,
            known: HashMap::new(),
            by_use: BTreeMap::new(),
            uses: 0,
            elsewhere: HashMap::new(),
            look_at: 0,
        }
    }

    /// The vector of a key, if it is remembered.
    pub(crate) fn get(&mut self, key: &K) -> Option<Vector> {
        let Some((vector, used)) = self.known.get_mut(key) else {
            return self.elsewhere.get(key)?.upgrade();
        };
        self.by_use.remove(used);
        self.uses += 1;
        *used = self.uses;
        self.by_use.insert(self.uses, *key);
        Some(Arc::clone(vector))
    }

    /// Remembers a vector in place of the one that its key had.
    pub(crate) fn put(&mut self, key: K, vector: Vector) {
        let size = size(&vector);
        self.elsewhere.remove(&key);
        self.forget(&key);
        if size > self.most {
            return self.leave(key, &vector);
        }
        while self.held + size > self.most
            && let Some((_, oldest)) = self.by_use.pop_first()
        {
            if let Some(forgotten) = self.forget(&oldest) {
                self.leave(oldest, &forgotten);
            }
        }
        self.uses += 1;
        self.by_use.insert(self.uses, key);
        self.known.insert(key, (vector, self.uses));
        self.held += size;
    }

    fn forget(&mut self, key: &K) -> Option<Vector> {
        let (vector, used) = self.known.remove(key)?;
        self.by_use.remove(&used);
        self.held -= size(&vector);
        Some(vector)
    }

    /// Leaves a vector to those who hold it besides the caller.
    fn leave(&mut self, key: K, vector: &Vector) {
        if self.most == 0 || Arc::strong_count(vector) == 1 {
            return;
        }
        if self.elsewhere.len() >= self.look_at {
            self.elsewhere.retain(|_, vector| vector.strong_count() > 0);
            self.look_at = 2 * self.elsewhere.len() + 64;
        }
        self.elsewhere.insert(key, Arc::downgrade(vector));
    }
}

fn size(vector: &[f32]) -> usize {
    size_of_val(vector) + ENTRY
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_was_used_last_is_remembered_and_no_more_than_allowed(
            steps in prop::collection::vec((0u8..12, any::<bool>()), 0..200),
            room in 0usize..8,
        ) {
            let vector = |key: u8| -> Vector { Arc::new(vec![f32::from(key); 4]) };
            let mut vectors = Vectors::new(room * size(&vector(0)));
            // The oracle: keys, the last used last.
            let mut used: Vec<u8> = Vec::new();
            for (key, puts) in steps {
                let known = used.contains(&key);
                used.retain(|other| *other != key);
                if puts {
                    vectors.put(key, vector(key));
                    used.push(key);
                    if used.len() > room {
                        used.remove(0);
                    }
                } else {
                    prop_assert_eq!(vectors.get(&key), known.then(|| vector(key)));
                    if known {
                        used.push(key);
                    }
                }
                prop_assert!(vectors.held <= vectors.most);
                prop_assert_eq!((vectors.known.len(), vectors.by_use.len()), (used.len(), used.len()));
            }
        }
    }

    #[test]
    fn what_somebody_still_holds_is_known_for_as_long_and_no_longer() {
        let vector = |key: u8| -> Vector { Arc::new(vec![f32::from(key); 4]) };
        for most in [1, size(&vector(0))] {
            let mut vectors = Vectors::new(most);
            let held: Vec<Vector> = (0..200).map(vector).collect();
            for (key, vector) in held.iter().enumerate() {
                vectors.put(key, Arc::clone(vector));
            }
            for (key, vector) in held.iter().enumerate() {
                assert_eq!(vectors.get(&key).as_ref(), Some(vector));
            }
            drop(held);
            assert!((0..199).all(|key| vectors.get(&key).is_none()));
            for key in 1000..2000 {
                let vector = vector(0);
                vectors.put(key, Arc::clone(&vector));
                vectors.put(key + 1000, vector);
            }
            assert!(vectors.elsewhere.len() < 500, "{}", vectors.elsewhere.len());
        }
        let mut vectors = Vectors::new(0);
        let held = vector(1);
        vectors.put(1, Arc::clone(&held));
        assert_eq!(vectors.get(&1), None);
    }
}
