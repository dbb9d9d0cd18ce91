//! What the API refuses, in Docker's words, through the command line and as raw HTTP.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use serde_json::{Value, json};

use super::rig::{self, Own, Tasks};

/// An answer's status and body.
fn ask(own: &Own, method: &str, path: &str, body: &str) -> (u16, String) {
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: docker\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    raw(own, format!("{head}{body}").as_bytes())
}

fn raw(own: &Own, bytes: &[u8]) -> (u16, String) {
    let mut stream = UnixStream::connect(own.socket()).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    // It may have heard enough before the end.
    let _ = stream.write_all(bytes);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let status = answer
        .split_whitespace()
        .nth(1)
        .and_then(|status| status.parse().ok())
        .unwrap_or(0);
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    (status, body.trim_end().to_owned())
}

fn message(own: &Own, method: &str, path: &str, body: &Value) -> (u16, String) {
    let (status, body) = ask(own, method, path, &body.to_string());
    let value: Value = serde_json::from_str(&body).unwrap_or_default();
    (status, value["message"].as_str().unwrap_or(&body).to_owned())
}

fn spec(name: &str) -> Value {
    json!({ "Name": name, "TaskTemplate": { "ContainerSpec": { "Image": "nginx:latest" } }, "Mode": { "Replicated": { "Replicas": 0 } } })
}

#[test]
fn what_is_wrong_is_said_in_dockers_words() {
    let Some(mut own) = rig::up("api", Tasks::Processes) else {
        return;
    };
    own.start();
    let no_swarm = "This node is not a swarm manager. Use \"docker swarm init\" or \"docker swarm join\"";
    for path in ["/services", "/tasks", "/nodes", "/configs", "/secrets", "/swarm"] {
        let (status, said) = message(&own, "GET", path, &json!({}));
        assert!(status == 503 && said.starts_with(no_swarm), "{path}: {status} {said}");
    }
    assert!(own.docker_fails(&["service", "ls"]).contains(no_swarm));
    let (status, said) = message(
        &own,
        "POST",
        "/networks/create",
        &json!({ "Name": "n", "Driver": "overlay" }),
    );
    assert!(status == 403 && said.starts_with(no_swarm), "{status} {said}");
    assert!(
        own.docker_fails(&["swarm", "leave"])
            .contains("This node is not part of a swarm")
    );

    own.docker(&["swarm", "init"]);
    assert!(
        own.docker_fails(&["swarm", "init"])
            .contains("This node is already part of a swarm.")
    );
    assert!(
        own.docker_fails(&["swarm", "leave"])
            .contains("You are attempting to leave the swarm on a node")
    );
    assert!(
        own.docker_fails(&[
            "node",
            "demote",
            &own.docker(&["info", "--format", "{{.Swarm.NodeID}}"])
        ])
        .contains("attempting to demote the last manager of the swarm")
    );
    assert!(
        own.docker_fails(&["images"])
            .contains("there is no Docker Engine beside this anynode")
    );
    own.docker(&["config", "create", "c", "/proc/version"]);
    own.docker(&["network", "create", "-d", "overlay", "net"]);
    let web = json!({
        "Name": "web",
        "TaskTemplate": { "ContainerSpec": { "Image": "nginx:latest" }, "Networks": [{ "Target": "net" }] },
        "Mode": { "Replicated": { "Replicas": 0 } },
        "EndpointSpec": { "Ports": [{ "TargetPort": 80, "PublishedPort": 8080 }] },
    });
    let (status, created) = ask(&own, "POST", "/v1.41/services/create", &web.to_string());
    assert_eq!(status, 201, "{created}");
    let id = serde_json::from_str::<Value>(&created).unwrap()["ID"]
        .as_str()
        .unwrap()
        .to_owned();
    let with = |path: &str, value: Value| {
        let mut spec = spec("other");
        *spec
            .pointer_mut(path.rsplit_once('/').unwrap().0)
            .unwrap()
            .as_object_mut()
            .unwrap()
            .entry(path.rsplit('/').next().unwrap())
            .or_insert(Value::Null) = value;
        spec
    };
    for (wrong, status, said) in [
        (
            spec("web"),
            409,
            "name conflicts with an existing object: service web already exists",
        ),
        (spec("WEB"), 409, "already exists"),
        (spec("a b"), 400, "name must be valid as a DNS name component"),
        (spec(&"a".repeat(64)), 400, "name must be 63 characters or fewer"),
        (
            with("/TaskTemplate/ContainerSpec", json!({})),
            400,
            "image reference must be provided",
        ),
        (
            with(
                "/EndpointSpec",
                json!({ "Ports": [{ "TargetPort": 1, "PublishedPort": 8080 }] }),
            ),
            400,
            "port '8080' is already in use by service 'web'",
        ),
        (
            with(
                "/EndpointSpec",
                json!({ "Ports": [{ "TargetPort": 1, "PublishedPort": 9 }, { "TargetPort": 2, "PublishedPort": 9 }] }),
            ),
            400,
            "duplicate published ports provided",
        ),
        (
            with(
                "/EndpointSpec",
                json!({ "Mode": "dnsrr", "Ports": [{ "TargetPort": 1 }] }),
            ),
            400,
            "can't be used with dnsrr mode",
        ),
        (
            with("/EndpointSpec", json!({ "Ports": [{ "TargetPort": 70000 }] })),
            400,
            "TargetPort 70000: expected a port from 1 to 65535",
        ),
        (
            with("/Mode", json!({ "ReplicatedJob": { "TotalCompletions": -1 } })),
            400,
            "Mode.ReplicatedJob.TotalCompletions -1: expected 0 or more",
        ),
        (
            with("/Mode", json!({ "Replicated": {}, "Global": {} })),
            400,
            "must specify only one service mode",
        ),
        (
            with("/TaskTemplate/Placement", json!({ "Constraints": ["node.role"] })),
            500,
            "constraint expected one operator from ==, !=",
        ),
        (
            with("/TaskTemplate/Resources", json!({ "Limits": { "MemoryBytes": 1000 } })),
            400,
            "Must be at least 4MiB",
        ),
        (
            with("/TaskTemplate/Networks", json!([{ "Target": "none-such" }])),
            404,
            "network none-such not found",
        ),
        (
            with("/TaskTemplate/Networks", json!([{ "Target": "ingress" }])),
            400,
            "cannot be explicitly attached to the ingress network",
        ),
        (
            with("/TaskTemplate/ForceUpdate", json!("x")),
            400,
            "TaskTemplate.ForceUpdate",
        ),
    ] {
        let (found, text) = message(&own, "POST", "/services/create", &wrong);
        assert!(found == status && text.contains(said), "{wrong}\n{found} {text}");
    }
    let version = |own: &Own| -> u64 {
        let (_, body) = ask(own, "GET", &format!("/services/{id}"), "");
        serde_json::from_str::<Value>(&body).unwrap()["Version"]["Index"]
            .as_u64()
            .unwrap()
    };
    let update = |query: String, body: &Value| message(&own, "POST", &format!("/services/{id}/update?{query}"), body);
    let now = version(&own);
    for (query, body, status, said) in [
        (
            format!("version={}", now - 1),
            web.clone(),
            500,
            "update out of sequence",
        ),
        ("version=x".to_owned(), web.clone(), 400, "invalid service version 'x'"),
        (
            format!("version={now}&rollback=previous"),
            web.clone(),
            400,
            "does not have a previous spec",
        ),
        (
            format!("version={now}"),
            spec("renamed"),
            501,
            "renaming services is not supported",
        ),
    ] {
        let (found, text) = update(query, &body);
        assert!(found == status && text.contains(said), "{found} {text}");
    }
    // Equal, however it is spelled: no task is new, and there is no update.
    let mut wordy = web.clone();
    wordy["Labels"] = Value::Null;
    wordy["TaskTemplate"]["ContainerSpec"]["Env"] = json!([]);
    wordy["TaskTemplate"]["Placement"] = json!({});
    assert_eq!(update(format!("version={now}"), &wordy).0, 200);
    let (_, body) = ask(&own, "GET", &format!("/services/{id}"), "");
    assert_eq!(
        serde_json::from_str::<Value>(&body).unwrap()["UpdateStatus"],
        Value::Null
    );
    let net = own.docker(&["network", "inspect", "-f", "{{.Id}}", "net"]);
    assert!(
        message(&own, "DELETE", &format!("/networks/{net}"), &json!({}))
            .1
            .contains("is in use by service")
    );

    for (filters, status) in [
        (r#"{"name":{"web":true}}"#, 200),
        (r#"{"name":["web"]}"#, 200),
        (r#"{"nonsense":["web"]}"#, 400),
        ("[", 400),
    ] {
        let encoded: String = filters.bytes().map(|byte| format!("%{byte:02X}")).collect();
        let (found, body) = ask(&own, "GET", &format!("/v1.24/services?filters={encoded}"), "");
        assert!(
            found == status && (status != 200 || body.contains("\"web\"")),
            "{filters}: {found} {body}"
        );
    }
    for (path, status, said) in [
        ("/v1.23/services", 400, "client version 1.23 is too old"),
        ("/v1.99/services", 400, "client version 1.99 is too new"),
        ("/v1.48/services/none", 404, "service none not found"),
        ("/v1.48/swarm/none", 404, "page not found"),
        (
            "/tasks?filters=%7B%22service%22%3A%5B%22none%22%5D%7D",
            404,
            "service none not found",
        ),
        ("/services/web/logs", 400, "you must choose at least one stream"),
    ] {
        let (found, text) = message(&own, "GET", path, &json!({}));
        assert!(found == status && text.contains(said), "{path}: {found} {text}");
    }
    assert!(own.docker(&["config", "inspect", "c"]).contains("\"Data\""));
    std::fs::write(own.dir().join("password"), "hidden").unwrap();
    own.docker(&["secret", "create", "s", "password"]);
    let shown = own.docker(&["secret", "inspect", "s"]);
    assert!(!shown.contains("Data") && !shown.contains("aGlkZGVu"), "{shown}");
    assert!(
        own.docker_fails(&["secret", "create", "s", "password"])
            .contains("secret s already exists")
    );
}

#[test]
fn bodies_that_are_malformed_huge_or_slow_cost_little() {
    let Some(mut own) = rig::up("bodies", Tasks::Processes) else {
        return;
    };
    own.start();
    own.docker(&["swarm", "init"]);
    let resident = |own: &Own| -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", own.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    };
    let before = resident(&own);
    for body in [
        "",
        "{",
        "[]",
        "null",
        "7",
        "{\"Name\":7}",
        "{\"Name\":\"a\"} x",
        "\u{1f980}",
    ] {
        for path in [
            "/services/create",
            "/configs/create",
            "/swarm/update?version=1",
            "/networks/create",
            "/nodes/self/update?version=1",
        ] {
            let (status, said) = ask(&own, "POST", path, body);
            assert!(
                (400..500).contains(&status) || status == 501,
                "{path} {body}: {status} {said}"
            );
        }
    }
    assert_eq!(ask(&own, "POST", "/services/create", "{\"TaskTemplate\":[]}").0, 400);
    let deep = "[".repeat(100_000);
    assert_eq!(ask(&own, "POST", "/services/create", &deep).0, 400);
    let huge = format!(
        "POST /services/create HTTP/1.1\r\nHost: d\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        1_u64 << 40
    );
    assert_eq!(raw(&own, huge.as_bytes()).0, 413);
    let mut chunked = b"POST /services/create HTTP/1.1\r\nHost: d\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
    for _ in 0..200 {
        chunked.extend_from_slice(b"10000\r\n");
        chunked.resize(chunked.len() + 0x10000, b' ');
        chunked.extend_from_slice(b"\r\n");
    }
    assert_eq!(raw(&own, &chunked).0, 413);
    let head = format!(
        "GET /services HTTP/1.1\r\nHost: d\r\nX: {}\r\n\r\n",
        "x".repeat(200_000)
    );
    let status = raw(&own, head.as_bytes()).0;
    assert!(matches!(status, 0 | 400 | 431), "{status}");
    assert_eq!(raw(&own, b"\x16\x03\x01nonsense\r\n\r\n").0, 400);
    // Some who say nothing more do not keep others out.
    let idle: Vec<UnixStream> = (0..100)
        .map(|_| {
            let mut stream = UnixStream::connect(own.socket()).unwrap();
            stream
                .write_all(b"POST /services/create HTTP/1.1\r\nHost: d\r\nContent-Length: 100\r\n\r\n{")
                .unwrap();
            stream
        })
        .collect();
    assert_eq!(ask(&own, "GET", "/services", "").0, 200);
    drop(idle);
    let grown = resident(&own).saturating_sub(before);
    assert!(grown < 64 << 10, "{grown} kB more than before");
}
