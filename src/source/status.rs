//! How a source fares, for `/readyz`, metrics and `status`: written by the source, read by `admin`.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Shared between one source and whoever shows it.
#[derive(Debug, Default)]
pub struct SourceStatus {
    health: Mutex<SourceHealth>,
    /// Why what is served cannot be kept for a restart.
    not_kept: Mutex<Option<String>>,
    /// Tables made, and attempts to make one that failed.
    pub applied_total: AtomicU64,
    pub rejected_total: AtomicU64,
}

/// Whether what is served is what the source says now.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum SourceHealth {
    /// Nothing was read yet.
    #[default]
    Starting,
    /// The table is what the source says.
    Current,
    /// The last good table is served; `reason` says what is wrong with the source, with line and key where it has them.
    Stale { reason: String },
}

impl SourceStatus {
    pub fn health(&self) -> SourceHealth {
        self.lock().clone()
    }

    pub fn is_current(&self) -> bool {
        *self.lock() == SourceHealth::Current
    }

    /// The table now is what the source says.
    pub fn applied(&self) {
        self.applied_total.fetch_add(1, Relaxed);
        *self.lock() = SourceHealth::Current;
    }

    /// The source cannot be used as it is. Returns whether that is news, so that it is logged once.
    pub fn rejected(&self, reason: String) -> bool {
        self.rejected_total.fetch_add(1, Relaxed);
        let stale = SourceHealth::Stale { reason };
        let mut health = self.lock();
        let is_news = *health != stale;
        *health = stale;
        is_news
    }

    /// Why what is served cannot be written for a restart; `None`: it can.
    pub fn not_kept(&self) -> Option<String> {
        self.not_kept.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Returns whether that is news, so that it is logged once.
    pub fn set_not_kept(&self, reason: Option<String>) -> bool {
        let mut not_kept = self.not_kept.lock().unwrap_or_else(PoisonError::into_inner);
        let is_news = not_kept.is_some() != reason.is_some();
        *not_kept = reason;
        is_news
    }

    fn lock(&self) -> MutexGuard<'_, SourceHealth> {
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
