//! Which blocks a job trains: the teacher's layers with what the recipe makes of them.

use deltaconv_proto::shard::Contents;
use deltaconv_proto::teacher::{Layer, Teacher};
use deltaconv_proto::v1::{JobPlan, LayerPlan, Map, Recipe, StaysAttention};
use deltaconv_proto::{block, buckets};

use super::spec::invalid;
use super::{Error, kernel_size};

/// A shard is read whole.
const MAX_SHARD_BYTES: u64 = 1 << 30;
/// A block is read whole; SDXL's largest has 20 MB.
const MAX_BLOCK_BYTES: u64 = 1 << 30;

/// What becomes of the layers.
pub(super) struct Planned {
    /// Those that get a block.
    pub(super) layers: Vec<LayerPlan>,
    /// Names of those that stay attention.
    pub(super) kept: Vec<String>,
}

/// The layers that a round trains, of all that get a block. What goes into the first one comes from nothing that was
/// replaced, so rounds after the first have nothing to tell its block.
pub fn trained_in(round: u32, layers: &[LayerPlan]) -> &[LayerPlan] {
    layers.get(usize::from(round > 0)..).unwrap_or_default()
}

/// The layer with a block of twice the inner width.
pub fn widened(layer: &LayerPlan) -> LayerPlan {
    let wide = LayerPlan { inter_ratio: 2.0 * layer.inter_ratio, ..layer.clone() };
    LayerPlan { parameters: block::parameters(&wide), ..wide }
}

/// The layers as the last round may have them at most: which ones it does is known after the first.
pub(super) fn widest(recipe: &Recipe, layers: &[LayerPlan]) -> Vec<LayerPlan> {
    let may_be_wider = if recipe.widens() { trained_in(1, layers).len() } else { 0 };
    let (narrow, wide) = layers.split_at(layers.len() - may_be_wider);
    narrow.iter().cloned().chain(wide.iter().map(widened)).collect()
}

/// The plan where these layers stay attention, too.
pub fn keeping(plan: &JobPlan, staying: &[StaysAttention]) -> JobPlan {
    let stays = |layer: &LayerPlan| staying.iter().any(|one| one.layer == layer.name);
    // The kept ones take the places in forward order that the others leave.
    let mut replaced = plan.layers.iter().peekable();
    let mut kept_before = plan.kept.iter();
    let mut kept = Vec::new();
    for index in 0..plan.layers.len() + plan.kept.len() {
        match replaced.next_if(|layer| layer.index as usize <= index) {
            Some(layer) => kept.extend(stays(layer).then(|| layer.name.clone())),
            None => kept.extend(kept_before.next().cloned()),
        }
    }
    let layers = plan.layers.iter().filter(|layer| !stays(layer)).cloned().collect();
    JobPlan { layers, kept, ..plan.clone() }
}

/// Plans what becomes of the layers, which are given for each of the job's sizes, at least one, in forward order.
pub(super) fn plan(teacher: &Teacher, by_size: &[Vec<Layer>], recipe: &Recipe) -> Result<Planned, Error> {
    let layers = by_size.first().map_or(&[][..], Vec::as_slice);
    let (kept, replaced) = kept_and_replaced(layers, recipe)?;
    if let Some((layer, size)) = recipe.kernel_sizes.iter().find(|(name, _)| layers.iter().all(|l| l.name != **name)) {
        let known = layers.iter().map(|l| l.name.as_str()).collect::<Vec<_>>().join(", ");
        let expected = format!("the teacher has no layer of that name; its layers are {known}");
        return Err(invalid(format!("recipe.kernel_sizes.{layer:.200}"), size, expected));
    }
    if let Some((layer, size)) = recipe.kernel_sizes.iter().find(|(name, _)| kept.contains(name)) {
        let expected = "the layer is in recipe.keep, so it gets no block; remove one of the two";
        return Err(invalid(format!("recipe.kernel_sizes.{layer:.200}"), size, expected));
    }
    let maps = |layer: &Layer| -> Vec<Map> {
        let of_size = |layers: &Vec<Layer>| layers.get(layer.index).map(map);
        if by_size.len() > 1 { by_size.iter().filter_map(of_size).collect() } else { Vec::new() }
    };
    let plan = |layer: &&Layer| plan_layer(teacher, layer, maps(layer), recipe);
    let layers = replaced.iter().map(plan).collect::<Result<_, Error>>()?;
    Ok(Planned { layers, kept })
}

/// Splits the layers by the recipe's `keep`.
fn kept_and_replaced<'l>(layers: &'l [Layer], recipe: &Recipe) -> Result<(Vec<String>, Vec<&'l Layer>), Error> {
    let holds = |path: &str, layer: &Layer| {
        layer.name.strip_prefix(path).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    };
    if let Some(path) = recipe.keep.iter().find(|path| !layers.iter().any(|layer| holds(path, layer))) {
        let known = layers.iter().map(|l| l.name.as_str()).collect::<Vec<_>>().join(", ");
        let expected = format!("no layer of the teacher has that name or lies below it; its layers are {known}");
        return Err(invalid("recipe.keep", format!("{path:?}"), expected));
    }
    let (kept, replaced): (Vec<&Layer>, Vec<&Layer>) =
        layers.iter().partition(|layer| recipe.keep.iter().any(|path| holds(path, layer)));
    if replaced.is_empty() {
        let expected = format!("it keeps all {} layers, so there is nothing to convert", layers.len());
        return Err(invalid("recipe.keep", format!("{:?}", recipe.keep), expected));
    }
    let costliest = recipe.keep_costliest.unwrap_or(0);
    if costliest as usize >= replaced.len() {
        let expected =
            format!("less than the {} layers that would be replaced, or there is nothing to convert", replaced.len());
        return Err(invalid("recipe.keep_costliest", costliest, expected));
    }
    Ok((kept.iter().map(|layer| layer.name.clone()).collect(), replaced))
}

fn map(layer: &Layer) -> Map {
    Map { height: layer.height as u32, width: layer.width as u32 }
}

/// `maps`: by bucket; none for a job of one size.
fn plan_layer(teacher: &Teacher, layer: &Layer, maps: Vec<Map>, recipe: &Recipe) -> Result<LayerPlan, Error> {
    let override_ = recipe.kernel_sizes.get(&layer.name).copied();
    let mut plan = LayerPlan {
        name: layer.name.clone(),
        index: layer.index as u32,
        channels: layer.channels as u32,
        height: layer.height as u32,
        width: layer.width as u32,
        kernel_size: override_.unwrap_or_else(|| kernel_size::planned(teacher, layer)),
        scales: recipe.scales.clone(),
        gate: gate(teacher).to_owned(),
        inter_ratio: recipe.inter_ratio,
        parameters: 0,
        maps,
        weighted: true,
    };

    let inner = block::inner(plan.channels, plan.inter_ratio);
    if inner < 2 || !inner.is_multiple_of(2) {
        let expected = format!(
            "it makes the inner width of {} ({} channels) {inner}, which must be even for the gate to halve it",
            layer.name, layer.channels
        );
        return Err(invalid("recipe.inter_ratio", recipe.inter_ratio, expected));
    }
    for &scale in &recipe.scales {
        let pooled = |side: usize| (side as f64 * scale) as usize;
        let lost = |(height, width): &buckets::Size| pooled(*height) == 0 || pooled(*width) == 0;
        if let Some((height, width)) = buckets::maps(&plan).into_iter().find(lost) {
            let expected = format!("{scale} leaves no pixel of the {height}×{width} map of {}", layer.name);
            return Err(invalid("recipe.scales", format!("{:?}", recipe.scales), expected));
        }
    }
    let whole = sample_bytes(&plan, Contents::Activations);
    let shard_bytes = whole.saturating_mul(u64::from(recipe.shard_samples));
    if shard_bytes > MAX_SHARD_BYTES {
        let expected = format!(
            "it makes a shard of {} {shard_bytes} bytes; at most {} samples stay below {MAX_SHARD_BYTES}",
            layer.name,
            MAX_SHARD_BYTES / whole.max(1)
        );
        return Err(invalid("recipe.shard_samples", recipe.shard_samples, expected));
    }
    plan.parameters = block::parameters(&plan);
    let largest = if recipe.widens() { widened(&plan).parameters } else { plan.parameters };
    if largest.saturating_mul(4) > MAX_BLOCK_BYTES {
        let expected = format!("it makes the block of {} {largest} parameters large", layer.name);
        return Err(invalid("recipe.inter_ratio", recipe.inter_ratio, expected));
    }
    Ok(plan)
}

/// The gate that was published for a model's class (arXiv 2504.21292).
fn gate(teacher: &Teacher) -> &'static str {
    match teacher {
        Teacher::PixArt(_) => block::SIGMOID,
        _ => block::SCALED,
    }
}

/// Bytes that one sample takes in a shard, at most: its maps and its weights in f16, and the timestep.
pub(crate) fn sample_bytes(layer: &LayerPlan, contents: Contents) -> u64 {
    let area = |(height, width): buckets::Size| (height as u64).saturating_mul(width as u64);
    let largest = buckets::maps(layer).into_iter().map(area).max().unwrap_or(0);
    let rows = largest.saturating_mul(contents.maps() as u64).saturating_add(u64::from(layer.weighted));
    rows.saturating_mul(2 * u64::from(layer.channels)).saturating_add(8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_that_were_not_learned_are_kept_in_forward_order() {
        let layer = |(name, index): (&str, u32)| LayerPlan { name: name.to_owned(), index, ..LayerPlan::default() };
        let layers: Vec<LayerPlan> = [("a", 0), ("c", 2), ("d", 3), ("f", 5)].map(layer).into();
        let plan = JobPlan { layers, kept: vec!["b".into(), "e".into()], ..JobPlan::default() };
        let staying = |layers: &[&str]| -> Vec<StaysAttention> {
            layers
                .iter()
                .map(|layer| StaysAttention { layer: (*layer).to_owned(), reason: "it diverged".into() })
                .collect()
        };
        assert_eq!(keeping(&plan, &[]), plan);
        let found = keeping(&plan, &staying(&["d", "a"]));
        assert_eq!(found.kept, ["a", "b", "d", "e"]);
        assert_eq!(found.layers.iter().map(|layer| layer.name.as_str()).collect::<Vec<_>>(), ["c", "f"]);
    }

    #[test]
    fn the_first_layer_is_trained_in_the_first_round_alone() {
        let layers = [1, 2].map(|index| LayerPlan { index, ..LayerPlan::default() });
        assert_eq!([0, 1, 2].map(|round| trained_in(round, &layers).len()), [2, 1, 1]);
        assert!(trained_in(1, &layers[..1]).is_empty() && trained_in(1, &[]).is_empty());
    }
}
