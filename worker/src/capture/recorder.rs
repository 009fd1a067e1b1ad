use candle_core::Tensor;
use half::f16;
use half::slice::HalfFloatSliceExt;

use crate::teacher::{Call, Error, SelfAttention};

/// Keeps what goes into and out of layers, as it will be stored. What comes from a GPU is copied while the GPU goes on.
pub(crate) struct Recorder {
    layers: Vec<Recorded>,
    #[cfg(feature = "cuda")]
    on_its_way: on_gpu::OnItsWay,
}

/// The activations of one layer.
pub(crate) struct Recorded {
    /// Its name.
    pub(crate) layer: String,
    /// [n, H, W, C], flat.
    pub(crate) input: Vec<f16>,
    /// As the input.
    pub(crate) output: Vec<f16>,
}

impl Recorder {
    /// For `samples` samples of these layers, each with the numbers in one sample.
    pub(crate) fn new(layers: Vec<(String, usize)>, samples: usize) -> Self {
        let recorded = |(layer, length): (String, usize)| Recorded {
            layer,
            input: Vec::with_capacity(samples * length),
            output: Vec::with_capacity(samples * length),
        };
        Self {
            layers: layers.into_iter().map(recorded).collect(),
            #[cfg(feature = "cuda")]
            on_its_way: on_gpu::OnItsWay::default(),
        }
    }

    /// Says that a batch has gone through the model. Waits for the one before it.
    pub(crate) fn end_batch(&mut self) -> Result<(), Error> {
        #[cfg(feature = "cuda")]
        self.on_its_way.end_batch(&mut self.layers)?;
        Ok(())
    }

    /// Everything that was recorded.
    pub(crate) fn finish(mut self) -> Result<Vec<Recorded>, Error> {
        self.settle()?;
        Ok(self.layers)
    }

    /// Waits for everything.
    fn settle(&mut self) -> Result<(), Error> {
        // The last batch, and the one before it.
        self.end_batch()?;
        self.end_batch()
    }

    /// Waits for everything, and drops it. Returns how many bytes it was.
    pub(crate) fn forget(&mut self) -> Result<usize, Error> {
        self.settle()?;
        Ok(self.clear())
    }

    /// Drops what has arrived. Returns how many bytes it was.
    pub(crate) fn clear(&mut self) -> usize {
        let mut values = 0;
        for layer in &mut self.layers {
            values += layer.input.len() + layer.output.len();
            layer.input.clear();
            layer.output.clear();
        }
        values * size_of::<f16>()
    }
}

impl SelfAttention for Recorder {
    fn apply(&mut self, call: &Call<'_>) -> Result<Tensor, Error> {
        let output = call.attention()?;
        let Some(index) = self.layers.iter().position(|recorded| recorded.layer == call.layer.name) else {
            return Ok(output);
        };
        #[cfg(feature = "cuda")]
        if output.device().is_cuda() {
            self.on_its_way.push(index, call.input, &output)?;
            return Ok(output);
        }
        append(&mut self.layers[index].input, call.input)?;
        append(&mut self.layers[index].output, &output)?;
        Ok(output)
    }
}

fn append(values: &mut Vec<f16>, tensor: &Tensor) -> Result<(), Error> {
    let from = tensor.flatten_all()?.to_vec1::<f32>()?;
    let start = values.len();
    values.resize(start + from.len(), f16::ZERO);
    values[start..].convert_from_f32_slice(&from);
    Ok(())
}

#[cfg(feature = "cuda")]
mod on_gpu {
    use candle_core::Tensor;
    use deltaconv_kernels::cuda::teacher::{Download, Queue};
    use half::f16;
    use rayon::prelude::*;

    use super::Recorded;
    use crate::teacher::Error;

    /// Two batches: the one that goes through the model, and the one before it, which may still be copied.
    #[derive(Default)]
    pub(super) struct OnItsWay {
        current: Batch,
        before: Batch,
    }

    #[derive(Default)]
    struct Batch {
        download: Option<Download>,
        /// The layers of the pushes, which are two for each: input and output.
        layers: Vec<usize>,
    }

    impl OnItsWay {
        pub(super) fn push(&mut self, layer: usize, input: &Tensor, output: &Tensor) -> Result<(), Error> {
            let Batch { download, layers } = &mut self.current;
            let download = match download {
                Some(download) => download,
                None => download.insert(Download::new(&Queue::of(input.device())?)?),
            };
            download.push(input)?;
            download.push(output)?;
            layers.push(layer);
            Ok(())
        }

        /// Appends the batch before to what was recorded, and lets the current one take its place.
        pub(super) fn end_batch(&mut self, recorded: &mut [Recorded]) -> Result<(), Error> {
            if let Some(download) = &mut self.before.download {
                let copies = download.wait()?;
                let pairs = self.before.layers.iter().zip(copies.as_chunks::<2>().0);
                let mut of_layer: Vec<Vec<&[&[f16]; 2]>> = vec![Vec::new(); recorded.len()];
                for (layer, pair) in pairs {
                    of_layer[*layer].push(pair);
                }
                recorded.par_iter_mut().zip(of_layer).for_each(|(recorded, pairs)| {
                    for [input, output] in pairs {
                        recorded.input.extend_from_slice(input);
                        recorded.output.extend_from_slice(output);
                    }
                });
                self.before.layers.clear();
            }
            std::mem::swap(&mut self.current, &mut self.before);
            Ok(())
        }
    }
}
