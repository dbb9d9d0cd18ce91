//! DNS over TCP (RFC 7766): queries of one connection are answered as their answers come, several at once. Whatever a
//! client does, its connection holds a bounded number of bytes and ends when it rests. Not here: what is answered.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, BufMut, BytesMut};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::core::{Client, Core, Handled, Party, log_panic, pause_after};
use super::wire::{MAX_QUERY_BYTES, Transport};
use crate::places::{Crowd, Place};
use crate::sys::socket;

/// A connection on which no query came in and no answer was taken for so long is closed.
const IDLE: Duration = Duration::from_secs(10);
/// Queries of one connection that may wait for upstream at once; then no more is read from it.
const MAX_PENDING: usize = 32;
/// Answers that may wait for a slow client; then no more are made for it. One more of 64 KiB may come on top.
const MAX_UNSENT_BYTES: usize = 64 * 1024;
/// Room for one read: a few queries.
const READ_BYTES: usize = 1024;
/// Queries answered in a row before others have their turn.
const BATCH: usize = 32;

/// Accepts until `handed_over`, whoever has how many connections (`Core::streams`); ends when the last connection then has.
pub(super) async fn serve(core: &Arc<Core>, listener: TcpListener, handed_over: impl Future<Output = ()>) {
    tokio::pin!(handed_over);
    let client = Client::default();
    let mut connections = JoinSet::new();
    let mut crowd = Crowd::default();
    loop {
        let accepted = tokio::select! {
            biased;
            () = &mut handed_over => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, from)) => {
                let place = core.streams.take(client.party(from));
                let is_crowded = place.is_in_anothers();
                let (core, client) = (core.clone(), client.clone());
                connections.spawn(async move { serve_connection(&core, &client, stream, from, &place).await });
                if is_crowded && crowd.is_enough() {
                    tokio::task::yield_now().await;
                }
            }
            Err(error) => pause_after(&error).await,
        }
        while let Some(ended) = connections.try_join_next() {
            log_panic(ended);
        }
    }
    drop(listener);
    while let Some(ended) = connections.join_next().await {
        log_panic(ended);
    }
}

/// Serves one connection to its end: the client's, the idle time's, that of a message that is too long, or that of its place.
pub(super) async fn serve_connection(
    core: &Core,
    client: &Client,
    mut stream: TcpStream,
    from: SocketAddr,
    place: &Place<Party>,
) {
    let served = tokio::select! {
        served = answer(core, client, &mut stream, from, place) => served,
        () = place.told_to_leave() => {
            socket::reset_on_close(&stream);
            Err(io::Error::other("silent for longest of too many connections"))
        }
    };
    if let Err(error) = served {
        tracing::debug!(client = %from, %error, "DNS connection");
    }
}

async fn answer(
    core: &Core,
    client: &Client,
    stream: &mut TcpStream,
    from: SocketAddr,
    place: &Place<Party>,
) -> io::Result<()> {
    // Answers are whole when they are written.
    stream.set_nodelay(true)?;
    let (mut reader, mut writer) = stream.split();
    let mut inbox = BytesMut::with_capacity(READ_BYTES);
    let mut outbox = BytesMut::new();
    let mut pending = FuturesUnordered::new();
    let mut may_send_more = true;
    let mut idle = std::pin::pin!(tokio::time::sleep(IDLE));
    loop {
        let mut n_taken = 0;
        while n_taken < BATCH && pending.len() < MAX_PENDING && outbox.len() < MAX_UNSENT_BYTES {
            let Some(message) = take_message(&mut inbox)? else {
                break;
            };
            n_taken += 1;
            match core.handle(client, &message, Transport::Tcp, from) {
                Handled::Nothing => {}
                Handled::Reply(reply) => put_message(&mut outbox, &reply),
                Handled::Pending(query) => pending.push(core.finish(query)),
            }
        }
        if n_taken > 0 {
            idle.as_mut().reset(Instant::now() + IDLE);
        }
        if n_taken == BATCH {
            tokio::task::yield_now().await;
        }
        if !may_send_more && n_taken < BATCH && pending.is_empty() && outbox.is_empty() {
            return Ok(());
        }
        let has_room = inbox.len() < 2 + MAX_QUERY_BYTES;
        inbox.reserve(READ_BYTES);
        tokio::select! {
            read = reader.read_buf(&mut inbox), if may_send_more && has_room => {
                // Who closes only the sending half still reads the answers.
                may_send_more = read? > 0;
                place.moved();
            }
            Some(reply) = pending.next(), if outbox.len() < MAX_UNSENT_BYTES => {
                if let Some(reply) = reply {
                    put_message(&mut outbox, &reply);
                }
            }
            written = writer.write_buf(&mut outbox), if !outbox.is_empty() => {
                written?;
                place.moved();
                if outbox.is_empty() {
                    idle.as_mut().reset(Instant::now() + IDLE);
                }
            }
            () = &mut idle => return Ok(()),
            // Whole queries that wait for their turn.
            () = std::future::ready(()), if n_taken == BATCH => {}
        }
    }
}

/// The next whole message. Errors: it is longer than any query.
fn take_message(inbox: &mut BytesMut) -> io::Result<Option<BytesMut>> {
    let Some(prefix) = inbox.first_chunk::<2>() else {
        return Ok(None);
    };
    let len = usize::from(u16::from_be_bytes(*prefix));
    if len > MAX_QUERY_BYTES {
        return Err(io::Error::from(io::ErrorKind::InvalidData));
    }
    if inbox.len() < 2 + len {
        return Ok(None);
    }
    inbox.advance(2);
    Ok(Some(inbox.split_to(len)))
}

fn put_message(outbox: &mut BytesMut, message: &[u8]) {
    // No message is longer: ours are bounded when they are made, upstream's by the prefix they came with.
    let len = u16::try_from(message.len()).unwrap_or(u16::MAX);
    outbox.put_u16(len);
    outbox.put_slice(&message[..usize::from(len)]);
}
