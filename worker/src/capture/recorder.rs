use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use candle_core::Tensor;
use half::f16;
use half::slice::HalfFloatSliceExt;

use crate::teacher::{Call, Error, SelfAttention};

/// Keeps what goes into and out of layers, as it will be stored. What comes from a GPU is copied while the GPU goes on.
pub(crate) struct Recorder {
    names: Vec<String>,
    layers: Arc<Mutex<Vec<Recorded>>>,
    /// Whether batches are appended to those before them, or take their place.
    keep: bool,
    /// From the first activations on that come from a GPU.
    #[cfg(feature = "cuda")]
    from_gpu: Option<from_gpu::FromGpu>,
}

/// The activations of one layer.
#[derive(Debug)]
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
        let names = layers.iter().map(|(layer, _)| layer.clone()).collect();
        let recorded = |(layer, length): (String, usize)| Recorded {
            layer,
            input: Vec::with_capacity(samples * length),
            output: Vec::with_capacity(samples * length),
        };
        let layers = Arc::new(Mutex::new(layers.into_iter().map(recorded).collect()));
        Self {
            names,
            layers,
            keep: true,
            #[cfg(feature = "cuda")]
            from_gpu: None,
        }
    }

    /// As [`Self::new`], for batches that take the place of those before them.
    pub(crate) fn of_last_batch(layers: Vec<(String, usize)>, batch: usize) -> Self {
        Self { keep: false, ..Self::new(layers, batch) }
    }

    /// Says that a batch has gone through the model. Waits where too many are still on their way.
    pub(crate) fn end_batch(&mut self) -> Result<(), Error> {
        #[cfg(feature = "cuda")]
        if let Some(from_gpu) = &mut self.from_gpu {
            from_gpu.end_batch()?;
        }
        Ok(())
    }

    /// Everything that was recorded.
    pub(crate) fn finish(mut self) -> Result<Vec<Recorded>, Error> {
        self.settle()?;
        Ok(std::mem::take(&mut *locked(&self.layers)))
    }

    /// Bytes that are recorded.
    pub(crate) fn bytes(&self) -> usize {
        locked(&self.layers).iter().map(|layer| (layer.input.len() + layer.output.len()) * size_of::<f16>()).sum()
    }

    /// Waits for everything.
    pub(crate) fn settle(&mut self) -> Result<(), Error> {
        #[cfg(feature = "cuda")]
        if let Some(from_gpu) = &mut self.from_gpu {
            from_gpu.settle()?;
        }
        Ok(())
    }
}

impl Recorded {
    /// Before a batch: drops those before it where they aren't kept.
    fn begin_batch(&mut self, keep: bool) {
        if !keep {
            self.input.clear();
            self.output.clear();
        }
    }
}

fn locked(layers: &Mutex<Vec<Recorded>>) -> MutexGuard<'_, Vec<Recorded>> {
    // A panic elsewhere ends the attempt, and what was recorded with it.
    layers.lock().unwrap_or_else(PoisonError::into_inner)
}

impl SelfAttention for Recorder {
    fn apply(&mut self, call: &Call<'_>) -> Result<Tensor, Error> {
        let output = call.attention()?;
        let Some(index) = self.names.iter().position(|name| *name == call.layer.name) else { return Ok(output) };
        #[cfg(feature = "cuda")]
        if output.device().is_cuda() {
            let from_gpu = self.from_gpu.get_or_insert_with(|| from_gpu::FromGpu::new(&self.layers, self.keep));
            from_gpu.push(index, call.input, &output)?;
            return Ok(output);
        }
        let layer = &mut locked(&self.layers)[index];
        layer.begin_batch(self.keep);
        append(&mut layer.input, call.input)?;
        append(&mut layer.output, &output)?;
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
mod from_gpu {
    use std::sync::mpsc::{Receiver, Sender, channel};
    use std::sync::{Arc, Mutex};

    use candle_core::Tensor;
    use deltaconv_kernels::cuda::teacher::{Download, Queue};
    use half::f16;
    use rayon::prelude::*;

    use super::{Recorded, locked};
    use crate::teacher::Error;

    /// Batches at a time: one goes through the model, one is copied to the host, one is appended to what was recorded.
    const BATCHES: usize = 3;

    /// A thread that appends batches while the next ones go through the model.
    pub(super) struct FromGpu {
        current: Batch,
        filled: Sender<Batch>,
        appended: Receiver<Result<Batch, Error>>,
        on_their_way: usize,
    }

    #[derive(Default)]
    struct Batch {
        download: Option<Download>,
        /// The layers of the pushes, which are two for each: input and output.
        layers: Vec<usize>,
    }

    impl FromGpu {
        /// `keep`: as [`super::Recorder`] has it.
        pub(super) fn new(recorded: &Arc<Mutex<Vec<Recorded>>>, keep: bool) -> Self {
            let (filled, batches) = channel::<Batch>();
            let (done, appended) = channel();
            let recorded = recorded.clone();
            std::thread::spawn(move || {
                // Ends when the recorder is gone.
                for mut batch in batches {
                    let result = batch.append(&recorded, keep);
                    if done.send(result.map(|()| batch)).is_err() {
                        break;
                    }
                }
            });
            Self { current: Batch::default(), filled, appended, on_their_way: 0 }
        }

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

        pub(super) fn end_batch(&mut self) -> Result<(), Error> {
            if self.current.layers.is_empty() {
                return Ok(());
            }
            let next = if self.on_their_way + 1 < BATCHES { Batch::default() } else { self.wait()? };
            // The thread is gone only after a panic, which the next wait reports.
            let _ = self.filled.send(std::mem::replace(&mut self.current, next));
            self.on_their_way += 1;
            Ok(())
        }

        pub(super) fn settle(&mut self) -> Result<(), Error> {
            self.end_batch()?;
            while self.on_their_way > 0 {
                self.current = self.wait()?;
            }
            Ok(())
        }

        /// A batch that was appended, to be filled again.
        fn wait(&mut self) -> Result<Batch, Error> {
            self.on_their_way -= 1;
            let gone = "the thread that keeps activations is gone".to_owned();
            self.appended.recv().map_err(|_| candle_core::Error::Msg(gone))?
        }
    }

    impl Batch {
        fn append(&mut self, recorded: &Mutex<Vec<Recorded>>, keep: bool) -> Result<(), Error> {
            let Some(download) = &mut self.download else { return Ok(()) };
            let copies = download.wait()?;
            let recorded = &mut *locked(recorded);
            let mut of_layer: Vec<Vec<&[&[f16]; 2]>> = vec![Vec::new(); recorded.len()];
            for (layer, pair) in self.layers.iter().zip(copies.as_chunks::<2>().0) {
                of_layer[*layer].push(pair);
            }
            recorded.par_iter_mut().zip(of_layer).for_each(|(recorded, pairs)| {
                recorded.begin_batch(keep);
                for [input, output] in pairs {
                    recorded.input.extend_from_slice(input);
                    recorded.output.extend_from_slice(output);
                }
            });
            self.layers.clear();
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::PathBuf;

    use candle_core::Device;
    use deltaconv_proto::teacher::Teacher;

    use super::*;
    use crate::teacher::{Denoiser, LoadOptions, Weights};

    #[test]
    fn batches_are_kept_or_take_each_others_place() {
        let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../cli/teachers/tiny-unet/unet");
        let config = Teacher::parse(&fs::read(folder.join("config.json")).unwrap()).unwrap();
        let mut weights = Weights::open([folder.join("diffusion_pytorch_model.safetensors")]).unwrap();
        let model = Denoiser::load(&config, &mut weights, &LoadOptions::default()).unwrap();
        let layer = config.layers(32, 32).unwrap().swap_remove(0);
        let length = layer.height * layer.width * layer.channels;
        let layers = || vec![(layer.name.clone(), length)];
        let sample = Tensor::ones((1, 3, 32, 32), candle_core::DType::F32, &Device::Cpu).unwrap();
        let text = Tensor::ones((1, 4, 64), candle_core::DType::F32, &Device::Cpu).unwrap();
        let run = |mut recorder: Recorder| {
            for timestep in [17_i64, 801] {
                let timestep = Tensor::new(&[timestep], &Device::Cpu).unwrap();
                model.forward(&sample, &timestep, &text.clone().into(), &mut recorder).unwrap();
                recorder.end_batch().unwrap();
            }
            recorder.finish().unwrap().swap_remove(0)
        };
        let (both, last) = (run(Recorder::new(layers(), 2)), run(Recorder::of_last_batch(layers(), 1)));
        assert_eq!((both.input.len(), both.output.len()), (2 * length, 2 * length));
        assert!(both.input[..length] != both.input[length..]);
        assert!(last.input == both.input[length..] && last.output == both.output[length..]);
    }
}
