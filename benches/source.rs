//! A services file to specs, and to a table, at 10, 1,000 and 10,000 services of 10 endpoints; per file. Not here: the
//! watch, and what follows the table.

use std::fmt::Write;
use std::hint::black_box;

use anynode::source::file;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};

fn text_of(n: usize) -> String {
    let mut text = "services:\n".to_owned();
    for i in 0..n {
        let endpoints: Vec<String> = (1..=10)
            .map(|j| format!("\"10.{}.{}.{j}:80\"", i / 250, i % 250))
            .collect();
        let published = 1024 + i;
        // Writing to a String cannot fail.
        let _ = write!(
            text,
            "  service-{i}:\n    mode: http\n    publish: [\"{published}:80\"]\n    endpoints: [{}]\n",
            endpoints.join(", ")
        );
    }
    text
}

fn parse(c: &mut Criterion) {
    let network = "10.200.0.0/14".parse().expect("a valid network");
    let mut group = c.benchmark_group("services file");
    group.sample_size(10);
    for n in [10, 1_000, 10_000] {
        let text = text_of(n);
        assert_eq!(file::parse(&text).map(|specs| specs.len()), Ok(n));
        group.throughput(Throughput::Bytes(text.len() as u64));
        group.bench_function(BenchmarkId::new("to specs", n), |b| {
            b.iter(|| black_box(file::parse(&text).is_ok()))
        });
        group.bench_function(BenchmarkId::new("to table", n), |b| {
            b.iter(|| black_box(file::check(&text, network, Vec::new()).is_ok()));
        });
    }
    group.finish();
}

criterion_group!(benches, parse);
criterion_main!(benches);
