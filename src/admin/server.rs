//! The admin server's paths, on hyper. Not here: what they show (`views`, `metrics`).

use std::convert::Infallible;
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, Limited, StreamBody};
use hyper::body::{Bytes, Incoming};
use hyper::header::{self, HeaderMap, HeaderName};
use hyper::http::request::Parts;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use socket2::SockRef;
use tokio::net::TcpListener;

use super::guest::{self, Asked, Ends, Refusal};
use super::moment::unix_ms;
use super::plain::{Format, plain};
use super::{AdminState, Phase, detail, files, live, metrics, views, why};
use crate::places::{Crowd, Places, Table};
use crate::sys::socket::{Liveness, set_stream_options};

/// Accepts until `handed_over`, whoever has how many connections: when there are too many, whoever has most loses its silent
/// oldest one. Serves until `shutdown`; then what is open is dropped.
pub async fn serve(
    listener: TcpListener,
    state: Arc<AdminState>,
    handed_over: impl Future<Output = ()>,
    shutdown: impl Future<Output = ()>,
) {
    if let Ok(here) = listener.local_addr() {
        let state = state.clone();
        // A file may be long in coming, and health is asked for meanwhile.
        tokio::spawn(async move { guest::look(&state, here).await });
    }
    let places = Places::new(Table::Admin, CONNECTIONS_MAX);
    tokio::pin!(handed_over, shutdown);
    let mut open = tokio::task::JoinSet::new();
    let mut listener = Some(listener);
    let mut crowd = Crowd::default();
    loop {
        let accepted = async {
            match &listener {
                Some(listener) => listener.accept().await,
                None => std::future::pending().await,
            }
        };
        let accepted = tokio::select! {
            () = &mut shutdown => break,
            () = &mut handed_over, if listener.is_some() => {
                // Whoever waits to be accepted is the other process's, and so is what there is to see.
                listener = None;
                state.live.end();
                continue;
            }
            Some(_) = open.join_next() => continue,
            accepted = accepted => accepted,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "admin: accept");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let here = match stream.local_addr() {
            Ok(here) => here,
            Err(error) => {
                tracing::debug!(%error, "admin: gone before it was looked at");
                continue;
            }
        };
        let ends = Ends { client: peer, here };
        // Who is gone, or never reads, is found out also while nobody else wants the place.
        if let Err(error) = set_stream_options(&SockRef::from(&stream), &Liveness::default()) {
            tracing::debug!(%error, "admin: options of a connection");
        }
        let state = state.clone();
        let place = Arc::new(places.take(peer.ip().to_canonical()));
        let is_crowded = place.is_in_anothers();
        open.spawn(async move {
            let stream = place.watch(stream);
            let of_connection = place.clone();
            let service = service_fn(move |request| {
                let (state, busy) = (state.clone(), of_connection.busy());
                async move {
                    let _busy = busy;
                    if !is_short(request.uri().path()) {
                        // One answer a turn, though a client asks for many at once: the next is that of another.
                        tokio::task::yield_now().await;
                    }
                    Ok::<_, Infallible>(answer(&state, ends, request).await)
                }
            });
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD_TIMEOUT)
                .serve_connection(TokioIo::new(stream), service);
            tokio::select! {
                served = connection => if let Err(error) = served {
                    tracing::debug!(%error, "admin: connection");
                },
                () = place.told_to_leave() => tracing::debug!(%peer, "admin: silent for longest of too many connections"),
            }
        });
        if is_crowded && crowd.is_enough() {
            tokio::task::yield_now().await;
        }
    }
}

/// Whether an answer costs next to nothing.
fn is_short(path: &str) -> bool {
    matches!(path, "/livez" | "/readyz" | "/healthz")
}

async fn answer(state: &Arc<AdminState>, ends: Ends, request: Request<Incoming>) -> Response<Body> {
    let (request, body) = request.into_parts();
    let mut response = match guest::admit(state, ends, Asked::of(request.uri.path()), &request).await {
        Ok(()) => show(state, ends, &request, body).await,
        Err(refusal) => refuse(refusal),
    };
    harden(response.headers_mut());
    response
}

async fn show(state: &Arc<AdminState>, ends: Ends, request: &Parts, body: Incoming) -> Response<Body> {
    let path = request.uri.path();
    let methods: &[Method] = match path {
        "/login" => &[Method::POST],
        _ => &[Method::GET, Method::HEAD],
    };
    if !methods.contains(&request.method) {
        let allowed = methods.iter().map(Method::as_str).collect::<Vec<_>>().join(", ");
        let mut response = text(StatusCode::METHOD_NOT_ALLOWED, format!("{path}: expected {allowed}\n"));
        if let Ok(allowed) = header::HeaderValue::from_str(&allowed) {
            response.headers_mut().insert(header::ALLOW, allowed);
        }
        return response;
    }
    match path {
        "/livez" => live(state).await,
        "/healthz" => healthy(state).await,
        "/readyz" => ready(state),
        "/metrics" => scrape(state, request),
        "/login" => login(state, body).await,
        "/v1/stream" => stream(state, ends),
        "/v1/table" => json(&views::table(&state.table, Instant::now())),
        "/v1/status" => json(&status(state)),
        "/v1/why" => why(state, request.uri.query().unwrap_or_default()).await,
        "/v1/verify" => json(&(state.verify)().await),
        "/" if !files::wants_page(&request.headers) => text(StatusCode::OK, format!("{PATHS}\n")),
        path => match (files::at(path), path.strip_prefix("/v1/services/")) {
            (Some(file), _) => page(file, &request.headers),
            (None, Some(name)) => match detail::service(state, name) {
                Some(service) => json(&service),
                None => text(StatusCode::NOT_FOUND, format!("no service {name:?}\n")),
            },
            (None, None) => text(StatusCode::NOT_FOUND, format!("no {path}: there is {PATHS}\n")),
        },
    }
}

/// What a program may ask for.
const PATHS: &str = "/metrics /livez /healthz /readyz /v1/table /v1/status /v1/verify /v1/why /v1/services/NAME /v1/stream, and / for browsers";

/// A file of the page. It is asked for again each time, since an update of anynode brings others.
fn page(file: &files::File, headers: &HeaderMap) -> Response<Body> {
    let mut response = match files::is_known(file, headers) {
        true => respond(StatusCode::NOT_MODIFIED, file.kind, Bytes::new()),
        false => respond(StatusCode::OK, file.kind, file.body.clone()),
    };
    let headers = response.headers_mut();
    headers.insert(header::ETAG, file.etag.clone());
    headers.insert(header::VARY, header::HeaderValue::from_static("accept"));
    headers.insert(header::CACHE_CONTROL, header::HeaderValue::from_static("no-cache"));
    response
}

/// Begins a session for who sends the token.
async fn login(state: &AdminState, body: Incoming) -> Response<Body> {
    let read = tokio::time::timeout(HEAD_TIMEOUT, Limited::new(body, LOGIN_BYTES_MAX).collect()).await;
    let Ok(Ok(read)) = read else {
        return text(StatusCode::BAD_REQUEST, "expected the token as the body\n".to_owned());
    };
    let said = String::from_utf8_lossy(&read.to_bytes()).into_owned();
    match guest::login(state, &said).await {
        Ok((session, until)) => json(&serde_json::json!({ "session": session, "expires_ms": unix_ms(until) })),
        Err(refusal) => refuse(refusal),
    }
}

/// Why a client goes where it goes.
async fn why(state: &AdminState, query: &str) -> Response<Body> {
    let (asked, node) = match why::Question::parse(query) {
        Ok(asked) => asked,
        Err(error) => return text(StatusCode::BAD_REQUEST, format!("{error}\n")),
    };
    match why::ask(state, &asked, node.as_deref()).await {
        Ok(answer) => json(&answer),
        Err(error) => text(StatusCode::BAD_REQUEST, format!("{error}\n")),
    }
}

/// All that the page shows, and what changes of it.
fn stream(state: &AdminState, ends: Ends) -> Response<Body> {
    let party = ends.client.ip().to_canonical();
    let mut response = Response::new(StreamBody::new(live::stream(state, party)).boxed_unsync());
    let kind = header::HeaderValue::from_static("text/event-stream");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

fn refuse(refusal: Refusal) -> Response<Body> {
    let mut response = text(refusal.status, format!("{}\n", refusal.text));
    if refusal.status == StatusCode::UNAUTHORIZED {
        let scheme = header::HeaderValue::from_static("Bearer realm=\"anynode\"");
        response.headers_mut().insert(header::WWW_AUTHENTICATE, scheme);
    }
    response
}

/// What a browser is told with every answer: to run nothing but our own files, to show them within no other page, to give
/// what it reads to nobody, and to keep nothing.
fn harden(headers: &mut HeaderMap) {
    for (name, value) in [
        (header::CONTENT_SECURITY_POLICY, CSP),
        (header::X_FRAME_OPTIONS, "DENY"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    ] {
        headers.insert(name, header::HeaderValue::from_static(value));
    }
    let unless_said = header::HeaderValue::from_static("no-store");
    headers.entry(header::CACHE_CONTROL).or_insert(unless_said);
}

const CSP: &str = "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src 'self' data:; \
                   form-action 'none'; base-uri 'none'; frame-ancestors 'none'";
const LOGIN_BYTES_MAX: usize = 4096;

/// Alive while every worker comes to its work; that this is answered shows that the thread of all else does.
async fn live(state: &AdminState) -> Response<Body> {
    let stuck = state.workers.stuck(STUCK_AFTER).await;
    match stuck.is_empty() {
        true => text(StatusCode::OK, "ok\n".to_owned()),
        false => {
            let numbers: Vec<String> = stuck.iter().map(ToString::to_string).collect();
            let said = format!(
                "stuck: no answer from worker {} within {STUCK_AFTER:?}\n",
                numbers.join(", ")
            );
            text(StatusCode::SERVICE_UNAVAILABLE, said)
        }
    }
}

/// For whoever replaces a node that does not do its work: it lives, and has something to serve. That the source is away,
/// or that it drains, is no reason.
async fn healthy(state: &AdminState) -> Response<Body> {
    let live = live(state).await;
    match live.status().is_success() && !state.source.is_known() {
        true => text(StatusCode::SERVICE_UNAVAILABLE, format!("{}\n", views::unknown(state))),
        false => live,
    }
}

/// Ready while it serves, and has something to serve. What is wrong with the source or a port is said, and takes no node out
/// of rotation: it serves everything else as well as its neighbours do.
fn ready(state: &AdminState) -> Response<Body> {
    let phase = views::phase(state);
    let status = match phase {
        Phase::Serving => StatusCode::OK,
        Phase::Starting | Phase::Draining => StatusCode::SERVICE_UNAVAILABLE,
    };
    let mut lines = format!("{}\n", phase.as_str());
    for complaint in views::complaints(state) {
        lines.push_str(&complaint);
        lines.push('\n');
    }
    text(status, lines)
}

fn status(state: &AdminState) -> views::StatusView {
    let lately = views::Lately {
        since_ms: &|service, endpoint| state.live.since_ms(service, endpoint),
        figures: &|service| state.live.figures_of(service),
    };
    views::status(state, &lately, Instant::now())
}

fn scrape(state: &Arc<AdminState>, request: &Parts) -> Response<Body> {
    let query = request.uri.query().unwrap_or_default();
    let has_detail = query.split('&').any(|pair| pair == "detail=endpoint");
    let format = Format::wanted(&request.headers);
    let text = metrics::scrape(state, has_detail);
    let text = match format {
        Format::OpenMetrics => text,
        Format::Plain => plain(&text),
    };
    let mut response = respond(StatusCode::OK, format.content_type(), text.into());
    let headers = response.headers_mut();
    headers.insert(header::VARY, header::HeaderValue::from_static("Accept"));
    response
}

fn json(view: &impl serde::Serialize) -> Response<Body> {
    match serde_json::to_vec(view) {
        Ok(body) => respond(StatusCode::OK, "application/json", body.into()),
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
    }
}

fn text(status: StatusCode, body: String) -> Response<Body> {
    respond(status, "text/plain; charset=utf-8", body.into())
}

/// All at once, or a part after the other.
type Body = UnsyncBoxBody<Bytes, Infallible>;

fn respond(status: StatusCode, kind: &'static str, body: Bytes) -> Response<Body> {
    let mut response = Response::new(Full::new(body).boxed_unsync());
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, header::HeaderValue::from_static(kind));
    response
}

const CONNECTIONS_MAX: usize = 64;
/// Work of a worker takes microseconds; on a machine that is full, its thread may wait for a while.
const STUCK_AFTER: Duration = Duration::from_secs(2);
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
