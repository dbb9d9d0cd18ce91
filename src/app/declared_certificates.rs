//! Certificates that secrets and configs of this swarm hold, by their label: told to the node's TLS as they come and go. Not here: which
//! chain goes with which key (`tls`), and what is refused when it is declared (`api`).

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;

use crate::admin::ClosedDoors;
use crate::model::first_of;
use crate::model::labels::payload::{self, CERTIFICATE};
use crate::model::swarm::Id;
use crate::store::{Snapshot, Store};
use crate::tls::{Declared, Terminators};

/// Follows them in a store.
pub(super) struct DeclaredCertificates {
    store: Arc<dyn Store>,
    /// `None`: no entry point ends TLS.
    tls: Option<Arc<Terminators>>,
    /// Where it is said that nobody shows them.
    doors: Arc<ClosedDoors>,
    /// What was told last was of this.
    seen: Option<Arc<Snapshot>>,
    read: BTreeMap<Id, Read>,
}

/// One that the label is on.
struct Read {
    /// `secret:NAME` or `config:NAME`.
    name: String,
    /// What one holds never changes. `Err`: what is wrong with it, as of one that is older than the label.
    held: Result<Declared, String>,
    /// What is wrong with the label.
    label: Option<String>,
}

impl DeclaredCertificates {
    pub(super) fn new(
        store: Arc<dyn Store>,
        tls: Option<Arc<Terminators>>,
        doors: Arc<ClosedDoors>,
    ) -> DeclaredCertificates {
        DeclaredCertificates {
            store,
            tls,
            doors,
            seen: None,
            read: BTreeMap::new(),
        }
    }

    /// Says that the store is not open yet.
    pub(super) fn wait(&self) {
        if let Some(tls) = &self.tls {
            tls.certificates().declared_wait(WAITS);
        }
    }

    /// Tells what there is now. Costs nothing where no secret and no config has changed.
    pub(super) fn look(&mut self) {
        let snapshot = self.store.snapshot();
        let is_seen = self.seen.as_ref().is_some_and(|seen| snapshot.has_payloads_of(seen));
        if !is_seen {
            self.take(&snapshot);
        }
        self.seen = Some(snapshot);
    }

    fn take(&mut self, snapshot: &Snapshot) {
        let secrets = snapshot.secrets().map(|secret| (true, secret));
        let all = secrets.chain(snapshot.configs().map(|config| (false, config)));
        let (mut now, mut n_new) = (BTreeMap::new(), 0);
        for (is_secret, payload) in all {
            let label = match payload::is_certificate(&payload.labels) {
                Ok(false) => continue,
                Ok(true) => None,
                Err(fault) => Some(fault),
            };
            let before = self.read.remove(&payload.id).filter(|before| before.label == label);
            let read = before.unwrap_or_else(|| {
                n_new += 1;
                let kind = if is_secret { "secret" } else { "config" };
                let held = match &label {
                    None => held(&payload.data, is_secret),
                    Some(fault) => Err(fault.clone()),
                };
                Read {
                    name: format!("{kind}:{}", payload.name),
                    held,
                    label,
                }
            });
            now.insert(payload.id.clone(), read);
        }
        let n_gone = std::mem::replace(&mut self.read, now).len();
        if n_new + n_gone == 0 && self.seen.is_some() {
            return;
        }
        match &self.tls {
            Some(tls) => {
                // The first by name is shown to strangers.
                let mut all: Vec<&Read> = self.read.values().collect();
                all.sort_by_key(|one| one.name.split_once(':').map(|(kind, name)| (name, kind)));
                let all = all.into_iter();
                let all = all.map(|one| (&*one.name, one.held.as_ref().map_err(String::as_str)));
                tls.declare(Declared::shown(all));
            }
            None => self.say_unshown(),
        }
    }

    /// Says in `anynode status`, `/readyz` and the log that no entry point ends TLS, while there are any.
    fn say_unshown(&self) {
        let mut names: Vec<&str> = self.read.values().map(|one| &*one.name).collect();
        names.sort_unstable();
        let why = (!names.is_empty()).then(|| {
            let names = first_of(&names, NAMED_MAX, ", ");
            format!("no entry point ends TLS (entrypoints.NAME.tls), so that nothing is shown of {names}")
        });
        let key = format!("label {CERTIFICATE}");
        if self.doors.set(&key, why.clone())
            && let Some(why) = why
        {
            tracing::warn!("{key}: {why}");
        }
    }

    /// Tells each change, until `shutdown`. The store is open.
    pub(super) async fn follow(mut self, shutdown: impl Future<Output = ()>) {
        let mut changed = self.store.changed();
        let follow = async {
            loop {
                changed.mark_unchanged();
                self.look();
                if changed.changed().await.is_err() {
                    break;
                }
            }
        };
        tokio::select! {
            () = follow => {}
            () = shutdown => {}
        }
    }
}

/// Reads what a secret or config holds. Errors: what is wrong with it, and nothing of what it holds.
pub(super) fn held(data: &[u8], is_secret: bool) -> Result<Declared, String> {
    let held = match is_secret {
        true => Declared::from_pem(data),
        false => Declared::from_config(data),
    };
    held.map_err(|error| error.to_string())
}

/// Of those that nobody shows.
const NAMED_MAX: usize = 8;

/// As `anynode status` has it.
const WAITS: &str = "the swarm is locked: certificates of secrets and configs are shown after \"docker swarm unlock\"";
