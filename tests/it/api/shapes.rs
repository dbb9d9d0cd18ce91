//! What answers look like: members that clients take for granted, filters in both spellings, names and ids, specs that say
//! the same in other words.

use serde_json::{Value, json};

use super::rig::{Rig, service};

fn names(reply: &Value) -> Vec<String> {
    let mut names: Vec<String> = reply
        .as_array()
        .unwrap()
        .iter()
        .map(|object| {
            let spec = object.get("Spec").unwrap_or(object);
            spec["Name"].as_str().unwrap().to_owned()
        })
        .collect();
    names.sort();
    names
}

fn encoded(filters: &Value) -> String {
    filters.to_string().bytes().map(|byte| format!("%{byte:02X}")).collect()
}

#[test]
fn filters_mean_the_same_in_both_spellings() {
    let rig = Rig::swarm();
    for (name, label, mode) in [
        ("web", "front", json!({ "Replicated": { "Replicas": 2 } })),
        ("website", "back", json!({ "Global": {} })),
        ("db", "", json!({ "Replicated": {} })),
    ] {
        let mut body = service(name, None);
        body["Labels"] = json!({ "tier": label, "com.docker.stack.namespace": "app" });
        if name == "db" {
            body["Labels"] = json!({});
        }
        body["Mode"] = mode;
        assert_eq!(rig.post("/services/create", &body).status, 201);
    }
    rig.wait_running("web", 2);
    rig.wait_running("website", 1);
    rig.wait_running("db", 1);
    let id = rig.get("/services/db").json()["ID"].as_str().unwrap().to_owned();
    let of = |path: &str, key: &str, values: &[&str]| {
        let new: Value = json!({ key: values.iter().map(|value| ((*value).to_owned(), json!(true))).collect::<serde_json::Map<_, _>>() });
        let old = json!({ key: values });
        let [new, old] = [new, old].map(|filters| rig.get(&format!("{path}?filters={}", encoded(&filters))).json());
        assert_eq!(new, old, "{path} {key} {values:?}");
        new
    };
    let services = |key: &str, values: &[&str]| names(&of("/services", key, values));
    assert_eq!(services("name", &["web"]), ["web", "website"]);
    assert_eq!(services("name", &["db", "webs"]), ["db", "website"]);
    assert_eq!(services("id", &[&id[..20]]), ["db"]);
    assert_eq!(services("label", &["tier"]), ["web", "website"]);
    assert_eq!(services("label", &["tier=front"]), ["web"]);
    assert_eq!(services("label", &["tier="]), ["web", "website"]);
    assert_eq!(
        services("label", &["tier=front", "com.docker.stack.namespace=app"]),
        ["web"]
    );
    assert_eq!(services("label", &["tier", "other"]), [""; 0]);
    assert_eq!(services("mode", &["global"]), ["website"]);
    assert_eq!(services("mode", &["global", "replicated"]), ["db", "web", "website"]);
    assert_eq!(services("runtime", &["plugin"]), [""; 0]);
    let n_tasks = |key: &str, values: &[&str]| of("/tasks", key, values).as_array().unwrap().len();
    assert_eq!(n_tasks("service", &["web"]), 2);
    assert_eq!(n_tasks("service", &["web", &id]), 3);
    assert_eq!(n_tasks("label", &["tier=front"]), 2);
    assert_eq!(n_tasks("name", &["web."]), 2);
    assert_eq!(n_tasks("node", &["manager"]), 4);
    assert_eq!(n_tasks("desired-state", &["running"]), 4);
    assert_eq!(n_tasks("desired-state", &["shutdown"]), 0);
    assert_eq!(n_tasks("_up-to-date", &["true"]), 4);
    assert_eq!(n_tasks("_up-to-date", &["false"]), 0);
    assert_eq!(n_tasks("runtime", &["container"]), 4);
    // As the walkthrough's clients send it, blanks as plus signs.
    let spaced = rig
        .get("/services?filters=%7B%22name%22%3A+%7B%22db%22%3A+true%7D%7D")
        .json();
    assert_eq!(names(&spaced), ["db"]);
    for text in ["", "%7B%7D", "null"] {
        assert_eq!(
            names(&rig.get(&format!("/services?filters={text}")).json()).len(),
            3,
            "{text:?}"
        );
    }
    assert_eq!(n_tasks("id", &["nothing"]), 0);
}

#[test]
fn names_and_ids() {
    let rig = Rig::swarm();
    let id = rig.post("/services/create", &service("Web", None)).json()["ID"]
        .as_str()
        .unwrap()
        .to_owned();
    rig.wait_running("Web", 1);
    for text in ["Web", &id, &id[..12], &id[..24]] {
        assert_eq!(rig.get(&format!("/services/{text}")).json()["ID"], json!(id), "{text}");
    }
    for text in ["web", "We", "%20Web", &format!("{id}0")] {
        assert_eq!(rig.get(&format!("/services/{text}")).status, 404, "{text}");
    }
    // A name that is the beginning of another's id: the name counts.
    rig.post("/services/create", &service(&id[..5], None));
    assert_eq!(
        rig.get(&format!("/services/{}", &id[..5])).json()["Spec"]["Name"],
        json!(&id[..5])
    );
    let task = rig.get("/tasks").json();
    let task = task
        .as_array()
        .unwrap()
        .iter()
        .find(|task| task["ServiceID"] == json!(id))
        .unwrap();
    let task_id = task["ID"].as_str().unwrap();
    assert_eq!(rig.get(&format!("/tasks/Web.1.{task_id}")).json()["ID"], json!(task_id));
    assert_eq!(rig.get("/nodes/manager").status, 200);
    assert_eq!(rig.get("/networks/ingress?scope=swarm").json()["Ingress"], true);
    rig.post("/configs/create", &json!({ "Name": "conf", "Data": "YQ==" }));
    assert_eq!(rig.get("/configs/CONF").status, 200);
    let unnamed = rig.post("/services/create", &service("", None)).json();
    let unnamed = rig
        .get(&format!("/services/{}", unnamed["ID"].as_str().unwrap()))
        .json();
    assert!(unnamed["Spec"]["Name"].as_str().unwrap().len() > 5);
}

#[test]
fn members_that_clients_take_for_granted() {
    let rig = Rig::swarm();
    rig.post("/services/create", &service("web", Some(8080)));
    rig.wait_running("web", 1);
    let web = rig.get("/services/web").json();
    let spec = &web["Spec"];
    assert_eq!(spec["Labels"], json!({}));
    assert_eq!(spec["Mode"], json!({ "Replicated": { "Replicas": 1 } }));
    assert_eq!(spec["TaskTemplate"]["ForceUpdate"], 0);
    assert_eq!(spec["TaskTemplate"]["Runtime"], "container");
    let port = json!({ "Protocol": "tcp", "TargetPort": 80, "PublishedPort": 8080, "PublishMode": "ingress" });
    assert_eq!(spec["EndpointSpec"], json!({ "Mode": "vip", "Ports": [port] }));
    assert_eq!(
        (&web["Endpoint"]["Ports"], &web["Endpoint"]["Spec"]),
        (&json!([port]), &spec["EndpointSpec"])
    );
    let ingress = rig.get("/networks/ingress").json();
    assert_eq!(web["Endpoint"]["VirtualIPs"][0]["NetworkID"], ingress["Id"]);
    assert!(
        web["Endpoint"]["VirtualIPs"][0]["Addr"]
            .as_str()
            .unwrap()
            .ends_with("/24")
    );
    for key in ["UpdateConfig", "RollbackConfig"] {
        assert_eq!(spec.get(key), None, "{key} was not declared");
    }
    assert_eq!(web.get("ServiceStatus"), None);
    let full = rig.get("/services/web?insertDefaults=True").json()["Spec"].clone();
    let update = json!({
        "Parallelism": 1, "Delay": 0, "FailureAction": "pause", "Monitor": 5_000_000_000_i64, "MaxFailureRatio": 0,
        "Order": "stop-first",
    });
    for key in ["UpdateConfig", "RollbackConfig"] {
        let mut shown = full[key].clone();
        shown.as_object_mut().unwrap().entry("Delay").or_insert(json!(0));
        assert_eq!(shown, update);
    }
    assert_eq!(
        full["TaskTemplate"]["ContainerSpec"]["StopGracePeriod"],
        10_000_000_000_i64
    );
    assert_eq!(full["TaskTemplate"]["RestartPolicy"]["Delay"], 5_000_000_000_i64);
    let task = rig.get("/tasks").json()[0].clone();
    for key in [
        "ID",
        "Version",
        "CreatedAt",
        "UpdatedAt",
        "Spec",
        "ServiceID",
        "NodeID",
        "Status",
        "DesiredState",
        "Labels",
    ] {
        assert!(!task[key].is_null(), "{key}: {task}");
    }
    assert_eq!(
        (&task["Slot"], &task["Status"]["State"]),
        (&json!(1), &json!("running"))
    );
    assert_eq!(task["Status"]["ContainerStatus"]["PID"], 4711);
    assert_eq!(task["Status"]["PortStatus"], json!({}));
    let node = rig.get("/nodes").json()[0].clone();
    assert_eq!(
        node["Description"]["Platform"],
        json!({ "Architecture": "x86_64", "OS": "linux" })
    );
    assert_eq!(node["Status"], json!({ "State": "ready", "Addr": "192.0.2.7" }));
    let swarm = rig.get("/swarm").json();
    assert_eq!(swarm["Spec"]["Name"], "default");
    assert_eq!(swarm["Spec"]["CAConfig"]["NodeCertExpiry"], 7_776_000_000_000_000_i64);
    assert_eq!(
        (&swarm["DefaultAddrPool"], &swarm["SubnetSize"]),
        (&json!(["10.0.0.0/8"]), &json!(24))
    );
    let info = rig.get("/info").json();
    assert_eq!(info["Swarm"]["Cluster"]["ID"], swarm["ID"]);
    assert_eq!(info["Swarm"]["Cluster"].get("JoinTokens"), None);
    assert_eq!((&info["NCPU"], &info["MemTotal"]), (&json!(4), &json!(8_u64 << 30)));
    let version = rig.get("/version").json();
    assert_eq!(version["Components"][0]["Name"], "Engine");
    assert_eq!(
        (&version["ApiVersion"], &version["MinAPIVersion"]),
        (&json!("1.48"), &json!("1.24"))
    );
    let ping = rig.get("/v1.44/_ping");
    assert_eq!(ping.headers["server"].split('/').next(), Some("anynode"));
}

/// What was read may be sent back as it is, and says the same in other words: nothing happens to tasks.
#[test]
fn equal_specs_change_nothing() {
    let rig = Rig::swarm();
    let mut body = service("web", Some(8080));
    body["Mode"] = json!({ "Replicated": { "Replicas": 2 } });
    rig.post("/services/create", &body);
    rig.wait_running("web", 2);
    let tasks = |rig: &Rig| -> Vec<Value> {
        let tasks = rig.get("/tasks").json();
        tasks
            .as_array()
            .unwrap()
            .iter()
            .map(|task| task["ID"].clone())
            .collect()
    };
    let before = tasks(&rig);
    let shown = |rig: &Rig, defaults: &str| rig.get(&format!("/services/web?insertDefaults={defaults}")).json();
    let mut nulls = body.clone();
    nulls["Labels"] = Value::Null;
    nulls["UpdateConfig"] = Value::Null;
    nulls["TaskTemplate"]["Networks"] = Value::Null;
    nulls["TaskTemplate"]["Placement"] = json!({});
    nulls["TaskTemplate"]["ContainerSpec"]["Env"] = json!([]);
    nulls["TaskTemplate"]["ContainerSpec"]["Mounts"] = Value::Null;
    nulls["EndpointSpec"] = json!({ "Mode": "", "Ports": [{ "TargetPort": 80, "PublishedPort": 8080, "Protocol": "", "PublishMode": "" }] });
    for spec in [shown(&rig, "false")["Spec"].clone(), body, nulls] {
        let now = shown(&rig, "false");
        let path = format!("/services/web/update?version={}", now["Version"]["Index"]);
        let reply = rig.post(&path, &spec);
        assert_eq!(
            (reply.status, reply.json()),
            (200, json!({ "Warnings": null })),
            "{spec}"
        );
        let after = shown(&rig, "false");
        assert!(after["Version"]["Index"].as_u64() > now["Version"]["Index"].as_u64());
        assert_eq!(after["Spec"]["EndpointSpec"], now["Spec"]["EndpointSpec"]);
        assert_eq!(after["Spec"]["Mode"], json!({ "Replicated": { "Replicas": 2 } }));
        std::thread::sleep(std::time::Duration::from_millis(100));
        assert_eq!(tasks(&rig), before, "{spec}");
        assert_eq!(shown(&rig, "false")["UpdateStatus"], Value::Null);
    }
    // An update of tasks resets what the last one came to, before it is answered.
    let update = |rig: &Rig, image: &str, query: &str| {
        let now = shown(rig, "false");
        let mut spec = now["Spec"].clone();
        spec["TaskTemplate"]["ContainerSpec"]["Image"] = json!(image);
        let path = format!("/services/web/update?version={}{query}", now["Version"]["Index"]);
        assert_eq!(rig.post(&path, &spec).status, 200);
    };
    update(&rig, "nginx:2", "");
    rig.wait_for("an end", || {
        shown(&rig, "false")["UpdateStatus"]["State"] == "completed"
    });
    let snapshot = rig.snapshot();
    update(&rig, "nginx:3", "");
    let started = rig.snapshot().services().next().unwrap().update.clone();
    assert!(started.is_none_or(|update| update.started_at > snapshot.services().next().unwrap().meta.updated_at));
    rig.wait_for("an end", || {
        shown(&rig, "false")["UpdateStatus"]["State"] == "completed"
    });
    update(&rig, "nginx:4", "&rollback=previous");
    let back = shown(&rig, "false");
    assert_eq!(back["Spec"]["TaskTemplate"]["ContainerSpec"]["Image"], "nginx:2");
    assert_eq!(
        back["PreviousSpec"]["TaskTemplate"]["ContainerSpec"]["Image"],
        "nginx:3"
    );
    rig.wait_for("an end", || {
        shown(&rig, "false")["UpdateStatus"]["State"] == "rollback_completed"
    });
    // Rolling back again undoes it.
    update(&rig, "nginx:4", "&rollback=previous");
    assert_eq!(
        shown(&rig, "false")["Spec"]["TaskTemplate"]["ContainerSpec"]["Image"],
        "nginx:3"
    );
}

/// Many users at once: whoever was too late is told so, and nobody's change is lost.
#[test]
fn of_two_updates_of_one_version_one_is_made() {
    let rig = Rig::swarm();
    rig.post("/services/create", &service("web", None));
    for round in 0..10 {
        let version = rig.get("/services/web").json()["Version"]["Index"].clone();
        let path = format!("/services/web/update?version={version}");
        let statuses: Vec<u16> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8)
                .map(|n| {
                    let (rig, path) = (&rig, &path);
                    scope.spawn(move || {
                        let mut body = service("web", None);
                        body["Labels"] = json!({ "round": format!("{round}.{n}") });
                        rig.post(path, &body).status
                    })
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert_eq!(
            statuses.iter().filter(|status| **status == 200).count(),
            1,
            "{statuses:?}"
        );
        assert_eq!(
            statuses.iter().filter(|status| **status == 500).count(),
            7,
            "{statuses:?}"
        );
    }
}

/// A decision that hangs on other objects than it writes.
#[test]
fn of_two_services_one_gets_a_port() {
    let rig = Rig::swarm();
    for round in 0..10 {
        let data = json!({ "Name": format!("conf{round}"), "Data": "YQ==" });
        let config = rig.post("/configs/create", &data).json()["ID"].clone();
        let statuses: Vec<u16> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8)
                .map(|n| {
                    let (rig, config) = (&rig, &config);
                    scope.spawn(move || {
                        if n == 7 {
                            return rig.delete(&format!("/configs/conf{round}")).status;
                        }
                        let mut body = service(&format!("web-{round}-{n}"), Some(20_000 + round));
                        let file = json!({ "Name": "/c", "UID": "0", "GID": "0", "Mode": 292 });
                        body["TaskTemplate"]["ContainerSpec"]["Configs"] =
                            json!([{ "ConfigID": config, "ConfigName": "conf", "File": file }]);
                        rig.post("/services/create", &body).status
                    })
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        let n_made = statuses[..7].iter().filter(|status| **status == 201).count();
        // Either the config went first, and nobody can name it, or it is kept for the one that does.
        let expected = if statuses[7] == 204 { 0 } else { 1 };
        assert_eq!(n_made, expected, "{statuses:?}");
    }
}

#[test]
fn tasks_of_a_removed_service_are_there_until_they_have_stopped() {
    let rig = Rig::swarm();
    let mut body = service("web", None);
    body["Labels"] = json!({ "com.docker.stack.namespace": "shop" });
    body["Mode"] = json!({ "Replicated": { "Replicas": 2 } });
    assert_eq!(rig.post("/services/create", &body).status, 201);
    rig.wait_running("web", 2);
    rig.around.holds_on.store(true, std::sync::atomic::Ordering::Relaxed);
    assert_eq!(rig.delete("/services/web").status, 200);
    let of_stack = "/tasks?filters=%7B%22label%22:%7B%22com.docker.stack.namespace=shop%22:true%7D%7D";
    let states = || -> Vec<String> {
        let tasks = rig.get(of_stack).json();
        let tasks = tasks.as_array().unwrap().clone();
        tasks
            .iter()
            .map(|task| task["Status"]["State"].as_str().unwrap().to_owned())
            .collect()
    };
    assert_eq!(states(), ["running", "running"]);
    rig.wait_for("their end to be asked for", || {
        rig.get(of_stack)
            .json()
            .as_array()
            .unwrap()
            .iter()
            .all(|task| task["DesiredState"] == "remove")
    });
    assert_eq!(states(), ["running", "running"]);
    // From here on they end, and never is one shown that has.
    rig.around.holds_on.store(false, std::sync::atomic::Ordering::Relaxed);
    let other = json!({ "Name": "moves-the-store", "Data": "YQ==" });
    assert_eq!(rig.post("/configs/create", &other).status, 201);
    rig.wait_for("them to be gone", || {
        let left = states();
        assert!(left.iter().all(|state| state == "running"), "{left:?}");
        left.is_empty()
    });
}
