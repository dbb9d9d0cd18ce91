//! How volumes are named, and where each lies by its name. Pure.

use std::path::{Path, PathBuf};

/// Errors: in Docker's words, it is no name.
pub(super) fn check_name(name: &str) -> Result<(), String> {
    let is_plain = |c: char| c.is_ascii_alphanumeric();
    let mut letters = name.chars();
    let begins_well = letters.next().is_some_and(is_plain);
    if !begins_well || !letters.all(|c| is_plain(c) || matches!(c, '_' | '.' | '-')) {
        return Err(format!(
            "\"{name}\" includes invalid characters for a local volume name, only \"[a-zA-Z0-9][a-zA-Z0-9_.-]\" are allowed. If \
             you intended to pass a host directory, use absolute path"
        ));
    }
    match name.len() {
        1 => Err("volume name is too short, names should be at least two alphanumeric characters".to_owned()),
        2..=NAME_LONGEST => Ok(()),
        length => Err(format!(
            "volume name of {length} characters: expected {NAME_LONGEST} at most"
        )),
    }
}

/// Where what a volume holds lies, among those in `dir`.
pub(super) fn data_of(dir: &Path, name: &str) -> PathBuf {
    dir.join(name).join(DATA)
}

/// The only one there is.
pub(super) const DRIVER: &str = "local";
/// What a volume's directory has what it holds in.
pub(super) const DATA: &str = "_data";
/// So that a file's name takes it, with what is put around it while it is removed.
const NAME_LONGEST: usize = 200;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for good in ["db", "a.b-c_d", "0x", &"a".repeat(200)] {
            assert_eq!(check_name(good), Ok(()), "{good}");
        }
        for bad in [
            "",
            "a",
            ".x",
            "_data",
            "a/b",
            "../x",
            "a b",
            "ä1",
            "a\0",
            &"a".repeat(201),
        ] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
    }
}
