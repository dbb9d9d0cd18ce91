//! A client that waits for its turn, watched without being read: what its end or reset means for the place that it has in a
//! queue. Not here: the queues (`routing::Gate`), and what is waited for (`balancer`, `upstream`).

use std::pin::pin;
use std::time::Duration;

use super::crowd::Party;
use super::wire::{News, Watched};
use crate::routing::{CloseReason, Gate, GatePlace};

/// How long a client is waited with.
///
/// A reset ends the wait. An end may be half a close: who has asked for something whole can still be answered, and keeps
/// the place until the queue is full. Who has not, never will, and goes at once.
pub(super) struct Patience<'a> {
    client: Watched<'a>,
    /// Whose places the client waits in: as `Gate::enter` has it.
    party: Option<u64>,
    /// Whether all that the client has to send is here, now that it has ended.
    is_whole: &'a (dyn Fn() -> bool + Sync),
    has_ended: bool,
}

/// Waits for `what` within `limit`; zero: for as long as it takes. `None`: it takes longer.
pub(super) async fn within<T>(limit: Duration, what: impl Future<Output = T>) -> Option<T> {
    match limit.is_zero() {
        true => Some(what.await),
        false => tokio::time::timeout(limit, what).await.ok(),
    }
}

impl<'a> Patience<'a> {
    pub(super) fn new(client: Watched<'a>, party: Party, is_whole: &'a (dyn Fn() -> bool + Sync)) -> Patience<'a> {
        Patience {
            client,
            party: party.number(),
            is_whole,
            has_ended: false,
        }
    }

    /// A place in the queue of `gate`, where `limit` may wait. `None`: there is none for this client.
    pub(super) fn enter<'g>(&self, gate: &'g Gate, limit: u32) -> Option<GatePlace<'g>> {
        gate.enter(limit, self.party)
    }

    /// Waits in `place` for `what`. Errors: the reason to close the client's connection with.
    pub(super) async fn wait<T>(
        &mut self,
        place: &GatePlace<'_>,
        what: impl Future<Output = T>,
    ) -> Result<T, CloseReason> {
        let mut what = pin!(what);
        loop {
            if self.has_ended {
                place.yields();
            }
            tokio::select! {
                biased;
                result = &mut what => return Ok(result),
                () = place.lost() => return Err(CloseReason::Limit),
                news = self.client.news(!self.has_ended) => match news {
                    News::Gone => return Err(CloseReason::ClientRst),
                    News::Ended if !(self.is_whole)() => return Err(CloseReason::ClientAbort),
                    News::Ended => self.has_ended = true,
                }
            }
        }
    }
}
