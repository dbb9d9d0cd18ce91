//! How the C library copies memory. glibc before 2.40 copies more than 2 KiB by `rep movsb` on AMD's processors as on Intel's; on Zen 3 and
//! 4 that is many times slower where the source is aligned and the destination is not (glibc's bug 30994), as it is wherever a record of TLS is put
//! together. Not here: whoever copies.

#![allow(unsafe_code, reason = "environment variables, and the C library's version")]

use std::ffi::{CStr, CString, OsString, c_char};
use std::io::{BufRead, BufReader};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::ptr;

const TUNABLES: &str = "GLIBC_TUNABLES";
/// From as many bytes on it would be used: never.
const NEVER: &str = "glibc.cpu.x86_rep_movsb_threshold=0x7fffffffffffffff";
const BEGAN_AGAIN: &str = "ANYNODE_BEGAN_AGAIN";

/// Begins the program again, with the same process id, where the C library would copy the slow way: it can be told before it starts, and never after.
/// Returns where that is not needed, has been done, or cannot be done. What it was told by is taken out of the environment again.
/// To be said while the program has one thread: where it has more, nothing is done.
pub fn begin_again_where_slow() {
    if !is_alone() {
        return;
    }
    if std::env::var_os(BEGAN_AGAIN).is_some() {
        // SAFETY: nobody else reads the environment, since there is no other thread.
        #[allow(clippy::disallowed_methods, reason = "as that says")]
        unsafe {
            std::env::remove_var(BEGAN_AGAIN);
            if std::env::var_os(TUNABLES).is_some_and(|told| told == NEVER) {
                std::env::remove_var(TUNABLES);
            }
        }
        return;
    }
    // Who has told it something knows better.
    if std::env::var_os(TUNABLES).is_some() || !is_slow_version(&version()) || !is_slow_processor() {
        return;
    }
    if !would_be_told() {
        return;
    }
    let Ok(program) = std::env::current_exe() else { return };
    let told = [(TUNABLES, NEVER), (BEGAN_AGAIN, "1")].map(|(name, value)| (name.into(), value.into()));
    let environment = std::env::vars_os()
        .chain(told)
        .map(|(name, value): (OsString, OsString)| {
            let mut line = name;
            line.push("=");
            line.push(value);
            line
        });
    let strings = |all: &mut dyn Iterator<Item = OsString>| -> Option<Vec<CString>> {
        all.map(|one| CString::new(one.into_vec()).ok()).collect()
    };
    let program = CString::new(program.as_os_str().as_bytes()).ok();
    let (args, environment) = (strings(&mut std::env::args_os()), strings(&mut { environment }));
    let (Some(program), Some(args), Some(environment)) = (program, args, environment) else {
        return;
    };
    let pointers =
        |all: &[CString]| -> Vec<*const c_char> { all.iter().map(|one| one.as_ptr()).chain([ptr::null()]).collect() };
    let (args, environment) = (pointers(&args), pointers(&environment));
    // SAFETY: the strings live until it returns, and both lists end with a null. It returns where it fails, and has changed nothing of this
    // process then: all goes on, the slow way.
    unsafe { libc::execve(program.as_ptr(), args.as_ptr(), environment.as_ptr()) };
}

/// Whether the C library would listen to its environment: not where the program gains what its user has not (capabilities of its file), and not
/// by way of a loader that was started by hand, which could not be started in the same way.
fn would_be_told() -> bool {
    // SAFETY: it reads what the kernel has told this process.
    let told = |what| unsafe { libc::getauxval(what) };
    told(libc::AT_SECURE) == 0 && (cfg!(target_feature = "crt-static") || told(libc::AT_BASE) != 0)
}

fn is_alone() -> bool {
    std::fs::read_dir("/proc/self/task").is_ok_and(|threads| threads.count() == 1)
}

#[cfg(target_env = "gnu")]
fn version() -> String {
    // SAFETY: it returns a string that is never freed.
    let version = unsafe { CStr::from_ptr(libc::gnu_get_libc_version()) };
    version.to_string_lossy().into_owned()
}

/// Of no glibc.
#[cfg(not(target_env = "gnu"))]
fn version() -> String {
    String::new()
}

/// Whether glibc of that version (`2.36`) takes `rep movsb` for fast on any processor. Other libraries have none.
fn is_slow_version(version: &str) -> bool {
    let number = |part: Option<&str>| part.and_then(|part| part.parse::<u32>().ok());
    let mut parts = version.split('.');
    match (number(parts.next()), number(parts.next())) {
        (Some(major), Some(minor)) => (major, minor) < (2, 40),
        _ => false,
    }
}

/// Whether it is one of AMD's that says of itself that it has a fast `rep movsb`.
fn is_slow_processor() -> bool {
    let Ok(file) = std::fs::File::open("/proc/cpuinfo") else {
        return false;
    };
    // The first processor: an empty line follows.
    let lines = BufReader::new(file).lines().map_while(Result::ok);
    is_slow_one(lines.take_while(|line| !line.is_empty()))
}

fn is_slow_one(lines: impl Iterator<Item = String>) -> bool {
    let (mut is_amd, mut is_said) = (false, false);
    for line in lines {
        let Some((key, value)) = line.split_once(':') else {
            continue;
        };
        match key.trim() {
            "vendor_id" => is_amd = value.trim() == "AuthenticAMD",
            "flags" => is_said = value.split_whitespace().any(|flag| flag == "erms"),
            _ => {}
        }
    }
    is_amd && is_said
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_slow_is_old_and_of_amd() {
        for (version, is_slow) in [
            ("2.36", true),
            ("2.39", true),
            ("2.39.9000", true),
            ("2.40", false),
            ("2.42", false),
            ("3.0", false),
            ("", false),
            ("2", false),
            ("x.y", false),
        ] {
            assert_eq!(is_slow_version(version), is_slow, "{version:?}");
        }
        let is_slow = |text: &str| is_slow_one(text.lines().map(str::to_owned));
        assert!(is_slow(
            "processor\t: 0\nvendor_id\t: AuthenticAMD\nflags\t\t: fpu erms avx2\n"
        ));
        assert!(!is_slow("vendor_id\t: AuthenticAMD\nflags\t\t: fpu avx2\n"));
        assert!(!is_slow("vendor_id\t: GenuineIntel\nflags\t\t: fpu erms\n"));
        assert!(!is_slow(""));
    }
}
