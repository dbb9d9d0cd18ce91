//! A swarm that is locked (`docker swarm init --autolock`): after a start its store opens with the key only, and until somebody
//! brings that, what was known last is served. So the last cluster is kept beside the store, in the clear, while there is a lock.
//! Not here: what is encrypted (`store`), and what the API answers meanwhile (`api`).

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::chain;
use crate::api::{Later, Lock, UnlockError};
use crate::model::swarm::UnlockKey;
use crate::source::swarm::EngineInfo;
use crate::store::{Embedded, Late, OpenError, Store, StoreHealth};

/// The lock of this node's store, until it is opened.
pub(super) struct OwnLock {
    /// The store's.
    dir: PathBuf,
    store: Arc<Late>,
    health: Arc<StoreHealth>,
    /// One at a time.
    opening: tokio::sync::Mutex<()>,
}

impl OwnLock {
    pub(super) fn new(dir: PathBuf, store: Arc<Late>, health: Arc<StoreHealth>) -> OwnLock {
        OwnLock {
            dir,
            store,
            health,
            opening: tokio::sync::Mutex::default(),
        }
    }

    /// Opens the store as `open` does, unless it is open.
    async fn open(
        &self,
        open: impl FnOnce(&Path, Arc<StoreHealth>) -> Result<Embedded, OpenError> + Send + 'static,
    ) -> Result<(), OpenError> {
        let _turn = self.opening.lock().await;
        if self.store.is_open() {
            return Ok(());
        }
        let (dir, health) = (self.dir.clone(), self.health.clone());
        let opened = tokio::task::spawn_blocking(move || open(&dir, health)).await;
        let failed = |error| OpenError::Io {
            path: self.dir.clone(),
            error: io::Error::other(error),
        };
        self.store.open(Arc::new(opened.map_err(failed)??));
        Ok(())
    }
}

impl Lock for OwnLock {
    fn is_locked(&self) -> bool {
        !self.store.is_open()
    }

    fn opened(&self) -> Later<'_, ()> {
        Box::pin(self.store.opened())
    }

    fn unlock<'a>(&'a self, key: &'a UnlockKey) -> Later<'a, Result<(), UnlockError>> {
        Box::pin(async move {
            let key = key.clone();
            let opened = self.open(move |dir, health| Embedded::open_with(dir, Some(&key), health));
            opened.await.map_err(|error| match error {
                OpenError::WrongKey { .. } => UnlockError::WrongKey,
                error => UnlockError::Failed(chain(&error)),
            })
        })
    }

    fn leave(&self) -> Later<'_, Result<(), String>> {
        Box::pin(async move {
            let opened = self.open(|dir, health| {
                Embedded::erase(dir).map_err(|error| OpenError::Io {
                    path: dir.to_owned(),
                    error,
                })?;
                Embedded::open_with(dir, None, health)
            });
            opened.await.map_err(|error| chain(&error))
        })
    }
}

/// Whose the last cluster is that is kept for a start without the key: nobody's where no key is asked for.
pub(super) fn whose(store: &dyn Store) -> Option<EngineInfo> {
    let snapshot = store.snapshot();
    snapshot.unlock_key()?;
    Some(EngineInfo {
        node: snapshot.swarm()?.node.to_string(),
        is_manager: true,
        ..EngineInfo::default()
    })
}

/// Said until somebody unlocks it.
pub(super) const WAITS: &str = "the swarm is locked: tasks and their traffic go on, and nothing can be declared before \"docker swarm \
                                unlock\"";
