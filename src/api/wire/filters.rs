//! `filters` of list requests: `{"name":{"web":true}}`, or `{"name":["web"]}` as older clients write it.

use std::collections::BTreeMap;

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
        let mut filters = Filters::default();
        let text = text.unwrap_or_default();
        if text.is_empty() {
            return Ok(filters);
        }
        let wrong = || ApiError::bad("invalid filters: expected JSON such as {\"name\":{\"web\":true}}");
        let value: Value = serde_json::from_str(text).map_err(|_| wrong())?;
        if value.is_null() {
            return Ok(filters);
        }
        for (key, values) in value.as_object().ok_or_else(wrong)? {
            if !known.contains(&key.as_str()) {
                return Err(ApiError::bad(format!("invalid filter '{key}'")));
            }
            let values: Vec<String> = match values {
                Value::Null => Vec::new(),
                Value::Object(values) => values
                    .iter()
                    .filter(|(_, is)| is.as_bool() != Some(false))
                    .map(|(value, _)| value.clone())
                    .collect(),
                Value::Array(values) => {
                    let texts: Option<Vec<String>> =
                        values.iter().map(|value| value.as_str().map(str::to_owned)).collect();
                    texts.ok_or_else(wrong)?
                }
                _ => return Err(wrong()),
            };
            filters.by_key.insert(key.clone(), values);
        }
        Ok(filters)
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

    /// All labels that were named are there: `key`, or `key=value`.
    pub(in crate::api) fn labels<'a>(&self, key: &str, label: impl Fn(&str) -> Option<&'a str>) -> bool {
        self.values(key).iter().all(|wanted| {
            let (name, value) = wanted.split_once('=').unwrap_or((wanted, ""));
            label(name).is_some_and(|found| value.is_empty() || found == value)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_spellings_mean_the_same() {
        let known = &["name", "label"];
        let one = Filters::read(Some(r#"{"name":{"web":true,"api":true},"label":{"a=b":true}}"#), known).unwrap();
        let other = Filters::read(Some(r#"{"name":["api","web"],"label":["a=b"]}"#), known).unwrap();
        assert_eq!(one, other);
        assert!(one.prefix("name", "website") && !one.prefix("name", "Website") && !one.prefix("name", "db"));
        assert!(one.labels("label", |key| (key == "a").then_some("b")));
        assert!(!one.labels("label", |key| (key == "a").then_some("c")));
        for (text, error) in [
            ("{\"x\":{}}", "invalid filter 'x'"),
            ("[]", "invalid filters"),
            ("{", "invalid filters"),
            ("{\"name\":[1]}", "invalid filters"),
        ] {
            let said = Filters::read(Some(text), known).unwrap_err();
            assert!(said.message.starts_with(error), "{text}: {}", said.message);
        }
    }
}
