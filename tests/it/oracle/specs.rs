//! Specs member by member: for each, what may stand there, what Docker refuses, and what is no such thing at all; and many of
//! these at once, with names in any case, members that nobody knows, and nulls.

use serde_json::{Value, json};

use super::pair::{Ask, web};

/// Sets the member that a pointer such as `/TaskTemplate/RestartPolicy/Delay` leads to, and makes what is on the way.
pub fn set(object: &mut Value, pointer: &str, value: Value) {
    let mut at = object;
    for word in pointer.split('/').skip(1) {
        at = match word {
            "0" => {
                if !at.is_array() {
                    *at = json!([{}]);
                }
                &mut at[0]
            }
            word => {
                if !at.is_object() {
                    *at = json!({});
                }
                &mut at[word]
            }
        };
    }
    *at = value;
}

/// What stands in the place of anything.
fn wrong() -> Vec<Value> {
    vec![
        json!(null),
        json!(true),
        json!(-1),
        json!(1.5),
        json!("x"),
        json!([]),
        json!({}),
        json!([1]),
        json!({ "X": 1 }),
    ]
}

/// By path, what may stand there besides.
type Members = Vec<(&'static str, Vec<Value>)>;

const SECOND: i64 = 1_000_000_000;

/// By path, what a service may say there besides.
fn of_services() -> Members {
    let names = ["", "a", "A-b_c", "a.b", "-a", "a-", "a b", "ä"].map(|name| json!(name));
    let durations = || vec![json!(0), json!(1), json!(SECOND), json!(-SECOND)];
    vec![
        (
            "/Name",
            [names.to_vec(), vec![json!("a".repeat(63)), json!("a".repeat(64))]].concat(),
        ),
        (
            "/Labels",
            vec![json!({ "a": "b" }), json!({ "a": null }), json!({ "A": "", "a": "x" })],
        ),
        (
            "/Mode",
            vec![
                json!({ "Replicated": {} }),
                json!({ "Global": {} }),
                json!({ "Replicated": { "Replicas": 0 }, "Global": {} }),
            ],
        ),
        ("/Mode/Replicated/Replicas", vec![json!(0), json!("1")]),
        ("/TaskTemplate", vec![]),
        ("/TaskTemplate/ContainerSpec", vec![]),
        (
            "/TaskTemplate/ContainerSpec/Image",
            vec![
                json!(""),
                json!("A"),
                json!("a b"),
                json!("a:"),
                json!("demo@sha256:00"),
            ],
        ),
        ("/TaskTemplate/ContainerSpec/Labels", vec![json!({ "a": "b" })]),
        (
            "/TaskTemplate/ContainerSpec/Command",
            vec![json!(["a", "b"]), json!([""])],
        ),
        ("/TaskTemplate/ContainerSpec/Args", vec![json!(["a", "b"])]),
        (
            "/TaskTemplate/ContainerSpec/Hostname",
            vec![json!("h"), json!("{{.Task.Slot}}"), json!("{{.Nothing}}"), json!("{{")],
        ),
        (
            "/TaskTemplate/ContainerSpec/Env",
            vec![
                json!(["A=b"]),
                json!(["A"]),
                json!(["A={{.Service.Name}}"]),
                json!(["A={{"]),
                json!(["=x"]),
            ],
        ),
        ("/TaskTemplate/ContainerSpec/Dir", vec![json!("/a"), json!("a")]),
        ("/TaskTemplate/ContainerSpec/User", vec![json!("nobody"), json!("1:1")]),
        ("/TaskTemplate/ContainerSpec/Groups", vec![json!(["1"])]),
        (
            "/TaskTemplate/ContainerSpec/StopSignal",
            vec![json!("SIGINT"), json!("x")],
        ),
        ("/TaskTemplate/ContainerSpec/TTY", vec![json!(false)]),
        ("/TaskTemplate/ContainerSpec/OpenStdin", vec![json!(false)]),
        ("/TaskTemplate/ContainerSpec/ReadOnly", vec![json!(false)]),
        ("/TaskTemplate/ContainerSpec/Init", vec![json!(false)]),
        ("/TaskTemplate/ContainerSpec/StopGracePeriod", durations()),
        (
            "/TaskTemplate/ContainerSpec/Hosts",
            vec![json!(["1.2.3.4 a"]), json!(["a:1.2.3.4"])],
        ),
        (
            "/TaskTemplate/ContainerSpec/Isolation",
            vec![json!("default"), json!("process"), json!("hyperv"), json!("")],
        ),
        (
            "/TaskTemplate/ContainerSpec/Sysctls",
            vec![json!({ "net.core.somaxconn": "9" })],
        ),
        (
            "/TaskTemplate/ContainerSpec/CapabilityAdd",
            vec![
                json!(["CAP_NET_ADMIN"]),
                json!(["NET_ADMIN"]),
                json!(["nothing"]),
                json!(["ALL"]),
            ],
        ),
        (
            "/TaskTemplate/ContainerSpec/CapabilityDrop",
            vec![json!(["CAP_NET_ADMIN"]), json!(["ALL"])],
        ),
        (
            "/TaskTemplate/ContainerSpec/Ulimits",
            vec![
                json!([{ "Name": "nofile", "Soft": 1, "Hard": 2 }]),
                json!([{ "Name": "x", "Soft": 3, "Hard": 2 }]),
            ],
        ),
        (
            "/TaskTemplate/ContainerSpec/DNSConfig",
            vec![json!({ "Nameservers": ["192.0.2.1"], "Search": ["a"], "Options": ["ndots:1"] })],
        ),
        (
            "/TaskTemplate/ContainerSpec/Privileges",
            vec![
                json!({ "CredentialSpec": { "File": "x" } }),
                json!({ "CredentialSpec": { "Registry": "x" } }),
                json!({ "CredentialSpec": {} }),
                json!({ "CredentialSpec": { "Config": "x" } }),
                json!({ "CredentialSpec": { "File": "x", "Registry": "y" } }),
                json!({ "SELinuxContext": { "Disable": true } }),
            ],
        ),
        (
            "/TaskTemplate/ContainerSpec/Healthcheck",
            vec![
                json!({ "Test": ["NONE"] }),
                json!({ "Test": ["CMD", "x"] }),
                json!({ "Test": ["CMD-SHELL", "x"] }),
                json!({ "Test": [] }),
                json!({ "Test": ["x"] }),
                json!({ "Test": ["CMD"] }),
                json!({ "Test": ["CMD-SHELL"] }),
                json!({ "Interval": 1 }),
                json!({ "Interval": -1 }),
                json!({ "Retries": -1 }),
                json!({ "Timeout": SECOND, "Interval": SECOND, "StartPeriod": SECOND, "Retries": 3 }),
                json!({ "Test": [""] }),
            ],
        ),
        (
            "/TaskTemplate/ContainerSpec/Mounts",
            vec![
                json!([{ "Type": "volume", "Source": "v", "Target": "/v" }]),
                json!([{ "Type": "VOLUME", "Source": "v", "Target": "/v" }]),
                json!([{ "Type": "x", "Source": "v", "Target": "/v" }]),
                json!([{ "Source": "v", "Target": "/v" }]),
                json!([{ "Type": "volume", "Source": "v" }]),
                json!([{ "Type": "volume", "Target": "/v" }]),
                json!([{ "Type": "bind", "Target": "/v" }]),
                json!([{ "Type": "bind", "Source": "v", "Target": "/v" }]),
                json!([{ "Type": "bind", "Source": "/", "Target": "/v", "BindOptions": { "Propagation": "rslave" } }]),
                json!([{ "Type": "bind", "Source": "/", "Target": "/v", "BindOptions": { "Propagation": "x" } }]),
                json!([{ "Type": "bind", "Source": "/", "Target": "/v", "BindOptions": {}, "VolumeOptions": {} }]),
                json!([{ "Type": "tmpfs", "Target": "/v", "TmpfsOptions": { "SizeBytes": 1024, "Mode": 511 } }]),
                json!([{ "Type": "tmpfs", "Source": "x", "Target": "/v" }]),
                json!([{ "Type": "tmpfs", "Target": "/v" }, { "Type": "tmpfs", "Target": "/v" }]),
                json!([{ "Type": "npipe", "Source": "x", "Target": "/v" }]),
                json!([{ "Type": "volume", "Source": "v", "Target": "v" }]),
                json!([{ "Type": "volume", "Source": "v", "Target": "/" }]),
                json!([{ "Type": "volume", "Source": "v", "Target": "/v", "ReadOnly": true, "Consistency": "cached",
                "VolumeOptions": { "NoCopy": true, "Labels": { "a": "b" }, "DriverConfig": { "Name": "local", "Options": { "type": "nfs" } } } }]),
                json!([{ "Type": "volume", "Source": "v", "Target": "/v", "Consistency": "x" }]),
            ],
        ),
        (
            "/TaskTemplate/ContainerSpec/Configs",
            vec![
                json!([{ "ConfigID": "<id:configs:conf>", "ConfigName": "conf", "File": { "Name": "c", "UID": "0", "GID": "0", "Mode": 292 } }]),
                json!([{ "ConfigID": "<id:configs:conf>", "ConfigName": "conf" }]),
                json!([{ "ConfigID": "<id:configs:conf>", "ConfigName": "conf", "Runtime": {} }]),
                json!([{ "ConfigID": "x", "ConfigName": "conf", "File": { "Name": "c" } }]),
                json!([{ "ConfigName": "conf", "File": { "Name": "c" } }]),
                json!([{ "ConfigID": "<id:configs:conf>", "ConfigName": "other", "File": { "Name": "c" } }]),
                json!([{ "ConfigID": "<id:configs:conf>", "ConfigName": "conf", "File": { "Name": "" } }]),
                json!([{ "ConfigID": "<id:configs:conf>", "ConfigName": "conf", "File": { "Name": "../c" } }]),
                json!([{ "ConfigID": "<id:configs:conf>", "ConfigName": "conf", "File": { "Name": "c" } }, { "ConfigID": "<id:configs:conf>", "ConfigName": "conf", "File": { "Name": "c" } }]),
            ],
        ),
        (
            "/TaskTemplate/ContainerSpec/Secrets",
            vec![
                json!([{ "SecretID": "<id:secrets:sec>", "SecretName": "sec", "File": { "Name": "c", "UID": "0", "GID": "0", "Mode": 292 } }]),
                json!([{ "SecretID": "<id:secrets:sec>", "SecretName": "sec" }]),
                json!([{ "SecretID": "x", "SecretName": "sec", "File": { "Name": "c" } }]),
                json!([{ "SecretName": "sec", "File": { "Name": "c" } }]),
                json!([{ "SecretID": "<id:secrets:sec>", "SecretName": "other", "File": { "Name": "c" } }]),
                json!([{ "SecretID": "<id:secrets:sec>", "SecretName": "sec", "File": { "Name": "" } }]),
                json!([{ "SecretID": "<id:secrets:sec>", "SecretName": "sec", "File": { "Name": "a/../c" } }]),
                json!([{ "SecretID": "<id:secrets:sec>", "SecretName": "sec", "File": { "Name": "c" } }, { "SecretID": "<id:secrets:sec>", "SecretName": "sec", "File": { "Name": "c" } }]),
            ],
        ),
        (
            "/TaskTemplate/Resources",
            vec![
                json!({ "Limits": { "NanoCPUs": SECOND, "MemoryBytes": 8 << 20, "Pids": 10 } }),
                json!({ "Limits": { "NanoCPUs": 1 } }),
                json!({ "Limits": { "MemoryBytes": 1 } }),
                json!({ "Limits": { "Pids": -1 } }),
                json!({ "Limits": {} }),
                json!({ "Limits": { "NanoCPUs": -1 } }),
                json!({ "Reservations": { "NanoCPUs": SECOND, "MemoryBytes": 8 << 20 } }),
                json!({ "Reservations": { "MemoryBytes": -1 } }),
                json!({ "Reservations": {} }),
                json!({ "Reservations": { "GenericResources": [{ "DiscreteResourceSpec": { "Kind": "gpu", "Value": 1 } }] } }),
                json!({ "Reservations": { "GenericResources": [{ "NamedResourceSpec": { "Kind": "gpu", "Value": "a" } }] } }),
                json!({ "Reservations": { "GenericResources": [{}] } }),
                json!({ "Reservations": { "GenericResources": [] } }),
                json!({ "Reservations": { "GenericResources": [{ "DiscreteResourceSpec": { "Kind": "gpu", "Value": -1 } }] } }),
                json!({ "Reservations": { "GenericResources": [{ "DiscreteResourceSpec": { "Kind": "gpu", "Value": 0 } }] } }),
            ],
        ),
        ("/TaskTemplate/RestartPolicy", vec![]),
        (
            "/TaskTemplate/RestartPolicy/Condition",
            vec![
                json!("none"),
                json!("on-failure"),
                json!("any"),
                json!("always"),
                json!(""),
                json!("Any"),
            ],
        ),
        ("/TaskTemplate/RestartPolicy/Delay", durations()),
        ("/TaskTemplate/RestartPolicy/Window", durations()),
        ("/TaskTemplate/RestartPolicy/MaxAttempts", vec![json!(0), json!(3)]),
        ("/TaskTemplate/Placement", vec![]),
        (
            "/TaskTemplate/Placement/Constraints",
            vec![
                json!(["node.role==manager"]),
                json!(["node.labels.a != b"]),
                json!(["x"]),
                json!(["node.role=x"]),
                json!(["a==b"]),
                json!(["==b"]),
                json!([""]),
                json!(["node.role == a b"]),
                json!(["node.platform.os==linux"]),
                json!(["node.ip==1.2.3.4/8"]),
                json!(["engine.labels.x==y"]),
                json!(["node.ID!=x"]),
            ],
        ),
        (
            "/TaskTemplate/Placement/Preferences",
            vec![
                json!([{ "Spread": { "SpreadDescriptor": "node.labels.a" } }]),
                json!([{ "Spread": { "SpreadDescriptor": "x" } }]),
                json!([{}]),
            ],
        ),
        ("/TaskTemplate/Placement/MaxReplicas", vec![json!(0), json!(1)]),
        (
            "/TaskTemplate/Placement/Platforms",
            vec![json!([{ "Architecture": "amd64", "OS": "linux" }])],
        ),
        ("/TaskTemplate/ForceUpdate", vec![json!(0), json!(7)]),
        (
            "/TaskTemplate/Runtime",
            vec![
                json!("container"),
                json!("plugin"),
                json!("attachment"),
                json!("x"),
                json!(""),
            ],
        ),
        (
            "/TaskTemplate/LogDriver",
            vec![
                json!({ "Name": "json-file", "Options": { "max-size": "1m" } }),
                json!({ "Name": "" }),
                json!({ "Name": "nothing" }),
                json!({ "Options": { "a": "b" } }),
            ],
        ),
        (
            "/TaskTemplate/Networks",
            vec![
                json!([{ "Target": "net", "Aliases": ["a"] }]),
                json!([{ "Target": "nobody" }]),
                json!([{ "Target": "" }]),
                json!([{ "Target": "<id:networks:net>" }]),
                json!([{ "Target": "net", "DriverOpts": { "a": "b" } }]),
                json!([{ "Target": "ingress" }]),
            ],
        ),
        (
            "/Networks",
            vec![json!([{ "Target": "net" }]), json!([{ "Target": "nobody" }])],
        ),
        ("/UpdateConfig", vec![]),
        ("/UpdateConfig/Parallelism", vec![json!(0), json!(2)]),
        ("/UpdateConfig/Delay", durations()),
        (
            "/UpdateConfig/FailureAction",
            vec![
                json!("pause"),
                json!("continue"),
                json!("rollback"),
                json!("x"),
                json!(""),
                json!("Pause"),
            ],
        ),
        ("/UpdateConfig/Monitor", durations()),
        (
            "/UpdateConfig/MaxFailureRatio",
            vec![json!(0), json!(0.5), json!(1), json!(1.1), json!(-0.1)],
        ),
        (
            "/UpdateConfig/Order",
            vec![json!("stop-first"), json!("start-first"), json!("x"), json!("")],
        ),
        ("/RollbackConfig", vec![]),
        ("/RollbackConfig/Parallelism", vec![json!(2)]),
        (
            "/RollbackConfig/FailureAction",
            vec![json!("pause"), json!("continue"), json!("rollback"), json!("x")],
        ),
        ("/RollbackConfig/Delay", durations()),
        ("/RollbackConfig/MaxFailureRatio", vec![json!(0.5), json!(7)]),
        ("/RollbackConfig/Order", vec![json!("start-first")]),
        ("/EndpointSpec", vec![]),
        (
            "/EndpointSpec/Mode",
            vec![json!("vip"), json!("dnsrr"), json!("VIP"), json!("x"), json!("")],
        ),
        (
            "/EndpointSpec/Ports/0",
            vec![
                json!({ "TargetPort": 80 }),
                json!({ "TargetPort": 80, "PublishedPort": 8080 }),
                json!({ "PublishedPort": 8080 }),
                json!({ "TargetPort": 65536 }),
                json!({ "TargetPort": 80, "PublishedPort": 65536 }),
                json!({ "TargetPort": 80, "Protocol": "udp" }),
                json!({ "TargetPort": 80, "Protocol": "UDP" }),
                json!({ "TargetPort": 80, "Protocol": "sctp" }),
                json!({ "TargetPort": 80, "Protocol": "x" }),
                json!({ "TargetPort": 80, "PublishMode": "host" }),
                json!({ "TargetPort": 80, "PublishedPort": 8080, "PublishMode": "HOST" }),
                json!({ "TargetPort": 80, "PublishMode": "x" }),
                json!({ "Name": "a", "TargetPort": 80 }),
            ],
        ),
    ]
}

fn of_payloads() -> Members {
    vec![
        (
            "/Name",
            [""; 1]
                .iter()
                .map(|name| json!(name))
                .chain(["a", "A.b_c-d", "-a", "a-", "a b", "a/b"].map(|name| json!(name)))
                .chain([json!("a".repeat(64)), json!("a".repeat(65))])
                .collect(),
        ),
        ("/Labels", vec![json!({ "a": "b" }), json!({ "a": 1 })]),
        (
            "/Data",
            vec![
                json!(""),
                json!("YQ=="),
                json!("YQ"),
                json!("!"),
                json!("Y Q=="),
                json!("YQ==\n"),
                json!("-_8="),
                json!("+/8="),
            ],
        ),
        (
            "/Templating",
            vec![
                json!({ "Name": "golang" }),
                json!({ "Name": "x" }),
                json!({ "Name": "" }),
                json!({ "Name": "golang", "Options": { "a": "b" } }),
            ],
        ),
        ("/Driver", vec![json!({ "Name": "x" }), json!({ "Name": "" })]),
    ]
}

fn of_nodes() -> Members {
    vec![
        ("/Name", vec![json!("n"), json!("")]),
        ("/Labels", vec![json!({ "a": "b" })]),
        (
            "/Role",
            vec![
                json!("manager"),
                json!("MANAGER"),
                json!("worker"),
                json!("x"),
                json!(""),
            ],
        ),
        (
            "/Availability",
            vec![
                json!("active"),
                json!("pause"),
                json!("drain"),
                json!("ACTIVE"),
                json!("x"),
                json!(""),
            ],
        ),
    ]
}

/// A resource: where it is made or changed, with what, and what else may stand in it.
fn resources() -> Vec<(&'static str, Value, Members)> {
    let mut new = web();
    new["Name"] = json!("new");
    let payload = json!({ "Name": "new", "Data": "YQ==" });
    vec![
        ("/services/create", new, of_services()),
        (
            "/services/web/update?version=<version:services:web>",
            web(),
            of_services(),
        ),
        ("/configs/create", payload.clone(), of_payloads()),
        ("/secrets/create", payload.clone(), of_payloads()),
        (
            "/configs/conf/update?version=<version:configs:conf>",
            json!({ "Name": "conf" }),
            of_payloads(),
        ),
        (
            "/secrets/sec/update?version=<version:secrets:sec>",
            json!({ "Name": "sec" }),
            of_payloads(),
        ),
        (
            "/nodes/self/update?version=<version:nodes:self>",
            json!({ "Role": "manager", "Availability": "active" }),
            of_nodes(),
        ),
    ]
}

/// Each member of each, one at a time.
pub fn each() -> Vec<Ask> {
    let mut asks = Vec::new();
    for (path, spec, members) in resources() {
        // Updates are the same but for what is there already.
        if path.starts_with("/services/web") {
            continue;
        }
        for (pointer, values) in members {
            for value in values.into_iter().chain(wrong()) {
                let mut body = spec.clone();
                set(&mut body, pointer, value);
                if is_named(&body) {
                    asks.push(Ask::post(path, &body));
                }
            }
        }
    }
    asks
}

/// Each makes up names of its own.
fn is_named(body: &Value) -> bool {
    body["Name"].as_str() != Some("") && !body["Name"].is_null() || body["Role"].is_string()
}

/// Any of them, several at once.
pub fn any(rng: &mut fastrand::Rng) -> Ask {
    let mut resources = resources();
    let services = 2;
    // Most is said in services.
    let n = if rng.f32() < 0.8 {
        rng.usize(..services)
    } else {
        rng.usize(services..resources.len())
    };
    let (path, mut body, members) = resources.swap_remove(n);
    for _ in 0..rng.usize(1..5) {
        let (pointer, values) = &members[rng.usize(..members.len())];
        let wrong = wrong();
        let values = if values.is_empty() || rng.f32() < 0.1 {
            &wrong
        } else {
            values
        };
        set(&mut body, pointer, values[rng.usize(..values.len())].clone());
    }
    if !is_named(&body) {
        body["Name"] = json!("new");
    }
    let text = respelled(&body, rng, false);
    Ask::raw(path, text)
}

/// Members in any case, with others that nobody knows, and nulls.
fn respelled(value: &Value, rng: &mut fastrand::Rng, is_map: bool) -> String {
    match value {
        Value::Object(members) => {
            let mut parts = Vec::new();
            for (name, value) in members {
                let is_below_map = matches!(name.as_str(), "Labels" | "Options" | "Sysctls" | "DriverOpts");
                let name = match is_map || rng.f32() < 0.7 {
                    true => name.clone(),
                    false => name
                        .chars()
                        .map(|c| {
                            if rng.bool() {
                                c.to_ascii_uppercase()
                            } else {
                                c.to_ascii_lowercase()
                            }
                        })
                        .collect(),
                };
                if !is_map && rng.f32() < 0.05 {
                    // Before: of what Go points to, null after it would take it back.
                    parts.push(format!("{:?}:null", name.to_ascii_uppercase()));
                    parts.push("\"Nobody\":[{}]".to_owned());
                }
                parts.push(format!("{name:?}:{}", respelled(value, rng, is_below_map)));
            }
            format!("{{{}}}", parts.join(","))
        }
        Value::Array(items) => {
            let items: Vec<String> = items.iter().map(|item| respelled(item, rng, false)).collect();
            format!("[{}]", items.join(","))
        }
        other => other.to_string(),
    }
}
