//! An hour of hostile tasks, clients, files and full disks, drawn at random, beside a load that behaves well: none of its
//! requests fails, and when all is over the node holds what it held before.
//!
//! `ANYNODE_SOAK_SECONDS=3600` is the hour; without, it is some seconds, in which each party comes once. `ANYNODE_SEED` repeats
//! the order of parties and what they draw.
//!
//! What may be refused, and to whom:
//! - changes through the API while the disk is full, saying so; whoever declares or removes something then tries again;
//! - a body of more than 64 KiB to the API while one of the same user does not go on with four;
//! - tasks cannot be replaced while the disk is full: none of a service's last tasks is killed meanwhile (`tasks::kills`);
//! - connections to a task that is killed or stopped in tcp mode, and answers of which it has sent a part: only services in http
//!   mode are killed here under load, and asked for answers that are sent at once;
//! - one connection to the API, admin or DNS by TCP, which may be reset while others of the same user or address take all places:
//!   the next one is answered;
//! - connections of a client's address that has most of them (the hostile ones have addresses of their own).

mod clients;
mod disk;
mod files;
mod load;
mod names;
mod stage;
mod tasks;

use std::time::{Duration, Instant};

use fastrand::Rng;

use self::clients::{MANNERS, doors, misbehave};
use self::load::{Heard, Load};
use self::stage::{Holds, SERVICES, Stage, Until, running, tasks as all_tasks, zombies_of};
use super::rig::LONG;
use crate::agent::rig::processes_with;
use crate::harness::Seed;

type Party = fn(&Stage, &mut Rng, Until);

/// Each comes once before any comes again.
const PARTIES: &[(&str, Party)] = &[
    ("clients at a door", client),
    ("clients at another door", client),
    ("clients at a third door", client),
    ("clients at a fourth door", client),
    ("clients at a fifth door", client),
    ("datagrams to the node's names", |stage, rng, until| {
        clients::datagrams(&doors(stage, rng)[6], rng, until);
    }),
    ("datagrams to names inside", |stage, rng, until| {
        clients::datagrams(&clients::names_inside(stage), rng, until);
    }),
    ("connections to names inside", |stage, rng, until| {
        let manner = MANNERS[rng.usize(..MANNERS.len())];
        misbehave(&clients::names_inside(stage), manner, rng.usize(100..700), rng, until);
    }),
    ("connections to the API", clients::at_the_api),
    ("followers that do not read", clients::followers),
    ("nonsense to the API", clients::nonsense),
    ("tasks that fork", tasks::forks),
    ("tasks that eat memory", tasks::eats_memory),
    ("tasks that log", tasks::logs),
    ("tasks that fill their directory", tasks::fills_its_directory),
    ("tasks that ignore SIGTERM", tasks::ignores_its_end),
    ("tasks that end at once", tasks::ends_at_once),
    ("tasks that connect", tasks::connects),
    ("no such image", tasks::no_such_image),
    ("many tasks", tasks::asks_for_many),
    ("many configs", tasks::configs),
    ("kill -9", tasks::kills),
    ("SIGSTOP", tasks::stops),
    ("a full disk", files::fills_the_disk),
    ("a services file", files::services_file),
];

fn client(stage: &Stage, rng: &mut Rng, until: Until) {
    let doors = doors(stage, rng);
    let door = &doors[rng.usize(..doors.len())];
    let manner = MANNERS[rng.usize(..MANNERS.len())];
    misbehave(door, manner, rng.usize(50..700), rng, until);
}

/// So many at once.
const AT_ONCE: usize = 5;

/// All parties in some order, some at a time, each for about `lasts`. Errors: whose expectation was not met.
fn round(stage: &Stage, rng: &mut Rng, lasts: Duration) {
    let mut deck: Vec<_> = PARTIES.iter().collect();
    rng.shuffle(&mut deck);
    for hand in deck.chunks(AT_ONCE) {
        let names: Vec<&str> = hand.iter().map(|(name, _)| *name).collect();
        let began = Instant::now();
        std::thread::scope(|scope| {
            let parties: Vec<_> = hand
                .iter()
                .map(|(name, party)| {
                    let (mut rng, until) = (rng.fork(), Until(Instant::now() + lasts.mul_f64(0.7 + 0.6 * rng.f64())));
                    (name, scope.spawn(move || party(stage, &mut rng, until)))
                })
                .collect();
            for (name, party) in parties {
                assert!(party.join().is_ok(), "{name}, beside {names:?}");
            }
        });
        println!("{:.1} s: {}", began.elapsed().as_secs_f64(), names.join(", "));
    }
}

/// What is there once all that was hostile has gone.
fn at_rest(stage: &Stage) -> [Holds; 2] {
    let own = &stage.own;
    own.wait_for("all services to be well", LONG, || {
        SERVICES.iter().all(|(name, n)| running(own, name).len() == *n)
    });
    let mut last = Vec::new();
    own.wait_for("what was hostile to go", LONG, || {
        let left = left_over(stage);
        if left != last {
            eprintln!("left: {left:?}");
            last = left;
        }
        last.is_empty()
    });
    holds(stage)
}

fn holds(stage: &Stage) -> [Holds; 2] {
    [stage.own.pid(), stage.file_pid()].map(|pid| Holds::of(pid, stage.own.dir()))
}

/// What is there of tasks that are not remembered, and of ended processes. Who was replaced is remembered, with its files.
fn left_over(stage: &Stage) -> Vec<String> {
    let known = all_tasks(&stage.own);
    let dirs = std::fs::read_dir(stage.own.data_dir().join("tasks")).unwrap().flatten();
    let dirs = dirs.map(|entry| entry.file_name().to_string_lossy().into_owned());
    let strangers = dirs.filter(|name| !known.iter().any(|task| task["ID"] == **name));
    let zombies = [stage.own.pid(), stage.file_pid()].into_iter().flat_map(zombies_of);
    strangers.chain(zombies.map(|pid| format!("zombie {pid}"))).collect()
}

/// Waits until no more is held than before, but for what allocators keep.
fn is_back(stage: &Stage, before: [Holds; 2]) -> [Holds; 2] {
    let mut now = before;
    let slack_kib = if stage.is_long {
        RSS_SLACK_LONG_KIB
    } else {
        RSS_SLACK_KIB
    };
    let is_so = |before: &Holds, now: &Holds| {
        now.n_files <= before.n_files + 16
            && now.n_pipes <= N_PIPES_KEPT
            && now.rss_kib <= before.rss_kib + slack_kib
            && now.n_threads <= before.n_threads + 4
            && now.n_mounts == before.n_mounts
    };
    at_rest(stage);
    // A connection whose peer left no word is found out by probes, 90 s later. Threads that are idle end after a while, if nobody asks anything meanwhile.
    stage
        .own
        .wait_for(&format!("no more to be held than {before:?}"), LONG * 4, || {
            let last = now;
            now = holds(stage);
            let is_so = before.iter().zip(&now).all(|(before, now)| is_so(before, now));
            if !is_so && now != last {
                eprintln!("held: {now:?}");
            }
            is_so
        });
    now
}

/// What pools and the allocator keep of what was needed once.
const RSS_SLACK_KIB: u64 = 24 << 10;
/// Of a long run, in which one service asks for 10,000 tasks.
const RSS_SLACK_LONG_KIB: u64 = 48 << 10;

/// Ends of pipes that two workers keep for bulk streams, 64 each, and a few more.
const N_PIPES_KEPT: usize = 2 * 64 * 2 + 16;

/// `is_alone`: nothing else runs on this machine, so that lateness is of our own making.
fn judge(heard: &[Heard], log: &str, is_alone: bool) {
    for voice in heard {
        println!(
            "{:28} {:6} answers, median {:6.1} ms, 99 % {:7.1} ms, longest {:7.1} ms, late {}",
            voice.what,
            voice.took.len(),
            voice.at(0.5).as_secs_f64() * 1e3,
            voice.at(0.99).as_secs_f64() * 1e3,
            voice.at(1.0).as_secs_f64() * 1e3,
            voice.n_late()
        );
    }
    for voice in heard {
        let (what, failures) = (&voice.what, &voice.failures);
        assert!(failures.is_empty(), "{what}: {failures:?}\n{log}");
        assert!(!voice.took.is_empty(), "{what} was not asked");
        // Other programs may hold this machine up now and then.
        let (n, n_late) = (voice.took.len(), voice.n_late());
        assert!(!is_alone || n_late * 20 <= n + 20, "{what}: {n_late} of {n} are late");
        assert!(n < 20 || n_late < n, "{what}: all {n} are late");
    }
}

#[test]
fn an_hour_of_hostile_parties_costs_those_who_behave_well_nothing() {
    let Some(mut stage) = Stage::set_up("hour") else {
        return;
    };
    let seconds = std::env::var("ANYNODE_SOAK_SECONDS").map_or(0, |text| text.parse::<u64>().unwrap());
    stage.is_long = seconds > 0;
    let seed = Seed::new();
    let mut rng = seed.rng();
    let lasts = Duration::from_millis(if stage.is_long { 4000 } else { 1000 });
    // What is needed once, however little is asked.
    let warm = Load::start(&stage);
    std::thread::sleep(Duration::from_secs(2));
    judge(&warm.stop(), "", false);
    let before = at_rest(&stage);
    let n_processes = processes_with(stage.own.dir()).len();
    let began = Instant::now();
    let load = Load::start(&stage);
    loop {
        round(&stage, &mut rng, lasts);
        if began.elapsed() >= Duration::from_secs(seconds) {
            break;
        }
        println!("after {:.0} s: {:?}", began.elapsed().as_secs_f64(), at_rest(&stage));
    }
    judge(&load.stop(), &stage.own.log_tail(), stage.is_long);
    let after = is_back(&stage, before);
    println!("held before {before:?}\nand after   {after:?}");
    stage.own.wait_for("no process to be left", LONG, || {
        processes_with(stage.own.dir()).len() <= n_processes
    });
    let log = stage.log();
    assert!(!log.contains("panicked"), "{log}");
    let n_lines = log.lines().count();
    let per_minute = n_lines as f64 * 60.0 / began.elapsed().as_secs_f64();
    println!("{n_lines} lines of log, {per_minute:.0} a minute");
    assert!(per_minute < 3000.0, "{n_lines} lines\n{}", stage.own.log_tail());
}
