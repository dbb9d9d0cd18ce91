//! `anynode why`: why a client's connection or request goes where it goes, as a running node says it.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

use super::status::{admin_of, push_columns};
use super::up::block_on;
use super::{EXIT_FAILURE, EXIT_UNAVAILABLE, Flags, print};
use crate::admin::why::Answer;

/// What is asked, as it was typed.
#[derive(Debug, Clone, Default)]
pub struct WhyArgs {
    /// HOST:PORT, as the client dials it.
    pub ask: String,
    pub host: Option<String>,
    pub path: Option<String>,
    pub method: Option<String>,
    pub sni: Option<String>,
    pub from: Option<String>,
    pub node: Option<String>,
    pub is_json: bool,
}

/// Prints the answer. Returns the exit code: 0 where an endpoint would get it, 1 where none would.
pub fn why(flags: Flags, args: &WhyArgs) -> i32 {
    let admin = match admin_of(flags) {
        Ok(admin) => admin,
        Err(code) => return code,
    };
    let path = format!("/v1/why?{}", args.query());
    block_on(async {
        let asked = tokio::time::timeout(PATIENCE, admin.ask(&path)).await;
        let body = match asked {
            Ok(Ok(body)) => body,
            Ok(Err(error)) => {
                eprintln!("error: the node at {admin}: {error:#}");
                return Ok(EXIT_UNAVAILABLE);
            }
            Err(_) => {
                eprintln!("error: the node at {admin}: no answer in time");
                return Ok(EXIT_UNAVAILABLE);
            }
        };
        let answer: Answer = match serde_json::from_slice(&body) {
            Ok(answer) => answer,
            Err(error) => {
                eprintln!("error: {admin} answers something else than a node would: {error}");
                return Ok(EXIT_UNAVAILABLE);
            }
        };
        match args.is_json {
            true => print(&(String::from_utf8_lossy(&body).into_owned() + "\n")),
            false => print(&describe(&answer, SystemTime::now())),
        }
        let is_taken = answer.endpoints.iter().any(|endpoint| endpoint.is_for);
        Ok(if is_taken { 0 } else { EXIT_FAILURE })
    })
}

impl WhyArgs {
    fn query(&self) -> String {
        let fields = [
            ("ask", Some(&self.ask)),
            ("host", self.host.as_ref()),
            ("path", self.path.as_ref()),
            ("method", self.method.as_ref()),
            ("sni", self.sni.as_ref()),
            ("from", self.from.as_ref()),
            ("node", self.node.as_ref()),
        ];
        let pairs = fields
            .into_iter()
            .filter_map(|(name, value)| Some(format!("{name}={}", utf8_percent_encode(value?, NON_ALPHANUMERIC))));
        pairs.collect::<Vec<String>>().join("&")
    }
}

fn describe(answer: &Answer, now: SystemTime) -> String {
    let mut out = format!("{}\n\n", answer.text);
    out.push_str(&format!(
        "listener   {} ({})\n",
        answer.listener.text, answer.listener.state
    ));
    if let Some(rule) = &answer.rule {
        let service = rule.service.as_deref().unwrap_or("-");
        out.push_str(&format!("rule       {}: service {service}\n", rule.text));
    }
    if let (Some(service), Some(mode)) = (&answer.service, &answer.mode) {
        out.push_str(&format!("service    {service} ({mode})\n"));
    }
    if !answer.endpoints.is_empty() {
        let mut table = vec![["ENDPOINT", "NODE", "TRAFFIC", "WHY"].map(str::to_owned)];
        table.extend(answer.endpoints.iter().map(|endpoint| {
            [
                endpoint.name.clone(),
                endpoint.node.clone().unwrap_or_else(|| "-".to_owned()),
                if endpoint.is_for { "yes" } else { "no" }.to_owned(),
                endpoint.why.clone(),
            ]
        }));
        out.push('\n');
        push_columns(&table, &mut out);
    }
    if !answer.closes.is_empty() {
        let mut table = vec![["CLOSED", "REASON", "CLIENT", "ENDPOINT", "AFTER"].map(str::to_owned)];
        table.extend(answer.closes.iter().map(|close| {
            let at = UNIX_EPOCH + Duration::from_millis(close.at_ms);
            let ago = Duration::from_secs(now.duration_since(at).unwrap_or_default().as_secs());
            [
                format!("{} ago", humantime::format_duration(ago)),
                close.reason.clone(),
                close.client.map_or_else(|| "-".to_owned(), |client| client.to_string()),
                close.endpoint.clone().unwrap_or_else(|| "-".to_owned()),
                format!("{} ms", close.took_ms),
            ]
        }));
        out.push('\n');
        push_columns(&table, &mut out);
    }
    if !answer.elsewhere.is_empty() {
        out.push_str("\nother nodes differ:\n");
        for other in &answer.elsewhere {
            out.push_str(&format!("  {}: {}\n", other.node, other.text));
        }
    }
    out
}

const PATIENCE: Duration = Duration::from_secs(10);
