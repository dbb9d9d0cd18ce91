//! What is counted about DNS: plain atomics that the server adds to and a scrape reads. Label sets are closed enums, so
//! that no client can make a series. Not here: names and text formats (`admin`).

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use crate::routing::Histogram;

/// The response codes that are told apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Rcode {
    NoError,
    FormErr,
    ServFail,
    NxDomain,
    NotImp,
    Refused,
    BadVers,
    Other,
}

impl Rcode {
    pub const ALL: [Rcode; 8] = [
        Rcode::NoError,
        Rcode::FormErr,
        Rcode::ServFail,
        Rcode::NxDomain,
        Rcode::NotImp,
        Rcode::Refused,
        Rcode::BadVers,
        Rcode::Other,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Rcode::NoError => "noerror",
            Rcode::FormErr => "formerr",
            Rcode::ServFail => "servfail",
            Rcode::NxDomain => "nxdomain",
            Rcode::NotImp => "notimp",
            Rcode::Refused => "refused",
            Rcode::BadVers => "badvers",
            Rcode::Other => "other",
        }
    }
}

impl From<u16> for Rcode {
    /// From the number on the wire.
    fn from(code: u16) -> Rcode {
        match code {
            0 => Rcode::NoError,
            1 => Rcode::FormErr,
            2 => Rcode::ServFail,
            3 => Rcode::NxDomain,
            4 => Rcode::NotImp,
            5 => Rcode::Refused,
            16 => Rcode::BadVers,
            _ => Rcode::Other,
        }
    }
}

/// Who a query was for: ourselves, or the upstream servers (also where those could not be asked).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Source {
    Local,
    Upstream,
}

impl Source {
    pub const ALL: [Source; 2] = [Source::Local, Source::Upstream];

    pub fn as_str(self) -> &'static str {
        match self {
            Source::Local => "local",
            Source::Upstream => "upstream",
        }
    }
}

/// Why an upstream server was passed over for the next one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum UpstreamFailure {
    /// It said nothing in time.
    Timeout,
    /// It could not be reached, or broke off.
    Unreachable,
    /// It answered SERVFAIL.
    ServFail,
    /// It answered REFUSED.
    Refused,
}

impl UpstreamFailure {
    pub const ALL: [UpstreamFailure; 4] = [
        UpstreamFailure::Timeout,
        UpstreamFailure::Unreachable,
        UpstreamFailure::ServFail,
        UpstreamFailure::Refused,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            UpstreamFailure::Timeout => "timeout",
            UpstreamFailure::Unreachable => "unreachable",
            UpstreamFailure::ServFail => "servfail",
            UpstreamFailure::Refused => "refused",
        }
    }
}

#[derive(Debug, Default)]
pub struct DnsStats {
    queries: [[AtomicU64; Rcode::ALL.len()]; Source::ALL.len()],
    seconds: [Histogram; Source::ALL.len()],
    upstream_failures: [AtomicU64; UpstreamFailure::ALL.len()],
    forwards_in_flight: AtomicU64,
    mismatches_total: AtomicU64,
    unsent_total: AtomicU64,
}

impl DnsStats {
    /// Queries answered so far.
    pub fn queries(&self, rcode: Rcode, source: Source) -> u64 {
        self.queries[source as usize][rcode as usize].load(Relaxed)
    }

    /// From the query's arrival to its answer's departure.
    pub fn seconds(&self, source: Source) -> &Histogram {
        &self.seconds[source as usize]
    }

    pub fn upstream_failures(&self, failure: UpstreamFailure) -> u64 {
        self.upstream_failures[failure as usize].load(Relaxed)
    }

    /// Queries that wait for an upstream server now.
    pub fn forwards_in_flight(&self) -> u64 {
        self.forwards_in_flight.load(Relaxed)
    }

    /// Datagrams that came as if from upstream and did not answer what was asked: late ones, or somebody's guesses.
    pub fn mismatches_total(&self) -> u64 {
        self.mismatches_total.load(Relaxed)
    }

    /// Answers that the socket would not take.
    pub fn unsent_total(&self) -> u64 {
        self.unsent_total.load(Relaxed)
    }

    pub(super) fn answered(&self, rcode: Rcode, source: Source, took: Duration) {
        self.queries[source as usize][rcode as usize].fetch_add(1, Relaxed);
        self.seconds[source as usize].observe(took);
    }

    pub(super) fn upstream_failed(&self, failure: UpstreamFailure) {
        self.upstream_failures[failure as usize].fetch_add(1, Relaxed);
    }

    pub(super) fn forward_began(&self) {
        self.forwards_in_flight.fetch_add(1, Relaxed);
    }

    pub(super) fn forward_ended(&self) {
        self.forwards_in_flight.fetch_sub(1, Relaxed);
    }

    pub(super) fn mismatched(&self) {
        self.mismatches_total.fetch_add(1, Relaxed);
    }

    pub(super) fn unsent(&self) {
        self.unsent_total.fetch_add(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn enums_index_their_own_tables() {
        for (i, rcode) in Rcode::ALL.into_iter().enumerate() {
            assert_eq!(rcode as usize, i);
        }
        for (i, failure) in UpstreamFailure::ALL.into_iter().enumerate() {
            assert_eq!(failure as usize, i);
        }
        assert_eq!((Source::Local as usize, Source::Upstream as usize), (0, 1));
    }

    #[test]
    fn each_answer_is_counted_once() {
        let stats = DnsStats::default();
        stats.answered(Rcode::from(3), Source::Upstream, Duration::from_millis(2));
        stats.answered(Rcode::from(4095), Source::Local, Duration::ZERO);
        assert_eq!(stats.queries(Rcode::NxDomain, Source::Upstream), 1);
        assert_eq!(stats.queries(Rcode::Other, Source::Local), 1);
        assert_eq!(stats.queries(Rcode::NoError, Source::Local), 0);
        let (counts, _) = stats.seconds(Source::Upstream).read();
        assert_eq!(counts.iter().sum::<u64>(), 1);
    }
}
