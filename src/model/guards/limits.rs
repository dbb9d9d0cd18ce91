//! How fast requests may come, and how many may be under way, as declared.

use std::str::FromStr;
use std::time::Duration;

use crate::model::{InvalidValue, parse_duration};

/// How fast requests of one client may come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// Between two of a steady row; never zero.
    pub interval: Duration,
    /// So many may come at once; 1 at least.
    pub burst: u32,
}

impl Rate {
    /// `average` requests in each `period`, and `burst` at once. `None`: that is none, or none at all.
    pub fn new(average: u32, period: Duration, burst: u32) -> Option<Rate> {
        let interval = period.checked_div(average)?.max(Duration::from_nanos(1));
        (burst > 0 && !period.is_zero() && period <= PERIOD_MAX).then_some(Rate { interval, burst })
    }
}

/// `100`, `100/1m` or `100/1m, 20`: so many in that time (a second where none is said), and so many at once (as many as in that time).
impl FromStr for Rate {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Rate, InvalidValue> {
        let (steady, burst) = match text.split_once(',') {
            Some((steady, burst)) => (steady, Some(burst.trim())),
            None => (text, None),
        };
        let (average, period) = match steady.split_once('/') {
            Some((average, period)) => (average, parse_duration(period.trim()).ok()),
            None => (steady, Some(Duration::from_secs(1))),
        };
        let average = average.trim().parse::<u32>().ok();
        let burst = burst.map_or(average, |burst| burst.parse().ok());
        let rate = average.zip(period).zip(burst);
        rate.and_then(|((average, period), burst)| Rate::new(average, period, burst))
            .ok_or_else(|| {
                InvalidValue::new(
                    text,
                    "a rate such as 100/1s, 50: so many requests in that time (24h at most), and so many at once",
                )
            })
    }
}

/// How many requests may be under way; 1 at least.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cap(u32);

impl Cap {
    pub fn get(self) -> u32 {
        self.0
    }
}

impl FromStr for Cap {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Cap, InvalidValue> {
        match text.parse::<u32>() {
            Ok(cap @ 1..) => Ok(Cap(cap)),
            _ => Err(InvalidValue::new(text, "a whole number from 1 to 4294967295")),
        }
    }
}

/// How long the body of a request may be, in bytes; 1 at least.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct BodyMost(u64);

impl BodyMost {
    pub fn bytes(self) -> u64 {
        self.0
    }
}

/// `1048576`, `1MiB`, `500kB`.
impl FromStr for BodyMost {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<BodyMost, InvalidValue> {
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let (number, unit) = text.split_at(digits);
        let unit = match unit.trim_start() {
            "" | "B" => Some(1),
            "kB" | "KB" => Some(1000),
            "MB" => Some(1_000_000),
            "GB" => Some(1_000_000_000),
            "KiB" => Some(1 << 10),
            "MiB" => Some(1 << 20),
            "GiB" => Some(1 << 30),
            _ => None,
        };
        let bytes = number.parse::<u64>().ok().zip(unit);
        match bytes.and_then(|(number, unit)| number.checked_mul(unit)) {
            Some(bytes @ 1..) => Ok(BodyMost(bytes)),
            _ => Err(InvalidValue::new(
                text,
                "a number of bytes from 1, such as 1048576, 500kB or 10MiB",
            )),
        }
    }
}

/// How often a request may be sent again, each time to another endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retries(u32);

impl Retries {
    pub fn get(self) -> u32 {
        self.0
    }
}

impl FromStr for Retries {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Retries, InvalidValue> {
        match text.parse::<u32>() {
            Ok(retries @ 0..=10) => Ok(Retries(retries)),
            _ => Err(InvalidValue::new(text, "a whole number from 0 to 10")),
        }
    }
}

const PERIOD_MAX: Duration = Duration::from_secs(24 * 3600);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_say_how_many_in_which_time() {
        for (text, millis, burst) in [
            ("100", 10, 100),
            ("100/1s", 10, 100),
            ("1/1m", 60_000, 1),
            (" 6 / 1m , 20 ", 10_000, 20),
            ("1000/1s,1", 1, 1),
        ] {
            let rate: Rate = text.parse().unwrap();
            assert_eq!(
                (rate.interval, rate.burst),
                (Duration::from_millis(millis), burst),
                "{text}"
            );
        }
        assert_eq!("4294967295".parse::<Rate>().unwrap().interval, Duration::from_nanos(1));
        for text in [
            "",
            "0",
            "-1",
            "x",
            "10/0s",
            "10/x",
            "10/1s,0",
            "10/1s,x",
            "10/1s,1,1",
            "1/25h",
            "1.5",
        ] {
            assert!(text.parse::<Rate>().is_err(), "{text}");
        }
        for (text, bytes) in [
            ("1", 1),
            ("10 kB", 10_000),
            ("2MiB", 2 << 20),
            ("1GB", 1_000_000_000),
            ("7B", 7),
        ] {
            assert_eq!(text.parse::<BodyMost>().unwrap().bytes(), bytes, "{text}");
        }
        for text in ["", "0", "-1", "1m", "MiB", "1.5MB", "99999999999GiB"] {
            assert!(text.parse::<BodyMost>().is_err(), "{text}");
        }
        assert_eq!("10".parse::<Retries>().unwrap().get(), 10);
        assert!("11".parse::<Retries>().is_err() && "-1".parse::<Retries>().is_err());
        assert_eq!("1".parse::<Cap>().unwrap().get(), 1);
        for text in ["", "0", "-1", "x"] {
            assert!(text.parse::<Cap>().is_err(), "{text}");
        }
    }
}
