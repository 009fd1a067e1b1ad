//! Leases: what reports do to them, how they end.

use deltaconv_proto::digest;
use deltaconv_proto::ids::{TaskId, WorkerId};
use deltaconv_proto::keys::{self, Written};
use deltaconv_proto::v1::{self, Device, attempt_report};

use super::{Command, Effects, Kind, Now, Phase, State, Task};
use crate::planted::Planted;

impl State {
    /// A worker states what it is doing; the answer says what it should be doing. `None` if the worker isn't known.
    pub fn sync(&mut self, request: &v1::SyncRequest, now: Now, effects: &mut Effects) -> Option<v1::SyncResponse> {
        let id = WorkerId::new(request.worker_id.clone()).ok()?;
        let worker = self.workers.get_mut(&id)?;
        worker.last_seen = now.monotonic;
        worker.draining = request.draining;
        let nothing = v1::NodeCache::default();
        let cache = request.cache.as_ref().unwrap_or(&nothing);
        self.placement.state(&id, cache);
        let cache_version = self.placement.version(&id);
        let mut response = v1::SyncResponse { cache_version, ..v1::SyncResponse::default() };
        for report in &request.attempts {
            self.report(&id, report, now, effects, &mut response);
        }
        let stated: Vec<&v1::Lease> = request.attempts.iter().filter_map(|report| report.lease.as_ref()).collect();
        self.remind(&id, &stated, &mut response);
        let has_more_to_say = cache.version != cache_version;
        if stated.is_empty() && !has_more_to_say {
            self.offer(&id, now, effects, &mut response);
        }
        Some(response)
    }

    fn report(
        &mut self,
        worker: &WorkerId,
        report: &v1::AttemptReport,
        now: Now,
        effects: &mut Effects,
        response: &mut v1::SyncResponse,
    ) {
        let (Some(lease), Some(state)) = (&report.lease, &report.state) else { return };
        let task = TaskId::new(lease.task_id.clone()).ok().filter(|id| self.tasks.contains_key(id));
        let current = task.filter(|id| self.tasks[id].holds(lease) && self.leased_to(id, worker));
        let Some(id) = current else {
            // A stale report changes nothing. Telling the worker is all there is to do.
            let reason = self.why_stale(lease);
            response.cancel.push(v1::Cancel { lease: Some(lease.clone()), reason });
            return;
        };
        match state {
            attempt_report::State::Running(progress) => self.renew(&id, progress, now, effects),
            attempt_report::State::Done(done) => self.done(&id, lease, done, now, effects),
            attempt_report::State::Failed(failure) => {
                response.acknowledged.push(lease.clone());
                self.failed(&id, failure, now, effects);
            }
            attempt_report::State::Released(progress) => {
                response.acknowledged.push(lease.clone());
                self.renew(&id, progress, now, effects);
                if self.is_planted(Planted::PreemptionCountsAsFailure) {
                    return self.failed(&id, &v1::Failure::default(), now, effects);
                }
                self.release(&id, now, effects);
            }
        }
    }

    fn leased_to(&self, task: &TaskId, worker: &WorkerId) -> bool {
        self.tasks[task].leased().is_some_and(|leased| &leased.worker == worker)
    }

    fn why_stale(&self, lease: &v1::Lease) -> String {
        let Some(task) = TaskId::new(lease.task_id.clone()).ok().and_then(|id| self.tasks.get(&id)) else {
            return "there is no such task".into();
        };
        match (&task.phase, &self.jobs[&task.job]) {
            (_, job) if !job.is_running() => format!("job {} is {}", job.id, job.state.name()),
            (Phase::Committed, _) => "the task's output is accepted".into(),
            (Phase::Pending, _) => "the lease ended".into(),
            (Phase::Leased(leased), _) => format!("epoch {} was leased to another since", leased.epoch),
        }
    }

    fn renew(&mut self, id: &TaskId, progress: &v1::Progress, now: Now, effects: &mut Effects) {
        let ttl = self.settings.lease_ttl;
        let Some(task) = self.tasks.get_mut(id) else { return };
        let Phase::Leased(leased) = &mut task.phase else { return };
        leased.deadline = now.monotonic + ttl;
        leased.progress = Some(progress.clone());
        let known = task.checkpoint.as_ref().map_or(0, |checkpoint| checkpoint.step);
        let newer = progress.checkpoint.as_ref().filter(|checkpoint| is_sane(checkpoint) && checkpoint.step > known);
        if let Some(checkpoint) = newer {
            let former = task.checkpoint.replace(checkpoint.clone());
            self.write_task(id, effects);
            self.discard(id, former, effects);
        }
    }

    fn done(&mut self, id: &TaskId, lease: &v1::Lease, done: &v1::Done, now: Now, effects: &mut Effects) {
        let ttl = self.settings.lease_ttl;
        let Some(task) = self.tasks.get_mut(id) else { return };
        let Phase::Leased(leased) = &mut task.phase else { return };
        leased.deadline = now.monotonic + ttl;
        if !leased.verifying {
            leased.verifying = true;
            let (task, lease, done) = (id.clone(), lease.clone(), Box::new(done.clone()));
            effects.commands.push(Command::Verify { task, lease, done });
        }
    }

    /// The outcome of [`Command::Verify`]: the output is accepted, or the attempt failed. `Err(None)` says that the
    /// check itself could not be made; the worker's next report starts it again.
    pub fn verified(
        &mut self,
        id: &TaskId,
        lease: &v1::Lease,
        done: v1::Done,
        result: Result<(), Option<String>>,
        now: Now,
        effects: &mut Effects,
    ) {
        let unfenced = self.is_planted(Planted::NoFenceOnComplete);
        let Some(task) = self.tasks.get_mut(id).filter(|task| unfenced || task.holds(lease)) else { return };
        match result {
            Ok(()) => self.commit(id, done, now, effects),
            Err(Some(message)) => {
                let failure = v1::Failure { message, broken_shard: None };
                self.failed(id, &failure, now, effects);
            }
            Err(None) => {
                if let Phase::Leased(leased) = &mut task.phase {
                    leased.verifying = false;
                }
            }
        }
    }

    fn commit(&mut self, id: &TaskId, done: v1::Done, now: Now, effects: &mut Effects) {
        self.displace(id);
        let goes_on = self.is_planted(Planted::DoubleCommit);
        let Some(task) = self.tasks.get_mut(id) else { return };
        debug_assert!(!task.is_committed(), "an output is accepted once");
        let worker = task.leased().and_then(|leased| self.workers.get(&leased.worker));
        let has_gpu = worker.is_some_and(|worker| worker.device.kind == Device::CUDA);
        if let Some(leased) = task.leased() {
            effects.commands.push(Command::Wake(leased.worker.clone()));
        }
        task.phase = if goes_on { Phase::Pending } else { Phase::Committed };
        task.checkpoint = None;
        let busy_seconds = if done.busy_seconds.is_finite() { done.busy_seconds.max(0.0) } else { 0.0 };
        task.busy_seconds += busy_seconds;
        if has_gpu {
            task.gpu_seconds += busy_seconds;
        }
        task.samples += done.samples;
        match done.output {
            Some(v1::done::Output::Synthesise(output)) => task.synthesised = Some(output),
            Some(v1::done::Output::Capture(output)) => {
                task.shards.extend(output.shards.into_iter().filter_map(|shard| Some((shard.layer, shard.object?))));
            }
            Some(v1::done::Output::Distill(mut output)) => {
                output.unlearned = output.unlearned.chars().take(2000).collect();
                task.distilled = Some(output);
            }
            Some(v1::done::Output::Finetune(mut output)) => {
                output.story = output.story.chars().take(2000).collect();
                task.finetuned = Some(output);
            }
            Some(v1::done::Output::Evaluate(output)) => task.evaluated = Some(output),
            None => debug_assert!(false, "verification refuses a report without output"),
        }
        let job = task.job.clone();
        self.place(id);
        self.write_task(id, effects);
        self.advance(&job, now, effects);
    }

    fn failed(&mut self, id: &TaskId, failure: &v1::Failure, now: Now, effects: &mut Effects) {
        if let Some(broken) = &failure.broken_shard
            && self.rewrite(id, broken, now, effects)
        {
            self.release(id, now, effects);
            return;
        }
        let Some(task) = self.tasks.get_mut(id) else { return };
        task.failures += 1;
        task.last_failure = failure.message.chars().take(2000).collect();
        let (job, failures) = (task.job.clone(), task.failures);
        let reason = format!("task {id} failed {failures} times, the last time with: {}", task.last_failure);
        self.release(id, now, effects);
        if failures >= self.settings.max_failures {
            self.fail(&job, reason, now, effects);
        }
    }

    /// Has the shard written again that an attempt found broken. False if the task at hand doesn't read it.
    fn rewrite(&mut self, reader: &TaskId, broken: &v1::BrokenShard, now: Now, effects: &mut Effects) -> bool {
        let job = self.tasks[reader].job.clone();
        let layer = match self.tasks[reader].kind {
            Kind::Distill { layer, .. } => Some(self.jobs[&job].plan.layers[layer].name.clone()),
            Kind::Capture { .. } | Kind::Finetune | Kind::Evaluate(_) => None,
            Kind::Synthesise { .. } => return false,
        };
        let stands = |task: &&Task| match &layer {
            Some(layer) => task.shards.get(layer).is_some_and(|shard| shard.key == broken.key),
            None => task.latents().is_some_and(|latents| latents.key == broken.key),
        };
        let Some(id) = self.tasks_of(&self.jobs[&job]).find(stands).map(|task| task.id.clone()) else {
            // Somebody else found it first, and it is being written already.
            return match &layer {
                Some(layer) => is_shard(&broken.key) && broken.key.contains(layer),
                None => self.tasks_of(&self.jobs[&job]).any(|task| match &task.kind {
                    Kind::Synthesise { range } => broken.key.starts_with(&keys::latents_of(range)),
                    _ => false,
                }),
            };
        };
        self.displace(&id);
        let Some(task) = self.tasks.get_mut(&id) else { return false };
        match &layer {
            Some(layer) => drop(task.shards.remove(layer)),
            None => task.synthesised = None,
        }
        task.phase = Phase::Pending;
        task.recaptures += 1;
        task.last_failure =
            format!("{} was broken: expected digest {}, found {}", broken.key, broken.expected_digest, broken.found);
        let (recaptures, story) = (task.recaptures, task.last_failure.clone());
        self.place(&id);
        self.write_task(&id, effects);
        if recaptures >= self.settings.max_recaptures {
            let reason = format!("shards of {id} were found broken {recaptures} times, the last time: {story}");
            self.fail(&job, reason, now, effects);
        }
        true
    }

    fn release(&mut self, id: &TaskId, now: Now, effects: &mut Effects) {
        let Some(task) = self.tasks.get_mut(id) else { return };
        task.phase = Phase::Pending;
        self.write_task(id, effects);
        self.wake_idle(now, effects);
    }

    /// Ends the leases whose time has come.
    pub fn tick(&mut self, now: Now, effects: &mut Effects) {
        let ended = |task: &&Task| task.leased().is_some_and(|leased| leased.deadline <= now.monotonic);
        let ended: Vec<TaskId> = self.tasks.values().filter(ended).map(|task| task.id.clone()).collect();
        for id in ended {
            self.release(&id, now, effects);
        }
        self.forget_lost_workers(now, effects);
    }
}

/// Whether the key is that of a recorded shard: what else a task reads isn't written again.
fn is_shard(key: &str) -> bool {
    Written::parse(key).is_some_and(|written| written.kind == keys::Kind::Activations)
}

/// Whether a checkpoint that a worker named can be handed to another.
fn is_sane(checkpoint: &v1::Checkpoint) -> bool {
    checkpoint.object.as_ref().is_some_and(|object| {
        digest::is_valid(&object.digest) && object.key.starts_with("checkpoints/") && object.key.len() <= 1024
    })
}
