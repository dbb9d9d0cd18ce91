//! `[acme.NAME]`: whom certificates are ordered from, from the configuration. Not here: what is ordered (`acme`).

use std::path::PathBuf;

use toml::{Table, Value};

use super::settings::Settings;
use crate::model::{AcmeName, EntryPointSpec};
use crate::tls::{AcmeConfig, ChallengeKind, ClientAuth, ExternalAccount, Policy};

const KEY: &str = "acme";
const KEYS: [&str; 6] = ["directory", "email", "challenge", "ca", "eab_kid", "eab_key_file"];

/// Reads them, for these entry points. What is wrong is noted.
pub(super) fn read(settings: &mut Settings, entry_points: &[EntryPointSpec], policies: &[Policy]) -> Vec<AcmeConfig> {
    let expected = "tables by name, such as { le = { directory = \"https://...\" } }, or [acme.le] in a file";
    let declared = settings.value(KEY, expected, Table::new(), |value| value.as_table().cloned());
    let mut configs: Vec<AcmeConfig> = Vec::new();
    for (name, value) in &declared {
        let Some(config) = one(settings, name, value) else {
            continue;
        };
        if configs.iter().any(|other| other.name == config.name) {
            let expected = "another name: letters of either case are the same";
            settings.wrong_within(KEY, name, &value.to_string(), expected);
            continue;
        }
        let fault = place_fault(&config, entry_points, policies);
        if let Some(expected) = fault {
            wrong(
                settings,
                name,
                "challenge",
                Some(&Value::from(config.challenge.as_str())),
                &expected,
            );
        }
        configs.push(config);
    }
    for spec in entry_points {
        let is_declared = |acme: &&AcmeName| {
            declared
                .keys()
                .any(|name| name.parse().is_ok_and(|name: AcmeName| name == **acme))
        };
        let Some(acme) = spec.acme.as_ref().filter(|acme| !is_declared(acme)) else {
            continue;
        };
        let inner = format!("{}.tls.acme", spec.name);
        let expected = format!("the NAME of an [acme.NAME] in the configuration, such as [acme.{acme}]");
        settings.wrong_within("entrypoints", &inner, &format!("{:?}", acme.as_str()), &expected);
    }
    configs
}

/// Where nobody could answer the authority, or nothing that it gives would be shown: what was expected.
fn place_fault(config: &AcmeConfig, entry_points: &[EntryPointSpec], policies: &[Policy]) -> Option<String> {
    let asks_all = |policy: &Policy| matches!(policy.client_auth, ClientAuth::Required { .. });
    match config.challenge {
        _ if policies.is_empty() => {
            Some("an entry point with tls beside it, such as [entrypoints.websecure], where certificates are shown".into())
        }
        ChallengeKind::Http if entry_points.iter().all(|spec| spec.is_tls) => Some(
            "an entry point without tls for http-01, which clients of the authority reach at port 80, or \"tls-alpn-01\"".into(),
        ),
        ChallengeKind::TlsAlpn if policies.iter().all(asks_all) => Some(
            "an entry point that lets in who shows no certificate for tls-alpn-01, since the authority has none, or \"http-01\"".into(),
        ),
        _ => None,
    }
}

fn one(settings: &mut Settings, name: &str, value: &Value) -> Option<AcmeConfig> {
    let parsed = name.parse::<AcmeName>();
    if let Err(error) = &parsed {
        settings.wrong_within(KEY, name, &value.to_string(), &error.expected);
    }
    let Some(keys) = value.as_table() else {
        settings.wrong_within(
            KEY,
            name,
            &value.to_string(),
            "a table with directory = \"https://...\"",
        );
        return None;
    };
    for (key, value) in keys.iter().filter(|(key, _)| !KEYS.contains(&key.as_str())) {
        let expected = match key.to_ascii_lowercase().replace(['_', '-'], "").as_str() {
            "dnschallenge" => {
                "no such key: names are not written to, so that there is http-01 and tls-alpn-01 alone".to_owned()
            }
            _ => format!("no such key: there is {}", KEYS.join(", ")),
        };
        wrong(settings, name, key, Some(value), &expected);
    }
    let directory = keys.get("directory").and_then(Value::as_str).and_then(https);
    if directory.is_none() {
        let expected =
            "the https URL of the authority's directory, such as \"https://acme-v02.api.letsencrypt.org/directory\"";
        wrong(settings, name, "directory", keys.get("directory"), expected);
    }
    let email = text(
        settings,
        name,
        keys,
        "email",
        "an address such as \"me@example.com\"",
        |text| {
            let (user, domain) = text.split_once('@')?;
            let is_plain = text.bytes().all(|b| b.is_ascii_graphic() && !b"?,%<>\"".contains(&b));
            (is_plain && !user.is_empty() && !domain.is_empty()).then(|| text.to_owned())
        },
    );
    let mut challenge = ChallengeKind::default();
    if let Some(value) = keys.get("challenge") {
        match value.as_str().map(str::parse) {
            Some(Ok(kind)) => challenge = kind,
            Some(Err(error)) => wrong(settings, name, "challenge", Some(value), &error.expected),
            None => wrong(
                settings,
                name,
                "challenge",
                Some(value),
                "\"http-01\" or \"tls-alpn-01\"",
            ),
        }
    }
    let path = |text: &str| (!text.is_empty()).then(|| PathBuf::from(text));
    let authorities = text(settings, name, keys, "ca", "a path to certificates in PEM", path);
    let kid = text(
        settings,
        name,
        keys,
        "eab_kid",
        "the key's identifier, as the authority gives it",
        |text| (!text.is_empty()).then(|| text.to_owned()),
    );
    let key_file = text(
        settings,
        name,
        keys,
        "eab_key_file",
        "a path to the key, in base64url",
        path,
    );
    for (key, other) in [("eab_kid", "eab_key_file"), ("eab_key_file", "eab_kid")] {
        if let (Some(value), false) = (keys.get(key), keys.contains_key(other)) {
            wrong(settings, name, key, Some(value), &format!("{other} beside it"));
        }
    }
    Some(AcmeConfig {
        name: parsed.ok()?,
        directory: directory?,
        email,
        challenge,
        authorities,
        external: kid
            .zip(key_file)
            .map(|(kid, key_file)| ExternalAccount { kid, key_file }),
    })
}

/// The URL, if it is one of https with a host.
fn https(text: &str) -> Option<String> {
    let uri: hyper::Uri = text.parse().ok()?;
    let has_host = uri.host().is_some_and(|host| !host.is_empty());
    (uri.scheme_str() == Some("https") && has_host).then(|| text.to_owned())
}

fn text<T>(
    settings: &mut Settings,
    within: &str,
    keys: &Table,
    key: &str,
    expected: &str,
    read: impl FnOnce(&str) -> Option<T>,
) -> Option<T> {
    let value = keys.get(key)?;
    let read = value.as_str().and_then(read);
    if read.is_none() {
        wrong(settings, within, key, Some(value), expected);
    }
    read
}

fn wrong(settings: &mut Settings, within: &str, key: &str, value: Option<&Value>, expected: &str) {
    let value = value.map_or_else(|| "nothing".to_owned(), Value::to_string);
    settings.wrong_within(KEY, &format!("{within}.{key}"), &value, expected);
}
