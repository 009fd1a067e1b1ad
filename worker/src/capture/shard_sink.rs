//! A shard that is written while its samples are recorded.

use bytemuck::cast_slice;
use deltaconv_proto::objects::{self, Upload};
use deltaconv_proto::shard::{self, Contents, Shape, not_finite};
use deltaconv_proto::v1::{ObjectRef, SampleRange};
use half::f16;
use tokio::runtime::Handle;

use super::recorder::{Maps, Sink};
use crate::task::Error;

/// Writes one layer's samples as they come, bucket by bucket.
pub(super) struct ShardSink {
    layer: String,
    range: SampleRange,
    upload: Upload,
    contents: Contents,
    /// Numbers in the map, and weights, of each sample, in their order.
    lengths: Vec<(usize, usize)>,
    /// Samples that were written.
    written: usize,
    runtime: Handle,
}

impl ShardSink {
    /// Begins with what stands before the activations.
    pub(super) fn new(
        (layer, range): (String, SampleRange),
        (shapes, contents): (&[Shape], Contents),
        timesteps: &[i64],
        mut upload: Upload,
        runtime: Handle,
    ) -> Result<Self, Error> {
        let lengths =
            shapes.iter().flat_map(|shape| vec![(shape.sample_len(), shape.weight_len()); shape.samples]).collect();
        let head = shard::head(shapes, contents, timesteps).map_err(|error| refused(&layer, range, error))?;
        runtime.block_on(upload.write(&head))?;
        Ok(Self { layer, range, upload, contents, lengths, written: 0, runtime })
    }

    /// Sends what is left, and gives the layer's name and the shard.
    pub(super) async fn finish(self) -> Result<(String, ObjectRef), Error> {
        if self.written != self.lengths.len() {
            return Err(self.refused(shard::Error::Length { expected: self.lengths.len(), found: self.written }));
        }
        Ok((self.layer, self.upload.finish().await?))
    }

    fn refused(&self, source: shard::Error) -> Error {
        refused(&self.layer, self.range, source)
    }

    fn write(&mut self, tensor: &'static str, values: &[f16]) -> Result<(), Error> {
        if not_finite(values).is_some() {
            return Err(self.refused(shard::Error::NotFinite { tensor, sample: self.written }));
        }
        let written: Result<(), objects::Error> = self.runtime.block_on(self.upload.write(cast_slice(values)));
        Ok(written?)
    }
}

impl Sink for ShardSink {
    fn take(&mut self, Maps { input, output, gates, importance }: Maps<'_>) -> Result<(), Error> {
        let (mut start, first) = (0, self.written);
        let mut weights = Vec::new();
        while start < input.len() {
            let (map, channels) = self.lengths.get(self.written).copied().unwrap_or((usize::MAX - start, 0));
            let (of_sample, row) = (start..start + map, self.written - first);
            let outputs = (self.contents == Contents::Activations).then_some(("output", output, of_sample.clone()));
            weights.clear();
            if let Some(importance) = importance.get(row) {
                let gates = gates.map(|gates| gates.iter().skip(row * channels).map(|gate| gate.to_f32()));
                let gates = gates.into_iter().flatten().chain(std::iter::repeat(1.0));
                weights.extend(gates.take(channels).map(|gate| f16::from_f32(gate * importance)));
            }
            let weights = (channels > 0).then_some(("weights", Some(&weights[..]), 0..channels));
            for (tensor, values, range) in
                [Some(("input", Some(input), of_sample.clone())), outputs, weights].into_iter().flatten()
            {
                let Some(values) = values.and_then(|values| values.get(range)) else {
                    let left = self.lengths.iter().skip(self.written);
                    let (expected, found) = (left.map(|(map, _)| map).sum(), input.len() - start);
                    return Err(self.refused(shard::Error::Length { expected, found }));
                };
                self.write(tensor, values)?;
            }
            start = of_sample.end;
            self.written += 1;
        }
        Ok(())
    }
}

fn refused(layer: &str, range: SampleRange, source: shard::Error) -> Error {
    Error::Activations { layer: layer.to_owned(), start: range.start, end: range.end, source: Box::new(source) }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use deltaconv_proto::objects::{Objects, Outgoing};
    use deltaconv_proto::shard::Shard;
    use object_store::memory::InMemory;

    use super::*;

    fn shapes() -> Vec<Shape> {
        let shape = |samples, height, width| Shape { samples, height, width, channels: 4, weighted: true };
        vec![shape(3, 2, 2), shape(0, 4, 1), shape(2, 1, 3)]
    }

    /// Writes batches of these bounds, of numbers that `alter` has changed.
    fn written(bounds: &[usize], alter: impl Fn(&mut Shard)) -> (Shard, Result<ObjectRef, Error>, Objects) {
        let shapes = shapes();
        let len: usize = shapes.iter().map(Shape::len).sum();
        let values = |sign: f32| (0..len).map(|i| f16::from_f32(sign * i as f32)).collect();
        let (input, output) = (values(1.0), values(-1.0));
        // Gates 0 to 19, times a half.
        let weights = (0..5 * 4).map(|i| f16::from_f32(0.5 * i as f32)).collect();
        let mut shard = Shard { timesteps: vec![5, 4, 3, 2, 1], input, output, weights, shapes: shapes.clone() };
        alter(&mut shard);
        let objects = Objects::new("memory:", Arc::new(InMemory::new()));
        let runtime = tokio::runtime::Runtime::new().expect("a runtime");
        let write = || {
            let upload = objects.upload("x", &Outgoing::new(0))?;
            let name = ("layer".to_owned(), SampleRange { start: 96, end: 101 });
            let of = (&shapes[..], Contents::Activations);
            let mut sink = ShardSink::new(name, of, &shard.timesteps, upload, runtime.handle().clone())?;
            for bounds in bounds.windows(2) {
                let range = bounds[0]..bounds[1];
                // Four numbers a pixel: 16 a sample of the first bucket, 12 of the other.
                let samples = |number: usize| if number <= 48 { number / 16 } else { 3 + (number - 48) / 12 };
                let of_batch = samples(range.start)..samples(range.end);
                let gates: Vec<f16> = (4 * of_batch.start..4 * of_batch.end).map(|i| f16::from_f32(i as f32)).collect();
                let (gates, importance) = (Some(&gates[..]), &vec![0.5; of_batch.len()][..]);
                let (input, output) = (&shard.input[range.clone()], Some(&shard.output[range]));
                sink.take(Maps { input, output, gates, importance })?;
            }
            Ok(runtime.block_on(sink.finish())?.1)
        };
        let object = write();
        (shard, object, objects)
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_shard_has_the_same_bytes_in_whatever_batches_it_was_written() {
        for bounds in [&[0, 72][..], &[0, 16, 48, 72], &[0, 32, 60, 72]] {
            let bounds = bounds.to_vec();
            let (shard, object, objects) =
                tokio::task::spawn_blocking(move || written(&bounds, |_| {})).await.expect("no panic");
            let bytes = objects.get_verified(&object.expect("a shard")).await.expect("verified");
            assert!(bytes == shard.encode().expect("finite"));
        }
    }

    #[test]
    fn what_is_not_finite_or_not_all_there_is_refused_with_layer_and_range() {
        let nan = |shard: &mut Shard| shard.output[48 + 13] = f16::NAN;
        for (bounds, alter, expected) in [
            (&[0, 72][..], &nan as &dyn Fn(&mut Shard), "output of sample 4"),
            (&[0, 60], &|_: &mut Shard| {}, "a shard of 5 numbers a tensor was given 4"),
            (&[0, 50], &|_: &mut Shard| {}, "was given 2"),
        ] {
            let error = written(bounds, alter).1.expect_err("refused").to_string();
            assert!(error.starts_with("layer layer, samples 96 to 101") && error.contains(expected), "{error}");
        }
    }
}
