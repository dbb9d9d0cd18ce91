//! Whom tasks that are processes run as, and what they see of others.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::sync::Arc;

use anynode::agent::Assignment;
use anynode::agent::NoNetworks;
use anynode::model::swarm::{Id, Task, TaskState};
use serde_json::{Value, json};

use super::processes::{Place, WAITS, check, sh};
use super::rig::{self, Recorder, World, payload};

/// `None`: the privileges are missing.
fn place() -> Option<(Place, World)> {
    let unshared = std::process::Command::new("unshare")
        .args(["-n", "-m", "true"])
        .output();
    if !unshared.is_ok_and(|out| out.status.success()) {
        println!("skipped: this needs root and namespaces");
        return None;
    }
    let place = Place::new();
    let world = World::start(place.runtime_with(None, Arc::new(NoNetworks)));
    Some((place, world))
}

fn of_service(service: &str, container: Value) -> Assignment {
    let id = Id::from_bits(fastrand::u128(..));
    let mut assignment = rig::assignment(&id, container, json!({}));
    assignment.task = Arc::new(Task {
        service: Id::from(service),
        service_name: service.into(),
        ..(*assignment.task).clone()
    });
    assignment
}

async fn run(world: &World, assignment: Assignment) -> Id {
    let id = assignment.task.id.clone();
    world.assign(assignment);
    world.wait(&id, TaskState::Running).await;
    world.wait_said(&id, "ready").await;
    id
}

fn uid_of(world: &World, id: &Id) -> u32 {
    std::fs::metadata(format!("/proc/{}", world.pid(id))).unwrap().uid()
}

/// A line of a task's status.
fn status(world: &World, id: &Id, key: &str) -> String {
    let text = std::fs::read_to_string(format!("/proc/{}/status", world.pid(id))).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(key));
    line.unwrap().trim_start_matches(':').trim().to_owned()
}

#[tokio::test]
async fn each_service_has_a_user_of_its_own_and_keeps_it() {
    let Some((place, mut world)) = place() else { return };
    let victim = {
        let mut container = sh(&format!("cat run/secrets/key; echo out > /dev/stdout; {WAITS}"));
        container["Env"] = json!(["PASSWORD=hush"]);
        container["Secrets"] =
            json!([{ "SecretID": "key", "SecretName": "key", "File": { "Name": "key", "Mode": 0o400 } }]);
        container["HealthCheck"] = check("cat run/secrets/key", json!({}));
        let mut assignment = of_service("one", container);
        assignment.secrets.insert(Id::from("key"), payload("key", "hush\n"));
        run(&world, assignment).await
    };
    let said = world.said(&victim).await;
    assert_eq!(said, ["hush", "out", "ready"]);
    let uid = uid_of(&world, &victim);
    assert!((2_000_000_000..=2_000_065_535).contains(&uid), "{uid}");
    let (pid, root) = (world.pid(&victim), place.of_task(&victim).join("root"));
    let spy = format!(
        "cat /proc/{pid}/environ && echo leaked; test -e /proc/{pid} && echo seen; cat {}/run/secrets/key && echo leaked; \
         test -e {} && echo seen; echo groups $(id -G); {WAITS}",
        root.display(),
        root.parent().unwrap().display(),
    );
    let other = run(&world, of_service("two", sh(&spy))).await;
    assert_ne!(uid_of(&world, &other), uid);
    let said = world.said(&other).await;
    let said: Vec<&str> = said
        .iter()
        .map(String::as_str)
        .filter(|line| !line.starts_with("cat: "))
        .collect();
    assert_eq!(said, [&*format!("groups {}", uid_of(&world, &other)), "ready"]);
    // Another run of this program, and another task.
    world.restart(place.runtime_with(None, Arc::new(NoNetworks))).await;
    let again = run(&world, of_service("one", sh(WAITS))).await;
    assert_eq!(uid_of(&world, &again), uid);
    assert_eq!(status(&world, &again, "CapEff"), "0000000000000000");
}

#[tokio::test]
async fn root_is_for_those_who_ask_for_it_and_sees_little() {
    let Some((place, world)) = place() else { return };
    let mut container = sh(WAITS);
    container["User"] = json!("0");
    let victim = run(&world, of_service("one", container)).await;
    let (pid, root) = (world.pid(&victim), place.of_task(&victim).join("root"));
    let script = format!(
        "cat /proc/1/environ > /dev/null && echo leaked; ls {}; echo x > /proc/sys/kernel/core_pattern && echo written; \
         mkdir /sys/fs/cgroup/pids/anynode-spy && echo made; ls /dev | grep -c '^[svx]*d[a-z]'; cat {}/../job && echo leaked; \
         kill -0 {pid} && echo there; {WAITS}",
        root.parent().unwrap().parent().unwrap().display(),
        root.display(),
    );
    let mut container = sh(&script);
    container["User"] = json!("root");
    let id = run(&world, of_service("two", container)).await;
    let lines = world
        .logs(
            &id,
            anynode::streams::LogQuery {
                stderr: false,
                ..rig::ALL
            },
        )
        .await;
    let said: Vec<String> = lines
        .iter()
        .map(|line| String::from_utf8_lossy(&line.bytes).into_owned())
        .collect();
    // Root's processes are root's to signal.
    assert_eq!(said, [id.as_str(), "0", "there", "ready"]);
    // Docker's set without CAP_MKNOD.
    for set in ["CapPrm", "CapEff", "CapBnd"] {
        assert_eq!(status(&world, &id, set), "00000000a00425fb", "{set}");
    }
    assert_eq!(status(&world, &id, "CapInh"), "0000000000000000");
}

#[tokio::test]
async fn a_data_directory_that_is_closed_to_others_has_a_way_to_a_tasks_own() {
    let Some((place, world)) = place() else { return };
    let dir = place.dir();
    std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o700)).unwrap();
    std::fs::write(dir.join("kept"), "").unwrap();
    let program = dir.join("program");
    std::fs::copy("/bin/sh", &program).unwrap();
    let script = format!(
        "touch $ANYNODE_TASK_DIR/mine && echo touched; test -e {}/kept && echo seen; {WAITS}",
        dir.display()
    );
    let container = json!({ "Image": "sh", "Command": [program], "Args": ["-c", script] });
    let id = run(&world, of_service("one", container)).await;
    assert_eq!(world.said(&id).await, ["touched", "ready"]);
    assert!(place.of_task(&id).join("root/mine").exists());
}

#[tokio::test]
async fn any_user_has_the_lower_ports_of_a_network_of_its_own() {
    let Some((place, _)) = place() else { return };
    let recorder = Arc::new(Recorder::default());
    let addresses = Some("198.18.0.0/16".parse().unwrap());
    let world = World::with_networks(place.runtime_with(addresses, recorder.clone()), recorder);
    let id = world.task(json!({ "Image": "anynode/whoami", "Env": ["PORT=80"] }), json!({}));
    world.wait(&id, TaskState::Running).await;
    let sockets = format!("/proc/{}/net/tcp", world.pid(&id));
    rig::until("it to listen", || {
        std::fs::read_to_string(&sockets).is_ok_and(|text| text.contains(":0050 00000000:0000 0A"))
    })
    .await;
    assert_ne!(uid_of(&world, &id), 0);
}
