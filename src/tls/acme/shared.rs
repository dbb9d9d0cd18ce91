//! What `Acme` is told and asked where several nodes show what one of them orders. Not here: what follows from it (`others`).

use std::collections::BTreeSet;
use std::sync::Arc;

use super::driver::Acme;
use super::kept::Certificate;
use super::others::List;
use crate::model::AcmeName;
use crate::tls::certificates::now;

impl Acme {
    /// From here on it orders nothing before it is its turn, and takes what other nodes have.
    pub fn share(&self) {
        self.state().others.get_or_insert_default();
    }

    /// Says who orders: its id, and what a person calls it. An order that is under way is gone through with.
    pub fn set_turn(&self, orderer: Option<(Arc<str>, Arc<str>)>, is_ours: bool) {
        let (orderer, name) = orderer.unzip();
        let mut state = self.state();
        let is_news = state.others.as_ref().is_some_and(|others| {
            (&others.orderer, &others.orderer_name, others.is_our_turn) != (&orderer, &name, is_ours)
        });
        if !is_news {
            return;
        }
        tracing::info!(
            node = name.as_deref().unwrap_or("nobody"),
            is_ours,
            "who orders certificates"
        );
        state.set_turn(orderer, name, is_ours);
        drop(state);
        self.wake();
    }

    /// What is wrong with the way to other nodes.
    pub fn set_faults_of_others(&self, faults: BTreeSet<String>) {
        let mut state = self.state();
        let Some(others) = state.others.as_mut().filter(|others| others.faults != faults) else {
            return;
        };
        let new: Vec<String> = faults.difference(&others.faults).cloned().collect();
        others.faults = faults;
        drop(state);
        new.iter().for_each(|fault| tracing::warn!("{fault}"));
    }

    /// What this node's own table wants, and what there is of it. `None`: it was not told yet.
    pub fn list(&self) -> Option<List> {
        let state = self.state();
        state.is_told.then(|| state.list())
    }

    /// What a node that may order has said; `None`: it is gone, or may order no more.
    pub fn hear(&self, node: &Arc<str>, list: Option<Arc<List>>) {
        let mut state = self.state();
        let Some(others) = state.others.as_mut() else { return };
        let is_news = match list {
            Some(list) => others.lists.insert(node.clone(), list.clone()) != Some(list),
            None => {
                let last = others.lists.remove(node);
                // Whoever orders next, by its turn or by a change of who manages, goes on from there.
                last.iter().for_each(|list| state.learn_of_gone(list, now()));
                last.is_some()
            }
        };
        drop(state);
        if is_news {
            self.wake();
        }
    }

    /// What is to be taken of that node: hosts, and whom they are from.
    pub fn lacks(&self, node: &str) -> Vec<(String, AcmeName)> {
        self.state().lacks(node)
    }

    /// The certificate of a host with its key, for a node that asks. Errors: why there is none, for a person.
    pub fn give(&self, host: &str, acme: &str) -> Result<Certificate, String> {
        self.state().give(host, acme)
    }

    /// Takes up what `node` gave, by host and whom it is from, and shows it. What is of no use is said, and not asked for again. Whether
    /// all were taken.
    pub fn take_from(&self, node: &str, given: Vec<(String, AcmeName, Certificate)>) -> bool {
        if given.is_empty() {
            return true;
        }
        let now = now();
        let mut state = self.state();
        let take = |(host, acme, certificate): (String, AcmeName, Certificate)| {
            let taken = state.take_from(node, (&host, &acme), certificate, now);
            (host, acme, taken)
        };
        let taken: Vec<_> = given.into_iter().map(take).collect();
        // Once for all: it costs as much as there are certificates.
        self.show(&state);
        drop(state);
        let mut is_whole = true;
        for (host, acme, taken) in taken {
            is_whole &= taken.is_ok();
            match taken {
                Ok(()) => tracing::info!(%acme, host, node, "certificate taken up"),
                Err(error) => tracing::warn!(%acme, host, node, "the certificate cannot be used: {error}"),
            }
        }
        self.wake();
        is_whole
    }
}
