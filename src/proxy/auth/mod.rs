//! Whether somebody is who a request says: passwords that were right are known again at once, others are tried on threads of their own,
//! and so many wrong ones of one client make it wait. Not here: requests (`h1`), what hashes are (`model::guards`).

mod passwords;
mod pool;

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ring::hmac;
use ring::rand::SystemRandom;
use tokio::sync::watch;

use self::pool::{Full, Pool};
use crate::model::guards::{BasicAuth, User};
use crate::routing::{Bounded, ClientKey, Pace, Paced};

/// What came of a name and a password.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Right,
    Wrong,
    /// The client has said too many wrong ones, and is to wait for so long.
    TooMany(Duration),
    /// Too many others are to be tried.
    Busy,
}

/// Of one node, for all services.
pub(super) struct Checker {
    /// Of hashes that take long on purpose; the others do not wait behind them.
    slow: Pool,
    quick: Pool,
    seen: Arc<Seen>,
}

struct Seen {
    /// What is known of passwords can be made by nobody else, and is forgotten with the process.
    key: hmac::Key,
    /// Those that were right, for the users' hashes that they were right for.
    right: Bounded<Tag, ()>,
    /// And who has said them: whoever guesses is not told by what others know.
    right_of: Bounded<(Tag, ClientKey), ()>,
    /// Those that are being tried: once each, however many wait for it.
    tried: Mutex<HashMap<Tag, watch::Receiver<Option<bool>>>>,
    wrong_of: Bounded<ClientKey, Paced>,
    began_at: Instant,
}

type Tag = [u8; 32];

impl Checker {
    /// Errors: the system has no random numbers.
    pub(super) fn new() -> std::io::Result<Checker> {
        let key = hmac::Key::generate(hmac::HMAC_SHA256, &SystemRandom::new());
        Ok(Checker {
            slow: Pool::new(),
            quick: Pool::new(),
            seen: Arc::new(Seen {
                key: key.map_err(|_| std::io::Error::other("no random numbers"))?,
                right: Bounded::new(RIGHT_MAX),
                right_of: Bounded::new(RIGHT_OF_MAX),
                tried: Mutex::default(),
                wrong_of: Bounded::new(CLIENTS_MAX),
                began_at: Instant::now(),
            }),
        })
    }

    /// A name that there is none of costs what a wrong password does. May be dropped at any time.
    pub(super) async fn check(&self, auth: &BasicAuth, name: &str, password: &[u8], client: IpAddr) -> Verdict {
        if password.len() > PASSWORD_BYTES_MAX || password.contains(&0) {
            return Verdict::Wrong;
        }
        let named = auth.users.iter().find(|user| &*user.name == name);
        let Some(user) = named.or_else(|| self.stand_in(auth, name)) else {
            return Verdict::Wrong;
        };
        let is_named = named.is_some();
        let client = ClientKey::of(client);
        let tag = self.seen.tag(user, (name, is_named), password);
        if self.seen.right_of.touch((tag, client)) {
            return Verdict::Right;
        }
        if let Err(wait) = self.seen.may_guess(client) {
            return Verdict::TooMany(wait);
        }
        if self.seen.right.touch(tag) {
            self.seen.right_of.with((tag, client), || (), |()| ());
            return Verdict::Right;
        }
        let mut answer = match self.begin(tag, user, is_named, password, client) {
            Ok(answer) => answer,
            Err(verdict) => return verdict,
        };
        let waited = tokio::time::timeout(WAIT_AT_MOST, answer.wait_for(Option::is_some)).await;
        match waited.map(|answer| answer.map(|is_right| *is_right)) {
            Ok(Ok(Some(true))) => Verdict::Right,
            Ok(Ok(Some(false))) => Verdict::Wrong,
            // Not tried after all.
            Ok(Ok(None) | Err(_)) | Err(_) => Verdict::Busy,
        }
    }

    /// Whose hash is tried for a name that there is none of: always the same for one name, as if it were one of them, at every node and
    /// after every start. By what nobody else knows, the hashes.
    fn stand_in<'a>(&self, auth: &'a BasicAuth, name: &str) -> Option<&'a User> {
        let mut known = Vec::new();
        auth.users.iter().for_each(|user| known.extend(user.hash.identity()));
        let drawn = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &known), name.as_bytes());
        let drawn = drawn
            .as_ref()
            .first_chunk()
            .map_or(0, |bytes| u64::from_be_bytes(*bytes));
        let place = drawn % auth.users.iter().len().max(1) as u64;
        auth.users.iter().nth(usize::try_from(place).unwrap_or(0))
    }

    /// Has it tried, unless it is being tried already. What is right of one who stands in is wrong.
    fn begin(
        &self,
        tag: Tag,
        user: &User,
        is_named: bool,
        password: &[u8],
        client: ClientKey,
    ) -> Result<watch::Receiver<Option<bool>>, Verdict> {
        let mut tried = self.seen.lock_tried();
        if let Some(answer) = tried.get(&tag) {
            return Ok(answer.clone());
        }
        if self.seen.right.touch(tag) {
            // Found right since it was looked for. Of one who stands in none is.
            return Ok(watch::channel(Some(true)).1);
        }
        let now = self.seen.began_at.elapsed();
        let take = |wrong: &mut Paced| wrong.take(WRONG_PACE, now);
        self.seen
            .wrong_of
            .with(client, Paced::default, take)
            .map_err(Verdict::TooMany)?;
        let (sender, answer) = watch::channel(None);
        let kept = answer.clone();
        let (seen, hash, password) = (self.seen.clone(), user.hash.clone(), password.to_vec());
        let job = move || {
            // One of them is the entry's.
            let is_awaited = sender.receiver_count() > 1;
            let is_right = is_awaited.then(|| passwords::is_of(&password, &hash) & is_named);
            if is_right == Some(true) {
                seen.right.with(tag, || (), |()| ());
                seen.right_of.with((tag, client), || (), |()| ());
            }
            if is_right != Some(false) {
                seen.forgive(client);
            }
            seen.lock_tried().remove(&tag);
            // An error means that everybody has gone.
            let _ = sender.send(is_right);
        };
        let pool = match user.hash.is_slow() {
            true => &self.slow,
            false => &self.quick,
        };
        if let Err(Full) = pool.add(self.seen.group(user), Box::new(job)) {
            self.seen.forgive(client);
            return Err(Verdict::Busy);
        }
        tried.insert(tag, kept);
        Ok(answer)
    }
}

impl Seen {
    /// What a name and a password are known by; another one once the user's hash is another, and for one that another only stands in
    /// for.
    fn tag(&self, user: &User, (name, is_named): (&str, bool), password: &[u8]) -> Tag {
        let mut context = hmac::Context::with_key(&self.key);
        for part in [
            &user.hash.identity()[..],
            &[u8::from(is_named)],
            name.as_bytes(),
            password,
        ] {
            context.update(&(part.len() as u64).to_be_bytes());
            context.update(part);
        }
        let mut tag = [0; 32];
        let signed = context.sign();
        let n = signed.as_ref().len().min(tag.len());
        tag[..n].copy_from_slice(&signed.as_ref()[..n]);
        tag
    }

    /// Whose passwords wait in one row: each user's, so that who guesses one's is in nobody else's way.
    fn group(&self, user: &User) -> u64 {
        let signed = hmac::sign(&self.key, &user.hash.identity());
        signed
            .as_ref()
            .first_chunk()
            .map_or(0, |bytes| u64::from_be_bytes(*bytes))
    }

    /// Errors: how long the client is to wait, since so many were wrong. Counts nothing.
    fn may_guess(&self, client: ClientKey) -> Result<(), Duration> {
        let now = self.began_at.elapsed();
        let look = |wrong: &Paced| wrong.clone().take(WRONG_PACE, now);
        self.wrong_of.look(&client, look).unwrap_or(Ok(()))
    }

    /// What was counted for the client was not wrong.
    fn forgive(&self, client: ClientKey) {
        self.wrong_of
            .with(client, Paced::default, |wrong| wrong.give_back(WRONG_PACE));
    }

    fn lock_tried(&self) -> MutexGuard<'_, HashMap<Tag, watch::Receiver<Option<bool>>>> {
        self.tried.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Passwords that are known again.
const RIGHT_MAX: usize = 16 * 1024;
/// And who has said them.
const RIGHT_OF_MAX: usize = 64 * 1024;
/// Clients whose wrong passwords are counted.
const CLIENTS_MAX: usize = 64 * 1024;
/// Of one client.
const WRONG_PACE: Pace = Pace {
    interval: Duration::from_secs(3),
    burst: 20,
};
/// For a password to be tried.
const WAIT_AT_MOST: Duration = Duration::from_secs(10);
/// A longer one is nobody's.
const PASSWORD_BYTES_MAX: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::guards::Users;

    const ALICE: &str = "alice:$2y$04$msQ1sHWgtV4boouDqyARX.kIAqxi.71LejqhphusJ7UabiB5tFMKC";
    const BOB: &str = "bob:$apr1$THpN.lrg$iC.LvVHGuyOhmZyRJ2rZ4.";

    fn of(users: &[&str]) -> BasicAuth {
        BasicAuth::new(Users::of(users.iter().copied()).unwrap())
    }

    #[tokio::test]
    async fn what_was_right_is_known_until_the_users_change() {
        let checker = Checker::new().unwrap();
        let (auth, client) = (of(&[ALICE, BOB]), IpAddr::from([192, 0, 2, 1]));
        let check =
            async |auth: &BasicAuth, name, password: &str| checker.check(auth, name, password.as_bytes(), client).await;
        assert_eq!(check(&auth, "alice", "builder").await, Verdict::Wrong);
        assert_eq!(check(&auth, "bob", "builder").await, Verdict::Right);
        assert_eq!(check(&auth, "alice", "secret").await, Verdict::Right);
        assert_eq!(checker.seen.right.len(), 2);
        // Nobody has the password of one who stands in for him.
        for i in 0..8 {
            for password in ["secret", "builder"] {
                let checked = checker
                    .check(&auth, &format!("nobody{i}"), password.as_bytes(), [192, 0, 2, i].into())
                    .await;
                assert_eq!(checked, Verdict::Wrong);
            }
        }
        assert_eq!(checker.seen.right.len(), 2);
        // The name that was known by this hash has another now.
        let other = of(&["alice:{SHA}2PRZAyDhNDqRW2OUFwZQqPNdaSY=", BOB]);
        assert_eq!(check(&other, "alice", "secret").await, Verdict::Wrong);
        assert_eq!(check(&other, "alice", "sha").await, Verdict::Right);
        for odd in ["a\0b".to_owned(), "x".repeat(2000)] {
            assert_eq!(check(&auth, "alice", &odd).await, Verdict::Wrong);
        }
    }

    #[tokio::test]
    async fn who_guesses_waits_and_who_is_known_does_not() {
        let checker = Checker::new().unwrap();
        let auth = of(&[BOB]);
        let guess = async |i: u32, client: &str| {
            checker
                .check(&auth, "bob", format!("guess{i}").as_bytes(), client.parse().unwrap())
                .await
        };
        let right = async |client: &str| checker.check(&auth, "bob", b"builder", client.parse().unwrap()).await;
        let mut n_tried = 0;
        let refused = loop {
            match guess(n_tried, "2001:db8::1").await {
                Verdict::Wrong => n_tried += 1,
                verdict => break verdict,
            }
        };
        assert!(matches!(refused, Verdict::TooMany(wait) if wait <= WRONG_PACE.interval));
        assert!((20..=24).contains(&n_tried), "{n_tried}");
        // Another address of the same network is the same client, and the right password is a guess as well.
        assert!(matches!(right("2001:db8::2").await, Verdict::TooMany(_)));
        assert_eq!(right("2001:db8:0:1::1").await, Verdict::Right);
        // What somebody else is known to say tells it nothing.
        assert!(matches!(right("2001:db8::2").await, Verdict::TooMany(_)));
        // And who was right is not held up by what he has guessed since.
        let mut n_wrong = 0;
        while guess(n_wrong, "2001:db8:0:1::1").await == Verdict::Wrong {
            n_wrong += 1;
        }
        assert_eq!(right("2001:db8:0:1::2").await, Verdict::Right);
    }

    #[tokio::test]
    async fn a_name_of_elsewhere_with_the_same_password_is_nobody() {
        let checker = Checker::new().unwrap();
        let hash = "{SHA}2PRZAyDhNDqRW2OUFwZQqPNdaSY=";
        let (here, there) = (of(&[&format!("ann:{hash}")]), of(&[&format!("bob:{hash}")]));
        let both = of(&[&format!("ann:{hash}"), &format!("bob:{hash}")]);
        let client = IpAddr::from([192, 0, 2, 1]);
        let check = async |auth: &BasicAuth, name| checker.check(auth, name, b"sha", client).await;
        assert_eq!(check(&both, "ann").await, Verdict::Right);
        assert_eq!(check(&here, "ann").await, Verdict::Right);
        for _ in 0..2 {
            assert_eq!(
                check(&there, "ann").await,
                Verdict::Wrong,
                "taken away, or another service's"
            );
        }
    }

    #[tokio::test]
    async fn who_guesses_ones_password_is_in_nobody_elses_way() {
        let checker = Arc::new(Checker::new().unwrap());
        let slow = ALICE.replace("$2y$04$", "$2y$12$");
        let auth = Arc::new(of(&[
            &slow,
            BOB,
            "carl:$2y$04$Y.HSY1YLkJf4MW95EnmYwuLUO1Z/u0pDbnfJa6b14CEv27l7G7./6",
        ]));
        let guesses: Vec<_> = (0..200u32)
            .map(|i| {
                let (checker, auth) = (checker.clone(), auth.clone());
                let client = IpAddr::from([192, 0, (i / 10) as u8, 1]);
                tokio::spawn(async move { checker.check(&auth, "alice", i.to_string().as_bytes(), client).await })
            })
            .collect();
        tokio::task::yield_now().await;
        let client = IpAddr::from([192, 0, 200, 1]);
        assert_eq!(checker.check(&auth, "bob", b"builder", client).await, Verdict::Right);
        assert_eq!(
            checker.check(&auth, "carl", "x".repeat(80).as_bytes(), client).await,
            Verdict::Right
        );
        assert!(guesses.iter().any(|guess| !guess.is_finished()), "none waits any more");
        guesses.iter().for_each(tokio::task::JoinHandle::abort);
    }

    #[tokio::test]
    async fn many_who_say_the_same_at_once_are_tried_once() {
        let checker = Arc::new(Checker::new().unwrap());
        let auth = Arc::new(of(&[ALICE]));
        let all: Vec<_> = (0..200)
            .map(|_| {
                let (checker, auth) = (checker.clone(), auth.clone());
                tokio::spawn(async move { checker.check(&auth, "alice", b"secret", [192, 0, 2, 1].into()).await })
            })
            .collect();
        for one in all {
            assert_eq!(one.await.unwrap(), Verdict::Right);
        }
        assert!(checker.seen.lock_tried().is_empty());
    }

    #[tokio::test]
    async fn a_full_row_is_said_at_once() {
        let checker = Arc::new(Checker::new().unwrap());
        let slow = ALICE.replace("$2y$04$", "$2y$12$");
        let auth = Arc::new(of(&[&slow]));
        let all: Vec<_> = (0..300u32)
            .map(|i| {
                let (checker, auth) = (checker.clone(), auth.clone());
                let client = IpAddr::from([192, 0, (i / 10) as u8, 1]);
                tokio::spawn(async move { checker.check(&auth, "alice", i.to_string().as_bytes(), client).await })
            })
            .collect();
        for _ in 0..300 {
            tokio::task::yield_now().await;
        }
        let n_done = all.iter().filter(|one| one.is_finished()).count();
        assert!(n_done >= 300 - 64 - 8, "{n_done}");
        for one in all {
            match one.is_finished() {
                true => assert_ne!(one.await.unwrap(), Verdict::Right),
                // Nobody waits for those any more, so that they are not tried.
                false => one.abort(),
            }
        }
    }
}
