//! The coordinator's processes, one after the other, and what carries out their commands.

use std::sync::Arc;
use std::time::Duration;

use deltaconv_coordinator::schedule::{Command, Settings, State};
use deltaconv_coordinator::simulation::{Coordinator, Process};
use deltaconv_proto::ids::JobId;
use deltaconv_proto::v1;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::audit::{CHECKPOINT_INTERVAL, LEASE_TTL, MAX_FAILURES, MAX_RECAPTURES, Violation};
use crate::disk::{self, Disk};
use crate::job;
use crate::world::{World, lock};

/// A process that serves.
pub(crate) struct Alive {
    pub(crate) coordinator: Coordinator,
    /// It is dead.
    pub(crate) gone: CancellationToken,
    /// Whose turn it is at what a job has once.
    turn: tokio::sync::Mutex<()>,
}

/// Starts the coordinator again whenever it ended.
pub(crate) async fn live(world: Arc<World>) {
    loop {
        let settings = Settings {
            lease_ttl: LEASE_TTL,
            max_failures: MAX_FAILURES,
            max_lost: world.max_lost,
            max_recaptures: MAX_RECAPTURES,
            forget_workers: Duration::from_secs(15),
            identity: "sim".into(),
            planted: world.planted,
        };
        let clock = world.clone();
        let started = Process::start(settings, CHECKPOINT_INTERVAL, Disk(world.clone()), move || clock.wall());
        let Process { coordinator, core, commands } = match started {
            Ok(process) => process,
            Err(error) => return world.fail(Violation::new("what is durable can be read", error.to_string())),
        };
        world.trace(format_args!("the coordinator starts"));
        let alive =
            Arc::new(Alive { coordinator, gone: CancellationToken::new(), turn: tokio::sync::Mutex::default() });
        *lock(&world.alive) = Some(alive.clone());
        world.spawn(carry_out(world.clone(), alive.clone(), commands));
        tokio::select! {
            biased;
            () = world.coordinator_crash.notified() => world.trace(format_args!("the coordinator crashes")),
            ended = core => {
                world.trace(format_args!("the coordinator ends: {ended:?}"));
                *lock(&world.alive) = None;
                // What was answered before may still leave the process.
                world.pass(0..20).await;
            }
        }
        *lock(&world.alive) = None;
        alive.gone.cancel();
        disk::crash(&world);
        world.pass(50..3_000).await;
    }
}

/// Does what the process commands. What is under way is lost with it.
async fn carry_out(world: Arc<World>, alive: Arc<Alive>, mut commands: mpsc::UnboundedReceiver<Command>) {
    while let Some(command) = commands.recv().await {
        let (in_world, alive) = (world.clone(), alive.clone());
        if let Command::Wake(worker) = &command {
            alive.coordinator.wake(worker);
            continue;
        }
        world.spawn(async move {
            tokio::select! {
                biased;
                () = alive.gone.cancelled() => {}
                _ = carry_out_one(&in_world, &alive, command) => {}
            }
        });
    }
}

/// `None` when the coordinator has ended meanwhile.
async fn carry_out_one(world: &World, alive: &Alive, command: Command) -> Option<()> {
    let coordinator = &alive.coordinator;
    match command {
        // There is no store to write to.
        Command::Wake(_) | Command::Say { .. } | Command::Manifest(_) => {}
        Command::Verify { task, lease, attempt, done, .. } => {
            let weather = world.weather();
            let slow = world.chance(weather.slow_checks);
            world.pass(if slow { 1_000..20_000 } else { 1..300 }).await;
            let result = match () {
                () if world.chance(weather.failed_checks) => Err(None),
                () if !job::is_of(&done, &attempt) => Err(Some("the output is another attempt's".to_owned())),
                () if world.chance(weather.own_failures) => Err(Some("a value is not finite".into())),
                () => Ok(()),
            };
            world.trace(format_args!("{task} {} is checked: {result:?}", lease.attempt_id));
            if matches!(result, Err(Some(_))) {
                lock(&world.audit).fails_by_itself(&lease);
            }
            let told = move |state: &mut State, now, effects: &mut _| {
                state.verified(&task, &lease, *done, result, now, effects);
            };
            coordinator.tell(told).await?;
        }
        Command::Assemble(turn) => {
            let _turn = alive.turn.lock().await;
            let of = turn.clone();
            let waits = move |state: &mut State, _, _: &mut _| {
                state.is_turn(&of) && state.job(&of.job).is_some_and(|job| job.output.is_empty())
            };
            if !coordinator.call(waits).await? {
                return Some(());
            }
            world.pass(100..2_000).await;
            let output = vec![job::object("output/model.safetensors")];
            let result = written(world, &turn.job, ("digest".to_owned(), output));
            let told = move |state: &mut State, now, effects: &mut _| state.assembled(&turn, result, now, effects);
            coordinator.tell(told).await?;
        }
        Command::Report(turn) => {
            let _turn = alive.turn.lock().await;
            let of = turn.clone();
            let waits = move |state: &mut State, _, _: &mut _| state.is_turn(&of);
            if !coordinator.call(waits).await? {
                return Some(());
            }
            world.pass(100..1_000).await;
            let result = written(world, &turn.job, v1::Figures::default());
            let told = move |state: &mut State, now, effects: &mut _| state.reported(&turn, result, now, effects);
            coordinator.tell(told).await?;
        }
        Command::Discard { job, key } => {
            world.pass(0..500).await;
            world.trace(format_args!("{key} of {job} is removed"));
            world.check(|audit, _| audit.removed(&key));
        }
        Command::Reclaim(job) => {
            world.pass(0..500).await;
            coordinator.tell(move |state, _, effects| state.reclaimed(&job, effects)).await?;
        }
    }
    Some(())
}

/// What is written of a job, or that the store is away.
fn written<T>(world: &World, job: &JobId, what: T) -> Result<T, String> {
    if !world.chance(world.weather().failed_writes) {
        return Ok(what);
    }
    world.trace(format_args!("what {job} has come to can't be written"));
    lock(&world.audit).is_unwritten(job);
    Err("the store is away".into())
}
