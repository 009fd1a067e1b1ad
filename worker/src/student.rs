//! The converted model, from the folder that assembly wrote.

use std::sync::Arc;

use deltaconv_kernels::{BlockOp, Parameters};
use deltaconv_proto::description::{self, Description};
use deltaconv_proto::objects::Objects;
use deltaconv_proto::teacher::Teacher;
use deltaconv_proto::v1::ObjectRef;
use deltaconv_proto::weights::{self, Files};
use deltaconv_proto::{block, keys};

use crate::blocks::{Blocks, InPlace};
use crate::distill::block_shape;
use crate::models;
use crate::task::Error;
use crate::teacher::{self, Denoiser, LoadOptions, Place, Weights};

const MAX_DESCRIPTION_BYTES: u64 = 16 << 20;

/// A model with blocks in place of attention.
pub(crate) struct Student {
    pub(crate) denoiser: Denoiser,
    blocks: Blocks,
}

impl Student {
    /// Loads the output of the job whose prefix `objects` are, from the objects that assembly has `written`, which are
    /// verified; its denoiser lies in `folder`.
    pub(crate) async fn load(
        objects: &Objects,
        folder: &str,
        written: &[ObjectRef],
        place: &Place,
    ) -> Result<Self, Error> {
        let object = |file: &str| {
            let key = format!("{}/{file}", keys::OUTPUT);
            written.iter().find(|object| object.key == key).ok_or(Error::Incomplete("converted model"))
        };
        let description = read_description(objects.url(), &objects.get_verified(object(keys::DESCRIPTION)?).await?)?;
        let config = objects.get_verified(object(&format!("{folder}/config.json"))?).await?;
        let config = Teacher::parse(&config).map_err(teacher::Error::from)?;
        let weights = object(&format!("{folder}/{}.safetensors", weights::DIFFUSERS))?;
        let mut weights = models::open_verified(objects, weights).await?.at(place);
        let denoiser = Denoiser::load(&config, &mut weights, &without_attention(&description))?;
        let blocks = read_blocks(description.layers, &mut weights)?;
        Ok(Self { denoiser, blocks })
    }

    /// Loads the converted model in `output`, of which nothing says what it should be.
    pub(crate) async fn of_model(output: &Objects, folder: &str, place: &Place) -> Result<Self, Error> {
        let json = output.get(keys::DESCRIPTION, MAX_DESCRIPTION_BYTES).await?;
        let description = read_description(output.url(), &json)?;
        let files = Files::find(output, folder, weights::DIFFUSERS).await?;
        let (denoiser, mut weights) =
            models::load_denoiser(output, folder, &files, &without_attention(&description), place).await?;
        let blocks = read_blocks(description.layers, &mut weights)?;
        Ok(Self { denoiser, blocks })
    }

    /// What takes the place of attention in [`Self::denoiser`].
    pub(crate) fn attention(&self) -> InPlace<'_> {
        InPlace(&self.blocks)
    }

    /// The blocks by layer.
    pub(crate) fn blocks(&self) -> &Blocks {
        &self.blocks
    }
}

fn read_description(url: &str, json: &[u8]) -> Result<Description, Error> {
    let what = || format!("{} of {url}", keys::DESCRIPTION);
    Description::parse(json).map_err(|e| Error::Unexpected { what: what(), reason: e.to_string(), code: e.code() })
}

fn without_attention(description: &Description) -> LoadOptions {
    LoadOptions { replaced: description.layers.iter().map(|layer| layer.name.clone()).collect() }
}

/// The blocks of a converted model, by layer.
fn read_blocks(layers: Vec<description::Layer>, weights: &mut Weights) -> Result<Blocks, Error> {
    let mut blocks = Blocks::new();
    for layer in layers {
        let plan = layer.plan();
        let shape = block_shape(&plan)?;
        let mut parameters = Parameters::zeros(&shape);
        for (name, dims) in block::tensors(&plan) {
            let values = weights.read(&format!("{}{name}", block::prefix(&layer.name)), &dims)?;
            parameters.set(&name, &values)?;
        }
        blocks.insert(layer.name, BlockOp::new(Arc::new(parameters)));
    }
    Ok(blocks)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use candle_core::{Device, Tensor};
    use deltaconv_proto::safetensors;

    use super::*;
    use crate::teacher::Conditions;

    /// Against diffusers with the loader that a converted model carries: recordings of
    /// `coordinator/tests/loader/student_golden.py`, whose blocks are random. In tiny-pixart's, two layers are kept.
    #[test]
    fn students_compute_what_diffusers_computes() {
        for (name, folder) in [("tiny-unet", "unet"), ("tiny-pixart", "transformer")] {
            let root = Path::new(env!("CARGO_MANIFEST_DIR"));
            let model = root.join("../cli/teachers").join(name).join(folder);
            let config = Teacher::parse(&fs::read(model.join("config.json")).unwrap()).unwrap();
            let mut weights = Weights::open([model.join("diffusion_pytorch_model.safetensors")]).unwrap();
            let denoiser = Denoiser::load(&config, &mut weights, &LoadOptions::default()).unwrap();

            let recording = root.join(format!("tests/golden/student-{name}.safetensors"));
            let bytes = fs::read(&recording).unwrap();
            let description = &safetensors::parse(&bytes).unwrap().0.metadata["deltaconv.json"];
            let description: Description = serde_json::from_str(description).unwrap();
            let mut weights = Weights::default();
            weights.add_bytes(bytes).unwrap();
            let blocks = read_blocks(description.layers, &mut weights).unwrap();
            let student = Student { denoiser, blocks };
            let recorded = candle_core::safetensors::load(recording, &Device::Cpu).unwrap();
            for case in ["", "wide."] {
                let of = |field: &str| &recorded[&format!("{case}{field}")];
                let conditions = Conditions::from(of("encoder_hidden_states").clone());
                let attention = &mut student.attention();
                let ours = student.denoiser.forward(of("latent"), of("timestep"), &conditions, attention).unwrap();
                let norm =
                    |tensor: &Tensor| tensor.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap().sqrt();
                let error = norm(&ours.sub(of("sample")).unwrap()) / norm(of("sample"));
                assert!(error < 1e-4, "{name} {case}: {error}");
            }
        }
    }
}
