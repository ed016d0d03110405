//! Vectors that follow from their texts.

/// The vector that the API answers for this text: of unit length, the same at every call, and another one for every other
/// text. So a test can prove of a stored vector that it belongs to its text.
pub fn vector_of(text: &str, dimensions: usize) -> Vec<f32> {
    let mut state = hash_of(text);
    let mut squares = 0.0;
    let mut vector: Vec<f32> = (0..dimensions)
        .map(|_| {
            state = state.wrapping_add(GOLDEN);
            // The upper 24 bits are what a f32 holds exactly; half a step off, so that no component is 0.
            let component = (mixed(state) >> 40) as f32 - (1 << 23) as f32 + 0.5;
            squares += f64::from(component) * f64::from(component);
            component
        })
        .collect();
    let scale = (1.0 / squares.sqrt()) as f32;
    for component in &mut vector {
        *component *= scale;
    }
    vector
}

/// A text, for those who compare and count: FNV-1a, and mixed, because FNV leaves the upper bits of short texts alike.
pub(crate) fn hash_of(text: &str) -> u64 {
    let hash = text.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    mixed(hash)
}

/// Another number in [0, 1) for every number.
pub(crate) fn chance(seed: u64, number: u64) -> f64 {
    let bits = mixed(mixed(seed.wrapping_add(GOLDEN)).wrapping_add(number.wrapping_mul(GOLDEN)));
    (bits >> 11) as f64 / (1_u64 << 53) as f64
}

/// The numbers from 0 to `count` in an order that follows from the seed, and is not the usual one if there are two.
pub(crate) fn shuffled(count: usize, seed: u64) -> Vec<usize> {
    let mut order: Vec<usize> = (0..count).collect();
    order.sort_by_cached_key(|index| mixed(seed ^ mixed(*index as u64)));
    if order.is_sorted() {
        order.reverse();
    }
    order
}

/// The increment of splitmix64: a sequence of it meets every number once.
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// The finish of splitmix64 (Steele, Lea and Flood 2014), one to one.
const fn mixed(mut bits: u64) -> u64 {
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn a_text_has_one_vector_of_unit_length() {
        for (text, dimensions) in [("", 1), ("a", 2), ("a whale", 384), ("a\nwhale", 3072)] {
            let vector = vector_of(text, dimensions);
            assert_eq!(vector, vector_of(text, dimensions));
            assert_eq!(vector.len(), dimensions);
            let length: f64 = vector.iter().map(|x| f64::from(*x).powi(2)).sum();
            assert!((length.sqrt() - 1.0).abs() < 1e-5, "{text}: {length}");
        }
    }

    #[test]
    fn texts_that_differ_little_have_vectors_that_differ_much() {
        let dot = |a: &[f32], b: &[f32]| -> f32 { a.iter().zip(b).map(|(a, b)| a * b).sum() };
        let vectors: Vec<_> = (0..200)
            .map(|number| vector_of(&format!("text {number}"), 1536))
            .collect();
        for (number, vector) in vectors.iter().enumerate() {
            for other in &vectors[..number] {
                // Independent directions in n dimensions have products of about 1/√n: 0.026 here.
                assert!(dot(vector, other).abs() < 0.2);
            }
        }
    }

    #[test]
    fn a_hundred_thousand_texts_have_as_many_hashes() {
        let hashes: HashSet<u64> = (0..100_000)
            .map(|number| hash_of(&format!("row {number}")))
            .collect();
        assert_eq!(hashes.len(), 100_000);
    }

    #[test]
    fn a_shuffled_order_holds_everything_and_is_another() {
        for count in 2..50 {
            let mut order = shuffled(count, 7);
            assert!(!order.is_sorted(), "{order:?}");
            order.sort_unstable();
            assert!(order.into_iter().eq(0..count));
        }
    }

    #[test]
    fn chances_are_spread_evenly() {
        let hits = (0..10_000)
            .filter(|number| chance(1, *number) < 0.05)
            .count();
        assert!((400..600).contains(&hits), "{hits} of 10,000 at 5 %");
    }
}
