//! Labels that say which tasks get how much, by the docker command line.

use super::rig::{self, LONG, Tasks};

const IMAGE: &str = "anynode/whoami";

#[test]
fn labels_that_say_nothing_of_weights_are_refused() {
    let Some(mut own) = rig::up("balance", Tasks::Processes) else {
        return;
    };
    own.start();
    own.docker(&["swarm", "init"]);
    let node = own.docker(&["node", "ls", "-q"]).trim().to_owned();
    for (label, expected) in [
        (
            "anynode.weight=heavy",
            "label anynode.weight: \"heavy\" is not valid: expected a weight from 0 to 1000",
        ),
        (
            "anynode.wieght=2",
            "label anynode.wieght: no such option of a node: expected anynode.weight",
        ),
    ] {
        let said = own.docker_fails(&["node", "update", "--label-add", label, &node]);
        assert!(said.contains(expected), "{said}");
    }
    let of_service = "anynode.weight=2";
    let said = own.docker_fails(&["service", "create", "-d", "--name", "bad", "--label", of_service, IMAGE]);
    assert!(said.contains("label anynode.weight=2: expected on nodes"), "{said}");
    own.docker(&["node", "update", "--label-add", "anynode.weight=0", &node]);
    // Nobody else is there, so that who has none has it all.
    own.docker(&[
        "service",
        "create",
        "-d",
        "--name",
        "web",
        "--replicas",
        "2",
        "-p",
        "8080:80",
        IMAGE,
    ]);
    own.wait_for("an answer", LONG, || own.curl("http://127.0.0.1:8080/").is_some());
}
