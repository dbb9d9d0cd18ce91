//! What the tests are written with: a data plane over a table of the test's making, endpoints that behave as told, and
//! clients that read as a sentence. Everything listens on ports that the kernel picks.

pub mod installed;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anynode::model::{ServiceName, ServiceSpec};
use anynode::proxy::{Beside, Grace, Ports, Proxy, ProxyConfig, ProxyHandle};
use anynode::routing::{Change, CloseReason, Service, TableHandle};
use tokio::sync::oneshot;

/// How long anything in a test may take before the test has failed.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// A data plane without a source: the test commits to its table.
pub struct Node {
    pub table: Arc<TableHandle>,
    pub ports: Arc<Ports>,
    pub proxy: ProxyHandle,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<usize>>,
}

impl Node {
    pub fn start() -> Node {
        Node::start_with(ProxyConfig {
            n_workers: 2,
            ..ProxyConfig::default()
        })
    }

    pub fn start_with(config: ProxyConfig) -> Node {
        Node::start_draining(config, Duration::ZERO)
    }

    /// A node that gives connections `grace` when it is stopped.
    pub fn start_draining(config: ProxyConfig, grace: Duration) -> Node {
        Node::start_beside(config, grace, Beside::default())
    }

    pub fn start_beside(config: ProxyConfig, grace: Duration, beside: Beside) -> Node {
        let table = Arc::new(TableHandle::default());
        let proxy = Proxy::start(config, table.clone(), beside).unwrap();
        let ports = proxy.ports().clone();
        let handle = proxy.handle();
        let (stop, stopped) = oneshot::channel();
        let run = move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            let grace = Grace {
                asked: grace,
                handed_over: grace,
            };
            let stopped = async { drop(stopped.await) };
            runtime.block_on(proxy.run(grace, stopped, std::future::pending()))
        };
        Node {
            table,
            ports,
            proxy: handle,
            stop: Some(stop),
            thread: Some(std::thread::spawn(run)),
        }
    }

    pub fn apply(&self, spec: &ServiceSpec) {
        let change = Change::Upsert {
            spec: Arc::new(spec.clone()),
            vip: None,
        };
        self.table.commit(&[change]).unwrap();
        for port in &spec.publish {
            let listen = anynode::routing::Listen {
                ip: port.bind,
                port: port.published,
            };
            wait_until("the port to settle", || self.ports.get(&listen).is_some());
        }
    }

    pub fn service(&self, name: &str) -> Arc<Service> {
        self.table.load().service_by_key(name).unwrap().clone()
    }

    pub fn closed(&self, name: &str, reason: CloseReason) -> u64 {
        self.service(name).stats().closed_count(reason)
    }

    /// Stops the node and returns how many connections it had to reset.
    pub fn stop(&mut self) -> usize {
        drop(self.stop.take());
        self.thread.take().map_or(0, |thread| thread.join().unwrap())
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let Some(thread) = self.thread.take() else { return };
        drop(self.stop.take());
        if thread.join().is_err() && !std::thread::panicking() {
            panic!("the node panicked");
        }
    }
}

/// A service on a free published port, with these endpoints. Whose endpoints do not take a client is refused at once.
pub fn service(name: &str, endpoints: &[SocketAddr]) -> ServiceSpec {
    let mut spec = ServiceSpec::new(ServiceName::new(name).unwrap());
    spec.publish = vec![format!("127.0.0.1:{}:80", free_port()).parse().unwrap()];
    spec.endpoints = endpoints.iter().map(|addr| addr.to_string().parse().unwrap()).collect();
    if !spec.endpoints.is_empty() {
        spec.limits.hold_timeout = Duration::ZERO;
    }
    spec
}

/// Where clients reach a service made by `service`.
pub fn door(spec: &ServiceSpec) -> SocketAddr {
    SocketAddr::new(
        spec.publish[0].bind.unwrap_or_else(|| [127, 0, 0, 1].into()),
        spec.publish[0].published,
    )
}

/// A port that nobody listens on, and that no test was given before.
pub fn free_port() -> u16 {
    loop {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        // The kernel may give one out again, and outgoing connections take from the same range: step aside of it.
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let span = 8000;
        let offset = (std::process::id() as usize * 131 + NEXT.fetch_add(1, Ordering::Relaxed)) % span;
        let port_below = 20000 + u16::try_from(offset).unwrap();
        let _ = port;
        if TcpListener::bind(("0.0.0.0", port_below)).is_ok() {
            return port_below;
        }
    }
}

/// An endpoint: every accepted connection is served by `serve` on a thread of its own, until this is dropped.
pub struct Origin {
    pub addr: SocketAddr,
    pub accepted: Arc<AtomicUsize>,
    listener: TcpListener,
}

impl Origin {
    pub fn start(serve: impl Fn(TcpStream) + Send + Sync + 'static) -> Origin {
        Origin::start_at("127.0.0.1:0".parse().unwrap(), serve)
    }

    pub fn start_at(addr: SocketAddr, serve: impl Fn(TcpStream) + Send + Sync + 'static) -> Origin {
        let socket = socket2::Socket::new(socket2::Domain::for_address(addr), socket2::Type::STREAM, None).unwrap();
        socket.set_reuse_address(true).unwrap();
        socket.bind(&addr.into()).unwrap();
        socket.listen(1024).unwrap();
        let listener: TcpListener = socket.into();
        let addr = listener.local_addr().unwrap();
        let accepted = Arc::new(AtomicUsize::new(0));
        let (count, accepting, serve) = (accepted.clone(), listener.try_clone().unwrap(), Arc::new(serve));
        std::thread::spawn(move || {
            for stream in accepting.incoming() {
                let Ok(stream) = stream else { break };
                count.fetch_add(1, Ordering::SeqCst);
                let serve = serve.clone();
                std::thread::spawn(move || serve(stream));
            }
        });
        Origin {
            addr,
            accepted,
            listener,
        }
    }

    /// Says its name and ends.
    pub fn named(name: &'static str) -> Origin {
        Origin::start(move |mut stream| {
            let _ = stream.write_all(name.as_bytes());
        })
    }

    /// Sends back what it is sent, and ends when the client has.
    pub fn echo() -> Origin {
        Origin::start(|mut stream| {
            let mut buffer = vec![0; 64 * 1024];
            while let Ok(n @ 1..) = stream.read(&mut buffer) {
                if stream.write_all(&buffer[..n]).is_err() {
                    break;
                }
            }
        })
    }

    pub fn n_accepted(&self) -> usize {
        self.accepted.load(Ordering::SeqCst)
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        // Wakes the thread that accepts.
        let _ = socket2::SockRef::from(&self.listener).shutdown(std::net::Shutdown::Both);
    }
}

/// A listener that nobody accepts from and whose queue is full: a connect to it gets no answer.
pub struct Silent {
    pub addr: SocketAddr,
    listener: socket2::Socket,
    pub queued: Vec<TcpStream>,
}

impl Silent {
    pub fn start() -> Silent {
        let listener = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        let addr: SocketAddr = "127.0.0.1:0".parse().unwrap();
        listener.bind(&addr.into()).unwrap();
        listener.listen(0).unwrap();
        let addr = listener.local_addr().unwrap().as_socket().unwrap();
        let mut queued = Vec::new();
        while let Ok(stream) = TcpStream::connect_timeout(&addr, Duration::from_millis(100)) {
            queued.push(stream);
            assert!(queued.len() < 100, "the queue has no end");
        }
        Silent { addr, listener, queued }
    }

    /// Accepts one of those who wait, and so makes room in the queue.
    pub fn accept(&self) -> TcpStream {
        self.listener.accept().unwrap().0.into()
    }
}

/// A client connection that gives up after `PATIENCE`.
pub fn dial(addr: SocketAddr) -> TcpStream {
    // Not `connect_timeout`: it fails where the peer has accepted and reset the connection meanwhile.
    let stream = TcpStream::connect(addr).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// A head, of a request or an answer, to its empty line and not a byte further; `None`: it ends before.
pub fn read_head(stream: &mut TcpStream) -> Option<String> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read(&mut byte) {
            Ok(1) => head.push(byte[0]),
            _ => return None,
        }
    }
    Some(String::from_utf8_lossy(&head).into_owned())
}

/// Reads until the end; panics at a reset.
pub fn read_to_end(mut stream: &TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    bytes
}

/// What one new connection is answered.
pub fn ask(addr: SocketAddr) -> String {
    String::from_utf8(read_to_end(&dial(addr))).unwrap()
}

/// Makes closing the stream a reset.
pub fn reset(stream: TcpStream) {
    socket2::SockRef::from(&stream)
        .set_linger(Some(Duration::ZERO))
        .unwrap();
}

/// A turn on the whole machine: whoever starts engines or counts failures under load takes one, so that two of them do not
/// run at once, in this process or another. Given back when dropped.
pub fn turn() -> std::fs::File {
    let file = std::fs::File::create(std::env::temp_dir().join("anynode-test-turn.lock")).unwrap();
    file.lock().unwrap();
    file
}

pub fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let started = Instant::now();
    while !is_so() {
        assert!(started.elapsed() < PATIENCE, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// The seed of a test's random choices: ANYNODE_SEED, or any. A test that fails shows it.
pub struct Seed(u64);

impl Seed {
    pub fn new() -> Seed {
        let seed = std::env::var("ANYNODE_SEED").ok().and_then(|text| text.parse().ok());
        let seed = seed.unwrap_or_else(|| fastrand::u64(..1 << 32));
        println!("ANYNODE_SEED={seed}");
        Seed(seed)
    }

    pub fn rng(&self) -> fastrand::Rng {
        fastrand::Rng::with_seed(self.0)
    }
}

/// A file system of its own, unmounted when dropped.
pub struct SmallDisk {
    path: std::path::PathBuf,
    /// `None`: the place is somebody else's.
    _dir: Option<tempfile::TempDir>,
}

impl SmallDisk {
    pub fn path(&self) -> &std::path::Path {
        &self.path
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("-l").arg(&self.path).status();
    }
}

/// A file system of so many bytes; `None` where none may be mounted.
pub fn small_disk(bytes: u64) -> Option<SmallDisk> {
    let dir = tempfile::tempdir().unwrap();
    let mut disk = small_disk_at(dir.path(), bytes)?;
    disk._dir = Some(dir);
    Some(disk)
}

/// The same at `path`, which must be there.
pub fn small_disk_at(path: &std::path::Path, bytes: u64) -> Option<SmallDisk> {
    let mut mount = std::process::Command::new("mount");
    mount
        .args(["-t", "tmpfs", "-o", &format!("size={bytes}"), "none"])
        .arg(path);
    let is_mounted = mount
        .stderr(std::process::Stdio::null())
        .status()
        .is_ok_and(|status| status.success());
    is_mounted.then(|| SmallDisk {
        path: path.to_owned(),
        _dir: None,
    })
}
