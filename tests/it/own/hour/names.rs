//! One task that asks 127.0.0.77 for names in every hostile manner keeps nobody else from names or from anything.

use std::time::{Duration, Instant};

use super::clients::{Manner, datagrams, misbehave, names_inside};
use super::judge;
use super::load::Load;
use super::stage::{ADMIN, Stage, Until};
use crate::harness::Seed;

#[test]
fn a_task_that_floods_its_name_server_keeps_nobody_from_anything() {
    let Some(stage) = Stage::set_up("flooded") else { return };
    let seed = Seed::new();
    let mut rng = seed.rng();
    let manners = [
        Some(Manner::Silent),
        Some(Manner::Half),
        Some(Manner::Slow),
        Some(Manner::Unread),
        Some(Manner::Damaged),
        Some(Manner::Flood),
        None,
    ];
    let given_up = || {
        let scrape = stage.own.curl(&format!("http://{ADMIN}/metrics")).unwrap();
        let series = "anynode_places_given_up_total{table=\"dns_streams\"} ";
        let n = scrape.lines().find_map(|line| line.strip_prefix(series));
        n.map_or(0, |n| n.trim().parse::<u64>().unwrap())
    };
    for manner in manners {
        let before = given_up();
        let door = names_inside(&stage);
        let until = Until(Instant::now() + Duration::from_millis(1500));
        let mut rng = rng.fork();
        let load = std::thread::scope(|scope| {
            scope.spawn(move || match manner {
                Some(manner) => misbehave(&door, manner, 700, &mut rng, until),
                None => datagrams(&door, &mut rng, until),
            });
            let load = Load::start(&stage);
            until.wait();
            load
        });
        println!("{manner:?}: {} places given up", given_up() - before);
        if let Some(Manner::Silent | Manner::Half | Manner::Slow) = manner {
            assert!(given_up() > before, "{manner:?}: it was full");
        }
        judge(&load.stop(), &stage.own.log_tail(), stage.is_long);
    }
}
