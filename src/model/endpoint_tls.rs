//! Whom the endpoints of a service are believed to be, where they speak TLS (`scheme: https`), and what came of it. Pure. Not here: the authorities' files,
//! and what judges certificates by them (`tls::Trust`).

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use rustls::pki_types::ServerName;

use super::{InvalidValue, Scheme, ServiceName, ServiceSpec};

/// How the certificates of a service's endpoints are judged.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct EndpointTls {
    /// Who must have written them; `None`: an authority that browsers believe.
    pub ca: Option<CaName>,
    /// The host that they must be for, which the endpoint is asked for too (SNI); `None`: the service's name.
    pub server_name: Option<ServerName<'static>>,
    /// Keys of which the endpoint must have one; none: any key.
    pub pins: Pins,
    pub verify: Verify,
}

/// What is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Verify {
    /// Who wrote the certificate, for which host, and until when; its key too, where keys are named.
    #[default]
    Full,
    /// The key alone, which must be one of those named.
    Pin,
    /// Nothing: whoever answers is believed.
    None,
}

impl FromStr for Verify {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Verify, InvalidValue> {
        match text {
            "full" => Ok(Verify::Full),
            "pin" => Ok(Verify::Pin),
            "none" => Ok(Verify::None),
            _ => Err(InvalidValue::new(text, "full, pin or none")),
        }
    }
}

/// The name of a file of authorities, as the node's configuration has it (`authorities`). Spelled as a service's name, and none of them.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CaName(ServiceName);

impl CaName {
    /// As the user wrote it.
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }
}

impl fmt::Display for CaName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for CaName {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<CaName, InvalidValue> {
        ServiceName::new(text).map(CaName).map_err(|_| {
            InvalidValue::new(
                text,
                "the NAME of one of the node's authorities, of at most 63 letters, digits, '-' and '_', with a letter or digit at both ends",
            )
        })
    }
}

/// A host, as it stands in certificates.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostName(pub ServerName<'static>);

impl FromStr for HostName {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<HostName, InvalidValue> {
        let name = ServerName::try_from(text.to_ascii_lowercase());
        name.map(HostName)
            .map_err(|_| InvalidValue::new(text, "one host, such as web.internal, or an IP address"))
    }
}

/// SHA-256 of public keys (SubjectPublicKeyInfo, as certificates have them).
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Pins(Vec<[u8; PIN_BYTES]>);

impl Pins {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn has(&self, digest: &[u8]) -> bool {
        self.0.iter().any(|pin| pin == digest)
    }

    /// One of them as it is written.
    pub fn text_of(digest: &[u8]) -> String {
        format!("{PIN}{}", BASE64_STANDARD.encode(digest))
    }
}

impl FromStr for Pins {
    type Err = InvalidValue;

    /// As curl's --pinnedpubkey has it.
    fn from_str(text: &str) -> Result<Pins, InvalidValue> {
        let pin = |one: &str| {
            let bytes = BASE64_STANDARD.decode(one.trim().strip_prefix(PIN)?).ok()?;
            <[u8; PIN_BYTES]>::try_from(bytes).ok()
        };
        let pins: Option<Vec<_>> = text.split(';').map(pin).collect();
        pins.map(Pins).ok_or_else(|| {
            InvalidValue::new(
                text,
                "sha256//BASE64 of a public key, as curl --pinnedpubkey has it; several are separated by ';'",
            )
        })
    }
}

/// One of the options, by its key in a services file and its label.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TlsOption {
    pub key: &'static str,
    pub label: &'static str,
}

impl EndpointTls {
    pub const CA: TlsOption = TlsOption {
        key: "endpoint_tls.ca",
        label: "anynode.endpoint-tls.ca",
    };
    pub const SERVER_NAME: TlsOption = TlsOption {
        key: "endpoint_tls.server_name",
        label: "anynode.endpoint-tls.server-name",
    };
    pub const PIN: TlsOption = TlsOption {
        key: "endpoint_tls.pin",
        label: "anynode.endpoint-tls.pin",
    };
    pub const VERIFY: TlsOption = TlsOption {
        key: "endpoint_tls.verify",
        label: "anynode.endpoint-tls.verify",
    };
    /// What is expected of whoever says any of it.
    pub const WITHOUT_TLS: &str = "expected scheme https beside it: without, endpoints are spoken to without TLS";
    pub const OPTIONS: [TlsOption; 4] = [
        EndpointTls::CA,
        EndpointTls::SERVER_NAME,
        EndpointTls::PIN,
        EndpointTls::VERIFY,
    ];

    /// Whom an endpoint of `service` at `ip` is asked to be. A service's name that is none of a host stands for nobody: then it is the
    /// address.
    pub fn server_name_for(&self, service: &ServiceName, ip: IpAddr) -> ServerName<'static> {
        let said = self.server_name.clone();
        let of_service = || ServerName::try_from(service.key().to_owned()).ok();
        said.or_else(of_service)
            .unwrap_or_else(|| ServerName::IpAddress(ip.into()))
    }

    /// The first option of those said that would promise what is not kept, and what was expected.
    pub fn at_odds(spec: &ServiceSpec, was_said: impl Fn(TlsOption) -> bool) -> Option<(TlsOption, &'static str)> {
        let tls = &spec.endpoint_tls;
        if spec.scheme != Scheme::Https {
            let said = EndpointTls::OPTIONS.into_iter().find(|option| was_said(*option))?;
            return Some((said, EndpointTls::WITHOUT_TLS));
        }
        match tls.verify {
            Verify::Pin if tls.pins.is_empty() => Some((EndpointTls::VERIFY, "expected a pin beside it")),
            Verify::None if !tls.pins.is_empty() => Some((EndpointTls::PIN, "expected verify full or pin beside it")),
            Verify::Pin | Verify::None if tls.ca.is_some() => Some((EndpointTls::CA, "expected verify full beside it")),
            Verify::Full | Verify::Pin | Verify::None => None,
        }
    }
}

/// What came of a handshake with an endpoint that is to speak TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum EndpointHandshake {
    Full,
    /// It went on with a session.
    Resumed,
    /// Its certificate is by no authority that it is judged by.
    UnknownIssuer,
    /// Its certificate is for another host.
    WrongName,
    /// Its certificate is good no more, or not yet.
    Expired,
    /// Its key is none of those named.
    WrongPin,
    /// Its certificate is not good otherwise.
    BadCertificate,
    /// It ended the handshake, or has nothing in common with us.
    Refused,
    /// It does not speak TLS.
    NotTls,
    /// It ended the connection.
    CutOff,
    TimedOut,
    /// There is nobody to judge by.
    NoAuthority,
    /// It was offered HTTP/1.1 alone, since the request needs that, and does not speak it.
    NoHttp1,
}

impl EndpointHandshake {
    pub const ALL: [EndpointHandshake; 13] = [
        EndpointHandshake::Full,
        EndpointHandshake::Resumed,
        EndpointHandshake::UnknownIssuer,
        EndpointHandshake::WrongName,
        EndpointHandshake::Expired,
        EndpointHandshake::WrongPin,
        EndpointHandshake::BadCertificate,
        EndpointHandshake::Refused,
        EndpointHandshake::NotTls,
        EndpointHandshake::CutOff,
        EndpointHandshake::TimedOut,
        EndpointHandshake::NoAuthority,
        EndpointHandshake::NoHttp1,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            EndpointHandshake::Full => "full",
            EndpointHandshake::Resumed => "resumed",
            EndpointHandshake::UnknownIssuer => "unknown_issuer",
            EndpointHandshake::WrongName => "wrong_name",
            EndpointHandshake::Expired => "expired",
            EndpointHandshake::WrongPin => "wrong_pin",
            EndpointHandshake::BadCertificate => "bad_certificate",
            EndpointHandshake::Refused => "refused",
            EndpointHandshake::NotTls => "not_tls",
            EndpointHandshake::CutOff => "cut_off",
            EndpointHandshake::TimedOut => "timed_out",
            EndpointHandshake::NoAuthority => "no_authority",
            EndpointHandshake::NoHttp1 => "no_http1",
        }
    }
}

/// What each is written with.
const PIN: &str = "sha256//";
const PIN_BYTES: usize = 32;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pins_are_curls() {
        let one = Pins::text_of(&[7; 32]);
        let other = Pins::text_of(&[8; 32]);
        let pins: Pins = format!("{one}; {other}").parse().unwrap();
        assert!(pins.has(&[7; 32]) && pins.has(&[8; 32]) && !pins.has(&[9; 32]));
        for wrong in [
            "",
            "sha256//",
            "sha256//AAAA",
            "AAAA",
            &one[8..],
            &format!("{one};"),
            &one[..one.len() - 1],
        ] {
            assert!(wrong.parse::<Pins>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn hosts_are_names_or_addresses() {
        for right in ["web", "web.internal", "my_stack_web", "192.0.2.1", "2001:db8::1"] {
            assert!(right.parse::<HostName>().is_ok(), "{right}");
        }
        for wrong in ["", "*.internal", "a b", "a.test:443", "https://a.test"] {
            assert!(wrong.parse::<HostName>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_is_not_looked_at_is_not_asked_for() {
        let mut spec = ServiceSpec::new(ServiceName::new("web").unwrap());
        spec.scheme = Scheme::Https;
        let odds = |spec: &ServiceSpec| EndpointTls::at_odds(spec, |_| true).map(|(option, _)| option.key);
        assert_eq!(odds(&spec), None);
        spec.endpoint_tls.verify = Verify::Pin;
        assert_eq!(odds(&spec), Some("endpoint_tls.verify"));
        spec.endpoint_tls.pins = Pins::text_of(&[7; 32]).parse().unwrap();
        assert_eq!(odds(&spec), None);
        spec.endpoint_tls.ca = "internal".parse().ok();
        assert_eq!(odds(&spec), Some("endpoint_tls.ca"));
        spec.endpoint_tls.verify = Verify::None;
        assert_eq!(odds(&spec), Some("endpoint_tls.pin"));
        spec.endpoint_tls.verify = Verify::Full;
        assert_eq!(odds(&spec), None);
        spec.scheme = Scheme::Http;
        assert_eq!(odds(&spec), Some("endpoint_tls.ca"));
    }
}
