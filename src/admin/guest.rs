//! Whom the admin server answers what, decided before any path is: by the address that a client comes from, the name it asks for, the
//! page that it asks out of, and the token that it knows.
//!
//! A browser asks whatever a page of strangers tells it to, and its user's own machine is "near". So a name that is nobody's is refused (DNS
//! rebinding), and so is what another site's page or frame asks. There is no cookie: it would go to every port of the host, and so to
//! whatever is published there; a session is sent by the page alone.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hyper::header::{self, HeaderMap, HeaderName};
use hyper::http::request::Parts;
use hyper::http::uri::Authority;
use hyper::{Method, StatusCode};

use super::AdminState;
use super::views::hostname;
use crate::link::{Token, TokenError};

/// Who may ask, as the configuration says.
#[derive(Debug, Clone, Default)]
pub struct AdminSettings {
    /// `None`: whoever is not on this machine sees health and metrics alone.
    pub token_file: Option<PathBuf>,
    /// Names that the server is asked by, beside addresses, `localhost` and the names of nodes. In lower case.
    pub hosts: Vec<String>,
}

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Asked {
    /// Health and metrics: for whoever asks.
    Health,
    /// The page's own files and its form: nothing of the node is in them.
    Page,
    /// What the node is and does.
    State,
}

impl Asked {
    pub(super) fn of(path: &str) -> Asked {
        match path {
            "/livez" | "/readyz" | "/healthz" | "/metrics" => Asked::Health,
            path if path.starts_with("/v1/") => Asked::State,
            _ => Asked::Page,
        }
    }
}

/// The two ends of a connection.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ends {
    pub client: SocketAddr,
    pub here: SocketAddr,
}

/// Why somebody is not answered, in words for a person.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    pub status: StatusCode,
    pub text: String,
}

impl Refusal {
    fn new(status: StatusCode, text: impl Into<String>) -> Refusal {
        Refusal {
            status,
            text: text.into(),
        }
    }
}

/// Whether a request is answered. Errors: why not.
pub(super) async fn admit(state: &AdminState, ends: Ends, asked: Asked, request: &Parts) -> Result<(), Refusal> {
    if asked == Asked::Health {
        return Ok(());
    }
    let host = host_of(request)?;
    if let Some(host) = &host
        && !is_name_of(state, host)
    {
        return Err(Refusal::new(
            StatusCode::MISDIRECTED_REQUEST,
            format!(
                "{host:?} is no name of this node: expected an address, localhost, the name of a node, or one of admin.hosts"
            ),
        ));
    }
    refuse_foreign(request, asked)?;
    if is_near(ends, host.as_deref(), &request.headers) {
        return Ok(());
    }
    let Some(path) = &state.settings.token_file else {
        return Err(Refusal::new(
            StatusCode::FORBIDDEN,
            "admin.token_file is not set: whoever does not ask on this machine, by its loopback address, sees /livez, \
             /readyz, /healthz and /metrics alone",
        ));
    };
    if asked == Asked::Page {
        return Ok(());
    }
    let said = request.headers.get(header::AUTHORIZATION);
    let said = said.and_then(|value| value.to_str().ok()).and_then(bearer);
    let Some(said) = said else {
        return Err(Refusal::new(
            StatusCode::UNAUTHORIZED,
            "expected the token of admin.token_file: \"Authorization: Bearer TOKEN\"",
        ));
    };
    let token = token(state, path.clone()).await?;
    match token.is(said) || is_session(&token, said, SystemTime::now()) {
        true => Ok(()),
        false => Err(Refusal::new(
            StatusCode::UNAUTHORIZED,
            "this is neither the token of admin.token_file nor a session that goes on",
        )),
    }
}

/// Begins a session for whoever knows the token: what is sent in the token's place, and until when. Errors: why not.
pub(super) async fn login(state: &AdminState, said: &str) -> Result<(String, SystemTime), Refusal> {
    let Some(path) = &state.settings.token_file else {
        return Err(Refusal::new(
            StatusCode::FORBIDDEN,
            "admin.token_file is not set: there is no token to be known",
        ));
    };
    let token = token(state, path.clone()).await?;
    match token.is(said) {
        true => Ok(session(&token, SystemTime::now())),
        false => Err(Refusal::new(
            StatusCode::UNAUTHORIZED,
            "this is not the token of admin.token_file",
        )),
    }
}

/// Says at the beginning what is wrong with the token, and who is not let in.
pub(super) async fn look(state: &AdminState, here: SocketAddr) {
    let is_near = here.ip().to_canonical().is_loopback();
    match &state.settings.token_file {
        Some(path) => {
            // What is wrong with the file is said as it is read.
            if let Ok(Some(weakness)) = token(state, path.clone()).await.map(|token| token.weakness()) {
                tracing::warn!("{KEY}: {weakness}; whoever tries long enough could guess it");
            }
        }
        None if is_near => {}
        None => {
            tracing::info!("admin.listen = {here}: health and metrics alone for whoever is not on this machine ({KEY})")
        }
    }
}

/// The token as it is in its file now, so that another one counts at once. What is wrong with it is shown in the status too.
async fn token(state: &AdminState, path: PathBuf) -> Result<Token, Refusal> {
    let read = tokio::task::spawn_blocking(move || read_token(&path)).await;
    let read = read.unwrap_or_else(|error| Err(format!("it could not be read: {error}")));
    let why = read.as_ref().err().cloned();
    if state.doors.set(KEY, why.clone())
        && let Some(why) = &why
    {
        tracing::warn!("{KEY}: {why}");
    }
    read.map_err(|_| {
        Refusal::new(
            StatusCode::FORBIDDEN,
            format!("{KEY}: there is no token in it to be known: \"anynode status\" on this machine says why"),
        )
    })
}

/// Errors: why there is none, to be read after the key.
pub fn read_token(path: &std::path::Path) -> Result<Token, String> {
    Token::read(KEY, path).map_err(|error| {
        let said = error.to_string();
        let said = said.strip_prefix(KEY).unwrap_or(&said).trim_start_matches([' ', '=']);
        match &error {
            TokenError::File { error, .. } => format!("{said}: {error}"),
            TokenError::Short { .. } => said.to_owned(),
        }
    })
}

const KEY: &str = "admin.token_file";

fn bearer(value: &str) -> Option<&str> {
    let (scheme, said) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| said.trim())
}

/// A session says until when it goes on, and is proven by the token. So it is known to every node that has the token, also after
/// a restart, and ends with the token.
fn session(token: &Token, now: SystemTime) -> (String, SystemTime) {
    let until = now + SESSION;
    let secs = unix_seconds(until).to_string();
    (format!("{secs}.{}", token.proves(SIDE, &[], &[&secs])), until)
}

fn is_session(token: &Token, said: &str, now: SystemTime) -> bool {
    let Some((secs, proof)) = said.split_once('.') else {
        return false;
    };
    let goes_on = secs.parse::<u64>().is_ok_and(|secs| secs > unix_seconds(now));
    goes_on && token.is_proven(SIDE, &[], &[secs], proof)
}

const SIDE: &str = "anynode admin 1: a session";
/// A screen on a wall should not ask each morning.
const SESSION: Duration = Duration::from_secs(30 * 24 * 60 * 60);

fn unix_seconds(at: SystemTime) -> u64 {
    at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// Whom a request asks, without the port, in lower case. `None`: it does not say, as HTTP/1.0 may.
fn host_of(request: &Parts) -> Result<Option<String>, Refusal> {
    let mut all = request.headers.get_all(header::HOST).iter();
    let (first, second) = (all.next(), all.next());
    let wrong = || Refusal::new(StatusCode::BAD_REQUEST, "expected one Host, a name or an address");
    if second.is_some() {
        return Err(wrong());
    }
    let text = match request.uri.authority() {
        Some(authority) => authority.as_str(),
        None => match first {
            Some(value) => value.to_str().map_err(|_| wrong())?,
            None => return Ok(None),
        },
    };
    let authority: Authority = text.parse().map_err(|_| wrong())?;
    match authority.as_str().contains('@') {
        true => Err(wrong()),
        false => Ok(Some(authority.host().trim_end_matches('.').to_ascii_lowercase())),
    }
}

/// The address that a host in a URL is, if it is one.
fn address(host: &str) -> Option<IpAddr> {
    match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        Some(v6) => v6.parse().ok().map(IpAddr::V6),
        None => host.parse().ok().map(IpAddr::V4),
    }
}

/// Nobody but who answers for a name can have a browser's user led to it, and addresses are nobody's to choose.
fn is_name_of(state: &AdminState, host: &str) -> bool {
    let is_node = || {
        let swarm = state.swarm.as_ref()?;
        let cluster = swarm.link.cluster.borrow().clone();
        Some(cluster.nodes().any(|node| node.hostname.eq_ignore_ascii_case(host)))
    };
    host == "localhost"
        || address(host).is_some()
        || state.settings.hosts.iter().any(|name| name == host)
        || hostname().eq_ignore_ascii_case(host)
        || is_node() == Some(true)
}

/// Whether whoever asks is on this machine. A proxy on it, that asks for somebody else, is not meant: it says for whom, or asks by
/// the name that it was asked by.
fn is_near(ends: Ends, host: Option<&str>, headers: &HeaderMap) -> bool {
    let is_loopback = |addr: SocketAddr| addr.ip().to_canonical().is_loopback();
    let is_local_name = host
        .is_none_or(|host| host == "localhost" || address(host).is_some_and(|addr| addr.to_canonical().is_loopback()));
    let is_for_another = FORWARDED.iter().any(|name| headers.contains_key(name));
    is_loopback(ends.client) && is_loopback(ends.here) && is_local_name && !is_for_another
}

const FORWARDED: [HeaderName; 4] = [
    header::FORWARDED,
    header::VIA,
    HeaderName::from_static("x-forwarded-for"),
    HeaderName::from_static("x-real-ip"),
];

/// A browser says out of which page it asks (Fetch Metadata, Origin). Errors: it is another site's.
fn refuse_foreign(request: &Parts, asked: Asked) -> Result<(), Refusal> {
    let said = |name: &'static str| request.headers.get(name).map(|value| value.to_str().unwrap_or("?"));
    let refused = |what: &str| Err(Refusal::new(StatusCode::FORBIDDEN, what));
    if let Some("iframe" | "frame" | "embed" | "object" | "fencedframe") = said("sec-fetch-dest") {
        return refused("this is not shown within another page");
    }
    let is_opened = said("sec-fetch-mode") == Some("navigate") && request.method == Method::GET;
    match said("sec-fetch-site") {
        Some("same-origin" | "none") => Ok(()),
        // A link leads to the page, and there is nothing in it yet.
        Some(_) if asked == Asked::Page && is_opened => Ok(()),
        Some(_) => refused("another site's page asks for this"),
        None => match said("origin") {
            Some(origin) if !is_same(origin, request) => refused("another site's page asks for this"),
            _ => Ok(()),
        },
    }
}

fn is_same(origin: &str, request: &Parts) -> bool {
    let host = request.headers.get(header::HOST).and_then(|value| value.to_str().ok());
    let authority = origin.split_once("://").map(|(_, authority)| authority);
    authority
        .zip(host)
        .is_some_and(|(authority, host)| authority.eq_ignore_ascii_case(host))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(fields: &[(&'static str, &str)]) -> Parts {
        let mut request = hyper::Request::builder().uri("/v1/status");
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    fn ends(client: &str, here: &str) -> Ends {
        Ends {
            client: client.parse().unwrap(),
            here: here.parse().unwrap(),
        }
    }

    #[test]
    fn near_is_who_asks_on_this_machine_for_himself() {
        let local = ends("127.0.0.1:1000", "127.0.0.1:9377");
        let near = |ends, fields: &[(&'static str, &str)]| {
            let request = request(fields);
            let host = host_of(&request).unwrap();
            is_near(ends, host.as_deref(), &request.headers)
        };
        assert!(near(local, &[]));
        for host in [
            "localhost:9377",
            "LOCALHOST",
            "127.0.0.1:9377",
            "127.1.2.3",
            "[::1]:9377",
            "[::ffff:127.0.0.1]",
        ] {
            assert!(near(local, &[("host", host)]), "{host}");
        }
        assert!(near(ends("[::1]:1000", "[::1]:9377"), &[("host", "localhost")]));
        assert!(near(ends("[::ffff:127.0.0.1]:1000", "[::ffff:127.0.0.1]:9377"), &[]));
        for host in ["10.0.0.1:9377", "node-1", "mesh.example", "localhost.example"] {
            assert!(!near(local, &[("host", host)]), "a proxy on this machine: {host}");
        }
        for name in ["x-forwarded-for", "forwarded", "via", "x-real-ip"] {
            assert!(!near(local, &[("host", "localhost"), (name, "1.2.3.4")]), "{name}");
        }
        assert!(!near(ends("10.0.0.2:1000", "10.0.0.1:9377"), &[("host", "localhost")]));
        assert!(
            !near(ends("10.0.0.2:1000", "127.0.0.1:9377"), &[]),
            "led to loopback by a rule"
        );
    }

    #[test]
    fn whom_a_request_asks_is_one_name() {
        let host = |text: &str| host_of(&request(&[("host", text)])).map_err(|refusal| refusal.status);
        assert_eq!(host("Node-1.:9377"), Ok(Some("node-1".to_owned())));
        assert_eq!(host("[::1]:9377"), Ok(Some("[::1]".to_owned())));
        for text in [
            "",
            "a b",
            "user@localhost",
            "localhost@evil.example",
            "a:b:c",
            "http://localhost",
        ] {
            assert_eq!(host(text), Err(StatusCode::BAD_REQUEST), "{text}");
        }
        let twice = request(&[("host", "localhost"), ("host", "evil.example")]);
        assert_eq!(host_of(&twice).unwrap_err().status, StatusCode::BAD_REQUEST);
        assert_eq!(host_of(&request(&[])).unwrap(), None);
    }

    #[test]
    fn what_another_sites_page_asks_is_refused_and_a_link_leads_to_the_page() {
        let judge = |asked, fields: &[(&'static str, &str)]| refuse_foreign(&request(fields), asked).is_ok();
        for fields in [
            &[][..],
            &[("sec-fetch-site", "same-origin")],
            &[("sec-fetch-site", "none"), ("sec-fetch-mode", "navigate")],
            &[("origin", "http://localhost:9377"), ("host", "localhost:9377")],
        ] {
            assert!(judge(Asked::State, fields), "{fields:?}");
        }
        for fields in [
            &[("sec-fetch-site", "cross-site")][..],
            &[("sec-fetch-site", "same-site")],
            &[("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "navigate")],
            &[("sec-fetch-site", "\u{ff}")],
            &[("sec-fetch-site", "same-origin"), ("sec-fetch-dest", "iframe")],
            &[("origin", "null"), ("host", "localhost:9377")],
            &[("origin", "http://localhost:8080"), ("host", "localhost:9377")],
        ] {
            assert!(!judge(Asked::State, fields), "{fields:?}");
        }
        let link = [("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "navigate")];
        assert!(judge(Asked::Page, &link));
        assert!(!judge(Asked::Page, &[link[0], link[1], ("sec-fetch-dest", "iframe")]));
        assert!(!judge(Asked::Page, &[link[0], ("sec-fetch-mode", "no-cors")]));
    }

    #[test]
    fn a_session_ends_by_itself_and_with_its_token() {
        let dir = tempfile::tempdir().unwrap();
        let token = |text: &str| {
            let path = dir.path().join("token");
            std::fs::write(&path, text).unwrap();
            read_token(&path).unwrap()
        };
        let (ours, other) = (
            token("9f86d081884c7d659a2feaa0c55ad015\n"),
            token("0f86d081884c7d659a2feaa0c55ad015"),
        );
        let now = SystemTime::now();
        let (said, until) = session(&ours, now);
        assert!(is_session(&ours, &said, now));
        assert!(!is_session(&ours, &said, until));
        assert!(!is_session(&other, &said, now));
        let (secs, proof) = said.split_once('.').unwrap();
        let longer = secs.parse::<u64>().unwrap() + 1;
        for forged in [
            format!("{longer}.{proof}"),
            format!("{secs}."),
            said[1..].to_owned(),
            proof.to_owned(),
        ] {
            assert!(!is_session(&ours, &forged, now), "{forged}");
        }
        assert_eq!(bearer("bearer  a"), Some("a"));
        assert_eq!(bearer("Basic a"), None);
    }
}
