//! Containers that are no tasks, on networks of the swarm: joins what the engine says of them to the store, which has an
//! address for each as long as it runs, and to the table. Not here: their sandboxes (`agent`), and what may be asked (`api`).

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::future::Future;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::StreamExt;
use tokio::sync::{Notify, OwnedMutexGuard, watch};

use crate::agent::containers::{Attached, AttachedState, Containers};
use crate::api::{Attaching, Later, Turn};
use crate::model::Reach;
use crate::model::swarm::{AttachedContainer, Id, Key, Kind, Meta, Object, TaskAddress, Time, Write};
use crate::store::{CommitError, Snapshot, Store, THIS_REVISION, update};

/// Where they are reached, by their ids.
pub(super) type Reaches = BTreeMap<Id, Reach>;

/// All of this node's.
pub(super) struct AttachedContainers {
    store: Arc<dyn Store>,
    engine: Containers,
    /// Held while something is done about one. std mutex: held for moments.
    turns: Mutex<HashMap<Id, Arc<tokio::sync::Mutex<()>>>>,
    /// The pids of those whose networks this run has made ready. std mutex: held for moments.
    tied: Mutex<HashMap<Id, i64>>,
    /// Why they were not started again, which is said once. std mutex: held for moments.
    not_started: Mutex<HashMap<Id, String>>,
    reaches: watch::Sender<Arc<Reaches>>,
    /// Held by who looks at all of them.
    looking: tokio::sync::Mutex<()>,
    changed: Arc<Notify>,
}

impl AttachedContainers {
    pub(super) fn new(store: Arc<dyn Store>, engine: Containers) -> AttachedContainers {
        AttachedContainers {
            store,
            engine,
            turns: Mutex::default(),
            tied: Mutex::default(),
            not_started: Mutex::default(),
            reaches: watch::Sender::default(),
            looking: tokio::sync::Mutex::default(),
            changed: Arc::default(),
        }
    }

    pub(super) fn reaches(&self) -> watch::Receiver<Arc<Reaches>> {
        self.reaches.subscribe()
    }

    /// Has those that run go on as they are while the store is locked. Never ends.
    pub(super) async fn watch_over(&self) {
        while let Err(error) = self.open_running().await {
            tracing::debug!(%error, "the engine does not say what containers there are");
            tokio::time::sleep(TRY_AGAIN).await;
        }
        std::future::pending().await
    }

    async fn open_running(&self) -> io::Result<()> {
        for seen in self.engine.attached().await? {
            let is_running = matches!(seen.state, AttachedState::Running { pid } if pid > 0);
            if is_running && let Ok(Some(reach)) = self.engine.open_attached(&seen.spec.id).await {
                self.reached(&seen.spec.id, reach);
                self.engine.tie_attached(&seen).await;
            }
        }
        Ok(())
    }

    /// Keeps what there is of them as they are, until `shutdown`. They live on.
    pub(super) async fn run(&self, shutdown: impl Future<Output = ()>) {
        let follow = async {
            loop {
                let mut events = std::pin::pin!(self.engine.attached_events());
                loop {
                    // It is listened before it is looked.
                    let mut next = events.next();
                    let mut is_over = false;
                    if let std::task::Poll::Ready(event) = futures_util::poll!(&mut next) {
                        is_over = event.is_none();
                    }
                    let is_well = self.look_at_all().await;
                    if is_over {
                        break;
                    }
                    let is_idle =
                        is_well && self.tied().is_empty() && self.store.snapshot().containers().next().is_none();
                    let again = async {
                        match (is_idle, is_well) {
                            (true, _) => std::future::pending().await,
                            (false, true) => tokio::time::sleep(LOOK_ANYWAY).await,
                            (false, false) => tokio::time::sleep(TRY_AGAIN).await,
                        }
                    };
                    tokio::select! {
                        event = next => if event.is_none() { break },
                        () = self.changed.notified() => {}
                        () = again => {}
                    }
                }
                tokio::time::sleep(ASK_AGAIN).await;
            }
        };
        tokio::select! {
            () = follow => {}
            () = shutdown => {}
        }
    }

    /// Whether all is as it is to be.
    async fn look_at_all(&self) -> bool {
        // One after the other, so that each sees what the one before has left to do.
        let _looking = self.looking.lock().await;
        match self.look_once().await {
            Ok(is_well) => is_well,
            Err(error) => {
                tracing::debug!(%error, "the engine does not say what containers there are");
                false
            }
        }
    }

    async fn look_once(&self) -> io::Result<bool> {
        // In this order: what is in the store, or has a sandbox, was a container before.
        let snapshot = self.store.snapshot();
        let sandboxes = self.engine.attached_sandboxes().await?;
        let found = self.engine.attached().await?;
        let swarm = snapshot.swarm().map(|swarm| &swarm.id);
        let ids: BTreeSet<&Id> = found.iter().map(|attached| &attached.spec.id).collect();
        let mut is_well = true;
        for seen in &found {
            let id = &seen.spec.id;
            let is_of_swarm = Some(&seen.spec.swarm) == swarm;
            // Whoever has the turn looks afterwards.
            let Ok(_turn) = self.turn(id).try_lock_owned() else {
                continue;
            };
            let Some(seen) = self.engine.attached_one(&seen.container).await? else {
                self.end(id).await;
                continue;
            };
            match seen.state {
                AttachedState::Running { pid: 0 } => {}
                AttachedState::Running { pid } => is_well &= self.keep(&seen, pid).await,
                AttachedState::Waiting if is_of_swarm => is_well &= self.start(&seen).await,
                AttachedState::Waiting | AttachedState::Ended => {
                    let is_left = sandboxes.contains(id) || self.store.snapshot().container(id.as_str()).is_some();
                    if is_left {
                        self.end(id).await;
                    }
                }
            }
        }
        let known = snapshot.containers().map(|container| &container.id);
        let gone: BTreeSet<Id> = known
            .chain(&sandboxes)
            .filter(|id| !ids.contains(id))
            .cloned()
            .collect();
        for id in &gone {
            if let Ok(_turn) = self.turn(id).try_lock_owned() {
                self.end(id).await;
            }
        }
        let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        turns.retain(|id, turn| ids.contains(id) || Arc::strong_count(turn) > 1);
        drop(turns);
        self.not_started().retain(|id, _| ids.contains(id));
        Ok(is_well)
    }

    /// One that runs has its network. Whether that is so.
    async fn keep(&self, seen: &Attached, pid: i64) -> bool {
        let id = &seen.spec.id;
        let Some(stored) = self.store.snapshot().container(id.as_str()).cloned() else {
            // Its network is no more. It goes on as it is, and reaches nobody there.
            self.forget(id);
            return true;
        };
        if stored.name != seen.name {
            let _ = self.put(seen, &stored).await;
        }
        if self.tied().get(id) == Some(&pid) {
            return true;
        }
        if !self.reaches.borrow().contains_key(id) {
            match self.engine.open_attached(id).await {
                Ok(Some(reach)) => self.reached(id, reach),
                Ok(None) => {
                    tracing::warn!(container = seen.name, "its network is gone, so it is ended");
                    self.engine.kill_attached(seen).await;
                    return false;
                }
                Err(reason) => {
                    tracing::error!(container = seen.name, "services are not reached from inside: {reason}");
                    return false;
                }
            }
        }
        self.engine.tie_attached(seen).await;
        self.tied().insert(id.clone(), pid);
        true
    }

    /// The engine wanted it started.
    async fn start(&self, seen: &Attached) -> bool {
        let started = match self.make_ready(seen).await {
            Ok(()) => self.engine.start_attached(seen).await,
            Err(reason) => Err(reason),
        };
        let id = &seen.spec.id;
        match started {
            Ok(()) => {
                self.not_started().remove(id);
                tracing::info!(container = seen.name, "started again, with its network");
            }
            Err(reason) => {
                let before = self.not_started().insert(id.clone(), reason.clone());
                if before.is_none_or(|before| before != reason) {
                    tracing::warn!(container = seen.name, "not started again: {reason}");
                }
                self.end(id).await;
                return false;
            }
        }
        // Its start is an event, and what is left to be done follows on that.
        true
    }

    /// Has the network of one that does not run yet. The caller has its turn. `Err`: why not, for people.
    async fn make_ready(&self, attached: &Attached) -> Result<(), String> {
        let id = &attached.spec.id;
        let stored = self.store.snapshot().container(id.as_str()).cloned();
        if stored.is_some_and(|stored| stored.address.is_some()) {
            match self.engine.open_attached(id).await {
                Ok(Some(reach)) => {
                    self.reached(id, reach);
                    return Ok(());
                }
                Ok(None) => {}
                Err(reason) => tracing::warn!(container = attached.name, "its network is made anew: {reason}"),
            }
        }
        self.end(id).await;
        let made = async {
            let address = self.address(attached).await?;
            let reach = self.engine.make_attached(attached, &address).await;
            reach.map_err(|reason| reason.to_string())
        };
        match made.await {
            Ok(reach) => {
                self.reached(id, reach);
                Ok(())
            }
            Err(reason) => {
                self.end(id).await;
                Err(reason)
            }
        }
    }

    /// One that the allocator gives.
    async fn address(&self, attached: &Attached) -> Result<TaskAddress, String> {
        let mut changed = self.store.changed();
        let snapshot = self.store.snapshot();
        let swarm = snapshot.swarm().ok_or("this node is not a swarm manager any more")?;
        let new = AttachedContainer {
            id: attached.spec.id.clone(),
            meta: Meta::new(THIS_REVISION, Time::now()),
            node: swarm.node.clone(),
            network: attached.spec.network.clone(),
            container: attached.container.clone(),
            name: String::new(),
            names: Vec::new(),
            wanted: attached.spec.address,
            address: None,
            error: None,
        };
        self.put(attached, &new).await?;
        let given = async {
            loop {
                changed.mark_unchanged();
                let snapshot = self.store.snapshot();
                match snapshot
                    .container(attached.spec.id.as_str())
                    .map(|stored| (&stored.address, &stored.error))
                {
                    Some((Some(address), _)) => return Ok(address.clone()),
                    Some((None, Some(reason))) => return Err(reason.clone()),
                    Some((None, None)) => {}
                    None => return Err("its network was removed meanwhile".to_owned()),
                }
                if changed.changed().await.is_err() {
                    return Err("this anynode ends".to_owned());
                }
            }
        };
        match tokio::time::timeout(ADDRESS_PATIENCE, given).await {
            Ok(given) => given,
            Err(_) => Err("it was given no address in time: the control plane is busy".to_owned()),
        }
    }

    /// Writes what it is called now. Errors: it is not to be on that network, or nothing is written.
    async fn put(&self, attached: &Attached, stored: &AttachedContainer) -> Result<(), String> {
        let spec = &attached.spec;
        let short = attached.container.get(..SHORT_ID).unwrap_or(&attached.container);
        let names = std::iter::once(attached.name.as_str()).chain(spec.aliases.iter().map(String::as_str));
        let names = names
            .chain([short, spec.hostname.as_str()])
            .filter(|name| !name.is_empty());
        let mut seen = BTreeSet::new();
        let names = names
            .filter(|name| seen.insert(name.to_ascii_lowercase()))
            .map(str::to_owned);
        let next = Arc::new(AttachedContainer {
            name: attached.name.clone(),
            names: names.collect(),
            ..stored.clone()
        });
        let written = update(&*self.store, |snapshot| match may_join(snapshot, attached) {
            Ok(()) => Ok((vec![Write::Put(Object::Container(next.clone()))], ())),
            Err(reason) => Err(Refused(reason)),
        });
        written.await.map(drop).map_err(|Refused(reason)| reason)
    }

    /// Nothing is left of it but the container, if that is there. Its address is free.
    async fn end(&self, id: &Id) {
        self.forget(id);
        self.engine.end_attached(id).await;
        let key = Key::new(Kind::Container, id);
        let removed = update(&*self.store, |snapshot| {
            let is_there = snapshot.container(id.as_str()).is_some();
            let writes = is_there.then(|| Write::Remove(key.clone())).into_iter().collect();
            Ok::<_, CommitError>((writes, ()))
        });
        if let Err(error) = removed.await {
            tracing::warn!(%id, %error, "a container's address is kept until the next look");
        }
    }

    fn reached(&self, id: &Id, reach: Reach) {
        self.reaches.send_if_modified(|reaches| {
            let is_news = reaches.get(id) != Some(&reach);
            if is_news {
                Arc::make_mut(reaches).insert(id.clone(), reach);
            }
            is_news
        });
    }

    fn forget(&self, id: &Id) {
        self.tied().remove(id);
        self.reaches.send_if_modified(|reaches| {
            let is_known = reaches.contains_key(id);
            if is_known {
                Arc::make_mut(reaches).remove(id);
            }
            is_known
        });
    }

    fn tied(&self) -> MutexGuard<'_, HashMap<Id, i64>> {
        self.tied.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn not_started(&self) -> MutexGuard<'_, HashMap<Id, String>> {
        self.not_started.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn turn(&self, id: &Id) -> Arc<tokio::sync::Mutex<()>> {
        let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        turns.entry(id.clone()).or_default().clone()
    }
}

impl Attaching for AttachedContainers {
    fn attach<'a>(&'a self, container: &'a str) -> Later<'a, Result<Option<Turn>, String>> {
        Box::pin(async move {
            let found = self
                .engine
                .attached_one(container)
                .await
                .map_err(|error| error.to_string())?;
            let Some(found) = found else { return Ok(None) };
            let lock = self.turn(&found.spec.id).lock_owned().await;
            let turn = Held {
                lock: Some(lock),
                changed: self.changed.clone(),
            };
            self.make_ready(&found).await?;
            Ok(Some(Box::new(turn) as Turn))
        })
    }

    fn look(&self) -> Later<'_, ()> {
        Box::pin(async move { drop(tokio::time::timeout(LOOK_PATIENCE, self.look_at_all()).await) })
    }
}

/// A container's turn; when it is over, all are looked at.
struct Held {
    lock: Option<OwnedMutexGuard<()>>,
    changed: Arc<Notify>,
}

impl Drop for Held {
    fn drop(&mut self) {
        drop(self.lock.take());
        self.changed.notify_one();
    }
}

struct Refused(String);

impl From<CommitError> for Refused {
    fn from(error: CommitError) -> Refused {
        Refused(error.to_string())
    }
}

fn may_join(snapshot: &Snapshot, attached: &Attached) -> Result<(), String> {
    let name = &attached.spec.network_name;
    match snapshot.network(attached.spec.network.as_str()) {
        Some(network) if network.is_attachable => Ok(()),
        Some(_) => Err(format!("network {name} is not attachable")),
        None => Err(format!("network {name} not found")),
    }
}

const SHORT_ID: usize = 12;
/// How long somebody who asks waits for the engine.
const LOOK_PATIENCE: Duration = Duration::from_secs(5);
const ASK_AGAIN: Duration = Duration::from_millis(500);
const TRY_AGAIN: Duration = Duration::from_secs(5);
/// Events may be lost with a connection.
const LOOK_ANYWAY: Duration = Duration::from_secs(30);
const ADDRESS_PATIENCE: Duration = Duration::from_secs(30);
