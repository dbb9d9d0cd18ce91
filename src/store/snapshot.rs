//! Everything at one revision: immutable, shared, and cheap to make the next one of.

use std::sync::Arc;

use imbl::ordmap::DiffItem;
use imbl::{OrdMap, OrdSet};

use super::{CommitError, THIS_REVISION};
use crate::model::swarm::{
    AttachedContainer, Id, Key, Kind, Network, Node, Object, Payload, Service, Swarm, Task, UnlockKey, Write,
};

/// An object and the revision that it was last written in.
#[derive(Debug)]
pub struct Stored<T> {
    pub revision: u64,
    pub object: Arc<T>,
}

impl<T> Clone for Stored<T> {
    fn clone(&self) -> Stored<T> {
        Stored {
            revision: self.revision,
            object: self.object.clone(),
        }
    }
}

/// An object's revision tells one writing of it from another.
impl<T> PartialEq for Stored<T> {
    fn eq(&self, other: &Stored<T>) -> bool {
        self.revision == other.revision
    }
}

/// All objects of one kind, by id.
pub type Objects<T> = OrdMap<Id, Stored<T>>;

/// All objects at one revision.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    revision: u64,
    swarm: Option<Stored<Swarm>>,
    nodes: Objects<Node>,
    networks: Objects<Network>,
    configs: Objects<Payload>,
    secrets: Objects<Payload>,
    services: Objects<Service>,
    tasks: Objects<Task>,
    containers: Objects<AttachedContainer>,
    /// By kind and lower-case name.
    names: OrdMap<(Kind, Box<str>), Id>,
    by_service: OrdMap<Id, OrdSet<Id>>,
    by_node: OrdMap<Id, OrdSet<Id>>,
}

impl Snapshot {
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// `None` before `swarm init`.
    pub fn swarm(&self) -> Option<&Arc<Swarm>> {
        self.swarm.as_ref().map(|stored| &stored.object)
    }

    /// What locks the store that this is of.
    pub fn unlock_key(&self) -> Option<&UnlockKey> {
        self.swarm()?.unlock_key.as_ref()
    }

    pub fn node(&self, id: &str) -> Option<&Arc<Node>> {
        self.nodes.get(id).map(|stored| &stored.object)
    }

    pub fn nodes(&self) -> impl Iterator<Item = &Arc<Node>> {
        self.nodes.values().map(|stored| &stored.object)
    }

    pub fn network(&self, id: &str) -> Option<&Arc<Network>> {
        self.networks.get(id).map(|stored| &stored.object)
    }

    pub fn networks(&self) -> impl Iterator<Item = &Arc<Network>> {
        self.networks.values().map(|stored| &stored.object)
    }

    pub fn config(&self, id: &str) -> Option<&Arc<Payload>> {
        self.configs.get(id).map(|stored| &stored.object)
    }

    pub fn configs(&self) -> impl Iterator<Item = &Arc<Payload>> {
        self.configs.values().map(|stored| &stored.object)
    }

    pub fn secret(&self, id: &str) -> Option<&Arc<Payload>> {
        self.secrets.get(id).map(|stored| &stored.object)
    }

    pub fn secrets(&self) -> impl Iterator<Item = &Arc<Payload>> {
        self.secrets.values().map(|stored| &stored.object)
    }

    pub fn service(&self, id: &str) -> Option<&Arc<Service>> {
        self.services.get(id).map(|stored| &stored.object)
    }

    pub fn services(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.services.values().map(|stored| &stored.object)
    }

    pub fn task(&self, id: &str) -> Option<&Arc<Task>> {
        self.tasks.get(id).map(|stored| &stored.object)
    }

    pub fn tasks(&self) -> impl Iterator<Item = &Arc<Task>> {
        self.tasks.values().map(|stored| &stored.object)
    }

    /// Containers that are no tasks, on networks of the swarm.
    pub fn container(&self, id: &str) -> Option<&Arc<AttachedContainer>> {
        self.containers.get(id).map(|stored| &stored.object)
    }

    pub fn containers(&self) -> impl Iterator<Item = &Arc<AttachedContainer>> {
        self.containers.values().map(|stored| &stored.object)
    }

    /// The tasks of a service, also of one that is gone.
    pub fn tasks_of_service(&self, service: &str) -> impl Iterator<Item = &Arc<Task>> {
        let ids = self.by_service.get(service).into_iter().flatten();
        ids.filter_map(|id| self.task(id.as_str()))
    }

    /// The services that have tasks, living or not, also services that are gone.
    pub fn services_with_tasks(&self) -> impl Iterator<Item = &Id> {
        self.by_service.keys()
    }

    pub fn tasks_of_node(&self, node: &str) -> impl Iterator<Item = &Arc<Task>> {
        let ids = self.by_node.get(node).into_iter().flatten();
        ids.filter_map(|id| self.task(id.as_str()))
    }

    /// Who has a name, whatever the case of its letters.
    pub fn named(&self, kind: Kind, name: &str) -> Option<&Id> {
        self.names.get(&(kind, name.to_lowercase().into()))
    }

    /// The service of exactly this name.
    pub fn service_named(&self, name: &str) -> Option<&Arc<Service>> {
        let service = self.service(self.named(Kind::Service, name)?.as_str())?;
        (service.name() == name).then_some(service)
    }

    /// Whether no secret and no config was written since `before`, of the same store. `false` may be wrong, `true` never is.
    pub fn has_payloads_of(&self, before: &Snapshot) -> bool {
        self.secrets.ptr_eq(&before.secrets) && self.configs.ptr_eq(&before.configs)
    }

    /// Tasks that differ from `before`: those of now, and the ids of those that are gone. Costs what differs.
    pub fn tasks_since<'a>(&'a self, before: &'a Snapshot) -> impl Iterator<Item = (&'a Id, Option<&'a Arc<Task>>)> {
        since(&self.tasks, &before.tasks)
    }

    /// Services that differ from `before`, likewise.
    pub fn services_since<'a>(
        &'a self,
        before: &'a Snapshot,
    ) -> impl Iterator<Item = (&'a Id, Option<&'a Arc<Service>>)> {
        since(&self.services, &before.services)
    }

    /// Containers that differ from `before`, likewise.
    pub fn containers_since<'a>(
        &'a self,
        before: &'a Snapshot,
    ) -> impl Iterator<Item = (&'a Id, Option<&'a Arc<AttachedContainer>>)> {
        since(&self.containers, &before.containers)
    }

    pub fn object(&self, key: &Key) -> Option<Object> {
        let id = key.id.as_str();
        Some(match key.kind {
            Kind::Swarm => Object::Swarm(self.swarm().filter(|swarm| swarm.id == key.id)?.clone()),
            Kind::Node => Object::Node(self.node(id)?.clone()),
            Kind::Network => Object::Network(self.network(id)?.clone()),
            Kind::Config => Object::Config(self.config(id)?.clone()),
            Kind::Secret => Object::Secret(self.secret(id)?.clone()),
            Kind::Service => Object::Service(self.service(id)?.clone()),
            Kind::Task => Object::Task(self.task(id)?.clone()),
            Kind::Container => Object::Container(self.container(id)?.clone()),
        })
    }

    /// When an object was last written; `None` if it is not there.
    pub fn revision_of(&self, key: &Key) -> Option<u64> {
        match key.kind {
            Kind::Swarm => self
                .swarm
                .as_ref()
                .filter(|stored| stored.object.id == key.id)
                .map(|stored| stored.revision),
            Kind::Node => self.nodes.get(&key.id).map(|stored| stored.revision),
            Kind::Network => self.networks.get(&key.id).map(|stored| stored.revision),
            Kind::Config => self.configs.get(&key.id).map(|stored| stored.revision),
            Kind::Secret => self.secrets.get(&key.id).map(|stored| stored.revision),
            Kind::Service => self.services.get(&key.id).map(|stored| stored.revision),
            Kind::Task => self.tasks.get(&key.id).map(|stored| stored.revision),
            Kind::Container => self.containers.get(&key.id).map(|stored| stored.revision),
        }
    }

    /// Everything.
    pub fn keys(&self) -> Vec<Key> {
        let key = |kind: Kind, id: &Id| Key { kind, id: id.clone() };
        let swarm = self.swarm().map(|swarm| key(Kind::Swarm, &swarm.id));
        let mut keys: Vec<Key> = swarm.into_iter().collect();
        keys.extend(self.nodes.keys().map(|id| key(Kind::Node, id)));
        keys.extend(self.networks.keys().map(|id| key(Kind::Network, id)));
        keys.extend(self.configs.keys().map(|id| key(Kind::Config, id)));
        keys.extend(self.secrets.keys().map(|id| key(Kind::Secret, id)));
        keys.extend(self.services.keys().map(|id| key(Kind::Service, id)));
        keys.extend(self.tasks.keys().map(|id| key(Kind::Task, id)));
        keys.extend(self.containers.keys().map(|id| key(Kind::Container, id)));
        keys
    }

    /// This snapshot with `writes` as the next revision, and the writes as they were made. For stores, and for whoever
    /// wants to know what would be.
    ///
    /// Errors: `Conflict`, `NameTaken`.
    pub fn next(&self, base: &Snapshot, writes: Vec<Write>) -> Result<(Snapshot, Vec<Write>), CommitError> {
        for write in &writes {
            let key = write.key();
            if self.revision_of(&key) != base.revision_of(&key) {
                return Err(CommitError::Conflict { key });
            }
        }
        let mut next = self.clone();
        next.revision += 1;
        let revision = next.revision;
        let mut made = Vec::with_capacity(writes.len());
        // A name that one gives up in this commit may be taken by another.
        for write in &writes {
            next.unindex(&write.key());
        }
        for write in writes {
            match write {
                Write::Remove(key) => {
                    next.remove(&key);
                    made.push(Write::Remove(key));
                }
                Write::Put(object) => {
                    let object = stamped(object, revision);
                    next.put(object.clone(), revision)?;
                    made.push(Write::Put(object));
                }
            }
        }
        Ok((next, made))
    }

    /// Puts an object as it was read back. Errors: `NameTaken`.
    pub(super) fn restore(&mut self, object: Object, revision: u64) -> Result<(), CommitError> {
        self.revision = self.revision.max(revision);
        self.put(object, revision)
    }

    pub(super) fn restore_revision(&mut self, revision: u64) {
        self.revision = self.revision.max(revision);
    }

    fn put(&mut self, object: Object, revision: u64) -> Result<(), CommitError> {
        let key = object.key();
        if let Some(name) = object.unique_name() {
            let taken = self
                .names
                .insert((key.kind, name.to_lowercase().into()), key.id.clone());
            if taken.is_some_and(|by| by != key.id) {
                let name = name.to_owned();
                return Err(CommitError::NameTaken { key, name });
            }
        }
        let id = key.id;
        match object {
            Object::Swarm(object) => self.swarm = Some(Stored { revision, object }),
            Object::Node(object) => drop(self.nodes.insert(id, Stored { revision, object })),
            Object::Network(object) => drop(self.networks.insert(id, Stored { revision, object })),
            Object::Config(object) => drop(self.configs.insert(id, Stored { revision, object })),
            Object::Secret(object) => drop(self.secrets.insert(id, Stored { revision, object })),
            Object::Service(object) => drop(self.services.insert(id, Stored { revision, object })),
            Object::Container(object) => drop(self.containers.insert(id, Stored { revision, object })),
            Object::Task(object) => {
                self.by_service
                    .entry(object.service.clone())
                    .or_default()
                    .insert(id.clone());
                if let Some(node) = &object.node {
                    self.by_node.entry(node.clone()).or_default().insert(id.clone());
                }
                self.tasks.insert(id, Stored { revision, object });
            }
        }
        Ok(())
    }

    /// Takes away what points at an object.
    fn unindex(&mut self, key: &Key) {
        let Some(object) = self.object(key) else { return };
        if let Some(name) = object.unique_name() {
            self.names.remove(&(key.kind, name.to_lowercase().into()));
        }
        if let Object::Task(task) = object {
            for (index, by) in [
                (&mut self.by_service, Some(&task.service)),
                (&mut self.by_node, task.node.as_ref()),
            ] {
                let Some(by) = by else { continue };
                let Some(ids) = index.get_mut(by) else { continue };
                ids.remove(&key.id);
                if ids.is_empty() {
                    index.remove(by);
                }
            }
        }
    }

    fn remove(&mut self, key: &Key) {
        let id = &key.id;
        match key.kind {
            Kind::Swarm => {
                if self.swarm().is_some_and(|swarm| swarm.id == *id) {
                    self.swarm = None;
                }
            }
            Kind::Node => drop(self.nodes.remove(id)),
            Kind::Network => drop(self.networks.remove(id)),
            Kind::Config => drop(self.configs.remove(id)),
            Kind::Secret => drop(self.secrets.remove(id)),
            Kind::Service => drop(self.services.remove(id)),
            Kind::Task => drop(self.tasks.remove(id)),
            Kind::Container => drop(self.containers.remove(id)),
        }
    }
}

fn since<'a, T>(now: &'a Objects<T>, before: &'a Objects<T>) -> impl Iterator<Item = (&'a Id, Option<&'a Arc<T>>)> {
    before.diff(now).map(|item| match item {
        DiffItem::Add(id, stored) | DiffItem::Update { new: (id, stored), .. } => (id, Some(&stored.object)),
        DiffItem::Remove(id, _) => (id, None),
    })
}

/// With `THIS_REVISION` filled in.
fn stamped(object: Object, revision: u64) -> Object {
    let is_open = |version: u64| version == THIS_REVISION;
    match object {
        Object::Swarm(mut swarm) if is_open(swarm.meta.version) => {
            Arc::make_mut(&mut swarm).meta.version = revision;
            Object::Swarm(swarm)
        }
        Object::Node(mut node) if is_open(node.meta.version) => {
            Arc::make_mut(&mut node).meta.version = revision;
            Object::Node(node)
        }
        Object::Network(mut network) if is_open(network.meta.version) => {
            Arc::make_mut(&mut network).meta.version = revision;
            Object::Network(network)
        }
        Object::Config(mut config) if is_open(config.meta.version) => {
            Arc::make_mut(&mut config).meta.version = revision;
            Object::Config(config)
        }
        Object::Secret(mut secret) if is_open(secret.meta.version) => {
            Arc::make_mut(&mut secret).meta.version = revision;
            Object::Secret(secret)
        }
        Object::Service(mut service) if is_open(service.meta.version) || is_open(service.spec_version) => {
            let inner = Arc::make_mut(&mut service);
            for version in [&mut inner.meta.version, &mut inner.spec_version] {
                if is_open(*version) {
                    *version = revision;
                }
            }
            Object::Service(service)
        }
        Object::Task(mut task) if is_open(task.meta.version) => {
            Arc::make_mut(&mut task).meta.version = revision;
            Object::Task(task)
        }
        Object::Container(mut container) if is_open(container.meta.version) => {
            Arc::make_mut(&mut container).meta.version = revision;
            Object::Container(container)
        }
        object => object,
    }
}
