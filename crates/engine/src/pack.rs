//! Packing: which chunks go into a request together. Plain arithmetic on token counts.

/// What a request may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Capacity {
    /// Inputs at most. At least 1.
    pub inputs: usize,
    /// Tokens at most, over all inputs. A single input may exceed it and then goes alone.
    pub tokens: usize,
}

/// A request being filled with items of `T`.
#[derive(Debug)]
pub(crate) struct Packer<T> {
    capacity: Capacity,
    items: Vec<T>,
    tokens: usize,
}

impl<T> Packer<T> {
    pub(crate) fn new(capacity: Capacity) -> Self {
        Self {
            capacity,
            items: Vec::new(),
            tokens: 0,
        }
    }

    /// Adds an item, and returns the request before it when it had no room for this one.
    pub(crate) fn add(&mut self, item: T, tokens: usize) -> Option<Vec<T>> {
        let full = !self.items.is_empty()
            && (self.items.len() >= self.capacity.inputs
                || self.tokens + tokens > self.capacity.tokens);
        let before = if full { self.take() } else { None };
        self.items.push(item);
        self.tokens += tokens;
        before
    }

    /// What has been gathered, if anything: a request that is not full need not wait for more.
    pub(crate) fn take(&mut self) -> Option<Vec<T>> {
        self.tokens = 0;
        (!self.items.is_empty()).then(|| std::mem::take(&mut self.items))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_chunk_is_sent_once_in_order_and_no_request_exceeds_its_capacity(
            tokens in prop::collection::vec(1usize..400, 0..200),
            inputs in 1usize..40,
            limit in 1usize..1000,
        ) {
            let mut packer = Packer::new(Capacity { inputs, tokens: limit });
            let mut requests: Vec<Vec<usize>> = Vec::new();
            for (chunk, count) in tokens.iter().enumerate() {
                requests.extend(packer.add(chunk, *count));
            }
            requests.extend(packer.take());
            prop_assert!(packer.take().is_none());
            for request in &requests {
                prop_assert!(!request.is_empty() && request.len() <= inputs);
                let sum: usize = request.iter().map(|c| tokens[*c]).sum();
                prop_assert!(sum <= limit || request.len() == 1);
            }
            prop_assert_eq!(requests.concat(), (0..tokens.len()).collect::<Vec<_>>());
        }
    }
}
