//! Stages and layers in a few words, the same for bars and for lines.

use deltaconv_proto::v1;

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
pub(super) fn stage(stage: &v1::StageStatus, seconds_left: Option<f64>) -> String {
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
    words.extend(seconds_left.map(left));
    if words.is_empty() { "running".into() } else { words.join(", ") }
}

/// Steps, error, rate and time left of a layer.
pub(super) fn layer(layer: &v1::LayerStatus, seconds_left: Option<f64>) -> String {
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
        words.extend(seconds_left.map(left));
    }
    words.join(", ")
}

fn rate(samples_per_second: f64) -> Option<String> {
    let known = samples_per_second.is_finite() && samples_per_second > 0.0;
    let digits = if samples_per_second < 10.0 { 1 } else { 0 };
    known.then(|| format!("{samples_per_second:.digits$} samples/s"))
}

fn left(seconds: f64) -> String {
    format!("{} left", duration::spell(seconds.ceil()))
}

/// The layers' names without the ending that all of them share, which says nothing: `.transformer_blocks.0`.
pub(super) fn short_names(layers: &[v1::LayerStatus]) -> Vec<String> {
    let parts: Vec<Vec<&str>> = layers.iter().map(|layer| layer.name.split('.').collect()).collect();
    let shortest = parts.iter().map(Vec::len).min().unwrap_or(0);
    let shared = (0..shortest.saturating_sub(1))
        .take_while(|from_end| {
            let at = |name: &Vec<&str>| name[name.len() - 1 - from_end].to_owned();
            layers.len() > 1 && parts.iter().all(|name| at(name) == at(&parts[0]))
        })
        .count();
    let mut kept: Vec<String> = parts.iter().map(|name| name[..name.len() - shared].join(".")).collect();
    // An index that all names end with is part of the word before it.
    let ends_with_word = |name: &String| name.rsplit('.').next().is_some_and(|last| last.parse::<u32>().is_err());
    if kept.iter().any(ends_with_word) {
        kept = layers.iter().map(|layer| layer.name.replace(".transformer_blocks.0", "")).collect();
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lose_only_what_they_share() {
        let named = |name: &str| v1::LayerStatus { name: name.into(), ..v1::LayerStatus::default() };
        let layers = ["down_blocks.0.attentions.0.transformer_blocks.0", "up_blocks.1.attentions.1.transformer_blocks.0"];
        let layers = layers.map(named);
        assert_eq!(short_names(&layers), ["down_blocks.0.attentions.0", "up_blocks.1.attentions.1"]);
    }
}
