//! The keys by which somebody at a program's terminal goes and leaves it running, as Docker has them: `ctrl-p,ctrl-q` unless others are
//! named. Pure.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::api::wire::ApiError;

/// One after the other.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct DetachKeys(Vec<u8>);

impl DetachKeys {
    /// Errors: a key that there is none of.
    pub(super) fn read(text: &str) -> Result<DetachKeys, ApiError> {
        if text.is_empty() {
            return Ok(DetachKeys::default());
        }
        let keys: Option<Vec<u8>> = text.split(',').map(key).collect();
        let wrong = || ApiError::internal(format!("Invalid escape keys ({text}) provided"));
        keys.map(DetachKeys).ok_or_else(wrong)
    }

    /// As Docker shows them.
    pub(super) fn said(&self) -> String {
        STANDARD.encode(&self.0)
    }

    pub(super) fn listen(&self) -> Listening {
        let keys = if self.0.is_empty() { &USUAL[..] } else { &self.0 };
        Listening {
            keys: keys.to_vec(),
            n_heard: 0,
        }
    }
}

/// A letter as it is, or one with Ctrl.
fn key(text: &str) -> Option<u8> {
    let with_ctrl = text.strip_prefix("ctrl-");
    match (text.as_bytes(), with_ctrl.map(str::as_bytes)) {
        ([letter], _) => Some(*letter),
        (b"DEL", _) => Some(127),
        (_, Some([letter @ b'a'..=b'z'])) => Some(letter - b'a' + 1),
        (_, Some(b"@")) => Some(0),
        (_, Some(b"[")) => Some(27),
        (_, Some(b"\\")) => Some(28),
        (_, Some(b"]")) => Some(29),
        (_, Some(b"^")) => Some(30),
        (_, Some(b"_")) => Some(31),
        _ => None,
    }
}

/// Waits for the keys in what is typed.
pub(super) struct Listening {
    keys: Vec<u8>,
    /// So many of them are held back, until it is known what they are part of.
    n_heard: usize,
}

impl Listening {
    /// Adds what is for the program. `true`: all of the keys came, and what comes after them is nobody's.
    pub(super) fn hear(&mut self, bytes: &[u8], passed: &mut Vec<u8>) -> bool {
        for byte in bytes {
            if self.keys.get(self.n_heard) == Some(byte) {
                self.n_heard += 1;
                if self.n_heard == self.keys.len() {
                    return true;
                }
                continue;
            }
            // Of what was held back the end may be the keys' beginning.
            let mut held: Vec<u8> = self.keys[..self.n_heard].to_vec();
            held.push(*byte);
            let is_beginning = |n: &usize| self.keys.starts_with(&held[held.len() - n..]);
            self.n_heard = (0..held.len()).rev().find(is_beginning).unwrap_or(0);
            passed.extend_from_slice(&held[..held.len() - self.n_heard]);
        }
        false
    }
}

/// Ctrl-P, Ctrl-Q.
const USUAL: [u8; 2] = [16, 17];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_as_docker_writes_them() {
        for (text, keys) in [
            ("", &[][..]),
            ("ctrl-p,ctrl-q", &[16, 17]),
            ("a", b"a"),
            (
                "ctrl-a,b,ctrl-@,ctrl-[,ctrl-\\,ctrl-],ctrl-^,ctrl-_,DEL",
                &[1, b'b', 0, 27, 28, 29, 30, 31, 127],
            ),
        ] {
            assert_eq!(DetachKeys::read(text).unwrap().0, keys, "{text}");
        }
        for wrong in ["ctrl-", "ctrl-A", "ab", "a,", "ctrl-p ctrl-q"] {
            let error = DetachKeys::read(wrong).unwrap_err().message;
            assert_eq!(error, format!("Invalid escape keys ({wrong}) provided"));
        }
        assert_eq!(DetachKeys::read("ctrl-p,ctrl-q").unwrap().said(), "EBE=");
    }

    #[test]
    fn they_are_heard_however_they_come() {
        let heard = |keys: &str, parts: &[&str]| {
            let mut listening = DetachKeys::read(keys).unwrap().listen();
            let mut passed = Vec::new();
            let is_over = parts.iter().any(|part| listening.hear(part.as_bytes(), &mut passed));
            (String::from_utf8(passed).unwrap(), is_over)
        };
        for (keys, parts, passed, is_over) in [
            ("", &["abc"][..], "abc", false),
            ("", &["a\x10\x11b"], "a", true),
            ("", &["a\x10", "\x11"], "a", true),
            ("", &["\x10", "a"], "\x10a", false),
            ("", &["\x10\x10\x11"], "\x10", true),
            ("", &["\x10"], "", false),
            ("", &["\x11\x10x"], "\x11\x10x", false),
            ("x", &["abx"], "ab", true),
            ("a,a,b", &["aa", "ab"], "a", true),
            ("a,b,a,c", &["abab", "ac"], "ab", true),
        ] {
            assert_eq!(heard(keys, parts), (passed.to_owned(), is_over), "{keys:?} {parts:?}");
        }
    }
}
