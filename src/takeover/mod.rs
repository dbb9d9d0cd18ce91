//! Published ports that Docker holds are answered by us. Where Swarm's own ingress works, Docker's NAT rules send each
//! published port into its mesh, and dockerd keeps a socket on it that it never accepts from. So two features, each of
//! which may be missing alone:
//!
//! - *redirect*: a table of our own in nf_tables stands before Docker's rules, so that connections to a port of this node,
//!   from outside and from the node itself, stay on this node;
//! - *assign*: a BPF program at the network namespace picks our listening socket, though another is bound to the port.
//!
//! Everything goes with the process, also when it is killed. Several instances do not disturb each other: each has a table
//! and a program of its own, so that during a handover there is no moment without either. Not here: which ports there are,
//! and who listens (`proxy`).

mod need;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fmt;
use std::future::Future;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr as UnixAddr, UnixListener};
use std::str::FromStr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::io::unix::AsyncFd;
use tokio::sync::watch;

pub use self::need::{Holder, TakeoverNeed};
use self::need::{IsTranslated, decide};
use crate::sys::inet_diag::{self, InetDiag, Listener};
use crate::sys::iptables::legacy_dnat_ports;
use crate::sys::nft::{NftMonitor, NftReader, NftTable};
use crate::sys::sk_lookup::{SkLookup, missing_capabilities};

/// The key `takeover`: which ports are taken over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mode {
    /// Where Docker holds the port or may translate it.
    #[default]
    Auto,
    /// Every port is redirected, whatever the rules say.
    On,
    Off,
}

#[derive(Debug, Clone)]
pub struct TakeoverConfig {
    pub mode: Mode,
    /// The program whose listening sockets may be passed over, as the kernel keeps its name.
    pub program: String,
    /// The chain of the table `nat` in which that program names the ports it translates.
    pub chain: String,
    /// Let the kernel tie the table to this process, where it can. Without, as before Linux 5.12, `run` repairs.
    pub wants_owner: bool,
    /// How often `run` looks at its table when nothing was heard.
    pub check_every: Duration,
}

impl Default for TakeoverConfig {
    fn default() -> TakeoverConfig {
        TakeoverConfig {
            mode: Mode::Auto,
            program: "dockerd".to_owned(),
            chain: "DOCKER-INGRESS".to_owned(),
            wants_owner: true,
            check_every: Duration::from_secs(5),
        }
    }
}

impl FromStr for Mode {
    type Err = ();

    fn from_str(text: &str) -> Result<Mode, ()> {
        match text {
            "auto" => Ok(Mode::Auto),
            "on" => Ok(Mode::On),
            "off" => Ok(Mode::Off),
            _ => Err(()),
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Mode::Auto => "auto",
            Mode::On => "on",
            Mode::Off => "off",
        })
    }
}

#[derive(Debug, thiserror::Error)]
pub enum TakeoverError {
    #[error("look at listening sockets over netlink")]
    Listeners(#[source] io::Error),
    #[error("port {port} {need}")]
    Held { port: u16, need: TakeoverNeed },
    #[error("port {port} cannot be redirected: {reason}")]
    RedirectOff { port: u16, reason: String },
    #[error("port {port} cannot be assigned: {reason}")]
    AssignOff { port: u16, reason: String },
    #[error("redirect port {port} by table {table} of nf_tables")]
    Redirect {
        port: u16,
        table: String,
        #[source]
        error: io::Error,
    },
    #[error("assign port {port} to a listening socket")]
    Assign {
        port: u16,
        #[source]
        error: io::Error,
    },
}

/// Whether a feature works here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Feature {
    On,
    /// In words: what is missing.
    Off(String),
}

/// What is on and what was taken, for `admin`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TakeoverStatus {
    pub mode: Mode,
    pub redirect: Feature,
    pub assign: Feature,
    /// The table's name in nf_tables.
    pub table: Option<String>,
    /// The kernel ties the table to this process.
    pub is_owned: bool,
    pub redirected: BTreeSet<u16>,
    /// By port: whether a socket that listens is still assigned.
    pub assigned: BTreeMap<u16, bool>,
    /// How often somebody else had removed or changed the table.
    pub n_repairs: u64,
}

/// Takes ports over, in the network namespace of the thread that started it.
pub struct Takeover {
    config: TakeoverConfig,
    redirect: Feature,
    assign: Feature,
    sk_lookup: Option<SkLookup>,
    /// std mutex: nothing awaits under it; each holder asks the kernel a few questions at most.
    state: Mutex<State>,
    monitor: Mutex<Option<NftMonitor>>,
    /// Moves when the answer of `needs` may have.
    changes: watch::Sender<u64>,
    /// Says to other instances, as long as it lives, that our table is in use.
    _alive: Option<UnixListener>,
}

struct State {
    table: Option<NftTable>,
    reader: Option<NftReader>,
    diag: InetDiag,
    redirected: BTreeSet<u16>,
    assigned: BTreeSet<u16>,
    /// The ports that Docker's rules in nf_tables name, as of a generation of rules.
    translated: Option<(u32, BTreeSet<u16>)>,
    /// The same as `run` last saw it, those of iptables-legacy among them.
    told: Option<BTreeSet<u16>>,
    n_repairs: u64,
}

impl Takeover {
    /// Makes the table and attaches the program, with no port in either. What is missing turns one feature off, is said
    /// once in the log, and shows in `status`; a table that a dead instance left is removed.
    ///
    /// Errors: only where not even listening sockets can be looked at.
    pub fn start(config: TakeoverConfig) -> Result<Takeover, TakeoverError> {
        let diag = InetDiag::open().map_err(TakeoverError::Listeners)?;
        let id = format!("{:08x}", fastrand::u32(..));
        let mut takeover = Takeover {
            redirect: Feature::Off(format!("takeover = \"{}\"", Mode::Off)),
            assign: Feature::Off(format!("takeover = \"{}\"", Mode::Off)),
            sk_lookup: None,
            state: Mutex::new(State {
                table: None,
                reader: None,
                diag,
                redirected: BTreeSet::new(),
                assigned: BTreeSet::new(),
                translated: None,
                told: None,
                n_repairs: 0,
            }),
            monitor: Mutex::new(None),
            changes: watch::Sender::new(0),
            _alive: None,
            config,
        };
        if takeover.config.mode == Mode::Off {
            return Ok(takeover);
        }
        // Before the table: whoever sees the table must see that it is in use.
        takeover._alive = claim(&id).ok();
        let state = takeover.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        takeover.redirect = match NftTable::create(&format!("{TABLE_PREFIX}{id}"), takeover.config.wants_owner) {
            Ok(mut table) => {
                sweep(&mut table);
                state.table = Some(table);
                state.reader = NftReader::open().ok();
                takeover.monitor = Mutex::new(NftMonitor::open().ok());
                Feature::On
            }
            Err(error) => off("Docker's NAT rules stay before us", &["CAP_NET_ADMIN"], &error),
        };
        takeover.assign = match SkLookup::attach() {
            Ok(sk_lookup) => {
                takeover.sk_lookup = Some(sk_lookup);
                Feature::On
            }
            Err(error) => {
                let source = std::error::Error::source(&error).and_then(|source| source.downcast_ref::<io::Error>());
                let kind = source.map_or(io::ErrorKind::Other, io::Error::kind);
                let text = match source {
                    Some(source) => format!("{error}: {source}"),
                    None => error.to_string(),
                };
                off(
                    "ports that dockerd listens on stay its own",
                    &["CAP_NET_ADMIN", "CAP_BPF"],
                    &io::Error::new(kind, text),
                )
            }
        };
        Ok(takeover)
    }

    /// What this port takes to be answered by us. As `needs_of`.
    pub fn needs(&self, port: u16) -> TakeoverNeed {
        self.needs_of(&BTreeSet::from([port]))
            .remove(&port)
            .unwrap_or(TakeoverNeed::None)
    }

    /// What each of these ports takes to be answered by us, by one look for all of them. Sockets of this process count
    /// for nobody's. Where the kernel does not answer, as if nobody had the port: binding it will tell. To be asked in the
    /// network namespace that `start` was called in.
    pub fn needs_of(&self, ports: &BTreeSet<u16>) -> BTreeMap<u16, TakeoverNeed> {
        let mut state = self.lock();
        let one = ports.first().copied().filter(|_| ports.len() == 1);
        let listeners = state.diag.listeners(one).unwrap_or_else(|error| {
            tracing::warn!(%error, "look at listening sockets over netlink");
            Vec::new()
        });
        let holders = self.holders(
            listeners
                .iter()
                .filter(|listener| ports.contains(&listener.addr.port())),
        );
        let translated = self.translated(&mut state);
        ports
            .iter()
            .map(|port| {
                let is_translated = match &translated {
                    Ok(translated) if translated.contains(port) => IsTranslated::Yes,
                    Ok(_) => IsTranslated::No,
                    Err(_) if self.redirect == Feature::On => IsTranslated::Unknown,
                    // Nothing can be done about rules then, and `status` says so.
                    Err(_) => IsTranslated::No,
                };
                let holders = holders.get(port).map_or(&[][..], Vec::as_slice);
                (
                    *port,
                    decide(self.config.mode, is_translated, holders, &self.config.program),
                )
            })
            .collect()
    }

    /// Who listens on this port, this process left out. A socket whose process /proc does not show has no program.
    pub fn who_listens(&self, port: u16) -> Result<Vec<Holder>, TakeoverError> {
        let listeners = self
            .lock()
            .diag
            .listeners(Some(port))
            .map_err(TakeoverError::Listeners)?;
        Ok(self.holders(listeners.iter()).remove(&port).unwrap_or_default())
    }

    /// Connections to this port of this node stay on this node from here on, whatever rules stand behind. Those that were
    /// made before go on as they are. Doing it again changes nothing.
    ///
    /// Errors: `RedirectOff` where the feature is; the kernel's.
    pub fn redirect(&self, port: u16) -> Result<(), TakeoverError> {
        let mut state = self.lock();
        let State { table, redirected, .. } = &mut *state;
        let Some(table) = table else {
            return Err(TakeoverError::RedirectOff {
                port,
                reason: self.redirect.reason(),
            });
        };
        redirected.insert(port);
        let added = match table.add(&BTreeSet::from([port])) {
            // Somebody flushed it.
            Err(error) if error.kind() == io::ErrorKind::NotFound => table.replace(redirected),
            added => added,
        };
        added.map_err(|error| {
            redirected.remove(&port);
            TakeoverError::Redirect {
                port,
                table: table.name().to_owned(),
                error,
            }
        })
    }

    /// New connections to this port meet the rules that they met without us. Errors: the kernel's.
    pub fn unredirect(&self, port: u16) -> Result<(), TakeoverError> {
        let mut state = self.lock();
        let State { table, redirected, .. } = &mut *state;
        let Some(table) = table.as_mut().filter(|_| redirected.remove(&port)) else {
            return Ok(());
        };
        let removed = match table.remove(&BTreeSet::from([port])) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => table.replace(redirected),
            removed => removed,
        };
        removed.map_err(|error| TakeoverError::Redirect {
            port,
            table: table.name().to_owned(),
            error,
        })
    }

    /// New connections to this port, at any address of this node, go to these listening sockets, though
    /// another is bound to the port: the kernel spreads them over all that share one address (SO_REUSEPORT). What was
    /// assigned before is replaced without a gap. `sys::sk_lookup::listen_hidden` makes sockets that fit.
    ///
    /// `sockets`: of one group, or one of IPv4 and one of IPv6. A group lives and dies together: the last one given stands
    /// for it, and once that is closed the assignment is gone.
    /// Errors: `Held` when anybody but `program` has the port; `AssignOff` where the feature is; the kernel's.
    pub fn assign(&self, port: u16, sockets: &[BorrowedFd<'_>]) -> Result<(), TakeoverError> {
        let Some(sk_lookup) = &self.sk_lookup else {
            return Err(TakeoverError::AssignOff {
                port,
                reason: self.assign.reason(),
            });
        };
        let need = self.needs(port);
        if need.is_refused() {
            return Err(TakeoverError::Held { port, need });
        }
        for socket in sockets {
            sk_lookup
                .assign(port, *socket)
                .map_err(|error| TakeoverError::Assign { port, error })?;
        }
        self.lock().assigned.insert(port);
        Ok(())
    }

    /// New connections to this port go where they went without us. Whoever closes the sockets then had better accept for
    /// a moment still: a client in the middle of its handshake has been promised to them.
    pub fn unassign(&self, port: u16) -> Result<(), TakeoverError> {
        self.lock().assigned.remove(&port);
        match &self.sk_lookup {
            Some(sk_lookup) => match sk_lookup.unassign(port) {
                Ok(_) => Ok(()),
                Err(error) => Err(TakeoverError::Assign { port, error }),
            },
            None => Ok(()),
        }
    }

    pub fn status(&self) -> TakeoverStatus {
        let state = self.lock();
        let is_assigned = |port| self.sk_lookup.as_ref().is_some_and(|it| it.is_assigned(port));
        TakeoverStatus {
            mode: self.config.mode,
            redirect: self.redirect.clone(),
            assign: self.assign.clone(),
            table: state.table.as_ref().map(|table| table.name().to_owned()),
            is_owned: state.table.as_ref().is_some_and(NftTable::is_owned),
            redirected: state.redirected.clone(),
            assigned: state.assigned.iter().map(|port| (*port, is_assigned(*port))).collect(),
            n_repairs: state.n_repairs,
        }
    }

    /// Moves when Docker's rules changed, so that `needs` is to be asked again. Only while `run` does.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Keeps the table as it should be, and watches what Docker does, until `shutdown`. Within a tokio runtime.
    pub async fn run(self: Arc<Self>, shutdown: impl Future<Output = ()>) {
        let monitor = self.monitor.lock().unwrap_or_else(PoisonError::into_inner).take();
        // Without it, the slow look remains.
        let mut heard = monitor.and_then(|monitor| monitor.wait_for_changes().ok());
        tokio::pin!(shutdown);
        loop {
            self.check();
            tokio::select! {
                () = &mut shutdown => break,
                () = something_heard(&mut heard) => {}
                () = tokio::time::sleep(self.config.check_every) => {}
            }
        }
    }

    /// Looks at the table and repairs it; looks at Docker's rules.
    fn check(&self) {
        let mut state = self.lock();
        let State {
            table,
            redirected,
            n_repairs,
            ..
        } = &mut *state;
        if let Some(table) = table {
            match table.is_whole(redirected) {
                Ok(true) => {}
                Ok(false) => match table.replace(redirected) {
                    Ok(()) => {
                        *n_repairs += 1;
                        tracing::warn!(
                            table = table.name(),
                            "somebody removed our table of nf_tables: made it again"
                        );
                    }
                    Err(error) => tracing::warn!(table = table.name(), %error, "make our table of nf_tables again"),
                },
                // It changed while it was listed, which is heard of again.
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => tracing::warn!(table = table.name(), %error, "look at our table of nf_tables"),
            }
        }
        let now = match self.translated(&mut state) {
            Ok(ports) => ports,
            Err(_) if state.reader.is_none() => return,
            Err(error) => {
                tracing::warn!(%error, chain = self.config.chain, "read NAT rules");
                return;
            }
        };
        let is_changed = state.told.as_ref() != Some(&now);
        state.told = Some(now);
        drop(state);
        if is_changed {
            self.changes.send_modify(|n| *n += 1);
        }
    }

    /// The ports that Docker's rules name, whichever iptables wrote them. Errors: rules cannot be read.
    fn translated(&self, state: &mut State) -> io::Result<BTreeSet<u16>> {
        let State { reader, translated, .. } = state;
        let reader = reader.as_mut().ok_or(io::ErrorKind::PermissionDenied)?;
        let chain = &self.config.chain;
        let generation = reader.generation()?;
        let mut ports = match translated {
            Some((known, ports)) if *known == generation => ports.clone(),
            _ => {
                let ports = reader.dnat_ports(chain)?;
                *translated = Some((generation, ports.clone()));
                ports
            }
        };
        // These have no generation.
        ports.append(&mut legacy_dnat_ports(chain)?);
        Ok(ports)
    }

    /// Whose these sockets are, by port; our own left out.
    fn holders<'a>(&self, listeners: impl Iterator<Item = &'a Listener>) -> BTreeMap<u16, Vec<Holder>> {
        let listeners: Vec<&Listener> = listeners.collect();
        let mut by_port: BTreeMap<u16, Vec<Holder>> = BTreeMap::new();
        if listeners.is_empty() {
            return by_port;
        }
        let own = inet_diag::own_sockets().unwrap_or_default();
        let foreign = || listeners.iter().filter(|listener| !own.contains(&listener.inode));
        let inodes: HashSet<u32> = foreign().map(|listener| listener.inode).collect();
        let seen = match inodes.is_empty() {
            true => return by_port,
            false => inet_diag::holders(&inodes, &self.config.program),
        };
        for listener in foreign() {
            let holder = Holder {
                addr: listener.addr,
                program: seen.get(&listener.inode).cloned(),
            };
            by_port.entry(listener.addr.port()).or_default().push(holder);
        }
        by_port
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Feature {
    fn reason(&self) -> String {
        match self {
            Feature::On => String::new(),
            Feature::Off(reason) => reason.clone(),
        }
    }
}

/// Waits until somebody changed rules, and then until it is quiet for a moment: programs change many in a row.
async fn something_heard(heard: &mut Option<AsyncFd<NftMonitor>>) {
    let Some(monitor) = heard else {
        return std::future::pending().await;
    };
    loop {
        match monitor.readable_mut().await {
            Ok(mut ready) => {
                let drained = ready.get_inner_mut().drain();
                ready.clear_ready();
                match drained {
                    Ok(true) => break,
                    Ok(false) => {}
                    Err(error) => {
                        tracing::warn!(%error, "listen to changes of nf_tables");
                        *heard = None;
                        return;
                    }
                }
            }
            Err(error) => {
                tracing::warn!(%error, "listen to changes of nf_tables");
                *heard = None;
                return;
            }
        }
    }
    tokio::time::sleep(QUIET).await;
}

/// Removes tables that instances left behind which do not live any more, and which the kernel did not tie to them.
fn sweep(table: &mut NftTable) {
    let tables = match table.tables(TABLE_PREFIX) {
        Ok(tables) => tables,
        Err(error) => {
            tracing::warn!(%error, "list the tables of nf_tables");
            return;
        }
    };
    let own = table.name().to_owned();
    for left in tables.iter().filter(|left| left.name != own && !left.is_owned) {
        let Some(id) = left.name.strip_prefix(TABLE_PREFIX) else {
            continue;
        };
        // Whoever can have the name of an instance that lives.
        let Ok(_claimed) = claim(id) else {
            continue;
        };
        match table.delete(left) {
            Ok(()) => tracing::info!(
                table = left.name,
                "removed a table that a dead instance left in nf_tables"
            ),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => tracing::warn!(table = left.name, %error, "remove a table that a dead instance left"),
        }
    }
}

/// A name within the network namespace that only one process can have, and only as long as it lives.
fn claim(id: &str) -> io::Result<UnixListener> {
    UnixListener::bind_addr(&UnixAddr::from_abstract_name(format!("anynode/takeover/{id}"))?)
}

/// Says once that a feature is off, and why.
fn off(consequence: &str, needed: &[&str], error: &io::Error) -> Feature {
    let missing: Vec<&str> = missing_capabilities()
        .into_iter()
        .filter(|capability| needed.contains(capability))
        .collect();
    let reason = match error.kind() {
        io::ErrorKind::PermissionDenied if missing.is_empty() => {
            let has = needed.join(" and ");
            format!("{error}, though {has} are there: a seccomp profile or a user namespace forbids it")
        }
        io::ErrorKind::PermissionDenied => format!("missing: {}", missing.join(", ")),
        _ => format!("this kernel cannot: {error}"),
    };
    tracing::warn!(reason, "{consequence}");
    Feature::Off(reason)
}

/// Each instance's table has this and eight hexadecimal digits of its own.
const TABLE_PREFIX: &str = "anynode_";
const QUIET: Duration = Duration::from_millis(20);

/// The sockets of a listener as `assign` wants them.
pub fn borrow<S: AsFd>(sockets: &[S]) -> Vec<BorrowedFd<'_>> {
    sockets.iter().map(AsFd::as_fd).collect()
}
