//! What a worker should be doing: which task it is leased next, and what it is told about it.

use std::cmp::Reverse;
use std::collections::BTreeSet;

use deltaconv_proto::ids::{AttemptId, TaskId, WorkerId};
use deltaconv_proto::v1;

use super::status::fraction;
use super::step::Course;
use super::{Command, Effects, Job, Kind, Leased, Now, Phase, Stage, State, Step, Task, Worker};
use crate::plan;
use crate::store::Write;

/// A worker whose task is done to this part asks for another one soon.
const SOON: f64 = 0.9;

impl State {
    /// Says again what the worker is leased and doesn't know of.
    pub(super) fn remind(&self, worker: &WorkerId, stated: &[&v1::Lease], response: &mut v1::SyncResponse) {
        // The answer that told the worker of such a lease was lost on the way.
        let unknown = |task: &&Task| !stated.iter().any(|lease| task.holds(lease));
        response.start.extend(self.leases_of(worker).filter(unknown).filter_map(|task| self.start(task)));
    }

    /// Leases the worker, which has nothing to do, its next task, if there is one.
    pub(super) fn offer(
        &mut self,
        worker: &WorkerId,
        now: Now,
        effects: &mut Effects,
        response: &mut v1::SyncResponse,
    ) {
        let draining = self.workers.get(worker).is_none_or(|worker| worker.draining);
        let busy = self.leases_of(worker).next().is_some();
        if busy || draining {
            return;
        }
        let Some(id) = self.next_task(worker, now) else { return };
        let held = self.placement.share(&id, worker);
        self.meta.epoch += 1;
        let epoch = self.meta.epoch;
        let identity = &self.settings.identity;
        let Some(task) = self.tasks.get_mut(&id) else { return };
        task.attempts += 1;
        // Letters, digits and '-' alone, by construction.
        let Ok(attempt) = AttemptId::new(format!("a{}-{epoch}-{identity}", task.attempts)) else { return };
        let deadline = now.monotonic + self.settings.lease_ttl;
        let leased =
            Leased { attempt, epoch, worker: worker.clone(), deadline, held, progress: None, verifying: false };
        task.phase = Phase::Leased(leased);
        effects.writes.push(Write::Meta(self.meta));
        self.write_task(&id, effects);
        response.start.extend(self.start(&self.tasks[&id]));
    }

    pub(super) fn leases_of<'a>(&'a self, worker: &'a WorkerId) -> impl Iterator<Item = &'a Task> {
        self.tasks.values().filter(move |task| task.leased().is_some_and(|leased| &leased.worker == worker))
    }

    /// The ready task of the earliest job; in it, of the earliest stage; in it, one whose shards the worker's node holds,
    /// most bytes first; then the longest; and last what another worker that asks soon has nearer. So a worker that asks
    /// gets a task whenever one is ready: where shards lie decides which, never whether.
    fn next_task(&self, worker: &WorkerId, now: Now) -> Option<TaskId> {
        let mut jobs: Vec<&Job> = self.jobs.values().filter(|job| job.is_running()).collect();
        jobs.sort_by_key(|job| job.sequence);
        let (job, ready) = jobs.into_iter().find_map(|job| {
            let ready: Vec<&Task> = self.tasks_of(job).filter(|task| self.is_ready(job, task)).collect();
            (!ready.is_empty()).then_some((job, ready))
        })?;
        let busy = self.busy(SOON);
        let is_asking = |id: &WorkerId| self.workers.get(id).is_some_and(|w| self.is_open(w, &busy, now));
        // Those of the round that distill tasks are ready of, if any are.
        let round = job.step().round;
        let (plan, steps) = (self.plan_of_round(job, round), self.steps(job, round));
        let rank = |task: &&&Task| {
            let fit = self.placement.fit(&task.id, worker, is_asking);
            (Step::of(&task.kind).position(job.course()), fit, Reverse(cost(&plan, task, &steps)))
        };
        ready.iter().min_by_key(rank).map(|task| task.id.clone())
    }

    /// The workers at a task that is not done to this part yet, as far as they reported.
    fn busy(&self, part: f64) -> BTreeSet<&WorkerId> {
        let at_work = self.tasks.values().filter_map(|task| {
            let leased = task.leased()?;
            let done = if leased.verifying { 1.0 } else { fraction(task) };
            (done < part).then_some(&leased.worker)
        });
        at_work.collect()
    }

    /// Whether the worker may take a task, where these are busy.
    fn is_open(&self, worker: &Worker, busy: &BTreeSet<&WorkerId>, now: Now) -> bool {
        self.is_alive(worker, now) && !worker.draining && !busy.contains(&worker.id)
    }

    /// Whether all that the task reads is there, and nobody works on it.
    pub(super) fn is_ready(&self, job: &Job, task: &Task) -> bool {
        if !matches!(task.phase, Phase::Pending) {
            return false;
        }
        match &task.kind {
            Kind::Synthesise { .. } => true,
            Kind::Capture { round, .. } => self.latents(job).is_some() && self.are_trained(job, round.checked_sub(1)),
            Kind::Distill { round, layer } => {
                let stand = Some(&self.placement.standing(&task.id)) == job.shards.get(*round as usize);
                debug_assert_eq!(stand, self.shards_of_layer(job, *round, *layer).is_some());
                stand && self.are_trained(job, round.checked_sub(1))
            }
            Kind::Finetune => self.latents(job).is_some() && self.are_trained(job, Some(job.rounds())),
            Kind::Evaluate(_) => !job.output.is_empty() && self.latents(job).is_some(),
        }
    }

    /// Whether all blocks of the round are accepted; true where there is none before.
    fn are_trained(&self, job: &Job, round: Option<u32>) -> bool {
        let Some(round) = round else { return true };
        let step = Step { stage: Stage::Distill, round };
        self.tasks_of(job).filter(|task| Step::of(&task.kind) == step).all(Task::is_committed)
    }

    /// The blocks that stand after the round.
    fn blocks_of(&self, job: &Job, round: u32) -> Vec<v1::BlockRef> {
        let block = |(layer, output): (v1::LayerPlan, v1::DistillOutput)| v1::BlockRef {
            layer: layer.name,
            object: output.block,
            inter_ratio: layer.inter_ratio,
        };
        self.blocks(&job.id, round).into_iter().map(block).collect()
    }

    /// The students that came before the job's last one, in order: what evaluation compares beside it. As many as
    /// [`plan::earlier_students`] counts.
    pub(super) fn earlier_students(&self, job: &Job) -> Vec<v1::Blocks> {
        let mut students = Vec::new();
        if job.starts_by_ridge(0) {
            let start = |(layer, output): (v1::LayerPlan, v1::DistillOutput)| v1::BlockRef {
                inter_ratio: layer.inter_ratio,
                layer: layer.name,
                object: output.start,
            };
            let blocks = self.blocks(&job.id, 0).into_iter().map(start).collect();
            students.push(v1::Blocks { round: 0, blocks });
        }
        let Course { rounds, finetune } = job.course();
        let rounds = 0..rounds + u32::from(finetune);
        students.extend(rounds.map(|round| v1::Blocks { round, blocks: self.blocks_of(job, round) }));
        debug_assert_eq!(students.len(), plan::earlier_students(&job.spec) as usize);
        students
    }

    /// The accepted block of a layer in the round.
    fn block_of(&self, job: &Job, round: u32, layer: usize) -> Option<v1::ObjectRef> {
        let name = &job.plan.layers.get(layer)?.name;
        if self.staying(job).iter().any(|one| one.layer == *name) {
            return None;
        }
        let is_of = |task: &&Task| task.kind == Kind::Distill { round, layer };
        self.tasks_of(job).find(is_of)?.distilled.as_ref()?.block.clone()
    }

    /// The job's synthesised latents in order, if all of them stand; none for a job with ready ones.
    fn latents(&self, job: &Job) -> Option<Vec<v1::ShardOfRange>> {
        // They are the first of a job's tasks.
        self.tasks_of(job)
            .map_while(|task| match &task.kind {
                Kind::Synthesise { range } => Some((range, task)),
                Kind::Capture { .. } | Kind::Distill { .. } | Kind::Finetune | Kind::Evaluate(_) => None,
            })
            .map(|(range, task)| Some(v1::ShardOfRange { range: Some(*range), object: Some(task.latents()?.clone()) }))
            .collect()
    }

    /// The layer's shards that a round trains on in sample order, if all of them stand. Those of one range from several
    /// rounds follow each other, the latest first.
    fn shards_of_layer(&self, job: &Job, round: u32, layer: usize) -> Option<Vec<v1::ShardOfRange>> {
        let name = &job.plan.layers.get(layer)?.name;
        let mut captures: Vec<(&v1::SampleRange, Reverse<u32>, &Task)> = self
            .tasks_of(job)
            .filter_map(|task| match &task.kind {
                Kind::Capture { round: of, range } if job.reads(round, &task.kind) => Some((range, Reverse(*of), task)),
                _ => None,
            })
            .collect();
        captures.sort_by_key(|(range, of, _)| (range.start, *of));
        let shard = |(range, _, task): (&v1::SampleRange, _, &Task)| {
            Some(v1::ShardOfRange { range: Some(*range), object: Some(task.shards.get(name)?.clone()) })
        };
        captures.into_iter().map(shard).collect()
    }

    /// What the attempt at work on a task was told to do: what its output is checked against.
    pub fn expectation(&self, id: &TaskId) -> Option<(v1::TaskSpec, AttemptId)> {
        let task = self.tasks.get(id)?;
        Some((self.spec(self.jobs.get(&task.job)?, task)?, task.leased()?.attempt.clone()))
    }

    /// The message that has a worker begin the attempt that `task` is leased for.
    fn start(&self, task: &Task) -> Option<v1::Start> {
        let job = self.jobs.get(&task.job)?;
        let latents = match &task.kind {
            Kind::Capture { .. } | Kind::Finetune | Kind::Evaluate(_) => self.latents(job)?,
            Kind::Distill { round, .. } if job.finds_costs(*round) => self.latents(job)?,
            Kind::Synthesise { .. } | Kind::Distill { .. } => Vec::new(),
        };
        let spec = v1::TaskSpec { latents, ..self.spec(job, task)? };
        Some(v1::Start { lease: task.lease(), task: Some(spec) })
    }

    /// What the task is, without the latents that it reads: while they are made again its output can be checked nevertheless.
    fn spec(&self, job: &Job, task: &Task) -> Option<v1::TaskSpec> {
        let kind = match &task.kind {
            Kind::Synthesise { range } => v1::task_spec::Kind::Synthesise(v1::SynthesiseTask { range: Some(*range) }),
            Kind::Capture { round, range } => {
                let trained = plan::trained_in(*round, &job.plan.layers);
                let missing = trained.iter().filter(|layer| !task.shards.contains_key(&layer.name));
                let layers = missing.map(|layer| layer.name.clone()).collect();
                let blocks = round.checked_sub(1).map(|before| self.blocks_of(job, before)).unwrap_or_default();
                v1::task_spec::Kind::Capture(v1::CaptureTask { round: *round, range: Some(*range), layers, blocks })
            }
            Kind::Distill { round, layer } => v1::task_spec::Kind::Distill(v1::DistillTask {
                round: *round,
                layer: self.plan_of_round(job, *round).layers.get(*layer).cloned(),
                shards: self.shards_of_layer(job, *round, *layer)?,
                resume: task.checkpoint.clone(),
                start: round.checked_sub(1).and_then(|before| self.block_of(job, before, *layer)),
                alone: job.finds_costs(*round),
                start_by_ridge: job.starts_by_ridge(*round),
                steps: self.steps(job, *round).get(*layer).copied()?,
                start_inter_ratio: match round.checked_sub(1) {
                    None => 0.0,
                    Some(before) => self.plan_of_round(job, before).layers.get(*layer)?.inter_ratio,
                },
            }),
            Kind::Evaluate(part) => v1::task_spec::Kind::Evaluate(v1::EvaluateTask {
                part: Some(*part),
                output: job.output.clone(),
                rounds: self.earlier_students(job),
            }),
            Kind::Finetune => v1::task_spec::Kind::Finetune(v1::FinetuneTask {
                blocks: self.blocks_of(job, job.rounds()),
                resume: task.checkpoint.clone(),
            }),
        };
        let plan = match &task.kind {
            Kind::Finetune | Kind::Evaluate(_) => self.plan_of_student(job),
            Kind::Synthesise { .. } | Kind::Capture { .. } | Kind::Distill { .. } => job.plan.clone(),
        };
        let latents = Vec::new();
        Some(v1::TaskSpec { job: Some(job.spec.clone()), plan: Some(plan), kind: Some(kind), latents })
    }

    /// Has idle workers ask again, as many as there are ready tasks: first those whose nodes hold most of one.
    pub(super) fn wake_idle(&self, now: Now, effects: &mut Effects) {
        let jobs = self.jobs.values().filter(|job| job.is_running());
        let ready = jobs.flat_map(|job| self.tasks_of(job).filter(|task| self.is_ready(job, task)));
        let ready: Vec<TaskId> = ready.map(|task| task.id.clone()).collect();
        if ready.is_empty() {
            return;
        }
        let busy = self.busy(f64::INFINITY);
        let idle = self.workers.values().filter(|worker| self.is_open(worker, &busy, now));
        let mut idle: Vec<&WorkerId> = idle.map(|worker| &worker.id).collect();
        if ready.len() < idle.len() {
            idle.sort_by_cached_key(|worker| Reverse(self.placement.most(&ready, worker)));
        }
        effects.commands.extend(idle.into_iter().take(ready.len()).map(|worker| Command::Wake(worker.clone())));
    }
}

/// What a task costs beside its peers, in no unit, where the plan's layers are trained for so many steps: the longest begin
/// first, so that none is left alone at the end.
fn cost(plan: &v1::JobPlan, task: &Task, steps: &[u32]) -> u128 {
    match &task.kind {
        Kind::Synthesise { .. } | Kind::Capture { .. } | Kind::Finetune => 0,
        Kind::Distill { layer, .. } => {
            let step = plan::cost::Block::planned(&plan.layers[*layer]).total();
            step.saturating_mul(steps[*layer].into())
        }
        Kind::Evaluate(v1::evaluate_task::Part::Noise(_)) => 0,
        Kind::Evaluate(v1::evaluate_task::Part::Pictures(_)) => 1,
    }
}
