//! A real browser that looks at the page: Debian's chromium, driven by its protocol.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{Mutex, PoisonError};

use serde_json::{Value, json};

use crate::harness::installed::from_npm;
use crate::harness::wait_until;

pub struct Browser {
    driver: Child,
    /// `None` once it is to end.
    pipes: Mutex<Option<(ChildStdin, BufReader<ChildStdout>)>>,
}

impl Browser {
    /// `None`, said why: there is none here.
    pub fn new() -> Option<Browser> {
        Browser::within(|program| Command::new(program))
    }

    /// `command` makes the driver's command, such as one within a namespace.
    pub fn within(command: impl FnOnce(&str) -> Command) -> Option<Browser> {
        let program = ["/usr/bin/chromium", "/usr/bin/chromium-browser"];
        let Some(program) = program.into_iter().find(|path| Path::new(path).exists()) else {
            println!("skipped: there is no chromium here");
            return None;
        };
        let modules = from_npm("puppeteer-core")?;
        let mut driver = command("node")
            .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/page/browser.mjs"))
            .arg(modules)
            .arg(program)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let pipes = (
            driver.stdin.take().unwrap(),
            BufReader::new(driver.stdout.take().unwrap()),
        );
        Some(Browser {
            driver,
            pipes: Mutex::new(Some(pipes)),
        })
    }

    fn act(&self, act: Value) -> Value {
        let mut pipes = self.pipes.lock().unwrap_or_else(PoisonError::into_inner);
        let pipes = pipes.as_mut().unwrap();
        writeln!(pipes.0, "{act}").unwrap();
        let mut line = String::new();
        pipes.1.read_line(&mut line).unwrap();
        let answer: Value = serde_json::from_str(&line).unwrap_or_else(|_| panic!("{act}: {line:?}"));
        match &answer["error"] {
            Value::Null => answer["ok"].clone(),
            error => panic!("{act}: {error}"),
        }
    }

    pub fn open(&self, url: &str) {
        self.act(json!({ "act": "open", "url": url }));
    }

    pub fn view(&self, width: u32, height: u32, is_dark: bool) {
        self.act(json!({ "act": "view", "width": width, "height": height, "dark": is_dark }));
    }

    /// What a person reads.
    pub fn text(&self) -> String {
        self.act(json!({ "act": "text" }))
            .as_str()
            .unwrap_or_default()
            .to_owned()
    }

    pub fn until_text(&self, text: &str) {
        let mut seen = String::new();
        let is_there = || {
            seen = self.text();
            seen.contains(text)
        };
        if std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| wait_until(text, is_there))).is_err() {
            panic!("waited in vain for {text:?} in:\n{}", self.text());
        }
    }

    pub fn run(&self, script: &str) -> Value {
        self.act(json!({ "act": "run", "script": script }))
    }

    /// Milliseconds since the page was asked for, at the frame in which `script` holds.
    pub fn ms_until(&self, script: &str) -> f64 {
        self.act(json!({ "act": "within", "script": script })).as_f64().unwrap()
    }

    /// Seconds of processor time, by what took it.
    pub fn took(&self) -> Value {
        self.act(json!({ "act": "took" }))
    }

    pub fn type_into(&self, into: &str, text: &str) {
        self.act(json!({ "act": "type", "into": into, "text": text }));
    }

    pub fn press(&self, key: &str) {
        self.act(json!({ "act": "press", "key": key }));
    }

    /// What the console has said that is wrong, since it was asked last.
    pub fn errors(&self) -> Vec<String> {
        let errors = self.act(json!({ "act": "errors" }));
        errors
            .as_array()
            .unwrap()
            .iter()
            .map(|error| error.as_str().unwrap().to_owned())
            .collect()
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // The browser ends with its driver, which ends with its input.
        self.pipes.lock().unwrap_or_else(PoisonError::into_inner).take();
        let _ = self.driver.wait();
    }
}
