//! Health checks of tasks that are processes: a command, as the task itself would run it, with Docker's defaults. Each is kept
//! as any program beside a task is (`kept`), and ends with all that it started.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::Duration;

use super::beside::Wanted;
use super::job::{Dir, Job};
use super::kept::Kept;
use crate::agent::Assignment;
use crate::agent::runtime::HealthState;
use crate::model::swarm::Time;

/// A health check with every default filled in.
struct Check {
    words: Vec<String>,
    interval: Duration,
    timeout: Duration,
    /// So many failures in a row are too many.
    retries: u32,
    /// Failures before then do not count.
    start_period: Duration,
    start_interval: Duration,
}

fn check_of(assignment: &Assignment) -> Option<Check> {
    let health = assignment.task.spec.container_spec.as_ref()?.health_check.as_ref()?;
    let test = health.test.as_ref()?;
    let words = match test.split_first()? {
        (kind, _) if kind == "NONE" => return None,
        (kind, words) if kind == "CMD" => words.to_vec(),
        (kind, words) if kind == "CMD-SHELL" => vec!["/bin/sh".to_owned(), "-c".to_owned(), words.first()?.clone()],
        _ => return None,
    };
    let or = |nanos: Option<i64>, default: Duration| match nanos.and_then(|nanos| u64::try_from(nanos).ok()) {
        None | Some(0) => default,
        Some(nanos) => Duration::from_nanos(nanos),
    };
    Some(Check {
        words,
        interval: or(health.interval, Duration::from_secs(30)),
        timeout: or(health.timeout, Duration::from_secs(30)),
        retries: match health.retries.and_then(|retries| u32::try_from(retries).ok()) {
            None | Some(0) => 3,
            Some(retries) => retries,
        },
        start_period: or(health.start_period, Duration::ZERO),
        start_interval: or(health.start_interval, Duration::from_secs(5)),
    })
}

/// Ready when the task's health is other than `before`. `program`: this one.
pub(super) async fn changed(program: &Path, dir: Dir, assignment: &Assignment, before: HealthState) -> HealthState {
    let Some(check) = check_of(assignment) else {
        if before == HealthState::Healthy {
            std::future::pending::<()>().await;
        }
        return HealthState::Healthy;
    };
    let started = assignment.task.status.ran_at.unwrap_or_else(Time::now);
    let mut n_failed = 0;
    loop {
        let is_starting = before == HealthState::Starting && Time::now().since(started) < check.start_period;
        // Docker waits an interval before the first one too.
        tokio::time::sleep(if is_starting {
            check.start_interval
        } else {
            check.interval
        })
        .await;
        let (Ok(job), Some(running)) = (dir.read_job(), dir.running()) else {
            // It has not begun.
            continue;
        };
        let wanted = Wanted {
            job: Job {
                words: check.words.clone(),
                ..job
            },
            keeper: running.keeper.unwrap_or(running.program),
            has_terminal: false,
        };
        let code = tokio::time::timeout(check.timeout, code_of(program, &dir, &wanted)).await;
        match matches!(code, Ok(Ok(0))) {
            true if before != HealthState::Healthy => return HealthState::Healthy,
            true => n_failed = 0,
            false if is_starting => {}
            false => n_failed += 1,
        }
        if n_failed >= check.retries {
            return HealthState::Unhealthy;
        }
    }
}

/// How it ends; before that if nobody waits for it any more. Errors: it does not run.
async fn code_of(program: &Path, dir: &Dir, wanted: &Wanted) -> io::Result<i64> {
    let null = File::options().read(true).write(true).open("/dev/null")?;
    let mut kept = Kept::start(program, dir, [null.as_fd(); 3])?;
    match kept.tell(wanted).await?.split_once(' ') {
        Some(("pid", _)) => Ok(kept.code().await),
        _ => Err(io::ErrorKind::NotFound.into()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::agent::tests::assignment;

    fn check(health: serde_json::Value) -> Option<Check> {
        let spec = json!({ "TaskTemplate": { "ContainerSpec": { "HealthCheck": health } } });
        check_of(&assignment(spec))
    }

    #[test]
    fn defaults_are_dockers() {
        let plain = check(json!({ "Test": ["CMD", "true"] })).unwrap();
        assert_eq!(plain.words, ["true"]);
        assert_eq!(
            (plain.interval, plain.timeout),
            (Duration::from_secs(30), Duration::from_secs(30))
        );
        assert_eq!((plain.retries, plain.start_period), (3, Duration::ZERO));
        assert_eq!(plain.start_interval, Duration::from_secs(5));
        let shell = check(json!({ "Test": ["CMD-SHELL", "exit 1"], "Interval": 1_000_000, "Retries": 1 })).unwrap();
        assert_eq!(shell.words, ["/bin/sh", "-c", "exit 1"]);
        assert_eq!((shell.interval, shell.retries), (Duration::from_millis(1), 1));
    }

    #[test]
    fn what_is_no_check() {
        for test in [
            json!(["NONE"]),
            json!([]),
            json!(["NONSENSE", "x"]),
            json!(["CMD-SHELL"]),
            json!(null),
        ] {
            assert!(check(json!({ "Test": test })).is_none(), "{test}");
        }
    }
}
