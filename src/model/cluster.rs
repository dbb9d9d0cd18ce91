//! A cluster as its managers see it, cut down to what routing needs: services, the tasks that may have traffic, and nodes.
//!
//! Every node holds the same `Cluster`: objects by key, each in the very bytes that a manager wrote, so that a node of
//! another version still has them whole and the digests still agree. Not here: who makes it (`source`), who carries it
//! (`link`), and what a node makes of it (`routing`).

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::sync::Arc;

use imbl::OrdMap;
use imbl::ordmap::DiffItem;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::Attachment;

/// A service of the cluster: what routing needs of its spec.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterService {
    pub id: String,
    pub name: String,
    /// Ports that every node answers (ingress mode), in the order of the spec.
    #[serde(default)]
    pub ports: Vec<ClusterPort>,
    /// Labels that begin with `anynode.`, as they were written.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Labels whose present value means nothing, with that value: `labels` has what they said before.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub refused: BTreeMap<String, String>,
    /// The stop grace period of its tasks, where it is set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_grace_ms: Option<u64>,
    /// The networks that its tasks are on, without the one that published ports are for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub networks: Vec<Attachment>,
    /// When it was declared first, since 1970: of several that ask for one rule the first has it. Only of those with routes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub made_at_ms: Option<u64>,
}

/// A published port in ingress mode.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterPort {
    /// `tcp`, `udp` or `sctp`.
    pub protocol: String,
    pub published: u16,
    pub target: u16,
}

/// A task that may have traffic: it runs, and is meant to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterTask {
    pub id: String,
    /// The service's id.
    pub service: String,
    /// The node's id.
    pub node: String,
    /// Zero for tasks of global services.
    pub slot: u64,
    /// Its address on each of its networks, by the network's id; empty where others give them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub addresses: BTreeMap<String, IpAddr>,
    /// What it alone is called by on its networks: its container's short id, its hostname. Empty where others answer names.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub names: Vec<String>,
}

/// A node of the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterNode {
    pub id: String,
    pub hostname: String,
    /// Where other nodes reach it; `None` while the managers do not know.
    pub addr: Option<IpAddr>,
    pub is_manager: bool,
    /// The managers hear from it.
    pub is_up: bool,
    /// `active`, `pause` or `drain`.
    pub availability: String,
    /// Labels that begin with `anynode.`, as they were written.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
}

/// One object of a cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClusterObject {
    Service(ClusterService),
    Task(ClusterTask),
    Node(ClusterNode),
    /// Of a kind, or with contents, that this version does not understand: kept and passed on, never used.
    Unknown,
}

impl ClusterObject {
    /// `None` for what is not understood.
    pub fn key(&self) -> Option<String> {
        match self {
            ClusterObject::Service(service) => Some(format!("service/{}", service.id)),
            ClusterObject::Task(task) => Some(format!("task/{}", task.id)),
            ClusterObject::Node(node) => Some(format!("node/{}", node.id)),
            ClusterObject::Unknown => None,
        }
    }

    fn to_json(&self) -> Option<String> {
        // Serializing plain structs with string keys into a string does not fail.
        match self {
            ClusterObject::Service(service) => serde_json::to_string(service).ok(),
            ClusterObject::Task(task) => serde_json::to_string(task).ok(),
            ClusterObject::Node(node) => serde_json::to_string(node).ok(),
            ClusterObject::Unknown => None,
        }
    }

    fn read(key: &str, json: &str) -> ClusterObject {
        let object = match key.split_once('/') {
            Some(("service", _)) => serde_json::from_str(json).map(ClusterObject::Service),
            Some(("task", _)) => serde_json::from_str(json).map(ClusterObject::Task),
            Some(("node", _)) => serde_json::from_str(json).map(ClusterObject::Node),
            _ => return ClusterObject::Unknown,
        };
        // An object under another's key would be found by nobody.
        object
            .ok()
            .filter(|object| object.key().as_deref() == Some(key))
            .unwrap_or(ClusterObject::Unknown)
    }
}

/// A digest over the contents of a cluster: equal where all objects are. Independent of the order in which they came.
#[derive(Clone, Copy, PartialEq, Eq, Default, Hash)]
pub struct ClusterDigest(u128);

impl ClusterDigest {
    fn of(key: &str, json: &str) -> ClusterDigest {
        let hash = Sha256::new()
            .chain_update(key)
            .chain_update([0])
            .chain_update(json)
            .finalize();
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&hash[..16]);
        ClusterDigest(u128::from_be_bytes(bytes))
    }

    /// Adds what is absent, takes away what is present.
    fn toggle(&mut self, other: ClusterDigest) {
        self.0 ^= other.0;
    }
}

impl fmt::Display for ClusterDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for ClusterDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for ClusterDigest {
    type Err = super::InvalidValue;

    fn from_str(text: &str) -> Result<ClusterDigest, super::InvalidValue> {
        match u128::from_str_radix(text, 16) {
            Ok(digest) if text.len() == 32 => Ok(ClusterDigest(digest)),
            _ => Err(super::InvalidValue::new(text, "32 hexadecimal digits")),
        }
    }
}

impl Serialize for ClusterDigest {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ClusterDigest {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<ClusterDigest, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

/// All objects at one moment. Clones share everything.
#[derive(Debug, Clone, Default)]
pub struct Cluster {
    revision: u64,
    entries: OrdMap<String, Arc<Entry>>,
    digest: ClusterDigest,
}

#[derive(Debug, PartialEq)]
struct Entry {
    json: String,
    object: ClusterObject,
    digest: ClusterDigest,
}

/// The step from one cluster to another, or all of one: what is sent, and what is kept on disk.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ClusterChange {
    /// Of the cluster that it leads to.
    pub revision: u64,
    /// It begins with an empty cluster, whatever there was.
    #[serde(default)]
    pub is_whole: bool,
    /// Key and JSON text of what is new or different.
    #[serde(default)]
    pub put: Vec<(String, String)>,
    #[serde(default)]
    pub remove: Vec<String>,
    /// Of the cluster that it leads to.
    pub digest: ClusterDigest,
}

/// A change does not lead to the cluster that its digest names: something was lost on the way.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("revision {revision}: the contents have digest {found}, expected {expected}")]
pub struct DigestMismatch {
    pub revision: u64,
    pub found: ClusterDigest,
    pub expected: ClusterDigest,
}

/// How one object differs between two clusters.
#[derive(Debug, Clone, Copy)]
pub struct ObjectDiff<'a> {
    pub key: &'a str,
    pub before: Option<&'a ClusterObject>,
    pub after: Option<&'a ClusterObject>,
}

impl Cluster {
    /// The raft index of the last commit seen; 0 before there is any.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    pub fn set_revision(&mut self, revision: u64) {
        self.revision = revision;
    }

    /// Over the contents, not the revision.
    pub fn digest(&self) -> ClusterDigest {
        self.digest
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Puts an object in its place. An object that is not understood is not put. O(log n).
    pub fn put(&mut self, object: ClusterObject) {
        if let (Some(key), Some(json)) = (object.key(), object.to_json()) {
            self.put_entry(key, json, object);
        }
    }

    fn put_entry(&mut self, key: String, json: String, object: ClusterObject) {
        if self.entries.get(&key).is_some_and(|entry| entry.json == json) {
            return;
        }
        let digest = ClusterDigest::of(&key, &json);
        self.remove(&key);
        self.digest.toggle(digest);
        self.entries.insert(key, Arc::new(Entry { json, object, digest }));
    }

    /// Removes the object with this key, such as `task/ID`, if there is one. O(log n).
    pub fn remove(&mut self, key: &str) {
        if let Some(entry) = self.entries.remove(key) {
            self.digest.toggle(entry.digest);
        }
    }

    pub fn get(&self, key: &str) -> Option<&ClusterObject> {
        self.entries.get(key).map(|entry| &entry.object)
    }

    pub fn service(&self, id: &str) -> Option<&ClusterService> {
        match self.get(&format!("service/{id}"))? {
            ClusterObject::Service(service) => Some(service),
            _ => None,
        }
    }

    pub fn task(&self, id: &str) -> Option<&ClusterTask> {
        match self.get(&format!("task/{id}"))? {
            ClusterObject::Task(task) => Some(task),
            _ => None,
        }
    }

    pub fn node(&self, id: &str) -> Option<&ClusterNode> {
        match self.get(&format!("node/{id}"))? {
            ClusterObject::Node(node) => Some(node),
            _ => None,
        }
    }

    /// With their keys, in the order of keys.
    pub fn objects(&self) -> impl Iterator<Item = (&str, &ClusterObject)> {
        self.entries.iter().map(|(key, entry)| (key.as_str(), &entry.object))
    }

    /// Those whose keys begin with a kind and a slash.
    fn of_kind(&self, kind: &str) -> impl Iterator<Item = &ClusterObject> {
        // What follows the slash.
        let range = format!("{kind}/")..format!("{kind}0");
        self.entries.range(range).map(|(_, entry)| &entry.object)
    }

    pub fn services(&self) -> impl Iterator<Item = &ClusterService> {
        self.of_kind("service").filter_map(|object| match object {
            ClusterObject::Service(service) => Some(service),
            _ => None,
        })
    }

    pub fn tasks(&self) -> impl Iterator<Item = &ClusterTask> {
        self.of_kind("task").filter_map(|object| match object {
            ClusterObject::Task(task) => Some(task),
            _ => None,
        })
    }

    pub fn nodes(&self) -> impl Iterator<Item = &ClusterNode> {
        self.of_kind("node").filter_map(|object| match object {
            ClusterObject::Node(node) => Some(node),
            _ => None,
        })
    }

    /// What differs, in the order of keys. Costs what differs, where one was made from the other.
    pub fn diff<'a>(before: &'a Cluster, after: &'a Cluster) -> impl Iterator<Item = ObjectDiff<'a>> {
        before.entries.diff(&after.entries).map(|item| match item {
            DiffItem::Add(key, entry) => ObjectDiff {
                key,
                before: None,
                after: Some(&entry.object),
            },
            DiffItem::Remove(key, entry) => ObjectDiff {
                key,
                before: Some(&entry.object),
                after: None,
            },
            DiffItem::Update { old, new } => ObjectDiff {
                key: new.0,
                before: Some(&old.1.object),
                after: Some(&new.1.object),
            },
        })
    }

    /// The step from `before` to this.
    pub fn change_from(&self, before: &Cluster) -> ClusterChange {
        let mut change = ClusterChange {
            revision: self.revision,
            digest: self.digest,
            ..ClusterChange::default()
        };
        for item in before.entries.diff(&self.entries) {
            match item {
                DiffItem::Add(key, entry) | DiffItem::Update { new: (key, entry), .. } => {
                    change.put.push((key.clone(), entry.json.clone()));
                }
                DiffItem::Remove(key, _) => change.remove.push(key.clone()),
            }
        }
        change
    }

    /// All of this, for whoever has nothing or something else.
    pub fn whole(&self) -> ClusterChange {
        ClusterChange {
            is_whole: true,
            ..self.change_from(&Cluster::default())
        }
    }

    /// The cluster after `change`. Errors: its digest is not what the change says; then nothing is to be believed but
    /// the whole.
    pub fn apply(&self, change: ClusterChange) -> Result<Cluster, DigestMismatch> {
        let mut after = match change.is_whole {
            // What stays keeps its place, so that a diff costs what differs.
            true => {
                let mut after = self.clone();
                let kept: std::collections::HashSet<&str> = change.put.iter().map(|(key, _)| key.as_str()).collect();
                let gone: Vec<&String> = self.entries.keys().filter(|key| !kept.contains(key.as_str())).collect();
                gone.into_iter().for_each(|key| after.remove(key));
                after
            }
            false => self.clone(),
        };
        for key in &change.remove {
            after.remove(key);
        }
        for (key, json) in change.put {
            let object = ClusterObject::read(&key, &json);
            after.put_entry(key, json, object);
        }
        after.revision = change.revision;
        match after.digest == change.digest {
            true => Ok(after),
            false => Err(DigestMismatch {
                revision: change.revision,
                found: after.digest,
                expected: change.digest,
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(id: &str, node: &str) -> ClusterObject {
        ClusterObject::Task(ClusterTask {
            id: id.to_owned(),
            service: "s".to_owned(),
            node: node.to_owned(),
            slot: 1,
            addresses: Default::default(),
            names: Vec::new(),
        })
    }

    #[test]
    fn the_digest_is_of_the_contents_and_not_of_the_way_there() {
        let (mut a, mut b) = (Cluster::default(), Cluster::default());
        ["1", "2", "3"].iter().for_each(|id| a.put(task(id, "n")));
        b.put(task("3", "other"));
        ["3", "4", "2", "1"].iter().for_each(|id| b.put(task(id, "n")));
        assert_ne!(a.digest(), b.digest());
        b.remove("task/4");
        assert_eq!(a.digest(), b.digest());
        assert_eq!(a.digest().to_string().parse(), Ok(a.digest()));
        ["1", "2", "3"].iter().for_each(|id| a.remove(&format!("task/{id}")));
        assert_eq!(a.digest(), ClusterDigest::default());
    }

    #[test]
    fn a_change_leads_from_one_to_the_other_and_a_lost_one_is_noticed() {
        let mut first = Cluster::default();
        ["1", "2"].iter().for_each(|id| first.put(task(id, "n")));
        let mut second = first.clone();
        second.set_revision(7);
        second.put(task("3", "n"));
        second.remove("task/1");
        let change = second.change_from(&first);
        assert_eq!((change.put.len(), change.remove.len()), (1, 1));
        let text = serde_json::to_string(&change).unwrap();
        let change: ClusterChange = serde_json::from_str(&text).unwrap();
        let applied = first.apply(change.clone()).unwrap();
        assert_eq!((applied.digest(), applied.revision()), (second.digest(), 7));
        assert!(applied.task("3").is_some() && applied.task("1").is_none());
        assert!(Cluster::default().apply(change).is_err());
        let mut stray = Cluster::default();
        stray.put(task("9", "n"));
        assert_eq!(stray.apply(second.whole()).unwrap().digest(), second.digest());
    }

    #[test]
    fn what_is_not_understood_is_kept_and_passed_on() {
        let mut change = ClusterChange::default();
        change.put.push(("gateway/1".to_owned(), "{\"a\":1}".to_owned()));
        change.put.push(("task/1".to_owned(), "{\"id\":\"other\"}".to_owned()));
        change.digest = {
            let mut digest = ClusterDigest::default();
            change
                .put
                .iter()
                .for_each(|(key, json)| digest.toggle(ClusterDigest::of(key, json)));
            digest
        };
        let cluster = Cluster::default().apply(change.clone()).unwrap();
        assert_eq!(cluster.get("gateway/1"), Some(&ClusterObject::Unknown));
        assert_eq!((cluster.len(), cluster.tasks().count()), (2, 0));
        assert_eq!(cluster.whole().put, change.put);
    }
}
