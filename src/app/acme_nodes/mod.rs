//! Certificates by ACME on the nodes of a swarm: joins what orders them (`tls::Acme`) with the calls of the link. One manager orders; a
//! challenge is answered by every node, and asked for once all have it in place; each node takes the certificates of its own entry
//! points, and keeps them sealed. Not here: how one is ordered, and how calls travel.

mod acks;
mod desk;
mod follow;
mod turn;
mod wire;

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use tokio::sync::watch;

use self::acks::{Acks, Gate, live, name_of};
use self::desk::Desk;
use self::follow::{AllFound, Follower, Found};
use self::turn::{GONE_AFTER, Manager, Turn, whose};
use crate::admin::SwarmView;
use crate::link::Peer;
use crate::tls::{Acme, Challenges, Terminators};

/// The part of a node of a swarm that certificates are ordered on.
pub(super) struct AcmeNodes {
    acme: Arc<Acme>,
    challenges: Arc<Challenges>,
    view: Arc<SwarmView>,
    desk: Desk,
    acks: Arc<Acks>,
    /// What each manager but this node is found to be.
    managers: watch::Sender<AllFound>,
}

impl AcmeNodes {
    /// From here on nothing is ordered before it is this node's turn, and no challenge without the other nodes.
    pub(super) fn new(tls: &Terminators, view: Arc<SwarmView>) -> Arc<AcmeNodes> {
        let (acme, challenges) = (tls.acme().clone(), tls.challenges().clone());
        acme.share();
        let acks: Arc<Acks> = Arc::default();
        challenges.set_elsewhere(Arc::new(Gate {
            acks: acks.clone(),
            view: view.clone(),
        }));
        Arc::new(AcmeNodes {
            desk: Desk::new(acme.clone(), challenges.clone(), acks.clone(), view.link.instance),
            acme,
            challenges,
            view,
            acks,
            managers: watch::Sender::default(),
        })
    }

    /// Answers a call of another node. `None`: it is none of ours. Errors: what to tell it.
    pub(super) async fn answer(
        &self,
        caller: Peer,
        method: &str,
        body: serde_json::Value,
    ) -> Option<Result<serde_json::Value, String>> {
        if ![wire::WAIT, wire::TAKE].contains(&method) {
            return None;
        }
        if !self.view.info.borrow().is_manager {
            return Some(Err(
                "this node is no manager: only managers order certificates".to_owned()
            ));
        }
        Some(match method {
            wire::WAIT => self.desk.wait(caller.node, body).await,
            _ => self.desk.take(&caller.node, body),
        })
    }

    /// Never ends.
    pub(super) async fn run(&self) -> Infallible {
        tokio::select! {
            never = self.follow() => never,
            never = self.take_turns() => never,
            never = self.desk.publish(&self.view) => never,
        }
    }

    /// Follows every manager but this node, as they come and go.
    async fn follow(&self) -> Infallible {
        let (mut clusters, mut info) = (self.view.link.cluster.clone(), self.view.info.clone());
        loop {
            let managers = self.other_managers();
            self.managers.send_modify(|found| {
                let gone = found.extract_if(.., |node, _| !managers.contains(node));
                gone.for_each(|(node, _)| Follower::forget(&node, &self.acme, &self.challenges));
                for node in &managers {
                    found.entry(node.clone()).or_default();
                }
            });
            let mut following = Vec::new();
            for manager in &managers {
                let follower = Follower {
                    manager: manager.clone(),
                    found: &self.managers,
                    acme: &self.acme,
                    challenges: &self.challenges,
                    view: &self.view,
                };
                following.push(follower.run());
            }
            let changed = async {
                while self.other_managers() == managers {
                    let changed = tokio::select! {
                        changed = clusters.changed() => changed,
                        changed = info.changed() => changed,
                    };
                    if changed.is_err() {
                        // The node ends.
                        return std::future::pending().await;
                    }
                }
            };
            tokio::select! {
                _ = join_all(following), if !managers.is_empty() => {}
                () = changed => {}
            }
        }
    }

    /// By id.
    fn other_managers(&self) -> BTreeSet<Arc<str>> {
        let own = self.view.info.borrow().node.clone();
        let cluster = self.view.link.cluster.borrow().clone();
        let managers = cluster.nodes().filter(|node| node.is_manager && node.id != own);
        managers.map(|node| node.id.as_str().into()).collect()
    }

    /// Says whose turn it is, and what is wrong.
    async fn take_turns(&self) -> Infallible {
        let (mut managers, mut info, mut acks) =
            (self.managers.subscribe(), self.view.info.clone(), self.acks.changes());
        let mut nobody_since: Option<Instant> = None;
        loop {
            let found = managers.borrow_and_update().clone();
            acks.mark_unchanged();
            let (node, is_manager) = {
                let info = info.borrow_and_update();
                (Arc::<str>::from(info.node.as_str()), info.is_manager)
            };
            let others: Vec<Manager> = found.iter().map(manager).collect();
            // Before it is known which managers there are this node might take itself for the only one.
            let is_followed = found.keys().eq(self.other_managers().iter());
            let is_known = is_followed && !self.view.link.cluster.borrow().is_empty();
            let own = Some(&*node).filter(|_| is_manager && is_known);
            let turn = whose(own, &others, Instant::now());
            let orderer = match &turn {
                Turn::Ours => Some(node),
                Turn::Of(other) => Some(other.clone()),
                Turn::Nobodys => None,
            };
            nobody_since = match &orderer {
                None => nobody_since.or_else(|| Some(Instant::now())),
                Some(_) => None,
            };
            let named = orderer.map(|node| (node.clone(), name_of(&self.view, &node)));
            self.acme.set_turn(named, turn == Turn::Ours);
            let is_nobodys = nobody_since.is_some_and(|since| since.elapsed() >= GONE_AFTER);
            self.acme.set_faults_of_others(self.faults(&found, &turn, is_nobodys));
            tokio::select! {
                _ = managers.changed() => {}
                // An error means that the node ends.
                Ok(()) = info.changed() => {}
                _ = acks.changed(), if turn == Turn::Ours => {}
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
        }
    }

    fn faults(&self, found: &AllFound, turn: &Turn, is_nobodys: bool) -> BTreeSet<String> {
        let mut faults = BTreeSet::new();
        let table = self.view.peers.table();
        let is_up = |node: &Arc<str>| table.get(node).is_some_and(|peer| peer.is_up);
        for (node, found) in found.iter().filter(|(node, _)| is_up(node)) {
            if let Some(error) = found.error.as_ref().filter(|_| found.since.elapsed() >= GONE_AFTER) {
                let name = name_of(&self.view, node);
                faults.insert(format!(
                    "acme: manager {name} neither orders certificates nor gives any: {error}"
                ));
            }
        }
        if is_nobodys {
            faults.insert("acme: no manager that is reached orders certificates: none is renewed meanwhile".to_owned());
        }
        if *turn == Turn::Ours {
            for node in self.acks.mute(&live(&self.view)) {
                let name = name_of(&self.view, &node);
                faults.insert(format!(
                    "acme: node {name} answers no challenges (another version of anynode, no [acme] there, or what its log says): an authority that \
                     asks it gives no certificate"
                ));
            }
        }
        faults
    }
}

fn manager((node, found): (&Arc<str>, &Found)) -> Manager {
    Manager {
        node: node.clone(),
        is_heard: found.is_heard,
        since: found.since,
    }
}

/// Time alone may say whose turn it is.
const LOOK_EVERY: Duration = Duration::from_millis(500);
