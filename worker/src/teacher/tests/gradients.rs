//! Gradients that go back through whole models, against differences of what they predict.

use std::collections::BTreeMap;

use candle_core::Var;

use super::*;
use crate::teacher::Denoiser;

/// Adds a variable to each layer's output.
#[derive(Default)]
struct Moved {
    variables: BTreeMap<String, Var>,
}

impl SelfAttention for Moved {
    fn apply(&mut self, call: &Call<'_>) -> Result<Tensor, Error> {
        let output = call.attention()?;
        let zero = || Var::zeros(output.shape(), output.dtype(), output.device());
        let variable = match self.variables.get(&call.layer.name) {
            Some(variable) => variable,
            None => self.variables.entry(call.layer.name.clone()).or_insert(zero()?),
        };
        Ok(output.add(variable)?)
    }
}

/// Moves one layer's output, without a graph.
struct Shifted<'a> {
    layer: &'a str,
    by: &'a Tensor,
}

impl SelfAttention for Shifted<'_> {
    fn apply(&mut self, call: &Call<'_>) -> Result<Tensor, Error> {
        let output = call.attention()?;
        if call.layer.name == self.layer { Ok(output.add(self.by)?) } else { Ok(output) }
    }
}

/// What a layer's output does to Σ c · ε, with c any numbers, is found from the gradient as from differences of ε.
fn check(model: &Denoiser, size: [usize; 4], text: [usize; 3]) {
    let (sample, timestep) = (numbers(&size), Tensor::new(&[31_i64, 640], &Device::Cpu).unwrap());
    let conditions = numbers(&text).into();
    let sum = |attention: &mut dyn SelfAttention| {
        let noise = model.forward(&sample, &timestep, &conditions, attention).unwrap();
        let factors = numbers(noise.dims()).affine(1.0, 0.3).unwrap();
        noise.mul(&factors).unwrap()
    };
    let mut moved = Moved::default();
    let gradients = sum(&mut moved).sum_all().unwrap().backward().unwrap();
    assert!(moved.variables.len() > 2);
    for (layer, variable) in &moved.variables {
        let gradient = gradients.get(variable).unwrap_or_else(|| panic!("{layer} has no gradient"));
        // Along the gradient itself, where the sum moves most, as far as f32 shows it well.
        let norm = gradient.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap().sqrt();
        let step = 0.001 / f64::from(norm) * (gradient.elem_count() as f64).sqrt();
        let along = |steps: f64| {
            let by = &gradient.affine(steps * step, 0.0).unwrap();
            let values: Vec<f32> = sum(&mut Shifted { layer, by }).flatten_all().unwrap().to_vec1().unwrap();
            values.into_iter().map(f64::from).sum::<f64>()
        };
        let difference = (along(1.0) - along(-1.0)) / 2.0;
        let expected = f64::from(norm).powi(2) * step;
        assert!((difference / expected - 1.0).abs() < 1e-2, "{layer}: {expected} expected, found {difference}");
    }
}

#[test]
fn gradients_are_those_of_what_a_model_predicts() {
    check(&Denoiser::UNet(Box::new(shipped())), [2, 3, 32, 32], [2, 4, 64]);

    let (config, bytes) = unusual();
    let mut weights = Weights::default();
    weights.add_bytes(bytes).unwrap();
    let unusual = UNet::load(&config, &mut weights, &LoadOptions::default()).unwrap();
    check(&Denoiser::UNet(Box::new(unusual)), [2, 5, 7, 10], [2, 3, 8]);

    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../cli/teachers/tiny-pixart/transformer");
    let config = Teacher::parse(&fs::read(folder.join("config.json")).unwrap()).unwrap();
    let mut weights = Weights::open([folder.join("diffusion_pytorch_model.safetensors")]).unwrap();
    let pixart = Denoiser::load(&config, &mut weights, &LoadOptions::default()).unwrap();
    check(&pixart, [2, 3, 32, 32], [2, 4, 64]);
}
