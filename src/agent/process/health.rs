//! Health checks of tasks that are processes: a command, as the task itself would run it, with Docker's defaults.

use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;

use super::job::{Dir, Job};
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
        match passes(&check, &job).await {
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

async fn passes(check: &Check, job: &Job) -> bool {
    let Some((program, args)) = check.words.split_first() else {
        return false;
    };
    let mut command = Command::new(program);
    command
        .args(args)
        .env_clear()
        .envs(&job.env)
        .current_dir(&job.dir)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true);
    match tokio::time::timeout(check.timeout, command.status()).await {
        Ok(Ok(status)) => status.success(),
        // It does not run, or takes too long: then it is killed.
        Ok(Err(_)) | Err(_) => false,
    }
}
