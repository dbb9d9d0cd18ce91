//! Tasks that mount the engine's socket get the swarm's in its place: what they ask of services is asked of us, and all else we
//! pass on. Not here: how that socket is kept open for them (`ApiSocket`).

use std::collections::HashMap;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use bollard::models::{ContainerInspectResponse, Mount, MountBindOptionsPropagationEnum as Propagation, MountType};

use crate::agent::Assignment;
use crate::model::labels::DOCKER_SOCKET;

/// Whether the task is to have the engine's own.
pub(super) fn is_to_be_the_engines(assignment: &Assignment) -> bool {
    let labels = assignment
        .service
        .as_ref()
        .and_then(|service| service.spec.labels.as_ref());
    let said: Option<&String> = labels.and_then(|labels: &HashMap<String, String>| labels.get(DOCKER_SOCKET));
    said.is_some_and(|said| said == "engine")
}

/// Leads mounts of the `engine`'s socket to `api`, and those of its directory too, but for what is in there besides. Returns
/// whether there were any.
pub(super) fn lead_to(mounts: &mut Vec<Mount>, engine: &Path, api: &Path) -> bool {
    let api = api.to_string_lossy().into_owned();
    let mut more = Vec::new();
    let mut any = false;
    for mount in mounts.iter_mut().filter(|mount| mount.typ == Some(MountType::BIND)) {
        let Some(source) = mount.source.as_deref().map(Path::new) else {
            continue;
        };
        if is_same(source, engine) {
            mount.source = Some(api.clone());
            any = true;
        } else if engine.parent().is_some_and(|dir| is_same(source, dir))
            && !is_shared(mount)
            && let (Some(target), Some(name)) = (&mount.target, engine.file_name())
        {
            more.push(Mount {
                typ: Some(MountType::BIND),
                source: Some(api.clone()),
                target: Some(Path::new(target).join(name).to_string_lossy().into_owned()),
                ..Mount::default()
            });
            any = true;
        }
    }
    mounts.append(&mut more);
    any
}

/// Whether a container has `api` where its service has it mount the engine's.
pub(super) fn is_led_to(container: &ContainerInspectResponse, api: Option<&Path>) -> bool {
    let host_config = container.host_config.as_ref();
    let mut mounts = host_config.and_then(|host| host.mounts.as_ref()).into_iter().flatten();
    api.is_some_and(|api| mounts.any(|mount| mount.source.as_deref().map(Path::new) == Some(api)))
}

/// What the status of such a task says.
pub(super) const NOTE: &str = "its docker.sock is anynode's: see label anynode.docker-socket";

/// Whatever the paths: /var/run is mostly a link to /run.
fn is_same(one: &Path, other: &Path) -> bool {
    let id = |path: &Path| {
        std::fs::metadata(path)
            .ok()
            .map(|metadata| (metadata.dev(), metadata.ino()))
    };
    match (id(one), id(other)) {
        (Some(one), Some(other)) => one == other,
        _ => one == other,
    }
}

/// What is mounted in such a one would be mounted outside as well.
fn is_shared(mount: &Mount) -> bool {
    let propagation = mount.bind_options.as_ref().and_then(|options| options.propagation);
    matches!(propagation, Some(Propagation::SHARED | Propagation::RSHARED))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bind(source: &Path, target: &str) -> Mount {
        Mount {
            typ: Some(MountType::BIND),
            source: Some(source.display().to_string()),
            target: Some(target.to_owned()),
            read_only: Some(true),
            ..Mount::default()
        }
    }

    fn led(mut mounts: Vec<Mount>, engine: &Path) -> Vec<(String, String)> {
        lead_to(&mut mounts, engine, Path::new("/api.sock"));
        let pairs = mounts.into_iter();
        pairs
            .map(|mount| (mount.source.unwrap(), mount.target.unwrap()))
            .collect()
    }

    #[test]
    fn whatever_leads_to_the_engines_socket_leads_to_ours() {
        let dir = tempfile::tempdir().unwrap();
        let run = dir.path().join("run");
        std::fs::create_dir(&run).unwrap();
        std::os::unix::fs::symlink(&run, dir.path().join("var-run")).unwrap();
        let engine = run.join("docker.sock");
        let _listener = std::os::unix::net::UnixListener::bind(&engine).unwrap();
        std::fs::write(run.join("other"), "").unwrap();
        let pair = |source: &str, target: &str| (source.to_owned(), target.to_owned());
        for source in [
            &engine,
            &dir.path().join("var-run/docker.sock"),
            &run.join("../run/docker.sock"),
        ] {
            assert_eq!(
                led(vec![bind(source, "/var/run/docker.sock")], &engine),
                [pair("/api.sock", "/var/run/docker.sock")]
            );
        }
        let link = dir.path().join("var-run");
        assert_eq!(
            led(vec![bind(&link, "/host/run")], &engine),
            [
                pair(&link.display().to_string(), "/host/run"),
                pair("/api.sock", "/host/run/docker.sock")
            ]
        );
        for other in [run.join("other"), dir.path().to_owned(), "/nonexistent".into()] {
            let same = vec![bind(&other, "/x")];
            assert_eq!(led(same, &engine), [pair(&other.display().to_string(), "/x")]);
        }
        let mut shared = bind(&run, "/x");
        shared.bind_options = Some(bollard::models::MountBindOptions {
            propagation: Some(Propagation::RSHARED),
            ..Default::default()
        });
        assert!(!lead_to(&mut vec![shared], &engine, Path::new("/api.sock")));
    }
}
