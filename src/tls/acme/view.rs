//! How it stands with certificates that are ordered, for `status`, metrics and the log.

use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use super::due::Failures;
use super::state::{State, WantedBy};
use crate::model::AcmeName;

/// A name, as it stands.
#[derive(Debug, Clone)]
pub struct NameView {
    pub acme: AcmeName,
    pub host: String,
    /// Seconds since 1970; `None`: there is no certificate yet.
    pub not_after: Option<i64>,
    /// When it is ordered, or was to be, in seconds since 1970. `None`: at once.
    pub next_at: Option<i64>,
    pub is_at_it: bool,
    /// A certificate from a file, or a declared one, is for it, so that none is ordered.
    pub is_in_file: bool,
    /// What failed last, if nothing has gone well since.
    pub failure: Option<String>,
    /// Which node orders it, where nodes show what one of them orders; `None` there: nobody does now.
    pub ordered_by: Option<Arc<str>>,
}

/// What came of orders at an authority since the start.
#[derive(Debug, Clone)]
pub struct Orders {
    pub acme: AcmeName,
    pub n_ordered: u64,
    pub n_failed: u64,
}

impl State {
    /// All names that are wanted, by host. `is_covered`: a certificate that was not ordered is for that host.
    pub(super) fn view(&self, is_covered: impl Fn(&str) -> bool) -> Vec<NameView> {
        let shown = self.shown();
        let name = |(host, by): (&String, &WantedBy)| {
            let failures = match self.others.as_ref().filter(|others| !others.is_our_turn) {
                Some(others) => others.told_of(host, &by.acme),
                None => self
                    .authorities
                    .get(&by.acme)
                    .and_then(|one| one.failed.names.get(host)),
            };
            NameView {
                acme: by.acme.clone(),
                host: host.clone(),
                not_after: shown.get(host.as_str()).map(|kept| kept.pair.not_after),
                next_at: self.due_anywhere(host).filter(|due| *due > i64::MIN),
                is_at_it: self.is_at(host),
                is_in_file: is_covered(host),
                failure: failures.map(|failures| failures.last.clone()),
                ordered_by: self.others.as_ref().and_then(|others| others.orderer_name.clone()),
            }
        };
        self.wanted.names.iter().map(name).collect()
    }

    /// By authority.
    pub(super) fn orders(&self) -> Vec<Orders> {
        let orders = self.authorities.iter().map(|(acme, authority)| Orders {
            acme: acme.clone(),
            n_ordered: authority.n_ordered,
            n_failed: authority.n_failed,
        });
        orders.collect()
    }

    /// What is wrong: of files, of authorities, of names that are wanted.
    pub(super) fn faults(&self) -> Vec<String> {
        let mut faults: Vec<String> = self.disk.iter().chain(&self.wanted.faults).cloned().collect();
        let of = |what: String,
                  Failures {
                      n, not_before, last, ..
                  }: &Failures| {
            let again = time(*not_before);
            format!("{what}: {last} (failed {n} times, tried again at {again})")
        };
        let no_certificate = |acme: &AcmeName, host: &String, failures: &Failures| {
            of(format!("acme.{acme}: no certificate for {host}"), failures)
        };
        match self.others.as_ref().filter(|others| !others.is_our_turn) {
            Some(others) => {
                let authorities = others.told_of_authorities();
                faults.extend(authorities.map(|(acme, one)| of(format!("acme.{acme}"), one)));
                for (host, by) in &self.wanted.names {
                    let told = others.told_of(host, &by.acme);
                    faults.extend(told.map(|one| no_certificate(&by.acme, host, one)));
                }
            }
            None => {
                for (acme, authority) in &self.authorities {
                    let failed = &authority.failed;
                    faults.extend(failed.authority.as_ref().map(|one| of(format!("acme.{acme}"), one)));
                    let is_wanted = |(host, _): &(&String, &Failures)| self.wanted.names.contains_key(*host);
                    let wanted = failed.names.iter().filter(is_wanted);
                    faults.extend(wanted.map(|(host, one)| no_certificate(acme, host, one)));
                }
            }
        }
        faults.extend(self.faults_of_others());
        let n_more = faults.len().saturating_sub(FAULTS_MOST);
        faults.truncate(FAULTS_MOST);
        if n_more > 0 {
            faults.push(format!("acme: and {n_more} more like these"));
        }
        faults
    }
}

/// Seconds since 1970, for a person.
pub(super) fn time(seconds: i64) -> String {
    let since = Duration::from_secs(u64::try_from(seconds).unwrap_or(0).min(YEAR_9999));
    humantime::format_rfc3339_seconds(UNIX_EPOCH + since).to_string()
}

const YEAR_9999: u64 = 253_402_300_799;
const FAULTS_MOST: usize = 100;
