//! The messages of swarmkit's Watch and Control services, cut down to the fields that routing needs; the others are skipped.
//! Numbers from api/{types,objects,specs,watch,control}.proto of swarmkit v2, unchanged since Docker 17.12.

use std::collections::HashMap;

use prost::{Message, Oneof};

#[derive(Clone, PartialEq, Message)]
pub(super) struct Version {
    #[prost(uint64, tag = "1")]
    pub(super) index: u64,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Meta {
    #[prost(message, optional, tag = "1")]
    pub(super) version: Option<Version>,
    /// A google.protobuf.Timestamp, which has the fields of a Duration.
    #[prost(message, optional, tag = "2")]
    pub(super) created_at: Option<Duration>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Annotations {
    #[prost(string, tag = "1")]
    pub(super) name: String,
    #[prost(map = "string, string", tag = "2")]
    pub(super) labels: HashMap<String, String>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Duration {
    #[prost(int64, tag = "1")]
    pub(super) seconds: i64,
    #[prost(int32, tag = "2")]
    pub(super) nanos: i32,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct ContainerSpec {
    #[prost(message, optional, tag = "9")]
    pub(super) stop_grace_period: Option<Duration>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct TaskSpec {
    #[prost(message, optional, tag = "1")]
    pub(super) container: Option<ContainerSpec>,
    #[prost(message, repeated, tag = "7")]
    pub(super) networks: Vec<NetworkAttachmentConfig>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct NetworkAttachmentConfig {
    /// The network's id.
    #[prost(string, tag = "1")]
    pub(super) target: String,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct ServiceSpec {
    #[prost(message, optional, tag = "1")]
    pub(super) annotations: Option<Annotations>,
    #[prost(message, optional, tag = "2")]
    pub(super) task: Option<TaskSpec>,
    /// Where services of old have them.
    #[prost(message, repeated, tag = "7")]
    pub(super) networks: Vec<NetworkAttachmentConfig>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct PortConfig {
    /// TCP 0, UDP 1, SCTP 2.
    #[prost(int32, tag = "2")]
    pub(super) protocol: i32,
    #[prost(uint32, tag = "3")]
    pub(super) target_port: u32,
    #[prost(uint32, tag = "4")]
    pub(super) published_port: u32,
    /// Ingress 0, host 1.
    #[prost(int32, tag = "5")]
    pub(super) publish_mode: i32,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Endpoint {
    #[prost(message, repeated, tag = "2")]
    pub(super) ports: Vec<PortConfig>,
    #[prost(message, repeated, tag = "3")]
    pub(super) virtual_ips: Vec<VirtualIp>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct VirtualIp {
    #[prost(string, tag = "1")]
    pub(super) network_id: String,
    /// With the length of its prefix.
    #[prost(string, tag = "2")]
    pub(super) addr: String,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Service {
    #[prost(string, tag = "1")]
    pub(super) id: String,
    #[prost(message, optional, tag = "2")]
    pub(super) meta: Option<Meta>,
    #[prost(message, optional, tag = "3")]
    pub(super) spec: Option<ServiceSpec>,
    #[prost(message, optional, tag = "4")]
    pub(super) endpoint: Option<Endpoint>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct TaskStatus {
    #[prost(int32, tag = "2")]
    pub(super) state: i32,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Task {
    #[prost(string, tag = "1")]
    pub(super) id: String,
    #[prost(message, optional, tag = "2")]
    pub(super) meta: Option<Meta>,
    #[prost(string, tag = "4")]
    pub(super) service_id: String,
    #[prost(uint64, tag = "5")]
    pub(super) slot: u64,
    #[prost(string, tag = "6")]
    pub(super) node_id: String,
    #[prost(message, optional, tag = "9")]
    pub(super) status: Option<TaskStatus>,
    #[prost(int32, tag = "10")]
    pub(super) desired_state: i32,
}

/// `TaskState` of a task that runs.
pub(super) const RUNNING: i32 = 512;

#[derive(Clone, PartialEq, Message)]
pub(super) struct NodeSpec {
    #[prost(message, optional, tag = "1")]
    pub(super) annotations: Option<Annotations>,
    /// Active 0, pause 1, drain 2.
    #[prost(int32, tag = "4")]
    pub(super) availability: i32,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct NodeDescription {
    #[prost(string, tag = "1")]
    pub(super) hostname: String,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct NodeStatus {
    /// Unknown 0, down 1, ready 2, disconnected 3.
    #[prost(int32, tag = "1")]
    pub(super) state: i32,
    #[prost(string, tag = "3")]
    pub(super) addr: String,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct ManagerStatus {
    /// With the port that managers speak to each other on.
    #[prost(string, tag = "2")]
    pub(super) addr: String,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Node {
    #[prost(string, tag = "1")]
    pub(super) id: String,
    #[prost(message, optional, tag = "2")]
    pub(super) meta: Option<Meta>,
    #[prost(message, optional, tag = "3")]
    pub(super) spec: Option<NodeSpec>,
    #[prost(message, optional, tag = "4")]
    pub(super) description: Option<NodeDescription>,
    #[prost(message, optional, tag = "5")]
    pub(super) status: Option<NodeStatus>,
    /// Only in lists: whoever answers them adds it.
    #[prost(message, optional, tag = "6")]
    pub(super) manager_status: Option<ManagerStatus>,
    /// Worker 0, manager 1.
    #[prost(int32, tag = "9")]
    pub(super) role: i32,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Object {
    #[prost(oneof = "Kind", tags = "1, 2, 4")]
    pub(super) kind: Option<Kind>,
}

#[derive(Clone, PartialEq, Oneof)]
pub(super) enum Kind {
    #[prost(message, tag = "1")]
    Node(Node),
    #[prost(message, tag = "2")]
    Service(Service),
    #[prost(message, tag = "4")]
    Task(Task),
}

pub(super) const ACTION_REMOVE: i32 = 4;
pub(super) const ACTION_ALL: i32 = 7;

#[derive(Clone, PartialEq, Message)]
pub(super) struct Event {
    #[prost(int32, tag = "1")]
    pub(super) action: i32,
    #[prost(message, optional, tag = "2")]
    pub(super) object: Option<Object>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct WatchMessage {
    #[prost(message, repeated, tag = "1")]
    pub(super) events: Vec<Event>,
    #[prost(message, optional, tag = "2")]
    pub(super) version: Option<Version>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct WatchEntry {
    #[prost(string, tag = "1")]
    pub(super) kind: String,
    #[prost(int32, tag = "2")]
    pub(super) action: i32,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct WatchRequest {
    #[prost(message, repeated, tag = "1")]
    pub(super) entries: Vec<WatchEntry>,
    #[prost(message, optional, tag = "2")]
    pub(super) resume_from: Option<Version>,
}

/// For all three lists: no filters.
#[derive(Clone, PartialEq, Message)]
pub(super) struct ListRequest {}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Services {
    #[prost(message, repeated, tag = "1")]
    pub(super) services: Vec<Service>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Tasks {
    #[prost(message, repeated, tag = "1")]
    pub(super) tasks: Vec<Task>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Nodes {
    #[prost(message, repeated, tag = "1")]
    pub(super) nodes: Vec<Node>,
}
