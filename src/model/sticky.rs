//! Cookies that keep a client at its endpoint, as declared. Pure. Not here: what they say (`routing::marks`).

use std::str::FromStr;
use std::sync::Arc;

use sha2::{Digest, Sha256};

use super::balance::is_token;
use super::{InvalidValue, ServiceName};

/// That clients get a cookie, and which.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sticky {
    pub cookie: CookieName,
    pub secure: bool,
    pub http_only: bool,
    pub same_site: Option<SameSite>,
    /// What makes the cookie's values of who the endpoints are: the same on all nodes, and known to no client.
    pub key: StickyKey,
}

impl Default for Sticky {
    fn default() -> Sticky {
        Sticky {
            cookie: CookieName(Arc::default()),
            secure: false,
            http_only: true,
            same_site: None,
            key: StickyKey(Arc::default()),
        }
    }
}

impl Sticky {
    /// The cookie of that service, if none was named.
    pub fn settle_name(&mut self, service: &ServiceName) {
        if self.cookie.0.is_empty() {
            self.cookie = CookieName::of_service(service);
        }
    }

    /// What browsers would drop. Errors: what was expected.
    pub fn check(&self) -> Result<(), &'static str> {
        match self.same_site {
            Some(SameSite::None) if !self.secure => {
                Err("expected secure beside it: browsers take no such cookie without")
            }
            _ => Ok(()),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CookieName(Arc<str>);

impl CookieName {
    /// Where none is said: another for each service, since cookies of one host know neither paths nor ports of services.
    pub fn of_service(service: &ServiceName) -> CookieName {
        let digest = Sha256::digest(service.key().as_bytes());
        let begin: String = digest.iter().take(4).map(|byte| format!("{byte:02x}")).collect();
        CookieName(format!("anynode-{begin}").into())
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for CookieName {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<CookieName, InvalidValue> {
        match is_token(text) {
            true => Ok(CookieName(text.into())),
            false => Err(InvalidValue::new(text, "a cookie's name, such as session-at")),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SameSite {
    None,
    Lax,
    Strict,
}

impl SameSite {
    pub fn as_str(self) -> &'static str {
        match self {
            SameSite::None => "None",
            SameSite::Lax => "Lax",
            SameSite::Strict => "Strict",
        }
    }
}

impl FromStr for SameSite {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<SameSite, InvalidValue> {
        match text {
            "none" => Ok(SameSite::None),
            "lax" => Ok(SameSite::Lax),
            "strict" => Ok(SameSite::Strict),
            _ => Err(InvalidValue::new(text, "none, lax or strict")),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StickyKey(Arc<str>);

impl StickyKey {
    /// Of a service of a cluster: its id. What it makes a value of is a task's id, which is drawn at random and no client's to know.
    pub fn of_service(id: &str) -> StickyKey {
        StickyKey(id.into())
    }

    pub fn as_bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

impl FromStr for StickyKey {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<StickyKey, InvalidValue> {
        match text.len() {
            16.. => Ok(StickyKey(text.into())),
            // It is a secret, if a short one.
            _ => Err(InvalidValue::new("...", "16 characters at least, drawn at random")),
        }
    }
}
