//! What this node has of one manager: the challenges that it answers authorities in its place, and certificates, taken as they come.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::watch;

use super::turn::GONE_AFTER;
use super::wire::{self, Gift, Given, Has, Name, Take, Told, Wait};
use crate::admin::SwarmView;
use crate::tls::{Acme, Challenge, Challenges, is_host};

/// What a manager is found to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) is_heard: bool,
    /// Since when it is as `is_heard` says.
    pub(super) since: Instant,
    /// Why it is not heard.
    pub(super) error: Option<String>,
}

impl Default for Found {
    fn default() -> Found {
        Found {
            is_heard: false,
            since: Instant::now(),
            error: None,
        }
    }
}

/// By id.
pub(super) type AllFound = BTreeMap<Arc<str>, Found>;

/// What goes with one manager.
pub(super) struct Follower<'a> {
    pub(super) manager: Arc<str>,
    pub(super) found: &'a watch::Sender<AllFound>,
    pub(super) acme: &'a Acme,
    pub(super) challenges: &'a Challenges,
    pub(super) view: &'a SwarmView,
}

impl Follower<'_> {
    /// Never ends.
    pub(super) async fn run(self) -> Infallible {
        tokio::select! {
            never = self.ask() => never,
            never = self.take() => never,
        }
    }

    /// Forgets what the manager has pending, and what it has.
    pub(super) fn forget(manager: &Arc<str>, acme: &Acme, challenges: &Challenges) {
        acme.hear(manager, None);
        // There is nothing that could be wrong with nothing.
        let _ = challenges.put(manager, Vec::new());
    }

    /// One call after another. What it has in place is said with the next one.
    async fn ask(&self) -> Infallible {
        let mut has: Option<Has> = None;
        let mut failing_since: Option<Instant> = None;
        let mut pause = PAUSE_FIRST;
        let mut peers = self.view.peers.subscribe();
        loop {
            peers.mark_unchanged();
            let instance = self.view.link.instance;
            let ask = Wait { instance, has };
            let told = self.call::<Told>(wire::WAIT, &ask, ANSWER_WITHIN).await;
            // What cannot be answered is not acknowledged.
            match told.and_then(|told| self.put(&told.challenges).map(|()| told)) {
                Ok(told) => {
                    if let Some(list) = told.list {
                        self.acme.hear(&self.manager, Some(Arc::new(list)));
                    }
                    (has, failing_since, pause) = (Some(told.now), None, PAUSE_FIRST);
                    self.say(Ok(()));
                    // One that always answers at once is asked no more often.
                    tokio::time::sleep(PAUSE_LEAST).await;
                }
                Err(error) => {
                    has = None;
                    self.say(Err(error));
                    if failing_since.get_or_insert_with(Instant::now).elapsed() >= GONE_AFTER {
                        Follower::forget(&self.manager, self.acme, self.challenges);
                    }
                    tokio::select! {
                        () = tokio::time::sleep(pause) => pause = (pause * 2).min(PAUSE_LONGEST),
                        // It may be back. An error means that the node ends.
                        Ok(()) = peers.changed() => tokio::time::sleep(PAUSE_LEAST).await,
                    }
                }
            }
        }
    }

    /// Says whether it is heard, or why not.
    fn say(&self, said: Result<(), String>) {
        self.found.send_if_modified(|managers| {
            let Some(found) = managers.get_mut(&self.manager) else {
                return false;
            };
            let before = found.clone();
            if found.is_heard != said.is_ok() {
                (found.is_heard, found.since) = (said.is_ok(), Instant::now());
            }
            found.error = said.err();
            *found != before
        });
    }

    /// Errors: one of them cannot be answered.
    fn put(&self, challenges: &[Challenge]) -> Result<(), String> {
        let is_right = |challenge: &Challenge| match challenge {
            Challenge::Http { .. } => true,
            Challenge::Tls { host, .. } => is_host(host),
        };
        match challenges.iter().all(is_right) {
            true => self.challenges.put(&self.manager, challenges.to_vec()),
            false => Err("a challenge for what is no host".to_owned()),
        }
    }

    async fn take(&self) -> Infallible {
        let mut changes = self.acme.changes();
        loop {
            changes.mark_unchanged();
            let mut lacks = self.acme.lacks(&self.manager);
            if lacks.is_empty() {
                if changes.changed().await.is_err() {
                    return std::future::pending().await;
                }
                continue;
            }
            // So that some that are refused keep no others waiting.
            fastrand::shuffle(&mut lacks);
            lacks.truncate(wire::NAMES_MOST);
            let names = lacks.iter().map(|(host, acme)| Name {
                host: host.clone(),
                acme: acme.to_string(),
            });
            let names = names.collect();
            let given = self.call::<Given>(wire::TAKE, &Take { names }, ANSWER_WITHIN).await;
            let mut is_whole = given.is_ok();
            let mut taken = Vec::new();
            for ((host, acme), gift) in lacks
                .into_iter()
                .zip(given.map(|given| given.certificates).unwrap_or_default())
            {
                match gift {
                    Gift::Certificate(certificate) => taken.push((host, acme, *certificate)),
                    Gift::Refused(why) => {
                        is_whole = false;
                        tracing::debug!(manager = %self.manager, host, "no certificate: {why}");
                    }
                }
            }
            is_whole &= self.acme.take_from(&self.manager, taken);
            if !is_whole {
                tokio::time::sleep(TAKE_AGAIN).await;
            }
        }
    }

    async fn call<T: DeserializeOwned>(
        &self,
        method: &str,
        body: &impl Serialize,
        within: Duration,
    ) -> Result<T, String> {
        let body = serde_json::to_value(body).map_err(|error| error.to_string())?;
        let answer = self.view.peers.call(&self.manager, method, body, within).await?;
        serde_json::from_value(answer).map_err(|error| format!("its answer cannot be read: {error}"))
    }
}

/// More than a manager holds a call.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);
const PAUSE_FIRST: Duration = Duration::from_millis(200);
const PAUSE_LONGEST: Duration = Duration::from_secs(5);
const PAUSE_LEAST: Duration = Duration::from_millis(20);
const TAKE_AGAIN: Duration = Duration::from_secs(2);
