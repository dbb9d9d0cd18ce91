//! HTTP on the socket: requests with their version, query and body, bounded in size and time; answers in JSON.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::header::{CONTENT_TYPE, HeaderMap, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::Serialize;
use serde::de::{DeserializeOwned, Deserializer};
use tokio::net::UnixListener;

use super::error::ApiError;
use super::{Api, engine, system};
use crate::places::{Busy, Crowd, Place, Places, Table};

/// What is sent.
pub(super) type Answer = Response<UnsyncBoxBody<Bytes, io::Error>>;

/// The API version that is spoken where none is asked for, and the newest.
pub(super) const NEWEST: Version = Version(1, 48);
pub(super) const OLDEST: Version = Version(1, 24);

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Version(pub(super) u16, pub(super) u16);

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.0, self.1)
    }
}

/// A request for the swarm part, its body still to be read.
pub(super) struct Asked {
    pub(super) method: Method,
    /// Without the version, split at slashes, decoded.
    pub(super) path: Vec<String>,
    pub(super) query: BTreeMap<String, String>,
    pub(super) headers: HeaderMap,
    pub(super) body: Incoming,
    pub(super) caller: Caller,
}

/// The user whose program asks, by number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Caller(pub(super) u32);

impl Asked {
    pub(super) fn query(&self, key: &str) -> Option<&str> {
        self.query.get(key).map(String::as_str)
    }

    /// A switch as most of them are: on unless it says no.
    pub(super) fn is_on(&self, key: &str) -> bool {
        let value = self.query(key).unwrap_or_default().to_ascii_lowercase();
        !matches!(value.as_str(), "" | "0" | "no" | "false" | "none")
    }

    /// A switch of the stricter kind. Errors: it is neither on nor off.
    pub(super) fn truth(&self, key: &str) -> Result<bool, ApiError> {
        match self.query(key).unwrap_or_default() {
            "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
            "" | "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
            other => Err(ApiError::bad(format!(
                "invalid value for {key}: {other}: expected true or false"
            ))),
        }
    }

    /// The body as JSON. Errors: it is too long, too slow, or no such JSON.
    pub(super) async fn json<T: DeserializeOwned>(self, api: &Api) -> Result<T, ApiError> {
        let kind = self
            .headers
            .get(CONTENT_TYPE)
            .and_then(|kind| kind.to_str().ok())
            .unwrap_or_default();
        let is_json = kind
            .split(';')
            .next()
            .is_none_or(|kind| matches!(kind.trim(), "" | "application/json"));
        if !is_json {
            return Err(ApiError::bad(format!(
                "unsupported Content-Type header ({kind}): must be 'application/json'"
            )));
        }
        let (bytes, _place) = read(api, self.caller, self.body).await?;
        if bytes.is_empty() {
            return Err(ApiError::bad("got EOF while reading request body"));
        }
        let mut reader = serde_json::Deserializer::from_slice(&bytes);
        let value = typed(&mut reader)?;
        reader
            .end()
            .map_err(|error| ApiError::bad(format!("invalid JSON: {error}")))?;
        Ok(value)
    }

    /// Reads a body that says nothing here.
    pub(super) async fn no_body(self, api: &Api) -> Result<(), ApiError> {
        read(api, self.caller, self.body).await.map(drop)
    }
}

/// What JSON says. Errors: at which member it says something else.
pub(super) fn typed<'de, T: DeserializeOwned>(
    json: impl Deserializer<'de, Error = serde_json::Error>,
) -> Result<T, ApiError> {
    serde_path_to_error::deserialize(json).map_err(|error| {
        let path = error.path().to_string();
        let place = if path == "." {
            String::new()
        } else {
            format!(" at {path}")
        };
        ApiError::bad(format!("invalid JSON{place}: {}", error.inner()))
    })
}

/// A body, and if it may be long, the place among the long ones that it holds.
async fn read(api: &Api, caller: Caller, body: Incoming) -> Result<(Bytes, Option<Place<Caller>>), ApiError> {
    let too_large = || {
        ApiError::too_large(format!(
            "request body too large: expected at most {BODY_BYTES_MAX} bytes"
        ))
    };
    if body.size_hint().lower() > BODY_BYTES_MAX as u64 {
        return Err(too_large());
    }
    let until = tokio::time::Instant::now() + BODY_PATIENCE;
    let place = match body.size_hint().upper() {
        Some(..=SHORT_BODY_BYTES) => None,
        _ => Some(api.long_bodies.take_within(caller, OTHERS_PATIENCE).await),
    };
    let body = body.map_frame(|frame| {
        place.iter().for_each(Place::moved);
        frame
    });
    let told_to_leave = async {
        match &place {
            Some(place) => place.told_to_leave().await,
            None => std::future::pending().await,
        }
    };
    let collected = tokio::select! {
        collected = tokio::time::timeout_at(until, Limited::new(body, BODY_BYTES_MAX).collect()) => collected,
        () = told_to_leave => {
            return Err(ApiError::unavailable(format!(
                "{LONG_BODIES_MAX} long request bodies are being read already, and this one did not go on: try again"
            )));
        }
    };
    match collected {
        Ok(Ok(body)) => Ok((body.to_bytes(), place)),
        Ok(Err(error)) if error.is::<http_body_util::LengthLimitError>() => Err(too_large()),
        Ok(Err(error)) => Err(ApiError::bad(format!("the request's body cannot be read: {error}"))),
        Err(_) => Err(ApiError::timed_out(format!(
            "the request's body did not come within {BODY_PATIENCE:?}"
        ))),
    }
}

pub(super) fn json(status: StatusCode, value: &impl Serialize) -> Answer {
    // Values that were made here serialize without fail.
    let mut bytes = serde_json::to_vec(value).unwrap_or_default();
    bytes.push(b'\n');
    let mut answer = Response::new(whole(bytes));
    *answer.status_mut() = status;
    answer
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    answer
}

pub(super) fn empty(status: StatusCode) -> Answer {
    let mut answer = Response::new(whole(Bytes::new()));
    *answer.status_mut() = status;
    answer
}

pub(super) fn whole(bytes: impl Into<Bytes>) -> UnsyncBoxBody<Bytes, io::Error> {
    Full::new(bytes.into())
        .map_err(|never: Infallible| match never {})
        .boxed_unsync()
}

fn failed(error: &ApiError) -> Answer {
    json(error.status, &serde_json::json!({ "message": error.message }))
}

/// Accepts and serves for ever, whoever has how many connections: when there are too many, the user who has most loses the
/// silent oldest one.
pub(super) async fn serve(api: Arc<Api>, listener: UnixListener) {
    let places = Places::new(Table::Api, CONNECTIONS_MAX);
    let mut crowd = Crowd::default();
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "the API does not accept");
                tokio::time::sleep(ACCEPT_BACKOFF).await;
                continue;
            }
        };
        let caller = Caller(stream.peer_cred().map_or(u32::MAX, |peer| peer.uid()));
        let place = Arc::new(places.take(caller));
        let is_crowded = place.is_in_anothers();
        let api = api.clone();
        tokio::spawn(async move {
            let mut stopping = api.stopping.subscribe();
            let stream = place.watch(stream);
            let of_connection = place.clone();
            let service = service_fn(move |mut request: Request<Incoming>| {
                let (api, busy) = (api.clone(), of_connection.busy());
                request.extensions_mut().insert(caller);
                async move {
                    if !request.uri().path().ends_with("/_ping") {
                        // One answer a turn, though a client asks for many at once: the next is that of another.
                        tokio::task::yield_now().await;
                    }
                    let answer = answer(&api, request).await;
                    let stream = is_stream(&answer).then(|| api.streams.take(caller));
                    Ok::<_, Infallible>(answer.map(|body| UnsyncBoxBody::new(Told::new(body, busy, stream))))
                }
            });
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD_PATIENCE)
                .max_buf_size(HEAD_BYTES_MAX)
                .serve_connection(TokioIo::new(stream), service)
                .with_upgrades();
            tokio::select! {
                served = connection => if let Err(error) = served {
                    tracing::debug!(%error, "API connection");
                },
                () = place.told_to_leave() => tracing::debug!("API: silent for longest of too many connections"),
                _ = stopping.wait_for(|is_stopping| *is_stopping) => {}
            }
        });
        if is_crowded && crowd.is_enough() {
            tokio::task::yield_now().await;
        }
    }
}

/// Nobody knows how long it will be, such as `logs --follow`.
fn is_stream(answer: &Answer) -> bool {
    answer.status() != StatusCode::SWITCHING_PROTOCOLS && answer.body().size_hint().exact().is_none()
}

/// The body of an answer, for which the other end waits until it has all of it. A stream ends when it has to give up its
/// place among streams.
struct Told {
    body: UnsyncBoxBody<Bytes, io::Error>,
    _busy: Busy,
    stream: Option<Streaming>,
}

struct Streaming {
    place: Arc<Place<Caller>>,
    told_to_leave: Pin<Box<dyn Future<Output = ()> + Send>>,
}

impl Told {
    fn new(body: UnsyncBoxBody<Bytes, io::Error>, busy: Busy, stream: Option<Place<Caller>>) -> Told {
        let stream = stream.map(|place| {
            let place = Arc::new(place);
            let told = place.clone();
            let told_to_leave: Pin<Box<dyn Future<Output = ()> + Send>> =
                Box::pin(async move { told.told_to_leave().await });
            Streaming { place, told_to_leave }
        });
        Told {
            body,
            _busy: busy,
            stream,
        }
    }
}

impl Body for Told {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        if let Some(stream) = &mut self.stream
            && stream.told_to_leave.as_mut().poll(cx).is_ready()
        {
            return Poll::Ready(Some(Err(io::Error::other(
                "too many streams, and this one was silent for longest",
            ))));
        }
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        if let Some(stream) = &self.stream
            && frame.is_ready()
        {
            stream.place.moved();
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

async fn answer(api: &Arc<Api>, request: Request<Incoming>) -> Answer {
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let mut answer = match route(api, request).await {
        Ok(answer) => answer,
        Err(error) => {
            tracing::debug!(%method, path, status = error.status.as_u16(), error.message, "API");
            failed(&error)
        }
    };
    system::stamp(answer.headers_mut());
    answer
}

async fn route(api: &Arc<Api>, request: Request<Incoming>) -> Result<Answer, ApiError> {
    let (version, rest) = split_version(request.uri().path())?;
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
    let path: Vec<String> = rest.split('/').skip(1).map(decode).collect();
    let words: Vec<&str> = path.iter().map(String::as_str).collect();
    if !system::is_ours(request.method(), &words) {
        return match api.outside.engine() {
            None if !system::is_an_engines(&words) => Err(ApiError::page_not_found()),
            _ => engine::pass(api, request, version, &rest).await,
        };
    }
    let query = parse_query(request.uri().query().unwrap_or_default());
    let caller = caller_of(&request);
    let (parts, body) = request.into_parts();
    let asked = Asked {
        caller,
        method: parts.method,
        query,
        path: words.iter().map(|word| (*word).to_owned()).collect(),
        headers: parts.headers,
        body,
    };
    system::dispatch(api, asked, version).await
}

/// Who asks, as `serve` has noted it.
pub(super) fn caller_of(request: &Request<Incoming>) -> Caller {
    request.extensions().get().copied().unwrap_or(Caller(u32::MAX))
}

/// The version in front of a path, and the path without it.
fn split_version(path: &str) -> Result<(Option<Version>, String), ApiError> {
    let Some(rest) = path.strip_prefix("/v") else {
        return Ok((None, path.to_owned()));
    };
    let (version, rest) = rest.split_once('/').unwrap_or((rest, ""));
    // `/volumes` is no version.
    if !version.starts_with(|first: char| first.is_ascii_digit()) {
        return Ok((None, path.to_owned()));
    }
    let parsed = version
        .split_once('.')
        .and_then(|(major, minor)| Some(Version(major.parse().ok()?, minor.parse().ok()?)));
    match parsed {
        Some(version) => Ok((Some(version), format!("/{rest}"))),
        None => Err(ApiError::bad(format!(
            "invalid API version v{version}: expected one such as v{NEWEST}"
        ))),
    }
}

/// `%2F` and the like. What is no such thing stays.
pub(super) fn decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut i = 0;
    while i < bytes.len() {
        let hex = bytes
            .get(i + 1..i + 3)
            .filter(|_| bytes[i] == b'%')
            .and_then(|hex| std::str::from_utf8(hex).ok());
        match hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(byte) => {
                out.push(byte);
                i += 3;
            }
            None => {
                out.push(bytes[i]);
                i += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// One part of a path, or a value of a query: all but letters and digits as `%2F` and the like.
pub(super) fn encode(text: &str) -> String {
    let byte = |byte: u8| match byte.is_ascii_alphanumeric() {
        true => char::from(byte).to_string(),
        false => format!("%{byte:02X}"),
    };
    text.bytes().map(byte).collect()
}

fn parse_query(query: &str) -> BTreeMap<String, String> {
    let pairs = query.split('&').filter(|pair| !pair.is_empty());
    let read = |text: &str| decode(&text.replace('+', " "));
    pairs
        .map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            (read(key), read(value))
        })
        .collect()
}

const HEAD_BYTES_MAX: usize = 64 << 10;
const HEAD_PATIENCE: Duration = Duration::from_secs(60);
const BODY_BYTES_MAX: usize = 4 << 20;
const BODY_PATIENCE: Duration = Duration::from_secs(20);
/// A body that says of itself that it is no longer waits for no other.
const SHORT_BODY_BYTES: u64 = 64 << 10;
/// So many longer ones are read at a time: each may become many times as long in memory.
pub(super) const LONG_BODIES_MAX: usize = 4;
/// How long they have to end by themselves while another long one waits.
const OTHERS_PATIENCE: Duration = Duration::from_millis(500);
const CONNECTIONS_MAX: usize = 512;
pub(super) const STREAMS_MAX: usize = 256;
const ACCEPT_BACKOFF: Duration = Duration::from_millis(50);
