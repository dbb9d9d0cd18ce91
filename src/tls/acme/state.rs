//! Which names certificates are wanted for, which there are, and whose turn it is. No clock and no file: seconds since 1970 come in.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use super::config::AcmeConfig;
use super::due::{Failures, renew_at};
use super::kept::{self, Failed};
use super::order::Of;
use super::others::Others;
use crate::model::{AcmeName, ServiceName};
use crate::tls::pair::Pair;

/// What routes ask for, as a table has them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wanted {
    /// By host, as `is_host` takes it.
    pub names: BTreeMap<String, WantedBy>,
    /// Who else asks for those.
    pub others: BTreeMap<String, BTreeSet<WantedBy>>,
    /// What is asked for and cannot be had.
    pub faults: BTreeSet<String>,
}

/// Who wants a certificate, and from whom.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct WantedBy {
    pub acme: AcmeName,
    pub service: ServiceName,
    /// Where the service says so, for a person.
    pub said_by: Arc<str>,
}

/// A certificate that there is.
pub(super) struct Kept {
    pub(super) acme: AcmeName,
    pub(super) file: kept::Certificate,
    pub(super) pair: Arc<Pair>,
    /// It stands in a file.
    pub(super) is_written: bool,
}

/// How it stands with one authority.
pub(super) struct Authority {
    pub(super) config: AcmeConfig,
    pub(super) failed: Failed,
    /// What an earlier run has kept is known. Nothing is ordered before.
    pub(super) is_read: bool,
    pub(super) n_ordered: u64,
    pub(super) n_failed: u64,
}

#[derive(Default)]
pub(super) struct State {
    pub(super) wanted: Wanted,
    /// `wanted` is what a table has.
    pub(super) is_told: bool,
    pub(super) authorities: BTreeMap<AcmeName, Authority>,
    /// By host, and whom it is from.
    pub(super) kept: BTreeMap<(String, AcmeName), Kept>,
    /// Accounts that do not stand in a file yet.
    pub(super) accounts: BTreeMap<AcmeName, kept::Account>,
    /// What is being ordered, and since when.
    pub(super) at: Option<(String, i64)>,
    /// Authorities that have forgotten our account.
    pub(super) forgotten: BTreeSet<AcmeName>,
    /// Why nothing can be written, if nothing can.
    pub(super) disk: Option<String>,
    /// When a service had its last turn, in turns.
    pub(super) turns: HashMap<ServiceName, u64>,
    pub(super) n_turns: u64,
    /// `None`: this node orders by itself.
    pub(super) others: Option<Others>,
}

/// What to do next.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    Order(String, AcmeName),
    /// Nothing before then, in seconds since 1970; `None`: for as long as nothing changes.
    Wait(Option<i64>),
}

impl State {
    /// When a name is to be ordered; `None`: it is not wanted.
    pub(super) fn due(&self, host: &str) -> Option<i64> {
        let by = self.wanted.names.get(host)?;
        let authority = self.authorities.get(&by.acme)?;
        let failed = |failures: Option<&Failures>| failures.map_or(i64::MIN, |failures| failures.not_before);
        // Another may be at that authority's name now.
        let kept = self.kept_of(host, &by.acme);
        let kept = kept.filter(|kept| kept.file.directory == authority.config.directory);
        let renewed = kept.map_or(i64::MIN, |kept| {
            renew_at(kept.pair.not_before, kept.pair.not_after, kept.file.ordered_at)
        });
        let of_authority = failed(authority.failed.authority.as_ref());
        Some(renewed.max(failed(authority.failed.names.get(host))).max(of_authority))
    }

    /// Whose turn it is: services in turn, and of one service's names the one that is due for longest. `is_covered`: a file's
    /// certificate is for that host.
    pub(super) fn next(&mut self, now: i64, is_covered: impl Fn(&str) -> bool) -> Next {
        for authority in self.authorities.values_mut() {
            authority.failed.judge_at(now);
        }
        let mut first: Option<(u64, i64, &String, &WantedBy)> = None;
        let mut later: Option<i64> = None;
        for (host, by) in &self.wanted.names {
            let Some(due) = self.due(host) else { continue };
            if is_covered(host) || self.is_coming(host, &by.acme) {
                continue;
            }
            if due > now {
                later = Some(later.map_or(due, |later| later.min(due)));
                continue;
            }
            let turn = self.turns.get(&by.service).copied().unwrap_or(0);
            if first.is_none_or(|(its, since, _, _)| (turn, due) < (its, since)) {
                first = Some((turn, due, host, by));
            }
        }
        let Some((_, _, host, by)) = first else {
            return Next::Wait(later);
        };
        self.n_turns += 1;
        self.turns.insert(by.service.clone(), self.n_turns);
        Next::Order(host.clone(), by.acme.clone())
    }

    /// Whether that is being ordered.
    pub(super) fn is_at(&self, host: &str) -> bool {
        self.at.as_ref().is_some_and(|(at, _)| at == host)
    }

    pub(super) fn kept_of(&self, host: &str, acme: &AcmeName) -> Option<&Kept> {
        self.kept.get(&(host.to_owned(), acme.clone()))
    }

    /// What is shown, by host: from whom it is wanted, or else what came last from another.
    pub(super) fn shown(&self) -> BTreeMap<&str, &Kept> {
        let mut shown: BTreeMap<&str, &Kept> = BTreeMap::new();
        let is_wanted = |host: &str, kept: &Kept| self.wanted.names.get(host).is_some_and(|by| by.acme == kept.acme);
        for ((host, _), kept) in &self.kept {
            let rank = |kept: &Kept| (is_wanted(host, kept), kept.file.ordered_at);
            let best = shown.entry(host).or_insert(kept);
            if rank(kept) > rank(best) {
                *best = kept;
            }
        }
        shown
    }

    /// Of several who ask for one host with different authorities the service that has had it keeps it, as the first one that was made
    /// keeps a rule; after a start, whoever has a certificate of it. The others are told.
    pub(super) fn want(&mut self, mut wanted: Wanted) {
        for (host, others) in &wanted.others {
            let Some(first) = wanted.names.get_mut(host) else {
                continue;
            };
            let rank = |by: &WantedBy| match self.wanted.names.get(host) {
                Some(before) => (by.service == before.service, by.acme == before.acme, i64::MIN),
                None => {
                    let kept = self.kept_of(host, &by.acme);
                    (false, false, kept.map_or(i64::MIN, |kept| kept.file.ordered_at))
                }
            };
            let all: Vec<WantedBy> = std::iter::once(&*first).chain(others).cloned().collect();
            let Some(best) = all.iter().min_by_key(|by| std::cmp::Reverse(rank(by))) else {
                continue;
            };
            for by in all.iter().filter(|by| by.acme != best.acme) {
                wanted.faults.insert(format!(
                    "service {}: {}: no certificate is ordered from acme.{} for {host}: service {} has it from acme.{}",
                    by.service, by.said_by, by.acme, best.service, best.acme
                ));
            }
            *first = best.clone();
        }
        self.wanted = wanted;
        self.is_told = true;
        let still: std::collections::HashSet<&ServiceName> = self.wanted.names.values().map(|by| &by.service).collect();
        self.turns.retain(|service, _| still.contains(service));
    }

    /// A certificate has come, and is kept.
    pub(super) fn succeeded(&mut self, host: &str, acme: &AcmeName) {
        if let Some(authority) = self.authorities.get_mut(acme) {
            authority.n_ordered += 1;
            authority.failed.authority = None;
            authority.failed.names.remove(host);
        }
    }

    /// Takes up what an earlier run has kept.
    pub(super) fn take_up(&mut self, acme: &AcmeName, all: kept::All, now: i64) {
        let Some(authority) = self.authorities.get_mut(acme) else {
            return;
        };
        authority.is_read = true;
        let kept::All {
            mut failed,
            certificates,
        } = all;
        for (host, file) in &certificates {
            // It was done after all, and that was written no more.
            let is_over = |failures: &mut Failures| failures.is_of_unfinished() && failures.at <= file.ordered_at;
            if failed.names.get_mut(host).is_some_and(is_over) {
                failed.names.remove(host);
            }
        }
        if authority.config.directory == failed.directory && authority.config.fingerprint() == failed.config {
            authority.failed = failed;
        }
        for (host, mut file) in certificates {
            file.ordered_at = file.ordered_at.min(now);
            match Pair::from_pem(file.certificate.as_bytes(), file.key.as_bytes()) {
                Ok(pair) => {
                    let kept = Kept {
                        acme: acme.clone(),
                        file,
                        pair: Arc::new(pair),
                        is_written: true,
                    };
                    self.keep(&host, kept);
                }
                Err(error) => tracing::error!(%acme, host, "the certificate that was kept cannot be used: {error}"),
            }
        }
    }

    /// What is under way is so no more, and has come to no end.
    pub(super) fn cut_off(&mut self, now: i64) {
        let Some((host, _)) = self.at.take() else { return };
        let acme = self.wanted.names.get(&host).map(|by| by.acme.clone());
        if let Some(authority) = acme.and_then(|acme| self.authorities.get_mut(&acme)) {
            authority.failed.names.entry(host).or_default().add_unfinished(now);
        }
    }

    /// What is to be remembered of failures. `unfinished`: an order that is begun now counts as one, for whom this is read by after it
    /// came to no end.
    pub(super) fn to_remember(&self, acme: &AcmeName, unfinished: Option<(&str, i64)>) -> Option<Failed> {
        let authority = self.authorities.get(acme).filter(|authority| authority.is_read)?;
        let mut names = authority.failed.names.clone();
        if let Some((host, now)) = unfinished {
            names.entry(host.to_owned()).or_default().add_unfinished(now);
        }
        Some(Failed {
            directory: authority.config.directory.clone(),
            config: authority.config.fingerprint(),
            authority: authority.failed.authority.clone(),
            names,
        })
    }

    pub(super) fn keep(&mut self, host: &str, kept: Kept) {
        self.kept.insert((host.to_owned(), kept.acme.clone()), kept);
    }

    /// None has. `retry_after`: seconds that the authority asked for. Returns when it is tried again.
    pub(super) fn failed(
        &mut self,
        (host, acme): (&str, &AcmeName),
        (text, of): (String, Of),
        (now, retry_after, chance): (i64, Option<i64>, f64),
    ) -> i64 {
        let Some(authority) = self.authorities.get_mut(acme) else {
            return now;
        };
        authority.n_failed += 1;
        authority.failed.directory.clone_from(&authority.config.directory);
        let failed = &mut authority.failed;
        match of {
            Of::Authority | Of::Account => {
                let all = failed.authority.get_or_insert_default();
                all.add_of_authority(now, text, retry_after, chance);
            }
            Of::Name => {
                failed.authority = None;
                let one = failed.names.entry(host.to_owned()).or_default();
                one.add(now, text, retry_after, chance);
            }
            Of::Limit => {
                // Whether the limit is the name's or the account's, nobody can tell: the others wait too, for a little while.
                let all = failed.authority.get_or_insert_default();
                all.wait_a_little(now, text.clone(), chance);
                let one = failed.names.entry(host.to_owned()).or_default();
                one.add(now, text, Some(retry_after.unwrap_or(LIMIT_LEAST)), chance);
            }
        }
        self.due(host).unwrap_or(now)
    }

    /// Forgets what nobody wants any more: certificates that are over, and failures of long ago. Returns whose files are to go.
    pub(super) fn forget(&mut self, now: i64) -> Vec<(AcmeName, String)> {
        let wanted = &self.wanted.names;
        // Of what is wanted the one that is over is shown until another comes.
        let is_had = |(host, by): &(&String, &WantedBy)| self.kept_of(host, &by.acme).is_some();
        let had: BTreeSet<String> = wanted.iter().filter(is_had).map(|(host, _)| host.clone()).collect();
        let over = self.kept.extract_if(.., |(host, acme), kept| {
            let is_needed = wanted
                .get(host)
                .is_some_and(|by| by.acme == *acme || !had.contains(host));
            kept.pair.not_after <= now && !is_needed
        });
        let over = over.map(|((host, acme), _)| (acme, host)).collect();
        for authority in self.authorities.values_mut() {
            let names = &mut authority.failed.names;
            names.retain(|host, failures| wanted.contains_key(host) || failures.not_before.saturating_add(DAY) > now);
        }
        over
    }
}

/// Where the authority limits us and does not say for how long.
const LIMIT_LEAST: i64 = 3600;
const DAY: i64 = 24 * 3600;

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::tls::acme::config::ChallengeKind;

    pub(in crate::tls::acme) fn acme(name: &str) -> AcmeName {
        name.parse().unwrap()
    }

    /// A node that wants certificates for these names, of these services, from `le`.
    pub(in crate::tls::acme) fn state(names: &[(&str, &str)]) -> State {
        let mut state = State::default();
        for name in ["le", "own"] {
            let config = AcmeConfig {
                name: acme(name),
                directory: format!("https://{name}.test/dir"),
                email: None,
                challenge: ChallengeKind::Http,
                authorities: None,
                external: None,
            };
            let authority = Authority {
                config,
                failed: Failed::default(),
                is_read: true,
                n_ordered: 0,
                n_failed: 0,
            };
            state.authorities.insert(acme(name), authority);
        }
        let names = names.iter().map(|(host, service)| {
            let by = WantedBy {
                acme: acme("le"),
                service: ServiceName::new(service).unwrap(),
                said_by: "route".into(),
            };
            (host.to_string(), by)
        });
        state.want(Wanted {
            names: names.collect(),
            ..Wanted::default()
        });
        state
    }

    fn kept(host: &str, directory: &str, at: i64) -> Kept {
        let (certificate, key) = crate::tls::pair::tests::pem(&[host]);
        let pair = Pair::from_pem(certificate.as_bytes(), key.as_bytes()).unwrap();
        Kept {
            acme: acme("le"),
            file: kept::Certificate {
                directory: directory.to_owned(),
                ordered_at: at,
                certificate,
                key,
            },
            pair: Arc::new(Pair {
                not_before: at,
                not_after: at + 900,
                ..pair
            }),
            is_written: true,
        }
    }

    fn succeed(state: &mut State, kept: Kept) {
        state.succeeded("a.test", &kept.acme);
        state.keep("a.test", kept);
    }

    fn order(host: &str) -> Next {
        Next::Order(host.to_owned(), acme("le"))
    }

    #[test]
    fn services_have_turns_however_many_names_one_has() {
        let mut state = state(&[("a1.test", "a"), ("a2.test", "a"), ("a3.test", "a"), ("b.test", "b")]);
        let uncovered = |_: &str| false;
        let fails = |state: &mut State, host: &str, now| {
            state.failed((host, &acme("le")), ("no".to_owned(), Of::Name), (now, None, 0.0));
        };
        for host in ["a1.test", "b.test", "a2.test", "a3.test"] {
            assert_eq!(state.next(0, uncovered), order(host));
            fails(&mut state, host, 0);
        }
        assert_eq!(state.next(59, uncovered), Next::Wait(Some(60)));
        assert_eq!(state.next(60, uncovered), order("b.test"));
        assert_eq!(state.next(60, |host| host != "a2.test"), order("a2.test"));
        assert_eq!(state.next(60, |_| true), Next::Wait(None));
    }

    #[test]
    fn what_there_is_is_renewed_in_time_or_when_another_is_to_write_it() {
        let mut state = state(&[("a.test", "a")]);
        succeed(&mut state, kept("a.test", "https://le.test/dir", 1000));
        assert_eq!(state.next(1000, |_| false), Next::Wait(Some(1600)));
        assert_eq!(state.next(1600, |_| false), order("a.test"));
        succeed(&mut state, kept("a.test", "https://before.test/dir", 1000));
        assert_eq!(state.next(1000, |_| false), order("a.test"));
        assert_eq!(state.authorities[&acme("le")].n_ordered, 2);
        // Over, but wanted: it is shown until another comes.
        assert!(state.forget(10_000).is_empty());
        state.want(Wanted::default());
        assert_eq!(state.forget(1900), [(acme("le"), "a.test".to_owned())]);
        assert_eq!(state.next(1900, |_| false), Next::Wait(None));
    }

    #[test]
    fn a_host_that_several_ask_for_stays_whose_it_was_and_what_was_ordered_is_not_ordered_again() {
        let by = |name: &str, service: &str| WantedBy {
            acme: acme(name),
            service: ServiceName::new(service).unwrap(),
            said_by: "route".into(),
        };
        let wanted = |all: &[(&str, &str)]| {
            let all: Vec<WantedBy> = all.iter().map(|(name, service)| by(name, service)).collect();
            Wanted {
                names: BTreeMap::from([("a.test".to_owned(), all[0].clone())]),
                others: BTreeMap::from([("a.test".to_owned(), all[1..].iter().cloned().collect())]),
                faults: BTreeSet::new(),
            }
        };
        let mut state = state(&[("a.test", "a")]);
        let shown = |state: &State| state.shown()["a.test"].acme.to_string();
        succeed(&mut state, kept("a.test", "https://le.test/dir", 1000));
        // Another comes that is asked first.
        for all in [
            &[("own", "b"), ("le", "a")][..],
            &[("le", "b"), ("own", "c"), ("le", "a")],
        ] {
            state.want(wanted(all));
            assert_eq!(state.wanted.names["a.test"], by("le", "a"));
            assert_eq!(state.next(1000, |_| false), Next::Wait(Some(1600)));
            let faults: Vec<&String> = state.wanted.faults.iter().collect();
            let who = if all.len() == 2 { "b" } else { "c" };
            let expected = format!(
                "service {who}: route: no certificate is ordered from acme.own for a.test: service a has it from acme.le"
            );
            assert_eq!(faults, [&expected]);
        }
        // Whose it is may change it, and back: that is one order.
        state.want(wanted(&[("le", "b"), ("own", "a")]));
        assert_eq!(
            state.next(1100, |_| false),
            Next::Order("a.test".to_owned(), acme("own"))
        );
        assert_eq!(shown(&state), "le", "until the other comes");
        let other = Kept {
            acme: acme("own"),
            ..kept("a.test", "https://own.test/dir", 1100)
        };
        succeed(&mut state, other);
        assert_eq!(shown(&state), "own");
        state.want(wanted(&[("le", "a")]));
        assert_eq!(
            (shown(&state).as_str(), state.next(1100, |_| false)),
            ("le", Next::Wait(Some(1600)))
        );
        // What it does not want goes once it is over.
        assert_eq!(state.forget(2000), [(acme("own"), "a.test".to_owned())]);
        assert_eq!(state.kept.len(), 1);
        // After a start it is whose certificate there is.
        state.wanted = Wanted::default();
        state.want(wanted(&[("own", "b"), ("le", "a")]));
        assert_eq!(state.wanted.names["a.test"], by("le", "a"));
    }

    #[test]
    fn an_order_that_came_to_no_end_is_remembered_as_a_failure_unless_it_did() {
        let mut before = state(&[("a.test", "a")]);
        let le = acme("le");
        let failed = before.to_remember(&le, Some(("a.test", 1000))).unwrap();
        assert!(before.authorities[&le].failed.names.is_empty());
        let take_up = |failed: &Failed, certificates: Vec<(String, kept::Certificate)>| {
            let mut after = state(&[("a.test", "a")]);
            let failed = serde_json::from_value(serde_json::to_value(failed).unwrap()).unwrap();
            after.take_up(&le, kept::All { failed, certificates }, 1000);
            after
        };
        assert_eq!(
            take_up(&failed, Vec::new()).next(1000, |_| false),
            Next::Wait(Some(1060))
        );
        let done = kept("a.test", "https://le.test/dir", 1000).file;
        let mut after = take_up(&failed, vec![("a.test".to_owned(), done)]);
        assert!(after.authorities[&le].failed.names.is_empty() && after.kept.len() == 1);
        assert_ne!(after.next(1000, |_| false), order("a.test"));
        // One that failed before waits for longer, and another way is tried at once.
        before.failed(("a.test", &le), ("no".to_owned(), Of::Name), (0, None, 0.0));
        let failed = before.to_remember(&le, Some(("a.test", 1000))).unwrap();
        assert_eq!(take_up(&failed, Vec::new()).due("a.test"), Some(1180));
        let other = Failed {
            config: "other".to_owned(),
            ..failed
        };
        assert_eq!(take_up(&other, Vec::new()).next(1000, |_| false), order("a.test"));
        // What is not known cannot be written.
        before.authorities.get_mut(&le).unwrap().is_read = false;
        assert!(before.to_remember(&le, None).is_none());
    }

    #[test]
    fn a_clock_that_was_ahead_is_no_reason_to_wait() {
        let mut state = state(&[("a.test", "a"), ("b.test", "b")]);
        for of in [Of::Name, Of::Authority] {
            state.failed(("a.test", &acme("le")), ("no".to_owned(), of), (1_000_000, None, 0.0));
            state.failed(("b.test", &acme("le")), ("no".to_owned(), of), (1_000_000, None, 0.0));
        }
        assert!(matches!(state.next(100, |_| false), Next::Wait(Some(..=1000))));
        assert!(matches!(state.next(1000, |_| false), Next::Order(..)));
    }

    #[test]
    fn an_authority_that_is_away_is_waited_for_and_a_limit_holds_its_name_longest() {
        let mut state = state(&[("a.test", "a"), ("b.test", "b")]);
        let fail = |state: &mut State, of, now, asked| {
            state.failed(("a.test", &acme("le")), ("no".to_owned(), of), (now, asked, 0.0))
        };
        assert_eq!(fail(&mut state, Of::Authority, 0, Some(500)), 500);
        assert_eq!(state.next(0, |_| false), Next::Wait(Some(500)));
        // It answers again.
        fail(&mut state, Of::Name, 500, None);
        assert_eq!(state.next(501, |_| false), order("b.test"));
        assert_eq!(fail(&mut state, Of::Limit, 1000, Some(9000)), 10_000);
        assert_eq!(state.due("b.test"), Some(1060));
        assert_eq!(fail(&mut state, Of::Limit, 10_000, None), 13_600);
        // However often it comes to that.
        fail(&mut state, Of::Limit, 20_000, None);
        assert_eq!(state.due("b.test"), Some(20_060));
        for _ in 0..9 {
            fail(&mut state, Of::Authority, 30_000, None);
        }
        assert_eq!(state.due("b.test"), Some(30_900));
    }
}
