//! The teachers against diffusers: one trial for each recorded forward pass.
//!
//! A recording `<name>.safetensors` holds the arguments of diffusers' `forward` (`latent`, `timestep`,
//! `encoder_hidden_states` and, where the model takes them, `encoder_attention_mask` [B, T] of 0 and 1, `text_embeds`
//! [B, P], `time_ids` [B, n], `resolution` [B, 2] and `aspect_ratio` [B, 1]), its output `sample`, and each layer's `<layer>.attn1.input` and `.output` [B, L, C]. The
//! model is `teachers/<name>` beside it, or the teacher of that name that ships with the binary. `DELTACONV_GOLDEN`
//! names a folder of recordings to use instead of `tests/golden`.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::{env, fs};

use candle_core::{DType, Device, Tensor};
use deltaconv_proto::teacher::{self, Teacher};
use deltaconv_worker::teacher::{Call, Conditions, Denoiser, Error, LoadOptions, SelfAttention, Weights};
use libtest_mimic::{Arguments, Completion, Failed, Trial, run};

/// Largest ‖ours − theirs‖ / ‖theirs‖.
const TOLERANCE: f64 = 1e-4;

/// Names that the noised sample goes by.
const LATENT: [&str; 4] = ["latent", "latents", "noised_sample", "hidden_states"];

fn main() -> ExitCode {
    let folder = match env::var_os("DELTACONV_GOLDEN") {
        Some(folder) => PathBuf::from(folder),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden"),
    };
    let trials = match recordings(&folder) {
        Ok(names) => names.into_iter().map(|name| trial(&folder, name)).collect(),
        Err(problem) => vec![Trial::test("golden", move || Err(problem))],
    };
    run(&Arguments::from_args(), trials).exit_code()
}

/// The recordings of a folder; those of blocks are another crate's, and those of students another test's.
fn recordings(folder: &Path) -> Result<BTreeSet<String>, Failed> {
    let entries = fs::read_dir(folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    let mut names = BTreeSet::new();
    for entry in entries {
        let path = entry?.path();
        let name = path.file_stem().and_then(OsStr::to_str).unwrap_or_default();
        if path.extension() == Some(OsStr::new("safetensors"))
            && !name.starts_with("block-")
            && !name.starts_with("student-")
        {
            names.insert(name.to_owned());
        }
    }
    match names.is_empty() {
        true => Err(format!("{} holds no recordings", folder.display()).into()),
        false => Ok(names),
    }
}

#[allow(clippy::print_stderr)] // libtest-mimic has no other place for what a trial found
fn trial(folder: &Path, name: String) -> Trial {
    let folder = folder.to_owned();
    Trial::ignorable_test(format!("golden_{name}"), move || match compare(&folder, &name)? {
        Outcome::Same { largest } => {
            eprintln!("golden_{name}: largest relative error {largest:.1e}");
            Ok(Completion::Completed)
        }
        Outcome::Skipped(reason) => {
            eprintln!("golden_{name}: skipped: {reason}");
            Ok(Completion::ignored_with(reason))
        }
    })
}

enum Outcome {
    Same { largest: f64 },
    Skipped(String),
}

fn compare(folder: &Path, name: &str) -> Result<Outcome, Failed> {
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("../cli/teachers").join(name);
    let Some(model) = [folder.join("teachers").join(name), shipped].into_iter().find(|path| path.is_dir()) else {
        return Ok(Outcome::Skipped(format!("there is no model `teachers/{name}` beside the recording")));
    };
    let model =
        ["unet", "transformer"].map(|part| model.join(part)).into_iter().find(|path| path.is_dir()).unwrap_or(model);
    let config = model.join("config.json");
    let json = fs::read(&config).map_err(|e| format!("{}: {e}", config.display()))?;
    let config = match Teacher::parse(&json) {
        Ok(config) => config,
        Err(
            refusal @ (teacher::Error::Class { .. }
            | teacher::Error::Unsupported { .. }
            | teacher::Error::UnknownField { .. }),
        ) => return Ok(Outcome::Skipped(refusal.to_string())),
        Err(error) => return Err(error.to_string().into()),
    };

    let mut recorded = candle_core::safetensors::load(folder.join(format!("{name}.safetensors")), &Device::Cpu)?;
    let theirs = layers_of(&mut recorded);
    let expected = take(&mut recorded, &["sample"])?;
    let latent = take(&mut recorded, &LATENT)?;
    let timestep = take(&mut recorded, &["timestep"])?;
    let mut conditions = Conditions::from(take(&mut recorded, &["encoder_hidden_states"])?);
    conditions.encoder_attention_mask = recorded.remove("encoder_attention_mask");
    conditions.text_embeds = recorded.remove("text_embeds");
    conditions.time_ids = recorded.remove("time_ids");
    conditions.resolution = recorded.remove("resolution");
    conditions.aspect_ratio = recorded.remove("aspect_ratio");
    if let Some(argument) = recorded.keys().min() {
        return Ok(Outcome::Skipped(format!("the argument `{argument}` is not supported")));
    }

    let mut weights = Weights::open(weights_of(&model)?)?;
    let model = Denoiser::load(&config, &mut weights, &LoadOptions::default())?;
    let mut ours = Recorder::default();
    let sample = model.forward(&latent, &timestep, &conditions, &mut ours)?;

    let (height, width) = (latent.dim(2)?, latent.dim(3)?);
    let listed: Vec<String> = config.layers(height, width)?.into_iter().map(|layer| layer.name).collect();
    let called: Vec<&String> = ours.layers.iter().map(|(name, ..)| name).collect();
    if !listed.iter().eq(called) {
        return Err(format!("the forward pass calls other layers than the configuration lists: {listed:?}").into());
    }
    // `attn1` of blocks that attend to the text only is recorded like the others, but is no layer.
    let text_only: BTreeSet<String> = match &model {
        Denoiser::UNet(unet) => {
            let transformers = unet.plan().stages().flat_map(|stage| &stage.transformers);
            let of_text = transformers.filter(|transformer| transformer.attention.only_cross_attention);
            of_text.flat_map(|transformer| transformer.blocks()).collect()
        }
        Denoiser::PixArt(_) => BTreeSet::new(),
    };
    if let Some(extra) = theirs.keys().find(|name| !listed.contains(name) && !text_only.contains(*name)) {
        return Err(format!("layer `{extra}` of the recording is none of the model's").into());
    }

    let mut largest = relative_error("sample", &sample, &expected)?;
    for (name, input, output) in &ours.layers {
        let (their_input, their_output) = match theirs.get(name) {
            Some((Some(input), Some(output))) => (input, output),
            _ => return Err(format!("the recording lacks the input or output of layer `{name}`").into()),
        };
        largest = largest.max(relative_error(&format!("{name}.attn1.input"), input, their_input)?);
        largest = largest.max(relative_error(&format!("{name}.attn1.output"), output, their_output)?);
    }
    Ok(Outcome::Same { largest })
}

/// Keeps what goes into and out of the layers, in the order in which they are called.
#[derive(Default)]
struct Recorder {
    layers: Vec<(String, Tensor, Tensor)>,
}

impl SelfAttention for Recorder {
    fn apply(&mut self, call: &Call<'_>) -> Result<Tensor, Error> {
        let output = call.attention()?;
        self.layers.push((call.layer.name.clone(), call.input.clone(), output.clone()));
        Ok(output)
    }
}

type Recorded = (Option<Tensor>, Option<Tensor>);

/// Takes `<layer>.attn1.input` and `.output` out of a recording.
fn layers_of(recorded: &mut HashMap<String, Tensor>) -> BTreeMap<String, Recorded> {
    let mut layers: BTreeMap<String, Recorded> = BTreeMap::new();
    recorded.retain(|name, tensor| {
        if let Some(layer) = name.strip_suffix(".attn1.input") {
            layers.entry(layer.to_owned()).or_default().0 = Some(tensor.clone());
        } else if let Some(layer) = name.strip_suffix(".attn1.output") {
            layers.entry(layer.to_owned()).or_default().1 = Some(tensor.clone());
        } else {
            return true;
        }
        false
    });
    layers
}

fn take(recorded: &mut HashMap<String, Tensor>, names: &[&str]) -> Result<Tensor, Failed> {
    let tensor = names.iter().find_map(|name| recorded.remove(*name));
    tensor.ok_or_else(|| format!("the recording lacks `{}`", names[0]).into())
}

/// The safetensors files of a model: diffusers' one, or all of a sharded one.
fn weights_of(model: &Path) -> Result<Vec<PathBuf>, Failed> {
    let whole = model.join("diffusion_pytorch_model.safetensors");
    if whole.is_file() {
        return Ok(vec![whole]);
    }
    let mut files = Vec::new();
    for entry in fs::read_dir(model)? {
        let path = entry?.path();
        if path.extension() == Some(OsStr::new("safetensors")) {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// ‖ours − theirs‖ / ‖theirs‖, an error where it is above the tolerance.
fn relative_error(what: &str, ours: &Tensor, theirs: &Tensor) -> Result<f64, Failed> {
    if ours.elem_count() != theirs.elem_count() || ours.dim(0)? != theirs.dim(0)? {
        return Err(format!("{what}: ours is {:?}, theirs {:?}", ours.dims(), theirs.dims()).into());
    }
    let flat = |tensor: &Tensor| tensor.flatten_all()?.to_dtype(DType::F64)?.to_vec1::<f64>();
    let (ours, theirs) = (flat(ours)?, flat(theirs)?);
    let squares = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
    let gap = squares(&mut ours.iter().zip(&theirs).map(|(ours, theirs)| ours - theirs));
    let error = gap / squares(&mut theirs.iter().copied()).max(f64::MIN_POSITIVE);
    match error <= TOLERANCE {
        true => Ok(error),
        false => Err(format!("{what}: relative error {error:.2e} is above {TOLERANCE:.0e}").into()),
    }
}
