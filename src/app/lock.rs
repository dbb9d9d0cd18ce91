//! A swarm that is locked (`docker swarm init --autolock`): after a start its store opens with the key only, and until somebody
//! brings that, what was known last is served. So the last cluster is kept beside the store, in the clear, while there is a lock.
//! Not here: what is encrypted (`store`), and what the API answers meanwhile (`api`).

use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use super::chain;
use crate::api::{Later, Lock, UnlockError};
use crate::model::Cluster;
use crate::model::swarm::UnlockKey;
use crate::source::swarm::{ClusterKeeper, EngineInfo};
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

/// Keeps the last cluster as long as the store is locked by somebody, for a start without the key.
pub(super) async fn keep_cluster(
    keeper: ClusterKeeper,
    store: Arc<dyn Store>,
    mut clusters: watch::Receiver<Arc<Cluster>>,
    shutdown: impl Future<Output = ()>,
) {
    tokio::pin!(shutdown);
    let keeper = Arc::new(keeper);
    let mut is_failing = false;
    let mut is_over = false;
    clusters.mark_changed();
    while !is_over {
        is_over = tokio::select! {
            () = &mut shutdown => true,
            changed = clusters.changed() => changed.is_err(),
            () = tokio::time::sleep(WRITE_AGAIN), if is_failing => false,
        };
        if !is_over {
            is_over = tokio::select! {
                () = &mut shutdown => true,
                () = tokio::time::sleep(WRITE_AFTER) => false,
            };
        }
        let cluster = clusters.borrow_and_update().clone();
        let snapshot = store.snapshot();
        let node = snapshot.swarm().map(|swarm| swarm.node.to_string());
        let node = node.filter(|_| snapshot.unlock_key().is_some());
        let keeper = keeper.clone();
        // A disk may be slow, and what else happens here must not wait for it.
        let kept = tokio::task::spawn_blocking(move || match node {
            Some(node) => {
                let info = EngineInfo {
                    node,
                    is_manager: true,
                    ..EngineInfo::default()
                };
                keeper.write(&cluster, &info)
            }
            None => keeper.forget(),
        });
        let kept = kept.await.unwrap_or_else(|error| Err(io::Error::other(error)));
        match kept {
            Ok(()) => is_failing = false,
            Err(error) => {
                if !std::mem::replace(&mut is_failing, true) {
                    tracing::warn!(%error, "the last cluster, which is served before the swarm is unlocked, cannot be kept");
                }
            }
        }
    }
}

/// Said until somebody unlocks it.
pub(super) const WAITS: &str = "the swarm is locked: tasks and their traffic go on, and nothing can be declared before \"docker swarm \
                                unlock\"";
const WRITE_AFTER: Duration = Duration::from_millis(200);
const WRITE_AGAIN: Duration = Duration::from_secs(1);
