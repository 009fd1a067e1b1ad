//! `[recipe.kernel_sizes]` of a job file, from how far attention reaches.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::ProfiledLayer;

/// The smallest that was published, and the largest: its cost grows with K², and beyond it the map's half-size copy and
/// its mean reach further.
const SMALLEST: u32 = 3;
const LARGEST: u32 = 13;

/// Sizes that a job may take. Layers that attend to all keys alike keep the planned ones.
pub(super) fn by_layer(layers: &[ProfiledLayer]) -> BTreeMap<String, u32> {
    let size = |layer: &ProfiledLayer| Some((layer.name.clone(), allowed(layer.kernel_size?)));
    layers.iter().filter_map(size).collect()
}

/// The same as text.
pub(super) fn toml(layers: &[ProfiledLayer], share: f64) -> String {
    let mut text = format!(
        "[recipe.kernel_sizes] # holds {:.0} % of the high-pass attention mass, from {SMALLEST} to {LARGEST}\n",
        100.0 * share
    );
    for layer in layers {
        // Names are module paths; whatever else was in them would be escaped as JSON and TOML both do.
        let name = serde_json::Value::from(layer.name.as_str());
        let _ = match layer.kernel_size {
            Some(found) if found == allowed(found) => writeln!(text, "{name} = {found}"),
            Some(found) => writeln!(text, "{name} = {} # measured: {found}", allowed(found)),
            None => writeln!(text, "# {name}: uniform"),
        };
    }
    text
}

fn allowed(found: u32) -> u32 {
    found.clamp(SMALLEST, LARGEST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_those_of_a_job_file() {
        let layer = |name: &str, kernel_size| ProfiledLayer {
            name: name.to_owned(),
            map: [16, 16],
            kernel_size,
            planned: 11,
            high_pass: 0.5,
            sinks: 0.0,
            sink_mass: 0.0,
            cumulative: Vec::new(),
        };
        let layers = [layer("a.0", Some(9)), layer("b.1", Some(27)), layer("c.2", None), layer("d.3", Some(1))];
        let text = toml(&layers, 0.8);
        let parsed: toml::Table = text.parse().expect("TOML");
        let sizes = parsed["recipe"]["kernel_sizes"].as_table().expect("a table");
        let sizes: BTreeMap<String, u32> =
            sizes.iter().map(|(name, size)| (name.clone(), size.as_integer().expect("a number") as u32)).collect();
        let expected = [("a.0", 9), ("b.1", 13), ("d.3", 3)].map(|(name, size)| (name.to_owned(), size));
        assert_eq!(sizes, BTreeMap::from(expected));
        assert_eq!(sizes, by_layer(&layers));
        assert!(text.contains("measured: 27"), "{text}");
    }
}
