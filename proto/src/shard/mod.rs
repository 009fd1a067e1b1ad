//! The shard format: recorded activations of one layer for one range of samples, as one safetensors object.
//!
//! Of a job of one size: tensors `timestep` [n] i64 and `activations` [n, 2, h, w, c] f16, the input and the output of each
//! sample, channels last, in sample order; or `inputs` [n, h, w, c] f16 where the job keeps no outputs ([`Contents`]).
//! Where samples have weights, `activations_HxW` [n, 2·h·w + 1, c] or `inputs_HxW` [n, h·w + 1, c]: the last row is what
//! differences to the sample's output are multiplied by. Of a
//! job with buckets: these of each bucket b that occurs in the range, as `timestep.b` and `activations.b`, with the map of
//! that bucket. So a shard can be written while its samples are recorded, and a sample be read at once. The same activations
//! give the same bytes.

mod layout;

use std::collections::BTreeMap;

use bytes::Bytes;
use half::f16;
use half::slice::HalfFloatSliceExt;

use crate::brief::Brief;
use crate::buckets;
use crate::code::Code;
use crate::safetensors::{self, Dtype, Header, LENGTH_BYTES, serialize_header};
use crate::v1::{JobSpec, LayerPlan, Recipe};

pub use layout::{Layout, Row};

/// Why bytes aren't the shard that was expected.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No safetensors object.
    #[error(transparent)]
    Header(#[from] safetensors::Error),
    /// A tensor is missing, of another shape or dtype, or one too many.
    #[error("expected {expected}, found {found}")]
    Tensors {
        /// What a shard of this layer and range has.
        expected: String,
        /// What was there.
        found: String,
    },
    /// Infinite, or not a number.
    #[error("{tensor} of sample {sample} holds a value that is not finite")]
    NotFinite {
        /// The tensor.
        tensor: &'static str,
        /// The sample, counted from the shard's first.
        sample: usize,
    },
    /// Numbers that can't be read where they lie.
    #[error("a tensor of f16 begins at byte {start}, which is odd")]
    Unaligned {
        /// Where.
        start: usize,
    },
    /// Two lists that belong together differ in length.
    #[error("a shard of {expected} numbers a tensor was given {found}")]
    Length {
        /// From the shape.
        expected: usize,
        /// What was given.
        found: usize,
    },
}

impl Error {
    /// Names the cause, and what helps.
    pub fn code(&self) -> Code {
        match self {
            Self::Header(_) | Self::Tensors { .. } | Self::Unaligned { .. } | Self::Length { .. } => Code::ShardForm,
            Self::NotFinite { .. } => Code::NotFinite,
        }
    }
}

/// Of the activations in bytes: a cache line of processors, and more than a GPU loads at once.
const ALIGNMENT: usize = 64;

/// What a job's shards have of each sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Contents {
    /// What went into the layer and what came out of it.
    Activations,
    /// What went into it: what came out is computed again from the teacher's weights.
    Inputs,
}

impl Contents {
    /// Each of them, by the name that a recipe has for it.
    pub const NAMED: [(&str, Self); 2] = [("activations", Self::Activations), ("inputs", Self::Inputs)];

    /// As a job's recipe has it, whose spec was checked. After the first round outputs can't be computed again: they are
    /// what is left to the teacher from where the student stands.
    pub fn of(spec: &JobSpec, round: u32) -> Self {
        if round > 0 {
            return Self::Activations;
        }
        spec.recipe.as_ref().map_or(Self::Activations, Self::of_recipe)
    }

    /// Of the first round.
    pub fn of_recipe(recipe: &Recipe) -> Self {
        let name = recipe.store.as_deref();
        Self::NAMED.iter().find(|(named, _)| Some(*named) == name).map_or(Self::Activations, |(_, contents)| *contents)
    }

    /// Maps of each sample.
    pub fn maps(self) -> usize {
        match self {
            Self::Activations => 2,
            Self::Inputs => 1,
        }
    }

    /// The name of its tensor, which says what the map is where the shape doesn't.
    fn tensor(self, shape: &Shape) -> String {
        let name = match self {
            Self::Activations => "activations",
            Self::Inputs => "inputs",
        };
        match shape {
            Shape { weighted: true, height, width, .. } => format!("{name}_{height}x{width}"),
            _ => name.to_owned(),
        }
    }

    fn dims(self, shape: &Shape) -> Vec<usize> {
        let Shape { samples, height, width, channels, weighted } = *shape;
        match self {
            _ if weighted => {
                let map = height.saturating_mul(width);
                vec![samples, self.maps().saturating_mul(map).saturating_add(1), channels]
            }
            Self::Activations => vec![samples, 2, height, width, channels],
            Self::Inputs => vec![samples, height, width, channels],
        }
    }

    /// Numbers that there are of one sample.
    fn numbers(self, shape: &Shape) -> usize {
        self.maps().saturating_mul(shape.sample_len()).saturating_add(shape.weight_len())
    }
}

/// What the activations of a shard's samples of one bucket are. A peer may say that maps have more numbers than can be counted:
/// no object is as large, so that counts stay at the largest number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Samples n; 0 for a bucket that does not occur.
    pub samples: usize,
    /// Map height h.
    pub height: usize,
    /// Map width w.
    pub width: usize,
    /// Channels c.
    pub channels: usize,
    /// Whether each sample has weights.
    pub weighted: bool,
}

impl Shape {
    /// How many.
    pub fn weight_len(&self) -> usize {
        if self.weighted { self.channels } else { 0 }
    }

    /// Numbers in one sample's input, or output.
    pub fn sample_len(&self) -> usize {
        self.height.saturating_mul(self.width).saturating_mul(self.channels)
    }

    /// Numbers in all its inputs, or outputs.
    pub fn len(&self) -> usize {
        self.samples.saturating_mul(self.sample_len())
    }

    /// Whether the bucket does not occur.
    pub fn is_empty(&self) -> bool {
        self.samples == 0
    }
}

/// The shapes of a layer's shard with so many samples of each bucket.
pub fn shapes(layer: &LayerPlan, samples: &[usize]) -> Vec<Shape> {
    let (channels, weighted) = (layer.channels as usize, layer.weighted);
    let shape = |((height, width), samples): (buckets::Size, &usize)| Shape {
        samples: *samples,
        height,
        width,
        channels,
        weighted,
    };
    buckets::maps(layer).into_iter().zip(samples).map(shape).collect()
}

/// A shard's tensors in the order in which they stand.
fn tensors(shapes: &[Shape], contents: Contents) -> Vec<(String, Dtype, Vec<usize>)> {
    let occurring = || shapes.iter().enumerate().filter(|(_, shape)| !shape.is_empty());
    let name = |name: &str, bucket| buckets::tensor(name, bucket, shapes.len());
    // The i64 come first, so that every tensor is aligned.
    let timesteps = occurring().map(|(bucket, shape)| (name("timestep", bucket), Dtype::I64, vec![shape.samples]));
    let maps =
        occurring().map(|(bucket, shape)| (name(&contents.tensor(shape), bucket), Dtype::F16, contents.dims(shape)));
    timesteps.chain(maps).collect()
}

/// The bytes before the timesteps, so many that the activations begin at a multiple of [`ALIGNMENT`].
fn header(shapes: &[Shape], contents: Contents) -> Result<Vec<u8>, Error> {
    let tensors = tensors(shapes, contents);
    let entries = tensors.iter().map(|(name, dtype, dims)| (name.as_str(), *dtype, dims.as_slice()));
    let mut header = serialize_header(entries, &BTreeMap::new())?;
    let timesteps = 8 * shapes.iter().map(|shape| shape.samples).sum::<usize>();
    header.resize((header.len() + timesteps).next_multiple_of(ALIGNMENT) - timesteps, b' ');
    let json = (header.len() - LENGTH_BYTES as usize) as u64;
    header[..LENGTH_BYTES as usize].copy_from_slice(&json.to_le_bytes());
    Ok(header)
}

/// What stands before the activations: the header and the timesteps, which are in the order of the samples. Behind it
/// there is nothing but the maps, sample by sample.
///
/// # Errors
/// Shapes that no object can have; not one timestep for each sample.
pub fn head(shapes: &[Shape], contents: Contents, timesteps: &[i64]) -> Result<Vec<u8>, Error> {
    let (expected, found) = (shapes.iter().map(|shape| shape.samples).sum(), timesteps.len());
    if found != expected {
        return Err(Error::Length { expected, found });
    }
    let mut bytes = header(shapes, contents)?;
    bytes.extend(timesteps.iter().flat_map(|timestep| timestep.to_le_bytes()));
    Ok(bytes)
}

/// The size in bytes of a shard of these shapes, one for each of the job's buckets.
///
/// # Errors
/// Shapes that no object can have.
pub fn object_len(shapes: &[Shape], contents: Contents) -> Result<u64, Error> {
    let of_sample = |shape: &Shape| (contents.numbers(shape) as u64).saturating_mul(2).saturating_add(8);
    let bytes = |shape: &Shape| of_sample(shape).saturating_mul(shape.samples as u64);
    Ok(shapes.iter().map(bytes).fold(header(shapes, contents)?.len() as u64, u64::saturating_add))
}

/// Recorded activations of one layer: bucket by bucket, and in each in sample order.
#[derive(Clone, Debug, PartialEq)]
pub struct Shard {
    /// What they are, by bucket.
    pub shapes: Vec<Shape>,
    /// [n].
    pub timesteps: Vec<i64>,
    /// What went into the layer, after norm1. [n, h, w, c], flat.
    pub input: Vec<f16>,
    /// What came out of it. [n, h, w, c], flat.
    pub output: Vec<f16>,
    /// What differences to it are multiplied by in training. [n, c], flat; empty where samples have no weights.
    pub weights: Vec<f16>,
}

impl Shard {
    /// The object's bytes. Refuses activations that aren't finite: nothing could be learned from them.
    pub fn encode(&self) -> Result<Bytes, Error> {
        let expected = self.shapes.iter().map(Shape::len).sum();
        let weights = self.shapes.iter().map(|shape| shape.samples * shape.weight_len()).sum();
        for (expected, found) in
            [(expected, self.input.len()), (expected, self.output.len()), (weights, self.weights.len())]
        {
            if found != expected {
                return Err(Error::Length { expected, found });
            }
        }
        let mut bytes = head(&self.shapes, Contents::Activations, &self.timesteps)?;
        bytes.reserve_exact(4 * expected + 2 * weights);
        let (mut sample, mut start, mut weight_start) = (0, 0, 0);
        for shape in &self.shapes {
            for _ in 0..shape.samples {
                let row = start..start + shape.sample_len();
                let of_weights = weight_start..weight_start + shape.weight_len();
                (start, weight_start) = (row.end, of_weights.end);
                let (input, output) = (&self.input[row.clone()], &self.output[row]);
                for (tensor, values) in [("input", input), ("output", output), ("weights", &self.weights[of_weights])] {
                    if not_finite(values).is_some() {
                        return Err(Error::NotFinite { tensor, sample });
                    }
                    bytes.extend(values.reinterpret_cast().iter().flat_map(|bits| bits.to_le_bytes()));
                }
                sample += 1;
            }
        }
        Ok(bytes.into())
    }
}

/// Where the first number is that is infinite or none.
pub fn not_finite(values: &[f16]) -> Option<usize> {
    const EXPONENT: u16 = 0x7c00;
    /// Looked at together, which is faster than to stop at the first one.
    const TOGETHER: usize = 4096;
    let not_finite = |bits: &u16| bits & EXPONENT == EXPONENT;
    let bits = values.reinterpret_cast();
    let together = |chunk: &&[u16]| chunk.iter().fold(false, |any, bits| any | not_finite(bits));
    let chunk = bits.chunks(TOGETHER).position(|chunk| together(&chunk))?;
    let start = chunk * TOGETHER;
    bits[start..].iter().position(not_finite).map(|at| start + at)
}

/// Checks that `header` is that of a shard of `samples` samples of this layer, and returns its shapes: which buckets the
/// samples are in is for the shard to say.
///
/// # Errors
/// [`Error::Tensors`], with what was expected.
pub fn check_header(
    header: &Header,
    layer: &LayerPlan,
    contents: Contents,
    samples: usize,
) -> Result<Vec<Shape>, Error> {
    let buckets = buckets::maps(layer).len();
    let samples_of = |bucket: usize| {
        let info = header.tensors.get(&buckets::tensor("timestep", bucket, buckets));
        info.and_then(|info| info.shape.first().copied()).unwrap_or(0)
    };
    let found: Vec<usize> = match buckets {
        1 => vec![samples],
        _ => (0..buckets).map(samples_of).collect(),
    };
    let shapes = shapes(layer, &found);
    let expected = tensors(&shapes, contents);
    let all = found.iter().fold(0, |sum: usize, samples| sum.saturating_add(*samples));
    let as_expected = all == samples
        && header.tensors.len() == expected.len()
        && expected.iter().all(|(name, dtype, dims)| {
            header.tensors.get(name).is_some_and(|info| info.dtype == *dtype && info.shape == *dims)
        });
    if as_expected {
        return Ok(shapes);
    }
    let described = |(name, dtype, dims): &(String, Dtype, Vec<usize>)| format!("{name} {dtype} {dims:?}");
    let in_buckets = if buckets > 1 { format!(" in {buckets} buckets") } else { String::new() };
    let expected = expected.iter().take(MOST_NAMED).map(described).collect::<Vec<_>>().join(", ");
    let found = header.tensors.iter().take(MOST_NAMED);
    let found = found.map(|(name, info)| format!("{} {} {:?}", Brief(name), info.dtype, info.shape));
    let expected = format!("{samples} samples{in_buckets}: {expected}");
    Err(Error::Tensors { expected, found: found.collect::<Vec<_>>().join(", ") })
}

/// Tensors that an error names.
const MOST_NAMED: usize = 6;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::v1::Map;

    fn layer(maps: &[(u32, u32)]) -> LayerPlan {
        let maps = maps.iter().map(|(height, width)| Map { height: *height, width: *width }).collect();
        LayerPlan { height: 3, width: 2, channels: 4, maps, ..LayerPlan::default() }
    }

    fn shard(shapes: Vec<Shape>) -> Shard {
        let numbers: usize = shapes.iter().map(Shape::len).sum();
        let samples: usize = shapes.iter().map(|shape| shape.samples).sum();
        let values = |from: f32| (0..numbers).map(|i| f16::from_f32(from + i as f32)).collect();
        let weights = shapes.iter().map(|shape| shape.samples * shape.weight_len()).sum();
        let weights = (0..weights).map(|i| f16::from_f32(2.0 + i as f32)).collect();
        Shard { shapes, timesteps: (5..).take(samples).collect(), input: values(0.5), output: values(-7.0), weights }
    }

    /// The inputs, outputs and weights of every sample, as they lie in `bytes`.
    fn rows(bytes: &[u8], layer: &LayerPlan, samples: usize) -> Result<[Vec<f16>; 3], Error> {
        let layout = Layout::read(bytes, bytes.len() as u64, layer, Contents::Activations, samples)?;
        let numbers: Vec<f16> = bytes.chunks_exact(2).map(|b| f16::from_le_bytes([b[0], b[1]])).collect();
        assert!((2 * layout.first).is_multiple_of(ALIGNMENT));
        let mut found = [const { Vec::new() }; 3];
        let mut sample = 0;
        for (bucket, shape) in layout.shapes.iter().enumerate() {
            for row in 0..shape.samples {
                let Row { input, output, weights } = layout.row(bucket, row);
                assert_eq!(
                    [layout.place_of(input.start), layout.place_of(output.end - 1)],
                    [("input", sample), ("output", sample)]
                );
                assert!(weights.clone().all(|at| layout.place_of(at) == ("weights", sample)));
                found[0].extend(&numbers[input]);
                found[1].extend(&numbers[output]);
                found[2].extend(&numbers[weights]);
                sample += 1;
            }
        }
        Ok(found)
    }

    #[test]
    fn what_is_encoded_is_found() {
        let three = &[(3, 2), (2, 3), (1, 5)][..];
        let cases = [(&[][..], &[2][..]), (three, &[1, 0, 3]), (three, &[0, 2, 0])];
        for ((maps, samples), weighted) in cases.into_iter().flat_map(|case| [(case, false), (case, true)]) {
            let (layer, all) = (LayerPlan { weighted, ..layer(maps) }, samples.iter().sum());
            let shard = shard(shapes(&layer, samples));
            let bytes = shard.encode().expect("encodes");
            let len = object_len(&shard.shapes, Contents::Activations).expect("a length");
            assert_eq!(bytes.len() as u64, len);
            let [input, output, weights] = rows(&bytes, &layer, all).expect("a shard");
            assert!(input == shard.input && output == shard.output && weights == shard.weights);
            assert_eq!(weights.is_empty(), !weighted);
            assert!(rows(&bytes, &layer, all + 1).is_err());
        }
    }

    #[test]
    fn a_shard_of_one_size_has_two_tensors_and_one_of_buckets_two_for_each_that_occurs() {
        let names = |maps: &[(u32, u32)], samples: &[usize]| {
            let shard = shard(shapes(&layer(maps), samples)).encode().expect("encodes");
            safetensors::parse(&shard).expect("a header").0.tensors.into_keys().collect::<Vec<_>>()
        };
        assert_eq!(names(&[], &[2]), ["activations", "timestep"]);
        assert_eq!(names(&[(3, 2), (2, 3)], &[0, 2]), ["activations.1", "timestep.1"]);
    }

    #[test]
    fn other_shapes_truncated_bytes_and_nan_are_refused() {
        let (one_size, buckets) = (layer(&[]), layer(&[(3, 2), (2, 3)]));
        let bytes = shard(shapes(&one_size, &[2])).encode().expect("encodes");
        let wider = LayerPlan { channels: 8, ..one_size.clone() };
        assert!(matches!(rows(&bytes, &wider, 2), Err(Error::Tensors { .. })));
        assert!(matches!(rows(&bytes, &buckets, 2), Err(Error::Tensors { .. })));
        let turned = shard(shapes(&layer(&[(2, 3), (3, 2)]), &[1, 1])).encode().expect("encodes");
        let error = rows(&turned, &buckets, 2).expect_err("refused").to_string();
        assert!(
            error.contains("2 samples in 2 buckets") && error.contains("activations.0 F16 [1, 2, 3, 2, 4]"),
            "{error}"
        );
        assert!(rows(&turned, &one_size, 2).is_err());
        for end in 0..bytes.len() {
            let cut = rows(&bytes[..end], &one_size, 2);
            assert!(cut.is_err(), "{end} of {} bytes were taken", bytes.len());
            // The first part of an object must hold its header.
            let header = bytes.len() - 4 * 48 - 16;
            let part = Layout::read(&bytes[..end], bytes.len() as u64, &one_size, Contents::Activations, 2);
            assert_eq!(part.is_ok(), end >= header, "{end}");
        }
        let mut broken = shard(shapes(&buckets, &[1, 2]));
        broken.output[24 + 30] = f16::NAN;
        assert!(matches!(broken.encode(), Err(Error::NotFinite { tensor: "output", sample: 2 })));
    }
}
