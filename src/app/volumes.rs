//! The volumes of processes, as the API knows volumes. Each question on a thread beside: a disk may be slow.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::{broadcast, oneshot};

use crate::agent::process::{self, Volumes};
use crate::api::{Later, Volume, VolumeError};
use crate::model::swarm::Id;
use crate::model::volume::{TaskMount, VolumeChange};

/// Those of this node.
pub(super) struct NodeVolumes(pub(super) Arc<Volumes>);

impl NodeVolumes {
    async fn beside<T: Send + 'static>(
        &self,
        ask: impl FnOnce(&Volumes) -> Result<T, process::VolumeError> + Send + 'static,
    ) -> Result<T, VolumeError> {
        let volumes = self.0.clone();
        let answered = tokio::task::spawn_blocking(move || ask(&volumes)).await;
        let answered = answered.map_err(|error| VolumeError::Failed(error.to_string()))?;
        answered.map_err(failed)
    }
}

impl crate::api::Volumes for NodeVolumes {
    fn list(&self) -> Later<'_, Result<Vec<Volume>, VolumeError>> {
        Box::pin(async {
            let all = self.beside(|volumes| Ok(volumes.list()?)).await?;
            Ok(all.into_iter().map(shown).collect())
        })
    }

    fn create<'a>(&'a self, name: &'a str, labels: BTreeMap<String, String>) -> Later<'a, Result<Volume, VolumeError>> {
        let name = name.to_owned();
        Box::pin(async move {
            let made = self.beside(move |volumes| volumes.create(&name, &labels));
            made.await.map(shown)
        })
    }

    fn remove<'a>(&'a self, name: &'a str) -> Later<'a, Result<(), VolumeError>> {
        Box::pin(async move {
            let name = name.to_owned();
            self.beside(move |volumes| volumes.begin_removal(&name).map(drop)).await
        })
    }

    fn size<'a>(&'a self, name: &'a str) -> Later<'a, u64> {
        let (volumes, name) = (self.0.clone(), name.to_owned());
        Box::pin(async move {
            let (tell, told) = oneshot::channel();
            // On a thread of its own, which nobody waits for: there may be very much to count.
            let counting = std::thread::Builder::new().name("volume-size".to_owned());
            let begun = counting.spawn(move || {
                let size = volumes.size(&name, || !tell.is_closed());
                // An error says that nobody asks any more.
                let _ = tell.send(size);
            });
            match begun {
                Ok(_) => told.await.unwrap_or_default(),
                Err(_) => 0,
            }
        })
    }

    fn changes(&self) -> broadcast::Receiver<VolumeChange> {
        self.0.changes()
    }

    fn mounts_of(&self, task: &Id) -> Vec<TaskMount> {
        self.0.mounts_of(task.as_str())
    }
}

fn shown(volume: process::Volume) -> Volume {
    Volume {
        name: volume.name,
        created_at: volume.created_at,
        labels: volume.labels,
        mountpoint: volume.data,
        tasks: volume.tasks,
    }
}

fn failed(error: process::VolumeError) -> VolumeError {
    match error {
        process::VolumeError::NotFound => VolumeError::NotFound,
        process::VolumeError::Name(reason) => VolumeError::Name(reason),
        process::VolumeError::InUse(tasks) => VolumeError::InUse(tasks),
        error @ process::VolumeError::Mounted(_) => VolumeError::Mounted(error.to_string()),
        process::VolumeError::Io(error) => VolumeError::Failed(error.to_string()),
    }
}
