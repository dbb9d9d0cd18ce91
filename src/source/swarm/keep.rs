//! The last cluster on disk, so that a node that starts while every manager is away serves what it served. Written a moment
//! after it changes, by rename. Not here: what is made of it.

use std::io::{self, Write};
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::docker::EngineInfo;
use crate::model::{Cluster, ClusterChange};
use crate::source::SourceStatus;

#[derive(Serialize, Deserialize)]
struct File {
    format: u32,
    node: String,
    hostname: String,
    addr: Option<IpAddr>,
    managers: Vec<(String, IpAddr)>,
    cluster: ClusterChange,
}

const FORMAT: u32 = 1;
const NAME: &str = "cluster.json";
const WRITE_AFTER: Duration = Duration::from_millis(200);
/// After a failure.
const WRITE_AGAIN: Duration = Duration::from_millis(500);

/// Writes the cluster as it changes.
#[derive(Debug)]
pub struct ClusterKeeper {
    path: PathBuf,
    may_write: watch::Receiver<bool>,
    status: Arc<SourceStatus>,
}

impl ClusterKeeper {
    /// `may_write`: false while another instance has the directory.
    pub fn new(dir: &Path, may_write: watch::Receiver<bool>) -> ClusterKeeper {
        ClusterKeeper {
            path: dir.join(NAME),
            may_write,
            status: Arc::default(),
        }
    }

    /// Says in `status` whether it can be written.
    pub fn tell(&mut self, status: Arc<SourceStatus>) {
        self.status = status;
    }

    /// What was kept: who this node is, and the cluster. `None`: nothing. A file that cannot be used is set aside.
    pub fn read(&self) -> Option<(EngineInfo, Cluster)> {
        let text = match std::fs::read_to_string(&self.path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            Err(error) => {
                tracing::error!(path = %self.path.display(), %error, "the last cluster cannot be read");
                return None;
            }
        };
        let read = || {
            let file: File = serde_json::from_str(&text).map_err(|error| error.to_string())?;
            if file.format != FORMAT {
                return Err(format!("format = {}: expected {FORMAT}", file.format));
            }
            let cluster = Cluster::default()
                .apply(file.cluster)
                .map_err(|error| error.to_string())?;
            let info = EngineInfo {
                node: file.node,
                hostname: file.hostname,
                addr: file.addr,
                // Whether it still is, the engine says.
                is_manager: false,
                managers: file.managers,
            };
            Ok((info, cluster))
        };
        match read() {
            Ok(kept) => Some(kept),
            Err(error) => {
                let aside = self.path.with_extension("json.broken");
                tracing::error!(path = %self.path.display(), aside = %aside.display(), error, "the last cluster is broken");
                // Whether it could be moved shows at the next start.
                let _ = std::fs::rename(&self.path, aside);
                None
            }
        }
    }

    /// When the cluster on disk was written. `None`: there is none.
    pub fn kept_at(&self) -> Option<std::time::SystemTime> {
        std::fs::metadata(&self.path).ok()?.modified().ok()
    }

    /// Writes what changes until `shutdown`, and then what is not written yet. `whose`: the node that keeps it; `None` for as
    /// long as nothing is to be kept.
    pub async fn run(
        self,
        mut clusters: watch::Receiver<Arc<Cluster>>,
        whose: impl Fn() -> Option<EngineInfo>,
        shutdown: impl Future<Output = ()>,
    ) {
        tokio::pin!(shutdown);
        let keeper = Arc::new(self);
        let mut may_write = keeper.may_write.clone();
        let status = keeper.status.clone();
        let mut is_failing = false;
        let mut is_over = false;
        clusters.mark_changed();
        while !is_over {
            is_over = tokio::select! {
                () = &mut shutdown => true,
                changed = clusters.changed() => changed.is_err(),
                // An error means that it stays as it is.
                Ok(()) = may_write.changed() => false,
                () = tokio::time::sleep(WRITE_AGAIN), if is_failing => false,
            };
            if is_over && !is_failing && !clusters.has_changed().unwrap_or(false) {
                break;
            }
            if !is_over {
                is_over = tokio::select! {
                    () = &mut shutdown => true,
                    () = tokio::time::sleep(WRITE_AFTER) => false,
                };
            }
            let (cluster, whose) = (clusters.borrow_and_update().clone(), whose());
            let is_nothing = whose.is_some() && cluster.is_empty();
            if is_nothing || !*keeper.may_write.borrow() {
                continue;
            }
            let (keeper, path) = (keeper.clone(), keeper.path.clone());
            // A disk may be slow, and what else happens here must not wait for it.
            let written = tokio::task::spawn_blocking(move || match whose {
                Some(info) => keeper.write(&cluster, &info),
                None => keeper.forget(),
            });
            let written = written.await;
            match written.unwrap_or_else(|error| Err(io::Error::other(error))) {
                Ok(()) => {
                    is_failing = false;
                    if status.set_not_kept(None) {
                        tracing::warn!(path = %path.display(), "the last cluster is kept again");
                    }
                }
                Err(error) => {
                    is_failing = true;
                    if status.set_not_kept(Some(format!("write {}: {error}", path.display()))) {
                        tracing::error!(path = %path.display(), %error, "the last cluster cannot be kept");
                    }
                }
            }
        }
    }

    /// Nothing is kept any more.
    pub fn forget(&self) -> io::Result<()> {
        match std::fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Writes it now, whether or not this directory is ours to write to. It blocks.
    pub fn write(&self, cluster: &Cluster, info: &EngineInfo) -> io::Result<()> {
        let file = File {
            format: FORMAT,
            node: info.node.clone(),
            hostname: info.hostname.clone(),
            addr: info.addr,
            managers: info.managers.clone(),
            cluster: cluster.whole(),
        };
        let new = self.path.with_extension("json.new");
        let mut out = std::fs::File::options()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&new)?;
        out.write_all(serde_json::to_string(&file)?.as_bytes())?;
        out.sync_all()?;
        std::fs::rename(&new, &self.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{ClusterNode, ClusterObject};

    #[test]
    fn what_was_written_is_read_and_what_is_broken_is_set_aside() {
        let dir = tempfile::tempdir().unwrap();
        let keeper = ClusterKeeper::new(dir.path(), watch::Sender::new(true).subscribe());
        assert!(keeper.read().is_none());
        let mut cluster = Cluster::default();
        cluster.put(ClusterObject::Node(ClusterNode {
            id: "n".to_owned(),
            hostname: "h".to_owned(),
            addr: None,
            is_manager: true,
            is_up: true,
            availability: "active".to_owned(),
            labels: Default::default(),
        }));
        cluster.set_revision(9);
        let info = EngineInfo {
            node: "n".to_owned(),
            is_manager: true,
            ..EngineInfo::default()
        };
        keeper.write(&cluster, &info).unwrap();
        let (kept_info, kept) = keeper.read().unwrap();
        assert_eq!((kept.digest(), kept.revision()), (cluster.digest(), 9));
        assert_eq!((kept_info.node.as_str(), kept_info.is_manager), ("n", false));
        let path = dir.path().join(NAME);
        let text = std::fs::read_to_string(&path)
            .unwrap()
            .replace("\\\"h\\\"", "\\\"x\\\"");
        std::fs::write(&path, text).unwrap();
        assert!(keeper.read().is_none(), "the digest does not fit");
        assert!(!path.exists() && dir.path().join("cluster.json.broken").exists());
    }

    #[test]
    fn what_changed_last_is_written_at_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let keeper = || ClusterKeeper::new(dir.path(), watch::Sender::new(true).subscribe());
        let mut cluster = Cluster::default();
        let node = |id: &str| {
            ClusterObject::Node(ClusterNode {
                id: id.to_owned(),
                hostname: String::new(),
                addr: None,
                is_manager: false,
                is_up: true,
                availability: "active".to_owned(),
                labels: Default::default(),
            })
        };
        cluster.put(node("n"));
        let clusters = watch::Sender::new(Arc::new(cluster.clone()));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.unwrap().block_on(async {
            let whose = || Some(EngineInfo::default());
            let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
            let shutdown = async { drop(stopped.await) };
            let running = tokio::spawn(keeper().run(clusters.subscribe(), whose, shutdown));
            while keeper().read().is_none() {
                tokio::time::sleep(WRITE_AFTER / 10).await;
            }
            cluster.put(node("other"));
            clusters.send_replace(Arc::new(cluster.clone()));
            drop(stop);
            running.await.unwrap();
        });
        assert_eq!(keeper().read().unwrap().1.digest(), cluster.digest());
    }

    #[tokio::test]
    async fn what_is_nobodys_is_kept_no_longer() {
        let dir = tempfile::tempdir().unwrap();
        let keeper = || ClusterKeeper::new(dir.path(), watch::Sender::new(true).subscribe());
        keeper().write(&Cluster::default(), &EngineInfo::default()).unwrap();
        let clusters = watch::Sender::new(Arc::default());
        let running = tokio::spawn(keeper().run(clusters.subscribe(), || None, std::future::pending()));
        while keeper().read().is_some() {
            tokio::time::sleep(WRITE_AFTER / 10).await;
        }
        drop(clusters);
        running.await.unwrap();
    }
}
