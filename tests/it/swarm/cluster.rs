//! The swarm that the other tests stand on: that it is what they take it for, and that nothing is left of it. No anynode here.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::{ALL, rig};

fn answer_of(out: &Output) -> Option<Value> {
    serde_json::from_slice(&out.stdout).ok()
}

#[test]
fn three_engines_are_a_swarm_and_each_task_answers_at_its_own_address() {
    let Some(swarm) = rig::up("plain", 3, 1) else { return };
    let nodes = swarm.docker(1, &["node", "ls", "--format", "{{.Hostname}} {{.Status}}"]);
    let nodes: BTreeSet<&str> = nodes.lines().collect();
    assert_eq!(nodes, BTreeSet::from(["node1 Ready", "node2 Ready", "node3 Ready"]));
    for node in ALL {
        assert!(swarm.docker(node, &["images"]).contains(rig::IMAGE), "node {node}");
    }

    swarm.create("web", &["--publish", "8080:80", "--replicas", "3"]);
    swarm.wait_running("web", 3);
    let curl = |url: &str| ["curl", "-sS", "-m", "5", url].map(str::to_owned);
    let mut slots = BTreeMap::new();
    for node in ALL {
        for (hostname, address) in swarm.containers(node, "web") {
            let command = curl(&format!("http://{address}/"));
            let command = command.each_ref().map(String::as_str);
            let out = swarm.on_node(node, &command);
            let answer = answer_of(&out).unwrap_or_else(|| panic!("{address} of node {node}: {out:?}"));
            assert_eq!(answer["hostname"], hostname, "{answer}");
            assert_eq!(answer["node"], format!("node{node}"), "{answer}");
            slots.insert(answer["slot"].as_str().unwrap().to_owned(), node);
            assert!(!swarm.client(&command).status.success(), "{address} answers a stranger");
        }
    }
    assert_eq!(slots.keys().collect::<Vec<_>>(), ["1", "2", "3"]);
    if !Path::new("/proc/net/ip_vs").exists() {
        assert!(
            swarm.curl(1, 8080, "/").is_err(),
            "Swarm's own mesh is dead without ip_vs"
        );
    }

    // A node that stands still does so as a whole.
    let (node, address) = ALL
        .into_iter()
        .find_map(|node| Some((node, swarm.containers(node, "web").into_values().next()?)))
        .unwrap();
    let command = curl(&format!("http://{address}/"));
    let command = command.each_ref().map(String::as_str);
    swarm.cluster(&["freeze-node", &node.to_string()]);
    let frozen = swarm.on_node(node, &command);
    swarm.cluster(&["thaw-node", &node.to_string()]);
    assert!(!frozen.status.success(), "a frozen task answers: {frozen:?}");
    swarm.wait_for("the task to go on", Duration::from_secs(30), || {
        answer_of(&swarm.on_node(node, &command)).is_some()
    });

    // A cable that is out.
    let reaches = |node: usize| {
        let ping = format!("exec 3<>/dev/tcp/{}/2377", swarm.ip(1));
        swarm
            .on_node(node, &["timeout", "2", "bash", "-c", &ping])
            .status
            .success()
    };
    assert!(reaches(2) && reaches(3));
    swarm.cluster(&["partition", "2"]);
    assert!(!reaches(2) && reaches(3));
    swarm.cluster(&["heal", "2"]);
    swarm.wait_for("the cable to be back", Duration::from_secs(30), || reaches(2));
}

/// What is to be seen of a cluster on this machine, besides what it has in common with others.
fn traces(name: &str) -> Vec<String> {
    let dir = format!("/tmp/anynode-cluster-{name}/");
    let mut found = Vec::new();
    found.extend(Path::new(&dir).exists().then(|| dir.clone()));
    for entry in std::fs::read_dir("/run/netns").into_iter().flatten().flatten() {
        let file = entry.file_name().into_string().unwrap();
        let part = file.strip_prefix(&format!("an-{name}-")).unwrap_or_default();
        found.extend((part == "client" || part == "switch" || part.parse::<u8>().is_ok()).then_some(file));
    }
    for hierarchy in std::fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
        let cgroup = format!("anynode-cluster-{name}");
        let paths = [hierarchy.path().with_file_name(&cgroup), hierarchy.path().join(&cgroup)];
        found.extend(
            paths
                .iter()
                .filter(|path| path.is_dir())
                .map(|path| path.display().to_string()),
        );
    }
    // The root of a task is in the directory, whoever its parent is now; and so are mounts that were forgotten.
    for process in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let mounts = std::fs::read_to_string(process.path().join("mountinfo")).unwrap_or_default();
        let mount = mounts.lines().find(|line| line.contains(&dir));
        found.extend(mount.map(|line| format!("{}: {line}", process.path().display())));
    }
    found
}

/// Another cluster, by the script alone.
struct Beside(&'static str);

impl Beside {
    fn run(&self, args: &[&str]) -> Output {
        Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/cluster/cluster"))
            .args(["--name", self.0])
            .args(args)
            .output()
            .unwrap()
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        self.run(&["down"]);
    }
}

#[test]
fn of_a_swarm_that_is_taken_down_nothing_is_left_and_another_stays() {
    let Some(swarm) = rig::up("gone", 2, 1) else { return };
    // Its name begins with the other's.
    let beside = Beside("gone-1");
    beside.run(&["down"]);
    let out = beside.run(&["up", "--nodes", "1"]);
    assert!(out.status.success(), "{out:?}");
    let again = beside.run(&["up", "--nodes", "1"]);
    assert!(!again.status.success(), "a name can be had once: {again:?}");

    swarm.create("web", &["--replicas", "4", "--env", "ON_TERM=ignore"]);
    swarm.wait_running("web", 4);
    assert!(!traces("gone").is_empty());
    // Tasks of an engine that is dead, and one whose engine stands still: nobody is there to end them.
    swarm.cluster(&["kill-dockerd", "2"]);
    swarm.cluster(&["freeze-node", "1"]);
    swarm.cluster(&["down"]);
    assert_eq!(traces("gone"), Vec::<String>::new());
    swarm.cluster(&["down"]);

    let out = beside.run(&["docker", "1", "node", "ls", "--format", "{{.Status}}"]);
    assert_eq!(String::from_utf8_lossy(&out.stdout).trim(), "Ready", "{out:?}");
    assert!(beside.run(&["down"]).status.success());
    assert_eq!(traces("gone-1"), Vec::<String>::new());

    // One that is told to end while it comes up tidies, at whatever moment.
    let up = || {
        Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/cluster/cluster"))
            .args(["--name", beside.0, "up", "--nodes", "2"])
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap()
    };
    let began = Instant::now();
    assert!(up().wait().unwrap().success());
    let whole = began.elapsed();
    assert!(beside.run(&["down"]).status.success());
    let ms = Duration::from_millis;
    let moments = [
        ms(150),
        ms(600),
        ms(1200),
        whole.saturating_sub(ms(150)),
        whole,
        whole + ms(30),
    ];
    for moment in moments {
        let mut up = up();
        std::thread::sleep(moment);
        // Twice: who asks again must not keep it from tidying.
        for _ in 0..2 {
            let pid = rustix::process::Pid::from_child(&up);
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
            std::thread::sleep(ms(50));
        }
        let status = up.wait().unwrap();
        // Whoever says so too late has a swarm.
        if status.success() {
            assert!(beside.run(&["down"]).status.success());
        }
        assert_eq!(traces("gone-1"), Vec::<String>::new(), "after {moment:?}: {status}");
    }
}
