//! How endpoints are written in a services file: by addresses, or by names whose addresses they are. Pure. Not here: the rest of a
//! service (`parse`), and who knows the addresses of names (`source::names`).

use std::collections::HashSet;
use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::str::FromStr;
use std::sync::Arc;

use serde::Deserialize;
use serde::de::{self, Deserializer, MapAccess, Visitor};

use super::text::Text;
use crate::model::{EndpointName, EndpointSpec, InvalidValue, ServiceSpec, Weight};

/// A service as a file declares it.
#[derive(Debug, Clone, PartialEq)]
pub struct Declared {
    /// With the endpoints that are addresses, and no others.
    pub spec: ServiceSpec,
    /// All endpoints as they stand in the file; empty where all are addresses.
    written: Vec<(Written, Weight)>,
    /// What in it a new file is not to have, and what was expected.
    pub(super) objection: Option<String>,
}

impl Declared {
    /// `spec` with these endpoints. Errors: one is there twice.
    pub(super) fn new(mut spec: ServiceSpec, written: Vec<(Written, Weight)>) -> Result<Declared, String> {
        let mut names = HashSet::new();
        for (written, _) in &written {
            if let Written::Name { name, port } = written
                && !names.insert((name, *port))
            {
                return Err(format!("endpoints: {written} is listed twice: expected it once"));
            }
        }
        let addresses = written.iter().filter_map(|(written, weight)| match written {
            Written::Address(endpoint) => Some((endpoint.clone(), *weight)),
            Written::Name { .. } => None,
        });
        let (endpoints, weights) = addresses.unzip();
        spec.endpoints = endpoints;
        spec.set_weights(weights);
        let has_names = written.iter().any(|(written, _)| written.name().is_some());
        Ok(Declared {
            spec,
            written: if has_names { written } else { Vec::new() },
            objection: None,
        })
    }

    /// The names among its endpoints; one may come several times.
    pub fn names(&self) -> impl Iterator<Item = &EndpointName> {
        self.written.iter().filter_map(|(written, _)| written.name())
    }

    pub fn has_names(&self) -> bool {
        !self.written.is_empty()
    }

    /// The ports that its endpoints name; 0 for one that takes the target port.
    pub(super) fn ports(&self) -> impl Iterator<Item = u16> {
        let of_names = self.written.iter().filter_map(|(written, _)| match written {
            Written::Address(_) => None,
            Written::Name { port, .. } => Some(*port),
        });
        of_names.chain(self.spec.endpoints.iter().map(|endpoint| endpoint.addr.port()))
    }

    /// The one name that all its endpoints are by.
    pub(super) fn only_name(&self) -> Option<&EndpointName> {
        let mut names = self.names();
        let first = names.next()?;
        (self.spec.endpoints.is_empty() && names.all(|name| name == first)).then_some(first)
    }

    /// The service with all its endpoints: in the order of the file, and for each name its addresses in the order of `known`. An
    /// address that comes twice is one endpoint, where it came first. `may_be`: whether an address of a name may be one.
    pub fn resolved<'a>(
        &self,
        known: impl Fn(&EndpointName) -> &'a [IpAddr],
        mut may_be: impl FnMut(&EndpointName, SocketAddr) -> bool,
    ) -> ServiceSpec {
        let mut spec = self.spec.clone();
        if !self.has_names() {
            return spec;
        }
        let declared = self.spec.endpoints.iter().filter(|endpoint| endpoint.netns.is_none());
        let mut taken: HashSet<SocketAddr> = declared.map(|endpoint| endpoint.addr).collect();
        let mut all: Vec<(EndpointSpec, Weight)> = Vec::new();
        for (written, weight) in &self.written {
            match written {
                Written::Address(endpoint) => all.push((endpoint.clone(), *weight)),
                Written::Name { name, port } => {
                    let addresses = known(name).iter().map(|ip| SocketAddr::new(*ip, *port));
                    for addr in addresses {
                        if !taken.contains(&addr) && may_be(name, addr) {
                            taken.insert(addr);
                            all.push((EndpointSpec::at(addr), *weight));
                        }
                    }
                }
            }
        }
        let (endpoints, weights) = all.into_iter().unzip();
        spec.endpoints = endpoints;
        spec.set_weights(weights);
        spec
    }
}

/// An endpoint as it stands in a file.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Written {
    Address(EndpointSpec),
    /// Port 0: whichever target port the client's connection was for.
    Name {
        name: EndpointName,
        port: u16,
    },
}

impl Written {
    fn name(&self) -> Option<&EndpointName> {
        match self {
            Written::Address(_) => None,
            Written::Name { name, .. } => Some(name),
        }
    }
}

impl fmt::Display for Written {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Written::Address(endpoint) => endpoint.fmt(f),
            Written::Name { name, port: 0 } => name.fmt(f),
            Written::Name { name, port } => write!(f, "{name}:{port}"),
        }
    }
}

impl FromStr for Written {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Written, InvalidValue> {
        let in_brackets = text.strip_prefix('[').and_then(|text| text.strip_suffix(']'));
        if let Some(ip) = in_brackets.filter(|ip| ip.parse::<Ipv6Addr>().is_ok()) {
            return ip.parse().map(Written::Address);
        }
        if let Ok(endpoint) = text.parse() {
            return Ok(Written::Address(endpoint));
        }
        let named = || {
            let (name, port) = match text.rsplit_once(':') {
                None => (text, 0),
                Some((name, digits)) => {
                    let is_number = digits.bytes().all(|b| b.is_ascii_digit());
                    let port = digits.parse().ok().filter(|port| *port > 0 && is_number)?;
                    (name, port)
                }
            };
            let name = name.parse().ok()?;
            Some(Written::Name { name, port })
        };
        named().ok_or_else(|| InvalidValue::new(text, EXPECTED))
    }
}

/// Where it may be an address with a port, or one that ends like that: it is read as the latter.
fn ambiguity(text: &str) -> Option<String> {
    let (front, port) = text.rsplit_once(':')?;
    let is_ip = |text: &str| text.parse::<Ipv6Addr>().is_ok();
    let is_ambiguous = is_ip(front) && is_ip(text) && port.parse::<u16>().is_ok();
    is_ambiguous.then(|| format!("endpoints: {}", InvalidValue::new(text, BRACKETS)))
}

const BRACKETS: &str = "brackets around an IPv6 address, such as [::1]:9001, or [::1] for the target port";

const EXPECTED: &str = "an address or the name of a host, with a port from 1 to 65535, such as 127.0.0.1:9001, [::1]:9001 or \
                        db.internal:5432, or without one for the target port; a name has labels of 1 to 63 letters, digits and inner \
                        '-', 253 characters at most, and no number at its end";

/// An endpoint alone, or with the network namespace that its address is of and how much it gets.
pub(super) struct EndpointDto {
    pub(super) written: Written,
    pub(super) weight: Weight,
    pub(super) objection: Option<String>,
}

/// As it stands, and what a new file is not to have in it.
struct Address(Written, Option<String>);

impl FromStr for Address {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Address, InvalidValue> {
        Ok(Address(text.parse()?, ambiguity(text)))
    }
}

impl<'de> Deserialize<'de> for EndpointDto {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<EndpointDto, D::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Whole {
            address: Text<Address>,
            netns: Option<Text<Namespace>>,
            weight: Option<Text<Weight>>,
        }
        struct Endpoint;
        impl<'de> Visitor<'de> for Endpoint {
            type Value = EndpointDto;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an address or a name, or { address: 127.0.0.1:80, netns: /run/netns/x, weight: 1 }")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<EndpointDto, E> {
                let Address(written, objection) = text.parse().map_err(E::custom)?;
                Ok(EndpointDto {
                    written,
                    weight: Weight::default(),
                    objection,
                })
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<EndpointDto, A::Error> {
                let endpoint = Whole::deserialize(de::value::MapAccessDeserializer::new(map))?;
                let Address(written, objection) = endpoint.address.0;
                let written = match (written, endpoint.netns) {
                    (Written::Address(spec), netns) => Written::Address(EndpointSpec {
                        netns: netns.map(|netns| netns.0.0),
                        ..spec
                    }),
                    (written @ Written::Name { .. }, None) => written,
                    (written @ Written::Name { .. }, Some(_)) => {
                        return Err(de::Error::custom(InvalidValue::new(
                            written.to_string(),
                            "an address beside netns: names are resolved on the node's own network",
                        )));
                    }
                };
                Ok(EndpointDto {
                    written,
                    weight: endpoint.weight.map_or_else(Weight::default, |weight| weight.0),
                    objection,
                })
            }
        }
        deserializer.deserialize_any(Endpoint)
    }
}

struct Namespace(Arc<std::path::Path>);

impl FromStr for Namespace {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Namespace, Self::Err> {
        let path = std::path::Path::new(text);
        match path.is_absolute() {
            true => Ok(Namespace(path.into())),
            false => Err(InvalidValue::new(
                text,
                "the whole path of a network namespace, such as /run/netns/x",
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::file::parse;

    fn declared(rest: &str) -> Declared {
        let text = format!("services:\n  web: {{ publish: [\"8080:80\"], {rest} }}\n");
        parse(&text).unwrap().remove(0)
    }

    fn shown(spec: &ServiceSpec) -> String {
        let endpoints = spec.endpoints.iter().enumerate();
        let shown = endpoints.map(|(i, endpoint)| format!("{endpoint}*{}", spec.weight_of(i).get()));
        shown.collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn an_ipv6_address_that_may_end_in_a_port_is_asked_for_brackets() {
        let read = |text: &str| text.parse::<Written>().map(|written| written.to_string());
        for (text, shown) in [
            ("[::1]:9001", "[::1]:9001"),
            ("[::1]", "::1"),
            ("[fd00::1:9001]", "fd00::1:9001"),
            ("fd00::1", "fd00::1"),
            ("::1", "::1"),
            ("fd00:1:2:3:4:5:6:9001", "fd00:1:2:3:4:5:6:9001"),
        ] {
            assert_eq!(read(text).unwrap(), shown);
        }
        for text in ["::1:9001", "fd00::1:80", "fd00::1:2:3"] {
            for endpoint in [format!("\"{text}\""), format!("{{ address: \"{text}\" }}")] {
                let web = declared(&format!("endpoints: [{endpoint}]"));
                assert_eq!(shown(&web.spec), format!("{text}*1"), "as it was read before");
                let said = web.objection.unwrap();
                assert!(said.contains("brackets around an IPv6 address"), "{said}");
            }
        }
        assert_eq!(declared("endpoints: [\"[::1]:9001\", \"fd00::1\"]").objection, None);
        assert!(read("[::]").is_err() && read("[127.0.0.1]").is_err());
    }

    const NO_ADDRESS: &[IpAddr] = &[];

    #[test]
    fn all_addresses_of_a_name_are_endpoints_once_each_with_its_weight() {
        let web = declared(
            "endpoints: [\"10.0.0.9:1\", {address: \"A.test:1\", weight: 3}, \"b.test:1\", b.test, \"10.0.0.1:1\"]",
        );
        assert_eq!(shown(&web.spec), "10.0.0.9:1*1 10.0.0.1:1*1");
        let ips = |text: &[&str]| -> Vec<IpAddr> { text.iter().map(|ip| ip.parse().unwrap()).collect() };
        let (a, b) = (ips(&["10.0.0.1", "10.0.0.2", "::2"]), ips(&["10.0.0.2", "10.0.0.3"]));
        let known = |name: &EndpointName| match name.as_str() {
            "a.test" => a.as_slice(),
            "b.test" => b.as_slice(),
            other => panic!("{other}"),
        };
        assert_eq!(
            shown(&web.resolved(known, |_, _| true)),
            "10.0.0.9:1*1 10.0.0.2:1*3 [::2]:1*3 10.0.0.3:1*1 10.0.0.2*1 10.0.0.3*1 10.0.0.1:1*1"
        );
        let spared = web.resolved(known, |name, addr| name.as_str() == "a.test" && addr.is_ipv6());
        assert_eq!(shown(&spared), "10.0.0.9:1*1 [::2]:1*3 10.0.0.1:1*1");
        assert_eq!(shown(&web.resolved(|_| NO_ADDRESS, |_, _| true)), shown(&web.spec));
        let names: Vec<&str> = web.names().map(EndpointName::as_str).collect();
        assert_eq!(names, ["a.test", "b.test", "b.test"]);
    }

    #[test]
    fn a_vip_answers_the_ports_of_names_before_they_are_known() {
        let ports = |rest: &str| {
            let text = format!("services:\n  web: {{ {rest} }}\n");
            parse(&text).unwrap().remove(0).spec.vip_ports()
        };
        assert_eq!(ports("endpoints: [\"a.test:5432\", \"10.0.0.1:80\"]"), [80, 5432]);
        assert_eq!(ports("endpoints: [\"a.test:5432\"], expose: [1]"), [1]);
        assert_eq!(ports("endpoints: [\"10.0.0.1:80\"]"), [80]);
    }

    #[test]
    fn an_endpoint_that_speaks_tls_is_asked_for_by_its_name() {
        let host = |rest: &str| {
            let spec = declared(rest).spec;
            let ip = IpAddr::from([10, 0, 0, 1]);
            spec.endpoint_tls.server_name_for(&spec.name, ip).to_str().into_owned()
        };
        let with = |endpoints: &str| host(&format!("mode: http, scheme: https, endpoints: [{endpoints}]"));
        assert_eq!(with("\"A.test.:1\", \"a.test.:2\""), "a.test");
        assert_eq!(with("\"a.test:1\", \"b.test:1\""), "web");
        assert_eq!(with("\"a.test:1\", \"10.0.0.1:1\""), "web");
        assert_eq!(with(""), "web");
        let said = "mode: http, scheme: https, endpoint_tls: { server_name: c.test }, endpoints: [\"a.test:1\"]";
        assert_eq!(host(said), "c.test");
    }
}
