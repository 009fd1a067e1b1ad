//! `deltaconv inspect`.

use std::path::Path;
use std::process::ExitCode;

use clap::Args;
use deltaconv_coordinator::plan::inspect::{Inspection, inspect};

use crate::args::Output;
use crate::error::{Error, explain};
use crate::{location, output, table};

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Folder or URL of a model in diffusers layout: a teacher, or the output of a conversion
    #[arg(value_name = "MODEL")]
    model: String,
    /// Height and width of the latents, instead of those that the model was trained at
    #[arg(long, value_name = "HxW", value_parser = super::size)]
    latent: Option<(usize, usize)>,
    #[command(flatten)]
    output: Output,
}

pub(crate) async fn run(arguments: Arguments) -> Result<ExitCode, Error> {
    let url = location::url(&arguments.model, Path::new(""))?;
    let found = inspect(&url, arguments.latent).await;
    let found = found.map_err(|e| Error::Model { message: explain(&e), code: e.code() })?;
    match arguments.output.data() {
        None => output::print(&describe(&found)),
        Some(data) => data.print(&found),
    }
    Ok(ExitCode::SUCCESS)
}

fn describe(found: &Inspection) -> String {
    let [channels, height, width] = found.latent;
    let dtypes: Vec<String> =
        found.dtypes.iter().map(|(dtype, bytes)| format!("{} {dtype}", table::bytes(*bytes))).collect();
    let text = found.text_channels.map_or_else(|| "none".to_owned(), |channels| format!("embeddings of {channels}"));
    let replaced = found.layers.iter().filter(|layer| layer.replaced).count();
    let state = match (found.converted, replaced) {
        (false, _) => "not converted".to_owned(),
        (true, count) => format!("converted: {count} of {} layers replaced by blocks", found.layers.len()),
    };
    let mut head = table::table(["", ""]);
    head.set_header(Vec::<String>::new());
    let rows = [
        ("model", format!("{}/{}", found.url, found.denoiser)),
        ("class", format!("{}, {state}", found.class)),
        ("parameters", format!("{:.1} M", found.parameters as f64 / 1e6)),
        ("stored", dtypes.join(" and ")),
        ("memory of a worker", format!("{} for the weights in F32", table::bytes(found.worker_bytes))),
        ("latents", format!("{channels}×{height}×{width}")),
        ("text", text),
        ("predicts", format!("{}, {} timesteps", found.prediction_type, found.timesteps)),
    ];
    for (name, value) in rows {
        head.add_row([name.to_owned(), value]);
    }
    let mut layers = table::table(["layer", "map", "channels", "heads", "computed by", "parameters"]);
    for layer in &found.layers {
        let by = match layer.replaced {
            true => format!("block, kernel {}", layer.kernel_size),
            false => format!("attention (kernel {} planned)", layer.kernel_size),
        };
        layers.add_row([
            layer.name.clone(),
            format!("{}×{}", layer.map[0], layer.map[1]),
            layer.channels.to_string(),
            layer.heads.to_string(),
            by,
            layer.parameters.to_string(),
        ]);
    }
    table::numbers(&mut layers, &[2, 3, 5]);
    format!("{}\n\n{}", table::text(&head).trim_start(), table::text(&layers))
}
