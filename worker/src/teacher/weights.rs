//! A model's weights, read one tensor at a time.

use std::fs::File;
use std::io::{Cursor, Read, Seek, SeekFrom};
use std::path::Path;

use deltaconv_proto::safetensors::{Dtype, Header, LENGTH_BYTES, TensorInfo, parse_header, parse_length};
use deltaconv_proto::teacher;
use half::{bf16, f16};

use super::Error;
use super::ops::{Conv, GroupNorm, LayerNorm, Linear, Padding, Place};

/// Something to read weights from.
trait Source: Read + Seek + Send {}
impl<T: Read + Seek + Send> Source for T {}

/// The tensors of safetensors files, as f32; where two have one name, the first file's. Modules are built of them where
/// [`Weights::place`] says.
#[derive(Default)]
pub struct Weights {
    place: Place,
    files: Vec<(Header, Box<dyn Source>)>,
}

impl Weights {
    /// The tensors of files.
    ///
    /// # Errors
    /// A file that cannot be opened, or that is no safetensors file.
    pub fn open<P: AsRef<Path>>(paths: impl IntoIterator<Item = P>) -> Result<Self, Error> {
        let mut weights = Self::default();
        for path in paths {
            weights.add_file(path.as_ref())?;
        }
        Ok(weights)
    }

    /// The same tensors, for modules in that place.
    #[must_use]
    pub fn at(self, place: &Place) -> Self {
        Self { place: place.clone(), ..self }
    }

    /// Where modules are built: on the processor, unless [`Self::at`] says otherwise.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// Adds the tensors of a file.
    ///
    /// # Errors
    /// A file that cannot be opened, or that is no safetensors file.
    pub fn add_file(&mut self, path: &Path) -> Result<(), Error> {
        let file = File::open(path).map_err(|e| std::io::Error::new(e.kind(), format!("{}: {e}", path.display())))?;
        self.add_open_file(file)
    }

    /// Adds the tensors of a file that is open.
    ///
    /// # Errors
    /// A file that is no safetensors file.
    pub(crate) fn add_open_file(&mut self, file: File) -> Result<(), Error> {
        self.files.push(with_header(Box::new(file))?);
        Ok(())
    }

    /// Adds the tensors of a file that is in memory.
    ///
    /// # Errors
    /// Bytes that are no safetensors file.
    pub fn add_bytes(&mut self, bytes: impl AsRef<[u8]> + Send + 'static) -> Result<(), Error> {
        self.files.push(with_header(Box::new(Cursor::new(bytes)))?);
        Ok(())
    }

    /// The entry of a tensor.
    pub(crate) fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.files.iter().find_map(|(header, _)| header.tensors.get(name))
    }

    /// The elements of a tensor, row-major.
    ///
    /// # Errors
    /// A tensor that is missing, of another shape, or not of floats.
    pub(crate) fn read(&mut self, name: &str, shape: &[usize]) -> Result<Vec<f32>, Error> {
        let missing = || teacher::Error::MissingTensor { name: name.to_owned() };
        let (header, source) =
            self.files.iter_mut().find(|(header, _)| header.tensors.contains_key(name)).ok_or_else(missing)?;
        let tensor = header.tensors.get(name).ok_or_else(missing)?;
        if tensor.shape != shape {
            let (name, found) = (name.to_owned(), tensor.shape.clone());
            return Err(teacher::Error::WrongShape { name, expected: shape.to_vec(), found }.into());
        }
        // The header was checked: so many bytes are in the file, and as many as the shape needs.
        let mut bytes = vec![0; (tensor.end - tensor.start) as usize];
        source.seek(SeekFrom::Start(header.data_start() + tensor.start))?;
        source.read_exact(&mut bytes)?;
        to_f32(tensor.dtype, &bytes)
            .ok_or_else(|| teacher::Error::WrongDtype { name: name.to_owned(), found: tensor.dtype }.into())
    }
}

/// Modules by their diffusers paths, under PyTorch's names.
impl Weights {
    /// A linear with bias.
    pub(super) fn linear(&mut self, path: &str, input: usize, output: usize) -> Result<Linear, Error> {
        self.linears(&[path.to_owned()], input, output, true)
    }

    /// Linears that share their input, as one: their outputs side by side.
    pub(super) fn linears(
        &mut self,
        paths: &[String],
        input: usize,
        output: usize,
        bias: bool,
    ) -> Result<Linear, Error> {
        let mut weight = Vec::with_capacity(paths.len() * output * input);
        let mut biases = Vec::new();
        for path in paths {
            weight.extend(self.read(&format!("{path}.weight"), &[output, input])?);
            if bias {
                biases.extend(self.bias(path, output)?);
            }
        }
        Linear::new(&self.place, (input, paths.len() * output), &weight, bias.then_some(biases))
    }

    /// A 1×1 convolution, which is a linear of maps that are channels last.
    pub(super) fn pointwise(&mut self, path: &str, input: usize, output: usize) -> Result<Linear, Error> {
        let weight = self.read(&format!("{path}.weight"), &[output, input, 1, 1])?;
        let bias = self.bias(path, output)?;
        Linear::new(&self.place, (input, output), &weight, Some(bias))
    }

    /// A convolution of stride 1, padded by ⌊(kernel − 1) / 2⌋.
    pub(super) fn conv(&mut self, path: &str, channels: (usize, usize), kernel: usize) -> Result<Conv, Error> {
        let side = (kernel - 1) / 2;
        self.strided_conv(path, channels, kernel, 1, Padding { before: side, after: side })
    }

    pub(super) fn strided_conv(
        &mut self,
        path: &str,
        (input, output): (usize, usize),
        kernel: usize,
        stride: usize,
        padding: Padding,
    ) -> Result<Conv, Error> {
        let weight = self.read(&format!("{path}.weight"), &[output, input, kernel, kernel])?;
        let bias = self.bias(path, output)?;
        Conv::new(&self.place, (input, output), kernel, stride, padding, &weight, bias)
    }

    pub(super) fn group_norm(
        &mut self,
        path: &str,
        channels: usize,
        groups: usize,
        eps: f64,
    ) -> Result<GroupNorm, Error> {
        let weight = self.read(&format!("{path}.weight"), &[channels])?;
        let bias = self.bias(path, channels)?;
        GroupNorm::new(&self.place, groups, eps, weight, bias)
    }

    pub(super) fn layer_norm(&mut self, path: &str, channels: usize, eps: f32) -> Result<LayerNorm, Error> {
        let weight = self.read(&format!("{path}.weight"), &[channels])?;
        let bias = self.bias(path, channels)?;
        LayerNorm::new(&self.place, eps, weight, bias)
    }

    pub(super) fn bias(&mut self, path: &str, channels: usize) -> Result<Vec<f32>, Error> {
        self.read(&format!("{path}.bias"), &[channels])
    }
}

fn with_header(mut source: Box<dyn Source>) -> Result<(Header, Box<dyn Source>), Error> {
    let file_len = source.seek(SeekFrom::End(0))?;
    source.rewind()?;
    let mut length = [0; 8];
    if file_len >= LENGTH_BYTES {
        source.read_exact(&mut length)?;
    }
    let mut json = vec![0; parse_length(&length, file_len)? as usize];
    source.read_exact(&mut json)?;
    Ok((parse_header(&json, file_len)?, source))
}

/// `None` for a dtype that is not of weights.
fn to_f32(dtype: Dtype, bytes: &[u8]) -> Option<Vec<f32>> {
    let pairs = || bytes.as_chunks::<2>().0.iter();
    Some(match dtype {
        Dtype::F16 => pairs().map(|b| f16::from_le_bytes(*b).to_f32()).collect(),
        Dtype::BF16 => pairs().map(|b| bf16::from_le_bytes(*b).to_f32()).collect(),
        Dtype::F32 => bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
        Dtype::F64 => bytes.as_chunks::<8>().0.iter().map(|b| f64::from_le_bytes(*b) as f32).collect(),
        _ => return None,
    })
}
