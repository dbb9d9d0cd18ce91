//! The docker command line, command by command.

use serde_json::{Value, json};

use super::rig::{Rig, service};

/// The rows of a table, cut at two blanks and more.
fn rows(table: &str) -> Vec<Vec<&str>> {
    table
        .lines()
        .map(|line| {
            line.split("  ")
                .map(str::trim)
                .filter(|cell| !cell.is_empty())
                .collect()
        })
        .collect()
}

#[test]
fn a_swarm_is_made_shown_changed_and_left() {
    let rig = Rig::up();
    let said = rig.docker(&["swarm", "init"]);
    let tokens = rig.get("/swarm").json()["JoinTokens"].clone();
    let worker = tokens["Worker"].as_str().unwrap();
    let id = rig.get("/nodes").json()[0]["ID"].as_str().unwrap().to_owned();
    assert!(
        said.starts_with(&format!("Swarm initialized: current node ({id}) is now a manager.")),
        "{said}"
    );
    assert!(
        said.contains(&format!("docker swarm join --token {worker} 192.0.2.7:2377")),
        "{said}"
    );
    let parts: Vec<&str> = worker.split('-').collect();
    assert_eq!(
        (parts[0], parts[1], parts[2].len(), parts[3].len(), parts.len()),
        ("SWMTKN", "1", 50, 25, 4)
    );
    assert_eq!(rig.docker(&["swarm", "join-token", "-q", "worker"]), worker);
    assert!(
        rig.docker(&["swarm", "join-token", "manager"])
            .contains(tokens["Manager"].as_str().unwrap())
    );
    let rotated = rig.docker(&["swarm", "join-token", "--rotate", "-q", "worker"]);
    assert_ne!(rotated, worker);
    assert_eq!(
        rotated.rsplit_once('-').unwrap().0,
        worker.rsplit_once('-').unwrap().0,
        "of the same authority"
    );
    assert_eq!(
        rig.docker(&["swarm", "join-token", "-q", "manager"]),
        tokens["Manager"].as_str().unwrap()
    );
    rig.docker(&["swarm", "update", "--task-history-limit", "2"]);
    assert_eq!(
        rig.get("/swarm").json()["Spec"]["Orchestration"]["TaskHistoryRetentionLimit"],
        2
    );
    assert_eq!(rig.docker_fails(&["swarm", "unlock-key"]), "no unlock key is set");
    let info = rig.docker(&["info"]);
    for words in [
        "Swarm: active",
        &format!("NodeID: {id}"),
        "Is Manager: true",
        "Nodes: 1",
        "Task History Retention Limit: 2",
    ] {
        assert!(info.contains(words), "{words}: {info}");
    }
    assert!(
        rig.docker(&["version"])
            .contains("API version:      1.48 (minimum version 1.24)")
    );
    rig.docker(&["service", "create", "--detach", "--name", "web", "nginx"]);
    rig.docker(&["network", "create", "-d", "overlay", "net"]);
    assert!(
        rig.docker_fails(&["swarm", "leave"])
            .contains("You are attempting to leave the swarm")
    );
    assert_eq!(rig.docker(&["swarm", "leave", "--force"]), "Node left the swarm.");
    assert_eq!(rig.snapshot().keys(), []);
    assert!(rig.docker(&["info"]).contains("Swarm: inactive"));
    rig.docker(&[
        "swarm",
        "init",
        "--availability",
        "drain",
        "--advertise-addr",
        "198.51.100.1",
    ]);
    let node = rig.get("/nodes").json()[0].clone();
    assert_eq!(node["Spec"]["Availability"], "drain");
    assert_eq!(node["ManagerStatus"]["Addr"], "198.51.100.1:2377");
    assert_ne!(node["ID"], json!(id));
}

#[test]
fn nodes() {
    let rig = Rig::swarm();
    let table = rig.docker(&["node", "ls"]);
    let id = rig.get("/nodes").json()[0]["ID"].as_str().unwrap().to_owned();
    let row = &rows(&table)[1];
    assert_eq!(row[0], format!("{id} *"));
    assert_eq!(&row[1..5], ["manager", "Ready", "Active", "Leader"]);
    rig.docker(&[
        "node",
        "update",
        "--label-add",
        "disk=ssd",
        "--availability",
        "drain",
        "manager",
    ]);
    let shown = rig.docker(&["node", "inspect", "--pretty", "self"]);
    for words in [
        "disk=ssd",
        "Availability:         \tDrain",
        "Hostname:              \tmanager",
        "Leader:\t\tYes",
    ] {
        assert!(shown.contains(words), "{words}: {shown}");
    }
    assert_eq!(rig.docker(&["node", "ls", "-q", "--filter", "node.label=disk=ssd"]), id);
    assert_eq!(rig.docker(&["node", "ls", "-q", "--filter", "node.label=disk=hdd"]), "");
    assert_eq!(rig.docker(&["node", "ls", "-q", "--filter", "role=worker"]), "");
    assert!(
        rig.docker_fails(&["node", "demote", "manager"])
            .contains("attempting to demote the last manager of the swarm")
    );
    assert!(
        rig.docker_fails(&["node", "rm", "manager"])
            .contains("must be demoted to worker before removal")
    );
    assert_eq!(
        rig.docker(&["node", "promote", "manager"]),
        format!("Node {id} is already a manager.")
    );
}

#[test]
fn services() {
    let rig = Rig::swarm();
    rig.around.held.lock().unwrap().insert(9090);
    let create = [
        "service",
        "create",
        "--name",
        "my-web",
        "--publish",
        "published=8080,target=80",
        "--replicas",
        "3",
        "nginx:latest",
    ];
    let said = rig.docker(&create);
    assert!(said.contains("3 out of 3 tasks") && said.contains("Service"), "{said}");
    let id = said.lines().next().unwrap().to_owned();
    assert_eq!(id.len(), 25);
    let table = rig.docker(&["service", "ls"]);
    let table = rows(&table);
    assert_eq!(table[0], ["ID", "NAME", "MODE", "REPLICAS", "IMAGE", "PORTS"]);
    assert_eq!(
        table[1],
        [
            &id[..12],
            "my-web",
            "replicated",
            "3/3",
            "nginx:latest",
            "*:8080->80/tcp"
        ]
    );
    let table = rig.docker(&["service", "ps", "my-web"]);
    assert_eq!(rows(&table).len(), 4);
    let names = rig.docker(&[
        "service",
        "ps",
        "--format",
        "{{.Name}} {{.Image}} {{.Node}} {{.DesiredState}}",
        "my-web",
    ]);
    let line = |slot: u8| format!("my-web.{slot} nginx:latest manager Running");
    assert_eq!(names.lines().collect::<Vec<_>>(), [line(1), line(2), line(3)]);
    assert!(
        rig.docker(&["service", "scale", "my-web=5"])
            .contains("5 out of 5 tasks")
    );
    let unasked = rig.get(&format!("/services/{id}")).json();
    assert_eq!(unasked["UpdateStatus"], Value::Null, "a scale is no update");
    let said = rig.docker(&[
        "service",
        "update",
        "--image",
        "httpd:latest",
        "--update-delay",
        "1ms",
        "--update-parallelism",
        "0",
        "my-web",
    ]);
    assert!(said.contains("verify: Service my-web converged"), "{said}");
    rig.wait_updated("my-web", "completed");
    let after = rig.get("/services/my-web").json();
    assert_eq!(
        after["PreviousSpec"]["TaskTemplate"]["ContainerSpec"]["Image"],
        "nginx:latest"
    );
    let history = rig.docker(&["service", "ps", "my-web"]);
    assert!(history.contains(" \\_ my-web.1"), "{history}");
    let said = rig.docker(&["service", "rollback", "my-web"]);
    assert!(
        said.contains("rollback: manually requested rollback") && said.contains("verify: Service my-web converged"),
        "{said}"
    );
    rig.wait_updated("my-web", "rollback_completed");
    let after = rig.get("/services/my-web").json();
    assert_eq!(after["Spec"]["TaskTemplate"]["ContainerSpec"]["Image"], "nginx:latest");
    let pretty = rig.docker(&["service", "inspect", "--pretty", "my-web"]);
    for words in [
        "Service Mode:\tReplicated",
        " Replicas:\t5",
        "PublishedPort = 8080",
        "Protocol = tcp",
        "PublishMode = ingress",
    ] {
        assert!(pretty.contains(words), "{words}: {pretty}");
    }
    rig.docker(&[
        "service",
        "update",
        "--detach",
        "--publish-rm",
        "80",
        "--publish-add",
        "8081:81",
        "my-web",
    ]);
    rig.wait_for("the new port", || {
        rig.docker(&["service", "ls", "--format", "{{.Ports}}"]) == "*:8081->81/tcp"
    });
    let held = rig
        .docker_command(&[
            "service", "create", "--detach", "--name", "held", "-p", "9090:80", "nginx",
        ])
        .output()
        .unwrap();
    assert!(held.status.success());
    let warning = String::from_utf8_lossy(&held.stderr);
    assert!(warning.contains("port 9090 is held by nginx (pid 4711)"), "{warning}");
    let clash = rig.docker_fails(&["service", "create", "--name", "clash", "-p", "9090:80", "nginx"]);
    assert!(
        clash.contains("port '9090' is already in use by service 'held'"),
        "{clash}"
    );
    let own = rig.docker(&[
        "service", "create", "--detach", "--name", "any", "-p", "80", "--mode", "global", "nginx",
    ]);
    rig.wait_for("a port", || {
        let ports = rig.get(&format!("/services/{own}")).json()["Endpoint"]["Ports"].clone();
        ports[0]["PublishedPort"] == 30_000
    });
    assert_eq!(
        rig.docker(&["service", "ls", "-q", "--filter", "mode=global"]),
        own[..12]
    );
    assert_eq!(rig.docker(&["service", "ls", "-q", "--filter", "name=my"]), id[..12]);
    assert_eq!(rig.docker(&["service", "rm", "my-web", "any"]), "my-web\nany");
    assert_eq!(rig.docker(&["service", "ls", "--format", "{{.Name}}"]), "held");
    assert!(
        rig.docker_fails(&["service", "ps", "my-web"])
            .contains("no such service: my-web")
    );
}

#[test]
fn every_flag_of_a_service_comes_back() {
    let rig = Rig::swarm();
    rig.docker(&["network", "create", "-d", "overlay", "net"]);
    let network = rig.docker(&["network", "inspect", "-f", "{{.Id}}", "net"]);
    std::fs::write(rig.dir.path().join("file"), "hello").unwrap();
    rig.docker(&["config", "create", "conf", "file"]);
    rig.docker(&["secret", "create", "key", "file"]);
    let id = rig.docker(&[
        "service",
        "create",
        "--detach",
        "--name",
        "all",
        "--label",
        "a=b",
        "--container-label",
        "c=d",
        "--env",
        "E={{.Task.Slot}}",
        "--hostname",
        "h-{{.Node.Hostname}}",
        "--workdir",
        "/w",
        "--user",
        "1000:1000",
        "--group",
        "audio",
        "--constraint",
        "node.role == manager",
        "--placement-pref",
        "spread=node.labels.zone",
        "--replicas-max-per-node",
        "2",
        "--config",
        "source=conf,target=/c,mode=0440",
        "--secret",
        "source=key,target=k,uid=7",
        "--network",
        "name=net,alias=other",
        "--mount",
        "type=tmpfs,target=/t,tmpfs-size=1000000",
        "--mount",
        "type=volume,source=v,target=/v",
        "--limit-memory",
        "64M",
        "--limit-cpu",
        "0.5",
        "--reserve-memory",
        "8M",
        "--restart-condition",
        "on-failure",
        "--restart-delay",
        "1s",
        "--restart-max-attempts",
        "3",
        "--restart-window",
        "10s",
        "--update-parallelism",
        "2",
        "--update-delay",
        "3s",
        "--update-order",
        "start-first",
        "--update-failure-action",
        "rollback",
        "--update-max-failure-ratio",
        "0.25",
        "--update-monitor",
        "7s",
        "--rollback-order",
        "start-first",
        "--rollback-monitor",
        "9s",
        "--stop-grace-period",
        "30s",
        "--stop-signal",
        "SIGINT",
        "--health-cmd",
        "curl x",
        "--health-interval",
        "5s",
        "--health-retries",
        "2",
        "--health-start-period",
        "4s",
        "--health-start-interval",
        "2s",
        "--host",
        "db:192.0.2.9",
        "--dns",
        "192.0.2.53",
        "--log-driver",
        "json-file",
        "--log-opt",
        "max-size=1m",
        "--cap-add",
        "NET_ADMIN",
        "--cap-drop",
        "CHOWN",
        "--sysctl",
        "net.core.somaxconn=100",
        "--ulimit",
        "nofile=100:200",
        "--read-only",
        "--init",
        "--tty",
        "--publish",
        "mode=host,target=53,published=5353,protocol=udp",
        "--entrypoint",
        "run it",
        "nginx:1",
        "one",
        "two",
    ]);
    let spec = rig.get(&format!("/services/{id}")).json()["Spec"].clone();
    let at = |path: &str| spec.pointer(path).cloned().unwrap_or_default();
    let container = |key: &str| at(&format!("/TaskTemplate/ContainerSpec/{key}"));
    assert_eq!(at("/Labels"), json!({ "a": "b" }));
    assert_eq!(at("/Mode"), json!({ "Replicated": { "Replicas": 1 } }));
    assert_eq!(container("Image"), "nginx:1");
    assert_eq!(
        (container("Command"), container("Args")),
        (json!(["run", "it"]), json!(["one", "two"]))
    );
    assert_eq!(container("Env"), json!(["E={{.Task.Slot}}"]));
    assert_eq!(
        container("Healthcheck"),
        json!({
            "Test": ["CMD-SHELL", "curl x"], "Interval": 5_000_000_000_i64, "Retries": 2, "StartPeriod": 4_000_000_000_i64,
            "StartInterval": 2_000_000_000_i64,
        })
    );
    assert_eq!(container("StopGracePeriod"), 30_000_000_000_i64);
    assert_eq!(
        container("Configs/0/File"),
        json!({ "Name": "/c", "UID": "0", "GID": "0", "Mode": 0o440 })
    );
    assert_eq!(
        container("Secrets/0/File"),
        json!({ "Name": "k", "UID": "7", "GID": "0", "Mode": 0o444 })
    );
    assert_eq!(
        container("Ulimits"),
        json!([{ "Name": "nofile", "Soft": 100, "Hard": 200 }])
    );
    assert_eq!(container("Mounts/0/TmpfsOptions/SizeBytes"), 1_000_000);
    assert_eq!(container("Hosts"), json!(["192.0.2.9 db"]));
    assert_eq!(container("TTY"), true);
    assert_eq!(
        at("/TaskTemplate/Networks"),
        json!([{ "Target": network, "Aliases": ["other"] }])
    );
    assert_eq!(at("/TaskTemplate/Placement/MaxReplicas"), 2);
    assert_eq!(
        at("/TaskTemplate/Placement/Constraints"),
        json!(["node.role == manager"])
    );
    assert_eq!(
        at("/TaskTemplate/RestartPolicy"),
        json!({
            "Condition": "on-failure", "Delay": 1_000_000_000, "MaxAttempts": 3, "Window": 10_000_000_000_i64,
        })
    );
    assert_eq!(
        at("/UpdateConfig"),
        json!({
            "Parallelism": 2, "Delay": 3_000_000_000_i64, "FailureAction": "rollback", "Monitor": 7_000_000_000_i64,
            "MaxFailureRatio": 0.25, "Order": "start-first",
        })
    );
    assert_eq!(at("/RollbackConfig/Order"), "start-first");
    assert_eq!(
        at("/EndpointSpec/Ports"),
        json!([
            { "Protocol": "udp", "TargetPort": 53, "PublishedPort": 5353, "PublishMode": "host" },
        ])
    );
    // And the command line can take it all in again.
    rig.docker(&["service", "inspect", "--pretty", "all"]);
    let version = |rig: &Rig| rig.get("/services/all").json()["Version"]["Index"].clone();
    let before = version(&rig);
    rig.docker(&["service", "update", "--detach", "--label-add", "x=y", "all"]);
    assert_ne!(version(&rig), before);
    let mut same = spec;
    same["Labels"]["x"] = json!("y");
    assert_eq!(rig.get("/services/all").json()["Spec"], same);
    assert_eq!(
        rig.snapshot().services().next().unwrap().template,
        1,
        "labels replace no tasks"
    );
}

#[test]
fn what_is_not_served_yet_is_said() {
    let rig = Rig::swarm();
    let mut body = service("dns", None);
    body["EndpointSpec"] = json!({ "Ports": [{ "TargetPort": 53, "PublishedPort": 53, "Protocol": "udp" }] });
    let created = rig.post("/services/create", &body).json();
    let warning = created["Warnings"][0].as_str().unwrap();
    assert!(warning.contains("53/udp"), "{warning}");
    let created = rig.post("/services/create", &service("web", Some(80))).json();
    assert_eq!(created.get("Warnings"), Some(&Value::Null), "said to be none");
}

#[test]
fn configs_secrets_and_networks() {
    let rig = Rig::swarm();
    std::fs::write(rig.dir.path().join("file"), "hello").unwrap();
    for kind in ["config", "secret"] {
        let id = rig.docker(&[kind, "create", "--label", "a=b", "thing", "file"]);
        assert_eq!(id.len(), 25);
        assert_eq!(rows(&rig.docker(&[kind, "ls"]))[1][0], id);
        assert_eq!(rig.docker(&[kind, "ls", "-q", "--filter", "label=a=b"]), id);
        assert_eq!(rig.docker(&[kind, "ls", "-q", "--filter", "name=other"]), "");
        let shown: Value = serde_json::from_str(&rig.docker(&[kind, "inspect", "THING"])).unwrap();
        let spec = &shown[0]["Spec"];
        assert_eq!(
            (&spec["Name"], &spec["Labels"]),
            (&json!("thing"), &json!({ "a": "b" }))
        );
        match kind {
            "config" => assert_eq!(spec["Data"], "aGVsbG8="),
            _ => assert_eq!(spec.get("Data"), None),
        }
        assert_eq!(rig.docker(&[kind, "rm", "thing"]), "thing");
        assert_eq!(rig.docker(&[kind, "ls", "-q"]), "");
    }
    let id = rig.docker(&[
        "network",
        "create",
        "-d",
        "overlay",
        "--attachable",
        "--label",
        "a=b",
        "--subnet",
        "10.9.0.0/24",
        "net",
    ]);
    let table = rig.docker(&["network", "ls", "--no-trunc", "--filter", "name=ne"]);
    assert_eq!(rows(&table)[1], [&*id, "net", "overlay", "swarm"]);
    let shown: Value = serde_json::from_str(&rig.docker(&["network", "inspect", "net"])).unwrap();
    assert_eq!(
        shown[0]["IPAM"]["Config"],
        json!([{ "Subnet": "10.9.0.0/24", "Gateway": "10.9.0.1" }])
    );
    assert_eq!(
        (&shown[0]["Attachable"], &shown[0]["Scope"]),
        (&json!(true), &json!("swarm"))
    );
    let names = |filter: &str| rig.docker(&["network", "ls", "--format", "{{.Name}}", "--filter", filter]);
    assert_eq!(names("driver=overlay"), "ingress\nnet");
    assert_eq!(names("label=a"), "net");
    assert_eq!(names("type=custom"), "net");
    assert_eq!(names("scope=local"), "");
    assert_eq!(rig.docker(&["network", "rm", "net"]), "net");
    assert_eq!(names("driver=overlay"), "ingress");
}
