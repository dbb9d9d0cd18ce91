//! A table of those who came last, for many cores. It never holds more than it may: whoever came longest ago makes room for who is new.
//! Not here: what is known of each.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hash, RandomState};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// What is known by keys that anybody may make up.
#[derive(Debug)]
pub struct Bounded<K, V> {
    /// std mutex: nothing awaits under it, and each look takes less than a microsecond.
    shards: Box<[Mutex<Shard<K, V>>]>,
    hasher: RandomState,
    /// Of each generation of a shard.
    n_most: usize,
}

/// Two generations: once the young one is full the old one goes, and it takes its place. Whoever is asked for is young again.
#[derive(Debug)]
struct Shard<K, V> {
    young: HashMap<K, V>,
    old: HashMap<K, V>,
}

impl<K: Hash + Eq, V> Bounded<K, V> {
    /// Holds `n_most` at most, and half of them at least before any goes.
    pub fn new(n_most: usize) -> Bounded<K, V> {
        let shard = || {
            Mutex::new(Shard {
                young: HashMap::new(),
                old: HashMap::new(),
            })
        };
        Bounded {
            shards: std::iter::repeat_with(shard).take(N_SHARDS).collect(),
            hasher: RandomState::new(),
            n_most: (n_most / N_SHARDS / 2).max(1),
        }
    }

    /// Looks at what is known of `key`; of one that is not known, at what `unknown` makes.
    pub fn with<R>(&self, key: K, unknown: impl FnOnce() -> V, look: impl FnOnce(&mut V) -> R) -> R {
        let mut shard = self.shard(&key);
        let shard = &mut *shard;
        if let Some(known) = shard.young.get_mut(&key) {
            return look(known);
        }
        let mut value = shard.old.remove(&key).unwrap_or_else(unknown);
        let result = look(&mut value);
        if shard.young.len() >= self.n_most {
            shard.old = std::mem::take(&mut shard.young);
        }
        shard.young.insert(key, value);
        result
    }

    /// Looks at what is known of `key`. `None`: nothing is.
    pub fn look<R>(&self, key: &K, look: impl FnOnce(&V) -> R) -> Option<R> {
        let shard = self.shard(key);
        shard.young.get(key).or_else(|| shard.old.get(key)).map(look)
    }

    /// Whether it is known. If it is, it counts as one that came now.
    pub fn touch(&self, key: K) -> bool {
        let mut shard = self.shard(&key);
        if shard.young.contains_key(&key) {
            return true;
        }
        let Some(value) = shard.old.remove(&key) else {
            return false;
        };
        if shard.young.len() >= self.n_most {
            shard.old = std::mem::take(&mut shard.young);
        }
        shard.young.insert(key, value);
        true
    }

    /// How many are known.
    pub fn len(&self) -> usize {
        let lock = |shard: &Mutex<Shard<K, V>>| {
            let shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
            shard.young.len() + shard.old.len()
        };
        self.shards.iter().map(lock).sum()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn shard(&self, key: &K) -> MutexGuard<'_, Shard<K, V>> {
        let place = self.hasher.hash_one(key) as usize % self.shards.len();
        self.shards[place].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whom an address counts for: of IPv6 its /64, which is what one client has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ClientKey(IpAddr);

impl ClientKey {
    pub fn of(ip: IpAddr) -> ClientKey {
        ClientKey(match ip.to_canonical() {
            IpAddr::V6(ip) => Ipv6Addr::from_bits(ip.to_bits() & !u128::from(u64::MAX)).into(),
            ip => ip,
        })
    }

    /// A number that spreads clients over what there is several of. No secret: whoever has many addresses can choose it.
    pub(super) fn shard(self) -> usize {
        let bits = match self.0 {
            IpAddr::V4(ip) => u64::from(ip.to_bits()),
            IpAddr::V6(ip) => (ip.to_bits() >> 64) as u64,
        };
        (bits.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 48) as usize
    }
}

const N_SHARDS: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_table_drops_who_came_longest_ago() {
        let table: Bounded<u32, u32> = Bounded::new(320);
        table.with(0, || 7, |_| {});
        for i in 1..100_000 {
            table.with(i, || i, |_| {});
            assert!(table.touch(0), "who goes on coming stays ({i})");
        }
        assert!(table.len() <= 320 && table.len() >= 160, "{}", table.len());
        assert!(table.touch(99_999) && !table.touch(1));
        assert_eq!(table.with(0, || 0, |known| *known), 7);
        // Who is asked for and not known is not made up.
        assert!(!table.touch(1));
    }

    #[test]
    fn a_client_of_ipv6_is_a_network() {
        let of = |text: &str| ClientKey::of(text.parse().unwrap());
        assert_eq!(of("2001:db8::1"), of("2001:db8::ffff:0:0:2"));
        assert_ne!(of("2001:db8::1"), of("2001:db8:0:1::1"));
        assert_eq!(of("::ffff:192.0.2.1"), of("192.0.2.1"));
        assert_ne!(of("192.0.2.1"), of("192.0.2.2"));
    }
}
