//! A site of nodes that speak the link over loopback: each has a runtime and a thread of its own, so that it can be killed,
//! frozen and started again without the others. And raw peers, that say by hand what no node would say.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anynode::link::{
    Authority, Dialer, Handler, Identity, Job, Later, LinkSettings, LinkState, Peer, Peers, PendingTunnel, Refusal,
    Role, Target, Token, Tunnel, TunnelRequest, serve,
};
use anynode::model::{Cluster, ClusterNode, ClusterObject};
use rcgen::{KeyPair, PublicKeyData};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, ServerConfig, SignatureScheme};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{oneshot, watch};

/// How long anything in a test may take before the test has failed.
pub const PATIENCE: Duration = Duration::from_secs(60);
pub const LONG_LIFE: Duration = Duration::from_secs(3600);
pub const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

pub const CONTROL: &str = "anynode-control/1";
pub const TUNNEL: &str = "anynode-tunnel/1";
pub const JOIN: &str = "anynode-join/2";

/// Waits for something that must come. Panics when it does not.
pub async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let since = Instant::now();
    while !is_so() {
        assert!(since.elapsed() < PATIENCE, "waited in vain for {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// What must end by itself.
pub async fn ends<T>(what: &str, work: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, work)
        .await
        .unwrap_or_else(|_| panic!("no end of {what}"))
}

/// The nodes `ids`; those that begin with `m` are managers.
pub fn cluster(revision: u64, ids: &[&str]) -> Cluster {
    let mut cluster = Cluster::default();
    for id in ids {
        cluster.put(node(id, LOOPBACK));
    }
    cluster.set_revision(revision);
    cluster
}

pub fn node(id: &str, addr: IpAddr) -> ClusterObject {
    ClusterObject::Node(ClusterNode {
        id: id.to_owned(),
        hostname: format!("host-{id}"),
        addr: Some(addr),
        is_manager: id.starts_with('m'),
        is_up: true,
        availability: "active".to_owned(),
        labels: Default::default(),
    })
}

/// What all nodes of one swarm share.
pub struct Site {
    pub authority: Arc<Authority>,
    pub token: Arc<Token>,
    dir: tempfile::TempDir,
}

pub struct Options {
    pub addr: SocketAddr,
    pub certificate_life: Duration,
    pub checks_address: bool,
    /// It begins with a certificate, good for so long.
    pub first_life: Option<Duration>,
    /// It is to hand over to another run, by `Site::succeed`.
    pub hands_over: bool,
    /// Handed over by the run before.
    pub listener: Option<std::net::TcpListener>,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            addr: SocketAddr::new(LOOPBACK, 0),
            certificate_life: LONG_LIFE,
            checks_address: true,
            first_life: Some(LONG_LIFE),
            hands_over: false,
            listener: None,
        }
    }
}

impl Site {
    pub fn new() -> Site {
        let dir = tempfile::tempdir().unwrap();
        let token = Site::write_token(dir.path(), "0123456789abcdef0123456789abcdef\n");
        Site {
            authority: Arc::new(Authority::from_pem(&Authority::generate().unwrap()).unwrap()),
            token: Arc::new(Token::read("link.token_file", &token).unwrap()),
            dir,
        }
    }

    pub fn write_token(dir: &std::path::Path, text: &str) -> PathBuf {
        let path = dir.join(format!("token-{}", fastrand::u64(..)));
        std::fs::write(&path, text).unwrap();
        path
    }

    pub fn dir(&self, id: &str) -> PathBuf {
        let dir = self.dir.path().join(id);
        std::fs::create_dir_all(&dir).unwrap();
        dir
    }

    pub fn start(&self, id: &str, cluster: Cluster) -> Node {
        self.start_with(id, cluster, Options::default())
    }

    /// Starts a node, again with what it kept if it was there before. Those that begin with `m` are managers: they have the
    /// authority and give the cluster.
    pub fn start_with(&self, id: &str, first: Cluster, options: Options) -> Node {
        let is_manager = id.starts_with('m');
        let identity = Arc::new(Identity::open(&self.dir(id), id).unwrap());
        if let Some(life) = options.first_life {
            match is_manager {
                true => identity.issue_own(&self.authority, life).unwrap(),
                false => {
                    let own = self.authority.issue(id, Role::Worker, &identity.public_key(), life);
                    identity
                        .take_and_keep(&own.unwrap(), self.authority.certificate_pem())
                        .unwrap();
                }
            }
        }
        let bind = || std::net::TcpListener::bind(options.addr).unwrap();
        let listener = options.listener.unwrap_or_else(bind);
        listener.set_nonblocking(true).unwrap();
        let lent = options.hands_over.then(|| listener.try_clone().unwrap());
        let addr = listener.local_addr().unwrap();
        let cluster = watch::Sender::new(Arc::new(first));
        let settings = LinkSettings {
            port: addr.port(),
            certificate_life: options.certificate_life,
            checks_address: options.checks_address,
        };
        let state = Arc::new(LinkState::new(cluster.subscribe(), settings));
        state.set_identity(identity.clone());
        if is_manager {
            state.set_authority(Some(self.authority.clone()));
            state.set_token(Some(self.token.clone()));
            state.is_source.store(true, Relaxed);
        }
        let log = Log::default();
        state.set_handler(Arc::new(Serves {
            log: log.clone(),
            instance: state.instance,
        }));
        let peers = Arc::new(Peers::new(state.clone(), cluster.clone()));
        let targets = watch::Sender::new(Vec::new());
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let handle = runtime.handle().clone();
        let (stop, stopped) = oneshot::channel::<()>();
        let (hand_over, handed_over) = oneshot::channel::<()>();
        let (for_serve, for_peers, targets_of) = (state.clone(), peers.clone(), targets.subscribe());
        let run = async move {
            let listener = TcpListener::from_std(listener).unwrap();
            let accepting = async {
                // An error is no word.
                let handed_over = async {
                    if handed_over.await.is_err() {
                        std::future::pending().await
                    }
                };
                serve(for_serve, listener, handed_over).await;
                std::future::pending::<()>().await
            };
            tokio::select! {
                () = accepting => {}
                () = for_peers.run(targets_of, std::future::pending()) => {}
                _ = stopped => {}
            }
        };
        let thread = std::thread::spawn(move || {
            runtime.block_on(run);
            runtime.shutdown_background();
        });
        Node {
            id: id.to_owned(),
            addr,
            dialer: Dialer::new(state.clone()),
            state,
            identity,
            cluster,
            peers,
            targets,
            log,
            handle,
            lent,
            hand_over: Some(hand_over),
            stop: Some(stop),
            thread: Some(thread),
        }
    }

    /// Starts another run of a node in the place of one that hands over, which goes on with what it has.
    pub fn succeed(&self, before: &mut Node) -> Node {
        let options = Options {
            hands_over: true,
            listener: Some(before.lent.take().expect("it hands over")),
            ..Options::default()
        };
        let cluster = Cluster::clone(&before.cluster.borrow());
        let next = self.start_with(&before.id, cluster, options);
        before.hand_over.take().unwrap().send(()).unwrap();
        before.state.drain();
        next
    }

    /// A certificate of this site's authority for a peer that is played by hand.
    pub fn certificate(&self, id: &str, role: Role, life: Duration) -> Certificate {
        let key = KeyPair::generate().unwrap();
        let pem = self.authority.issue(id, role, &key.subject_public_key_info(), life);
        Certificate {
            der: CertificateDer::from_pem_slice(pem.unwrap().as_bytes()).unwrap(),
            key: key.serialize_der(),
        }
    }
}

pub struct Certificate {
    der: CertificateDer<'static>,
    key: Vec<u8>,
}

impl Certificate {
    fn key(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::try_from(self.key.clone()).unwrap()
    }
}

/// A node with its own thread. Dropping it kills it.
pub struct Node {
    pub id: String,
    pub addr: SocketAddr,
    pub state: Arc<LinkState>,
    pub identity: Arc<Identity>,
    pub cluster: watch::Sender<Arc<Cluster>>,
    pub peers: Arc<Peers>,
    pub dialer: Dialer,
    pub targets: watch::Sender<Vec<Target>>,
    pub log: Log,
    pub handle: tokio::runtime::Handle,
    /// For the next run.
    lent: Option<std::net::TcpListener>,
    hand_over: Option<oneshot::Sender<()>>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Node {
    pub fn target(&self) -> Target {
        Target {
            node: self.id.as_str().into(),
            addr: self.addr,
            is_manager: self.id.starts_with('m'),
        }
    }

    pub fn links_to(&self, others: &[&Node]) {
        self.targets
            .send_replace(others.iter().map(|other| other.target()).collect());
    }

    /// Runs something on the node's own thread.
    pub async fn on<T: Send + 'static>(&self, work: impl Future<Output = T> + Send + 'static) -> T {
        ends("work on a node", self.handle.spawn(work)).await.unwrap()
    }

    /// Dials `task` of `other`, on this node's thread.
    pub async fn dial(&self, other: &Node, task: &str) -> io::Result<Tunnel> {
        self.dial_as(&other.id, other.addr, task).await
    }

    pub async fn dial_as(&self, node: &str, addr: SocketAddr, task: &str) -> io::Result<Tunnel> {
        let dialer = self.dialer.clone();
        let (node, request) = (Arc::from(node), request(task));
        self.on(async move { dialer.dial(node, addr, request).await }).await
    }

    /// Whether a tunnel to `other` gives back what goes in.
    pub async fn echo(&self, other: &Node) -> io::Result<()> {
        let (dialer, node, addr) = (self.dialer.clone(), Arc::from(other.id.as_str()), other.addr);
        self.on(async move {
            let mut tunnel = dialer.dial(node, addr, request("echo")).await?;
            tunnel.write_all(b"there and back").await?;
            tunnel.shutdown().await?;
            let mut text = String::new();
            tunnel.read_to_string(&mut text).await?;
            match text.as_str() {
                "there and back" => Ok(()),
                _ => Err(io::Error::other(format!("{text:?} came back"))),
            }
        })
        .await
    }

    pub fn is_up(&self, other: &str) -> bool {
        self.peers.table().get(other).is_some_and(|peer| peer.is_up)
    }

    pub fn is_silent(&self, other: &str) -> bool {
        self.peers.table().get(other).is_some_and(|peer| peer.is_silent)
    }

    pub fn stat(&self, stat: impl Fn(&anynode::link::LinkStats) -> &std::sync::atomic::AtomicU64) -> u64 {
        stat(&self.state.stats).load(Relaxed)
    }

    /// So many tasks live on it, its own among them.
    pub fn n_tasks(&self) -> usize {
        self.handle.metrics().num_alive_tasks()
    }

    /// So many connections to its link are held by its side.
    pub fn n_sockets(&self) -> usize {
        let port = format!(":{:04X}", self.addr.port());
        let table = std::fs::read_to_string("/proc/self/net/tcp").unwrap();
        // Established, or its end has come and was not answered.
        let is_held = |line: &&str| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            fields.len() > 3 && fields[1].ends_with(&port) && matches!(fields[3], "01" | "08")
        };
        table.lines().filter(is_held).count()
    }

    /// Its thread does nothing until what is returned is dropped; its kernel goes on, as with SIGSTOP.
    pub fn freeze(&self) -> std::sync::mpsc::Sender<()> {
        let (sender, receiver) = std::sync::mpsc::channel();
        let (frozen, is_frozen) = std::sync::mpsc::channel();
        self.handle.spawn(async move {
            frozen.send(()).unwrap();
            // An error means that it was dropped, which is what is waited for.
            let _ = receiver.recv();
        });
        is_frozen.recv_timeout(PATIENCE).unwrap();
        sender
    }

    /// At once and without a word.
    pub fn kill(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.kill();
    }
}

pub fn request(task: &str) -> TunnelRequest {
    TunnelRequest {
        task: task.to_owned(),
        target: 80,
        client: None,
        asker: None,
    }
}

/// What the serving side of tunnels saw.
#[derive(Debug, Clone, Default)]
pub struct Log(Arc<Mutex<Vec<String>>>);

impl Log {
    pub fn say(&self, line: String) {
        self.0.lock().unwrap().push(line);
    }

    pub fn clear(&self) {
        self.0.lock().unwrap().clear();
    }

    pub fn has(&self, line: &str) -> bool {
        self.0.lock().unwrap().iter().any(|said| said == line)
    }
}

/// Tasks are played by the name that is asked for.
struct Serves {
    log: Log,
    instance: u64,
}

impl Handler for Serves {
    fn spawn(&self, job: Job) {
        tokio::spawn(async move { job().await });
    }

    fn serve_tunnel(&self, request: TunnelRequest, pending: PendingTunnel) -> Later<()> {
        let log = self.log.clone();
        Box::pin(async move {
            let task = request.task.clone();
            let said = match play(request, pending).await {
                Ok(line) => format!("{task}: {line}"),
                Err(error) => format!("{task}: {:?}", error.kind()),
            };
            log.say(said);
        })
    }

    fn call(&self, caller: Peer, method: String, body: Value) -> Later<Result<Value, String>> {
        let instance = self.instance;
        Box::pin(async move {
            match method.as_str() {
                "who" => Ok(json!(instance)),
                "echo" => Ok(json!({ "caller": &*caller.node, "role": caller.role.as_str(), "body": body })),
                "never" => std::future::pending().await,
                _ => Err(format!("no such call: {method}")),
            }
        })
    }
}

async fn play(request: TunnelRequest, pending: PendingTunnel) -> io::Result<String> {
    let refusal = match request.task.as_str() {
        "refused" => Some(Refusal::NotReached),
        "slow" => Some(Refusal::TimedOut),
        "gone" => Some(Refusal::Gone),
        "not-allowed" => Some(Refusal::NotAllowed),
        _ => None,
    };
    if let Some(refusal) = refusal {
        pending.refuse(refusal).await;
        return Ok("refused".to_owned());
    }
    if request.task == "never" {
        tokio::time::sleep(PATIENCE * 2).await;
    }
    let mut tunnel = pending.accept().await?;
    match request.task.as_str() {
        "client" => {
            let text = format!("{:?} {:?}", request.client, request.asker);
            tunnel.write_all(text.as_bytes()).await?;
            tunnel.shutdown().await?;
        }
        // Speaks only when the other has ended.
        "listens" => {
            let mut text = String::new();
            tunnel.read_to_string(&mut text).await?;
            tunnel.write_all(format!("heard {text}").as_bytes()).await?;
            tunnel.shutdown().await?;
        }
        // Ends first, and goes on to listen.
        "speaks" => {
            tunnel.write_all(b"all I have to say").await?;
            tunnel.shutdown().await?;
            let mut text = String::new();
            tunnel.read_to_string(&mut text).await?;
            return Ok(text);
        }
        "resets" => {
            tunnel.write_all(b"half a wo").await?;
            tunnel.flush().await?;
            let mut byte = [0];
            tunnel.read_exact(&mut byte).await?;
        }
        "reads" => {
            let n = tokio::io::copy(&mut tunnel, &mut tokio::io::sink()).await?;
            return Ok(n.to_string());
        }
        // Reads nothing until the first byte of another tunnel comes.
        "waits" => {
            tokio::time::sleep(Duration::from_secs(4)).await;
            let digest = digest_of(&mut tunnel, usize::MAX).await?;
            tunnel.write_all(&digest).await?;
            tunnel.shutdown().await?;
        }
        "both" => {
            let (mut reader, mut writer) = tokio::io::split(tunnel);
            let write = async {
                writer.write_all(&noise(2, BOTH_BYTES)).await?;
                writer.flush().await
            };
            let (digest, written) = tokio::join!(digest_of(&mut reader, usize::MAX), write);
            written?;
            writer.write_all(&digest?).await?;
            writer.shutdown().await?;
        }
        _ => {
            let (mut reader, mut writer) = tokio::io::split(tunnel);
            tokio::io::copy(&mut reader, &mut writer).await?;
            writer.shutdown().await?;
        }
    }
    Ok("done".to_owned())
}

pub const BOTH_BYTES: usize = 10 << 20;

pub fn noise(seed: u64, n: usize) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut bytes = vec![0; n];
    random.fill(&mut bytes);
    bytes
}

pub fn sha(bytes: &[u8]) -> Vec<u8> {
    use sha2::Digest;
    sha2::Sha256::digest(bytes).to_vec()
}

/// Of the next `n` bytes, or of all until the end.
pub async fn digest_of(stream: &mut (impl AsyncRead + Unpin), n: usize) -> io::Result<Vec<u8>> {
    use sha2::Digest;
    let mut hash = sha2::Sha256::new();
    let mut buffer = vec![0; 64 << 10];
    let mut left = n;
    while left > 0 {
        let most = left.min(buffer.len());
        match stream.read(&mut buffer[..most]).await? {
            0 => break,
            n => {
                hash.update(&buffer[..n]);
                left -= n;
            }
        }
    }
    Ok(hash.finalize().to_vec())
}

pub type RawStream = tokio_rustls::client::TlsStream<TcpStream>;

/// Connects by hand, to any node that says it is any.
pub async fn raw(addr: SocketAddr, alpn: &str, own: Option<&Certificate>) -> io::Result<RawStream> {
    raw_with(TcpStream::connect(addr).await?, raw_config(alpn, own)).await
}

pub async fn raw_with(stream: TcpStream, config: Arc<ClientConfig>) -> io::Result<RawStream> {
    let name = ServerName::try_from("anybody").unwrap();
    ends(
        "a handshake",
        tokio_rustls::TlsConnector::from(config).connect(name, stream),
    )
    .await
}

/// A connection that comes from another address of this machine.
pub async fn connect_from(source: IpAddr, addr: SocketAddr) -> io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddr::new(source, 0))?;
    socket.connect(addr).await
}

pub fn raw_config(alpn: &str, own: Option<&Certificate>) -> Arc<ClientConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody(provider)));
    let mut config = match own {
        Some(own) => config.with_client_auth_cert(vec![own.der.clone()], own.key()).unwrap(),
        None => config.with_no_client_auth(),
    };
    config.alpn_protocols = vec![alpn.as_bytes().to_vec()];
    Arc::new(config)
}

/// The accepting side by hand: the next connection that asks for `alpn`.
pub async fn raw_accept(
    listener: &TcpListener,
    alpn: &str,
    own: &Certificate,
) -> io::Result<tokio_rustls::server::TlsStream<TcpStream>> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![own.der.clone()], own.key())
        .unwrap();
    config.alpn_protocols = vec![alpn.as_bytes().to_vec()];
    let (stream, _) = ends("a connection", listener.accept()).await?;
    ends(
        "a handshake",
        tokio_rustls::TlsAcceptor::from(Arc::new(config)).accept(stream),
    )
    .await
}

#[derive(Debug)]
struct Anybody(Arc<rustls::crypto::CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        unreachable!("TLS 1.3 only")
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// Sends one message as the link frames it.
pub async fn tell(stream: &mut (impl AsyncWrite + Unpin), message: &Value) -> io::Result<()> {
    let text = message.to_string();
    let mut frame = u32::try_from(text.len()).unwrap().to_be_bytes().to_vec();
    frame.extend_from_slice(text.as_bytes());
    stream.write_all(&frame).await?;
    stream.flush().await
}

/// The next message. Errors: the other side ended, or said nothing for very long.
pub async fn hear(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Value> {
    let next = async {
        let length = stream.read_u32().await?;
        let mut text = vec![0; length as usize];
        stream.read_exact(&mut text).await?;
        Ok(serde_json::from_slice(&text).unwrap())
    };
    ends("a silence", next).await
}

/// The next message of this type; others are passed over.
pub async fn hear_type(stream: &mut (impl AsyncRead + Unpin), wanted: &str) -> io::Result<Value> {
    loop {
        let message = hear(stream).await?;
        if message["type"] == wanted {
            return Ok(message);
        }
    }
}

/// Whether the other side ends the connection without having said anything.
pub async fn is_turned_away(connected: io::Result<RawStream>) -> bool {
    let Ok(mut stream) = connected else { return true };
    let mut bytes = Vec::new();
    // How it ends does not matter here.
    let _ = ends("the connection of a stranger", stream.read_to_end(&mut bytes)).await;
    bytes.is_empty()
}

pub fn report(instance: u64, is_source: bool) -> Value {
    json!({
        "version": "test", "instance": instance, "revision": 0, "digest": "0".repeat(32), "is_source": is_source,
    })
}

pub fn ping(n: u64) -> Value {
    json!({ "type": "ping", "n": n, "report": report(77, false) })
}
