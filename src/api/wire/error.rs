//! Errors as the Docker Engine answers them: a status and one sentence.

use hyper::StatusCode;

use crate::store::CommitError;

/// Why a request is not done, in Docker's words where Docker has some.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::api) struct ApiError {
    pub(in crate::api) status: StatusCode,
    pub(in crate::api) message: String,
}

impl ApiError {
    fn new(status: StatusCode, message: impl Into<String>) -> ApiError {
        ApiError {
            status,
            message: message.into(),
        }
    }

    pub(in crate::api) fn bad(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::BAD_REQUEST, message)
    }

    /// What dockerd gets from the managers over gRPC, with the prefix that its texts have then.
    pub(in crate::api) fn invalid(message: impl AsRef<str>) -> ApiError {
        let text = format!("rpc error: code = InvalidArgument desc = {}", message.as_ref());
        ApiError::new(StatusCode::BAD_REQUEST, text)
    }

    pub(in crate::api) fn precondition(message: impl AsRef<str>) -> ApiError {
        let text = format!("rpc error: code = FailedPrecondition desc = {}", message.as_ref());
        ApiError::new(StatusCode::BAD_REQUEST, text)
    }

    pub(in crate::api) fn exists(message: impl AsRef<str>) -> ApiError {
        let text = format!("rpc error: code = AlreadyExists desc = {}", message.as_ref());
        ApiError::new(StatusCode::CONFLICT, text)
    }

    pub(in crate::api) fn unknown(message: impl AsRef<str>) -> ApiError {
        let text = format!("rpc error: code = Unknown desc = {}", message.as_ref());
        ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, text)
    }

    /// What dockerd says of itself.
    pub(in crate::api) fn internal(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, message)
    }

    pub(in crate::api) fn conflict(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::CONFLICT, message)
    }

    pub(in crate::api) fn not_found(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::NOT_FOUND, message)
    }

    pub(in crate::api) fn forbidden(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::FORBIDDEN, message)
    }

    pub(in crate::api) fn unauthorized(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::UNAUTHORIZED, message)
    }

    pub(in crate::api) fn not_implemented(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::NOT_IMPLEMENTED, message)
    }

    pub(in crate::api) fn unavailable(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::SERVICE_UNAVAILABLE, message)
    }

    pub(in crate::api) fn too_large(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, message)
    }

    pub(in crate::api) fn timed_out(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::REQUEST_TIMEOUT, message)
    }

    pub(in crate::api) fn gateway(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::BAD_GATEWAY, message)
    }

    pub(in crate::api) fn page_not_found() -> ApiError {
        ApiError::not_found("page not found")
    }

    pub(in crate::api) fn no_swarm() -> ApiError {
        ApiError::unavailable(NO_SWARM)
    }

    pub(in crate::api) fn locked() -> ApiError {
        ApiError::unavailable(LOCKED)
    }

    /// What is said where it seems that there is no swarm, since it is locked.
    pub(in crate::api) fn of_locked_swarm(self) -> ApiError {
        match self.message == NO_SWARM {
            true => ApiError::locked(),
            false => self,
        }
    }
}

const NO_SWARM: &str = "This node is not a swarm manager. Use \"docker swarm init\" or \"docker swarm join\" to connect this node \
                        to swarm and try again.";
pub(in crate::api) const LOCKED: &str = "Swarm is encrypted and needs to be unlocked before it can be used. Please use \"docker \
                                         swarm unlock\" to unlock it.";

impl From<CommitError> for ApiError {
    fn from(error: CommitError) -> ApiError {
        match &error {
            CommitError::NameTaken { key, name } => match key.kind {
                crate::model::swarm::Kind::Service => ApiError::exists(format!(
                    "name conflicts with an existing object: service {name} already exists"
                )),
                crate::model::swarm::Kind::Network => {
                    ApiError::conflict(format!("network with name {name} already exists"))
                }
                kind => ApiError::exists(format!("{} {name} already exists", kind.as_str())),
            },
            CommitError::Conflict { .. } => ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
            // For a while: it may be asked again.
            CommitError::Io { .. } | CommitError::Closed => ApiError::unavailable(error.to_string()),
        }
    }
}
