//! What goes wrong, and when, as a seed says.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// How many objects a stale listing may miss.
const MAX_MISSED: usize = 3;

/// What can happen to an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It takes longer.
    Delay,
    /// It is refused as by a 503, before it did anything; a write also after it was done.
    Busy,
    /// The connection is reset in the middle of a body.
    Reset,
    /// A body ends early, without an error.
    Short,
    /// A bit of a body is flipped.
    Flipped,
    /// A listing misses the newest objects.
    Stale,
}

impl Fault {
    /// Each of them.
    pub const ALL: [Self; 6] = [Self::Delay, Self::Busy, Self::Reset, Self::Short, Self::Flipped, Self::Stale];
}

/// Which operations have a fault. Decided by the seed and the operation's number, so that operations in the same order meet
/// the same faults.
#[derive(Debug)]
pub(super) struct Schedule {
    seed: u64,
    rates: Mutex<(f64, Vec<Fault>)>,
    most_flips: u64,
    /// Those that were drawn.
    flips: AtomicU64,
    longest_delay: Duration,
    /// How many of the next operations are refused whatever the seed says.
    refusals: AtomicU64,
    operations: AtomicU64,
    fired: [AtomicU64; Fault::ALL.len()],
}

/// What happens to one operation.
pub(super) struct Drawn {
    pub(super) fault: Fault,
    pub(super) operation: u64,
    pub(super) random: ChaCha8Rng,
}

impl Drawn {
    /// How long a delayed operation waits.
    fn delay(&mut self, longest: Duration) -> Duration {
        longest.mul_f64(self.random.random_range(0.0..=1.0))
    }

    /// Whether what is refused is done all the same: the answer gets lost.
    pub(super) fn is_done(&mut self) -> bool {
        self.fault == Fault::Busy && self.random.random_bool(0.5)
    }

    /// How many of so many objects a stale listing has.
    pub(super) fn listed(&mut self, found: usize) -> usize {
        found - self.random.random_range(1..=MAX_MISSED).min(found)
    }

    /// A body of `length` bytes, more than none, to which this happens, and the byte at which it does.
    pub(super) fn disturb<E: Send + 'static>(
        mut self,
        body: BoxStream<'static, Result<Bytes, E>>,
        length: u64,
        schedule: Arc<Schedule>,
        reset: fn(io::Error) -> E,
    ) -> (BoxStream<'static, Result<Bytes, E>>, u64) {
        let (at, bit) = (self.random.random_range(0..length), self.random.random_range(0..8));
        let Self { fault, operation, .. } = self;
        let body = Disturbed { body, schedule, fault, operation, at, bit, passed: 0, reset };
        (stream::unfold(body, Disturbed::next).boxed(), at)
    }
}

impl Schedule {
    /// `rate` (0 to 1) of the operations that one of these `kinds` can happen to have it; one that is named twice happens twice
    /// as often.
    pub(super) fn new(seed: u64, rate: f64, kinds: &[Fault], longest_delay: Duration) -> Self {
        let rates = Mutex::new((rate, kinds.to_vec()));
        Self {
            seed,
            rates,
            most_flips: u64::MAX,
            flips: AtomicU64::new(0),
            longest_delay,
            refusals: AtomicU64::new(0),
            operations: AtomicU64::new(0),
            fired: Default::default(),
        }
    }

    /// The same, with so many flipped bits at most.
    pub(super) fn with_most_flips(self, most_flips: u64) -> Self {
        Self { most_flips, ..self }
    }

    /// From now on other kinds, at another rate.
    pub(super) fn change(&self, rate: f64, kinds: &[Fault]) {
        *self.rates.lock().unwrap_or_else(PoisonError::into_inner) = (rate, kinds.to_vec());
    }

    /// Refuses the next `count` operations, whatever the seed says of them.
    pub(super) fn refuse(&self, count: u64) {
        self.refusals.fetch_add(count, Ordering::Relaxed);
    }

    /// The fault of the next operation, if it has one of the `possible` kinds.
    pub(super) fn draw(&self, possible: &[Fault]) -> Option<Drawn> {
        let operation = self.operations.fetch_add(1, Ordering::Relaxed);
        let mut random = ChaCha8Rng::seed_from_u64(self.seed);
        random.set_stream(operation);
        let is_refused = |left: u64| left.checked_sub(1);
        if self.refusals.fetch_update(Ordering::Relaxed, Ordering::Relaxed, is_refused).is_ok() {
            return Some(Drawn { fault: Fault::Busy, operation, random });
        }
        let (rate, kinds) = self.rates.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let kinds: Vec<_> = kinds.into_iter().filter(|kind| possible.contains(kind)).collect();
        if kinds.is_empty() || !random.random_bool(rate) {
            return None;
        }
        let fault = kinds[random.random_range(0..kinds.len())];
        if fault == Fault::Flipped && self.flips.fetch_add(1, Ordering::Relaxed) >= self.most_flips {
            return None;
        }
        Some(Drawn { fault, operation, random })
    }

    /// Counts a fault that happens.
    pub(super) fn fire(&self, fault: Fault) {
        self.fired[fault as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn fired(&self, fault: Fault) -> u64 {
        self.fired[fault as usize].load(Ordering::Relaxed)
    }

    pub(super) fn operations(&self) -> u64 {
        self.operations.load(Ordering::Relaxed)
    }

    /// Delays or refuses an operation.
    pub(super) async fn before(&self, drawn: Option<&mut Drawn>) -> io::Result<()> {
        let Some(drawn) = drawn else { return Ok(()) };
        match drawn.fault {
            Fault::Delay => {
                self.fire(Fault::Delay);
                tokio::time::sleep(drawn.delay(self.longest_delay)).await;
                Ok(())
            }
            Fault::Busy => {
                self.fire(Fault::Busy);
                let what = format!("503 SlowDown, in operation {}", drawn.operation);
                Err(io::Error::new(io::ErrorKind::ResourceBusy, what))
            }
            _ => Ok(()),
        }
    }
}

/// A body in which something happens at one byte.
struct Disturbed<E> {
    body: BoxStream<'static, Result<Bytes, E>>,
    schedule: Arc<Schedule>,
    fault: Fault,
    operation: u64,
    /// The byte, and the bit in it.
    at: u64,
    bit: u32,
    /// Bytes before what comes next.
    passed: u64,
    reset: fn(io::Error) -> E,
}

impl<E: Send + 'static> Disturbed<E> {
    async fn next(mut self) -> Option<(Result<Bytes, E>, Self)> {
        let chunk = match self.body.next().await? {
            Ok(chunk) => chunk,
            Err(error) => return Some((Err(error), self)),
        };
        let here = self.at.checked_sub(self.passed).filter(|here| *here < chunk.len() as u64);
        self.passed += chunk.len() as u64;
        let Some(here) = here.map(|here| here as usize) else { return Some((Ok(chunk), self)) };
        self.schedule.fire(self.fault);
        if self.fault == Fault::Flipped {
            let mut bytes = chunk.to_vec();
            bytes[here] ^= 1 << self.bit;
            return Some((Ok(bytes.into()), self));
        }
        self.body = match self.fault {
            Fault::Reset => {
                let what = format!("connection reset, in operation {}", self.operation);
                let error = (self.reset)(io::Error::new(io::ErrorKind::ConnectionReset, what));
                stream::once(async { Err(error) }).boxed()
            }
            _ => stream::empty().boxed(),
        };
        Some((Ok(chunk.slice(..here)), self))
    }
}
