//! Other people's libraries, from PyPI and npm, each in a directory of its own that is kept beside what is built.

use std::path::{Path, PathBuf};
use std::process::Command;

/// What `install` makes in a directory of its own, kept beside what is built. `None`, said why: it cannot be had here.
fn installed(name: &str, install: impl FnOnce(&Path) -> Command) -> Option<PathBuf> {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("client-{name}"));
    if dir.exists() {
        return Some(dir);
    }
    // Whole under its name, or not at all.
    let making = dir.with_extension(std::process::id().to_string());
    std::fs::create_dir_all(&making).unwrap();
    let made = install(&making).output();
    match made {
        Ok(out) if out.status.success() => {
            // Another run may have been faster.
            let _ = std::fs::rename(&making, &dir);
            let _ = std::fs::remove_dir_all(&making);
            Some(dir)
        }
        why => {
            let _ = std::fs::remove_dir_all(&making);
            println!("skipped: {name} cannot be installed: {why:?}");
            None
        }
    }
}

/// `None`, said why: they cannot be had here.
pub fn from_pypi(name: &str, packages: &[&str]) -> Option<PathBuf> {
    installed(name, |dir| {
        let mut command = Command::new("python3");
        command
            .args([
                "-m",
                "pip",
                "install",
                "--quiet",
                "--disable-pip-version-check",
                "--target",
            ])
            .arg(dir)
            .args(packages);
        command
    })
}

/// As `from_pypi`.
pub fn from_npm(package: &str) -> Option<PathBuf> {
    installed(package, |dir| {
        let mut command = Command::new("npm");
        command
            .args(["install", "--silent", "--no-audit", "--no-fund", "--prefix"])
            .arg(dir)
            .arg(package);
        command
    })
}
