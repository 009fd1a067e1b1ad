//! The block and its gradients against vectors computed by PyTorch: one trial for each entry of
//! `blocks.json` in the folder that `DELTACONV_GOLDEN` names, or else in `tests/golden`.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use deltaconv_kernels::cpu::{Workspace, forward, loss_and_gradient};
use deltaconv_kernels::{BlockShape, Gate, Parameters};
use libtest_mimic::{Arguments, Failed, Trial};

/// Largest ‖ours − theirs‖ / ‖theirs‖.
const TOLERANCE: f64 = 1e-5;

#[derive(serde::Deserialize)]
struct Entry {
    file: String,
    batch: usize,
    height: usize,
    width: usize,
    channels: usize,
    kernel_size: usize,
    scales: Vec<f64>,
    gate: String,
}

fn main() {
    let folder = std::env::var_os("DELTACONV_GOLDEN")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden"), PathBuf::from);
    let trials = match entries(&folder.join("blocks.json")) {
        Ok(entries) => entries.into_iter().map(|entry| trial(&folder, entry)).collect(),
        // A folder without its list must not pass as one without entries.
        Err(failure) => vec![Trial::test("golden_blocks.json", || Err(failure))],
    };
    libtest_mimic::run(&Arguments::from_args(), trials).exit();
}

fn entries(list: &Path) -> Result<Vec<Entry>, Failed> {
    let text = std::fs::read_to_string(list).map_err(|error| format!("{}: {error}", list.display()))?;
    let entries: Vec<Entry> = serde_json::from_str(&text).map_err(|error| format!("{}: {error}", list.display()))?;
    if entries.is_empty() {
        return Err(format!("{} lists no blocks", list.display()).into());
    }
    Ok(entries)
}

fn trial(folder: &Path, entry: Entry) -> Trial {
    let path = folder.join(&entry.file);
    Trial::test(format!("golden_{}", entry.file), move || compare(&path, &entry))
}

fn compare(path: &Path, entry: &Entry) -> Result<(), Failed> {
    let tensors =
        candle_core::safetensors::load(path, &Device::Cpu).map_err(|error| format!("{}: {error}", path.display()))?;
    let gate = match entry.gate.as_str() {
        "scaled" => Gate::Scaled,
        "sigmoid" => Gate::Sigmoid,
        other => return Err(format!("no gate is called `{other}`").into()),
    };
    let inner = tensor(&tensors, "conv_up.bias")?.len();
    let ratio = inner as f64 / entry.channels as f64;
    let shape = BlockShape::new(entry.channels, ratio, entry.kernel_size, entry.scales.clone(), gate)?;
    let mut parameters = Parameters::zeros(&shape);
    for expected in shape.tensors() {
        let found = tensors.get(&expected.name).map(|tensor| tensor.dims());
        if found != Some(&expected.dims[..]) {
            let (name, dims) = (&expected.name, &expected.dims);
            return Err(format!("{name} should be {dims:?}, the file has {found:?}").into());
        }
        parameters.set(&expected.name, &tensor(&tensors, &expected.name)?)?;
    }

    let size = [entry.batch, entry.height, entry.width];
    let x = tensor(&tensors, "x")?;
    let target = tensor(&tensors, "target")?;
    let mut y = vec![f32::NAN; x.len()];
    let mut x_gradient = vec![f32::NAN; x.len()];
    let mut gradients = parameters.zeros_like();
    gradients.values_mut().fill(f32::NAN);
    let mut workspace = Workspace::default();
    forward(&shape, &parameters, &x, size, &mut y, &mut workspace)?;
    let loss = loss_and_gradient(
        &shape,
        &parameters,
        &x,
        target[..].into(),
        size,
        1.0,
        &mut gradients,
        Some(&mut x_gradient),
        &mut workspace,
    )?;

    let mut wrong = Vec::new();
    let mut check = |name: &str, ours: &[f32]| -> Result<(), Failed> {
        let error = relative_error(ours, &tensor(&tensors, name)?);
        if error > TOLERANCE || error.is_nan() {
            wrong.push(format!("{name} is off by {error:.2e}"));
        }
        Ok(())
    };
    check("y", &y)?;
    check("loss", &[loss as f32])?;
    check("grad.x", &x_gradient)?;
    for (expected, values) in gradients.iter() {
        check(&format!("grad.{}", expected.name), values)?;
    }
    if wrong.is_empty() { Ok(()) } else { Err(wrong.join("; ").into()) }
}

fn tensor(tensors: &HashMap<String, Tensor>, name: &str) -> Result<Vec<f32>, Failed> {
    let tensor = tensors.get(name).ok_or_else(|| format!("the file has no tensor `{name}`"))?;
    Ok(tensor.flatten_all()?.to_vec1()?)
}

fn relative_error(ours: &[f32], theirs: &[f32]) -> f64 {
    if ours.len() != theirs.len() {
        return f64::NAN;
    }
    let square = |value: f64| value * value;
    let pairs = ours.iter().zip(theirs);
    let difference: f64 = pairs.map(|(&a, &b)| square(f64::from(a) - f64::from(b))).sum();
    let norm: f64 = theirs.iter().map(|&b| square(f64::from(b))).sum();
    (difference / norm).sqrt()
}
