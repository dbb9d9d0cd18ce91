//! Names of objects that nobody chose: 25 characters of base 36, as Docker's are.

use std::borrow::Borrow;
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// An object's id: 25 lower-case letters and digits, 128 bits of chance.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Id(Arc<str>);

impl Id {
    /// From 128 bits, which the caller draws.
    pub fn from_bits(mut bits: u128) -> Id {
        let mut text = [b'0'; Id::LENGTH];
        for digit in text.iter_mut().rev() {
            *digit = b"0123456789abcdefghijklmnopqrstuvwxyz"[(bits % 36) as usize];
            bits /= 36;
        }
        Id(String::from_utf8_lossy(&text).into())
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    pub const LENGTH: usize = 25;
}

impl From<&str> for Id {
    fn from(text: &str) -> Id {
        Id(text.into())
    }
}

impl Borrow<str> for Id {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    Swarm,
    Node,
    Network,
    Config,
    Secret,
    Service,
    Task,
    /// One that is no task, on a network of the swarm.
    Container,
}

impl Kind {
    pub const ALL: [Kind; 8] = [
        Kind::Swarm,
        Kind::Node,
        Kind::Network,
        Kind::Config,
        Kind::Secret,
        Kind::Service,
        Kind::Task,
        Kind::Container,
    ];

    /// As it stands in messages and in the store.
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Swarm => "swarm",
            Kind::Node => "node",
            Kind::Network => "network",
            Kind::Config => "config",
            Kind::Secret => "secret",
            Kind::Service => "service",
            Kind::Task => "task",
            Kind::Container => "container",
        }
    }
}

/// Where an object stands in the store.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    pub kind: Kind,
    pub id: Id,
}

impl Key {
    pub fn new(kind: Kind, id: &Id) -> Key {
        Key { kind, id: id.clone() }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.kind.as_str(), self.id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_25_letters_and_digits_and_differ() {
        let all: Vec<Id> = [0, 1, 35, 36, u128::MAX, 1 << 90].map(Id::from_bits).to_vec();
        for id in &all {
            assert_eq!(id.as_str().len(), Id::LENGTH);
            assert!(
                id.as_str()
                    .bytes()
                    .all(|byte| byte.is_ascii_digit() || byte.is_ascii_lowercase())
            );
        }
        let distinct: std::collections::BTreeSet<_> = all.iter().collect();
        assert_eq!(distinct.len(), all.len());
        assert_eq!(Id::from_bits(36).as_str(), "0000000000000000000000010");
    }
}
