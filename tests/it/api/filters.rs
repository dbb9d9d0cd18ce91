//! What lists are cut down to: wrong filters with Docker's status and words, and those that are regular expressions in Docker.

use serde_json::{Value, json};

use super::rig::{Rig, service};

fn encoded(filters: &str) -> String {
    filters.bytes().map(|byte| format!("%{byte:02X}")).collect()
}

/// All that can be listed.
const LISTS: [&str; 9] = [
    "services",
    "tasks",
    "nodes",
    "networks",
    "configs",
    "secrets",
    "volumes",
    "containers/json",
    "events",
];

#[test]
fn wrong_filters_are_answered_as_docker_answers_them() {
    let rig = Rig::with_volumes();
    let refused = |list: &str, filters: &str, status: u16, message: &str| {
        let path = format!("/v1.45/{list}?until=1&filters={}", encoded(filters));
        let reply = rig.get(&path);
        assert_eq!(
            (reply.status, reply.message().as_str()),
            (status, message),
            "{list} {filters}"
        );
    };
    for list in LISTS {
        refused(list, r#"{"nonsense":{"x":true}}"#, 400, "invalid filter 'nonsense'");
        refused(list, r#"{"nonsense":["x"]}"#, 400, "invalid filter 'nonsense'");
        for malformed in [
            "{",
            "x",
            "[]",
            "\"label\"",
            "{\"label\":\"x\"}",
            "{\"label\":[1]}",
            "{\"label\":{\"x\":1}}",
            "{\"label\":{\"x\":true},\"name\":[\"x\"]}",
        ] {
            refused(list, malformed, 400, "invalid filter");
        }
    }
    for (list, filters, status, message) in [
        ("nodes", r#"{"role":["king"]}"#, 500, "Invalid role filter: 'king'"),
        (
            "nodes",
            r#"{"membership":["x"]}"#,
            500,
            "Invalid membership filter: 'x'",
        ),
        (
            "tasks",
            r#"{"desired-state":["x"]}"#,
            500,
            "Invalid desired-state filter: 'x'",
        ),
        ("tasks", r#"{"service":["x"]}"#, 404, "service x not found"),
        ("networks", r#"{"type":["x"]}"#, 500, "invalid filter: 'type'='x'"),
        (
            "networks",
            r#"{"dangling":["x"]}"#,
            400,
            "invalid value for filter 'dangling', must be \"true\" (or \"1\"), or \"false\" (or \"0\")",
        ),
        (
            "networks",
            r#"{"dangling":["1","0"]}"#,
            400,
            "got more than one value for filter key \"dangling\"",
        ),
        ("volumes", r#"{"dangling":["x"]}"#, 400, "invalid filter 'dangling=[x]'"),
        (
            "volumes",
            r#"{"dangling":["0","1"]}"#,
            400,
            "invalid filter 'dangling=[0 1]'",
        ),
        ("volumes", r#"{"dangling":[]}"#, 400, "invalid filter 'dangling'"),
        (
            "containers/json",
            r#"{"is-task":["x"]}"#,
            400,
            "invalid filter 'is-task=[x]'",
        ),
        (
            "containers/json",
            r#"{"status":["up"]}"#,
            400,
            "invalid filter 'status=up': invalid value for state (up): must be one of created, running, paused, restarting, \
             removing, exited, dead",
        ),
        (
            "containers/json",
            r#"{"exited":["x"]}"#,
            400,
            "invalid filter 'exited=x': expected an exit code",
        ),
    ] {
        refused(list, filters, status, message);
    }
    // Words of a swarm may be written in any case, and an empty one is none.
    for (list, filters) in [
        ("nodes", r#"{"role":["MANAGER"],"membership":["Accepted",""]}"#),
        ("nodes", r#"{"role":[""]}"#),
        ("nodes", "null"),
    ] {
        let reply = rig.get(&format!("/{list}?filters={}", encoded(filters)));
        assert_eq!(reply.json().as_array().map(Vec::len), Some(1), "{list} {filters}");
    }
    let said = rig.docker_fails(&["service", "ls", "--filter", "nonsense=x"]);
    assert!(said.contains("invalid filter 'nonsense'"), "{said}");
}

/// What cannot be read is said first, and what is not known only where there is a swarm.
#[test]
fn without_a_swarm() {
    let rig = Rig::up();
    for list in ["services", "tasks", "nodes", "configs", "secrets"] {
        let status = |filters: &str| rig.get(&format!("/{list}?filters={}", encoded(filters))).status;
        assert_eq!((status("{"), status(r#"{"nonsense":["x"]}"#)), (400, 503), "{list}");
    }
}

#[test]
fn names_are_regular_expressions_where_an_engine_answers() {
    let rig = Rig::with_volumes();
    for (name, labels) in [
        ("web-data", &["--label", "tier=front"][..]),
        ("web-cache", &["--label", "tier="]),
        ("db.data", &[]),
    ] {
        rig.docker(&[&["volume", "create"], labels, &[name]].concat());
    }
    let volumes = |filter: &str| {
        rig.docker(&["volume", "ls", "-q", "--filter", filter])
            .replace('\n', " ")
    };
    for (filter, found) in [
        ("name=data", "db.data web-data"),
        ("name=^web", "web-cache web-data"),
        ("name=data$", "db.data web-data"),
        ("name=^(web|db)[.-]data$", "db.data web-data"),
        ("name=b.d", "db.data web-data"),
        ("name=b[.]d", "db.data"),
        ("name=^data", ""),
        // What is no expression is only itself.
        ("name=(", ""),
        ("label=tier", "web-cache web-data"),
        ("label=tier=front", "web-data"),
        ("label=tier=", "web-cache"),
        ("label=other", ""),
        ("driver=local", "db.data web-cache web-data"),
        ("driver=loc", ""),
        ("dangling=true", "db.data web-cache web-data"),
        ("dangling=0", ""),
    ] {
        assert_eq!(volumes(filter), found, "{filter}");
    }
    let several = |filters: Value| {
        let reply = rig.get(&format!("/volumes?filters={}", encoded(&filters.to_string())));
        let listed = reply.json()["Volumes"].as_array().unwrap().clone();
        listed
            .iter()
            .map(|volume| volume["Name"].as_str().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(several(json!({ "name": ["^db", "cache$"] })), ["db.data", "web-cache"]);
    assert_eq!(
        several(json!({ "name": ["web"], "label": ["tier=front"] })),
        ["web-data"]
    );

    rig.post(
        "/networks/create",
        &json!({ "Name": "my-net", "Driver": "overlay", "Labels": { "a": "b" } }),
    );
    let networks = |filter: &str| {
        let args = [
            "network",
            "ls",
            "--no-trunc",
            "--format",
            "{{.Name}}",
            "--filter",
            filter,
        ];
        rig.docker(&args).replace('\n', " ")
    };
    let id = rig.get("/networks/my-net").json()["Id"].as_str().unwrap().to_owned();
    for (filter, found) in [
        ("name=^my.net$", "my-net"),
        ("name=net", "my-net"),
        ("name=n.+s", "ingress"),
        ("name=^et", ""),
        (&format!("id=^{}", &id[..12]), "my-net"),
        (&format!("id={}$", &id[12..]), "my-net"),
        ("label=a=", ""),
        ("dangling=true", "my-net"),
        ("dangling=false", "ingress"),
    ] {
        assert_eq!(networks(filter), found, "{filter}");
    }

    for name in ["web", "website"] {
        rig.post("/services/create", &service(name, None));
        rig.wait_running(name, 1);
    }
    let containers = |filter: &str| {
        rig.docker(&["ps", "--format", "{{.Names}}", "--filter", filter])
            .lines()
            .count()
    };
    for (filter, n) in [
        ("name=^web\\.", 1),
        ("name=^/web\\.", 1),
        ("name=web", 2),
        ("name=site.1", 1),
        ("name=^site", 0),
        ("is-task=true", 2),
        ("is-task=false", 0),
        ("status=running", 2),
    ] {
        assert_eq!(containers(filter), n, "{filter}");
    }
    // A swarm's managers look for the beginning.
    let services = |filter: &str| {
        rig.docker(&["service", "ls", "--format", "{{.Name}}", "--filter", filter])
            .replace('\n', " ")
    };
    assert_eq!(
        (services("name=web"), services("name=^web")),
        ("web website".to_owned(), String::new())
    );
}

#[test]
fn what_volumes_are_pruned() {
    let rig = Rig::with_volumes();
    for (name, label) in [("a", "keep=1"), ("b", "keep=2"), ("c", "drop")] {
        rig.docker(&["volume", "create", "--label", label, name]);
    }
    let prune = |filters: &str| rig.post(&format!("/volumes/prune?filters={}", encoded(filters)), &json!({}));
    for (filters, message) in [
        (
            r#"{"all":["x"]}"#,
            "invalid filter 'all': \"x\": expected true or false",
        ),
        (
            r#"{"all":["1","0"]}"#,
            "invalid filter 'all=[1 0]': only one value is expected",
        ),
        (r#"{"dangling":["1"]}"#, "invalid filter 'dangling'"),
    ] {
        let reply = prune(filters);
        assert_eq!((reply.status, reply.message().as_str()), (400, message), "{filters}");
    }
    let deleted = |filters: &str| prune(filters).json()["VolumesDeleted"].clone();
    assert_eq!(deleted("{}"), json!([]), "all have names");
    assert_eq!(deleted(r#"{"all":["T"],"label":["keep="]}"#), json!([]));
    assert_eq!(deleted(r#"{"all":["true"],"label":["keep=2"]}"#), json!(["b"]));
    assert_eq!(deleted(r#"{"all":["true"],"label!":["keep"]}"#), json!(["c"]));
}
