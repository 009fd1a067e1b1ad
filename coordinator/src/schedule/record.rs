//! Tasks, jobs and workers as durable records, and back.

use std::time::Duration;

use deltaconv_proto::ids::{AttemptId, JobId, WorkerId};
use deltaconv_proto::v1;

use super::{Error, Job, JobState, Leased, Now, Phase, Task, Worker};

impl Task {
    /// The durable part of the task.
    pub(super) fn record(&self) -> v1::TaskRecord {
        let shards = self.shards.iter();
        v1::TaskRecord {
            task_id: self.id.to_string(),
            attempts: self.attempts,
            failures: self.failures,
            last_failure: self.last_failure.clone(),
            lease: self.lease(),
            worker_id: self.leased().map(|l| l.worker.to_string()).unwrap_or_default(),
            checkpoint: self.checkpoint.clone(),
            shards: shards.map(|(layer, o)| v1::ShardRef { layer: layer.clone(), object: Some(o.clone()) }).collect(),
            synthesised: self.synthesised.clone(),
            distilled: self.distilled.clone(),
            finetuned: self.finetuned.clone(),
            evaluated: self.evaluated.clone(),
            busy_seconds: self.busy_seconds,
            gpu_seconds: self.gpu_seconds,
            samples: self.samples,
            recaptures: self.recaptures,
            committed: self.is_committed(),
        }
    }

    /// Takes up where `record` stood; a lease lasts until `deadline`.
    pub(super) fn restore(&mut self, record: v1::TaskRecord, deadline: Duration) -> Result<(), Error> {
        self.phase = match (record.committed, record.lease) {
            (true, _) => Phase::Committed,
            (false, None) => Phase::Pending,
            (false, Some(lease)) => Phase::Leased(Leased {
                attempt: AttemptId::new(lease.attempt_id)?,
                epoch: lease.epoch,
                worker: WorkerId::new(record.worker_id)?,
                deadline,
                held: None,
                progress: None,
                verifying: false,
            }),
        };
        self.attempts = record.attempts;
        self.failures = record.failures;
        self.last_failure = record.last_failure;
        self.recaptures = record.recaptures;
        self.checkpoint = record.checkpoint;
        self.shards = record.shards.into_iter().filter_map(|s| Some((s.layer, s.object?))).collect();
        self.synthesised = record.synthesised;
        self.distilled = record.distilled;
        self.finetuned = record.finetuned;
        self.evaluated = record.evaluated;
        self.busy_seconds = record.busy_seconds;
        self.gpu_seconds = record.gpu_seconds;
        self.samples = record.samples;
        Ok(())
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
        }
    }

    /// The job that `record` describes.
    pub(super) fn from_record(record: v1::JobRecord) -> Result<Self, Error> {
        let id = JobId::new(record.job_id)?;
        let lacking = |what: &str| Error::Record(format!("job {id} without {what}"));
        let spec = record.spec.ok_or_else(|| lacking("a spec"))?;
        let plan = record.plan.ok_or_else(|| lacking("a plan"))?;
        let state = JobState::from_name(&record.state, record.reason)
            .ok_or_else(|| Error::Record(format!("job {id} in state {:?}", record.state)))?;
        let mut job = Self::new(id, spec, plan, record.sequence, record.created_unix_ms)?;
        for (times, recorded) in job.stages.iter_mut().zip(record.stages) {
            *times = recorded;
        }
        job.state = state;
        job.finished_unix_ms = record.finished_unix_ms;
        job.output = record.output;
        job.teacher_digest = record.teacher_digest;
        job.figures = record.figures;
        job.reclaimed = record.reclaimed;
        Ok(job)
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
        }
    }

    /// The worker that `record` describes, last heard of now.
    pub(super) fn from_record(record: v1::WorkerRecord, now: Now) -> Result<Self, Error> {
        Ok(Self {
            id: WorkerId::new(record.worker_id)?,
            name: record.name,
            device: record.device.unwrap_or_default(),
            version: record.version,
            last_seen: now.monotonic,
            draining: false,
        })
    }
}
