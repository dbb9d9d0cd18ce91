//! Routes of services, judged when they are declared: by the entry points that there are, and by those of other services. Not here:
//! what labels mean (`model::labels`).

use std::collections::{BTreeMap, BTreeSet};

use bollard_stubs::models::EndpointPortConfig;

use crate::api::wire::ApiError;
use crate::model::swarm::{Id, ServiceSpec};
use crate::model::{EntryPointName, EntryPointSpec, RoutePart, RouteSpec, labels};
use crate::store::Snapshot;

/// Errors: a route that no entry point has, that leads to no port, or that is another service's; a published port that is an entry
/// point's. `except`: the service that the spec is of, and what it was, which is not judged again.
pub(super) fn refuse(
    snapshot: &Snapshot,
    entry_points: &[EntryPointSpec],
    spec: &ServiceSpec,
    except: Option<(&Id, &ServiceSpec)>,
) -> Result<(), ApiError> {
    if except.is_none_or(|(_, before)| before.endpoint_spec != spec.endpoint_spec) {
        refuse_ports(entry_points, spec)?;
    }
    let routes = routes_of(spec);
    let is_as_before =
        |(_, before): (&Id, &ServiceSpec)| routes_of(before) == routes && before.endpoint_spec == spec.endpoint_spec;
    if except.is_some_and(is_as_before) {
        return Ok(());
    }
    let targets = targets_of(spec);
    let known: Vec<&str> = entry_points.iter().map(|one| one.name.as_str()).collect();
    for route in &routes {
        if route.target == 0 && targets.len() != 1 {
            return Err(ApiError::bad(format!(
                "label {}={}: expected the label {}, the port that tasks listen on, since the service publishes {}",
                route.said_by,
                route.rule,
                labels::beside(&route.said_by, RoutePart::Port),
                if targets.is_empty() { "none" } else { "several" }
            )));
        }
        let is_unknown = |name: &&EntryPointName| !entry_points.iter().any(|one| one.name == **name);
        let fault = match route.entry_points.iter().find(is_unknown) {
            _ if known.is_empty() => format!(
                "label {}={}: expected an entry point in the configuration, such as [entrypoints.web] with listen = \"0.0.0.0:80\"",
                route.said_by, route.rule
            ),
            Some(unknown) => format!(
                "label {}: there is no entry point {unknown}: expected {}",
                labels::beside(&route.said_by, RoutePart::EntryPoints),
                known.join(", ")
            ),
            None => continue,
        };
        return Err(ApiError::bad(fault));
    }
    for (i, route) in routes.iter().enumerate() {
        let same = |other: &&RouteSpec| {
            let is_shared = entry_points.iter().any(|one| one.takes(route) && one.takes(other));
            is_shared && other.rule.canonical() == route.rule.canonical()
        };
        if let Some(other) = routes[..i].iter().find(same) {
            return Err(ApiError::bad(format!(
                "label {}={}: it is already that of label {}",
                route.said_by, route.rule, other.said_by
            )));
        }
    }
    for service in snapshot
        .services()
        .filter(|service| except.is_none_or(|(id, _)| service.id != *id))
    {
        for (route, theirs) in routes
            .iter()
            .flat_map(|route| routes_of(&service.spec).into_iter().map(move |theirs| (route, theirs)))
        {
            if route.rule.canonical() != theirs.rule.canonical() {
                continue;
            }
            let shared = entry_points.iter().find(|one| one.takes(route) && one.takes(&theirs));
            if let Some(shared) = shared {
                return Err(ApiError::bad(format!(
                    "label {}={}: it is already that of service {} at entry point {}",
                    route.said_by,
                    route.rule,
                    service.name(),
                    shared.name
                )));
            }
        }
    }
    Ok(())
}

/// The ports of tasks that it publishes.
fn targets_of(spec: &ServiceSpec) -> BTreeSet<i64> {
    let ports = spec.endpoint_spec.iter().flat_map(|spec| spec.ports.iter().flatten());
    ports
        .filter(|port| is_tcp(port))
        .filter_map(|port| port.target_port)
        .collect()
}

fn is_tcp(port: &EndpointPortConfig) -> bool {
    port.protocol
        .is_none_or(|protocol| matches!(protocol.to_string().as_str(), "" | "tcp"))
}

fn refuse_ports(entry_points: &[EntryPointSpec], spec: &ServiceSpec) -> Result<(), ApiError> {
    let ports = spec.endpoint_spec.iter().flat_map(|spec| spec.ports.iter().flatten());
    for port in ports {
        let number = port.published_port.and_then(|number| u16::try_from(number).ok());
        let Some(number) = number.filter(|number| is_tcp(port) && *number > 0) else {
            continue;
        };
        if let Some(taken) = entry_points.iter().find(|one| one.is_at(None, number)) {
            return Err(ApiError::invalid(format!(
                "port '{number}' is already in use by entry point '{}', which services share by the label {}",
                taken.name,
                labels::ROUTE
            )));
        }
    }
    Ok(())
}

/// Those that are written well.
fn routes_of(spec: &ServiceSpec) -> Vec<RouteSpec> {
    let all = spec.labels.iter().flatten();
    let ours = all.filter(|(label, _)| labels::is_ours(label));
    let ours: BTreeMap<String, String> = ours.map(|(label, value)| (label.clone(), value.clone())).collect();
    match labels::ask_for_routes(&ours) {
        true => labels::routes(&ours),
        false => Vec::new(),
    }
}
