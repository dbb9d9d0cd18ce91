//! Encryption of what is kept in files: where certificates are shared by nodes, a copy of a file tells nothing to who has not the key
//! of the node that wrote it. Not here: where that key comes from (`app`).

use std::io;

use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::rand::{SecureRandom, SystemRandom};

/// Seals and opens the files of one node.
#[derive(Debug)]
pub(super) struct AtRest(LessSafeKey);

impl AtRest {
    pub(super) fn new(secret: &[u8; 32]) -> Option<AtRest> {
        let key = UnboundKey::new(&CHACHA20_POLY1305, secret).ok()?;
        Some(AtRest(LessSafeKey::new(key)))
    }

    /// `place`: where the sealed bytes stand. They cannot be opened elsewhere.
    pub(super) fn seal(&self, place: &str, bytes: &[u8]) -> io::Result<Vec<u8>> {
        let mut nonce = [0; NONCE_LEN];
        let drawn = SystemRandom::new().fill(&mut nonce);
        drawn.map_err(|_| io::Error::other("the system gives no random bytes"))?;
        let mut sealed = bytes.to_vec();
        let by = Nonce::assume_unique_for_key(nonce);
        let done = self
            .0
            .seal_in_place_append_tag(by, Aad::from(place.as_bytes()), &mut sealed);
        done.map_err(|_| io::Error::other("the bytes cannot be encrypted"))?;
        Ok([MARK, &nonce[..], &sealed].concat())
    }

    /// `None`: they were sealed by another node's key, or for another place, or were changed since.
    pub(super) fn open(&self, place: &str, sealed: &[u8]) -> Option<Vec<u8>> {
        let (nonce, sealed) = sealed.strip_prefix(MARK)?.split_at_checked(NONCE_LEN)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
        let mut bytes = sealed.to_vec();
        let opened = self.0.open_in_place(nonce, Aad::from(place.as_bytes()), &mut bytes);
        let length = opened.ok()?.len();
        bytes.truncate(length);
        Some(bytes)
    }
}

/// Whether a file's bytes are sealed.
pub(super) fn is_sealed(bytes: &[u8]) -> bool {
    bytes.starts_with(MARK)
}

/// No JSON begins so.
const MARK: &[u8] = b"anynode sealed 1\n";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sealed_opens_by_its_key_at_its_place_alone() {
        let (ours, theirs) = (AtRest::new(&[1; 32]).unwrap(), AtRest::new(&[2; 32]).unwrap());
        let sealed = ours.seal("le/a", b"-----BEGIN PRIVATE KEY-----").unwrap();
        assert!(is_sealed(&sealed) && !is_sealed(b"{}"));
        assert!(!sealed.windows(11).any(|part| part == b"PRIVATE KEY"));
        assert_eq!(ours.open("le/a", &sealed).unwrap(), b"-----BEGIN PRIVATE KEY-----");
        assert_ne!(sealed, ours.seal("le/a", b"-----BEGIN PRIVATE KEY-----").unwrap());
        assert!(ours.open("le/b", &sealed).is_none() && theirs.open("le/a", &sealed).is_none());
        for at in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[at] ^= 1;
            assert!(ours.open("le/a", &changed).is_none(), "{at}");
            assert!(ours.open("le/a", &sealed[..at]).is_none(), "{at}");
        }
    }
}
