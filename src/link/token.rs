//! A secret that is shared by a file: what lets a node join a cluster, or a reader see what the admin server shows.

use std::collections::BTreeSet;
use std::io::{self, Read};
use std::path::Path;

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use subtle::ConstantTimeEq;

use super::wire::{from_hex, to_hex};

/// What is proven to be known, and never sent by the link.
#[derive(Clone)]
pub struct Token(String);

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token")
    }
}

/// Why there is no token.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    #[error("{key} = {path}: expected a file with a token")]
    File {
        key: &'static str,
        path: String,
        #[source]
        error: io::Error,
    },
    #[error(
        "{key} = {path}: the token has {found} characters: expected at least 32 hexadecimal digits, or 22 \
         characters of base64, drawn at random"
    )]
    Short {
        key: &'static str,
        path: String,
        found: usize,
    },
}

/// What a token is worth if all its characters were drawn at random.
const BITS_LEAST: f64 = 128.0;
/// One that is so long is taken, however little it is worth.
const LENGTH_TAKEN: usize = 32;
/// Of 32 characters that were drawn at random, fewer are different once in a million times.
const DIFFERENT_LEAST: usize = 8;

impl Token {
    /// Reads the token from the file that `key` names; space around it does not count.
    pub fn read(key: &'static str, path: &Path) -> Result<Token, TokenError> {
        let shown = || path.display().to_string();
        let text = read_bounded(path).map_err(|error| TokenError::File {
            key,
            path: shown(),
            error,
        })?;
        let token = Token(text.trim().to_owned());
        match token.0.chars().count() {
            found @ ..LENGTH_TAKEN if token.weakness().is_some() => Err(TokenError::Short {
                key,
                path: shown(),
                found,
            }),
            _ => Ok(token),
        }
    }

    /// Whether `said` is the token. In constant time, but for its length.
    pub fn is(&self, said: &str) -> bool {
        self.0.as_bytes().ct_eq(said.trim().as_bytes()).into()
    }

    /// As it is sent by whoever is to be let in.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// What makes it worth less than 128 bits, if it is. Whoever hears a proof of it could find it by trying.
    pub fn weakness(&self) -> Option<String> {
        let different: BTreeSet<char> = self.0.chars().collect();
        if different.len() < DIFFERENT_LEAST {
            return Some(format!(
                "the token has {} different characters: expected 128 bits drawn at random",
                different.len()
            ));
        }
        let bits = self.bits();
        (bits < BITS_LEAST).then(|| {
            format!(
                "the token has {} characters of that kind, {bits:.0} bits at most: expected 128 bits drawn at random, such \
                 as 32 hexadecimal digits",
                self.0.chars().count()
            )
        })
    }

    /// By its length and the kinds of characters in it.
    fn bits(&self) -> f64 {
        let has = |is: fn(&char) -> bool| self.0.chars().any(|c| is(&c));
        let is_hex = self.0.chars().all(|c| c.is_ascii_hexdigit());
        let kinds = match is_hex && has(char::is_ascii_alphabetic) {
            true => 16.0,
            false => {
                let digits = f64::from(u8::from(has(char::is_ascii_digit)) * 10);
                let small = f64::from(u8::from(has(char::is_ascii_lowercase)) * 26);
                let large = f64::from(u8::from(has(char::is_ascii_uppercase)) * 26);
                let others = f64::from(u8::from(has(|c| !c.is_ascii_alphanumeric())) * 2);
                digits + small + large + others
            }
        };
        // An empty token has no kind.
        self.0.chars().count() as f64 * f64::max(kinds, 1.0).log2()
    }

    /// What proves to know this token within one TLS session, as `side` and about `what`.
    fn proof(&self, side: &str, session: &[u8], what: &[&str]) -> Hmac<Sha256> {
        let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(self.0.as_bytes()) else {
            unreachable!("HMAC takes keys of any length");
        };
        for part in [side.as_bytes(), session]
            .into_iter()
            .chain(what.iter().map(|part| part.as_bytes()))
        {
            // With its length, so that no two lists of parts read alike.
            mac.update(&(part.len() as u64).to_be_bytes());
            mac.update(part);
        }
        mac
    }

    /// What proves it: of no use within another session, by another side or about anything else.
    pub fn proves(&self, side: &str, session: &[u8], what: &[&str]) -> String {
        to_hex(&self.proof(side, session, what).finalize().into_bytes())
    }

    /// Whether `proof` is what `proves` makes. In constant time.
    pub fn is_proven(&self, side: &str, session: &[u8], what: &[&str], proof: &str) -> bool {
        from_hex(proof).is_some_and(|proof| self.proof(side, session, what).verify_slice(&proof).is_ok())
    }
}

fn read_bounded(path: &Path) -> io::Result<String> {
    let (mut text, file) = (String::new(), std::fs::File::open(path)?);
    match file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text)? as u64 > FILE_BYTES_MAX {
        true => Err(io::Error::other(format!("it is longer than {FILE_BYTES_MAX} bytes"))),
        false => Ok(text),
    }
}

const FILE_BYTES_MAX: u64 = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_worth_what_its_length_and_kinds_of_characters_say() {
        for (text, is_weak) in [
            ("0123456789abcdef0123456789abcdef", false),
            ("9f86d081884c7d659a2feaa0c55ad015", false),
            // `openssl rand -base64 16`, without its filling too.
            ("n4bQgYhMfWWaL+qgxVrQFQ==", false),
            ("n4bQgYhMfWWaL+qgxVrQFQ", false),
            ("9f86d081884c7d659a2feaa0c55ad01", true),
            ("n4bQgYhMfWWaL-qgxVrQ", true),
            ("01234567890123456789012345678901", true),
            ("password", true),
            ("", true),
            (&"x".repeat(64), true),
            (&"ab".repeat(32), true),
        ] {
            let weakness = Token(text.to_owned()).weakness();
            assert_eq!(weakness.is_some(), is_weak, "{text}: {weakness:?}");
        }
    }

    #[test]
    fn a_file_that_never_ends_is_not_read_to_its_end() {
        let error = Token::read("admin.token_file", Path::new("/dev/zero")).unwrap_err();
        assert_eq!(
            error.to_string(),
            "admin.token_file = /dev/zero: expected a file with a token"
        );
    }
}
