//! Containers that are no tasks and are on a network of the swarm: each joins a sandbox, as a task's does. What there is of
//! them, and how their sandboxes come and go. Not here: which are to have one, and with which address (`app`).

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::net::{IpAddr, SocketAddr};

use bollard::errors::Error;
use bollard::models::{ContainerInspectResponse, EventMessageTypeEnum, RestartPolicyNameEnum};
use bollard::query_parameters::{EventsOptionsBuilder, KillContainerOptionsBuilder, ListContainersOptionsBuilder};
use futures_util::{Stream, StreamExt};

use super::{Containers, is_running, said, sandbox};
use crate::agent::runtime::Failure;
use crate::model::Reach;
use crate::model::swarm::{ATTACHED_LABEL, AttachSpec, Id, SANDBOX_LABEL, TaskAddress};
use crate::sys::netns;

/// A container that is no task.
#[derive(Debug, Clone)]
pub struct Attached {
    pub spec: AttachSpec,
    /// The engine's id.
    pub container: String,
    pub name: String,
    pub state: AttachedState,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AttachedState {
    /// Zero while it is between two runs.
    Running {
        pid: i64,
    },
    /// The engine started it again by itself, and could not since its network was not there.
    Waiting,
    Ended,
}

impl Containers {
    /// Whether containers can be on networks of the swarm.
    pub fn can_attach(&self) -> bool {
        self.has_sandboxes
    }

    /// All that bear the label. Errors: the engine does not say.
    pub async fn attached(&self) -> io::Result<Vec<Attached>> {
        let filters = HashMap::from([("label", vec![ATTACHED_LABEL.to_owned()])]);
        let options = ListContainersOptionsBuilder::default()
            .all(true)
            .filters(&filters)
            .build();
        let listed = self.docker.list_containers(Some(options)).await;
        let mut found = Vec::new();
        for container in listed.map_err(io::Error::other)? {
            let labels = container.labels.unwrap_or_default();
            if labels.contains_key(SANDBOX_LABEL) {
                continue;
            }
            if let Some(attached) = self.attached_one(&container.id.unwrap_or_default()).await? {
                found.push(attached);
            }
        }
        Ok(found)
    }

    /// By the engine's id. `None`: it is gone, or has nothing of the swarm.
    pub async fn attached_one(&self, id: &str) -> io::Result<Option<Attached>> {
        match self.docker.inspect_container(id, None).await {
            Ok(container) => Ok(of(&container)),
            Err(Error::DockerResponseServerError { status_code: 404, .. }) => Ok(None),
            Err(error) => Err(io::Error::other(error)),
        }
    }

    /// Whose sandboxes there are.
    pub async fn attached_sandboxes(&self) -> io::Result<BTreeSet<Id>> {
        let owner = format!("{}={}", super::OWNER_LABEL, self.owner);
        let labels = vec![ATTACHED_LABEL.to_owned(), SANDBOX_LABEL.to_owned(), owner];
        let filters = HashMap::from([("label", labels)]);
        let options = ListContainersOptionsBuilder::default()
            .all(true)
            .filters(&filters)
            .build();
        let listed = self.docker.list_containers(Some(options)).await;
        let ids = listed.map_err(io::Error::other)?.into_iter();
        let ids = ids.filter_map(|container| container.labels?.remove(SANDBOX_LABEL));
        Ok(ids.map(|id| Id::from(id.as_str())).collect())
    }

    /// Something of these has changed. Ends with the engine.
    pub fn attached_events(&self) -> impl Stream<Item = ()> + use<> {
        let events = ["start", "die", "destroy", "rename"].map(str::to_owned).to_vec();
        let filters = HashMap::from([
            ("type", vec![EventMessageTypeEnum::CONTAINER.to_string()]),
            ("event", events),
            ("label", vec![ATTACHED_LABEL.to_owned()]),
        ]);
        let options = EventsOptionsBuilder::default().filters(&filters).build();
        let events = self.docker.events(Some(options));
        events.take_while(|event| std::future::ready(event.is_ok())).map(drop)
    }

    /// Makes and starts its sandbox, before its program runs.
    pub async fn make_attached(&self, attached: &Attached, address: &TaskAddress) -> Result<Reach, Failure> {
        let id = &attached.spec.id;
        let body = sandbox::of_attached(&attached.spec, address, &self.owner);
        let failed = |error: Error| Failure(said(&error));
        sandbox::remove(&self.docker, &self.owner, id).await.map_err(failed)?;
        sandbox::create(&self.docker, id.as_str(), &attached.container, body)
            .await
            .map_err(failed)?;
        self.start_sandbox(id).await?;
        let reach = self.reach_attached(id).await.map_err(failed)?;
        reach.ok_or_else(|| Failure("its network was gone again at once".to_owned()))
    }

    /// The same of one whose sandbox an earlier run has made. `None`: that does not run.
    pub async fn open_attached(&self, id: &Id) -> Result<Option<Reach>, Failure> {
        let found = self.find_sandbox(id).await.map_err(|error| Failure(said(&error)))?;
        let Some(sandbox) = found.filter(is_running) else {
            return Ok(None);
        };
        self.open_network(id, &sandbox).await?;
        Ok(reach(&sandbox))
    }

    async fn reach_attached(&self, id: &Id) -> Result<Option<Reach>, Error> {
        let sandbox = self.find_sandbox(id).await?.filter(is_running);
        Ok(sandbox.as_ref().and_then(reach))
    }

    /// Has its program not outlive its sandbox.
    pub async fn tie_attached(&self, attached: &Attached) {
        let sandbox = self.find_sandbox(&attached.spec.id).await.ok().flatten();
        let program = self.docker.inspect_container(&attached.container, None).await;
        if let (Some(sandbox), Ok(program)) = (sandbox, program) {
            self.tie(&attached.spec.id, Some(&sandbox), &program);
        }
    }

    /// Its sandbox goes.
    pub async fn end_attached(&self, id: &Id) {
        self.networks.close(id);
        self.end_sandbox(id).await;
    }

    /// Ready when its program was started. Errors: in the engine's words.
    pub async fn start_attached(&self, attached: &Attached) -> Result<(), String> {
        let started = self.docker.start_container(&attached.container, None).await;
        started.map_err(|error| said(&error))
    }

    /// Ends its program, whose network is gone.
    pub async fn kill_attached(&self, attached: &Attached) {
        let options = KillContainerOptionsBuilder::default().signal("SIGKILL").build();
        // An error says that it does not run.
        let _ = self.docker.kill_container(&attached.container, Some(options)).await;
    }
}

fn reach(sandbox: &ContainerInspectResponse) -> Option<Reach> {
    let pid = sandbox.state.as_ref()?.pid?;
    let ip: IpAddr = sandbox::address(sandbox)?;
    Some(Reach {
        addr: SocketAddr::new(ip, 0),
        netns: Some(netns::of_container(pid)?),
    })
}

fn of(container: &ContainerInspectResponse) -> Option<Attached> {
    let labels = container.config.as_ref()?.labels.as_ref()?;
    let host = container.host_config.as_ref()?;
    let mode = host.network_mode.as_deref()?;
    let spec = AttachSpec::read(mode, labels.get(ATTACHED_LABEL).map(String::as_str))?;
    let state = container.state.as_ref()?;
    let is_to_run_again = host.restart_policy.as_ref().and_then(|policy| policy.name);
    let is_to_run_again = matches!(
        is_to_run_again,
        Some(RestartPolicyNameEnum::ALWAYS | RestartPolicyNameEnum::UNLESS_STOPPED | RestartPolicyNameEnum::ON_FAILURE)
    );
    let lacks_network = lacks_network(&spec, state.error.as_deref().unwrap_or_default());
    let state = match state.running {
        Some(true) => AttachedState::Running {
            pid: state.pid.unwrap_or(0),
        },
        _ if state.restarting == Some(true) => AttachedState::Running { pid: 0 },
        _ if is_to_run_again && lacks_network => AttachedState::Waiting,
        _ => AttachedState::Ended,
    };
    Some(Attached {
        spec,
        container: container.id.clone()?,
        name: container.name.as_deref()?.trim_start_matches('/').to_owned(),
        state,
    })
}

/// Whether the engine tried to start a container by itself when its sandbox was not there: the error of its last start names that,
/// in the words of any version. A start that succeeds takes the error away.
fn lacks_network(spec: &AttachSpec, error: &str) -> bool {
    error.contains(&spec.sandbox())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_engines_say_of_a_sandbox_that_is_not_there() {
        let spec = json!({ "id": "2us26fp97d6w", "swarm": "s", "network": "n", "network_name": "net" });
        let spec: AttachSpec = serde_json::from_value(spec).unwrap();
        for (error, expect) in [
            // Docker 20.10, then 28.5; in the end as both say it of a container that is gone.
            (
                "cannot join network of a non running container: 2us26fp97d6w.network",
                true,
            ),
            (
                "cannot join network namespace of a non running container: container 2us26fp97d6w.network is exited",
                true,
            ),
            ("No such container: 2us26fp97d6w.network", true),
            ("cannot join network of a non running container: db", false),
            (
                "OCI runtime create failed: exec: \"x\": executable file not found in $PATH",
                false,
            ),
            ("", false),
        ] {
            assert_eq!(lacks_network(&spec, error), expect, "{error}");
        }
    }
}
