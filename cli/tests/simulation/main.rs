//! The real scheduling code and the real worker's agent under a simulated network, clock and disk, by seed.
//!
//! `cargo test -p deltaconv --test simulation` runs 2000 seeds, some of them twice, and looks for five planted bugs, each
//! of which must be caught by the invariant that it breaks.
//! `-- --seeds N` runs so many, `-- --seed S` one of them with what happens in it on stderr, and `-- --planted NAME` looks for
//! one bug, or with `--seed` runs that seed with it. What else is given is what every test takes.

mod audit;
mod coordinator;
mod disk;
mod faults;
mod job;
mod network;
mod operator;
mod run;
mod worker;
mod world;

use std::collections::BTreeSet;
use std::io::Write;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use deltaconv_coordinator::simulation::Planted;
use libtest_mimic::{Arguments, Failed, Trial};

use run::run;
use world::{Trace, lock};

const SEEDS: u64 = 2_000;
/// Seeds that are run twice.
const TWICE: u64 = 20;
/// What libtest takes and libtest-mimic doesn't; it means nothing here.
const MEANINGLESS: [&str; 4] = ["--ensure-time", "--fail-fast", "--report-time", "--shuffle"];
/// A planted bug is caught among so many seeds.
const PLANTED_SEEDS: u64 = 2_000;

/// What is asked for beside what every test takes.
#[derive(Default)]
struct Asked {
    seeds: Option<u64>,
    seed: Option<u64>,
    planted: Option<Planted>,
}

fn main() -> ExitCode {
    run::catch_panics();
    let (asked, others) = match Asked::parse(std::env::args()) {
        Ok(parsed) => parsed,
        Err(problem) => {
            say(&problem);
            return ExitCode::from(2);
        }
    };
    if let Some(seed) = asked.seed {
        return match run(seed, asked.planted, Trace::Told).failure {
            None => ExitCode::SUCCESS,
            Some(failure) => {
                say(&report(seed, asked.planted, &failure));
                ExitCode::FAILURE
            }
        };
    }
    let notes = Arc::new(Mutex::new(Vec::new()));
    let trials = trials(&asked, &notes);
    // Each trial takes all cores.
    let arguments = Arguments { test_threads: Some(1), ..Arguments::from_iter(others) };
    let conclusion = libtest_mimic::run(&arguments, trials);
    lock(&notes).iter().for_each(|note: &String| say(note));
    conclusion.exit_code()
}

impl Asked {
    /// Takes what is meant for this test; the rest is given back.
    fn parse(arguments: impl Iterator<Item = String>) -> Result<(Self, Vec<String>), String> {
        let (mut asked, mut others) = (Self::default(), Vec::new());
        let mut arguments = arguments.peekable();
        while let Some(argument) = arguments.next() {
            let (name, value) = match argument.split_once('=') {
                Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
                None => (argument.clone(), None),
            };
            if MEANINGLESS.contains(&name.as_str()) {
                continue;
            }
            if !matches!(name.as_str(), "--seeds" | "--seed" | "--planted") {
                others.push(argument);
                continue;
            }
            let value = value.or_else(|| arguments.next()).ok_or_else(|| format!("{name} takes a value"))?;
            let number = || value.parse().map_err(|_| format!("{name} {value}: not a number"));
            match name.as_str() {
                "--seeds" => asked.seeds = Some(number()?),
                "--seed" => asked.seed = Some(number()?),
                _ => {
                    let known = || Planted::ALL.map(name_of).join(", ");
                    let named = Planted::ALL.into_iter().find(|bug| name_of(*bug) == value);
                    asked.planted = Some(named.ok_or_else(|| format!("--planted {value}: one of {}", known()))?);
                }
            }
        }
        Ok((asked, others))
    }
}

fn name_of(bug: Planted) -> &'static str {
    match bug {
        Planted::AckBeforeDurable => "ack-before-durable",
        Planted::NoFenceOnComplete => "no-fence-on-complete",
        Planted::LeaseByWallClock => "lease-by-wall-clock",
        Planted::PreemptionCountsAsFailure => "preemption-counts-as-failure",
        Planted::DoubleCommit => "double-commit",
    }
}

fn trials(asked: &Asked, notes: &Arc<Mutex<Vec<String>>>) -> Vec<Trial> {
    let bug = |bug: Planted| {
        let (notes, seeds) = (notes.clone(), asked.seeds.unwrap_or(PLANTED_SEEDS));
        Trial::test(format!("simulation::planted::{}", name_of(bug)), move || {
            lock(&notes).push(look_for(bug, seeds)?);
            Ok(())
        })
    };
    if let Some(planted) = asked.planted {
        return vec![bug(planted)];
    }
    let seeds = asked.seeds.unwrap_or(SEEDS);
    let invariants = Trial::test("simulation::invariants_hold", move || match first_failure(seeds, None, |_| true) {
        None => Ok(()),
        Some((seed, failure)) => Err(report(seed, None, &failure).into()),
    });
    let repeats =
        Trial::test("simulation::a_seed_gives_the_same_run", move || (0..seeds.min(TWICE)).try_for_each(same));
    let rare = Trial::test("simulation::what_is_rare_comes_about", move || {
        let mut missing: BTreeSet<&str> = audit::RARE.into();
        for seed in 0..SEEDS {
            let seen = run(seed, None, Trace::Off).seen;
            missing.retain(|rare| !seen.contains(rare));
            if missing.is_empty() {
                break;
            }
        }
        match missing.is_empty() {
            true => Ok(()),
            false => Err(format!("not seen in {SEEDS} seeds: {missing:?}").into()),
        }
    });
    [invariants, repeats, rare].into_iter().chain(Planted::ALL.map(bug)).collect()
}

/// Runs the seeds up to `seeds` on all cores, until one fails in the way that is looked for; the lowest that was seen to.
fn first_failure(
    seeds: u64,
    planted: Option<Planted>,
    is_looked_for: impl Fn(&str) -> bool + Sync,
) -> Option<(u64, String)> {
    let (next, failed) = (AtomicU64::new(0), AtomicBool::new(false));
    let found = Mutex::new(None::<(u64, String)>);
    let work = || {
        while !failed.load(Ordering::Relaxed) {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds {
                return;
            }
            if let Some(failure) = run(seed, planted, Trace::Off).failure.filter(|failure| is_looked_for(failure)) {
                failed.store(true, Ordering::Relaxed);
                let mut found = lock(&found);
                if found.as_ref().is_none_or(|(lowest, _)| seed < *lowest) {
                    *found = Some((seed, failure));
                }
            }
        }
    };
    let threads = thread::available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| (0..threads).for_each(|_| drop(scope.spawn(work))));
    lock(&found).take()
}

/// After how many seeds the bug is caught, by the invariant that it breaks.
fn look_for(bug: Planted, seeds: u64) -> Result<String, Failed> {
    let name = name_of(bug);
    match first_failure(seeds, Some(bug), |failure| failure.starts_with(audit::broken_by(bug))) {
        Some((seed, failure)) => {
            Ok(format!("planted {name}: caught after {} seeds, in seed {seed}: {failure}", seed + 1))
        }
        None => Err(format!("planted {name}: not caught in {seeds} seeds").into()),
    }
}

fn same(seed: u64) -> Result<(), Failed> {
    let [first, second] = [(); 2].map(|()| run(seed, None, Trace::Hashed).hash);
    if first == second {
        return Ok(());
    }
    Err(format!("seed {seed} gave two runs: {first:016x} and {second:016x}").into())
}

/// What failed, and the command that runs it again.
fn report(seed: u64, planted: Option<Planted>, failure: &str) -> String {
    let planted = planted.map(|bug| format!(" --planted {}", name_of(bug))).unwrap_or_default();
    format!(
        "seed {seed}: {failure}\nreplay it with: cargo test --locked -p deltaconv --test simulation -- --seed {seed}{planted}"
    )
}

fn say(text: &str) {
    // A closed stderr is no failure.
    let _ = writeln!(std::io::stderr(), "{text}");
}
