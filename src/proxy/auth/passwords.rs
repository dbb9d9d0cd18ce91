//! Whether a password is the one that a hash was made of. Pure, and slow on purpose: not for a worker. Digests are compared in constant
//! time.

use md5::{Digest, Md5};
use ring::digest;
use subtle::ConstantTimeEq;

use crate::model::guards::PasswordHash;

/// `password`: as it came; longer than bcrypt takes counts as far as it does, as everywhere.
pub(super) fn is_of(password: &[u8], hash: &PasswordHash) -> bool {
    match hash {
        PasswordHash::Apr1 { salt, digest } => apr1(password, salt.as_bytes()).ct_eq(digest).into(),
        PasswordHash::Bcrypt { cost, salt, digest } => {
            // Its text ends in a zero.
            let text: Vec<u8> = password.iter().copied().chain([0]).take(BCRYPT_BYTES_MAX).collect();
            let made = bcrypt::bcrypt(*cost, *salt, &text);
            made[..digest.len()].ct_eq(digest).into()
        }
        PasswordHash::Sha1(expected) => {
            let made = digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, password);
            made.as_ref().ct_eq(expected).into()
        }
    }
}

/// Apache's variant of crypt's MD5, in its own letters.
fn apr1(password: &[u8], salt: &[u8]) -> [u8; 22] {
    let mut mixed = Md5::digest([password, salt, password].concat());
    let mut begin = [password, b"$apr1$", salt].concat();
    let mut left = password.len();
    while left > 0 {
        let n = left.min(mixed.len());
        begin.extend_from_slice(&mixed[..n]);
        left -= n;
    }
    let mut bits = password.len();
    while bits > 0 {
        match bits & 1 {
            1 => begin.push(0),
            _ => begin.extend(password.first()),
        }
        bits >>= 1;
    }
    mixed = Md5::digest(&begin);
    for round in 0..1000 {
        let mut hasher = Md5::new();
        let is_odd = round % 2 == 1;
        hasher.update(if is_odd { password } else { &mixed[..] });
        if round % 3 != 0 {
            hasher.update(salt);
        }
        if round % 7 != 0 {
            hasher.update(password);
        }
        hasher.update(if is_odd { &mixed[..] } else { password });
        mixed = hasher.finalize();
    }
    let mut out = [0; 22];
    let mut at = 0;
    let mut push = |mut value: u32, n: usize| {
        for _ in 0..n {
            out[at] = LETTERS[(value & 63) as usize];
            value >>= 6;
            at += 1;
        }
    };
    let byte = |i: usize| u32::from(mixed[i]);
    for (a, b, c) in [(0, 6, 12), (1, 7, 13), (2, 8, 14), (3, 9, 15), (4, 10, 5)] {
        push(byte(a) << 16 | byte(b) << 8 | byte(c), 4);
    }
    push(byte(11), 2);
    out
}

const LETTERS: &[u8; 64] = b"./0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
const BCRYPT_BYTES_MAX: usize = 72;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::guards::Users;

    /// What htpasswd 2.4 and openssl 3 made of passwords.
    #[test]
    fn passwords_are_told_by_hashes_of_other_programs() {
        for (password, hash) in [
            ("secret", "$2y$04$msQ1sHWgtV4boouDqyARX.kIAqxi.71LejqhphusJ7UabiB5tFMKC"),
            ("builder", "$apr1$THpN.lrg$iC.LvVHGuyOhmZyRJ2rZ4."),
            ("sha", "{SHA}2PRZAyDhNDqRW2OUFwZQqPNdaSY="),
            ("U*U", "$2a$05$CCCCCCCCCCCCCCCCCCCCC.E5YPO9kmyuRGyh0XouQYb4YMJKvyOeW"),
            ("", "$2a$05$CCCCCCCCCCCCCCCCCCCCC.7uG0VCzI2bS7j6ymqJi9CdcdxiRTWNy"),
            ("test", "$apr1$H6uskkkW$IgXLP6ewTrSuBkTrqE8wj/"),
            ("", "$apr1$salt1234$5H34QiH40LY95k4Ru.Rsw0"),
            ("a", "$apr1$salt1234$ZuKinz/596mYPQAbttKPD1"),
            ("exactly16chars!!", "$apr1$salt1234$OxvGDCtg/swfCTjAUgeOG0"),
            (
                "a longer password than sixteen and thirty-two bytes",
                "$apr1$salt1234$kZdzSoyoioxJlOeT2D5IP0",
            ),
            (
                &"x".repeat(80),
                "$2y$04$Y.HSY1YLkJf4MW95EnmYwuLUO1Z/u0pDbnfJa6b14CEv27l7G7./6",
            ),
        ] {
            let users = Users::of([&*format!("u:{hash}")]).unwrap();
            let hash = &users.iter().next().unwrap().hash;
            assert!(is_of(password.as_bytes(), hash), "{password}");
            for other in ["no", "secret ", "secre", &"s".repeat(100)] {
                assert!(!is_of(other.as_bytes(), hash), "{other} for {password}");
            }
        }
    }
}
