//! Services of a Docker Swarm, reached from inside its tasks where the overlay is dead: by Docker's own names and addresses,
//! through anynode, on whichever node they run.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{ALL, rig};

const INSIDE: (&str, &str) = ("ANYNODE_SWARM_SERVICES_INSIDE", "true");
const LONG: Duration = Duration::from_secs(60);

/// What a program in a task's container gets at a URL: curl's exit code.
fn asks(swarm: &rig::Swarm, node: usize, service: &str, url: &str) -> Option<i32> {
    let containers: BTreeMap<String, String> = swarm.containers(node, service);
    let container = containers.keys().next()?;
    let out = swarm.try_docker(node, &["exec", container, "curl", "-f", url]);
    out.status.code()
}

#[test]
fn services_are_reached_where_the_overlay_is_dead() {
    let Some(mut swarm) = rig::up("inside", 3, 1) else {
        return;
    };
    for network in ["app", "other"] {
        swarm.docker(1, &["network", "create", "-d", "overlay", network]);
    }
    let on = |node: &'static str| ["--constraint", node];
    let with = |more: &[&'static str], node| [&on(node)[..], more].concat();
    swarm.create(
        "web",
        &with(&["--network", "app", "--replicas", "1"], "node.hostname==node1"),
    );
    swarm.create(
        "api",
        &with(&["--network", "app", "--replicas", "2"], "node.hostname==node3"),
    );
    swarm.create("lone", &with(&["--network", "other"], "node.hostname==node1"));
    for (service, n) in [("web", 1), ("api", 2), ("lone", 1)] {
        swarm.wait_running(service, n);
    }
    assert_ne!(
        asks(&swarm, 1, "web", "http://api:80/"),
        Some(0),
        "the overlay of this kernel is dead"
    );
    for node in ALL {
        swarm.start_with(node, &[INSIDE]);
    }
    swarm.wait_for("a service of another node", LONG, || {
        asks(&swarm, 1, "web", "http://api:80/") == Some(0)
    });
    for _ in 0..10 {
        assert_eq!(asks(&swarm, 1, "web", "http://api:80/"), Some(0));
        assert_eq!(asks(&swarm, 3, "api", "http://web:80/"), Some(0));
    }
    assert_eq!(asks(&swarm, 1, "web", "http://web:80/"), Some(0), "itself");
    // Names of another network Docker does not answer; addresses of one lead nowhere.
    assert_ne!(asks(&swarm, 1, "lone", "http://api:80/"), Some(0));
    let format = "{{range .Endpoint.VirtualIPs}}{{.Addr}} {{end}}";
    let vips = swarm.docker(1, &["service", "inspect", "-f", format, "api"]);
    let vip = vips
        .split_whitespace()
        .next()
        .unwrap()
        .split('/')
        .next()
        .unwrap()
        .to_owned();
    assert_eq!(asks(&swarm, 1, "web", &format!("http://{vip}:80/")), Some(0));
    assert_ne!(asks(&swarm, 1, "lone", &format!("http://{vip}:80/")), Some(0));
    // An update of anynode refuses nobody, and one that ends takes its routes away.
    swarm.replace_with(1, &[INSIDE]);
    for _ in 0..20 {
        assert_eq!(asks(&swarm, 1, "web", "http://api:80/"), Some(0));
    }
    // Its tasks move, and are found.
    swarm.docker(1, &["service", "update", "--detach", "--force", "api"]);
    for _ in 0..30 {
        assert_eq!(asks(&swarm, 1, "web", "http://api:80/"), Some(0));
    }
}
