//! Stack files as people write them, deployed by the docker command line to both: the same is said, the same is there, and a
//! second time changes nothing.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use super::pair::{Ask, Difference, Pair, Side, plain};
use super::table::Table;

/// The files, in the order of their names.
pub fn all() -> Vec<PathBuf> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/oracle/stacks");
    let files = std::fs::read_dir(dir).unwrap().map(|file| file.unwrap().path());
    let mut files: Vec<PathBuf> = files
        .filter(|file| file.extension().is_some_and(|kind| kind == "yml"))
        .collect();
    files.sort();
    files
}

/// What the command line says of a command, and how it ends. Lines come in the order of a map, so they are sorted.
fn docker(side: &Side, args: &[&str]) -> String {
    let mut command = Command::new("docker");
    // The older of the two has no later one, and by another one other things are sent.
    command
        .env("DOCKER_API_VERSION", "1.41")
        .args(["-H", &side.host()])
        .args(args);
    let out = command.output().unwrap();
    let said = [out.stdout, out.stderr].map(|said| String::from_utf8(said).unwrap());
    let mut lines: Vec<String> = said
        .iter()
        .flat_map(|said| said.lines())
        .map(|line| plain(line, &BTreeMap::new()))
        .collect();
    lines.sort();
    format!("{:?}: {}", out.status.code(), lines.join("\n"))
}

/// What was declared, by names.
fn specs(side: &Side) -> BTreeMap<String, Value> {
    let of = |kind: &str| side.get(kind).as_array().cloned().unwrap_or_default();
    let all = ["/services", "/configs", "/secrets"].into_iter().flat_map(of);
    let name = |object: &Value| object["Spec"]["Name"].as_str().unwrap_or_default().to_owned();
    all.map(|object| (name(&object), object["Spec"].clone())).collect()
}

/// Deploys the file to both, twice, and takes it away. What differs and the table does not have is returned.
pub fn check(pair: &Pair, file: &Path, table: &mut Table) -> Vec<Difference> {
    let ask = Ask::get(format!("stack {}", file.file_stem().unwrap().to_string_lossy()));
    let mut found = Vec::new();
    let mut differ = |at: &str, [docker, ours]: [String; 2]| {
        if docker != ours {
            let at = at.to_owned();
            found.push(Difference { at, docker, ours });
        }
    };
    let file = file.to_str().unwrap();
    let deploy = [
        "stack",
        "deploy",
        "--detach=true",
        "--resolve-image",
        "never",
        "-c",
        file,
        "s",
    ];
    let both = |args: &[&str]| pair.sides().map(|side| docker(side, args));
    differ("deploy", both(&deploy));
    let names = |side: &Side| specs(side).into_keys().collect::<Vec<_>>().join(" ");
    differ("names", pair.sides().map(names));
    let mut left = pair.settled_state(&ask, table);
    let before = pair.sides().map(specs);
    differ("again", both(&deploy));
    for (side, before) in pair.sides().into_iter().zip(before) {
        assert_eq!(specs(side), before, "{}: {file}, deployed again", side.name());
    }
    left.extend(pair.settled_state(&ask, table));
    differ("ls", both(&["stack", "ls", "--format", "{{.Name}} {{.Services}}"]));
    left.extend(table.unknown(&ask, found));
    // Docker's own is refused now and then: networks are in use by tasks that are still ending.
    let [_, removed] = both(&["stack", "rm", "--detach=true", "s"]);
    assert!(removed.starts_with("Some(0)"), "{file}: {removed}");
    pair.furnish();
    left
}
