//! What is asked of a namespace while it changes.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use anynode::sys::rtnetlink::RtNetlink;

use super::Space;

fn add(routing: &mut RtNetlink, n: u32) {
    let address = format!("10.77.{}.{}", n / 250, n % 250);
    routing.add_loopback_address(address.parse().unwrap()).unwrap();
}

/// The answer takes several datagrams, between which somebody else may change something.
#[test]
fn addresses_that_change_while_they_are_listed_are_listed_again() {
    const N: u32 = 1_000;
    let Some(space) = Space::new() else { return };
    space.sh("ip link set lo up");
    space.run(|| {
        let mut routing = RtNetlink::open().unwrap();
        (0..N).for_each(|n| add(&mut routing, n));
    });
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            space.run(|| {
                let mut routing = RtNetlink::open().unwrap();
                // Now and then, as links come up: whoever lists gets through in between.
                for n in (N..N + 2_000).take_while(|_| !is_over.load(Relaxed)) {
                    add(&mut routing, n);
                    std::thread::sleep(Duration::from_millis(8));
                }
            });
        });
        let listed: Vec<_> = space.run(|| {
            let mut routing = RtNetlink::open().unwrap();
            let all = (0..500).map(|_| routing.addresses().map(|addresses| addresses.len()));
            all.collect()
        });
        is_over.store(true, Relaxed);
        let listed: Vec<usize> = listed.into_iter().map(Result::unwrap).collect();
        assert!(listed.is_sorted() && listed[0] >= N as usize, "{listed:?}");
    });
}
