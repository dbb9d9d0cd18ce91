//! Where several nodes show the certificates that one of them orders: what each one of those who may order says that it has and what
//! failed there, what is to be taken of it, and whose turn it is. No clock, no file and no connection. Not here: how nodes ask one
//! another (`app`).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::due::{Failures, renew_at};
use super::kept;
use super::state::{Kept, State};
use crate::model::AcmeName;
use crate::tls::pair::Pair;

/// What a node that may order says of all names that its own table wants.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct List {
    /// By host.
    pub names: BTreeMap<String, Listed>,
    /// What failed at authorities, by what the configuration calls them.
    #[serde(default)]
    pub authorities: BTreeMap<String, Failures>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listed {
    /// What the configuration calls the authority.
    pub acme: String,
    /// The certificate that there is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<Version>,
    /// Of the authority that it is from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub directory: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failures: Option<Failures>,
    /// It is being ordered there.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_at_it: bool,
    /// Since when, in seconds since 1970 by the clock there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at_it_since: Option<i64>,
}

/// Which certificate it is. Of two the greater is the newer, on whichever node one looks.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Version {
    /// Seconds since 1970.
    pub ordered_at: i64,
    /// Of the certificate: SHA-256, in hexadecimal digits.
    pub fingerprint: String,
}

/// What is known of other nodes.
#[derive(Default)]
pub(super) struct Others {
    /// Who orders now, by id.
    pub(super) orderer: Option<Arc<str>>,
    /// The same for a person.
    pub(super) orderer_name: Option<Arc<str>>,
    pub(super) is_our_turn: bool,
    /// What those who may order have said, by id.
    pub(super) lists: BTreeMap<Arc<str>, Arc<List>>,
    /// What was given and is of no use, by host and fingerprint; with the end of a certificate that is over by this node's clock.
    pub(super) useless: BTreeMap<(String, String), Option<i64>>,
    /// What is wrong with the way to them.
    pub(super) faults: BTreeSet<String>,
}

impl Others {
    /// What the one who orders says.
    fn told(&self) -> Option<&List> {
        self.lists.get(self.orderer.as_ref()?).map(|list| &**list)
    }

    /// What failed last where names are ordered, by the one who orders.
    pub(super) fn told_of(&self, host: &str, acme: &AcmeName) -> Option<&Failures> {
        let listed = self.told()?.names.get(host)?;
        listed.failures.as_ref().filter(|_| listed.acme == acme.as_str())
    }

    pub(super) fn told_of_authorities(&self) -> impl Iterator<Item = (&String, &Failures)> {
        self.told().into_iter().flat_map(|list| &list.authorities)
    }
}

impl State {
    /// Whether this node is to order now.
    pub(super) fn is_our_turn(&self) -> bool {
        self.others.as_ref().is_none_or(|others| others.is_our_turn)
    }

    /// Whether another node has a newer certificate than this one, or is ordering one, so that it is taken and none ordered.
    pub(super) fn is_coming(&self, host: &str, acme: &AcmeName) -> bool {
        let mut lists = self.others.iter().flat_map(|others| others.lists.values());
        let is_at_it = |list: &List| {
            let listed = list.names.get(host);
            listed.is_some_and(|listed| listed.is_at_it && listed.acme == acme.as_str())
        };
        lists.any(|list| is_at_it(list) || self.is_newer_in(list, host, acme))
    }

    fn is_newer_in(&self, list: &List, host: &str, acme: &AcmeName) -> bool {
        let Some((listed, others)) = list.names.get(host).zip(self.others.as_ref()) else {
            return false;
        };
        let Some(version) = listed.version.as_ref().filter(|_| listed.acme == acme.as_str()) else {
            return false;
        };
        // One of another authority by the same name, while the configuration changes from node to node, is not what is asked for.
        let own = self.authorities.get(acme).map(|authority| &authority.config.directory);
        if listed.directory.is_some() && listed.directory.as_ref() != own {
            return false;
        }
        let is_newer = match self.kept_of(host, acme).map(version_of) {
            Some(ours) => ours.fingerprint != version.fingerprint && ours < *version,
            None => true,
        };
        is_newer
            && !others
                .useless
                .contains_key(&(host.to_owned(), version.fingerprint.clone()))
    }

    /// What is to be taken of that node: hosts, and whom they are from.
    pub(super) fn lacks(&self, node: &str) -> Vec<(String, AcmeName)> {
        let Some(list) = self.others.as_ref().and_then(|others| others.lists.get(node)) else {
            return Vec::new();
        };
        let wanted = self.wanted.names.iter();
        let lacked = wanted.filter(|(host, by)| self.is_newer_in(list, host, &by.acme));
        lacked.map(|(host, by)| (host.clone(), by.acme.clone())).collect()
    }

    /// All that this node's own table wants, and what there is of it.
    pub(super) fn list(&self) -> List {
        let name = |(host, by): (&String, &super::WantedBy)| {
            let failed = self.authorities.get(&by.acme).map(|authority| &authority.failed);
            let listed = Listed {
                acme: by.acme.to_string(),
                version: self.kept_of(host, &by.acme).map(version_of),
                directory: self.kept_of(host, &by.acme).map(|kept| kept.file.directory.clone()),
                failures: failed.and_then(|failed| failed.names.get(host)).cloned(),
                is_at_it: self.is_at(host),
                at_it_since: self.at.as_ref().filter(|_| self.is_at(host)).map(|(_, since)| *since),
            };
            (host.clone(), listed)
        };
        let failed = |(acme, authority): (&AcmeName, &super::state::Authority)| {
            Some((acme.to_string(), authority.failed.authority.clone()?))
        };
        List {
            names: self.wanted.names.iter().take(NAMES_MOST).map(name).collect(),
            authorities: self.authorities.iter().filter_map(failed).collect(),
        }
    }

    /// The certificate of a host with its key, for a node that asks. Errors: this node's own table wants no such one, or there is none
    /// yet, for a person.
    pub(super) fn give(&self, host: &str, acme: &str) -> Result<kept::Certificate, String> {
        let by = self.wanted.names.get(host).filter(|by| by.acme.as_str() == acme);
        let by = by.ok_or_else(|| format!("no route that this manager knows asks acme.{acme} for {host}"))?;
        let kept = self.kept_of(host, &by.acme);
        Ok(kept
            .ok_or_else(|| format!("there is no certificate for {host} yet"))?
            .file
            .clone())
    }

    /// What `node` gave. Errors: it is of no use, for a person; it is not asked for again.
    pub(super) fn take_from(
        &mut self,
        node: &str,
        (host, acme): (&str, &AcmeName),
        mut file: kept::Certificate,
        now: i64,
    ) -> Result<(), String> {
        match judge(host, &file, now) {
            Ok(pair) => {
                // Another node's clock may be ahead.
                file.ordered_at = file.ordered_at.min(now);
                let kept = Kept {
                    acme: acme.clone(),
                    file,
                    pair: Arc::new(pair),
                    is_written: false,
                };
                let ordered_at = kept.file.ordered_at;
                self.keep(host, kept);
                if let Some(authority) = self.authorities.get_mut(acme) {
                    // It was done after all.
                    let names = &mut authority.failed.names;
                    names.retain(|name, failures| name != host || failures.at > ordered_at);
                }
                Ok(())
            }
            Err(useless) => {
                self.is_useless(node, host, useless.over_at);
                Err(useless.why)
            }
        }
    }

    /// Looks again at what was over by a clock that was ahead, and is not any more. Whether there is any.
    pub(super) fn look_again(&mut self, now: i64) -> bool {
        let Some(others) = &mut self.others else { return false };
        let n_before = others.useless.len();
        others
            .useless
            .retain(|_, over_at| over_at.is_none_or(|over_at| over_at <= now));
        others.useless.len() < n_before
    }

    /// What that node lists for the host is not asked for again.
    fn is_useless(&mut self, node: &str, host: &str, over_at: Option<i64>) {
        let Some(others) = &mut self.others else { return };
        let listed = others.lists.get(node).and_then(|list| list.names.get(host));
        let Some(version) = listed.and_then(|listed| listed.version.clone()) else {
            return;
        };
        if others.useless.len() >= USELESS_MOST {
            others.useless.pop_first();
        }
        others.useless.insert((host.to_owned(), version.fingerprint), over_at);
    }

    /// Says whose turn it is. What failed where it was before is no reason to try again at once.
    pub(super) fn set_turn(&mut self, orderer: Option<Arc<str>>, name: Option<Arc<str>>, is_ours: bool) {
        let Some(others) = &mut self.others else { return };
        let begins = is_ours && !others.is_our_turn;
        (others.orderer, others.orderer_name, others.is_our_turn) = (orderer, name, is_ours);
        if begins {
            let lists: Vec<Arc<List>> = others.lists.values().cloned().collect();
            lists.iter().for_each(|list| self.learn(list));
        }
    }

    /// What failed where that list is from is no reason to try again at once here.
    pub(super) fn learn(&mut self, list: &List) {
        for (acme, failures) in &list.authorities {
            let acme = acme.parse::<AcmeName>().ok();
            let Some(authority) = acme.and_then(|acme| self.authorities.get_mut(&acme)) else {
                continue;
            };
            authority.failed.directory.clone_from(&authority.config.directory);
            let known = &mut authority.failed.authority;
            if known.as_ref().is_none_or(|known| known.at < failures.at) {
                *known = Some(failures.clone());
            }
        }
        for (host, listed) in &list.names {
            let Some((acme, failures)) = listed.acme.parse::<AcmeName>().ok().zip(listed.failures.as_ref()) else {
                continue;
            };
            let has_come = self
                .kept_of(host, &acme)
                .is_some_and(|kept| kept.file.ordered_at >= failures.at);
            let Some(authority) = self.authorities.get_mut(&acme).filter(|_| !has_come) else {
                continue;
            };
            authority.failed.directory.clone_from(&authority.config.directory);
            let known = authority.failed.names.entry(host.clone()).or_default();
            if known.at < failures.at {
                known.clone_from(failures);
            }
        }
    }

    /// The same of who is gone. Nobody knows what became of the order that it was at: that counts as one that failed now.
    pub(super) fn learn_of_gone(&mut self, list: &List, now: i64) {
        self.learn(list);
        for (host, listed) in list.names.iter().filter(|(_, listed)| listed.is_at_it) {
            let Ok(acme) = listed.acme.parse::<AcmeName>() else {
                continue;
            };
            let begun = listed.at_it_since.unwrap_or(now).min(now);
            let has_come = self
                .kept_of(host, &acme)
                .is_some_and(|kept| kept.file.ordered_at >= begun);
            let Some(authority) = self.authorities.get_mut(&acme).filter(|_| !has_come) else {
                continue;
            };
            authority.failed.directory.clone_from(&authority.config.directory);
            let known = authority.failed.names.entry(host.clone()).or_default();
            // Once, however often who began it is lost sight of.
            if !(known.is_of_unfinished() && known.at == begun) {
                known.add_unfinished(now);
                known.at = begun;
            }
        }
    }

    /// When a name is to be ordered as far as is known here, whoever orders.
    pub(super) fn due_anywhere(&self, host: &str) -> Option<i64> {
        let Some(others) = self.others.as_ref().filter(|others| !others.is_our_turn) else {
            return self.due(host);
        };
        let by = self.wanted.names.get(host)?;
        let kept = self.kept_of(host, &by.acme);
        let renewed = kept.map_or(i64::MIN, |kept| {
            renew_at(kept.pair.not_before, kept.pair.not_after, kept.file.ordered_at)
        });
        let failed = others.told_of(host, &by.acme);
        Some(renewed.max(failed.map_or(i64::MIN, |failures| failures.not_before)))
    }

    /// What is wrong with the way to who orders, and which names nobody orders.
    pub(super) fn faults_of_others(&self) -> Vec<String> {
        let Some(others) = &self.others else {
            return Vec::new();
        };
        let mut faults: Vec<String> = others.faults.iter().cloned().collect();
        let Some(told) = others.told().filter(|_| !others.is_our_turn) else {
            return faults;
        };
        let who = others.orderer_name.as_deref().unwrap_or_default();
        for (host, by) in &self.wanted.names {
            let is_known = told
                .names
                .get(host)
                .is_some_and(|listed| listed.acme == by.acme.as_str());
            if !is_known {
                let (acme, service) = (&by.acme, &by.service);
                faults.push(format!(
                    "acme.{acme}: no certificate for {host}: {who}, which orders them, has no route of service {service} that asks for it \
                     (every node needs the same entrypoints and acme)"
                ));
            }
        }
        faults
    }
}

/// A certificate that cannot be shown.
struct Useless {
    /// For a person.
    why: String,
    /// Its end, where that is all that is wrong with it: whoever finds it over may have a clock that is ahead.
    over_at: Option<i64>,
}

/// Errors: it is not for that host, or not good any more, or no certificate with its key.
fn judge(host: &str, file: &kept::Certificate, now: i64) -> Result<Pair, Useless> {
    let for_ever = |why: String| Useless { why, over_at: None };
    let pair = Pair::from_pem(file.certificate.as_bytes(), file.key.as_bytes());
    let pair = pair.map_err(|error| for_ever(error.to_string()))?;
    if !pair.names.iter().any(|name| name == host) {
        return Err(for_ever(format!("it is for {} alone", pair.names.join(" "))));
    }
    match pair.not_after <= now {
        true => Err(Useless {
            why: "it is over".to_owned(),
            over_at: Some(pair.not_after),
        }),
        false => Ok(pair),
    }
}

fn version_of(kept: &Kept) -> Version {
    Version {
        ordered_at: kept.file.ordered_at,
        fingerprint: fingerprint_of(&kept.pair),
    }
}

fn fingerprint_of(pair: &Pair) -> String {
    let certificate = pair.key.cert.first().map(|first| first.as_ref()).unwrap_or_default();
    let digest = ring::digest::digest(&ring::digest::SHA256, certificate);
    digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// So that a list has an end.
const NAMES_MOST: usize = 20_000;
const USELESS_MOST: usize = 1000;

#[cfg(test)]
mod tests;
