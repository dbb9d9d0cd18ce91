//! Says of certificates that they expire soon.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use super::certificates::Certificates;

/// A log line a day for each that expires soon, and when it is taken up.
#[derive(Debug, Default)]
pub(super) struct Warned(HashMap<(String, i64), i64>);

impl Warned {
    /// `now`: seconds since 1970.
    pub(super) fn warn(&mut self, certificates: &Certificates, now: i64) {
        self.0.retain(|_, at| now - *at < DAY);
        for shown in certificates.all() {
            let Some(pair) = shown.pair.filter(|pair| pair.not_after - now < SOON) else {
                continue;
            };
            let before = self.0.entry((shown.from.clone(), pair.not_after));
            if let Entry::Vacant(place) = before {
                place.insert(now);
                let certificate = &shown.from;
                match pair.not_after - now {
                    ..=0 => tracing::error!(%certificate, names = pair.names.join(" "), "has expired"),
                    left => {
                        tracing::warn!(%certificate, names = pair.names.join(" "), days = left / DAY, "expires soon")
                    }
                }
            }
        }
    }
}

const DAY: i64 = 24 * 3600;
const SOON: i64 = 14 * DAY;
