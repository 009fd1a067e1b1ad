//! A shard that is written while its samples are recorded.

use bytemuck::cast_slice;
use deltaconv_proto::objects::{self, Upload};
use deltaconv_proto::shard::{self, Contents, Shape, not_finite};
use deltaconv_proto::v1::{ObjectRef, SampleRange};
use half::f16;
use tokio::runtime::Handle;

use super::recorder::Sink;
use crate::task::Error;

/// Writes one layer's samples as they come, bucket by bucket.
pub(super) struct ShardSink {
    layer: String,
    range: SampleRange,
    upload: Upload,
    contents: Contents,
    /// Numbers in the map of each sample, in their order.
    lengths: Vec<usize>,
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
        let lengths = shapes.iter().flat_map(|shape| vec![shape.sample_len(); shape.samples]).collect();
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
    fn take(&mut self, input: &[f16], output: Option<&[f16]>) -> Result<(), Error> {
        let mut start = 0;
        while start < input.len() {
            let of_sample = start..start + self.lengths.get(self.written).copied().unwrap_or(usize::MAX - start);
            let maps = [("input", Some(input)), ("output", output)];
            for (tensor, values) in maps.into_iter().take(self.contents.maps()) {
                let Some(values) = values.and_then(|values| values.get(of_sample.clone())) else {
                    let (expected, found) = (self.lengths.iter().skip(self.written).sum(), input.len() - start);
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
        let shape = |samples, height, width| Shape { samples, height, width, channels: 4 };
        vec![shape(3, 2, 2), shape(0, 4, 1), shape(2, 1, 3)]
    }

    /// Writes batches of these bounds, of numbers that `alter` has changed.
    fn written(bounds: &[usize], alter: impl Fn(&mut Shard)) -> (Shard, Result<ObjectRef, Error>, Objects) {
        let shapes = shapes();
        let len: usize = shapes.iter().map(Shape::len).sum();
        let values = |sign: f32| (0..len).map(|i| f16::from_f32(sign * i as f32)).collect();
        let mut shard =
            Shard { timesteps: vec![5, 4, 3, 2, 1], input: values(1.0), output: values(-1.0), shapes: shapes.clone() };
        alter(&mut shard);
        let objects = Objects::new("memory:", Arc::new(InMemory::new()));
        let runtime = tokio::runtime::Runtime::new().expect("a runtime");
        let write = || {
            let upload = objects.upload("x", &Outgoing::new(0))?;
            let name = ("layer".to_owned(), SampleRange { start: 96, end: 101 });
            let of = (&shapes[..], Contents::Activations);
            let mut sink = ShardSink::new(name, of, &shard.timesteps, upload, runtime.handle().clone())?;
            for bounds in bounds.windows(2) {
                sink.take(&shard.input[bounds[0]..bounds[1]], Some(&shard.output[bounds[0]..bounds[1]]))?;
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
