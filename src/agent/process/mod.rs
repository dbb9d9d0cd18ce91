//! Tasks as processes of this host, where no engine runs containers. Each has a directory and a keeper (`keeper`): a small
//! process that starts it, holds its output and its exit code, and outlives this program.

mod files;
mod health;
mod job;
pub mod keeper;
mod logs;
mod port;
mod user;

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use rustix::process::Signal;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;

use self::job::{Dir, Job, TASK_DIR};
use self::port::PortGiver;
use super::runtime::{Failure, Found, HealthState, Runtime, Started};
use super::template;
use super::{Assignment, Later, LogQuery, LogStream, files as task_files};
use crate::model::swarm::{Container, Exit, Id, TaskSpec};
use crate::sys::process::lead_session;

/// What tasks are made of.
#[derive(Debug, Clone)]
pub struct ProcessSettings {
    /// A directory for each task is made in here.
    pub dir: PathBuf,
    /// This program: it is the keeper too.
    pub program: PathBuf,
    /// What to run for an image, by the image's name; the first word is the program.
    pub images: BTreeMap<String, Vec<String>>,
}

/// The runtime.
#[derive(Debug)]
pub struct Processes {
    settings: ProcessSettings,
    ports: PortGiver,
}

/// An image that needs no entry: this program's own.
const WHOAMI: &str = "anynode/whoami";

impl Processes {
    pub fn new(mut settings: ProcessSettings) -> Processes {
        // Tasks work elsewhere.
        if let Ok(dir) = std::path::absolute(&settings.dir) {
            settings.dir = dir;
        }
        Processes {
            settings,
            ports: PortGiver::default(),
        }
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

    fn job_of(&self, assignment: &Assignment) -> Result<Job, Failure> {
        let container = assignment.task.spec.container_spec.clone().unwrap_or_default();
        let image = container.image.clone().unwrap_or_default();
        let Some(mut words) = self.command_of(&image) else {
            return Err(Failure(format!(
                "No such image: {image}: tasks are processes here; say what to run for it under [process.images] of the \
                 configuration, or run a Docker Engine"
            )));
        };
        refuse_what_needs_a_container(&assignment.task.spec)?;
        let expand = |text: &String| template::expand(text, assignment).map_err(|error| Failure(error.to_string()));
        if let Some(command) = container.command.as_ref().filter(|command| !command.is_empty()) {
            words = command.clone();
        }
        words.extend(container.args.iter().flatten().cloned());
        let dir = self.dir(&assignment.task.id);
        let port = self
            .ports
            .give()
            .map_err(|error| Failure(format!("a port for the task: {error}")))?;
        let mut env = BTreeMap::new();
        for variable in container.env.iter().flatten() {
            let variable = expand(variable)?;
            let (name, value) = variable.split_once('=').unwrap_or((&variable, ""));
            if name.is_empty() || variable.contains('\0') {
                return Err(Failure(format!("Env {variable:?}: expected NAME=VALUE")));
            }
            env.insert(name.to_owned(), value.to_owned());
        }
        let hostname = match container.hostname.as_ref().filter(|name| !name.is_empty()) {
            Some(name) => expand(name)?,
            None => assignment.task.id.as_str().chars().take(12).collect(),
        };
        env.insert("HOSTNAME".to_owned(), hostname);
        env.insert("PORT".to_owned(), port.to_string());
        env.insert(TASK_DIR.to_owned(), dir.root().display().to_string());
        let path = std::env::var("PATH").unwrap_or_else(|_| DEFAULT_PATH.to_owned());
        env.entry("PATH".to_owned()).or_insert(path);
        let privileges = container.privileges.unwrap_or_default();
        let groups = container.groups.unwrap_or_default();
        let (log_bytes_max, log_files) = log_limits(&assignment.task.spec)?;
        Ok(Job {
            words,
            env,
            // A path of its own is this host's.
            dir: dir.root().join(container.dir.unwrap_or_default()),
            port,
            log_bytes_max,
            log_files,
            user: user::of(&container.user.unwrap_or_default(), &groups).map_err(Failure)?,
            gains_nothing: privileges.no_new_privileges.unwrap_or(false),
        })
    }

    async fn start_keeper(&self, dir: &Dir) -> io::Result<Started> {
        // The keeper has it from its first moment: there is none in which a task could be kept and seem not to be.
        let lock = dir.lock()?.ok_or_else(|| io::Error::other("it has a keeper already"))?;
        let mut command = std::process::Command::new(&self.settings.program);
        command
            .arg("keep")
            .arg(dir.path())
            .current_dir("/")
            .stdin(lock)
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::null());
        lead_session(&mut command);
        let mut keeper = tokio::process::Command::from(command).spawn()?;
        let mut said = String::new();
        let read = async {
            match &mut keeper.stdout {
                Some(stdout) => stdout.read_to_string(&mut said).await,
                None => Ok(0),
            }
        };
        let is_heard = tokio::time::timeout(KEEPER_PATIENCE, read).await;
        if !matches!(is_heard, Ok(Ok(_))) {
            // It must not go on with what is given up here.
            keeper.start_kill()?;
        }
        // It is waited for, so that it leaves no zombie.
        tokio::spawn(async move { keeper.wait().await });
        is_heard??;
        match said.trim_end().split_once(' ') {
            Some(("pid", pid)) => {
                let pid = pid.parse().map_err(io::Error::other)?;
                let port = dir.read_job()?.port;
                Ok(started(dir, pid, port))
            }
            Some(("error", reason)) => Err(io::Error::other(reason.to_owned())),
            _ => Err(io::Error::other("its keeper ended without a word")),
        }
    }

    fn signal(&self, task: &Id, signal: Signal) {
        if let Some(process) = self.dir(task).pid() {
            process.signal(signal);
        }
    }
}

/// A process has this host's files, network and privileges. What promises others is refused, not passed over; limits of
/// resources promise nothing to the program, and are passed over.
fn refuse_what_needs_a_container(spec: &TaskSpec) -> Result<(), Failure> {
    let container = spec.container_spec.clone().unwrap_or_default();
    let dns = container.dns_config.unwrap_or_default();
    let privileges = container.privileges.unwrap_or_default();
    let is_some = |list: &Option<Vec<String>>| list.as_ref().is_some_and(|list| !list.is_empty());
    let asked = [
        ("Mounts", container.mounts.is_some_and(|mounts| !mounts.is_empty())),
        ("ReadOnly", container.read_only == Some(true)),
        ("Hosts", is_some(&container.hosts)),
        (
            "DNSConfig",
            is_some(&dns.nameservers) || is_some(&dns.search) || is_some(&dns.options),
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

fn started(dir: &Dir, pid: i64, port: u16) -> Started {
    Started {
        container: Container {
            id: dir.task().to_owned(),
            pid,
            exit_code: 0,
        },
        reach: Some(SocketAddr::from((Ipv4Addr::LOCALHOST, port)).into()),
    }
}

impl Runtime for Processes {
    fn prepare<'a>(&'a self, assignment: &'a Assignment) -> Later<'a, Result<(), Failure>> {
        Box::pin(async move {
            let dir = self.dir(&assignment.task.id);
            let failed = |error: io::Error| Failure(format!("prepare {}: {error}", dir.path().display()));
            let job = self.job_of(assignment)?;
            let files = task_files::of(assignment).map_err(|error| Failure(error.to_string()))?;
            // Of an attempt that was cut short, whatever it left.
            self.remove(&assignment.task.id).await;
            let user = job.user.as_ref();
            let write = || {
                dir.make(user)?;
                files::write_all(&dir, &files, user)?;
                dir.write_job(&job)
            };
            write().map_err(failed)
        })
    }

    fn start<'a>(&'a self, assignment: &'a Assignment) -> Later<'a, Result<Started, Failure>> {
        Box::pin(async move {
            let dir = self.dir(&assignment.task.id);
            self.start_keeper(&dir)
                .await
                .map_err(|error| Failure(format!("starting container failed: {error}")))
        })
    }

    fn find<'a>(&'a self, task: &'a Id) -> Later<'a, Found> {
        Box::pin(async move {
            let dir = self.dir(task);
            let Ok(job) = dir.read_job() else { return Found::Nothing };
            dir.settled().await;
            match dir.pid() {
                None => Found::Prepared,
                Some(process) if dir.has_keeper() && dir.exit_code().is_none() => {
                    Found::Running(started(&dir, i64::from(process.pid), job.port))
                }
                Some(_) => Found::Ended(Container {
                    id: task.to_string(),
                    pid: 0,
                    exit_code: self.ended(task).await.code,
                }),
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
            let code = match dir.exit_code() {
                Some(code) => code,
                // A keeper that was killed took its task along, and left what that had started.
                None => {
                    dir.end_leftovers().await;
                    KILLED
                }
            };
            Exit { code }
        })
    }

    fn health<'a>(&'a self, assignment: &'a Assignment, before: HealthState) -> Later<'a, HealthState> {
        let dir = self.dir(&assignment.task.id);
        Box::pin(health::changed(dir, assignment, before))
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
            self.signal(&task.id, signal);
        })
    }

    fn kill<'a>(&'a self, task: &'a Id) -> Later<'a, ()> {
        Box::pin(async move { self.signal(task, Signal::KILL) })
    }

    fn remove<'a>(&'a self, task: &'a Id) -> Later<'a, ()> {
        Box::pin(async move {
            let dir = self.dir(task);
            dir.settled().await;
            while dir.has_keeper() {
                self.signal(task, Signal::KILL);
                if tokio::time::timeout(KEEPER_PATIENCE, self.ended(task)).await.is_err() {
                    tracing::error!(%task, "it does not end by force");
                }
            }
            if dir.pid().is_some() && dir.exit_code().is_none() {
                dir.end_leftovers().await;
            }
            if let Err(error) = dir.remove() {
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
}

const KEEPER_PATIENCE: Duration = Duration::from_secs(10);
const LOG_BYTES_MAX: u64 = 10 << 20;
const LOG_FILES: u32 = 3;
const LOG_FILES_MAX: u32 = 1_000;
/// As of a program that SIGKILL ended.
const KILLED: i64 = 137;
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
