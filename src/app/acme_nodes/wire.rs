//! What nodes say to each other of certificates: two calls over the link, each bounded. Fields that a version does not know are ignored.

use serde::{Deserialize, Serialize};

use crate::tls::{Certificate, Challenge, List};

/// Asks a manager what authorities are to be answered and which certificates there are, once that differs from what the node has.
pub(super) const WAIT: &str = "acme.wait";
/// Asks a manager for certificates with their keys.
pub(super) const TAKE: &str = "acme.take";

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Wait {
    /// Of this run of the program: a node has two of them during an update, and each answers authorities.
    pub(super) instance: u64,
    /// What it has of this manager.
    pub(super) has: Option<Has>,
}

/// What a node has of a manager.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Has {
    /// The manager's run of the program.
    pub(super) of: u64,
    /// The challenges that authorities are answered by the node from now on.
    pub(super) challenges: u64,
    pub(super) list: u64,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Told {
    pub(super) now: Has,
    pub(super) challenges: Vec<Challenge>,
    /// `None`: it is as the node has it.
    pub(super) list: Option<List>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Take {
    pub(super) names: Vec<Name>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Name {
    pub(super) host: String,
    pub(super) acme: String,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Given {
    /// One for each name, in their order.
    pub(super) certificates: Vec<Gift>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Gift {
    Certificate(Box<Certificate>),
    /// Why there is none.
    Refused(String),
}

/// Of one `acme.take`.
pub(super) const NAMES_MOST: usize = 16;
