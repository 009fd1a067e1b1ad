//! Jobs: how they come, go from stage to stage, and end.

use deltaconv_proto::ids::{JobId, TaskId};
use deltaconv_proto::{keys, v1};

use super::{Command, Effects, Error, Kind, Now, Phase, State, Task};
use crate::plan;
use crate::store::Write;

/// A job's steps, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// Making the latents, of jobs whose data has none: the teacher samples them, or its VAE encodes images.
    Synthesise,
    /// Recording what goes into and out of each layer.
    Capture,
    /// Training the blocks.
    Distill,
    /// Putting blocks and the frozen rest together.
    Assemble,
    /// Comparing teacher and student, and the report.
    Evaluate,
}

impl Stage {
    /// All of them, in order.
    pub const ALL: [Self; 5] = [Self::Synthesise, Self::Capture, Self::Distill, Self::Assemble, Self::Evaluate];

    /// The stage in words.
    pub fn name(self) -> &'static str {
        match self {
            Self::Synthesise => "synthesise",
            Self::Capture => "capture",
            Self::Distill => "distill",
            Self::Assemble => "assemble",
            Self::Evaluate => "evaluate",
        }
    }

    /// The stage that a task of this kind belongs to.
    pub fn of(kind: &Kind) -> Self {
        match kind {
            Kind::Synthesise { .. } => Self::Synthesise,
            Kind::Capture { .. } => Self::Capture,
            Kind::Distill { .. } => Self::Distill,
            Kind::Evaluate(_) => Self::Evaluate,
        }
    }
}

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
    /// By [`Stage`].
    pub stages: [v1::StageTimes; 5],
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
    /// Its tasks, in order of stage.
    pub tasks: Vec<TaskId>,
    /// How many of them record activations: so many shards each layer has.
    pub captures: usize,
}

impl Job {
    pub(super) fn new(
        id: JobId,
        spec: v1::JobSpec,
        plan: v1::JobPlan,
        sequence: u64,
        created_unix_ms: u64,
    ) -> Result<Self, Error> {
        let mut job = Self {
            id,
            spec,
            plan,
            state: JobState::Running,
            created_unix_ms,
            finished_unix_ms: 0,
            stages: Default::default(),
            sequence,
            output: Vec::new(),
            teacher_digest: String::new(),
            figures: None,
            reclaimed: false,
            tasks: Vec::new(),
            captures: 0,
        };
        let tasks = job.new_tasks()?;
        job.captures = tasks.iter().filter(|task| matches!(task.kind, Kind::Capture { .. })).count();
        job.tasks = tasks.into_iter().map(|task| task.id).collect();
        Ok(job)
    }

    /// The job's tasks as they stand before anybody worked on them.
    pub(super) fn new_tasks(&self) -> Result<Vec<Task>, Error> {
        const ROUND: u32 = 0;
        let mut tasks = Vec::new();
        let mut add = |local: String, kind: Kind| -> Result<(), Error> {
            tasks.push(Task::new(TaskId::of(&self.id, &local)?, self.id.clone(), kind));
            Ok(())
        };
        for range in plan::synthesis_ranges(&self.spec, &self.plan) {
            add(format!("synthesise/{}", keys::range(&range)), Kind::Synthesise { range })?;
        }
        for range in plan::capture_ranges(&self.spec) {
            add(format!("r{ROUND}/capture/{}", keys::range(&range)), Kind::Capture { round: ROUND, range })?;
        }
        for (layer, planned) in self.plan.layers.iter().enumerate() {
            add(format!("r{ROUND}/distill/{}", planned.name), Kind::Distill { round: ROUND, layer })?;
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

    /// Whether work is left.
    pub fn is_running(&self) -> bool {
        self.state == JobState::Running
    }

    /// The steps that the job takes, in order: making latents only where they are not ready.
    pub fn steps(&self) -> impl Iterator<Item = Stage> {
        let has_synthesis = self.has_synthesis();
        Stage::ALL.into_iter().filter(move |stage| *stage != Stage::Synthesise || has_synthesis)
    }

    fn has_synthesis(&self) -> bool {
        self.spec.data.as_ref().is_some_and(|data| data.synthesis.is_some() || data.images.is_some())
    }

    /// The stage that the job has come to.
    pub fn stage(&self) -> Stage {
        let started = |stage: &&Stage| self.stages[**stage as usize].started_unix_ms > 0;
        Stage::ALL.iter().rev().find(started).copied().unwrap_or(Stage::Capture)
    }

    fn start(&mut self, stage: Stage, now: Now) -> bool {
        let times = &mut self.stages[stage as usize];
        let first = times.started_unix_ms == 0;
        if first {
            // 0 means "not yet", also on a clock that stands at the epoch.
            times.started_unix_ms = now.unix_ms.max(1);
        }
        first
    }

    fn finish(&mut self, stage: Stage, now: Now) {
        let times = &mut self.stages[stage as usize];
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
        let job = Job::new(id.clone(), spec, plan, self.meta.jobs, now.unix_ms)?;
        for task in job.new_tasks()? {
            self.tasks.insert(task.id.clone(), task);
        }
        self.jobs.insert(id.clone(), job);
        effects.writes.push(Write::Meta(self.meta));
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

    pub(super) fn fail(&mut self, id: &JobId, reason: String, now: Now, effects: &mut Effects) {
        self.end(id, JobState::Failed(reason), now, effects);
    }

    fn end(&mut self, id: &JobId, state: JobState, now: Now, effects: &mut Effects) {
        let Some(job) = self.jobs.get_mut(id).filter(|job| job.is_running()) else { return };
        job.state = state;
        job.finished_unix_ms = now.unix_ms.max(1);
        for task in job.tasks.clone() {
            let Some(task) = self.tasks.get_mut(&task) else { continue };
            if let Phase::Leased(leased) = &task.phase {
                effects.commands.push(Command::Wake(leased.worker.clone()));
                task.phase = Phase::Pending;
                effects.writes.push(Write::Task(Box::new(task.record())));
            }
        }
        self.placement.end(&self.jobs[id].tasks);
        self.write_job(id, effects);
        self.reclaim(&self.jobs[id], effects);
    }

    /// Moves the job to the stage that its tasks allow.
    pub(super) fn advance(&mut self, id: &JobId, now: Now, effects: &mut Effects) {
        let Some(job) = self.jobs.get(id).filter(|job| job.is_running()) else { return };
        let committed =
            |stage: Stage| self.tasks_of(job).filter(|task| Stage::of(&task.kind) == stage).all(Task::is_committed);
        let has_synthesis = job.has_synthesis();
        let synthesised = committed(Stage::Synthesise);
        let captured = synthesised && committed(Stage::Capture);
        let distilled = captured && committed(Stage::Distill);
        let assembled = distilled && !job.output.is_empty();
        let evaluated = assembled && committed(Stage::Evaluate);

        let Some(job) = self.jobs.get_mut(id) else { return };
        let before = job.stages;
        if has_synthesis {
            job.start(Stage::Synthesise, now);
        }
        if synthesised {
            if has_synthesis {
                job.finish(Stage::Synthesise, now);
            }
            job.start(Stage::Capture, now);
        }
        if captured {
            job.finish(Stage::Capture, now);
            job.start(Stage::Distill, now);
        }
        if distilled {
            job.finish(Stage::Distill, now);
            if job.start(Stage::Assemble, now) {
                effects.commands.push(Command::Assemble(id.clone()));
            }
        }
        if assembled {
            job.finish(Stage::Assemble, now);
            job.start(Stage::Evaluate, now);
        }
        if evaluated {
            effects.commands.push(Command::Report(id.clone()));
        }
        if job.stages != before {
            self.write_job(id, effects);
        }
        self.wake_idle(now, effects);
    }

    /// Gives again the commands that a stopped coordinator may have left undone.
    pub(super) fn resume_stage(&self, id: &JobId, effects: &mut Effects) {
        let job = &self.jobs[id];
        let command = Command::Assemble(id.clone());
        let given = effects.commands.contains(&command);
        if job.stage() == Stage::Assemble && job.output.is_empty() && !given {
            effects.commands.push(command);
        }
    }

    /// The converted model is written, or can't be.
    pub fn assembled(
        &mut self,
        id: &JobId,
        result: Result<(String, Vec<v1::ObjectRef>), String>,
        now: Now,
        effects: &mut Effects,
    ) {
        match result {
            Err(reason) => self.fail(id, format!("assembling failed: {reason}"), now, effects),
            Ok((teacher_digest, output)) => {
                let Some(job) = self.jobs.get_mut(id) else { return };
                job.teacher_digest = teacher_digest;
                job.output = output;
                self.write_job(id, effects);
                self.advance(id, now, effects);
            }
        }
    }

    /// The report is written, or can't be.
    pub fn reported(&mut self, id: &JobId, result: Result<v1::Figures, String>, now: Now, effects: &mut Effects) {
        match result {
            Err(reason) => self.fail(id, format!("the report failed: {reason}"), now, effects),
            Ok(figures) => {
                let Some(job) = self.jobs.get_mut(id) else { return };
                job.figures = Some(figures);
                job.finish(Stage::Evaluate, now);
                self.end(id, JobState::Done, now, effects);
            }
        }
    }

    /// What assembly needs: the layers' plans with their blocks, in forward order.
    pub fn blocks(&self, id: &JobId) -> Vec<(v1::LayerPlan, v1::DistillOutput)> {
        let Some(job) = self.jobs.get(id) else { return Vec::new() };
        self.tasks_of(job)
            .filter_map(|task| match task.kind {
                Kind::Distill { layer, .. } => Some((job.plan.layers[layer].clone(), task.distilled.clone()?)),
                Kind::Synthesise { .. } | Kind::Capture { .. } | Kind::Evaluate(_) => None,
            })
            .collect()
    }

    /// The accepted parts of the evaluation, in the order of [`plan::evaluation_parts`].
    pub fn evaluation_parts(&self, id: &JobId) -> Vec<v1::ObjectRef> {
        let Some(job) = self.jobs.get(id) else { return Vec::new() };
        self.tasks_of(job).filter_map(|task| task.evaluated.as_ref()?.part.clone()).collect()
    }

    /// The job, if there is one of this id.
    pub fn job(&self, id: &JobId) -> Option<&Job> {
        self.jobs.get(id)
    }
}
