//! Connections to an entry point that are a service's as a whole (`HostSNI`): found by what the client says first, which stays in the
//! socket, and given to the service, with TLS as it came or ended here. Not here: what a hello is (`hello`), bytes (`tcp`, `relay`).

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use rustix::net::{RecvFlags, recv};
use tokio::io::Interest;
use tokio::net::TcpStream;

use super::Shared;
use super::core::{self, Connection};
use super::hello::{self, Hello, Said};
use super::patience::within;
use super::sealed::Sealed;
use super::tcp::{self, Accepted};
use super::wire::Wire;
use crate::model::{Mode, RouteTls};
use crate::routing::{CloseReason, First, Listen, Routed};
use crate::sys::socket;

/// Whose a connection is.
#[derive(Debug)]
pub(super) struct Stream {
    routed: Arc<Routed>,
    /// Of the entry point.
    listen: Listen,
}

impl Stream {
    /// Whether its TLS is ended here, where the entry point ends TLS.
    pub(super) fn is_opened(&self) -> bool {
        self.routed.route.tls != RouteTls::Passthrough && !self.routed.route.is_closed
    }
}

/// The route that takes the connection as a whole, waited for as long as a request's head is; `None`: it is of requests. What the client
/// has said by then is still to be read. Errors: the reason to close with.
pub(super) async fn find(
    connection: &Connection,
    socket: &TcpStream,
    peer: SocketAddr,
    listen: Listen,
    shared: &Shared,
) -> Result<Option<Stream>, CloseReason> {
    let asks_for_hello = shared
        .table
        .peek()
        .entry_point_at(&listen)
        .is_some_and(|one| one.asks_for_hello());
    let words = match asks_for_hello {
        true => first_words(connection, socket).await?,
        false => Words::Other,
    };
    let first = match &words {
        Words::Hello(hello) => First::Tls(hello.name.as_deref()),
        Words::Other | Words::None => First::Other,
    };
    let table = shared.table.peek();
    let entry_point = table.entry_point_at(&listen);
    let found = entry_point.and_then(|one| one.find_stream(first, peer.ip().to_canonical()));
    if found.is_some() && entry_point.is_some_and(|one| one.spec().is_tls) && is_of_authority(&words, shared) {
        return Ok(None);
    }
    match (found, words) {
        (Some(routed), _) => Ok(Some(Stream {
            routed: routed.clone(),
            listen,
        })),
        (None, Words::None) => Err(CloseReason::ClientTimeout),
        (None, _) => Ok(None),
    }
}

/// Whether it asks for the certificate of a challenge that is pending: that way nothing is served, and no service is asked.
fn is_of_authority(words: &Words, shared: &Shared) -> bool {
    let (Words::Hello(hello), Some(tls)) = (words, &shared.tls) else {
        return false;
    };
    let name = hello.name.as_deref().filter(|_| hello.asks_for_challenge);
    name.is_some_and(|name| tls.challenges().is_asked_for(name))
}

/// What a client has said first.
enum Words {
    Hello(Hello),
    Other,
    /// Nothing at all, for as long as it is waited for: it may wait to be spoken to.
    None,
}

/// Errors: the reason to close with.
async fn first_words(connection: &Connection, socket: &TcpStream) -> Result<Words, CloseReason> {
    let limit = connection.service().spec().timeouts.request_head;
    let mut n_seen = 0;
    let reading = async {
        loop {
            // It has gone, or has been reset, before it said what it wants.
            let (n, said) = hear(socket, n_seen).await.map_err(|_| CloseReason::ClientFin)?;
            n_seen = n;
            match said {
                Said::Hello(hello) => return Ok(Words::Hello(hello)),
                Said::Unfinished if n < hello::BYTES_MOST => {}
                Said::Unfinished | Said::Other => return Ok(Words::Other),
            }
        }
    };
    let heard = tokio::select! {
        biased;
        heard = within(limit, reading) => heard.unwrap_or(Err(CloseReason::ClientTimeout)),
        reason = connection.ended() => Err(reason),
    };
    match heard {
        Err(CloseReason::ClientTimeout) if n_seen == 0 => Ok(Words::None),
        heard => heard,
    }
}

/// Waits until more than `n` bytes are there, reads them without taking them, and returns how many there are. Nothing is held
/// meanwhile. Errors: no more come.
async fn hear(socket: &TcpStream, n: usize) -> io::Result<(usize, Said)> {
    loop {
        let ready = socket.ready(Interest::READABLE).await?;
        let heard = socket.try_io(Interest::READABLE, || {
            core::with_scratch(|scratch| {
                let (now, _) = recv(socket, &mut scratch[..hello::BYTES_MOST], RecvFlags::PEEK)?;
                match now > n {
                    true => Ok((now, hello::read(&scratch[..now]))),
                    // An end behind what is there does not show in it.
                    false if now == 0 || ready.is_read_closed() => Err(io::ErrorKind::UnexpectedEof.into()),
                    false => Err(io::ErrorKind::WouldBlock.into()),
                }
            })
        });
        match heard {
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            heard => return heard,
        }
    }
}

/// Serves a connection as it came, from here on as one to a port of the service. `announced`: the client's address, where a proxy in
/// front has said it.
pub(super) fn serve(
    mut connection: Connection,
    client: TcpStream,
    stream: Stream,
    announced: Option<SocketAddr>,
    shared: &Shared,
) {
    if let Err(reason) = give(&mut connection, &stream, shared) {
        socket::reset_on_close(&client);
        return connection.close(reason);
    }
    let accepted = Accepted {
        connection,
        client,
        announced,
        target: stream.routed.route.target,
        table: shared.table.clone(),
        network: None,
    };
    // The task that has come so far is larger than what is left needs.
    tokio::spawn(tcp::serve(Box::new(accepted)));
}

/// The same of one whose TLS was ended here.
pub(super) fn serve_opened(
    mut connection: Connection,
    client: Sealed,
    stream: Stream,
    announced: Option<SocketAddr>,
    shared: &Shared,
) {
    if let Err(reason) = give(&mut connection, &stream, shared) {
        client.reset_on_close();
        return connection.close(reason);
    }
    let accepted = Accepted {
        connection,
        client,
        announced,
        target: stream.routed.route.target,
        table: shared.table.clone(),
        network: None,
    };
    tokio::spawn(tcp::serve_opened(Box::new(accepted)));
}

/// Has the connection be the service's. Errors: nobody is let through there, or it is gone, or has no such route any more: a handshake
/// takes its time.
fn give(connection: &mut Connection, stream: &Stream, shared: &Shared) -> Result<(), CloseReason> {
    let routed = &stream.routed;
    let service = {
        let table = shared.table.peek();
        let entry_point = table.entry_point_at(&stream.listen);
        let is_its = entry_point.is_some_and(|one| one.streams().has(routed));
        let service = table.service(&routed.service).filter(|_| is_its);
        service.filter(|service| service.spec().mode == Mode::Tcp).cloned()
    };
    connection.go_to(service.ok_or(CloseReason::NoEndpoint)?);
    match routed.route.is_closed {
        true => Err(CloseReason::NoEndpoint),
        false => Ok(()),
    }
}
