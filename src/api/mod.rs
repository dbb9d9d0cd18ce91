//! The Docker Engine API on a unix socket: its swarm part, answered from the store; everything else is passed on to the
//! engine beside it, if there is one. Not here: what follows from a change (`control`).
//!
//! `wire` is how requests and answers are written; `resources` are what may be asked for, and know no socket; `router` leads
//! from a path to a resource or to the `engine`; `server` has the socket.

mod backend;
mod engine;
mod find;
mod network_view;
mod outside;
mod resources;
mod router;
mod server;
mod templates;
mod validate;
mod view;
mod wire;

pub use outside::{Attaching, Host, Later, Lock, Outside, Turn, UnlockError, Volume, VolumeError, Volumes};
pub use server::Api;
