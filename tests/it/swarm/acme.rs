//! Certificates that a manager orders (from Debian's pebble, which stands outside the swarm) and every node shows, while the authority
//! asks a node that does not order.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::rig::Swarm;
use super::{ALL, rig};
use crate::acme::rig::{Pebble, Wish};

const LONG: Duration = Duration::from_secs(180);

/// A swarm, and an authority at its client's address that names lead from to node `leads_to`.
struct Rig {
    swarm: Swarm,
    pebble: Pebble,
    root: PathBuf,
    acme: String,
}

pub(super) const DOORS: &str =
    "{ web = { listen = ':80', redirect = 'websecure' }, websecure = { listen = ':443', tls = true } }";

fn up(name: &'static str, managers: usize, life: u32, leads_to: impl Fn(&Swarm) -> usize) -> Option<Rig> {
    let swarm = rig::up(name, 3, managers)?;
    let pebble = pebble(&swarm, life, leads_to(&swarm), [14000, 15000, 8053, 8055])?;
    let (directory, ca) = (pebble.directory(), pebble.dir.path().join("ca.pem"));
    let one = |name: &str, challenge: &str| {
        let ca = ca.display();
        format!("{name} = {{ directory = '{directory}', ca = '{ca}', challenge = '{challenge}' }}")
    };
    let acme = format!("{{ {}, {} }}", one("le", "http-01"), one("alpn", "tls-alpn-01"));
    let root = swarm.dir().join("root.pem");
    std::fs::write(&root, pebble.root()).unwrap();
    Some(Rig {
        swarm,
        pebble,
        root,
        acme,
    })
}

impl Rig {
    fn start(&mut self, node: usize, doors: &str) {
        self.swarm
            .start_with(node, &[("ANYNODE_ENTRYPOINTS", doors), ("ANYNODE_ACME", &self.acme)]);
    }

    /// An update of anynode: the one before is left to its clients.
    fn succeed(&mut self, node: usize, doors: &str) -> Child {
        self.swarm
            .succeed_with(node, &[("ANYNODE_ENTRYPOINTS", doors), ("ANYNODE_ACME", &self.acme)])
    }

    fn wait_up(&self) {
        wait_up(&self.swarm);
    }

    /// A service with a route of its own; `more`: further options.
    fn create(&self, host: &str, more: &[&str]) {
        create(&self.swarm, host, more);
    }

    fn curl(&self, node: usize, host: &str) -> Output {
        self.curl_command(node, host, "", 10).output().unwrap()
    }

    /// `within`: seconds.
    fn curl_command(&self, node: usize, host: &str, query: &str, within: u32) -> Command {
        let mut command = self.swarm.client_command("curl");
        command.args(["-sS", "--fail", "-m", &within.to_string(), "--resolve"]);
        command.arg(format!("{host}:443:{}", self.swarm.ip(node)));
        command.arg("--cacert").arg(&self.root);
        command.arg(format!("https://{host}/{query}"));
        command
    }

    fn is_served(&self, node: usize, host: &str) -> bool {
        self.curl(node, host).status.success()
    }

    /// When the certificate ends that a node shows for a host, and which it is.
    fn shown(&self, node: usize, host: &str) -> String {
        let connect = format!("{}:443", self.swarm.ip(node));
        let script = "openssl s_client -connect $0 -servername $1 </dev/null 2>/dev/null | openssl x509 -noout -serial";
        let out = self.swarm.client(&["sh", "-c", script, &connect, host]);
        String::from_utf8_lossy(&out.stdout).into_owned()
    }

    fn status(&self, node: usize) -> String {
        status(&self.swarm, node)
    }

    fn metric(&self, node: usize, series: &str) -> u64 {
        let out = self.swarm.on_node(node, &["curl", "-s", "127.0.0.1:9377/metrics"]);
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        let line = text.lines().find(|line| line.starts_with(series));
        line.map_or(0, |line| line.rsplit(' ').next().unwrap().parse().unwrap())
    }

    /// Requests that tasks of a service are at, for a node's clients.
    fn n_in_flight(&self, node: usize, service: &str) -> u64 {
        let status = self.swarm.status(node).unwrap_or_default();
        let services = status["services"].as_array().cloned().unwrap_or_default();
        let service = services.iter().find(|one| one["name"] == service);
        let endpoints = service.and_then(|service| service["endpoints"].as_array());
        let n = |endpoint: &serde_json::Value| endpoint["in_flight"].as_u64();
        endpoints.into_iter().flatten().filter_map(n).sum()
    }

    fn kept(&self, node: usize, acme: &str, host: &str) -> PathBuf {
        self.swarm
            .data_dir(node)
            .join(format!("acme/{acme}/certificates/{host}.json"))
    }

    fn n_orders(&self) -> usize {
        self.pebble.n_orders()
    }
}

/// An authority beside the client. `life`: of its certificates, in seconds; `leads_to`: the node that all names lead to; `ports`: of its directory, its
/// management, its names and their management.
pub(super) fn pebble(swarm: &Swarm, life: u32, leads_to: usize, ports: [u16; 4]) -> Option<Pebble> {
    let netns = format!("--net={}", swarm.client_netns());
    let run = move |program: &str| {
        let mut command = Command::new("nsenter");
        command.arg(&netns).arg(program);
        command
    };
    let wish = Wish {
        life,
        at: Some(swarm.client_ip().parse().unwrap()),
        names_lead_to: Some(swarm.ip(leads_to).parse().unwrap()),
        ..Wish::default()
    };
    let [directory, management, names, names_management] = ports;
    let ports = [80, 443, directory, management, names, names_management];
    Pebble::start_as(wish, ports, Arc::new(run))
}

fn create(swarm: &Swarm, host: &str, more: &[&str]) {
    let (rule, name) = (format!("anynode.route=Host(`{host}`)"), host.replace('.', "-"));
    let options = ["--network", "app", "--label", &rule, "--label", "anynode.port=80"];
    swarm.create(&name, &[&options, more].concat());
}

fn status(swarm: &Swarm, node: usize) -> String {
    String::from_utf8_lossy(&swarm.anynode(node, &["status"]).stdout).into_owned()
}

/// Waits until all nodes are there: an authority that asks one that is not yet is told nothing. A node listens once it has a
/// service, which is made here, in the network `app`.
pub(super) fn wait_up(swarm: &Swarm) {
    swarm.docker(1, &["network", "create", "--driver", "overlay", "app"]);
    create(swarm, "first.test", &[]);
    swarm.wait_for("all nodes to be linked", LONG, || {
        ALL.into_iter().all(|node| {
            let url = format!("http://{}/", swarm.ip(node));
            let ask = ["curl", "-s", "-o", "/dev/null", "-m", "5", &url];
            let is_open = swarm.client(&ask).status.success();
            let is_linked = |line: &&str| line.starts_with("node") && line.contains(" up active   up ");
            is_open && status(swarm, node).lines().filter(is_linked).count() == ALL.len() - 1
        })
    });
}

/// The nodes, in the order in which managers have their turn.
fn by_id(swarm: &Swarm) -> [usize; 3] {
    let id = |node: usize| swarm.docker(node, &["node", "inspect", "self", "-f", "{{.ID}}"]);
    let mut nodes = ALL;
    nodes.sort_by_cached_key(|node| id(*node));
    nodes
}

/// All files below a directory.
fn files(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let of = |path: PathBuf| if path.is_dir() { files(&path) } else { vec![path] };
    entries.flat_map(|entry| of(entry.path())).collect()
}

#[test]
fn every_node_answers_the_authority_and_shows_what_the_manager_ordered_also_while_that_is_away() {
    // The authority asks a worker.
    let Some(mut rig) = up("acme", 1, 0, |_| 3) else { return };
    // Of the second the configuration says more than the others'.
    let own = DOORS.replace("tls = true", "tls = { acme = 'le' }");
    for (node, doors) in [(1, DOORS), (2, &*own), (3, DOORS)] {
        rig.start(node, doors);
    }
    rig.wait_up();
    let on_all = ["--mode", "global"];
    rig.create("a.test", &[&on_all[..], &["--label", "anynode.acme=le"]].concat());
    rig.create("b.test", &[&on_all[..], &["--label", "anynode.acme=alpn"]].concat());
    for host in ["a.test", "b.test"] {
        rig.swarm.wait_for(&format!("{host} at every node"), LONG, || {
            ALL.into_iter().all(|node| rig.is_served(node, host))
        });
    }
    // One manager ordered, once each.
    assert_eq!(rig.n_orders(), 2, "{}", rig.pebble.log());
    for node in ALL {
        let status = rig.status(node);
        assert!(
            status.contains("certificate of acme.le for a.test: until 20"),
            "{status}"
        );
        assert!(status.contains(", ordered by node1"), "{status}");
        assert_eq!(rig.metric(node, "anynode_acme_orderer{node=\"node1\"}"), 1);
        let n_ordered = rig.metric(node, "anynode_acme_orders_total{acme=\"le\",result=\"ordered\"}");
        assert_eq!(n_ordered, u64::from(node == 1), "node {node}");
        assert!(
            rig.metric(
                node,
                "anynode_acme_certificate_not_after_seconds{acme=\"le\",name=\"a.test\"}"
            ) > 1_000_000_000
        );
    }
    let shown: Vec<String> = ALL.iter().map(|node| rig.shown(*node, "a.test")).collect();
    assert!(
        !shown[0].is_empty() && shown.iter().all(|one| *one == shown[0]),
        "{shown:?}"
    );

    // The manager is updated while a client of its run before stays: whom the others ask is the next run.
    let mut client = rig.curl_command(1, "a.test", "?delay=170000", 175);
    let mut client = client.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    rig.swarm
        .wait_for("the client's request", LONG, || rig.n_in_flight(1, "a-test") == 1);
    let mut before = rig.succeed(1, DOORS);
    rig.create("d.test", &[&on_all[..], &["--label", "anynode.acme=le"]].concat());
    rig.swarm.wait_for("d.test at every node", LONG, || {
        assert!(
            before.try_wait().unwrap().is_none(),
            "the run before has its client yet"
        );
        ALL.into_iter().all(|node| rig.is_served(node, "d.test"))
    });
    assert_eq!(rig.n_orders(), 3, "{}", rig.pebble.log());
    assert_eq!(
        rig.metric(1, "anynode_acme_orders_total{acme=\"le\",result=\"failed\"}"),
        0
    );
    drop((client.kill(), client.wait()));
    rig.swarm.wait_for("the end of the run before", LONG, || {
        before.try_wait().unwrap().is_some()
    });

    // What one node alone wants is not ordered, and it says why.
    rig.create("c.test", &on_all);
    rig.swarm.wait_for("a word on c.test", LONG, || {
        rig.status(2)
            .contains("no certificate for c.test: node1, which orders them, has no route")
    });
    assert!(!rig.status(3).contains("c.test: node1"));

    // At rest nobody can read it.
    for node in ALL {
        rig.swarm.wait_for("the certificates on disk", LONG, || {
            rig.kept(node, "le", "a.test").exists() && rig.kept(node, "alpn", "b.test").exists()
        });
        for path in files(&rig.swarm.data_dir(node).join("acme")) {
            let bytes = std::fs::read(&path).unwrap();
            let is_told = |text: &str| bytes.windows(text.len()).any(|part| part == text.as_bytes());
            assert!(
                !["PRIVATE KEY", "CERTIFICATE", "directory"].into_iter().any(is_told),
                "{path:?}"
            );
        }
        let has_account = rig.swarm.data_dir(node).join("acme/le/account.json").exists();
        assert_eq!(has_account, node == 1, "node {node}");
    }

    // The manager is away: a node that starts has what it had.
    rig.swarm.kill(1);
    assert!([2, 3].into_iter().all(|node| rig.is_served(node, "a.test")));
    rig.swarm.kill(2);
    rig.start(2, &own);
    rig.swarm.wait_for("node2 to serve from its disk", LONG, || {
        rig.is_served(2, "a.test") && rig.is_served(2, "b.test")
    });
    rig.swarm.wait_for("a word on the manager", LONG, || {
        rig.status(2).contains("no manager that is reached orders certificates")
    });
    // Another node's file is of no use to it.
    rig.swarm.kill(3);
    std::fs::copy(rig.kept(2, "le", "a.test"), rig.kept(3, "le", "a.test")).unwrap();
    rig.start(3, DOORS);
    rig.swarm
        .wait_for("node3 to serve what is its own", LONG, || rig.is_served(3, "b.test"));
    assert!(!rig.is_served(3, "a.test"));
    assert!(rig.kept(3, "le", "a.test").with_extension("json.damaged").exists());
    // The manager is back, and gives it once more.
    rig.start(1, DOORS);
    for node in [3, 1] {
        rig.swarm
            .wait_for("a.test again", LONG, || rig.is_served(node, "a.test"));
    }
    assert_eq!(rig.shown(3, "a.test"), shown[0]);
    assert_eq!(rig.n_orders(), 3, "{}", rig.pebble.log());
}

#[test]
fn another_manager_renews_in_time_under_load_and_orders_nothing_that_there_is() {
    // The authority asks one that orders nothing and is not killed.
    let Some(mut rig) = up("acme-managers", 3, 90, |swarm| by_id(swarm)[2]) else {
        return;
    };
    ALL.iter().for_each(|node| rig.start(*node, DOORS));
    rig.wait_up();
    let [first, second, third] = by_id(&rig.swarm);
    let constraint = format!("node.hostname==node{third}");
    rig.create("a.test", &["--constraint", &constraint, "--label", "anynode.acme=le"]);
    rig.swarm.wait_for("a.test at every node", LONG, || {
        ALL.into_iter().all(|node| rig.is_served(node, "a.test"))
    });
    assert!(
        rig.status(third).contains(&format!("ordered by node{first}")),
        "{}",
        rig.status(third)
    );
    let before = rig.shown(second, "a.test");
    let n_before = rig.n_orders();

    let (is_over, n_asked) = (AtomicBool::new(false), AtomicUsize::new(0));
    let (swarm, root) = (&rig.swarm, rig.root.display().to_string());
    let ips = [second, third].map(|node| swarm.ip(node));
    let netns = "--net=/run/netns/an-acme-managers-client";
    std::thread::scope(|scope| {
        let clients = ips.clone().map(|ip| {
            let (is_over, n_asked, root) = (&is_over, &n_asked, &root);
            scope.spawn(move || {
                let resolve = format!("a.test:443:{ip}");
                while !is_over.load(Ordering::Relaxed) {
                    let mut command = Command::new("nsenter");
                    command.args([netns, "curl", "-sS", "--fail", "-m", "10", "--resolve", &resolve]);
                    let out = command.args(["--cacert", root, "https://a.test/"]).output().unwrap();
                    assert!(out.status.success(), "{ip}: {out:?}");
                    n_asked.fetch_add(1, Ordering::Relaxed);
                    std::thread::sleep(Duration::from_millis(50));
                }
            })
        });
        let has_failed = || clients.iter().any(|client| client.is_finished());
        // Whatever becomes of this, the clients are told.
        struct Tells<'a>(&'a AtomicBool);
        impl Drop for Tells<'_> {
            fn drop(&mut self) {
                self.0.store(true, Ordering::Relaxed);
            }
        }
        let _tells = Tells(&is_over);
        swarm.signal(first, rustix::process::Signal::KILL);
        swarm.wait_for("the next manager to order", LONG, || {
            has_failed() || rig.status(third).contains(&format!("ordered by node{second}"))
        });
        let is_renewed = |node: usize| {
            let shown = rig.shown(node, "a.test");
            !shown.is_empty() && shown != before
        };
        let started = Instant::now();
        swarm.wait_for("the renewal", LONG, || {
            has_failed() || (is_renewed(second) && is_renewed(third))
        });
        println!("renewed {:?} after the next manager had its turn", started.elapsed());
    });
    assert!(n_asked.load(Ordering::Relaxed) > 20, "{n_asked:?}");
    // The renewal, and nothing else.
    assert_eq!(rig.n_orders(), n_before + 1, "{}", rig.pebble.log());
    // The first is back: it takes what the second ordered, and orders nothing before it is due.
    rig.swarm.kill(first);
    rig.start(first, DOORS);
    let renewed = rig.shown(second, "a.test");
    rig.swarm.wait_for("the first to have its turn again", LONG, || {
        rig.status(third).contains(&format!("ordered by node{first}"))
    });
    rig.swarm.wait_for("the renewed one at the first", LONG, || {
        rig.shown(first, "a.test") == renewed
    });
    assert_eq!(rig.n_orders(), n_before + 1, "{}", rig.pebble.log());
}
