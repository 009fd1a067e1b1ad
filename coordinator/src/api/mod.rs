//! The gRPC services: thin, they check what peers send and hand it to the core.

mod enrol;
mod handshake;
pub(crate) mod http;
mod logs;
mod operator;
mod page;
mod wake;
mod worker;

pub(crate) use enrol::EnrolmentApi;
pub(crate) use handshake::with_handshake;
pub(crate) use logs::LogDesk;
pub(crate) use operator::{Doors, OperatorApi};
pub(crate) use wake::Wakers;
pub(crate) use worker::{Said, WorkerApi, WorkerDoor};

use deltaconv_proto::ids::{InvalidId, JobId};
use tonic::{Code, Request, Status};

use crate::access::Who;
use crate::core::Unserved;
use crate::{backup, reclaim, schedule, term};

impl From<Unserved> for Status {
    fn from(unserved: Unserved) -> Self {
        let of_call = match unserved {
            Unserved::Stopped => Code::Unavailable,
            // Somebody answers, so that nobody looks for a coordinator that is away.
            Unserved::ReadOnly(_) => Code::ResourceExhausted,
        };
        unserved.code().status(of_call, unserved.to_string())
    }
}

impl From<schedule::Error> for Status {
    fn from(error: schedule::Error) -> Self {
        let of_call = match error {
            schedule::Error::UnknownJob(_)
            | schedule::Error::UnknownTask(_)
            | schedule::Error::UnknownWorker(_)
            | schedule::Error::UnknownIdentity(_) => Code::NotFound,
            schedule::Error::Invitation(_) => Code::InvalidArgument,
            schedule::Error::InvitationOver(_) | schedule::Error::Revoked(_) => Code::PermissionDenied,
            schedule::Error::OutputInUse { .. } => Code::AlreadyExists,
            schedule::Error::Ended { .. } => Code::FailedPrecondition,
            schedule::Error::InvalidId(_) => Code::InvalidArgument,
            schedule::Error::Record(_) => Code::DataLoss,
        };
        error.code().status(of_call, error.to_string())
    }
}

impl From<reclaim::Error> for Status {
    fn from(error: reclaim::Error) -> Self {
        match error {
            reclaim::Error::Job(error) => error.into(),
            reclaim::Error::Unserved(unserved) => unserved.into(),
            error @ (reclaim::Error::Output(_) | reclaim::Error::Term(_) | reclaim::Error::Objects(_)) => {
                error.code().status(Code::FailedPrecondition, error.to_string())
            }
        }
    }
}

impl From<backup::Error> for Status {
    fn from(error: backup::Error) -> Self {
        match error {
            backup::Error::Unserved(unserved) => unserved.into(),
            error @ backup::Error::NoPlace => error.code().status(Code::InvalidArgument, error.to_string()),
            error => error.code().status(Code::FailedPrecondition, error.to_string()),
        }
    }
}

impl From<term::Error> for Status {
    fn from(error: term::Error) -> Self {
        let of_call = match error {
            term::Error::Held { .. } => Code::AlreadyExists,
            term::Error::Objects(_) | term::Error::Contended { .. } | term::Error::Foreign { .. } => {
                Code::FailedPrecondition
            }
        };
        error.code().status(of_call, error.to_string())
    }
}

fn invalid(error: InvalidId) -> Status {
    error.code().status(Code::InvalidArgument, error.to_string())
}

/// Who makes the call.
///
/// # Errors
/// That it came by another way than through the guard, which none does.
fn who<T>(request: &Request<T>) -> Result<Who, Status> {
    let unguarded = || deltaconv_proto::code::Code::Fault.status(Code::Internal, "nothing is known of this caller");
    request.extensions().get::<Who>().cloned().ok_or_else(unguarded)
}

fn job_id(text: String) -> Result<JobId, Status> {
    JobId::new(text).map_err(invalid)
}
