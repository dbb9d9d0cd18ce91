//! Turns for what costs a worker long: the signatures of handshakes. Between two of them whatever else is ready has its turn and the
//! kernel is asked for news, so that a thousand clients that begin at once keep nobody waiting for longer than one of them takes.

use std::cell::RefCell;
use std::collections::VecDeque;

use tokio::sync::oneshot;

thread_local! {
    static TURNS: RefCell<Turns> = const {
        RefCell::new(Turns { is_taken: false, last: Whose::Client, of_clients: VecDeque::new(), of_endpoints: VecDeque::new() })
    };
}

struct Turns {
    is_taken: bool,
    /// Who has had one.
    last: Whose,
    of_clients: VecDeque<oneshot::Sender<()>>,
    of_endpoints: VecDeque<oneshot::Sender<()>>,
}

/// With whom a handshake is. Where both wait every second turn is one of an endpoint, however many clients there are: endpoints have only so
/// long, and are fewer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Whose {
    Client,
    Endpoint,
}

impl Turns {
    fn of(&mut self, whose: Whose) -> &mut VecDeque<oneshot::Sender<()>> {
        match whose {
            Whose::Client => &mut self.of_clients,
            Whose::Endpoint => &mut self.of_endpoints,
        }
    }

    /// Who waits and is next.
    fn next(&mut self) -> Option<oneshot::Sender<()>> {
        let order = match self.last {
            Whose::Client => [Whose::Endpoint, Whose::Client],
            Whose::Endpoint => [Whose::Client, Whose::Endpoint],
        };
        let next = order
            .into_iter()
            .find_map(|whose| Some((whose, self.of(whose).pop_front()?)));
        let (whose, next) = next?;
        self.last = whose;
        Some(next)
    }
}

/// Waits for a turn. At once where nobody has had one since the worker last asked for news.
pub(super) async fn turn(whose: Whose) {
    let waits = TURNS.with_borrow_mut(|turns| {
        if !std::mem::replace(&mut turns.is_taken, true) {
            return None;
        }
        let (sender, receiver) = oneshot::channel();
        turns.of(whose).push_back(sender);
        Some(receiver)
    });
    match waits {
        None => {
            tokio::spawn(pass_on());
        }
        // An error means that the thread ends.
        Some(receiver) => drop(receiver.await),
    }
}

/// Gives one turn after the other to those who wait, with a round of everything else in between.
async fn pass_on() {
    loop {
        // Comes back once the worker has asked the kernel for news.
        tokio::task::yield_now().await;
        let is_over = TURNS.with_borrow_mut(|turns| {
            // Who has gone away meanwhile takes none.
            while let Some(next) = turns.next() {
                if next.send(()).is_ok() {
                    return false;
                }
            }
            turns.is_taken = false;
            true
        });
        if is_over {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::rc::Rc;

    use super::*;

    #[test]
    fn between_two_turns_everybody_else_has_his() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let local = tokio::task::LocalSet::new();
        local.block_on(&runtime, async {
            let (n_turns, most) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(0)));
            let begin = |n_turns: Rc<Cell<u32>>| async move {
                turn(Whose::Client).await;
                n_turns.set(n_turns.get() + 1);
            };
            let turns: Vec<_> = (0..50)
                .map(|_| tokio::task::spawn_local(begin(n_turns.clone())))
                .collect();
            // Who gives up waits for no turn.
            let gone = tokio::task::spawn_local(begin(n_turns.clone()));
            tokio::task::yield_now().await;
            gone.abort();
            // An endpoint waits for no crowd of clients.
            let before = n_turns.get();
            turn(Whose::Endpoint).await;
            assert!(n_turns.get() <= before + 2, "{} and {before}", n_turns.get());
            let mut last = n_turns.get();
            while n_turns.get() < 50 {
                tokio::task::yield_now().await;
                most.set(most.get().max(n_turns.get() - last));
                last = n_turns.get();
            }
            for turn in turns {
                turn.await.unwrap();
            }
            assert_eq!((n_turns.get(), most.get()), (50, 1));
        });
    }
}
