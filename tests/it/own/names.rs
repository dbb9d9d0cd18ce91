//! From inside tasks, the services of their networks by name and by address: what `docker network create` and `--network`
//! promise, on both runtimes.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use super::rig::{self, LONG, Own, Tasks};

/// The process of a service's first task.
pub(super) fn pid_of(own: &Own, service: &str) -> Option<u32> {
    let task = own.docker(&["service", "ps", "-q", "-f", "desired-state=running", service]);
    let task = task.lines().next()?;
    let format = "{{.Status.State}} {{.Status.ContainerStatus.PID}}";
    let said = own.docker_out(&["inspect", "--type", "task", "-f", format, task]);
    let said = String::from_utf8(said.stdout).ok()?;
    said.trim().strip_prefix("running ")?.parse().ok()
}

/// What a program says that runs in a task's network and with its files; without them, only in its network.
pub(super) fn inside(pid: u32, has_files: bool, words: &[&str]) -> (i32, String) {
    let pid = pid.to_string();
    let mut command = Command::new("nsenter");
    command.args(["-t", &pid, "-n"]);
    if has_files {
        command.arg("-m");
    }
    let out = command.arg("--").args(words).output().unwrap();
    let said = String::from_utf8_lossy(&out.stdout).trim().to_owned();
    (out.status.code().unwrap_or(-1), said)
}

pub(super) fn dig(pid: u32, words: &str) -> String {
    let mut all = vec!["dig", "@127.0.0.77", "+short", "+time=2", "+tries=1"];
    all.extend(words.split_whitespace());
    inside(pid, false, &all).1
}

/// The addresses of a service's first task, as the API says them, by the names of its networks.
pub(super) fn addresses_of(own: &Own, service: &str) -> BTreeMap<String, String> {
    let task = own.docker(&["service", "ps", "-q", "-f", "desired-state=running", service]);
    let format = "{{range .NetworksAttachments}}{{.Network.Spec.Name}} {{index .Addresses 0}}\n{{end}}";
    let task = task.lines().next().unwrap_or_default();
    let said = own.docker(&["inspect", "--type", "task", "-f", format, task]);
    let pairs = said.lines().filter_map(|line| line.split_once(' '));
    let bare = |address: &str| address.split('/').next().unwrap_or_default().to_owned();
    pairs
        .map(|(network, address)| (network.to_owned(), bare(address)))
        .collect()
}

/// Whether a URL answers from inside.
fn answers(pid: u32, url: &str) -> bool {
    inside(pid, true, &["curl", "-f", "-s", "-m", "5", url]).0 == 0
}

fn names(name: &str, tasks: Tasks) {
    let Some(mut own) = rig::up(name, tasks) else { return };
    own.start();
    own.docker(&["swarm", "init"]);
    for network in ["front", "back"] {
        own.docker(&["network", "create", "-d", "overlay", network]);
    }
    let create = |name: &str, more: &[&str]| {
        let mut words = vec!["service", "create", "--detach", "-e", "PORT=80", "--name", name];
        words.extend(more);
        words.push("nginx:latest");
        own.docker(&words);
    };
    create(
        "api",
        &[
            "--network",
            "name=front,alias=backend,alias=Api.example.test",
            "--network",
            "back",
            "--replicas",
            "2",
            "--hostname",
            "api-{{.Task.Slot}}",
        ],
    );
    create("web", &["--network", "front", "--publish", "8080:80"]);
    create("lone", &["--network", "back"]);
    create(
        "each",
        &["--network", "front", "--endpoint-mode", "dnsrr", "--replicas", "2"],
    );
    create("empty", &["--network", "front", "--replicas", "0"]);
    for service in ["api", "web", "lone", "each"] {
        own.wait_for(service, LONG, || pid_of(&own, service).is_some());
    }
    let (api, web, lone) = (
        pid_of(&own, "api").unwrap(),
        pid_of(&own, "web").unwrap(),
        pid_of(&own, "lone").unwrap(),
    );
    // Whoever comes from outside is seen as well.
    let peer = |from: Command, args: &[&str]| {
        let mut from = from;
        let out = from.args(["-s", "-m", "5"]).args(args).output().unwrap();
        let answer: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap_or_default();
        (
            answer["peer"].as_str().unwrap_or_default().to_owned(),
            answer["peer_port"].as_u64(),
        )
    };
    let seen = match tasks {
        Tasks::Containers => peer(own.client("curl"), &["--local-port", "5555", "http://10.213.0.1:8080"]),
        Tasks::Processes => {
            let add = own
                .inside("ip")
                .args(["addr", "add", "10.213.0.100/32", "dev", "lo"])
                .status();
            assert!(add.unwrap().success());
            peer(
                own.inside("curl"),
                &["--local-port", "5555", "http://10.213.0.100:8080"],
            )
        }
    };
    assert_eq!(seen, ("10.213.0.100".to_owned(), Some(5555)));
    let vip = |service: &str, n: usize| {
        let format = format!("{{{{(index .Endpoint.VirtualIPs {n}).Addr}}}}");
        let addr = own.docker(&["service", "inspect", "-f", &format, service]);
        addr.split('/').next().unwrap().to_owned()
    };
    // By name and alias, in any case; each network has an address of its own.
    let front = dig(web, "api");
    assert!([vip("api", 0), vip("api", 1)].contains(&front), "{front}");
    assert_eq!(dig(web, "backend"), front);
    assert_eq!(dig(web, "API"), front);
    assert_eq!(dig(web, "+tcp api"), front);
    for words in [
        "@127.0.0.11 api",
        "+tcp @127.0.0.11 api",
        "api.example.test",
        "api.example.test.front",
    ] {
        assert_eq!(dig(web, words), front, "{words}");
    }
    assert_eq!(dig(lone, "api.example.test"), "", "an alias is of one network");
    // Each task has names of its own: by its slot, its hostname, its container's short id.
    let of_api: BTreeSet<String> = dig(web, "tasks.api.example.test").lines().map(str::to_owned).collect();
    for names in [
        ["1.api", "2.api"],
        ["1.backend.front", "2.api.example.test"],
        ["api-1", "API-2.front"],
    ] {
        assert_eq!(
            names.map(|name| dig(web, name)).into_iter().collect::<BTreeSet<_>>(),
            of_api,
            "{names:?}"
        );
        assert_eq!(dig(web, names[0]), dig(web, "1.api"), "{names:?}");
    }
    assert_eq!(dig(web, "3.api"), "");
    assert_eq!(dig(lone, "1.web"), "");
    let format = "{{.Status.ContainerStatus.ContainerID}}";
    let task = own.docker(&["service", "ps", "-q", "lone"]);
    let short_id: String = own
        .docker(&["inspect", "--type", "task", "-f", format, &task])
        .chars()
        .take(12)
        .collect();
    assert_eq!(dig(api, &short_id), dig(lone, "tasks.lone"), "{short_id}");
    assert_eq!(dig(web, &short_id), "");
    assert_ne!(dig(lone, "api"), front);
    assert_eq!(dig(lone, "backend"), "");
    assert_eq!(dig(web, "tasks.api").lines().count(), 2);
    assert_eq!(dig(web, "each").lines().count(), 2);
    assert_eq!(dig(web, "empty"), vip("empty", 0));
    assert_eq!(dig(web, "tasks.empty"), "");
    assert_eq!(dig(web, &format!("-x {front}")), "api.front.");
    // Any port of any of them.
    for url in [
        "http://api:80/",
        "http://backend:80/",
        "http://each:80/",
        "http://web:80/",
    ] {
        assert!(answers(web, url), "{url}");
    }
    assert!(answers(web, &format!("http://{front}:80/")));
    assert!(!answers(web, "http://api:81/"), "nobody listens there");
    for each in dig(web, "tasks.api").lines() {
        assert!(answers(web, &format!("http://{each}:80/")), "{each}");
    }
    // A task's own address on each of its networks is what names, the API and the task itself say, and what others see.
    let of = |service: &str| addresses_of(&own, service);
    let (of_web, of_lone) = (of("web"), of("lone"));
    assert_eq!(of_web.keys().collect::<Vec<_>>(), ["front"]);
    assert_eq!(dig(web, "tasks.web"), of_web["front"]);
    assert_eq!(dig(lone, "tasks.lone"), of_lone["back"]);
    assert!(dig(web, &format!("-x {}", of_web["front"])).starts_with("web.1."));
    for (pid, addresses) in [(web, of_web.clone()), (lone, of_lone.clone()), (api, of("api"))] {
        let hosts = std::fs::read_to_string(format!("/proc/{pid}/root/etc/hosts")).unwrap();
        for address in addresses.values() {
            let mut lines = hosts
                .lines()
                .filter(|line| line.split_whitespace().next() == Some(address));
            assert!(
                lines
                    .next()
                    .is_some_and(|line| line.split_whitespace().nth(1).is_some()),
                "{hosts}"
            );
        }
        if tasks == Tasks::Containers {
            let bridge = inside(pid, false, &["ip", "-4", "-o", "addr", "show", "eth0"]).1;
            let bridge = bridge
                .split_whitespace()
                .nth(3)
                .and_then(|net| net.split('/').next())
                .unwrap();
            assert!(!hosts.contains(bridge), "{hosts}");
        }
    }
    assert!(dig(web, "tasks.api").contains(&of("api")["front"]));
    assert!(dig(lone, "tasks.api").contains(&of("api")["back"]));
    let asked = |from: u32, at: &str| {
        let url = format!("http://{at}:80/");
        let said = inside(from, false, &["curl", "-f", "-s", "-m", "5", &url]).1;
        let answer: serde_json::Value = serde_json::from_str(&said).unwrap_or_default();
        answer["peer"].as_str().unwrap_or_default().to_owned()
    };
    assert_eq!(asked(web, &of("api")["front"]), of_web["front"]);
    assert_eq!(asked(lone, &of("api")["back"]), of_lone["back"]);
    assert_eq!(
        asked(web, &front),
        of_web["front"],
        "through the service's own address too"
    );
    assert_eq!(asked(web, &of_web["front"]), of_web["front"], "and itself");
    assert_eq!(asked(web, &of("api")["back"]), "", "on another network it is not there");
    assert_eq!(asked(web, &of_lone["back"]), "");
    if tasks == Tasks::Processes {
        // The way out, which is the host's; its own loopback is not.
        assert!(answers(web, "http://10.213.0.100:8080/"));
        assert!(!answers(web, "http://10.213.0.100:8079/"));
        assert!(!answers(web, "http://127.0.0.1:9377/livez"));
        let metrics = own.curl("http://127.0.0.1:9377/metrics").unwrap();
        for reason in ["client_fin", "connect_failed"] {
            let series = format!("anynode_outgoing_connections_closed_total{{reason=\"{reason}\"}} 1");
            assert!(metrics.contains(&series), "{series} in\n{metrics}");
        }
    }
    let status: serde_json::Value = serde_json::from_str(&own.anynode(&["status", "--json"])).unwrap();
    assert_eq!(status["task_networks"], 6, "{status}");
    // What is of another network is not there, by name or by address.
    let other = vip("lone", 0);
    assert_eq!(dig(web, "lone"), "");
    assert!(!answers(web, &format!("http://{other}:80/")));
    assert!(!answers(web, &format!("http://{}:80/", dig(lone, "api"))));
    assert!(answers(api, "http://lone:80/") && answers(lone, "http://api:80/"));
    let resolv = inside(web, true, &["curl", "-s", "file:///etc/resolv.conf"]).1;
    let resolv = match tasks {
        Tasks::Processes => resolv,
        Tasks::Containers => std::fs::read_to_string(format!("/proc/{web}/root/etc/resolv.conf")).unwrap(),
    };
    assert!(resolv.lines().any(|line| line == "nameserver 127.0.0.77"), "{resolv}");
    if tasks == Tasks::Containers {
        // What holds their networks is nobody's to care for.
        let shown = own.docker(&["ps", "-q"]).lines().count();
        let out = own.engine(&["ps", "-q"]).output().unwrap();
        let there = String::from_utf8_lossy(&out.stdout).lines().count();
        assert_eq!((shown, there), (6, 12));
        let id = own.docker(&["ps", "-q", "-f", "label=com.docker.swarm.service.name=web"]);
        assert_eq!(inside(web, true, &["curl", "-f", "http://localhost:80/"]).0, 0);
        let hostname = own.docker(&["exec", &id, "/task", "hostname"]);
        assert_eq!(hostname, id);
    }
    // Another run of anynode finds them, and they it.
    own.kill();
    own.start();
    own.wait_for("names again", LONG, || dig(web, "api") == front);
    own.wait_for("the services again", LONG, || answers(web, "http://api:80/"));
    assert_eq!(pid_of(&own, "web"), Some(web));
    own.docker(&["service", "scale", "--detach", "empty=1"]);
    assert!(answers(web, "http://empty:80/"), "it waits for the first task");
    // A name that goes.
    own.docker(&["service", "rm", "each"]);
    own.wait_for("the name to go", LONG, || dig(web, "each").is_empty());
    own.docker(&["swarm", "leave", "--force"]);
    own.wait_for("all to end", LONG, || own.living_tasks().is_empty());
}

#[test]
fn services_by_name_from_inside_containers() {
    names("names-c", Tasks::Containers);
}

#[test]
fn services_by_name_from_inside_processes() {
    names("names-p", Tasks::Processes);
}
