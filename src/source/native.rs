//! The own control plane as a source: what its store holds, cut down to a `Cluster` as any node has it. Not here: the way
//! from there to a routing table, which is the same as for a Docker Swarm (`cluster`).

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bollard_stubs::models::{EndpointPortConfig, NetworkAttachmentConfig};
use ipnet::IpNet;
use tokio::sync::watch;

use crate::model::labels;
use crate::model::swarm::{self, AttachedContainer, Availability, Task};
use crate::model::{Attachment, Cluster, ClusterNode, ClusterObject, ClusterPort, ClusterService, ClusterTask};
use crate::store::{Snapshot, Store};

/// Makes clusters of snapshots, each by what differs from the one before.
#[derive(Debug, Default)]
pub struct NativeSource {
    seen: Arc<Snapshot>,
    cluster: Cluster,
}

impl NativeSource {
    /// Publishes the cluster of each snapshot until `shutdown`.
    pub async fn run(
        mut self,
        store: Arc<dyn Store>,
        clusters: watch::Sender<Arc<Cluster>>,
        shutdown: impl Future<Output = ()>,
    ) {
        let mut changed = store.changed();
        let follow = async {
            loop {
                changed.mark_unchanged();
                clusters.send_replace(self.follow(&store.snapshot()));
                // An error means that the store is gone: what it said last stands.
                if changed.changed().await.is_err() {
                    break;
                }
            }
        };
        tokio::select! {
            () = follow => {}
            () = shutdown => {}
        }
    }

    /// The cluster of this snapshot. Costs what differs from the one before.
    pub fn follow(&mut self, snapshot: &Arc<Snapshot>) -> Arc<Cluster> {
        let before = std::mem::replace(&mut self.seen, snapshot.clone());
        for (id, service) in snapshot.services_since(&before) {
            match service {
                Some(service) => self.cluster.put(ClusterObject::Service(service_of(service, snapshot))),
                None => self.cluster.remove(&format!("service/{id}")),
            }
        }
        for (id, task) in snapshot.tasks_since(&before) {
            match task.and_then(|task| task_of(task)) {
                Some(task) => self.cluster.put(ClusterObject::Task(task)),
                None => self.cluster.remove(&format!("task/{id}")),
            }
        }
        for (id, container) in snapshot.containers_since(&before) {
            match container.and_then(|container| as_service(container, snapshot)) {
                Some((service, task)) => {
                    self.cluster.put(ClusterObject::Service(service));
                    self.cluster.put(ClusterObject::Task(task));
                }
                None => {
                    self.cluster.remove(&format!("service/{id}"));
                    self.cluster.remove(&format!("task/{id}"));
                }
            }
        }
        for node in before.nodes().filter(|node| snapshot.node(node.id.as_str()).is_none()) {
            self.cluster.remove(&format!("node/{}", node.id));
        }
        for node in snapshot.nodes() {
            self.cluster.put(ClusterObject::Node(node_of(node)));
        }
        self.cluster.set_revision(snapshot.revision());
        Arc::new(self.cluster.clone())
    }
}

fn service_of(service: &swarm::Service, snapshot: &Snapshot) -> ClusterService {
    let port_of = |port: &EndpointPortConfig| {
        let number = |number: Option<i64>| {
            number
                .and_then(|number| u16::try_from(number).ok())
                .filter(|number| *number > 0)
        };
        Some(ClusterPort {
            protocol: port
                .protocol
                .map_or_else(|| "tcp".to_owned(), |protocol| protocol.to_string()),
            published: number(port.published_port)?,
            target: number(port.target_port)?,
        })
    };
    let all: Vec<(&str, &str)> = service.labels().collect();
    let labels = labels::meant(all.into_iter());
    let template = service.spec.task_template.as_ref();
    ClusterService {
        id: service.id.to_string(),
        name: service.name().to_owned(),
        // Those in host mode too: this node has all tasks there are, so each of its tasks is one of this node.
        ports: service.endpoint.ports.iter().filter_map(port_of).collect(),
        made_at_ms: labels::may_ask_for_routes(&labels).then_some(service.meta.created_at.0 / 1_000_000),
        labels,
        refused: BTreeMap::new(),
        stop_grace_ms: template.map(|template| millis(swarm::stop_grace(template))),
        networks: attachments_of(service, snapshot),
    }
}

/// Of the swarm's own networks: those of the engine are the engine's to serve.
fn attachments_of(service: &swarm::Service, snapshot: &Snapshot) -> Vec<Attachment> {
    let attachment_of = |declared: &NetworkAttachmentConfig| {
        let network = snapshot.network(declared.target.as_deref()?)?;
        let vip = service.endpoint.vips.iter().find(|vip| vip.network == network.id);
        Some(Attachment {
            network: network.id.as_str().into(),
            network_name: network.name.as_str().into(),
            vip: vip.map(|vip| vip.addr.into()),
            subnet: network.subnet.map(IpNet::V4),
            aliases: declared
                .aliases
                .iter()
                .flatten()
                .map(|alias| alias.as_str().into())
                .collect(),
        })
    };
    service.networks().iter().filter_map(attachment_of).collect()
}

/// A container that is no task, as others on its network see it: a service without an address of its own, whose one task it is.
/// What it is called are the service's aliases, so that a name may be a service's too, as in Docker. `None` before it has an
/// address.
fn as_service(container: &AttachedContainer, snapshot: &Snapshot) -> Option<(ClusterService, ClusterTask)> {
    let network = snapshot.network(container.network.as_str())?;
    let own = container.address.as_ref()?;
    let attachment = Attachment {
        network: network.id.as_str().into(),
        network_name: network.name.as_str().into(),
        vip: None,
        subnet: network.subnet.map(IpNet::V4),
        aliases: container.names.iter().map(|name| name.as_str().into()).collect(),
    };
    let service = ClusterService {
        id: container.id.to_string(),
        // No service's that a user declares.
        name: format!("container-{}", container.id),
        ports: Vec::new(),
        labels: BTreeMap::new(),
        refused: BTreeMap::new(),
        stop_grace_ms: None,
        networks: vec![attachment],
        made_at_ms: None,
    };
    let task = ClusterTask {
        id: container.id.to_string(),
        service: container.id.to_string(),
        node: container.node.to_string(),
        slot: 1,
        addresses: BTreeMap::from([(own.network.to_string(), own.addr.into())]),
        names: Vec::new(),
    };
    Some((service, task))
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn task_of(task: &Task) -> Option<ClusterTask> {
    let node = task.node.as_ref().filter(|_| task.is_serving())?;
    let addresses = task.addresses.iter();
    Some(ClusterTask {
        id: task.id.to_string(),
        service: task.service.to_string(),
        node: node.to_string(),
        slot: task.slot,
        addresses: addresses
            .map(|own| (own.network.to_string(), own.addr.into()))
            .collect(),
        names: names_of(task),
    })
}

/// Of a task that is on a network.
fn names_of(task: &Task) -> Vec<String> {
    let container = task.status.container.as_ref().filter(|_| !task.addresses.is_empty());
    let names = container
        .into_iter()
        .flat_map(|container| [container.short_id(), &container.hostname]);
    let mut names: Vec<String> = names
        .filter(|name| !name.is_empty())
        .map(str::to_ascii_lowercase)
        .collect();
    names.dedup();
    names
}

/// Of all labels, those that are for us.
fn ours<T: AsRef<str>>(labels: impl Iterator<Item = (T, T)>) -> BTreeMap<String, String> {
    let ours = labels.filter(|(key, _)| labels::is_ours(key.as_ref()));
    ours.map(|(key, value)| (key.as_ref().to_owned(), value.as_ref().to_owned()))
        .collect()
}

fn node_of(node: &swarm::Node) -> ClusterNode {
    ClusterNode {
        id: node.id.to_string(),
        hostname: node.hostname.clone(),
        addr: Some(node.addr),
        is_manager: node.is_manager,
        is_up: node.is_up,
        availability: match node.availability() {
            Availability::Active => "active",
            Availability::Pause => "pause",
            Availability::Drain => "drain",
        }
        .to_owned(),
        labels: ours(node.spec.labels.iter().flatten()),
    }
}
