//! What the parts of the engine know of a client's connection and of its request at hand. Not here: what they do (`serve`, `whose`, `through`,
//! `answers`).

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use ipnet::IpNet;

use super::buffer::Buffer;
use crate::model::filters::Filters;
use crate::proxy::Shared;
use crate::proxy::core::Connection;
use crate::proxy::http::{Peer, RequestMeta};
use crate::routing::{Listen, Service};

/// How a client's connection came in.
#[derive(Debug, Clone)]
pub(in crate::proxy) enum Entry {
    /// To a port, which may be another service's by the next request.
    Listener(Listen),
    /// To an entry point, where each request's head says whose it is.
    Front(Listen),
    /// From inside a namespace, to one service, by this network.
    Inside(Option<Arc<str>>),
}

/// What is known of a client's connection, and of the request at hand.
pub(super) struct Server<'a, C> {
    pub(super) connection: &'a Connection,
    pub(super) client: &'a C,
    pub(super) shared: &'a Shared,
    pub(super) entry: Entry,
    pub(super) peer: Peer,
    pub(super) from: SocketAddr,
    /// It is a proxy that is trusted to say who its clients are.
    pub(super) asks_for_others: bool,
    /// The service and target port as of `revision`; `None` once the port left the table. At an entry point, those of the last
    /// request, and `None` where no route takes it.
    pub(super) route: Option<(Arc<Service>, u16)>,
    pub(super) revision: u64,
    /// What the client of the request at hand is told in the place of a route's answer.
    pub(super) instead: Option<Instead>,
    /// What its route has done to the request at hand, and what says the route.
    pub(super) filters: Option<(Arc<str>, Arc<Filters>)>,
    pub(super) from_client: Buffer,
    pub(super) wire: Spoken,
}

/// What a client has shown to speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Spoken {
    Nothing,
    Http1,
    Http2,
}

/// Why an entry point answers a request itself, where some route or none at all takes it.
pub(super) enum Instead {
    /// The client is sent there.
    Elsewhere(Box<str>),
    /// An authority asks whether a name is ours.
    Challenge(Arc<str>),
    /// Its host is that of a service whose connections are told apart by name, before there are requests: the client has taken a
    /// connection for it that is another's, as browsers do where one certificate is for both.
    Misdirected,
    /// Its route lets nobody through.
    Closed(Arc<Service>),
}

/// A request that was parsed, its head written anew.
pub(super) struct Begun {
    pub(super) meta: RequestMeta,
    pub(super) to_upstream: Buffer,
    pub(super) at: Instant,
}

/// Whether it is a proxy that is believed who its clients are.
#[inline(always)]
pub(super) fn is_trusted(peer: SocketAddr, entry: &Entry, shared: &Shared) -> bool {
    let ip = peer.ip().to_canonical();
    let is_among = |networks: &[IpNet]| networks.iter().any(|network| network.contains(&ip));
    if let Entry::Front(listen) = entry
        && let Some(entry_point) = shared.table.peek().entry_point_at(listen)
        && let Some(networks) = &entry_point.spec().trusted_proxies
    {
        return is_among(networks);
    }
    is_among(&shared.config.trusted_proxies)
}
