//! How configs and secrets get into a container: bound in from a file system in memory where there is one that the engine
//! sees too, or else copied in before it starts.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

use bollard::models::{Mount, MountType};
use bytes::Bytes;
use sha2::{Digest, Sha256};

use crate::agent::files::TaskFile;
use crate::model::swarm::Id;

/// Files in memory, in a directory for each task.
#[derive(Debug, Clone)]
pub(super) struct InMemory {
    dir: PathBuf,
}

impl InMemory {
    /// `None` where nothing is in memory, or this program may not give files away.
    pub(super) fn of(owner: &str) -> Option<InMemory> {
        if !rustix::process::geteuid().is_root() {
            return None;
        }
        let digest = Sha256::digest(owner.as_bytes());
        let name: String = digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
        let is_in_memory = |base: &Path| {
            let of = rustix::fs::statfs(base).ok()?;
            (of.f_type == TMPFS).then_some(())
        };
        ["/run", "/dev/shm"].into_iter().map(Path::new).find_map(|base| {
            is_in_memory(base)?;
            let mut dir = base.to_owned();
            for part in ["anynode", "files", &name] {
                dir.push(part);
                own_dir(&dir).ok()?;
            }
            Some(InMemory { dir })
        })
    }

    fn of_task(&self, task: &Id) -> PathBuf {
        self.dir.join(task.as_str())
    }

    /// Whether `text` speaks of a file here.
    pub(super) fn is_named_in(&self, text: &str) -> bool {
        text.contains(&*self.dir.to_string_lossy())
    }

    /// Writes them anew. Answers how each is bound into the container.
    pub(super) fn write(&self, task: &Id, files: &[TaskFile]) -> io::Result<Vec<Mount>> {
        self.remove(task)?;
        let dir = self.of_task(task);
        DirBuilder::new().mode(0o700).create(&dir)?;
        let write = |(n, asked): (usize, &TaskFile)| {
            let path = dir.join(n.to_string());
            let mut file = File::options().write(true).create_new(true).mode(0o600).open(&path)?;
            file.write_all(&asked.data)?;
            fchown(&file, Some(asked.uid), Some(asked.gid))?;
            file.set_permissions(fs::Permissions::from_mode(asked.mode))?;
            Ok(Mount {
                typ: Some(MountType::BIND),
                source: Some(path.display().to_string()),
                target: Some(Path::new("/").join(&asked.path).display().to_string()),
                read_only: Some(true),
                ..Mount::default()
            })
        };
        files.iter().enumerate().map(write).collect()
    }

    pub(super) fn remove(&self, task: &Id) -> io::Result<()> {
        match fs::remove_dir_all(self.of_task(task)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed,
        }
    }

    /// The tasks that have files here.
    pub(super) fn list(&self) -> Vec<Id> {
        let entries = fs::read_dir(&self.dir).into_iter().flatten().flatten();
        let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
        names.map(|name| Id::from(name.as_str())).collect()
    }
}

/// Makes `dir`, or sees that it is ours alone: others may write where it stands.
fn own_dir(dir: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(0o755).create(dir) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    let metadata = fs::symlink_metadata(dir)?;
    let is_own = metadata.is_dir() && metadata.uid() == rustix::process::geteuid().as_raw();
    match is_own && metadata.mode() & 0o022 == 0 {
        true => Ok(()),
        false => Err(io::Error::other(format!(
            "{}: expected a directory of our own",
            dir.display()
        ))),
    }
}

/// As a tar for the root of the container.
pub(super) fn archive(files: &[TaskFile]) -> io::Result<Bytes> {
    let mut tar = tar::Builder::new(Vec::new());
    for file in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(u64::try_from(file.data.len()).map_err(io::Error::other)?);
        header.set_mode(file.mode);
        header.set_uid(u64::from(file.uid));
        header.set_gid(u64::from(file.gid));
        tar.append_data(&mut header, &file.path, file.data.as_slice())?;
    }
    Ok(tar.into_inner()?.into())
}

/// What the kernel calls a tmpfs.
const TMPFS: i64 = 0x0102_1994;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_task_has_its_own_until_it_is_removed() {
        let base = tempfile::tempdir().unwrap();
        let files = InMemory {
            dir: base.path().to_owned(),
        };
        let file = |path: &str| TaskFile {
            path: PathBuf::from(path),
            uid: rustix::process::getuid().as_raw(),
            gid: rustix::process::getgid().as_raw(),
            mode: 0o440,
            data: b"held".to_vec(),
        };
        let task = Id::from("task");
        // Twice: an attempt may have come half-way.
        files.write(&task, &[file("a")]).unwrap();
        let mounts = files.write(&task, &[file("run/secrets/a"), file("etc/b")]).unwrap();
        assert_eq!(mounts[1].target.as_deref(), Some("/etc/b"));
        let source = mounts[0].source.clone().unwrap();
        assert!(files.is_named_in(&format!("bind source path does not exist: {source}")));
        assert_eq!(fs::metadata(&source).unwrap().mode() & 0o7777, 0o440);
        assert_eq!(files.list(), std::slice::from_ref(&task));
        files.remove(&task).unwrap();
        files.remove(&task).unwrap();
        assert!(files.list().is_empty());
    }

    #[test]
    fn a_directory_that_others_may_write_to_is_not_ours() {
        let base = tempfile::tempdir().unwrap();
        let dir = base.path().join("dir");
        own_dir(&dir).unwrap();
        own_dir(&dir).unwrap();
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o777)).unwrap();
        assert!(own_dir(&dir).is_err());
        let link = base.path().join("link");
        std::os::unix::fs::symlink("/tmp", &link).unwrap();
        assert!(own_dir(&link).is_err());
    }
}
