//! A swarm of real engines in network namespaces (`tests/cluster/cluster`), an anynode on every node, and a client outside.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use serde_json::Value;

/// The image that tasks are made of. A registry at that address refuses at once, so that the local image is taken.
pub const IMAGE: &str = "127.0.0.1:1/anynode-task";

pub struct Swarm {
    name: &'static str,
    pub n: usize,
    dir: tempfile::TempDir,
    /// What `cluster env` says.
    env: BTreeMap<String, String>,
    anynodes: BTreeMap<usize, Child>,
    /// Engines of several swarms at once would be too much for a small machine.
    _turn: File,
}

/// `None`, said why: this machine cannot run engines.
pub fn up(name: &'static str, n: usize, managers: usize) -> Option<Swarm> {
    let is_root = rustix::process::geteuid().is_root();
    let has = |program: &str| {
        Command::new("which")
            .arg(program)
            .output()
            .is_ok_and(|out| out.status.success())
    };
    let missing = ["dockerd", "docker", "nsenter", "ip", "iptables", "python3", "curl"]
        .into_iter()
        .find(|p| !has(p));
    if !is_root || missing.is_some() {
        let what = missing.map_or_else(|| "root".to_owned(), str::to_owned);
        println!("skipped: this needs {what}");
        return None;
    }
    let turn = crate::harness::turn();
    let mut swarm = Swarm {
        name,
        n,
        dir: tempfile::tempdir().unwrap(),
        env: BTreeMap::new(),
        anynodes: BTreeMap::new(),
        _turn: turn,
    };
    // Of a run that was killed.
    swarm.cluster(&["down"]);
    let up = ["up", "--nodes", &n.to_string(), "--managers", &managers.to_string()].map(str::to_owned);
    swarm.cluster(&up.each_ref().map(String::as_str));
    swarm.env = swarm
        .cluster(&["env"])
        .lines()
        .filter_map(|line| line.split_once('='))
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect();
    std::fs::write(
        swarm.dir.path().join("token"),
        "a token for tests, of more than 32 characters",
    )
    .unwrap();
    let rootfs = rootfs(&task_program(), "task");
    let change = r#"ENTRYPOINT ["/task","serve"]"#;
    for node in 1..=n {
        swarm.docker(
            node,
            &["import", "--change", change, &rootfs.display().to_string(), IMAGE],
        );
    }
    Some(swarm)
}

/// The file system of an image: `program` under `name` and the libraries that it needs, as a tar.
pub fn rootfs(program: &Path, name: &str) -> PathBuf {
    static MADE: Mutex<BTreeMap<String, PathBuf>> = Mutex::new(BTreeMap::new());
    let mut made = MADE.lock().unwrap();
    if let Some(tar) = made.get(name) {
        return tar.clone();
    }
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("rootfs-{}-{name}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    run(Command::new("strip").arg("-o").arg(dir.join(name)).arg(program));
    // Health checks have a curl.
    std::fs::create_dir_all(dir.join("bin")).unwrap();
    let link = dir.join("bin/curl");
    drop(std::fs::remove_file(&link));
    std::os::unix::fs::symlink(format!("/{name}"), link).unwrap();
    // A static program has none, and ldd says so by its exit code.
    let ldd = Command::new("ldd").arg(program).output().unwrap();
    let text = String::from_utf8_lossy(&ldd.stdout).into_owned();
    for library in text.split_whitespace().filter(|word| word.starts_with('/')) {
        let to = dir.join(&library[1..]);
        std::fs::create_dir_all(to.parent().unwrap()).unwrap();
        std::fs::copy(library, to).unwrap();
    }
    let made_now = dir.with_extension("tar");
    run(Command::new("tar")
        .arg("-C")
        .arg(&dir)
        .arg("-cf")
        .arg(&made_now)
        .arg("."));
    std::fs::remove_dir_all(&dir).unwrap();
    // One name, so that runs leave one file behind them and not one each.
    let tar = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("rootfs-{name}.tar"));
    std::fs::rename(&made_now, &tar).unwrap();
    made.insert(name.to_owned(), tar.clone());
    tar
}

pub fn task_program() -> PathBuf {
    let anynode = Path::new(env!("CARGO_BIN_EXE_anynode"));
    let task = anynode.with_file_name("examples").join("task");
    let changed = |path: &Path| path.metadata().and_then(|metadata| metadata.modified()).ok();
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/task");
    let is_older = |file: &str| changed(&task) < changed(&sources.join(file));
    // `cargo test --test it` builds no example. (`None` is older than any time.)
    if is_older("main.rs") || is_older("grpc.rs") {
        let mut build = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        build.args(["build", "--locked", "--example", "task"]);
        if !cfg!(debug_assertions) {
            build.arg("--release");
        }
        run(build.current_dir(env!("CARGO_MANIFEST_DIR")));
    }
    assert!(
        task.exists(),
        "{}: expected it to be built with the tests",
        task.display()
    );
    task
}

fn run(command: &mut Command) -> String {
    let out = command.output().unwrap();
    let (stdout, stderr) = (
        String::from_utf8_lossy(&out.stdout),
        String::from_utf8_lossy(&out.stderr),
    );
    assert!(out.status.success(), "{command:?}: {}\n{stdout}{stderr}", out.status);
    stdout.into_owned()
}

impl Swarm {
    fn cluster_command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/cluster/cluster"));
        command.args(["--name", self.name]).args(args);
        command
    }

    /// A command of `tests/cluster/cluster`.
    pub fn cluster(&self, args: &[&str]) -> String {
        run(&mut self.cluster_command(args))
    }

    /// With a directory of each node's engine, by hostname.
    pub fn cluster_dir(&self) -> String {
        format!("/tmp/anynode-cluster-{}", self.name)
    }

    pub fn engine_dir(&self, node: usize) -> String {
        format!("{}/node{node}", self.cluster_dir())
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub fn docker_host(&self, node: usize) -> String {
        format!("unix://{}/docker.sock", self.engine_dir(node))
    }

    /// The docker command line against a node's engine.
    pub fn docker(&self, node: usize, args: &[&str]) -> String {
        let out = self.try_docker(node, args);
        let (stdout, stderr) = (
            String::from_utf8_lossy(&out.stdout),
            String::from_utf8_lossy(&out.stderr),
        );
        assert!(out.status.success(), "docker {args:?}: {stdout}{stderr}");
        stdout.trim().to_owned()
    }

    pub fn try_docker(&self, node: usize, args: &[&str]) -> Output {
        let socket = self.docker_host(node);
        Command::new("docker")
            .args(["-H", &socket])
            .args(args)
            .output()
            .unwrap()
    }

    /// A service of `IMAGE`.
    pub fn create(&self, name: &str, options: &[&str]) {
        let mut args = vec!["service", "create", "--detach", "--no-resolve-image", "--name", name];
        args.extend(["--env", "SLOT={{.Task.Slot}}", "--env", "NODE={{.Node.Hostname}}"]);
        args.extend(options);
        args.push(IMAGE);
        self.docker(1, &args);
    }

    pub fn ip(&self, node: usize) -> String {
        self.env[&format!("IP_{node}")].clone()
    }

    pub fn client_ip(&self) -> String {
        self.env["IP_client"].clone()
    }

    /// How many tasks of a service a manager says are running.
    pub fn n_running(&self, service: &str) -> usize {
        let ps = ["service", "ps", service, "--format", "{{.CurrentState}}"];
        let states = self.docker(1, &ps);
        states.lines().filter(|state| state.starts_with("Running")).count()
    }

    /// Until so many tasks of a service run, by a manager's word.
    pub fn wait_running(&self, service: &str, n: usize) {
        let what = format!("{n} running tasks of {service}");
        self.wait_for(&what, Duration::from_secs(60), || self.n_running(service) == n);
    }

    /// The containers of a service's tasks on a node: their hostnames, which are the beginnings of their ids, and their
    /// addresses on docker_gwbridge.
    pub fn containers(&self, node: usize, service: &str) -> BTreeMap<String, String> {
        let filter = format!("label=com.docker.swarm.service.name={service}");
        let ids = self.docker(node, &["ps", "-q", "--no-trunc", "--filter", &filter]);
        let network = self.docker(node, &["network", "inspect", "docker_gwbridge"]);
        let network: Value = serde_json::from_str(&network).unwrap();
        let address = |id: &str| network[0]["Containers"][id]["IPv4Address"].as_str()?.split('/').next();
        ids.lines()
            .filter_map(|id| Some((id[..12].to_owned(), address(id)?.to_owned())))
            .collect()
    }

    /// The network namespace of the client outside the swarm.
    pub fn client_netns(&self) -> String {
        format!("/run/netns/an-{}-client", self.name)
    }

    /// A command in the network of the client outside the swarm.
    pub fn client(&self, args: &[&str]) -> Output {
        self.client_command(args[0]).args(&args[1..]).output().unwrap()
    }

    /// A program in that network.
    pub fn client_command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net=/run/netns/an-{}-client", self.name))
            .arg(program);
        command
    }

    /// What the client gets from a port of a node; `Err` is why not.
    pub fn curl(&self, node: usize, port: u16, path: &str) -> Result<String, String> {
        let url = format!("http://{}:{port}{path}", self.ip(node));
        let out = self.client(&["curl", "-sS", "--fail", "-m", "10", &url]);
        match out.status.success() {
            true => Ok(String::from_utf8_lossy(&out.stdout).into_owned()),
            false => Err(String::from_utf8_lossy(&out.stderr).into_owned()),
        }
    }

    /// The tasks that `n` requests to a port of a node reach, in order.
    pub fn tasks_at(&self, node: usize, port: u16, n: usize) -> Vec<String> {
        let answer = |_| -> Value { serde_json::from_str(&self.curl(node, port, "/").unwrap()).unwrap() };
        (0..n)
            .map(answer)
            .map(|answer| answer["hostname"].as_str().unwrap().to_owned())
            .collect()
    }

    /// Load from the client on a port of all `nodes`, until it is waited for.
    pub fn load(&self, nodes: &[usize], port: u16, args: &[&str]) -> Load {
        let addrs: Vec<String> = nodes.iter().map(|node| format!("{}:{port}", self.ip(*node))).collect();
        let ns = format!("--net={}", self.client_netns());
        let child = Command::new("nsenter")
            .arg(ns)
            .arg(task_program())
            .args(["load", &addrs.join(",")])
            .args(args)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        Load(child)
    }

    fn anynode_command(&self, node: usize, args: &[&str]) -> Command {
        let ns = format!("--net=/run/netns/an-{}-{node}", self.name);
        let engine = self.engine_dir(node);
        let mut command = Command::new("nsenter");
        command
            .arg(ns)
            .arg(env!("CARGO_BIN_EXE_anynode"))
            .args(args)
            .env("ANYNODE_SWARM", "true")
            .env("ANYNODE_SWARM_DOCKER_SOCKET", format!("{engine}/docker.sock"))
            .env(
                "ANYNODE_SWARM_CONTROL_SOCKET",
                format!("{engine}/run/swarm/control.sock"),
            )
            .env("ANYNODE_LINK_TOKEN_FILE", self.dir.path().join("token"))
            .env("ANYNODE_DATA_DIR", self.data_dir(node));
        command
    }

    pub fn data_dir(&self, node: usize) -> PathBuf {
        self.dir.path().join(format!("n{node}"))
    }

    /// The program's own words on a node.
    pub fn anynode(&self, node: usize, args: &[&str]) -> Output {
        self.anynode_command(node, args).output().unwrap()
    }

    pub fn start(&mut self, node: usize) {
        self.start_with(node, &[]);
    }

    pub fn start_with(&mut self, node: usize, env: &[(&str, &str)]) {
        std::fs::create_dir_all(self.data_dir(node)).unwrap();
        let log = File::options()
            .append(true)
            .create(true)
            .open(self.dir.path().join(format!("log{node}")))
            .unwrap();
        let child = self
            .anynode_command(node, &["up"])
            .envs(env.iter().copied())
            .stderr(log)
            .spawn()
            .unwrap();
        self.anynodes.insert(node, child);
    }

    /// A new instance takes the place of the one that runs, which is to end by itself.
    pub fn replace(&mut self, node: usize) {
        self.replace_with(node, &[]);
    }

    pub fn replace_with(&mut self, node: usize, env: &[(&str, &str)]) {
        let mut old = self.anynodes.remove(&node).unwrap();
        self.start_with(node, env);
        let started = Instant::now();
        let status = loop {
            match old.try_wait().unwrap() {
                Some(status) => break status,
                None if started.elapsed() > Duration::from_secs(40) => {
                    old.kill().unwrap();
                    panic!("the instance before does not end:\n{}", self.log(node));
                }
                None => std::thread::sleep(Duration::from_millis(20)),
            }
        };
        assert!(status.success(), "{status}\n{}", self.log(node));
    }

    /// The same; the one that ran before is left to its clients.
    pub fn succeed_with(&mut self, node: usize, env: &[(&str, &str)]) -> Child {
        let before = self.anynodes.remove(&node).unwrap();
        self.start_with(node, env);
        before
    }

    /// The network namespace of a node.
    pub fn netns(&self, node: usize) -> String {
        format!("/run/netns/an-{}-{node}", self.name)
    }

    /// A command in the network of a node.
    pub fn on_node(&self, node: usize, args: &[&str]) -> Output {
        let ns = format!("--net=/run/netns/an-{}-{node}", self.name);
        Command::new("nsenter").arg(ns).args(args).output().unwrap()
    }

    /// A program in the network of a node, until it is killed.
    pub fn spawn_on_node(&self, node: usize, args: &[&str]) -> Child {
        let ns = format!("--net=/run/netns/an-{}-{node}", self.name);
        Command::new("nsenter")
            .arg(ns)
            .args(args)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap()
    }

    pub fn start_all(&mut self) {
        (1..=self.n).for_each(|node| self.start(node));
    }

    pub fn signal(&self, node: usize, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.anynodes[&node]);
        rustix::process::kill_process(pid, signal).unwrap();
    }

    pub fn kill(&mut self, node: usize) {
        let mut child = self.anynodes.remove(&node).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    pub fn log(&self, node: usize) -> String {
        std::fs::read_to_string(self.dir.path().join(format!("log{node}"))).unwrap_or_default()
    }

    pub fn status(&self, node: usize) -> Option<Value> {
        let out = self.anynode(node, &["status", "--json"]);
        serde_json::from_slice(&out.stdout).ok()
    }

    /// How many endpoints of a service a node knows that get traffic: tasks of its own may be untried.
    pub fn n_ready(&self, node: usize, service: &str) -> usize {
        let status = self.status(node).unwrap_or_default();
        let services = status["services"].as_array().cloned().unwrap_or_default();
        let service = services
            .iter()
            .find(|one| one["name"] == service)
            .cloned()
            .unwrap_or_default();
        let endpoints = service["endpoints"].as_array().cloned().unwrap_or_default();
        let is_picked = |endpoint: &&Value| endpoint["state"] == "ready" || endpoint["state"] == "untried";
        endpoints.iter().filter(is_picked).count()
    }

    /// Until all `nodes` have so many ready endpoints of a service.
    pub fn wait_ready(&self, nodes: &[usize], service: &str, n: usize) {
        self.wait_for(
            &format!("{n} ready endpoints of {service}"),
            Duration::from_secs(60),
            || nodes.iter().all(|node| self.n_ready(*node, service) == n),
        );
    }

    pub fn wait_for(&self, what: &str, patience: Duration, mut is_so: impl FnMut() -> bool) {
        let started = Instant::now();
        while !is_so() {
            if started.elapsed() > patience {
                for node in 1..=self.n {
                    let log = self.log(node);
                    let tail: Vec<&str> = log.lines().rev().take(25).collect();
                    eprintln!(
                        "-- node {node}\n{}",
                        tail.into_iter().rev().collect::<Vec<_>>().join("\n")
                    );
                    let out = self.anynode(node, &["status"]);
                    eprintln!("{}", String::from_utf8_lossy(&out.stdout));
                }
                panic!("waited in vain for {what}");
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Swarm {
    fn drop(&mut self) {
        for child in self.anynodes.values_mut() {
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::env::var_os("ANYNODE_KEEP_CLUSTER").is_none() {
            let _ = self.cluster_command(&["down"]).output();
        }
    }
}

/// Load under way.
pub struct Load(Child);

impl Load {
    /// Ends it now.
    pub fn stop(self) -> Value {
        let pid = rustix::process::Pid::from_child(&self.0);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        self.wait()
    }

    /// What became of it.
    pub fn wait(self) -> Value {
        let out = self.0.wait_with_output().unwrap();
        assert!(out.status.success());
        serde_json::from_slice(&out.stdout).unwrap()
    }
}
