//! What is known of each name, whose turn it is to be asked for, and what an answer changes. Pure. Not here: asking (`lookup`).

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant, SystemTime};

use crate::model::{EndpointName, ServiceName};
use crate::routing::Said;

/// What came of asking for a name: its addresses of each family, and how long they are good for.
#[derive(Debug, Clone)]
pub(super) struct Answer {
    pub(super) v4: Result<Vec<IpAddr>, Failure>,
    pub(super) v6: Result<Vec<IpAddr>, Failure>,
    /// The shortest of those that were given; meaningless where none was.
    pub(super) ttl: Duration,
}

impl Answer {
    /// Nobody has said anything.
    pub(super) fn silence() -> Answer {
        Answer {
            v4: Err(Failure::Silence),
            v6: Err(Failure::Silence),
            ttl: Duration::ZERO,
        }
    }
}

/// Why there are no addresses of one family.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Failure {
    /// The name is there, and has none. Of both families, it fails.
    #[error("the name has no address")]
    NoAddress,
    #[error("there is no such name (NXDOMAIN)")]
    NoSuchName,
    #[error("no answer in time")]
    Silence,
    #[error("{0}")]
    Other(String),
}

impl Failure {
    /// Whether it was said that there are none.
    pub(super) fn is_said(&self) -> bool {
        matches!(self, Failure::NoAddress | Failure::NoSuchName)
    }
}

/// Since when a name is not resolved, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failing {
    pub why: String,
    pub since: SystemTime,
}

/// A name as it is shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NameState {
    pub name: EndpointName,
    /// Whose endpoints are by it.
    pub services: Vec<ServiceName>,
    /// What is known of it, be it from now or before.
    pub addresses: Vec<IpAddr>,
    /// How many more there were than may be endpoints.
    pub n_cut: usize,
    /// Addresses that cannot be endpoints, and why.
    pub left_out: Vec<String>,
    /// `None`: it was resolved, or is being asked for the first time.
    pub failing: Option<Failing>,
    pub failures_total: u64,
}

/// All names that are needed.
#[derive(Debug, Default)]
pub(super) struct Book {
    names: BTreeMap<EndpointName, Entry>,
    recalled: BTreeMap<EndpointName, Vec<IpAddr>>,
}

#[derive(Debug)]
struct Entry {
    services: Vec<ServiceName>,
    /// In order, IPv4 first, so that the order of an answer changes nothing.
    addresses: Vec<IpAddr>,
    n_cut: usize,
    left_out: Vec<String>,
    /// `None`: it is being asked for.
    due: Option<Instant>,
    failing: Option<Failing>,
    /// It was asked for in this run, and something came of that.
    is_answered: bool,
    /// Since it was resolved.
    n_failures: u32,
    failures_total: u64,
    said: Said,
}

/// What an answer has changed.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct News {
    pub(super) has_changed: bool,
    pub(super) say: Option<Say>,
    /// There were so many addresses, more than may be endpoints, which was not so before.
    pub(super) say_cut: Option<usize>,
}

/// What is to be said of a name.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Say {
    Fails { why: String, n_unsaid: Option<u32> },
    Back,
}

impl Book {
    /// Addresses for names that will be needed, from a run before.
    pub(super) fn recall(&mut self, recalled: BTreeMap<EndpointName, Vec<IpAddr>>) {
        let row = |addresses| usable(addresses).into_iter().take(ADDRESSES_MAX).collect();
        let rows = recalled.into_iter().map(|(name, addresses)| (name, row(addresses)));
        self.recalled = rows.collect();
    }

    pub(super) fn want(&mut self, wanted: BTreeMap<EndpointName, Vec<ServiceName>>, now: Instant) {
        self.names.retain(|name, _| wanted.contains_key(name));
        for (name, services) in wanted {
            let recalled = || self.recalled.get(&name).cloned().unwrap_or_default();
            let entry = self.names.entry(name.clone()).or_insert_with(|| Entry {
                services: Vec::new(),
                addresses: recalled(),
                n_cut: 0,
                left_out: Vec::new(),
                due: Some(now),
                failing: None,
                is_answered: false,
                n_failures: 0,
                failures_total: 0,
                said: Said::default(),
            });
            entry.services = services;
        }
    }

    /// Of the names that are needed.
    pub(super) fn addresses(&self) -> BTreeMap<EndpointName, Vec<IpAddr>> {
        let known = self.names.iter().filter(|(_, entry)| !entry.addresses.is_empty());
        let row = |(name, entry): (&EndpointName, &Entry)| (name.clone(), entry.addresses.clone());
        known.map(row).collect()
    }

    /// Whether any name is needed.
    pub(super) fn has_any(&self) -> bool {
        !self.names.is_empty()
    }

    /// And of those that may be.
    pub(super) fn all_addresses(&self) -> BTreeMap<EndpointName, Vec<IpAddr>> {
        let mut all = self.recalled.clone();
        all.extend(self.addresses());
        all
    }

    /// Says which addresses cannot be endpoints. Returns what is new of that.
    pub(super) fn leave_out(
        &mut self,
        mut left_out: BTreeMap<EndpointName, Vec<String>>,
    ) -> Vec<(EndpointName, String)> {
        let mut news = Vec::new();
        for (name, entry) in &mut self.names {
            let left_out = left_out.remove(name).unwrap_or_default();
            let unknown = left_out.iter().filter(|why| !entry.left_out.contains(why));
            news.extend(unknown.map(|why| (name.clone(), why.clone())));
            entry.left_out = left_out;
        }
        news
    }

    /// Takes those whose turn it is; they are being asked for from then on. `n_asking`: how many are.
    pub(super) fn begin(&mut self, now: Instant, n_asking: usize) -> Vec<EndpointName> {
        let mut n_free = ASKING_MAX.saturating_sub(n_asking);
        let mut free = self.free();
        let mut due: Vec<(Instant, &EndpointName, &mut Entry)> = Vec::new();
        for (name, entry) in &mut self.names {
            due.extend(entry.due.filter(|due| *due <= now).map(|at| (at, name, entry)));
        }
        due.sort_by_key(|(at, ..)| *at);
        let mut begun = Vec::new();
        for (_, name, entry) in due {
            if n_free == 0 {
                break;
            }
            if !free.take(entry) {
                continue;
            }
            n_free -= 1;
            entry.due = None;
            begun.push(name.clone());
        }
        begun
    }

    /// When the next one is to be asked for that may be; `None`: nobody before an answer has come.
    pub(super) fn next_due(&self, n_asking: usize) -> Option<Instant> {
        if n_asking >= ASKING_MAX {
            return None;
        }
        let free = self.free();
        let may_be = self.names.values().filter(|entry| free.has_for(entry));
        may_be.filter_map(|entry| entry.due).min()
    }

    fn free(&self) -> Free {
        let mut free = Free {
            failing: ASKING_FAILING_MAX,
            doubtful: ASKING_DOUBTFUL_MAX,
        };
        let asked = self.names.values().filter(|entry| entry.due.is_none());
        // All of them have their places.
        asked.for_each(|entry| {
            let _ = free.take(entry);
        });
        free
    }

    /// Takes what came of asking. `jitter`: from 0 to 1.
    pub(super) fn note(
        &mut self,
        name: &EndpointName,
        answer: Answer,
        now: Instant,
        time: SystemTime,
        jitter: f64,
    ) -> News {
        let Some(entry) = self.names.get_mut(name) else {
            return News::default();
        };
        let mut news = News::default();
        let ttl = answer.ttl.clamp(TTL_LEAST, TTL_MOST);
        let mut is_partial = false;
        entry.is_answered = true;
        let why = match entry.merge(answer) {
            Merged::Known { addresses, fails } => {
                let n_cut = addresses.len().saturating_sub(ADDRESSES_MAX);
                if n_cut > 0 && entry.n_cut == 0 {
                    news.say_cut = Some(addresses.len());
                }
                entry.n_cut = n_cut;
                let addresses: Vec<IpAddr> = addresses.into_iter().take(ADDRESSES_MAX).collect();
                news.has_changed = addresses != entry.addresses;
                entry.addresses = addresses;
                is_partial = true;
                fails
            }
            Merged::Unknown { why } => Some(why),
        };
        match why {
            None => {
                entry.failing = None;
                entry.n_failures = 0;
                entry.due = Some(now + ttl);
                news.say = entry.said.back(now).then_some(Say::Back);
            }
            Some(why) => {
                let since = entry.failing.as_ref().map_or(time, |failing| failing.since);
                let why = why.to_string();
                news.say = entry.said.out(now).map(|n_unsaid| Say::Fails {
                    why: why.clone(),
                    n_unsaid,
                });
                entry.failing = Some(Failing { why, since });
                let again = again_after(entry.n_failures, jitter);
                // What one family has said is good for as long as it says.
                entry.due = Some(
                    now + if is_partial {
                        again.min(ttl.max(PARTIAL_LEAST))
                    } else {
                        again
                    },
                );
                entry.n_failures = entry.n_failures.saturating_add(1);
                entry.failures_total += 1;
            }
        }
        news
    }

    pub(super) fn states(&self) -> Vec<NameState> {
        let state = |(name, entry): (&EndpointName, &Entry)| NameState {
            name: name.clone(),
            services: entry.services.clone(),
            addresses: entry.addresses.clone(),
            n_cut: entry.n_cut,
            left_out: entry.left_out.clone(),
            failing: entry.failing.clone(),
            failures_total: entry.failures_total,
        };
        self.names.iter().map(state).collect()
    }
}

/// Places for names of which it is not known that anybody answers.
#[derive(Clone, Copy)]
struct Free {
    failing: usize,
    /// And those that were never asked for, together.
    doubtful: usize,
}

impl Free {
    fn has_for(&self, entry: &Entry) -> bool {
        match (&entry.failing, entry.is_answered) {
            (Some(_), _) => self.failing > 0 && self.doubtful > 0,
            (None, false) => self.doubtful > 0,
            (None, true) => true,
        }
    }

    /// Whether there is one for it, which it has then.
    fn take(&mut self, entry: &Entry) -> bool {
        if !self.has_for(entry) {
            return false;
        }
        if entry.failing.is_some() {
            self.failing -= 1;
        }
        if entry.failing.is_some() || !entry.is_answered {
            self.doubtful -= 1;
        }
        true
    }
}

enum Merged {
    /// `fails`: of one family nothing was learned, and what was known of it stays.
    Known {
        addresses: BTreeSet<IpAddr>,
        fails: Option<Failure>,
    },
    /// Nothing was learned, and all that was known stays.
    Unknown { why: Failure },
}

impl Entry {
    fn merge(&self, answer: Answer) -> Merged {
        let (v4, v6) = match (answer.v4, answer.v6) {
            (Err(v4), Err(v6)) => {
                // What nobody could say outweighs what somebody has: that one may have addresses yet.
                let why = if v4.is_said() && !v6.is_said() { v6 } else { v4 };
                return Merged::Unknown { why };
            }
            (v4, v6) => (v4, v6),
        };
        let mut addresses = BTreeSet::new();
        let (mut fails, mut n_given) = (None, 0);
        for (family, is_v4) in [(v4, true), (v6, false)] {
            match family {
                Ok(given) => {
                    n_given += given.len();
                    addresses.extend(usable(given));
                }
                Err(failure) if failure.is_said() => {}
                Err(failure) => {
                    addresses.extend(self.addresses.iter().filter(|ip| ip.is_ipv4() == is_v4));
                    fails = Some(failure);
                }
            }
        }
        match addresses.is_empty() {
            true if n_given > 0 => Merged::Unknown {
                why: Failure::Other("none of its addresses can be connected to".to_owned()),
            },
            true => Merged::Unknown {
                why: Failure::NoAddress,
            },
            false => Merged::Known { addresses, fails },
        }
    }
}

/// Those that can be connected to, in order.
fn usable(addresses: impl IntoIterator<Item = IpAddr>) -> BTreeSet<IpAddr> {
    let canonical = addresses.into_iter().map(|ip| ip.to_canonical());
    let can_be = |ip: &IpAddr| {
        let is_local = match ip {
            // Of one link alone, of no network, or of no use yet.
            IpAddr::V4(ip) => ip.is_link_local() || ip.octets()[0] == 0 || ip.octets()[0] >= 240,
            // Without the interface that it is of.
            IpAddr::V6(ip) => ip.is_unicast_link_local(),
        };
        !ip.is_unspecified() && !ip.is_multicast() && !is_local
    };
    canonical.filter(can_be).collect()
}

/// A name of which one family fails is asked for no more often than this.
const PARTIAL_LEAST: Duration = Duration::from_secs(5);

/// How long to wait after a failure that `n_before` others came before.
fn again_after(n_before: u32, jitter: f64) -> Duration {
    let pause = AGAIN_LEAST.saturating_mul(1 << n_before.min(16)).min(AGAIN_MOST);
    pause.mul_f64(1.0 + jitter.clamp(0.0, 1.0) / 4.0)
}

/// Addresses of one name; more are no endpoints.
pub(super) const ADDRESSES_MAX: usize = 64;
/// Names that are asked for at a time.
const ASKING_MAX: usize = 16;
/// Of them those that were not resolved when they were asked for last: who answers to nobody leaves room for the others.
const ASKING_FAILING_MAX: usize = 8;
/// And those that were never asked for, whoever is to answer: the rest is for names that were resolved.
const ASKING_DOUBTFUL_MAX: usize = 12;
/// What a TTL is taken for, at least and at most.
const TTL_LEAST: Duration = Duration::from_secs(1);
const TTL_MOST: Duration = Duration::from_secs(3600);
/// After the first failure, and after many; up to a quarter more, so that names that failed together are not asked for together.
const AGAIN_LEAST: Duration = Duration::from_secs(1);
const AGAIN_MOST: Duration = Duration::from_secs(24);

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> EndpointName {
        text.parse().unwrap()
    }

    fn ips(text: &str) -> Vec<IpAddr> {
        text.split_whitespace().map(|ip| ip.parse().unwrap()).collect()
    }

    fn wanted(names: &[&str]) -> BTreeMap<EndpointName, Vec<ServiceName>> {
        let web = ServiceName::new("web").unwrap();
        names.iter().map(|text| (name(text), vec![web.clone()])).collect()
    }

    /// Each family: addresses, `-` for none, `nx`, or a failure.
    fn answer(v4: &str, v6: &str) -> Answer {
        let family = |text: &str| match text {
            "-" => Err(Failure::NoAddress),
            "nx" => Err(Failure::NoSuchName),
            "silence" => Err(Failure::Silence),
            _ => Ok(ips(text)),
        };
        Answer {
            v4: family(v4),
            v6: family(v6),
            ttl: Duration::from_secs(30),
        }
    }

    struct One {
        book: Book,
        now: Instant,
    }

    impl One {
        fn new() -> One {
            let (mut book, now) = (Book::default(), Instant::now());
            book.want(wanted(&["a.test"]), now);
            One { book, now }
        }

        fn note(&mut self, answer: Answer) -> News {
            self.book
                .note(&name("a.test"), answer, self.now, SystemTime::UNIX_EPOCH, 0.0)
        }

        fn state(&self) -> NameState {
            self.book.states().remove(0)
        }

        fn why(&self) -> String {
            self.state().failing.map(|failing| failing.why).unwrap_or_default()
        }

        /// In seconds.
        fn due(&self) -> u64 {
            (self.book.next_due(0).unwrap() - self.now).as_secs()
        }
    }

    #[test]
    fn what_is_learned_and_what_stays() {
        for (v4, v6, after, why) in [
            ("10.0.0.3 10.0.0.1", "::9", "10.0.0.1 10.0.0.3 ::9", ""),
            ("10.0.0.1 10.0.0.1 ::ffff:10.0.0.1", "-", "10.0.0.1", ""),
            ("10.0.0.1", "nx", "10.0.0.1", ""),
            ("-", "::9", "::9", ""),
            ("silence", "::9", "10.0.0.7 ::9", "no answer in time"),
            ("10.0.0.1", "silence", "10.0.0.1 ::7", "no answer in time"),
            ("silence", "silence", "10.0.0.7 ::7", "no answer in time"),
            ("-", "silence", "10.0.0.7 ::7", "no answer in time"),
            ("nx", "nx", "10.0.0.7 ::7", "there is no such name (NXDOMAIN)"),
            ("-", "-", "10.0.0.7 ::7", "the name has no address"),
            ("", "", "10.0.0.7 ::7", "the name has no address"),
            (
                "0.0.0.0",
                "::",
                "10.0.0.7 ::7",
                "none of its addresses can be connected to",
            ),
            ("224.0.0.1 255.255.255.255 10.0.0.1", "fe80::1 ff02::1", "10.0.0.1", ""),
        ] {
            let mut one = One::new();
            assert!(one.note(answer("10.0.0.7", "::7")).has_changed);
            one.note(answer(v4, v6));
            assert_eq!((one.state().addresses, &*one.why()), (ips(after), why), "{v4} and {v6}");
        }
    }

    #[test]
    fn another_order_changes_nothing() {
        let mut one = One::new();
        assert!(one.note(answer("10.0.0.1 10.0.0.2 10.0.0.3", "-")).has_changed);
        for rotated in ["10.0.0.2 10.0.0.3 10.0.0.1", "10.0.0.3 10.0.0.1 10.0.0.2"] {
            assert_eq!(one.note(answer(rotated, "-")), News::default());
        }
        assert!(one.note(answer("10.0.0.2 10.0.0.3", "-")).has_changed);
    }

    #[test]
    fn a_ttl_is_kept_within_bounds_and_failures_are_asked_again_less_and_less_often() {
        let mut one = One::new();
        for (ttl, due) in [(0, 1), (1, 1), (30, 30), (3600, 3600), (86_400, 3600)] {
            one.note(Answer {
                ttl: Duration::from_secs(ttl),
                ..answer("10.0.0.1", "-")
            });
            assert_eq!(one.due(), due);
        }
        for due in [1, 2, 4, 8, 16, 24, 24] {
            one.note(answer("silence", "-"));
            assert_eq!(one.due(), due);
        }
        assert_eq!(one.state().failures_total, 7);
        one.note(answer("10.0.0.1", "-"));
        one.note(answer("nx", "nx"));
        assert_eq!(one.due(), 1, "after success it begins anew");
        assert_eq!(again_after(40, 1.0), Duration::from_secs(30));
    }

    #[test]
    fn a_failure_is_said_once_with_its_first_moment() {
        let mut one = One::new();
        let moment = |secs| SystemTime::UNIX_EPOCH + Duration::from_secs(secs);
        let mut fails = |at| {
            one.book
                .note(&name("a.test"), answer("nx", "nx"), one.now, moment(at), 0.0)
                .say
        };
        let said = Say::Fails {
            why: "there is no such name (NXDOMAIN)".to_owned(),
            n_unsaid: None,
        };
        assert_eq!((fails(5), fails(6)), (Some(said), None));
        assert_eq!(one.state().failing.unwrap().since, moment(5));
        assert_eq!(one.note(answer("10.0.0.1", "-")).say, Some(Say::Back));
        assert_eq!(
            (one.note(answer("10.0.0.1", "-")).say, one.state().failing),
            (None, None)
        );
    }

    #[test]
    fn more_addresses_than_may_be_are_cut_in_order_and_that_is_said_once() {
        let many = |n: u8| {
            (0..n)
                .rev()
                .map(|i| format!("10.0.0.{i}"))
                .collect::<Vec<_>>()
                .join(" ")
        };
        let mut one = One::new();
        assert_eq!(one.note(answer(&many(64), "-")).say_cut, None);
        let news = one.note(answer(&many(70), "::1"));
        assert_eq!((news.say_cut, news.has_changed), (Some(71), false));
        assert_eq!(one.note(answer(&many(70), "-")).say_cut, None);
        let state = one.state();
        assert_eq!((state.addresses.len(), state.n_cut), (64, 6));
        assert_eq!(state.addresses[63], IpAddr::from([10, 0, 0, 63]));
    }

    #[test]
    fn names_are_asked_for_a_few_at_a_time_and_those_that_fail_leave_room() {
        let names: Vec<String> = (0..28).map(|i| format!("n{i}.test")).collect();
        let all: Vec<&str> = names.iter().map(String::as_str).collect();
        let (mut book, now) = (Book::default(), Instant::now());
        book.want(wanted(&all), now);
        let first = book.begin(now, 0);
        assert_eq!(
            (first.len(), book.begin(now, 12).len(), book.next_due(12)),
            (12, 0, None)
        );
        for name in &first {
            book.note(name, answer("silence", "silence"), now, SystemTime::UNIX_EPOCH, 0.0);
        }
        let later = now + Duration::from_secs(1);
        let second = book.begin(later, 0);
        assert!(
            second.iter().all(|name| !first.contains(name)),
            "who was never asked for comes first"
        );
        for name in &second {
            book.note(name, answer("10.0.0.1", "-"), later, SystemTime::UNIX_EPOCH, 0.0);
        }
        let third = book.begin(later, 0);
        let n_failing = third.iter().filter(|name| first.contains(name)).count();
        assert_eq!((third.len(), n_failing), (12, 8));
        let next = book.next_due(12).unwrap();
        assert!(
            next > later,
            "the other failing ones wait for a place, and nobody spins: {:?}",
            next - later
        );
        // Nobody answers those twelve, and who was resolved before is asked for in time.
        let again = book.begin(next, 12);
        assert_eq!(again.len(), 4);
        assert!(again.iter().all(|name| second.contains(name)), "{again:?}");
        assert_eq!(book.next_due(16), None);
    }

    #[test]
    fn what_is_known_of_before_is_for_names_that_are_needed_at_once() {
        let (mut book, now) = (Book::default(), Instant::now());
        let kept = [
            (name("a.test"), ips("10.0.0.2 10.0.0.1 0.0.0.0")),
            (name("b.test"), ips("10.0.0.9")),
        ];
        book.recall(kept.into());
        assert_eq!((book.addresses().len(), book.all_addresses().len()), (0, 2));
        book.want(wanted(&["a.test"]), now);
        book.recall(BTreeMap::new());
        book.want(wanted(&["a.test", "b.test"]), now);
        assert_eq!(book.addresses(), [(name("a.test"), ips("10.0.0.1 10.0.0.2"))].into());
        assert_eq!(book.begin(now, 0).len(), 2, "they are asked for nonetheless");
        book.want(wanted(&["b.test"]), now);
        let late = book.note(
            &name("a.test"),
            answer("10.0.0.1", "-"),
            now,
            SystemTime::UNIX_EPOCH,
            0.0,
        );
        assert_eq!(
            (late, book.states().len()),
            (News::default(), 1),
            "a name that is not needed any more"
        );
    }

    #[test]
    fn what_is_left_out_is_said_once() {
        let mut one = One::new();
        let out = || BTreeMap::from([(name("a.test"), vec!["10.0.0.1:80 is ...".to_owned()])]);
        assert_eq!(one.book.leave_out(out()).len(), 1);
        assert_eq!(one.book.leave_out(out()), []);
        assert_eq!(one.state().left_out.len(), 1);
        assert_eq!(one.book.leave_out(BTreeMap::new()), []);
        assert_eq!(one.state().left_out, [""; 0]);
    }
}
