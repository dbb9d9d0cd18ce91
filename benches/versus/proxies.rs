//! Starts and stops the origin, the generator and the proxies: which program, which configuration, which processes are
//! read. Every process that is started here ends when its value is dropped.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use tempfile::TempDir;

use crate::load::{Job, Seen, ask_once};
use crate::machine::{self, Core};
use crate::origin::N_ENDPOINTS;

pub type Endpoints = [SocketAddr; N_ENDPOINTS];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Name {
    HaProxy,
    Nginx,
    Anynode,
}

/// A program that can be started.
#[derive(Debug, Clone)]
pub struct Program {
    pub name: Name,
    path: PathBuf,
    pub version: String,
    /// The line that loads nginx's stream module.
    load_stream: String,
}

impl Program {
    /// Errors: why it cannot be had here.
    pub fn find(name: Name) -> Result<Program, String> {
        let (path, version_flag) = match name {
            Name::HaProxy => (machine::find("haproxy").ok_or("no haproxy here")?, "-v"),
            Name::Nginx => (machine::find("nginx").ok_or("no nginx here")?, "-V"),
            Name::Anynode => {
                let path = std::env::var_os("ANYNODE_BIN").unwrap_or_else(|| env!("CARGO_BIN_EXE_anynode").into());
                (path.into(), "--version")
            }
        };
        let output = Command::new(&path).arg(version_flag).stdin(Stdio::null()).output();
        let output = output.map_err(|error| format!("{}: {error}", path.display()))?;
        let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        let mut load_stream = String::new();
        if name == Name::Nginx && (!text.contains("--with-stream") || text.contains("--with-stream=dynamic")) {
            let modules = text
                .split("--modules-path=")
                .nth(1)
                .and_then(|rest| rest.split_whitespace().next());
            let module = Path::new(modules.unwrap_or_default()).join("ngx_stream_module.so");
            if !module.is_file() {
                return Err("nginx has no stream module here (Debian: libnginx-mod-stream)".to_owned());
            }
            load_stream = format!("load_module {};", module.display());
        }
        let version = text.lines().next().unwrap_or_default();
        Ok(Program {
            name,
            path,
            version: version.trim_start_matches("nginx version: ").to_owned(),
            load_stream,
        })
    }

    /// Starts it with one worker before `endpoints`, and waits until it answers on both of its ports.
    pub fn start(&self, endpoints: &Endpoints, n_connections: usize, n_descriptors: u64) -> anyhow::Result<Proxy> {
        let (tcp, http) = (free_addr()?, free_addr()?);
        // HAProxy alone has two settings to choose from, each the better one for its work.
        let bulk = if self.name == Name::HaProxy { free_addr()? } else { tcp };
        let proxy = self.start_with(n_connections, n_descriptors, |template| {
            let mut text = template
                .replace("{{TCP}}", &tcp.to_string())
                .replace("{{BULK}}", &bulk.to_string())
                .replace("{{HTTP}}", &http.to_string());
            for (i, endpoint) in endpoints.iter().enumerate() {
                text = text.replace(&format!("{{{{ENDPOINT_{}}}}}", i + 1), &endpoint.to_string());
            }
            text
        })?;
        proxy.finish(tcp, bulk, http)
    }

    /// Starts anynode with one published port, whose endpoints change. Also returns its services file.
    pub fn start_changing(&self, n_descriptors: u64, text: impl Fn(SocketAddr) -> String) -> anyhow::Result<Proxy> {
        ensure!(self.name == Name::Anynode, "only anynode reads a services file");
        let addr = free_addr()?;
        self.start_with(0, n_descriptors, |_| text(addr))?
            .finish(addr, addr, addr)
    }

    fn start_with(
        &self,
        n_connections: usize,
        n_descriptors: u64,
        fill: impl Fn(&str) -> String,
    ) -> anyhow::Result<Starting> {
        let dir = tempfile::Builder::new().prefix("versus-").tempdir()?;
        let (template, file) = match self.name {
            Name::HaProxy => (include_str!("peers/haproxy.cfg"), "haproxy.cfg"),
            Name::Nginx => (include_str!("peers/nginx.conf"), "nginx.conf"),
            Name::Anynode => (include_str!("peers/anynode.yaml"), "services.yaml"),
        };
        let config = dir.path().join(file);
        let text = fill(template)
            .replace("{{DIR}}", &dir.path().to_string_lossy())
            .replace("{{LOAD_STREAM}}", &self.load_stream)
            .replace("{{MAXCONN}}", &n_connections.to_string())
            // nginx counts both sides, and its listeners.
            .replace("{{CONNECTIONS}}", &(2 * n_connections + 64).to_string())
            .replace("{{DESCRIPTORS}}", &n_descriptors.min(1 << 20).to_string());
        fs::write(&config, text)?;
        let mut command = machine::pinned(Core::Proxy, &self.path);
        match self.name {
            Name::HaProxy => command.args(["-db", "-f"]).arg(&config),
            Name::Nginx => command.arg("-p").arg(dir.path()).arg("-c").arg(&config),
            Name::Anynode => {
                command.arg("up").arg("--services").arg(&config);
                command.arg("--data-dir").arg(dir.path().join("data"));
                command
                    .args(["--admin", "none", "--dns", "none"])
                    .env("ANYNODE_WORKERS", "1")
                    // Two at once would want the same VIPs, and try again and again.
                    .env("ANYNODE_VIP_NETWORK", next_vip_network())
            }
        };
        let log = dir.path().join("stderr");
        command.stdout(Stdio::null()).stderr(fs::File::create(&log)?);
        let child = command.spawn().with_context(|| format!("{}", self.path.display()))?;
        Ok(Starting {
            name: self.name,
            child: Running(child),
            dir,
            config,
            log,
        })
    }
}

struct Starting {
    name: Name,
    child: Running,
    dir: TempDir,
    config: PathBuf,
    log: PathBuf,
}

impl Starting {
    fn finish(mut self, tcp: SocketAddr, bulk: SocketAddr, http: SocketAddr) -> anyhow::Result<Proxy> {
        let start = Instant::now();
        let http_path = if tcp == http { 's' } else { 'h' };
        while let Err(error) = ask_once(tcp, 's').and_then(|_| ask_once(http, http_path)) {
            let ended = self.child.0.try_wait()?;
            if ended.is_some() || start.elapsed() > START_TIME_MAX {
                let said = fs::read_to_string(&self.log).unwrap_or_default();
                bail!(
                    "{:?} does not answer ({error:#}, {ended:?}); it said: {said}",
                    self.name
                );
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let pid = self.child.0.id();
        let pids = match self.name {
            // The master serves nobody.
            Name::Nginx => machine::children(pid),
            Name::Anynode | Name::HaProxy => vec![pid],
        };
        ensure!(!pids.is_empty(), "{:?} has no worker", self.name);
        Ok(Proxy {
            pids,
            tcp,
            bulk,
            http,
            config: self.config,
            _child: self.child,
            _dir: self.dir,
        })
    }
}

/// A proxy that serves.
pub struct Proxy {
    /// The processes that do its work.
    pub pids: Vec<u32>,
    pub tcp: SocketAddr,
    /// Also in tcp mode, for bulk.
    pub bulk: SocketAddr,
    pub http: SocketAddr,
    pub config: PathBuf,
    // Before its directory.
    _child: Running,
    _dir: TempDir,
}

/// The origin, which is this program in another process.
pub struct Origin {
    pub endpoints: Endpoints,
    pub pid: u32,
    _child: Running,
}

impl Origin {
    pub fn start() -> anyhow::Result<Origin> {
        let mut child = machine::pinned(Core::Load, &std::env::current_exe()?)
            .arg(crate::ORIGIN)
            // It ends with it.
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map(Running)?;
        let stdout = child.0.stdout.take().context("the origin has no stdout")?;
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line)?;
        let endpoints = serde_json::from_str(&line).context("the origin did not start")?;
        Ok(Origin {
            endpoints,
            pid: child.0.id(),
            _child: child,
        })
    }
}

/// Has a generator do a job.
pub fn generate(job: &Job) -> anyhow::Result<Seen> {
    let mut child = machine::pinned(Core::Load, &std::env::current_exe()?)
        .arg(crate::LOAD)
        .arg(serde_json::to_string(job)?)
        .stdout(Stdio::piped())
        .spawn()
        .map(Running)?;
    let stdout = child.0.stdout.take().context("the generator has no stdout")?;
    let mut line = String::new();
    BufReader::new(stdout).read_line(&mut line)?;
    let status = child.0.wait()?;
    ensure!(status.success(), "the generator failed ({status})");
    serde_json::from_str(&line).context("the generator said nothing")
}

/// A child process that is ended when this is dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let is_over = |child: &mut Child| child.try_wait().is_ok_and(|ended| ended.is_some());
        if is_over(&mut self.0) {
            return;
        }
        // nginx ends its worker on SIGTERM; on SIGKILL it could not.
        if let Some(pid) = i32::try_from(self.0.id()).ok().and_then(rustix::process::Pid::from_raw) {
            // An error means that it is gone.
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        let start = Instant::now();
        while start.elapsed() < STOP_TIME_MAX {
            if is_over(&mut self.0) {
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn next_vip_network() -> String {
    static NEXT: AtomicU8 = AtomicU8::new(0);
    format!("127.{}.0.0/16", 100 + NEXT.fetch_add(1, Ordering::Relaxed) % 100)
}

fn free_addr() -> anyhow::Result<SocketAddr> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?)
}

const START_TIME_MAX: Duration = Duration::from_secs(10);
const STOP_TIME_MAX: Duration = Duration::from_secs(3);
