//! What a services file's source remembers between runs, in the data directory: the text that became the last good table,
//! who has which VIP, and the addresses of names. Written a moment after it changes, by rename; a kill between loses at most that moment, and
//! a VIP that was not written is found again from its service's name. What is written is its owner's alone, as a services
//! file may be, and begins with a checksum. Not here: what the text means.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tokio::sync::watch;

use crate::model::{EndpointName, ServiceName};
use crate::source::SourceStatus;

/// What is remembered.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct Kept {
    /// `None`: what was remembered stays.
    pub services: Option<String>,
    pub vips: Vec<(ServiceName, Ipv4Addr)>,
    /// The addresses of endpoints by name.
    pub names: BTreeMap<EndpointName, Vec<IpAddr>>,
}

/// Writes what is to be remembered, and reads it at the start.
pub struct Keeper {
    dir: PathBuf,
    pending: Option<Kept>,
    due: Option<Instant>,
    /// Is told whether it can be written.
    status: Arc<SourceStatus>,
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
    vips: BTreeMap<String, Ipv4Addr>,
}

#[derive(Serialize, Deserialize)]
struct NamesFile {
    format: u32,
    names: BTreeMap<String, Vec<IpAddr>>,
}

const FORMAT: u32 = 1;
const SERVICES: &str = "services.last-good.yaml";
const VIPS: &str = "vips.json";
const NAMES: &str = "names.json";
const WRITE_AFTER: Duration = Duration::from_millis(100);
/// After a failure.
const WRITE_AGAIN: Duration = Duration::from_millis(500);
/// The first line of the last good table, with the SHA-256 of all that comes after it. Earlier versions wrote none.
const CHECKSUM: &str = "# anynode: last good, sha256 ";

impl Keeper {
    /// Opens `dir`, which may not exist, and reads what it has. A file that cannot be used is set aside, never lost.
    pub fn open(dir: &Path) -> (Keeper, Kept) {
        let keeper = Keeper {
            dir: dir.to_owned(),
            pending: None,
            due: None,
            status: Arc::default(),
            // Its sender is gone, so that it stays what it is.
            may_write: watch::Sender::new(true).subscribe(),
        };
        let kept = Kept {
            services: keeper.read_services(),
            vips: keeper.read_vips(),
            names: keeper.read_names(),
        };
        (keeper, kept)
    }

    /// When the last good table on disk was written. `None`: there is none.
    pub fn kept_at(&self) -> Option<std::time::SystemTime> {
        std::fs::metadata(self.dir.join(SERVICES)).ok()?.modified().ok()
    }

    /// Writes only while `may_write` says so; what is due meanwhile waits.
    pub fn write_while(&mut self, may_write: watch::Receiver<bool>) {
        self.may_write = may_write;
    }

    /// Says in `status` whether it can be written.
    pub fn tell(&mut self, status: Arc<SourceStatus>) {
        self.status = status;
    }

    /// Remembers `kept`, soon.
    pub fn keep(&mut self, mut kept: Kept) {
        let pending = self.pending.take().and_then(|pending| pending.services);
        kept.services = kept.services.or(pending);
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

    /// Writes what is pending, if it may. A failure is said once, and tried again until it is written.
    pub fn write_now(&mut self) {
        if !*self.may_write.borrow() {
            return;
        }
        self.due = None;
        let Some(kept) = self.pending.take() else { return };
        match self.write(&kept) {
            Ok(()) => {
                if self.status.set_not_kept(None) {
                    tracing::warn!("the last good table is kept for a restart again");
                }
            }
            Err(error) => {
                let source = std::error::Error::source(&error)
                    .map(ToString::to_string)
                    .unwrap_or_default();
                let reason = format!("{error}: {source}");
                if self.status.set_not_kept(Some(reason.clone())) {
                    tracing::error!("the last good table cannot be kept for a restart: {reason}");
                }
                self.pending = Some(kept);
                self.due = Some(Instant::now() + WRITE_AGAIN);
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
        if !kept.names.is_empty() || self.dir.join(NAMES).exists() {
            let names = kept
                .names
                .iter()
                .map(|(name, addresses)| (name.to_string(), addresses.clone()));
            let names = NamesFile {
                format: FORMAT,
                names: names.collect(),
            };
            self.replace(NAMES, &serde_json::to_vec(&names).map_err(KeepError::Encode)?)?;
        }
        if let Some(services) = &kept.services {
            self.replace(SERVICES, with_checksum(services).as_bytes())?;
        }
        Ok(())
    }

    fn replace(&self, name: &str, bytes: &[u8]) -> Result<(), KeepError> {
        let path = self.dir.join(name);
        let aside = self.dir.join(format!("{name}.new"));
        let written = std::fs::create_dir_all(&self.dir).and_then(|()| {
            let mut file = std::fs::File::options()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o600)
                .open(&aside)?;
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

    fn read_services(&self) -> Option<String> {
        let text = self.read(SERVICES)?;
        match without_checksum(&text) {
            Some(text) => Some(text.to_owned()),
            None => {
                self.set_aside(SERVICES, "its checksum is another than that of what it holds");
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

    fn read_names(&self) -> BTreeMap<EndpointName, Vec<IpAddr>> {
        let Some(text) = self.read(NAMES) else {
            return BTreeMap::new();
        };
        let names = match serde_json::from_str::<NamesFile>(&text) {
            Ok(file) if file.format == FORMAT => file.names,
            Ok(file) => {
                self.set_aside(NAMES, &format!("format {} is not {FORMAT}", file.format));
                return BTreeMap::new();
            }
            Err(error) => {
                self.set_aside(NAMES, &error.to_string());
                return BTreeMap::new();
            }
        };
        let valid = |(name, addresses): (String, Vec<IpAddr>)| Some((name.parse().ok()?, addresses));
        names.into_iter().filter_map(valid).collect()
    }

    fn set_aside(&self, name: &str, reason: &str) {
        let (path, aside) = (self.dir.join(name), self.dir.join(format!("{name}.damaged")));
        tracing::error!(path = %path.display(), reason, "not usable, kept aside as {}", aside.display());
        // If even that fails, the next write replaces it.
        let _ = std::fs::rename(&path, &aside);
    }
}

fn with_checksum(services: &str) -> String {
    format!("{CHECKSUM}{}\n{services}", checksum(services))
}

/// `None`: it is damaged.
fn without_checksum(text: &str) -> Option<&str> {
    let Some(rest) = text.strip_prefix(CHECKSUM) else {
        return Some(text);
    };
    let (written, services) = rest.split_once('\n')?;
    (written == checksum(services)).then_some(services)
}

fn checksum(text: &str) -> String {
    Sha256::digest(text).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_damaged_last_good_table_is_not_served_and_one_of_an_earlier_version_is() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let mut keeper = Keeper::open(dir.path()).0;
        let services = "services:\n  web: {publish: [\"8080:80\"], endpoints: []}\n";
        keeper.keep(Kept {
            services: Some(services.to_owned()),
            ..Kept::default()
        });
        keeper.write_now();
        let path = dir.path().join(SERVICES);
        for file in [SERVICES, VIPS] {
            let mode = std::fs::metadata(dir.path().join(file)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{file}");
        }
        let whole = std::fs::read(&path).unwrap();
        let read = || Keeper::open(dir.path()).1.services;
        assert_eq!(read().as_deref(), Some(services));
        for at in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= 1;
            std::fs::write(&path, &damaged).unwrap();
            // In the first words it passes for one without a checksum, and what it holds is whole.
            let is_in_mark = at < CHECKSUM.len();
            let is_whole = read().is_some_and(|text| text.ends_with(services));
            assert_eq!(is_whole, is_in_mark, "byte {at}");
            std::fs::write(&path, &whole[..at]).unwrap();
            assert!(read().is_none_or(|text| CHECKSUM.starts_with(&text)), "{at} bytes");
        }
        assert!(dir.path().join("services.last-good.yaml.damaged").exists());
        std::fs::write(&path, services).unwrap();
        assert_eq!(read().as_deref(), Some(services));
    }

    #[tokio::test]
    async fn what_cannot_be_written_is_written_once_it_can() {
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().join("data");
        // A file where the directory should be, so that root too is refused.
        std::fs::write(&place, "").unwrap();
        let status = Arc::new(SourceStatus::default());
        let mut keeper = Keeper::open(&place).0;
        keeper.tell(status.clone());
        let kept = Kept {
            services: Some("services: ...".to_owned()),
            ..Kept::default()
        };
        keeper.keep(kept.clone());
        keeper.write_when_due().await;
        let reason = status.not_kept().unwrap();
        assert!(reason.contains("data"), "{reason}");
        std::fs::remove_file(&place).unwrap();
        keeper.write_when_due().await;
        assert_eq!(status.not_kept(), None);
        assert_eq!(Keeper::open(&place).1, kept);
    }

    #[tokio::test]
    async fn what_may_not_be_written_waits() {
        let dir = tempfile::tempdir().unwrap();
        let may_write = watch::Sender::new(false);
        let mut keeper = Keeper::open(dir.path()).0;
        keeper.write_while(may_write.subscribe());
        let kept = Kept {
            services: Some("services: ...".to_owned()),
            ..Kept::default()
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
            names: [("db.test".parse().unwrap(), vec![[10, 0, 0, 1].into()])].into(),
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
        for damage in ["{", "{\"format\":2,\"names\":{}}"] {
            std::fs::write(dir.join(NAMES), damage).unwrap();
            assert_eq!(Keeper::open(&dir).1.names, BTreeMap::new());
            assert_eq!(std::fs::read_to_string(dir.join("names.json.damaged")).unwrap(), damage);
        }
        let bad = "{\"format\":1,\"names\":{\"a b\":[\"10.0.0.1\"],\"a\":[\"::1\"]}}";
        std::fs::write(dir.join(NAMES), bad).unwrap();
        assert_eq!(Keeper::open(&dir).1.names.len(), 1);
    }
    #[test]
    fn addresses_are_kept_beside_a_text_that_is_not_written_yet() {
        let dir = tempfile::tempdir().unwrap();
        let mut keeper = Keeper::open(dir.path()).0;
        let kept = Kept {
            services: Some("services: ...".to_owned()),
            ..Kept::default()
        };
        keeper.keep(kept.clone());
        let names = BTreeMap::from([("db.test".parse().unwrap(), vec![[10, 0, 0, 1].into()])]);
        let with_names = |names: &BTreeMap<EndpointName, Vec<IpAddr>>| Kept {
            names: names.clone(),
            ..Kept::default()
        };
        keeper.keep(with_names(&names));
        keeper.write_now();
        assert_eq!(Keeper::open(dir.path()).1, Kept { names, ..kept.clone() });
        keeper.keep(with_names(&BTreeMap::new()));
        keeper.write_now();
        assert_eq!(Keeper::open(dir.path()).1, kept, "a name that is not needed any more");
    }
}
