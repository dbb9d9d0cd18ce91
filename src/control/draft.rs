//! A plan in the making: each object at most once, as it was changed last.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::Plan;
use super::bounds::PORTION;
use crate::model::swarm::{
    AttachedContainer, Id, Key, Kind, Object, Service, Swarm, Task, TaskSpec, TaskState, Time, Write,
};
use crate::store::THIS_REVISION;

pub(super) struct Draft {
    now: Time,
    writes: BTreeMap<Key, Write>,
    wake_at: Option<Time>,
    is_cut: bool,
    complaints: Vec<String>,
    /// Of new tasks: one copy for all of a service.
    specs: BTreeMap<Id, Arc<TaskSpec>>,
}

impl Draft {
    pub(super) fn new(now: Time) -> Draft {
        Draft {
            now,
            writes: BTreeMap::new(),
            wake_at: None,
            is_cut: false,
            complaints: Vec::new(),
            specs: BTreeMap::new(),
        }
    }

    pub(super) fn into_plan(self) -> Plan {
        Plan {
            writes: self.writes.into_values().collect(),
            wake_at: self.wake_at,
            is_cut: self.is_cut,
            complaints: self.complaints,
        }
    }

    /// It holds as much as a plan may: whoever sees this leaves the rest to the next one.
    pub(super) fn is_full(&mut self) -> bool {
        let is_full = self.writes.len() >= PORTION;
        self.is_cut |= is_full;
        is_full
    }

    /// There is more to be done than this plan is to hold.
    pub(super) fn cut(&mut self) {
        self.is_cut = true;
    }

    pub(super) fn complain(&mut self, of: String) {
        self.complaints.push(of);
    }

    /// As it is declared, with what the swarm says of tasks in general.
    pub(super) fn task_spec(&mut self, service: &Service, swarm: Option<&Swarm>) -> Arc<TaskSpec> {
        let spec = self.specs.entry(service.id.clone());
        let made = || {
            let spec = service.task_spec();
            let log_driver = spec.log_driver.clone();
            Arc::new(TaskSpec {
                log_driver: log_driver.or_else(|| swarm.and_then(Swarm::log_driver)),
                ..spec
            })
        };
        spec.or_insert_with(made).clone()
    }

    pub(super) fn wake_at(&mut self, at: Time) {
        self.wake_at = Some(self.wake_at.map_or(at, |known| known.min(at)));
    }

    pub(super) fn put(&mut self, object: Object) {
        self.writes.insert(object.key(), Write::Put(object));
    }

    pub(super) fn remove(&mut self, key: Key) {
        self.writes.insert(key.clone(), Write::Remove(key));
    }

    pub(super) fn remove_task(&mut self, task: &Task) {
        self.remove(Key {
            kind: Kind::Task,
            id: task.id.clone(),
        });
    }

    /// Changes a task, as this draft has it by now. One that was removed stays removed; what is so already is not written.
    pub(super) fn change_task(&mut self, task: &Arc<Task>, change: impl FnOnce(&mut Task)) {
        let key = Key {
            kind: Kind::Task,
            id: task.id.clone(),
        };
        let mut next = match self.writes.get(&key) {
            Some(Write::Put(Object::Task(changed))) => Task::clone(changed),
            Some(_) => return,
            None => Task::clone(task),
        };
        change(&mut next);
        if next == **task && !self.writes.contains_key(&key) {
            return;
        }
        next.meta.version = THIS_REVISION;
        next.meta.updated_at = self.now;
        self.put(Object::Task(Arc::new(next)));
    }

    /// Wishes of a task only ever go forward.
    pub(super) fn wish(&mut self, task: &Arc<Task>, desired: TaskState) {
        if task.desired < desired {
            self.change_task(task, |task| task.desired = task.desired.max(desired));
        }
    }

    pub(super) fn change_container(
        &mut self,
        container: &Arc<AttachedContainer>,
        change: impl FnOnce(&mut AttachedContainer),
    ) {
        let mut next = AttachedContainer::clone(container);
        change(&mut next);
        if next == **container {
            return;
        }
        next.meta.updated_at = self.now;
        self.put(Object::Container(Arc::new(next)));
    }

    pub(super) fn change_service(&mut self, service: &Arc<Service>, change: impl FnOnce(&mut Service)) {
        let key = Key {
            kind: Kind::Service,
            id: service.id.clone(),
        };
        let mut next = match self.writes.get(&key) {
            Some(Write::Put(Object::Service(changed))) => Service::clone(changed),
            _ => Service::clone(service),
        };
        change(&mut next);
        if next == **service && !self.writes.contains_key(&key) {
            return;
        }
        next.meta.updated_at = self.now;
        self.put(Object::Service(Arc::new(next)));
    }
}
