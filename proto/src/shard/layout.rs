//! Where a shard's samples lie in its object.

use std::ops::Range;

use super::{Error, Shape, check_header};
use crate::buckets;
use crate::safetensors::{self, LENGTH_BYTES, parse_header, parse_length};
use crate::v1::LayerPlan;

/// The inputs and outputs of a shard's samples, bucket by bucket. Everything is counted in f16 numbers from the object's
/// first byte.
#[derive(Clone, Debug, PartialEq)]
pub struct Layout {
    /// Of the samples in each bucket.
    pub shapes: Vec<Shape>,
    /// Where the inputs and the outputs of each bucket begin.
    starts: Vec<[usize; 2]>,
    /// Where the first of them begins: before it there are the header and the timesteps.
    pub first: usize,
}

impl Layout {
    /// From an object's first bytes, which must hold the header, of a shard of `samples` samples of the layer.
    ///
    /// # Errors
    /// No shard of that layer and as many samples; a header that is cut off.
    pub fn read(bytes: &[u8], size: u64, layer: &LayerPlan, samples: usize) -> Result<Self, Error> {
        let short = || safetensors::Error::TooShort { file_len: bytes.len() as u64 };
        let (length, rest) = bytes.split_first_chunk::<8>().ok_or_else(short)?;
        let json = rest.get(..parse_length(length, size)? as usize).ok_or_else(short)?;
        let header = parse_header(json, size)?;
        let shapes = check_header(&header, layer, samples)?;
        let start = |name: &'static str, bucket: usize| {
            let info = header.tensors.get(&buckets::tensor(name, bucket, shapes.len()));
            info.map_or(0, |info| (LENGTH_BYTES + header.header_len + info.start) as usize)
        };
        let starts: Vec<[usize; 2]> =
            (0..shapes.len()).map(|bucket| [start("input", bucket), start("output", bucket)]).collect();
        let occurring = || starts.iter().flatten().filter(|start| **start > 0);
        if let Some(odd) = occurring().find(|start| !start.is_multiple_of(2)) {
            return Err(Error::Unaligned { start: *odd });
        }
        let first = occurring().min().copied().unwrap_or(0) / 2;
        let halves = |[input, output]: [usize; 2]| [input / 2, output / 2];
        Ok(Self { first, starts: starts.into_iter().map(halves).collect(), shapes })
    }

    /// The input and the output of row `row` of a bucket.
    pub fn row(&self, bucket: usize, row: usize) -> [Range<usize>; 2] {
        let len = self.shapes[bucket].sample_len();
        self.starts[bucket].map(|start| start + row * len..start + (row + 1) * len)
    }

    /// The tensor and the sample, counted from the shard's first, that number `at` is of.
    pub fn place_of(&self, at: usize) -> (&'static str, usize) {
        let mut before = 0;
        for (shape, starts) in self.shapes.iter().zip(&self.starts) {
            for (start, tensor) in starts.iter().zip(["input", "output"]) {
                if (*start..*start + shape.len()).contains(&at) {
                    return (tensor, before + (at - start) / shape.sample_len().max(1));
                }
            }
            before += shape.samples;
        }
        ("timestep", 0)
    }
}
