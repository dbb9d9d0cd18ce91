//! The page of a large cluster: what it costs the node and the browser, whether somebody looks or not.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anynode::admin::Phase;
use anynode::model::{EndpointSpec, ServiceSpec, TaskRef};
use anynode::routing::Change;
use tokio::sync::watch;

use super::browser::Browser;
use crate::admin::state_of;
use crate::harness::{Node, service};

const N_SERVICES: usize = 200;
const N_TASKS: usize = 50;
const N_NODES: usize = 100;
const CHANGES_PER_SECOND: u32 = 100;

/// A cluster that there is on paper only, shown by a real admin server.
struct Paper {
    node: Node,
    services: Vec<ServiceSpec>,
    n_made: usize,
    addr: SocketAddr,
    /// The id of the thread that follows and serves.
    thread_id: u32,
    stop: Option<watch::Sender<bool>>,
    thread: Option<JoinHandle<()>>,
}

impl Paper {
    fn new() -> Paper {
        let node = Node::start();
        let mut n_made = 0;
        let mut services = Vec::new();
        for i in 0..N_SERVICES {
            let mut spec = service(&format!("service-{i}"), &[]);
            spec.publish.clear();
            spec.endpoints = (0..N_TASKS).map(|slot| task(&spec, slot, &mut n_made)).collect();
            services.push(spec);
        }
        let changes: Vec<Change> = services.iter().map(upsert).collect();
        node.table.commit(&changes).unwrap();
        let state = state_of(&node);
        state.source.applied();
        state.readiness.set(Phase::Serving);
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let addr = listener.local_addr().unwrap();
        let (stop, stopped) = watch::channel(false);
        let (said, thread_id) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            said.send(rustix::thread::gettid().as_raw_nonzero().get().cast_unsigned())
                .unwrap();
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            let over = |mut stopped: watch::Receiver<bool>| async move { drop(stopped.changed().await) };
            runtime.block_on(async {
                let listener = tokio::net::TcpListener::from_std(listener).unwrap();
                tokio::spawn(anynode::admin::follow(state.clone(), over(stopped.clone())));
                anynode::admin::serve(listener, state, std::future::pending(), over(stopped)).await;
            });
        });
        Paper {
            node,
            services,
            n_made,
            addr,
            thread_id: thread_id.recv().unwrap(),
            stop: Some(stop),
            thread: Some(thread),
        }
    }

    /// Replaces a task by another one, as an update does, in one service after the other.
    fn change(&mut self, n: usize) {
        let spec = &mut self.services[n % N_SERVICES];
        let slot = n / N_SERVICES % N_TASKS;
        spec.endpoints[slot] = task(spec, slot, &mut self.n_made);
        let spec = &self.services[n % N_SERVICES];
        self.node.table.commit(&[upsert(spec)]).unwrap();
    }

    /// As many changes a second as there are to be; seconds of processor time that this thread took for that.
    fn change_for(&mut self, time: Duration) {
        let begun = Instant::now();
        for n in 0_u32.. {
            let at = Duration::from_secs(1) / CHANGES_PER_SECOND * n;
            if at >= time {
                return;
            }
            std::thread::sleep(at.saturating_sub(begun.elapsed()));
            self.change(n as usize);
        }
    }

    /// Seconds of processor time of the thread that follows and serves.
    fn took(&self) -> f64 {
        let text = std::fs::read_to_string(format!("/proc/self/task/{}/schedstat", self.thread_id)).unwrap();
        text.split_ascii_whitespace().next().unwrap().parse::<f64>().unwrap() / 1e9
    }
}

impl Drop for Paper {
    fn drop(&mut self) {
        drop(self.stop.take());
        let ended = self.thread.take().map(JoinHandle::join);
        assert!(std::thread::panicking() || matches!(ended, Some(Ok(()))));
    }
}

fn upsert(spec: &ServiceSpec) -> Change {
    Change::Upsert {
        spec: Arc::new(spec.clone()),
        vip: None,
    }
}

/// The next task of a service, on one node after the other.
fn task(spec: &ServiceSpec, slot: usize, n_made: &mut usize) -> EndpointSpec {
    let n = *n_made;
    *n_made += 1;
    let node = n % N_NODES;
    let ip = Ipv4Addr::from(u32::from(Ipv4Addr::new(127, 70, 0, 0)) + u32::try_from(n % 60_000).unwrap());
    EndpointSpec {
        addr: SocketAddr::new(IpAddr::V4(ip), 80),
        netns: None,
        task: Some(Arc::new(TaskRef {
            id: format!("{n:025}").into(),
            name: format!("{}.{}", spec.name, slot + 1),
            service: spec.name.as_str().into(),
            node: format!("{node:025}").into(),
            hostname: format!("node-{node}").into(),
            is_remote: false,
            addresses: Vec::new(),
            names: Vec::new(),
        })),
    }
}

#[test]
#[ignore = "takes three minutes of a quiet machine, for a build with optimizations"]
fn ten_thousand_tasks_are_painted_at_once_and_followed_for_little() {
    let mut paper = Paper::new();
    std::thread::sleep(Duration::from_secs(3));
    let unwatched = |paper: &mut Paper, is_changing: bool| {
        let before = paper.took();
        match is_changing {
            true => paper.change_for(Duration::from_secs(30)),
            false => std::thread::sleep(Duration::from_secs(30)),
        }
        (paper.took() - before) * 2.0
    };
    let at_rest = unwatched(&mut paper, false);
    println!("at rest, nobody looks: {at_rest:.3} s of processor time a minute");
    let changing = unwatched(&mut paper, true);
    println!("{CHANGES_PER_SECOND} changes a second, nobody looks: {changing:.3} s a minute");
    let Some(browser) = Browser::new() else { return };
    browser.view(1920, 1080, false);
    let all = format!(
        "document.body.innerText.includes('{N_SERVICES} services, {} tasks')",
        N_SERVICES * N_TASKS
    );
    let mut painted = Vec::new();
    for _ in 0..5 {
        browser.open(&format!("http://{}/", paper.addr));
        painted.push(browser.ms_until(&all));
    }
    println!("painted after, in ms: {painted:.0?}");
    let sent = browser.run(
        "Promise.all(['/', ...performance.getEntriesByType('resource').map((one) => one.name).filter((name) => /js|css/.test(name))]\
         .map((name) => fetch(name, { headers: { Accept: 'text/html' } }).then((response) => response.text())))\
         .then((texts) => texts.reduce((sum, text) => sum + text.length, 0))",
    );
    println!("code and styles: {sent} bytes");
    std::thread::sleep(Duration::from_secs(3));
    let share = |paper: &mut Paper, is_changing: bool| {
        let time = Duration::from_secs(20);
        let (before, served) = (browser.took(), paper.took());
        match is_changing {
            true => paper.change_for(time),
            false => std::thread::sleep(time),
        }
        let after = browser.took();
        let percent =
            |part: &str| (after[part].as_f64().unwrap() - before[part].as_f64().unwrap()) / time.as_secs_f64() * 100.0;
        println!(
            "of a core, changing {is_changing}: the page {:.1} % (script {:.1}, layout {:.1}, style {:.1}), the whole browser {:.1} %, the node {:.1} %; {} {}",
            percent("main"),
            percent("script"),
            percent("layout"),
            percent("style"),
            percent("all"),
            (paper.took() - served) / time.as_secs_f64() * 100.0,
            before["each"],
            after["each"]
        );
        percent("main")
    };
    share(&mut paper, false);
    let busy = share(&mut paper, true);
    assert_eq!(browser.errors(), Vec::<String>::new());
    assert!(sent.as_u64().unwrap() < 300_000);
    assert!(at_rest < 0.1, "{at_rest} s a minute at rest");
    assert!(painted.iter().all(|ms| *ms < 1000.0), "{painted:?}");
    assert!(busy < 5.0, "{busy} % of a core");
}
