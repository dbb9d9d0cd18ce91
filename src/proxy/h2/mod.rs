//! HTTP/2, as a wire and nothing more: frames become messages in HTTP/1.1's words and such messages become frames, by the
//! `h2` crate. So `h1` decides on routes, fields, endpoints and retries for both, one request at a time. Not here: any such decision,
//! and clients' connections (`session`).

mod head;
mod incoming;
mod io;
mod leg;
mod meter;
mod outgoing;
pub(super) mod pool;

pub(super) use head::{Framing, Malformed, is_authority, read_response, write_request};
pub(super) use incoming::{Incoming, io_error};
pub(super) use io::Io;
pub(super) use meter::Verdict;
pub(super) use outgoing::{Outgoing, malformed};
