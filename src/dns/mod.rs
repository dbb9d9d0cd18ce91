//! The embedded DNS server: names of services and their tasks from the routing table, everything else from upstream.
//!
//! `zone` decides what is ours and answers it, `inside` what is a task's; `wire` takes queries apart and puts responses together; both are pure.
//! `forward` asks upstream servers, which `resolv` finds; `server` and `tcp` have the sockets that clients come to. Not
//! here: a cache (upstream has one), recursion, DNSSEC, zone transfers.

mod forward;
mod inside;
mod resolv;
mod reverse;
mod server;
mod stats;
mod tcp;
mod wire;
mod zone;

pub use inside::View;
pub use reverse::ReverseIndex;
pub use server::{BindError, Client, DnsConfig, DnsServer, Responder};
pub use stats::{DnsStats, Rcode, Source, UpstreamFailure};
pub use wire::{Request, Response, Transport, respond};
pub use zone::{Answer, Zone, answer};
