//! What anynode is to cost beside its peers, and what these must cost beside each other for a run to mean anything.

use crate::work::{Column, ENVOY, HAPROXY, NGINX, Work};

/// A ratio that anynode is to stay below: the goal, and where the gate is.
pub struct Goal {
    pub work: Work,
    pub against: Column,
    pub goal: f64,
    pub limit: f64,
}

pub const GOALS: [Goal; 17] = [
    Goal {
        work: Work::Bulk,
        against: HAPROXY,
        goal: 0.9,
        limit: HAPROXY_LIMIT_BULK,
    },
    Goal {
        work: Work::Bulk,
        against: NGINX,
        goal: 0.3,
        limit: 0.3 * TCP_ROOM,
    },
    Goal {
        work: Work::Stream,
        against: HAPROXY,
        goal: 0.9,
        limit: HAPROXY_LIMIT_BULK,
    },
    Goal {
        work: Work::Stream,
        against: NGINX,
        goal: 0.3,
        limit: 0.3 * TCP_ROOM,
    },
    Goal {
        work: Work::Small,
        against: HAPROXY,
        goal: 1.0,
        limit: TCP_ROOM,
    },
    Goal {
        work: Work::Short,
        against: HAPROXY,
        goal: 1.0,
        limit: TCP_ROOM,
    },
    Goal {
        work: Work::Http,
        against: HAPROXY,
        goal: 1.0,
        limit: HTTP_ROOM,
    },
    tls_goal(Work::TlsHttp, HAPROXY),
    tls_goal(Work::TlsHttp, NGINX),
    tls_goal(Work::TlsBulk, HAPROXY),
    tls_goal(Work::TlsBulk, NGINX),
    tls_goal(Work::TlsFull, HAPROXY),
    tls_goal(Work::TlsFull, NGINX),
    tls_goal(Work::TlsResumed, HAPROXY),
    tls_goal(Work::TlsResumed, NGINX),
    tls_goal(Work::Http2, NGINX),
    Goal {
        work: Work::Http2,
        against: ENVOY,
        goal: 0.6,
        limit: 0.6 * TCP_ROOM,
    },
];

/// As `GOALS`, where everybody has several workers.
pub const GOALS_OF_SEVERAL: [Goal; 2] = [
    Goal {
        work: Work::Bulk,
        against: HAPROXY,
        goal: 0.95,
        limit: 0.95 * TCP_ROOM,
    },
    Goal {
        work: Work::Stream,
        against: HAPROXY,
        goal: 0.95,
        limit: 0.95 * TCP_ROOM,
    },
];

/// No more than whichever of them is better.
const fn tls_goal(work: Work, against: Column) -> Goal {
    Goal {
        work,
        against,
        goal: 1.0,
        limit: TCP_ROOM,
    }
}

/// What ratios of the peers must be for a run to mean anything. (work, of, to, from, up to)
pub const KNOWN: [(Work, Column, Column, f64, f64); 5] = [
    // 1,150 to 290 µs on the machine of the first measurements: HAProxy splices, nginx copies.
    (Work::Bulk, NGINX, HAPROXY, 1.5, 12.0),
    (Work::Stream, NGINX, HAPROXY, 1.5, 12.0),
    // 17.3 to 18.6 µs there.
    (Work::Small, HAPROXY, NGINX, 0.7, 1.4),
    // 105 to 106 µs.
    (Work::Short, HAPROXY, NGINX, 0.65, 1.5),
    // 24.4 to 22.8 µs.
    (Work::Http, HAPROXY, NGINX, 0.65, 1.6),
];

/// How far above a goal a change may not go.
const TCP_ROOM: f64 = 1.15;
const HTTP_ROOM: f64 = 1.25;
/// Of bulk and of streams.
pub const HAPROXY_LIMIT_BULK: f64 = 0.9 * TCP_ROOM;
