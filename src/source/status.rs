//! How a source fares, for `/readyz`, metrics and `status`: written by the source, read by `admin`.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

/// Shared between one source and whoever shows it.
#[derive(Debug, Default)]
pub struct SourceStatus {
    /// std mutex: nothing awaits under it.
    now: Mutex<Now>,
    /// Why what is served cannot be kept for a restart.
    not_kept: Mutex<Option<String>>,
    /// Tables made, and attempts to make one that failed.
    pub applied_total: AtomicU64,
    pub rejected_total: AtomicU64,
}

#[derive(Debug, Default)]
struct Now {
    health: SourceHealth,
    /// There is something to serve, learned now or kept from before.
    is_known: bool,
    /// When what is served was last known to be so, while it is not known now.
    known_at: Option<SystemTime>,
}

/// Whether what is served is what the source says now.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum SourceHealth {
    /// Nothing was read yet.
    #[default]
    Starting,
    /// The table is what the source says.
    Current,
    /// The source does not say, or what it says cannot be used; `reason` says why, with line and key where it has them. What
    /// was known last is served, if anything was.
    Stale { reason: String },
}

impl SourceStatus {
    pub fn health(&self) -> SourceHealth {
        self.lock().health.clone()
    }

    pub fn is_current(&self) -> bool {
        self.lock().health == SourceHealth::Current
    }

    /// Whether anything was ever known of what is to be served, in this run or one before.
    pub fn is_known(&self) -> bool {
        self.lock().is_known
    }

    /// When what is served was last known to be what the source says. `None`: it is so now, or never was.
    pub fn known_at(&self) -> Option<SystemTime> {
        self.lock().known_at
    }

    /// How old what is served is: zero while it is current. `None`: nothing was ever known.
    pub fn age(&self) -> Option<Duration> {
        let now = self.lock();
        let age = |at: SystemTime| at.elapsed().unwrap_or_default();
        now.is_known.then(|| now.known_at.map_or(Duration::ZERO, age))
    }

    /// The table now is what the source says.
    pub fn applied(&self) {
        self.made();
        self.confirmed();
    }

    /// A table was made of what was given. Whether that is the latest is said apart.
    pub fn made(&self) {
        self.applied_total.fetch_add(1, Relaxed);
    }

    /// What is served is what the source says at this moment.
    pub fn confirmed(&self) {
        let mut now = self.lock();
        (now.health, now.is_known, now.known_at) = (SourceHealth::Current, true, None);
    }

    /// What was kept at `at`, in a run before this one, is served until the source says more.
    pub fn recalled(&self, at: SystemTime) {
        let mut now = self.lock();
        (now.is_known, now.known_at) = (true, Some(at));
    }

    /// What the source says cannot be used. Returns whether that is news, so that it is logged once.
    pub fn rejected(&self, reason: String) -> bool {
        self.rejected_total.fetch_add(1, Relaxed);
        self.stale(reason)
    }

    /// The source does not say anything. Returns whether that is news, so that it is logged once.
    pub fn stale(&self, reason: String) -> bool {
        let mut now = self.lock();
        if now.health == SourceHealth::Current {
            now.known_at = Some(SystemTime::now());
        }
        let stale = SourceHealth::Stale { reason };
        let is_news = now.health != stale;
        now.health = stale;
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

    fn lock(&self) -> MutexGuard<'_, Now> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_known_has_an_age_once_it_is_not_current() {
        let status = SourceStatus::default();
        assert_eq!(
            (status.is_known(), status.age(), status.known_at()),
            (false, None, None)
        );
        assert!(status.stale("nobody answers".to_owned()));
        assert!(!status.stale("nobody answers".to_owned()));
        assert_eq!((status.is_known(), status.age()), (false, None));
        let before = SystemTime::now() - Duration::from_secs(3600);
        status.recalled(before);
        assert_eq!(status.known_at(), Some(before));
        assert!(status.age().unwrap() >= Duration::from_secs(3600));
        status.stale("somebody answers strangely".to_owned());
        assert_eq!(status.known_at(), Some(before), "nothing newer was known meanwhile");
        status.confirmed();
        assert_eq!((status.is_known(), status.age()), (true, Some(Duration::ZERO)));
        status.rejected("line 3".to_owned());
        assert!(status.known_at().is_some_and(|at| at > before));
        assert_eq!(status.rejected_total.load(Relaxed), 1);
    }
}
