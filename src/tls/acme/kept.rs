//! What of an authority outlives a start: the account, certificates with their keys, and what failed when. Files of their owner alone, each
//! written whole or not at all. Not here: when they are written (`driver`).

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::due::Failures;
use crate::model::AcmeName;

/// An account at an authority.
#[derive(Serialize, Deserialize)]
pub(super) struct Account {
    pub(super) directory: String,
    pub(super) email: Option<String>,
    /// As the library has it, its private key among it.
    pub(super) credentials: serde_json::Value,
}

/// A certificate for one name.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Certificate {
    /// Of the authority that it is from.
    pub(super) directory: String,
    /// Seconds since 1970.
    pub(super) ordered_at: i64,
    /// PEM, with those of its authorities after it.
    pub(super) certificate: String,
    /// PEM.
    pub(super) key: String,
}

/// What failed, of the authority itself and by name.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Failed {
    pub(super) directory: String,
    /// The rest of the configuration that it failed with.
    #[serde(default)]
    pub(super) config: String,
    pub(super) authority: Option<Failures>,
    pub(super) names: BTreeMap<String, Failures>,
}

impl Failed {
    /// As it counts at `now`, in seconds since 1970, if the clock was wrong before.
    pub(super) fn judge_at(&mut self, now: i64) {
        let all = self.authority.iter_mut().chain(self.names.values_mut());
        all.for_each(|failures| failures.judge_at(now));
    }
}

/// The files of one authority.
#[derive(Debug, Clone)]
pub(super) struct Files {
    dir: PathBuf,
}

impl Files {
    /// Below the data directory `dir`.
    pub(super) fn new(dir: &Path, name: &AcmeName) -> Files {
        Files {
            dir: dir.join("acme").join(name.as_str()),
        }
    }

    /// What cannot be read is set aside, and said.
    pub(super) fn account(&self) -> Option<Account> {
        self.read(&self.dir.join(ACCOUNT))
    }

    pub(super) fn failed(&self) -> Failed {
        self.read(&self.dir.join(FAILED)).unwrap_or_default()
    }

    /// All certificates, by name.
    pub(super) fn certificates(&self) -> Vec<(String, Certificate)> {
        let entries = std::fs::read_dir(self.dir.join(CERTIFICATES))
            .into_iter()
            .flatten()
            .flatten();
        let named = entries.filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            let host = name.strip_suffix(".json").filter(|host| is_host(host))?.to_owned();
            Some((host, self.read(&entry.path())?))
        });
        named.collect()
    }

    pub(super) fn write_account(&self, account: &Account) -> io::Result<()> {
        self.write(ACCOUNT, account)
    }

    pub(super) fn write_failed(&self, failed: &Failed) -> io::Result<()> {
        self.write(FAILED, failed)
    }

    /// `host`: as `is_host` takes it.
    pub(super) fn write_certificate(&self, host: &str, certificate: &Certificate) -> io::Result<()> {
        self.write(&format!("{CERTIFICATES}/{host}.json"), certificate)
    }

    pub(super) fn remove_certificate(&self, host: &str) -> io::Result<()> {
        std::fs::remove_file(self.dir.join(format!("{CERTIFICATES}/{host}.json")))
    }

    /// Where a certificate is, for a person.
    pub(super) fn path_of(&self, host: &str) -> PathBuf {
        self.dir.join(format!("{CERTIFICATES}/{host}.json"))
    }

    fn read<T: DeserializeOwned>(&self, path: &Path) -> Option<T> {
        let fault = match std::fs::read(path) {
            Ok(bytes) => match serde_json::from_slice(&bytes) {
                Ok(read) => return Some(read),
                // Not the bytes: there are keys among them.
                Err(error) => format!("line {}: not what was written", error.line()),
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            Err(error) => error.to_string(),
        };
        let mut aside = path.as_os_str().to_owned();
        aside.push(".damaged");
        let kept = std::fs::rename(path, &aside).is_ok();
        tracing::error!(path = %path.display(), "cannot be read{}: {fault}", if kept { ", and is set aside" } else { "" });
        None
    }

    fn write(&self, name: &str, value: &impl Serialize) -> io::Result<()> {
        let path = self.dir.join(name);
        let dir = path.parent().unwrap_or(&self.dir);
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        let bytes = serde_json::to_vec_pretty(value)?;
        let mut aside = path.clone().into_os_string();
        aside.push(".new");
        // What a run that was killed has left may have another mode.
        match std::fs::remove_file(&aside) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = File::options().write(true).create_new(true).mode(0o600).open(&aside)?;
        file.write_all(&bytes)?;
        file.sync_all()?;
        std::fs::rename(&aside, &path)?;
        File::open(dir)?.sync_all()
    }
}

/// Whether a certificate can be ordered for it: a name of the DNS in ASCII, in lower case, with a letter somewhere in its last label.
pub fn is_host(text: &str) -> bool {
    let is_label = |label: &str| {
        let ends_well = !label.starts_with('-') && !label.ends_with('-');
        let is_known = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'_';
        (1..=63).contains(&label.len()) && ends_well && label.bytes().all(is_known)
    };
    let last = text.rsplit('.').next().unwrap_or_default();
    text.len() <= 253 && text.split('.').all(is_label) && last.bytes().any(|b| b.is_ascii_lowercase())
}

const ACCOUNT: &str = "account.json";
const FAILED: &str = "failures.json";
const CERTIFICATES: &str = "certificates";

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn names_of_the_dns_alone_are_hosts() {
        for host in ["a.test", "xn--bcher-kva.example", "a", "1.2.3.x4", "a_b.test"] {
            assert!(is_host(host), "{host}");
        }
        let long = format!("{}.test", "a".repeat(64));
        for other in [
            "",
            ".",
            "a.",
            ".a",
            "a..b",
            "*.a.test",
            "A.test",
            "192.0.2.1",
            "::1",
            "[::1]",
            "a/b",
            "../x",
            "-a.test",
            "a.test:443",
            "bücher.example",
            &long,
        ] {
            assert!(!is_host(other), "{other}");
        }
    }

    #[test]
    fn what_is_written_is_its_owners_alone_and_what_is_damaged_is_set_aside() {
        let dir = tempfile::tempdir().unwrap();
        let files = Files::new(dir.path(), &"le".parse().unwrap());
        assert!(files.account().is_none() && files.certificates().is_empty() && files.failed().names.is_empty());
        let certificate = Certificate {
            directory: "https://ca.test/dir".to_owned(),
            ordered_at: 7,
            certificate: "c".to_owned(),
            key: "k".to_owned(),
        };
        files.write_certificate("a.test", &certificate).unwrap();
        files.write_certificate("a.test", &certificate).unwrap();
        let path = files.path_of("a.test");
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o600, 0o700));
        assert_eq!(mode(&dir.path().join("acme/le")), 0o700);
        let kept = files.certificates();
        assert_eq!((kept.len(), &*kept[0].0, kept[0].1.ordered_at), (1, "a.test", 7));
        std::fs::write(&path, "{\"half").unwrap();
        assert!(files.certificates().is_empty());
        assert!(!path.exists() && path.with_extension("json.damaged").exists());
    }
}
