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

use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe};

use super::entrances;
use super::rtnetlink::RtNetlink;

/// The names of those capabilities that this thread does not have, of the ones that it takes to give processes a view of their
/// own, to enter it (mounts: CAP_SYS_CHROOT), and to serve in it.
pub fn missing_capabilities() -> Vec<&'static str> {
    let mut missing = entrances::missing_capabilities();
    let may_enter = rustix::thread::capabilities(None)
        .is_ok_and(|sets| sets.effective.contains(rustix::thread::CapabilitySet::SYS_CHROOT));
    if !may_enter {
        missing.push("CAP_SYS_CHROOT");
    }
    missing
}

/// Gives this process, which must have one thread, a network with nothing in it but loopback, which is up and has `address`,
/// and mounts of its own. Any user may bind any port there. Errors: the privilege is missing (CAP_SYS_ADMIN).
pub fn leave_network(address: IpAddr) -> io::Result<()> {
    // SAFETY: this process has one thread, as the caller says, and shares its descriptors with nobody.
    unsafe { unshare_unsafe(UnshareFlags::NEWNET | UnshareFlags::NEWNS)? };
    // What is mounted here is nobody else's; what others mount is seen here.
    mount(None, "/".as_ref(), libc::MS_REC | libc::MS_SLAVE)?;
    let mut routing = RtNetlink::open()?;
    routing.loopback_up()?;
    routing.add_loopback_address(address)?;
    // Where /proc may not be written to, root alone has the lower ports.
    let _ = std::fs::write("/proc/sys/net/ipv4/ip_unprivileged_port_start", "0");
    Ok(())
}

/// Has `at`, which must be there, read as `file` in the mounts of this process. A link is followed.
pub fn show_instead(file: &Path, at: &Path) -> io::Result<()> {
    mount(Some(file), &std::fs::canonicalize(at)?, libc::MS_BIND)
}

fn mount(source: Option<&Path>, target: &Path, flags: libc::c_ulong) -> io::Result<()> {
    let text = |path: &Path| CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other);
    let source = source.map(text).transpose()?;
    let target = text(target)?;
    let source = source.as_ref().map_or(std::ptr::null(), |source| source.as_ptr());
    // SAFETY: the texts end with a zero and live until the call has returned; the other pointers may be null.
    let result = unsafe { libc::mount(source, target.as_ptr(), std::ptr::null(), flags, std::ptr::null()) };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Has the program that `command` starts run with the network and the mounts of process `pid`, in the directory `dir` there.
/// To be said before `process::become_user`. Errors: there is no such process.
pub fn enter(command: &mut Command, pid: i32, dir: &Path) -> io::Result<()> {
    let open = |kind: &str| File::open(format!("/proc/{pid}/ns/{kind}"));
    let (net, mnt) = (open("net")?, open("mnt")?);
    let dir = CString::new(dir.as_os_str().as_bytes()).map_err(io::Error::other)?;
    let enter = move || {
        move_into_link_name_space(net.as_fd(), Some(LinkNameSpaceType::Network))?;
        move_into_link_name_space(mnt.as_fd(), Some(LinkNameSpaceType::Mount))?;
        rustix::process::chdir(&*dir)?;
        Ok(())
    };
    // SAFETY: between fork and exec only system calls are made, on what was allocated before; the child has one thread.
    unsafe { command.pre_exec(enter) };
    Ok(())
}

/// Mounts a directory over another for the calling thread alone.
#[cfg(test)]
pub(super) fn mount_in_this_thread(dir: &Path, at: &Path) -> io::Result<()> {
    // SAFETY: only the view of files of this thread changes, and descriptors are shared as before.
    unsafe { unshare_unsafe(UnshareFlags::NEWNS)? };
    mount(None, "/".as_ref(), libc::MS_REC | libc::MS_SLAVE)?;
    mount(Some(dir), at, libc::MS_BIND)
}
