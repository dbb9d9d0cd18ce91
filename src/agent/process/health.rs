//! Health checks of tasks that are processes: a command, as the task itself would run it, with Docker's defaults.

use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::process::{Child, Command};

use super::found::Process;
use super::job::{Dir, Job};
use crate::agent::Assignment;
use crate::agent::runtime::HealthState;
use crate::model::swarm::Time;
use crate::sys::process::{die_with_parent, lead_session};

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

/// Ready when the task's health is other than `before`.
pub(super) async fn changed(dir: Dir, assignment: &Assignment, before: HealthState) -> HealthState {
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
        let Ok(job) = dir.read_job() else { continue };
        let beside = match job.has_own_view() {
            true => match dir.running().and_then(|running| running.keeper) {
                Some(keeper) => Some(keeper),
                // It has not begun.
                None => continue,
            },
            false => None,
        };
        match passes(&check, &job, beside).await {
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

async fn passes(check: &Check, job: &Job, beside: Option<Process>) -> bool {
    let Ok(Some(mut command)) = job.command(&check.words, beside) else {
        return false;
    };
    command.stdout(Stdio::null()).stderr(Stdio::null());
    lead_session(&mut command);
    die_with_parent(&mut command);
    // One that does not run has failed.
    let Ok(child) = Command::from(command).spawn() else {
        return false;
    };
    let mut probe = Probe(child);
    match tokio::time::timeout(check.timeout, probe.0.wait()).await {
        Ok(Ok(status)) => status.success(),
        Ok(Err(_)) | Err(_) => false,
    }
}

/// A check under way. It is ended with all that it started, whether it took too long or nobody waits for it any more.
struct Probe(Child);

impl Drop for Probe {
    fn drop(&mut self) {
        // `None`: it has ended and was waited for.
        let pid = self.0.id().and_then(|pid| i32::try_from(pid).ok());
        if let Some(group) = pid.and_then(Pid::from_raw) {
            let _ = kill_process_group(group, Signal::KILL);
        }
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
