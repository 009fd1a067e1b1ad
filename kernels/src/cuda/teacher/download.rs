use std::sync::Arc;

use candle_core::Tensor;
use cudarc::driver::{CudaStream, PinnedHostSlice, result};
use half::f16;

use super::super::gpu::{Source, failed};
use super::super::product::Type;
use super::super::weights::suffix;
use super::queue::{Queue, blocks_over, operand, start};
use crate::error::Result;

/// Tensors on their way to host memory, as f16, while the queue goes on. Buffers are page-locked, and used again.
#[derive(Debug)]
pub struct Download {
    queue: Arc<Queue>,
    /// Where copies run.
    stream: Arc<CudaStream>,
    buffers: Vec<PinnedHostSlice<f16>>,
    /// What is being copied: kept until it is, so that nothing is written over it.
    tensors: Vec<Tensor>,
}

impl Download {
    /// A download with nothing on its way.
    ///
    /// # Errors
    /// A driver that has no stream left.
    pub fn new(queue: &Arc<Queue>) -> Result<Self> {
        let stream = queue.gpu.context.new_stream().map_err(failed("opening a stream"))?;
        Ok(Self { queue: queue.clone(), stream, buffers: Vec::new(), tensors: Vec::new() })
    }

    /// Starts the copy of a tensor, rounded to f16: numbers past its range become infinite.
    ///
    /// # Errors
    /// A tensor of another dtype than a teacher's, or not contiguous; too little host memory.
    pub fn push(&mut self, x: &Tensor) -> Result<()> {
        let halves = self.as_f16(x)?;
        let values = halves.elem_count();
        let index = self.tensors.len();
        match self.buffers.get_mut(index) {
            Some(buffer) if buffer.len() >= values => {}
            Some(buffer) => {
                let small = std::mem::replace(buffer, self.queue.buffer(values)?);
                self.queue.keep([small]);
            }
            None => self.buffers.push(self.queue.buffer(values)?),
        }
        let at = operand(&halves, "x")?.0.at;
        let what = "copying activations to the host";
        self.stream.join(&self.queue.stream).map_err(failed(what))?;
        let buffer = self.buffers[index].as_mut_slice().map_err(failed(what))?;
        // SAFETY: the tensor has so many values, and it and the buffer live until the copy has ended: nobody is given the
        // buffer before, and the tensor is kept.
        unsafe { result::memcpy_dtoh_async(&mut buffer[..values], at, self.stream.cu_stream()) }
            .map_err(failed(what))?;
        self.tensors.push(halves);
        Ok(())
    }

    /// Waits for the copies and gives them in the order of their pushes. The next push begins anew.
    ///
    /// # Errors
    /// A failure of the device, of this or of anything that was started before.
    pub fn wait(&mut self) -> Result<Vec<&[f16]>> {
        let what = "copying activations to the host";
        self.stream.synchronize().map_err(failed(what))?;
        let mut copied = Vec::with_capacity(self.tensors.len());
        for (tensor, buffer) in self.tensors.drain(..).zip(&self.buffers) {
            copied.push(&buffer.as_slice().map_err(failed(what))?[..tensor.elem_count()]);
        }
        Ok(copied)
    }

    fn as_f16(&self, x: &Tensor) -> Result<Tensor> {
        let (view, kind) = operand(x, "x")?;
        if kind == Type::F16 {
            return Ok(x.clone());
        }
        let name = format!("to_half_{}", suffix(kind));
        let (halves, at) = self.queue.empty(&view.dims, Type::F16)?;
        let values: usize = view.dims.iter().product();
        let total = values as i64;
        let blocks = blocks_over(values.div_ceil(8));
        // SAFETY: both tensors have so many values.
        unsafe { start!(self.queue, (Source::Norms, &name), blocks, (256, 1), 0, [view.at, at, total])? };
        Ok(halves)
    }
}

impl Drop for Download {
    fn drop(&mut self) {
        // Buffers and tensors must outlive the copies. An error has nobody to go to.
        if self.stream.synchronize().is_ok() {
            self.queue.keep(self.buffers.drain(..));
        }
    }
}
