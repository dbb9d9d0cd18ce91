//! The key that opens a locked swarm, as Docker writes it for people. Not here: what it encrypts (`store`), and who makes one.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use serde::{Deserialize, Serialize};

/// 32 bytes that nobody can guess. Shown as `SWMKEY-1-` and base64; never by `Debug`.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct UnlockKey([u8; UnlockKey::BYTES]);

/// Why a text is no key that opens anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum UnlockKeyError {
    /// In Docker's words.
    #[error("invalid key string")]
    NoKey,
    #[error("expected a key of {} bytes", UnlockKey::BYTES)]
    Length,
}

impl UnlockKey {
    pub const BYTES: usize = 32;

    pub fn new(bytes: [u8; UnlockKey::BYTES]) -> UnlockKey {
        UnlockKey(bytes)
    }

    pub fn bytes(&self) -> &[u8; UnlockKey::BYTES] {
        &self.0
    }
}

impl fmt::Display for UnlockKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}{}", STANDARD_NO_PAD.encode(self.0))
    }
}

impl fmt::Debug for UnlockKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("UnlockKey(..)")
    }
}

impl FromStr for UnlockKey {
    type Err = UnlockKeyError;

    fn from_str(text: &str) -> Result<UnlockKey, UnlockKeyError> {
        let encoded = text.strip_prefix(PREFIX).ok_or(UnlockKeyError::NoKey)?;
        let bytes = STANDARD_NO_PAD.decode(encoded).map_err(|_| UnlockKeyError::NoKey)?;
        let bytes = bytes.try_into().map_err(|_| UnlockKeyError::Length)?;
        Ok(UnlockKey(bytes))
    }
}

impl TryFrom<String> for UnlockKey {
    type Error = UnlockKeyError;

    fn try_from(text: String) -> Result<UnlockKey, UnlockKeyError> {
        text.parse()
    }
}

impl From<UnlockKey> for String {
    fn from(key: UnlockKey) -> String {
        key.to_string()
    }
}

const PREFIX: &str = "SWMKEY-1-";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_read_as_it_was_written_and_nothing_else_is_one() {
        let key = UnlockKey::new([7; 32]);
        let text = key.to_string();
        assert_eq!(text, "SWMKEY-1-BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc");
        assert_eq!(text.parse(), Ok(key.clone()));
        assert_eq!(format!("{key:?}"), "UnlockKey(..)");
        for (wrong, error) in [
            ("", UnlockKeyError::NoKey),
            ("SWMKEY-2-BwcH", UnlockKeyError::NoKey),
            ("SWMKEY-1-Bwc=", UnlockKeyError::NoKey),
            ("SWMKEY-1-B", UnlockKeyError::NoKey),
            ("SWMKEY-1-", UnlockKeyError::Length),
            ("SWMKEY-1-BwcH", UnlockKeyError::Length),
            (&format!("SWMKEY-1-{}", "B".repeat(44)), UnlockKeyError::Length),
        ] {
            assert_eq!(wrong.parse::<UnlockKey>(), Err(error), "{wrong}");
        }
    }
}
