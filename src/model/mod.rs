//! The nouns of anynode, pure: what a user may declare about a service. Nothing here knows sockets, files or time.
//!
//! Values are checked where they are made (`FromStr`, `ServiceName::new`), so that whoever holds one need not check it
//! again. What can only be judged across services (two of them publish one port) is the routing table's to refuse.

mod asker;
mod balance;
mod cluster;
pub mod compress;
mod endpoint_name;
mod endpoint_tls;
pub mod exec;
pub mod filters;
pub mod guards;
pub mod labels;
mod one_mode;
pub mod proxy_protocol;
pub mod redirect;
mod route;
pub mod rule;
mod scheme;
mod service;
mod sticky;
pub mod swarm;
mod text;
pub mod traefik;
pub mod volume;

pub use asker::Asker;
pub use balance::{AtOdds, Balance, HashKey, Prefer, Weight};
pub use cluster::{
    Cluster, ClusterChange, ClusterDigest, ClusterNode, ClusterObject, ClusterPort, ClusterService, ClusterTask,
    DigestMismatch, ObjectDiff,
};
pub use endpoint_name::EndpointName;
pub use endpoint_tls::{CaName, EndpointHandshake, EndpointTls, HostName, Pins, TlsOption, Verify};
pub use one_mode::OneMode;
pub use route::{AcmeName, EntryPointName, EntryPointSpec, RoutePart, RouteParts, RouteSpec, RouteTls};
pub use scheme::Scheme;
pub use service::{
    Attachment, ClientAddress, EndpointSpec, HealthCheck, HealthProbe, Limits, Mode, Passive, ProxyProtocol,
    PublishedPort, Reach, ServiceName, ServiceSpec, TaskPlace, TaskRef, Timeouts,
};
pub use sticky::{CookieName, SameSite, Sticky, StickyKey};
pub use text::{InvalidValue, first_of, format_duration, nearest, parse_duration};
