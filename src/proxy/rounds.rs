//! Connections of tcp mode that come round: an endpoint may be a published port of this very program. Chains of services are
//! well, but one that leads back into itself would take every descriptor. Connections that we make to ports of our own are
//! remembered by the address that they come from, with how often they came round, and found again where they are accepted.
//! In http mode Via tells (`http`).

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::net::TcpStream;

use super::wire::{Leg, Wire};
use crate::routing::{CloseReason, TableHandle};

/// Those open now. The kernel gives no address twice meanwhile, so that all data planes of a process may share them.
/// std mutex: touched only for connections to ports of our own, and nothing awaits under it.
static OPEN: Mutex<BTreeMap<SocketAddr, u8>> = Mutex::new(BTreeMap::new());
/// How many there are, so that others need not take the lock.
static N_OPEN: AtomicUsize = AtomicUsize::new(0);

/// A connection to a port of our own, remembered while this lives.
#[derive(Debug)]
pub(super) struct Round(SocketAddr);

/// How often `client` came round by now. Errors: once too often.
pub(super) fn of_client(client: &TcpStream) -> Result<u8, CloseReason> {
    if N_OPEN.load(Ordering::Relaxed) == 0 {
        return Ok(0);
    }
    let peer = client.peer_addr().ok().map(canonical);
    match peer.and_then(|peer| lock().get(&peer).copied()) {
        Some(ROUNDS_MAX..) => Err(CloseReason::Loop),
        n_rounds => Ok(n_rounds.unwrap_or(0)),
    }
}

/// Remembers `upstream`, made for a client that came round `n_rounds` times, if it leads to a port of our own on this
/// machine. `port`: where it leads.
pub(super) fn remember(table: &TableHandle, upstream: &Leg, port: u16, n_rounds: u8) -> Option<Box<Round>> {
    if !table.peek().listens_on(port) {
        return None;
    }
    let stream = upstream.tcp()?;
    let (from, to) = (
        canonical(stream.local_addr().ok()?),
        canonical(stream.peer_addr().ok()?),
    );
    if from.ip() != to.ip() && !to.ip().is_loopback() {
        return None;
    }
    if lock().insert(from, n_rounds + 1).is_none() {
        N_OPEN.fetch_add(1, Ordering::Relaxed);
    }
    Some(Box::new(Round(from)))
}

impl Drop for Round {
    fn drop(&mut self) {
        if lock().remove(&self.0).is_some() {
            N_OPEN.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

fn lock() -> MutexGuard<'static, BTreeMap<SocketAddr, u8>> {
    OPEN.lock().unwrap_or_else(PoisonError::into_inner)
}

fn canonical(addr: SocketAddr) -> SocketAddr {
    SocketAddr::new(addr.ip().to_canonical(), addr.port())
}

/// Chains of services that reach one another by their published ports are shorter.
const ROUNDS_MAX: u8 = 8;
