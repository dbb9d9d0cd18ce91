//! What the Docker Engine of this node knows: who this node is in the swarm, the addresses of its tasks, and, on managers,
//! the swarm's objects (the slow way) and configs. Not here: swarmkit's Watch (`watch`).

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use base64::Engine as _;
use bollard::models::{
    ConfigSpec, EndpointPortConfigProtocolEnum, EndpointPortConfigPublishModeEnum, EventMessage, LocalNodeState,
    NodeSpecAvailabilityEnum, NodeState, TaskState,
};
use bollard::query_parameters::{EventsOptionsBuilder, ListConfigsOptionsBuilder, ListContainersOptionsBuilder};
use bollard::{API_DEFAULT_VERSION, Docker};
use futures_util::Stream;

use super::picture::{Seen, SeenObject, attachments, our_labels, reachable, usable};
use crate::model::labels;
use crate::model::{ClusterNode, ClusterPort, ClusterService, ClusterTask, Reach};
use crate::source::cluster::LocalTasks;
use crate::sys::netns;

/// Why the engine did not help.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    #[error("{path}: {what}")]
    Api {
        path: PathBuf,
        what: &'static str,
        #[source]
        error: bollard::errors::Error,
    },
    #[error("{path}: {what}: no answer in time")]
    Silent { path: PathBuf, what: &'static str },
    #[error("{path}: {what}: the connection ended")]
    Ended { path: PathBuf, what: &'static str },
    #[error("config {name}: {reason}")]
    Config { name: String, reason: &'static str },
}

impl EngineError {
    /// There was patience enough: the engine is frozen.
    pub(super) fn is_silence(&self) -> bool {
        matches!(self, EngineError::Silent { .. })
    }
}

/// What the engine says of its node.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct EngineInfo {
    /// Empty: the engine is in no swarm.
    pub node: String,
    pub hostname: String,
    pub addr: Option<IpAddr>,
    /// It can be asked about the swarm.
    pub is_manager: bool,
    /// Node ids and addresses of the managers.
    pub managers: Vec<(String, IpAddr)>,
}

/// A connection to the engine; cheap to clone.
#[derive(Debug, Clone)]
pub struct Engine {
    path: PathBuf,
    docker: Docker,
    /// The network namespaces of containers, by container id. std mutex: held for moments.
    netns: Arc<Mutex<HashMap<String, Option<Arc<Path>>>>>,
}

impl Engine {
    /// Connects, and agrees on a version of its API. Errors: there is no engine at `path`.
    pub async fn connect(path: &Path) -> Result<Engine, EngineError> {
        let text = path.to_string_lossy();
        let wrong = |error| EngineError::Api {
            path: path.to_owned(),
            what: "connect",
            error,
        };
        let docker = Docker::connect_with_unix(&text, PATIENCE.as_secs(), API_DEFAULT_VERSION).map_err(wrong)?;
        let agreed = tokio::time::timeout(PATIENCE, docker.negotiate_version()).await;
        let silent = |_| EngineError::Silent {
            path: path.to_owned(),
            what: "connect",
        };
        let docker = agreed.map_err(silent)?.map_err(wrong)?;
        Ok(Engine {
            path: path.to_owned(),
            docker,
            netns: Arc::default(),
        })
    }

    async fn ask<T>(
        &self,
        what: &'static str,
        asking: impl Future<Output = Result<T, bollard::errors::Error>>,
    ) -> Result<T, EngineError> {
        match tokio::time::timeout(PATIENCE, asking).await {
            Ok(result) => result.map_err(|error| self.failed(what, error)),
            Err(_) => Err(EngineError::Silent {
                path: self.path.clone(),
                what,
            }),
        }
    }

    pub(super) fn failed(&self, what: &'static str, error: bollard::errors::Error) -> EngineError {
        EngineError::Api {
            path: self.path.clone(),
            what,
            error,
        }
    }

    pub(super) fn ended(&self, what: &'static str) -> EngineError {
        EngineError::Ended {
            path: self.path.clone(),
            what,
        }
    }

    /// Who this node is.
    pub async fn info(&self) -> Result<EngineInfo, EngineError> {
        let info = self.ask("info", self.docker.info()).await?;
        let swarm = info.swarm.unwrap_or_default();
        if swarm.local_node_state != Some(LocalNodeState::ACTIVE) {
            return Ok(EngineInfo {
                hostname: info.name.unwrap_or_default(),
                ..EngineInfo::default()
            });
        }
        let manager = |peer: bollard::models::PeerNode| Some((peer.node_id?, usable(&peer.addr?)?));
        let mut managers: Vec<_> = swarm
            .remote_managers
            .unwrap_or_default()
            .into_iter()
            .filter_map(manager)
            .collect();
        managers.sort();
        Ok(EngineInfo {
            node: swarm.node_id.unwrap_or_default(),
            hostname: info.name.unwrap_or_default(),
            addr: swarm.node_addr.and_then(|addr| usable(&addr)),
            is_manager: swarm.control_available.unwrap_or(false),
            managers,
        })
    }

    /// Where this engine's tasks are reached: the addresses that a process of this node can connect to, and the network
    /// namespaces that they are of, as far as this program may enter them.
    pub async fn local_tasks(&self) -> Result<LocalTasks, EngineError> {
        let filters = HashMap::from([("label", vec![TASK_LABEL])]);
        let options = ListContainersOptionsBuilder::default().filters(&filters).build();
        let containers = self
            .ask("containers", self.docker.list_containers(Some(options)))
            .await?;
        let tasks = containers.into_iter().filter_map(|container| {
            let task = container.labels?.remove(TASK_LABEL)?;
            Some((container.id?, task))
        });
        let tasks: HashMap<String, String> = tasks.collect();
        if tasks.is_empty() {
            return Ok(LocalTasks::default());
        }
        let bridge = self
            .ask("network docker_gwbridge", self.docker.inspect_network(BRIDGE, None))
            .await?;
        let on_bridge = bridge.containers.unwrap_or_default();
        let mut reached = LocalTasks::default();
        for (container, endpoint) in &on_bridge {
            let Some(task) = tasks.get(container) else { continue };
            // With the length of its prefix.
            let address = endpoint
                .ipv4_address
                .as_deref()
                .and_then(|address| address.split('/').next());
            let Some(ip) = address.and_then(|ip| ip.parse::<IpAddr>().ok()) else {
                continue;
            };
            let reach = Reach {
                addr: SocketAddr::new(ip, 0),
                netns: self.netns_of(container).await,
            };
            reached.insert(Arc::from(task.as_str()), reach);
        }
        self.lock_netns()
            .retain(|container, _| on_bridge.contains_key(container));
        Ok(reached)
    }

    /// Asked of the engine once for each container.
    async fn netns_of(&self, container: &str) -> Option<Arc<Path>> {
        let known = self.lock_netns().get(container).cloned();
        if let Some(netns) = known.filter(|netns| netns.as_deref().is_none_or(Path::exists)) {
            return netns;
        }
        // One that has just ended has none; an engine that does not answer is asked again with the next look.
        let inspected = self
            .ask("container", self.docker.inspect_container(container, None))
            .await;
        let pid = inspected.ok()?.state?.pid.filter(|pid| *pid > 0)?;
        let netns = netns::of_container(pid);
        self.lock_netns().insert(container.to_owned(), netns.clone());
        netns
    }

    fn lock_netns(&self) -> std::sync::MutexGuard<'_, HashMap<String, Option<Arc<Path>>>> {
        self.netns.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What happens in the engine, from now on.
    pub fn events(&self, types: &[&str]) -> impl Stream<Item = Result<EventMessage, bollard::errors::Error>> + use<> {
        let filters = HashMap::from([("type", types.to_vec())]);
        let options = EventsOptionsBuilder::default().filters(&filters).build();
        self.docker.events(Some(options))
    }

    /// All nodes, services and tasks of the swarm. Only managers know.
    pub(super) async fn list(&self) -> Result<Vec<Seen>, EngineError> {
        let nodes = self.ask("nodes", self.docker.list_nodes(None)).await?;
        let services = self.ask("services", self.docker.list_services(None)).await?;
        let tasks = self.ask("tasks", self.docker.list_tasks(None)).await?;
        let nodes = nodes.into_iter().map(seen_node);
        let services = services.into_iter().map(seen_service);
        let tasks = tasks.into_iter().map(seen_task);
        Ok(nodes.chain(services).chain(tasks).collect())
    }

    /// The data of the swarm's config `name`; made of `candidate` if there is none. All managers get the same, whoever
    /// was first.
    pub async fn create_or_read_config(&self, name: &str, candidate: &[u8]) -> Result<Vec<u8>, EngineError> {
        if let Some(data) = self.read_config(name).await? {
            return Ok(data);
        }
        let spec = ConfigSpec {
            name: Some(name.to_owned()),
            labels: Some(HashMap::from([("anynode".to_owned(), "authority".to_owned())])),
            data: Some(BASE64.encode(candidate)),
            templating: None,
        };
        let created = self.ask("create config", self.docker.create_config(spec)).await;
        match (self.read_config(name).await?, created) {
            (Some(data), _) => Ok(data),
            (None, Err(error)) => Err(error),
            (None, Ok(_)) => Err(EngineError::Config {
                name: name.to_owned(),
                reason: "it was made and is not there",
            }),
        }
    }

    async fn read_config(&self, name: &str) -> Result<Option<Vec<u8>>, EngineError> {
        let filters = HashMap::from([("name", vec![name])]);
        let options = ListConfigsOptionsBuilder::default().filters(&filters).build();
        let configs = self.ask("configs", self.docker.list_configs(Some(options))).await?;
        let specs = configs.into_iter().filter_map(|config| config.spec);
        // The filter is by prefix.
        let Some(spec) = specs.into_iter().find(|spec| spec.name.as_deref() == Some(name)) else {
            return Ok(None);
        };
        let data = BASE64.decode(spec.data.unwrap_or_default());
        data.map(Some).map_err(|_| EngineError::Config {
            name: name.to_owned(),
            reason: "its data is not base64",
        })
    }
}

fn seen_node(node: bollard::models::Node) -> Seen {
    let (spec, status) = (node.spec.unwrap_or_default(), node.status.unwrap_or_default());
    let hostname = node.description.and_then(|description| description.hostname);
    Seen {
        version: version(node.version),
        object: SeenObject::Node {
            node: ClusterNode {
                id: node.id.unwrap_or_default(),
                hostname: hostname.unwrap_or_default(),
                addr: reachable(&status.addr.unwrap_or_default()),
                // The spec has what it is meant to become.
                is_manager: node.manager_status.is_some(),
                is_up: status.state != Some(NodeState::DOWN),
                availability: match spec.availability {
                    Some(NodeSpecAvailabilityEnum::PAUSE) => "pause",
                    Some(NodeSpecAvailabilityEnum::DRAIN) => "drain",
                    _ => "active",
                }
                .to_owned(),
                labels: our_labels(spec.labels.unwrap_or_default()),
            },
            manager_addr: node.manager_status.and_then(|manager| usable(&manager.addr?)),
        },
    }
}

fn seen_service(service: bollard::models::Service) -> Seen {
    let spec = service.spec.unwrap_or_default();
    let template = spec.task_template.unwrap_or_default();
    let of_old = spec.networks.unwrap_or_default();
    let networks = template.networks.iter().flatten().chain(&of_old);
    let networks: Vec<&str> = networks.filter_map(|network| network.target.as_deref()).collect();
    let grace = template
        .container_spec
        .and_then(|container| container.stop_grace_period);
    let endpoint = service.endpoint.unwrap_or_default();
    let vips = endpoint.virtual_ips.iter().flatten();
    let networks = attachments(
        &networks,
        vips.filter_map(|vip| Some((vip.network_id.as_deref()?, vip.addr.as_deref()?))),
    );
    let ports = endpoint.ports.unwrap_or_default();
    let ingress = ports
        .into_iter()
        .filter(|port| port.publish_mode != Some(EndpointPortConfigPublishModeEnum::HOST));
    let number = |port: Option<i64>| u16::try_from(port?).ok().filter(|port| *port > 0);
    let ports = ingress.filter_map(|port| {
        Some(ClusterPort {
            protocol: match port.protocol {
                Some(EndpointPortConfigProtocolEnum::UDP) => "udp",
                Some(EndpointPortConfigProtocolEnum::SCTP) => "sctp",
                _ => "tcp",
            }
            .to_owned(),
            published: number(port.published_port)?,
            target: number(port.target_port)?,
        })
    });
    let made_at = service
        .created_at
        .as_deref()
        .and_then(|text| humantime::parse_rfc3339(text).ok());
    let made_at_ms = made_at
        .and_then(|at| at.duration_since(std::time::UNIX_EPOCH).ok())
        .and_then(|since| u64::try_from(since.as_millis()).ok());
    let labels = our_labels(spec.labels.unwrap_or_default());
    Seen {
        version: version(service.version),
        object: SeenObject::Service(ClusterService {
            made_at_ms: made_at_ms.filter(|_| labels::may_ask_for_routes(&labels)),
            id: service.id.unwrap_or_default(),
            name: spec.name.unwrap_or_default(),
            ports: ports.collect(),
            labels,
            refused: std::collections::BTreeMap::new(),
            stop_grace_ms: grace.and_then(|nanos| u64::try_from(nanos / 1_000_000).ok()),
            networks,
        }),
    }
}

fn seen_task(task: bollard::models::Task) -> Seen {
    let state = task.status.and_then(|status| status.state);
    let is_meant = matches!(
        task.desired_state,
        Some(
            TaskState::NEW
                | TaskState::ALLOCATED
                | TaskState::PENDING
                | TaskState::ASSIGNED
                | TaskState::ACCEPTED
                | TaskState::PREPARING
                | TaskState::READY
                | TaskState::STARTING
                | TaskState::RUNNING
        )
    );
    Seen {
        version: version(task.version),
        object: SeenObject::Task {
            runs: state == Some(TaskState::RUNNING) && is_meant,
            task: ClusterTask {
                id: task.id.unwrap_or_default(),
                service: task.service_id.unwrap_or_default(),
                node: task.node_id.unwrap_or_default(),
                slot: task.slot.and_then(|slot| u64::try_from(slot).ok()).unwrap_or(0),
                addresses: Default::default(),
                names: Vec::new(),
            },
        },
    }
}

fn version(version: Option<bollard::models::ObjectVersion>) -> u64 {
    version.and_then(|version| version.index).unwrap_or(0)
}

const BASE64: base64::engine::GeneralPurpose = base64::engine::general_purpose::STANDARD;
const TASK_LABEL: &str = "com.docker.swarm.task.id";
/// Docker's own network that leads from tasks to their node.
const BRIDGE: &str = "docker_gwbridge";
const PATIENCE: Duration = Duration::from_secs(5);
