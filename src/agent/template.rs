//! Placeholders in specs, configs and secrets: `{{.Task.Slot}}` and the like, as Docker fills them in.

use std::io;

use super::Assignment;
use crate::gotemplate::{Answer, FUNCTIONS, Names, Template, TemplateError, Value, function, text_of};
use crate::model::swarm::Payload;

/// What configs and secrets may call besides.
const FUNCTIONS_OF_PAYLOADS: [&str; 4] = ["join", "env", "config", "secret"];

/// Fills in the placeholders of `text`.
pub(super) fn expand(text: &str, assignment: &Assignment) -> Result<String, TemplateError> {
    if !text.contains("{{") {
        return Ok(text.to_owned());
    }
    let template = Template::parse(text, &FUNCTIONS)?;
    template.fill_in(&names(assignment), &function)
}

/// What placeholders are of.
fn names(assignment: &Assignment) -> Value {
    let (task, node) = (&assignment.task, &assignment.node);
    let labels = assignment
        .service
        .as_ref()
        .and_then(|service| service.spec.labels.clone());
    let names = Names {
        service_id: task.service.to_string(),
        service_name: task.service_name.to_string(),
        service_labels: labels.into_iter().flatten().collect(),
        node_id: node.id.to_string(),
        node_hostname: node.hostname.clone(),
        node_architecture: node.architecture.clone(),
        node_os: node.os.clone(),
        task_id: task.id.to_string(),
        task_name: task.name(),
        task_slot: match task.slot {
            // As Docker has it for global services.
            0 => node.id.to_string(),
            slot => slot.to_string(),
        },
    };
    names.into_value()
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
            let expanded = Template::parse(text, &FUNCTIONS_OF_PAYLOADS).and_then(|template| {
                template.fill_in(&names(assignment), &|name, values| of_task(name, values, assignment))
            });
            Ok(expanded.map_err(|error| wrong(error.to_string()))?.into_bytes())
        }
    }
}

/// What only a config or a secret may ask: the task's environment, configs and secrets, the latter two by their files' names.
fn of_task(name: &str, values: &[Value], assignment: &Assignment) -> Answer {
    let argument = match (name, values) {
        ("env" | "config" | "secret", [value]) => text_of(value)?,
        ("env" | "config" | "secret", _) => return Err(format!("wrong number of args: want 1 got {}", values.len())),
        _ => return function(name, values),
    };
    let container = assignment.task.spec.container_spec.as_ref();
    let container = container.ok_or("the task has no container")?;
    let missing = || format!("{name} target {argument:?} not found");
    let text = |payload: &Payload| {
        let text = String::from_utf8(payload.data.to_vec());
        text.map(Value::Text)
            .map_err(|_| format!("{name} {argument:?} is not UTF-8"))
    };
    match name {
        "env" => {
            let mut variables = container.env.iter().flatten().filter_map(|entry| entry.split_once('='));
            match variables.find(|(key, _)| *key == argument) {
                Some((_, value)) => expand(value, assignment)
                    .map(Value::Text)
                    .map_err(|error| error.to_string()),
                None => Ok(Value::text("")),
            }
        }
        "config" => {
            let mut configs = container.configs.iter().flatten();
            let named = configs.find(|config| {
                let file = config.file.as_ref();
                file.is_some_and(|file| file.name.as_deref() == Some(argument))
            });
            let id = named
                .and_then(|config| config.config_id.as_deref())
                .ok_or_else(missing)?;
            text(assignment.configs.get(id).ok_or_else(missing)?)
        }
        _ => {
            let mut secrets = container.secrets.iter().flatten();
            let named = secrets.find(|secret| {
                let file = secret.file.as_ref();
                file.is_some_and(|file| file.name.as_deref() == Some(argument))
            });
            let id = named
                .and_then(|secret| secret.secret_id.as_deref())
                .ok_or_else(missing)?;
            text(assignment.secrets.get(id).ok_or_else(missing)?)
        }
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
            ("{{.Service.Labels}}", "map[a.b:labelled c:short]"),
            ("{{.Task}}", "{task web.3.task 3}"),
            (
                "{{with .Node.Platform}}{{.OS}}-{{.Architecture}}{{end}}",
                "linux-x86_64",
            ),
            ("{{printf \"%s-%02s\" .Service.Name .Task.Slot}}", "web-03"),
            ("{{if eq .Task.Slot \"1\"}}first{{else}}other{{end}}", "other"),
            ("{{.Service.Name | printf \"%q\"}}", "\"web\""),
            (
                "{{range $k, $v := .Service.Labels}}{{$k}}={{$v}};{{end}}",
                "a.b=labelled;c=short;",
            ),
            ("{{join \"-\" .Service.Name .Task.Slot}}", "web-3"),
        ] {
            assert_eq!(expand(text, &assignment).as_deref(), Ok(expected), "{text}");
        }
        for bad in [
            "{{",
            "{{}}",
            "{{.Task.Slot",
            "{{.Service.Labels.}}",
            "{{.Service.Labels.none}}",
            "{{.Tasks}}",
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
