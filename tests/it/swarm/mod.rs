//! anynode on a real Docker Swarm of three engines: every node answers, whatever happens to the others.

mod acme;
mod cluster;
mod deploy;
mod grafana;
mod inside;
mod page;
mod posts;
pub mod rig;
mod source;
mod traefik;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant, SystemTime};

use serde_json::Value;

const ALL: [usize; 3] = [1, 2, 3];

fn no_failure(what: &str, report: &Value) {
    assert!(report["ok"].as_u64().unwrap() > 0, "{what}: {report}");
    assert_eq!(report["failed"], 0, "{what}: {report}");
}

#[test]
fn every_node_answers_for_services_made_before_and_after() {
    let Some(mut swarm) = rig::up("answers", 3, 1) else {
        return;
    };
    let publish = ["--publish", "published=8080,target=80", "--replicas", "3"];
    swarm.create("before", &publish);
    swarm.start_all();
    swarm.create("my-web", &["--publish", "published=8081,target=80", "--replicas", "3"]);
    for (service, port) in [("before", 8080), ("my-web", 8081)] {
        swarm.wait_ready(&ALL, service, 3);
        for node in ALL {
            let tasks = swarm.tasks_at(node, port, 6);
            assert_eq!(tasks[..3], tasks[3..], "in turn");
            assert_eq!(tasks.iter().collect::<BTreeSet<_>>().len(), 3, "all of them: {tasks:?}");
        }
    }
    let verified = swarm.anynode(2, &["verify"]);
    let text = String::from_utf8_lossy(&verified.stdout);
    assert!(
        verified.status.success() && text.contains("all nodes hold the same table"),
        "{text}"
    );
    let metrics = swarm.on_node(2, &["curl", "-s", "127.0.0.1:9377/metrics"]);
    let metrics = String::from_utf8_lossy(&metrics.stdout);
    for series in [
        "anynode_cluster_source{way=\"link\"} 1",
        "hostname=\"node1\"} 1",
        "anynode_last_hop_connections_total{service=\"my-web\"}",
    ] {
        assert!(metrics.contains(series), "{series} in\n{metrics}");
    }
    swarm.docker(1, &["service", "update", "--detach", "--publish-rm", "80", "my-web"]);
    swarm.wait_for("the port to close", Duration::from_secs(30), || {
        ALL.iter().all(|node| swarm.curl(*node, 8081, "/").is_err())
    });
}

#[test]
fn services_share_a_port_of_the_nodes_that_have_it() {
    let Some(mut swarm) = rig::up("routes", 2, 1) else {
        return;
    };
    let traefik = ("ANYNODE_LABELS_TRAEFIK", "true");
    swarm.start_with(1, &[("ANYNODE_ENTRYPOINTS", "{ web = { listen = ':80' } }"), traefik]);
    swarm.start_with(2, &[traefik]);
    swarm.docker(1, &["network", "create", "--driver", "overlay", "app"]);
    let routed = |name: &str, rule: &str| {
        let rule = format!("anynode.route={rule}");
        let options = [
            "--network",
            "app",
            "--replicas",
            "2",
            "--label",
            &rule,
            "--label",
            "anynode.port=80",
        ];
        swarm.create(name, &options);
    };
    routed("shop", "Host(`shop.test`)");
    routed("api", "Host(`shop.test`) && PathPrefix(`/api`)");
    // Who is asked: the service's tasks on both nodes, in turn.
    let asked = |path: &str| -> Option<String> {
        let url = format!("http://{}{path}", swarm.ip(1));
        let out = swarm.client(&["curl", "-sS", "--fail", "-m", "10", "-H", "Host: shop.test", &url]);
        let answer: Value = serde_json::from_slice(&out.stdout).ok()?;
        Some(answer["hostname"].as_str()?.to_owned())
    };
    for (service, path) in [("shop", "/"), ("api", "/api")] {
        swarm.wait_ready(&[1, 2], service, 2);
        let tasks: BTreeSet<String> = [1, 2]
            .iter()
            .flat_map(|node| swarm.containers(*node, service).into_keys())
            .collect();
        assert_eq!(tasks.len(), 2);
        let answers: BTreeSet<String> = (0..4).map(|_| asked(path).expect("an answer")).collect();
        assert_eq!(answers, tasks, "{service}");
    }
    let faults = |node: usize, service: &str| swarm.status(node).unwrap_or_default()["faults"][service].to_string();
    assert!(
        faults(2, "shop").contains("this node has no entry point"),
        "{}",
        faults(2, "shop")
    );
    assert_eq!(faults(1, "shop"), "null");
    // The same rule once more, and one that no network leads to.
    routed("second", "Host(\"SHOP.test\")");
    let alone = [
        "--label",
        "anynode.route=Host(`alone.test`)",
        "--label",
        "anynode.port=80",
    ];
    swarm.create("alone", &alone);
    for (service, expected) in [
        ("second", "already that of service shop"),
        ("alone", "expected a network"),
    ] {
        swarm.wait_for(&format!("a word on {service}"), Duration::from_secs(30), || {
            faults(1, service).contains(expected)
        });
    }
    assert!(asked("/").is_some());
    // Traefik's labels, of tasks on both nodes.
    let labelled = |name: &str, more: &str| {
        let rule = format!("traefik.http.routers.{name}.rule=Host(`{name}.test`)");
        let port = format!("traefik.http.services.{name}.loadbalancer.server.port=80");
        let labels = ["traefik.enable=true", &rule, &port, more];
        let mut options = vec!["--network", "app", "--replicas", "2"];
        labels.iter().for_each(|label| options.extend(["--label", label]));
        swarm.create(name, &options);
    };
    labelled("labelled", "traefik.swarm.network=app");
    labelled("locked", "traefik.http.routers.locked.middlewares=auth@file");
    let answer = |host: &str| {
        let (url, host) = (format!("http://{}/", swarm.ip(1)), format!("Host: {host}"));
        let out = swarm.client(&["curl", "-sS", "-m", "10", "-w", "%{http_code}", "-H", &host, &url]);
        String::from_utf8_lossy(&out.stdout).into_owned()
    };
    swarm.wait_ready(&[1, 2], "labelled", 2);
    let tasks = [1, 2]
        .iter()
        .flat_map(|node| swarm.containers(*node, "labelled").into_keys());
    for task in tasks.collect::<Vec<String>>() {
        swarm.wait_for("an answer of each task", Duration::from_secs(30), || {
            answer("labelled.test").contains(&task)
        });
    }
    swarm.wait_for("a word on locked", Duration::from_secs(30), || {
        faults(1, "locked").contains("auth@file is of a configuration that is not read here")
    });
    let refused = answer("locked.test");
    assert!(refused.ends_with("503") && refused.contains("closed"), "{refused}");
    // A change of labels alone.
    swarm.docker(
        1,
        &[
            "service",
            "update",
            "--detach",
            "--label-add",
            "anynode.route=Host(`moved.test`)",
            "shop",
        ],
    );
    swarm.wait_for("the route's move", Duration::from_secs(30), || {
        asked("/").is_none_or(|task| !swarm.containers(1, "shop").contains_key(&task))
    });
}

#[test]
fn the_task_learns_its_clients_address_whichever_node_was_asked() {
    let Some(mut swarm) = rig::up("address", 3, 1) else {
        return;
    };
    swarm.start_all();
    let on_node_3 = ["--constraint", "node.hostname==node3"];
    let with = |rest: &[&'static str]| [&on_node_3[..], rest].concat();
    swarm.create("web", &with(&["--label", "anynode.mode=http", "--publish", "8080:80"]));
    for (name, version, port) in [
        ("v1", "anynode.proxy-protocol=v1", "9001:9000"),
        ("v2", "anynode.proxy-protocol=v2", "9002:9000"),
    ] {
        swarm.create(
            name,
            &with(&["--label", version, "--publish", port, "--env", "PROXY=1"]),
        );
    }
    swarm.create("raw", &with(&["--publish", "9003:9000", "--publish", "8081:80"]));
    let none = with(&["--label", "anynode.client-address=none", "--publish", "8082:80"]);
    swarm.create("none", &none);
    for service in ["web", "v1", "v2", "raw", "none"] {
        swarm.wait_ready(&ALL, service, 1);
    }
    let client = swarm.client_ip();
    for node in ALL {
        // As the source of the connection that its program accepts, the port too, on whichever node the container runs.
        let url = format!("http://{}:8081/", swarm.ip(node));
        let port = format!("{}", 5550 + node);
        let out = swarm.client(&["curl", "-s", "-f", "-m", "5", "--local-port", &port, &url]);
        let answer: Value = serde_json::from_slice(&out.stdout).unwrap();
        assert_eq!(
            (answer["peer"].as_str(), answer["peer_port"].as_u64()),
            (Some(client.as_str()), Some(5550 + node as u64)),
            "node {node}: {answer}"
        );
        let answer: Value = serde_json::from_str(&swarm.curl(node, 8082, "/").unwrap()).unwrap();
        assert_ne!(answer["peer"], client, "node {node}: {answer}");
        let own = swarm.on_node(node, &["curl", "-s", "-f", "-m", "5", "http://127.0.0.1:8081/"]);
        assert!(own.status.success(), "node {node}: {own:?}");
        let answer: Value = serde_json::from_str(&swarm.curl(node, 8080, "/").unwrap()).unwrap();
        assert_eq!(answer["headers"]["x-forwarded-for"], client, "{answer}");
        let forwarded = answer["headers"]["forwarded"].as_str().unwrap();
        assert!(forwarded.starts_with(&format!("for={client};")), "{answer}");
        let ip = swarm.ip(node);
        let said = |port: &str| {
            let script = format!("exec 3<>/dev/tcp/{ip}/{port}; printf 'end' >&3; timeout 1 cat <&3; true");
            swarm.client(&["bash", "-c", &script]).stdout
        };
        let raw = String::from_utf8_lossy(&said("9003")).into_owned();
        assert_eq!(raw, format!("{client}\nend"), "node {node}");
        let v1 = String::from_utf8_lossy(&said("9001")).into_owned();
        assert!(
            v1.starts_with(&format!("PROXY TCP4 {client} {ip} ")) && v1.ends_with("end"),
            "node {node}: {v1:?}"
        );
        let v2 = said("9002");
        let octets: Vec<u8> = client.split('.').map(|octet| octet.parse().unwrap()).collect();
        assert_eq!(&v2[..12], b"\r\n\r\n\0\r\nQUIT\n", "node {node}: {v2:?}");
        assert_eq!(v2[16..20], octets[..], "node {node}: {v2:?}");
        assert!(v2.ends_with(b"end"));
    }
}

#[test]
fn updates_scaling_and_drained_nodes_cost_no_request() {
    let Some(mut swarm) = rig::up("updates", 3, 1) else {
        return;
    };
    swarm.start_all();
    let grace = ["--stop-grace-period", "3s", "--replicas", "3"];
    swarm.create("tcp", &[&grace[..], &["--publish", "8080:80"]].concat());
    swarm.create(
        "http",
        &[&grace[..], &["--label", "anynode.mode=http", "--publish", "8081:80"]].concat(),
    );
    for service in ["tcp", "http"] {
        swarm.wait_ready(&ALL, service, 3);
    }
    let rounds: u64 = std::env::var("ANYNODE_ROUNDS").map_or(2, |n| n.parse().unwrap());
    for round in 0..rounds {
        let seconds = "14";
        let loads = [
            (
                "tcp, new connections",
                swarm.load(&ALL, 8080, &["--seconds", seconds, "--new", "--pause-us", "2000"]),
            ),
            (
                "http, new connections",
                swarm.load(&ALL, 8081, &["--seconds", seconds, "--new", "--pause-us", "2000"]),
            ),
            (
                "http, kept connections",
                swarm.load(&ALL, 8081, &["--seconds", seconds, "--pause-us", "2000"]),
            ),
            (
                "http, answers in 3 s",
                swarm.load(&ALL, 8081, &["--seconds", seconds, "--path", "/?delay=3000"]),
            ),
            (
                "tcp, answers in 3 s",
                swarm.load(&ALL, 8080, &["--seconds", seconds, "--new", "--path", "/?delay=3000"]),
            ),
            (
                "http, 5 MB",
                swarm.load(
                    &ALL,
                    8081,
                    &[
                        "--seconds",
                        seconds,
                        "--threads",
                        "3",
                        "--path",
                        "/?bytes=5000000",
                        "--pause-us",
                        "100000",
                    ],
                ),
            ),
        ];
        std::thread::sleep(Duration::from_millis(500));
        let order = ["start-first", "stop-first"][usize::try_from(round % 2).unwrap()];
        let on_term = ["graceful", "exit", "ignore"][usize::try_from(round / 2 % 3).unwrap()];
        for service in ["tcp", "http"] {
            let env = format!("ROUND={round}");
            let term = format!("ON_TERM={on_term}");
            let update = [
                "service",
                "update",
                "--detach",
                "--no-resolve-image",
                "--update-order",
                order,
                "--update-delay",
                "0s",
                "--env-add",
                &env,
                "--env-add",
                &term,
                service,
            ];
            swarm.docker(1, &update);
        }
        std::thread::sleep(Duration::from_secs(7));
        swarm.docker(1, &["service", "scale", "--detach", "tcp=5", "http=5"]);
        std::thread::sleep(Duration::from_secs(2));
        swarm.docker(1, &["service", "scale", "--detach", "tcp=3", "http=3"]);
        for (what, load) in loads {
            let report = load.wait();
            no_failure(&format!("round {round}, {order}, {on_term}, {what}"), &report);
        }
    }
    let load = swarm.load(&ALL, 8081, &["--seconds", "8", "--pause-us", "2000"]);
    swarm.docker(1, &["node", "update", "--availability", "drain", "node3"]);
    no_failure("drain of a node", &load.wait());
}

/// When each node's log says that a task is routed.
fn routed(swarm: &rig::Swarm, node: usize) -> BTreeMap<String, SystemTime> {
    let log = swarm.log(node);
    let routed = log
        .lines()
        .filter(|line| line.contains("routed service=\"web\"") || line.contains("routed service=web"));
    let read = |line: &str| {
        let at = humantime::parse_rfc3339(line.split_whitespace().next()?).ok()?;
        let task = line.split("task=").nth(1)?.split_whitespace().next()?;
        Some((task.trim_matches('"').to_owned(), at))
    };
    routed.filter_map(read).collect()
}

/// `ANYNODE_STARTS`: so many tasks are started, one after the other.
#[test]
fn a_task_is_routed_on_all_nodes_as_soon_as_it_runs() {
    let Some(mut swarm) = rig::up("starts", 3, 1) else {
        return;
    };
    for node in ALL {
        swarm.start_with(node, &[("ANYNODE_LOG", "info,anynode::source=debug")]);
    }
    swarm.create("web", &["--publish", "8080:80", "--replicas", "1"]);
    swarm.wait_ready(&ALL, "web", 1);
    let starts: usize = std::env::var("ANYNODE_STARTS").map_or(8, |n| n.parse().unwrap());
    let mut committed = BTreeMap::new();
    let mut n = 1;
    while committed.len() < starts {
        n = if n == 5 { 1 } else { n + 1 };
        swarm.docker(1, &["service", "scale", "--detach", &format!("web={n}")]);
        swarm.wait_ready(&ALL, "web", n);
        let tasks = [
            "service",
            "ps",
            "web",
            "-q",
            "--no-trunc",
            "--filter",
            "desired-state=running",
        ];
        for task in swarm.docker(1, &tasks).split_whitespace() {
            let what = [
                "inspect",
                "--type",
                "task",
                "-f",
                "{{json .Status.Timestamp}} {{json .UpdatedAt}}",
                task,
            ];
            // What is known of it first: later ones may say when something else of it was committed.
            committed.entry(task.to_owned()).or_insert_with(|| {
                let said = swarm.docker(1, &what).replace('"', "");
                let (ran, committed) = said.split_once(' ').unwrap();
                [ran, committed].map(|at| humantime::parse_rfc3339(at).unwrap())
            });
        }
    }
    let on_nodes = ALL.map(|node| routed(&swarm, node));
    for (i, since) in ["it ran at its node", "the manager's commit"].into_iter().enumerate() {
        let late = committed.iter().map(|(task, at)| {
            let routed = on_nodes
                .iter()
                .map(|on_node| on_node.get(task).expect("it is routed on each node"));
            routed.max().unwrap().duration_since(at[i]).unwrap_or_default()
        });
        let mut late: Vec<Duration> = late.collect();
        late.sort_unstable();
        let at = |permille: usize| late[(late.len() - 1) * permille / 1000];
        println!(
            "routed on all nodes so long after {since}, {} starts: p50 {:.1?}, p90 {:.1?}, p99 {:.1?}, max {:.1?}",
            late.len(),
            at(500),
            at(900),
            at(990),
            at(1000)
        );
    }
}

/// Whether all nodes hold the same cluster, and it says what `docker service ps` says of `service`.
fn agree(swarm: &rig::Swarm, nodes: &[usize], manager: usize, service: &str) -> bool {
    let states: Vec<Value> = nodes.iter().filter_map(|node| swarm.status(*node)).collect();
    let digests: BTreeSet<&str> = states
        .iter()
        .filter_map(|state| state["cluster"]["digest"].as_str())
        .collect();
    let ps = [
        "service",
        "ps",
        service,
        "--no-trunc",
        "--filter",
        "desired-state=running",
        "--format",
        "{{.ID}} {{.CurrentState}}",
    ];
    let out = swarm.try_docker(manager, &ps);
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    let running: BTreeSet<String> = text
        .lines()
        .filter_map(|line| line.split_once(" Running"))
        .map(|(id, _)| id.to_owned())
        .collect();
    let known = |state: &Value| -> BTreeSet<String> {
        let services = state["services"].as_array().cloned().unwrap_or_default();
        let endpoints = services.into_iter().filter(|one| one["name"] == service);
        let endpoints = endpoints.flat_map(|one| one["endpoints"].as_array().cloned().unwrap_or_default());
        let live = endpoints.filter(|endpoint| endpoint["state"] != "draining");
        live.filter_map(|one| Some(one["task"].as_str()?.rsplit('.').next()?.to_owned()))
            .collect()
    };
    states.len() == nodes.len()
        && digests.len() == 1
        && out.status.success()
        && states.iter().all(|state| known(state) == running)
}

#[test]
fn whatever_happens_to_one_node_the_others_serve_and_all_agree_again() {
    let Some(mut swarm) = rig::up("trouble", 3, 1) else {
        return;
    };
    swarm.start_all();
    swarm.create("web", &["--publish", "8080:80", "--replicas", "6"]);
    swarm.wait_ready(&ALL, "web", 6);
    let threads = 6;
    let load = |swarm: &rig::Swarm, nodes: &[usize], seconds: &str| {
        swarm.load(nodes, 8080, &["--seconds", seconds, "--new", "--pause-us", "3000"])
    };
    // What was in flight on what died is lost; nothing else is.
    let few = |what: &str, report: &Value| {
        println!("{what}: {report}");
        assert!(report["ok"].as_u64().unwrap() > 200, "{what}: {report}");
        assert!(report["failed"].as_u64().unwrap() <= threads, "{what}: {report}");
    };
    let settle = |swarm: &rig::Swarm, what: &str| {
        let started = Instant::now();
        swarm.wait_for(&format!("all to agree after {what}"), Duration::from_secs(60), || {
            agree(swarm, &ALL, 1, "web")
        });
        println!("agreed {:?} after {what}", started.elapsed());
    };
    settle(&swarm, "the start");

    let under_load = load(&swarm, &ALL, "5");
    std::thread::sleep(Duration::from_millis(500));
    let container = swarm.docker(2, &["ps", "-q", "--filter", "name=web"]);
    let container = container.lines().next().unwrap().to_owned();
    let pid = swarm.docker(2, &["inspect", "-f", "{{.State.Pid}}", &container]);
    assert!(
        std::process::Command::new("kill")
            .args(["-9", &pid])
            .status()
            .unwrap()
            .success()
    );
    few("a task is killed", &under_load.wait());
    swarm.wait_ready(&ALL, "web", 6);
    settle(&swarm, "the task's death");

    let under_load = load(&swarm, &[2, 3], "6");
    std::thread::sleep(Duration::from_millis(500));
    swarm.kill(1);
    std::thread::sleep(Duration::from_secs(3));
    swarm.start(1);
    few("anynode on the manager is killed", &under_load.wait());
    settle(&swarm, "its return");

    let under_load = load(&swarm, &[1, 2], "8");
    std::thread::sleep(Duration::from_millis(500));
    swarm.signal(3, rustix::process::Signal::STOP);
    std::thread::sleep(Duration::from_secs(5));
    swarm.signal(3, rustix::process::Signal::CONT);
    few("a node is frozen", &under_load.wait());
    settle(&swarm, "it goes on");

    let under_load = load(&swarm, &[1, 2], "36");
    std::thread::sleep(Duration::from_millis(500));
    swarm.cluster(&["partition", "3"]);
    std::thread::sleep(Duration::from_secs(30));
    swarm.cluster(&["heal", "3"]);
    few("a node is cut off", &under_load.wait());
    settle(&swarm, "it is back");
    swarm.wait_ready(&ALL, "web", 6);

    let under_load = load(&swarm, &ALL, "25");
    std::thread::sleep(Duration::from_millis(500));
    swarm.cluster(&["kill-dockerd", "3"]);
    few("a node's engine is killed", &under_load.wait());
    swarm.cluster(&["start-dockerd", "3"]);
    swarm.wait_ready(&ALL, "web", 6);
    settle(&swarm, "it is back");

    // The only manager goes, with its engine: the others serve, also one that begins anew.
    let under_load = load(&swarm, &[2, 3], "10");
    std::thread::sleep(Duration::from_millis(500));
    swarm.cluster(&["kill-dockerd", "1"]);
    swarm.kill(1);
    std::thread::sleep(Duration::from_secs(3));
    few("the manager is gone", &{
        let report = under_load.wait();
        swarm.kill(2);
        report
    });
    swarm.start(2);
    swarm.wait_for("the last table", Duration::from_secs(20), || {
        swarm.curl(2, 8080, "/").is_ok()
    });
    assert!(swarm.tasks_at(2, 8080, 8).len() == 8);
    swarm.cluster(&["start-dockerd", "1"]);
    swarm.start(1);
    swarm.wait_ready(&ALL, "web", 6);
    settle(&swarm, "the manager's return");
}

#[test]
fn an_update_of_anynode_itself_costs_no_request() {
    let Some(mut swarm) = rig::up("itself", 3, 1) else {
        return;
    };
    swarm.start_all();
    swarm.create("tcp", &["--publish", "8080:80", "--replicas", "3"]);
    swarm.create(
        "http",
        &[
            "--label",
            "anynode.mode=http",
            "--publish",
            "8081:80",
            "--replicas",
            "3",
        ],
    );
    for service in ["tcp", "http"] {
        swarm.wait_ready(&ALL, service, 3);
    }
    let rounds: u64 = std::env::var("ANYNODE_ROUNDS").map_or(1, |n| n.parse().unwrap());
    for round in 0..rounds {
        let loads = [
            (
                "tcp, new connections",
                8080,
                &["--seconds", "40", "--new", "--pause-us", "3000"][..],
            ),
            (
                "http, new connections",
                8081,
                &["--seconds", "40", "--new", "--pause-us", "3000"],
            ),
            (
                "http, kept connections",
                8081,
                &["--seconds", "40", "--pause-us", "3000"],
            ),
        ]
        .map(|(what, port, args)| (what, swarm.load(&ALL, port, args)));
        std::thread::sleep(Duration::from_millis(500));
        for node in ALL {
            swarm.replace(node);
        }
        for (what, load) in loads {
            no_failure(&format!("round {round}, anynode itself, {what}"), &load.wait());
        }
    }
}

#[test]
fn a_port_that_dockers_rules_lead_astray_is_answered_and_given_back() {
    let Some(mut swarm) = rig::up("taken", 2, 1) else {
        return;
    };
    swarm.create("web", &["--publish", "8080:80", "--replicas", "2"]);
    let (one, two) = (swarm.ip(1), swarm.ip(2));
    let rules = format!(
        "iptables -t nat -N DOCKER-INGRESS && iptables -t nat -I PREROUTING -m addrtype --dst-type LOCAL -j DOCKER-INGRESS \
         && iptables -t nat -I OUTPUT -m addrtype --dst-type LOCAL -j DOCKER-INGRESS \
         && iptables -t nat -A DOCKER-INGRESS -p tcp --dport 8080 -j DNAT --to-destination {two}:9090 \
         && iptables -t nat -A POSTROUTING -p tcp --dport 9090 -j MASQUERADE"
    );
    let out = swarm.on_node(1, &["sh", "-c", &rules]);
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    assert!(swarm.curl(1, 8080, "/").is_err(), "dead behind the rule");
    swarm.start_all();
    swarm.wait_ready(&[1, 2], "web", 2);
    assert_eq!(swarm.tasks_at(1, 8080, 4).iter().collect::<BTreeSet<_>>().len(), 2);
    let from_itself = swarm.on_node(
        1,
        &["curl", "-sS", "--fail", "-m", "10", &format!("http://{one}:8080/")],
    );
    assert!(
        from_itself.status.success(),
        "{}",
        String::from_utf8_lossy(&from_itself.stderr)
    );
    let status = swarm.status(1).unwrap();
    assert_eq!(status["takeover"]["redirected"], serde_json::json!([8080]), "{status}");
    swarm.kill(1);
    let mut behind = swarm.spawn_on_node(2, &["python3", "-m", "http.server", "9090"]);
    swarm.wait_for("the rule to work as before", Duration::from_secs(20), || {
        swarm
            .curl(1, 8080, "/")
            .is_ok_and(|page| page.contains("Directory listing"))
    });
    behind.kill().unwrap();
    behind.wait().unwrap();
}

#[test]
fn nginx_and_haproxy_take_the_clients_address_from_the_proxy_protocol() {
    let program = |name: &str| {
        ["/usr/sbin/", "/usr/bin/"]
            .map(|dir| format!("{dir}{name}"))
            .into_iter()
            .find(|path| std::path::Path::new(path).exists())
    };
    let (Some(nginx), Some(haproxy)) = (program("nginx"), program("haproxy")) else {
        println!("skipped: this needs nginx and haproxy");
        return;
    };
    let Some(mut swarm) = rig::up("proxies", 3, 1) else {
        return;
    };
    swarm.start_all();
    let image = |path: &str, name: &str, entrypoint: &str| {
        let rootfs = rig::rootfs(path.as_ref(), name);
        let image = format!("127.0.0.1:1/{name}");
        let change = format!("ENTRYPOINT {entrypoint}");
        swarm.docker(
            3,
            &["import", "--change", &change, &rootfs.display().to_string(), &image],
        );
        image
    };
    let config = |name: &str, text: &str| {
        let path = swarm.dir().join(name);
        std::fs::write(&path, text).unwrap();
        swarm.docker(1, &["config", "create", name, &path.display().to_string()]);
    };
    config("passwd", "root:x:0:0:root:/:/\nnobody:x:65534:65534::/:/\n");
    config("group", "root:x:0:\nnogroup:x:65534:\n");
    config(
        "nginx.conf",
        "daemon off; master_process off; user root; pid /nginx.pid; error_log stderr; events {}\n\
         http { access_log off; client_body_temp_path /b; proxy_temp_path /p; fastcgi_temp_path /f; uwsgi_temp_path /u; scgi_temp_path /s;\n\
         server { listen 80 proxy_protocol; return 200 \"nginx $proxy_protocol_addr\"; } }\n",
    );
    config(
        "haproxy.cfg",
        "global\n  maxconn 100\ndefaults\n  mode http\n  timeout client 10s\n  timeout server 10s\n  timeout connect 1s\n\
         frontend f\n  bind :80 accept-proxy\n  http-request return status 200 content-type text/plain lf-string \"haproxy %[src]\"\n",
    );
    let image_of_nginx = image(&nginx, "nginx", r#"["/nginx","-e","stderr","-c","/nginx.conf"]"#);
    let image_of_haproxy = image(&haproxy, "haproxy", r#"["/haproxy","-db","-f","/haproxy.cfg"]"#);
    let client = swarm.client_ip();
    for (name, image, version, port, file) in [
        ("nginx", &image_of_nginx, "v1", 8080, "nginx.conf"),
        ("haproxy", &image_of_haproxy, "v2", 8081, "haproxy.cfg"),
    ] {
        let file = format!("source={file},target=/{file}");
        let (label, publish) = (format!("anynode.proxy-protocol={version}"), format!("{port}:80"));
        let create = [
            "service",
            "create",
            "--detach",
            "--no-resolve-image",
            "--name",
            name,
            "--constraint",
            "node.hostname==node3",
        ];
        let more = [
            "--config",
            &file,
            "--config",
            "source=passwd,target=/etc/passwd",
            "--config",
            "source=group,target=/etc/group",
            "--label",
            &label,
            "--publish",
            &publish,
            image,
        ];
        swarm.docker(1, &[&create[..], &more].concat());
        for node in ALL {
            let what = format!("{name} to answer by node {node}");
            swarm.wait_for(&what, Duration::from_secs(40), || swarm.curl(node, port, "/").is_ok());
            assert_eq!(
                swarm.curl(node, port, "/").unwrap(),
                format!("{name} {client}"),
                "node {node}"
            );
        }
    }
}
