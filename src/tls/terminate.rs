//! What ends TLS at entry points: a rustls configuration for each, kept up with its files, and what came of handshakes.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use rustls::crypto::CryptoProvider;
use rustls::crypto::ring::{self, cipher_suite as suite};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::version::{TLS12, TLS13};
use rustls::{RootCertStore, ServerConfig, SupportedCipherSuite};

use super::acme::Acme;
use super::certificates::{Certificates, Resolver, Sign, now};
use super::challenges::{ACME_TLS, Challenges};
use super::expiry::Warned;
use super::policy::{ClientAuth, MinVersion, Policy, TlsConfig};
use super::shown::Shown;
use super::tickets::{Secret, Tickets};
use crate::model::EntryPointName;

/// What is spoken, the first that the client has too. AES-128 first: it is as safe as the keys that are agreed on, and costs less.
const SUITES: [SupportedCipherSuite; 9] = [
    suite::TLS13_AES_128_GCM_SHA256,
    suite::TLS13_AES_256_GCM_SHA384,
    suite::TLS13_CHACHA20_POLY1305_SHA256,
    suite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
    suite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
    suite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
    suite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
    suite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
    suite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
];

/// All entry points of a node that end TLS.
#[derive(Debug)]
pub struct Terminators {
    certificates: Arc<Certificates>,
    challenges: Arc<Challenges>,
    acme: Arc<Acme>,
    by_name: BTreeMap<EntryPointName, Arc<Terminator>>,
    are_declared: bool,
}

/// Ends TLS at one entry point.
pub struct Terminator {
    policy: Policy,
    certificates: Arc<Certificates>,
    secret: Secret,
    /// `None`: clients cannot be told apart by certificates that there are no authorities for, so nobody is let in.
    config: ArcSwapOption<Configs>,
    challenges: Arc<Challenges>,
    /// Certificates are ordered, so that there may be none yet.
    has_orders: bool,
    pub handshakes: Handshakes,
    /// What the file of authorities looked like when it was taken up; `None`: it was not. std mutex: of who looks, while it reads.
    looked: Mutex<Option<Option<Sign>>>,
    /// What is wrong with that file. std mutex: for a moment each.
    fault: Mutex<Option<String>>,
}

/// What handshakes go by.
struct Configs {
    requests: Arc<ServerConfig>,
    /// The same, where an authority may ask for a challenge's certificate by its protocol.
    while_asked: Arc<ServerConfig>,
    streams: Arc<ServerConfig>,
}

/// What came of handshakes.
#[derive(Debug, Default)]
pub struct Handshakes {
    /// With a signature of ours.
    pub full: AtomicU64,
    /// By a ticket.
    pub resumed: AtomicU64,
    /// The client and we have no version, cipher, certificate or name in common, or it speaks no TLS.
    pub refused: AtomicU64,
    /// The client went away, or took too long.
    pub abandoned: AtomicU64,
}

/// How a handshake ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Handshake {
    Full,
    Resumed,
    Refused,
    Abandoned,
}

impl Handshakes {
    pub fn count(&self, handshake: Handshake) {
        let counter = match handshake {
            Handshake::Full => &self.full,
            Handshake::Resumed => &self.resumed,
            Handshake::Refused => &self.refused,
            Handshake::Abandoned => &self.abandoned,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

impl std::fmt::Debug for Terminator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Terminator of {}", self.policy.entry_point)
    }
}

impl Terminators {
    /// Reads all files. What cannot be used is said, and made up for when it can.
    ///
    /// Errors: the key of `ticket_key_file` cannot be read or is short, or the system has no randomness.
    pub fn new(config: TlsConfig) -> Result<Terminators, String> {
        let secret = match &config.ticket_key_file {
            Some(path) => shared_secret(path)?,
            None => Secret::random().map_err(|_| "the system has no randomness".to_owned())?,
        };
        let certificates = Arc::new(Certificates::new(config.certificates));
        let challenges: Arc<Challenges> = Arc::default();
        let acme = Arc::new(Acme::new(&config.acme, challenges.clone(), certificates.clone()));
        let terminator = |policy: Policy| {
            let name = policy.entry_point.clone();
            let mut terminator = Terminator::new(policy, certificates.clone(), secret.clone(), challenges.clone());
            terminator.has_orders = !config.acme.is_empty();
            (name, Arc::new(terminator))
        };
        let by_name = config.policies.into_iter().map(terminator).collect();
        Ok(Terminators {
            certificates,
            challenges,
            acme,
            by_name,
            are_declared: config.are_declared,
        })
    }

    /// What orders certificates, or says that nobody does whom routes ask for.
    pub fn acme(&self) -> &Arc<Acme> {
        &self.acme
    }

    /// What authorities are answered that ask whether names are ours.
    pub fn challenges(&self) -> &Arc<Challenges> {
        &self.challenges
    }

    /// `None`: that entry point ends no TLS.
    pub fn of(&self, entry_point: &EntryPointName) -> Option<&Arc<Terminator>> {
        self.by_name.get(entry_point)
    }

    /// Shows these beside those of files, in the place of those that were declared before.
    pub fn declare(&self, shown: Vec<Shown>) {
        // What none is for any more is ordered when that is looked at next: one that goes may be followed by another at once.
        self.certificates.set_declared(shown);
    }

    pub fn certificates(&self) -> &Certificates {
        &self.certificates
    }

    /// By entry point, in the order of their names.
    pub fn all(&self) -> impl Iterator<Item = (&EntryPointName, &Arc<Terminator>)> {
        self.by_name.iter()
    }

    /// All that is wrong.
    pub fn faults(&self) -> Vec<String> {
        self.faults_with(Terminator::fault)
    }

    /// All that is wrong with the configuration's files, whatever runs.
    pub fn config_faults(&self) -> Vec<String> {
        let of_orders = self.acme.config_faults();
        let faults = match self.are_declared {
            true => self.faults_with(Terminator::client_fault),
            false => self.faults(),
        };
        faults.into_iter().chain(of_orders).collect()
    }

    fn faults_with(&self, fault: impl Fn(&Terminator) -> Option<String>) -> Vec<String> {
        let of_certificates = self.certificates.faults().into_iter();
        let named = |name, fault: Option<String>| Some(format!("entry point {name}: {}", fault?));
        let of_entry_points = self.by_name.iter().filter_map(|(name, one)| named(name, fault(one)));
        let of_orders = self.acme.faults();
        of_certificates.chain(of_entry_points).chain(of_orders).collect()
    }

    /// Looks at all files, and takes up what has changed.
    pub fn look(&self) {
        self.certificates.look();
        self.by_name.values().for_each(|terminator| terminator.look());
    }

    /// Looks again and again. Never ends; returns at once where there is nothing to look at.
    pub async fn follow(self: Arc<Terminators>) {
        let warned: Arc<Mutex<Warned>> = Arc::default();
        while !self.by_name.is_empty() {
            tokio::time::sleep(LOOK_EVERY).await;
            let (looking, warned) = (self.clone(), warned.clone());
            // Files may be where a read hangs. An error means that the runtime ends.
            let _ = tokio::task::spawn_blocking(move || {
                looking.look();
                let mut warned = warned.lock().unwrap_or_else(PoisonError::into_inner);
                warned.warn(&looking.certificates, now());
            })
            .await;
        }
    }
}

/// A change is taken up within a second.
const LOOK_EVERY: Duration = Duration::from_millis(400);

impl Terminator {
    fn new(policy: Policy, certificates: Arc<Certificates>, secret: Secret, challenges: Arc<Challenges>) -> Terminator {
        let terminator = Terminator {
            policy,
            certificates,
            secret,
            challenges,
            has_orders: false,
            config: ArcSwapOption::empty(),
            handshakes: Handshakes::default(),
            looked: Mutex::default(),
            fault: Mutex::default(),
        };
        terminator.look();
        terminator
    }

    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// What a handshake that begins now goes by. `None`: nobody can be let in.
    pub fn config(&self) -> Option<Arc<ServerConfig>> {
        let configs = self.config.load();
        let configs = configs.as_ref()?;
        Some(match self.challenges.is_tls_pending() {
            true => configs.while_asked.clone(),
            false => configs.requests.clone(),
        })
    }

    /// The same for a connection that is a service's as a whole: what protocol is spoken in it is not ours to choose (ALPN).
    pub fn stream_config(&self) -> Option<Arc<ServerConfig>> {
        self.config.load().as_ref().map(|configs| configs.streams.clone())
    }

    /// What is wrong with it, if anything is.
    pub fn fault(&self) -> Option<String> {
        // Where they are ordered it is said of each name why there is none.
        let has_none = || !self.has_orders && self.certificates.is_empty();
        self.client_fault()
            .or_else(|| has_none().then(|| "no certificate can be used".to_owned()))
    }

    /// What is wrong with what clients are judged by, if anything is.
    pub fn client_fault(&self) -> Option<String> {
        self.fault.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn look(&self) {
        let mut looked = self.looked.lock().unwrap_or_else(PoisonError::into_inner);
        let sign = self.policy.client_auth.authorities().and_then(|path| Sign::of(path));
        if *looked == Some(sign) {
            return;
        }
        let built = self.build();
        // What could not be read is tried again, however the file looks.
        *looked = built.is_ok().then_some(sign);
        let fault = built.map(|configs| self.config.store(Some(Arc::new(configs)))).err();
        let mut known = self.fault.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(fault) = fault.as_ref().filter(|fault| known.as_ref() != Some(fault)) {
            let stays = match self.config.load().is_some() {
                true => "; those before count still",
                false => "; nobody is let in",
            };
            tracing::error!("{fault}{stays}");
        }
        *known = fault;
    }

    fn build(&self) -> Result<Configs, String> {
        let policy = &self.policy;
        let provider = Arc::new(CryptoProvider {
            cipher_suites: SUITES.to_vec(),
            ..ring::default_provider()
        });
        let versions: &[_] = match policy.min_version {
            MinVersion::Tls12 => &[&TLS13, &TLS12],
            MinVersion::Tls13 => &[&TLS13],
        };
        // Who shows a certificate is judged each time: a ticket would let him in after it has expired.
        let verifier = self.verifier()?;
        let builder = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)
            .map_err(|error| format!("entrypoints.{}: {error}", policy.entry_point))?;
        let builder = match verifier {
            Some(verifier) => builder.with_client_cert_verifier(verifier),
            None => builder.with_no_client_auth(),
        };
        let mut config = builder.with_cert_resolver(Arc::new(Resolver {
            certificates: self.certificates.clone(),
            is_strict: policy.is_strict,
            challenges: self.challenges.clone(),
        }));
        config.session_storage = Arc::new(NoServerSessionStorage {});
        // Otherwise whoever calls says which of them is used.
        config.ignore_client_order = true;
        if policy.client_auth == ClientAuth::None {
            // A ticket is worth what was asked when it was given.
            let asked = format!("{} {}", policy.entry_point, policy.min_version.as_str());
            config.ticketer = Arc::new(Tickets::new(self.secret.clone(), asked));
        }
        let streams = Arc::new(config.clone());
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec(), b"http/1.0".to_vec()];
        let mut while_asked = config.clone();
        while_asked.alpn_protocols.push(ACME_TLS.to_vec());
        Ok(Configs {
            requests: Arc::new(config),
            while_asked: Arc::new(while_asked),
            streams,
        })
    }

    /// What judges clients' certificates; `None`: none are asked for.
    fn verifier(&self) -> Result<Option<Arc<dyn ClientCertVerifier>>, String> {
        let (path, is_required) = match &self.policy.client_auth {
            ClientAuth::None => return Ok(None),
            ClientAuth::Optional { authorities } => (authorities, false),
            ClientAuth::Required { authorities } => (authorities, true),
        };
        let wrong = |what: &str| {
            let name = &self.policy.entry_point;
            format!(
                "entrypoints.{name}.tls.client_ca = {:?}: {what}",
                path.display().to_string()
            )
        };
        let pem = std::fs::read(path).map_err(|error| wrong(&error.to_string()))?;
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(&pem) {
            let added = certificate.ok().and_then(|certificate| roots.add(certificate).ok());
            added.ok_or_else(|| wrong("expected certificates of authorities in PEM"))?;
        }
        if roots.is_empty() {
            return Err(wrong("expected certificates of authorities in PEM"));
        }
        let provider = Arc::new(ring::default_provider());
        let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
        let builder = match is_required {
            true => builder,
            false => builder.allow_unauthenticated(),
        };
        let verifier = builder.build().map_err(|error| wrong(&error.to_string()))?;
        Ok(Some(verifier))
    }
}

fn shared_secret(path: &Path) -> Result<Secret, String> {
    let wrong = |what: String| format!("tls.ticket_key_file = {:?}: {what}", path.display().to_string());
    let bytes = std::fs::read(path).map_err(|error| wrong(error.to_string()))?;
    // What is around text does not count; of random bytes all do.
    let is_text = |byte: &u8| byte.is_ascii_graphic() || byte.is_ascii_whitespace();
    let secret = match bytes.iter().all(is_text) {
        true => bytes.trim_ascii(),
        false => &bytes,
    };
    match secret.len() < SECRET_LEN_MIN {
        true => Err(wrong(format!(
            "expected at least {SECRET_LEN_MIN} random bytes or characters"
        ))),
        false => Ok(Secret::shared(secret)),
    }
}

const SECRET_LEN_MIN: usize = 32;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_32_random_bytes_make_a_key_and_spaces_around_text_count_for_nothing() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let read = |bytes: &[u8]| {
            std::fs::write(file.path(), bytes).unwrap();
            shared_secret(file.path())
        };
        for byte in 0..=255 {
            let mut bytes = [0x81; 32];
            (bytes[0], bytes[31]) = (byte, byte);
            assert!(read(&bytes).is_ok(), "{byte:#x}");
        }
        assert!(read(b"0123456789abcdef0123456789abcdef\n").is_ok());
        let short = read(b" 0123456789abcdef0123456789abcde\n").err().unwrap();
        assert!(
            short.contains("expected at least 32 random bytes or characters"),
            "{short}"
        );
    }
}
