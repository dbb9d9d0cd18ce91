//! A few threads for work that is too long for a worker, and a short row of what waits for them. They come with the first piece of work
//! and go when there was none for a while. Not here: what the work is.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

type Job = Box<dyn FnOnce() + Send>;

pub(super) struct Pool {
    row: Arc<Row>,
    n_threads_max: usize,
}

#[derive(Default)]
struct Row {
    state: Mutex<State>,
    news: Condvar,
}

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
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
            row: Arc::default(),
            n_threads_max: (n_cores / 2).clamp(1, 4),
        }
    }

    /// Has a thread do it, some time.
    pub(super) fn add(&self, job: Job) -> Result<(), Full> {
        let mut state = self.row.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.jobs.len() >= WAITING_MAX {
            return Err(Full);
        }
        if state.n_idle <= state.jobs.len() && state.n_threads < self.n_threads_max {
            let row = self.row.clone();
            let thread = std::thread::Builder::new().name("passwords".to_owned());
            match thread.spawn(move || row.work()) {
                Ok(_) => state.n_threads += 1,
                Err(error) if state.n_threads == 0 => {
                    tracing::warn!(%error, "no thread for passwords");
                    return Err(Full);
                }
                Err(_) => {}
            }
        }
        state.jobs.push_back(job);
        drop(state);
        self.row.news.notify_one();
        Ok(())
    }
}

impl Row {
    fn work(&self) {
        // Whoever is served already comes first. An error means that it has its turn like all others.
        let _ = rustix::process::nice(NICE);
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(job) = state.jobs.pop_front() {
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
            if timeout.timed_out() && state.jobs.is_empty() {
                state.n_threads -= 1;
                return;
            }
        }
    }
}

/// Pieces of work that may wait.
const WAITING_MAX: usize = 128;
const IDLE_FOR: Duration = Duration::from_secs(10);
const NICE: i32 = 10;

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

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
            match pool.add(Box::new(job)) {
                Ok(()) => n_taken += 1,
                Err(full) => break full,
            }
        };
        assert_eq!(refused, Full);
        assert!((WAITING_MAX..=WAITING_MAX + 4).contains(&n_taken), "{n_taken}");
        drop((hold, done));
        assert_eq!(n_done.iter().count(), n_taken);
        let (done, is_done) = mpsc::channel();
        pool.add(Box::new(move || done.send(()).unwrap())).unwrap();
        assert_eq!(is_done.iter().count(), 1);
    }
}
