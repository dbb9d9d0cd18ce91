//! What is mounted, held open; and what may not be. Not here: where it is put (`target`).

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};
use rustix::io::Errno;

use super::{What, hold};
use crate::sys::mounts::{FileId, mount_points, path_of, place, shows_kernel};

/// What is not to be bound, by what it is and not by its name.
pub(super) struct Hidden {
    itself: BTreeMap<FileId, PathBuf>,
    /// All that it lies in, itself too. Also of what is not there yet.
    above: BTreeMap<FileId, PathBuf>,
}

/// What a task finds there is made for it: without other users' processes, read-only, with few devices.
const MADE_ANEW: [&str; 3] = ["/proc", "/sys", "/dev"];

impl Hidden {
    pub(super) fn of(paths: &[PathBuf]) -> Hidden {
        let mut hidden = Hidden {
            itself: BTreeMap::new(),
            above: BTreeMap::new(),
        };
        for path in paths.iter().map(PathBuf::as_path).chain(MADE_ANEW.map(Path::new)) {
            let there = path
                .ancestors()
                .find_map(|part| Some((part, part.canonicalize().ok()?)));
            let Some((part, real)) = there else { continue };
            if let (true, Some(id)) = (part == path, id_of(&real)) {
                hidden.itself.insert(id, path.to_owned());
            }
            for id in real.ancestors().filter_map(id_of) {
                hidden.above.entry(id).or_insert_with(|| path.to_owned());
            }
        }
        hidden
    }

    /// `with_below`: with what is mounted below it. Errors: in words, it is what nobody may bind, or holds it, or lies in it.
    fn judge(&self, source: BorrowedFd<'_>, with_below: bool) -> Result<(), String> {
        let wrong = |word: &str, path: &Path| {
            format!(
                "its source {word} {}, which tasks are not to see: expected another",
                path.display()
            )
        };
        let path = path_of(source).map_err(|error| error.to_string())?;
        let id = place(source).map_err(|error| error.to_string())?.file;
        if let Some(hidden) = self.itself.get(&id) {
            return Err(wrong("is", hidden));
        }
        if let Some(hidden) = self.above.get(&id) {
            return Err(wrong("holds", hidden));
        }
        if let Some(hidden) = path.ancestors().filter_map(id_of).find_map(|id| self.itself.get(&id)) {
            return Err(wrong("lies in", hidden));
        }
        let of_kernel = |word: &str, kind: &str, path: &Path| {
            format!(
                "its source {word} {}, a file system of the kernel's ({kind}), which tasks are not to see: expected another",
                path.display()
            )
        };
        if let Some(kind) = shows_kernel(source).map_err(|error| error.to_string())? {
            return Err(of_kernel("is of", kind, &path));
        }
        // What is mounted below comes along.
        let points = mount_points().map_err(|error| format!("what is mounted here: {error}"))?;
        let below = points
            .iter()
            .filter(|point| **point != path && point.starts_with(&path));
        for point in below {
            // It may have been unmounted meanwhile.
            let Ok(held) = hold(point) else { continue };
            let found = place(&held).ok().and_then(|found| self.above.get(&found.file));
            if let Some(hidden) = found {
                return Err(wrong("holds", hidden));
            }
            if let (true, Ok(Some(kind))) = (with_below, shows_kernel(&held)) {
                return Err(of_kernel("holds", kind, point));
            }
        }
        Ok(())
    }

    /// The same of a directory that is to be made. Errors: as of `judge`.
    pub(super) fn judge_parent(&self, source: &Path) -> Result<(), String> {
        let there = source.ancestors().find_map(|part| part.canonicalize().ok());
        let lies_in = there.iter().flat_map(|there| there.ancestors()).filter_map(id_of);
        match lies_in.into_iter().find_map(|id| self.itself.get(&id)) {
            Some(hidden) => Err(format!(
                "its source would lie in {}, which tasks are not to see: expected another",
                hidden.display()
            )),
            None => Ok(()),
        }
    }
}

fn id_of(path: impl AsRef<Path>) -> Option<FileId> {
    Some(place(hold(path.as_ref()).ok()?).ok()?.file)
}

/// What is to be mounted; `None` of what is made of nothing. Errors: in words, it is not there, or may not be mounted.
pub(super) fn open(what: &What, hidden: &Hidden) -> Result<Option<OwnedFd>, String> {
    match what {
        What::Memory { .. } => Ok(None),
        What::Bind { source, with_below, .. } => {
            let held = hold(source).map_err(|error| match error {
                Errno::NOENT | Errno::NOTDIR => format!(
                    "invalid mount config for type \"bind\": bind source path does not exist: {}",
                    source.display()
                ),
                error => format!("bind source path {}: {error}", source.display()),
            })?;
            hidden.judge(held.as_fd(), *with_below)?;
            Ok(Some(held))
        }
        What::Volume { source, subpath, .. } => {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let held = rustix::fs::open(source, flags, Mode::empty());
            let held = held.map_err(|error| format!("volume {}: {error}", source.display()))?;
            let Some(subpath) = subpath else { return Ok(Some(held)) };
            let beneath = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
            let found = openat2(&held, subpath, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), beneath);
            found.map(Some).map_err(|error| {
                let subpath = subpath.display();
                format!("VolumeOptions.Subpath {subpath}: {error}: expected a path that is there, within the volume")
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::sys::mounts::aside;

    fn bind(source: &Path) -> What {
        What::Bind {
            source: source.to_owned(),
            with_below: true,
            is_made: false,
        }
    }

    #[test]
    fn what_is_hidden_is_not_bound_by_whatever_name() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::create_dir_all(at("data/tasks/one")).unwrap();
        fs::create_dir_all(at("other/deep")).unwrap();
        fs::write(at("socket"), "").unwrap();
        fs::hard_link(at("socket"), at("other/same")).unwrap();
        symlink(at("data"), at("link")).unwrap();
        let hidden = Hidden::of(&[at("data"), at("socket"), at("run/later.sock")]);
        for (source, said) in [
            (at("data"), "is "),
            (at("link"), "is "),
            (at("data/tasks/one"), "lies in "),
            (at("link/tasks"), "lies in "),
            (at("other/../data"), "is "),
            (at("socket"), "is "),
            (at("other/same"), "is "),
            (dir.path().to_owned(), "holds "),
            ("/".into(), "holds "),
            ("/proc/self".into(), "lies in "),
            ("/proc/self/root".into(), "holds "),
            ("/sys".into(), "is "),
            ("/dev/null".into(), "lies in "),
        ] {
            let error = open(&bind(&source), &hidden).unwrap_err();
            assert!(
                error.contains(&format!("its source {said}")),
                "{}: {error}",
                source.display()
            );
        }
        for source in [at("other"), at("other/deep")] {
            assert!(open(&bind(&source), &hidden).is_ok(), "{}", source.display());
        }
        let error = open(&bind(&at("none")), &hidden).unwrap_err();
        assert!(error.contains("bind source path does not exist: "), "{error}");
        assert!(hidden.judge_parent(&at("data/new/deep")).is_err());
        assert!(hidden.judge_parent(&at("link/new")).is_err());
        assert!(hidden.judge_parent(&at("new/deep")).is_ok());
    }

    #[test]
    fn what_shows_the_kernel_is_not_bound_wherever_it_is_mounted() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for name in ["chroot/proc", "chroot/sys", "chroot/srv", "jail/proc"] {
            fs::create_dir_all(at(name)).unwrap();
        }
        let hidden = Hidden::of(&[]);
        let alone = |source: &Path| What::Bind {
            source: source.to_owned(),
            with_below: false,
            is_made: false,
        };
        let tried = aside(|| {
            let mounts = |kind: &str, at: &Path| {
                let mut command = std::process::Command::new("mount");
                let status = command.args(["-t", kind, kind]).arg(at).status();
                assert!(status.unwrap().success(), "{kind}");
            };
            // Not the host's own, but made anew.
            mounts("proc", &at("chroot/proc"));
            mounts("sysfs", &at("chroot/sys"));
            mounts("proc", &at("jail/proc"));
            for (what, said) in [
                (bind(&at("chroot/proc")), "its source is "),
                (bind(&at("chroot/proc/1")), "its source is of "),
                (alone(&at("chroot/proc/sys")), "its source is of "),
                (bind(&at("chroot/sys/kernel")), "its source "),
                (bind(&at("chroot")), "its source holds "),
                (bind(&at("jail")), "its source holds "),
            ] {
                let error = open(&what, &hidden).unwrap_err();
                assert!(error.contains(said), "{what:?}: {error}");
            }
            for what in [bind(&at("chroot/srv")), alone(&at("jail"))] {
                assert!(open(&what, &hidden).is_ok(), "{what:?}");
            }
        });
        if tried.is_err() {
            println!("skipped: this needs root and mount namespaces");
        }
    }

    #[test]
    fn what_is_to_come_is_hidden_too() {
        let dir = tempfile::tempdir().unwrap();
        let run = dir.path().join("run");
        fs::create_dir_all(run.join("app")).unwrap();
        let hidden = Hidden::of(&[run.join("docker.sock")]);
        assert!(open(&bind(&run), &hidden).is_err());
        assert!(open(&bind(&run.join("app")), &hidden).is_ok());
    }

    #[test]
    fn a_subpath_stays_within() {
        let dir = tempfile::tempdir().unwrap();
        let volume = dir.path().join("_data");
        fs::create_dir_all(volume.join("a/b")).unwrap();
        fs::create_dir(dir.path().join("outside")).unwrap();
        symlink("../outside", volume.join("out")).unwrap();
        symlink("/", volume.join("root")).unwrap();
        symlink("a/b", volume.join("in")).unwrap();
        let of = |subpath: &str| {
            let what = What::Volume {
                name: Some("v".to_owned()),
                source: volume.clone(),
                subpath: Some(subpath.into()),
                labels: BTreeMap::new(),
            };
            open(&what, &Hidden::of(&[]))
        };
        for good in ["a", "a/b", "in"] {
            assert!(of(good).is_ok(), "{good}");
        }
        for bad in ["out", "root", "root/etc", "..", "a/../../outside", "none", "/a"] {
            let error = of(bad).unwrap_err();
            assert!(error.starts_with("VolumeOptions.Subpath "), "{bad}: {error}");
        }
    }
}
