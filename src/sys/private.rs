//! A process's own view of the network and of a few files: made by the process itself, and entered by others. Not here: what
//! such a network has (`rtnetlink`, `vips`).

#![allow(unsafe_code, reason = "what runs between fork and exec is unsafe to say")]

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat2};
use rustix::io::Errno;
use rustix::process::fchdir;
use rustix::thread::{CapabilitySet, LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe};

use super::entrances;
use super::process::at_directory;
use super::rtnetlink::RtNetlink;
use super::view::mount;

/// The names of those capabilities that this thread does not have, of the ones that it takes to give processes a view of their
/// own, to enter it (mounts: CAP_SYS_CHROOT), and to serve in it.
pub fn missing_capabilities() -> Vec<&'static str> {
    let mut missing = entrances::missing_capabilities();
    if !has(CapabilitySet::SYS_CHROOT) {
        missing.push("CAP_SYS_CHROOT");
    }
    missing
}

/// The same of those that it takes to give processes a view of files of their own, and to enter it.
pub fn missing_for_views() -> Vec<&'static str> {
    missing(&[
        (NEEDED_FOR_VIEWS[0], CapabilitySet::SYS_ADMIN),
        (NEEDED_FOR_VIEWS[1], CapabilitySet::SYS_CHROOT),
    ])
}

/// What `missing_for_views` asks for.
pub const NEEDED_FOR_VIEWS: [&str; 2] = ["CAP_SYS_ADMIN", "CAP_SYS_CHROOT"];

/// The same of those that it takes to run programs as other users, which cannot gain more than they are to.
pub fn missing_for_users() -> Vec<&'static str> {
    missing(&[
        ("CAP_SETUID", CapabilitySet::SETUID),
        ("CAP_SETGID", CapabilitySet::SETGID),
        ("CAP_SETPCAP", CapabilitySet::SETPCAP),
        ("CAP_CHOWN", CapabilitySet::CHOWN),
        ("CAP_FOWNER", CapabilitySet::FOWNER),
        ("CAP_DAC_OVERRIDE", CapabilitySet::DAC_OVERRIDE),
    ])
}

fn missing(wanted: &[(&'static str, CapabilitySet)]) -> Vec<&'static str> {
    let absent = wanted.iter().filter(|(_, capability)| !has(*capability));
    absent.map(|(name, _)| *name).collect()
}

fn has(capability: CapabilitySet) -> bool {
    rustix::thread::capabilities(None).is_ok_and(|sets| sets.effective.contains(capability))
}

/// Gives this process, which must have one thread, mounts of its own: what is mounted here is nobody else's, what others mount
/// is seen here. Errors: the privilege is missing (CAP_SYS_ADMIN).
pub fn leave_mounts() -> io::Result<()> {
    // SAFETY: this process has one thread, as the caller says, and shares its descriptors with nobody.
    unsafe { unshare_unsafe(UnshareFlags::NEWNS)? };
    mount(None, "/".as_ref(), None, libc::MS_REC | libc::MS_SLAVE, "")
}

/// Gives this process, which must have one thread, a network with nothing in it but loopback, which is up and has `address`.
/// Any user may bind any port there. Errors: the privilege is missing (CAP_SYS_ADMIN).
pub fn leave_network(address: IpAddr) -> io::Result<()> {
    // SAFETY: as above.
    unsafe { unshare_unsafe(UnshareFlags::NEWNET)? };
    let mut routing = RtNetlink::open()?;
    routing.loopback_up()?;
    routing.add_loopback_address(address)?;
    // Where /proc may not be written to, root alone has the lower ports.
    let _ = std::fs::write("/proc/sys/net/ipv4/ip_unprivileged_port_start", "0");
    Ok(())
}

/// Has `at`, which must be there, read as `file` in the mounts of this process. A link is followed.
pub fn show_instead(file: &Path, at: &Path) -> io::Result<()> {
    mount(Some(file), &std::fs::canonicalize(at)?, None, libc::MS_BIND, "")
}

/// Has the program that `command` starts run with the network and the mounts of process `pid`. To be said before
/// `process::become_user`. Errors: there is no such process.
pub fn enter(command: &mut Command, pid: i32) -> io::Result<()> {
    let open = |kind: &str| File::open(format!("/proc/{pid}/ns/{kind}"));
    let (net, mnt) = (open("net")?, open("mnt")?);
    let enter = move || {
        move_into_link_name_space(net.as_fd(), Some(LinkNameSpaceType::Network))?;
        move_into_link_name_space(mnt.as_fd(), Some(LinkNameSpaceType::Mount))?;
        Ok(())
    };
    // SAFETY: between fork and exec only system calls are made, on what was allocated before; the child has one thread.
    unsafe { command.pre_exec(enter) };
    Ok(())
}

/// Has the program that `command` starts work in the directory `dir`, as whoever it is by then comes there: to be said after `enter`,
/// and after `process::become_user` where the way there is not this program's own. Links of the kernel's own, such as /proc/1/root, which lead to root what nobody else may
/// follow, are not followed. `process::step_of` tells an error of this step.
pub fn work_in(command: &mut Command, dir: &Path) -> io::Result<()> {
    let dir = CString::new(dir.as_os_str().as_bytes()).map_err(io::Error::other)?;
    let enter = move || {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let come = || match openat2(CWD, &*dir, flags, Mode::empty(), ResolveFlags::NO_MAGICLINKS) {
            Ok(found) => fchdir(found),
            // Kernels before 5.6, and sandboxes that do not know it.
            Err(Errno::NOSYS | Errno::PERM) => rustix::process::chdir(&*dir),
            Err(error) => Err(error),
        };
        come().map_err(at_directory)
    };
    // SAFETY: between fork and exec only system calls are made, on what was allocated before.
    unsafe { command.pre_exec(enter) };
    Ok(())
}

/// Mounts a directory over another for the calling thread alone.
#[cfg(test)]
pub(super) fn mount_in_this_thread(dir: &Path, at: &Path) -> io::Result<()> {
    // SAFETY: only the view of files of this thread changes, and descriptors are shared as before.
    unsafe { unshare_unsafe(UnshareFlags::NEWNS)? };
    mount(None, "/".as_ref(), None, libc::MS_REC | libc::MS_SLAVE, "")?;
    mount(Some(dir), at, None, libc::MS_BIND, "")
}
