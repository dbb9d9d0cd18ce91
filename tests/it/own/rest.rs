//! Nothing spins: what cannot run is tried again at its pace, what is at rest writes nothing, and who asks for too much is told
//! so, while everybody else is answered.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::rig::{self, LONG, Own, Tasks};

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap())
}

/// One connection to the API, kept.
struct Door(BufReader<UnixStream>);

impl Door {
    fn open(own: &Own) -> Door {
        let stream = UnixStream::connect(own.socket()).unwrap();
        stream.set_read_timeout(Some(LONG)).unwrap();
        Door(BufReader::new(stream))
    }

    /// The answer's status and body, whose length the API always says.
    fn ask(&mut self, method: &str, path: &str, body: &str) -> (u16, String) {
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: docker\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        self.0.get_mut().write_all(format!("{head}{body}").as_bytes()).unwrap();
        let (mut status, mut length) = (0, 0);
        loop {
            let mut line = String::new();
            self.0.read_line(&mut line).unwrap();
            let line = line.trim_end().to_lowercase();
            if let Some(rest) = line.strip_prefix("http/1.1 ") {
                status = rest[..3].parse().unwrap();
            }
            if let Some(rest) = line.strip_prefix("content-length: ") {
                length = rest.parse().unwrap();
            }
            if line.is_empty() {
                break;
            }
        }
        let mut body = vec![0; length];
        self.0.read_exact(&mut body).unwrap();
        (status, String::from_utf8(body).unwrap())
    }
}

/// What of a node is written and used, in all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Spent {
    ticks: u64,
    /// Of the store's file: when it was written last, in nanoseconds.
    written_at: i128,
    log_bytes: u64,
}

fn spent(own: &Own) -> Spent {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", own.pid())).unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    let store = std::fs::metadata(own.data_dir().join("store/store.redb")).unwrap();
    Spent {
        ticks: fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap(),
        written_at: i128::from(store.mtime()) * 1_000_000_000 + i128::from(store.mtime_nsec()),
        log_bytes: std::fs::metadata(own.dir().join("log")).unwrap().len(),
    }
}

/// When nothing was written for a second.
fn wait_for_rest(own: &Own) {
    let mut last = (spent(own), Instant::now());
    own.wait_for("rest", LONG * 5, || {
        let now = spent(own);
        if (now.written_at, now.log_bytes) != (last.0.written_at, last.0.log_bytes) {
            last = (now, Instant::now());
        }
        last.1.elapsed() > Duration::from_secs(1)
    });
}

/// Tasks that were ever seen of a service.
fn see(own: &Own, service: &str, seen: &mut BTreeSet<String>) {
    let ids = own.docker(&["service", "ps", service, "--no-trunc", "--format", "{{.ID}}"]);
    seen.extend(ids.lines().map(str::to_owned));
}

/// A task that cannot even be prepared is followed by another once a restart delay, and no sooner.
fn rejected(own: &Own, args: &[&str], error: &str) {
    let mut words = vec!["service", "create", "--detach", "--name", "none", "--no-resolve-image"];
    words.extend(["--restart-delay", "1s"]);
    words.extend(args);
    let started = Instant::now();
    own.docker(&words);
    let mut seen = BTreeSet::new();
    own.wait_for("the fourth task", LONG, || {
        see(own, "none", &mut seen);
        seen.len() >= 4
    });
    let took = started.elapsed();
    // So many were made when the last of them were looked at.
    let n_most = took.as_secs() as usize + 1;
    assert!(seen.len() <= n_most, "{} tasks in {took:?}", seen.len());
    let errors = own.docker(&[
        "service",
        "ps",
        "none",
        "--no-trunc",
        "--format",
        "{{.CurrentState}} {{.Error}}",
    ]);
    let rejected = errors.lines().filter(|line| line.starts_with("Rejected"));
    assert!(rejected.filter(|line| line.contains(error)).count() >= 3, "{errors}");
    own.docker(&["service", "rm", "none"]);
}

/// What a node has read and asked its kernel to read.
fn n_reads(own: &Own) -> u64 {
    let io = std::fs::read_to_string(format!("/proc/{}/io", own.pid())).unwrap();
    let reads = io.lines().find_map(|line| line.strip_prefix("syscr: "));
    reads.unwrap().parse().unwrap()
}

/// Each task costs what the first one did: nobody reads through all that are there for each that comes.
#[test]
fn many_tasks_that_start_together_cost_each_what_one_does() {
    let Some(mut own) = rig::up("together", Tasks::Processes) else {
        return;
    };
    own.start();
    own.docker(&["swarm", "init"]);
    let n = number("ANYNODE_TOGETHER_TASKS", 60);
    let before = n_reads(&own);
    let replicas = n.to_string();
    let create = [
        "service",
        "create",
        "--detach",
        "--no-resolve-image",
        "--name",
        "many",
        "--replicas",
    ];
    own.docker(&[&create[..], &[&replicas, "anynode/whoami"]].concat());
    own.wait_for("all of them", LONG * 3, || {
        own.docker(&["service", "ls", "--format", "{{.Replicas}}"]).trim() == format!("{n}/{n}")
    });
    let each = (n_reads(&own) - before) / n;
    // A dozen; with what is read of each other task, a hundred.
    assert!(each < 40, "{each} reads for each of {n} tasks");
}

/// Of a node, in kB: the most memory that it ever had.
fn most_memory(own: &Own) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", own.pid())).unwrap();
    let most = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    most.unwrap().trim().trim_end_matches(" kB").parse().unwrap()
}

/// A task says as much as it can, and nobody who asked for it reads.
#[test]
fn output_that_nobody_reads_is_not_in_memory() {
    let Some(mut own) = rig::up("unread", Tasks::Processes) else {
        return;
    };
    own.start();
    own.docker(&["swarm", "init"]);
    let create = [
        "service",
        "create",
        "--detach",
        "--no-resolve-image",
        "--name",
        "loud",
        "--entrypoint",
        "yes",
    ];
    own.docker(&[&create[..], &["anynode/whoami"]].concat());
    // So much is kept of it at most, and all of it is asked for.
    own.wait_for("three files", LONG * 2, || {
        let tasks = std::fs::read_dir(own.data_dir().join("tasks")).into_iter().flatten();
        let n_bytes = |path: std::path::PathBuf| {
            let files = std::fs::read_dir(path).into_iter().flatten().flatten();
            files.filter_map(|file| Some(file.metadata().ok()?.len())).sum::<u64>()
        };
        tasks.flatten().any(|task| n_bytes(task.path()) > 20_000_000)
    });
    let before = most_memory(&own);
    let clients: Vec<UnixStream> = (0..60)
        .map(|n| {
            let mut client = UnixStream::connect(own.socket()).unwrap();
            let tail = if n % 2 == 0 { "all" } else { "1000" };
            let path = format!("/v1.41/services/loud/logs?stdout=1&stderr=1&follow=1&tail={tail}");
            write!(client, "GET {path} HTTP/1.1\r\nHost: docker\r\n\r\n").unwrap();
            // It has begun.
            client.set_read_timeout(Some(LONG)).unwrap();
            client.read_exact(&mut [0; 1_000]).unwrap();
            client
        })
        .collect();
    let mut door = Door::open(&own);
    for _ in 0..20 {
        assert_eq!(door.ask("GET", "/_ping", "").0, 200);
    }
    let more = most_memory(&own) - before;
    // 60 kB for each; it was 60 MB for each.
    assert!(more < 100_000, "{more} kB for {} clients", clients.len());
    own.docker(&["service", "rm", "loud"]);
}

#[test]
fn rejected_tasks_wait_for_the_restart_delay_as_processes() {
    let Some(mut own) = rig::up("rejected", Tasks::Processes) else {
        return;
    };
    own.start();
    own.docker(&["swarm", "init"]);
    rejected(&own, &["nosuchimage:1"], "No such image");
}

#[test]
fn rejected_tasks_wait_for_the_restart_delay_as_containers() {
    let Some(mut own) = rig::up("rejected", Tasks::Containers) else {
        return;
    };
    own.start();
    own.docker(&["swarm", "init"]);
    rejected(
        &own,
        &["--mount", "type=bind,source=/nope,target=/x", "nginx:latest"],
        "/nope",
    );
}

fn published(name: &str, port: Option<u64>) -> Value {
    let ports: Vec<Value> = port
        .iter()
        .map(|port| json!({ "TargetPort": 80, "PublishedPort": port }))
        .collect();
    json!({
        "Name": name,
        "TaskTemplate": { "ContainerSpec": { "Image": "nginx:latest" } },
        "Mode": { "Replicated": { "Replicas": 0 } },
        "EndpointSpec": { "Ports": ports },
    })
}

/// More services than the ingress network has addresses. The long form: `ANYNODE_N_SERVICES=2000 ANYNODE_REST_SECONDS=60`.
#[test]
fn many_published_services_at_rest_cost_nothing() {
    let Some(mut own) = rig::up("rest", Tasks::Processes) else {
        return;
    };
    own.start();
    own.docker(&["swarm", "init"]);
    let n_services = number("ANYNODE_N_SERVICES", 540);
    let seconds = number("ANYNODE_REST_SECONDS", 3);
    let mut door = Door::open(&own);
    for n in 0..n_services {
        let port = (n % 2 == 0).then_some(10_000 + n);
        let (status, said) = door.ask(
            "POST",
            "/services/create",
            &published(&format!("s{n}"), port).to_string(),
        );
        assert_eq!(status, 201, "s{n}: {said}");
    }
    wait_for_rest(&own);
    let before = spent(&own);
    std::thread::sleep(Duration::from_secs(seconds));
    let after = spent(&own);
    // The first connection may have been idle for too long.
    let mut door = Door::open(&own);
    let ms = (after.ticks - before.ticks) * 10;
    println!("{n_services} services, half of them published, take {ms} ms of processor time in {seconds} s");
    assert_eq!(
        after.written_at,
        before.written_at,
        "the store is written at rest\n{}",
        own.log_tail()
    );
    assert_eq!(
        after.log_bytes,
        before.log_bytes,
        "at rest there is something to log\n{}",
        own.log_tail()
    );
    assert!(ms <= 50 * seconds, "{ms} ms of processor time in {seconds} s at rest");
    // All are published, with an address of the ingress network or without.
    let (_, services) = door.ask("GET", "/services", "");
    let services: Vec<Value> = serde_json::from_str(&services).unwrap();
    let ports = services
        .iter()
        .filter(|service| service["Endpoint"]["Ports"][0]["PublishedPort"].is_u64());
    assert_eq!(ports.count() as u64, n_services.div_ceil(2));
    let has_addr = |service: &&Value| service["Endpoint"]["VirtualIPs"][0]["Addr"].is_string();
    let with_addr = services.iter().filter(has_addr).count() as u64;
    assert_eq!(with_addr, n_services.div_ceil(2).min(253));
    // One that is gone leaves its address to another.
    let gone = services.iter().find(has_addr).unwrap()["ID"]
        .as_str()
        .unwrap()
        .to_owned();
    door.ask("DELETE", &format!("/services/{gone}"), "");
    own.wait_for("an address for another", LONG, || {
        let (_, services) = door.ask("GET", "/services", "");
        let services: Vec<Value> = serde_json::from_str(&services).unwrap();
        services.iter().filter(has_addr).count() as u64 == (n_services.div_ceil(2) - 1).min(253)
    });
}

#[test]
fn an_address_that_cannot_be_had_is_shown_by_service_ps_and_given_later() {
    let Some(mut own) = rig::up("noaddr", Tasks::Processes) else {
        return;
    };
    own.start();
    own.docker(&["swarm", "init"]);
    let subnet = "10.77.0.0/29";
    own.docker(&["network", "create", "-d", "overlay", "--subnet", subnet, "small"]);
    let create = |name: &str, replicas: &str| {
        let common = ["service", "create", "--detach", "--network", "small", "--name", name];
        own.docker(&[&common[..], &["--replicas", replicas, "nginx:latest"]].concat());
    };
    let errors = |service: &str| own.docker(&["service", "ps", service, "--no-trunc", "--format", "{{.Error}}"]);
    // The gateway, the first service and its tasks, and the second service: all five are taken.
    create("first", "3");
    own.wait_for_running("first", 3);
    create("second", "1");
    own.wait_for("what its task cannot have", LONG, || {
        errors("second").contains(&format!("network small: no address is left in {subnet}"))
    });
    // Nor does a third have an address of its own; its task says the same.
    create("third", "1");
    own.wait_for("what the third cannot have", LONG, || {
        let vips = own.docker(&["service", "inspect", "third", "--format", "{{.Endpoint.VirtualIPs}}"]);
        vips.contains("[]") && errors("third").contains(&format!("network small: no address is left in {subnet}"))
    });
    assert_eq!(errors("first").trim(), "");
    own.docker(&["service", "rm", "first"]);
    for name in ["second", "third"] {
        own.wait_for_running(name, 1);
        own.wait_for("its address", LONG, || {
            let vips = own.docker(&["service", "inspect", name, "--format", "{{.Endpoint.VirtualIPs}}"]);
            !vips.contains("[]") && errors(name).trim().is_empty()
        });
    }
}

/// The long form: `ANYNODE_REPLICAS=10000`.
#[test]
fn who_asks_for_too_much_is_told_so_and_others_are_answered() {
    let Some(mut own) = rig::up("toomuch", Tasks::Processes) else {
        return;
    };
    own.start();
    own.docker(&["swarm", "init"]);
    let much = ["service", "create", "--detach", "--name", "much", "--replicas"];
    let wrong = "Mode.Replicated.Replicas 1000000000: expected at most 10000";
    let said = own.docker_fails(&[&much[..], &["1000000000", "nginx:latest"]].concat());
    assert!(said.contains(wrong), "{said}");
    let n = number("ANYNODE_REPLICAS", 2_000);
    let constraint = "node.labels.disk==none";
    own.docker(&[&much[..], &[&n.to_string(), "--constraint", constraint, "nginx:latest"]].concat());
    let mut door = Door::open(&own);
    let mut longest = Duration::ZERO;
    let mut n_pings = 0;
    own.wait_for("all tasks", LONG * 5, || {
        for _ in 0..20 {
            let asked = Instant::now();
            assert_eq!(door.ask("GET", "/_ping", "").0, 200);
            longest = longest.max(asked.elapsed());
            n_pings += 1;
        }
        let (status, services) = door.ask("GET", "/v1.41/services?status=true", "");
        assert_eq!(status, 200);
        let services: Value = serde_json::from_str(&services).unwrap();
        assert_eq!(services[0]["ServiceStatus"]["DesiredTasks"], n);
        let (_, tasks) = Door::open(&own).ask("GET", "/tasks", "");
        let tasks: Vec<Value> = serde_json::from_str(&tasks).unwrap();
        let waits = |task: &&Value| {
            task["Status"]["Err"]
                .as_str()
                .is_some_and(|error| error.contains("no suitable node"))
        };
        tasks.iter().filter(waits).count() as u64 == n
    });
    println!("{n} tasks planned: the longest of {n_pings} pings took {longest:?}");
    // Seconds are the machine's; that it does not wait for all of the planning is not.
    assert!(longest < Duration::from_secs(3), "{longest:?}");
    let said = own.docker_fails(&["service", "scale", "--detach", "much=1000000000"]);
    assert!(said.contains(wrong), "{said}");
    // A restart is no trouble either.
    own.kill();
    own.start();
    wait_for_rest(&own);
    own.docker(&["service", "rm", "much"]);
    own.wait_for("nothing", LONG * 5, || {
        Door::open(&own).ask("GET", "/tasks", "").1.trim() == "[]"
    });
}
