//! What of a service's guards outlives tables: how fast each client has come, and how many requests are under way. Not here: what is
//! asked (`model::guards`), what is answered (`proxy::h1`).

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use super::bounded::{Bounded, ClientKey};
use super::pace::{Pace, Paced};
use crate::model::guards::{Guards, Rate};

/// Of one service: its own and those of its routes, by what says them.
#[derive(Debug, Default)]
pub struct GuardStates(RwLock<HashMap<Arc<str>, Arc<GuardState>>>);

impl GuardStates {
    /// What is counted for `declared`, which `said_by` says. What it has in common with what was declared before goes on. `is_said`:
    /// whether that says anything any more; asked where something changes.
    pub fn of(&self, said_by: &str, declared: &Arc<Guards>, is_said: impl Fn(&str) -> bool) -> Arc<GuardState> {
        let known = self.0.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(state) = known.get(said_by).filter(|state| state.is_of(declared)) {
            return state.clone();
        }
        drop(known);
        let mut known = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let before = known.get(said_by);
        if let Some(state) = before.filter(|state| state.is_of(declared)) {
            return state.clone();
        }
        let state = Arc::new(GuardState::new(declared.clone(), before.map(|state| &**state)));
        known.retain(|said_by, _| is_said(said_by));
        known.insert(said_by.into(), state.clone());
        state
    }
}

/// What is counted for one set of guards.
#[derive(Debug)]
pub struct GuardState {
    declared: Arc<Guards>,
    clients: Option<Arc<Rated>>,
    under_way: Arc<UnderWay>,
}

#[derive(Debug)]
struct Rated {
    rate: Rate,
    began_at: Instant,
    table: Bounded<ClientKey, Paced>,
}

/// Requests that are under way.
#[derive(Debug, Default)]
struct UnderWay {
    all: AtomicU32,
    /// Of those clients that have any. std mutex: nothing awaits under it.
    of_clients: [Mutex<HashMap<ClientKey, u32>>; 16],
}

impl GuardState {
    fn new(declared: Arc<Guards>, before: Option<&GuardState>) -> GuardState {
        let goes_on = |rate: Rate| {
            let known = before.and_then(|before| before.clients.as_ref());
            known.filter(|known| known.rate == rate).cloned()
        };
        let clients = declared.rate.map(|rate| {
            goes_on(rate).unwrap_or_else(|| {
                Arc::new(Rated {
                    rate,
                    began_at: Instant::now(),
                    table: Bounded::new(CLIENTS_MAX),
                })
            })
        });
        GuardState {
            declared,
            clients,
            under_way: before.map_or_else(Arc::default, |before| before.under_way.clone()),
        }
    }

    fn is_of(&self, declared: &Arc<Guards>) -> bool {
        // What is counted is the same whoever its users are: those may be many.
        let counted = |guards: &Guards| (guards.rate, guards.in_flight, guards.in_flight_per_client);
        Arc::ptr_eq(&self.declared, declared) || counted(&self.declared) == counted(declared)
    }

    /// Counts a request of that client. Errors: it comes too fast, and how long it would have to wait.
    pub fn rate(&self, client: ClientKey) -> Result<(), Duration> {
        let Some(clients) = &self.clients else { return Ok(()) };
        let now = clients.began_at.elapsed();
        let pace = Pace {
            interval: clients.rate.interval,
            burst: clients.rate.burst,
        };
        clients
            .table
            .with(client, Paced::default, |paced| paced.take(pace, now))
    }

    /// Counts a request of that client as under way, until what is returned is dropped. `None`: there are as many as may be.
    pub fn enter(&self, client: ClientKey) -> Option<UnderWayOne> {
        let mut one = UnderWayOne {
            of: self.under_way.clone(),
            is_counted: false,
            client: None,
        };
        // Its own cap first: what it has too much is to be in nobody else's way, not for a moment.
        if let Some(cap) = self.declared.in_flight_per_client {
            let mut clients = self.under_way.lock(client);
            let n = clients.entry(client).or_default();
            if *n >= cap.get() {
                return None;
            }
            *n += 1;
            drop(clients);
            one.client = Some(client);
        }
        if let Some(cap) = self.declared.in_flight {
            let more = |n: u32| (n < cap.get()).then_some(n + 1);
            let all = &self.under_way.all;
            all.fetch_update(Ordering::SeqCst, Ordering::SeqCst, more).ok()?;
            one.is_counted = true;
        }
        Some(one)
    }
}

impl UnderWay {
    fn lock(&self, client: ClientKey) -> MutexGuard<'_, HashMap<ClientKey, u32>> {
        let place = client.shard() % self.of_clients.len();
        self.of_clients[place].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One request that is under way.
#[derive(Debug)]
pub struct UnderWayOne {
    of: Arc<UnderWay>,
    is_counted: bool,
    client: Option<ClientKey>,
}

impl Drop for UnderWayOne {
    fn drop(&mut self) {
        if self.is_counted {
            self.of.all.fetch_sub(1, Ordering::SeqCst);
        }
        if let Some(client) = self.client {
            let mut clients = self.of.lock(client);
            if let Some(n) = clients.get_mut(&client) {
                *n -= 1;
                if *n == 0 {
                    clients.remove(&client);
                }
            }
        }
    }
}

/// Clients whose rate is known, of one rate: half a megabyte.
const CLIENTS_MAX: usize = 16 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    fn declared(rate: &str, in_flight: Option<&str>, per_client: Option<&str>) -> Arc<Guards> {
        Arc::new(Guards {
            rate: Some(rate.parse().unwrap()),
            in_flight: in_flight.map(|cap| cap.parse().unwrap()),
            in_flight_per_client: per_client.map(|cap| cap.parse().unwrap()),
            ..Guards::default()
        })
    }

    fn client(text: &str) -> ClientKey {
        ClientKey::of(text.parse().unwrap())
    }

    #[test]
    fn what_stays_goes_on_and_what_changes_begins_anew() {
        let states = GuardStates::default();
        let (slow, other) = (declared("1/1h", Some("2"), None), declared("1/2h", Some("1"), None));
        let all = |_: &str| true;
        assert!(states.of("a", &slow, all).rate(client("192.0.2.1")).is_ok());
        assert!(states.of("a", &slow, all).rate(client("192.0.2.1")).is_err());
        let held = states.of("a", &slow, all).enter(client("192.0.2.1")).unwrap();
        // The same rate beside something else; another label's.
        let same = declared("1/1h", Some("1"), None);
        assert!(states.of("a", &same, all).rate(client("192.0.2.1")).is_err());
        assert!(states.of("a", &same, all).enter(client("192.0.2.2")).is_none());
        assert!(states.of("b", &slow, all).rate(client("192.0.2.1")).is_ok());
        assert!(states.of("a", &other, all).rate(client("192.0.2.1")).is_ok());
        drop(held);
        assert!(states.of("a", &other, all).enter(client("192.0.2.2")).is_some());
        // What nothing says any more is forgotten.
        states.of("c", &slow, |said_by| said_by != "b");
        assert_eq!(states.0.read().unwrap().len(), 2);
    }

    #[test]
    fn each_request_is_counted_until_it_ends() {
        let states = GuardStates::default();
        let state = states.of("", &declared("1/1h", Some("3"), Some("2")), |_| true);
        let (one, other) = (client("2001:db8::1"), client("2001:db8:1::1"));
        let mut held: Vec<_> = (0..2).map(|_| state.enter(one).unwrap()).collect();
        for _ in 0..5 {
            assert!(state.enter(client("2001:db8::2")).is_none(), "the same client has two");
        }
        held.push(state.enter(other).unwrap());
        for _ in 0..5 {
            assert!(state.enter(other).is_none(), "there are three");
        }
        held.clear();
        assert_eq!(state.under_way.all.load(Ordering::SeqCst), 0);
        assert!(
            state
                .under_way
                .of_clients
                .iter()
                .all(|clients| clients.lock().unwrap().is_empty())
        );
    }
}
