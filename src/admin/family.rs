//! A family of series as it is written out for Prometheus. Not here: which there are (`metrics`).

use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;

use crate::routing::Histogram;

/// One family of series being written. Writing to memory cannot fail, and what cannot be written is left out.
pub(super) struct Family<'a> {
    metric: Option<MetricEncoder<'a>>,
    kind: MetricType,
}

impl<'a> Family<'a> {
    pub(super) fn new(
        out: &'a mut DescriptorEncoder<'_>,
        kind: MetricType,
        name: &'static str,
        help: &str,
    ) -> Family<'a> {
        Family {
            metric: out.encode_descriptor(name, help, None, kind).ok(),
            kind,
        }
    }

    pub(super) fn sample(&mut self, labels: &[(&str, &str)], value: u64) {
        let kind = self.kind;
        let encode = |metric: &mut MetricEncoder<'_>| match kind {
            MetricType::Counter => metric.encode_counter::<NoLabelSet, _, u64>(&value, None),
            _ => metric.encode_gauge(&value),
        };
        self.encode(labels, encode);
    }

    /// A count or a measure that is no whole number, such as of seconds.
    pub(super) fn fraction(&mut self, labels: &[(&str, &str)], value: f64) {
        let kind = self.kind;
        self.encode(labels, |metric| match kind {
            MetricType::Counter => metric.encode_counter::<NoLabelSet, _, u64>(&value, None),
            _ => metric.encode_gauge(&value),
        });
    }

    pub(super) fn histogram(&mut self, labels: &[(&str, &str)], histogram: &Histogram) {
        let (counts, sum) = histogram.read();
        let total: u64 = counts.iter().sum();
        if total == 0 {
            return;
        }
        let bounds = Histogram::BOUNDS_US
            .map(|us| us as f64 / 1e6)
            .into_iter()
            .chain([f64::INFINITY]);
        let buckets: Vec<(f64, u64)> = bounds.zip(counts).collect();
        self.encode(labels, |metric| {
            metric.encode_histogram::<NoLabelSet>(sum, total, &buckets, None)
        });
    }

    fn encode(
        &mut self,
        labels: &[(&str, &str)],
        encode: impl FnOnce(&mut MetricEncoder<'_>) -> Result<(), std::fmt::Error>,
    ) {
        let Some(metric) = &mut self.metric else { return };
        let _ = match labels {
            [] => encode(metric),
            labels => metric.encode_family(&labels).and_then(|mut metric| encode(&mut metric)),
        };
    }
}
