//! What the budgets promise, in virtual time.

mod common;

use std::time::Duration;

use common::*;
use limiter::{Budget, LATENESS, Limit, Snapshot, Wait, request_tokens};
use proptest::prelude::*;

fn some_target(most: u64) -> impl Strategy<Value = u64> {
    (0.0..(most as f64).ln()).prop_map(|power| power.exp() as u64)
}

fn some_thread() -> impl Strategy<Value = Thread> {
    (
        1_u64..4,
        any::<bool>(),
        0_u64..30_000,
        0_u64..300,
        0_u64..40,
    )
        .prop_map(|(key, urgent, tokens, round_trip, late)| Thread {
            who: limiter::Claimant {
                urgent,
                ..claimant(key)
            },
            tokens,
            round_trip: round_trip * MILLISECOND,
            late: late * MILLISECOND,
            from: 0,
            until: u64::MAX,
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn no_window_holds_more_than_its_part_of_the_budget_and_one_request(
        requests in prop::option::of(some_target(20_000)),
        tokens in some_target(50_000_000),
        threads in prop::collection::vec(some_thread(), 1..12),
        start in some_target(1 << 58),
        pause in prop::option::of((1_u64..60, 0.0..1.0_f64)),
        seed in any::<u64>(),
    ) {
        let limit = limit(at(start), &minute_budget(requests, Some(tokens)));
        let half = start + 70 * SECOND;
        let mut sent = run(&limit, &threads, start, half, seed);
        let mut resumed = half;
        if let Some((_, jitter)) = pause.filter(|(seconds, _)| *seconds < 20) {
            resumed += limit.rate_limited(at(half), None, jitter).as_nanos() as u64;
        } else if let Some((seconds, _)) = pause {
            let time = Duration::from_secs(seconds);
            resumed += limit.rate_limited(at(half), Some(time), 1.0).as_nanos() as u64;
        }
        let later = run(&limit, &threads, half, half + 70 * SECOND, seed);
        prop_assert!(later.iter().all(|sent| sent.at >= resumed), "sent while cooling down");
        sent.extend(later);
        for window in [0, SECOND, 7 * SECOND, MINUTE] {
            assert_windows(&sent, window, tokens, |sent| sent.tokens);
            if let Some(requests) = requests {
                assert_windows(&sent, window, requests.max(1), |_| 1);
            }
        }
    }

    #[test]
    fn requests_of_one_size_are_decided_as_governor_decides_them(
        target in some_target(1_000_000_000),
        steps in prop::collection::vec((0_u64..3, 0.0..1.0_f64), 1..200),
    ) {
        use governor::clock::FakeRelativeClock;
        use governor::{Quota, RateLimiter};

        let target = target.max(1);
        let period = 60_050 * MILLISECOND;
        let cost = period.div_ceil(target);
        let clock = FakeRelativeClock::default();
        let quota = Quota::with_period(Duration::from_nanos(cost)).unwrap();
        let governor = RateLimiter::direct_with_clock(quota, clock.clone());
        let mut now = SECOND;
        let limit = limit(at(now), &minute_budget(Some(target), None));
        let mut free = now;
        for (kind, part) in steps {
            // Too early, to the moment, or later than can be made good.
            let to = match kind {
                0 => now + (part * free.saturating_sub(now) as f64) as u64,
                1 => free.max(now),
                _ => free.max(now) + LATENESS.as_nanos() as u64 + 1 + (part * cost as f64) as u64,
            };
            clock.advance(Duration::from_nanos(to - now));
            now = to;
            let ours = limit.admit(at(now), claimant(1), 1_000);
            prop_assert_eq!(ours.is_ok(), governor.check().is_ok(), "at {}", now);
            if ours.is_ok() {
                free = now + cost;
            }
        }
    }

    #[test]
    fn a_refused_request_takes_nothing(
        requests in prop::option::of(1_u64..1_000),
        tokens in prop::option::of(1_u64..1_000_000),
        day in prop::option::of(1_u64..500_000),
        asks in prop::collection::vec((0_u64..2_000, 0_u64..50_000), 1..300),
    ) {
        let budget = Budget {
            tokens_per_day: day,
            requests_per_day: Some(60),
            ..minute_budget(requests, tokens)
        };
        let (asked, spared) = (limit(at(0), &budget), limit(at(0), &budget));
        let mut now = SECOND;
        for (step, tokens) in asks {
            now += step * MILLISECOND;
            let answer = asked.admit(at(now), claimant(1), tokens);
            if answer.is_ok() {
                prop_assert_eq!(spared.admit(at(now), claimant(1), tokens), Ok(()));
            } else {
                // That it was refused for the day is all that may be left of it.
                let seen = Snapshot { day_is_spent: false, ..asked.snapshot(at(now)) };
                prop_assert_eq!(seen, Snapshot { day_is_spent: false, ..spared.snapshot(at(now)) });
            }
        }
        for later in 0..200 {
            let now = at(now + later * 300 * MILLISECOND);
            prop_assert_eq!(asked.admit(now, claimant(1), 1), spared.admit(now, claimant(1), 1));
        }
    }

    #[test]
    fn corrections_add_up_to_what_was_really_used(
        target in 60_000_u64..60_000_000,
        sizes in prop::collection::vec((0_u64..20_000, 0_u64..20_000), 1..200),
    ) {
        let limit = limit(at(0), &minute_budget(None, Some(target)));
        let mut now = SECOND;
        let mut sent: Vec<Sent> = Vec::new();
        for (estimated, actual) in sizes {
            while let Err(wait) = limit.admit(at(now), claimant(1), estimated) {
                now += wait.duration().as_nanos() as u64;
            }
            limit.settle(at(now), estimated, actual);
            sent.push(Sent { at: now, who: claimant(1), tokens: actual, asked: now });
        }
        let total: u64 = sent.iter().map(|sent| sent.tokens).sum();
        prop_assert_eq!(limit.day(at(now)).1, total);
        let recent = sent.iter().filter(|sent| sent.at / SECOND + 60 > now / SECOND);
        prop_assert_eq!(limit.snapshot(at(now)).tokens_last_minute, recent.map(|sent| sent.tokens).sum::<u64>());
        // Settled at once, the correction is the request's own: the bound is that of what was used.
        for window in [SECOND, MINUTE] {
            assert_windows(&sent, window, target, |sent| sent.tokens);
        }
    }

    #[test]
    fn refunds_never_make_the_bucket_fuller_than_unused(
        refunds in prop::collection::vec(0_u64..u64::MAX, 1..20),
        idle in 0_u64..120,
    ) {
        let limit = limit(at(0), &minute_budget(Some(60), Some(60_000)));
        let mut now = SECOND;
        limit.admit(at(now), claimant(1), 50_000).unwrap();
        now += idle * SECOND;
        for refund in refunds {
            limit.settle(at(now), refund, 0);
        }
        prop_assert_eq!(limit.day(at(now)), (1, 0));
        let threads = Thread { round_trip: 0, late: 0, ..Thread::greedy(1, 1_000) }.times(3);
        let sent = run(&limit, &threads, now, now + MINUTE, 1);
        assert_windows(&sent, MINUTE, 60, |_| 1);
        for window in [0, SECOND, MINUTE] {
            assert_windows(&sent, window, 60_000, |sent| sent.tokens);
        }
    }

    #[test]
    fn a_changed_rate_rescales_the_debt(
        before in some_target(1_000_000_000),
        after in some_target(1_000_000_000),
        tokens in some_target(1_000_000_000),
        by_server in any::<bool>(),
    ) {
        let (before, after, tokens) = (before.max(1), after.max(1), tokens.max(1));
        let after = if by_server { after.min(before) } else { after };
        let start = 5 * SECOND;
        // A debt of more than 584 years is not told exactly.
        let owed = u128::from(tokens) * 60_300 * u128::from(MILLISECOND) / u128::from(before);
        prop_assume!(owed < u128::from(u64::MAX / 2));
        let limit = limit(at(start), &minute_budget(None, Some(before)));
        limit.admit(at(start), claimant(1), tokens).unwrap();
        if by_server {
            limit.server_limits(at(start), None, Some(after));
        } else {
            limit.configure(at(start), &minute_budget(None, Some(after)));
        }
        let debt = u128::from(tokens) * 60_300 * u128::from(MILLISECOND) / u128::from(after);
        // Rounding up by a nanosecond at the old rate is worth more of them at the new one.
        let rounding = u128::from(before / after) + 2;
        let (free, busy) = (debt + rounding, debt.saturating_sub(1));
        let ask = |wait: u128| limit.admit(at(start + wait as u64), claimant(1), 1);
        if let Ok(busy) = u64::try_from(busy) && busy > 0 && busy < u64::MAX / 4 {
            prop_assert!(ask(busy.into()).is_err());
            prop_assert!(ask(free).is_ok(), "{:?} after {debt}", ask(free));
        }
    }
}

/// What part of the dearer budget `threads` use in `time`.
fn used(budget: &Budget, threads: &[Thread], time: u64) -> f64 {
    let start = 1_000 * SECOND;
    let limit = limit(at(start), budget);
    let sent = run(&limit, threads, start, start + time, 7);
    let minutes = time as f64 / MINUTE as f64;
    let tokens: u64 = sent.iter().map(|sent| sent.tokens).sum();
    let part = |sent: u64, target: Option<u64>| {
        sent as f64 / (target.unwrap_or(u64::MAX) as f64 * minutes)
    };
    part(tokens, budget.tokens_per_minute).max(part(sent.len() as u64, budget.requests_per_minute))
}

#[test]
fn one_pipeline_uses_the_whole_budget_however_many_threads_it_has() {
    let cases = [
        (Some(4_000), Some(4_000_000), 1_000),
        (Some(4_000), Some(4_000_000), 17),
        (Some(500), Some(1_000_000_000), 300_000),
        (None, Some(1_000_000_000), 100_000),
        (Some(10_000), None, 5_000),
        (Some(60), Some(1_000_000), 16_667),
        (None, Some(40_000), 8_000),
    ];
    for (requests, tokens, size) in cases {
        for threads in [1, 2, 7, 50] {
            let thread = Thread {
                round_trip: 0,
                late: 2 * MILLISECOND,
                ..Thread::greedy(1, size)
            };
            let budget = minute_budget(requests, tokens);
            let part = used(&budget, &thread.times(threads), 5 * MINUTE);
            assert!(part >= 0.99, "{part} of {budget:?} by {threads} threads");
            assert!(part <= 1.05, "{part}");
        }
    }
}

proptest! {
    #[test]
    fn packed_requests_stay_within_the_target_in_every_minute(
        requests in prop::option::of(1_u64..5_000),
        tokens in 1_000_u64..10_000_000,
        threads in 1_usize..5,
        late in 0_u64..30,
    ) {
        let budget = minute_budget(requests, Some(tokens));
        let start = 1_000 * SECOND;
        let limit = limit(at(start), &budget);
        let thread = Thread {
            round_trip: 0,
            late: late * MILLISECOND,
            ..Thread::greedy(1, request_tokens(&budget.targets()))
        };
        let sent = run(&limit, &thread.times(threads), start, start + 3 * MINUTE, 7);
        for last in 0..sent.len() {
            // The way to the server may bring them this much closer together.
            let window = MINUTE + 25 * MILLISECOND;
            let within = || sent[..=last].iter().rev().take_while(|s| s.at + window > sent[last].at);
            prop_assert!(within().map(|s| s.tokens).sum::<u64>() <= tokens);
            prop_assert!(requests.is_none_or(|requests| within().count() as u64 <= requests));
        }
    }
}

#[test]
fn one_request_a_minute_is_one_request_a_minute() {
    let threads = Thread::greedy(1, 100).times(3);
    let part = used(&minute_budget(Some(1), None), &threads, 600 * MINUTE);
    assert!((0.995..=1.002).contains(&part), "{part}");
}

#[test]
fn several_pipelines_use_the_whole_budget_even_if_some_only_ask_now_and_then() {
    let budget = minute_budget(Some(4_000), Some(4_000_000));
    for (round_trip, others) in [
        (0, 1),
        (5, 1),
        (33, 1),
        (100, 1),
        (100, 3),
        (1_000, 10),
        (300, 40),
    ] {
        let mut threads = Thread::greedy(1, 1_000).times(30);
        for key in 2..4 {
            let now_and_then = Thread {
                round_trip: round_trip * MILLISECOND,
                late: 3 * MILLISECOND,
                ..Thread::greedy(key, 10 + 900 * (key - 2))
            };
            threads.extend(now_and_then.times(others));
        }
        let part = used(&budget, &threads, MINUTE);
        assert!(
            part >= 0.98,
            "{part} with {others} others that ask every {round_trip} ms"
        );
    }
}

#[test]
fn a_large_request_goes_as_soon_as_a_small_one() {
    let limit = limit(at(0), &minute_budget(None, Some(60_000)));
    limit.admit(at(SECOND), claimant(1), 1_000).unwrap();
    let free = SECOND + 1_005_000_000;
    assert!(limit.admit(at(free - 1_000), claimant(1), 1).is_err());
    assert_eq!(limit.admit(at(free), claimant(1), 1_000_000_000), Ok(()));
}

#[test]
fn waits_are_short_so_that_refunds_and_raised_limits_are_used_at_once() {
    let limit = limit(at(0), &minute_budget(None, Some(60_000)));
    limit.admit(at(SECOND), claimant(1), 60_000).unwrap();
    for who in [claimant(1), urgent(2)] {
        let wait = limit.admit(at(SECOND), who, 1);
        assert_eq!(wait, Err(Wait::Budget(Duration::from_millis(20))));
    }
    limit.settle(at(SECOND), 60_000, 0);
    let wait = limit.admit(at(SECOND), claimant(1), 1);
    assert_eq!(wait, Err(Wait::Turn(Duration::from_millis(20))));
}

#[test]
fn after_a_crash_the_bucket_is_empty() {
    let limit = limit(at(1 << 50), &minute_budget(Some(600), None));
    let sent = run(
        &limit,
        &Thread::greedy(1, 1).times(50),
        1 << 50,
        (1 << 50) + SECOND,
        3,
    );
    assert!(sent.len() <= 11, "{}", sent.len());
}

#[test]
fn a_limit_set_far_too_low_by_mistake_leaves_nobody_waiting_when_it_is_raised() {
    let limit = limit(at(0), &minute_budget(Some(1), Some(10)));
    limit.admit(at(SECOND), claimant(1), 100_000).unwrap();
    assert!(limit.admit(at(600 * MINUTE), claimant(1), 1).is_err());
    let now = 601 * MINUTE;
    limit.configure(at(now), &minute_budget(Some(4_000), Some(4_000_000)));
    assert_eq!(limit.admit(at(now + 2 * SECOND), claimant(1), 1), Ok(()));
}

#[test]
fn the_same_budget_again_changes_nothing() {
    let limit = limit(at(0), &minute_budget(Some(7), Some(1_001)));
    limit.admit(at(SECOND), claimant(1), 777).unwrap();
    let before = format!("{limit:?}");
    for second in 2..10 {
        limit.configure(at(second * SECOND), &minute_budget(Some(7), Some(1_001)));
        limit.server_limits(at(second * SECOND), None, Some(0));
    }
    assert_eq!(format!("{limit:?}"), before);
}

#[test]
fn a_server_lowers_the_target_and_lifts_it_up_to_ours_again() {
    let budget = Budget {
        utilization: 0.5,
        ..minute_budget(Some(1_000), None)
    };
    let limit = limit(at(0), &budget);
    let target = || limit.targets().requests_per_minute;
    limit.server_limits(at(1), Some(100), None);
    assert_eq!(
        (target(), limit.targets().tokens_per_minute),
        (Some(50), None)
    );
    limit.server_limits(at(2), Some(0), None);
    assert_eq!(target(), Some(50));
    limit.server_limits(at(3), Some(9_999), Some(600));
    assert_eq!(
        (target(), limit.targets().tokens_per_minute),
        (Some(500), Some(300))
    );
}

#[test]
fn a_days_budget_holds_until_midnight_in_utc() {
    let budget = Budget {
        requests_per_day: Some(10),
        tokens_per_day: Some(1_000),
        utilization: 0.8,
        ..minute_budget(None, None)
    };
    let limit = limit(at(0), &budget);
    let tonight = |before: u64| limiter::Now {
        monotonic: SECOND,
        unix: 20_001 * 86_400 - before,
    };
    for _ in 0..7 {
        assert_eq!(limit.admit(tonight(9), claimant(1), 100), Ok(()));
    }
    let wait = Err(Wait::Day(Duration::from_secs(9)));
    assert_eq!(limit.admit(tonight(9), claimant(1), 101), wait);
    assert_eq!(limit.day(tonight(9)), (7, 700));
    assert_eq!(limit.admit(tonight(9), claimant(1), 99), Ok(()));
    assert_eq!(
        limit.admit(tonight(9), claimant(1), 1),
        wait,
        "eight requests are 0.8 of ten"
    );
    assert_eq!(
        limit.admit(tonight(0), claimant(1), 5_000),
        Ok(()),
        "too large for any day, it goes alone"
    );
    assert_eq!(limit.day(tonight(0)), (1, 5_000));
    assert!(matches!(
        limit.admit(tonight(0), claimant(1), 1),
        Err(Wait::Day(_))
    ));
}

#[test]
fn whoever_waits_for_midnight_holds_up_nobody() {
    let budget = Budget {
        tokens_per_day: Some(1_000),
        ..minute_budget(Some(6_000), None)
    };
    let limit = limit(at(0), &budget);
    for i in 0..90 {
        let now = at(SECOND + i * 15 * MILLISECOND);
        assert_eq!(limit.admit(now, claimant(1), 10), Ok(()));
        assert!(matches!(
            limit.admit(now, urgent(2), 991),
            Err(Wait::Day(_))
        ));
    }
}

#[test]
fn a_days_totals_are_restored_on_the_same_day_only() {
    let budget = Budget {
        tokens_per_day: Some(1_000),
        ..minute_budget(None, None)
    };
    let limit = limit(at(0), &budget);
    limit.restore_day(at(1), at(0).day() - 1, 5, 900);
    limit.restore_day(at(1), at(0).day() + 1, 5, 900);
    assert_eq!(limit.day(at(1)), (0, 0));
    limit.restore_day(at(1), at(0).day(), 5, 900);
    limit.restore_day(at(1), at(0).day(), 1, 50);
    assert_eq!(limit.day(at(1)), (6, 950));
    assert!(limit.admit(at(1), claimant(1), 51).is_err());
    assert!(limit.admit(at(1), claimant(1), 50).is_ok());
}

#[test]
fn an_answer_that_comes_late_refunds_what_is_still_owed_and_no_more() {
    let limit = limit(at(0), &minute_budget(None, Some(60_000)));
    limit.admit(at(10 * SECOND), claimant(1), 10_000).unwrap();
    limit.settle(at(12 * SECOND), 10_000, 5_000);
    assert!(limit.admit(at(14 * SECOND), claimant(1), 1_000).is_err());
    assert_eq!(limit.admit(at(16 * SECOND), claimant(1), 1_000), Ok(()));
    // Nothing is owed any more: the refund is nobody's, and the next request pays in full.
    limit.settle(at(18 * SECOND), 10_000, 0);
    assert_eq!(limit.admit(at(18 * SECOND), claimant(1), 1_000), Ok(()));
    assert!(
        limit
            .admit(at(19 * SECOND - MILLISECOND), claimant(1), 1)
            .is_err()
    );
    // A refund greater than the debt leaves no credit, not even as much as makes good a late waking.
    let now = 50 * SECOND;
    limit.admit(at(now), claimant(1), 10).unwrap();
    limit.settle(at(now), 30, 0);
    limit.admit(at(now), claimant(1), 1_000).unwrap();
    let early = now + SECOND - 5 * MILLISECOND;
    assert!(limit.admit(at(early), claimant(1), 1).is_err());
}

#[test]
fn what_took_more_than_was_thought_is_owed() {
    let limit = limit(at(0), &minute_budget(None, Some(60_000)));
    limit.admit(at(10 * SECOND), claimant(1), 1_000).unwrap();
    limit.settle(at(30 * SECOND), 1_000, 11_000);
    assert!(
        limit
            .admit(at(40 * SECOND - MILLISECOND), claimant(1), 1)
            .is_err()
    );
    assert_eq!(limit.admit(at(41 * SECOND), claimant(1), 1), Ok(()));
    assert_eq!(limit.day(at(41 * SECOND)), (2, 11_001));
}

#[test]
fn a_cleared_limit_is_as_good_as_new() {
    let limit = limit(
        at(0),
        &Budget {
            requests_per_day: Some(7),
            tokens_per_day: Some(7),
            ..minute_budget(Some(1), Some(1))
        },
    );
    limit.server_limits(at(1), Some(1), Some(1));
    limit.admit(at(1), claimant(1), 5).unwrap();
    let _ = limit.admit(at(2), urgent(2), 1);
    limit.rate_limited(at(3), None, 0.5);
    limit.clear();
    assert_eq!(format!("{limit:?}"), format!("{:?}", Limit::default()));
}

#[test]
fn a_server_that_names_a_limit_too_small_to_send_anything_stops_nobody_for_good() {
    let budget = minute_budget(Some(6_000), Some(6_000_000));
    let limit = limit(at(0), &budget);
    limit.admit(at(SECOND), claimant(1), 1_000).unwrap();
    limit.server_limits(at(SECOND), None, Some(1));
    assert_eq!(limit.targets().tokens_per_minute, Some(1));
    assert!(limit.admit(at(60 * SECOND), claimant(1), 1_000).is_err());
    // What is not said again is forgotten, and so is what was said before somebody set the limit.
    let _ = limit.admit(at(302 * SECOND), claimant(1), 1_000);
    assert!(limit.admit(at(303 * SECOND), claimant(1), 1_000).is_ok());
    limit.server_limits(at(303 * SECOND), None, Some(1));
    limit.configure(
        at(303 * SECOND),
        &minute_budget(Some(6_000), Some(5_000_000)),
    );
    assert_eq!(limit.targets().tokens_per_minute, Some(5_000_000));
}

#[test]
fn a_day_is_spent_when_the_next_request_does_not_fit_and_requests_shrink_to_what_is_left() {
    let limit = limit(
        at(0),
        &Budget {
            tokens_per_day: Some(1_000),
            ..minute_budget(None, None)
        },
    );
    assert_eq!(limit.request_tokens(at(SECOND)), 1_000);
    limit.admit(at(SECOND), claimant(1), 900).unwrap();
    assert_eq!(limit.request_tokens(at(SECOND)), 100);
    assert!(!limit.snapshot(at(SECOND)).day_is_spent);
    assert!(limit.admit(at(SECOND), claimant(1), 101).is_err());
    assert!(limit.snapshot(at(SECOND)).day_is_spent);
    // A smaller one still goes.
    limit.admit(at(SECOND), claimant(1), 99).unwrap();
    assert!(!limit.snapshot(at(SECOND)).day_is_spent);
}
