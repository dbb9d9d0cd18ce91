//! Figures of services over the last quarter of an hour: a sample each few seconds of what is counted, in memory, bounded.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, SystemTime};

use hyper::body::Bytes;
use serde::{Deserialize, Serialize};

use super::stream;
use crate::admin::moment::unix_ms;
use crate::model::{Mode, ServiceName};
use crate::routing::{BytePath, CloseReason, Direction, Histogram, HttpCode, RoutingTable, Service};

pub(super) const EVERY: Duration = Duration::from_secs(5);
/// A quarter of an hour.
const KEPT: usize = 180;

/// What was counted of each service, for the difference to the next time.
#[derive(Debug, Default)]
pub(super) struct Counters {
    seen: HashMap<ServiceName, Totals>,
}

#[derive(Debug, Clone, PartialEq)]
struct Totals {
    n: u64,
    n_failed: u64,
    bytes: [u64; 2],
    latency: [u64; BUCKETS],
}

const BUCKETS: usize = Histogram::BOUNDS_US.len() + 1;

/// What one service did between two samples.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Figures {
    /// Requests (http) or connections (tcp) a second.
    rate: f64,
    /// The part of them that failed.
    errors: f64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    p50_us: Option<u64>,
    /// Of several nodes: of the slowest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    p99_us: Option<u64>,
    /// Bytes a second.
    #[serde(rename = "in")]
    bytes_in: u64,
    #[serde(rename = "out")]
    bytes_out: u64,
    /// Requests under way (http) or connections open (tcp).
    open: u64,
    /// Wait for an endpoint.
    held: u64,
}

impl Counters {
    /// What each service did since the last time, `over` ago: of those that did something, or have something open.
    pub(super) fn count(&mut self, table: &RoutingTable, over: Duration) -> ByService {
        let mut counted = ByService::new();
        for service in table.services() {
            let (totals, open, held) = (Totals::of(service), open(service), held(service));
            let before = self.seen.get(service.name());
            if before == Some(&totals) && open == 0 && held == 0 {
                continue;
            }
            if let Some(before) = before {
                counted.insert(service.name().to_string(), totals.since(before, over, open, held));
            }
            self.seen.insert(service.name().clone(), totals);
        }
        if self.seen.len() > 2 * table.len() + 16 {
            self.seen.retain(|name, _| table.service(name).is_some());
        }
        counted
    }
}

fn open(service: &Service) -> u64 {
    match service.spec().mode {
        Mode::Http => service
            .endpoints()
            .iter()
            .map(|endpoint| u64::from(endpoint.in_flight()))
            .sum(),
        Mode::Tcp => u64::try_from(service.stats().connections_active.load(Relaxed)).unwrap_or(0),
    }
}

fn held(service: &Service) -> u64 {
    u64::from(service.state().hold_gate.depth())
}

impl Totals {
    fn of(service: &Service) -> Totals {
        let stats = service.stats();
        let closed = |reasons: &[CloseReason]| reasons.iter().map(|reason| stats.closed_count(*reason)).sum::<u64>();
        let (n, n_failed, latency) = match service.spec().mode {
            Mode::Http => (
                HttpCode::ALL.iter().map(|code| stats.request_count(*code)).sum(),
                stats.request_count(HttpCode::ServerError),
                &stats.request_duration,
            ),
            Mode::Tcp => (
                stats.connections_total.load(Relaxed),
                closed(FAILURES),
                &stats.upstream_connect,
            ),
        };
        let bytes = Direction::ALL.map(|way| BytePath::ALL.iter().map(|path| stats.byte_count(way, *path)).sum());
        Totals {
            n,
            n_failed,
            bytes,
            latency: latency.read().0,
        }
    }

    fn since(&self, before: &Totals, over: Duration, open: u64, held: u64) -> Figures {
        let (n, secs) = (self.n.saturating_sub(before.n), over.as_secs_f64());
        let n_failed = self.n_failed.saturating_sub(before.n_failed);
        let latency: [u64; BUCKETS] = std::array::from_fn(|i| self.latency[i].saturating_sub(before.latency[i]));
        let bytes = |i: usize| (self.bytes[i].saturating_sub(before.bytes[i]) as f64 / secs) as u64;
        Figures {
            rate: round(n as f64 / secs),
            // A connection may fail that began before.
            errors: if n == 0 {
                0.0
            } else {
                round((n_failed as f64 / n as f64).min(1.0))
            },
            p50_us: quantile(&latency, 0.5),
            p99_us: quantile(&latency, 0.99),
            bytes_in: bytes(0),
            bytes_out: bytes(1),
            open,
            held,
        }
    }
}

/// Ends of a connection that its client would call a failure of ours or of the service.
const FAILURES: &[CloseReason] = &[
    CloseReason::ConnectFailed,
    CloseReason::ConnectTimeout,
    CloseReason::DrainForced,
    CloseReason::GivenUp,
    CloseReason::Limit,
    CloseReason::Loop,
    CloseReason::NoEndpoint,
    CloseReason::UpstreamError,
    CloseReason::UpstreamRst,
];

/// To four digits after the point.
fn round(figure: f64) -> f64 {
    (figure * 1e4).round() / 1e4
}

/// Where within its bucket the part of all lies, as if they were spread evenly over it. `None`: nothing was counted.
fn quantile(counts: &[u64; BUCKETS], part: f64) -> Option<u64> {
    let n: u64 = counts.iter().sum();
    if n == 0 {
        return None;
    }
    let rank = (part * n as f64).max(1.0);
    let mut below = 0.0;
    for (i, count) in counts.iter().enumerate() {
        let within = *count as f64;
        if below + within >= rank {
            let low = i.checked_sub(1).map_or(0, |i| Histogram::BOUNDS_US[i]);
            let Some(high) = Histogram::BOUNDS_US.get(i) else {
                return Some(low);
            };
            return Some(low + ((high - low) as f64 * (rank - below) / within) as u64);
        }
        below += within;
    }
    Histogram::BOUNDS_US.last().copied()
}

/// Figures of all services that did something, by name.
pub(super) type ByService = BTreeMap<String, Figures>;

impl Figures {
    /// With those of another node.
    fn add(&mut self, other: &Figures) {
        let rate = self.rate + other.rate;
        let weighed = |of_self: f64, of_other: f64| match rate > 0.0 {
            true => (of_self * self.rate + of_other * other.rate) / rate,
            false => of_self.max(of_other),
        };
        self.errors = round(weighed(self.errors, other.errors));
        self.p50_us = match (self.p50_us, other.p50_us) {
            (Some(of_self), Some(of_other)) => Some(weighed(of_self as f64, of_other as f64) as u64),
            (of_self, of_other) => of_self.or(of_other),
        };
        self.p99_us = self.p99_us.max(other.p99_us);
        self.rate = round(rate);
        self.bytes_in += other.bytes_in;
        self.bytes_out += other.bytes_out;
        self.open += other.open;
        self.held += other.held;
    }
}

/// Those of several nodes as one.
pub(super) fn sum<'a>(nodes: impl IntoIterator<Item = &'a ByService>) -> ByService {
    let mut all = ByService::new();
    for (name, figures) in nodes.into_iter().flatten() {
        match all.get_mut(name) {
            Some(known) => known.add(figures),
            None => drop(all.insert(name.clone(), figures.clone())),
        }
    }
    all
}

/// What is kept of one node's services.
#[derive(Debug, Default)]
pub(super) struct Samples {
    at_ms: u64,
    /// Counts samples.
    n: u64,
    last: ByService,
    /// Oldest first; the last is of the sample with the number that stands beside it.
    by_service: HashMap<String, (u64, VecDeque<Point>)>,
}

/// What is kept of one sample: enough for a small chart.
#[derive(Debug, Clone, Copy, Default)]
struct Point {
    rate: f32,
    errors: f32,
    p99_us: u32,
}

/// What is told of one moment.
#[derive(Serialize)]
pub(super) struct FiguresEvent<'a> {
    t: u64,
    /// Of so many nodes, and how many there are that are up.
    nodes: (usize, usize),
    services: &'a ByService,
}

/// What is told of the time before. Of one service each list has as many, oldest first.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct HistoryEvent {
    t: u64,
    services: BTreeMap<String, History>,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct History {
    rate: Vec<f32>,
    errors: Vec<f32>,
    p99_us: Vec<u32>,
}

impl Samples {
    /// Keeps a sample.
    pub(super) fn take(&mut self, counted: ByService, at: SystemTime) {
        self.n += 1;
        self.at_ms = unix_ms(at);
        for (name, figures) in &counted {
            let (last, points) = self.by_service.entry(name.clone()).or_default();
            // It did nothing in the samples between.
            let n_idle = self.n.saturating_sub(*last + 1).min(KEPT as u64);
            if *last > 0 {
                points.extend(std::iter::repeat_n(Point::default(), n_idle as usize));
            }
            points.push_back(Point {
                rate: figures.rate as f32,
                errors: figures.errors as f32,
                p99_us: figures.p99_us.map_or(0, |us| u32::try_from(us).unwrap_or(u32::MAX)),
            });
            points.drain(..points.len().saturating_sub(KEPT));
            *last = self.n;
        }
        let n = self.n;
        self.by_service.retain(|_, (last, _)| n - *last < KEPT as u64);
        self.last = counted;
    }

    /// The last sample.
    pub(super) fn last(&self) -> &ByService {
        &self.last
    }

    /// What those who look are told of the last sample, which is `services` with those of other nodes.
    pub(super) fn event(&self, services: &ByService, nodes: (usize, usize)) -> Bytes {
        let event = FiguresEvent {
            t: self.at_ms / 1000,
            nodes,
            services,
        };
        stream::event("figures", &event)
    }

    /// All that is kept; of very many services those that are busiest.
    pub(super) fn history(&self) -> HistoryEvent {
        let mut names: Vec<(&String, &(u64, VecDeque<Point>))> = self.by_service.iter().collect();
        if names.len() > HISTORIES_TOLD {
            let busy = |points: &VecDeque<Point>| points.iter().map(|point| point.rate).sum::<f32>();
            names.sort_by(|(_, (_, a)), (_, (_, b))| busy(b).total_cmp(&busy(a)));
            names.truncate(HISTORIES_TOLD);
        }
        let services = names.into_iter().map(|(name, (last, points))| {
            let n_idle = (self.n - last) as usize;
            let points = points
                .iter()
                .copied()
                .chain(std::iter::repeat_n(Point::default(), n_idle));
            let points: Vec<Point> = points.collect();
            let points = &points[points.len().saturating_sub(KEPT)..];
            let history = History {
                rate: points.iter().map(|point| point.rate).collect(),
                errors: points.iter().map(|point| point.errors).collect(),
                p99_us: points.iter().map(|point| point.p99_us).collect(),
            };
            (name.clone(), history)
        });
        HistoryEvent {
            t: self.at_ms / 1000,
            services: services.collect(),
        }
    }
}

impl HistoryEvent {
    /// With that of another node, each sample with the one that is as old.
    pub(super) fn add(&mut self, other: HistoryEvent) {
        for (name, history) in other.services {
            self.services.entry(name).or_default().add(history);
        }
    }
}

impl History {
    fn add(&mut self, other: History) {
        let n = self.rate.len().max(other.rate.len());
        let at = |history: &History, i: usize| {
            // Counted from the last.
            let i = (i + history.rate.len()).checked_sub(n)?;
            Some((*history.rate.get(i)?, *history.errors.get(i)?, *history.p99_us.get(i)?))
        };
        let mut sum = History::default();
        for i in 0..n {
            let (rate, errors, p99_us) = at(self, i).unwrap_or_default();
            let (more, their_errors, their_p99_us) = at(&other, i).unwrap_or_default();
            sum.rate.push(rate + more);
            sum.errors.push(match rate + more > 0.0 {
                true => (errors * rate + their_errors * more) / (rate + more),
                false => 0.0,
            });
            sum.p99_us.push(p99_us.max(their_p99_us));
        }
        *self = sum;
    }
}

/// Services whose history is told: as JSON they are some megabytes.
const HISTORIES_TOLD: usize = 1000;

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(pairs: &[(usize, u64)]) -> [u64; BUCKETS] {
        let mut counts = [0; BUCKETS];
        pairs.iter().for_each(|(i, n)| counts[*i] = *n);
        counts
    }

    #[test]
    fn a_quantile_lies_within_the_bucket_that_has_it() {
        assert_eq!(quantile(&counts(&[]), 0.5), None);
        assert_eq!(quantile(&counts(&[(0, 100)]), 0.5), Some(50));
        assert_eq!(quantile(&counts(&[(0, 100)]), 0.99), Some(99));
        assert_eq!(quantile(&counts(&[(0, 99), (6, 1)]), 0.99), Some(100));
        assert_eq!(quantile(&counts(&[(0, 98), (6, 2)]), 0.99), Some(7_500));
        assert_eq!(
            quantile(&counts(&[(BUCKETS - 1, 1)]), 0.5),
            Some(3_600_000_000),
            "no bound above it is known"
        );
    }

    fn figures(rate: f64) -> Figures {
        Figures {
            rate,
            errors: 0.0,
            p50_us: None,
            p99_us: None,
            bytes_in: 0,
            bytes_out: 0,
            open: 0,
            held: 0,
        }
    }

    fn web(rate: f64) -> ByService {
        [("web".to_owned(), figures(rate))].into()
    }

    #[test]
    fn samples_are_bounded_and_gaps_are_idle() {
        let (mut samples, at) = (Samples::default(), SystemTime::now());
        let rates = |samples: &Samples| samples.history().services.remove("web").unwrap_or_default().rate;
        samples.take(web(1.0), at);
        samples.take(ByService::new(), at);
        samples.take(ByService::new(), at);
        assert_eq!(rates(&samples), [1.0, 0.0, 0.0]);
        samples.take(web(2.0), at);
        assert_eq!(rates(&samples), [1.0, 0.0, 0.0, 2.0]);
        for _ in 0..KEPT {
            samples.take(web(3.0), at);
        }
        assert_eq!(rates(&samples), [3.0; KEPT]);
        for _ in 0..KEPT {
            samples.take(ByService::new(), at);
        }
        assert!(samples.by_service.is_empty());
    }

    #[test]
    fn several_nodes_are_shown_as_one() {
        let node = |rate: f64, errors: f64, p50_us: Option<u64>, p99_us: Option<u64>| -> ByService {
            let one = Figures {
                errors,
                p50_us,
                p99_us,
                open: 2,
                ..figures(rate)
            };
            [("web".to_owned(), one)].into()
        };
        let all = sum([
            &node(30.0, 0.1, Some(100), Some(900)),
            &node(10.0, 0.5, Some(300), Some(400)),
            &node(0.0, 0.0, None, None),
            &ByService::new(),
        ]);
        let shown = &all["web"];
        assert_eq!((shown.rate, shown.errors, shown.open), (40.0, 0.2, 6));
        assert_eq!((shown.p50_us, shown.p99_us), (Some(150), Some(900)));

        let (mut a, mut b, at) = (Samples::default(), Samples::default(), SystemTime::now());
        (0..3).for_each(|_| a.take(web(1.0), at));
        b.take(web(5.0), at);
        let mut history = a.history();
        history.add(b.history());
        assert_eq!(history.services["web"].rate, [1.0, 1.0, 6.0]);
        let mut history = b.history();
        history.add(a.history());
        assert_eq!(history.services["web"].rate, [1.0, 1.0, 6.0]);
    }
}
