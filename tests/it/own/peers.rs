//! Programs that form a cluster by telling one another their hostnames, as RabbitMQ does: three tasks of a service, by the short
//! ids of their containers and by hostnames of the service's own, and a container outside of the swarm among them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use super::names::inside;
use super::rig::{self, LONG, Own, Tasks};

/// What containers need to have this host's Python, for each the place here and there.
const PYTHON: [(&str, &str); 3] = [("/usr", "/usr"), ("/usr/lib", "/lib"), ("/usr/lib64", "/lib64")];

fn program() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/own/peer.py");
    path.display().to_string()
}

/// The running tasks of a service: their processes and the short ids of their containers.
fn tasks(own: &Own, service: &str) -> BTreeMap<u32, String> {
    let ids = own.docker(&["service", "ps", "-q", "-f", "desired-state=running", service]);
    let format = "{{.Status.State}} {{.Status.ContainerStatus.PID}} {{.Status.ContainerStatus.ContainerID}}";
    let words = ["inspect", "--type", "task", "-f", format]
        .into_iter()
        .chain(ids.lines());
    let said = own.docker_out(&words.collect::<Vec<_>>());
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    let each = said
        .lines()
        .filter_map(|line| line.strip_prefix("running ")?.split_once(' '));
    each.filter_map(|(pid, id)| Some((pid.parse().ok()?, id.get(..12)?.to_owned())))
        .collect()
}

/// Who it is, and whom it has met by which address. `None`: it does not say.
fn met(pid: u32) -> Option<(String, BTreeMap<String, String>)> {
    let (_, said) = inside(pid, false, &["curl", "-s", "-f", "-m", "5", "http://127.0.0.1:80/"]);
    let said: Value = serde_json::from_str(&said).ok()?;
    let met = serde_json::from_value(said["met"].clone()).ok()?;
    Some((said["me"].as_str()?.to_owned(), met))
}

/// Waits until all have met all and nobody else, by the same addresses. Answers their names.
fn whole(own: &Own, pids: &[u32], n_peers: usize) -> BTreeSet<String> {
    let mut seen = Vec::new();
    own.wait_for("the peers to have met", LONG, || {
        seen = pids.iter().filter_map(|pid| met(*pid)).collect();
        let is_all = |(me, met): &(String, BTreeMap<String, String>)| met.len() == n_peers && met.contains_key(me);
        seen.len() == pids.len() && seen.iter().all(is_all) && seen.windows(2).all(|pair| pair[0].1 == pair[1].1)
    });
    seen[0].1.keys().cloned().collect()
}

fn create(own: &Own, name: &str, more: &[&str]) {
    let mut words: Vec<String> = [
        "service",
        "create",
        "--detach",
        "--replicas",
        "3",
        "--network",
        "mesh",
        "--name",
    ]
    .map(str::to_owned)
    .to_vec();
    words.push(name.to_owned());
    for (here, there) in PYTHON.into_iter().chain([(&*program(), "/peer.py")]) {
        words.extend([
            "--mount".to_owned(),
            format!("type=bind,source={here},target={there},readonly"),
        ]);
    }
    words.extend(more.iter().map(|word| (*word).to_owned()));
    words.extend(["--entrypoint", "/usr/bin/python3 /peer.py", "nginx:latest", name].map(str::to_owned));
    own.docker(&words.iter().map(String::as_str).collect::<Vec<_>>());
    own.wait_for("three tasks", LONG, || tasks(own, name).len() == 3);
}

#[test]
fn peers_that_know_one_another_by_hostname_form_a_cluster() {
    if !Path::new("/usr/bin/python3").exists() {
        println!("skipped: this needs /usr/bin/python3");
        return;
    }
    let Some(mut own) = rig::up("peers", Tasks::Containers) else {
        return;
    };
    own.start();
    own.docker(&["swarm", "init"]);
    own.docker(&["network", "create", "-d", "overlay", "--attachable", "mesh"]);
    // By what each is called if nobody says otherwise.
    create(&own, "spark", &["--restart-delay", "100ms"]);
    let spark = tasks(&own, "spark");
    let pids: Vec<u32> = spark.keys().copied().collect();
    assert_eq!(whole(&own, &pids, 3), spark.values().cloned().collect());
    // One that is lost is followed by another, under another name.
    let killed = Command::new("kill").args(["-9", &pids[0].to_string()]).status();
    assert!(killed.unwrap().success());
    own.wait_for("another task", LONG, || {
        let now = tasks(&own, "spark");
        now.len() == 3 && !now.contains_key(&pids[0])
    });
    let now = tasks(&own, "spark");
    let pids: Vec<u32> = now.keys().copied().collect();
    assert_eq!(whole(&own, &pids, 3), now.values().cloned().collect());
    own.docker(&["service", "rm", "spark"]);

    // By names that the service says; and one more which is no task, and is asked by the others since it has the alias.
    create(&own, "rabbit", &["--hostname", "rabbit-{{.Task.Slot}}"]);
    let mut pids: Vec<u32> = tasks(&own, "rabbit").keys().copied().collect();
    let names = ["rabbit-1", "rabbit-2", "rabbit-3"].map(str::to_owned);
    assert_eq!(whole(&own, &pids, 3), names.clone().into());
    let mut words: Vec<String> = [
        "run",
        "-d",
        "--network",
        "mesh",
        "--hostname",
        "hare",
        "--network-alias",
        "rabbit",
    ]
    .map(str::to_owned)
    .to_vec();
    for (here, there) in PYTHON.into_iter().chain([(&*program(), "/peer.py")]) {
        words.extend(["-v".to_owned(), format!("{here}:{there}:ro")]);
    }
    words.extend(["--entrypoint", "/usr/bin/python3", "nginx:latest", "/peer.py", "rabbit"].map(str::to_owned));
    let hare = own.docker(&words.iter().map(String::as_str).collect::<Vec<_>>());
    let pid = own.docker(&["inspect", "-f", "{{.State.Pid}}", &hare]);
    pids.push(pid.parse().unwrap());
    let all: BTreeSet<String> = names.into_iter().chain(["hare".to_owned()]).collect();
    assert_eq!(whole(&own, &pids, 4), all);
    own.docker(&["rm", "-f", &hare]);
    assert_eq!(whole(&own, &pids[..3], 3).len(), 3);
}
