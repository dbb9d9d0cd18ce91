//! Which ports of a task another node may ask for, and on whose behalf.

use std::io;
use std::pin::Pin;
use std::sync::Arc;

use anynode::model::{Asker, Attachment, EndpointSpec, TaskRef};
use anynode::proxy::{Beside, Dialing, HopRequest, PendingTunnel, Proxy, ProxyConfig, Refused};
use anynode::routing::{Change, TableHandle};
use tokio::sync::mpsc;

use crate::harness::{Origin, free_port, service};

/// Another node's stream, which only says what became of it.
struct Stream(mpsc::UnboundedSender<Option<Refused>>);

impl PendingTunnel for Stream {
    fn accept(self: Box<Self>) -> Dialing {
        self.0.send(None).unwrap();
        Box::pin(async { Err(io::ErrorKind::ConnectionReset.into()) })
    }

    fn refuse(self: Box<Self>, why: Refused) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        self.0.send(Some(why)).unwrap();
        Box::pin(async {})
    }
}

#[test]
fn a_task_is_asked_for_published_ports_and_by_its_own_networks_alone() {
    let (published, hidden) = (Origin::named("published"), Origin::named("hidden"));
    let mut spec = service("db", &[]);
    spec.publish = vec![
        format!("127.0.0.1:{}:{}", free_port(), published.addr.port())
            .parse()
            .unwrap(),
    ];
    let mut endpoint = EndpointSpec::at(published.addr);
    endpoint.task = Some(Arc::new(TaskRef {
        id: "task".into(),
        name: "db.1".to_owned(),
        service: "db".into(),
        node: "here".into(),
        hostname: "here".into(),
        is_remote: false,
        addresses: Vec::new(),
        names: Vec::new(),
    }));
    spec.endpoints = vec![endpoint];
    spec.attachments = vec![Attachment {
        network: "back".into(),
        network_name: "back".into(),
        vip: None,
        aliases: Vec::new(),
        subnet: None,
    }];
    let table = Arc::new(TableHandle::default());
    let vip = None;
    table
        .commit(&[Change::Upsert {
            spec: Arc::new(spec),
            vip,
        }])
        .unwrap();
    let proxy = Proxy::start(ProxyConfig::default(), table, Beside::default()).unwrap();
    let handle = proxy.handle();
    let ask = |target: u16, asker: Option<Asker>| {
        let (sender, mut receiver) = mpsc::unbounded_channel();
        let request = HopRequest {
            task: "task".to_owned(),
            target,
            client: None,
            asker,
        };
        let asked = handle.clone();
        handle.spawn(Box::new(move || {
            Box::pin(asked.serve_last_hop(request, Box::new(Stream(sender))))
        }));
        receiver.blocking_recv().unwrap()
    };
    let by = |network: &str| Some(Asker::Network(network.into()));
    let (published, hidden) = (published.addr.port(), hidden.addr.port());
    for asker in [Some(Asker::Client), by("back"), by("front"), None] {
        assert_eq!(ask(published, asker.clone()), None, "{asker:?}");
    }
    assert_eq!(ask(hidden, by("back")), None, "any port, from its own network");
    assert_eq!(ask(hidden, None), None, "an earlier version has looked itself");
    for asker in [Some(Asker::Client), by("front")] {
        assert_eq!(ask(hidden, asker.clone()), Some(Refused::NotAllowed), "{asker:?}");
    }
}
