//! What a node is told of an authority that it orders certificates from. Pure.

use std::path::PathBuf;
use std::str::FromStr;

use crate::model::{AcmeName, InvalidValue};

/// An authority that certificates are ordered from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AcmeConfig {
    pub name: AcmeName,
    /// The URL of its directory: https, with a host.
    pub directory: String,
    /// Whom it writes to. `None`: nobody.
    pub email: Option<String>,
    pub challenge: ChallengeKind,
    /// The roots (PEM) that the directory's own certificate is checked by; `None`: those that browsers come with.
    pub authorities: Option<PathBuf>,
    /// An account at the authority that exists already, and that ours is bound to.
    pub external: Option<ExternalAccount>,
}

impl AcmeConfig {
    /// What failures may come of, as text: what failed with another is no reason to wait.
    pub(super) fn fingerprint(&self) -> String {
        let AcmeConfig {
            challenge,
            authorities,
            external,
            ..
        } = self;
        format!("{} ca={authorities:?} eab={external:?}", challenge.as_str())
    }
}

/// Who vouches for our account (RFC 8555, 7.3.4).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExternalAccount {
    pub kid: String,
    /// Its HMAC key as authorities give it: base64url.
    pub key_file: PathBuf,
}

/// How the authority is shown that a name is ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ChallengeKind {
    /// It asks port 80 by HTTP.
    #[default]
    Http,
    /// It asks port 443 by TLS.
    TlsAlpn,
}

impl ChallengeKind {
    pub fn as_str(self) -> &'static str {
        match self {
            ChallengeKind::Http => "http-01",
            ChallengeKind::TlsAlpn => "tls-alpn-01",
        }
    }
}

impl FromStr for ChallengeKind {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<ChallengeKind, InvalidValue> {
        match text {
            "http-01" => Ok(ChallengeKind::Http),
            "tls-alpn-01" => Ok(ChallengeKind::TlsAlpn),
            "dns-01" => Err(InvalidValue::new(
                text,
                "\"http-01\" or \"tls-alpn-01\": names are not written to, so dns-01 cannot be done, nor wildcards",
            )),
            _ => Err(InvalidValue::new(text, "\"http-01\" or \"tls-alpn-01\"")),
        }
    }
}
