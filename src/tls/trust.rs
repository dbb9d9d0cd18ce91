//! Whom a node believes when it speaks TLS to endpoints: files of authorities by name, read again when they change, and a rustls
//! configuration for each way of judging, built when it is first asked for. Not here: connections (`proxy::secured`), and which service
//! asks for what (`model::EndpointTls`).

use std::collections::{BTreeMap, HashMap};
use std::fs::OpenOptions;
use std::io::Read;
use std::num::NonZeroU64;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use rustix::fs::OFlags;
use rustls::client::{ClientSessionMemoryCache, Resumption, WebPkiServerVerifier};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, RootCertStore};

use super::certificates::Sign;
use super::judge::{Judge, TlsFault};
use crate::model::{CaName, EndpointHandshake, EndpointTls, Verify};

/// All of it, for one node.
#[derive(Debug, Default)]
pub struct Trust {
    authorities: BTreeMap<CaName, Authority>,
    built: ArcSwap<HashMap<EndpointTls, Arc<Towards>>>,
    /// Of who builds, or takes up files. std mutex: nothing awaits under it.
    building: Mutex<()>,
}

/// One file of authorities. Changed by who holds `Trust::building`; std mutex: for a moment each.
#[derive(Debug)]
struct Authority {
    path: PathBuf,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// What the file looked like at the last look.
    seen: Option<Option<Sign>>,
    /// What it looked like when it was read.
    looked: Option<Option<Sign>>,
    /// Of the bytes that count.
    digest: Option<Vec<u8>>,
    /// What was read; `None`: nothing that could be used, by now.
    roots: Option<Arc<RootCertStore>>,
    /// What is wrong with the file as it is.
    fault: Option<String>,
}

/// Names a way of judging, as it was when it was built: a connection that was judged in another one is not used for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Seal(NonZeroU64);

/// What handshakes with endpoints go by that are judged in one way.
#[derive(Debug)]
pub struct Towards {
    seal: Seal,
    judge: Arc<Judge>,
    config: ClientConfig,
}

/// The same, for one endpoint, with the sessions that it can go on with.
#[derive(Debug, Clone)]
pub struct Sessions {
    pub seal: Seal,
    /// HTTP/2 is offered.
    pub any: Arc<ClientConfig>,
    pub http1: Arc<ClientConfig>,
    judge: Arc<Judge>,
}

impl Sessions {
    /// Whether what an endpoint has shown once is still to be believed: nobody judges it where a session goes on. `shown`: its certificate
    /// first. Errors: what is wrong with it by now.
    pub fn judge_again(&self, shown: &[CertificateDer<'_>], name: &ServerName<'_>) -> Result<(), TlsFault> {
        self.judge.judge_again(shown, name, UnixTime::now())
    }
}

impl Towards {
    pub fn seal(&self) -> Seal {
        self.seal
    }

    /// For one endpoint: a session is of who has given it.
    pub fn sessions(&self) -> Sessions {
        let store = Arc::new(ClientSessionMemoryCache::new(SESSIONS_KEPT));
        let offering = |protocols: &[&[u8]]| {
            let mut config = self.config.clone();
            config.resumption = Resumption::store(store.clone());
            config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
            Arc::new(config)
        };
        Sessions {
            seal: self.seal,
            judge: self.judge.clone(),
            any: offering(&[b"h2", b"http/1.1"]),
            http1: offering(&[b"http/1.1"]),
        }
    }
}

impl Trust {
    /// Reads all files. What is wrong with any is kept, to be shown.
    pub fn new(files: BTreeMap<CaName, PathBuf>) -> Trust {
        let authority = |path| Authority {
            path,
            state: Mutex::default(),
        };
        let trust = Trust {
            authorities: files.into_iter().map(|(name, path)| (name, authority(path))).collect(),
            ..Trust::default()
        };
        trust.look();
        trust
    }

    /// What endpoints are judged by that are to be judged so. Errors: nobody can be believed.
    pub fn towards(&self, asked: &EndpointTls) -> Result<Arc<Towards>, TlsFault> {
        if let Some(built) = self.built.load().get(asked) {
            return Ok(built.clone());
        }
        let building = self.building();
        if let Some(built) = self.built.load().get(asked) {
            return Ok(built.clone());
        }
        let judge = Arc::new(self.judge(asked)?);
        let towards = Arc::new(Towards {
            seal: Seal::new(),
            config: config(judge.clone())?,
            judge,
        });
        let mut built = HashMap::clone(&self.built.load());
        if built.len() >= BUILT_MOST {
            // What services ask for now is built again.
            built.clear();
        }
        built.insert(asked.clone(), towards.clone());
        self.built.store(Arc::new(built));
        drop(building);
        Ok(towards)
    }

    /// Why nobody can be judged as is asked, where that is for want of a name in this node's configuration.
    pub fn lacks(&self, asked: &EndpointTls) -> Option<String> {
        let name = asked.ca.as_ref().filter(|name| !self.authorities.contains_key(name))?;
        Some(no_such(name))
    }

    /// What is wrong with any of the files.
    pub fn faults(&self) -> Vec<String> {
        let fault = |one: &Authority| one.state().fault.clone();
        self.authorities.values().filter_map(fault).collect()
    }

    /// Looks again and again. Never ends, but where there is nothing to look at.
    pub async fn follow(self: Arc<Trust>) {
        while !self.authorities.is_empty() {
            tokio::time::sleep(LOOK_EVERY).await;
            let looking = self.clone();
            // Files may be where a read hangs. An error means that the runtime ends.
            let _ = tokio::task::spawn_blocking(move || looking.look()).await;
        }
    }

    /// Reads what has changed, and has looked so for two looks: it may be half written. What cannot be used leaves what was used before
    /// in its place, and is said.
    fn look(&self) {
        for (name, authority) in &self.authorities {
            let sign = Sign::of(&authority.path);
            {
                let mut state = authority.state();
                let before = state.seen.replace(sign);
                if state.looked == Some(sign) || before.is_some_and(|before| before != sign) {
                    continue;
                }
            }
            let read = read(&authority.path).map_err(|what| {
                let path = authority.path.display().to_string();
                format!("authorities.{name} = {path:?}: {what}")
            });
            let _building = self.building();
            let mut state = authority.state();
            // What could not be read is tried again, however the file looks.
            state.looked = read.is_ok().then_some(sign);
            match read {
                // Nothing is judged anew.
                Ok((_, digest)) if state.digest.as_ref() == Some(&digest) => state.fault = None,
                Ok((roots, digest)) => {
                    state.digest = Some(digest);
                    if state.roots.replace(Arc::new(roots)).is_some() {
                        tracing::info!(authority = %name, file = %authority.path.display(), "taken up");
                    }
                    state.fault = None;
                    let mut built = HashMap::clone(&self.built.load());
                    built.retain(|asked, _| asked.ca.as_ref() != Some(name));
                    self.built.store(Arc::new(built));
                }
                Err(fault) => {
                    if state.fault.as_ref() != Some(&fault) {
                        let stays = match state.roots.is_some() {
                            true => "those before count still",
                            false => "no endpoint is believed by it",
                        };
                        tracing::error!("{fault}; {stays}");
                    }
                    state.fault = Some(fault);
                }
            }
        }
    }

    fn judge(&self, asked: &EndpointTls) -> Result<Judge, TlsFault> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let chain = match asked.verify {
            Verify::Full => {
                let roots = self.roots(asked.ca.as_ref())?;
                let builder = WebPkiServerVerifier::builder_with_provider(roots, provider.clone());
                Some(builder.build().map_err(|error| not_built(&error))?)
            }
            Verify::Pin | Verify::None => None,
        };
        Ok(Judge {
            chain,
            pins: asked.pins.clone(),
            provider,
        })
    }

    fn roots(&self, ca: Option<&CaName>) -> Result<Arc<RootCertStore>, TlsFault> {
        let Some(name) = ca else { return Ok(PUBLIC.clone()) };
        let fault = |text| TlsFault::new(EndpointHandshake::NoAuthority, text);
        let Some(authority) = self.authorities.get(name) else {
            return Err(fault(no_such(name)));
        };
        let state = authority.state();
        let unread = || {
            fault(
                state
                    .fault
                    .clone()
                    .unwrap_or_else(|| format!("authorities.{name}: not read yet")),
            )
        };
        state.roots.clone().ok_or_else(unread)
    }

    fn building(&self) -> MutexGuard<'_, ()> {
        self.building.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Authority {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn no_such(name: &CaName) -> String {
    format!("endpoint_tls.ca = {name}: this node's configuration has no authorities.{name}")
}

fn config(judge: Arc<Judge>) -> Result<ClientConfig, TlsFault> {
    let builder = ClientConfig::builder_with_provider(judge.provider.clone()).with_safe_default_protocol_versions();
    let builder = builder.map_err(|error| not_built(&error))?;
    let builder = builder.dangerous().with_custom_certificate_verifier(judge);
    Ok(builder.with_no_client_auth())
}

fn not_built(error: &dyn std::fmt::Display) -> TlsFault {
    TlsFault::new(EndpointHandshake::NoAuthority, error.to_string())
}

impl Seal {
    fn new() -> Seal {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        // It begins at one, and nobody lives long enough to see it wrap.
        Seal(NonZeroU64::new(NEXT.fetch_add(1, Ordering::Relaxed)).unwrap_or(NonZeroU64::MAX))
    }
}

/// The authorities in a file, and a digest of its bytes. Errors: what is wrong with it.
fn read(path: &Path) -> Result<(RootCertStore, Vec<u8>), String> {
    let expected = || "expected certificates of authorities in PEM".to_owned();
    let said = |error: std::io::Error| error.to_string();
    // What is no file may have nobody at its other end.
    let flags = i32::try_from(OFlags::NONBLOCK.bits()).unwrap_or_default();
    let opened = OpenOptions::new().read(true).custom_flags(flags).open(path);
    let file = opened.map_err(said)?;
    let metadata = file.metadata().map_err(said)?;
    if !metadata.is_file() || metadata.len() > BYTES_MOST {
        return Err(format!("{}: it is no file, or has more than 4 MiB", expected()));
    }
    let mut pem = Vec::new();
    file.take(BYTES_MOST).read_to_end(&mut pem).map_err(said)?;
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        let added = certificate.ok().and_then(|certificate| roots.add(certificate).ok());
        added.ok_or_else(expected)?;
    }
    match roots.is_empty() {
        true => Err(expected()),
        false => Ok((
            roots,
            ring::digest::digest(&ring::digest::SHA256, &pem).as_ref().to_vec(),
        )),
    }
}

/// Those that browsers come with.
static PUBLIC: LazyLock<Arc<RootCertStore>> = LazyLock::new(|| {
    Arc::new(RootCertStore {
        roots: webpki_roots::TLS_SERVER_ROOTS.to_vec(),
    })
});

/// A change is taken up within a second, which is two looks and more.
const LOOK_EVERY: Duration = Duration::from_millis(300);
/// Of a file of authorities; all that browsers believe have 200 KB.
const BYTES_MOST: u64 = 4 << 20;
/// Of one endpoint, by one worker: eight for each host.
const SESSIONS_KEPT: usize = 8;
/// Ways of judging that are kept.
const BUILT_MOST: usize = 16 * 1024;
