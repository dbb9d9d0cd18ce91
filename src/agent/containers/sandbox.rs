//! The container whose network a task's container joins: it is there first, so that what the task reaches from inside is
//! ready before its program runs. Not here: what is made ready (`TaskNetworks`), and the program in it (`pause`).

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Write};
use std::net::{IpAddr, SocketAddr};

use bollard::Docker;
use bollard::errors::Error;
use bollard::models::{ContainerCreateBody, ContainerInspectResponse, HostConfig, HostConfigLogConfig};
use bollard::query_parameters::{
    CreateContainerOptionsBuilder, CreateImageOptionsBuilder, ListContainersOptionsBuilder,
    RemoveContainerOptionsBuilder,
};
use futures_util::TryStreamExt;
use ipnet::IpNet;
use rustix::process::Signal;

use super::{OWNER_LABEL, pause};
use crate::agent::Assignment;
use crate::model::TaskPlace;
use crate::model::swarm::{ATTACHED_LABEL, AttachSpec, Id, SANDBOX_LABEL, TaskAddress, link_names};
use crate::sys::entrances;
use crate::sys::netns::{self, Netns};
use crate::sys::process::signal_if;

/// Whether this program may make networks ready, and knows what holds them.
pub(super) fn is_possible() -> bool {
    let missing = entrances::missing_capabilities();
    if !missing.is_empty() {
        tracing::warn!(
            ?missing,
            "services are not reached by name from inside tasks, which stay on the engine's bridge and reach one another there"
        );
    }
    missing.is_empty() && pause::layer().is_some()
}

/// What becomes a sandbox: that of the task's container which one that joins another's network may not have itself.
/// `None`: the task is on no network of the swarm.
pub(super) fn split(
    assignment: &Assignment,
    owner: &str,
    body: &mut ContainerCreateBody,
) -> Option<ContainerCreateBody> {
    let networks: Vec<&str> = assignment
        .task
        .spec
        .networks
        .iter()
        .flatten()
        .filter_map(|network| network.target.as_deref())
        .collect();
    let host = body.host_config.get_or_insert_default();
    if networks.is_empty() || host.network_mode.is_some() {
        return None;
    }
    let task = &assignment.task;
    let nameservers = host.dns.take().unwrap_or_default();
    let options = host.dns_options.take().unwrap_or_default();
    let (of_network, others) = host
        .sysctls
        .take()
        .unwrap_or_default()
        .into_iter()
        .partition(|(key, _)| key.starts_with("net."));
    host.sysctls = Some(others);
    host.network_mode = Some(format!("container:{}", name(&task.name())));
    Some(body_of(Parts {
        id: &task.id,
        owner,
        networks: networks.join(","),
        addresses: &task.addresses,
        is_internal: task.is_internal(),
        nameservers,
        dns_search: host.dns_search.take(),
        dns_options: options,
        extra_hosts: host.extra_hosts.take(),
        sysctls: of_network,
        hostname: body.hostname.take(),
        domainname: None,
        attached: None,
    }))
}

/// The sandbox of a container that is no task.
pub(super) fn of_attached(spec: &AttachSpec, address: &TaskAddress, owner: &str) -> ContainerCreateBody {
    let some = |text: &String| Some(text.clone()).filter(|text| !text.is_empty());
    body_of(Parts {
        id: &spec.id,
        owner,
        networks: spec.network.to_string(),
        addresses: std::slice::from_ref(address),
        is_internal: address.is_internal,
        nameservers: spec.dns.clone(),
        dns_search: Some(spec.dns_search.clone()),
        dns_options: spec.dns_options.clone(),
        extra_hosts: Some(spec.extra_hosts.clone()),
        sysctls: spec.sysctls.clone().into_iter().collect(),
        hostname: some(&spec.hostname),
        domainname: some(&spec.domainname),
        attached: Some(spec),
    })
}

/// What sandboxes differ by.
struct Parts<'a> {
    /// Of the task, or the other container, whose it is.
    id: &'a Id,
    owner: &'a str,
    /// Their ids, with commas.
    networks: String,
    addresses: &'a [TaskAddress],
    is_internal: bool,
    nameservers: Vec<String>,
    dns_search: Option<Vec<String>>,
    dns_options: Vec<String>,
    extra_hosts: Option<Vec<String>>,
    sysctls: HashMap<String, String>,
    hostname: Option<String>,
    domainname: Option<String>,
    /// It is no task's.
    attached: Option<&'a AttachSpec>,
}

fn body_of(parts: Parts<'_>) -> ContainerCreateBody {
    let addresses = parts.addresses.iter().map(|own| format!("{}/{}", own.addr, own.prefix));
    let addresses = addresses.collect::<Vec<_>>().join(",");
    let nameservers = parts.nameservers.join(",");
    let mut options = parts.dns_options;
    if !options.iter().any(|option| option.starts_with("ndots:")) {
        options.push("ndots:0".to_owned());
    }
    let mut labels = vec![
        (SANDBOX_LABEL, parts.id.as_str()),
        (OWNER_LABEL, parts.owner),
        (NETWORKS_LABEL, &parts.networks),
        (NAMESERVERS_LABEL, &nameservers),
        (ADDRESSES_LABEL, &addresses),
    ];
    if parts.is_internal {
        labels.push((INTERNAL_LABEL, "true"));
    }
    let links = parts.attached.map(|spec| spec.links.join(","));
    if let Some(links) = &links {
        labels.push((ATTACHED_LABEL, ""));
        labels.push((LINKS_LABEL, links));
    }
    let host_config = HostConfig {
        // Without a cable there is no way out, whatever it may do inside.
        network_mode: parts.is_internal.then(|| "none".to_owned()),
        dns: Some(vec![TaskPlace::NAMESERVER.to_string()]),
        dns_search: parts.dns_search,
        dns_options: Some(options),
        extra_hosts: parts.extra_hosts,
        sysctls: Some(parts.sysctls),
        cap_drop: Some(vec!["ALL".to_owned()]),
        security_opt: Some(vec!["no-new-privileges:true".to_owned()]),
        log_config: Some(HostConfigLogConfig {
            typ: Some("none".to_owned()),
            config: None,
        }),
        ..HostConfig::default()
    };
    ContainerCreateBody {
        image: Some(image()),
        hostname: parts.hostname,
        domainname: parts.domainname,
        labels: Some(
            labels
                .into_iter()
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
                .collect(),
        ),
        // It hears nothing else.
        stop_signal: Some("SIGKILL".to_owned()),
        host_config: Some(host_config),
        ..ContainerCreateBody::default()
    }
}

/// Makes the sandbox of a task whose container is `joined`, by whose id it is known unless its service says otherwise.
pub(super) async fn create(
    docker: &Docker,
    task_name: &str,
    joined: &str,
    mut body: ContainerCreateBody,
) -> Result<(), Error> {
    if body.hostname.is_none() {
        body.hostname = Some(joined.chars().take(SHORT_ID).collect());
    }
    match docker.inspect_image(&image()).await {
        Ok(_) => {}
        Err(Error::DockerResponseServerError { status_code: 404, .. }) => import(docker).await?,
        Err(error) => return Err(error),
    }
    let options = CreateContainerOptionsBuilder::default().name(&name(task_name)).build();
    docker.create_container(Some(options), body).await.map(drop)
}

async fn import(docker: &Docker) -> Result<(), Error> {
    let options = CreateImageOptionsBuilder::default()
        .from_src("-")
        .repo(pause::REPOSITORY)
        .tag(pause::TAG)
        .changes(vec![format!("ENTRYPOINT [\"{}\"]", pause::COMMAND)])
        .build();
    let layer = pause::layer().unwrap_or_default();
    let imported = docker.create_image(Some(options), Some(bollard::body_full(layer)), None);
    imported.try_for_each(|_| async { Ok(()) }).await
}

/// The sandbox of a task, if there is one.
pub(super) async fn find(docker: &Docker, owner: &str, task: &Id) -> Result<Option<ContainerInspectResponse>, Error> {
    let filters = HashMap::from([(
        "label",
        vec![format!("{SANDBOX_LABEL}={task}"), format!("{OWNER_LABEL}={owner}")],
    )]);
    let options = ListContainersOptionsBuilder::default()
        .all(true)
        .filters(&filters)
        .build();
    let found = docker.list_containers(Some(options)).await?;
    let Some(id) = found.into_iter().find_map(|container| container.id) else {
        return Ok(None);
    };
    match docker.inspect_container(&id, None).await {
        Ok(container) => Ok(Some(container)),
        Err(Error::DockerResponseServerError { status_code: 404, .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Takes it away, if there is one.
pub(super) async fn remove(docker: &Docker, owner: &str, task: &Id) -> Result<(), Error> {
    let Some(id) = find(docker, owner, task).await?.and_then(|sandbox| sandbox.id) else {
        return Ok(());
    };
    let options = RemoveContainerOptionsBuilder::default().force(true).build();
    match docker.remove_container(&id, Some(options)).await {
        // Somebody removes it already, or has.
        Err(Error::DockerResponseServerError {
            status_code: 404 | 409, ..
        }) => Ok(()),
        removed => removed,
    }
}

/// What there is to make ready, of a sandbox that runs. `None`: its namespace is not seen from here.
pub(super) fn place(sandbox: &ContainerInspectResponse) -> Option<TaskPlace> {
    let pid = sandbox.state.as_ref()?.pid?;
    let labels = sandbox.config.as_ref()?.labels.as_ref()?;
    let listed = |label: &str| {
        let values = labels.get(label).map_or("", String::as_str).split(',');
        values.filter(|value| !value.is_empty()).collect::<Vec<_>>()
    };
    let nameserver = |text: &str| Some(SocketAddr::new(text.parse().ok()?, DNS_PORT));
    Some(TaskPlace {
        netns: netns::of_container(pid)?,
        networks: listed(NETWORKS_LABEL).into_iter().map(Into::into).collect(),
        address: bridge_address(sandbox),
        addresses: addresses(sandbox),
        is_closed: false,
        is_internal: labels.contains_key(INTERNAL_LABEL),
        has_dns: true,
        nameservers: listed(NAMESERVERS_LABEL).into_iter().filter_map(nameserver).collect(),
        links: listed(LINKS_LABEL)
            .into_iter()
            .filter_map(link_names)
            .map(|(alias, whom)| (alias.into(), whom.into()))
            .collect(),
    })
}

/// The same of a container that is on no network of the swarm: names are answered in it, where Docker's are.
pub(super) fn lone_place(container: &ContainerInspectResponse) -> Option<TaskPlace> {
    let host = container.host_config.as_ref()?;
    let nameservers = host.dns.iter().flatten();
    let nameserver = |text: &String| Some(SocketAddr::new(text.parse().ok()?, DNS_PORT));
    Some(TaskPlace {
        netns: netns::of_container(container.state.as_ref()?.pid?)?,
        networks: Vec::new(),
        address: Some(bridge_address(container)?),
        addresses: Vec::new(),
        is_closed: false,
        is_internal: false,
        has_dns: true,
        nameservers: nameservers.filter_map(nameserver).collect(),
        links: Vec::new(),
    })
}

/// Where a task's program is reached: at its own first address, or at the one on the engine's bridge where it was given none.
pub(super) fn address(container: &ContainerInspectResponse) -> Option<IpAddr> {
    let own = addresses(container).first().map(IpNet::addr);
    own.or_else(|| bridge_address(container))
}

fn bridge_address(container: &ContainerInspectResponse) -> Option<IpAddr> {
    let networks = container.network_settings.as_ref()?.networks.as_ref()?;
    networks
        .values()
        .find_map(|network| network.ip_address.as_deref()?.parse().ok())
}

/// The task's own addresses, with the prefixes of their networks.
fn addresses(sandbox: &ContainerInspectResponse) -> Vec<IpNet> {
    let labels = sandbox.config.as_ref().and_then(|config| config.labels.as_ref());
    let listed = labels.and_then(|labels| labels.get(ADDRESSES_LABEL));
    let each = listed.into_iter().flat_map(|text| text.split(','));
    each.filter_map(|text| text.parse().ok()).collect()
}

/// Writes the task's own addresses to the /etc/hosts that its container shares, in place of the one on the engine's bridge.
/// Errors: the sandbox's files are not seen from here.
pub(super) fn write_hosts(sandbox: &ContainerInspectResponse) -> io::Result<()> {
    let addresses = addresses(sandbox);
    let pid = sandbox.state.as_ref().and_then(|state| state.pid).unwrap_or(0);
    let config = sandbox.config.as_ref();
    let name = config.and_then(|config| config.hostname.as_deref()).unwrap_or_default();
    if addresses.is_empty() || pid <= 0 || name.is_empty() {
        return Ok(());
    }
    // The engine made it, and the container has the very same file.
    let path = format!("/proc/{pid}/root/etc/hosts");
    let before = std::fs::read_to_string(&path)?;
    let after = hosts(&before, name, bridge_address(sandbox), &addresses);
    match after == before {
        true => Ok(()),
        false => File::options()
            .write(true)
            .truncate(true)
            .open(&path)?
            .write_all(after.as_bytes()),
    }
}

/// The lines of a hosts file, with other addresses for a name.
fn hosts(before: &str, name: &str, gone: Option<IpAddr>, addresses: &[IpNet]) -> String {
    let own: Vec<IpAddr> = addresses.iter().map(IpNet::addr).collect();
    let is_to_go = |line: &&str| {
        let address = line.split_whitespace().next().and_then(|word| word.parse().ok());
        address.is_some_and(|address: IpAddr| gone == Some(address) || own.contains(&address))
    };
    let kept = before.lines().filter(|line| !is_to_go(line)).map(str::to_owned);
    let lines = kept.chain(own.iter().map(|address| format!("{address}\t{name}")));
    lines.map(|line| line + "\n").collect()
}

/// What waits for the process of a sandbox to end, and kills the program that shares its network then, at once. `None`: the
/// two are not seen from here.
///
/// The engine says it later, when it has taken the network's addresses away: whoever is connected to the program would not
/// learn of its end any more, and wait.
pub(super) fn end_with_it(
    task: Id,
    sandbox: &ContainerInspectResponse,
    program: &ContainerInspectResponse,
) -> Option<impl Future<Output = ()> + use<>> {
    let pid_of = |container: &ContainerInspectResponse| u32::try_from(container.state.as_ref()?.pid?).ok();
    let network_of = |pid: u32| Some(Netns::of_process(pid).ok()?.id());
    let (sandbox, program) = (pid_of(sandbox)?, pid_of(program)?);
    let network = network_of(sandbox)?;
    if network_of(program) != Some(network) {
        return None;
    }
    // A process's number fits.
    let pid = i32::try_from(program).ok()?;
    Some(async move {
        let is_over = netns::process_ended(sandbox).await.is_ok();
        if is_over && signal_if(pid, Signal::KILL, || network_of(program) == Some(network)) {
            tracing::warn!(%task, "what held its network has ended, so it is ended");
        }
    })
}

/// Whether a container has the network of another.
pub(super) fn is_joined(container: &ContainerInspectResponse) -> bool {
    let mode = container
        .host_config
        .as_ref()
        .and_then(|host| host.network_mode.as_deref());
    mode.is_some_and(|mode| mode.starts_with("container:"))
}

fn name(task: &str) -> String {
    format!("{task}.network")
}

fn image() -> String {
    format!("{}:{}", pause::REPOSITORY, pause::TAG)
}

const ADDRESSES_LABEL: &str = "anynode.addresses";
const INTERNAL_LABEL: &str = "anynode.internal";
const LINKS_LABEL: &str = "anynode.links";
const NETWORKS_LABEL: &str = "anynode.networks";
const NAMESERVERS_LABEL: &str = "anynode.nameservers";
const SHORT_ID: usize = 12;
const DNS_PORT: u16 = 53;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hosts_file_says_the_tasks_own_addresses() {
        let engines = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost\n192.0.2.7\tdb\n172.17.0.5\tabc\n";
        let own = ["10.0.1.5/24".parse().unwrap(), "10.0.2.9/24".parse().unwrap()];
        let written = hosts(engines, "abc", Some([172, 17, 0, 5].into()), &own);
        let expected =
            "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost\n192.0.2.7\tdb\n10.0.1.5\tabc\n10.0.2.9\tabc\n";
        assert_eq!(written, expected);
        assert_eq!(hosts(&written, "abc", Some([172, 17, 0, 5].into()), &own), expected);
    }
}
