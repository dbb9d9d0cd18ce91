//! What a swarm's own control plane keeps: services, their tasks, other containers on its networks, nodes, networks,
//! configs, secrets, and the swarm itself.
//!
//! Specs are the Docker API's own types, as users declared them; everything around a spec is ours. The control room moves
//! these nouns, the store keeps them, the agent makes tasks real, the API shows them. Not here: what routing needs of them
//! (`Cluster`), and how any of them is written on the wire.

mod attached;
mod generic;
mod id;
mod spec;
mod task;
mod tidy;
mod time;
mod unlock;

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;

use bollard_stubs::models::{
    EndpointPortConfig, EndpointSpec, NetworkAttachmentConfig, NodeSpec, SwarmSpec, TaskSpecLogDriver,
};
pub use bollard_stubs::models::{ServiceSpec, TaskSpec};
use serde::{Deserialize, Serialize};

pub use attached::{ATTACHED_LABEL, AttachSpec, AttachedContainer, link_names};
pub use generic::{Generic, reserved};
pub use id::{Id, Key, Kind};
pub use spec::{
    OnFailure, Order, RestartCondition, RestartPolicy, UpdateConfig, canonical_template, fill_port, is_job,
    is_same_template, mode, restart_policy, rollback_config, stop_grace, update_config,
};
pub use task::{Cause, Container, Exit, Hold, JobRun, Task, TaskAddress, TaskState, TaskStatus, Unfit};
pub use tidy::tidy;
pub use time::Time;
pub use unlock::{UnlockKey, UnlockKeyError};

/// On a container that only holds the network of a task or of another container: the id of that in the store.
pub const SANDBOX_LABEL: &str = "anynode.sandbox";

/// What every object has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Meta {
    /// What users see as `Version.Index` and must name in an update: the store's revision of the last change that a user
    /// made, or that replaced the spec. What the control plane writes besides does not move it, so that reading and then
    /// updating does not race with it.
    pub version: u64,
    pub created_at: Time,
    pub updated_at: Time,
}

impl Meta {
    /// Of what is made at `now`, in that revision.
    pub fn new(version: u64, now: Time) -> Meta {
        Meta {
            version,
            created_at: now,
            updated_at: now,
        }
    }
}

/// A service: what the user declared, and what has come of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Service {
    pub id: Id,
    pub meta: Meta,
    pub spec: Arc<ServiceSpec>,
    /// Which template of tasks the spec holds: tasks of another template are replaced. Counts up with each new template
    /// (`canonical_template`); the same template, however spelled, keeps its number, and a rollback returns to the old one.
    pub template: u64,
    /// The highest number that any template of it had.
    pub last_template: u64,
    /// The revision in which the spec last changed: what the restart policy's attempts are counted by.
    pub spec_version: u64,
    /// What its images are pulled with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub registry_auth: Option<RegistryAuth>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous: Option<PreviousSpec>,
    #[serde(default)]
    pub endpoint: Endpoint,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub update: Option<UpdateStatus>,
    /// Of a job, which run of it is the present one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<JobStatus>,
}

/// How many tasks a service has, and whether they are to run on or to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    Replicated {
        replicas: u64,
    },
    /// One task on each node that fits.
    Global,
    /// So many tasks are to end well, at most so many of them at a time.
    ReplicatedJob {
        max_concurrent: u64,
        total_completions: u64,
    },
    /// One task on each node that fits is to end well.
    GlobalJob,
}

/// The present run of a job: each declaration of the service begins another one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobStatus {
    /// Counts up from 0.
    pub iteration: u64,
    /// When it began.
    pub last_execution: Time,
}

/// What a rollback returns to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PreviousSpec {
    pub spec: Arc<ServiceSpec>,
    pub template: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub registry_auth: Option<RegistryAuth>,
}

/// The `X-Registry-Auth` that a service was declared with. The store writes it encrypted; nothing shows it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegistryAuth(pub Box<str>);

impl std::fmt::Debug for RegistryAuth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("RegistryAuth")
    }
}

/// The addresses and ports that the allocator gave.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Endpoint {
    /// The spec that this was given for; `None` before the allocator has seen the service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spec: Option<EndpointSpec>,
    /// With `published_port` filled in, each.
    #[serde(default)]
    pub ports: Vec<EndpointPortConfig>,
    #[serde(default)]
    pub vips: Vec<Vip>,
}

/// A service's own address in one network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vip {
    pub network: Id,
    pub addr: Ipv4Addr,
    /// The length of the network's prefix, in bits.
    pub prefix: u8,
}

/// How the last update of a service goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpdateStatus {
    pub state: UpdateState,
    pub started_at: Time,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub completed_at: Option<Time>,
    pub message: String,
    /// So many slots were to be replaced when it began: what the failure ratio is counted against.
    pub n_slots: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UpdateState {
    Updating,
    Paused,
    Completed,
    RollbackStarted,
    RollbackPaused,
    RollbackCompleted,
}

impl UpdateState {
    /// As the Docker API has it.
    pub fn as_str(self) -> &'static str {
        match self {
            UpdateState::Updating => "updating",
            UpdateState::Paused => "paused",
            UpdateState::Completed => "completed",
            UpdateState::RollbackStarted => "rollback_started",
            UpdateState::RollbackPaused => "rollback_paused",
            UpdateState::RollbackCompleted => "rollback_completed",
        }
    }

    pub fn is_rollback(self) -> bool {
        matches!(
            self,
            UpdateState::RollbackStarted | UpdateState::RollbackPaused | UpdateState::RollbackCompleted
        )
    }
}

impl Service {
    /// A service as it is first declared. `version` is what the store is to make the revision of.
    pub fn new(id: Id, spec: ServiceSpec, registry_auth: Option<RegistryAuth>, now: Time, version: u64) -> Service {
        let job = is_job(&spec).then_some(JobStatus {
            iteration: 0,
            last_execution: now,
        });
        Service {
            id,
            meta: Meta::new(version, now),
            job,
            spec: Arc::new(spec),
            template: 1,
            last_template: 1,
            spec_version: version,
            registry_auth,
            previous: None,
            endpoint: Endpoint::default(),
            update: None,
        }
    }

    /// The service as it is to be declared from now on; how the last update went is forgotten. `version` is what the store
    /// is to make the revision of.
    pub fn declared(&self, spec: ServiceSpec, registry_auth: Option<RegistryAuth>, now: Time, version: u64) -> Service {
        let same = [
            Some((&self.spec, self.template)),
            self.previous
                .as_ref()
                .map(|previous| (&previous.spec, previous.template)),
        ];
        let known = same
            .into_iter()
            .flatten()
            .find(|(known, _)| is_same_template(known, &spec));
        let template = known.map_or(self.last_template + 1, |(_, template)| template);
        Service {
            meta: Meta {
                version,
                updated_at: now,
                ..self.meta.clone()
            },
            spec: Arc::new(spec),
            template,
            last_template: self.last_template.max(template),
            spec_version: version,
            registry_auth,
            previous: Some(self.as_previous()),
            update: None,
            job: self.next_run(now),
            ..self.clone()
        }
    }

    /// The service with its previous spec, as a user asks for it: rolling back again undoes it. `None`: there is none.
    pub fn rolled_back(&self, now: Time, version: u64) -> Option<Service> {
        let previous = self.previous.clone()?;
        Some(Service {
            meta: Meta {
                version,
                updated_at: now,
                ..self.meta.clone()
            },
            spec: previous.spec,
            template: previous.template,
            spec_version: version,
            registry_auth: previous.registry_auth,
            previous: Some(self.as_previous()),
            // Nothing of a job is replaced step by step: it runs again.
            update: (!self.is_job()).then(|| UpdateStatus {
                state: UpdateState::RollbackStarted,
                started_at: now,
                completed_at: None,
                message: "manually requested rollback".to_owned(),
                n_slots: 0,
            }),
            job: self.next_run(now),
            ..self.clone()
        })
    }

    fn next_run(&self, now: Time) -> Option<JobStatus> {
        let job = self.job.as_ref()?;
        Some(JobStatus {
            iteration: job.iteration + 1,
            last_execution: now,
        })
    }

    fn as_previous(&self) -> PreviousSpec {
        PreviousSpec {
            spec: self.spec.clone(),
            template: self.template,
            registry_auth: self.registry_auth.clone(),
        }
    }

    /// What the image of a task of that template is pulled with.
    pub fn registry_auth_of(&self, template: u64) -> Option<&RegistryAuth> {
        match &self.previous {
            Some(previous) if previous.template == template && self.template != template => {
                previous.registry_auth.as_ref()
            }
            _ => self.registry_auth.as_ref(),
        }
    }

    /// Never empty: whoever stores a service has given it a name.
    pub fn name(&self) -> &str {
        self.spec.name.as_deref().unwrap_or_default()
    }

    pub fn labels(&self) -> impl Iterator<Item = (&str, &str)> {
        let labels = self.spec.labels.iter().flatten();
        labels.map(|(key, value)| (key.as_str(), value.as_str()))
    }

    /// What tasks are made by.
    pub fn task_spec(&self) -> TaskSpec {
        self.spec.task_template.clone().unwrap_or_default()
    }

    pub fn mode(&self) -> Mode {
        mode(&self.spec)
    }

    pub fn is_global(&self) -> bool {
        self.mode() == Mode::Global
    }

    pub fn is_job(&self) -> bool {
        is_job(&self.spec)
    }

    /// How many slots are wished for; `None` for a global service or job, which has one task on each node that fits.
    pub fn replicas(&self) -> Option<u64> {
        match self.mode() {
            Mode::Replicated { replicas } => Some(replicas),
            Mode::ReplicatedJob { total_completions, .. } => Some(total_completions),
            Mode::Global | Mode::GlobalJob => None,
        }
    }

    /// The networks that its tasks are attached to, as ids.
    pub fn networks(&self) -> &[NetworkAttachmentConfig] {
        let of_tasks = self
            .spec
            .task_template
            .as_ref()
            .and_then(|task| task.networks.as_deref());
        match of_tasks {
            Some(networks) if !networks.is_empty() => networks,
            _ => self.spec.networks.as_deref().unwrap_or_default(),
        }
    }
}

/// A node. While there is one, it is this one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Node {
    pub id: Id,
    pub meta: Meta,
    /// `role` and `availability` are always set.
    pub spec: NodeSpec,
    pub hostname: String,
    /// As `uname -m` says, such as `x86_64`.
    pub architecture: String,
    /// Such as `linux`.
    pub os: String,
    /// In billionths of a processor.
    pub nano_cpus: i64,
    /// In bytes.
    pub memory: i64,
    #[serde(default, skip_serializing_if = "Generic::is_empty")]
    pub generic: Generic,
    pub engine_version: String,
    #[serde(default)]
    pub engine_labels: BTreeMap<String, String>,
    pub is_manager: bool,
    pub is_up: bool,
    pub addr: std::net::IpAddr,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Availability {
    Active,
    Pause,
    Drain,
}

impl Node {
    pub fn availability(&self) -> Availability {
        use bollard_stubs::models::NodeSpecAvailabilityEnum as Wire;
        match self.spec.availability {
            Some(Wire::PAUSE) => Availability::Pause,
            Some(Wire::DRAIN) => Availability::Drain,
            _ => Availability::Active,
        }
    }

    /// It takes new tasks.
    pub fn is_available(&self) -> bool {
        self.is_up && self.availability() == Availability::Active
    }
}

/// An overlay network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    pub id: Id,
    pub meta: Meta,
    pub name: String,
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    pub driver: String,
    #[serde(default)]
    pub options: BTreeMap<String, String>,
    #[serde(default)]
    pub is_internal: bool,
    #[serde(default)]
    pub is_attachable: bool,
    #[serde(default)]
    pub is_ingress: bool,
    #[serde(default)]
    pub ipv6: bool,
    /// Asked for, or given by the allocator; `None` before it has seen the network.
    #[serde(default)]
    pub subnet: Option<ipnet::Ipv4Net>,
    #[serde(default)]
    pub gateway: Option<Ipv4Addr>,
    /// What of the subnet services and tasks have addresses from, where it is not all of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub range: Option<ipnet::Ipv4Net>,
    /// Addresses that are somebody else's, by what he is called.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub auxiliary: BTreeMap<String, Ipv4Addr>,
}

impl Network {
    /// What services and tasks have addresses from, as numbers, but for those that are reserved. `None`: it has no subnet yet.
    pub fn hosts(&self) -> Option<std::ops::RangeInclusive<u32>> {
        let (first, last) = self.hosts_of_subnet()?.into_inner();
        let range = self.range.or(self.subnet)?;
        Some(first.max(u32::from(range.network()))..=last.min(u32::from(range.broadcast())))
    }

    /// All that anybody on it may have, as numbers.
    pub fn hosts_of_subnet(&self) -> Option<std::ops::RangeInclusive<u32>> {
        let subnet = self.subnet?;
        let (first, last) = (u32::from(subnet.network()), u32::from(subnet.broadcast()));
        // First and last of a subnet mean the subnet, where there are others.
        Some(match last - first > 1 {
            true => first + 1..=last - 1,
            false => first..=last,
        })
    }

    /// The addresses that nobody is given.
    pub fn reserved(&self) -> impl Iterator<Item = Ipv4Addr> {
        self.gateway.into_iter().chain(self.auxiliary.values().copied())
    }
}

/// A config or a secret: bytes that tasks get as files. Only the labels ever change.
#[derive(Clone, PartialEq, Eq)]
pub struct Payload {
    pub id: Id,
    pub meta: Meta,
    pub name: String,
    pub labels: BTreeMap<String, String>,
    /// The store writes them encrypted; nothing else may write them but into a task's files.
    pub data: Arc<[u8]>,
    /// The driver of templates, as it was declared: `golang` or none.
    pub templating: Option<String>,
}

impl std::fmt::Debug for Payload {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "Payload {{ id: {}, name: {:?}, {} bytes }}",
            self.id,
            self.name,
            self.data.len()
        )
    }
}

/// The swarm itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Swarm {
    pub id: Id,
    pub meta: Meta,
    /// With every member that has a default filled in.
    pub spec: SwarmSpec,
    /// The node that this store belongs to.
    pub node: Id,
    pub join_token_worker: String,
    pub join_token_manager: String,
    /// Where the networks' subnets come from.
    pub addr_pool: Vec<ipnet::Ipv4Net>,
    pub subnet_size: u8,
    pub data_path_port: u16,
    /// `None` in swarms of earlier versions, until one is made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub authority: Option<SwarmAuthority>,
    /// What opens this swarm after a restart. `None`: it is not locked. The store encrypts all of itself by it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unlock_key: Option<UnlockKey>,
}

/// The certificate authority of a swarm: what `docker swarm ca` shows, and a key that nothing shows. The store writes that one
/// encrypted.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SwarmAuthority {
    /// PEM.
    pub certificate: String,
    /// The name that it is said to be, in DER, as base64.
    pub subject: String,
    /// In DER, as base64.
    pub public_key: String,
    /// PEM.
    pub key: Box<str>,
}

impl std::fmt::Debug for SwarmAuthority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SwarmAuthority")
            .field("certificate", &self.certificate)
            .finish_non_exhaustive()
    }
}

impl Swarm {
    /// How many tasks a slot keeps, the living one among them; `None` for all.
    pub fn task_history(&self) -> Option<usize> {
        let orchestration = self.spec.orchestration.as_ref();
        let limit = orchestration.and_then(|orchestration| orchestration.task_history_retention_limit);
        usize::try_from(limit.unwrap_or(5)).ok()
    }

    /// Of tasks whose service names none.
    pub fn log_driver(&self) -> Option<TaskSpecLogDriver> {
        let defaults = self.spec.task_defaults.as_ref()?;
        let driver = defaults.log_driver.clone()?;
        driver.name.as_ref().filter(|name| !name.is_empty())?;
        Some(TaskSpecLogDriver {
            name: driver.name,
            options: driver.options,
        })
    }
}

/// One object of the control plane.
#[derive(Debug, Clone, PartialEq)]
pub enum Object {
    Swarm(Arc<Swarm>),
    Node(Arc<Node>),
    Network(Arc<Network>),
    Config(Arc<Payload>),
    Secret(Arc<Payload>),
    Service(Arc<Service>),
    Task(Arc<Task>),
    Container(Arc<AttachedContainer>),
}

impl Object {
    pub fn key(&self) -> Key {
        let (kind, id) = match self {
            Object::Swarm(swarm) => (Kind::Swarm, &swarm.id),
            Object::Node(node) => (Kind::Node, &node.id),
            Object::Network(network) => (Kind::Network, &network.id),
            Object::Config(config) => (Kind::Config, &config.id),
            Object::Secret(secret) => (Kind::Secret, &secret.id),
            Object::Service(service) => (Kind::Service, &service.id),
            Object::Task(task) => (Kind::Task, &task.id),
            Object::Container(container) => (Kind::Container, &container.id),
        };
        Key { kind, id: id.clone() }
    }

    /// What must be unique among objects of its kind, whatever the case of its letters; `None` where nothing must.
    pub fn unique_name(&self) -> Option<&str> {
        match self {
            Object::Service(service) => Some(service.name()),
            Object::Network(network) => Some(&network.name),
            Object::Config(payload) | Object::Secret(payload) => Some(&payload.name),
            Object::Swarm(_) | Object::Node(_) | Object::Task(_) | Object::Container(_) => None,
        }
    }
}

/// One step of a commit.
#[derive(Debug, Clone, PartialEq)]
pub enum Write {
    /// Made or replaced.
    Put(Object),
    Remove(Key),
}

impl Write {
    pub fn key(&self) -> Key {
        match self {
            Write::Put(object) => object.key(),
            Write::Remove(key) => key.clone(),
        }
    }
}
