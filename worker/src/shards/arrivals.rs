//! The thread that brings a layer's shards: reads them in the order in which training takes them, checks them, and puts
//! each where there is room, nearest first: the GPU's memory, the host's, the node's folder.

use std::fs::File;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use deltaconv_proto::objects::{self, Part, read_parts};
use deltaconv_proto::shard::{self, Contents, Layout, not_finite};
use deltaconv_proto::v1::{LayerPlan, ObjectRef};
use futures::TryStreamExt;

use super::away::{Away, Digests};
use super::budget::{Budget, Share};
use super::folder::Writing;
use super::memory::{self, Buffer, Memory, Pool};
use super::{Cache, Incoming, Samples};
use crate::accelerator::Accelerator;
use crate::task::{Error, Supervision};

/// How long nothing may come before it is looked whether it is still wanted.
const PATIENCE: Duration = Duration::from_millis(100);

/// A shard that has arrived and was verified.
#[derive(Debug)]
pub(super) struct Placed {
    pub(super) layout: Layout,
    pub(super) place: Place,
}

#[derive(Debug)]
pub(super) enum Place {
    Near {
        parts: Vec<Memory>,
        /// Of a shard of inputs: what was computed from them, in parts that lie as those do.
        outputs: Option<Vec<Memory>>,
        /// What they take of the limits.
        #[expect(dead_code, reason = "is given back when it is dropped")]
        share: Option<Share>,
    },
    Away(Away),
}

/// What has arrived of a layer.
#[derive(Debug)]
pub(super) struct Arrivals {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    placed: Vec<Option<Arc<Placed>>>,
    failed: Option<Error>,
    is_over: bool,
}

impl Arrivals {
    pub(super) fn new(shards: usize) -> Self {
        let state = State { placed: vec![None; shards], failed: None, is_over: false };
        Self { state: Mutex::new(state), changed: Condvar::new() }
    }

    /// Waits for a shard. `None` when it is over before.
    pub(super) fn wait(&self, shard: usize) -> Result<Option<Arc<Placed>>, Error> {
        let mut state = self.locked();
        loop {
            if let Some(placed) = &state.placed[shard] {
                return Ok(Some(placed.clone()));
            }
            if let Some(error) = state.failed.take() {
                return Err(error);
            }
            if state.is_over {
                return Ok(None);
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Nothing more is wanted, or comes.
    pub(super) fn end(&self) {
        self.locked().is_over = true;
        self.changed.notify_all();
    }

    fn is_over(&self) -> bool {
        self.locked().is_over
    }

    pub(super) fn put(&self, shard: usize, placed: Placed) {
        self.locked().placed[shard] = Some(Arc::new(placed));
        self.changed.notify_all();
    }

    fn fail(&self, error: Error) {
        self.locked().failed = Some(error);
        self.changed.notify_all();
    }

    fn locked(&self) -> MutexGuard<'_, State> {
        // What was put is whole; a panic elsewhere ends the attempt.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the thread works with.
#[derive(Debug)]
pub(super) struct Receiver {
    /// Where they are awaited.
    pub(super) samples: Arc<Samples>,
    pub(super) layer: LayerPlan,
    pub(super) store: objects::Objects,
    pub(super) cache: Cache,
    pub(super) accelerator: Accelerator,
    /// Of the GPU's memory.
    pub(super) device: Budget,
    pub(super) pool: Arc<Pool>,
    pub(super) runtime: tokio::runtime::Handle,
    pub(super) supervision: Arc<Supervision>,
    /// When the task began: what the folder has that was used since is not removed for it.
    pub(super) began: SystemTime,
}

impl Drop for Receiver {
    fn drop(&mut self) {
        // After a fault, nobody may wait for what doesn't come.
        if std::thread::panicking() {
            self.samples.arrivals.end();
        }
    }
}

/// The shard whose parts are coming.
struct Current {
    layout: Layout,
    goal: Goal,
}

enum Goal {
    Memory {
        parts: Vec<Memory>,
        room: Room,
    },
    /// The same of inputs, whose outputs are computed when all are there.
    Inputs {
        parts: Vec<Buffer>,
        room: Room,
    },
    Away {
        digests: Box<Digests>,
        writing: Option<Writing>,
        held: Option<File>,
    },
}

/// Of which memory, and how much.
struct Room {
    share: Share,
    on_device: bool,
}

impl Receiver {
    /// Brings the shards, in their order. What keeps it from going on is told to whoever waits.
    pub(super) fn run(&self, shards: &[Incoming]) {
        if let Err(error) = self.receive(shards) {
            self.samples.arrivals.fail(error);
        }
    }

    fn receive(&self, shards: &[Incoming]) -> Result<(), Error> {
        let mut next = 0;
        // Read from the store even if the folder seems to have it.
        let mut distrusted: Option<usize> = None;
        while next < shards.len() && self.is_wanted() {
            let result = self.receive_from(shards, &mut next, distrusted);
            match (result, &self.cache.folder, shards.get(next)) {
                (Err(error), Some(folder), Some(Incoming { object, .. }))
                    if distrusted != Some(next) && folder.open_file(object).is_some() =>
                {
                    tracing::warn!(%error, "a file of the cache is broken; reading from the store");
                    folder.remove(object);
                    distrusted = Some(next);
                }
                (result, ..) => result?,
            }
        }
        Ok(())
    }

    fn is_wanted(&self) -> bool {
        !self.samples.arrivals.is_over() && self.supervision.stopped().is_none()
    }

    /// Receives from shard `next` on, and keeps it at the one that it is at.
    fn receive_from(&self, shards: &[Incoming], next: &mut usize, distrusted: Option<usize>) -> Result<(), Error> {
        let (folder, store, first) = (self.cache.folder.clone(), self.store.clone(), *next);
        let wanted: Vec<ObjectRef> = shards[first..].iter().map(|shard| shard.object.clone()).collect();
        let sources = wanted.into_iter().enumerate().map(move |(index, object)| {
            let found = folder.as_ref().filter(|_| distrusted != Some(first + index)).and_then(|f| f.find(&object));
            found.unwrap_or_else(|| (store.clone(), object))
        });
        let pool = self.pool.clone();
        let runtime = self.runtime.clone();
        let parts = read_parts(sources, self.cache.reading, move |bytes| pool.buffer(bytes));
        let mut parts = std::pin::pin!(parts);
        let mut current = None;
        while self.is_wanted() {
            let part = runtime.block_on(async { tokio::time::timeout(PATIENCE, parts.try_next()).await });
            // Nothing has come for a while.
            let Ok(part) = part else { continue };
            let Some(part) = part? else { break };
            *next = first + part.object;
            let is_last = part.is_last;
            self.take(&shards[*next], part, &mut current)?;
            *next += usize::from(is_last);
        }
        Ok(())
    }

    fn take(&self, incoming: &Incoming, part: Part<Buffer>, current: &mut Option<Current>) -> Result<(), Error> {
        let (first, buffer) = ((part.start / 2) as usize, part.bytes);
        let shard = match (part.start, current.take()) {
            (0, _) => {
                let size = incoming.object.size;
                let samples = incoming.shapes.iter().map(|shape| shape.samples).sum();
                let layout = Layout::read(buffer.bytes(), size, &self.layer, self.contents(), samples);
                let layout = layout.map_err(|error| incoming.broken(error))?;
                if layout.shapes != incoming.shapes {
                    // Its header was another one when it was looked at.
                    let (expected, found) = (format!("{:?}", incoming.shapes), format!("{:?}", layout.shapes));
                    return Err(incoming.broken(shard::Error::Tensors { expected, found }));
                }
                let goal = self.goal(incoming, &layout);
                current.insert(Current { layout, goal })
            }
            (_, Some(begun)) => current.insert(begun),
            // A stream has the first part first.
            (_, None) => return Err(Error::Incomplete("first part of a shard")),
        };
        let skipped = shard.layout.first.saturating_sub(first).min(buffer.numbers().len());
        if let Some(position) = not_finite(&buffer.numbers()[skipped..]) {
            let (tensor, sample) = shard.layout.place_of(first + skipped + position);
            return Err(incoming.broken(shard::Error::NotFinite { tensor, sample }));
        }
        match &mut shard.goal {
            Goal::Memory { parts, room } => parts.push(self.keep(buffer, room.on_device)),
            Goal::Inputs { parts, .. } => parts.push(buffer),
            Goal::Away { digests, writing, .. } => {
                digests.take(buffer.numbers(), first);
                write(writing, buffer.bytes());
                self.pool.give_back(buffer);
            }
        }
        if part.is_last
            && let Some(Current { layout, goal }) = current.take()
        {
            let place = match goal {
                Goal::Memory { parts, room } => Place::Near { parts, outputs: None, share: Some(room.share) },
                Goal::Inputs { parts, room } => {
                    let outputs = self.outputs(&layout, &parts)?;
                    let keep = |parts: Vec<Buffer>| parts.into_iter().map(|part| self.keep(part, room.on_device));
                    let (parts, outputs) = (keep(parts).collect(), Some(keep(outputs).collect()));
                    Place::Near { parts, outputs, share: Some(room.share) }
                }
                Goal::Away { digests, writing, held } => {
                    let written = writing.and_then(|writing| writing.finish().ok());
                    Place::Away(Away::new(incoming.object.clone(), written.or(held), digests.finish()))
                }
            };
            self.samples.arrivals.put(incoming.index, Placed { layout, place });
        }
        Ok(())
    }

    /// Where there is room for a shard.
    fn goal(&self, incoming: &Incoming, layout: &Layout) -> Goal {
        if let Some(room) = self.room(incoming) {
            return match layout.contents {
                Contents::Activations => Goal::Memory { parts: Vec::new(), room },
                Contents::Inputs => Goal::Inputs { parts: Vec::new(), room },
            };
        }
        let (mut writing, mut held) = (None, None);
        if let Some(folder) = &self.cache.folder {
            held = folder.open_file(&incoming.object);
            if held.is_none() {
                writing = folder.begin(&incoming.object, self.began).unwrap_or_else(|error| {
                    tracing::warn!(%error, "the cache's folder can't be written; samples are read from the store");
                    None
                });
            }
        }
        Goal::Away { digests: Box::new(Digests::new(layout)), writing, held }
    }

    /// Room in memory for a shard, and for its outputs where those are computed.
    fn room(&self, incoming: &Incoming) -> Option<Room> {
        let size = match self.contents() {
            Contents::Activations => incoming.object.size,
            Contents::Inputs => incoming.object.size.saturating_mul(2),
        };
        let on_host = |share| Room { share, on_device: false };
        if incoming.is_held_out {
            // Measured again and again, by all workers in the same way.
            return Some(on_host(self.cache.memory.take(size).unwrap_or_else(|| self.cache.memory.force(size))));
        }
        let on_device = self.device.take(size).map(|share| Room { share, on_device: true });
        on_device.or_else(|| self.cache.memory.take(size).map(on_host))
    }

    fn contents(&self) -> Contents {
        if self.samples.targets.is_some() { Contents::Inputs } else { Contents::Activations }
    }

    /// The outputs of a shard of inputs, in parts that lie as those of the inputs do.
    fn outputs(&self, layout: &Layout, inputs: &[Buffer]) -> Result<Vec<Buffer>, Error> {
        let targets = self.samples.targets.as_ref().ok_or(Error::Incomplete("attention"))?;
        let mut outputs: Vec<Buffer> = inputs.iter().map(|part| self.pool.buffer(part.bytes().len())).collect();
        let mut input = Vec::new();
        for (bucket, shape) in layout.shapes.iter().enumerate() {
            for row in 0..shape.samples {
                if let Some(stop) = self.supervision.stopped() {
                    return Err(Error::Stopped(stop));
                }
                let range = layout.row(bucket, row).input;
                input.clear();
                memory::cut(range.clone()).for_each(|(part, at)| input.extend_from_slice(&inputs[part].numbers()[at]));
                let output = targets.output(&input, shape)?;
                let mut rest = &output[..];
                for (part, at) in memory::cut(range) {
                    let (values, behind) = rest.split_at(at.len());
                    outputs[part].numbers_mut()[at].copy_from_slice(values);
                    rest = behind;
                }
            }
        }
        Ok(outputs)
    }

    /// In the GPU's memory if it has any left, which its budget only guesses.
    fn keep(&self, buffer: Buffer, on_device: bool) -> Memory {
        #[cfg(feature = "cuda")]
        if on_device && let Accelerator::Cuda(cuda) = &self.accelerator {
            use deltaconv_kernels::cuda::{DeviceMemory, Memory as OnCuda};
            match DeviceMemory::copied(&cuda.gpu, buffer.numbers()) {
                Ok(memory) => {
                    self.pool.give_back(buffer);
                    return Memory::Cuda(Arc::new(OnCuda::Device(memory)));
                }
                Err(error) => tracing::warn!(%error, "a part of a shard stays in the host's memory"),
            }
        }
        #[cfg(not(feature = "cuda"))]
        let (Accelerator::None, _) = (&self.accelerator, on_device);
        buffer.keep()
    }
}

/// Writes on, as long as that goes well.
fn write(writing: &mut Option<Writing>, bytes: &[u8]) {
    if let Some(file) = writing
        && let Err(error) = file.write(bytes)
    {
        tracing::warn!(%error, "the cache's folder can't be written; samples are read from the store");
        *writing = None;
    }
}
