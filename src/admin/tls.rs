//! What is shown and counted of TLS at entry points.

use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, UNIX_EPOCH};

use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::metrics::MetricType;
use serde::Serialize;

use super::family::Family;
use crate::tls::{Acme, NameView, Shown, Terminators, now};

#[derive(Serialize)]
pub(super) struct TlsView {
    certificates: Vec<CertificateView>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    ordered: Vec<OrderedView>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    faults: Vec<String>,
}

/// A name that a certificate is ordered for.
#[derive(Serialize)]
struct OrderedView {
    acme: String,
    name: String,
    /// `ordering`, `failed` (the last order), `good`, `waiting`, or `file`: one from a file, or a declared one, is shown, and none is ordered.
    state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_at: Option<String>,
    /// Negative once it has expired.
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_seconds: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_order_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_failure: Option<String>,
    /// The node of the swarm that orders it.
    #[serde(skip_serializing_if = "Option::is_none")]
    ordered_by: Option<String>,
}

impl OrderedView {
    fn of(name: NameView, now: i64) -> OrderedView {
        OrderedView {
            state: match name {
                NameView { is_in_file: true, .. } => "file",
                NameView { is_at_it: true, .. } => "ordering",
                NameView { failure: Some(_), .. } => "failed",
                NameView { not_after: Some(_), .. } => "good",
                NameView { not_after: None, .. } => "waiting",
            },
            acme: name.acme.to_string(),
            name: name.host,
            expires_at: name.not_after.map(rfc3339),
            expires_seconds: name.not_after.map(|not_after| not_after - now),
            next_order_at: name.next_at.map(rfc3339),
            last_failure: name.failure,
            ordered_by: name.ordered_by.map(|node| node.to_string()),
        }
    }
}

#[derive(Serialize)]
struct CertificateView {
    /// Or what declares it: `secret:NAME`, `config:NAME`.
    file: String,
    /// The hosts that it is for. None: it was never usable.
    names: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_at: Option<String>,
    /// Negative once it has expired.
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_seconds: Option<i64>,
}

impl TlsView {
    pub(super) fn of(tls: &Terminators) -> TlsView {
        let now = now();
        let certificate = |shown: Shown| CertificateView {
            file: shown.from,
            names: shown.pair.as_ref().map(|pair| pair.names.clone()).unwrap_or_default(),
            expires_at: shown.pair.as_ref().map(|pair| rfc3339(pair.not_after)),
            expires_seconds: shown.pair.as_ref().map(|pair| pair.not_after - now),
        };
        TlsView {
            certificates: tls.certificates().all().into_iter().map(certificate).collect(),
            ordered: tls
                .acme()
                .view()
                .into_iter()
                .map(|name| OrderedView::of(name, now))
                .collect(),
            faults: tls.faults(),
        }
    }
}

fn rfc3339(seconds: i64) -> String {
    let since = Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
    humantime::format_rfc3339_seconds(UNIX_EPOCH + since).to_string()
}

pub(super) fn write_metrics(tls: &Terminators, out: &mut DescriptorEncoder<'_>) {
    let mut family = Family::new(
        out,
        MetricType::Counter,
        "anynode_tls_handshakes",
        "Handshakes at the entry point: full, resumed by a ticket, refused, or abandoned by the client.",
    );
    for (name, one) in tls.all() {
        let handshakes = &one.handshakes;
        for (result, count) in [
            ("full", &handshakes.full),
            ("resumed", &handshakes.resumed),
            ("refused", &handshakes.refused),
            ("abandoned", &handshakes.abandoned),
        ] {
            family.sample(
                &[("entrypoint", name.as_str()), ("result", result)],
                count.load(Relaxed),
            );
        }
    }
    let certificates = tls.certificates().all();
    let mut family = Family::new(
        out,
        MetricType::Gauge,
        "anynode_tls_certificate_not_after_seconds",
        "When the certificate that is shown expires, in seconds since 1970.",
    );
    for shown in &certificates {
        if let Some(pair) = &shown.pair {
            family.sample(&[("file", &shown.from)], u64::try_from(pair.not_after).unwrap_or(0));
        }
    }
    let mut family = Family::new(
        out,
        MetricType::Gauge,
        "anynode_tls_certificate_faulty",
        "Whether it cannot be used as it is.",
    );
    for shown in &certificates {
        family.sample(&[("file", &shown.from)], u64::from(shown.fault.is_some()));
    }
    write_orders(tls.acme(), out);
}

fn write_orders(acme: &Acme, out: &mut DescriptorEncoder<'_>) {
    let mut family = Family::new(
        out,
        MetricType::Counter,
        "anynode_acme_orders",
        "Certificates that were ordered by ACME, and orders that failed.",
    );
    for orders in acme.orders() {
        for (result, count) in [("ordered", orders.n_ordered), ("failed", orders.n_failed)] {
            family.sample(&[("acme", orders.acme.as_str()), ("result", result)], count);
        }
    }
    let names = acme.view();
    let mut family = Family::new(
        out,
        MetricType::Gauge,
        "anynode_acme_orderer",
        "1 for the node of the swarm that orders certificates, as this node knows it.",
    );
    if let Some(node) = names.iter().find_map(|name| name.ordered_by.as_deref()) {
        family.sample(&[("node", node)], 1_u64);
    }
    let mut family = Family::new(
        out,
        MetricType::Gauge,
        "anynode_acme_certificate_not_after_seconds",
        "When the ordered certificate for the name expires, in seconds since 1970; 0: there is none yet.",
    );
    for name in names.iter().filter(|name| !name.is_in_file) {
        let not_after = u64::try_from(name.not_after.unwrap_or(0)).unwrap_or(0);
        family.sample(&[("acme", name.acme.as_str()), ("name", &name.host)], not_after);
    }
    let mut family = Family::new(
        out,
        MetricType::Gauge,
        "anynode_acme_failing",
        "Whether the last order for the name failed.",
    );
    for name in names.iter().filter(|name| !name.is_in_file) {
        family.sample(
            &[("acme", name.acme.as_str()), ("name", &name.host)],
            u64::from(name.failure.is_some()),
        );
    }
}
