//! One task on its way: prepared, started, healthy, running, stopped, removed, as its manager wishes and its program does.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use super::runtime::{Failure, Found, HealthState, Started};
use super::{Agent, Assignment};
use crate::model::swarm::{Container, Exit, Id, TaskState, TaskStatus, Time, stop_grace};

/// Drives a task until it has ended and nobody wants anything of it any more.
pub(super) async fn drive(
    agent: Arc<Agent>,
    first: Arc<Assignment>,
    wishes: watch::Receiver<Option<Arc<Assignment>>>,
    has_begun: watch::Sender<bool>,
) {
    let mut driven = Driven {
        id: first.task.id.clone(),
        state: first.task.status.state,
        container: first.task.status.container.clone(),
        latest: first,
        agent,
        wishes,
        has_begun,
    };
    driven.live().await;
    driven.has_begun.send_replace(true);
    driven.agent.unpublish(&driven.id);
    driven.agent.networks.close(&driven.id);
    // Its output can be read as long as it is known.
    driven.forgotten().await;
    driven.agent.runtime.remove(&driven.id).await;
}

struct Driven {
    id: Id,
    agent: Arc<Agent>,
    /// What is wished; `None` when the task is not known any more.
    wishes: watch::Receiver<Option<Arc<Assignment>>>,
    has_begun: watch::Sender<bool>,
    /// The last assignment that there was.
    latest: Arc<Assignment>,
    /// What was reported last.
    state: TaskState,
    container: Option<Container>,
}

/// It is to end.
struct ToEnd;

impl Driven {
    fn report(&mut self, state: TaskState, message: &str, error: Option<String>) {
        if state < self.state {
            return;
        }
        self.state = state;
        let status = TaskStatus {
            at: Time::now(),
            state,
            message: message.to_owned(),
            error,
            unfit: Vec::new(),
            container: self.container.clone(),
            ran_at: None,
        };
        self.agent.reports.report(&self.id, status);
    }

    /// What is wished now: at least a state, or the end.
    fn desired(&mut self) -> TaskState {
        match self.wishes.borrow_and_update().clone() {
            Some(assignment) => {
                let desired = assignment.task.desired;
                self.latest = assignment;
                desired
            }
            None => TaskState::Remove,
        }
    }

    /// Ready when at least that much is wished.
    async fn wished(&mut self, least: TaskState) {
        loop {
            if self.desired() >= least {
                break;
            }
            if self.wishes.changed().await.is_err() {
                this_program_ends().await;
            }
        }
    }

    async fn forgotten(&mut self) {
        if self.wishes.wait_for(Option::is_none).await.is_err() {
            this_program_ends().await;
        }
    }

    async fn live(&mut self) {
        if self.state.is_terminal() {
            // Rejected where it was, perhaps, while its program still ran.
            return self.end_what_runs().await;
        }
        let Some(started) = self.find_or_start().await else {
            return;
        };
        self.container = Some(started.container.clone());
        self.has_begun.send_replace(true);
        self.watch(started).await;
    }

    async fn end_what_runs(&mut self) {
        if let Found::Running(_) = self.agent.runtime.find(&self.id).await {
            self.stop().await;
        }
    }

    /// `None`: it ended on the way, which is reported.
    async fn find_or_start(&mut self) -> Option<Started> {
        if self.desired() < TaskState::Shutdown {
            // Also where the runtime does not answer for a while.
            self.report(TaskState::Accepted, "accepted", None);
            self.report(TaskState::Preparing, "preparing", None);
        }
        match self.agent.runtime.find(&self.id).await {
            Found::Running(started) => {
                tracing::info!(task = %self.id, pid = started.container.pid, "found again");
                return Some(started);
            }
            Found::Ended(container, exit) => {
                self.container = Some(container);
                match self.desired() >= TaskState::Shutdown {
                    true => self.report_shutdown().await,
                    false => self.report_exit(exit, None),
                }
                return None;
            }
            // It had run, and nothing of it is there.
            Found::Nothing | Found::Prepared
                if self.state >= TaskState::Starting && self.desired() < TaskState::Shutdown =>
            {
                self.report(
                    TaskState::Failed,
                    "started",
                    Some("task: it is gone from its node".to_owned()),
                );
                return None;
            }
            Found::Nothing | Found::Prepared => {}
        }
        match self.start().await {
            Ok(started) => started,
            Err(ToEnd) => {
                self.agent.runtime.remove(&self.id).await;
                self.report(TaskState::Shutdown, "shutdown", None);
                None
            }
        }
    }

    async fn start(&mut self) -> Result<Option<Started>, ToEnd> {
        if self.desired() >= TaskState::Shutdown {
            return Err(ToEnd);
        }
        let (agent, assignment) = (self.agent.clone(), self.latest.clone());
        let prepared = tokio::select! {
            prepared = agent.runtime.prepare(&assignment) => prepared,
            () = self.wished(TaskState::Shutdown) => return Err(ToEnd),
        };
        if let Err(Failure(reason)) = prepared {
            self.report(TaskState::Rejected, "preparing", Some(reason));
            return Ok(None);
        }
        self.report(TaskState::Ready, "prepared", None);
        self.wished(TaskState::Running).await;
        if self.desired() >= TaskState::Shutdown {
            return Err(ToEnd);
        }
        self.report(TaskState::Starting, "starting", None);
        let assignment = self.latest.clone();
        match agent.runtime.start(&assignment).await {
            Ok(started) => Ok(Some(started)),
            Err(Failure(reason)) => {
                self.report(TaskState::Failed, "starting", Some(reason));
                Ok(None)
            }
        }
    }

    /// Its program runs: until it ends, gets unhealthy, or is to stop.
    async fn watch(&mut self, started: Started) {
        let agent = self.agent.clone();
        // One that served before goes on serving while nothing says otherwise.
        let mut health = match self.state {
            TaskState::Running => HealthState::Healthy,
            _ => HealthState::Starting,
        };
        if health == HealthState::Healthy {
            agent.publish(&self.id, started.reach.as_ref());
        }
        loop {
            let (id, assignment) = (self.id.clone(), self.latest.clone());
            tokio::select! {
                biased;
                exit = agent.runtime.ended(&id) => {
                    agent.unpublish(&id);
                    self.note_end(exit);
                    return match self.desired() >= TaskState::Shutdown {
                        true => self.report_shutdown().await,
                        false => self.report_exit(exit, None),
                    };
                }
                () = self.wished(TaskState::Shutdown) => {
                    self.leave().await;
                    self.stop().await;
                    return self.report_shutdown().await;
                }
                now = agent.runtime.health(&assignment, health) => {
                    health = now;
                    match now {
                        HealthState::Starting => {}
                        HealthState::Healthy => {
                            agent.publish(&id, started.reach.as_ref());
                            let note = started.note.map(|note| format!("started ({note})"));
                            self.report(TaskState::Running, note.as_deref().unwrap_or("started"), None);
                        }
                        HealthState::Unhealthy => {
                            self.leave().await;
                            let exit = self.stop().await;
                            return self.report_exit(exit, Some("dockerexec: unhealthy container"));
                        }
                    }
                }
            }
        }
    }

    fn note_end(&mut self, exit: Exit) {
        if let Some(container) = &mut self.container {
            container.pid = 0;
            container.exit_code = exit.code;
        }
    }

    /// Nothing new is given to it, and what was given is answered.
    async fn leave(&mut self) {
        self.agent.unpublish(&self.id);
        self.agent.barrier.leave(&self.id).await;
    }

    /// The stop signal, the whole grace period, and then the end by force.
    async fn stop(&mut self) -> Exit {
        let (agent, assignment) = (self.agent.clone(), self.latest.clone());
        let id = self.id.clone();
        agent.runtime.stop(&assignment).await;
        let mut ended = agent.runtime.ended(&id);
        let exit = match tokio::time::timeout(stop_grace(&assignment.task.spec), &mut ended).await {
            Ok(exit) => exit,
            Err(_) => loop {
                agent.runtime.kill(&id).await;
                match tokio::time::timeout(KILL_AGAIN, &mut ended).await {
                    Ok(exit) => break exit,
                    Err(_) => tracing::error!(task = %id, "it does not end by force"),
                }
            },
        };
        self.note_end(exit);
        exit
    }

    /// Nothing is left of it by then if it was to be removed.
    async fn report_shutdown(&mut self) {
        if self.desired() >= TaskState::Remove {
            self.agent.runtime.remove(&self.id).await;
        }
        self.report(TaskState::Shutdown, "shutdown", None);
    }

    fn out_of_memory(&self) -> String {
        let resources = self.latest.task.spec.resources.as_ref();
        let limits = resources.and_then(|resources| resources.limits.as_ref());
        match limits.and_then(|limits| limits.memory_bytes).filter(|most| *most > 0) {
            Some(most) => format!("out of memory: its limit is {most} bytes"),
            None => "out of memory".to_owned(),
        }
    }

    /// Who ends well has completed, also when it was stopped for its health: Docker says no more of it.
    fn report_exit(&mut self, exit: Exit, why: Option<&str>) {
        if exit.code == 0 {
            return self.report(TaskState::Complete, "finished", None);
        }
        let doing = match self.state {
            TaskState::Starting => "starting",
            _ => "started",
        };
        let memory = exit.is_out_of_memory.then(|| self.out_of_memory());
        let why: String = memory
            .as_deref()
            .into_iter()
            .chain(why)
            .map(|why| format!(": {why}"))
            .collect();
        self.report(
            TaskState::Failed,
            doing,
            Some(format!("task: non-zero exit ({}){why}", exit.code)),
        );
    }
}

/// The next run goes on where this one was: nothing may be done to a task any more.
async fn this_program_ends() {
    std::future::pending().await
}

const KILL_AGAIN: Duration = Duration::from_secs(10);
