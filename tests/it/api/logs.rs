//! `service logs`: frames byte by byte, and the prefix of the command line.

use std::io::{Read, Write as _};

use anynode::model::swarm::Time;
use serde_json::Value;

use super::rig::{Rig, dechunked, line, service};

/// 2026-11-23T12:00:00.000000001Z
const AT: u64 = 1_795_435_200_000_000_001;

fn web() -> (Rig, String, String) {
    let rig = Rig::swarm();
    let id = rig.post("/services/create", &service("web", None)).json()["ID"]
        .as_str()
        .unwrap()
        .to_owned();
    rig.wait_running("web", 1);
    let task = rig.get("/tasks").json()[0]["ID"].as_str().unwrap().to_owned();
    *rig.around.lines.lock().unwrap() = vec![
        line(AT, false, "one"),
        line(AT + 1_000, true, "two"),
        line(AT + 2_000, false, ""),
    ];
    (rig, id, task)
}

fn frame(stream: u8, text: &str) -> Vec<u8> {
    let length = u32::try_from(text.len()).unwrap().to_be_bytes();
    [&[stream, 0, 0, 0][..], &length, text.as_bytes()].concat()
}

#[test]
fn each_line_is_a_frame() {
    let (rig, service_id, task) = web();
    let node = rig.get("/nodes").json()[0]["ID"].as_str().unwrap().to_owned();
    let details = format!(
        "com.docker.swarm.node.id={node},com.docker.swarm.service.id={service_id},com.docker.swarm.task.id={task} "
    );
    let all = rig.get("/services/web/logs?stdout=1&stderr=1");
    assert_eq!(all.headers["content-type"], "application/vnd.docker.multiplexed-stream");
    assert_eq!(
        all.body,
        [frame(1, "one\n"), frame(2, "two\n"), frame(1, "\n")].concat()
    );
    let stderr = rig.get("/services/web/logs?stdout=False&stderr=True");
    assert_eq!(stderr.body, frame(2, "two\n"));
    let told = rig.get("/services/web/logs?stderr=1&details=1&timestamps=1");
    let text = format!("2026-11-23T12:00:00.000001001Z {details}two\n");
    assert_eq!(String::from_utf8_lossy(&told.body[8..]), text);
    assert_eq!(told.body, frame(2, &text));
    let of_task = rig.get(&format!("/tasks/{task}/logs?stderr=1"));
    assert_eq!(of_task.body, frame(2, "two\n"));
    let old = rig.get("/v1.41/services/web/logs?stdout=1");
    assert_eq!(old.headers["content-type"], "application/vnd.docker.raw-stream");
    assert_eq!(old.body, [frame(1, "one\n"), frame(1, "\n")].concat());
    rig.around.queries.lock().unwrap().clear();
    rig.get("/services/web/logs?stdout=1&tail=7&since=1700000000.5&until=1700000001");
    let asked = rig.around.queries.lock().unwrap()[0];
    assert_eq!(asked.tail, Some(7));
    assert_eq!(asked.since, Some(Time(1_700_000_000_500_000_000)));
    assert_eq!(asked.until, Some(Time(1_700_000_001_000_000_000)));
    assert!(asked.stdout && !asked.stderr && !asked.follow);
}

#[test]
fn the_command_line_says_whose_each_line_is() {
    let (rig, _, task) = web();
    let out = rig.docker_command(&["service", "logs", "web"]).output().unwrap();
    assert!(out.status.success(), "{out:?}");
    let prefix = format!("web.1.{}@manager    | ", &task[..12]);
    assert_eq!(String::from_utf8_lossy(&out.stdout), format!("{prefix}one\n{prefix}\n"));
    assert_eq!(String::from_utf8_lossy(&out.stderr), format!("{prefix}two\n"));
    let stamped = rig.docker(&["service", "logs", "--timestamps", "--raw", &task]);
    assert!(stamped.starts_with("2026-11-23T12:00:00.000000001Z one"), "{stamped}");
    assert!(
        rig.docker_fails(&["service", "logs", "nothing"])
            .contains("no such task or service: nothing")
    );
}

/// What a stream of logs says, as it comes.
fn follow(rig: &Rig, path: &str) -> impl FnMut(&[u8]) + use<> {
    let mut stream = rig.connect();
    stream
        .write_all(format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes())
        .unwrap();
    let mut all = Vec::new();
    move |wanted: &[u8]| loop {
        let head = all.windows(4).position(|bytes| bytes == b"\r\n\r\n").map(|at| at + 4);
        if head.is_some_and(|head| dechunked(&all[head..]).ends_with(wanted)) {
            break;
        }
        let mut bytes = [0; 4096];
        let n = stream.read(&mut bytes).unwrap();
        assert!(n > 0, "ended at {:?}", String::from_utf8_lossy(&all));
        all.extend_from_slice(&bytes[..n]);
    }
}

#[test]
fn who_follows_hears_of_tasks_that_come_later() {
    let rig = Rig::swarm();
    let mut body = service("web", None);
    body["Mode"] = serde_json::json!({ "Replicated": { "Replicas": 0 } });
    rig.post("/services/create", &body);
    // Head at once, although there is nothing to say yet, and it does not end.
    let mut said = follow(&rig, "/services/web/logs?stdout=1&follow=1");
    said(b"");
    rig.docker(&["service", "scale", "--detach", "web=1"]);
    rig.wait_for("a follower", || rig.around.followers.lock().unwrap().len() == 1);
    let tell = |at: usize, text: &'static str| {
        let followers = rig.around.followers.lock().unwrap();
        followers[at].send(line(AT, false, text)).unwrap();
    };
    tell(0, "hello");
    said(&frame(1, "hello\n"));
    rig.docker(&["service", "update", "--detach", "--force", "web"]);
    rig.wait_for("another follower", || rig.around.followers.lock().unwrap().len() >= 2);
    let last = rig.around.followers.lock().unwrap().len() - 1;
    tell(last, "again");
    said(&frame(1, "again\n"));
}

#[test]
fn a_terminal_has_no_frames() {
    let rig = Rig::swarm();
    let mut body = service("web", None);
    body["TaskTemplate"]["ContainerSpec"]["TTY"] = Value::Bool(true);
    rig.post("/services/create", &body);
    rig.wait_running("web", 1);
    *rig.around.lines.lock().unwrap() = vec![line(AT, false, "one")];
    let all = rig.get("/services/web/logs?stdout=1");
    assert_eq!(all.headers["content-type"], "application/vnd.docker.raw-stream");
    assert_eq!(all.body, b"one\n");
}
