//! The Docker Engine API by itself: on a store in a directory, with a made-up node around it, driven by the docker command
//! line and by raw HTTP. The walkthroughs, where everything is real, are in `own`.

mod bodies;
mod commands;
mod engine;
mod errors;
mod events;
mod filters;
mod logs;
mod networks;
pub mod rig;
mod shapes;
mod spelling;
mod stacks;
mod whole;
