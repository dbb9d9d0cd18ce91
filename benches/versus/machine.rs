//! What the benchmark needs of the machine: a network namespace of its own, pinned processes that end with it, CPU time
//! and memory of a process, stolen time. Linux alone.

use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, ensure};

/// The core of the proxies, and the one of the generator and the origin.
#[derive(Debug, Clone, Copy)]
pub enum Core {
    Load = 0,
    Proxy = 1,
}

/// A network namespace for the origin, beside the one of the proxies and on a cable with it. Gone when dropped.
pub struct Container {
    name: String,
}

impl Container {
    /// Where proxies listen, and clients call from: an address that is not loopback's, whose clients can be told by it.
    pub const NODE: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 98, 1, 1));
    /// The origin's, as on a bridge.
    pub const BRIDGE: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 98, 2, 2));

    /// The caller's, on another such bridge.
    pub const CALLER: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 98, 3, 2));

    /// The origin's. Errors: it cannot be made, or this process has no network namespace of its own.
    pub fn make() -> anyhow::Result<Container> {
        ensure!(
            std::env::var_os(INSIDE).is_some(),
            "no network namespace of its own: that needs root, unshare and ip"
        );
        ip(&format!("addr add {}/32 dev lo", Container::NODE))?;
        Container::of("origin", 2)
    }

    /// The caller's, which reaches the origin's by way of the node. Errors: as `make`.
    pub fn make_caller() -> anyhow::Result<Container> {
        fs::write("/proc/sys/net/ipv4/ip_forward", "1")?;
        Container::of("caller", 3)
    }

    fn of(who: &str, n: u8) -> anyhow::Result<Container> {
        let container = Container {
            name: format!("versus-{}-{who}", std::process::id()),
        };
        let name = &container.name;
        ip(&format!("netns add {name}"))?;
        for words in [
            format!("-n {name} link set lo up"),
            format!("link add cable{n} type veth peer name eth0 netns {name}"),
            format!("addr add 10.98.{n}.1/24 dev cable{n}"),
            format!("link set cable{n} up"),
            format!("-n {name} addr add 10.98.{n}.2/24 dev eth0"),
            format!("-n {name} link set eth0 up"),
            format!("-n {name} route add default via 10.98.{n}.1"),
        ] {
            ip(&words)?;
        }
        // What others choose from is said for all namespaces, what is chosen for each.
        let mut cubic = pinned(Core::Load, Path::new("nsenter"));
        cubic.arg(format!("--net={}", container.path().display()));
        cubic.args(["sh", "-c", &format!("echo cubic > {CONGESTION_CONTROL}")]);
        let _ = cubic.stderr(Stdio::null()).status();
        Ok(container)
    }

    pub fn path(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.name)
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        // It may never have been made.
        let _ = ip(&format!("netns del {}", self.name));
    }
}

fn ip(words: &str) -> anyhow::Result<()> {
    let out = Command::new("ip")
        .args(words.split_whitespace())
        .output()
        .context("ip")?;
    ensure!(
        out.status.success(),
        "ip {words}: {}",
        String::from_utf8_lossy(&out.stderr).trim()
    );
    Ok(())
}

/// Replaces this process by one in a network namespace of its own, if that can be had; then returns what a reader of the
/// figures should know about where they come from.
pub fn enter_namespace() -> anyhow::Result<Vec<String>> {
    let mut notes = Vec::new();
    if std::env::var_os(INSIDE).is_none() {
        // Only there may be said what congestion control others choose from.
        allow_cubic();
        let can_enter = Command::new("unshare")
            .args(["-n", "ip", "link", "set", "lo", "up"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|status| status.success());
        if can_enter {
            let error = Command::new("unshare")
                .arg("-n")
                .arg(std::env::current_exe()?)
                .args(std::env::args_os().skip(1))
                .env(INSIDE, "1")
                .exec();
            return Err(error).context("unshare -n");
        }
        notes.push("no network namespace of its own: that needs root, unshare and ip".to_owned());
    } else {
        Command::new("ip").args(["link", "set", "lo", "up"]).status()?;
        // What stands in it is seen below.
        let _ = fs::write(CONGESTION_CONTROL, "cubic");
    }
    let control = fs::read_to_string(CONGESTION_CONTROL).unwrap_or_default();
    if control.trim() != "cubic" {
        notes.push(format!(
            "congestion control is {}, not cubic: bulk figures may be inflated",
            control.trim()
        ));
    }
    Ok(notes)
}

fn allow_cubic() {
    let Ok(allowed) = fs::read_to_string(CONGESTION_CONTROL_ALLOWED) else {
        return;
    };
    if !allowed.split_whitespace().any(|name| name == "cubic") {
        // Without root it cannot be written, and then there is no namespace either.
        let _ = fs::write(CONGESTION_CONTROL_ALLOWED, format!("{} cubic", allowed.trim()));
    }
}

/// As many descriptors as may be had, for this process and those it starts. Returns how many.
pub fn raise_open_files() -> u64 {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    match setrlimit(Resource::Nofile, raised) {
        Ok(()) => limit.maximum.unwrap_or(u64::MAX),
        Err(_) => limit.current.unwrap_or(u64::MAX),
    }
}

/// A command that runs on one core and dies with the thread that starts it.
pub fn pinned(core: Core, program: &Path) -> Command {
    command(can_pin().then_some(core), program)
}

/// A command that dies with the thread that starts it.
pub fn held(program: &Path) -> Command {
    command(None, program)
}

fn command(core: Option<Core>, program: &Path) -> Command {
    let mut words = Vec::new();
    if has("setpriv") {
        words.extend(["setpriv", "--pdeathsig", "TERM"].map(String::from));
    }
    if let Some(core) = core {
        words.extend(["taskset".to_owned(), "-c".to_owned(), (core as u32).to_string()]);
    }
    words.push(program.to_string_lossy().into_owned());
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]).stdin(Stdio::null());
    command
}

/// Whether processes can be held on the cores they should be on.
pub fn can_pin() -> bool {
    has("taskset") && std::thread::available_parallelism().is_ok_and(|n| n.get() > 1)
}

fn has(program: &str) -> bool {
    find(program).is_some()
}

/// Where a program is; Debian's users have no sbin in their PATH.
pub fn find(program: &str) -> Option<PathBuf> {
    let paths = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&paths)
        .chain(["/usr/sbin".into(), "/usr/local/sbin".into()])
        .map(|dir| dir.join(program))
        .find(|path| path.is_file())
}

/// CPU time of all threads of some processes.
pub fn cpu_ns(pids: &[u32]) -> anyhow::Result<u64> {
    let mut sum = 0;
    for pid in pids {
        for task in fs::read_dir(format!("/proc/{pid}/task")).with_context(|| format!("process {pid}"))? {
            // A thread may end meanwhile.
            if let Ok(text) = fs::read_to_string(task?.path().join("schedstat")) {
                sum += text
                    .split_whitespace()
                    .next()
                    .context("schedstat is empty")?
                    .parse::<u64>()?;
            }
        }
    }
    Ok(sum)
}

/// Memory that some processes wrote to and share with nobody.
pub fn private_bytes(pids: &[u32]) -> anyhow::Result<i64> {
    let mut sum = 0;
    for pid in pids {
        let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).with_context(|| format!("process {pid}"))?;
        let line = text.lines().find_map(|line| line.strip_prefix("Private_Dirty:"));
        let kib = line.and_then(|line| line.split_whitespace().next());
        sum += kib.context("smaps_rollup has no Private_Dirty")?.parse::<i64>()? * 1024;
    }
    Ok(sum)
}

/// The processes that `pid` started.
pub fn children(pid: u32) -> Vec<u32> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    let is_child = |child: &u32| {
        fs::read_to_string(format!("/proc/{child}/stat")).is_ok_and(|stat| {
            // PID (NAME) STATE PARENT, and a name may hold anything.
            let rest = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
            rest.split_whitespace().nth(1) == Some(&pid.to_string())
        })
    };
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(is_child)
        .collect()
}

/// Where the machine's time goes, from one moment on.
pub struct Ticks {
    busy: u64,
    stolen: u64,
    all: u64,
}

impl Ticks {
    pub fn now() -> anyhow::Result<Ticks> {
        let text = fs::read_to_string("/proc/stat")?;
        let line = text.lines().next().context("/proc/stat is empty")?;
        let ticks: Vec<u64> = line.split_whitespace().skip(1).filter_map(|n| n.parse().ok()).collect();
        // User, nice, system, idle, waiting, interrupts of two kinds, stolen; what follows is part of what came before.
        let tick = |i: usize| ticks.get(i).copied().unwrap_or_default();
        Ok(Ticks {
            busy: tick(0) + tick(1) + tick(2) + tick(5) + tick(6),
            stolen: tick(7),
            all: (0..8).map(tick).sum(),
        })
    }

    /// The parts of all time since then that the host took away, and that somebody used.
    pub fn since(&self) -> anyhow::Result<(f64, f64)> {
        let now = Ticks::now()?;
        let all = (now.all - self.all).max(1) as f64;
        // Some kernels let counters go back a little.
        let part = |now: u64, then: u64| now.saturating_sub(then) as f64 / all;
        Ok((part(now.stolen, self.stolen), part(now.busy, self.busy)))
    }
}

/// Lines that tell the machine and the moment.
pub fn describe() -> Vec<String> {
    let first_line = |program: &str, args: &[&str]| {
        let output = Command::new(program).args(args).stdin(Stdio::null()).output().ok()?;
        let text = String::from_utf8_lossy(&output.stdout).lines().next()?.to_owned();
        output.status.success().then_some(text)
    };
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    let cpus = read("/proc/cpuinfo");
    let model = cpus.lines().find(|line| line.starts_with("model name"));
    let model = model.and_then(|line| line.split(": ").nth(1)).unwrap_or("unknown CPU");
    let n_cores = std::thread::available_parallelism().map_or(1, usize::from);
    let commit = first_line("git", &["rev-parse", "--short", "HEAD"]).unwrap_or_else(|| "unknown".to_owned());
    let changed = match first_line("git", &["status", "--porcelain", "--untracked-files=no"]) {
        Some(_) => " with changes",
        None => "",
    };
    vec![
        format!(
            "date: {}",
            humantime::format_rfc3339_seconds(std::time::SystemTime::now())
        ),
        format!(
            "machine: {n_cores} cores of {model}, Linux {}",
            read("/proc/sys/kernel/osrelease")
        ),
        format!("load before the run: {}", read("/proc/loadavg")),
        format!("commit: {commit}{changed}"),
    ]
}

const INSIDE: &str = "ANYNODE_VERSUS_INSIDE";
const CONGESTION_CONTROL: &str = "/proc/sys/net/ipv4/tcp_congestion_control";
const CONGESTION_CONTROL_ALLOWED: &str = "/proc/sys/net/ipv4/tcp_allowed_congestion_control";
