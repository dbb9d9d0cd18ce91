//! Places by party: a table of what is finite, such as the connections that a server has at once, shared out between those
//! who take of it. While there are places, everybody has what he asks for. When there are none, a new one still gets a
//! place, and the party that holds most gives up its silent oldest one (`ledger`), which is told to leave, and counted.
//!
//! A place is silent since the last byte that moved (`Watched`), unless its other end waits for us (`Place::busy`): those
//! go last. Not here: what a party is; each table says it for itself.

mod ledger;
mod seat;
mod table;
mod watched;

use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

pub use ledger::{Ledger, PlaceId};
pub use seat::Busy;
pub use table::Table;
pub use watched::{Cut, Watched};

use seat::Seat;

/// A table of places, shared by who takes of it.
#[derive(Debug)]
pub struct Places<P> {
    /// std mutex: held for a look at the table at most.
    ledger: Mutex<Ledger<P, Arc<Seat>>>,
    epoch: Instant,
    table: Table,
    /// Tells one who waits that a place was given back.
    freed: Notify,
}

impl<P: Eq + Hash + Clone> Places<P> {
    /// `most` places in all.
    pub fn new(table: Table, most: usize) -> Arc<Places<P>> {
        Places::with_each(table, most, usize::MAX)
    }

    /// `most` places in all, and no more than `most_each` for a party, though there be some left.
    pub fn with_each(table: Table, most: usize, most_each: usize) -> Arc<Places<P>> {
        Arc::new(Places {
            ledger: Mutex::new(Ledger::new(most, most_each)),
            epoch: Instant::now(),
            table,
            freed: Notify::new(),
        })
    }

    pub fn set_most(&self, most: usize) {
        self.lock().set_most(most);
    }

    /// A place for `party`, at once and always. Whoever accepts in a loop is to let others have a turn now and then when
    /// `Place::is_in_anothers` says so (`Crowd`): who was told to leave is to be gone before many more come.
    pub fn take(self: &Arc<Self>, party: P) -> Place<P> {
        let seat = Seat::new(self.epoch);
        let (id, given_up) = self.lock().take(party, seat.clone(), |seat| seat.rank());
        self.table.given_up(given_up.len() as u64);
        given_up.iter().for_each(|seat| seat.tell_to_leave());
        Place {
            places: self.clone(),
            id,
            seat,
            is_in_anothers: !given_up.is_empty(),
        }
    }

    /// Places that are taken.
    pub fn len(&self) -> usize {
        self.lock().len()
    }

    pub fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    /// As `take`, but those who move have `patience` to end by themselves first.
    pub async fn take_within(self: &Arc<Self>, party: P, patience: Duration) -> Place<P> {
        let is_free = async {
            loop {
                let freed = self.freed.notified();
                if self.lock().has_room() {
                    break;
                }
                freed.await;
            }
        };
        // An error means that others have had their time.
        let _ = tokio::time::timeout(patience, is_free).await;
        self.take(party)
    }

    fn lock(&self) -> MutexGuard<'_, Ledger<P, Arc<Seat>>> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// For whoever accepts in a loop while there are no places left.
#[derive(Debug, Default)]
pub struct Crowd {
    n: usize,
}

impl Crowd {
    /// To be asked after each that took another's place: whether so many did that those who were told to leave, and those
    /// who have just come, are to have their turns before the next.
    pub fn is_enough(&mut self) -> bool {
        self.n = (self.n + 1) % CROWD;
        self.n == 0
    }
}

/// Few of any table's places, so that who has just come is not told to leave before it was heard.
const CROWD: usize = 8;

/// A place that is taken; given back when it is dropped.
#[derive(Debug)]
pub struct Place<P: Eq + Hash + Clone> {
    places: Arc<Places<P>>,
    id: PlaceId,
    seat: Arc<Seat>,
    is_in_anothers: bool,
}

impl<P: Eq + Hash + Clone> Place<P> {
    /// Another gave up its place for this one.
    pub fn is_in_anothers(&self) -> bool {
        self.is_in_anothers
    }

    /// Something moved: its silence begins anew.
    pub fn moved(&self) {
        self.seat.moved();
    }

    /// From here on, until what this returns is dropped, its other end waits for us: it gives up its place after all who
    /// keep us waiting.
    pub fn busy(&self) -> Busy {
        self.seat.busy()
    }

    /// Waits until the place was given up for another, for ever if it is not. Who has it is to leave then.
    pub async fn told_to_leave(&self) {
        self.seat.told_to_leave().await;
    }

    /// The stream that the place is for: bytes that move end its silence.
    pub fn watch<S: Cut>(&self, stream: S) -> Watched<S> {
        Watched::new(stream, self.seat.clone())
    }
}

impl<P: Eq + Hash + Clone> Drop for Place<P> {
    fn drop(&mut self) {
        // `None`: it was given up for another before.
        let _ = self.places.lock().give_back(self.id);
        self.places.freed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    fn is_told(place: &Place<u8>) -> bool {
        place.told_to_leave().now_or_never().is_some()
    }

    #[test]
    fn who_moves_or_is_waited_for_keeps_its_place() {
        let places: Arc<Places<u8>> = Places::new(Table::Admin, 3);
        let (first, second, third) = (places.take(1), places.take(1), places.take(1));
        let busy = first.busy();
        second.moved();
        let fourth = places.take(1);
        assert!(fourth.is_in_anothers() && is_told(&third), "it was silent for longest");
        assert!(!is_told(&first) && !is_told(&second));
        // Who is waited for by us, and does not take what we have, is silent.
        first.seat.stuck();
        let fifth = places.take(1);
        assert!(is_told(&first) && !is_told(&second));
        drop((busy, first, third));
        assert_eq!(places.len(), 3, "a place is given back once");
        drop((second, fourth, fifth));
        assert!(places.is_empty());
    }

    #[test]
    fn who_was_busy_is_silent_from_then_on() {
        let places: Arc<Places<u8>> = Places::new(Table::Admin, 2);
        let (first, second) = (places.take(1), places.take(1));
        drop(first.busy());
        let _third = places.take(2);
        assert!(is_told(&second) && !is_told(&first));
    }
}
