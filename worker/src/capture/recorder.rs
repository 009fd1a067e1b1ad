use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use candle_core::Tensor;
#[cfg(feature = "cuda")]
use deltaconv_kernels::cuda::teacher::{Download, Queue};
use deltaconv_proto::shard::Contents;
use half::f16;
use half::slice::HalfFloatSliceExt;
use rayon::prelude::*;

use crate::task::Error;
use crate::teacher::{self, Call, SelfAttention};

/// Batches at a time: one goes through the model, one is copied to the host, one is taken by the sinks.
const BATCHES: usize = 3;

/// What is recorded of a layer in one batch.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Maps<'a> {
    /// What went in. [B, H, W, C], flat.
    pub(crate) input: &'a [f16],
    /// What came out, where that is recorded. [B, H, W, C], flat.
    pub(crate) output: Option<&'a [f16]>,
    /// What the model multiplies that by, where it does. [B, C], flat.
    pub(crate) gates: Option<&'a [f16]>,
    /// How much each sample counts in training: what differences are multiplied by. [B].
    pub(crate) importance: &'a [f32],
}

/// Takes what is recorded of one layer. Works on a thread beside the model's.
pub(crate) trait Sink: Send + 'static {
    /// The next batch.
    fn take(&mut self, maps: Maps<'_>) -> Result<(), Error>;
}

/// Gives what goes into and out of layers to a sink for each, as it will be stored, while the model goes on.
pub(crate) struct Recorder<S> {
    names: Vec<String>,
    contents: Contents,
    current: Batch,
    on_their_way: usize,
    /// To the thread of the sinks, which ends when there is nobody to fill batches.
    filled: Sender<Batch>,
    taken: Receiver<Result<Batch, Error>>,
    thread: JoinHandle<Vec<S>>,
}

/// What was recorded in one pass.
#[derive(Default)]
struct Batch {
    /// The layers, in the order in which they came, and whether a gate came with each.
    layers: Vec<(usize, bool)>,
    /// How much each of its samples counts, [B] f32, where that is computed.
    importance: Option<Tensor>,
    /// Their inputs and outputs, or inputs alone, and gates, where they were computed on the processor.
    host: Vec<Vec<f16>>,
    /// The same on their way from a GPU.
    #[cfg(feature = "cuda")]
    download: Option<Download>,
}

impl<S: Sink> Recorder<S> {
    /// Records these layers.
    pub(crate) fn new(layers: Vec<(String, S)>, contents: Contents) -> Self {
        let (names, mut sinks): (Vec<String>, Vec<S>) = layers.into_iter().unzip();
        let (filled, batches) = channel::<Batch>();
        let (done, taken) = channel();
        let thread = std::thread::spawn(move || {
            for mut batch in batches {
                let result = batch.give_to(&mut sinks, contents);
                if done.send(result.map(|()| batch)).is_err() {
                    break;
                }
            }
            sinks
        });
        Self { names, contents, current: Batch::default(), on_their_way: 0, filled, taken, thread }
    }

    /// Records what goes into a layer and `output`, which should come out of it, [B, H, W, C], if it is one of those that are
    /// recorded.
    pub(crate) fn record(&mut self, call: &Call<'_>, output: &Tensor) -> Result<(), teacher::Error> {
        let Some(index) = self.names.iter().position(|name| *name == call.layer.name) else { return Ok(()) };
        let gate = call.gate()?;
        let mut maps = vec![call.input];
        maps.extend((self.contents == Contents::Activations).then_some(output));
        maps.extend(&gate);
        self.current.push((index, gate.is_some()), &maps)
    }

    /// Says that a batch has gone through the model, and how much each of its samples counts, [B] f32. Waits where too many are
    /// still on their way.
    ///
    /// # Errors
    /// What kept a batch before from being taken.
    pub(crate) fn end_batch(&mut self, importance: Option<Tensor>) -> Result<(), Error> {
        if self.current.layers.is_empty() {
            return Ok(());
        }
        self.current.importance = importance;
        let next = if self.on_their_way + 1 < BATCHES { Batch::default() } else { self.wait()? };
        // The thread is gone only after a panic, which the next wait reports.
        let _ = self.filled.send(std::mem::replace(&mut self.current, next));
        self.on_their_way += 1;
        Ok(())
    }

    /// Waits until everything is taken.
    pub(crate) fn settle(&mut self) -> Result<(), Error> {
        self.end_batch(None)?;
        while self.on_their_way > 0 {
            self.current = self.wait()?;
        }
        Ok(())
    }

    /// The sinks in the order of the layers, after everything is taken.
    pub(crate) fn finish(mut self) -> Result<Vec<S>, Error> {
        self.settle()?;
        drop(self.filled);
        self.thread.join().map_err(|_| gone())
    }

    /// A batch that was taken, to be filled again.
    fn wait(&mut self) -> Result<Batch, Error> {
        self.on_their_way -= 1;
        self.taken.recv().map_err(|_| gone())?
    }
}

fn gone() -> Error {
    candle_core::Error::Msg("the thread that keeps activations is gone".to_owned()).into()
}

impl<S: Sink> SelfAttention for Recorder<S> {
    fn apply(&mut self, call: &Call<'_>) -> Result<Tensor, teacher::Error> {
        let output = call.attention()?;
        self.record(call, &output)?;
        Ok(output)
    }
}

impl Batch {
    fn push(&mut self, layer: (usize, bool), maps: &[&Tensor]) -> Result<(), teacher::Error> {
        self.layers.push(layer);
        for map in maps {
            #[cfg(feature = "cuda")]
            if map.device().is_cuda() {
                let download = match &mut self.download {
                    Some(download) => download,
                    none => none.insert(Download::new(&Queue::of(map.device())?)?),
                };
                download.push(map)?;
                continue;
            }
            self.host.push(halves(map)?);
        }
        Ok(())
    }

    /// Gives every layer's activations to its sink, and is empty then.
    fn give_to<S: Sink>(&mut self, sinks: &mut [S], contents: Contents) -> Result<(), Error> {
        #[cfg(feature = "cuda")]
        let downloaded = self.download.as_mut().map(Download::wait).transpose()?.unwrap_or_default();
        #[cfg(not(feature = "cuda"))]
        let downloaded: Vec<&[f16]> = Vec::new();
        // Read here, where nobody waits for a GPU with the next batch at hand.
        let importance = self.importance.take().map(|importance| importance.to_vec1()).transpose()?.unwrap_or_default();
        let maps: Vec<&[f16]> = self.host.iter().map(|map| &map[..]).chain(downloaded).collect();
        let mut of_layer: Vec<Vec<Maps<'_>>> = vec![Vec::new(); sinks.len()];
        let mut rest = maps.into_iter();
        for (layer, is_gated) in &self.layers {
            let Some(input) = rest.next() else { break };
            let output = if contents == Contents::Activations { rest.next() } else { None };
            let gates = if *is_gated { rest.next() } else { None };
            of_layer[*layer].push(Maps { input, output, gates, importance: &importance });
        }
        let give = |(sink, calls): (&mut S, Vec<Maps<'_>>)| calls.into_iter().try_for_each(|maps| sink.take(maps));
        sinks.par_iter_mut().zip(of_layer).try_for_each(give)?;
        self.layers.clear();
        self.host.clear();
        Ok(())
    }
}

fn halves(tensor: &Tensor) -> Result<Vec<f16>, teacher::Error> {
    let numbers = tensor.flatten_all()?.to_vec1::<f32>()?;
    let mut halves = vec![f16::ZERO; numbers.len()];
    halves.convert_from_f32_slice(&numbers);
    Ok(halves)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::PathBuf;

    use candle_core::Device;
    use deltaconv_proto::teacher::Teacher;

    use super::*;
    use crate::teacher::{Denoiser, LoadOptions, Weights};

    /// Keeps everything, up to so many batches.
    #[derive(Default)]
    struct Kept {
        batches: Vec<(Vec<f16>, Option<Vec<f16>>)>,
        most: usize,
    }

    impl Sink for Kept {
        fn take(&mut self, Maps { input, output, gates, importance }: Maps<'_>) -> Result<(), Error> {
            assert_eq!((gates, importance), (None, &[0.5][..]), "a UNet has no gates");
            if self.batches.len() == self.most {
                return Err(Error::Incomplete("room"));
            }
            self.batches.push((input.to_vec(), output.map(<[f16]>::to_vec)));
            Ok(())
        }
    }

    #[test]
    fn every_batch_of_a_layer_is_taken_in_order_and_a_sinks_error_ends_the_recording() {
        let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../cli/teachers/tiny-unet/unet");
        let config = Teacher::parse(&fs::read(folder.join("config.json")).unwrap()).unwrap();
        let mut weights = Weights::open([folder.join("diffusion_pytorch_model.safetensors")]).unwrap();
        let model = Denoiser::load(&config, &mut weights, &LoadOptions::default()).unwrap();
        let layers = config.layers(32, 32).unwrap();
        let text = Tensor::ones((1, 4, 64), candle_core::DType::F32, &Device::Cpu).unwrap();
        let record = |timesteps: &[i64], contents, most| -> Result<Vec<Kept>, Error> {
            // The last layer first, and not all of them.
            let wanted = [&layers[layers.len() - 1], &layers[0]];
            let kept = || Kept { most, ..Kept::default() };
            let mut recorder = Recorder::new(wanted.map(|layer| (layer.name.clone(), kept())).into(), contents);
            for timestep in timesteps {
                let sample = Tensor::ones((1, 3, 32, 32), candle_core::DType::F32, &Device::Cpu).unwrap();
                let timestep = Tensor::new(&[*timestep], &Device::Cpu).unwrap();
                model.forward(&sample, &timestep, &text.clone().into(), &mut recorder)?;
                recorder.end_batch(Some(Tensor::new(&[0.5_f32], &Device::Cpu)?))?;
            }
            recorder.finish()
        };
        let timesteps = [17, 801, 3, 500];
        let [last, first] = &record(&timesteps, Contents::Activations, 4).unwrap()[..] else { panic!("two sinks") };
        for (kept, layer) in [(last, &layers[layers.len() - 1]), (first, &layers[0])] {
            let length = layer.height * layer.width * layer.channels;
            let lengths = kept.batches.iter().map(|(input, output)| (input.len(), output.as_ref().map(Vec::len)));
            assert!(lengths.eq(vec![(length, Some(length)); 4]));
        }
        for (index, timestep) in timesteps.iter().enumerate() {
            let alone = record(&[*timestep], Contents::Activations, 1).unwrap();
            assert!(alone[0].batches[0] == last.batches[index] && alone[1].batches[0] == first.batches[index]);
            let inputs = record(&[*timestep], Contents::Inputs, 1).unwrap();
            assert!(inputs[1].batches[0] == (first.batches[index].0.clone(), None));
        }
        assert!(matches!(record(&timesteps, Contents::Activations, 2), Err(Error::Incomplete("room"))));
    }
}
