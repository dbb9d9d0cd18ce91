//! The agent on real runtimes: processes under their keepers, and containers of a dockerd that the test starts.

mod containers;
mod limits;
mod networks;
mod processes;
pub mod rig;
mod users;
