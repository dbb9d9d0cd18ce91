//! A container's cable to the engine's bridge: the way out of it, and the way to nobody else's container. Not here: how
//! (`sys::bridge_port`), and the networks of the swarm, which have nothing to do with it.

use std::io;
use std::path::Path;

use bollard::models::ContainerInspectResponse;
use ipnet::IpNet;
use tokio::net::UnixStream;

use crate::sys::bridge_port::{self, CableError, Fence};
use crate::sys::entrances::Entrances;
use crate::sys::netns::{Netns, NetnsError};

/// Why a container may reach others by the engine's bridge.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unfenced {
    #[error("its process is not seen: expected anynode to run in the host's PID namespace")]
    Unseen,
    #[error("the engine's process is not seen: expected anynode to run in the host's PID namespace")]
    Engine(#[source] io::Error),
    #[error(transparent)]
    Netns(#[from] NetnsError),
    #[error("start the threads that enter network namespaces")]
    Threads(#[source] io::Error),
    #[error(transparent)]
    Cable(#[from] CableError),
}

/// Has the cable of a container that runs lead to its host and outside alone. One without a cable needs nothing.
pub(super) async fn shut_off(engine: &Path, container: &ContainerInspectResponse) -> Result<(), Unfenced> {
    let pid = container.state.as_ref().and_then(|state| state.pid);
    let pid = pid.and_then(|pid| u32::try_from(pid).ok()).filter(|pid| *pid > 0);
    let inside = Netns::of_process(pid.ok_or(Unfenced::Unseen)?)?;
    let outside = Netns::of_process(listener(engine).await.map_err(Unfenced::Engine)?)?;
    let entrances = Entrances::shared().map_err(Unfenced::Threads)?;
    if inside.id() == outside.id() {
        // It has the host's network.
        return Ok(());
    }
    Ok(bridge_port::shut_off(&entrances, &inside, &outside, fences(container)).await?)
}

/// The process that listens on the engine's socket: the bridge is in its network namespace.
async fn listener(engine: &Path) -> io::Result<u32> {
    let socket = UnixStream::connect(engine).await?;
    let pid = socket.peer_cred()?.pid().and_then(|pid| u32::try_from(pid).ok());
    pid.filter(|pid| *pid > 0).ok_or_else(|| io::ErrorKind::NotFound.into())
}

/// The bridge's addresses, as the engine says them.
fn fences(container: &ContainerInspectResponse) -> Vec<Fence> {
    let networks = container
        .network_settings
        .as_ref()
        .and_then(|settings| settings.networks.as_ref());
    let each = networks.into_iter().flat_map(|networks| networks.values());
    let fence = |ip: &Option<String>, n_bits: Option<i64>, gateway: &Option<String>| {
        let n_bits = u8::try_from(n_bits?).ok()?;
        Some(Fence {
            net: IpNet::new(ip.as_deref()?.parse().ok()?, n_bits).ok()?,
            except: gateway.as_deref()?.parse().ok()?,
        })
    };
    each.flat_map(|network| {
        let v4 = fence(&network.ip_address, network.ip_prefix_len, &network.gateway);
        let v6 = fence(
            &network.global_ipv6_address,
            network.global_ipv6_prefix_len,
            &network.ipv6_gateway,
        );
        v4.into_iter().chain(v6)
    })
    .collect()
}
