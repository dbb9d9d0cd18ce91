//! What must not be done twice: POSTs through every node while tasks are replaced. Each that was answered was received once,
//! and none twice, by the word of the tasks themselves.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{ALL, no_failure, rig};

#[test]
fn no_post_is_lost_or_doubled_by_an_update() {
    let Some(mut swarm) = rig::up("posts", 3, 1) else {
        return;
    };
    swarm.start_all();
    // All engines are on this machine, and so the tasks of all can write to one directory.
    let received = format!("{}/received", swarm.cluster_dir());
    std::fs::create_dir(&received).unwrap();
    let mount = format!("type=bind,src={received},dst=/received");
    let options = [
        "--mount",
        &mount,
        "--env",
        "RECEIVED=/received",
        "--replicas",
        "3",
        "--publish",
    ];
    swarm.create("tcp", &[&options[..], &["8080:80"]].concat());
    swarm.create(
        "http",
        &[&options[..], &["8081:80", "--label", "anynode.mode=http"]].concat(),
    );
    for service in ["tcp", "http"] {
        swarm.wait_ready(&ALL, service, 3);
    }
    let loads = [
        ("tcp, new", 8080, true),
        ("http, new", 8081, true),
        ("http, kept", 8081, false),
    ]
    .map(|(what, port, is_new)| {
        let answered = swarm.dir().join(format!("answered {what}"));
        let path = answered.display().to_string();
        let mut args = vec!["--pause-us", "2000", "--post", &path];
        args.extend(is_new.then_some("--new"));
        let load = swarm.load(&ALL, port, &args);
        (what, answered, load)
    });
    for (round, order) in ["start-first", "stop-first"].into_iter().enumerate() {
        let env = format!("ROUND={round}");
        for service in ["tcp", "http"] {
            // One task after the other, without the watch of five seconds over each.
            let update = [
                "service",
                "update",
                "--detach",
                "--no-resolve-image",
                "--update-order",
                order,
                "--update-monitor",
                "500ms",
                "--env-add",
                &env,
            ];
            swarm.docker(1, &[&update[..], &[service]].concat());
        }
        for service in ["tcp", "http"] {
            let format = ["service", "inspect", service, "--format", "{{.UpdateStatus.State}}"];
            swarm.wait_for("the update to end", Duration::from_secs(90), || {
                swarm.docker(1, &format) == "completed"
            });
        }
    }
    let reports = loads.map(|(what, answered, load)| (what, answered, load.stop()));

    let mut times: BTreeMap<String, usize> = BTreeMap::new();
    for entry in std::fs::read_dir(&received).unwrap() {
        let lines = std::fs::read_to_string(entry.unwrap().path()).unwrap();
        lines
            .lines()
            .for_each(|id| *times.entry(id.to_owned()).or_default() += 1);
    }
    let doubled: Vec<&String> = times.iter().filter(|(_, n)| **n > 1).map(|(id, _)| id).collect();
    assert!(doubled.is_empty(), "received more than once: {doubled:?}");
    for (what, answered, report) in reports {
        println!("{what}: {report}");
        let answered = std::fs::read_to_string(answered).unwrap();
        let lost: Vec<&str> = answered.lines().filter(|id| !times.contains_key(*id)).collect();
        assert_eq!(answered.lines().count() as u64, report["ok"], "{what}");
        assert!(lost.is_empty(), "{what}: answered by nobody who received it: {lost:?}");
        no_failure(what, &report);
    }
}
