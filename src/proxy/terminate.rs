//! One connection to an entry point that ends TLS: the handshake within its time, then HTTP as on any other. Not here: the
//! handshake itself (`sealed`), and what it goes by (`tls`).

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::TcpStream;

use super::Shared;
use super::core::Connection;
use super::h1;
use super::http::Reply;
use super::relay;
use super::sealed::{NoHandshake, Sealed};
use crate::routing::CloseReason;
use crate::sys::socket;
use crate::tls::{Handshake, Terminator};

/// Serves one client from accept to close.
pub(super) async fn serve(
    connection: Connection,
    socket: TcpStream,
    peer: SocketAddr,
    entry: h1::Entry,
    shared: Arc<Shared>,
    terminator: Arc<Terminator>,
) {
    // Boxed: the connection has no use for this room after it.
    match Box::pin(shake_hands(&connection, socket, &terminator)).await {
        Ok(client) => h1::serve(connection, client, peer, entry, 0, shared).await,
        Err(reason) => connection.close(reason),
    }
}

async fn shake_hands(
    connection: &Connection,
    socket: TcpStream,
    terminator: &Terminator,
) -> Result<Sealed, CloseReason> {
    let count = |handshake| terminator.handshakes.count(handshake);
    let Some(config) = terminator.config() else {
        count(Handshake::Refused);
        socket::reset_on_close(&socket);
        return Err(CloseReason::TlsHandshake);
    };
    let limit = connection.service().spec().timeouts.request_head;
    let accepting = async {
        let accepting = Sealed::accept(&socket, config);
        match limit.is_zero() {
            true => Some(accepting.await),
            false => tokio::time::timeout(limit, accepting).await.ok(),
        }
    };
    let accepted = tokio::select! {
        biased;
        accepted = accepting => accepted,
        reason = connection.ended() => {
            count(Handshake::Abandoned);
            socket::reset_on_close(&socket);
            return Err(reason);
        }
    };
    match accepted {
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
