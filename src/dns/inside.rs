//! What names mean inside a task: pure, from the routing table to records. A task sees the services that share a network with
//! it, and nothing of others. Not here: bytes, sockets, and which networks a task is on.
//!
//! `SERVICE`, an alias, with dots or without: the service's address on that network; where it has none (`dnsrr`), its tasks'.
//! `tasks.NAME`: its tasks' addresses. `N.NAME`: that of its task of slot N. `SERVICE.SLOT.ID`, a task's hostname, the short id
//! of its container: that task's. Each with `.NETWORK` behind it: on that network alone. `NAME.STACK`: the service that is
//! `STACK_NAME`. Of networks that all have a name the one that comes first counts, as in Docker; of ways to read a name the one
//! whose network's name is shortest.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use hickory_proto::op::Query;
use hickory_proto::rr::{Name, RecordType};

use super::zone::{
    Answer, MAX_ADDRESSES, MAX_NAMES, TASKS_TTL_S, VIP_TTL_S, Zone, address, lower, nothing, pointers, reverse_address,
};
use crate::model::{Attachment, ServiceName, TaskRef};
use crate::routing::{Endpoint, Service};

/// The networks of a task, by their ids, in the order in which names are looked up.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct View {
    pub networks: Vec<Arc<str>>,
    /// Names of its own for others, each with the one that it stands for; in lower case.
    pub links: Vec<(Arc<str>, Arc<str>)>,
}

impl View {
    /// By what this sees a service, if at all.
    fn attachments<'a>(&'a self, service: &'a Service) -> impl Iterator<Item = &'a Attachment> {
        let all = &service.spec().attachments;
        let networks = self.networks.iter();
        networks.filter_map(|network| all.iter().find(|attachment| attachment.network == *network))
    }
}

/// As `zone::answer`, for a task.
pub(super) fn answer(question: &Query, zone: &Zone<'_>, view: &View, now: Instant, rng: &mut fastrand::Rng) -> Answer {
    let asked = Asked { zone, view, now };
    let labels: Option<Vec<String>> = question.name.iter().take(MAX_LABELS + 1).map(lower).collect();
    let labels = labels.filter(|labels| labels.len() <= MAX_LABELS).unwrap_or_default();
    let mut labels: Vec<&str> = labels.iter().map(String::as_str).collect();
    if let Some((_, linked)) = view
        .links
        .iter()
        .find(|(alias, _)| labels.iter().copied().eq(alias.split('.')))
    {
        labels = linked.split('.').collect();
    }
    if let Some((mut ips, ttl)) = asked.found(&labels) {
        let wants = |ip: &IpAddr| match question.query_type {
            RecordType::A => ip.is_ipv4(),
            RecordType::AAAA => ip.is_ipv6(),
            // RFC 8482: who asks for anything is content with one kind.
            RecordType::ANY => true,
            _ => false,
        };
        ips.retain(wants);
        ips.sort_unstable();
        ips.dedup();
        if ips.is_empty() {
            return nothing(&question.name, zone, ttl);
        }
        rng.shuffle(&mut ips);
        ips.truncate(MAX_ADDRESSES);
        return Answer::Records(ips.into_iter().map(|ip| address(&question.name, ttl, ip)).collect());
    }
    match reverse_address(&question.name) {
        Some(ip) => asked.reverse(question, ip),
        None => Answer::NotOurs,
    }
}

/// Services that a name stands for, each with its attachment to the network that the name was found on.
type Found<'a> = Vec<(&'a Arc<Service>, &'a Attachment)>;

struct Asked<'a> {
    zone: &'a Zone<'a>,
    view: &'a View,
    now: Instant,
}

/// A part of a name, and the network that the rest of it names; `None`: any.
type Reading = (Arc<str>, Option<String>);

impl<'a> Asked<'a> {
    /// The addresses that a name stands for, and for how long.
    fn found(&self, labels: &[&str]) -> Option<(Vec<IpAddr>, u32)> {
        let (first, rest) = labels.split_first()?;
        let of_tasks = || {
            let is_meant = *first == "tasks" && !rest.is_empty();
            let found = is_meant.then(|| self.named(rest)).flatten()?;
            Some(self.tasks(found, |_| true))
        };
        let of_slot = || {
            let is_number = first.bytes().all(|byte| byte.is_ascii_digit()) && !first.is_empty();
            let found = (is_number && !rest.is_empty()).then(|| self.named(rest)).flatten()?;
            let is_meant =
                |task: Option<&TaskRef>| task.is_some_and(|task| task.name.rsplit('.').next() == Some(*first));
            Some(self.tasks(found, is_meant))
        };
        of_tasks()
            .or_else(|| self.named(labels).map(|found| self.addresses(found)))
            .or_else(|| self.task(labels))
            .or_else(of_slot)
    }

    /// The services that a name stands for.
    fn named(&self, labels: &[&str]) -> Option<Found<'a>> {
        let of_stack = |labels: &[&str]| {
            let (own, stack) = (labels.first()?, labels.get(1)?);
            let network = Some(labels[2..].join(".")).filter(|network| !network.is_empty());
            Some((Arc::from(format!("{stack}_{own}")), network))
        };
        let readings = readings(labels).into_iter().chain(of_stack(labels));
        let mut found = readings.map(|reading| self.on_networks(&reading));
        found.find_map(|found| found)
    }

    /// What a name stands for on the first network that has it.
    fn on_networks(&self, (name, place): &Reading) -> Option<Found<'a>> {
        let (zone, view) = (self.zone, self.view);
        view.networks.iter().find_map(|network| {
            let services = zone.table.inner().named(network, name);
            let found = services.filter_map(|service| self.attached(service, network, place.as_deref()));
            let found: Found<'a> = found.collect();
            (!found.is_empty()).then_some(found)
        })
    }

    /// A service with its attachment to a network, if that is called so.
    fn attached(
        &self,
        service: &ServiceName,
        network: &Arc<str>,
        place: Option<&str>,
    ) -> Option<(&'a Arc<Service>, &'a Attachment)> {
        let service = self.zone.table.service(service)?;
        let mut attachments = service.spec().attachments.iter();
        let attachment = attachments.find(|attachment| attachment.network == *network)?;
        let is_meant = place.is_none_or(|place| attachment.network_name.eq_ignore_ascii_case(place));
        is_meant.then_some((service, attachment))
    }

    fn addresses(&self, found: Found<'a>) -> (Vec<IpAddr>, u32) {
        let mut ttl = VIP_TTL_S;
        let mut ips = Vec::new();
        for (service, attachment) in found {
            match attachment.vip {
                Some(vip) => ips.push(vip),
                None => {
                    ttl = TASKS_TTL_S;
                    ips.extend(ready(service, attachment, self.now));
                }
            }
        }
        (ips, ttl)
    }

    fn tasks(&self, found: Found<'a>, is_meant: impl Fn(Option<&TaskRef>) -> bool) -> (Vec<IpAddr>, u32) {
        let ips = found.into_iter().flat_map(|(service, attachment)| {
            let ready = ready_endpoints(service, self.now);
            let meant = ready.filter(|endpoint| is_meant(endpoint.task().map(AsRef::as_ref)));
            meant
                .map(|endpoint| address_on(endpoint, attachment))
                .collect::<Vec<_>>()
        });
        (ips.collect(), TASKS_TTL_S)
    }

    /// A task by a name of its own.
    fn task(&self, labels: &[&str]) -> Option<(Vec<IpAddr>, u32)> {
        let mut each = readings(labels).into_iter().map(|(name, place)| {
            let mut networks = self.view.networks.iter();
            networks.find_map(|network| self.task_on(network, &name, place.as_deref()))
        });
        each.find_map(|ips| Some((ips?, TASKS_TTL_S)))
    }

    fn task_on(&self, network: &Arc<str>, name: &Arc<str>, place: Option<&str>) -> Option<Vec<IpAddr>> {
        let inner = self.zone.table.inner();
        let by_name = inner.task_named(network, name);
        // `SERVICE.SLOT.ID`
        let first = name.split_once('.').map(|(service, _)| Arc::from(service));
        let by_service = first.iter().flat_map(|service| inner.named(network, service));
        let is_called = |task: &TaskRef| task.names.contains(name) || full_name(task) == **name;
        let services = by_name.chain(by_service);
        let attached = services.filter_map(|service| self.attached(service, network, place));
        let ips = attached.flat_map(|(service, attachment)| {
            let here = service.endpoints().iter().filter(|endpoint| is_here(endpoint));
            let called = here.filter(|endpoint| endpoint.task().is_some_and(|task| is_called(task)));
            called.map(|endpoint| address_on(endpoint, attachment))
        });
        let ips: Vec<IpAddr> = ips.collect();
        (!ips.is_empty()).then_some(ips)
    }

    /// Whose address it is, and on which network: only of those that the task sees.
    fn reverse(&self, question: &Query, ip: IpAddr) -> Answer {
        let Zone { table, reverse, .. } = self.zone;
        let of_vip = table.inner().vip_owner(ip).and_then(|name| table.service(name));
        let of_vip = of_vip.and_then(|service| {
            let mut attachments = self.view.attachments(service);
            let attachment = attachments.find(|attachment| attachment.vip == Some(ip))?;
            Some((VIP_TTL_S, name_on(service.name().as_str(), attachment)?))
        });
        let services = reverse.services_at(ip).filter_map(|name| table.service(name));
        let of_tasks = services.flat_map(|service| {
            let here = service.endpoints().iter().filter(|endpoint| is_here(endpoint));
            here.filter_map(move |endpoint| {
                let mut attachments = self.view.attachments(service);
                let attachment = attachments.find(|attachment| address_on(endpoint, attachment) == ip)?;
                let name = match endpoint.task() {
                    Some(task) if task.is_by_itself() => attachment.aliases.first()?.to_string(),
                    Some(task) => full_name(task),
                    None => format!("tasks.{}", service.name()),
                };
                Some((TASKS_TTL_S, name_on(&name, attachment)?))
            })
        });
        let names: Vec<(u32, Name)> = of_vip.into_iter().chain(of_tasks).take(MAX_NAMES).collect();
        // What it does not see is nobody's, and nobody else is told.
        let is_known = table.inner().vip_owner(ip).is_some() || reverse.services_at(ip).next().is_some();
        match names.is_empty() && !is_known {
            true => Answer::NotOurs,
            false => pointers(question, self.zone, names),
        }
    }
}

/// The tasks of this node as the balancer sees them.
fn ready_endpoints(service: &Service, now: Instant) -> impl Iterator<Item = &Arc<Endpoint>> {
    let picks = service.picks(now);
    let picked = (0..picks.len()).filter_map(move |place| picks.at(place));
    let endpoints = picked.map(|i| &service.endpoints()[i]);
    endpoints.filter(|endpoint| is_here(endpoint))
}

/// Where they are reached on a network.
fn ready(service: &Service, attachment: &Attachment, now: Instant) -> Vec<IpAddr> {
    ready_endpoints(service, now)
        .map(|endpoint| address_on(endpoint, attachment))
        .collect()
}

/// The ways to read a name: the whole of it, then with ever more of it as the name of a network.
fn readings(labels: &[&str]) -> Vec<Reading> {
    let reading = |n: usize| {
        let network = (n < labels.len()).then(|| labels[n..].join("."));
        (labels[..n].join(".").into(), network)
    };
    (1..=labels.len()).rev().map(reading).collect()
}

/// A task has one on each of its networks; an endpoint that was declared, or whose engine gives it others, has but one.
fn address_on(endpoint: &Endpoint, attachment: &Attachment) -> IpAddr {
    let own = endpoint.task().and_then(|task| task.address_on(&attachment.network));
    own.unwrap_or_else(|| endpoint.addr().ip())
}

/// The address of another node's task is that of its link.
fn is_here(endpoint: &Endpoint) -> bool {
    endpoint.task().is_none_or(|task| !task.is_remote)
}

/// As Docker names the container of a task: `web.1.ID`.
fn full_name(task: &TaskRef) -> String {
    format!("{}.{}", task.name, task.id).to_ascii_lowercase()
}

/// `NAME.NETWORK.`; without the network's name, `NAME.`
fn name_on(name: &str, attachment: &Attachment) -> Option<Name> {
    let network = Some(&*attachment.network_name).filter(|network| !network.is_empty());
    let labels = name.split('.').chain(network).map(str::as_bytes);
    Name::from_labels(labels).ok()
}

/// More than any name of ours has, besides the reverse ones.
const MAX_LABELS: usize = 16;

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::super::reverse::ReverseIndex;
    use super::*;
    use crate::model::{EndpointSpec, ServiceSpec};
    use crate::routing::{Change, TableHandle};

    /// A network, an address on it, aliases.
    type On<'a> = (&'a str, Option<[u8; 4]>, &'a [&'a str]);

    fn service(name: &str, attachments: &[On<'_>], tasks: &[(&str, [u8; 4])]) -> Change {
        let mut spec = ServiceSpec::new(ServiceName::new(name).unwrap());
        let attachment = |(network, vip, aliases): &(&str, Option<[u8; 4]>, &[&str])| Attachment {
            network: (*network).into(),
            network_name: format!("net-{network}").into(),
            vip: vip.map(IpAddr::from),
            aliases: aliases.iter().map(|alias| (*alias).into()).collect(),
            subnet: None,
        };
        spec.attachments = attachments.iter().map(attachment).collect();
        let endpoint = |(i, (id, ip)): (usize, &(&str, [u8; 4]))| EndpointSpec {
            task: Some(Arc::new(TaskRef {
                id: (*id).into(),
                name: format!("{name}.{}", i + 1),
                service: name.into(),
                node: "n".into(),
                hostname: "h".into(),
                is_remote: *ip == REMOTE,
                addresses: vec![("a".into(), IpAddr::from(*ip))],
                names: vec![format!("{id}-host").into(), "peer.example".into()],
            })),
            ..EndpointSpec::at((Ipv4Addr::from(*ip), 0).into())
        };
        spec.endpoints = tasks.iter().enumerate().map(endpoint).collect();
        Change::Upsert {
            spec: Arc::new(spec),
            vip: None,
        }
    }

    const REMOTE: [u8; 4] = [192, 168, 0, 1];

    fn table() -> TableHandle {
        let handle = TableHandle::default();
        let web: &[On<'_>] = &[
            ("a", Some([10, 0, 1, 2]), &["web", "www", "Web.example.test."]),
            ("b", Some([10, 0, 2, 2]), &[]),
        ];
        let changes = [
            service(
                "app_web",
                web,
                &[("id1", [172, 17, 0, 2]), ("id2", [172, 17, 0, 3]), ("id3", REMOTE)],
            ),
            service("api", &[("a", None, &["www"])], &[("id4", [172, 17, 0, 4])]),
            service("empty", &[("a", Some([10, 0, 1, 9]), &[])], &[]),
            service(
                "secret",
                &[("c", Some([10, 0, 3, 2]), &[])],
                &[("id5", [172, 17, 0, 5])],
            ),
            service(
                "both",
                &[("c", Some([10, 0, 3, 3]), &[]), ("b", Some([10, 0, 2, 3]), &[])],
                &[],
            ),
        ];
        handle.commit(&changes).unwrap();
        handle
    }

    fn ask(handle: &TableHandle, networks: &[&str], name: &str, kind: RecordType) -> String {
        let question = Query::query(Name::from_ascii(name).unwrap(), kind);
        let table = handle.load();
        let zone = Zone {
            table: &table,
            reverse: &ReverseIndex::new(&table),
            has_vips: true,
        };
        let view = View {
            networks: networks.iter().map(|network| (*network).into()).collect(),
            links: vec![("kin".into(), "app_web.2.id2".into()), ("my.kin".into(), "www".into())],
        };
        match answer(
            &question,
            &zone,
            &view,
            Instant::now(),
            &mut fastrand::Rng::with_seed(7),
        ) {
            Answer::NotOurs => "-".to_owned(),
            Answer::Nothing(soa) => format!("nothing for {}", soa.ttl),
            Answer::Records(records) => {
                let shown = records.iter().map(|record| format!("{} {}", record.ttl, record.data));
                let mut shown: Vec<String> = shown.collect();
                shown.sort();
                shown.join(", ")
            }
        }
    }

    #[test]
    fn a_container_by_itself_is_called_by_its_own_name() {
        let handle = table();
        let own = service("x1", &[("a", None, &["Box", "www"])], &[("x1", [172, 17, 0, 9])]);
        handle.commit(&[own]).unwrap();
        for (name, kind, expect) in [
            ("box.", RecordType::A, "0 172.17.0.9"),
            ("tasks.box.net-a.", RecordType::A, "0 172.17.0.9"),
            ("www.", RecordType::A, "0 10.0.1.2, 0 172.17.0.4, 0 172.17.0.9"),
            ("9.0.17.172.in-addr.arpa.", RecordType::PTR, "0 Box.net-a."),
        ] {
            assert_eq!(ask(&handle, &["a"], name, kind), expect, "{name}");
        }
        assert_eq!(ask(&handle, &["b"], "box.", RecordType::A), "-");
    }

    #[test]
    fn a_task_sees_what_shares_a_network_with_it() {
        use RecordType::{A, AAAA, MX, PTR};
        let handle = table();
        for (networks, name, kind, expect) in [
            (&["a"][..], "web.", A, "5 10.0.1.2"),
            (&["a"], "WEB.", A, "5 10.0.1.2"),
            (&["a"], "app_web.", A, "5 10.0.1.2"),
            (&["a"], "web.app.", A, "5 10.0.1.2"),
            (&["a"], "web.net-a.", A, "5 10.0.1.2"),
            (&["a"], "app_web.net-b.", A, "-"),
            (&["b", "a"], "app_web.", A, "5 10.0.2.2"),
            (&["b", "a"], "web.", A, "5 10.0.1.2"),
            (&["b", "a"], "app_web.net-a.", A, "5 10.0.1.2"),
            (&["a"], "web.", AAAA, "nothing for 5"),
            (&["a"], "web.", MX, "nothing for 5"),
            (&["a"], "www.", A, "0 10.0.1.2, 0 172.17.0.4"),
            (&["a"], "api.", A, "0 172.17.0.4"),
            (&["a"], "tasks.web.", A, "0 172.17.0.2, 0 172.17.0.3"),
            (&["a"], "tasks.web.app.", A, "0 172.17.0.2, 0 172.17.0.3"),
            (&["a"], "tasks.app_web.net-a.", A, "0 172.17.0.2, 0 172.17.0.3"),
            (&["a"], "app_web.2.id2.", A, "0 172.17.0.3"),
            (&["a"], "app_web.1.id2.", A, "-"),
            (&["a"], "app_web.1.id1.net-a.", A, "0 172.17.0.2"),
            // Aliases with dots.
            (&["a"], "web.example.test.", A, "5 10.0.1.2"),
            (&["a"], "WEB.example.test.net-a.", A, "5 10.0.1.2"),
            (&["a"], "tasks.web.example.test.", A, "0 172.17.0.2, 0 172.17.0.3"),
            (&["b"], "web.example.test.", A, "-"),
            (&["a"], "example.test.", A, "-"),
            // Names that it has for others.
            (&["a"], "Kin.", A, "0 172.17.0.3"),
            (&["a"], "my.kin.", A, "0 10.0.1.2, 0 172.17.0.4"),
            (&["c"], "kin.", A, "-"),
            // A task's own names.
            (&["a"], "id1-host.", A, "0 172.17.0.2"),
            (&["a"], "ID1-HOST.net-a.", A, "0 172.17.0.2"),
            (&["a"], "id1-host.", AAAA, "nothing for 0"),
            (&["a"], "id1-host.net-b.", A, "-"),
            (&["b"], "id1-host.", A, "-"),
            (&["a"], "id3-host.", A, "-"),
            (&["a"], "peer.example.", A, "0 172.17.0.2, 0 172.17.0.3, 0 172.17.0.4"),
            (&["a"], "id5-host.", A, "-"),
            // The task of a slot.
            (&["a"], "1.web.", A, "0 172.17.0.2"),
            (&["a"], "2.app_web.net-a.", A, "0 172.17.0.3"),
            (&["a"], "2.web.app.", A, "0 172.17.0.3"),
            (&["a"], "1.web.example.test.", A, "0 172.17.0.2"),
            (&["a"], "9.web.", A, "nothing for 0"),
            (&["a"], "1.nobody.", A, "-"),
            (&["a"], "1.secret.", A, "-"),
            (&["a"], "1.", A, "-"),
            (&["a"], "tasks.", A, "-"),
            (&["a"], "a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.web.", A, "-"),
            (&["a"], "empty.", A, "5 10.0.1.9"),
            (&["a"], "tasks.empty.", A, "nothing for 0"),
            (&["a"], "secret.", A, "-"),
            (&["a"], "tasks.secret.", A, "-"),
            (&["c"], "secret.", A, "5 10.0.3.2"),
            (&["c"], "web.", A, "-"),
            (&["b"], "web.", A, "-"),
            (&["b"], "both.", A, "5 10.0.2.3"),
            (&[], "web.", A, "-"),
            (&["a"], "example.com.", A, "-"),
            (&["a"], ".", A, "-"),
            (&["a"], "2.1.0.10.in-addr.arpa.", PTR, "5 app_web.net-a."),
            (&["a"], "2.0.17.172.in-addr.arpa.", PTR, "0 app_web.1.id1.net-a."),
            (&["a"], "2.2.0.10.in-addr.arpa.", PTR, "nothing for 0"),
            (&["a"], "2.3.0.10.in-addr.arpa.", PTR, "nothing for 0"),
            (&["a"], "5.0.17.172.in-addr.arpa.", PTR, "nothing for 0"),
            (&["a"], "8.8.8.8.in-addr.arpa.", PTR, "-"),
        ] {
            assert_eq!(ask(&handle, networks, name, kind), expect, "{networks:?} {name} {kind}");
        }
    }

    #[test]
    fn names_that_are_no_text_are_not_ours() {
        let handle = table();
        let table = handle.load();
        let zone = Zone {
            table: &table,
            reverse: &ReverseIndex::default(),
            has_vips: true,
        };
        let view = View {
            networks: vec!["a".into()],
            links: Vec::new(),
        };
        for labels in [
            &[&b"\xff"[..]][..],
            &[b"a".as_slice(); 9],
            &[b"tasks"],
            &[b"web", b"\xff"],
        ] {
            let question = Query::query(Name::from_labels(labels.iter().copied()).unwrap(), RecordType::A);
            let answer = answer(
                &question,
                &zone,
                &view,
                Instant::now(),
                &mut fastrand::Rng::with_seed(7),
            );
            assert_eq!(answer, Answer::NotOurs, "{labels:?}");
        }
    }
}
