//! The accepting side of a control connection: answers pings and calls, and sends the cluster to whoever subscribes: what
//! differs from what it has, one change at a time, the next when the last was taken. A slow node skips what came between.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_rustls::TlsStream;

use super::LinkState;
use super::identity::{Peer, Role};
use super::wire::{Answer, Ask, Budget, FRAME_BYTES_MAX, Messages, from_hex};
use crate::model::Cluster;

/// What a subscriber has, as far as is known.
struct Subscriber {
    has: Arc<Cluster>,
    /// Something was sent and not taken yet.
    is_busy: bool,
}

pub(super) async fn serve(state: Arc<LinkState>, peer: Peer, stream: TlsStream<TcpStream>) -> io::Result<()> {
    let mut messages = Messages::new(stream, FRAME_BYTES_MAX);
    let mut clusters = state.cluster.clone();
    let mut draining = state.draining.subscribe();
    let mut subscriber: Option<Subscriber> = None;
    // They end with the connection: nobody else waits for them.
    let mut calls: JoinSet<Answer> = JoinSet::new();
    let mut budget = Budget::default();
    loop {
        let mut is_over = false;
        if let Some(subscriber) = &mut subscriber
            && !subscriber.is_busy
        {
            let now = clusters.borrow_and_update().clone();
            if let Err(reason) = may_subscribe(&state, &peer) {
                // It may have left the cluster since it subscribed, or we may no longer be the one to ask.
                is_over = true;
                refuse(&state, &mut messages, "subscribe", reason).await?;
            } else if subscriber.has.revision() != now.revision() || subscriber.has.digest() != now.digest() {
                let change = now.change_from(&subscriber.has);
                subscriber.has = now;
                subscriber.is_busy = true;
                messages.send(&Answer::Change { change }).await?;
            }
        }
        if is_over {
            subscriber = None;
        }
        let is_waiting = subscriber.as_ref().is_some_and(|subscriber| !subscriber.is_busy);
        let ask: Ask = tokio::select! {
            ask = tokio::time::timeout(SILENCE_LONGEST, messages.next()) => ask??,
            _ = clusters.changed(), if is_waiting => continue,
            // Told at once, and not with the next pong.
            Ok(()) = draining.changed() => {
                messages.send(&Answer::Pong { n: 0, report: state.report() }).await?;
                continue;
            }
            Some(answer) = calls.join_next() => {
                messages.send(&answer.map_err(io::Error::other)?).await?;
                continue;
            }
        };
        budget.spend(match ask {
            Ask::Subscribe { .. } | Ask::Renew { .. } => COST_OF_WORK,
            _ => 1,
        })?;
        match ask {
            Ask::Ping { n, report } => {
                if report.is_draining {
                    state.leaving.add(&peer.node, report.instance);
                }
                messages
                    .send(&Answer::Pong {
                        n,
                        report: state.report(),
                    })
                    .await?;
            }
            Ask::Subscribe { revision, digest } => match may_subscribe(&state, &peer) {
                Ok(()) => {
                    let now = clusters.borrow_and_update().clone();
                    let is_same = now.digest() == digest && now.revision() == revision;
                    subscriber = Some(Subscriber {
                        has: now.clone(),
                        is_busy: !is_same,
                    });
                    if !is_same {
                        messages.send(&Answer::Change { change: now.whole() }).await?;
                    }
                }
                Err(reason) => refuse(&state, &mut messages, "subscribe", reason).await?,
            },
            Ask::Taken { revision, digest } => {
                if let Some(subscriber) = &mut subscriber
                    && subscriber.has.revision() == revision
                    && subscriber.has.digest() == digest
                {
                    subscriber.is_busy = false;
                }
            }
            Ask::Renew { public_key } => match renew(&state, &peer, &public_key) {
                Ok(answer) => messages.send(&answer).await?,
                Err(reason) => refuse(&state, &mut messages, "renew", reason).await?,
            },
            Ask::Call { id, method, body } => match may_call(&state, &peer, calls.len()) {
                Ok(()) => {
                    let call = state.handler().call(peer.clone(), method, body);
                    calls.spawn(async move {
                        let (ok, error) = match call.await {
                            Ok(value) => (Some(value), None),
                            Err(error) => (None, Some(error)),
                        };
                        Answer::Result { id, ok, error }
                    });
                }
                Err(reason) => {
                    state.stats.refused.fetch_add(1, Relaxed);
                    let error = Some(reason);
                    messages.send(&Answer::Result { id, ok: None, error }).await?;
                }
            },
            Ask::Unknown => refuse(&state, &mut messages, "unknown", "no such message".to_owned()).await?,
        }
    }
}

async fn refuse(
    state: &LinkState,
    messages: &mut Messages<TlsStream<TcpStream>>,
    what: &str,
    reason: String,
) -> io::Result<()> {
    state.stats.refused.fetch_add(1, Relaxed);
    messages
        .send(&Answer::Refused {
            what: what.to_owned(),
            reason,
        })
        .await
}

fn may_subscribe(state: &LinkState, peer: &Peer) -> Result<(), String> {
    if !state.is_source.load(Relaxed) {
        return Err("this node is no manager: only managers give the cluster".to_owned());
    }
    match state.knows(&peer.node) {
        true => Ok(()),
        false => Err("this node is not of the cluster".to_owned()),
    }
}

fn may_call(state: &LinkState, peer: &Peer, n_calls: usize) -> Result<(), String> {
    if !state.knows(&peer.node) {
        return Err("this node is not of the cluster".to_owned());
    }
    match n_calls {
        ..CALLS_MAX => Ok(()),
        _ => Err(format!("{n_calls} calls are not answered yet: expected fewer at once")),
    }
}

/// A certificate for the role that the node has in the cluster now: never more than a worker's, since managers hold the
/// authority themselves.
fn renew(state: &LinkState, peer: &Peer, public_key: &str) -> Result<Answer, String> {
    let authority = state
        .authority()
        .ok_or("this node is no manager: only managers write certificates")?;
    let cluster = state.cluster.borrow().clone();
    if cluster.node(&peer.node).is_none() {
        return Err("this node is not of the cluster".to_owned());
    }
    let public_key = from_hex(public_key).ok_or("public_key: expected hexadecimal digits")?;
    let certificate = authority.issue(&peer.node, Role::Worker, &public_key, state.settings.certificate_life);
    Ok(Answer::Renewed {
        certificate_pem: certificate.map_err(|error| error.to_string())?,
        authority_pem: authority.certificate_pem().to_owned(),
    })
}

/// In messages: what makes us write the whole cluster, or a certificate.
const COST_OF_WORK: u32 = 50;
const CALLS_MAX: usize = 64;
const SILENCE_LONGEST: Duration = Duration::from_secs(5);
