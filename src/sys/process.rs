//! How processes are tied to one another. Not here: what they do.

#![allow(unsafe_code, reason = "what runs between fork and exec is unsafe to say")]

use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

use rustix::process::{Signal, set_child_subreaper, set_parent_process_death_signal};

/// Has the program that `command` starts be killed when the thread that starts it ends.
pub fn die_with_parent(command: &mut Command) {
    // SAFETY: between fork and exec only a system call is made.
    unsafe {
        command.pre_exec(|| Ok(set_parent_process_death_signal(Some(Signal::KILL))?));
    }
}

/// Processes that lose their parent below this one become its children.
pub fn adopt_orphans() -> io::Result<()> {
    Ok(set_child_subreaper(Some(rustix::process::getpid()))?)
}
