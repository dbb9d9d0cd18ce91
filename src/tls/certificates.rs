//! The certificates of a node: from files, read again when those change, those that are declared, and those that were ordered. What cannot
//! be used of a file leaves what was used before in its place. Not here: what is declared (`declared`).

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use super::challenges::{ACME_TLS, Challenges};
use super::names::ByName;
use super::pair::Pair;
use super::shown::{self, BY_KEY, BY_LABEL, Shown};

/// Where a certificate and its key are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PairFiles {
    /// PEM: the certificate, then those of its authorities.
    pub certificate: PathBuf,
    /// PEM.
    pub key: PathBuf,
}

/// Those that are declared.
#[derive(Debug, Default)]
struct AllDeclared {
    shown: Vec<Shown>,
    /// Why it is not known which there are.
    waits: Option<String>,
}

/// All of them, by name.
#[derive(Debug)]
pub struct Certificates {
    by_name: ArcSwap<ByName>,
    /// std mutex: held while files are read, by who looks at them; by who shows them for a moment.
    all: Mutex<Vec<Shown>>,
    files: Vec<PairFiles>,
    /// std mutex: for a moment each.
    declared: Mutex<AllDeclared>,
    /// By host. std mutex: while what is shown is put in order.
    ordered: Mutex<BTreeMap<String, Arc<Pair>>>,
    /// std mutex: of who looks, one at a time.
    looked: Mutex<Vec<Option<Look>>>,
}

/// What files looked like, and whether they were read in that state.
#[derive(Debug, Clone, PartialEq)]
struct Look {
    signs: [Option<Sign>; 2],
    is_settled: bool,
}

/// Enough of a file's metadata to see that it is another, or was written to.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Sign {
    inode: u64,
    device: u64,
    size: u64,
    modified: Option<SystemTime>,
    changed: (i64, i64),
}

impl Sign {
    pub(super) fn of(path: &Path) -> Option<Sign> {
        let metadata = std::fs::metadata(path).ok()?;
        Some(Sign {
            inode: metadata.ino(),
            device: metadata.dev(),
            size: metadata.size(),
            modified: metadata.modified().ok(),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        })
    }
}

impl Certificates {
    /// Reads all files. What is wrong with any is kept, to be shown.
    pub fn new(files: Vec<PairFiles>) -> Certificates {
        let shown = |files: &PairFiles| Shown {
            from: files.certificate.display().to_string(),
            said_by: BY_KEY,
            pair: None,
            fault: None,
        };
        let certificates = Certificates {
            by_name: ArcSwap::default(),
            all: Mutex::new(files.iter().map(shown).collect()),
            looked: Mutex::new(vec![None; files.len()]),
            files,
            declared: Mutex::default(),
            ordered: Mutex::default(),
        };
        certificates.look();
        certificates
    }

    /// All of them: those of files, in the order of the configuration, then those that are declared.
    pub fn all(&self) -> Vec<Shown> {
        let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner).clone();
        all.extend(self.declared().shown.iter().cloned());
        all
    }

    /// What is wrong with any of them: with what it is from, or that it is good no more, or not yet.
    pub fn faults(&self) -> Vec<String> {
        let now = now();
        let waits = self.declared().waits.clone();
        self.all()
            .into_iter()
            .flat_map(|shown| [shown.fault_of_time(now), shown.fault])
            .flatten()
            .chain(waits)
            .collect()
    }

    /// Reads what has changed. A few system calls where nothing has. What cannot be used is said once it has stood so from one look
    /// to the next, since it may be half written before.
    pub(super) fn look(&self) {
        let mut looked = self.looked.lock().unwrap_or_else(PoisonError::into_inner);
        let mut is_new = false;
        for (i, (files, before)) in self.files.iter().zip(looked.iter_mut()).enumerate() {
            let signs = [Sign::of(&files.certificate), Sign::of(&files.key)];
            let is_first = before.is_none();
            let is_same = before.as_ref().is_some_and(|before| before.signs == signs);
            if is_same && before.as_ref().is_some_and(|before| before.is_settled) {
                continue;
            }
            let result = read(files);
            *before = Some(Look {
                signs,
                is_settled: match &result {
                    Ok(_) => true,
                    // What cannot be read now may be readable with no change of the file.
                    Err(fault) => is_same && !fault.is_of_reading,
                },
            });
            let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
            match result {
                Ok(pair) => {
                    tracing::info!(certificate = %files.certificate.display(), names = pair.names.join(" "), "taken up");
                    all[i].pair = Some(Arc::new(pair));
                    all[i].fault = None;
                    is_new = true;
                }
                Err(Fault { text, .. }) if is_first || is_same => {
                    if all[i].fault.as_ref() != Some(&text) {
                        let stays = match all[i].pair.is_some() {
                            true => "; the one before is shown still",
                            false => "",
                        };
                        tracing::error!("{text}{stays}");
                    }
                    all[i].fault = Some(text);
                }
                Err(_) => {}
            }
        }
        if is_new {
            self.put_in_order(self.ordered());
        }
    }

    /// Shows these, by host, beside those of files, in the place of those that were ordered before.
    pub(super) fn set_ordered(&self, pairs: BTreeMap<String, Arc<Pair>>) {
        let mut ordered = self.ordered();
        *ordered = pairs;
        self.put_in_order(ordered);
    }

    /// Shows these beside those of files, in the place of those that were declared before.
    pub(super) fn set_declared(&self, shown: Vec<Shown>) {
        shown::say_changes(&self.declared().shown, &shown);
        let ordered = self.ordered();
        *self.declared() = AllDeclared { shown, waits: None };
        self.put_in_order(ordered);
    }

    /// Says why it is not known yet which are declared.
    pub fn declared_wait(&self, why: &str) {
        self.declared().waits = Some(format!("{BY_LABEL}: {why}"));
    }

    /// Whether a certificate that was not ordered is for that host, and good at `now`, in seconds since 1970. While it is not known which there are,
    /// there may be one for whatever host none was ever ordered for.
    pub(super) fn covers(&self, host: &str, now: i64) -> bool {
        let covers = |all: &[Shown]| {
            let mut pairs = all.iter().filter_map(|shown| shown.pair.as_ref());
            pairs.any(|pair| pair.is_for(host) && (pair.not_before..pair.not_after).contains(&now))
        };
        if covers(&self.all.lock().unwrap_or_else(PoisonError::into_inner)) {
            return true;
        }
        let (is_declared, is_known) = {
            let declared = self.declared();
            (covers(&declared.shown), declared.waits.is_none())
        };
        is_declared || (!is_known && !self.ordered().contains_key(host))
    }

    /// Whether nothing can be shown.
    pub(super) fn is_empty(&self) -> bool {
        self.by_name.load().is_empty()
    }

    fn declared(&self) -> MutexGuard<'_, AllDeclared> {
        self.declared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ordered(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Pair>>> {
        self.ordered.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is ordered is held meanwhile, so that nobody puts less than this in its place.
    fn put_in_order(&self, ordered: MutexGuard<'_, BTreeMap<String, Arc<Pair>>>) {
        let pairs: Vec<Arc<Pair>> = self.all().into_iter().filter_map(|shown| shown.pair).collect();
        self.by_name.store(Arc::new(ByName::new(&pairs, &ordered)));
    }

    /// The one for who says this.
    fn find(&self, hello: &ClientHello<'_>, is_strict: bool) -> Option<Arc<CertifiedKey>> {
        let by_name = self.by_name.load();
        let found = by_name.find(hello.server_name(), hello.signature_schemes(), is_strict, now())?;
        Some(found.key.clone())
    }
}

/// Seconds since 1970.
pub fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| i64::try_from(since.as_secs()).unwrap_or(i64::MAX))
}

/// What is wrong with a pair of files.
struct Fault {
    text: String,
    /// They could not be read, whatever is in them.
    is_of_reading: bool,
}

fn read(files: &PairFiles) -> Result<Pair, Fault> {
    let fault = |what: &str, path: &Path, error: &dyn std::fmt::Display, is_of_reading| Fault {
        text: format!("tls.certificates: {what} = {:?}: {error}", path.display().to_string()),
        is_of_reading,
    };
    let bytes = |path: &Path, what: &str| std::fs::read(path).map_err(|error| fault(what, path, &error, true));
    let (certificate, key) = (bytes(&files.certificate, "cert")?, bytes(&files.key, "key")?);
    Pair::from_pem(&certificate, &key).map_err(|error| match error.is_of_key() {
        true => fault("key", &files.key, &error, false),
        false => fault("cert", &files.certificate, &error, false),
    })
}

/// Shows an entry point's clients what is there.
#[derive(Debug)]
pub(super) struct Resolver {
    pub(super) certificates: Arc<Certificates>,
    pub(super) is_strict: bool,
    pub(super) challenges: Arc<Challenges>,
}

impl ResolvesServerCert for Resolver {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        // Who offers something else as well is answered by that, and while nobody is to ask so it is no protocol of ours.
        if self.challenges.is_tls_pending() && hello.alpn().is_some_and(|protocols| protocols.eq([ACME_TLS])) {
            return self.challenges.certificate(hello.server_name());
        }
        self.certificates.find(&hello, self.is_strict)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::pair::tests::pem;
    use super::*;

    #[test]
    fn files_are_taken_up_when_they_can_be_used_and_stay_until_then() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let files = |name: &str| PairFiles {
            certificate: path(&format!("{name}.pem")),
            key: path(&format!("{name}.key")),
        };
        let write = |name: &str, (certificate, key): &(String, String)| {
            fs::write(path(&format!("{name}.pem")), certificate).unwrap();
            fs::write(path(&format!("{name}.key")), key).unwrap();
        };
        let first = pem(&["first.test"]);
        write("a", &first);
        let certificates = Certificates::new(vec![files("a"), files("b")]);
        let names = || -> Vec<Vec<String>> {
            let pairs = certificates.all().into_iter().filter_map(|shown| shown.pair);
            pairs.map(|pair| pair.names.clone()).collect()
        };
        let faults = || -> Vec<Option<String>> { certificates.all().into_iter().map(|shown| shown.fault).collect() };
        assert_eq!(names(), [["first.test"]]);
        let missing = faults()[1].clone().unwrap();
        assert!(
            missing.contains("tls.certificates: cert = ") && missing.contains("b.pem"),
            "{missing}"
        );
        write("b", &pem(&["second.test"]));
        certificates.look();
        assert_eq!(
            (names(), faults()),
            (
                vec![vec!["first.test".to_owned()], vec!["second.test".to_owned()]],
                vec![None, None]
            )
        );
        // Half of a change: said only once it stays so, and the pair before is shown.
        let next = pem(&["next.test"]);
        fs::write(path("a.pem"), &next.0).unwrap();
        certificates.look();
        assert_eq!(
            (names()[0].clone(), faults()[0].clone()),
            (vec!["first.test".to_owned()], None)
        );
        certificates.look();
        let fault = faults()[0].clone().unwrap();
        assert!(
            fault.contains("key = ") && fault.contains("not the certificate's"),
            "{fault}"
        );
        assert_eq!(names()[0], ["first.test"]);
        fs::write(path("a.key"), &next.1).unwrap();
        certificates.look();
        assert_eq!(
            (names()[0].clone(), faults()[0].clone()),
            (vec!["next.test".to_owned()], None)
        );
        fs::remove_file(path("a.key")).unwrap();
        certificates.look();
        certificates.look();
        assert!(faults()[0].is_some());
        assert_eq!(names()[0], ["next.test"]);
    }
}
