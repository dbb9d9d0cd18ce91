//! Which of a service's endpoints are to have how much, as declared. Pure. Not here: picking one (`routing`, `proxy`).

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use super::{InvalidValue, ServiceSpec};

/// How an endpoint is chosen among the healthy ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Balance {
    /// Each in turn, exactly, over all cores of the node.
    #[default]
    RoundRobin,
    /// Of two drawn at random, the one with less in flight.
    LeastRequest,
    /// The same for the same key, on every node: `HashKey`.
    Hash,
}

impl Balance {
    pub fn as_str(self) -> &'static str {
        match self {
            Balance::RoundRobin => "round-robin",
            Balance::LeastRequest => "least-request",
            Balance::Hash => "hash",
        }
    }
}

impl FromStr for Balance {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Balance, InvalidValue> {
        match text {
            "round-robin" => Ok(Balance::RoundRobin),
            "least-request" => Ok(Balance::LeastRequest),
            "hash" => Ok(Balance::Hash),
            _ => Err(InvalidValue::new(text, "round-robin, least-request or hash")),
        }
    }
}

/// How much an endpoint gets beside the others of its service. 0: nothing new while others are healthy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Weight(u16);

impl Weight {
    pub const MOST: u16 = 1000;

    pub fn get(self) -> u32 {
        self.0.into()
    }
}

impl Default for Weight {
    fn default() -> Weight {
        Weight(1)
    }
}

impl FromStr for Weight {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Weight, InvalidValue> {
        match text.parse::<u16>() {
            Ok(weight) if weight <= Weight::MOST && text.bytes().all(|b| b.is_ascii_digit()) => Ok(Weight(weight)),
            _ => Err(InvalidValue::new(text, "a weight from 0 to 1000")),
        }
    }
}

impl fmt::Display for Weight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// Whose tasks get a connection or request first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Prefer {
    /// Nobody's.
    #[default]
    Any,
    /// Those of the node that it came in by.
    Local,
}

impl FromStr for Prefer {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Prefer, InvalidValue> {
        match text {
            "any" => Ok(Prefer::Any),
            "local" => Ok(Prefer::Local),
            _ => Err(InvalidValue::new(text, "any or local")),
        }
    }
}

/// What is to lead to the same endpoint, where that is asked for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum HashKey {
    #[default]
    ClientAddress,
    /// The value of a field of the request (http).
    Header(Arc<str>),
    Cookie(Arc<str>),
}

impl FromStr for HashKey {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<HashKey, InvalidValue> {
        let named = |name: &str| is_token(name).then(|| Arc::from(name));
        let key = match text.split_once(':') {
            None if text == "client-address" => Some(HashKey::ClientAddress),
            Some(("header", name)) => named(name).map(HashKey::Header),
            Some(("cookie", name)) => named(name).map(HashKey::Cookie),
            _ => None,
        };
        key.ok_or_else(|| InvalidValue::new(text, "client-address, header:NAME or cookie:NAME"))
    }
}

/// Whether it may be the name of a field or a cookie (RFC 9110, 5.6.2).
pub(super) fn is_token(text: &str) -> bool {
    let is_of_token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    !text.is_empty() && text.bytes().all(is_of_token)
}

/// An option that does not go with how its service is balanced.
#[derive(Debug, PartialEq, Eq)]
pub struct AtOdds {
    /// Its key in a services file.
    pub key: &'static str,
    pub label: &'static str,
    pub expected: &'static str,
}

impl AtOdds {
    /// The first of `spec`. `says_hash`: whether the key to be hashed was said.
    pub fn of(spec: &ServiceSpec, says_hash: bool) -> Option<AtOdds> {
        let is_hashed = spec.balance == Balance::Hash;
        if says_hash && !is_hashed {
            return Some(AtOdds {
                key: "hash",
                label: "anynode.hash",
                expected: "expected balance hash beside it",
            });
        }
        const EXPECTED: &str = "expected another balance than hash, by which every node chooses the same";
        let (key, label) = match (spec.prefer, spec.slow_start.is_zero()) {
            _ if !is_hashed => return None,
            (Prefer::Local, _) => ("prefer", "anynode.prefer"),
            (Prefer::Any, false) => ("slow_start", "anynode.slow-start"),
            (Prefer::Any, true) => return None,
        };
        Some(AtOdds {
            key,
            label,
            expected: EXPECTED,
        })
    }
}
