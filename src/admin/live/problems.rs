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
    is_told: bool,
}

/// One thing that is wrong now.
pub(super) struct Problem {
    /// What it is told by at the next look.
    pub name: String,
    pub text: String,
    pub since_ms: Option<u64>,
    /// Events tell of it already.
    pub is_told: bool,
}

impl Problems {
    /// What differs from the last look. `of_nodes`: what is wrong with nodes, first.
    pub(super) fn look(&mut self, state: &AdminState, of_nodes: Vec<Problem>, events: &mut Events, batch: &mut Batch) {
        let mut lines = views::complaints(state);
        let faults = state.faults.iter().flat_map(|faults| faults.snapshot());
        lines.extend(faults.flat_map(|(service, faults)| {
            let said = move |fault: String| format!("service {service}: {fault}");
            faults.into_iter().map(said)
        }));
        let mut problems = of_nodes;
        problems.extend(named(lines));
        let n_more = problems.len().saturating_sub(SHOWN);
        if n_more > 0 {
            problems.truncate(SHOWN);
            let text = format!("{n_more} more: \"anynode status\" shows all");
            problems.extend(named(vec![text]));
        }
        let mut before = std::mem::take(&mut self.shown);
        for problem in problems {
            let Problem { name, text, .. } = problem;
            let known = match before.remove(&name) {
                Some(known) if known.text == text => {
                    self.shown.insert(name, known);
                    continue;
                }
                Some(known) => Known { text, ..known },
                None => {
                    self.next += 1;
                    if !problem.is_told {
                        events.say(Kind::Problem, None, None, &text, batch);
                    }
                    Known {
                        key: format!("problem/{}", self.next).into(),
                        text,
                        since_ms: problem.since_ms.unwrap_or_else(|| unix_ms(SystemTime::now())),
                        is_told: problem.is_told,
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
            if !known.is_told {
                let text = format!("no more: {}", known.text);
                events.say(Kind::Problem, None, None, &text, batch);
            }
            batch.del(known.key);
        }
    }
}

/// Names for lines that have none: their words without numbers, since times and counts in them go on. Several may have the same: those
/// go by their order.
fn named(lines: Vec<String>) -> Vec<Problem> {
    let mut times: HashMap<String, usize> = HashMap::new();
    let name = |text: String| {
        let words: String = text.chars().filter(|c| !c.is_ascii_digit()).collect();
        let nth = times.entry(words.clone()).or_default();
        *nth += 1;
        Problem {
            name: format!("{words}#{nth}"),
            text,
            since_ms: None,
            is_told: false,
        }
    };
    lines.into_iter().map(name).collect()
}

const SHOWN: usize = 100;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_differs_by_a_number_alone_is_told_apart() {
        let lines = ["port 80: taken", "port 81: taken", "stale since 5 s"]
            .map(str::to_owned)
            .to_vec();
        let names: Vec<String> = named(lines).into_iter().map(|one| one.name).collect();
        assert_eq!(names, ["port : taken#1", "port : taken#2", "stale since  s#1"]);
    }
}
