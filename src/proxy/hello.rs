//! What a client of TLS says first (RFC 8446 4.1.2, RFC 6066 3), read without taking part: the name that it asks for. Looser than rustls,
//! since whoever it is passed through to may be of another age. Pure. Not here: the socket (`streams`), TLS that ends here (`sealed`).

/// What has come of a connection so far.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Said {
    Hello(Hello),
    /// It may become one, with more bytes.
    Unfinished,
    /// It is none, whatever follows.
    Other,
}

/// A client's hello.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Hello {
    /// In lower case, without a dot at the end. `None`: it says none, or none that is a host's.
    pub(super) name: Option<Box<str>>,
    /// It offers the protocol by which an authority asks for a challenge's certificate, and no other (RFC 8737).
    pub(super) asks_for_challenge: bool,
}

/// Reads what has come from the first byte on. Costs its length.
pub(super) fn read(bytes: &[u8]) -> Said {
    // Most have one record. The others are put together, as far as they are there.
    let mut message = Vec::new();
    let mut rest = Some(bytes);
    loop {
        let Some(bytes) = rest.filter(|bytes| !bytes.is_empty()) else {
            return Said::Unfinished;
        };
        let Some(record) = Record::of(bytes) else {
            return Said::Other;
        };
        message.extend_from_slice(record.body);
        match message.first() {
            None | Some(&CLIENT_HELLO) => {}
            Some(_) => return Said::Other,
        }
        if let Some([_, high, middle, low]) = message.first_chunk::<4>() {
            let length = usize::from(*high) << 16 | usize::from(*middle) << 8 | usize::from(*low);
            if length > MESSAGE_MOST {
                return Said::Other;
            }
            if let Some(body) = message.get(4..4 + length) {
                return parse(body).map_or(Said::Other, Said::Hello);
            }
        }
        rest = record.after;
    }
}

/// A record of TLS's own, as much of it as is there.
struct Record<'a> {
    body: &'a [u8],
    /// What follows it; `None`: it is not whole.
    after: Option<&'a [u8]>,
}

impl<'a> Record<'a> {
    /// `None`: the bytes begin with none.
    fn of(bytes: &'a [u8]) -> Option<Record<'a>> {
        let mut bytes_of = bytes.iter().copied();
        let may_be = |byte: Option<u8>, expected: u8| byte.is_none_or(|byte| byte == expected);
        // Of the version the second byte has been whatever it likes.
        if !may_be(bytes_of.next(), HANDSHAKE) || !may_be(bytes_of.next(), MAJOR_VERSION) {
            return None;
        }
        let Some(([_, _, _, high, low], rest)) = bytes.split_first_chunk::<5>() else {
            return Some(Record { body: &[], after: None });
        };
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        if length == 0 || length > RECORD_MOST {
            return None;
        }
        Some(match rest.split_at_checked(length) {
            Some((body, after)) => Record {
                body,
                after: Some(after),
            },
            None => Record {
                body: rest,
                after: None,
            },
        })
    }
}

/// `None`: it is not as a hello is.
fn parse(body: &[u8]) -> Option<Hello> {
    let mut hello = Reader(body);
    hello.take(VERSION_AND_RANDOM)?;
    hello.short()?; // The session.
    hello.long()?; // Ciphers.
    hello.short()?; // Compressions.
    let mut found = None;
    let mut asks_for_challenge = false;
    // The oldest have no extensions.
    if !hello.0.is_empty() {
        let mut extensions = Reader(hello.long()?);
        while !extensions.0.is_empty() {
            let kind = extensions.take(2)?;
            let extension = extensions.long()?;
            if kind == SERVER_NAME {
                // Two could be read in two ways.
                match found {
                    None => found = Some(server_name(extension)?),
                    Some(_) => return None,
                }
            }
            if kind == PROTOCOLS {
                asks_for_challenge = extension == ACME_TLS_ALONE;
            }
        }
    }
    Some(Hello {
        name: found.and_then(host_of),
        asks_for_challenge,
    })
}

/// The first of them that is a host's; there are no other kinds.
fn server_name(extension: &[u8]) -> Option<&[u8]> {
    let mut names = Reader(Reader(extension).long()?);
    loop {
        let kind = names.take(1)?;
        let name = names.long()?;
        if kind == HOST_NAME {
            return Some(name);
        }
    }
}

fn host_of(name: &[u8]) -> Option<Box<str>> {
    let name = name.strip_suffix(b".").unwrap_or(name);
    let is_of_host = |b: &u8| b.is_ascii_alphanumeric() || b"-_.".contains(b);
    if name.is_empty() || name.len() > NAME_MOST || !name.iter().all(is_of_host) {
        return None;
    }
    Some(std::str::from_utf8(name).ok()?.to_ascii_lowercase().into())
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(n)?;
        self.0 = rest;
        Some(taken)
    }

    /// What its length in one byte stands before.
    fn short(&mut self) -> Option<&'a [u8]> {
        let length = self.take(1)?[0];
        self.take(length.into())
    }

    /// The same in two bytes.
    fn long(&mut self) -> Option<&'a [u8]> {
        let length = self.take(2)?.try_into().ok()?;
        self.take(u16::from_be_bytes(length).into())
    }
}

const HANDSHAKE: u8 = 22;
const MAJOR_VERSION: u8 = 3;
const CLIENT_HELLO: u8 = 1;
const VERSION_AND_RANDOM: usize = 2 + 32;
const SERVER_NAME: &[u8] = &[0, 0];
const HOST_NAME: &[u8] = &[0];
/// RFC 7301.
const PROTOCOLS: &[u8] = &[0, 16];
/// A list, with its length, of one, with its own.
const ACME_TLS_ALONE: &[u8] = b"\x00\x0b\x0aacme-tls/1";
const RECORD_MOST: usize = 16 * 1024;
/// More than any client says, keys of tomorrow and tickets included.
const MESSAGE_MOST: usize = 30 * 1024;
const NAME_MOST: usize = 253;
/// No hello that is read is longer, in as many records as it may be: one that is not whole by then is none.
pub(super) const BYTES_MOST: usize = 32 * 1024;

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;
    use crate::tls::ACME_TLS;

    /// What rustls' client begins with.
    fn hello(name: &str) -> Vec<u8> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(rustls::RootCertStore::empty())
            .with_no_client_auth();
        let name = name.to_owned().try_into().unwrap();
        let mut client = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
        let mut bytes = Vec::new();
        client.write_tls(&mut bytes).unwrap();
        bytes
    }

    fn named(name: Option<&str>) -> Said {
        Said::Hello(Hello {
            name: name.map(Into::into),
            asks_for_challenge: false,
        })
    }

    fn protocols(names: &[&[u8]]) -> Vec<u8> {
        let list: Vec<u8> = names
            .iter()
            .flat_map(|name| [&[name.len() as u8], *name].concat())
            .collect();
        let length = list.len() as u8;
        [&[0, 16, 0, length + 2, 0, length], &list[..]].concat()
    }

    #[test]
    fn an_authority_is_known_by_the_one_protocol_that_it_offers() {
        let asks = |extensions: &[u8]| match read(&with_extensions(extensions)) {
            Said::Hello(hello) => hello.asks_for_challenge,
            other => panic!("{other:?}"),
        };
        let alone = protocols(&[ACME_TLS]);
        assert!(asks(&alone) && asks(&[sni(b"a.test"), alone.clone()].concat()));
        for other in [
            protocols(&[]),
            protocols(&[b"h2"]),
            protocols(&[ACME_TLS, b"h2"]),
            protocols(&[b"h2", ACME_TLS]),
            protocols(&[b"acme-tls/2"]),
            vec![0, 16, 0, 1, 0],
            vec![],
        ] {
            assert!(!asks(&other), "{other:?}");
        }
    }

    /// The same message in records of `n` bytes.
    fn in_records(hello: &[u8], n: usize) -> Vec<u8> {
        let pieces = hello[5..].chunks(n);
        pieces
            .flat_map(|piece| [&[22, 3, 1], &(piece.len() as u16).to_be_bytes()[..], piece].concat())
            .collect()
    }

    fn with_extensions(extensions: &[u8]) -> Vec<u8> {
        let mut body = vec![3, 3];
        body.extend([7; 32]);
        body.extend([0, 0, 2, 0x13, 1, 1, 0]);
        body.extend((extensions.len() as u16).to_be_bytes());
        body.extend(extensions);
        let mut bytes = vec![22, 3, 1];
        bytes.extend((body.len() as u16 + 4).to_be_bytes());
        bytes.extend([1, 0]);
        bytes.extend((body.len() as u16).to_be_bytes());
        bytes.extend(body);
        bytes
    }

    fn sni(name: &[u8]) -> Vec<u8> {
        let length = name.len() as u8;
        [&[0, 0, 0, length + 5, 0, length + 3, 0, 0, length], name].concat()
    }

    #[test]
    fn a_name_is_read_in_whatever_pieces_it_comes() {
        let whole = hello("Db.Example.Test");
        for bytes in [whole.clone(), in_records(&whole, 1), in_records(&whole, 100)] {
            assert_eq!(read(&bytes), named(Some("db.example.test")));
            for cut in 0..bytes.len() {
                assert_eq!(read(&bytes[..cut]), Said::Unfinished, "{cut}");
            }
            let more = [&bytes[..], b"more"].concat();
            assert_eq!(read(&more), named(Some("db.example.test")));
        }
        assert_eq!(read(&hello("192.0.2.1")), named(None));
    }

    #[test]
    fn what_is_no_hello() {
        for (bytes, expected) in [
            (&b"GET / HTTP/1.1\r\n"[..], Said::Other),
            (b"\x16\x02", Said::Other),
            (b"\x16", Said::Unfinished),
            (b"", Said::Unfinished),
            (b"\x16\x03\x01\0\0", Said::Other),
            (b"\x16\x03\x01\x40\x01", Said::Other),
            (b"\x16\x03\x01\0\x10\x02", Said::Other),
            (b"\x16\x03\x01\0\x10\x01\x01", Said::Unfinished),
            (b"\x16\x03\x01\0\x10\x01\x01\0\0", Said::Other),
            (b"\x16\x03\x01\0\x01\x01\x17\x03\x03\0\x01", Said::Other),
            (b"\x16\x03\x01\0\x05\x01\0\0\x01\x03", Said::Other),
            (b"SSH-2.0-x\r\n", Said::Other),
        ] {
            assert_eq!(read(bytes), expected, "{bytes:?}");
        }
        for (extensions, expected) in [
            (vec![], named(None)),
            (sni(b"a.test."), named(Some("a.test"))),
            (sni(b"a test"), named(None)),
            (sni("\u{e4}.test".as_bytes()), named(None)),
            (sni(b""), named(None)),
            ([sni(b"a.test"), sni(b"b.test")].concat(), Said::Other),
            ([vec![0, 16, 0, 1, 0], sni(b"a.test")].concat(), named(Some("a.test"))),
            (vec![0, 0, 0, 9, 0, 7, 0, 0, 9], Said::Other),
            (vec![0, 0, 0], Said::Other),
        ] {
            assert_eq!(read(&with_extensions(&extensions)), expected, "{extensions:?}");
        }
        // As the oldest have it.
        let old = [
            &b"\x16\x03\x01\0\x2c\x01\0\0\x28\x03\x01"[..],
            &[9; 32],
            &[0, 0, 2, 0, 5, 0],
        ]
        .concat();
        let mut old = old;
        old[4] = (old.len() - 5) as u8;
        old[8] = (old.len() - 9) as u8;
        assert_eq!(read(&old), named(None));
    }

    proptest! {
        /// Whatever comes: no panic, and what was said once is not taken back.
        #[test]
        fn more_bytes_finish_and_never_change_it(
            at in 0..300_usize,
            with in any::<u8>(),
            n in 1..400_usize,
        ) {
            let mut bytes = in_records(&hello("a.test"), n);
            if let Some(byte) = bytes.get_mut(at) {
                *byte = with;
            }
            let mut said = Said::Unfinished;
            for end in 0..=bytes.len() {
                let now = read(&bytes[..end]);
                prop_assert!(said == Said::Unfinished || said == now);
                said = now;
            }
        }

        #[test]
        fn no_bytes_are_too_strange(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = read(&bytes);
            let _ = read(&with_extensions(&bytes));
        }
    }
}
