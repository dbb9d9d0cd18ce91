//! Configs and secrets as the files that a task finds. Not here: how they get there, which is the runtimes'.

use std::collections::BTreeMap;
use std::io;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use super::{Assignment, template};
use crate::model::swarm::{Id, Payload};

/// A file of a task.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct TaskFile {
    /// Relative to the task's `/`, with nothing but names in it, and at least one.
    pub(super) path: PathBuf,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mode: u32,
    pub(super) data: Vec<u8>,
}

/// As a spec has it.
struct Asked<'a> {
    what: &'static str,
    id: Option<&'a str>,
    name: Option<&'a str>,
    /// Such as `/etc/nginx/nginx.conf` or `nginx.conf`.
    file: Option<&'a str>,
    uid: Option<&'a str>,
    gid: Option<&'a str>,
    mode: Option<u32>,
}

/// All files of a task. Errors: one that is not there, a name that leads elsewhere, an owner that is no number, a template
/// that asks what nobody knows.
pub(super) fn of(assignment: &Assignment) -> io::Result<Vec<TaskFile>> {
    let Some(container) = &assignment.task.spec.container_spec else {
        return Ok(Vec::new());
    };
    let mut files = Vec::new();
    for config in container.configs.iter().flatten() {
        // One without a file is for the runtime.
        let Some(file) = &config.file else { continue };
        let asked = Asked {
            what: "config",
            id: config.config_id.as_deref(),
            name: config.config_name.as_deref(),
            file: file.name.as_deref(),
            uid: file.uid.as_deref(),
            gid: file.gid.as_deref(),
            mode: file.mode,
        };
        files.push(asked.file(Path::new("/"), &assignment.configs, assignment)?);
    }
    for secret in container.secrets.iter().flatten() {
        let Some(file) = &secret.file else { continue };
        let asked = Asked {
            what: "secret",
            id: secret.secret_id.as_deref(),
            name: secret.secret_name.as_deref(),
            file: file.name.as_deref(),
            uid: file.uid.as_deref(),
            gid: file.gid.as_deref(),
            mode: file.mode,
        };
        files.push(asked.file(Path::new("/run/secrets"), &assignment.secrets, assignment)?);
    }
    Ok(files)
}

impl Asked<'_> {
    fn file(&self, base: &Path, held: &BTreeMap<Id, Arc<Payload>>, assignment: &Assignment) -> io::Result<TaskFile> {
        let payload = self.id.and_then(|id| held.get(id)).ok_or_else(|| {
            let name = self.name.or(self.id).unwrap_or_default();
            io::Error::new(io::ErrorKind::NotFound, format!("{} not found: {name}", self.what))
        })?;
        let path = self
            .file
            .filter(|name| !name.is_empty())
            .and_then(|name| relative(&base.join(name)));
        let wrong = |key: &str, value: &str, expected: &str| {
            let reason = format!("{} {}: {key} {value:?}: expected {expected}", self.what, payload.name);
            io::Error::new(io::ErrorKind::InvalidInput, reason)
        };
        let number = |key: &str, text: Option<&str>| match text.filter(|text| !text.is_empty()) {
            None => Ok(0),
            Some(text) => text.parse().map_err(|_| wrong(key, text, "a number")),
        };
        Ok(TaskFile {
            path: path.ok_or_else(|| {
                let expected = "the name of a file, or its whole path, without \"..\"";
                wrong("File.Name", self.file.unwrap_or_default(), expected)
            })?,
            uid: number("File.UID", self.uid)?,
            gid: number("File.GID", self.gid)?,
            mode: self.mode.unwrap_or(0o444) & 0o7777,
            data: template::contents(payload, assignment)?,
        })
    }
}

/// An absolute path without its root.
fn relative(path: &Path) -> Option<PathBuf> {
    let mut relative = PathBuf::new();
    for component in path.components() {
        match component {
            Component::RootDir | Component::CurDir => {}
            Component::Normal(name) => relative.push(name),
            Component::ParentDir | Component::Prefix(_) => return None,
        }
    }
    (!relative.as_os_str().is_empty()).then_some(relative)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::tests::{assignment, payload};
    use super::*;

    fn config(file: serde_json::Value) -> io::Result<Vec<TaskFile>> {
        let mut assignment = assignment(json!({ "TaskTemplate": { "ContainerSpec": { "Configs": [
            { "ConfigID": "c", "ConfigName": "conf", "File": file },
        ] } } }));
        assignment
            .configs
            .insert(Id::from("c"), Arc::new(payload("conf", "held")));
        of(&assignment)
    }

    #[test]
    fn names_are_paths_below_the_root() {
        for (name, expected) in [
            ("conf", "conf"),
            ("/etc/app/conf", "etc/app/conf"),
            ("a/./b", "a/b"),
            ("//a//b/", "a/b"),
        ] {
            let files = config(json!({ "Name": name, "UID": "33", "GID": "", "Mode": 0o440 })).unwrap_or_default();
            let file = files.first().unwrap();
            assert_eq!(file.path, Path::new(expected), "{name}");
            assert_eq!((file.uid, file.gid, file.mode), (33, 0, 0o440));
            assert_eq!(file.data, b"held");
        }
        for name in ["../job", "/etc/../../job", "", "/", "."] {
            let error = config(json!({ "Name": name })).err().unwrap().to_string();
            assert!(error.starts_with("config conf: File.Name"), "{name}: {error}");
        }
        let error = config(json!({ "Name": "a", "UID": "nobody" }))
            .err()
            .unwrap()
            .to_string();
        assert_eq!(error, "config conf: File.UID \"nobody\": expected a number");
    }

    #[test]
    fn secrets_stand_where_docker_has_them() {
        let secrets = json!([
            { "SecretID": "s", "SecretName": "key", "File": { "Name": "key.pem" } },
            { "SecretID": "s", "SecretName": "key", "File": { "Name": "/etc/key" } },
        ]);
        let mut assignment = assignment(json!({ "TaskTemplate": { "ContainerSpec": { "Secrets": secrets } } }));
        assert_eq!(of(&assignment).err().unwrap().to_string(), "secret not found: key");
        assignment
            .secrets
            .insert(Id::from("s"), Arc::new(payload("key", "hush")));
        let files = of(&assignment).unwrap_or_default();
        let paths: Vec<_> = files.iter().map(|file| file.path.to_str().unwrap()).collect();
        assert_eq!(paths, ["run/secrets/key.pem", "etc/key"]);
        assert_eq!(files[0].mode, 0o444);
    }
}
