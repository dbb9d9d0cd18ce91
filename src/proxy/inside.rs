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

use super::files::{self, Spare};
use crate::routing::{Endpoint, EndpointId};
use crate::sys::entrances::Entrances;
use crate::sys::netns::Netns;
use crate::sys::socket;
use crate::sys::transparent::{self, Caller, ConnectError, Inside, Opened};

thread_local! {
    static READY: RefCell<HashMap<EndpointId, Kept>> = RefCell::default();
}

/// What is kept for one endpoint.
#[derive(Default)]
struct Kept {
    sockets: Vec<(Inside, Spare)>,
    /// So often some were opened since the last tick.
    n_openings: u32,
    /// How many were opened at once the last time.
    batch: usize,
    /// Whether its namespace is set up for clients' addresses. `None`: nobody asked for that yet.
    is_set_up: Option<bool>,
    /// Held by whoever opens some: the others wait for those.
    opening: Arc<tokio::sync::Mutex<()>>,
}

/// A socket of the endpoint's namespace.
struct Ready {
    socket: Inside,
    may_be_transparent: bool,
}

impl Kept {
    fn take(&mut self, is_transparent: bool) -> Option<Ready> {
        if is_transparent && self.is_set_up.is_none() {
            return None;
        }
        Some(Ready {
            socket: self.sockets.pop()?.0,
            may_be_transparent: self.is_set_up == Some(true),
        })
    }

    /// How many to open at once: twice as many where those of this second are used up already.
    fn next_batch(&self) -> usize {
        match self.n_openings {
            0 => self.batch.max(AT_ONCE),
            _ => (self.batch * 2).clamp(AT_ONCE, AT_ONCE_MAX),
        }
        // One is used at once.
        .min(files::n_spare_left() + 1)
    }
}

fn with_kept<T>(endpoint: &Endpoint, act: impl FnOnce(&mut Kept) -> T) -> T {
    READY.with(|ready| act(ready.borrow_mut().entry(endpoint.id()).or_default()))
}

/// Lets go of what is kept for the busy and was not used. Called once a second.
pub(super) fn tick() {
    READY.with(|ready| {
        ready.borrow_mut().retain(|_, kept| {
            let is_busy = std::mem::take(&mut kept.n_openings) > 0;
            if !is_busy {
                let most = if files::is_scarce() { 0 } else { AT_ONCE - 1 };
                kept.sockets.truncate(most);
                kept.batch = AT_ONCE;
            }
            // Of an endpoint that is gone a last attempt may have left this.
            is_busy || !kept.sockets.is_empty() || Arc::strong_count(&kept.opening) > 1
        });
    });
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
        let entrances = Entrances::shared()?;
        let ready = ready(endpoint, &entrances, netns, addr, client.is_some()).await?;
        let caller = match client.filter(|_| ready.may_be_transparent) {
            Some(client) => Caller::Client { client, stand_in: None },
            None => Caller::Nobody,
        };
        let made = transparent::connect_by(&entrances, &|| Netns::at(netns), ready.socket, caller, addr, &[]).await?;
        let stream = TcpStream::from_std(made.stream)?;
        if !made.is_connected {
            socket::established(&stream).await?;
        }
        Ok(stream)
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

/// Lets go of what was kept for an endpoint: it holds the namespace.
pub(super) fn forget(endpoint: EndpointId) {
    READY.with(|ready| drop(ready.borrow_mut().remove(&endpoint)));
}

/// A socket that was kept, or the first of some more.
async fn ready(
    endpoint: &Endpoint,
    entrances: &Entrances,
    netns: &Path,
    addr: SocketAddr,
    is_transparent: bool,
) -> io::Result<Ready> {
    let look = |kept: &mut Kept| (kept.take(is_transparent), kept.opening.clone());
    let opening = match with_kept(endpoint, look) {
        (Some(ready), _) => return Ok(ready),
        (None, opening) => opening,
    };
    let _opening = opening.lock().await;
    let look = |kept: &mut Kept| (kept.take(is_transparent), kept.next_batch(), kept.is_set_up);
    let (n, is_set_up) = match with_kept(endpoint, look) {
        (Some(ready), ..) => return Ok(ready),
        (None, n, is_set_up) => (n, is_set_up),
    };
    let netns = Netns::at(netns).map_err(ConnectError::from)?;
    // What it lacked may be there by now.
    let is_to_set_up = is_transparent && is_set_up != Some(true);
    let Opened { mut sockets, opaque } = transparent::open(entrances, &netns, addr.ip(), n, is_to_set_up).await?;
    let is_set_up = if is_to_set_up {
        Some(opaque.is_none())
    } else {
        is_set_up
    };
    if is_to_set_up {
        let why: Option<Arc<str>> = opaque.map(|error| why(&error).into());
        if endpoint.set_opaque(why.clone())
            && let Some(why) = why
        {
            tracing::warn!(endpoint = %endpoint.label(), "it does not see its clients' addresses: {why}");
        }
    }
    let socket = sockets.pop().ok_or(io::ErrorKind::NotFound)?;
    if !endpoint.is_draining() {
        with_kept(endpoint, |kept| {
            kept.n_openings += 1;
            kept.batch = n;
            kept.is_set_up = is_set_up;
            // What is too many is closed.
            kept.sockets
                .extend(sockets.into_iter().map_while(|socket| Some((socket, Spare::take()?))));
        });
    }
    Ok(Ready {
        socket,
        may_be_transparent: is_set_up == Some(true),
    })
}

/// The error with its sources.
pub(super) fn why(error: &dyn std::error::Error) -> String {
    let sources = std::iter::successors(Some(error), |error| error.source());
    sources.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

/// So many descriptors, and no more than the connections of a second, each worker keeps for an endpoint that is busy; of one
/// that is not, one less than these.
const AT_ONCE: usize = 4;
const AT_ONCE_MAX: usize = 64;
