//! `traefik.tcp`: services of connections, and that a service has routes of connections or of requests. Not here: their routers, which are as
//! those of requests (`routers`).

use std::collections::BTreeMap;

use super::services::{Service, port};
use super::tree::{Label, Options, Tree, flag};
use super::{Kind, Translated};
use crate::model::ProxyProtocol;

/// `traefik.tcp.services.NAME`. What has no counterpart is a fault of every route to it.
pub(super) fn all(tree: &Tree<'_>) -> BTreeMap<String, Service> {
    let named = tree.section("tcp.services").into_iter();
    named.map(|(name, options)| (name, read(&options))).collect()
}

fn read(options: &Options<'_>) -> Service {
    let mut service = Service::default();
    for (option, label) in options {
        if let Err(expected) = take(option, *label, &mut service) {
            service.faults.push(format!("{label}: {expected}"));
        }
    }
    service
}

/// Errors: what was expected, or that there is no counterpart.
fn take(option: &str, label: Label<'_>, service: &mut Service) -> Result<(), String> {
    match option {
        "loadbalancer.server.port" => service.port = Some(port(label.value)?),
        // Where nothing is said, Traefik says version 2.
        "loadbalancer.proxyprotocol" => {
            let is_on = flag(label.value).ok_or("expected true or false")?;
            service.proxy_protocol = service.proxy_protocol.or_else(|| is_on.then_some(ProxyProtocol::V2));
        }
        "loadbalancer.proxyprotocol.version" => {
            service.proxy_protocol = Some(match label.value {
                "1" => ProxyProtocol::V1,
                "2" => ProxyProtocol::V2,
                _ => return Err("expected 1 or 2".to_owned()),
            });
        }
        _ if option.starts_with("loadbalancer.") => return Err("no counterpart".to_owned()),
        _ => return Err("no counterpart: expected loadbalancer".to_owned()),
    }
    Ok(())
}

/// A service is of one mode: where its requests are told apart, connections cannot be its as a whole.
pub(super) fn close_beside_requests(out: &mut Translated) {
    let is_of = |kind: Kind, is_of_connections: bool| is_of_connections == (kind == Kind::Connections);
    let mut open = out.routes.iter().filter(|route| !route.is_closed);
    if !open.any(|route| is_of(Kind::Requests, route.rule.is_of_connections())) {
        return;
    }
    for route in out.routes.iter_mut().filter(|route| !route.is_closed) {
        if is_of(Kind::Connections, route.rule.is_of_connections()) {
            route.close(|_| false);
            out.faults.push(format!(
                "label {}={}: expected routers of one kind, http or tcp, since a service is of one mode: the route is not served",
                route.said_by, route.rule
            ));
        }
    }
}
