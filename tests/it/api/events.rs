//! `docker events`: what changes in the swarm, and what the engine beside it says.

use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::sync::mpsc;
use std::time::Duration;

use anynode::model::volume::{MountOf, TaskMount};
use serde_json::{Value, json};

use super::engine::Engine;
use super::rig::{LONG, Rig, service};

/// Events as they come.
fn events(rig: &Rig, args: &[&str]) -> (mpsc::Receiver<Value>, std::process::Child) {
    let mut command = rig.docker_command(&[&["events", "--format", "{{json .}}"], args].concat());
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        for line in lines.map_while(Result::ok) {
            let _ = sender.send(serde_json::from_str(&line).unwrap());
        }
    });
    // Until it is heard, nothing may happen.
    std::thread::sleep(Duration::from_millis(500));
    (receiver, child)
}

/// The next event with these members.
fn wait(events: &mpsc::Receiver<Value>, kind: &str, action: &str) -> Value {
    loop {
        let event = events
            .recv_timeout(LONG)
            .unwrap_or_else(|_| panic!("no {kind} {action}"));
        if event["Type"] == kind && event["Action"] == action {
            return event;
        }
    }
}

#[test]
fn of_all_kinds() {
    let rig = Rig::swarm();
    let (of_tasks, mut child_of_tasks) = events(&rig, &["--filter", "type=task"]);
    let (events, mut child) = events(&rig, &[]);
    rig.post("/networks/create", &json!({ "Name": "net", "Driver": "overlay" }));
    assert_eq!(wait(&events, "network", "create")["Actor"]["Attributes"]["name"], "net");
    let mut body = service("web", None);
    let id = rig.post("/services/create", &body).json()["ID"].clone();
    let created = wait(&events, "service", "create");
    assert_eq!((&created["Actor"]["ID"], &created["scope"]), (&id, &json!("swarm")));
    assert_eq!(created["Actor"]["Attributes"], json!({ "name": "web" }));
    let task = wait(&of_tasks, "task", "create");
    assert!(
        task["Actor"]["Attributes"]["name"]
            .as_str()
            .unwrap()
            .starts_with("web.1.")
    );
    loop {
        let update = wait(&of_tasks, "task", "update");
        if update["Actor"]["Attributes"]["state"] == "running" {
            break;
        }
    }
    let now = rig.get("/services/web").json();
    body["Mode"] = json!({ "Replicated": { "Replicas": 3 } });
    body["TaskTemplate"]["ContainerSpec"]["Image"] = json!("nginx:2");
    rig.post(
        &format!("/services/web/update?version={}", now["Version"]["Index"]),
        &body,
    );
    let attributes = loop {
        let update = wait(&events, "service", "update")["Actor"]["Attributes"].clone();
        if update.get("image.new").is_some() {
            break update;
        }
    };
    assert_eq!(
        (&attributes["image.old"], &attributes["image.new"]),
        (&json!("nginx:latest"), &json!("nginx:2"))
    );
    assert_eq!(
        (&attributes["replicas.old"], &attributes["replicas.new"]),
        (&json!("1"), &json!("3"))
    );
    rig.docker(&["node", "update", "--availability", "drain", "manager"]);
    let node = wait(&events, "node", "update")["Actor"]["Attributes"].clone();
    assert_eq!(
        (&node["availability.old"], &node["availability.new"]),
        (&json!("active"), &json!("drain"))
    );
    rig.post("/configs/create", &json!({ "Name": "conf", "Data": "YQ==" }));
    wait(&events, "config", "create");
    rig.delete("/configs/conf");
    wait(&events, "config", "remove");
    rig.delete("/services/web");
    wait(&events, "service", "remove");
    wait(&of_tasks, "task", "remove");
    for child in [&mut child, &mut child_of_tasks] {
        child.kill().unwrap();
        child.wait().unwrap();
    }
}

#[test]
fn of_the_past_and_of_some_kinds() {
    let rig = Rig::swarm();
    rig.post("/services/create", &service("web", None));
    rig.post("/services/create", &service("db", None));
    rig.wait_running("db", 1);
    rig.wait_running("web", 1);
    // The command line says only the second until which it wants them.
    std::thread::sleep(Duration::from_millis(1100));
    let past = |filters: &[&str]| -> Vec<(String, String, String)> {
        let mut args = vec!["events", "--since", "5m", "--until", "0s", "--format", "{{json .}}"];
        filters.iter().for_each(|filter| args.extend(["--filter", filter]));
        let said = rig.docker(&args);
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        said.lines()
            .map(|line| serde_json::from_str::<Value>(line).unwrap())
            .map(|event| {
                (
                    text(&event["Type"]),
                    text(&event["Action"]),
                    text(&event["Actor"]["Attributes"]["name"]),
                )
            })
            .collect()
    };
    let service = |name: &str| ("service".to_owned(), "create".to_owned(), name.to_owned());
    assert_eq!(past(&["type=service", "event=create"]), [service("web"), service("db")]);
    assert_eq!(past(&["type=service", "event=create", "service=db"]), [service("db")]);
    assert!(past(&["type=task", "event=update"]).len() >= 2);
    // Clients that know only Docker's types may end at one that they do not know.
    let all = past(&[]);
    assert!(
        all.contains(&service("db")) && all.iter().all(|(kind, ..)| kind != "task"),
        "{all:?}"
    );
    assert!(past(&["scope=local"]).is_empty());
    let reply = rig.get("/events?filters=%7B%22colour%22:[%22x%22]%7D&until=1");
    assert_eq!(
        (reply.status, reply.message().as_str()),
        (400, "invalid filter 'colour'")
    );
    assert_eq!(rig.get("/events?until=tomorrow").status, 400);
    let started = std::time::Instant::now();
    assert!(rig.get("/events?until=1").body.is_empty());
    assert!(started.elapsed() < Duration::from_secs(2));
}

#[test]
fn two_thousand_are_kept_and_those_of_tasks_push_no_others_out() {
    let rig = Rig::swarm();
    rig.post("/services/create", &service("first", None));
    for n in 0..300 {
        rig.post("/configs/create", &json!({ "Name": format!("c{n}"), "Data": "YQ==" }));
    }
    // More events of tasks than are kept.
    let mut body = service("many", None);
    body["Mode"] = json!({ "Replicated": { "Replicas": 600 } });
    rig.post("/services/create", &body);
    rig.wait_running("many", 600);
    std::thread::sleep(Duration::from_millis(1100));
    let past = |filter: &str| {
        let args = [
            "events",
            "--since",
            "1h",
            "--until",
            "0s",
            "--filter",
            filter,
            "--format",
            "{{.Actor.Attributes.name}}",
        ];
        rig.docker(&args).lines().map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(past("type=config").len(), 300);
    assert_eq!(past("type=service").first().map(String::as_str), Some("first"));
    assert_eq!(past("type=task").len(), 2_000);
}

#[test]
fn of_the_engine_too() {
    let engine = Engine::start();
    let rig = Rig::beside(engine.socket());
    let (events, mut child) = events(&rig, &[]);
    assert_eq!(wait(&events, "container", "start")["Actor"]["ID"], "c1");
    rig.post("/swarm/init", &json!({}));
    wait(&events, "node", "create");
    child.kill().unwrap();
    child.wait().unwrap();
    engine.wait_gone("/events");
}

/// What was told of this kind until now, with these filters: each with its action, its actor and what is said of that.
fn told(rig: &Rig, filters: &Value) -> Vec<(String, String, Value)> {
    let filters: String = filters.to_string().bytes().map(|byte| format!("%{byte:02X}")).collect();
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap();
    let until = format!("{}.{:09}", now.as_secs(), now.subsec_nanos());
    let said = rig.get(&format!("/events?since=1&until={until}&filters={filters}"));
    let said = String::from_utf8(said.body).unwrap();
    let events = said.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    events
        .inspect(|event| assert_eq!(event["scope"], "local", "{event}"))
        .map(|event| {
            (
                text(&event["Action"]),
                text(&event["Actor"]["ID"]),
                event["Actor"]["Attributes"].clone(),
            )
        })
        .collect()
}

#[test]
fn of_volumes() {
    let rig = Rig::with_volumes();
    let volumes = rig.around.volumes.lock().unwrap().clone().unwrap();
    let (live, mut child) = events(&rig, &["--filter", "type=volume", "--filter", "volume=da"]);
    rig.docker(&["volume", "create", "data"]);
    rig.docker(&["volume", "create", "data"]);
    rig.docker(&["volume", "create", "other"]);
    wait(&live, "volume", "create");
    let mount = |of: MountOf, target: &str, is_writable: bool| TaskMount {
        of,
        target: target.into(),
        is_writable,
    };
    let of_volume = |name: Option<&str>, source: &str| MountOf::Volume {
        name: name.map(str::to_owned),
        source: source.into(),
    };
    *volumes.mounts.lock().unwrap() = vec![
        mount(of_volume(Some("data"), "/volumes/data/_data"), "/app", false),
        mount(of_volume(None, "/tasks/x/volumes/3"), "/cache", true),
        mount(MountOf::Bind { source: "/srv".into() }, "/srv", true),
        mount(MountOf::Memory, "/run", true),
    ];
    let mut body = service("web", None);
    body["TaskTemplate"]["ContainerSpec"]["Mounts"] = json!([
        { "Type": "volume", "Source": "data", "Target": "/app", "ReadOnly": true },
        { "Type": "volume", "Target": "/cache" },
        { "Type": "bind", "Source": "/srv", "Target": "/srv" },
        { "Type": "tmpfs", "Target": "/run" },
    ]);
    rig.post("/services/create", &body);
    let mounted = wait(&live, "volume", "mount");
    let container = mounted["Actor"]["Attributes"]["container"].as_str().unwrap().to_owned();
    let shown = rig.get(&format!("/containers/{container}/json")).json();
    let nameless = format!("{container}-3");
    let mounts = |shown: &Value| {
        let mounts = shown.as_array().unwrap().clone();
        mounts
            .iter()
            .map(|mount| mount["Destination"].as_str().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(mounts(&shown["Mounts"]), ["/app", "/cache", "/srv", "/run"]);
    assert_eq!(
        shown["Mounts"][0],
        json!({
            "Type": "volume", "Name": "data", "Source": "/volumes/data/_data", "Destination": "/app", "Driver": "local",
            "Mode": "z", "RW": false, "Propagation": "",
        })
    );
    assert_eq!(shown["Mounts"][1]["Name"], nameless.as_str());
    assert_eq!(
        shown["Mounts"][2],
        json!({
            "Type": "bind", "Source": "/srv", "Destination": "/srv", "Mode": "", "RW": true, "Propagation": "rprivate",
        })
    );
    assert_eq!(
        (&shown["Mounts"][3]["Type"], &shown["Mounts"][3]["Source"]),
        (&json!("tmpfs"), &json!(""))
    );
    assert_eq!(shown["HostConfig"]["Binds"], Value::Null);
    assert_eq!(
        shown["HostConfig"]["Mounts"],
        body["TaskTemplate"]["ContainerSpec"]["Mounts"]
    );
    rig.delete("/services/web");
    wait(&live, "volume", "unmount");
    rig.docker(&["volume", "rm", "data"]);
    wait(&live, "volume", "destroy");
    child.kill().unwrap();
    child.wait().unwrap();
    rig.docker(&["volume", "prune", "--all", "--force"]);
    let of_data = told(&rig, &json!({ "volume": ["data"] }));
    let expected = [
        ("create", json!({ "driver": "local" })),
        (
            "mount",
            json!({ "driver": "local", "container": container, "destination": "/app", "read/write": "false", "propagation": "" }),
        ),
        ("unmount", json!({ "driver": "local", "container": container })),
        ("destroy", json!({ "driver": "local" })),
    ];
    let expected = expected.map(|(action, about)| (action.to_owned(), "data".to_owned(), about));
    assert_eq!(of_data, expected);
    let of_nameless = told(&rig, &json!({ "volume": [nameless], "event": ["mount"] }));
    assert_eq!(of_nameless.len(), 1, "{of_nameless:?}");
    let pruned = told(&rig, &json!({ "type": ["volume"], "event": ["prune"] }));
    assert_eq!(
        pruned,
        [("prune".to_owned(), String::new(), json!({ "reclaimed": "1" }))]
    );
    assert!(told(&rig, &json!({ "type": ["volume"], "scope": ["swarm"] })).is_empty());
}

#[test]
fn of_programs_beside_tasks() {
    let rig = Rig::with_volumes();
    let mut body = service("web", None);
    body["TaskTemplate"]["ContainerSpec"]["Labels"] = json!({ "tier": "front" });
    rig.post("/services/create", &body);
    rig.wait_running("web", 1);
    let shown = rig.get("/containers/json").json()[0].clone();
    let (container, name) = (shown["Id"].as_str().unwrap(), shown["Names"][0].as_str().unwrap());
    let asks = json!({ "Cmd": ["sh", "-c", "true"] });
    let id = rig.post(&format!("/containers/{container}/exec"), &asks).json()["Id"].clone();
    rig.post(
        &format!("/exec/{}/start", id.as_str().unwrap()),
        &json!({ "Detach": true }),
    );
    let all = told(&rig, &json!({ "container": [&container[..12]] }));
    let actions: Vec<&str> = all.iter().map(|(action, ..)| action.as_str()).collect();
    // The made-up node runs none, so that none ends.
    assert_eq!(actions, ["exec_create: sh -c true", "exec_start: sh -c true"]);
    for (_, actor, about) in &all {
        assert_eq!(actor, container);
        assert_eq!((&about["execID"], &about["image"]), (&id, &json!("nginx:latest")));
        assert_eq!(
            (&about["tier"], about["name"].as_str()),
            (&json!("front"), name.strip_prefix('/'))
        );
        assert_eq!(about["com.docker.swarm.service.name"], "web");
    }
    for (filters, n) in [
        (json!({ "type": ["container"] }), 2),
        (json!({ "event": ["exec_create"] }), 1),
        (json!({ "event": ["exec_start: sh -c true"] }), 1),
        (json!({ "event": ["exec_die"] }), 0),
        (json!({ "label": ["tier=front"] }), 2),
        (json!({ "label": ["tier=back"] }), 0),
        (json!({ "image": ["nginx"] }), 2),
        (json!({ "image": ["nginx:latest"], "container": ["web"] }), 2),
        (json!({ "image": ["httpd"] }), 0),
        (json!({ "container": ["nobody"] }), 0),
    ] {
        assert_eq!(told(&rig, &filters).len(), n, "{filters}");
    }
    let raw = rig.get("/events?since=5&until=4");
    assert_eq!(
        (raw.status, raw.message().as_str()),
        (400, "`since` time (5) cannot be after `until` time (4)")
    );
}
