//! How processes are tied to one another, and what they may. Not here: what they do.

#![allow(unsafe_code, reason = "what runs between fork and exec is unsafe to say")]

use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use rustix::fs::{Mode, OFlags};
use rustix::process::{
    Gid, PidfdFlags, Signal, Uid, getpid, getppid, ioctl_tiocsctty, pidfd_open, pidfd_send_signal, set_child_subreaper,
    set_parent_process_death_signal, setsid,
};
use rustix::thread::{
    CapabilitySet, CapabilitySets, set_no_new_privs, set_thread_gid, set_thread_groups, set_thread_uid,
};

/// Of what comes before a program's first instruction, which step has failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// To come to the directory that it is to work in.
    Directory,
    /// Any other; mostly to find the program, or to run it.
    Program,
}

/// What an error of `Command::spawn` is of, and what it is.
pub fn step_of(error: io::Error) -> (Step, io::Error) {
    match error.raw_os_error() {
        Some(number) if number & AT_DIRECTORY != 0 => {
            (Step::Directory, io::Error::from_raw_os_error(number & !AT_DIRECTORY))
        }
        _ => (Step::Program, error),
    }
}

/// The error of a step before the program's start, so that `step_of` tells it from that of the start.
pub(super) fn at_directory(error: rustix::io::Errno) -> io::Error {
    io::Error::from_raw_os_error(error.raw_os_error() | AT_DIRECTORY)
}

/// Nothing but its number comes from between fork and exec, and the kernel's own are below 4096.
const AT_DIRECTORY: i32 = 1 << 16;

/// Has the program that `command` starts be killed when the thread that starts it ends. To be said after `become_user`,
/// which would undo it.
pub fn die_with_parent(command: &mut Command) {
    let parent = getpid();
    // SAFETY: between fork and exec only system calls are made.
    unsafe {
        command.pre_exec(move || {
            set_parent_process_death_signal(Some(Signal::KILL))?;
            // It may have ended before that was said.
            match getppid() == Some(parent) {
                true => Ok(()),
                false => Err(io::Error::from_raw_os_error(libc::ESRCH)),
            }
        });
    }
}

/// Has the program that `command` starts lead a session of its own: no terminal's signals reach it.
pub fn lead_session(command: &mut Command) {
    // SAFETY: between fork and exec only a system call is made.
    unsafe {
        command.pre_exec(|| setsid().map(drop).map_err(io::Error::from));
    }
}

/// Has the program that `command` starts lead a session of its own at the terminal that is its standard input, whose signals
/// reach it.
pub fn lead_session_at_terminal(command: &mut Command) {
    // SAFETY: between fork and exec only system calls are made.
    unsafe {
        command.pre_exec(|| {
            setsid()?;
            Ok(ioctl_tiocsctty(rustix::stdio::stdin())?)
        });
    }
}

/// Has the program that `command` starts run as this user, with these groups besides its own. Only root may ask for others
/// than its own.
pub fn become_user(command: &mut Command, uid: u32, gid: u32, groups: &[u32]) {
    let groups: Vec<Gid> = groups.iter().map(|group| Gid::from_raw(*group)).collect();
    // SAFETY: between fork and exec only system calls are made, on what was allocated before; the child has one thread.
    unsafe {
        command.pre_exec(move || {
            set_thread_groups(&groups)?;
            set_thread_gid(Gid::from_raw(gid))?;
            Ok(set_thread_uid(Uid::from_raw(uid))?)
        });
    }
}

/// Nothing that `command` starts gains privileges by what it executes.
pub fn gain_nothing(command: &mut Command) {
    // SAFETY: between fork and exec only a system call is made.
    unsafe {
        command.pre_exec(|| Ok(set_no_new_privs(true)?));
    }
}

/// Nothing that this process has open reaches a program that it starts from now on, but the three standard descriptors. To be
/// said first: whoever started this may have left it descriptors without meaning to.
pub fn pass_nothing_on_at_exec() {
    if close_at_exec() {
        return;
    }
    // A kernel before 5.11.
    let open = std::fs::read_dir("/proc/self/fd").into_iter().flatten().flatten();
    let numbers = open.filter_map(|entry| entry.file_name().to_str()?.parse::<libc::c_int>().ok());
    for fd in numbers.filter(|fd| *fd > 2) {
        // SAFETY: F_SETFD takes an integer, and one that is closed meanwhile is refused.
        unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) };
    }
}

/// The program that `command` starts gets the three standard descriptors and no other, whatever a library has opened
/// meanwhile.
pub fn pass_nothing_on(command: &mut Command) {
    // SAFETY: between fork and exec only a system call is made.
    unsafe {
        command.pre_exec(|| {
            // Without it `pass_nothing_on_at_exec` has done what can be done.
            close_at_exec();
            Ok(())
        });
    }
}

/// Whatever `command` starts has these capabilities at most, however it gains them: by being root's, or by what it executes.
/// Which it has is another question. To be said before `become_user`.
pub fn keep_at_most(command: &mut Command, kept: CapabilitySet) {
    // SAFETY: between fork and exec only system calls are made.
    unsafe {
        command.pre_exec(move || {
            for n in 0..u64::BITS {
                let number = libc::c_ulong::from(n);
                // SAFETY: no pointers are passed.
                match libc::prctl(libc::PR_CAPBSET_READ, number) {
                    // The kernel knows no more of them.
                    ..0 => break,
                    0 => continue,
                    _ => {}
                }
                // SAFETY: no pointers are passed.
                if kept.bits() >> n & 1 == 0 && libc::prctl(libc::PR_CAPBSET_DROP, number) != 0 {
                    return Err(io::Error::last_os_error());
                }
            }
            let sets = rustix::thread::capabilities(None)?;
            let inherits_none = CapabilitySets {
                inheritable: CapabilitySet::empty(),
                ..sets
            };
            Ok(rustix::thread::set_capabilities(None, inherits_none)?)
        });
    }
}

/// Marks all but the standard descriptors; `false`: the kernel cannot.
fn close_at_exec() -> bool {
    let (first, last) = (3 as libc::c_uint, libc::c_uint::MAX);
    // SAFETY: it takes three integers, and closes nothing now.
    unsafe { libc::syscall(libc::SYS_close_range, first, last, libc::CLOSE_RANGE_CLOEXEC) == 0 }
}

/// A command that runs the program `path`, also where the way to it is closed to whom it will run as; not a script. Errors:
/// there is none.
pub fn by_descriptor(path: &Path) -> io::Result<Command> {
    let held = rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    let mut command = Command::new(format!("/proc/self/fd/{}", held.as_raw_fd()));
    command.arg0(path);
    // It is open until the program is started.
    // SAFETY: between fork and exec nothing is done.
    unsafe {
        command.pre_exec(move || {
            let _ = &held;
            Ok(())
        });
    }
    Ok(command)
}

/// Processes that lose their parent below this one become its children.
pub fn adopt_orphans() -> io::Result<()> {
    Ok(set_child_subreaper(Some(getpid()))?)
}

/// The signals that ask a program to end do nothing to this process. What it starts is asked as ever.
pub fn do_not_listen() -> io::Result<()> {
    extern "C" fn nothing(_: libc::c_int) {}
    for signal in [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT, libc::SIGTERM] {
        // A handler and not SIG_IGN, which a program that is started would inherit.
        // SAFETY: `action` is a plain struct, valid when zeroed, and lives until `sigaction` has copied it; the handler does
        // nothing, which is safe at any moment.
        let failed = unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = nothing as *const () as libc::sighandler_t;
            action.sa_flags = libc::SA_RESTART;
            libc::sigaction(signal, &raw const action, std::ptr::null_mut()) != 0
        };
        if failed {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Sends a signal to process `pid` if `is_it` says so, which is asked while the number can be no other's. The answer of
/// `is_it`; `false` as well if there is none.
pub fn signal_if(pid: i32, signal: Signal, is_it: impl FnOnce() -> bool) -> bool {
    let process = rustix::process::Pid::from_raw(pid);
    let Some(held) = process.and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok()) else {
        return false;
    };
    // An error says that it has just ended.
    let is_it = is_it();
    if is_it {
        let _ = pidfd_send_signal(&held, signal);
    }
    is_it
}
