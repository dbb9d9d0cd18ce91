//! Names and hashes of passwords, as `htpasswd` writes them. No error says what stood there: it may be a password. Not here: whether
//! a password is the one (`proxy::auth`).

use std::fmt;
use std::sync::Arc;

use base64::Engine;
use base64::alphabet;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig, STANDARD};
use base64::engine::{DecodePaddingMode, general_purpose};

/// Those who may come in; one at least.
#[derive(Clone, PartialEq, Eq)]
pub struct Users(Arc<[User]>);

#[derive(Clone, PartialEq, Eq)]
pub struct User {
    pub name: Box<str>,
    pub hash: PasswordHash,
}

#[derive(Clone, PartialEq, Eq)]
pub enum PasswordHash {
    /// `$apr1$`: the text of the salt, and the digest in its own letters.
    Apr1 { salt: Box<str>, digest: [u8; 22] },
    /// `$2a$`, `$2b$`, `$2y$`; two to the power of `cost` rounds, `COST_MAX` at most.
    Bcrypt {
        cost: u32,
        salt: [u8; 16],
        digest: [u8; 23],
    },
    /// `{SHA}`.
    Sha1([u8; 20]),
}

/// What is wrong with users: whose, or which of them, and what was expected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WrongUsers(String);

impl fmt::Display for WrongUsers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for WrongUsers {}

/// Without hashes: what is written of a service goes to logs.
impl fmt::Debug for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:...", self.name)
    }
}

impl fmt::Debug for Users {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.iter()).finish()
    }
}

impl Users {
    /// Each entry is `name:hash`. Errors never have what is after the colon.
    pub fn of<'a>(entries: impl IntoIterator<Item = &'a str>) -> Result<Users, WrongUsers> {
        let mut users: Vec<User> = Vec::new();
        for (i, entry) in entries.into_iter().enumerate() {
            let user = User::of(entry.trim(), i + 1)?;
            if users.iter().any(|other| other.name == user.name) {
                return Err(WrongUsers(format!("user {}: expected once", user.name)));
            }
            users.push(user);
        }
        match users.is_empty() {
            true => Err(WrongUsers(
                "expected users as htpasswd writes them, name:hash".to_owned(),
            )),
            false => Ok(Users(users.into())),
        }
    }

    /// Entries between commas.
    pub fn of_text(text: &str) -> Result<Users, WrongUsers> {
        Users::of(text.split(',').filter(|entry| !entry.trim().is_empty()))
    }

    /// The same entries, but for what is no hash that is taken: that may be a password.
    pub fn without_secrets(text: &str) -> String {
        let hidden = |entry: &str| match (User::of(entry.trim(), 1), entry.split_once(':')) {
            (Ok(_), _) => entry.trim().to_owned(),
            (Err(_), Some((name, _))) => format!("{}:?", name.trim()),
            (Err(_), None) => "?".to_owned(),
        };
        let entries: Vec<String> = text.split(',').map(hidden).collect();
        entries.join(",")
    }

    pub fn iter(&self) -> impl ExactSizeIterator<Item = &User> {
        self.0.iter()
    }
}

impl User {
    fn of(entry: &str, number: usize) -> Result<User, WrongUsers> {
        let is_name = |name: &str| {
            (1..=NAME_LEN_MAX).contains(&name.len())
                && name.trim() == name
                && name.bytes().all(|b| b == b' ' || b.is_ascii_graphic())
        };
        let Some((name, hash)) = entry.split_once(':').filter(|(name, _)| is_name(name)) else {
            return Err(WrongUsers(format!(
                "user number {number}: expected name:hash as htpasswd writes it, the name in printable ASCII"
            )));
        };
        match PasswordHash::of(hash) {
            Ok(hash) => Ok(User {
                name: name.into(),
                hash,
            }),
            Err(expected) => Err(WrongUsers(format!("user {name}: {expected}"))),
        }
    }
}

impl PasswordHash {
    /// Errors: what was expected.
    fn of(text: &str) -> Result<PasswordHash, &'static str> {
        const EXPECTED: &str = "expected a hash as htpasswd writes it: bcrypt ($2y$, by htpasswd -B), apr1 ($apr1$) or {SHA}; \
                                not a plain password, crypt, or SHA-256 and SHA-512 of crypt";
        let malformed = |kind| match kind {
            "bcrypt" => "expected a whole hash of bcrypt, 60 characters",
            "apr1" => "expected a whole hash of apr1, such as $apr1$SALT$ and 22 characters",
            _ => "expected {SHA} and 28 characters",
        };
        if text.starts_with("$$") {
            return Err("expected $ once: $$ is for stack files alone, where it stands for $");
        }
        if let Some(rest) = text.strip_prefix("{SHA}") {
            let digest = STANDARD.decode(rest).ok().and_then(|bytes| bytes.try_into().ok());
            return digest.map(PasswordHash::Sha1).ok_or_else(|| malformed("sha"));
        }
        if let Some(rest) = text.strip_prefix("$apr1$") {
            let (salt, digest) = rest.split_once('$').ok_or_else(|| malformed("apr1"))?;
            let is_letter = |b: u8| b.is_ascii_alphanumeric() || b == b'.' || b == b'/';
            let digest: [u8; 22] = digest.as_bytes().try_into().map_err(|_| malformed("apr1"))?;
            return match (1..=8).contains(&salt.len()) && salt.bytes().chain(digest).all(is_letter) {
                true => Ok(PasswordHash::Apr1 {
                    salt: salt.into(),
                    digest,
                }),
                false => Err(malformed("apr1")),
            };
        }
        let bcrypt = ["$2y$", "$2a$", "$2b$"]
            .iter()
            .find_map(|begin| text.strip_prefix(begin));
        let Some(rest) = bcrypt else { return Err(EXPECTED) };
        let (cost, rest) = rest.split_once('$').ok_or_else(|| malformed("bcrypt"))?;
        let cost = match cost.len() == 2 && cost.bytes().all(|b| b.is_ascii_digit()) {
            true => cost.parse().map_err(|_| malformed("bcrypt"))?,
            false => return Err(malformed("bcrypt")),
        };
        if !(COST_MIN..=COST_MAX).contains(&cost) {
            return Err("expected a cost of bcrypt from 4 to 14: more takes seconds for each password");
        }
        let (salt, digest) = rest.split_at_checked(22).ok_or_else(|| malformed("bcrypt"))?;
        let bytes = |text: &str| BCRYPT_LETTERS.decode(text).ok();
        let salt = bytes(salt).and_then(|bytes| bytes.try_into().ok());
        let digest = bytes(digest).and_then(|bytes| bytes.try_into().ok());
        match (salt, digest) {
            (Some(salt), Some(digest)) => Ok(PasswordHash::Bcrypt { cost, salt, digest }),
            _ => Err(malformed("bcrypt")),
        }
    }

    /// Whether it is made to take long, some ten milliseconds and more.
    pub fn is_slow(&self) -> bool {
        matches!(self, PasswordHash::Bcrypt { .. })
    }

    /// What tells it from every other.
    pub fn identity(&self) -> Vec<u8> {
        match self {
            PasswordHash::Apr1 { salt, digest } => [b"a", salt.as_bytes(), b"$", digest].concat(),
            PasswordHash::Bcrypt { cost, salt, digest } => [b"b", &cost.to_be_bytes()[..], salt, digest].concat(),
            PasswordHash::Sha1(digest) => [b"s", &digest[..]].concat(),
        }
    }
}

/// Some programs leave bits in the last letter that nothing reads.
const LENIENT: GeneralPurposeConfig = general_purpose::NO_PAD
    .with_decode_allow_trailing_bits(true)
    .with_decode_padding_mode(DecodePaddingMode::RequireNone);
const BCRYPT_LETTERS: GeneralPurpose = GeneralPurpose::new(&alphabet::BCRYPT, LENIENT);

const COST_MIN: u32 = 4;
/// One check takes about a second.
const COST_MAX: u32 = 14;
const NAME_LEN_MAX: usize = 128;

#[cfg(test)]
mod tests {
    use super::*;

    /// By htpasswd 2.4.
    const GOOD: [&str; 3] = [
        "alice:$2y$04$msQ1sHWgtV4boouDqyARX.kIAqxi.71LejqhphusJ7UabiB5tFMKC",
        "bob:$apr1$THpN.lrg$iC.LvVHGuyOhmZyRJ2rZ4.",
        "carol:{SHA}2PRZAyDhNDqRW2OUFwZQqPNdaSY=",
    ];

    #[test]
    fn what_htpasswd_writes_is_read_and_nothing_else() {
        let users = Users::of_text(&format!(" {}, ", GOOD.join(" , "))).unwrap();
        let names: Vec<&str> = users.iter().map(|user| &*user.name).collect();
        assert_eq!(names, ["alice", "bob", "carol"]);
        let shown = format!("{users:?}");
        assert!(!shown.contains("msQ1") && !shown.contains("2PRZ"), "{shown}");
        for (wrong, expected) in [
            ("", "expected users as htpasswd"),
            ("hidden", "user number 1: expected name:hash"),
            (":hidden", "user number 1: expected name:hash"),
            ("dave:hidden", "user dave: expected a hash as htpasswd"),
            ("eve:yM3DEca3XbebY", "user eve: expected a hash as htpasswd"),
            ("f:$5$hidden$lIdb.hav3", "user f: expected a hash as htpasswd"),
            ("f:$1$hidden$lIdb.hav3", "user f: expected a hash as htpasswd"),
            ("f:$2x$04$hidden", "user f: expected a hash as htpasswd"),
            ("f:{SHA}hidden", "user f: expected {SHA} and"),
            (
                "f:$apr1$hiddenhidden$iC.LvVHGuyOhmZyRJ2rZ4.",
                "user f: expected a whole hash of apr1",
            ),
            ("f:$apr1$hidden", "user f: expected a whole hash of apr1"),
            ("f:$2y$04$hidden", "user f: expected a whole hash of bcrypt"),
            ("f:$2y$4$hidden", "user f: expected a whole hash of bcrypt"),
            (
                "f:$2y$17$msQ1sHWgtV4boouDqyARX.kIAqxi.71LejqhphusJ7UabiB5tFMKC",
                "user f: expected a cost of bcrypt from 4 to 14",
            ),
            (
                "f:$$2y$$04$$msQ1sHWgtV4boouDqyARX.kIAqxi.71LejqhphusJ7UabiB5tFMKC",
                "user f: expected $ once",
            ),
            (&format!("{0},{0}", GOOD[1]), "user bob: expected once"),
        ] {
            let said = Users::of_text(wrong).unwrap_err().to_string();
            assert!(said.contains(expected), "{wrong}: {said}");
            assert!(
                !said.contains("hidden") && !said.contains("yM3D") && !said.contains("msQ1"),
                "{said}"
            );
        }
    }

    #[test]
    fn what_is_no_hash_goes_nowhere() {
        let all = format!("{}, dave:plain, plain, eve:yM3DEca3XbebY", GOOD[0]);
        assert_eq!(Users::without_secrets(&all), format!("{},dave:?,?,eve:?", GOOD[0]));
    }

    #[test]
    fn hashes_are_told_apart() {
        let users = Users::of(GOOD).unwrap();
        let mut all: Vec<_> = users.iter().map(|user| user.hash.identity()).collect();
        all.sort();
        all.dedup();
        assert_eq!(all.len(), 3);
    }
}
