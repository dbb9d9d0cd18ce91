//! How fast one may go on: so many at once, and then one after each interval. Pure: whoever asks says what time it is. The generic cell
//! rate algorithm, which keeps one number.

use std::time::Duration;

/// What is allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    /// Between two of a steady row.
    pub interval: Duration,
    /// So many may come at once; 1 at least.
    pub burst: u32,
}

/// Where one stands.
#[derive(Debug, Clone, Copy, Default)]
pub struct Paced {
    /// When a steady row would be at the next one, in nanoseconds.
    due_ns: u64,
}

impl Paced {
    /// Counts one that comes at `now`, time since some moment that stays the same. Errors: not counted, and how long one would have to
    /// wait.
    pub fn take(&mut self, pace: Pace, now: Duration) -> Result<(), Duration> {
        let (now, interval) = (nanos(now), nanos(pace.interval));
        let ahead = interval.saturating_mul(u64::from(pace.burst.max(1) - 1));
        let may_at = self.due_ns.saturating_sub(ahead);
        if now < may_at {
            return Err(Duration::from_nanos(may_at - now));
        }
        self.due_ns = self.due_ns.max(now).saturating_add(interval);
        Ok(())
    }

    /// One that was counted did not come.
    pub fn give_back(&mut self, pace: Pace) {
        self.due_ns = self.due_ns.saturating_sub(nanos(pace.interval));
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_and_then_one_after_each_interval() {
        let pace = Pace {
            interval: Duration::from_millis(100),
            burst: 3,
        };
        let at = Duration::from_millis;
        let mut one = Paced::default();
        let n_at = |one: &mut Paced, ms| {
            std::iter::repeat_with(|| one.take(pace, at(ms)))
                .take_while(Result::is_ok)
                .count()
        };
        assert_eq!(n_at(&mut one, 1000), 3);
        assert_eq!(one.take(pace, at(1000)), Err(at(100)));
        assert_eq!(n_at(&mut one, 1099), 0);
        assert_eq!(n_at(&mut one, 1100), 1);
        assert_eq!(n_at(&mut one, 1350), 2);
        assert_eq!(n_at(&mut one, 100_000), 3);
        one.give_back(pace);
        assert_eq!(n_at(&mut one, 100_000), 1);
        // What would be for ever is.
        let never = Pace {
            interval: Duration::MAX,
            burst: 1,
        };
        let mut one = Paced::default();
        assert!(one.take(never, at(1)).is_ok() && one.take(never, at(1_000_000_000)).is_err());
    }
}
