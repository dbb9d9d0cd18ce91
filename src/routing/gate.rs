//! What waits are made of: something of which there is only so much, the queue of those who wait for it, and how many
//! retries there may be.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicI64, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

/// Something of which there is only so much, and a bounded queue of those who wait for it.
#[derive(Debug, Default)]
pub struct Gate {
    taken: AtomicU32,
    waiting: AtomicU32,
    notify: Notify,
    n_entered: AtomicU64,
    /// Places whose clients may have gone, by when they came: given to others once the queue is full.
    /// std mutex: touched by those who wait, and nothing awaits under it.
    yielding: Mutex<BTreeMap<u64, Arc<Notify>>>,
}

impl Gate {
    /// Takes one, unless `cap` are taken already (0: no cap). Whoever took gives back with `release`.
    pub fn try_take(&self, cap: u32) -> bool {
        let before = self.taken.fetch_add(1, Ordering::SeqCst);
        let is_taken = cap == 0 || before < cap;
        if !is_taken {
            self.taken.fetch_sub(1, Ordering::SeqCst);
        }
        is_taken
    }

    pub fn release(&self) {
        self.taken.fetch_sub(1, Ordering::SeqCst);
        self.freed();
    }

    /// How many wait.
    pub fn depth(&self) -> u32 {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Takes a place in the queue. Where `limit` already wait, it is that of the first whose client may have gone
    /// (`GatePlace::yields`), or there is none.
    pub fn enter(&self, limit: u32) -> Option<GatePlace<'_>> {
        let before = self.waiting.fetch_add(1, Ordering::SeqCst);
        let place = GatePlace {
            gate: self,
            n: self.n_entered.fetch_add(1, Ordering::Relaxed),
            lost: OnceLock::new(),
        };
        // Dropping the place gives it back.
        (before < limit || (limit > 0 && self.take_one())).then_some(place)
    }

    /// Takes the oldest place that yields from who has it.
    fn take_one(&self) -> bool {
        let Some((_, lost)) = self.lock_yielding().pop_first() else {
            return false;
        };
        self.waiting.fetch_sub(1, Ordering::SeqCst);
        lost.notify_one();
        true
    }

    fn lock_yielding(&self) -> MutexGuard<'_, BTreeMap<u64, Arc<Notify>>> {
        self.yielding.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Something was freed: the first who waits looks again.
    pub fn freed(&self) {
        if self.waiting.load(Ordering::SeqCst) > 0 {
            self.notify.notify_one();
        }
    }
}

/// A place in the queue of a `Gate`; given back when dropped.
#[derive(Debug)]
pub struct GatePlace<'a> {
    gate: &'a Gate,
    /// Those who came before have lower numbers.
    n: u64,
    /// Told when the place is another's; made when it first yields.
    lost: OnceLock<Arc<Notify>>,
}

impl GatePlace<'_> {
    /// Waits until something may have been freed. The caller looks again before and after: a wake-up is a hint.
    pub async fn freed(&self) {
        self.gate.notify.notified().await;
    }

    /// From now on the place is kept only until somebody needs it: whoever has it may have gone.
    pub fn yields(&self) {
        self.lost.get_or_init(|| {
            let lost: Arc<Notify> = Arc::default();
            self.gate.lock_yielding().insert(self.n, lost.clone());
            lost
        });
    }

    /// Waits until the place, which yields, is another's; for ever if it does not yield.
    pub async fn lost(&self) {
        match self.lost.get() {
            Some(lost) => lost.notified().await,
            None => std::future::pending().await,
        }
    }
}

impl Drop for GatePlace<'_> {
    fn drop(&mut self) {
        let is_lost = self.lost.get().is_some() && self.gate.lock_yielding().remove(&self.n).is_none();
        if !is_lost {
            self.gate.waiting.fetch_sub(1, Ordering::SeqCst);
        }
        // Whoever leaves may have swallowed a wake-up that the next one needs.
        self.gate.freed();
    }
}

/// How many retries a service may still spend: each request earns a fifth of one, each retry costs one, and a small
/// reserve grows back with time. What keeps retries from doubling the load on endpoints that are failing.
#[derive(Debug)]
pub struct RetryBudget {
    milli_tokens: AtomicI64,
}

impl Default for RetryBudget {
    fn default() -> RetryBudget {
        RetryBudget {
            milli_tokens: AtomicI64::new(RETRY_RESERVE),
        }
    }
}

const RETRY_COST: i64 = 1000;
const RETRY_EARNED: i64 = 200;
const RETRY_RESERVE: i64 = 20 * RETRY_COST;
const RETRY_SAVED_MOST: i64 = 500 * RETRY_COST;

impl RetryBudget {
    /// A request was made.
    pub fn earn(&self) {
        if self.milli_tokens.load(Ordering::Relaxed) < RETRY_SAVED_MOST {
            self.milli_tokens.fetch_add(RETRY_EARNED, Ordering::Relaxed);
        }
    }

    /// Takes a retry out of the budget, if there is one.
    pub fn spend(&self) -> bool {
        self.milli_tokens
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
                (left >= RETRY_COST).then_some(left - RETRY_COST)
            })
            .is_ok()
    }

    /// Tops the budget up to its reserve: called once a second, so that a quiet service may retry too.
    pub fn refill(&self, elapsed: Duration) {
        let earned = i64::try_from(elapsed.as_millis()).unwrap_or(i64::MAX).saturating_mul(3);
        let _ = self
            .milli_tokens
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
                (left < RETRY_RESERVE).then(|| left.saturating_add(earned).min(RETRY_RESERVE))
            });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fifth_of_the_requests_may_be_retried() {
        let budget = RetryBudget::default();
        let reserve = std::iter::repeat_with(|| budget.spend())
            .take_while(|spent| *spent)
            .count();
        assert_eq!(reserve, 20);
        (0..5).for_each(|_| budget.earn());
        assert!(budget.spend() && !budget.spend());
        budget.refill(Duration::from_secs(1));
        assert_eq!(
            std::iter::repeat_with(|| budget.spend())
                .take_while(|spent| *spent)
                .count(),
            3
        );
        (0..100_000).for_each(|_| budget.earn());
        assert_eq!(
            std::iter::repeat_with(|| budget.spend())
                .take_while(|spent| *spent)
                .count(),
            500
        );
    }

    #[test]
    fn a_gate_lets_only_so_many_wait() {
        let gate = Gate::default();
        let first = gate.enter(1);
        assert!(first.is_some() && gate.enter(1).is_none());
        assert_eq!(gate.depth(), 1);
        drop(first);
        assert!(gate.enter(1).is_some());
        assert_eq!(gate.depth(), 0);
    }

    #[test]
    fn a_full_gate_takes_the_oldest_place_that_yields() {
        let gate = Gate::default();
        let [first, second, third] = [gate.enter(3), gate.enter(3), gate.enter(3)].map(Option::unwrap);
        assert!(gate.enter(3).is_none());
        third.yields();
        second.yields();
        second.yields();
        let is_lost = |place: &GatePlace<'_>| {
            let mut lost = std::pin::pin!(place.lost());
            let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
            lost.as_mut().poll(&mut cx).is_ready()
        };
        let fourth = gate.enter(3).unwrap();
        assert_eq!([&first, &second, &third].map(is_lost), [false, true, false]);
        let fifth = gate.enter(3).unwrap();
        assert!(is_lost(&third) && gate.enter(3).is_none() && gate.enter(0).is_none());
        assert_eq!(gate.depth(), 3);
        drop((second, third));
        assert_eq!(gate.depth(), 3, "others have them");
        drop((first, fourth, fifth));
        assert_eq!(gate.depth(), 0);
        let place = gate.enter(1).unwrap();
        place.yields();
        drop(place);
        assert_eq!(gate.depth(), 0);
        let _place = gate.enter(1).unwrap();
        assert!(gate.enter(1).is_none(), "nothing is left of it");
    }
}
