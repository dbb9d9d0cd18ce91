//! A swarm by itself that orders certificates: routes are declared by labels, Traefik's among them, and anynode itself is updated.

use std::process::Command;
use std::sync::Arc;

use super::rig::{self, LONG, Tasks};
use crate::acme::rig::{Pebble, Wish};

#[test]
fn a_service_of_the_swarm_has_its_certificate_also_after_an_update_of_anynode() {
    let Some(mut own) = rig::up("acme", Tasks::Processes) else {
        return;
    };
    // It asks inside this node's network, at the ports that authorities ask.
    let netns = own.netns_path();
    let inside = move |program: &str| {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", netns.display())).arg(program);
        command
    };
    let ports = [80, 443, 14000, 15000, 8053, 8055];
    let Some(pebble) = Pebble::start_as(Wish::default(), ports, Arc::new(inside)) else {
        return;
    };
    let acme = format!(
        "{{ le = {{ directory = '{}', ca = '{}' }} }}",
        pebble.directory(),
        pebble.dir.path().join("ca.pem").display()
    );
    own.env.push(("ANYNODE_ACME", acme.leak()));
    let doors = "{ web = { listen = ':80', redirect = 'websecure' }, websecure = { listen = ':443', tls = true } }";
    own.env.push(("ANYNODE_ENTRYPOINTS", doors));
    own.env.push(("ANYNODE_LABELS_TRAEFIK", "true"));
    own.start();
    own.docker(&["swarm", "init"]);
    let root = own.dir().join("root.pem");
    std::fs::write(&root, pebble.root()).unwrap();
    let is_served = |own: &rig::Own, host: &str| {
        let out = own
            .inside("curl")
            .args([
                "-sS",
                "-m",
                "10",
                "--resolve",
                &format!("{host}:443:127.0.0.1"),
                "--cacert",
            ])
            .arg(&root)
            .arg(format!("https://{host}/"))
            .output()
            .unwrap();
        out.status.success()
    };
    let create = |own: &rig::Own, labels: &[&str]| {
        let mut args = vec!["service", "create", "-d", "--no-resolve-image"];
        args.extend(labels.iter().flat_map(|label| ["--label", label]));
        args.push("anynode/whoami");
        own.docker(&args);
    };
    let traefik = [
        "traefik.enable=true",
        "traefik.http.routers.a.rule=Host(`a.test`)",
        "traefik.http.routers.a.tls.certresolver=le",
        "traefik.http.services.a.loadbalancer.server.port=8080",
    ];
    create(&own, &traefik);
    own.wait_for("a certificate by Traefik's label", LONG, || is_served(&own, "a.test"));
    own.update();
    assert!(is_served(&own, "a.test"));
    create(
        &own,
        &["anynode.route=Host(`b.test`)", "anynode.port=8080", "anynode.acme=le"],
    );
    own.wait_for("a certificate by ours", LONG, || is_served(&own, "b.test"));
    // Of the two that ran one has ordered, by the one account.
    assert_eq!((pebble.n_orders(), pebble.n_accounts()), (2, 1), "{}", pebble.log());
    let status = own.anynode(&["status"]);
    assert!(
        status.contains("certificate of acme.le for b.test: until 20"),
        "{status}"
    );
}
