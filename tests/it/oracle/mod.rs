//! anynode's own swarm beside a real Docker Engine in Swarm mode: the same requests to both, and what differs is in the table
//! (`table`) or a fault. Longer: ANYNODE_ORACLE_CASES=2000; beside another engine: ANYNODE_ORACLE=folder-of-dockerd.

mod pair;
mod requests;
mod specs;
mod stacks;
mod table;

use pair::{Ask, Difference, Pair};
use table::Table;

fn report(faults: &[(Ask, Vec<Difference>)], table: &Table) {
    table.print();
    for (ask, differences) in faults {
        println!(
            "{} {} {}",
            ask.method,
            ask.path,
            ask.body.as_deref().unwrap_or_default()
        );
        for Difference { at, docker, ours } in differences {
            println!("    {at}\n        docker: {docker}\n        ours:   {ours}");
        }
    }
    assert!(faults.is_empty(), "{} requests differ, see above", faults.len());
}

fn run(pair: &Pair, mut table: Table, asks: impl IntoIterator<Item = Ask>) {
    let (mut faults, mut n) = (Vec::new(), 0);
    let started = std::time::Instant::now();
    let first = Ask::get("/swarm");
    let left = pair.settled_state(&first, &mut table);
    if !left.is_empty() {
        faults.push((first, left));
    }
    for ask in asks {
        n += 1;
        let differences = pair.check(&ask, &mut table);
        if !differences.is_empty() {
            faults.push((ask, differences));
        }
    }
    println!("{n} requests in {:.1?}", started.elapsed());
    report(&faults, &table);
}

/// How many are asked for.
fn cases() -> Option<usize> {
    std::env::var("ANYNODE_ORACLE_CASES").ok()?.parse().ok()
}

#[test]
fn requests_are_answered_as_docker_answers_them() {
    let Some(pair) = Pair::swarm("requests") else { return };
    run(&pair, Table::new(false), requests::all());
}

#[test]
fn each_member_of_a_spec_means_what_it_means_to_docker() {
    let Some(pair) = Pair::swarm("members") else { return };
    let all = specs::each();
    // All of them take minutes.
    let step = if cases().is_some() { 1 } else { 5 };
    run(&pair, Table::new(false), all.into_iter().step_by(step));
}

#[test]
fn specs_made_by_chance_do_what_they_do_at_docker() {
    let Some(pair) = Pair::swarm("chance") else { return };
    // Always the same, unless asked for many.
    let seed = std::env::var("ANYNODE_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok())
        .unwrap_or(15);
    println!("ANYNODE_SEED={seed}");
    let mut rng = fastrand::Rng::with_seed(seed);
    run(
        &pair,
        Table::new(true),
        (0..cases().unwrap_or(60)).map(|_| specs::any(&mut rng)),
    );
}

#[test]
fn stack_files_come_to_what_they_come_to_at_docker() {
    let Some(pair) = Pair::swarm("stacks") else { return };
    let mut table = Table::new(false);
    let mut faults = Vec::new();
    for file in stacks::all() {
        let left = stacks::check(&pair, &file, &mut table);
        if !left.is_empty() {
            faults.push((Ask::get(file.display().to_string()), left));
        }
    }
    report(&faults, &table);
}
