//! What all resources stand on: the store, what others know, and one decision at a time.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError};

use tokio::sync::Mutex;

use super::engine::Engine;
use super::outside::{Lock, Outside};
use super::wire::{ApiError, Caller};
use crate::model::swarm::{Id, Service, ServiceSpec, Write};
use crate::places::Places;
use crate::store::{self, Snapshot, Store};

/// The store and its surroundings, as resources see them.
pub(super) struct Backend {
    pub(super) store: Arc<dyn Store>,
    pub(super) outside: Arc<dyn Outside>,
    pub(super) engine: Engine,
    /// For each answer that has no end, and each connection that became another's.
    pub(super) streams: Arc<Places<Caller>>,
    /// Held while it is decided about a request that changes something: a decision may hang on other objects than it writes,
    /// such as whose a port is, and only those written are watched by the store.
    deciding: Mutex<()>,
    /// The labels of services that were removed in this run, while tasks of theirs still stop.
    gone: std::sync::Mutex<BTreeMap<Id, Arc<ServiceSpec>>>,
    /// Ends streams that would go on for ever.
    pub(super) stopping: tokio::sync::watch::Sender<bool>,
}

impl Backend {
    pub(super) fn new(store: Arc<dyn Store>, outside: Arc<dyn Outside>, streams: Arc<Places<Caller>>) -> Backend {
        Backend {
            store,
            engine: Engine::new(outside.clone(), streams.clone()),
            outside,
            streams,
            deciding: Mutex::new(()),
            gone: std::sync::Mutex::default(),
            stopping: tokio::sync::watch::Sender::new(false),
        }
    }

    /// The lock of the swarm, while nobody has unlocked it.
    pub(super) fn lock(&self) -> Option<&dyn Lock> {
        self.outside.lock().filter(|lock| lock.is_locked())
    }

    /// A service was removed; its tasks are still found by its labels.
    pub(super) fn is_gone(&self, service: &Service) {
        let snapshot = self.store.snapshot();
        let mut gone = self.gone.lock().unwrap_or_else(PoisonError::into_inner);
        gone.retain(|id, _| snapshot.tasks_of_service(id.as_str()).next().is_some());
        gone.insert(service.id.clone(), service.spec.clone());
    }

    /// What was declared of a removed service, as far as it is known.
    pub(super) fn gone(&self, service: &Id) -> Option<Arc<ServiceSpec>> {
        let gone = self.gone.lock().unwrap_or_else(PoisonError::into_inner);
        gone.get(service).cloned()
    }

    /// Decides by a snapshot and commits, one request at a time.
    pub(super) async fn update<T>(
        &self,
        decide: impl FnMut(&Snapshot) -> Result<(Vec<Write>, T), ApiError>,
    ) -> Result<(Arc<Snapshot>, T), ApiError> {
        let _turn = self.deciding.lock().await;
        store::update(&*self.store, decide).await
    }
}

/// The id of an object that is made now.
pub(super) fn new_id() -> Id {
    Id::from_bits(fastrand::u128(..))
}
