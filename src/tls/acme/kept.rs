//! What of an authority outlives a start: the account, certificates with their keys, and what failed when. Files of their owner alone, each
//! written whole or not at all. Not here: when they are written (`driver`).

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::at_rest::{AtRest, is_sealed};
use super::due::Failures;
use crate::model::AcmeName;

/// An account at an authority.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct Account {
    pub(super) directory: String,
    pub(super) email: Option<String>,
    /// As the library has it, its private key among it.
    pub(super) credentials: serde_json::Value,
}

/// A certificate for one name, with its key: nothing to be shown to anybody, nor to a log.
#[derive(Clone, Serialize, Deserialize)]
pub struct Certificate {
    /// Of the authority that it is from.
    pub directory: String,
    /// Seconds since 1970.
    pub ordered_at: i64,
    /// PEM, with those of its authorities after it.
    pub certificate: String,
    /// PEM.
    pub key: String,
}

impl std::fmt::Debug for Certificate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Certificate {
            directory, ordered_at, ..
        } = self;
        write!(f, "Certificate of {directory} of {ordered_at}")
    }
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

/// All of an authority but its account.
#[derive(Debug, Default)]
pub(super) struct All {
    pub(super) failed: Failed,
    /// By name.
    pub(super) certificates: Vec<(String, Certificate)>,
}

/// The files of one authority. What is not as it was written is set aside, and said, and counts as not there.
#[derive(Debug, Clone)]
pub(super) struct Files {
    dir: PathBuf,
    /// What seals them; `None`: they are as they are.
    at_rest: Option<Arc<AtRest>>,
}

impl Files {
    /// Below the data directory `dir`.
    pub(super) fn new(dir: &Path, name: &AcmeName) -> Files {
        Files {
            dir: dir.join("acme").join(name.as_str()),
            at_rest: None,
        }
    }

    /// From here on what is written is sealed. What is not is read all the same.
    pub(super) fn sealed_by(self, at_rest: Option<Arc<AtRest>>) -> Files {
        Files { at_rest, ..self }
    }

    /// `None`: there is none. Errors: whether there is one cannot be told, for a person.
    pub(super) fn account(&self) -> Result<Option<Account>, String> {
        self.read(&self.dir.join(ACCOUNT))
    }

    /// Errors: what there is cannot be told, for a person.
    pub(super) fn all(&self) -> Result<All, String> {
        Ok(All {
            failed: self.read(&self.dir.join(FAILED))?.unwrap_or_default(),
            certificates: self.certificates()?,
        })
    }

    fn certificates(&self) -> Result<Vec<(String, Certificate)>, String> {
        let dir = self.dir.join(CERTIFICATES);
        let wrong = |error: io::Error| unreadable(&dir, &error);
        let entries = match std::fs::read_dir(&dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(wrong(error)),
        };
        let mut all = Vec::new();
        for entry in entries {
            let entry = entry.map_err(wrong)?;
            let Ok(name) = entry.file_name().into_string() else {
                continue;
            };
            let Some(host) = name.strip_suffix(".json").filter(|host| is_host(host)) else {
                continue;
            };
            if let Some(certificate) = self.read(&entry.path())? {
                all.push((host.to_owned(), certificate));
            }
        }
        Ok(all)
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
        std::fs::remove_file(self.path_of(host))
    }

    fn path_of(&self, host: &str) -> PathBuf {
        self.dir.join(format!("{CERTIFICATES}/{host}.json"))
    }

    /// Where a file stands, wherever the data directory is.
    fn place_of(&self, path: &Path) -> String {
        let acme = self.dir.file_name().unwrap_or_default().display();
        format!("{acme}/{}", path.strip_prefix(&self.dir).unwrap_or(path).display())
    }

    fn read<T: DeserializeOwned>(&self, path: &Path) -> Result<Option<T>, String> {
        let bytes = match std::fs::read(path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(unreadable(path, &error)),
        };
        let opened = match (is_sealed(&bytes), &self.at_rest) {
            (false, _) => Some(bytes),
            (true, Some(at_rest)) => at_rest.open(&self.place_of(path), &bytes),
            (true, None) => None,
        };
        let fault = match opened.as_deref().map(serde_json::from_slice) {
            Some(Ok(read)) => return Ok(Some(read)),
            // Not the bytes: there are keys among them.
            Some(Err(error)) => format!("line {}: not what was written", error.line()),
            None => "it was not sealed by this node's key for this place".to_owned(),
        };
        let mut aside = path.as_os_str().to_owned();
        aside.push(".damaged");
        let kept = std::fs::rename(path, &aside).is_ok();
        tracing::error!(path = %path.display(), "cannot be read{}: {fault}", if kept { ", and is set aside" } else { "" });
        Ok(None)
    }

    fn write(&self, name: &str, value: &impl Serialize) -> io::Result<()> {
        let path = self.dir.join(name);
        let dir = path.parent().unwrap_or(&self.dir);
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        let bytes = serde_json::to_vec_pretty(value)?;
        let bytes = match &self.at_rest {
            Some(at_rest) => at_rest.seal(&self.place_of(&path), &bytes)?,
            None => bytes,
        };
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

fn unreadable(path: &Path, error: &io::Error) -> String {
    format!(
        "{}: {error}: what was kept has to be readable before anything is ordered",
        path.display()
    )
}

/// Whether a certificate can be ordered for it: a name of the DNS in ASCII, in lower case, with a letter somewhere in its last label.
pub fn is_host(text: &str) -> bool {
    let is_label = |label: &str| {
        let ends_well = !label.starts_with('-') && !label.ends_with('-');
        let is_known = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'_';
        (1..=63).contains(&label.len()) && ends_well && label.bytes().all(is_known)
    };
    let last = text.rsplit('.').next().unwrap_or_default();
    text.len() <= HOST_BYTES_MOST && text.split('.').all(is_label) && last.bytes().any(|b| b.is_ascii_lowercase())
}

/// So that a file can be named by it, and another one that is to take its place.
const HOST_BYTES_MOST: usize = 255 - ".json.new".len();
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
        // As long as a file can be written for it.
        let longest = format!("{}.a", "a123456.".repeat(30) + "a123");
        assert!(longest.len() == 246 && is_host(&longest) && !is_host(&format!("{longest}a")));
        let dir = tempfile::tempdir().unwrap();
        let files = Files::new(dir.path(), &"le".parse().unwrap());
        let certificate = Certificate {
            directory: String::new(),
            ordered_at: 0,
            certificate: String::new(),
            key: String::new(),
        };
        files.write_certificate(&longest, &certificate).unwrap();
        assert_eq!(files.all().unwrap().certificates[0].0, longest);
    }

    #[test]
    fn what_is_written_is_its_owners_alone_and_what_is_damaged_is_set_aside() {
        let dir = tempfile::tempdir().unwrap();
        let files = Files::new(dir.path(), &"le".parse().unwrap());
        let all = files.all().unwrap();
        assert!(files.account().unwrap().is_none() && all.certificates.is_empty() && all.failed.names.is_empty());
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
        let kept = files.all().unwrap().certificates;
        assert_eq!((kept.len(), &*kept[0].0, kept[0].1.ordered_at), (1, "a.test", 7));
        std::fs::write(&path, "{\"half").unwrap();
        assert!(files.all().unwrap().certificates.is_empty());
        assert!(!path.exists() && path.with_extension("json.damaged").exists());
    }

    #[test]
    fn what_a_node_has_sealed_is_read_by_that_node_and_set_aside_by_another() {
        let dir = tempfile::tempdir().unwrap();
        let sealed = |secret: u8| {
            let at_rest = AtRest::new(&[secret; 32]).map(Arc::new);
            Files::new(dir.path(), &"le".parse().unwrap()).sealed_by(at_rest)
        };
        let certificate = Certificate {
            directory: "https://ca.test/dir".to_owned(),
            ordered_at: 7,
            certificate: "c".to_owned(),
            key: "-----BEGIN PRIVATE KEY-----".to_owned(),
        };
        assert!(!format!("{certificate:?}").contains("PRIVATE"));
        let ours = sealed(1);
        ours.write_certificate("a.test", &certificate).unwrap();
        ours.write_certificate("b.test", &certificate).unwrap();
        let path = ours.path_of("a.test");
        let bytes = std::fs::read(&path).unwrap();
        assert!(!bytes.windows(7).any(|part| part == b"PRIVATE" || part == b"https:/"));
        assert_eq!(ours.all().unwrap().certificates.len(), 2);
        // Of another name, and by another node.
        std::fs::copy(&path, ours.path_of("b.test")).unwrap();
        assert_eq!(ours.all().unwrap().certificates.len(), 1);
        assert!(sealed(2).all().unwrap().certificates.is_empty());
        assert!(path.with_extension("json.damaged").exists());
        // What stands there in the clear is read.
        let plain = Files::new(dir.path(), &"le".parse().unwrap());
        plain.write_certificate("a.test", &certificate).unwrap();
        assert_eq!(ours.all().unwrap().certificates.len(), 1);
    }

    #[test]
    fn what_cannot_be_read_is_not_taken_for_nothing_and_stays() {
        let dir = tempfile::tempdir().unwrap();
        let files = Files::new(dir.path(), &"le".parse().unwrap());
        let of = dir.path().join("acme/le");
        // Each is of another kind than it is to be, which nobody can read, root neither.
        std::fs::create_dir_all(of.join("account.json")).unwrap();
        let fault = files.account().map(|_| ()).unwrap_err();
        assert!(fault.contains("acme/le/account.json: "), "{fault}");
        assert!(of.join("account.json").is_dir());
        std::fs::write(of.join("certificates"), "").unwrap();
        assert!(files.all().unwrap_err().contains("acme/le/certificates: "));
        std::fs::remove_file(of.join("certificates")).unwrap();
        std::fs::create_dir_all(of.join("certificates/a.test.json")).unwrap();
        assert!(files.all().unwrap_err().contains("a.test.json: "));
        std::fs::remove_dir(of.join("certificates/a.test.json")).unwrap();
        std::fs::create_dir(of.join("failures.json")).unwrap();
        assert!(files.all().unwrap_err().contains("failures.json: "));
        std::fs::remove_dir(of.join("failures.json")).unwrap();
        assert!(files.all().unwrap().certificates.is_empty());
    }
}
