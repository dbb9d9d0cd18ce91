//! Tasks as processes of this host, where no engine runs containers. Each has a directory and a keeper (`keeper`): a small
//! process that starts it, holds its output and its exit code, and outlives this program.

mod address;
pub mod beside;
mod exec;
mod files;
mod found;
mod health;
mod job;
pub mod keeper;
mod kept;
mod known;
mod log_files;
mod logs;
mod mounting;
mod mounts;
mod port;
mod removal;
mod streams;
mod turns;
mod user;
mod users;
mod volume_name;
mod volumes;

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bollard_stubs::models::{EndpointPortConfig, EndpointPortConfigProtocolEnum};
use ipnet::{IpNet, Ipv4Net};
use rustix::process::Signal;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::unix::pipe;

use self::address::{AddressGiver, Given};
use self::found::Running;
use self::job::{Dir, Job, OwnNetwork, TASK_DIR, User};
use self::known::KnownTasks;
use self::port::PortGiver;
use self::removal::Remover;
use self::turns::Turns;
use self::users::Users;
use super::runtime::{Failure, Found, HealthState, Runtime, Started};
use super::template;
use super::{Assignment, Later, TaskNetworks, files as task_files};
use crate::model::exec::{ExecError, ExecSpec};
use crate::model::swarm::{Container, Exit, Id, TaskSpec};
use crate::model::{Reach, TaskPlace, labels};
use crate::streams::{Exec, LogQuery, LogStream};
use crate::sys::cgroup::{self, Group};
use crate::sys::private;
use crate::sys::process::{lead_session, pass_nothing_on};

pub use self::removal::Begun;
pub use self::users::UserRange;
pub use self::volumes::{Volume, VolumeError, Volumes};

/// What tasks are made of.
#[derive(Debug, Clone)]
pub struct ProcessSettings {
    /// A directory for each task is made in here.
    pub dir: PathBuf,
    /// This program: it is the keeper too.
    pub program: PathBuf,
    /// What to run for an image, by the image's name; the first word is the program.
    pub images: BTreeMap<String, Vec<String>>,
    /// Each task has a network of its own, with an address from here; `None`: all have this host's.
    pub addresses: Option<Ipv4Net>,
    /// Where this program is root: the users of services that name none.
    pub users: UserRange,
    /// Directories and files that tasks do not see, besides `dir`: what is this program's own, and sockets that obey root.
    pub hidden: Vec<PathBuf>,
    /// And what tasks of root do not see besides.
    pub hidden_from_root: Vec<PathBuf>,
}

/// The runtime.
pub struct Processes {
    settings: ProcessSettings,
    ports: PortGiver,
    networks: Arc<dyn TaskNetworks>,
    /// `None`: tasks have this host's network.
    addresses: Option<AddressGiver>,
    /// Who was given what.
    known: Arc<KnownTasks>,
    turns: Turns,
    remover: Remover,
    volumes: Arc<Volumes>,
    trees: cgroup::Trees,
    /// `None`: this program is not root, and all that it starts is its own user's.
    users: Option<Users>,
    /// Tasks see less than this program does.
    has_views: bool,
}

/// An image that needs no entry: this program's own.
const WHOAMI: &str = "anynode/whoami";

impl Processes {
    pub fn new(mut settings: ProcessSettings, networks: Arc<dyn TaskNetworks>) -> Processes {
        // Tasks work elsewhere.
        if let Ok(dir) = std::path::absolute(&settings.dir) {
            settings.dir = dir;
        }
        let missing = private::missing_capabilities();
        let addresses = settings.addresses.filter(|_| {
            if !missing.is_empty() {
                tracing::warn!(
                    ?missing,
                    "tasks have this host's network: they do not see their clients' addresses, nor services by name"
                );
            }
            missing.is_empty()
        });
        let missing = private::missing_for_views();
        let known = Arc::new(KnownTasks::new(settings.dir.clone()));
        let users = rustix::process::geteuid()
            .is_root()
            .then(|| Users::new(settings.users, &settings.dir, known.clone()));
        if users.is_some() && !missing.is_empty() {
            tracing::warn!(?missing, "tasks see other users' processes; those of root are refused");
        }
        Processes {
            has_views: users.is_some() && missing.is_empty(),
            users,
            addresses: addresses.map(|network| AddressGiver::new(network, known.clone())),
            volumes: Arc::new(Volumes::new(&settings.dir, known.clone())),
            known,
            turns: Turns::new(),
            remover: Remover::new(&settings.dir),
            trees: cgroup::Trees::seen(),
            settings,
            ports: PortGiver::default(),
            networks,
        }
    }

    /// Those that tasks can have mounted; `None`: they cannot have mounts.
    pub fn volumes(&self) -> Option<Arc<Volumes>> {
        self.has_views.then(|| self.volumes.clone())
    }

    fn dir(&self, task: &Id) -> Dir {
        Dir::new(self.settings.dir.join(task.as_str()))
    }

    /// What an image stands for, whether or not its tag is written.
    fn command_of(&self, image: &str) -> Option<Vec<String>> {
        let name = image.split('@').next().unwrap_or(image);
        let names = [name, name.strip_suffix(":latest").unwrap_or(name)];
        let tagged = format!("{name}:latest");
        let images = &self.settings.images;
        let known = names
            .into_iter()
            .chain([tagged.as_str()])
            .find_map(|name| images.get(name))
            .cloned();
        known.or_else(|| {
            let is_own = names.contains(&WHOAMI);
            is_own.then(|| vec![self.settings.program.display().to_string(), "whoami".to_owned()])
        })
    }

    /// `network`: of its own; without one, this host's.
    fn job_of(&self, assignment: &Assignment, network: Option<OwnNetwork>) -> Result<Job, Failure> {
        let container = assignment.task.spec.container_spec.clone().unwrap_or_default();
        let image = container.image.clone().unwrap_or_default();
        let Some(mut words) = self.command_of(&image) else {
            return Err(Failure(format!(
                "No such image: {image}: tasks are processes here; say what to run for it under [process.images] of the \
                 configuration, or run a Docker Engine"
            )));
        };
        refuse_what_needs_a_container(&assignment.task.spec, network.is_some())?;
        let expand = |text: &String| template::expand(text, assignment).map_err(|error| Failure(error.to_string()));
        if let Some(command) = container.command.as_ref().filter(|command| !command.is_empty()) {
            words = command.clone();
        }
        words.extend(container.args.iter().flatten().cloned());
        let dir = self.dir(&assignment.task.id);
        let port = match network {
            // Each task has all ports there are.
            Some(_) => first_target(assignment).unwrap_or(PORT_OF_NONE),
            None => self
                .ports
                .give()
                .map_err(|error| Failure(format!("a port for the task: {error}")))?,
        };
        let mut env = BTreeMap::new();
        for variable in container.env.iter().flatten() {
            let variable = expand(variable)?;
            let (name, value) = variable.split_once('=').unwrap_or((&variable, ""));
            if name.is_empty() || variable.contains('\0') {
                return Err(Failure(format!("Env {variable:?}: expected NAME=VALUE")));
            }
            env.insert(name.to_owned(), value.to_owned());
        }
        for variable in assignment.task.generic.env() {
            if let Some((name, value)) = variable.split_once('=') {
                env.insert(name.to_owned(), value.to_owned());
            }
        }
        env.insert(HOSTNAME.to_owned(), hostname(assignment)?);
        match network {
            // It may listen wherever it likes.
            Some(_) => drop(env.entry("PORT".to_owned()).or_insert_with(|| port.to_string())),
            None => drop(env.insert("PORT".to_owned(), port.to_string())),
        }
        env.insert(TASK_DIR.to_owned(), dir.root().display().to_string());
        let path = std::env::var("PATH").unwrap_or_else(|_| DEFAULT_PATH.to_owned());
        env.entry("PATH".to_owned()).or_insert(path);
        let privileges = container.privileges.unwrap_or_default();
        let groups = container.groups.unwrap_or_default();
        let (log_bytes_max, log_files) = log_limits(&assignment.task.spec)?;
        let user = self.user_of(assignment, container.user.as_deref().unwrap_or_default(), &groups)?;
        let mounts = self.mounts_of(assignment, &dir)?;
        // What it has mounted over the host's files, programs of root's would believe.
        let may_gain = mounts.is_none() || user.as_ref().is_none_or(|user| user.uid == 0);
        Ok(Job {
            words,
            env,
            // A path of its own is this host's.
            dir: dir.root().join(container.dir.unwrap_or_default()),
            port,
            network,
            log_bytes_max,
            log_files,
            hidden: self.hidden_from(&dir, user.as_ref())?,
            user,
            service: Some(assignment.task.service.to_string()),
            is_bounded: self.users.is_some(),
            gains_nothing: !may_gain || privileges.no_new_privileges.unwrap_or(false),
            group: Vec::new(),
            mounts,
        })
    }

    /// Whom a task runs as: whom its service names, or else the service's own user, or, if this program is not root, its user.
    fn user_of(&self, assignment: &Assignment, named: &str, groups: &[String]) -> Result<Option<User>, Failure> {
        let Some(users) = &self.users else {
            return user::of(named, groups).map_err(Failure);
        };
        let missing = private::missing_for_users();
        if !missing.is_empty() {
            return Err(Failure(format!(
                "User {named:?}: expected this node to have {}, to run tasks as users of their own",
                missing.join(", ")
            )));
        }
        let user = match named {
            "" => {
                let uid = users.of(assignment.task.service.as_str(), &assignment.task.service_name);
                let uid = uid.map_err(|error| Failure(format!("a user for the service: {error}")))?;
                let groups = user::groups(groups).map_err(Failure)?;
                Some(User { uid, gid: uid, groups })
            }
            named => user::of(named, groups).map_err(Failure)?,
        };
        match user.as_ref().is_none_or(|user| user.uid == 0) && !self.has_views {
            true => Err(Failure(format!(
                "User {named:?}: expected this node to have {}, to hide from root what is not its tasks', or another user",
                private::missing_for_views().join(", ")
            ))),
            false => Ok(user),
        }
    }

    /// What a task is not to see. A directory that is closed to its user is hidden whole, with a way to the task's own.
    fn hidden_from(&self, dir: &Dir, user: Option<&User>) -> Result<Option<Vec<PathBuf>>, Failure> {
        let tasks = &self.settings.dir;
        // It is made with the first task.
        let there = tasks.ancestors().find(|dir| dir.exists()).unwrap_or(tasks);
        let closed = user.filter(|_| self.users.is_some());
        let closed = closed.and_then(|user| user.closed_on_the_way(&there.join("task")));
        match (self.has_views, closed) {
            (true, closed) => {
                let is_root = user.is_none_or(|user| user.uid == 0);
                let from_root = self.settings.hidden_from_root.iter().filter(|_| is_root);
                let hidden = self.settings.hidden.iter().chain(from_root).chain([tasks]);
                Ok(Some(hidden.cloned().chain(closed).collect()))
            }
            (false, Some(closed)) => Err(Failure(format!(
                "{}: {} is closed to the task's user: expected a data directory that all may pass through (mode 711)",
                dir.path().display(),
                closed.display()
            ))),
            (false, None) => Ok(None),
        }
    }

    /// The network that a task is to have, and its address until it is written; `None` for this host's.
    fn network_of(&self, assignment: &Assignment) -> Result<Option<(OwnNetwork, Option<Given<'_>>)>, Failure> {
        let spec = &assignment.task.spec;
        let attached = spec.networks.iter().flatten();
        let networks: Vec<String> = attached.filter_map(|network| network.target.clone()).collect();
        let Some(addresses) = self
            .addresses
            .as_ref()
            .filter(|_| !networks.iter().any(|network| network == "host"))
        else {
            return match assignment.task.is_internal() {
                true => Err(Failure(
                    "the task's network is internal, and tasks have this host's network here: expected anynode as root"
                        .to_owned(),
                )),
                false => Ok(None),
            };
        };
        let none = || Failure("process.addresses: all of them are given: expected a larger network".to_owned());
        let container = spec.container_spec.clone().unwrap_or_default();
        let dns = container.dns_config.unwrap_or_default();
        let nameserver = |text: &String| {
            let wrong = || Failure(format!("DNSConfig.Nameservers {text:?}: expected an address"));
            text.parse::<IpAddr>().map_err(|_| wrong())
        };
        let nameservers: Result<_, Failure> = dns.nameservers.iter().flatten().map(nameserver).collect();
        let own = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
        let own_addresses = assignment.task.addresses.iter();
        let own_addresses = own_addresses.filter_map(|own| IpNet::new(own.addr.into(), own.prefix).ok());
        let own_addresses: Vec<IpNet> = own_addresses.collect();
        let (address, given) = match assignment.task.addresses.first() {
            Some(own) => (own.addr, None),
            None => {
                let given = addresses.give().ok_or_else(none)?;
                (given.address, Some(given))
            }
        };
        let mut ways_out = assignment.task.addresses.iter().filter(|own| !own.is_internal);
        let own_hosts = std::fs::read_to_string("/etc/hosts").unwrap_or_default();
        let network = OwnNetwork {
            address,
            hosts: hosts(&own_hosts, &hostname(assignment)?, address, &own_addresses),
            addresses: own_addresses,
            way_out: ways_out.next().map(|own| own.addr),
            is_internal: assignment.task.is_internal(),
            networks,
            nameservers: nameservers?,
            resolv_conf: resolv_conf(&own, dns.search.as_deref(), dns.options.as_deref()),
        };
        Ok(Some((network, given)))
    }

    /// A group for a task that is to have no more than so much, and to end whole; without limits and where nobody can have it end
    /// so, one of nothing.
    fn group_of(&self, assignment: &Assignment) -> Result<Group, Failure> {
        let resources = assignment.task.spec.resources.clone().unwrap_or_default();
        let limits = resources.limits.unwrap_or_default();
        let given = |limit: Option<i64>| {
            limit
                .and_then(|limit| u64::try_from(limit).ok())
                .filter(|limit| *limit > 0)
        };
        let low = given(resources.reservations.and_then(|least| least.memory_bytes));
        let mut asked = cgroup::Limits {
            memory_bytes: given(limits.memory_bytes),
            memory_low_bytes: low,
            nano_cpus: given(limits.nano_cpus),
            pids: given(limits.pids),
        };
        let task = assignment.task.id.as_str();
        // Others than root may be let make groups, and not enter them.
        let is_to_end = self.users.is_some();
        let made = self.trees.make(task, &asked, is_to_end);
        // The scheduler keeps what is reserved; beyond that it is a wish.
        let made = made.or_else(|error| match asked.memory_low_bytes.take() {
            Some(_) => self.trees.make(task, &asked, is_to_end),
            None => Err(error),
        });
        made.map_err(|error| {
            Failure(format!(
                "Resources.Limits: {error}: expected a host where this node may make control groups, or no limits"
            ))
        })
    }

    /// What is left in the group of a task is ended with it.
    async fn end_group(&self, task: &Id) {
        let group = self.trees.find(task.as_str());
        if !group.dirs.is_empty() {
            // An error says that it panicked.
            drop(tokio::task::spawn_blocking(move || group.remove()).await);
        }
    }

    async fn start_keeper(&self, task: &Id, dir: &Dir) -> io::Result<Started> {
        let job = dir.read_job()?;
        // The keeper has it from its first moment: there is none in which a task could be kept and seem not to be.
        let lock = dir.lock()?.ok_or_else(|| io::Error::other("it has a keeper already"))?;
        let (ours, its) = std::os::unix::net::UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        let ours = tokio::net::UnixStream::from_std(ours)?;
        let mut command = std::process::Command::new(&self.settings.program);
        command
            .arg("keep")
            .arg(dir.path())
            .current_dir("/")
            .stdin(lock)
            .stdout(OwnedFd::from(its))
            .stderr(std::process::Stdio::null());
        lead_session(&mut command);
        pass_nothing_on(&mut command);
        let mut keeper = tokio::process::Command::from(command).spawn()?;
        let pid = keeper.id().unwrap_or(0);
        let heard = self.hear(task, ours, pid, &job).await;
        if heard.is_err() {
            // It must not go on with what is given up here.
            keeper.start_kill()?;
        }
        // It is waited for, so that it leaves no zombie.
        tokio::spawn(async move { keeper.wait().await });
        let said = heard?;
        match said.trim_end().split_once(' ') {
            Some(("pid", program)) => Ok(started(dir, program.parse().map_err(io::Error::other)?, pid, &job)),
            Some(("error", reason)) => Err(io::Error::other(reason.to_owned())),
            _ => Err(io::Error::other("its keeper ended without a word")),
        }
    }

    /// The last word of a keeper; its task's network is made ready when it asks.
    async fn hear(&self, task: &Id, keeper: tokio::net::UnixStream, pid: u32, job: &Job) -> io::Result<String> {
        let (said, mut answer) = keeper.into_split();
        let mut said = BufReader::new(said);
        let mut line = String::new();
        tokio::time::timeout(KEEPER_PATIENCE, said.read_line(&mut line)).await??;
        if let Some(network) = job.network.as_ref().filter(|_| line.trim_end() == "ready") {
            let opened = self.networks.open(task, place(network, pid)).await;
            opened.map_err(|Failure(reason)| io::Error::other(format!("the task's network: {reason}")))?;
            answer.write_all(b"go\n").await?;
            line.clear();
            tokio::time::timeout(KEEPER_PATIENCE, said.read_line(&mut line)).await??;
        }
        Ok(line)
    }

    /// By force, until nothing is left that keeps it.
    async fn end_all(&self, task: &Id) {
        let dir = self.dir(task);
        while dir.has_keeper() {
            self.kill(task).await;
            if tokio::time::timeout(KEEPER_PATIENCE, self.ended(task)).await.is_err() {
                tracing::error!(%task, "it does not end by force");
            }
        }
    }

    /// Returns whether there is a program that it can go to.
    fn signal(&self, task: &Id, signal: Signal) -> bool {
        let running = self.dir(task).running();
        if let Some(running) = &running {
            running.program.signal(signal);
        }
        running.is_some()
    }
}

/// A process has this host's files, network and privileges. What promises others is refused, not passed over.
fn refuse_what_needs_a_container(spec: &TaskSpec, has_network: bool) -> Result<(), Failure> {
    let container = spec.container_spec.clone().unwrap_or_default();
    let dns = container.dns_config.unwrap_or_default();
    let privileges = container.privileges.unwrap_or_default();
    let is_some = |list: &Option<Vec<String>>| list.as_ref().is_some_and(|list| !list.is_empty());
    let asked = [
        ("ReadOnly", container.read_only == Some(true)),
        ("Hosts", is_some(&container.hosts)),
        (
            "DNSConfig",
            !has_network && (is_some(&dns.nameservers) || is_some(&dns.search) || is_some(&dns.options)),
        ),
        ("CapabilityAdd", is_some(&container.capability_add)),
        ("CapabilityDrop", is_some(&container.capability_drop)),
        ("Sysctls", container.sysctls.is_some_and(|sysctls| !sysctls.is_empty())),
        ("Ulimits", container.ulimits.is_some_and(|ulimits| !ulimits.is_empty())),
        ("Privileges.Seccomp", privileges.seccomp.is_some()),
        ("Privileges.AppArmor", privileges.app_armor.is_some()),
        ("Privileges.SELinuxContext", privileges.se_linux_context.is_some()),
    ];
    match asked.iter().find(|(_, is_asked)| *is_asked) {
        Some((key, _)) => Err(Failure(format!(
            "ContainerSpec.{key}: tasks are processes of this host here, which have none of their own: expected a Docker Engine"
        ))),
        None => Ok(()),
    }
}

/// The length of a log file and how many there are, by the options of Docker's json-file.
fn log_limits(spec: &TaskSpec) -> Result<(u64, u32), Failure> {
    let driver = spec.log_driver.clone().unwrap_or_default();
    let options = driver.options.unwrap_or_default();
    let wrong = |key: &str, expected: &str| {
        let value = options.get(key).map_or("", String::as_str);
        Failure(format!("LogDriver.Options.{key} {value:?}: expected {expected}"))
    };
    let n_bytes = match options.get("max-size") {
        None => LOG_BYTES_MAX,
        Some(text) => size(text).ok_or_else(|| wrong("max-size", "a size such as 10m"))?,
    };
    let n_files = match options.get("max-file").map(|text| text.parse()) {
        None => LOG_FILES,
        Some(Ok(n @ 1..=LOG_FILES_MAX)) => n,
        Some(_) => return Err(wrong("max-file", "1 to 1000")),
    };
    Ok((n_bytes, n_files))
}

/// `512`, `100k`, `10m`, `1g`, with or without a `b` after it.
fn size(text: &str) -> Option<u64> {
    let text = text.trim().to_ascii_lowercase();
    let text = text.strip_suffix('b').unwrap_or(&text);
    let (digits, factor) = match text.char_indices().last()? {
        (at, 'k') => (&text[..at], 1 << 10),
        (at, 'm') => (&text[..at], 1 << 20),
        (at, 'g') => (&text[..at], 1 << 30),
        _ => (text, 1),
    };
    digits
        .parse::<u64>()
        .ok()?
        .checked_mul(factor)
        .filter(|n_bytes| *n_bytes > 0)
}

/// `pid`: of the program; `keeper`: of what keeps it.
fn started(dir: &Dir, pid: i64, keeper: u32, job: &Job) -> Started {
    let reach = match &job.network {
        // Whichever port a connection is for.
        Some(network) => Reach {
            addr: SocketAddr::from((network.address, 0)),
            netns: Some(netns_of(keeper)),
        },
        None => SocketAddr::from((Ipv4Addr::LOCALHOST, job.port)).into(),
    };
    Started {
        container: Container {
            id: dir.task().to_owned(),
            pid,
            exit_code: 0,
            hostname: job.env.get(HOSTNAME).cloned().unwrap_or_default(),
        },
        reach: Some(reach),
        note: None,
    }
}

/// By the keeper, which has it from the first moment to the last, and is of our user whoever the program's is.
fn netns_of(keeper: u32) -> Arc<Path> {
    Path::new(&format!("/proc/{keeper}/ns/net")).into()
}

/// What is to be made ready in the network of a keeper.
fn place(network: &OwnNetwork, keeper: u32) -> TaskPlace {
    let nameservers = network.nameservers.iter();
    TaskPlace {
        netns: netns_of(keeper),
        networks: network.networks.iter().map(|id| id.as_str().into()).collect(),
        address: Some(network.way_out.unwrap_or(network.address).into()),
        addresses: network.addresses.clone(),
        is_closed: true,
        is_internal: network.is_internal,
        has_dns: true,
        nameservers: nameservers.map(|ip| SocketAddr::new(*ip, DNS_PORT)).collect(),
        links: Vec::new(),
    }
}

/// The first port that a service publishes, or else that of its route, as its tasks know it.
fn first_target(assignment: &Assignment) -> Option<u16> {
    let service = assignment.service.as_ref()?;
    let is_tcp = |port: &&EndpointPortConfig| {
        port.protocol
            .is_none_or(|protocol| protocol == EndpointPortConfigProtocolEnum::TCP)
    };
    let mut published = service
        .spec
        .endpoint_spec
        .iter()
        .flat_map(|spec| spec.ports.iter().flatten());
    match published.find(is_tcp) {
        Some(port) => u16::try_from(port.target_port?).ok(),
        None => {
            let all = service.labels();
            labels::port(&all.map(|(label, value)| (label.to_owned(), value.to_owned())).collect())
        }
    }
}

/// What a task is called by: its service may say it.
fn hostname(assignment: &Assignment) -> Result<String, Failure> {
    let container = assignment.task.spec.container_spec.as_ref();
    match container
        .and_then(|container| container.hostname.as_ref())
        .filter(|name| !name.is_empty())
    {
        Some(name) => template::expand(name, assignment).map_err(|error| Failure(error.to_string())),
        None => Ok(assignment.task.id.as_str().chars().take(12).collect()),
    }
}

/// What a task finds as /etc/hosts: this host's lines, and its own names for its own addresses. The kernel's name of the host
/// is the task's too, and leads to them as well.
fn hosts(own: &str, name: &str, address: Ipv4Addr, addresses: &[IpNet]) -> String {
    let of_host = rustix::system::uname();
    let of_host = of_host.nodename().to_string_lossy();
    let names = |line: &str| {
        line.split('#')
            .next()
            .unwrap_or_default()
            .split_whitespace()
            .skip(1)
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    let is_other = |line: &&str| {
        !names(line).iter().any(|found| *found == *of_host || found == name) || line.contains("localhost")
    };
    let kept = own.lines().filter(is_other).map(str::to_owned);
    let alone = [IpAddr::from(address)];
    let planned: Vec<IpAddr> = addresses.iter().map(IpNet::addr).collect();
    let all = if planned.is_empty() { &alone[..] } else { &planned };
    let lines = kept.chain(all.iter().map(|address| format!("{address}\t{name} {of_host}")));
    lines.map(|line| line + "\n").collect()
}

/// What a task finds as /etc/resolv.conf: the search list and options of its service, or else of this host, with anynode to
/// ask.
fn resolv_conf(own: &str, search: Option<&[String]>, options: Option<&[String]>) -> String {
    let said = |words: Option<&[String]>| words.filter(|words| !words.is_empty()).map(|words| words.join(" "));
    let of_host = |key: &str| {
        let lines = own
            .lines()
            .filter_map(|line| line.trim().split_once(char::is_whitespace));
        lines
            .filter(|(found, _)| *found == key)
            .map(|(_, value)| value.trim().to_owned())
            .next_back()
    };
    let mut text = format!("nameserver {}\n", TaskPlace::NAMESERVER);
    if let Some(search) = said(search).or_else(|| of_host("search")) {
        text += &format!("search {search}\n");
    }
    let mut options = options.unwrap_or_default().to_vec();
    if !options.iter().any(|option| option.starts_with("ndots:")) {
        options.push("ndots:0".to_owned());
    }
    text + &format!("options {}\n", options.join(" "))
}

impl Runtime for Processes {
    fn prepare<'a>(&'a self, assignment: &'a Assignment) -> Later<'a, Result<(), Failure>> {
        Box::pin(async move {
            let _turn = self.turns.turn(&assignment.task.service).await;
            let dir = self.dir(&assignment.task.id);
            let failed = |error: io::Error| Failure(format!("prepare {}: {error}", dir.path().display()));
            let (network, _given) = self.network_of(assignment)?.unzip();
            let mut job = self.job_of(assignment, network)?;
            mounting::judge(&job).await?;
            let files = task_files::of(assignment).map_err(|error| Failure(error.to_string()))?;
            // Of an attempt that was cut short, whatever it left.
            self.remove(&assignment.task.id).await;
            job.group = self.group_of(assignment)?.dirs;
            let user = job.user.as_ref();
            let named = assignment
                .task
                .spec
                .container_spec
                .as_ref()
                .and_then(|spec| spec.user.as_deref());
            let is_all_its = self.users.is_some() && named.unwrap_or_default().is_empty();
            let write = || {
                dir.make(user)?;
                files::write_all(&dir, &files, user, is_all_its)?;
                dir.write_job(&job)
            };
            let written = write();
            self.known.forget(assignment.task.id.as_str());
            written.map_err(failed)?;
            // From here on its volumes are known to be used.
            let tried = self.try_mounts(&job, &dir, is_all_its).await;
            if tried.is_err() {
                self.remove(&assignment.task.id).await;
            }
            tried
        })
    }

    fn start<'a>(&'a self, assignment: &'a Assignment) -> Later<'a, Result<Started, Failure>> {
        Box::pin(async move {
            let _turn = self.turns.turn(&assignment.task.service).await;
            let dir = self.dir(&assignment.task.id);
            self.start_keeper(&assignment.task.id, &dir)
                .await
                .map_err(|error| Failure(format!("starting container failed: {error}")))
        })
    }

    fn find<'a>(&'a self, task: &'a Id) -> Later<'a, Found> {
        Box::pin(async move {
            let dir = self.dir(task);
            dir.settled().await;
            let is_running = || dir.has_keeper() && dir.exit_code().is_none();
            let job = match dir.read_job() {
                Ok(job) => job,
                Err(error) => {
                    if is_running() {
                        tracing::error!(%task, %error, "its file \"job\" is damaged or gone: what runs of it is ended");
                        self.end_all(task).await;
                    }
                    return Found::Nothing;
                }
            };
            let running = if is_running() { dir.running() } else { None };
            match running {
                None if is_running() => {
                    tracing::error!(%task, "it has a keeper and no program can be found: what runs of it is ended");
                    self.end_all(task).await;
                    Found::Nothing
                }
                None if !dir.has_started() => Found::Prepared,
                Some(Running { program, keeper }) => {
                    let keeper = keeper.unwrap_or(program);
                    let keeper = u32::try_from(keeper.pid).unwrap_or(0);
                    if let Some(network) = &job.network
                        && let Err(Failure(reason)) = self.networks.open(task, place(network, keeper)).await
                    {
                        tracing::error!(%task, "services are not reached from inside: {reason}");
                    }
                    Found::Running(started(&dir, i64::from(program.pid), keeper, &job))
                }
                None => {
                    let exit = self.ended(task).await;
                    let ended = Container {
                        id: task.to_string(),
                        pid: 0,
                        exit_code: exit.code,
                        hostname: String::new(),
                    };
                    Found::Ended(ended, exit)
                }
            }
        })
    }

    fn ended<'a>(&'a self, task: &'a Id) -> Later<'a, Exit> {
        Box::pin(async move {
            let dir = self.dir(task);
            // The keeper has the other end until it ends, however it ends.
            if let Ok(mut alive) = pipe::OpenOptions::new().open_receiver(dir.alive()) {
                let mut bytes = [0; 64];
                while dir.has_keeper() && matches!(alive.read(&mut bytes).await, Ok(1..)) {}
            }
            match dir.exit_code() {
                Some(code) => Exit {
                    code,
                    is_out_of_memory: dir.is_out_of_memory(),
                },
                // A keeper that was killed took its task along, and left what that had started.
                None => {
                    let is_out_of_memory = self.trees.find(task.as_str()).is_out_of_memory();
                    self.end_group(task).await;
                    dir.end_leftovers().await;
                    Exit {
                        code: KILLED,
                        is_out_of_memory,
                    }
                }
            }
        })
    }

    fn health<'a>(&'a self, assignment: &'a Assignment, before: HealthState) -> Later<'a, HealthState> {
        let dir = self.dir(&assignment.task.id);
        Box::pin(health::changed(&self.settings.program, dir, assignment, before))
    }

    fn stop<'a>(&'a self, assignment: &'a Assignment) -> Later<'a, ()> {
        Box::pin(async move {
            let task = &assignment.task;
            let asked = task.spec.container_spec.as_ref();
            let asked = asked.and_then(|container| container.stop_signal.as_deref());
            let signal = match asked.filter(|name| !name.is_empty()) {
                None => Signal::TERM,
                Some(name) => job::signal(name).unwrap_or_else(|| {
                    tracing::warn!(task = %task.id, signal = name, "no such signal, SIGTERM instead");
                    Signal::TERM
                }),
            };
            if !self.signal(&task.id, signal) {
                tracing::debug!(task = %task.id, "it has ended before it was asked to");
            }
        })
    }

    fn kill<'a>(&'a self, task: &'a Id) -> Later<'a, ()> {
        Box::pin(async move {
            if !self.signal(task, Signal::KILL) && self.dir(task).has_keeper() {
                self.dir(task).end_leftovers().await;
            }
        })
    }

    fn remove<'a>(&'a self, task: &'a Id) -> Later<'a, ()> {
        Box::pin(async move {
            let dir = self.dir(task);
            dir.settled().await;
            self.end_all(task).await;
            // All at once, and then who is in no group.
            self.end_group(task).await;
            if dir.has_started() && dir.exit_code().is_none() {
                dir.end_leftovers().await;
            }
            if let Err(error) = self.remover.remove(&dir).await {
                tracing::warn!(%task, %error, "its directory is not removed");
            }
        })
    }

    fn list(&self) -> Later<'_, io::Result<Vec<Id>>> {
        Box::pin(async move {
            let entries = match std::fs::read_dir(&self.settings.dir) {
                Ok(entries) => entries,
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
                Err(error) => return Err(error),
            };
            let names = entries
                .flatten()
                .filter_map(|entry| entry.file_name().into_string().ok());
            Ok(names
                .filter(|name| name.len() == Id::LENGTH)
                .map(|name| Id::from(name.as_str()))
                .collect())
        })
    }

    fn logs(&self, task: &Id, query: LogQuery) -> io::Result<LogStream> {
        logs::read(self.dir(task), query)
    }

    fn exec<'a>(&'a self, task: &'a Id, spec: ExecSpec) -> Later<'a, Result<Exec, ExecError>> {
        Box::pin(exec::start(
            &self.settings.program,
            self.dir(task),
            spec,
            self.users.is_some(),
        ))
    }
}

/// Where a program is asked to listen whose service publishes nothing.
const PORT_OF_NONE: u16 = 8080;
const HOSTNAME: &str = "HOSTNAME";
const DNS_PORT: u16 = 53;
const KEEPER_PATIENCE: Duration = Duration::from_secs(10);
const LOG_BYTES_MAX: u64 = 10 << 20;
const LOG_FILES: u32 = 3;
const LOG_FILES_MAX: u32 = 1_000;
/// As of a program that SIGKILL ended.
const KILLED: i64 = 137;
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
