//! The tables of places that this program has, by name, and what was given up in each. Process-wide, as descriptors are.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// What places are of. A closed list, so that nobody outside can make a series of a metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Table {
    /// Connections to the admin server, by client address.
    Admin,
    /// Streams of what the page shows, by client address.
    AdminStreams,
    /// Connections to the API's socket, by user.
    Api,
    /// What the API tells for as long as somebody listens, and connections upgraded to the engine, by user.
    ApiStreams,
    /// Long request bodies that the API reads, by user.
    ApiBodies,
    ApiExecs,
    /// DNS connections, by client address or task.
    DnsStreams,
    /// Queries that wait for upstream, by client address or task.
    DnsUpstream,
    /// Handshakes of the link from addresses of nodes, by address.
    LinkHandshakes,
    /// Handshakes from other addresses, and nodes that join, by address.
    LinkStrangers,
    /// Control connections, by node.
    LinkControls,
    /// Tunnels, by node.
    LinkTunnels,
}

impl Table {
    pub const ALL: [Table; 12] = [
        Table::Admin,
        Table::AdminStreams,
        Table::Api,
        Table::ApiStreams,
        Table::ApiBodies,
        Table::ApiExecs,
        Table::DnsStreams,
        Table::DnsUpstream,
        Table::LinkHandshakes,
        Table::LinkStrangers,
        Table::LinkControls,
        Table::LinkTunnels,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Table::Admin => "admin",
            Table::AdminStreams => "admin_streams",
            Table::Api => "api",
            Table::ApiStreams => "api_streams",
            Table::ApiBodies => "api_bodies",
            Table::ApiExecs => "api_execs",
            Table::DnsStreams => "dns_streams",
            Table::DnsUpstream => "dns_upstream",
            Table::LinkHandshakes => "link_handshakes",
            Table::LinkStrangers => "link_strangers",
            Table::LinkControls => "link_controls",
            Table::LinkTunnels => "link_tunnels",
        }
    }

    /// Places given up for others, since this program began.
    pub fn n_given_up(self) -> u64 {
        GIVEN_UP[self as usize].load(Relaxed)
    }

    /// Counts places that were given up.
    pub fn given_up(self, n: u64) {
        GIVEN_UP[self as usize].fetch_add(n, Relaxed);
    }
}

static GIVEN_UP: [AtomicU64; Table::ALL.len()] = [const { AtomicU64::new(0) }; Table::ALL.len()];
