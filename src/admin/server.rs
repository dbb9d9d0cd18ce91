//! The admin server's paths, on hyper. Not here: what they show (`views`, `metrics`).

use std::convert::Infallible;
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode, header};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;

use super::{AdminState, Phase, metrics, views};
use crate::places::{Crowd, Places, Table};

/// Accepts until `handed_over`, whoever has how many connections: when there are too many, whoever has most loses its silent
/// oldest one. Serves until `shutdown`; then what is open is dropped.
pub async fn serve(
    listener: TcpListener,
    state: Arc<AdminState>,
    handed_over: impl Future<Output = ()>,
    shutdown: impl Future<Output = ()>,
) {
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
                // Whoever waits to be accepted is the other process's.
                listener = None;
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
                    Ok::<_, Infallible>(answer(&state, &request).await)
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

async fn answer(state: &Arc<AdminState>, request: &Request<Incoming>) -> Response<Full<Bytes>> {
    if request.method() != Method::GET && request.method() != Method::HEAD {
        let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "expected GET\n".to_owned());
        let allowed = header::HeaderValue::from_static("GET, HEAD");
        response.headers_mut().insert(header::ALLOW, allowed);
        return response;
    }
    match request.uri().path() {
        "/livez" => live(state).await,
        "/healthz" => healthy(state).await,
        "/readyz" => ready(state),
        "/metrics" => scrape(state, request),
        "/v1/table" => json(&views::table(&state.table, Instant::now())),
        "/v1/status" => json(&views::status(state, Instant::now())),
        "/" => text(
            StatusCode::OK,
            "/metrics /livez /healthz /readyz /v1/table /v1/status /v1/verify\n".to_owned(),
        ),
        "/v1/verify" => json(&(state.verify)().await),
        path => text(
            StatusCode::NOT_FOUND,
            format!("no {path}: there is /metrics /livez /healthz /readyz /v1/table /v1/status /v1/verify\n"),
        ),
    }
}

/// Alive while every worker comes to its work; that this is answered shows that the thread of all else does.
async fn live(state: &AdminState) -> Response<Full<Bytes>> {
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
async fn healthy(state: &AdminState) -> Response<Full<Bytes>> {
    let live = live(state).await;
    match live.status().is_success() && !state.source.is_known() {
        true => text(StatusCode::SERVICE_UNAVAILABLE, format!("{}\n", views::unknown(state))),
        false => live,
    }
}

/// Ready while it serves, and has something to serve. What is wrong with the source or a port is said, and takes no node out
/// of rotation: it serves everything else as well as its neighbours do.
fn ready(state: &AdminState) -> Response<Full<Bytes>> {
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

fn scrape(state: &Arc<AdminState>, request: &Request<Incoming>) -> Response<Full<Bytes>> {
    let query = request.uri().query().unwrap_or_default();
    let has_detail = query.split('&').any(|pair| pair == "detail=endpoint");
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    respond(StatusCode::OK, kind, metrics::scrape(state, has_detail).into())
}

fn json(view: &impl serde::Serialize) -> Response<Full<Bytes>> {
    match serde_json::to_vec(view) {
        Ok(body) => respond(StatusCode::OK, "application/json", body.into()),
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
    }
}

fn text(status: StatusCode, body: String) -> Response<Full<Bytes>> {
    respond(status, "text/plain; charset=utf-8", body.into())
}

fn respond(status: StatusCode, kind: &'static str, body: Bytes) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body));
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
