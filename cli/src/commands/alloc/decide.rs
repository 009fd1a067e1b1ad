//! How many jobs there should be: what was seen goes in, what is to be done comes out. No IO, no clock.

use std::time::Duration;

use deltaconv_proto::v1;

/// Between the start of a job and its worker's joining there may be an image to fetch; after this a worker that hasn't joined is none.
const STARTING: Duration = Duration::from_secs(300);
/// The most jobs that are submitted at one look, so that a queue has time to say what it makes of them.
const AT_ONCE: u32 = 50;
/// After the first job whose worker failed the next one waits so long, and twice as long after each further one, up to the longest.
const FIRST_PAUSE: Duration = Duration::from_secs(30);
const LONGEST_PAUSE: Duration = Duration::from_secs(300);

/// Where a job stands. Times are seconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// It waits for its turn.
    Pending,
    /// Its machine is made ready, or it is ending.
    Between,
    /// It runs.
    Running {
        /// Since when.
        since: u64,
    },
    /// It is over.
    Ended {
        /// When that was.
        at: u64,
        /// How its worker ended.
        how: How,
    },
}

/// How a worker ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum How {
    /// By itself, without an error.
    Well,
    /// With an error.
    Failed,
    /// Somebody or something else ended it.
    Stopped,
}

/// One of our jobs, as the queue has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Job {
    /// The queue's number of it.
    pub(super) id: u64,
    pub(super) phase: Phase,
    /// Why it waits, in the queue's words.
    pub(super) reason: String,
}

/// All that a decision follows from.
#[derive(Clone, Copy)]
pub(super) struct Seen<'a> {
    /// Jobs that there may be at a time.
    pub(super) max_workers: u32,
    /// Their name, with which the names of their workers begin.
    pub(super) name: &'a str,
    /// Those that there are, and those that ended lately.
    pub(super) jobs: &'a [Job],
    pub(super) demand: &'a v1::DemandResponse,
    /// All workers that the coordinator knows.
    pub(super) workers: &'a [v1::WorkerStatus],
    /// What workers of such jobs compute on, as far as one was ever seen.
    pub(super) devices: &'a [v1::Device],
    /// Seconds since 1970.
    pub(super) now: u64,
}

/// What is to be done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Decision {
    /// So many jobs are submitted.
    pub(super) submit: u32,
    /// These are taken back, if they still wait.
    pub(super) cancel: Vec<u64>,
    pub(super) tally: Tally,
    /// Jobs that run for long, and no worker of theirs has joined.
    pub(super) silent: Vec<u64>,
    /// Ready tasks of jobs that require what these workers don't have.
    pub(super) unsuited: u64,
    /// Workers fail.
    pub(super) failing: Option<Failing>,
}

/// What there is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Tally {
    /// Ready tasks that these workers can do.
    pub(super) ready: u64,
    /// Workers of ours at work.
    pub(super) at_work: u64,
    /// Jobs that wait.
    pub(super) pending: u64,
    /// Jobs that run.
    pub(super) running: u64,
}

/// Workers that ended with an error, and none after them that did well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Failing {
    /// The last of them.
    pub(super) job: u64,
    /// How many, as far as the queue remembers.
    pub(super) failures: u32,
    /// When one more is tried, in seconds since 1970.
    pub(super) again_at: u64,
}

/// What one worker is called.
pub(super) fn worker_name(job_name: &str, id: &str) -> String {
    format!("{job_name}-{id}")
}

/// The job that a worker of this name runs in. After a requeue something follows the number.
pub(super) fn job_of(job_name: &str, worker: &str) -> Option<u64> {
    let rest = worker.strip_prefix(job_name)?.strip_prefix('-')?;
    rest.split('-').next()?.parse().ok()
}

/// What to do.
pub(super) fn decide(seen: &Seen<'_>) -> Decision {
    let fleet = Fleet::count(seen);
    let work = Work::count(seen);
    let most = u64::from(seen.max_workers);
    // A task that another worker can take is taken before anybody looks: what is ready is nobody's yet.
    let wanted = (work.ready + fleet.at_work).min(most);
    let room = most.saturating_sub(fleet.all());
    let mut submit = wanted.saturating_sub(fleet.useful()).min(room).min(AT_ONCE.into()) as u32;
    let failing = failing(seen);
    if let Some(failing) = failing {
        let is_time = seen.now >= failing.again_at && !fleet.is_trying();
        submit = submit.min(u32::from(is_time));
    }
    // Those that wait may be of use for what follows a stage, and have waited for long.
    let of_others = work.at_work.saturating_sub(fleet.at_work);
    let keep = work.left.saturating_sub(of_others).max(wanted).min(most);
    let surplus = fleet.useful().saturating_sub(keep).max(fleet.all().saturating_sub(most));
    let cancel = fleet.pending.iter().rev().take(surplus as usize).copied().collect();
    let tally = Tally {
        ready: work.ready,
        at_work: fleet.at_work,
        pending: fleet.pending.len() as u64,
        running: fleet.running + fleet.between,
    };
    Decision { submit, cancel, tally, silent: fleet.silent, unsuited: work.unsuited, failing }
}

/// Our jobs.
#[derive(Default)]
struct Fleet {
    /// In the order of their numbers.
    pending: Vec<u64>,
    between: u64,
    running: u64,
    /// Of those that run: whose workers are given tasks, or may join yet.
    at_hand: u64,
    /// Of those: whose workers are at work.
    at_work: u64,
    /// Of those: whose workers may join yet.
    starting: u64,
    silent: Vec<u64>,
}

impl Fleet {
    fn count(seen: &Seen<'_>) -> Self {
        let mut fleet = Self::default();
        for job in seen.jobs {
            match job.phase {
                Phase::Pending => fleet.pending.push(job.id),
                Phase::Between => fleet.between += 1,
                Phase::Running { since } => fleet.add_running(job.id, since, seen),
                Phase::Ended { .. } => {}
            }
        }
        fleet.pending.sort_unstable();
        fleet
    }

    fn add_running(&mut self, id: u64, since: u64, seen: &Seen<'_>) {
        self.running += 1;
        let own = || seen.workers.iter().filter(|worker| job_of(seen.name, &worker.name) == Some(id));
        // Beside the one that is there may be one from before a requeue.
        let is_any = |state: &str| own().any(|worker| worker.state == state);
        let may_join = seen.now < since.saturating_add(STARTING.as_secs()) && !is_any("out") && !is_any("draining");
        let is_there = is_any("busy") || is_any("idle");
        self.at_work += u64::from(is_any("busy"));
        self.starting += u64::from(may_join && !is_there);
        self.at_hand += u64::from(may_join || is_there);
        if !may_join && own().all(|worker| worker.state == "lost") {
            self.silent.push(id);
        }
    }

    /// Jobs that there are.
    fn all(&self) -> u64 {
        self.pending.len() as u64 + self.between + self.running
    }

    /// Whether it isn't known of one yet how its worker does.
    fn is_trying(&self) -> bool {
        !self.pending.is_empty() || self.between + self.starting > 0
    }

    /// Those of them that will do work.
    fn useful(&self) -> u64 {
        self.pending.len() as u64 + self.between + self.at_hand
    }
}

/// What there is to do for workers like ours.
#[derive(Default)]
struct Work {
    ready: u64,
    at_work: u64,
    left: u64,
    unsuited: u64,
}

impl Work {
    fn count(seen: &Seen<'_>) -> Self {
        let (mut work, mut unknown) = (Self::default(), 0);
        for demand in &seen.demand.demands {
            let requires = demand.requires.as_ref();
            let suits = requires.is_none() || seen.devices.iter().any(|device| device.lacks(requires).is_none());
            if !suits && !seen.devices.is_empty() {
                work.unsuited += demand.ready;
                continue;
            }
            work.at_work += demand.at_work;
            work.left += demand.left;
            match suits {
                true => work.ready += demand.ready,
                false => unknown += demand.ready,
            }
        }
        // What jobs come to have is seen when the first worker joins: one is started for that.
        if work.ready == 0 {
            work.ready = unknown.min(1);
        }
        work
    }
}

/// Whether workers fail: those that did since one last did well.
fn failing(seen: &Seen<'_>) -> Option<Failing> {
    let failed = seen.jobs.iter().filter_map(|job| match job.phase {
        Phase::Ended { at, how: How::Failed } => Some((at, job.id)),
        _ => None,
    });
    let failed: Vec<(u64, u64)> = failed.collect();
    let (last, job) = failed.iter().copied().max()?;
    let joined = |id: u64| {
        let mut own = seen.workers.iter().filter(|worker| job_of(seen.name, &worker.name) == Some(id));
        own.any(|worker| ["busy", "idle"].contains(&worker.state.as_str()))
    };
    let did_well = |of: &Job| match of.phase {
        Phase::Running { since } => since > last && joined(of.id),
        Phase::Ended { at, how: How::Well } => at > last,
        _ => false,
    };
    if seen.jobs.iter().any(did_well) {
        return None;
    }
    let failures = failed.len() as u32;
    let pause = FIRST_PAUSE.saturating_mul(2_u32.saturating_pow(failures - 1)).min(LONGEST_PAUSE);
    Some(Failing { job, failures, again_at: last + pause.as_secs() })
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_000_000;

    fn pending(id: u64) -> Job {
        Job { id, phase: Phase::Pending, reason: "Resources".into() }
    }

    fn running(id: u64) -> Job {
        Job { id, phase: Phase::Running { since: NOW - 10 }, reason: "None".into() }
    }

    fn ended(id: u64, ago: u64, how: How) -> Job {
        Job { id, phase: Phase::Ended { at: NOW - ago, how }, reason: "None".into() }
    }

    fn worker(name: &str, state: &str) -> v1::WorkerStatus {
        v1::WorkerStatus { name: name.into(), state: state.into(), ..v1::WorkerStatus::default() }
    }

    fn demand(ready: u64, at_work: u64, left: u64) -> v1::Demand {
        v1::Demand { requires: None, ready, at_work, left }
    }

    fn gpu_required() -> Option<v1::Requirements> {
        Some(v1::Requirements { device: v1::Device::CUDA.into(), ..v1::Requirements::default() })
    }

    fn device(kind: &str) -> v1::Device {
        v1::Device { kind: kind.into(), ..v1::Device::default() }
    }

    /// With at most four workers.
    fn decided(demands: &[v1::Demand], jobs: &[Job], workers: &[v1::WorkerStatus], devices: &[v1::Device]) -> Decision {
        let demand = v1::DemandResponse { demands: demands.to_vec(), ..v1::DemandResponse::default() };
        decide(&Seen { max_workers: 4, name: "dc", jobs, demand: &demand, workers, devices, now: NOW })
    }

    fn done(decision: &Decision) -> (u32, &[u64]) {
        (decision.submit, &decision.cancel)
    }

    #[test]
    fn a_worker_is_its_jobs_by_its_name() {
        for (worker, job) in [
            ("dc-17", Some(17)),
            ("dc-17-restart-2", Some(17)),
            ("dc-gpu-17", None),
            ("dc", None),
            ("other-17", None),
            ("dc17", None),
        ] {
            assert_eq!(job_of("dc", worker), job, "{worker}");
        }
        assert_eq!(job_of("dc-gpu", &worker_name("dc-gpu", "17")), Some(17));
    }

    #[test]
    fn there_are_as_many_jobs_as_tasks_and_no_more_than_may_be() {
        assert_eq!(done(&decided(&[], &[], &[], &[])), (0, &[][..]));
        assert_eq!(done(&decided(&[demand(3, 0, 9)], &[], &[], &[])), (3, &[][..]));
        assert_eq!(done(&decided(&[demand(7, 0, 9)], &[], &[], &[])), (4, &[][..]));
        // Two more tasks are ready beside the one at work; one job waits already.
        let busy = [worker("dc-1", "busy")];
        let jobs = [running(1), pending(2)];
        let decision = decided(&[demand(2, 1, 9)], &jobs, &busy, &[device("cpu")]);
        assert_eq!(done(&decision), (1, &[][..]));
        assert_eq!(decision.tally, Tally { ready: 2, at_work: 1, pending: 1, running: 1 });
    }

    #[test]
    fn what_others_work_on_needs_no_job() {
        let others = [worker("gpu-7", "busy"), worker("dc-gpu-3", "busy")];
        assert_eq!(done(&decided(&[demand(0, 2, 2)], &[], &others, &[])), (0, &[][..]));
        // Theirs are all that is left.
        assert_eq!(done(&decided(&[demand(0, 2, 2)], &[pending(1)], &others, &[])), (0, &[1][..]));
    }

    #[test]
    fn a_job_that_starts_or_ends_is_counted_and_one_whose_worker_does_nothing_is_replaced() {
        let between = Job { id: 1, phase: Phase::Between, reason: String::new() };
        assert_eq!(decided(&[demand(2, 0, 9)], &[between, running(2)], &[], &[]).submit, 0);
        for state in ["draining", "out"] {
            let workers = [worker("dc-1", state)];
            assert_eq!(decided(&[demand(1, 0, 9)], &[running(1)], &workers, &[]).submit, 1, "{state}");
        }
        // The one from before the requeue is lost, the new one hasn't joined yet.
        let workers = [worker("dc-1", "lost")];
        assert_eq!(decided(&[demand(1, 0, 9)], &[running(1)], &workers, &[]).submit, 0);
        let workers = [worker("dc-1", "lost"), worker("dc-1-restart-1", "idle")];
        assert_eq!(decided(&[demand(1, 0, 9)], &[running(1)], &workers, &[]).submit, 0);
    }

    #[test]
    fn a_job_whose_worker_never_joins_is_told_of_and_counts_against_the_limit_alone() {
        let old = |id| Job { id, phase: Phase::Running { since: NOW - 301 }, reason: String::new() };
        let decision = decided(&[demand(4, 0, 9)], &[old(1), old(2), running(3)], &[worker("dc-2", "idle")], &[]);
        assert_eq!((decision.submit, decision.silent), (1, vec![1]));
    }

    #[test]
    fn those_that_wait_stay_between_stages_and_go_when_nothing_is_left_for_them() {
        let jobs = [running(1), pending(2), pending(3), pending(4)];
        let workers = [worker("dc-1", "busy")];
        let cancelled = |demand: v1::Demand| decided(&[demand], &jobs, &workers, &[device("cpu")]).cancel;
        // Three more will be of use for the layers that come.
        assert!(cancelled(demand(0, 1, 12)).is_empty());
        assert_eq!(cancelled(demand(0, 1, 2)), [4, 3]);
        assert_eq!(cancelled(demand(1, 1, 2)), [4, 3]);
        assert_eq!(cancelled(demand(0, 1, 0)), [4, 3, 2], "the job is paused");
        // What runs is never cancelled: it ends when it is idle.
        let jobs = [running(1), running(2)];
        assert_eq!(done(&decided(&[], &jobs, &[], &[])), (0, &[][..]));
        // Somebody lowered the limit.
        let jobs: Vec<Job> = (1..=6).map(pending).collect();
        assert_eq!(decided(&[demand(9, 0, 99)], &jobs, &[], &[]).cancel, [6, 5]);
    }

    #[test]
    fn jobs_that_require_more_than_these_workers_have_start_one_of_them_to_see_and_no_second() {
        let of_gpus = v1::Demand { requires: gpu_required(), ..demand(5, 0, 9) };
        let demands = [of_gpus];
        assert_eq!(decided(&demands, &[], &[], &[]).submit, 1);
        assert_eq!(decided(&demands, &[pending(1)], &[], &[]).submit, 0);
        assert_eq!(decided(&demands, &[running(1)], &[], &[]).submit, 0);
        let decision = decided(&demands, &[running(1)], &[worker("dc-1", "idle")], &[device("cpu")]);
        assert_eq!((decision.submit, decision.unsuited), (0, 5));
        let decision = decided(&demands, &[running(1)], &[worker("dc-1", "busy")], &[device("cuda")]);
        assert_eq!((decision.submit, decision.unsuited), (3, 0));
        // Those of other jobs are counted as ever.
        let demands = [demand(2, 0, 2), demands[0].clone()];
        assert_eq!(decided(&demands, &[], &[], &[device("cpu")]).submit, 2);
        assert_eq!(decided(&demands, &[pending(1), pending(2), pending(3)], &[], &[device("cpu")]).cancel, [3]);
    }

    #[test]
    fn after_workers_that_failed_one_is_tried_after_a_pause_that_grows() {
        let work = [demand(4, 0, 9)];
        let failed = |ages: &[u64]| {
            let jobs: Vec<Job> = (1..).zip(ages).map(|(id, age)| ended(id, *age, How::Failed)).collect();
            decided(&work, &jobs, &[], &[])
        };
        assert_eq!(failed(&[29]).submit, 0);
        assert_eq!(failed(&[30]).submit, 1);
        assert_eq!(failed(&[100, 59]).submit, 0);
        let decision = failed(&[100, 60]);
        assert_eq!(decision.failing, Some(Failing { job: 2, failures: 2, again_at: NOW }));
        assert_eq!(decision.submit, 1);
        let tried = [ended(1, 60, How::Failed), pending(2)];
        assert_eq!(decided(&work, &tried, &[], &[]).submit, 0, "the next one waits for its turn");
        // However many there were.
        let many: Vec<u64> = vec![300; 100];
        assert_eq!((failed(&many).submit, failed(&many[1..]).submit), (1, 1));

        for how in [How::Stopped, How::Well] {
            assert_eq!(decided(&work, &[ended(1, 5, how)], &[], &[]).submit, 4, "{how:?}");
        }
        // Somebody mended it.
        let mended = [ended(1, 20, How::Failed), running(2)];
        assert_eq!(decided(&work, &mended, &[worker("dc-2", "busy")], &[]).submit, 4 - 1);
        assert_eq!(decided(&work, &mended, &[], &[]).submit, 0, "it hasn't joined yet");
        assert_eq!(decided(&work, &[ended(1, 20, How::Failed), ended(2, 10, How::Well)], &[], &[]).submit, 4);
    }

    #[test]
    fn so_many_at_once_and_the_rest_later() {
        let demand = v1::DemandResponse { demands: vec![demand(400, 0, 400)], ..v1::DemandResponse::default() };
        let seen =
            Seen { max_workers: 1000, name: "dc", jobs: &[], demand: &demand, workers: &[], devices: &[], now: NOW };
        assert_eq!(decide(&seen).submit, AT_ONCE);
    }
}
