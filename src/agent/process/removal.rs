//! Takes the directories of tasks and volumes away, on a thread of its own: a task may have filled its own with as much as it liked. Not
//! here: how a directory is removed (`sys::tree`).

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError, mpsc};

use tokio::sync::oneshot;

use super::job::Dir;
use crate::sys::tree;

/// Removes one directory after another, so that it never has more than one core and three descriptors.
pub(super) struct Remover {
    /// `None` until something is to be removed. std mutex: held for moments.
    thread: Mutex<Option<mpsc::Sender<Removal>>>,
}

/// It goes on when nobody waits for it.
pub struct Begun(Option<oneshot::Receiver<io::Result<()>>>);

impl Begun {
    /// Ready when nothing is left.
    pub async fn done(self) -> io::Result<()> {
        match self.0 {
            Some(done) => done.await.map_err(io::Error::other)?,
            None => Ok(()),
        }
    }
}

struct Removal {
    path: PathBuf,
    /// Whoever waits for it may be gone.
    done: Option<oneshot::Sender<io::Result<()>>>,
}

impl Remover {
    /// What earlier runs began to remove in `dir`, in which all are, is removed by and by.
    pub(super) fn new(dir: &Path) -> Remover {
        let remover = Remover {
            thread: Mutex::default(),
        };
        let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
        let begun = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(PUT_ASIDE));
        for entry in begun {
            let removal = Removal {
                path: entry.path(),
                done: None,
            };
            if let Err(error) = remover.give(removal) {
                tracing::warn!(path = %entry.path().display(), %error, "it is not removed");
            }
        }
        remover
    }

    /// Ready when nothing of a task's directory is left; the task's name is free from the first call on. It goes on when
    /// nobody waits any more. Nothing to remove is no error.
    pub(super) async fn remove(&self, dir: &Dir) -> io::Result<()> {
        self.begin(dir)?.done().await
    }

    /// The same: the name is free when this returns.
    pub(super) fn begin(&self, dir: &Dir) -> io::Result<Begun> {
        let name = format!("{PUT_ASIDE}{}-{:016x}", dir.task(), fastrand::u64(..));
        let path = dir.path().with_file_name(name);
        match std::fs::rename(dir.path(), &path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Begun(None)),
            renamed => renamed?,
        }
        let (done, is_done) = oneshot::channel();
        self.give(Removal { path, done: Some(done) })?;
        Ok(Begun(Some(is_done)))
    }

    fn give(&self, removal: Removal) -> io::Result<()> {
        let mut thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        let sender = match thread.take() {
            Some(sender) => sender,
            None => {
                let (sender, removals) = mpsc::channel();
                let named = std::thread::Builder::new().name("removal".to_owned());
                named.stack_size(STACK_BYTES).spawn(move || run(&removals))?;
                sender
            }
        };
        let given = sender.send(removal).map_err(io::Error::other);
        *thread = Some(sender);
        given
    }
}

/// Until nobody can give it anything any more.
fn run(removals: &mpsc::Receiver<Removal>) {
    // What others wait for goes first. Where it may not say so it is one of many.
    let own = rustix::thread::gettid();
    let _ = rustix::process::setpriority_process(Some(own), NICE);
    for Removal { path, done } in removals {
        let removed = match tree::remove(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed,
        };
        // Whoever waited may be gone.
        let untold = match done {
            Some(done) => done.send(removed).err(),
            None => Some(removed),
        };
        if let Some(Err(error)) = untold {
            tracing::warn!(path = %path.display(), %error, "it is not removed");
        }
    }
}

/// No task and no volume has a name that begins so.
const PUT_ASIDE: &str = ".gone-";
const STACK_BYTES: usize = 256 << 10;
const NICE: i32 = 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_name_is_free_at_once_and_what_was_begun_is_gone_on_with() {
        let parent = tempfile::tempdir().unwrap();
        let dir = Dir::new(parent.path().join("task"));
        let full = parent.path().join(format!("{PUT_ASIDE}other-0"));
        std::fs::create_dir_all(full.join("a/b/c")).unwrap();
        std::fs::create_dir_all(dir.path().join("a/b")).unwrap();
        let remover = Remover::new(parent.path());
        {
            // Given up at once.
            let mut removing = std::pin::pin!(remover.remove(&dir));
            let waker = std::task::Waker::noop();
            let _ = removing.as_mut().poll(&mut std::task::Context::from_waker(waker));
        }
        assert!(!dir.path().exists());
        std::fs::create_dir(dir.path()).unwrap();
        remover.remove(&Dir::new(parent.path().join("none"))).await.unwrap();
        while std::fs::read_dir(parent.path()).unwrap().count() > 1 {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        assert!(dir.path().exists(), "made after the first was given up");
        remover.remove(&dir).await.unwrap();
        assert_eq!(std::fs::read_dir(parent.path()).unwrap().count(), 0);
    }
}
