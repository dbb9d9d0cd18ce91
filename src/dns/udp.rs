//! DNS over UDP: a socket's datagrams, answered many in a row where the answers are ours; what upstream is to answer becomes
//! a task. Not here: what is answered (`core`).

use std::future::Future;
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;

use tokio::io::Interest;
use tokio::net::UdpSocket;
use tokio::task::JoinSet;

use super::core::{Client, Core, Handled, log_panic, pause_after};
use super::wire::{MAX_QUERY_BYTES, Transport};
use crate::sys::pktinfo;

/// Datagrams taken in a row before others have their turn.
const BATCH: usize = 64;

/// Answers until `handed_over`; ends with the last answer then.
pub(super) async fn serve(
    core: &Arc<Core>,
    client: &Client,
    socket: &Arc<UdpSocket>,
    handed_over: impl Future<Output = ()>,
) {
    tokio::pin!(handed_over);
    let mut buffer = vec![0; MAX_QUERY_BYTES];
    let mut forwards = JoinSet::new();
    loop {
        match answer_batch(core, client, socket, &mut buffer, &mut forwards) {
            Ok(n) => tokio::select! {
                biased;
                () = &mut handed_over => break,
                () = tokio::task::yield_now(), if n == BATCH => {}
                ready = socket.readable(), if n < BATCH => {
                    if let Err(error) = ready {
                        pause_after(&error).await;
                    }
                }
            },
            Err(error) => pause_after(&error).await,
        }
        while let Some(ended) = forwards.try_join_next() {
            log_panic(ended);
        }
    }
    while let Some(ended) = forwards.join_next().await {
        log_panic(ended);
    }
}

/// Answers datagrams until there are none, or enough for one turn. Returns how many it took.
fn answer_batch(
    core: &Arc<Core>,
    client: &Client,
    socket: &Arc<UdpSocket>,
    buffer: &mut [u8],
    forwards: &mut JoinSet<()>,
) -> io::Result<usize> {
    for n in 0..BATCH {
        let received = socket.try_io(Interest::READABLE, || pktinfo::recv(socket.as_fd(), buffer));
        let datagram = match received {
            Ok(datagram) => datagram,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(n),
            Err(error) => return Err(error),
        };
        match core.handle(client, &buffer[..datagram.len], Transport::Udp, datagram.from) {
            Handled::Nothing => {}
            Handled::Reply(reply) => send(core, socket, &reply, &datagram),
            Handled::Pending(pending) => {
                let (core, socket) = (core.clone(), socket.clone());
                forwards.spawn(async move {
                    if let Some(reply) = core.finish(pending).await {
                        send(&core, &socket, &reply, &datagram);
                    }
                });
            }
        }
    }
    Ok(BATCH)
}

/// Sends a reply from the address that was asked. A reply that the socket does not take is lost, as any datagram may be.
fn send(core: &Core, socket: &UdpSocket, reply: &[u8], asked: &pktinfo::Datagram) {
    if let Err(error) = pktinfo::send(socket.as_fd(), reply, asked.from, asked.to) {
        core.stats.unsent();
        tracing::debug!(client = %asked.from, %error, "DNS reply not sent");
    }
}
