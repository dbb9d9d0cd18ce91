//! One reader's stream of server-sent events: all that there is, and then what changes.

use std::convert::Infallible;
use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use futures_util::stream::{Stream, unfold};
use hyper::body::{Bytes, Frame};
use imbl::OrdMap;
use serde::Serialize;
use tokio::sync::{broadcast, watch};

use super::nodes::own;
use super::{Json, Key, figures};
use crate::admin::AdminState;
use crate::admin::moment::unix_ms;
use crate::places::Place;

#[derive(Serialize)]
struct Hello {
    node: String,
    hostname: String,
    version: &'static str,
    /// docker, own or file.
    way: &'static str,
    now_ms: u64,
    sample_s: u64,
}

/// Lasts until its reader goes, does not keep up, or gives up its place for another. `party`: whose place it is.
pub(in crate::admin) fn stream(
    state: &AdminState,
    party: IpAddr,
) -> impl Stream<Item = Result<Frame<Bytes>, Infallible>> + Send + use<> {
    let live = &state.live;
    let place = live.places.take(party);
    let reader = Reader::new(live.n_readers.clone());
    let is_over = live.is_over.subscribe();
    let (objects, history, changes) = live.look();
    let (node, hostname) = own(state);
    let hello = Hello {
        node,
        hostname,
        version: env!("CARGO_PKG_VERSION"),
        way: match (&state.swarm, &state.declared) {
            (_, Some(_)) => "own",
            (Some(_), None) => "docker",
            (None, None) => "file",
        },
        now_ms: unix_ms(SystemTime::now()),
        sample_s: figures::EVERY.as_secs(),
    };
    let begin = Feed {
        _reader: reader,
        place,
        is_over,
        changes,
        next: Next::Hello {
            hello: event("hello", &hello),
            objects,
            history,
        },
    };
    unfold(begin, |mut feed| async move {
        let part = feed.next().await?;
        Some((Ok(Frame::data(part)), feed))
    })
}

struct Feed {
    _reader: Reader,
    place: Place<IpAddr>,
    is_over: watch::Receiver<bool>,
    changes: broadcast::Receiver<Bytes>,
    next: Next,
}

/// What is sent next.
enum Next {
    Hello {
        hello: Bytes,
        objects: OrdMap<Key, Json>,
        history: Bytes,
    },
    /// What comes after the key that was sent last.
    Objects {
        objects: OrdMap<Key, Json>,
        after: Option<Key>,
        history: Bytes,
    },
    Changes,
}

impl Feed {
    async fn next(&mut self) -> Option<Bytes> {
        match std::mem::replace(&mut self.next, Next::Changes) {
            Next::Hello {
                hello,
                objects,
                history,
            } => {
                self.next = Next::Objects {
                    objects,
                    after: None,
                    history,
                };
                Some(hello)
            }
            Next::Objects {
                objects,
                after,
                history,
            } => {
                let range = match &after {
                    Some(after) => (std::ops::Bound::Excluded(after.clone()), std::ops::Bound::Unbounded),
                    None => (std::ops::Bound::Unbounded, std::ops::Bound::Unbounded),
                };
                let part: Vec<(Key, Json)> = objects
                    .range(range)
                    .take(OBJECTS_AT_ONCE)
                    .map(|(key, json)| (key.clone(), json.clone()))
                    .collect();
                let last = part.last().map(|(key, _)| key.clone());
                let mut text = if part.is_empty() { Vec::new() } else { put(&part) };
                if part.len() < OBJECTS_AT_ONCE {
                    text.extend_from_slice(b"event: whole\ndata: {}\n\n");
                    text.extend_from_slice(&history);
                } else {
                    self.next = Next::Objects {
                        objects,
                        after: last,
                        history,
                    };
                }
                Some(text.into())
            }
            Next::Changes => tokio::select! {
                () = self.place.told_to_leave() => None,
                _ = self.is_over.wait_for(|is_over| *is_over) => None,
                change = tokio::time::timeout(PING_EVERY, self.changes.recv()) => match change {
                    Ok(Ok(part)) => Some(part),
                    // It did not keep up, and begins anew.
                    Ok(Err(_)) => None,
                    Err(_) => Some(event("ping", &serde_json::json!({ "now_ms": unix_ms(SystemTime::now()) }))),
                },
            },
        }
    }
}

/// Somebody who looks, for as long as it is held.
struct Reader(watch::Sender<usize>);

impl Reader {
    fn new(count: watch::Sender<usize>) -> Reader {
        count.send_modify(|n| *n += 1);
        Reader(count)
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.0.send_modify(|n| *n -= 1);
    }
}

/// An event as it is sent.
pub(super) fn event(name: &str, data: &impl Serialize) -> Bytes {
    // Of structs with plain fields, which does not fail; JSON has no line breaks.
    let data = serde_json::to_string(data).unwrap_or_else(|_| "{}".to_owned());
    format!("event: {name}\ndata: {data}\n\n").into()
}

fn put(objects: &[(Key, Json)]) -> Vec<u8> {
    let mut text = b"event: put\ndata: {".to_vec();
    for (i, (key, json)) in objects.iter().enumerate() {
        if i > 0 {
            text.push(b',');
        }
        // A string's text does not fail.
        text.extend_from_slice(serde_json::to_string(&**key).unwrap_or_default().as_bytes());
        text.push(b':');
        text.extend_from_slice(json.as_bytes());
    }
    text.extend_from_slice(b"}\n\n");
    text
}

/// What a change is told in: parts of a bounded length. No key is in both.
pub(super) fn change(objects: &[(Key, Json)], gone: &[Key]) -> Vec<Bytes> {
    let gone = gone.chunks(OBJECTS_AT_ONCE);
    let gone = gone.map(|keys| event("del", &keys.iter().map(|key| &**key).collect::<Vec<&str>>()));
    gone.chain(objects.chunks(OBJECTS_AT_ONCE).map(|part| put(part).into()))
        .collect()
}

const OBJECTS_AT_ONCE: usize = 1000;
const PING_EVERY: Duration = Duration::from_secs(10);
