//! Whether a client that has ended its half has sent a whole request, told without reading from its socket. Not here: what
//! follows from it (`proxy::patience`).

use rustix::net::RecvFlags;

use crate::proxy::core;
use crate::proxy::http::{Body, Coding, HeaderSlots, parse_request};
use crate::proxy::wire::Client;

/// Whether there is a request from its head on. One that cannot be told in so many bytes counts as whole, and so does one
/// that will be refused: it has its answer to come.
pub(super) fn has_whole_request(client: &impl Client, head_bytes_max: usize) -> bool {
    with_unread(client, |unread, is_all| {
        let mut slots = HeaderSlots::new();
        match parse_request(unread, 0, head_bytes_max, &mut slots) {
            Ok(Some(head)) => ends(Body::of_request(head.meta.framing), &unread[head.meta.head_len..]) || !is_all,
            Ok(None) => !is_all,
            Err(_) => true,
        }
    })
}

/// Whether what follows the bytes that were `received` has the rest of a request's `body`.
pub(super) fn has_rest_of_body(client: &impl Client, received: &[u8], body: Body) -> bool {
    match body {
        Body::Done => true,
        Body::Length(left) => {
            let Some(socket) = client.tcp() else { return true };
            let unread = rustix::io::ioctl_fionread(socket).unwrap_or(0);
            received.len() as u64 + unread >= left
        }
        Body::Chunked(_) | Body::UntilClose => with_unread(client, |unread, is_all| {
            ends(body, &[received, unread].concat()) || !is_all
        }),
    }
}

/// Whether `body` ends within `bytes`. Damage counts as an end: it has its answer to come.
fn ends(mut body: Body, bytes: &[u8]) -> bool {
    match body.forward(bytes, Coding::Plain, &mut Vec::new()) {
        Ok(progress) => progress.done,
        Err(_) => true,
    }
}

/// Looks at what is to be read, as far as the scratch buffer takes it; and whether that is all. Of what is sealed nothing can
/// be told.
fn with_unread<T>(client: &impl Client, look: impl FnOnce(&[u8], bool) -> T) -> T {
    let Some(client) = client.tcp() else {
        return look(&[], false);
    };
    core::with_scratch(|scratch| {
        let n = rustix::net::recv(client, &mut *scratch, RecvFlags::PEEK | RecvFlags::DONTWAIT).map_or(0, |(n, _)| n);
        look(&scratch[..n], n < scratch.len())
    })
}
