//! A few threads for work that is too long for a worker, and short rows of what waits for them, which have their turns one after the
//! other. They come with the first piece of work and go when there was none for a while. Not here: what the work is.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

type Job = Box<dyn FnOnce() + Send>;

pub(super) struct Pool {
    rows: Arc<Rows>,
    n_threads_max: usize,
}

#[derive(Default)]
struct Rows {
    state: Mutex<State>,
    news: Condvar,
}

#[derive(Default)]
struct State {
    /// None is empty.
    rows: HashMap<u64, VecDeque<Job>>,
    /// Whose turn is when: each of them once.
    turns: VecDeque<u64>,
    n_jobs: usize,
    n_threads: usize,
    n_idle: usize,
}

/// There is no room for one more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Full;

impl Pool {
    pub(super) fn new() -> Pool {
        // The workers are as many as there are cores, and are to have most of them.
        let n_cores = std::thread::available_parallelism().map_or(1, usize::from);
        Pool {
            rows: Arc::default(),
            n_threads_max: (n_cores / 2).clamp(1, 4),
        }
    }

    /// Has a thread do it, some time. `row`: what waits in one row waits for its turn among the rows.
    pub(super) fn add(&self, row: u64, job: Job) -> Result<(), Full> {
        let mut state = self.rows.state.lock().unwrap_or_else(PoisonError::into_inner);
        let n_before = state.rows.get(&row).map_or(0, VecDeque::len);
        if state.n_jobs >= WAITING_MAX || n_before >= ROW_MAX {
            return Err(Full);
        }
        if state.n_idle <= state.n_jobs && state.n_threads < self.n_threads_max {
            let rows = self.rows.clone();
            let thread = std::thread::Builder::new().name("passwords".to_owned());
            match thread.spawn(move || rows.work()) {
                Ok(_) => state.n_threads += 1,
                Err(error) if state.n_threads == 0 => {
                    tracing::warn!(%error, "no thread for passwords");
                    return Err(Full);
                }
                Err(_) => {}
            }
        }
        state.push(row, job);
        drop(state);
        self.rows.news.notify_one();
        Ok(())
    }
}

impl State {
    fn push(&mut self, row: u64, job: Job) {
        let jobs = self.rows.entry(row).or_default();
        if jobs.is_empty() {
            self.turns.push_back(row);
        }
        jobs.push_back(job);
        self.n_jobs += 1;
    }

    fn pop(&mut self) -> Option<Job> {
        let row = self.turns.pop_front()?;
        let jobs = self.rows.get_mut(&row)?;
        let job = jobs.pop_front()?;
        match jobs.is_empty() {
            true => drop(self.rows.remove(&row)),
            false => self.turns.push_back(row),
        }
        self.n_jobs -= 1;
        Some(job)
    }
}

impl Rows {
    fn work(&self) {
        // Whoever is served already comes first. An error means that it has its turn like all others.
        let _ = rustix::process::nice(NICE);
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(job) = state.pop() {
                drop(state);
                job();
                state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            state.n_idle += 1;
            let waited = self.news.wait_timeout(state, IDLE_FOR);
            let (after, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
            state = after;
            state.n_idle -= 1;
            if timeout.timed_out() && state.n_jobs == 0 {
                state.n_threads -= 1;
                return;
            }
        }
    }
}

/// Pieces of work that may wait, in all rows and in one.
const WAITING_MAX: usize = 512;
const ROW_MAX: usize = 64;
const IDLE_FOR: Duration = Duration::from_secs(10);
const NICE: i32 = 10;

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn rows_have_their_turns_however_long_they_are() {
        let mut state = State::default();
        let (say, said) = mpsc::channel();
        for (row, n) in [(1, 5), (2, 2), (3, 1)] {
            for _ in 0..n {
                let say = say.clone();
                state.push(row, Box::new(move || say.send(row).unwrap()));
            }
        }
        while let Some(job) = state.pop() {
            job();
        }
        drop(say);
        assert_eq!(said.iter().collect::<Vec<_>>(), [1, 2, 3, 1, 2, 1, 1, 1]);
        assert!(state.rows.is_empty() && state.turns.is_empty() && state.n_jobs == 0);
    }

    #[test]
    fn a_full_row_takes_nothing_and_all_that_was_taken_is_done() {
        let pool = Pool::new();
        let (hold, held) = mpsc::channel::<()>();
        let held = Arc::new(Mutex::new(held));
        let (done, n_done) = mpsc::channel();
        let mut n_taken = 0;
        let refused = loop {
            let (held, done) = (held.clone(), done.clone());
            let job = move || {
                // An error means that nobody holds it up any more.
                let _ = held.lock().unwrap().recv();
                done.send(()).unwrap();
            };
            match pool.add(n_taken / ROW_MAX as u64, Box::new(job)) {
                Ok(()) => n_taken += 1,
                Err(full) => break full,
            }
        };
        assert_eq!(refused, Full);
        // Those that threads have begun are in no row.
        assert!((n_taken as usize) <= WAITING_MAX + 4, "{n_taken}");
        drop((hold, done));
        assert_eq!(n_done.iter().count() as u64, n_taken);
        let (done, is_done) = mpsc::channel();
        pool.add(0, Box::new(move || done.send(()).unwrap())).unwrap();
        assert_eq!(is_done.iter().count(), 1);
    }
}
