//! All that is not the swarm's is passed on to the engine beside it, as it comes: long bodies, streams and upgraded
//! connections too, at an API version that both speak.

use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Incoming};
use hyper::client::conn::http1;
use hyper::header::{CONTENT_LENGTH, CONTENT_TYPE, HOST, HeaderValue};
use hyper::upgrade::Upgraded;
use hyper::{Method, Request, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::UnixStream;

use super::outside::Outside;
use super::wire::{self, Answer, ApiError, Caller, NEWEST, RequestBody, Version};
use crate::places::{Cut, Places};

fn none_here() -> ApiError {
    ApiError::not_implemented(
        "there is no Docker Engine beside this anynode: only the swarm's commands work. Start one, or name it with --engine",
    )
}

/// The engine beside this program, if there is one.
pub(super) struct Engine {
    outside: Arc<dyn Outside>,
    /// The newest version that it was last heard to speak.
    known: Mutex<Option<Version>>,
    /// When it last did not say.
    silent_at: Mutex<Option<Instant>>,
    /// For each connection that became its own.
    streams: Arc<Places<Caller>>,
}

impl Engine {
    pub(super) fn new(outside: Arc<dyn Outside>, streams: Arc<Places<Caller>>) -> Engine {
        Engine {
            outside,
            known: Mutex::default(),
            silent_at: Mutex::default(),
            streams,
        }
    }

    /// std mutex: nothing awaits under it.
    fn known(&self) -> MutexGuard<'_, Option<Version>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Passes a request on.
    pub(super) async fn pass(
        &self,
        request: Request<RequestBody>,
        version: Version,
        path: &str,
    ) -> Result<Answer, ApiError> {
        let socket = self.outside.engine().ok_or_else(none_here)?;
        let query = request
            .uri()
            .query()
            .map(|query| format!("?{query}"))
            .unwrap_or_default();
        let path = format!("/v{}{path}{query}", self.spoken(&socket, version).await);
        let caller = Caller::of(&request);
        let (mut parts, body) = request.into_parts();
        parts.uri = path
            .parse::<Uri>()
            .map_err(|error| ApiError::bad(format!("{path}: {error}")))?;
        let upgrade = parts.extensions.remove::<hyper::upgrade::OnUpgrade>();
        let answer = exchange(&socket, Request::from_parts(parts, body)).await?;
        let (mut head, body) = answer.into_parts();
        if head.status == StatusCode::SWITCHING_PROTOCOLS
            && let (Some(ours), Some(theirs)) = (upgrade, head.extensions.remove::<hyper::upgrade::OnUpgrade>())
        {
            let place = self.streams.take(caller);
            tokio::spawn(async move {
                let (Ok(ours), Ok(theirs)) = (ours.await, theirs.await) else {
                    return;
                };
                let (mut ours, mut theirs) = (place.watch(TokioIo::new(ours)), TokioIo::new(theirs));
                tokio::select! {
                    // Either side may end its half; an error ends both.
                    _ = tokio::io::copy_bidirectional(&mut ours, &mut theirs) => {}
                    () = place.told_to_leave() => {}
                }
            });
            let mut answer = wire::empty(StatusCode::SWITCHING_PROTOCOLS);
            *answer.headers_mut() = head.headers;
            return Ok(answer);
        }
        let body = body.map_err(io::Error::other).boxed_unsync();
        Ok(hyper::Response::from_parts(head, body))
    }

    /// Sends a request of ours, and passes the answer back.
    pub(super) async fn send(
        &self,
        method: Method,
        version: Version,
        path: &str,
        body: Vec<u8>,
    ) -> Result<Answer, ApiError> {
        let socket = self.outside.engine().ok_or_else(none_here)?;
        let path = format!("/v{}{path}", self.spoken(&socket, version).await);
        let answer = exchange(&socket, request(method, &path, body)?).await?;
        let (head, body) = answer.into_parts();
        Ok(hyper::Response::from_parts(
            head,
            body.map_err(io::Error::other).boxed_unsync(),
        ))
    }

    /// What the engine says for as long as it likes. Errors: there is none, or it refuses.
    pub(super) async fn open(&self, version: Version, path: &str) -> Result<Incoming, ApiError> {
        let socket = self.outside.engine().ok_or_else(none_here)?;
        let asked = async {
            let path = format!("/v{}{path}", self.spoken(&socket, version).await);
            let answer = exchange(&socket, request(Method::GET, &path, Vec::new())?).await?;
            match answer.status().is_success() {
                true => Ok(answer.into_body()),
                false => Err(ApiError::gateway(format!(
                    "the Docker Engine answers {}",
                    answer.status()
                ))),
            }
        };
        match tokio::time::timeout(PATIENCE, asked).await {
            Ok(answer) => answer,
            Err(_) => Err(ApiError::gateway("the Docker Engine does not answer")),
        }
    }

    /// What the engine says, as JSON. Errors: there is none, or it says that something is wrong.
    pub(super) async fn get(&self, path: &str) -> Result<Value, ApiError> {
        let socket = self.outside.engine().ok_or_else(none_here)?;
        let asked = async {
            let path = format!("/v{}{path}", self.spoken(&socket, NEWEST).await);
            let answer = exchange(&socket, request(Method::GET, &path, Vec::new())?).await?;
            let is_good = answer.status().is_success();
            let bytes = answer
                .into_body()
                .collect()
                .await
                .map_err(|error| ApiError::gateway(error.to_string()))?;
            let value: Value =
                serde_json::from_slice(&bytes.to_bytes()).map_err(|error| ApiError::gateway(error.to_string()))?;
            match is_good {
                true => Ok(value),
                false => Err(ApiError::gateway(value["message"].as_str().unwrap_or_default())),
            }
        };
        match tokio::time::timeout(PATIENCE, asked).await {
            Ok(answer) => answer,
            Err(_) => Err(ApiError::gateway("the Docker Engine does not answer")),
        }
    }

    /// The newest version that clients may speak: ours, or the engine's if that is older, since they speak to both at once.
    pub(super) async fn newest(&self) -> Version {
        let Some(socket) = self.outside.engine() else {
            return NEWEST;
        };
        if let Some(version) = ask_version(&socket).await {
            *self.known() = Some(version);
        }
        self.known().map_or(NEWEST, |version| version.min(NEWEST))
    }

    /// The same as it was last heard. One that was never heard is asked, but not again and again.
    pub(super) async fn known_newest(&self) -> Version {
        // std mutex: nothing awaits under it.
        let silent_at = || self.silent_at.lock().unwrap_or_else(PoisonError::into_inner);
        let known = *self.known();
        match known {
            Some(version) => version.min(NEWEST),
            None if silent_at().is_some_and(|at| at.elapsed() < SILENCE) => NEWEST,
            None => {
                let newest = self.newest().await;
                if self.known().is_none() {
                    *silent_at() = Some(Instant::now());
                }
                newest
            }
        }
    }

    /// The newest version up to `wanted` that the engine speaks.
    async fn spoken(&self, socket: &Path, wanted: Version) -> Version {
        let known = *self.known();
        let known = match known {
            Some(version) => Some(version),
            None => ask_version(socket).await,
        };
        *self.known() = known;
        known.map_or(wanted, |newest| newest.min(wanted))
    }
}

impl Cut for TokioIo<Upgraded> {
    /// Its bytes are the other end's own.
    fn cut(&self) {}
}

fn request(method: Method, path: &str, body: Vec<u8>) -> Result<Request<Full<Bytes>>, ApiError> {
    let length = HeaderValue::from(body.len());
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(HOST, "docker")
        .header(CONTENT_LENGTH, length)
        .header(CONTENT_TYPE, "application/json")
        .body(Full::new(body.into()));
    request.map_err(|error| ApiError::bad(error.to_string()))
}

async fn exchange<B>(socket: &Path, request: Request<B>) -> Result<hyper::Response<Incoming>, ApiError>
where
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let gone = |error: &dyn std::fmt::Display| {
        ApiError::gateway(format!(
            "the Docker Engine at {} does not answer: {error}",
            socket.display()
        ))
    };
    let stream = UnixStream::connect(socket).await.map_err(|error| gone(&error))?;
    let handshake = http1::handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = handshake.map_err(|error| gone(&error))?;
    tokio::spawn(async move {
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(%error, "the connection to the engine");
        }
    });
    sender.send_request(request).await.map_err(|error| gone(&error))
}

async fn ask_version(socket: &Path) -> Option<Version> {
    let ping = async {
        let answer = exchange(socket, request(Method::GET, "/_ping", Vec::new()).ok()?)
            .await
            .ok()?;
        let version = answer.headers().get("Api-Version")?.to_str().ok()?;
        let (major, minor) = version.split_once('.')?;
        Some(Version(major.parse().ok()?, minor.parse().ok()?))
    };
    tokio::time::timeout(PING_PATIENCE, ping).await.ok()?
}

/// One that does not say what it speaks is asked for it no sooner again, but by those who want to know.
const SILENCE: Duration = Duration::from_secs(5);
const PATIENCE: Duration = Duration::from_secs(5);
/// The command line gives up on the first answer after two seconds.
const PING_PATIENCE: Duration = Duration::from_secs(1);
