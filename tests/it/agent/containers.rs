//! Tasks as containers: of a real dockerd, which is killed and started again.

use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use anynode::agent::containers::Containers;
use anynode::agent::{NoNetworks, TaskNetworks};
use anynode::model::swarm::{Id, TaskState};
use anynode::streams::LogQuery;
use rustix::process::Signal;
use serde_json::{Value, json};

use super::rig::{self, ALL, Recorder, World, is_alive, payload, signal, until};
use crate::own::rig::{Own, Tasks, up};

struct Engine(Own);

impl Engine {
    fn up(name: &str) -> Option<Engine> {
        up(name, Tasks::Containers).map(Engine)
    }

    async fn runtime(&self, owner: &str) -> Arc<Containers> {
        self.runtime_with(owner, Arc::new(NoNetworks)).await
    }

    async fn runtime_with(&self, owner: &str, networks: Arc<dyn TaskNetworks>) -> Arc<Containers> {
        let socket = self.0.engine_socket();
        let connected = Containers::connect(&socket, owner.to_owned(), networks);
        Arc::new(connected.await.unwrap())
    }

    async fn world(&self) -> World {
        self.world_of("test").await
    }

    async fn world_of(&self, owner: &str) -> World {
        World::start(self.runtime(owner).await)
    }

    fn docker(&self, args: &[&str]) -> String {
        let out = self.0.engine(args).stdin(Stdio::null()).output().unwrap();
        assert!(out.status.success(), "{args:?}: {out:?}");
        String::from_utf8(out.stdout).unwrap().trim().to_owned()
    }

    fn inspect(&self, container: &str) -> Value {
        let all: Value = serde_json::from_str(&self.docker(&["inspect", container])).unwrap();
        all[0].clone()
    }

    fn containers(&self) -> usize {
        self.docker(&["ps", "-aq"]).lines().count()
    }
}

fn container() -> Value {
    json!({ "Image": "nginx", "StopGracePeriod": 2_000_000_000u64 })
}

/// Where configs and secrets are kept in memory, of all owners.
fn in_memory() -> Vec<PathBuf> {
    let bases = ["/run/anynode/files", "/dev/shm/anynode/files"].map(Path::new);
    let owners = bases
        .into_iter()
        .filter_map(|base| std::fs::read_dir(base).ok())
        .flatten();
    let tasks = owners
        .flatten()
        .filter_map(|owner| std::fs::read_dir(owner.path()).ok());
    tasks.flatten().flatten().map(|task| task.path()).collect()
}

#[tokio::test]
async fn what_a_container_is_given_and_how_it_ends() {
    let Some(engine) = Engine::up("given") else { return };
    let world = engine.world().await;
    let mut spec = container();
    spec["Env"] = json!(["SLOT={{.Task.Slot}}"]);
    spec["Hostname"] = json!("{{.Service.Name}}-{{.Task.Slot}}");
    spec["ReadOnly"] = json!(true);
    spec["Privileges"] = json!({ "NoNewPrivileges": true });
    spec["Configs"] = json!([{ "ConfigID": "conf", "ConfigName": "conf", "File": {
        "Name": "/etc/app/conf", "UID": "33", "GID": "44", "Mode": 0o440,
    } }]);
    spec["Secrets"] = json!([{ "SecretID": "key", "SecretName": "key", "File": { "Name": "key", "Mode": 0o400 } }]);
    let id = Id::from_bits(fastrand::u128(..));
    let mut assignment = rig::assignment(
        &id,
        spec,
        json!({ "Resources": { "Limits": { "MemoryBytes": 64 << 20 } } }),
    );
    assignment
        .configs
        .insert(Id::from("conf"), payload("conf", "configured"));
    assignment.secrets.insert(Id::from("key"), payload("key", "hush"));
    world.assign(assignment);
    world.wait(&id, TaskState::Running).await;

    let name = format!("web.1.{id}");
    let seen = engine.inspect(&name);
    assert_eq!(seen["Config"]["Hostname"], "web-1");
    assert_eq!(seen["Config"]["Labels"]["com.docker.swarm.task.name"], name.as_str());
    assert_eq!(seen["HostConfig"]["Memory"], 64 << 20);
    assert_eq!(seen["HostConfig"]["SecurityOpt"], json!(["no-new-privileges:true"]));
    // The engine's own, which it was started with.
    assert_eq!(
        seen["HostConfig"]["LogConfig"],
        json!({ "Type": "json-file", "Config": { "max-size": "7m" } })
    );
    let ip = seen["NetworkSettings"]["Networks"]["bridge"]["IPAddress"]
        .as_str()
        .unwrap();
    assert_eq!(world.addr(&id).unwrap().to_string(), format!("{ip}:0"));
    let root = PathBuf::from(format!("/proc/{}/root", world.pid(&id)));
    let (conf, key) = (root.join("etc/app/conf"), root.join("run/secrets/key"));
    assert_eq!(std::fs::read_to_string(&conf).unwrap(), "configured");
    assert_eq!(std::fs::read_to_string(&key).unwrap(), "hush");
    let metadata = std::fs::metadata(&conf).unwrap();
    assert_eq!(
        (metadata.uid(), metadata.gid(), metadata.mode() & 0o7777),
        (33, 44, 0o440)
    );
    assert_eq!(std::fs::metadata(&key).unwrap().mode() & 0o7777, 0o400);
    // On no disk.
    let mounts = std::fs::read_to_string(format!("/proc/{}/mountinfo", world.pid(&id))).unwrap();
    let mount = mounts.lines().find(|line| line.contains("/run/secrets/key")).unwrap();
    assert!(mount.contains(" - tmpfs "), "{mount}");

    // In between two runs nothing of it changes.
    let pid = world.pid(&id);
    let mut world = world;
    world.restart(engine.runtime("test").await).await;
    until("it to be reached", || world.addr(&id).is_some()).await;
    assert_eq!(world.pid(&id), pid);

    world.wish(&id, TaskState::Remove);
    let status = world.wait(&id, TaskState::Shutdown).await;
    assert_eq!(status.container.unwrap().exit_code, 0);
    assert_eq!(engine.containers(), 0);
    let left: Vec<PathBuf> = in_memory()
        .into_iter()
        .filter(|path| path.ends_with(id.as_str()))
        .collect();
    assert!(left.is_empty(), "{left:?}");

    // A program that hears only SIGTERM, in an image that asks otherwise.
    let mut build = engine
        .0
        .engine(&["build", "-q", "-t", "quits", "-"])
        .env("DOCKER_BUILDKIT", "0")
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    use std::io::Write;
    build
        .stdin
        .take()
        .unwrap()
        .write_all(b"FROM nginx\nSTOPSIGNAL SIGQUIT\n")
        .unwrap();
    assert!(build.wait().unwrap().success());
    let ends = |image: &str, signal: Option<&str>| {
        let mut spec = json!({ "Image": image, "StopGracePeriod": 700_000_000 });
        if let Some(signal) = signal {
            spec["StopSignal"] = json!(signal);
        }
        spec
    };
    for (spec, code) in [
        (ends("nginx", None), 0),
        (ends("quits", None), 137),
        (ends("quits", Some("SIGTERM")), 0),
    ] {
        let id = world.task(spec.clone(), json!({}));
        world.wait(&id, TaskState::Running).await;
        world.wait_said(&id, "listening").await;
        world.wish(&id, TaskState::Shutdown);
        let status = world.wait(&id, TaskState::Shutdown).await;
        assert_eq!(status.container.unwrap().exit_code, code, "{spec}");
    }

    // What cannot be.
    let missing = world.task(json!({ "Image": "127.0.0.1:1/none" }), json!({}));
    let status = world.wait(&missing, TaskState::Rejected).await;
    assert_eq!(status.error.as_deref(), Some("No such image: 127.0.0.1:1/none:latest"));
    let mut spec = container();
    spec["Command"] = json!(["/none"]);
    let id = world.task(spec, json!({}));
    let error = world.wait(&id, TaskState::Failed).await.error.unwrap();
    assert!(error.starts_with("starting container failed: "), "{error}");
    // Nobody reaches what has no network; least of all by way of this host.
    let id = world.task(container(), json!({ "Networks": [{ "Target": "none" }] }));
    world.wait(&id, TaskState::Running).await;
    assert_eq!(world.addr(&id), None);
}

#[tokio::test]
async fn health_and_output_of_containers() {
    let Some(engine) = Engine::up("health") else { return };
    let world = engine.world().await;
    let mut spec = container();
    spec["HealthCheck"] = json!({
        "Test": ["CMD", "curl", "-f", "http://localhost:80/health"],
        "Interval": 200_000_000, "Timeout": 2_000_000_000u64, "Retries": 2,
    });
    let id = Id::from_bits(fastrand::u128(..));
    let mut assignment = rig::assignment(&id, spec, json!({}));
    let mut task = (*assignment.task).clone();
    task.desired = TaskState::Ready;
    assignment.task = Arc::new(task);
    world.assign(assignment);
    world.wait(&id, TaskState::Ready).await;
    assert!(world.said(&id).await.is_empty());
    // Whoever follows hears what it says once it has begun.
    let followed = world.logs(&id, LogQuery { follow: true, ..ALL });
    let drive = async {
        world.wish(&id, TaskState::Running);
        world.wait(&id, TaskState::Running).await;
        let ip = world.addr(&id).unwrap().ip();
        let out = engine
            .0
            .inside("curl")
            .args(["-s", &format!("http://{ip}/health?set=500")])
            .output()
            .unwrap();
        assert!(out.status.success(), "{out:?}");
        let status = world.wait(&id, TaskState::Complete).await;
        assert_eq!(status.error, None);
    };
    let (followed, ()) = tokio::join!(followed, drive);
    assert_eq!(followed.len(), 1, "{followed:?}");
    assert_eq!(followed[0].bytes, "listening on 0.0.0.0:80");
    // To the nanosecond, though the engine counts in seconds.
    let at = followed[0].at;
    for (query, n) in [
        (
            LogQuery {
                since: Some(at),
                until: Some(at),
                ..ALL
            },
            1,
        ),
        (
            LogQuery {
                since: Some(at + Duration::from_nanos(1)),
                ..ALL
            },
            0,
        ),
        (
            LogQuery {
                until: Some(at - Duration::from_nanos(1)),
                ..ALL
            },
            0,
        ),
        (LogQuery { stdout: false, ..ALL }, 0),
        (LogQuery { tail: Some(0), ..ALL }, 0),
    ] {
        assert_eq!(world.logs(&id, query).await.len(), n, "{query:?}");
    }
}

#[tokio::test]
async fn an_engine_that_is_away_loses_no_word() {
    let Some(engine) = Engine::up("away") else { return };
    // Of another anynode, and of a user.
    let others = engine.world_of("another").await;
    let other = others.task(container(), json!({}));
    others.wait(&other, TaskState::Running).await;
    let world = engine.world().await;
    let (stays, stops) = (world.task(container(), json!({})), world.task(container(), json!({})));
    for id in [&stays, &stops] {
        world.wait(id, TaskState::Running).await;
    }
    let pids = [&stays, &stops].map(|id| world.pid(id));
    engine.0.cluster(&["kill-dockerd", "1"]);
    world.wish(&stops, TaskState::Remove);
    let late = world.task(container(), json!({}));
    tokio::time::sleep(Duration::from_secs(3)).await;
    // Nothing is said of what nobody can know.
    assert!(pids.iter().all(|pid| is_alive(*pid)));
    for id in [&stays, &stops] {
        assert_eq!(world.latest(id).unwrap().state, TaskState::Running);
    }
    assert_eq!(world.latest(&late).unwrap().state, TaskState::Preparing);
    engine.0.cluster(&["start-dockerd", "1"]);
    world.wait(&stops, TaskState::Shutdown).await;
    world.wait(&late, TaskState::Running).await;
    // Without live-restore an engine asks what it finds to end when it starts, and this program does.
    world.wait(&stays, TaskState::Complete).await;
    assert!(!pids.iter().any(|pid| is_alive(*pid)));
    world.forget(&stays);
    world.forget(&late);
    until("only the other's container to be left", || engine.containers() == 1).await;
    assert!(
        engine
            .docker(&["ps", "-a", "--format", "{{.Names}}"])
            .contains(other.as_str())
    );
}

#[tokio::test]
async fn one_that_is_to_go_while_it_is_made_leaves_nothing() {
    let Some(engine) = Engine::up("unmade") else { return };
    let world = engine.world().await;
    for round in 0..30 {
        let id = world.task(container(), json!({}));
        tokio::time::sleep(Duration::from_millis(4 * round)).await;
        world.wish(&id, TaskState::Remove);
        world.wait(&id, TaskState::Shutdown).await;
        world.forget(&id);
        // Nobody waits for the engine here: what it was asked for last may come yet.
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert_eq!(engine.containers(), 0, "round {round}");
    }
}

#[tokio::test]
async fn a_containers_network_is_ready_first_and_goes_with_it() {
    let Some(engine) = Engine::up("sandbox") else { return };
    let recorder = Arc::new(Recorder::default());
    let runtime = engine.runtime_with("test", recorder.clone()).await;
    let world = World::with_networks(runtime, recorder.clone());
    let on_net = json!({ "Networks": [{ "Target": "net" }] });
    let mut spec = container();
    spec["Hosts"] = json!(["192.0.2.7 seven.example"]);
    spec["DNSConfig"] = json!({ "Nameservers": ["192.0.2.53"], "Search": ["example.org"] });
    spec["Sysctls"] = json!({ "net.ipv4.ip_default_ttl": "61" });
    spec["Hostname"] = json!("named");

    recorder.is_held.send_replace(true);
    let id = world.task(spec.clone(), on_net.clone());
    until("its network to be asked for", || !recorder.places(&id).is_empty()).await;
    let asked = recorder.places(&id).remove(0);
    assert_eq!(asked.networks, [Arc::from("net")]);
    assert_eq!(asked.nameservers, [SocketAddr::from(([192, 0, 2, 53], 53))]);
    assert!((asked.is_closed, asked.has_dns) == (false, true));
    tokio::time::sleep(Duration::from_millis(500)).await;
    let format = "{{.Names}} {{.State}}";
    let shown = |engine: &Engine| engine.docker(&["ps", "-a", "--format", format]);
    assert_eq!(
        shown(&engine).matches(" running").count(),
        1,
        "the sandbox alone: {}",
        shown(&engine)
    );
    recorder.is_held.send_replace(false);
    world.wait(&id, TaskState::Running).await;
    let reach = world.reach(&id).unwrap();
    assert_eq!(Some(reach.addr.ip()), asked.address);
    let inode = |path: &Path| std::fs::metadata(path).unwrap().ino();
    let program = PathBuf::from(format!("/proc/{}", world.pid(&id)));
    assert_eq!(inode(&program.join("ns/net")), inode(&asked.netns));
    let file = |name: &str| std::fs::read_to_string(program.join("root/etc").join(name)).unwrap();
    assert!(file("hosts").contains("192.0.2.7\tseven.example"), "{}", file("hosts"));
    let resolver = file("resolv.conf");
    assert!(
        resolver.contains("nameserver 127.0.0.77") && resolver.contains("search example.org"),
        "{resolver}"
    );
    assert_eq!(file("hostname").trim(), "named");
    let ttl = std::process::Command::new("nsenter")
        .arg(format!("--net={}", asked.netns.display()))
        .args(["cat", "/proc/sys/net/ipv4/ip_default_ttl"])
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&ttl.stdout).trim(), "61");

    // Without its network a task is over, and another is made by who wants it.
    let sandbox = PathBuf::from(&*asked.netns);
    let sandbox: u32 = sandbox.iter().nth(2).unwrap().to_str().unwrap().parse().unwrap();
    assert_ne!(sandbox, world.pid(&id));
    signal(sandbox, Signal::KILL);
    world.wait(&id, TaskState::Failed).await;
    world.forget(&id);
    until("nothing to be left of it", || engine.containers() == 0).await;
    assert!(recorder.closed.lock().unwrap().contains(&id));

    *recorder.fails.lock().unwrap() = Some("no room for its routes".to_owned());
    let id = world.task(spec, on_net);
    let error = world.wait(&id, TaskState::Failed).await.error.unwrap();
    assert!(error.contains("no room for its routes"), "{error}");
    world.forget(&id);
    until("nothing to be left of it", || engine.containers() == 0).await;
}
