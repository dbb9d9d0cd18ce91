//! Services of a file whose endpoints are published ports of the file: a chain is well, one that leads back into itself is
//! not. Pure, but for what the node's own addresses are.

use std::net::{IpAddr, SocketAddr};

use crate::model::{PublishedPort, ServiceName, ServiceSpec};

/// Services that would connect to themselves.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("service {service}: endpoints: {addr} {way}: expected an address that something else answers at")]
pub struct Loop {
    service: ServiceName,
    addr: SocketAddr,
    way: String,
}

/// The first service that leads back to itself. `is_own`: whether an address is one of this node.
pub(super) fn find(specs: &[&ServiceSpec], is_own: impl Fn(IpAddr) -> bool) -> Result<(), Loop> {
    let edges: Vec<Vec<(SocketAddr, usize)>> = specs.iter().map(|spec| edges_of(spec, specs, &is_own)).collect();
    for (start, spec) in specs.iter().enumerate() {
        for &(addr, first) in &edges[start] {
            if leads_to(first, start, &edges) {
                let way = match first == start {
                    true => "is a published port of the service itself".to_owned(),
                    false => format!(
                        "is a published port of service {}, whose endpoints lead back here",
                        specs[first].name
                    ),
                };
                return Err(Loop {
                    service: spec.name.clone(),
                    addr,
                    way,
                });
            }
        }
    }
    Ok(())
}

/// The services whose published ports are endpoints of `spec`.
fn edges_of(spec: &ServiceSpec, specs: &[&ServiceSpec], is_own: &impl Fn(IpAddr) -> bool) -> Vec<(SocketAddr, usize)> {
    let mut edges = Vec::new();
    for endpoint in spec.endpoints.iter().filter(|endpoint| endpoint.netns.is_none()) {
        let ip = endpoint.addr.ip().to_canonical();
        let ports = match endpoint.addr.port() {
            0 => spec.vip_ports(),
            port => vec![port],
        };
        for port in ports {
            let answers = |published: &&PublishedPort| {
                published.published == port
                    && match published.bind {
                        None => is_own(ip),
                        Some(bind) => bind == ip || ip.is_unspecified() && bind.is_loopback(),
                    }
            };
            let addr = SocketAddr::new(ip, port);
            let answering = specs.iter().position(|other| other.publish.iter().any(|p| answers(&p)));
            edges.extend(answering.map(|other| (addr, other)));
        }
    }
    edges
}

fn leads_to(from: usize, to: usize, edges: &[Vec<(SocketAddr, usize)>]) -> bool {
    let mut seen = vec![false; edges.len()];
    let mut open = vec![from];
    while let Some(at) = open.pop() {
        if at == to {
            return true;
        }
        if !std::mem::replace(&mut seen[at], true) {
            open.extend(edges[at].iter().map(|(_, next)| *next));
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judge(text: &str) -> Result<(), String> {
        let specs = crate::source::file::parse(text).unwrap();
        let specs: Vec<&ServiceSpec> = specs.iter().collect();
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
}
