//! What a services file's source remembers between runs, in the data directory: the text that became the last good table
//! and who has which VIP. Written a moment after it changes, by rename; a kill between loses at most that moment, and
//! a VIP that was not written is found again from its service's name. Not here: what the text means.

use std::io::{self, Write};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use tokio::sync::watch;

use crate::model::ServiceName;

/// What is remembered.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct Kept {
    pub services: Option<String>,
    pub vips: Vec<(ServiceName, Ipv4Addr)>,
}

/// Writes what is to be remembered, and reads it at the start.
pub struct Keeper {
    dir: PathBuf,
    pending: Option<Kept>,
    due: Option<Instant>,
    /// The last write failed, and it was said.
    is_failing: bool,
    /// Whether the directory is ours to write to.
    may_write: watch::Receiver<bool>,
}

#[derive(Debug, thiserror::Error)]
enum KeepError {
    #[error("write {path}")]
    Write {
        path: PathBuf,
        #[source]
        error: io::Error,
    },
    #[error("encode what is kept")]
    Encode(#[source] serde_json::Error),
}

#[derive(Serialize, Deserialize)]
struct VipsFile {
    format: u32,
    vips: std::collections::BTreeMap<String, Ipv4Addr>,
}

const FORMAT: u32 = 1;
const SERVICES: &str = "services.last-good.yaml";
const VIPS: &str = "vips.json";
const WRITE_AFTER: Duration = Duration::from_millis(100);

impl Keeper {
    /// Opens `dir`, which may not exist, and reads what it has. A file that cannot be used is set aside, never lost.
    pub fn open(dir: &Path) -> (Keeper, Kept) {
        let keeper = Keeper {
            dir: dir.to_owned(),
            pending: None,
            due: None,
            is_failing: false,
            // Its sender is gone, so that it stays what it is.
            may_write: watch::Sender::new(true).subscribe(),
        };
        let kept = Kept {
            services: keeper.read(SERVICES),
            vips: keeper.read_vips(),
        };
        (keeper, kept)
    }

    /// Writes only while `may_write` says so; what is due meanwhile waits.
    pub fn write_while(&mut self, may_write: watch::Receiver<bool>) {
        self.may_write = may_write;
    }

    /// Remembers `kept`, soon.
    pub fn keep(&mut self, kept: Kept) {
        self.pending = Some(kept);
        self.due.get_or_insert_with(|| Instant::now() + WRITE_AFTER);
    }

    /// Waits until a write is due and does it. Never ends while there is nothing to write.
    pub async fn write_when_due(&mut self) {
        match self.due {
            Some(due) => tokio::time::sleep_until(due.into()).await,
            None => std::future::pending().await,
        }
        if self.may_write.wait_for(|may| *may).await.is_err() {
            // Nobody is left to allow it.
            std::future::pending::<()>().await;
        }
        self.write_now();
    }

    /// Writes what is pending, if it may. A failure is said once, and tried again with the next change.
    pub fn write_now(&mut self) {
        if !*self.may_write.borrow() {
            return;
        }
        self.due = None;
        let Some(kept) = self.pending.take() else { return };
        match self.write(&kept) {
            Ok(()) => self.is_failing = false,
            Err(error) => {
                if !std::mem::replace(&mut self.is_failing, true) {
                    let source = std::error::Error::source(&error)
                        .map(ToString::to_string)
                        .unwrap_or_default();
                    tracing::error!("the last good table cannot be kept for a restart: {error}: {source}");
                }
            }
        }
    }

    fn write(&self, kept: &Kept) -> Result<(), KeepError> {
        let vips = VipsFile {
            format: FORMAT,
            vips: kept.vips.iter().map(|(name, vip)| (name.to_string(), *vip)).collect(),
        };
        let vips = serde_json::to_vec(&vips).map_err(KeepError::Encode)?;
        self.replace(VIPS, &vips)?;
        if let Some(services) = &kept.services {
            self.replace(SERVICES, services.as_bytes())?;
        }
        Ok(())
    }

    fn replace(&self, name: &str, bytes: &[u8]) -> Result<(), KeepError> {
        let path = self.dir.join(name);
        let aside = self.dir.join(format!("{name}.new"));
        let written = std::fs::create_dir_all(&self.dir).and_then(|()| {
            let mut file = std::fs::File::create(&aside)?;
            file.write_all(bytes)?;
            file.sync_data()?;
            std::fs::rename(&aside, &path)
        });
        written.map_err(|error| KeepError::Write { path, error })
    }

    fn read(&self, name: &str) -> Option<String> {
        let path = self.dir.join(name);
        match std::fs::read_to_string(&path) {
            Ok(text) => Some(text),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => {
                self.set_aside(name, &error.to_string());
                None
            }
        }
    }

    fn read_vips(&self) -> Vec<(ServiceName, Ipv4Addr)> {
        let Some(text) = self.read(VIPS) else { return Vec::new() };
        match serde_json::from_str::<VipsFile>(&text) {
            Ok(file) if file.format == FORMAT => {
                let valid = |(name, vip): (String, Ipv4Addr)| Some((ServiceName::new(&name).ok()?, vip));
                file.vips.into_iter().filter_map(valid).collect()
            }
            Ok(file) => {
                self.set_aside(VIPS, &format!("format {} is not {FORMAT}", file.format));
                Vec::new()
            }
            Err(error) => {
                self.set_aside(VIPS, &error.to_string());
                Vec::new()
            }
        }
    }

    fn set_aside(&self, name: &str, reason: &str) {
        let (path, aside) = (self.dir.join(name), self.dir.join(format!("{name}.damaged")));
        tracing::error!(path = %path.display(), reason, "not usable, kept aside as {}", aside.display());
        // If even that fails, the next write replaces it.
        let _ = std::fs::rename(&path, &aside);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_may_not_be_written_waits() {
        let dir = tempfile::tempdir().unwrap();
        let may_write = watch::Sender::new(false);
        let mut keeper = Keeper::open(dir.path()).0;
        keeper.write_while(may_write.subscribe());
        let kept = Kept {
            services: Some("services: ...".to_owned()),
            vips: Vec::new(),
        };
        keeper.keep(kept.clone());
        keeper.write_now();
        let due = tokio::time::timeout(WRITE_AFTER * 2, keeper.write_when_due());
        assert!(due.await.is_err());
        assert_eq!(Keeper::open(dir.path()).1, Kept::default());
        may_write.send_replace(true);
        keeper.write_when_due().await;
        assert_eq!(Keeper::open(dir.path()).1, kept);
    }

    #[test]
    fn what_is_kept_is_read_again_and_what_is_damaged_is_set_aside() {
        let dir = tempfile::tempdir().unwrap();
        let (mut keeper, kept) = Keeper::open(&dir.path().join("new"));
        assert_eq!(kept, Kept::default());
        let kept = Kept {
            services: Some("services: ...".to_owned()),
            vips: vec![(ServiceName::new("web").unwrap(), [127, 77, 1, 2].into())],
        };
        keeper.keep(kept.clone());
        keeper.write_now();
        let dir = dir.path().join("new");
        assert_eq!(Keeper::open(&dir).1, kept);
        for damage in ["{", "{\"format\":2,\"vips\":{}}"] {
            std::fs::write(dir.join(VIPS), damage).unwrap();
            assert_eq!(Keeper::open(&dir).1.vips, []);
            assert_eq!(std::fs::read_to_string(dir.join("vips.json.damaged")).unwrap(), damage);
        }
    }
}
