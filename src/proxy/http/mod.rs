//! HTTP/1.1 without I/O: heads are parsed strictly and written anew, bodies are decoded by small state machines.
//!
//! No socket, no clock and no task lives here; the shell that moves the bytes does. It holds one input and one output
//! buffer per direction and, in the common case, does this for a request: `parse_request` over the input buffer,
//! `RequestHead::forward` into the output buffer, `Body::forward` for the body bytes that came along, one send. What
//! it keeps while it waits is `RequestMeta`, a few words that borrow nothing.
//!
//! Policies, each refused or rewritten here and named in a test:
//! - Anything whose end two parsers could see at two places is refused: repeated or mixed lengths, transfer codings
//!   other than exactly `chunked`, bare CR or LF, folded lines, a space before the colon, control characters.
//!   Endpoints may end the lines of a head in LF alone, as HAProxy, nginx, Envoy and Traefik let them.
//! - The target of a request in absolute form wins over its Host field, as RFC 9112 3.2.2 demands; one Host goes on.
//! - Targets are forwarded neither decoded nor normalised. Routes see a path decoded (`asked`), and where they look at it, one
//!   that could be read in two ways is refused.
//! - Field names with an underscore pass, except those that read like a length, a transfer coding (refused) or a
//!   forwarding field (dropped) once a gateway turns `_` into `-`.
//! - `Upgrade` passes for any protocol but HTTP/2: the endpoint of an `h2c` tunnel would see requests we never read.
//! - `Connection` cannot list away the fields that end points or proxies rely on (`fields::PROTECTED`).
//! - `Trailer` stays with a chunked message, since trailers are forwarded.

mod asked;
mod body;
mod coded;
mod fields;
mod filtered;
#[cfg(test)]
mod properties;
mod refusal;
mod reply;
mod request;
mod response;

pub use asked::{RouteKey, https_location};
pub use body::{Body, BodyFault, Chunked, Coding, Progress, TRAILERS_BYTES_MAX, encode_chunk};
pub use coded::{code_response, takes_gzip};
pub use fields::{DEFAULT_FIELDS_MAX, FIELDS_MOST, HeaderSlots};
pub use filtered::{check_path, filter_request, filter_response, https_place, uri_of};
pub use refusal::Refusal;
pub use reply::{CONTINUE, Reply, write_challenge, write_options_reply, write_redirect};
pub use request::{LocalAnswer, Peer, RequestHead, RequestMeta, lower_request, parse_request};
pub use response::{Onward, ResponseHead, ResponseMeta, add_field, lower_response, parse_response};

/// The longest head that is taken, request or response, in bytes.
pub const DEFAULT_HEAD_BYTES_MAX: usize = 64 * 1024;

/// The versions that are spoken. A later 1.x is read as 1.1 (`as_1_1`); the others are refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    Http10,
    Http11,
}

impl Version {
    /// Whether a head is that of a later minor version of HTTP/1, which it then no longer is: whoever speaks 1.1 takes it
    /// for that (RFC 9110 2.5). `at`: where its version begins.
    fn lower(head: &mut [u8], at: usize) -> bool {
        match head.get_mut(at..at + "HTTP/1.x".len()) {
            Some([rest @ .., minor @ b'2'..=b'9']) if rest == b"HTTP/1." => {
                *minor = b'1';
                true
            }
            _ => false,
        }
    }

    fn from_minor(minor: Option<u8>) -> Version {
        match minor {
            Some(1) => Version::Http11,
            _ => Version::Http10,
        }
    }
}

/// A request's method, as far as the proxy treats methods differently. Names are case-sensitive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    Connect,
    Delete,
    Get,
    Head,
    Options,
    Patch,
    Post,
    Put,
    Trace,
    /// Any other token. Nothing is assumed of it.
    Other,
}

impl Method {
    fn of(name: &str) -> Method {
        match name {
            "GET" => Method::Get,
            "POST" => Method::Post,
            "HEAD" => Method::Head,
            "PUT" => Method::Put,
            "DELETE" => Method::Delete,
            "OPTIONS" => Method::Options,
            "PATCH" => Method::Patch,
            "TRACE" => Method::Trace,
            "CONNECT" => Method::Connect,
            _ => Method::Other,
        }
    }

    /// Whether a request may be sent again although the first try may have been acted upon (RFC 9110 9.2.2).
    pub fn is_idempotent(self) -> bool {
        match self {
            Method::Delete | Method::Get | Method::Head | Method::Options | Method::Put | Method::Trace => true,
            Method::Connect | Method::Other | Method::Patch | Method::Post => false,
        }
    }

    /// Whether a request without a body should say so by a length of zero (RFC 9110 8.6).
    fn expects_body(self) -> bool {
        matches!(self, Method::Patch | Method::Post | Method::Put)
    }
}

/// How a message's body ends, as its head says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// No body, whatever the length fields say.
    None,
    /// This many bytes.
    Length(u64),
    Chunked,
    /// Everything up to the end of the connection. Responses only.
    UntilClose,
}
