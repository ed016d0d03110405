//! One named limit: all its budgets, its cool-down, and the shares of those who use it.

use std::num::NonZeroU64;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use crate::ORDER;
use crate::budget::{Budget, Setting, Targets, request_tokens, some};
use crate::clock::{Now, nanoseconds, wait_until_midnight};
use crate::cool_down::CoolDown;
use crate::count::{DayTotal, MinuteTotal};
use crate::rate::{LATENESS_NS, REQUEST_WINDOW_NS, Rate, TOKEN_WINDOW_NS};
use crate::shares::{LONGEST_WAIT, Share, Shares};

const NS_A_SECOND: u64 = 1_000_000_000;

/// Who asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Claimant {
    /// A pipeline, unique over all databases that share the limit: the database's oid and the pipeline's id.
    pub key: NonZeroU64,
    /// Whether a person waits for this request. Such go before all others.
    pub urgent: bool,
}

/// Why a request may not go now, and when to ask again. The caller sleeps for the time, or less, and asks again;
/// whoever does not come back delays nobody.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    /// A minute budget is in debt. At most [`LONGEST_WAIT`](crate::LONGEST_WAIT), even if the debt stands longer.
    Budget(Duration),
    /// The server has refused a request; the time until all may send again.
    CoolingDown(Duration),
    /// A day's budget does not hold this request; the time until midnight in UTC. A smaller one may fit, a correction
    /// or a raised limit may make room earlier.
    Day(Duration),
    /// Others wait who were served less, or who are urgent. At most [`LONGEST_WAIT`](crate::LONGEST_WAIT).
    Turn(Duration),
}

impl Wait {
    /// How long to wait at most before asking again.
    #[must_use]
    pub fn duration(self) -> Duration {
        match self {
            Self::Budget(time) | Self::CoolingDown(time) | Self::Day(time) | Self::Turn(time) => {
                time
            }
        }
    }
}

/// What a limit did and holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Snapshot {
    /// Requests admitted in the last 60 s, to the second.
    pub requests_last_minute: u64,
    /// Tokens admitted in the last 60 s, corrected by what the answers said.
    pub tokens_last_minute: u64,
    /// Requests admitted today (UTC).
    pub requests_today: u64,
    /// Tokens admitted today (UTC), corrected by what the answers said.
    pub tokens_today: u64,
    /// Requests that the server refused for their rate, since the limit was first used.
    pub rate_limited: u64,
    /// Whether the last request that was asked for found no room in what is left of today's budgets.
    pub day_is_spent: bool,
    /// How long nobody may send; `None` when they may.
    pub cooling_down_for: Option<Duration>,
    /// What may be sent.
    pub targets: Targets,
}

/// A limit, shared by all processes that see its memory. All-zero bytes are one without budgets.
#[repr(C)]
#[derive(Debug)]
pub struct Limit {
    requests: Rate,
    tokens: Rate,
    requests_a_day: AtomicU64,
    tokens_a_day: AtomicU64,
    requests_today: DayTotal,
    tokens_today: DayTotal,
    /// The day on which a request found no room in its budgets, and one more; 0 for none.
    spent_on: AtomicU64,
    cool_down: CoolDown,
    requests_last_minute: MinuteTotal,
    tokens_last_minute: MinuteTotal,
    shares: Shares,
}

impl Default for Limit {
    fn default() -> Self {
        Self::new()
    }
}

impl Limit {
    /// A limit without budgets.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            requests: Rate::new(),
            tokens: Rate::new(),
            requests_a_day: AtomicU64::new(0),
            tokens_a_day: AtomicU64::new(0),
            requests_today: DayTotal::new(),
            tokens_today: DayTotal::new(),
            spent_on: AtomicU64::new(0),
            cool_down: CoolDown::new(),
            requests_last_minute: MinuteTotal::new(),
            tokens_last_minute: MinuteTotal::new(),
            shares: Shares::new(),
        }
    }

    /// Makes it as good as new, for the use under another name. Whoever still uses it meanwhile may leave traces.
    pub fn clear(&self) {
        self.requests.clear();
        self.tokens.clear();
        for setting in [&self.requests_a_day, &self.tokens_a_day] {
            setting.store(0, ORDER);
        }
        self.requests_today.clear();
        self.tokens_today.clear();
        self.spent_on.store(0, ORDER);
        self.cool_down.clear();
        self.requests_last_minute.clear();
        self.tokens_last_minute.clear();
        self.shares.clear();
    }

    /// Sets the budgets, with effect at once. Debt that stands is told in the new rate's time, so that a limit that was
    /// set far too low by mistake and then raised leaves nobody waiting for hours. The same budget again changes
    /// nothing. One caller at a time.
    pub fn configure(&self, now: Now, budget: &Budget) {
        let setting = |limit| Setting::new(limit, budget.utilization);
        self.requests.configure(setting(budget.requests_per_minute));
        self.tokens.configure(setting(budget.tokens_per_minute));
        self.requests_a_day
            .store(setting(budget.requests_per_day).0, ORDER);
        self.tokens_a_day
            .store(setting(budget.tokens_per_day).0, ORDER);
        self.spent_on.store(0, ORDER);
        self.retarget(now.monotonic);
    }

    /// What the server says of its own limits, per minute. Lowers what may be sent, to the utilization of it, and a
    /// higher statement raises that again up to ours. `None` and 0 say nothing: what it said before holds, for five
    /// minutes or until our own figures change.
    pub fn server_limits(
        &self,
        now: Now,
        requests_per_minute: Option<u64>,
        tokens_per_minute: Option<u64>,
    ) {
        self.requests.told(now.monotonic, requests_per_minute);
        self.tokens.told(now.monotonic, tokens_per_minute);
        self.retarget(now.monotonic);
    }

    /// Asks to send a request of `tokens` tokens. Takes from all budgets, or from none and says what to wait for.
    ///
    /// Pipelines that wait get equal shares, by the dearer of requests and tokens, whatever the number and size of
    /// their requests; one waiting thread per pipeline and process is enough to get them.
    ///
    /// # Errors
    /// [`Wait`]: why not now, and when to ask again.
    pub fn admit(&self, now: Now, who: Claimant, tokens: u64) -> Result<(), Wait> {
        let at = now.monotonic;
        self.retarget(at);
        // Before anything is noted: whoever waits for midnight holds up nobody who has a smaller request.
        let day = now.day();
        if !self.requests_today.allows(day, 1, self.day_targets().0)
            || !self.tokens_today.allows(day, tokens, self.day_targets().1)
        {
            self.spent_on.store(u64::from(day) + 1, ORDER);
            return Err(Wait::Day(wait_until_midnight(now.unix)));
        }
        let ready_at = self.requests.ready_at().max(self.tokens.ready_at());
        let lay_idle = at > ready_at.saturating_add(LATENESS_NS);
        let share = self.shares.enter(who.key, at, lay_idle);
        let wait = self
            .refusal(at, ready_at, share, who.urgent)
            .map_or_else(|| self.take(now, share, who.urgent, tokens), Err);
        if let Err(wait) = wait
            && !matches!(wait, Wait::Day(_))
        {
            let retry = at.saturating_add(nanoseconds(wait.duration()));
            self.shares.wait(share, who.urgent, retry);
        }
        wait
    }

    /// What stands in the way of a request of any size.
    fn refusal(&self, at: u64, ready_at: u64, share: Option<&Share>, urgent: bool) -> Option<Wait> {
        let cool_down = self.cool_down.until().saturating_sub(at);
        if cool_down > 0 {
            return Some(Wait::CoolingDown(Duration::from_nanos(cool_down)));
        }
        if ready_at > at {
            return Some(budget_wait(at, ready_at));
        }
        let turn = self.shares.turn(share, urgent, at)?;
        Some(Wait::Turn(Duration::from_nanos(turn)))
    }

    /// Takes from each budget, and gives all back when one refuses: another process was faster.
    fn take(&self, now: Now, share: Option<&Share>, urgent: bool, tokens: u64) -> Result<(), Wait> {
        let at = now.monotonic;
        let day = now.day();
        let take = |rate: &Rate, cost: Option<u64>| {
            cost.map(|cost| rate.take(at, cost))
                .transpose()
                .map_err(|ready_at| budget_wait(at, ready_at))
        };
        let give_back = |rate: &Rate, taken: Option<_>| {
            if let Some(taken) = taken {
                rate.give_back(taken);
            }
        };
        let tokens_cost = self.tokens.cost(tokens, TOKEN_WINDOW_NS);
        let request_cost = self.requests.cost(1, REQUEST_WINDOW_NS);
        let tokens_taken = take(&self.tokens, tokens_cost)?;
        let request_taken = take(&self.requests, request_cost)
            .inspect_err(|_| give_back(&self.tokens, tokens_taken))?;
        let (requests_a_day, tokens_a_day) = self.day_targets();
        let request_counted = self.requests_today.take(day, 1, requests_a_day);
        if !request_counted || !self.tokens_today.take(day, tokens, tokens_a_day) {
            if request_counted {
                self.requests_today.subtract(day, 1);
            }
            give_back(&self.requests, request_taken);
            give_back(&self.tokens, tokens_taken);
            return Err(Wait::Day(wait_until_midnight(now.unix)));
        }
        if self.spent_on.load(ORDER) != 0 {
            self.spent_on.store(0, ORDER);
        }
        let cost = tokens_cost.max(request_cost).unwrap_or(0);
        self.shares.admitted(share, urgent, at, cost);
        self.requests_last_minute.add(at / NS_A_SECOND, 1);
        self.tokens_last_minute.add(at / NS_A_SECOND, tokens);
        Ok(())
    }

    /// Corrects the tokens of a request when its answer says how many they were: more become further debt, fewer are
    /// refunded. Budgets never hold more than if the request had not been sent.
    pub fn settle(&self, now: Now, estimated: u64, actual: u64) {
        let at = now.monotonic;
        self.retarget(at);
        let off = estimated.abs_diff(actual);
        let cost = self.tokens.cost(off, TOKEN_WINDOW_NS);
        if actual > estimated {
            if let Some(cost) = cost {
                self.tokens.charge(at, cost);
            }
            self.tokens_today.add(now.day(), off);
            self.tokens_last_minute.add(at / NS_A_SECOND, off);
        } else if actual < estimated {
            if let Some(cost) = cost {
                self.tokens.refund(at.max(self.cool_down.until()), cost);
            }
            self.tokens_today.subtract(now.day(), off);
            self.tokens_last_minute.subtract(at / NS_A_SECOND, off);
        }
    }

    /// Notes that the server refused a request for its rate (429): everybody on this limit cools down. Returns how long
    /// from now.
    ///
    /// `retry_after`: what the server asked for; between [`LEAST_COOL_DOWN`](crate::LEAST_COOL_DOWN) and
    /// [`MOST_RETRY_AFTER`](crate::MOST_RETRY_AFTER) of it are kept. Without it the cool-down is `jitter` (drawn evenly
    /// from 0 to 1) times 1 s, doubled with each further step of a streak up to
    /// [`MOST_COOL_DOWN`](crate::MOST_COOL_DOWN). Refusals during a cool-down, or within a second of the one that began
    /// it, are the same step. A cool-down that stands is never shortened. After it, requests go at the budget's pace;
    /// a limit without minute budgets has none.
    pub fn rate_limited(&self, now: Now, retry_after: Option<Duration>, jitter: f64) -> Duration {
        let at = now.monotonic;
        self.retarget(at);
        let until = self.cool_down.refused(at, retry_after, jitter);
        // Also for those who are being admitted at this moment and have seen no cool-down yet.
        self.requests.not_before(until);
        self.tokens.not_before(until);
        Duration::from_nanos(until.saturating_sub(at))
    }

    /// Notes that the server took a request: a streak of refusals has ended. Without effect during a cool-down.
    pub fn succeeded(&self, now: Now) {
        self.cool_down.succeeded(now.monotonic);
    }

    /// Ends a cool-down before its time, because somebody knows better than the server.
    pub fn end_cool_down(&self, now: Now) {
        if self.cool_down.until() > now.monotonic {
            self.cool_down.end();
            self.requests.not_after(now.monotonic);
            self.tokens.not_after(now.monotonic);
        }
    }

    /// Adds what was stored of a day before a restart, if `day` (since 1970, UTC) is today.
    pub fn restore_day(&self, now: Now, day: u32, requests: u64, tokens: u64) {
        if day == now.day() {
            self.requests_today.add(day, requests);
            self.tokens_today.add(day, tokens);
        }
    }

    /// Requests and tokens admitted today (UTC), the tokens as corrected.
    #[must_use]
    pub fn day(&self, now: Now) -> (u64, u64) {
        let day = now.day();
        (self.requests_today.get(day), self.tokens_today.get(day))
    }

    /// What may be sent, after utilization and what the server said.
    #[must_use]
    pub fn targets(&self) -> Targets {
        let (requests_a_day, tokens_a_day) = self.day_targets();
        Targets {
            requests_per_minute: some(self.requests.wanted()),
            tokens_per_minute: some(self.tokens.wanted()),
            requests_per_day: some(requests_a_day),
            tokens_per_day: some(tokens_a_day),
        }
    }

    /// How many tokens a packed request should hold at most: [`request_tokens`] of its targets, and no more than is left of
    /// the day's; at least 1.
    #[must_use]
    pub fn request_tokens(&self, now: Now) -> u64 {
        let size = request_tokens(&self.targets());
        match self.day_targets().1 {
            0 => size,
            day => size.min(day.saturating_sub(self.day(now).1)).max(1),
        }
    }

    /// What it did and holds.
    #[must_use]
    pub fn snapshot(&self, now: Now) -> Snapshot {
        let second = now.monotonic / NS_A_SECOND;
        let (requests_today, tokens_today) = self.day(now);
        let cool_down = self.cool_down.until().saturating_sub(now.monotonic);
        Snapshot {
            requests_last_minute: self.requests_last_minute.get(second),
            tokens_last_minute: self.tokens_last_minute.get(second),
            requests_today,
            tokens_today,
            rate_limited: self.cool_down.refusals(),
            day_is_spent: self.spent_on.load(ORDER) == u64::from(now.day()) + 1,
            cooling_down_for: (cool_down > 0).then(|| Duration::from_nanos(cool_down)),
            targets: self.targets(),
        }
    }

    fn day_targets(&self) -> (u64, u64) {
        let target = |setting: &AtomicU64| Setting(setting.load(ORDER)).target(0);
        (target(&self.requests_a_day), target(&self.tokens_a_day))
    }

    fn retarget(&self, at: u64) {
        self.requests.forget(at);
        self.tokens.forget(at);
        let from = at.max(self.cool_down.until());
        let requests = self.requests.retarget(from);
        let tokens = self.tokens.retarget(from);
        if requests || tokens {
            self.shares.level();
        }
    }
}

fn budget_wait(at: u64, ready_at: u64) -> Wait {
    Wait::Budget(Duration::from_nanos(ready_at.saturating_sub(at)).min(LONGEST_WAIT))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Skips what [`Limit::admit`] asks first, as for a caller whom another process overtakes after that.
    fn overtaken(budget: &Budget, tokens: u64) {
        let now = Now {
            monotonic: NS_A_SECOND,
            unix: 1,
        };
        let limit = Limit::new();
        limit.configure(now, budget);
        assert_eq!(limit.take(now, None, false, 0), Ok(()));
        let before = format!("{limit:?}");
        let refused = limit.take(now, None, false, tokens);
        assert!(refused.is_err());
        assert_eq!(format!("{limit:?}"), before);
    }

    #[test]
    fn whoever_is_overtaken_gives_back_all_that_was_taken() {
        let budget = Budget {
            requests_per_minute: None,
            tokens_per_minute: Some(600),
            requests_per_day: None,
            tokens_per_day: None,
            utilization: 1.0,
        };
        let requests = Budget {
            requests_per_minute: Some(60),
            ..budget
        };
        overtaken(&requests, 100);
        let requests_a_day = Budget {
            requests_per_day: Some(1),
            ..budget
        };
        overtaken(&requests_a_day, 100);
    }

    #[test]
    fn whoever_is_overtaken_on_the_days_tokens_is_not_counted_as_a_request() {
        let now = Now {
            monotonic: NS_A_SECOND,
            unix: 1,
        };
        let limit = Limit::new();
        limit.configure(
            now,
            &Budget {
                requests_per_minute: None,
                tokens_per_minute: None,
                requests_per_day: None,
                tokens_per_day: Some(10),
                utilization: 1.0,
            },
        );
        assert_eq!(limit.take(now, None, false, 9), Ok(()));
        assert!(limit.take(now, None, false, 2).is_err());
        assert_eq!(limit.day(now), (1, 9));
    }
}
