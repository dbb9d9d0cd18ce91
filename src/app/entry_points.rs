//! The entry points of a node, from its configuration. Not here: which services share them (`routing`).

use std::net::{IpAddr, SocketAddr};

use toml::Value;

use super::settings::Settings;
use crate::model::{EntryPointName, EntryPointSpec};

const KEY: &str = "entrypoints";

/// Reads them. What is wrong is noted.
pub(super) fn read(settings: &mut Settings) -> Vec<EntryPointSpec> {
    let expected = "tables by name, such as { web = { listen = \"0.0.0.0:80\" } }, or [entrypoints.web] in a file";
    let declared = settings.value(KEY, expected, toml::Table::new(), |value| value.as_table().cloned());
    let mut specs: Vec<EntryPointSpec> = Vec::new();
    for (name, value) in &declared {
        let Some(spec) = one(settings, name, value) else {
            continue;
        };
        if specs.iter().any(|other| other.name == spec.name) {
            settings.wrong_within(
                KEY,
                name,
                &value.to_string(),
                "another name: letters of either case are the same",
            );
            continue;
        }
        let same = |other: &&EntryPointSpec| other.is_at(spec.ip, spec.port);
        match specs.iter().find(same) {
            None => specs.push(spec),
            Some(other) => {
                let expected = format!("another address or port than that of entrypoints.{}", other.name);
                let listen = value.get("listen").map(Value::to_string).unwrap_or_default();
                settings.wrong_within(KEY, &format!("{name}.listen"), &listen, &expected);
            }
        }
    }
    specs
}

fn one(settings: &mut Settings, name: &str, value: &Value) -> Option<EntryPointSpec> {
    let parsed = name.parse::<EntryPointName>();
    if let Err(error) = &parsed {
        settings.wrong_within(KEY, name, &value.to_string(), &error.expected);
    }
    let Some(keys) = value.as_table() else {
        settings.wrong_within(KEY, name, &value.to_string(), "a table with listen = \"0.0.0.0:80\"");
        return None;
    };
    for (key, value) in keys.iter().filter(|(key, _)| *key != "listen") {
        settings.wrong_within(
            KEY,
            &format!("{name}.{key}"),
            &value.to_string(),
            "no such key: there is listen",
        );
    }
    let written = keys.get("listen");
    let listen = written.and_then(Value::as_str).and_then(place);
    if listen.is_none() {
        let shown = written.map_or_else(|| "nothing".to_owned(), Value::to_string);
        let expected = "an address with a port from 1 to 65535, such as \"0.0.0.0:80\" or \":80\"";
        settings.wrong_within(KEY, &format!("{name}.listen"), &shown, expected);
    }
    let (ip, port) = listen?;
    Some(EntryPointSpec {
        name: parsed.ok()?,
        ip,
        port,
    })
}

/// Address and port; `None` for every address.
fn place(text: &str) -> Option<(Option<IpAddr>, u16)> {
    let at = match text.strip_prefix(':') {
        Some(port) => SocketAddr::from(([0, 0, 0, 0], port.parse().ok()?)),
        None => text.parse().ok()?,
    };
    (at.port() != 0).then(|| (Some(at.ip()).filter(|ip| !ip.is_unspecified()), at.port()))
}
