//! The integration tests: one binary, through the public door. Each speaks real sockets to a real data plane.

#![allow(unreachable_pub, reason = "a test binary exports nothing")]

mod acme;
mod admin;
mod agent;
mod api;
mod balance;
mod churn;
mod cli;
mod crowded;
mod deaf;
mod dns;
mod entrance;
mod filters;
mod front;
mod gone;
mod gotemplate;
mod grpc;
mod h2;
mod handoff;
mod harness;
mod health;
mod hold;
mod http;
mod http2;
mod inside;
mod last_hop;
mod link;
mod netns;
mod oracle;
mod own;
mod park;
mod reasons;
mod rooms;
mod rounds;
mod scale;
mod security;
mod silence;
mod sni;
mod store;
mod streams;
mod swarm;
mod takeover;
mod tcp;
mod tls;
mod vips;
