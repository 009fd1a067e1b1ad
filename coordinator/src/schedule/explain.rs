//! Why nothing happens, with the nearest remedy.

use std::fmt;

use deltaconv_proto::ids::{JobId, TaskId};
use deltaconv_proto::v1;

use super::since::since;
use super::tasks::Slot;
use super::{Error, Job, Kind, Now, Phase, Stage, State, Step, Task, Worker};

/// Why a task, or all of a job's, waits.
#[derive(Clone, Debug, PartialEq)]
pub struct Explanation {
    /// Where it stands, in a word.
    pub state: &'static str,
    /// Why.
    pub reason: String,
    /// What would help; empty where time alone does.
    pub remedy: String,
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.remedy.is_empty() {
            true => f.write_str(&self.reason),
            false => write!(f, "{}; {}", self.reason, self.remedy),
        }
    }
}

impl Explanation {
    pub(super) fn new(state: &'static str, reason: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { state, reason: reason.into(), remedy: remedy.into() }
    }
}

impl State {
    /// Explains a job or a task by its id.
    pub fn explain(&self, name: &str, now: Now) -> Result<Explanation, Error> {
        let job = JobId::new(name)?;
        if let Some(job) = self.jobs.get(&job) {
            return Ok(self.explain_job(job, now));
        }
        let task = TaskId::new(name)?;
        let slot = self.tasks.slot(&task).ok_or(Error::UnknownJob(job))?;
        Ok(self.explain_task(slot, now))
    }

    fn explain_job(&self, job: &Job, now: Now) -> Explanation {
        if !job.is_running() {
            return self.ended(job);
        }
        if let Some(waiting) = self.waiting_for(job, now) {
            return waiting;
        }
        let (stage, at_work) = (job.step().stage.name(), job.in_work.len());
        Explanation::new("running", format!("{at_work} tasks are at work; it has come to {stage}"), "")
    }

    fn ended(&self, job: &Job) -> Explanation {
        let remedy = match job.state {
            super::JobState::Failed(_) => format!("mend the cause, then `deltaconv retry {}`", job.id),
            _ => String::new(),
        };
        let reason = format!("job {} is {}", job.id, job.state.name());
        match job.state.reason() {
            "" => Explanation::new("ended", reason, remedy),
            why => Explanation::new("ended", format!("{reason}: {why}"), remedy),
        }
    }

    fn explain_task(&self, slot: Slot, now: Now) -> Explanation {
        let task = &self.tasks[slot];
        let job = &self.jobs[&task.job];
        match &task.phase {
            Phase::Committed => Explanation::new("committed", "its output is accepted", ""),
            _ if !job.is_running() => self.ended(job),
            Phase::Quarantined => Explanation::new(
                "quarantined",
                self.why_quarantined(slot),
                format!("mend the cause, then `deltaconv retry {}`", task.id),
            ),
            Phase::Leased(leases) => {
                let at =
                    |leased: &super::Leased| format!("worker {} ({})", leased.worker, self.name_of(&leased.worker));
                let at: Vec<String> = leases.iter().map(at).collect();
                let verb =
                    if leases.iter().any(|leased| leased.verifying) { "its output is checked, of" } else { "it is at" };
                Explanation::new("running", format!("{verb} {}", at.join(" and ")), "")
            }
            Phase::Pending => self.explain_pending(job, task, slot, now),
        }
    }

    fn explain_pending(&self, job: &Job, task: &Task, slot: Slot, now: Now) -> Explanation {
        if let Some(read_only) = self.explain_read_only() {
            return read_only;
        }
        if job.paused {
            return Explanation::new(
                "paused",
                format!("job {} is paused", job.id),
                format!("`deltaconv resume {}`", job.id),
            );
        }
        if !self.is_ready(job, task) {
            return Explanation::new("waiting", self.missing(job, task), "");
        }
        if job.is_full() {
            let most = job.spec.max_workers;
            return Explanation::new(
                "limited",
                format!("{most} workers are at the job, and its max_workers is {most}"),
                "wait, or submit with a higher max_workers",
            );
        }
        let alive: Vec<&Worker> = self.workers.values().filter(|worker| self.is_alive(worker, now)).collect();
        let start = "invite a worker with `deltaconv workers invite`";
        if alive.is_empty() {
            return Explanation::new("ready", "no worker is here", start);
        }
        let requires = job.spec.requires.as_ref();
        if let Some(lacking) = alive.iter().map(|worker| worker.lacks(requires)).collect::<Option<Vec<_>>>() {
            let required = requires.map(|requires| requirement(requires, lacking[0])).unwrap_or_default();
            let reason = format!("none of {} workers has the {required}", alive.len());
            return Explanation::new(
                "unplaceable",
                reason,
                "start a worker that does, or submit with other [requires]",
            );
        }
        if !alive.iter().any(|worker| worker.knows(&task.kind)) {
            let reason = format!(
                "none of {} workers knows all that it asks: they are of a release from before protocol {}",
                alive.len(),
                since(&task.kind)
            );
            return Explanation::new("unplaceable", reason, "upgrade them; `deltaconv workers -o wide` shows which");
        }
        let fit = || alive.iter().filter(|worker| worker.meets(requires) && worker.knows(&task.kind));
        if let Some(worker) = fit().find(|worker| self.why_out(worker, now).is_some())
            && fit().all(|worker| worker.takes_nothing() || self.why_out(worker, now).is_some())
        {
            let why = self.why_out(worker, now).unwrap_or_default();
            let reason = format!("machine {} was taken out: {why}", worker.node);
            return Explanation::new(
                "ready",
                reason,
                format!("mend it, then `deltaconv workers return {}`", worker.node),
            );
        }
        if fit().all(|worker| worker.takes_nothing()) {
            let name = fit().next().map_or("", |worker| worker.id.as_str());
            let reason = "every worker that could take it is drained or leaving";
            return Explanation::new("ready", reason, format!("`deltaconv workers return {name}`, or {start}"));
        }
        if fit().filter(|worker| self.is_usable(worker, now)).all(|worker| !self.may_try(slot, worker, now)) {
            let reason =
                format!("it failed on the machines that are free, and waits for another one: {}", task.last_failure);
            return Explanation::new("ready", reason, start);
        }
        Explanation::new("ready", format!("all {} workers are busy", alive.len()), format!("wait, or {start}"))
    }

    /// What a task waits for that isn't there yet.
    fn missing(&self, job: &Job, task: &Task) -> String {
        let own = Step::of(&task.kind);
        let before = job.steps().take_while(|step| *step != own);
        let open: Vec<Step> = before.filter(|step| step.stage != Stage::Assemble && !job.is_over(*step)).collect();
        if let Some(step) = open.first()
            && let Some(work) = job.work(*step)
        {
            let (left, stage) = (work.slots.len() - work.committed, step.stage.name());
            let quarantined = work.slots.iter().filter(|slot| self.tasks[*slot].is_quarantined()).count();
            let stuck = if quarantined > 0 { format!(", {quarantined} of them in quarantine") } else { String::new() };
            return format!("it needs {stage} of round {} to be over: {left} tasks are left{stuck}", step.round);
        }
        match task.kind {
            Kind::Distill { .. } => "it waits for shards that are written again".into(),
            _ => "it needs the converted model, which is being assembled".into(),
        }
    }

    fn name_of(&self, worker: &deltaconv_proto::ids::WorkerId) -> &str {
        self.workers.get(worker).map_or("gone", |worker| &worker.name)
    }

    /// Why nothing of a job moves; `None` while something does.
    pub(super) fn waiting_for(&self, job: &Job, now: Now) -> Option<Explanation> {
        if let Some(read_only) = self.explain_read_only().filter(|_| job.is_running()) {
            return Some(read_only);
        }
        if !job.is_running() || !job.in_work.is_empty() || job.step().stage == Stage::Assemble {
            return None;
        }
        if job.paused {
            let remedy = format!("`deltaconv resume {}`", job.id);
            return Some(Explanation::new("paused", "an operator paused it", remedy));
        }
        let mut ready = job.ready().flat_map(|work| &work.waiting);
        let first = ready.next()?;
        let count = 1 + ready.count();
        let of_first = self.explain_pending(job, &self.tasks[first.1], first.1, now);
        Some(Explanation { reason: format!("{count} tasks are ready and {}", of_first.reason), ..of_first })
    }
}

fn requirement(requires: &v1::Requirements, lacking: &str) -> String {
    match lacking {
        "memory" => {
            format!("{:.1} GiB of memory that the job requires", requires.memory_bytes as f64 / f64::from(1 << 30))
        }
        "precision" => format!("precision {} that the job requires", requires.precision),
        _ => format!("device {} that the job requires", requires.device),
    }
}
