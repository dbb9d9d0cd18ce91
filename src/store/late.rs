//! A store that is opened later: until then it holds nothing and takes nothing. For a swarm that waits for its key.

use std::sync::{Arc, OnceLock};

use tokio::sync::watch;

use super::{CommitError, Later, Snapshot, Store};
use crate::model::swarm::Write;

/// The store, once there is one.
#[derive(Default)]
pub struct Late {
    store: OnceLock<Arc<dyn Store>>,
    nothing: Arc<Snapshot>,
    is_open: watch::Sender<bool>,
}

impl Late {
    /// From here on it is `store`, for ever: one that comes after another is dropped.
    pub fn open(&self, store: Arc<dyn Store>) {
        if self.store.set(store).is_ok() {
            self.is_open.send_replace(true);
        }
    }

    pub fn is_open(&self) -> bool {
        *self.is_open.borrow()
    }

    /// Ready once it is open.
    pub async fn opened(&self) {
        // An error cannot be: the sender is this one's.
        drop(self.is_open.subscribe().wait_for(|is_open| *is_open).await);
    }
}

impl Store for Late {
    fn snapshot(&self) -> Arc<Snapshot> {
        self.store
            .get()
            .map_or_else(|| self.nothing.clone(), |store| store.snapshot())
    }

    /// Who asks before it is open hears of nothing.
    fn changed(&self) -> watch::Receiver<u64> {
        match self.store.get() {
            Some(store) => store.changed(),
            None => watch::Sender::default().subscribe(),
        }
    }

    fn commit<'a>(&'a self, base: &'a Snapshot, writes: Vec<Write>) -> Later<'a, Result<Arc<Snapshot>, CommitError>> {
        match self.store.get() {
            Some(store) => store.commit(base, writes),
            None => Box::pin(async { Err(CommitError::Closed) }),
        }
    }
}
