//! A stack file for Traefik, deployed as it is on a swarm of three engines, without Traefik: other people's clients use it at every node,
//! with certificates from pebble, while one is renewed and tasks are replaced.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tonic::client::Grpc;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};
use tonic_prost::ProstCodec;

use super::rig::{self, Swarm};
use super::{ALL, acme};
use crate::acme::rig::Pebble;
use crate::changes::h2load_counts;

const LONG: Duration = Duration::from_secs(180);
const STACK: &str = include_str!("../../cluster/traefik.stack.yml");
const HOSTS: [&str; 5] = ["shop.test", "admin.test", "grpc.test", "db.test", "renewed.test"];

struct Stage {
    swarm: Swarm,
    /// Of `letsencrypt` and of `brief`, whose certificates last for 90 s.
    pebbles: [Pebble; 2],
    /// Roots of both.
    roots: PathBuf,
}

/// The stack without the service that it does not need.
fn without_traefik() -> String {
    let (before, rest) = STACK.split_once("  traefik:\n").unwrap();
    let (_, after) = rest.split_once("\n\n").unwrap();
    format!("{before}{after}")
}

fn stage(name: &'static str) -> Option<Stage> {
    let mut swarm = rig::up(name, 3, 1)?;
    let days = 90 * 24 * 3600;
    // Neither asks the node that orders.
    let pebbles = [
        acme::pebble(&swarm, days, 2, [14000, 15000, 8053, 8055])?,
        acme::pebble(&swarm, 90, 3, [14001, 15001, 8054, 8056])?,
    ];
    let resolver = |name: &str, challenge: &str, pebble: &Pebble| {
        let (directory, ca) = (pebble.directory(), pebble.dir.path().join("ca.pem"));
        let ca = ca.display();
        format!(
            "{name} = {{ directory = '{directory}', ca = '{ca}', email = 'ops@shop.test', challenge = '{challenge}' }}"
        )
    };
    let (first, second) = (
        resolver("letsencrypt", "http-01", &pebbles[0]),
        resolver("brief", "tls-alpn-01", &pebbles[1]),
    );
    let resolvers = format!("{{ {first}, {second} }}");
    let env = [
        ("ANYNODE_ENTRYPOINTS", acme::DOORS),
        ("ANYNODE_ACME", &*resolvers),
        ("ANYNODE_LABELS_TRAEFIK", "true"),
    ];
    for node in ALL {
        swarm.start_with(node, &env);
    }
    acme::wait_up(&swarm);
    let (roots, stack) = (swarm.dir().join("roots.pem"), swarm.dir().join("stack.yml"));
    std::fs::write(&roots, pebbles.each_ref().map(Pebble::root).concat()).unwrap();
    std::fs::write(&stack, without_traefik()).unwrap();
    let stack = stack.display().to_string();
    swarm.docker(
        1,
        &["stack", "deploy", "--resolve-image", "never", "-c", &stack, "front"],
    );
    Some(Stage { swarm, pebbles, roots })
}

impl Stage {
    /// A program in the client's network, with HOME in a directory of the test.
    fn program(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.swarm.client_netns())).arg(program);
        command.env("HOME", self.swarm.dir()).stdin(Stdio::null());
        command
    }

    fn curl(&self, node: usize, url: &str, more: &[&str]) -> Output {
        let mut curl = self.program("curl");
        curl.args(["-sS", "-m", "10", "--cacert"]).arg(&self.roots);
        for host in HOSTS {
            for port in [80, 443] {
                curl.args(["--resolve", &format!("{host}:{port}:{}", self.swarm.ip(node))]);
            }
        }
        curl.args(more).arg(url).output().unwrap()
    }

    /// The answer's status and text; `None`: there was none.
    fn ask(&self, node: usize, url: &str, more: &[&str]) -> Option<(u16, String)> {
        let out = self.curl(node, url, &[&["-w", "\n%{http_code}"], more].concat());
        let text = String::from_utf8(out.stdout).unwrap();
        let (body, status) = text.rsplit_once('\n').filter(|_| out.status.success())?;
        Some((status.parse().unwrap(), body.to_owned()))
    }

    /// Whether a task of that service of the stack answers, with 200.
    fn is_served_by(&self, node: usize, url: &str, service: &str) -> bool {
        let tasks = self.tasks(service);
        self.ask(node, url, &[])
            .is_some_and(|(status, body)| status == 200 && tasks.iter().any(|task| body.contains(task)))
    }

    /// Hostnames of a service's tasks on all nodes.
    fn tasks(&self, service: &str) -> Vec<String> {
        let of = |node| self.swarm.containers(node, &format!("front_{service}")).into_keys();
        ALL.into_iter().flat_map(of).collect()
    }

    fn wait_all(&self, what: &str, is_so: impl Fn(usize) -> bool) {
        self.swarm.wait_for(what, LONG, || ALL.into_iter().all(&is_so));
    }

    /// What openssl says of a host at a node, and what came of `said`.
    fn openssl(&self, node: usize, host: &str, said: &str) -> String {
        let script = "(sleep 1; echo \"$3\"; sleep 1) | openssl s_client -connect $0:443 -servername $1 -CAfile $2 -verify_return_error -verify_hostname $1 2>&1";
        let mut sh = self.program("sh");
        sh.args(["-c", script, &self.swarm.ip(node), host])
            .arg(&self.roots)
            .arg(said);
        String::from_utf8_lossy(&sh.output().unwrap().stdout).into_owned()
    }

    fn serial(&self, node: usize, host: &str) -> String {
        let script =
            "openssl s_client -connect $0:443 -servername $1 </dev/null 2>/dev/null | openssl x509 -noout -serial";
        let out = self
            .program("sh")
            .args(["-c", script, &self.swarm.ip(node), host])
            .output()
            .unwrap();
        String::from_utf8_lossy(&out.stdout).into_owned()
    }

    /// Does `act` in the client's network, by a runtime that ends with it.
    fn within<T: Send, F: Future<Output = T>>(&self, act: impl FnOnce() -> F + Send) -> T {
        std::thread::scope(|scope| {
            let inside = scope.spawn(|| {
                let netns = File::open(self.swarm.client_netns()).unwrap();
                move_into_link_name_space(netns.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
                runtime.unwrap().block_on(act())
            });
            inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }
}

#[derive(Clone, PartialEq, prost::Message)]
struct Ask {
    #[prost(uint32, tag = "1")]
    times: u32,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Who {
    #[prost(string, tag = "1")]
    hostname: String,
}

/// The service of gRPC of the tasks, at a node.
struct Caller(Grpc<Channel>);

impl Caller {
    async fn new(ip: String, roots: Vec<u8>) -> Caller {
        let tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(roots))
            .domain_name("grpc.test");
        let endpoint = Endpoint::from_shared(format!("https://{ip}"))
            .unwrap()
            .origin("https://grpc.test".parse().unwrap())
            .tls_config(tls)
            .unwrap();
        Caller(Grpc::new(endpoint.connect().await.unwrap()))
    }

    async fn is(&mut self) -> Result<String, tonic::Status> {
        self.0
            .ready()
            .await
            .map_err(|error| tonic::Status::unavailable(error.to_string()))?;
        let (request, path) = (tonic::Request::new(Ask { times: 1 }), "/anynode.test.Who/Is");
        let codec = ProstCodec::<Ask, Who>::default();
        let answer = self.0.unary(request, path.parse().unwrap(), codec).await?;
        Ok(answer.into_inner().hostname)
    }

    /// Who said so, `times` times.
    async fn watch(&mut self, times: u32) -> Result<Vec<String>, tonic::Status> {
        self.0
            .ready()
            .await
            .map_err(|error| tonic::Status::unavailable(error.to_string()))?;
        let (request, path) = (tonic::Request::new(Ask { times }), "/anynode.test.Who/Watch");
        let codec = ProstCodec::<Ask, Who>::default();
        let answer = self.0.server_streaming(request, path.parse().unwrap(), codec).await?;
        let (mut messages, mut all) = (answer.into_inner(), Vec::new());
        while let Some(who) = messages.message().await? {
            all.push(who.hostname);
        }
        Ok(all)
    }
}

/// All that the stack promises, at every node, by curl, tonic, openssl and a browser.
fn use_it(stage: &Stage) {
    for (host, service) in [
        ("shop.test", "shop"),
        ("renewed.test", "shop"),
        ("shop.test/api/x", "api"),
    ] {
        stage.wait_all(host, |node| {
            stage.is_served_by(node, &format!("https://{host}"), service)
        });
    }
    let client = stage.swarm.client_ip();
    for node in ALL {
        // Without TLS there is the way to it alone.
        let out = stage.curl(node, "http://shop.test/a?b=c", &["-D", "-", "-o", "/dev/null"]);
        let head = String::from_utf8_lossy(&out.stdout).to_ascii_lowercase();
        assert!(
            head.starts_with("http/1.1 301") && head.contains("location: https://shop.test/a?b=c\r\n"),
            "{head}"
        );
        // Two applications on one host by path, in both versions of HTTP, and who asks.
        for version in ["--http1.1", "--http2"] {
            let (status, body) = stage.ask(node, "https://shop.test/api/x", &[version]).unwrap();
            assert!(
                status == 200 && body.contains(&format!("\"x-forwarded-for\":\"{client}\"")),
                "{status} {body}"
            );
            assert!(
                body.contains("\"x-forwarded-prefix\":\"/api\"") && body.contains("\"x-forwarded-proto\":\"https\""),
                "{body}"
            );
        }
        let out = stage.curl(node, "https://shop.test/", &["-D", "-", "-o", "/dev/null"]);
        let head = String::from_utf8_lossy(&out.stdout).to_ascii_lowercase();
        assert!(head.contains("strict-transport-security: max-age=31536000"), "{head}");
        // A password.
        let admin = |user: &[&str]| stage.ask(node, "https://admin.test/", user).map(|(status, _)| status);
        stage
            .swarm
            .wait_for("admin.test", LONG, || admin(&["-u", "admin:test"]) == Some(200));
        assert_eq!(admin(&[]), Some(401));
        assert_eq!(admin(&["-u", "admin:other"]), Some(401));
        // A service of TCP by its name: who calls is said to it, and it says so.
        let mut said = String::new();
        stage.swarm.wait_for("db.test", LONG, || {
            said = stage.openssl(node, "db.test", "hello there");
            said.contains("Verify return code: 0 (ok)") && said.contains("hello there")
        });
        assert!(said.contains("Verified peername: db.test"), "{said}");
        let said = stage.openssl(node, "nobody.test", "hello there");
        assert!(!said.contains("\nhello there"), "{said}");
    }
    call(stage);
    if is_here("chromium") && is_here("certutil") {
        browse(stage);
    } else {
        println!("skipped: the browser, there is no chromium or no certutil here");
    }
}

fn is_here(program: &str) -> bool {
    let found = Command::new("which").arg(program).output();
    found.is_ok_and(|out| out.status.success())
}

/// tonic at every node: both kinds of calls, by all tasks.
fn call(stage: &Stage) {
    let roots = std::fs::read(&stage.roots).unwrap();
    stage.wait_all("grpc.test", |node| !stage.serial(node, "grpc.test").is_empty());
    stage.swarm.wait_ready(&ALL, "front_grpc", 3);
    let mut tasks = stage.tasks("grpc");
    tasks.sort();
    for node in ALL {
        let (ip, roots) = (stage.swarm.ip(node), roots.clone());
        let (mut hostnames, watched) = stage.within(|| async move {
            let mut caller = Caller::new(ip, roots).await;
            let mut hostnames = Vec::new();
            for _ in 0..6 {
                hostnames.push(caller.is().await.unwrap());
            }
            (hostnames, caller.watch(10).await.unwrap())
        });
        hostnames.sort();
        hostnames.dedup();
        assert_eq!(hostnames, tasks, "one channel, a call at a time");
        assert!(
            watched.len() == 10 && watched.iter().all(|who| *who == watched[0]),
            "{watched:?}"
        );
    }
}

/// A browser that trusts the authority, at every node.
fn browse(stage: &Stage) {
    let database = format!("sql:{}", stage.swarm.dir().join(".pki/nssdb").display());
    std::fs::create_dir_all(stage.swarm.dir().join(".pki/nssdb")).unwrap();
    let certutil = |args: &[&str]| {
        let out = stage
            .program("certutil")
            .args(["-d", &database])
            .args(args)
            .output()
            .unwrap();
        assert!(out.status.success(), "{args:?}: {out:?}");
    };
    certutil(&["-N", "--empty-password"]);
    for (i, pebble) in stage.pebbles.iter().enumerate() {
        let root = stage.swarm.dir().join(format!("root{i}.pem"));
        std::fs::write(&root, pebble.root()).unwrap();
        certutil(&[
            "-A",
            "-n",
            &format!("root{i}"),
            "-t",
            "C,,",
            "-i",
            &root.display().to_string(),
        ]);
    }
    let trusting = stage.swarm.dir().to_owned();
    let page = |home: &Path, node: usize, url: &str| {
        let out = stage
            .program("chromium")
            .env("HOME", home)
            .args([
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-background-networking",
                "--virtual-time-budget=2000",
                "--dump-dom",
            ])
            .arg(format!("--host-resolver-rules=MAP * {}", stage.swarm.ip(node)))
            .arg(format!(
                "--user-data-dir={}",
                home.join(format!("browser{node}")).display()
            ))
            .arg(url)
            .output()
            .unwrap();
        String::from_utf8_lossy(&out.stdout).into_owned()
    };
    for node in ALL {
        // By the redirect.
        let dom = page(&trusting, node, "http://shop.test/");
        assert!(
            stage
                .tasks("shop")
                .iter()
                .any(|task| dom.contains(&format!("\"hostname\":\"{task}\""))),
            "{dom}"
        );
        let dom = page(&trusting, node, "https://shop.test/api/x");
        assert!(
            stage
                .tasks("api")
                .iter()
                .any(|task| dom.contains(&format!("\"hostname\":\"{task}\""))),
            "{dom}"
        );
    }
    // One that does not trust the authority shows none of it.
    let stranger = stage.swarm.dir().join("stranger");
    std::fs::create_dir_all(&stranger).unwrap();
    let dom = page(&stranger, 1, "https://shop.test/");
    assert!(!dom.contains("\"hostname\""), "{dom}");
}

/// Load by both versions of HTTP and by gRPC at every node, while a certificate is renewed and all tasks are replaced.
fn change_it_under_load(stage: &Stage) {
    let before = ALL.map(|node| stage.serial(node, "renewed.test"));
    assert!(!before[0].is_empty());
    let roots = std::fs::read(&stage.roots).unwrap();
    let (is_over, n_answered, n_called) = (AtomicBool::new(false), AtomicUsize::new(0), AtomicUsize::new(0));
    // Whatever becomes of this, the clients are told.
    struct Tells<'a>(&'a AtomicBool);
    impl Drop for Tells<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    std::thread::scope(|scope| {
        let _tells = Tells(&is_over);
        let mut clients = Vec::new();
        for (node, version) in ALL.into_iter().zip([&["--h1"][..], &[], &["--h1"]]) {
            let (is_over, n_answered) = (&is_over, &n_answered);
            clients.push(scope.spawn(move || {
                while !is_over.load(Ordering::Relaxed) {
                    let mut h2load = stage.program("h2load");
                    h2load.args(["-n100", "-c4", "-t1"]).args(version);
                    h2load.arg(format!("--connect-to={}:443", stage.swarm.ip(node)));
                    let (n, n_2xx) = h2load_counts(&h2load.arg("https://renewed.test/").output().unwrap());
                    assert_eq!(n, n_2xx, "node {node}");
                    n_answered.fetch_add(n, Ordering::Relaxed);
                }
            }));
            let (roots, n_called) = (roots.clone(), &n_called);
            clients.push(scope.spawn(move || {
                stage.within(|| async move {
                    let mut caller = Caller::new(stage.swarm.ip(node), roots).await;
                    while !is_over.load(Ordering::Relaxed) {
                        caller
                            .is()
                            .await
                            .unwrap_or_else(|status| panic!("node {node}: {status:?}"));
                        n_called.fetch_add(1, Ordering::Relaxed);
                        tokio::time::sleep(Duration::from_millis(5)).await;
                    }
                });
            }));
        }
        let has_failed = || clients.iter().any(|client| client.is_finished());
        let tasks = ["shop", "grpc"].map(|service| stage.tasks(service));
        for service in ["front_shop", "front_grpc"] {
            stage.swarm.docker(
                1,
                &[
                    "service",
                    "update",
                    "--detach",
                    "--no-resolve-image",
                    "--force",
                    service,
                ],
            );
        }
        stage.swarm.wait_for("all tasks to be others", LONG, || {
            let now = ["shop", "grpc"].map(|service| stage.tasks(service));
            let are_others =
                |(was, is): (&Vec<String>, &Vec<String>)| is.len() == 3 && !is.iter().any(|one| was.contains(one));
            has_failed() || tasks.iter().zip(&now).all(are_others)
        });
        stage.swarm.wait_for("the renewal at all nodes", LONG, || {
            let is_renewed = |node: usize| {
                let serial = stage.serial(node, "renewed.test");
                !serial.is_empty() && serial != before[node - 1]
            };
            has_failed() || ALL.into_iter().all(is_renewed)
        });
    });
    let (n_answered, n_called) = (n_answered.into_inner(), n_called.into_inner());
    println!("{n_answered} requests and {n_called} calls were answered");
    assert!(n_answered > 300 && n_called > 300, "{n_answered} {n_called}");
}

#[test]
fn a_stack_for_traefik_is_used_by_everybody_and_changes_under_load() {
    let Some(stage) = stage("front") else { return };
    use_it(&stage);
    change_it_under_load(&stage);
    // One order for each host, but for what is renewed every minute.
    assert_eq!(stage.pebbles[0].n_orders(), 4, "{}", stage.pebbles[0].log());
}

/// Everything that testssl.sh has to say at every node: minutes. `cargo test --test it -- swarm::traefik --ignored --nocapture`.
#[test]
#[ignore = "takes six minutes, and testssl.sh"]
fn what_testssl_finds_at_every_node_is_no_fault_of_ours() {
    let Some(stage) = stage("front-testssl") else { return };
    stage.wait_all("shop.test", |node| {
        stage.is_served_by(node, "https://shop.test", "shop")
    });
    for node in ALL {
        let found = stage.swarm.dir().join(format!("found{node}.json"));
        let mut testssl = stage.program("testssl");
        testssl.arg(format!("--ip={}", stage.swarm.ip(node)));
        let n = crate::tls::testssl(&mut testssl, &stage.roots, &found, "shop.test:443");
        println!("node {node}: {n} findings, none above low but revocation");
    }
}
