//! Jobs: how they come, go from stage to stage, and end.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::sync::{Arc, OnceLock};

use deltaconv_proto::ids::{JobId, TaskId};
use deltaconv_proto::{bounds, keys, v1};

use super::bounded::{STORY, bounded, fits};
use super::events::{About, Severity};
use super::history::History;
use super::queue::Place;
use super::step::Course;
use super::still::Still;
use super::tasks::{Slot, Slots};
use super::work::Work;
use super::{Command, Effects, Error, Kind, Now, Phase, Stage, State, Step, Task, Turn};
use crate::plan;

/// More than planning lets through; each takes half a kilobyte. Fuzzing, which bounds what a few bytes may make, has jobs of fewer.
const MAX_TASKS: u64 = if cfg!(any(test, feature = "fuzzing")) { 1 << 12 } else { 1 << 21 };

/// Where a job stands.
#[derive(Clone, Debug, PartialEq)]
pub enum JobState {
    /// Work is left.
    Running,
    /// The converted model and its report are written.
    Done,
    /// It can't go on.
    Failed(String),
    /// The operator ended it.
    Cancelled,
}

impl JobState {
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Done => "done",
            Self::Failed(_) => "failed",
            Self::Cancelled => "cancelled",
        }
    }

    pub(super) fn reason(&self) -> &str {
        match self {
            Self::Failed(reason) => reason,
            Self::Running | Self::Done | Self::Cancelled => "",
        }
    }

    pub(super) fn from_name(name: &str, reason: String) -> Option<Self> {
        match name {
            "running" => Some(Self::Running),
            "done" => Some(Self::Done),
            "failed" => Some(Self::Failed(reason)),
            "cancelled" => Some(Self::Cancelled),
            _ => None,
        }
    }
}

/// One conversion.
#[derive(Clone, Debug)]
pub struct Job {
    /// Its id.
    pub id: JobId,
    /// As it was submitted.
    pub spec: v1::JobSpec,
    /// What was made of it.
    pub plan: v1::JobPlan,
    /// Where it stands.
    pub state: JobState,
    /// When it came, for people.
    pub created_unix_ms: u64,
    /// When it ended, for people; 0 while it runs.
    pub finished_unix_ms: u64,
    /// By the position of the [`Step`].
    pub stages: Vec<v1::StageTimes>,
    /// The order in which jobs came.
    pub sequence: u64,
    /// What assembly wrote; empty until then.
    pub output: Vec<v1::ObjectRef>,
    /// BLAKE3 of the teacher's denoiser; empty until assembly read it.
    pub teacher_digest: String,
    /// What evaluation found.
    pub figures: Option<v1::Figures>,
    /// What its retention doesn't keep is removed.
    pub reclaimed: bool,
    /// Its work is held up by an operator.
    pub paused: bool,
    /// How often it was had go on after it had failed.
    pub retries: u32,
    /// Its tasks, in order of stage.
    pub(super) slots: Slots,
    /// By the position of the [`Step`]: what is left of it.
    pub(super) work: Vec<Work>,
    /// The tasks that somebody works on.
    pub(super) in_work: BTreeSet<Slot>,
    /// Attempts at work on them.
    pub(super) attempts: usize,
    /// The tasks that are given to nobody.
    pub(super) quarantined: BTreeSet<Slot>,
    /// Where it stands among others.
    pub(super) place: Place,
    /// Once a task was given.
    pub(super) encoded: OnceLock<Encoded>,
    /// Whether nobody works on it, as last looked.
    pub(super) still: Option<Still>,
    /// Of the plan's layers, in its order: one copy for all shards.
    pub(super) names: Arc<[Arc<str>]>,
    /// By round: how many shards of a layer its distill task reads.
    pub(super) shards: Vec<usize>,
    /// How its layers' errors went since this process runs.
    pub(super) history: History,
}

/// What every task of a job comes with.
#[derive(Clone, Debug)]
pub(super) struct Encoded {
    /// The job's spec.
    pub(super) spec: Vec<u8>,
    /// Its plan.
    pub(super) plan: Vec<u8>,
    /// Its plan as it came out, once every layer is trained.
    pub(super) student: OnceLock<Vec<u8>>,
}

impl Job {
    pub(super) fn new(
        id: JobId,
        spec: v1::JobSpec,
        plan: v1::JobPlan,
        sequence: u64,
        created_unix_ms: u64,
    ) -> Result<(Self, Vec<Task>), Error> {
        let insane = |what: &dyn Display| Error::Record(format!("job {id}: {what}"));
        bounds::check(&spec, &plan).map_err(|error| insane(&error))?;
        let count = plan::count_tasks(&spec, &plan);
        if count > MAX_TASKS {
            return Err(insane(&format_args!("it has {count} tasks, and {MAX_TASKS} are the most")));
        }
        let names = plan.layers.iter().map(|layer| layer.name.as_str().into()).collect();
        let mut job = Self {
            names,
            id,
            spec,
            plan,
            state: JobState::Running,
            created_unix_ms,
            finished_unix_ms: 0,
            stages: Vec::new(),
            sequence,
            output: Vec::new(),
            teacher_digest: String::new(),
            figures: None,
            reclaimed: false,
            paused: false,
            retries: 0,
            slots: Slots::default(),
            work: Vec::new(),
            in_work: BTreeSet::new(),
            attempts: 0,
            quarantined: BTreeSet::new(),
            place: Place::default(),
            encoded: OnceLock::new(),
            still: None,
            shards: Vec::new(),
            history: History::default(),
        };
        job.stages = vec![v1::StageTimes::default(); Step::all(job.course()).count()];
        let tasks = job.new_tasks()?;
        let of_round = |round| tasks.iter().filter(|task| job.reads(round, &task.kind)).count();
        job.shards = (0..=job.rounds()).map(of_round).collect();
        Ok((job, tasks))
    }

    /// The job's tasks as they stand before anybody worked on them.
    fn new_tasks(&self) -> Result<Vec<Task>, Error> {
        let mut tasks = Vec::new();
        let mut add = |local: String, kind: Kind| -> Result<(), Error> {
            // Pictures take longer than noise.
            let rank = matches!(kind, Kind::Evaluate(v1::evaluate_task::Part::Pictures(_))).into();
            tasks.push(Task { rank, ..Task::new(TaskId::of(&self.id, &local)?, self.id.clone(), kind) });
            Ok(())
        };
        for range in plan::synthesis_ranges(&self.spec, &self.plan) {
            add(format!("synthesise/{}", keys::range(&range)), Kind::Synthesise { range })?;
        }
        for round in 0..=self.rounds() {
            let trained = plan::trained_in(round, &self.plan.layers);
            let ranges = if trained.is_empty() { Vec::new() } else { plan::capture_ranges(&self.spec) };
            for range in ranges {
                add(format!("r{round}/capture/{}", keys::range(&range)), Kind::Capture { round, range })?;
            }
            let first = self.plan.layers.len() - trained.len();
            for (layer, planned) in self.plan.layers.iter().enumerate().skip(first) {
                add(format!("r{round}/distill/{}", planned.name), Kind::Distill { round, layer })?;
            }
        }
        if self.course().finetune {
            add(keys::FINETUNE.to_owned(), Kind::Finetune)?;
        }
        for part in plan::evaluation_parts(&self.spec) {
            let local = match &part {
                v1::evaluate_task::Part::Noise(range) => format!("evaluate/noise/{}", keys::range(range)),
                v1::evaluate_task::Part::Pictures(range) => format!("evaluate/pictures/{}", keys::range(range)),
            };
            add(local, Kind::Evaluate(part))?;
        }
        Ok(tasks)
    }

    /// Whether as many workers are at it as may be.
    pub(super) fn is_full(&self) -> bool {
        self.spec.max_workers > 0 && self.attempts >= self.spec.max_workers as usize
    }

    /// Whether work is left.
    pub fn is_running(&self) -> bool {
        self.state == JobState::Running
    }

    /// Rounds after the first one.
    pub fn rounds(&self) -> u32 {
        self.spec.recipe.as_ref().map_or(0, |recipe| recipe.rounds)
    }

    /// What is done for it now, and counts for as long as it goes on.
    fn turn(&self) -> Turn {
        Turn { job: self.id.clone(), retries: self.retries }
    }

    pub(super) fn course(&self) -> Course {
        let finetune = self.spec.recipe.as_ref().is_some_and(|recipe| recipe.finetune.is_some());
        Course { rounds: self.rounds(), finetune }
    }

    /// Whether the round's trainings start from regressions.
    pub(super) fn starts_by_ridge(&self, round: u32) -> bool {
        round == 0 && self.spec.recipe.as_ref().is_some_and(v1::Recipe::starts_by_ridge)
    }

    /// Whether the round finds what each layer's replacement alone costs.
    pub(super) fn finds_costs(&self, round: u32) -> bool {
        let is_asked_for =
            |recipe: &v1::Recipe| recipe.keep_costliest.is_some() || recipe.is_by_gain() || recipe.widens();
        round == 0 && self.spec.recipe.as_ref().is_some_and(is_asked_for)
    }

    /// Whether a distill task of the round reads what a task of this kind writes: what its own round recorded, and after
    /// the first round a share of the first one's, too.
    pub(super) fn reads(&self, round: u32, kind: &Kind) -> bool {
        match kind {
            Kind::Capture { round: captured, .. } if *captured == round => true,
            Kind::Capture { round: 0, range } => plan::is_mixed_in(&self.spec, range),
            _ => false,
        }
    }

    /// The steps that the job takes, in order: making latents only where they are not ready.
    pub fn steps(&self) -> impl Iterator<Item = Step> {
        let has_synthesis = self.has_synthesis();
        Step::all(self.course()).filter(move |step| step.stage != Stage::Synthesise || has_synthesis)
    }

    /// When the step began and ended.
    pub fn times(&self, step: Step) -> v1::StageTimes {
        self.stages.get(step.position(self.course())).copied().unwrap_or_default()
    }

    fn has_synthesis(&self) -> bool {
        self.spec.data.as_ref().is_some_and(|data| data.synthesis.is_some() || data.images.is_some())
    }

    /// The step that the job has come to.
    pub fn step(&self) -> Step {
        let started = self.steps().filter(|step| self.times(*step).started_unix_ms > 0);
        started.last().unwrap_or(Step { stage: Stage::Capture, round: 0 })
    }

    fn start(&mut self, step: Step, now: Now) -> bool {
        let position = step.position(self.course());
        let Some(times) = self.stages.get_mut(position) else { return false };
        let first = times.started_unix_ms == 0;
        if first {
            // 0 means "not yet", also on a clock that stands at the epoch.
            times.started_unix_ms = now.unix_ms.max(1);
        }
        first
    }

    fn finish(&mut self, step: Step, now: Now) {
        let position = step.position(self.course());
        let Some(times) = self.stages.get_mut(position) else { return };
        if times.finished_unix_ms == 0 {
            times.finished_unix_ms = now.unix_ms.max(1);
        }
    }
}

impl State {
    /// Accepts a job, or answers with the one that has the same spec and output. Returns its id and whether it existed.
    pub fn submit(
        &mut self,
        spec: v1::JobSpec,
        plan: v1::JobPlan,
        now: Now,
        effects: &mut Effects,
    ) -> Result<(JobId, bool), Error> {
        if let Some(job) = self.job_writing_to(&spec.output_url) {
            let same = job.spec == spec && matches!(job.state, JobState::Running | JobState::Done);
            if same {
                return Ok((job.id.clone(), true));
            }
            if job.is_running() || job.spec != spec {
                return Err(Error::OutputInUse { job: job.id.clone(), url: spec.output_url });
            }
        }
        self.meta.jobs += 1;
        let id = JobId::new(format!("{}-{}", spec.name, self.meta.jobs))?;
        let (job, tasks) = Job::new(id.clone(), spec, plan, self.meta.jobs, now.unix_ms)?;
        self.add_job(job, tasks);
        self.index_job(&id);
        let tasks = self.jobs[&id].slots.len();
        let output = &self.jobs[&id].spec.output_url;
        let message = format!("submitted: {tasks} tasks, to {output}");
        self.note((Severity::Info, "job-submitted"), About::Job(&id), message, effects);
        self.advance(&id, now, effects);
        Ok((id, false))
    }

    /// The latest job that writes to `url`.
    pub fn job_writing_to(&self, url: &str) -> Option<&Job> {
        self.jobs.values().filter(|job| job.spec.output_url == url).max_by_key(|job| job.sequence)
    }

    /// Ends a job at the operator's wish. Workers are told at their next report.
    pub fn cancel(&mut self, id: &JobId, now: Now, effects: &mut Effects) -> Result<(), Error> {
        let job = self.jobs.get(id).ok_or_else(|| Error::UnknownJob(id.clone()))?;
        match job.state {
            JobState::Cancelled => Ok(()),
            JobState::Running => {
                self.end(id, JobState::Cancelled, now, effects);
                Ok(())
            }
            JobState::Done | JobState::Failed(_) => Err(Error::Ended { job: id.clone(), state: job.state.name() }),
        }
    }

    /// Ends a job whose output another coordinator took over.
    pub fn fenced(&mut self, id: &JobId, reason: String, now: Now, effects: &mut Effects) {
        self.fail(id, reason, now, effects);
    }

    /// Whether there is any job, whatever became of it.
    pub fn has_jobs(&self) -> bool {
        !self.jobs.is_empty()
    }

    /// The jobs that are running, and where they write.
    pub fn running(&self) -> Vec<(JobId, String)> {
        let running = self.jobs.values().filter(|job| job.is_running());
        running.map(|job| (job.id.clone(), job.spec.output_url.clone())).collect()
    }

    pub(super) fn fail(&mut self, id: &JobId, reason: String, now: Now, effects: &mut Effects) {
        self.end(id, JobState::Failed(bounded(&reason, STORY)), now, effects);
    }

    fn end(&mut self, id: &JobId, state: JobState, now: Now, effects: &mut Effects) {
        let Some(job) = self.jobs.get_mut(id).filter(|job| job.is_running()) else { return };
        job.state = state;
        job.finished_unix_ms = now.unix_ms.max(1);
        job.encoded.take();
        let at_work = job.in_work.clone();
        for slot in &at_work {
            let workers = self.tasks[*slot].leases().iter().map(|leased| Command::Wake(leased.worker.clone()));
            effects.commands.extend(workers);
        }
        self.change_all(id, at_work.iter().copied(), |task| task.phase = Phase::Pending);
        at_work.into_iter().for_each(|slot| self.write_task(slot, effects));
        self.displace_job(id);
        self.write_job(id, effects);
        let (what, message) = match &self.jobs[id].state {
            JobState::Failed(reason) => ((Severity::Error, "job-failed"), format!("failed: {reason}")),
            JobState::Cancelled => ((Severity::Info, "job-cancelled"), "cancelled".to_owned()),
            JobState::Running | JobState::Done => ((Severity::Info, "job-done"), "done".to_owned()),
        };
        self.note(what, About::Job(id), message, effects);
        effects.commands.push(Command::Manifest(id.clone()));
        self.reclaim(&self.jobs[id], effects);
    }

    /// Moves the job to the stage that its tasks allow.
    pub(super) fn advance(&mut self, id: &JobId, now: Now, effects: &mut Effects) {
        let Some(job) = self.jobs.get(id).filter(|job| job.is_running()) else { return };
        // Everything before the first step that isn't over, and that one begins.
        let is_over = |step: &Step| match step.stage {
            Stage::Assemble => !job.output.is_empty(),
            _ => job.is_over(*step),
        };
        let over: Vec<Step> = job.steps().take_while(is_over).collect();
        let next = job.steps().nth(over.len());

        let Some(job) = self.jobs.get_mut(id) else { return };
        let before = job.stages.clone();
        for step in over {
            job.start(step, now);
            // The report is written first.
            if step.stage != Stage::Evaluate {
                job.finish(step, now);
            }
        }
        match next {
            None => effects.commands.push(Command::Report(job.turn())),
            Some(step) => {
                let begins = job.start(step, now);
                if begins && step.stage == Stage::Assemble {
                    effects.commands.push(Command::Assemble(job.turn()));
                }
                if begins {
                    // What the rounds before found decides about this one.
                    self.rank(id, step);
                    let message = format!("{} began", self.in_words(id, step));
                    self.note((Severity::Info, "stage-began"), About::Job(id), message, effects);
                }
            }
        }
        let Some(job) = self.jobs.get(id) else { return };
        if job.stages != before {
            self.write_job(id, effects);
            effects.commands.push(Command::Manifest(id.clone()));
        }
        self.fail_if_stuck(id, now, effects);
        self.wake_idle(now, effects);
    }

    fn in_words(&self, id: &JobId, step: Step) -> String {
        let repeats = self.jobs[id].rounds() > 0 && matches!(step.stage, Stage::Capture | Stage::Distill);
        let round = if repeats { format!(" of round {}", step.round) } else { String::new() };
        format!("{}{round}", step.stage.name())
    }

    /// Gives again the commands that a stopped coordinator may have left undone.
    pub(super) fn resume_stage(&self, id: &JobId, effects: &mut Effects) {
        let job = &self.jobs[id];
        let command = Command::Assemble(job.turn());
        let given = effects.commands.contains(&command);
        if job.step().stage == Stage::Assemble && job.output.is_empty() && !given {
            effects.commands.push(command);
        }
    }

    /// Has a job go on that failed, or of which tasks are to be tried again.
    pub(super) fn go_on(&mut self, id: &JobId, now: Now, effects: &mut Effects) {
        let Some(job) = self.jobs.get_mut(id) else { return };
        if !job.is_running() {
            job.state = JobState::Running;
            job.retries = job.retries.saturating_add(1);
            job.finished_unix_ms = 0;
            let slots = job.slots.clone();
            self.place_job(id);
            self.change_all(id, slots.iter(), |_| ());
            self.write_job(id, effects);
            self.note((Severity::Info, "job-retried"), About::Job(id), "goes on after it had failed", effects);
        }
        self.advance(id, now, effects);
        self.resume_stage(id, effects);
    }

    /// Whether the job stands where it stood when this was commanded.
    pub fn is_turn(&self, turn: &Turn) -> bool {
        self.jobs.get(&turn.job).is_some_and(|job| job.is_running() && job.retries == turn.retries)
    }

    /// The converted model is written, or can't be.
    pub fn assembled(
        &mut self,
        turn: &Turn,
        result: Result<(String, Vec<v1::ObjectRef>), String>,
        now: Now,
        effects: &mut Effects,
    ) {
        let id = &turn.job;
        match result {
            _ if !self.is_turn(turn) => {}
            Err(reason) => self.fail(id, format!("assembling failed: {reason}"), now, effects),
            Ok((teacher_digest, output)) => {
                let waits = |job: &&mut Job| job.is_running() && job.output.is_empty();
                let Some(job) = self.jobs.get_mut(id).filter(waits) else { return };
                job.teacher_digest = teacher_digest;
                job.output = output;
                if !fits(&job.record()) {
                    let reason = format!("the output's {} files are too many for the state to list", job.output.len());
                    job.output.clear();
                    return self.fail(id, reason, now, effects);
                }
                self.queue(id);
                self.write_job(id, effects);
                self.advance(id, now, effects);
            }
        }
    }

    /// The report is written, or can't be.
    pub fn reported(&mut self, turn: &Turn, result: Result<v1::Figures, String>, now: Now, effects: &mut Effects) {
        let id = &turn.job;
        match result {
            _ if !self.is_turn(turn) => {}
            Err(reason) => self.fail(id, format!("the report failed: {reason}"), now, effects),
            Ok(figures) => {
                let Some(job) = self.jobs.get_mut(id) else { return };
                job.figures = Some(figures);
                job.finish(Step { stage: Stage::Evaluate, round: 0 }, now);
                self.end(id, JobState::Done, now, effects);
            }
        }
    }

    /// The blocks that stand after a round with the layers' plans, in forward order.
    /// A layer that the round doesn't train has that of the round before; one that stays attention has none.
    pub fn blocks(&self, id: &JobId, round: u32) -> Vec<(v1::LayerPlan, v1::DistillOutput)> {
        let Some(job) = self.jobs.get(id) else { return Vec::new() };
        let staying = self.staying(job);
        let stays = |layer: usize| staying.iter().any(|one| job.plan.layers[layer].name == one.layer);
        let plans = [0, 1].map(|round| self.plan_of_round(job, round));
        let mut latest: BTreeMap<usize, (&v1::LayerPlan, &v1::DistillOutput)> = BTreeMap::new();
        for round in 0..=round {
            for task in self.tasks_in(job, Step { stage: Stage::Distill, round }) {
                if let (Kind::Distill { layer, .. }, Some(output)) = (&task.kind, &task.distilled)
                    && output.block.is_some()
                    && !stays(*layer)
                {
                    latest.insert(*layer, (&plans[usize::from(round > 0)].layers[*layer], output));
                }
            }
        }
        latest.into_values().map(|(layer, output)| (layer.clone(), output.clone())).collect()
    }

    /// What came of training the blocks together, if the job has that and it is over.
    pub fn finetuned(&self, id: &JobId) -> Option<&v1::FinetuneOutput> {
        let step = Step { stage: Stage::Finetune, round: 0 };
        let task = self.tasks_in(self.jobs.get(id)?, step).next()?;
        task.finetuned.as_deref()
    }

    /// What assembly needs: the blocks of the converted model with the layers' plans, in forward order.
    pub fn blocks_of_student(&self, id: &JobId) -> Vec<(v1::LayerPlan, v1::ObjectRef)> {
        let Some(job) = self.jobs.get(id) else { return Vec::new() };
        let finetuned = self.finetuned(id).map_or(&[][..], |output| &output.blocks);
        let latest = |(layer, output): (v1::LayerPlan, v1::DistillOutput)| {
            let together = finetuned.iter().find(|block| block.layer == layer.name).and_then(|of| of.object.clone());
            Some((layer, together.or(output.block)?))
        };
        self.blocks(id, job.rounds()).into_iter().filter_map(latest).collect()
    }

    /// The layers that stay attention though the plan would replace them, each with the reason: no block was learned, or
    /// they are the costliest, which is known once the first round has trained all.
    pub fn staying(&self, job: &Job) -> Vec<v1::StaysAttention> {
        let mut trained: Vec<(&v1::LayerPlan, &v1::DistillOutput)> = Vec::new();
        for task in self.tasks_in(job, Step { stage: Stage::Distill, round: 0 }) {
            if let (Kind::Distill { layer, .. }, Some(output)) = (&task.kind, task.distilled.as_deref()) {
                trained.extend(job.plan.layers.get(*layer).map(|layer| (layer, output)));
            }
        }
        let keep = job.spec.recipe.as_ref().and_then(|recipe| recipe.keep_costliest).unwrap_or(0) as usize;
        let mut costs: Vec<(f64, &str)> = Vec::new();
        if trained.len() == job.plan.layers.len() {
            costs.extend(trained.iter().filter_map(|(layer, output)| Some((output.alone_error?, layer.name.as_str()))));
            costs.sort_by(|a, b| b.0.total_cmp(&a.0));
            costs.truncate(keep);
        }
        let reason = |layer: &v1::LayerPlan, output: &v1::DistillOutput| {
            if !output.unlearned.is_empty() {
                return Some(format!("no block was learned, {}", output.unlearned));
            }
            let (cost, _) = costs.iter().find(|(_, name)| *name == layer.name)?;
            Some(format!(
                "its replacement alone costs {cost:.6} of the predicted noise, and recipe.keep_costliest is {keep}"
            ))
        };
        let stays = |(layer, output): (&v1::LayerPlan, &v1::DistillOutput)| {
            Some(v1::StaysAttention { layer: layer.name.clone(), reason: reason(layer, output)? })
        };
        trained.into_iter().filter_map(stays).collect()
    }

    /// The job's plan as it came out: with the blocks that stand, and without the layers that stay attention.
    pub fn plan_of_student(&self, job: &Job) -> v1::JobPlan {
        let mut plan = job.plan.clone();
        for (stands, _) in self.blocks(&job.id, job.rounds()) {
            plan.layers.iter_mut().filter(|layer| layer.name == stands.name).for_each(|layer| *layer = stands.clone());
        }
        plan::keeping(&plan, &self.staying(job))
    }

    /// The accepted parts of the evaluation, in the order of [`plan::evaluation_parts`].
    pub fn evaluation_parts(&self, id: &JobId) -> Vec<v1::ObjectRef> {
        let Some(job) = self.jobs.get(id) else { return Vec::new() };
        let evaluated = self.tasks_in(job, Step { stage: Stage::Evaluate, round: 0 });
        evaluated.filter_map(|task| task.evaluated.as_ref()?.part.clone()).collect()
    }

    /// The job, if there is one of this id.
    pub fn job(&self, id: &JobId) -> Option<&Job> {
        self.jobs.get(id)
    }
}
