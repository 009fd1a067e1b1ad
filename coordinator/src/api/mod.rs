//! The gRPC services: thin, they check what peers send and hand it to the core.

mod auth;
pub(crate) mod http;
mod logs;
mod operator;
mod page;
mod wake;
mod worker;

pub(crate) use auth::Token;
pub use auth::TokenError;
pub(crate) use logs::LogDesk;
pub(crate) use operator::OperatorApi;
pub(crate) use wake::Wakers;
pub(crate) use worker::{Said, WorkerApi};

use deltaconv_proto::ids::{InvalidId, JobId};
use tonic::Status;

use crate::core::Unserved;
use crate::{reclaim, schedule, term};

impl From<Unserved> for Status {
    fn from(unserved: Unserved) -> Self {
        let message = unserved.to_string();
        match unserved {
            Unserved::Stopped => Self::unavailable(message),
            // Somebody answers, so that nobody looks for a coordinator that is away.
            Unserved::ReadOnly(_) => Self::resource_exhausted(message),
        }
    }
}

impl From<schedule::Error> for Status {
    fn from(error: schedule::Error) -> Self {
        let message = error.to_string();
        match error {
            schedule::Error::UnknownJob(_) | schedule::Error::UnknownTask(_) | schedule::Error::UnknownWorker(_) => {
                Self::not_found(message)
            }
            schedule::Error::OutputInUse { .. } => Self::already_exists(message),
            schedule::Error::Ended { .. } => Self::failed_precondition(message),
            schedule::Error::InvalidId(_) => Self::invalid_argument(message),
            schedule::Error::Record(_) => Self::data_loss(message),
        }
    }
}

impl From<reclaim::Error> for Status {
    fn from(error: reclaim::Error) -> Self {
        match error {
            reclaim::Error::Job(error) => error.into(),
            reclaim::Error::Unserved(unserved) => unserved.into(),
            error @ (reclaim::Error::Output(_) | reclaim::Error::Term(_) | reclaim::Error::Objects(_)) => {
                Self::failed_precondition(error.to_string())
            }
        }
    }
}

impl From<term::Error> for Status {
    fn from(error: term::Error) -> Self {
        let message = error.to_string();
        match error {
            term::Error::Held { .. } => Self::already_exists(message),
            term::Error::Objects(_) | term::Error::Contended { .. } | term::Error::Foreign { .. } => {
                Self::failed_precondition(message)
            }
        }
    }
}

fn invalid(error: InvalidId) -> Status {
    Status::invalid_argument(error.to_string())
}

fn job_id(text: String) -> Result<JobId, Status> {
    JobId::new(text).map_err(invalid)
}
