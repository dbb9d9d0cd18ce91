//! The last ends of a service's connections, each with its reason: what a person asks for who wants to know why. Pure.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use super::endpoint_id::EndpointId;
use super::stats::CloseReason;

/// The end of one connection.
#[derive(Debug, Clone, Copy)]
pub struct Close {
    pub at: SystemTime,
    pub reason: CloseReason,
    /// `None`: whose it was is not told apart from others, as of loopback and trusted proxies.
    pub client: Option<IpAddr>,
    /// The one that it held when it ended.
    pub endpoint: Option<EndpointId>,
    /// From its beginning.
    pub after: Duration,
}

/// The last of them, oldest first.
#[derive(Debug, Default)]
pub struct LastCloses(Mutex<VecDeque<Close>>);

impl LastCloses {
    /// While another thread is at it, this one is left out: nobody waits for a list that is read by people.
    pub fn add(&self, close: Close) {
        if let Ok(mut kept) = self.0.try_lock() {
            if kept.len() == KEPT {
                kept.pop_front();
            }
            kept.push_back(close);
        }
    }

    pub fn snapshot(&self) -> Vec<Close> {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.iter().copied().collect()
    }
}

const KEPT: usize = 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_twenty_are_kept_in_their_order() {
        let closes = LastCloses::default();
        for n in 0..50 {
            closes.add(Close {
                at: SystemTime::now(),
                reason: CloseReason::ClientFin,
                client: None,
                endpoint: None,
                after: Duration::from_millis(n),
            });
        }
        let after: Vec<u128> = closes.snapshot().iter().map(|close| close.after.as_millis()).collect();
        assert_eq!(after, (30..50).collect::<Vec<u128>>());
    }
}
