//! What tasks that are processes may use at most: real control groups. Version 2 is tried by `sys::cgroup` on a made-up tree.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anynode::agent::NoNetworks;
use anynode::model::swarm::{Id, TaskState};
use rustix::process::Signal;
use serde_json::{Value, json};

use super::processes::{Place, WAITS, check, sh};
use super::rig::{World, signal, until};

/// `None`: nobody may make control groups here.
fn place() -> Option<(Place, World)> {
    let trees = ["/sys/fs/cgroup/memory", "/sys/fs/cgroup/pids", "/sys/fs/cgroup/cpu"];
    let may_make = |tree: &str| {
        let dir = Path::new(tree).join(format!("anynode-test-{}", std::process::id()));
        std::fs::create_dir(&dir)
            .and_then(|()| std::fs::remove_dir(&dir))
            .is_ok()
    };
    if !trees.into_iter().all(may_make) {
        println!("skipped: this needs root and control groups of version 1");
        return None;
    }
    let place = Place::new();
    let world = World::start(place.runtime_with(None, Arc::new(NoNetworks)));
    Some((place, world))
}

fn limits(limits: Value) -> Value {
    json!({ "Resources": { "Limits": limits } })
}

fn group(tree: &str, id: &Id) -> PathBuf {
    Path::new("/sys/fs/cgroup").join(tree).join("anynode").join(id.as_str())
}

fn read(path: PathBuf) -> String {
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    text.trim().to_owned()
}

#[tokio::test]
async fn who_takes_more_memory_than_it_may_is_ended_and_it_is_said() {
    let Some((_place, world)) = place() else { return };
    // `tail` keeps what has no end of line.
    let id = world.task(sh("exec tail /dev/zero"), limits(json!({ "MemoryBytes": 16 << 20 })));
    let status = world.wait(&id, TaskState::Failed).await;
    let expected = "task: non-zero exit (137): out of memory: its limit is 16777216 bytes";
    assert_eq!(status.error.as_deref(), Some(expected));
    // One that its program started.
    let id = world.task(sh("tail /dev/zero; exit 3"), limits(json!({ "MemoryBytes": 16 << 20 })));
    let error = world.wait(&id, TaskState::Failed).await.error.unwrap();
    assert!(error.starts_with("task: non-zero exit (3): out of memory: "), "{error}");
    assert!(!group("memory", &id).exists());
}

#[tokio::test]
async fn who_starts_more_processes_than_it_may_starts_no_more() {
    let Some((_place, world)) = place() else { return };
    let script = "for i in 1 2 3 4 5 6 7 8 9; do sleep 100 & echo started; done";
    let id = world.task(sh(script), limits(json!({ "Pids": 4 })));
    let status = world.wait(&id, TaskState::Failed).await;
    assert_eq!(status.error.as_deref(), Some("task: non-zero exit (2)"));
    let said = world.said(&id).await;
    let n_started = said.iter().filter(|line| *line == "started").count();
    assert_eq!(n_started, 3, "{said:?}");
    assert!(said.iter().any(|line| line.contains("fork")), "{said:?}");
}

#[tokio::test]
async fn a_tasks_group_is_beside_ours_and_goes_with_the_task() {
    let Some((place, mut world)) = place() else { return };
    let all = json!({
        "Limits": { "NanoCPUs": 250_000_000, "MemoryBytes": 64 << 20, "Pids": 30 },
        "Reservations": { "MemoryBytes": 32 << 20 },
    });
    let mut container = sh(&format!("trap 'exit 0' TERM; {WAITS}"));
    // What checks it is counted too.
    container["HealthCheck"] = check("grep -q pids:/anynode/ /proc/self/cgroup", json!({ "Retries": 1 }));
    let id = world.task(container, json!({ "Resources": all }));
    world.wait(&id, TaskState::Running).await;
    let killed = world.task(sh(WAITS), limits(json!({ "Pids": 30 })));
    let free = world.task(sh(WAITS), json!({}));
    for id in [&killed, &free] {
        world.wait(id, TaskState::Running).await;
        world.wait_said(id, "ready").await;
    }
    for (tree, file, expected) in [
        ("memory", "memory.limit_in_bytes", "67108864"),
        ("memory", "memory.soft_limit_in_bytes", "33554432"),
        ("cpu", "cpu.cfs_quota_us", "25000"),
        ("cpu", "cpu.cfs_period_us", "100000"),
        ("pids", "pids.max", "30"),
    ] {
        assert_eq!(read(group(tree, &id).join(file)), expected, "{file}");
    }
    let of = |pid: u32| std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let own = of(std::process::id());
    let its = of(world.pid(&id));
    let expected = format!("pids:/anynode/{id}");
    assert!(its.contains(&expected) && !own.contains(&expected), "{its}");
    // Who keeps it is not counted, and who has no limit is only in the group that ends with it.
    assert_eq!(of(place.keeper(&id)), own);
    let not_ours = |groups: &str| groups.lines().filter(|line| !line.contains("/anynode/")).count();
    let in_free = of(world.pid(&free));
    assert!(own.lines().count() - not_ours(&in_free) <= 1, "{in_free}");
    for limited in ["memory:/anynode/", "cpu:/anynode/", "pids:/anynode/"] {
        assert!(!in_free.contains(limited), "{in_free}");
    }

    let runtime = place.runtime_with(None, Arc::new(NoNetworks));
    world.restart(runtime).await;
    until("it to be reached", || world.addr(&id).is_some()).await;
    assert_eq!(read(group("pids", &id).join("pids.max")), "30");
    world.wish(&id, TaskState::Shutdown);
    world.wait(&id, TaskState::Shutdown).await;
    signal(place.keeper(&killed), Signal::KILL);
    world.wait(&killed, TaskState::Failed).await;
    for (tree, id) in [("memory", &id), ("cpu", &id), ("pids", &id), ("pids", &killed)] {
        assert!(!group(tree, id).exists(), "{tree}");
    }
}
