//! The entry points of a node and what they ask of clients, from its configuration. Not here: which services share them (`routing`),
//! and what is done with certificates (`tls`).

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use ipnet::IpNet;
use toml::{Table, Value};

use super::settings::Settings;
use crate::model::filters::network;
use crate::model::{AcmeName, EntryPointName, EntryPointSpec, InvalidValue, parse_duration};
use crate::tls::{ClientAuth, MinVersion, PairFiles, Policy, TlsConfig};

const KEY: &str = "entrypoints";
const KEYS: [&str; 7] = [
    "listen",
    "tls",
    "redirect",
    "trusted_proxies",
    "proxy_protocol",
    "idle_timeout",
    "request_head_timeout",
];
const CERTIFICATES: &str = "tls.certificates";

/// Reads them. `are_declared`: certificates may be, while the node runs. What is wrong is noted.
pub(super) fn read(settings: &mut Settings, are_declared: bool) -> (Vec<EntryPointSpec>, TlsConfig) {
    let expected = "tables by name, such as { web = { listen = \"0.0.0.0:80\" } }, or [entrypoints.web] in a file";
    let declared = settings.value(KEY, expected, Table::new(), |value| value.as_table().cloned());
    let min_version = settings.value(
        "tls.min_version",
        "\"1.2\" or \"1.3\"",
        MinVersion::default(),
        |value| value.as_str()?.parse().ok(),
    );
    let mut specs: Vec<EntryPointSpec> = Vec::new();
    let mut policies = Vec::new();
    for (name, value) in &declared {
        let Some((spec, policy)) = one(settings, name, value, min_version) else {
            continue;
        };
        if specs.iter().any(|other| other.name == spec.name) {
            let expected = "another name: letters of either case are the same";
            settings.wrong_within(KEY, name, &value.to_string(), expected);
            continue;
        }
        match specs.iter().find(|other| other.is_at(spec.ip, spec.port)) {
            None => {
                specs.push(spec);
                policies.extend(policy);
            }
            Some(other) => {
                let expected = format!("another address or port than that of entrypoints.{}", other.name);
                let listen = value.get("listen").map(Value::to_string).unwrap_or_default();
                settings.wrong_within(KEY, &format!("{name}.listen"), &listen, &expected);
            }
        }
    }
    redirect(settings, &declared, &mut specs);
    let acme = super::acme_config::read(settings, &specs, &policies);
    let certificates = certificates(settings);
    let has_none = certificates.is_empty() && acme.is_empty() && !are_declared;
    if let (Some(policy), true) = (policies.first(), has_none) {
        let name = &policy.entry_point;
        settings.conflict(
            CERTIFICATES,
            &format!("a certificate at least, such as [{{ cert = \"a.pem\", key = \"a.key\" }}], or an [acme.NAME], since entrypoints.{name}.tls is on"),
        );
    }
    let ticket_key_file = settings.value("tls.ticket_key_file", "a path", None, |value| {
        Some(Some(value.as_str()?).filter(|path| !path.is_empty()).map(PathBuf::from))
    });
    let tls = TlsConfig {
        certificates,
        are_declared,
        ticket_key_file,
        policies,
        acme,
    };
    (specs, tls)
}

fn one(
    settings: &mut Settings,
    name: &str,
    value: &Value,
    min_version: MinVersion,
) -> Option<(EntryPointSpec, Option<Policy>)> {
    let parsed = name.parse::<EntryPointName>();
    if let Err(error) = &parsed {
        settings.wrong_within(KEY, name, &value.to_string(), &error.expected);
    }
    let Some(keys) = value.as_table() else {
        settings.wrong_within(KEY, name, &value.to_string(), "a table with listen = \"0.0.0.0:80\"");
        return None;
    };
    known_only(settings, name, keys, &KEYS);
    let written = keys.get("listen");
    let listen = written.and_then(Value::as_str).and_then(place);
    if listen.is_none() {
        let expected = "an address with a port from 1 to 65535, such as \"0.0.0.0:80\" or \":80\"";
        wrong(settings, name, "listen", written, expected);
    }
    let name = parsed.ok()?;
    let policy = keys
        .get("tls")
        .and_then(|value| policy(settings, &name, value, min_version));
    let (ip, port) = listen?;
    let mut spec = EntryPointSpec::new(name, ip, port);
    spec.is_tls = policy.is_some();
    spec.acme = keys
        .get("tls")
        .and_then(|tls| acme(settings, &spec.name, tls.get("acme")?));
    spec.trusted_proxies = networks_at(settings, &spec.name, keys, "trusted_proxies");
    spec.proxy_protocol = networks_at(settings, &spec.name, keys, "proxy_protocol").unwrap_or_default();
    for (key, to) in [
        ("idle_timeout", &mut spec.idle_timeout),
        ("request_head_timeout", &mut spec.request_head_timeout),
    ] {
        let Some(value) = keys.get(key) else { continue };
        match value.as_str().and_then(|text| parse_duration(text).ok()) {
            Some(timeout) => *to = timeout,
            None => wrong(
                settings,
                spec.name.as_str(),
                key,
                Some(value),
                "a duration such as \"30s\"; \"0s\" is none",
            ),
        }
    }
    Some((spec, policy))
}

/// Whom its certificates are ordered from. `None`: that is wrong.
fn acme(settings: &mut Settings, name: &EntryPointName, value: &Value) -> Option<AcmeName> {
    match value.as_str().map(str::parse) {
        Some(Ok(acme)) => return Some(acme),
        Some(Err(InvalidValue { expected, .. })) => {
            wrong(settings, &format!("{name}.tls"), "acme", Some(value), &expected);
        }
        None => wrong(
            settings,
            &format!("{name}.tls"),
            "acme",
            Some(value),
            "the NAME of an [acme.NAME]",
        ),
    }
    None
}

/// `None`: it is no list of networks and addresses.
pub(super) fn networks(value: &Value) -> Option<Vec<IpNet>> {
    value
        .as_array()?
        .iter()
        .map(|item| network(item.as_str()?).ok())
        .collect()
}

/// `None`: the key is not there, or wrong.
fn networks_at(settings: &mut Settings, name: &EntryPointName, keys: &Table, key: &str) -> Option<Vec<IpNet>> {
    let value = keys.get(key)?;
    let networks = networks(value);
    if networks.is_none() {
        wrong(
            settings,
            name.as_str(),
            key,
            Some(value),
            "networks such as [\"10.0.0.0/8\"]",
        );
    }
    networks
}

/// What `tls` asks of clients; `None`: it is off, or wrong.
fn policy(settings: &mut Settings, name: &EntryPointName, value: &Value, min_version: MinVersion) -> Option<Policy> {
    let mut policy = Policy {
        entry_point: name.clone(),
        min_version,
        client_auth: ClientAuth::None,
        is_strict: false,
    };
    let keys = match value {
        Value::Boolean(false) => return None,
        Value::Boolean(true) => return Some(policy),
        Value::Table(keys) => keys,
        _ => {
            let expected = "true, false, or a table such as { min_version = \"1.3\" }";
            wrong(settings, name.as_str(), "tls", Some(value), expected);
            return None;
        }
    };
    let within = format!("{name}.tls");
    known_only(
        settings,
        &within,
        keys,
        &["min_version", "strict", "client_ca", "client_auth", "acme"],
    );
    if let Some(value) = keys.get("min_version") {
        match value.as_str().and_then(|text| text.parse().ok()) {
            Some(version) => policy.min_version = version,
            None => wrong(settings, &within, "min_version", Some(value), "\"1.2\" or \"1.3\""),
        }
    }
    if let Some(value) = keys.get("strict") {
        match value.as_bool() {
            Some(is_strict) => policy.is_strict = is_strict,
            None => wrong(settings, &within, "strict", Some(value), "true or false"),
        }
    }
    let authorities = keys.get("client_ca").and_then(|value| {
        let path = value.as_str().filter(|path| !path.is_empty());
        if path.is_none() {
            wrong(
                settings,
                &within,
                "client_ca",
                Some(value),
                "a path to certificates in PEM",
            );
        }
        path.map(PathBuf::from)
    });
    let is_required = match keys.get("client_auth").map(|value| (value, value.as_str())) {
        None | Some((_, Some("required"))) => true,
        Some((_, Some("optional"))) => false,
        Some((value, _)) => {
            wrong(
                settings,
                &within,
                "client_auth",
                Some(value),
                "\"required\" or \"optional\"",
            );
            true
        }
    };
    policy.client_auth = match authorities {
        Some(authorities) if is_required => ClientAuth::Required { authorities },
        Some(authorities) => ClientAuth::Optional { authorities },
        None => {
            if let (Some(value), false) = (keys.get("client_auth"), keys.contains_key("client_ca")) {
                let expected = "client_ca beside it: who writes clients' certificates";
                wrong(settings, &within, "client_auth", Some(value), expected);
            }
            ClientAuth::None
        }
    };
    Some(policy)
}

/// Finds the entry points that clients of others are sent to.
fn redirect(settings: &mut Settings, declared: &Table, specs: &mut [EntryPointSpec]) {
    let ports: Vec<(EntryPointName, u16)> = specs
        .iter()
        .filter(|spec| spec.is_tls)
        .map(|spec| (spec.name.clone(), spec.port))
        .collect();
    for spec in specs {
        let Some(value) = declared.get(spec.name.as_str()).and_then(|keys| keys.get("redirect")) else {
            continue;
        };
        let to = value.as_str().and_then(|name| name.parse::<EntryPointName>().ok());
        let to = to.filter(|to| *to != spec.name);
        spec.redirect = to
            .and_then(|to| ports.iter().find(|(name, _)| *name == to))
            .map(|(_, port)| *port);
        if spec.redirect.is_none() {
            let expected = "the name of another entry point with tls = true";
            wrong(settings, spec.name.as_str(), "redirect", Some(value), expected);
        }
    }
}

fn certificates(settings: &mut Settings) -> Vec<PairFiles> {
    let expected = "a list of pairs of files in PEM, such as [{ cert = \"a.pem\", key = \"a.key\" }]";
    settings.value(CERTIFICATES, expected, Vec::new(), |value| {
        let pair = |value: &Value| {
            let keys = value.as_table().filter(|keys| keys.len() == 2)?;
            let path = |key| {
                keys.get(key)?
                    .as_str()
                    .filter(|path| !path.is_empty())
                    .map(PathBuf::from)
            };
            Some(PairFiles {
                certificate: path("cert")?,
                key: path("key")?,
            })
        };
        value.as_array()?.iter().map(pair).collect()
    })
}

fn known_only(settings: &mut Settings, within: &str, keys: &Table, known: &[&str]) {
    for (key, value) in keys.iter().filter(|(key, _)| !known.contains(&key.as_str())) {
        wrong(
            settings,
            within,
            key,
            Some(value),
            &format!("no such key: there is {}", known.join(", ")),
        );
    }
}

fn wrong(settings: &mut Settings, within: &str, key: &str, value: Option<&Value>, expected: &str) {
    let value = value.map_or_else(|| "nothing".to_owned(), Value::to_string);
    settings.wrong_within(KEY, &format!("{within}.{key}"), &value, expected);
}

/// Address and port; `None` for every address.
fn place(text: &str) -> Option<(Option<IpAddr>, u16)> {
    let at = match text.strip_prefix(':') {
        Some(port) => SocketAddr::from(([0, 0, 0, 0], port.parse().ok()?)),
        None => text.parse().ok()?,
    };
    (at.port() != 0).then(|| (Some(at.ip()).filter(|ip| !ip.is_unspecified()), at.port()))
}
