//! `deltaconv analyze`.

mod kernel_sizes;
mod resolution;
mod text;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use deltaconv_coordinator::observe::attention_distance::{Curve, svg};
use deltaconv_coordinator::plan::cost::{self, CostedLayer, Costs, costs};
use deltaconv_worker::profile;
use serde::Serialize;

use crate::args::Output;
use crate::error::{Error, explain};
use crate::preset::Preset;
use crate::{location, output};

/// Samples that show a teacher's attention where there is data: more hardly change a kernel size.
const DEFAULT_SAMPLES: u32 = 16;

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Folder or URL of a model in diffusers layout
    #[arg(value_name = "TEACHER")]
    teacher: String,
    /// Sizes of pictures in pixels, such as 512,1024x768,4K,16K [default: what the model was trained at, and larger]
    #[arg(long, value_name = "SIZES", value_parser = resolution::parse, value_delimiter = ',')]
    resolution: Vec<(usize, usize)>,
    /// Pixels along one side of a latent [default: what vae/config.json says; without one, latents are pixels]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pixels_per_latent: Option<u16>,
    /// Folder or URL of latents and prompt embeddings to look at attention with [default: the teacher's]
    #[arg(long, value_name = "URL")]
    data: Option<String>,
    /// How many noised latents to look at, 0 for costs alone [default: 16 where there is data]
    #[arg(long, value_name = "N")]
    samples: Option<u32>,
    /// Which latents, timesteps and noise
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Draw how far the attention of every layer reaches
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Write the kernel sizes that hold 80 % of it, as a part of a job file, instead of printing them
    #[arg(long, value_name = "FILE")]
    kernel_sizes: Option<PathBuf>,
    #[command(flatten)]
    output: Output,
}

/// All that was found.
#[derive(Serialize)]
struct Analysis {
    #[serde(flatten)]
    costs: Costs,
    profile: Option<Profile>,
}

/// How far the layers' attention reaches.
#[derive(Serialize)]
struct Profile {
    samples: u32,
    seed: u64,
    /// Of the high-pass mass, what a kernel shall hold.
    share: f64,
    /// How many times the mean a key must get to be a sink.
    sink: f64,
    layers: Vec<ProfiledLayer>,
    /// What a job may take: held between the smallest and the largest that blocks have.
    kernel_sizes: BTreeMap<String, u32>,
}

#[derive(Serialize)]
struct ProfiledLayer {
    name: String,
    map: [usize; 2],
    kernel_size: Option<u32>,
    planned: u32,
    high_pass: f64,
    sinks: f64,
    sink_mass: f64,
    /// By distance from 0.
    cumulative: Vec<f64>,
}

pub(crate) async fn run(arguments: Arguments) -> Result<ExitCode, Error> {
    let teacher = location::url(&arguments.teacher, Path::new(""))?;
    let recipe = Preset::default().recipe();
    let options = cost::Options {
        resolutions: arguments.resolution.clone(),
        pixels_per_latent: arguments.pixels_per_latent.map(usize::from),
        inter_ratio: recipe.inter_ratio,
        scales: recipe.scales,
    };
    let costs = costs(&teacher, &options).await;
    let costs = costs.map_err(|e| Error::Model { message: explain(&e), code: e.code() })?;
    let profile = match observed(&arguments, &teacher, costs.denoiser, recipe.empty_prompt_fraction).await? {
        Some(options) => Some(profile(options, &costs.layers).await?),
        None => None,
    };

    if let Some(profile) = &profile {
        let write = |path: &Option<PathBuf>, text: &dyn Fn() -> String| match path {
            Some(path) => std::fs::write(path, text()).map_err(Error::file("write", path)),
            None => Ok(()),
        };
        write(&arguments.svg, &|| svg(&curves(profile), profile.share))?;
        write(&arguments.kernel_sizes, &|| kernel_sizes::toml(&profile.layers, profile.share))?;
    }
    match arguments.output.data() {
        Some(data) => data.print(&Analysis { costs, profile }),
        None => {
            let with_kernel_sizes = arguments.kernel_sizes.is_none();
            output::print(&text::describe(&costs, profile.as_ref(), with_kernel_sizes));
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// What is to be observed; nothing where there is no data, or where no sample is wanted.
async fn observed(
    arguments: &Arguments,
    teacher: &str,
    denoiser: &str,
    empty_prompt_fraction: f64,
) -> Result<Option<profile::Options>, Error> {
    let data = match &arguments.data {
        Some(named) => location::url(named, Path::new(""))?,
        None => teacher.to_owned(),
    };
    let samples = match arguments.samples {
        Some(0) => 0,
        asked => match profile::has_data(&data).await.map_err(failed)? {
            true => asked.unwrap_or(DEFAULT_SAMPLES),
            // Whoever names data or a number wants to see something.
            false if arguments.data.is_some() || asked.is_some() => {
                return Err(Error::NoData { samples: asked.unwrap_or(DEFAULT_SAMPLES), url: data });
            }
            false => 0,
        },
    };
    if samples == 0 {
        let written = [("--svg", &arguments.svg), ("--kernel-sizes", &arguments.kernel_sizes)];
        return match written.into_iter().find(|(_, path)| path.is_some()) {
            Some((flag, _)) => Err(Error::NoSamples { flag }),
            None => Ok(None),
        };
    }
    let (teacher, denoiser) = (teacher.to_owned(), denoiser.to_owned());
    let (samples, seed) = (samples as usize, arguments.seed);
    Ok(Some(profile::Options { teacher, denoiser, data, samples, seed, empty_prompt_fraction }))
}

async fn profile(options: profile::Options, layers: &[CostedLayer]) -> Result<Profile, Error> {
    let (samples, seed) = (options.samples, options.seed);
    output::say(&format!("loading {}/{}", options.teacher, options.denoiser));
    let say = move |done: usize| output::say(&format!("{done} of {samples} samples looked at"));
    let found = profile::run(options, say).await.map_err(failed)?;
    let planned: BTreeMap<&str, u32> = layers.iter().map(|layer| (layer.name.as_str(), layer.kernel_size)).collect();
    let layers: Vec<ProfiledLayer> = found
        .into_iter()
        .map(|layer| ProfiledLayer {
            planned: planned.get(layer.name.as_str()).copied().unwrap_or_default(),
            name: layer.name,
            map: layer.map,
            kernel_size: layer.kernel_size,
            high_pass: layer.high_pass,
            sinks: layer.sinks,
            sink_mass: layer.sink_mass,
            cumulative: layer.cumulative,
        })
        .collect();
    Ok(Profile {
        samples: samples as u32,
        seed,
        share: profile::SHARE,
        sink: profile::SINK,
        kernel_sizes: kernel_sizes::by_layer(&layers),
        layers,
    })
}

fn curves(profile: &Profile) -> Vec<Curve> {
    let curve = |layer: &ProfiledLayer| Curve {
        layer: layer.name.clone(),
        map: layer.map,
        cumulative: layer.cumulative.clone(),
        kernel_size: layer.kernel_size,
        planned: layer.planned,
    };
    profile.layers.iter().map(curve).collect()
}

fn failed(error: profile::Error) -> Error {
    Error::Model { message: explain(&error), code: error.code() }
}
