//! A cluster as the source: what its managers say becomes this node's routing table. Tasks of this node are endpoints at
//! their own addresses, those of other nodes are endpoints behind the link. Not here: where the cluster comes from
//! (`swarm`, `link`), and who finds the addresses of local tasks.

mod claims;

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use imbl::OrdMap;
use imbl::ordmap::DiffItem;
use tokio::sync::watch;

use self::claims::{Claim, Claims};
use super::SourceStatus;
use crate::model::filters::Filters;
use crate::model::{
    Cluster, ClusterNode, ClusterObject, ClusterService, EndpointSpec, Mode, PublishedPort, Reach, RouteSpec,
    ServiceName, ServiceSpec, StickyKey, TaskRef, Weight, labels, traefik,
};
use crate::routing::{Change, EntryPoint, RoutingTable, TableHandle};

/// Where this node's tasks are reached, by task id.
pub type LocalTasks = OrdMap<Arc<str>, Reach>;

/// What is wrong with services of the cluster, or with how they are served, by service name. Read by `admin`.
#[derive(Debug, Default)]
pub struct Faults {
    /// std mutex: touched when a service changes and when somebody looks.
    by_service: Mutex<BTreeMap<String, Vec<String>>>,
}

impl Faults {
    pub fn snapshot(&self) -> BTreeMap<String, Vec<String>> {
        self.lock().clone()
    }

    /// Logs what is new.
    fn set(&self, service: &str, faults: Vec<String>) {
        let mut by_service = self.lock();
        let before = by_service.get(service);
        for fault in &faults {
            if !before.is_some_and(|before| before.contains(fault)) {
                tracing::warn!(service, "{fault}");
            }
        }
        match faults.is_empty() {
            true => drop(by_service.remove(service)),
            false => drop(by_service.insert(service.to_owned(), faults)),
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Vec<String>>> {
        self.by_service.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Who this node is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct OwnNode {
    /// Empty while it is not known: then every task is another node's.
    pub id: Arc<str>,
}

/// Makes tables of clusters.
pub struct ClusterSource {
    table: Arc<TableHandle>,
    status: Arc<SourceStatus>,
    faults: Arc<Faults>,
    link_port: u16,
    not_tcp: &'static str,
    seen: Arc<Cluster>,
    local: LocalTasks,
    own: OwnNode,
    /// Task ids by service id.
    tasks: BTreeMap<String, BTreeSet<String>>,
    /// What the table says, by service id.
    applied: BTreeMap<String, Arc<ServiceSpec>>,
    /// Whose rules are whose.
    claims: Claims,
    /// What was understood of each service's routes, so that its rules stay compiled whether they are served or not.
    routes: BTreeMap<String, Vec<RouteSpec>>,
    /// Services that the table refused: tried again with every change.
    refused: BTreeSet<String>,
    /// Everything that a table needs is known, or was waited for long enough.
    is_settled: bool,
    /// Whoever gives the clusters says whether they are the latest.
    may_be_old: bool,
    /// Traefik's labels are read beside ours.
    reads_traefik: bool,
    /// Between a task's leaving and its stop signal, at most.
    stopped_within: Duration,
}

impl ClusterSource {
    /// `link_port`: where other nodes take connections to their tasks. `not_tcp` says who serves ports that are not TCP.
    pub fn new(
        table: Arc<TableHandle>,
        status: Arc<SourceStatus>,
        faults: Arc<Faults>,
        link_port: u16,
        not_tcp: &'static str,
    ) -> ClusterSource {
        ClusterSource {
            table,
            status,
            faults,
            link_port,
            not_tcp,
            seen: Arc::default(),
            local: LocalTasks::default(),
            own: OwnNode::default(),
            tasks: BTreeMap::new(),
            applied: BTreeMap::new(),
            claims: Claims::default(),
            routes: BTreeMap::new(),
            refused: BTreeSet::new(),
            is_settled: false,
            may_be_old: false,
            reads_traefik: false,
            stopped_within: SWARM_WAITS,
        }
    }

    /// Whether Traefik's labels are read beside ours.
    pub fn reading_traefik(mut self, reads_traefik: bool) -> ClusterSource {
        self.reads_traefik = reads_traefik;
        self
    }

    /// What is given may be old: a table that was made of it is not said to be current.
    pub fn of_what_may_be_old(mut self) -> ClusterSource {
        self.may_be_old = true;
        self
    }

    /// How long it may take from a task's leaving the table to its stop signal: connections last as long, and the grace period.
    pub fn stopping_within(mut self, longest: Duration) -> ClusterSource {
        self.stopped_within = longest;
        self
    }

    /// Follows all three until `shutdown`.
    pub async fn run(
        mut self,
        mut clusters: watch::Receiver<Arc<Cluster>>,
        mut local: watch::Receiver<Option<Arc<LocalTasks>>>,
        mut own: watch::Receiver<OwnNode>,
        shutdown: impl Future<Output = ()>,
    ) {
        tokio::pin!(shutdown);
        let patience = tokio::time::sleep(ENGINE_PATIENCE);
        tokio::pin!(patience);
        loop {
            let cluster = clusters.borrow_and_update().clone();
            let tasks = local.borrow_and_update().clone();
            // Without the engine's word, tasks of this node are missing.
            self.is_settled |= tasks.is_some() || patience.is_elapsed();
            let node = own.borrow_and_update().clone();
            self.follow(&cluster, &tasks.unwrap_or_default(), &node);
            // An error means that nobody will ever say more.
            tokio::select! {
                () = &mut shutdown => break,
                Ok(()) = clusters.changed() => {}
                Ok(()) = local.changed() => {}
                Ok(()) = own.changed() => {}
                () = &mut patience, if !patience.is_elapsed() => {}
                else => break,
            }
        }
    }

    /// Brings the table to this cluster. Costs what differs, where only tasks and services do.
    pub fn follow(&mut self, cluster: &Arc<Cluster>, local: &LocalTasks, own: &OwnNode) {
        let before = std::mem::replace(&mut self.seen, cluster.clone());
        let mut touched = BTreeSet::new();
        let mut nodes_differ = self.own != *own;
        self.own = own.clone();
        for diff in Cluster::diff(&before, cluster) {
            if let (Some(ClusterObject::Service(gone)), None) = (diff.before, diff.after) {
                // Also of one that was never served.
                self.faults.set(&gone.name, Vec::new());
            }
            for (object, is_after) in [(diff.before, false), (diff.after, true)] {
                match object {
                    Some(ClusterObject::Service(service)) => drop(touched.insert(service.id.clone())),
                    Some(ClusterObject::Task(task)) => {
                        let tasks = self.tasks.entry(task.service.clone()).or_default();
                        match is_after {
                            true => tasks.insert(task.id.clone()),
                            false => tasks.remove(&task.id),
                        };
                        touched.insert(task.service.clone());
                    }
                    Some(ClusterObject::Node(_)) => nodes_differ |= is_route_of(diff.before) != is_route_of(diff.after),
                    Some(ClusterObject::Unknown) | None => {}
                }
            }
        }
        let local_before = std::mem::replace(&mut self.local, local.clone());
        for item in local_before.diff(local) {
            let (DiffItem::Add(id, _) | DiffItem::Remove(id, _) | DiffItem::Update { new: (id, _), .. }) = item;
            touched.extend(cluster.task(id).map(|task| task.service.clone()));
        }
        if nodes_differ {
            let place = cluster.nodes().position(|node| *node.id == *self.own.id);
            self.table
                .set_place(place.map_or(0, |place| u32::try_from(place).unwrap_or(0)));
            touched.extend(cluster.services().map(|service| service.id.clone()));
        }
        self.tasks.retain(|_, tasks| !tasks.is_empty());
        self.claim(&mut touched);
        // Those come last, and by themselves: one that is refused for good must not keep the others from changing together.
        let refused = std::mem::take(&mut self.refused);
        touched.retain(|id| !refused.contains(id));
        self.commit(&touched);
        for id in refused {
            self.commit(&BTreeSet::from([id]));
        }
        self.applied_all();
    }

    /// Takes down what the routes of these ask for, and adds those whose routes others' have come between.
    fn claim(&mut self, touched: &mut BTreeSet<String>) {
        let mut beside = BTreeSet::new();
        let table = self.table.load();
        for id in &*touched {
            let service = self.seen.service(id);
            let routes = service.map(|service| self.routes_of(service)).unwrap_or_default();
            let claims = routes.iter().flat_map(|route| claims_at(&table, route)).collect();
            match routes.is_empty() {
                true => drop(self.routes.remove(id)),
                false => drop(self.routes.insert(id.clone(), routes)),
            }
            let made_at = service.and_then(|service| service.made_at_ms).unwrap_or(0);
            beside.extend(self.claims.set(id, made_at, claims));
        }
        touched.extend(beside);
    }

    fn routes_of(&self, service: &ClusterService) -> Vec<RouteSpec> {
        let (true, Ok(name)) = (self.asks_for_routes(service), ServiceName::new(&service.name)) else {
            return Vec::new();
        };
        let mut spec = ServiceSpec::new(name);
        match self.apply_labels(service, &mut spec).wrong.is_empty() {
            true => spec.routes,
            false => Vec::new(),
        }
    }

    fn asks_for_routes(&self, service: &ClusterService) -> bool {
        let asks = |ask: fn(&BTreeMap<String, String>) -> bool| ask(&service.labels);
        asks(labels::ask_for_routes) || (self.reads_traefik && asks(traefik::ask_for_routes))
    }

    fn apply_labels(&self, service: &ClusterService, spec: &mut ServiceSpec) -> labels::Labels {
        let faults = match self.reads_traefik {
            true => traefik::apply(&service.labels, spec),
            false => Vec::new(),
        };
        let mut labels = labels::apply(&service.labels, spec);
        labels.faults.extend(faults);
        labels
    }

    fn commit(&mut self, touched: &BTreeSet<String>) {
        let mut changes = Vec::new();
        let mut next: Vec<(String, Option<Arc<ServiceSpec>>)> = Vec::new();
        for id in touched {
            let applied = self.applied.get(id);
            let wanted = self.seen.service(id).and_then(|service| self.spec_of(service));
            match (applied, wanted) {
                (None, None) => {}
                (Some(before), None) => {
                    // What is said of one that is there stays.
                    if self.seen.service(id).is_none() {
                        self.faults.set(before.name.as_str(), Vec::new());
                    }
                    changes.push(Change::Remove(before.name.clone()));
                    next.push((id.clone(), None));
                }
                (Some(before), Some(after)) if **before == after => {}
                (before, Some(after)) => {
                    if let Some(before) = before.filter(|before| before.name != after.name) {
                        changes.push(Change::Remove(before.name.clone()));
                    }
                    let after = Arc::new(after);
                    changes.push(Change::Upsert {
                        spec: after.clone(),
                        vip: None,
                    });
                    next.push((id.clone(), Some(after)));
                }
            }
        }
        if changes.is_empty() {
            return;
        }
        match self.table.commit(&changes) {
            Ok(_) => next.into_iter().for_each(|(id, spec)| self.applied_now(id, spec)),
            // One that conflicts must not keep the others out.
            Err(_) => self.commit_each(next),
        }
    }

    fn applied_all(&self) {
        match (self.is_settled, self.may_be_old) {
            (true, false) => self.status.applied(),
            (true, true) => self.status.made(),
            (false, _) => {}
        }
    }

    fn commit_each(&mut self, mut next: Vec<(String, Option<Arc<ServiceSpec>>)>) {
        // What leaves goes first: it may hold what the others need.
        next.sort_by_key(|(_, spec)| spec.is_some());
        for (id, spec) in next {
            let before = self.applied.get(&id).map(|before| before.name.clone());
            let mut changes: Vec<Change> = before.into_iter().map(Change::Remove).collect();
            if let Some(spec) = &spec {
                changes.retain(|change| !matches!(change, Change::Remove(name) if *name == spec.name));
                changes.push(Change::Upsert {
                    spec: spec.clone(),
                    vip: None,
                });
            }
            match self.table.commit(&changes) {
                Ok(_) => self.applied_now(id, spec),
                Err(error) => {
                    if let Some(spec) = spec {
                        self.faults.set(spec.name.as_str(), vec![error.to_string()]);
                    }
                    self.refused.insert(id);
                }
            }
        }
    }

    fn applied_now(&mut self, id: String, spec: Option<Arc<ServiceSpec>>) {
        if let Some(spec) = spec.as_ref().filter(|_| tracing::enabled!(tracing::Level::DEBUG)) {
            let before = self.applied.get(&id);
            let is_new = |task: &TaskRef| {
                let known = before.iter().flat_map(|before| &before.endpoints);
                !known
                    .filter_map(|known| known.task.as_ref())
                    .any(|known| known.id == task.id)
            };
            for task in spec.endpoints.iter().filter_map(|endpoint| endpoint.task.as_deref()) {
                if is_new(task) {
                    tracing::debug!(service = %spec.name, task = %task.id, "routed");
                }
            }
        }
        match spec {
            Some(spec) => drop(self.applied.insert(id, spec)),
            None => drop(self.applied.remove(&id)),
        }
    }

    /// What the table is to say of a service; `None` for one that nobody reaches through us.
    fn spec_of(&self, service: &ClusterService) -> Option<ServiceSpec> {
        let is_tcp = |protocol: &str| protocol == "tcp";
        let is_routed = self.asks_for_routes(service);
        if service.networks.is_empty() && !is_routed && !service.ports.iter().any(|port| is_tcp(&port.protocol)) {
            self.faults.set(&service.name, Vec::new());
            return None;
        }
        let name = match ServiceName::new(&service.name) {
            Ok(name) => name,
            Err(error) => {
                self.faults.set(&service.name, vec![format!("name: {error}")]);
                return None;
            }
        };
        let mut spec = ServiceSpec::new(name);
        let labels = self.apply_labels(service, &mut spec);
        let mut faults = labels.faults;
        faults.extend(
            service
                .refused
                .iter()
                .flat_map(|(label, value)| refusal(service, label, value)),
        );
        if !labels.wrong.is_empty() {
            let wrong: Vec<&str> = labels.wrong.iter().map(String::as_str).collect();
            faults.push(format!(
                "not served before it is known what {} is to be",
                wrong.join(", ")
            ));
            self.faults.set(&service.name, faults);
            return None;
        }
        for port in &service.ports {
            match is_tcp(&port.protocol) {
                true => spec.publish.push(PublishedPort {
                    bind: labels.bind,
                    published: port.published,
                    target: port.target,
                }),
                false => faults.push(format!("port {}/{}: {}", port.published, port.protocol, self.not_tcp)),
            }
        }
        spec.publish.sort_unstable();
        spec.publish.dedup();
        self.judge_routes(service, &mut spec, &mut faults);
        if is_routed && self.link_port != 0 && service.networks.is_empty() && service.ports.is_empty() {
            let label = spec.routes.first().map_or(labels::ROUTE, |route| &route.said_by);
            faults.push(format!(
                "label {label}: no node reaches its tasks: expected a network that it is on, or a published port"
            ));
        }
        let grace = service
            .stop_grace_ms
            .map_or(ServiceSpec::DEFAULT_STOP_GRACE, Duration::from_millis);
        // The grace period begins with the stop signal, and that is waited with.
        spec.stop_grace = grace.saturating_add(self.stopped_within);
        spec.endpoints = self.endpoints_of(service, &mut faults);
        spec.set_weights(self.weights_of(&spec.endpoints, &mut faults));
        if let Some(sticky) = &mut spec.sticky {
            sticky.key = StickyKey::of_service(&service.id);
            sticky.settle_name(&spec.name);
        }
        spec.attachments.clone_from(&service.networks);
        self.faults.set(&service.name, faults);
        Some(spec)
    }

    /// Says which routes and ports are not served, and takes away those that are another's or lead nowhere: what else there is of
    /// the service is served.
    fn judge_routes(&self, service: &ClusterService, spec: &mut ServiceSpec, faults: &mut Vec<String>) {
        let table = self.table.load();
        spec.publish.retain(|port| {
            let taken = |one: &&EntryPoint| one.spec().is_at(port.bind, port.published);
            let Some(taken) = table.entry_points().iter().find(taken) else {
                return true;
            };
            faults.push(format!(
                "port {}: not served: it is that of entry point {}, which services share by the label {}",
                port.published,
                taken.name(),
                labels::ROUTE
            ));
            false
        });
        if let Err(expected) = spec.settle_routes(false) {
            for route in spec
                .routes
                .iter_mut()
                .filter(|route| route.target == 0 && !route.is_closed)
            {
                faults.push(format!("label {}={}: {expected}", route.said_by, route.rule));
                route.is_closed = true;
            }
            // It is http for the routes' sake alone.
            if spec.filters.is_none()
                && spec.routes.iter().all(|route| route.is_closed)
                && !service.labels.contains_key(labels::MODE)
            {
                spec.mode = Mode::default();
            }
        }
        let mut own: BTreeMap<Claim, (Arc<str>, Option<Arc<Filters>>)> = BTreeMap::new();
        // Whose requests another of the service's would have with less asked of them.
        let mut to_close: BTreeSet<Arc<str>> = BTreeSet::new();
        spec.routes.retain(|route| {
            let claims = claims_at(&table, route);
            for claim in &claims {
                let kept = own
                    .entry(claim.clone())
                    .or_insert_with(|| (route.said_by.clone(), route.filters.clone()));
                if kept.0 != route.said_by {
                    let (said_by, filters) = kept;
                    if route.is_closed || *filters != route.filters {
                        to_close.insert(said_by.clone());
                    }
                    faults.push(format!(
                        "label {}={}: it is already that of label {said_by}",
                        route.said_by, route.rule
                    ));
                    return false;
                }
            }
            let other = claims
                .iter()
                .find_map(|claim| Some((claim, self.claims.other_owner(&service.id, claim)?)));
            let Some(((entry_point, _), owner)) = other else {
                return true;
            };
            let name = self.seen.service(owner).map_or(owner, |owner| owner.name.as_str());
            faults.push(format!(
                "label {}={}: it is already that of service {name} at entry point {entry_point}",
                route.said_by, route.rule
            ));
            false
        });
        for route in spec.routes.iter_mut().filter(|route| to_close.contains(&route.said_by)) {
            route.close(|_| false);
            faults.push(format!(
                "label {}={}: closed, since another label asks for something else of the same requests",
                route.said_by, route.rule
            ));
        }
        faults.extend(table.unserved(spec).iter().map(|error| error.to_string()));
    }

    fn endpoints_of(&self, service: &ClusterService, faults: &mut Vec<String>) -> Vec<EndpointSpec> {
        let mut tasks: Vec<_> = self.tasks.get(&service.id).into_iter().flatten().collect();
        tasks.sort_by_key(|id| (self.seen.task(id).map(|task| task.slot), *id));
        let mut endpoints = Vec::with_capacity(tasks.len());
        for task in tasks.into_iter().filter_map(|id| self.seen.task(id)) {
            let node = self.seen.node(&task.node);
            let is_remote = *task.node != *self.own.id;
            let reach = if is_remote {
                match node.and_then(|node| node.addr) {
                    Some(ip) => SocketAddr::new(ip, self.link_port).into(),
                    None => {
                        faults.push(format!(
                            "task {}: the address of its node {} is not known",
                            task.id, task.node
                        ));
                        continue;
                    }
                }
            } else {
                match self.local.get(task.id.as_str()) {
                    Some(reach) => reach.clone(),
                    // It follows within moments: the engine says so itself.
                    None => continue,
                }
            };
            let slot = match task.slot {
                0 => task.node.clone(),
                slot => slot.to_string(),
            };
            // A task with this host's network has none.
            let is_inside = is_remote || reach.netns.is_some();
            let addresses = task.addresses.iter().filter(|_| is_inside);
            let addresses = addresses.map(|(network, ip)| (network.as_str().into(), *ip)).collect();
            endpoints.push(EndpointSpec {
                addr: reach.addr,
                netns: reach.netns,
                task: Some(Arc::new(TaskRef {
                    id: task.id.as_str().into(),
                    name: format!("{}.{slot}", service.name),
                    service: service.id.as_str().into(),
                    node: task.node.as_str().into(),
                    hostname: node.map_or("", |node| node.hostname.as_str()).into(),
                    is_remote,
                    addresses,
                    names: task.names.iter().map(|name| name.as_str().into()).collect(),
                })),
            });
        }
        endpoints
    }
}

impl ClusterSource {
    /// How much each of these gets: what the node says that it is on.
    fn weights_of(&self, endpoints: &[EndpointSpec], faults: &mut Vec<String>) -> Vec<Weight> {
        let mut wrong: BTreeSet<&str> = BTreeSet::new();
        let mut weights = Vec::with_capacity(endpoints.len());
        for task in endpoints.iter().filter_map(|endpoint| endpoint.task.as_deref()) {
            let (weight, said) = match self.seen.node(&task.node) {
                Some(node) if !node.labels.is_empty() => labels::of_node(&node.labels),
                _ => Default::default(),
            };
            if !said.is_empty() && wrong.insert(&task.node) {
                faults.extend(said.iter().map(|fault| format!("node {}: {fault}", task.hostname)));
            }
            weights.push(weight);
        }
        weights
    }
}

fn claims_at(table: &RoutingTable, route: &RouteSpec) -> Vec<Claim> {
    let at = table.entry_points().iter().filter(|one| one.spec().takes(route));
    at.map(|one| {
        (
            one.name().as_counted().key().to_owned(),
            route.rule.canonical().to_owned(),
        )
    })
    .collect()
}

/// What of a node the endpoints on it depend on.
fn is_route_of(object: Option<&ClusterObject>) -> Option<(&Option<IpAddr>, &String, &BTreeMap<String, String>)> {
    match object {
        Some(ClusterObject::Node(ClusterNode {
            addr, hostname, labels, ..
        })) => Some((addr, hostname, labels)),
        _ => None,
    }
}

/// How long a table waits for the engine's word on this node's tasks before it counts as whole without.
const ENGINE_PATIENCE: Duration = Duration::from_secs(3);
/// Between a task's leaving and its stop signal, in a Docker Swarm.
const SWARM_WAITS: Duration = Duration::from_secs(2);

/// What is wrong with a label's value that was not taken, and what holds instead.
fn refusal(service: &ClusterService, label: &str, value: &str) -> Vec<String> {
    let alone = BTreeMap::from([(label.to_owned(), value.to_owned())]);
    // What goes only with others is wrong beside them.
    let beside = service
        .labels
        .iter()
        .chain(&alone)
        .map(|(label, value)| (label.clone(), value.clone()));
    let faults = labels::faults_of(label, &beside.collect());
    let holds = match service.labels.get(label) {
        Some(good) => format!("the last good value, {}, holds", labels::shown(label, good)),
        None => "it is not set, as before".to_owned(),
    };
    match faults.is_empty() {
        // What is wrong is said of another, which was there before.
        true => vec![format!(
            "label {label}={}: it does not go with the other labels; {holds}",
            labels::shown(label, value)
        )],
        false => faults.into_iter().map(|fault| format!("{fault}; {holds}")).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{ClusterPort, ClusterTask};

    fn node(id: &str, last: u8) -> ClusterObject {
        ClusterObject::Node(ClusterNode {
            id: id.to_owned(),
            hostname: format!("host-{id}"),
            addr: Some(IpAddr::from([10, 0, 0, last])),
            is_manager: false,
            is_up: true,
            availability: "active".to_owned(),
            labels: Default::default(),
        })
    }

    fn labelled(id: &str, last: u8, label: (&str, &str)) -> ClusterObject {
        let ClusterObject::Node(mut node) = node(id, last) else {
            unreachable!("it is one");
        };
        node.labels.insert(label.0.to_owned(), label.1.to_owned());
        ClusterObject::Node(node)
    }

    fn service(id: &str, name: &str, published: u16, labels: &[(&str, &str)]) -> ClusterObject {
        ClusterObject::Service(ClusterService {
            made_at_ms: None,
            id: id.to_owned(),
            name: name.to_owned(),
            ports: vec![ClusterPort {
                protocol: "tcp".to_owned(),
                published,
                target: 80,
            }],
            labels: labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
            refused: BTreeMap::new(),
            stop_grace_ms: None,
            networks: Vec::new(),
        })
    }

    fn task(id: &str, service: &str, node: &str, slot: u64) -> ClusterObject {
        ClusterObject::Task(ClusterTask {
            id: id.to_owned(),
            service: service.to_owned(),
            node: node.to_owned(),
            slot,
            addresses: Default::default(),
            names: Vec::new(),
        })
    }

    struct Rig {
        source: ClusterSource,
        cluster: Cluster,
        local: LocalTasks,
    }

    impl Rig {
        fn new() -> Rig {
            let mut cluster = Cluster::default();
            [node("a", 1), node("b", 2)]
                .into_iter()
                .for_each(|object| cluster.put(object));
            Rig {
                source: ClusterSource::new(Arc::default(), Arc::default(), Arc::default(), 7377, "not served here"),
                cluster,
                local: LocalTasks::default(),
            }
        }

        /// With an entry point on all addresses of port 80.
        fn with_entry_point() -> Rig {
            let web = crate::model::EntryPointSpec::new("web".parse().unwrap(), None, 80);
            let table = Arc::new(TableHandle::with_entry_points(vec![web]));
            let source = ClusterSource::new(table, Arc::default(), Arc::default(), 7377, "not served here");
            Rig { source, ..Rig::new() }
        }

        /// A service with a route, made at that moment.
        fn routed(&mut self, id: &str, made_at: u64, published: u16, labels: &[(&str, &str)]) {
            let ClusterObject::Service(mut service) = service(id, &format!("of-{id}"), published, labels) else {
                unreachable!("it is one");
            };
            service.made_at_ms = Some(made_at);
            self.cluster.put(ClusterObject::Service(service));
        }

        /// Whose a request for the host is.
        fn owner(&self, host: &str) -> Option<String> {
            struct NoFields;
            impl crate::model::rule::Fields for NoFields {
                fn any(&self, _: &str, _: &mut dyn FnMut(&[u8]) -> bool) -> bool {
                    false
                }
            }
            let asked = crate::model::rule::Asked {
                host,
                path: b"/",
                query: b"",
                method: "GET",
                client: IpAddr::from([127, 0, 0, 1]),
                fields: &NoFields,
            };
            let table = self.source.table.load();
            let found = table.entry_points()[0].front().find(&asked);
            found.map(|routed| routed.service.to_string())
        }

        fn fault(&self, service: &str) -> String {
            self.source
                .faults
                .snapshot()
                .get(service)
                .map_or_else(String::new, |faults| faults.join("; "))
        }

        /// The published ports that are in the table.
        fn ports(&self) -> Vec<u16> {
            let table = self.source.table.load();
            let listens = table
                .listens()
                .filter(|(_, route)| route.kind == crate::routing::ListenKind::Published);
            listens.map(|(listen, _)| listen.port).collect()
        }

        fn follow(&mut self) {
            let own = OwnNode { id: "a".into() };
            self.source.follow(&Arc::new(self.cluster.clone()), &self.local, &own);
        }

        fn endpoints(&self, service: &str) -> Vec<String> {
            let table = self.source.table.load();
            let service = table.service_by_key(service);
            service.map_or_else(Vec::new, |service| {
                service
                    .endpoints()
                    .iter()
                    .map(|endpoint| endpoint.spec().to_string())
                    .collect()
            })
        }
    }

    #[test]
    fn what_is_open_to_a_task_lasts_until_its_stop_signal_and_the_whole_grace_period() {
        let mut rig = Rig::new();
        let ClusterObject::Service(mut web) = service("s", "web", 8080, &[]) else {
            unreachable!("it is one");
        };
        web.stop_grace_ms = Some(3000);
        rig.cluster.put(ClusterObject::Service(web));
        let grace = |rig: &Rig| rig.source.table.load().service_by_key("web").unwrap().spec().stop_grace;
        rig.follow();
        assert_eq!(grace(&rig), Duration::from_secs(3 + 2));
        let mut own = Rig {
            cluster: rig.cluster.clone(),
            ..Rig::new()
        };
        own.source = own.source.stopping_within(Duration::from_secs(10));
        own.follow();
        assert_eq!(grace(&own), Duration::from_secs(3 + 10));
    }

    #[test]
    fn what_a_node_is_labelled_with_weighs_the_tasks_that_run_there() {
        let mut rig = Rig::new();
        rig.cluster.put(service("s", "web", 8080, &[]));
        rig.cluster.put(task("1", "s", "b", 1));
        rig.cluster.put(task("2", "s", "c", 2));
        rig.cluster.put(node("c", 3));
        rig.follow();
        let weights = |rig: &Rig| -> Vec<u32> {
            let service = rig.source.table.load().service_by_key("web").unwrap().clone();
            let weights = (0..service.endpoints().len()).map(|place| service.spec().weight_of(place).get());
            weights.collect()
        };
        assert_eq!((weights(&rig), rig.fault("web")), (vec![1, 1], String::new()));
        rig.cluster.put(labelled("c", 3, (labels::WEIGHT, "0")));
        rig.follow();
        assert_eq!(weights(&rig), [1, 0]);
        for (label, fault) in [
            (
                ("anynode.weight", "-1"),
                "node host-c: label anynode.weight: \"-1\" is not valid: expected a weight from 0 to 1000",
            ),
            (
                ("anynode.wieght", "3"),
                "node host-c: label anynode.wieght: no such option of a node: expected anynode.weight",
            ),
        ] {
            rig.cluster.put(labelled("c", 3, label));
            rig.follow();
            assert_eq!((weights(&rig), rig.fault("web")), (vec![1, 1], fault.to_owned()));
        }
    }

    #[test]
    fn tasks_here_are_at_their_addresses_and_others_behind_their_nodes() {
        let mut rig = Rig::new();
        rig.cluster.put(service("s", "web", 8080, &[]));
        rig.cluster.put(task("t2", "s", "b", 2));
        rig.cluster.put(task("t1", "s", "a", 1));
        rig.follow();
        assert_eq!(
            rig.endpoints("web"),
            ["10.0.0.2:7377"],
            "the address of t1 is not known yet"
        );
        rig.local
            .insert("t1".into(), "172.18.0.3:0".parse::<SocketAddr>().unwrap().into());
        rig.follow();
        assert_eq!(rig.endpoints("web"), ["172.18.0.3", "10.0.0.2:7377"]);
        let table = rig.source.table.load();
        assert!(table.local_task("t1").is_some() && table.local_task("t2").is_none());
        rig.cluster.remove("task/t2");
        rig.follow();
        assert_eq!(rig.endpoints("web"), ["172.18.0.3"]);
        rig.cluster.remove("task/t1");
        rig.follow();
        assert!(
            rig.source.table.load().service_by_key("web").is_some(),
            "the port stays open without tasks"
        );
        rig.cluster.remove("service/s");
        rig.follow();
        assert!(rig.source.table.load().is_empty());
    }

    #[test]
    fn two_tasks_of_one_service_on_one_node_are_two_endpoints() {
        let mut rig = Rig::new();
        rig.cluster.put(service("s", "web", 8080, &[]));
        rig.cluster.put(task("t1", "s", "b", 1));
        rig.cluster.put(task("t2", "s", "b", 2));
        rig.follow();
        assert_eq!(rig.endpoints("web"), ["10.0.0.2:7377", "10.0.0.2:7377"]);
        assert_eq!(rig.source.faults.snapshot(), BTreeMap::new());
    }

    #[test]
    fn a_wrong_label_is_a_fault_of_its_service_and_a_conflict_keeps_nobody_else_out() {
        let mut rig = Rig::new();
        rig.cluster
            .put(service("s1", "web", 8080, &[("anynode.mode", "htttp")]));
        rig.cluster.put(service("s2", "api", 8080, &[]));
        rig.cluster.put(service("s3", "db", 8080, &[]));
        rig.follow();
        let faults = rig.source.faults.snapshot();
        assert!(
            faults["web"][0].starts_with("label anynode.mode: \"htttp\" is not valid")
                && faults["web"][1].contains("not served before it is known what anynode.mode is to be"),
            "{faults:?}"
        );
        assert!(
            faults["db"][0].contains("already published by service api"),
            "{faults:?}"
        );
        let served = |rig: &Rig| {
            let table = rig.source.table.load();
            ["web", "api", "db"].map(|name| table.service_by_key(name).is_some())
        };
        assert_eq!(served(&rig), [false, true, false]);
        rig.cluster.remove("service/s1");
        rig.cluster.remove("service/s2");
        rig.follow();
        assert_eq!(served(&rig), [false, false, true]);
        assert_eq!(rig.source.faults.snapshot(), BTreeMap::new());

        // What managers did not take is said with what holds instead.
        let ClusterObject::Service(mut slipped) = service("s4", "app", 9090, &[("anynode.mode", "http")]) else {
            unreachable!("it is one");
        };
        slipped.refused = BTreeMap::from([("anynode.mode".to_owned(), "htp".to_owned())]);
        rig.cluster.put(ClusterObject::Service(slipped));
        rig.follow();
        let faults = rig.source.faults.snapshot();
        assert!(
            faults["app"][0].contains("\"htp\" is not valid")
                && faults["app"][0].ends_with("the last good value, http, holds"),
            "{faults:?}"
        );
        let table = rig.source.table.load();
        assert_eq!(table.service_by_key("app").unwrap().spec().mode, Mode::Http);
    }

    const X: (&str, &str) = ("anynode.route", "Host(`x`)");
    const Y: (&str, &str) = ("anynode.route", "Host(`y`)");

    #[test]
    fn a_rule_is_the_services_that_was_made_first_and_the_rest_of_the_others_is_served() {
        for order in [["z", "c"], ["c", "z"]] {
            let mut rig = Rig::with_entry_point();
            for id in order {
                let (made_at, port) = if id == "z" { (1, 8001) } else { (2, 8002) };
                rig.routed(id, made_at, port, &[X]);
                rig.follow();
            }
            assert_eq!(
                (rig.owner("x").as_deref(), rig.ports()),
                (Some("of-z"), vec![8001, 8002]),
                "{order:?}"
            );
            assert!(
                rig.fault("of-c")
                    .contains("already that of service of-z at entry point web"),
                "{}",
                rig.fault("of-c")
            );
            assert_eq!(rig.fault("of-z"), "");
            // Its tasks come and go meanwhile.
            rig.cluster.put(task("t", "c", "b", 1));
            rig.follow();
            assert_eq!(rig.endpoints("of-c"), ["10.0.0.2:7377"]);
            // They change places in one step.
            rig.routed("z", 1, 8001, &[Y]);
            rig.follow();
            assert_eq!(
                (rig.owner("x").as_deref(), rig.owner("y").as_deref()),
                (Some("of-c"), Some("of-z"))
            );
            assert_eq!(rig.fault("of-c"), "");
            rig.routed("z", 1, 8001, &[X]);
            rig.routed("c", 2, 8002, &[Y]);
            rig.follow();
            assert_eq!(
                (rig.owner("x").as_deref(), rig.owner("y").as_deref()),
                (Some("of-z"), Some("of-c"))
            );
            rig.cluster.remove("service/z");
            rig.follow();
            assert_eq!((rig.owner("x"), rig.owner("y").as_deref()), (None, Some("of-c")));
        }
    }

    #[test]
    fn a_task_that_comes_or_goes_has_no_rule_compiled() {
        let mut rig = Rig::with_entry_point();
        let rule = ("anynode.route", "Host(`compiled.test`) && PathRegexp(`^/[a-z]+`)");
        rig.routed("s", 1, 8001, &[rule]);
        // Another's that is refused.
        rig.routed(
            "t",
            2,
            8002,
            &[("anynode.route", "PathRegexp(`^/[a-z]+`) && Host(`compiled.test`)")],
        );
        let before = crate::model::rule::compiled::count();
        rig.follow();
        assert_eq!(crate::model::rule::compiled::count(), before + 2);
        for i in 0..10 {
            rig.cluster.put(task(&format!("s{i}"), "s", "b", i));
            rig.cluster.put(task(&format!("t{i}"), "t", "b", i));
            rig.follow();
        }
        assert_eq!((rig.endpoints("of-s").len(), rig.endpoints("of-t").len()), (10, 10));
        assert_eq!(crate::model::rule::compiled::count(), before + 2);
    }

    #[test]
    fn what_is_wrong_with_a_route_takes_no_port_away() {
        let mut rig = Rig::with_entry_point();
        rig.routed("s", 1, 8001, &[X, ("anynode.port", "80")]);
        rig.follow();
        assert_eq!((rig.owner("x").as_deref(), rig.ports()), (Some("of-s"), vec![8001]));
        // The route alone goes.
        rig.routed("s", 1, 8001, &[("anynode.port", "80")]);
        rig.follow();
        assert_eq!((rig.owner("x"), rig.ports()), (None, vec![8001]));
        assert!(
            rig.fault("of-s")
                .contains("label anynode.port=80: expected a route beside it"),
            "{}",
            rig.fault("of-s")
        );
        // A port that is the entry point's. Where tasks listen is not known then: the route is kept, and lets nobody through.
        rig.routed("s", 1, 80, &[X]);
        rig.follow();
        assert_eq!((rig.owner("x").as_deref(), rig.ports()), (Some("of-s"), vec![]));
        let table = rig.source.table.load();
        assert!(table.service_by_key("of-s").unwrap().spec().routes[0].is_closed);
        assert!(
            rig.fault("of-s")
                .contains("port 80: not served: it is that of entry point web"),
            "{}",
            rig.fault("of-s")
        );
        // It is not known where its tasks listen: then it is what it is without a route.
        let ClusterObject::Service(mut many) = service("m", "many", 8002, &[X]) else {
            unreachable!("it is one");
        };
        many.ports.push(ClusterPort {
            protocol: "tcp".to_owned(),
            published: 8003,
            target: 25,
        });
        rig.cluster.put(ClusterObject::Service(many));
        rig.follow();
        let table = rig.source.table.load();
        assert_eq!(table.service_by_key("many").unwrap().spec().mode, Mode::Tcp);
        assert!(
            rig.fault("many").contains("the service publishes several"),
            "{}",
            rig.fault("many")
        );
        // What is asked of requests is asked of those to its ports too, which tcp has none of.
        let ClusterObject::Service(mut guarded) = service("g", "guarded", 8004, &[X, ("anynode.allow", "10.0.0.0/8")])
        else {
            unreachable!("it is one");
        };
        guarded.ports.push(ClusterPort {
            protocol: "tcp".to_owned(),
            published: 8005,
            target: 25,
        });
        rig.cluster.put(ClusterObject::Service(guarded));
        rig.follow();
        let table = rig.source.table.load();
        let spec = table.service_by_key("guarded").unwrap().spec();
        assert!(spec.mode == Mode::Http && spec.filters.is_some());
    }

    #[test]
    fn of_two_routes_with_one_rule_the_more_guarded_one_holds() {
        let mut rig = Rig::with_entry_point();
        let rule = X.1;
        let labels = [
            ("anynode.routes.a.rule", rule),
            ("anynode.routes.a.port", "80"),
            ("anynode.routes.b.rule", rule),
            ("anynode.routes.b.port", "0"),
        ];
        rig.routed("s", 1, 8001, &labels);
        rig.follow();
        let table = rig.source.table.load();
        let routes = &table.service_by_key("of-s").unwrap().spec().routes;
        assert!(routes.len() == 1 && routes[0].is_closed, "{routes:?}");
        assert!(
            rig.fault("of-s").contains("closed, since another label"),
            "{}",
            rig.fault("of-s")
        );
        rig.routed(
            "s",
            1,
            8001,
            &[labels[0], labels[1], labels[2], ("anynode.routes.b.port", "81")],
        );
        rig.follow();
        let table = rig.source.table.load();
        let routes = &table.service_by_key("of-s").unwrap().spec().routes;
        assert!(routes.len() == 1 && !routes[0].is_closed, "{routes:?}");
    }
}
