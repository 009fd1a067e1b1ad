//! Where a shard's samples lie in its object.

use std::ops::Range;

use super::{Contents, Error, Shape, check_header};
use crate::buckets;
use crate::safetensors::{self, LENGTH_BYTES, parse_header, parse_length};
use crate::v1::LayerPlan;

/// The maps of a shard's samples, bucket by bucket. Everything is counted in f16 numbers from the object's first byte.
#[derive(Clone, Debug, PartialEq)]
pub struct Layout {
    /// Of the samples in each bucket.
    pub shapes: Vec<Shape>,
    /// What there is of each sample.
    pub contents: Contents,
    /// Where the maps of each bucket begin.
    starts: Vec<usize>,
    /// Where the first of them begins: before it there are the header and the timesteps.
    pub first: usize,
}

/// Where the parts of a sample lie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// What went into the layer.
    pub input: Range<usize>,
    /// What came out of it; empty where the shard has no outputs.
    pub output: Range<usize>,
    /// Empty where samples have none.
    pub weights: Range<usize>,
}

impl Layout {
    /// From an object's first bytes, which must hold the header, of a shard of `samples` samples of the layer.
    ///
    /// # Errors
    /// No shard of that layer, contents and as many samples; a header that is cut off.
    pub fn read(bytes: &[u8], size: u64, layer: &LayerPlan, contents: Contents, samples: usize) -> Result<Self, Error> {
        let short = || safetensors::Error::TooShort { file_len: bytes.len() as u64 };
        let (length, rest) = bytes.split_first_chunk::<8>().ok_or_else(short)?;
        let json = rest.get(..parse_length(length, size)? as usize).ok_or_else(short)?;
        let header = parse_header(json, size)?;
        let shapes = check_header(&header, layer, contents, samples)?;
        let start = |bucket: usize| {
            let info = header.tensors.get(&buckets::tensor(&contents.tensor(&shapes[bucket]), bucket, shapes.len()));
            info.map_or(0, |info| (LENGTH_BYTES + header.header_len + info.start) as usize)
        };
        let starts: Vec<usize> = (0..shapes.len()).map(start).collect();
        let occurring = || starts.iter().filter(|start| **start > 0);
        if let Some(odd) = occurring().find(|start| !start.is_multiple_of(2)) {
            return Err(Error::Unaligned { start: *odd });
        }
        let first = occurring().min().copied().unwrap_or(0) / 2;
        Ok(Self { first, contents, starts: starts.into_iter().map(|start| start / 2).collect(), shapes })
    }

    /// All that there is of row `row` of a bucket: its input, behind it its output where the shard has outputs, and its
    /// weights where samples have any.
    pub fn sample(&self, bucket: usize, row: usize) -> Range<usize> {
        let len = self.contents.numbers(&self.shapes[bucket]);
        let start = self.starts[bucket] + row * len;
        start..start + len
    }

    /// The parts of row `row` of a bucket.
    pub fn row(&self, bucket: usize, row: usize) -> Row {
        let Range { start, end } = self.sample(bucket, row);
        let shape = &self.shapes[bucket];
        let (middle, last) = (start + shape.sample_len(), end - shape.weight_len());
        Row { input: start..middle, output: middle..last, weights: last..end }
    }

    /// The tensor and the sample, counted from the shard's first, that number `at` is of.
    pub fn place_of(&self, at: usize) -> (&'static str, usize) {
        let mut before = 0;
        for (shape, start) in self.shapes.iter().zip(&self.starts) {
            let numbers = self.contents.numbers(shape).max(1);
            if (*start..*start + numbers * shape.samples).contains(&at) {
                let (row, within) = ((at - start) / numbers, (at - start) % numbers);
                let tensor = match within / shape.sample_len().max(1) {
                    map if map >= self.contents.maps() => "weights",
                    0 => "input",
                    _ => "output",
                };
                return (tensor, before + row);
            }
            before += shape.samples;
        }
        ("timestep", 0)
    }
}
