//! Clients that speak HTTP/2 to services whose endpoints speak HTTP/1.1: what passes, what is held back, and what ends with what. Not
//! here: frames that nobody should send (`h2`), and gRPC.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anynode::model::{Mode, Scheme};
use anynode::proxy::ProxyConfig;
use anynode::routing::{CloseReason, HttpCode};
use bytes::Bytes;
use h2::client::SendRequest;
use h2::{Reason, RecvStream};
use http::{HeaderMap, Request, Response};
use tokio::runtime::Handle;
use tokio::sync::oneshot;

use crate::harness::{Node, Origin, PATIENCE, door, read_head, service, wait_until};

/// One connection of a client.
struct Client {
    handle: Handle,
    /// Its thread ends without it.
    _stop: oneshot::Sender<()>,
    sender: SendRequest<Bytes>,
    /// How it ended, once it has.
    ended: tokio::task::JoinHandle<Result<(), h2::Error>>,
}

impl Client {
    fn connect(addr: SocketAddr) -> Client {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let handle = runtime.handle().clone();
        let (stop, stopped) = oneshot::channel::<()>();
        std::thread::spawn(move || drop(runtime.block_on(stopped)));
        let (sender, connection) = handle.block_on(async {
            let stream = tokio::net::TcpStream::connect(addr).await.unwrap();
            h2::client::handshake(stream).await.unwrap()
        });
        let ended = handle.spawn(connection);
        Client {
            handle,
            _stop: stop,
            sender,
            ended,
        }
    }

    /// Runs `what` within the patience of tests.
    fn wait<T>(&self, what: impl Future<Output = T>) -> T {
        let limited = async { tokio::time::timeout(PATIENCE, what).await };
        self.handle.block_on(limited).expect("in time")
    }

    /// Sends a request whose body, if it has one, is all there.
    fn send(&self, request: Request<Option<&'static [u8]>>) -> h2::client::ResponseFuture {
        let (parts, body) = request.into_parts();
        let mut sender = self.sender.clone();
        let (answer, mut stream) = sender
            .send_request(Request::from_parts(parts, ()), body.is_none())
            .unwrap();
        if let Some(body) = body {
            stream.send_data(Bytes::from_static(body), true).unwrap();
        }
        answer
    }

    fn answer(&self, coming: h2::client::ResponseFuture) -> Result<Answer, h2::Error> {
        self.wait(async { Answer::whole(coming.await?).await })
    }

    fn ask(&self, request: Request<Option<&'static [u8]>>) -> Result<Answer, h2::Error> {
        self.answer(self.send(request))
    }

    /// Waits until the other side has ended the connection, and says how.
    fn end(mut self) -> Result<(), h2::Error> {
        let ended = std::mem::replace(&mut self.ended, self.handle.spawn(async { Ok(()) }));
        self.wait(ended).unwrap()
    }

    fn get(&self, path: &str) -> Result<Answer, h2::Error> {
        self.ask(get(path))
    }
}

fn get(path: &str) -> Request<Option<&'static [u8]>> {
    Request::get(format!("http://a.test{path}")).body(None).unwrap()
}

#[derive(Debug)]
struct Answer {
    status: u16,
    fields: HeaderMap,
    body: Vec<u8>,
    trailers: Option<HeaderMap>,
}

impl Answer {
    async fn whole(response: Response<RecvStream>) -> Result<Answer, h2::Error> {
        let (head, mut stream) = response.into_parts();
        let mut body = Vec::new();
        while let Some(data) = stream.data().await {
            let data = data?;
            stream.flow_control().release_capacity(data.len())?;
            body.extend_from_slice(&data);
        }
        Ok(Answer {
            status: head.status.as_u16(),
            fields: head.headers,
            body,
            trailers: stream.trailers().await?,
        })
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// Answers by the path that is asked for; the head that it was sent, and the body, otherwise.
fn origin() -> Origin {
    Origin::start(|mut stream| {
        while let Some(head) = read_head(&mut stream) {
            let body = body(&mut stream, &head);
            let path = head.split(' ').nth(1).unwrap().to_owned();
            let said = match path.as_str() {
                "/trailers" => "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n5\r\nhello\r\n1\r\n!\r\n0\r\nX-Sum: 6\r\n\r\n".to_owned(),
                "/hints" => "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok".to_owned(),
                "/none" => "HTTP/1.1 204 No Content\r\nX-A: b\r\n\r\n".to_owned(),
                "/until-close" | "/cut-chunk" | "/cut-length" => {
                    let framing = match path.as_str() {
                        "/until-close" => "Connection: close",
                        "/cut-chunk" => "Transfer-Encoding: chunked",
                        _ => "Content-Length: 100",
                    };
                    let _ = stream.write_all(format!("HTTP/1.1 200 OK\r\n{framing}\r\n\r\n5\r\nhello").as_bytes());
                    return;
                }
                "/slow" => {
                    std::thread::sleep(Duration::from_millis(700));
                    "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nslow".to_owned()
                }
                _ => {
                    let said = format!("{head}{body}");
                    let length = said.len();
                    format!("HTTP/1.1 200 OK\r\nConnection: keep-alive\r\nKeep-Alive: timeout=5\r\nContent-Length: {length}\r\n\r\n{}",
                        if head.starts_with("HEAD") { "" } else { &said })
                }
            };
            if stream.write_all(said.as_bytes()).is_err() {
                return;
            }
        }
    })
}

/// What follows a head, its framing left out.
fn body(stream: &mut TcpStream, head: &str) -> String {
    let lower = head.to_ascii_lowercase();
    if let Some(length) = lower.lines().find_map(|line| line.strip_prefix("content-length: ")) {
        let mut body = vec![0; length.parse().unwrap()];
        stream.read_exact(&mut body).unwrap();
        return String::from_utf8(body).unwrap();
    }
    let mut chunks = String::new();
    if lower.contains("transfer-encoding: chunked") {
        while !(chunks.ends_with("\r\n\r\n") && chunks.contains("0\r\n")) {
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            chunks.push(byte[0].into());
        }
    }
    chunks
}

#[test]
fn an_endpoint_of_http_1_1_is_asked_as_by_any_client() {
    let origin = origin();
    let mut spec = service("web", &[origin.addr]);
    spec.mode = Mode::Http;
    let node = Node::start();
    node.apply(&spec);
    let client = Client::connect(door(&spec));

    let request = Request::get("http://a.test:81/x?y=1")
        .header("cookie", "a=1")
        .header("cookie", "b=2");
    let answer = client.ask(request.header("x-a", "b").body(None).unwrap()).unwrap();
    let said = answer.text();
    for expected in [
        "GET /x?y=1 HTTP/1.1\r\n",
        "\r\nhost: a.test:81\r\n",
        "\r\ncookie: a=1; b=2\r\n",
        "\r\nx-a: b\r\n",
        "\r\nX-Forwarded-For: 127.0.0.1\r\n",
        "\r\nX-Forwarded-Proto: http\r\n",
    ] {
        assert!(said.contains(expected), "{expected:?} in {said}");
    }
    assert!(
        answer
            .fields
            .get("connection")
            .or_else(|| answer.fields.get("keep-alive"))
            .is_none(),
        "{answer:?}"
    );

    // Bodies of a length, and without one.
    let post = |length: Option<&str>| {
        let request = Request::post("http://a.test/");
        let request = length
            .into_iter()
            .fold(request, |request, n| request.header("content-length", n));
        client.ask(request.body(Some(&b"hello"[..])).unwrap()).unwrap().text()
    };
    assert!(post(Some("5")).ends_with("\r\n\r\nhello"));
    assert!(post(None).ends_with("\r\n\r\n5\r\nhello\r\n0\r\n\r\n"));

    let answer = client.get("/trailers").unwrap();
    assert_eq!(answer.text(), "hello!");
    assert_eq!(answer.trailers.unwrap().get("x-sum").unwrap(), "6");
    let answer = client.get("/hints").unwrap();
    assert_eq!((answer.status, answer.text().as_str()), (200, "ok"));
    let answer = client.get("/none").unwrap();
    assert_eq!((answer.status, answer.body.len()), (204, 0));
    assert_eq!(client.get("/until-close").unwrap().text(), "5\r\nhello");
    let head = client.ask(Request::head("http://a.test/").body(None).unwrap()).unwrap();
    assert!(
        head.body.is_empty() && head.fields.contains_key("content-length"),
        "{head:?}"
    );
    assert_eq!(node.service("web").stats().request_count(HttpCode::of(200)), 8);
}

#[test]
fn a_client_learns_that_an_answer_was_cut_off_and_asks_on() {
    let origin = origin();
    let mut spec = service("web", &[origin.addr]);
    spec.mode = Mode::Http;
    let node = Node::start();
    node.apply(&spec);
    let client = Client::connect(door(&spec));
    for path in ["/cut-chunk", "/cut-length"] {
        let error = client.get(path).unwrap_err();
        assert_eq!(error.reason(), Some(Reason::INTERNAL_ERROR), "{path}: {error}");
        assert_eq!(client.get("/").unwrap().status, 200);
    }
}

#[test]
fn requests_of_one_connection_are_shared_out_one_by_one() {
    let origins: Vec<Origin> = (0..4).map(|_| origin()).collect();
    let addrs: Vec<SocketAddr> = origins.iter().map(|origin| origin.addr).collect();
    let mut spec = service("web", &addrs);
    spec.mode = Mode::Http;
    let node = Node::start();
    node.apply(&spec);
    let client = Client::connect(door(&spec));
    for _ in 0..10 {
        let answers: Vec<_> = (0..40).map(|_| client.send(get("/slow"))).collect();
        for answer in answers {
            let answer = client.answer(answer).unwrap();
            assert_eq!(answer.text(), "slow");
        }
        if origins.iter().all(|origin| origin.n_accepted() == 10) {
            return;
        }
    }
    panic!("{:?}", origins.iter().map(Origin::n_accepted).collect::<Vec<_>>());
}

#[test]
fn what_a_client_does_not_take_is_left_with_the_endpoint() {
    let n_written = Arc::new(AtomicUsize::new(0));
    let n_ended = Arc::new(AtomicUsize::new(0));
    let counts = (n_written.clone(), n_ended.clone());
    let large = Origin::start(move |mut stream| {
        if read_head(&mut stream).is_none() {
            return;
        }
        stream
            .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n")
            .unwrap();
        while let Ok(n) = stream.write(&[b'x'; 16 * 1024]) {
            counts.0.fetch_add(n, Ordering::SeqCst);
        }
        counts.1.fetch_add(1, Ordering::SeqCst);
    });
    let small = origin();
    let node = Node::start();
    let [mut large_spec, mut small_spec] = [service("large", &[large.addr]), service("small", &[small.addr])];
    (large_spec.mode, small_spec.mode) = (Mode::Http, Mode::Http);
    node.apply(&large_spec);
    node.apply(&small_spec);
    let client = Client::connect(door(&large_spec));
    let responses: Vec<_> = (0..5)
        .map(|_| {
            let answer = client.send(get("/"));
            client.wait(answer).unwrap()
        })
        .collect();
    // It stands still once all that may be kept is full.
    let mut before = usize::MAX;
    wait_until("the endpoint to be held up", || {
        std::thread::sleep(Duration::from_millis(300));
        std::mem::replace(&mut before, n_written.load(Ordering::SeqCst)) == n_written.load(Ordering::SeqCst)
    });
    // Mostly in the kernel's buffers, of two sockets each.
    assert!(before < 5 * 12_000_000, "{before}");
    assert_eq!(Client::connect(door(&small_spec)).get("/").unwrap().status, 200);
    // Who takes it back lets the endpoint go.
    drop(responses);
    wait_until("the endpoint's connections to end", || {
        n_ended.load(Ordering::SeqCst) == 5
    });
}

#[test]
fn a_node_that_ends_says_so_and_answers_what_it_was_asked() {
    let origin = origin();
    let mut spec = service("web", &[origin.addr]);
    spec.mode = Mode::Http;
    let mut node = Node::start_draining(ProxyConfig::default(), PATIENCE);
    node.apply(&spec);
    let [busy, idle] = [(); 2].map(|()| Client::connect(door(&spec)));
    assert_eq!(idle.get("/").unwrap().status, 200);
    let answer = busy.send(get("/slow"));
    let state = node.service("web");
    wait_until("the request to reach the endpoint", || {
        state.endpoints()[0].in_flight() == 1
    });
    let stopping = std::thread::spawn(move || node.stop());
    let answer = busy.answer(answer).unwrap();
    assert_eq!(answer.text(), "slow");
    for client in [busy, idle] {
        assert!(client.end().is_ok(), "it ends in order");
    }
    assert_eq!(stopping.join().unwrap(), 0, "connections that had to be reset");
    assert_eq!(state.stats().closed_count(CloseReason::ClientRst), 0);
}

#[test]
fn a_connection_without_requests_ends_with_its_time() {
    let origin = origin();
    let mut spec = service("web", &[origin.addr]);
    spec.mode = Mode::Http;
    spec.timeouts.idle = Duration::from_millis(200);
    let node = Node::start();
    node.apply(&spec);
    let client = Client::connect(door(&spec));
    // A request that takes longer is none of it.
    assert_eq!(client.get("/slow").unwrap().text(), "slow");
    assert!(client.end().is_ok());
    wait_until("the close to be counted", || {
        let stats = node.service("web");
        let stats = stats.stats();
        stats.closed_count(CloseReason::IdleTimeout) + stats.closed_count(CloseReason::ResponseEnd) == 1
    });
}

/// An endpoint that speaks HTTP/2 alone, without TLS. Answers each request with its path and what came of it, or by the path with a reset.
/// With `leaves_first` its first connection takes nothing, and `/refused` is.
struct Http2Origin {
    addr: SocketAddr,
    /// Paths that were asked for.
    asked: Arc<Mutex<Vec<String>>>,
    n_connections: Arc<AtomicUsize>,
    _stop: oneshot::Sender<()>,
}

impl Http2Origin {
    fn start(leaves_first: bool) -> Http2Origin {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        listener.set_nonblocking(true).unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let asked: Arc<Mutex<Vec<String>>> = Arc::default();
        let n_connections: Arc<AtomicUsize> = Arc::default();
        let (seen, n_seen) = (asked.clone(), n_connections.clone());
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            let serve = async move {
                let listener = tokio::net::TcpListener::from_std(listener).unwrap();
                let mut is_first = leaves_first;
                while let Ok((stream, _)) = listener.accept().await {
                    n_seen.fetch_add(1, Ordering::SeqCst);
                    match std::mem::take(&mut is_first) {
                        true => drop(tokio::spawn(leave(stream))),
                        false => drop(tokio::spawn(serve_http2(stream, seen.clone(), leaves_first))),
                    }
                }
            };
            runtime.block_on(async {
                tokio::select! { () = serve => {}, _ = stopped => {} }
            });
        });
        Http2Origin {
            addr,
            asked,
            n_connections,
            _stop: stop,
        }
    }

    fn asked(&self, path: &str) -> usize {
        self.asked.lock().unwrap().iter().filter(|asked| *asked == path).count()
    }
}

/// Says, once it was asked for something, that it takes nothing: GOAWAY, with no stream.
async fn leave(mut stream: tokio::net::TcpStream) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    const SETTINGS: &[u8] = &[0, 0, 0, 4, 0, 0, 0, 0, 0];
    const GOAWAY: &[u8] = &[0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    stream.write_all(SETTINGS).await.unwrap();
    let mut said = Vec::new();
    // A frame of HEADERS, behind the preface and the frames before it.
    let has_head = |said: &[u8]| {
        let mut rest = said.get(24..).unwrap_or_default();
        while let [a, b, c, kind, ..] = rest {
            if *kind == 1 {
                return true;
            }
            let length = usize::from(*a) << 16 | usize::from(*b) << 8 | usize::from(*c);
            rest = rest.get(9 + length..).unwrap_or_default();
        }
        false
    };
    while !has_head(&said) {
        if stream.read_buf(&mut said).await.unwrap() == 0 {
            return;
        }
    }
    stream.write_all(GOAWAY).await.unwrap();
    stream.shutdown().await.unwrap();
    let _ = stream.read_to_end(&mut said).await;
}

async fn serve_http2(stream: tokio::net::TcpStream, asked: Arc<Mutex<Vec<String>>>, refuses: bool) {
    let mut connection = h2::server::handshake(stream).await.unwrap();
    while let Some(Ok((request, mut respond))) = connection.accept().await {
        let asked = asked.clone();
        tokio::spawn(async move {
            let (head, mut body) = request.into_parts();
            let mut n = 0;
            while let Some(Ok(data)) = body.data().await {
                n += data.len();
                body.flow_control().release_capacity(data.len()).unwrap();
            }
            let path = head.uri.path().to_owned();
            asked.lock().unwrap().push(path.clone());
            match path.as_str() {
                "/refused" if refuses => return respond.send_reset(Reason::REFUSED_STREAM),
                "/broken" => return respond.send_reset(Reason::INTERNAL_ERROR),
                _ => {}
            }
            if path == "/late-end" {
                let response = Response::builder().header("content-length", "5").body(()).unwrap();
                let mut stream = respond.send_response(response, false).unwrap();
                stream.send_data(Bytes::from_static(b"hello"), false).unwrap();
                tokio::time::sleep(Duration::from_millis(5)).await;
                if stream.send_data(Bytes::new(), true).is_err() {
                    asked.lock().unwrap().push("/was-reset".to_owned());
                }
                return;
            }
            let response = Response::builder()
                .header("x-te", head.headers.get("te").unwrap())
                .body(())
                .unwrap();
            let mut stream = respond.send_response(response, false).unwrap();
            let said = format!("{} {} {n}", head.method, head.uri);
            stream.send_data(Bytes::from(said), false).unwrap();
            let mut trailers = HeaderMap::new();
            trailers.insert("x-sum", n.into());
            stream.send_trailers(trailers).unwrap();
        });
    }
}

fn to_http2(origin: &Http2Origin) -> anynode::model::ServiceSpec {
    let mut spec = service("web", &[origin.addr]);
    (spec.mode, spec.scheme) = (Mode::Http, Scheme::H2c);
    spec
}

#[test]
fn clients_of_both_versions_reach_an_endpoint_of_http_2() {
    let origin = Http2Origin::start(false);
    let spec = to_http2(&origin);
    let node = Node::start();
    node.apply(&spec);
    let client = Client::connect(door(&spec));
    let post = Request::post("http://a.test/x?y").body(Some(&b"hello"[..])).unwrap();
    let answer = client.ask(post).unwrap();
    assert_eq!(answer.text(), "POST http://a.test/x?y 5");
    assert_eq!(answer.trailers.unwrap().get("x-sum").unwrap(), "5");
    assert_eq!(answer.fields.get("x-te").unwrap(), "trailers");

    let mut old = crate::harness::dial(door(&spec));
    for _ in 0..2 {
        let request = "PUT /old HTTP/1.1\r\nHost: b.test\r\nTE: trailers\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n";
        old.write_all(request.as_bytes()).unwrap();
        let head = read_head(&mut old).unwrap();
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
        let chunks = body(&mut old, &head);
        assert!(chunks.contains("PUT http://b.test/old 3"), "{chunks}");
    }
    old.write_all(b"GET / HTTP/1.1\r\nHost: b.test\r\nConnection: close\r\n\r\n")
        .unwrap();
    let said = String::from_utf8(crate::harness::read_to_end(&old)).unwrap();
    assert!(said.ends_with("\r\n0\r\nx-sum: 0\r\n\r\n"), "{said}");
}

#[test]
fn what_an_endpoint_did_not_begin_goes_on_and_what_it_broke_does_not() {
    let origin = Http2Origin::start(true);
    let spec = to_http2(&origin);
    let node = Node::start();
    node.apply(&spec);
    let client = Client::connect(door(&spec));
    let post = |path: &str| {
        let request = Request::post(format!("http://a.test{path}"));
        client.ask(request.body(Some(&b"hello"[..])).unwrap()).unwrap()
    };
    // One endpoint is not asked twice for a request, so that there are two.
    let second = Http2Origin::start(false);
    let mut spec = spec;
    spec.endpoints.extend(to_http2(&second).endpoints);
    node.apply(&spec);
    for path in ["/left", "/left", "/refused", "/refused"] {
        let answer = post(path);
        assert_eq!(answer.status, 200, "{path}: {}", answer.text());
    }
    let n = |path: &str| origin.asked(path) + second.asked(path);
    assert_eq!(n("/left"), 2);
    assert_eq!(second.asked("/refused"), 2);
    assert_eq!((post("/broken").status, n("/broken")), (502, 1));
}

#[test]
fn an_endpoint_that_says_the_end_later_is_let_say_it() {
    let origin = Http2Origin::start(false);
    let spec = to_http2(&origin);
    let node = Node::start_with(ProxyConfig {
        n_workers: 1,
        ..ProxyConfig::default()
    });
    node.apply(&spec);
    let client = Client::connect(door(&spec));
    // More than the endpoint would take that nobody wants, and than a connection would take of what nobody knows.
    for _ in 0..60 {
        let answers: Vec<_> = (0..20).map(|_| client.send(get("/late-end"))).collect();
        for answer in answers {
            let answer = client.answer(answer).unwrap();
            assert_eq!(answer.text(), "hello");
        }
    }
    assert_eq!((origin.asked("/late-end"), origin.asked("/was-reset")), (1200, 0));
    // Some were made at once before the first had said how much it takes.
    assert!(origin.n_connections.load(Ordering::SeqCst) <= 20);
}

#[test]
fn what_an_only_endpoint_did_not_begin_is_asked_of_it_again() {
    let origin = Http2Origin::start(true);
    let spec = to_http2(&origin);
    let node = Node::start();
    node.apply(&spec);
    let client = Client::connect(door(&spec));
    let request = Request::post("http://a.test/again").body(Some(&b"hello"[..])).unwrap();
    assert_eq!(client.ask(request).unwrap().status, 200);
    assert_eq!(origin.asked("/again"), 1);
    // A target that no URI is, but that HTTP/1.1 lets pass.
    let mut old = crate::harness::dial(door(&spec));
    old.write_all(b"GET /x?q=\"a\" HTTP/1.1\r\nHost: b.test\r\nConnection: close\r\n\r\n")
        .unwrap();
    let said = String::from_utf8(crate::harness::read_to_end(&old)).unwrap();
    assert!(said.contains("GET http://b.test/x?q=%22a%22 0"), "{said}");
}

#[test]
fn many_small_frames_that_an_endpoint_does_not_take_hold_up_nobody_else() {
    // It accepts, reads nothing, and has little room.
    let silent = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    silent.set_recv_buffer_size(4096).unwrap();
    silent.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    silent.listen(8).unwrap();
    let silent_addr = silent.local_addr().unwrap().as_socket().unwrap();
    let quick = origin();
    let node = Node::start();
    let [mut slow_spec, mut spec] = [service("slow", &[silent_addr]), service("web", &[quick.addr])];
    (slow_spec.mode, spec.mode) = (Mode::Http, Mode::Http);
    node.apply(&slow_spec);
    node.apply(&spec);
    let client = Client::connect(door(&slow_spec));
    let mut sender = client.sender.clone();
    let (_answer, mut stream) = sender
        .send_request(Request::post("http://a.test/").body(()).unwrap(), false)
        .unwrap();
    // As many as the window takes, and what is in the sockets' buffers before.
    client.wait(async {
        for _ in 0..200_000 {
            stream.reserve_capacity(20);
            let room = std::future::poll_fn(|cx| stream.poll_capacity(cx));
            match tokio::time::timeout(Duration::from_secs(1), room).await {
                Ok(Some(Ok(_))) => stream.send_data(Bytes::from_static(&[b'x'; 20]), false).unwrap(),
                Ok(other) => panic!("the connection ended: {other:?}"),
                Err(_) => return,
            }
        }
        panic!("nothing holds it up");
    });
    assert!(!client.ended.is_finished(), "it was told to calm down");
    assert_eq!(Client::connect(door(&spec)).get("/").unwrap().status, 200);
}
