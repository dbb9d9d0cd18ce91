//! What is not the swarm's goes to the engine beside it: long bodies both ways, upgraded connections with their half-close,
//! at a version that both speak. The engine here is a made-up one.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io::{self, Read, Write as _};
use std::net::Shutdown;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::StreamExt;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, BodyStream, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixListener;

use super::rig::{LONG, Reply, Rig};

/// A program that answers as a Docker Engine of API 1.43 does, as far as these tests ask.
pub struct Engine {
    dir: tempfile::TempDir,
    state: Arc<State>,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
}

#[derive(Default)]
struct State {
    /// Each request's method and URI.
    asked: Mutex<Vec<String>>,
    headers: Mutex<BTreeMap<String, String>>,
    /// Answers that never end, by path, and whether their clients are still there.
    open: Mutex<BTreeMap<String, usize>>,
}

type Answer = Response<UnsyncBoxBody<Bytes, io::Error>>;

impl Engine {
    pub fn start() -> Engine {
        let dir = tempfile::tempdir().unwrap();
        let state = Arc::new(State::default());
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let (ready, is_ready) = std::sync::mpsc::channel();
        let socket = dir.path().join("engine.sock");
        let of_thread = state.clone();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async move {
                let listener = UnixListener::bind(socket).unwrap();
                ready.send(()).unwrap();
                let serve = async {
                    loop {
                        let (stream, _) = listener.accept().await.unwrap();
                        let state = of_thread.clone();
                        let service = service_fn(move |request| {
                            let state = state.clone();
                            async move { Ok::<_, Infallible>(answer(state, request).await) }
                        });
                        let connection = hyper::server::conn::http1::Builder::new()
                            .serve_connection(TokioIo::new(stream), service)
                            .with_upgrades();
                        tokio::spawn(async move { drop(connection.await) });
                    }
                };
                tokio::select! {
                    () = serve => {}
                    _ = stopped => {}
                }
            });
        });
        is_ready.recv().unwrap();
        Engine {
            dir,
            state,
            stop: Some(stop),
        }
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("engine.sock")
    }

    fn asked(&self) -> Vec<String> {
        self.state.asked.lock().unwrap().clone()
    }

    fn is_open(&self, path: &str) -> bool {
        self.state.open.lock().unwrap().get(path).is_some_and(|n| *n > 0)
    }

    /// Until nobody listens to the answer of `path` any more.
    pub fn wait_gone(&self, path: &str) {
        let started = Instant::now();
        while self.is_open(path) {
            assert!(started.elapsed() < LONG, "somebody still asks for {path}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        drop(self.stop.take());
    }
}

/// Counts itself as open until it is dropped.
struct Open(Arc<State>, String);

impl Open {
    fn new(state: &Arc<State>, path: &str) -> Open {
        *state.open.lock().unwrap().entry(path.to_owned()).or_default() += 1;
        Open(state.clone(), path.to_owned())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        *self.0.open.lock().unwrap().get_mut(&self.1).unwrap() -= 1;
    }
}

fn full(status: u16, body: impl Into<Bytes>) -> Answer {
    let body = Full::new(body.into()).map_err(|never: Infallible| match never {});
    let mut answer = Response::new(body.boxed_unsync());
    *answer.status_mut() = StatusCode::from_u16(status).unwrap();
    answer
        .headers_mut()
        .insert("content-type", "application/json".parse().unwrap());
    answer
}

async fn answer(state: Arc<State>, mut request: Request<Incoming>) -> Answer {
    let (method, uri) = (request.method().clone(), request.uri().to_string());
    state.asked.lock().unwrap().push(format!("{method} {uri}"));
    for (name, value) in request.headers() {
        let value = String::from_utf8_lossy(value.as_bytes()).into_owned();
        state.headers.lock().unwrap().insert(name.to_string(), value);
    }
    let path = request.uri().path().to_owned();
    let path = path.strip_prefix("/v1.43").unwrap_or(&path);
    match (method.as_str(), path) {
        (_, "/_ping") => {
            let mut answer = full(200, "OK");
            answer.headers_mut().insert("Api-Version", "1.43".parse().unwrap());
            answer
        }
        ("GET", "/version") => full(200, json!({ "Version": "24.0.9", "ApiVersion": "1.43" }).to_string()),
        ("GET", "/info") => full(200, json!({ "ID": "engine", "Containers": 7, "Name": "h" }).to_string()),
        ("GET", "/containers/json") => full(
            200,
            json!([{ "Id": "c1", "Names": ["/one"], "Image": "i", "Command": "x", "Created": 1, "State": "running", "Status": "Up" }])
                .to_string(),
        ),
        ("GET", "/networks") => full(200, json!([{ "Name": "bridge", "Id": "b1", "Driver": "bridge", "Scope": "local" }]).to_string()),
        ("GET", "/networks/bridge") => full(200, json!({ "Name": "bridge", "Id": "b1", "Scope": "local" }).to_string()),
        ("GET", "/networks/h1") => full(200, json!({ "Name": "host", "Id": "h1", "Scope": "local" }).to_string()),
        ("GET", "/networks/mine") => full(200, json!({ "Name": "mine", "Id": "m1", "Scope": "local" }).to_string()),
        ("POST", "/networks/mine/connect") => full(200, ""),
        ("POST", "/containers/create") => {
            let query = request.uri().query().unwrap_or_default().to_owned();
            let body = request.collect().await.unwrap().to_bytes();
            let body: Value = serde_json::from_slice(&body).unwrap();
            full(201, json!({ "Id": "c9", "Body": body, "Query": query }).to_string())
        }
        ("POST", "/networks/prune") => full(200, json!({ "NetworksDeleted": ["of-engine"] }).to_string()),
        ("POST", "/networks/create") => {
            let body = request.collect().await.unwrap().to_bytes();
            let body: Value = serde_json::from_slice(&body).unwrap();
            full(201, json!({ "Id": "n1", "Warning": body["Name"] }).to_string())
        }
        ("DELETE", "/networks/old") => full(204, ""),
        ("GET", "/distribution/nginx:latest/json") => full(
            200,
            json!({ "Descriptor": { "mediaType": "m", "digest": format!("sha256:{}", "0".repeat(64)), "size": 1 }, "Platforms": [] }).to_string(),
        ),
        // Says back each piece as it comes.
        ("POST", "/build") => {
            let pieces = BodyStream::new(request.into_body()).map(|piece| piece.map_err(io::Error::other));
            Response::new(StreamBody::new(pieces).boxed_unsync())
        }
        ("POST", "/images/load") => {
            let mut n = 0;
            let mut body = request.into_body();
            while let Some(piece) = body.frame().await {
                n += piece.unwrap().into_data().map_or(0, |data| data.len());
            }
            full(200, n.to_string())
        }
        ("GET", "/images/big/get") => {
            let pieces = (0..1024).map(|_| Ok(Frame::data(Bytes::from(vec![b'x'; 64 << 10]))));
            Response::new(StreamBody::new(futures_util::stream::iter(pieces)).boxed_unsync())
        }
        // Answers never.
        ("POST", "/containers/c1/wait") => {
            let _open = Open::new(&state, path);
            std::future::pending::<()>().await;
            full(200, "")
        }
        ("GET", "/events") => {
            let open = Open::new(&state, path);
            let first = json!({ "Type": "container", "Action": "start", "Actor": { "ID": "c1", "Attributes": {} }, "time": 1 });
            let lines = futures_util::stream::iter([Ok(Frame::data(Bytes::from(format!("{first}\n"))))]);
            let forever = futures_util::stream::once(async move {
                let _open = open;
                std::future::pending().await
            });
            Response::new(StreamBody::new(lines.chain(forever)).boxed_unsync())
        }
        // What was sent, twice, once the client has said all; then how much it was.
        ("POST", "/containers/c1/attach") if request.headers().contains_key("upgrade") => {
            let upgrade = hyper::upgrade::on(&mut request);
            let open = Open::new(&state, path);
            tokio::spawn(async move {
                let _open = open;
                let mut stream = TokioIo::new(upgrade.await.unwrap());
                let mut n = 0;
                let mut bytes = vec![0; 64 << 10];
                loop {
                    let read = stream.read(&mut bytes).await.unwrap_or(0);
                    if read == 0 || stream.write_all(&bytes[..read]).await.is_err() {
                        break;
                    }
                    n += read;
                }
                let _ = stream.write_all(format!("and that was {n}").as_bytes()).await;
                let _ = stream.shutdown().await;
            });
            let mut answer = full(101, "");
            let headers = answer.headers_mut();
            headers.insert("connection", "Upgrade".parse().unwrap());
            headers.insert("upgrade", "tcp".parse().unwrap());
            headers.insert("content-type", "application/vnd.docker.raw-stream".parse().unwrap());
            answer
        }
        _ => full(404, json!({ "message": format!("no such thing: {method} {uri}") }).to_string()),
    }
}

#[test]
fn requests_are_passed_on_at_a_version_of_both() {
    let engine = Engine::start();
    let rig = Rig::beside(engine.socket());
    // What clients are told is what both speak.
    assert_eq!(rig.get("/_ping").headers["api-version"], "1.43");
    assert_eq!(rig.get("/version").json()["ApiVersion"], "1.43");
    assert_eq!(rig.get("/v1.48/containers/json?all=1").json()[0]["Id"], "c1");
    assert_eq!(rig.get("/containers/json").json()[0]["Id"], "c1");
    assert_eq!(
        rig.get("/v1.30/containers/json").status,
        404,
        "at 1.30 it is another page"
    );
    let asked: Vec<String> = engine
        .asked()
        .into_iter()
        .filter(|asked| asked.contains("containers"))
        .collect();
    assert_eq!(
        asked,
        [
            "GET /v1.43/containers/json?all=1",
            "GET /v1.43/containers/json",
            "GET /v1.30/containers/json"
        ]
    );
    let missing = rig.get("/containers/x/json");
    assert_eq!(missing.status, 404);
    assert!(
        missing
            .message()
            .starts_with("no such thing: GET /v1.43/containers/x/json")
    );
    assert_eq!(rig.docker(&["ps", "--format", "{{.ID}} {{.Names}}"]), "c1 one");
    // Headers go with it, and what is odd in a path stays as it is.
    rig.raw(
        b"GET /images/a%2Fb%20c/json?x=%26 HTTP/1.1\r\nHost: h\r\nConnection: close\r\nX-Registry-Auth: e30=\r\n\r\n",
    );
    assert_eq!(engine.asked().last().unwrap(), "GET /v1.43/images/a%2Fb%20c/json?x=%26");
    assert_eq!(engine.state.headers.lock().unwrap()["x-registry-auth"], "e30=");
}

#[test]
fn answers_about_the_whole_join_both() {
    let engine = Engine::start();
    let rig = Rig::beside(engine.socket());
    assert_eq!(rig.post("/swarm/init", &json!({})).status, 200);
    let info = rig.get("/info").json();
    assert_eq!((&info["ID"], &info["Containers"]), (&json!("engine"), &json!(7)));
    assert_eq!(info["Swarm"]["LocalNodeState"], "active");
    let components = rig.get("/version").json()["Components"].clone();
    assert_eq!(
        (&components[1]["Name"], &components[1]["Version"]),
        (&json!("Docker Engine"), &json!("24.0.9"))
    );
    assert_eq!(
        rig.docker(&["network", "ls", "--format", "{{.Name}} {{.Scope}}"]),
        "bridge local\ningress swarm"
    );
    assert_eq!(rig.get("/networks/bridge").json()["Id"], "b1");
    assert_eq!(rig.get("/networks/bridge?scope=swarm").json()["Id"], "bridge");
    assert_eq!(rig.get("/networks/none?scope=swarm").status, 404);
    assert_eq!(
        rig.post("/networks/create", &json!({ "Name": "local" })).json()["Warning"],
        "local"
    );
    assert_eq!(rig.delete("/networks/old").status, 204);
    // A name is one part of a path, whatever is in it.
    assert_eq!(rig.get("/networks/a%2F..%2F..%3Fb").status, 404);
    assert_eq!(rig.delete("/networks/a%2F..%2F..%3Fb").status, 404);
    assert!(
        engine
            .asked()
            .iter()
            .filter(|asked| asked.contains(".."))
            .all(|asked| asked.ends_with("/networks/a%2F%2E%2E%2F%2E%2E%3Fb"))
    );
    let image = rig.docker(&["service", "create", "--detach", "--name", "web", "nginx"]);
    let image = rig.get(&format!("/services/{image}")).json()["Spec"]["TaskTemplate"]["ContainerSpec"]["Image"].clone();
    assert_eq!(
        image,
        format!("nginx:latest@sha256:{}", "0".repeat(64)),
        "the command line asked the engine for it"
    );
    assert_eq!(rig.docker(&["service", "ls", "--format", "{{.Image}}"]), "nginx:latest");
}

#[test]
fn long_bodies_flow_both_ways_as_they_come() {
    let engine = Engine::start();
    let rig = Rig::beside(engine.socket());
    // A piece comes back before the next is sent.
    let mut stream = rig.connect();
    stream
        .write_all(b"POST /build HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n")
        .unwrap();
    let mut all = Vec::new();
    for i in 0..5 {
        let piece = format!("piece {i};");
        stream
            .write_all(format!("{:x}\r\n{piece}\r\n", piece.len()).as_bytes())
            .unwrap();
        let mut bytes = [0; 4096];
        while !String::from_utf8_lossy(&all).contains(&piece) {
            let n = stream.read(&mut bytes).unwrap();
            assert!(n > 0, "{}", String::from_utf8_lossy(&all));
            all.extend_from_slice(&bytes[..n]);
        }
    }
    stream.write_all(b"0\r\n\r\n").unwrap();
    stream.read_to_end(&mut all).unwrap();
    assert_eq!(Reply::parse(&all).body, b"piece 0;piece 1;piece 2;piece 3;piece 4;");
    // Far more than a body of ours may have.
    let mut stream = rig.connect();
    let n = 100 << 20;
    stream
        .write_all(
            format!("POST /images/load HTTP/1.1\r\nHost: h\r\nContent-Length: {n}\r\nConnection: close\r\n\r\n")
                .as_bytes(),
        )
        .unwrap();
    let block = vec![7; 1 << 20];
    for _ in 0..100 {
        stream.write_all(&block).unwrap();
    }
    assert_eq!(Reply::read(&mut stream).body, n.to_string().as_bytes());
    let big = rig.get("/images/big/get");
    assert_eq!(big.body.len(), 64 << 20);
}

#[test]
fn upgraded_connections_keep_their_half_close() {
    let engine = Engine::start();
    let rig = Rig::beside(engine.socket());
    let mut stream = rig.connect();
    stream
        .write_all(b"POST /v1.43/containers/c1/attach?stream=1 HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: tcp\r\nContent-Length: 0\r\n\r\n")
        .unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        head.push(byte[0]);
    }
    let text = String::from_utf8_lossy(&head).to_lowercase();
    assert!(
        text.starts_with("http/1.1 101") && text.contains("upgrade: tcp"),
        "{text}"
    );
    stream.write_all(b"hello").unwrap();
    let mut said = [0; 5];
    stream.read_exact(&mut said).unwrap();
    assert_eq!(&said, b"hello");
    let n = 8 << 20;
    let mut writer = stream.try_clone().unwrap();
    let sent = std::thread::spawn(move || {
        writer.write_all(&vec![b'z'; n]).unwrap();
        writer.shutdown(Shutdown::Write).unwrap();
    });
    let mut all = Vec::new();
    stream.read_to_end(&mut all).unwrap();
    sent.join().unwrap();
    assert!(all[..n].iter().all(|byte| *byte == b'z'));
    assert_eq!(String::from_utf8_lossy(&all[n..]), format!("and that was {}", n + 5));
    engine.wait_gone("/containers/c1/attach");
}

#[test]
fn who_has_gone_is_gone_for_the_engine_too() {
    let engine = Engine::start();
    let rig = Rig::beside(engine.socket());
    for (request, path) in [
        (
            "POST /containers/c1/wait HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n",
            "/containers/c1/wait",
        ),
        (
            "POST /containers/c1/attach HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: tcp\r\nContent-Length: 0\r\n\r\n",
            "/containers/c1/attach",
        ),
        ("GET /events HTTP/1.1\r\nHost: h\r\n\r\n", "/events"),
    ] {
        let mut stream = rig.connect();
        stream.write_all(request.as_bytes()).unwrap();
        rig.wait_for(path, || engine.is_open(path));
        drop(stream);
        engine.wait_gone(path);
    }
}

#[test]
fn an_engine_that_is_gone_is_said_to_be() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("nothing.sock");
    let rig = Rig::beside(socket.clone());
    let reply = rig.get("/containers/json");
    assert_eq!(reply.status, 502);
    assert!(reply.message().contains(socket.to_str().unwrap()), "{reply:?}");
    // The swarm works without it.
    assert_eq!(rig.post("/swarm/init", &json!({})).status, 200);
    assert_eq!(rig.get("/networks").json()[0]["Name"], "ingress");
    assert_eq!(rig.get("/_ping").headers["api-version"], "1.48");
    // One that takes connections and says nothing.
    let silent = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let started = Instant::now();
    assert_eq!(rig.get("/_ping").status, 200);
    assert!(
        started.elapsed().as_secs() < 2,
        "the command line waits no longer: {:?}",
        started.elapsed()
    );
    assert_eq!(rig.get("/info").status, 200);
    drop(silent);
}

/// The docker command line through us to the made-up engine, its streams included.
#[test]
fn the_command_line_attaches() {
    let engine = Engine::start();
    let rig = Rig::beside(engine.socket());
    let mut child = rig
        .docker_command(&["events", "--filter", "type=container", "--format", "{{.Actor.ID}}"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = [0; 3];
    child.stdout.take().unwrap().read_exact(&mut said).unwrap();
    assert_eq!(&said, b"c1\n");
    child.kill().unwrap();
    child.wait().unwrap();
    engine.wait_gone("/events");
}
