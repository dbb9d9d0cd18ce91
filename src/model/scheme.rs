//! How a service's endpoints are spoken to. Pure.

use std::str::FromStr;

use super::InvalidValue;

/// By which version of HTTP, and whether over TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Scheme {
    /// HTTP/1.1, one request at a time on a connection.
    #[default]
    Http,
    /// HTTP/2 without TLS, by prior knowledge, many requests at a time on a connection.
    H2c,
    /// HTTP/2 over TLS where the endpoint chooses it (ALPN), otherwise HTTP/1.1 over TLS.
    Https,
}

impl Scheme {
    pub fn as_str(self) -> &'static str {
        match self {
            Scheme::Http => "http",
            Scheme::H2c => "h2c",
            Scheme::Https => "https",
        }
    }
}

impl FromStr for Scheme {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Scheme, InvalidValue> {
        match text {
            "http" => Ok(Scheme::Http),
            "h2c" => Ok(Scheme::H2c),
            "https" => Ok(Scheme::Https),
            _ => Err(InvalidValue::new(text, "http, https or h2c")),
        }
    }
}
