//! What is learned of a real engine in swarm mode, by the Watch stream and by asking, against what `docker` says; also
//! while the engine is killed, frozen, made another swarm's, or hides its control socket.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use anynode::model::Cluster;
use anynode::source::cluster::LocalTasks;
use anynode::source::swarm::{Engine, EngineInfo, SwarmPaths, SwarmSource, SwarmStatus, Way};
use tokio::sync::{oneshot, watch};

use super::rig;

type History = Arc<Mutex<Vec<(SystemTime, Arc<Cluster>)>>>;

/// A `SwarmSource` on a thread of its own, and everything that it published.
struct Follower {
    status: Arc<SwarmStatus>,
    clusters: watch::Receiver<Arc<Cluster>>,
    publish: watch::Sender<Arc<Cluster>>,
    tasks: watch::Receiver<Option<Arc<LocalTasks>>>,
    info: watch::Receiver<EngineInfo>,
    is_source: Arc<AtomicBool>,
    history: History,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Follower {
    fn start(docker_socket: &Path, control_socket: &Path) -> Follower {
        let status = Arc::new(SwarmStatus::default());
        let publish: watch::Sender<Arc<Cluster>> = watch::Sender::default();
        let clusters = publish.subscribe();
        let is_source = Arc::new(AtomicBool::new(false));
        let told = is_source.clone();
        let paths = SwarmPaths {
            docker_socket: docker_socket.to_owned(),
            control_socket: control_socket.to_owned(),
        };
        let source = SwarmSource::new(
            paths,
            status.clone(),
            publish.clone(),
            Arc::new(move |is| told.store(is, SeqCst)),
        );
        let (tasks, info) = (source.tasks(), source.info());
        let history = History::default();
        let (stop, stopped) = oneshot::channel::<()>();
        let (mut seen, keeps) = (clusters.clone(), history.clone());
        let record = async move {
            while seen.changed().await.is_ok() {
                let cluster = seen.borrow_and_update().clone();
                keeps.lock().unwrap().push((SystemTime::now(), cluster));
            }
        };
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.unwrap().block_on(async move {
                let recording = tokio::spawn(record);
                source.run(async { drop(stopped.await) }).await;
                recording.abort();
            });
        });
        Follower {
            status,
            clusters,
            publish,
            tasks,
            info,
            is_source,
            history,
            stop: Some(stop),
            thread: Some(thread),
        }
    }

    fn cluster(&self) -> Arc<Cluster> {
        self.clusters.borrow().clone()
    }

    fn way(&self) -> Way {
        self.status.way().0
    }

    /// Ids of the tasks that a service has in the cluster.
    fn tasks_of(&self, service: &str) -> BTreeSet<String> {
        let cluster = self.cluster();
        let id = cluster
            .services()
            .find(|one| one.name == service)
            .map(|one| one.id.clone());
        let tasks = cluster.tasks().filter(|task| Some(&task.service) == id.as_ref());
        tasks.map(|task| task.id.clone()).collect()
    }

    fn local(&self) -> BTreeMap<String, String> {
        let tasks = self.tasks.borrow().clone();
        let tasks = tasks.iter().flat_map(|tasks| tasks.iter());
        tasks
            .map(|(task, reach)| (task.to_string(), reach.addr.ip().to_string()))
            .collect()
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            assert!(ended.is_ok() || std::thread::panicking());
        }
    }
}

/// Stands between a follower and a control socket.
struct Proxy {
    path: PathBuf,
    /// What was read is held back.
    is_stalled: Arc<AtomicBool>,
    open: Arc<Mutex<Vec<UnixStream>>>,
}

impl Proxy {
    fn start(path: &Path, target: &Path) -> Proxy {
        let listener = UnixListener::bind(path).unwrap();
        let proxy = Proxy {
            path: path.to_owned(),
            is_stalled: Arc::default(),
            open: Arc::default(),
        };
        let (target, is_stalled, open) = (target.to_owned(), proxy.is_stalled.clone(), proxy.open.clone());
        // Ends with the test's process.
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let (client, server) = (client.unwrap(), UnixStream::connect(&target).unwrap());
                for (from, to) in [(&client, &server), (&server, &client)] {
                    let (from, to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
                    let is_stalled = is_stalled.clone();
                    std::thread::spawn(move || carry(from, to, &is_stalled));
                }
                open.lock().unwrap().extend([client, server]);
            }
        });
        proxy
    }

    /// Ends every connection.
    fn cut(&self) {
        for stream in self.open.lock().unwrap().drain(..) {
            // It may have ended by itself.
            let _ = stream.shutdown(std::net::Shutdown::Both);
        }
    }
}

fn carry(mut from: UnixStream, mut to: UnixStream, is_stalled: &AtomicBool) {
    let mut buffer = [0; 4096];
    while let Ok(n @ 1..) = from.read(&mut buffer) {
        while is_stalled.load(SeqCst) {
            std::thread::sleep(Duration::from_millis(10));
        }
        if to.write_all(&buffer[..n]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(std::net::Shutdown::Both);
}

/// The ids of the tasks that docker calls running and means to run.
fn running(swarm: &rig::Swarm, service: &str) -> Option<BTreeSet<String>> {
    let format = "{{.ID}} {{.CurrentState}}";
    let wanted = "desired-state=running";
    let ps = [
        "service",
        "ps",
        service,
        "--no-trunc",
        "--filter",
        wanted,
        "--format",
        format,
    ];
    let out = swarm.try_docker(1, &ps);
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    let ids = text
        .lines()
        .filter_map(|line| Some(line.split_once(" Running")?.0.to_owned()));
    out.status.success().then(|| ids.collect())
}

fn agree(swarm: &rig::Swarm, followers: &[&Follower], service: &str, n: usize) -> bool {
    let Some(running) = running(swarm, service) else {
        return false;
    };
    running.len() == n && followers.iter().all(|follower| follower.tasks_of(service) == running)
}

fn engine(swarm: &rig::Swarm) -> (PathBuf, PathBuf) {
    let dir = PathBuf::from(swarm.engine_dir(1));
    (dir.join("docker.sock"), dir.join("run/swarm/control.sock"))
}

const LONG: Duration = Duration::from_secs(90);

#[test]
fn the_cluster_is_what_docker_says_by_either_way_and_whatever_becomes_of_the_engine() {
    let Some(swarm) = rig::up("source", 1, 1) else {
        return;
    };
    let (docker, control) = engine(&swarm);
    let by_watch = Follower::start(&docker, &control);
    let by_poll = Follower::start(&docker, Path::new("/nowhere/control.sock"));
    let both = [&by_watch, &by_poll];

    let labels = ["--label", "anynode.mode=http", "--label", "other=x"];
    let publish = [
        "--publish",
        "published=8080,target=80",
        "--replicas",
        "2",
        "--stop-grace-period",
        "3s",
    ];
    for network in ["app", "front"] {
        swarm.docker(1, &["network", "create", "-d", "overlay", network]);
    }
    let networks = ["--network", "app", "--network", "front"];
    swarm.create("web", &[&labels[..], &publish, &networks].concat());
    swarm.create("inner", &["--replicas", "1"]);
    swarm.wait_for("both ways to have the service", LONG, || agree(&swarm, &both, "web", 2));
    assert_eq!((by_watch.way(), by_poll.way()), (Way::Watch, Way::Poll));
    assert!(both.iter().all(|one| one.is_source.load(SeqCst)));
    let cluster = by_watch.cluster();
    let service = cluster.services().find(|one| one.name == "web").unwrap();
    assert_eq!((service.ports[0].published, service.ports[0].target), (8080, 80));
    assert_eq!(service.labels.keys().collect::<Vec<_>>(), ["anynode.mode"]);
    assert_eq!(service.stop_grace_ms, Some(3000));
    let format = "{{range .Endpoint.VirtualIPs}}{{.NetworkID}} {{.Addr}}\n{{end}}";
    let said = swarm.docker(1, &["service", "inspect", "-f", format, "web"]);
    let ours: BTreeSet<String> = service
        .networks
        .iter()
        .map(|one| format!("{} {}/24", one.network, one.vip.unwrap()))
        .collect();
    let theirs: BTreeSet<String> = said.lines().map(str::to_owned).collect();
    // Of the network for published ports there is one more.
    assert_eq!(ours.len(), 2);
    assert!(ours.is_subset(&theirs), "{ours:?} {theirs:?}");
    let node = cluster.nodes().next().unwrap();
    assert_eq!(node.addr.map(|ip| ip.to_string()), Some(swarm.ip(1)));
    assert!(node.is_manager && node.is_up && node.availability == "active");
    assert_eq!(by_watch.info.borrow().node, node.id);
    swarm.wait_for("both ways to agree", LONG, || {
        by_watch.cluster().digest() == by_poll.cluster().digest()
    });

    // Where the tasks are: each answers there, from its node.
    swarm.wait_for("the addresses of tasks", LONG, || {
        by_watch
            .tasks_of("web")
            .iter()
            .all(|task| by_watch.local().contains_key(task))
    });
    for task in by_watch.tasks_of("web") {
        let url = format!("http://{}/", by_watch.local()[&task]);
        let answer = swarm.cluster(&["exec", "1", "curl", "-sS", "--fail", "-m", "10", &url]);
        assert!(answer.contains("hostname"), "{answer}");
    }

    for n in [5, 1, 3] {
        swarm.docker(1, &["service", "scale", "--detach", &format!("web={n}")]);
        swarm.wait_for("the scaled service", LONG, || agree(&swarm, &both, "web", n));
    }
    // A task that dies is gone at once, and the next one comes.
    let dead = by_watch.tasks_of("web").into_iter().next().unwrap();
    let filter = format!("label=com.docker.swarm.task.id={dead}");
    let container = swarm.docker(1, &["ps", "-q", "--filter", &filter]);
    swarm.docker(1, &["kill", &container]);
    swarm.wait_for("the dead task to be gone", LONG, || {
        both.iter().all(|one| !one.tasks_of("web").contains(&dead)) && !by_watch.local().contains_key(&dead)
    });
    swarm.wait_for("the next task", LONG, || agree(&swarm, &both, "web", 3));

    // The engine dies: the last cluster stays, and this node may learn from others. It returns, and so does the truth.
    let (before, resyncs) = (by_watch.cluster(), by_watch.status.resyncs.load(SeqCst));
    swarm.cluster(&["kill-dockerd", "1"]);
    swarm.wait_for("the sources to stand back", LONG, || {
        both.iter()
            .all(|one| !one.is_source.load(SeqCst) && one.status.way().2.is_some())
    });
    assert_eq!(by_watch.way(), Way::Kept);
    assert_eq!(by_watch.cluster().digest(), before.digest());
    assert!(!by_watch.local().is_empty(), "the last addresses stay too");
    swarm.cluster(&["start-dockerd", "1"]);
    swarm.wait_for("the truth to return", LONG, || {
        agree(&swarm, &both, "web", 3) && both.iter().all(|one| one.is_source.load(SeqCst))
    });
    // Which tasks those are still changes: the engine may find only now that some died with it.
    swarm.wait_for("the new addresses", LONG, || {
        let (tasks, local) = (by_watch.tasks_of("web"), by_watch.local());
        tasks.len() == 3 && tasks.iter().all(|task| local.contains_key(task))
    });
    assert!(by_watch.cluster().revision() > before.revision());
    println!(
        "after the engine's death: {} resumes, {} resyncs more",
        by_watch.status.resumes.load(SeqCst),
        by_watch.status.resyncs.load(SeqCst) - resyncs,
    );

    // A frozen engine keeps its connections; that it says nothing is noticed.
    let events = by_watch.status.events.load(SeqCst);
    swarm.cluster(&["freeze", "1"]);
    swarm.wait_for("the frozen engine to be noticed", LONG, || {
        both.iter()
            .all(|one| !one.is_source.load(SeqCst) && one.status.way().2.is_some())
    });
    assert!(!by_watch.cluster().is_empty());
    swarm.cluster(&["thaw", "1"]);
    swarm.docker(1, &["service", "scale", "--detach", "web=2"]);
    swarm.wait_for("what came after the freeze", LONG, || {
        agree(&swarm, &both, "web", 2) && both.iter().all(|one| one.is_source.load(SeqCst))
    });
    assert!(by_watch.status.events.load(SeqCst) > events);
    swarm.wait_for("nothing to be wrong any more", LONG, || {
        matches!(by_watch.status.way(), (Way::Watch, Some(_), None))
    });

    // Other managers brought news while this one's engine was away: what it says next is no step back.
    swarm.cluster(&["kill-dockerd", "1"]);
    swarm.wait_for("the source to stand back", LONG, || !by_watch.is_source.load(SeqCst));
    let mut newer = Cluster::clone(&by_watch.cluster());
    newer.set_revision(newer.revision() + 2);
    by_watch.publish.send_replace(Arc::new(newer.clone()));
    swarm.cluster(&["start-dockerd", "1"]);
    swarm.wait_for("the engine's word", LONG, || {
        agree(&swarm, &both, "web", 2) && by_watch.way() == Way::Watch
    });
    for follower in both {
        let history = follower.history.lock().unwrap();
        let revisions: Vec<u64> = history.iter().map(|(_, cluster)| cluster.revision()).collect();
        assert!(revisions.is_sorted(), "never back: {revisions:?}");
    }

    swarm.docker(1, &["service", "rm", "web"]);
    swarm.wait_for("the service to be gone", LONG, || {
        both.iter()
            .all(|one| !one.cluster().services().any(|service| service.name == "web"))
    });
    assert!(
        both.iter().all(|one| one.cluster().tasks().count() == 0),
        "inner publishes nothing"
    );

    // Another swarm begins with low revisions: that is no reason to stay with the old one.
    let last = by_watch.cluster().revision();
    let old_node = by_watch.info.borrow().node.clone();
    swarm.docker(1, &["swarm", "leave", "--force"]);
    let ip = swarm.ip(1);
    swarm.docker(1, &["swarm", "init", "--advertise-addr", &ip, "--listen-addr", &ip]);
    swarm.create("next", &["--publish", "8081:80"]);
    swarm.wait_for("the other swarm", LONG, || agree(&swarm, &both, "next", 1));
    // Until the engine is asked who it is, its stream may seem to be the old swarm's. The other's revisions grow meanwhile.
    swarm.wait_for("the other swarm's own count", LONG, || {
        both.iter().all(|one| {
            let history = one.history.lock().unwrap();
            let is_other = |cluster: &Cluster| cluster.nodes().count() > 0 && cluster.node(&old_node).is_none();
            let mut clusters = history.iter().map(|(_, cluster)| cluster);
            clusters.any(|cluster| is_other(cluster) && cluster.revision() < last)
        })
    });
    for follower in both {
        assert!(
            follower.cluster().node(&old_node).is_none(),
            "nothing is left of the old one"
        );
    }
}

#[test]
fn the_way_is_chosen_anew_when_sockets_come_and_go() {
    let Some(swarm) = rig::up("ways", 1, 1) else {
        return;
    };
    let (docker, control) = engine(&swarm);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("control.sock");
    // A socket that nobody listens on any more, as a mounted file is after the engine has started anew.
    drop(UnixListener::bind(&path).unwrap());
    let follower = Follower::start(&docker, &path);
    swarm.create("web", &["--publish", "8080:80"]);
    swarm.wait_for("the slow way", LONG, || {
        follower.way() == Way::Poll && agree(&swarm, &[&follower], "web", 1)
    });
    std::fs::remove_file(&path).unwrap();
    std::os::unix::fs::symlink(&control, &path).unwrap();
    swarm.wait_for("the quick way", LONG, || follower.way() == Way::Watch);
    assert!(agree(&swarm, &[&follower], "web", 1));
    // Somebody else's socket: it accepts and says nothing of use.
    std::fs::remove_file(&path).unwrap();
    let stranger = UnixListener::bind(&path).unwrap();
    std::thread::spawn(move || stranger.incoming().for_each(drop));
    swarm.cluster(&["kill-dockerd", "1"]);
    swarm.cluster(&["start-dockerd", "1"]);
    swarm.wait_for("the slow way again", LONG, || {
        follower.way() == Way::Poll && agree(&swarm, &[&follower], "web", 1)
    });

    // The stream breaks again and again while things change: it goes on where it broke.
    let proxy = Proxy::start(&dir.path().join("proxy.sock"), &control);
    let by_proxy = Follower::start(&docker, &proxy.path);
    swarm.wait_for("the stream", LONG, || by_proxy.way() == Way::Watch);
    let resyncs = by_proxy.status.resyncs.load(SeqCst);
    for n in [3, 1, 4, 2] {
        swarm.docker(1, &["service", "scale", "--detach", &format!("web={n}")]);
        let mut n_looks = 0;
        let resumes = by_proxy.status.resumes.load(SeqCst);
        swarm.wait_for("what changed", LONG, || {
            n_looks += 1;
            // Long enough apart for it to stand again.
            if n_looks % 10 == 1 {
                proxy.cut();
            }
            agree(&swarm, &[&by_proxy], "web", n) && by_proxy.status.resumes.load(SeqCst) > resumes
        });
    }
    let (resumes, more_resyncs) = (
        by_proxy.status.resumes.load(SeqCst),
        by_proxy.status.resyncs.load(SeqCst) - resyncs,
    );
    assert!(
        resumes >= 4 && more_resyncs <= resumes / 2,
        "{resumes} resumes, {more_resyncs} resyncs"
    );
    // It says nothing any more, without an end.
    proxy.is_stalled.store(true, SeqCst);
    swarm.docker(1, &["service", "scale", "--detach", "web=3"]);
    swarm.wait_for("the slow way in its stead", LONG, || {
        by_proxy.way() == Way::Poll && agree(&swarm, &[&by_proxy], "web", 3)
    });
    assert!(by_proxy.status.way().2.is_some(), "why it is the slow way");
    proxy.is_stalled.store(false, SeqCst);
    swarm.wait_for("the quick way again", LONG, || by_proxy.way() == Way::Watch);
    assert!(agree(&swarm, &[&by_proxy], "web", 3));
    let revisions: Vec<u64> = {
        let history = by_proxy.history.lock().unwrap();
        history.iter().map(|(_, cluster)| cluster.revision()).collect()
    };
    assert!(revisions.is_sorted(), "never back: {revisions:?}");

    // A config is made once, whoever asks first.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let (one, other) = runtime.unwrap().block_on(async {
        let engine = Engine::connect(&docker).await.unwrap();
        let name = "anynode-test";
        let made = tokio::join!(
            engine.create_or_read_config(name, b"one"),
            engine.create_or_read_config(name, b"other"),
        );
        (made.0.unwrap(), made.1.unwrap())
    });
    assert_eq!(one, other);
    assert!(one == b"one" || one == b"other");
}

#[test]
fn a_manager_whose_engine_is_away_follows_the_others() {
    let Some(mut swarm) = rig::up("managers", 3, 3) else {
        return;
    };
    swarm.start_all();
    let not_there = ["--constraint", "node.hostname!=node2"];
    let publish = ["--publish", "8080:80", "--replicas", "2"];
    swarm.create("web", &[&not_there[..], &publish].concat());
    swarm.wait_ready(&[1, 2, 3], "web", 2);
    let digests = |swarm: &rig::Swarm| -> BTreeSet<String> {
        let states = [1, 2, 3].map(|node| swarm.status(node).unwrap_or_default());
        states
            .iter()
            .map(|state| state["cluster"]["digest"].to_string())
            .collect()
    };
    let way = |swarm: &rig::Swarm| swarm.status(2).unwrap_or_default()["cluster"]["way"].clone();
    for away in [["freeze", "thaw"], ["kill-dockerd", "start-dockerd"]] {
        swarm.cluster(&[away[0], "2"]);
        swarm.wait_for("the manager to stand back", LONG, || way(&swarm) == "kept");
        // What the others do meanwhile is known here too.
        swarm.docker(1, &["service", "scale", "--detach", "web=4"]);
        swarm.wait_ready(&[1, 2, 3], "web", 4);
        assert_eq!(way(&swarm), "kept");
        swarm.cluster(&[away[1], "2"]);
        swarm.wait_for("its own word to count again", LONG, || way(&swarm) == "watch");
        swarm.docker(1, &["service", "scale", "--detach", "web=2"]);
        swarm.wait_ready(&[1, 2, 3], "web", 2);
        swarm.wait_for("all to agree", LONG, || digests(&swarm).len() == 1);
    }
    // A manager no more, and one again.
    for (command, expected) in [("demote", "link"), ("promote", "watch")] {
        swarm.docker(1, &["node", command, "node2"]);
        swarm.wait_for(expected, LONG, || way(&swarm) == expected);
        let n = if command == "demote" { 3 } else { 1 };
        swarm.docker(1, &["service", "scale", "--detach", &format!("web={n}")]);
        swarm.wait_ready(&[1, 2, 3], "web", n);
        swarm.wait_for("all to agree", LONG, || digests(&swarm).len() == 1);
    }
}

/// Not a test of anything but that it works: how long after a task runs each way has it.
#[test]
fn how_soon_a_running_task_is_in_the_cluster() {
    let Some(swarm) = rig::up("soon", 1, 1) else {
        return;
    };
    let (docker, control) = engine(&swarm);
    let by_watch = Follower::start(&docker, &control);
    let by_poll = Follower::start(&docker, Path::new("/nowhere/control.sock"));
    let both = [&by_watch, &by_poll];
    swarm.create("web", &["--publish", "8080:80", "--replicas", "1"]);
    swarm.wait_for("the service", LONG, || agree(&swarm, &both, "web", 1));
    let starts: usize = std::env::var("ANYNODE_STARTS").map_or(3, |n| n.parse().unwrap());
    let mut running_to: [Vec<Duration>; 2] = Default::default();
    let mut committed_to: [Vec<Duration>; 2] = Default::default();
    let mut address_to = Vec::new();
    for _ in 0..starts {
        let before = by_watch.tasks_of("web");
        swarm.docker(1, &["service", "scale", "--detach", "web=2"]);
        swarm.wait_for("the task", LONG, || agree(&swarm, &both, "web", 2));
        let now = by_watch.tasks_of("web");
        let task = now.difference(&before).next().unwrap().clone();
        let of_task = |what: &str| -> SystemTime {
            let text = swarm.docker(
                1,
                &[
                    "inspect",
                    "--type",
                    "task",
                    "-f",
                    &format!("{{{{json .{what}}}}}"),
                    &task,
                ],
            );
            humantime::parse_rfc3339(text.trim_matches('"')).unwrap()
        };
        let (ran, committed) = (of_task("Status.Timestamp"), of_task("UpdatedAt"));
        for (i, follower) in both.iter().enumerate() {
            let history = follower.history.lock().unwrap();
            let (at, _) = history
                .iter()
                .find(|(_, cluster)| cluster.task(&task).is_some())
                .unwrap();
            running_to[i].push(at.duration_since(ran).unwrap_or_default());
            committed_to[i].push(at.duration_since(committed).unwrap_or_default());
        }
        let started = SystemTime::now();
        swarm.wait_for("its address", LONG, || by_watch.local().contains_key(&task));
        address_to.push(started.elapsed().unwrap_or_default());
        swarm.docker(1, &["service", "scale", "--detach", "web=1"]);
        swarm.wait_for("one task", LONG, || agree(&swarm, &both, "web", 1));
    }
    for (i, way) in ["watch", "poll"].into_iter().enumerate() {
        println!(
            "{way}: a task is in the cluster so long after it ran on its node: {}; after the managers' commit: {}",
            spread(&mut running_to[i]),
            spread(&mut committed_to[i])
        );
    }
    println!("its address was waited for: {}", spread(&mut address_to));
}

fn spread(all: &mut [Duration]) -> String {
    all.sort_unstable();
    let at = |percent: usize| all[(all.len() - 1) * percent / 100];
    format!("p50 {:.1?}, p90 {:.1?}, max {:.1?}", at(50), at(90), at(100))
}
