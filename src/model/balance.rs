//! Which of a service's endpoints are to have how much, as declared. Pure. Not here: picking one (`routing`, `proxy`).

use std::fmt;
use std::str::FromStr;

use super::InvalidValue;

/// How an endpoint is chosen among the healthy ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Balance {
    /// Each in turn, exactly, over all cores of the node.
    #[default]
    RoundRobin,
    /// Of two drawn at random, the one with less in flight.
    LeastRequest,
}

impl Balance {
    pub fn as_str(self) -> &'static str {
        match self {
            Balance::RoundRobin => "round-robin",
            Balance::LeastRequest => "least-request",
        }
    }
}

impl FromStr for Balance {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Balance, InvalidValue> {
        match text {
            "round-robin" => Ok(Balance::RoundRobin),
            "least-request" => Ok(Balance::LeastRequest),
            _ => Err(InvalidValue::new(text, "round-robin or least-request")),
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
