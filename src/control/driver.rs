//! Has the reconcilers plan whenever something changes or a time has come, and commits what they plan. On a thread of its
//! own: however much there is to plan, whoever asks this node something is answered meanwhile.
//!
//! Nothing here spins. A store that refuses is asked again after a pause, and said once; so is a plan that never comes to
//! rest, which would be a fault.

use std::collections::BTreeSet;
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::{Context, PLANNERS, Plan, Planner};
use crate::model::swarm::{Id, Time};
use crate::store::{CommitError, Store};

/// Drives the reconcilers on `store` until `shutdown`, or until the store is closed. `shared_ports`: as in `Context`.
pub async fn run(store: Arc<dyn Store>, shared_ports: BTreeSet<u16>, shutdown: impl Future<Output = ()>) {
    let (stop, stopped) = oneshot::channel::<()>();
    let (ends, mut ended) = oneshot::channel::<()>();
    let thread = std::thread::Builder::new().name("control".to_owned());
    let spawned = thread.spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
        match runtime {
            Ok(runtime) => runtime.block_on(async {
                let mut driver = Driver::new(&*store, PLANNERS);
                driver.shared_ports = shared_ports;
                tokio::select! {
                    () = driver.drive() => {}
                    // An error says that whoever waits is gone, which is as much of an end.
                    _ = stopped => {}
                }
            }),
            Err(error) => tracing::error!(%error, "the control plane cannot run"),
        }
        drop(ends);
    });
    if let Err(error) = spawned {
        tracing::error!(%error, "the control plane has no thread");
        return shutdown.await;
    }
    tokio::select! {
        () = shutdown => {
            drop(stop);
            // An error is how it ends.
            let _ = ended.await;
        }
        _ = &mut ended => tracing::error!("the control plane has ended"),
    }
}

struct Driver<'a> {
    store: &'a dyn Store,
    planners: &'a [(&'a str, Planner)],
    shared_ports: BTreeSet<u16>,
    /// What cannot be had, as it was said.
    complaints: BTreeSet<String>,
    /// How long is waited next when the store refuses, or the plans do not come to rest; `None` while all is well.
    pause: Option<Duration>,
}

/// What the driver waits for.
#[derive(Debug, PartialEq)]
enum Next {
    /// A change, or a time.
    Change(Option<Time>),
    /// For so long, whatever changes.
    Pause(Duration),
    End,
}

/// What all planners together wanted.
#[derive(Default)]
struct Round {
    is_at_rest: bool,
    is_cut: bool,
    wake_at: Option<Time>,
    complaints: BTreeSet<String>,
}

impl<'a> Driver<'a> {
    fn new(store: &'a dyn Store, planners: &'a [(&'a str, Planner)]) -> Driver<'a> {
        Driver {
            store,
            planners,
            shared_ports: BTreeSet::new(),
            complaints: BTreeSet::new(),
            pause: None,
        }
    }

    async fn drive(&mut self) {
        let mut changed = self.store.changed();
        loop {
            changed.mark_unchanged();
            match self.reconcile().await {
                Next::Change(wake_at) => {
                    let pause = wake_at.map_or(LOOK_AT_LEAST, |at| at.since(Time::now()).min(LOOK_AT_LEAST));
                    tokio::select! {
                        changed = changed.changed() => if changed.is_err() { break },
                        () = tokio::time::sleep(pause.max(LOOK_AT_MOST)) => {}
                    }
                }
                Next::Pause(pause) => tokio::time::sleep(pause).await,
                Next::End => break,
            }
        }
    }

    /// Plans and commits until nobody wants anything more.
    async fn reconcile(&mut self) -> Next {
        let started = Instant::now();
        let (mut n_rounds, mut n_portions) = (0, 0);
        while n_rounds < ROUNDS_MAX && n_portions < PORTIONS_MAX {
            let round = match self.round().await {
                Ok(round) => round,
                Err(CommitError::Closed) => return Next::End,
                Err(error) => return self.refused(&error),
            };
            if round.is_at_rest {
                self.rest(round.complaints);
                let took = started.elapsed();
                // Looking again where nothing is to be done is nothing to tell, however busy the machine is.
                if took > SLOW && n_rounds + n_portions > 0 {
                    tracing::debug!(?took, "reconciled slowly");
                }
                return Next::Change(round.wake_at);
            }
            match round.is_cut {
                true => n_portions += 1,
                false => n_rounds += 1,
            }
        }
        if self.pause.is_none() {
            tracing::error!("what is planned does not come to rest: it is planned with pauses from now on");
        }
        self.back_off(UNREST_LONGEST)
    }

    /// Each planner once, on what the one before it has made.
    async fn round(&self) -> Result<Round, CommitError> {
        let mut round = Round {
            is_at_rest: true,
            ..Round::default()
        };
        for (name, planner) in self.planners {
            let (plan, n_writes) = self.plan_and_commit(name, *planner).await?;
            round.is_at_rest &= n_writes == 0;
            round.is_cut |= plan.is_cut;
            round.wake_at = [round.wake_at, plan.wake_at].into_iter().flatten().min();
            round.complaints.extend(plan.complaints);
        }
        Ok(round)
    }

    /// What was planned besides its writes, and how many of those are written.
    async fn plan_and_commit(&self, name: &str, planner: Planner) -> Result<(Plan, usize), CommitError> {
        let mut n_conflicts = 0;
        loop {
            let base = self.store.snapshot();
            let mut plan = planner(&mut Context {
                snapshot: &base,
                now: Time::now(),
                shared_ports: &self.shared_ports,
                ids: &mut || Id::from_bits(fastrand::u128(..)),
            });
            let writes = std::mem::take(&mut plan.writes);
            let n_writes = writes.len();
            if n_writes == 0 {
                return Ok((plan, 0));
            }
            match self.store.commit(&base, writes).await {
                Ok(snapshot) => {
                    tracing::debug!(
                        planner = name,
                        writes = n_writes,
                        revision = snapshot.revision(),
                        "planned"
                    );
                    return Ok((plan, n_writes));
                }
                // Somebody else was faster, which cannot always be so.
                Err(CommitError::Conflict { .. }) if n_conflicts < CONFLICTS_MAX => n_conflicts += 1,
                Err(error) => return Err(error),
            }
        }
    }

    fn refused(&mut self, error: &CommitError) -> Next {
        // Of its files the store says so itself, once.
        if self.pause.is_none() && !matches!(error, CommitError::Io { .. }) {
            tracing::error!(%error, "what is planned cannot be written: it is tried again every second");
        }
        self.back_off(REFUSED_LONGEST)
    }

    /// Longer each time.
    fn back_off(&mut self, longest: Duration) -> Next {
        let pause = self.pause.map_or(PAUSE_FIRST, |pause| pause * 2).min(longest);
        self.pause = Some(pause);
        Next::Pause(pause)
    }

    fn rest(&mut self, complaints: BTreeSet<String>) {
        if self.pause.take().is_some() {
            tracing::info!("what is planned is written again");
        }
        for complaint in complaints.difference(&self.complaints) {
            tracing::warn!("{complaint}");
        }
        self.complaints = complaints;
    }
}

/// Clocks may be set.
const LOOK_AT_LEAST: Duration = Duration::from_secs(30);
/// A planner that is to be woken in the past would be a fault.
const LOOK_AT_MOST: Duration = Duration::from_millis(1);
const PAUSE_FIRST: Duration = Duration::from_millis(100);
/// A disk that has room again is noticed within a second.
const REFUSED_LONGEST: Duration = Duration::from_secs(1);
const UNREST_LONGEST: Duration = Duration::from_secs(30);
const SLOW: Duration = Duration::from_millis(50);
/// Each round moves something forward; that they never end would be a fault, and must not burn a core.
const ROUNDS_MAX: usize = 100;
/// A round that was cut short has written a portion, or many services have each their share of it: enough for all tasks that
/// there may be, several times.
const PORTIONS_MAX: usize = 2_000;
const CONFLICTS_MAX: usize = 100;

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

    use tokio::sync::watch;
    use tracing_subscriber::fmt::MakeWriter;

    use super::*;
    use crate::model::swarm::Write;
    use crate::store::{Later, Snapshot};

    /// In memory; refuses while it is told to.
    struct Memory {
        snapshot: Mutex<Arc<Snapshot>>,
        changed: watch::Sender<u64>,
        is_full: AtomicBool,
        n_asked: AtomicUsize,
    }

    impl Memory {
        fn new(snapshot: Snapshot) -> Memory {
            Memory {
                changed: watch::Sender::new(snapshot.revision()),
                snapshot: Mutex::new(Arc::new(snapshot)),
                is_full: AtomicBool::new(false),
                n_asked: AtomicUsize::new(0),
            }
        }
    }

    impl Store for Memory {
        fn snapshot(&self) -> Arc<Snapshot> {
            self.snapshot.lock().unwrap().clone()
        }

        fn changed(&self) -> watch::Receiver<u64> {
            self.changed.subscribe()
        }

        fn commit<'a>(
            &'a self,
            base: &'a Snapshot,
            writes: Vec<Write>,
        ) -> Later<'a, Result<Arc<Snapshot>, CommitError>> {
            self.n_asked.fetch_add(1, Ordering::Relaxed);
            Box::pin(async move {
                if self.is_full.load(Ordering::Relaxed) {
                    let reason = "No space left on device".to_owned();
                    return Err(CommitError::Io { reason });
                }
                let mut now = self.snapshot.lock().unwrap();
                let (next, _) = now.next(base, writes)?;
                *now = Arc::new(next);
                self.changed.send_replace(now.revision());
                Ok(now.clone())
            })
        }
    }

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl std::io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    impl<'a> MakeWriter<'a> for Lines {
        type Writer = Lines;

        fn make_writer(&'a self) -> Lines {
            self.clone()
        }
    }

    impl Lines {
        fn all(&self) -> Vec<String> {
            let bytes = self.0.lock().unwrap();
            String::from_utf8_lossy(&bytes).lines().map(str::to_owned).collect()
        }
    }

    /// Has a driver of these planners go on for as long as `of` takes, and returns what it logged.
    fn drive(store: &Memory, planners: &[(&str, Planner)], of: impl Future<Output = ()>) -> Lines {
        let lines = Lines::default();
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(tracing::Level::INFO)
            .with_writer(lines.clone())
            .finish();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .unwrap();
        tracing::subscriber::with_default(subscriber, || {
            runtime.block_on(async {
                let mut driver = Driver::new(store, planners);
                tokio::select! {
                    () = driver.drive() => panic!("it ends"),
                    () = of => {}
                }
            });
        });
        lines
    }

    async fn wait_for(is_so: impl Fn() -> bool) {
        let waiting = async {
            while !is_so() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), waiting).await.unwrap();
    }

    fn swarm_of_one_service() -> Snapshot {
        use super::super::testing::{World, replicated, spec};
        let mut world = World::new(1, 1);
        world.create(spec(replicated("web", "healthy", 3)));
        Snapshot::clone(&world.snapshot)
    }

    #[test]
    fn a_store_that_refuses_is_asked_again_with_pauses() {
        let store = Memory::new(swarm_of_one_service());
        store.is_full.store(true, Ordering::Relaxed);
        let started = Instant::now();
        let lines = drive(&store, PLANNERS, async {
            wait_for(|| store.n_asked.load(Ordering::Relaxed) >= 4).await;
            store.is_full.store(false, Ordering::Relaxed);
            wait_for(|| store.snapshot().tasks().count() == 3).await;
            let revision = store.snapshot().revision();
            tokio::time::sleep(Duration::from_millis(1)).await;
            assert!(store.snapshot().revision() >= revision);
        });
        assert!(started.elapsed() >= Duration::from_millis(700), "100, 200 and 400 ms");
        let lines = lines.all();
        // Of its files the store says so itself.
        assert!(
            !lines.iter().any(|line| line.contains("cannot be written")),
            "{lines:#?}"
        );
        assert!(lines.iter().any(|line| line.contains("written again")), "{lines:#?}");
    }

    /// Never content.
    fn restless(context: &mut Context<'_>) -> Plan {
        let mut swarm = crate::model::swarm::Swarm::clone(context.snapshot.swarm().unwrap());
        swarm.meta.updated_at = swarm.meta.updated_at + Duration::from_nanos(1);
        let mut plan = Plan::default();
        plan.writes
            .push(Write::Put(crate::model::swarm::Object::Swarm(Arc::new(swarm))));
        plan
    }

    #[test]
    fn plans_that_never_come_to_rest_are_no_spin() {
        let store = Memory::new(swarm_of_one_service());
        let started = Instant::now();
        let lines = drive(&store, &[("restless", restless)], async {
            wait_for(|| store.n_asked.load(Ordering::Relaxed) >= 4 * ROUNDS_MAX).await;
        });
        assert!(started.elapsed() >= Duration::from_millis(700), "100, 200 and 400 ms");
        let lines = lines.all();
        assert_eq!(lines.len(), 1, "{lines:#?}");
    }

    fn woken_in_the_past(_: &mut Context<'_>) -> Plan {
        N_LOOKS.fetch_add(1, Ordering::Relaxed);
        Plan {
            wake_at: Some(Time(1)),
            ..Plan::default()
        }
    }

    static N_LOOKS: AtomicUsize = AtomicUsize::new(0);

    #[test]
    fn a_planner_that_is_to_be_woken_in_the_past_is_no_spin() {
        let store = Memory::new(swarm_of_one_service());
        let started = Instant::now();
        drive(&store, &[("woken in the past", woken_in_the_past)], async {
            tokio::time::sleep(Duration::from_millis(100)).await;
        });
        let n_most = started.elapsed().as_millis() as usize + 2;
        assert!(N_LOOKS.load(Ordering::Relaxed) <= n_most);
    }

    /// Says the same of every state.
    fn wants_in_vain(_: &mut Context<'_>) -> Plan {
        Plan {
            complaints: vec!["the moon cannot be had".to_owned()],
            ..Plan::default()
        }
    }

    #[test]
    fn what_cannot_be_had_is_said_once() {
        let store = Memory::new(swarm_of_one_service());
        let planners: Vec<(&str, Planner)> = PLANNERS
            .iter()
            .copied()
            .chain([("in vain", wants_in_vain as Planner)])
            .collect();
        let lines = drive(&store, &planners, async {
            for n in 1..4 {
                wait_for(|| store.snapshot().tasks().filter(|task| task.node.is_some()).count() == 3 * n).await;
                let base = store.snapshot();
                let mut service = crate::model::swarm::Service::clone(base.services().next().unwrap());
                service.id = format!("more{n}").as_str().into();
                let mut spec = crate::model::swarm::ServiceSpec::clone(&service.spec);
                spec.name = Some(format!("more{n}"));
                service.spec = Arc::new(spec);
                let write = Write::Put(crate::model::swarm::Object::Service(Arc::new(service)));
                // The driver may have been faster.
                drop(store.commit(&base, vec![write]).await);
            }
        });
        assert_eq!(lines.all().len(), 1, "{:#?}", lines.all());
    }
}
