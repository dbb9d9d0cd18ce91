//! What is of the whole: the heads of answers, the swarm's own address, authority and certificates, `docker ps` of processes.

use anynode::model::swarm::Generic;
use serde_json::{Value, json};

use super::engine::Engine;
use super::rig::{Reply, Rig, service};

/// What clients take from the head of any answer.
fn head(reply: &Reply) -> Vec<&str> {
    let names = ["api-version", "docker-experimental", "ostype", "server"];
    names.iter().map(|name| reply.headers[*name].as_str()).collect()
}

#[test]
fn every_answer_says_the_same_of_who_answers() {
    let engine = Engine::start();
    for rig in [Rig::swarm(), Rig::beside(engine.socket())] {
        let ping = rig.get("/_ping");
        assert_eq!(ping.headers["content-type"], "text/plain; charset=utf-8");
        for (method, path, body) in [
            ("GET", "/_ping", ""),
            ("HEAD", "/_ping", ""),
            ("GET", "/version", ""),
            ("GET", "/info", ""),
            ("GET", "/v1.24/services", ""),
            ("GET", "/v1.99/services", ""),
            ("GET", "/v1.x/services", ""),
            ("GET", "/services/nobody", ""),
            ("GET", "/nothing", ""),
            ("PUT", "/services", ""),
            ("POST", "/services/create", "{"),
            ("POST", "/swarm/join", "{}"),
            ("GET", "/events?until=1", ""),
            // Of the engine, or 501.
            ("GET", "/containers/json", ""),
            ("GET", "/images/json", ""),
            ("GET", "/images/nothing/json", ""),
            ("POST", "/build", ""),
        ] {
            let request = format!(
                "{method} {path} HTTP/1.1\r\nHost: h\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
                body.len()
            );
            let reply = rig.raw(request.as_bytes());
            assert_eq!(head(&reply), head(&ping), "{method} {path}: {reply:?}");
            let is_json = reply.body.first() == Some(&b'{');
            assert!(
                !is_json || reply.headers["content-type"] == "application/json",
                "{method} {path}: {reply:?}"
            );
        }
    }
}

#[test]
fn the_address_may_be_that_of_an_interface() {
    let addr_of = |init: Value| {
        let rig = Rig::up();
        let reply = rig.post("/swarm/init", &init);
        match reply.status {
            200 => rig.get("/nodes").json()[0]["Status"]["Addr"]
                .as_str()
                .unwrap()
                .to_owned(),
            status => format!("{status} {}", reply.message()),
        }
    };
    let listen = "listen address must be an IP address or network interface (with optional port number)";
    let advertise = "advertise address must be a non-zero IP address or network interface (with optional port number)";
    let data_path = "data path address must be a non-zero IP address or network interface (without a port number)";
    for (key, text, expected) in [
        ("AdvertiseAddr", "eth0", "192.0.2.9".to_owned()),
        ("AdvertiseAddr", "eth0:2377", "192.0.2.9".to_owned()),
        ("AdvertiseAddr", "eth1", "2001:db8::9".to_owned()),
        ("AdvertiseAddr", "198.51.100.1", "198.51.100.1".to_owned()),
        ("AdvertiseAddr", "[2001:db8::1]:2377", "2001:db8::1".to_owned()),
        ("ListenAddr", "eth0:2377", "192.0.2.9".to_owned()),
        ("ListenAddr", "0.0.0.0:2377", "192.0.2.7".to_owned()),
        ("DataPathAddr", "eth0", "192.0.2.7".to_owned()),
        (
            "AdvertiseAddr",
            "eth2",
            "400 interface eth2 has more than one IPv4 address (192.0.2.10 and 192.0.2.11)".to_owned(),
        ),
        (
            "ListenAddr",
            "eth3:2377",
            "400 interface eth3 has no usable IPv4 or IPv6 address".to_owned(),
        ),
        ("ListenAddr", "eth9:2377", format!("400 {listen}")),
        ("AdvertiseAddr", "eth9", format!("400 {advertise}")),
        ("AdvertiseAddr", "0.0.0.0:2377", format!("400 {advertise}")),
        ("DataPathAddr", "192.0.2.1:80", format!("400 {data_path}")),
    ] {
        let mut init = json!({ "ListenAddr": "0.0.0.0:2377" });
        init[key] = json!(text);
        assert_eq!(addr_of(init), expected, "{key} {text}");
    }
}

#[test]
fn the_authority_is_shown_and_certificates_live_as_long_as_is_said() {
    let rig = Rig::up();
    rig.docker(&["swarm", "init", "--cert-expiry", "2h", "--advertise-addr", "eth0"]);
    let expiry = || rig.get("/swarm").json()["Spec"]["CAConfig"]["NodeCertExpiry"].clone();
    assert_eq!(expiry(), 7_200_000_000_000_i64);
    let said = rig.docker_fails(&["swarm", "update", "--cert-expiry", "59m"]);
    assert!(said.contains("minimum certificate expiry time is: 1h0m0s"), "{said}");
    rig.docker(&["swarm", "update", "--cert-expiry", "1h"]);
    assert_eq!(expiry(), 3_600_000_000_000_i64);
    let certificate = "-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----";
    assert_eq!(rig.docker(&["swarm", "ca"]), certificate);
    let said = rig.docker_fails(&["swarm", "ca", "--rotate"]);
    assert!(
        said.contains("the swarm's certificate authority cannot be replaced yet"),
        "{said}"
    );
    let (swarm, info, nodes) = (
        rig.get("/swarm").json(),
        rig.get("/info").json(),
        rig.get("/nodes").json(),
    );
    let tls = &swarm["TLSInfo"];
    assert_eq!(tls["CertIssuerSubject"], "c3ViamVjdA==");
    assert_eq!(&info["Swarm"]["Cluster"]["TLSInfo"], tls);
    assert_eq!(&nodes[0]["Description"]["TLSInfo"], tls);
    assert!(
        rig.docker(&["node", "inspect", "self", "--pretty"])
            .contains("Issuer Subject")
    );
    // Nobody is told the key.
    for shown in [&swarm, &info, &nodes] {
        assert!(!shown.to_string().contains("the key"), "{shown}");
    }
    let on_disk =
        std::fs::read(rig.dir.path().join("store")).or_else(|_| std::fs::read(rig.dir.path().join("store/store.redb")));
    let is_there = |needle: &str| {
        on_disk
            .as_ref()
            .is_ok_and(|bytes| bytes.windows(needle.len()).any(|part| part == needle.as_bytes()))
    };
    assert!(!is_there("the key"));
    for (ca, word) in [
        (json!({ "ForceRotate": 1 }), "ForceRotate"),
        (json!({ "SigningCACert": "x" }), "SigningCACert"),
        (
            json!({ "ExternalCAs": [{ "URL": "https://ca.example" }] }),
            "--external-ca",
        ),
    ] {
        let path = format!("/swarm/update?version={}", swarm["Version"]["Index"]);
        let reply = rig.post(&path, &json!({ "CAConfig": ca }));
        assert!(reply.status == 501 && reply.message().contains(word), "{reply:?}");
    }
}

#[test]
fn what_no_node_has_is_waited_for() {
    let rig = Rig::swarm();
    rig.docker(&[
        "service",
        "create",
        "--detach",
        "--name",
        "web",
        "--generic-resource",
        "gpu=1",
        "nginx",
    ]);
    rig.wait_for("the reason", || {
        let tasks = rig.get("/tasks").json();
        let status = &tasks[0]["Status"];
        status["State"] == "pending" && status["Err"] == "no suitable node (insufficient resources on 1 node)"
    });
    rig.docker(&["service", "update", "--detach", "--generic-resource-rm", "gpu", "web"]);
    rig.wait_running("web", 1);
}

#[test]
fn what_a_node_has_of_named_kinds_is_given_to_tasks() {
    let has = |terms: &[&str]| Generic::read(terms.iter().copied()).unwrap();
    let rig = Rig::up();
    *rig.around.generic.lock().unwrap() = has(&["gpu=a", "gpu=b", "ssd=3"]);
    rig.docker(&["swarm", "init"]);
    let named = |value: &str| json!({ "NamedResourceSpec": { "Kind": "gpu", "Value": value } });
    let number = |n: u64| json!({ "DiscreteResourceSpec": { "Kind": "ssd", "Value": n } });
    let all = json!([named("a"), named("b"), number(3)]);
    let node = rig.get("/nodes").json()[0].clone();
    assert_eq!(node["Description"]["Resources"]["GenericResources"], all);
    assert_eq!(rig.get("/info").json()["GenericResources"], all);
    let wants = ["--generic-resource", "gpu=1", "--generic-resource", "ssd=2"];
    let create = |name: &str| {
        rig.docker(
            &[
                &["service", "create", "--detach", "--name", name],
                &wants[..],
                &["nginx"],
            ]
            .concat(),
        );
    };
    let given = |service: &str| {
        let filters = format!("%7B%22service%22:%5B%22{service}%22%5D,%22desired-state%22:%5B%22running%22%5D%7D");
        let tasks = rig.get(&format!("/tasks?filters={filters}")).json();
        tasks[0]["GenericResources"].clone()
    };
    create("one");
    rig.wait_running("one", 1);
    assert_eq!(given("one"), json!([named("a"), number(2)]));
    // There is another of the one kind, and not enough of the other.
    create("two");
    let reason = || rig.docker(&["service", "ps", "two", "--no-trunc", "--format", "{{.Error}}"]);
    rig.wait_for("the reason", || {
        reason().contains("no suitable node (insufficient resources on 1 node)")
    });
    rig.docker(&["service", "update", "--detach", "--generic-resource-rm", "ssd", "two"]);
    rig.wait_running("two", 1);
    assert_eq!(given("two"), json!([named("b")]));
    rig.docker(&["service", "rm", "one"]);
    create("three");
    rig.wait_running("three", 1);
    assert_eq!(given("three"), json!([named("a"), number(2)]));
}

#[test]
fn the_log_driver_of_the_swarm_is_that_of_tasks_that_name_none() {
    let rig = Rig::swarm();
    let swarm = rig.get("/swarm").json();
    let mut spec = swarm["Spec"].clone();
    spec["TaskDefaults"] = json!({ "LogDriver": { "Name": "local", "Options": { "max-size": "1m" } } });
    let path = format!("/swarm/update?version={}", swarm["Version"]["Index"]);
    assert_eq!(rig.post(&path, &spec).status, 200);
    rig.post("/services/create", &service("web", None));
    let mut own = service("own", None);
    own["TaskTemplate"]["LogDriver"] = json!({ "Name": "none" });
    rig.post("/services/create", &own);
    rig.wait_running("own", 1);
    rig.wait_running("web", 1);
    for (name, driver) in [("web", "local"), ("own", "none")] {
        let tasks = rig
            .get(&format!("/tasks?filters=%7B%22service%22:[%22{name}%22]%7D"))
            .json();
        assert_eq!(tasks[0]["Spec"]["LogDriver"]["Name"], driver, "{tasks}");
    }
    // What the service says stays what it said.
    assert_eq!(
        rig.get("/services/web").json()["Spec"]["TaskTemplate"].get("LogDriver"),
        None
    );
}

#[test]
fn processes_are_listed_as_containers_are() {
    let rig = Rig::swarm();
    rig.post("/networks/create", &json!({ "Name": "app", "Driver": "overlay" }));
    let mut body = service("web", Some(8080));
    body["TaskTemplate"]["Networks"] = json!([{ "Target": "app" }]);
    body["TaskTemplate"]["ContainerSpec"]["Labels"] = json!({ "tier": "front" });
    rig.post("/services/create", &body);
    rig.wait_running("web", 1);
    let ps = |args: &[&str]| {
        rig.docker(
            &[
                &[
                    "ps",
                    "--format",
                    "{{.Names}} {{.Image}} {{.State}} {{.Ports}} {{.Networks}}",
                ],
                args,
            ]
            .concat(),
        )
    };
    let task = rig.get("/tasks").json()[0].clone();
    let name = format!("web.1.{}", task["ID"].as_str().unwrap());
    let row = format!("{name} nginx:latest running 80/tcp app");
    assert_eq!(ps(&[]), row);
    for filter in [
        "name=web",
        "label=tier=front",
        "label=com.docker.swarm.service.name=web",
        "network=app",
        "ancestor=nginx",
        "status=running",
    ] {
        assert_eq!(ps(&["--filter", filter]), row, "{filter}");
    }
    for filter in [
        "name=^db",
        "label=tier=back",
        "network=ap",
        "ancestor=httpd",
        "status=exited",
    ] {
        assert_eq!(ps(&["--filter", filter]), "", "{filter}");
    }
    let shown = rig.get("/containers/json").json()[0].clone();
    let addr = task["NetworksAttachments"]
        .as_array()
        .unwrap()
        .iter()
        .find(|of| of["Network"]["Spec"]["Name"] == "app");
    let addr = addr.unwrap()["Addresses"][0]
        .as_str()
        .unwrap()
        .split('/')
        .next()
        .unwrap()
        .to_owned();
    assert_eq!(shown["NetworkSettings"]["Networks"]["app"]["IPAddress"], addr);
    assert!(shown["Status"].as_str().unwrap().starts_with("Up "), "{shown}");
    rig.docker(&["service", "scale", "--detach", "web=0"]);
    rig.wait_for("it to end", || ps(&[]).is_empty());
}
