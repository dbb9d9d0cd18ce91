//! One namespace with its listener, its names and its routes. Not here: which there are, and when the table is looked at.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};

use ipnet::{IpNet, Ipv4Net};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

use super::{OpenError, Shared};
use crate::dns::{Client, Responder, View};
use crate::model::{ServiceSpec, TaskPlace};
use crate::proxy::{Caller, Destination, Serving};
use crate::routing::{Endpoint, RoutingTable, Service, TableHandle};
use crate::sys::entrances::Entrances;
use crate::sys::netns::Netns;
use crate::sys::rtnetlink::RtNetlink;
use crate::sys::vips::{self, LocalAddresses, VipError, Vips};

/// A namespace that is served. What is dropped with it goes; routes stay, and lead nowhere.
pub(super) struct Place {
    of: Arc<TaskPlace>,
    netns: Netns,
    /// The addresses that are the task's own.
    own: Vec<IpNet>,
    vips: tokio::sync::Mutex<Vips>,
    serving: Mutex<Option<Serving>>,
    names: Mutex<Option<Names>>,
    /// Why it is not as the table has it. std mutex: held for moments.
    fault: Mutex<Option<String>>,
}

/// What answers datagrams, until it is dropped: a socket each.
struct Names(Vec<JoinHandle<()>>);

impl Drop for Names {
    fn drop(&mut self) {
        self.0.iter().for_each(JoinHandle::abort);
    }
}

/// How a place came out of being brought to the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PlaceState {
    Synced,
    /// It is said why, and worth another try.
    Failed,
    /// Its namespace is gone.
    Gone,
}

impl Place {
    /// Takes no address yet.
    pub(super) async fn open(entrances: &Entrances, place: TaskPlace, shared: &Shared) -> Result<Place, OpenError> {
        let netns = Netns::at(&place.netns)?;
        let place = Arc::new(place);
        let (vips, listener) = Vips::open(entrances, &netns, &shared.liveness).await?;
        let own = match place.address {
            _ if !place.addresses.is_empty() => {
                let addresses = place.addresses.iter().map(IpNet::addr).collect();
                entrances
                    .run(&netns, move || vips::add_addresses(addresses))
                    .await
                    .map_err(VipError::from)??;
                place.addresses.clone()
            }
            Some(address) => vec![address.into()],
            None => own_addresses(entrances, &netns).await?,
        };
        let client = client(&place, &shared.responder);
        let names = match &client {
            Some(client) => Some(answer_names(entrances, &netns, client, &shared.responder).await?),
            None => None,
        };
        let caller = Program {
            place: place.clone(),
            names: client.map(|client| (shared.responder.clone(), client)),
        };
        Ok(Place {
            of: place,
            netns,
            own,
            vips: tokio::sync::Mutex::new(vips),
            serving: Mutex::new(Some(shared.proxy.serve_within(listener, Arc::new(caller)))),
            names: Mutex::new(names),
            fault: Mutex::default(),
        })
    }

    /// Whether a change of these networks changes anything inside.
    pub(super) fn concerns(&self, networks: &BTreeSet<Arc<str>>) -> bool {
        // What is of other networks is refused where all goes through us.
        !networks.is_empty() && self.of.is_closed || self.of.networks.iter().any(|network| networks.contains(network))
    }

    /// Brings what is inside to the table as it is when its turn comes.
    pub(super) async fn sync(&self, entrances: &Entrances, table: &TableHandle) -> Result<(), VipError> {
        let mut vips = self.vips.lock().await;
        let local = local_addresses(&self.of, &self.own, &table.load());
        vips.set(entrances, &local).await
    }

    /// The same; what fails is remembered, and said once.
    pub(super) async fn sync_and_say(&self, entrances: &Entrances, table: &TableHandle, task: &str) -> PlaceState {
        let Err(error) = self.sync(entrances, table).await else {
            self.set_fault(None);
            return PlaceState::Synced;
        };
        if !self.netns.is_there() {
            return PlaceState::Gone;
        }
        let sources = std::iter::successors(Some(&error as &dyn std::error::Error), |error| error.source());
        let why = sources.map(ToString::to_string).collect::<Vec<_>>().join(": ");
        if self.set_fault(Some(why.clone())) != Some(why.clone()) {
            tracing::warn!(task, "services are not reached from inside as they should be: {why}");
        }
        PlaceState::Failed
    }

    /// Gives back what another opening needs: the port for names.
    pub(super) async fn end(&self) {
        drop(lock(&self.serving).take());
        let names = lock(&self.names).take();
        if let Some(mut names) = names {
            for serving in &mut names.0 {
                serving.abort();
                // It was told to end, and says so.
                let _ = serving.await;
            }
        }
    }

    /// Takes away what is inside, then ends.
    pub(super) async fn leave(&self) {
        // The way there first: so no other program inside is asked for a service.
        let removed = match Entrances::shared() {
            Ok(entrances) => self.remove_routes(&entrances).await,
            Err(_) => return,
        };
        if let Err(error) = removed
            && self.netns.is_there()
        {
            tracing::warn!(netns = %self.netns.path().display(), %error, "routes to services stay");
        }
        self.end().await;
    }

    async fn remove_routes(&self, entrances: &Entrances) -> Result<(), VipError> {
        let _vips = self.vips.lock().await;
        entrances.run(&self.netns, vips::remove_routes).await?
    }

    pub(super) fn fault(&self) -> Option<String> {
        lock(&self.fault).clone()
    }

    /// What it was before.
    fn set_fault(&self, fault: Option<String>) -> Option<String> {
        std::mem::replace(&mut *lock(&self.fault), fault)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Who asks for names from inside. `None`: others answer there.
fn client(place: &TaskPlace, responder: &Responder) -> Option<Client> {
    let view = || View {
        networks: place.networks.clone(),
        links: place.links.clone(),
    };
    place.has_dns.then(|| match place.is_internal {
        true => responder.internal_task(view()),
        false => responder.task(view(), nameserver(), &place.nameservers),
    })
}

/// Answers datagrams at both addresses. Where a program of the namespace has port 53 of Docker's, that one is left to it.
async fn answer_names(
    entrances: &Entrances,
    netns: &Netns,
    client: &Client,
    responder: &Responder,
) -> Result<Names, VipError> {
    let own = vips::open_dns(entrances, netns, TaskPlace::NAMESERVER.into()).await?;
    let dockers = match vips::open_dns(entrances, netns, TaskPlace::DOCKERS_NAMESERVER.into()).await {
        Err(VipError::Dns { err, .. }) if err.kind() == io::ErrorKind::AddrInUse => None,
        opened => Some(opened?),
    };
    let serve = |socket: UdpSocket| {
        let (responder, client) = (responder.clone(), client.clone());
        tokio::spawn(async move {
            if let Err(error) = responder.serve(client, socket).await {
                tracing::error!(%error, "names inside a task are not answered");
            }
        })
    };
    Ok(Names([own].into_iter().chain(dockers).map(serve).collect()))
}

fn nameserver() -> SocketAddr {
    (TaskPlace::NAMESERVER, DNS_PORT).into()
}

/// What the namespace is reached by, loopback left out.
async fn own_addresses(entrances: &Entrances, netns: &Netns) -> Result<Vec<IpNet>, VipError> {
    let ask = || RtNetlink::open().and_then(|mut routing| routing.addresses());
    let found = entrances.run(netns, ask).await?.map_err(VipError::Routes)?;
    let is_callers = |own: &IpNet| match own.addr() {
        IpAddr::V4(ip) => !ip.is_loopback() && !ip.is_link_local(),
        IpAddr::V6(ip) => !ip.is_loopback() && !ip.is_unicast_link_local(),
    };
    Ok(found.into_iter().filter(is_callers).collect())
}

/// What is local to the place as of a table.
fn local_addresses(place: &TaskPlace, own: &[IpNet], table: &RoutingTable) -> LocalAddresses {
    let mut local = LocalAddresses {
        sources: own.to_vec(),
        ..LocalAddresses::default()
    };
    // Who has which of these addresses is looked up when somebody asks.
    let planned: Vec<IpNet> = place.addresses.iter().map(IpNet::trunc).collect();
    local.taken.extend(&planned);
    local.routed.extend(&planned);
    local
        .passed
        .extend(place.addresses.iter().map(|own| IpNet::from(own.addr())));
    let inner = table.inner();
    for network in &place.networks {
        let services = inner.on_network(network).filter_map(|name| table.service(name));
        let attachments = services.flat_map(|service| &service.spec().attachments);
        for attachment in attachments.filter(|attachment| attachment.network == *network) {
            local.taken.extend(attachment.vip.map(IpNet::from));
            // One that the task has an address in has others that are reached as it is.
            let subnet = attachment
                .subnet
                .filter(|subnet| !own.iter().any(|ip| subnet.contains(&ip.addr())));
            local.refused.extend(subnet);
            local.routed.extend(subnet);
        }
    }
    if place.has_dns {
        // Streams; datagrams have a socket. All of 127.0.0.0/8 is local anyway.
        local.taken.push(IpAddr::from(TaskPlace::NAMESERVER).into());
        // Docker's own resolver is on other ports of that address, where it is there.
        local.names.push(TaskPlace::DOCKERS_NAMESERVER.into());
    }
    if place.is_closed && !place.is_internal {
        let everything = IpNet::from(Ipv4Net::default());
        local.taken.push(everything);
        local.routed = vec![everything];
        local.passed.push(IpNet::V4(LOOPBACK));
        local.passed.extend(own.iter().map(|own| IpNet::from(own.addr())));
        let attachments = table.services().flat_map(|service| &service.spec().attachments);
        let subnets = attachments.filter_map(|attachment| attachment.subnet);
        local.refused.extend(subnets.filter(|subnet| !planned.contains(subnet)));
    }
    local.refused.sort_unstable();
    local.refused.dedup();
    local
}

/// The program inside, as whom the data plane asks about.
struct Program {
    place: Arc<TaskPlace>,
    names: Option<(Responder, Client)>,
}

impl Program {
    fn shares(&self, spec: &ServiceSpec, is_meant: impl Fn(&crate::model::Attachment) -> bool) -> bool {
        let mut attachments = spec.attachments.iter();
        attachments.any(|attachment| is_meant(attachment) && self.place.networks.contains(&attachment.network))
    }
}

impl Program {
    /// Whether an endpoint has that address on a network that is the caller's too.
    fn reaches(&self, spec: &ServiceSpec, endpoint: &Endpoint, ip: IpAddr) -> bool {
        let addresses = endpoint.task().map_or(&[][..], |task| &task.addresses);
        match addresses.is_empty() {
            true => endpoint.addr().ip() == ip && self.shares(spec, |_| true),
            false => addresses
                .iter()
                .any(|(network, own)| *own == ip && self.place.networks.contains(network)),
        }
    }
}

impl Caller for Program {
    fn destination(&self, table: &RoutingTable, to: SocketAddr) -> Destination {
        let nameservers = [TaskPlace::NAMESERVER, TaskPlace::DOCKERS_NAMESERVER].map(IpAddr::from);
        if self.names.is_some() && nameservers.contains(&to.ip()) {
            return match to.port() {
                DNS_PORT => Destination::Caller,
                _ => Destination::Nobody,
            };
        }
        let inner = table.inner();
        if let Some(service) = inner.vip_owner(to.ip()).and_then(|name| table.service(name)) {
            return match self.shares(service.spec(), |attachment| attachment.vip == Some(to.ip())) {
                true => Destination::Service(service.clone()),
                false => Destination::Nobody,
            };
        }
        if let Some(service) = inner.task_owner(to.ip()).and_then(|name| table.service(name)) {
            let is_meant = |endpoint: &&Arc<Endpoint>| self.reaches(service.spec(), endpoint, to.ip());
            return match service.endpoints().iter().find(is_meant) {
                Some(endpoint) => Destination::Endpoint(service.clone(), endpoint.clone()),
                None => Destination::Nobody,
            };
        }
        // On a network of its own the machine has nobody, whatever the same addresses are outside.
        let is_on_its_networks = self.place.addresses.iter().any(|own| own.contains(&to.ip()));
        match self.place.is_closed && !self.place.is_internal && !is_on_its_networks {
            true => Destination::Outside,
            false => Destination::Nobody,
        }
    }

    fn network_of(&self, service: &Service) -> Option<Arc<str>> {
        let mut attachments = service.spec().attachments.iter();
        let shared = attachments.find(|attachment| self.place.networks.contains(&attachment.network));
        shared.map(|attachment| attachment.network.clone())
    }

    fn address(&self) -> Option<Ipv4Addr> {
        match self.place.address {
            Some(IpAddr::V4(address)) => Some(address),
            _ => None,
        }
    }

    fn serve(&self, stream: TcpStream, from: SocketAddr) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        let names = self.names.clone();
        Box::pin(async move {
            if let Some((responder, client)) = names {
                responder.serve_stream(&client, stream, from).await;
            }
        })
    }
}

const DNS_PORT: u16 = 53;
const LOOPBACK: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(127, 0, 0, 0), 8);
