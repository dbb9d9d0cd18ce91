//! Services' addresses on the node itself. One group of listening sockets, one socket for each worker, takes the connections to
//! all of them: a BPF program picks it by address and port, and nothing is bound to those ports, which any program of the node
//! may have. Not here: the program (`sys::sk_lookup`), and addresses inside tasks (`within`).

use std::collections::HashSet;
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr, SocketAddrV4, TcpListener, UdpSocket};
use std::os::fd::AsFd;
use std::str::FromStr;

use ipnet::Ipv4Net;

use crate::routing::Listen;
use crate::sys::inet_diag::InetDiag;
use crate::sys::sk_lookup::{SkLookupError, VipLookup};

/// The key `vips`: how VIPs are answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum VipMode {
    /// Without a bound port where the privileges are there, otherwise not at all.
    #[default]
    Auto,
    /// By listeners bound to each address and port. No other program can have such a port of all addresses then.
    Bind,
    Off,
}

impl FromStr for VipMode {
    type Err = ();

    fn from_str(text: &str) -> Result<VipMode, ()> {
        match text {
            "auto" => Ok(VipMode::Auto),
            "bind" => Ok(VipMode::Bind),
            "off" => Ok(VipMode::Off),
            _ => Err(()),
        }
    }
}

/// How VIPs are answered on this node.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum VipState {
    /// No service has one yet.
    #[default]
    Unused,
    /// Without a bound port.
    Answered,
    /// By a listener for each address and port.
    Bound,
    /// Not at all. In words: why.
    Off(String),
}

impl fmt::Display for VipState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            VipState::Unused => f.write_str("unused"),
            VipState::Answered => f.write_str("answered"),
            VipState::Bound => f.write_str("bound"),
            VipState::Off(why) => f.write_str(why),
        }
    }
}

/// What takes connections to VIPs.
pub(super) struct Vips {
    network: Ipv4Net,
    lookup: Option<VipLookup>,
    taken: HashSet<SocketAddrV4>,
}

impl Vips {
    /// Takes nothing yet.
    pub(super) fn new(network: Ipv4Net) -> Vips {
        Vips {
            network,
            lookup: None,
            taken: HashSet::new(),
        }
    }

    /// What is taken from now on comes to `socket` and those that share its port. Errors: as `VipLookup::attach`.
    pub(super) fn begin(&mut self, socket: &TcpListener) -> Result<(), SkLookupError> {
        self.lookup = Some(VipLookup::attach(socket.as_fd(), self.network)?);
        Ok(())
    }

    pub(super) fn has_begun(&self) -> bool {
        self.lookup.is_some()
    }

    /// Takes connections to `listen`, unless it is among `others`. Errors: in words.
    pub(super) fn take(&mut self, listen: Listen, others: &HashSet<SocketAddrV4>) -> Result<(), String> {
        let (Some(lookup), Some(at)) = (&self.lookup, v4(listen)) else {
            return Err(format!("expected an address of {}", self.network));
        };
        if others.contains(&at) {
            return Err("in use by another program".to_owned());
        }
        // Connections to an address that is not this node's never come here.
        let is_here = at.ip().is_loopback() || UdpSocket::bind((*at.ip(), 0)).is_ok();
        if !is_here || !self.network.contains(at.ip()) {
            return Err("this node has no such address".to_owned());
        }
        lookup.take(at).map_err(|error| match error.raw_os_error() {
            Some(libc::E2BIG) => "too many VIPs and ports of them are answered already".to_owned(),
            _ => error.to_string(),
        })?;
        self.taken.insert(at);
        Ok(())
    }

    /// Whether it was taken.
    pub(super) fn pass(&mut self, listen: Listen) -> bool {
        let Some(at) = v4(listen).filter(|at| self.taken.remove(at)) else {
            return false;
        };
        if let Some(Err(error)) = self.lookup.as_ref().map(|lookup| lookup.pass(at)) {
            tracing::warn!(%listen, %error, "given up, but its connections still come here");
        }
        true
    }

    /// Where sockets of other programs than `ours` (their inodes) listen within the network, each bound to its one address.
    /// What cannot be known is left out.
    pub(super) fn others(&self, is_ours: impl Fn(u64) -> bool) -> HashSet<SocketAddrV4> {
        let listeners = InetDiag::open().and_then(|mut diag| diag.listeners(None));
        let found = listeners.unwrap_or_default().into_iter().filter_map(|listener| {
            let IpAddr::V4(ip) = listener.addr.ip().to_canonical() else {
                return None;
            };
            let is_other = self.network.contains(&ip) && !is_ours(listener.inode.into());
            is_other.then(|| SocketAddrV4::new(ip, listener.addr.port()))
        });
        found.collect()
    }
}

fn v4(listen: Listen) -> Option<SocketAddrV4> {
    match SocketAddr::new(listen.ip?, listen.port) {
        SocketAddr::V4(at) => Some(at),
        SocketAddr::V6(_) => None,
    }
}

/// Whether this kernel, or what this process may, rules it out for good; otherwise it may go another time.
pub(super) fn is_final(error: &SkLookupError) -> bool {
    let source = std::error::Error::source(error).and_then(|source| source.downcast_ref::<io::Error>());
    source.is_none_or(|source| {
        let is_of_kernel = matches!(
            source.raw_os_error(),
            Some(libc::EINVAL | libc::ENOSYS | libc::EOPNOTSUPP)
        );
        is_of_kernel || source.kind() == io::ErrorKind::PermissionDenied
    })
}
