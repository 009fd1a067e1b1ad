//! What goes wrong in a run: how often by itself, and what is done to it.

use std::sync::Arc;
use std::time::Duration;

use rand::RngExt;
use rand_chacha::ChaCha8Rng;

use crate::network::Cut;
use crate::worker;
use crate::world::{World, lock};

const HOUR_MS: i64 = 3_600_000;

/// How often what goes wrong by itself.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Weather {
    /// Requests that are lost, and answers.
    pub(crate) loss: f64,
    /// Requests that arrive twice, and held calls that outlive their caller.
    pub(crate) duplication: f64,
    /// Most milliseconds on the way.
    pub(crate) delay_ms: u64,
    /// Writes that fail.
    pub(crate) disk_errors: f64,
    /// Attempts that fail by their task's fault, and outputs that are refused.
    pub(crate) own_failures: f64,
    /// Tasks that fail wherever they are tried.
    pub(crate) curses: f64,
    /// Attempts that find a shard broken.
    pub(crate) broken_shards: f64,
    /// Checks of outputs that can't be made.
    pub(crate) failed_checks: f64,
    /// Checks of outputs that take longer than a lease may.
    pub(crate) slow_checks: f64,
    /// Models and reports that can't be written.
    pub(crate) failed_writes: f64,
    /// Looks of operators that lead to a change.
    pub(crate) changes: f64,
    /// Milliseconds between two things that are done to the run, on average.
    pub(crate) pause_ms: u64,
}

impl Weather {
    /// Nothing goes wrong.
    pub(crate) const CALM: Self = Self {
        loss: 0.0,
        duplication: 0.0,
        delay_ms: 10,
        disk_errors: 0.0,
        own_failures: 0.0,
        curses: 0.0,
        broken_shards: 0.0,
        failed_checks: 0.0,
        slow_checks: 0.0,
        failed_writes: 0.0,
        changes: 0.0,
        pause_ms: 0,
    };

    /// Runs differ in what is frequent, so that each fault is seen among few others, too.
    pub(crate) fn draw(dice: &mut ChaCha8Rng) -> Self {
        let mut one_of = |choices: [f64; 4]| choices[dice.random_range(0..4)];
        Self {
            loss: one_of([0.0, 0.0, 0.02, 0.15]),
            duplication: one_of([0.0, 0.02, 0.1, 0.3]),
            delay_ms: one_of([5.0, 50.0, 300.0, 2_000.0]) as u64,
            disk_errors: one_of([0.0, 0.0, 0.005, 0.03]),
            own_failures: one_of([0.0, 0.0, 0.05, 0.4]),
            curses: one_of([0.0, 0.0, 0.05, 0.3]),
            broken_shards: one_of([0.0, 0.0, 0.03, 0.1]),
            failed_checks: one_of([0.0, 0.0, 0.05, 0.2]),
            slow_checks: one_of([0.0, 0.0, 0.1, 0.3]),
            failed_writes: one_of([0.0, 0.0, 0.1, 0.5]),
            changes: one_of([0.0, 0.1, 0.3, 0.7]),
            pause_ms: one_of([700.0, 2_000.0, 5_000.0, 15_000.0]) as u64,
        }
    }
}

/// Does one thing after the other to the run, for so long.
pub(crate) async fn strike(world: Arc<World>, lasting: Duration) {
    while world.now() < lasting {
        world.pass(1..2 * world.weather().pause_ms).await;
        let index = world.draw(0..world.slots.len() as u64) as usize;
        let slot = &world.slots[index];
        match world.draw(0..14) {
            0 => world.coordinator_crash.notify_one(),
            1 => lock(&world.platters).break_once(),
            2 | 3 => {
                world.trace(format_args!("slot {index} crashes"));
                lock(&slot.signals).killed.cancel();
            }
            4 | 5 => {
                world.trace(format_args!("slot {index} is asked to leave"));
                lock(&slot.signals).leave.cancel();
            }
            6 | 7 => {
                let until = world.now() + Duration::from_millis(world.draw(500..25_000));
                let never = Duration::ZERO;
                let (requests_until, answers_until) = match world.draw(0..3) {
                    0 => (until, never),
                    1 => (never, until),
                    _ => (until, until),
                };
                let cut = Cut { requests_until, answers_until };
                world.trace(format_args!("slot {index} is cut off: {cut:?}"));
                *lock(&slot.cut) = cut;
            }
            8 => {
                let ahead = if world.chance(0.5) { HOUR_MS } else { -HOUR_MS };
                world.trace(format_args!("the clock jumps by {ahead} ms"));
                world.jump(ahead);
            }
            9 => {
                world.trace(format_args!("the device of slot {index} breaks"));
                let node = &world.nodes[slot.node];
                lock(&world.audit).device_breaks(&node.name);
                lock(&node.health).device_broken = true;
            }
            10 => {
                world.trace(format_args!("all fails on the machine of slot {index}"));
                lock(&world.nodes[slot.node].health).faulty = true;
            }
            11 => worker::mend(&world, slot.node),
            _ => {
                // A little slower, or a straggler.
                let slowness = if world.chance(0.5) { world.draw(0..700) } else { world.draw(600..2_850) };
                world.trace(format_args!("slot {index} takes {slowness} ms more for a step"));
                *lock(&slot.slowness) = slowness;
            }
        }
    }
}

/// Ends all faults.
pub(crate) fn end(world: &World) {
    world.trace(format_args!("faults stop"));
    world.calm_down();
    (0..world.nodes.len()).for_each(|node| worker::mend(world, node));
    for slot in &world.slots {
        *lock(&slot.cut) = Cut::default();
        *lock(&slot.slowness) = 0;
    }
}
