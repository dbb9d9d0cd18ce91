//! What an operator is shown: every line of the scrape parsed as strictly as OpenMetrics is written, sums that must add
//! up, and the other paths of the admin server.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anynode::admin::{AdminSettings, AdminState, Phase, Readiness};
use anynode::model::{Mode, ServiceName, ServiceSpec};
use anynode::routing::{Change, CloseReason};
use anynode::source::SourceStatus;
use serde_json::Value;
use tokio::sync::oneshot;

use crate::harness::{Node, Origin, dial, door, free_port, read_to_end, reset, service, wait_until};

/// An admin server that shows a node.
struct Admin {
    addr: SocketAddr,
    source: Arc<SourceStatus>,
    readiness: Arc<Readiness>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Admin {
    fn of(node: &Node) -> Admin {
        Admin::with(node, true)
    }

    /// `is_known`: the source has said what there is.
    fn with(node: &Node, is_known: bool) -> Admin {
        let state = state_of(node);
        let (source, readiness) = (state.source.clone(), state.readiness.clone());
        if is_known {
            source.applied();
        }
        readiness.set(Phase::Serving);
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let addr = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel();
        let run = move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                let listener = tokio::net::TcpListener::from_std(listener).unwrap();
                anynode::admin::serve(listener, state, std::future::pending(), async { drop(stopped.await) }).await;
            });
        };
        Admin {
            addr,
            source,
            readiness,
            stop: Some(stop),
            thread: Some(std::thread::spawn(run)),
        }
    }

    fn get(&self, path: &str) -> (u16, String) {
        let (status, _, body) = request(self.addr, "GET", path);
        (status, body)
    }

    fn scrape(&self, path: &str) -> Scrape {
        let (status, head, body) = request(self.addr, "GET", path);
        assert_eq!(status, 200);
        assert!(
            head.contains("content-type: application/openmetrics-text; version=1.0.0"),
            "{head}"
        );
        Scrape::parse(&body).unwrap_or_else(|error| panic!("{error}\n{body}"))
    }
}

impl Drop for Admin {
    fn drop(&mut self) {
        drop(self.stop.take());
        let ended = self.thread.take().map(JoinHandle::join);
        assert!(std::thread::panicking() || matches!(ended, Some(Ok(()))));
    }
}

/// All that an admin server shows of a node that stands by itself.
pub fn state_of(node: &Node) -> Arc<AdminState> {
    Arc::new(AdminState {
        tls: None,
        trust: Arc::default(),
        table: node.table.clone(),
        ports: node.ports.clone(),
        workers: node.proxy.clone(),
        source: Arc::default(),
        names: None,
        health: Arc::default(),
        dns: Some(Arc::default()),
        readiness: Arc::default(),
        started: Instant::now(),
        n_workers: 2,
        networks: None,
        takeover: None,
        faults: None,
        store: None,
        declared: None,
        swarm: None,
        doors: Arc::default(),
        settings: AdminSettings::default(),
        live: Arc::default(),
        verify: Box::new(|| Box::pin(std::future::ready(Value::Null))),
    })
}

/// One request on a connection of its own: status, head in lower case, body.
pub fn request(addr: SocketAddr, method: &str, path: &str) -> (u16, String, String) {
    let mut client = dial(addr);
    write!(
        client,
        "{method} {path} HTTP/1.1\r\nHost: localhost\r\nAccept: application/openmetrics-text, */*\r\nConnection: close\r\n\r\n"
    )
    .unwrap();
    let text = String::from_utf8(read_to_end(&client)).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    (head[9..12].parse().unwrap(), head.to_ascii_lowercase(), body.to_owned())
}

type Labels = BTreeMap<String, String>;

/// A scrape, taken apart.
#[derive(Debug, Default)]
pub struct Scrape {
    kinds: BTreeMap<String, String>,
    helps: BTreeMap<String, String>,
    samples: Vec<(String, Labels, f64)>,
}

impl Scrape {
    /// Errors: the first thing that is not OpenMetrics.
    pub fn parse(text: &str) -> Result<Scrape, String> {
        let mut scrape = Scrape::default();
        let mut family = String::new();
        let mut seen = HashSet::new();
        let body = text.strip_suffix("# EOF\n").ok_or("no # EOF at the end")?;
        for line in body.lines() {
            let wrong = |what: &str| format!("{what}: {line}");
            if let Some(rest) = line.strip_prefix("# ") {
                let (keyword, rest) = rest.split_once(' ').ok_or_else(|| wrong("a comment"))?;
                let (name, rest) = rest.split_once(' ').ok_or_else(|| wrong("no text"))?;
                match keyword {
                    "HELP" => {
                        scrape.helps.insert(name.to_owned(), rest.to_owned());
                    }
                    "UNIT" => {}
                    "TYPE" => {
                        if scrape.kinds.insert(name.to_owned(), rest.to_owned()).is_some() {
                            return Err(wrong("a second family of the name"));
                        }
                    }
                    _ => return Err(wrong("a comment")),
                }
                family = name.to_owned();
                continue;
            }
            let (series, value) = line.rsplit_once(' ').ok_or_else(|| wrong("no value"))?;
            let value: f64 = value.parse().map_err(|_| wrong("a value"))?;
            let (name, labels) = match series.split_once('{') {
                Some((name, rest)) => (
                    name,
                    parse_labels(rest.strip_suffix('}').ok_or_else(|| wrong("labels"))?)
                        .ok_or_else(|| wrong("labels"))?,
                ),
                None => (series, Labels::new()),
            };
            let is_name = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
            if !name.chars().all(is_name) {
                return Err(wrong("a name"));
            }
            let kind = scrape.kinds.get(&family).ok_or_else(|| wrong("no type"))?;
            let suffix = name
                .strip_prefix(family.as_str())
                .ok_or_else(|| wrong("a sample of another family"))?;
            let suffixes: &[&str] = match kind.as_str() {
                "counter" => &["_total"],
                "gauge" => &[""],
                "histogram" => &["_bucket", "_sum", "_count"],
                _ => return Err(wrong("a type")),
            };
            if !suffixes.contains(&suffix) {
                return Err(wrong("a name that its type forbids"));
            }
            if !seen.insert(series.to_owned()) {
                return Err(wrong("a second sample of the series"));
            }
            scrape.samples.push((name.to_owned(), labels, value));
        }
        scrape.check_histograms()?;
        scrape.check_reference()?;
        Ok(scrape)
    }

    /// Whatever any test scrapes is in the reference, as it is there.
    fn check_reference(&self) -> Result<(), String> {
        let rows = reference();
        for (family, kind) in &self.kinds {
            if !family.starts_with("anynode_") && !family.starts_with("process_") {
                continue;
            }
            let name = if kind == "counter" {
                format!("{family}_total")
            } else {
                family.clone()
            };
            let row = rows
                .get(&name)
                .ok_or_else(|| format!("{name} is not in the reference"))?;
            if row.kind != *kind || self.helps.get(family) != Some(&row.meaning) {
                return Err(format!(
                    "{name} is another one in the reference: {row:?}, {:?}",
                    self.helps.get(family)
                ));
            }
            let of_family = |sample: &&(String, Labels, f64)| {
                sample.0 == name || row.kind == "histogram" && sample.0 == format!("{name}_sum")
            };
            for (_, labels, _) in self.samples.iter().filter(of_family) {
                if let Some(label) = labels.keys().find(|label| !row.labels.contains(*label)) {
                    return Err(format!("{name} has no label {label} in the reference"));
                }
            }
        }
        Ok(())
    }

    fn check_histograms(&self) -> Result<(), String> {
        let without_le = |labels: &Labels| -> Labels {
            labels
                .iter()
                .filter(|(name, _)| *name != "le")
                .map(|(name, value)| (name.clone(), value.clone()))
                .collect()
        };
        for family in self.kinds.iter().filter(|(_, kind)| *kind == "histogram") {
            let family = family.0;
            for (_, labels, count) in self.named(&format!("{family}_count")) {
                let buckets: Vec<(f64, f64)> = self
                    .named(&format!("{family}_bucket"))
                    .filter(|(_, of, _)| without_le(of) == *labels)
                    .map(|(_, labels, n)| (labels["le"].replace("+Inf", "inf").parse().unwrap(), *n))
                    .collect();
                let ascends = buckets
                    .windows(2)
                    .all(|pair| pair[0].0 < pair[1].0 && pair[0].1 <= pair[1].1);
                if !ascends || buckets.last() != Some(&(f64::INFINITY, *count)) {
                    return Err(format!("{family} {labels:?} {count}: {buckets:?}"));
                }
            }
        }
        Ok(())
    }

    fn named(&self, name: &str) -> impl Iterator<Item = &(String, Labels, f64)> {
        self.samples.iter().filter(move |(of, ..)| of == name)
    }

    /// The sum of all samples of this name that have these labels.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.named(name)
            .filter(|(_, has, _)| labels.iter().all(|(k, v)| has.get(*k).is_some_and(|value| value == v)))
            .map(|(.., value)| value)
            .sum()
    }
}

/// A metric as the reference has it.
#[derive(Debug)]
struct Documented {
    kind: String,
    labels: HashSet<String>,
    meaning: String,
}

/// `docs/reference/metrics.md`, by the names of its metrics.
fn reference() -> BTreeMap<String, Documented> {
    let text = include_str!("../../docs/reference/metrics.md");
    let row = |line: &str| {
        let cells: Vec<&str> = line.strip_prefix("| `")?.strip_suffix(" |")?.splitn(4, " | ").collect();
        let [name, kind, labels, meaning] = cells.try_into().ok()?;
        let labels = labels.split(", ").map(|label| label.trim_matches('`').to_owned());
        Some((
            name.trim_end_matches('`').to_owned(),
            Documented {
                kind: kind.to_owned(),
                labels: labels.collect(),
                meaning: meaning.to_owned(),
            },
        ))
    };
    text.lines().filter_map(row).collect()
}

#[test]
fn the_reference_of_metrics_has_all_that_are_written_and_no_others() {
    let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/admin");
    let mut source = String::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            source += &std::fs::read_to_string(path).unwrap();
        }
    }
    let written: BTreeSet<&str> = source
        .split('"')
        .filter(|text| text.starts_with("anynode_") || text.starts_with("process_"))
        .collect();
    let rows = reference();
    let documented: BTreeSet<&str> = rows
        .iter()
        .map(|(name, row)| match row.kind.as_str() {
            "counter" => name.strip_suffix("_total").unwrap(),
            _ => name,
        })
        .collect();
    assert!(documented.len() > 80, "{documented:?}");
    assert_eq!(documented, written);
}

#[test]
fn whoever_does_not_ask_for_openmetrics_gets_the_format_that_everybody_reads() {
    let node = Node::start();
    let admin = Admin::of(&node);
    let origin = Origin::named("a");
    let web = service("web", &[origin.addr]);
    node.apply(&web);
    let _ = dial(door(&web)).read_to_end(&mut Vec::new());
    wait_until("a connection to be counted", || {
        admin.scrape("/metrics").sum("anynode_connections_closed_total", &[]) == 1.0
    });
    let out = std::process::Command::new("curl")
        .args(["-sSi", &format!("http://{}/metrics", admin.addr)])
        .output()
        .unwrap();
    let text = String::from_utf8(out.stdout).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    let head = head.to_ascii_lowercase();
    assert!(head.contains("content-type: text/plain; version=0.0.4"), "{head}");
    assert!(head.contains("vary: accept"), "{head}");
    assert!(
        body.contains(
            "# TYPE anynode_connections_total counter\nanynode_connections_total{service=\"web\",proto=\"tcp\"} 1\n"
        ),
        "{body}"
    );
    // As many series, with the same names.
    let names = |text: &str| -> Vec<String> {
        let series = text.lines().filter(|line| !line.starts_with('#'));
        series.map(|line| line.rsplit_once(' ').unwrap().0.to_owned()).collect()
    };
    let (_, _, openmetrics) = request(admin.addr, "GET", "/metrics");
    assert_eq!(names(body), names(&openmetrics));
    let Ok(mut judge) = std::process::Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
    else {
        println!("skipped: there is no promtool here");
        return;
    };
    judge.stdin.take().unwrap().write_all(body.as_bytes()).unwrap();
    let said = judge.wait_with_output().unwrap();
    assert!(
        said.status.success() && said.stdout.is_empty() && said.stderr.is_empty(),
        "{said:?}"
    );
}

fn parse_labels(mut text: &str) -> Option<Labels> {
    let mut labels = Labels::new();
    while !text.is_empty() {
        let (name, rest) = text.split_once("=\"")?;
        let mut value = String::new();
        let mut chars = rest.char_indices();
        let end = loop {
            match chars.next()? {
                (i, '"') => break i,
                (_, '\\') => value.push(chars.next()?.1),
                (_, c) => value.push(c),
            }
        };
        labels.insert(name.to_owned(), value).is_none().then_some(())?;
        let rest = &rest[end + 1..];
        text = rest.strip_prefix(',').unwrap_or(rest);
    }
    Some(labels)
}

#[test]
fn the_parser_of_scrapes_can_fail() {
    let good = "# HELP a_b Help.\n# TYPE a_b counter\na_b_total{x=\"1\\\"\"} 2\n# EOF\n";
    let scrape = Scrape::parse(good).unwrap();
    assert_eq!(scrape.sum("a_b_total", &[("x", "1\"")]), 2.0);
    for (from, to) in [
        ("# EOF\n", ""),
        ("a_b_total", "a_b"),
        ("a_b_total", "a_c_total"),
        (" counter", " untyped"),
        (" 2\n", " two\n"),
        (" 2\n", " 2\na_b_total{x=\"1\\\"\"} 2\n"),
        ("# TYPE a_b counter\n", ""),
        ("\"}", "}"),
    ] {
        assert!(Scrape::parse(&good.replace(from, to)).is_err(), "{from} -> {to}");
    }
}

#[test]
fn paths_and_methods() {
    let node = Node::start();
    let admin = Admin::of(&node);
    assert_eq!(admin.get("/livez"), (200, "ok\n".to_owned()));
    assert_eq!(admin.get("/readyz"), (200, "serving\n".to_owned()));
    let (status, body) = admin.get("/nothing");
    assert!(status == 404 && body.contains("/metrics"), "{status} {body}");
    for method in ["POST", "PUT", "DELETE", "OPTIONS"] {
        let (status, head, _) = request(admin.addr, method, "/livez");
        assert_eq!(status, 405, "{method}");
        assert!(head.contains("\r\nallow: get, head"), "{head}");
    }
    let (status, head, body) = request(admin.addr, "HEAD", "/livez");
    assert!(
        status == 200 && head.contains("content-length: 3") && body.is_empty(),
        "{head}"
    );
}

#[test]
fn readiness_says_what_is_wrong_and_ends_with_the_drain() {
    let node = Node::start();
    let admin = Admin::of(&node);
    assert_eq!(admin.scrape("/metrics").sum("anynode_source_stale", &[]), 0.0);
    admin.source.rejected("services.yaml:3: mode = x".to_owned());
    let (status, body) = admin.get("/readyz");
    assert!(
        status == 200 && body.starts_with("serving\n") && body.contains("services.yaml:3: mode = x"),
        "{status} {body}"
    );
    let scrape = admin.scrape("/metrics");
    assert_eq!(scrape.sum("anynode_source_stale", &[]), 1.0);
    assert_eq!(scrape.sum("anynode_source_rejected_total", &[]), 1.0);
    let held = std::net::TcpListener::bind(("127.0.0.1", free_port())).unwrap();
    let mut web = service("web", &[]);
    web.publish = vec![
        format!("127.0.0.1:{}:80", held.local_addr().unwrap().port())
            .parse()
            .unwrap(),
    ];
    node.apply(&web);
    let (_, body) = admin.get("/readyz");
    assert!(
        body.contains(&format!("port {}: ", held.local_addr().unwrap())),
        "{body}"
    );
    assert!(admin.scrape("/metrics").sum("anynode_listener_bind_errors", &[]) >= 1.0);
    admin.readiness.set(Phase::Draining);
    let (status, body) = admin.get("/readyz");
    assert!(status == 503 && body.starts_with("draining\n"), "{status} {body}");
    assert_eq!(admin.get("/livez").0, 200);
}

#[test]
fn every_connection_is_open_or_closed_for_one_reason() {
    let node = Node::start();
    let admin = Admin::of(&node);
    let echo = Origin::echo();
    let named = Origin::named("n");
    let cutting = Origin::start(|mut stream| {
        let _ = stream.read(&mut [0]);
        reset(stream);
    });
    let refusing: SocketAddr = format!("127.0.0.1:{}", free_port()).parse().unwrap();
    let mut tcp = service("tcp", &[echo.addr]);
    tcp.timeouts.idle = Duration::from_millis(300);
    let mut web = service("web", &[echo.addr]);
    web.mode = Mode::Http;
    let mut none = service("none", &[]);
    none.limits.hold_timeout = Duration::ZERO;
    let specs = [
        tcp.clone(),
        service("named", &[named.addr]),
        service("cutting", &[cutting.addr]),
        service("refusing", &[refusing]),
        none,
        web.clone(),
    ];
    specs.iter().for_each(|spec| node.apply(spec));
    let say = |spec: &ServiceSpec, text: &str| {
        let mut client = dial(door(spec));
        let _ = client.write_all(text.as_bytes());
        client
    };
    let end = |client: std::net::TcpStream| {
        let _ = client.shutdown(std::net::Shutdown::Write);
        let _ = (&client).read_to_end(&mut Vec::new());
    };
    for _ in 0..3 {
        end(say(&tcp, "x"));
        let idle = say(&tcp, "x");
        let _ = (&idle).read_to_end(&mut Vec::new());
        let leaving = say(&tcp, "x");
        (&leaving).read_exact(&mut [0]).unwrap();
        reset(leaving);
        let _ = say(&specs[1], "").read_to_end(&mut Vec::new());
        let _ = say(&specs[2], "x").read_to_end(&mut Vec::new());
        let _ = say(&specs[3], "x").read_to_end(&mut Vec::new());
        let _ = say(&specs[4], "x").read_to_end(&mut Vec::new());
        end(say(&web, "nonsense\r\n\r\n"));
        end(say(&web, "GET / HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n"));
    }
    let open = [dial(door(&web)), dial(door(&web))];
    let gone = service("gone", &[echo.addr]);
    node.apply(&gone);
    let mut lingering = say(&gone, "x");
    lingering.read_exact(&mut [0]).unwrap();
    node.table.commit(&[Change::Remove(gone.name.clone())]).unwrap();
    let mut adds_up = false;
    wait_until("the closes to be counted", || {
        let scrape = admin.scrape("/metrics");
        adds_up = ["tcp", "named", "cutting", "refusing", "none", "web", "gone"]
            .iter()
            .all(|name| {
                let sum = |metric| scrape.sum(metric, &[("service", name)]);
                sum("anynode_connections_total") > 0.0
                    && sum("anynode_connections_closed_total") + sum("anynode_connections_active")
                        == sum("anynode_connections_total")
            });
        adds_up && scrape.sum("anynode_connections_active", &[]) == 3.0
    });
    let scrape = admin.scrape("/metrics");
    assert_eq!(scrape.sum("anynode_connections_total", &[]), 9.0 * 3.0 + 3.0);
    for reason in [
        "bad_request",
        "client_fin",
        "client_rst",
        "connect_failed",
        "idle_timeout",
        "no_endpoint",
        "response_end",
        "upstream_fin",
        "upstream_rst",
    ] {
        let n = scrape.sum("anynode_connections_closed_total", &[("reason", reason)]);
        assert_eq!(n, 3.0, "{reason}");
    }
    for (metric, kind) in [
        ("anynode_connections", "counter"),
        ("anynode_connections_closed", "counter"),
        ("anynode_connections_active", "gauge"),
        ("anynode_bytes", "counter"),
        ("anynode_requests", "counter"),
        ("anynode_retries", "counter"),
        ("anynode_ejections", "counter"),
        ("anynode_panic_picks", "counter"),
        ("anynode_health_checks", "counter"),
        ("anynode_dns_queries", "counter"),
        ("anynode_endpoints", "gauge"),
        ("anynode_inflight", "gauge"),
        ("anynode_connection_duration_seconds", "histogram"),
        ("anynode_upstream_connect_seconds", "histogram"),
        ("process_cpu_seconds", "counter"),
        ("process_open_fds", "gauge"),
        ("process_resident_memory_bytes", "gauge"),
    ] {
        assert_eq!(scrape.kinds.get(metric).map(String::as_str), Some(kind), "{metric}");
    }
    // A service that comes back while connections of its last are open is still one, with one endpoint.
    node.apply(&gone);
    let scrape = admin.scrape("/metrics?detail=endpoint");
    assert_eq!(scrape.sum("anynode_connections_active", &[("service", "gone")]), 1.0);
    assert_eq!(scrape.sum("anynode_endpoints", &[("service", "gone")]), 1.0);
    drop((open, lingering));
    wait_until("the last closes", || {
        admin.scrape("/metrics").sum("anynode_connections_active", &[]) == 0.0
    });
    assert_eq!(node.closed("gone", CloseReason::ClientFin), 1);
}

#[test]
fn endpoints_are_shown_one_by_one_on_request_only() {
    let node = Node::start();
    let admin = Admin::of(&node);
    let (a, b) = (Origin::named("a"), Origin::named("b"));
    let web = service("web", &[a.addr, b.addr]);
    node.apply(&web);
    for _ in 0..4 {
        read_to_end(&dial(door(&web)));
    }
    let plain = admin.scrape("/metrics");
    assert!(
        plain
            .samples
            .iter()
            .all(|(_, labels, _)| !labels.contains_key("endpoint"))
    );
    let detail = admin.scrape("/metrics?detail=endpoint");
    for origin in [&a, &b] {
        let labels = [("service", "web"), ("endpoint", &origin.addr.to_string())];
        assert_eq!(detail.sum("anynode_endpoint_picks_total", &labels), 2.0);
    }
    assert_eq!(detail.kinds["anynode_endpoint_picks"], "counter");
}

#[test]
fn the_table_is_json() {
    let node = Node::start();
    let admin = Admin::of(&node);
    let table = |path: &str| -> Value {
        let (status, body) = admin.get(path);
        assert_eq!(status, 200);
        serde_json::from_str(&body).unwrap()
    };
    let empty = table("/v1/table");
    assert_eq!(empty["services"], Value::Array(Vec::new()));
    let origin = Origin::named("a");
    let mut web = service("web", &[origin.addr]);
    web.mode = Mode::Http;
    let change = Change::Upsert {
        spec: Arc::new(web.clone()),
        vip: Some([127, 77, 0, 9].into()),
    };
    node.table.commit(&[change]).unwrap();
    let first = table("/v1/table");
    let shown = &first["services"][0];
    assert_eq!(
        (&shown["name"], &shown["mode"], &shown["vip"]),
        (&"web".into(), &"http".into(), &"127.77.0.9".into())
    );
    assert_eq!(shown["publish"][0], web.publish[0].to_string());
    assert_eq!(shown["endpoints"][0]["address"], origin.addr.to_string());
    assert_eq!(shown["endpoints"][0]["state"], "untried");
    assert!(first["revision"].as_u64() > empty["revision"].as_u64());
    assert_ne!(first["hash"], empty["hash"]);
    node.table.commit(&[Change::Remove(web.name.clone())]).unwrap();
    let last = table("/v1/table");
    assert_eq!(last["hash"], empty["hash"]);
    assert_eq!(table("/v1/status")["phase"], "serving");
}

#[test]
fn a_large_table_is_scraped_in_less_than_a_megabyte() {
    let node = Node::start();
    let admin = Admin::of(&node);
    let specs = (0..500).map(|i| {
        let mut spec = ServiceSpec::new(ServiceName::new(&format!("some-service-{i}")).unwrap());
        spec.endpoints = (0..20)
            .map(|j| format!("10.{}.{}.{}:8000", i / 250, i % 250, j + 1).parse().unwrap())
            .collect();
        spec
    });
    let changes: Vec<Change> = specs
        .map(|spec| Change::Upsert {
            spec: Arc::new(spec),
            vip: None,
        })
        .collect();
    node.table.commit(&changes).unwrap();
    // A tenth of the services is in use: each of these adds series. Were it all of them, histograms would make it more.
    for service in node.table.load().services().step_by(10) {
        let stats = service.stats();
        for reason in &CloseReason::ALL[..6] {
            stats.opened();
            stats.closed(*reason, Duration::from_millis(3));
        }
        stats.add_request(200);
        stats.add_request(500);
        for histogram in [&stats.upstream_connect, &stats.request_duration, &stats.request_ttfb] {
            histogram.observe(Duration::from_micros(150));
        }
    }
    let started = Instant::now();
    let (status, body) = admin.get("/metrics");
    let took = started.elapsed();
    println!("{} bytes in {took:?}", body.len());
    assert_eq!(status, 200);
    assert!(body.len() < 1_000_000, "{} bytes", body.len());
    let scrape = Scrape::parse(&body).unwrap();
    assert_eq!(scrape.sum("anynode_endpoints", &[]), 10_000.0);
    assert_eq!(scrape.sum("anynode_services", &[]), 500.0);
}

#[test]
fn a_worker_that_is_stuck_is_no_life() {
    let node = Node::start();
    let admin = Admin::of(&node);
    assert_eq!(admin.get("/livez"), (200, "ok\n".to_owned()));
    assert_eq!(admin.get("/healthz").0, 200);
    let (go_on, wait) = std::sync::mpsc::channel::<()>();
    node.proxy.spawn(Box::new(move || {
        // An error means that the test has ended.
        let _ = wait.recv();
        Box::pin(std::future::ready(()))
    }));
    for path in ["/livez", "/healthz"] {
        let (status, said) = admin.get(path);
        assert_eq!(status, 503, "{path}: {said}");
        assert!(said.contains("no answer from worker "), "{said}");
    }
    drop(go_on);
    wait_until("it to work again", || admin.get("/livez").0 == 200);
}

#[test]
fn what_was_never_learned_is_not_served_and_what_is_old_says_since_when() {
    let node = Node::start();
    let admin = Admin::with(&node, false);
    admin.source.stale("nobody answers".to_owned());
    for path in ["/readyz", "/healthz"] {
        let (status, said) = admin.get(path);
        assert_eq!(status, 503, "{path}");
        assert!(
            said.contains("nothing was learned yet, and nothing kept: nobody answers"),
            "{said}"
        );
    }
    assert_eq!(admin.get("/livez").0, 200);
    let view: Value = serde_json::from_str(&admin.get("/v1/status").1).unwrap();
    assert_eq!(
        (&view["phase"], &view["source"]["state"]),
        (&"starting".into(), &"starting".into())
    );
    assert!(!admin.get("/metrics").1.contains("anynode_source_age_seconds "));

    // What was kept an hour ago is served meanwhile.
    admin
        .source
        .recalled(std::time::SystemTime::now() - Duration::from_secs(3600));
    let (status, said) = admin.get("/readyz");
    assert_eq!(status, 200);
    assert!(said.contains("stale since ") && said.contains("(1h"), "{said}");
    assert_eq!(admin.get("/healthz").0, 200);
    assert!(admin.scrape("/metrics").sum("anynode_source_age_seconds", &[]) >= 3600.0);

    admin.source.confirmed();
    assert_eq!(admin.get("/readyz"), (200, "serving\n".to_owned()));
    assert_eq!(admin.scrape("/metrics").sum("anynode_source_age_seconds", &[]), 0.0);
}
