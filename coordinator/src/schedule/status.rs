//! The state as operators see it.

use std::collections::BTreeMap;

use deltaconv_proto::ids::{AttemptId, JobId, TaskId};
use deltaconv_proto::v1;

use super::{Error, Job, JobState, Kind, Leased, Now, Phase, Stage, State, Step, Task};

/// Who works on a task.
#[derive(Clone, Debug, PartialEq)]
pub struct Attempts {
    /// Where its job writes.
    pub output_url: String,
    /// The attempts at work, and whose they are.
    pub at_work: Vec<(AttemptId, String)>,
    /// Whether nobody will work on it any more, unless an operator says so.
    pub is_over: bool,
}

impl State {
    /// Who works on a task.
    pub(crate) fn attempts(&self, id: &TaskId) -> Result<Attempts, Error> {
        let task = self.tasks.get(id).ok_or_else(|| Error::UnknownTask(id.clone()))?;
        let job = &self.jobs[&task.job];
        let at_work = task.leases().iter().map(|leased| (leased.attempt.clone(), leased.worker.to_string()));
        Ok(Attempts {
            output_url: job.spec.output_url.clone(),
            at_work: at_work.collect(),
            is_over: task.is_committed() || task.is_quarantined() || !job.is_running(),
        })
    }

    /// All jobs, in the order in which they came.
    pub fn summaries(&self) -> Vec<v1::JobSummary> {
        self.latest_summaries(usize::MAX)
    }

    /// The latest jobs, in the order in which they came.
    pub(crate) fn latest_summaries(&self, limit: usize) -> Vec<v1::JobSummary> {
        let mut jobs: Vec<&Job> = self.jobs.values().collect();
        jobs.sort_by_key(|job| job.sequence);
        jobs.iter().skip(jobs.len().saturating_sub(limit)).map(|job| self.summary(job)).collect()
    }

    /// How many jobs and tasks there are, and how many tasks are committed.
    pub fn counts(&self) -> (usize, usize, usize) {
        let jobs = self.jobs.values();
        let of_tasks = jobs.map(|job| (job.slots.len(), job.work.iter().map(|work| work.committed).sum::<usize>()));
        of_tasks.fold((self.jobs.len(), 0, 0), |(jobs, tasks, done), (of_job, committed)| {
            (jobs, tasks + of_job, done + committed)
        })
    }

    /// One job, whole but for its layers' histories.
    pub fn status(&self, id: &JobId, now: Now) -> Result<v1::JobStatus, Error> {
        let job = self.jobs.get(id).ok_or_else(|| Error::UnknownJob(id.clone()))?;
        Ok(v1::JobStatus {
            summary: Some(self.summary(job)),
            stages: job.steps().map(|step| self.stage_status(job, step, now)).collect(),
            layers: self.layers(job),
            waiting_for: self.waiting_for(job, now).map(|waiting| waiting.to_string()).unwrap_or_default(),
            tasks: self.tasks_of(job).map(|task| self.task_status(job, task)).collect(),
            figures: job.figures.clone(),
        })
    }

    /// The same with the layers' histories.
    pub(crate) fn status_with_history(&self, id: &JobId, now: Now) -> Result<v1::JobStatus, Error> {
        let mut status = self.status(id, now)?;
        if let Some(job) = self.jobs.get(id) {
            for layer in &mut status.layers {
                let index = job.plan.layers.iter().position(|planned| planned.name == layer.name);
                layer.history = index.map(|index| job.history.of(index).to_vec()).unwrap_or_default();
            }
        }
        Ok(status)
    }

    /// Where a job writes, if it is done.
    pub(crate) fn result_of(&self, id: &JobId) -> Result<Option<String>, Error> {
        let job = self.jobs.get(id).ok_or_else(|| Error::UnknownJob(id.clone()))?;
        Ok((job.state == JobState::Done).then(|| job.spec.output_url.clone()))
    }

    /// All workers that are remembered.
    pub fn worker_statuses(&self, now: Now) -> Vec<v1::WorkerStatus> {
        let workers = self.workers.values().map(|worker| {
            let tasks: Vec<String> = self.leases_of(&worker.id).map(|task| task.id.to_string()).collect();
            v1::WorkerStatus {
                worker_id: worker.id.to_string(),
                name: worker.name.clone(),
                device: Some(worker.device.clone()),
                state: self.state_of(worker, now).into(),
                tasks,
                silent_ms: now.monotonic.saturating_sub(worker.last_seen).as_millis() as u64,
                version: worker.version.clone(),
                cached_shards: self.placement.stated(&worker.id) as u32,
                node: worker.node.clone(),
                reason: self.why_out(worker, now).unwrap_or_default().to_owned(),
                load: worker.load,
            }
        });
        workers.collect()
    }

    /// A worker's state in a word.
    pub(super) fn state_of(&self, worker: &super::Worker, now: Now) -> &'static str {
        match () {
            () if !self.is_alive(worker, now) => "lost",
            () if self.why_out(worker, now).is_some() => "out",
            () if worker.takes_nothing() => "draining",
            () if worker.leases.is_empty() => "idle",
            () => "busy",
        }
    }

    fn summary(&self, job: &Job) -> v1::JobSummary {
        let committed: usize = job.work.iter().map(|work| work.committed).sum();
        let at_work: f64 = job.in_work.iter().map(|slot| fraction(&self.tasks[*slot])).sum();
        v1::JobSummary {
            job_id: job.id.to_string(),
            state: job.state.name().into(),
            stage: job.step().stage.name().into(),
            round: job.step().round,
            created_unix_ms: job.created_unix_ms,
            finished_unix_ms: job.finished_unix_ms,
            output_url: job.spec.output_url.clone(),
            reason: job.state.reason().into(),
            fraction: (committed as f64 + at_work) / job.slots.len().max(1) as f64,
            paused: job.paused,
            owner: job.spec.owner.clone(),
            priority: job.spec.priority(),
        }
    }

    /// Times and amounts of one stage, and of one round where it is repeated.
    pub fn stage_status(&self, job: &Job, step: Step, now: Now) -> v1::StageStatus {
        let times = job.times(step);
        let mut status = v1::StageStatus {
            stage: step.stage.name().into(),
            round: step.round,
            started_unix_ms: times.started_unix_ms,
            finished_unix_ms: times.finished_unix_ms,
            ..v1::StageStatus::default()
        };
        if step.stage == Stage::Assemble {
            status.tasks = 1;
            status.committed = u32::from(!job.output.is_empty());
            status.written_bytes = sum_sizes(job.output.iter());
            status.done = f64::from(status.committed);
            return status;
        }
        let mut samples_in_work = 0.0;
        let steps = self.steps(job, step.round);
        for task in self.tasks_in(job, step) {
            status.tasks += 1;
            status.committed += u32::from(task.is_committed());
            status.running += u32::from(task.leased().is_some());
            status.done += fraction(task);
            status.busy_seconds += task.busy_seconds;
            status.gpu_seconds += task.gpu_seconds;
            status.written_bytes =
                status.written_bytes.saturating_add(sum_sizes(task.outputs())).saturating_add(task.shards.bytes());
            status.samples = status.samples.saturating_add(task.samples);
            if !task.is_committed() {
                samples_in_work += fraction(task) * samples(job, task, &steps) as f64;
            }
        }
        let until = if times.finished_unix_ms > 0 { times.finished_unix_ms } else { now.unix_ms };
        let seconds = until.saturating_sub(times.started_unix_ms) as f64 / 1000.0;
        if times.started_unix_ms > 0 && seconds > 0.0 {
            status.samples_per_second = (status.samples as f64 + samples_in_work) / seconds;
        }
        status
    }

    fn layers(&self, job: &Job) -> Vec<v1::LayerStatus> {
        let began = |round: &u32| job.times(Step { stage: Stage::Capture, round: *round }).started_unix_ms > 0;
        let round = (0..=job.rounds()).rev().find(began).unwrap_or(0);
        let mut latest: BTreeMap<usize, (u32, &Task)> = BTreeMap::new();
        let mut alone: BTreeMap<usize, f64> = BTreeMap::new();
        for of in 0..=round {
            for task in self.tasks_in(job, Step { stage: Stage::Distill, round: of }) {
                if let Kind::Distill { layer, .. } = task.kind {
                    latest.insert(layer, (of, task));
                    let error = task.distilled.as_ref().and_then(|distilled| distilled.alone_error);
                    alone.extend(error.map(|error| (layer, error)));
                }
            }
        }
        let latest = latest.into_iter().map(|(layer, (round, task))| (layer, round, task));
        let staying = self.staying(job);
        let steps: Vec<Vec<u32>> = (0..=round).map(|round| self.steps(job, round)).collect();
        let status = |(layer, round, task): (usize, u32, &Task)| {
            let steps = steps[round as usize][layer].into();
            let alone_error = alone.get(&layer).copied();
            let layer = &job.plan.layers[layer];
            let stays = staying.iter().any(|one| one.layer == layer.name);
            let progress = task.leases().iter().filter_map(|leased| leased.progress.as_deref());
            let progress = progress.max_by_key(|progress| progress.step).cloned();
            let known = progress.is_some();
            let progress = progress.unwrap_or_default();
            let resumed = task.checkpoint.as_ref().map_or(0, |checkpoint| checkpoint.step);
            let (state, step, error) = match &task.phase {
                Phase::Committed if stays => ("kept", steps, f64::NAN),
                Phase::Committed => ("done", steps, task.distilled.as_ref().map_or(f64::NAN, |d| d.relative_error)),
                Phase::Leased(_) if known => ("running", progress.step, progress.held_out_error),
                Phase::Leased(_) => ("running", resumed, f64::NAN),
                Phase::Pending => ("waiting", resumed, f64::NAN),
                Phase::Quarantined => ("quarantined", resumed, f64::NAN),
            };
            v1::LayerStatus {
                name: layer.name.clone(),
                kernel_size: layer.kernel_size,
                channels: layer.channels,
                height: layer.height,
                width: layer.width,
                state: state.into(),
                step,
                steps,
                held_out_error: error,
                training_error: if known { progress.training_error } else { f64::NAN },
                samples_per_second: progress.samples_per_second,
                round,
                alone_error,
                history: Vec::new(),
            }
        };
        latest.map(status).collect()
    }

    fn task_status(&self, job: &Job, task: &Task) -> v1::TaskStatus {
        let state = match &task.phase {
            Phase::Committed => "committed",
            Phase::Leased(leases) if leases.iter().any(|leased| leased.verifying) => "verifying",
            Phase::Leased(_) => "running",
            Phase::Quarantined => "quarantined",
            Phase::Pending if !job.is_running() => "ended",
            Phase::Pending if self.is_ready(job, task) => "ready",
            Phase::Pending => "waiting",
        };
        let [first, spare] = [0, 1].map(|index| task.leases().get(index));
        let attempt = |leased: Option<&Leased>| leased.map(|leased| leased.attempt.to_string()).unwrap_or_default();
        let worker = |leased: Option<&Leased>| leased.map(|leased| leased.worker.to_string()).unwrap_or_default();
        v1::TaskStatus {
            task_id: task.id.to_string(),
            state: state.into(),
            attempt_id: attempt(first),
            worker_id: worker(first),
            spare_attempt_id: attempt(spare),
            spare_worker_id: worker(spare),
            attempts: task.attempts,
            failures: task.failures.len() as u32,
            last_failure: task.last_failure.clone(),
            held: task.leased().and_then(|leased| leased.held),
        }
    }
}

/// How much of the task is done, as far as that was reported.
pub(super) fn fraction(task: &Task) -> f64 {
    match &task.phase {
        Phase::Committed => 1.0,
        Phase::Leased(leases) => leases.iter().map(fraction_of).fold(0.0, f64::max),
        Phase::Pending | Phase::Quarantined => 0.0,
    }
}

/// How much of the task this attempt has done.
pub(super) fn fraction_of(leased: &Leased) -> f64 {
    match &leased.progress {
        Some(progress) if progress.steps > 0 => (progress.step as f64 / progress.steps as f64).min(1.0),
        _ => 0.0,
    }
}

/// Workers named the sizes, though they were checked.
fn sum_sizes<'a>(objects: impl Iterator<Item = &'a v1::ObjectRef>) -> u64 {
    objects.map(|object| object.size).fold(0, u64::saturating_add)
}

/// Samples that a task goes through, where layers are trained for so many steps.
fn samples(job: &Job, task: &Task, steps: &[u32]) -> u64 {
    let of = |range: &v1::SampleRange| u64::from(range.end.saturating_sub(range.start));
    let recipe = job.spec.recipe.clone().unwrap_or_default();
    let evaluation = job.spec.evaluation.unwrap_or_default();
    match &task.kind {
        Kind::Synthesise { range } | Kind::Capture { range, .. } => of(range),
        Kind::Distill { layer, .. } => u64::from(steps[*layer]) * u64::from(recipe.batch),
        Kind::Finetune => recipe.finetune.map_or(0, |of| u64::from(of.steps) * u64::from(of.batch)),
        Kind::Evaluate(v1::evaluate_task::Part::Noise(range)) => of(range),
        Kind::Evaluate(v1::evaluate_task::Part::Pictures(range)) => of(range) * u64::from(evaluation.ddim_steps),
    }
}
