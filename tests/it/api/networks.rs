//! Networks: those that are there without being made, who is on one, what is refused, and what nobody uses.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::engine::Engine;
use super::rig::{Rig, service};

fn create(rig: &Rig, name: &str, more: Value) -> String {
    let mut body = json!({ "Name": name, "Driver": "overlay" });
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let reply = rig.post("/networks/create", &body);
    assert_eq!(reply.status, 201, "{}", reply.message());
    reply.json()["Id"].as_str().unwrap().to_owned()
}

fn on_networks(name: &str, networks: &[&str], replicas: u64) -> Value {
    let mut service = service(name, None);
    service["Mode"] = json!({ "Replicated": { "Replicas": replicas } });
    let targets = networks.iter().map(|network| json!({ "Target": network }));
    service["TaskTemplate"]["Networks"] = targets.collect();
    service
}

#[test]
fn those_of_each_node_are_there_as_dockers_clients_ask_for_them() {
    let rig = Rig::swarm();
    for name in ["host", "bridge"] {
        let shown = rig.get(&format!("/networks/{name}?scope=swarm"));
        assert_eq!(shown.status, 200);
        let shown = shown.json();
        for (key, expected) in [
            ("Name", json!(name)),
            ("Scope", json!("swarm")),
            ("Driver", json!(name)),
            ("IPAM", json!({ "Driver": "", "Options": null, "Config": [] })),
            ("Containers", json!(null)),
            ("Options", json!(null)),
            ("Labels", json!({ "com.docker.swarm.predefined": "true" })),
        ] {
            assert_eq!(shown[key], expected, "{name} {key}");
        }
        let refused = rig.post("/networks/create", &json!({ "Name": name, "Driver": "overlay" }));
        assert_eq!(
            (refused.status, refused.message()),
            (409, format!("network with name {name} already exists"))
        );
        let refused = rig.delete(&format!("/networks/{name}"));
        assert_eq!(
            (refused.status, refused.message()),
            (403, format!("{name} is a pre-defined network and cannot be removed"))
        );
    }
    for name in ["none", "default", "nix"] {
        let reply = rig.get(&format!("/networks/{name}?scope=swarm"));
        assert_eq!(
            (reply.status, reply.message()),
            (404, format!("network {name} not found"))
        );
    }
    // They are in no list of the swarm's.
    let listed = rig
        .get("/networks?filters=%7B%22scope%22%3A%5B%22swarm%22%5D%7D")
        .json();
    let names: Vec<&str> = listed
        .as_array()
        .unwrap()
        .iter()
        .map(|network| network["Name"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["ingress"]);
    // The command line asks for it by its name and scope, and makes the service with the id that it is told.
    rig.docker(&[
        "service",
        "create",
        "--detach",
        "--name",
        "agent",
        "--network",
        "host",
        "nginx",
    ]);
    rig.wait_running("agent", 1);
    let task = &rig.get("/tasks").json()[0];
    let attachments = task["NetworksAttachments"].as_array().unwrap();
    assert_eq!(attachments.len(), 1);
    assert_eq!(attachments[0]["Network"]["Spec"]["DriverConfiguration"]["Name"], "host");
    assert_eq!(attachments[0].get("Addresses"), None);
}

#[test]
fn the_engines_ids_of_predefined_networks_are_taken_and_other_networks_of_its_are_not() {
    let engine = Engine::start();
    let rig = Rig::beside(engine.socket());
    assert_eq!(rig.post("/swarm/init", &json!({})).status, 200);
    // As Ansible makes one: by what it found in the list.
    let made = rig.post("/services/create", &on_networks("agent", &["h1"], 1));
    assert_eq!(made.status, 201, "{}", made.message());
    let spec = &rig.get("/services/agent").json()["Spec"];
    assert_eq!(spec["TaskTemplate"]["Networks"], json!([{ "Target": "host" }]));
    let refused = rig.post("/services/create", &on_networks("web", &["mine"], 1));
    assert_eq!(refused.status, 403);
    assert!(
        refused
            .message()
            .starts_with("The network mine cannot be used with services. "),
        "{}",
        refused.message()
    );
    let refused = rig.post("/services/create", &on_networks("web", &["nobodys"], 1));
    assert_eq!(
        (refused.status, refused.message()),
        (404, "network nobodys not found".to_owned())
    );
    // A name is one network's, whoever has it.
    let refused = rig.post("/networks/create", &json!({ "Name": "mine", "Driver": "overlay" }));
    assert_eq!(
        (refused.status, refused.message()),
        (409, "network with name mine already exists".to_owned())
    );
    create(&rig, "ours", json!({}));
    let refused = rig.post("/networks/create", &json!({ "Name": "ours", "Driver": "bridge" }));
    assert_eq!(
        (refused.status, refused.message()),
        (409, "network with name ours already exists".to_owned())
    );
    // Both prune, each its own.
    let pruned = rig.post("/networks/prune", &json!({})).json();
    assert_eq!(pruned, json!({ "NetworksDeleted": ["ours", "of-engine"] }));
}

#[test]
fn containers_outside_of_services_are_told_that_they_cannot_join() {
    let engine = Engine::start();
    let rig = Rig::beside(engine.socket());
    assert_eq!(rig.post("/swarm/init", &json!({})).status, 200);
    create(&rig, "closed", json!({}));
    create(&rig, "open", json!({ "Attachable": true }));
    let (closed, open) = (
        "desc = network closed not manually attachable",
        "cannot join the swarm's networks here",
    );
    let connected = "from its making to its end, or never";
    for (network, status, says, says_of_connecting) in [("closed", 403, closed, closed), ("open", 501, open, connected)]
    {
        for body in [
            json!({ "Image": "a", "HostConfig": { "NetworkMode": network } }),
            json!({ "Image": "a", "networkingConfig": { "EndpointsConfig": { network: { "Aliases": ["x"] } } } }),
        ] {
            let refused = rig.post("/containers/create?name=x", &body);
            assert_eq!(refused.status, status, "{body}");
            assert!(refused.message().contains(says), "{}", refused.message());
        }
        let refused = rig.post(&format!("/networks/{network}/connect"), &json!({ "Container": "c1" }));
        assert_eq!(refused.status, status);
        assert!(refused.message().contains(says_of_connecting), "{}", refused.message());
    }
    // The engine's own are its own, whatever is said of them.
    let body = json!({ "Image": "a", "HostConfig": { "NetworkMode": "mine", "Memory": "much" } });
    let made = rig.post("/containers/create?name=my%20x", &body);
    assert_eq!(
        (made.status, made.json()),
        (201, json!({ "Id": "c9", "Body": body, "Query": "name=my%20x" }))
    );
    assert_eq!(
        rig.post("/networks/mine/connect", &json!({ "Container": "c1" })).status,
        200
    );
}

#[test]
fn a_network_says_who_is_on_it() {
    let rig = Rig::swarm();
    let app = create(&rig, "app", json!({ "Labels": { "a": "b" } }));
    let empty = rig.get("/networks/app").json();
    assert_eq!((&empty["Containers"], empty.get("Peers")), (&json!(null), None));
    rig.post("/services/create", &on_networks("api", &["app"], 2));
    rig.post("/services/create", &on_networks("lone", &[], 1));
    rig.wait_running("api", 2);
    rig.wait_running("lone", 1);
    let tasks = rig.get("/tasks?filters=%7B%22service%22%3A%5B%22api%22%5D%7D").json();
    let of_task = |task: &Value| {
        let name = format!("api.{}.{}", task["Slot"], task["ID"].as_str().unwrap());
        let attached = &task["NetworksAttachments"];
        assert_eq!(
            (&attached[0]["Network"]["ID"], attached[1].is_null()),
            (&json!(app), true)
        );
        let container = task["Status"]["ContainerStatus"]["ContainerID"]
            .as_str()
            .unwrap()
            .to_owned();
        (
            container,
            name,
            attached[0]["Addresses"][0].as_str().unwrap().to_owned(),
        )
    };
    let expected: BTreeSet<_> = tasks.as_array().unwrap().iter().map(of_task).collect();
    assert_eq!(expected.len(), 2);
    let shown = rig.get("/networks/app").json();
    let containers = shown["Containers"].as_object().unwrap();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let found: BTreeSet<_> = containers
        .iter()
        .map(|(id, one)| (id.clone(), text(&one["Name"]), text(&one["IPv4Address"])))
        .collect();
    assert_eq!(found, expected);
    let node = rig.get("/nodes").json()[0].clone();
    assert_eq!(
        shown["Peers"],
        json!([{ "Name": node["ID"], "IP": node["Status"]["Addr"] }])
    );
    assert_eq!(shown.get("Services"), None, "only who asks for it is told");
    let verbose: Value = serde_json::from_str(&rig.docker(&["network", "inspect", "--verbose", "app"])).unwrap();
    let services = verbose[0]["Services"].as_object().unwrap();
    assert_eq!(services.keys().collect::<Vec<_>>(), ["api"]);
    let vip = text(&rig.get("/services/api").json()["Endpoint"]["VirtualIPs"][0]["Addr"]);
    assert_eq!(services["api"]["VIP"].as_str(), vip.split('/').next());
    let addresses = services["api"]["Tasks"].as_array().unwrap().iter();
    let addresses: BTreeSet<_> = addresses
        .map(|task| (text(&task["Name"]), text(&task["EndpointIP"])))
        .collect();
    let bare = |address: &str| address.split('/').next().unwrap().to_owned();
    assert_eq!(
        addresses,
        expected
            .iter()
            .map(|(_, name, address)| (name.clone(), bare(address)))
            .collect()
    );
    for task in services["api"]["Tasks"].as_array().unwrap() {
        let same = containers.values().find(|one| one["Name"] == task["Name"]).unwrap();
        assert_eq!(task["EndpointID"], same["EndpointID"]);
        assert_eq!(task["Info"]["Host IP"], node["Status"]["Addr"]);
    }
}

#[test]
fn what_a_network_cannot_be_here_is_refused_in_words() {
    let rig = Rig::swarm();
    let ipam = |config: Value| json!({ "IPAM": { "Config": config } });
    for (more, status, says) in [
        (
            json!({ "Driver": "macvlan", "Scope": "swarm" }),
            400,
            "driver macvlan in scope swarm: expected overlay",
        ),
        (
            json!({ "Driver": "", "Scope": "swarm" }),
            400,
            "driver bridge in scope swarm: expected overlay",
        ),
        (
            json!({ "Scope": "local" }),
            403,
            "cannot downgrade network scope for overlay networks",
        ),
        (json!({ "EnableIPv6": true }), 400, "EnableIPv6: expected false"),
        (
            json!({ "EnableIPv4": false }),
            400,
            "EnableIPv6: expected false, and EnableIPv4 true",
        ),
        (
            json!({ "IPAM": { "Driver": "nosuch" } }),
            400,
            "error during lookup of plugin nosuch",
        ),
        (
            ipam(json!([{ "Subnet": "10.8.0.0/24" }, { "Subnet": "10.9.0.0/24" }])),
            400,
            "IPAM.Config: 2 subnets",
        ),
        (
            ipam(json!([{ "Subnet": "fd00:1::/64" }])),
            400,
            "invalid subnet fd00:1::/64: expected an IPv4 network",
        ),
        (
            ipam(json!([{ "Subnet": "10.8.0.7/24" }])),
            400,
            "invalid subnet 10.8.0.7/24: it should be 10.8.0.0/24",
        ),
        (
            ipam(json!([{ "Gateway": "10.8.0.1" }])),
            400,
            "invalid subnet : expected an IPv4 network",
        ),
        (
            ipam(json!([{ "Subnet": "10.8.0.0/24", "Gateway": "10.9.0.1" }])),
            400,
            "invalid gateway address 10.9.0.1",
        ),
        (
            ipam(json!([{ "Subnet": "10.8.0.0/24", "IPRange": "10.9.0.0/25" }])),
            400,
            "subnet 10.8.0.0/24 does not contain range 10.9.0.0/25",
        ),
        (
            ipam(json!([{ "Subnet": "10.8.0.0/24", "AuxiliaryAddresses": { "x": "10.9.0.1" } }])),
            400,
            "invalid auxiliary address 10.9.0.1",
        ),
        (
            json!({ "Name": "none" }),
            403,
            "operation is not permitted on predefined none network",
        ),
        (
            json!({ "Name": "ingress" }),
            409,
            "network with name ingress already exists",
        ),
    ] {
        let mut body = json!({ "Name": "net", "Driver": "overlay" });
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let reply = rig.post("/networks/create", &body);
        assert_eq!(reply.status, status, "{more}: {}", reply.message());
        assert!(reply.message().contains(says), "{more}: {}", reply.message());
    }
    assert_eq!(rig.snapshot().networks().count(), 1, "nothing was made of them");
    // What can be had is: addresses of a range, but for those of others.
    let config = json!([{
        "Subnet": "10.8.0.0/24", "IPRange": "10.8.0.64/29", "Gateway": "10.8.0.65", "AuxiliaryAddresses": { "printer": "10.8.0.66" },
    }]);
    create(&rig, "net", ipam(config.clone()));
    assert_eq!(rig.get("/networks/net").json()["IPAM"]["Config"], config);
    rig.post("/services/create", &on_networks("web", &["net"], 2));
    rig.wait_running("web", 2);
    let mut given: BTreeSet<String> = BTreeSet::new();
    for task in rig.get("/tasks").json().as_array().unwrap() {
        given.insert(
            task["NetworksAttachments"][0]["Addresses"][0]
                .as_str()
                .unwrap()
                .to_owned(),
        );
    }
    let vip = rig.get("/services/web").json()["Endpoint"]["VirtualIPs"][0]["Addr"].clone();
    given.insert(vip.as_str().unwrap().to_owned());
    assert_eq!(
        given,
        ["10.8.0.64/24", "10.8.0.67/24", "10.8.0.68/24"]
            .map(str::to_owned)
            .into()
    );
}

#[test]
fn pruning_takes_away_what_nobody_uses() {
    let rig = Rig::swarm();
    for (name, label) in [("used", "keep"), ("old", "keep"), ("spare", "drop"), ("other", "drop")] {
        create(&rig, name, json!({ "Labels": { label: "1" } }));
    }
    rig.post("/services/create", &on_networks("web", &["used"], 1));
    rig.wait_running("web", 1);
    let prune = |filters: &Value| {
        let filters = filters
            .to_string()
            .replace('{', "%7B")
            .replace('}', "%7D")
            .replace('"', "%22");
        rig.post(
            &format!(
                "/networks/prune?filters={}",
                filters.replace('[', "%5B").replace(']', "%5D")
            ),
            &json!({}),
        )
    };
    let refused = prune(&json!({ "dangling": ["true"] }));
    assert_eq!(
        (refused.status, refused.message().to_lowercase()),
        (400, "invalid filter 'dangling'".to_owned())
    );
    let refused = prune(&json!({ "until": ["yesterday"] }));
    assert_eq!(refused.status, 400);
    assert!(
        refused.message().contains("\"yesterday\": expected"),
        "{}",
        refused.message()
    );
    // Nothing is that old.
    assert_eq!(
        prune(&json!({ "until": ["1h30m"] })).json(),
        json!({ "NetworksDeleted": null })
    );
    assert_eq!(
        prune(&json!({ "label": ["keep"] })).json(),
        json!({ "NetworksDeleted": ["old"] })
    );
    assert_eq!(
        prune(&json!({ "label!": ["drop=1"] })).json(),
        json!({ "NetworksDeleted": null })
    );
    let said = rig.docker(&["network", "prune", "--force"]);
    let said: BTreeSet<&str> = said.lines().collect();
    assert_eq!(said, BTreeSet::from(["Deleted Networks:", "other", "spare"]));
    let left = rig.docker(&["network", "ls", "--format", "{{.Name}}"]);
    assert_eq!(
        left.lines().collect::<BTreeSet<_>>(),
        BTreeSet::from(["ingress", "used"])
    );
    let refused = rig.delete("/networks/used");
    assert_eq!(refused.status, 400);
    assert!(
        refused.message().contains("is in use by service "),
        "{}",
        refused.message()
    );
}
