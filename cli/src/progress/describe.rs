//! Stages and layers in a few words, the same for bars and for lines.

use deltaconv_proto::v1;

use super::remaining::Left;
use crate::duration;

/// Whether the stage is over.
pub(super) fn is_over(stage: &v1::StageStatus) -> bool {
    stage.finished_unix_ms > 0
}

/// Whether the stage is going on.
pub(super) fn is_running(stage: &v1::StageStatus) -> bool {
    stage.started_unix_ms > 0 && !is_over(stage)
}

/// The share of the stage that is done.
pub(super) fn stage_fraction(stage: &v1::StageStatus) -> f64 {
    if is_over(stage) {
        return 1.0;
    }
    if stage.tasks == 0 {
        return 0.0;
    }
    (stage.done / f64::from(stage.tasks)).clamp(0.0, 1.0)
}

/// Tasks, rate and time left of a stage.
pub(super) fn stage(stage: &v1::StageStatus, left: Option<Left>) -> String {
    if is_over(stage) {
        let seconds = stage.finished_unix_ms.saturating_sub(stage.started_unix_ms) as f64 / 1000.0;
        return format!("done in {}", duration::spell(seconds));
    }
    if !is_running(stage) {
        return "waiting".into();
    }
    let mut words = Vec::new();
    if stage.tasks > 0 {
        words.push(format!("{}/{} tasks", stage.committed, stage.tasks));
    }
    words.extend(rate(stage.samples_per_second));
    words.extend(left.as_ref().map(Left::describe));
    if words.is_empty() { "running".into() } else { words.join(", ") }
}

/// Steps, error, rate and time left of a layer.
pub(super) fn layer(layer: &v1::LayerStatus, left: Option<Left>) -> String {
    if layer.state == "waiting" {
        return "waiting".into();
    }
    let mut words = Vec::new();
    if layer.state != "done" {
        words.push(format!("step {}/{}", layer.step, layer.steps));
    }
    // 0 is what a message holds in which nothing was set.
    if layer.held_out_error.is_finite() && layer.held_out_error > 0.0 {
        words.push(format!("error {:.4}", layer.held_out_error));
    }
    if layer.state == "done" {
        words.push("done".into());
    } else {
        words.extend(rate(layer.samples_per_second));
        words.extend(left.as_ref().map(Left::describe));
    }
    words.join(", ")
}

fn rate(samples_per_second: f64) -> Option<String> {
    let known = samples_per_second.is_finite() && samples_per_second > 0.0;
    let digits = if samples_per_second < 10.0 { 1 } else { 0 };
    known.then(|| format!("{samples_per_second:.digits$} samples/s"))
}

/// The layers' names without the ending that all of them share, which tells none from another:
/// `.transformer_blocks.0`.
pub(super) fn short_names(layers: &[v1::LayerStatus]) -> Vec<String> {
    let names: Vec<Vec<&str>> = layers.iter().map(|layer| layer.name.split('.').collect()).collect();
    let shortest = names.iter().map(Vec::len).min().unwrap_or(0);
    let part_from_end = |name: &[&str], index: usize| name[name.len() - 1 - index].to_owned();
    let is_shared = |index: &usize| {
        let mut parts = names.iter().map(|name| part_from_end(name, *index));
        let first = parts.next();
        parts.all(|part| Some(part) == first)
    };
    let shared = if names.len() > 1 { (0..shortest.saturating_sub(1)).take_while(is_shared).count() } else { 0 };
    names.iter().map(|name| name[..name.len() - shared].join(".")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn short(names: &[&str]) -> Vec<String> {
        let named = |name: &&str| v1::LayerStatus { name: (*name).into(), ..v1::LayerStatus::default() };
        short_names(&names.iter().map(named).collect::<Vec<_>>())
    }

    #[test]
    fn names_lose_only_what_they_share() {
        let names = ["down_blocks.0.attentions.0.transformer_blocks.0", "mid_block.attentions.1.transformer_blocks.0"];
        assert_eq!(short(&names), ["down_blocks.0.attentions.0", "mid_block.attentions.1"]);
        assert_eq!(short(&names[..1]), &names[..1]);
        assert_eq!(short(&["a.0", "a.1"]), ["a.0", "a.1"]);
        assert_eq!(short(&[]), Vec::<String>::new());
    }
}
