//! Traefik's labels by their parts: keys are read whatever their case, and what follows a section is a name and an option of it.

use std::collections::BTreeMap;
use std::fmt;

use super::{PREFIX, is_label};

/// A label as it is written.
#[derive(Debug, Clone, Copy)]
pub(super) struct Label<'a> {
    pub(super) key: &'a str,
    pub(super) value: &'a str,
}

/// In faults.
impl fmt::Display for Label<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "label {}={}", self.key, self.value)
    }
}

/// Options of one thing with a name, in lower case, such as `tls.certresolver`.
pub(super) type Options<'a> = BTreeMap<String, Label<'a>>;

/// All of Traefik's labels of a service, by their keys in lower case without what all begin with.
#[derive(Debug)]
pub(super) struct Tree<'a>(BTreeMap<String, Label<'a>>);

impl<'a> Tree<'a> {
    pub(super) fn of(labels: &'a BTreeMap<String, String>) -> Tree<'a> {
        let ours = labels.iter().filter(|(label, _)| is_label(label));
        Tree(
            ours.map(|(key, value)| {
                let value = value.trim();
                (key[PREFIX.len()..].to_ascii_lowercase(), Label { key, value })
            })
            .collect(),
        )
    }

    /// What has names in a section such as `http.routers`.
    pub(super) fn section(&self, section: &str) -> BTreeMap<String, Options<'a>> {
        let mut named: BTreeMap<String, Options<'a>> = BTreeMap::new();
        for (key, label) in &self.0 {
            let rest = key.strip_prefix(section).and_then(|rest| rest.strip_prefix('.'));
            let Some(rest) = rest else { continue };
            let (name, option) = rest.split_once('.').unwrap_or((rest, ""));
            named
                .entry(name.to_owned())
                .or_default()
                .insert(option.to_owned(), *label);
        }
        named
    }

    /// What is wrong with labels of which no route of ours is made, whatever they say.
    pub(super) fn unserved(&self) -> Vec<String> {
        let mut faults = Vec::new();
        for (key, label) in &self.0 {
            let mut parts = key.split('.');
            let what = match (parts.next(), parts.next()) {
                (Some("http"), Some("routers" | "services" | "middlewares" | "serverstransports" | "models")) => {
                    continue;
                }
                (Some("tcp"), Some("routers" | "services" | "middlewares" | "serverstransports" | "models")) => {
                    continue;
                }
                (Some("http"), _) => "no such section: expected routers, services or middlewares",
                (Some("tcp"), _) => "no such section: expected routers or services",
                (Some("udp"), Some("routers")) => "udp is not served yet",
                (Some("tls"), _) => "certificates are in the configuration of anynode ([tls])",
                // What says how Traefik finds tasks, or which Traefik is meant, needs no counterpart.
                _ => continue,
            };
            // What it says may be a secret: it is not where such are looked for.
            faults.push(format!("label {}: {what}", label.key));
        }
        faults
    }
}

/// As Go reads one.
pub(super) fn flag(text: &str) -> Option<bool> {
    match text.trim() {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Some(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Some(false),
        _ => None,
    }
}

/// The elements of a list: separated by commas, or each with a number of its own (`entrypoints[0]`).
pub(super) fn is_list(option: &str, name: &str) -> bool {
    let index = option.strip_prefix(name);
    index.is_some_and(|index| index.is_empty() || (index.starts_with('[') && index.ends_with(']')))
}

pub(super) fn elements(text: &str) -> impl Iterator<Item = &str> {
    text.split(',').map(str::trim).filter(|text| !text.is_empty())
}

/// The name of a thing that these labels may have. Errors: whose it is instead.
pub(super) fn local(reference: &str) -> Result<String, String> {
    let Some((name, provider)) = reference.split_once('@') else {
        return Ok(reference.to_ascii_lowercase());
    };
    match provider.to_ascii_lowercase().as_str() {
        "docker" | "swarm" => Ok(name.to_ascii_lowercase()),
        "internal" => Err(format!("{reference} is a part of Traefik itself, which is not here")),
        _ => Err(format!(
            "{reference} is of a configuration that is not read here, only labels are"
        )),
    }
}
