//! An API with a made-up node around it: tasks that run as soon as they may, lines that they are said to have written, ports
//! that somebody is said to hold.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write as _};
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anynode::api::{Api, Host, Later, Outside, Volume, VolumeError, Volumes};
use anynode::control;
use anynode::model::EntryPointSpec;
use anynode::model::exec::{ExecError, ExecSpec};
use anynode::model::swarm::{Container, Generic, Id, Object, SwarmAuthority, Task, TaskState, Time, Write};
use anynode::model::volume::{TaskMount, VolumeChange};
use anynode::store::{CommitError, Embedded, Snapshot, Store, update};
use anynode::streams::{Exec, LogLine, LogQuery, LogStream};
use anynode::tls::Declared;
use bytes::Bytes;
use futures_util::stream;
use serde_json::Value;
use tokio::net::UnixListener;
use tokio::sync::{broadcast, mpsc, oneshot};

pub const LONG: Duration = Duration::from_secs(30);

/// What is around the API.
#[derive(Default)]
pub struct Around {
    pub engine: Mutex<Option<PathBuf>>,
    /// Tasks that are to end go on running.
    pub holds_on: AtomicBool,
    /// Ports that another program holds.
    pub held: Mutex<BTreeSet<u16>>,
    /// What is wrong with services.
    pub faults: Mutex<BTreeMap<String, Vec<String>>>,
    /// What tasks have written: of a service's slot, or of any.
    pub lines: Mutex<Vec<LogLine>>,
    /// Whoever follows lines.
    pub followers: Mutex<Vec<mpsc::UnboundedSender<LogLine>>>,
    /// What was asked of the logs.
    pub queries: Mutex<Vec<LogQuery>>,
    pub generic: Mutex<Generic>,
    /// Volumes of this node, where it has them itself.
    pub volumes: Mutex<Option<Arc<MadeUpVolumes>>>,
}

/// Volumes that are only words.
pub struct MadeUpVolumes {
    all: Mutex<BTreeMap<String, Volume>>,
    told: broadcast::Sender<VolumeChange>,
    /// What every task has mounted.
    pub mounts: Mutex<Vec<TaskMount>>,
}

impl Default for MadeUpVolumes {
    fn default() -> MadeUpVolumes {
        MadeUpVolumes {
            all: Mutex::default(),
            told: broadcast::Sender::new(16),
            mounts: Mutex::default(),
        }
    }
}

impl Volumes for MadeUpVolumes {
    fn list(&self) -> Later<'_, Result<Vec<Volume>, VolumeError>> {
        let all = self.all.lock().unwrap().values().cloned().collect();
        Box::pin(async { Ok(all) })
    }

    fn create<'a>(&'a self, name: &'a str, labels: BTreeMap<String, String>) -> Later<'a, Result<Volume, VolumeError>> {
        let volume = Volume {
            name: name.to_owned(),
            created_at: Time(0),
            labels,
            mountpoint: PathBuf::from("/volumes").join(name),
            tasks: Vec::new(),
        };
        let mut all = self.all.lock().unwrap();
        if !all.contains_key(name) {
            let _ = self.told.send(VolumeChange::Made(name.to_owned()));
        }
        let made = all.entry(name.to_owned()).or_insert(volume).clone();
        Box::pin(async { Ok(made) })
    }

    fn remove<'a>(&'a self, name: &'a str) -> Later<'a, Result<(), VolumeError>> {
        let removed = self.all.lock().unwrap().remove(name);
        if removed.is_some() {
            let _ = self.told.send(VolumeChange::Removed(name.to_owned()));
        }
        Box::pin(async { removed.map(drop).ok_or(VolumeError::NotFound) })
    }

    fn size<'a>(&'a self, _: &'a str) -> Later<'a, u64> {
        Box::pin(async { 1 })
    }

    fn changes(&self) -> broadcast::Receiver<VolumeChange> {
        self.told.subscribe()
    }

    fn mounts_of(&self, _: &Id) -> Vec<TaskMount> {
        self.mounts.lock().unwrap().clone()
    }
}

impl Outside for Around {
    fn logs(&self, _: &Id, query: LogQuery) -> Result<LogStream, String> {
        self.queries.lock().unwrap().push(query);
        let wanted: Vec<LogLine> = {
            let lines = self.lines.lock().unwrap();
            let is_wanted = |line: &&LogLine| if line.is_stderr { query.stderr } else { query.stdout };
            lines.iter().filter(is_wanted).cloned().collect()
        };
        let (sender, receiver) = mpsc::unbounded_channel();
        for line in wanted {
            sender.send(line).unwrap();
        }
        if query.follow {
            self.followers.lock().unwrap().push(sender);
        }
        Ok(Box::pin(stream::unfold(receiver, |mut receiver| async move {
            Some((receiver.recv().await?, receiver))
        })))
    }

    fn exec<'a>(&'a self, _: &'a Id, _: ExecSpec) -> Later<'a, Result<Exec, ExecError>> {
        Box::pin(async { Err(ExecError::NotRunning) })
    }

    fn host(&self) -> Host {
        Host {
            hostname: "manager".to_owned(),
            architecture: "x86_64".to_owned(),
            kernel: "6.1.0".to_owned(),
            nano_cpus: 4_000_000_000,
            memory: 8 << 30,
            generic: self.generic.lock().unwrap().clone(),
            addrs: vec![Ipv4Addr::new(192, 0, 2, 7).into()],
        }
    }

    fn interface(&self, name: &str) -> Option<Vec<IpAddr>> {
        let text = match name {
            "eth0" => "192.0.2.9 fe80::9",
            "eth1" => "2001:db8::9",
            "eth2" => "192.0.2.10 192.0.2.11",
            "eth3" => "",
            _ => return None,
        };
        Some(text.split(' ').filter_map(|addr| addr.parse().ok()).collect())
    }

    fn new_authority(&self) -> Result<SwarmAuthority, String> {
        Ok(SwarmAuthority {
            certificate: "-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n".to_owned(),
            subject: "c3ViamVjdA==".to_owned(),
            public_key: "a2V5".to_owned(),
            key: "the key".into(),
        })
    }

    fn entry_points(&self) -> Vec<EntryPointSpec> {
        let web = EntryPointSpec::new("web".parse().unwrap(), None, 8000);
        vec![web]
    }

    fn faults(&self) -> BTreeMap<String, Vec<String>> {
        self.faults.lock().unwrap().clone()
    }

    fn ports_not_served(&self) -> BTreeMap<u16, String> {
        let held = self.held.lock().unwrap();
        held.iter().map(|port| (*port, "nginx has it".to_owned())).collect()
    }

    fn certificate_fault(&self, data: &[u8], is_secret: bool) -> Option<String> {
        let held = match is_secret {
            true => Declared::from_pem(data),
            false => Declared::from_config(data),
        };
        held.err().map(|error| error.to_string())
    }

    fn port_holder(&self, port: u16) -> Option<String> {
        let is_held = self.held.lock().unwrap().contains(&port);
        is_held.then(|| "nginx (pid 4711)".to_owned())
    }

    fn engine(&self) -> Option<PathBuf> {
        self.engine.lock().unwrap().clone()
    }

    fn volumes(&self) -> Option<Arc<dyn Volumes>> {
        let volumes = self.volumes.lock().unwrap().clone();
        volumes.map(|volumes| volumes as Arc<dyn Volumes>)
    }
}

pub struct Rig {
    pub around: Arc<Around>,
    store: Arc<Embedded>,
    pub dir: tempfile::TempDir,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Rig {
    pub fn up() -> Rig {
        Rig::start(Around::default())
    }

    /// With an engine beside it.
    pub fn beside(engine: PathBuf) -> Rig {
        let around = Around::default();
        *around.engine.lock().unwrap() = Some(engine);
        Rig::start(around)
    }

    /// A swarm whose node has volumes itself.
    pub fn with_volumes() -> Rig {
        let around = Around::default();
        *around.volumes.lock().unwrap() = Some(Arc::default());
        let rig = Rig::start(around);
        assert_eq!(rig.post("/swarm/init", &serde_json::json!({})).status, 200);
        rig
    }

    /// A swarm that tasks run in.
    pub fn swarm() -> Rig {
        let rig = Rig::up();
        assert_eq!(rig.post("/swarm/init", &serde_json::json!({})).status, 200);
        rig
    }

    fn start(around: Around) -> Rig {
        let dir = tempfile::tempdir().unwrap();
        let around = Arc::new(around);
        let store = Arc::new(Embedded::open(&dir.path().join("store")).unwrap());
        let (stop, stopped) = oneshot::channel();
        let socket = dir.path().join("docker.sock");
        let (ready, is_ready) = std::sync::mpsc::channel();
        let thread = std::thread::spawn({
            let (store, around) = (store.clone(), around.clone());
            move || {
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()
                    .unwrap();
                runtime.block_on(async move {
                    let listener = UnixListener::bind(socket).unwrap();
                    ready.send(()).unwrap();
                    let control = tokio::spawn(control::run(store.clone(), BTreeSet::new(), std::future::pending()));
                    let tasks = tokio::spawn(run_tasks(store.clone(), around.clone()));
                    Api::new(store, around)
                        .serve(listener, async { drop(stopped.await) })
                        .await;
                    tasks.abort();
                    control.abort();
                });
            }
        });
        is_ready.recv().unwrap();
        Rig {
            around,
            store,
            dir,
            stop: Some(stop),
            thread: Some(thread),
        }
    }

    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.store.snapshot()
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("docker.sock")
    }

    pub fn docker_command(&self, args: &[&str]) -> Command {
        let mut command = Command::new("docker");
        command
            .env("DOCKER_HOST", format!("unix://{}", self.socket().display()))
            .env("HOME", self.dir.path())
            .current_dir(self.dir.path())
            .args(args);
        command
    }

    /// What the command says on its standard output, which must succeed.
    pub fn docker(&self, args: &[&str]) -> String {
        let out = self.docker_command(args).output().unwrap();
        assert!(out.status.success(), "docker {args:?}: {out:?}");
        String::from_utf8_lossy(&out.stdout).trim_end().to_owned()
    }

    /// What the command says on its standard error, which must fail.
    pub fn docker_fails(&self, args: &[&str]) -> String {
        let out = self.docker_command(args).output().unwrap();
        assert!(!out.status.success(), "docker {args:?}: {out:?}");
        String::from_utf8_lossy(&out.stderr).trim_end().to_owned()
    }

    pub fn get(&self, path: &str) -> Reply {
        self.ask("GET", path, None)
    }

    pub fn post(&self, path: &str, body: &Value) -> Reply {
        self.ask("POST", path, Some(body))
    }

    pub fn delete(&self, path: &str) -> Reply {
        self.ask("DELETE", path, None)
    }

    pub fn ask(&self, method: &str, path: &str, body: Option<&Value>) -> Reply {
        let body = body.map(Value::to_string).unwrap_or_default();
        let kind = if body.is_empty() {
            ""
        } else {
            "Content-Type: application/json\r\n"
        };
        let length = body.len();
        self.raw(
            format!("{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{kind}Content-Length: {length}\r\n\r\n{body}")
                .as_bytes(),
        )
    }

    /// Sends these bytes, and reads until the end.
    pub fn raw(&self, request: &[u8]) -> Reply {
        let mut stream = self.connect();
        // An answer may come before all of the request was taken.
        let _ = stream.write_all(request);
        Reply::read(&mut stream)
    }

    pub fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(self.socket()).unwrap();
        stream.set_read_timeout(Some(LONG)).unwrap();
        stream
    }

    pub fn wait_for(&self, what: &str, mut is_so: impl FnMut() -> bool) {
        let started = Instant::now();
        while !is_so() {
            assert!(started.elapsed() < LONG, "waited in vain for {what}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// An update has ended so. The command line waits for as long as an update is watched, counted from when it saw the last
    /// task run: which of the two comes first is not said.
    pub fn wait_updated(&self, service: &str, state: &str) {
        self.wait_for(state, || {
            self.get(&format!("/services/{service}")).json()["UpdateStatus"]["State"] == state
        });
    }

    /// All tasks that a service wants run.
    pub fn wait_running(&self, service: &str, n: u64) {
        self.wait_for(&format!("{n} tasks of {service}"), || {
            let services = self.get("/services?status=true").json();
            let services = services.as_array().unwrap().clone();
            services
                .iter()
                .any(|found| found["Spec"]["Name"] == service && found["ServiceStatus"]["RunningTasks"] == n)
        });
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        drop(self.stop.take());
        let ended = self.thread.take().map(JoinHandle::join);
        if !std::thread::panicking() {
            assert!(ended.is_some_and(|ended| ended.is_ok()), "the API panicked");
        }
    }
}

/// Tasks do what they are to do, at once.
async fn run_tasks(store: Arc<Embedded>, around: Arc<Around>) {
    let mut changed = store.changed();
    loop {
        changed.mark_unchanged();
        let moved = update(&*store, |snapshot| {
            let next = |task: &Arc<Task>| {
                let is_over = task.desired > TaskState::Running;
                let state = match task.status.state {
                    state if state.is_terminal() || state < TaskState::Assigned => return None,
                    _ if is_over && around.holds_on.load(Ordering::Relaxed) => return None,
                    _ if is_over => TaskState::Shutdown,
                    state if state < TaskState::Ready => TaskState::Ready,
                    TaskState::Ready if task.desired == TaskState::Running => TaskState::Running,
                    _ => return None,
                };
                let mut task = Task::clone(task);
                task.status.at = Time::now();
                task.status.state = state;
                if state == TaskState::Running {
                    task.status.message = "started".to_owned();
                    task.status.ran_at = Some(task.status.at);
                    task.status.container = Some(Container {
                        id: task.id.to_string(),
                        pid: 4711,
                        exit_code: 0,
                        hostname: String::new(),
                    });
                }
                Some(Write::Put(Object::Task(Arc::new(task))))
            };
            Ok::<_, CommitError>((snapshot.tasks().filter_map(next).collect(), ()))
        });
        if moved.await.is_err() || changed.changed().await.is_err() {
            break;
        }
    }
}

/// An answer, read to its end.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub headers: BTreeMap<String, String>,
    pub body: Vec<u8>,
}

impl Reply {
    pub fn read(stream: &mut UnixStream) -> Reply {
        let mut all = Vec::new();
        // A connection that is cut may have said what there was to say before.
        let _ = stream.read_to_end(&mut all);
        Reply::parse(&all)
    }

    pub fn parse(all: &[u8]) -> Reply {
        let mut headers = [httparse::EMPTY_HEADER; 64];
        let mut head = httparse::Response::new(&mut headers);
        let length = match head.parse(all) {
            Ok(httparse::Status::Complete(length)) => length,
            other => panic!("{other:?}: {}", String::from_utf8_lossy(all)),
        };
        let headers: BTreeMap<String, String> = head
            .headers
            .iter()
            .map(|header| {
                let value = String::from_utf8_lossy(header.value).into_owned();
                (header.name.to_ascii_lowercase(), value)
            })
            .collect();
        let is_chunked = headers.get("transfer-encoding").is_some_and(|how| how == "chunked");
        Reply {
            status: head.code.unwrap(),
            body: match is_chunked {
                true => dechunked(&all[length..]),
                false => all[length..].to_vec(),
            },
            headers,
        }
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// Of an error.
    pub fn message(&self) -> String {
        self.json()["message"].as_str().unwrap().to_owned()
    }
}

/// As far as it came.
pub fn dechunked(mut bytes: &[u8]) -> Vec<u8> {
    let mut whole = Vec::new();
    while let Ok(httparse::Status::Complete((start, length))) = httparse::parse_chunk_size(bytes) {
        let length = usize::try_from(length).unwrap();
        let Some(chunk) = bytes.get(start..start + length).filter(|chunk| !chunk.is_empty()) else {
            break;
        };
        whole.extend_from_slice(chunk);
        bytes = bytes.get(start + length + 2..).unwrap_or_default();
    }
    whole
}

pub fn line(at: u64, is_stderr: bool, text: &'static str) -> LogLine {
    LogLine {
        at: Time(at),
        is_stderr,
        bytes: Bytes::from_static(text.as_bytes()),
    }
}

/// A service of one task that publishes a port, if one is given.
pub fn service(name: &str, port: Option<u16>) -> Value {
    let ports: Vec<Value> = port
        .into_iter()
        .map(|port| serde_json::json!({ "TargetPort": 80, "PublishedPort": port }))
        .collect();
    serde_json::json!({
        "Name": name,
        "TaskTemplate": { "ContainerSpec": { "Image": "nginx:latest" } },
        "EndpointSpec": { "Ports": ports },
    })
}
