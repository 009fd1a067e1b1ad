//! Twenty faults over one job, each at a moment when it bites and each seen to have fired: the blocks are those of a run that
//! nothing disturbs.

use std::collections::BTreeMap;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use deltaconv_proto::objects::testing::{Fault as OfStore, Faults, S3Server};
use rustix::process::Signal;
use serde_json::Value;

use crate::disk::Disk;
use crate::isolation::{run_isolated, tell};
use crate::network::Network;
use crate::process::{Running, deltaconv, said, until};
use crate::scaled;
use crate::service::{self, Coordinator, attempts, digest, freeze, steps, tasks_in, thaw};

/// What the quiet run's trainings take: enough that the job outlasts the faults, also where the machine is less busy by then. With
/// 60 s a job took 94 s and ended at the last of them, which came after 84 s.
const QUIET: Duration = Duration::from_secs(85);
/// Steps of the two short runs that tell how many that are on this machine.
const SHORT: [u32; 2] = [60, 360];
/// Whatever the machine.
const STEPS: std::ops::RangeInclusive<u32> = 900..=10_000;
/// A training is hit once it has taken so many steps, and before so much of it is done: it has begun, and can't end before the
/// fault is there.
const BEGUN: u64 = 90;
const NOT_NEARLY_DONE: f64 = 0.7;
/// It is hit again only so many steps later: attempts that are always lost before the next checkpoint end a task.
const FURTHER: u64 = 90;
/// Requests that the store refuses in a row. None is asked for more often than ten times.
const REFUSED: u64 = 6;

const AWAY: &str = "the coordinator doesn't answer";
const BACK: &str = "the coordinator is back";
const FENCED: &str = "attempt is over";
const STARTED: &str = "attempt started";
const READ_ONLY: &str = "read-only: the state can't be written";
const SERVES_AGAIN: &str = "the state can be written again";

/// Which worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Machine {
    Near,
    Far,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Fault {
    /// SIGKILL of the coordinator, which is started again.
    KillCoordinator,
    /// SIGSTOP of the coordinator until a worker misses it.
    FreezeCoordinator,
    /// SIGKILL of a worker in the middle of a training. Another takes its place.
    Kill(Machine),
    /// SIGSTOP of a worker in the middle of a training until it is taken for lost.
    Freeze(Machine),
    /// Of the far worker's network, until it is taken for lost.
    Cut,
    /// The store answers with 503, so many times.
    Refuse,
    /// The coordinator's disk fills up, until it is read-only.
    FillDisk,
}

use Fault::{Cut, FillDisk, Freeze, FreezeCoordinator, Kill, KillCoordinator, Refuse};
use Machine::{Far, Near};

/// Those that need a training of one certain worker come first: towards the end of a job there isn't one for each.
const FAULTS: [Fault; 20] = [
    Kill(Near),
    Cut,
    Freeze(Near),
    Kill(Far),
    Freeze(Far),
    Kill(Near),
    Cut,
    Freeze(Near),
    Kill(Far),
    Freeze(Far),
    Cut,
    KillCoordinator,
    Refuse,
    FillDisk,
    FreezeCoordinator,
    KillCoordinator,
    FillDisk,
    Refuse,
    FreezeCoordinator,
    KillCoordinator,
];

/// A training that a worker has a lease of.
#[derive(Clone, Debug)]
struct Held {
    task: String,
    attempt: String,
    attempts: u64,
}

struct Cluster<'a> {
    folder: &'a Path,
    network: Network,
    disk: Disk,
    faults: Faults,
    store: S3Server,
    // Taken only between its end and its next start.
    coordinator: Option<Coordinator>,
    job: String,
    steps: u32,
    /// The near one and the far one, with their names, which differ from those of workers that were there before.
    workers: BTreeMap<Machine, (String, Running)>,
    started: usize,
    /// How often faults took a task from its worker, and the step at which the last one did.
    taken: BTreeMap<String, (u64, u64)>,
}

impl<'a> Cluster<'a> {
    fn start(folder: &'a Path, is_isolated: bool, steps: u32) -> Self {
        let network = if is_isolated { Network::of_namespaces(folder) } else { Network::of_proxy() };
        let faults = Faults::none();
        let store = S3Server::on(network.near(), &faults);
        let disk = if is_isolated { Disk::mount(&service::state(folder)) } else { Disk::of_machine(folder) };
        let options = ["--allow-plaintext", "--allow-store", "any", "--keep-free"].map(str::to_owned);
        let options = [&options[..], &[disk.keep_free().to_string()]].concat();
        let address = format!("{}:0", network.near());
        // The near machine's address is none of the loopback's.
        let allows = ("DELTACONV_ALLOW_PLAINTEXT".to_owned(), "true".to_owned());
        let environment = [&store.environment()[..], &[allows]].concat();
        let coordinator = Coordinator::listen(folder, &address, &environment, &options);
        if is_isolated {
            let refused = deltaconv().args(["jobs", "--coordinator", &coordinator.url]).output().expect("runs");
            assert!(said(&refused).contains("error[DC0602]"), "{}", said(&refused));
        }
        let job = scaled::job_file_of(folder, &scaled::teacher(), Path::new("s3://bucket/out"), steps);
        let job = coordinator.submit(&job);
        let mut cluster = Self {
            folder,
            network,
            disk,
            faults,
            store,
            coordinator: Some(coordinator),
            job,
            steps,
            workers: BTreeMap::new(),
            started: 0,
            taken: BTreeMap::new(),
        };
        cluster.start_worker(Near);
        cluster.start_worker(Far);
        cluster
    }

    fn coordinator(&self) -> &Coordinator {
        self.coordinator.as_ref().expect("a coordinator")
    }

    fn worker(&self, machine: Machine) -> &Running {
        &self.workers[&machine].1
    }

    fn start_worker(&mut self, machine: Machine) {
        self.started += 1;
        let name = format!("{machine:?}-{}", self.started).to_lowercase();
        let url = &self.coordinator().url;
        let url = if machine == Far { self.network.lead_to(url) } else { url.clone() };
        let mut command = self.coordinator().worker_command(&url, &name);
        if machine == Far {
            command = self.network.far(command);
        }
        let worker = Running::start(&mut command, self.folder, &name);
        self.workers.insert(machine, (name, worker));
    }

    fn status(&self) -> Value {
        self.coordinator().status(&self.job)
    }

    /// The attempt that a task is leased to, if it is.
    fn attempt(status: &Value, task: &str) -> Option<String> {
        let running = tasks_in(status, "distill", "running");
        let found = running.into_iter().find(|running| running["task_id"] == task)?;
        Some(found["attempt_id"].as_str().expect("an id").to_owned())
    }

    /// What the worker trains, if it is in the middle of that and not where it was hit before.
    fn in_the_middle(&self, machine: Machine) -> Option<Held> {
        let status = self.status();
        let ended = status["summary"]["state"] != "running";
        assert!(!ended, "the job ended before all its faults: {status:#}");
        let running = tasks_in(&status, "distill", "running");
        if running.is_empty() {
            return None;
        }
        let worker = self.coordinator().worker_id(&self.workers[&machine].0)?;
        let found = running.into_iter().find(|task| task["worker_id"] == worker.as_str())?;
        let text = |key: &str| found[key].as_str().expect("an id").to_owned();
        let held = Held { task: text("task_id"), attempt: text("attempt_id"), attempts: 0 };
        let step = steps(&status, &held.task);
        let last = self.taken.get(&held.task).map_or(0, |(_, step)| step + FURTHER);
        let middle = BEGUN..(NOT_NEARLY_DONE * f64::from(self.steps)) as u64;
        (middle.contains(&step) && step >= last).then(|| Held { attempts: attempts(&status, &held.task), ..held })
    }

    fn wait_for_middle(&self, machine: Machine) -> Held {
        until("a worker to be in the middle of a training", || self.in_the_middle(machine))
    }

    /// Notes that a fault is about to take a training from its worker.
    fn take(&mut self, held: &Held) {
        let step = steps(&self.status(), &held.task);
        let (times, last) = self.taken.entry(held.task.clone()).or_default();
        (*times, *last) = (*times + 1, step);
    }

    /// Waits until a worker misses its coordinator no more, and says how often it did.
    fn wait_for_contact(&self, machine: Machine) -> usize {
        let what = format!("{machine:?} to have its coordinator back");
        until(&what, || {
            let times = count(self.worker(machine), BACK);
            (count(self.worker(machine), AWAY) == times).then_some(times)
        })
    }

    /// Waits until a worker misses its coordinator once more than it did `before`.
    fn wait_for_miss(&self, machine: Machine, before: usize) {
        let what = format!("{machine:?} to miss its coordinator");
        until(&what, || (count(self.worker(machine), AWAY) > before).then_some(()));
    }

    /// Waits until a training is no longer leased to this attempt.
    fn wait_for_loss(&self, held: &Held) {
        let what = format!("{} of {} to be lost", held.attempt, held.task);
        until(&what, || (Self::attempt(&self.status(), &held.task).as_ref() != Some(&held.attempt)).then_some(()));
    }

    /// Waits until a worker that comes back is told that a training is another's now, and has something new to do. It may have come
    /// to that training's end before, with a block under a key of its own; from then on it writes nothing of it.
    fn wait_for_new_work(&self, machine: Machine, held: &Held) {
        let after_fence = |next: &str| {
            let log = self.worker(machine).stderr();
            let mut lines = log.lines();
            lines.find(|line| line.contains(FENCED) && line.contains(&held.attempt))?;
            (next.is_empty() || lines.any(|line| line.contains(next))).then_some(())
        };
        until(&format!("{machine:?} to leave {}", held.attempt), || after_fence(""));
        let written = self.written_by(held);
        until(&format!("{machine:?} to be given something else"), || after_fence(STARTED));
        assert_eq!(self.written_by(held), written, "{} went on", held.attempt);
    }

    /// The blocks that an attempt wrote.
    fn written_by(&self, held: &Held) -> Vec<String> {
        let key = format!("/{}.", held.attempt);
        let mut written = keys(&self.store.folder().join("out/rounds/0/blocks"));
        written.retain(|written| written.contains(&key));
        written.sort();
        written
    }

    fn fire(&mut self, fault: Fault) {
        match fault {
            KillCoordinator => self.kill_coordinator(),
            FreezeCoordinator => self.freeze_coordinator(),
            Kill(machine) => self.kill(machine),
            Freeze(machine) => self.freeze(machine),
            Cut => self.cut(),
            Refuse => self.refuse(),
            FillDisk => self.fill_disk(),
        }
    }

    fn kill_coordinator(&mut self) {
        let held = self.wait_for_middle(Near);
        let mut coordinator = self.coordinator.take().expect("a coordinator");
        let ended = coordinator.process.kill();
        assert_eq!(ended.signal(), Some(Signal::KILL.as_raw()), "{ended}");
        self.coordinator = Some(coordinator.start_again());
        let status = self.status();
        assert_eq!(attempts(&status, &held.task), held.attempts, "{held:?} was given away: {status:#}");
        assert_eq!(Self::attempt(&status, &held.task), Some(held.attempt));
    }

    fn freeze_coordinator(&mut self) {
        let before = self.wait_for_contact(Near);
        freeze(&[&self.coordinator().process]);
        self.wait_for_miss(Near, before);
        thaw(&[&self.coordinator().process]);
        self.wait_for_contact(Near);
    }

    fn kill(&mut self, machine: Machine) {
        let held = self.wait_for_middle(machine);
        self.take(&held);
        let ended = self.workers.get_mut(&machine).expect("a worker").1.kill();
        assert_eq!(ended.signal(), Some(Signal::KILL.as_raw()), "{ended}");
        self.start_worker(machine);
        self.wait_for_loss(&held);
    }

    fn freeze(&mut self, machine: Machine) {
        let held = self.wait_for_middle(machine);
        self.take(&held);
        freeze(&[self.worker(machine)]);
        self.wait_for_loss(&held);
        thaw(&[self.worker(machine)]);
        self.wait_for_new_work(machine, &held);
    }

    fn cut(&mut self) {
        let held = self.wait_for_middle(Far);
        self.take(&held);
        let before = self.wait_for_contact(Far);
        self.network.cut();
        self.wait_for_miss(Far, before);
        self.wait_for_loss(&held);
        assert_eq!(count(self.worker(Far), BACK), before, "something came through");
        self.network.mend();
        self.wait_for_contact(Far);
        self.wait_for_new_work(Far, &held);
    }

    fn refuse(&mut self) {
        let before = self.faults.fired(OfStore::Busy);
        self.faults.refuse(REFUSED);
        until("the store to refuse requests", || (self.faults.fired(OfStore::Busy) >= before + REFUSED).then_some(()));
        let said = |process: &Running| count(process, "503");
        let processes = self.workers.values().map(|(_, worker)| worker).chain([&self.coordinator().process]);
        assert!(processes.map(said).sum::<usize>() > 0, "nobody noticed that the store refuses requests");
    }

    fn fill_disk(&self) {
        let held = self.wait_for_middle(Near);
        let said_so = |text: &str| count(&self.coordinator().process, text);
        let before = [READ_ONLY, SERVES_AGAIN].map(said_so);
        self.disk.fill();
        until("the coordinator to be read-only", || (said_so(READ_ONLY) > before[0]).then_some(()));
        let refused = said(&self.coordinator().run(&["pause", &self.job]));
        assert!(refused.contains("read-only"), "{refused}");
        assert_eq!(said_so(SERVES_AGAIN), before[1]);
        self.disk.free();
        until("the coordinator to serve again", || (said_so(SERVES_AGAIN) > before[1]).then_some(()));
        let status = self.status();
        assert_eq!(attempts(&status, &held.task), held.attempts, "{held:?} was given away: {status:#}");
    }
}

/// Lines of a process' log that have this text.
fn count(process: &Running, text: &str) -> usize {
    process.stderr().lines().filter(|line| line.contains(text)).count()
}

/// The files below a folder that may not be there yet.
fn keys(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let below = |path: PathBuf| if path.is_dir() { keys(&path) } else { vec![path.display().to_string()] };
    entries.flat_map(below).collect()
}

#[test]
fn twenty_faults_change_nothing() {
    run_isolated("chaos::twenty_faults_change_nothing", |is_isolated| {
        let began = Instant::now();
        let [few, more] = SHORT.map(|steps| {
            let began = Instant::now();
            scaled::quiet_of(steps);
            began.elapsed()
        });
        let of_step = more.saturating_sub(few).as_secs_f64() / f64::from(SHORT[1] - SHORT[0]);
        let steps = ((QUIET.as_secs_f64() / of_step) as u32).clamp(*STEPS.start(), *STEPS.end());
        tell(&format!("{:6.1} s  trainings of {steps} steps will do", began.elapsed().as_secs_f64()));
        let quiet = scaled::quiet_of(steps);
        tell(&format!("{:6.1} s  quiet run, in namespaces: {is_isolated}", began.elapsed().as_secs_f64()));
        let folder = tempfile::tempdir().expect("a folder");
        let mut cluster = Cluster::start(folder.path(), is_isolated, steps);
        for (number, fault) in FAULTS.into_iter().enumerate() {
            cluster.fire(fault);
            let (seconds, status) = (began.elapsed().as_secs_f64(), cluster.status());
            tell(&format!("{seconds:6.1} s  fault {}, {fault:?}, at {}", number + 1, status["summary"]["fraction"]));
        }
        let done = cluster.coordinator().done(&cluster.job);
        tell(&format!("{:6.1} s  done", began.elapsed().as_secs_f64()));
        assert_eq!(done["figures"], quiet.told["figures"]);
        assert_eq!(digest(&done), quiet.digest);
        let refusals = FAULTS.iter().filter(|fault| **fault == Refuse).count() as u64;
        assert_eq!(cluster.faults.fired(OfStore::Busy), REFUSED * refusals);
        for (task, (times, _)) in &cluster.taken {
            assert!(attempts(&done, task) > *times, "{task} was taken away {times} times: {done:#}");
        }
    });
}
