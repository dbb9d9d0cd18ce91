//! Endpoints by name, as status, readiness and metrics show them.

use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::metrics::MetricType;
use serde::Serialize;

use super::family::Family;
use crate::source::names::{NameState, NamesStatus};

#[derive(Serialize)]
pub(super) struct NameView {
    name: String,
    services: Vec<String>,
    /// What is known of it, be it from now or before.
    addresses: Vec<String>,
    /// How many more there were than may be endpoints.
    #[serde(skip_serializing_if = "is_zero")]
    addresses_cut: usize,
    /// Addresses that cannot be endpoints, and why.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    left_out: Vec<String>,
    /// Why it is not resolved, and since when.
    #[serde(skip_serializing_if = "Option::is_none")]
    fault: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    fault_since: Option<String>,
    failures: u64,
}

fn is_zero(n: &usize) -> bool {
    *n == 0
}

impl NameView {
    fn of(state: NameState) -> NameView {
        let since = state.failing.as_ref().map(|failing| failing.since);
        NameView {
            name: state.name.to_string(),
            services: state.services.iter().map(ToString::to_string).collect(),
            addresses: state.addresses.iter().map(ToString::to_string).collect(),
            addresses_cut: state.n_cut,
            left_out: state.left_out,
            fault: state.failing.map(|failing| failing.why),
            fault_since: since.map(|since| humantime::format_rfc3339_seconds(since).to_string()),
            failures: state.failures_total,
        }
    }
}

pub(super) fn views(names: &NamesStatus) -> Vec<NameView> {
    names.snapshot().into_iter().map(NameView::of).collect()
}

/// A line for each name that is not resolved.
pub(super) fn complaints(names: &NamesStatus) -> Vec<String> {
    let complaint = |state: NameState| {
        let failing = state.failing?;
        let services: Vec<String> = state.services.iter().map(ToString::to_string).collect();
        let known = match state.addresses.len() {
            0 => "no address is known".to_owned(),
            n => format!("the {n} that were known last are endpoints"),
        };
        Some(format!(
            "name {} of {}: not resolved since {}, {known}: {}",
            state.name,
            services.join(", "),
            humantime::format_rfc3339_seconds(failing.since),
            failing.why
        ))
    };
    names.snapshot().into_iter().filter_map(complaint).collect()
}

pub(super) fn write_metrics(names: &NamesStatus, out: &mut DescriptorEncoder<'_>) {
    let states = names.snapshot();
    let mut write = |kind, name, help, value: fn(&NameState) -> u64| {
        let mut family = Family::new(out, kind, name, help);
        for state in &states {
            family.sample(&[("name", state.name.as_str())], value(state));
        }
    };
    write(
        MetricType::Gauge,
        "anynode_name_addresses",
        "Addresses that are known of a name of endpoints.",
        |state| state.addresses.len() as u64,
    );
    write(
        MetricType::Gauge,
        "anynode_name_resolution_failing",
        "Whether a name of endpoints was not resolved when it was asked for last; status says why.",
        |state| u64::from(state.failing.is_some()),
    );
    write(
        MetricType::Counter,
        "anynode_name_resolution_failures",
        "Times that a name of endpoints was asked for and not resolved.",
        |state| state.failures_total,
    );
}
