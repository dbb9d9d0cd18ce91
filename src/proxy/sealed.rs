//! A client's connection that TLS ends at: what it says is opened, what it is told is sealed. Between the socket and the engine
//! that reads it nothing is held while nothing passes. Not here: certificates and policies (`tls`).

use std::future::poll_fn;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};

use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{ConnectionState, EncodeError, EncryptError, UnbufferedStatus};
use rustls::{HandshakeKind, ServerConfig};
use tokio::net::TcpStream;

use super::heavy;
use super::wire::{Client, Watched, Wire};
use crate::sys::socket;

thread_local! {
    /// Sealed bytes of the moment, of whichever connection. Nothing in it means anything from one call to the next.
    static SCRATCH: std::cell::RefCell<Box<[u8]>> = std::cell::RefCell::new(vec![0; SCRATCH_BYTES].into_boxed_slice());
}

/// Bytes sealed at most in one go, and what that takes with its records.
const SEAL_AT_MOST: usize = 4 * RECORD_BYTES;
const RECORD_BYTES: usize = 16 * 1024;
const RECORD_OVERHEAD: usize = 256;
const SCRATCH_BYTES: usize = SEAL_AT_MOST + 8 * RECORD_OVERHEAD;

/// A client's stream inside TLS.
pub(super) struct Sealed {
    socket: TcpStream,
    /// std mutex: one task has it, and nothing awaits under it.
    session: Box<Mutex<Session>>,
    is_to_reset: AtomicBool,
}

/// Why there is no stream.
#[derive(Debug)]
pub(super) enum NoHandshake {
    /// The client went away.
    Gone,
    /// It speaks HTTP without TLS.
    Plain,
    /// It was told why, where it speaks TLS at all.
    Refused(rustls::Error),
}

struct Session {
    tls: UnbufferedServerConnection,
    /// Of a record that is not whole yet, sealed.
    received: Vec<u8>,
    /// Opened, and not taken yet.
    opened: Rest,
    /// Sealed, and not sent yet.
    to_send: Rest,
    /// No more comes.
    has_ended: bool,
    /// What came was no TLS: nothing is opened or sealed any more.
    has_failed: bool,
    has_said_goodbye: bool,
}

#[derive(Default)]
struct Rest {
    bytes: Vec<u8>,
    start: usize,
}

impl Rest {
    fn is_empty(&self) -> bool {
        self.start == self.bytes.len()
    }

    fn rest(&self) -> &[u8] {
        &self.bytes[self.start..]
    }

    fn consume(&mut self, n: usize) {
        self.start += n;
        if self.is_empty() {
            *self = Rest::default();
        }
    }

    fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }
}

impl Sealed {
    /// Waits for the client to begin and agrees with it. The costly part takes turns with other connections of the worker.
    pub(super) async fn accept(socket: &TcpStream, config: Arc<ServerConfig>) -> Result<Agreed, NoHandshake> {
        let tls = UnbufferedServerConnection::new(config).map_err(NoHandshake::Refused)?;
        let mut session = Session::new(tls);
        // Flights that we have answered, and turns that were taken.
        let (mut n_answered, mut n_turns) = (0_u32, 0_u32);
        let mut n_judged = 0;
        while session.tls.is_handshaking() {
            let read = poll_fn(|cx| session.poll_receive(cx, socket, HANDSHAKE_READ));
            if !matches!(read.await, Ok(1..)) {
                return Err(NoHandshake::Gone);
            }
            if session.is_plain_http() {
                return Err(NoHandshake::Plain);
            }
            if session.received.len() > HANDSHAKE_MOST || n_turns > TURNS_MOST {
                let error = rustls::Error::General("a handshake without end".to_owned());
                return Err(NoHandshake::Refused(error));
            }
            if whole_records(&session.received) <= n_judged {
                continue;
            }
            // The signature is in our first answer, or the second where we asked for another key first. What follows is cheap, and
            // must not wait behind others' beginnings: who has cost us that is let in.
            let asked_again = session.tls.handshake_kind() == Some(HandshakeKind::FullWithHelloRetryRequest);
            if n_answered <= u32::from(asked_again) {
                n_turns += 1;
                heavy::turn(heavy::Whose::Client).await;
            }
            let mut received = std::mem::take(&mut session.received);
            let opened = session.open(&mut received, &mut []);
            n_judged = whole_records(&session.received);
            n_answered += u32::from(!session.to_send.is_empty());
            let sent = poll_fn(|cx| session.poll_flush(cx, socket)).await;
            if let Err(error) = opened {
                return Err(NoHandshake::Refused(error));
            }
            if sent.is_err() || (session.has_ended && session.tls.is_handshaking()) {
                return Err(NoHandshake::Gone);
            }
        }
        Ok(Agreed(session))
    }

    /// Whether the client and we have agreed on HTTP/2.
    pub(super) fn speaks_http2(&self) -> bool {
        self.lock().tls.alpn_protocol() == Some(b"h2")
    }

    /// What it is over.
    pub(super) fn socket(&self) -> &TcpStream {
        &self.socket
    }

    fn lock(&self) -> MutexGuard<'_, Session> {
        self.session.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a client and we have agreed on.
pub(super) struct Agreed(Session);

impl Agreed {
    /// Whether the client came back, by a ticket.
    pub(super) fn is_resumed(&self) -> bool {
        self.0.tls.handshake_kind() == Some(HandshakeKind::Resumed)
    }

    /// Whether that protocol was agreed on.
    pub(super) fn is_of(&self, protocol: &[u8]) -> bool {
        self.0.tls.alpn_protocol() == Some(protocol)
    }

    /// `socket`: the one that it was agreed on.
    pub(super) fn over(self, socket: TcpStream) -> Sealed {
        Sealed {
            socket,
            session: Box::new(Mutex::new(self.0)),
            is_to_reset: AtomicBool::new(false),
        }
    }
}

impl Session {
    fn new(tls: UnbufferedServerConnection) -> Session {
        Session {
            tls,
            received: Vec::new(),
            opened: Rest::default(),
            to_send: Rest::default(),
            has_ended: false,
            has_failed: false,
            has_said_goodbye: false,
        }
    }

    /// Reads more of what is sealed; 0 at the end.
    fn poll_receive(&mut self, cx: &mut Context<'_>, socket: &TcpStream, n: usize) -> Poll<io::Result<usize>> {
        with_scratch(|scratch| {
            let n = ready!(Wire::poll_read(socket, cx, &mut scratch[..n]))?;
            self.received.extend_from_slice(&scratch[..n]);
            Poll::Ready(Ok(n))
        })
    }

    /// Whether what has come first is no TLS, and looks like a request.
    fn is_plain_http(&self) -> bool {
        self.received.first().is_some_and(u8::is_ascii_uppercase)
    }

    /// Takes sealed bytes and gives what is in them: to `buffer`, and what has no room there is kept. Returns how much went to
    /// `buffer`. Bytes of a record that is not whole are kept as well.
    fn open(&mut self, sealed: &mut [u8], buffer: &mut [u8]) -> Result<usize, rustls::Error> {
        let (mut at, mut n_opened) = (0, 0);
        loop {
            let UnbufferedStatus { mut discard, state } = self.tls.process_tls_records(&mut sealed[at..]);
            match state {
                Ok(ConnectionState::ReadTraffic(mut traffic)) => {
                    while let Some(record) = traffic.next_record() {
                        let record = record?;
                        discard += record.discard;
                        let room = &mut buffer[n_opened..];
                        let n = room.len().min(record.payload.len());
                        let (now, later) = record.payload.split_at(n);
                        room[..n].copy_from_slice(now);
                        n_opened += n;
                        self.opened.push(later);
                    }
                }
                Ok(ConnectionState::EncodeTlsData(mut data)) => encode(&mut data, &mut self.to_send.bytes),
                Ok(ConnectionState::TransmitTlsData(data)) => data.done(),
                Ok(ConnectionState::PeerClosed) => self.has_ended = true,
                Ok(ConnectionState::WriteTraffic(_) | ConnectionState::BlockedHandshake | ConnectionState::Closed) => {
                    at += discard;
                    self.received = sealed[at..].to_vec();
                    return Ok(n_opened);
                }
                // Data before the handshake's end is not offered.
                Ok(_) => return Err(rustls::Error::General("unexpected early data".to_owned())),
                Err(error) => {
                    self.queue_alert();
                    self.has_failed = true;
                    self.received = Vec::new();
                    // What was opened before is told before.
                    return match n_opened {
                        0 => Err(error),
                        n => Ok(n),
                    };
                }
            }
            at += discard;
        }
    }

    /// After an error: what the client is told of it.
    fn queue_alert(&mut self) {
        // Only while there is something to say: rustls would go on with what it has seen of a message, which is not here any more.
        while self.tls.wants_write() {
            match self.tls.process_tls_records(&mut []).state {
                Ok(ConnectionState::EncodeTlsData(mut data)) => encode(&mut data, &mut self.to_send.bytes),
                _ => break,
            }
        }
        self.has_said_goodbye = true;
    }

    /// Seals by `seal` into `out`, after whatever TLS itself has to say. Returns how many bytes of `out` are to be sent.
    fn seal(
        &mut self,
        out: &mut [u8],
        seal: impl FnOnce(
            &mut rustls::unbuffered::WriteTraffic<'_, rustls::server::ServerConnectionData>,
            &mut [u8],
        ) -> Result<usize, EncryptError>,
    ) -> io::Result<usize> {
        if self.has_failed {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        // What is left of a message that is not whole: rustls counts on it.
        let mut received = std::mem::take(&mut self.received);
        let sealed = loop {
            match self.tls.process_tls_records(&mut received).state {
                Ok(ConnectionState::WriteTraffic(mut traffic)) => {
                    break seal(&mut traffic, out).map_err(io::Error::other);
                }
                Ok(ConnectionState::EncodeTlsData(mut data)) => encode(&mut data, &mut self.to_send.bytes),
                Ok(ConnectionState::TransmitTlsData(data)) => data.done(),
                Ok(ConnectionState::PeerClosed) => self.has_ended = true,
                Ok(_) => break Err(io::ErrorKind::BrokenPipe.into()),
                Err(error) => {
                    self.has_failed = true;
                    break Err(io::Error::new(io::ErrorKind::InvalidData, error));
                }
            }
        };
        self.received = received;
        sealed
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>, socket: &TcpStream) -> Poll<io::Result<()>> {
        while !self.to_send.is_empty() {
            let n = ready!(Wire::poll_write(socket, cx, self.to_send.rest()))?;
            self.to_send.consume(n);
        }
        Poll::Ready(Ok(()))
    }

    /// Sends what was sealed, or keeps what the socket does not take.
    fn send(&mut self, cx: &mut Context<'_>, socket: &TcpStream, mut sealed: &[u8]) -> io::Result<()> {
        if self.to_send.is_empty() {
            while !sealed.is_empty() {
                match Wire::poll_write(socket, cx, sealed) {
                    Poll::Ready(n) => sealed = &sealed[n?..],
                    Poll::Pending => break,
                }
            }
        }
        self.to_send.push(sealed);
        Ok(())
    }

    fn say_goodbye(&mut self, cx: &mut Context<'_>, socket: &TcpStream) -> io::Result<()> {
        if std::mem::replace(&mut self.has_said_goodbye, true) {
            return Ok(());
        }
        let mut goodbye = [0; RECORD_OVERHEAD];
        let n = self.seal(&mut goodbye, |traffic, out| traffic.queue_close_notify(out))?;
        self.send(cx, socket, &goodbye[..n])
    }
}

/// How many of the bytes are whole records. One that is longer than any may be counts as whole, and will be refused.
fn whole_records(bytes: &[u8]) -> usize {
    let mut at = 0;
    while let Some([_, _, _, high, low]) = bytes.get(at..at + RECORD_HEAD) {
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        let end = at + RECORD_HEAD + length;
        if end > bytes.len() && length <= RECORD_BYTES + RECORD_EXPANSION {
            break;
        }
        at = end;
    }
    at
}

/// Appends what TLS says by itself.
fn encode(data: &mut rustls::unbuffered::EncodeTlsData<'_, rustls::server::ServerConnectionData>, out: &mut Vec<u8>) {
    let len = out.len();
    let mut size = RECORD_OVERHEAD;
    loop {
        out.resize(len + size, 0);
        match data.encode(&mut out[len..]) {
            Ok(n) => return out.truncate(len + n),
            Err(EncodeError::InsufficientSize(error)) => size = error.required_size,
            Err(EncodeError::AlreadyEncoded) => return out.truncate(len),
        }
    }
}

fn with_scratch<T>(use_it: impl FnOnce(&mut [u8]) -> T) -> T {
    SCRATCH.with(|scratch| use_it(&mut scratch.borrow_mut()))
}

impl Client for Sealed {
    fn watched(&self) -> Watched<'_> {
        Watched::Socket(&self.socket)
    }
}

impl Wire for Sealed {
    /// An end without TLS's own goodbye counts as an end: half of the world's clients go without a word.
    fn poll_read(&self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        let session = &mut *self.lock();
        if !session.opened.is_empty() {
            let n = buffer.len().min(session.opened.rest().len());
            buffer[..n].copy_from_slice(&session.opened.rest()[..n]);
            session.opened.consume(n);
            return Poll::Ready(Ok(n));
        }
        with_scratch(|scratch| {
            loop {
                if session.has_failed {
                    // It is told why, if it can be told at once.
                    let _ = session.poll_flush(cx, &self.socket)?;
                    return Poll::Ready(Err(io::ErrorKind::InvalidData.into()));
                }
                if session.has_ended {
                    return Poll::Ready(Ok(0));
                }
                let held = session.received.len();
                // What is in a record is shorter than the record: little is opened that has no room, but for a short buffer.
                let end = (held + buffer.len().max(RECORD_BYTES) + RECORD_OVERHEAD).min(scratch.len());
                let n = ready!(Wire::poll_read(&self.socket, cx, &mut scratch[held..end]))?;
                if n == 0 {
                    session.has_ended = true;
                    continue;
                }
                scratch[..held].copy_from_slice(&session.received);
                if let Ok(n @ 1..) = session.open(&mut scratch[..held + n], buffer) {
                    return Poll::Ready(Ok(n));
                }
            }
        })
    }

    fn poll_write(&self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let session = &mut *self.lock();
        ready!(session.poll_flush(cx, &self.socket))?;
        let bytes = &bytes[..bytes.len().min(SEAL_AT_MOST)];
        with_scratch(|scratch| {
            let n = session.seal(scratch, |traffic, out| traffic.encrypt(bytes, out))?;
            session.send(cx, &self.socket, &scratch[..n])?;
            Poll::Ready(Ok(bytes.len()))
        })
    }

    fn poll_flush(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.lock().poll_flush(cx, &self.socket)
    }

    fn poll_end(&self, cx: &mut Context<'_>, is_last: bool) -> Poll<()> {
        let session = &mut *self.lock();
        // An error means that the client is gone, which the other direction will notice.
        if session.say_goodbye(cx, &self.socket).is_err() {
            return Poll::Ready(());
        }
        let _ = ready!(session.poll_flush(cx, &self.socket));
        self.socket.poll_end(cx, is_last)
    }

    fn tcp(&self) -> Option<&TcpStream> {
        None
    }

    fn take_error(&self) -> io::Result<Option<io::Error>> {
        self.socket.take_error()
    }

    fn reset_on_close(&self) {
        self.is_to_reset.store(true, Ordering::Relaxed);
        socket::reset_on_close(&self.socket);
    }

    fn set_liveness(&self) {
        super::core::set_liveness(&self.socket);
    }
}

impl Drop for Sealed {
    /// As closing a socket does: the client learns that no more will come, unless it is to be reset.
    fn drop(&mut self) {
        if !self.is_to_reset.load(Ordering::Relaxed) {
            let cx = &mut Context::from_waker(Waker::noop());
            // An error means that the client is gone.
            let _ = self.lock().say_goodbye(cx, &self.socket);
        }
    }
}

const RECORD_HEAD: usize = 5;
/// RFC 5246 6.2.3: more than any cipher of today adds.
const RECORD_EXPANSION: usize = 2048;
/// Of one connection: no client needs more than three.
const TURNS_MOST: u32 = 8;
const HANDSHAKE_READ: usize = 4 * 1024;
/// Of a message that is not whole. Fits the scratch buffer, with a record more.
const HANDSHAKE_MOST: usize = 32 * 1024;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rcgen::{CertificateParams, KeyPair};
    use rustls::pki_types::PrivateKeyDer;

    use super::*;

    fn session() -> Session {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec!["a.test".to_owned()]).unwrap();
        let certificate = params.self_signed(&key).unwrap();
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key)
            .unwrap();
        Session::new(UnbufferedServerConnection::new(Arc::new(config)).unwrap())
    }

    /// The flight with which a client begins.
    fn hello() -> Vec<u8> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(rustls::RootCertStore::empty())
            .with_no_client_auth();
        let name = "a.test".try_into().unwrap();
        let mut client = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
        let mut bytes = Vec::new();
        client.write_tls(&mut bytes).unwrap();
        bytes
    }

    fn record() -> impl Strategy<Value = Vec<u8>> {
        let body = prop::collection::vec(prop_oneof![Just(1_u8), Just(24), any::<u8>()], 0..6);
        (prop::sample::select(&[20_u8, 21, 22, 23, 24, 99][..]), body).prop_map(|(kind, body)| {
            let length = (body.len() as u16).to_be_bytes();
            [&[kind, 3, 3], &length[..], &body].concat()
        })
    }

    proptest! {
        /// Whatever comes, in whatever pieces, and whatever we say in between: no panic, and nothing without bound.
        #[test]
        fn whatever_comes_is_opened_or_refused(
            cut in 0..300_usize,
            records in prop::collection::vec(record(), 0..5),
            pieces in prop::collection::vec(1..40_usize, 1..20),
        ) {
            let mut session = session();
            let hello = hello();
            let mut bytes = hello[..cut.min(hello.len())].to_vec();
            records.iter().for_each(|record| bytes.extend_from_slice(record));
            let mut rest = &bytes[..];
            for piece in pieces.iter().cycle() {
                if rest.is_empty() || session.has_failed {
                    break;
                }
                let (now, later) = rest.split_at((*piece).min(rest.len()));
                rest = later;
                session.received.extend_from_slice(now);
                prop_assert!(whole_records(&session.received) >= session.received.len().saturating_sub(RECORD_BYTES + RECORD_EXPANSION + RECORD_HEAD));
                let mut received = std::mem::take(&mut session.received);
                let mut buffer = [0; 8];
                let _ = session.open(&mut received, &mut buffer);
                let _ = session.seal(&mut [0; RECORD_OVERHEAD], |traffic, out| traffic.encrypt(b"x", out));
            }
            let _ = session.seal(&mut [0; RECORD_OVERHEAD], |traffic, out| traffic.queue_close_notify(out));
            prop_assert!(session.received.len() <= bytes.len() && session.to_send.bytes.len() < 8 * 1024);
        }
    }
}
