//! What a worker should be doing: which task it is leased next, and what it is told about it.

use std::cmp::Reverse;
use std::sync::OnceLock;

use deltaconv_proto::ids::{AttemptId, WorkerId};
use deltaconv_proto::v1;
use prost::Message;

use super::events::{About, Severity};
use super::job::Encoded;
use super::placement::Fit;
use super::status::fraction;
use super::step::Course;
use super::tasks::Slot;
use super::{Command, Effects, Job, Kind, Leased, Now, Phase, Stage, State, Step, Task, Worker};
use crate::plan;
use crate::store::Write;

/// A worker whose task is done to this part asks for another one soon.
const SOON: f64 = 0.9;

impl State {
    /// Says again what the worker is leased and doesn't know of.
    pub(super) fn remind(&self, worker: &WorkerId, stated: &[&v1::Lease], response: &mut v1::SyncResponse) {
        // The answer that told the worker of such a lease was lost on the way.
        for task in self.leases_of(worker) {
            let own = task.leases().iter().filter(|leased| leased.worker == *worker);
            let unknown =
                own.filter(|leased| !stated.iter().any(|lease| lease.task_id == task.id.as_str() && leased.is(lease)));
            response.start.extend(unknown.filter_map(|leased| self.start(task, leased)));
        }
    }

    /// Leases the worker, which has nothing to do, its next task, if there is one.
    pub(super) fn offer(&mut self, id: &WorkerId, now: Now, effects: &mut Effects, response: &mut v1::SyncResponse) {
        let Some(worker) = self.workers.get(id) else { return };
        if !worker.leases.is_empty() || !self.is_usable(worker, now) {
            return;
        }
        let Some(slot) = self.next_task(worker, now).or_else(|| self.next_spare(worker, now)) else { return };
        let held = self.placement.share(slot, id);
        let epoch = self.meta.epoch + 1;
        let attempts = self.tasks[slot].attempts.saturating_add(1);
        // Letters, digits and '-' alone, by construction.
        let Ok(attempt) = AttemptId::new(format!("a{attempts}-{epoch}-{}", self.settings.identity)) else { return };
        self.meta.epoch = epoch;
        let leased = Leased {
            attempt,
            epoch,
            worker: id.clone(),
            since: now.monotonic,
            deadline: now.monotonic + self.settings.lease_ttl,
            held,
            from: self.tasks[slot].checkpoint.as_ref().map_or(0, |checkpoint| checkpoint.step),
            began_at: None,
            progress: None,
            verifying: false,
        };
        self.change(slot, |task| {
            task.attempts = attempts;
            match &mut task.phase {
                Phase::Leased(leases) => leases.push(leased.clone()),
                phase => *phase = Phase::Leased(vec![leased.clone()]),
            }
        });
        effects.writes.push(Write::Meta(self.meta));
        self.write_task(slot, effects);
        self.totals.leases += 1;
        if self.tasks[slot].leases().len() > 1 {
            self.totals.spares += 1;
            let message = "a second attempt beside one that is predicted to take twice as long as its peers";
            self.note((Severity::Info, "spare-began"), About::Task(slot, Some(id)), message, effects);
        }
        response.start.extend(self.start(&self.tasks[slot], &leased));
    }

    /// The tasks that a worker is leased.
    pub(super) fn leases_of<'a>(&'a self, worker: &WorkerId) -> impl Iterator<Item = &'a Task> + use<'a> {
        let leases = self.workers.get(worker).map(|worker| &worker.leases);
        leases.into_iter().flatten().map(|slot| &self.tasks[*slot])
    }

    /// A ready task of the job whose turn it is; in it, of the earliest stage; in it, one whose shards the worker's node holds,
    /// most bytes first; then the longest; and last what another worker that asks soon has nearer. So a worker that asks
    /// gets a task whenever one is ready: where shards lie decides which, never whether.
    fn next_task(&self, worker: &Worker, now: Now) -> Option<Slot> {
        self.queue.jobs().find_map(|job| {
            let job = &self.jobs[job];
            let takes_more = !job.is_full() && worker.meets(job.spec.requires.as_ref());
            job.ready().filter(|_| takes_more).find_map(|work| self.nearest(worker, &work.waiting, now))
        })
    }

    /// Of tasks of one step, the longest first, the one that suits the worker best.
    fn nearest<'a>(
        &self,
        worker: &Worker,
        waiting: impl IntoIterator<Item = &'a (Reverse<u64>, Slot)>,
        now: Now,
    ) -> Option<Slot> {
        let is_asking = |id: &WorkerId| self.workers.get(id).is_some_and(|worker| self.asks_soon(worker, now));
        let mut best: Option<(Fit, Slot)> = None;
        for (_, slot) in waiting {
            if !self.may_try(*slot, worker, now) {
                continue;
            }
            let task = &self.tasks[*slot];
            if !matches!(task.kind, Kind::Distill { .. }) {
                // It reads no shards, so it is as well done anywhere.
                return Some(*slot);
            }
            let fit = self.placement.fit(*slot, &worker.id, is_asking);
            if best.is_none_or(|(of_best, _)| fit < of_best) {
                best = Some((fit, *slot));
            }
        }
        best.map(|(_, slot)| slot)
    }

    /// Whether the worker may take a task, now or soon.
    fn asks_soon(&self, worker: &Worker, now: Now) -> bool {
        let is_nearly_done = |task: &Task| {
            let mut own = task.leases().iter().filter(|leased| leased.worker == worker.id);
            own.all(|leased| leased.verifying || fraction(task) >= SOON)
        };
        self.is_usable(worker, now) && self.leases_of(&worker.id).all(is_nearly_done)
    }

    /// Whether all that the task reads is there, and nobody works on it.
    pub(super) fn is_ready(&self, job: &Job, task: &Task) -> bool {
        let step = Step::of(&task.kind);
        let Some(slot) = self.tasks.slot(&task.id) else { return false };
        task.is_pending()
            && job.is_open(step)
            && job.work(step).is_some_and(|work| work.waiting.contains(&(Reverse(task.rank), slot)))
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
        let step = Step { stage: Stage::Distill, round };
        self.tasks_in(job, step).find(|task| task.is_of_layer(layer))?.distilled.as_ref()?.block.clone()
    }

    /// The job's synthesised latents in order, if all of them stand; none for a job with ready ones.
    fn latents(&self, job: &Job) -> Option<Vec<v1::ShardOfRange>> {
        let part = |task: &Task| match &task.kind {
            Kind::Synthesise { range } => {
                Some(v1::ShardOfRange { range: Some(*range), object: Some(task.latents()?.clone()) })
            }
            Kind::Capture { .. } | Kind::Distill { .. } | Kind::Finetune | Kind::Evaluate(_) => None,
        };
        self.tasks_in(job, Step { stage: Stage::Synthesise, round: 0 }).map(part).collect()
    }

    /// The layer's shards that a round trains on in sample order, if all of them stand. Those of one range from several
    /// rounds follow each other, the latest first.
    fn shards_of_layer(&self, job: &Job, round: u32, layer: usize) -> Option<Vec<v1::ShardOfRange>> {
        let name = &job.plan.layers.get(layer)?.name;
        let rounds = if round == 0 { vec![0] } else { vec![0, round] };
        let mut captures: Vec<(&v1::SampleRange, Reverse<u32>, &Task)> = rounds
            .into_iter()
            .flat_map(|round| self.tasks_in(job, Step { stage: Stage::Capture, round }))
            .filter_map(|task| match &task.kind {
                Kind::Capture { round: of, range } if job.reads(round, &task.kind) => Some((range, Reverse(*of), task)),
                _ => None,
            })
            .collect();
        captures.sort_by_key(|(range, of, _)| (range.start, *of));
        let shard = |(range, _, task): (&v1::SampleRange, _, &Task)| {
            Some(v1::ShardOfRange { range: Some(*range), object: Some(task.shard(layer, name)?) })
        };
        captures.into_iter().map(shard).collect()
    }

    /// The message that has a worker begin an attempt. None while something that it reads is made again.
    pub(super) fn start(&self, task: &Task, leased: &Leased) -> Option<v1::Start> {
        let job = self.jobs.get(&task.job)?;
        let mut spec = self.spec(job, task)?;
        spec.latents = match &task.kind {
            Kind::Capture { .. } | Kind::Finetune | Kind::Evaluate(_) => self.latents(job)?,
            Kind::Distill { round, .. } if job.finds_costs(*round) => self.latents(job)?,
            Kind::Synthesise { .. } | Kind::Distill { .. } => Vec::new(),
        };
        if let (Kind::Distill { round, layer }, Some(v1::task_spec::Kind::Distill(distill))) =
            (&task.kind, &mut spec.kind)
        {
            distill.shards = self.shards_of_layer(job, *round, *layer)?;
        }
        Some(v1::Start { lease: Some(task.message(leased)), task: Some(spec) })
    }

    /// What the task is, without the latents and shards that it reads: while they are made again its output can be checked
    /// nevertheless.
    pub(super) fn spec(&self, job: &Job, task: &Task) -> Option<v1::TaskSpec> {
        let kind = match &task.kind {
            Kind::Synthesise { range } => v1::task_spec::Kind::Synthesise(v1::SynthesiseTask { range: Some(*range) }),
            Kind::Capture { round, range } => {
                let trained = plan::trained_in(*round, &job.plan.layers);
                let first = job.plan.layers.len() - trained.len();
                let missing = (first..).zip(trained).filter(|(layer, _)| !task.shards.has(*layer));
                let layers = missing.map(|(_, layer)| layer.name.clone()).collect();
                let blocks = round.checked_sub(1).map(|before| self.blocks_of(job, before)).unwrap_or_default();
                v1::task_spec::Kind::Capture(v1::CaptureTask { round: *round, range: Some(*range), layers, blocks })
            }
            Kind::Distill { round, layer } => v1::task_spec::Kind::Distill(v1::DistillTask {
                round: *round,
                layer: self.plan_of_round(job, *round).layers.get(*layer).cloned(),
                shards: Vec::new(),
                resume: task.checkpoint.as_deref().cloned(),
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
                resume: task.checkpoint.as_deref().cloned(),
            }),
        };
        let encoded = job.encoded.get_or_init(|| Encoded {
            spec: job.spec.encode_to_vec(),
            plan: job.plan.encode_to_vec(),
            student: OnceLock::new(),
        });
        let plan = match &task.kind {
            // Every layer is trained by now.
            Kind::Finetune | Kind::Evaluate(_) => {
                encoded.student.get_or_init(|| self.plan_of_student(job).encode_to_vec())
            }
            Kind::Synthesise { .. } | Kind::Capture { .. } | Kind::Distill { .. } => &encoded.plan,
        };
        Some(v1::TaskSpec { job: encoded.spec.clone(), plan: plan.clone(), kind: Some(kind), latents: Vec::new() })
    }

    /// Has idle workers ask again, as many as there are ready tasks: first those whose nodes hold most of one.
    pub(super) fn wake_idle(&mut self, now: Now, effects: &mut Effects) {
        if self.idle.is_empty() {
            return;
        }
        let waiting = self.queue.jobs().flat_map(|job| self.jobs[job].ready()).flat_map(|work| &work.waiting);
        let ready: Vec<Slot> = waiting.take(self.idle.len()).map(|(_, slot)| *slot).collect();
        self.wake(&ready, now, effects);
    }

    /// Wakes as many of the idle workers as there are tasks for them.
    pub(super) fn wake(&mut self, ready: &[Slot], now: Now, effects: &mut Effects) {
        if ready.is_empty() {
            return;
        }
        let is_open = |id: &&WorkerId| self.workers.get(id).is_some_and(|worker| self.is_usable(worker, now));
        let mut idle: Vec<WorkerId> = self.idle.iter().filter(is_open).cloned().collect();
        if ready.len() < idle.len() {
            idle.sort_by_cached_key(|worker| Reverse(self.placement.most(ready, worker)));
            idle.truncate(ready.len());
        }
        for worker in idle {
            // It says so itself if it has nothing to do then.
            self.idle.remove(&worker);
            effects.commands.push(Command::Wake(worker));
        }
    }
}
