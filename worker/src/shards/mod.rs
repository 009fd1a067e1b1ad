//! A layer's recorded activations, on their way from the store to training.
//!
//! A thread reads the shards in the order in which training takes them and puts each where there is room (`arrivals`);
//! another one has the next batches ready (`feed`). A sample that no memory had room for is read when its turn comes, from
//! the node's folder or from the store (`away`).

mod arrivals;
mod away;
mod budget;
pub(crate) mod cache;
mod feed;
mod folder;
mod memory;
mod targets;

use std::ops::Range;
use std::sync::Arc;
use std::time::SystemTime;

use deltaconv_proto::code::Code;
use deltaconv_proto::objects::Objects;
use deltaconv_proto::shard::{self, Contents, Row, Shape};
use deltaconv_proto::v1::{LayerPlan, ObjectRef};
use deltaconv_proto::{buckets, header, v1};
use futures::{StreamExt, TryStreamExt};
use half::f16;
use half::slice::HalfFloatSliceExt;

pub(crate) use budget::Budget;
pub(crate) use cache::Cache;
pub(crate) use feed::{Batch, Feed};
pub(crate) use folder::Folder;
pub(crate) use memory::{Memory, Piece, Pool};

use crate::accelerator::Accelerator;
use crate::task::{Context, Error};
use arrivals::{Arrivals, Place, Placed, Receiver};
use targets::Targets;

/// Headers, and samples that are away, that are read at the same time.
const READS_IN_FLIGHT: usize = 16;
/// Of a shard's header.
const MAX_HEADER_BYTES: u64 = 1 << 20;

/// Inputs and outputs of one layer: training samples first, held-out ones behind them.
#[derive(Debug)]
pub(crate) struct LayerData {
    samples: Arc<Samples>,
    /// The bucket of each training sample.
    training_buckets: Arc<[usize]>,
    energy: f64,
    /// What training begins to read.
    awaited: Vec<Incoming>,
    receiver: Option<Receiver>,
}

/// Where samples lie.
#[derive(Debug)]
pub(crate) struct Samples {
    /// Of one sample of each bucket.
    shapes: Vec<Shape>,
    of: Vec<Sample>,
    arrivals: Arrivals,
    /// For samples that are away.
    remote: Option<(Objects, tokio::runtime::Handle)>,
    /// Where shards have inputs alone.
    targets: Option<Targets>,
}

#[derive(Clone, Copy, Debug)]
struct Sample {
    shard: usize,
    bucket: usize,
    /// Among those of its bucket in its shard.
    row: usize,
}

/// Where a sample's input and output lie, and its weights where it has any.
struct InPieces {
    input: Vec<Piece>,
    output: Vec<Piece>,
    weights: Vec<Piece>,
}

/// A sample and its shard, which has arrived.
type OfShard = (Sample, Arc<Placed>);

/// A shard that is to arrive.
#[derive(Clone, Debug)]
struct Incoming {
    index: usize,
    object: ObjectRef,
    /// Of its samples in each bucket.
    shapes: Vec<Shape>,
    is_held_out: bool,
}

impl Incoming {
    /// It isn't what its digest promised, or can't be learned from.
    fn broken(&self, source: shard::Error) -> Error {
        let ObjectRef { key, digest, .. } = self.object.clone();
        Error::Shard { key, digest, source: Box::new(source) }
    }
}

/// A batch in f32. [n, h, w, c] each.
#[derive(Default)]
pub(crate) struct Rows {
    pub(crate) input: Vec<f32>,
    pub(crate) output: Vec<f32>,
    /// What differences are multiplied by, [n, c]; empty where samples have none.
    pub(crate) weights: Vec<f32>,
}

impl LayerData {
    /// Finds out where the samples lie, of which the first `training_samples` are for training, and reads the held-out
    /// ones.
    pub(crate) fn open(
        context: &Context,
        (round, layer): (u32, &LayerPlan),
        shards: &[v1::ShardOfRange],
        training_samples: usize,
    ) -> Result<Self, Error> {
        let incoming = futures::stream::iter(shards.iter().enumerate())
            .map(|(index, shard)| incoming(context, (round, layer), index, shard, training_samples))
            .buffered(READS_IN_FLIGHT);
        let incoming: Vec<Incoming> = context.wait(incoming.try_collect())?;
        let (held_out, awaited): (Vec<_>, Vec<_>) = incoming.iter().cloned().partition(|shard| shard.is_held_out);
        let targets = match Contents::of(&context.job, round) {
            Contents::Activations => None,
            Contents::Inputs => Some(Targets::load(context, layer)?),
        };
        let remote = Some((context.objects.clone(), context.runtime.clone()));
        let samples = Arc::new(Samples { remote, targets, ..Samples::new(layer, &incoming) });
        let receiver = Receiver {
            samples: samples.clone(),
            layer: layer.clone(),
            store: context.objects.clone(),
            cache: context.cache.clone(),
            accelerator: context.accelerator.clone(),
            device: Budget::new(0),
            pool: Arc::new(Pool::new(&context.accelerator)),
            runtime: context.runtime.clone(),
            supervision: context.supervision.clone(),
            began: SystemTime::now(),
        };
        receiver.run(&held_out);
        context.check_stop()?;
        let mut data = Self::new(samples, &awaited);
        data.energy = data.energy()?;
        let held_out = data.held_out().len();
        if held_out == 0 || awaited.is_empty() || !data.energy.is_finite() || data.energy <= 0.0 {
            let what = format!("the shards of {}", layer.name);
            let training = data.training_buckets.len();
            let reason =
                format!("{training} samples for training, {held_out} held-out ones with energy {}", data.energy);
            return Err(Error::Unexpected { what, reason, code: Code::NothingToLearn });
        }
        (data.awaited, data.receiver) = (awaited, Some(receiver));
        Ok(data)
    }

    fn new(samples: Arc<Samples>, training: &[Incoming]) -> Self {
        let count = |shard: &Incoming| shard.shapes.iter().map(|shape| shape.samples).sum::<usize>();
        let training: usize = training.iter().map(count).sum();
        let training_buckets = samples.of[..training].iter().map(|sample| sample.bucket).collect();
        Self { samples, training_buckets, energy: 0.0, awaited: Vec::new(), receiver: None }
    }

    /// Begins to read the training samples and to have batches of them ready, in this order. `device`: bytes of the
    /// GPU's memory that they may take. Once more while that feed is there: other batches of what it brings.
    pub(crate) fn stream(&mut self, order: impl Iterator<Item = Vec<usize>> + Send + 'static, device: u64) -> Feed {
        let mut receiver = self.receiver.take();
        if let Some(receiver) = &mut receiver {
            receiver.device = Budget::new(device);
        }
        Feed::new(&self.samples, order, receiver, std::mem::take(&mut self.awaited))
    }

    /// Mean square of the held-out outputs, each times its weight.
    fn energy(&self) -> Result<f64, Error> {
        let mut squares = 0.0;
        let mut numbers = 0;
        for sample in self.held_out() {
            let Some(row) = self.samples.row(sample)? else { return Ok(f64::NAN) };
            let flat = |pieces: &[Piece]| -> Vec<f16> {
                pieces.iter().filter_map(Piece::numbers).flat_map(|numbers| numbers.iter().copied()).collect()
            };
            let (output, weights) = (flat(&row.output), flat(&row.weights));
            let one = weights.is_empty().then_some(f16::ONE);
            let weights: Vec<f64> = weights.into_iter().chain(one).map(|weight| f64::from(weight.to_f32())).collect();
            let pairs = output.iter().zip(weights.iter().cycle());
            let weighted = pairs.map(|(value, weight)| f64::from(value.to_f32()) * weight);
            squares += weighted.map(|value| value * value).sum::<f64>();
            numbers += output.len();
        }
        Ok(squares / numbers as f64)
    }

    /// Mean square of the layer's output, times its weights where samples have any, to which errors are relative.
    pub(crate) fn output_energy(&self) -> f64 {
        self.energy
    }

    /// Numbers in the inputs, or outputs, of some samples.
    pub(crate) fn numbers(&self, samples: Range<usize>) -> usize {
        let Samples { shapes, of, .. } = &*self.samples;
        samples.map(|sample| shapes[of[sample].bucket].sample_len()).sum()
    }

    /// [B, H, W] of a batch of `samples`, which are of one bucket.
    #[cfg(feature = "cuda")]
    pub(crate) fn size(&self, samples: &[usize]) -> [usize; 3] {
        self.samples.size(samples)
    }

    /// The bucket of each training sample.
    pub(crate) fn training_buckets(&self) -> &Arc<[usize]> {
        &self.training_buckets
    }

    /// The held-out samples.
    pub(crate) fn held_out(&self) -> Range<usize> {
        self.training_buckets.len()..self.samples.of.len()
    }

    /// `samples` by bucket, and in their order in each.
    pub(crate) fn by_bucket(&self, samples: Range<usize>) -> Vec<Vec<usize>> {
        let mut by_bucket = vec![Vec::new(); self.samples.shapes.len()];
        samples.for_each(|sample| by_bucket[self.samples.of[sample].bucket].push(sample));
        by_bucket
    }

    /// A batch of held-out samples, which are of one bucket.
    pub(crate) fn batch(&self, samples: &[usize]) -> Result<Batch, Error> {
        // They were there before anything else was done.
        self.samples.batch(samples)?.ok_or(Error::Incomplete("held-out samples"))
    }

    /// C.
    #[cfg(feature = "cuda")]
    pub(crate) fn channels(&self) -> usize {
        self.samples.shapes[0].channels
    }
}

impl Samples {
    fn new(layer: &LayerPlan, shards: &[Incoming]) -> Self {
        let of_shard = |shard: &Incoming| {
            let shapes = shard.shapes.clone().into_iter().enumerate();
            let shard = shard.index;
            shapes.flat_map(move |(bucket, shape)| (0..shape.samples).map(move |row| Sample { shard, bucket, row }))
        };
        Self {
            shapes: shard::shapes(layer, &vec![1; buckets::maps(layer).len()]),
            of: shards.iter().flat_map(of_shard).collect(),
            arrivals: Arrivals::new(shards.len()),
            remote: None,
            targets: None,
        }
    }

    fn size(&self, samples: &[usize]) -> [usize; 3] {
        let bucket = samples.first().map_or(0, |sample| self.of[*sample].bucket);
        debug_assert!(samples.iter().all(|sample| self.of[*sample].bucket == bucket), "a batch is of one bucket");
        [samples.len(), self.shapes[bucket].height, self.shapes[bucket].width]
    }

    /// Waits for the samples' shards. `None` where they don't come any more.
    fn placed(&self, samples: &[usize]) -> Result<Option<Vec<OfShard>>, Error> {
        let placed = |sample: &usize| {
            let sample = self.of[*sample];
            Ok(self.arrivals.wait(sample.shard)?.map(|placed| (sample, placed)))
        };
        samples.iter().map(placed).collect()
    }

    /// A sample, if memory holds it.
    fn row(&self, sample: usize) -> Result<Option<InPieces>, Error> {
        let placed = self.placed(&[sample])?;
        Ok(placed.and_then(|placed| placed.first().and_then(|(sample, placed)| placed.near(*sample))))
    }

    /// The samples, which are of one bucket. `None` where they don't come any more.
    fn batch(&self, samples: &[usize]) -> Result<Option<Batch>, Error> {
        let Some(placed) = self.placed(samples)? else { return Ok(None) };
        let (input, output, weights) = Default::default();
        let mut batch = Batch { size: self.size(samples), input, output, weights };
        let mut push = |row: InPieces| {
            batch.input.extend(row.input);
            batch.output.extend(row.output);
            batch.weights.extend(row.weights);
        };
        let all_near = placed.iter().all(|(_, placed)| matches!(placed.place, Place::Near { .. }));
        match &self.remote {
            Some((store, runtime)) if !all_near => {
                let reads = futures::stream::iter(&placed).map(|(sample, placed)| placed.read(*sample, store));
                let read: Vec<Option<Memory>> = runtime.block_on(reads.buffered(READS_IN_FLIGHT).try_collect())?;
                for ((sample, placed), memory) in placed.iter().zip(read) {
                    let near = || placed.near(*sample).ok_or(Error::Incomplete("samples"));
                    push(memory.map_or_else(near, |memory| self.of_memory(placed, *sample, memory))?);
                }
            }
            _ => placed.iter().filter_map(|(sample, placed)| placed.near(*sample)).for_each(&mut push),
        }
        Ok(Some(batch))
    }

    /// A sample that was read alone.
    fn of_memory(
        &self,
        placed: &Placed,
        Sample { bucket, row, .. }: Sample,
        memory: Memory,
    ) -> Result<InPieces, Error> {
        let start = placed.layout.sample(bucket, row).start;
        let Row { input, output, weights } = placed.layout.row(bucket, row);
        let of_memory = |at: Range<usize>| at.start - start..at.end - start;
        let piece = |memory: &Memory, at: Range<usize>| match at.is_empty() {
            true => Vec::new(),
            false => vec![Piece { memory: memory.clone(), at }],
        };
        let output = match &self.targets {
            None => piece(&memory, of_memory(output)),
            Some(targets) => {
                let numbers = memory.numbers().unwrap_or_default();
                let output = targets.output(&numbers[of_memory(input.clone())], &placed.layout.shapes[bucket])?;
                piece(&Memory::Plain(Arc::new(output)), 0..input.len())
            }
        };
        Ok(InPieces { input: piece(&memory, of_memory(input)), output, weights: piece(&memory, of_memory(weights)) })
    }
}

impl Placed {
    fn near(&self, Sample { bucket, row, .. }: Sample) -> Option<InPieces> {
        let Place::Near { parts, outputs, .. } = &self.place else { return None };
        let pieces = |parts, range| memory::pieces(parts, range).collect();
        let Row { input, output, weights } = self.layout.row(bucket, row);
        let output = match outputs {
            None => pieces(parts, output),
            // Outputs that were computed lie in their parts as the inputs in theirs.
            Some(outputs) => pieces(outputs, input.clone()),
        };
        let weights = if weights.is_empty() { Vec::new() } else { pieces(parts, weights) };
        Some(InPieces { input: pieces(parts, input), output, weights })
    }

    /// All that there is of a sample that is away; nothing of one that isn't.
    async fn read(&self, Sample { bucket, row, .. }: Sample, store: &Objects) -> Result<Option<Memory>, Error> {
        let Place::Away(away) = &self.place else { return Ok(None) };
        away.read(store, self.layout.sample(bucket, row)).await.map(Some)
    }
}

impl Rows {
    /// Where samples have them.
    pub(crate) fn weights(&self) -> Option<&[f32]> {
        (!self.weights.is_empty()).then_some(&self.weights)
    }
}

impl Batch {
    /// The same where the processor can read it.
    pub(crate) fn on_host(self, accelerator: &Accelerator) -> Result<Self, Error> {
        let Self { size, input, output, weights } = self;
        let on_host = |pieces: Vec<Piece>| -> Result<Vec<Piece>, Error> {
            pieces.into_iter().map(|piece| piece.on_host(accelerator)).collect()
        };
        Ok(Self { size, input: on_host(input)?, output: on_host(output)?, weights: on_host(weights)? })
    }

    /// The numbers in f32. Only of a batch that the processor can read.
    pub(crate) fn to_f32(&self, rows: &mut Rows) {
        let Rows { input, output, weights } = rows;
        for (pieces, values) in [(&self.input, input), (&self.output, output), (&self.weights, weights)] {
            values.resize(pieces.iter().map(|piece| piece.at.len()).sum(), 0.0);
            let mut rest = values.as_mut_slice();
            for numbers in pieces.iter().filter_map(Piece::numbers) {
                let (values, behind) = rest.split_at_mut(numbers.len());
                numbers.convert_to_f32_slice(values);
                rest = behind;
            }
        }
    }
}

/// What is known of a shard before it arrives.
async fn incoming(
    context: &Context,
    (round, layer): (u32, &LayerPlan),
    index: usize,
    shard: &v1::ShardOfRange,
    training_samples: usize,
) -> Result<Incoming, Error> {
    let (Some(object), Some(range)) = (&shard.object, &shard.range) else {
        return Err(Error::Incomplete("shards"));
    };
    let samples = range.end.saturating_sub(range.start) as usize;
    let shapes = match buckets::maps(layer).len() {
        1 => shard::shapes(layer, &[samples]),
        // How many are in each bucket stands in the shard alone.
        _ => {
            let broken = |found: String| {
                let (key, expected) = (object.key.clone(), object.digest.clone());
                Error::from(deltaconv_proto::objects::Error::Broken { key, expected, found })
            };
            let header = header::read(&context.objects, &object.key, MAX_HEADER_BYTES).await;
            let header = header.map_err(|error| match error {
                header::Error::Objects(error) if !error.is_missing() => Error::from(error),
                other => broken(other.to_string()),
            })?;
            shard::check_header(&header.header, layer, Contents::of(&context.job, round), samples)
                .map_err(|error| broken(error.to_string()))?
        }
    };
    let is_held_out = range.start as usize >= training_samples;
    Ok(Incoming { index, object: object.clone(), shapes, is_held_out })
}

#[cfg(test)]
pub(crate) mod tests;
