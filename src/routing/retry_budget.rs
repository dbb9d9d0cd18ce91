//! How many retries a service may still make.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How many retries a service may still spend: each request earns a fifth of one, each retry costs one, and a small
/// reserve grows back with time. What keeps retries from doubling the load on endpoints that are failing.
///
/// What has grown back is reckoned when a retry is asked for, so that services at rest cost nothing.
#[derive(Debug)]
pub struct RetryBudget {
    milli_tokens: AtomicI64,
    made_at: Instant,
    /// Up to when what grows back is in the budget, in milliseconds after it was made.
    refilled_ms: AtomicU64,
}

impl Default for RetryBudget {
    fn default() -> RetryBudget {
        RetryBudget {
            milli_tokens: AtomicI64::new(RESERVE),
            made_at: Instant::now(),
            refilled_ms: AtomicU64::new(0),
        }
    }
}

const COST: i64 = 1000;
const EARNED: i64 = 200;
const GROWN_IN_A_MS: i64 = 3;
const RESERVE: i64 = 20 * COST;
const SAVED_MOST: i64 = 500 * COST;

impl RetryBudget {
    /// A request was made.
    pub fn earn(&self) {
        if self.milli_tokens.load(Ordering::Relaxed) < SAVED_MOST {
            self.milli_tokens.fetch_add(EARNED, Ordering::Relaxed);
        }
    }

    /// Takes a retry out of the budget, if there is one.
    pub fn spend(&self) -> bool {
        self.spend_after(self.made_at.elapsed())
    }

    /// `age`: of the budget.
    fn spend_after(&self, age: Duration) -> bool {
        self.refill(u64::try_from(age.as_millis()).unwrap_or(u64::MAX));
        self.milli_tokens
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
                (left >= COST).then_some(left - COST)
            })
            .is_ok()
    }

    /// Grows back towards the reserve for the time since this was done last.
    fn refill(&self, now_ms: u64) {
        let since = self.refilled_ms.fetch_max(now_ms, Ordering::Relaxed);
        let passed = i64::try_from(now_ms.saturating_sub(since)).unwrap_or(i64::MAX);
        let grown = passed.saturating_mul(GROWN_IN_A_MS);
        let _ = self
            .milli_tokens
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
                (left < RESERVE).then(|| left.saturating_add(grown).min(RESERVE))
            });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many retries there are at this age.
    fn spend_all(budget: &RetryBudget, age: Duration) -> usize {
        std::iter::repeat_with(|| budget.spend_after(age))
            .take_while(|spent| *spent)
            .count()
    }

    #[test]
    fn a_fifth_of_the_requests_may_be_retried() {
        let budget = RetryBudget::default();
        let start = Duration::ZERO;
        assert_eq!(spend_all(&budget, start), 20);
        (0..5).for_each(|_| budget.earn());
        assert_eq!(spend_all(&budget, start), 1);
        (0..100_000).for_each(|_| budget.earn());
        assert_eq!(spend_all(&budget, start), 500);
    }

    #[test]
    fn the_reserve_grows_back_with_time() {
        let budget = RetryBudget::default();
        let at = Duration::from_millis;
        assert_eq!(spend_all(&budget, at(0)), 20);
        assert_eq!(spend_all(&budget, at(1_000)), 3);
        assert_eq!(spend_all(&budget, at(1_000)), 0);
        // Whoever read the clock earlier and comes later takes nothing back and is given nothing twice.
        assert_eq!(spend_all(&budget, at(500)), 0);
        assert_eq!(spend_all(&budget, at(1_334)), 1);
        assert_eq!(spend_all(&budget, at(1_000_000)), 20);
    }
}
