//! Certificates by ACME (RFC 8555): which are ordered when and from whom, what is kept of them, and why there is none. One order at a
//! time, each for one name. Not here: who answers authorities (`challenges`, read by `proxy`), and which names routes have (`app`).

mod at_rest;
mod client;
mod config;
mod driver;
mod due;
mod kept;
mod order;
mod others;
mod shared;
mod state;
mod view;

pub use config::{AcmeConfig, ChallengeKind, ExternalAccount};
pub use driver::Acme;
pub use kept::{Certificate, is_host};
pub use others::List;
pub use state::{Wanted, WantedBy};
pub use view::{NameView, Orders};
