//! From single probes to a verdict: so many good or bad ones in a row. Pure. Not here: the probes.

use crate::model::HealthCheck;

/// What is known of one endpoint from its probes so far.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Verdict {
    /// `None` before there is a first one.
    is_up: Option<bool>,
    /// Probes in a row that contradict `is_up`.
    n_against: u32,
}

impl Verdict {
    /// `takes_traffic`: the endpoint was served without a check until now, and is up until proven otherwise.
    pub(super) fn new(takes_traffic: bool) -> Verdict {
        Verdict {
            is_up: takes_traffic.then_some(true),
            n_against: 0,
        }
    }

    /// Takes one probe. Returns the verdict if this probe changed it.
    ///
    /// An endpoint without a verdict needs `rise` good probes to be up, and is down at the first bad one.
    pub(super) fn take(&mut self, is_good: bool, check: &HealthCheck) -> Option<bool> {
        if self.is_up == Some(is_good) {
            self.n_against = 0;
            return None;
        }
        self.n_against += 1;
        let needed = match (self.is_up, is_good) {
            (None, false) => 1,
            (_, true) => check.rise,
            (Some(_), false) => check.fall,
        };
        if self.n_against < needed {
            return None;
        }
        self.is_up = Some(is_good);
        self.n_against = 0;
        self.is_up
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::HealthProbe;

    /// `+` and `-` are probes; the answer shows the verdict after each, `?` for none.
    fn check(takes_traffic: bool, rise: u32, fall: u32, probes: &str, expect: &str) {
        let check = HealthCheck {
            rise,
            fall,
            ..HealthCheck::new(HealthProbe::Tcp)
        };
        let mut verdict = Verdict::new(takes_traffic);
        let mut shown = String::new();
        for probe in probes.chars() {
            let before = verdict.is_up;
            let changed = verdict.take(probe == '+', &check);
            assert_eq!(changed.is_some(), before != verdict.is_up);
            shown.push(verdict.is_up.map_or('?', |is_up| if is_up { 'U' } else { 'D' }));
        }
        assert_eq!(shown, expect, "{probes}");
    }

    #[test]
    fn rise_and_fall_count_probes_in_a_row() {
        check(false, 1, 3, "+--+---+", "UUUUUUDU");
        check(false, 2, 1, "++-++", "?UDDU");
        check(false, 2, 3, "-+-++", "DDDDU");
        check(true, 1, 2, "--+", "UDU");
        check(false, 3, 3, "++-+++", "??DDDU");
    }
}
