//! Which services have an endpoint at an address: what a PTR query asks. A pure index that follows the tables, at the
//! cost of what differs between them. Not here: VIPs, of which the table itself knows the owner.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use crate::model::ServiceName;
use crate::routing::{RoutingTable, Service, ServiceDiff};

/// Services by the addresses of their endpoints. It may be a moment behind the table: whoever reads it asks the table
/// whether a service still has the address.
#[derive(Debug, Default)]
pub struct ReverseIndex {
    services: BTreeMap<IpAddr, BTreeSet<ServiceName>>,
}

impl ReverseIndex {
    /// The index of a whole table.
    pub fn new(table: &RoutingTable) -> ReverseIndex {
        let mut index = ReverseIndex::default();
        table.services().for_each(|service| index.insert(service));
        index
    }

    /// Takes over one difference between the table that the index shows and a later one.
    pub fn apply(&mut self, diff: &ServiceDiff<'_>) {
        match diff {
            ServiceDiff::Added(service) => self.insert(service),
            ServiceDiff::Changed { before, after } => {
                self.remove(before);
                self.insert(after);
            }
            ServiceDiff::Removed(service) => self.remove(service),
        }
    }

    /// In the order of their names.
    pub fn services_at(&self, ip: IpAddr) -> impl Iterator<Item = &ServiceName> {
        self.services.get(&ip).into_iter().flatten()
    }

    fn insert(&mut self, service: &Service) {
        for ip in addresses(service) {
            let names = self.services.entry(ip).or_default();
            if !names.contains(service.name()) {
                names.insert(service.name().clone());
            }
        }
    }

    fn remove(&mut self, service: &Service) {
        for ip in addresses(service) {
            let Some(names) = self.services.get_mut(&ip) else {
                continue;
            };
            names.remove(service.name());
            if names.is_empty() {
                self.services.remove(&ip);
            }
        }
    }
}

/// All that its endpoints are reached by, from wherever.
fn addresses(service: &Service) -> impl Iterator<Item = IpAddr> {
    service.endpoints().iter().flat_map(|endpoint| {
        let of_task = endpoint.task().into_iter().flat_map(|task| &task.addresses);
        of_task.map(|(_, ip)| *ip).chain([endpoint.addr().ip()])
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dns::zone::tests::{commit, remove, upsert};
    use crate::routing::TableHandle;

    #[test]
    fn following_each_change_is_the_same_as_building_anew() {
        let handle = TableHandle::default();
        let mut index = ReverseIndex::default();
        let steps = [
            vec![
                upsert("a", None, &["10.0.0.1:80", "10.0.0.1:81", "[::1]:80"]),
                upsert("b", None, &["10.0.0.1:80"]),
            ],
            vec![upsert("a", None, &["10.0.0.2:80"])],
            vec![remove("b"), upsert("c", None, &["10.0.0.2:80", "10.0.0.3:80"])],
            vec![remove("a"), remove("c")],
        ];
        for changes in steps {
            let before = handle.load();
            commit(&handle, &changes);
            let after = handle.load();
            RoutingTable::diff(&before, &after).for_each(|diff| index.apply(&diff));
            assert_eq!(index.services, ReverseIndex::new(&after).services);
        }
        assert!(index.services.is_empty());
    }
}
