//! What there is, by path: the swarm's is answered by the resources, everything else by the engine. Where there is none, volumes
//! are this node's.

use std::sync::Arc;

use hyper::body::Incoming;
use hyper::header::{HeaderMap, HeaderValue, SERVER};
use hyper::{Method, Request, StatusCode};
use serde_json::json;
use tokio::sync::Semaphore;

use super::backend::Backend;
use super::resources::{
    container_list, containers, events, exec, logs, networks, nodes, payloads, services, swarm, system, tasks, volumes,
};
use super::wire::{self, Answer, ApiError, Asked, Bodies, Caller, NEWEST, OLDEST, RequestBody, Version};

/// Leads requests to whoever answers them.
pub(super) struct Router {
    pub(super) backend: Arc<Backend>,
    events: Arc<events::Events>,
    execs: exec::Execs,
    bodies: Arc<Bodies>,
}

impl Router {
    pub(super) fn new(backend: Backend) -> Router {
        Router {
            events: Arc::new(events::Events::new(&backend)),
            execs: exec::Execs::new(),
            bodies: Arc::default(),
            backend: Arc::new(backend),
        }
    }

    /// Keeps what changes for those who ask later, for ever.
    pub(super) async fn follow_events(&self) {
        if let Some(lock) = self.backend.lock() {
            lock.opened().await;
        }
        swarm::see_to_authority(&self.backend).await;
        swarm::see_to_resources(&self.backend).await;
        self.events.follow(&*self.backend.store).await;
    }

    pub(super) async fn answer(&self, request: Request<Incoming>) -> Answer {
        let (method, path) = (request.method().clone(), request.uri().path().to_owned());
        let mut answer = match self.route(request.map(RequestBody::new)).await {
            Ok(answer) => answer,
            Err(error) => {
                tracing::debug!(%method, path, status = error.status.as_u16(), error.message, "API");
                failed(&error)
            }
        };
        stamp(answer.headers_mut(), self.backend.engine.known_newest().await);
        answer
    }

    async fn route(&self, request: Request<RequestBody>) -> Result<Answer, ApiError> {
        let (version, rest) = wire::split_version(request.uri().path())?;
        if let Some(version) = version {
            if version < OLDEST {
                return Err(ApiError::bad(format!(
                    "client version {version} is too old. Minimum supported API version is {OLDEST}, please upgrade your client \
                 to a newer version"
                )));
            }
            if version > NEWEST {
                return Err(ApiError::bad(format!(
                    "client version {version} is too new. Maximum supported API version is {NEWEST}"
                )));
            }
        }
        let version = version.unwrap_or(NEWEST);
        let path: Vec<String> = rest.split('/').skip(1).map(wire::decode).collect();
        let words: Vec<&str> = path.iter().map(String::as_str).collect();
        let has_volumes = words.first() == Some(&"volumes") && self.backend.outside.volumes().is_some();
        let is_ours = is_ours(request.method(), &words)
            || has_volumes
            || self.backend.outside.engine().is_none() && is_ours_without_engine(request.method(), &words);
        if !is_ours {
            return match self.backend.outside.engine() {
                None if !is_an_engines(&words) => Err(ApiError::page_not_found()),
                _ => {
                    let _turn = containers::before(&self.backend, request.method(), &words).await?;
                    self.backend.engine.pass(request, version, &rest).await
                }
            };
        }
        let query = wire::parse_query(request.uri().query().unwrap_or_default());
        let caller = Caller::of(&request);
        let (mut parts, body) = request.into_parts();
        let asked = Asked {
            upgrade: parts.extensions.remove(),
            caller,
            method: parts.method,
            query,
            path,
            headers: parts.headers,
            body,
            bodies: self.bodies.clone(),
        };
        let is_locked = self.backend.lock().is_some();
        let answered = self.dispatch(asked, version).await;
        answered.map_err(|error| match is_locked {
            true => error.of_locked_swarm(),
            false => error,
        })
    }

    async fn dispatch(&self, asked: Asked, version: Version) -> Result<Answer, ApiError> {
        let backend = &self.backend;
        let path = asked.path.clone();
        let path: Vec<&str> = path.iter().map(String::as_str).collect();
        let method = asked.method.clone();
        let (get, post, delete) = (method == Method::GET, method == Method::POST, method == Method::DELETE);
        match path.as_slice() {
            ["_ping"] if get || method == Method::HEAD => Ok(system::ping(backend, get).await),
            ["version"] if get => Ok(wire::json(StatusCode::OK, &system::version(backend).await)),
            ["info"] if get => Ok(wire::json(StatusCode::OK, &system::info(backend).await)),
            ["events"] if get => events::stream(&self.events, backend, &asked, version).await,
            ["swarm", rest @ ..] => swarm::dispatch(backend, asked, rest).await,
            ["services"] if get => {
                beside(backend, asked, move |backend, asked| {
                    services::list(backend, asked, version)
                })
                .await
            }
            ["services", "create"] if post => services::create(backend, asked).await,
            ["services", id] if get => services::inspect(backend, &asked, id),
            ["services", id] if delete => services::remove(backend, id).await,
            ["services", id, "update"] if post => services::update(backend, asked, id).await,
            ["services", id, "logs"] if get => logs::of_service(backend, &asked, id, version),
            ["tasks"] if get => beside(backend, asked, tasks::list).await,
            ["tasks", id] if get => tasks::inspect(backend, id),
            ["tasks", id, "logs"] if get => logs::of_task(backend, &asked, id, version),
            ["nodes"] if get => nodes::list(backend, &asked),
            ["nodes", id] if get => nodes::inspect(backend, id),
            ["nodes", id] if delete => nodes::remove(backend, id),
            ["nodes", id, "update"] if post => nodes::update(backend, asked, id).await,
            ["configs" | "secrets", rest @ ..] => payloads::dispatch(backend, asked, rest).await,
            ["containers", "create"] if post => containers::create(backend, asked, version).await,
            ["containers", "json"] if get && backend.outside.engine().is_none() => {
                beside(backend, asked, container_list::list_processes).await
            }
            ["containers", "json"] if get => container_list::list(backend, &asked, version).await,
            ["containers", _, "json"] if get && backend.outside.engine().is_none() => {
                beside(backend, asked, container_list::inspect_process).await
            }
            ["containers", id, "json"] if get => container_list::inspect(backend, &asked, id, version).await,
            ["containers", id, "exec"] if post => exec::create(backend, &self.execs, &self.events, asked, id).await,
            ["exec", id, "start"] if post => exec::start(backend, &self.execs, &self.events, asked, id, version).await,
            ["exec", id, "resize"] if post => exec::resize(&self.execs, &asked, id).await,
            ["exec", id, "json"] if get => exec::inspect(&self.execs, id),
            ["networks", id, what @ ("connect" | "disconnect")] if post => {
                containers::join(backend, asked, id, what, version).await
            }
            ["networks", rest @ ..] => networks::dispatch(backend, asked, rest, version).await,
            ["volumes", rest @ ..] => match backend.outside.volumes() {
                Some(volumes) => volumes::dispatch(volumes, &self.events, asked, rest, version).await,
                None => Err(ApiError::page_not_found()),
            },
            _ => Err(ApiError::page_not_found()),
        }
    }
}

/// Whether a path is the swarm's, or belongs to the engine.
fn is_ours(method: &Method, path: &[&str]) -> bool {
    match path {
        ["_ping" | "version" | "info" | "events"] => true,
        ["swarm" | "services" | "tasks" | "nodes" | "configs" | "secrets", ..] => true,
        ["containers", "create"] => *method == Method::POST,
        ["containers", "json"] | ["containers", _, "json"] => *method == Method::GET,
        ["networks", ..] => matches!(*method, Method::GET | Method::HEAD | Method::POST | Method::DELETE),
        _ => false,
    }
}

/// Whether a path is an engine's where there is one, and is answered here where tasks are processes.
fn is_ours_without_engine(method: &Method, path: &[&str]) -> bool {
    match path {
        ["containers", _, "exec"] | ["exec", _, "start" | "resize"] => *method == Method::POST,
        ["exec", _, "json"] => *method == Method::GET,
        _ => false,
    }
}

/// Whether an engine has such a path; where there is none, others lead nowhere.
fn is_an_engines(path: &[&str]) -> bool {
    const FIRST: [&str; 14] = [
        "auth",
        "build",
        "commit",
        "containers",
        "debug",
        "distribution",
        "exec",
        "grpc",
        "images",
        "networks",
        "plugins",
        "session",
        "system",
        "volumes",
    ];
    path.first().is_some_and(|first| FIRST.contains(first))
}

/// Answers on a thread beside: a long list is no reason for others to wait. A few at a time.
async fn beside(
    backend: &Arc<Backend>,
    asked: Asked,
    answer: impl FnOnce(&Backend, &Asked) -> Result<Answer, ApiError> + Send + 'static,
) -> Result<Answer, ApiError> {
    static PLACES: Semaphore = Semaphore::const_new(4);
    // An error would say that it is closed, which it never is.
    let _place = PLACES.acquire().await;
    let backend = backend.clone();
    let answered = tokio::task::spawn_blocking(move || answer(&backend, &asked)).await;
    answered.unwrap_or_else(|error| Err(ApiError::unknown(error.to_string())))
}

/// What each answer has in its head, whoever it is from: clients take it from any of them.
fn stamp(headers: &mut HeaderMap, newest: Version) {
    if let Ok(newest) = HeaderValue::from_str(&newest.to_string()) {
        headers.insert("Api-Version", newest);
    }
    headers.insert("Ostype", HeaderValue::from_static("linux"));
    headers.insert("Docker-Experimental", HeaderValue::from_static("false"));
    let program = concat!("anynode/", env!("CARGO_PKG_VERSION"), " (linux)");
    headers.insert(SERVER, HeaderValue::from_static(program));
}

fn failed(error: &ApiError) -> Answer {
    wire::json(error.status, &json!({ "message": error.message }))
}
