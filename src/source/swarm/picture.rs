//! From a swarm's objects to a `Cluster`, pure: which tasks may have traffic now. Not here: where the objects come from
//! (`watch`, `poll`).

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use super::proto;
use crate::model::{
    Attachment, Cluster, ClusterNode, ClusterObject, ClusterPort, ClusterService, ClusterTask, labels, traefik,
};

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
    /// `manager_addr`: where other managers reach it; only lists say so.
    Node {
        node: ClusterNode,
        manager_addr: Option<IpAddr>,
    },
}

impl SeenObject {
    fn key(&self) -> String {
        match self {
            SeenObject::Service(service) => format!("service/{}", service.id),
            SeenObject::Task { task, .. } => format!("task/{}", task.id),
            SeenObject::Node { node, .. } => format!("node/{}", node.id),
        }
    }

    fn kind(&self) -> usize {
        match self {
            SeenObject::Service(_) => 0,
            SeenObject::Task { .. } => 1,
            SeenObject::Node { .. } => 2,
        }
    }
}

/// Everything that was seen of a swarm, and the cluster that it makes.
#[derive(Debug, Default)]
pub(super) struct Picture {
    seen: BTreeMap<String, Seen>,
    /// Task ids by the ids of their services and nodes.
    tasks_of: BTreeMap<String, BTreeSet<String>>,
    /// The newest of each kind in the lists that this began with: what is older and was not in them is gone.
    listed: [u64; 3],
    /// What was published before this began: labels that meant something then.
    before: Arc<Cluster>,
    /// Otherwise they stay with managers: there may be hashes of passwords among them.
    with_traefik: bool,
    cluster: Cluster,
}

impl Picture {
    /// The picture of `all` there is, as of their newest commit. `before`: what was published of the same swarm until now.
    /// `with_traefik`: Traefik's labels are in it too.
    pub(super) fn of(all: impl IntoIterator<Item = Seen>, before: Arc<Cluster>, with_traefik: bool) -> Picture {
        let mut picture = Picture {
            before,
            with_traefik,
            ..Picture::default()
        };
        let mut listed = [0; 3];
        for seen in all {
            let newest: &mut u64 = &mut listed[seen.object.kind()];
            *newest = seen.version.max(*newest);
            picture.put(seen);
        }
        picture.listed = listed;
        picture.committed(listed.into_iter().max().unwrap_or(0));
        picture
    }

    pub(super) fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// A commit was seen. The revision never goes back.
    pub(super) fn committed(&mut self, index: u64) {
        self.cluster.set_revision(index.max(self.cluster.revision()));
    }

    /// Whether a manager's address is missing that lists would have.
    pub(super) fn lacks_address(&self, object: &SeenObject) -> bool {
        let known = self.seen.get(&object.key()).map(|seen| &seen.object);
        matches!(known, Some(SeenObject::Node { node, manager_addr: None }) if node.is_manager && node.addr.is_none())
    }

    /// Takes an object as it is now, unless a newer one was seen, or it was gone already when all were listed.
    pub(super) fn put(&mut self, mut seen: Seen) {
        let key = seen.object.key();
        match self.seen.get(&key) {
            Some(known) if known.version > seen.version => return,
            Some(known) => {
                // What changes later comes without it.
                if let SeenObject::Node { node, manager_addr } = &mut seen.object
                    && let SeenObject::Node {
                        manager_addr: known, ..
                    } = &known.object
                    && node.is_manager
                {
                    *manager_addr = manager_addr.or(*known);
                }
            }
            None if seen.version <= self.listed[seen.object.kind()] => return,
            None => {}
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
            Some(SeenObject::Service(service)) => {
                let mut service = service.clone();
                if !self.with_traefik {
                    service.labels.retain(|label, _| !traefik::is_label(label));
                    service.made_at_ms = service.made_at_ms.filter(|_| labels::ask_for_routes(&service.labels));
                }
                let service = self.with_last_good(service);
                self.cluster.put(ClusterObject::Service(service));
            }
            Some(SeenObject::Node { node, manager_addr }) => self.cluster.put(ClusterObject::Node(ClusterNode {
                addr: node.addr.or(*manager_addr),
                ..node.clone()
            })),
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

    /// The service with what its labels said last, instead of what means nothing: a slip must not change how it is served.
    /// Where nothing is known from before, the slip stays, for whoever makes a table to see.
    fn with_last_good(&self, mut service: ClusterService) -> ClusterService {
        let known = |cluster: &Cluster| cluster.service(&service.id).cloned();
        let Some(before) = known(&self.cluster).or_else(|| known(&self.before)) else {
            return service;
        };
        let is_wrong = |label: &String, labels: &BTreeMap<String, String>| labels::wrong(labels).contains(label);
        for label in labels::wrong(&service.labels) {
            if is_wrong(&label, &before.labels) {
                continue;
            }
            let refused = match before.labels.get(&label) {
                Some(good) => service.labels.insert(label.clone(), good.clone()),
                None => service.labels.remove(&label),
            };
            service.refused.extend(refused.map(|refused| (label, refused)));
        }
        // What goes with none of the others now, each of them as good as before: then all are as they were.
        if !labels::wrong(&service.labels).is_empty() && labels::wrong(&before.labels).is_empty() {
            let now = std::mem::replace(&mut service.labels, before.labels.clone());
            let news = now
                .into_iter()
                .filter(|(label, value)| before.labels.get(label) != Some(value));
            service.refused.extend(news);
        }
        service
    }

    /// Its service publishes something or is on a network, and its node is not known to be down.
    fn is_served(&self, task: &ClusterTask) -> bool {
        let object = |key: String| self.seen.get(&key).map(|seen| &seen.object);
        let publishes = match object(format!("service/{}", task.service)) {
            Some(SeenObject::Service(service)) => !service.ports.is_empty() || !service.networks.is_empty(),
            _ => false,
        };
        let is_up = match object(format!("node/{}", task.node)) {
            Some(SeenObject::Node { node, .. }) => node.is_up,
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

/// As `usable`, of what managers say of a node: one that is itself the manager asked may be on a loopback address.
pub(super) fn reachable(addr: &str) -> Option<IpAddr> {
    usable(addr).filter(|ip| !ip.is_loopback())
}

/// Of all labels, those that are for us.
pub(super) fn our_labels(all: impl IntoIterator<Item = (String, String)>) -> BTreeMap<String, String> {
    let all: Vec<(String, String)> = all.into_iter().collect();
    labels::meant(all.iter().map(|(label, value)| (label.as_str(), value.as_str())))
}

/// The networks of a service by their ids, and its address on each that it has one on. Names inside are Docker's to answer;
/// the network that published ports are for is in no spec.
pub(super) fn attachments<'a>(networks: &[&str], vips: impl Iterator<Item = (&'a str, &'a str)>) -> Vec<Attachment> {
    let vips: BTreeMap<&str, &str> = vips.collect();
    let mut attached = BTreeSet::new();
    let each = networks.iter().filter(|id| attached.insert(**id));
    let attachment = |id: &&str| {
        let addr = vips.get(*id).and_then(|addr| addr.split('/').next());
        Attachment {
            network: (*id).into(),
            network_name: "".into(),
            vip: addr.and_then(|addr| addr.parse().ok()),
            aliases: Vec::new(),
            subnet: None,
        }
    };
    each.map(attachment).collect()
}

fn version(meta: Option<&proto::Meta>) -> u64 {
    meta.and_then(|meta| meta.version.as_ref())
        .map_or(0, |version| version.index)
}

impl From<proto::Service> for Seen {
    fn from(service: proto::Service) -> Seen {
        let spec = service.spec.unwrap_or_default();
        let annotations = spec.annotations.unwrap_or_default();
        let task = spec.task.unwrap_or_default();
        let networks = task.networks.iter().chain(&spec.networks);
        let networks: Vec<&str> = networks.map(|network| network.target.as_str()).collect();
        let container = task.container;
        let grace = container.and_then(|container| container.stop_grace_period);
        let endpoint = service.endpoint.unwrap_or_default();
        let vips = endpoint
            .virtual_ips
            .iter()
            .map(|vip| (vip.network_id.as_str(), vip.addr.as_str()));
        let networks = attachments(&networks, vips);
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
        let labels = our_labels(annotations.labels);
        let made_at = service.meta.as_ref().and_then(|meta| meta.created_at.clone());
        Seen {
            version: version(service.meta.as_ref()),
            object: SeenObject::Service(ClusterService {
                made_at_ms: made_at.and_then(millis).filter(|_| labels::may_ask_for_routes(&labels)),
                id: service.id,
                name: annotations.name,
                ports: ingress.filter_map(port).collect(),
                labels,
                refused: BTreeMap::new(),
                stop_grace_ms: grace.and_then(millis),
                networks,
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
                    addresses: Default::default(),
                    names: Vec::new(),
                },
            },
        }
    }
}

impl From<proto::Node> for Seen {
    fn from(node: proto::Node) -> Seen {
        let (spec, status) = (node.spec.unwrap_or_default(), node.status.unwrap_or_default());
        Seen {
            version: version(node.meta.as_ref()),
            object: SeenObject::Node {
                manager_addr: node.manager_status.and_then(|manager| usable(&manager.addr)),
                node: ClusterNode {
                    id: node.id,
                    hostname: node.description.unwrap_or_default().hostname,
                    addr: reachable(&status.addr),
                    is_manager: node.role == 1,
                    is_up: status.state != 1,
                    availability: match spec.availability {
                        0 => "active",
                        1 => "pause",
                        _ => "drain",
                    }
                    .to_owned(),
                    labels: our_labels(spec.annotations.unwrap_or_default().labels),
                },
            },
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
                networks: Vec::new(),
                task: Some(proto::TaskSpec {
                    networks: ["app", "each", "app"]
                        .map(|target| proto::NetworkAttachmentConfig {
                            target: target.to_owned(),
                        })
                        .to_vec(),
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
                virtual_ips: [("ingress", "10.0.0.3/24"), ("app", "10.0.1.5/24")]
                    .map(|(network_id, addr)| proto::VirtualIp {
                        network_id: network_id.to_owned(),
                        addr: addr.to_owned(),
                    })
                    .to_vec(),
            }),
        }
        .into()
    }

    fn meta(index: u64) -> Option<proto::Meta> {
        Some(proto::Meta {
            created_at: None,
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
    fn a_service_is_on_the_networks_that_its_spec_names() {
        let picture = Picture::of([service(1, 8080)], Arc::default(), true);
        let service = picture.cluster().services().next().unwrap();
        let shown = |attachment: &Attachment| (attachment.network.to_string(), attachment.vip.map(|ip| ip.to_string()));
        let networks: Vec<_> = service.networks.iter().map(shown).collect();
        let expected = [
            ("app".to_owned(), Some("10.0.1.5".to_owned())),
            ("each".to_owned(), None),
        ];
        assert_eq!(networks, expected);
    }

    #[test]
    fn a_task_is_routed_while_it_runs_and_is_meant_to() {
        let mut picture = Picture::of([service(1, 8080), node(2, 2), task(3, 448, 512)], Arc::default(), true);
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
        let mut picture = Picture::of([task(3, 512, 512), service(1, 8080), node(2, 2)], Arc::default(), true);
        assert!(is_routed(&picture));
        picture.put(node(4, 1));
        assert!(!is_routed(&picture));
        picture.put(node(5, 0));
        assert!(is_routed(&picture), "not known to be down");
        picture.put(service(6, 0));
        assert!(
            is_routed(&picture),
            "reached by its networks until its port is allocated"
        );
        let mut alone = service(7, 0);
        let SeenObject::Service(unreachable) = &mut alone.object else {
            panic!("a service");
        };
        unreachable.networks.clear();
        picture.put(alone);
        assert!(
            !is_routed(&picture),
            "its port is not allocated, and it is on no network"
        );
        picture.put(service(8, 8080));
        picture.remove(&node(9, 2).object);
        assert!(!is_routed(&picture));
    }

    #[test]
    fn the_way_there_does_not_matter() {
        let (service, node, task) = (service(1, 8080), node(2, 2), task(3, 512, 512));
        let a = Picture::of([service.clone(), node.clone(), task.clone()], Arc::default(), true);
        let b = Picture::of([task, node, service], Arc::default(), true);
        assert_eq!(a.cluster().digest(), b.cluster().digest());
        let seen = a.cluster().service("s").unwrap();
        assert_eq!((seen.name.as_str(), seen.stop_grace_ms), ("web", Some(3500)));
        assert_eq!(seen.ports.len(), 1, "host ports are not ours");
        assert_eq!(seen.labels.len(), 1);
        assert_eq!(usable("10.0.0.1:2377"), usable("10.0.0.1"));
        assert_eq!(usable("0.0.0.0"), None);
        assert_eq!((usable("127.0.0.1").is_some(), reachable("127.0.0.1")), (true, None));
    }

    #[test]
    fn what_was_gone_when_all_were_listed_does_not_come_back() {
        let mut picture = Picture::of([service(1, 8080), node(9, 2)], Arc::default(), true);
        // The list of tasks was empty: of them it says nothing.
        picture.put(task(3, 512, 512));
        assert!(is_routed(&picture));
        let mut other = task(8, 512, 512);
        if let SeenObject::Task { task, .. } = &mut other.object {
            task.id = "other".to_owned();
        }
        let mut picture = Picture::of([service(1, 8080), node(2, 2), other], Arc::default(), true);
        picture.put(task(7, 512, 512));
        assert!(!is_routed(&picture), "a stream that is behind the lists");
        picture.put(task(10, 512, 512));
        assert!(is_routed(&picture), "a new one");
        assert_eq!(picture.cluster().revision(), 8, "the lists' own");
        picture.committed(11);
        picture.committed(10);
        assert_eq!(picture.cluster().revision(), 11);
    }

    #[test]
    fn a_manager_that_says_nothing_of_its_address_is_where_the_others_reach_it() {
        let node = |version, addr: &str, manager: Option<&str>, role| -> Seen {
            let status = proto::NodeStatus {
                state: 2,
                addr: addr.to_owned(),
            };
            proto::Node {
                id: "n".to_owned(),
                meta: meta(version),
                status: Some(status),
                manager_status: manager.map(|addr| proto::ManagerStatus { addr: addr.to_owned() }),
                role,
                ..proto::Node::default()
            }
            .into()
        };
        let addr = |picture: &Picture| picture.cluster().node("n").unwrap().addr.map(|ip| ip.to_string());
        let listed = || node(1, "0.0.0.0", Some("10.0.0.9:2377"), 1);
        let mut picture = Picture::of([listed()], Arc::default(), true);
        assert_eq!(addr(&picture).as_deref(), Some("10.0.0.9"));
        let changed = node(2, "127.0.0.1", None, 1);
        picture.put(changed.clone());
        assert_eq!(addr(&picture).as_deref(), Some("10.0.0.9"), "known from the list");
        assert!(!picture.lacks_address(&changed.object));
        picture.put(node(3, "10.0.0.2", None, 1));
        assert_eq!(addr(&picture).as_deref(), Some("10.0.0.2"), "its own word counts");
        picture.put(node(4, "", None, 0));
        assert_eq!(addr(&picture), None, "a manager no more");
        let promoted = node(5, "", None, 1);
        picture.put(promoted.clone());
        assert!(picture.lacks_address(&promoted.object));
        picture.put(node(5, "", Some("10.0.0.9:2377"), 1));
        assert_eq!(addr(&picture).as_deref(), Some("10.0.0.9"));
    }

    #[test]
    fn a_label_that_means_nothing_leaves_what_it_said_before() {
        let labelled = |version, labels: &[(&str, &str)]| {
            let mut seen = service(version, 8080);
            let SeenObject::Service(service) = &mut seen.object else {
                unreachable!("it is one");
            };
            let own = |(label, value): &(&str, &str)| ((*label).to_owned(), (*value).to_owned());
            service.labels = labels.iter().map(own).collect();
            seen
        };
        let published = |picture: &Picture| {
            let service = picture.cluster().services().next().unwrap();
            let text = |labels: &BTreeMap<String, String>| {
                let pairs = labels.iter().map(|(label, value)| format!("{label}={value}"));
                pairs.collect::<Vec<_>>().join(" ")
            };
            (text(&service.labels), text(&service.refused))
        };
        let own = |a: &str, b: &str| (a.to_owned(), b.to_owned());
        let mut picture = Picture::of([labelled(1, &[("anynode.mode", "http")])], Arc::default(), true);
        assert_eq!(published(&picture), own("anynode.mode=http", ""));
        let slips = [("anynode.mode", "htp"), ("anynode.limit.queue", "many")];
        picture.put(labelled(2, &slips));
        let kept = own("anynode.mode=http", "anynode.limit.queue=many anynode.mode=htp");
        assert_eq!(published(&picture), kept);
        // A manager that begins anew has it from what was published, and one that knows nothing says what it sees.
        let anew = Picture::of([labelled(2, &slips)], Arc::new(picture.cluster().clone()), true);
        assert_eq!(published(&anew), kept);
        let strange = Picture::of([labelled(2, &slips)], Arc::default(), true);
        assert_eq!(
            published(&strange),
            own("anynode.limit.queue=many anynode.mode=htp", "")
        );
        picture.put(labelled(3, &[("anynode.mode", "tcp")]));
        assert_eq!(published(&picture), own("anynode.mode=tcp", ""));
    }

    #[test]
    fn labels_of_traefik_go_along_only_where_they_are_read() {
        for (with_traefik, n_labels) in [(true, 3), (false, 1)] {
            let Seen {
                version,
                object: SeenObject::Service(mut one),
            } = service(1, 8080)
            else {
                unreachable!("it is one")
            };
            let labels = ["anynode.mode", "traefik.enable", "Traefik.http.routers.x.rule"];
            one.labels = labels.map(|label| (label.to_owned(), "true".to_owned())).into();
            one.made_at_ms = Some(7);
            let id = one.id.clone();
            let seen = Seen {
                version,
                object: SeenObject::Service(one),
            };
            let picture = Picture::of([seen], Arc::default(), with_traefik);
            let service = picture.cluster().service(&id).unwrap();
            assert_eq!(service.labels.len(), n_labels);
            assert_eq!(service.made_at_ms.is_some(), with_traefik);
        }
    }
}
