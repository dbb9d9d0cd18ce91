//! Tasks as processes of this host, where no engine runs containers. Each has a directory and a keeper (`keeper`): a small
//! process that starts it, holds its output and its exit code, and outlives this program.

mod files;
mod health;
mod job;
pub mod keeper;
mod logs;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;

use self::job::{Dir, Job};
use super::runtime::{Failure, Found, HealthState, Runtime, Started};
use super::template;
use super::{Assignment, Later, LogQuery, LogStream};
use crate::model::swarm::{Container, Exit, Id};

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
    /// Ports that were given lately: what is given twice is used once. std mutex: held for moments.
    ports: Mutex<BTreeSet<u16>>,
}

/// An image that needs no entry: this program's own.
const WHOAMI: &str = "anynode/whoami";

impl Processes {
    pub fn new(settings: ProcessSettings) -> Processes {
        Processes {
            settings,
            ports: Mutex::default(),
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

    fn free_port(&self) -> io::Result<u16> {
        for _ in 0..100 {
            let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
            let mut ports = self.ports.lock().unwrap_or_else(PoisonError::into_inner);
            if ports.len() >= PORTS_REMEMBERED {
                ports.clear();
            }
            if ports.insert(port) {
                return Ok(port);
            }
        }
        Err(io::Error::new(io::ErrorKind::AddrInUse, "no port is free"))
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
        let expand = |text: &String| template::expand(text, assignment).map_err(|error| Failure(error.to_string()));
        if let Some(command) = container.command.as_ref().filter(|command| !command.is_empty()) {
            words = command.clone();
        }
        words.extend(container.args.iter().flatten().cloned());
        let dir = self.dir(&assignment.task.id);
        let port = self
            .free_port()
            .map_err(|error| Failure(format!("a port for the task: {error}")))?;
        let mut env = BTreeMap::new();
        for variable in container.env.iter().flatten() {
            let variable = expand(variable)?;
            let (name, value) = variable.split_once('=').unwrap_or((&variable, ""));
            env.insert(name.to_owned(), value.to_owned());
        }
        let hostname = match container.hostname.as_ref().filter(|name| !name.is_empty()) {
            Some(name) => expand(name)?,
            None => assignment.task.id.as_str().chars().take(12).collect(),
        };
        env.insert("HOSTNAME".to_owned(), hostname);
        env.insert("PORT".to_owned(), port.to_string());
        env.insert("ANYNODE_TASK_DIR".to_owned(), dir.root().display().to_string());
        let path = std::env::var("PATH").unwrap_or_else(|_| DEFAULT_PATH.to_owned());
        env.entry("PATH".to_owned()).or_insert(path);
        Ok(Job {
            words,
            env,
            dir: match container.dir.filter(|dir| !dir.is_empty()) {
                Some(dir) => PathBuf::from(dir),
                None => dir.root(),
            },
            port,
            log_bytes_max: LOG_BYTES_MAX,
            log_files: LOG_FILES,
        })
    }

    async fn start_keeper(&self, dir: &Dir) -> io::Result<Started> {
        let mut command = tokio::process::Command::new(&self.settings.program);
        command
            .arg("keep")
            .arg(dir.path())
            .stdin(std::process::Stdio::null())
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::null())
            // It must not get the signals of a terminal.
            .process_group(0);
        let mut keeper = command.spawn()?;
        let mut said = String::new();
        if let Some(mut stdout) = keeper.stdout.take() {
            let read = stdout.read_to_string(&mut said);
            tokio::time::timeout(KEEPER_PATIENCE, read).await??;
        }
        // It is waited for, so that it leaves no zombie.
        tokio::spawn(async move { keeper.wait().await });
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
}

fn started(dir: &Dir, pid: i64, port: u16) -> Started {
    Started {
        container: Container {
            id: dir.task().to_owned(),
            pid,
            exit_code: 0,
        },
        addr: SocketAddr::from((Ipv4Addr::LOCALHOST, port)),
    }
}

impl Runtime for Processes {
    fn prepare<'a>(&'a self, assignment: &'a Assignment) -> Later<'a, Result<(), Failure>> {
        Box::pin(async move {
            let job = self.job_of(assignment)?;
            let dir = self.dir(&assignment.task.id);
            let prepare = || {
                dir.make()?;
                files::write_all(&dir, assignment)?;
                dir.write_job(&job)
            };
            prepare().map_err(|error| Failure(format!("prepare {}: {error}", dir.path().display())))
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
            let container = |pid: i64, exit_code: i64| Container {
                id: task.to_string(),
                pid,
                exit_code,
            };
            if let Some(code) = dir.exit_code() {
                return Found::Ended(container(0, code));
            }
            match dir.pid() {
                None => Found::Prepared,
                // A keeper that is gone without a word took its task with it.
                Some(_) if !dir.has_keeper() => match dir.exit_code() {
                    Some(code) => Found::Ended(container(0, code)),
                    None => Found::Ended(container(0, KILLED)),
                },
                Some(process) => Found::Running(started(&dir, i64::from(process.pid), job.port)),
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
            Exit {
                code: dir.exit_code().unwrap_or(KILLED),
            }
        })
    }

    fn health<'a>(&'a self, assignment: &'a Assignment, before: HealthState) -> Later<'a, HealthState> {
        let dir = self.dir(&assignment.task.id);
        Box::pin(health::changed(dir, assignment, before))
    }

    fn signal<'a>(&'a self, task: &'a Id, signal: &'a str) -> Later<'a, ()> {
        Box::pin(async move {
            let dir = self.dir(task);
            let number = job::signal(signal).unwrap_or_else(|| {
                tracing::warn!(%task, signal, "no such signal, SIGTERM instead");
                rustix::process::Signal::TERM
            });
            if let Some(process) = dir.pid().filter(|process| process.is_alive()) {
                // An error says that it has just ended.
                let _ = rustix::process::kill_process(process.to_rustix(), number);
            }
        })
    }

    fn remove<'a>(&'a self, task: &'a Id) -> Later<'a, ()> {
        Box::pin(async move {
            let dir = self.dir(task);
            if dir.pid().is_some() && dir.has_keeper() {
                self.signal(task, "SIGKILL").await;
                drop(tokio::time::timeout(KEEPER_PATIENCE, self.ended(task)).await);
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

const PORTS_REMEMBERED: usize = 10_000;
const KEEPER_PATIENCE: Duration = Duration::from_secs(10);
const LOG_BYTES_MAX: u64 = 10 << 20;
const LOG_FILES: u32 = 3;
/// As of a program that SIGKILL ended.
const KILLED: i64 = 137;
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
