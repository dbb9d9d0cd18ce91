//! What `anynode status` says of services: each with its endpoints, in lines of 80 columns.

use std::cmp::Ordering;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::Value;

use super::text::{list, text};

/// Keeps the named services alone. Errors: one that there is not.
pub(super) fn keep(status: &mut Value, names: &[String]) -> Result<(), String> {
    let all = list(&status["services"]);
    let named = |name: &str| {
        let is_it = |service: &&Value| {
            let is_called = service["name"].as_str();
            is_called.is_some_and(|called| called.eq_ignore_ascii_case(name))
        };
        all.iter().find(is_it).cloned()
    };
    let mut kept = Vec::new();
    for name in names {
        let Some(service) = named(name) else {
            let known: Vec<String> = all.iter().map(|service| text(&service["name"])).collect();
            let near = known.iter().max_by(|a, b| {
                let to = |other: &String| strsim::jaro_winkler(name, other);
                to(a).total_cmp(&to(b))
            });
            let near = near
                .filter(|near| strsim::jaro_winkler(name, near) > NEAR)
                .map(|near| format!("; is {near} meant?"))
                .unwrap_or_default();
            return Err(format!("{name}: expected a service of this node{near}"));
        };
        kept.push(service);
    }
    status["services"] = Value::Array(kept);
    Ok(())
}

/// What is wrong with single endpoints.
pub(super) fn faults(status: &Value, out: &mut String) {
    for service in list(&status["services"]) {
        for endpoint in list(&service["endpoints"]) {
            let of = format!("{} of {}", text(&endpoint["address"]), text(&service["name"]));
            if let Some(why) = endpoint["opaque"].as_str() {
                out.push_str(&format!("! opaque: {of} does not see its clients' addresses: {why}\n"));
            }
            if let Some(why) = endpoint["tls_fault"].as_str() {
                out.push_str(&format!("! TLS: {of} is not spoken to: {why}\n"));
            }
        }
    }
}

/// Every service by its name, with its endpoints. `is_verbose`: with their addresses, and tasks by their ids.
pub(super) fn describe(status: &Value, is_verbose: bool, out: &mut String) {
    let mut services = list(&status["services"]);
    services.sort_by(|a, b| by_number(&text(&a["name"]), &text(&b["name"])));
    for (i, service) in services.iter().enumerate() {
        if i > 0 {
            out.push('\n');
        }
        describe_one(service, is_verbose, out);
    }
}

fn describe_one(service: &Value, is_verbose: bool, out: &mut String) {
    let mut endpoints = list(&service["endpoints"]);
    let name = |endpoint: &Value| match (endpoint["name"].as_str(), endpoint["task"].as_str()) {
        (_, Some(task)) if is_verbose => task.to_owned(),
        (Some(name), _) => name.to_owned(),
        _ => text(&endpoint["address"]),
    };
    endpoints.sort_by(|a, b| by_number(&name(a), &name(b)));
    let mut words = vec![format!("service {}", text(&service["name"])), text(&service["mode"])];
    words.extend(service["vip"].as_str().map(str::to_owned));
    words.extend(
        [&service["publish"], &service["routes"]]
            .into_iter()
            .flat_map(list)
            .map(|door| text(&door)),
    );
    push_words(&words, "    ", out);
    let mut words = vec![counts(&endpoints)];
    words.extend(figures(service));
    words.push(format!("connections {}", text(&service["connections"])));
    out.push_str("  ");
    push_words(&words, "    ", out);
    if endpoints.is_empty() {
        return;
    }
    let is_of_tasks = endpoints.iter().any(|endpoint| endpoint["node"].is_string());
    let mut heads = vec![if is_of_tasks { "TASK" } else { "ENDPOINT" }];
    heads.extend(is_of_tasks.then_some("NODE"));
    heads.extend(["STATE", "IN FLIGHT", "TOTAL", "FAILED"]);
    let mut rows = vec![heads.into_iter().map(str::to_owned).collect::<Vec<String>>()];
    for endpoint in &endpoints {
        let mut row = vec![name(endpoint)];
        row.extend(is_of_tasks.then(|| text(&endpoint["node"])));
        row.extend(
            [
                &endpoint["state"],
                &endpoint["in_flight"],
                &endpoint["total"],
                &endpoint["connect_failures"],
            ]
            .map(text),
        );
        rows.push(row);
    }
    let n_numbers = 3;
    let widths: Vec<usize> = (0..rows[0].len())
        .map(|i| rows.iter().map(|row| row[i].chars().count()).max().unwrap_or(0))
        .collect();
    for (i, row) in rows.iter().enumerate() {
        let cell = |(j, (cell, width)): (usize, (&String, &usize))| match j + n_numbers >= row.len() {
            true => format!("{cell:>width$}"),
            false => format!("{cell:width$}"),
        };
        let cells: Vec<String> = row.iter().zip(&widths).enumerate().map(cell).collect();
        let line = cells.join("   ");
        match line.chars().count() + 2 <= COLUMNS {
            true => out.push_str(&format!("  {}\n", line.trim_end())),
            // A name that is long has a line of its own.
            false => out.push_str(&format!("  {}\n    {}\n", row[0], cells[1..].join("   ").trim_end())),
        }
        if let Some(endpoint) = i.checked_sub(1).map(|i| &endpoints[i]) {
            describe_more(endpoint, is_verbose, out);
        }
    }
}

/// What is said of an endpoint below its line: since when and why it is out, and more for whoever wants to know.
fn describe_more(endpoint: &Value, is_verbose: bool, out: &mut String) {
    let is_out = !["ready", "untried"].contains(&endpoint["state"].as_str().unwrap_or_default());
    let since = endpoint["since_ms"].as_u64().filter(|_| is_out || is_verbose).map(ago);
    let mut words: Vec<String> = since.map(|ago| format!("since {ago}")).into_iter().collect();
    words.extend(endpoint["why"].as_str().map(str::to_owned));
    if is_verbose {
        words.push(format!("at {}", text(&endpoint["address"])));
        words.extend(endpoint["netns"].as_str().map(|netns| format!("in {netns}")));
        words.extend(endpoint["weight"].as_u64().map(|weight| format!("weight {weight}")));
    }
    if !words.is_empty() {
        out.push_str("    ");
        push_words(&words, "    ", out);
    }
}

/// Words on one line, or on as many as it takes for each to end before the margin, as far as they are that short.
fn push_words(words: &[String], indent: &str, out: &mut String) {
    let begun = out.rfind('\n').map_or(0, |at| at + 1);
    let mut column = out[begun..].chars().count();
    for (i, word) in words.iter().enumerate() {
        let n = word.chars().count();
        let gap = if i == 0 { "" } else { "   " };
        if i > 0 && column + gap.len() + n > COLUMNS {
            out.push('\n');
            out.push_str(indent);
            column = indent.len();
        } else {
            out.push_str(gap);
            column += gap.len();
        }
        out.push_str(word);
        column += n;
    }
    out.push('\n');
}

/// Such as "6 ready, 2 leaving".
fn counts(endpoints: &[Value]) -> String {
    let count = |state: &str| endpoints.iter().filter(|endpoint| endpoint["state"] == *state).count();
    let mut shown = format!("{} ready", count("ready"));
    for (state, called) in [
        ("untried", "untried"),
        ("failing", "failing"),
        ("resting", "resting"),
        ("unready", "unready"),
        ("draining", "leaving"),
    ] {
        let n = count(state);
        if n > 0 {
            shown.push_str(&format!(", {n} {called}"));
        }
    }
    shown
}

/// What it did in the last five seconds.
fn figures(service: &Value) -> Vec<String> {
    let figures = &service["figures"];
    let Some(rate) = figures["rate"].as_f64() else {
        return Vec::new();
    };
    let unit = if service["mode"] == "http" {
        "requests"
    } else {
        "connections"
    };
    let mut words = vec![match rate {
        rate if rate < 10.0 => format!("{rate:.1} {unit}/s"),
        rate => format!("{rate:.0} {unit}/s"),
    }];
    let errors = figures["errors"].as_f64().unwrap_or(0.0);
    if errors > 0.0 {
        words.push(format!("{:.1} % failed", errors * 100.0));
    }
    if let Some(us) = figures["p99_us"].as_u64() {
        words.push(format!("p99 {:.1} ms", us as f64 / 1000.0));
    }
    if let Some(n @ 1..) = figures["held"].as_u64() {
        words.push(format!("{n} held"));
    }
    words
}

/// How long ago that was, as people say it.
fn ago(ms: u64) -> String {
    let at = UNIX_EPOCH + Duration::from_millis(ms);
    let secs = SystemTime::now().duration_since(at).unwrap_or_default().as_secs();
    match secs {
        0..60 => format!("{secs} s"),
        60..3600 => format!("{} min", secs / 60),
        3600..86_400 => format!("{} h", secs / 3600),
        _ => format!("{} d", secs / 86_400),
    }
}

/// As people order names: web.2 before web.10.
fn by_number(a: &str, b: &str) -> Ordering {
    let parts = |text: &str| -> Vec<(String, u128)> {
        let mut parts = Vec::new();
        let (mut word, mut digits) = (String::new(), String::new());
        for c in text.chars() {
            if c.is_ascii_digit() {
                digits.push(c);
            } else {
                if !digits.is_empty() {
                    parts.push((std::mem::take(&mut word), digits.parse().unwrap_or(u128::MAX)));
                    digits.clear();
                }
                word.push(c);
            }
        }
        parts.push((word, digits.parse().unwrap_or(0)));
        parts
    };
    parts(a).cmp(&parts(b)).then_with(|| a.cmp(b))
}

/// Of a terminal that nobody has widened.
const COLUMNS: usize = 80;
/// How like another one a name is that is said to be meant.
const NEAR: f64 = 0.75;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_in_the_order_of_their_numbers() {
        let mut names = ["web.10", "web.2", "web.1", "api", "10.0.0.9:80", "10.0.0.10:80", "web"];
        names.sort_by(|a, b| by_number(a, b));
        assert_eq!(
            names,
            ["10.0.0.9:80", "10.0.0.10:80", "api", "web", "web.1", "web.2", "web.10"]
        );
    }

    #[test]
    fn words_are_set_within_the_margin() {
        let mut out = "  ".to_owned();
        push_words(&["a".repeat(40), "b".repeat(40), "c".repeat(90)], "    ", &mut out);
        let expected = format!("  {}\n    {}\n    {}\n", "a".repeat(40), "b".repeat(40), "c".repeat(90));
        assert_eq!(out, expected);
    }
}
