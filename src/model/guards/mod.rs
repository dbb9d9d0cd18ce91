//! What is asked of requests before they go on to an endpoint, as declared. Pure. Not here: what is counted for it (`routing::guards`),
//! who asks (`proxy::h1`).

mod forward;
mod limits;
mod users;

use std::str::FromStr;
use std::sync::Arc;

pub use forward::{AuthAddress, ForwardAuth};
pub use limits::{BodyMost, Cap, Rate, Retries};
pub use users::{PasswordHash, User, Users, WrongUsers};

use super::InvalidValue;
use super::filters::FieldName;

/// Each where it is asked for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Guards {
    /// Who may come in, by name and password.
    pub auth: Option<Arc<BasicAuth>>,
    /// Which service says whether a request may come in.
    pub forward: Option<Arc<ForwardAuth>>,
    /// How fast each client may ask.
    pub rate: Option<Rate>,
    /// How many requests may be under way, from all and from each client.
    pub in_flight: Option<Cap>,
    pub in_flight_per_client: Option<Cap>,
    pub max_body: Option<BodyMost>,
    /// `None`: as where nothing is said.
    pub retries: Option<Retries>,
}

impl Guards {
    /// Whether something is counted for them from one request to the next.
    pub fn counts(&self) -> bool {
        self.rate.is_some() || self.in_flight.is_some() || self.in_flight_per_client.is_some()
    }

    /// `None`: nothing is asked.
    pub fn into_some(self) -> Option<Arc<Guards>> {
        (self != Guards::default()).then(|| Arc::new(self))
    }
}

/// HTTP's basic authentication (RFC 7617).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BasicAuth {
    pub users: Users,
    /// What clients are told that the password is for.
    pub realm: Realm,
    /// The field that tells the endpoint who it is. It gets no other of that name.
    pub user_field: Option<FieldName>,
    /// The endpoint does not get the password.
    pub removes_field: bool,
}

impl BasicAuth {
    /// With every option at its default.
    pub fn new(users: Users) -> BasicAuth {
        BasicAuth {
            users,
            realm: Realm("restricted".into()),
            user_field: None,
            removes_field: false,
        }
    }
}

/// The name of what is protected: it can stand between quotes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Realm(Arc<str>);

impl Realm {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Realm {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Realm, InvalidValue> {
        let is_plain = |b: u8| (b == b' ' || b.is_ascii_graphic()) && b != b'"' && b != b'\\';
        match (1..=REALM_LEN_MAX).contains(&text.len()) && text.bytes().all(is_plain) {
            true => Ok(Realm(text.into())),
            false => Err(InvalidValue::new(
                text,
                "up to 128 printable ASCII characters without quotes and backslashes",
            )),
        }
    }
}

const REALM_LEN_MAX: usize = 128;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_realm_can_stand_between_quotes() {
        assert_eq!("The shop".parse::<Realm>().unwrap().as_str(), "The shop");
        for wrong in ["", "a\"b", "a\\", "a\r\nb", "ü", &"x".repeat(129)] {
            assert!(wrong.parse::<Realm>().is_err(), "{wrong:?}");
        }
    }
}
