//! Encryption at rest: what configs and secrets hold is never on disk in the clear. The key lies beside the store in a file
//! that only its owner reads, so what is protected is the store's file where it is copied without the key. Of a store that is
//! locked nothing is in the clear but what its objects are called by, and its key is nowhere but in the store itself, sealed
//! with the unlock key, which is on no disk.

use std::io::{self, Write};
use std::path::Path;

use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::rand::{SecureRandom, SystemRandom};

use crate::model::swarm::UnlockKey;

/// Seals and opens payloads.
#[derive(Debug)]
pub(super) struct Seal {
    key: LessSafeKey,
    /// Of a store that is locked.
    is_of_all: bool,
}

impl Seal {
    /// Reads the key, or makes one where there is none and `may_make` says that nothing is sealed yet.
    pub(super) fn open(path: &Path, may_make: bool) -> io::Result<Seal> {
        let bytes = match std::fs::read(path) {
            Ok(bytes) => {
                own(path)?;
                bytes
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound && may_make => make(path)?,
            Err(error) => return Err(error),
        };
        Seal::of(&bytes).ok_or_else(|| {
            let wrong = format!("{} bytes, expected {}", bytes.len(), CHACHA20_POLY1305.key_len());
            io::Error::new(io::ErrorKind::InvalidData, wrong)
        })
    }

    pub(super) fn of(key: &[u8]) -> Option<Seal> {
        let key = UnboundKey::new(&CHACHA20_POLY1305, key).ok()?;
        Some(Seal {
            key: LessSafeKey::new(key),
            is_of_all: false,
        })
    }

    /// A new key for a store that `unlock_key` locks, and what is kept of it: the key as `unlock_key` seals it.
    pub(super) fn new_locked(unlock_key: &UnlockKey) -> io::Result<(Seal, Vec<u8>)> {
        let mut key = [0; UnlockKey::BYTES];
        fill(&mut key)?;
        let wrapped = Seal::by(unlock_key)?.seal(WRAPPED, &key)?;
        Ok((Seal::of_all(&key)?, wrapped))
    }

    /// The key that was kept. `None`: another unlock key than this one locks it.
    pub(super) fn unlock(unlock_key: &UnlockKey, wrapped: &[u8]) -> io::Result<Option<Seal>> {
        let key = Seal::by(unlock_key)?.open_sealed(WRAPPED, wrapped);
        key.map(|key| Seal::of_all(&key)).transpose()
    }

    fn by(unlock_key: &UnlockKey) -> io::Result<Seal> {
        Seal::of(unlock_key.bytes()).ok_or_else(no_key)
    }

    fn of_all(key: &[u8]) -> io::Result<Seal> {
        let seal = Seal::of(key).ok_or_else(no_key)?;
        Ok(Seal {
            is_of_all: true,
            ..seal
        })
    }

    /// Whether nothing of an object is written in the clear.
    pub(super) fn is_of_all(&self) -> bool {
        self.is_of_all
    }

    /// A key that is made now, in place of one that may be there.
    pub(super) fn renew(path: &Path) -> io::Result<Seal> {
        Seal::of(&make(path)?).ok_or_else(no_key)
    }

    /// `place` is where the sealed bytes stand: they cannot be opened elsewhere.
    pub(super) fn seal(&self, place: &str, bytes: &[u8]) -> io::Result<Vec<u8>> {
        let mut nonce = [0; NONCE_LEN];
        fill(&mut nonce)?;
        let mut sealed = bytes.to_vec();
        let aad = Aad::from(place.as_bytes());
        let ended = self
            .key
            .seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), aad, &mut sealed);
        ended.map_err(|_| io::Error::other("the bytes cannot be encrypted"))?;
        Ok([&nonce[..], &sealed].concat())
    }

    /// `None` when they were not sealed with this key for this place, or were changed since.
    pub(super) fn open_sealed(&self, place: &str, sealed: &[u8]) -> Option<Vec<u8>> {
        let (nonce, sealed) = sealed.split_at_checked(NONCE_LEN)?;
        let mut bytes = sealed.to_vec();
        let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
        let length = self
            .key
            .open_in_place(nonce, Aad::from(place.as_bytes()), &mut bytes)
            .ok()?
            .len();
        bytes.truncate(length);
        Some(bytes)
    }
}

fn no_key() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "it is of another length than keys have")
}

/// An earlier copy may have been put back with another mode.
fn own(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    match std::fs::metadata(path)?.permissions().mode() & 0o777 {
        0o600 => Ok(()),
        _ => std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)),
    }
}

fn fill(bytes: &mut [u8]) -> io::Result<()> {
    SystemRandom::new()
        .fill(bytes)
        .map_err(|_| io::Error::other("the system gives no random bytes"))
}

/// Makes a key at `path`, in place of whatever was there.
fn make(path: &Path) -> io::Result<Vec<u8>> {
    use std::os::unix::fs::OpenOptionsExt;
    let mut key = vec![0; CHACHA20_POLY1305.key_len()];
    fill(&mut key)?;
    let unfinished = path.with_extension("key.new");
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&unfinished)?;
    file.write_all(&key)?;
    file.sync_all()?;
    std::fs::rename(&unfinished, path)?;
    if let Some(dir) = path.parent() {
        std::fs::File::open(dir)?.sync_all()?;
    }
    Ok(key)
}

/// Where a wrapped key stands.
const WRAPPED: &str = "the key of a locked store";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sealed_opens_with_its_key_in_its_place_only() {
        let seal = Seal::of(&[7; 32]).unwrap();
        let sealed = seal.seal("secret/a", b"password").unwrap();
        assert!(!sealed.windows(8).any(|window| window == b"password"));
        assert_eq!(seal.open_sealed("secret/a", &sealed).unwrap(), b"password");
        assert!(seal.open_sealed("secret/b", &sealed).is_none());
        assert!(Seal::of(&[8; 32]).unwrap().open_sealed("secret/a", &sealed).is_none());
        for at in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[at] ^= 1;
            assert!(seal.open_sealed("secret/a", &changed).is_none(), "{at}");
        }
        assert!(seal.open_sealed("secret/a", &sealed[..5]).is_none());
    }

    #[test]
    fn a_locked_key_opens_by_its_unlock_key_only() {
        let (one, other) = (UnlockKey::new([1; 32]), UnlockKey::new([2; 32]));
        let (seal, wrapped) = Seal::new_locked(&one).unwrap();
        let sealed = seal.seal("a", b"b").unwrap();
        let opened = Seal::unlock(&one, &wrapped).unwrap().unwrap();
        assert_eq!(opened.open_sealed("a", &sealed).unwrap(), b"b");
        assert!(opened.is_of_all());
        assert!(Seal::unlock(&other, &wrapped).unwrap().is_none());
        assert!(
            Seal::by(&one).unwrap().open_sealed("a", &sealed).is_none(),
            "it seals the key alone"
        );
        let (again, _) = Seal::new_locked(&one).unwrap();
        assert!(again.open_sealed("a", &sealed).is_none(), "each has a key of its own");
    }

    #[test]
    fn a_key_is_made_once_for_its_owner_and_never_in_place_of_a_lost_one() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("store.key");
        assert!(Seal::open(&path, false).is_err());
        let sealed = Seal::open(&path, true).unwrap().seal("a", b"b").unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(
            Seal::open(&path, true).unwrap().open_sealed("a", &sealed).unwrap(),
            b"b"
        );
        std::fs::write(&path, b"short").unwrap();
        assert!(
            Seal::open(&path, true)
                .unwrap_err()
                .to_string()
                .contains("5 bytes, expected 32")
        );
    }
}
