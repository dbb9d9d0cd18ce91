//! Programs beside tasks, as they are remembered: so many and no more, each with what became of it. Not here: running them (`exec`).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Map, Value, json};
use tokio::sync::watch;

use super::detach::DetachKeys;
use super::local_events;
use crate::api::wire::{ApiError, Caller};
use crate::model::exec::ExecSpec;
use crate::model::swarm::{Id, Time};
use crate::streams::{Exec, ExecControl};

/// One of them.
pub(super) struct Made {
    pub(super) id: String,
    pub(super) task: Id,
    /// The id of the task's container.
    pub(super) container: String,
    pub(super) caller: Caller,
    pub(super) spec: ExecSpec,
    pub(super) detach_keys: DetachKeys,
    /// What events say of the task's container.
    pub(super) about: Map<String, Value>,
    pub(super) state: watch::Sender<State>,
}

pub(super) enum State {
    Made,
    Starting,
    Running { pid: i64, control: Arc<dyn ExecControl> },
    Ended { pid: i64, code: i64 },
}

impl Made {
    /// Whoever calls this starts it. Errors: somebody has.
    pub(super) fn begin(&self) -> Result<(), ApiError> {
        let begins = self.state.send_if_modified(|state| {
            let is_new = matches!(state, State::Made);
            if is_new {
                *state = State::Starting;
            }
            is_new
        });
        let id = &self.id;
        match &*self.state.borrow() {
            _ if begins => Ok(()),
            State::Ended { .. } => Err(ApiError::conflict(format!("Error: Exec command {id} has already run"))),
            _ => Err(ApiError::conflict(format!(
                "Error: Exec command {id} is already running"
            ))),
        }
    }

    /// How its program is told of its terminal. Errors: it does not run. One that is about to is waited for.
    pub(super) async fn control(&self) -> Result<Arc<dyn ExecControl>, ApiError> {
        let mut state = self.state.subscribe();
        let starts = state.wait_for(|state| !matches!(state, State::Starting));
        // An error says that others have waited long enough.
        drop(tokio::time::timeout(STARTS_WITHIN, starts).await);
        let id = &self.id;
        match &*self.state.borrow() {
            State::Running { control, .. } => Ok(control.clone()),
            State::Made | State::Starting => Err(ApiError::conflict(format!("exec {id} has not started"))),
            State::Ended { .. } => Err(ApiError::conflict(format!("exec {id} has ended"))),
        }
    }

    pub(super) fn runs(&self, exec: &Exec) {
        self.state.send_replace(State::Running {
            pid: exec.pid,
            control: exec.control.clone(),
        });
    }

    pub(super) fn ended(&self, code: i64) {
        self.state.send_modify(|state| {
            let pid = match state {
                State::Running { pid, .. } => *pid,
                _ => 0,
            };
            *state = State::Ended { pid, code };
        });
    }

    /// What happens with it, as an event of its container. `others`: what is said beside its id.
    pub(super) fn event<const N: usize>(&self, action: &str, others: [(&str, String); N], at: Time) -> Value {
        let mut about = self.about.clone();
        about.insert("execID".to_owned(), json!(self.id));
        about.extend(others.map(|(key, value)| (key.to_owned(), json!(value))));
        let action = match action {
            "exec_create" | "exec_start" => format!("{action}: {}", self.spec.words.join(" ")),
            action => action.to_owned(),
        };
        local_events::of_container(&self.container, &action, about, at)
    }

    /// It may be forgotten without harm to anything that runs.
    fn is_idle(&self) -> bool {
        matches!(*self.state.borrow(), State::Made | State::Ended { .. })
    }
}

/// All that are remembered, in the order in which they were made.
#[derive(Default)]
pub(super) struct Kept {
    next: u64,
    by_age: BTreeMap<u64, Arc<Made>>,
}

impl Kept {
    pub(super) fn get(&self, id: &str) -> Option<Arc<Made>> {
        self.by_age.values().find(|made| made.id == id).cloned()
    }

    /// One more; the oldest that do not run make room. Errors: all of its task run.
    pub(super) fn insert(&mut self, made: Made) -> Result<(), ApiError> {
        let of_task = |other: &Made| other.task == made.task;
        let n_of_task = self.by_age.values().filter(|other| of_task(other)).count();
        if n_of_task >= OF_TASK_MAX && !self.forget_of_most(of_task) {
            let container = &made.container;
            return Err(ApiError::conflict(format!(
                "container {container}: {OF_TASK_MAX} programs run beside it: expected one of them to end first"
            )));
        }
        if self.by_age.len() >= KEPT_MAX && !self.forget_of_most(|_| true) {
            return Err(ApiError::unavailable(format!(
                "{KEPT_MAX} programs run beside tasks: expected one of them to end first"
            )));
        }
        self.by_age.insert(self.next, Arc::new(made));
        self.next += 1;
        Ok(())
    }

    /// The oldest of whoever has most of those that do not run. `false`: there is none.
    fn forget_of_most(&mut self, is_wanted: impl Fn(&Made) -> bool) -> bool {
        let mut by_caller: BTreeMap<u32, usize> = BTreeMap::new();
        for idle in self.by_age.values().filter(|made| is_wanted(made) && made.is_idle()) {
            *by_caller.entry(idle.caller.0).or_default() += 1;
        }
        let most = by_caller.into_iter().max_by_key(|(_, n)| *n);
        most.is_some_and(|(caller, _)| self.forget_oldest(|made| is_wanted(made) && made.caller.0 == caller))
    }

    /// Of those that have ended, or else of those that were never started. `false`: there is none.
    fn forget_oldest(&mut self, is_wanted: impl Fn(&Made) -> bool) -> bool {
        let idle = |made: &Made| is_wanted(made) && made.is_idle();
        let has_ended = |made: &Made| matches!(*made.state.borrow(), State::Ended { .. });
        let mut oldest = self.by_age.iter().filter(|(_, made)| idle(made));
        let ended = oldest.clone().find(|(_, made)| has_ended(made));
        let Some(age) = ended.or_else(|| oldest.next()).map(|(age, _)| *age) else {
            return false;
        };
        self.by_age.remove(&age).is_some()
    }
}

const KEPT_MAX: usize = 512;
const OF_TASK_MAX: usize = 128;
const STARTS_WITHIN: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;

    fn made(id: usize, task: &str, caller: u32) -> Made {
        Made {
            id: id.to_string(),
            task: Id::from(task),
            container: task.to_owned(),
            caller: Caller(caller),
            spec: ExecSpec::default(),
            detach_keys: DetachKeys::default(),
            about: Map::new(),
            state: watch::Sender::new(State::Made),
        }
    }

    #[test]
    fn one_is_started_once() {
        let made = made(1, "a", 0);
        made.begin().unwrap();
        assert!(made.begin().unwrap_err().message.ends_with("is already running"));
        made.ended(3);
        assert!(made.begin().unwrap_err().message.ends_with("has already run"));
    }

    #[test]
    fn the_oldest_that_does_not_run_is_forgotten() {
        let mut kept = Kept::default();
        for id in 0..OF_TASK_MAX {
            kept.insert(made(id, "a", 0)).unwrap();
        }
        kept.get("0").unwrap().begin().unwrap();
        kept.get("2").unwrap().ended(0);
        kept.insert(made(1_000, "a", 0)).unwrap();
        assert!(
            kept.get("0").is_some() && kept.get("1").is_some() && kept.get("2").is_none(),
            "it had ended"
        );
        kept.insert(made(1_001, "a", 0)).unwrap();
        assert!(kept.get("0").is_some() && kept.get("1").is_none());
        kept.by_age.values().for_each(|made| drop(made.begin()));
        let error = kept.insert(made(1_002, "a", 0)).unwrap_err();
        assert!(
            error.message.contains("128 programs run beside it"),
            "{}",
            error.message
        );
        kept.insert(made(1_003, "b", 0)).unwrap();
    }

    #[test]
    fn who_has_most_makes_room() {
        let mut kept = Kept::default();
        kept.insert(made(0, "of-one", 1)).unwrap();
        for id in 1..KEPT_MAX + 500 {
            kept.insert(made(id, &format!("task{}", id % 100), 2)).unwrap();
        }
        assert_eq!(kept.by_age.len(), KEPT_MAX);
        assert!(kept.get("0").is_some() && kept.get("1").is_none());
        // At one task too.
        let mut kept = Kept::default();
        kept.insert(made(0, "a", 1)).unwrap();
        for id in 1..OF_TASK_MAX + 10 {
            kept.insert(made(id, "a", 2)).unwrap();
        }
        assert!(kept.get("0").is_some() && kept.get("1").is_none());
    }
}
