//! Which names are ours, and what they answer: pure, from the routing table to records. Not here: bytes (`wire`),
//! sockets, and what becomes of names that are not ours (`forward`).
//!
//! Ours are `SERVICE.` (its VIP), `tasks.SERVICE.` (the addresses of its ready endpoints), and the reverse names of both
//! kinds of address. All else is not, search domains included, and an address of the VIP network that nobody has.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use hickory_proto::op::Query;
use hickory_proto::rr::rdata::{A, AAAA, PTR, SOA};
use hickory_proto::rr::{Name, RData, Record, RecordType};

use super::reverse::ReverseIndex;
use crate::routing::{RoutingTable, Service};

/// What our names are answered from.
#[derive(Debug, Clone, Copy)]
pub struct Zone<'a> {
    pub table: &'a RoutingTable,
    /// Of that table, or of one shortly before it.
    pub reverse: &'a ReverseIndex,
    /// VIPs are answered on this node. Where they are not, names stand for endpoints.
    pub has_vips: bool,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Answer {
    /// The name is none of ours: upstream knows.
    NotOurs,
    /// At least one record, each with the question's own spelling of the name.
    Records(Vec<Record>),
    /// The name is ours and has nothing of that type; the SOA record says how long that may be remembered.
    Nothing(Box<Record>),
}

/// How long a VIP may be remembered: it hardly ever changes, but a service can be removed.
pub(super) const VIP_TTL_S: u32 = 5;
/// Endpoints come and go; whoever asks for them wants those of now.
pub(super) const TASKS_TTL_S: u32 = 0;
/// An address that many services share, such as 127.0.0.1, has no more names than these.
pub(super) const MAX_NAMES: usize = 16;
/// More addresses than these fit into no message; the random order makes it a fair choice.
pub(super) const MAX_ADDRESSES: usize = 4_000;

/// Answers one question of class IN. Addresses come without duplicates in random order, so that clients that take the
/// first spread. Cost: a search by name, and what is answered.
pub fn answer(question: &Query, zone: &Zone<'_>, now: Instant, rng: &mut fastrand::Rng) -> Answer {
    let mut labels = question.name.iter();
    match (labels.next(), labels.next(), labels.next()) {
        (Some(service), None, None) => match find(zone.table, service) {
            Some(service) => answer_service(question, zone, service, now, rng),
            None => Answer::NotOurs,
        },
        (Some(tasks), Some(service), None) if tasks.eq_ignore_ascii_case(b"tasks") => match find(zone.table, service) {
            Some(service) => answer_tasks(question, &question.name.base_name(), zone, service, now, rng),
            None => Answer::NotOurs,
        },
        (Some(_), Some(_), Some(_)) => match reverse_address(&question.name) {
            Some(ip) => answer_reverse(question, zone, ip),
            None => Answer::NotOurs,
        },
        _ => Answer::NotOurs,
    }
}

fn answer_service(
    question: &Query,
    zone: &Zone<'_>,
    service: &Service,
    now: Instant,
    rng: &mut fastrand::Rng,
) -> Answer {
    let Some(vip) = service.vip().filter(|_| zone.has_vips) else {
        // Without a VIP the name stands for the tasks, as in Docker's DNS round robin mode.
        return answer_tasks(question, &question.name, zone, service, now, rng);
    };
    match question.query_type {
        // RFC 8482: who asks for anything is content with one kind.
        RecordType::A | RecordType::ANY => Answer::Records(vec![address(&question.name, VIP_TTL_S, vip.into())]),
        _ => nothing(&question.name, zone, VIP_TTL_S),
    }
}

fn answer_tasks(
    question: &Query,
    apex: &Name,
    zone: &Zone<'_>,
    service: &Service,
    now: Instant,
    rng: &mut fastrand::Rng,
) -> Answer {
    let wants = |ip: &IpAddr| match question.query_type {
        RecordType::A => ip.is_ipv4(),
        RecordType::AAAA => ip.is_ipv6(),
        RecordType::ANY => true,
        _ => false,
    };
    // The same list as the balancer's: the ready ones, or all of them when none is.
    let picks = service.picks(now);
    let mut ips: Vec<IpAddr> = (0..picks.len())
        .filter_map(|place| picks.at(place))
        .map(|i| service.endpoints()[i].addr().ip())
        .filter(wants)
        .collect();
    ips.sort_unstable();
    ips.dedup();
    if ips.is_empty() {
        return nothing(apex, zone, TASKS_TTL_S);
    }
    rng.shuffle(&mut ips);
    ips.truncate(MAX_ADDRESSES);
    let records = ips.into_iter().map(|ip| address(&question.name, TASKS_TTL_S, ip));
    Answer::Records(records.collect())
}

fn answer_reverse(question: &Query, zone: &Zone<'_>, ip: IpAddr) -> Answer {
    let owner = match ip {
        IpAddr::V4(ip) => zone.table.vip_owner(ip),
        IpAddr::V6(_) => None,
    };
    let vip_name = owner.and_then(|service| Some((VIP_TTL_S, service_name(service)?)));
    // The index may be behind the table; the table has the last word.
    let is_current = |service: &&Arc<Service>| service.endpoints().iter().any(|endpoint| endpoint.addr().ip() == ip);
    let tasks_names = zone
        .reverse
        .services_at(ip)
        .filter_map(|name| zone.table.service(name))
        .filter(is_current)
        .filter_map(|service| Some((TASKS_TTL_S, service_name(service)?.prepend_label("tasks").ok()?)))
        .take(MAX_NAMES);
    let names: Vec<(u32, Name)> = vip_name.into_iter().chain(tasks_names).collect();
    match names.is_empty() {
        true => Answer::NotOurs,
        false => pointers(question, zone, names),
    }
}

/// The names of an address, each with how long it may be remembered; without any, that there is none.
pub(super) fn pointers(question: &Query, zone: &Zone<'_>, names: Vec<(u32, Name)>) -> Answer {
    // The records of one answer are a set and share one TTL.
    let ttl = names.iter().map(|(ttl, _)| *ttl).min().unwrap_or(TASKS_TTL_S);
    match question.query_type {
        RecordType::PTR | RecordType::ANY if !names.is_empty() => Answer::Records(
            names
                .into_iter()
                .map(|(_, name)| Record::from_rdata(question.name.clone(), ttl, RData::PTR(PTR(name))))
                .collect(),
        ),
        _ => nothing(&question.name, zone, ttl),
    }
}

fn find<'a>(table: &'a RoutingTable, label: &[u8]) -> Option<&'a Arc<Service>> {
    // The wire has no label above 63 bytes.
    let mut lower = [0u8; 63];
    let lower = lower.get_mut(..label.len())?;
    lower.copy_from_slice(label);
    lower.make_ascii_lowercase();
    table.service_by_key(std::str::from_utf8(lower).ok()?)
}

/// A label in lower case; `None` for one that no name of ours has.
pub(super) fn lower(label: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(label).ok()?;
    (!text.contains('.')).then(|| text.to_ascii_lowercase())
}

fn service_name(service: &Service) -> Option<Name> {
    Name::from_labels([service.name().as_str().as_bytes()]).ok()
}

/// The address that a whole reverse name stands for.
pub(super) fn reverse_address(name: &Name) -> Option<IpAddr> {
    if !name.iter().next_back()?.eq_ignore_ascii_case(b"arpa") {
        return None;
    }
    let ip = name.parse_arpa_name().ok()?.addr();
    // Only in full, and only in the one spelling: no leading zeros or signs.
    (Name::from(ip) == *name).then_some(ip)
}

pub(super) fn address(owner: &Name, ttl: u32, ip: IpAddr) -> Record {
    let data = match ip {
        IpAddr::V4(ip) => RData::A(A(ip)),
        IpAddr::V6(ip) => RData::AAAA(AAAA(ip)),
    };
    Record::from_rdata(owner.clone(), ttl, data)
}

/// That `apex` has nothing of a type, to be remembered for `ttl`. The other fields are those of RFC 6303 for zones that
/// nobody transfers.
pub(super) fn nothing(apex: &Name, zone: &Zone<'_>, ttl: u32) -> Answer {
    let rname = Name::from_labels(["nobody", "invalid"]).unwrap_or_else(|_| Name::root());
    // Serial numbers wrap around.
    let serial = zone.table.revision() as u32;
    let soa = SOA::new(apex.clone(), rname, serial, 3600, 1200, 604_800, ttl);
    Answer::Nothing(Box::new(Record::from_rdata(apex.clone(), ttl, RData::SOA(soa))))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::model::{HealthCheck, HealthProbe, ServiceName, ServiceSpec};
    use crate::routing::{Change, Outcome, TableHandle};

    pub(in crate::dns) fn upsert(name: &str, vip: Option<&str>, endpoints: &[&str]) -> Change {
        let mut spec = ServiceSpec::new(ServiceName::new(name).unwrap());
        spec.endpoints = endpoints.iter().map(|addr| addr.parse().unwrap()).collect();
        Change::Upsert {
            spec: Arc::new(spec),
            vip: vip.map(|vip| vip.parse().unwrap()),
        }
    }

    pub(in crate::dns) fn remove(name: &str) -> Change {
        Change::Remove(ServiceName::new(name).unwrap())
    }

    pub(in crate::dns) fn commit(handle: &TableHandle, changes: &[Change]) {
        handle.commit(changes).unwrap();
    }

    /// Three services; `my-web` has three endpoints at two addresses of one family and one of the other.
    pub(in crate::dns) fn table() -> TableHandle {
        let handle = TableHandle::default();
        let web = ["10.0.0.1:80", "10.0.0.1:81", "10.0.0.2:80", "[fd00::7]:80"];
        commit(
            &handle,
            &[
                upsert("My-Web", Some("127.77.0.9"), &web),
                upsert("empty_1", Some("127.77.0.10"), &[]),
                upsert("no-vip", None, &["10.0.0.2:90"]),
                upsert("tasks", Some("127.77.0.11"), &[]),
            ],
        );
        handle
    }

    /// The answer's data, sorted, each with its TTL; `-` if upstream is to know.
    fn ask(handle: &TableHandle, name: &str, kind: RecordType) -> String {
        let question = Query::query(Name::from_ascii(name).unwrap(), kind);
        let table = handle.load();
        let zone = Zone {
            table: &table,
            reverse: &ReverseIndex::new(&table),
            has_vips: true,
        };
        match answer(&question, &zone, Instant::now(), &mut fastrand::Rng::with_seed(7)) {
            Answer::NotOurs => "-".to_owned(),
            Answer::Nothing(soa) => format!("nothing for {}", soa.ttl),
            Answer::Records(records) => {
                assert!(records.iter().all(|record| record.name.eq_case(&question.name)));
                let mut shown: Vec<String> = records
                    .iter()
                    .map(|record| format!("{} {}", record.ttl, record.data))
                    .collect();
                shown.sort();
                shown.join(", ")
            }
        }
    }

    #[test]
    fn where_vips_lead_nowhere_names_stand_for_endpoints() {
        let handle = table();
        let table = handle.load();
        let zone = Zone {
            table: &table,
            reverse: &ReverseIndex::new(&table),
            has_vips: false,
        };
        let ask = |name: &str| {
            let question = Query::query(Name::from_ascii(name).unwrap(), RecordType::A);
            match answer(&question, &zone, Instant::now(), &mut fastrand::Rng::with_seed(7)) {
                Answer::Records(mut records) => {
                    records.sort_by_key(|record| record.data.to_string());
                    records
                        .iter()
                        .map(|record| record.data.to_string())
                        .collect::<Vec<_>>()
                        .join(" ")
                }
                other => format!("{other:?}").chars().take(7).collect(),
            }
        };
        assert_eq!(ask("my-web."), "10.0.0.1 10.0.0.2");
        assert_eq!(ask("empty_1."), "Nothing");
        assert_eq!(ask("other."), "NotOurs");
    }

    #[test]
    fn each_name_has_its_answer() {
        use RecordType::{A, AAAA, ANY, HTTPS, MX, PTR, SOA, TXT};
        let handle = table();
        for (name, kind, expect) in [
            ("my-web.", A, "5 127.77.0.9"),
            ("mY-wEB.", A, "5 127.77.0.9"),
            ("my-web.", ANY, "5 127.77.0.9"),
            ("my-web.", AAAA, "nothing for 5"),
            ("my-web.", MX, "nothing for 5"),
            ("my-web.", TXT, "nothing for 5"),
            ("my-web.", HTTPS, "nothing for 5"),
            ("my-web.", SOA, "nothing for 5"),
            ("tasks.my-web.", A, "0 10.0.0.1, 0 10.0.0.2"),
            ("TASKS.My-web.", AAAA, "0 fd00::7"),
            ("tasks.my-web.", ANY, "0 10.0.0.1, 0 10.0.0.2, 0 fd00::7"),
            ("tasks.my-web.", MX, "nothing for 0"),
            ("empty_1.", A, "5 127.77.0.10"),
            ("tasks.empty_1.", A, "nothing for 0"),
            ("no-vip.", A, "0 10.0.0.2"),
            ("no-vip.", AAAA, "nothing for 0"),
            ("tasks.", A, "5 127.77.0.11"),
            ("tasks.tasks.", A, "nothing for 0"),
            ("other.", A, "-"),
            ("tasks.other.", A, "-"),
            ("my-web.example.", A, "-"),
            ("tasks.my-web.example.", A, "-"),
            ("task.my-web.", A, "-"),
            (".", A, "-"),
            ("9.0.77.127.in-addr.arpa.", PTR, "5 My-Web."),
            ("9.0.77.127.IN-ADDR.ARPA.", ANY, "5 My-Web."),
            ("9.0.77.127.in-addr.arpa.", A, "nothing for 5"),
            ("10.0.77.127.in-addr.arpa.", PTR, "5 empty_1."),
            ("1.0.0.10.in-addr.arpa.", PTR, "0 tasks.My-Web."),
            ("1.0.0.10.in-addr.arpa.", TXT, "nothing for 0"),
            ("2.0.0.10.in-addr.arpa.", PTR, "0 tasks.My-Web., 0 tasks.no-vip."),
            (
                "7.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.d.f.ip6.arpa.",
                PTR,
                "0 tasks.My-Web.",
            ),
            ("12.0.77.127.in-addr.arpa.", PTR, "-"),
            ("09.0.77.127.in-addr.arpa.", PTR, "-"),
            ("0.77.127.in-addr.arpa.", PTR, "-"),
            ("x.9.0.77.127.in-addr.arpa.", PTR, "-"),
            ("1.0.0.127.in-addr.arpa.", PTR, "-"),
        ] {
            assert_eq!(ask(&handle, name, kind), expect, "{name} {kind}");
        }
    }

    #[test]
    fn labels_that_are_no_names_are_not_ours() {
        let handle = table();
        let table = handle.load();
        let zone = Zone {
            table: &table,
            reverse: &ReverseIndex::new(&table),
            has_vips: true,
        };
        for labels in [
            &[&b"my-web\0"[..]][..],
            &[b"\xff\xfe"],
            &[b"tasks.my-web"],
            &[b"tasks", b"\xff"],
        ] {
            let question = Query::query(Name::from_labels(labels.iter().copied()).unwrap(), RecordType::A);
            let answer = answer(&question, &zone, Instant::now(), &mut fastrand::Rng::with_seed(7));
            assert_eq!(answer, Answer::NotOurs, "{labels:?}");
        }
    }

    #[test]
    fn only_ready_endpoints_are_named_unless_none_is() {
        let handle = TableHandle::default();
        let mut spec = ServiceSpec::new(ServiceName::new("web").unwrap());
        spec.endpoints = ["10.0.0.1:80", "10.0.0.2:80"].map(|addr| addr.parse().unwrap()).into();
        spec.health = Some(HealthCheck::new(HealthProbe::Tcp));
        let vip = Some("127.77.0.9".parse().unwrap());
        commit(
            &handle,
            &[Change::Upsert {
                spec: Arc::new(spec),
                vip,
            }],
        );
        let tasks = || ask(&handle, "tasks.web.", RecordType::A);
        assert_eq!(tasks(), "0 10.0.0.1, 0 10.0.0.2", "none is ready: better all than none");
        let service = handle.load().service_by_key("web").unwrap().clone();
        service.endpoints()[1].set_probed(true);
        assert_eq!(tasks(), "0 10.0.0.2");
        service.endpoints()[0].set_probed(true);
        (0..3).for_each(|_| {
            service.endpoints()[1].report(Outcome::Failed(std::io::ErrorKind::ConnectionRefused), Instant::now())
        });
        assert_eq!(tasks(), "0 10.0.0.1");
        assert_eq!(ask(&handle, "web.", RecordType::A), "5 127.77.0.9");
        assert_eq!(
            ask(&handle, "2.0.0.10.in-addr.arpa.", RecordType::PTR),
            "0 tasks.web.",
            "whose it is does not depend on its health"
        );
    }

    #[test]
    fn the_order_of_addresses_is_random() {
        let handle = TableHandle::default();
        let endpoints: Vec<String> = (0..6).map(|i| format!("10.0.0.{i}:80")).collect();
        let endpoints: Vec<&str> = endpoints.iter().map(String::as_str).collect();
        commit(&handle, &[upsert("web", None, &endpoints)]);
        let table = handle.load();
        let zone = Zone {
            table: &table,
            reverse: &ReverseIndex::default(),
            has_vips: true,
        };
        let question = Query::query(Name::from_ascii("tasks.web.").unwrap(), RecordType::A);
        let mut rng = fastrand::Rng::with_seed(1);
        let mut firsts = std::collections::BTreeSet::new();
        for _ in 0..200 {
            let Answer::Records(records) = answer(&question, &zone, Instant::now(), &mut rng) else {
                panic!("no records");
            };
            assert_eq!(records.len(), 6);
            firsts.insert(records[0].data.to_string());
        }
        assert_eq!(firsts.len(), 6);
    }

    #[test]
    fn an_address_of_many_services_has_a_bounded_number_of_names() {
        let handle = TableHandle::default();
        let changes: Vec<Change> = (0..100)
            .map(|i| upsert(&format!("s{i}"), None, &["127.0.0.1:9001"]))
            .collect();
        commit(&handle, &changes);
        let names = ask(&handle, "1.0.0.127.in-addr.arpa.", RecordType::PTR);
        assert_eq!(names.split(", ").count(), MAX_NAMES);
    }

    #[test]
    fn an_index_that_is_behind_names_nobody_who_is_gone() {
        let handle = table();
        let reverse = ReverseIndex::new(&handle.load());
        commit(&handle, &[remove("no-vip"), upsert("my-web", None, &["10.0.0.3:80"])]);
        let table = handle.load();
        let zone = Zone {
            table: &table,
            reverse: &reverse,
            has_vips: true,
        };
        let name = Name::from_ascii("2.0.0.10.in-addr.arpa.").unwrap();
        let question = Query::query(name, RecordType::PTR);
        let answer = answer(&question, &zone, Instant::now(), &mut fastrand::Rng::with_seed(7));
        assert_eq!(answer, Answer::NotOurs);
    }
}
