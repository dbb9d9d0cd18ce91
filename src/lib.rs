//! anynode: any node answers every published port. One program, a library and one binary.
//!
//! Lexicon, one word per idea, Docker's word where Docker has one: a *service* is what the user declared (spec); a
//! *published port* is a port that every node answers; a *VIP* is a service's own address inside the cluster; an
//! *endpoint* is one task's address that traffic can be sent to; the *routing table* is immutable, numbered by
//! *revision*, and is everything the data plane knows; a *source* produces routing tables.
//!
//! Rooms, in reading order; a room imports only what stands above it (`tests/it/rooms.rs` keeps that):

#![deny(unsafe_code)]

pub mod sys;

pub mod places;

pub mod model;

pub mod streams;

pub mod gotemplate;

pub mod store;

pub mod control;

pub mod agent;

pub mod api;

pub mod routing;

pub mod tls;

pub mod takeover;

pub mod proxy;

pub mod dns;

pub mod tasknet;

pub mod health;

pub mod source;

pub mod link;

pub mod admin;

pub mod whoami;

pub mod app;
