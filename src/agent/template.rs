//! Placeholders in specs: `{{.Task.Slot}}` and the like, as Docker fills them in.

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
    let wrong = || TemplateError { text: text.to_owned() };
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("{{") {
        let (name, after) = after.split_once("}}").ok_or_else(wrong)?;
        out.push_str(before);
        out.push_str(&value(name.trim(), assignment).ok_or_else(wrong)?);
        rest = after;
    }
    out.push_str(rest);
    Ok(out)
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
            let key = name.strip_prefix("index .Service.Labels ")?.trim();
            let key = key.strip_prefix('"')?.strip_suffix('"')?;
            let labels = assignment.service.as_ref()?.spec.labels.as_ref()?;
            labels.get(key).cloned().unwrap_or_default()
        }
    })
}

/// What a config or a secret holds for this task.
pub(super) fn contents(payload: &Payload, assignment: &Assignment) -> io::Result<Vec<u8>> {
    match payload.templating.as_deref() {
        None | Some("") => Ok(payload.data.to_vec()),
        Some(_) => {
            let text = std::str::from_utf8(&payload.data).map_err(io::Error::other)?;
            let expanded = expand(text, assignment).map_err(io::Error::other)?;
            Ok(expanded.into_bytes())
        }
    }
}
