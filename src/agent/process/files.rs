//! Configs and secrets of a task that is a process: files below its own root, with owner and mode.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Component, Path, PathBuf};

use super::job::Dir;
use crate::agent::{Assignment, template};
use crate::model::swarm::{Id, Payload};

/// Where and how a file stands.
struct Place<'a> {
    /// As the spec has it, such as `/etc/nginx/nginx.conf` or `nginx.conf`.
    name: &'a str,
    uid: Option<&'a str>,
    gid: Option<&'a str>,
    mode: Option<u32>,
}

/// Writes all of them. Errors: one that is not there, or a name that leads out of the task's root.
pub(super) fn write_all(dir: &Dir, assignment: &Assignment) -> io::Result<()> {
    let container = assignment.task.spec.container_spec.clone().unwrap_or_default();
    for config in container.configs.iter().flatten() {
        let Some(file) = &config.file else { continue };
        let place = Place {
            name: file.name.as_deref().unwrap_or_default(),
            uid: file.uid.as_deref(),
            gid: file.gid.as_deref(),
            mode: file.mode,
        };
        let named = (config.config_id.as_deref(), config.config_name.as_deref());
        let payload = find("config", named, |id| assignment.configs.get(id))?;
        write(
            dir,
            Path::new("/"),
            &place,
            &template::contents(payload, assignment)?,
            0o444,
        )?;
    }
    for secret in container.secrets.iter().flatten() {
        let Some(file) = &secret.file else { continue };
        let place = Place {
            name: file.name.as_deref().unwrap_or_default(),
            uid: file.uid.as_deref(),
            gid: file.gid.as_deref(),
            mode: file.mode,
        };
        let named = (secret.secret_id.as_deref(), secret.secret_name.as_deref());
        let payload = find("secret", named, |id| assignment.secrets.get(id))?;
        write(
            dir,
            Path::new("/run/secrets"),
            &place,
            &template::contents(payload, assignment)?,
            0o444,
        )?;
    }
    Ok(())
}

fn find<'a>(
    what: &str,
    (id, name): (Option<&str>, Option<&str>),
    get: impl FnOnce(&Id) -> Option<&'a std::sync::Arc<Payload>>,
) -> io::Result<&'a Payload> {
    let found = id.and_then(|id| get(&Id::from(id)));
    let missing = || {
        io::Error::new(
            io::ErrorKind::NotFound,
            format!("{what} not found: {}", name.or(id).unwrap_or("")),
        )
    };
    found.map(|payload| &**payload).ok_or_else(missing)
}

fn write(dir: &Dir, base: &Path, place: &Place<'_>, bytes: &[u8], mode: u32) -> io::Result<()> {
    let path = below(&dir.root(), &base.join(place.name)).ok_or_else(|| {
        let wrong = format!("file name {:?}: expected one without \"..\"", place.name);
        io::Error::new(io::ErrorKind::InvalidInput, wrong)
    })?;
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    let mut file = File::options().write(true).create_new(true).mode(0o600).open(&path)?;
    file.write_all(bytes)?;
    let number = |text: Option<&str>| text.and_then(|text| text.parse().ok());
    let (uid, gid): (Option<u32>, Option<u32>) = (number(place.uid), number(place.gid));
    if rustix::process::geteuid().is_root() {
        fchown(&file, uid, gid)?;
    }
    file.set_permissions(fs::Permissions::from_mode(place.mode.unwrap_or(mode) & 0o7777))
}

/// `path`, which is absolute, below `root`.
fn below(root: &Path, path: &Path) -> Option<PathBuf> {
    let mut below = root.to_owned();
    let mut is_named = false;
    for component in path.components() {
        match component {
            Component::RootDir | Component::CurDir => {}
            Component::Normal(name) => {
                below.push(name);
                is_named = true;
            }
            Component::ParentDir | Component::Prefix(_) => return None,
        }
    }
    is_named.then_some(below)
}
