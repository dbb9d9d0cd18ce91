//! A swarm in one binary, through the real docker command line: on processes, and on a real dockerd.

mod api;
mod engine;
pub mod rig;
mod survival;
mod walkthrough;
