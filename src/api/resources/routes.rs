//! Routes of services, judged when they are declared: by the entry points that there are, and by those of other services. Not here:
//! what labels mean (`model::labels`).

use std::collections::BTreeMap;

use crate::api::wire::ApiError;
use crate::model::swarm::{Id, ServiceSpec};
use crate::model::{EntryPointName, EntryPointSpec, RouteSpec, labels};
use crate::store::Snapshot;

/// Errors: a route that no entry point has, or that is another service's; a published port that is an entry point's.
/// `except`: the service that the spec is of, and what it was, which is not judged again.
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
    if except.is_some_and(|(_, before)| routes_of(before) == routes) {
        return Ok(());
    }
    let known: Vec<&str> = entry_points.iter().map(|one| one.name.as_str()).collect();
    for route in &routes {
        let is_unknown = |name: &&EntryPointName| !known.contains(&name.as_str());
        let fault = match route.entry_points.iter().find(is_unknown) {
            _ if known.is_empty() => format!(
                "label {}={}: expected an entry point in the configuration, such as [entrypoints.web] with listen = \"0.0.0.0:80\"",
                labels::ROUTE,
                route.rule
            ),
            Some(unknown) => format!(
                "label anynode.entrypoints: there is no entry point {unknown}: expected {}",
                known.join(", ")
            ),
            None => continue,
        };
        return Err(ApiError::bad(fault));
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
            let shared = entry_points
                .iter()
                .find(|one| route.is_at(&one.name) && theirs.is_at(&one.name));
            if let Some(shared) = shared {
                return Err(ApiError::bad(format!(
                    "label {}={}: it is already that of service {} at entry point {}",
                    labels::ROUTE,
                    route.rule,
                    service.name(),
                    shared.name
                )));
            }
        }
    }
    Ok(())
}

fn refuse_ports(entry_points: &[EntryPointSpec], spec: &ServiceSpec) -> Result<(), ApiError> {
    let ports = spec.endpoint_spec.iter().flat_map(|spec| spec.ports.iter().flatten());
    for port in ports {
        let is_tcp = port.protocol.is_none_or(|protocol| protocol.to_string() != "udp");
        let number = port.published_port.and_then(|number| u16::try_from(number).ok());
        let Some(number) = number.filter(|number| is_tcp && *number > 0) else {
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
    let ours = all.filter(|(label, _)| label.starts_with("anynode."));
    let ours: BTreeMap<String, String> = ours.map(|(label, value)| (label.clone(), value.clone())).collect();
    match ours.contains_key(labels::ROUTE) {
        true => labels::routes(&ours),
        false => Vec::new(),
    }
}
