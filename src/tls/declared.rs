//! Certificates that are declared: what a secret or config of a swarm holds, and which chain goes with which key. Pure. Not here: whose
//! secrets and configs they are.

use std::collections::{HashMap, HashSet};

use rustls::pki_types::pem::{PemObject, SectionKind};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::pair::{Chain, Key, PairError, PublicKey};
use super::shown::Shown;

/// What one of them holds: a certificate with its chain, a key, or both.
#[derive(Debug, Clone)]
pub struct Declared {
    chain: Option<Chain>,
    key: Option<Key>,
}

/// What is wrong with it. Nothing of what it holds is in it.
#[derive(Debug, thiserror::Error)]
pub enum DeclaredError {
    #[error("the PEM is broken: expected {EXPECTED}")]
    Broken,
    #[error("there are {n} private keys: expected one at most")]
    Keys { n: usize },
    #[error(
        "there is a private key, and what a config holds is shown to everybody: expected it in a secret with the same label"
    )]
    KeyInConfig,
    #[error("the key is not the first certificate's: expected the one that is, or {EXPECTED}")]
    Mismatch,
    #[error("certificate {n} is no authority's: expected {EXPECTED}")]
    NoAuthority { n: usize },
    #[error("there is no certificate and no private key: expected {EXPECTED}")]
    Nothing,
    #[error(transparent)]
    Pair(#[from] PairError),
    #[error("there is a section {label:?}: expected {EXPECTED}")]
    Section { label: String },
}

const EXPECTED: &str =
    "a certificate in PEM with those of its authorities after it, a private key that is not encrypted, or both";

impl Declared {
    pub fn from_pem(pem: &[u8]) -> Result<Declared, DeclaredError> {
        let mut n_begun = 0;
        for line in pem.split(|byte| matches!(byte, b'\n' | b'\r')) {
            let Some(rest) = line.strip_prefix(BEGIN) else {
                continue;
            };
            n_begun += 1;
            let label = label(rest).ok_or(DeclaredError::Broken)?;
            if !SECTIONS.contains(&label) {
                let label = label.to_owned();
                return Err(DeclaredError::Section { label });
            }
        }
        // A section that begins within a line, as where two files were joined without a line's end, would be passed over.
        if pem.windows(BEGIN.len()).filter(|part| *part == BEGIN).count() != n_begun {
            return Err(DeclaredError::Broken);
        }
        let (mut certificates, mut keys) = (Vec::new(), Vec::new());
        for section in <(SectionKind, Vec<u8>)>::pem_slice_iter(pem) {
            let (kind, der) = section.map_err(|_| DeclaredError::Broken)?;
            match kind {
                SectionKind::Certificate => certificates.push(CertificateDer::from(der)),
                kind => keys.extend(PrivateKeyDer::from_pem(kind, der)),
            }
        }
        let key = match &*keys {
            [] if certificates.is_empty() => return Err(DeclaredError::Nothing),
            [] => None,
            [key] => Some(Key::new(key)?),
            keys => return Err(DeclaredError::Keys { n: keys.len() }),
        };
        let chain = match certificates.is_empty() {
            true => None,
            false => Some(Chain::new(certificates)?),
        };
        if let Some(n) = chain.as_ref().map(Chain::no_authority).transpose()?.flatten() {
            return Err(DeclaredError::NoAuthority { n });
        }
        match (&chain, &key) {
            (Some(chain), Some(key)) if chain.public_key() != key.public_key() => Err(DeclaredError::Mismatch),
            _ => Ok(Declared { chain, key }),
        }
    }

    /// The same of a config, which is no place for a key.
    pub fn from_config(pem: &[u8]) -> Result<Declared, DeclaredError> {
        // Whatever else is wrong, the key is to go, one that cannot be read too.
        match pem.windows(KEY.len()).any(|part| part == KEY) {
            true => Err(DeclaredError::KeyInConfig),
            false => Declared::from_pem(pem),
        }
    }

    /// What is declared, by what it is called (`secret:NAME`), in the order in which it is shown to strangers. Each chain goes with the key that
    /// is its, wherever that is; what lacks the other half is a fault. `Err`: what is wrong with one of them.
    pub fn shown<'a>(all: impl Iterator<Item = (&'a str, Result<&'a Declared, &'a str>)>) -> Vec<Shown> {
        let all: Vec<_> = all.collect();
        let good = || all.iter().filter_map(|(_, one)| one.ok());
        let keys = good().filter_map(|one| one.key.as_ref());
        let keys: HashMap<&PublicKey, &Key> = keys.map(|key| (key.public_key(), key)).collect();
        let chains = good().filter_map(|one| one.chain.as_ref());
        let chains: HashSet<&PublicKey> = chains.map(Chain::public_key).collect();
        let shown = all.iter().filter_map(|(name, one)| {
            let pair = match one {
                Err(fault) => Err((*fault).to_owned()),
                Ok(Declared { chain: Some(chain), .. }) => match keys.get(chain.public_key()) {
                    Some(key) => chain.with(key).map_err(|error| error.to_string()),
                    None => Err(NO_KEY.to_owned()),
                },
                Ok(Declared { key: Some(key), .. }) if !chains.contains(key.public_key()) => Err(NO_CHAIN.to_owned()),
                Ok(_) => return None,
            };
            Some(Shown::declared(name, pair))
        });
        shown.collect()
    }
}

/// The label of a section of PEM, by what follows `-----BEGIN `. `None`: it is none; it may be a key whose lines have become one.
fn label(rest: &[u8]) -> Option<&str> {
    let label = std::str::from_utf8(rest.trim_ascii_end().strip_suffix(b"-----")?).ok()?;
    let is_of_label = |byte: u8| byte.is_ascii_uppercase() || byte.is_ascii_digit() || byte == b' ';
    (label.len() <= LABEL_LEN_MAX && label.bytes().all(is_of_label)).then_some(label)
}

/// Those that are read, and those that say nothing that a key does not say itself.
const SECTIONS: [&str; 6] = [
    "CERTIFICATE",
    "PRIVATE KEY",
    "RSA PRIVATE KEY",
    "EC PRIVATE KEY",
    "EC PARAMETERS",
    "DH PARAMETERS",
];

const BEGIN: &[u8] = b"-----BEGIN ";

/// How the first line of every kind of key ends.
const KEY: &[u8] = b"PRIVATE KEY-----";

/// In bytes.
const LABEL_LEN_MAX: usize = 32;

const NO_KEY: &str = "its key is not there: expected a secret with the same label that holds it";
const NO_CHAIN: &str = "its certificate is not there: expected a secret or config with the same label that holds it";

#[cfg(test)]
mod tests {
    use super::super::pair::tests::pem;
    use super::*;

    /// The names of those that are shown, or what is wrong, by what they are called.
    fn shown_of(all: &[(&str, &str)]) -> Vec<(String, Result<Vec<String>, String>)> {
        let all: Vec<_> = all
            .iter()
            .map(|(name, pem)| {
                (
                    *name,
                    Declared::from_pem(pem.as_bytes()).map_err(|error| error.to_string()),
                )
            })
            .collect();
        let all = all
            .iter()
            .map(|(name, one)| (*name, one.as_ref().map_err(String::as_str)));
        let result = |one: Shown| match (one.pair, one.fault) {
            (Some(pair), None) => (one.from, Ok(pair.names.clone())),
            (None, Some(fault)) => (one.from, Err(fault)),
            (pair, fault) => panic!("{pair:?} {fault:?}"),
        };
        Declared::shown(all).into_iter().map(result).collect()
    }

    fn fault(pem: &str) -> String {
        Declared::from_pem(pem.as_bytes()).unwrap_err().to_string()
    }

    #[test]
    fn a_chain_goes_with_the_key_that_is_its_in_whichever_order_they_come() {
        let (a, b) = (pem(&["a.test"]), pem(&["b.test"]));
        let shows = |name: &str, host: &str| (name.to_owned(), Ok(vec![host.to_owned()]));
        let lacks = |name: &str, what: &str| {
            (
                name.to_owned(),
                Err(format!("label anynode.certificate: {name}: {what}")),
            )
        };
        let bundle = format!("{}{}", b.0, b.1);
        for (all, expected) in [
            (vec![("chain", &*a.0), ("key", &*a.1)], vec![shows("chain", "a.test")]),
            (vec![("key", &*a.1), ("chain", &*a.0)], vec![shows("chain", "a.test")]),
            (
                vec![("key-b", &*b.1), ("a", &*a.0), ("b", &*b.0), ("key-a", &*a.1)],
                vec![shows("a", "a.test"), shows("b", "b.test")],
            ),
            (vec![("bundle", &*bundle)], vec![shows("bundle", "b.test")]),
            // A key that a bundle has is there too.
            (
                vec![("bundle", &*bundle), ("renewed", &*b.0)],
                vec![shows("bundle", "b.test"), shows("renewed", "b.test")],
            ),
            (
                vec![("bundle", &*bundle), ("key", &*b.1)],
                vec![shows("bundle", "b.test")],
            ),
            (vec![("chain", &*a.0)], vec![lacks("chain", NO_KEY)]),
            (
                vec![("chain", &*a.0), ("key", &*b.1)],
                vec![lacks("chain", NO_KEY), lacks("key", NO_CHAIN)],
            ),
            (
                vec![("key", &*a.1), ("bundle", &*bundle)],
                vec![lacks("key", NO_CHAIN), shows("bundle", "b.test")],
            ),
            (vec![], vec![]),
        ] {
            assert_eq!(
                shown_of(&all),
                expected,
                "{:?}",
                all.iter().map(|one| one.0).collect::<Vec<_>>()
            );
        }
    }

    fn authority() -> String {
        let mut params = rcgen::CertificateParams::new(vec!["ca.test".to_owned()]).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap().pem()
    }

    #[test]
    fn the_key_of_a_bundle_may_stand_before_its_chain_and_beside_parameters() {
        let (a, authority) = (pem(&["a.test"]), authority());
        let parameters = "-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n";
        let text = format!("Bag Attributes\r\n{parameters}{}{}{}", a.1, a.0, authority);
        let declared = Declared::from_pem(text.replace('\n', "\r\n").as_bytes()).unwrap();
        let pair = declared.chain.unwrap().with(&declared.key.unwrap()).unwrap();
        assert_eq!(pair.names, ["a.test"]);
        assert_eq!(pair.key.cert.len(), 2);
    }

    #[test]
    fn what_is_no_certificate_is_told_and_no_key_is_shown() {
        let (a, b) = (pem(&["a.test"]), pem(&["b.test"]));
        let nothing = "there is no certificate and no private key: expected a certificate in PEM";
        for (pem, expected) in [
            ("hunter2".to_owned(), nothing),
            (String::new(), nothing),
            (
                format!("{}{}", a.0, b.1),
                "the key is not the first certificate's: expected the one that is",
            ),
            // The first one is the certificate.
            (
                format!("{}{}{}", a.0, authority(), b.1),
                "the key is not the first certificate's",
            ),
            (
                format!("{}{}{}", a.0, b.0, a.1),
                "certificate 2 is no authority's: expected a certificate in PEM",
            ),
            (
                format!(
                    "{}-----BEGIN CERTIFICATE-----\naGVsbG8=\n-----END CERTIFICATE-----\n{}",
                    a.0, a.1
                ),
                "the certificate cannot be read: certificate 2: ",
            ),
            // Files that were joined, of which one ends without a line's end.
            (format!("{}{}{}", a.0.trim_end(), authority(), a.1), "the PEM is broken"),
            (format!("{}{}", a.0.trim_end(), a.1), "the PEM is broken"),
            (
                format!("{}{}{}", a.0, a.1, b.1),
                "there are 2 private keys: expected one at most",
            ),
            (
                a.0[..a.0.len() / 2].to_owned(),
                "the PEM is broken: expected a certificate",
            ),
            (format!("{}{}", a.1, &a.0[..a.0.len() / 2]), "the PEM is broken"),
            (
                a.1.replace("PRIVATE", "ENCRYPTED PRIVATE"),
                "there is a section \"ENCRYPTED PRIVATE KEY\": expected",
            ),
            (
                a.0.replace("CERTIFICATE", "CERTIFICATE REQUEST"),
                "there is a section \"CERTIFICATE REQUEST\"",
            ),
            (
                a.0.replace("CERTIFICATE", "PRIVATE KEY"),
                "the key cannot be used: expected RSA from 2048 bits",
            ),
            (
                a.1.replace("PRIVATE KEY", "CERTIFICATE"),
                "the certificate cannot be read: ",
            ),
            (a.1.replace('\n', ""), "the PEM is broken"),
            (a.1.replace("PRIVATE KEY-----\n", "KEY "), "the PEM is broken"),
        ] {
            let fault = fault(&pem);
            assert!(fault.starts_with(expected), "{fault}\nexpected {expected}");
            let key = a.1.lines().chain(b.1.lines()).filter(|line| !line.starts_with("-----"));
            key.for_each(|line| assert!(!fault.contains(line)));
        }
    }

    #[test]
    fn a_config_is_no_place_for_a_key() {
        let (certificate, key) = pem(&["a.test"]);
        assert!(Declared::from_config(certificate.as_bytes()).is_ok());
        let encrypted = key.replace("PRIVATE", "ENCRYPTED PRIVATE");
        for with_key in [
            &key,
            &encrypted,
            &format!("{certificate}{key}"),
            &format!("{certificate}  {key}"),
        ] {
            let error = Declared::from_config(with_key.as_bytes()).unwrap_err();
            assert!(matches!(error, DeclaredError::KeyInConfig), "{error}");
        }
    }
}
