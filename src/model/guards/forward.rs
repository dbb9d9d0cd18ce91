//! A service that is asked whether requests may pass, as declared.

use std::net::IpAddr;
use std::str::FromStr;
use std::sync::Arc;

use crate::model::InvalidValue;
use crate::model::filters::FieldName;

/// Of each request before it goes on: an answer of 2xx lets it pass, any other is the client's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForwardAuth {
    pub address: AuthAddress,
    /// The fields of the request that it is told; `None`: all.
    pub request_fields: Option<Arc<[FieldName]>>,
    /// The fields of its answer that the endpoint gets in the place of the client's.
    pub response_fields: Arc<[FieldName]>,
}

impl ForwardAuth {
    /// With every option at its default.
    pub fn new(address: AuthAddress) -> ForwardAuth {
        ForwardAuth {
            address,
            request_fields: None,
            response_fields: Arc::default(),
        }
    }
}

/// `http://auth:9091/api/verify`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuthAddress {
    service: Arc<str>,
    port: u16,
    target: Arc<str>,
}

impl AuthAddress {
    /// The service's name, as it is called from beside it.
    pub fn service(&self) -> &str {
        &self.service
    }

    /// What it is called in full if it is of the stack of `own`, a service's name: services of a stack call each other without what all their
    /// names begin with. The nearest comes first.
    pub fn names_beside(&self, own: &str) -> impl Iterator<Item = String> {
        let stacks = own.rmatch_indices('_').map(|(at, _)| &own[..at]);
        stacks.map(|stack| format!("{stack}_{}", self.service))
    }

    /// The port that its tasks listen on.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Path and query.
    pub fn target(&self) -> &str {
        &self.target
    }

    /// As it is called in the request's Host.
    pub fn authority(&self) -> String {
        match self.port {
            HTTP => self.service.to_string(),
            port => format!("{}:{port}", self.service),
        }
    }
}

impl FromStr for AuthAddress {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<AuthAddress, InvalidValue> {
        let parsed = || {
            let rest = text.strip_prefix("http://")?;
            let at = rest.find(['/', '?']).unwrap_or(rest.len());
            let (authority, target) = rest.split_at(at);
            let (service, port) = match authority.split_once(':') {
                Some((service, port)) => (service, port.parse().ok().filter(|port| *port != 0)?),
                None => (authority, HTTP),
            };
            let is_plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
            let is_name = (1..=NAME_LEN_MAX).contains(&service.len()) && service.bytes().all(is_plain);
            let is_target = |b: u8| b.is_ascii_graphic() && b != b'#' && b != b'\\';
            let is_good = is_name && service.parse::<IpAddr>().is_err() && target.bytes().all(is_target);
            let slash = if target.starts_with('/') { "" } else { "/" };
            is_good.then(|| AuthAddress {
                service: service.into(),
                port,
                target: format!("{slash}{target}").into(),
            })
        };
        parsed().ok_or_else(|| {
            InvalidValue::new(
                text,
                "http://SERVICE:PORT/PATH with the name of a service here, such as http://auth:9091/api/verify (its own scheme says whether it speaks TLS)",
            )
        })
    }
}

const HTTP: u16 = 80;
const NAME_LEN_MAX: usize = 127;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_names_a_service() {
        let of = |text: &str| {
            let address: AuthAddress = text.parse().ok()?;
            Some((address.authority(), address.port(), address.target().to_owned()))
        };
        let some = |authority: &str, port, target: &str| Some((authority.to_owned(), port, target.to_owned()));
        assert_eq!(of("http://auth"), some("auth", 80, "/"));
        assert_eq!(
            of("http://stack_auth:9091/a?b=c"),
            some("stack_auth:9091", 9091, "/a?b=c")
        );
        assert_eq!(of("http://auth?b"), some("auth", 80, "/?b"));
        for wrong in [
            "",
            "auth",
            "https://auth/",
            "http://",
            "http:///x",
            "http://10.0.0.1/",
            "http://[::1]/",
            "http://u@auth/",
            "http://auth:0/",
            "http://auth:x/",
            "http://auth:99999/",
            "http://auth/a b",
            "http://auth/a\r\nX: y",
            "http://auth/#x",
        ] {
            assert_eq!(of(wrong), None, "{wrong}");
        }
    }
}
