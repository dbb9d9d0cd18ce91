//! Requests as other clients than the docker command line spell them: members in any case, null for what is not said, words
//! in capitals, members of later versions.

use serde_json::json;

use super::rig::{Rig, service};

#[test]
fn a_mode_counts_whatever_the_case_of_its_letters() {
    let rig = Rig::swarm();
    let mut body = service("web", None);
    body["Mode"] = json!({ "replicated": { "Replicas": 3 } });
    assert_eq!(rig.post("/services/create", &body).status, 201);
    rig.wait_running("web", 3);
    let shown = rig.get("/services/web").json();
    assert_eq!(shown["Spec"]["Mode"], json!({ "Replicated": { "Replicas": 3 } }));

    // As docker-py scales: the spec as it was shown, its own mode in small letters.
    let mut spec = shown["Spec"].clone();
    spec["Mode"] = json!({ "replicated": { "Replicas": 1 } });
    let path = format!("/services/web/update?version={}", shown["Version"]["Index"]);
    assert_eq!(rig.post(&path, &spec).status, 200);
    assert_eq!(
        rig.get("/services/web").json()["Spec"]["Mode"]["Replicated"]["Replicas"],
        1
    );

    let mut body = service("everywhere", None);
    body["Mode"] = json!({ "global": {} });
    assert_eq!(rig.post("/services/create", &body).status, 201);
    assert_eq!(
        rig.get("/services/everywhere").json()["Spec"]["Mode"],
        json!({ "Global": {} })
    );
}

#[test]
fn a_mode_that_there_is_none_of_is_no_other() {
    let rig = Rig::swarm();
    let mut body = service("web", None);
    body["Mode"] = json!({ "Replicatd": { "Replicas": 3 } });
    let reply = rig.post("/services/create", &body);
    assert_eq!(reply.status, 400);
    let message = reply.message();
    assert_eq!(
        message,
        "invalid Mode: \"Replicatd\" is none: expected one of Replicated, Global, ReplicatedJob, GlobalJob"
    );
    // Nothing said, or null for all, is Docker's default.
    for (name, mode) in [("a", json!({})), ("b", json!(null)), ("c", json!({ "Global": null }))] {
        let mut body = service(name, None);
        body["Mode"] = mode;
        assert_eq!(rig.post("/services/create", &body).status, 201);
        let shown = rig.get(&format!("/services/{name}")).json();
        assert_eq!(shown["Spec"]["Mode"]["Replicated"]["Replicas"], 1);
    }
}

#[test]
fn null_is_not_said() {
    let rig = Rig::up();
    // As aiodocker makes a swarm.
    let init = json!({
        "AdvertiseAddr": null, "ListenAddr": "0.0.0.0:2377", "ForceNewCluster": false, "Spec": null, "DataPathPort": null,
        "DefaultAddrPool": null, "SubnetSize": null, "AutoLockManagers": null, "Availability": null, "Unknown": { "a": 1 },
    });
    let reply = rig.post("/swarm/init", &init);
    assert_eq!(reply.status, 200, "{:?}", reply.json());
    let service = json!({
        "Name": "web", "Labels": null, "Networks": null, "EndpointSpec": null, "UpdateConfig": null, "RollbackConfig": null,
        "TaskTemplate": {
            "ContainerSpec": { "Image": "demo:1", "Args": null, "Env": null, "Mounts": null, "Healthcheck": null, "Secrets": null },
            "RestartPolicy": null, "Resources": { "Limits": null }, "Placement": null, "ForceUpdate": null,
        },
    });
    assert_eq!(rig.post("/services/create", &service).status, 201);
    let network = json!({ "Name": "n", "Driver": "overlay", "Internal": null, "IPAM": { "Config": null, "Options": null }, "Labels": null });
    assert_eq!(rig.post("/networks/create", &network).status, 201);
    let config = json!({ "Name": "c", "Labels": null, "Data": "YQ==", "Templating": null });
    assert_eq!(rig.post("/configs/create", &config).status, 201);
}

#[test]
fn names_of_labels_keep_their_case() {
    let rig = Rig::swarm();
    let mut body = service("web", None);
    body["labels"] = json!({ "Tier": "a", "tier": "b", "ANYTHING": "c" });
    body.as_object_mut().unwrap().remove("Labels");
    assert_eq!(rig.post("/services/create", &body).status, 201);
    assert_eq!(rig.get("/services/web").json()["Spec"]["Labels"], body["labels"]);
}

#[test]
fn words_in_capitals_and_a_rollback_of_rollbacks_are_taken() {
    let rig = Rig::swarm();
    let mut body = service("web", None);
    body["EndpointSpec"] =
        json!({ "Mode": "vip", "Ports": [{ "Protocol": "TCP", "TargetPort": 80, "PublishMode": "INGRESS" }] });
    body["RollbackConfig"] = json!({ "FailureAction": "rollback" });
    let reply = rig.post("/services/create", &body);
    assert_eq!(reply.status, 201, "{:?}", reply.json());
    let shown = rig.get("/services/web").json();
    assert_eq!(shown["Spec"]["EndpointSpec"]["Ports"][0]["Protocol"], "tcp");
    body["Name"] = json!("other");
    body["RollbackConfig"] = json!({ "FailureAction": "explode" });
    let reply = rig.post("/services/create", &body);
    assert_eq!(reply.status, 400);
    let message = reply.message();
    assert!(
        message.starts_with("unrecognized update failure action explode: expected one of continue, pause"),
        "{message}"
    );
}

#[test]
fn autolock_in_every_spelling() {
    let key = |rig: &Rig| {
        rig.get("/swarm/unlockkey").json()["UnlockKey"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    for init in [
        json!({ "AutoLockManagers": true }),
        json!({ "autoLockManagers": true, "Spec": { "EncryptionConfig": null } }),
        json!({ "Spec": { "EncryptionConfig": { "AutoLockManagers": true } } }),
    ] {
        let rig = Rig::up();
        assert_eq!(rig.post("/swarm/init", &init).status, 200, "{init}");
        assert_eq!(
            rig.get("/swarm").json()["Spec"]["EncryptionConfig"]["AutoLockManagers"],
            true
        );
        let key = key(&rig);
        assert!(key.starts_with("SWMKEY-1-") && key.len() == 52, "{init}: {key}");
    }
    let rig = Rig::swarm();
    let update = |query: &str, spec: serde_json::Value| {
        let version = &rig.get("/swarm").json()["Version"]["Index"];
        rig.post(&format!("/swarm/update?version={version}{query}"), &spec)
            .status
    };
    let on = || json!({ "EncryptionConfig": { "AutoLockManagers": true } });
    assert_eq!(key(&rig), "");
    // There is nothing to rotate, which Docker does not mind.
    assert_eq!(update("&rotateManagerUnlockKey=true", json!({})), 200);
    assert_eq!(key(&rig), "");
    assert_eq!(
        update("", json!({ "encryptionconfig": { "autolockmanagers": true } })),
        200
    );
    let first = key(&rig);
    assert!(first.starts_with("SWMKEY-1-"), "{first}");
    assert_eq!(update("", on()), 200);
    assert_eq!(
        update("&rotateManagerUnlockKey=false&rotateWorkerToken=true", on()),
        200
    );
    assert_eq!(key(&rig), first, "it is asked for no other");
    assert_eq!(update("&rotateManagerUnlockKey=1", on()), 200);
    let second = key(&rig);
    assert!(second.starts_with("SWMKEY-1-") && second != first, "{second}");
    assert_eq!(update("&rotateManagerUnlockKey=maybe", on()), 400);
    assert_eq!(
        update("", json!({ "EncryptionConfig": { "AutoLockManagers": "yes" } })),
        400
    );
    assert_eq!(key(&rig), second);
    assert_eq!(update("", json!({ "EncryptionConfig": null })), 200);
    assert_eq!(key(&rig), "");
}
