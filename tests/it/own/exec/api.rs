//! As other clients ask for it: raw requests, and docker-py.

use std::io::{Read, Write};
use std::path::Path;

use serde_json::{Value, json};

use super::up;
use crate::harness::installed::from_pypi;
use crate::own::rig::{LONG, Own};

fn curl(own: &Own, method: &str, path: &str, body: Value) -> (String, String) {
    let mut command = own.inside("curl");
    command
        .args(["-s", "-m", "20", "-w", "\n%{http_code}", "-X", method, "--unix-socket"])
        .arg(own.socket())
        .args(["-H", "Content-Type: application/json", "-d", &body.to_string()])
        .arg(format!("http://docker{path}"));
    let out = command.output().unwrap();
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    let (body, status) = text.rsplit_once('\n').unwrap();
    (status.to_owned(), body.to_owned())
}

pub(super) fn made(own: &Own, container: &str, body: Value) -> (String, String) {
    let (status, said) = curl(own, "POST", &format!("/containers/{container}/exec"), body);
    let said: Value = serde_json::from_str(&said).unwrap();
    let id = said["Id"].as_str().or_else(|| said["message"].as_str()).unwrap();
    (status, id.to_owned())
}

/// Starts it, and the connection is its streams.
pub(super) fn hijack(own: &Own, id: &str, is_tty: bool) -> std::os::unix::net::UnixStream {
    let mut client = std::os::unix::net::UnixStream::connect(own.socket()).unwrap();
    let body = json!({ "Detach": false, "Tty": is_tty }).to_string();
    let head = format!(
        "POST /v1.42/exec/{id}/start HTTP/1.1\r\nHost: docker\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    client.write_all((head + &body).as_bytes()).unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        client.read_exact(&mut byte).unwrap();
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).unwrap().to_lowercase();
    let kind = if is_tty { "raw" } else { "multiplexed" };
    assert!(
        head.starts_with("http/1.1 101 ") && head.contains("upgrade: tcp"),
        "{head}"
    );
    assert!(
        head.contains(&format!("application/vnd.docker.{kind}-stream")),
        "{head}"
    );
    client
}

pub(super) fn is_running(own: &Own, id: &str) -> bool {
    let shown = curl(own, "GET", &format!("/exec/{id}/json"), json!({})).1;
    serde_json::from_str::<Value>(&shown).unwrap()["Running"] == true
}

#[test]
fn through_the_api() {
    let Some((own, web)) = up("exec-api") else { return };
    let inspect = |id: &str| -> Value {
        serde_json::from_str(&curl(&own, "GET", &format!("/exec/{id}/json"), json!({})).1).unwrap()
    };
    let body = json!({ "Cmd": ["sh", "-c", "echo out; read line; echo $line >&2; exit 4"], "AttachStdin": true, "AttachStdout": true, "AttachStderr": true, "User": "nobody" });
    let (status, id) = made(&own, &web, body);
    assert_eq!((status.as_str(), id.len()), ("201", 64));
    let shown = inspect(&id);
    assert_eq!(
        (&shown["Running"], &shown["ExitCode"], &shown["Pid"]),
        (&json!(false), &Value::Null, &json!(0))
    );
    let resize = |query: &str| curl(&own, "POST", &format!("/exec/{id}/resize?{query}"), json!({}));
    assert_eq!(resize("h=1&w=1").0, "409");
    let mut client = hijack(&own, &id, false);
    let mut part = [0; 12];
    client.read_exact(&mut part).unwrap();
    assert_eq!(&part, b"\x01\0\0\0\0\0\0\x04out\n");
    let shown = inspect(&id);
    assert_eq!(
        (&shown["Running"], &shown["ContainerID"], &shown["OpenStdin"]),
        (&json!(true), &json!(web), &json!(true))
    );
    let expected = json!({ "tty": false, "entrypoint": "sh", "arguments": ["-c", "echo out; read line; echo $line >&2; exit 4"], "privileged": false, "user": "nobody" });
    assert_eq!(shown["ProcessConfig"], expected);
    assert!(Path::new(&format!("/proc/{}", shown["Pid"])).exists());
    let again = curl(&own, "POST", &format!("/exec/{id}/start"), json!({ "Detach": true }));
    assert_eq!(again.0, "409");
    assert!(again.1.contains("is already running"), "{}", again.1);
    assert!(resize("h=1&w=1").1.contains("it has no terminal") && resize("h=x&w=1").0 == "400");
    client.write_all(b"line\n").unwrap();
    let mut rest = Vec::new();
    client.read_to_end(&mut rest).unwrap();
    assert_eq!(rest, b"\x02\0\0\0\0\0\0\x05line\n");
    // Known by the time that the streams end.
    assert_eq!(
        (&inspect(&id)["ExitCode"], &inspect(&id)["Running"]),
        (&json!(4), &json!(false))
    );
    let again = curl(&own, "POST", &format!("/exec/{id}/start"), json!({ "Detach": true }));
    assert!(again.0 == "409" && again.1.contains("has already run"), "{}", again.1);
    let told = || {
        let format = "{{.Action}}|{{.Actor.Attributes.execID}}|{{.Actor.Attributes.exitCode}}";
        own.docker(&[
            "events",
            "--since",
            "1h",
            "--until",
            "0s",
            "--filter",
            "type=container",
            "--format",
            format,
        ])
    };
    own.wait_for("an event of its end", LONG, || {
        told().contains(&format!("exec_die|{id}|4"))
    });
    assert!(told().contains(&format!(
        "exec_create: sh -c echo out; read line; echo $line >&2; exit 4|{id}|"
    )));
    // Without an upgrade what it says is the answer, and nothing is sent to it.
    let cmd = json!(["sh", "-c", "echo out; echo err >&2"]);
    let (_, id) = made(
        &own,
        &web,
        json!({ "Cmd": cmd, "AttachStdout": true, "AttachStderr": true }),
    );
    let (status, said) = curl(&own, "POST", &format!("/exec/{id}/start"), json!({ "Tty": true }));
    assert_eq!(status, "200");
    let mut said: Vec<&str> = said.lines().collect();
    said.sort_unstable();
    assert_eq!(said, ["err", "out"]);
    let (_, id) = made(&own, &web, json!({ "Cmd": ["cat"], "AttachStdin": true }));
    let (status, said) = curl(&own, "POST", &format!("/exec/{id}/start"), json!({}));
    assert!(status == "400" && said.contains("Upgrade: tcp"), "{said}");
    // What is not there.
    for (method, path) in [
        ("POST", "/exec/none/start"),
        ("POST", "/exec/none/resize?h=1&w=1"),
        ("GET", "/exec/none/json"),
    ] {
        let (status, said) = curl(&own, method, path, json!({}));
        assert!(
            status == "404" && said.contains("No such exec instance: none"),
            "{path}: {said}"
        );
    }
    assert_eq!(
        made(&own, "none", json!({ "Cmd": ["true"] })),
        ("404".to_owned(), "No such container: none".to_owned())
    );
    assert_eq!(
        made(&own, &web, json!({})),
        ("400".to_owned(), "No exec command specified".to_owned())
    );
}

#[test]
fn by_docker_py() {
    let Some(libraries) = from_pypi("docker", &["docker"]) else {
        return;
    };
    let Some((own, web)) = up("exec-py") else { return };
    let script = r#"
import sys, docker
client = docker.DockerClient(base_url=f"unix://{sys.argv[1]}")
task = client.containers.get(sys.argv[2])
assert task.status == "running" and task.labels["com.docker.swarm.service.name"] == "web", task.attrs
assert task.exec_run(["sh", "-c", "echo out; echo err >&2; exit 3"], demux=True) == (3, (b"out\n", b"err\n"))
code, said = task.exec_run("tty", tty=True, stdin=True)
assert code == 0 and said.startswith(b"/dev/pts/"), said
assert task.exec_run("pwd", workdir="/usr", environment={"A": "b"}, user="nobody") == (0, b"/usr\n")
code, said = task.exec_run(["seq", "3"], stream=True)
assert b"".join(said) == b"1\n2\n3\n"
code, said = task.exec_run("true", detach=True)
assert not said, said
code, socket = task.exec_run("cat", stdin=True, socket=True)
raw = socket._sock
raw.sendall(b"hello")
raw.shutdown(1)
said = b""
while part := raw.recv(99):
    said += part
assert said == b"\x01\0\0\0\0\0\0\x05hello", said
try:
    client.containers.get("none")
    raise AssertionError("it is there")
except docker.errors.NotFound:
    pass
print("end")
"#;
    let mut command = own.inside("timeout");
    command
        .args(["120", "python3", "-c", script])
        .arg(own.socket())
        .arg(&web);
    let out = command.env("PYTHONPATH", &libraries).output().unwrap();
    assert!(
        out.status.success() && out.stdout == b"end\n",
        "{out:?}\n{}",
        own.log_tail()
    );
}
