//! Packing, as a sequence of what a pipeline does with its backlog.

use std::collections::BTreeSet;

use engine::fuzzing::{Backlog, Capacity, Item};

/// Inputs and tokens of a request, then a letter and a number (the next character's code) for each step: `p` and `a` add an
/// item of so many tokens (`a`: to be sent alone), `t` sends a request, `b` puts the last one that was sent back in two
/// parts, `c` changes the tokens of a request, `r` drops items from the next request, `x` takes items out of the whole
/// backlog. What is left is sent in the end.
///
/// Each item is sent, dropped or taken out, once; what was never sent before leaves in the order in which it came; no
/// request has more than it may hold.
pub fn packing(bytes: &[u8]) {
    let [inputs, tokens, steps @ ..] = bytes else {
        return;
    };
    let mut run = Run::new(usize::from(*inputs).max(1), usize::from(*tokens));
    for step in steps.chunks_exact(2).take(4096) {
        let number = usize::from(step[1]);
        match step[0] {
            b'p' | b'a' => run.push(number, step[0] == b'a'),
            b't' => run.send(),
            b'b' => run.put_back(number),
            b'c' => run.capacity.tokens = number,
            b'r' => run.drop_from_front(number),
            b'x' => run.take_out(number),
            _ => {}
        }
    }
    run.finish();
}

struct Run {
    backlog: Backlog<usize>,
    capacity: Capacity,
    /// Values are the numbers of the items.
    pushed: usize,
    waiting: BTreeSet<usize>,
    sent: Vec<Vec<Item<usize>>>,
    /// The next item that was never sent is not before this one.
    fresh: usize,
}

impl Run {
    fn new(inputs: usize, tokens: usize) -> Self {
        Self {
            backlog: Backlog::default(),
            capacity: Capacity { inputs, tokens },
            pushed: 0,
            waiting: BTreeSet::new(),
            sent: Vec::new(),
            fresh: 0,
        }
    }

    fn push(&mut self, tokens: usize, alone: bool) {
        self.backlog.push(Item {
            value: self.pushed,
            tokens,
            alone,
            refused: 0,
        });
        self.waiting.insert(self.pushed);
        self.pushed += 1;
    }

    fn send(&mut self) {
        let Some(packed) = self.backlog.peek(self.capacity) else {
            assert!(self.waiting.is_empty());
            return;
        };
        assert_eq!(self.backlog.peek(self.capacity), Some(packed));
        let request = self.backlog.take(packed);
        assert_eq!(request.len(), packed.items);
        let tokens: usize = request.iter().map(|item| item.tokens).sum();
        assert_eq!(tokens, packed.tokens);
        assert!((1..=self.capacity.inputs).contains(&request.len()));
        if request.len() > 1 {
            assert!(tokens <= self.capacity.tokens);
            assert!(request.iter().all(|item| !item.alone));
        }
        assert!(request.is_sorted_by(|a, b| a.value < b.value));
        for item in &request {
            assert!(self.waiting.remove(&item.value), "sent twice");
        }
        let last = request.last().map_or(0, |item| item.value);
        if last >= self.fresh {
            // Nothing that came earlier and was never sent is left behind.
            assert!(request[0].value >= self.fresh);
            let earlier = self.waiting.range(self.fresh..last).next();
            assert_eq!(earlier, None, "out of order");
            self.fresh = last + 1;
        }
        if !packed.full {
            assert!(self.waiting.is_empty(), "not full, and something waits");
        }
        self.sent.push(request);
    }

    fn put_back(&mut self, at: usize) {
        let Some(mut request) = self.sent.pop() else {
            return;
        };
        self.waiting.extend(request.iter().map(|item| item.value));
        let second = request.split_off(at % (request.len() + 1));
        self.backlog.put_back(second);
        self.backlog.put_back(request);
    }

    fn drop_from_front(&mut self, number: usize) {
        if let Some(packed) = self.backlog.peek(self.capacity) {
            let unwanted = |value: usize| value.is_multiple_of(number % 8 + 1);
            let gone = self.backlog.retain_front(packed, |value| !unwanted(*value));
            for item in gone {
                assert!(unwanted(item.value) && self.waiting.remove(&item.value));
            }
        }
    }

    fn take_out(&mut self, number: usize) {
        let unwanted = |value: &usize| value.is_multiple_of(number % 8 + 1);
        let gone = self.backlog.extract(unwanted);
        for item in gone {
            assert!(unwanted(&item.value) && self.waiting.remove(&item.value));
        }
        assert!(!self.waiting.iter().any(unwanted));
    }

    fn finish(mut self) {
        assert_eq!(self.backlog.is_empty(), self.waiting.is_empty());
        while !self.backlog.is_empty() {
            self.send();
        }
        assert!(self.waiting.is_empty(), "lost {:?}", self.waiting);
    }
}
