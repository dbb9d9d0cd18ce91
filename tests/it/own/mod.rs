//! A swarm in one binary, through the real docker command line: on processes, and on a real dockerd.

mod api;
mod attached;
mod clients;
mod compose;
mod declared;
mod discovery;
mod engine;
mod exec;
mod held;
mod host;
mod hour;
mod inside;
mod isolation;
mod jobs;
mod lock;
mod mounts;
mod names;
mod peers;
mod resolver;
mod rest;
pub mod rig;
mod routes;
mod soak;
mod survival;
mod traefik;
mod trees;
mod walkthrough;
