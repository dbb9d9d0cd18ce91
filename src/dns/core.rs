//! What answers a client's message, whatever it came by: from the table where that is known, from upstream where it is not.
//! What is ours is answered at once, so that it never waits for upstream. Not here: sockets (`server`, `udp`, `tcp`).

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hickory_proto::op::ResponseCode;

use super::forward::Forwarder;
use super::inside::View;
use super::reverse::ReverseIndex;
use super::stats::{DnsStats, Rcode, Source};
use super::wire::{self, Request, Response, Transport};
use super::zone::Zone;
use crate::places::{Place, Places};
use crate::routing::{RoutingTable, TableHandle};

/// Who asks on a socket.
#[derive(Debug, Clone, Default)]
pub struct Client {
    /// One task among others; `None`: each address that asks is by itself.
    pub(super) task: Option<u64>,
    /// What it sees, if it is a task; the table's services otherwise.
    pub(super) view: Option<View>,
    /// Who knows other names; `None`: whom everybody asks.
    pub(super) forwarder: Option<Arc<Forwarder>>,
    /// Other names are nobody's.
    pub(super) is_internal: bool,
}

/// Whose a place is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Party {
    Address(IpAddr),
    Task(u64),
}

impl Client {
    /// Whose the places are that a query from there takes.
    pub(super) fn party(&self, from: SocketAddr) -> Party {
        match self.task {
            Some(task) => Party::Task(task),
            None => Party::Address(from.ip().to_canonical()),
        }
    }
}

/// What answers, behind the sockets.
#[derive(Debug)]
pub(super) struct Core {
    pub(super) table: Arc<TableHandle>,
    pub(super) reverse: Mutex<ReverseIndex>,
    /// The table that the reverse index shows. std mutex: held for moments.
    pub(super) indexed: Mutex<Arc<RoutingTable>>,
    pub(super) forwarder: Arc<Forwarder>,
    pub(super) upstream_timeout: Duration,
    pub(super) stats: Arc<DnsStats>,
    pub(super) are_vips_off: Arc<AtomicBool>,
    /// For connections of all clients.
    pub(super) streams: Arc<Places<Party>>,
    /// For queries of all clients that wait for upstream.
    pub(super) waiting: Arc<Places<Party>>,
    /// So many tasks have been clients.
    pub(super) n_tasks: AtomicU64,
}

/// What became of a client's message.
pub(super) enum Handled {
    Nothing,
    Reply(Vec<u8>),
    /// `Core::finish` has the answer, later.
    Pending(Pending),
}

/// A query that upstream is to answer.
pub(super) struct Pending {
    request: Box<Request>,
    query: Vec<u8>,
    slot: Slot,
    forwarder: Arc<Forwarder>,
    arrived: Instant,
}

/// The place of a query that waits for upstream, counted while it is there.
struct Slot {
    place: Place<Party>,
    stats: Arc<DnsStats>,
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.stats.forward_ended();
    }
}

impl Core {
    /// Never waits.
    pub(super) fn handle(&self, client: &Client, message: &[u8], transport: Transport, from: SocketAddr) -> Handled {
        let arrived = Instant::now();
        let response = {
            let table = self.table.peek();
            let zone = Zone {
                table: &table,
                reverse: &self.lock_reverse(),
                has_vips: !self.are_vips_off.load(Ordering::Relaxed),
            };
            wire::respond(
                message,
                transport,
                &zone,
                client.view.as_ref(),
                arrived,
                &mut fastrand::Rng::new(),
            )
        };
        match response {
            Response::Ignore => Handled::Nothing,
            Response::Reply { bytes, code } => self.reply(bytes, code, Source::Local, arrived),
            Response::Forward(request) if client.is_internal => self.refuse(&request, ResponseCode::NXDomain, arrived),
            Response::Forward(request) => {
                let forwarder = client.forwarder.as_ref().unwrap_or(&self.forwarder);
                if forwarder.is_own_end(from) {
                    return self.refuse(&request, ResponseCode::Refused, arrived);
                }
                self.stats.forward_began();
                Handled::Pending(Pending {
                    request,
                    query: message.to_vec(),
                    slot: Slot {
                        place: self.waiting.take(client.party(from)),
                        stats: self.stats.clone(),
                    },
                    forwarder: forwarder.clone(),
                    arrived,
                })
            }
        }
    }

    /// What upstream says, or that it says nothing. Time: bounded by the upstream timeouts.
    pub(super) async fn finish(&self, pending: Pending) -> Option<Vec<u8>> {
        let Pending {
            request,
            query,
            slot,
            forwarder,
            arrived,
        } = pending;
        let answered = tokio::select! {
            answered = forwarder.ask(query, &request) => answered.ok_or(ResponseCode::ServFail),
            () = slot.place.told_to_leave() => Err(ResponseCode::Refused),
        };
        drop(slot);
        let handled = match answered {
            Ok((answer, code)) => self.reply(request.pass_on(answer), code, Source::Upstream, arrived),
            Err(code) => self.refuse(&request, code, arrived),
        };
        match handled {
            Handled::Reply(bytes) => Some(bytes),
            Handled::Nothing | Handled::Pending(_) => None,
        }
    }

    fn refuse(&self, request: &Request, code: ResponseCode, arrived: Instant) -> Handled {
        match request.fail(code) {
            Response::Reply { bytes, code } => self.reply(bytes, code, Source::Upstream, arrived),
            Response::Ignore | Response::Forward(_) => Handled::Nothing,
        }
    }

    fn reply(&self, bytes: Vec<u8>, code: u16, source: Source, arrived: Instant) -> Handled {
        self.stats.answered(Rcode::from(code), source, arrived.elapsed());
        Handled::Reply(bytes)
    }

    /// std mutex: nothing awaits under it, and only this thread takes it.
    fn lock_reverse(&self) -> MutexGuard<'_, ReverseIndex> {
        self.reverse.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Keeps the reverse index up with the tables. Never ends.
pub(super) async fn follow_tables(core: &Core) {
    let lock_indexed = || core.indexed.lock().unwrap_or_else(PoisonError::into_inner);
    let mut indexed = lock_indexed().clone();
    let mut revision = core.table.subscribe();
    loop {
        revision.mark_unchanged();
        let next = core.table.load();
        let mut diffs = RoutingTable::diff(&indexed, &next).peekable();
        while diffs.peek().is_some() {
            {
                let mut reverse = core.lock_reverse();
                diffs.by_ref().take(DIFF_BATCH).for_each(|diff| reverse.apply(&diff));
            }
            tokio::task::yield_now().await;
        }
        drop(diffs);
        indexed = next;
        lock_indexed().clone_from(&indexed);
        if revision.changed().await.is_err() {
            // The handle is ours as well, so its sender cannot be gone.
            std::future::pending::<()>().await;
        }
    }
}

pub(super) async fn pause_after(error: &io::Error) {
    tracing::warn!(%error, "DNS socket");
    tokio::time::sleep(ERROR_PAUSE).await;
}

pub(super) fn log_panic(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended {
        tracing::error!(%error, "a DNS task did not end by itself");
    }
}

/// Differences between tables taken into the reverse index in a row; each costs microseconds.
const DIFF_BATCH: usize = 64;
const ERROR_PAUSE: Duration = Duration::from_millis(20);
/// Connections at once, of all clients.
pub(super) const MAX_STREAMS: usize = 256;
/// Queries that may wait for upstream at once, of all clients.
pub(super) const MAX_WAITING: usize = 1024;
