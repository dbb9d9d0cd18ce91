//! Containers that are no tasks, on an attachable network of the swarm: names and addresses both ways, as long as they run.

use std::process::Command;

use serde_json::{Value, json};

use super::names::{addresses_of, dig, inside, pid_of};
use super::rig::{self, LONG, Own, Tasks};

const IMAGE: &str = "nginx:latest";

fn inspected(own: &Own, container: &str) -> Value {
    let said = own.docker(&["inspect", "--type", "container", container]);
    serde_json::from_str::<Value>(&said).unwrap()[0].take()
}

pub(super) fn pid(own: &Own, container: &str) -> u32 {
    let pid = inspected(own, container)["State"]["Pid"].as_u64().unwrap();
    u32::try_from(pid).unwrap()
}

/// Empty while it has none.
fn address(own: &Own, container: &str) -> String {
    let shown = inspected(own, container);
    let address = shown["NetworkSettings"]["Networks"]["shared"]["IPAddress"].as_str();
    address.unwrap_or_else(|| panic!("{shown:#}")).to_owned()
}

/// The addresses on the network, by name.
pub(super) fn on_network(own: &Own) -> Vec<(String, String)> {
    let shown: Value = serde_json::from_str(&own.docker(&["network", "inspect", "shared"])).unwrap();
    let each = shown[0]["Containers"].as_object().cloned().unwrap_or_default();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let mut all: Vec<_> = each
        .values()
        .map(|one| (text(&one["Name"]), text(&one["IPv4Address"])))
        .filter(|(name, _)| !name.starts_with("web."))
        .collect();
    all.sort();
    all
}

/// Who a server thinks that a client is, which calls from inside a network.
fn peer(pid: u32, address: &str) -> String {
    let (_, said) = inside(pid, false, &["curl", "-s", "-m", "5", &format!("http://{address}/who")]);
    let said: Value = serde_json::from_str(&said).unwrap_or_default();
    said["peer"].as_str().unwrap_or_default().to_owned()
}

pub(super) fn reaches(own: &Own, container: &str, whom: &str) -> bool {
    let url = format!("http://{whom}:80/who");
    inside(pid(own, container), true, &["curl", "-f", "-s", "-m", "5", &url]).0 == 0
}

pub(super) fn sandboxes(own: &Own) -> usize {
    let out = own
        .engine(&["ps", "-aq", "--filter", "label=anynode.sandbox"])
        .output()
        .unwrap();
    String::from_utf8(out.stdout).unwrap().lines().count()
}

pub(super) fn up(name: &str) -> Option<Own> {
    let mut own = rig::up(name, Tasks::Containers)?;
    own.start();
    own.docker(&["swarm", "init"]);
    let create = ["network", "create", "-d", "overlay", "--attachable"];
    own.docker(&[&create[..], &["--subnet", "10.77.0.0/24", "shared"]].concat());
    own.docker(&[
        "service",
        "create",
        "--detach",
        "--name",
        "web",
        "--network",
        "shared",
        "-e",
        "PORT=80",
        IMAGE,
    ]);
    own.wait_for("a task", LONG, || pid_of(&own, "web").is_some());
    Some(own)
}

#[test]
fn a_container_on_an_attachable_network_has_what_a_task_has() {
    let Some(mut own) = up("attached") else { return };
    let run = |name: &str, more: &[&str]| {
        let words = ["run", "-d", "--name", name, "--network", "shared", "-e", "PORT=80"];
        own.docker(&[&words[..], more, &[IMAGE]].concat())
    };
    let id = run(
        "client",
        &[
            "--network-alias",
            "box",
            "--network-alias",
            "Box.example.test",
            "--dns-search",
            "test",
        ],
    );
    let shown = inspected(&own, "client");
    let own_address = address(&own, "client");
    assert!(own_address.starts_with("10.77.0."), "{own_address}");
    assert_eq!(shown["HostConfig"]["NetworkMode"], "shared");
    assert_eq!(shown["Config"]["Hostname"], id[..12]);
    assert_eq!(shown["HostConfig"]["DnsSearch"], json!(["test"]));
    assert_eq!(shown["Config"]["Labels"], json!({}));
    let endpoint = &shown["NetworkSettings"]["Networks"]["shared"];
    assert_eq!(endpoint["IPPrefixLen"], 24);
    assert_eq!(endpoint["Aliases"], json!(["box", "Box.example.test", id[..12]]));
    assert_eq!(on_network(&own), [("client".to_owned(), format!("{own_address}/24"))]);
    assert_eq!(
        own.docker(&["ps", "--filter", "name=client", "--format", "{{.Networks}}"]),
        "shared"
    );

    // Out of it: names, wherever they are asked for, VIPs, tasks.
    let (web, client) = (pid_of(&own, "web").unwrap(), pid(&own, "client"));
    let task = addresses_of(&own, "web")["shared"].clone();
    let vip = dig(client, "web");
    assert!(vip.starts_with("10.77.0.") && vip != task, "{vip} {task}");
    let (_, dockers) = inside(
        client,
        false,
        &["dig", "@127.0.0.11", "+short", "+tries=1", "tasks.web"],
    );
    assert_eq!(dockers, task);
    own.wait_for("its way to the service", LONG, || reaches(&own, "client", "web"));
    assert!(reaches(&own, "client", &task));
    assert_eq!(peer(client, &vip), own_address);

    // Into it: by each of its names, and by its address.
    for name in ["client", "box", "box.example.test", "client.shared", &id[..12]] {
        assert_eq!(dig(web, name), own_address, "{name}");
        let url = format!("http://{name}:80/who");
        let (code, _) = inside(web, true, &["curl", "-f", &url]);
        assert_eq!(code, 0, "{name}");
    }
    assert_eq!(peer(web, &own_address), task);
    // It knows itself by that address.
    let hosts = std::fs::read_to_string(format!("/proc/{client}/root/etc/hosts")).unwrap();
    assert!(hosts.contains(&format!("{own_address}\t{}", &id[..12])), "{hosts}");
    // The same between two of them.
    run("other", &["--ip", "10.77.0.200"]);
    assert_eq!(address(&own, "other"), "10.77.0.200");
    assert!(reaches(&own, "other", "client") && reaches(&own, "client", "other"));

    // An anynode that is killed, and one that ends, find it as it is.
    own.kill();
    let gone = own.engine(&["rm", "-f", "other"]).output().unwrap();
    assert!(gone.status.success(), "{gone:?}");
    own.start();
    own.wait_for("what has ended meanwhile to go", LONG, || on_network(&own).len() == 1);
    assert_eq!(address(&own, "client"), own_address);
    assert_eq!(pid(&own, "client"), client);
    own.wait_for("its way after a kill", LONG, || reaches(&own, "client", "web"));
    let web_reaches = || inside(web, true, &["curl", "-f", "http://client:80/who"]).0 == 0;
    own.wait_for("the way to it after a kill", LONG, web_reaches);
    own.stop();
    own.start();
    own.wait_for("its way after a stop", LONG, || reaches(&own, "client", "box"));
    own.wait_for("the way to it after a stop", LONG, web_reaches);

    // Renamed, it is called so.
    own.docker(&["rename", "client", "renamed"]);
    own.wait_for("its new name", LONG, || {
        dig(web, "renamed") == own_address && dig(web, "client").is_empty()
    });
    // Its network is in use while it runs, and not longer.
    own.docker(&["service", "rm", "web"]);
    own.wait_for("the service's end", LONG, || own.living_tasks().len() == 1);
    let refused = own.docker_fails(&["network", "rm", "shared"]);
    assert!(refused.contains("is in use by container renamed"), "{refused}");
    own.docker(&["stop", "-t", "1", "renamed"]);
    own.wait_for("its address to be free", LONG, || address(&own, "renamed").is_empty());
    own.docker(&["start", "renamed"]);
    assert!(address(&own, "renamed").starts_with("10.77.0."));
    assert!(reaches(&own, "renamed", "box"));
    own.docker(&["restart", "-t", "1", "renamed"]);
    own.wait_for("it to listen again", LONG, || reaches(&own, "renamed", "renamed"));
    own.docker(&["rm", "-f", "renamed"]);
    own.docker(&["network", "rm", "shared"]);
    own.wait_for("nothing to be left", LONG, || sandboxes(&own) == 0);
    assert_eq!(own.docker(&["ps", "-aq"]), "");
}

#[test]
fn what_an_attached_container_cannot_have_is_refused_in_words() {
    let Some(own) = up("attachedrefused") else { return };
    own.docker(&["network", "create", "-d", "overlay", "closed"]);
    own.docker(&["network", "create", "engines"]);
    for (words, says) in [
        ("--network closed", "network closed not manually attachable"),
        ("--network shared -p 81:80", "cannot publish ports: expected no -p"),
        ("--network shared -P", "cannot publish ports: expected no -p"),
        (
            "--network shared --ip 10.78.0.9",
            "invalid address 10.78.0.9 on network shared: expected one of its subnet 10.77.0.0/24",
        ),
        (
            "--network shared --ip 10.77.0.1",
            "expected one that is not reserved there",
        ),
        ("--network shared --ip6 fd00::9", "has an address of IPv4 and no other"),
        (
            "--network shared --network engines",
            "cannot be on network engines too: expected shared alone",
        ),
    ] {
        let mut all = vec!["run", "-d"];
        all.extend(words.split_whitespace());
        all.push(IMAGE);
        let refused = own.docker_fails(&all);
        assert!(refused.contains(says), "{words}: {refused}");
    }
    own.docker(&["run", "-d", "--name", "plain", IMAGE]);
    for what in ["connect", "disconnect"] {
        let refused = own.docker_fails(&["network", what, "shared", "plain"]);
        assert!(refused.contains("from its making to its end, or never"), "{refused}");
    }
    // What somebody has nobody else is given.
    let taken = addresses_of(&own, "web")["shared"].clone();
    let refused = own.docker_fails(&[
        "run",
        "-d",
        "--name",
        "late",
        "--network",
        "shared",
        "--ip",
        &taken,
        IMAGE,
    ]);
    assert!(
        refused.contains(&format!("address {taken} is already in use")),
        "{refused}"
    );
    own.docker(&["rm", "-f", "plain", "late"]);
    own.docker(&["service", "rm", "web"]);
    own.wait_for("nothing to be left", LONG, || sandboxes(&own) == 0);
}

/// What ends without its user's doing, a program, a sandbox or the engine (which then ends all containers), is started again where
/// that was asked for.
#[test]
fn attached_containers_over_deaths_of_all_that_they_need() {
    let Some(own) = up("attachedengine") else { return };
    let run = |name: &str, restart: &str| {
        let words = [
            "run",
            "-d",
            "--name",
            name,
            "--network",
            "shared",
            "-e",
            "PORT=80",
            "--restart",
        ];
        own.docker(&[&words[..], &[restart, IMAGE]].concat());
    };
    run("stays", "always");
    run("ends", "no");
    own.wait_for("both to be reached", LONG, || {
        reaches(&own, "stays", "ends") && reaches(&own, "ends", "stays")
    });
    let is_alone = || on_network(&own).len() == 1 && on_network(&own)[0].0 == "stays";
    // What the engine starts again is where it was.
    let (before, was_at) = (pid(&own, "stays"), address(&own, "stays"));
    let killed = Command::new("kill").args(["-9", &before.to_string()]).status();
    assert!(killed.unwrap().success());
    let is_back = || ![0, before].contains(&pid(&own, "stays")) && reaches(&own, "ends", "stays");
    own.wait_for("it to run again", LONG, is_back);
    assert_eq!(address(&own, "stays"), was_at);
    // Also after what held its network was ended.
    let before = pid(&own, "stays");
    let held = own
        .engine(&["ps", "-q", "--filter", "label=anynode.attached="])
        .output()
        .unwrap();
    for sandbox in String::from_utf8(held.stdout).unwrap().lines() {
        assert!(own.engine(&["kill", sandbox]).output().unwrap().status.success());
    }
    let is_back = || ![0, before].contains(&pid(&own, "stays")) && reaches(&own, "stays", "web");
    own.wait_for("it to run again with a network", LONG, is_back);
    own.wait_for("the other to have ended", LONG, is_alone);
    own.docker(&["start", "ends"]);
    for is_killed in [false, true] {
        let before = pid(&own, "stays");
        match is_killed {
            true => drop(own.cluster(&["kill-dockerd", "1"])),
            false => {
                let of_engine = own.engine_socket().with_file_name("pid");
                let of_engine = std::fs::read_to_string(of_engine).unwrap();
                let ended = Command::new("kill").arg(of_engine.trim()).status();
                assert!(ended.unwrap().success());
                let process = std::path::PathBuf::from(format!("/proc/{}", of_engine.trim()));
                own.wait_for("the engine to end", LONG, || !process.exists());
            }
        }
        own.cluster(&["start-dockerd", "1"]);
        let is_back = || {
            let shown = own.docker_out(&["inspect", "--type", "container", "stays"]);
            let shown: Value = serde_json::from_slice(&shown.stdout).unwrap_or_default();
            let now = shown[0]["State"]["Pid"]
                .as_u64()
                .and_then(|pid| u32::try_from(pid).ok());
            now.is_some_and(|now| ![0, before].contains(&now)) && pid_of(&own, "web").is_some()
        };
        own.wait_for("it to run again", LONG, is_back);
        own.wait_for("its way to the service", LONG, || reaches(&own, "stays", "web"));
        own.wait_for("the other to have left", LONG, is_alone);
        let web_reaches =
            || pid_of(&own, "web").is_some_and(|web| inside(web, true, &["curl", "http://stays:80/"]).0 == 0);
        own.wait_for("the way to it", LONG, web_reaches);
        // It is as it was made, and is started when its user says so.
        own.docker(&["start", "ends"]);
        own.wait_for("the other to be reached", LONG, || reaches(&own, "stays", "ends"));
    }
    own.docker(&["rm", "-f", "stays", "ends"]);
    own.docker(&["service", "rm", "web"]);
    own.wait_for("nothing to be left", LONG, || sandboxes(&own) == 0);
}
