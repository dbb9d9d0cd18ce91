//! Starts and stops the origin, the generator and the proxies: which program, which configuration, which processes are
//! read. Every process that is started here ends when its value is dropped.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU8, AtomicU16, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use anynode::model::ServiceName;
use anynode::routing::VipPool;
use tempfile::TempDir;

use crate::hosts;
use crate::load::{Job, Seen, ask_once};
use crate::machine::{self, Container, Core};
use crate::origin::N_ENDPOINTS;
use crate::tls::Certificate;

pub type Endpoints = [SocketAddr; N_ENDPOINTS];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Name {
    HaProxy,
    Nginx,
    Envoy,
    Traefik,
    Anynode,
    /// As `Anynode`, with endpoints that do not see their clients' addresses.
    AnynodeOpaque,
}

/// A program that can be started.
#[derive(Debug, Clone)]
pub struct Program {
    pub name: Name,
    path: PathBuf,
    pub version: String,
    /// The line that loads nginx's stream module.
    load_stream: String,
    /// How many workers it has. One is held on a core of its own; several run where the machine puts them.
    pub n_workers: usize,
}

impl Program {
    /// With one worker. Errors: why it cannot be had here.
    pub fn find(name: Name) -> Result<Program, String> {
        let (path, version_flag) = match name {
            Name::HaProxy => (machine::find("haproxy").ok_or("no haproxy here")?, "-v"),
            Name::Nginx => (machine::find("nginx").ok_or("no nginx here")?, "-V"),
            Name::Envoy => (machine::find("envoy").ok_or("no envoy here")?, "--version"),
            Name::Traefik => (machine::find("traefik").ok_or("no traefik here")?, "version"),
            Name::Anynode | Name::AnynodeOpaque => {
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
        let version = text.lines().find(|line| !line.trim().is_empty()).unwrap_or_default();
        Ok(Program {
            name,
            path,
            // Some begin with their own name or path.
            version: version.rsplit("ersion: ").next().unwrap_or_default().trim().to_owned(),
            load_stream,
            n_workers: 1,
        })
    }

    fn command(&self, program: &Path) -> Command {
        match self.n_workers {
            1 => machine::pinned(Core::Proxy, program),
            _ => machine::held(program),
        }
    }

    /// Starts it before `endpoints`, and waits until it answers on both of its ports.
    pub fn start(&self, origin: &Origin, n_connections: usize, n_descriptors: u64) -> anyhow::Result<Proxy> {
        let is_anynode = matches!(self.name, Name::Anynode | Name::AnynodeOpaque);
        let vip_network = next_vip_network();
        let free_addr = || match &origin.caller {
            None => free_addr(origin.proxies_ip()),
            // Nobody else is there.
            Some(_) => Ok((Ipv4Addr::LOCALHOST, NEXT_BESIDE_CALLER.fetch_add(1, Ordering::Relaxed)).into()),
        };
        let (tcp, http) = match &origin.caller {
            Some(_) if is_anynode => {
                let mut vips = VipPool::new(vip_network.parse()?);
                let mut vip = |name| -> anyhow::Result<SocketAddr> {
                    let ip = vips.assign(&ServiceName::new(name)?, |_| true)?;
                    Ok((ip, 80).into())
                };
                (vip("tcp")?, vip("http")?)
            }
            // Those that are here for HTTP alone have one port.
            _ if matches!(self.name, Name::Envoy | Name::Traefik) => {
                let http = free_addr()?;
                (http, http)
            }
            _ => (free_addr()?, free_addr()?),
        };
        let (https, one_host, many_hosts) = (free_addr()?, free_addr()?, free_addr()?);
        // HAProxy alone has two settings to choose from, each the better one for its work.
        let bulk = if self.name == Name::HaProxy { free_addr()? } else { tcp };
        let client_address = match self.name {
            Name::AnynodeOpaque => "none",
            _ => "transparent",
        };
        let place = Place {
            vip_network: &vip_network,
            caller: origin.caller.as_ref(),
        };
        let proxy = self.start_with(n_connections, n_descriptors, place, |template, dir| {
            origin.certificate.write(dir)?;
            // First: what is repeated for many names other words in it.
            let mut text = hosts::fill(self.name, template, dir)?
                .replace("{{ONE_HOST}}", &one_host.to_string())
                .replace("{{MANY_HOSTS}}", &many_hosts.to_string())
                .replace("{{TCP}}", &tcp.to_string())
                .replace("{{BULK}}", &bulk.to_string())
                .replace("{{HTTP}}", &http.to_string())
                .replace("{{HTTPS}}", &https.to_string())
                .replace("{{CLIENT_ADDRESS}}", client_address)
                .replace("{{CALLER}}", &Container::CALLER.to_string());
            if let Some(caller) = &origin.caller {
                text = text.replace("{{CALLER_NETNS}}", &caller.path().to_string_lossy());
            }
            for (i, endpoint) in origin.endpoints.iter().enumerate() {
                let endpoint = match (self.name, &origin.container) {
                    (Name::Anynode | Name::AnynodeOpaque, Some(container)) => {
                        let netns = container.path();
                        format!("{{ address: \"{endpoint}\", netns: \"{}\" }}", netns.display())
                    }
                    (Name::Anynode | Name::AnynodeOpaque, None) => format!("\"{endpoint}\""),
                    _ => endpoint.to_string(),
                };
                text = text.replace(&format!("{{{{ENDPOINT_{}}}}}", i + 1), &endpoint);
            }
            for (name, addr) in [
                ("HTTP", http),
                ("HTTPS", https),
                ("ONE_HOST", one_host),
                ("MANY_HOSTS", many_hosts),
            ] {
                text = text.replace(&format!("{{{{{name}_PORT}}}}"), &addr.port().to_string());
            }
            for (i, endpoint) in origin.endpoints.iter().enumerate() {
                text = text.replace(&format!("{{{{ENDPOINT_{}_IP}}}}", i + 1), &endpoint.ip().to_string());
                text = text.replace(
                    &format!("{{{{ENDPOINT_{}_PORT}}}}", i + 1),
                    &endpoint.port().to_string(),
                );
            }
            if is_anynode && origin.caller.is_none() {
                let entry_points = include_str!("peers/anynode.toml")
                    .replace("{{HTTPS}}", &https.to_string())
                    .replace("{{ONE_HOST}}", &one_host.to_string())
                    .replace("{{MANY_HOSTS}}", &many_hosts.to_string());
                fs::write(
                    dir.join("anynode.toml"),
                    entry_points.replace("{{DIR}}", &dir.to_string_lossy()),
                )?;
            }
            if self.name == Name::Traefik {
                let entry_points = include_str!("peers/traefik.toml")
                    .replace("{{HTTP}}", &http.to_string())
                    .replace("{{HTTPS}}", &https.to_string())
                    .replace("{{ONE_HOST}}", &one_host.to_string())
                    .replace("{{MANY_HOSTS}}", &many_hosts.to_string());
                fs::write(
                    dir.join("traefik.toml"),
                    entry_points.replace("{{DIR}}", &dir.to_string_lossy()),
                )?;
            }
            Ok(text)
        })?;
        let ports = Ports {
            tcp,
            bulk,
            http,
            https,
            one_host,
            many_hosts,
        };
        proxy.finish(ports, origin.caller.as_ref())
    }

    /// Starts anynode with one published port, whose endpoints change. Also returns its services file.
    pub fn start_changing(&self, n_descriptors: u64, text: impl Fn(SocketAddr) -> String) -> anyhow::Result<Proxy> {
        ensure!(self.name == Name::Anynode, "only anynode reads a services file");
        let addr = free_addr(Ipv4Addr::LOCALHOST.into())?;
        let place = Place {
            vip_network: &next_vip_network(),
            caller: None,
        };
        self.start_with(0, n_descriptors, place, |_, _| Ok(text(addr)))?
            .finish(Ports::all(addr), None)
    }

    fn start_with(
        &self,
        n_connections: usize,
        n_descriptors: u64,
        place: Place<'_>,
        fill: impl Fn(&str, &Path) -> anyhow::Result<String>,
    ) -> anyhow::Result<Starting> {
        let dir = tempfile::Builder::new().prefix("versus-").tempdir()?;
        let (template, file) = match self.name {
            Name::HaProxy => (include_str!("peers/haproxy.cfg"), "haproxy.cfg"),
            Name::Nginx => (include_str!("peers/nginx.conf"), "nginx.conf"),
            Name::Envoy => (include_str!("peers/envoy.yaml"), "envoy.yaml"),
            Name::Traefik => (include_str!("peers/traefik-routes.yaml"), "routes.yaml"),
            Name::Anynode | Name::AnynodeOpaque => match place.caller {
                None => (include_str!("peers/anynode.yaml"), "services.yaml"),
                Some(_) => (include_str!("peers/anynode-within.yaml"), "services.yaml"),
            },
        };
        let config = dir.path().join(file);
        let text = fill(template, dir.path())?
            .replace("{{DIR}}", &dir.path().to_string_lossy())
            .replace("{{LOAD_STREAM}}", &self.load_stream)
            .replace("{{WORKERS}}", &self.n_workers.to_string())
            .replace("{{MAXCONN}}", &n_connections.to_string())
            // nginx counts both sides, and its listeners.
            .replace("{{CONNECTIONS}}", &(2 * n_connections + 64).to_string())
            .replace("{{DESCRIPTORS}}", &n_descriptors.min(1 << 20).to_string());
        fs::write(&config, text)?;
        let mut command = match place.caller {
            // Those that know of no namespaces are beside the client.
            Some(caller) if matches!(self.name, Name::HaProxy | Name::Nginx) => {
                let mut command = self.command(Path::new("nsenter"));
                command
                    .arg(format!("--net={}", caller.path().display()))
                    .arg(&self.path);
                command
            }
            _ => self.command(&self.path),
        };
        match self.name {
            Name::HaProxy => command.args(["-db", "-f"]).arg(&config),
            Name::Nginx => command.arg("-p").arg(dir.path()).arg("-c").arg(&config),
            Name::Envoy => command
                .args(["--disable-hot-restart", "-l", "error"])
                .args(["--concurrency", &self.n_workers.to_string(), "-c"])
                .arg(&config),
            Name::Traefik => command
                .arg(format!("--configFile={}", dir.path().join("traefik.toml").display()))
                // As many workers as the others have.
                .env("GOMAXPROCS", self.n_workers.to_string()),
            Name::Anynode | Name::AnynodeOpaque => {
                command.arg("up").arg("--services").arg(&config);
                command.arg("--data-dir").arg(dir.path().join("data"));
                let config = dir.path().join("anynode.toml");
                if config.exists() {
                    command.arg("--config").arg(config);
                }
                command
                    .args(["--admin", "none", "--dns", "none"])
                    .env("ANYNODE_WORKERS", self.n_workers.to_string())
                    // Two at once would want the same VIPs, and try again and again.
                    .env("ANYNODE_VIP_NETWORK", place.vip_network)
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

/// Where a proxy is started.
struct Place<'a> {
    /// Of anynode's own addresses.
    vip_network: &'a str,
    /// Where its clients are, if not beside it.
    caller: Option<&'a Container>,
}

/// Asks once, from where clients are.
fn ask(caller: Option<&Container>, addr: SocketAddr, path: char) -> anyhow::Result<()> {
    let Some(caller) = caller else {
        return ask_once(addr, path).map(drop);
    };
    let out = Command::new("nsenter")
        .arg(format!("--net={}", caller.path().display()))
        .arg(std::env::current_exe()?)
        .args([crate::ASK, &addr.to_string(), &path.to_string()])
        .output()?;
    ensure!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr).trim());
    Ok(())
}

struct Starting {
    name: Name,
    child: Running,
    dir: TempDir,
    config: PathBuf,
    log: PathBuf,
}

impl Starting {
    fn finish(mut self, ports: Ports, caller: Option<&Container>) -> anyhow::Result<Proxy> {
        let start = Instant::now();
        let Ports { tcp, http, .. } = ports;
        let http_path = if tcp == http { 's' } else { 'h' };
        while let Err(error) = ask(caller, tcp, 's').and_then(|()| ask(caller, http, http_path)) {
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
            _ => vec![pid],
        };
        ensure!(!pids.is_empty(), "{:?} has no worker", self.name);
        Ok(Proxy {
            pids,
            ports,
            config: self.config,
            _child: self.child,
            _dir: self.dir,
        })
    }
}

/// Where a proxy serves what.
#[derive(Debug, Clone, Copy)]
pub struct Ports {
    pub tcp: SocketAddr,
    /// Also in tcp mode, for bulk.
    pub bulk: SocketAddr,
    pub http: SocketAddr,
    /// HTTP inside TLS.
    pub https: SocketAddr,
    /// Shared by hosts, of which there is one.
    pub one_host: SocketAddr,
    /// Shared by a thousand.
    pub many_hosts: SocketAddr,
}

impl Ports {
    fn all(addr: SocketAddr) -> Ports {
        Ports {
            tcp: addr,
            bulk: addr,
            http: addr,
            https: addr,
            one_host: addr,
            many_hosts: addr,
        }
    }
}

/// A proxy that serves.
pub struct Proxy {
    /// The processes that do its work.
    pub pids: Vec<u32>,
    pub ports: Ports,
    pub config: PathBuf,
    // Before its directory.
    _child: Running,
    _dir: TempDir,
}

/// The origin, which is this program in another process.
pub struct Origin {
    pub endpoints: Endpoints,
    pub pid: u32,
    /// What proxies before it show.
    pub certificate: Certificate,
    _child: Running,
    /// Where it is, if not beside the proxies.
    container: Option<Container>,
    /// Where clients are, if not beside the proxies.
    caller: Option<Container>,
}

impl Origin {
    pub fn start(container: Option<Container>, caller: Option<Container>) -> anyhow::Result<Origin> {
        let program = std::env::current_exe()?;
        let mut command = match &container {
            None => machine::pinned(Core::Load, &program),
            Some(container) => {
                let mut command = machine::pinned(Core::Load, Path::new("nsenter"));
                command
                    .arg(format!("--net={}", container.path().display()))
                    .arg(&program);
                command
            }
        };
        let ip = container
            .as_ref()
            .map_or_else(|| Ipv4Addr::LOCALHOST.into(), |_| Container::BRIDGE);
        let mut child = command
            .args([crate::ORIGIN, &ip.to_string()])
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
            certificate: Certificate::make()?,
            _child: child,
            container,
            caller,
        })
    }

    pub fn caller(&self) -> Option<&Container> {
        self.caller.as_ref()
    }

    fn proxies_ip(&self) -> IpAddr {
        match self.container {
            Some(_) => Container::NODE,
            None => Ipv4Addr::LOCALHOST.into(),
        }
    }
}

/// Has a generator do a job, in the caller's namespace if there is one.
pub fn generate(job: &Job, caller: Option<&Container>) -> anyhow::Result<Seen> {
    let program = std::env::current_exe()?;
    let mut command = match caller {
        None => machine::pinned(Core::Load, &program),
        Some(caller) => {
            let mut command = machine::pinned(Core::Load, Path::new("nsenter"));
            command.arg(format!("--net={}", caller.path().display())).arg(&program);
            command
        }
    };
    let mut child = command
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

static NEXT_BESIDE_CALLER: AtomicU16 = AtomicU16::new(7001);

fn next_vip_network() -> String {
    static NEXT: AtomicU8 = AtomicU8::new(0);
    format!("127.{}.0.0/16", 100 + NEXT.fetch_add(1, Ordering::Relaxed) % 100)
}

fn free_addr(ip: IpAddr) -> anyhow::Result<SocketAddr> {
    Ok(TcpListener::bind((ip, 0))?.local_addr()?)
}

const START_TIME_MAX: Duration = Duration::from_secs(10);
const STOP_TIME_MAX: Duration = Duration::from_secs(3);
