//! One client connection in http mode: requests in turn, each given to an endpoint, retried where that is safe, answered
//! with a reason where it fails.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use tokio::time::Sleep;

use super::answers::SEND_AT_MOST;
use super::buffer::Buffer;
use super::ended;
use super::server::{Begun, Entry, Server, Spoken, is_trusted};
use super::whose::Found;
use crate::model::Timeouts;
use crate::proxy::Shared;
use crate::proxy::core::{self, Connection, Signal};
use crate::proxy::http::{HeaderSlots, Method, Peer, Refusal, lower_request, parse_request};
use crate::proxy::patience::Patience;
use crate::proxy::wire::Client;
use crate::routing::CloseReason;

/// A client that turned out to speak HTTP/2 before it has asked for anything.
pub(in crate::proxy) struct Preface<C> {
    pub(in crate::proxy) connection: Connection,
    pub(in crate::proxy) client: C,
    pub(in crate::proxy) entry: Entry,
    /// What was read of it.
    pub(in crate::proxy) early: Vec<u8>,
}

/// Serves one client from accept to close; or, if it speaks HTTP/2, until that shows.
///
/// A block, since an `async fn` would keep its arguments twice: a task of this size is there for each connection.
#[expect(clippy::manual_async_fn, reason = "smaller")]
pub(in crate::proxy) fn serve<C: Client>(
    mut connection: Connection,
    client: C,
    peer: SocketAddr,
    entry: Entry,
    target: u16,
    shared: Arc<Shared>,
) -> impl Future<Output = Option<Box<Preface<C>>>> {
    async move {
        let has_request = || ended::has_whole_request(&client, shared.config.http_head_bytes_max);
        let admitted = match connection.try_admit() {
            true => Ok(()),
            false => {
                let party = connection.party();
                Box::pin(async {
                    connection
                        .admit(&mut Patience::new(client.watched(), party, &has_request))
                        .await
                })
                .await
            }
        };
        let reason = match admitted {
            Ok(()) => {
                let trusted = is_trusted(peer, &entry, &shared);
                let mut server = Server {
                    route: match entry {
                        Entry::Front(_) => None,
                        Entry::Listener(_) | Entry::Inside(_) => Some((connection.service().clone(), target)),
                    },
                    revision: shared.table.peek().revision(),
                    entry,
                    peer: describe(&client, peer, trusted),
                    from: peer,
                    asks_for_others: trusted,
                    connection: &connection,
                    client: &client,
                    shared: &shared,
                    instead: None,
                    filters: None,
                    from_client: Buffer::default(),
                    wire: Spoken::Nothing,
                };
                let reason = loop {
                    match server.next_request().await {
                        Ok(()) => {}
                        Err(reason) => break reason,
                    }
                };
                if server.wire == Spoken::Http2 {
                    let (entry, early) = (server.entry, server.from_client.into_rest());
                    return Some(Box::new(Preface {
                        connection,
                        client,
                        entry,
                        early,
                    }));
                }
                reason
            }
            Err(reason) => {
                client.reset_on_close();
                reason
            }
        };
        if client.tcp().is_none() && reason == CloseReason::ResponseEnd {
            // A reader that is slow gets TLS's goodbye too, or would have what it got for cut off.
            let end = poll_fn(|cx| client.poll_end(cx, true));
            let _ = Box::pin(tokio::time::timeout(SEND_AT_MOST, end)).await;
        }
        connection.close(reason);
        None
    }
}

/// Who sends requests: the same for all of one connection.
pub(in crate::proxy) struct Requester {
    peer: Peer,
    from: SocketAddr,
    /// It is a proxy that is trusted to say who its clients are.
    asks_for_others: bool,
    /// The address that it came to.
    local: SocketAddr,
    entry: Entry,
    target: u16,
    shared: Arc<Shared>,
}

impl Requester {
    pub(in crate::proxy) fn new(
        client: &impl Client,
        peer: SocketAddr,
        entry: Entry,
        target: u16,
        shared: Arc<Shared>,
    ) -> Requester {
        let trusted = is_trusted(peer, &entry, &shared);
        Requester {
            peer: describe(client, peer, trusted),
            from: peer,
            asks_for_others: trusted,
            local: client.watched().local_addr().unwrap_or(peer),
            entry,
            target,
            shared,
        }
    }

    pub(in crate::proxy) fn local(&self) -> SocketAddr {
        self.local
    }

    pub(in crate::proxy) fn shared(&self) -> &Shared {
        &self.shared
    }
}

/// Sees one request through whose client may have others under way. `client` has all but its `head`. What has not been answered when
/// this ends is lost.
pub(in crate::proxy) async fn serve_one(
    connection: Connection,
    client: &impl Client,
    head: Vec<u8>,
    requester: &Requester,
) {
    let mut server = Server {
        route: match requester.entry {
            Entry::Front(_) => None,
            Entry::Listener(_) | Entry::Inside(_) => Some((connection.service().clone(), requester.target)),
        },
        // The connection may be older than the table.
        revision: u64::MAX,
        entry: requester.entry.clone(),
        peer: requester.peer,
        from: requester.from,
        asks_for_others: requester.asks_for_others,
        connection: &connection,
        client,
        shared: &requester.shared,
        instead: None,
        filters: None,
        from_client: Buffer::of(head),
        wire: Spoken::Http1,
    };
    // What has come of the body can be sent with the head, and again.
    let come = poll_fn(|cx| Poll::Ready(server.from_client.poll_fill(client, cx))).await;
    let reason = match come {
        Poll::Ready(Err(_)) => CloseReason::ClientRst,
        _ => match server.next_request().await {
            Ok(()) => CloseReason::ResponseEnd,
            Err(reason) => reason,
        },
    };
    drop(server);
    connection.close(reason);
}

#[inline(always)]
fn describe(client: &impl Client, peer: SocketAddr, trusted: bool) -> Peer {
    let ip = peer.ip().to_canonical();
    // Without it the connection is gone already.
    let local = client.watched().local_addr().unwrap_or(peer);
    let described = Peer::new(ip, local, trusted);
    match client.tcp() {
        Some(_) => described,
        None => described.over_tls(),
    }
}

impl<C: Client> Server<'_, C> {
    /// Waits for one request and sees it through. Errors: the reason to close with.
    async fn next_request(&mut self) -> Result<(), CloseReason> {
        if self.from_client.is_empty() {
            self.wait_idle().await?;
        }
        let begun = match self.begin(0) {
            Ok(Some(begun)) => begun,
            Ok(None) => Box::pin(self.read_head()).await?,
            Err(refusal) => return Err(Box::pin(self.refuse(refusal)).await),
        };
        // Boxed: a connection between requests has no use for the room that a request takes.
        Box::pin(self.exchange(begun)).await
    }

    /// Those that hold before it is known whose the next request is.
    fn timeouts(&self) -> Option<&Timeouts> {
        let service = match (&self.entry, &self.route) {
            (Entry::Front(_), _) => self.connection.service(),
            (_, route) => &route.as_ref()?.0,
        };
        Some(&service.spec().timeouts)
    }

    /// Waits for the first byte of a request. No memory is held meanwhile.
    async fn wait_idle(&mut self) -> Result<(), CloseReason> {
        let idle = self.timeouts().map_or(Duration::ZERO, |timeouts| timeouts.idle);
        self.connection.set_idle(true);
        if core::ends_idle() {
            return Err(CloseReason::ProxyShutdown);
        }
        let mut timer: Option<Pin<Box<Sleep>>> = None;
        let result = poll_fn(|cx| {
            if let Poll::Ready(Signal::End(reason)) = self.connection.poll_signal(cx) {
                return Poll::Ready(Err(reason));
            }
            if let Poll::Ready(filled) = self.from_client.poll_fill(self.client, cx) {
                return Poll::Ready(match filled {
                    Ok(1..) => Ok(()),
                    Ok(_) => Err(CloseReason::ClientFin),
                    Err(_) => Err(CloseReason::ClientRst),
                });
            }
            if !idle.is_zero() {
                let timer = timer.get_or_insert_with(|| Box::pin(tokio::time::sleep(idle)));
                if timer.as_mut().poll(cx).is_ready() {
                    return Poll::Ready(Err(CloseReason::IdleTimeout));
                }
            }
            Poll::Pending
        })
        .await;
        self.connection.set_idle(false);
        result
    }

    /// Parses the head at the front of what was received. `None`: more bytes are needed.
    /// `seen`: bytes of it that were looked at in vain before.
    fn begin(&mut self, seen: usize) -> Result<Option<Begun>, Refusal> {
        let mut slots = HeaderSlots::with_most(self.shared.config.http_fields_max);
        let max = self.shared.config.http_head_bytes_max;
        // By reference: it is large.
        let parsed = parse_request(self.from_client.rest(), seen, max, &mut slots);
        let head = match &parsed {
            Ok(Some(head)) => head,
            Ok(None) => return Ok(None),
            Err(Refusal::Version) => return self.begin_lowered(),
            Err(refusal) => return Err(*refusal),
        };
        let meta = head.meta;
        let found = match self.entry {
            Entry::Front(listen) => Some(self.find_route(listen, head)?),
            Entry::Listener(_) | Entry::Inside(_) => None,
        };
        let mut to_upstream = Buffer::default();
        head.forward(&self.peer, to_upstream.tail());
        match found {
            None => {}
            Some(Found::Service(service, target, filters)) => {
                (self.route, self.filters) = (Some((service, target)), filters)
            }
            Some(Found::Instead(instead)) => (self.route, self.instead) = (None, Some(instead)),
            Some(Found::Nobody) => (self.route, self.instead) = (None, None),
        }
        self.from_client.consume(meta.head_len);
        self.wire = Spoken::Http1;
        Ok(Some(Begun {
            meta,
            to_upstream,
            at: Instant::now(),
        }))
    }

    /// As `begin`, where the version is one to be read as 1.1.
    #[cold]
    fn begin_lowered(&mut self) -> Result<Option<Begun>, Refusal> {
        match lower_request(self.from_client.rest_mut()) {
            true => self.begin(0),
            false => {
                if self.wire == Spoken::Nothing && self.from_client.rest().starts_with(PREFACE) {
                    self.wire = Spoken::Http2;
                }
                Err(Refusal::Version)
            }
        }
    }

    /// Reads on until the head is whole, within the service's limit.
    async fn read_head(&mut self) -> Result<Begun, CloseReason> {
        let limit = self.timeouts().map_or(Duration::ZERO, |timeouts| timeouts.request_head);
        let reading = async {
            loop {
                let seen = self.from_client.rest().len();
                let read = poll_fn(|cx| {
                    if let Poll::Ready(Signal::End(reason)) = self.connection.poll_signal(cx) {
                        return Poll::Ready(Err(reason));
                    }
                    self.from_client.poll_fill(self.client, cx).map(|filled| match filled {
                        Ok(1..) => Ok(()),
                        Ok(_) => Err(CloseReason::ClientFin),
                        Err(_) => Err(CloseReason::ClientRst),
                    })
                });
                read.await?;
                match self.begin(seen) {
                    Ok(Some(begun)) => return Ok(begun),
                    Ok(None) => {}
                    Err(refusal) => return Err(self.refuse(refusal).await),
                }
            }
        };
        if limit.is_zero() {
            return reading.await;
        }
        match tokio::time::timeout(limit, reading).await {
            Ok(result) => result,
            Err(_) => {
                self.connection.service().stats().add_request(408);
                self.say(408, "the request took too long", false, Method::Get).await;
                Err(CloseReason::ClientTimeout)
            }
        }
    }
}

/// How HTTP/2 begins, so that whoever speaks HTTP/1.1 refuses it (RFC 9113 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0";
