//! Tasks as containers of the Docker Engine beside this program. The engine holds their output and health; this finds its
//! own containers again by their labels, and touches no others.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use bollard::Docker;
use bollard::errors::Error;
use bollard::models::{
    ContainerCreateBody, ContainerInspectResponse, EventMessageTypeEnum, HealthStatusEnum, HostConfig,
    HostConfigLogConfig, Mount,
};
use bollard::query_parameters::{
    CreateContainerOptionsBuilder, CreateImageOptionsBuilder, EventsOptionsBuilder, KillContainerOptionsBuilder,
    ListContainersOptionsBuilder, LogsOptionsBuilder, RemoveContainerOptionsBuilder, UploadToContainerOptionsBuilder,
};
use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt};

use super::runtime::{Failure, Found, HealthState, Runtime, Started};
use super::{Assignment, Later, LogLine, LogQuery, LogStream, template};
use crate::model::swarm::{Container, Exit, Id, Payload, Time, stop_grace};

/// The runtime.
#[derive(Debug, Clone)]
pub struct Containers {
    docker: Docker,
    /// Tells our containers from those of another anynode.
    owner: String,
}

/// Why an engine cannot run tasks.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    #[error("{path}: expected a Docker Engine that answers")]
    Silent {
        path: PathBuf,
        #[source]
        error: Error,
    },
    #[error("{path}: this engine is in Swarm mode itself: expected --swarm, which serves the swarm that it belongs to")]
    InSwarm { path: PathBuf },
}

const TASK_LABEL: &str = "com.docker.swarm.task.id";
const OWNER_LABEL: &str = "anynode.owner";

impl Containers {
    /// `owner` must be the same in each run, and another for each anynode.
    pub async fn connect(path: &Path, owner: String) -> Result<Containers, EngineError> {
        let silent = |error| EngineError::Silent {
            path: path.to_owned(),
            error,
        };
        let text = path.to_string_lossy();
        let docker = Docker::connect_with_unix(&text, ANSWER_SECONDS, bollard::API_DEFAULT_VERSION).map_err(silent)?;
        let docker = docker.negotiate_version().await.map_err(silent)?;
        let info = docker.info().await.map_err(silent)?;
        let state = info.swarm.and_then(|swarm| swarm.local_node_state);
        match state.map(|state| state.to_string()).as_deref() {
            None | Some("" | "inactive") => Ok(Containers { docker, owner }),
            Some(_) => Err(EngineError::InSwarm { path: path.to_owned() }),
        }
    }

    /// The containers of a task: one, or none.
    async fn id_of(&self, task: &Id) -> Result<Option<String>, Error> {
        let filters = HashMap::from([(
            "label",
            vec![format!("{TASK_LABEL}={task}"), format!("{OWNER_LABEL}={}", self.owner)],
        )]);
        let options = ListContainersOptionsBuilder::default()
            .all(true)
            .filters(&filters)
            .build();
        let found = self.docker.list_containers(Some(options)).await?;
        Ok(found.into_iter().find_map(|container| container.id))
    }

    async fn inspect(&self, task: &Id) -> Result<Option<ContainerInspectResponse>, Error> {
        let Some(id) = self.id_of(task).await? else {
            return Ok(None);
        };
        match self.docker.inspect_container(&id, None).await {
            Ok(container) => Ok(Some(container)),
            Err(Error::DockerResponseServerError { status_code: 404, .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// What there is of a task, however often the engine must be asked.
    async fn inspect_patiently(&self, task: &Id) -> Option<ContainerInspectResponse> {
        loop {
            match self.inspect(task).await {
                Ok(found) => return found,
                Err(error) => {
                    tracing::debug!(%task, %error, "the engine does not say what is with it");
                    tokio::time::sleep(ASK_AGAIN).await;
                }
            }
        }
    }

    async fn see_to_image(&self, image: &str) -> Result<(), Failure> {
        match self.docker.inspect_image(image).await {
            Ok(_) => return Ok(()),
            Err(Error::DockerResponseServerError { status_code: 404, .. }) => {}
            Err(error) => return Err(Failure(said(&error))),
        }
        let options = CreateImageOptionsBuilder::default().from_image(image).build();
        let pulled = self
            .docker
            .create_image(Some(options), None, None)
            .try_for_each(|_| async { Ok(()) });
        match pulled.await {
            Ok(()) => Ok(()),
            Err(error) => {
                tracing::info!(image, "not pulled: {}", said(&error));
                Err(Failure(format!("No such image: {image}")))
            }
        }
    }

    fn body_of(&self, assignment: &Assignment) -> Result<ContainerCreateBody, Failure> {
        let task = &assignment.task;
        let spec = task.spec.container_spec.clone().unwrap_or_default();
        let expand = |text: &String| template::expand(text, assignment).map_err(|error| Failure(error.to_string()));
        let mut labels = spec.labels.clone().unwrap_or_default();
        let node = &assignment.node.id;
        for (key, value) in [
            ("com.docker.swarm.task", ""),
            (TASK_LABEL, task.id.as_str()),
            ("com.docker.swarm.task.name", &task.name()),
            ("com.docker.swarm.node.id", node.as_str()),
            ("com.docker.swarm.service.id", task.service.as_str()),
            ("com.docker.swarm.service.name", &task.service_name),
            (OWNER_LABEL, &self.owner),
        ] {
            labels.insert(key.to_owned(), value.to_owned());
        }
        let env: Result<Vec<String>, Failure> = spec.env.iter().flatten().map(expand).collect();
        let mounts: Result<Vec<Mount>, Failure> = spec
            .mounts
            .iter()
            .flatten()
            .map(|mount| {
                Ok(Mount {
                    source: mount.source.as_ref().map(expand).transpose()?,
                    target: mount.target.as_ref().map(expand).transpose()?,
                    ..mount.clone()
                })
            })
            .collect();
        let limits = task.spec.resources.clone().unwrap_or_default();
        let (most, least) = (
            limits.limits.unwrap_or_default(),
            limits.reservations.unwrap_or_default(),
        );
        let dns = spec.dns_config.clone().unwrap_or_default();
        // As `IP name` there, as `name:IP` here.
        let hosts = spec.hosts.iter().flatten().filter_map(|host| {
            let (ip, name) = host.split_once(char::is_whitespace)?;
            Some(format!("{}:{ip}", name.trim()))
        });
        let driver = task.spec.log_driver.clone();
        let host_config = HostConfig {
            mounts: Some(mounts?),
            nano_cpus: most.nano_cpus,
            memory: most.memory_bytes,
            pids_limit: most.pids,
            memory_reservation: least.memory_bytes,
            init: spec.init,
            readonly_rootfs: spec.read_only,
            dns: dns.nameservers,
            dns_search: dns.search,
            dns_options: dns.options,
            extra_hosts: Some(hosts.collect()),
            cap_add: spec.capability_add.clone(),
            cap_drop: spec.capability_drop.clone(),
            sysctls: spec.sysctls.clone(),
            group_add: spec.groups.clone(),
            oom_score_adj: spec.oom_score_adj,
            ulimits: spec.ulimits.clone(),
            network_mode: network_of(assignment),
            log_config: Some(match driver {
                Some(driver) => HostConfigLogConfig {
                    typ: driver.name,
                    config: driver.options,
                },
                None => HostConfigLogConfig {
                    typ: Some("json-file".to_owned()),
                    config: Some(HashMap::from([
                        ("max-size".to_owned(), "10m".to_owned()),
                        ("max-file".to_owned(), "3".to_owned()),
                    ])),
                },
            }),
            ..HostConfig::default()
        };
        let some = |words: Option<Vec<String>>| words.filter(|words| !words.is_empty());
        Ok(ContainerCreateBody {
            image: spec.image.clone(),
            hostname: spec
                .hostname
                .as_ref()
                .filter(|name| !name.is_empty())
                .map(expand)
                .transpose()?,
            env: Some(env?),
            entrypoint: some(spec.command.clone()),
            cmd: some(spec.args.clone()),
            working_dir: spec.dir.clone(),
            user: spec.user.clone(),
            labels: Some(labels),
            stop_signal: spec.stop_signal.clone(),
            stop_timeout: i64::try_from(stop_grace(&task.spec).as_secs()).ok(),
            healthcheck: spec.health_check.clone(),
            tty: spec.tty,
            open_stdin: spec.open_stdin,
            host_config: Some(host_config),
            ..ContainerCreateBody::default()
        })
    }

    async fn create(&self, assignment: &Assignment) -> Result<(), Failure> {
        let spec = assignment.task.spec.container_spec.clone().unwrap_or_default();
        self.see_to_image(spec.image.as_deref().unwrap_or_default()).await?;
        // An earlier attempt may have come half-way.
        self.remove(&assignment.task.id).await;
        let name = assignment.task.name();
        let options = CreateContainerOptionsBuilder::default().name(&name).build();
        let created = self
            .docker
            .create_container(Some(options), self.body_of(assignment)?)
            .await;
        let id = created.map_err(|error| Failure(said(&error)))?.id;
        if let Some(archive) = archive(assignment).map_err(|error| Failure(error.to_string()))? {
            let options = UploadToContainerOptionsBuilder::default().path("/").build();
            let uploaded = self
                .docker
                .upload_to_container(&id, Some(options), bollard::body_full(archive))
                .await;
            uploaded.map_err(|error| Failure(format!("configs and secrets: {}", said(&error))))?;
        }
        Ok(())
    }
}

/// A task on the host's network; any other network is the engine's own bridge for now.
fn network_of(assignment: &Assignment) -> Option<String> {
    let networks = assignment.task.spec.networks.iter().flatten();
    let mut targets = networks.filter_map(|network| network.target.clone());
    targets.find(|target| matches!(target.as_str(), "host" | "none"))
}

/// In the engine's words, without ours.
fn said(error: &Error) -> String {
    match error {
        Error::DockerResponseServerError { message, .. } => message.clone(),
        error => error.to_string(),
    }
}

/// Configs and secrets as a tar for the root of the container; `None` when there are none.
fn archive(assignment: &Assignment) -> io::Result<Option<Bytes>> {
    let container = assignment.task.spec.container_spec.clone().unwrap_or_default();
    let mut tar = tar::Builder::new(Vec::new());
    let mut n = 0;
    let missing = |what: &str, name: Option<&str>| {
        io::Error::new(
            io::ErrorKind::NotFound,
            format!("{what} not found: {}", name.unwrap_or("")),
        )
    };
    for config in container.configs.iter().flatten() {
        let Some(file) = &config.file else { continue };
        let payload = config.config_id.as_deref().and_then(|id| assignment.configs.get(id));
        let payload = payload.ok_or_else(|| missing("config", config.config_name.as_deref()))?;
        let place = (
            file.name.as_deref(),
            file.uid.as_deref(),
            file.gid.as_deref(),
            file.mode,
        );
        append(&mut tar, Path::new("/"), place, payload, assignment)?;
        n += 1;
    }
    for secret in container.secrets.iter().flatten() {
        let Some(file) = &secret.file else { continue };
        let payload = secret.secret_id.as_deref().and_then(|id| assignment.secrets.get(id));
        let payload = payload.ok_or_else(|| missing("secret", secret.secret_name.as_deref()))?;
        let place = (
            file.name.as_deref(),
            file.uid.as_deref(),
            file.gid.as_deref(),
            file.mode,
        );
        append(&mut tar, Path::new("/run/secrets"), place, payload, assignment)?;
        n += 1;
    }
    match n {
        0 => Ok(None),
        _ => Ok(Some(tar.into_inner()?.into())),
    }
}

fn append(
    tar: &mut tar::Builder<Vec<u8>>,
    base: &Path,
    (name, uid, gid, mode): (Option<&str>, Option<&str>, Option<&str>, Option<u32>),
    payload: &Payload,
    assignment: &Assignment,
) -> io::Result<()> {
    let data = template::contents(payload, assignment)?;
    let path = base.join(name.unwrap_or_default());
    let path = path.strip_prefix("/").map_err(io::Error::other)?;
    let number = |text: Option<&str>| text.and_then(|text| text.parse().ok()).unwrap_or(0);
    let mut header = tar::Header::new_gnu();
    header.set_size(data.len() as u64);
    header.set_mode(mode.unwrap_or(0o444));
    header.set_uid(number(uid));
    header.set_gid(number(gid));
    tar.append_data(&mut header, path, data.as_slice())
}

fn started(container: &ContainerInspectResponse) -> Option<Started> {
    let state = container.state.as_ref()?;
    let host = container
        .host_config
        .as_ref()
        .and_then(|config| config.network_mode.as_deref());
    let networks = container
        .network_settings
        .as_ref()
        .and_then(|settings| settings.networks.as_ref());
    let mut ips = networks
        .into_iter()
        .flat_map(HashMap::values)
        .filter_map(|network| network.ip_address.as_deref()?.parse().ok());
    let ip: IpAddr = match host {
        Some("host") => IpAddr::V4(Ipv4Addr::LOCALHOST),
        // Of none, nobody reaches it.
        _ => ips.next().unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED)),
    };
    Some(Started {
        container: Container {
            id: container.id.clone().unwrap_or_default(),
            pid: state.pid.unwrap_or(0),
            exit_code: 0,
        },
        addr: SocketAddr::new(ip, 0),
    })
}

fn is_running(container: &ContainerInspectResponse) -> bool {
    container
        .state
        .as_ref()
        .is_some_and(|state| state.running == Some(true))
}

/// `None`: it has no health check.
fn health_of(container: &ContainerInspectResponse) -> Option<HealthState> {
    match container.state.as_ref()?.health.as_ref()?.status? {
        HealthStatusEnum::EMPTY | HealthStatusEnum::NONE => None,
        HealthStatusEnum::STARTING => Some(HealthState::Starting),
        HealthStatusEnum::HEALTHY => Some(HealthState::Healthy),
        HealthStatusEnum::UNHEALTHY => Some(HealthState::Unhealthy),
    }
}

impl Runtime for Containers {
    fn prepare<'a>(&'a self, assignment: &'a Assignment) -> Later<'a, Result<(), Failure>> {
        Box::pin(self.create(assignment))
    }

    fn start<'a>(&'a self, assignment: &'a Assignment) -> Later<'a, Result<Started, Failure>> {
        Box::pin(async move {
            let failed = |error: Error| Failure(format!("starting container failed: {}", said(&error)));
            let gone = || Failure("starting container failed: it is gone".to_owned());
            let id = self
                .id_of(&assignment.task.id)
                .await
                .map_err(failed)?
                .ok_or_else(gone)?;
            self.docker.start_container(&id, None).await.map_err(failed)?;
            let container = self.docker.inspect_container(&id, None).await.map_err(failed)?;
            started(&container).ok_or_else(gone)
        })
    }

    fn find<'a>(&'a self, task: &'a Id) -> Later<'a, Found> {
        Box::pin(async move {
            let Some(container) = self.inspect_patiently(task).await else {
                return Found::Nothing;
            };
            if is_running(&container) {
                return started(&container).map_or(Found::Nothing, Found::Running);
            }
            let state = container.state.unwrap_or_default();
            let has_run = state.started_at.as_deref().is_some_and(|at| !at.starts_with("0001-"));
            match has_run {
                true => Found::Ended(Container {
                    id: container.id.unwrap_or_default(),
                    pid: 0,
                    exit_code: state.exit_code.unwrap_or(0),
                }),
                false => Found::Prepared,
            }
        })
    }

    fn ended<'a>(&'a self, task: &'a Id) -> Later<'a, Exit> {
        Box::pin(async move {
            loop {
                let Some(container) = self.inspect_patiently(task).await else {
                    return Exit { code: KILLED };
                };
                if !is_running(&container) {
                    let code = container.state.and_then(|state| state.exit_code).unwrap_or(KILLED);
                    return Exit { code };
                }
                let id = container.id.unwrap_or_default();
                // It ends with the container, or with the engine: then it is asked again.
                let waited = self.docker.wait_container(&id, None).next().await;
                if !matches!(waited, Some(Ok(_) | Err(Error::DockerContainerWaitError { .. }))) {
                    tokio::time::sleep(ASK_AGAIN).await;
                }
            }
        })
    }

    fn health<'a>(&'a self, assignment: &'a Assignment, before: HealthState) -> Later<'a, HealthState> {
        Box::pin(async move {
            let task = &assignment.task.id;
            loop {
                let filters = HashMap::from([
                    ("type", vec![EventMessageTypeEnum::CONTAINER.to_string()]),
                    ("label", vec![format!("{TASK_LABEL}={task}")]),
                ]);
                // Listened to before it is looked at, so that nothing is missed in between.
                let events = self
                    .docker
                    .events(Some(EventsOptionsBuilder::default().filters(&filters).build()));
                tokio::pin!(events);
                let Some(container) = self.inspect_patiently(task).await else {
                    return std::future::pending().await;
                };
                match health_of(&container) {
                    None if before == HealthState::Healthy => return std::future::pending().await,
                    None => return HealthState::Healthy,
                    Some(now) if now != before => return now,
                    Some(_) => {}
                }
                let next = tokio::time::timeout(LOOK_ANYWAY, events.next()).await;
                if matches!(next, Ok(None | Some(Err(_)))) {
                    tokio::time::sleep(ASK_AGAIN).await;
                }
            }
        })
    }

    fn signal<'a>(&'a self, task: &'a Id, signal: &'a str) -> Later<'a, ()> {
        Box::pin(async move {
            let options = KillContainerOptionsBuilder::default().signal(signal).build();
            let Ok(Some(id)) = self.id_of(task).await else { return };
            if let Err(error) = self.docker.kill_container(&id, Some(options)).await {
                tracing::debug!(%task, signal, "{}", said(&error));
            }
        })
    }

    fn remove<'a>(&'a self, task: &'a Id) -> Later<'a, ()> {
        Box::pin(async move {
            let Ok(Some(id)) = self.id_of(task).await else { return };
            let options = RemoveContainerOptionsBuilder::default().force(true).v(true).build();
            if let Err(error) = self.docker.remove_container(&id, Some(options)).await {
                tracing::warn!(%task, "its container is not removed: {}", said(&error));
            }
        })
    }

    fn list(&self) -> Later<'_, io::Result<Vec<Id>>> {
        Box::pin(async move {
            let filters = HashMap::from([("label", vec![format!("{OWNER_LABEL}={}", self.owner)])]);
            let options = ListContainersOptionsBuilder::default()
                .all(true)
                .filters(&filters)
                .build();
            let found = self
                .docker
                .list_containers(Some(options))
                .await
                .map_err(io::Error::other)?;
            let tasks = found
                .into_iter()
                .filter_map(|container| container.labels?.remove(TASK_LABEL));
            Ok(tasks.map(|task| Id::from(task.as_str())).collect())
        })
    }

    fn logs(&self, task: &Id, query: LogQuery) -> io::Result<LogStream> {
        let (this, task) = (self.clone(), task.clone());
        let lines = async move {
            let Ok(Some(id)) = this.id_of(&task).await else {
                return futures_util::stream::empty().boxed();
            };
            let seconds = |at: Option<Time>| at.map_or(0, |at| i32::try_from(at.0 / 1_000_000_000).unwrap_or(i32::MAX));
            let tail = query.tail.map_or_else(|| "all".to_owned(), |tail| tail.to_string());
            let options = LogsOptionsBuilder::default()
                .follow(query.follow)
                .stdout(query.stdout)
                .stderr(query.stderr)
                .since(seconds(query.since))
                .until(seconds(query.until))
                .timestamps(true)
                .tail(&tail)
                .build();
            let output = this.docker.logs(&id, Some(options));
            output.filter_map(|line| async { line_of(line.ok()?) }).boxed()
        };
        Ok(futures_util::stream::once(lines).flatten().boxed())
    }
}

fn line_of(output: bollard::container::LogOutput) -> Option<LogLine> {
    let is_stderr = matches!(output, bollard::container::LogOutput::StdErr { .. });
    let bytes = output.into_bytes();
    let at = bytes.iter().position(|byte| *byte == b' ')?;
    let time = humantime::parse_rfc3339(std::str::from_utf8(&bytes[..at]).ok()?).ok()?;
    let text = bytes.slice(at + 1..);
    let end = text.len() - usize::from(text.last() == Some(&b'\n'));
    Some(LogLine {
        at: time.into(),
        is_stderr,
        bytes: text.slice(..end),
    })
}

const ANSWER_SECONDS: u64 = 120;
const ASK_AGAIN: Duration = Duration::from_millis(500);
/// Events may be lost with a connection.
const LOOK_ANYWAY: Duration = Duration::from_secs(30);
/// As of a program that SIGKILL ended.
const KILLED: i64 = 137;
