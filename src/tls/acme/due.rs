//! When a certificate is ordered, and when again after a failure. Pure: seconds since 1970 in, the same out.

use serde::{Deserialize, Serialize};

/// What has failed since it last went well.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failures {
    /// In a row.
    pub(super) n: u32,
    /// Not tried again before.
    pub(super) not_before: i64,
    /// When the last one was.
    pub(super) at: i64,
    /// What it was, for a person.
    pub(super) last: String,
}

impl Failures {
    /// One more of a name's. `retry_after`: seconds that the authority asks for at least. `chance`: from 0 to 1.
    pub(super) fn add(&mut self, now: i64, last: String, retry_after: Option<i64>, chance: f64) {
        self.add_within(PAUSE_MOST, (now, last), retry_after, chance);
    }

    /// One more of an authority's: it keeps all names waiting, and may be back soon.
    pub(super) fn add_of_authority(&mut self, now: i64, last: String, retry_after: Option<i64>, chance: f64) {
        self.add_within(PAUSE_OF_AUTHORITY_MOST, (now, last), retry_after, chance);
    }

    fn add_within(&mut self, most: i64, (now, last): (i64, String), retry_after: Option<i64>, chance: f64) {
        self.n = self.n.saturating_add(1);
        let asked = retry_after.unwrap_or(0).min(PAUSE_ASKED_MOST);
        let pause = pause(self.n, chance).min(most).max(asked);
        (self.at, self.not_before, self.last) = (now, now.saturating_add(pause), last);
    }

    /// One more that is begun, and came to no end if this is ever read.
    pub(super) fn add_unfinished(&mut self, now: i64) {
        self.add(now, UNFINISHED.to_owned(), None, 0.0);
    }

    pub(super) fn is_of_unfinished(&self) -> bool {
        self.last == UNFINISHED
    }

    /// Waits a little, from one to five minutes, however often it comes to that.
    pub(super) fn wait_a_little(&mut self, now: i64, last: String, chance: f64) {
        self.n = self.n.max(1);
        let pause = PAUSE_FIRST + (4.0 * PAUSE_FIRST as f64 * chance.clamp(0.0, 1.0)) as i64;
        (self.at, self.not_before, self.last) = (now, now.saturating_add(pause), last);
    }

    /// What failed while the clock was ahead keeps nobody waiting for longer than it was to, nor than any failure may.
    pub(super) fn judge_at(&mut self, now: i64) {
        if self.at > now {
            self.not_before = self.not_before.saturating_sub(self.at.saturating_sub(now));
            self.at = now;
        }
        self.not_before = self.not_before.min(now.saturating_add(PAUSE_ASKED_MOST));
    }
}

/// A minute, then three times as long each time, and up to a quarter more by chance: five attempts in the first hour, as many as
/// Let's Encrypt lets fail.
fn pause(n: u32, chance: f64) -> i64 {
    let pause = PAUSE_FIRST.saturating_mul(3_i64.saturating_pow(n.saturating_sub(1)));
    let pause = pause.min(PAUSE_MOST);
    pause + (pause as f64 / 4.0 * chance.clamp(0.0, 1.0)) as i64
}

const UNFINISHED: &str = "the order was not finished";
const PAUSE_FIRST: i64 = 60;
const PAUSE_MOST: i64 = 12 * 3600;
const PAUSE_OF_AUTHORITY_MOST: i64 = 15 * 60;
/// An authority that asks for more is asked once a week all the same.
const PAUSE_ASKED_MOST: i64 = 7 * 24 * 3600;

/// When a certificate is renewed: at two thirds of its life. One that has little of it left when it comes (an authority that dates
/// back) is not ordered again before a third of what was left.
pub(super) fn renew_at(not_before: i64, not_after: i64, ordered_at: i64) -> i64 {
    let life = not_after.saturating_sub(not_before).max(0);
    let left = not_after.saturating_sub(ordered_at).max(0);
    let earliest = ordered_at.saturating_add((left / 3).max(LEAST));
    not_before.saturating_add(life / 3 * 2 + life % 3 * 2 / 3).max(earliest)
}

const LEAST: i64 = 2;

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: i64 = 24 * 3600;

    #[test]
    fn a_certificate_is_renewed_at_two_thirds_of_its_life() {
        for (not_before, not_after, ordered_at, expected) in [
            (0, 90 * DAY, 0, 60 * DAY),
            (0, 12, 0, 8),
            // Dated back by an hour.
            (-3600, 6 * DAY, 0, 4 * DAY - 1200),
            // Nearly over when it came.
            (-90 * DAY, 30, 0, 10),
            // Over, or nonsense: not at once for ever.
            (-90 * DAY, -DAY, 0, 2),
            (10, 5, 0, 10),
            (i64::MIN, i64::MAX, 0, i64::MAX / 3),
        ] {
            assert_eq!(
                renew_at(not_before, not_after, ordered_at),
                expected,
                "{not_before} {not_after} {ordered_at}"
            );
        }
    }

    #[test]
    fn pauses_grow_and_the_authority_has_its_say() {
        let mut failures = Failures::default();
        let mut pauses = Vec::new();
        for _ in 0..9 {
            failures.add(0, "no".to_owned(), None, 0.0);
            pauses.push(failures.not_before / 60);
        }
        assert_eq!(pauses, [1, 3, 9, 27, 81, 243, 720, 720, 720]);
        failures.add_of_authority(0, "no".to_owned(), None, 1.0);
        assert_eq!((failures.n, failures.not_before), (10, 900));
        failures.add_of_authority(0, "no".to_owned(), Some(7200), 1.0);
        assert_eq!(failures.not_before, 7200);
        let mut failures = Failures::default();
        for (chance, expected) in [(0.0, 60), (1.0, 300), (0.0, 60)] {
            failures.wait_a_little(0, "no".to_owned(), chance);
            assert_eq!((failures.n, failures.not_before), (1, expected));
        }
        let mut failures = Failures::default();
        failures.add(100, "no".to_owned(), Some(3600), 1.0);
        assert_eq!(failures.not_before, 3700);
        failures.add(100, "no".to_owned(), Some(1), 1.0);
        assert_eq!(failures.not_before, 100 + 225);
        failures.add(0, "no".to_owned(), Some(i64::MAX), 0.5);
        assert_eq!(failures.not_before, 7 * DAY);
        failures.n = u32::MAX;
        failures.add(i64::MAX - 1, "no".to_owned(), None, f64::NAN);
        assert_eq!(failures.not_before, i64::MAX);
        failures.judge_at(DAY);
        assert_eq!((failures.at, failures.not_before), (DAY, DAY + 1));
        (failures.at, failures.not_before) = (100 * DAY, 100 * DAY + 60);
        failures.judge_at(DAY);
        assert_eq!((failures.at, failures.not_before), (DAY, DAY + 60));
        (failures.at, failures.not_before) = (0, 100 * DAY);
        failures.judge_at(DAY);
        assert_eq!((failures.at, failures.not_before), (0, 8 * DAY));
    }
}
