//! Requests written by hand: what clients ask for, and what they get wrong.

use serde_json::{Value, json};

use super::pair::{Ask, web};

fn with(pointer: &str, value: Value) -> Value {
    let mut spec = web();
    super::specs::set(&mut spec, pointer, value);
    spec
}

fn lists() -> Vec<Ask> {
    let mut asks = Vec::new();
    let filters: &[(&str, &[&str])] = &[
        (
            "services",
            &[
                r#"{}"#,
                r#"{"name":{"we":true}}"#,
                r#"{"name":["WEB"]}"#,
                r#"{"name":{"b":true}}"#,
                r#"{"id":{"<id:services:web>":true}}"#,
                r#"{"label":{"tier":true}}"#,
                r#"{"label":["tier=front"]}"#,
                r#"{"label":["tier=back"]}"#,
                r#"{"label":["tier="]}"#,
                r#"{"mode":["replicated"]}"#,
                r#"{"mode":["global"]}"#,
                r#"{"mode":["x"]}"#,
                r#"{"runtime":["container"]}"#,
                r#"{"runtime":["x"]}"#,
                r#"{"x":["y"]}"#,
                r#"{"name":"web"}"#,
                r#"{"name":{"web":false}}"#,
                r#"[]"#,
                "x",
                "null",
                r#"{"name":[1]}"#,
                r#"{"name":null}"#,
                r#"{"name":[]}"#,
                r#"{"label":["tier=front","none"]}"#,
                r#"{"name":["web","x"]}"#,
            ],
        ),
        (
            "tasks",
            &[
                r#"{"service":["web"]}"#,
                r#"{"service":["nobody"]}"#,
                r#"{"node":["self"]}"#,
                r#"{"node":["nobody"]}"#,
                r#"{"desired-state":["running"]}"#,
                r#"{"desired-state":["x"]}"#,
                r#"{"desired-state":["accepted"]}"#,
                r#"{"desired-state":["RUNNING"]}"#,
                r#"{"x":["y"]}"#,
                r#"{"name":["web"]}"#,
                r#"{"label":["a"]}"#,
                r#"{"_up-to-date":["true"]}"#,
                r#"{"_up-to-date":["x"]}"#,
                r#"{"runtime":["x"]}"#,
                r#"{"is-task":["x"]}"#,
                r#"{"id":["x"]}"#,
            ],
        ),
        (
            "nodes",
            &[
                r#"{"role":["manager"]}"#,
                r#"{"role":["worker"]}"#,
                r#"{"role":["x"]}"#,
                r#"{"membership":["accepted"]}"#,
                r#"{"membership":["x"]}"#,
                r#"{"membership":["pending"]}"#,
                r#"{"name":["nobody"]}"#,
                r#"{"label":["a"]}"#,
                r#"{"node.label":["a"]}"#,
                r#"{"x":["y"]}"#,
                r#"{"id":["<id:nodes:self>"]}"#,
            ],
        ),
        (
            "configs",
            &[
                r#"{"name":["co"]}"#,
                r#"{"name":["x"]}"#,
                r#"{"names":["conf"]}"#,
                r#"{"names":["co"]}"#,
                r#"{"label":["of=conf"]}"#,
                r#"{"label":["of"]}"#,
                r#"{"x":["y"]}"#,
                r#"{"id":["<id:configs:conf>"]}"#,
            ],
        ),
        (
            "secrets",
            &[
                r#"{"name":["se"]}"#,
                r#"{"name":["x"]}"#,
                r#"{"names":["sec"]}"#,
                r#"{"label":["of=sec"]}"#,
                r#"{"label":["x"]}"#,
                r#"{"x":["y"]}"#,
                r#"{"id":["<id:secrets:sec>"]}"#,
            ],
        ),
    ];
    for (kind, all) in filters {
        asks.push(Ask::get(format!("/{kind}")));
        asks.extend(
            all.iter()
                .map(|filter| Ask::get(format!("/{kind}?filters={}", encoded(filter)))),
        );
    }
    asks.push(Ask::get("/services?status=true"));
    asks.push(Ask::get("/services?status=x"));
    asks
}

/// Only what may not stand in a path: `<` and `>` are filled in later.
fn encoded(text: &str) -> String {
    text.replace('"', "%22")
        .replace(' ', "%20")
        .replace('{', "%7B")
        .replace('}', "%7D")
        .replace('[', "%5B")
        .replace(']', "%5D")
}

fn lookups() -> Vec<Ask> {
    let mut asks = Vec::new();
    for (kind, name) in [
        ("services", "web"),
        ("configs", "conf"),
        ("secrets", "sec"),
        ("networks", "net"),
        ("nodes", "self"),
        ("tasks", ""),
    ] {
        asks.push(Ask::get(format!("/{kind}/nobody")));
        asks.push(Ask::delete(format!("/{kind}/nobody")));
        if kind == "tasks" {
            continue;
        }
        asks.push(Ask::get(format!("/{kind}/{name}")));
        asks.push(Ask::get(format!("/{kind}/<id:{kind}:{name}>")));
        asks.push(Ask::delete(format!("/{kind}/{name}")));
        if kind == "networks" {
            continue;
        }
        let update = |query: &str, body: &Value| Ask::post(format!("/{kind}/{name}/update{query}"), body);
        asks.push(update("", &json!({})));
        asks.push(update("?version=x", &json!({})));
        asks.push(update("?version=-1", &json!({})));
        asks.push(update("?version=1", &json!({})));
        asks.push(Ask::post(format!("/{kind}/nobody/update?version=1"), &json!({})));
        asks.push(update(&format!("?version=<version:{kind}:{name}>"), &json!({})));
    }
    for query in ["?insertDefaults=x", "?insertDefaults=1"] {
        asks.push(Ask::get(format!("/services/web{query}")));
    }
    for path in [
        "/services/web/x",
        "/swarm/x",
        "/nodes/self/x/y",
        "/x",
        "/configs/conf/update/x",
    ] {
        asks.push(Ask::get(path));
    }
    asks.push(Ask::of("PUT", "/services/web", None));
    asks.push(Ask::of("POST", "/services", None));
    asks
}

fn bodies() -> Vec<Ask> {
    let mut asks = Vec::new();
    for path in [
        "/services/create",
        "/configs/create",
        "/secrets/create",
        "/networks/create",
        "/swarm/init",
        "/swarm/join",
        "/swarm/unlock",
        "/services/web/update?version=<version:services:web>",
        "/configs/conf/update?version=<version:configs:conf>",
        "/secrets/sec/update?version=<version:secrets:sec>",
        "/nodes/self/update?version=<version:nodes:self>",
        "/swarm/update?version=<version:swarm:x>",
    ] {
        for body in [
            "",
            "{",
            "x",
            "[]",
            "1",
            "\"x\"",
            "null",
            "{}",
            "{} {}",
            "{}x",
            "{\"Name\": }",
        ] {
            // Would end the very thing that they are compared in, or make it otherwise.
            if path.starts_with("/swarm/update") && matches!(body, "" | "null" | "{}" | "{} {}" | "{}x") {
                continue;
            }
            asks.push(Ask::raw(path, body));
        }
        if !path.starts_with("/swarm/update") {
            let mut plain = Ask::raw(path, "{}");
            plain.headers = "Content-Type: text/plain\r\n";
            asks.push(plain);
        }
        let mut none = Ask::raw(path, "{\"Name\":\"!\"}");
        none.headers = "";
        asks.push(none);
    }
    asks
}

fn services() -> Vec<Ask> {
    let update = |query: &str, body: &Value| {
        Ask::post(
            format!("/services/web/update?version=<version:services:web>{query}"),
            body,
        )
    };
    let create = |body: &Value| {
        let mut body = body.clone();
        if body["Name"] == "web" {
            body["Name"] = json!("new");
        }
        Ask::post("/services/create", &body)
    };
    let port = |ports: Value| with("/EndpointSpec", json!({ "Ports": ports }));
    let mut asks = vec![
        Ask::post("/services/create", &web()),
        Ask::post("/services/create", &with("/Name", json!("WEB"))),
        update("", &web()),
        update("", &with("/Name", json!("other"))),
        update("", &with("/Labels", json!({ "a": "b" }))),
        update("", &with("/Mode", json!({ "Global": {} }))),
        update(
            "",
            &with("/Mode", json!({ "Replicated": { "Replicas": 0 }, "Global": {} })),
        ),
        update("&rollback=previous", &web()),
        update("&rollback=x", &web()),
        update("&registryAuthFrom=x", &web()),
        update("&registryAuthFrom=previous-spec", &web()),
        update("", &with("/TaskTemplate/ForceUpdate", json!(1))),
        create(&port(
            json!([{ "TargetPort": 80, "PublishedPort": 8080 }, { "TargetPort": 81, "PublishedPort": 8080 }]),
        )),
        create(&port(
            json!([{ "TargetPort": 80, "PublishedPort": 8080 }, { "TargetPort": 80, "PublishedPort": 8080, "Protocol": "udp" }]),
        )),
        create(&port(
            json!([{ "TargetPort": 80, "PublishMode": "host" }, { "TargetPort": 81, "PublishMode": "host" }]),
        )),
        create(&port(json!([{ "TargetPort": 80 }, { "TargetPort": 80 }]))),
    ];
    // Host ports and names that others have.
    asks.push(Ask::delete("/networks/ingress"));
    asks.push(Ask::post(
        "/networks/create",
        &json!({ "Name": "net", "Driver": "overlay" }),
    ));
    asks.push(Ask::post(
        "/networks/create",
        &json!({ "Name": "net", "Driver": "overlay", "CheckDuplicate": true }),
    ));
    asks.push(Ask::post("/configs/create", &json!({ "Name": "conf", "Data": "YQ==" })));
    asks.push(Ask::post("/secrets/create", &json!({ "Name": "SEC", "Data": "YQ==" })));
    asks
}

pub fn all() -> Vec<Ask> {
    let mut asks = lists();
    asks.extend(lookups());
    asks.extend(bodies());
    asks.extend(services());
    asks
}
