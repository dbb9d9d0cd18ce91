//! Addresses of services inside a task's network namespace: connections to any port of theirs come to one listener there;
//! and sockets to answer DNS by, at an address there. Not here: going in (`entrances`), who answers, and with what.
//!
//! A task's costs: three descriptors for `Vips` (listener, BPF link, trie of addresses), one for each `open_dns`. Listener and
//! DNS socket keep the namespace alive; let go of them when the task ends (`netns::process_ended`, `netns::Mounts`).

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::AsFd;

use ipnet::IpNet;
use rustix::net::sockopt::{set_ip_freebind, set_ipv6_freebind, set_socket_reuseport};
use socket2::{Domain, Protocol, SockRef, Socket, Type};

use super::entrances::{EnterError, Entrances};
use super::netns::Netns;
use super::rtnetlink::{LOCAL_TABLE, LocalRoute, RtNetlink};
use super::sk_lookup::{AddressLookup, SkLookupError, Verdict};
use super::socket::{BACKLOG, Liveness, UNWANTED_PORTS, set_stream_options};

/// The addresses that the listener of a namespace answers.
#[derive(Debug)]
pub struct Vips {
    netns: Netns,
    lookup: AddressLookup,
    verdicts: BTreeMap<IpNet, Verdict>,
    /// As they were made last; `None` before that.
    routes: Option<Vec<LocalRoute>>,
}

/// What is local to a namespace besides its own addresses.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LocalAddresses {
    /// Those that the listener answers, on any TCP port.
    pub taken: Vec<IpNet>,
    /// Those that the listener answers on TCP port 53 alone: other ports of theirs are whoever's has them.
    pub names: Vec<IpAddr>,
    /// Those that nobody answers, unless a longer prefix of the other lists says otherwise.
    pub refused: Vec<IpNet>,
    /// Those that are the namespace's own to answer, though a shorter prefix is taken or refused.
    pub passed: Vec<IpNet>,
    /// What leads to the listener or to nobody as a whole: what is taken within needs no route of its own.
    pub routed: Vec<IpNet>,
    /// Those of sockets that are bound to them, such as that of `open_dns`. What is within `taken` is taken.
    pub bound: Vec<IpAddr>,
    /// Own addresses of the namespace: who connects from inside calls from the one that has the destination in its network, or
    /// else from the first of the same family. With none, IPv4 calls from the very address that it connects to, and IPv6 from
    /// one that the kernel picks.
    pub sources: Vec<IpNet>,
}

impl LocalAddresses {
    fn verdicts(&self) -> BTreeMap<IpNet, Verdict> {
        let all = [
            (&self.refused, Verdict::Refuse),
            (&self.taken, Verdict::Take),
            (&self.passed, Verdict::Pass),
        ];
        let each = all
            .into_iter()
            .flat_map(|(nets, verdict)| nets.iter().map(move |net| (net.trunc(), verdict)));
        let names = self.names.iter().map(|ip| (IpNet::from(*ip), Verdict::TakeNames));
        each.chain(names).collect()
    }

    /// The routes to what is local, each once.
    fn routes(&self) -> Vec<LocalRoute> {
        let is_routed = |net: &IpNet| self.routed.iter().any(|routed| routed.contains(net));
        let taken = self.taken.iter().filter(|net| !is_routed(net)).map(IpNet::trunc);
        let bound = self.bound.iter().map(|ip| IpNet::from(*ip));
        let to: BTreeSet<IpNet> = self.routed.iter().map(IpNet::trunc).chain(taken).chain(bound).collect();
        let source = |to: &IpNet| {
            let beside = self.sources.iter().find(|own| own.contains(&to.addr()));
            let same = |own: &&IpNet| own.addr().is_ipv4() == to.addr().is_ipv4();
            beside.or_else(|| self.sources.iter().find(same)).map(IpNet::addr)
        };
        let route = |to: IpNet| LocalRoute {
            to,
            table: LOCAL_TABLE,
            source: source(&to),
        };
        to.into_iter().map(route).collect()
    }
}

#[derive(Debug, thiserror::Error)]
pub enum VipError {
    #[error(transparent)]
    Enter(#[from] EnterError),
    #[error("listen for services' addresses inside a network namespace")]
    Listen(#[source] io::Error),
    #[error(transparent)]
    Lookup(#[from] SkLookupError),
    #[error("ask for the local routes of a network namespace")]
    Routes(#[source] io::Error),
    #[error("the local route to {to} in a network namespace")]
    Route {
        to: IpNet,
        #[source]
        err: io::Error,
    },
    #[error("the address {address} in a network namespace")]
    Address {
        address: IpAddr,
        #[source]
        err: io::Error,
    },
    #[error("take or give back the connections to {to}")]
    Take {
        to: IpNet,
        #[source]
        err: io::Error,
    },
    #[error("bind the socket for DNS to {at} inside a network namespace")]
    Dns {
        at: SocketAddr,
        #[source]
        err: io::Error,
    },
}

impl Vips {
    /// Listens in `netns`, for no address yet. What accepted connections have is `liveness`.
    ///
    /// The listener does not wait in `accept`. An accepted connection's local address is where the program wanted to go, its
    /// peer's the program's own. One whose local address is no service's has found the listener itself, and is nobody's.
    ///
    /// Errors: the namespace is gone; the privileges of `sk_lookup::missing_capabilities`; before Linux 5.17.
    pub async fn open(
        entrances: &Entrances,
        netns: &Netns,
        liveness: &Liveness,
    ) -> Result<(Vips, TcpListener), VipError> {
        let liveness = liveness.clone();
        let make = move || {
            let listener = listen(&liveness).map_err(VipError::Listen)?;
            let lookup = AddressLookup::attach(listener.as_fd())?;
            Ok::<_, VipError>((listener, lookup))
        };
        let (listener, lookup) = entrances.run(netns, make).await??;
        let vips = Vips {
            netns: netns.clone(),
            lookup,
            verdicts: BTreeMap::new(),
            routes: None,
        };
        Ok((vips, listener))
    }

    /// Replaces what is local, also what an instance before this one left. Connections that stand are not touched. The
    /// namespace is visited only where routes differ.
    ///
    /// When it fails some of it is done; the next call begins with what is there.
    pub async fn set(&mut self, entrances: &Entrances, local: &LocalAddresses) -> Result<(), VipError> {
        let verdicts = local.verdicts();
        // First who answers, then the way there; and the other way round: no other program is asked meanwhile.
        for (to, verdict) in &verdicts {
            if self.verdicts.get(to) != Some(verdict) {
                let failed = |err| VipError::Take { to: *to, err };
                self.lookup.set(*to, *verdict).map_err(failed)?;
                self.verdicts.insert(*to, *verdict);
            }
        }
        let routes = local.routes();
        if self.routes.as_ref() != Some(&routes) {
            self.routes = None;
            let wanted = routes.clone();
            entrances.run(&self.netns, move || replace_routes(&wanted)).await??;
            self.routes = Some(routes);
        }
        let gone: Vec<IpNet> = self
            .verdicts
            .keys()
            .filter(|to| !verdicts.contains_key(to))
            .copied()
            .collect();
        for to in gone {
            self.lookup.remove(to).map_err(|err| VipError::Take { to, err })?;
            self.verdicts.remove(&to);
        }
        Ok(())
    }
}

/// Gives loopback these addresses, in the network namespace of the calling thread: give it to `Entrances::run`. Those that it
/// has stay.
pub fn add_addresses(addresses: Vec<IpAddr>) -> Result<(), VipError> {
    let mut routing = RtNetlink::open().map_err(VipError::Routes)?;
    routing.loopback_up().map_err(VipError::Routes)?;
    for address in addresses {
        match routing.add_loopback_address(address) {
            Err(err) if err.kind() != io::ErrorKind::AlreadyExists => return Err(VipError::Address { address, err }),
            _ => {}
        }
    }
    Ok(())
}

/// Takes away all local routes that `Vips::set` made in the network namespace of the calling thread: give it to
/// `Entrances::run`.
pub fn remove_routes() -> Result<(), VipError> {
    replace_routes(&[])
}

fn replace_routes(wanted: &[LocalRoute]) -> Result<(), VipError> {
    let mut routing = RtNetlink::open().map_err(VipError::Routes)?;
    routing.loopback_up().map_err(VipError::Routes)?;
    let there = routing.local_routes(LOCAL_TABLE).map_err(VipError::Routes)?;
    for route in wanted.iter().filter(|route| !there.contains(route)) {
        let failed = |err| VipError::Route { to: route.to, err };
        routing.set_local_route(route).map_err(failed)?;
    }
    // One to the same place has been replaced above.
    let is_wanted = |to: IpNet| wanted.iter().any(|route| route.to == to);
    for route in there.iter().filter(|route| !is_wanted(route.to)) {
        let failed = |err| VipError::Route { to: route.to, err };
        routing.remove_local_route(route).map_err(failed)?;
    }
    Ok(())
}

/// A listener that is reached by assignment only, for IPv4 and IPv6 (IPv4 alone where the kernel has no IPv6). On loopback,
/// and on a port that no program wants: one of those that the kernel picks might be wanted by a program of the task.
fn listen(liveness: &Liveness) -> io::Result<TcpListener> {
    let try_port = |port| {
        let new = |addr: SocketAddr| -> io::Result<Socket> {
            let kind = Type::STREAM.nonblocking().cloexec();
            let socket = Socket::new(Domain::for_address(addr), kind, Some(Protocol::TCP))?;
            if addr.is_ipv6() {
                socket.set_only_v6(false)?;
            }
            set_stream_options(&SockRef::from(&socket), liveness)?;
            socket.bind(&addr.into())?;
            Ok(socket)
        };
        // 127.0.0.1 as IPv6 writes it: only so it takes both.
        let loopback = Ipv4Addr::LOCALHOST;
        new((loopback.to_ipv6_mapped(), port).into()).or_else(|_| new((loopback, port).into()))
    };
    let unwanted = UNWANTED_PORTS.into_iter().find_map(|port| try_port(port).ok());
    let socket = unwanted.map_or_else(|| try_port(0), Ok)?;
    // What it accepts has the port that was asked for, and inherits this: a program inside may still listen there.
    socket.set_reuse_address(true)?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// A socket for datagrams on port 53 of an address inside a namespace. It does not wait. Streams to it are taken as any other
/// connection is. The address need not be local yet (`LocalAddresses::bound`); one of 127.0.0.0/8 always is.
///
/// While it is there no program inside can have that port of all addresses for UDP; of its own address it can.
/// Errors: the namespace is gone; a program there has the port.
pub async fn open_dns(entrances: &Entrances, netns: &Netns, ip: IpAddr) -> Result<UdpSocket, VipError> {
    let at = SocketAddr::new(ip, DNS_PORT);
    let bound = entrances.run(netns, move || bind_early(at)).await?;
    bound.map(UdpSocket::from).map_err(|err| VipError::Dns { at, err })
}

/// Binds to an address that may become local later.
fn bind_early(at: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(
        Domain::for_address(at),
        Type::DGRAM.nonblocking().cloexec(),
        Some(Protocol::UDP),
    )?;
    match at {
        SocketAddr::V4(_) => set_ip_freebind(&socket, true)?,
        SocketAddr::V6(_) => {
            set_ipv6_freebind(&socket, true)?;
            socket.set_only_v6(true)?;
        }
    }
    // With another instance of this program, which is about to end.
    set_socket_reuseport(&socket, true)?;
    socket.bind(&at.into())?;
    Ok(socket)
}

const DNS_PORT: u16 = 53;
