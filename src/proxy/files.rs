//! How the descriptors that this process may have are shared out, and how many each worker keeps for later: sockets that are
//! ready, idle connections to endpoints. Not here: what connections take (`core`), and who counts (`manager`).

use std::cell::Cell;
use std::marker::PhantomData;

use super::config::ProxyConfig;

thread_local! {
    /// Of this worker.
    static N_SPARE: Cell<usize> = const { Cell::new(0) };
    static SPARE_MOST: Cell<usize> = const { Cell::new(usize::MAX) };
}

/// The right to keep one descriptor for later, until this is dropped. It is this thread's.
#[derive(Debug)]
pub(super) struct Spare(PhantomData<*const ()>);

impl Spare {
    /// `None`: this worker keeps as many as it may.
    pub(super) fn take() -> Option<Spare> {
        let n = N_SPARE.get();
        (n < SPARE_MOST.get()).then(|| {
            N_SPARE.set(n + 1);
            Spare(PhantomData)
        })
    }
}

impl Drop for Spare {
    fn drop(&mut self) {
        N_SPARE.set(N_SPARE.get() - 1);
    }
}

/// How many more the calling worker may keep.
pub(super) fn n_spare_left() -> usize {
    SPARE_MOST.get().saturating_sub(N_SPARE.get())
}

/// Whether the calling worker has so few left that what is not in use should be given up.
pub(super) fn is_scarce() -> bool {
    N_SPARE.get() > SPARE_MOST.get() / 4 * 3
}

/// Prepares the calling worker.
pub(super) fn set_up(config: &ProxyConfig) {
    SPARE_MOST.set(share(config) / config.n_workers.max(1));
}

/// Pipes that one worker may keep.
pub(super) fn n_pipes(config: &ProxyConfig) -> usize {
    config.splice_pipes.min(share(config) / 2 / config.n_workers.max(1))
}

/// What connections and listeners leave to everything else.
pub(super) fn n_kept(config: &ProxyConfig) -> usize {
    let n_pipes = 2 * config.n_workers * n_pipes(config);
    let of_others = OF_OTHERS.min(config.files_max / 16 * 7);
    of_others.saturating_add(n_pipes).saturating_add(share(config))
}

/// All workers keep so many for later, and as many for pipes.
fn share(config: &ProxyConfig) -> usize {
    config.files_max / 16
}

/// DNS, the admin server and the API bound what they take, by `sys::limits::share` where few may be open; files come on top.
const OF_OTHERS: usize = 2304;
