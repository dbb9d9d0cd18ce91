//! The documentation's reference against the code: no word is missing, none is invented, no link leads nowhere.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anynode::app::{EXIT_CONFIG, EXIT_FAILURE, EXIT_UNAVAILABLE};
use anynode::routing::{CloseReason, EndpointState, RequestRefusal, RetryOutcome};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The first cells of the rows of the table below a heading, without their marks.
fn words<'a>(text: &'a str, heading: &str) -> BTreeSet<&'a str> {
    let (_, section) = text.split_once(&format!("\n## {heading}\n")).expect(heading);
    let section = section.split("\n## ").next().unwrap();
    let rows = section
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split('`').next());
    rows.collect()
}

#[test]
fn every_reason_and_state_is_in_the_reference() {
    let text = std::fs::read_to_string(root().join("docs/reference/reasons.md")).unwrap();
    for (heading, known) in [
        (
            "Why a connection ended",
            CloseReason::ALL.map(CloseReason::as_str).to_vec(),
        ),
        (
            "Why a request was denied",
            RequestRefusal::ALL.map(RequestRefusal::as_str).to_vec(),
        ),
        (
            "What came of further tries",
            RetryOutcome::ALL.map(RetryOutcome::as_str).to_vec(),
        ),
        (
            "The states of an endpoint",
            EndpointState::ALL.map(EndpointState::as_str).to_vec(),
        ),
    ] {
        assert_eq!(words(&text, heading), known.into_iter().collect(), "{heading}");
    }
    for state in EndpointState::ALL {
        let word = if state.is_picked() { "yes" } else { "no" };
        assert!(
            text.contains(&format!("| `{}` | {word} |", state.as_str())),
            "{state:?}"
        );
    }
}

#[test]
fn every_exit_code_is_in_the_reference() {
    let text = std::fs::read_to_string(root().join("docs/reference/exit-codes.md")).unwrap();
    let codes: BTreeSet<i32> = text
        .lines()
        .filter_map(|line| line.strip_prefix("| ")?.split(' ').next()?.parse().ok())
        .collect();
    assert_eq!(codes, BTreeSet::from([0, EXIT_FAILURE, EXIT_CONFIG, EXIT_UNAVAILABLE]));
}

fn documents(dir: &Path, into: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            documents(&path, into);
        } else if path.extension().is_some_and(|ext| ext == "md") {
            into.push(path);
        }
    }
}

/// As a heading is linked to: in lower case, with dashes for spaces, without the rest.
fn anchor(heading: &str) -> String {
    let kept = heading.to_lowercase();
    let kept = kept
        .chars()
        .filter(|c| c.is_alphanumeric() || [' ', '-', '_'].contains(c));
    kept.map(|c| if c == ' ' { '-' } else { c }).collect()
}

#[test]
fn no_link_leads_nowhere() {
    let mut all: Vec<PathBuf> = ["README.md", "ARCHITECTURE.md", "CHANGELOG.md"]
        .map(|name| root().join(name))
        .to_vec();
    documents(&root().join("docs"), &mut all);
    assert!(all.len() > 5, "{all:?}");
    let mut n_links = 0;
    for path in &all {
        let text = std::fs::read_to_string(path).unwrap();
        for rest in text.split("](").skip(1) {
            let Some((target, _)) = rest.split_once(')') else {
                continue;
            };
            if target.contains("://") || target.contains(char::is_whitespace) {
                continue;
            }
            let (file, heading) = target
                .split_once('#')
                .map_or((target, None), |(file, heading)| (file, Some(heading)));
            let of = match file {
                "" => path.clone(),
                file => path.parent().unwrap().join(file),
            };
            assert!(of.exists(), "{}: {target}", path.display());
            if let Some(heading) = heading {
                let there = std::fs::read_to_string(&of).unwrap();
                let mut headings = there.lines().filter(|line| line.starts_with('#'));
                assert!(
                    headings.any(|line| anchor(line.trim_start_matches('#').trim()) == heading),
                    "{}: {target}",
                    path.display()
                );
            }
            n_links += 1;
        }
    }
    assert!(n_links > 20, "{n_links}");
}
