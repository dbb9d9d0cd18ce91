//! What an endpoint is called within this program.

use std::num::NonZeroU64;
use std::sync::atomic::{AtomicU64, Ordering};

/// Names one endpoint for the life of this program; never used again for another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EndpointId(NonZeroU64);

impl EndpointId {
    /// One that no other endpoint has or had.
    pub(super) fn next() -> EndpointId {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        // It begins at one, and nobody lives long enough to see it wrap.
        EndpointId(NonZeroU64::new(NEXT.fetch_add(1, Ordering::Relaxed)).unwrap_or(NonZeroU64::MAX))
    }
}
