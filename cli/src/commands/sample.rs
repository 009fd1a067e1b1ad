//! `deltaconv sample`.

use std::fs::File;
use std::io::BufWriter;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use deltaconv_proto::code::Code;
use deltaconv_worker::sample::{Pictures, Request, sample};
use deltaconv_worker::teacher::{Solver, Steps};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use crate::args::{Device, Output};
use crate::error::{Error, explain};
use crate::{location, output};

/// Pixels between pictures.
const GAP: usize = 4;

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Folder or URL of a model in diffusers layout: a teacher, or the output of a conversion
    #[arg(value_name = "MODEL")]
    model: String,
    /// What to draw; once for each row of pictures
    #[arg(long = "prompt", value_name = "TEXT", required = true)]
    prompts: Vec<String>,
    /// What the pictures shall not show [default: the empty prompt]
    #[arg(long, value_name = "TEXT")]
    negative: Option<String>,
    /// Of the noise: the same seed begins alike in every model
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Pictures of each prompt, from this seed on
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u64).range(1..=64))]
    count: u64,
    /// ddim, dpm-solver++ or euler
    #[arg(long, value_name = "NAME", default_value_t = Solver::DpmSolverPlusPlus)]
    solver: Solver,
    /// Steps of sampling
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u16).range(1..=1000))]
    steps: u16,
    /// Scale of classifier-free guidance; 1 is none [default: that of the model's pipeline in diffusers]
    #[arg(long, value_name = "SCALE")]
    guidance: Option<f64>,
    /// Height and width in pixels [default: those that the model was trained at]
    #[arg(long, value_name = "HxW", value_parser = super::size)]
    size: Option<(usize, usize)>,
    /// What to compute on
    #[arg(long, value_enum, default_value_t)]
    device: Device,
    /// Where the grid of pictures goes
    #[arg(long, value_name = "FILE.png", default_value = "sample.png")]
    out: PathBuf,
    #[command(flatten)]
    output: Output,
}

/// What was drawn, for programs.
#[derive(Debug, Serialize)]
struct Drawn<'a> {
    file: &'a Path,
    prompts: &'a [String],
    seeds: &'a [u64],
    height: usize,
    width: usize,
}

pub(crate) async fn run(arguments: Arguments) -> Result<ExitCode, Error> {
    let request = Request {
        model: location::url(&arguments.model, Path::new(""))?,
        prompts: arguments.prompts,
        negative: arguments.negative,
        seeds: (0..arguments.count).map(|i| arguments.seed.wrapping_add(i)).collect(),
        steps: Steps { solver: arguments.solver, count: arguments.steps.into() },
        guidance: arguments.guidance,
        size: arguments.size,
        device: arguments.device.into(),
    };
    let bar = ProgressBar::new(0).with_message("loading");
    // The template is a constant; the default style is what would remain of a mistake in it.
    let style = ProgressStyle::with_template("{msg} {bar:40} {pos}/{len} {eta}");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("━╸ "));
    let (asked, shown) = (request.clone(), bar.clone());
    let drawn = tokio::task::spawn_blocking(move || {
        sample(&asked, |step, steps| {
            shown.set_length(steps as u64);
            shown.set_message("sampling");
            shown.set_position(step as u64);
        })
    });
    let drawn = drawn.await.map_err(|e| Error::Model { message: e.to_string(), code: Code::Fault })?;
    bar.finish_and_clear();
    let drawn = drawn.map_err(|e| Error::Model { message: explain(&e), code: e.code() })?;
    write_grid(&arguments.out, &drawn, request.seeds.len())?;
    let (height, width) = (drawn.height, drawn.width);
    match arguments.output.data() {
        None => output::print(&arguments.out.display().to_string()),
        Some(data) => {
            data.print(&Drawn { file: &arguments.out, prompts: &request.prompts, seeds: &request.seeds, height, width })
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Prompt by prompt downwards, seed by seed to the right.
fn write_grid(path: &Path, drawn: &Pictures, columns: usize) -> Result<(), Error> {
    let rows = drawn.pictures.len().div_ceil(columns.max(1));
    let side = |count: usize, of_each: usize| count * (of_each + GAP) + GAP;
    let (height, width) = (side(rows, drawn.height), side(columns, drawn.width));
    let mut pixels = vec![u8::MAX; height * width * 3];
    for (i, picture) in drawn.pictures.iter().enumerate() {
        let (top, left) = (side(i / columns, drawn.height), side(i % columns, drawn.width));
        for (row, line) in picture.chunks_exact(drawn.width * 3).enumerate() {
            let at = ((top + row) * width + left) * 3;
            pixels[at..at + line.len()].copy_from_slice(line);
        }
    }
    let file = File::create(path).map_err(Error::file("write", path))?;
    let mut encoder = png::Encoder::new(BufWriter::new(file), width as u32, height as u32);
    encoder.set_color(png::ColorType::Rgb);
    let written = encoder.write_header().and_then(|mut writer| writer.write_image_data(&pixels));
    written.map_err(|e| Error::file("write", path)(std::io::Error::other(e)))
}
