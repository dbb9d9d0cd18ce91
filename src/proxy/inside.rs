//! Connections to endpoints in other network namespaces. Each worker keeps a few sockets ready for each of them, so that most
//! connections cost no visit there. Not here: how a namespace is entered.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;

use super::upstream;
use crate::routing::{Endpoint, EndpointId};
use crate::sys::netns::{self, Inside, Opened};

thread_local! {
    static READY: RefCell<HashMap<EndpointId, Vec<Ready>>> = RefCell::default();
}

struct Ready {
    socket: Inside,
    /// Its namespace is set up for clients' addresses.
    may_be_transparent: bool,
}

/// One attempt at `addr` in the namespace at `netns`, from the client's address if there is one and that can be.
///
/// Errors: `TimedOut` after `timeout`; the namespace is gone or may not be entered; what the kernel says.
pub(super) async fn connect(
    endpoint: &Endpoint,
    netns: &Arc<Path>,
    addr: SocketAddr,
    client: Option<SocketAddr>,
    timeout: Duration,
) -> io::Result<TcpStream> {
    // A listener for both families has IPv4 clients in the form of IPv6.
    let client = client.map(|client| SocketAddr::new(client.ip().to_canonical(), client.port()));
    let attempt = async {
        let ready = match take(endpoint.id()) {
            Some(ready) => ready,
            None => open(endpoint, netns, addr, client.is_some()).await?,
        };
        let client = client.filter(|_| ready.may_be_transparent);
        match ready.socket.connect(addr, client) {
            Ok((stream, is_connected, _)) => upstream::connected(stream, is_connected, timeout).await,
            // The client has another connection from that port to the same place, which this one cannot be told from.
            Err(error) if client.is_some() && is_taken(&error) => {
                let ready = open(endpoint, netns, addr, true).await?;
                let (stream, is_connected, _) = ready.socket.connect(addr, None)?;
                upstream::connected(stream, is_connected, timeout).await
            }
            Err(error) => Err(error),
        }
    };
    let result = match tokio::time::timeout(timeout, attempt).await {
        Ok(result) => result,
        Err(_) => Err(io::ErrorKind::TimedOut.into()),
    };
    if result.is_err() || endpoint.is_draining() {
        // They may be of a namespace that is not there any more.
        forget(endpoint.id());
    }
    result
}

fn is_taken(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::AddrInUse | io::ErrorKind::AddrNotAvailable)
}

/// Lets go of what was kept for an endpoint: it holds the namespace.
pub(super) fn forget(endpoint: EndpointId) {
    READY.with(|ready| drop(ready.borrow_mut().remove(&endpoint)));
}

fn take(endpoint: EndpointId) -> Option<Ready> {
    READY.with(|ready| ready.borrow_mut().get_mut(&endpoint)?.pop())
}

async fn open(endpoint: &Endpoint, netns: &Arc<Path>, addr: SocketAddr, is_transparent: bool) -> io::Result<Ready> {
    let Opened { sockets, opaque } = netns::open(netns.clone(), addr.ip(), AT_ONCE, is_transparent).await?;
    let may_be_transparent = is_transparent && opaque.is_none();
    if is_transparent
        && endpoint.set_opaque(opaque.clone())
        && let Some(why) = opaque
    {
        tracing::warn!(endpoint = %endpoint.label(), "it does not see its clients' addresses: {why}");
    }
    let mut opened = sockets.into_iter().map(|socket| Ready {
        socket,
        may_be_transparent,
    });
    let first = opened.next().ok_or(io::ErrorKind::NotFound)?;
    if !endpoint.is_draining() {
        READY.with(|ready| ready.borrow_mut().entry(endpoint.id()).or_default().extend(opened));
    }
    Ok(first)
}

/// So many descriptors each worker may keep for an endpoint, and one that is in use.
const AT_ONCE: usize = 4;
