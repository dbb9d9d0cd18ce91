//! A certificate with its chain and key, read from PEM. Pure.

use std::net::IpAddr;
use std::sync::Arc;

use rustls::SignatureAlgorithm;
use rustls::crypto::ring::sign::any_supported_type;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::ParsedCertificate;
use rustls::sign::{CertifiedKey, SigningKey};
use x509_parser::extensions::GeneralName;
use x509_parser::x509::X509Version;

/// A certificate that can be shown to clients.
#[derive(Debug)]
pub struct Pair {
    pub key: Arc<CertifiedKey>,
    /// The hosts that it is for, in lower case; `*.` in front stands for one label.
    pub names: Vec<String>,
    /// Seconds since 1970.
    pub not_before: i64,
    pub not_after: i64,
}

/// What is wrong with a certificate or its key.
#[derive(Debug, thiserror::Error)]
pub enum PairError {
    #[error("expected a certificate in PEM, with those of its authorities after it")]
    NoCertificate,
    #[error("the certificate cannot be read: {0}")]
    Certificate(String),
    #[error("it is for no host: expected DNS names as subject alternative names")]
    NoName,
    #[error("expected a private key in PEM, not encrypted")]
    NoKey,
    #[error("the key cannot be used: expected RSA from 2048 bits, ECDSA with P-256 or P-384, or Ed25519")]
    KeyKind,
    #[error("the key is not the certificate's")]
    Mismatch,
}

impl PairError {
    /// Whether the key is at fault, and not the certificate.
    pub fn is_of_key(&self) -> bool {
        matches!(self, PairError::NoKey | PairError::KeyKind | PairError::Mismatch)
    }
}

impl Pair {
    pub fn from_pem(certificates: &[u8], key: &[u8]) -> Result<Pair, PairError> {
        let chain: Result<Vec<CertificateDer<'static>>, _> = CertificateDer::pem_slice_iter(certificates).collect();
        let chain = Chain::new(chain.map_err(|_| PairError::NoCertificate)?)?;
        let key = PrivateKeyDer::from_pem_slice(key).map_err(|_| PairError::NoKey)?;
        chain.with(&Key::new(&key)?)
    }

    /// Whether it is for that host, in lower case.
    pub(super) fn is_for(&self, host: &str) -> bool {
        let above = host.split_once('.').map(|(_, above)| above);
        let is = |name: &String| name == host || (above.is_some() && name.strip_prefix("*.") == above);
        self.names.iter().any(is)
    }

    /// Its signatures cost a tenth of RSA's.
    pub(super) fn is_cheap(&self) -> bool {
        self.key.key.algorithm() != SignatureAlgorithm::RSA
    }
}

/// A certificate with those of its authorities, without its key.
#[derive(Debug, Clone)]
pub(super) struct Chain {
    certificates: Vec<CertificateDer<'static>>,
    names: Vec<String>,
    not_before: i64,
    not_after: i64,
    public_key: PublicKey,
}

/// A key that can sign.
#[derive(Debug, Clone)]
pub(super) struct Key {
    signs: Arc<dyn SigningKey>,
    public_key: PublicKey,
}

/// What a certificate and its key have in common (SubjectPublicKeyInfo in DER).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct PublicKey(Box<[u8]>);

impl Chain {
    pub(super) fn new(certificates: Vec<CertificateDer<'static>>) -> Result<Chain, PairError> {
        let first = certificates.first().ok_or(PairError::NoCertificate)?;
        let unreadable = |error: &dyn std::fmt::Display| PairError::Certificate(error.to_string());
        let (_, parsed) = x509_parser::parse_x509_certificate(first).map_err(|error| unreadable(&error))?;
        let names = names(&parsed);
        if names.is_empty() {
            return Err(PairError::NoName);
        }
        let (not_before, not_after) = (
            parsed.validity().not_before.timestamp(),
            parsed.validity().not_after.timestamp(),
        );
        let shown = ParsedCertificate::try_from(first).map_err(|error| unreadable(&error))?;
        Ok(Chain {
            public_key: PublicKey(shown.subject_public_key_info().as_ref().into()),
            certificates,
            names,
            not_before,
            not_after,
        })
    }

    pub(super) fn public_key(&self) -> &PublicKey {
        &self.public_key
    }

    /// Which certificate after the first, counted from 1, is no authority's. Errors: one cannot be read.
    pub(super) fn no_authority(&self) -> Result<Option<usize>, PairError> {
        let mut found = None;
        for (i, certificate) in self.certificates.iter().enumerate() {
            let (rest, parsed) = x509_parser::parse_x509_certificate(certificate)
                .map_err(|error| PairError::Certificate(format!("certificate {}: {error}", i + 1)))?;
            if !rest.is_empty() {
                return Err(PairError::Certificate(format!(
                    "certificate {}: something follows it",
                    i + 1
                )));
            }
            // Those of the first version say nothing of it.
            let is_authority = parsed.is_ca() || parsed.version() == X509Version::V1;
            if i > 0 && !is_authority && found.is_none() {
                found = Some(i + 1);
            }
        }
        Ok(found)
    }

    /// Errors: the key is another's.
    pub(super) fn with(&self, key: &Key) -> Result<Pair, PairError> {
        match key.public_key == self.public_key {
            true => Ok(Pair {
                key: Arc::new(CertifiedKey::new(self.certificates.clone(), key.signs.clone())),
                names: self.names.clone(),
                not_before: self.not_before,
                not_after: self.not_after,
            }),
            false => Err(PairError::Mismatch),
        }
    }
}

impl Key {
    pub(super) fn new(key: &PrivateKeyDer<'_>) -> Result<Key, PairError> {
        let signs = any_supported_type(key).map_err(|_| PairError::KeyKind)?;
        let public_key = signs.public_key().ok_or(PairError::KeyKind)?;
        Ok(Key {
            public_key: PublicKey(public_key.as_ref().into()),
            signs,
        })
    }

    pub(super) fn public_key(&self) -> &PublicKey {
        &self.public_key
    }
}

/// Those of the subject alternative names, or the common name of a certificate that has none.
fn names(certificate: &x509_parser::certificate::X509Certificate<'_>) -> Vec<String> {
    let alternative = certificate.subject_alternative_name().ok().flatten();
    let mut names: Vec<String> = Vec::new();
    for name in alternative.iter().flat_map(|found| &found.value.general_names) {
        match name {
            GeneralName::DNSName(name) => names.push(name.to_ascii_lowercase()),
            GeneralName::IPAddress(bytes) => names.extend(ip(bytes)),
            _ => {}
        }
    }
    if names.is_empty() {
        let common = certificate
            .subject()
            .iter_common_name()
            .filter_map(|name| name.as_str().ok());
        names.extend(common.map(str::to_ascii_lowercase));
    }
    names.sort();
    names.dedup();
    names
}

fn ip(bytes: &[u8]) -> Option<String> {
    let ip = match bytes.len() {
        4 => IpAddr::from(<[u8; 4]>::try_from(bytes).ok()?),
        _ => IpAddr::from(<[u8; 16]>::try_from(bytes).ok()?),
    };
    Some(ip.to_string())
}

#[cfg(test)]
pub(super) mod tests {
    use rcgen::{CertificateParams, KeyPair};

    use super::*;

    /// A certificate by itself for these names, and its key, as PEM.
    pub(in crate::tls) fn pem(names: &[&str]) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let names: Vec<String> = names.iter().map(|name| name.to_string()).collect();
        let certificate = CertificateParams::new(names).unwrap().self_signed(&key).unwrap();
        (certificate.pem(), key.serialize_pem())
    }

    #[test]
    fn what_is_wrong_with_a_pair_is_told_apart() {
        let (certificate, key) = pem(&["A.test", "*.b.test", "192.0.2.1"]);
        let pair = Pair::from_pem(certificate.as_bytes(), key.as_bytes()).unwrap();
        assert_eq!(pair.names, ["*.b.test", "192.0.2.1", "a.test"]);
        assert!(pair.not_before < pair.not_after && pair.is_cheap());
        let (_, other) = pem(&["a.test"]);
        let fault = |certificate: &str, key: &str| {
            let fault = Pair::from_pem(certificate.as_bytes(), key.as_bytes()).unwrap_err();
            (fault.is_of_key(), fault.to_string())
        };
        assert_eq!(fault(&certificate, &other), (true, PairError::Mismatch.to_string()));
        assert_eq!(fault(&certificate, ""), (true, PairError::NoKey.to_string()));
        assert_eq!(fault(&key, &key), (false, PairError::NoCertificate.to_string()));
        assert_eq!(fault("", &key), (false, PairError::NoCertificate.to_string()));
        let cut = &certificate[..certificate.len() / 2];
        assert_eq!(fault(cut, &key), (false, PairError::NoCertificate.to_string()));
        let nobody = pem(&[]);
        // rcgen gives it a common name of its own.
        assert_eq!(
            Pair::from_pem(nobody.0.as_bytes(), nobody.1.as_bytes())
                .unwrap()
                .names
                .len(),
            1
        );
    }
}
