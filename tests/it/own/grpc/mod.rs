//! gRPC on a swarm by itself, with the gRPC project's own client and servers (Python's, from PyPI) and the docker command line: rolling
//! updates of the service, and one of anynode, under one channel that calls all the time and holds streams.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex};

use serde_json::Value;

use super::rig::{self, LONG, Own, Tasks};
use crate::harness::installed::from_pypi;

const N_TASKS: usize = 4;
const N_STREAMS: usize = 8;

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/it/own/grpc")
        .join(name)
}

/// The client, and what it has said.
struct Client {
    child: Child,
    input: Option<ChildStdin>,
    lines: Arc<Mutex<Vec<String>>>,
    says: PathBuf,
}

impl Drop for Client {
    fn drop(&mut self) {
        drop((self.child.kill(), self.child.wait()));
    }
}

impl Client {
    fn start(own: &Own, python: &str, libraries: &Path, says: &Path) -> Client {
        let mut command = own.inside(python);
        command
            .arg(script("client.py"))
            .arg("127.0.0.1:50051")
            .arg(says)
            .env("PYTHONPATH", libraries)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let lines: Arc<Mutex<Vec<String>>> = Arc::default();
        let (out, said) = (BufReader::new(child.stdout.take().unwrap()), lines.clone());
        std::thread::spawn(move || {
            for line in out.lines() {
                said.lock().unwrap().push(line.unwrap());
            }
        });
        Client {
            input: child.stdin.take(),
            child,
            lines,
            says: says.to_owned(),
        }
    }

    fn hold(&mut self) {
        self.input.as_mut().unwrap().write_all(b"hold\n").unwrap();
    }

    /// What follows `word` in the lines that begin with it.
    fn said(&self, word: &str) -> Vec<String> {
        let lines = self.lines.lock().unwrap();
        let of_word = lines.iter().filter_map(|line| line.strip_prefix(word));
        of_word.map(|rest| rest.trim().to_owned()).collect()
    }

    fn has_ended(&mut self) -> bool {
        let is_said = self.lines.lock().unwrap().iter().any(|line| line == "end");
        is_said && self.child.try_wait().unwrap().is_some()
    }

    /// How many batches of calls have been answered.
    fn progress(&self) -> u64 {
        self.says.join("progress").metadata().map_or(0, |file| file.len())
    }

    /// Until what was asked before this moment is answered, and more.
    fn wait_answered(&self, own: &Own) {
        let before = self.progress();
        own.wait_for("calls", LONG, || self.progress() >= before + 2);
    }
}

/// The service as the table has it.
fn service(own: &Own) -> Value {
    let table = own.curl("http://127.0.0.1:9377/v1/table").unwrap_or_default();
    let table: Value = serde_json::from_str(&table).unwrap_or_default();
    let services = table["services"].as_array().cloned().unwrap_or_default();
    let found = services.into_iter().find(|service| service["name"] == "rpc");
    found.unwrap_or_default()
}

/// The tasks that get what is new, as Docker names them.
fn in_table(service: &Value) -> Vec<String> {
    let endpoints = service["endpoints"].as_array().cloned().unwrap_or_default();
    let gets_new = endpoints.into_iter().filter(|endpoint| endpoint["state"] != "draining");
    gets_new
        .filter_map(|endpoint| Some(endpoint["task"].as_str()?.to_owned()))
        .collect()
}

/// What is known of a task that is replaced.
enum Seen {
    InTable,
    /// It left the table when the client had got so far.
    Left(u64),
    /// So many calls had come to it when all that was begun before that was answered.
    Settled(u64),
}

fn n_calls(says: &Path, task: &str) -> u64 {
    says.join(format!("{task}.calls")).metadata().unwrap().len()
}

fn create(own: &Own, python: &str, libraries: &Path, says: &Path) {
    let [libraries, says] =
        [("PYTHONPATH", libraries), ("SAYS", says)].map(|(name, path)| format!("{name}={}", path.display()));
    let task = script("task.py").display().to_string();
    let words = [
        &["service", "create", "--detach", "--no-resolve-image", "--name", "rpc"][..],
        &["--replicas", "4", "--publish", "50051:50051", "--user", "0:0"],
        &["--label", "anynode.mode=http", "--label", "anynode.scheme=h2c"],
        &[
            "--env",
            "TASK={{.Task.Name}}",
            "--env",
            "SLOT={{.Task.Slot}}",
            "--env",
            &libraries,
            "--env",
            &says,
        ],
        &[
            "--stop-grace-period",
            "2s",
            "--update-parallelism",
            "1",
            "--update-delay",
            "500ms",
            "--update-monitor",
            "1s",
        ],
        &["--entrypoint", python, "nginx:latest", &task],
    ];
    own.docker(&words.concat());
}

#[test]
fn an_update_ends_the_streams_of_a_task_when_it_stops_and_no_others_and_no_call_and_no_connection_of_a_client() {
    let Some(libraries) = from_pypi("grpcio", &["grpcio"]) else {
        return;
    };
    let Some(mut own) = rig::up("grpc", Tasks::Processes) else {
        return;
    };
    let python = Command::new("python3")
        .args(["-c", "import sys; print(sys.executable)"])
        .output();
    let python = String::from_utf8(python.unwrap().stdout).unwrap().trim().to_owned();
    let says = tempfile::tempdir().unwrap();
    std::fs::set_permissions(says.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
    own.start();
    own.docker(&["swarm", "init"]);
    create(&own, &python, &libraries, says.path());
    own.wait_for("all tasks to serve", LONG, || in_table(&service(&own)).len() == N_TASKS);
    let mut client = Client::start(&own, &python, &libraries, says.path());
    // All are there once each has answered.
    let old = in_table(&service(&own));
    own.wait_for("calls at each", LONG, || {
        old.iter()
            .all(|task| says.path().join(format!("{task}.calls")).exists() && n_calls(says.path(), task) > 0)
    });
    (0..N_STREAMS).for_each(|_| client.hold());
    own.wait_for("the streams", LONG, || client.said("at").len() == N_STREAMS);
    let held = client.said("at");
    assert!(held.iter().all(|task| old.contains(task)), "{held:?} of {old:?}");

    own.docker(&["service", "update", "--detach", "--env-add", "VERSION=2", "rpc"]);
    let mut seen: BTreeMap<&String, Seen> = old.iter().map(|task| (task, Seen::InTable)).collect();
    own.wait_for("the update", LONG * 2, || {
        let progress = client.progress();
        let table = in_table(&service(&own));
        for (task, seen) in &mut seen {
            match seen {
                Seen::InTable if !table.is_empty() && !table.contains(task) => *seen = Seen::Left(client.progress()),
                Seen::Left(at) if progress >= *at + 2 => *seen = Seen::Settled(n_calls(says.path(), task)),
                _ => {}
            }
        }
        let format = "{{with .UpdateStatus}}{{.State}}{{end}}";
        own.docker(&["service", "inspect", "rpc", "--format", format]) == "completed"
            && client.said("ended").len() == N_STREAMS
    });
    client.wait_answered(&own);

    // Each stream went on until its task was told to stop.
    let mut expected: Vec<String> = held.iter().map(|task| format!("{task} told")).collect();
    let mut ended = client.said("ended");
    expected.sort();
    ended.sort();
    assert_eq!(ended, expected);
    for task in &old {
        let events = std::fs::read_to_string(says.path().join(format!("{task}.events"))).unwrap();
        let events: Vec<&str> = events.lines().collect();
        let n_ended = events.iter().filter(|event| **event == "ended").count();
        assert_eq!((events[0], events.len() - n_ended), ("told", 1), "{task}: {events:?}");
        // One that goes on after that has its streams until it is killed.
        let is_of_even_slot = task.split('.').nth(1).unwrap().parse::<u32>().unwrap() % 2 == 0;
        assert!(n_ended == 0 || !is_of_even_slot, "{task}: {events:?}");
    }
    // Out of the table, nothing new came to any.
    for (task, seen) in &seen {
        match seen {
            Seen::InTable => panic!("{task} is still in the table"),
            Seen::Left(_) => {}
            Seen::Settled(n) => assert_eq!(n_calls(says.path(), task), *n, "{task}"),
        }
    }
    let new = in_table(&service(&own));
    assert!(
        new.len() == N_TASKS && new.iter().all(|task| !old.contains(task)),
        "{new:?}"
    );
    assert_eq!(client.said("failed"), [""; 0]);
    // Whoever is told GOAWAY makes another connection.
    let now = service(&own);
    assert_eq!(
        (&now["connections"], &now["connections_total"]),
        (&1.into(), &1.into()),
        "{now}"
    );

    // An update of anynode is where the client's own connection ends: not before its stream does.
    client.hold();
    own.wait_for("one more stream", LONG, || client.said("at").len() == N_STREAMS + 1);
    own.update_without_waiting();
    own.wait_for("a connection to the next one", LONG, || {
        service(&own)["connections_total"] == 1
    });
    client.wait_answered(&own);
    assert_eq!(client.said("ended").len(), N_STREAMS, "{:?}", client.said("ended"));
    assert!(own.is_before_there());
    drop(client.input.take());
    own.wait_for("the client's end", LONG, || client.has_ended());
    assert_eq!(client.said("failed"), [""; 0]);
    own.wait_for_end_of_before();
}
