//! The link between nodes, on loopback: who gets in, what a bad peer may do, and what a tunnel keeps.

mod bad_peers;
mod certificates;
mod replication;
mod rig;
mod strangers;
mod tunnels;

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anynode::link::{
    self, Authority, Dialer, Handler, Identity, Job, Later, LinkSettings, LinkState, Peer, Peers, PendingTunnel,
    Refusal, Role, Target, Token, Tunnel, TunnelRequest,
};
use anynode::model::{Cluster, ClusterNode, ClusterObject, ClusterTask};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use crate::harness::PATIENCE;

const LIFE: Duration = Duration::from_secs(3600);
const TOKEN: &str = "a token of the tests, long enough for any";

/// What a node does with a tunnel, by the task's id: `echo`, `gone`, `refused`, `reset`, or waits for the test.
struct Does {
    waiting: Mutex<Vec<tokio::sync::oneshot::Sender<Tunnel>>>,
    seen: Mutex<Vec<TunnelRequest>>,
}

impl Handler for Does {
    fn spawn(&self, job: Job) {
        tokio::spawn(job());
    }

    fn serve_tunnel(&self, request: TunnelRequest, pending: PendingTunnel) -> Later<()> {
        let task = request.task.clone();
        self.seen.lock().unwrap().push(request);
        let waiting = (task == "wait").then(|| self.waiting.lock().unwrap().pop().unwrap());
        Box::pin(async move {
            match task.as_str() {
                "gone" => pending.refuse(Refusal::Gone).await,
                "refused" => pending.refuse(Refusal::NotReached).await,
                "late" => pending.refuse(Refusal::TimedOut).await,
                "other" => pending.refuse(Refusal::NotAllowed).await,
                "wait" => {
                    let _ = waiting.unwrap().send(pending.accept().await.unwrap());
                }
                _ => {
                    let Ok(mut tunnel) = pending.accept().await else { return };
                    let mut buffer = vec![0; 64 * 1024];
                    while let Ok(n @ 1..) = tunnel.read(&mut buffer).await {
                        if tunnel.write_all(&buffer[..n]).await.is_err() || tunnel.flush().await.is_err() {
                            return;
                        }
                    }
                    let _ = tunnel.shutdown().await;
                }
            }
        })
    }

    fn call(&self, caller: Peer, method: String, body: serde_json::Value) -> Later<Result<serde_json::Value, String>> {
        Box::pin(async move {
            match method.as_str() {
                "echo" => Ok(serde_json::json!({ "to": *caller.node, "said": body })),
                _ => Err(format!("no {method}")),
            }
        })
    }
}

struct Node {
    state: Arc<LinkState>,
    does: Arc<Does>,
    cluster: watch::Sender<Arc<Cluster>>,
    addr: SocketAddr,
    id: String,
    dir: tempfile::TempDir,
    server: tokio::task::JoinHandle<()>,
}

fn node_object(id: &str, is_manager: bool, ip: [u8; 4]) -> ClusterObject {
    ClusterObject::Node(ClusterNode {
        id: id.to_owned(),
        hostname: format!("host-{id}"),
        addr: Some(IpAddr::from(ip)),
        is_manager,
        is_up: true,
        availability: "active".to_owned(),
    })
}

/// Three nodes, of which `m` is the manager.
fn cluster() -> Cluster {
    let mut cluster = Cluster::default();
    for (id, is_manager) in [("m", true), ("a", false), ("b", false)] {
        cluster.put(node_object(id, is_manager, [127, 0, 0, 1]));
    }
    cluster.set_revision(1);
    cluster
}

impl Node {
    async fn start(id: &str, authority: Option<&Arc<Authority>>, life: Duration) -> Node {
        let cluster = watch::Sender::new(Arc::new(cluster()));
        let settings = LinkSettings {
            port: 0,
            certificate_life: life,
            checks_address: true,
        };
        let state = Arc::new(LinkState::new(cluster.subscribe(), settings));
        let does = Arc::new(Does {
            waiting: Mutex::default(),
            seen: Mutex::default(),
        });
        state.set_handler(does.clone());
        let dir = tempfile::tempdir().unwrap();
        let identity = Arc::new(Identity::open(dir.path(), id).unwrap());
        if let Some(authority) = authority {
            match id {
                "m" => {
                    identity.issue_own(authority, life).unwrap();
                    state.set_authority(Some(authority.clone()));
                    state.is_source.store(true, Relaxed);
                }
                _ => {
                    let pem = authority.issue(id, Role::Worker, &identity.public_key(), life).unwrap();
                    identity.take_and_keep(&pem, authority.certificate_pem()).unwrap();
                }
            }
        }
        state.set_identity(identity);
        state.set_token(Some(Arc::new(token(&dir, TOKEN))));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let server = tokio::spawn(link::serve(state.clone(), listener, std::future::pending()));
        Node {
            state,
            does,
            cluster,
            addr,
            id: id.to_owned(),
            dir,
            server,
        }
    }

    async fn dial(&self, to: &Node, task: &str) -> std::io::Result<Tunnel> {
        self.dial_as(&to.id, to.addr, task).await
    }

    async fn dial_as(&self, id: &str, addr: SocketAddr, task: &str) -> std::io::Result<Tunnel> {
        let request = TunnelRequest {
            task: task.to_owned(),
            target: 80,
            client: Some(("203.0.113.7:5555".parse().unwrap(), "10.0.0.1:80".parse().unwrap())),
        };
        let dialer = Dialer::new(self.state.clone());
        let dialing = dialer.dial(id.into(), addr, request);
        tokio::time::timeout(PATIENCE, dialing).await.unwrap()
    }

    fn identity(&self) -> Arc<Identity> {
        self.state.identity().unwrap()
    }
}

fn token(dir: &tempfile::TempDir, text: &str) -> Token {
    let path = dir.path().join("token");
    std::fs::write(&path, text).unwrap();
    Token::read(&path).unwrap()
}

fn authority() -> Arc<Authority> {
    Arc::new(Authority::from_pem(&Authority::generate().unwrap()).unwrap())
}

async fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let waiting = async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    assert!(
        tokio::time::timeout(PATIENCE, waiting).await.is_ok(),
        "waited in vain for {what}"
    );
}

/// `m` and `a`, of one authority.
async fn pair() -> (Node, Node) {
    let authority = authority();
    (
        Node::start("m", Some(&authority), LIFE).await,
        Node::start("a", Some(&authority), LIFE).await,
    )
}

async fn says_echo(tunnel: &mut Tunnel, text: &[u8]) {
    tunnel.write_all(text).await.unwrap();
    tunnel.flush().await.unwrap();
    let mut back = vec![0; text.len()];
    tokio::time::timeout(PATIENCE, tunnel.read_exact(&mut back))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(back, text);
}

#[tokio::test]
async fn strangers_get_nothing() {
    let (m, a) = pair().await;
    let stranger = Node::start("b", Some(&authority()), LIFE).await;
    assert!(stranger.dial(&a, "echo").await.is_err(), "of another authority");
    assert!(a.dial(&stranger, "echo").await.is_err(), "nor is it believed");
    assert!(
        m.dial_as("b", a.addr, "echo").await.is_err(),
        "whoever answers must be who was dialed"
    );
    let nobody = Node::start("b", None, LIFE).await;
    assert!(nobody.dial(&a, "echo").await.is_err(), "without a certificate");
    // Without any certificate, by hand: the handshake may stand, and then nothing is said.
    for alpn in ["anynode-control/1", "anynode-tunnel/1", "other"] {
        let said = speak_tls(a.addr, alpn, b"\0\0\0\x02{}").await;
        assert_eq!(said, b"", "{alpn}");
    }
    // Who has left the cluster gets nothing, whatever its certificate says.
    let mut without = cluster();
    without.remove("node/m");
    a.cluster.send_replace(Arc::new(without));
    assert!(m.dial(&a, "echo").await.is_err(), "no node of the cluster any more");
    assert!(a.does.seen.lock().unwrap().is_empty());
    a.cluster.send_replace(Arc::new(cluster()));
    says_echo(&mut m.dial(&a, "echo").await.unwrap(), b"a friend").await;
}

/// What `addr` says to whoever has no certificate and sends `bytes`.
async fn speak_tls(addr: SocketAddr, alpn: &str, bytes: &[u8]) -> Vec<u8> {
    #[derive(Debug)]
    struct Anybody;
    use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
    impl ServerCertVerifier for Anybody {
        fn verify_server_cert(
            &self,
            _: &rustls::pki_types::CertificateDer<'_>,
            _: &[rustls::pki_types::CertificateDer<'_>],
            _: &rustls::pki_types::ServerName<'_>,
            _: &[u8],
            _: rustls::pki_types::UnixTime,
        ) -> Result<ServerCertVerified, rustls::Error> {
            Ok(ServerCertVerified::assertion())
        }
        fn verify_tls12_signature(
            &self,
            _: &[u8],
            _: &rustls::pki_types::CertificateDer<'_>,
            _: &rustls::DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, rustls::Error> {
            Ok(HandshakeSignatureValid::assertion())
        }
        fn verify_tls13_signature(
            &self,
            _: &[u8],
            _: &rustls::pki_types::CertificateDer<'_>,
            _: &rustls::DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, rustls::Error> {
            Ok(HandshakeSignatureValid::assertion())
        }
        fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
            rustls::crypto::ring::default_provider()
                .signature_verification_algorithms
                .supported_schemes()
        }
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody))
        .with_no_client_auth();
    config.alpn_protocols = vec![alpn.as_bytes().to_vec()];
    let stream = TcpStream::connect(addr).await.unwrap();
    let name = rustls::pki_types::ServerName::try_from("x").unwrap();
    let connecting = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream);
    let Ok(mut stream) = connecting.await else {
        return Vec::new();
    };
    let _ = stream.write_all(bytes).await;
    let _ = stream.flush().await;
    let mut said = Vec::new();
    let _ = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut said)).await;
    said
}

#[tokio::test]
async fn who_knows_the_token_and_is_a_worker_of_the_cluster_may_join() {
    let authority = authority();
    let m = Node::start("m", Some(&authority), LIFE).await;
    let b = Node::start("b", None, LIFE).await;
    let good = token(&b.dir, TOKEN);
    let refused = |error: std::io::Error, text: &str| {
        assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{error}");
        assert!(error.to_string().contains(text), "{error}");
    };
    let wrong = token(&b.dir, "another token, just as long as the right one");
    refused(
        link::join(&b.identity(), &wrong, m.addr).await.unwrap_err(),
        "does not know this node's token",
    );
    let unknown = Identity::open(tempfile::tempdir().unwrap().path(), "zzz").unwrap();
    refused(
        link::join(&unknown, &good, m.addr).await.unwrap_err(),
        "has no node \"zzz\"",
    );
    let manager = Identity::open(tempfile::tempdir().unwrap().path(), "m").unwrap();
    refused(link::join(&manager, &good, m.addr).await.unwrap_err(), "is a manager");
    let mut elsewhere = cluster();
    elsewhere.put(node_object("b", false, [192, 0, 2, 9]));
    m.cluster.send_replace(Arc::new(elsewhere));
    refused(
        link::join(&b.identity(), &good, m.addr).await.unwrap_err(),
        "it comes from 127.0.0.1",
    );
    assert_eq!(b.identity().role(), None);
    m.cluster.send_replace(Arc::new(cluster()));
    link::join(&b.identity(), &good, m.addr).await.unwrap();
    assert_eq!(b.identity().role(), Some(Role::Worker));
    says_echo(&mut b.dial(&m, "echo").await.unwrap(), b"joined").await;
    // A worker lets nobody in, and too many tries are too many.
    let a = Node::start("a", Some(&authority), LIFE).await;
    assert!(link::join(&b.identity(), &good, a.addr).await.is_err());
    for _ in 0..10 {
        let _ = link::join(&unknown, &good, m.addr).await;
    }
    assert!(
        link::join(&b.identity(), &good, m.addr).await.is_err(),
        "too many tries from one address"
    );
    let short = b.dir.path().join("short");
    std::fs::write(&short, "short").unwrap();
    let error = Token::read(&short).unwrap_err().to_string();
    assert!(error.contains("5 characters: expected at least 32"), "{error}");
}

#[tokio::test]
async fn only_managers_give_the_cluster_and_certificates() {
    let authority = authority();
    let (a, b) = (
        Node::start("a", Some(&authority), LIFE).await,
        Node::start("b", Some(&authority), LIFE).await,
    );
    let taken = watch::Sender::new(Arc::new(Cluster::default()));
    let peers = Arc::new(Peers::new(b.state.clone(), taken.clone()));
    let target = Target {
        node: "a".into(),
        addr: a.addr,
        is_manager: true,
    };
    let targets = watch::Sender::new(vec![target]);
    let (for_run, following) = (peers.clone(), targets.subscribe());
    tokio::spawn(async move { for_run.run(following, std::future::pending()).await });
    eventually("the refusal", || a.state.stats.refused.load(Relaxed) > 0).await;
    eventually("the link", || peers.table().get("a").is_some_and(|peer| peer.is_up)).await;
    assert!(
        taken.borrow().is_empty(),
        "a worker's word on the cluster counts for nothing"
    );
    let answer = peers.call("a", "echo", serde_json::json!(7), PATIENCE).await.unwrap();
    assert_eq!(answer, serde_json::json!({ "to": "b", "said": 7 }));
    assert!(
        peers
            .call("a", "nonsense", serde_json::json!(7), PATIENCE)
            .await
            .unwrap_err()
            .contains("no nonsense")
    );
    assert!(peers.call("z", "echo", serde_json::json!(7), PATIENCE).await.is_err());
}

#[tokio::test]
async fn bad_peers_cost_their_own_connection_only() {
    let (m, a) = pair().await;
    let mut held = Vec::new();
    for i in 0..50u8 {
        let mut stream = TcpStream::connect(a.addr).await.unwrap();
        // Garbage, half a handshake, or nothing at all.
        match i % 3 {
            0 => drop(stream.write_all(&[i; 300]).await),
            1 => drop(stream.write_all(&[0x16, 3, 1, 2, 0, 1]).await),
            _ => {}
        }
        held.push(stream);
    }
    says_echo(&mut m.dial(&a, "echo").await.unwrap(), b"in between").await;
    // One with a certificate that sends and never reads.
    let mut tunnel = m.dial(&a, "echo").await.unwrap();
    tunnel.write_all(&[0xff; 100_000]).await.unwrap();
    says_echo(&mut m.dial(&a, "echo").await.unwrap(), b"and after").await;
    drop(held);
    eventually("all of them to be given up", || {
        a.state.stats.failed.load(Relaxed) >= 34
    })
    .await;
}

#[tokio::test]
async fn the_cluster_arrives_whole_whatever_happens_to_one_manager() {
    let authority = authority();
    let a = Node::start("a", Some(&authority), LIFE).await;
    let m = Node::start("m", Some(&authority), LIFE).await;
    // A second manager with the same authority and another id.
    let second = Node::start("b", Some(&authority), LIFE).await;
    second.state.is_source.store(true, Relaxed);
    let taken = watch::Sender::new(Arc::new(Cluster::default()));
    let peers = Peers::new(a.state.clone(), taken.clone());
    let target = |node: &Node| Target {
        node: node.id.as_str().into(),
        addr: node.addr,
        is_manager: true,
    };
    let targets = watch::Sender::new(vec![target(&m), target(&second)]);
    let following = targets.subscribe();
    tokio::spawn(async move { peers.run(following, std::future::pending()).await });
    let mut now = cluster();
    let mut highest = 0;
    let mut seen = taken.subscribe();
    for revision in 2..800 {
        let id = fastrand::u32(..60).to_string();
        match fastrand::bool() {
            true => now.put(ClusterObject::Task(ClusterTask {
                id,
                service: "s".to_owned(),
                node: ["m", "a", "b"][fastrand::usize(..3)].to_owned(),
                slot: fastrand::u64(..9),
            })),
            false => now.remove(&format!("task/{id}")),
        }
        now.set_revision(revision);
        let shared = Arc::new(now.clone());
        second.cluster.send_replace(shared.clone());
        if revision < 400 {
            m.cluster.send_replace(shared);
        }
        if revision == 400 {
            // It dies with all its connections.
            m.server.abort();
            m.state.drain();
        }
        if revision % 50 == 0 {
            tokio::time::sleep(Duration::from_millis(3)).await;
        }
        let at = seen.borrow_and_update().revision();
        assert!(at >= highest, "never back: {at} after {highest}");
        highest = at;
    }
    eventually("the last revision", || taken.borrow().revision() == 799).await;
    assert_eq!(taken.borrow().digest(), now.digest());
    assert_eq!(taken.borrow().tasks().count(), now.tasks().count());
}

#[tokio::test]
async fn a_tunnel_keeps_half_closes_resets_and_back_pressure() {
    let (m, a) = pair().await;
    let open = async || {
        let (sender, receiver) = tokio::sync::oneshot::channel();
        a.does.waiting.lock().unwrap().push(sender);
        let tunnel = m.dial(&a, "wait").await.unwrap();
        (tunnel, receiver.await.unwrap())
    };
    let mut buffer = [0; 16];
    // Each side ends its half first, and the other still speaks.
    let (mut ours, mut theirs) = open().await;
    ours.shutdown().await.unwrap();
    assert_eq!(theirs.read(&mut buffer).await.unwrap(), 0);
    theirs.write_all(b"still here").await.unwrap();
    theirs.shutdown().await.unwrap();
    let mut rest = Vec::new();
    ours.read_to_end(&mut rest).await.unwrap();
    assert_eq!(rest, b"still here");
    let (mut ours, mut theirs) = open().await;
    theirs.shutdown().await.unwrap();
    assert_eq!(ours.read(&mut buffer).await.unwrap(), 0);
    ours.write_all(b"so are we").await.unwrap();
    ours.shutdown().await.unwrap();
    rest.clear();
    theirs.read_to_end(&mut rest).await.unwrap();
    assert_eq!(rest, b"so are we");
    // An end without a goodbye is a reset, at either end.
    let (ours, mut theirs) = open().await;
    drop(ours);
    assert_eq!(
        theirs.read(&mut buffer).await.unwrap_err().kind(),
        ErrorKind::ConnectionReset
    );
    let (mut ours, theirs) = open().await;
    drop(theirs);
    assert_eq!(
        ours.read(&mut buffer).await.unwrap_err().kind(),
        ErrorKind::ConnectionReset
    );
    // Nobody reads: writing comes to a stop.
    let (mut ours, theirs) = open().await;
    let stuck = tokio::time::timeout(Duration::from_secs(2), async {
        let block = vec![7; 1 << 20];
        for _ in 0..256 {
            ours.write_all(&block).await.unwrap();
        }
    });
    assert!(stuck.await.is_err(), "256 MiB went into a tunnel that nobody reads");
    drop(theirs);
}

#[tokio::test]
#[expect(clippy::disallowed_methods, reason = "nothing here is in a hurry")]
async fn ten_megabytes_both_ways_arrive_as_they_were() {
    let (m, a) = pair().await;
    let mut tunnel = m.dial(&a, "echo").await.unwrap();
    let sent: Vec<u8> = (0..10_000_000u32)
        .map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect();
    let (mut received, mut at) = (Vec::new(), 0);
    let mut buffer = vec![0; 64 * 1024];
    while received.len() < sent.len() {
        let (mut read, mut write) = tokio::io::split(&mut tunnel);
        tokio::select! {
            n = write.write(&sent[at..(at + 30_000).min(sent.len())]), if at < sent.len() => at += n.unwrap(),
            n = read.read(&mut buffer) => received.extend_from_slice(&buffer[..n.unwrap()]),
        }
        if at == sent.len() {
            tunnel.flush().await.unwrap();
        }
    }
    assert!(received == sent);
}

#[tokio::test]
async fn dials_say_why_not_and_mostly_find_a_connection_ready() {
    let (m, a) = pair().await;
    for (task, kind) in [
        ("gone", ErrorKind::NotFound),
        ("refused", ErrorKind::ConnectionRefused),
        ("late", ErrorKind::TimedOut),
        ("other", ErrorKind::PermissionDenied),
    ] {
        assert_eq!(m.dial(&a, task).await.err().unwrap().kind(), kind, "{task}");
    }
    for _ in 0..200 {
        says_echo(&mut m.dial(&a, "echo").await.unwrap(), b"x").await;
        // Whoever opens ahead needs a moment, too.
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let (n, n_unready) = (
        m.state.stats.dials.load(Relaxed),
        m.state.stats.dials_unready.load(Relaxed),
    );
    assert!(
        n >= 204 && n_unready <= 20,
        "{n_unready} of {n} dials had to wait for a handshake"
    );
    let seen = a.does.seen.lock().unwrap();
    assert_eq!(seen[0].target, 80);
    assert_eq!(seen[0].client.unwrap().0.to_string(), "203.0.113.7:5555");
}

#[tokio::test]
async fn a_node_that_drains_is_left_alone_and_finishes_what_is_open() {
    let (m, a) = pair().await;
    let peers = Peers::new(m.state.clone(), watch::Sender::new(Arc::default()));
    let targets = watch::Sender::new(vec![Target {
        node: "a".into(),
        addr: a.addr,
        is_manager: false,
    }]);
    let mut changed = peers.subscribe();
    let following = targets.subscribe();
    tokio::spawn(async move { peers.run(following, std::future::pending()).await });
    changed.changed().await.unwrap();
    let mut open = m.dial(&a, "echo").await.unwrap();
    says_echo(&mut open, b"before").await;
    assert!(!open.is_leaving());
    a.state.drain();
    eventually("the news", || open.is_leaving()).await;
    says_echo(&mut open, b"it still goes on").await;
}

#[tokio::test]
async fn certificates_are_renewed_under_what_is_open() {
    let authority = authority();
    let life = Duration::from_secs(5);
    let m = Node::start("m", Some(&authority), life).await;
    let a = Node::start("a", Some(&authority), life).await;
    let peers = Peers::new(a.state.clone(), watch::Sender::new(Arc::default()));
    let targets = watch::Sender::new(vec![Target {
        node: "m".into(),
        addr: m.addr,
        is_manager: true,
    }]);
    let following = targets.subscribe();
    tokio::spawn(async move { peers.run(following, std::future::pending()).await });
    let mut open = a.dial(&m, "echo").await.unwrap();
    let first = a.identity().expires_at().unwrap();
    let started = tokio::time::Instant::now();
    while started.elapsed() < life + Duration::from_secs(3) {
        says_echo(&mut open, b"all along").await;
        if m.identity()
            .renew_at()
            .is_none_or(|at| at <= std::time::SystemTime::now())
        {
            m.identity().issue_own(&authority, life).unwrap();
        }
        says_echo(&mut a.dial(&m, "echo").await.unwrap(), b"and anew").await;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(a.identity().expires_at().unwrap() > first, "renewed");
    assert_eq!(a.identity().role(), Some(Role::Worker), "and no more than it was");
    let again = Identity::open(a.dir.path(), "a").unwrap();
    assert_eq!(again.expires_at(), a.identity().expires_at(), "kept over a restart");
}
