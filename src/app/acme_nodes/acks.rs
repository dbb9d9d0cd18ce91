//! Which nodes have put the challenges of this manager's order in place, by what they say in each `acme.wait`; and the wait for all of
//! them before an authority is asked to look.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{oneshot, watch};

use crate::admin::SwarmView;
use crate::model::first_of;
use crate::tls::Elsewhere;

/// What each node has said.
#[derive(Default)]
pub(super) struct Acks {
    /// std mutex: for a moment each.
    known: Mutex<Known>,
    changes: watch::Sender<u64>,
}

#[derive(Default)]
struct Known {
    nodes: BTreeMap<Arc<str>, Vec<Run>>,
    n_calls: u64,
    /// Nodes that were live and have never called while one waited for them.
    mute: BTreeSet<Arc<str>>,
    /// Nodes that call, and had an order fail by not having its challenge in place in time: no other order fails by them before they have
    /// one in place again.
    passed_over: BTreeSet<Arc<str>>,
    /// The number of the challenges that were waited for last.
    asked: Option<u64>,
}

/// A run of the program on a node.
struct Run {
    instance: u64,
    /// Of its last call.
    call: u64,
    /// That call waits for an answer.
    is_waiting: bool,
    /// When its last call came, or was answered.
    at: Instant,
    /// The number of the challenges that it has in place.
    has: Option<u64>,
    /// Gone with this: nobody is waited for by that call any more.
    _waits: oneshot::Sender<()>,
}

/// Who does not have a challenge in place.
#[derive(Debug, PartialEq, Eq)]
struct Missing {
    /// They call, and have not said so yet.
    late: Vec<Arc<str>>,
    /// They do not call.
    silent: Vec<Arc<str>>,
}

/// A call that waits; over when it is dropped.
pub(super) struct Held {
    acks: Arc<Acks>,
    node: Arc<str>,
    instance: u64,
    call: u64,
    is_answered: bool,
    over: oneshot::Receiver<()>,
}

impl Acks {
    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn changed(&self) {
        self.changes.send_modify(|n| *n += 1);
    }

    pub(super) fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// A node calls. `has`: the number of the challenges that it has in place. An earlier call of the same run is over by that, and
    /// where a node has too many runs the one that was silent for longest.
    pub(super) fn hold(self: &Arc<Acks>, node: &Arc<str>, instance: u64, has: Option<u64>, now: Instant) -> Held {
        let mut known = self.known();
        known.n_calls += 1;
        let call = known.n_calls;
        known.mute.remove(node);
        if has.is_some() && has == known.asked {
            known.passed_over.remove(node);
        }
        known.nodes.retain(|_, runs| {
            runs.retain(|run| run.is_waiting || run.is_there(now));
            !runs.is_empty()
        });
        let runs = known.nodes.entry(node.clone()).or_default();
        runs.retain(|run| run.instance != instance);
        if runs.len() >= RUNS_MOST {
            runs.remove(0);
        }
        let (waits, over) = oneshot::channel();
        runs.push(Run {
            instance,
            call,
            is_waiting: true,
            at: now,
            has,
            _waits: waits,
        });
        drop(known);
        self.changed();
        Held {
            acks: self.clone(),
            node: node.clone(),
            instance,
            call,
            is_answered: false,
            over,
        }
    }

    fn missing(&self, number: u64, live: &[Arc<str>], now: Instant) -> Missing {
        let known = self.known();
        let mut missing = Missing {
            late: Vec::new(),
            silent: Vec::new(),
        };
        for node in live {
            let runs = known.nodes.get(node).into_iter().flatten();
            let there: Vec<&Run> = runs.filter(|run| run.is_waiting || run.is_there(now)).collect();
            match there.iter().all(|run| run.has == Some(number)) {
                _ if there.is_empty() => missing.silent.push(node.clone()),
                true => {}
                false if known.passed_over.contains(node) => missing.silent.push(node.clone()),
                false => missing.late.push(node.clone()),
            }
        }
        missing
    }

    /// Those of `live` that do not call at all, or do and put nothing in place, as was found when they were waited for.
    pub(super) fn mute(&self, live: &[Arc<str>]) -> Vec<Arc<str>> {
        let known = self.known();
        let is_mute = |node: &&Arc<str>| known.mute.contains(*node) || known.passed_over.contains(*node);
        live.iter().filter(is_mute).cloned().collect()
    }

    fn pass_over(&self, late: &[Arc<str>], live: &[Arc<str>]) {
        let mut known = self.known();
        known.passed_over.retain(|node| live.contains(node));
        known.passed_over.extend(late.iter().cloned());
        drop(known);
        self.changed();
    }

    fn set_mute(&self, silent: &[Arc<str>], live: &[Arc<str>]) {
        let mut known = self.known();
        known.mute.retain(|node| live.contains(node));
        known.mute.extend(silent.iter().cloned());
        drop(known);
        self.changed();
    }
}

impl Run {
    /// One that was answered calls again in a moment.
    fn is_there(&self, now: Instant) -> bool {
        now.duration_since(self.at) < CALLS_AGAIN_WITHIN
    }
}

impl Held {
    /// Waits until another call of the same run has come, or too many runs have.
    pub(super) async fn over(&mut self) {
        // Nothing is ever sent.
        let _ = (&mut self.over).await;
    }

    pub(super) fn answered(mut self) {
        self.is_answered = true;
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut known = self.acks.known();
        let Some(runs) = known.nodes.get_mut(&self.node) else {
            return;
        };
        match self.is_answered {
            true => {
                let own = runs.iter_mut().find(|run| run.call == self.call);
                own.into_iter()
                    .for_each(|run| (run.is_waiting, run.at) = (false, Instant::now()));
            }
            // The connection ended: so has the run, or it calls anew.
            false => runs.retain(|run| (run.instance, run.call) != (self.instance, self.call)),
        }
        if runs.is_empty() {
            known.nodes.remove(&self.node);
        }
        drop(known);
        self.acks.changed();
    }
}

/// Holds an order until all live nodes answer its challenge.
pub(super) struct Gate {
    pub(super) acks: Arc<Acks>,
    pub(super) view: Arc<SwarmView>,
}

/// The nodes of the cluster that the link reaches, but for this one.
pub(super) fn live(view: &SwarmView) -> Vec<Arc<str>> {
    let cluster = view.link.cluster.borrow().clone();
    let table = view.peers.table();
    let up = table
        .into_iter()
        .filter(|(node, peer)| peer.is_up && cluster.node(node).is_some());
    up.map(|(node, _)| node).collect()
}

/// What a person calls a node.
pub(super) fn name_of(view: &SwarmView, node: &str) -> Arc<str> {
    let cluster = view.link.cluster.borrow().clone();
    match cluster.node(node).map(|node| node.hostname.as_str()) {
        Some(hostname) if !hostname.is_empty() => hostname.into(),
        _ => node.into(),
    }
}

impl Elsewhere for Gate {
    fn in_place(&self, number: u64) -> Pin<Box<dyn Future<Output = Result<(), String>> + Send>> {
        let (acks, view) = (self.acks.clone(), self.view.clone());
        Box::pin(async move {
            let peers = view.peers.subscribe();
            let late = wait(&acks, number, || live(&view), peers, PATIENCE).await;
            late.map_err(|late| {
                let names: Vec<String> = late.iter().map(|node| name_of(&view, node).to_string()).collect();
                let names = first_of(&names, NAMED_MOST, ", ");
                let within = PATIENCE.of_all.as_secs();
                format!("node {names} has not put the challenge in place within {within} s")
            })
        })
    }
}

/// How long an order waits for nodes.
#[derive(Clone, Copy)]
struct Patience {
    /// To say that they have it.
    of_all: Duration,
    /// To begin to call, for those that do not (an older version, or no `[acme]`).
    of_silent: Duration,
}

/// Waits until all of `live` have it in place, or do not call. Errors: who has not in time.
async fn wait(
    acks: &Acks,
    number: u64,
    live: impl Fn() -> Vec<Arc<str>>,
    mut peers: watch::Receiver<u64>,
    patience: Patience,
) -> Result<(), Vec<Arc<str>>> {
    let started = tokio::time::Instant::now();
    let mut changes = acks.changes();
    acks.known().asked = Some(number);
    loop {
        changes.mark_unchanged();
        peers.mark_unchanged();
        let live = live();
        let missing = acks.missing(number, &live, Instant::now());
        let mute = acks.mute(&live);
        let is_silence_over =
            started.elapsed() >= patience.of_silent || missing.silent.iter().all(|node| mute.contains(node));
        if missing.late.is_empty() && is_silence_over {
            if missing.silent != mute {
                acks.set_mute(&missing.silent, &live);
            }
            return Ok(());
        }
        if started.elapsed() >= patience.of_all {
            acks.pass_over(&missing.late, &live);
            return Err(missing.late);
        }
        tokio::select! {
            _ = changes.changed() => {}
            // An error means that the node ends.
            _ = peers.changed() => {}
            () = tokio::time::sleep(LOOK_AGAIN) => {}
        }
    }
}

/// Of one node: during an update two, and those that ended a moment ago.
const RUNS_MOST: usize = 4;
const CALLS_AGAIN_WITHIN: Duration = Duration::from_secs(10);
const PATIENCE: Patience = Patience {
    of_all: Duration::from_secs(20),
    of_silent: Duration::from_secs(10),
};
const LOOK_AGAIN: Duration = Duration::from_millis(500);
const NAMED_MOST: usize = 5;

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str) -> Arc<str> {
        name.into()
    }

    fn late(nodes: &[&str], silent: &[&str]) -> Missing {
        Missing {
            late: nodes.iter().map(|name| node(name)).collect(),
            silent: silent.iter().map(|name| node(name)).collect(),
        }
    }

    #[test]
    fn a_challenge_is_in_place_once_every_run_of_every_live_node_says_so() {
        let acks: Arc<Acks> = Arc::default();
        let start = Instant::now();
        let live = [node("a"), node("b")];
        let missing = || acks.missing(3, &live, start);
        assert_eq!(missing(), late(&[], &["a", "b"]));
        let is_over = |held: &mut Held| held.over.try_recv() == Err(oneshot::error::TryRecvError::Closed);
        let a = acks.hold(&live[0], 1, None, start);
        let mut b = acks.hold(&live[1], 1, Some(2), start);
        assert_eq!(missing(), late(&["a", "b"], &[]));
        a.answered();
        assert_eq!(missing(), late(&["a", "b"], &[]));
        let a = acks.hold(&live[0], 1, Some(3), start);
        assert_eq!(missing(), late(&["b"], &[]));
        // An update: another run of the same node.
        let second = acks.hold(&live[0], 2, Some(2), start);
        assert_eq!(missing(), late(&["a", "b"], &[]));
        drop(second);
        assert_eq!(missing(), late(&["b"], &[]));
        // A node that has gone meanwhile is not waited for.
        assert_eq!(acks.missing(3, &live[..1], start), late(&[], &[]));
        // A second call takes the first one's place, and is the one that counts.
        let mut again = acks.hold(&live[1], 1, Some(3), start);
        assert!(is_over(&mut b) && !is_over(&mut again));
        drop(b);
        assert_eq!(missing(), late(&[], &[]));
        drop((a, again));
        assert_eq!(missing(), late(&[], &["a", "b"]));
    }

    #[test]
    fn what_one_node_can_hold_is_bounded() {
        let acks: Arc<Acks> = Arc::default();
        let mut held: Vec<Held> = (0..100)
            .map(|i| acks.hold(&node("a"), i, Some(0), Instant::now()))
            .collect();
        let waiting = held.iter_mut().filter_map(|held| held.over.try_recv().err());
        assert_eq!(
            waiting
                .filter(|why| *why == oneshot::error::TryRecvError::Empty)
                .count(),
            RUNS_MOST
        );
        assert_eq!(acks.known().nodes[&node("a")].len(), RUNS_MOST);
        drop(held);
        assert!(acks.known().nodes.is_empty());
    }

    #[tokio::test]
    async fn a_node_fails_one_order_and_no_other_before_it_has_a_challenge_in_place_again() {
        let acks: Arc<Acks> = Arc::default();
        let (_peers, peers) = watch::channel(0);
        let live = || vec![node("a")];
        let patience = |of_all: u64| Patience {
            of_all: Duration::from_millis(of_all),
            of_silent: Duration::from_millis(10),
        };
        let held = acks.hold(&node("a"), 1, Some(0), Instant::now());
        let late = wait(&acks, 1, live, peers.clone(), patience(50)).await;
        assert_eq!(late, Err(live()));
        // However often it calls.
        let again = acks.hold(&node("a"), 1, Some(0), Instant::now());
        assert_eq!(wait(&acks, 2, live, peers.clone(), patience(600_000)).await, Ok(()));
        assert_eq!(acks.mute(&live()), live());
        let right = acks.hold(&node("a"), 1, Some(2), Instant::now());
        assert_eq!(acks.mute(&live()), Vec::<Arc<str>>::new());
        // From here on it is waited for.
        assert_eq!(wait(&acks, 3, live, peers, patience(50)).await, Err(live()));
        drop((held, again, right));
    }

    #[tokio::test]
    async fn who_does_not_say_so_in_time_is_named_and_who_never_calls_holds_up_nobody_for_long() {
        let acks: Arc<Acks> = Arc::default();
        let (_peers, peers) = watch::channel(0);
        let live = || vec![node("a"), node("old")];
        let patience = |of_all: u64, of_silent: u64| Patience {
            of_all: Duration::from_millis(of_all),
            of_silent: Duration::from_millis(of_silent),
        };
        let held = acks.hold(&node("a"), 1, Some(0), Instant::now());
        let late = wait(&acks, 1, live, peers.clone(), patience(50, 10)).await;
        assert_eq!(late, Err(vec![node("a")]));
        // It says so while it is waited for.
        let begun = Instant::now();
        let says = async {
            tokio::time::sleep(Duration::from_millis(20)).await;
            held.answered();
            acks.hold(&node("a"), 1, Some(1), Instant::now())
        };
        let long = patience(600_000, 100);
        let (waited, held) = tokio::join!(wait(&acks, 1, live, peers.clone(), long), says);
        assert_eq!(waited, Ok(()));
        assert!(begun.elapsed() >= long.of_silent);
        assert_eq!(acks.mute(&live()), [node("old")]);
        // It is known by now, until it calls.
        let never = patience(600_000, 600_000);
        assert_eq!(wait(&acks, 1, live, peers.clone(), never).await, Ok(()));
        let old = acks.hold(&node("old"), 9, Some(1), Instant::now());
        assert_eq!(acks.mute(&live()), Vec::<Arc<str>>::new());
        assert_eq!(wait(&acks, 1, live, peers, never).await, Ok(()));
        drop((held, old));
    }
}
