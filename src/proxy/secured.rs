//! TLS that is begun with an endpoint, over whatever leads there: a socket, or a tunnel through the endpoint's node. Not here: whom to
//! believe (`tls::Trust`), which version of HTTP goes over it (`h1`), and TLS of clients (`sealed`).

use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use rustls::{HandshakeKind, ProtocolVersion};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::core;
use super::heavy;
use super::wire::{Leaving, Leg, Tunnel, TunnelLeg, Wire};
use crate::model::{EndpointHandshake, ServiceSpec, Verify};
use crate::routing::{Endpoint, EndpointId};
use crate::tls::{Seal, Sessions, TlsFault, Towards};

/// Which versions of HTTP an endpoint may choose from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub(super) enum Offer {
    #[default]
    Any,
    /// HTTP/1.1 alone.
    Http1,
}

/// What was agreed on with an endpoint.
#[derive(Debug, Clone, Copy)]
pub struct Agreed {
    /// How it was judged.
    pub seal: Seal,
    pub(super) offer: Offer,
    pub is_http2: bool,
}

thread_local! {
    /// What handshakes of this worker go by, and the sessions that they can go on with.
    static SESSIONS: RefCell<HashMap<EndpointId, Sessions>> = RefCell::new(HashMap::new());
}

/// Agrees on TLS with an endpoint at the other end of `below`, by `due`. What fails is counted, and shown with the endpoint.
///
/// Errors: a `TlsFault`, of the kind `TimedOut` after `due`.
pub(super) async fn begin(
    below: Leg,
    towards: &Towards,
    spec: &ServiceSpec,
    endpoint: &Arc<Endpoint>,
    offer: Offer,
    due: Instant,
) -> io::Result<Leg> {
    let agreeing = agree(below, towards, spec, endpoint, offer);
    let result = match tokio::time::timeout_at(due.into(), agreeing).await {
        Ok(result) => result,
        Err(_) => Err(TlsFault::timed_out()),
    };
    match result {
        Ok((stream, handshake)) => {
            endpoint.service().stats.add_endpoint_handshake(handshake);
            endpoint.agreed(Instant::now());
            if stream.unheard.is_none() {
                endpoint.set_tls_fault(None);
            }
            Ok(Leg::Tunnel(TunnelLeg::new(Box::new(stream))))
        }
        Err(fault) => Err(note(fault, endpoint)),
    }
}

/// What endpoints of a service are judged by. Errors: nobody can be believed, which is counted, and shown with the endpoint.
pub(super) fn towards(spec: &ServiceSpec, endpoint: &Endpoint) -> io::Result<Arc<Towards>> {
    let towards = core::trust().towards(&spec.endpoint_tls);
    towards.map_err(|fault| note(fault, endpoint))
}

/// Counts what failed, and shows it with the endpoint.
fn note(fault: TlsFault, endpoint: &Endpoint) -> io::Error {
    endpoint.service().stats.add_endpoint_handshake(fault.result);
    if fault.result != EndpointHandshake::NoHttp1 {
        endpoint.set_tls_fault(Some(&fault.text));
    }
    let kind = match fault.result {
        EndpointHandshake::TimedOut => io::ErrorKind::TimedOut,
        _ => io::ErrorKind::InvalidData,
    };
    io::Error::new(kind, fault)
}

/// What TLS failed with, where that is why there is no connection.
pub(super) fn fault(error: &io::Error) -> Option<&TlsFault> {
    error.get_ref()?.downcast_ref()
}

async fn agree(
    below: Leg,
    towards: &Towards,
    spec: &ServiceSpec,
    endpoint: &Arc<Endpoint>,
    offer: Offer,
) -> Result<(Secured, EndpointHandshake), TlsFault> {
    let asked = &spec.endpoint_tls;
    let sessions = SESSIONS.with_borrow_mut(|all| {
        let sessions = all.entry(endpoint.id()).or_insert_with(|| towards.sessions());
        if sessions.seal != towards.seal() {
            *sessions = towards.sessions();
        }
        sessions.clone()
    });
    if endpoint.is_draining() {
        // It was forgotten already.
        forget(endpoint.id());
    }
    let config = match offer {
        Offer::Any => sessions.any.clone(),
        Offer::Http1 => sessions.http1.clone(),
    };
    if below.tcp().is_none() {
        // Its socket is not seen any more through what is made of it here.
        below.set_liveness();
    }
    let name = asked.server_name_for(&spec.name, endpoint.addr().ip());
    let below = Below {
        leg: below,
        gate: Some(Gate::default()),
    };
    let connecting = TlsConnector::from(config).connect(name.clone(), below);
    let fault = |error: io::Error| match offer {
        Offer::Any => TlsFault::of(&error, asked.verify),
        Offer::Http1 => TlsFault::of_http1(&error, asked.verify),
    };
    let mut stream = connecting.await.map_err(fault)?;
    let (below, tls) = stream.get_mut();
    if let Some(gate) = &mut below.gate {
        gate.is_over = true;
    }
    let handshake = match tls.handshake_kind() {
        Some(HandshakeKind::Resumed) => {
            let shown = tls.peer_certificates().unwrap_or_default();
            if let Err(fault) = sessions.judge_again(shown, &name) {
                forget(endpoint.id());
                return Err(fault);
            }
            EndpointHandshake::Resumed
        }
        _ => EndpointHandshake::Full,
    };
    let agreed = Agreed {
        seal: sessions.seal,
        offer,
        is_http2: tls.alpn_protocol() == Some(b"h2"),
    };
    let is_over = tls.protocol_version() != Some(ProtocolVersion::TLSv1_3);
    let secured = Secured {
        stream,
        agreed,
        unheard: (!is_over).then(|| endpoint.clone()),
        verify: asked.verify,
    };
    Ok((secured, handshake))
}

/// No more connections are made to an endpoint that left the table.
pub(super) fn forget(endpoint: EndpointId) {
    SESSIONS.with_borrow_mut(|all| drop(all.remove(&endpoint)));
}

/// A stream inside TLS.
struct Secured {
    stream: TlsStream<Below>,
    agreed: Agreed,
    /// By TLS 1.3 an endpoint may refuse what it was shown after the handshake is over on this side: until it has said something.
    unheard: Option<Arc<Endpoint>>,
    verify: Verify,
}

/// What TLS goes over.
struct Below {
    leg: Leg,
    /// Until the handshake is over and what came with it was taken.
    gate: Option<Gate>,
}

/// Holds what comes within a handshake until it is this connection's turn to judge it: signatures cost a worker long.
#[derive(Default)]
struct Gate {
    held: Vec<u8>,
    n_given: usize,
    turn: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
    is_over: bool,
}

impl AsyncRead for Below {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let below = self.get_mut();
        while let Some(gate) = &mut below.gate {
            let rest = &gate.held[gate.n_given..];
            if rest.is_empty() && gate.is_over {
                below.gate = None;
                break;
            }
            if rest.is_empty() {
                let mut chunk = [0; HANDSHAKE_READ];
                let n = ready!(Wire::poll_read(&below.leg, cx, &mut chunk))?;
                if n == 0 {
                    return Poll::Ready(Ok(()));
                }
                (gate.held, gate.n_given) = (chunk[..n].to_vec(), 0);
                gate.turn = Some(Box::pin(heavy::turn(heavy::Whose::Endpoint)));
                continue;
            }
            if let Some(turn) = &mut gate.turn {
                ready!(turn.as_mut().poll(cx));
                gate.turn = None;
            }
            let n = rest.len().min(buffer.remaining());
            buffer.put_slice(&rest[..n]);
            gate.n_given += n;
            return Poll::Ready(Ok(()));
        }
        let n = ready!(Wire::poll_read(&below.leg, cx, buffer.initialize_unfilled()))?;
        buffer.advance(n);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Below {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Wire::poll_write(&self.leg, cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Wire::poll_flush(&self.leg, cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.leg.poll_end(cx, false).map(Ok)
    }
}

impl AsyncRead for Secured {
    /// An end without TLS's own goodbye is an error: a response that lasts until the end could have been cut off by anybody.
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let secured = self.get_mut();
        let n_before = buffer.filled().len();
        let result = ready!(Pin::new(&mut secured.stream).poll_read(cx, buffer));
        if let Some(endpoint) = secured.unheard.take() {
            match &result {
                Ok(()) if buffer.filled().len() > n_before => endpoint.set_tls_fault(None),
                Ok(()) => {}
                Err(error) => {
                    let fault = TlsFault::of(error, secured.verify);
                    if fault.result == EndpointHandshake::Refused {
                        note(fault, &endpoint);
                    }
                }
            }
        }
        Poll::Ready(result)
    }
}

impl AsyncWrite for Secured {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}

impl Secured {
    fn leg(&self) -> &Leg {
        &self.stream.get_ref().0.leg
    }
}

impl Tunnel for Secured {
    fn socket(&self) -> Option<&TcpStream> {
        self.leg().tcp()
    }

    fn is_leaving(&self) -> bool {
        self.leg().is_leaving()
    }

    fn leaving(&self) -> Option<Leaving> {
        self.leg().leaving()
    }

    fn stands(&self) -> bool {
        self.leg().stands()
    }

    fn agreed(&self) -> Option<Agreed> {
        Some(self.agreed)
    }

    fn reset(&mut self) {
        self.leg().reset_on_close();
    }
}

/// Of a flight of an endpoint; mostly it is whole.
const HANDSHAKE_READ: usize = 8 * 1024;
