//! Packing: which chunks go into a request together. Plain arithmetic on token counts.
//!
//! A request is packed when it may be sent, not before: a lone document waits for nobody, and while a budget makes
//! requests wait, what gathers meanwhile fills them.

use std::collections::VecDeque;

/// What a request may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capacity {
    /// Inputs at most. At least 1.
    pub inputs: usize,
    /// Tokens at most, over all inputs. A single input may exceed it and then goes alone.
    pub tokens: usize,
}

/// Something to send, with its size.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item<T> {
    /// What it is.
    pub value: T,
    /// Tokens that it adds to a request.
    pub tokens: usize,
    /// It has failed before: it is sent alone, so that it cannot fail others.
    pub alone: bool,
    /// How often it was sent and refused for the moment.
    pub refused: u32,
}

/// The request that would be sent now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packed {
    /// Items, from the front.
    pub items: usize,
    /// Their tokens.
    pub tokens: usize,
    /// Whether nothing more would go in.
    pub full: bool,
}

/// What waits to be sent, in order.
#[derive(Debug)]
pub struct Backlog<T> {
    /// Requests that were sent and must be sent again, as they were packed.
    again: VecDeque<Vec<Item<T>>>,
    items: VecDeque<Item<T>>,
}

impl<T> Default for Backlog<T> {
    fn default() -> Self {
        Self {
            again: VecDeque::new(),
            items: VecDeque::new(),
        }
    }
}

impl<T> Backlog<T> {
    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.again.is_empty() && self.items.is_empty()
    }

    /// Adds an item behind all others.
    pub fn push(&mut self, item: Item<T>) {
        self.items.push_back(item);
    }

    /// Puts a request back, before everything else.
    pub fn put_back(&mut self, request: Vec<Item<T>>) {
        if !request.is_empty() {
            self.again.push_front(request);
        }
    }

    /// The request that [`Backlog::take`] would take now.
    pub fn peek(&self, capacity: Capacity) -> Option<Packed> {
        if let Some(request) = self.again.front() {
            // As it was, unless it must be smaller now.
            return fill(request.iter(), capacity).map(|packed| Packed {
                full: true,
                ..packed
            });
        }
        fill(self.items.iter(), capacity)
    }

    /// Takes a request that [`Backlog::peek`] described; nothing must have been taken or put back in between.
    pub fn take(&mut self, packed: Packed) -> Vec<Item<T>> {
        if let Some(mut request) = self.again.pop_front() {
            let rest = request.split_off(packed.items.min(request.len()));
            self.put_back(rest);
            return request;
        }
        self.items
            .drain(..packed.items.min(self.items.len()))
            .collect()
    }

    /// Takes out of the request that was peeked what `keep` does not want.
    pub fn retain_front(
        &mut self,
        packed: Packed,
        mut keep: impl FnMut(&T) -> bool,
    ) -> Vec<Item<T>> {
        let mut gone = Vec::new();
        if let Some(request) = self.again.front_mut() {
            gone.extend(request.extract_if(.., |item| !keep(&item.value)));
            if request.is_empty() {
                self.again.pop_front();
            }
            return gone;
        }
        for index in (0..packed.items.min(self.items.len())).rev() {
            if !keep(&self.items[index].value) {
                gone.extend(self.items.remove(index));
            }
        }
        gone
    }

    /// Takes out what `leaves` says.
    pub fn extract(&mut self, mut leaves: impl FnMut(&T) -> bool) -> Vec<Item<T>> {
        let mut gone = Vec::new();
        for request in &mut self.again {
            gone.extend(request.extract_if(.., |item| leaves(&item.value)));
        }
        self.again.retain(|request| !request.is_empty());
        let mut staying = VecDeque::with_capacity(self.items.len());
        for item in self.items.drain(..) {
            if leaves(&item.value) {
                gone.push(item);
            } else {
                staying.push_back(item);
            }
        }
        self.items = staying;
        gone
    }

    /// Takes everything.
    pub fn drain(&mut self) -> Vec<Item<T>> {
        let mut all: Vec<Item<T>> = self.again.drain(..).flatten().collect();
        all.extend(self.items.drain(..));
        all
    }
}

/// What goes into one request, from the front of these.
fn fill<'a, T: 'a>(items: impl Iterator<Item = &'a Item<T>>, capacity: Capacity) -> Option<Packed> {
    let inputs = capacity.inputs.max(1);
    let mut packed = Packed {
        items: 0,
        tokens: 0,
        full: false,
    };
    for item in items {
        let fits =
            packed.items < inputs && packed.tokens + item.tokens <= capacity.tokens && !item.alone;
        if packed.items > 0 && !fits {
            packed.full = true;
            break;
        }
        packed.items += 1;
        packed.tokens += item.tokens;
        if item.alone {
            packed.full = true;
            break;
        }
    }
    packed.full |= packed.items >= inputs || packed.tokens >= capacity.tokens;
    (packed.items > 0).then_some(packed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn item(value: usize, tokens: usize, alone: bool) -> Item<usize> {
        Item {
            value,
            tokens,
            alone,
            refused: 0,
        }
    }

    fn take_all(backlog: &mut Backlog<usize>, capacity: Capacity) -> Vec<Vec<Item<usize>>> {
        let mut requests = Vec::new();
        while let Some(packed) = backlog.peek(capacity) {
            let request = backlog.take(packed);
            assert_eq!(request.len(), packed.items);
            assert_eq!(
                request.iter().map(|i| i.tokens).sum::<usize>(),
                packed.tokens
            );
            requests.push(request);
        }
        requests
    }

    proptest! {
        #[test]
        fn every_chunk_is_sent_once_in_order_and_no_request_exceeds_its_capacity(
            chunks in prop::collection::vec((1usize..400, prop::bool::weighted(0.1)), 0..200),
            inputs in 1usize..40,
            limit in 1usize..1000,
        ) {
            let mut backlog = Backlog::default();
            for (value, (tokens, alone)) in chunks.iter().enumerate() {
                backlog.push(item(value, *tokens, *alone));
            }
            let requests = take_all(&mut backlog, Capacity { inputs, tokens: limit });
            prop_assert!(backlog.is_empty());
            for request in &requests {
                prop_assert!(!request.is_empty() && request.len() <= inputs);
                let sum: usize = request.iter().map(|i| i.tokens).sum();
                prop_assert!(sum <= limit || request.len() == 1);
                prop_assert!(request.len() == 1 || request.iter().all(|i| !i.alone));
            }
            // No two neighbours would have fitted into one.
            for pair in requests.windows(2) {
                let next = &pair[1][0];
                let sum: usize = pair[0].iter().map(|i| i.tokens).sum();
                prop_assert!(pair[0].len() == inputs || sum + next.tokens > limit || next.alone || pair[0][0].alone);
            }
            let order: Vec<usize> = requests.concat().iter().map(|i| i.value).collect();
            prop_assert_eq!(order, (0..chunks.len()).collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_request_put_back_goes_first_and_stays_together() {
        let mut backlog = Backlog::default();
        for value in 0..6 {
            backlog.push(item(value, 10, false));
        }
        let capacity = Capacity {
            inputs: 3,
            tokens: 1000,
        };
        let first = backlog.take(backlog.peek(capacity).expect("items"));
        let halves = (first[..1].to_vec(), first[1..].to_vec());
        backlog.put_back(halves.1);
        backlog.put_back(halves.0);
        let sizes: Vec<usize> = take_all(&mut backlog, capacity)
            .iter()
            .map(Vec::len)
            .collect();
        assert_eq!(sizes, [1, 2, 3]);
    }

    #[test]
    fn a_request_put_back_respects_a_smaller_budget_and_batch_size() {
        for (inputs, tokens) in [(100, 25), (2, 1000)] {
            let mut backlog = Backlog::default();
            backlog.put_back((0..5).map(|value| item(value, 10, false)).collect());
            let sizes: Vec<usize> = take_all(&mut backlog, Capacity { inputs, tokens })
                .iter()
                .map(Vec::len)
                .collect();
            assert_eq!(sizes, [2, 2, 1]);
        }
    }
}
