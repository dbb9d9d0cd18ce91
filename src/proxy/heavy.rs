//! Turns for what costs a worker long: the signatures of handshakes. Between two of them whatever else is ready has its turn and the
//! kernel is asked for news, so that a thousand clients that begin at once keep nobody waiting for longer than one of them takes.

use std::cell::RefCell;
use std::collections::VecDeque;

use tokio::sync::oneshot;

thread_local! {
    static TURNS: RefCell<Turns> = const { RefCell::new(Turns { is_taken: false, waiting: VecDeque::new() }) };
}

struct Turns {
    is_taken: bool,
    waiting: VecDeque<oneshot::Sender<()>>,
}

/// Waits for a turn. At once where nobody has had one since the worker last asked for news.
pub(super) async fn turn() {
    let waits = TURNS.with_borrow_mut(|turns| {
        if !std::mem::replace(&mut turns.is_taken, true) {
            return None;
        }
        let (sender, receiver) = oneshot::channel();
        turns.waiting.push_back(sender);
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
            while let Some(next) = turns.waiting.pop_front() {
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
                turn().await;
                n_turns.set(n_turns.get() + 1);
            };
            let turns: Vec<_> = (0..50)
                .map(|_| tokio::task::spawn_local(begin(n_turns.clone())))
                .collect();
            // Who gives up waits for no turn.
            let gone = tokio::task::spawn_local(begin(n_turns.clone()));
            tokio::task::yield_now().await;
            gone.abort();
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
