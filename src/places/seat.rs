//! What is known of one place while it is taken: since when it is silent, and whether that is its other end's fault.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::Instant;

use tokio_util::sync::CancellationToken;

/// What is known of a place while it is taken.
#[derive(Debug)]
pub(super) struct Seat {
    epoch: Instant,
    /// When something last moved, in nanoseconds since the epoch.
    moved_at: AtomicU64,
    /// What its other end waits for us to do.
    n_busy: AtomicU32,
    /// We wait for its other end to take what we have for it.
    is_stuck: AtomicBool,
    leave: CancellationToken,
}

impl Seat {
    pub(super) fn new(epoch: Instant) -> Arc<Seat> {
        let seat = Seat {
            epoch,
            moved_at: AtomicU64::new(0),
            n_busy: AtomicU32::new(0),
            is_stuck: AtomicBool::new(false),
            leave: CancellationToken::new(),
        };
        seat.moved();
        Arc::new(seat)
    }

    pub(super) fn busy(self: &Arc<Self>) -> Busy {
        self.n_busy.fetch_add(1, Relaxed);
        Busy(self.clone())
    }

    pub(super) fn tell_to_leave(&self) {
        self.leave.cancel();
    }

    pub(super) async fn told_to_leave(&self) {
        self.leave.cancelled().await;
    }

    pub(super) fn moved(&self) {
        let now = u64::try_from(self.epoch.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.moved_at.store(now, Relaxed);
        self.is_stuck.store(false, Relaxed);
    }

    pub(super) fn stuck(&self) {
        self.is_stuck.store(true, Relaxed);
    }

    pub(super) fn is_told_to_leave(&self) -> bool {
        self.leave.is_cancelled()
    }

    /// Who waits for us goes after all who keep us waiting.
    pub(super) fn rank(&self) -> (bool, u64) {
        let waits_for_us = self.n_busy.load(Relaxed) > 0 && !self.is_stuck.load(Relaxed);
        (waits_for_us, self.moved_at.load(Relaxed))
    }
}

/// The other end of a place waits for us.
#[derive(Debug)]
pub struct Busy(Arc<Seat>);

impl Drop for Busy {
    fn drop(&mut self) {
        // From here on it is its turn.
        self.0.moved();
        self.0.n_busy.fetch_sub(1, Relaxed);
    }
}
