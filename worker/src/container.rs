//! A whole safetensors object in memory, read with suspicion.

use deltaconv_proto::code::Code;
use deltaconv_proto::safetensors::{self, Dtype, Header, TensorInfo};
use half::{bf16, f16};

use crate::task::Error;

/// Tensors of an object that was read whole.
pub(crate) struct Container<'a> {
    name: String,
    header: Header,
    data: &'a [u8],
}

impl<'a> Container<'a> {
    /// The object in `bytes`; `name` is what errors call it.
    pub(crate) fn parse(name: &str, bytes: &'a [u8]) -> Result<Self, Error> {
        let (header, data) = safetensors::parse(bytes)?;
        Ok(Self { name: name.into(), header, data })
    }

    fn unexpected(&self, reason: String) -> Error {
        Error::Unexpected { what: self.name.clone(), reason, code: Code::UnexpectedFile }
    }

    /// What errors call it.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Whether it has a tensor of this name.
    pub(crate) fn has(&self, tensor: &str) -> bool {
        self.header.tensors.contains_key(tensor)
    }

    /// A tensor's description.
    pub(crate) fn info(&self, tensor: &str) -> Result<&TensorInfo, Error> {
        let found = self.header.tensors.get(tensor);
        found.ok_or_else(|| self.unexpected(format!("it has no tensor {tensor:?}")))
    }

    /// The length of a tensor's first dimension.
    pub(crate) fn rows(&self, tensor: &str) -> Result<usize, Error> {
        let info = self.info(tensor)?;
        let rows = info.shape.first().copied();
        rows.ok_or_else(|| self.unexpected(format!("{tensor:?} is a scalar")))
    }

    fn bytes(&self, tensor: &str, shape: &[usize]) -> Result<(Dtype, &'a [u8]), Error> {
        let info = self.info(tensor)?;
        if info.shape != shape {
            return Err(self.unexpected(format!("{tensor:?} has shape {:?}, expected {shape:?}", info.shape)));
        }
        // The header's check holds ranges to the file.
        Ok((info.dtype, &self.data[info.start as usize..info.end as usize]))
    }

    fn wrong_dtype(&self, tensor: &str, found: Dtype, expected: &str) -> Error {
        self.unexpected(format!("{tensor:?} is {found}, expected {expected}"))
    }

    /// Values of a tensor of this shape, stored as f32, f16 or bf16.
    pub(crate) fn f32(&self, tensor: &str, shape: &[usize]) -> Result<Vec<f32>, Error> {
        let (dtype, bytes) = self.bytes(tensor, shape)?;
        let halves = bytes.chunks_exact(2).map(|b| [b[0], b[1]]);
        match dtype {
            Dtype::F32 => Ok(bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()),
            Dtype::F16 => Ok(halves.map(|b| f16::from_le_bytes(b).to_f32()).collect()),
            Dtype::BF16 => Ok(halves.map(|b| bf16::from_le_bytes(b).to_f32()).collect()),
            other => Err(self.wrong_dtype(tensor, other, "F32, F16 or BF16")),
        }
    }

    /// Values of a tensor of this shape, stored as f64.
    pub(crate) fn f64(&self, tensor: &str, shape: &[usize]) -> Result<Vec<f64>, Error> {
        let (dtype, bytes) = self.bytes(tensor, shape)?;
        match dtype {
            Dtype::F64 => Ok(bytes.chunks_exact(8).map(|b| f64::from_bits(eight(b))).collect()),
            other => Err(self.wrong_dtype(tensor, other, "F64")),
        }
    }

    /// Values of a tensor of this shape, stored as i64.
    pub(crate) fn i64(&self, tensor: &str, shape: &[usize]) -> Result<Vec<i64>, Error> {
        let (dtype, bytes) = self.bytes(tensor, shape)?;
        match dtype {
            Dtype::I64 => Ok(bytes.chunks_exact(8).map(|b| eight(b) as i64).collect()),
            other => Err(self.wrong_dtype(tensor, other, "I64")),
        }
    }
}

fn eight(b: &[u8]) -> u64 {
    u64::from_le_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]])
}
