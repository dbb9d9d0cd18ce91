//! What an entry point asks of a connection before HTTP: whose it is, of proxies that say so (PROXY protocol), whether it is a service's
//! as a whole, and TLS, each within the time that a request's head has. Not here: what a client says first (`streams`), the handshake
//! itself (`sealed`), and what it goes by (`tls`).

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::TcpStream;

use super::Shared;
use super::announced::{self, Unannounced};
use super::core::Connection;
use super::crowd::Party;
use super::h1;
use super::http::Reply;
use super::patience::within;
use super::relay;
use super::sealed::{NoHandshake, Sealed};
use super::session;
use super::speaks;
use super::streams;
use crate::routing::CloseReason;
use crate::sys::socket;
use crate::tls::{ACME_TLS, Handshake, Terminator};

/// Serves one client from accept to close.
pub(super) async fn serve(
    connection: Connection,
    socket: TcpStream,
    peer: SocketAddr,
    entry: h1::Entry,
    shared: Arc<Shared>,
    asks: Asks,
) {
    // Boxed: the connection has no use for this room after it.
    let peer = match asks.is_announced {
        true => Box::pin(announced(&connection, &socket, peer)).await,
        false => Ok(peer),
    };
    let peer = match peer {
        Ok(peer) => peer,
        Err(reason) => {
            socket::reset_on_close(&socket);
            return connection.close(reason);
        }
    };
    let stream = match &entry {
        h1::Entry::Front(listen) if asks.has_streams => {
            Box::pin(streams::find(&connection, &socket, peer, *listen, &shared)).await
        }
        _ => Ok(None),
    };
    let stream = match stream {
        Ok(stream) => stream,
        Err(reason) => {
            let tls = asks.tls.iter();
            tls.for_each(|terminator| terminator.handshakes.count(Handshake::Abandoned));
            socket::reset_on_close(&socket);
            return connection.close(reason);
        }
    };
    let announced = asks.is_announced.then_some(peer);
    match (asks.tls, stream) {
        (None, None) => speaks::serve(connection, socket, peer, entry, 0, shared).await,
        (Some(terminator), None) => {
            match Box::pin(shake_hands(&connection, socket, &terminator, terminator.config())).await {
                Ok(client) if client.speaks_http2() => {
                    Box::pin(session::serve(connection, client, Vec::new(), peer, entry, 0, shared)).await
                }
                Ok(client) => speaks::serve(connection, client, peer, entry, 0, shared).await,
                Err(reason) => connection.close(reason),
            }
        }
        (Some(terminator), Some(stream)) if stream.is_opened() => {
            let config = terminator.stream_config();
            match Box::pin(shake_hands(&connection, socket, &terminator, config)).await {
                Ok(client) => streams::serve_opened(connection, client, stream, announced, &shared),
                Err(reason) => connection.close(reason),
            }
        }
        (_, Some(stream)) => streams::serve(connection, socket, stream, announced, &shared),
    }
}

/// What a connection has to begin with.
#[derive(Clone)]
pub(super) struct Asks {
    pub(super) is_announced: bool,
    pub(super) tls: Option<Arc<Terminator>>,
    /// It may be a service's as a whole.
    pub(super) has_streams: bool,
}

impl Asks {
    /// Otherwise a request may come at once.
    pub(super) fn are_any(&self) -> bool {
        self.is_announced || self.has_streams || self.tls.is_some()
    }
}

/// Whose connection it is, as the proxy says that has made it. Errors: the reason to close with.
async fn announced(connection: &Connection, socket: &TcpStream, peer: SocketAddr) -> Result<SocketAddr, CloseReason> {
    let limit = connection.service().spec().timeouts.request_head;
    tokio::select! {
        biased;
        read = within(limit, announced::read(socket)) => match read {
            Some(Ok(client)) => {
                if let Some(client) = client {
                    connection.set_party(Party::client(client.ip(), &[]));
                }
                Ok(client.unwrap_or(peer))
            }
            Some(Err(Unannounced::Gone)) => Err(CloseReason::ClientFin),
            Some(Err(Unannounced::Wrong)) => {
                tracing::debug!(%peer, "expected a header of the PROXY protocol");
                Err(CloseReason::BadRequest)
            }
            None => Err(CloseReason::ClientTimeout),
        },
        reason = connection.ended() => Err(reason),
    }
}

async fn shake_hands(
    connection: &Connection,
    socket: TcpStream,
    terminator: &Terminator,
    config: Option<Arc<rustls::ServerConfig>>,
) -> Result<Sealed, CloseReason> {
    let count = |handshake| terminator.handshakes.count(handshake);
    let Some(config) = config else {
        count(Handshake::Refused);
        socket::reset_on_close(&socket);
        return Err(CloseReason::TlsHandshake);
    };
    let limit = connection.service().spec().timeouts.request_head;
    let accepted = tokio::select! {
        biased;
        accepted = within(limit, Sealed::accept(&socket, config)) => accepted,
        reason = connection.ended() => {
            count(Handshake::Abandoned);
            socket::reset_on_close(&socket);
            return Err(reason);
        }
    };
    match accepted {
        Some(Ok(session)) if session.is_of(ACME_TLS) => {
            count(Handshake::Full);
            // What it wanted to see it has seen.
            finish(&socket).await;
            Err(CloseReason::ResponseEnd)
        }
        Some(Ok(session)) => {
            count(match session.is_resumed() {
                true => Handshake::Resumed,
                false => Handshake::Full,
            });
            Ok(session.over(socket))
        }
        Some(Err(NoHandshake::Gone)) => {
            count(Handshake::Abandoned);
            Err(CloseReason::ClientFin)
        }
        Some(Err(NoHandshake::Plain)) => {
            count(Handshake::Refused);
            let reply = Reply {
                status: 400,
                text: "this port speaks TLS: ask by https",
                keep_alive: false,
                field: "",
                to_head: false,
            };
            let mut out = Vec::new();
            reply.write(&mut out);
            // Whether the client still takes it is its own affair.
            let _ = socket.try_write(&out);
            finish(&socket).await;
            Err(CloseReason::TlsHandshake)
        }
        Some(Err(NoHandshake::Refused(error))) => {
            count(Handshake::Refused);
            tracing::debug!(entry_point = %terminator.policy().entry_point, %error, "no TLS");
            finish(&socket).await;
            Err(CloseReason::TlsHandshake)
        }
        None => {
            count(Handshake::Abandoned);
            socket::reset_on_close(&socket);
            Err(CloseReason::ClientTimeout)
        }
    }
}

/// Ends our half and lets the client read what it was told.
async fn finish(socket: &TcpStream) {
    let _ = socket2::SockRef::from(socket).shutdown(std::net::Shutdown::Write);
    relay::discard_a_while(socket).await;
}
