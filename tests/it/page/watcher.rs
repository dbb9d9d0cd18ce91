//! Somebody who looks at a node's stream, as the page does.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard};

use serde_json::Value;

use crate::harness::wait_until;

/// What a stream has told by now.
#[derive(Debug, Default)]
pub struct Seen {
    pub objects: BTreeMap<String, Value>,
    pub hello: Value,
    pub history: Value,
    /// The last.
    pub figures: Value,
    /// Names of the events, in order, for as long as all is not told.
    pub order: Vec<String>,
    pub is_whole: bool,
    pub is_over: bool,
}

/// Reads a stream by curl, until it is dropped.
pub struct Watcher {
    curl: Child,
    seen: Arc<Mutex<Seen>>,
}

impl Watcher {
    /// `curl` reads the stream at `url`.
    pub fn with(mut curl: Command, url: &str) -> Watcher {
        let mut curl = curl.args(["-sN", url]).stdout(Stdio::piped()).spawn().unwrap();
        let out = BufReader::new(curl.stdout.take().unwrap());
        let seen: Arc<Mutex<Seen>> = Arc::default();
        let into = seen.clone();
        std::thread::spawn(move || {
            let mut name = String::new();
            for line in out.lines().map_while(Result::ok) {
                let mut seen = into.lock().unwrap();
                if let Some(event) = line.strip_prefix("event: ") {
                    name = event.to_owned();
                } else if let Some(data) = line.strip_prefix("data: ") {
                    seen.take(&name, serde_json::from_str(data).unwrap());
                }
            }
            into.lock().unwrap().is_over = true;
        });
        Watcher { curl, seen }
    }

    /// Once all was told.
    pub fn of(url: &str) -> Watcher {
        let watcher = Watcher::with(Command::new("curl"), url);
        wait_until("the stream to tell all", || watcher.seen().is_whole);
        watcher
    }

    pub fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap()
    }

    /// Waits until an object is as `is_so` says.
    pub fn until(&self, key: &str, is_so: impl Fn(&Value) -> bool) -> Value {
        wait_until(key, || self.seen().objects.get(key).is_some_and(&is_so));
        self.seen().objects[key].clone()
    }

    pub fn until_gone(&self, key: &str) {
        wait_until(&format!("{key} to be gone"), || !self.seen().objects.contains_key(key));
    }

    /// Waits for an event whose text contains `text`.
    pub fn until_event(&self, text: &str) {
        let is_told = |(key, object): (&String, &Value)| {
            key.starts_with("event/") && object["text"].as_str().is_some_and(|said| said.contains(text))
        };
        wait_until(text, || self.seen().objects.iter().any(is_told));
    }

    /// Waits until something is wrong whose words begin with `text`.
    pub fn until_problem(&self, text: &str) {
        let is_told = |(key, object): (&String, &Value)| {
            key.starts_with("problem/") && object["text"].as_str().is_some_and(|said| said.starts_with(text))
        };
        wait_until(text, || self.seen().objects.iter().any(is_told));
    }

    pub fn until_over(&self) {
        wait_until("the stream to end", || self.seen().is_over);
    }
}

impl Seen {
    fn take(&mut self, event: &str, data: Value) {
        if !self.is_whole {
            self.order.push(event.to_owned());
        }
        match event {
            "hello" => self.hello = data,
            "put" => self.objects.extend(data.as_object().unwrap().clone()),
            "del" => {
                for key in data.as_array().unwrap() {
                    self.objects.remove(key.as_str().unwrap());
                }
            }
            "whole" => self.is_whole = true,
            "history" => self.history = data,
            "figures" => self.figures = data,
            "ping" => assert!(data["now_ms"].as_u64().is_some()),
            other => panic!("nobody knows the event {other}"),
        }
    }

    /// The names of a kind, such as `service`.
    pub fn names(&self, kind: &str) -> Vec<String> {
        let kind = format!("{kind}/");
        self.objects
            .keys()
            .filter_map(|key| key.strip_prefix(&kind))
            .map(str::to_owned)
            .collect()
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        let _ = self.curl.kill();
        let _ = self.curl.wait();
    }
}
