//! From a swarm's objects to a `Cluster`, pure: which tasks may have traffic now. Not here: where the objects come from
//! (`watch`, `poll`).

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::proto;
use crate::model::{Cluster, ClusterNode, ClusterObject, ClusterPort, ClusterService, ClusterTask};

/// An object of the swarm, with the index of the commit that wrote it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Seen {
    pub(super) version: u64,
    pub(super) object: SeenObject,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum SeenObject {
    Service(ClusterService),
    /// `runs`: it runs, and is meant to.
    Task {
        task: ClusterTask,
        runs: bool,
    },
    Node(ClusterNode),
}

impl SeenObject {
    fn key(&self) -> String {
        match self {
            SeenObject::Service(service) => format!("service/{}", service.id),
            SeenObject::Task { task, .. } => format!("task/{}", task.id),
            SeenObject::Node(node) => format!("node/{}", node.id),
        }
    }
}

/// Everything that was seen of a swarm, and the cluster that it makes.
#[derive(Debug, Default)]
pub(super) struct Picture {
    seen: BTreeMap<String, Seen>,
    /// Task ids by the ids of their services and nodes.
    tasks_of: BTreeMap<String, BTreeSet<String>>,
    cluster: Cluster,
}

impl Picture {
    /// The picture of `all` there is, as of their newest commit.
    pub(super) fn of(all: impl IntoIterator<Item = Seen>) -> Picture {
        let mut picture = Picture::default();
        let mut newest = 0;
        for seen in all {
            newest = newest.max(seen.version);
            picture.put(seen);
        }
        picture.cluster.set_revision(newest);
        picture
    }

    pub(super) fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// A commit was seen. The revision never goes back.
    pub(super) fn committed(&mut self, index: u64) {
        self.cluster.set_revision(index.max(self.cluster.revision()));
    }

    /// Takes an object as it is now, unless a newer one was seen.
    pub(super) fn put(&mut self, seen: Seen) {
        let key = seen.object.key();
        if self.seen.get(&key).is_some_and(|known| known.version > seen.version) {
            return;
        }
        self.unlink(&key);
        if let SeenObject::Task { task, .. } = &seen.object {
            for owner in owners(task) {
                self.tasks_of.entry(owner).or_default().insert(key.clone());
            }
        }
        self.seen.insert(key.clone(), seen);
        self.settle(&key);
    }

    /// Forgets the object with this key, such as `task/ID`.
    pub(super) fn remove(&mut self, object: &SeenObject) {
        let key = object.key();
        self.unlink(&key);
        self.seen.remove(&key);
        self.settle(&key);
    }

    fn unlink(&mut self, key: &str) {
        let Some(Seen {
            object: SeenObject::Task { task, .. },
            ..
        }) = self.seen.get(key)
        else {
            return;
        };
        for owner in owners(task) {
            if let Some(tasks) = self.tasks_of.get_mut(&owner) {
                tasks.remove(key);
                if tasks.is_empty() {
                    self.tasks_of.remove(&owner);
                }
            }
        }
    }

    /// Brings what depends on the object with this key into the cluster, or takes it out.
    fn settle(&mut self, key: &str) {
        match self.seen.get(key).map(|seen| &seen.object) {
            Some(SeenObject::Service(service)) => self.cluster.put(ClusterObject::Service(service.clone())),
            Some(SeenObject::Node(node)) => self.cluster.put(ClusterObject::Node(node.clone())),
            Some(SeenObject::Task { task, runs }) => match *runs && self.is_served(task) {
                true => self.cluster.put(ClusterObject::Task(task.clone())),
                false => self.cluster.remove(key),
            },
            None => self.cluster.remove(key),
        }
        for task in self.tasks_of.get(key).cloned().unwrap_or_default() {
            self.settle(&task);
        }
    }

    /// Its service publishes something, and its node is not known to be down.
    fn is_served(&self, task: &ClusterTask) -> bool {
        let object = |key: String| self.seen.get(&key).map(|seen| &seen.object);
        let publishes = match object(format!("service/{}", task.service)) {
            Some(SeenObject::Service(service)) => !service.ports.is_empty(),
            _ => false,
        };
        let is_up = match object(format!("node/{}", task.node)) {
            Some(SeenObject::Node(node)) => node.is_up,
            _ => false,
        };
        publishes && is_up
    }
}

fn owners(task: &ClusterTask) -> [String; 2] {
    [format!("service/{}", task.service), format!("node/{}", task.node)]
}

/// An address that others can connect to.
pub(super) fn usable(addr: &str) -> Option<IpAddr> {
    let ip: Option<IpAddr> = addr.parse().ok().or_else(|| {
        let with_port: std::net::SocketAddr = addr.parse().ok()?;
        Some(with_port.ip())
    });
    ip.filter(|ip| !ip.is_unspecified())
}

/// Of all labels, those that are for us.
pub(super) fn our_labels(labels: impl IntoIterator<Item = (String, String)>) -> BTreeMap<String, String> {
    labels
        .into_iter()
        .filter(|(label, _)| label.starts_with("anynode."))
        .collect()
}

fn version(meta: Option<&proto::Meta>) -> u64 {
    meta.and_then(|meta| meta.version.as_ref())
        .map_or(0, |version| version.index)
}

impl From<proto::Service> for Seen {
    fn from(service: proto::Service) -> Seen {
        let spec = service.spec.unwrap_or_default();
        let annotations = spec.annotations.unwrap_or_default();
        let container = spec.task.and_then(|task| task.container);
        let grace = container.and_then(|container| container.stop_grace_period);
        let endpoint = service.endpoint.unwrap_or_default();
        let ingress = endpoint.ports.iter().filter(|port| port.publish_mode == 0);
        let port = |port: &proto::PortConfig| {
            Some(ClusterPort {
                protocol: match port.protocol {
                    0 => "tcp",
                    1 => "udp",
                    _ => "sctp",
                }
                .to_owned(),
                // Zero: not allocated yet.
                published: u16::try_from(port.published_port).ok().filter(|port| *port > 0)?,
                target: u16::try_from(port.target_port).ok().filter(|port| *port > 0)?,
            })
        };
        let millis = |grace: proto::Duration| {
            let seconds = u64::try_from(grace.seconds).ok()?.checked_mul(1000)?;
            seconds.checked_add(u64::try_from(grace.nanos).ok()? / 1_000_000)
        };
        Seen {
            version: version(service.meta.as_ref()),
            object: SeenObject::Service(ClusterService {
                id: service.id,
                name: annotations.name,
                ports: ingress.filter_map(port).collect(),
                labels: our_labels(annotations.labels),
                stop_grace_ms: grace.and_then(millis),
            }),
        }
    }
}

impl From<proto::Task> for Seen {
    fn from(task: proto::Task) -> Seen {
        let state = task.status.map_or(0, |status| status.state);
        Seen {
            version: version(task.meta.as_ref()),
            object: SeenObject::Task {
                runs: state == proto::RUNNING && task.desired_state <= proto::RUNNING,
                task: ClusterTask {
                    id: task.id,
                    service: task.service_id,
                    node: task.node_id,
                    slot: task.slot,
                },
            },
        }
    }
}

impl From<proto::Node> for Seen {
    fn from(node: proto::Node) -> Seen {
        let status = node.status.unwrap_or_default();
        Seen {
            version: version(node.meta.as_ref()),
            object: SeenObject::Node(ClusterNode {
                id: node.id,
                hostname: node.description.unwrap_or_default().hostname,
                addr: usable(&status.addr),
                is_manager: node.role == 1,
                is_up: status.state != 1,
                availability: match node.spec.unwrap_or_default().availability {
                    0 => "active",
                    1 => "pause",
                    _ => "drain",
                }
                .to_owned(),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(version: u64, published: u32) -> Seen {
        let port = proto::PortConfig {
            protocol: 0,
            target_port: 80,
            published_port: published,
            publish_mode: 0,
        };
        let host = proto::PortConfig {
            publish_mode: 1,
            ..port.clone()
        };
        let labels = [("anynode.mode", "http"), ("other", "x")].map(|(k, v)| (k.to_owned(), v.to_owned()));
        proto::Service {
            id: "s".to_owned(),
            meta: meta(version),
            spec: Some(proto::ServiceSpec {
                annotations: Some(proto::Annotations {
                    name: "web".to_owned(),
                    labels: labels.into(),
                }),
                task: Some(proto::TaskSpec {
                    container: Some(proto::ContainerSpec {
                        stop_grace_period: Some(proto::Duration {
                            seconds: 3,
                            nanos: 500_000_000,
                        }),
                    }),
                }),
            }),
            endpoint: Some(proto::Endpoint {
                ports: vec![port, host],
            }),
        }
        .into()
    }

    fn meta(index: u64) -> Option<proto::Meta> {
        Some(proto::Meta {
            version: Some(proto::Version { index }),
        })
    }

    fn node(version: u64, state: i32) -> Seen {
        proto::Node {
            id: "n".to_owned(),
            meta: meta(version),
            status: Some(proto::NodeStatus {
                state,
                addr: "10.0.0.2".to_owned(),
            }),
            role: 1,
            ..proto::Node::default()
        }
        .into()
    }

    fn task(version: u64, state: i32, desired_state: i32) -> Seen {
        proto::Task {
            id: "t".to_owned(),
            meta: meta(version),
            service_id: "s".to_owned(),
            node_id: "n".to_owned(),
            slot: 1,
            status: Some(proto::TaskStatus { state }),
            desired_state,
        }
        .into()
    }

    fn is_routed(picture: &Picture) -> bool {
        picture.cluster().task("t").is_some()
    }

    #[test]
    fn a_task_is_routed_while_it_runs_and_is_meant_to() {
        let mut picture = Picture::of([service(1, 8080), node(2, 2), task(3, 448, 512)]);
        assert!(!is_routed(&picture));
        assert_eq!(picture.cluster().revision(), 3);
        picture.put(task(4, 512, 512));
        assert!(is_routed(&picture));
        picture.put(task(5, 512, 640));
        assert!(!is_routed(&picture), "on its way out");
        picture.put(task(4, 512, 512));
        assert!(!is_routed(&picture), "older than what was seen");
        picture.put(task(6, 512, 512));
        picture.remove(&task(7, 512, 512).object);
        assert!(!is_routed(&picture));
    }

    #[test]
    fn a_node_that_is_down_takes_its_tasks_along_and_brings_them_back() {
        let mut picture = Picture::of([task(3, 512, 512), service(1, 8080), node(2, 2)]);
        assert!(is_routed(&picture));
        picture.put(node(4, 1));
        assert!(!is_routed(&picture));
        picture.put(node(5, 0));
        assert!(is_routed(&picture), "not known to be down");
        picture.put(service(6, 0));
        assert!(!is_routed(&picture), "its port is not allocated");
        picture.put(service(7, 8080));
        picture.remove(&node(8, 2).object);
        assert!(!is_routed(&picture));
    }

    #[test]
    fn the_way_there_does_not_matter() {
        let (service, node, task) = (service(1, 8080), node(2, 2), task(3, 512, 512));
        let a = Picture::of([service.clone(), node.clone(), task.clone()]);
        let b = Picture::of([task, node, service]);
        assert_eq!(a.cluster().digest(), b.cluster().digest());
        let seen = a.cluster().service("s").unwrap();
        assert_eq!((seen.name.as_str(), seen.stop_grace_ms), ("web", Some(3500)));
        assert_eq!(seen.ports.len(), 1, "host ports are not ours");
        assert_eq!(seen.labels.len(), 1);
        assert_eq!(usable("10.0.0.1:2377"), usable("10.0.0.1"));
        assert_eq!(usable("0.0.0.0"), None);
    }
}
