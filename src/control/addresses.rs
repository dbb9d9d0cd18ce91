//! An address for each task on each of its networks, before it has a node. A task keeps what it was given until it has ended,
//! another container until it is gone from the store.
//! Not here: the networks' subnets and the services' addresses (`allocator`).

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::Arc;

use super::draft::Draft;
use super::{Context, Plan};
use crate::model::swarm::{AttachedContainer, Id, Network, Task, TaskAddress, TaskState};
use crate::store::Snapshot;

pub(super) fn plan(context: &mut Context<'_>) -> Plan {
    let mut draft = Draft::new(context.now);
    let snapshot = context.snapshot;
    let mut open: Vec<&Arc<Task>> = snapshot.tasks().filter(|task| !is_given(task, snapshot)).collect();
    let mut arrived: Vec<&Arc<AttachedContainer>> = snapshot.containers().filter(|one| one.address.is_none()).collect();
    if open.is_empty() && arrived.is_empty() {
        return draft.into_plan();
    }
    arrived.sort_by_key(|container| (container.meta.created_at, container.id.clone()));
    open.sort_by_key(|task| (task.meta.created_at, task.slot, task.id.clone()));
    let mut free = Free::of(snapshot);
    for container in arrived {
        if draft.is_full() {
            break;
        }
        let given = free.give_container(container, snapshot);
        draft.change_container(container, |container| match given {
            Ok(address) => (container.address, container.error) = (Some(address), None),
            Err(reason) => container.error = Some(reason),
        });
    }
    for task in open {
        if draft.is_full() {
            break;
        }
        match free.give(task, snapshot) {
            Ok(addresses) => draft.change_task(task, |task| task.addresses = addresses),
            Err(reason) => {
                if task.status.state == TaskState::Pending && task.status.error.as_deref() == Some(&reason) {
                    continue;
                }
                draft.change_task(task, |task| {
                    task.status.state = TaskState::Pending;
                    task.status.message = "pending task allocation".to_owned();
                    task.status.error = Some(reason);
                    task.status.unfit.clear();
                    task.status.at = task.meta.updated_at;
                });
            }
        }
    }
    draft.into_plan()
}

/// Whether nobody else may have a task's addresses.
pub(super) fn holds(task: &Task) -> bool {
    match task.node {
        Some(_) => !task.status.state.is_terminal(),
        None => task.is_live(),
    }
}

/// Whether a task has what it needs of this. One that a node has been given already goes on as it is.
pub(super) fn is_given(task: &Task, snapshot: &Snapshot) -> bool {
    let is_open = task.is_wanted() && task.status.state < TaskState::Assigned;
    !is_open || {
        let mut has = task.addresses.iter().map(|address| &address.network);
        networks(task, snapshot).all(|network| has.next() == Some(&network.id))
    }
}

/// The swarm's networks that a task is on, each once.
fn networks<'a>(task: &'a Task, snapshot: &'a Snapshot) -> impl Iterator<Item = &'a Arc<Network>> {
    let targets = task.spec.networks.iter().flatten();
    let mut seen = BTreeSet::new();
    targets
        .filter_map(|network| snapshot.network(network.target.as_deref()?))
        .filter(move |network| seen.insert(&network.id))
}

/// What can be given.
struct Free {
    taken: BTreeMap<Id, BTreeSet<Ipv4Addr>>,
}

impl Free {
    fn of(snapshot: &Snapshot) -> Free {
        let mut taken: BTreeMap<Id, BTreeSet<Ipv4Addr>> = BTreeMap::new();
        let mut take = |network: &Id, addr| {
            taken.entry(network.clone()).or_default().insert(addr);
        };
        for vip in snapshot.services().flat_map(|service| &service.endpoint.vips) {
            take(&vip.network, vip.addr);
        }
        for task in snapshot.tasks().filter(|task| holds(task)) {
            task.addresses.iter().for_each(|own| take(&own.network, own.addr));
        }
        for own in snapshot.containers().filter_map(|container| container.address.as_ref()) {
            take(&own.network, own.addr);
        }
        Free { taken }
    }

    /// One on each network of the task, or none at all. `Err`: why not, for people.
    fn give(&mut self, task: &Task, snapshot: &Snapshot) -> Result<Vec<TaskAddress>, String> {
        let mut given = Vec::new();
        for network in networks(task, snapshot) {
            given.push(self.one_of(network, None)?);
        }
        given.iter().for_each(|address| self.take(address));
        Ok(given)
    }

    /// The one that it asks for, or any. `Err`: why not, for people.
    fn give_container(&mut self, container: &AttachedContainer, snapshot: &Snapshot) -> Result<TaskAddress, String> {
        let network = snapshot.network(container.network.as_str());
        let network = network.ok_or_else(|| format!("network {} is not there any more", container.network))?;
        let given = self.one_of(network, container.wanted)?;
        self.take(&given);
        Ok(given)
    }

    fn take(&mut self, given: &TaskAddress) {
        let taken = self.taken.entry(given.network.clone()).or_default();
        taken.insert(given.addr);
    }

    /// `wanted`: that one and no other.
    fn one_of(&self, network: &Network, wanted: Option<Ipv4Addr>) -> Result<TaskAddress, String> {
        let none = |why: &str| format!("network {}: {why}", network.name);
        let Some(subnet) = network.subnet else {
            return Err(none("it has no subnet, since the swarm's address pool is used up"));
        };
        let taken = self.taken.get(&network.id);
        let addr = match wanted {
            Some(wanted) => {
                let is_taken = taken.is_some_and(|taken| taken.contains(&wanted));
                let is_reserved = network.reserved().any(|reserved| reserved == wanted);
                if is_taken || is_reserved {
                    return Err(none(&format!("address {wanted} is already in use")));
                }
                wanted
            }
            None => next(network, taken).ok_or_else(|| {
                let of = network.range.unwrap_or(subnet);
                none(&format!("no address is left in {of}"))
            })?,
        };
        Ok(TaskAddress {
            network: network.id.clone(),
            addr,
            prefix: subnet.prefix_len(),
            is_internal: network.is_internal,
        })
    }
}

/// The one after the last that is taken, so that one that was just given back rests; in a subnet that was gone through, the
/// first that is free.
fn next(network: &Network, taken: Option<&BTreeSet<Ipv4Addr>>) -> Option<Ipv4Addr> {
    let is_taken = |addr: &Ipv4Addr| taken.is_some_and(|taken| taken.contains(addr));
    let is_free = |addr: &Ipv4Addr| !is_taken(addr) && network.reserved().all(|reserved| reserved != *addr);
    let after = taken.and_then(|taken| taken.last()).map_or(0, |last| u32::from(*last));
    let (first, last) = network.hosts()?.into_inner();
    let above = (after.max(first)..=last).map(Ipv4Addr::from).find(is_free);
    above.or_else(|| (first..=last).map(Ipv4Addr::from).find(is_free))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use ipnet::Ipv4Net;
    use serde_json::json;

    use super::super::testing::{World, network, replicated, seconds, spec};
    use super::*;
    use crate::model::swarm::{Meta, Object, Time};
    use crate::store::THIS_REVISION;

    /// A swarm with the network `app`, whose subnet this is.
    fn world(subnet: &str, seed: u64) -> World {
        let mut world = World::new(2, seed);
        let mut app = network("app", false);
        app.subnet = Some(subnet.parse().unwrap());
        app.gateway = app.subnet.and_then(|subnet: Ipv4Net| subnet.hosts().next());
        world.put(Object::Network(Arc::new(app)));
        world
    }

    fn create(world: &mut World, name: &str, image: &str, replicas: u64) -> Id {
        let mut service = replicated(name, image, replicas);
        service["TaskTemplate"]["Networks"] = json!([{ "Target": "app" }, { "Target": "bridge" }]);
        world.create(spec(service))
    }

    fn addrs(tasks: &[Arc<Task>]) -> Vec<Ipv4Addr> {
        tasks
            .iter()
            .flat_map(|task| &task.addresses)
            .map(|own| own.addr)
            .collect()
    }

    #[test]
    fn what_a_full_subnet_has_no_room_for_waits_and_says_so_once() {
        // Six hosts, of which the network has one and the service one.
        let mut world = world("10.9.0.0/29", 1);
        let web = create(&mut world, "web", "good", 6);
        world.run_for(seconds(20));
        let serving = world.serving(&web);
        let mut given = addrs(&serving);
        given.sort_unstable();
        assert_eq!(given, (3..=6).map(|n| Ipv4Addr::new(10, 9, 0, n)).collect::<Vec<_>>());
        let waiting: Vec<_> = world
            .tasks(&web)
            .into_iter()
            .filter(|task| !task.is_serving())
            .collect();
        assert_eq!(waiting.len(), 2);
        for task in &waiting {
            assert_eq!(task.status.state, TaskState::Pending);
            assert_eq!(
                task.status.error.as_deref(),
                Some("network app: no address is left in 10.9.0.0/29")
            );
        }
        // At rest nothing is written.
        let revision = world.snapshot.revision();
        world.run_for(seconds(100));
        assert_eq!(world.snapshot.revision(), revision);
        // What one gives back another gets.
        world.end(&serving[0].id, TaskState::Failed, "task: non-zero exit (1)");
        world.run_for(seconds(1));
        let now = world.serving(&web);
        assert_eq!(now.len(), 4);
        assert!(addrs(&now).contains(&serving[0].addresses[0].addr));
        assert!(
            now.iter()
                .any(|task| waiting.iter().any(|waiting| waiting.id == task.id))
        );
        assert!(now.iter().all(|task| task.status.error.is_none()));
    }

    #[test]
    fn of_a_range_only_what_nobody_has_is_given() {
        let mut world = world("10.9.0.0/24", 1);
        let mut app = (*world.snapshot.networks().next().unwrap().clone()).clone();
        app.range = Some("10.9.0.128/29".parse().unwrap());
        app.auxiliary = [("printer".to_owned(), Ipv4Addr::new(10, 9, 0, 130))].into();
        world.put(Object::Network(Arc::new(app)));
        let web = create(&mut world, "web", "good", 8);
        world.run_for(seconds(20));
        let service = world.snapshot.service(web.as_str()).unwrap().clone();
        let mut given = addrs(&world.serving(&web));
        given.extend(service.endpoint.vips.iter().map(|vip| vip.addr));
        given.sort_unstable();
        let all = [128, 129, 131, 132, 133, 134, 135].map(|n| Ipv4Addr::new(10, 9, 0, n));
        assert_eq!(given, all);
        let waiting = world
            .tasks(&web)
            .into_iter()
            .filter_map(|task| task.status.error.clone());
        assert_eq!(
            waiting.collect::<BTreeSet<_>>(),
            BTreeSet::from(["network app: no address is left in 10.9.0.128/29".to_owned()])
        );
    }

    #[test]
    fn a_container_that_is_no_task_has_one_that_is_nobody_elses() {
        let mut world = world("10.9.0.0/28", 1);
        let web = create(&mut world, "web", "good", 3);
        world.run_for(seconds(20));
        let network = world.snapshot.networks().next().unwrap().id.clone();
        let put = |world: &mut World, id: &str, wanted: Option<[u8; 4]>| {
            let node = world.snapshot.nodes().next().unwrap().id.clone();
            world.put(Object::Container(Arc::new(AttachedContainer {
                id: id.into(),
                meta: Meta::new(THIS_REVISION, Time::default()),
                node,
                network: network.clone(),
                container: id.to_owned(),
                name: id.to_owned(),
                names: Vec::new(),
                wanted: wanted.map(Ipv4Addr::from),
                address: None,
                error: None,
            })));
            world.run_for(seconds(1));
            let stored = world.snapshot.container(id).unwrap();
            let given = stored.address.as_ref().map(|own| (own.addr, own.prefix));
            (given, stored.error.clone())
        };
        let taken = addrs(&world.serving(&web));
        let (free, is_free) = put(&mut world, "any", None);
        let (free, prefix) = free.unwrap();
        assert_eq!((prefix, is_free), (28, None));
        assert!(!taken.contains(&free) && free != Ipv4Addr::new(10, 9, 0, 1));
        let wanted = Some([10, 9, 0, 14]);
        assert_eq!(
            put(&mut world, "wants", wanted).0,
            Some((Ipv4Addr::new(10, 9, 0, 14), 28))
        );
        for asked in [taken[0], free, Ipv4Addr::new(10, 9, 0, 14), Ipv4Addr::new(10, 9, 0, 1)] {
            let (given, error) = put(&mut world, "late", Some(asked.octets()));
            assert_eq!(given, None);
            assert_eq!(
                error.unwrap(),
                format!("network app: address {asked} is already in use")
            );
        }
        // Nor do tasks get what these have.
        world.scale(&web, 14);
        world.run_for(seconds(20));
        let given = addrs(&world.serving(&web));
        // Of 14 the network has one, the service one, and these two.
        assert_eq!(given.len(), 10);
        assert!(!given.contains(&free) && !given.contains(&Ipv4Addr::new(10, 9, 0, 14)));
    }

    #[test]
    fn no_two_have_one_address_and_none_changes() {
        for seed in 0..4 {
            let mut world = world("10.9.0.0/27", seed);
            world.is_shuffled = seed % 2 == 0;
            world.conflicts = 20;
            world.checks.push(Box::new(|before, now| {
                let mut taken: Vec<_> = now
                    .services()
                    .flat_map(|service| &service.endpoint.vips)
                    .map(|vip| (vip.network.clone(), vip.addr))
                    .collect();
                for task in now.tasks() {
                    if let Some(before) = before.task(task.id.as_str()).filter(|task| !task.addresses.is_empty()) {
                        assert_eq!(before.addresses, task.addresses);
                    }
                    let is_there = (TaskState::Assigned..=TaskState::Running).contains(&task.status.state);
                    assert!(!is_there || task.addresses.len() == 1, "{task:?}");
                    if is_there {
                        taken.extend(task.addresses.iter().map(|own| (own.network.clone(), own.addr)));
                    }
                }
                let n = taken.len();
                taken.sort_unstable();
                taken.dedup();
                assert_eq!(taken.len(), n, "one address is two's");
                assert!(
                    !taken.iter().any(|(_, addr)| *addr == Ipv4Addr::new(10, 9, 0, 1)),
                    "the gateway's"
                );
            }));
            let images = ["good", "crashes", "exits", "fails"];
            let services: Vec<Id> = (0..3)
                .map(|n| create(&mut world, &format!("web{n}"), images[n], 5))
                .collect();
            for _ in 0..10 {
                let which = services[world.rng.usize(..3)].clone();
                match world.rng.u8(..4) {
                    0 => {
                        let n = world.rng.usize(..4);
                        world.image(&which, images[n]);
                    }
                    _ => {
                        let n = world.rng.u64(..16);
                        world.scale(&which, n);
                    }
                }
                let rest = world.rng.u64(..8_000);
                world.run_for(Duration::from_millis(rest));
            }
        }
    }
}
