//! Containers that are no tasks, on one network of the swarm each: what their users asked for, and what stands in the store
//! while they run. Not here: who makes their networks ready.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use super::{Id, Meta, TaskAddress};

/// On a container that is no task: what it is to have of the swarm, an `AttachSpec` in JSON. On what holds such a network too.
pub const ATTACHED_LABEL: &str = "anynode.attached";

/// What a container is to have of the swarm, for as long as it is there; with what its own network would have had, which
/// one that joins another's may not have itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttachSpec {
    /// Its own among all of these.
    pub id: Id,
    pub swarm: Id,
    pub network: Id,
    pub network_name: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub aliases: Vec<String>,
    /// `WHO:ALIAS` each, as its user said: it alone knows others on the network by these.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub links: Vec<String>,
    /// Asked for by its user.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<Ipv4Addr>,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub hostname: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub domainname: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dns: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dns_search: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dns_options: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub extra_hosts: Vec<String>,
    /// Of the network alone.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub sysctls: BTreeMap<String, String>,
    /// Said by `--expose`, which means nothing without `-P`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub exposed: Vec<String>,
}

impl AttachSpec {
    /// What the engine is told as the container's network.
    pub fn network_mode(&self) -> String {
        format!("container:{}", self.sandbox())
    }

    /// What holds the container's network is called so.
    pub fn sandbox(&self) -> String {
        format!("{}.network", self.id)
    }

    /// What a container is to have, by its network and its label. `None`: nothing; also of one whose image brought the label.
    pub fn read(network_mode: &str, label: Option<&str>) -> Option<AttachSpec> {
        let spec: AttachSpec = serde_json::from_str(label?).ok()?;
        (spec.network_mode() == network_mode).then_some(spec)
    }
}

/// A link (`WHO:ALIAS`, or `WHO`) as the alias and the name on the network that it stands for, in lower case. `None`: it is none.
pub fn link_names(link: &str) -> Option<(String, String)> {
    let (whom, alias) = link.rsplit_once(':').unwrap_or((link, link));
    let last = |name: &str| name.rsplit('/').next().unwrap_or_default().to_ascii_lowercase();
    let (whom, alias) = (last(whom), last(alias));
    let is_id = whom.len() == FULL_ID && whom.bytes().all(|byte| byte.is_ascii_hexdigit());
    let whom = if is_id { whom[..SHORT_ID].to_owned() } else { whom };
    (!whom.is_empty() && !alias.is_empty()).then_some((alias, whom))
}

/// A container that is no task while it is on a network of the swarm: while it runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttachedContainer {
    /// That of its `AttachSpec`.
    pub id: Id,
    pub meta: Meta,
    pub node: Id,
    pub network: Id,
    /// The engine's id.
    pub container: String,
    pub name: String,
    /// What it is called on the network.
    #[serde(default)]
    pub names: Vec<String>,
    /// Asked for by its user.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wanted: Option<Ipv4Addr>,
    /// Given by the allocator, and nobody else's until this object is gone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<TaskAddress>,
    /// Why there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// Of a container, as the engine has it; a container answers to its first letters on its networks.
const FULL_ID: usize = 64;
const SHORT_ID: usize = 12;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_names_for_names() {
        let id = "0123456789abcdef".repeat(4);
        let links = [
            "P_db_1:DB",
            "/p_db_1:/p_app_1/db_1",
            "web",
            &format!("{id}:by-id"),
            ":",
            "",
        ];
        let linked: Vec<_> = links.into_iter().filter_map(link_names).collect();
        let expected = [
            ("db", "p_db_1"),
            ("db_1", "p_db_1"),
            ("web", "web"),
            ("by-id", "0123456789ab"),
        ];
        assert_eq!(
            linked,
            expected.map(|(alias, whom)| (alias.to_owned(), whom.to_owned()))
        );
    }
}
