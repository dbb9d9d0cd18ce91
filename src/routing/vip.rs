//! Who has which VIP: a pure map from names to addresses of one network. An address is a service's for as long as the
//! pool knows it, and the pool forgets last whom it saw last, so that a service that comes back finds its own again.
//! Not here: where the pool is kept between runs (`source`).

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use crate::model::ServiceName;

#[derive(Debug, Clone)]
pub struct VipPool {
    network: Ipv4Net,
    by_name: BTreeMap<ServiceName, Ipv4Addr>,
    by_vip: BTreeMap<Ipv4Addr, ServiceName>,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VipPoolError {
    #[error("no VIP is left in {network} for service {service}")]
    Exhausted { network: Ipv4Net, service: ServiceName },
}

impl VipPool {
    pub fn new(network: Ipv4Net) -> VipPool {
        VipPool {
            network,
            by_name: BTreeMap::new(),
            by_vip: BTreeMap::new(),
        }
    }

    /// A pool that knows `assigned` from before. What lies outside the network, or is said twice, is left out.
    pub fn restore(network: Ipv4Net, assigned: impl IntoIterator<Item = (ServiceName, Ipv4Addr)>) -> VipPool {
        let mut pool = VipPool::new(network);
        for (name, vip) in assigned {
            if pool.may_use(vip) && !pool.by_vip.contains_key(&vip) && !pool.by_name.contains_key(&name) {
                pool.insert(name, vip);
            }
        }
        pool
    }

    pub fn network(&self) -> Ipv4Net {
        self.network
    }

    pub fn assigned(&self) -> impl Iterator<Item = (&ServiceName, Ipv4Addr)> {
        self.by_name.iter().map(|(name, vip)| (name, *vip))
    }

    /// The VIP of `name`: its own, or a free one found from a place that the name decides, so that two machines with
    /// the same file mostly agree. When none is free, one of a name that `is_in_use` denies is taken over.
    pub fn assign(
        &mut self,
        name: &ServiceName,
        is_in_use: impl Fn(&ServiceName) -> bool,
    ) -> Result<Ipv4Addr, VipPoolError> {
        if let Some(vip) = self.by_name.get(name) {
            return Ok(*vip);
        }
        let first = u32::from(self.network.network());
        let n_addresses = 1u64 << (32 - self.network.prefix_len());
        let start = fnv1a(name.key().as_bytes()) % n_addresses;
        // Bounded by the number assigned: each step passes an address that is taken or reserved.
        let n_steps = n_addresses.min(self.by_vip.len() as u64 + 4);
        let candidates = (0..n_steps).filter_map(|step| {
            let offset = u32::try_from((start + step) % n_addresses).ok()?;
            Some(Ipv4Addr::from(first.checked_add(offset)?))
        });
        let free = candidates
            .into_iter()
            .find(|vip| self.may_use(*vip) && !self.by_vip.contains_key(vip));
        let vip = match free {
            Some(vip) => vip,
            None => self.take_over(is_in_use).ok_or_else(|| VipPoolError::Exhausted {
                network: self.network,
                service: name.clone(),
            })?,
        };
        self.insert(name.clone(), vip);
        Ok(vip)
    }

    fn take_over(&mut self, is_in_use: impl Fn(&ServiceName) -> bool) -> Option<Ipv4Addr> {
        let name = self.by_name.keys().find(|name| !is_in_use(name))?.clone();
        let vip = self.by_name.remove(&name)?;
        self.by_vip.remove(&vip);
        Some(vip)
    }

    fn insert(&mut self, name: ServiceName, vip: Ipv4Addr) {
        self.by_vip.insert(vip, name.clone());
        self.by_name.insert(name, vip);
    }

    /// Inside the network, and neither its own address, its broadcast address, nor the first host (a gateway's).
    fn may_use(&self, vip: Ipv4Addr) -> bool {
        let gateway = Ipv4Addr::from(u32::from(self.network.network()).wrapping_add(1));
        self.network.contains(&vip)
            && (self.network.prefix_len() >= 31
                || (vip != self.network.network() && vip != self.network.broadcast() && vip != gateway))
    }
}

/// FNV-1a, 64 bits: the same on every machine and in every version, which std's hasher does not promise.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(i: usize) -> ServiceName {
        ServiceName::new(&format!("s{i}")).unwrap()
    }

    #[test]
    fn a_pool_gives_each_its_own_until_it_is_empty_and_then_says_so() {
        let network: Ipv4Net = "127.77.0.0/28".parse().unwrap();
        let mut pool = VipPool::new(network);
        let vips: Vec<_> = (0..13).map(|i| pool.assign(&name(i), |_| true).unwrap()).collect();
        let mut distinct = vips.clone();
        distinct.sort_unstable();
        distinct.dedup();
        assert_eq!(distinct.len(), 13);
        assert!(distinct.iter().all(|vip| network.contains(vip)));
        assert_eq!(pool.assign(&name(3), |_| true), Ok(vips[3]), "the same again");
        let full = pool.assign(&name(99), |_| true).unwrap_err();
        assert_eq!(full.to_string(), "no VIP is left in 127.77.0.0/28 for service s99");
        assert_eq!(
            pool.assign(&name(99), |other| *other != name(5)),
            Ok(vips[5]),
            "that of one long gone"
        );
    }

    #[test]
    fn a_restored_pool_leaves_out_what_cannot_be() {
        let network: Ipv4Net = "127.77.0.0/16".parse().unwrap();
        let vip = |text: &str| text.parse::<Ipv4Addr>().unwrap();
        let assigned = [
            (name(1), vip("127.77.3.4")),
            (name(2), vip("127.77.3.4")),
            (name(3), vip("10.0.0.1")),
            (name(4), vip("127.77.255.255")),
        ];
        let pool = VipPool::restore(network, assigned);
        assert_eq!(pool.assigned().collect::<Vec<_>>(), [(&name(1), vip("127.77.3.4"))]);
    }
}
