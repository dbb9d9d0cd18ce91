//! An HTTP server that says who it is: `anynode whoami`, the endpoint of demos and tests.
//!
//! It answers what the FastAPI whoami program of the walkthroughs answers: the same keys in the same order, compact, on
//! one line. It differs on purpose: every method and every path gets the answer (there, only `GET /` does), the answer
//! ends with a newline so that six `curl -s` in a row print six lines, and at its end the server finishes the requests
//! it has. It is not a web server to build on, and no part of the mesh: it imports nothing from the other rooms.

use std::{
    collections::hash_map::{Entry, HashMap},
    convert::Infallible,
    env, fs,
    future::Future,
    io, iter,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{
    HeaderMap, Method, Request, Response, StatusCode,
    body::Body,
    header::{CONNECTION, CONTENT_TYPE, HeaderValue},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use serde::{Serialize, Serializer};
use tokio::{
    net::{TcpListener, TcpSocket, TcpStream},
    sync::watch,
    task::JoinSet,
    time,
};
use tracing::{debug, info, warn};

/// What `anynode whoami` is told.
#[derive(Clone, Debug)]
pub struct WhoamiConfig {
    pub listen: SocketAddr,
    /// The name to answer with. `None`: `$HOSTNAME` (in a container: its id), else the name of the host.
    pub name: Option<String>,
}

/// Why there is no whoami.
#[derive(Debug, thiserror::Error)]
#[error("listen on {listen}")]
pub struct ListenError {
    listen: SocketAddr,
    #[source]
    source: io::Error,
}

/// Where to listen when no address is given: every IPv4 address, on the port that `$PORT` names, else on 8000 as the
/// FastAPI program does. An empty `$PORT` counts as none. Errors: text with key, value and expectation.
pub fn default_listen(port_env: Option<&str>) -> Result<SocketAddr, String> {
    let port = match port_env {
        None | Some("") => DEFAULT_PORT,
        Some(text) => match text.parse() {
            Ok(port @ 1..) => port,
            Ok(0) | Err(_) => {
                return Err(format!("PORT={text}: expected a port number, 1 to 65535"));
            }
        },
    };
    Ok((Ipv4Addr::UNSPECIFIED, port).into())
}

/// Listens and answers until `shutdown` is ready, then ends as [`serve`] does.
pub async fn run(config: WhoamiConfig, shutdown: impl Future<Output = ()>) -> Result<(), ListenError> {
    let WhoamiConfig { listen, name } = config;
    let listener = bind(listen).map_err(|source| ListenError { listen, source })?;
    serve(listener, name, shutdown).await;
    Ok(())
}

/// Answers on a listener that the caller bound, until `shutdown` is ready.
///
/// Then no new connection is accepted, besides those that the kernel had completed; requests in flight are finished,
/// within 5 s; idle connections are closed. Spawns onto the runtime it runs in, of either flavor.
pub async fn serve(listener: TcpListener, name: Option<String>, shutdown: impl Future<Output = ()>) {
    let name: Arc<str> = host_name(name, env::var("HOSTNAME").ok()).into();
    if let Ok(address) = listener.local_addr() {
        info!(%address, %name, "whoami listens");
    }
    // Connections learn that the server ends when the sender is dropped; nothing is ever sent.
    let (drain, draining) = watch::channel(());
    let mut connections = JoinSet::new();
    let mut backoff = ACCEPT_BACKOFF_MIN;
    let mut shutdown = pin!(shutdown);
    loop {
        tokio::select! {
            () = &mut shutdown => break,
            accepted = listener.accept() => match accepted {
                Ok((stream, peer)) => {
                    backoff = ACCEPT_BACKOFF_MIN;
                    connections.spawn(serve_connection(stream, peer, name.clone(), draining.clone()));
                }
                // Out of descriptors or memory, mostly: without a pause this would spin until one is free.
                Err(error) => {
                    warn!(%error, "accept failed; next try in {backoff:?}");
                    tokio::select! {
                        () = &mut shutdown => break,
                        () = time::sleep(backoff) => backoff = (backoff * 2).min(ACCEPT_BACKOFF_MAX),
                    }
                }
            },
            Some(_) = connections.join_next() => {}
        }
    }
    // Closing the listener resets what waits in its backlog; those clients came before the end, so they are served.
    for (stream, peer) in accepted_already(listener) {
        connections.spawn(serve_connection(stream, peer, name.clone(), draining.clone()));
    }
    drop(drain);
    while connections.join_next().await.is_some() {}
}

fn bind(listen: SocketAddr) -> io::Result<TcpListener> {
    let socket = if listen.is_ipv4() {
        TcpSocket::new_v4()?
    } else {
        TcpSocket::new_v6()?
    };
    socket.set_reuseaddr(true)?;
    socket.bind(listen)?;
    socket.listen(BACKLOG)
}

/// What the kernel has accepted for a listener that is about to close. Asks the kernel, not tokio, which only knows
/// what its last turn has seen.
fn accepted_already(listener: TcpListener) -> impl Iterator<Item = (TcpStream, SocketAddr)> {
    let listener = listener.into_std();
    iter::from_fn(move || {
        let (stream, peer) = listener.as_ref().ok()?.accept().ok()?;
        stream.set_nonblocking(true).ok()?;
        Some((TcpStream::from_std(stream).ok()?, peer))
    })
}

/// One connection, from its first request to its end. What the peer does wrong ends its connection, nothing else.
async fn serve_connection(stream: TcpStream, peer: SocketAddr, name: Arc<str>, mut draining: watch::Receiver<()>) {
    if let Err(error) = stream.set_nodelay(true) {
        debug!(%peer, %error, "TCP_NODELAY");
    }
    // A client that reaches an IPv6 listener over IPv4 is known by its IPv4 address.
    let client = peer.ip().to_canonical();
    let asked = AtomicBool::new(false);
    let ending = draining.clone();
    let service = service_fn(|request: Request<_>| {
        asked.store(true, Relaxed);
        let (name, ending) = (&*name, &ending);
        async move {
            let (head, body) = request.into_parts();
            read_to_end(body).await;
            let mut response = answer(&Request::from_parts(head, ()), client, name);
            if ending.has_changed().is_err() {
                response
                    .headers_mut()
                    .insert(CONNECTION, HeaderValue::from_static("close"));
            }
            Ok::<_, Infallible>(response)
        }
    });
    // No idle limit: whoever keeps connections to this server decides how long. With half-close, a client may end its
    // side right after the request, as `nc` does.
    let connection = http1::Builder::new()
        .half_close(true)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = pin!(connection);
    let ended = async {
        tokio::select! {
            result = connection.as_mut() => return Ok(result),
            _ = draining.changed() => {}
        }
        // hyper would close at once a connection that has asked nothing yet, also when the request is on its way.
        if !asked.load(Relaxed)
            && let Ok(result) = time::timeout(FIRST_REQUEST_LIMIT, connection.as_mut()).await
        {
            return Ok(result);
        }
        connection.as_mut().graceful_shutdown();
        time::timeout(DRAIN_LIMIT, connection).await
    };
    match ended.await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => debug!(%peer, %error, "connection ended early"),
        Err(_) => debug!(%peer, "connection cut at the end of the drain"),
    }
}

/// Reads a request body and forgets it, so that the connection can carry the next request.
async fn read_to_end(mut body: impl Body + Unpin) {
    while let Some(Ok(_)) = body.frame().await {}
}

fn answer(request: &Request<()>, client: IpAddr, name: &str) -> Response<Full<Bytes>> {
    let uri = request.uri();
    if request.method() == Method::CONNECT {
        // The one method whose good answer has no body: the client would take the JSON for tunnelled bytes.
        json(
            StatusCode::METHOD_NOT_ALLOWED,
            &Detail {
                detail: "Method Not Allowed",
            },
        )
    } else if uri.path() == "/health" {
        json(StatusCode::OK, &Health { status: "ok" })
    } else {
        json(
            StatusCode::OK,
            &Whoami {
                hostname: name,
                ip_address: client,
                headers: headers(request.headers()),
                method: request.method().as_str(),
                path: unquote(uri.path(), Plus::Literal),
                query_params: query_params(uri.query().unwrap_or("")),
                message: format!("Hello from {name}!"),
            },
        )
    }
}

/// The answer, its keys in the order of the FastAPI program.
#[derive(Serialize)]
struct Whoami<'a> {
    hostname: &'a str,
    ip_address: IpAddr,
    headers: Dict,
    method: &'a str,
    path: String,
    query_params: Dict,
    message: String,
}

#[derive(Serialize)]
struct Health {
    status: &'static str,
}

#[derive(Serialize)]
struct Detail {
    detail: &'static str,
}

/// Python's `dict` as JSON: an object that keeps its keys in the order in which they first came. Keys are unique.
#[derive(Debug, PartialEq)]
struct Dict(Vec<(String, String)>);

impl Serialize for Dict {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(key, value)| (key, value)))
    }
}

fn json(status: StatusCode, value: &impl Serialize) -> Response<Full<Bytes>> {
    // Strings under string keys: our values hold nothing that JSON cannot say.
    let mut body = serde_json::to_vec(value).unwrap_or_default();
    body.push(b'\n');
    let mut response = Response::new(Full::from(body));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// As `dict(request.headers)`: names in lower case, of several fields with one name the first, and bytes beyond ASCII
/// read as Latin-1.
fn headers(fields: &HeaderMap) -> Dict {
    let latin1 = |value: &HeaderValue| value.as_bytes().iter().map(|&b| char::from(b)).collect();
    // `keys` has each name once, `get` the first of its values.
    Dict(
        fields
            .keys()
            .filter_map(|name| Some((name.to_string(), latin1(fields.get(name)?))))
            .collect(),
    )
}

/// As `dict(request.query_params)`: of several parameters with one name the last; one without `=` has an empty value.
fn query_params(query: &str) -> Dict {
    let mut params: Vec<(String, String)> = Vec::new();
    let mut places: HashMap<String, usize> = HashMap::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let value = unquote(value, Plus::Space);
        match places.entry(unquote(key, Plus::Space)) {
            Entry::Occupied(place) => params[*place.get()].1 = value,
            Entry::Vacant(place) => {
                params.push((place.key().clone(), value));
                place.insert(params.len() - 1);
            }
        }
    }
    Dict(params)
}

/// What a `+` stands for: itself in a path, a space in a query.
#[derive(Clone, Copy, PartialEq)]
enum Plus {
    Literal,
    Space,
}

/// As Python's `unquote`: a `%` that no two hex digits follow stands for itself, and what is not UTF-8 becomes U+FFFD.
fn unquote(text: &str, plus: Plus) -> String {
    let mut decoded = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [byte, tail @ ..] = rest {
        let (byte, tail) = match byte {
            b'%' => hex_pair(tail).unwrap_or((b'%', tail)),
            b'+' if plus == Plus::Space => (b' ', tail),
            other => (*other, tail),
        };
        decoded.push(byte);
        rest = tail;
    }
    String::from_utf8_lossy(&decoded).into_owned()
}

/// The byte that the first two characters name, if both are hex digits, and what follows them.
fn hex_pair(text: &[u8]) -> Option<(u8, &[u8])> {
    let [high, low, tail @ ..] = text else {
        return None;
    };
    let digit = |c: u8| char::from(c).to_digit(16);
    Some((u8::try_from(digit(*high)? << 4 | digit(*low)?).ok()?, tail))
}

/// What was given, else `$HOSTNAME`, else the name of the host.
fn host_name(given: Option<String>, hostname_env: Option<String>) -> String {
    let of_host = || {
        Some(
            fs::read_to_string("/proc/sys/kernel/hostname")
                .ok()?
                .trim_end()
                .to_owned(),
        )
    };
    given
        .or(hostname_env)
        .filter(|name| !name.is_empty())
        .or_else(of_host)
        .unwrap_or_else(|| "localhost".to_owned())
}

/// The port of the FastAPI program.
const DEFAULT_PORT: u16 = 8000;

/// The kernel cuts it to `net.core.somaxconn`, 4,096 by default. Tokio's own 1,024 is little for short connections.
const BACKLOG: u32 = 4096;

const ACCEPT_BACKOFF_MIN: Duration = Duration::from_millis(5);
const ACCEPT_BACKOFF_MAX: Duration = Duration::from_millis(500);

/// How long a request in flight may take once the server ends: half of what Docker waits between SIGTERM and SIGKILL.
const DRAIN_LIMIT: Duration = Duration::from_secs(5);

/// How long a connection that has asked nothing yet is kept then: its request may be on its way, or never come.
const FIRST_REQUEST_LIMIT: Duration = Duration::from_millis(500);

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        sync::oneshot,
        task::JoinHandle,
    };

    use super::*;

    #[test]
    fn query_params_are_pythons() {
        check("", &[]);
        check("a=1&b=2", &[("a", "1"), ("b", "2")]);
        check("a=1&b=2&a=3", &[("a", "3"), ("b", "2")]);
        check("a&b=&=c&&", &[("a", ""), ("b", ""), ("", "c")]);
        check("a=b=c;d=e", &[("a", "b=c;d=e")]);
        check("q=one+two%2Bthree%20four", &[("q", "one two+three four")]);
        check("%6Bey=caf%C3%A9&%ea%b0%80=%EB%82%98", &[("key", "café"), ("가", "나")]);
        check(
            "a=%&b=%4&c=%zz%41&d=%+1",
            &[("a", "%"), ("b", "%4"), ("c", "%zzA"), ("d", "% 1")],
        );
        check("a=%ff", &[("a", "\u{fffd}")]);

        #[track_caller]
        fn check(query: &str, expect: &[(&str, &str)]) {
            let expect = expect.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
            assert_eq!(query_params(query), Dict(expect), "{query}");
        }
    }

    #[test]
    fn a_path_is_unquoted_and_keeps_its_plus() {
        assert_eq!(unquote("/a+b/c%20d%2Fe", Plus::Literal), "/a+b/c d/e");
    }

    #[test]
    fn the_default_address_reads_port() {
        let at = |port| Ok(SocketAddr::from(([0, 0, 0, 0], port)));
        assert_eq!(default_listen(None), at(8000));
        assert_eq!(default_listen(Some("")), at(8000));
        assert_eq!(default_listen(Some("80")), at(80));
        for wrong in ["0", "65536", "-1", "http", " 80", "80/tcp"] {
            let expect = Err(format!("PORT={wrong}: expected a port number, 1 to 65535"));
            assert_eq!(default_listen(Some(wrong)), expect);
        }
    }

    #[test]
    fn the_name_is_the_given_one_then_the_environments_then_the_hosts() {
        let text = |s: &str| Some(s.to_owned());
        assert_eq!(host_name(text("given"), text("env")), "given");
        assert_eq!(host_name(None, text("env")), "env");
        let host = host_name(None, None);
        assert!(!host.is_empty() && !host.contains('\n'), "{host:?}");
        assert_eq!(host_name(None, text("")), host);
    }

    #[tokio::test]
    async fn answers_as_the_fastapi_program() {
        let server = Server::start();
        let mut client = server.connect().await;
        client
            .send(b"GET /a%20b?x=1&x=2 HTTP/1.1\r\nHost: h:8000\r\nX-Two: 1\r\n")
            .await;
        client.send(b"User-Agent: t\r\nx-two: 2\r\nl: \xe9\r\n\r\n").await;
        let (head, body) = client.answer().await;
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
        assert!(head.contains("\r\ncontent-type: application/json\r\n"), "{head}");
        assert_eq!(
            body,
            concat!(
                r#"{"hostname":"me","ip_address":"127.0.0.1","#,
                r#""headers":{"host":"h:8000","x-two":"1","user-agent":"t","l":"é"},"#,
                r#""method":"GET","path":"/a b","query_params":{"x":"2"},"message":"Hello from me!"}"#,
                "\n"
            )
        );

        client.send(b"GET /health HTTP/1.1\r\nHost: h\r\n\r\n").await;
        assert_eq!(client.answer().await.1, "{\"status\":\"ok\"}\n");
        client.send(b"CONNECT h:80 HTTP/1.1\r\nHost: h:80\r\n\r\n").await;
        assert!(client.answer().await.0.starts_with("HTTP/1.1 405 "));
        server.stop().await;
    }

    #[tokio::test]
    async fn a_body_is_read_and_the_connection_goes_on() {
        let server = Server::start();
        let mut client = server.connect().await;
        client
            .send(b"POST /x HTTP/1.1\r\nHost: h\r\nContent-Length: 200000\r\n")
            .await;
        client.send(b"Expect: 100-continue\r\n\r\n").await;
        assert_eq!(client.head().await, "HTTP/1.1 100 Continue\r\n\r\n");
        client.send(&[b'.'; 200_000]).await;
        assert!(client.answer().await.1.contains(r#""method":"POST","path":"/x""#));
        client
            .send(b"PUT /y HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n")
            .await;
        client.send(b"1\r\na\r\n0\r\n\r\n").await;
        assert!(client.answer().await.1.contains(r#""method":"PUT","path":"/y""#));

        client.send(b"HEAD / HTTP/1.1\r\nHost: h\r\n\r\n").await;
        let head = client.head().await;
        assert!(head.starts_with("HTTP/1.1 200 ") && length(&head) > 100, "{head}");

        // HTTP/1.0, its sending side closed at once: answered, and closed after.
        client.send(b"GET / HTTP/1.0\r\n\r\n").await;
        client.0.shutdown().await.unwrap();
        let (head, body) = client.answer().await;
        assert!(
            head.starts_with("HTTP/1.0 200 ") && body.contains(r#""headers":{}"#),
            "{head}{body}"
        );
        assert!(client.is_closed().await);
        server.stop().await;
    }

    #[tokio::test]
    async fn the_end_finishes_what_is_in_flight_and_closes_what_idles() {
        let server = Server::start();
        let mut idle = server.connect().await;
        idle.send(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n").await;
        idle.answer().await;
        let mut busy = server.connect().await;
        busy.send(b"POST /busy HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\n")
            .await;
        busy.send(b"Expect: 100-continue\r\n\r\nab").await;
        assert_eq!(busy.head().await, "HTTP/1.1 100 Continue\r\n\r\n");

        let Server {
            address,
            shutdown,
            running,
        } = server;
        // In the kernel, and not yet known to the server, which has no turn before the end.
        let mut waiting = std::net::TcpStream::connect(address).unwrap();
        io::Write::write_all(&mut waiting, b"GET /waiting HTTP/1.1\r\nHost: h\r\n\r\n").unwrap();
        waiting.set_nonblocking(true).unwrap();
        let mut waiting = Client(TcpStream::from_std(waiting).unwrap());
        shutdown.send(()).unwrap();
        assert!(idle.is_closed().await);
        assert!(TcpStream::connect(address).await.is_err());

        let (head, body) = waiting.answer().await;
        assert!(head.contains("\r\nconnection: close\r\n"), "{head}");
        assert!(body.contains(r#""path":"/waiting""#), "{body}");
        assert!(waiting.is_closed().await);
        busy.send(b"cd").await;
        let (head, body) = busy.answer().await;
        assert!(head.contains("\r\nconnection: close\r\n"), "{head}");
        assert!(body.contains(r#""path":"/busy""#), "{body}");
        assert!(busy.is_closed().await);
        running.await.unwrap();
    }

    /// A whoami named "me" on a free port of 127.0.0.1.
    struct Server {
        address: SocketAddr,
        shutdown: oneshot::Sender<()>,
        running: JoinHandle<()>,
    }

    impl Server {
        fn start() -> Server {
            let listener = bind((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
            let address = listener.local_addr().unwrap();
            let (shutdown, ended) = oneshot::channel();
            let ended = async { ended.await.unwrap() };
            let running = tokio::spawn(serve(listener, Some("me".to_owned()), ended));
            Server {
                address,
                shutdown,
                running,
            }
        }

        async fn connect(&self) -> Client {
            Client(TcpStream::connect(self.address).await.unwrap())
        }

        async fn stop(self) {
            self.shutdown.send(()).unwrap();
            self.running.await.unwrap();
        }
    }

    /// A client that writes and reads the bytes of HTTP itself, so that no library smooths them.
    struct Client(TcpStream);

    impl Client {
        async fn send(&mut self, bytes: &[u8]) {
            self.0.write_all(bytes).await.unwrap();
        }

        async fn head(&mut self) -> String {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(self.0.read_u8().await.unwrap());
            }
            String::from_utf8(head).unwrap()
        }

        async fn answer(&mut self) -> (String, String) {
            let head = self.head().await;
            let mut body = vec![0; length(&head)];
            self.0.read_exact(&mut body).await.unwrap();
            (head, String::from_utf8(body).unwrap())
        }

        async fn is_closed(&mut self) -> bool {
            matches!(self.0.read(&mut [0]).await, Ok(0))
        }
    }

    fn length(head: &str) -> usize {
        let (_, rest) = head.split_once("\r\ncontent-length: ").unwrap();
        rest.split_once("\r\n").unwrap().0.parse().unwrap()
    }
}
