//! Session tickets: what lets a client that comes back do without signatures. A ticket is sealed by a key that follows from a
//! secret, the entry point's policy and the hour, so nodes that share the secret take each other's, and a ticket of one policy is
//! nothing to another. A key is used for 12 hours, and tickets are taken for as long again.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::hkdf::{HKDF_SHA256, KeyType, Salt};
use ring::rand::{SecureRandom, SystemRandom};
use rustls::server::ProducesTickets;

/// What the keys follow from.
#[derive(Clone)]
pub(super) struct Secret(Arc<[u8]>);

impl Secret {
    /// Of this run alone. Errors: the system has no randomness.
    pub(super) fn random() -> Result<Secret, ring::error::Unspecified> {
        let mut bytes = [0; 32];
        SystemRandom::new().fill(&mut bytes)?;
        Ok(Secret(bytes.as_slice().into()))
    }

    /// What other nodes have as well.
    pub(super) fn shared(bytes: &[u8]) -> Secret {
        Secret(bytes.into())
    }
}

/// Seals and opens the tickets of one policy.
pub(super) struct Tickets {
    secret: Secret,
    /// Names the entry point, and all that it asks of its clients.
    policy: String,
    keys: ArcSwap<Keys>,
    now: fn() -> u64,
}

impl std::fmt::Debug for Tickets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tickets of {}", self.policy)
    }
}

/// Those of an epoch, and of its neighbours: of the one before since tickets last, of the next since clocks differ.
struct Keys {
    epoch: u64,
    before: Option<EpochKey>,
    current: Option<EpochKey>,
    next: Option<EpochKey>,
}

struct EpochKey {
    /// In front of its tickets.
    name: [u8; NAME_LEN],
    key: LessSafeKey,
}

impl Tickets {
    pub(super) fn new(secret: Secret, policy: String) -> Tickets {
        Tickets::at(secret, policy, seconds)
    }

    fn at(secret: Secret, policy: String, now: fn() -> u64) -> Tickets {
        let keys = ArcSwap::from_pointee(Keys::of(&secret, &policy, now() / EPOCH.as_secs()));
        Tickets {
            secret,
            policy,
            keys,
            now,
        }
    }

    fn keys(&self) -> Arc<Keys> {
        let epoch = (self.now)() / EPOCH.as_secs();
        let keys = self.keys.load();
        if keys.epoch == epoch {
            return Arc::clone(&keys);
        }
        let keys = Arc::new(Keys::of(&self.secret, &self.policy, epoch));
        self.keys.store(keys.clone());
        keys
    }
}

impl Keys {
    fn of(secret: &Secret, policy: &str, epoch: u64) -> Keys {
        let key = |epoch: u64| EpochKey::of(secret, policy, epoch);
        Keys {
            epoch,
            before: epoch.checked_sub(1).and_then(key),
            current: key(epoch),
            next: key(epoch + 1),
        }
    }
}

impl EpochKey {
    fn of(secret: &Secret, policy: &str, epoch: u64) -> Option<EpochKey> {
        let material = Salt::new(HKDF_SHA256, b"anynode session tickets").extract(&secret.0);
        let epoch = epoch.to_be_bytes();
        let info = [policy.as_bytes(), &epoch];
        let mut bytes = [0; NAME_LEN + KEY_LEN];
        material.expand(&info, Length).ok()?.fill(&mut bytes).ok()?;
        let (name, key) = bytes.split_at(NAME_LEN);
        Some(EpochKey {
            name: name.try_into().ok()?,
            key: LessSafeKey::new(UnboundKey::new(&CHACHA20_POLY1305, key).ok()?),
        })
    }
}

struct Length;

impl KeyType for Length {
    fn len(&self) -> usize {
        NAME_LEN + KEY_LEN
    }
}

impl ProducesTickets for Tickets {
    fn enabled(&self) -> bool {
        true
    }

    fn lifetime(&self) -> u32 {
        EPOCH.as_secs() as u32
    }

    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        let keys = self.keys();
        let key = keys.current.as_ref()?;
        let mut nonce = [0; NONCE_LEN];
        SystemRandom::new().fill(&mut nonce).ok()?;
        let mut sealed = plain.to_vec();
        let aad = Aad::from(key.name);
        key.key
            .seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), aad, &mut sealed)
            .ok()?;
        Some([&key.name[..], &nonce, &sealed].concat())
    }

    fn decrypt(&self, ticket: &[u8]) -> Option<Vec<u8>> {
        let (name, rest) = ticket.split_first_chunk::<NAME_LEN>()?;
        let (nonce, sealed) = rest.split_first_chunk::<NONCE_LEN>()?;
        let keys = self.keys();
        let known = [&keys.current, &keys.before, &keys.next];
        // The name is no secret: it stands in the clear in each ticket.
        let key = known.into_iter().flatten().find(|key| key.name == *name)?;
        let mut sealed = sealed.to_vec();
        let nonce = Nonce::assume_unique_for_key(*nonce);
        let n = key
            .key
            .open_in_place(nonce, Aad::from(key.name), &mut sealed)
            .ok()?
            .len();
        sealed.truncate(n);
        Some(sealed)
    }
}

fn seconds() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

const EPOCH: Duration = Duration::from_secs(12 * 3600);
const NAME_LEN: usize = 8;
const KEY_LEN: usize = 32;

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    fn tickets(secret: &[u8], policy: &str, now: fn() -> u64) -> Tickets {
        Tickets::at(Secret::shared(secret), policy.to_owned(), now)
    }

    #[test]
    fn nodes_that_share_a_secret_take_each_others_and_nobody_else_does() {
        let now = || 1_000_000_u64;
        let (one, other) = (tickets(b"secret", "web", now), tickets(b"secret", "web", now));
        let ticket = one.encrypt(b"session").unwrap();
        assert_eq!(other.decrypt(&ticket).as_deref(), Some(&b"session"[..]));
        assert_ne!(ticket, one.encrypt(b"session").unwrap());
        for stranger in [tickets(b"secret", "mtls", now), tickets(b"other", "web", now)] {
            assert_eq!(stranger.decrypt(&ticket), None);
        }
        for i in 0..ticket.len() {
            let mut broken = ticket.clone();
            broken[i] ^= 1;
            assert_eq!(one.decrypt(&broken), None, "byte {i}");
            assert_eq!(one.decrypt(&ticket[..i]), None, "cut at {i}");
        }
        let random = |secret| Tickets::at(secret, "web".to_owned(), now);
        let (one, other) = (random(Secret::random().unwrap()), random(Secret::random().unwrap()));
        assert_eq!(other.decrypt(&one.encrypt(b"session").unwrap()), None);
    }

    #[test]
    fn a_ticket_lasts_into_the_next_epoch_and_no_further() {
        static NOW: AtomicU64 = AtomicU64::new(0);
        let now = || NOW.load(Ordering::SeqCst);
        let at = |epochs: u64| NOW.store(epochs * EPOCH.as_secs() + 5, Ordering::SeqCst);
        at(100);
        let tickets = tickets(b"secret", "web", now);
        let ticket = tickets.encrypt(b"session").unwrap();
        for (epoch, is_taken) in [(99, true), (100, true), (101, true), (102, false), (98, false)] {
            at(epoch);
            assert_eq!(tickets.decrypt(&ticket).is_some(), is_taken, "{epoch}");
        }
    }
}
