//! The table itself: services by name, what listens where, VIPs; how the next one is made and how two differ.

use std::collections::BTreeSet;
use std::hash::{BuildHasherDefault, Hasher};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use imbl::ordmap::DiffItem;
use imbl::shared_ptr::DefaultSharedPtr;
use imbl::{GenericHashMap, OrdMap};

use super::endpoint::Endpoint;
use super::front::EntryPoint;
use super::inner::InnerNames;
use super::listen::Listen;
use super::port_set::PortSet;
use super::ranked::Routed;
use super::service::Service;
use crate::model::{EntryPointName, EntryPointSpec, ServiceName, ServiceSpec, TaskRef};

/// One step from a table to the next.
#[derive(Debug, Clone)]
pub enum Change {
    /// The service is to be as `spec` says, whatever it was.
    Upsert {
        spec: Arc<ServiceSpec>,
        vip: Option<Ipv4Addr>,
    },
    Remove(ServiceName),
}

impl Change {
    fn name(&self) -> &ServiceName {
        match self {
            Change::Upsert { spec, .. } => &spec.name,
            Change::Remove(name) => name,
        }
    }
}

/// What a connection to a `Listen` is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// For an entry point, what its connections are counted by, which is no service.
    pub service: ServiceName,
    /// The port that tasks listen on; 0 for an entry point, whose routes say it.
    pub target: u16,
    pub kind: ListenKind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ListenKind {
    Published,
    Vip,
    /// What services share, by routes.
    EntryPoint,
}

/// Why a change cannot become a table. Nothing was changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TableError {
    #[error("service {service}: publish: port {listen} is already published by service {owner}")]
    PortTaken {
        service: ServiceName,
        listen: Listen,
        owner: ServiceName,
    },
    #[error("service {service}: publish: port {listen} is listed twice")]
    PortTwice { service: ServiceName, listen: Listen },
    #[error("service {service}: publish: port {listen} is that of entry point {owner}, which services share by routes")]
    PortOfEntryPoint {
        service: ServiceName,
        listen: Listen,
        owner: ServiceName,
    },
    #[error("service {service}: route: {rule} is already that of service {owner} at entry point {entry_point}")]
    RuleTaken {
        service: ServiceName,
        rule: String,
        entry_point: EntryPointName,
        owner: ServiceName,
    },
    #[error("service {service}: entrypoints: there is no entry point {name}: expected {}", names(.known))]
    NoEntryPoint {
        service: ServiceName,
        name: EntryPointName,
        known: Vec<EntryPointName>,
    },
    #[error(
        "service {service}: {label}: {rule} asks for TLS, and entry point {entry_point} ends none: it is not served there"
    )]
    NoTls {
        service: ServiceName,
        label: Arc<str>,
        rule: String,
        entry_point: EntryPointName,
    },
    #[error(
        "service {service}: {label}: {rule} asks for connections without TLS, and entry point {entry_point} ends it: it is not served there"
    )]
    EndsTls {
        service: ServiceName,
        label: Arc<str>,
        rule: String,
        entry_point: EntryPointName,
    },
    #[error("service {service}: route: this node has no entry point: expected one in its configuration")]
    NoEntryPoints { service: ServiceName },
    #[error("service {service}: endpoints: {addr} is listed twice")]
    EndpointTwice {
        service: ServiceName,
        addr: std::net::SocketAddr,
    },
    #[error("service {service}: VIP {vip} is already that of service {owner}")]
    VipTaken {
        service: ServiceName,
        vip: IpAddr,
        owner: ServiceName,
    },
}

fn names(names: &[EntryPointName]) -> String {
    let names: Vec<&str> = names.iter().map(EntryPointName::as_str).collect();
    names.join(", ")
}

/// All services at one moment. Clones share everything.
#[derive(Debug, Clone, Default)]
pub struct RoutingTable {
    revision: u64,
    services: OrdMap<ServiceName, ServiceRef>,
    /// The same by their numbers, which routes know: among a thousand names one is found by ten comparisons.
    numbered: Numbered,
    /// How many numbers were given so far.
    n_numbers: u64,
    listens: OrdMap<Listen, Route>,
    /// The ports of `listens`.
    ports: PortSet,
    vips: OrdMap<Ipv4Addr, ServiceName>,
    /// The services of the tasks of this node, by the task's id.
    tasks: OrdMap<Arc<str>, ServiceName>,
    inner: InnerNames,
    /// In the order of their names; few.
    entry_points: Vec<EntryPoint>,
}

/// A service in the map; equal only to itself, so that `diff` compares addresses and never contents.
#[derive(Debug, Clone)]
struct ServiceRef {
    service: Arc<Service>,
    /// The same for all of its versions, and never given again.
    number: u64,
}

impl PartialEq for ServiceRef {
    fn eq(&self, other: &ServiceRef) -> bool {
        Arc::ptr_eq(&self.service, &other.service)
    }
}

/// Numbers are given in turn: they need no other hash.
type Numbered = GenericHashMap<u64, Arc<Service>, BuildHasherDefault<AsItIs>, DefaultSharedPtr>;

#[derive(Debug, Clone, Copy, Default)]
struct AsItIs(u64);

impl Hasher for AsItIs {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0 << 8 | u64::from(*byte);
        }
    }

    fn write_u64(&mut self, number: u64) {
        self.0 = number;
    }
}

/// How one service differs between two tables.
#[derive(Debug)]
pub enum ServiceDiff<'a> {
    Added(&'a Arc<Service>),
    Changed {
        before: &'a Arc<Service>,
        after: &'a Arc<Service>,
    },
    Removed(&'a Arc<Service>),
}

impl RoutingTable {
    /// A table of no service, with the entry points that this node has from its start to its end. No two may be at one place.
    /// They are listened on from the first commit on: before it nothing is known, and who asks is not to be told that there is
    /// nothing.
    pub(super) fn with_entry_points(specs: Vec<EntryPointSpec>) -> RoutingTable {
        let mut entry_points: Vec<EntryPoint> = specs.into_iter().map(EntryPoint::new).collect();
        entry_points.sort_by(|one, other| one.name().cmp(other.name()));
        RoutingTable {
            entry_points,
            ..RoutingTable::default()
        }
    }

    fn open_entry_points(&mut self) {
        for entry_point in &self.entry_points {
            let route = Route {
                service: entry_point.name().as_counted().clone(),
                target: 0,
                kind: ListenKind::EntryPoint,
            };
            self.listens.insert(entry_point.listen(), route);
        }
    }

    /// In the order of their names.
    pub fn entry_points(&self) -> &[EntryPoint] {
        &self.entry_points
    }

    /// The entry point that listens there.
    pub fn entry_point_at(&self, listen: &Listen) -> Option<&EntryPoint> {
        let mut all = self.entry_points.iter();
        all.find(|entry_point| entry_point.listen() == *listen)
    }

    /// Counts the tables of this node; 0 is the empty one that it starts with.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    pub fn len(&self) -> usize {
        self.services.len()
    }

    pub fn is_empty(&self) -> bool {
        self.services.is_empty()
    }

    /// In the order of their names.
    pub fn services(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.services.values().map(|known| &known.service)
    }

    pub fn service(&self, name: &ServiceName) -> Option<&Arc<Service>> {
        self.service_by_key(name.key())
    }

    /// By the lower-case text of its name, as DNS has it.
    pub fn service_by_key(&self, key: &str) -> Option<&Arc<Service>> {
        self.services.get(key).map(|known| &known.service)
    }

    /// Whose a route is.
    pub fn service_of(&self, routed: &Routed) -> Option<&Arc<Service>> {
        self.numbered.get(&routed.number)
    }

    pub fn vip_owner(&self, vip: Ipv4Addr) -> Option<&Arc<Service>> {
        self.service(self.vips.get(&vip)?)
    }

    /// Everything that this node listens on.
    pub fn listens(&self) -> impl Iterator<Item = (&Listen, &Route)> {
        self.listens.iter()
    }

    pub fn route(&self, listen: &Listen) -> Option<&Route> {
        self.listens.get(listen)
    }

    /// Whether any address of the port is listened on.
    pub fn listens_on(&self, port: u16) -> bool {
        self.ports.contains(port)
    }

    /// By what services are reached from inside tasks.
    pub fn inner(&self) -> &InnerNames {
        &self.inner
    }

    /// What differs, in the order of names. Costs what differs, not what there is.
    pub fn diff<'a>(before: &'a RoutingTable, after: &'a RoutingTable) -> impl Iterator<Item = ServiceDiff<'a>> {
        before.services.diff(&after.services).map(|item| match item {
            DiffItem::Add(_, known) => ServiceDiff::Added(&known.service),
            DiffItem::Remove(_, known) => ServiceDiff::Removed(&known.service),
            DiffItem::Update { old, new } => ServiceDiff::Changed {
                before: &old.1.service,
                after: &new.1.service,
            },
        })
    }

    /// What listens differently: each with its route before and after.
    pub fn diff_listens<'a>(
        before: &'a RoutingTable,
        after: &'a RoutingTable,
    ) -> impl Iterator<Item = (Listen, Option<&'a Route>, Option<&'a Route>)> {
        before.listens.diff(&after.listens).map(|item| match item {
            DiffItem::Add(listen, route) => (*listen, None, Some(route)),
            DiffItem::Remove(listen, route) => (*listen, Some(route), None),
            DiffItem::Update { old, new } => (*old.0, Some(old.1), Some(new.1)),
        })
    }

    /// The next table: `changes` taken together, so that a port may pass from one service to another.
    /// `build` makes a service from its spec, VIP and predecessor.
    ///
    /// Errors: the first conflict found; then there is no next table. Cost: what changes, times the logarithm of what
    /// there is.
    pub(super) fn next(
        &self,
        changes: &[Change],
        build: impl Fn(Arc<ServiceSpec>, Option<Ipv4Addr>, Option<&Service>) -> Service,
    ) -> Result<RoutingTable, TableError> {
        let mut table = self.clone();
        table.revision += 1;
        if self.revision == 0 {
            table.open_entry_points();
        }
        // Routes that are as they were stay, so that a task that comes or goes touches none.
        let mut kept: BTreeSet<&str> = BTreeSet::new();
        for change in changes {
            let name = change.name();
            if let Some(before) = table.services.remove(name.key()) {
                let routes = &before.service.spec().routes;
                let is_kept = match change {
                    Change::Upsert { spec, .. } => !routes.is_empty() && *routes == spec.routes,
                    Change::Remove(_) => false,
                };
                match is_kept {
                    true => drop(kept.insert(name.key())),
                    false => table.close_routes(before.service.spec()),
                }
                table.close(&before.service);
                table.numbered.remove(&before.number);
            }
        }
        for change in changes {
            let Change::Upsert { spec, vip } = change else { continue };
            check_endpoints(spec)?;
            if let Some(twice) = table.services.get(spec.name.key()).cloned() {
                // The last word counts where one commit names a service twice.
                kept.remove(spec.name.key());
                table.close_routes(twice.service.spec());
                table.close(&twice.service);
                table.numbered.remove(&twice.number);
            }
            let before = self.services.get(spec.name.key());
            let number = before.map(|before| before.number).unwrap_or_else(|| {
                table.n_numbers += 1;
                table.n_numbers
            });
            let service = Arc::new(build(spec.clone(), *vip, before.map(|before| &*before.service)));
            table.open(&service)?;
            if !kept.contains(spec.name.key()) {
                table.open_routes(spec, number)?;
            }
            table.numbered.insert(number, service.clone());
            table.services.insert(spec.name.clone(), ServiceRef { service, number });
        }
        let changed: Vec<u16> = RoutingTable::diff_listens(self, &table)
            .map(|(listen, ..)| listen.port)
            .collect();
        for port in changed {
            let first = table.listens.range(Listen { port, ip: None }..).next();
            let is_in = first.is_some_and(|(first, _)| first.port == port);
            table.ports.set(port, is_in);
        }
        Ok(table)
    }

    /// The endpoint that is the task of this node with this id, and its service.
    pub fn local_task(&self, id: &str) -> Option<(&Arc<Service>, &Arc<Endpoint>)> {
        let service = self.service(self.tasks.get(id)?)?;
        let is_meant = |task: &Arc<TaskRef>| *task.id == *id && !task.is_remote;
        let endpoint = service
            .endpoints()
            .iter()
            .find(|endpoint| endpoint.task().is_some_and(is_meant))?;
        Some((service, endpoint))
    }

    fn close(&mut self, service: &Service) {
        for task in local_tasks(service.spec()) {
            self.tasks.remove(&task.id);
        }
        self.inner.remove(service.spec());
        for port in &service.spec().publish {
            self.listens.remove(&Listen {
                ip: port.bind,
                port: port.published,
            });
        }
        if let Some(vip) = service.vip() {
            self.vips.remove(&vip);
            for port in service.spec().vip_ports() {
                self.listens.remove(&Listen {
                    ip: Some(vip.into()),
                    port,
                });
            }
        }
    }

    fn open(&mut self, service: &Service) -> Result<(), TableError> {
        let spec = service.spec();
        for port in &spec.publish {
            let listen = Listen {
                ip: port.bind,
                port: port.published,
            };
            if let Some((owner, kind)) = self.published_beside(listen) {
                return Err(if kind == ListenKind::EntryPoint {
                    TableError::PortOfEntryPoint {
                        service: spec.name.clone(),
                        listen,
                        owner: owner.clone(),
                    }
                } else if *owner == spec.name {
                    TableError::PortTwice {
                        service: spec.name.clone(),
                        listen,
                    }
                } else {
                    TableError::PortTaken {
                        service: spec.name.clone(),
                        listen,
                        owner: owner.clone(),
                    }
                });
            }
            let route = Route {
                service: spec.name.clone(),
                target: port.target,
                kind: ListenKind::Published,
            };
            self.listens.insert(listen, route);
        }
        for task in local_tasks(spec) {
            self.tasks.insert(task.id.clone(), spec.name.clone());
        }
        self.inner.insert(spec).map_err(|taken| TableError::VipTaken {
            service: spec.name.clone(),
            vip: taken.vip,
            owner: taken.owner,
        })?;
        let Some(vip) = service.vip() else { return Ok(()) };
        if let Some(owner) = self.vips.insert(vip, spec.name.clone()) {
            return Err(TableError::VipTaken {
                service: spec.name.clone(),
                vip: vip.into(),
                owner,
            });
        }
        for port in spec.vip_ports() {
            let listen = Listen {
                ip: Some(vip.into()),
                port,
            };
            let route = Route {
                service: spec.name.clone(),
                target: port,
                kind: ListenKind::Vip,
            };
            if let Some(other) = self.listens.insert(listen, route) {
                return Err(TableError::PortTaken {
                    service: spec.name.clone(),
                    listen,
                    owner: other.service,
                });
            }
        }
        Ok(())
    }

    fn close_routes(&mut self, spec: &ServiceSpec) {
        for route in &spec.routes {
            for entry_point in &mut self.entry_points {
                entry_point.remove(&spec.name, route);
            }
        }
    }

    /// Routes for entry points that this node does not have are served nowhere here: `unserved` says so.
    fn open_routes(&mut self, spec: &ServiceSpec, number: u64) -> Result<(), TableError> {
        for route in &spec.routes {
            for entry_point in self.entry_points.iter_mut().filter(|known| known.spec().takes(route)) {
                let inserted = entry_point.insert((&spec.name, number), route);
                inserted.map_err(|owner| TableError::RuleTaken {
                    service: spec.name.clone(),
                    rule: route.rule.to_string(),
                    entry_point: entry_point.name().clone(),
                    owner,
                })?;
            }
        }
        Ok(())
    }

    /// Why routes of this service are not served by this node, or not where they are to be.
    pub fn unserved(&self, spec: &ServiceSpec) -> Vec<TableError> {
        let service = || spec.name.clone();
        if self.entry_points.is_empty() && !spec.routes.is_empty() {
            return vec![TableError::NoEntryPoints { service: service() }];
        }
        let mut errors = Vec::new();
        for route in &spec.routes {
            let is_known = |name: &&EntryPointName| self.entry_points.iter().any(|known| known.name() == *name);
            let unknown = route.entry_points.iter().filter(|name| !is_known(name));
            errors.extend(unknown.map(|unknown| TableError::NoEntryPoint {
                service: service(),
                name: unknown.clone(),
                known: self.entry_points.iter().map(|known| known.name().clone()).collect(),
            }));
            let meant = self.entry_points.iter().filter(|known| route.is_for(known.name()));
            let (served, not): (Vec<_>, Vec<_>) = meant.partition(|known| known.spec().takes(route));
            // Where it names none, those that end TLS are meant.
            if served.is_empty() || !route.entry_points.is_empty() {
                errors.extend(not.into_iter().map(|known| {
                    let (service, label) = (service(), route.said_by.clone());
                    let (rule, entry_point) = (route.rule.to_string(), known.name().clone());
                    match known.spec().is_tls {
                        true => TableError::EndsTls {
                            service,
                            label,
                            rule,
                            entry_point,
                        },
                        false => TableError::NoTls {
                            service,
                            label,
                            rule,
                            entry_point,
                        },
                    }
                }));
            }
        }
        errors.sort_by_key(ToString::to_string);
        errors.dedup();
        errors
    }

    /// Who has a port of this node in a way that excludes `listen`: the same address, or everywhere on either side.
    fn published_beside(&self, listen: Listen) -> Option<(&ServiceName, ListenKind)> {
        let first = Listen {
            port: listen.port,
            ip: None,
        };
        self.listens
            .range(first..)
            .take_while(|(other, _)| other.port == listen.port)
            .filter(|(_, route)| route.kind != ListenKind::Vip)
            .find(|(other, _)| other.ip.is_none() || listen.ip.is_none() || other.ip == listen.ip)
            .map(|(_, route)| (&route.service, route.kind))
    }
}

fn local_tasks(spec: &ServiceSpec) -> impl Iterator<Item = &Arc<TaskRef>> {
    let tasks = spec.endpoints.iter().filter_map(|endpoint| endpoint.task.as_ref());
    tasks.filter(|task| !task.is_remote)
}

fn check_endpoints(spec: &ServiceSpec) -> Result<(), TableError> {
    let mut endpoints: Vec<_> = spec.endpoints.iter().collect();
    endpoints.sort_unstable();
    match endpoints.windows(2).find(|pair| pair[0] == pair[1]) {
        None => Ok(()),
        Some(pair) => Err(TableError::EndpointTwice {
            service: spec.name.clone(),
            addr: pair[0].addr,
        }),
    }
}
