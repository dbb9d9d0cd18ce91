//! The embedded DNS server: names of services and their tasks from the routing table, everything else from upstream.
//!
//! `zone` decides what is ours and answers it, `inside` what is a task's; `wire` takes queries apart and puts responses together; both are pure.
//! `forward` asks upstream servers, which `resolv` finds; `core` joins them, for `udp` and `tcp`, on the sockets of `server`. Not
//! here: a cache (upstream has one), recursion, DNSSEC, zone transfers.

mod core;
mod forward;
mod inside;
mod resolv;
mod reverse;
mod server;
mod stats;
mod tcp;
mod udp;
mod wire;
mod zone;

pub use self::core::Client;
pub use inside::View;
pub use reverse::ReverseIndex;
pub use server::{BindError, DnsConfig, DnsServer, Responder};
pub use stats::{DnsStats, Rcode, Source, UpstreamFailure};
pub use wire::{Request, Response, Transport, respond};
pub use zone::{Answer, Zone, answer};
