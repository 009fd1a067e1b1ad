//! A layer's recorded activations, read from its shards and kept in memory as they were stored.

use deltaconv_proto::shard::{Shape, Shard};
use deltaconv_proto::v1;
use futures::{StreamExt, TryStreamExt};
use half::f16;
use half::slice::HalfFloatSliceExt;

use crate::task::{Context, Error};

/// Shards that are read at the same time.
const READS_IN_FLIGHT: usize = 4;

/// Inputs and outputs of one layer: training samples first, held-out ones behind them.
pub(crate) struct LayerData {
    shape: Shape,
    shards: Vec<Shard>,
    /// For each sample, its shard and its row there.
    rows: Vec<(usize, usize)>,
    training_samples: usize,
    training_energy: f64,
    held_out_energy: f64,
}

/// A batch in f32. [n, h, w, c] each.
#[derive(Default)]
pub(crate) struct Rows {
    pub(crate) input: Vec<f32>,
    pub(crate) output: Vec<f32>,
}

impl LayerData {
    /// Reads and verifies the layer's shards, of which the first `training_samples` samples are for training.
    pub(crate) fn load(
        context: &Context,
        layer: &v1::LayerPlan,
        shards: &[v1::ShardOfRange],
        training_samples: usize,
    ) -> Result<Self, Error> {
        let reads = futures::stream::iter(shards).map(|shard| read(context, layer, shard));
        let shards: Vec<Shard> = context.wait(reads.buffered(READS_IN_FLIGHT).try_collect())?;
        context.check_stop()?;
        let data = Self::new(layer, shards, training_samples);
        let (rows, energy) = (data.rows.len(), data.training_energy * data.held_out_energy);
        if rows <= training_samples || !energy.is_finite() || energy <= 0.0 {
            let what = format!("the shards of {}", layer.name);
            let reason = format!("{rows} samples, {training_samples} of them for training, with energy {energy}");
            return Err(Error::Unexpected { what, reason });
        }
        Ok(data)
    }

    fn new(layer: &v1::LayerPlan, shards: Vec<Shard>, training_samples: usize) -> Self {
        let rows: Vec<(usize, usize)> = (shards.iter().enumerate())
            .flat_map(|(index, shard)| (0..shard.shape.samples).map(move |row| (index, row)))
            .collect();
        let mut data = Self {
            shape: shape(layer, rows.len()),
            shards,
            training_samples: training_samples.min(rows.len()),
            rows,
            training_energy: 0.0,
            held_out_energy: 0.0,
        };
        data.training_energy = data.energy(0..data.training_samples);
        data.held_out_energy = data.energy(data.held_out());
        data
    }

    /// Mean square of the outputs of some samples; NaN for none.
    fn energy(&self, samples: std::ops::Range<usize>) -> f64 {
        let numbers = samples.len() * self.sample_len();
        let square = |value: &f16| f64::from(value.to_f32()).powi(2);
        let squares: f64 = samples.map(|sample| self.output(sample).iter().map(square).sum::<f64>()).sum();
        squares / numbers as f64
    }

    fn row<'a>(&'a self, values: impl Fn(&'a Shard) -> &'a [f16], sample: usize) -> &'a [f16] {
        let ((shard, row), len) = (self.rows[sample], self.sample_len());
        &values(&self.shards[shard])[row * len..(row + 1) * len]
    }

    fn output(&self, sample: usize) -> &[f16] {
        self.row(|shard| &shard.output, sample)
    }

    /// Numbers in one sample's input, or output.
    pub(crate) fn sample_len(&self) -> usize {
        self.shape.sample_len()
    }

    /// [B, H, W] of a batch.
    pub(crate) fn size(&self, samples: usize) -> [usize; 3] {
        [samples, self.shape.height, self.shape.width]
    }

    pub(crate) fn training_samples(&self) -> usize {
        self.training_samples
    }

    /// The held-out samples.
    pub(crate) fn held_out(&self) -> std::ops::Range<usize> {
        self.training_samples..self.rows.len()
    }

    /// Mean square of the training outputs.
    pub(crate) fn training_energy(&self) -> f64 {
        self.training_energy
    }

    /// Mean square of the held-out outputs.
    pub(crate) fn held_out_energy(&self) -> f64 {
        self.held_out_energy
    }

    /// Collects `samples` into `batch`, in their order.
    pub(crate) fn gather(&self, samples: &[usize], batch: &mut Rows) {
        let len = self.sample_len();
        batch.input.resize(samples.len() * len, 0.0);
        batch.output.resize(samples.len() * len, 0.0);
        let targets = batch.input.chunks_exact_mut(len).zip(batch.output.chunks_exact_mut(len));
        for (sample, (input, output)) in samples.iter().zip(targets) {
            self.row(|shard| &shard.input, *sample).convert_to_f32_slice(input);
            self.output(*sample).convert_to_f32_slice(output);
        }
    }

    /// Inputs and outputs of `samples`, in their order, as they were stored.
    #[cfg(feature = "cuda")]
    pub(crate) fn collect(&self, samples: &[usize]) -> (Vec<f16>, Vec<f16>) {
        let input = samples.iter().flat_map(|&sample| self.row(|shard| &shard.input, sample)).copied();
        let output = samples.iter().flat_map(|&sample| self.output(sample)).copied();
        (input.collect(), output.collect())
    }
}

fn shape(layer: &v1::LayerPlan, samples: usize) -> Shape {
    Shape { samples, height: layer.height as usize, width: layer.width as usize, channels: layer.channels as usize }
}

async fn read(context: &Context, layer: &v1::LayerPlan, shard: &v1::ShardOfRange) -> Result<Shard, Error> {
    let (Some(object), Some(range)) = (&shard.object, &shard.range) else {
        return Err(Error::Incomplete("shard"));
    };
    let bytes = context.objects.get_verified(object).await?;
    let samples = range.end.saturating_sub(range.start) as usize;
    Shard::decode(&bytes, shape(layer, samples)).map_err(|source| Error::Shard {
        key: object.key.clone(),
        digest: object.digest.clone(),
        source: Box::new(source),
    })
}

#[cfg(test)]
impl LayerData {
    /// Activations that a block can nearly reproduce: the output is the map's mean and, of each pixel, the first quarter
    /// of its channels, as many as pass a block's gate.
    pub(crate) fn made_up(layer: &v1::LayerPlan, training: usize, held_out: usize) -> Self {
        use deltaconv_proto::draw::{Purpose, generator, normal};
        let shape = shape(layer, training + held_out);
        let (len, channels) = (shape.sample_len(), shape.channels);
        let mut rng = generator(0, Purpose::Capture, 0);
        let input = normal(&mut rng, shape.samples * len);
        let output = input.chunks_exact(len).flat_map(|map| {
            let pixels = shape.height * shape.width;
            let mean = |c: usize| (0..pixels).map(|p| map[p * channels + c]).sum::<f32>() / pixels as f32;
            let means: Vec<f32> = (0..channels).map(mean).collect();
            let pixel = move |i: usize| map[i / channels * channels + i % (channels / 4)];
            (0..len).map(move |i| 0.5 * pixel(i) + means[(i + 1) % channels]).collect::<Vec<f32>>()
        });
        let shard = Shard {
            shape,
            timesteps: vec![0; shape.samples],
            output: output.map(f16::from_f32).collect(),
            input: input.iter().map(|value| f16::from_f32(*value)).collect(),
        };
        Self::new(layer, vec![shard], training)
    }
}
