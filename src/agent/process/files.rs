//! Configs and secrets of a task that is a process: files below its own root, with owner and mode.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, chown, fchown};
use std::path::Path;

use super::job::{Dir, User};
use crate::agent::files::TaskFile;

/// Writes all of them. Only root gives files away. `is_all_its`: the user is one that was given to the service, which knows no
/// other: all files are its own, as they are root's to read in a container.
pub(super) fn write_all(dir: &Dir, files: &[TaskFile], user: Option<&User>, is_all_its: bool) -> io::Result<()> {
    let root = dir.root();
    for file in files {
        let path = root.join(&file.path);
        let named = |error: io::Error| io::Error::new(error.kind(), format!("/{}: {error}", file.path.display()));
        make_parents(&root, &path, user).map_err(named)?;
        let owner = match user.filter(|_| is_all_its) {
            Some(user) => (user.uid, user.gid),
            None => (file.uid, file.gid),
        };
        write(&path, file, owner).map_err(named)?;
    }
    Ok(())
}

fn write(path: &Path, asked: &TaskFile, (uid, gid): (u32, u32)) -> io::Result<()> {
    let mut file = File::options().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(&asked.data)?;
    if rustix::process::geteuid().is_root() {
        fchown(&file, Some(uid), Some(gid))?;
    }
    file.set_permissions(fs::Permissions::from_mode(asked.mode))
}

/// The directories between `root` and `path`: the task's own, as `root` is.
fn make_parents(root: &Path, path: &Path, user: Option<&User>) -> io::Result<()> {
    let between = path.ancestors().skip(1).take_while(|parent| *parent != root);
    let missing: Vec<&Path> = between.take_while(|parent| !parent.exists()).collect();
    for parent in missing.into_iter().rev() {
        fs::create_dir(parent)?;
        if let Some(user) = user {
            chown(parent, Some(user.uid), Some(user.gid))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    #[test]
    fn each_has_its_mode_and_no_two_share_a_place() {
        let parent = tempfile::tempdir().unwrap();
        let dir = Dir::new(parent.path().join("task"));
        dir.make(None).unwrap();
        let file = |path: &str, mode: u32| TaskFile {
            path: PathBuf::from(path),
            uid: rustix::process::getuid().as_raw(),
            gid: rustix::process::getgid().as_raw(),
            mode,
            data: b"held".to_vec(),
        };
        write_all(&dir, &[file("a", 0o444), file("etc/deep/b", 0o640)], None, false).unwrap();
        for (path, mode) in [("a", 0o444), ("etc/deep/b", 0o640)] {
            let path = dir.root().join(path);
            assert_eq!(fs::read(&path).unwrap(), b"held");
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, mode);
        }
        let error = write_all(&dir, &[file("a", 0o444)], None, false)
            .unwrap_err()
            .to_string();
        assert!(error.starts_with("/a: "), "{error}");
        let error = write_all(&dir, &[file("a/b", 0o444)], None, false)
            .unwrap_err()
            .to_string();
        assert!(error.starts_with("/a/b: "), "{error}");
    }
}
