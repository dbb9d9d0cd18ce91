//! Settings by key, from four places: the defaults, a file, environment variables, flags; each remembers where it came
//! from. Not here: what the keys mean (`config`).

use std::collections::BTreeMap;
use std::fmt;

use toml::Value;

use crate::model::nearest;

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    Default,
    File(String),
    Variable(String),
    Flag(&'static str),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Default => f.write_str("the defaults"),
            Origin::File(path) => f.write_str(path),
            Origin::Variable(name) => write!(f, "variable {name}"),
            Origin::Flag(name) => write!(f, "flag {name}"),
        }
    }
}

/// One thing that is wrong with the settings.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SettingError {
    #[error("{origin}: {key} = {value}: expected {expected}")]
    Value {
        origin: Origin,
        key: String,
        value: String,
        expected: String,
    },
    #[error("{origin}: {key}: no such key{}", .nearest.as_ref().map(|key| format!("; there is {key}")).unwrap_or_default())]
    Unknown {
        origin: Origin,
        key: String,
        nearest: Option<String>,
    },
    #[error("{path}: {message}")]
    File { path: String, message: String },
}

/// All keys with their values.
#[derive(Debug, Clone)]
pub(super) struct Settings {
    by_key: BTreeMap<String, (Value, Origin)>,
    errors: Vec<SettingError>,
    /// Variables with our prefix that name no key.
    strangers: Vec<UnknownVariable>,
}

/// A variable that looks like ours and is not. It may be a slip, or what an orchestrator says of a service of our name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("variable {name}: no such key{}", .nearest.as_ref().map(|nearest| format!("; there is {nearest}")).unwrap_or_default())]
pub struct UnknownVariable {
    pub name: String,
    /// The variable of ours that is spelled most like it, if one is.
    pub nearest: Option<String>,
}

impl Settings {
    /// Every key of `text`, which is TOML, as a default.
    ///
    /// Errors: the text is not TOML; for the defaults of this program that is a bug, which its tests would find.
    pub(super) fn defaults(text: &str) -> Result<Settings, SettingError> {
        let table = read("the defaults", text)?;
        let mut by_key = BTreeMap::new();
        flatten("", table, &mut |key, value| {
            by_key.insert(key, (value, Origin::Default));
        });
        Ok(Settings {
            by_key,
            errors: Vec::new(),
            strangers: Vec::new(),
        })
    }

    /// Takes every key that a file says.
    pub(super) fn take_file(&mut self, path: &str, text: &str) {
        match read(path, text) {
            Ok(table) => flatten("", table, &mut |key, value| {
                let origin = match line_of(text, &key) {
                    Some(line) => Origin::File(format!("{path}:{line}")),
                    None => Origin::File(path.to_owned()),
                };
                self.take(key, value, origin);
            }),
            Err(error) => self.errors.push(error),
        }
    }

    /// Takes the variables that name keys, `short` ones among them (name without prefix, key).
    pub(super) fn take_variables(&mut self, variables: impl Iterator<Item = (String, String)>, short: &[(&str, &str)]) {
        for (name, text) in variables {
            let Some(rest) = name.strip_prefix("ANYNODE_") else {
                continue;
            };
            let known = short
                .iter()
                .find(|(short, _)| *short == rest)
                .map(|(_, key)| (*key).to_owned());
            let key = known.or_else(|| {
                let is_meant = |key: &&String| key.replace('.', "_").eq_ignore_ascii_case(rest);
                self.by_key.keys().find(is_meant).cloned()
            });
            match key {
                Some(key) => self.take_text(&key, &text, Origin::Variable(name)),
                None if NO_KEYS.contains(&rest) => {}
                None => {
                    let spellings = self.by_key.keys().map(|key| key.replace('.', "_").to_ascii_uppercase());
                    let ours = spellings.chain(short.iter().map(|(short, _)| (*short).to_owned()));
                    let nearest = nearest(rest, ours).map(|found| format!("ANYNODE_{found}"));
                    self.strangers.push(UnknownVariable { name, nearest });
                }
            }
        }
    }

    /// The variables with our prefix that name no key, in the order in which they were found.
    pub(super) fn strangers(&self) -> &[UnknownVariable] {
        &self.strangers
    }

    pub(super) fn take_flag(&mut self, flag: &'static str, key: &str, text: Option<String>) {
        if let Some(text) = text {
            self.take_text(key, &text, Origin::Flag(flag));
        }
    }

    /// Takes text for a key, as the kind of value that the key has.
    fn take_text(&mut self, key: &str, text: &str, origin: Origin) {
        let kind = self.by_key.get(key).map(|(value, _)| value.clone());
        let value = match kind {
            Some(Value::Integer(_)) => match text.trim().parse() {
                Ok(number) => Value::Integer(number),
                Err(_) => Value::String(text.to_owned()),
            },
            // As a file has it on one line.
            Some(Value::Table(_)) => toml_value(text),
            // As a file has it, or words with commas between.
            Some(Value::Array(_)) if text.trim_start().starts_with('[') => toml_value(text),
            Some(Value::Array(_)) => {
                let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
                Value::Array(items.map(|item| Value::String(item.to_owned())).collect())
            }
            _ => Value::String(text.to_owned()),
        };
        self.take(key.to_owned(), value, origin);
    }

    fn take(&mut self, key: String, value: Value, origin: Origin) {
        match self.by_key.get_mut(&key) {
            Some(known) => *known = (value, origin),
            None => {
                let last = |key: &str| key.rsplit('.').next().unwrap_or_default().to_owned();
                let elsewhere = self.by_key.keys().find(|known| last(known) == last(&key)).cloned();
                let nearest = elsewhere.or_else(|| nearest(&key, self.by_key.keys().cloned()));
                self.errors.push(SettingError::Unknown { origin, key, nearest });
            }
        }
    }

    /// The value of `key`, as `read` makes of it. What it cannot read is an error, and `fallback` meanwhile.
    pub(super) fn value<T>(
        &mut self,
        key: &str,
        expected: &str,
        fallback: T,
        read: impl FnOnce(&Value) -> Option<T>,
    ) -> T {
        let Some((value, origin)) = self.by_key.get(key) else {
            // The defaults have every key that is asked for: a test asks for all.
            return fallback;
        };
        read(value).unwrap_or_else(|| {
            self.errors.push(SettingError::Value {
                origin: origin.clone(),
                key: key.to_owned(),
                value: value.to_string(),
                expected: expected.to_owned(),
            });
            fallback
        })
    }

    /// Notes that something within the value of `key`, which is a table of the user's own keys, is wrong.
    pub(super) fn wrong_within(&mut self, key: &str, inner: &str, value: &str, expected: &str) {
        let origin = self
            .by_key
            .get(key)
            .map_or(Origin::Default, |(_, origin)| origin.clone());
        self.errors.push(SettingError::Value {
            origin,
            key: format!("{key}.{inner}"),
            value: value.to_owned(),
            expected: expected.to_owned(),
        });
    }

    /// Notes that the value of `key` cannot be with those of others.
    pub(super) fn conflict(&mut self, key: &str, expected: &str) {
        self.value(key, expected, (), |_| None);
    }

    /// Everything that was wrong, in the order in which it was found.
    pub(super) fn into_errors(self) -> Vec<SettingError> {
        self.errors
    }
}

/// What TOML has it for, or the text itself.
fn toml_value(text: &str) -> Value {
    match format!("value = {text}").parse::<toml::Table>() {
        Ok(mut table) => table.remove("value").unwrap_or_else(|| Value::String(text.to_owned())),
        Err(_) => Value::String(text.to_owned()),
    }
}

fn read(path: &str, text: &str) -> Result<toml::Table, SettingError> {
    text.parse().map_err(|error: toml::de::Error| SettingError::File {
        path: match error.span() {
            Some(span) => format!("{path}:{}", text[..span.start].lines().count().max(1)),
            None => path.to_owned(),
        },
        message: error.message().to_owned(),
    })
}

/// Variables of ours that are no keys, without their prefix: the file's own name, what tasks are told, what the stack file reads.
const NO_KEYS: &[&str] = &["CONFIG", "TASK_DIR", "IMAGE"];

/// Tables whose keys are the user's own: a value as a whole.
const OPEN: &[&str] = &["process.images", "entrypoints", "acme", "authorities"];

fn flatten(prefix: &str, table: toml::Table, take: &mut impl FnMut(String, Value)) {
    for (key, value) in table {
        let key = match prefix {
            "" => key,
            _ => format!("{prefix}.{key}"),
        };
        match value {
            Value::Table(inner) if !OPEN.contains(&key.as_str()) => flatten(&key, inner, take),
            value => take(key, value),
        }
    }
}

/// The line that sets `key`, for messages: the last one that begins with its last part, after its section began.
fn line_of(text: &str, key: &str) -> Option<usize> {
    let (section, name) = key.rsplit_once('.').unwrap_or(("", key));
    let mut current = "";
    for (i, line) in text.lines().enumerate() {
        let line = line.trim();
        if let Some(header) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
            current = header.trim();
        } else if current == section
            && line
                .strip_prefix(name)
                .is_some_and(|rest| rest.trim_start().starts_with('='))
        {
            return Some(i + 1);
        }
    }
    None
}
