//! When a change back and forth is said: once each, and not by each turn of what flaps.

use std::time::{Duration, Instant};

/// What was said of something that is either well or out.
#[derive(Debug, Default, Clone)]
pub struct Said {
    is_out: bool,
    at: Option<Instant>,
    /// Times that it went out since, of which nothing was said.
    n_unsaid: u32,
}

impl Said {
    /// It is out, perhaps since long. `Some` if that is to be said, with the number of times that nothing was said, if there were any.
    pub fn out(&mut self, now: Instant) -> Option<Option<u32>> {
        if self.is_out {
            return None;
        }
        if self.at.is_some_and(|at| now.saturating_duration_since(at) < QUIET) {
            self.n_unsaid = self.n_unsaid.saturating_add(1);
            return None;
        }
        (self.is_out, self.at) = (true, Some(now));
        let n_unsaid = std::mem::take(&mut self.n_unsaid);
        Some((n_unsaid > 0).then_some(n_unsaid))
    }

    /// It is well. Whether that is to be said: if it was said that it was out.
    pub fn back(&mut self, now: Instant) -> bool {
        if !self.is_out {
            return false;
        }
        (self.is_out, self.at) = (false, Some(now));
        true
    }
}

/// What flaps is said so often.
const QUIET: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_turn_is_said_once_and_what_flaps_once_a_minute() {
        let (mut said, mut now) = (Said::default(), Instant::now());
        assert_eq!((said.out(now), said.out(now)), (Some(None), None));
        assert!(said.back(now) && !said.back(now));
        for _ in 0..5 {
            assert_eq!((said.out(now), said.back(now)), (None, false));
            now += Duration::from_secs(1);
        }
        now += QUIET;
        assert_eq!(said.out(now), Some(Some(5)), "also where it has been out for a while");
        assert!(said.back(now));
    }
}
