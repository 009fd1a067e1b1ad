//! What operators call.

use std::pin::Pin;
use std::time::Duration;

use deltaconv_proto::code::Code;
use deltaconv_proto::ids::{JobId, TaskId};
use deltaconv_proto::objects::{self, Allowed, Objects};
use deltaconv_proto::tls::Token;
use deltaconv_proto::v1::operator_service_server::OperatorService;
use deltaconv_proto::{keys, v1};
use futures::TryStreamExt;
use tokio_stream::Stream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use super::enrol::random;
use super::logs::{Logs, TaskLogs};
use super::{LogDesk, invalid, job_id, who};
use crate::access::{Access, Who};
use crate::backup::Backups;
use crate::core::Handle;
use crate::observe::{history, report};
use crate::reclaim::Extent;
use crate::schedule::{self, Effects, Explanation, Job, JobState, Now, State};
use crate::term::Terms;
use crate::{plan, reclaim};

/// How often a watched job is looked at.
const WATCH_INTERVAL: Duration = Duration::from_millis(300);
/// Events that are read at a time.
const EVENTS: usize = 500;
/// A message may have 4 MiB; the report of a model with 100 layers and 1000 pictures has a tenth of it.
const MAX_REPORT_BYTES: u64 = 3 << 20;

/// Who gets in, and where jobs may lead.
#[derive(Clone)]
pub(crate) struct Doors {
    pub(crate) access: Access,
    pub(crate) stores: Allowed,
}

/// The operator service.
pub(crate) struct OperatorApi {
    core: Handle,
    terms: Terms,
    logs: LogDesk,
    doors: Doors,
    backups: Backups,
    shutdown: CancellationToken,
}

impl OperatorApi {
    /// A service on `core` whose streams end with `shutdown`.
    pub(crate) fn new(
        core: Handle,
        terms: Terms,
        logs: LogDesk,
        doors: Doors,
        backups: Backups,
        shutdown: CancellationToken,
    ) -> Self {
        Self { core, terms, logs, doors, backups, shutdown }
    }

    /// Writes down who asked for a change of what, and what came of it.
    fn noted<T>(&self, who: &Who, did: &str, to: &str, came: Result<T, Status>) -> Result<T, Status> {
        self.doors.access.audit.note(who, did, &to.chars().take(256).collect::<String>(), came)
    }

    /// The spec that is sent, if every place that it names is allowed.
    fn allowed(&self, spec: Option<v1::JobSpec>) -> Result<v1::JobSpec, Status> {
        let spec = spec_of(spec)?;
        self.doors.stores.check_job(&spec).map_err(not_allowed)?;
        Ok(spec)
    }

    /// Makes the output this coordinator's, where it is no other's or shall be taken over.
    async fn own(&self, url: &str, take_over: bool) -> Result<(), Status> {
        match take_over {
            true => self.terms.take_over(url).await?,
            false => self.terms.own(url).await?,
        };
        Ok(())
    }

    async fn status(&self, id: JobId) -> Result<v1::JobStatus, Status> {
        status(&self.core, id).await
    }

    /// Takes a job.
    #[tracing::instrument(name = "submit", skip_all, fields(job))]
    async fn take(&self, request: v1::SubmitRequest) -> Result<v1::SubmitResponse, Status> {
        let v1::SubmitRequest { spec, take_over } = request;
        let spec = self.allowed(spec)?;
        let wanted = spec.clone();
        let known = self.core.read(move |state, _| {
            state
                .job_writing_to(&wanted.output_url)
                .map(|job| (job.is_running() || job.state == JobState::Done, job.spec == wanted))
        });
        let known = known.await?;
        let plan = plan::plan(&spec).await.map_err(planning_failed)?;
        if known.is_none() {
            plan::claim_output(&spec).await.map_err(planning_failed)?;
        }
        // What is there already, or refused, needs no output.
        if known.is_none_or(|(stands, same)| !stands && same) {
            self.own(&spec.output_url, take_over).await?;
        }
        let (stages, stored_bytes) = (plan.stages.clone(), plan.stored_bytes);
        let submitted = self.core.call(move |state, now, effects| state.submit(spec, plan, now, effects));
        let (job, existed) = submitted.await??;
        tracing::Span::current().record("job", tracing::field::display(&job));
        tracing::info!(existed, "job submitted");
        Ok(v1::SubmitResponse { job_id: job.to_string(), existed, stages, stored_bytes })
    }

    /// Has a job or a task tried again.
    async fn try_again(&self, request: v1::RetryRequest) -> Result<v1::JobStatus, Status> {
        let v1::RetryRequest { id: name, request_id, take_over } = request;
        let named = name.clone();
        // What is over for good is refused, and needs no output.
        let url = self.core.call(move |state, _, _| {
            let job = state.job(&state.job_of(&named)?);
            let goes_on = |job: &&Job| job.is_running() || matches!(job.state, JobState::Failed(_));
            Ok::<_, schedule::Error>(job.filter(goes_on).map(|job| job.spec.output_url.clone()))
        });
        if let Some(url) = url.await?? {
            self.own(&url, take_over).await?;
        }
        let named = name.clone();
        let job = self.core.call(move |state, now, effects| {
            state.once(&request_id, effects, |state, effects| state.retry(&name, now, effects))?;
            state.job_of(&name)
        });
        let job = job.await??;
        tracing::info!(%job, named, "tried again");
        self.status(job).await
    }

    /// Makes a change of a job that is asked for, unless it was made by an earlier call.
    async fn change_job(
        &self,
        id: String,
        request: String,
        what: &str,
        change: impl FnOnce(&mut State, &JobId, Now, &mut Effects) -> Result<(), schedule::Error> + Send + 'static,
    ) -> Result<Response<v1::JobStatus>, Status> {
        let id = job_id(id)?;
        let changed = id.clone();
        let made = self.core.call(move |state, now, effects| {
            state.once(&request, effects, |state, effects| change(state, &changed, now, effects))
        });
        made.await??;
        tracing::info!(job = %id, "job {what}");
        Ok(Response::new(self.status(id).await?))
    }

    /// The same of workers.
    async fn change_workers(
        &self,
        name: String,
        request: String,
        change: impl FnOnce(&mut State, &str, Now, &mut Effects) -> Result<(), schedule::Error> + Send + 'static,
    ) -> Result<Response<v1::ListWorkersResponse>, Status> {
        let workers = self.core.call(move |state, now, effects| {
            state.once(&request, effects, |state, effects| change(state, &name, now, effects))?;
            Ok::<_, schedule::Error>(state.worker_statuses(now))
        });
        Ok(Response::new(v1::ListWorkersResponse { workers: workers.await?? }))
    }
}

async fn status(core: &Handle, id: JobId) -> Result<v1::JobStatus, Status> {
    Ok(core.read(move |state, now| state.status(&id, now)).await??)
}

fn spec_of(spec: Option<v1::JobSpec>) -> Result<v1::JobSpec, Status> {
    let absent = || Code::VersionsDiffer.status(tonic::Code::InvalidArgument, "the request has no spec");
    let mut spec = spec.ok_or_else(absent)?;
    // One spelling of an output, so that two jobs can't write to it under two.
    spec.output_url = spec.output_url.trim_end_matches('/').to_owned();
    Ok(spec)
}

fn planning_failed(error: plan::Error) -> Status {
    error.code().status(tonic::Code::InvalidArgument, error.to_string())
}

#[tonic::async_trait]
impl OperatorService for OperatorApi {
    async fn plan(&self, request: Request<v1::PlanRequest>) -> Result<Response<v1::PlanResponse>, Status> {
        let spec = self.allowed(request.into_inner().spec)?;
        let plan = plan::plan(&spec).await.map_err(planning_failed)?;
        Ok(Response::new(v1::PlanResponse { plan: Some(plan) }))
    }

    async fn submit(&self, request: Request<v1::SubmitRequest>) -> Result<Response<v1::SubmitResponse>, Status> {
        let who = who(&request)?;
        let request = request.into_inner();
        let output = request.spec.as_ref().map(|spec| spec.output_url.clone()).unwrap_or_default();
        let submitted = self.take(request).await;
        let to = submitted.as_ref().map_or(output, |submitted| submitted.job_id.clone());
        self.noted(&who, "Submit", &to, submitted).map(Response::new)
    }

    async fn list_jobs(&self, _: Request<v1::ListJobsRequest>) -> Result<Response<v1::ListJobsResponse>, Status> {
        let jobs = self.core.read(|state, _| state.summaries()).await?;
        Ok(Response::new(v1::ListJobsResponse { jobs }))
    }

    async fn get_job(&self, request: Request<v1::GetJobRequest>) -> Result<Response<v1::JobStatus>, Status> {
        let id = job_id(request.into_inner().job_id)?;
        Ok(Response::new(self.core.read(move |state, now| state.status_with_history(&id, now)).await??))
    }

    type WatchJobStream = Pin<Box<dyn Stream<Item = Result<v1::JobStatus, Status>> + Send>>;

    async fn watch_job(&self, request: Request<v1::WatchJobRequest>) -> Result<Response<Self::WatchJobStream>, Status> {
        let id = job_id(request.into_inner().job_id)?;
        let named = id.clone();
        let first = self.core.read(move |state, now| state.status_with_history(&named, now)).await??;
        let (core, shutdown) = (self.core.clone(), self.shutdown.clone());
        let stream = futures::stream::unfold((Some(first), None), move |(next, last)| {
            let (core, shutdown, id) = (core.clone(), shutdown.clone(), id.clone());
            async move {
                if let Some(status) = next {
                    return Some((Ok(status.clone()), (None, Some(status))));
                }
                let last = last?;
                if has_ended(&last) {
                    return None;
                }
                loop {
                    tokio::select! {
                        () = shutdown.cancelled() => return None,
                        () = tokio::time::sleep(WATCH_INTERVAL) => {}
                    }
                    match status(&core, id.clone()).await {
                        // NaN differs from itself, so a layer without a figure counts as a change; that is harmless.
                        Ok(status) if status == last => {}
                        Ok(status) => return Some((Ok(status.clone()), (None, Some(status)))),
                        Err(error) => return Some((Err(error), (None, None))),
                    }
                }
            }
        });
        Ok(Response::new(Box::pin(stream)))
    }

    async fn get_report(
        &self,
        request: Request<v1::GetReportRequest>,
    ) -> Result<Response<v1::GetReportResponse>, Status> {
        let id = job_id(request.into_inner().job_id)?;
        let summary = self.status(id.clone()).await?.summary.unwrap_or_default();
        if summary.state != "done" {
            let state = summary.state;
            let message = format!("job {id} is {state}, and a report is of one that is done");
            return Err(Code::NoReport.status(tonic::Code::FailedPrecondition, message));
        }
        let url = &summary.output_url;
        let failed = |code: Code, error: String| {
            code.status(tonic::Code::Unavailable, format!("the report of job {id} can't be read: {error}"))
        };
        let of_store = |error: objects::Error| failed(error.code(), error.to_string());
        let objects = Objects::open(url).map_err(of_store)?;
        let json = objects.get(&format!("{}/{}", keys::REPORT, report::JSON), MAX_REPORT_BYTES).await;
        let json = json.map_err(of_store)?;
        let json = String::from_utf8(json.to_vec());
        let json = json.map_err(|error| failed(Code::EvaluationUnreadable, error.to_string()))?;
        Ok(Response::new(v1::GetReportResponse { json }))
    }

    async fn cancel_job(&self, request: Request<v1::CancelJobRequest>) -> Result<Response<v1::JobStatus>, Status> {
        let who = who(&request)?;
        let v1::CancelJobRequest { job_id: id, request_id } = request.into_inner();
        let to = id.clone();
        let changed = self
            .change_job(id, request_id, "cancelled", |state, id, now, effects| state.cancel(id, now, effects))
            .await;
        self.noted(&who, "CancelJob", &to, changed)
    }

    async fn pause_job(&self, request: Request<v1::PauseJobRequest>) -> Result<Response<v1::JobStatus>, Status> {
        let who = who(&request)?;
        let v1::PauseJobRequest { job_id: id, request_id } = request.into_inner();
        let to = id.clone();
        let changed = self.change_job(id, request_id, "paused", |state, id, _, effects| state.pause(id, effects)).await;
        self.noted(&who, "PauseJob", &to, changed)
    }

    async fn resume_job(&self, request: Request<v1::ResumeJobRequest>) -> Result<Response<v1::JobStatus>, Status> {
        let who = who(&request)?;
        let v1::ResumeJobRequest { job_id: id, request_id } = request.into_inner();
        let to = id.clone();
        let changed =
            self.change_job(id, request_id, "resumed", |state, id, now, effects| state.resume(id, now, effects)).await;
        self.noted(&who, "ResumeJob", &to, changed)
    }

    async fn retry(&self, request: Request<v1::RetryRequest>) -> Result<Response<v1::JobStatus>, Status> {
        let who = who(&request)?;
        let request = request.into_inner();
        let to = request.id.clone();
        let retried = self.try_again(request).await;
        self.noted(&who, "Retry", &to, retried).map(Response::new)
    }

    async fn explain(&self, request: Request<v1::ExplainRequest>) -> Result<Response<v1::ExplainResponse>, Status> {
        let name = request.into_inner().id;
        let explained = self.core.read(move |state, now| state.explain(&name, now)).await??;
        let Explanation { state, reason, remedy } = explained;
        Ok(Response::new(v1::ExplainResponse { state: state.into(), reason, remedy }))
    }

    async fn drain_worker(
        &self,
        request: Request<v1::DrainWorkerRequest>,
    ) -> Result<Response<v1::ListWorkersResponse>, Status> {
        let who = who(&request)?;
        let v1::DrainWorkerRequest { worker, request_id } = request.into_inner();
        let to = worker.clone();
        let changed =
            self.change_workers(worker, request_id, |state, name, _, effects| state.drain(name, effects)).await;
        self.noted(&who, "DrainWorker", &to, changed)
    }

    async fn return_worker(
        &self,
        request: Request<v1::ReturnWorkerRequest>,
    ) -> Result<Response<v1::ListWorkersResponse>, Status> {
        let who = who(&request)?;
        let v1::ReturnWorkerRequest { worker, request_id } = request.into_inner();
        let to = worker.clone();
        let changed = self
            .change_workers(worker, request_id, |state, name, now, effects| state.give_again(name, now, effects))
            .await;
        self.noted(&who, "ReturnWorker", &to, changed)
    }

    async fn collect_garbage(
        &self,
        request: Request<v1::CollectGarbageRequest>,
    ) -> Result<Response<v1::CollectGarbageResponse>, Status> {
        let who = who(&request)?;
        let v1::CollectGarbageRequest { job_id: id, dry_run } = request.into_inner();
        let job = job_id(id)?;
        if dry_run {
            let tally = reclaim::reclaim(&self.core, &job, Extent::AndLogs, true).await?;
            return Ok(Response::new(tally.message()));
        }
        let collected = reclaim::collect(&self.core, &self.terms, &job, Extent::AndLogs).await.map_err(Status::from);
        let tally = self.noted(&who, "CollectGarbage", job.as_str(), collected)?;
        let (objects, bytes) = tally.total();
        tracing::info!(%job, objects, bytes, "garbage collected");
        Ok(Response::new(tally.message()))
    }

    type EventsStream = Pin<Box<dyn Stream<Item = Result<v1::Event, Status>> + Send>>;

    async fn events(&self, request: Request<v1::EventsRequest>) -> Result<Response<Self::EventsStream>, Status> {
        let v1::EventsRequest { after, job_id: id, follow } = request.into_inner();
        let job = if id.is_empty() { None } else { Some(job_id(id)?) };
        let mut stored = Vec::new();
        if let Some(job) = job.clone() {
            let summary = self.status(job.clone()).await?.summary.unwrap_or_default();
            if summary.state != "running" {
                stored = stored_events(&summary.output_url, &job).await?;
                stored.retain(|event| event.sequence > after);
            }
        }
        let (core, shutdown) = (self.core.clone(), self.shutdown.clone());
        let pieces = futures::stream::try_unfold((after, true, stored), move |(after, goes_on, stored)| {
            let (core, shutdown, job) = (core.clone(), shutdown.clone(), job.clone());
            async move {
                if !goes_on {
                    return Ok::<_, Status>(None);
                }
                loop {
                    let job = job.clone();
                    let look =
                        move |state: &State, _| (state.events_after(after, job.as_ref(), EVENTS), state.last_event());
                    let (events, last) = core.read(look).await.map_err(Status::from)?;
                    let goes_on = follow || events.len() == EVENTS;
                    if !events.is_empty() || !stored.is_empty() || !goes_on {
                        let after = events.last().map_or(last, |event| event.sequence);
                        return Ok(Some((history::merged(stored, events), (after, goes_on, Vec::new()))));
                    }
                    tokio::select! {
                        () = shutdown.cancelled() => return Ok(None),
                        () = tokio::time::sleep(WATCH_INTERVAL) => {}
                    }
                }
            }
        });
        let events = pieces.map_ok(|events| futures::stream::iter(events.into_iter().map(Ok))).try_flatten();
        Ok(Response::new(Box::pin(events)))
    }

    type LogsStream = Logs;

    async fn logs(&self, request: Request<v1::LogsRequest>) -> Result<Response<Self::LogsStream>, Status> {
        let v1::LogsRequest { task_id, follow } = request.into_inner();
        let task = TaskId::new(task_id).map_err(invalid)?;
        let (core, desk, shutdown) = (self.core.clone(), self.logs.clone(), self.shutdown.clone());
        Ok(Response::new(TaskLogs::stream(core, desk, task, follow, shutdown).await?))
    }

    async fn backup(&self, request: Request<v1::BackupRequest>) -> Result<Response<v1::BackupResponse>, Status> {
        let who = who(&request)?;
        let request = request.into_inner();
        let to = request.url.clone();
        let taken = async {
            if !to.is_empty() {
                self.doors.stores.check(&to).map_err(not_allowed)?;
            }
            Ok::<_, Status>(self.backups.take(request).await?)
        };
        self.noted(&who, "Backup", &to, taken.await).map(Response::new)
    }

    async fn list_workers(
        &self,
        _: Request<v1::ListWorkersRequest>,
    ) -> Result<Response<v1::ListWorkersResponse>, Status> {
        let workers = self.core.read(|state, now| state.worker_statuses(now)).await?;
        Ok(Response::new(v1::ListWorkersResponse { workers }))
    }

    async fn demand(&self, _: Request<v1::DemandRequest>) -> Result<Response<v1::DemandResponse>, Status> {
        Ok(Response::new(self.core.read(|state, _| state.demand()).await?))
    }

    async fn invite(&self, request: Request<v1::InviteRequest>) -> Result<Response<v1::InviteResponse>, Status> {
        let who = who(&request)?;
        let v1::InviteRequest { valid_ms, uses } = request.into_inner();
        let secret = random()?;
        let (digest, by) = (secret.digest(), who.name.clone());
        let invited = self.core.call(move |state, now, effects| {
            state.invite(digest, (uses, Duration::from_millis(valid_ms)), &by, now, effects)
        });
        let invited = async { Ok::<_, Status>(invited.await??) }.await;
        let id = invited.as_ref().map(|invitation| invitation.id.clone()).unwrap_or_default();
        let invitation = self.noted(&who, "Invite", &id, invited)?;
        let authority = self.doors.access.tls.as_ref().map(|tls| tls.authority().0.to_vec()).unwrap_or_default();
        let token = Token { id, secret }.reveal();
        Ok(Response::new(v1::InviteResponse { token, authority, invitation: Some(invitation) }))
    }

    async fn list_access(&self, _: Request<v1::ListAccessRequest>) -> Result<Response<v1::ListAccessResponse>, Status> {
        Ok(Response::new(access(&self.core).await?))
    }

    async fn revoke(&self, request: Request<v1::RevokeRequest>) -> Result<Response<v1::ListAccessResponse>, Status> {
        let who = who(&request)?;
        let id = request.into_inner().id;
        let (revoked, by) = (id.clone(), who.name.clone());
        let change = self.core.call(move |state, now, effects| {
            state.revoke(&revoked, &by, now, effects)?;
            let record = state.identity_records().find(|record| record.identity == revoked).cloned();
            Ok::<_, schedule::Error>(record)
        });
        let changed = async { Ok::<_, Status>(change.await??) }.await;
        if let Some(record) = self.noted(&who, "Revoke", &id, changed)? {
            self.doors.access.register.put(&record);
        }
        Ok(Response::new(access(&self.core).await?))
    }
}

fn not_allowed(error: objects::Error) -> Status {
    error.code().status(tonic::Code::PermissionDenied, error.to_string())
}

/// Who was invited, and who came.
async fn access(core: &Handle) -> Result<v1::ListAccessResponse, Status> {
    let listed = core.read(|state, _| (state.invitations(), state.identities())).await?;
    let (invitations, identities) = listed;
    Ok(v1::ListAccessResponse { invitations, identities })
}

/// What happened to a job that is over, as far as it lies with its report.
async fn stored_events(url: &str, job: &JobId) -> Result<Vec<v1::Event>, Status> {
    let read = async { history::read(&Objects::open(url)?, job).await };
    read.await.map_err(|error| {
        let message = format!("the events of job {job} can't be read: {error}");
        error.code().status(tonic::Code::Unavailable, message)
    })
}

fn has_ended(status: &v1::JobStatus) -> bool {
    status.summary.as_ref().is_none_or(|summary| summary.state != "running")
}
