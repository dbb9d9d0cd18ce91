//! What waits are made of: something of which there is only so much, and the queue of those who wait for it.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use super::waiters::Waiters;

/// Something of which there is only so much, and a bounded queue of those who wait for it.
#[derive(Debug, Default)]
pub struct Gate {
    taken: AtomicU32,
    /// As many as `waiters` has, to be read without its lock.
    waiting: AtomicU32,
    notify: Notify,
    /// std mutex: touched by those who wait, and nothing awaits under it.
    waiters: Mutex<Waiters>,
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
    /// (`GatePlace::yields`), else the newest of the party that has most, if that has more than `party` would; or there is none.
    ///
    /// `party`: a number for whose place it is; `None`: nobody's who has others.
    pub fn enter(&self, limit: u32, party: Option<u64>) -> Option<GatePlace<'_>> {
        let (n, lost) = self.with_waiters(|waiters| waiters.enter(limit as usize, party))?;
        Some(GatePlace { gate: self, n, lost })
    }

    fn with_waiters<T>(&self, act: impl FnOnce(&mut Waiters) -> T) -> T {
        let mut waiters: MutexGuard<'_, Waiters> = self.waiters.lock().unwrap_or_else(PoisonError::into_inner);
        let result = act(&mut waiters);
        self.waiting
            .store(u32::try_from(waiters.len()).unwrap_or(u32::MAX), Ordering::SeqCst);
        result
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
    /// Told when the place is another's.
    lost: Arc<Notify>,
}

impl GatePlace<'_> {
    /// Waits until something may have been freed. The caller looks again before and after: a wake-up is a hint.
    pub async fn freed(&self) {
        self.gate.notify.notified().await;
    }

    /// From now on the place is kept only until somebody needs it: whoever has it may have gone.
    pub fn yields(&self) {
        self.gate.with_waiters(|waiters| waiters.yields(self.n));
    }

    /// Waits until the place is another's.
    pub async fn lost(&self) {
        self.lost.notified().await;
    }
}

impl Drop for GatePlace<'_> {
    fn drop(&mut self) {
        // `None`: it is another's.
        let _ = self.gate.with_waiters(|waiters| waiters.leave(self.n));
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
        let first = gate.enter(1, None);
        assert!(first.is_some() && gate.enter(1, None).is_none());
        assert_eq!(gate.depth(), 1);
        drop(first);
        assert!(gate.enter(1, None).is_some());
        assert_eq!(gate.depth(), 0);
    }

    #[test]
    fn a_full_gate_takes_the_oldest_place_that_yields() {
        let gate = Gate::default();
        let [first, second, third] =
            [gate.enter(3, None), gate.enter(3, None), gate.enter(3, None)].map(Option::unwrap);
        assert!(gate.enter(3, None).is_none());
        third.yields();
        second.yields();
        second.yields();
        let is_lost = |place: &GatePlace<'_>| {
            let mut lost = std::pin::pin!(place.lost());
            let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
            lost.as_mut().poll(&mut cx).is_ready()
        };
        let fourth = gate.enter(3, None).unwrap();
        assert_eq!([&first, &second, &third].map(is_lost), [false, true, false]);
        let fifth = gate.enter(3, None).unwrap();
        assert!(is_lost(&third) && gate.enter(3, None).is_none() && gate.enter(0, None).is_none());
        assert_eq!(gate.depth(), 3);
        drop((second, third));
        assert_eq!(gate.depth(), 3, "others have them");
        drop((first, fourth, fifth));
        assert_eq!(gate.depth(), 0);
        let place = gate.enter(1, None).unwrap();
        place.yields();
        drop(place);
        assert_eq!(gate.depth(), 0);
        let _place = gate.enter(1, None).unwrap();
        assert!(gate.enter(1, None).is_none(), "nothing is left of it");
    }
}
