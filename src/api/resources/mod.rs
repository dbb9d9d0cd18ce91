//! What may be asked for, one file for each kind. Not here: sockets, and which path leads where (`router`).

mod attach;
pub(super) mod container_list;
pub(super) mod containers;
mod detach;
pub(super) mod events;
pub(super) mod exec;
mod exec_run;
mod exec_table;
mod local_events;
pub(super) mod logs;
pub(super) mod networks;
mod new_network;
pub(super) mod nodes;
pub(super) mod payloads;
mod processes;
mod routes;
pub(super) mod services;
pub(super) mod swarm;
pub(super) mod system;
mod task_mounts;
pub(super) mod tasks;
pub(super) mod volumes;
