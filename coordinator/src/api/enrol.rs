//! What a machine calls that holds an invitation.

use deltaconv_proto::code::Code;
use deltaconv_proto::tls::{Identity, InvalidToken, Secret, Token};
use deltaconv_proto::v1;
use deltaconv_proto::v1::enrolment_service_server::EnrolmentService;
use tonic::{Request, Response, Status};

use super::who;
use crate::access::{Access, WORKER, Who};
use crate::core::Handle;
use crate::schedule::Enrolment;

/// A public key in DER: one of 4096 bits RSA has 550 bytes.
const MAX_KEY: usize = 2048;

/// The enrolment service.
pub(crate) struct EnrolmentApi {
    core: Handle,
    access: Access,
}

impl EnrolmentApi {
    /// A service on `core`.
    pub(crate) fn new(core: Handle, access: Access) -> Self {
        Self { core, access }
    }

    async fn take(&self, request: v1::EnrolRequest) -> Result<v1::EnrolResponse, Status> {
        let v1::EnrolRequest { token, name, public_key } = request;
        let no_token = |error: InvalidToken| Code::Invitation.status(tonic::Code::InvalidArgument, error.to_string());
        let token: Token = token.parse().map_err(no_token)?;
        check(&public_key)?;
        let secret = match self.access.tls {
            Some(_) => None,
            None => Some(random()?),
        };
        let enrolment = Enrolment {
            id: token.id,
            digest: token.secret.digest(),
            public_key: blake3::hash(&public_key),
            name,
            secret: secret.as_ref().map(Secret::digest),
            valid: WORKER,
        };
        // Before anything is taken from the invitation.
        sign(&self.access, "key", &public_key)?;
        let enrolled = self.core.call(move |state, now, effects| state.enrol(enrolment, now, effects));
        let record = enrolled.await??;
        self.access.register.put(&record);
        let identity: Identity = record.identity.parse().map_err(|_| fault())?;
        let secret = secret.map(|secret| Token { id: record.identity.clone(), secret }.reveal());
        Ok(v1::EnrolResponse {
            certificates: sign(&self.access, identity.name(), &public_key)?,
            identity: record.identity,
            secret: secret.unwrap_or_default(),
            expires_unix_ms: record.expires_unix_ms,
        })
    }
}

#[tonic::async_trait]
impl EnrolmentService for EnrolmentApi {
    async fn enrol(&self, request: Request<v1::EnrolRequest>) -> Result<Response<v1::EnrolResponse>, Status> {
        let who = who(&request)?;
        let request = request.into_inner();
        // What comes before the dot is no secret.
        let id: String = request.token.split('.').next().unwrap_or_default().chars().take(64).collect();
        match self.take(request).await {
            Ok(taken) => {
                let to = taken.identity.clone();
                self.access.audit.note(&who, "Enrol", &to, Ok(taken)).map(Response::new)
            }
            Err(status) => {
                // Whoever guesses doesn't fill the log.
                self.access.audit.denied(&who, &format!("Enrol {id}"), &status);
                Err(status)
            }
        }
    }
}

/// Has the caller's identity last longer.
pub(super) async fn renew(
    core: &Handle,
    access: &Access,
    who: &Who,
    request: v1::RenewRequest,
) -> Result<v1::RenewResponse, Status> {
    let identity: Identity = who.name.parse().map_err(|_| {
        let message = "only an identity that came by an invitation is renewed";
        Code::Denied.status(tonic::Code::FailedPrecondition, message)
    })?;
    check(&request.public_key)?;
    let certificates = sign(access, identity.name(), &request.public_key)?;
    let (name, key) = (who.name.clone(), blake3::hash(&request.public_key));
    let renewed = core.call(move |state, now, effects| state.renew_identity(&name, &key, WORKER, now, effects));
    let record = renewed.await??;
    access.register.put(&record);
    Ok(v1::RenewResponse { certificates, expires_unix_ms: record.expires_unix_ms })
}

fn check(public_key: &[u8]) -> Result<(), Status> {
    match public_key.len() {
        1..=MAX_KEY => Ok(()),
        length => {
            let message = format!("a public key of {length} bytes; one has up to {MAX_KEY}");
            Err(Code::VersionsDiffer.status(tonic::Code::InvalidArgument, message))
        }
    }
}

/// Certificates for a worker, where TLS is spoken.
fn sign(access: &Access, name: &str, public_key: &[u8]) -> Result<Vec<Vec<u8>>, Status> {
    let Some(workers) = &access.workers else { return Ok(Vec::new()) };
    let wrong = |error: crate::AuthorityError| error.code().status(tonic::Code::InvalidArgument, error.to_string());
    let certificate = workers.worker(name, public_key, WORKER).map_err(wrong)?;
    Ok(vec![certificate.to_vec(), workers.certificate().to_vec()])
}

/// A new secret.
pub(super) fn random() -> Result<Secret, Status> {
    Secret::random().ok_or_else(|| Code::NotStarted.status(tonic::Code::Internal, "the system has no random numbers"))
}

fn fault() -> Status {
    Code::Fault.status(tonic::Code::Internal, "an identity of ours is none")
}
