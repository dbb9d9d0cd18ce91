//! `filters` of list requests: `{"name":{"web":true}}`, or `{"name":["web"]}` as older clients write it. What a value means hangs on
//! who answers in Docker: a swarm's managers look for the beginning of a name, an engine for a regular expression in it.

use std::collections::BTreeMap;

use regex::bytes::{Regex, RegexBuilder};
use serde_json::Value;

use super::error::ApiError;

/// What a list is cut down to: by key, of several values one is enough.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(in crate::api) struct Filters {
    by_key: BTreeMap<String, Vec<String>>,
}

impl Filters {
    /// Errors: it is no such JSON, or has a key other than `known`.
    pub(in crate::api) fn read(text: Option<&str>, known: &[&str]) -> Result<Filters, ApiError> {
        Filters::parse(text)?.only(known)
    }

    /// Whatever its keys are. Errors: it is no such JSON.
    pub(in crate::api) fn parse(text: Option<&str>) -> Result<Filters, ApiError> {
        let text = text.unwrap_or_default();
        if text.is_empty() {
            return Ok(Filters::default());
        }
        let wrong = || ApiError::bad("invalid filter");
        let value: Value = serde_json::from_str(text).map_err(|_| wrong())?;
        if value.is_null() {
            return Ok(Filters::default());
        }
        let all = value.as_object().ok_or_else(wrong)?;
        // One spelling or the other, and nothing but that.
        let is_old = all.values().any(Value::is_array);
        let read = |(key, values): (&String, &Value)| {
            let values: Option<Vec<String>> = match values {
                Value::Null => Some(Vec::new()),
                Value::Object(values) if !is_old => values
                    .iter()
                    .map(|(value, is)| (is.is_boolean() || is.is_null()).then(|| value.clone()))
                    .collect(),
                Value::Array(values) => values.iter().map(|value| value.as_str().map(str::to_owned)).collect(),
                _ => None,
            };
            Some((key.clone(), values?))
        };
        let by_key: Option<BTreeMap<String, Vec<String>>> = all.iter().map(read).collect();
        Ok(Filters {
            by_key: by_key.ok_or_else(wrong)?,
        })
    }

    /// Errors: it has a key other than `known`.
    pub(in crate::api) fn only(self, known: &[&str]) -> Result<Filters, ApiError> {
        match self.by_key.keys().find(|key| !known.contains(&key.as_str())) {
            Some(other) => Err(ApiError::bad(format!("invalid filter '{other}'"))),
            None => Ok(self),
        }
    }

    /// The values of one key, whatever the others are; none of what is no such text.
    pub(in crate::api) fn any_of(text: &str, key: &str) -> Vec<String> {
        let value: Value = serde_json::from_str(text).unwrap_or_default();
        match &value[key] {
            Value::Object(values) => values.keys().cloned().collect(),
            Value::Array(values) => values
                .iter()
                .filter_map(|value| value.as_str().map(str::to_owned))
                .collect(),
            _ => Vec::new(),
        }
    }

    /// The same text without a key.
    pub(in crate::api) fn without(text: &str, key: &str) -> String {
        match serde_json::from_str(text) {
            Ok(Value::Object(mut all)) => {
                all.remove(key);
                Value::Object(all).to_string()
            }
            _ => text.to_owned(),
        }
    }

    pub(in crate::api) fn values(&self, key: &str) -> &[String] {
        self.by_key.get(key).map_or(&[], Vec::as_slice)
    }

    /// No value was named for `key`, or one that `is_so`.
    pub(in crate::api) fn any(&self, key: &str, is_so: impl FnMut(&String) -> bool) -> bool {
        let values = self.values(key);
        values.is_empty() || values.iter().any(is_so)
    }

    /// One of the values begins the name.
    pub(in crate::api) fn prefix(&self, key: &str, name: &str) -> bool {
        self.any(key, |value| name.starts_with(value.as_str()))
    }

    /// The values as regular expressions.
    pub(in crate::api) fn patterns(&self, key: &str) -> Patterns {
        let values = self.values(key).iter();
        Patterns(values.map(|value| (value.clone(), expression(value))).collect())
    }

    /// All labels that were named are there, as a swarm's managers look for them: `key`, or `key=value`, of which no value means any.
    pub(in crate::api) fn labels<'a>(&self, key: &str, label: impl Fn(&str) -> Option<&'a str>) -> bool {
        self.values(key).iter().all(|wanted| {
            let (name, value) = wanted.split_once('=').unwrap_or((wanted, ""));
            label(name).is_some_and(|found| value.is_empty() || found == value)
        })
    }

    /// The same as an engine looks for them: no value behind `=` is an empty one.
    pub(in crate::api) fn exact_labels<'a>(&self, key: &str, label: impl Fn(&str) -> Option<&'a str>) -> bool {
        self.values(key).iter().all(|wanted| match wanted.split_once('=') {
            Some((name, value)) => label(name) == Some(value),
            None => label(wanted).is_some(),
        })
    }

    /// Labels were named that must not be there, and all of them are.
    pub(in crate::api) fn is_unwanted<'a>(&self, key: &str, label: impl Fn(&str) -> Option<&'a str>) -> bool {
        !self.values(key).is_empty() && self.exact_labels(key, label)
    }

    /// `None`: it is not asked for. Errors: it is neither on nor off, or both.
    pub(in crate::api) fn truth(&self, key: &str) -> Result<Option<bool>, ApiError> {
        let Some(values) = self.by_key.get(key) else {
            return Ok(None);
        };
        let is = |words: [&str; 2]| values.iter().any(|value| words.contains(&value.as_str()));
        match (is(["1", "true"]), is(["0", "false"])) {
            (true, false) => Ok(Some(true)),
            (false, true) => Ok(Some(false)),
            _ if values.is_empty() => Err(ApiError::bad(format!("invalid filter '{key}'"))),
            _ => {
                let values = values.join(" ");
                Err(ApiError::bad(format!("invalid filter '{key}=[{values}]'")))
            }
        }
    }
}

/// Regular expressions of which one is enough. What is none is only itself.
pub(in crate::api) struct Patterns(Vec<(String, Option<Regex>)>);

impl Patterns {
    /// There are none, or one of them is in the text.
    pub(in crate::api) fn are_in(&self, text: &str) -> bool {
        let is_in = |(value, read): &(String, Option<Regex>)| {
            value == text || read.as_ref().is_some_and(|read| read.is_match(text.as_bytes()))
        };
        self.0.is_empty() || self.0.iter().any(is_in)
    }
}

/// As Go has them: `\d`, `\w` and the like are ASCII's. `None`: it is none, or one that would take too much.
fn expression(text: &str) -> Option<Regex> {
    let mut builder = RegexBuilder::new(text);
    builder.unicode(false).size_limit(PROGRAM_BYTES_MAX).build().ok()
}

const PROGRAM_BYTES_MAX: usize = 64 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_spellings_mean_the_same() {
        let known = &["name", "label"];
        let one = Filters::read(Some(r#"{"name":{"web":true,"api":false},"label":{"a=b":true}}"#), known).unwrap();
        let other = Filters::read(Some(r#"{"name":["api","web"],"label":["a=b"]}"#), known).unwrap();
        assert_eq!(one, other);
        assert!(one.prefix("name", "website") && !one.prefix("name", "Website") && !one.prefix("name", "db"));
        assert!(one.labels("label", |key| (key == "a").then_some("b")));
        assert!(!one.labels("label", |key| (key == "a").then_some("c")));
        for (text, error) in [
            ("{\"x\":{}}", "invalid filter 'x'"),
            ("[]", "invalid filter"),
            ("{", "invalid filter"),
            ("\"name\"", "invalid filter"),
            ("{\"name\":[1]}", "invalid filter"),
            ("{\"name\":\"web\"}", "invalid filter"),
            ("{\"name\":{\"web\":1}}", "invalid filter"),
            ("{\"name\":{\"web\":true},\"label\":[\"a\"]}", "invalid filter"),
        ] {
            let said = Filters::read(Some(text), known).unwrap_err();
            assert_eq!(said.message, error, "{text}");
        }
    }

    #[test]
    fn a_swarm_and_an_engine_read_labels_otherwise() {
        let read = |text: &str| Filters::parse(Some(&format!("{{\"label\":[{text}]}}"))).unwrap();
        let label = |key: &str| (key == "a").then_some("b");
        for (text, of_swarm, of_engine) in [
            ("", true, true),
            ("\"a\"", true, true),
            ("\"a=\"", true, false),
            ("\"a=b\"", true, true),
            ("\"a=c\"", false, false),
            ("\"a\",\"x\"", false, false),
        ] {
            assert_eq!(read(text).labels("label", label), of_swarm, "{text}");
            assert_eq!(read(text).exact_labels("label", label), of_engine, "{text}");
        }
        assert!(!read("").is_unwanted("label", label) && read("\"a\"").is_unwanted("label", label));
    }

    #[test]
    fn what_is_no_expression_is_only_itself() {
        let are_in = |pattern: &str, text: &str| {
            let filters = Filters {
                by_key: BTreeMap::from([("name".to_owned(), vec![pattern.to_owned()])]),
            };
            filters.patterns("name").are_in(text)
        };
        for (pattern, text, is_in) in [
            ("b", "abc", true),
            ("^b", "abc", false),
            ("a.c$", "abc", true),
            ("(", "(", true),
            ("(", "a(", false),
            (r"\w{1000}", "a", false),
            ("(a{100}){100}", &"a".repeat(10_000), false),
        ] {
            assert_eq!(are_in(pattern, text), is_in, "{pattern} in {text:?}");
        }
        assert!(Filters::default().patterns("name").are_in("any"));
    }

    #[test]
    fn on_or_off() {
        let truth = |text: &str| {
            let filters = Filters::parse(Some(text)).unwrap();
            filters.truth("is").map_err(|error| error.message)
        };
        assert_eq!(truth("{}"), Ok(None));
        assert_eq!(truth("{\"is\":[\"1\"]}"), Ok(Some(true)));
        assert_eq!(truth("{\"is\":{\"true\":true,\"1\":true}}"), Ok(Some(true)));
        assert_eq!(truth("{\"is\":[\"false\"]}"), Ok(Some(false)));
        assert_eq!(truth("{\"is\":[]}"), Err("invalid filter 'is'".to_owned()));
        assert_eq!(truth("{\"is\":[\"x\"]}"), Err("invalid filter 'is=[x]'".to_owned()));
        assert_eq!(
            truth("{\"is\":[\"0\",\"1\"]}"),
            Err("invalid filter 'is=[0 1]'".to_owned())
        );
    }
}
