//! What came out of a layer, computed again from what went into it.

use std::fmt;
use std::sync::{Mutex, PoisonError};

use candle_core::{DType, Device, Tensor};
use deltaconv_proto::code::Code;
use deltaconv_proto::objects::Objects;
use deltaconv_proto::shard::{Shape, not_finite};
use deltaconv_proto::v1::LayerPlan;
use half::f16;
use half::slice::HalfFloatSliceExt;

use crate::models::load_attention;
use crate::task::{Context, Error};
use crate::teacher::{OwnAttention, Place};

/// The layer's attention, where teachers are computed.
pub(super) struct Targets {
    /// One at a time: threads share a GPU's queue.
    attention: Mutex<OwnAttention>,
    place: Place,
    layer: String,
}

impl fmt::Debug for Targets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Targets").field("layer", &self.layer).field("place", &self.place).finish_non_exhaustive()
    }
}

impl Targets {
    /// Reads the layer's own weights from the job's teacher, and nothing else.
    ///
    /// # Errors
    /// A teacher that can't be read, or isn't the one that was planned.
    pub(super) fn load(context: &Context, layer: &LayerPlan) -> Result<Self, Error> {
        let place = context.accelerator.place(true);
        let objects = Objects::open(&context.job.teacher_url)?;
        let attention = context.wait(load_attention(&objects, &context.plan, layer, &place))?;
        Ok(Self { attention: Mutex::new(attention), place, layer: layer.name.clone() })
    }

    /// The output [h, w, c] for one sample's input, rounded as it is when it is recorded. One sample at a time, since on a GPU
    /// the batch decides how sums are cut: so the same input has the same output wherever it is computed.
    ///
    /// # Errors
    /// An output that is not finite in f16, which would teach nothing.
    pub(super) fn output(&self, input: &[f16], shape: &Shape) -> Result<Vec<f16>, Error> {
        let mut numbers = vec![0.0; input.len()];
        input.convert_to_f32_slice(&mut numbers);
        let input = Tensor::from_vec(numbers, (1, shape.height, shape.width, shape.channels), &Device::Cpu)?;
        let attention = self.attention.lock().unwrap_or_else(PoisonError::into_inner);
        let output = attention.forward(&self.place.take(&input)?)?;
        let numbers = output.to_device(&Device::Cpu)?.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
        let mut output = vec![f16::ZERO; numbers.len()];
        output.convert_from_f32_slice(&numbers);
        match not_finite(&output) {
            None => Ok(output),
            Some(at) => {
                let reason = format!("number {at} of the output that was computed of its inputs is {}", numbers[at]);
                Err(Error::Unexpected { what: format!("layer {}", self.layer), reason, code: Code::NotFinite })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use deltaconv_proto::shard::Contents;
    use deltaconv_proto::v1::JobPlan;
    use deltaconv_proto::weights::{DIFFUSERS, Files};

    use super::*;
    use crate::capture::{Maps, Recorder, Sink};
    use crate::models::{load_denoiser, read_config};
    use crate::teacher::LoadOptions;

    /// What went into and out of a layer in one pass.
    #[derive(Default)]
    struct Kept(Vec<f16>, Vec<f16>);

    impl Sink for Kept {
        fn take(&mut self, Maps { input, output, .. }: Maps<'_>) -> Result<(), Error> {
            (self.0, self.1) = (input.to_vec(), output.unwrap_or_default().to_vec());
            Ok(())
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn every_layers_output_is_computed_as_it_was_recorded() {
        for (teacher, folder, side, text) in
            [("tiny-unet", "unet", 32, [4, 64]), ("tiny-pixart", "transformer", 32, [4, 64])]
        {
            let teachers = std::path::Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../cli/teachers"));
            let folder_of_teacher = teachers.join(teacher).canonicalize().unwrap();
            let url = url::Url::from_file_path(folder_of_teacher).unwrap();
            let objects = Objects::open(url.as_str()).unwrap();
            let files = Files::find(&objects, folder, DIFFUSERS).await.unwrap();
            let (options, place) = (LoadOptions::default(), Place::default());
            let (model, _) = load_denoiser(&objects, folder, &files, &options, &place).await.unwrap();
            let layers = read_config(&objects, folder).await.unwrap().layers(side, side).unwrap();
            let mut recorder = Recorder::new(
                layers.iter().map(|layer| (layer.name.clone(), Kept::default())).collect(),
                Contents::Activations,
            );
            let normal = |dims: &[usize]| Tensor::randn(0.0_f32, 1.0, dims, &Device::Cpu).unwrap();
            let (sample, text) = (normal(&[1, 3, side, side]), normal(&[1, text[0], text[1]]));
            let timestep = Tensor::new(&[400_i64], &Device::Cpu).unwrap();
            model.forward(&sample, &timestep, &text.into(), &mut recorder).unwrap();
            let (latent_height, latent_width) = (side as u32, side as u32);
            let (denoiser_folder, header_digest) = (folder.to_owned(), files.digest.clone());
            let plan = JobPlan { denoiser_folder, header_digest, latent_height, latent_width, ..JobPlan::default() };
            for (layer, Kept(input, recorded)) in layers.iter().zip(recorder.finish().unwrap()) {
                let planned = LayerPlan { name: layer.name.clone(), ..LayerPlan::default() };
                let attention = load_attention(&objects, &plan, &planned, &place).await.unwrap();
                let targets =
                    Targets { attention: Mutex::new(attention), place: place.clone(), layer: layer.name.clone() };
                let (height, width, channels) = (layer.height, layer.width, layer.channels);
                let shape = Shape { samples: 1, height, width, channels, weighted: false };
                let computed = targets.output(&input, &shape).unwrap();
                let sum = |each: &dyn Fn(f32, f32) -> f32| -> f32 {
                    computed.iter().zip(&recorded).map(|(a, b)| each(a.to_f32(), b.to_f32())).sum()
                };
                let error = (sum(&|a, b| (a - b).powi(2)) / sum(&|_, b| b.powi(2))).sqrt();
                assert!(error < 1e-3, "{teacher} {}: {error}", layer.name);
            }
        }
    }
}
