//! Who looks out for an endpoint that takes clients again, on behalf of all who wait: one of them at a time tries, and when
//! he gets through, all are told. Not here: how one tries (`proxy::upstream`).

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::{OwnedMutexGuard, watch};

/// The lookouts of one service, by the port that clients came for.
#[derive(Debug, Default)]
pub struct Lookouts {
    /// Each for as long as somebody waits at it. std mutex: touched by those who wait only.
    by_target: Mutex<HashMap<u16, Weak<Lookout>>>,
}

impl Lookouts {
    /// The lookout for `target`, perhaps a new one.
    pub fn join(&self, target: u16) -> Arc<Lookout> {
        let mut by_target = self.lock();
        if let Some(lookout) = by_target.get(&target).and_then(Weak::upgrade) {
            return lookout;
        }
        by_target.retain(|_, lookout| lookout.strong_count() > 0);
        let lookout = Arc::new(Lookout::default());
        by_target.insert(target, Arc::downgrade(&lookout));
        lookout
    }

    /// Whether somebody tries for `target` at the moment, so that others need not.
    pub fn is_kept(&self, target: u16) -> bool {
        let lookout = self.lock().get(&target).and_then(Weak::upgrade);
        lookout.is_some_and(|lookout| lookout.turn.try_lock().is_err())
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u16, Weak<Lookout>>> {
        self.by_target.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One lookout: whose turn it is to try, and how often somebody got through.
#[derive(Debug)]
pub struct Lookout {
    /// Held by whoever tries; the others take their turn in the order in which they came.
    turn: Arc<tokio::sync::Mutex<()>>,
    successes: watch::Sender<u64>,
    /// How long to wait before the next try. std mutex: nothing awaits under it.
    pause: Mutex<Duration>,
    /// Each who waits and can try for all holds it too.
    able: Arc<()>,
}

impl Default for Lookout {
    fn default() -> Lookout {
        Lookout {
            turn: Arc::default(),
            successes: watch::Sender::new(0),
            pause: Mutex::new(FIRST_PAUSE),
            able: Arc::default(),
        }
    }
}

/// Somebody waits whose tries are a word for all.
#[derive(Debug)]
pub struct Able {
    _count: Arc<()>,
}

/// The turn to try; passed on when dropped.
#[derive(Debug)]
pub struct Turn {
    _guard: OwnedMutexGuard<()>,
}

impl Lookout {
    /// Tells when somebody got through from here on.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.successes.subscribe()
    }

    /// Whoever waits and asks an endpoint for no more than others do says so for as long.
    pub fn able(&self) -> Able {
        Able {
            _count: self.able.clone(),
        }
    }

    pub async fn turn(&self) -> Turn {
        Turn {
            _guard: self.turn.clone().lock_owned().await,
        }
    }

    /// The turn of one who asks for what an endpoint may not have: only where nobody else waits.
    pub async fn last_turn(&self) -> Turn {
        loop {
            while Arc::strong_count(&self.able) > 1 {
                tokio::time::sleep(LOOK_EVERY).await;
            }
            let turn = self.turn().await;
            if Arc::strong_count(&self.able) == 1 {
                return turn;
            }
        }
    }

    /// How long whoever has the turn waits before he tries. Longer each time, whoever it is.
    pub fn next_pause(&self) -> Duration {
        let mut pause = self.pause.lock().unwrap_or_else(PoisonError::into_inner);
        let this = *pause;
        *pause = (this * 2).min(LONGEST_PAUSE);
        this
    }

    /// Whoever has the turn got through: all others may try.
    pub fn succeeded(&self, _: &Turn) {
        self.successes.send_modify(|n| *n += 1);
    }
}

/// Whether somebody who can try for all waits still.
const LOOK_EVERY: Duration = Duration::from_millis(100);
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
