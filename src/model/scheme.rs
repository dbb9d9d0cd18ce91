//! How a service's endpoints are spoken to. Pure.

use std::str::FromStr;

use super::InvalidValue;

/// By which version of HTTP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Scheme {
    /// HTTP/1.1, one request at a time on a connection.
    #[default]
    Http,
    /// HTTP/2 without TLS, by prior knowledge, many requests at a time on a connection.
    H2c,
}

impl Scheme {
    pub fn as_str(self) -> &'static str {
        match self {
            Scheme::Http => "http",
            Scheme::H2c => "h2c",
        }
    }
}

impl FromStr for Scheme {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Scheme, InvalidValue> {
        match text {
            "http" => Ok(Scheme::Http),
            "h2c" => Ok(Scheme::H2c),
            _ => Err(InvalidValue::new(text, "http or h2c")),
        }
    }
}
