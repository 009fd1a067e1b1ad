//! What was found, for people.

use deltaconv_coordinator::plan::cost::{Costs, Published, Resolution};

use super::{Profile, ProfiledLayer, kernel_sizes, resolution};
use crate::table;

/// Costs, then what was published, then the profile and the kernel sizes that follow from it.
pub(super) fn describe(costs: &Costs, profile: Option<&Profile>, with_kernel_sizes: bool) -> String {
    let mut parts = vec![head(costs), totals(costs), layers(costs)];
    parts.extend(costs.published.as_ref().map(published));
    if let Some(profile) = profile {
        parts.push(distances(profile));
        if with_kernel_sizes {
            parts.push(kernel_sizes::toml(&profile.layers, profile.share).trim_end().to_owned());
        }
    }
    parts.join("\n\n")
}

fn head(costs: &Costs) -> String {
    let side = costs.pixels_per_latent;
    let latents = match side {
        1 => "latents are pixels".to_owned(),
        _ => format!("a latent for {side}×{side} pixels"),
    };
    let scales: Vec<String> = costs.scales.iter().map(f64::to_string).collect();
    format!(
        "{}/{}: {}, {} layers, {latents}\n\
         multiply-accumulates of one sample; blocks of inner width {} C and scales {}",
        costs.url,
        costs.denoiser,
        costs.class,
        costs.layers.len(),
        costs.inter_ratio,
        scales.join(", ")
    )
}

fn totals(costs: &Costs) -> String {
    let mut table = table::table(["all layers", "latents", "attention", "blocks", "ratio"]);
    for resolution in &costs.resolutions {
        let [height, width] = resolution.latent;
        table.add_row([
            resolution::name(resolution.pixels),
            format!("{height}×{width}"),
            operations(resolution.attention),
            operations(resolution.block),
            times(resolution.ratio),
        ]);
    }
    table::numbers(&mut table, &[2, 3, 4]);
    table::text(&table)
}

/// A row a layer, with attention and block side by side for each resolution.
fn layers(costs: &Costs) -> String {
    let mut headings = vec!["LAYER".to_owned(), "C".to_owned(), "K".to_owned()];
    for resolution in &costs.resolutions {
        let [width, height] = resolution.pixels;
        headings.extend([format!("{width}×{height}"), "BLOCK".to_owned()]);
    }
    let numbers: Vec<usize> = (1..headings.len()).collect();
    let mut table = table::with_headings(headings);
    for (i, layer) in costs.layers.iter().enumerate() {
        let at = |resolution: &Resolution| {
            let cost = resolution.layers.get(i)?;
            Some([operations(cost.attention.total()), operations(cost.block.total())])
        };
        let mut row = vec![layer.name.clone(), layer.channels.to_string(), layer.kernel_size.to_string()];
        row.extend(costs.resolutions.iter().filter_map(at).flatten());
        table.add_row(row);
    }
    table::numbers(&mut table, &numbers);
    table::text(&table)
}

fn published(published: &Published) -> String {
    let headings = ["published", "attention", "reproduced", "block", "reproduced", "ratio", "reproduced"];
    let mut table = table::table(headings);
    for row in &published.rows {
        let reproduced = row.attention_reproduced as f64 / row.block_reproduced as f64;
        table.add_row([
            resolution::name(row.pixels),
            table::operations(row.attention),
            operations(row.attention_reproduced),
            table::operations(row.block),
            operations(row.block_reproduced),
            times(row.attention / row.block),
            times(reproduced),
        ]);
    }
    table::numbers(&mut table, &[1, 2, 3, 4, 5, 6]);
    format!(
        "{}\n\
         What was published ({}) fits one layer of the finest map, with 320 channels, not all of them: two samples, for\n\
         guidance, and two operations a multiply-accumulate. Its block fits with K 17 and scales 1, 1/2, 1/3, except at\n\
         512×512, where the published one is 10 % less than a quarter of that at 1024×1024: docs/analyze.md",
        table::text(&table),
        published.source
    )
}

fn distances(profile: &Profile) -> String {
    let held = format!("K for {:.0} %", 100.0 * profile.share);
    let mut table = table::table(["layer", "map", &held, "planned", "high-pass", "sinks", "their mass"]);
    for layer in &profile.layers {
        let ProfiledLayer { map: [height, width], .. } = layer;
        table.add_row([
            layer.name.clone(),
            format!("{height}×{width}"),
            layer.kernel_size.map_or_else(|| "–".to_owned(), |size| size.to_string()),
            layer.planned.to_string(),
            percent(layer.high_pass),
            format!("{:.1}", layer.sinks),
            percent(layer.sink_mass),
        ]);
    }
    table::numbers(&mut table, &[2, 3, 4, 5, 6]);
    format!(
        "{}\nof {} samples, seed {}; sinks are keys that get {} times the mean or more, counted by head and sample",
        table::text(&table),
        profile.samples,
        profile.seed,
        profile.sink
    )
}

fn operations(count: u128) -> String {
    table::operations(count as f64)
}

fn times(ratio: f64) -> String {
    if ratio < 100.0 { format!("{ratio:.1}×") } else { format!("{ratio:.0}×") }
}

fn percent(share: f64) -> String {
    format!("{:.1} %", 100.0 * share)
}
