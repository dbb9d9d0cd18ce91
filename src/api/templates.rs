//! The placeholders of a service's spec are ones that its tasks can fill in: tried with names that mean nothing.

use super::wire::ApiError;
use crate::gotemplate::{FUNCTIONS, Names, Template, Value, function};
use crate::model::swarm::ServiceSpec;

pub(super) fn check(spec: &ServiceSpec) -> Result<(), ApiError> {
    let container = spec
        .task_template
        .as_ref()
        .and_then(|template| template.container_spec.as_ref());
    let Some(container) = container else { return Ok(()) };
    let mounts = container.mounts.iter().flatten();
    let of_mounts = mounts.flat_map(|mount| [mount.source.as_deref(), mount.target.as_deref()]);
    let env = container.env.iter().flatten().map(|env| Some(env.as_str()));
    let texts = of_mounts.chain(env).chain([container.hostname.as_deref()]);
    let labels = spec.labels.clone().unwrap_or_default();
    let names = || {
        let names = Names {
            service_labels: labels.clone().into_iter().collect(),
            ..Names::default()
        };
        names.into_value()
    };
    let templates = texts.flatten().filter(|text| text.contains("{{"));
    templates.into_iter().try_for_each(|text| one(text, &names()))
}

fn one(text: &str, names: &Value) -> Result<(), ApiError> {
    let filled_in = Template::parse(text, &FUNCTIONS).and_then(|template| template.fill_in(names, &function));
    match filled_in {
        Ok(_) => Ok(()),
        Err(error) => Err(ApiError::invalid(format!("ContainerSpec: {error}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates() {
        let names = Names {
            service_labels: [("here".to_owned(), "1".to_owned())].into(),
            ..Names::default()
        };
        let names = names.into_value();
        for good in [
            "x",
            "{{.Task.Slot}}",
            "a-{{ .Node.Hostname }}-{{.Task.ID}}",
            "{{index .Service.Labels \"a.b\"}}",
            "{{.Service.Labels.here}}",
            "{{if eq .Task.Slot \"1\"}}primary{{else}}replica{{end}}",
        ] {
            assert!(one(good, &names).is_ok(), "{good}");
        }
        for bad in [
            "{{",
            "{{}}",
            "{{.Nothing}}",
            "{{.Service.Labels.gone}}",
            "{{.Task.Slot",
            "{{.Task.Slot}}{{x}}",
            "{{env \"X\"}}",
            "{{index .Service.Labels a}}",
        ] {
            let error = one(bad, &names).unwrap_err().message;
            assert!(error.contains("ContainerSpec: template"), "{bad}: {error}");
        }
    }
}
