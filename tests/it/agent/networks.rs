//! Networks of tasks that are processes, as their runtime makes them: real keepers and programs, and a recorder in the place of
//! what makes networks ready. Not here: what is reached from inside (`own::names`).

use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anynode::model::Reach;
use anynode::model::swarm::TaskState;
use rustix::process::Signal;
use serde_json::{Value, json};

use super::processes::{Place, WAITS, check, sh};
use super::rig::{Recorder, World, is_alive, signal, until};

struct Networks {
    place: Place,
    recorder: Arc<Recorder>,
    addresses: &'static str,
}

impl Networks {
    /// `None`: the privileges are missing.
    fn new(addresses: &'static str) -> Option<Networks> {
        let unshared = std::process::Command::new("unshare")
            .args(["-n", "-m", "true"])
            .output();
        if !unshared.is_ok_and(|out| out.status.success()) {
            println!("skipped: this needs root and network namespaces");
            return None;
        }
        Some(Networks {
            place: Place::new(),
            recorder: Arc::default(),
            addresses,
        })
    }

    fn runtime(&self) -> Arc<dyn anynode::agent::Runtime> {
        let addresses = self.addresses.parse().unwrap();
        self.place.runtime_with(Some(addresses), self.recorder.clone())
    }

    fn world(&self) -> World {
        World::with_networks(self.runtime(), self.recorder.clone())
    }
}

/// Of tasks that run scripts on network `net`.
fn on_net() -> Value {
    json!({ "Networks": [{ "Target": "net" }] })
}

fn inode(netns: &Path) -> u64 {
    std::fs::metadata(netns).unwrap().ino()
}

fn own_netns() -> u64 {
    inode(Path::new("/proc/self/ns/net"))
}

fn pid_in(netns: &Path) -> u32 {
    let pid = netns.strip_prefix("/proc").unwrap().iter().next().unwrap();
    pid.to_str().unwrap().parse().unwrap()
}

#[tokio::test]
async fn a_network_is_ready_before_its_programs_first_instruction() {
    let Some(networks) = Networks::new("198.18.0.0/16") else {
        return;
    };
    let world = networks.world();
    networks.recorder.is_held.send_replace(true);
    let script = format!("echo resolver $(grep ^nameserver /etc/resolv.conf); echo port $PORT; {WAITS}");
    let mut container = sh(&script);
    container["DNSConfig"] = json!({ "Nameservers": ["192.0.2.53"], "Search": ["example.org"] });
    let id = world.task(container, on_net());
    until("its network to be asked for", || {
        !networks.recorder.places(&id).is_empty()
    })
    .await;
    let asked = networks.recorder.places(&id).remove(0);
    assert_eq!(asked.networks, [Arc::from("net")]);
    assert!((asked.is_closed, asked.has_dns) == (true, true));
    assert_eq!(asked.nameservers, [SocketAddr::from(([192, 0, 2, 53], 53))]);
    let netns = inode(&asked.netns);
    assert_ne!(netns, own_netns());
    // However long it takes.
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    assert_eq!(networks.place.processes().len(), 1, "its keeper alone");
    assert!(!networks.place.of_task(&id).join("log").exists());
    networks.recorder.is_held.send_replace(false);
    world.wait(&id, TaskState::Running).await;
    world.wait_said(&id, "ready").await;
    let said = world.said(&id).await;
    assert_eq!(said, ["resolver nameserver 127.0.0.77", "port 8080", "ready"]);
    let reach = world.reach(&id).unwrap();
    assert_eq!(Some(reach.addr.ip()), asked.address);
    assert_eq!(reach.netns.as_deref(), Some(&*asked.netns));
    let program = PathBuf::from(format!("/proc/{}/ns/net", world.pid(&id)));
    assert_eq!(inode(&program), netns);
    world.wish(&id, TaskState::Shutdown);
    world.wait(&id, TaskState::Shutdown).await;
    assert_eq!(*networks.recorder.closed.lock().unwrap(), [id]);
}

#[tokio::test]
async fn a_network_that_cannot_be_made_ready_says_why_and_nothing_runs() {
    let Some(networks) = Networks::new("198.18.0.0/16") else {
        return;
    };
    let world = networks.world();
    *networks.recorder.fails.lock().unwrap() = Some("no room for its routes".to_owned());
    let id = world.task(sh("echo ready; sleep 100"), on_net());
    let error = world.wait(&id, TaskState::Failed).await.error.unwrap();
    assert!(error.contains("the task's network: no room for its routes"), "{error}");
    until("its keeper to be gone", || networks.place.processes().is_empty()).await;
    assert!(!networks.place.of_task(&id).join("log").exists());
}

#[tokio::test]
async fn an_agent_that_is_killed_while_a_network_is_made_ready_leaves_no_keeper() {
    let Some(networks) = Networks::new("198.18.0.0/16") else {
        return;
    };
    let mut world = networks.world();
    networks.recorder.is_held.send_replace(true);
    let id = world.task(sh("echo ready; sleep 100"), on_net());
    until("its network to be asked for", || {
        !networks.recorder.places(&id).is_empty()
    })
    .await;
    let keeper = networks.place.keeper(&id);
    world.restart(networks.runtime()).await;
    until("its keeper to be gone", || !is_alive(keeper)).await;
    networks.recorder.is_held.send_replace(false);
    // It never ran, so that it is nobody's loss: it is begun anew, or replaced by who wants it.
    until("what becomes of it", || {
        let state = world.latest(&id).map(|status| status.state);
        matches!(state, Some(TaskState::Running | TaskState::Failed))
    })
    .await;
    let is_running = world.latest(&id).unwrap().state == TaskState::Running;
    until("one keeper and its program, or none", || {
        networks.place.processes().len() == if is_running { 2 } else { 0 }
    })
    .await;
}

#[tokio::test]
async fn a_check_runs_in_its_tasks_network_and_in_no_other() {
    let Some(networks) = Networks::new("198.18.0.0/16") else {
        return;
    };
    let world = networks.world();
    // Port 80 of loopback, which is each task's own.
    let listens = json!({
        "Image": "anynode/whoami", "Env": ["PORT=80"],
        "HealthCheck": check("grep -q ':0050 00000000:0000 0A' /proc/net/tcp /proc/net/tcp6 && grep -q 127.0.0.77 /etc/resolv.conf", json!({ "Retries": 50 })),
    });
    let ids = [world.task(listens.clone(), on_net()), world.task(listens, on_net())];
    for id in &ids {
        world.wait(id, TaskState::Running).await;
    }
    // A keeper that is killed takes its program along: nothing is entered, and nothing passes.
    let mut container = sh(WAITS);
    container["HealthCheck"] = check("readlink /proc/self/ns/net >> seen", json!({}));
    let watched = world.task(container, on_net());
    world.wait(&watched, TaskState::Running).await;
    let netns = inode(world.reach(&watched).unwrap().netns.as_deref().unwrap());
    signal(networks.place.keeper(&watched), Signal::KILL);
    world.wait(&watched, TaskState::Failed).await;
    let seen = std::fs::read_to_string(networks.place.of_task(&watched).join("root/seen")).unwrap();
    assert!(seen.lines().count() > 0);
    assert!(seen.lines().all(|line| line == format!("net:[{netns}]")), "{seen}");
}

#[tokio::test]
async fn a_users_task_is_reached_by_its_keeper() {
    let Some(networks) = Networks::new("198.18.0.0/16") else {
        return;
    };
    let mut world = networks.world();
    let mut container = sh(WAITS);
    container["User"] = json!("65534:65534");
    container["HealthCheck"] = check("test $(id -u) = 65534", json!({}));
    let id = world.task(container, on_net());
    world.wait(&id, TaskState::Running).await;
    // Whose processes we may look at, without the privilege to look at everybody's.
    let netns = world.reach(&id).and_then(|reach| reach.netns).unwrap();
    assert_eq!(pid_in(&netns), networks.place.keeper(&id));
    let before = world.reach(&id);
    world.restart(networks.runtime()).await;
    until("it to be reached", || world.reach(&id).is_some()).await;
    assert_eq!(world.reach(&id), before);
    let places = networks.recorder.places(&id);
    assert_eq!(places.len(), 2, "made ready again");
    assert_eq!(places[0], places[1]);
}

#[tokio::test]
async fn the_hosts_network_is_left_to_who_asks_for_it() {
    let Some(networks) = Networks::new("198.18.0.0/16") else {
        return;
    };
    let world = networks.world();
    let on_host = json!({ "Networks": [{ "Target": "host" }] });
    let id = world.task(sh(WAITS), on_host.clone());
    world.wait(&id, TaskState::Running).await;
    let Reach { addr, netns } = world.reach(&id).unwrap();
    assert!(addr.ip().is_loopback() && netns.is_none(), "{addr} {netns:?}");
    let program = PathBuf::from(format!("/proc/{}/ns/net", world.pid(&id)));
    assert_eq!(inode(&program), own_netns());
    assert!(networks.recorder.places(&id).is_empty());
    // Its names are the host's.
    let mut container = sh(WAITS);
    container["DNSConfig"] = json!({ "Nameservers": ["192.0.2.53"] });
    let id = world.task(container, on_host);
    let error = world.wait(&id, TaskState::Rejected).await.error.unwrap();
    assert!(error.starts_with("ContainerSpec.DNSConfig: "), "{error}");
}

#[tokio::test]
async fn addresses_come_back_with_the_tasks_that_had_them() {
    // Two addresses.
    let Some(networks) = Networks::new("198.18.0.0/30") else {
        return;
    };
    let mut world = networks.world();
    let ids = [world.task(sh(WAITS), on_net()), world.task(sh(WAITS), on_net())];
    for id in &ids {
        world.wait(id, TaskState::Running).await;
    }
    let addresses = [&ids[0], &ids[1]].map(|id| world.addr(id).unwrap().ip());
    assert_ne!(addresses[0], addresses[1]);
    for round in 0..5 {
        let id = world.task(sh(WAITS), on_net());
        let error = world.wait(&id, TaskState::Rejected).await.error.unwrap();
        assert!(
            error.starts_with("process.addresses: all of them"),
            "round {round}: {error}"
        );
        world.forget(&id);
    }
    world.forget(&ids[0]);
    until("it to be gone", || !networks.place.of_task(&ids[0]).exists()).await;
    world.restart(networks.runtime()).await;
    let again = world.task(sh(WAITS), on_net());
    world.wait(&again, TaskState::Running).await;
    assert_eq!(world.addr(&again).unwrap().ip(), addresses[0]);
    until("the other to be found again", || world.addr(&ids[1]).is_some()).await;
    assert_eq!(world.addr(&ids[1]).unwrap().ip(), addresses[1]);
}
