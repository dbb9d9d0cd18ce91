//! One certificate of a node as people are told of it.

use std::collections::HashMap;
use std::sync::Arc;

use super::pair::Pair;

/// One certificate, as it is shown.
#[derive(Debug, Clone)]
pub struct Shown {
    /// Its file, or what declares it: `secret:NAME`, `config:NAME`.
    pub from: String,
    /// What asks for it: `BY_KEY` or `BY_LABEL`.
    pub(super) said_by: &'static str,
    /// `None`: none could be used by now.
    pub pair: Option<Arc<Pair>>,
    /// What is wrong with it as it is.
    pub fault: Option<String>,
}

/// How faults begin of those that the configuration names.
pub(super) const BY_KEY: &str = "tls.certificates";
/// And of those that are declared.
pub(super) const BY_LABEL: &str = "label anynode.certificate";

impl Shown {
    /// One that is declared, or what is wrong with it.
    pub(super) fn declared(from: &str, pair: Result<Pair, String>) -> Shown {
        let (pair, fault) = match pair {
            Ok(pair) => (Some(Arc::new(pair)), None),
            Err(fault) => (None, Some(format!("{BY_LABEL}: {from}: {fault}"))),
        };
        Shown {
            from: from.to_owned(),
            said_by: BY_LABEL,
            pair,
            fault,
        }
    }

    /// What is wrong with its dates, `now`: seconds since 1970.
    pub(super) fn fault_of_time(&self, now: i64) -> Option<String> {
        let pair = self.pair.as_ref()?;
        let what = match now {
            _ if now >= pair.not_after => "has expired",
            _ if now < pair.not_before => "is not good yet",
            _ => return None,
        };
        Some(format!("{}: {} {what}", self.said_by, self.from))
    }

    fn is_as(&self, other: &Shown) -> bool {
        let until = |one: &Shown| one.pair.as_ref().map(|pair| pair.not_after);
        self.from == other.from && until(self) == until(other) && self.fault == other.fault
    }
}

/// Logs what is new of declared ones, and what is gone.
pub(super) fn say_changes(before: &[Shown], now: &[Shown]) {
    let by_name = |all| -> HashMap<&str, &Shown> { <[Shown]>::iter(all).map(|one| (&*one.from, one)).collect() };
    let (was, is) = (by_name(before), by_name(now));
    let is_in =
        |one: &Shown, others: &HashMap<&str, &Shown>| others.get(&*one.from).is_some_and(|other| one.is_as(other));
    for gone in before.iter().filter(|one| one.pair.is_some() && !is_in(one, &is)) {
        tracing::info!(certificate = gone.from, "shown no more");
    }
    for new in now.iter().filter(|one| !is_in(one, &was)) {
        match (&new.pair, &new.fault) {
            (Some(pair), _) => tracing::info!(certificate = new.from, names = pair.names.join(" "), "taken up"),
            (None, Some(fault)) => tracing::warn!("{fault}"),
            (None, None) => {}
        }
    }
}
