//! What of a job's objects is still needed: by whom it was written decides, and whether anybody can come back to it.

use deltaconv_proto::ids::{AttemptId, JobId, TaskId};
use deltaconv_proto::keys::{Kind, Written};
use deltaconv_proto::v1;

use super::tasks::Slot;
use super::{Command, Effects, Job, JobState, State, Task};
use crate::plan;

/// What becomes of an object that an attempt wrote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It is needed, or part of what the job achieved.
    Stays,
    /// No record has its attempt at work or accepted. Attempts never come back, so nobody will name it again.
    Orphaned,
    /// The jobs that it was recorded for are over.
    Spent,
}

impl State {
    /// The fate of objects under `url`, in their order. Ask after they were listed: what an attempt wrote before is then
    /// never mistaken for an orphan, since it was leased before it wrote.
    pub fn fates(&self, url: &str, objects: &[Written]) -> Vec<Fate> {
        let jobs: Vec<&Job> = self.jobs.values().filter(|job| job.spec.output_url == url).collect();
        let running = jobs.iter().any(|job| job.is_running());
        let fate = |object: &Written| {
            let tasks = jobs.iter().filter_map(|job| self.tasks.get(&TaskId::of(&job.id, &object.task).ok()?));
            let tasks: Vec<&Task> = tasks.collect();
            let is_known = tasks.iter().any(|task| task.knows(&object.attempt));
            match object.kind {
                // What attempts that came to nothing said is the more worth reading.
                Kind::Log if tasks.is_empty() => Fate::Orphaned,
                Kind::Log if running => Fate::Stays,
                Kind::Log => Fate::Spent,
                _ if !is_known => Fate::Orphaned,
                _ if running => Fate::Stays,
                Kind::Latents | Kind::Activations | Kind::Checkpoint => Fate::Spent,
                Kind::Block | Kind::Start | Kind::Evaluation => Fate::Stays,
            }
        };
        objects.iter().map(fate).collect()
    }

    /// Whether a job writes to `url` that is not over.
    pub fn is_written_to(&self, url: &str) -> bool {
        self.jobs.values().any(|job| job.spec.output_url == url && job.is_running())
    }

    /// Has removed what the job's retention doesn't keep, if it is done and that has not been done yet. A job that failed or
    /// was cancelled keeps everything, for who wants to see why, until it is submitted again and done, or collected.
    pub(super) fn reclaim(&self, job: &Job, effects: &mut Effects) {
        let keeps_results_alone = job.spec.retention.as_deref() == Some(plan::RESULTS);
        if job.state == JobState::Done && keeps_results_alone && !job.reclaimed {
            effects.commands.push(Command::Reclaim(job.id.clone()));
        }
    }

    /// Has a checkpoint removed that another took the place of: nobody goes on from it any more, and how many there are
    /// would follow from how long training takes. A worker named its key, so it must be one of this task's.
    pub(super) fn discard(&self, slot: Slot, former: Option<Box<v1::Checkpoint>>, effects: &mut Effects) {
        let Some(object) = former.and_then(|former| former.object) else { return };
        let task = &self.tasks[slot];
        let is_own = Written::parse(&object.key)
            .is_some_and(|written| written.kind == Kind::Checkpoint && written.task == task.id.local());
        let replaced = task.objects().all(|current| current.key != object.key);
        if is_own && replaced {
            effects.commands.push(Command::Discard { job: task.job.clone(), key: object.key });
        }
    }

    /// The outcome of [`Command::Reclaim`]: everything is removed. Without it the next start tries again.
    pub fn reclaimed(&mut self, id: &JobId, effects: &mut Effects) {
        let Some(job) = self.jobs.get_mut(id) else { return };
        job.reclaimed = true;
        self.write_job(id, effects);
    }
}

impl Task {
    /// Whether the attempt is at work on the task, or something that it wrote is on record.
    fn knows(&self, attempt: &AttemptId) -> bool {
        self.leases().iter().any(|leased| leased.attempt == *attempt)
            || self.shards.is_of(attempt)
            || self.objects().any(|object| is_of(&object.key, attempt))
    }

    /// Every object on record, but shards.
    fn objects(&self) -> impl Iterator<Item = &v1::ObjectRef> {
        let checkpoint = self.checkpoint.as_ref().and_then(|checkpoint| checkpoint.object.as_ref());
        self.outputs().chain(checkpoint)
    }

    /// Every object of its accepted output, but shards.
    pub(super) fn outputs(&self) -> impl Iterator<Item = &v1::ObjectRef> {
        let outputs = [
            self.latents(),
            self.distilled.as_ref().and_then(|distilled| distilled.block.as_ref()),
            self.distilled.as_ref().and_then(|distilled| distilled.start.as_ref()),
            self.evaluated.as_ref().and_then(|evaluated| evaluated.part.as_ref()),
        ];
        let finetuned = self.finetuned.iter().flat_map(|output| &output.blocks).filter_map(|of| of.object.as_ref());
        outputs.into_iter().flatten().chain(finetuned)
    }
}

fn is_of(key: &str, attempt: &AttemptId) -> bool {
    // Most keys are other attempts', which is cheaper to see than to read.
    key.contains(attempt.as_str()) && Written::parse(key).is_some_and(|written| written.attempt == *attempt)
}
