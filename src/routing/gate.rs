//! What waits are made of: something of which there is only so much, and the queue of those who wait for it.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use tokio::sync::futures::Notified;

use super::waiters::Waiters;

/// Something of which there is only so much, and a bounded queue of those who wait for it.
#[derive(Debug, Default)]
pub struct Gate {
    taken: AtomicU32,
    /// As many as `waiters` has, to be read without its lock.
    waiting: AtomicU32,
    /// How many of them leave some of what they are offered.
    n_choosy: AtomicU32,
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
        Some(GatePlace {
            gate: self,
            n,
            lost,
            is_choosy: false,
        })
    }

    fn with_waiters<T>(&self, act: impl FnOnce(&mut Waiters) -> T) -> T {
        let mut waiters: MutexGuard<'_, Waiters> = self.waiters.lock().unwrap_or_else(PoisonError::into_inner);
        let result = act(&mut waiters);
        self.waiting
            .store(u32::try_from(waiters.len()).unwrap_or(u32::MAX), Ordering::SeqCst);
        result
    }

    /// Something was freed: the first who waits looks again, or all do.
    pub fn freed(&self) {
        if self.waiting.load(Ordering::SeqCst) == 0 {
            return;
        }
        match self.n_choosy.load(Ordering::SeqCst) {
            0 => self.notify.notify_one(),
            _ => self.notify.notify_waiters(),
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
    is_choosy: bool,
}

impl GatePlace<'_> {
    /// Whoever has the place does not take everything that others would. While one such waits, all look whenever something is
    /// freed: the one that is told might leave it, and nobody else know.
    pub fn chooses(&mut self) {
        if !std::mem::replace(&mut self.is_choosy, true) {
            self.gate.n_choosy.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// Comes once something may have been freed since this was called and told to `enable`. The caller looks again before and
    /// after: a wake-up is a hint.
    pub fn freed(&self) -> Notified<'_> {
        self.gate.notify.notified()
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
        if self.is_choosy {
            self.gate.n_choosy.fetch_sub(1, Ordering::SeqCst);
        }
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

    #[test]
    fn what_one_who_chooses_leaves_another_takes() {
        let gate = Gate::default();
        let (mut choosy, mut other) = (gate.enter(9, None).unwrap(), gate.enter(9, None).unwrap());
        let woken = |place: &GatePlace<'_>, act: &dyn Fn()| {
            let mut freed = std::pin::pin!(place.freed());
            freed.as_mut().enable();
            act();
            let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
            freed.as_mut().poll(&mut cx).is_ready()
        };
        // The first who waits is told alone.
        let both = |first: &GatePlace<'_>, second: &GatePlace<'_>| {
            let mut first_is = false;
            let mut second_is = false;
            let mut freed = std::pin::pin!(first.freed());
            freed.as_mut().enable();
            second_is |= woken(second, &|| gate.freed());
            let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
            first_is |= freed.as_mut().poll(&mut cx).is_ready();
            (first_is, second_is)
        };
        assert_eq!(both(&choosy, &other), (true, false));
        choosy.chooses();
        choosy.chooses();
        assert_eq!(both(&choosy, &other), (true, true));
        other.chooses();
        drop(choosy);
        assert_eq!(gate.n_choosy.load(Ordering::SeqCst), 1);
        drop(other);
        assert_eq!(gate.n_choosy.load(Ordering::SeqCst), 0);
    }
}
