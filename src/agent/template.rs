//! Placeholders in specs, configs and secrets: `{{.Task.Slot}}` and the like, as Docker fills them in.

use std::io;

use super::Assignment;
use crate::model::swarm::Payload;

/// A placeholder that nobody knows.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "template {text:?}: expected placeholders such as {{{{.Service.Name}}}}, {{{{.Node.Hostname}}}} or {{{{.Task.Slot}}}}"
)]
pub struct TemplateError {
    text: String,
}

/// Fills in the placeholders of `text`.
pub(super) fn expand(text: &str, assignment: &Assignment) -> Result<String, TemplateError> {
    fill_in(text, |name| value(name, assignment))
}

/// Placeholders by what `value` says of each, which is asked for what stands between the braces.
fn fill_in(text: &str, mut value: impl FnMut(&str) -> Option<String>) -> Result<String, TemplateError> {
    let wrong = |what: &str| TemplateError { text: what.to_owned() };
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("{{") {
        let (inner, after) = after.split_once("}}").ok_or_else(|| wrong(shortened(text)))?;
        // A dash takes the white space on its side along.
        let (before, inner) = match inner.strip_prefix("- ") {
            Some(inner) => (before.trim_end(), inner),
            None => (before, inner),
        };
        let (after, inner) = match inner.strip_suffix(" -") {
            Some(inner) => (after.trim_start(), inner),
            None => (after, inner),
        };
        out.push_str(before);
        out.push_str(&value(inner.trim()).ok_or_else(|| wrong(inner.trim()))?);
        rest = after;
    }
    out.push_str(rest);
    Ok(out)
}

/// Enough to find it by.
fn shortened(text: &str) -> &str {
    let at = text.char_indices().nth(60).map_or(text.len(), |(at, _)| at);
    &text[..at]
}

fn value(name: &str, assignment: &Assignment) -> Option<String> {
    let (task, node) = (&assignment.task, &assignment.node);
    Some(match name {
        ".Service.ID" => task.service.to_string(),
        ".Service.Name" => task.service_name.to_string(),
        ".Node.ID" => node.id.to_string(),
        ".Node.Hostname" => node.hostname.clone(),
        ".Node.Platform.Architecture" => node.architecture.clone(),
        ".Node.Platform.OS" => node.os.clone(),
        ".Task.ID" => task.id.to_string(),
        ".Task.Name" => task.name(),
        ".Task.Slot" => match task.slot {
            // As Docker has it for global services.
            0 => node.id.to_string(),
            slot => slot.to_string(),
        },
        _ => {
            let key = match name.strip_prefix("index .Service.Labels ") {
                Some(key) => quoted(key)?,
                None => name.strip_prefix(".Service.Labels.").filter(|key| is_word(key))?,
            };
            let labels = assignment.service.as_ref()?.spec.labels.as_ref();
            labels.and_then(|labels| labels.get(key)).cloned().unwrap_or_default()
        }
    })
}

fn is_word(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| c.is_alphanumeric() || c == '_')
}

fn quoted(text: &str) -> Option<&str> {
    let text = text.trim();
    ['"', '`']
        .into_iter()
        .find_map(|quote| text.strip_prefix(quote)?.strip_suffix(quote))
        .filter(|text| !text.contains(['"', '`', '\\']))
}

/// What a config or a secret holds for this task. Errors: it is a template, and no text or with a placeholder that nobody
/// knows.
pub(super) fn contents(payload: &Payload, assignment: &Assignment) -> io::Result<Vec<u8>> {
    match payload.templating.as_deref() {
        None | Some("") => Ok(payload.data.to_vec()),
        Some(_) => {
            let wrong = |reason: String| {
                let name = &payload.name;
                io::Error::new(io::ErrorKind::InvalidData, format!("{name}: {reason}"))
            };
            let text = std::str::from_utf8(&payload.data)
                .map_err(|_| wrong("expected a template to be text in UTF-8".to_owned()))?;
            let expanded = fill_in(text, |name| {
                value(name, assignment).or_else(|| of_task(name, assignment))
            });
            Ok(expanded.map_err(|error| wrong(error.to_string()))?.into_bytes())
        }
    }
}

/// What only a config or a secret may ask: the task's environment, configs and secrets, the latter two by their files' names.
fn of_task(name: &str, assignment: &Assignment) -> Option<String> {
    let container = assignment.task.spec.container_spec.as_ref()?;
    let (function, argument) = name.split_once(char::is_whitespace)?;
    let argument = quoted(argument)?;
    let text = |payload: &Payload| String::from_utf8(payload.data.to_vec()).ok();
    match function {
        "env" => {
            let mut variables = container.env.iter().flatten().filter_map(|entry| entry.split_once('='));
            match variables.find(|(key, _)| *key == argument) {
                Some((_, value)) => expand(value, assignment).ok(),
                None => Some(String::new()),
            }
        }
        "config" => {
            let mut configs = container.configs.iter().flatten();
            let named = configs.find(|config| {
                let file = config.file.as_ref();
                file.is_some_and(|file| file.name.as_deref() == Some(argument))
            });
            text(assignment.configs.get(named?.config_id.as_deref()?)?)
        }
        "secret" => {
            let mut secrets = container.secrets.iter().flatten();
            let named = secrets.find(|secret| {
                let file = secret.file.as_ref();
                file.is_some_and(|file| file.name.as_deref() == Some(argument))
            });
            text(assignment.secrets.get(named?.secret_id.as_deref()?)?)
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::json;

    use super::super::tests::{assignment, payload};
    use super::*;
    use crate::model::swarm::Id;

    #[test]
    fn placeholders() {
        let assignment = assignment(json!({ "Labels": { "a.b": "labelled", "c": "short" } }));
        for (text, expected) in [
            ("plain", "plain"),
            ("{{.Service.Name}}-{{ .Task.Slot }}", "web-3"),
            ("{{.Task.Name}}", "web.3.task"),
            ("{{.Node.Hostname}}/{{.Node.Platform.OS}}", "host/linux"),
            ("{{index .Service.Labels \"a.b\"}}", "labelled"),
            ("{{index .Service.Labels \"none\"}}", ""),
            ("{{.Service.Labels.c}}", "short"),
            ("a {{- .Task.Slot -}} b", "a3b"),
            ("a {{- .Task.Slot }} b", "a3 b"),
            ("a {{ .Task.Slot -}} b", "a 3b"),
            ("}} {", "}} {"),
        ] {
            assert_eq!(expand(text, &assignment).as_deref(), Ok(expected), "{text}");
        }
        for bad in [
            "{{",
            "{{}}",
            "{{.Task.Slot",
            "{{.Task}}",
            "{{.Service.Labels.}}",
            "{{index .Service.Labels c}}",
            "{{index .Service.Labels \"a\" \"b\"}}",
            "{{env \"X\"}}",
        ] {
            assert!(expand(bad, &assignment).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_a_placeholder_stands_for_is_not_filled_in_again() {
        let assignment = assignment(json!({ "Labels": { "c": "{{.Task.ID}}" } }));
        assert_eq!(
            expand("{{.Service.Labels.c}}", &assignment).as_deref(),
            Ok("{{.Task.ID}}")
        );
    }

    #[test]
    fn a_config_may_ask_for_more() {
        let mut assignment = assignment(json!({ "TaskTemplate": { "ContainerSpec": {
            "Env": ["LEVEL=debug-{{.Task.Slot}}"],
            "Secrets": [{ "SecretID": "s1", "SecretName": "key", "File": { "Name": "key.pem" } }],
        } } }));
        assignment
            .secrets
            .insert(Id::from("s1"), Arc::new(payload("key", "hush")));
        let mut template = payload("conf", "{{env \"LEVEL\"}} {{ secret \"key.pem\" }} {{.Task.Slot}}");
        assert_eq!(contents(&template, &assignment).unwrap(), &*template.data);
        template.templating = Some("golang".to_owned());
        assert_eq!(contents(&template, &assignment).unwrap(), b"debug-3 hush 3");
        template.data = b"{{secret \"none\"}}".to_vec().into();
        let error = contents(&template, &assignment).unwrap_err().to_string();
        assert!(error.contains("conf: template") && error.contains("none"), "{error}");
        template.data = [0xff, 0xfe].to_vec().into();
        assert!(contents(&template, &assignment).is_err());
    }
}
