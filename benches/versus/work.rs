//! What is measured, and who has turns at it.

use clap::ValueEnum;

use crate::proxies::Name;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Work {
    Bulk,
    Stream,
    Small,
    Short,
    Http,
    OneHost,
    ManyHosts,
    TlsHttp,
    TlsBulk,
    TlsFull,
    TlsResumed,
    Http2,
    Idle,
    Change,
}

impl Work {
    pub const ALL: [Work; 14] = [
        Work::Bulk,
        Work::Stream,
        Work::Small,
        Work::Short,
        Work::Http,
        Work::OneHost,
        Work::ManyHosts,
        Work::TlsHttp,
        Work::TlsBulk,
        Work::TlsFull,
        Work::TlsResumed,
        Work::Http2,
        Work::Idle,
        Work::Change,
    ];

    pub fn title(self) -> &'static str {
        match self {
            Work::Bulk => "bulk TCP, bodies of 1 MiB, 8 connections: CPU µs per MB",
            Work::Stream => "bulk TCP, streams of 32 MiB, 8 connections: CPU µs per MB",
            Work::Small => "small TCP messages, 64 connections: CPU µs per request",
            Work::Short => "short TCP connections, 32 at a time: CPU µs per connection",
            Work::Http => "HTTP/1 keep-alive, 64 connections: CPU µs per request",
            Work::OneHost => "the same, by the only host of a shared port: CPU µs per request",
            Work::ManyHosts => "the same, by one of 1,000 hosts of a shared port: CPU µs per request",
            Work::TlsHttp => "HTTP/1 over TLS 1.3, keep-alive, 64 connections: CPU µs per request",
            Work::TlsBulk => "HTTP/1 over TLS 1.3, bodies of 1 MiB, 8 connections: CPU µs per MB",
            Work::TlsFull => {
                "full handshakes (TLS 1.3, P-256) with a request each, 32 at a time: CPU µs per connection"
            }
            Work::TlsResumed => "handshakes by a ticket, with a request each, 32 at a time: CPU µs per connection",
            Work::Http2 => "HTTP/2 over TLS 1.3, 8 connections of 8 requests at a time: CPU µs per request",
            Work::Idle => "idle TCP connection, after 10 s: bytes of private memory",
            Work::Change => "change to routed",
        }
    }

    /// What one of its figures is per second.
    pub fn rate_unit(self) -> &'static str {
        match self {
            Work::Bulk | Work::Stream | Work::TlsBulk => "MB/s",
            Work::Short | Work::TlsFull | Work::TlsResumed => "connections/s",
            _ => "requests/s",
        }
    }

    pub fn is_tls(self) -> bool {
        matches!(
            self,
            Work::TlsHttp | Work::TlsBulk | Work::TlsFull | Work::TlsResumed | Work::Http2
        )
    }

    /// Whether it goes to a port that services share by hosts.
    pub fn is_routed(self) -> bool {
        matches!(self, Work::OneHost | Work::ManyHosts)
    }

    pub fn is_timed(self) -> bool {
        !matches!(self, Work::Idle | Work::Change)
    }

    /// Whether a unit of it is bytes.
    pub fn is_bulk(self) -> bool {
        matches!(self, Work::Bulk | Work::Stream | Work::TlsBulk)
    }

    /// Whether it is one that a proxy of HTTP alone is started for.
    fn is_http(self) -> bool {
        self == Work::Http || self.is_tls() || self.is_routed()
    }
}

/// Who has a turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Column {
    Direct,
    Through(Name),
}

impl Column {
    pub const ALL: [Column; 7] = [DIRECT, HAPROXY, NGINX, ENVOY, TRAEFIK, ANYNODE, OPAQUE];

    pub fn title(self) -> &'static str {
        match self {
            Column::Direct => "direct",
            Column::Through(Name::HaProxy) => "HAProxy",
            Column::Through(Name::Nginx) => "nginx",
            Column::Through(Name::Envoy) => "Envoy",
            Column::Through(Name::Traefik) => "Traefik",
            Column::Through(Name::Anynode) => "anynode",
            Column::Through(Name::AnynodeOpaque) => "anynode, client_address none",
        }
    }

    /// Whether it has turns at that work, where it is there.
    pub fn does(self, work: Work) -> bool {
        match (work, self) {
            (Work::Change, column) => column == ANYNODE,
            // The origin speaks no TLS, and shares no port.
            (work, Column::Direct) => work.is_timed() && !work.is_tls() && !work.is_routed(),
            (work, Column::Through(Name::Envoy | Name::Traefik)) => work.is_http(),
            (_, Column::Through(_)) => true,
        }
    }
}

pub const DIRECT: Column = Column::Direct;
pub const HAPROXY: Column = Column::Through(Name::HaProxy);
pub const NGINX: Column = Column::Through(Name::Nginx);
pub const ENVOY: Column = Column::Through(Name::Envoy);
pub const TRAEFIK: Column = Column::Through(Name::Traefik);
pub const ANYNODE: Column = Column::Through(Name::Anynode);
pub const OPAQUE: Column = Column::Through(Name::AnynodeOpaque);
