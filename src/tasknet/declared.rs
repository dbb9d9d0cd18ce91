//! The namespaces that endpoints of the table are in: of declared ones, each is a place for as long as the table names it and it
//! is there; of tasks that another engine runs, for as long as it is there. Not here: tasks that something of this program
//! starts, and says so itself.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;

use tokio::sync::Notify;
use tokio::task::AbortHandle;

use super::TaskNets;
use crate::model::{EndpointSpec, TaskPlace};
use crate::routing::{RoutingTable, Service, ServiceDiff};
use crate::sys::entrances::missing_capabilities;
use crate::sys::netns::{Mounts, Netns, NetnsId, process_ended};

/// Whose namespaces are served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Served {
    /// Of endpoints that were declared by their addresses. Names are answered.
    Declared,
    /// Of an engine's tasks on this node, which have names from elsewhere. A task that is to end leaves the table and goes on
    /// asking others.
    Tasks,
}

/// What is known of a namespace that the table names.
struct Known {
    id: NetnsId,
    place: TaskPlace,
    /// Waits for the process whose namespace it is.
    watch: Option<AbortHandle>,
}

impl Drop for Known {
    fn drop(&mut self) {
        self.watch.iter().for_each(AbortHandle::abort);
    }
}

impl TaskNets {
    /// Serves the namespaces of endpoints. Never ends. Errors: it cannot be noticed that namespaces come and go.
    pub async fn serve_endpoints(&self, served: Served) -> io::Result<()> {
        let mounts = Mounts::watch()?;
        let ended = Arc::new(Notify::new());
        let mut known: HashMap<Arc<Path>, Known> = HashMap::new();
        let mut revision = self.shared.table.subscribe();
        revision.mark_unchanged();
        let mut table = self.shared.table.load();
        // Without a privilege it fails tomorrow as well.
        let is_worth_retrying = missing_capabilities().is_empty();
        loop {
            let mut wanted = places(&table, served);
            if served == Served::Tasks {
                for (path, known) in &known {
                    wanted.entry(path.clone()).or_insert_with(|| known.place.clone());
                }
            }
            self.failed().retain(|path, _| wanted.contains_key(Path::new(path)));
            let gone: Vec<_> = known
                .keys()
                .filter(|path| !wanted.contains_key(*path))
                .cloned()
                .collect();
            for path in gone {
                known.remove(&path);
                self.leave(&key(&path)).await;
            }
            let mut has_failed = false;
            for (path, place) in wanted {
                let Ok(netns) = Netns::at(&path) else {
                    // It may come later, which is noticed.
                    if known.remove(&path).is_some() {
                        self.close(&key(&path));
                    }
                    continue;
                };
                if known
                    .get(&path)
                    .is_some_and(|known| known.id == netns.id() && known.place == place)
                {
                    continue;
                }
                let shown = path.display().to_string();
                match self.open(&key(&path), place.clone()).await {
                    Ok(()) => {
                        self.failed().remove(&shown);
                        let watch = netns.process().map(|pid| watch(pid, ended.clone()));
                        let id = netns.id();
                        known.insert(path, Known { id, place, watch });
                    }
                    Err(error) => {
                        known.remove(&path);
                        if !netns.is_there() {
                            continue;
                        }
                        has_failed = is_worth_retrying;
                        let error = &error as &dyn std::error::Error;
                        let why = std::iter::successors(Some(error), |error| error.source());
                        let why = why.map(ToString::to_string).collect::<Vec<_>>().join(": ");
                        if self.failed().insert(shown, why.clone()).as_ref() != Some(&why) {
                            tracing::warn!(netns = %path.display(), "services are not reached from inside: {why}");
                        }
                    }
                }
            }
            self.shared.has_looked.send_replace(true);
            let again = async {
                match has_failed {
                    true => tokio::time::sleep(super::RETRY).await,
                    false => std::future::pending().await,
                }
            };
            let mut again = std::pin::pin!(again);
            loop {
                tokio::select! {
                    _ = revision.changed() => {
                        let before = std::mem::replace(&mut table, self.shared.table.load());
                        if !names_others(&before, &table, served) {
                            continue;
                        }
                    }
                    changed = mounts.changed() => changed?,
                    () = ended.notified() => {}
                    () = &mut again => {}
                }
                break;
            }
        }
    }
}

/// Whether `places` of these two could differ. Costs what differs.
fn names_others(before: &RoutingTable, after: &RoutingTable, served: Served) -> bool {
    RoutingTable::diff(before, after).any(|diff| match diff {
        ServiceDiff::Added(service) | ServiceDiff::Removed(service) => named(service, served).next().is_some(),
        ServiceDiff::Changed { before, after } => {
            let networks = |service: &Service| -> Vec<Arc<str>> {
                let attachments = service.spec().attachments.iter();
                attachments.map(|attachment| attachment.network.clone()).collect()
            };
            !named(before, served).eq(named(after, served))
                || named(after, served).next().is_some() && networks(before) != networks(after)
        }
    })
}

/// The namespaces that a service names which is on any network, each with the address of its endpoint.
fn named(service: &Service, served: Served) -> impl Iterator<Item = (&Arc<Path>, SocketAddr)> {
    let has_networks = !service.spec().attachments.is_empty();
    let is_meant =
        move |endpoint: &&EndpointSpec| has_networks && endpoint.task.is_none() == (served == Served::Declared);
    let endpoints = service.spec().endpoints.iter().filter(is_meant);
    endpoints.filter_map(|endpoint| Some((endpoint.netns.as_ref()?, endpoint.addr)))
}

/// The namespaces of endpoints, each with the networks of all services that have endpoints there.
fn places(table: &RoutingTable, served: Served) -> BTreeMap<Arc<Path>, TaskPlace> {
    let mut places: BTreeMap<Arc<Path>, TaskPlace> = BTreeMap::new();
    for service in table.services() {
        for (netns, addr) in named(service, served) {
            let own = |ip: IpAddr| (!ip.is_loopback() && !ip.is_unspecified()).then_some(ip);
            let place = places.entry(netns.clone()).or_insert_with(|| TaskPlace {
                netns: netns.clone(),
                networks: Vec::new(),
                // A task has one on each of its networks.
                address: own(addr.ip()).filter(|_| served == Served::Declared),
                addresses: Vec::new(),
                is_closed: false,
                is_internal: false,
                has_dns: served == Served::Declared,
                nameservers: Vec::new(),
                links: Vec::new(),
            });
            let networks = service.spec().attachments.iter().map(|attachment| &attachment.network);
            for network in networks {
                if !place.networks.contains(network) {
                    place.networks.push(network.clone());
                }
            }
        }
    }
    places
}

fn key(path: &Path) -> String {
    format!("netns:{}", path.display())
}

fn watch(pid: u32, ended: Arc<Notify>) -> AbortHandle {
    let wait = async move {
        // An error says that it is not there either.
        let _ = process_ended(pid).await;
        ended.notify_one();
    };
    tokio::spawn(wait).abort_handle()
}
