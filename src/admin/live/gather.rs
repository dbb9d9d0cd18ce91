//! What other nodes counted: asked of them for as long as somebody looks.

use std::sync::{Arc, Weak};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::figures::{ByService, HistoryEvent, sum};
use super::{Live, stream};
use crate::admin::why::{Question, WHY, why_here};
use crate::admin::{AdminState, SwarmView};

/// What a node asks of another: its last sample, and all that it keeps.
const FIGURES: &str = "page.figures";
const HISTORY: &str = "page.history";

/// Tells those who look of what all nodes counted, as long as anybody does. Never ends.
pub(super) async fn gather(state: Arc<AdminState>) {
    let live = &state.live;
    let (mut n_readers, mut sampled) = (live.n_readers.subscribe(), live.sampled.subscribe());
    loop {
        // Its sender lives as long as this.
        let _ = n_readers.wait_for(|n| *n > 0).await;
        let mut n_known = 0;
        while *n_readers.borrow_and_update() > 0 {
            let is_new = *n_readers.borrow() > n_known;
            n_known = *n_readers.borrow();
            if let (Some(swarm), true) = (&state.swarm, is_new) {
                tell_history(live, swarm).await;
            }
            tokio::select! {
                _ = n_readers.changed() => continue,
                _ = sampled.changed() => {}
            }
            let (others, n_up) = match &state.swarm {
                Some(swarm) => ask_all::<ByService>(swarm, FIGURES).await,
                None => (Vec::new(), 0),
            };
            let shown = live.lock();
            let all = sum(std::iter::once(shown.figures.last()).chain(&others));
            let event = shown.figures.event(&all, (1 + others.len(), 1 + n_up));
            drop(shown);
            let _ = live.changes.send(event);
        }
    }
}

/// What others counted before, with what this node did, for whoever has just come.
async fn tell_history(live: &Live, swarm: &SwarmView) {
    let (others, _) = ask_all::<HistoryEvent>(swarm, HISTORY).await;
    if others.is_empty() {
        return;
    }
    let mut history = live.lock().figures.history();
    others.into_iter().for_each(|other| history.add(other));
    let _ = live.changes.send(stream::event("history", &history));
}

/// What the other nodes that are up answer, and how many these are.
async fn ask_all<T: DeserializeOwned>(swarm: &SwarmView, what: &'static str) -> (Vec<T>, usize) {
    let peers = swarm.peers.table();
    let up = peers.iter().filter(|(_, peer)| peer.is_up);
    let mut asked: FuturesUnordered<_> = up
        .map(|(node, _)| swarm.peers.call(node, what, Value::Null, PATIENCE))
        .collect();
    let (mut answers, n_up) = (Vec::new(), asked.len());
    while let Some(answer) = asked.next().await {
        // One that says something else is of another version.
        if let Some(answer) = answer.ok().and_then(|answer| serde_json::from_value(answer).ok()) {
            answers.push(answer);
        }
    }
    (answers, n_up)
}

impl Live {
    /// Answers another node that somebody looks at. `None`: it asks for something else.
    pub async fn answer(&self, what: &str, body: &Value) -> Option<Result<Value, String>> {
        let answer = match what {
            FIGURES => serde_json::to_value(self.lock().figures.last()),
            HISTORY => serde_json::to_value(self.lock().figures.history()),
            WHY => {
                let Some(state) = self.of.get().and_then(Weak::upgrade) else {
                    return Some(Err("it has only just begun".to_owned()));
                };
                match Question::deserialize(body) {
                    Ok(asked) => serde_json::to_value(why_here(&state, &asked).await),
                    Err(error) => Err(error),
                }
            }
            _ => return None,
        };
        Some(answer.map_err(|error| error.to_string()))
    }
}

/// Less than between two samples.
const PATIENCE: Duration = Duration::from_secs(2);
