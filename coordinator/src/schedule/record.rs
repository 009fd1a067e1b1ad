//! Tasks, jobs and workers as durable records, and back.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use deltaconv_proto::ids::{AttemptId, JobId, WorkerId};
use deltaconv_proto::protocol::Version;
use deltaconv_proto::v1;

use super::bounded::{FAILURES, keep_last};
use super::task::Failed;
use super::{Error, Job, JobState, Leased, Now, Phase, Task, Worker};

impl Task {
    /// The durable part of the task.
    pub(super) fn record(&self) -> v1::TaskRecord {
        let spare = self.leases().get(1);
        v1::TaskRecord {
            task_id: self.id.to_string(),
            attempts: self.attempts,
            failures: 0,
            last_failure: self.last_failure.clone(),
            lease: self.leased().map(|leased| self.message(leased)),
            worker_id: self.leased().map(|leased| leased.worker.to_string()).unwrap_or_default(),
            checkpoint: self.checkpoint.as_deref().cloned(),
            shards: Vec::new(),
            written: self.shards.record(),
            synthesised: self.synthesised.as_deref().cloned(),
            distilled: self.distilled.as_deref().cloned(),
            finetuned: self.finetuned.as_deref().cloned(),
            evaluated: self.evaluated.as_deref().cloned(),
            busy_seconds: self.busy_seconds,
            gpu_seconds: self.gpu_seconds,
            samples: self.samples,
            recaptures: self.recaptures,
            committed: self.is_committed(),
            failed: self.failures.iter().map(Failed::record).collect(),
            lost: self.lost,
            quarantined: self.is_quarantined(),
            spare: spare.map(|leased| self.message(leased)),
            spare_worker_id: spare.map(|leased| leased.worker.to_string()).unwrap_or_default(),
        }
    }

    /// Takes up where `record` stood; leases last until `deadline`. `names` are those of the job's layers.
    pub(super) fn restore(
        &mut self,
        record: v1::TaskRecord,
        names: &[Arc<str>],
        now: Now,
        deadline: Duration,
    ) -> Result<(), Error> {
        let leased = |lease: v1::Lease, worker: String| -> Result<Leased, Error> {
            Ok(Leased {
                attempt: AttemptId::new(lease.attempt_id)?,
                epoch: lease.epoch,
                worker: WorkerId::new(worker)?,
                since: now.monotonic,
                deadline,
                held: None,
                from: 0,
                began_at: None,
                progress: None,
                verifying: false,
            })
        };
        let first = record.lease.map(|lease| leased(lease, record.worker_id)).transpose()?;
        let spare = record.spare.map(|lease| leased(lease, record.spare_worker_id)).transpose()?;
        let leases: Vec<Leased> = first.into_iter().chain(spare).collect();
        self.phase = match () {
            () if record.committed => Phase::Committed,
            () if record.quarantined => Phase::Quarantined,
            () if leases.is_empty() => Phase::Pending,
            () => Phase::Leased(leases),
        };
        self.attempts = record.attempts;
        // Format 2 had their count alone, and what the last one said.
        let counted = Failed { node: String::new(), message: record.last_failure.clone() };
        self.failures = vec![counted; (record.failures as usize).min(FAILURES)];
        self.failures.extend(record.failed.into_iter().map(Failed::from_record));
        keep_last(&mut self.failures);
        self.lost = record.lost;
        self.last_failure = record.last_failure;
        self.recaptures = record.recaptures;
        self.checkpoint = record.checkpoint.map(Box::new);
        let id = self.id.clone();
        let foreign = |key: String| Error::Record(format!("task {id} with a shard at {key:?}"));
        self.take_shards(record.shards, names).map_err(foreign)?;
        let id = &self.id;
        let unknown = || Error::Record(format!("task {id} with shards of no layers"));
        self.shards.restore(record.written, names.len()).ok_or_else(unknown)?;
        self.synthesised = record.synthesised.map(Box::new);
        self.distilled = record.distilled.map(Box::new);
        self.finetuned = record.finetuned.map(Box::new);
        self.evaluated = record.evaluated.map(Box::new);
        self.busy_seconds = record.busy_seconds;
        self.gpu_seconds = record.gpu_seconds;
        self.samples = record.samples;
        Ok(())
    }
}

impl Failed {
    fn record(&self) -> v1::TaskFailure {
        v1::TaskFailure { node: self.node.clone(), message: self.message.clone() }
    }

    fn from_record(v1::TaskFailure { node, message }: v1::TaskFailure) -> Self {
        Self { node, message }
    }
}

impl Job {
    /// The durable part of the job.
    pub(super) fn record(&self) -> v1::JobRecord {
        v1::JobRecord {
            job_id: self.id.to_string(),
            spec: Some(self.spec.clone()),
            plan: Some(self.plan.clone()),
            created_unix_ms: self.created_unix_ms,
            finished_unix_ms: self.finished_unix_ms,
            state: self.state.name().into(),
            reason: self.state.reason().into(),
            stages: self.stages.clone(),
            sequence: self.sequence,
            output: self.output.clone(),
            teacher_digest: self.teacher_digest.clone(),
            figures: self.figures.clone(),
            reclaimed: self.reclaimed,
            paused: self.paused,
            retries: self.retries,
        }
    }

    /// The job that `record` describes.
    pub(super) fn from_record(record: v1::JobRecord) -> Result<(Self, Vec<Task>), Error> {
        let id = JobId::new(record.job_id)?;
        let lacking = |what: &str| Error::Record(format!("job {id} without {what}"));
        let spec = record.spec.ok_or_else(|| lacking("a spec"))?;
        let plan = record.plan.ok_or_else(|| lacking("a plan"))?;
        let state = JobState::from_name(&record.state, record.reason)
            .ok_or_else(|| Error::Record(format!("job {id} in state {:?}", record.state)))?;
        let (mut job, tasks) = Self::new(id, spec, plan, record.sequence, record.created_unix_ms)?;
        for (times, recorded) in job.stages.iter_mut().zip(record.stages) {
            *times = recorded;
        }
        job.state = state;
        job.finished_unix_ms = record.finished_unix_ms;
        job.output = record.output;
        job.teacher_digest = record.teacher_digest;
        job.figures = record.figures;
        job.reclaimed = record.reclaimed;
        job.paused = record.paused;
        job.retries = record.retries;
        Ok((job, tasks))
    }
}

impl Worker {
    /// The durable part of the worker.
    pub(super) fn record(&self) -> v1::WorkerRecord {
        v1::WorkerRecord {
            worker_id: self.id.to_string(),
            name: self.name.clone(),
            device: Some(self.device.clone()),
            version: self.version.clone(),
            node: self.node.clone(),
            drained: self.drained,
            identity: self.identity.clone(),
            protocol: self.protocol.to_string(),
        }
    }

    /// The worker that `record` describes, last heard of now.
    pub(super) fn from_record(record: v1::WorkerRecord, now: Now) -> Result<Self, Error> {
        let id = WorkerId::new(record.worker_id)?;
        Ok(Self {
            // Format 2 knew no machines.
            node: if record.node.is_empty() { id.to_string() } else { record.node },
            id,
            name: record.name,
            identity: record.identity,
            device: record.device.unwrap_or_default(),
            version: record.version,
            protocol: Version::said(&record.protocol),
            last_seen: now.monotonic,
            draining: false,
            drained: record.drained,
            load: None,
            leases: BTreeSet::new(),
        })
    }
}
