//! Tasks as containers of the Docker Engine beside this program. The engine holds their output and health; this finds its
//! own containers again by their labels, and touches no others.

mod attached;
mod body;
mod cable;
mod engine_socket;
mod files;
mod pause;
mod sandbox;

use std::collections::{BTreeSet, HashMap};
use std::future::Future;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use bollard::Docker;
use bollard::auth::DockerCredentials;
use bollard::errors::Error;
use bollard::models::{
    ContainerCreateBody, ContainerInspectResponse, ContainerState, EventMessageTypeEnum, HealthStatusEnum,
};
use bollard::query_parameters::{
    CreateContainerOptionsBuilder, CreateImageOptionsBuilder, EventsOptionsBuilder, KillContainerOptionsBuilder,
    ListContainersOptionsBuilder, LogsOptionsBuilder, RemoveContainerOptionsBuilder, UploadToContainerOptionsBuilder,
};
use futures_util::{StreamExt, TryStreamExt};
use tokio::task::AbortHandle;

pub use self::attached::{Attached, AttachedState};
use self::files::{InMemory, archive};
use super::files::TaskFile;
use super::runtime::{Failure, Found, HealthState, PinnedSocket, Runtime, Started};
use super::{Assignment, Later, TaskNetworks, files as task_files};
use crate::model::Reach;
use crate::model::swarm::{ATTACHED_LABEL, Container, Exit, Id, SANDBOX_LABEL, Time};
use crate::streams::{LogLine, LogQuery, LogStream};
use crate::sys::netns;

/// The runtime.
#[derive(Clone)]
pub struct Containers {
    docker: Docker,
    /// The engine's.
    socket: PathBuf,
    /// Tells our containers from those of another anynode.
    owner: String,
    in_memory: Option<InMemory>,
    networks: Arc<dyn TaskNetworks>,
    /// What tasks get that mount the engine's socket.
    api: Option<Arc<dyn PinnedSocket>>,
    /// Whether tasks' networks can be made ready.
    has_sandboxes: bool,
    /// Held while the engine makes the container of a task, also when nobody waits for that any more. std mutex: held for
    /// moments.
    making: Arc<Mutex<HashMap<Id, Arc<tokio::sync::Mutex<()>>>>>,
    /// What ends a task's program with its network. std mutex: held for moments.
    tied: Arc<Mutex<HashMap<Id, AbortHandle>>>,
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
    pub async fn connect(
        path: &Path,
        owner: String,
        networks: Arc<dyn TaskNetworks>,
    ) -> Result<Containers, EngineError> {
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
            None | Some("" | "inactive") => Ok(Containers {
                docker,
                socket: path.to_owned(),
                in_memory: InMemory::of(&owner),
                owner,
                networks,
                api: None,
                has_sandboxes: sandbox::is_possible(),
                making: Arc::default(),
                tied: Arc::default(),
            }),
            Some(_) => Err(EngineError::InSwarm { path: path.to_owned() }),
        }
    }

    /// Tasks that mount the engine's socket get this one, unless their service says otherwise.
    #[must_use]
    pub fn with_api(self, api: Arc<dyn PinnedSocket>) -> Containers {
        Containers { api: Some(api), ..self }
    }

    fn api_path(&self) -> Option<&Path> {
        self.api.as_ref().map(|api| api.path())
    }

    /// Has a task that mounts the engine's socket mount the swarm's.
    async fn lead_to_api(&self, assignment: &Assignment, body: &mut ContainerCreateBody) {
        let mounts = body.host_config.as_mut().and_then(|host| host.mounts.as_mut());
        let (Some(api), Some(mounts)) = (&self.api, mounts) else {
            return;
        };
        if engine_socket::is_to_be_the_engines(assignment) || !engine_socket::lead_to(mounts, &self.socket, api.path())
        {
            return;
        }
        let pinning = api.clone();
        let pinned = tokio::task::spawn_blocking(move || pinning.pin()).await;
        if let Ok(Err(error)) = pinned {
            tracing::warn!(task = %assignment.task.id, %error, "the API's socket, which it mounts, will not outlive this run");
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
            match patiently(task.as_str(), || self.inspect(task)).await {
                Ok(found) => return found,
                Err(error) => {
                    tracing::warn!(%task, "the engine does not say what is with it: {}", said(&error));
                    tokio::time::sleep(ASK_AGAIN).await;
                }
            }
        }
    }

    async fn see_to_image(&self, image: &str, registry_auth: Option<&str>) -> Result<(), Failure> {
        match patiently(image, || self.docker.inspect_image(image)).await {
            Ok(_) => return Ok(()),
            Err(Error::DockerResponseServerError { status_code: 404, .. }) => {}
            Err(error) => return Err(Failure(said(&error))),
        }
        let pulled = patiently(image, || {
            let options = CreateImageOptionsBuilder::default().from_image(image).build();
            let pull = self
                .docker
                .create_image(Some(options), None, registry_auth.and_then(credentials));
            pull.try_for_each(|_| async { Ok(()) })
        });
        match pulled.await {
            Ok(()) => Ok(()),
            Err(error) => {
                tracing::info!(image, "not pulled: {}", said(&error));
                Err(Failure(format!("No such image: {image}")))
            }
        }
    }

    async fn create(&self, assignment: &Assignment) -> Result<(), Failure> {
        let mut body = body::of(assignment, &self.owner)?;
        self.lead_to_api(assignment, &mut body).await;
        if assignment.task.is_internal() && !self.has_sandboxes {
            let reason = "the task's network is internal, and this anynode may not keep containers from the outside: expected \
                          CAP_NET_ADMIN, CAP_SYS_ADMIN and CAP_BPF";
            return Err(Failure(reason.to_owned()));
        }
        let sandbox = match self.has_sandboxes {
            true => sandbox::split(assignment, &self.owner, &mut body),
            false => None,
        };
        let id = self.create_task(assignment, body).await?;
        let Some(sandbox) = sandbox else { return Ok(()) };
        let task = &assignment.task;
        let created = patiently(task.id.as_str(), || async {
            // An earlier attempt may have come half-way.
            sandbox::remove(&self.docker, &self.owner, &task.id).await?;
            sandbox::create(&self.docker, &task.name(), &id, sandbox.clone()).await
        });
        created
            .await
            .map_err(|error| Failure(format!("the task's network: {}", said(&error))))
    }

    /// Answers the container's id.
    async fn create_task(&self, assignment: &Assignment, mut body: ContainerCreateBody) -> Result<String, Failure> {
        let files = task_files::of(assignment).map_err(|error| Failure(error.to_string()))?;
        let image = body.image.clone().unwrap_or_default();
        self.see_to_image(&image, assignment.registry_auth.as_deref()).await?;
        let plain = body.clone();
        let bound = self.bind_in(&mut body, assignment, &files);
        match (self.create_as(assignment, &body).await, &self.in_memory) {
            (Ok(id), _) if bound || files.is_empty() => Ok(id),
            (Ok(id), _) => self.copy_in(&id, &files).await.map(|()| id),
            // It does not see this program's files.
            (Err(error), Some(in_memory)) if bound && in_memory.is_named_in(&said(&error)) => {
                tracing::debug!(task = %assignment.task.id, "its files are copied in: {}", said(&error));
                let id = self
                    .create_as(assignment, &plain)
                    .await
                    .map_err(|error| Failure(said(&error)))?;
                self.copy_in(&id, &files).await.map(|()| id)
            }
            (Err(error), _) => Err(Failure(said(&error))),
        }
    }

    /// Whether the files will be there as soon as the container is.
    fn bind_in(&self, body: &mut ContainerCreateBody, assignment: &Assignment, files: &[TaskFile]) -> bool {
        let Some(in_memory) = self.in_memory.as_ref().filter(|_| !files.is_empty()) else {
            return false;
        };
        let mounts = match in_memory.write(&assignment.task.id, files) {
            Ok(mounts) => mounts,
            Err(error) => {
                tracing::warn!(task = %assignment.task.id, %error, "its configs and secrets are not kept in memory");
                return false;
            }
        };
        let host_config = body.host_config.get_or_insert_default();
        host_config.mounts.get_or_insert_default().extend(mounts);
        true
    }

    async fn create_as(&self, assignment: &Assignment, body: &ContainerCreateBody) -> Result<String, Error> {
        let task = &assignment.task;
        let options = CreateContainerOptionsBuilder::default().name(&task.name()).build();
        patiently(task.id.as_str(), || async {
            // An earlier attempt may have come half-way.
            self.remove_container(&task.id).await;
            let turn = self.turn(&task.id).lock_owned().await;
            let (docker, options, body) = (self.docker.clone(), options.clone(), body.clone());
            // The engine ends what it was asked for, whether or not somebody hears of it: removal waits for that.
            let creating = tokio::spawn(async move {
                let created = docker.create_container(Some(options), body).await;
                drop(turn);
                created
            });
            match creating.await {
                Ok(created) => created.map(|created| created.id),
                Err(error) => Err(Error::from(io::Error::other(error))),
            }
        })
        .await
    }

    fn turn(&self, task: &Id) -> Arc<tokio::sync::Mutex<()>> {
        let mut making = self.making.lock().unwrap_or_else(PoisonError::into_inner);
        making.entry(task.clone()).or_default().clone()
    }

    async fn copy_in(&self, id: &str, files: &[TaskFile]) -> Result<(), Failure> {
        let archive = archive(files).map_err(|error| Failure(error.to_string()))?;
        let options = UploadToContainerOptionsBuilder::default().path("/").build();
        let copied = self
            .docker
            .upload_to_container(id, Some(options), bollard::body_full(archive));
        copied
            .await
            .map_err(|error| Failure(format!("configs and secrets: {}", said(&error))))
    }

    /// Sends a signal, if the container runs; its own stop signal if none is named.
    async fn signal(&self, task: &Id, signal: Option<&str>) {
        let sent = patiently(task.as_str(), || async {
            let Some(container) = self.inspect(task).await?.filter(is_running) else {
                return Ok(());
            };
            let own = container.config.and_then(|config| config.stop_signal);
            let own = own.filter(|signal| !signal.is_empty());
            let signal = signal.or(own.as_deref()).unwrap_or("SIGTERM");
            let options = KillContainerOptionsBuilder::default().signal(signal).build();
            let id = container.id.unwrap_or_default();
            match self.docker.kill_container(&id, Some(options)).await {
                // It has just ended.
                Err(Error::DockerResponseServerError {
                    status_code: 404 | 409, ..
                }) => Ok(()),
                sent => sent,
            }
        });
        if let Err(error) = sent.await {
            tracing::warn!(%task, "it is not signalled: {}", said(&error));
        }
    }

    /// Starts what holds the task's network, and has that made ready. `None`: it has none of its own.
    async fn start_sandbox(&self, task: &Id) -> Result<Option<ContainerInspectResponse>, Failure> {
        let failed = |error: Error| Failure(format!("the task's network: {}", said(&error)));
        let found = patiently(task.as_str(), || async {
            let Some(id) = self.find_sandbox(task).await?.and_then(|sandbox| sandbox.id) else {
                return Ok(None);
            };
            // One that runs already is as good.
            self.docker.start_container(&id, None).await?;
            self.find_sandbox(task).await
        });
        let Some(sandbox) = found.await.map_err(failed)? else {
            return Ok(None);
        };
        let opened = self.open_network(task, &sandbox).await;
        if opened.is_err() {
            self.end_sandbox(task).await;
        }
        opened.map(|()| Some(sandbox))
    }

    async fn open_network(&self, task: &Id, sandbox: &ContainerInspectResponse) -> Result<(), Failure> {
        let unseen = || {
            Failure(
                "the task's network: its namespace is not seen: expected anynode to run in the host's PID namespace"
                    .to_owned(),
            )
        };
        let place = sandbox::place(sandbox).ok_or_else(unseen)?;
        cable::shut_off(&self.socket, sandbox)
            .await
            .map_err(|error| Failure(format!("the task's network: {}", chain(&error))))?;
        if let Err(error) = sandbox::write_hosts(sandbox) {
            tracing::warn!(%task, %error, "its /etc/hosts is the engine's");
        }
        self.networks.open(task, place).await
    }

    /// The same for a container that is on no network of the swarm, as soon as it runs. It goes on without.
    async fn shut_off(&self, task: &Id, container: &ContainerInspectResponse) {
        if !self.has_sandboxes {
            return;
        }
        if let Err(error) = cable::shut_off(&self.socket, container).await
            && is_running(container)
        {
            tracing::warn!(%task, "other containers of the engine reach it, and it them: {}", chain(&error));
        }
        // One with the host's network has no address of its own.
        if let Some(place) = sandbox::lone_place(container)
            && let Err(Failure(reason)) = self.networks.open(task, place).await
            && is_running(container)
        {
            tracing::debug!(%task, "names are not answered at 127.0.0.11: {reason}");
        }
    }

    async fn find_sandbox(&self, task: &Id) -> Result<Option<ContainerInspectResponse>, Error> {
        sandbox::find(&self.docker, &self.owner, task).await
    }

    async fn sandbox_patiently(&self, task: &Id) -> Option<ContainerInspectResponse> {
        loop {
            match patiently(task.as_str(), || self.find_sandbox(task)).await {
                Ok(found) => return found,
                Err(error) => {
                    tracing::warn!(%task, "the engine does not say what is with its network: {}", said(&error));
                    tokio::time::sleep(ASK_AGAIN).await;
                }
            }
        }
    }

    /// Has a task's program not outlive what holds its network.
    fn tie(&self, task: &Id, sandbox: Option<&ContainerInspectResponse>, program: &ContainerInspectResponse) {
        let end = sandbox.and_then(|sandbox| sandbox::end_with_it(task.clone(), sandbox, program));
        let mut tied = self.tied.lock().unwrap_or_else(PoisonError::into_inner);
        let before = match end {
            Some(end) => tied.insert(task.clone(), tokio::spawn(end).abort_handle()),
            None => tied.remove(task),
        };
        before.iter().for_each(AbortHandle::abort);
    }

    /// Ready when the engine says that what holds the task's network does not run.
    async fn sandbox_ended(&self, task: &Id) {
        loop {
            let Some(id) = self
                .sandbox_patiently(task)
                .await
                .filter(is_running)
                .and_then(|sandbox| sandbox.id)
            else {
                break;
            };
            let waited = self.docker.wait_container(&id, None).next().await;
            if !matches!(waited, Some(Ok(_) | Err(Error::DockerContainerWaitError { .. }))) {
                tokio::time::sleep(ASK_AGAIN).await;
            }
        }
    }

    /// It holds nothing when its task does not run.
    async fn end_sandbox(&self, task: &Id) {
        let tied = self.tied.lock().unwrap_or_else(PoisonError::into_inner).remove(task);
        tied.iter().for_each(AbortHandle::abort);
        let removed = patiently(task.as_str(), || sandbox::remove(&self.docker, &self.owner, task));
        if let Err(error) = removed.await {
            tracing::warn!(%task, "what held its network is not removed: {}", said(&error));
        }
    }

    /// Until it is gone.
    async fn remove_container(&self, task: &Id) {
        let _turn = self.turn(task).lock_owned().await;
        loop {
            let removed = patiently(task.as_str(), || async {
                let Some(id) = self.id_of(task).await? else {
                    return Ok(());
                };
                let options = RemoveContainerOptionsBuilder::default().force(true).v(true).build();
                self.docker.remove_container(&id, Some(options)).await
            });
            match removed.await {
                Ok(()) | Err(Error::DockerResponseServerError { status_code: 404, .. }) => break,
                // Somebody removes it already.
                Err(Error::DockerResponseServerError { status_code: 409, .. }) => {
                    tokio::time::sleep(ASK_AGAIN).await;
                }
                Err(error) => {
                    tracing::warn!(%task, "its container is not removed: {}", said(&error));
                    tokio::time::sleep(REMOVE_AGAIN).await;
                }
            }
        }
    }
}

/// Asks until the engine answers: it may be restarted at any time. What it refuses is an answer.
async fn patiently<T, F: Future<Output = Result<T, Error>>>(
    what: &str,
    mut ask: impl FnMut() -> F,
) -> Result<T, Error> {
    loop {
        match ask().await {
            Err(error) if !is_answer(&error) => {
                tracing::debug!(what, %error, "the engine does not answer");
                tokio::time::sleep(ASK_AGAIN).await;
            }
            answer => return answer,
        }
    }
}

fn is_answer(error: &Error) -> bool {
    matches!(
        error,
        Error::DockerResponseServerError { .. }
            | Error::DockerStreamError { .. }
            | Error::DockerContainerWaitError { .. }
            | Error::JsonDataError { .. }
            | Error::JsonSerdeError { .. }
    )
}

/// Whom a registry is to take this for, by the `X-Registry-Auth` of whoever declared the service.
fn credentials(registry_auth: &str) -> Option<DockerCredentials> {
    // The URL's alphabet or the plain one, with padding or without.
    let text: String = registry_auth
        .chars()
        .filter_map(|c| match c {
            '-' => Some('+'),
            '_' => Some('/'),
            '=' => None,
            c => Some(c),
        })
        .collect();
    serde_json::from_slice(&STANDARD_NO_PAD.decode(text).ok()?).ok()
}

/// An error with all that led to it.
fn chain(error: &dyn std::error::Error) -> String {
    let all = std::iter::successors(Some(error), |error| error.source());
    all.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

/// In the engine's words, without ours.
fn said(error: &Error) -> String {
    match error {
        Error::DockerResponseServerError { message, .. } => message.clone(),
        error => error.to_string(),
    }
}

/// `sandbox`: whose network it has, if that is another's.
/// `api`: the socket that those have which were to have the engine's.
fn started(
    container: &ContainerInspectResponse,
    sandbox: Option<&ContainerInspectResponse>,
    api: Option<&Path>,
) -> Option<Started> {
    let state = container.state.as_ref()?;
    let host = container
        .host_config
        .as_ref()
        .and_then(|config| config.network_mode.as_deref());
    let reach = match host {
        Some("host") => Some(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()),
        _ => sandbox::address(sandbox.unwrap_or(container)).map(|ip| Reach {
            addr: SocketAddr::new(ip, 0),
            netns: netns::of_container(state.pid.unwrap_or(0)),
        }),
    };
    Some(Started {
        container: Container {
            id: container.id.clone().unwrap_or_default(),
            pid: state.pid.unwrap_or(0),
            exit_code: 0,
            // One that joins another's network has that one's.
            hostname: sandbox
                .unwrap_or(container)
                .config
                .as_ref()
                .and_then(|config| config.hostname.clone())
                .unwrap_or_default(),
        },
        reach,
        note: engine_socket::is_led_to(container, api).then_some(engine_socket::NOTE),
    })
}

/// `or`: what an engine means that names no code.
fn exit_of(state: &ContainerState, or: i64) -> Exit {
    Exit {
        code: state.exit_code.unwrap_or(or),
        is_out_of_memory: state.oom_killed.unwrap_or(false),
    }
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
            let task = &assignment.task.id;
            let sandbox = self.start_sandbox(task).await?;
            let inspected = patiently(task.as_str(), || async {
                let Some(id) = self.id_of(task).await? else {
                    return Ok(None);
                };
                // One that runs already is as good.
                self.docker.start_container(&id, None).await?;
                self.inspect(task).await
            });
            let result = match inspected.await {
                Ok(Some(container)) => {
                    if sandbox.is_none() {
                        self.shut_off(task, &container).await;
                    }
                    self.tie(task, sandbox.as_ref(), &container);
                    started(&container, sandbox.as_ref(), self.api_path()).ok_or_else(gone)
                }
                Ok(None) => Err(gone()),
                Err(error) => Err(failed(error)),
            };
            if result.is_err() {
                self.end_sandbox(task).await;
            }
            result
        })
    }

    fn find<'a>(&'a self, task: &'a Id) -> Later<'a, Found> {
        Box::pin(async move {
            let Some(container) = self.inspect_patiently(task).await else {
                return Found::Nothing;
            };
            if is_running(&container) {
                let sandbox = match sandbox::is_joined(&container) {
                    true => self.sandbox_patiently(task).await,
                    false => None,
                };
                // One whose network is gone is ended.
                if let Some(sandbox) = sandbox.as_ref().filter(|sandbox| is_running(sandbox))
                    && let Err(Failure(reason)) = self.open_network(task, sandbox).await
                {
                    tracing::error!(%task, "services are not reached from inside: {reason}");
                }
                if sandbox.is_none() {
                    self.shut_off(task, &container).await;
                }
                self.tie(task, sandbox.as_ref(), &container);
                return started(&container, sandbox.as_ref(), self.api_path()).map_or(Found::Nothing, Found::Running);
            }
            self.end_sandbox(task).await;
            let state = container.state.unwrap_or_default();
            let has_run = state.started_at.as_deref().is_some_and(|at| !at.starts_with("0001-"));
            match has_run {
                true => {
                    let exit = exit_of(&state, 0);
                    let ended = Container {
                        id: container.id.unwrap_or_default(),
                        pid: 0,
                        exit_code: exit.code,
                        hostname: String::new(),
                    };
                    Found::Ended(ended, exit)
                }
                false => Found::Prepared,
            }
        })
    }

    fn ended<'a>(&'a self, task: &'a Id) -> Later<'a, Exit> {
        Box::pin(async move {
            loop {
                let Some(container) = self.inspect_patiently(task).await else {
                    return exit_of(&ContainerState::default(), KILLED);
                };
                if !is_running(&container) {
                    self.end_sandbox(task).await;
                    return exit_of(&container.state.unwrap_or_default(), KILLED);
                }
                let is_joined = sandbox::is_joined(&container);
                let id = container.id.unwrap_or_default();
                // It ends with the container, or with the engine: then it is asked again.
                let mut wait = self.docker.wait_container(&id, None);
                let waited = tokio::select! {
                    waited = wait.next() => waited,
                    () = self.sandbox_ended(task), if is_joined => {
                        tracing::warn!(%task, "its network is gone, so it is ended");
                        self.signal(task, Some("SIGKILL")).await;
                        continue;
                    }
                };
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
                    // Each check is an event too, and more than one.
                    ("event", vec!["health_status".to_owned()]),
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

    fn stop<'a>(&'a self, assignment: &'a Assignment) -> Later<'a, ()> {
        Box::pin(self.signal(&assignment.task.id, None))
    }

    fn kill<'a>(&'a self, task: &'a Id) -> Later<'a, ()> {
        Box::pin(self.signal(task, Some("SIGKILL")))
    }

    fn remove<'a>(&'a self, task: &'a Id) -> Later<'a, ()> {
        Box::pin(async move {
            self.remove_container(task).await;
            self.end_sandbox(task).await;
            self.making.lock().unwrap_or_else(PoisonError::into_inner).remove(task);
            if let Some(Err(error)) = self.in_memory.as_ref().map(|in_memory| in_memory.remove(task)) {
                tracing::warn!(%task, %error, "its configs and secrets are not removed");
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
            let tasks = found.into_iter().filter_map(|container| {
                let mut labels = container.labels?;
                if labels.contains_key(ATTACHED_LABEL) {
                    return None;
                }
                labels.remove(TASK_LABEL).or_else(|| labels.remove(SANDBOX_LABEL))
            });
            let mut tasks: BTreeSet<Id> = tasks.map(|task| Id::from(task.as_str())).collect();
            tasks.extend(self.in_memory.iter().flat_map(InMemory::list));
            Ok(tasks.into_iter().collect())
        })
    }

    fn logs(&self, task: &Id, query: LogQuery) -> io::Result<LogStream> {
        let (this, task) = (self.clone(), task.clone());
        let lines = async move {
            let Ok(Some(id)) = this.id_of(&task).await else {
                return futures_util::stream::empty().boxed();
            };
            let tail = query.tail.map_or_else(|| "all".to_owned(), |tail| tail.to_string());
            let options = LogsOptionsBuilder::default()
                .follow(query.follow)
                .stdout(query.stdout)
                .stderr(query.stderr)
                .since(query.since.map_or(0, whole_seconds))
                // The whole second; what is too much of it is left out below.
                .until(query.until.map_or(0, |until| whole_seconds(until).saturating_add(1)))
                .timestamps(true)
                .tail(&tail)
                .build();
            let output = this.docker.logs(&id, Some(options));
            let lines = output.filter_map(|line| async { line_of(line.ok()?) });
            lines.filter(move |line| std::future::ready(query.wants(line))).boxed()
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

fn whole_seconds(at: Time) -> i32 {
    i32::try_from(at.0 / 1_000_000_000).unwrap_or(i32::MAX)
}

const ANSWER_SECONDS: u64 = 120;
const ASK_AGAIN: Duration = Duration::from_millis(500);
const REMOVE_AGAIN: Duration = Duration::from_secs(10);
/// Events may be lost with a connection.
const LOOK_ANYWAY: Duration = Duration::from_secs(30);
/// As of a program that SIGKILL ended.
const KILLED: i64 = 137;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_as_clients_send_them() {
        // {"username":"u","password":"p?>","serveraddress":"r:5000"}
        for text in [
            "eyJ1c2VybmFtZSI6InUiLCJwYXNzd29yZCI6InA_PiIsInNlcnZlcmFkZHJlc3MiOiJyOjUwMDAifQ==",
            "eyJ1c2VybmFtZSI6InUiLCJwYXNzd29yZCI6InA/PiIsInNlcnZlcmFkZHJlc3MiOiJyOjUwMDAifQ",
        ] {
            let found = credentials(text).unwrap();
            assert_eq!(found.username.as_deref(), Some("u"));
            assert_eq!(found.password.as_deref(), Some("p?>"));
            assert_eq!(found.serveraddress.as_deref(), Some("r:5000"));
        }
        for bad in ["", "x", "e30=x", "bm90IGpzb24="] {
            assert!(credentials(bad).is_none(), "{bad}");
        }
    }
}
