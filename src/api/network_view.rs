//! Networks as the Docker API shows them: what they are, who is on them, and how tasks show theirs.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};

use crate::model::swarm::{AttachedContainer, Id, Network, Task, TaskAddress, TaskState};
use crate::store::Snapshot;

/// Networks of each node that are there without being made; each has its name for an id.
pub(super) const PREDEFINED: [&str; 2] = ["bridge", "host"];
const PREDEFINED_LABEL: &str = "com.docker.swarm.predefined";

pub(super) fn network(network: &Network) -> Value {
    json!({
        "Name": network.name,
        "Id": network.id,
        "Created": network.meta.created_at.to_string(),
        "Scope": "swarm",
        "Driver": network.driver,
        "EnableIPv4": true,
        "EnableIPv6": network.ipv6,
        "IPAM": { "Driver": "default", "Options": null, "Config": ipam(network) },
        "Internal": network.is_internal,
        "Attachable": network.is_attachable,
        "Ingress": network.is_ingress,
        "ConfigFrom": { "Network": "" },
        "ConfigOnly": false,
        "Containers": null,
        "Options": network.options,
        "Labels": Some(&network.labels).filter(|labels| !labels.is_empty()),
    })
}

fn ipam(network: &Network) -> Value {
    let Some(subnet) = network.subnet else { return json!([]) };
    let mut config = json!({ "Subnet": subnet });
    if let Some(range) = network.range {
        config["IPRange"] = json!(range);
    }
    if let Some(gateway) = network.gateway {
        config["Gateway"] = json!(gateway);
    }
    if !network.auxiliary.is_empty() {
        config["AuxiliaryAddresses"] = json!(network.auxiliary);
    }
    json!([config])
}

/// The same with the tasks and the other containers that are on it, and their nodes. `is_verbose`: by their services too.
pub(super) fn with_tasks(snapshot: &Snapshot, network: &Network, is_verbose: bool) -> Value {
    let mut all = self::network(network);
    let on_network = |task: &'_ Task| {
        let is_there = task.status.state == TaskState::Running && task.node.is_some();
        let mut addresses = task.addresses.iter().filter(|_| is_there);
        addresses.find(|own| own.network == network.id).cloned()
    };
    let tasks: Vec<(&Task, TaskAddress)> = snapshot
        .tasks()
        .filter_map(|task| Some((&**task, on_network(task)?)))
        .collect();
    let others: Vec<(&AttachedContainer, &TaskAddress)> = snapshot
        .containers()
        .filter(|container| container.network == network.id)
        .filter_map(|container| Some((&**container, container.address.as_ref()?)))
        .collect();
    if tasks.is_empty() && others.is_empty() {
        return all;
    }
    let mut containers = Map::new();
    let mut nodes: BTreeSet<&Id> = BTreeSet::new();
    for (task, own) in &tasks {
        nodes.extend(&task.node);
        let container = task
            .status
            .container
            .as_ref()
            .map_or(task.id.as_str(), |container| &container.id);
        let shown = json!({
            "Name": task.name(),
            "EndpointID": endpoint_id(&network.id, &task.id),
            // Nothing of it is on a link.
            "MacAddress": "",
            "IPv4Address": format!("{}/{}", own.addr, own.prefix),
            "IPv6Address": "",
        });
        containers.insert(container.to_owned(), shown);
    }
    for (container, own) in others {
        nodes.insert(&container.node);
        let shown = json!({
            "Name": container.name,
            "EndpointID": endpoint_id(&network.id, &container.id),
            "MacAddress": "",
            "IPv4Address": format!("{}/{}", own.addr, own.prefix),
            "IPv6Address": "",
        });
        containers.insert(container.container.clone(), shown);
    }
    all["Containers"] = Value::Object(containers);
    let nodes = nodes.into_iter().filter_map(|id| snapshot.node(id.as_str()));
    let peers = nodes.map(|node| json!({ "Name": node.id, "IP": node.addr }));
    all["Peers"] = peers.collect();
    if is_verbose {
        all["Services"] = services(snapshot, network, &tasks);
    }
    all
}

fn services(snapshot: &Snapshot, network: &Network, tasks: &[(&Task, TaskAddress)]) -> Value {
    let mut by_service: BTreeMap<&str, Vec<Value>> = BTreeMap::new();
    for (task, own) in tasks {
        let node = task.node.as_ref().and_then(|node| snapshot.node(node.as_str()));
        let host = node.map(|node| node.addr.to_string()).unwrap_or_default();
        by_service.entry(task.service.as_str()).or_default().push(json!({
            "Name": task.name(),
            "EndpointID": endpoint_id(&network.id, &task.id),
            "EndpointIP": own.addr,
            "Info": { "Host IP": host },
        }));
    }
    let shown = by_service.into_iter().filter_map(|(id, tasks)| {
        let service = snapshot.service(id)?;
        let vip = service.endpoint.vips.iter().find(|vip| vip.network == network.id);
        let vip = vip.map(|vip| vip.addr.to_string()).unwrap_or_default();
        let shown = json!({ "VIP": vip, "Ports": [], "LocalLBIndex": 0, "Tasks": tasks });
        Some((service.name().to_owned(), shown))
    });
    Value::Object(shown.collect())
}

/// The place of a task, or of another container, on a network, by a name of the length that Docker's have.
pub(super) fn endpoint_id(network: &Id, of: &Id) -> String {
    let hash = Sha256::new().chain_update(network.as_str()).chain_update(of.as_str());
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The networks of a task as its container shows them, by name.
pub(super) fn endpoints(snapshot: &Snapshot, task: &Task) -> Map<String, Value> {
    let own = task.addresses.iter().filter_map(|own| {
        let network = snapshot.network(own.network.as_str())?;
        let shown = json!({
            "IPAMConfig": { "IPv4Address": own.addr },
            "Links": null,
            "Aliases": null,
            "MacAddress": "",
            "DriverOpts": null,
            "NetworkID": network.id,
            "EndpointID": endpoint_id(&network.id, &task.id),
            "Gateway": "",
            "IPAddress": own.addr,
            "IPPrefixLen": own.prefix,
            "IPv6Gateway": "",
            "GlobalIPv6Address": "",
            "GlobalIPv6PrefixLen": 0,
        });
        Some((network.name.clone(), shown))
    });
    own.collect()
}

/// A network that is there on each node without being made.
pub(super) fn predefined(name: &str) -> Value {
    json!({
        "Name": name,
        "Id": name,
        "Created": "0001-01-01T00:00:00Z",
        "Scope": "swarm",
        "Driver": name,
        "EnableIPv4": true,
        "EnableIPv6": false,
        "IPAM": { "Driver": "", "Options": null, "Config": [] },
        "Internal": false,
        "Attachable": false,
        "Ingress": false,
        "ConfigFrom": { "Network": "" },
        "ConfigOnly": false,
        "Containers": null,
        "Options": null,
        "Labels": { PREDEFINED_LABEL: "true" },
    })
}

/// The networks of a task with its addresses; those of its node last, and without.
pub(super) fn attachments(snapshot: &Snapshot, task: &Task) -> Vec<Value> {
    let own = task.addresses.iter().map(|own| {
        let network = snapshot.network(own.network.as_str());
        json!({
            "Network": network.map_or_else(|| json!({ "ID": own.network }), |network| attached(network)),
            "Addresses": [format!("{}/{}", own.addr, own.prefix)],
        })
    });
    let targets = task
        .spec
        .networks
        .iter()
        .flatten()
        .filter_map(|network| network.target.as_deref());
    let predefined = targets.filter(|target| PREDEFINED.contains(target)).map(|name| {
        let spec = json!({
            "Name": name,
            "Labels": { PREDEFINED_LABEL: "true" },
            "DriverConfiguration": { "Name": name },
            "Scope": "swarm",
        });
        let driver = json!({ "Name": name });
        json!({ "Network": { "ID": name, "Spec": spec, "DriverState": driver, "IPAMOptions": { "Driver": {} } } })
    });
    own.chain(predefined).collect()
}

/// A network as tasks show it, which is another shape than its own.
fn attached(network: &Network) -> Value {
    json!({
        "ID": network.id,
        "Version": { "Index": network.meta.version },
        "CreatedAt": network.meta.created_at.to_string(),
        "UpdatedAt": network.meta.updated_at.to_string(),
        "Spec": {
            "Name": network.name,
            "Labels": network.labels,
            "DriverConfiguration": { "Name": network.driver },
            "Internal": network.is_internal,
            "Attachable": network.is_attachable,
            "Ingress": network.is_ingress,
            "IPAMOptions": { "Driver": { "Name": "default" } },
            "Scope": "swarm",
        },
        "DriverState": { "Name": network.driver, "Options": network.options },
        "IPAMOptions": { "Driver": { "Name": "default" }, "Configs": ipam(network) },
    })
}
