//! Calls to the coordinator, with errors that people can act on.

use std::error::Error as _;
use std::time::{Duration, SystemTime};

use deltaconv_proto::v1::operator_service_client::OperatorServiceClient;
use deltaconv_proto::{code, v1};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Response, Status};

use crate::error::{Error, explain};

/// A coordinator that is there answers a connection in much less.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Planning reads a teacher's headers from wherever it lies.
const CALL_TIMEOUT: Duration = Duration::from_secs(120);
/// A watched coordinator whose machine is gone is noticed after this.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// A connection to one coordinator.
pub(crate) struct Client {
    url: String,
    service: OperatorServiceClient<Channel>,
}

impl Client {
    /// Connects. Fails at once if nobody answers.
    pub(crate) async fn connect(url: &str) -> Result<Self, Error> {
        let endpoint = endpoint(url)?;
        let channel = endpoint.connect().await.map_err(|error| unreachable(url, &error))?;
        Ok(Self { url: url.into(), service: OperatorServiceClient::new(channel) })
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

fn endpoint(url: &str) -> Result<Endpoint, Error> {
    let refused = |reason: &str| Error::CoordinatorUrl { url: url.into(), reason: reason.into() };
    let parsed = url::Url::parse(url).map_err(|error| refused(&error.to_string()))?;
    match parsed.scheme() {
        "http" if parsed.has_host() => {}
        "https" => return Err(refused("this version speaks http only")),
        _ => return Err(refused("it has no http://")),
    }
    let endpoint = Endpoint::from_shared(url.to_owned()).map_err(|error| refused(&explain(&error)))?;
    Ok(endpoint.connect_timeout(CONNECT_TIMEOUT).http2_keep_alive_interval(KEEP_ALIVE).keep_alive_timeout(KEEP_ALIVE))
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
            reason: format!("what listens there does not know this call ({})", status.message()),
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
