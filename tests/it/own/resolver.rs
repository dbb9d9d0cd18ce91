//! What stands in countless configurations: nginx and HAProxy that ask 127.0.0.11 for the services of their networks.

use std::collections::BTreeSet;

use super::names::pid_of;
use super::rig::{self, LONG, Own, Tasks};

/// Debian's program with this configuration, as a service that listens on `port`, published as such.
fn proxy(own: &Own, name: &str, port: u16, config: &str, start: &str) {
    std::fs::write(own.dir().join(name), config).unwrap();
    own.docker(&["config", "create", name, name]);
    let publish = format!("{port}:{port}");
    let config = format!("source={name},target=/{name}");
    // Both work as root where they cannot change their user.
    own.docker(&[
        "service",
        "create",
        "--detach",
        "--name",
        name,
        "--network",
        "app",
        "--user",
        "0",
        "--publish",
        &publish,
        "--config",
        &config,
        "--entrypoint",
        "sh -c",
        "nginx:latest",
        start,
    ]);
    own.wait_for(name, LONG, || pid_of(own, name).is_some());
}

/// Who answers, each by its hostname.
fn answers(own: &Own, url: &str) -> BTreeSet<String> {
    let one = || {
        let answer: serde_json::Value = serde_json::from_str(&own.curl(url)?).ok()?;
        Some(answer["hostname"].as_str()?.to_owned())
    };
    (0..8).filter_map(|_| one()).collect()
}

/// As Docker has it in what publishes a port: on no network that a user made.
#[test]
fn a_container_on_no_network_asks_dockers_resolver_too() {
    let Some(mut own) = rig::up("resolver-c", Tasks::Containers) else {
        return;
    };
    own.start();
    own.docker(&["swarm", "init"]);
    own.docker(&[
        "service",
        "create",
        "--detach",
        "--name",
        "plain",
        "--publish",
        "8080:80",
        "nginx:latest",
    ]);
    own.wait_for("plain", LONG, || pid_of(&own, "plain").is_some());
    for way in ["+notcp", "+tcp"] {
        own.wait_for("somebody who answers", LONG, || {
            let pid = pid_of(&own, "plain").unwrap().to_string();
            let words = [
                "-t",
                &pid,
                "-n",
                "dig",
                "@127.0.0.11",
                "+tries=1",
                "+time=5",
                way,
                "nobody.invalid",
            ];
            let out = std::process::Command::new("nsenter").args(words).output().unwrap();
            // There is nobody to be asked from here: that is an answer.
            String::from_utf8_lossy(&out.stdout).contains("status: ")
        });
    }
    let services = own.docker(&["service", "rm", "plain"]);
    assert_eq!(services, "plain");
    own.wait_for("all to end", LONG, || own.living_tasks().is_empty());
}

#[test]
fn nginx_and_haproxy_find_services_by_dockers_resolver() {
    let Some(mut own) = rig::up("resolver", Tasks::Processes) else {
        return;
    };
    for program in ["nginx", "haproxy"] {
        let there = std::process::Command::new(program).arg("-v").output();
        if !there.is_ok_and(|out| out.status.success()) {
            eprintln!("skipped: no {program}");
            return;
        }
    }
    own.start();
    own.docker(&["swarm", "init"]);
    own.docker(&["network", "create", "-d", "overlay", "app"]);
    own.docker(&[
        "service",
        "create",
        "--detach",
        "--name",
        "api",
        "--network",
        "name=app,alias=api.example.test",
        "--replicas",
        "2",
        "--hostname",
        "api-{{.Task.Slot}}",
        "-e",
        "PORT=8000",
        "nginx:latest",
    ]);
    let nginx = "daemon off; user root; pid run/pid; error_log stderr; events {} http { access_log off;
        client_body_temp_path run/body; proxy_temp_path run/proxy; fastcgi_temp_path run/fastcgi;
        uwsgi_temp_path run/uwsgi; scgi_temp_path run/scgi;
        resolver 127.0.0.11 valid=1s;
        server { listen 8080;
            location /service { set $to api.example.test; proxy_pass http://$to:8000; }
            location /task { set $to 2.api; proxy_pass http://$to:8000; }
            location /peer { set $to api-1; proxy_pass http://$to:8000; } } }";
    let start = "cd $ANYNODE_TASK_DIR && mkdir run && exec nginx -p $PWD/ -c $PWD/nginx";
    proxy(&own, "nginx", 8080, nginx, start);
    let both = ["api-1", "api-2"].map(str::to_owned);
    let seen = |path: &str| answers(&own, &format!("http://localhost:8080{path}"));
    own.wait_for("nginx to find both", LONG, || {
        seen("/service") == BTreeSet::from(both.clone())
    });
    assert_eq!(seen("/task"), BTreeSet::from(["api-2".to_owned()]));
    assert_eq!(seen("/peer"), BTreeSet::from(["api-1".to_owned()]));
    for (name, port, nameserver) in [("udp", 8081, "127.0.0.11:53"), ("tcp", 8082, "tcp@127.0.0.11:53")] {
        let haproxy = format!(
            "defaults\n mode http\n timeout connect 5s\n timeout client 30s\n timeout server 30s\n\
             resolvers docker\n nameserver dns {nameserver}\n hold valid 1s\n resolve_retries 3\n\
             frontend in\n bind :{port}\n default_backend api\n\
             backend api\n server-template api 4 tasks.api:8000 resolvers docker init-addr none\n"
        );
        proxy(
            &own,
            name,
            port,
            &haproxy,
            &format!("exec haproxy -f $ANYNODE_TASK_DIR/{name}"),
        );
        let seen = || answers(&own, &format!("http://localhost:{port}/"));
        own.wait_for("HAProxy to find both", LONG, || seen() == BTreeSet::from(both.clone()));
    }
    // Both keep up with what changes.
    own.docker(&["service", "scale", "--detach", "api=3"]);
    let all = ["api-1", "api-2", "api-3"].map(str::to_owned);
    own.wait_for("all to be found", LONG, || {
        [8080, 8081, 8082].iter().all(|port| {
            let path = if *port == 8080 { "/service" } else { "/" };
            answers(&own, &format!("http://localhost:{port}{path}")) == BTreeSet::from(all.clone())
        })
    });
}
