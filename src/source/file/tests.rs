//! The source against real files: how editors write them, how they break, and a restart.

use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tokio::sync::oneshot;

use super::FileSource;
use super::keep::{Keeper, Kept};
use crate::routing::TableHandle;
use crate::source::names::NamesConfig;
use crate::source::{SourceHealth, SourceStatus};

struct Running {
    dir: Arc<TempDir>,
    table: Arc<TableHandle>,
    status: Arc<SourceStatus>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Running {
    fn start(dir: Arc<TempDir>) -> Running {
        let (table, status) = (Arc::new(TableHandle::default()), Arc::new(SourceStatus::default()));
        let (stop, stopped) = oneshot::channel();
        let (path, data) = (dir.path().join("services.yml"), dir.path().join("data"));
        let (t, s) = (table.clone(), status.clone());
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                let source = FileSource::start(
                    path,
                    &data,
                    "127.77.0.0/16".parse().unwrap(),
                    NamesConfig::default(),
                    t,
                    s,
                );
                source.run(async { drop(stopped.await) }).await;
            });
        });
        let running = Running {
            dir,
            table,
            status,
            stop: Some(stop),
            thread: Some(thread),
        };
        running.wait("to start", || running.status.health() != SourceHealth::Starting);
        running
    }

    fn fresh(text: &str) -> Running {
        let dir = Arc::new(tempfile::tempdir().unwrap());
        std::fs::write(dir.path().join("services.yml"), text).unwrap();
        Running::start(dir)
    }

    fn path(&self) -> std::path::PathBuf {
        self.dir.path().join("services.yml")
    }

    fn names(&self) -> String {
        let table = self.table.load();
        table
            .services()
            .map(|service| service.name().to_string())
            .collect::<Vec<_>>()
            .join(" ")
    }

    fn wait(&self, what: &str, mut is_so: impl FnMut() -> bool) {
        let started = Instant::now();
        while !is_so() {
            assert!(
                started.elapsed() < Duration::from_secs(10),
                "{what}: {:?}, {}",
                self.status.health(),
                self.names()
            );
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn wait_names(&self, names: &str) {
        self.wait(names, || self.names() == names);
    }

    fn is_stale(&self) -> bool {
        matches!(self.status.health(), SourceHealth::Stale { .. })
    }

    fn stop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop();
    }
}

fn services(names: &[&str]) -> String {
    let mut text = "services:\n".to_owned();
    for name in names {
        text.push_str(&format!("  {name}: {{ endpoints: [] }}\n"));
    }
    text
}

fn replace(path: &Path, text: &str) {
    let aside = path.with_extension("tmp");
    std::fs::write(&aside, text).unwrap();
    std::fs::rename(&aside, path).unwrap();
}

#[test]
fn a_file_that_is_written_or_replaced_takes_effect() {
    let running = Running::fresh(&services(&["a"]));
    assert_eq!(running.names(), "a");
    std::fs::write(running.path(), services(&["a", "b"])).unwrap();
    running.wait_names("a b");
    replace(&running.path(), &services(&["c"]));
    running.wait_names("c");
    replace(&running.path(), &services(&["c", "d"]));
    running.wait_names("c d");
}

/// Somebody who writes without end, until it is dropped.
struct Neighbour {
    is_over: Arc<std::sync::atomic::AtomicBool>,
    threads: Vec<JoinHandle<u64>>,
}

impl Neighbour {
    /// `n` of them, each to files of its own in `dir`.
    fn start(dir: &Path, n: usize) -> Neighbour {
        use std::io::Write;
        use std::sync::atomic::Ordering::Relaxed;
        let is_over: Arc<std::sync::atomic::AtomicBool> = Arc::default();
        let write = |i: usize| {
            let (is_over, dir) = (is_over.clone(), dir.to_owned());
            std::thread::spawn(move || {
                let mut files: Vec<std::fs::File> = (0..8)
                    .map(|j| std::fs::File::create(dir.join(format!("log-{i}-{j}"))).unwrap())
                    .collect();
                let mut n_written = 0;
                while !is_over.load(Relaxed) {
                    for file in &mut files {
                        file.write_all(b"x").unwrap();
                        n_written += 1;
                    }
                }
                n_written
            })
        };
        let threads = (0..n).map(write).collect();
        Neighbour { is_over, threads }
    }

    fn stop(&mut self) -> u64 {
        self.is_over.store(true, std::sync::atomic::Ordering::Relaxed);
        self.threads.drain(..).map(|thread| thread.join().unwrap()).sum()
    }
}

impl Drop for Neighbour {
    fn drop(&mut self) {
        self.stop();
    }
}

#[test]
fn whoever_writes_beside_the_file_without_end_holds_nothing_up() {
    let mut running = Running::fresh(&services(&["a"]));
    let mut neighbour = Neighbour::start(running.dir.path(), 2);
    for i in 0..20 {
        let name = format!("n{i}");
        match i % 2 {
            0 => std::fs::write(running.path(), services(&[&name])).unwrap(),
            _ => replace(&running.path(), &services(&[&name])),
        }
        running.wait_names(&name);
    }
    // What runs beside the source on its thread has its turn too: this ends it.
    running.stop();
    assert!(neighbour.stop() > 1_000);
}

#[test]
fn half_of_a_file_never_counts() {
    use std::io::Write;
    let running = Running::fresh(&services(&["a", "b"]));
    let revision = running.table.load().revision();
    let mut file = std::fs::File::create(running.path()).unwrap();
    file.write_all(services(&["a"]).as_bytes()).unwrap();
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(running.names(), "a b");
    file.write_all(b"  c: { endpoints: [] }\n").unwrap();
    drop(file);
    running.wait_names("a c");
    assert_eq!(running.table.load().revision(), revision + 1);
}

#[test]
fn a_file_rewritten_without_rest_never_shows_half_of_itself() {
    let running = Running::fresh(&services(&["a", "b", "c"]));
    let text = services(&["a", "b", "c"]);
    let until = Instant::now() + Duration::from_millis(700);
    let mut i = 0;
    while Instant::now() < until {
        i += 1;
        std::fs::write(running.path(), format!("{text}  n{}: {{ endpoints: [] }}\n", i % 2)).unwrap();
        assert!(running.names().starts_with("a b c"), "{}", running.names());
        assert!(!running.is_stale(), "{:?}", running.status.health());
    }
    assert!(i > 100, "{i} rewrites");
    running.wait_names(&format!("a b c n{}", i % 2));
}

#[test]
fn a_hundred_changes_a_second_end_with_the_last() {
    let running = Running::fresh(&services(&["a"]));
    for i in 0..100 {
        replace(&running.path(), &services(&[&format!("n{i}")]));
        std::thread::sleep(Duration::from_millis(10));
    }
    running.wait_names("n99");
}

#[test]
fn a_broken_file_leaves_the_last_good_table_and_says_why() {
    let running = Running::fresh(&services(&["a"]));
    for broken in [
        "",
        "services:\n",
        "services: {}\n",
        "services:\n  a:\n    mode: x\n    endpoints: []\n",
        "{",
    ] {
        replace(&running.path(), broken);
        running.wait(broken, || running.is_stale());
        assert_eq!(running.names(), "a", "{broken}");
        replace(&running.path(), &services(&["a"]));
        running.wait("to recover", || !running.is_stale());
    }
    let taken =
        "services:\n  a: { publish: [\"80:80\"], endpoints: [] }\n  b: { publish: [\"80:80\"], endpoints: [] }\n";
    replace(&running.path(), taken);
    running.wait("the conflict", || running.is_stale());
    let shown = format!("{:?}", running.status.health());
    assert!(shown.contains("already published by service"), "{shown}");
    assert_eq!(running.names(), "a");
}

#[test]
fn a_file_may_vanish_and_return_and_so_may_its_directory() {
    let dir = Arc::new(tempfile::tempdir().unwrap());
    let inner = dir.path().join("inner");
    std::fs::create_dir(&inner).unwrap();
    std::os::unix::fs::symlink("inner/real.yml", dir.path().join("services.yml")).unwrap();
    std::fs::write(inner.join("real.yml"), services(&["a"])).unwrap();
    let running = Running::start(dir);
    assert_eq!(running.names(), "a");
    std::fs::write(inner.join("real.yml"), services(&["b"])).unwrap();
    running.wait_names("b");
    std::fs::remove_dir_all(&inner).unwrap();
    running.wait("the loss", || running.is_stale());
    assert_eq!(running.names(), "b");
    std::fs::create_dir(&inner).unwrap();
    std::fs::write(inner.join("real.yml"), services(&["c"])).unwrap();
    running.wait_names("c");
    std::fs::write(running.dir.path().join("other.yml"), services(&["d"])).unwrap();
    std::os::unix::fs::symlink("other.yml", running.dir.path().join("link")).unwrap();
    std::fs::rename(running.dir.path().join("link"), running.path()).unwrap();
    running.wait_names("d");
    std::fs::remove_file(running.path()).unwrap();
    running.wait("the loss", || running.is_stale());
    replace(&running.path(), &services(&["e"]));
    running.wait_names("e");
}

#[test]
fn the_last_good_table_and_its_vips_survive_a_restart_without_the_file() {
    let mut running = Running::fresh(&services(&["a", "b"]));
    let vips = |running: &Running| {
        running
            .table
            .load()
            .services()
            .map(|service| service.vip().unwrap())
            .collect::<Vec<_>>()
    };
    let before = vips(&running);
    running.stop();
    std::fs::remove_file(running.path()).unwrap();
    let mut again = Running::start(running.dir.clone());
    assert_eq!(again.names(), "a b");
    assert_eq!(vips(&again), before);
    assert!(again.is_stale());
    again.stop();
    std::fs::write(running.path(), services(&["b", "c", "a"])).unwrap();
    let third = Running::start(running.dir.clone());
    assert_eq!(third.names(), "a b c");
    assert_eq!(vips(&third)[..2], before[..]);
}

#[test]
fn a_change_of_one_service_touches_no_other() {
    let running = Running::fresh(&services(&["a", "b"]));
    let service = |name: &str| running.table.load().service_by_key(name).unwrap().clone();
    let (a, b) = (service("a"), service("b"));
    replace(
        &running.path(),
        "services:\n  a: { endpoints: [] }\n  b: { endpoints: [\"127.0.0.1:1\"] }\n",
    );
    running.wait("b", || !Arc::ptr_eq(&b, &service("b")));
    assert!(Arc::ptr_eq(&a, &service("a")));
}

#[test]
fn what_a_newcomer_writes_is_answered_with_what_is_to_be_written() {
    for (rest, expected) in [
        ("timeouts.connect: 5s", "expected timeouts: { connect: ... }"),
        ("entrypoints: web", "expected a list, such as [websecure]"),
        (
            "mode: http, allow: 10.0.0.0/8",
            "expected a list, such as [\"10.0.0.0/8\"]",
        ),
        ("mode: http, strip_prefix: /api", "expected a list, such as [\"/api\"]"),
        ("mode: http, compress: true", "expected {} for the defaults"),
        (
            "retries: 1, compress: {}",
            "retries, compress: expected mode: http: in tcp mode there are no requests",
        ),
    ] {
        let text = format!("services:\n  web: {{ publish: [\"8080:80\"], endpoints: [], {rest} }}\n");
        let said = super::parse(&text).unwrap_err().to_string();
        assert!(said.contains(expected), "{rest}: {said}");
    }
}

#[test]
fn a_file_that_an_earlier_version_took_goes_on_where_a_new_one_would_be_refused() {
    for (rest, expected) in [
        (
            "mode: http, forward_auth: { address: \"http://nobody/\" }",
            "there is no service \"nobody\"",
        ),
        ("endpoints: [\"fd00::1:80\"]", "brackets around an IPv6 address"),
    ] {
        let endpoints = if rest.contains("endpoints") {
            ""
        } else {
            "endpoints: [], "
        };
        let text = format!("services:\n  web: {{ publish: [\"127.0.0.1:18080:80\"], {endpoints}{rest} }}\n");
        let dir = Arc::new(tempfile::tempdir().unwrap());
        let (mut keeper, kept) = Keeper::open(&dir.path().join("data"));
        keeper.keep(Kept {
            services: Some(text.clone()),
            ..kept
        });
        keeper.write_now();
        drop(keeper);
        std::fs::write(dir.path().join("services.yml"), text).unwrap();
        let running = Running::start(dir);
        assert_eq!(running.names(), "web");
        let SourceHealth::Stale { reason } = running.status.health() else {
            panic!("it is taken: {rest}");
        };
        assert!(reason.contains(expected), "{reason}");
    }
}
