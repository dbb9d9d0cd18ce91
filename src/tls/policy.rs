//! What a node is told of TLS, and what each of its entry points asks of clients. Pure.

use std::path::PathBuf;
use std::str::FromStr;

use super::acme::AcmeConfig;
use super::certificates::PairFiles;
use crate::model::{EntryPointName, InvalidValue};

/// The oldest version of TLS that is spoken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
pub enum MinVersion {
    #[default]
    Tls12,
    Tls13,
}

impl MinVersion {
    pub fn as_str(self) -> &'static str {
        match self {
            MinVersion::Tls12 => "1.2",
            MinVersion::Tls13 => "1.3",
        }
    }
}

impl FromStr for MinVersion {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<MinVersion, InvalidValue> {
        match text {
            "1.2" => Ok(MinVersion::Tls12),
            "1.3" => Ok(MinVersion::Tls13),
            _ => Err(InvalidValue::new(text, "\"1.2\" or \"1.3\"")),
        }
    }
}

/// Whether clients show certificates of their own.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum ClientAuth {
    #[default]
    None,
    /// Who shows one shows a good one.
    Optional {
        authorities: PathBuf,
    },
    Required {
        authorities: PathBuf,
    },
}

impl ClientAuth {
    /// The file of the authorities that write clients' certificates.
    pub fn authorities(&self) -> Option<&PathBuf> {
        match self {
            ClientAuth::None => None,
            ClientAuth::Optional { authorities } | ClientAuth::Required { authorities } => Some(authorities),
        }
    }
}

/// What one entry point asks of its clients.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    pub entry_point: EntryPointName,
    pub min_version: MinVersion,
    pub client_auth: ClientAuth,
    /// Clients that name no host that there is a certificate for are refused, instead of being shown the first.
    pub is_strict: bool,
}

/// All that a node is told of TLS.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TlsConfig {
    /// The first one is shown to whoever names no host, or one that none is for.
    pub certificates: Vec<PairFiles>,
    /// Others may be declared while the node runs.
    pub are_declared: bool,
    /// The same on all nodes, so that each takes the tickets of the others.
    pub ticket_key_file: Option<PathBuf>,
    pub policies: Vec<Policy>,
    /// Whom certificates can be ordered from.
    pub acme: Vec<AcmeConfig>,
}
