//! Progress as bars: one a stage, one a layer.

use std::collections::BTreeMap;
use std::time::Instant;

use deltaconv_proto::{keys, v1};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use super::remaining::Remaining;
use super::{Beside, Curves, describe};
use crate::stage;

/// Bars have no units of their own: a full one is this long.
const LENGTH: u64 = 1000;
/// Of more layers only those that run have a bar, so that the stages stay in sight.
const MOST_LAYERS: usize = 16;
/// What follows the layers' own trainings: the first of these stages that a job has.
const AFTER_LAYERS: [&str; 2] = [keys::FINETUNE, "assemble"];

/// The bars on the terminal.
pub(super) struct Bars {
    area: MultiProgress,
    stages: BTreeMap<String, Bar>,
    layers: BTreeMap<String, Bar>,
    waiting: Option<ProgressBar>,
    curves: Curves,
    beside: Beside,
    /// A line of it each.
    below: Vec<ProgressBar>,
}

struct Bar {
    bar: ProgressBar,
    remaining: Remaining,
    round: u32,
}

impl Bar {
    /// Adds a bar above `next`, or below all others.
    fn add(area: &MultiProgress, name: String, next: Option<&ProgressBar>) -> Self {
        let bar = ProgressBar::new(LENGTH);
        let bar = match next {
            Some(next) => area.insert_before(next, bar),
            None => area.add(bar),
        };
        bar.set_style(style("{prefix} {bar:20} {wide_msg}"));
        bar.set_prefix(name);
        Self { bar, remaining: Remaining::default(), round: 0 }
    }

    /// What goes on is of this round; what was seen of others says nothing of the time left.
    fn begin(&mut self, round: u32) {
        if self.round != round {
            (self.round, self.remaining) = (round, Remaining::default());
        }
    }

    fn set(&self, fraction: f64, text: String) {
        self.bar.set_position((fraction * LENGTH as f64) as u64);
        self.bar.set_message(text);
    }
}

fn style(template: &str) -> ProgressStyle {
    // The templates are constants of this file; the default style is what remains of a mistake in one.
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    style.progress_chars("━╸ ")
}

impl Bars {
    pub(super) fn new(area: MultiProgress, beside: Beside) -> Self {
        Self {
            area,
            stages: BTreeMap::new(),
            layers: BTreeMap::new(),
            waiting: None,
            curves: Curves::default(),
            beside,
            below: Vec::new(),
        }
    }

    pub(super) fn show(&mut self, status: &v1::JobStatus) {
        let now = Instant::now();
        self.curves.note(&status.layers);
        let names = describe::short_names(&status.layers);
        let width = names.iter().map(String::len).max().unwrap_or(0).max("evaluate".len());

        for stage in &status.stages {
            let name = stage::name(&stage.stage, stage.round);
            let add = || Bar::add(&self.area, format!("{name:<width$}", width = width + 2), None);
            let bar = self.stages.entry(name.clone()).or_insert_with(add);
            let left = bar.remaining.update(now, stage.done, f64::from(stage.tasks));
            bar.set(describe::stage_fraction(stage), describe::stage(stage, left));
        }
        // Layers stand below the stage that trains them.
        let next = AFTER_LAYERS.iter().find_map(|stage| self.stages.get(*stage)).map(|stage| &stage.bar);
        let has_room = status.layers.len() <= MOST_LAYERS;
        for (layer, name) in status.layers.iter().zip(names) {
            if !has_room && layer.state != "running" {
                if let Some(over) = self.layers.remove(&layer.name) {
                    over.bar.finish_and_clear();
                }
                continue;
            }
            let add = || Bar::add(&self.area, format!("  {name:<width$}"), next);
            let bar = self.layers.entry(layer.name.clone()).or_insert_with(add);
            bar.begin(layer.round);
            let left = bar.remaining.update(now, layer.step as f64, layer.steps as f64);
            let share = if layer.steps > 0 { layer.step as f64 / layer.steps as f64 } else { 0.0 };
            let fraction = if layer.state == "done" { 1.0 } else { share.clamp(0.0, 1.0) };
            let curve = self.curves.row(&layer.name);
            let gap = if curve.is_empty() { "" } else { "  " };
            bar.set(fraction, format!("{curve}{gap}{}", describe::layer(layer, left)));
        }
        self.show_waiting(&status.waiting_for);
        self.show_below(&self.beside.lines());
    }

    fn show_below(&mut self, lines: &[String]) {
        while self.below.len() < lines.len() {
            let line = self.area.add(ProgressBar::new(LENGTH));
            line.set_style(style("{wide_msg}"));
            self.below.push(line);
        }
        for more in self.below.drain(lines.len()..) {
            more.finish_and_clear();
        }
        for (line, text) in self.below.iter().zip(lines) {
            line.set_message(text.clone());
        }
    }

    fn show_waiting(&mut self, waiting_for: &str) {
        if waiting_for.is_empty() {
            if let Some(line) = self.waiting.take() {
                line.finish_and_clear();
            }
            return;
        }
        let add = || {
            let line = self.area.add(ProgressBar::new(LENGTH));
            line.set_style(style("waiting: {wide_msg}"));
            line
        };
        self.waiting.get_or_insert_with(add).set_message(waiting_for.to_owned());
    }

    /// Leaves the bars as they are on the terminal.
    pub(super) fn finish(&mut self) {
        self.show_waiting("");
        self.show_below(&[]);
        for bar in self.stages.values().chain(self.layers.values()) {
            bar.bar.abandon();
        }
    }
}
