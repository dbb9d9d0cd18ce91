//! The network of each task: the services of its networks, by name and by address, inside its namespace. Joins what goes in
//! there (`sys::vips`), who answers (`proxy::within`) and what names mean (`dns`), and follows the routing table. Not here:
//! who makes namespaces, and the way to a task from outside.

mod declared;
mod place;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

pub use self::declared::Served;
use tokio::sync::watch;

use self::place::{Place, PlaceState};
use crate::dns::Responder;
use crate::model::{Attachment, TaskPlace};
use crate::proxy::ProxyHandle;
use crate::routing::{RoutingTable, ServiceDiff, ServiceStats, TableHandle};
use crate::sys::entrances::Entrances;
use crate::sys::netns::NetnsError;
use crate::sys::socket::Liveness;
use crate::sys::vips::VipError;

/// All tasks' networks of this node. Clones share everything.
#[derive(Clone)]
pub struct TaskNets {
    shared: Arc<Shared>,
}

struct Shared {
    table: Arc<TableHandle>,
    proxy: ProxyHandle,
    responder: Responder,
    liveness: Liveness,
    /// std mutex: held for moments.
    places: Mutex<HashMap<Arc<str>, Arc<Place>>>,
    /// Why namespaces that the table names are not served. std mutex: held for moments.
    failed: Mutex<BTreeMap<String, String>>,
    /// Whether the namespaces of the first table were looked at.
    has_looked: watch::Sender<bool>,
}

/// Why a task's network is not ready.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("the task's network namespace")]
    Netns(#[from] NetnsError),
    #[error("start the threads that enter network namespaces")]
    Threads(#[source] io::Error),
    #[error("the services of the task's networks")]
    Vips(#[from] VipError),
}

impl TaskNets {
    /// `liveness`: of the connections that come from inside.
    pub fn new(table: Arc<TableHandle>, proxy: ProxyHandle, responder: Responder, liveness: Liveness) -> TaskNets {
        TaskNets {
            shared: Arc::new(Shared {
                table,
                proxy,
                responder,
                liveness,
                places: Mutex::default(),
                failed: Mutex::default(),
                has_looked: watch::Sender::default(),
            }),
        }
    }

    /// Makes a task's network ready. For a task that has one already this replaces it; connections that stand go on.
    ///
    /// Time: two visits to the namespace, three where names are answered. Costs three descriptors, or five.
    /// Errors: the namespace is gone or may not be entered; a privilege is missing; a program there has the port for names.
    pub async fn open(&self, task: &str, place: TaskPlace) -> Result<(), OpenError> {
        let task: Arc<str> = task.into();
        if let Some(before) = self.take(&task) {
            before.end().await;
        }
        let shared = &self.shared;
        let entrances = Entrances::shared().map_err(OpenError::Threads)?;
        let place = Arc::new(Place::open(&entrances, place, shared).await?);
        // From here on changes of the table find it; until here they were not looked at.
        self.lock().insert(task.clone(), place.clone());
        let synced = place.sync(&entrances, &shared.table).await;
        if synced.is_err()
            && let Some(place) = self.take(&task)
        {
            place.end().await;
        }
        Ok(synced?)
    }

    /// Lets go of a task's network, whose namespace goes. Does not wait.
    pub fn close(&self, task: &str) {
        drop(self.take(task));
    }

    /// Lets go of the network of a task whose namespace stays: nothing of ours is left inside.
    pub async fn leave(&self, task: &str) {
        if let Some(place) = self.take(task) {
            place.leave().await;
        }
    }

    /// Lets go of everything in good order. Tasks live on without us.
    pub async fn leave_all(&self) {
        let places: Vec<Arc<Place>> = self.lock().drain().map(|(_, place)| place).collect();
        for place in places {
            place.leave().await;
        }
    }

    /// Ready when `serve_endpoints` has served all that there was when it began.
    pub async fn has_looked(&self) {
        // An error means that nobody is left to look.
        let _ = self.shared.has_looked.subscribe().wait_for(|has| *has).await;
    }

    /// How many tasks have a network here.
    pub fn len(&self) -> usize {
        self.lock().len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What is wrong inside tasks, by the task's id or the way to its namespace.
    pub fn faults(&self) -> BTreeMap<String, String> {
        let mut faults = self.failed().clone();
        let places = self.lock();
        let failed = places
            .iter()
            .filter_map(|(task, place)| Some((task.to_string(), place.fault()?)));
        faults.extend(failed);
        faults
    }

    /// What was counted of connections from inside to no service.
    pub fn outgoing(&self) -> &ServiceStats {
        self.shared.proxy.outgoing()
    }

    fn failed(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, String>> {
        self.shared.failed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps what is inside up with the table. Never ends.
    pub async fn run(&self) {
        let table = &self.shared.table;
        let mut revision = table.subscribe();
        let mut seen = table.load();
        let mut is_to_retry = self.sync(|_| true).await;
        loop {
            revision.mark_unchanged();
            let now = table.load();
            let networks = changed_networks(&seen, &now);
            seen = now;
            let is_retry = std::mem::take(&mut is_to_retry);
            if !networks.is_empty() || is_retry {
                let concerns = |place: &Place| place.concerns(&networks) || is_retry && place.fault().is_some();
                is_to_retry = self.sync(concerns).await;
            }
            let again = async {
                match is_to_retry {
                    true => tokio::time::sleep(RETRY).await,
                    false => std::future::pending().await,
                }
            };
            tokio::select! {
                changed = revision.changed() => if changed.is_err() {
                    // The table is ours as well, so its sender cannot be gone.
                    std::future::pending::<()>().await;
                },
                () = again => {}
            }
        }
    }

    /// Brings places to the table. Whether any failed that is worth another try.
    async fn sync(&self, concerns: impl Fn(&Place) -> bool) -> bool {
        let places: Vec<(Arc<str>, Arc<Place>)> = {
            let places = self.lock();
            let meant = places.iter().filter(|(_, place)| concerns(place));
            meant.map(|(task, place)| (task.clone(), place.clone())).collect()
        };
        let Ok(entrances) = Entrances::shared() else {
            return !places.is_empty();
        };
        let mut has_failed = false;
        for (task, place) in places {
            match place.sync_and_say(&entrances, &self.shared.table, &task).await {
                PlaceState::Synced => {}
                PlaceState::Failed => has_failed = true,
                PlaceState::Gone => self.forget(&task, &place),
            }
        }
        has_failed
    }

    /// Lets go of a place unless there is another for the task by now.
    fn forget(&self, task: &str, place: &Arc<Place>) {
        let mut places = self.lock();
        if places.get(task).is_some_and(|now| Arc::ptr_eq(now, place)) {
            places.remove(task);
        }
    }

    fn take(&self, task: &str) -> Option<Arc<Place>> {
        self.lock().remove(task)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Arc<str>, Arc<Place>>> {
        self.shared.places.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The networks whose addresses differ between two tables. Costs what differs.
fn changed_networks(before: &RoutingTable, after: &RoutingTable) -> BTreeSet<Arc<str>> {
    let mut networks = BTreeSet::new();
    let mut add = |attachments: &[Attachment], others: &[Attachment]| {
        let differs = |one: &&Attachment| {
            let same =
                |other: &Attachment| other.network == one.network && other.vip == one.vip && other.subnet == one.subnet;
            !others.iter().any(same)
        };
        networks.extend(attachments.iter().filter(differs).map(|one| one.network.clone()));
    };
    for diff in RoutingTable::diff(before, after) {
        match diff {
            ServiceDiff::Added(service) | ServiceDiff::Removed(service) => add(&service.spec().attachments, &[]),
            ServiceDiff::Changed { before, after } => {
                add(&before.spec().attachments, &after.spec().attachments);
                add(&after.spec().attachments, &before.spec().attachments);
            }
        }
    }
    networks
}

const RETRY: Duration = Duration::from_secs(1);
