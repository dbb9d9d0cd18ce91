//! The rooms keep their order: a room imports only rooms that stand left of it, `unsafe` lives in `sys` alone, and every
//! file says at its top what it is. Judged by the text of `src/`, comments and strings left out.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Each room with the rooms that it may import, in reading order. The library's root and the binary see everything.
const ROOMS: &[(&str, &[&str])] = &[
    ("sys", &[]),
    ("places", &["sys"]),
    ("model", &[]),
    ("streams", &["model"]),
    ("gotemplate", &[]),
    ("store", &["model"]),
    ("control", &["model", "store"]),
    ("agent", &["sys", "model", "streams", "gotemplate"]),
    (
        "api",
        &["sys", "places", "model", "streams", "gotemplate", "store", "control"],
    ),
    ("routing", &["model"]),
    ("tls", &["model"]),
    ("takeover", &["sys", "model", "routing"]),
    ("proxy", &["sys", "model", "routing", "tls", "takeover"]),
    ("dns", &["sys", "places", "model", "routing"]),
    ("tasknet", &["sys", "model", "routing", "proxy", "dns"]),
    ("health", &["sys", "model", "routing", "tls"]),
    ("source", &["sys", "model", "store", "routing"]),
    ("link", &["sys", "places", "model"]),
    (
        "admin",
        &[
            "sys", "places", "model", "store", "routing", "tls", "takeover", "proxy", "dns", "tasknet", "health",
            "source", "link",
        ],
    ),
    ("whoami", &[]),
    (
        "app",
        &[
            "sys", "places", "model", "streams", "store", "control", "agent", "api", "routing", "tls", "takeover",
            "proxy", "dns", "tasknet", "health", "source", "link", "admin", "whoami",
        ],
    ),
];

#[test]
fn rooms_import_only_what_stands_left_of_them() {
    let offences: Vec<String> = sources()
        .iter()
        .flat_map(|(path, text)| import_offences(path, text))
        .collect();
    assert!(offences.is_empty(), "\n{}\n", offences.join("\n"));
}

/// Rooms whose files form no circle: each can be read without one that needs it.
const WITHOUT_CIRCLES: &[&str] = &["places", "gotemplate", "api", "routing", "source", "tls", "dns"];

#[test]
fn files_of_a_room_form_no_circle() {
    let sources = sources();
    for room in WITHOUT_CIRCLES {
        let files = sources.iter().map(|(path, text)| (path.as_str(), text.as_str()));
        assert_eq!(circle_in(room, files), None, "room {room}");
    }
}

#[test]
fn a_circle_is_found() {
    let files = [
        ("src/routing/mod.rs", "mod a; mod b; mod c;"),
        ("src/routing/a.rs", "use super::b::B;"),
        ("src/routing/b/mod.rs", "use super::{c::C, d};"),
        ("src/routing/c.rs", "fn f() { crate::routing::b::g() }"),
        ("src/other/c.rs", "use super::a;"),
    ];
    assert_eq!(circle_in("routing", files).as_deref(), Some("b -> c -> b"));
    let cut = files.into_iter().filter(|(path, _)| *path != "src/routing/c.rs");
    assert_eq!(circle_in("routing", cut), None);
}

/// The first circle that files of a room form by what they name of each other; a directory counts as one file, and the
/// room's own file not at all.
fn circle_in<'a>(room: &str, files: impl IntoIterator<Item = (&'a str, &'a str)>) -> Option<String> {
    let mut names: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (path, text) in files {
        let Some(rest) = path.strip_prefix(&format!("src/{room}/")) else {
            continue;
        };
        let file = rest
            .trim_end_matches(".rs")
            .split('/')
            .next()
            .unwrap_or(rest)
            .to_owned();
        if file == "mod" {
            continue;
        }
        // As a path from the root: `crate::room::x` and `super::x`, each behind the name that they have in common.
        // What tests need of others makes no file harder to read without them.
        let code = without_talk(text);
        let code = code.split("#[cfg(test)]").next().unwrap_or_default();
        let code = code.replace(&format!("crate::{room}::"), "crate::");
        let depth = rest.split('/').count() - usize::from(rest.ends_with("/mod.rs"));
        let as_rooms = code.replace(&"super::".repeat(depth), "crate::");
        let named = named_rooms(&as_rooms, "src/made_up.rs")
            .into_iter()
            .map(|(_, name)| name);
        names
            .entry(file.clone())
            .or_default()
            .extend(named.filter(|name| *name != file));
    }
    fn visit(file: &str, names: &BTreeMap<String, BTreeSet<String>>, way: &mut Vec<String>) -> Option<String> {
        if let Some(at) = way.iter().position(|one| one == file) {
            way.push(file.to_owned());
            return Some(way[at..].join(" -> "));
        }
        way.push(file.to_owned());
        let found = names.get(file)?.iter().filter(|name| names.contains_key(*name));
        let found = found.into_iter().find_map(|name| visit(name, names, way));
        way.pop();
        found
    }
    names.keys().find_map(|file| visit(file, &names, &mut Vec::new()))
}

#[test]
fn unsafe_code_lives_in_sys() {
    let offences: Vec<String> = sources()
        .iter()
        .flat_map(|(path, text)| unsafe_offences(path, text))
        .collect();
    assert!(offences.is_empty(), "\n{}\n", offences.join("\n"));
}

#[test]
fn every_file_says_what_it_is() {
    let silent: Vec<String> = sources()
        .into_iter()
        .filter(|(_, text)| !text.starts_with("//! "))
        .map(|(path, _)| path)
        .collect();
    assert!(silent.is_empty(), "no //! at the top of {silent:?}");
}

#[test]
fn the_list_has_every_room() {
    let root = std::fs::read_to_string(manifest_dir().join("src/lib.rs")).unwrap();
    let declared: Vec<&str> = root
        .lines()
        .filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';'))
        .collect();
    let listed: Vec<&str> = ROOMS.iter().map(|(room, _)| *room).collect();
    assert_eq!(declared, listed);
}

#[test]
fn the_check_can_fail() {
    let text = "//! A made-up file.\n\
                use crate::model::ServiceName;\n\
                use crate::{\n    dns::Zone,\n    proxy::{self, Ports},\n};\n\
                // use crate::app::Node is only talk, and so is /* this */ one\n\
                const TALK: &str = \"crate::admin::serve \\\" crate::app\";\n\
                const RAW: &str = r#\"crate::admin \"quoted\" crate::app\"#;\n\
                const QUOTE: char = '\"';\n\
                /* crate::source, /* nested */ crate::source */\n\
                fn f<'a>(_: &'a str) {\n    crate::health::Prober::new();\n    super::super::sys::x();\n    unsafe { g() }\n}\n";
    let offences = import_offences("src/routing/made_up.rs", text);
    assert_eq!(
        offences,
        [
            "src/routing/made_up.rs:4: routing must not import dns",
            "src/routing/made_up.rs:5: routing must not import proxy",
            "src/routing/made_up.rs:13: routing must not import health",
            "src/routing/made_up.rs:14: routing must not import sys",
        ]
    );
    assert_eq!(import_offences("src/app/made_up.rs", text), [""; 0]);
    assert_eq!(
        unsafe_offences("src/routing/made_up.rs", text),
        ["src/routing/made_up.rs:15: unsafe outside of sys"]
    );
    assert_eq!(unsafe_offences("src/sys/made_up.rs", text), [""; 0]);
    let own = "//! Itself.\nuse crate::routing::Table;\nuse super::service::Service;\n";
    assert_eq!(import_offences("src/routing/made_up.rs", own), [""; 0]);
}

fn manifest_dir() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Every source file: its path from the package's root, and its text.
fn sources() -> Vec<(String, String)> {
    fn visit(dir: &Path, found: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => visit(&path, found),
                false if path.extension().is_some_and(|e| e == "rs") => found.push(path),
                false => {}
            }
        }
    }
    let root = manifest_dir();
    let mut paths = Vec::new();
    visit(&root.join("src"), &mut paths);
    paths.sort();
    assert!(paths.len() > 40, "{paths:?}");
    paths
        .into_iter()
        .map(|path| {
            let text = std::fs::read_to_string(&path).unwrap();
            (path.strip_prefix(&root).unwrap().display().to_string(), text)
        })
        .collect()
}

fn room_of(path: &str) -> Option<&'static (&'static str, &'static [&'static str])> {
    let first = path.strip_prefix("src/")?.split('/').next()?;
    let name = first.strip_suffix(".rs").unwrap_or(first);
    ROOMS.iter().find(|(room, _)| *room == name)
}

fn import_offences(path: &str, text: &str) -> Vec<String> {
    let Some((room, allowed)) = room_of(path) else {
        return Vec::new();
    };
    let code = without_talk(text);
    let mut offences = BTreeSet::new();
    for (at, name) in named_rooms(&code, path) {
        if name != *room && ROOMS.iter().any(|(known, _)| *known == name) && !allowed.contains(&name.as_str()) {
            offences.insert((line_of(&code, at), name));
        }
    }
    offences
        .into_iter()
        .map(|(line, name)| format!("{path}:{line}: {room} must not import {name}"))
        .collect()
}

fn unsafe_offences(path: &str, text: &str) -> Vec<String> {
    if path.starts_with("src/sys/") {
        return Vec::new();
    }
    let code = without_talk(text);
    words(&code)
        .filter(|(_, word)| *word == "unsafe")
        .map(|(at, _)| format!("{path}:{}: unsafe outside of sys", line_of(&code, at)))
        .collect()
}

/// The first names of all paths that begin at the crate's root, with where they stand.
fn named_rooms(code: &str, path: &str) -> Vec<(usize, String)> {
    // How many `super` lead from this file's module to the root.
    let parts: Vec<&str> = path
        .trim_start_matches("src/")
        .trim_end_matches(".rs")
        .split('/')
        .collect();
    let depth = match parts.last() {
        Some(&"mod") => parts.len() - 1,
        _ => parts.len(),
    };
    let root_by_super = "super::".repeat(depth);
    let mut found = Vec::new();
    for (at, word) in words(code) {
        let after = match word {
            "crate" => at + word.len(),
            "super"
                if !code[..at].ends_with("::")
                    && code[at..].starts_with(&root_by_super)
                    && !code[at + root_by_super.len()..].starts_with("super") =>
            {
                at + root_by_super.len() - 2
            }
            _ => continue,
        };
        let Some(rest) = code[after..].strip_prefix("::") else {
            continue;
        };
        let start = after + 2;
        if !rest.starts_with('{') {
            found.extend(words(rest).next().map(|(i, word)| (start + i, word.to_owned())));
            continue;
        }
        // A group: the first word of each of its members.
        let (mut level, mut is_first) = (0, true);
        for (i, c) in rest.char_indices() {
            match c {
                '{' => level += 1,
                '}' => level -= 1,
                ',' if level == 1 => is_first = true,
                c if is_first && is_word(c) => {
                    is_first = false;
                    let word: String = rest[i..].chars().take_while(|c| is_word(*c)).collect();
                    found.push((start + i, word));
                }
                _ => {}
            }
            if level == 0 {
                break;
            }
        }
    }
    found
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

fn words(code: &str) -> impl Iterator<Item = (usize, &str)> {
    code.split(|c| !is_word(c))
        .filter(|word| !word.is_empty())
        .map(|word| (word.as_ptr() as usize - code.as_ptr() as usize, word))
}

fn line_of(code: &str, at: usize) -> usize {
    code[..at].matches('\n').count() + 1
}

/// The text with comments, strings and characters blanked; every byte that stays is where it was.
fn without_talk(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out: Vec<u8> = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let rest = &bytes[at..];
        let n_hashes = rest.iter().skip(1).take_while(|b| **b == b'#').count();
        let follows_word = at > 0 && is_word(bytes[at - 1] as char);
        let length = if rest.starts_with(b"//") {
            rest.iter().position(|b| *b == b'\n').unwrap_or(rest.len())
        } else if rest.starts_with(b"/*") {
            length_of_comment(rest)
        } else if rest[0] == b'"' {
            length_of_string(rest)
        } else if rest[0] == b'r' && !follows_word && rest.get(1 + n_hashes) == Some(&b'"') {
            let end: Vec<u8> = std::iter::once(b'"')
                .chain(std::iter::repeat_n(b'#', n_hashes))
                .collect();
            let body = 2 + n_hashes;
            rest[body..]
                .windows(end.len())
                .position(|window| window == end)
                .map_or(rest.len(), |i| body + i + end.len())
        } else if rest[0] == b'\'' {
            length_of_char(rest)
        } else {
            out.push(rest[0]);
            at += 1;
            continue;
        };
        let length = length.max(1);
        out.extend(rest[..length].iter().map(|b| if *b == b'\n' { b'\n' } else { b' ' }));
        at += length;
    }
    String::from_utf8(out).unwrap()
}

fn length_of_comment(rest: &[u8]) -> usize {
    let (mut at, mut level) = (0, 0);
    while at < rest.len() {
        match &rest[at..] {
            [b'/', b'*', ..] => {
                level += 1;
                at += 2;
            }
            [b'*', b'/', ..] => {
                level -= 1;
                at += 2;
                if level == 0 {
                    break;
                }
            }
            _ => at += 1,
        }
    }
    at
}

fn length_of_string(rest: &[u8]) -> usize {
    let mut at = 1;
    while at < rest.len() {
        match rest[at] {
            b'\\' => at += 2,
            b'"' => return at + 1,
            _ => at += 1,
        }
    }
    rest.len()
}

/// Of a character; 1 for a lifetime, whose quote ends nowhere.
fn length_of_char(rest: &[u8]) -> usize {
    match rest.get(1) {
        Some(b'\\') => rest[2..].iter().skip(1).position(|b| *b == b'\'').map_or(1, |i| i + 4),
        Some(_) => {
            let n = rest.iter().skip(1).take(5).position(|b| *b == b'\'');
            match n {
                // 'a' is a character, and so are longer ones of several bytes; 'a, 'b are lifetimes.
                Some(1) => 3,
                Some(n) if n > 1 && !rest[1].is_ascii() => n + 2,
                _ => 1,
            }
        }
        None => 1,
    }
}
