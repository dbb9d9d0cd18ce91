//! What the API needs of others: this machine, tasks' output, the engine's socket. `app` joins it.

use std::collections::BTreeMap;
use std::future::Future;
use std::net::IpAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;

use tokio::sync::broadcast;

use crate::model::EntryPointSpec;
use crate::model::exec::{ExecError, ExecSpec};
use crate::model::swarm::{Generic, Id, SwarmAuthority, Time, UnlockKey};
use crate::model::volume::{TaskMount, VolumeChange};
use crate::streams::{Exec, LogQuery, LogStream};

/// This machine, as a node of a swarm.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    pub hostname: String,
    /// As `uname -m` says.
    pub architecture: String,
    pub kernel: String,
    pub nano_cpus: i64,
    /// In bytes.
    pub memory: i64,
    pub generic: Generic,
    /// Its addresses other than loopback ones, the best first.
    pub addrs: Vec<IpAddr>,
}

/// What is answered later.
pub type Later<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// A swarm that may wait for its key. Until it has it, the API's store is empty, and takes nothing.
pub trait Lock: Send + Sync {
    fn is_locked(&self) -> bool;

    /// Ready once it is not.
    fn opened(&self) -> Later<'_, ()>;

    /// Opens the store. Errors: it is locked as before.
    fn unlock<'a>(&'a self, key: &'a UnlockKey) -> Later<'a, Result<(), UnlockError>>;

    /// Gives up the swarm, whose key nobody has: an empty store is open after it. Errors: why not.
    fn leave(&self) -> Later<'_, Result<(), String>>;
}

/// Why a swarm is still locked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UnlockError {
    WrongKey,
    Failed(String),
}

/// Nobody else does anything about a container until this is dropped.
pub type Turn = Box<dyn Send>;

/// Containers that are no tasks, on networks of the swarm.
pub trait Attaching: Send + Sync {
    /// Makes the network of a container ready, by the engine's id, which is about to be started while the turn is held. `None`:
    /// it is none of these. Errors: why it cannot be, for people.
    fn attach<'a>(&'a self, container: &'a str) -> Later<'a, Result<Option<Turn>, String>>;

    /// Ready when those that have ended are gone from the store, as far as that does not take long.
    fn look(&self) -> Later<'_, ()>;
}

/// A volume of this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    pub name: String,
    pub created_at: Time,
    pub labels: BTreeMap<String, String>,
    /// Where what it holds lies.
    pub mountpoint: PathBuf,
    /// The ids of the tasks that have it mounted, or may have it again.
    pub tasks: Vec<String>,
}

/// Why nothing became of a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VolumeError {
    NotFound,
    /// It is no name.
    Name(String),
    /// The ids of the tasks that have it.
    InUse(Vec<String>),
    /// Something is mounted there.
    Mounted(String),
    Failed(String),
}

/// The volumes of this node, where no engine has them.
pub trait Volumes: Send + Sync {
    /// By their names.
    fn list(&self) -> Later<'_, Result<Vec<Volume>, VolumeError>>;

    /// One that is there stays as it is.
    fn create<'a>(&'a self, name: &'a str, labels: BTreeMap<String, String>) -> Later<'a, Result<Volume, VolumeError>>;

    /// Ready when its name is free; what it holds goes by and by.
    fn remove<'a>(&'a self, name: &'a str) -> Later<'a, Result<(), VolumeError>>;

    /// How much it holds, in bytes.
    fn size<'a>(&'a self, name: &'a str) -> Later<'a, u64>;

    /// What becomes of them from now on, whoever sees to it; who does not keep up misses some.
    fn changes(&self) -> broadcast::Receiver<VolumeChange>;

    /// What a task of this node has mounted; nothing of one that is gone. Reads a file.
    fn mounts_of(&self, task: &Id) -> Vec<TaskMount>;
}

/// What the API needs of others.
pub trait Outside: Send + Sync {
    /// The output of a task of this node. Errors: why there is none.
    fn logs(&self, task: &Id, query: LogQuery) -> Result<LogStream, String>;

    /// Runs a program beside a task of this node that is a process.
    fn exec<'a>(&'a self, task: &'a Id, spec: ExecSpec) -> Later<'a, Result<Exec, ExecError>>;

    fn host(&self) -> Host;

    /// The addresses of an interface of this host; `None` where none has that name.
    fn interface(&self, name: &str) -> Option<Vec<IpAddr>>;

    /// A certificate authority that nobody else has. Errors: why there is none.
    fn new_authority(&self) -> Result<SwarmAuthority, String>;

    /// What is wrong with what a secret or config holds that is declared as a certificate: what was found and what was expected, and
    /// nothing of what it holds. `is_secret`: it may be a key.
    fn certificate_fault(&self, data: &[u8], is_secret: bool) -> Option<String>;

    /// Who holds a TCP port of this host, if it is not anynode.
    fn port_holder(&self, port: u16) -> Option<String>;

    /// The ports of nodes that services share.
    fn entry_points(&self) -> Vec<EntryPointSpec>;

    /// Whether Traefik's labels are read beside ours.
    fn reads_traefik(&self) -> bool {
        false
    }

    /// What is wrong with services' labels and ports, by service name.
    fn faults(&self) -> BTreeMap<String, Vec<String>>;

    /// The published ports that this node cannot listen on, each with why.
    fn ports_not_served(&self) -> BTreeMap<u16, String>;

    /// The socket of the engine beside this one.
    fn engine(&self) -> Option<PathBuf>;

    /// `None`: the swarm was open from the beginning, or there was none.
    fn lock(&self) -> Option<&dyn Lock> {
        None
    }

    /// `None`: an engine has them, if anybody.
    fn volumes(&self) -> Option<Arc<dyn Volumes>> {
        None
    }

    /// Who has containers that are no tasks be on networks of the swarm. `None`: this node may not, or has no engine.
    fn attaching(&self) -> Option<Arc<dyn Attaching>> {
        None
    }
}
