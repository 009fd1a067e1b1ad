//! Leases: what reports do to them, how they end.

use std::time::Duration;

use deltaconv_proto::digest;
use deltaconv_proto::ids::{TaskId, WorkerId};
use deltaconv_proto::keys::{self, Written};
use deltaconv_proto::v1::{self, Device, attempt_report};

use super::bounded::{MESSAGE, bounded};
use super::events::{About, Severity};
use super::tasks::Slot;
use super::{Command, Effects, Kind, Now, Phase, State, Task};
use crate::planted::Planted;

/// Of all workers that only renew their leases.
const CALLS_PER_SECOND: u32 = 2000;
/// So often a worker calls that isn't told to wait.
const UNPACED: Duration = Duration::from_millis(500);

impl State {
    /// A worker states what it is doing; the answer says what it should be doing. `None` if the worker isn't known.
    pub fn sync(&mut self, request: &v1::SyncRequest, now: Now, effects: &mut Effects) -> Option<v1::SyncResponse> {
        self.unix_ms = now.unix_ms;
        let id = WorkerId::new(request.worker_id.as_str()).ok()?;
        let worker = self.workers.get_mut(&id)?;
        worker.last_seen = now.monotonic;
        worker.draining = request.draining;
        worker.load = request.load.or(worker.load);
        let node = worker.node.clone();
        if !request.device_error.is_empty() {
            self.device_failed(&node, &request.device_error, now, effects);
        }
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
        let is_over = |lease: &&v1::Lease| {
            let cancelled = response.cancel.iter().filter_map(|cancel| cancel.lease.as_ref());
            response.acknowledged.iter().chain(cancelled).any(|over| over == *lease)
        };
        // A worker whose outputs are off its hands with this answer is given its next task with it.
        let has_nothing_to_do = request.attempts.iter().all(v1::AttemptReport::is_done) && stated.iter().all(is_over);
        if has_nothing_to_do && !has_more_to_say {
            self.offer(&id, now, effects, &mut response);
        }
        self.ask_back(&id, &mut response);
        let says_nothing = response.acknowledged.is_empty() && response.cancel.is_empty() && response.start.is_empty();
        if !stated.is_empty() && says_nothing && !request.draining {
            response.next_call_after_ms = self.pace().as_millis() as u64;
        }
        let is_idle = stated.is_empty() && response.start.is_empty() && !request.draining;
        match is_idle {
            true => self.idle.insert(id),
            false => self.idle.remove(&id),
        };
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
        let slot = TaskId::new(lease.task_id.as_str()).ok().and_then(|id| self.tasks.slot(&id));
        let is_current = |slot: &Slot| self.tasks[*slot].held_by(lease).is_some_and(|leased| leased.worker == *worker);
        let Some(slot) = slot.filter(is_current) else {
            // A stale report changes nothing. Telling the worker is all there is to do.
            let reason = self.why_stale(slot, lease);
            response.cancel.push(v1::Cancel { lease: Some(lease.clone()), reason });
            return;
        };
        match state {
            attempt_report::State::Running(progress) => self.renew(slot, lease, progress, now, effects),
            attempt_report::State::Done(done) => self.done(slot, lease, done, now, effects),
            attempt_report::State::Failed(failure) => {
                response.acknowledged.push(lease.clone());
                self.failed(slot, lease, failure, now, effects);
            }
            attempt_report::State::Released(progress) => {
                response.acknowledged.push(lease.clone());
                self.renew(slot, lease, progress, now, effects);
                if self.is_planted(Planted::PreemptionCountsAsFailure) {
                    return self.failed(slot, lease, &v1::Failure::default(), now, effects);
                }
                self.totals.handed_back += 1;
                self.release(slot, lease.epoch, now, effects);
            }
        }
    }

    fn why_stale(&self, slot: Option<Slot>, lease: &v1::Lease) -> String {
        let Some(slot) = slot else { return "there is no such task".into() };
        let task = &self.tasks[slot];
        match (&task.phase, &self.jobs[&task.job]) {
            (_, job) if !job.is_running() => format!("job {} is {}", job.id, job.state.name()),
            (Phase::Committed, _) => "the task's output is accepted".into(),
            (Phase::Quarantined, _) => "the task is in quarantine".into(),
            (Phase::Pending, _) => "the lease ended".into(),
            (Phase::Leased(_), _) => format!("epoch {} was leased to another since", lease.epoch),
        }
    }

    /// How long a worker that only renews waits before its next call: many workers call less often, so that all of their calls
    /// cost about as much.
    fn pace(&self) -> Duration {
        let every = Duration::from_secs(1) * self.workers.len() as u32 / CALLS_PER_SECOND;
        every.saturating_sub(UNPACED).min(self.settings.lease_ttl / 3)
    }

    /// This process stood still for longer than leases may be silent: workers may have called meanwhile, and their leases get
    /// their whole time again, as after a restart.
    pub fn stood_still(&mut self, now: Now) {
        let deadline = now.monotonic + self.settings.lease_ttl;
        for (former, epoch, slot) in std::mem::take(&mut self.deadlines) {
            if let Phase::Leased(leases) = &mut self.tasks[slot].phase {
                for leased in leases.iter_mut().filter(|leased| leased.epoch == epoch) {
                    leased.deadline = deadline.max(former);
                    self.deadlines.insert((leased.deadline, epoch, slot));
                }
            }
        }
        for worker in self.workers.values_mut() {
            worker.last_seen = now.monotonic;
        }
    }

    /// The lease's time begins anew.
    fn extend(&mut self, slot: Slot, lease: &v1::Lease, now: Now) {
        let deadline = now.monotonic + self.settings.lease_ttl;
        if let Some(leased) = self.tasks[slot].held_by_mut(lease) {
            self.deadlines.remove(&(leased.deadline, leased.epoch, slot));
            leased.deadline = deadline;
            self.deadlines.insert((deadline, leased.epoch, slot));
        }
    }

    fn renew(&mut self, slot: Slot, lease: &v1::Lease, progress: &v1::Progress, now: Now, effects: &mut Effects) {
        self.extend(slot, lease, now);
        let task = &mut self.tasks[slot];
        let known = task.checkpoint.as_deref();
        let goes_on = |checkpoint: &v1::Checkpoint| known.is_none_or(|known| checkpoint.step > known.step);
        // Who stores less than it was to go on from began anew: that could not be read, and nobody else will.
        let begins_anew = |checkpoint: &v1::Checkpoint| {
            let [leased] = task.leases() else { return false };
            checkpoint.step <= leased.from && known.is_some_and(|known| !is_by(known, &lease.attempt_id))
        };
        // One that names what others wrote could have it handed on, or removed once it is the former.
        let counts = |checkpoint: &v1::Checkpoint| is_sane(checkpoint) && is_own(checkpoint, task, lease);
        let newer = progress.checkpoint.as_ref();
        let newer = newer.filter(|newer| counts(newer) && (goes_on(newer) || begins_anew(newer)));
        if let Some(leased) = task.held_by_mut(lease) {
            leased.report(progress);
        }
        if let Kind::Distill { round, layer } = task.kind
            && let Some(job) = self.jobs.get_mut(&task.job)
        {
            job.history.note(layer, round, progress, now.unix_ms);
        }
        let task = &mut self.tasks[slot];
        if let Some(checkpoint) = newer {
            let former = task.checkpoint.replace(Box::new(checkpoint.clone()));
            // Whoever comes to it next does not begin where those were lost.
            task.lost = 0;
            let has_spare = task.leases().len() > 1;
            self.write_task(slot, effects);
            if !has_spare {
                self.discard(slot, former, effects);
            }
        }
    }

    fn done(&mut self, slot: Slot, lease: &v1::Lease, done: &v1::Done, now: Now, effects: &mut Effects) {
        self.extend(slot, lease, now);
        let task = &self.tasks[slot];
        let Some(leased) = task.held_by(lease).filter(|leased| !leased.verifying) else { return };
        let Some(spec) = self.spec(&self.jobs[&task.job], task) else { return };
        effects.commands.push(Command::Verify {
            task: task.id.clone(),
            lease: lease.clone(),
            spec: Box::new(spec),
            attempt: leased.attempt.clone(),
            done: Box::new(done.clone()),
        });
        if let Some(leased) = self.tasks[slot].held_by_mut(lease) {
            leased.verifying = true;
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
        let is_current = |slot: &Slot| unfenced || self.tasks[*slot].held_by(lease).is_some();
        let Some(slot) = self.tasks.slot(id).filter(is_current) else { return };
        match result {
            Ok(()) => self.commit(slot, lease, done, now, effects),
            Err(Some(message)) => {
                let failure = v1::Failure { message, ..v1::Failure::default() };
                self.failed(slot, lease, &failure, now, effects);
            }
            Err(None) => {
                if let Some(leased) = self.tasks[slot].held_by_mut(lease) {
                    leased.verifying = false;
                }
            }
        }
    }

    fn commit(&mut self, slot: Slot, lease: &v1::Lease, done: v1::Done, now: Now, effects: &mut Effects) {
        self.displace(slot);
        self.has_read(slot);
        let task = &self.tasks[slot];
        let unfenced = self.is_planted(Planted::NoFenceOnComplete);
        debug_assert!(unfenced || !task.is_committed(), "an output is accepted once");
        let worker = task.held_by(lease).and_then(|leased| self.workers.get(&leased.worker));
        let has_gpu = worker.is_some_and(|worker| worker.device.kind == Device::CUDA);
        let node = worker.map(|worker| worker.node.clone());
        // Whoever else is at it is told to stop.
        effects.commands.extend(task.leases().iter().map(|leased| Command::Wake(leased.worker.clone())));
        let goes_on = self.is_planted(Planted::DoubleCommit);
        let busy_seconds = if done.busy_seconds.is_finite() { done.busy_seconds.max(0.0) } else { 0.0 };
        let names = self.jobs[&task.job].names.clone();
        self.change(slot, |task| {
            task.phase = if goes_on { Phase::Pending } else { Phase::Committed };
            task.checkpoint = None;
            task.busy_seconds += busy_seconds;
            if has_gpu {
                task.gpu_seconds += busy_seconds;
            }
            task.samples = task.samples.saturating_add(done.samples);
            match done.output {
                Some(v1::done::Output::Synthesise(output)) => task.synthesised = Some(Box::new(output)),
                Some(v1::done::Output::Capture(output)) => {
                    let taken = task.take_shards(output.shards, &names);
                    debug_assert!(taken.is_ok(), "verification refuses keys of other attempts: {taken:?}");
                }
                Some(v1::done::Output::Distill(mut output)) => {
                    output.unlearned = bounded(&output.unlearned, MESSAGE);
                    task.distilled = Some(Box::new(output));
                }
                Some(v1::done::Output::Finetune(mut output)) => {
                    output.story = bounded(&output.story, MESSAGE);
                    task.finetuned = Some(Box::new(output));
                }
                Some(v1::done::Output::Evaluate(output)) => task.evaluated = Some(Box::new(output)),
                None => debug_assert!(false, "verification refuses a report without output"),
            }
        });
        let job = self.tasks[slot].job.clone();
        self.place(slot);
        self.write_task(slot, effects);
        self.totals.commit(&self.tasks[slot].kind);
        let kept = self.tasks[slot].distilled.as_ref().map(|output| output.unlearned.clone());
        if let Some(reason) = kept.filter(|reason| !reason.is_empty()) {
            let message = format!("the layer stays attention, no block was learned: {reason}");
            self.note((Severity::Warning, "layer-kept"), About::Task(slot, None), message, effects);
        }
        if let Some(node) = node {
            self.did_well(&node, effects);
        }
        self.advance(&job, now, effects);
    }

    fn failed(&mut self, slot: Slot, lease: &v1::Lease, failure: &v1::Failure, now: Now, effects: &mut Effects) {
        let broken = failure.broken_shard.as_ref();
        if broken.is_some_and(|broken| self.rewrite(slot, broken, now, effects)) {
            self.release(slot, lease.epoch, now, effects);
            return;
        }
        let worker = self.tasks[slot].held_by(lease).map(|leased| leased.worker.clone());
        self.end_lease(slot, lease.epoch);
        if let Some(worker) = worker {
            self.blame(slot, &worker, failure, now, effects);
        }
        self.write_task(slot, effects);
        let job = self.tasks[slot].job.clone();
        self.fail_if_stuck(&job, now, effects);
        self.wake_idle(now, effects);
    }

    /// Has the shard written again that an attempt found broken. False if the task at hand doesn't read it.
    fn rewrite(&mut self, reader: Slot, broken: &v1::BrokenShard, now: Now, effects: &mut Effects) -> bool {
        let id = self.tasks[reader].job.clone();
        let job = &self.jobs[&id];
        let layer = match self.tasks[reader].kind {
            Kind::Distill { layer, .. } => Some((layer, job.plan.layers[layer].name.clone())),
            Kind::Capture { .. } | Kind::Finetune | Kind::Evaluate(_) => None,
            Kind::Synthesise { .. } => return false,
        };
        let stands = |slot: &Slot| {
            let task = &self.tasks[*slot];
            match &layer {
                Some((layer, name)) => task.shard(*layer, name).is_some_and(|shard| shard.key == broken.key),
                None => task.latents().is_some_and(|latents| latents.key == broken.key),
            }
        };
        let Some(slot) = job.slots.iter().find(stands) else {
            // Somebody else found it first, and it is being written already.
            return match &layer {
                Some((_, name)) => is_shard(&broken.key) && broken.key.contains(name),
                None => self.tasks_of(job).any(|task| match &task.kind {
                    Kind::Synthesise { range } => broken.key.starts_with(&keys::latents_of(range)),
                    _ => false,
                }),
            };
        };
        self.displace(slot);
        let story =
            format!("{} was broken: expected digest {}, found {}", broken.key, broken.expected_digest, broken.found);
        let story = bounded(&story, MESSAGE);
        let recaptures = self.change(slot, |task| {
            match &layer {
                Some((layer, _)) => task.shards.remove(*layer),
                None => task.synthesised = None,
            }
            task.phase = Phase::Pending;
            task.recaptures = task.recaptures.saturating_add(1);
            // It was done since.
            task.failures.clear();
            task.last_failure.clone_from(&story);
            task.recaptures
        });
        self.place(slot);
        self.write_task(slot, effects);
        self.totals.broken += 1;
        self.note((Severity::Warning, "shard-broken"), About::Task(slot, None), &story, effects);
        if recaptures >= self.settings.max_recaptures {
            let task = &self.tasks[slot].id;
            let reason = format!("shards of {task} were found broken {recaptures} times, the last time: {story}");
            self.fail(&id, reason, now, effects);
        }
        true
    }

    /// Nobody works under this lease any more; what it is a spare of, or what is a spare of it, goes on.
    pub(super) fn end_lease(&mut self, slot: Slot, epoch: u64) {
        self.change(slot, |task| {
            if let Phase::Leased(leases) = &mut task.phase {
                leases.retain(|leased| leased.epoch != epoch);
                if leases.is_empty() {
                    task.phase = Phase::Pending;
                }
            }
        });
    }

    fn release(&mut self, slot: Slot, epoch: u64, now: Now, effects: &mut Effects) {
        self.end_lease(slot, epoch);
        self.left_alone(slot, now, effects);
    }

    /// Ends the leases whose time has come, and looks for attempts that take too long and jobs of which nothing moves.
    pub fn tick(&mut self, now: Now, effects: &mut Effects) {
        self.unix_ms = now.unix_ms;
        while let Some(&(deadline, epoch, slot)) = self.deadlines.first()
            && deadline <= now.monotonic
        {
            self.lost(slot, epoch, now, effects);
        }
        self.forget_lost_workers(now, effects);
        self.forget_access(now, effects);
        self.look_for_stragglers(now, effects);
        self.look_for_still_jobs(now, effects);
    }
}

/// When leases end, with their epochs.
pub(super) type Deadline = (Duration, u64, Slot);

/// Whether the key is that of a recorded shard: what else a task reads isn't written again.
fn is_shard(key: &str) -> bool {
    Written::parse(key).is_some_and(|written| written.kind == keys::Kind::Activations)
}

/// Whether the attempt stored the checkpoint.
fn is_by(checkpoint: &v1::Checkpoint, attempt: &str) -> bool {
    let written = checkpoint.object.as_ref().and_then(|object| Written::parse(&object.key));
    written.is_some_and(|written| written.attempt.as_str() == attempt)
}

/// Whether the checkpoint is where this attempt at the task stores its own.
fn is_own(checkpoint: &v1::Checkpoint, task: &Task, lease: &v1::Lease) -> bool {
    let attempt = task.held_by(lease).map(|leased| &leased.attempt);
    let key = attempt.map(|attempt| keys::checkpoint(&task.id, attempt, checkpoint.step));
    checkpoint.object.as_ref().is_some_and(|object| Some(&object.key) == key.as_ref())
}

/// Whether a checkpoint that a worker named can be handed to another.
fn is_sane(checkpoint: &v1::Checkpoint) -> bool {
    checkpoint.object.as_ref().is_some_and(|object| {
        digest::is_valid(&object.digest) && object.key.starts_with("checkpoints/") && object.key.len() <= 1024
    })
}
