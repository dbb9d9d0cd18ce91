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
        assert_eq!("1".parse::<Cap>().unwrap().get(), 1);
        for text in ["", "0", "-1", "x"] {
            assert!(text.parse::<Cap>().is_err(), "{text}");
        }
    }
}
