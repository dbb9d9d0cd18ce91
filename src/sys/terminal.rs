//! Terminals that programs are given: each has an end for the program and one for whoever shows it. Not here: what runs at them,
//! and how it comes to lead its session there (`process`).

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{Mode, Uid, fchmod, fchown};
use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

/// A new one: the end of whoever shows it, which does not block, and the program's. `owner`: whose it is, if not this program's
/// user; only root may say.
pub fn open(rows: u16, columns: u16, owner: Option<u32>) -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let shown = openpt(flags)?;
    grantpt(&shown)?;
    unlockpt(&shown)?;
    resize(&shown, rows, columns)?;
    // By the other end, and not by its name, which may be another's where mounts differ.
    let program = ioctl_tiocgptpeer(&shown, flags)?;
    if let Some(uid) = owner {
        fchown(&program, Some(Uid::from_raw(uid)), None)?;
        fchmod(&program, Mode::RUSR | Mode::WUSR | Mode::WGRP)?;
    }
    rustix::io::ioctl_fionbio(&shown, true)?;
    Ok((shown, program))
}

/// Tells what runs there that so much is shown of it (SIGWINCH). `terminal`: either end.
pub fn resize(terminal: impl AsFd, rows: u16, columns: u16) -> io::Result<()> {
    let size = Winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    Ok(tcsetwinsize(terminal, size)?)
}

/// What ends a program's input at a terminal, unless the program has asked for other ways (Ctrl-D).
pub const END_OF_INPUT: u8 = 4;

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read, Write};

    use super::*;

    #[test]
    fn what_is_said_at_one_end_is_read_at_the_other() {
        let (shown, program) = open(24, 80, None).unwrap();
        resize(&shown, 7, 50).unwrap();
        let size = rustix::termios::tcgetwinsize(&program).unwrap();
        assert_eq!((size.ws_row, size.ws_col), (7, 50));
        let (mut shown, mut program) = (File::from(shown), File::from(program));
        shown.write_all(b"typed\n").unwrap();
        let mut line = [0; 64];
        assert_eq!(program.read(&mut line).unwrap(), 6);
        // A line of nothing but the end is the end.
        shown.write_all(&[END_OF_INPUT]).unwrap();
        assert_eq!(program.read(&mut line).unwrap(), 0);
        assert!(rustix::termios::isatty(&program));
    }
}
