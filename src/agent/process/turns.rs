//! Whose turn it is to have a task made: a few are made at once, and a service with thousands of tasks keeps no other waiting for
//! all of them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::model::swarm::Id;

#[derive(Debug)]
pub(super) struct Turns {
    all: Arc<Semaphore>,
    /// Those of each service that has some: only so many of its tasks wait among the others. std mutex: held for moments.
    of_services: Mutex<BTreeMap<Id, Arc<Semaphore>>>,
}

/// Over when dropped.
pub(super) struct Turn {
    _one: Option<OwnedSemaphorePermit>,
    _of_service: Option<OwnedSemaphorePermit>,
}

impl Turns {
    pub(super) fn new() -> Turns {
        Turns {
            all: Arc::new(Semaphore::new(AT_ONCE)),
            of_services: Mutex::default(),
        }
    }

    /// Ready when it is the turn of a task of that service.
    pub(super) async fn turn(&self, service: &Id) -> Turn {
        // An error says that it is closed, which it never is.
        let of_service = self.of(service).acquire_owned().await.ok();
        let one = self.all.clone().acquire_owned().await.ok();
        // Making a task is work that waits for nothing: whoever asked this program for something meanwhile comes first.
        tokio::task::yield_now().await;
        Turn {
            _one: one,
            _of_service: of_service,
        }
    }

    fn of(&self, service: &Id) -> Arc<Semaphore> {
        let mut of_services = self.of_services.lock().unwrap_or_else(PoisonError::into_inner);
        // Who waits or has a turn holds another one.
        of_services.retain(|_, turns| Arc::strong_count(turns) > 1);
        let turns = of_services.entry(service.clone());
        turns.or_insert_with(|| Arc::new(Semaphore::new(AT_ONCE))).clone()
    }
}

/// Enough to keep a few cores at it.
const AT_ONCE: usize = 4;

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc;

    use super::*;

    #[tokio::test]
    async fn one_of_a_service_comes_before_the_last_of_a_thousand() {
        let turns = Arc::new(Turns::new());
        let (done, mut order) = mpsc::unbounded_channel();
        let make = |service: &'static str| {
            let (turns, done) = (turns.clone(), done.clone());
            tokio::spawn(async move {
                let _turn = turns.turn(&Id::from(service)).await;
                tokio::task::yield_now().await;
                done.send(service).unwrap();
            })
        };
        for _ in 0..1_000 {
            make("many");
        }
        tokio::task::yield_now().await;
        make("one");
        drop(done);
        let mut before = 0;
        while order.recv().await != Some("one") {
            before += 1;
        }
        assert!(before <= 4 * AT_ONCE, "{before} came before it");
        while order.recv().await.is_some() {
            before += 1;
        }
        assert_eq!(before, 1_000);
        // Nothing is kept of services that wait for nothing.
        drop(turns.turn(&Id::from("another")).await);
        assert_eq!(turns.of_services.lock().unwrap().len(), 1);
    }
}
