//! Who gives way when there are as many connections as there may be: the party that holds most, of its connections those
//! through which nothing has passed for longest. While there is room nobody is looked at, so that connections pay for no
//! bookkeeping but a number. Not here: places of other kinds (`places`).

use std::collections::{BinaryHeap, HashMap};
use std::convert::Infallible;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use tokio::sync::mpsc;

use super::core::OpenConnections;
use super::worker::Command;

/// Whose a connection is: a task's that calls from inside, or the address's that a client comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub(super) struct Party(u64);

impl Party {
    /// Nobody's who has others. It never gives way.
    pub(super) const ALONE: Party = Party(0);
    const V4: u64 = 1 << 56;
    const V6: u64 = 2 << 56;
    const TASK: u64 = 3 << 56;
    /// What is not the kind.
    const ADDRESS: u64 = (1 << 56) - 1;

    /// A client's. Loopback and trusted proxies stand for many. Of IPv6 the first 56 bits count: who has one address has all
    /// that begin so.
    pub(super) fn client(ip: IpAddr, trusted_proxies: &[IpNet]) -> Party {
        let ip = ip.to_canonical();
        if ip.is_loopback() || trusted_proxies.iter().any(|net| net.contains(&ip)) {
            return Party::ALONE;
        }
        match ip {
            IpAddr::V4(ip) => Party(Party::V4 | u64::from(ip.to_bits())),
            IpAddr::V6(ip) => Party(Party::V6 | (ip.to_bits() >> 72) as u64),
        }
    }

    /// Of a client by itself; of IPv6 the beginning of it, which is all that is told apart.
    pub(super) fn address(self) -> Option<IpAddr> {
        match self.0 & !Party::ADDRESS {
            Party::V4 => Some(Ipv4Addr::from_bits(self.0 as u32).into()),
            Party::V6 => Some(Ipv6Addr::from_bits(u128::from(self.0 & Party::ADDRESS) << 72).into()),
            _ => None,
        }
    }

    /// `None`: nobody's who has others.
    pub(super) fn number(self) -> Option<u64> {
        (self != Party::ALONE).then_some(self.0)
    }

    /// The task's of that number.
    pub(super) fn task(number: u64) -> Party {
        Party(Party::TASK | number & (Party::V4 - 1))
    }
}

/// How many connections each party holds; `Party::ALONE` left out.
pub(super) type Census = HashMap<Party, usize>;

/// How many each is to give up so that `n` become free: always the party that holds most, down to one each.
fn decide(census: &Census, n: usize) -> Census {
    let mut by_number: BinaryHeap<(usize, Party)> = census.iter().map(|(party, held)| (*held, *party)).collect();
    let mut given_up = Census::new();
    for _ in 0..n {
        let Some((held, party)) = by_number.pop().filter(|(held, _)| *held > 1) else {
            break;
        };
        *given_up.entry(party).or_default() += 1;
        by_number.push((held - 1, party));
    }
    given_up
}

/// Makes room whenever somebody waits for it. Never ends.
pub(super) async fn make_room(open: Arc<OpenConnections>, workers: Vec<mpsc::UnboundedSender<Command>>) -> Infallible {
    loop {
        open.wanted().await;
        let n = (open.most() / ROOM_PART).max(1);
        let given_up = give_up(&workers, n).await;
        if given_up > 0 {
            tracing::debug!(connections = given_up, "no room was left: who held most gave some up");
        }
        // Those that were told to end have a moment to; where nobody holds more than others there is nothing to look for.
        tokio::time::sleep(if given_up > 0 { PAUSE } else { LONG_PAUSE }).await;
    }
}

/// How many connections were told to end.
async fn give_up(workers: &[mpsc::UnboundedSender<Command>], n: usize) -> usize {
    let (sender, mut receiver) = mpsc::unbounded_channel();
    for (i, worker) in workers.iter().enumerate() {
        // An error means that the worker has ended, with all that it had.
        let _ = worker.send(Command::Count(i, sender.clone()));
    }
    drop(sender);
    let mut each = vec![Census::new(); workers.len()];
    let mut all = Census::new();
    while let Some((i, census)) = receiver.recv().await {
        for (party, held) in &census {
            *all.entry(*party).or_default() += held;
        }
        each[i] = census;
    }
    let mut n_told = 0;
    for (party, n) in decide(&all, n) {
        let mut left = n;
        for (worker, census) in workers.iter().zip(&each) {
            let held = census.get(&party).copied().unwrap_or_default();
            let share = (n * held).div_ceil(all[&party]).min(left);
            if share > 0 && worker.send(Command::GiveUp(party, share)).is_ok() {
                n_told += share;
                left -= share;
            }
        }
    }
    n_told
}

/// So much of all that there may be becomes free at once.
const ROOM_PART: usize = 32;
const PAUSE: Duration = Duration::from_millis(20);
const LONG_PAUSE: Duration = Duration::from_millis(500);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clients_address_is_read_back_as_far_as_it_counts() {
        let back = |ip: &str| {
            Party::client(ip.parse().unwrap(), &[])
                .address()
                .map(|ip| ip.to_string())
        };
        assert_eq!(back("192.0.2.7").as_deref(), Some("192.0.2.7"));
        assert_eq!(back("::ffff:192.0.2.7").as_deref(), Some("192.0.2.7"));
        assert_eq!(back("2001:db8:1:2ff::9").as_deref(), Some("2001:db8:1:200::"));
        assert_eq!(back("127.0.0.1"), None);
        assert_eq!(Party(Party::TASK | 7).address(), None);
    }

    #[test]
    fn who_holds_most_gives_up_most() {
        let (a, b, c) = (Party(1), Party(2), Party(3));
        let census = Census::from([(a, 10), (b, 4), (c, 1)]);
        assert_eq!(decide(&census, 3), Census::from([(a, 3)]));
        assert_eq!(decide(&census, 8), Census::from([(a, 7), (b, 1)]));
        assert_eq!(decide(&census, 100), Census::from([(a, 9), (b, 3)]));
        assert_eq!(decide(&Census::from([(c, 1)]), 5), Census::new());
    }

    #[test]
    fn a_party_is_an_address_and_those_who_stand_for_many_are_none() {
        let of = |ip: &str| Party::client(ip.parse().unwrap(), &["192.0.2.0/24".parse().unwrap()]);
        for many in [
            "127.0.0.1",
            "127.9.9.9",
            "::1",
            "192.0.2.7",
            "::ffff:192.0.2.7",
            "::ffff:127.0.0.1",
        ] {
            assert_eq!(of(many), Party::ALONE, "{many}");
        }
        assert_eq!(of("198.51.100.1"), of("::ffff:198.51.100.1"));
        assert_ne!(of("198.51.100.1"), of("198.51.100.2"));
        assert_eq!(of("2001:db8:1:200::1"), of("2001:db8:1:2ff::2"));
        assert_ne!(of("2001:db8:1:200::1"), of("2001:db8:1:300::1"));
        let all = [
            of("198.51.100.1"),
            of("2001:db8::1"),
            Party::task(0),
            Party::task(1),
            Party::ALONE,
        ];
        assert!((1..all.len()).all(|i| !all[..i].contains(&all[i])));
    }
}
