//! How the store fares, for whoever shows it: written by the store, read by `admin`. Not here: what is done about it.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::acknowledged::Lost;

/// Shared between a store and whoever shows it.
#[derive(Debug, Default)]
pub struct StoreHealth {
    failing: Mutex<Option<Failing>>,
    lost: Mutex<Vec<Lost>>,
    revision: AtomicU64,
    is_locked: AtomicBool,
    /// Commits that could not be written.
    pub write_failures_total: AtomicU64,
}

/// The store cannot be written at the moment.
#[derive(Debug, Clone)]
pub struct Failing {
    pub since: Instant,
    pub reason: String,
}

impl StoreHealth {
    /// `None`: it can be written.
    pub fn failing(&self) -> Option<Failing> {
        lock(&self.failing).clone()
    }

    /// Acknowledged commits that were gone when the store was opened, now or earlier, until somebody has seen to it.
    pub fn lost(&self) -> Vec<Lost> {
        lock(&self.lost).clone()
    }

    /// Of the last commit.
    pub fn revision(&self) -> u64 {
        self.revision.load(Relaxed)
    }

    /// It waits for the key that opens it; nothing is known of what it holds.
    pub fn is_locked(&self) -> bool {
        self.is_locked.load(Relaxed)
    }

    pub(super) fn set_locked(&self, is_locked: bool) {
        self.is_locked.store(is_locked, Relaxed);
    }

    pub(super) fn set_failing(&self, failing: Option<Failing>) {
        *lock(&self.failing) = failing;
    }

    pub(super) fn set_lost(&self, lost: Vec<Lost>) {
        *lock(&self.lost) = lost;
    }

    pub(super) fn set_revision(&self, revision: u64) {
        self.revision.store(revision, Relaxed);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
