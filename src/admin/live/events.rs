//! What happened, newest last: the last so many, each an object of its own.

use std::collections::VecDeque;
use std::time::SystemTime;

use serde::Serialize;

use super::objects::json;
use super::{Batch, Key};
use crate::admin::moment::unix_ms;

/// What an event is about.
#[derive(Debug, Clone, Copy)]
pub(super) enum Kind {
    Service,
    Endpoint,
    Task,
    Node,
    Problem,
}

impl Kind {
    fn as_str(self) -> &'static str {
        match self {
            Kind::Service => "service",
            Kind::Endpoint => "endpoint",
            Kind::Task => "task",
            Kind::Node => "node",
            Kind::Problem => "other",
        }
    }
}

#[derive(Serialize)]
struct EventObject<'a> {
    at_ms: u64,
    kind: &'static str,
    text: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    service: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    node: Option<&'a str>,
}

/// Names of the events that are kept.
#[derive(Debug, Default)]
pub(super) struct Events {
    kept: VecDeque<Key>,
    next: u64,
}

impl Events {
    pub(super) fn say(&mut self, kind: Kind, service: Option<&str>, node: Option<&str>, text: &str, batch: &mut Batch) {
        self.next += 1;
        let key: Key = format!("event/{}", self.next).into();
        let event = EventObject {
            at_ms: unix_ms(SystemTime::now()),
            kind: kind.as_str(),
            text,
            service,
            node,
        };
        self.kept.push_back(key.clone());
        batch.put(key, json(&event));
        if self.kept.len() > KEPT
            && let Some(oldest) = self.kept.pop_front()
        {
            batch.del(oldest);
        }
    }
}

const KEPT: usize = 500;
