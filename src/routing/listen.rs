//! Places to listen at.

use std::fmt;
use std::net::IpAddr;

/// Where something listens: a port on one address, or on all of the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Listen {
    // The port comes first, so that all listeners of a port are neighbours in the map.
    pub port: u16,
    /// `None`: every address, IPv4 and IPv6.
    pub ip: Option<IpAddr>,
}

impl Listen {
    /// What takes the connections to all VIPs, where nothing is bound to their ports. No service is published here.
    pub const VIPS: Listen = Listen { port: 0, ip: None };
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.ip {
            None if self.port == 0 => f.write_str("VIPs"),
            None => write!(f, "*:{}", self.port),
            Some(IpAddr::V4(ip)) => write!(f, "{ip}:{}", self.port),
            Some(IpAddr::V6(ip)) => write!(f, "[{ip}]:{}", self.port),
        }
    }
}
