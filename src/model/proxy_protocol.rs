//! The PROXY protocol (haproxy.org, proxy-protocol.txt): who a connection's client is, said before its first byte. Bytes in
//! and out by the crate `ppp`; here is what goes into them. Not here: who says it to whom.

use std::net::{IpAddr, SocketAddr};

use ppp::PartialResult;
use ppp::v2::{self, Addresses, Command, Protocol, Version};

use super::ProxyProtocol;

/// A connection's source and destination.
pub type Addressed = (SocketAddr, SocketAddr);

/// What is sent before the first byte. `None`: a connection without a client of its own, such as a health check.
pub fn header(version: ProxyProtocol, client: Option<Addressed>) -> Vec<u8> {
    let client = client.map(|(source, destination)| alike(source, destination));
    match version {
        ProxyProtocol::V1 => match client {
            Some(client) => ppp::v1::Addresses::from(client).to_string().into_bytes(),
            None => b"PROXY UNKNOWN\r\n".to_vec(),
        },
        ProxyProtocol::V2 => {
            let (command, addresses) = match client {
                Some(client) => (Command::Proxy, Addresses::from(client)),
                None => (Command::Local, Addresses::Unspecified),
            };
            let builder = v2::Builder::with_addresses(Version::Two | command, Protocol::Stream, addresses);
            // Writing to memory; its lengths are fixed and small.
            builder.build().unwrap_or_default()
        }
    }
}

/// The bytes are no header, or one that says nothing that we understand.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a PROXY protocol header for TCP")]
pub struct NotAHeader;

/// Reads a header of version 2 at the front of `bytes`. Returns its length and whom it names, or `None` if more bytes
/// are needed.
///
/// Errors: it cannot become one, whatever follows.
pub fn read_v2(bytes: &[u8]) -> Result<Option<(usize, Option<Addressed>)>, NotAHeader> {
    let header = match v2::Header::try_from(bytes) {
        Ok(header) => header,
        Err(error) if error.is_incomplete() => return Ok(None),
        Err(_) => return Err(NotAHeader),
    };
    let client = match (header.command, header.addresses) {
        (Command::Local, _) => None,
        (Command::Proxy, Addresses::IPv4(ip)) => Some((
            SocketAddr::new(ip.source_address.into(), ip.source_port),
            SocketAddr::new(ip.destination_address.into(), ip.destination_port),
        )),
        (Command::Proxy, Addresses::IPv6(ip)) => Some((
            SocketAddr::new(ip.source_address.into(), ip.source_port),
            SocketAddr::new(ip.destination_address.into(), ip.destination_port),
        )),
        (Command::Proxy, _) => return Err(NotAHeader),
    };
    Ok(Some((header.len(), client)))
}

/// Reads a whole line of version 1, its end included. `None`: it names nobody.
///
/// Errors: it is none.
pub fn read_v1(line: &[u8]) -> Result<Option<Addressed>, NotAHeader> {
    let header = ppp::v1::Header::try_from(line).map_err(|_| NotAHeader)?;
    Ok(match header.addresses {
        ppp::v1::Addresses::Unknown => None,
        ppp::v1::Addresses::Tcp4(ip) => Some((
            SocketAddr::new(ip.source_address.into(), ip.source_port),
            SocketAddr::new(ip.destination_address.into(), ip.destination_port),
        )),
        ppp::v1::Addresses::Tcp6(ip) => Some((
            SocketAddr::new(ip.source_address.into(), ip.source_port),
            SocketAddr::new(ip.destination_address.into(), ip.destination_port),
        )),
    })
}

/// Both in one family: IPv4 where both are, else IPv6. A dual-stack listener shows IPv4 clients as mapped addresses.
fn alike(source: SocketAddr, destination: SocketAddr) -> Addressed {
    let plain = |addr: SocketAddr| SocketAddr::new(addr.ip().to_canonical(), addr.port());
    let (source, destination) = (plain(source), plain(destination));
    if source.is_ipv4() == destination.is_ipv4() {
        return (source, destination);
    }
    let wide = |addr: SocketAddr| match addr.ip() {
        IpAddr::V4(ip) => SocketAddr::new(ip.to_ipv6_mapped().into(), addr.port()),
        IpAddr::V6(_) => addr,
    };
    (wide(source), wide(destination))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn addr(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn version_1_is_a_line() {
        let line = |source: &str, destination: &str| {
            String::from_utf8(header(ProxyProtocol::V1, Some((addr(source), addr(destination))))).unwrap()
        };
        assert_eq!(
            line("203.0.113.7:5555", "10.0.0.1:80"),
            "PROXY TCP4 203.0.113.7 10.0.0.1 5555 80\r\n"
        );
        assert_eq!(
            line("[::ffff:203.0.113.7]:5555", "10.0.0.1:80"),
            "PROXY TCP4 203.0.113.7 10.0.0.1 5555 80\r\n"
        );
        assert_eq!(
            line("[2001:db8::1]:1", "[2001:db8::2]:2"),
            "PROXY TCP6 2001:db8::1 2001:db8::2 1 2\r\n"
        );
        assert!(line("[2001:db8::1]:1", "10.0.0.1:80").starts_with("PROXY TCP6 2001:db8::1 ::ffff:"));
        assert_eq!(header(ProxyProtocol::V1, None), b"PROXY UNKNOWN\r\n");
    }

    #[test]
    fn version_2_is_what_the_protocol_says() {
        let bytes = header(ProxyProtocol::V2, Some((addr("203.0.113.7:5555"), addr("10.0.0.1:80"))));
        let expected: [u8; 28] = [
            0x0d, 0x0a, 0x0d, 0x0a, 0x00, 0x0d, 0x0a, 0x51, 0x55, 0x49, 0x54, 0x0a, 0x21, 0x11, 0, 12, 203, 0, 113, 7,
            10, 0, 0, 1, 0x15, 0xb3, 0, 80,
        ];
        assert_eq!(bytes, expected);
        assert_eq!(read_v2(&header(ProxyProtocol::V2, None)), Ok(Some((16, None))));
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(source: SocketAddr, destination: SocketAddr, rest in any::<Vec<u8>>()) {
            let bytes = header(ProxyProtocol::V2, Some((source, destination)));
            for n in 0..bytes.len() {
                prop_assert_eq!(read_v2(&bytes[..n]), Ok(None));
            }
            let mut more = bytes.clone();
            more.extend(rest);
            prop_assert_eq!(read_v2(&more), Ok(Some((bytes.len(), Some(alike(source, destination))))));
        }

        #[test]
        fn no_bytes_do_harm(mut bytes in any::<Vec<u8>>(), has_signature: bool) {
            if has_signature {
                bytes.splice(0..0, header(ProxyProtocol::V2, None).into_iter().take(12));
            }
            let _ = read_v2(&bytes);
        }
    }
}
