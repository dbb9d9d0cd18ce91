//! Where declared state is kept: a snapshot of everything, commits that name what they saw, and word of each change.
//!
//! The contract is made for one machine and for many: whoever writes says which snapshot it decided by, and is refused if
//! somebody else has changed what it writes since. Not here: what the objects mean (`control`), and who may ask (`api`).

mod acknowledged;
mod disk;
mod embedded;
mod health;
mod late;
mod record;
mod relock;
mod reserve;
mod seal;
mod snapshot;
mod writer;

use std::future::Future;
use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;

use tokio::sync::watch;

use crate::model::swarm::{Key, Write};

pub use acknowledged::Lost;
pub use embedded::Embedded;
pub use health::{Failing, StoreHealth};
pub use late::Late;
pub use snapshot::{Objects, Snapshot, Stored};

/// What is answered later.
pub type Later<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Put as `meta.version` or `spec_version`: the store writes the commit's own revision there.
pub const THIS_REVISION: u64 = u64::MAX;

/// The store's contract.
pub trait Store: Send + Sync {
    /// All that is committed, now. Costs nothing.
    fn snapshot(&self) -> Arc<Snapshot>;

    /// The revision, which only grows; each commit wakes whoever waits.
    fn changed(&self) -> watch::Receiver<u64>;

    /// Writes all of `writes` or nothing. When this answers, it is on disk and in the snapshot that it returns. Nothing is
    /// written when `writes` is empty.
    ///
    /// Errors: `Conflict` if an object that is written is not what it was in `base`; try again with a newer snapshot.
    fn commit<'a>(&'a self, base: &'a Snapshot, writes: Vec<Write>) -> Later<'a, Result<Arc<Snapshot>, CommitError>>;
}

/// Why a store does not open. Whatever it is, nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("{path} is in use by another process: expected one anynode for each data directory")]
    InUse { path: PathBuf },
    #[error(
        "{path} has format {found}: this version of anynode knows formats up to {format}; run the version that wrote it",
        format = record::FORMAT
    )]
    Newer { path: PathBuf, found: String },
    #[error("{path} is damaged ({reason}): put back a copy, or move its whole directory away to begin with nothing")]
    Damaged { path: PathBuf, reason: String },
    /// Whoever has the key may try again with it.
    #[error("{path} is locked: expected the key that \"docker swarm unlock-key\" has shown")]
    Locked { path: PathBuf },
    #[error("{path} is locked with another key")]
    WrongKey { path: PathBuf },
    #[error("{path}: the key that {} is encrypted with", disk::FILE)]
    Key {
        path: PathBuf,
        #[source]
        error: io::Error,
    },
    #[error("{path}")]
    Io {
        path: PathBuf,
        #[source]
        error: io::Error,
    },
}

/// Why a commit wrote nothing.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CommitError {
    #[error("{key} was changed meanwhile")]
    Conflict { key: Key },
    #[error("{} {name:?} exists already", key.kind.as_str())]
    NameTaken { key: Key, name: String },
    /// What was there before is still there. The store goes on by itself once it can be written.
    #[error("the store cannot be written: {reason}: nothing was changed; it goes on by itself once it can be written")]
    Io { reason: String },
    #[error("the store is closed")]
    Closed,
}

/// Decides by a snapshot and commits; decides anew as long as somebody else was faster. Errors: those of `decide`, and the
/// store's except conflicts.
pub async fn update<T, E: From<CommitError>>(
    store: &dyn Store,
    mut decide: impl FnMut(&Snapshot) -> Result<(Vec<Write>, T), E>,
) -> Result<(Arc<Snapshot>, T), E> {
    loop {
        let base = store.snapshot();
        let (writes, value) = decide(&base)?;
        if writes.is_empty() {
            return Ok((base, value));
        }
        match store.commit(&base, writes).await {
            Ok(snapshot) => return Ok((snapshot, value)),
            Err(CommitError::Conflict { key }) => tracing::debug!(%key, "somebody was faster"),
            Err(error) => return Err(error.into()),
        }
    }
}
