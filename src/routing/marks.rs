//! What a cookie says of an endpoint: a keyed hash of who it is, which every node makes the same and which tells no address. Pure.

use std::fmt;

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use crate::model::{EndpointSpec, ServiceName, Sticky};

/// An endpoint, as clients know it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark(u128);

impl Mark {
    pub(super) fn of(sticky: &Sticky, service: &ServiceName, endpoint: &EndpointSpec) -> Mark {
        let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(sticky.key.as_bytes()) else {
            unreachable!("HMAC takes keys of any length");
        };
        let declared = endpoint.addr.to_string();
        let netns = endpoint.netns.as_ref().map(|path| path.as_os_str().as_encoded_bytes());
        let identity: [&[u8]; 2] = match &endpoint.task {
            Some(task) => [b"task", task.id.as_bytes()],
            None => [declared.as_bytes(), netns.unwrap_or_default()],
        };
        for part in [b"anynode-sticky/1", service.key().as_bytes(), identity[0], identity[1]] {
            // With its length, so that no two lists of parts read alike.
            mac.update(&(part.len() as u64).to_be_bytes());
            mac.update(part);
        }
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&mac.finalize().into_bytes()[..16]);
        Mark(u128::from_be_bytes(bytes))
    }

    /// As a cookie has it. `None`: it is none of ours.
    pub fn read(text: &[u8]) -> Option<Mark> {
        let is_ours = text.len() == 32 && text.iter().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        let text = std::str::from_utf8(text).ok().filter(|_| is_ours)?;
        u128::from_str_radix(text, 16).ok().map(Mark)
    }
}

impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_of_the_key_the_service_and_the_endpoint_and_reads_back() {
        let name = |name: &str| ServiceName::new(name).unwrap();
        let sticky = |key: &str| Sticky {
            key: key.parse().unwrap(),
            ..Sticky::default()
        };
        let endpoint: EndpointSpec = "127.0.0.1:9001".parse().unwrap();
        let mark = Mark::of(&sticky("0123456789abcdef"), &name("web"), &endpoint);
        assert_eq!(mark, Mark::of(&sticky("0123456789abcdef"), &name("Web"), &endpoint));
        assert_ne!(mark, Mark::of(&sticky("0123456789abcdeg"), &name("web"), &endpoint));
        assert_ne!(mark, Mark::of(&sticky("0123456789abcdef"), &name("web2"), &endpoint));
        let other = "127.0.0.1:9002".parse().unwrap();
        assert_ne!(mark, Mark::of(&sticky("0123456789abcdef"), &name("web"), &other));
        let text = mark.to_string();
        assert_eq!(Mark::read(text.as_bytes()), Some(mark));
        for wrong in [
            &text[1..],
            "",
            "+123456789abcdef0123456789abcdef",
            &text.replace(|c: char| c.is_ascii_digit(), "A"),
        ] {
            assert_eq!(Mark::read(wrong.as_bytes()), None, "{wrong}");
        }
    }
}
