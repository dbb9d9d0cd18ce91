//! Where other nodes would answer otherwise.

use std::collections::BTreeMap;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use serde_json::Value;
use tokio::sync::Semaphore;

use super::Question;
use super::answer::{Answer, ElsewherePart, answer};
use crate::admin::{AdminState, SwarmView};
use crate::sys::inet_diag::Holders;

/// What is asked of another node.
pub const WHY: &str = "page.why";

/// One at a time looks for who holds a port.
static LOOKS: Semaphore = Semaphore::const_new(1);

/// What this node answers by itself.
pub async fn why_here(state: &AdminState, asked: &Question) -> Answer {
    let port = asked.port;
    // It reads all of /proc.
    let held_by = match state.table.peek().listens_on(port) {
        true => None,
        false => {
            // However many ask; it is never closed.
            let _turn = LOOKS.acquire().await;
            let found = tokio::task::spawn_blocking(move || Holders::default().name(port)).await;
            found.ok().flatten()
        }
    };
    answer(state, asked, || held_by)
}

/// What this node answers, or the one that is named, and where others would answer otherwise. Errors: that node is not there, or does not say.
pub(in crate::admin) async fn ask(state: &AdminState, asked: &Question, node: Option<&str>) -> Result<Answer, String> {
    let Some(swarm) = &state.swarm else {
        return match node {
            Some(node) if node != crate::admin::views::hostname() => {
                Err(format!("node = {node:?}: this node is alone"))
            }
            _ => Ok(why_here(state, asked).await),
        };
    };
    let names: BTreeMap<String, String> = {
        let cluster = swarm.link.cluster.borrow().clone();
        cluster
            .nodes()
            .map(|node| (node.id.clone(), node.hostname.clone()))
            .collect()
    };
    let own = swarm.info.borrow().node.clone();
    let asker = match node {
        None => own.clone(),
        Some(wanted) => {
            let mut known = names.iter();
            let found = known.find(|(id, name)| *id == wanted || *name == wanted);
            let Some((id, _)) = found else {
                let known: Vec<&str> = names.values().map(String::as_str).collect();
                return Err(format!("node = {wanted:?}: expected one of {}", known.join(", ")));
            };
            id.clone()
        }
    };
    let of_node = async |id: String| -> (String, Result<Answer, String>) {
        let answer = match id == own {
            true => Ok(why_here(state, asked).await),
            false => call(swarm, &id, asked).await,
        };
        (id, answer)
    };
    let mut asking: FuturesUnordered<_> = names.keys().cloned().map(of_node).collect();
    let mut answers = BTreeMap::new();
    while let Some((id, answer)) = asking.next().await {
        answers.insert(id, answer);
    }
    let name = |id: &str| names.get(id).cloned().unwrap_or_else(|| id.to_owned());
    let mut said = match answers.remove(&asker) {
        Some(Ok(said)) => said,
        Some(Err(error)) => return Err(format!("node {}: {error}", name(&asker))),
        None => why_here(state, asked).await,
    };
    said.elsewhere = answers
        .iter()
        .filter_map(|(id, other)| {
            let text = match other {
                Ok(other) => difference(&said, other)?,
                Err(error) => format!("does not say: {error}"),
            };
            Some(ElsewherePart { node: name(id), text })
        })
        .collect();
    Ok(said)
}

async fn call(swarm: &SwarmView, node: &str, asked: &Question) -> Result<Answer, String> {
    let asked = serde_json::to_value(asked).unwrap_or(Value::Null);
    let answer = swarm.peers.call(node, WHY, asked, PATIENCE).await?;
    serde_json::from_value(answer).map_err(|error| format!("it is of another version: {error}"))
}

/// What another node would do otherwise. Whose turn it is is each node's own.
fn difference(here: &Answer, there: &Answer) -> Option<String> {
    let differs = here.listener.state != there.listener.state
        || here.service != there.service
        || here.rule != there.rule
        || here.endpoints.is_empty() != there.endpoints.is_empty();
    if differs {
        return Some(there.text.clone());
    }
    let by_name = |answer: &Answer| -> BTreeMap<String, (bool, String)> {
        let parts = answer.endpoints.iter();
        parts
            .map(|part| (part.name.clone(), (part.is_for, part.why.clone())))
            .collect()
    };
    let (ours, theirs) = (by_name(here), by_name(there));
    let mut told = Vec::new();
    for (name, (is_for, why)) in &theirs {
        match ours.get(name) {
            Some((of_here, _)) if of_here == is_for => {}
            Some(_) => told.push(format!(
                "{name} {}: {why}",
                if *is_for { "gets traffic" } else { "gets none" }
            )),
            None => told.push(format!("{name} is known there alone")),
        }
    }
    told.extend(
        ours.keys()
            .filter(|name| !theirs.contains_key(*name))
            .map(|name| format!("{name} is not known there")),
    );
    (!told.is_empty()).then(|| told.join("; "))
}

const PATIENCE: std::time::Duration = std::time::Duration::from_secs(3);
