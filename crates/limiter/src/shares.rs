//! Whose turn it is: equal shares of a limit for the pipelines that wait for it, whatever the number and the size of
//! their requests. Start-time fair queueing, without a queue: everybody notes what it was served and until when it may
//! be taken to be waiting, and whoever is ahead of somebody who waits lets that one go first.

use std::num::NonZeroU64;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use crate::ORDER;
use crate::clock::nanoseconds;

/// Pipelines of one limit that are told apart at a time; the longest unseen makes room for a new one. Those beyond get
/// in without being ordered.
pub const MAX_CLAIMANTS: usize = 64;

/// The longest that a caller is asked to wait for a minute budget or its turn: a refund or a raised limit is used
/// within the lateness that can be made good ([`LATENESS`](crate::LATENESS)).
pub const LONGEST_WAIT: Duration = Duration::from_millis(20);

/// How long after its wait a caller is still taken to be waiting, so that somebody who went away delays nobody for
/// longer. Less than [`LATENESS`](crate::LATENESS), so that such a delay costs no throughput.
pub const GRACE: Duration = Duration::from_millis(10);

const GRACE_NS: u64 = GRACE.as_nanos() as u64;

/// How long a claimant is taken to be waiting still when one of its requests was admitted: its others, if there are
/// any, wake at the same moment and say so themselves.
const AFTERWARDS_NS: u64 = 2_000_000;

/// How often somebody who lets another go first asks again when that one is due.
const TURN_NS: u64 = 1_000_000;

/// How far ahead, in budget time, one may get of another who waits: a claimant whose thread is late for a moment keeps
/// its place, and the shares of a second are still equal within a few per cent.
const QUANTUM_NS: u64 = 50_000_000;

/// One request counts for a day of budget time at most: no more than a mistake in a limit makes it cost so much, and
/// the sums stay far from their end.
const MOST_COST_NS: u64 = 86_400_000_000_000;

/// One claimant's account.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct Share {
    /// 0 for a free slot.
    key: AtomicU64,
    /// Budget time in ns that its requests took, the dearer of requests and tokens.
    served: AtomicU64,
    /// Until when it is taken to be waiting, in monotonic ns.
    waiting_until: AtomicU64,
    /// When it asked last, in monotonic ns.
    seen: AtomicU64,
}

impl Share {
    const fn new() -> Self {
        Self {
            key: AtomicU64::new(0),
            served: AtomicU64::new(0),
            waiting_until: AtomicU64::new(0),
            seen: AtomicU64::new(0),
        }
    }

    fn waits(&self, now: u64) -> bool {
        self.waiting_until.load(ORDER) > now
    }
}

/// All claimants of a limit.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct Shares {
    /// What the last admitted request's claimant had been served before it: where newcomers start.
    virtual_time: AtomicU64,
    /// The most that anybody was served.
    most_served: AtomicU64,
    /// Until when somebody urgent is taken to be waiting, in monotonic ns.
    urgent_until: AtomicU64,
    slots: [Share; MAX_CLAIMANTS],
}

impl Shares {
    pub(crate) const fn new() -> Self {
        Self {
            virtual_time: AtomicU64::new(0),
            most_served: AtomicU64::new(0),
            urgent_until: AtomicU64::new(0),
            slots: [const { Share::new() }; MAX_CLAIMANTS],
        }
    }

    pub(crate) fn clear(&self) {
        for share in &self.slots {
            for word in [&share.key, &share.served, &share.waiting_until, &share.seen] {
                word.store(0, ORDER);
            }
        }
        for word in [&self.virtual_time, &self.most_served, &self.urgent_until] {
            word.store(0, ORDER);
        }
    }

    /// Makes everybody equal: at another target the budget time that was served means something else.
    pub(crate) fn level(&self) {
        let most = self.most_served.load(ORDER);
        self.virtual_time.fetch_max(most, ORDER);
        for share in &self.slots {
            share.served.fetch_max(most, ORDER);
        }
    }

    /// The account of a claimant who asks. One that was not waiting starts with those who are: idleness earns nothing.
    /// `lay_idle`: the budget was left unused until now, so nobody owes anybody anything.
    pub(crate) fn enter(&self, key: NonZeroU64, now: u64, lay_idle: bool) -> Option<&Share> {
        if lay_idle {
            let most = self.most_served.load(ORDER);
            self.virtual_time.fetch_max(most, ORDER);
        }
        let share = self.find(key.get(), now)?;
        share.seen.store(now, ORDER);
        if !share.waits(now) {
            share.served.fetch_max(self.newcomers_start(), ORDER);
        }
        Some(share)
    }

    fn newcomers_start(&self) -> u64 {
        self.virtual_time.load(ORDER).saturating_sub(QUANTUM_NS)
    }

    fn find(&self, key: u64, now: u64) -> Option<&Share> {
        // Fibonacci hashing: keys differ in a few bits, at either end.
        let first = (key.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 58) as usize;
        for i in 0..MAX_CLAIMANTS {
            let share = &self.slots[(first + i) % MAX_CLAIMANTS];
            let found = share.key.load(ORDER);
            if found == key {
                return Some(share);
            }
            if found == 0 {
                match share.key.compare_exchange(0, key, ORDER, ORDER) {
                    Ok(_) => return Some(self.opened(share)),
                    Err(other) if other == key => return Some(share),
                    Err(_) => {}
                }
            }
        }
        let (_, oldest) = self
            .slots
            .iter()
            .filter(|share| !share.waits(now))
            .map(|share| (share.seen.load(ORDER), share))
            .min_by_key(|(seen, _)| *seen)?;
        let before = oldest.key.load(ORDER);
        let replaced = oldest.key.compare_exchange(before, key, ORDER, ORDER);
        replaced.is_ok().then(|| self.opened(oldest))
    }

    fn opened<'a>(&self, share: &'a Share) -> &'a Share {
        share.waiting_until.store(0, ORDER);
        share.served.store(self.newcomers_start(), ORDER);
        share
    }

    /// How long to let others go first, if anybody waits who should.
    pub(crate) fn turn(&self, share: Option<&Share>, urgent: bool, now: u64) -> Option<u64> {
        if urgent {
            return None;
        }
        let urgent_until = self.urgent_until.load(ORDER);
        if urgent_until > now {
            return Some(until_due(urgent_until, now));
        }
        let served = share.map_or_else(|| self.newcomers_start(), |share| share.served.load(ORDER));
        self.slots
            .iter()
            .filter(|other| other.key.load(ORDER) != 0 && other.waits(now))
            .map(|other| (other.served.load(ORDER), other))
            .filter(|(theirs, _)| served > theirs.saturating_add(QUANTUM_NS))
            .min_by_key(|(theirs, _)| *theirs)
            .map(|(_, other)| until_due(other.waiting_until.load(ORDER), now))
    }

    /// Notes that the claimant waits and will ask again at `retry` (monotonic ns).
    pub(crate) fn wait(&self, share: Option<&Share>, urgent: bool, retry: u64) {
        let until = retry.saturating_add(GRACE_NS);
        if let Some(share) = share {
            share.waiting_until.fetch_max(until, ORDER);
        }
        if urgent {
            self.urgent_until.fetch_max(until, ORDER);
        }
    }

    /// Notes that a request of the claimant that takes `cost` ns of budget time was admitted.
    pub(crate) fn admitted(&self, share: Option<&Share>, urgent: bool, now: u64, cost: u64) {
        let afterwards = now.saturating_add(AFTERWARDS_NS);
        if urgent {
            self.urgent_until.fetch_min(afterwards, ORDER);
        }
        let Some(share) = share else { return };
        let cost = cost.min(MOST_COST_NS);
        let before = share.served.fetch_add(cost, ORDER);
        self.most_served
            .fetch_max(before.saturating_add(cost), ORDER);
        // Somebody urgent goes out of turn, perhaps from far ahead: the others do not start from there.
        if !urgent {
            self.virtual_time.fetch_max(before, ORDER);
        }
        share.waiting_until.fetch_min(afterwards, ORDER);
    }
}

/// How long until somebody who is taken to be waiting until `waiting_until` asks again.
fn until_due(waiting_until: u64, now: u64) -> u64 {
    waiting_until
        .saturating_sub(GRACE_NS)
        .saturating_sub(now)
        .clamp(TURN_NS, nanoseconds(LONGEST_WAIT))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: u64) -> NonZeroU64 {
        NonZeroU64::new(n).unwrap()
    }

    #[test]
    fn the_longest_idle_claimant_makes_room_and_one_that_waits_does_not() {
        let shares = Shares::new();
        for n in 1..=MAX_CLAIMANTS as u64 {
            let share = shares.enter(key(n), n * 1_000, false);
            shares.wait(share, false, if n == 1 { 1 << 40 } else { n * 1_000 });
        }
        let now = 1 << 30;
        let newcomer = shares.enter(key(1_000), now, false).unwrap();
        assert_eq!(newcomer.key.load(ORDER), 1_000);
        let keys = || shares.slots.iter().map(|share| share.key.load(ORDER));
        assert!(keys().any(|key| key == 1) && !keys().any(|key| key == 2));
        assert!(std::ptr::eq(
            newcomer,
            shares.enter(key(1_000), now, false).unwrap()
        ));
    }

    #[test]
    fn when_all_slots_wait_a_further_claimant_goes_unordered() {
        let shares = Shares::new();
        for n in 1..=MAX_CLAIMANTS as u64 {
            shares.wait(shares.enter(key(n), 1, false), false, 1 << 40);
        }
        assert!(shares.enter(key(1_000), 2, false).is_none());
        assert_eq!(shares.turn(None, false, 2), None);
        shares.admitted(None, false, 2, 1_000);
    }
}
