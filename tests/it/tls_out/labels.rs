//! The same by labels, of a swarm by itself: nginx with TLS in tasks that are processes, through a rolling update; and a stack's label for
//! Traefik.

use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::rig::{Authority, has};
use crate::own::rig::{self, LONG, Own, Tasks};

fn leaked(text: String) -> &'static str {
    Box::leak(text.into_boxed_str())
}

/// A swarm whose images `tls:1` and `tls:2` are nginx with a certificate for `web` by `authority`, and say which they are.
fn stage(authority: &Authority, dir: &std::path::Path) -> Option<Own> {
    if !has("nginx") {
        return None;
    }
    let mut own = rig::up("tls-out", Tasks::Processes)?;
    std::fs::set_permissions(dir, PermissionsExt::from_mode(0o755)).unwrap();
    std::fs::write(dir.join("ca.pem"), &authority.pem).unwrap();
    authority.issue(&["web", "*.shop.internal"]).write(dir, "web");
    for name in ["web.pem", "web.key", "ca.pem"] {
        std::fs::set_permissions(dir.join(name), PermissionsExt::from_mode(0o644)).unwrap();
    }
    let image = |version: &str| {
        let at = dir.display();
        let conf = format!(
            "daemon off; master_process off; error_log stderr notice; pid run.pid; events {{ worker_connections 512; }} \
             http {{ access_log off; client_body_temp_path b; proxy_temp_path p; fastcgi_temp_path f; uwsgi_temp_path u; scgi_temp_path s; \
             server {{ listen 8443 ssl http2; ssl_certificate {at}/web.pem; ssl_certificate_key {at}/web.key; \
             location / {{ return 200 \\\"{version} \\$server_protocol \\$ssl_server_name \\$host\\\"; }} }} }}"
        );
        let start = format!(
            "cd $ANYNODE_TASK_DIR; mkdir -p n; cd n; printf '%s' \"{conf}\" > nginx.conf; exec nginx -p $PWD/ -c $PWD/nginx.conf -e stderr"
        );
        format!("\"tls:{version}\" = [\"/bin/sh\", \"-c\", '''{start}''']")
    };
    own.env.push((
        "ANYNODE_PROCESS_IMAGES",
        leaked(format!("{{ {}, {} }}", image("1"), image("2"))),
    ));
    let authorities = format!("{{ internal = '{}' }}", dir.join("ca.pem").display());
    own.env.push(("ANYNODE_AUTHORITIES", leaked(authorities)));
    own.env.push(("ANYNODE_LABELS_TRAEFIK", "true"));
    own.env.push(("ANYNODE_ENTRYPOINTS", "{ web = { listen = ':80' } }"));
    own.start();
    own.docker(&["swarm", "init"]);
    Some(own)
}

#[test]
fn tasks_that_speak_tls_are_reached_by_labels_and_updated_without_a_failure() {
    let authority = Authority::new("internal");
    let dir = tempfile::tempdir().unwrap();
    let Some(own) = stage(&authority, dir.path()) else {
        return;
    };
    let create = |name: &str, more: &[&str]| {
        let args = ["service", "create", "-d", "--name", name];
        own.docker(&[&args[..], more, &["tls:1"]].concat());
    };
    create(
        "web",
        &[
            "--replicas=3",
            "--publish=8080:8443",
            "--label=anynode.mode=http",
            "--label=anynode.scheme=https",
            "--label=anynode.endpoint-tls.ca=internal",
            "--label=anynode.health.http=/",
            "--update-order=start-first",
            "--update-delay=200ms",
        ],
    );
    let ask = || {
        let out = own
            .inside("curl")
            .args([
                "-s",
                "-m",
                "10",
                "-w",
                " %{http_code}",
                "-H",
                "Host: shop.test",
                "http://127.0.0.1:8080/",
            ])
            .output()
            .unwrap();
        String::from_utf8_lossy(&out.stdout).into_owned()
    };
    own.wait_for("the first answer", LONG, || ask() == "1 HTTP/2.0 web shop.test 200");
    let is_over = AtomicBool::new(false);
    let (n_answers, n_failed) = (AtomicUsize::new(0), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !is_over.load(Ordering::SeqCst) {
                let said = ask();
                n_answers.fetch_add(1, Ordering::SeqCst);
                if !said.ends_with(" 200") {
                    n_failed.fetch_add(1, Ordering::SeqCst);
                    eprintln!("{said}");
                }
            }
        });
        let state = [
            "service",
            "inspect",
            "-f",
            "{{if .UpdateStatus}}{{.UpdateStatus.State}}{{end}}",
            "web",
        ];
        let updated = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            own.docker(&["service", "update", "-d", "--image", "tls:2", "web"]);
            own.wait_for("the update", LONG, || own.docker(&state).trim() == "completed");
            own.wait_for("the new ones alone", LONG, || (0..6).all(|_| ask().starts_with("2 ")));
        }));
        is_over.store(true, Ordering::SeqCst);
        updated.unwrap();
    });
    println!("{} answers", n_answers.load(Ordering::SeqCst));
    assert_eq!(n_failed.load(Ordering::SeqCst), 0);
    // One for another name is not believed, and the API refuses what would not be kept.
    own.docker(&[
        "service",
        "update",
        "-d",
        "--label-add=anynode.limit.hold-timeout=0s",
        "--label-add=anynode.endpoint-tls.server-name=other.test",
        "web",
    ]);
    own.wait_for("nobody who is believed", LONG, || {
        ask().ends_with(" 503") || ask().ends_with(" 502")
    });
    own.wait_for("the reason", LONG, || {
        own.anynode(&["status"])
            .contains("is for web, *.shop.internal, and not for other.test (endpoint_tls.server_name)")
    });
    let refused = own.docker_fails(&[
        "service",
        "update",
        "-d",
        "--label-add=anynode.endpoint-tls.verify=maybe",
        "web",
    ]);
    assert!(
        refused.contains("label anynode.endpoint-tls.verify: \"maybe\" is not valid: expected full, pin or none"),
        "{refused}"
    );
    let refused = own.docker_fails(&[
        "service",
        "create",
        "-d",
        "--label=anynode.mode=http",
        "--label=anynode.endpoint-tls.ca=internal",
        "tls:1",
    ]);
    assert!(refused.contains("expected scheme https beside it"), "{refused}");
    own.docker(&["service", "rm", "web"]);
    // As for Traefik, and whom to believe by a label of ours.
    create(
        "shop",
        &[
            "--label=traefik.enable=true",
            "--label=traefik.http.routers.shop.rule=Host(`shop.test`)",
            "--label=traefik.http.services.shop.loadbalancer.server.port=8443",
            "--label=traefik.http.services.shop.loadbalancer.server.scheme=https",
            "--label=anynode.endpoint-tls.ca=internal",
            "--label=anynode.endpoint-tls.server-name=a.shop.internal",
        ],
    );
    let route = || {
        let args = ["-s", "-m", "10", "-H", "Host: shop.test", "http://127.0.0.1:80/"];
        String::from_utf8_lossy(&own.inside("curl").args(args).output().unwrap().stdout).into_owned()
    };
    own.wait_for("a route", LONG, || route() == "1 HTTP/2.0 a.shop.internal shop.test");
    own.docker(&[
        "service",
        "update",
        "-d",
        "--label-add=traefik.http.services.shop.loadbalancer.serversTransport=internal@file",
        "shop",
    ]);
    own.wait_for("the route to be closed", LONG, || {
        route().contains("this route is closed")
    });
    let status = own.anynode(&["status"]);
    assert!(
        status.contains("serversTransport=internal@file: no counterpart"),
        "{status}"
    );
}
