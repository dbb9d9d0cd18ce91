//! HTTP/2, as a wire and nothing more: frames become messages in HTTP/1.1's words and such messages become frames, by the
//! `h2` crate. So `h1` decides on routes, fields, endpoints and retries for both, one request at a time. Not here: any such decision.

mod head;
mod incoming;
mod io;
mod outgoing;
mod serve;
mod stream;

pub(super) use serve::serve;
