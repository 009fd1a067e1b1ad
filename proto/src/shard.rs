//! The shard format: recorded activations of one layer for one range of samples, as one safetensors object.
//!
//! Tensors `timestep` [n] i64, `input` and `output` [n, h, w, c] f16, channels last, rows in sample order. The same
//! activations give the same bytes.

use std::collections::BTreeMap;

use bytes::Bytes;
use half::f16;
use half::slice::HalfFloatSliceExt;

use crate::safetensors::{self, Dtype, Header, serialize_header};

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
    /// Two lists that belong together differ in length.
    #[error("a shard of {expected} numbers a tensor was given {found}")]
    Length {
        /// From the shape.
        expected: usize,
        /// What was given.
        found: usize,
    },
}

/// What a shard's activations are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Samples n.
    pub samples: usize,
    /// Map height h.
    pub height: usize,
    /// Map width w.
    pub width: usize,
    /// Channels c.
    pub channels: usize,
}

impl Shape {
    /// Numbers in one sample's input, or output.
    pub fn sample_len(&self) -> usize {
        self.height * self.width * self.channels
    }

    fn dims(&self) -> [usize; 4] {
        [self.samples, self.height, self.width, self.channels]
    }

    fn header(&self, metadata: &BTreeMap<String, String>) -> Result<Vec<u8>, Error> {
        let (samples, dims) = ([self.samples], self.dims());
        // The i64 come first, so that every tensor is aligned.
        let tensors: [(&str, Dtype, &[usize]); 3] =
            [("timestep", Dtype::I64, &samples), ("input", Dtype::F16, &dims), ("output", Dtype::F16, &dims)];
        Ok(serialize_header(tensors, metadata)?)
    }

    /// The size of such a shard in bytes.
    pub fn object_len(&self) -> Result<u64, Error> {
        let header = self.header(&BTreeMap::new())?.len() as u64;
        Ok(header + 8 * self.samples as u64 + 4 * self.samples as u64 * self.sample_len() as u64)
    }
}

/// Recorded activations of one layer.
#[derive(Clone, Debug, PartialEq)]
pub struct Shard {
    /// What they are.
    pub shape: Shape,
    /// [n].
    pub timesteps: Vec<i64>,
    /// What went into the layer, after norm1. [n, h, w, c].
    pub input: Vec<f16>,
    /// What came out of it. [n, h, w, c].
    pub output: Vec<f16>,
}

impl Shard {
    /// The object's bytes. Refuses activations that aren't finite: nothing could be learned from them.
    pub fn encode(&self) -> Result<Bytes, Error> {
        let expected = self.shape.samples * self.shape.sample_len();
        for found in [self.input.len(), self.output.len()] {
            if found != expected {
                return Err(Error::Length { expected, found });
            }
        }
        self.check_finite()?;
        let mut bytes = self.shape.header(&BTreeMap::new())?;
        bytes.reserve_exact(8 * self.timesteps.len() + 4 * expected);
        bytes.extend(self.timesteps.iter().flat_map(|timestep| timestep.to_le_bytes()));
        for values in [&self.input, &self.output] {
            bytes.extend(values.reinterpret_cast().iter().flat_map(|bits| bits.to_le_bytes()));
        }
        Ok(bytes.into())
    }

    /// The shard in `bytes`, if it is one of this shape.
    pub fn decode(bytes: &[u8], shape: Shape) -> Result<Self, Error> {
        let (header, data) = safetensors::parse(bytes)?;
        check_header(&header, shape)?;
        let tensor = |name: &str| {
            // The header's check covers both: the tensor is there, and its range lies in the file.
            header.tensors.get(name).map_or(&data[..0], |info| &data[info.start as usize..info.end as usize])
        };
        let values = |name: &str| tensor(name).chunks_exact(2).map(|b| f16::from_le_bytes([b[0], b[1]])).collect();
        let timesteps = tensor("timestep").chunks_exact(8);
        let shard = Self {
            shape,
            timesteps: timesteps
                .map(|b| i64::from_le_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]))
                .collect(),
            input: values("input"),
            output: values("output"),
        };
        shard.check_finite()?;
        Ok(shard)
    }

    fn check_finite(&self) -> Result<(), Error> {
        const EXPONENT: u16 = 0x7c00;
        for (tensor, values) in [("input", &self.input), ("output", &self.output)] {
            let not_finite = |bits: &u16| bits & EXPONENT == EXPONENT;
            if let Some(at) = values.reinterpret_cast().iter().position(not_finite) {
                return Err(Error::NotFinite { tensor, sample: at / self.shape.sample_len().max(1) });
            }
        }
        Ok(())
    }
}

/// Checks that `header` is that of a shard of this shape.
pub fn check_header(header: &Header, shape: Shape) -> Result<(), Error> {
    let (samples, dims) = (vec![shape.samples], shape.dims().to_vec());
    let expected = [("input", Dtype::F16, &dims), ("output", Dtype::F16, &dims), ("timestep", Dtype::I64, &samples)];
    let as_expected = header.tensors.len() == expected.len()
        && expected.iter().all(|(name, dtype, shape)| {
            header.tensors.get(*name).is_some_and(|info| info.dtype == *dtype && &info.shape == *shape)
        });
    if as_expected {
        return Ok(());
    }
    let found = header.tensors.iter().take(4).map(|(name, info)| format!("{name} {} {:?}", info.dtype, info.shape));
    Err(Error::Tensors {
        expected: format!("input and output F16 {dims:?} and timestep I64 {samples:?}"),
        found: found.collect::<Vec<_>>().join(", "),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: Shape = Shape { samples: 2, height: 3, width: 2, channels: 4 };

    fn shard() -> Shard {
        let values = |from: f32| (0..48).map(|i| f16::from_f32(from + i as f32)).collect();
        Shard { shape: SHAPE, timesteps: vec![5, 999], input: values(0.5), output: values(-7.0) }
    }

    #[test]
    fn what_is_encoded_is_decoded() {
        let bytes = shard().encode().expect("encodes");
        assert_eq!(bytes.len() as u64, SHAPE.object_len().expect("a length"));
        assert_eq!(Shard::decode(&bytes, SHAPE).expect("decodes"), shard());
    }

    #[test]
    fn other_shapes_truncated_bytes_and_nan_are_refused() {
        let bytes = shard().encode().expect("encodes");
        let wider = Shape { channels: 8, ..SHAPE };
        assert!(matches!(Shard::decode(&bytes, wider), Err(Error::Tensors { .. })));
        for end in 0..bytes.len() {
            assert!(Shard::decode(&bytes[..end], SHAPE).is_err(), "{end} of {} bytes were taken", bytes.len());
        }
        let mut broken = shard();
        broken.output[30] = f16::NAN;
        assert!(matches!(broken.encode(), Err(Error::NotFinite { tensor: "output", sample: 1 })));
    }
}
