//! Vectors that were paid for lately, the least recently used forgotten first.

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;
use std::sync::Arc;

/// Bytes that an entry takes besides its numbers, about.
const ENTRY: usize = 160;

/// Vectors by key, in so many bytes at most.
pub(crate) struct Vectors<K> {
    most: usize,
    held: usize,
    /// With the time of the last use, which counts uses.
    known: HashMap<K, (Arc<[f32]>, u64)>,
    by_use: BTreeMap<u64, K>,
    uses: u64,
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
        }
    }

    /// The vector of a key, if it is remembered.
    pub(crate) fn get(&mut self, key: &K) -> Option<Arc<[f32]>> {
        let (vector, used) = self.known.get_mut(key)?;
        self.by_use.remove(used);
        self.uses += 1;
        *used = self.uses;
        self.by_use.insert(self.uses, *key);
        Some(Arc::clone(vector))
    }

    /// Remembers a vector in place of the one that its key had.
    pub(crate) fn put(&mut self, key: K, vector: Arc<[f32]>) {
        let size = size(&vector);
        self.forget(&key);
        if size > self.most {
            return;
        }
        while self.held + size > self.most
            && let Some((_, oldest)) = self.by_use.pop_first()
        {
            self.forget(&oldest);
        }
        self.uses += 1;
        self.by_use.insert(self.uses, key);
        self.known.insert(key, (vector, self.uses));
        self.held += size;
    }

    fn forget(&mut self, key: &K) {
        if let Some((vector, used)) = self.known.remove(key) {
            self.by_use.remove(&used);
            self.held -= size(&vector);
        }
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
            let vector = |key: u8| -> Arc<[f32]> { Arc::from([f32::from(key); 4]) };
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
}
