//! What the data plane may be told, with its defaults. Not here: where it is read from (`app::config`).

use std::time::Duration;

use ipnet::{IpNet, Ipv4Net};

use super::http::DEFAULT_FIELDS_MAX;
use super::vips::VipMode;
use crate::sys::socket::Liveness;

#[derive(Debug, Clone)]
pub struct ProxyConfig {
    /// Threads that serve connections, each with a runtime of its own.
    pub n_workers: usize,
    pub liveness: Liveness,
    /// Client connections at once over all services; more wait in the kernel's queue.
    pub connections_max: usize,
    /// Descriptors that this process may have. Connections take those that nothing else needs.
    pub files_max: usize,
    /// A connection in tcp mode through which nothing has passed for so long is put aside; zero: never.
    pub park_after: Duration,
    /// Pipes per worker to splice through; 0 turns splicing off.
    pub splice_pipes: usize,
    pub splice_pipe_bytes: usize,
    /// A request or response head may be so long.
    pub http_head_bytes_max: usize,
    /// It may have so many fields; `http::FIELDS_MOST` at most.
    pub http_fields_max: usize,
    /// An idle upstream connection is kept so long. Below the five seconds after which uvicorn and Node close theirs, so
    /// that a request rarely meets a connection that is being closed.
    pub http_pool_idle: Duration,
    /// Idle upstream connections kept per worker and endpoint.
    pub http_pool_per_endpoint: usize,
    /// Networks whose X-Forwarded-* and Forwarded fields are believed.
    pub trusted_proxies: Vec<IpNet>,
    /// How services' VIPs are answered.
    pub vips: VipMode,
    /// What they are from.
    pub vip_network: Ipv4Net,
}

impl Default for ProxyConfig {
    fn default() -> ProxyConfig {
        ProxyConfig {
            n_workers: 1,
            liveness: Liveness::default(),
            connections_max: usize::MAX,
            files_max: usize::MAX,
            park_after: Duration::from_secs(5),
            splice_pipes: 64,
            splice_pipe_bytes: 1024 * 1024,
            http_head_bytes_max: 64 * 1024,
            http_fields_max: DEFAULT_FIELDS_MAX,
            http_pool_idle: Duration::from_secs(4),
            http_pool_per_endpoint: 128,
            trusted_proxies: Vec::new(),
            vips: VipMode::Auto,
            vip_network: Ipv4Net::new_assert(std::net::Ipv4Addr::new(127, 77, 0, 0), 16),
        }
    }
}
