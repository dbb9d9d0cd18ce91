//! Doing something inside a network namespace: one thread goes in, does what waits for that namespace, and comes back. What
//! is opened there (a socket of any kind) stays there, and is used from anywhere. Not here: what is opened.
//!
//! A visit costs six system calls (open, ioctl, statx, setns, close, setns) besides what is done, however many wait for the
//! same namespace. No other thread of the program ever leaves its own namespace. A second thread only looks after
//! the first: it starts another when that one cannot come back or stays away too long.

use std::collections::{HashSet, VecDeque};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tokio::sync::oneshot;

use super::netns::{Netns, NetnsError, NetnsId};
use super::sk_lookup;

/// The names of those capabilities, of the ones that it takes to serve inside namespaces, that this thread does not have.
pub fn missing_capabilities() -> Vec<&'static str> {
    let may_enter = rustix::thread::capabilities(None)
        .is_ok_and(|sets| sets.effective.contains(rustix::thread::CapabilitySet::SYS_ADMIN));
    let mut missing = sk_lookup::missing_capabilities();
    if !may_enter {
        missing.push("CAP_SYS_ADMIN");
    }
    missing
}

/// The way into network namespaces. Clones share the thread, which ends with the last of them.
#[derive(Debug, Clone)]
pub struct Entrances {
    handle: Arc<Handle>,
}

/// Why nothing was done in a namespace, or why it is not known what was.
#[derive(Debug, thiserror::Error)]
pub enum EnterError {
    #[error(transparent)]
    Netns(#[from] NetnsError),
    #[error("enter the network namespace {netns}")]
    Enter {
        netns: String,
        #[source]
        err: io::Error,
    },
    /// An earlier visit to that namespace has not come back.
    #[error("the network namespace {netns}: an earlier visit has not come back")]
    Stuck { netns: String },
    /// It may be done yet.
    #[error("the network namespace {netns}: no answer within {waited:?}")]
    TimedOut { netns: String, waited: Duration },
    /// What was to be done panicked, or the last handle went.
    #[error("the network namespace {netns}: nobody answers")]
    Lost { netns: String },
}

impl Entrances {
    /// Those of this program, opened when they are first asked for. Errors: as `open`.
    pub fn shared() -> io::Result<Entrances> {
        static SHARED: Mutex<Option<Entrances>> = Mutex::new(None);
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(entrances) = &*shared {
            return Ok(entrances.clone());
        }
        let entrances = Entrances::open(PATIENCE)?;
        *shared = Some(entrances.clone());
        Ok(entrances)
    }

    /// Starts the threads. `patience`: how long a visit may take before others are served by another thread.
    /// Errors: no thread can be started; /proc cannot be read.
    pub fn open(patience: Duration) -> io::Result<Entrances> {
        let home: OwnedFd = File::open("/proc/thread-self/ns/net")?.into();
        let shared = Arc::new(Shared {
            home,
            patience,
            state: Mutex::default(),
            asked: Condvar::new(),
            away: Condvar::new(),
        });
        let kept = Arc::clone(&shared);
        std::thread::Builder::new()
            .name("netns-keeper".to_owned())
            .spawn(move || kept.keep())?;
        Ok(Entrances {
            handle: Arc::new(Handle { shared }),
        })
    }

    /// Does `act` inside `netns` and gives its answer. `act` had better not wait, nor start threads, which would stay inside.
    /// When the caller goes away `act` is done all the same, and what it made is dropped.
    ///
    /// Errors: the namespace is gone or may not be entered; no answer comes in four times the patience.
    pub async fn run<T: Send + 'static>(
        &self,
        netns: &Netns,
        act: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, EnterError> {
        let (answer, answered) = oneshot::channel();
        self.handle.shared.ask(Request {
            netns: netns.clone(),
            act: Box::new(move |entered| {
                // An error says that nobody waits any more.
                let _ = answer.send(entered.map(|()| act()));
            }),
        });
        let waited = self.handle.shared.patience * 4;
        match tokio::time::timeout(waited, answered).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(EnterError::Lost { netns: shown(netns) }),
            Err(_) => Err(EnterError::TimedOut {
                netns: shown(netns),
                waited,
            }),
        }
    }
}

/// Ends the threads when the last of the clones goes.
#[derive(Debug)]
struct Handle {
    shared: Arc<Shared>,
}

impl Drop for Handle {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.is_closed = true;
        state.waiting.clear();
        self.shared.asked.notify_all();
        self.shared.away.notify_all();
    }
}

#[derive(Debug)]
struct Shared {
    home: OwnedFd,
    patience: Duration,
    state: Mutex<State>,
    /// The thread that serves waits here.
    asked: Condvar,
    /// The one that stays at home waits here.
    away: Condvar,
}

#[derive(Debug, Default)]
struct State {
    waiting: VecDeque<Request>,
    /// The number of the thread that serves; one of another number ends when it comes back.
    serving: u64,
    visit: Visit,
    /// The thread that stays at home has its eye on the clock: it looks again before the patience with any visit is over that
    /// begins from now on.
    is_watched: bool,
    /// Where threads went that were given up.
    stuck: HashSet<NetnsId>,
    is_closed: bool,
}

/// What the thread that serves is doing.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Visit {
    /// There is no such thread, or it is of no use any more.
    #[default]
    Lost,
    Home,
    Away {
        netns: NetnsId,
        since: Instant,
    },
}

struct Request {
    netns: Netns,
    act: Box<dyn FnOnce(Result<(), EnterError>) + Send>,
}

impl std::fmt::Debug for Request {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Request")
            .field("netns", &self.netns)
            .finish_non_exhaustive()
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // What panics under the lock is ours, and leaves the state whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ask(&self, request: Request) {
        let mut state = self.lock();
        if state.stuck.contains(&request.netns.id()) {
            drop(state);
            let netns = shown(&request.netns);
            (request.act)(Err(EnterError::Stuck { netns }));
            return;
        }
        state.waiting.push_back(request);
        self.asked.notify_one();
    }

    /// The thread that stays at home: has one thread serve, always.
    fn keep(self: &Arc<Shared>) {
        let mut state = self.lock();
        while !state.is_closed {
            let wait = match state.visit {
                Visit::Home => None,
                Visit::Lost => {
                    state.serving += 1;
                    state.visit = Visit::Home;
                    let (shared, number) = (Arc::clone(self), state.serving);
                    let started = std::thread::Builder::new()
                        .name("netns".to_owned())
                        .spawn(move || shared.serve(number));
                    match started {
                        Ok(_) => None,
                        Err(err) => {
                            tracing::warn!(%err, "no thread for network namespaces can be started");
                            state.visit = Visit::Lost;
                            Some(RETRY_START)
                        }
                    }
                }
                Visit::Away { netns, since } => {
                    let left = self.patience.saturating_sub(since.elapsed());
                    if left.is_zero() {
                        tracing::warn!(?netns, "a visit to a network namespace does not come back");
                        state.stuck.insert(netns);
                        state.visit = Visit::Lost;
                        self.refuse_stuck(&mut state, netns);
                        continue;
                    }
                    Some(left)
                }
            };
            state.is_watched = wait.is_some();
            state = match wait {
                None => self.away.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(wait) => {
                    let waited = self.away.wait_timeout(state, wait);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }

    /// Answers those that wait for a namespace that does not let go.
    fn refuse_stuck(&self, state: &mut State, stuck: NetnsId) {
        for request in take_for(&mut state.waiting, stuck) {
            let netns = shown(&request.netns);
            (request.act)(Err(EnterError::Stuck { netns }));
        }
    }

    /// The thread that goes in and comes back.
    fn serve(&self, number: u64) {
        let mut state = self.lock();
        loop {
            if state.is_closed || state.serving != number {
                return;
            }
            let Some(netns) = state.waiting.front().map(|first| first.netns.id()) else {
                state = self.asked.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            let requests = take_for(&mut state.waiting, netns);
            let since = Instant::now();
            state.visit = Visit::Away { netns, since };
            if !state.is_watched {
                self.away.notify_one();
            }
            drop(state);
            let result = visit(self.home.as_fd(), requests);
            state = self.lock();
            if state.serving != number || state.visit != (Visit::Away { netns, since }) {
                state.stuck.remove(&netns);
                return;
            }
            state.visit = match result {
                Ok(()) => Visit::Home,
                Err(err) => {
                    tracing::warn!(%err, "the way back from a network namespace is barred: another thread goes on");
                    Visit::Lost
                }
            };
            if state.visit == Visit::Lost {
                self.away.notify_one();
                return;
            }
        }
    }
}

/// Takes out, in their order, the requests for that namespace.
fn take_for(waiting: &mut VecDeque<Request>, netns: NetnsId) -> Vec<Request> {
    let (taken, left): (Vec<Request>, Vec<Request>) =
        waiting.drain(..).partition(|request| request.netns.id() == netns);
    waiting.extend(left);
    taken
}

/// Does what is asked for one namespace. Errors: the thread could not come back and is of no more use.
fn visit(home: BorrowedFd<'_>, requests: Vec<Request>) -> io::Result<()> {
    let mut is_away = false;
    for request in requests {
        if !is_away {
            // Each may know another path, and one of them may be gone.
            if let Err(error) = enter(&request.netns) {
                (request.act)(Err(error));
                continue;
            }
            is_away = true;
        }
        // Whoever waits for the answer of what panicked hears that there is none.
        let _ = catch_unwind(AssertUnwindSafe(|| (request.act)(Ok(()))));
    }
    match is_away {
        true => Ok(move_into_link_name_space(home, Some(LinkNameSpaceType::Network))?),
        false => Ok(()),
    }
}

fn enter(netns: &Netns) -> Result<(), EnterError> {
    let namespace = netns.open()?;
    move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).map_err(|err| EnterError::Enter {
        netns: shown(netns),
        err: err.into(),
    })
}

fn shown(netns: &Netns) -> String {
    netns.path().display().to_string()
}

/// A visit is a matter of microseconds.
const PATIENCE: Duration = Duration::from_secs(2);
const RETRY_START: Duration = Duration::from_millis(100);
