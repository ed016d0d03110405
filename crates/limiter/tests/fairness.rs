//! What pipelines that share a limit are promised, in virtual time.

mod common;

use common::*;
use limiter::MAX_CLAIMANTS;
use proptest::prelude::*;

/// Tokens of each claimant's requests between two moments.
fn shares(sent: &[Sent], keys: std::ops::RangeInclusive<u64>, from: u64, until: u64) -> Vec<f64> {
    let within: Vec<Sent> = sent
        .iter()
        .filter(|sent| (from..until).contains(&sent.at))
        .copied()
        .collect();
    keys.map(|key| tokens_of(&within, key) as f64).collect()
}

fn assert_equal(shares: &[f64], within: f64) {
    let mean = shares.iter().sum::<f64>() / shares.len() as f64;
    for share in shares {
        assert!(
            (share / mean - 1.0).abs() <= within,
            "not equal shares: {shares:?}"
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn pipelines_that_wait_get_equal_shares_whatever_their_requests_and_threads(
        claimants in prop::collection::vec((100_u64..20_000, 3_usize..30, 0_u64..20), 2..=5),
        seed in any::<u64>(),
    ) {
        let limit = limit(at(0), &minute_budget(None, Some(4_000_000)));
        let threads: Vec<Thread> = claimants
            .iter()
            .zip(1..)
            .flat_map(|(&(tokens, threads, round_trip), key)| {
                // Enough of them that one waits always: twice what the whole budget keeps busy.
                let busy = 2 * 4_000_000 * (round_trip + 1) / (tokens * 60_000);
                let round_trip = round_trip * MILLISECOND;
                let threads = threads.max(busy as usize);
                Thread { round_trip, ..Thread::greedy(key, tokens) }.times(threads)
            })
            .collect();
        let sent = run(&limit, &threads, 0, MINUTE, seed);
        let total: u64 = sent.iter().map(|sent| sent.tokens).sum();
        prop_assert!(total >= 3_920_000, "{total}");
        assert_equal(&shares(&sent, 1..=claimants.len() as u64, 0, MINUTE), 0.05);
    }
}

#[test]
fn where_requests_are_scarce_the_shares_are_of_requests() {
    let limit = limit(at(0), &minute_budget(Some(3_000), Some(1_000_000_000)));
    let mut threads = Thread::greedy(1, 100_000).times(40);
    threads.extend(Thread::greedy(2, 10).times(3));
    let sent = run(&limit, &threads, 0, MINUTE, 1);
    let first = sent.iter().filter(|sent| sent.who.key.get() == 1).count();
    assert_equal(&[first as f64, (sent.len() - first) as f64], 0.05);
}

#[test]
fn a_newcomer_gets_its_share_at_once_and_none_for_the_time_before() {
    let limit = limit(at(0), &minute_budget(None, Some(4_000_000)));
    let mut threads = Thread::greedy(1, 1_000).times(20);
    let late = Thread {
        from: 30 * SECOND,
        ..Thread::greedy(2, 3_000)
    };
    threads.extend(late.times(20));
    let sent = run(&limit, &threads, 0, MINUTE, 1);
    assert_equal(&shares(&sent, 1..=2, 30 * SECOND, 40 * SECOND), 0.05);
    assert_equal(&shares(&sent, 1..=2, 50 * SECOND, 60 * SECOND), 0.05);
}

#[test]
fn idleness_earns_and_costs_nothing() {
    let limit = limit(at(0), &minute_budget(None, Some(4_000_000)));
    let mut threads = Thread::greedy(1, 1_000).times(20);
    for (from, until) in [(0, 10), (30, 35), (40, 60)] {
        let spell = Thread {
            from: from * SECOND,
            until: until * SECOND,
            ..Thread::greedy(2, 2_000)
        };
        threads.extend(spell.times(10));
    }
    let sent = run(&limit, &threads, 0, MINUTE, 1);
    for (from, until) in [(0, 10), (30, 35), (40, 50), (50, 60)] {
        assert_equal(&shares(&sent, 1..=2, from * SECOND, until * SECOND), 0.05);
    }
    let alone = shares(&sent, 1..=1, 10 * SECOND, 30 * SECOND)[0];
    assert!(alone >= 0.98 * 4_000_000.0 / 3.0, "{alone}");
}

#[test]
fn what_was_served_alone_is_not_held_against_a_pipeline() {
    let limit = limit(at(0), &minute_budget(None, Some(4_000_000)));
    let alone = Thread {
        until: 20 * SECOND,
        ..Thread::greedy(1, 1_000)
    };
    run(&limit, &alone.times(10), 0, 20 * SECOND, 1);
    let mut threads = Thread::greedy(1, 1_000).times(10);
    threads.extend(Thread::greedy(2, 1_000).times(10));
    let sent = run(&limit, &threads, 25 * SECOND, 35 * SECOND, 1);
    assert_equal(&shares(&sent, 1..=2, 0, MINUTE), 0.05);
}

#[test]
fn what_was_paid_for_with_idle_time_is_not_held_against_a_pipeline() {
    let limit = limit(at(0), &minute_budget(None, Some(60_000)));
    limit.admit(at(SECOND), claimant(1), 30_000).unwrap();
    let _ = limit.admit(at(SECOND), claimant(2), 10);
    let back = Thread {
        from: MINUTE + 50 * MILLISECOND,
        ..Thread::greedy(1, 100)
    };
    let mut threads = back.times(10);
    threads.extend(Thread::greedy(2, 100).times(10));
    let sent = run(&limit, &threads, MINUTE, MINUTE + 20 * SECOND, 1);
    assert_equal(&shares(&sent, 1..=2, 0, 2 * MINUTE), 0.05);
}

#[test]
fn many_small_requests_do_not_push_a_few_large_ones_aside() {
    let limit = limit(at(0), &minute_budget(None, Some(4_000_000)));
    let mut threads = Thread::greedy(1, 50).times(100);
    threads.extend(Thread::greedy(2, 100_000).times(2));
    let sent = run(&limit, &threads, 0, 2 * MINUTE, 1);
    assert_equal(&shares(&sent, 1..=2, 0, 2 * MINUTE), 0.05);
}

#[test]
fn somebody_who_vanishes_while_waiting_delays_the_others_for_an_instant_only() {
    let limit = limit(at(0), &minute_budget(Some(600), None));
    let threads = Thread::greedy(1, 1).times(3);
    run(&limit, &threads, 0, 10 * SECOND, 1);
    // A newcomer would go first, urgent or not; the next request is due within 100 ms, and it never comes back.
    for who in [claimant(2), urgent(3)] {
        let _ = limit.admit(at(10 * SECOND + 1), who, 1);
    }
    let sent = run(&limit, &threads, 10 * SECOND + 2, 12 * SECOND, 1);
    let before = 10 * SECOND + 100 * MILLISECOND;
    let patience = 15 * MILLISECOND;
    assert!(sent[0].at <= before + patience, "{}", sent[0].at);
    assert!(sent.len() >= 19, "{}", sent.len());
}

#[test]
fn somebody_who_was_served_holds_up_the_others_for_an_instant_only() {
    let limit = limit(at(0), &minute_budget(None, Some(60_000_000)));
    for i in 0..200 {
        let now = SECOND + i * 30 * MILLISECOND;
        limit.admit(at(now), claimant(1), 1_000).unwrap();
    }
    let now = SECOND + 199 * 30 * MILLISECOND;
    limit.admit(at(now + 1), claimant(2), 1).unwrap_err();
    let due = now + 2 * MILLISECOND;
    limit.admit(at(due), claimant(2), 1).unwrap();
    limit
        .admit(at(due + MILLISECOND), claimant(1), 1_000)
        .unwrap_err();
    assert_eq!(
        limit.admit(at(due + 3 * MILLISECOND), claimant(1), 1_000),
        Ok(())
    );
}

#[test]
fn somebody_urgent_goes_before_all_others() {
    let limit = limit(at(0), &minute_budget(Some(600), Some(6_000_000)));
    let mut threads = Thread::greedy(1, 1_000).times(50);
    threads.extend(Thread::greedy(2, 100).times(50));
    // A search now and then, by the pipeline that is served most anyhow: never more than one request is before it.
    let searches = Thread {
        who: urgent(1),
        tokens: 20,
        round_trip: 700 * MILLISECOND,
        ..Thread::greedy(1, 0)
    };
    threads.push(searches);
    let sent = run(&limit, &threads, 0, MINUTE, 1);
    let waits: Vec<u64> = sent
        .iter()
        .filter(|sent| sent.who.urgent)
        .map(|sent| (sent.at - sent.asked) / MILLISECOND)
        .collect();
    assert!(waits.len() > 70, "{}", waits.len());
    let slowest = waits.iter().max().unwrap();
    assert!(*slowest <= 110, "{slowest} ms");
    assert!(sent.len() >= 588, "{}", sent.len());
}

#[test]
fn a_raised_limit_forgets_what_was_served_under_the_mistaken_one() {
    let limit = limit(at(0), &minute_budget(None, Some(1)));
    limit.admit(at(SECOND), claimant(1), 1_000_000).unwrap();
    let _ = limit.admit(at(2 * SECOND), claimant(2), 1_000);
    limit.configure(at(3 * SECOND), &minute_budget(None, Some(4_000_000)));
    let mut threads = Thread::greedy(1, 1_000).times(10);
    threads.extend(Thread::greedy(2, 1_000).times(10));
    let sent = run(&limit, &threads, 4 * SECOND, 40 * SECOND, 1);
    assert_equal(&shares(&sent, 1..=2, 0, MINUTE), 0.05);
}

#[test]
fn more_pipelines_than_slots_still_use_the_budget_and_none_starves() {
    let limit = limit(at(0), &minute_budget(Some(6_000), None));
    let many = MAX_CLAIMANTS as u64 + 36;
    let threads: Vec<Thread> = (1..=many)
        .flat_map(|key| Thread::greedy(key << 32 | 1, 1).times(2))
        .collect();
    let sent = run(&limit, &threads, 0, MINUTE, 1);
    assert!(sent.len() >= 5_880, "{}", sent.len());
    for key in 1..=many {
        let own = tokens_of(&sent, key << 32 | 1);
        assert!(own >= 10, "pipeline {key} of {many} sent {own}");
    }
}
