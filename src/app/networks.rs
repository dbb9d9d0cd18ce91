//! Joins who starts tasks to what they reach from inside. Not here: either of them.

use crate::agent::{Failure, Later, TaskNetworks};
use crate::model::TaskPlace;
use crate::model::swarm::Id;
use crate::tasknet::TaskNets;

impl TaskNetworks for TaskNets {
    fn open<'a>(&'a self, task: &'a Id, place: TaskPlace) -> Later<'a, Result<(), Failure>> {
        Box::pin(async move {
            let opened = TaskNets::open(self, task.as_str(), place).await;
            opened.map_err(|error| Failure(super::chain(&error)))
        })
    }

    fn close(&self, task: &Id) {
        TaskNets::close(self, task.as_str());
    }
}
