//! What all parts of one simulated run share: its dice, its clocks, its weather, and what is watched.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::future::Future;
use std::hash::{DefaultHasher, Hasher};
use std::io::Write as _;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use deltaconv_coordinator::simulation::Planted;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use crate::audit::{Audit, Violation};
use crate::coordinator::Alive;
use crate::disk::Platters;
use crate::faults::Weather;
use crate::run;
use crate::worker::{Node, Slot};

/// What happened, as far as anybody looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trace {
    /// Nobody does.
    Off,
    /// Told apart by a hash.
    Hashed,
    /// Told on stderr, too.
    Told,
}

/// One simulated run.
pub(crate) struct World {
    pub(crate) planted: Option<Planted>,
    pub(crate) audit: Mutex<Audit>,
    pub(crate) platters: Mutex<Platters>,
    /// The coordinator that serves, if one does.
    pub(crate) alive: Mutex<Option<Arc<Alive>>>,
    /// The machines that workers run on.
    pub(crate) nodes: Vec<Node>,
    /// Where there is a worker.
    pub(crate) slots: Vec<Slot>,
    /// Workers that a task may lose before it is given to nobody any more.
    pub(crate) max_lost: u32,
    /// Has the coordinator's process end at once.
    pub(crate) coordinator_crash: Notify,
    /// Something is wrong.
    pub(crate) failed: Notify,
    began: Instant,
    fate: Mutex<Fate>,
    tasks: TaskTracker,
}

struct Fate {
    dice: ChaCha8Rng,
    weather: Weather,
    /// Whether a task fails wherever it is tried, of those that were.
    cursed: BTreeMap<String, bool>,
    /// How far the clock that people set is ahead, in milliseconds.
    wall_ahead: i64,
    trace: Trace,
    hash: DefaultHasher,
    failure: Option<String>,
}

impl World {
    /// The world of this seed, before anything runs.
    pub(crate) fn new(seed: u64, planted: Option<Planted>, trace: Trace) -> Arc<Self> {
        let mut dice = ChaCha8Rng::seed_from_u64(seed);
        let weather = Weather::draw(&mut dice);
        let (workers, nodes) = (dice.random_range(1..7), dice.random_range(1..6));
        let nodes: Vec<Node> = (0..nodes).map(Node::new).collect();
        let slots = (0..workers).map(|_| Slot::on(dice.random_range(0..nodes.len()))).collect();
        let max_lost = if dice.random_bool(0.5) { 3 } else { 1000 };
        let hash = DefaultHasher::new();
        let world = Self {
            planted,
            audit: Mutex::new(Audit::new(max_lost)),
            platters: Mutex::default(),
            alive: Mutex::default(),
            nodes,
            slots,
            max_lost,
            coordinator_crash: Notify::new(),
            failed: Notify::new(),
            began: Instant::now(),
            fate: Mutex::new(Fate {
                dice,
                weather,
                cursed: BTreeMap::new(),
                wall_ahead: 0,
                trace,
                hash,
                failure: None,
            }),
            tasks: TaskTracker::new(),
        };
        world.trace(format_args!("{workers} workers; {weather:?}"));
        Arc::new(world)
    }

    /// A number of the range, which must not be empty.
    pub(crate) fn draw(&self, range: Range<u64>) -> u64 {
        lock(&self.fate).dice.random_range(range)
    }

    /// Whether what has this probability happens.
    pub(crate) fn chance(&self, probability: f64) -> bool {
        lock(&self.fate).dice.random_bool(probability)
    }

    /// Waits for so many milliseconds.
    pub(crate) async fn pass(&self, milliseconds: Range<u64>) {
        let time = self.draw(milliseconds);
        tokio::time::sleep(Duration::from_millis(time)).await;
    }

    /// Since the run began.
    pub(crate) fn now(&self) -> Duration {
        self.began.elapsed()
    }

    /// What the clock that people set shows.
    pub(crate) fn wall(&self) -> SystemTime {
        const START_MS: i64 = 1_800_000_000_000;
        let shown = START_MS + self.now().as_millis() as i64 + lock(&self.fate).wall_ahead;
        UNIX_EPOCH + Duration::from_millis(shown.max(0) as u64)
    }

    /// Sets that clock ahead or back.
    pub(crate) fn jump(&self, milliseconds: i64) {
        lock(&self.fate).wall_ahead += milliseconds;
    }

    /// How things go at the moment.
    pub(crate) fn weather(&self) -> Weather {
        lock(&self.fate).weather
    }

    /// No fault happens by itself any more.
    pub(crate) fn calm_down(&self) {
        lock(&self.fate).weather = Weather::CALM;
    }

    /// Whether faults have stopped.
    pub(crate) fn is_calm(&self) -> bool {
        self.weather().pause_ms == 0
    }

    /// Whether the task fails wherever it is tried, until faults stop.
    pub(crate) fn is_cursed(&self, task: &str) -> bool {
        let probability = self.weather().curses;
        let drawn = self.chance(probability);
        probability > 0.0 && *lock(&self.fate).cursed.entry(task.to_owned()).or_insert(drawn)
    }

    /// Runs beside the rest, to the end of the run at most. A panic in it fails the run.
    pub(crate) fn spawn(self: &Arc<Self>, task: impl Future<Output = ()> + Send + 'static) {
        let watched = Watched(self.clone());
        self.tasks.spawn(async move {
            let _watched = watched;
            task.await;
        });
    }

    /// Something happened.
    pub(crate) fn trace(&self, what: fmt::Arguments<'_>) {
        let mut fate = lock(&self.fate);
        if fate.trace == Trace::Off {
            return;
        }
        let mut line = String::new();
        // Neither a string nor stderr of a test is worth a failure.
        let _ = write!(line, "{:9.3} {what}", self.now().as_secs_f64());
        fate.hash.write(line.as_bytes());
        if fate.trace == Trace::Told {
            let _ = writeln!(std::io::stderr(), "{line}");
        }
    }

    /// Of all that was traced.
    pub(crate) fn hash(&self) -> u64 {
        lock(&self.fate).hash.finish()
    }

    /// An invariant doesn't hold; the first one counts.
    pub(crate) fn fail(&self, violation: Violation) {
        self.trace(format_args!("VIOLATION {violation}"));
        lock(&self.fate).failure.get_or_insert(violation.to_string());
        self.failed.notify_one();
    }

    /// What failed, if anything did.
    pub(crate) fn failure(&self) -> Option<String> {
        lock(&self.fate).failure.clone()
    }

    /// Looks at what happened, and fails if that must not be.
    pub(crate) fn check(&self, look: impl FnOnce(&mut Audit, Duration) -> Result<(), Violation>) {
        let looked = look(&mut lock(&self.audit), self.now());
        if let Err(violation) = looked {
            self.fail(violation);
        }
    }
}

/// Dropped when its task ends, in whatever way.
struct Watched(Arc<World>);

impl Drop for Watched {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.fail(Violation::new("nothing panics", run::panic().unwrap_or_default()));
        }
    }
}

/// Locks; what a panic left behind is looked at nevertheless, since the panic itself fails the run.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
