//! Each error that one node can make, in Docker's words and with Docker's status.

use serde_json::{Value, json};

use super::rig::{Rig, service};

const NO_SWARM: &str = "This node is not a swarm manager. Use \"docker swarm init\" or \"docker swarm join\" to connect \
                        this node to swarm and try again.";

/// That each request is answered so: method, path, body, status, and words that the message has.
fn check(rig: &Rig, table: &[(&str, &str, Value, u16, &str)]) {
    for (method, path, body, status, words) in table {
        let path = &path.replace('{', "%7B").replace('}', "%7D").replace('"', "%22");
        let reply = rig.ask(method, path, (!body.is_null()).then_some(body));
        let what = format!("{method} {path} {body}");
        assert_eq!(reply.status, *status, "{what}: {reply:?}");
        // Anything else, a charset included, and the command line shows the JSON itself.
        assert_eq!(reply.headers["content-type"], "application/json", "{what}");
        let message = reply.message();
        assert!(message.contains(words), "{what}: {message}");
    }
}

#[test]
fn without_a_swarm() {
    let rig = Rig::up();
    let body = service("web", None);
    let not_part = "This node is not part of a swarm";
    check(
        &rig,
        &[
            ("GET", "/swarm", Value::Null, 503, NO_SWARM),
            ("GET", "/swarm/unlockkey", Value::Null, 503, NO_SWARM),
            ("POST", "/swarm/update?version=1", json!({}), 503, NO_SWARM),
            ("POST", "/swarm/leave", Value::Null, 503, not_part),
            ("POST", "/swarm/leave?force=1", Value::Null, 503, not_part),
            ("GET", "/services", Value::Null, 503, NO_SWARM),
            ("GET", "/services/web", Value::Null, 503, NO_SWARM),
            ("POST", "/services/create", body.clone(), 503, NO_SWARM),
            ("POST", "/services/web/update?version=1", body, 503, NO_SWARM),
            ("DELETE", "/services/web", Value::Null, 503, NO_SWARM),
            ("GET", "/services/web/logs?stdout=1", Value::Null, 503, NO_SWARM),
            ("GET", "/tasks", Value::Null, 503, NO_SWARM),
            ("GET", "/tasks/x", Value::Null, 503, NO_SWARM),
            ("GET", "/tasks/x/logs?stdout=1", Value::Null, 503, NO_SWARM),
            ("GET", "/nodes", Value::Null, 503, NO_SWARM),
            ("GET", "/nodes/x", Value::Null, 503, NO_SWARM),
            ("DELETE", "/nodes/x", Value::Null, 503, NO_SWARM),
            (
                "POST",
                "/nodes/x/update?version=1",
                json!({ "Role": "manager", "Availability": "active" }),
                503,
                NO_SWARM,
            ),
            ("GET", "/configs", Value::Null, 503, NO_SWARM),
            ("GET", "/secrets/x", Value::Null, 503, NO_SWARM),
            (
                "POST",
                "/configs/create",
                json!({ "Name": "c", "Data": "YQ==" }),
                503,
                NO_SWARM,
            ),
            ("DELETE", "/secrets/x", Value::Null, 503, NO_SWARM),
            (
                "POST",
                "/secrets/x/update?version=1",
                json!({ "Name": "x" }),
                503,
                NO_SWARM,
            ),
            (
                "POST",
                "/networks/create",
                json!({ "Name": "n", "Driver": "overlay" }),
                403,
                NO_SWARM,
            ),
            ("GET", "/networks/n", Value::Null, 404, "network n not found"),
        ],
    );
    assert_eq!(rig.get("/networks").json(), json!([]));
    assert_eq!(rig.get("/info").json()["Swarm"]["LocalNodeState"], "inactive");
    std::fs::write(rig.dir.path().join("stack.yml"), "services: {web: {image: nginx}}").unwrap();
    let said = rig.docker_fails(&["service", "ls"]);
    assert_eq!(said, format!("Error response from daemon: {NO_SWARM}"));
    assert!(
        rig.docker_fails(&["stack", "deploy", "-c", "stack.yml", "s"])
            .contains("this node is not a swarm manager")
    );
}

#[test]
fn of_the_swarm() {
    let rig = Rig::swarm();
    let already =
        "This node is already part of a swarm. Use \"docker swarm leave\" to leave this swarm and join another one.";
    let spec = rig.get("/swarm").json();
    let version = spec["Version"]["Index"].as_u64().unwrap();
    let path = format!("/swarm/update?version={version}");
    check(
        &rig,
        &[
            ("POST", "/swarm/init", json!({}), 503, already),
            (
                "POST",
                "/swarm/join",
                json!({ "RemoteAddrs": ["192.0.2.1:2377"] }),
                503,
                already,
            ),
            (
                "POST",
                "/swarm/leave",
                Value::Null,
                503,
                "You are attempting to leave the swarm on a node that is participating as a manager. Removing the last manager \
                 erases all current state of the swarm. Use `--force` to ignore this message.",
            ),
            ("POST", "/swarm/unlock", json!({ "UnlockKey": "x" }), 409, "not locked"),
            (
                "POST",
                "/swarm/update?version=x",
                json!({}),
                400,
                "invalid swarm version 'x'",
            ),
            ("POST", "/swarm/update", json!({}), 400, "invalid swarm version ''"),
            (
                "POST",
                "/swarm/update?version=9999",
                json!({}),
                500,
                "update out of sequence",
            ),
            (
                "POST",
                &format!("{path}&rotateWorkerToken=maybe"),
                json!({}),
                400,
                "invalid value for rotateWorkerToken: maybe",
            ),
            (
                "POST",
                &path,
                json!({ "Name": "other" }),
                400,
                "swarm spec must be named \"default\"",
            ),
            ("GET", "/swarm/nothing", Value::Null, 404, "page not found"),
            ("POST", "/swarm", json!({}), 404, "page not found"),
        ],
    );
    let fresh = Rig::up();
    check(
        &fresh,
        &[
            ("POST", "/swarm/join", json!({}), 501, "docker swarm init"),
            (
                "POST",
                "/swarm/unlock",
                json!({}),
                503,
                "This node is not part of a swarm",
            ),
            (
                "POST",
                "/swarm/init",
                json!({ "Availability": "off" }),
                400,
                "invalid Availability: \"off\"",
            ),
            (
                "POST",
                "/swarm/init",
                json!({ "AdvertiseAddr": "nowhere:x" }),
                400,
                "advertise address must be a non-zero IP address or network interface (with optional port number)",
            ),
            (
                "POST",
                "/swarm/init",
                json!({ "SubnetSize": 30 }),
                400,
                "invalid SubnetSize 30",
            ),
            (
                "POST",
                "/swarm/init",
                json!({ "DefaultAddrPool": ["10.0.0.0"] }),
                400,
                "\"10.0.0.0\"",
            ),
            (
                "POST",
                "/swarm/init",
                json!({ "DataPathPort": 80 }),
                400,
                "invalid DataPathPort 80",
            ),
            ("POST", "/swarm/init", json!({ "Spec": 7 }), 400, "Spec"),
        ],
    );
    assert!(
        fresh
            .docker_fails(&["swarm", "join", "--token", "SWMTKN-1-a-b", "192.0.2.1:2377"])
            .contains("docker swarm init")
    );
    assert_eq!(fresh.snapshot().revision(), 0, "what was refused changed nothing");
}

#[test]
fn of_services() {
    let rig = Rig::swarm();
    let created = rig.post("/services/create", &service("web", Some(8080)));
    assert_eq!(created.status, 201);
    let id = created.json()["ID"].as_str().unwrap().to_owned();
    assert_eq!(rig.post("/services/create", &service("other", Some(9090))).status, 201);
    let version = rig.get("/services/web").json()["Version"]["Index"].as_u64().unwrap();
    let update = format!("/services/web/update?version={version}");
    let with = |path: &[&str], value: Value| {
        let mut body = service("web", Some(8080));
        let (last, before) = path.split_last().unwrap();
        let mut at = &mut body;
        for key in before {
            at = &mut at[*key];
        }
        at[*last] = value;
        body
    };
    let named = |name: &str| service(name, None);
    let container = |key: &str, value: Value| with(&["TaskTemplate", "ContainerSpec", key], value);
    let ports = |ports: Value, mode: &str| with(&["EndpointSpec"], json!({ "Ports": ports, "Mode": mode }));
    let taken = format!("port '8080' is already in use by service 'web' ({id}) as an ingress port");
    let dns = "name must be valid as a DNS name component";
    let create = "/services/create";
    check(
        &rig,
        &[
            (
                "POST",
                create,
                named("web"),
                409,
                "name conflicts with an existing object: service web already exists",
            ),
            (
                "POST",
                create,
                named("WEB"),
                409,
                "name conflicts with an existing object: service WEB already exists",
            ),
            ("POST", create, service("third", Some(8080)), 400, &taken),
            ("POST", create, named("a b"), 400, dns),
            ("POST", create, named("-a"), 400, dns),
            ("POST", create, named("ä"), 400, dns),
            (
                "POST",
                create,
                named(&"a".repeat(64)),
                400,
                "name must be 63 characters or fewer",
            ),
            (
                "POST",
                create,
                ports(
                    json!([{ "TargetPort": 80, "PublishedPort": 1 }, { "TargetPort": 81, "PublishedPort": 1 }]),
                    "vip",
                ),
                400,
                "EndpointSpec: duplicate published ports provided",
            ),
            (
                "POST",
                create,
                ports(json!([{ "TargetPort": 80, "PublishedPort": 1 }]), "dnsrr"),
                400,
                "EndpointSpec: port published with ingress mode can't be used with dnsrr mode",
            ),
            (
                "POST",
                create,
                ports(json!([{ "TargetPort": 0 }]), "vip"),
                400,
                "TargetPort 0",
            ),
            (
                "POST",
                create,
                ports(json!([{ "TargetPort": 70_000 }]), "vip"),
                400,
                "TargetPort 70000",
            ),
            (
                "POST",
                create,
                ports(json!([{ "TargetPort": 1, "Protocol": "icmp" }]), "vip"),
                400,
                "EndpointSpec.Ports[0].Protocol",
            ),
            (
                "POST",
                create,
                with(&["Mode"], json!({ "Replicated": {}, "Global": {} })),
                400,
                "must specify only one service mode",
            ),
            (
                "POST",
                create,
                with(&["Mode"], json!({ "ReplicatedJob": { "TotalCompletions": 10_001 } })),
                400,
                "Mode.ReplicatedJob.TotalCompletions 10001: expected at most 10000",
            ),
            (
                "POST",
                create,
                with(&["Mode"], json!({ "GlobalJob": {}, "Replicated": {} })),
                400,
                "must specify only one service mode",
            ),
            (
                "POST",
                create,
                with(&["Mode"], json!({ "Replicated": { "Replicas": -1 } })),
                400,
                "Mode.Replicated.Replicas",
            ),
            (
                "POST",
                create,
                with(&["Mode"], json!({ "Replicated": { "Replicas": 10_001 } })),
                400,
                "Mode.Replicated.Replicas 10001: expected at most 10000",
            ),
            (
                "POST",
                create,
                container("Image", json!("")),
                400,
                "image reference must be provided",
            ),
            (
                "POST",
                create,
                container("Image", json!("No Such")),
                400,
                "\"No Such\" is not a valid repository/tag",
            ),
            (
                "POST",
                create,
                with(&["TaskTemplate"], json!({ "Runtime": "plugin", "PluginSpec": {} })),
                501,
                "only services of containers",
            ),
            (
                "POST",
                create,
                container("Healthcheck", json!({ "Test": ["CMD", "x"], "Interval": 10 })),
                400,
                "Interval in HealthConfig cannot be less than 1ms",
            ),
            (
                "POST",
                create,
                container(
                    "Mounts",
                    json!([{ "Target": "/a", "Type": "tmpfs" }, { "Target": "/a", "Type": "tmpfs" }]),
                ),
                400,
                "duplicate mount point: /a",
            ),
            (
                "POST",
                create,
                container(
                    "Secrets",
                    json!([{ "SecretID": "x", "SecretName": "key", "File": { "Name": "key" } }]),
                ),
                400,
                "secret not found: key",
            ),
            (
                "POST",
                create,
                container(
                    "Configs",
                    json!([{ "ConfigID": "x", "ConfigName": "conf", "File": { "Name": "/c" } }]),
                ),
                400,
                "config not found: conf",
            ),
            (
                "POST",
                create,
                container("Env", json!(["A={{.Nothing}}"])),
                400,
                "{{.Nothing}}",
            ),
            (
                "POST",
                create,
                with(
                    &["TaskTemplate", "Resources"],
                    json!({ "Limits": { "MemoryBytes": 1000 } }),
                ),
                400,
                "Must be at least 4MiB",
            ),
            (
                "POST",
                create,
                with(
                    &["TaskTemplate", "Resources"],
                    json!({ "Reservations": { "NanoCPUs": 10 } }),
                ),
                400,
                "Must be at least 0.001",
            ),
            (
                "POST",
                create,
                with(
                    &["TaskTemplate", "Resources"],
                    json!({ "Reservations": { "GenericResources": [{}] } }),
                ),
                400,
                "generic resource of nothing: expected a DiscreteResourceSpec",
            ),
            (
                "POST",
                create,
                with(
                    &["TaskTemplate", "Placement"],
                    json!({ "Constraints": ["node.role=manager"] }),
                ),
                500,
                "constraint expected one operator from ==, !=",
            ),
            (
                "POST",
                create,
                with(&["TaskTemplate", "Networks"], json!([{ "Target": "nowhere" }])),
                404,
                "network nowhere not found",
            ),
            (
                "POST",
                create,
                with(&["TaskTemplate", "Networks"], json!([{ "Target": "ingress" }])),
                400,
                "Service cannot be explicitly attached to the ingress network \"ingress\"",
            ),
            (
                "POST",
                create,
                with(&["UpdateConfig"], json!({ "Order": "both" })),
                400,
                "UpdateConfig.Order",
            ),
            (
                "POST",
                create,
                with(&["UpdateConfig"], json!({ "MaxFailureRatio": 2 })),
                400,
                "bigger than 1",
            ),
            (
                "POST",
                create,
                with(&["UpdateConfig"], json!({ "Delay": -1 })),
                400,
                "delay cannot be negative",
            ),
            ("POST", create, with(&["TaskTemplate"], json!(7)), 400, "TaskTemplate"),
            (
                "GET",
                "/services/nothing",
                Value::Null,
                404,
                "service nothing not found",
            ),
            (
                "DELETE",
                "/services/nothing",
                Value::Null,
                404,
                "service nothing not found",
            ),
            (
                "GET",
                "/services/nothing/logs?stdout=1",
                Value::Null,
                404,
                "service nothing not found",
            ),
            (
                "POST",
                "/services/nothing/update?version=1",
                named("nothing"),
                404,
                "service nothing not found",
            ),
            ("POST", &update, named("new"), 501, "renaming services is not supported"),
            (
                "POST",
                &update,
                with(&["Mode"], json!({ "Global": {} })),
                501,
                "service mode change is not allowed",
            ),
            (
                "POST",
                &update,
                service("web", Some(9090)),
                400,
                "port '9090' is already in use by service 'other'",
            ),
            (
                "POST",
                "/services/web/update?version=77",
                service("web", Some(8080)),
                500,
                "update out of sequence",
            ),
            (
                "POST",
                "/services/web/update?version=x",
                named("web"),
                400,
                "invalid service version 'x'",
            ),
            (
                "POST",
                "/services/web/update",
                named("web"),
                400,
                "invalid service version ''",
            ),
            (
                "POST",
                &format!("{update}&rollback=next"),
                named("web"),
                400,
                "rollback",
            ),
            (
                "POST",
                &format!("{update}&rollback=previous"),
                named("web"),
                400,
                &format!("service {id} does not have a previous spec"),
            ),
            (
                "POST",
                &format!("{update}&registryAuthFrom=moon"),
                named("web"),
                400,
                "registryAuthFrom",
            ),
            (
                "GET",
                "/services?status=maybe",
                Value::Null,
                400,
                "invalid value for status: maybe",
            ),
            (
                "GET",
                "/services/web?insertDefaults=maybe",
                Value::Null,
                400,
                "invalid value for insertDefaults: maybe",
            ),
            (
                "GET",
                "/services/web/logs",
                Value::Null,
                400,
                "you must choose at least one stream",
            ),
            ("GET", "/services/web/logs?stdout=1&tail=-1", Value::Null, 400, "tail"),
            (
                "GET",
                "/services/web/logs?stdout=1&since=yesterday",
                Value::Null,
                400,
                "since",
            ),
            ("PUT", "/services/web", Value::Null, 404, "page not found"),
            ("GET", "/services/web/more", Value::Null, 404, "page not found"),
        ],
    );
    let now = rig.get("/services/web").json();
    assert_eq!(now["Version"]["Index"], version, "what was refused changed nothing");
    // The beginnings of ids, where there are several.
    for _ in 0..40 {
        rig.post("/services/create", &service("", None));
    }
    let ids: Vec<String> = rig
        .get("/services")
        .json()
        .as_array()
        .unwrap()
        .iter()
        .map(|service| service["ID"].as_str().unwrap()[..1].to_owned())
        .collect();
    let twice = ids
        .iter()
        .find(|id| ids.iter().filter(|other| other == id).count() > 1)
        .unwrap();
    let reply = rig.get(&format!("/services/{twice}"));
    assert_eq!(reply.status, 400);
    let message = reply.message();
    assert!(
        message.starts_with(&format!("service {twice} is ambiguous (")),
        "{message}"
    );
}

#[test]
fn of_everything_else() {
    let rig = Rig::swarm();
    let node = rig.get("/nodes").json()[0].clone();
    let (id, version) = (node["ID"].as_str().unwrap(), node["Version"]["Index"].as_u64().unwrap());
    let update = format!("/nodes/{id}/update?version={version}");
    assert_eq!(
        rig.post("/configs/create", &json!({ "Name": "conf", "Data": "YQ==" }))
            .status,
        201
    );
    assert_eq!(
        rig.post("/secrets/create", &json!({ "Name": "key", "Data": "YQ==" }))
            .status,
        201
    );
    let network = rig
        .post("/networks/create", &json!({ "Name": "net", "Driver": "overlay" }))
        .json();
    let network = network["Id"].as_str().unwrap();
    let of = |kind: &str| rig.get(&format!("/{kind}")).json()[0].clone();
    let (config, secret) = (of("configs"), of("secrets"));
    assert_eq!(secret["Spec"].get("Data"), None, "a secret never comes back out");
    let mut user = service("web", None);
    user["TaskTemplate"]["ContainerSpec"]["Configs"] = json!([{ "ConfigID": config["ID"], "ConfigName": "conf", "File": { "Name": "/c", "UID": "0", "GID": "0", "Mode": 292 } }]);
    user["TaskTemplate"]["ContainerSpec"]["Secrets"] = json!([{ "SecretID": secret["ID"], "SecretName": "key", "File": { "Name": "key", "UID": "0", "GID": "0", "Mode": 292 } }]);
    user["TaskTemplate"]["Networks"] = json!([{ "Target": "net" }]);
    let service_id = rig.post("/services/create", &user).json()["ID"]
        .as_str()
        .unwrap()
        .to_owned();
    let version_of = |object: &Value| object["Version"]["Index"].as_u64().unwrap();
    let of_config = format!("/configs/conf/update?version={}", version_of(&config));
    let of_secret = format!("/secrets/key/update?version={}", version_of(&secret));
    let big = "A".repeat(4 * 341_334);
    let manager = json!({ "Role": "manager", "Availability": "active" });
    check(
        &rig,
        &[
            ("GET", "/nodes/nobodys", Value::Null, 404, "node nobodys not found"),
            (
                "DELETE",
                &format!("/nodes/{id}"),
                Value::Null,
                400,
                "must be demoted to worker before removal",
            ),
            (
                "DELETE",
                &format!("/nodes/{id}?force=1"),
                Value::Null,
                400,
                "must be demoted to worker before removal",
            ),
            (
                "POST",
                &update,
                json!({ "Role": "worker", "Availability": "active" }),
                400,
                "attempting to demote the last manager of the swarm",
            ),
            (
                "POST",
                &update,
                json!({ "Role": "king", "Availability": "active" }),
                400,
                "Role",
            ),
            (
                "POST",
                &update,
                json!({ "Role": "manager", "Availability": "off" }),
                400,
                "Availability",
            ),
            ("POST", &update, json!({ "Role": "manager" }), 400, "Availability"),
            (
                "POST",
                &format!("/nodes/{id}/update?version=999"),
                manager.clone(),
                500,
                "update out of sequence",
            ),
            (
                "POST",
                &format!("/nodes/{id}/update?version=x"),
                manager.clone(),
                400,
                "invalid node version 'x'",
            ),
            (
                "POST",
                "/nodes/nobodys/update?version=1",
                manager,
                404,
                "node nobodys not found",
            ),
            ("GET", "/tasks/nobodys", Value::Null, 404, "task nobodys not found"),
            (
                "GET",
                "/tasks?filters={\"service\":[\"x\"]}",
                Value::Null,
                404,
                "service x not found",
            ),
            (
                "GET",
                "/tasks?filters={\"node\":[\"nobodys\"]}",
                Value::Null,
                404,
                "node nobodys not found",
            ),
            (
                "GET",
                "/tasks?filters={\"desired-state\":[\"x\"]}",
                Value::Null,
                500,
                "Invalid desired-state filter: 'x'",
            ),
            (
                "GET",
                "/nodes?filters={\"role\":[\"king\"]}",
                Value::Null,
                500,
                "Invalid role filter: 'king'",
            ),
            ("GET", "/configs/nobodys", Value::Null, 404, "config nobodys not found"),
            ("GET", "/secrets/nobodys", Value::Null, 404, "secret nobodys not found"),
            (
                "POST",
                "/configs/create",
                json!({ "Name": "CONF", "Data": "YQ==" }),
                409,
                "config CONF already exists",
            ),
            (
                "POST",
                "/secrets/create",
                json!({ "Name": "key", "Data": "YQ==" }),
                409,
                "secret key already exists",
            ),
            (
                "POST",
                "/configs/create",
                json!({ "Name": "a b", "Data": "YQ==" }),
                400,
                "only 64 [a-zA-Z0-9-_.]",
            ),
            (
                "POST",
                "/configs/create",
                json!({ "Name": "", "Data": "YQ==" }),
                400,
                "name must be provided",
            ),
            (
                "POST",
                "/configs/create",
                json!({ "Name": "c", "Data": "" }),
                400,
                "config data must be larger than 0 and less than 1024000 bytes",
            ),
            (
                "POST",
                "/configs/create",
                json!({ "Name": "c", "Data": big }),
                400,
                "config data must be larger than 0 and less than 1024000 bytes",
            ),
            (
                "POST",
                "/secrets/create",
                json!({ "Name": "c", "Data": &big[..4 * 170_667] }),
                400,
                "secret data must be larger than 0 and less than 512000 bytes",
            ),
            (
                "POST",
                "/configs/create",
                json!({ "Name": "c", "Data": "%" }),
                400,
                "base64",
            ),
            (
                "POST",
                &of_config,
                json!({ "Name": "conf", "Data": "Yg==" }),
                400,
                "only updates to Labels are allowed",
            ),
            (
                "POST",
                &of_config,
                json!({ "Name": "other" }),
                400,
                "only updates to Labels are allowed",
            ),
            (
                "POST",
                &of_secret,
                json!({ "Name": "key", "Data": "Yg==" }),
                400,
                "only updates to Labels are allowed",
            ),
            (
                "POST",
                "/configs/conf/update?version=x",
                json!({ "Name": "conf" }),
                400,
                "invalid config version 'x'",
            ),
            (
                "POST",
                "/configs/conf/update?version=1",
                json!({ "Name": "conf" }),
                500,
                "update out of sequence",
            ),
            (
                "DELETE",
                "/configs/conf",
                Value::Null,
                400,
                "config 'conf' is in use by the following service: web",
            ),
            (
                "DELETE",
                "/secrets/key",
                Value::Null,
                400,
                "secret 'key' is in use by the following service: web",
            ),
            (
                "DELETE",
                "/networks/net",
                Value::Null,
                400,
                &format!("network {network} is in use by service {service_id}"),
            ),
            (
                "DELETE",
                "/networks/nobodys",
                Value::Null,
                404,
                "network nobodys not found",
            ),
            ("DELETE", "/networks/ingress", Value::Null, 400, "ingress"),
            (
                "POST",
                "/networks/create",
                json!({ "Name": "net", "Driver": "overlay" }),
                409,
                "network with name net already exists",
            ),
            (
                "POST",
                "/networks/create",
                json!({ "Name": "a b", "Driver": "overlay" }),
                400,
                "DNS name component",
            ),
            (
                "POST",
                "/networks/create",
                json!({ "Name": "n", "Driver": "overlay", "IPAM": { "Config": [{ "Subnet": "10.0.9.0" }] } }),
                400,
                "10.0.9.0",
            ),
            (
                "POST",
                "/networks/create",
                json!({ "Name": "n", "Driver": "overlay", "IPAM": { "Config": [{ "Subnet": "10.9.0.0/24", "Gateway": "10.8.0.1" }] } }),
                400,
                "10.8.0.1",
            ),
            (
                "POST",
                "/networks/create",
                json!({ "Name": "n", "Driver": "overlay", "Ingress": true }),
                409,
                "ingress",
            ),
            (
                "POST",
                "/networks/create",
                json!({ "Name": "n", "Driver": "overlay", "ConfigOnly": true }),
                501,
                "no Docker Engine",
            ),
            // What tasks have that are processes, and what only an engine could do.
            (
                "GET",
                "/containers/nobodys/json",
                Value::Null,
                404,
                "No such container: nobodys",
            ),
            (
                "POST",
                "/containers/nobodys/exec",
                json!({ "Cmd": ["true"] }),
                404,
                "No such container: nobodys",
            ),
            (
                "GET",
                "/exec/nobodys/json",
                Value::Null,
                404,
                "No such exec instance: nobodys",
            ),
            ("GET", "/containers/nobodys/stats", Value::Null, 501, "no Docker Engine"),
            (
                "GET",
                "/containers/json?filters=%7B%22x%22:[%22y%22]%7D",
                Value::Null,
                400,
                "invalid filter 'x'",
            ),
            (
                "GET",
                "/containers/json?limit=x",
                Value::Null,
                400,
                "invalid limit \"x\"",
            ),
            ("POST", "/build", Value::Null, 501, "no Docker Engine"),
            (
                "GET",
                "/distribution/nginx:latest/json",
                Value::Null,
                501,
                "no Docker Engine",
            ),
            (
                "POST",
                "/networks/create",
                json!({ "Name": "n", "Driver": "bridge" }),
                501,
                "no Docker Engine",
            ),
            // What nobody does.
            ("GET", "/", Value::Null, 404, "page not found"),
            ("GET", "/nothing", Value::Null, 404, "page not found"),
            ("DELETE", "/info", Value::Null, 404, "page not found"),
            ("POST", "/events", Value::Null, 404, "page not found"),
        ],
    );
}

#[test]
fn of_versions() {
    let rig = Rig::swarm();
    for version in ["1.24", "1.30", "1.40", "1.41", "1.47", "1.48"] {
        assert_eq!(rig.get(&format!("/v{version}/services")).status, 200, "{version}");
        assert_eq!(rig.get(&format!("/v{version}/_ping")).status, 200, "{version}");
    }
    check(
        &rig,
        &[
            (
                "GET",
                "/v1.23/services",
                Value::Null,
                400,
                "client version 1.23 is too old. Minimum supported API version is 1.24, please upgrade your client to a newer version",
            ),
            (
                "GET",
                "/v1.99/services",
                Value::Null,
                400,
                "client version 1.99 is too new. Maximum supported API version is 1.48",
            ),
            (
                "GET",
                "/v2.0/services",
                Value::Null,
                400,
                "client version 2.0 is too new",
            ),
            ("GET", "/v1.x/services", Value::Null, 400, "v1.x"),
            ("GET", "/v99999999999.1/services", Value::Null, 400, "v99999999999.1"),
        ],
    );
    let ping = rig.get("/_ping");
    assert_eq!(
        (ping.body.as_slice(), &*ping.headers["api-version"]),
        (&b"OK"[..], "1.48")
    );
    assert_eq!(
        (&*ping.headers["ostype"], &*ping.headers["swarm"]),
        ("linux", "active/manager")
    );
    let head = rig.ask("HEAD", "/_ping", None);
    assert_eq!((head.status, head.body.len()), (200, 0));
    assert_eq!(head.headers["content-length"], "0");
    // Where the status of services did not exist yet.
    rig.post("/services/create", &service("web", None));
    assert!(
        rig.get("/v1.40/services?status=1").json()[0]
            .get("ServiceStatus")
            .is_none()
    );
    assert!(
        rig.get("/v1.41/services?status=1").json()[0]
            .get("ServiceStatus")
            .is_some()
    );
}
