//! Endpoints by name: the addresses of hosts, asked for again when they are due. `book` (pure) says whose turn it is and what
//! becomes of an answer, `lookup` asks. Not here: which names there are, and what their addresses become (`source::file`).

mod book;
mod hosts;
mod lookup;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use futures_util::future::{AbortHandle, Abortable, Aborted, BoxFuture};
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};

use self::book::{Answer, Book, Say};
pub use self::book::{Failing, NameState};
pub use self::lookup::NamesConfig;
use self::lookup::Resolver;
use crate::model::{EndpointName, ServiceName};

/// The names whose addresses somebody needs, and what is known of them.
pub struct Names {
    known: Arc<NamesStatus>,
    resolver: Arc<Resolver>,
    asking: FuturesUnordered<Abortable<BoxFuture<'static, (EndpointName, Answer)>>>,
    /// To end each of them.
    asked: BTreeMap<EndpointName, AbortHandle>,
    /// How long one look-up may take.
    look_up_most: Duration,
    /// When they are to be judged anew though nothing of them has changed.
    judge_at: Instant,
}

/// What is known of names, for whoever shows it.
#[derive(Debug, Default)]
pub struct NamesStatus {
    /// std mutex: nothing awaits under it.
    book: Mutex<Book>,
}

impl NamesStatus {
    /// Every name that is needed, in order.
    pub fn snapshot(&self) -> Vec<NameState> {
        self.lock().states()
    }

    fn lock(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Names {
    /// Names that are nobody's yet. `recalled`: addresses of a run before, for names that are needed before `forget_recalled`.
    pub fn new(config: NamesConfig, recalled: BTreeMap<EndpointName, Vec<IpAddr>>) -> Names {
        let known = Arc::new(NamesStatus::default());
        known.lock().recall(recalled);
        let n_servers = u32::try_from(config.servers.len())
            .unwrap_or(u32::MAX)
            .max(SERVERS_LEAST);
        Names {
            look_up_most: LOOK_UP_LEAST.max(config.timeout.saturating_mul(n_servers).saturating_mul(2)),
            judge_at: Instant::now() + JUDGE_EVERY,
            known,
            resolver: Arc::new(Resolver::new(config)),
            asking: FuturesUnordered::new(),
            asked: BTreeMap::new(),
        }
    }

    pub fn status(&self) -> &Arc<NamesStatus> {
        &self.known
    }

    /// Says which names are needed, and by which services. Others are forgotten; new ones are asked for once `changed` is awaited.
    pub fn want(&mut self, wanted: BTreeMap<EndpointName, Vec<ServiceName>>) {
        // Who needs no answer any more takes no place among those that are asked for.
        self.asked.retain(|name, asking| {
            let is_wanted = wanted.contains_key(name);
            if !is_wanted {
                asking.abort();
            }
            is_wanted
        });
        self.known.lock().want(wanted, Instant::now());
    }

    pub fn forget_recalled(&mut self) {
        self.known.lock().recall(BTreeMap::new());
    }

    /// The addresses of every name that is needed and has any, each row in an order of its own.
    pub fn addresses(&self) -> BTreeMap<EndpointName, Vec<IpAddr>> {
        self.known.lock().addresses()
    }

    /// And of those that were recalled, whether they are needed or not.
    pub fn all_addresses(&self) -> BTreeMap<EndpointName, Vec<IpAddr>> {
        self.known.lock().all_addresses()
    }

    /// Says which addresses of names cannot be endpoints of which service, and why.
    pub fn leave_out(&mut self, left_out: BTreeMap<EndpointName, Vec<String>>) {
        let news = self.known.lock().leave_out(left_out);
        for (name, why) in news {
            tracing::warn!(%name, "an address of this name is left out: {why}");
        }
    }

    /// Asks for whatever is due, until addresses of a name are others than before, or what may be an endpoint could be: an address of this
    /// node is none, and those come and go. What was begun goes on with the next call, if this one is dropped.
    pub async fn changed(&mut self) {
        loop {
            let now = Instant::now();
            if now >= self.judge_at {
                self.judge_at = now + JUDGE_EVERY;
                if self.known.lock().has_any() {
                    return;
                }
            }
            let judge_at = self.judge_at;
            let look_up_most = self.look_up_most;
            let begun = self.known.lock().begin(Instant::now(), self.asking.len());
            for name in begun {
                let (resolver, name_asked) = (self.resolver.clone(), name.clone());
                let asking = async move {
                    let answer = tokio::time::timeout(look_up_most, resolver.look_up(&name)).await;
                    (name, answer.unwrap_or_else(|_| Answer::silence()))
                };
                let (handle, registration) = AbortHandle::new_pair();
                self.asked.insert(name_asked, handle);
                self.asking.push(Abortable::new(asking.boxed(), registration));
            }
            let next_due = self.known.lock().next_due(self.asking.len());
            let waiting = async {
                match next_due {
                    Some(due) => tokio::time::sleep_until(due.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                Some(answered) = self.asking.next(), if !self.asking.is_empty() => {
                    let mut has_changed = self.note(answered);
                    // Those who have come too are one change.
                    while let Some(Some(answered)) = self.asking.next().now_or_never() {
                        has_changed |= self.note(answered);
                    }
                    if has_changed {
                        return;
                    }
                }
                () = waiting => {}
                () = tokio::time::sleep_until(judge_at.into()) => {}
            }
        }
    }

    fn note(&mut self, answered: Result<(EndpointName, Answer), Aborted>) -> bool {
        let Ok((name, answer)) = answered else { return false };
        self.asked.remove(&name);
        let jitter = fastrand::f64();
        let news = self
            .known
            .lock()
            .note(&name, answer, Instant::now(), SystemTime::now(), jitter);
        match news.say {
            Some(Say::Fails { why, n_unsaid }) => {
                tracing::warn!(%name, n_unsaid, "the name of endpoints is not resolved, what was known of it stays: {why}");
            }
            Some(Say::Back) => tracing::info!(%name, "the name of endpoints is resolved again"),
            None => {}
        }
        if let Some(n) = news.say_cut {
            tracing::warn!(%name, addresses = n, "the name has more addresses than may be endpoints: the first {} are", book::ADDRESSES_MAX);
        }
        news.has_changed
    }
}

/// More than three servers take for all search domains, with the usual timeout. Beyond, it may be a disk that does not give the system's files.
const LOOK_UP_LEAST: Duration = Duration::from_secs(60);
const SERVERS_LEAST: u32 = 3;
const JUDGE_EVERY: Duration = Duration::from_secs(30);
