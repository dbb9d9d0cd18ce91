//! The data plane: listeners, connections, bytes. It knows the routing table and nothing of who made it.

mod ports;

pub use ports::{PortState, Ports};
