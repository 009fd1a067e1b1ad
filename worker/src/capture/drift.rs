//! What a round after the first records: of each layer, what goes into it in the student, and what would bring the student's
//! residual stream back to the teacher's.
//!
//! With the residual stream h before a layer, of teacher T and student S, the layer's output o and its gate g (1 where the
//! model has none), the stream behind the layer is h + g·o. A block that takes the student to where the teacher is gives
//! o_T + (h_T − h_S) / g. Where the gate is near 0 nothing that a block gives moves the stream, so 1/g is damped there, and
//! training counts each difference times its gate.

use std::collections::BTreeMap;

use candle_core::{DType, Tensor};

use super::recorder::{Recorder, Sink};
use crate::blocks::{Blocks, InPlace};
use crate::teacher::{Call, Error, SelfAttention};

/// 1/g is taken as g / (g² + δ²), with δ² this share of the mean of g² over the channels.
const DAMPING: f64 = 1e-3;

/// Where the teacher stands at each layer, for one batch.
#[derive(Default)]
pub(super) struct Reached {
    layers: BTreeMap<String, At>,
}

struct At {
    residual: Tensor,
    output: Tensor,
}

/// The teacher's pass, which is remembered.
impl SelfAttention for Reached {
    fn apply(&mut self, call: &Call<'_>) -> Result<Tensor, Error> {
        let output = call.attention()?;
        let at = At { residual: call.residual.clone(), output: output.clone() };
        self.layers.insert(call.layer.name.clone(), at);
        Ok(output)
    }
}

/// The student's pass, which is recorded.
pub(super) struct Recorded<'a, S> {
    pub(super) blocks: &'a Blocks,
    pub(super) reached: Reached,
    pub(super) recorder: &'a mut Recorder<S>,
}

impl<S: Sink> SelfAttention for Recorded<'_, S> {
    fn apply(&mut self, call: &Call<'_>) -> Result<Tensor, Error> {
        let output = InPlace(self.blocks).apply(call)?;
        if let Some(at) = self.reached.layers.remove(&call.layer.name) {
            let target = target(&at, call)?;
            self.recorder.record(call, &target)?;
        }
        Ok(output)
    }
}

fn target(at: &At, call: &Call<'_>) -> Result<Tensor, Error> {
    let f32 = |x: &Tensor| x.to_dtype(DType::F32);
    let drift = f32(&at.residual)?.sub(&f32(call.residual)?)?;
    let drift = match call.gate()? {
        None => drift,
        Some(gate) => {
            let squares = gate.sqr()?;
            let damping = squares.mean_keepdim(3)?.affine(DAMPING, 0.0)?;
            drift.broadcast_mul(&gate.div(&squares.broadcast_add(&damping)?)?)?
        }
    };
    Ok(f32(&at.output)?.add(&drift)?)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::PathBuf;

    use candle_core::Device;
    use deltaconv_proto::shard::Contents;
    use deltaconv_proto::teacher::{Layer, Teacher};
    use half::f16;

    use super::super::recorder::Maps;
    use super::*;
    use crate::teacher::{Denoiser, LoadOptions, Weights};

    /// Replaces the layers' outputs by half of them, and checks what would have been recorded against where the teacher is.
    struct Half<'a> {
        reached: &'a Reached,
        layers: &'a [Layer],
        seen: usize,
    }

    impl SelfAttention for Half<'_> {
        fn apply(&mut self, call: &Call<'_>) -> Result<Tensor, Error> {
            let output = call.attention()?;
            let at = &self.reached.layers[&call.layer.name];
            let target = target(at, call)?;
            let behind = |residual: &Tensor, output: &Tensor| match call.gate()? {
                None => Ok::<_, Error>(residual.add(output)?),
                Some(gate) => Ok(residual.add(&output.broadcast_mul(&gate)?)?),
            };
            let size = |x: Tensor| x.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap();
            let expected = behind(&at.residual, &at.output)?;
            let missed = size(expected.sub(&behind(call.residual, &target)?)?);
            let drift = size(at.residual.sub(call.residual)?);
            let limit = if call.gate()?.is_some() { 0.03 } else { 1e-6 };
            assert!(missed <= limit * drift + 1e-9, "{}: {missed} of {drift}", call.layer.name);
            assert_eq!(self.seen == 0, drift == 0.0, "the student leaves the teacher behind its first layer");
            assert_eq!(call.layer.name, self.layers[self.seen].name);
            self.seen += 1;
            Ok(output.affine(0.5, 0.0)?)
        }
    }

    fn passes(name: &str, folder: &str) {
        let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../cli/teachers").join(name).join(folder);
        let config = Teacher::parse(&fs::read(folder.join("config.json")).unwrap()).unwrap();
        let mut weights = Weights::open([folder.join("diffusion_pytorch_model.safetensors")]).unwrap();
        let model = Denoiser::load(&config, &mut weights, &LoadOptions::default()).unwrap();
        let (height, width) = config.sample_size().unwrap();
        let layers = config.layers(height, width).unwrap();
        let numbers = |len: usize| (0..len).map(|i| ((i * 7919) % 1000) as f32 / 500.0 - 1.0).collect::<Vec<f32>>();
        let channels = config.latent_channels();
        let dims = (2, channels, height, width);
        let sample = Tensor::from_vec(numbers(2 * channels * height * width), dims, &Device::Cpu).unwrap();
        let text = Tensor::from_vec(numbers(2 * 4 * 64), (2, 4, 64), &Device::Cpu).unwrap();
        let timestep = Tensor::new(&[300_i64, 700], &Device::Cpu).unwrap();
        let mut reached = Reached::default();
        model.forward(&sample, &timestep, &text.clone().into(), &mut reached).unwrap();
        assert_eq!(reached.layers.len(), layers.len());
        let mut half = Half { reached: &reached, layers: &layers, seen: 0 };
        model.forward(&sample, &timestep, &text.into(), &mut half).unwrap();
        assert_eq!(half.seen, layers.len());
    }

    #[test]
    fn a_block_that_gives_its_target_brings_the_stream_to_the_teachers() {
        passes("tiny-unet", "unet");
        passes("tiny-pixart", "transformer");
    }

    #[test]
    fn a_student_that_is_the_teacher_is_given_the_teachers_outputs() {
        struct Kept(Vec<(Vec<f16>, Vec<f16>)>);
        impl Sink for Kept {
            fn take(&mut self, maps: Maps<'_>) -> Result<(), crate::task::Error> {
                self.0.push((maps.input.to_vec(), maps.output.expect("targets").to_vec()));
                Ok(())
            }
        }
        let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../cli/teachers/tiny-unet/unet");
        let config = Teacher::parse(&fs::read(folder.join("config.json")).unwrap()).unwrap();
        let mut weights = Weights::open([folder.join("diffusion_pytorch_model.safetensors")]).unwrap();
        let model = Denoiser::load(&config, &mut weights, &LoadOptions::default()).unwrap();
        let layers = config.layers(32, 32).unwrap();
        let sample = Tensor::ones((1, 3, 32, 32), DType::F32, &Device::Cpu).unwrap();
        let text = Tensor::ones((1, 4, 64), DType::F32, &Device::Cpu).unwrap();
        let timestep = Tensor::new(&[300_i64], &Device::Cpu).unwrap();
        let sinks = || layers.iter().map(|layer| (layer.name.clone(), Kept(Vec::new()))).collect();
        let mut plain = Recorder::new(sinks(), Contents::Activations);
        model.forward(&sample, &timestep, &text.clone().into(), &mut plain).unwrap();
        let mut reached = Reached::default();
        model.forward(&sample, &timestep, &text.clone().into(), &mut reached).unwrap();
        let mut recorder = Recorder::new(sinks(), Contents::Activations);
        let blocks = Blocks::new();
        let mut recorded = Recorded { blocks: &blocks, reached, recorder: &mut recorder };
        model.forward(&sample, &timestep, &text.into(), &mut recorded).unwrap();
        for (expected, found) in plain.finish().unwrap().iter().zip(recorder.finish().unwrap()) {
            assert!(!found.0.is_empty() && expected.0 == found.0);
        }
    }
}
