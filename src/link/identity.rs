//! Who a node is to other nodes: a certificate of the cluster's own authority, good for a day, that names the node and its
//! role. Managers hold the authority and write certificates; workers are given theirs. A new certificate takes the old
//! one's place in the running TLS configurations. Not here: how a worker asks for one (`join`, `control`).

use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwapOption;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PublicKeyData, SubjectPublicKeyInfo,
};
use ring::hkdf::{HKDF_SHA256, Salt};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ResolvesClientCert, Resumption, WebPkiServerVerifier};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::wire::{ALPN_CONTROL, ALPN_JOIN, ALPN_TUNNEL};

/// What a node may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    Manager,
    Worker,
}

impl Role {
    pub fn as_str(self) -> &'static str {
        match self {
            Role::Manager => "manager",
            Role::Worker => "worker",
        }
    }
}

/// What a verified certificate says of its node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    pub node: Arc<str>,
    pub role: Role,
}

/// What is wrong with keys and certificates.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    #[error("{what}: expected PEM text with an authority's key and certificate")]
    Authority {
        what: &'static str,
        #[source]
        error: rcgen::Error,
    },
    #[error("node id {id:?}: expected letters, digits and '-' that can be a DNS label")]
    NodeId { id: String },
    #[error("write a certificate")]
    Write(#[source] rcgen::Error),
    #[error("public key: expected the DER form of a P-256 key")]
    PublicKey(#[source] rcgen::Error),
    #[error("certificate: {reason}")]
    Certificate { reason: String },
    #[error("{path}")]
    File {
        path: PathBuf,
        #[source]
        error: io::Error,
    },
}

/// The cluster's authority: its key writes certificates. Only managers hold it.
pub struct Authority {
    certificate_pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Authority")
    }
}

impl Authority {
    /// The PEM text of a new authority: certificate and key.
    pub fn generate() -> Result<String, IdentityError> {
        let write = || {
            let key = KeyPair::generate()?;
            let mut params = CertificateParams::default();
            params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
            params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
            params
                .distinguished_name
                .push(DnType::CommonName, "anynode cluster authority");
            (params.not_before, params.not_after) = validity(AUTHORITY_LIFE)?;
            let certificate = params.self_signed(&key)?;
            Ok(certificate.pem() + &key.serialize_pem())
        };
        write().map_err(IdentityError::Write)
    }

    pub fn from_pem(pem: &str) -> Result<Authority, IdentityError> {
        let wrong = |what| move |error| IdentityError::Authority { what, error };
        let is_certificate = |block: &&str| block.contains("CERTIFICATE");
        let blocks: Vec<&str> = split_pem(pem);
        let certificate_pem = blocks
            .iter()
            .copied()
            .find(is_certificate)
            .unwrap_or_default()
            .to_owned();
        let key_pem = blocks
            .iter()
            .copied()
            .find(|block| !is_certificate(block))
            .unwrap_or_default();
        let key = KeyPair::from_pem(key_pem).map_err(wrong("the authority's key"))?;
        let issuer = Issuer::from_ca_cert_pem(&certificate_pem, key).map_err(wrong("the authority's certificate"))?;
        Ok(Authority {
            certificate_pem,
            issuer,
        })
    }

    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// Its own name and its public key, each in DER. Errors: its certificate has neither.
    pub fn subject_and_public_key(&self) -> Result<(Vec<u8>, Vec<u8>), IdentityError> {
        let wrong = |reason: String| IdentityError::Certificate { reason };
        let der = CertificateDer::from_pem_slice(self.certificate_pem.as_bytes()).map_err(|e| wrong(e.to_string()))?;
        let (_, certificate) = x509_parser::parse_x509_certificate(&der).map_err(|error| wrong(error.to_string()))?;
        Ok((
            certificate.subject().as_raw().to_vec(),
            certificate.public_key().raw.to_vec(),
        ))
    }

    /// Writes a certificate for the holder of `public_key` (SubjectPublicKeyInfo, DER). Whoever uses it must have the
    /// private key, so nothing is lost by writing one for a key that the asker does not have.
    pub fn issue(&self, node: &str, role: Role, public_key: &[u8], life: Duration) -> Result<String, IdentityError> {
        let public_key = SubjectPublicKeyInfo::from_der(public_key).map_err(IdentityError::PublicKey)?;
        self.issue_for(node, role, &public_key, life)
    }

    fn issue_for(
        &self,
        node: &str,
        role: Role,
        public_key: &impl PublicKeyData,
        life: Duration,
    ) -> Result<String, IdentityError> {
        let names = vec![node_name(node)?, format!("{}.{ROLE_DOMAIN}", role.as_str())];
        let write = || {
            let mut params = CertificateParams::new(names)?;
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
            params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
            params.use_authority_key_identifier_extension = true;
            params.distinguished_name.push(DnType::CommonName, node);
            (params.not_before, params.not_after) = validity(life)?;
            Ok(params.signed_by(public_key, &self.issuer)?.pem())
        };
        write().map_err(IdentityError::Write)
    }
}

/// Clocks of nodes may differ by this.
const CLOCKS_DIFFER: Duration = Duration::from_secs(300);
const AUTHORITY_LIFE: Duration = Duration::from_secs(20 * 365 * 24 * 3600);

fn validity(life: Duration) -> Result<(OffsetDateTime, OffsetDateTime), rcgen::Error> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let at = |since: Duration| {
        let seconds = i64::try_from(since.as_secs()).unwrap_or(i64::MAX);
        OffsetDateTime::from_unix_timestamp(seconds).map_err(|_| rcgen::Error::Time)
    };
    Ok((at(now.saturating_sub(CLOCKS_DIFFER))?, at(now.saturating_add(life))?))
}

fn split_pem(text: &str) -> Vec<&str> {
    let mut blocks = Vec::new();
    let mut rest = text;
    while let Some(start) = rest.find("-----BEGIN ") {
        let Some(end) = rest[start..].find("-----END ").map(|end| start + end) else {
            break;
        };
        let Some(line) = rest[end..].find('\n').map(|line| end + line + 1).or(Some(rest.len())) else {
            break;
        };
        blocks.push(&rest[start..line]);
        rest = &rest[line..];
    }
    blocks
}

const NODE_DOMAIN: &str = "node.anynode.internal";
const ROLE_DOMAIN: &str = "role.anynode.internal";

/// The name in a node's certificate. Errors: the id cannot be a DNS label.
fn node_name(node: &str) -> Result<String, IdentityError> {
    let is_label = |b: u8| b.is_ascii_alphanumeric() || b == b'-';
    match !node.is_empty() && node.len() <= 63 && node.bytes().all(is_label) {
        true => Ok(format!("{}.{NODE_DOMAIN}", node.to_ascii_lowercase())),
        false => Err(IdentityError::NodeId { id: node.to_owned() }),
    }
}

/// Whom a certificate names; its chain was verified by TLS.
pub fn peer_of(certificates: Option<&[CertificateDer<'_>]>) -> Result<Peer, IdentityError> {
    let wrong = |reason: &str| IdentityError::Certificate {
        reason: reason.to_owned(),
    };
    let certificate = certificates
        .and_then(<[_]>::first)
        .ok_or_else(|| wrong("there is none"))?;
    let certificate = webpki::EndEntityCert::try_from(certificate).map_err(|error| wrong(&error.to_string()))?;
    let (mut node, mut role) = (None, None);
    for name in certificate.valid_dns_names() {
        match name.split_once('.') {
            Some((id, NODE_DOMAIN)) => node = Some(Arc::from(id)),
            Some(("manager", ROLE_DOMAIN)) => role = Some(Role::Manager),
            Some(("worker", ROLE_DOMAIN)) => role = Some(Role::Worker),
            _ => {}
        }
    }
    match (node, role) {
        (Some(node), Some(role)) => Ok(Peer { node, role }),
        _ => Err(wrong("it names no node and role")),
    }
}

/// Whether `certificate` is one that the authority gave a manager, and good now. Errors: what it is instead.
pub(super) fn check_manager(certificate: &CertificateDer<'_>, authority_pem: &str) -> Result<(), IdentityError> {
    let wrong = |reason: String| IdentityError::Certificate { reason };
    let peer = peer_of(Some(std::slice::from_ref(certificate)))?;
    if peer.role != Role::Manager {
        return Err(wrong(format!("it is that of {}, a {}", peer.node, peer.role.as_str())));
    }
    let authority = CertificateDer::from_pem_slice(authority_pem.as_bytes()).map_err(|e| wrong(e.to_string()))?;
    let mut roots = RootCertStore::empty();
    roots.add(authority).map_err(|error| wrong(error.to_string()))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build();
    let name = ServerName::try_from(node_name(&peer.node)?).map_err(|error| wrong(error.to_string()))?;
    let verified = verifier.map_err(|error| wrong(error.to_string()))?.verify_server_cert(
        certificate,
        &[],
        &name,
        &[],
        UnixTime::now(),
    );
    verified.map(drop).map_err(|error| wrong(error.to_string()))
}

/// This node's key and certificate, kept in files and used by the TLS configurations that it makes.
pub struct Identity {
    node: Arc<str>,
    dir: PathBuf,
    key: KeyPair,
    held: ArcSwapOption<Held>,
}

struct Held {
    role: Role,
    authority_pem: String,
    server: Arc<ServerConfig>,
    client_control: Arc<ClientConfig>,
    client_tunnel: Arc<ClientConfig>,
    renew_at: SystemTime,
    expires_at: SystemTime,
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identity")
            .field("node", &self.node)
            .finish_non_exhaustive()
    }
}

const KEY_FILE: &str = "link.key.pem";
const CERTIFICATE_FILE: &str = "link.certificate.pem";

impl Identity {
    /// Reads the key and certificate of `node` in `dir`, or makes a key. Errors: the directory cannot be used.
    pub fn open(dir: &Path, node: &str) -> Result<Identity, IdentityError> {
        node_name(node)?;
        let key = key_in(dir)?;
        let identity = Identity {
            node: node.into(),
            dir: dir.to_owned(),
            key,
            held: ArcSwapOption::empty(),
        };
        if let Ok(pem) = std::fs::read_to_string(dir.join(CERTIFICATE_FILE))
            && let Err(error) = identity.take(&pem)
        {
            // It is another node's or has ended: a new one follows.
            tracing::info!(%error, "the kept certificate is not used");
        }
        Ok(identity)
    }

    pub fn node(&self) -> &Arc<str> {
        &self.node
    }

    /// SubjectPublicKeyInfo, DER.
    pub fn public_key(&self) -> Vec<u8> {
        self.key.subject_public_key_info()
    }

    /// The role that the certificate names; `None` while there is no certificate that is good.
    pub fn role(&self) -> Option<Role> {
        self.good().map(|held| held.role)
    }

    fn good(&self) -> Option<Arc<Held>> {
        self.held.load_full().filter(|held| SystemTime::now() < held.expires_at)
    }

    /// When a new certificate is due; `None` while there is none.
    pub fn renew_at(&self) -> Option<SystemTime> {
        self.good().map(|held| held.renew_at)
    }

    pub fn expires_at(&self) -> Option<SystemTime> {
        self.good().map(|held| held.expires_at)
    }

    /// The authority's certificate that this node trusts.
    pub fn authority_pem(&self) -> Option<String> {
        self.good().map(|held| held.authority_pem.clone())
    }

    /// Writes this node a certificate as a manager.
    pub fn issue_own(&self, authority: &Authority, life: Duration) -> Result<(), IdentityError> {
        let certificate = authority.issue_for(&self.node, Role::Manager, &self.key, life)?;
        self.take_and_keep(&certificate, authority.certificate_pem())
    }

    /// Takes a certificate for this node's key, and the authority's, in use at once. Errors: it is not for this node, or
    /// not good now; then the present one stays.
    pub fn take_and_keep(&self, certificate_pem: &str, authority_pem: &str) -> Result<(), IdentityError> {
        let pem = format!("{certificate_pem}{authority_pem}");
        self.take(&pem)?;
        write_private(&self.dir.join(CERTIFICATE_FILE), &pem)
    }

    fn take(&self, pem: &str) -> Result<(), IdentityError> {
        let wrong = |reason: String| IdentityError::Certificate { reason };
        let blocks = split_pem(pem);
        let [own, authority] = blocks[..] else {
            return Err(wrong("expected this node's and the authority's".to_owned()));
        };
        let der = |pem: &str| CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|error| wrong(error.to_string()));
        let (own, authority_der) = (der(own)?, der(authority)?);
        let peer = peer_of(Some(std::slice::from_ref(&own)))?;
        if *peer.node != *self.node.to_ascii_lowercase() {
            return Err(wrong(format!(
                "it is that of node {}, expected {}",
                peer.node, self.node
            )));
        }
        let mut roots = RootCertStore::empty();
        roots.add(authority_der).map_err(|error| wrong(error.to_string()))?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let key = PrivateKeyDer::try_from(self.key.serialize_der()).map_err(|error| wrong(error.to_owned()))?;
        let certified = CertifiedKey::from_der(vec![own.clone()], key, &provider).map_err(|e| wrong(e.to_string()))?;
        let roots = Arc::new(roots);
        let server_verifier = WebPkiServerVerifier::builder_with_provider(roots.clone(), provider.clone())
            .build()
            .map_err(|error| wrong(error.to_string()))?;
        let name = ServerName::try_from(node_name(&self.node)?).map_err(|error| wrong(error.to_string()))?;
        // What we would not accept of another is not worth having: chain, name and time.
        server_verifier
            .verify_server_cert(&own, &[], &name, &[], UnixTime::now())
            .map_err(|error| wrong(error.to_string()))?;
        let (not_before, expires_at) = times_of(&own).ok_or_else(|| wrong("its times cannot be read".to_owned()))?;
        if SystemTime::now() >= expires_at {
            return Err(wrong("it has ended".to_owned()));
        }
        let life = expires_at
            .duration_since(not_before)
            .unwrap_or_default()
            .saturating_sub(CLOCKS_DIFFER);
        let certified = Arc::new(certified);
        let held = Held {
            role: peer.role,
            authority_pem: authority.to_owned(),
            server: server_config(&certified, &roots, &provider)?,
            client_control: client_config(&certified, &server_verifier, &provider, ALPN_CONTROL)?,
            client_tunnel: client_config(&certified, &server_verifier, &provider, ALPN_TUNNEL)?,
            renew_at: expires_at - life / 2,
            expires_at,
        };
        self.held.store(Some(Arc::new(held)));
        Ok(())
    }

    /// For connections that are accepted; `None` while there is no certificate.
    pub(super) fn server(&self) -> Option<Arc<ServerConfig>> {
        self.good().map(|held| held.server.clone())
    }

    pub(super) fn client_control(&self) -> Option<Arc<ClientConfig>> {
        self.good().map(|held| held.client_control.clone())
    }

    pub(super) fn client_tunnel(&self) -> Option<Arc<ClientConfig>> {
        self.good().map(|held| held.client_tunnel.clone())
    }

    /// The name that the certificate of `node` must have.
    pub(super) fn server_name(node: &str) -> io::Result<ServerName<'static>> {
        let name = node_name(node).map_err(io::Error::other)?;
        ServerName::try_from(name).map_err(io::Error::other)
    }
}

fn times_of(certificate: &CertificateDer<'_>) -> Option<(SystemTime, SystemTime)> {
    let (_, certificate) = x509_parser::parse_x509_certificate(certificate).ok()?;
    let at = |seconds: i64| UNIX_EPOCH.checked_add(Duration::from_secs(u64::try_from(seconds).ok()?));
    let validity = certificate.validity();
    Some((
        at(validity.not_before.timestamp())?,
        at(validity.not_after.timestamp())?,
    ))
}

type Provider = Arc<rustls::crypto::CryptoProvider>;

fn server_config(
    certified: &Arc<CertifiedKey>,
    roots: &Arc<RootCertStore>,
    provider: &Provider,
) -> Result<Arc<ServerConfig>, IdentityError> {
    let wrong = |reason: String| IdentityError::Certificate { reason };
    // Those who join have none yet; whoever wants anything else is turned away without one.
    let verifier = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone())
        .allow_unauthenticated()
        .build()
        .map_err(|error| wrong(error.to_string()))?;
    let mut config = ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| wrong(error.to_string()))?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(Arc::new(Fixed(certified.clone())));
    // Who resumes a session does not show its certificate again, and that may have ended meanwhile.
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.alpn_protocols = [ALPN_CONTROL, ALPN_TUNNEL, ALPN_JOIN].map(<[u8]>::to_vec).to_vec();
    Ok(Arc::new(config))
}

fn client_config(
    certified: &Arc<CertifiedKey>,
    verifier: &Arc<WebPkiServerVerifier>,
    provider: &Provider,
    alpn: &[u8],
) -> Result<Arc<ClientConfig>, IdentityError> {
    let mut config = ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| IdentityError::Certificate {
            reason: error.to_string(),
        })?
        .with_webpki_verifier(verifier.clone())
        .with_client_cert_resolver(Arc::new(Fixed(certified.clone())));
    config.resumption = Resumption::disabled();
    config.alpn_protocols = vec![alpn.to_vec()];
    Ok(Arc::new(config))
}

/// For a node that has no certificate and no authority to trust yet: whom it talks to is proven by the token instead.
pub(super) fn joining_config() -> Result<Arc<ClientConfig>, rustls::Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(ProvenByToken(provider)))
        .with_no_client_auth();
    config.alpn_protocols = vec![ALPN_JOIN.to_vec()];
    Ok(Arc::new(config))
}

/// One certificate for everybody who asks.
#[derive(Debug)]
struct Fixed(Arc<CertifiedKey>);

impl ResolvesServerCert for Fixed {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.clone())
    }
}

impl ResolvesClientCert for Fixed {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.0.clone())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// Takes any certificate, and checks only that its holder has the key. Used by `join` alone.
#[derive(Debug)]
struct ProvenByToken(Provider);

impl ServerCertVerifier for ProvenByToken {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.2 is not spoken".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(
            message,
            certificate,
            signature,
            &self.0.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// A secret that follows from the node's key in `dir` and what it is for, the same after each start. Errors: there is no key, and none
/// can be written.
pub fn secret(dir: &Path, purpose: &str) -> Result<[u8; 32], IdentityError> {
    let key = key_in(dir)?.serialize_der();
    let mut secret = [0; 32];
    let follows = Salt::new(HKDF_SHA256, b"anynode link key").extract(&key);
    let purpose = [purpose.as_bytes()];
    let filled = follows.expand(&purpose, HKDF_SHA256);
    // Only a secret that is far longer could not be had.
    let filled = filled.and_then(|filled| filled.fill(&mut secret));
    filled.map_err(|_| IdentityError::Certificate {
        reason: "no secret follows from the key".to_owned(),
    })?;
    Ok(secret)
}

/// The node's key as it is kept, or a new one. Errors: there may be one, and it cannot be read: what it seals would be lost with it.
fn key_in(dir: &Path) -> Result<KeyPair, IdentityError> {
    let path = dir.join(KEY_FILE);
    match std::fs::read(&path) {
        Ok(pem) => {
            let pem = String::from_utf8(pem).ok();
            if let Some(key) = pem.and_then(|pem| KeyPair::from_pem(&pem).ok()) {
                return Ok(key);
            }
            tracing::error!(path = %path.display(), "it is no key: a new one takes its place");
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(IdentityError::File { path, error }),
    }
    let key = KeyPair::generate().map_err(IdentityError::Write)?;
    write_private(&dir.join(KEY_FILE), &key.serialize_pem())?;
    Ok(key)
}

/// Writes a file that only its owner may read, whole or not at all.
fn write_private(path: &Path, text: &str) -> Result<(), IdentityError> {
    let write = || {
        let new = path.with_extension("new");
        let mut file = std::fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&new)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&new, path)
    };
    write().map_err(|error| IdentityError::File {
        path: path.to_owned(),
        error,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIFE: Duration = Duration::from_secs(3600);

    #[test]
    fn a_certificate_names_its_node_and_role_and_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::from_pem(&Authority::generate().unwrap()).unwrap();
        let identity = Identity::open(dir.path(), "Node1").unwrap();
        assert_eq!(identity.role(), None);
        let certificate = authority
            .issue("node1", Role::Worker, &identity.public_key(), LIFE)
            .unwrap();
        identity
            .take_and_keep(&certificate, authority.certificate_pem())
            .unwrap();
        assert_eq!(identity.role(), Some(Role::Worker));
        let left = identity.renew_at().unwrap().duration_since(SystemTime::now()).unwrap();
        assert!(left <= LIFE / 2 && left > LIFE / 3, "{left:?}");
        let again = Identity::open(dir.path(), "node1").unwrap();
        assert_eq!(again.role(), Some(Role::Worker));
        let other = Identity::open(dir.path(), "node2").unwrap();
        assert_eq!(other.role(), None, "another node's certificate is not used");
    }

    #[test]
    fn a_secret_is_the_nodes_and_its_purposes_and_the_same_after_a_start() {
        let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let first = secret(one.path(), "a").unwrap();
        Identity::open(one.path(), "node1").unwrap();
        assert_eq!(secret(one.path(), "a").unwrap(), first);
        assert_ne!(secret(one.path(), "b").unwrap(), first);
        assert_ne!(secret(other.path(), "a").unwrap(), first);
    }

    #[test]
    fn what_is_of_another_authority_or_node_or_has_ended_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let ours = Authority::from_pem(&Authority::generate().unwrap()).unwrap();
        let theirs = Authority::from_pem(&Authority::generate().unwrap()).unwrap();
        let identity = Identity::open(dir.path(), "a").unwrap();
        let key = identity.public_key();
        for (certificate, authority) in [
            (ours.issue("a", Role::Worker, &key, LIFE), &theirs),
            (ours.issue("b", Role::Worker, &key, LIFE), &ours),
            (ours.issue("a", Role::Worker, &key, Duration::ZERO), &ours),
        ] {
            assert!(
                identity
                    .take_and_keep(&certificate.unwrap(), authority.certificate_pem())
                    .is_err()
            );
        }
        assert!(ours.issue("a.b", Role::Worker, &key, LIFE).is_err());
        assert!(ours.issue("a", Role::Worker, b"key", LIFE).is_err());
        assert!(Authority::from_pem("").is_err() && Authority::from_pem("-----BEGIN CERTIFICATE-----").is_err());
        assert_eq!(identity.role(), None);
    }
}
