//! Addresses for tasks that have a network of their own: no two tasks that live have the same. Not here: the networks.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, PoisonError};

use ipnet::Ipv4Net;

use super::known::KnownTasks;

/// Gives addresses of one network. What a task was given is in its directory, which lives as long as it.
#[derive(Debug)]
pub(super) struct AddressGiver {
    network: Ipv4Net,
    tasks: Arc<KnownTasks>,
    /// Given, and not yet written. std mutex: held for moments.
    given: Mutex<BTreeSet<Ipv4Addr>>,
}

/// An address that nobody else is given as long as this is there. To be dropped once it is written in the task's directory.
#[derive(Debug)]
pub(super) struct Given<'a> {
    giver: &'a AddressGiver,
    pub(super) address: Ipv4Addr,
}

impl Drop for Given<'_> {
    fn drop(&mut self) {
        self.giver.lock().remove(&self.address);
    }
}

impl AddressGiver {
    pub(super) fn new(network: Ipv4Net, tasks: Arc<KnownTasks>) -> AddressGiver {
        AddressGiver {
            network,
            tasks,
            given: Mutex::default(),
        }
    }

    /// An address that no task has. `None`: all are given.
    pub(super) fn give(&self) -> Option<Given<'_>> {
        let mut given = self.lock();
        let written: BTreeSet<Ipv4Addr> = self.tasks.all().iter().filter_map(|known| known.address).collect();
        // First and last of a network mean the network.
        let (first, last) = (u32::from(self.network.network()), u32::from(self.network.broadcast()));
        let n = last.saturating_sub(first).saturating_sub(1);
        if n == 0 {
            return None;
        }
        let begin = fastrand::u32(..n);
        let mut all = (0..n).map(|i| Ipv4Addr::from(first + 1 + (begin + i) % n));
        let address = all.find(|address| !written.contains(address) && !given.contains(address))?;
        given.insert(address);
        Some(Given { giver: self, address })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeSet<Ipv4Addr>> {
        self.given.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_address_is_given_twice() {
        let dir = tempfile::tempdir().unwrap();
        let tasks = Arc::new(KnownTasks::new(dir.path().to_owned()));
        let giver = AddressGiver::new("198.18.0.0/29".parse().unwrap(), tasks.clone());
        let mut given: Vec<Given> = (0..6).map(|_| giver.give().unwrap()).collect();
        given.sort_by_key(|given| given.address);
        let expected: Vec<Ipv4Addr> = (1..=6).map(|n| [198, 18, 0, n].into()).collect();
        assert!(given.iter().map(|given| given.address).eq(expected));
        assert!(giver.give().is_none());
        // One that was never written is there again.
        let last = given.pop().unwrap().address;
        assert_eq!(giver.give().unwrap().address, last);
        for none in ["10.0.0.1/32", "10.0.0.0/31"] {
            assert!(AddressGiver::new(none.parse().unwrap(), tasks.clone()).give().is_none());
        }
    }
}
