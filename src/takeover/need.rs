//! What a port takes to be answered by us: decided from who listens on it and whether rules send it elsewhere. Pure. Not
//! here: how either is found out.

use std::fmt;
use std::net::SocketAddr;

use super::Mode;

/// What a port takes to be answered by us.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TakeoverNeed {
    /// A listener alone will do.
    None,
    /// A listener on the port, and `redirect`.
    Redirect,
    /// Docker listens on it: a listener elsewhere, `assign` and `redirect`.
    RedirectAndAssign,
    /// It cannot be taken: another program listens on it.
    HeldBy {
        program: String,
        pid: u32,
        addr: SocketAddr,
    },
    /// It cannot be taken: somebody listens on it whom we cannot see, and no rule of Docker's names it.
    HeldByUnseen { addr: SocketAddr },
}

/// Who has a listening socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    pub addr: SocketAddr,
    /// Pid and name; `None` when /proc does not show the process.
    pub program: Option<(u32, String)>,
}

/// Whether Docker's rules send a port elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum IsTranslated {
    Yes,
    No,
    /// There are rules that cannot be read.
    Unknown,
}

impl TakeoverNeed {
    /// Whether the port is another program's and stays so.
    pub fn is_refused(&self) -> bool {
        matches!(self, TakeoverNeed::HeldBy { .. } | TakeoverNeed::HeldByUnseen { .. })
    }
}

/// Reads as what is said of a port.
impl fmt::Display for TakeoverNeed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TakeoverNeed::None => f.write_str("is free"),
            TakeoverNeed::Redirect => f.write_str("is sent elsewhere by Docker's rules"),
            TakeoverNeed::RedirectAndAssign => f.write_str("is held by Docker"),
            TakeoverNeed::HeldBy { program, pid, addr } => {
                write!(f, "is held by another program: {program} (pid {pid}) listens on {addr}")
            }
            TakeoverNeed::HeldByUnseen { addr } => write!(
                f,
                "is held by a process that cannot be seen from here: somebody listens on {addr}; expected dockerd; run the \
                 container with `--pid host` and CAP_SYS_PTRACE so that it can be told"
            ),
        }
    }
}

/// `holders`: who listens, ourselves left out. `program`: whose sockets may be passed over.
///
/// A holder whom we cannot see may be passed over where Docker's rules name the port: whoever it is, no connection to this
/// node reaches him. Inside of a container dockerd is never seen, unless it shares the host's processes.
pub(super) fn decide(mode: Mode, is_translated: IsTranslated, holders: &[Holder], program: &str) -> TakeoverNeed {
    if mode == Mode::Off {
        return TakeoverNeed::None;
    }
    let mut unseen = None;
    for holder in holders {
        match &holder.program {
            Some((_, name)) if name == program => {}
            Some((pid, name)) => {
                return TakeoverNeed::HeldBy {
                    program: name.clone(),
                    pid: *pid,
                    addr: holder.addr,
                };
            }
            None => unseen = Some(holder.addr),
        }
    }
    match unseen {
        Some(addr) if is_translated != IsTranslated::Yes => TakeoverNeed::HeldByUnseen { addr },
        Some(_) => TakeoverNeed::RedirectAndAssign,
        None if !holders.is_empty() => TakeoverNeed::RedirectAndAssign,
        None if mode == Mode::On || is_translated != IsTranslated::No => TakeoverNeed::Redirect,
        None => TakeoverNeed::None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holder(name: Option<&str>) -> Holder {
        Holder {
            addr: "0.0.0.0:80".parse().unwrap(),
            program: name.map(|name| (7, name.to_owned())),
        }
    }

    #[test]
    fn a_port_takes_what_its_holders_and_rules_ask_for() {
        use IsTranslated::{No, Unknown, Yes};
        let docker = [holder(Some("dockerd"))];
        let both = [holder(Some("dockerd")), holder(Some("nginx"))];
        let unseen = [holder(Some("dockerd")), holder(None)];
        let said = |mode, is_translated, holders: &[Holder]| {
            let need = decide(mode, is_translated, holders, "dockerd");
            need.to_string().split([':', ';']).next().unwrap().to_owned()
        };
        for (mode, is_translated, holders, expected) in [
            (Mode::Auto, No, &[][..], "is free"),
            (Mode::Auto, Yes, &[], "is sent elsewhere by Docker's rules"),
            (Mode::Auto, Unknown, &[], "is sent elsewhere by Docker's rules"),
            (Mode::On, No, &[], "is sent elsewhere by Docker's rules"),
            (Mode::Off, Yes, &docker, "is free"),
            (Mode::Auto, No, &docker, "is held by Docker"),
            (Mode::On, Yes, &docker, "is held by Docker"),
            (Mode::Auto, Yes, &both, "is held by another program"),
            (
                Mode::On,
                No,
                &unseen,
                "is held by a process that cannot be seen from here",
            ),
        ] {
            assert_eq!(
                said(mode, is_translated, holders),
                expected,
                "{mode} {is_translated:?} {holders:?}"
            );
        }
        let text = decide(Mode::Auto, No, &both, "dockerd").to_string();
        assert!(text.contains("nginx (pid 7)"), "{text}");
        assert!(said(Mode::Auto, No, &unseen).len() < decide(Mode::Auto, No, &unseen, "dockerd").to_string().len());
    }
}
