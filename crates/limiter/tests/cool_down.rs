//! What follows a 429.

mod common;

use std::time::Duration;

use common::*;
use limiter::{LEAST_COOL_DOWN, Limit, MOST_COOL_DOWN, MOST_RETRY_AFTER, Wait};
use proptest::prelude::*;

fn ns(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap()
}

#[test]
fn everybody_waits_as_long_as_the_server_asks() {
    let limit = limit(at(0), &minute_budget(Some(6_000), None));
    let wait = Duration::from_secs(7);
    assert_eq!(limit.rate_limited(at(SECOND), Some(wait), 0.3), wait);
    for who in [claimant(1), urgent(2)] {
        assert_eq!(
            limit.admit(at(2 * SECOND), who, 1),
            Err(Wait::CoolingDown(Duration::from_secs(6)))
        );
    }
    let snapshot = limit.snapshot(at(2 * SECOND));
    assert_eq!(
        (snapshot.rate_limited, snapshot.cooling_down_for),
        (1, Some(Duration::from_secs(6)))
    );
    assert_eq!(limit.admit(at(8 * SECOND), urgent(2), 1), Ok(()));
    assert_eq!(limit.snapshot(at(8 * SECOND)).cooling_down_for, None);
}

#[test]
fn without_a_word_from_the_server_cool_downs_double_up_to_a_minute() {
    let limit = Limit::new();
    let mut now = SECOND;
    for seconds in [1, 2, 4, 8, 16, 32, 60, 60, 60] {
        let wait = limit.rate_limited(at(now), None, 1.0);
        assert_eq!(wait, Duration::from_secs(seconds));
        limit.succeeded(at(now + ns(wait) / 2));
        now += ns(wait);
    }
    limit.succeeded(at(now));
    assert_eq!(
        limit.rate_limited(at(now), None, 1.0),
        Duration::from_secs(1),
        "a success ends the streak"
    );
}

#[test]
fn requests_refused_together_are_one_step() {
    let limit = Limit::new();
    let first = limit.rate_limited(at(SECOND), None, 1.0);
    for i in 1..40 {
        let wait = limit.rate_limited(at(SECOND + i * MILLISECOND), None, 1.0);
        assert_eq!(wait, first - Duration::from_millis(i));
    }
    assert_eq!(
        limit.rate_limited(at(2 * SECOND), None, 1.0),
        Duration::from_secs(2)
    );
    assert_eq!(limit.snapshot(at(0)).rate_limited, 41);
}

#[test]
fn an_hour_is_the_longest_that_a_server_is_believed() {
    let limit = Limit::new();
    let day = Some(Duration::from_secs(86_400));
    assert_eq!(limit.rate_limited(at(0), day, 0.0), MOST_RETRY_AFTER);
    assert_eq!(
        Limit::new().rate_limited(at(0), Some(Duration::ZERO), 0.0),
        LEAST_COOL_DOWN
    );
    assert_eq!(
        Limit::new().rate_limited(at(0), Some(Duration::MAX), 0.0),
        MOST_RETRY_AFTER
    );
}

#[test]
fn a_raised_budget_does_not_shorten_a_cool_down() {
    let limit = limit(at(0), &minute_budget(Some(60), None));
    let wait = limit.rate_limited(at(SECOND), Some(Duration::from_secs(30)), 0.0);
    limit.configure(at(2 * SECOND), &minute_budget(Some(60_000), Some(10)));
    assert!(
        limit
            .admit(at(SECOND + ns(wait) - 1), claimant(1), 1)
            .is_err()
    );
    assert_eq!(limit.admit(at(SECOND + ns(wait)), claimant(1), 1), Ok(()));
}

#[test]
fn a_lowered_budget_does_not_lengthen_a_cool_down() {
    let limit = limit(at(0), &minute_budget(Some(60_000), None));
    limit.rate_limited(at(SECOND), Some(Duration::from_secs(30)), 0.0);
    limit.configure(at(2 * SECOND), &minute_budget(Some(60), None));
    assert_eq!(limit.admit(at(31 * SECOND), claimant(1), 1), Ok(()));
}

#[test]
fn debt_from_before_a_cool_down_is_paid_by_its_end() {
    let limit = limit(at(0), &minute_budget(None, Some(60_000)));
    limit.admit(at(SECOND), claimant(1), 50_000).unwrap();
    limit.rate_limited(at(2 * SECOND), Some(Duration::from_secs(10)), 0.0);
    assert!(limit.admit(at(13 * SECOND), claimant(1), 1).is_err());
    assert!(limit.admit(at(52 * SECOND), claimant(1), 1).is_ok());
}

#[test]
fn after_a_cool_down_there_is_no_burst() {
    let limit = limit(at(0), &minute_budget(Some(600), Some(60_000)));
    let threads = Thread::greedy(1, 100).times(40);
    run(&limit, &threads, 0, 10 * SECOND, 1);
    limit.rate_limited(at(10 * SECOND), Some(Duration::from_secs(20)), 0.0);
    let sent = run(&limit, &threads, 10 * SECOND, 90 * SECOND, 2);
    assert!(sent[0].at >= 30 * SECOND);
    for window in [0, SECOND, MINUTE] {
        assert_windows(&sent, window, 600, |_| 1);
    }
    assert!(sent.len() >= 590, "{}", sent.len());
}

proptest! {
    #[test]
    fn a_cool_down_is_jittered_within_bounds_and_never_shortened(
        refusals in prop::collection::vec(
            (0_u64..20_000, prop::option::of(0_u64..100_000), prop_oneof![0.0..1.0, any::<f64>()], any::<bool>()),
            1..60,
        ),
    ) {
        let limit = Limit::new();
        let (mut now, mut ends, mut asked) = (SECOND, 0, 0);
        for (step, retry_after, jitter, success) in refusals {
            now += step * MILLISECOND;
            if success {
                limit.succeeded(at(now));
            }
            let retry_after = retry_after.map(Duration::from_millis);
            asked = asked.max(now + ns(retry_after.unwrap_or(MOST_COOL_DOWN).max(MOST_COOL_DOWN)));
            let end = now + ns(limit.rate_limited(at(now), retry_after, jitter));
            prop_assert!(end >= ends && end <= asked);
            if end > ends {
                prop_assert!(end >= now + ns(LEAST_COOL_DOWN));
            }
            if let Some(time) = retry_after {
                prop_assert!(end >= now + ns(time));
            }
            ends = end;
        }
    }

    #[test]
    fn the_dice_choose_evenly_between_the_least_and_the_step(jitter in 0.0..1.0_f64, steps in 1_u32..6) {
        let limit = Limit::new();
        let mut now = SECOND;
        for _ in 1..steps {
            now += ns(limit.rate_limited(at(now), None, 1.0));
        }
        let step = Duration::from_secs(1 << (steps - 1));
        let wait = limit.rate_limited(at(now), None, jitter);
        let expected = step.mul_f64(jitter).max(LEAST_COOL_DOWN);
        prop_assert!(wait.abs_diff(expected) < Duration::from_micros(1), "{wait:?} {expected:?}");
    }
}
