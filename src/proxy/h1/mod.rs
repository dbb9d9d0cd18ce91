//! HTTP/1.1 connections: what moves the bytes that `proxy::http` parses and frames. A client connection is one task; each
//! of its requests is balanced by itself, over upstream connections that the worker keeps.

mod answers;
mod asker;
mod buffer;
mod ended;
mod exchange;
mod forward;
mod gzip;
mod passing;
pub(super) mod pool;
mod serve;
mod server;
mod through;
mod way;
mod whose;
mod wish;

pub(super) use serve::{Preface, Requester, serve, serve_one};
pub(super) use server::Entry;
