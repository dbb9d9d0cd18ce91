//! Services of a file whose endpoints are published ports of the file: a chain is well, one that leads back into itself is
//! not. Pure, but for what the node's own addresses are.

use std::collections::{HashMap, HashSet, hash_map};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use crate::model::{EndpointSpec, PublishedPort, ServiceName, ServiceSpec};

/// Services that would connect to themselves.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("service {service}: endpoints: {way}: expected an address that something else answers at")]
pub struct Loop {
    service: ServiceName,
    way: Way,
}

/// How an endpoint leads back to its service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Way {
    addr: SocketAddr,
    is_vip: bool,
    /// `None`: the service itself answers there.
    by: Option<ServiceName>,
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = if self.is_vip { "the VIP" } else { "a published port" };
        match &self.by {
            None => write!(f, "{} is {what} of the service itself", self.addr),
            Some(by) => write!(
                f,
                "{} is {what} of service {by}, whose endpoints lead back here",
                self.addr
            ),
        }
    }
}

/// The first service that leads back to itself. `is_own`: whether an address is one of this node.
pub(super) fn find(specs: &[&ServiceSpec], is_own: impl Fn(IpAddr) -> bool) -> Result<(), Loop> {
    let ways = Ways::new(specs, &[], is_own);
    if !ways.has_loop() {
        return Ok(());
    }
    for (start, spec) in specs.iter().enumerate() {
        let back = ways.edges[start].iter().find(|(_, to)| ways.leads(to.service, start));
        if let Some((addr, to)) = back {
            return Err(Loop {
                service: spec.name.clone(),
                way: ways.described(start, *addr, *to),
            });
        }
    }
    Ok(())
}

/// Which services lead to which.
pub(super) struct Ways<'a, F> {
    specs: &'a [&'a ServiceSpec],
    /// By the port that answers.
    doors: HashMap<u16, Doors>,
    /// For each service the services that answer at its endpoints.
    edges: Vec<Vec<(SocketAddr, Door)>>,
    is_own: F,
}

#[derive(Debug, Clone, Copy)]
struct Door {
    /// `None`: every address of the node.
    ip: Option<IpAddr>,
    is_vip: bool,
    /// Its place in `specs`.
    service: usize,
}

/// Those of one port. Of two that answer at one address the first one declared is meant.
#[derive(Default)]
struct Doors {
    n: usize,
    /// At every address of the node. With each its place in the order.
    everywhere: Option<(usize, Door)>,
    at: HashMap<IpAddr, (usize, Door)>,
    /// The first at an address of loopback.
    on_loopback: Option<(usize, Door)>,
}

impl Doors {
    fn add(&mut self, door: Door) {
        let placed = (self.n, door);
        self.n += 1;
        let Some(ip) = door.ip else {
            self.everywhere.get_or_insert(placed);
            return;
        };
        if ip.is_loopback() {
            self.on_loopback.get_or_insert(placed);
        }
        if let hash_map::Entry::Vacant(vacant) = self.at.entry(ip) {
            vacant.insert(placed);
        }
    }

    fn answering(&self, ip: IpAddr, is_own: impl Fn(IpAddr) -> bool) -> Option<Door> {
        let everywhere = self.everywhere.filter(|_| is_own(ip));
        let on_loopback = self.on_loopback.filter(|_| ip.is_unspecified());
        let all = [everywhere, self.at.get(&ip).copied(), on_loopback];
        let first = all.into_iter().flatten().min_by_key(|(place, _)| *place);
        first.map(|(_, door)| door)
    }
}

impl<'a, F: Fn(IpAddr) -> bool> Ways<'a, F> {
    /// The ways by the endpoints that `specs` have. `vips`: one for each of them, or none.
    pub(super) fn new(specs: &'a [&'a ServiceSpec], vips: &[Ipv4Addr], is_own: F) -> Ways<'a, F> {
        let mut doors: HashMap<u16, Doors> = HashMap::new();
        for (service, spec) in specs.iter().enumerate() {
            for &PublishedPort { bind, published, .. } in &spec.publish {
                doors.entry(published).or_default().add(Door {
                    ip: bind,
                    is_vip: false,
                    service,
                });
            }
            for port in vips.get(service).map(|_| spec.vip_ports()).unwrap_or_default() {
                doors.entry(port).or_default().add(Door {
                    ip: Some(vips[service].into()),
                    is_vip: true,
                    service,
                });
            }
        }
        let mut ways = Ways {
            specs,
            doors,
            edges: Vec::new(),
            is_own,
        };
        let edges_of = |spec: &&ServiceSpec| {
            let reached_here = spec.endpoints.iter().filter(|endpoint| endpoint.netns.is_none());
            reached_here
                .flat_map(|EndpointSpec { addr, .. }| ways.edges_by(spec, *addr))
                .collect()
        };
        let edges = specs.iter().map(edges_of).collect();
        ways.edges = edges;
        ways
    }

    /// Has the service at `from` lead where an endpoint at `addr` does. Errors: it would lead back, and does not.
    pub(super) fn add(&mut self, from: usize, addr: SocketAddr) -> Result<(), Way> {
        let edges = self.edges_by(self.specs[from], addr);
        if let Some((addr, to)) = edges.iter().find(|(_, to)| self.leads(to.service, from)) {
            return Err(self.described(from, *addr, *to));
        }
        self.edges[from].extend(edges);
        Ok(())
    }

    /// What answers where an endpoint of `spec` is; at port 0 that is each target port.
    fn edges_by(&self, spec: &ServiceSpec, addr: SocketAddr) -> Vec<(SocketAddr, Door)> {
        let ip = addr.ip().to_canonical();
        let ports = match addr.port() {
            0 => spec.vip_ports(),
            port => vec![port],
        };
        let edge = |port: u16| {
            let door = self.doors.get(&port)?.answering(ip, &self.is_own)?;
            Some((SocketAddr::new(ip, port), door))
        };
        ports.into_iter().filter_map(edge).collect()
    }

    fn described(&self, from: usize, addr: SocketAddr, to: Door) -> Way {
        Way {
            addr,
            is_vip: to.is_vip,
            by: (to.service != from).then(|| self.specs[to.service].name.clone()),
        }
    }

    /// Whether any service leads back to itself. Time: linear in services and ways.
    fn has_loop(&self) -> bool {
        let mut n_ways_to = vec![0_usize; self.edges.len()];
        let ends = |from: usize| self.edges[from].iter().map(|(_, to)| to.service);
        (0..self.edges.len()).flat_map(ends).for_each(|to| n_ways_to[to] += 1);
        // To whom nothing leads is on no loop, and neither is who is led to by such alone.
        let mut open: Vec<usize> = (0..self.edges.len()).filter(|at| n_ways_to[*at] == 0).collect();
        let mut n_left = self.edges.len();
        while let Some(at) = open.pop() {
            n_left -= 1;
            for to in ends(at) {
                n_ways_to[to] -= 1;
                if n_ways_to[to] == 0 {
                    open.push(to);
                }
            }
        }
        n_left > 0
    }

    /// Time: linear in what `from` leads to.
    fn leads(&self, from: usize, to: usize) -> bool {
        let mut seen = HashSet::new();
        let mut open = vec![from];
        while let Some(at) = open.pop() {
            if at == to {
                return true;
            }
            if seen.insert(at) {
                open.extend(self.edges[at].iter().map(|(_, next)| next.service));
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judge(text: &str) -> Result<(), String> {
        let declared = crate::source::file::parse(text).unwrap();
        let specs: Vec<&ServiceSpec> = declared.iter().map(|it| &it.spec).collect();
        let is_own = |ip: IpAddr| ip.is_loopback() || ip.is_unspecified() || ip == IpAddr::from([192, 0, 2, 1]);
        find(&specs, is_own).map_err(|error| error.to_string())
    }

    fn service(name: &str, publish: &str, endpoint: &str) -> String {
        format!("  {name}: {{ publish: [\"{publish}\"], endpoints: [\"{endpoint}\"] }}\n")
    }

    #[test]
    fn only_what_leads_back_is_a_loop() {
        for (publish, endpoint) in [
            ("8080:80", "127.0.0.1:8080"),
            ("8080:80", "127.3.2.1:8080"),
            ("8080:80", "[::1]:8080"),
            ("8080:80", "192.0.2.1:8080"),
            ("8080:8080", "127.0.0.1"),
            ("192.0.2.1:8080:80", "192.0.2.1:8080"),
        ] {
            let got = judge(&format!("services:\n{}", service("web", publish, endpoint)));
            let error = got.expect_err(publish);
            assert!(
                error.starts_with("service web: endpoints: ") && error.contains("of the service itself: expected"),
                "{error}"
            );
        }
        for (publish, endpoint) in [
            ("8080:80", "127.0.0.1:80"),
            ("8080:80", "192.0.2.2:8080"),
            ("192.0.2.1:8080:80", "127.0.0.1:8080"),
            ("8080:80", "127.0.0.1"),
        ] {
            assert_eq!(
                judge(&format!("services:\n{}", service("web", publish, endpoint))),
                Ok(())
            );
        }
        let chain = service("a", "8080:80", "127.0.0.1:8081") + &service("b", "8081:80", "127.0.0.1:8082");
        let whole = format!("services:\n{chain}{}", service("c", "8082:80", "127.0.0.1:9000"));
        assert_eq!(judge(&whole), Ok(()));
        let back = format!("services:\n{chain}{}", service("c", "8082:80", "127.0.0.1:8080"));
        assert_eq!(
            judge(&back).unwrap_err(),
            "service a: endpoints: 127.0.0.1:8081 is a published port of service b, whose endpoints lead back here: \
             expected an address that something else answers at"
        );
    }
    #[test]
    fn what_a_name_leads_to_may_be_another_service_and_not_the_way_back() {
        let text = format!(
            "services:\n{}{}{}",
            service("a", "8080:80", "a.test:1"),
            service("b", "8081:80", "127.0.0.1:8080"),
            service("c", "8082:80", "c.test"),
        );
        let declared = crate::source::file::parse(&text).unwrap();
        let specs: Vec<&ServiceSpec> = declared.iter().map(|it| &it.spec).collect();
        let vips = [[127, 77, 0, 1], [127, 77, 0, 2], [127, 77, 0, 3]].map(Ipv4Addr::from);
        let mut ways = Ways::new(&specs, &vips, |ip: IpAddr| ip.is_loopback());
        let mut add = |from, addr: &str| ways.add(from, addr.parse().unwrap()).map_err(|way| way.to_string());
        let refused = |way: &str| Err(way.to_owned());
        assert_eq!(add(0, "192.0.2.1:8080"), Ok(()));
        assert_eq!(
            add(0, "127.0.0.1:8080"),
            refused("127.0.0.1:8080 is a published port of the service itself")
        );
        assert_eq!(
            add(0, "127.77.0.1:80"),
            refused("127.77.0.1:80 is the VIP of the service itself")
        );
        assert_eq!(
            add(0, "[::1]:8081"),
            refused("[::1]:8081 is a published port of service b, whose endpoints lead back here")
        );
        assert_eq!(
            add(0, "127.77.0.2:80"),
            refused("127.77.0.2:80 is the VIP of service b, whose endpoints lead back here")
        );
        assert_eq!(
            add(2, "127.77.0.3:0"),
            refused("127.77.0.3:80 is the VIP of the service itself")
        );
        assert_eq!(add(0, "127.0.0.1:8082"), Ok(()));
        assert_eq!(
            add(2, "127.0.0.1:8081"),
            refused("127.0.0.1:8081 is a published port of service b, whose endpoints lead back here")
        );
        assert_eq!(add(1, "127.0.0.1:8082"), Ok(()));
    }

    #[test]
    fn of_several_that_answer_at_an_address_the_first_is_meant() {
        let all = [
            service("a", "8080:80", "127.0.0.1:9000"),
            service("b", "127.0.0.1:8080:80", "127.0.0.1:9000"),
            service("c", "127.0.0.2:8081:80", "127.0.0.1:9000"),
            service("d", "8081:80", "127.0.0.1:9000"),
            service("e", "127.0.0.2:8081:80", "127.0.0.1:9000"),
            service("f", "192.0.2.1:8082:80", "127.0.0.1:9000"),
        ];
        let specs: Vec<ServiceSpec> = all
            .iter()
            .map(|text| {
                let mut declared = crate::source::file::parse(&format!("services:\n{text}")).unwrap();
                declared.remove(0).spec
            })
            .collect();
        let specs: Vec<&ServiceSpec> = specs.iter().collect();
        let ways = Ways::new(&specs, &[], |ip: IpAddr| ip.is_loopback() || ip.is_unspecified());
        for (addr, expected) in [
            ("127.0.0.1:8080", Some(0)),
            ("0.0.0.0:8080", Some(0)),
            ("192.0.2.1:8080", None),
            ("127.0.0.2:8081", Some(2)),
            ("127.0.0.3:8081", Some(3)),
            ("0.0.0.0:8081", Some(2)),
            ("192.0.2.1:8082", Some(5)),
            ("0.0.0.0:8082", None),
            ("127.0.0.1:8083", None),
        ] {
            let found = ways.edges_by(specs[0], addr.parse().unwrap());
            assert_eq!(found.first().map(|(_, door)| door.service), expected, "{addr}");
        }
    }
}
