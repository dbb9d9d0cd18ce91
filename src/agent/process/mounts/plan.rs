//! A service's mounts as its tasks are to have them. Pure: no file is looked at. What cannot be had is refused, with Docker's
//! words where it has some.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use bollard_stubs::models::{
    Mount as Spec, MountBindOptions, MountBindOptionsPropagationEnum as Propagation, MountTmpfsOptions, MountType,
    MountVolumeOptions,
};

use super::{Mount, What, failed, target};
use crate::agent::process::volume_name::{DRIVER, check_name, data_of};

/// Where volumes are.
pub(in crate::agent::process) struct Places<'a> {
    /// Of all that have names.
    pub(in crate::agent::process) volumes: &'a Path,
    /// The task's own.
    pub(in crate::agent::process) own: &'a Path,
}

/// Those in front first that others may lie in. `expand` fills in placeholders. Errors: in words, a mount that a process cannot
/// have.
pub(in crate::agent::process) fn of(
    specs: &[Spec],
    places: &Places<'_>,
    expand: impl Fn(&String) -> Result<String, String>,
) -> Result<Vec<Mount>, String> {
    let mut mounts: Vec<Mount> = Vec::new();
    for spec in specs {
        let named = spec.target.clone().unwrap_or_default();
        let one = || -> Result<Mount, String> {
            let expanded = Spec {
                target: spec.target.as_ref().map(&expand).transpose()?,
                source: spec.source.as_ref().map(&expand).transpose()?,
                ..spec.clone()
            };
            let target = target_of(expanded.target.as_deref().unwrap_or_default())?;
            if mounts.iter().any(|mount| mount.target == target) {
                return Err(format!("Duplicate mount point: {}", target.display()));
            }
            mount_of(&expanded, target, places, mounts.len(), &expand)
        };
        let mount = one().map_err(|reason| failed(&named, &reason))?;
        mounts.push(mount);
    }
    mounts.sort_by_key(|mount| mount.target.components().count());
    Ok(mounts)
}

/// As Go's path.Clean has it.
fn target_of(text: &str) -> Result<PathBuf, String> {
    let path = absolute(text).ok_or("invalid mount path: expected an absolute path")?;
    let mut clean = PathBuf::from("/");
    for part in path.components() {
        match part {
            Component::Normal(name) => clean.push(name),
            Component::ParentDir => drop(clean.pop()),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    match target::is_kept_free(&clean) {
        Some(reason) => Err(reason),
        None => Ok(clean),
    }
}

fn absolute(text: &str) -> Option<&Path> {
    Some(Path::new(text)).filter(|path| path.is_absolute() && !text.contains('\0'))
}

fn mount_of(
    spec: &Spec,
    target: PathBuf,
    places: &Places<'_>,
    number: usize,
    expand: &impl Fn(&String) -> Result<String, String>,
) -> Result<Mount, String> {
    let source = spec.source.as_deref().unwrap_or_default();
    let read_only = spec.read_only == Some(true);
    let (bind, volume, memory) = (&spec.bind_options, &spec.volume_options, &spec.tmpfs_options);
    let unfit = |is_said: bool, name: &str| match is_said {
        true => Err(format!("invalid mount config: field {name} must not be specified")),
        false => Ok(()),
    };
    let (is_bind, is_volume, is_memory) = (
        spec.typ == Some(MountType::BIND),
        spec.typ == Some(MountType::VOLUME),
        spec.typ == Some(MountType::TMPFS),
    );
    let what = match spec.typ {
        Some(MountType::BIND) => bind_of(source, bind.as_ref(), read_only)?,
        Some(MountType::VOLUME) => {
            let options = volume.clone().unwrap_or_default();
            volume_of(source, &options, read_only, places, number, expand)?
        }
        Some(MountType::TMPFS) => {
            unfit(!source.is_empty(), "Source")?;
            memory_of(memory.clone().unwrap_or_default())?
        }
        Some(other) => {
            return Err(format!(
                "type {other}: tasks are processes of this host here: expected bind, volume or tmpfs, or a Docker Engine"
            ));
        }
        None => return Err("mount type unknown: \"\": expected bind, volume or tmpfs".to_owned()),
    };
    unfit(!is_bind && bind.is_some(), "BindOptions")?;
    unfit(!is_volume && volume.is_some(), "VolumeOptions")?;
    unfit(!is_memory && memory.is_some(), "TmpfsOptions")?;
    unfit(spec.image_options.is_some(), "ImageOptions")?;
    Ok(Mount {
        target,
        what,
        read_only,
        read_only_top: bind
            .as_ref()
            .is_some_and(|bind| bind.read_only_non_recursive == Some(true)),
    })
}

fn bind_of(source: &str, options: Option<&MountBindOptions>, read_only: bool) -> Result<What, String> {
    const SOCKETS: [&str; 2] = ["/var/run/docker.sock", "/run/docker.sock"];
    let path = absolute(source).ok_or_else(|| format!("bind source {source:?}: expected an absolute path"))?;
    if SOCKETS.contains(&source) {
        return Err(format!(
            "{source}: the socket of the Docker API is not mounted for tasks that are processes: expected a Docker Engine"
        ));
    }
    let options = options.cloned().unwrap_or_default();
    match options.propagation {
        None | Some(Propagation::EMPTY | Propagation::PRIVATE | Propagation::RPRIVATE) => {}
        Some(other) => return Err(format!("BindOptions.Propagation {other}: expected rprivate or private")),
    }
    let says = |option: Option<bool>| option == Some(true);
    if (says(options.read_only_non_recursive) || says(options.read_only_force_recursive)) && !read_only {
        return Err(
            "BindOptions.ReadOnlyNonRecursive or .ReadOnlyForceRecursive: expected ReadOnly with it".to_owned(),
        );
    }
    if says(options.read_only_non_recursive) && says(options.read_only_force_recursive) {
        return Err(
            "BindOptions.ReadOnlyNonRecursive and .ReadOnlyForceRecursive: expected one of them at most".to_owned(),
        );
    }
    Ok(What::Bind {
        source: path.to_owned(),
        with_below: !says(options.non_recursive),
        is_made: says(options.create_mountpoint),
    })
}

fn volume_of(
    source: &str,
    options: &MountVolumeOptions,
    read_only: bool,
    places: &Places<'_>,
    number: usize,
    expand: &impl Fn(&String) -> Result<String, String>,
) -> Result<What, String> {
    let driver = options.driver_config.clone().unwrap_or_default();
    let name = driver.name.unwrap_or_default();
    if !name.is_empty() && name != DRIVER {
        return Err(format!("VolumeOptions.DriverConfig.Name {name:?}: expected \"local\""));
    }
    if let Some(option) = driver.options.iter().flatten().map(|(key, _)| key).min() {
        return Err(format!(
            "VolumeOptions.DriverConfig.Options {option:?}: expected none: volumes are directories of this node here"
        ));
    }
    let subpath = options.subpath.as_deref().filter(|subpath| !subpath.is_empty());
    let subpath = subpath.map(|subpath| match subpath.contains('\0') {
        true => Err(format!("VolumeOptions.Subpath {subpath:?}: expected a path")),
        false => Ok(PathBuf::from(subpath)),
    });
    let subpath = subpath.transpose()?;
    if source.is_empty() {
        let unfit = match (read_only, &subpath) {
            (true, _) => "ReadOnly",
            (_, Some(_)) => "VolumeOptions.Subpath",
            _ => "",
        };
        return match unfit {
            "" => Ok(What::Volume {
                name: None,
                source: places.own.join(number.to_string()),
                subpath: None,
                labels: BTreeMap::new(),
            }),
            unfit => Err(format!("must not set {unfit} when using anonymous volumes")),
        };
    }
    check_name(source)?;
    let labels = options.labels.iter().flatten();
    let labels = labels.map(|(key, value)| Ok((key.clone(), expand(value)?)));
    Ok(What::Volume {
        name: Some(source.to_owned()),
        source: data_of(places.volumes, source),
        subpath,
        labels: labels.collect::<Result<_, String>>()?,
    })
}

fn memory_of(options: MountTmpfsOptions) -> Result<What, String> {
    let size = options.size_bytes.unwrap_or_default();
    let size = u64::try_from(size).map_err(|_| format!("TmpfsOptions.SizeBytes {size}: expected no less than 0"))?;
    let mode = match options.mode {
        None | Some(0) => ALL_MAY_WRITE,
        Some(mode) => u32::try_from(mode)
            .ok()
            .filter(|mode| *mode <= 0o7777)
            .ok_or_else(|| format!("TmpfsOptions.Mode {mode}: expected 0 to 4095 (07777)"))?,
    };
    let mut has_programs = false;
    for option in options.options.iter().flatten() {
        match option.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
            ["exec"] => has_programs = true,
            ["noexec"] => has_programs = false,
            other => {
                return Err(format!(
                    "TmpfsOptions.Options {:?}: expected exec or noexec",
                    other.join("=")
                ));
            }
        }
    }
    Ok(What::Memory {
        size_bytes: Some(size).filter(|size| *size > 0),
        mode,
        has_programs,
    })
}

/// Docker's default, and as of /tmp.
const ALL_MAY_WRITE: u32 = 0o1777;

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn planned(mounts: Value) -> Result<Vec<Mount>, String> {
        let specs: Vec<Spec> = serde_json::from_value(mounts).unwrap();
        let places = Places {
            volumes: Path::new("/data/volumes"),
            own: Path::new("/data/tasks/one/volumes"),
        };
        of(&specs, &places, |text| Ok(text.replace("{{.Task.Slot}}", "3")))
    }

    #[test]
    fn defaults_and_order() {
        let mounts = planned(json!([
            { "Type": "volume", "Source": "deps", "Target": "/app/node_modules/" },
            { "Type": "bind", "Source": "/srv/app-{{.Task.Slot}}", "Target": "/app", "ReadOnly": true },
            { "Type": "tmpfs", "Target": "/x/../cache/{{.Task.Slot}}",
              "TmpfsOptions": { "SizeBytes": 65536, "Mode": 448, "Options": [["exec"]] } },
            { "Type": "volume", "Target": "/var/lib/db" },
            { "Type": "tmpfs", "Target": "/dev/shm" },
        ]))
        .unwrap();
        let targets: Vec<&str> = mounts.iter().map(|mount| mount.target.to_str().unwrap()).collect();
        assert_eq!(
            targets,
            ["/app", "/app/node_modules", "/cache/3", "/dev/shm", "/var/lib/db"]
        );
        let bind = What::Bind {
            source: "/srv/app-3".into(),
            with_below: true,
            is_made: false,
        };
        assert_eq!((&mounts[0].what, mounts[0].read_only), (&bind, true));
        let source = |mount: &Mount| match &mount.what {
            What::Volume { source, .. } => source.display().to_string(),
            other => panic!("{other:?}"),
        };
        assert_eq!(source(&mounts[1]), "/data/volumes/deps/_data");
        assert_eq!(source(&mounts[4]), "/data/tasks/one/volumes/3");
        let memory = |size_bytes, mode, has_programs| What::Memory {
            size_bytes,
            mode,
            has_programs,
        };
        assert_eq!(mounts[2].what, memory(Some(65_536), 0o700, true));
        assert_eq!(mounts[3].what, memory(None, 0o1777, false));
    }

    #[test]
    fn what_cannot_be_had_is_said() {
        let bind = |more: Value| {
            let mut mount = json!({ "Type": "bind", "Source": "/srv", "Target": "/x" });
            mount.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            mount
        };
        for (mount, said) in [
            (bind(json!({ "Target": "" })), "expected an absolute path"),
            (bind(json!({ "Target": "x" })), "expected an absolute path"),
            (bind(json!({ "Target": "/x/.." })), "destination can't be '/'"),
            (bind(json!({ "Target": "/proc/sys" })), "/proc is made for them"),
            (bind(json!({ "Target": "/x/../sys" })), "/sys is made for them"),
            (bind(json!({ "Target": "/dev" })), "/dev is made for them"),
            (bind(json!({ "Source": "srv" })), "expected an absolute path"),
            (
                bind(json!({ "Source": "/var/run/docker.sock" })),
                "is not mounted for tasks",
            ),
            (
                bind(json!({ "BindOptions": { "Propagation": "rshared" } })),
                "Propagation rshared: expected rprivate",
            ),
            (
                bind(json!({ "BindOptions": { "ReadOnlyNonRecursive": true } })),
                "expected ReadOnly with it",
            ),
            (bind(json!({ "TmpfsOptions": {} })), "field TmpfsOptions must not be"),
            (bind(json!({ "Type": "tmpfs" })), "field Source must not be"),
            (bind(json!({ "Type": "npipe" })), "type npipe: tasks are processes"),
            (bind(json!({ "Type": "cluster" })), "type cluster: tasks are processes"),
            (bind(json!({ "Type": "image" })), "type image: tasks are processes"),
            (bind(json!({ "Type": null })), "mount type unknown"),
            (bind(json!({ "Type": "volume" })), "includes invalid characters"),
            (
                bind(json!({ "Type": "volume", "Source": "../x" })),
                "includes invalid characters",
            ),
            (
                bind(
                    json!({ "Type": "volume", "Source": "v1", "VolumeOptions": { "DriverConfig": { "Name": "nfs" } } }),
                ),
                "\"nfs\": expected \"local\"",
            ),
            (
                bind(
                    json!({ "Type": "volume", "Source": "v1", "VolumeOptions": { "DriverConfig": { "Options": { "o": "size=1" } } } }),
                ),
                "Options \"o\": expected none",
            ),
            (
                bind(json!({ "Type": "volume", "Source": "", "ReadOnly": true })),
                "must not set ReadOnly when using anonymous volumes",
            ),
            (
                json!({ "Type": "tmpfs", "Target": "/x", "TmpfsOptions": { "SizeBytes": -1 } }),
                "SizeBytes -1: expected",
            ),
            (
                json!({ "Type": "tmpfs", "Target": "/x", "TmpfsOptions": { "Mode": 4096 } }),
                "Mode 4096: expected",
            ),
            (
                json!({ "Type": "tmpfs", "Target": "/x", "TmpfsOptions": { "Options": [["uid", "5"]] } }),
                "Options \"uid=5\": expected",
            ),
        ] {
            let error = planned(json!([mount])).unwrap_err();
            assert!(
                error.starts_with("ContainerSpec.Mounts: ") && error.contains(said),
                "{said}: {error}"
            );
        }
        let error = planned(json!([bind(json!({})), bind(json!({ "Target": "/x/" }))])).unwrap_err();
        assert!(error.contains("Duplicate mount point: /x"), "{error}");
    }
}
