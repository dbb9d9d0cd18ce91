//! Keeps a connection to one node for ever: over its runs of the program, and after each loss.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use super::runs::{Begun, Earlier, connect, successor_now};
use super::talk::{End, converse};
use super::{Call, NEXT_LONGEST, Shared, Target};

pub(super) async fn keep(shared: Arc<Shared>, target: Target, mut called: mpsc::Receiver<Call>) {
    let mut backoff = BACKOFF_FIRST;
    let mut next: Option<Begun> = None;
    let mut earlier = Earlier::default();
    // Of a node whose runs come and go there is a look less and less often.
    let mut pause = NEXT_FIRST;
    let mut looked_at: Option<Instant> = None;
    // Since it was talked to last, a try has shown that it does not answer.
    let mut has_timed_out = false;
    loop {
        let started = Instant::now();
        let begun = match next.take() {
            Some(begun) => Ok(begun),
            None => connect(&shared.state, &target).await,
        };
        let followed = match begun {
            Ok(begun) => match converse(&shared, &target, (begun, pause), &mut called).await {
                End::Anew => continue,
                End::Next { begun, left } => {
                    earlier.add(&shared.state, *left);
                    has_timed_out = false;
                    Ok(*begun)
                }
                End::Failed(error) => {
                    has_timed_out = false;
                    // One whose runs end as they begin is not reached for without a pause.
                    match looked_at.is_none_or(|at| at.elapsed() > BACKOFF_LONGEST) {
                        true => {
                            let begun = next_of_ended(&shared, &target, &error).await;
                            looked_at = Some(Instant::now());
                            begun.ok_or(error)
                        }
                        false => Err(error),
                    }
                }
            },
            Err(error) => Err(error),
        };
        let error = match followed {
            Ok(begun) => {
                tracing::info!(node = %target.node, addr = %target.addr, "linked to its next run");
                pause = match started.elapsed() > NEXT_LONGEST {
                    true => NEXT_FIRST,
                    false => (pause * 3).min(NEXT_LONGEST),
                };
                next = Some(begun);
                continue;
            }
            Err(error) => error,
        };
        has_timed_out |= error.kind() == io::ErrorKind::TimedOut;
        shared.lost(&target, &error, has_timed_out && !earlier.answers());
        while let Ok(call) = called.try_recv() {
            // An error means that nobody waits any more.
            let _ = call.answer.send(Err(format!("not linked: {error}")));
        }
        if started.elapsed() > BACKOFF_LONGEST {
            backoff = BACKOFF_FIRST;
        }
        tokio::time::sleep(backoff.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
        backoff = (backoff * 2).min(BACKOFF_LONGEST);
    }
}

/// The next run of one that ended before another was looked for, as one does that has nothing open when it is updated.
async fn next_of_ended(shared: &Shared, target: &Target, error: &io::Error) -> Option<Begun> {
    // One that does not answer has not ended.
    let ended = shared
        .ending(target)
        .filter(|_| error.kind() != io::ErrorKind::TimedOut)?;
    successor_now(&shared.state, target, ended)
        .await
        .inspect_err(|error| tracing::debug!(node = %target.node, %error, "its next run is not reached"))
        .ok()
}

const BACKOFF_FIRST: Duration = Duration::from_millis(50);
const BACKOFF_LONGEST: Duration = Duration::from_secs(1);
/// Until the next run of a node that ends is looked for.
const NEXT_FIRST: Duration = Duration::from_millis(100);
