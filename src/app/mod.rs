//! What joins the rooms: the commands of the program. Everything that a user may type ends in one function here; `main`
//! only parses arguments.

mod acme;
mod acme_config;
mod acme_nodes;
mod api_socket;
mod attached;
mod check;
mod config;
mod datadir;
mod declared_certificates;
mod demo;
mod doors;
mod entry_points;
mod freshness;
mod handoff;
mod keys;
mod lock;
mod networks;
mod node;
mod own;
mod settings;
mod status;
mod swarm;
mod up;
mod verify;
mod volumes;
mod why;

use std::io::Write;

pub use api_socket::{ApiSocket, ApiSocketError, hold};
pub use check::check;
pub use config::{Config, DEFAULTS, EngineChoice, Flags, OwnConfig};
pub use datadir::DataDirError;
pub use demo::{DemoArgs, demo};
pub use handoff::HandoffError;
pub use node::{Node, NodeError};
pub use own::{OwnError, OwnSwarm, Plane};
pub use settings::{SettingError, UnknownVariable};
pub use status::{StatusArgs, health, status};
pub use up::{up, whoami};
pub use verify::verify;
pub use why::{WhyArgs, why};

/// The configuration or its files cannot be used; said before any port is bound. EX_USAGE of sysexits(3).
pub const EXIT_CONFIG: i32 = 64;
/// Nothing answers where something should. EX_UNAVAILABLE.
pub const EXIT_UNAVAILABLE: i32 = 69;
/// Something else went wrong.
pub const EXIT_FAILURE: i32 = 1;

/// Prints to the standard output, whether somebody reads it or, as behind `| head`, not any more.
fn print(text: &str) {
    // `print!` would panic.
    let _ = std::io::stdout().write_all(text.as_bytes());
}

/// An error with its causes, on one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}
