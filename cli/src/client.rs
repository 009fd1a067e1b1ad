//! Calls to the coordinator, with errors that people can act on.

use std::error::Error as _;
use std::time::{Duration, SystemTime};

use deltaconv_proto::protocol::{self, Caller, Handshake};
use deltaconv_proto::tls::{self, Certificate, Connector, Credentials, SocketError};
use deltaconv_proto::v1::operator_service_client::OperatorServiceClient;
use deltaconv_proto::{code, utc, v1};
use tonic::transport::Channel;
use tonic::{Code, Request, Response, Status};

use crate::args::Connection;
use crate::error::Error;
use crate::output;

/// A coordinator that is there answers a connection in much less.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Planning reads a teacher's headers from wherever it lies.
const CALL_TIMEOUT: Duration = Duration::from_secs(120);
/// A watched coordinator whose machine is gone is noticed after this.
const KEEP_ALIVE: Duration = Duration::from_secs(10);
/// Seconds before the end of one's certificate at which it is said.
const SOON: i64 = 30 * 24 * 3600;

/// A connection to one coordinator.
pub(crate) struct Client {
    url: String,
    service: OperatorServiceClient<Handshake<Channel>>,
}

impl Client {
    /// Connects. Fails at once if nobody answers.
    pub(crate) async fn connect(to: &Connection) -> Result<Self, Error> {
        let service = OperatorServiceClient::new(Handshake::new(channel(to).await?, Caller::CommandLine));
        Ok(Self { url: to.coordinator.clone(), service })
    }

    pub(crate) async fn invite(&mut self, request: v1::InviteRequest) -> Result<v1::InviteResponse, Error> {
        let answer = self.service.invite(self::request(request)).await;
        self.answer(answer)
    }

    pub(crate) async fn access(&mut self) -> Result<v1::ListAccessResponse, Error> {
        let answer = self.service.list_access(request(v1::ListAccessRequest {})).await;
        self.answer(answer)
    }

    /// Of an invitation or an identity.
    pub(crate) async fn revoke(&mut self, id: &str) -> Result<v1::ListAccessResponse, Error> {
        let answer = self.service.revoke(request(v1::RevokeRequest { id: id.into() })).await;
        self.answer(answer)
    }

    pub(crate) async fn plan(&mut self, spec: v1::JobSpec) -> Result<v1::JobPlan, Error> {
        let answer = self.service.plan(request(v1::PlanRequest { spec: Some(spec) })).await;
        self.answer(answer)?.plan.ok_or_else(|| Error::Incomplete { url: self.url.clone(), part: "plan" })
    }

    /// The coordinator's time in whole seconds, as its answers carry it.
    pub(crate) async fn date(&mut self) -> Result<Option<SystemTime>, Error> {
        let answer = self.service.list_jobs(request(v1::ListJobsRequest {})).await;
        let answer = answer.map_err(|status| failure(&self.url, &status))?;
        let date = answer.metadata().get("date").and_then(|date| date.to_str().ok());
        Ok(date.and_then(|date| httpdate::parse_http_date(date).ok()))
    }

    /// With `take_over` also where another coordinator works on the output.
    pub(crate) async fn submit(&mut self, spec: v1::JobSpec, take_over: bool) -> Result<v1::SubmitResponse, Error> {
        let message = v1::SubmitRequest { spec: Some(spec), take_over };
        let answer = self.service.submit(request(message)).await;
        self.answer(answer)
    }

    pub(crate) async fn jobs(&mut self) -> Result<v1::ListJobsResponse, Error> {
        let answer = self.service.list_jobs(request(v1::ListJobsRequest {})).await;
        self.answer(answer)
    }

    pub(crate) async fn job(&mut self, job_id: &str) -> Result<v1::JobStatus, Error> {
        let answer = self.service.get_job(request(v1::GetJobRequest { job_id: job_id.into() })).await;
        self.answer(answer)
    }

    /// report.json of a job that is done.
    pub(crate) async fn report(&mut self, job_id: &str) -> Result<String, Error> {
        let answer = self.service.get_report(request(v1::GetReportRequest { job_id: job_id.into() })).await;
        Ok(self.answer(answer)?.json)
    }

    pub(crate) async fn cancel(&mut self, job_id: &str) -> Result<v1::JobStatus, Error> {
        let message = v1::CancelJobRequest { job_id: job_id.into(), request_id: request_id() };
        let answer = self.service.cancel_job(request(message)).await;
        self.answer(answer)
    }

    pub(crate) async fn pause(&mut self, job_id: &str) -> Result<v1::JobStatus, Error> {
        let message = v1::PauseJobRequest { job_id: job_id.into(), request_id: request_id() };
        let answer = self.service.pause_job(request(message)).await;
        self.answer(answer)
    }

    pub(crate) async fn resume(&mut self, job_id: &str) -> Result<v1::JobStatus, Error> {
        let message = v1::ResumeJobRequest { job_id: job_id.into(), request_id: request_id() };
        let answer = self.service.resume_job(request(message)).await;
        self.answer(answer)
    }

    /// Of a job, or of one of its tasks; with `take_over` also where another coordinator works on the output.
    pub(crate) async fn retry(&mut self, id: &str, take_over: bool) -> Result<v1::JobStatus, Error> {
        let message = v1::RetryRequest { id: id.into(), request_id: request_id(), take_over };
        let answer = self.service.retry(request(message)).await;
        self.answer(answer)
    }

    /// Of a job, or of one of its tasks.
    pub(crate) async fn explain(&mut self, id: &str) -> Result<v1::ExplainResponse, Error> {
        let answer = self.service.explain(request(v1::ExplainRequest { id: id.into() })).await;
        self.answer(answer)
    }

    /// Of workers by their id, name or machine.
    pub(crate) async fn drain(&mut self, worker: &str) -> Result<v1::ListWorkersResponse, Error> {
        let message = v1::DrainWorkerRequest { worker: worker.into(), request_id: request_id() };
        let answer = self.service.drain_worker(request(message)).await;
        self.answer(answer)
    }

    /// Of workers by their id, name or machine.
    pub(crate) async fn give_again(&mut self, worker: &str) -> Result<v1::ListWorkersResponse, Error> {
        let message = v1::ReturnWorkerRequest { worker: worker.into(), request_id: request_id() };
        let answer = self.service.return_worker(request(message)).await;
        self.answer(answer)
    }

    pub(crate) async fn collect_garbage(
        &mut self,
        job_id: &str,
        dry_run: bool,
    ) -> Result<v1::CollectGarbageResponse, Error> {
        // No time limit: it takes as long as there are objects.
        let request = v1::CollectGarbageRequest { job_id: job_id.into(), dry_run };
        let answer = self.service.collect_garbage(request).await;
        self.answer(answer)
    }

    /// Has the coordinator write what it must not forget to a store.
    pub(crate) async fn backup(&mut self, request: v1::BackupRequest) -> Result<v1::BackupResponse, Error> {
        // No time limit: it takes as long as there are records.
        let answer = self.service.backup(request).await;
        self.answer(answer)
    }

    pub(crate) async fn workers(&mut self) -> Result<v1::ListWorkersResponse, Error> {
        let answer = self.service.list_workers(request(v1::ListWorkersRequest {})).await;
        self.answer(answer)
    }

    /// How much work there is for workers.
    pub(crate) async fn demand(&mut self) -> Result<v1::DemandResponse, Error> {
        let answer = self.service.demand(request(v1::DemandRequest {})).await;
        self.answer(answer)
    }

    /// The job's status now and at each change.
    pub(crate) async fn watch(&mut self, job_id: &str) -> Result<Statuses, Error> {
        // No time limit: the stream lives as long as the job.
        let answer = self.service.watch_job(v1::WatchJobRequest { job_id: job_id.into() }).await;
        Ok(Stream { url: self.url.clone(), stream: self.answer(answer)? })
    }

    /// What happened after `request.after`, and with `request.follow` what happens from now on.
    pub(crate) async fn events(&mut self, request: v1::EventsRequest) -> Result<Stream<v1::Event>, Error> {
        // No time limit: the stream lives as long as it is followed.
        let answer = self.service.events(request).await;
        Ok(Stream { url: self.url.clone(), stream: self.answer(answer)? })
    }

    /// What was said of a task, and with `request.follow` what is said until it is over.
    pub(crate) async fn logs(&mut self, request: v1::LogsRequest) -> Result<Stream<v1::TaskLog>, Error> {
        // No time limit: the stream lives as long as it is followed.
        let answer = self.service.logs(request).await;
        Ok(Stream { url: self.url.clone(), stream: self.answer(answer)? })
    }

    fn answer<T>(&self, answer: Result<Response<T>, Status>) -> Result<T, Error> {
        answer.map(Response::into_inner).map_err(|status| failure(&self.url, &status))
    }
}

/// What the coordinator sends for as long as somebody listens.
pub(crate) struct Stream<T> {
    url: String,
    stream: tonic::Streaming<T>,
}

/// The statuses of one job.
pub(crate) type Statuses = Stream<v1::JobStatus>;

impl<T> Stream<T> {
    /// The next of them. A stream that ends is a coordinator that leaves.
    pub(crate) async fn next(&mut self) -> Result<T, Error> {
        let next = self.next_or_end().await?;
        next.ok_or_else(|| Error::Unreachable { url: self.url.clone(), reason: "it ended the stream".into() })
    }

    /// The next of them, of a stream that may end.
    pub(crate) async fn next_or_end(&mut self) -> Result<Option<T>, Error> {
        self.stream.message().await.map_err(|status| failure(&self.url, &status))
    }
}

/// A connection. Fails at once if nobody answers, or whoever does is not trusted.
pub(crate) async fn channel(to: &Connection) -> Result<Channel, Error> {
    let url = &to.coordinator;
    let tls = |error: tls::Error| Error::Credentials { message: error.to_string(), code: error.code() };
    let endpoint = tls::endpoint(url).map_err(|error| match error {
        tls::Error::Address { url, reason } => Error::CoordinatorUrl { url, reason },
        error => tls(error),
    })?;
    let credentials = match &to.credentials {
        Some(path) => Credentials::read(path).map_err(tls)?,
        None => Credentials::none().map_err(tls)?,
    };
    if let Some(certificate) = credentials.certificate() {
        warn_of_end(certificate);
    }
    let endpoint = endpoint.http2_keep_alive_interval(KEEP_ALIVE).keep_alive_timeout(KEEP_ALIVE);
    let connector = Connector::new(credentials, CONNECT_TIMEOUT).plaintext(to.allow_plaintext);
    let connected = endpoint.connect_with_connector(connector).await;
    connected.map_err(|error| not_connected(url, &error))
}

/// Says once that a certificate is over soon.
fn warn_of_end(certificate: &Certificate) {
    static SAID: std::sync::Once = std::sync::Once::new();
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs() as i64;
    if certificate.not_after - now < SOON {
        let end = utc(certificate.not_after.max(0) as u64 * 1000);
        SAID.call_once(|| {
            output::say(&format!("your certificate ends at {end}: have another made with `deltaconv certs issue`"))
        });
    }
}

/// Tells one change that is asked for from any other, also from one by another process at the same time.
fn request_id() -> String {
    use std::hash::{BuildHasher, Hasher, RandomState};
    let random = || RandomState::new().build_hasher().finish();
    format!("{:016x}{:016x}", random(), random())
}

fn request<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(CALL_TIMEOUT);
    request
}

fn not_connected(url: &str, error: &(dyn std::error::Error + 'static)) -> Error {
    match SocketError::of(error) {
        Some(said @ SocketError::Plaintext(_)) => Error::PlainCalls { url: url.into(), reason: said.to_string() },
        Some(said) if said.is_untrusted() => Error::Untrusted { url: url.into(), reason: said.to_string() },
        Some(said) => Error::Unreachable { url: url.into(), reason: said.to_string() },
        None => unreachable(url, error),
    }
}

fn unreachable(url: &str, error: &(dyn std::error::Error + 'static)) -> Error {
    Error::Unreachable { url: url.into(), reason: root_cause(error) }
}

/// The last cause says what happened ("Connection refused"); those above it only say where in the client.
fn root_cause(error: &(dyn std::error::Error + 'static)) -> String {
    let mut last = error;
    while let Some(cause) = last.source() {
        last = cause;
    }
    last.to_string()
}

/// Tells a coordinator that refuses, in its own words, from one that could not be asked.
fn failure(url: &str, status: &Status) -> Error {
    // Only a status that was made on this side has a cause.
    if let Some(cause) = status.source() {
        return unreachable(url, cause);
    }
    let named = code::Code::of_status(status);
    let is_away = named.is_none_or(|named| named == code::Code::Stopping);
    match status.code() {
        Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled if is_away => {
            Error::Unreachable { url: url.into(), reason: status.message().into() }
        }
        Code::Unimplemented => Error::Unreachable {
            url: url.into(),
            reason: match status.metadata().get(protocol::RELEASE_METADATA).and_then(|release| release.to_str().ok()) {
                Some(release) => {
                    format!("it is deltaconv {release}, and does not know this call of deltaconv {}", protocol::RELEASE)
                }
                None => format!("what listens there does not know this call ({})", status.message()),
            },
        },
        of_call => {
            let message = match status.message() {
                "" => format!("{url} answered: {of_call}"),
                message => message.to_owned(),
            };
            Error::Refused { message, code: named.unwrap_or(code::Code::Refused) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_has_the_code_that_its_status_carries() {
        let code_of = |status: &Status| match failure("http://host:1", status) {
            Error::Refused { code, .. } => Some(code),
            _ => None,
        };
        let full = code::Code::StateUnwritable.status(Code::ResourceExhausted, "no space left");
        assert_eq!(code_of(&full), Some(code::Code::StateUnwritable));
        // Somebody answered, so that nobody looks for a coordinator that is away.
        let unread = code::Code::NotFound.status(Code::Unavailable, "the report can't be read");
        assert_eq!(code_of(&unread), Some(code::Code::NotFound));
        assert_eq!(code_of(&Status::internal("of an earlier version")), Some(code::Code::Refused));
        assert_eq!(code_of(&code::Code::Stopping.status(Code::Unavailable, "try again")), None);
        assert_eq!(code_of(&Status::unavailable("try again")), None);
    }
}
