//! What is wrong, in words, each with since when.

use std::collections::HashMap;
use std::time::SystemTime;

use serde::Serialize;

use super::events::{Events, Kind};
use super::objects::json;
use super::{Batch, Key};
use crate::admin::moment::unix_ms;
use crate::admin::{AdminState, views};

#[derive(Serialize)]
struct ProblemObject<'a> {
    text: &'a str,
    since_ms: u64,
    level: &'static str,
}

/// What was wrong at the last look, by what stays the same of its words.
#[derive(Debug, Default)]
pub(super) struct Problems {
    shown: HashMap<String, Known>,
    next: u64,
}

#[derive(Debug)]
struct Known {
    key: Key,
    text: String,
    since_ms: u64,
}

impl Problems {
    /// What differs from the last look.
    pub(super) fn look(&mut self, state: &AdminState, events: &mut Events, batch: &mut Batch) {
        let mut lines = views::complaints(state);
        let faults = state.faults.iter().flat_map(|faults| faults.snapshot());
        lines.extend(faults.flat_map(|(service, faults)| {
            let said = move |fault: String| format!("service {service}: {fault}");
            faults.into_iter().map(said)
        }));
        let n_more = lines.len().saturating_sub(SHOWN);
        if n_more > 0 {
            lines.truncate(SHOWN);
            lines.push(format!("{n_more} more: \"anynode status\" shows all"));
        }
        let mut before = std::mem::take(&mut self.shown);
        for text in lines {
            // Times and counts in it go on.
            let name: String = text.chars().filter(|c| !c.is_ascii_digit()).collect();
            let known = match before.remove(&name) {
                Some(known) if known.text == text => {
                    self.shown.insert(name, known);
                    continue;
                }
                Some(known) => Known { text, ..known },
                None => {
                    self.next += 1;
                    events.say(Kind::Problem, None, None, &text, batch);
                    Known {
                        key: format!("problem/{}", self.next).into(),
                        text,
                        since_ms: unix_ms(SystemTime::now()),
                    }
                }
            };
            let object = json(&ProblemObject {
                text: &known.text,
                since_ms: known.since_ms,
                level: "error",
            });
            batch.put(known.key.clone(), object);
            self.shown.insert(name, known);
        }
        for known in before.into_values() {
            let text = format!("no more: {}", known.text);
            events.say(Kind::Problem, None, None, &text, batch);
            batch.del(known.key);
        }
    }
}

const SHOWN: usize = 100;
