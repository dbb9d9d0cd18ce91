//! By what services are reached from inside tasks: names and addresses, each of one network. A part of the routing table, kept
//! by what changes. Not here: which task may ask (`tasknet`), and what is answered (`dns`).

use std::net::IpAddr;
use std::sync::Arc;

use imbl::{OrdMap, OrdSet};

use crate::model::{ServiceName, ServiceSpec};

/// The names and addresses of all networks. Clones share everything.
#[derive(Debug, Clone, Default)]
pub struct InnerNames {
    /// By the network's id and a name in lower case: a service's own, or one that it shares with others.
    names: OrdMap<(Arc<str>, Arc<str>), OrdSet<ServiceName>>,
    /// Services' own addresses. Networks of one source do not overlap.
    vips: OrdMap<IpAddr, ServiceName>,
    /// Addresses of tasks in namespaces of this node.
    tasks: OrdMap<IpAddr, ServiceName>,
    /// By the network's id and a name in lower case: a task's own, which several may have.
    task_names: OrdMap<(Arc<str>, Arc<str>), OrdSet<ServiceName>>,
}

/// An address is another service's already.
pub(super) struct VipTaken {
    pub(super) vip: IpAddr,
    pub(super) owner: ServiceName,
}

impl InnerNames {
    /// The services that a name (in lower case) stands for in a network, in the order of their names.
    pub fn named(&self, network: &Arc<str>, name: &Arc<str>) -> impl Iterator<Item = &ServiceName> {
        let key = (network.clone(), name.clone());
        self.names.get(&key).into_iter().flatten()
    }

    /// The services that have a task of that name (in lower case) on a network.
    pub fn task_named(&self, network: &Arc<str>, name: &Arc<str>) -> impl Iterator<Item = &ServiceName> {
        let key = (network.clone(), name.clone());
        self.task_names.get(&key).into_iter().flatten()
    }

    /// The services that are on a network. Costs as many names as there are on it.
    pub fn on_network<'a>(&'a self, network: &'a Arc<str>) -> impl Iterator<Item = &'a ServiceName> {
        let first = (network.clone(), Arc::from(""));
        self.names
            .range(first..)
            .take_while(move |((of, _), _)| of == network)
            .filter_map(|((_, name), services)| services.iter().find(|service| *service.key() == **name))
    }

    /// Whose own address it is, on whichever network.
    pub fn vip_owner(&self, vip: IpAddr) -> Option<&ServiceName> {
        self.vips.get(&vip)
    }

    /// Which service has a task of this node at that address.
    pub fn task_owner(&self, ip: IpAddr) -> Option<&ServiceName> {
        self.tasks.get(&ip)
    }

    /// All services' own addresses.
    pub fn vips(&self) -> impl Iterator<Item = (IpAddr, &ServiceName)> {
        self.vips.iter().map(|(vip, service)| (*vip, service))
    }

    /// Nothing is to be used of this after an error.
    pub(super) fn insert(&mut self, spec: &ServiceSpec) -> Result<(), VipTaken> {
        for key in keys(spec) {
            add(&mut self.names, key, spec);
        }
        for key in task_keys(spec) {
            add(&mut self.task_names, key, spec);
        }
        for vip in spec.attachments.iter().filter_map(|attachment| attachment.vip) {
            match self.vips.insert(vip, spec.name.clone()) {
                Some(owner) if owner != spec.name => return Err(VipTaken { vip, owner }),
                _ => {}
            }
        }
        for ip in task_addrs(spec) {
            self.tasks.insert(ip, spec.name.clone());
        }
        Ok(())
    }

    pub(super) fn remove(&mut self, spec: &ServiceSpec) {
        for key in keys(spec) {
            take_away(&mut self.names, key, spec);
        }
        for key in task_keys(spec) {
            take_away(&mut self.task_names, key, spec);
        }
        for vip in spec.attachments.iter().filter_map(|attachment| attachment.vip) {
            self.vips.remove(&vip);
        }
        for ip in task_addrs(spec) {
            // It may be another's by now.
            if self.tasks.get(&ip) == Some(&spec.name) {
                self.tasks.remove(&ip);
            }
        }
    }
}

type Key = (Arc<str>, Arc<str>);

fn add(names: &mut OrdMap<Key, OrdSet<ServiceName>>, key: Key, spec: &ServiceSpec) {
    let services = names.entry(key).or_default();
    // Many tasks may share a name.
    if !services.contains(&spec.name) {
        services.insert(spec.name.clone());
    }
}

fn take_away(names: &mut OrdMap<Key, OrdSet<ServiceName>>, key: Key, spec: &ServiceSpec) {
    let Some(mut services) = names.remove(&key) else {
        return;
    };
    services.remove(&spec.name);
    if !services.is_empty() {
        names.insert(key, services);
    }
}

fn task_keys(spec: &ServiceSpec) -> impl Iterator<Item = Key> {
    let tasks = spec.endpoints.iter().filter_map(|endpoint| endpoint.task.as_ref());
    tasks.flat_map(|task| {
        let networks = task.addresses.iter().map(|(network, _)| network);
        networks.flat_map(|network| task.names.iter().map(|name| (network.clone(), name.clone())))
    })
}

fn keys(spec: &ServiceSpec) -> impl Iterator<Item = Key> {
    spec.attachments.iter().flat_map(|attachment| {
        let whole = |alias: &Arc<str>| alias.trim_end_matches('.').to_ascii_lowercase().into();
        let aliases = attachment.aliases.iter().map(whole);
        let names = std::iter::once(Arc::from(spec.name.key())).chain(aliases);
        names.map(|name: Arc<str>| (attachment.network.clone(), name))
    })
}

/// Each namespace has a loopback of its own.
fn task_addrs(spec: &ServiceSpec) -> impl Iterator<Item = IpAddr> {
    let is_on_network = !spec.attachments.is_empty();
    let inside = spec
        .endpoints
        .iter()
        .filter(move |endpoint| is_on_network && endpoint.netns.is_some());
    let addrs = inside.flat_map(|endpoint| {
        let of_task = endpoint.task.iter().flat_map(|task| &task.addresses).map(|(_, ip)| *ip);
        of_task.chain([endpoint.addr.ip()])
    });
    addrs.filter(|ip| !ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Attachment, EndpointSpec};
    use crate::routing::{Change, TableError, TableHandle};

    fn service(name: &str, attachments: &[(&str, Option<&str>, &[&str])]) -> ServiceSpec {
        let mut spec = ServiceSpec::new(ServiceName::new(name).unwrap());
        let attachment = |(network, vip, aliases): &(&str, Option<&str>, &[&str])| Attachment {
            network: (*network).into(),
            network_name: format!("{network}-name").into(),
            vip: vip.map(|vip| vip.parse().unwrap()),
            aliases: aliases.iter().map(|alias| (*alias).into()).collect(),
            subnet: None,
        };
        spec.attachments = attachments.iter().map(attachment).collect();
        spec
    }

    fn upsert(spec: ServiceSpec) -> Change {
        Change::Upsert {
            spec: Arc::new(spec),
            vip: None,
        }
    }

    fn named(handle: &TableHandle, network: &str, name: &str) -> Vec<String> {
        let table = handle.load();
        table
            .inner()
            .named(&network.into(), &name.into())
            .map(ToString::to_string)
            .collect()
    }

    #[test]
    fn names_are_of_a_network_and_may_be_shared() {
        let handle = TableHandle::default();
        let web = service(
            "App_Web",
            &[("a", Some("10.0.1.2"), &["Web", "www"]), ("b", Some("10.0.2.2"), &[])],
        );
        let api = service("api", &[("a", None, &["www"])]);
        handle.commit(&[upsert(web.clone()), upsert(api)]).unwrap();
        assert_eq!(named(&handle, "a", "web"), ["App_Web"]);
        assert_eq!(named(&handle, "a", "www"), ["api", "App_Web"]);
        assert_eq!(named(&handle, "b", "app_web"), ["App_Web"]);
        assert_eq!(named(&handle, "b", "web"), [""; 0]);
        let on = |network: &str| -> Vec<String> {
            let table = handle.load();
            table
                .inner()
                .on_network(&network.into())
                .map(ToString::to_string)
                .collect()
        };
        assert_eq!(
            (on("a"), on("b"), on("c")),
            (vec!["api".into(), "App_Web".into()], vec!["App_Web".into()], vec![])
        );
        // What changes goes, and what is shared stays.
        handle
            .commit(&[upsert(service("app_web", &[("b", Some("10.0.2.2"), &[])]))])
            .unwrap();
        assert_eq!(named(&handle, "a", "www"), ["api"]);
        assert_eq!(on("a"), ["api"]);
        let table = handle.load();
        assert_eq!(table.inner().vip_owner("10.0.1.2".parse().unwrap()), None);
        assert_eq!(table.inner().vips().count(), 1);
    }

    #[test]
    fn an_address_is_one_services_and_may_pass_to_another() {
        let handle = TableHandle::default();
        let of = |name: &str| upsert(service(name, &[("a", Some("10.0.1.2"), &[])]));
        handle.commit(&[of("one")]).unwrap();
        let error = handle.commit(&[of("two")]).unwrap_err();
        assert!(
            matches!(&error, TableError::VipTaken { owner, .. } if owner.as_str() == "one"),
            "{error}"
        );
        handle
            .commit(&[Change::Remove(ServiceName::new("one").unwrap()), of("two")])
            .unwrap();
        let table = handle.load();
        let owner = table.inner().vip_owner("10.0.1.2".parse().unwrap()).unwrap();
        assert_eq!(owner.as_str(), "two");
    }

    #[test]
    fn tasks_are_known_by_their_addresses() {
        let handle = TableHandle::default();
        let mut web = service("web", &[("a", None, &[])]);
        let endpoint = |addr: &str, netns: Option<&str>| EndpointSpec {
            netns: netns.map(|netns| std::path::Path::new(netns).into()),
            ..EndpointSpec::at(addr.parse().unwrap())
        };
        web.endpoints = vec![
            endpoint("172.17.0.2:0", Some("/x")),
            endpoint("127.0.0.1:0", Some("/y")),
            endpoint("10.9.9.9:80", None),
        ];
        handle.commit(&[upsert(web.clone())]).unwrap();
        let owner = |ip: &str| {
            handle
                .load()
                .inner()
                .task_owner(ip.parse().unwrap())
                .map(ToString::to_string)
        };
        assert_eq!(owner("172.17.0.2").as_deref(), Some("web"));
        assert_eq!((owner("127.0.0.1"), owner("10.9.9.9")), (None, None));
        web.endpoints.clear();
        handle.commit(&[upsert(web)]).unwrap();
        assert_eq!(owner("172.17.0.2"), None);
    }
}
