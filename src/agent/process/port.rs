//! Ports for tasks that are processes. A port is given before its program asks for it, so it is one that nothing takes
//! meanwhile: neither connections that go out, nor services that are published without a port of their own.

use std::collections::VecDeque;
use std::fs;
use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

/// Gives ports.
#[derive(Debug, Default)]
pub(super) struct PortGiver {
    /// What was given last, not to be given again soon. std mutex: held for moments.
    given: Mutex<VecDeque<u16>>,
}

impl PortGiver {
    /// A port that is free now. Errors: none of many is.
    pub(super) fn give(&self) -> io::Result<u16> {
        let outgoing = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
        let range = range_beside(&outgoing);
        for _ in 0..TRIES {
            let port = fastrand::u16(range.clone());
            // All addresses: the program may want them.
            if TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).is_err() {
                continue;
            }
            let mut given = self.given.lock().unwrap_or_else(PoisonError::into_inner);
            if given.contains(&port) {
                continue;
            }
            if given.len() >= REMEMBERED {
                given.pop_front();
            }
            given.push_back(port);
            return Ok(port);
        }
        let reason = format!("of the ports {} to {} none was found free", range.start, range.end - 1);
        Err(io::Error::new(io::ErrorKind::AddrInUse, reason))
    }
}

/// The ports to give, where those in `outgoing` (`LOW HIGH`) are for connections that go out.
fn range_beside(outgoing: &str) -> Range<u16> {
    let mut bounds = outgoing
        .split_whitespace()
        .filter_map(|bound| bound.parse::<u16>().ok());
    let low = bounds.next().unwrap_or(USUAL.end);
    let high = bounds.next().unwrap_or(u16::MAX);
    match low {
        // Mostly: below what is published by itself, too.
        _ if low >= USUAL.end || high < USUAL.start => USUAL,
        _ if low > USUAL.start + ENOUGH => USUAL.start..low,
        _ if high < u16::MAX - ENOUGH => high + 1..u16::MAX,
        _ if low > BELOW.start + ENOUGH => BELOW.start..low.min(BELOW.end),
        // Everything is for connections.
        _ => USUAL,
    }
}

/// Below 30000, where services get ports that ask for none.
const USUAL: Range<u16> = 20_000..30_000;
const BELOW: Range<u16> = 2_000..20_000;
const ENOUGH: u16 = 1_000;
const TRIES: usize = 1_000;
const REMEMBERED: usize = 2_000;

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn ports_of_outgoing_connections_are_left_alone() {
        for (outgoing, expected) in [
            ("32768\t60999\n", 20_000..30_000),
            ("", 20_000..30_000),
            ("nonsense", 20_000..30_000),
            ("25000 60999", 20_000..25_000),
            ("20100 60999", 61_000..u16::MAX),
            ("10000 65535", 2_000..10_000),
            ("1024 65535", 20_000..30_000),
        ] {
            assert_eq!(range_beside(outgoing), expected, "{outgoing}");
        }
    }

    #[test]
    fn no_port_is_given_twice_or_while_it_is_held() {
        let ports = PortGiver::default();
        let given: Vec<u16> = (0..500).map(|_| ports.give().unwrap()).collect();
        let distinct: BTreeSet<u16> = given.iter().copied().collect();
        assert_eq!(distinct.len(), given.len());
    }
}
