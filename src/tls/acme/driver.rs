//! Orders certificates, one at a time, for the names that are wanted, keeps them on disk, and gives them to whoever shows them. Not here:
//! which names (`app`), how one is ordered (`order`).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, watch};

use super::at_rest::AtRest;
use super::client::Client;
use super::config::AcmeConfig;
use super::kept::{self, Files};
use super::order::{self, Failure, Of};
use super::state::{Authority, Kept, Next, State, Wanted};
use super::view::{NameView, Orders, time};
use crate::model::AcmeName;
use crate::tls::certificates::{Certificates, now};
use crate::tls::challenges::Challenges;
use crate::tls::pair::Pair;

/// All authorities of a node.
pub struct Acme {
    challenges: Arc<Challenges>,
    certificates: Arc<Certificates>,
    /// std mutex: nothing awaits under it.
    state: Mutex<State>,
    /// Where it keeps what it has, once it is opened.
    dir: OnceLock<PathBuf>,
    /// What seals it there; `None`: it is in the clear.
    at_rest: OnceLock<Arc<AtRest>>,
    is_wanted_anew: Notify,
    /// Counts what changes of names, certificates and failures.
    changes: watch::Sender<u64>,
}

impl std::fmt::Debug for Acme {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Acme")
    }
}

/// What was agreed on with an authority.
struct Session {
    client: Client,
    account: instant_acme::Account,
}

impl Acme {
    pub(in crate::tls) fn new(
        configs: &[AcmeConfig],
        challenges: Arc<Challenges>,
        certificates: Arc<Certificates>,
    ) -> Acme {
        let authority = |config: &AcmeConfig| {
            let authority = Authority {
                config: config.clone(),
                failed: kept::Failed::default(),
                is_read: true,
                n_ordered: 0,
                n_failed: 0,
            };
            (config.name.clone(), authority)
        };
        Acme {
            challenges,
            certificates,
            state: Mutex::new(State {
                authorities: configs.iter().map(authority).collect(),
                ..State::default()
            }),
            dir: OnceLock::new(),
            at_rest: OnceLock::new(),
            is_wanted_anew: Notify::new(),
            changes: watch::Sender::new(0),
        }
    }

    /// Reads what an earlier run has kept in the data directory, and shows those certificates. What cannot be read is tried again before
    /// anything is ordered.
    ///
    /// `secret`: what is kept is sealed by it, and what of it was sealed by another is not used.
    pub fn open(&self, data_dir: &Path, secret: Option<&[u8; 32]>) {
        if let Some(at_rest) = secret.and_then(AtRest::new) {
            // Once for each process.
            let _ = self.at_rest.set(Arc::new(at_rest));
        }
        let mut state = self.state();
        let names: Vec<AcmeName> = state.authorities.keys().cloned().collect();
        for acme in names {
            match self.files_in(data_dir, &acme).all() {
                Ok(all) => state.take_up(&acme, all, now()),
                Err(fault) => {
                    tracing::error!("{fault}");
                    if let Some(authority) = state.authorities.get_mut(&acme) {
                        authority.is_read = false;
                    }
                }
            }
        }
        self.show(&state);
        drop(state);
        // Once for each process.
        let _ = self.dir.set(data_dir.to_owned());
    }

    /// The names of all authorities.
    pub fn names(&self) -> Vec<AcmeName> {
        self.state().authorities.keys().cloned().collect()
    }

    /// Says what routes want now.
    pub fn want(&self, wanted: Wanted) {
        let mut state = self.state();
        let before = state.wanted.faults.clone();
        state.want(wanted);
        let new = state.wanted.faults.difference(&before);
        new.for_each(|fault| tracing::warn!("{fault}"));
        // It may be wanted from another now.
        self.show(&state);
        drop(state);
        self.wake();
    }

    /// Something has changed, for who orders and for who is told of it.
    pub(in crate::tls) fn wake(&self) {
        self.is_wanted_anew.notify_one();
        self.changes.send_modify(|n| *n += 1);
    }

    /// Counts what changes of names, certificates and failures.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Orders while `may_order` says so: of two runs that share a data directory one does. Never ends.
    pub async fn run(self: Arc<Acme>, mut may_order: watch::Receiver<bool>) {
        let mut sessions = BTreeMap::new();
        loop {
            if may_order.wait_for(|may| *may).await.is_err() {
                // Nobody is left to allow it.
                return std::future::pending().await;
            }
            let working = self.work(&mut sessions);
            let stopping = async {
                // An error: nobody can stop it any more.
                if may_order.clone().wait_for(|may| !*may).await.is_err() {
                    std::future::pending().await
                }
            };
            tokio::select! {
                never = working => match never {},
                () = stopping => self.cut_off(),
            }
        }
    }

    async fn work(&self, sessions: &mut BTreeMap<AcmeName, Session>) -> std::convert::Infallible {
        loop {
            self.put_away().await;
            let now_ = now();
            if self.state().look_again(now_) {
                tracing::info!("certificates that were over by a clock that was ahead are looked at again");
                self.changes.send_modify(|n| *n += 1);
            }
            let is_our_turn = self.state().is_our_turn();
            let next = match is_our_turn {
                true => self.state().next(now_, |host| self.certificates.covers(host, now_)),
                false => {
                    self.read_what_was_not().await;
                    Next::Wait(None)
                }
            };
            match next {
                Next::Order(host, acme) => {
                    self.is_at(Some(host.clone()));
                    self.order(&host, &acme, sessions).await;
                    self.is_at(None);
                }
                Next::Wait(until) => {
                    let left = until.map_or(LOOK_EVERY, |until| until.saturating_sub(now_).clamp(1, LOOK_EVERY));
                    let wait = tokio::time::sleep(Duration::from_secs(left.unsigned_abs()));
                    tokio::select! {
                        () = wait => {}
                        () = self.is_wanted_anew.notified() => {}
                    }
                }
            }
        }
    }

    /// Says what is being ordered, to other nodes too.
    fn is_at(&self, host: Option<String>) {
        self.state().at = host.map(|host| (host, now()));
        self.changes.send_modify(|n| *n += 1);
    }

    /// The order that is under way goes on no more, and counts as one that failed: whoever made way comes back where another run ends too early, and
    /// would begin it again at once each time.
    fn cut_off(&self) {
        self.state().cut_off(now());
        self.changes.send_modify(|n| *n += 1);
    }

    async fn read_what_was_not(&self) {
        for acme in self.names() {
            if let Some(Err(fault)) = self.read_again(&acme).await {
                tracing::debug!("{fault}");
            }
        }
    }

    /// One order, and what becomes of it.
    async fn order(&self, host: &str, acme: &AcmeName, sessions: &mut BTreeMap<AcmeName, Session>) {
        let Some(config) = self.state().authorities.get(acme).map(|one| one.config.clone()) else {
            return;
        };
        match self.read_again(acme).await {
            // What is due is seen anew.
            Some(Ok(())) => return,
            Some(Err(text)) => return self.failed(host, acme, (text, Of::Authority), None),
            None => {}
        }
        self.write_failed(acme, Some(host)).await;
        let mut result = self.try_to_order(host, &config, sessions).await;
        if let Err((Failure { of: Of::Account, .. }, _)) = &result {
            // It has forgotten us, or was made anew.
            tracing::warn!(acme = %acme, "the authority does not know the account: another one is made");
            sessions.remove(acme);
            result = self.try_to_order(host, &config, sessions).await;
        }
        match result {
            Ok(kept) => {
                let not_after = kept.pair.not_after;
                {
                    let mut state = self.state();
                    state.keep(host, kept);
                    self.show(&state);
                }
                self.put_away().await;
                let mut state = self.state();
                state.succeeded(host, acme);
                let next = state.due(host).unwrap_or(not_after);
                drop(state);
                self.wake();
                tracing::info!(acme = %acme, host, until = %time(not_after), next = %time(next), "certificate ordered and taken up");
            }
            Err((Failure { text, of }, retry_after)) => {
                if matches!(of, Of::Authority | Of::Account) {
                    // Made anew from its files, which may have been put right.
                    sessions.remove(acme);
                }
                self.failed(host, acme, (text, of), retry_after);
            }
        }
        self.write_failed(acme, None).await;
    }

    fn failed(&self, host: &str, acme: &AcmeName, (text, of): (String, Of), retry_after: Option<i64>) {
        let of_time = (now(), retry_after, fastrand::f64());
        let next = self.state().failed((host, acme), (text.clone(), of), of_time);
        self.wake();
        tracing::error!(acme = %acme, host, next = %time(next), "no certificate: {text}");
    }

    /// Reads what could not be read at the start. `None`: it was. Errors: it cannot be read now.
    async fn read_again(&self, acme: &AcmeName) -> Option<Result<(), String>> {
        let is_read = self.state().authorities.get(acme).is_none_or(|one| one.is_read);
        let files = self.files(acme).filter(|_| !is_read)?;
        let all = blocking(move || Some(files.all())).await?;
        Some(all.map(|all| {
            let mut state = self.state();
            state.take_up(acme, all, now());
            self.show(&state);
        }))
    }

    /// Errors: with the seconds that the authority asks for.
    async fn try_to_order(
        &self,
        host: &str,
        config: &AcmeConfig,
        sessions: &mut BTreeMap<AcmeName, Session>,
    ) -> Result<Kept, (Failure, Option<i64>)> {
        let of_authority = |text: String| Failure {
            text,
            of: Of::Authority,
        };
        let is_new = !sessions.contains_key(&config.name);
        let client = match sessions.get(&config.name) {
            Some(session) => session.client.clone(),
            None => Client::new(config.authorities.as_deref()).map_err(|text| (of_authority(text), None))?,
        };
        // What was asked for before has been waited for.
        client.take_retry_after();
        let failed = |failure| (failure, client.take_retry_after());
        if is_new {
            let files = self.files(&config.name);
            let read = blocking(move || Some(files?.account())).await;
            let read = read.transpose().map_err(|text| (of_authority(text), None))?;
            let unwritten = self.state().accounts.get(&config.name).cloned();
            let kept = unwritten.or_else(|| read.flatten());
            // After `Of::Account` there is none that is of use.
            let is_forgotten = self.is_forgotten(&config.name);
            let made = order::account(config, &client, kept.filter(|_| !is_forgotten)).await;
            let (account, to_keep) = made.map_err(|text| failed(of_authority(text)))?;
            if let Some(to_keep) = to_keep {
                self.state().accounts.insert(config.name.clone(), to_keep);
                self.write_accounts().await;
            }
            let client = client.clone();
            sessions.insert(config.name.clone(), Session { client, account });
        }
        let Some(session) = sessions.get(&config.name) else {
            return Err((of_authority("no account".to_owned()), None));
        };
        let ordered = order::order(&session.account, host, config.challenge, &self.challenges).await;
        self.remember_account(
            &config.name,
            ordered.as_ref().err().is_some_and(|failure| failure.of == Of::Account),
        );
        let ordered = ordered.map_err(failed)?;
        let of_name = |text: String| (Failure { text, of: Of::Name }, None);
        let pair = Pair::from_pem(ordered.certificate.as_bytes(), ordered.key.as_bytes());
        let pair = pair.map_err(|error| of_name(format!("the certificate cannot be used: {error}")))?;
        let now = now();
        if !pair.names.iter().any(|name| name == host) {
            return Err(of_name(format!(
                "the certificate is for {} alone",
                pair.names.join(" ")
            )));
        }
        if pair.not_after <= now {
            let text = format!(
                "the certificate was good until {}: is this machine's clock right?",
                time(pair.not_after)
            );
            return Err(of_name(text));
        }
        Ok(Kept {
            acme: config.name.clone(),
            file: kept::Certificate {
                directory: config.directory.clone(),
                ordered_at: now,
                certificate: ordered.certificate,
                key: ordered.key,
            },
            pair: Arc::new(pair),
            is_written: false,
        })
    }

    /// Gives all that there are to who shows them.
    pub(super) fn show(&self, state: &State) {
        let shown = state.shown().into_iter();
        let pairs = shown.map(|(host, kept)| (host.to_owned(), kept.pair.clone()));
        self.certificates.set_ordered(pairs.collect());
    }

    async fn write_accounts(&self) {
        let unwritten = self.state().accounts.clone();
        for (acme, account) in unwritten {
            let files = self.files(&acme);
            let written = blocking(move || files.map(|files| files.write_account(&account))).await;
            let written = written.transpose();
            if written.is_ok() {
                self.state().accounts.remove(&acme);
            }
            self.say_disk(written.err());
        }
    }

    /// Writes what is not written yet, and takes away what nobody wants any more.
    async fn put_away(&self) {
        self.write_accounts().await;
        let (unwritten, over) = {
            let mut state = self.state();
            let over = state.forget(now());
            if !over.is_empty() {
                self.show(&state);
            }
            let unwritten = state.kept.iter().filter(|(_, kept)| !kept.is_written);
            let unwritten = unwritten.map(|(key, kept)| (key.clone(), kept.file.clone()));
            (unwritten.collect::<Vec<_>>(), over)
        };
        for (acme, host) in over {
            let files = self.files(&acme);
            // What stays is read at the next start, and goes then.
            let _ = blocking(move || files.map(|files| files.remove_certificate(&host))).await;
        }
        for (key, file) in unwritten {
            let (host, acme) = &key;
            let (files, name) = (self.files(acme), host.clone());
            let written = blocking(move || files.map(|files| files.write_certificate(&name, &file))).await;
            let written = written.transpose();
            if written.is_ok()
                && let Some(kept) = self.state().kept.get_mut(&key)
            {
                kept.is_written = true;
            }
            self.say_disk(written.err());
        }
    }

    /// `unfinished`: whose order begins.
    async fn write_failed(&self, acme: &AcmeName, unfinished: Option<&str>) {
        let unfinished = unfinished.map(|host| (host, now()));
        let Some(failed) = self.state().to_remember(acme, unfinished) else {
            return;
        };
        let files = self.files(acme);
        let written = blocking(move || files.map(|files| files.write_failed(&failed))).await;
        self.say_disk(written.transpose().err());
    }

    /// Says it once, and once when it is over.
    fn say_disk(&self, error: Option<std::io::Error>) {
        let fault = error.map(|error| format!("acme: certificates and accounts cannot be kept for a restart: {error}"));
        let mut state = self.state();
        let is_written = state.accounts.is_empty() && state.kept.values().all(|kept| kept.is_written);
        if fault.is_none() && !is_written {
            // Something else could be.
            return;
        }
        match (&state.disk, &fault) {
            (None, Some(fault)) => tracing::error!("{fault}"),
            (Some(_), None) => tracing::info!("acme: certificates and accounts are kept for a restart again"),
            _ => {}
        }
        state.disk = fault;
    }

    fn files(&self, acme: &AcmeName) -> Option<Files> {
        Some(self.files_in(self.dir.get()?, acme))
    }

    fn files_in(&self, data_dir: &Path, acme: &AcmeName) -> Files {
        Files::new(data_dir, acme).sealed_by(self.at_rest.get().cloned())
    }

    fn is_forgotten(&self, acme: &AcmeName) -> bool {
        self.state().forgotten.contains(acme)
    }

    fn remember_account(&self, acme: &AcmeName, is_forgotten: bool) {
        let mut state = self.state();
        match is_forgotten {
            true => drop(state.forgotten.insert(acme.clone())),
            false => drop(state.forgotten.remove(acme)),
        }
    }

    /// All names that are wanted, by host.
    pub fn view(&self) -> Vec<NameView> {
        let now = now();
        self.state().view(|host| self.certificates.covers(host, now))
    }

    /// By authority.
    pub fn orders(&self) -> Vec<Orders> {
        self.state().orders()
    }

    /// What is wrong: of files, of authorities, of names that are wanted.
    pub fn faults(&self) -> Vec<String> {
        self.state().faults()
    }

    /// What of the configuration cannot be used: files that are named. Nothing is asked of anybody.
    pub fn config_faults(&self) -> Vec<String> {
        let state = self.state();
        let of = |config: &AcmeConfig| {
            let ca = Client::new(config.authorities.as_deref()).err();
            let eab = config
                .external
                .as_ref()
                .and_then(|external| order::external_key(external).err());
            let faults = ca.into_iter().chain(eab);
            faults
                .map(|fault| format!("acme.{}.{fault}", config.name))
                .collect::<Vec<_>>()
        };
        state
            .authorities
            .values()
            .flat_map(|authority| of(&authority.config))
            .collect()
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Runs what waits for a disk. `None` where the runtime ends.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Option<T> + Send + 'static) -> Option<T> {
    tokio::task::spawn_blocking(work).await.ok().flatten()
}

/// Seconds after which files of certificates and the clock are looked at anew.
const LOOK_EVERY: i64 = 15;
