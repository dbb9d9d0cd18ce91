//! anynode beside HAProxy, nginx, Envoy, Traefik and no proxy at all: `cargo bench --bench versus`. Runs those that are there in turn,
//! in rounds, on the same core each, and prints what each unit of work costs, as medians, with ratios and goals.
//!
//! What it compares is cost: CPU time of the proxy's process for each unit, at whatever rate the closed loop reaches.
//! It is no latency test under load, and its rates are ceilings of the generator as often as of a proxy.

#![allow(unreachable_pub, reason = "a benchmark exports nothing")]

mod goals;
mod hosts;
mod http2;
mod load;
mod machine;
mod origin;
mod proxies;
mod stats;
mod tls;
mod work;

use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::Parser;

use goals::{GOALS, GOALS_OF_SEVERAL, Goal, HAPROXY_LIMIT_BULK, KNOWN};
use load::{Job, Kind, Seen};
use machine::Container;
use proxies::{Name, Origin, Program, Proxy, generate};
use stats::{percentile, short, spread};
use work::{ANYNODE, Column, DIRECT, ENVOY, HAPROXY, NGINX, OPAQUE, TRAEFIK, Work};

/// Compares anynode with HAProxy, nginx, Envoy, Traefik and no proxy, as far as they are on PATH
#[derive(Parser)]
struct Args {
    /// Rounds, in each of which everybody has a turn at everything
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// How long a turn is
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// Only these, such as bulk,small
    #[arg(long, value_delimiter = ',')]
    only: Vec<Work>,
    /// Exit with 1 when a limit is exceeded
    #[arg(long)]
    gate: bool,
    /// The origin in a network namespace of its own: anynode connects inside it, with and without its clients' addresses, and
    /// the others over a cable, as to a container on a bridge. Timed work only
    #[arg(long)]
    inside: bool,
    /// As --inside, and the client in another such namespace: it asks services' own addresses of anynode, and HAProxy and nginx
    /// beside itself
    #[arg(long)]
    within: bool,
    /// Workers that everybody has; more than one of them run on all cores, that of the load among them. Bulk, unless --only says other work
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=64))]
    workers: u8,
    /// One short round, only to see that everything works; its figures mean nothing
    #[arg(long)]
    smoke: bool,
    /// What cargo adds
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> ExitCode {
    let mut words = std::env::args().skip(1);
    let done = match words.next().as_deref() {
        Some(ORIGIN) => origin::run(words.next()).map(|()| ExitCode::SUCCESS),
        Some(ASK) => load::ask(words).map(|()| ExitCode::SUCCESS),
        Some(LOAD) => load::run(&words.next().unwrap_or_default()).map(|()| ExitCode::SUCCESS),
        _ => Args::parse().run(),
    };
    done.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::from(EXIT_FAILURE)
    })
}

impl Args {
    fn run(mut self) -> anyhow::Result<ExitCode> {
        self.inside |= self.within;
        if self.workers > 1 && self.only.is_empty() {
            self.only = vec![Work::Bulk, Work::Stream];
        }
        let mut notes = machine::enter_namespace()?;
        if !machine::can_pin() {
            notes.push("processes are not pinned to cores: that needs taskset and two cores".to_owned());
        }
        if self.smoke {
            (self.rounds, self.seconds) = (1, 0.2);
            notes.push("a smoke run: the figures mean nothing".to_owned());
        }
        let mut run = Run::new(&self, notes)?;
        let is_judged = |goal: &Goal| self.only.is_empty() || self.only.contains(&goal.work);
        anyhow::ensure!(
            !self.gate || run.goals.iter().any(is_judged),
            "--gate: there is no goal for --only with {} workers",
            self.workers
        );
        for round in 0..self.rounds.max(1) {
            for work in Work::ALL
                .into_iter()
                .filter(|work| self.only.is_empty() || self.only.contains(work))
                .filter(|work| (work.is_timed() && !work.is_tls() && !work.is_routed()) || !self.inside)
            {
                run.take_turns(round, work)
                    .with_context(|| format!("{work:?} in round {}", round + 1))?;
            }
        }
        run.print();
        let contradictions = if self.smoke {
            Vec::new()
        } else {
            run.contradictions(self.gate)
        };
        contradictions.iter().for_each(|what| println!("INVALID: {what}"));
        let failures: Vec<&String> = run.turns.iter().flat_map(|turn| &turn.seen.failures).collect();
        if !failures.is_empty() {
            failures.iter().for_each(|what| println!("FAILED: {what}"));
            anyhow::bail!("requests failed while the table changed: {}", failures.len());
        }
        if self.smoke {
            return Ok(ExitCode::SUCCESS);
        }
        if !contradictions.is_empty() {
            return Ok(ExitCode::from(EXIT_INVALID));
        }
        let excesses = run.excesses();
        excesses.iter().for_each(|what| println!("OVER THE LIMIT: {what}"));
        Ok(if self.gate && !excesses.is_empty() {
            ExitCode::from(EXIT_GATE)
        } else {
            ExitCode::SUCCESS
        })
    }
}

/// A turn that was had.
struct Turn {
    round: usize,
    work: Work,
    column: Column,
    seen: Seen,
}

impl Turn {
    /// What a unit costs: CPU microseconds, or bytes of memory.
    fn cost(&self) -> f64 {
        let cpu_us = self.seen.cpu_ns as f64 / 1e3;
        match self.work {
            work if work.is_bulk() => cpu_us / (self.seen.n_bytes as f64 / 1e6),
            Work::Idle => self.seen.memory_bytes as f64 / self.seen.n_units as f64,
            _ => cpu_us / self.seen.n_units as f64,
        }
    }

    fn rate(&self) -> f64 {
        match self.work {
            work if work.is_bulk() => self.seen.n_bytes as f64 / 1e6 / self.seen.seconds,
            _ => self.seen.n_units as f64 / self.seen.seconds,
        }
    }
}

struct Run {
    seconds: f64,
    is_smoke: bool,
    n_idle: usize,
    n_changes: usize,
    n_descriptors: u64,
    goals: &'static [Goal],
    origin: Origin,
    programs: Vec<Program>,
    /// Those that have their turns at timed work, in the order of `programs`.
    proxies: Vec<Proxy>,
    turns: Vec<Turn>,
    notes: Vec<String>,
}

impl Run {
    fn new(args: &Args, mut notes: Vec<String>) -> anyhow::Result<Run> {
        let n_descriptors = machine::raise_open_files();
        let room = usize::try_from(n_descriptors.saturating_sub(DESCRIPTORS_KEPT + n_descriptors / 16))
            .unwrap_or(usize::MAX)
            / 2;
        let wanted = if args.smoke { 200 } else { IDLE_CONNECTIONS };
        let n_idle = if room < wanted { room / 100 * 100 } else { wanted };
        if n_idle < wanted {
            notes.push(format!(
                "{n_idle} idle connections instead of {wanted}: a process may have {n_descriptors} descriptors here"
            ));
        }
        let mut programs = Vec::new();
        let peers = [Name::HaProxy, Name::Nginx, Name::Envoy, Name::Traefik];
        // The last two have no work with a network of its own.
        for name in &peers[..if args.inside { 2 } else { 4 }] {
            match Program::find(*name) {
                Ok(program) => programs.push(program),
                Err(why) => notes.push(format!("skipped: {why}")),
            }
        }
        programs.push(Program::find(Name::Anynode).map_err(anyhow::Error::msg)?);
        if args.inside {
            programs.push(Program::find(Name::AnynodeOpaque).map_err(anyhow::Error::msg)?);
        }
        let n_workers = usize::from(args.workers);
        programs.iter_mut().for_each(|program| program.n_workers = n_workers);
        if n_workers > 1 {
            notes.push(format!("{n_workers} workers each, on all cores"));
        }
        machine::describe().iter().for_each(|line| println!("{line}"));
        programs
            .iter()
            .for_each(|program| println!("{:?}: {}", program.name, program.version));
        let mut run = Run {
            seconds: args.seconds,
            is_smoke: args.smoke,
            n_idle,
            n_changes: if args.smoke { 5 } else { CHANGES },
            n_descriptors,
            goals: if n_workers > 1 { &GOALS_OF_SEVERAL } else { &GOALS },
            origin: Origin::start(
                args.inside.then(Container::make).transpose()?,
                args.within.then(Container::make_caller).transpose()?,
            )?,
            programs,
            proxies: Vec::new(),
            turns: Vec::new(),
            notes,
        };
        for program in &run.programs {
            run.proxies.push(run.start(program)?);
        }
        Ok(run)
    }

    fn start(&self, program: &Program) -> anyhow::Result<Proxy> {
        program.start(&self.origin, self.n_idle + 64, self.n_descriptors)
    }

    /// Everybody has a turn, each round in another order.
    fn take_turns(&mut self, round: usize, work: Work) -> anyhow::Result<()> {
        if !work.is_timed() && round >= ROUNDS_OF_UNTIMED {
            return Ok(());
        }
        let mut columns: Vec<Column> = Column::ALL
            .into_iter()
            .filter(|column| column.does(work))
            .filter(|column| match column {
                Column::Direct => true,
                Column::Through(name) => self.programs.iter().any(|program| program.name == *name),
            })
            .collect();
        let n = columns.len();
        columns.rotate_left(round % n);
        if round % 2 == 1 {
            columns.reverse();
        }
        for column in columns {
            let seen = self.turn(work, column).with_context(|| column.title().to_owned())?;
            let turn = Turn {
                round,
                work,
                column,
                seen,
            };
            self.progress(&turn);
            self.turns.push(turn);
        }
        Ok(())
    }

    fn progress(&self, turn: &Turn) {
        let (round, work, who) = (turn.round + 1, turn.work, turn.column.title());
        let mut figures = Vec::new();
        if turn.column != DIRECT && work != Work::Change {
            let unit = if work == Work::Idle { "bytes" } else { "µs" };
            figures.push(format!("{} {unit}", short(turn.cost())));
        }
        if work.is_timed() {
            figures.push(format!("{} {}", short(turn.rate()), work.rate_unit()));
        }
        if work == Work::Change {
            figures.push(format!("{} changes", turn.seen.n_units));
        }
        eprintln!("round {round}, {work:?}, {who}: {}", figures.join(", "));
    }

    /// One turn, again when the host took more of the machine's time than it may.
    fn turn(&mut self, work: Work, column: Column) -> anyhow::Result<Seen> {
        for n_tries in 1.. {
            let seen = match work {
                Work::Idle => self.idle(column)?,
                Work::Change => self.change()?,
                _ => generate(&self.job(work, column)?, self.origin.caller())?,
            };
            if seen.steal <= STEAL_MAX || self.is_smoke {
                return Ok(seen);
            }
            let what = format!("{work:?}, {}: {:.1} % stolen time", column.title(), seen.steal * 100.0);
            if n_tries == TRIES_MAX {
                self.notes.push(format!("{what}, kept after {n_tries} tries"));
                return Ok(seen);
            }
            self.notes.push(format!("{what}, repeated"));
        }
        unreachable!("it returns after TRIES_MAX tries")
    }

    fn job(&self, work: Work, column: Column) -> anyhow::Result<Job> {
        let run = Duration::from_secs_f64(self.seconds);
        let warm = run / 8;
        let (addr, pids) = match column {
            Column::Direct => (self.origin.endpoints[0], Vec::new()),
            Column::Through(name) => {
                let i = self.programs.iter().position(|program| program.name == name);
                let proxy = i.and_then(|i| self.proxies.get(i)).context("it does not run")?;
                let addr = match work {
                    Work::Bulk | Work::Stream => proxy.ports.bulk,
                    Work::Http => proxy.ports.http,
                    Work::OneHost => proxy.ports.one_host,
                    Work::ManyHosts => proxy.ports.many_hosts,
                    work if work.is_tls() => proxy.ports.https,
                    _ => proxy.ports.tcp,
                };
                (addr, proxy.pids.clone())
            }
        };
        let path = match (work, column) {
            (Work::Bulk | Work::TlsBulk, _) => 'b',
            (Work::Stream, _) => 'l',
            // Nobody adds headers on the direct way.
            (work, Column::Through(_)) if work == Work::Http || work.is_tls() || work.is_routed() => 'h',
            _ => 's',
        };
        let kind = match work {
            Work::Short | Work::TlsFull | Work::TlsResumed => Kind::Short {
                n_connections: 32,
                warm,
                run,
            },
            Work::Http2 => Kind::Http2 {
                n_connections: 8,
                n_at_a_time: 8,
                warm,
                run,
            },
            _ => Kind::KeepAlive {
                path,
                n_connections: if path == 's' || path == 'h' { 64 } else { 8 },
                warm,
                run,
            },
        };
        let mut job = self.job_of(kind, addr, pids);
        job.tls = work.is_tls().then(|| tls::Speaks {
            authority: self.origin.certificate.authority.clone(),
            resumes: work == Work::TlsResumed,
            alpn: if work == Work::Http2 { "h2" } else { "http/1.1" }.to_owned(),
        });
        Ok(job)
    }

    fn job_of(&self, kind: Kind, addr: SocketAddr, pids: Vec<u32>) -> Job {
        Job {
            kind,
            addr,
            origin: self.origin.endpoints[0],
            pids,
            helpers: vec![self.origin.pid],
            tls: None,
        }
    }

    /// A proxy of its own, whose memory has seen nothing else.
    fn idle(&self, column: Column) -> anyhow::Result<Seen> {
        let program = self
            .programs
            .iter()
            .find(|program| column == Column::Through(program.name));
        let proxy = self.start(program.context("it is not here")?)?;
        let kind = Kind::Idle {
            n_connections: self.n_idle,
            settle: Duration::from_millis(if self.is_smoke { 100 } else { 1000 }),
            rest: if self.is_smoke {
                Duration::from_millis(100)
            } else {
                IDLE_REST
            },
        };
        generate(&self.job_of(kind, proxy.ports.tcp, proxy.pids.clone()), None)
    }

    fn change(&self) -> anyhow::Result<Seen> {
        let program = self.programs.iter().find(|program| program.name == Name::Anynode);
        let [first, second, _] = self.origin.endpoints;
        let text = |addr: SocketAddr, endpoint: SocketAddr| {
            format!("services:\n  changing:\n    publish: [\"{addr}:80\"]\n    endpoints: [\"{endpoint}\"]\n")
        };
        let proxy = program
            .context("it is not here")?
            .start_changing(self.n_descriptors, |addr| text(addr, first))?;
        let kind = Kind::Change {
            services: proxy.config.clone(),
            texts: [text(proxy.ports.tcp, first), text(proxy.ports.tcp, second)],
            n_changes: self.n_changes,
        };
        generate(&self.job_of(kind, proxy.ports.tcp, proxy.pids.clone()), None)
    }

    fn costs(&self, work: Work, column: Column) -> Vec<f64> {
        self.of(work, column).map(Turn::cost).collect()
    }

    fn of(&self, work: Work, column: Column) -> impl Iterator<Item = &Turn> {
        self.turns
            .iter()
            .filter(move |turn| turn.work == work && turn.column == column)
    }

    /// The ratio of costs, round by round.
    fn ratios(&self, work: Work, of: Column, to: Column) -> Vec<f64> {
        self.of(work, of)
            .filter_map(|turn| {
                let other = self.of(work, to).find(|other| other.round == turn.round)?;
                Some(turn.cost() / other.cost())
            })
            .collect()
    }

    fn latencies(&self) -> Vec<f64> {
        let turns = self.of(Work::Change, ANYNODE);
        turns.flat_map(|turn| turn.seen.latencies_ms.iter().copied()).collect()
    }

    /// Where the peers are not to each other as they are known to be.
    fn contradictions(&self, needs_peers: bool) -> Vec<String> {
        let mut found = Vec::new();
        for (work, of, to, from, up_to) in KNOWN {
            if self.of(work, ANYNODE).next().is_none() {
                continue;
            }
            let what = format!("{work:?}: {} to {}", of.title(), to.title());
            match spread(&self.ratios(work, of, to)) {
                Some(ratio) if !(from..=up_to).contains(&ratio.median) => {
                    found.push(format!(
                        "{what} is {}, not within {from} and {up_to}",
                        short(ratio.median)
                    ));
                }
                None if needs_peers => found.push(format!("{what}: not both are here")),
                Some(_) | None => {}
            }
        }
        found
    }

    /// How far splicing is below copying depends on the processor, from a quarter to nearly a half. HAProxy splices too: where
    /// it costs more of nginx than usual, so may anynode, but no more of HAProxy than otherwise.
    fn limit(&self, goal: &Goal) -> f64 {
        if goal.against != NGINX {
            return goal.limit;
        }
        let others = spread(&self.ratios(goal.work, HAPROXY, NGINX)).map_or(0.0, |ratio| ratio.median);
        goal.limit.max(others * HAPROXY_LIMIT_BULK)
    }

    fn excesses(&self) -> Vec<String> {
        let mut found = Vec::new();
        for goal in self.goals {
            let (work, against, limit) = (goal.work, goal.against, self.limit(goal));
            if let Some(ratio) = spread(&self.ratios(work, ANYNODE, against))
                && ratio.median > limit
            {
                let against = against.title();
                found.push(format!(
                    "{work:?}: {} of {against}, limit {}",
                    short(ratio.median),
                    short(limit)
                ));
            }
        }
        if let Some(bytes) = spread(&self.costs(Work::Idle, ANYNODE))
            && bytes.median >= IDLE_BYTES_GOAL
        {
            found.push(format!("Idle: {} bytes, limit {IDLE_BYTES_GOAL}", short(bytes.median)));
        }
        if let Some(ms) = percentile(&self.latencies(), 0.99)
            && ms >= CHANGE_MS_GOAL
        {
            found.push(format!("Change: {} ms at p99, limit {CHANGE_MS_GOAL} ms", short(ms)));
        }
        found
    }

    fn print(&self) {
        self.notes.iter().for_each(|note| println!("note: {note}"));
        let timed = self.turns.iter().filter(|turn| turn.work.is_timed());
        let others: Vec<f64> = timed.map(|turn| turn.seen.others * 100.0).collect();
        if let Some(others) = spread(&others) {
            println!(
                "note: other programs used {:.0} % of the machine in the median turn, {:.0} % at most",
                others.median, others.max
            );
        }
        println!();
        println!(
            "| work: cost of a unit, median | HAProxy | nginx | Envoy | Traefik | anynode | to HAProxy | to nginx | to Envoy | to Traefik | goal |"
        );
        println!("|---|---|---|---|---|---|---|---|---|---|---|");
        for work in Work::ALL {
            if work == Work::Change || self.of(work, ANYNODE).next().is_none() {
                continue;
            }
            let cost = |column| match spread(&self.costs(work, column)) {
                Some(cost) => short(cost.median),
                None => "-".to_owned(),
            };
            let ratio = |to| match spread(&self.ratios(work, ANYNODE, to)) {
                Some(r) => format!("{:.2} ({:.2} to {:.2})", r.median, r.min, r.max),
                None => "-".to_owned(),
            };
            let mut goals: Vec<String> = self
                .goals
                .iter()
                .filter(|goal| goal.work == work)
                .map(|goal| format!("≤ {} {}", goal.goal, goal.against.title()))
                .collect();
            if work == Work::Idle {
                goals.push(format!("< {}", short(IDLE_BYTES_GOAL)));
            }
            let peers = [HAPROXY, NGINX, ENVOY, TRAEFIK];
            let (costs, ratios) = ([&peers[..], &[ANYNODE]].concat(), peers);
            let (costs, ratios): (Vec<String>, _) = (costs.into_iter().map(cost).collect(), ratios.map(ratio));
            let (costs, ratios) = (costs.join(" | "), ratios.join(" | "));
            println!("| {} | {costs} | {ratios} | {} |", work.title(), goals.join(", "));
        }
        for work in Work::ALL {
            if let (Some(cost), Some(ratio)) = (
                spread(&self.costs(work, OPAQUE)),
                spread(&self.ratios(work, ANYNODE, OPAQUE)),
            ) {
                println!(
                    "{work:?}: {} with client_address none; anynode to that {:.2} ({:.2} to {:.2})",
                    short(cost.median),
                    ratio.median,
                    ratio.min,
                    ratio.max
                );
            }
        }
        let latencies = self.latencies();
        if let (Some(half), Some(most), Some(all)) = (
            percentile(&latencies, 0.5),
            percentile(&latencies, 0.99),
            percentile(&latencies, 1.0),
        ) {
            let n = latencies.len();
            let figures = format!("p50 {}, p99 {}, max {} ms", short(half), short(most), short(all));
            let title = Work::Change.title();
            println!(
                "| {title}, {n} changes | - | - | - | - | {figures} | - | - | - | - | p99 < {CHANGE_MS_GOAL} ms |"
            );
        }
        println!();
        if Work::ALL
            .iter()
            .any(|work| work.is_timed() && self.of(*work, ANYNODE).next().is_some())
        {
            let titles = Column::ALL.map(Column::title).join(" | ");
            println!("| rate of the closed loop, median | {titles} |");
            println!("|{}", "---|".repeat(1 + Column::ALL.len()));
        }
        for work in Work::ALL.into_iter().filter(|work| work.is_timed()) {
            if self.of(work, ANYNODE).next().is_none() {
                continue;
            }
            let rate = |column| {
                let rates: Vec<f64> = self.of(work, column).map(Turn::rate).collect();
                spread(&rates).map_or_else(|| "-".to_owned(), |rate| short(rate.median))
            };
            println!(
                "| {work:?}, {} | {} |",
                work.rate_unit(),
                Column::ALL.map(rate).join(" | ")
            );
        }
    }
}

/// The first argument of this program as origin, and as generator.
const ORIGIN: &str = "--child-origin";
const LOAD: &str = "--child-load";
/// And to ask once.
const ASK: &str = "--child-ask";
const EXIT_GATE: u8 = 1;
const EXIT_FAILURE: u8 = 2;
const EXIT_INVALID: u8 = 3;
const IDLE_BYTES_GOAL: f64 = 1000.0;
const CHANGE_MS_GOAL: f64 = 5.0;
const IDLE_CONNECTIONS: usize = 9000;
/// For everybody the same, and long enough that whoever puts idle connections aside, as anynode does after five seconds,
/// has done so.
const IDLE_REST: Duration = Duration::from_secs(10);
/// Beside one in 16, what anynode keeps back of its descriptors (`proxy::files`: others, pipes), and some more, so that no
/// connection has to wait for one.
const DESCRIPTORS_KEPT: u64 = 2304 + 256 + 128;
const CHANGES: usize = 200;
/// Memory and latency vary less than times do.
const ROUNDS_OF_UNTIMED: usize = 3;
const STEAL_MAX: f64 = 0.01;
const TRIES_MAX: usize = 4;
