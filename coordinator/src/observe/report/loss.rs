//! `loss.svg`: every layer's curve. The picture brings its own background, so it looks the same on dark and light pages.

use std::fmt::Write;

use super::Layer;
use super::number::{grouped, significant};
use super::ticks::{self, LogAxis};
use crate::observe::escape::escape;
use crate::observe::layer_name::short_name;

/// Okabe and Ito's palette, which the colour-blind can tell apart, without its yellow, too pale on white. Once all are
/// used, the next layers have them again with dashes.
const COLOURS: [&str; 7] = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#222222"];
const DASHES: [&str; 4] = ["", "7 3", "2 3", "9 3 2 3"];

/// Points of a curve; more can't be told apart.
pub(super) const DRAWN: usize = 300;

const WIDTH: f64 = 960.0;
const LEFT: f64 = 78.0;
const RIGHT: f64 = 32.0;
const TOP: f64 = 66.0;
const PLOT_HEIGHT: f64 = 380.0;
const BOTTOM: f64 = 62.0;
const LEGEND_COLUMNS: usize = 3;
const LEGEND_LEFT: f64 = 30.0;
const LEGEND_ROW: f64 = 22.0;

/// Draws the curves of all layers.
pub(super) fn svg(layers: &[Layer]) -> String {
    let legend_rows = layers.len().div_ceil(LEGEND_COLUMNS);
    let height = TOP + PLOT_HEIGHT + BOTTOM + legend_rows as f64 * LEGEND_ROW + 16.0;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" height=\"{height}\" \
         role=\"img\" aria-label=\"Error of every layer's block during training\" \
         font-family=\"system-ui, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif\" font-size=\"14\" fill=\"#333\">\n\
         <rect x=\"0.5\" y=\"0.5\" width=\"{}\" height=\"{}\" rx=\"8\" fill=\"#fff\" stroke=\"#d0d0d0\"/>\n\
         <text x=\"{LEFT}\" y=\"28\" font-size=\"17\" font-weight=\"600\">Error of each layer's block</text>\n\
         <text x=\"{LEFT}\" y=\"48\" fill=\"#555\">over the mean square of the layer's output · thick: held out · thin: \
         training</text>\n",
        WIDTH - 1.0,
        height - 1.0,
    );
    let points = || layers.iter().flat_map(|layer| &layer.training.curve);
    let values = points().flat_map(|point| [Some(point.loss), point.held_out]).flatten();
    match LogAxis::around(values) {
        Some(errors) => {
            let steps = points().map(|point| point.step).max().unwrap_or_default().max(1);
            let plot = Plot { errors, steps };
            plot.axes(&mut svg);
            // Held-out curves go over all training curves, or the noise would hide them.
            layers.iter().enumerate().for_each(|(i, layer)| plot.training(&mut svg, i, layer));
            layers.iter().enumerate().for_each(|(i, layer)| plot.held_out(&mut svg, i, layer));
        }
        None => {
            let (x, y) = (WIDTH / 2.0, TOP + PLOT_HEIGHT / 2.0);
            let _ = writeln!(svg, "<text x=\"{x}\" y=\"{y}\" text-anchor=\"middle\">no curve was recorded</text>");
        }
    }
    for (i, layer) in layers.iter().enumerate() {
        legend(&mut svg, i, layer, legend_rows);
    }
    svg.push_str("</svg>\n");
    svg
}

struct Plot {
    errors: LogAxis,
    steps: u64,
}

impl Plot {
    fn x(&self, step: u64) -> f64 {
        LEFT + (WIDTH - LEFT - RIGHT) * (step as f64 / self.steps as f64)
    }

    fn y(&self, error: f64) -> f64 {
        TOP + PLOT_HEIGHT * (1.0 - self.errors.place(error))
    }

    fn axes(&self, svg: &mut String) {
        let (right, bottom) = (WIDTH - RIGHT, TOP + PLOT_HEIGHT);
        for (error, label) in self.errors.ticks() {
            let y = self.y(error);
            let _ = writeln!(
                svg,
                "<line x1=\"{LEFT}\" y1=\"{y:.1}\" x2=\"{right}\" y2=\"{y:.1}\" stroke=\"#e4e4e4\"/>\
                 <text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{label}</text>",
                LEFT - 10.0,
                y + 5.0
            );
        }
        for step in ticks::linear(self.steps) {
            let x = self.x(step);
            let _ = writeln!(
                svg,
                "<line x1=\"{x:.1}\" y1=\"{bottom}\" x2=\"{x:.1}\" y2=\"{}\" stroke=\"#888\"/>\
                 <text x=\"{x:.1}\" y=\"{}\" text-anchor=\"middle\">{}</text>",
                bottom + 5.0,
                bottom + 22.0,
                grouped(step)
            );
        }
        let _ = writeln!(
            svg,
            "<path d=\"M{LEFT} {TOP}V{bottom}H{right}\" fill=\"none\" stroke=\"#888\"/>\
             <text x=\"{}\" y=\"{}\" text-anchor=\"middle\" fill=\"#555\">step</text>",
            LEFT.midpoint(right),
            bottom + 42.0
        );
    }

    fn training(&self, svg: &mut String, i: usize, layer: &Layer) {
        let path = self.path(layer.training.curve.iter().map(|point| (point.step, point.loss)));
        let _ = writeln!(
            svg,
            "<path d=\"{path}\" fill=\"none\" stroke=\"{}\" stroke-width=\"1\" stroke-opacity=\"0.35\" \
             stroke-linejoin=\"round\"/>",
            colour(i)
        );
    }

    fn held_out(&self, svg: &mut String, i: usize, layer: &Layer) {
        let mut measured = layer.training.curve.iter().filter_map(|point| Some((point.step, point.held_out?)));
        let path = self.path(measured.clone());
        let _ = writeln!(
            svg,
            "<path d=\"{path}\" fill=\"none\" stroke=\"{}\" stroke-width=\"2.5\" stroke-dasharray=\"{}\" \
             stroke-linejoin=\"round\"><title>{}</title></path>",
            colour(i),
            dashes(i),
            escape(&layer.plan.name)
        );
        // A single measurement makes no line; the last one is where the eye goes anyway.
        if let Some((step, error)) = measured.next_back() {
            let (x, y) = (self.x(step), self.y(error));
            let _ = writeln!(svg, "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"4\" fill=\"{}\"/>", colour(i));
        }
    }

    fn path(&self, points: impl Iterator<Item = (u64, f64)>) -> String {
        let mut path = String::new();
        for (step, error) in points {
            let command = if path.is_empty() { 'M' } else { 'L' };
            let _ = write!(path, "{command}{:.1} {:.1}", self.x(step), self.y(error));
        }
        path
    }
}

/// Columns from top to bottom, then to the right.
fn legend(svg: &mut String, i: usize, layer: &Layer, rows: usize) {
    let (column, row) = (i / rows.max(1), i % rows.max(1));
    let x = LEGEND_LEFT + column as f64 * (WIDTH - 2.0 * LEGEND_LEFT) / LEGEND_COLUMNS as f64;
    let y = TOP + PLOT_HEIGHT + BOTTOM + 8.0 + row as f64 * LEGEND_ROW;
    let plan = &layer.plan;
    let _ = writeln!(
        svg,
        "<line x1=\"{x:.1}\" y1=\"{y:.1}\" x2=\"{:.1}\" y2=\"{y:.1}\" stroke=\"{}\" stroke-width=\"3\" \
         stroke-dasharray=\"{}\"/><text x=\"{:.1}\" y=\"{:.1}\">{}<tspan fill=\"#666\"> · {}×{} · K {} · {}</tspan>\
         <title>{}</title></text>",
        x + 26.0,
        colour(i),
        dashes(i),
        x + 34.0,
        y + 5.0,
        escape(&short_name(&plan.name)),
        plan.height,
        plan.width,
        plan.kernel_size,
        significant(layer.relative_error),
        escape(&plan.name)
    );
}

fn colour(i: usize) -> &'static str {
    COLOURS[i % COLOURS.len()]
}

fn dashes(i: usize) -> &'static str {
    DASHES[i / COLOURS.len() % DASHES.len()]
}
