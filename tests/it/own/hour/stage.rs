//! Where the hour plays: a swarm of one node and a second anynode with a services file, on one small disk and in one network,
//! with few descriptors. Who behaves well asks for `web`, `http` and `origin` from an address of his own.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde_json::{Value, json};

use super::super::names::pid_of;
use super::super::rig::{self, LONG, Own, Tasks};
use crate::harness::{SmallDisk, small_disk_at};

/// The node's own address, that of whoever behaves well, and those of others.
pub const NODE: Ipv4Addr = Ipv4Addr::new(10, 213, 0, 1);
pub const CALM: Ipv4Addr = Ipv4Addr::new(10, 213, 0, 50);
pub const HOSTILE: [Ipv4Addr; 3] = [
    Ipv4Addr::new(10, 213, 0, 100),
    Ipv4Addr::new(10, 213, 0, 101),
    Ipv4Addr::new(10, 213, 0, 102),
];

pub const WEB: SocketAddr = SocketAddr::new(IpAddr::V4(NODE), 8080);
pub const HTTP: SocketAddr = SocketAddr::new(IpAddr::V4(NODE), 8081);
pub const VICTIM: SocketAddr = SocketAddr::new(IpAddr::V4(NODE), 8083);
pub const ORIGIN: SocketAddr = SocketAddr::new(IpAddr::V4(NODE), 8090);
pub const ADMIN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9377);
pub const DNS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8553);
pub const FILE_ADMIN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9378);
pub const FILE_DNS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8554);
/// Who answers names inside a task.
pub const NAMES: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(127, 0, 0, 77)), 53);

/// Descriptors that each anynode may have.
const N_FILES: u64 = 4096;
const DISK_BYTES: u64 = 96 << 20;

/// How many tasks each service has that must be well at the end.
pub const SERVICES: [(&str, usize); 5] = [("web", 2), ("http", 3), ("victim", 2), ("calm", 1), ("villain", 1)];

pub struct Stage {
    file_node: Child,
    /// Before the directory that it is in.
    disk: SmallDisk,
    pub own: Own,
    /// Networks of two tasks: of one that behaves well and of one that does not.
    pub calm: PathBuf,
    pub villain: PathBuf,
    /// The address of `web` on the network of both.
    pub vip: SocketAddr,
    /// One task at a time is killed.
    pub killing: Mutex<()>,
    /// The disk is filled by one at a time.
    pub filling: Mutex<()>,
    pub n_made: AtomicU64,
    /// There is time for more.
    pub is_long: bool,
    /// Takes all queries for other names and answers none.
    _upstream: UdpSocket,
}

impl Drop for Stage {
    fn drop(&mut self) {
        let _ = self.file_node.kill();
        let _ = self.file_node.wait();
    }
}

/// Takes this thread, and those that it starts, into a network for good.
pub fn enter(netns: &Path) -> io::Result<()> {
    let file = File::open(netns)?;
    Ok(move_into_link_name_space(
        file.as_fd(),
        Some(LinkNameSpaceType::Network),
    )?)
}

/// Does `act` on a thread that is inside.
fn within<T: Send>(netns: &Path, act: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            enter(netns).unwrap();
            act()
        });
        thread.join().unwrap()
    })
}

impl Stage {
    /// `None`, with a word, where it takes more than there is.
    pub fn set_up(name: &str) -> Option<Stage> {
        let mut own = rig::up(name, Tasks::Processes)?;
        let at = own.dir().join("disk");
        std::fs::create_dir(&at).unwrap();
        let Some(disk) = small_disk_at(&at, DISK_BYTES) else {
            println!("skipped: a small file system cannot be mounted here");
            return None;
        };
        for dir in ["swarm", "file"] {
            std::fs::create_dir(at.join(dir)).unwrap();
        }
        std::os::unix::fs::symlink(at.join("swarm"), own.data_dir()).unwrap();
        for addr in [NODE, CALM].iter().chain(&HOSTILE) {
            let add = ["addr", "add", &format!("{addr}/32"), "dev", "lo"];
            assert!(own.inside("ip").args(add).status().unwrap().success());
        }
        let upstream = within(&own.netns_path(), || UdpSocket::bind("127.0.0.1:5300").unwrap());
        own.start_within(
            N_FILES,
            &[("ANYNODE_DNS_UPSTREAMS", "127.0.0.1:5300"), ("ANYNODE_LOG", "info")],
        );
        own.docker(&["swarm", "init"]);
        own.docker(&["network", "create", "-d", "overlay", "app"]);
        let create = |name: &str, n: usize, more: &[&str]| {
            let n = n.to_string();
            let words = ["service", "create", "--detach", "--name", name, "--replicas", &n];
            let common = ["--network", "app", "--env", "PORT=80", "--stop-grace-period", "1s"];
            let pace = ["--restart-delay", "200ms"];
            own.docker(&[&words[..], &common, &pace, more, &["nginx:latest"]].concat());
        };
        for (name, n) in SERVICES {
            let http = ["--label", "anynode.mode=http"];
            match name {
                "web" => create(name, n, &["--publish", "8080:80"]),
                "http" => create(name, n, &[&["--publish", "8081:80"], &http[..]].concat()),
                "victim" => create(name, n, &[&["--publish", "8083:80"], &http[..]].concat()),
                _ => create(name, n, &[]),
            }
        }
        own.wait_for("all tasks", LONG, || {
            SERVICES.iter().all(|(name, n)| running(&own, name).len() == *n)
        });
        let netns = |service: &str| PathBuf::from(format!("/proc/{}/ns/net", pid_of(&own, service).unwrap()));
        let (calm, villain) = (netns("calm"), netns("villain"));
        let (_, said) = ask_api(&own, "GET", "/services/web", "").unwrap();
        let said: Value = serde_json::from_str(&said).unwrap();
        let (_, app) = ask_api(&own, "GET", "/networks/app", "").unwrap();
        let app: Value = serde_json::from_str(&app).unwrap();
        let vips = said["Endpoint"]["VirtualIPs"].as_array().unwrap();
        let vip = vips.iter().find(|vip| vip["NetworkID"] == app["Id"]).unwrap();
        let vip = vip["Addr"].as_str().unwrap().split('/').next().unwrap();
        let vip = SocketAddr::new(vip.parse().unwrap(), 80);
        let file_node = start_file_node(&own, &at.join("file"));
        let stage = Stage {
            file_node,
            disk,
            own,
            calm,
            villain,
            vip,
            killing: Mutex::default(),
            filling: Mutex::default(),
            n_made: AtomicU64::new(0),
            is_long: false,
            _upstream: upstream,
        };
        stage.write_services(&services_text());
        Some(stage)
    }

    pub fn host(&self) -> PathBuf {
        self.own.netns_path()
    }

    pub fn disk(&self) -> &Path {
        self.disk.path()
    }

    pub fn file_pid(&self) -> u32 {
        self.file_node.id()
    }

    pub fn services_file(&self) -> PathBuf {
        self.own.dir().join("services.yml")
    }

    /// As an editor does: whole, by a rename.
    pub fn write_services(&self, text: &[u8]) {
        let new = self.own.dir().join("services.yml.new");
        std::fs::write(&new, text).unwrap();
        std::fs::rename(new, self.services_file()).unwrap();
    }

    /// What both said.
    pub fn log(&self) -> String {
        let file = std::fs::read_to_string(self.own.dir().join("file-log")).unwrap_or_default();
        self.own.log() + &file
    }

    pub fn api(&self, method: &str, path: &str, body: &Value) -> io::Result<(u16, String)> {
        ask_api(&self.own, method, path, &body.to_string())
    }

    /// A name that no other has.
    pub fn name(&self, what: &str) -> String {
        format!("{what}-{}", self.n_made.fetch_add(1, Relaxed))
    }

    /// Takes something away, however long it is refused because the disk is full.
    pub fn remove(&self, path: &str) {
        self.own.wait_for(&format!("the removal of {path}"), LONG, || {
            matches!(self.api("DELETE", path, &json!({})), Ok((200 | 204 | 404, _)))
        });
    }
}

/// The processes of a service's tasks that run and are to run.
pub fn running(own: &Own, service: &str) -> Vec<u32> {
    let filters = json!({ "service": { service: true }, "desired-state": { "running": true } }).to_string();
    let path = format!("/tasks?filters={}", percent(&filters));
    let said = ask_api(own, "GET", &path, "").map(|(_, said)| said).unwrap_or_default();
    let tasks: Vec<Value> = serde_json::from_str(&said).unwrap_or_default();
    let tasks = tasks.iter().filter(|task| task["Status"]["State"] == "running");
    let pids = tasks.filter_map(|task| task["Status"]["ContainerStatus"]["PID"].as_u64());
    pids.filter_map(|pid| u32::try_from(pid).ok()).collect()
}

/// All tasks that are remembered.
pub fn tasks(own: &Own) -> Vec<Value> {
    let said = ask_api(own, "GET", "/tasks", "")
        .map(|(_, said)| said)
        .unwrap_or_default();
    serde_json::from_str(&said).unwrap_or_default()
}

fn percent(text: &str) -> String {
    text.bytes().map(|byte| format!("%{byte:02x}")).collect()
}

const PATIENCE: Duration = Duration::from_secs(20);

/// One request on a connection of its own.
fn ask_api(own: &Own, method: &str, path: &str, body: &str) -> io::Result<(u16, String)> {
    let mut stream = UnixStream::connect(own.socket())?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes())?;
    stream.write_all(body.as_bytes())?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let parts = answer.split_once("\r\n\r\n");
    let status = answer.get(9..12).and_then(|status| status.parse().ok());
    match (status, parts) {
        (Some(status), Some((_, body))) => Ok((status, body.to_owned())),
        _ => Err(io::Error::other(format!("{answer:?} is no answer"))),
    }
}

/// What the services file says when it is well. Cut short anywhere after its first lines it is none.
pub fn services_text() -> Vec<u8> {
    b"services:\n  origin: { publish: [\"8090:80\"], mode: http, endpoints: [\"127.0.0.1:9001\"] }\n".to_vec()
}

/// A second anynode, with a services file, and what that leads to.
fn start_file_node(own: &Own, data_dir: &Path) -> Child {
    within(&own.netns_path(), || {
        let listener = TcpListener::bind("127.0.0.1:9001").unwrap();
        // It ends with the process: nobody else is in that network.
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                std::thread::spawn(move || say_ok(stream));
            }
        });
    });
    std::fs::write(own.dir().join("services.yml"), services_text()).unwrap();
    let log = File::create(own.dir().join("file-log")).unwrap();
    let mut command = own.inside("prlimit");
    command
        .arg(format!("--nofile={N_FILES}:{N_FILES}"))
        .arg(env!("CARGO_BIN_EXE_anynode"))
        .args(["up", "--admin", &FILE_ADMIN.to_string(), "--dns", &FILE_DNS.to_string()])
        .arg("--services")
        .arg(own.dir().join("services.yml"))
        .arg("--data-dir")
        .arg(data_dir)
        .env("ANYNODE_DNS_UPSTREAMS", "127.0.0.1:5300")
        .stdin(Stdio::null())
        .stderr(log);
    let child = command.spawn().unwrap();
    own.wait_for("the second node", LONG, || {
        own.curl(&format!("http://{ORIGIN}/")).is_some()
    });
    child
}

fn say_ok(mut stream: TcpStream) {
    let mut buffer = [0; 4096];
    let mut held = Vec::new();
    while let Ok(n @ 1..) = stream.read(&mut buffer) {
        held.extend_from_slice(&buffer[..n]);
        // Whatever bodies follow are heads that never end; then the client goes.
        if held.windows(4).any(|window| window == b"\r\n\r\n") {
            held.clear();
            if stream
                .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
                .is_err()
            {
                break;
            }
        }
    }
}

/// The end of a party.
#[derive(Debug, Clone, Copy)]
pub struct Until(pub Instant);

impl Until {
    pub fn is_over(self) -> bool {
        Instant::now() >= self.0
    }

    pub fn wait(self) {
        std::thread::sleep(self.0.saturating_duration_since(Instant::now()));
    }
}

/// What a process holds: memory of its own in KiB, descriptors besides pipes, pipes, threads, mounts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Holds {
    pub rss_kib: u64,
    pub n_files: usize,
    pub n_pipes: usize,
    pub n_threads: usize,
    pub n_mounts: usize,
}

impl Holds {
    /// `mark`: what is in the names of mounts that count.
    pub fn of(pid: u32, mark: &Path) -> Holds {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let rss = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
        let rss = rss.and_then(|rest| rest.split_whitespace().next()?.parse().ok());
        let count = |what: &str| std::fs::read_dir(format!("/proc/{pid}/{what}")).unwrap().count();
        let mounts = std::fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap();
        let mounts = mounts.lines().filter(|line| line.contains(&mark.display().to_string()));
        let files = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
        let files = files.filter_map(|entry| std::fs::read_link(entry.path()).ok());
        let (pipes, files): (Vec<_>, Vec<_>) = files.partition(|link| link.to_string_lossy().starts_with("pipe:"));
        Holds {
            rss_kib: rss.unwrap(),
            n_files: files.len(),
            n_pipes: pipes.len(),
            n_threads: count("task"),
            n_mounts: mounts.count(),
        }
    }
}

/// Whether a process has ended and nobody has looked.
pub fn zombies_of(parent: u32) -> Vec<u32> {
    let pids = std::fs::read_dir("/proc").unwrap().flatten();
    let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let is_one = |pid: &u32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let rest: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        rest.first() == Some(&"Z") && rest.get(1) == Some(&&*parent.to_string())
    };
    pids.filter(is_one).collect()
}
