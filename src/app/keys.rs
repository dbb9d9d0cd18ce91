//! What is typed while the demo runs: a key at a time where that is a terminal.

use std::io::{IsTerminal, stdin};
use std::sync::mpsc;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::getpgrp;
use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcgetpgrp, tcsetattr};

/// The terminal as it was before. Put back when this is dropped.
pub(super) struct Keys {
    before: Option<Termios>,
    /// Tells the thread that reads to end.
    _is_over: mpsc::Sender<()>,
}

impl Keys {
    /// Calls `typed` with each byte, on a thread of its own, until this is dropped or the input ends.
    pub(super) fn listen(mut typed: impl FnMut(u8) + Send + 'static) -> Keys {
        let before = if is_ours() { without_lines() } else { None };
        let (is_over, end) = mpsc::channel();
        std::thread::spawn(move || {
            while let Err(mpsc::TryRecvError::Empty) = end.try_recv() {
                match next() {
                    Next::Byte(byte) => typed(byte),
                    Next::Nothing => {}
                    // What was started from here ends with this thread.
                    Next::End => drop(end.recv()),
                }
            }
        });
        Keys {
            before,
            _is_over: is_over,
        }
    }
}

impl Drop for Keys {
    fn drop(&mut self) {
        if let Some(before) = &self.before {
            // It may be gone, and then nobody misses it.
            let _ = tcsetattr(stdin(), OptionalActions::Now, before);
        }
    }
}

enum Next {
    Byte(u8),
    Nothing,
    End,
}

/// Waits for a moment.
fn next() -> Next {
    let input = stdin();
    let mut ready = [PollFd::new(&input, PollFlags::IN)];
    match poll(&mut ready, Some(&PATIENCE)) {
        Ok(0) | Err(_) => return Next::Nothing,
        Ok(_) => {}
    }
    // What is typed is another program's; to read it would stop this one.
    if input.is_terminal() && !is_ours() {
        std::thread::sleep(Duration::from_millis(200));
        return Next::Nothing;
    }
    let mut byte = [0];
    // Past the library's buffer, which would keep what is typed ahead.
    match rustix::io::read(&input, &mut byte) {
        Ok(1) => Next::Byte(byte[0]),
        Ok(_) | Err(_) => Next::End,
    }
}

/// Whether it is a terminal, and this program is the one that it is for now.
fn is_ours() -> bool {
    stdin().is_terminal() && tcgetpgrp(stdin()).is_ok_and(|group| group == getpgrp())
}

/// Has keys come at once, and not be shown. Ctrl-C means what it does. Returns how it was before.
fn without_lines() -> Option<Termios> {
    let before = tcgetattr(stdin()).ok()?;
    let mut now = before.clone();
    now.local_modes.remove(LocalModes::ICANON | LocalModes::ECHO);
    tcsetattr(stdin(), OptionalActions::Now, &now).ok()?;
    Some(before)
}

const PATIENCE: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 200_000_000,
};
