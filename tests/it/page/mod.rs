//! What a node's page is told: by its stream, as anybody's program could read it.

pub mod browser;
mod large;
mod looks;
pub mod watcher;
mod why;

use std::io::Write;
use std::net::SocketAddr;
use std::process::{Child, Stdio};

pub use self::watcher::Watcher;
use crate::admin::request;
use crate::cli::anynode;
use crate::harness::{Origin, ask, dial, free_port, wait_until};

/// A node with a services file.
struct Home {
    dir: tempfile::TempDir,
    admin: SocketAddr,
    port: u16,
    node: Option<Child>,
}

impl Home {
    fn with(endpoints: &[SocketAddr]) -> Home {
        Home::configured(endpoints, "")
    }

    /// `settings`: what its configuration file says.
    fn configured(endpoints: &[SocketAddr], settings: &str) -> Home {
        let mut home = Home {
            dir: tempfile::tempdir().unwrap(),
            admin: format!("127.0.0.1:{}", free_port()).parse().unwrap(),
            port: free_port(),
            node: None,
        };
        std::fs::write(home.path("anynode.toml"), settings).unwrap();
        home.declare(endpoints, "");
        home.node = Some(home.up());
        wait_until("the node to serve", || {
            std::net::TcpStream::connect(home.admin).is_ok() && request(home.admin, "GET", "/readyz").0 == 200
        });
        home
    }

    fn up(&self) -> Child {
        anynode(&["up", "--dns", "none"])
            .args(["--admin", &self.admin.to_string()])
            .args(["--config", &self.path("anynode.toml")])
            .args([
                "--services",
                &self.path("services.yml"),
                "--data-dir",
                &self.path("data"),
            ])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap()
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).display().to_string()
    }

    fn declare(&self, endpoints: &[SocketAddr], more: &str) {
        let endpoints: Vec<String> = endpoints.iter().map(|addr| format!("\"{addr}\"")).collect();
        let text = format!(
            "services:\n  web:\n    publish: [\"127.0.0.1:{}:80\"]\n    endpoints: [{}]\n{more}",
            self.port,
            endpoints.join(", ")
        );
        std::fs::write(self.path("new"), text).unwrap();
        std::fs::rename(self.path("new"), self.path("services.yml")).unwrap();
    }

    fn door(&self) -> SocketAddr {
        ([127, 0, 0, 1], self.port).into()
    }

    fn watch(&self) -> Watcher {
        Watcher::of(&format!("http://{}/v1/stream", self.admin))
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        if let Some(mut node) = self.node.take() {
            let _ = node.kill();
            let _ = node.wait();
        }
    }
}

#[test]
fn all_there_is_is_told_and_then_what_changes() {
    let (a, b) = (Origin::named("a"), Origin::named("b"));
    let home = Home::with(&[a.addr, b.addr]);
    let page = home.watch();
    {
        let seen = page.seen();
        assert_eq!(seen.hello["way"], "file");
        assert_eq!((&*seen.order[0], &*seen.order[1]), ("hello", "put"));
        assert_eq!(seen.names("node"), [seen.hello["node"].as_str().unwrap()]);
        assert_eq!(seen.names("service"), ["web"]);
        let web = &seen.objects["service/web"];
        assert_eq!(
            (&web["mode"], &web["ready"], &web["endpoints"]),
            (&"tcp".into(), &2.into(), &2.into())
        );
        assert_eq!(web["publish"][0], format!("127.0.0.1:{}:80", home.port));
        let task = &seen.objects[&format!("task/web/{}", a.addr)];
        assert_eq!((&task["service"], &task["state"]), (&"web".into(), &"untried".into()));
        assert!(task["since_ms"].as_u64().unwrap() > 1_700_000_000_000, "{task}");
        assert!(
            seen.names("event").is_empty(),
            "what is there from the first is no news: {seen:?}"
        );
    }
    assert_ne!(ask(home.door()), ask(home.door()));
    page.until(&format!("task/web/{}", a.addr), |task| task["state"] == "ready");

    home.declare(
        &[a.addr],
        "  api:\n    expose: [80]\n    endpoints: [\"127.0.0.1:9\"]\n",
    );
    page.until_gone(&format!("task/web/{}", b.addr));
    page.until("service/web", |web| web["endpoints"] == 1);
    page.until("service/api", |api| api["ready"] == 1);
    page.until("task/api/127.0.0.1:9", |task| task["service"] == "api");
    page.until_event("service api is declared");
    page.until_event(&format!("endpoints of web left: {}", b.addr));
    home.declare(&[a.addr], "");
    page.until_gone("service/api");
    page.until_gone("task/api/127.0.0.1:9");
    page.until_event("service api is gone");
    // Whoever comes later is told the same.
    let later = home.watch();
    assert_eq!(later.seen().objects, page.seen().objects);
}

#[test]
fn an_endpoint_that_is_lost_says_since_when_and_why_and_is_back_when_it_is() {
    let a = Origin::named("a");
    let gone = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let home = Home::with(&[a.addr, gone]);
    let page = home.watch();
    for _ in 0..8 {
        assert_eq!(ask(home.door()), "a");
    }
    let key = format!("task/web/{gone}");
    let task = page.until(&key, |task| task["state"] == "resting");
    assert!(
        task["why"].as_str().unwrap().contains("connects in a row failed"),
        "{task}"
    );
    page.until("service/web", |web| web["ready"] == 1);
    page.until_event(&format!("{gone} of web is resting"));
    // A rest ends by time alone.
    page.until(&key, |task| task["state"] == "failing");
    page.until("service/web", |web| web["ready"] == 2);

    home.declare(&[gone], "");
    page.until("service/web", |web| web["endpoints"] == 1);
    let waiting: Vec<_> = (0..4).map(|_| dial(home.door())).collect();
    let is_lost = |seen: &watcher::Seen| {
        let mut problems = seen.objects.iter().filter(|(key, _)| key.starts_with("problem/"));
        problems.any(|(_, problem)| {
            problem["text"]
                .as_str()
                .unwrap()
                .contains("none of its 1 endpoints is well")
        })
    };
    wait_until("the loss to be told", || is_lost(&page.seen()));
    drop(waiting);
    home.declare(&[a.addr], "");
    wait_until("the loss to be over", || !is_lost(&page.seen()));
    page.until_event("no more: service web: none of its");
}

#[test]
fn an_endpoint_that_has_left_is_told_of_until_it_has_finished() {
    let (a, held) = (Origin::named("a"), std::net::TcpListener::bind("127.0.0.1:0").unwrap());
    let addr = held.local_addr().unwrap();
    let home = Home::with(&[addr]);
    let client = dial(home.door());
    let (end, _) = held.accept().unwrap();
    let page = home.watch();
    home.declare(&[a.addr], "");
    page.until(&format!("task/web/{addr}"), |task| task["state"] == "draining");
    page.until("service/web", |web| web["endpoints"] == 1);
    drop((client, end));
    page.until_gone(&format!("task/web/{addr}"));
}

#[test]
fn figures_are_told_as_they_are_counted_and_kept_for_those_who_come() {
    let a = Origin::named("a");
    let home = Home::with(&[a.addr]);
    let page = home.watch();
    let has_rate = |figures: &serde_json::Value| {
        figures["services"]["web"]["rate"]
            .as_f64()
            .is_some_and(|rate| rate > 0.0)
    };
    wait_until("figures", || {
        ask(home.door());
        has_rate(&page.seen().figures)
    });
    let figures = page.seen().figures["services"]["web"].clone();
    assert_eq!(figures["errors"], 0.0, "{figures}");
    assert!(figures["p50_us"].as_u64() <= figures["p99_us"].as_u64(), "{figures}");
    assert!(figures["out"].as_u64() > Some(0), "{figures}");
    let later = home.watch();
    wait_until("history", || later.seen().history.is_object());
    let history = later.seen().history["services"]["web"].clone();
    let rates = history["rate"].as_array().unwrap();
    assert!(
        rates.iter().any(|rate| rate.as_f64() > Some(0.0)) && rates.len() <= 180,
        "{history}"
    );
    assert_eq!(history["errors"].as_array().unwrap().len(), rates.len());
}

#[test]
fn however_many_look_or_never_read_health_is_answered_and_the_last_is_told() {
    let a = Origin::named("a");
    let home = Home::with(&[a.addr]);
    let deaf: Vec<_> = (0..1000)
        .map(|_| {
            let mut stream = dial(home.admin);
            let _ = stream.write_all(b"GET /v1/stream HTTP/1.1\r\nHost: localhost\r\n\r\n");
            stream
        })
        .collect();
    for n in 0..20 {
        assert_eq!(request(home.admin, "GET", "/livez").0, 200);
        assert_eq!(request(home.admin, "GET", "/readyz").0, 200);
        home.declare(
            &[a.addr],
            &format!("  s{n}:\n    expose: [80]\n    endpoints: [\"127.0.0.1:9\"]\n"),
        );
    }
    let page = home.watch();
    page.until("service/s19", |service| service["endpoints"] == 1);
    let scrape = request(home.admin, "GET", "/metrics").2;
    let given_up = "anynode_places_given_up_total{table=\"admin_streams\"}";
    let n = scrape
        .lines()
        .find_map(|line| line.strip_prefix(given_up))
        .map(str::trim);
    assert!(n.is_some_and(|n| n.parse::<f64>().unwrap() > 0.0), "{n:?}");
    drop(deaf);
}

#[test]
fn a_stream_ends_when_another_instance_takes_the_place() {
    let a = Origin::named("a");
    let mut home = Home::with(&[a.addr]);
    let page = home.watch();
    let next = home.up();
    page.until_over();
    let after = home.watch();
    after.until("service/web", |web| web["endpoints"] == 1);
    let mut before = home.node.replace(next).unwrap();
    let _ = before.kill();
    let _ = before.wait();
}
