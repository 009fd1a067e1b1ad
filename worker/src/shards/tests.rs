use deltaconv_proto::draw::Batches;
use deltaconv_proto::shard::{Layout, Shard};
use deltaconv_proto::v1::Map;
use half::f16;

use super::*;

impl LayerData {
    /// Of these shards, the first of which are for training, and which are still to be put.
    fn awaiting(layer: &LayerPlan, shards: &[Shard], training: usize) -> (Self, Vec<Option<Placed>>) {
        let incoming: Vec<Incoming> = (shards.iter().enumerate())
            .map(|(index, shard)| Incoming {
                index,
                object: ObjectRef::default(),
                shapes: shard.shapes.clone(),
                is_held_out: index >= training,
            })
            .collect();
        let place = |shard: &Shard| {
            let bytes = shard.encode().expect("finite");
            let layout = Layout::read(&bytes, bytes.len() as u64, layer, Contents::Activations, shard.timesteps.len());
            let layout = layout.expect("a shard");
            let mut buffer = memory::Buffer::plain(bytes.len());
            buffer.as_mut().copy_from_slice(&bytes);
            Some(Placed { layout, place: Place::Near { parts: vec![buffer.keep()], outputs: None, share: None } })
        };
        let samples = Arc::new(Samples::new(layer, &incoming));
        (Self::new(samples, &incoming[..training]), shards.iter().map(place).collect())
    }

    /// The same, which have been put.
    fn of_shards(layer: &LayerPlan, shards: &[Shard], training: usize) -> Self {
        let (mut data, placed) = Self::awaiting(layer, shards, training);
        for (index, placed) in placed.into_iter().flatten().enumerate() {
            data.samples.arrivals.put(index, placed);
        }
        data.energy = data.energy().expect("held-out samples");
        data
    }

    /// Shards of so many samples, the last of which is held out; of sample i all numbers are i.
    pub(super) fn in_shards(layer: &LayerPlan, samples: &[usize]) -> (Self, Vec<Option<Placed>>) {
        let mut sample = 0;
        let shard = |count: &usize| {
            let shapes = shard::shapes(layer, &[*count]);
            let number = |i: usize| f16::from_f32((sample + i / shapes[0].sample_len()) as f32);
            let numbers: Vec<f16> = (0..shapes[0].len()).map(number).collect();
            sample += count;
            Shard { timesteps: vec![0; *count], input: numbers.clone(), output: numbers, weights: Vec::new(), shapes }
        };
        let shards: Vec<Shard> = samples.iter().map(shard).collect();
        Self::awaiting(layer, &shards, samples.len() - 1)
    }

    /// Activations that a block can nearly reproduce: the output is the map's mean and, of each pixel, the first
    /// quarter of its channels, as many as pass a block's gate. Of several buckets, each has every so many samples.
    pub(crate) fn made_up(layer: &LayerPlan, training: usize, held_out: usize) -> Self {
        use deltaconv_proto::draw::{Purpose, generator, normal};
        let buckets = buckets::maps(layer).len();
        let mut rng = generator(0, Purpose::Capture, 0);
        let shards = [training, held_out].map(|samples| {
            let of_bucket = |bucket: usize| (samples + buckets - 1 - bucket) / buckets;
            let shapes = shard::shapes(layer, &(0..buckets).map(of_bucket).collect::<Vec<_>>());
            let (mut inputs, mut outputs) = (Vec::new(), Vec::new());
            for shape in &shapes {
                let (len, channels) = (shape.sample_len(), shape.channels);
                let input = normal(&mut rng, shape.len());
                for map in input.chunks_exact(len) {
                    let pixels = shape.height * shape.width;
                    let mean = |c: usize| (0..pixels).map(|p| map[p * channels + c]).sum::<f32>() / pixels as f32;
                    let means: Vec<f32> = (0..channels).map(mean).collect();
                    let pixel = |i: usize| map[i / channels * channels + i % (channels / 4)];
                    outputs.extend((0..len).map(|i| f16::from_f32(0.5 * pixel(i) + means[(i + 1) % channels])));
                }
                inputs.extend(input.iter().map(|value| f16::from_f32(*value)));
            }
            // Some channels count more than others, and one not at all.
            let weights: usize = shapes.iter().map(|shape| shape.samples * shape.weight_len()).sum();
            let weights = (0..weights).map(|i| f16::from_f32((i % layer.channels as usize) as f32 / 4.0)).collect();
            Shard { shapes, timesteps: vec![0; samples], input: inputs, output: outputs, weights }
        });
        Self::of_shards(layer, &shards, 1)
    }

    /// Batch after batch, without a thread.
    pub(crate) fn batches(&self, seed: u64, batch: usize, step: u64) -> impl Iterator<Item = Batch> {
        let order = Batches::new(seed, self.training_buckets.clone(), batch, step);
        order.map(|rows| self.batch(&rows).expect("they are there"))
    }
}

#[test]
fn samples_are_found_in_the_bucket_that_they_are_of() {
    let maps = vec![Map { height: 2, width: 1 }, Map { height: 1, width: 3 }];
    let layer = LayerPlan { channels: 4, maps, ..LayerPlan::default() };
    let shard = |samples: [usize; 2], from: f32| {
        let shapes = shard::shapes(&layer, &samples);
        let numbers: usize = shapes.iter().map(Shape::len).sum();
        let values = |sign: f32| (0..numbers).map(|i| f16::from_f32(sign * (from + i as f32))).collect();
        let (input, output, weights) = (values(1.0), values(-1.0), Vec::new());
        Shard { shapes, timesteps: vec![0; samples.iter().sum()], input, output, weights }
    };
    // Samples 0 and 1 in bucket 0 and sample 2 in bucket 1; then one held-out sample of bucket 1.
    let data = LayerData::of_shards(&layer, &[shard([2, 1], 0.0), shard([0, 1], 100.0)], 1);
    assert_eq!((&data.training_buckets()[..], data.held_out()), (&[0, 0, 1][..], 3..4));
    assert_eq!(data.by_bucket(0..4), [vec![0, 1], vec![2, 3]]);
    assert_eq!((data.samples.size(&[1, 0]), data.samples.size(&[3, 2])), ([2, 2, 1], [2, 1, 3]));
    assert_eq!((data.numbers(0..3), data.numbers(3..4)), (8 + 8 + 12, 12));
    let mut rows = Rows::default();
    data.batch(&[3, 2]).expect("there").to_f32(&mut rows);
    let expected: Vec<f32> = (100..112).chain(16..28).map(|number| number as f32).collect();
    assert_eq!(rows.input, expected);
    assert!(rows.output.iter().zip(&expected).all(|(output, input)| *output == -input));
    data.batch(&[1]).expect("there").to_f32(&mut rows);
    assert_eq!(rows.input, (8..16).map(|number| number as f32).collect::<Vec<_>>());
    let mean = (100..112).map(|number| f64::from(number * number)).sum::<f64>() / 12.0;
    assert!((data.output_energy() - mean).abs() < 1e-9);
}
