//! What became of each port that this node is to listen on: written by the listener, read by `admin`.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::vips::VipState;
use crate::routing::Listen;

/// Every port that the table names, with its state here.
#[derive(Debug, Default)]
pub struct Ports {
    /// std mutex: touched when listeners change and when somebody looks, never on the way of a byte.
    by_listen: Mutex<BTreeMap<Listen, PortState>>,
    /// std mutex: as the other.
    vips: Mutex<VipState>,
    /// VIPs lead nowhere here: names had better stand for endpoints.
    are_vips_off: Arc<AtomicBool>,
    /// Sockets of all kinds that an instance before this one handed over, and that are in use here.
    pub adopted_total: AtomicU64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PortState {
    Listening,
    /// It could not be bound and is tried again; `error` says why in words, `attempts` how often by now.
    Failed {
        error: String,
        attempts: u64,
    },
}

impl Ports {
    /// `are_vips_off`: set when VIPs turn out to lead nowhere.
    pub fn new(are_vips_off: Arc<AtomicBool>) -> Ports {
        Ports {
            are_vips_off,
            ..Ports::default()
        }
    }

    pub fn set(&self, listen: Listen, state: PortState) {
        self.lock().insert(listen, state);
    }

    pub fn remove(&self, listen: &Listen) {
        self.lock().remove(listen);
    }

    /// `None`: the table names it and nobody has tried yet.
    pub fn get(&self, listen: &Listen) -> Option<PortState> {
        self.lock().get(listen).cloned()
    }

    pub fn snapshot(&self) -> BTreeMap<Listen, PortState> {
        self.lock().clone()
    }

    pub(super) fn set_vips(&self, state: VipState) {
        self.are_vips_off
            .store(matches!(state, VipState::Off(_)), Ordering::Relaxed);
        *self.vips.lock().unwrap_or_else(PoisonError::into_inner) = state;
    }

    /// How VIPs are answered.
    pub fn vips(&self) -> VipState {
        self.vips.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Those that could not be bound, each with why.
    pub fn failed(&self) -> Vec<(Listen, String)> {
        let failed = |(listen, state): (&Listen, &PortState)| match state {
            PortState::Failed { error, .. } => Some((*listen, error.clone())),
            PortState::Listening => None,
        };
        self.lock().iter().filter_map(failed).collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Listen, PortState>> {
        self.by_listen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
