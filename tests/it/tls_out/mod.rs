//! TLS that is begun with endpoints: who is believed, what passes, what is said of those that are not. Through the program, with its
//! configuration, to endpoints of rustls' own and other people's.

mod believed;
mod labels;
mod programs;
mod rig;
mod spoken;
mod under_load;
mod versions;
