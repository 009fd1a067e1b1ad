//! The durable part of the state, piece by piece, so that nobody waits long for it.

use std::ops::Bound::{Excluded, Unbounded};

use deltaconv_proto::ids::JobId;
use deltaconv_proto::v1;

use super::{JobState, Stage, State, Step, Task};
use crate::store::Write;

/// Tasks that are exported at a time: about a millisecond.
const PIECE: usize = 512;

/// How far an export has come.
#[derive(Clone, Debug, Default)]
pub struct Export {
    /// The job whose turn it is, and its next task; none before the first piece.
    next: Option<(JobId, usize)>,
    began: bool,
}

/// A part of a job's course that is over, and that its manifests tell of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Over {
    /// Its position: 0 has the job as it was submitted, then the steps, then how it ended.
    pub position: u32,
    /// In words.
    pub name: String,
    /// The step, where it is one.
    pub step: Option<Step>,
}

impl State {
    /// The next piece of everything that is durable; `None` when all of it was given. A change between two pieces is in the
    /// writes that it gave.
    pub fn export(&self, export: &mut Export) -> Option<Vec<Write>> {
        if !export.began {
            export.began = true;
            export.next = self.jobs.keys().next().map(|id| (id.clone(), 0));
            return Some(self.all_but_jobs());
        }
        let (id, from) = export.next.take()?;
        let Some(job) = self.jobs.get(&id) else { return Some(Vec::new()) };
        let mut writes = Vec::new();
        if from == 0 {
            writes.push(Write::Job(Box::new(job.record())));
        }
        let tasks = job.slots.iter().skip(from).take(PIECE).map(|slot| &self.tasks[slot]);
        writes.extend(tasks.filter_map(written));
        let to = from + PIECE;
        export.next = match to < job.slots.len() {
            true => Some((id, to)),
            false => self.jobs.range::<JobId, _>((Excluded(&id), Unbounded)).next().map(|(id, _)| (id.clone(), 0)),
        };
        Some(writes)
    }

    fn all_but_jobs(&self) -> Vec<Write> {
        let mut writes = vec![Write::Meta(self.meta)];
        writes.extend(self.workers.values().map(|worker| Write::Worker(worker.record().into())));
        writes.extend(self.nodes.iter().map(|(name, node)| node.write(name)));
        writes.extend(self.requests.records().map(Write::Request));
        writes.extend(self.access.writes());
        writes.extend(self.events.records().cloned().map(|event| Write::Event(event.into())));
        writes
    }

    /// What of the job's course is over.
    pub fn over(&self, id: &JobId) -> Vec<Over> {
        let Some(job) = self.jobs.get(id) else { return Vec::new() };
        let mut over = vec![Over { position: 0, name: "submitted".into(), step: None }];
        let course = job.course();
        for step in job.steps().filter(|step| job.times(*step).finished_unix_ms > 0) {
            let name = match step.stage {
                Stage::Capture | Stage::Distill => format!("{}-r{}", step.stage.name(), step.round),
                stage => stage.name().to_owned(),
            };
            over.push(Over { position: step.position(course) as u32 + 1, name, step: Some(step) });
        }
        // One that failed may be tried again and be done, which then counts.
        let rank = match job.state {
            JobState::Running => return over,
            JobState::Failed(_) => 1,
            JobState::Cancelled => 2,
            JobState::Done => 3,
        };
        let position = job.stages.len() as u32 + rank;
        over.push(Over { position, name: job.state.name().into(), step: None });
        over
    }

    /// The job's record, and the counters beside it.
    pub fn job_records(&self, id: &JobId) -> Option<[Write; 2]> {
        self.jobs.get(id).map(|job| [Write::Meta(self.meta), Write::Job(Box::new(job.record()))])
    }

    /// The records of a piece of a step's tasks, from the `from`th on, and where the next piece begins.
    pub fn task_records(&self, id: &JobId, step: Step, from: usize) -> (Vec<Write>, Option<usize>) {
        let Some(work) = self.jobs.get(id).and_then(|job| job.work(step)) else { return (Vec::new(), None) };
        let tasks = work.slots.iter().skip(from).take(PIECE).map(|slot| &self.tasks[slot]);
        let to = from + PIECE;
        (tasks.filter_map(written).collect(), Some(to).filter(|to| *to < work.slots.len()))
    }
}

/// The task's record, unless it is as it was planned.
fn written(task: &Task) -> Option<Write> {
    let record = task.record();
    let planned = v1::TaskRecord { task_id: record.task_id.clone(), ..v1::TaskRecord::default() };
    (record != planned).then(|| Write::Task(Box::new(record)))
}
