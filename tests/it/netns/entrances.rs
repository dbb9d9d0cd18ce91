//! One thread goes into namespaces and comes back, whatever happens to it there.

use std::net::TcpListener;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use anynode::sys::entrances::{EnterError, Entrances};
use anynode::sys::netns::{Netns, NetnsError, NetnsId};
use rustix::thread::{CapabilitySet, capabilities, gettid, set_capabilities};

use super::{PATIENCE, Space, entrances};

fn here() -> NetnsId {
    Netns::at("/proc/thread-self/ns/net").unwrap().id()
}

#[tokio::test]
async fn what_is_made_inside_stays_there_and_nobody_else_goes_in() {
    let (Some(one), Some(two)) = (Space::new(), Space::new()) else {
        return;
    };
    let home = here();
    let entrances = entrances();
    for space in [&one, &two, &one] {
        let (id, listener) = entrances
            .run(&space.netns(), || (here(), TcpListener::bind("0.0.0.0:80").unwrap()))
            .await
            .unwrap();
        assert_eq!(id, space.netns().id());
        // The port is free again for the next visit only if the listener was of that namespace.
        let again = || TcpListener::bind("0.0.0.0:80").map(drop);
        let again = entrances.run(&space.netns(), again).await;
        assert_eq!(again.unwrap().unwrap_err().kind(), std::io::ErrorKind::AddrInUse);
        drop(listener);
        assert_eq!(here(), home);
    }
    assert_ne!(one.netns().id(), two.netns().id());
    nobody_is_inside(one.netns().id());
    nobody_is_inside(two.netns().id());
}

/// Waits until no thread of this process is in that namespace: an answer comes a moment before who gave it comes out.
fn nobody_is_inside(netns: NetnsId) {
    let is_inside = |task: std::io::Result<std::fs::DirEntry>| {
        let path = task.unwrap().path().join("ns/net");
        Netns::at(path).is_ok_and(|found| found.id() == netns)
    };
    let deadline = Instant::now() + PATIENCE;
    while std::fs::read_dir("/proc/self/task").unwrap().any(is_inside) {
        assert!(Instant::now() < deadline, "a thread stays inside");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[tokio::test]
async fn many_requests_for_one_namespace_are_one_visit() {
    let (Some(one), Some(two)) = (Space::new(), Space::new()) else {
        return;
    };
    let entrances = entrances();
    // While the first visit lasts the others queue up, mixed.
    let (go, wait) = mpsc::channel::<()>();
    let first_netns = one.netns();
    let (begin, begun) = tokio::sync::oneshot::channel();
    let stay = move || {
        begin.send(()).unwrap();
        wait.recv().unwrap();
    };
    let first = tokio::spawn({
        let entrances = entrances.clone();
        async move { entrances.run(&first_netns, stay).await }
    });
    // Whoever comes before it has gone in goes with it.
    begun.await.unwrap();
    let order = Arc::new(std::sync::Mutex::new(Vec::new()));
    let n_queued = Arc::new(AtomicU32::new(0));
    let mut others = Vec::new();
    for turn in 0..200 {
        let (netns, order) = (
            if turn % 2 == 0 { one.netns() } else { two.netns() },
            Arc::clone(&order),
        );
        let (entrances, n_queued) = (entrances.clone(), Arc::clone(&n_queued));
        others.push(async move {
            let act = move || order.lock().unwrap().push((here(), turn));
            // Nothing awaits between this and the queue.
            n_queued.fetch_add(1, Relaxed);
            entrances.run(&netns, act).await.unwrap();
        });
    }
    let release = async {
        while n_queued.load(Relaxed) < 200 {
            tokio::task::yield_now().await;
        }
        go.send(()).unwrap();
    };
    let (answer, (), _) = tokio::join!(first, release, futures_util::future::join_all(others));
    answer.unwrap().unwrap();
    let order = order.lock().unwrap();
    let changes = order.windows(2).filter(|pair| pair[0].0 != pair[1].0).count();
    assert_eq!((order.len(), changes), (200, 1));
    assert!(
        order
            .windows(2)
            .all(|pair| pair[0].0 != pair[1].0 || pair[0].1 < pair[1].1)
    );
}

#[tokio::test]
async fn a_namespace_that_is_gone_or_another_is_told() {
    let Some(space) = Space::new() else { return };
    let (path, netns, entrances) = (space.path(), space.netns(), entrances());
    drop(space);
    let gone = entrances.run(&netns, || ()).await.unwrap_err();
    assert!(matches!(gone, EnterError::Netns(NetnsError::Gone { .. })), "{gone:?}");
    assert!(gone.to_string().contains(&path), "{gone}");
    assert!(!netns.is_there());
    // The name again, but of another namespace. A third keeps the kernel from giving it the same number.
    let third = Space::new();
    let name = path.rsplit('/').next().unwrap().to_owned();
    super::sh(&format!("ip netns add {name}"));
    let again = Space { name };
    if again.netns().id() != netns.id() {
        let other = entrances.run(&netns, || ()).await.unwrap_err();
        assert!(
            matches!(other, EnterError::Netns(NetnsError::Replaced { .. })),
            "{other:?}"
        );
    }
    entrances.run(&again.netns(), || ()).await.unwrap();
    drop(third);
}

#[tokio::test]
async fn a_visit_that_never_ends_hinders_no_other_namespace() {
    let (Some(stuck), Some(fine)) = (Space::new(), Space::new()) else {
        return;
    };
    let entrances = Entrances::open(Duration::from_millis(300)).unwrap();
    let (go, wait) = mpsc::channel::<()>();
    let began = Instant::now();
    let stuck_netns = stuck.netns();
    let never = entrances.run(&stuck_netns, move || {
        let _ = wait.recv();
    });
    let behind = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        let refused = entrances.run(&stuck_netns, || ()).await.unwrap_err();
        assert!(matches!(refused, EnterError::Stuck { .. }), "{refused:?}");
    };
    let other = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        entrances.run(&fine.netns(), || ()).await.unwrap();
        began.elapsed()
    };
    let (never, (), other) = tokio::join!(never, behind, other);
    assert!(matches!(never, Err(EnterError::TimedOut { .. })), "{never:?}");
    assert!(other < Duration::from_secs(1), "{other:?}");
    // When it comes back after all, its namespace is open again.
    go.send(()).unwrap();
    let deadline = Instant::now() + super::DEADLINE;
    while let Err(error) = entrances.run(&stuck_netns, || ()).await {
        assert!(Instant::now() < deadline, "{error:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn a_thread_that_cannot_come_back_is_replaced() {
    let Some(space) = Space::new() else { return };
    let (entrances, netns) = (entrances(), space.netns());
    // Without capabilities this thread, and no other, may not go back.
    let lame = entrances.run(&netns, || {
        let mut sets = capabilities(None).unwrap();
        sets.effective = CapabilitySet::empty();
        sets.permitted = CapabilitySet::empty();
        sets.inheritable = CapabilitySet::empty();
        set_capabilities(None, sets).unwrap();
        gettid()
    });
    let lame = lame.await.unwrap();
    let (thread, id) = entrances.run(&netns, || (gettid(), here())).await.unwrap();
    assert_ne!(thread, lame);
    assert_eq!(id, netns.id());
    entrances
        .run(&netns, || TcpListener::bind("0.0.0.0:80").map(drop))
        .await
        .unwrap()
        .unwrap();
    nobody_is_inside(netns.id());
}

#[tokio::test]
async fn what_panics_inside_hurts_nobody_else() {
    let Some(space) = Space::new() else { return };
    let (entrances, netns) = (entrances(), space.netns());
    let panics = entrances.run(&netns, || panic!("on purpose"));
    let (panicked, other) = tokio::join!(panics, entrances.run(&netns, || 7));
    let (panicked, other): (Result<(), EnterError>, _) = (panicked, other);
    assert!(matches!(panicked, Err(EnterError::Lost { .. })), "{panicked:?}");
    assert_eq!(other.unwrap(), 7);
}

#[tokio::test]
async fn a_caller_that_goes_away_leaves_nothing_behind() {
    let Some(space) = Space::new() else { return };
    let (entrances, netns) = (entrances(), space.netns());
    let done = Arc::new(AtomicU32::new(0));
    let told = Arc::clone(&done);
    let act = move || {
        std::thread::sleep(Duration::from_millis(100));
        told.fetch_add(1, Relaxed);
        TcpListener::bind("0.0.0.0:80").unwrap()
    };
    let cancelled = tokio::time::timeout(Duration::from_millis(10), entrances.run(&netns, act)).await;
    assert!(cancelled.is_err());
    let free = entrances.run(&netns, || TcpListener::bind("0.0.0.0:80").map(drop));
    free.await.unwrap().unwrap();
    assert_eq!(done.load(Relaxed), 1);
}

#[tokio::test]
async fn the_threads_end_with_the_last_handle() {
    let Some(space) = Space::new() else { return };
    let entrances = entrances();
    let clone = entrances.clone();
    let thread = entrances.run(&space.netns(), gettid).await.unwrap();
    drop(entrances);
    clone.run(&space.netns(), || ()).await.unwrap();
    drop(clone);
    let task = format!("/proc/self/task/{}", thread.as_raw_nonzero());
    let deadline = Instant::now() + PATIENCE;
    while std::path::Path::new(&task).exists() {
        assert!(Instant::now() < deadline, "{task} goes on");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[tokio::test]
async fn what_a_visit_costs() {
    let Some(space) = Space::new() else { return };
    let (entrances, netns) = (entrances(), space.netns());
    for n_at_once in [1, 50] {
        let (began, mut n) = (Instant::now(), 0);
        while n < 2000 {
            let visits = (0..n_at_once).map(|_| entrances.run(&netns, || ()));
            for answer in futures_util::future::join_all(visits).await {
                answer.unwrap();
                n += 1;
            }
        }
        println!(
            "a visit, {n_at_once} at once: {:?} for each request",
            began.elapsed() / n
        );
    }
}
