//! Follows the routing table for the workers: opens and closes listeners, and ends the connections of endpoints that
//! left when their stop grace period is over. Runs beside the workers, never in the way of a byte.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::io;
use std::net::{SocketAddrV4, TcpListener};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::Shared;
use super::files;
use super::ports::PortState;
use super::vips::{self, VipMode, VipState, Vips};
use super::worker::{Command, Workers};
use crate::routing::{Endpoint, EndpointId, Listen, ListenKind, Route, RoutingTable, Service, ServiceDiff};
use crate::sys::inet_diag::Holders;
use crate::sys::{sk_lookup, socket};
use crate::takeover::{self, Takeover, TakeoverNeed};

pub(super) struct Manager {
    shared: Arc<Shared>,
    workers: Workers,
    /// The table that leavers are by.
    seen: Arc<RoutingTable>,
    /// The table that listeners are by: an older one while they are lent.
    listened: Arc<RoutingTable>,
    adoption: Adoption,
    /// Inodes of what listens, by port, to tell ourselves from other programs.
    bound: BTreeMap<Listen, Vec<u64>>,
    /// Ports whose connections are taken ahead of Docker.
    taken: BTreeSet<Listen>,
    vips: Vips,
    failed: HashMap<Listen, Retry>,
    /// Who has ports that are not ours.
    holders: Holders,
    leavers: HashMap<EndpointId, Leaver>,
}

struct Retry {
    at: Instant,
    attempts: u64,
}

/// Sockets that an instance before this one handed over, until everything that is to be done with them is known.
#[derive(Default)]
struct Adoption {
    offered: BTreeMap<Listen, Vec<TcpListener>>,
    /// Inodes of all of them, which are no other program's.
    family: HashSet<u64>,
    /// Taken, and not accepted on yet: the instance before may still go on.
    withheld: BTreeMap<Listen, Vec<TcpListener>>,
}

/// What became of the sockets that were handed over.
#[derive(Debug, Default)]
pub struct Adopted {
    /// Sockets that are in use now.
    pub n_sockets: usize,
    /// Ports that were handed over and are not in the table.
    pub left: Vec<Listen>,
}

struct Leaver {
    endpoint: Arc<Endpoint>,
    due: Instant,
}

impl Manager {
    pub(super) fn new(shared: Arc<Shared>, workers: Workers) -> Manager {
        Manager {
            vips: Vips::new(shared.config.vip_network),
            shared,
            workers,
            seen: Arc::default(),
            listened: Arc::default(),
            adoption: Adoption::default(),
            bound: BTreeMap::new(),
            taken: BTreeSet::new(),
            failed: HashMap::new(),
            holders: Holders::default(),
            leavers: HashMap::new(),
        }
    }

    pub(super) fn workers(&self) -> &Workers {
        &self.workers
    }

    pub(super) fn into_workers(self) -> Workers {
        self.workers
    }

    /// Brings everything to the current table, retries what is due, and says when to come back at the latest.
    pub(super) fn step(&mut self, now: Instant) -> Option<Instant> {
        let table = self.shared.table.load();
        if !self.shared.lending.is_lent() {
            self.listen(&table, now);
        }
        let seen = std::mem::replace(&mut self.seen, table.clone());
        for diff in RoutingTable::diff(&seen, &table) {
            match diff {
                ServiceDiff::Added(service) => self.returned(service),
                ServiceDiff::Changed { before, after } => {
                    self.returned(after);
                    self.left(before, Some(after), now);
                }
                ServiceDiff::Removed(service) => self.left(service, None, now),
            }
        }
        let over: Vec<EndpointId> = self
            .leavers
            .iter()
            .filter(|(_, leaver)| leaver.due <= now)
            .map(|(id, _)| *id)
            .collect();
        for id in over {
            if let Some(leaver) = self.leavers.remove(&id)
                && leaver.endpoint.is_draining()
            {
                self.workers.tell_all(|| Command::EndpointOver(id));
            }
        }
        self.leave_room();
        let is_lent = self.shared.lending.is_lent();
        let retries = self.failed.values().filter(|_| !is_lent).map(|retry| retry.at);
        retries.chain(self.leavers.values().map(|leaver| leaver.due)).min()
    }

    /// Brings listeners to `table`, and retries those that are due.
    fn listen(&mut self, table: &Arc<RoutingTable>, now: Instant) {
        let before = std::mem::replace(&mut self.listened, table.clone());
        let mut opened = Vec::new();
        for (listen, before, after) in RoutingTable::diff_listens(&before, table) {
            match (before, after) {
                (Some(_), None) => self.close(listen),
                (None, Some(_)) => opened.push(listen),
                // Another service or target behind the same listener: connections look that up.
                _ => {}
            }
        }
        // After what was closed: a port may have moved from one address to all.
        let due = self.failed.iter().filter(|(_, retry)| retry.at <= now);
        opened.extend(due.map(|(listen, _)| *listen));
        let (vips, ports): (Vec<Listen>, Vec<Listen>) = opened.into_iter().partition(|listen| self.is_vip(*listen));
        for listen in ports {
            self.open(listen, now);
        }
        self.open_vips(&vips, now);
    }

    /// Whether it is a VIP's, and not to be bound.
    fn is_vip(&self, listen: Listen) -> bool {
        let is_vip = |route: &Route| route.kind == ListenKind::Vip;
        self.shared.config.vips != VipMode::Bind && self.listened.route(&listen).is_some_and(is_vip)
    }

    /// Takes listening sockets of an instance before this one, for the ports that the table names or comes to name.
    pub(super) fn offer(&mut self, sockets: Vec<(Listen, TcpListener)>) {
        for (listen, socket) in sockets {
            self.adoption.family.extend(socket::inode(&socket));
            self.adoption.offered.entry(listen).or_default().push(socket);
        }
    }

    /// What the table does not name is given up.
    pub(super) fn end_adopting(&mut self) -> Adopted {
        self.adoption.family.clear();
        Adopted {
            n_sockets: self.adoption.withheld.values().map(Vec::len).sum(),
            left: std::mem::take(&mut self.adoption.offered).into_keys().collect(),
        }
    }

    /// Accepts on what was adopted. Several sockets of a port may fall to one worker: none may be left alone.
    pub(super) fn accept_adopted(&mut self) {
        for (listen, sockets) in std::mem::take(&mut self.adoption.withheld) {
            self.accept(listen, sockets);
        }
    }

    fn accept(&self, listen: Listen, sockets: Vec<TcpListener>) {
        for (i, socket) in sockets.into_iter().enumerate() {
            self.workers
                .tell(i % self.workers.len(), Command::Listen(listen, socket));
        }
    }

    fn n_listeners(&self) -> usize {
        self.bound.values().map(Vec::len).sum()
    }

    /// Whether the sockets of one more port leave enough for everything else. Errors: in words.
    fn may_listen(&self) -> Result<(), String> {
        let files_max = self.shared.config.files_max;
        let most = files_max.saturating_sub(files::n_kept(&self.shared.config)) / 2;
        match self.n_listeners() + self.workers.len() <= most {
            true => Ok(()),
            false => Err(format!(
                "no descriptor is left for it: of {files_max} that this program may open, listeners take {most} at most"
            )),
        }
    }

    /// Connections may take the descriptors that listeners, pipes, DNS and the admin server leave, two each.
    fn leave_room(&self) {
        let config = &self.shared.config;
        let n_listeners = self.n_listeners();
        let n_kept = self.shared.open.n_kept.load(Ordering::Relaxed);
        let n_left = config
            .files_max
            .saturating_sub(n_listeners + n_kept + files::n_kept(config));
        self.shared.open.set_most(config.connections_max.min(n_left / 2));
    }

    fn open(&mut self, listen: Listen, now: Instant) {
        if let Some(sockets) = self.adoption.offered.remove(&listen) {
            self.adopt(listen, sockets);
            return;
        }
        let beside: HashSet<u64> = self
            .bound
            .range(
                Listen {
                    port: listen.port,
                    ip: None,
                }..,
            )
            .take_while(|(other, _)| other.port == listen.port)
            .flat_map(|(_, inodes)| inodes.iter())
            .chain(&self.adoption.family)
            .copied()
            .collect();
        let result = self
            .may_listen()
            .and_then(|()| self.bind(listen, &beside))
            .and_then(|sockets| {
                let inodes = sockets.iter().map(socket::inode).collect::<io::Result<Vec<u64>>>();
                Ok((sockets, inodes.map_err(|error| explain(&error, None))?))
            });
        let result = result.map(|(sockets, inodes)| {
            self.bound.insert(listen, inodes);
            self.accept(listen, sockets);
            if self
                .listened
                .route(&listen)
                .is_some_and(|route| route.kind == ListenKind::Vip)
            {
                self.shared.ports.set_vips(VipState::Bound);
            }
        });
        self.opened(listen, result, now);
    }

    /// Has connections to these VIPs come here, with nothing bound to their ports.
    fn open_vips(&mut self, vips: &[Listen], now: Instant) {
        if vips.is_empty() || matches!(self.shared.ports.vips(), VipState::Off(_)) {
            return;
        }
        let others = self.vips.others(|inode| self.adoption.family.contains(&inode));
        for listen in vips {
            match self.open_vip(*listen, &others) {
                Ok(true) => self.opened(*listen, Ok(()), now),
                Ok(false) => return self.failed.retain(|listen, _| !vips.contains(listen)),
                Err(error) => self.opened(*listen, Err(error), now),
            }
        }
    }

    /// Whether VIPs can be answered at all. Errors: in words.
    fn open_vip(&mut self, listen: Listen, others: &HashSet<SocketAddrV4>) -> Result<bool, String> {
        if !self.vips.has_begun() && !self.begin_vips()? {
            return Ok(false);
        }
        self.vips.take(listen, others)?;
        Ok(true)
    }

    /// Opens what takes the connections to all VIPs, or adopts it. As `open_vip`.
    fn begin_vips(&mut self) -> Result<bool, String> {
        if self.shared.config.vips == VipMode::Off {
            self.shared.ports.set_vips(VipState::Off("vips = \"off\"".to_owned()));
            return Ok(false);
        }
        let liveness = &self.shared.config.liveness;
        let adopted = self.adoption.offered.get(&Listen::VIPS);
        let made = match adopted {
            Some(_) => Vec::new(),
            None => sk_lookup::listen_for_vips(self.workers.len(), liveness).map_err(|error| explain(&error, None))?,
        };
        let first = adopted
            .unwrap_or(&made)
            .first()
            .ok_or("no socket for VIPs was handed over")?;
        match self.vips.begin(first) {
            Ok(()) => {}
            Err(error) if vips::is_final(&error) => {
                let reason = sk_lookup::explain(&error);
                tracing::warn!(
                    reason,
                    "VIPs are not answered: services' names stand for their endpoints"
                );
                self.shared.ports.set_vips(VipState::Off(reason));
                return Ok(false);
            }
            Err(error) => return Err(sk_lookup::explain(&error)),
        }
        match self.adoption.offered.remove(&Listen::VIPS) {
            Some(sockets) => self.adopt(Listen::VIPS, sockets),
            None => {
                self.bound
                    .insert(Listen::VIPS, made.iter().flat_map(socket::inode).collect());
                self.accept(Listen::VIPS, made);
            }
        }
        self.shared.ports.set_vips(VipState::Answered);
        Ok(true)
    }

    /// Says what became of a port. Errors are in words; it is tried again.
    fn opened(&mut self, listen: Listen, result: Result<(), String>, now: Instant) {
        match result {
            Ok(()) => {
                if self.failed.remove(&listen).is_some() {
                    tracing::info!(%listen, "listening after all");
                }
                self.shared.ports.set(listen, PortState::Listening);
            }
            Err(error) => {
                let retry = self.failed.entry(listen).or_insert(Retry { at: now, attempts: 0 });
                if retry.attempts == 0 {
                    tracing::error!(%listen, %error, "cannot listen, trying again");
                }
                retry.attempts += 1;
                retry.at = now + RETRY_EVERY;
                let attempts = retry.attempts;
                self.shared.ports.set(listen, PortState::Failed { error, attempts });
            }
        }
    }

    /// Listening sockets for a port, which Docker may hold: then connections are taken ahead of it. Errors: in words.
    fn bind(&mut self, listen: Listen, ours: &HashSet<u64>) -> Result<Vec<TcpListener>, String> {
        let n = self.workers.len();
        let liveness = &self.shared.config.liveness;
        let takeover = self.shared.takeover.clone().filter(|_| self.may_be_dockers(listen));
        let need = takeover
            .as_ref()
            .map_or(TakeoverNeed::None, |takeover| takeover.needs(listen.port));
        let is_hidden = match &need {
            TakeoverNeed::None | TakeoverNeed::Redirect => false,
            TakeoverNeed::RedirectAndAssign => true,
            // Whether it is in the way, binding will tell.
            TakeoverNeed::HeldBy { .. } | TakeoverNeed::HeldByUnseen { .. } => false,
        };
        let sockets = match is_hidden {
            true => sk_lookup::listen_hidden(n, liveness),
            false => socket::listen(listen.ip, listen.port, n, liveness, |inode| ours.contains(&inode)),
        };
        let sockets = sockets.map_err(|error| match need.is_refused() {
            true => need.to_string(),
            false => explain(&error, self.holders.name(listen.port)),
        })?;
        if let Some(takeover) =
            takeover.filter(|_| matches!(need, TakeoverNeed::Redirect | TakeoverNeed::RedirectAndAssign))
        {
            self.take_over(&takeover, listen, &sockets, is_hidden)?;
        }
        Ok(sockets)
    }

    /// Published on all addresses, as Docker publishes.
    fn may_be_dockers(&self, listen: Listen) -> bool {
        let route = self.listened.route(&listen);
        listen.ip.is_none() && route.is_some_and(|route| route.kind == ListenKind::Published)
    }

    /// The sockets first, then the rule that leads to them.
    fn take_over(
        &mut self,
        takeover: &Takeover,
        listen: Listen,
        sockets: &[TcpListener],
        is_hidden: bool,
    ) -> Result<(), String> {
        if is_hidden {
            takeover
                .assign(listen.port, &takeover::borrow(sockets))
                .map_err(|error| error.to_string())?;
        }
        self.taken.insert(listen);
        takeover.redirect(listen.port).map_err(|error| error.to_string())
    }

    fn give_up(&mut self, listen: Listen) {
        let Some(takeover) = self.shared.takeover.clone().filter(|_| self.taken.remove(&listen)) else {
            return;
        };
        for result in [takeover.unredirect(listen.port), takeover.unassign(listen.port)] {
            if let Err(error) = result {
                tracing::warn!(%listen, %error, "given up, but not all of it");
            }
        }
    }

    /// Docker's rules changed: ports that we have and that it now leads elsewhere are taken over, and others let go.
    pub(super) fn recheck_takeover(&mut self) {
        let Some(takeover) = self.shared.takeover.clone().filter(|_| !self.shared.lending.is_lent()) else {
            return;
        };
        let all: Vec<Listen> = self
            .bound
            .keys()
            .copied()
            .filter(|listen| self.may_be_dockers(*listen))
            .collect();
        let needs = takeover.needs_of(&all.iter().map(|listen| listen.port).collect());
        for listen in all {
            let is_taken = self.taken.contains(&listen);
            match needs.get(&listen.port) {
                Some(TakeoverNeed::Redirect) if !is_taken => {
                    if let Err(error) = self.take_over(&takeover, listen, &[], false) {
                        tracing::error!(%listen, error, "Docker has this port's connections");
                    }
                }
                Some(TakeoverNeed::None) if is_taken => self.give_up(listen),
                _ => {}
            }
        }
    }

    /// Takes the sockets of a port as they are. Workers that there are more of get sockets of their own.
    fn adopt(&mut self, listen: Listen, mut sockets: Vec<TcpListener>) {
        let n_missing = self.workers.len().saturating_sub(sockets.len());
        let more = sockets
            .first()
            .map(|first| socket::listen_beside(first, n_missing, &self.shared.config.liveness));
        match more.transpose() {
            Ok(more) => sockets.extend(more.into_iter().flatten()),
            Err(error) => tracing::debug!(%listen, %error, "workers without a listener"),
        }
        if let Some(takeover) = self.shared.takeover.clone().filter(|_| self.may_be_dockers(listen)) {
            // The instance before took it over, or did not need to; a rule too many does no harm.
            let is_hidden = sockets
                .iter()
                .flat_map(TcpListener::local_addr)
                .any(|addr| addr.port() != listen.port);
            if let Err(error) = self.take_over(&takeover, listen, &sockets, is_hidden) {
                tracing::warn!(%listen, error, "adopted, but not taken over");
            }
        }
        self.failed.remove(&listen);
        self.bound
            .insert(listen, sockets.iter().flat_map(socket::inode).collect());
        self.adoption.withheld.insert(listen, sockets);
        if listen != Listen::VIPS {
            self.shared.ports.set(listen, PortState::Listening);
        }
    }

    fn close(&mut self, listen: Listen) {
        self.failed.remove(&listen);
        self.give_up(listen);
        if let Some(sockets) = self.adoption.withheld.remove(&listen) {
            self.adoption.offered.insert(listen, sockets);
        }
        if !self.vips.pass(listen) && self.bound.remove(&listen).is_some() {
            self.workers.tell_all(|| Command::Unlisten(listen));
        }
        self.shared.ports.remove(&listen);
    }

    fn returned(&mut self, service: &Service) {
        for endpoint in service.endpoints() {
            self.leavers.remove(&endpoint.id());
        }
    }

    fn left(&mut self, before: &Service, after: Option<&Arc<Service>>, now: Instant) {
        let stays: HashSet<EndpointId> = after
            .iter()
            .flat_map(|service| service.endpoints())
            .map(|endpoint| endpoint.id())
            .collect();
        for endpoint in before
            .endpoints()
            .iter()
            .filter(|endpoint| !stays.contains(&endpoint.id()))
        {
            self.workers.tell_all(|| Command::EndpointGone(endpoint.id()));
            let leaver = Leaver {
                endpoint: endpoint.clone(),
                due: now + before.spec().stop_grace,
            };
            self.leavers.insert(endpoint.id(), leaver);
        }
    }
}

/// What a person needs to know about a port that cannot be bound.
fn explain(error: &io::Error, holder: Option<String>) -> String {
    match error.kind() {
        io::ErrorKind::AddrInUse => match holder {
            Some(holder) => format!("in use by another program: {holder}"),
            None => "in use by another program".to_owned(),
        },
        io::ErrorKind::PermissionDenied => {
            "no permission: ports below 1024 need CAP_NET_BIND_SERVICE (or root)".to_owned()
        }
        io::ErrorKind::AddrNotAvailable => "this node has no such address".to_owned(),
        _ => error.to_string(),
    }
}
const RETRY_EVERY: Duration = Duration::from_secs(1);
