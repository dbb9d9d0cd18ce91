//! Sources: what produces routing tables. Today one, a services file; each of them commits to the `TableHandle` and
//! says how it fares in a `SourceStatus`.

pub mod cluster;
pub mod file;
pub mod names;
pub mod native;
mod status;
pub mod swarm;

pub use status::{SourceHealth, SourceStatus};
