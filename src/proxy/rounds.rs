//! Connections of tcp mode that come round: an endpoint may be a published port of this very program. Chains of services are
//! well, but one that leads back into itself would take every descriptor. Connections that we make to ports of our own are
//! remembered by the address that they come from, with how often they came round, and found again where they are accepted.
//! In http mode Via tells (`http`).

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock};

use tokio::net::TcpStream;

use super::wire::{Leg, Wire};
use crate::routing::{CloseReason, TableHandle};
use crate::sys::socket;

/// Those open now. The kernel gives no address twice meanwhile, so that all data planes of a process may share them.
/// std mutex: touched only for connections to ports of our own, and nothing awaits under it.
static OPEN: Mutex<BTreeMap<SocketAddr, u8>> = Mutex::new(BTreeMap::new());
/// How many there are or may be in a moment, so that others need not take the lock.
static N_OPEN: AtomicUsize = AtomicUsize::new(0);
/// Shared by those who connect, until what they made is in `OPEN`: another worker may have accepted it already.
static CONNECTING: RwLock<()> = RwLock::new(());

/// A connection to a port of our own, remembered while this lives.
#[derive(Debug)]
pub(super) struct Round {
    from: SocketAddr,
    _counted: Counted,
}

/// What a client's connections to endpoints are remembered with.
pub(super) struct Rounds<'a> {
    table: &'a TableHandle,
    /// How often the client came round by now.
    n: u8,
    /// std mutex: one at a time has it anyway.
    last: Mutex<Option<Box<Round>>>,
}

impl<'a> Rounds<'a> {
    /// Errors: it came round once too often.
    pub(super) fn of_client(client: &TcpStream, table: &'a TableHandle) -> Result<Rounds<'a>, CloseReason> {
        match n_rounds(client) {
            ROUNDS_MAX.. => Err(CloseReason::Loop),
            n => Ok(Rounds {
                table,
                n,
                last: Mutex::default(),
            }),
        }
    }

    /// As `socket::connect`. What leads to a port of our own on this machine is remembered, in place of the one before.
    pub(super) fn connect(&self, to: SocketAddr) -> io::Result<(std::net::TcpStream, bool)> {
        if !self.table.peek().listens_on(to.port()) {
            return socket::connect(to);
        }
        // Before it can be accepted.
        let counted = Counted::begin();
        let _connecting = CONNECTING.read().unwrap_or_else(PoisonError::into_inner);
        let made = socket::connect(to)?;
        let from = made.0.local_addr().map(canonical);
        if let Ok(from) = from
            && is_of_this_machine(from, to.ip().to_canonical())
        {
            lock().insert(from, self.n + 1);
            let round = Round {
                from,
                _counted: counted,
            };
            *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(Box::new(round));
        }
        Ok(made)
    }

    /// What remembers the connection that was accepted in the end, if it is remembered.
    pub(super) fn into_round_of(self, upstream: &Leg) -> Option<Box<Round>> {
        let last = self.last.into_inner().unwrap_or_else(PoisonError::into_inner)?;
        let from = upstream.tcp()?.local_addr().map(canonical);
        from.is_ok_and(|from| from == last.from).then_some(last)
    }
}

fn n_rounds(client: &TcpStream) -> u8 {
    if N_OPEN.load(Ordering::SeqCst) == 0 {
        return 0;
    }
    let Ok(peer) = client.peer_addr().map(canonical) else {
        return 0;
    };
    let known = || lock().get(&peer).copied();
    if let Some(n) = known() {
        return n;
    }
    let Ok(local) = client.local_addr() else { return 0 };
    if !is_of_this_machine(peer, local.ip().to_canonical()) {
        return 0;
    }
    // Whoever connects may not have had the time to remember it.
    drop(CONNECTING.write().unwrap_or_else(PoisonError::into_inner));
    known().unwrap_or(0)
}

fn is_of_this_machine(from: SocketAddr, to: IpAddr) -> bool {
    from.ip() == to || to.is_loopback()
}

/// Counted in `N_OPEN` until it is dropped.
#[derive(Debug)]
struct Counted;

impl Counted {
    fn begin() -> Counted {
        N_OPEN.fetch_add(1, Ordering::SeqCst);
        Counted
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        N_OPEN.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Drop for Round {
    fn drop(&mut self) {
        lock().remove(&self.from);
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
