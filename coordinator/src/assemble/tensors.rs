//! Tensors of a safetensors object that is whole in memory, and whether they are exactly the expected ones.

use deltaconv_proto::Brief;
use deltaconv_proto::code::Code;
use deltaconv_proto::safetensors::{self, Dtype, Header};

/// How tensors differ from what an object should hold.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The bytes are no safetensors object.
    #[error(transparent)]
    Format(#[from] safetensors::Error),
    /// A tensor is not there.
    #[error("no tensor `{name}`; expected {dtype} {shape:?}")]
    Missing {
        /// The tensor.
        name: String,
        /// What it would be.
        dtype: Dtype,
        /// What it would be.
        shape: Vec<usize>,
    },
    /// A tensor is there that has no place.
    #[error("tensor `{}` has no place there; expected only {expected}", Brief(.name))]
    Unexpected {
        /// The tensor.
        name: String,
        /// The tensors that have one.
        expected: String,
    },
    /// A tensor is of another type or shape.
    #[error("tensor `{name}` is {found_dtype} {found:?}; expected {dtype} {shape:?}")]
    Wrong {
        /// The tensor.
        name: String,
        /// What it should be.
        dtype: Dtype,
        /// What it should be.
        shape: Vec<usize>,
        /// What it is.
        found_dtype: Dtype,
        /// What it is.
        found: Vec<usize>,
    },
    /// A number is NaN or infinite.
    #[error("tensor `{name}` has {value} at {index}; expected finite numbers")]
    NotFinite {
        /// The tensor.
        name: String,
        /// Position in row-major order.
        index: usize,
        /// The number.
        value: f64,
    },
}

impl Error {
    /// Names the cause, and what helps.
    pub fn code(&self) -> Code {
        match self {
            Self::Format(_)
            | Self::Missing { .. }
            | Self::Unexpected { .. }
            | Self::Wrong { .. }
            | Self::NotFinite { .. } => Code::BlockTensors,
        }
    }
}

/// One tensor that an object must have.
#[derive(Clone, Debug)]
pub(crate) struct Expected {
    pub(crate) name: String,
    pub(crate) dtype: Dtype,
    pub(crate) shape: Vec<usize>,
}

impl Expected {
    pub(crate) fn new(name: impl Into<String>, dtype: Dtype, shape: impl Into<Vec<usize>>) -> Self {
        Self { name: name.into(), dtype, shape: shape.into() }
    }
}

/// Bytes that the tensors take; what can't be counted is more than any limit.
pub(crate) fn bytes(expected: &[Expected]) -> u64 {
    expected.iter().map(|e| e.dtype.bytes(&e.shape).unwrap_or(u64::MAX)).fold(0, u64::saturating_add)
}

/// Checks that a header has these tensors and no other.
pub(crate) fn exactly(header: &Header, expected: &[Expected]) -> Result<(), Error> {
    for Expected { name, dtype, shape } in expected {
        let (name, dtype, shape) = (name.clone(), *dtype, shape.clone());
        let Some(found) = header.tensors.get(&name) else { return Err(Error::Missing { name, dtype, shape }) };
        if found.dtype != dtype || found.shape != shape {
            let (found_dtype, found) = (found.dtype, found.shape.clone());
            return Err(Error::Wrong { name, dtype, shape, found_dtype, found });
        }
    }
    let known = |name: &&String| expected.iter().any(|e| e.name == **name);
    match header.tensors.keys().find(|name| !known(name)) {
        None => Ok(()),
        Some(name) => {
            let expected = expected.iter().map(|e| e.name.as_str()).collect::<Vec<_>>().join(", ");
            Err(Error::Unexpected { name: name.clone(), expected })
        }
    }
}

/// An object with its header parsed.
pub(crate) struct Tensors<'a> {
    pub(crate) header: Header,
    data: &'a [u8],
}

impl<'a> Tensors<'a> {
    /// Parses `bytes`, a whole object. Copies no tensor.
    pub(crate) fn parse(bytes: &'a [u8]) -> Result<Self, Error> {
        let (header, data) = safetensors::parse(bytes)?;
        Ok(Self { header, data })
    }

    /// The bytes of a tensor that the header has; empty for any other.
    pub(crate) fn bytes(&self, name: &str) -> &'a [u8] {
        // A parsed header has no tensor beyond the data.
        self.header.tensors.get(name).map_or(&[], |info| &self.data[info.start as usize..info.end as usize])
    }

    /// The numbers of an F32 tensor.
    ///
    /// # Errors
    /// [`Error::NotFinite`].
    pub(crate) fn f32(&self, name: &str) -> Result<Vec<f32>, Error> {
        finite(name, self.bytes(name).as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)))
    }

    /// The numbers of an F64 tensor.
    ///
    /// # Errors
    /// [`Error::NotFinite`].
    pub(crate) fn f64(&self, name: &str) -> Result<Vec<f64>, Error> {
        finite(name, self.bytes(name).as_chunks().0.iter().map(|b| f64::from_le_bytes(*b)))
    }

    /// The numbers of an I64 tensor.
    pub(crate) fn i64(&self, name: &str) -> Vec<i64> {
        self.bytes(name).as_chunks().0.iter().map(|b| i64::from_le_bytes(*b)).collect()
    }

    /// Checks that an F32 tensor is finite, without keeping its numbers.
    ///
    /// # Errors
    /// [`Error::NotFinite`].
    pub(crate) fn check_finite_f32(&self, name: &str) -> Result<(), Error> {
        let numbers = self.bytes(name).as_chunks().0.iter().map(|b| f32::from_le_bytes(*b));
        match numbers.enumerate().find(|(_, number)| !number.is_finite()) {
            None => Ok(()),
            Some((index, value)) => Err(Error::NotFinite { name: name.to_owned(), index, value: value.into() }),
        }
    }
}

fn finite<T: Copy + Into<f64>>(name: &str, numbers: impl Iterator<Item = T>) -> Result<Vec<T>, Error> {
    numbers
        .enumerate()
        .map(|(index, number)| {
            let value: f64 = number.into();
            if value.is_finite() { Ok(number) } else { Err(Error::NotFinite { name: name.to_owned(), index, value }) }
        })
        .collect()
}
