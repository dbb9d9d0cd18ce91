//! What waits are made of: something of which there is only so much, and the queue of those who wait for it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

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

#[cfg(test)]
mod tests {
    use super::*;

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
