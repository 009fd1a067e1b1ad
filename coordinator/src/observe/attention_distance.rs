//! How far every layer's attention reaches, as an SVG: a panel a layer, all with the same axes.
//!
//! The picture brings its own background, so it looks the same on dark and light pages.

use std::fmt::Write;

use super::escape::escape;
use super::layer_name::short_name;

/// One layer's curve.
#[derive(Debug, Clone, PartialEq)]
pub struct Curve {
    /// diffusers' module path.
    pub layer: String,
    /// H and W of its map.
    pub map: [usize; 2],
    /// Share of the high-pass attention mass up to each distance d from 0, which is what a kernel of 2d + 1 holds.
    /// Empty where there is no such mass.
    pub cumulative: Vec<f64>,
    /// The smallest kernel that holds `share` of it.
    pub kernel_size: Option<u32>,
    /// The kernel that is planned by default.
    pub planned: u32,
}

const WIDTH: f64 = 960.0;
const TOP: f64 = 104.0;
const BOTTOM: f64 = 20.0;
const SIDE: f64 = 24.0;
const COLUMNS: usize = 4;
const PANEL_HEIGHT: f64 = 172.0;
/// Of the plot within its panel.
const PLOT_LEFT: f64 = 30.0;
const PLOT_TOP: f64 = 44.0;
const PLOT_WIDTH: f64 = 186.0;
const PLOT_HEIGHT: f64 = 92.0;

const BLUE: &str = "#0072b2";
const ORANGE: &str = "#d55e00";
const GREY: &str = "#666";

/// Kernels that are labelled on an axis.
const TICKS: [u32; 8] = [1, 3, 7, 15, 31, 63, 127, 255];

/// Draws the curves. `share` is what the marked kernels hold.
pub fn svg(curves: &[Curve], share: f64) -> String {
    let rows = curves.len().div_ceil(COLUMNS);
    let height = TOP + rows as f64 * PANEL_HEIGHT + BOTTOM;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" height=\"{height}\" \
         role=\"img\" aria-label=\"How far the attention of every layer reaches\" \
         font-family=\"system-ui, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif\" font-size=\"13\" fill=\"#333\">\n\
         <rect x=\"0.5\" y=\"0.5\" width=\"{}\" height=\"{}\" rx=\"8\" fill=\"#fff\" stroke=\"#d0d0d0\"/>\n\
         <text x=\"{SIDE}\" y=\"30\" font-size=\"17\" font-weight=\"600\">How far attention reaches</text>\n\
         <text x=\"{SIDE}\" y=\"51\" fill=\"#555\">Share of the high-pass attention mass that a kernel of K × K around \
         the query holds, over K (logarithmic).</text>\n",
        WIDTH - 1.0,
        height - 1.0,
    );
    legend(&mut svg, share);
    let widest = curves.iter().map(|curve| kernel_of(curve.cumulative.len().saturating_sub(1))).max();
    let axes = Axes { widest: widest.unwrap_or(1).max(3), share };
    for (i, curve) in curves.iter().enumerate() {
        let pitch = (WIDTH - 2.0 * SIDE) / COLUMNS as f64;
        let (column, row) = (i % COLUMNS, i / COLUMNS);
        let (x, y) = (SIDE + column as f64 * pitch, TOP + row as f64 * PANEL_HEIGHT);
        let _ = writeln!(svg, "<g transform=\"translate({x:.1} {y:.1})\"><title>{}</title>", escape(&curve.layer));
        axes.panel(&mut svg, curve);
        svg.push_str("</g>\n");
    }
    svg.push_str("</svg>\n");
    svg
}

fn legend(svg: &mut String, share: f64) {
    let y = 76.0;
    let _ = writeln!(
        svg,
        "<circle cx=\"{}\" cy=\"{}\" r=\"4\" fill=\"{ORANGE}\"/>\
         <text x=\"{}\" y=\"{y}\" fill=\"#555\">smallest odd K that holds {:.0} %</text>\
         <path d=\"{}\" fill=\"{GREY}\"/><text x=\"{}\" y=\"{y}\" fill=\"#555\">K planned by default</text>",
        SIDE + 5.0,
        y - 4.5,
        SIDE + 16.0,
        100.0 * share,
        triangle(SIDE + 255.0, y - 10.0),
        SIDE + 266.0,
    );
}

/// What all panels have in common.
struct Axes {
    /// The largest K.
    widest: u32,
    share: f64,
}

impl Axes {
    fn x(&self, kernel: u32) -> f64 {
        PLOT_LEFT + PLOT_WIDTH * f64::from(kernel.min(self.widest)).ln() / f64::from(self.widest).ln()
    }

    fn y(share: f64) -> f64 {
        PLOT_TOP + PLOT_HEIGHT * (1.0 - share)
    }

    fn panel(&self, svg: &mut String, curve: &Curve) {
        let [height, width] = curve.map;
        let found = curve.kernel_size.map_or_else(|| "–".to_owned(), |kernel| kernel.to_string());
        let _ = writeln!(
            svg,
            "<text x=\"{PLOT_LEFT}\" y=\"16\" font-weight=\"600\">{}</text>\
             <text x=\"{PLOT_LEFT}\" y=\"33\" font-size=\"12\" fill=\"{GREY}\">{height}×{width} · \
             <tspan fill=\"{ORANGE}\" font-weight=\"600\">K {found}</tspan> · planned {}</text>",
            escape(&short_name(&curve.layer)),
            curve.planned
        );
        self.grid(svg);
        if curve.cumulative.is_empty() {
            let (x, y) = (PLOT_LEFT + PLOT_WIDTH / 2.0, Self::y(0.4));
            let _ = writeln!(svg, "<text x=\"{x}\" y=\"{y}\" text-anchor=\"middle\" fill=\"{GREY}\">uniform</text>");
        } else {
            self.curve(svg, curve);
        }
        let _ = writeln!(svg, "<path d=\"{}\" fill=\"{GREY}\"/>", triangle(self.x(curve.planned), Self::y(0.0) - 9.0));
    }

    fn grid(&self, svg: &mut String) {
        let right = PLOT_LEFT + PLOT_WIDTH;
        for share in [0.0, 0.5, 1.0] {
            let y = Self::y(share);
            let _ = write!(
                svg,
                "<path d=\"M{PLOT_LEFT} {y}H{right}\" stroke=\"{}\"/>\
                 <text x=\"{}\" y=\"{}\" text-anchor=\"end\" font-size=\"10\" fill=\"{GREY}\">{:.0} %</text>",
                if share == 0.0 { "#888" } else { "#e4e4e4" },
                PLOT_LEFT - 4.0,
                y + 3.5,
                100.0 * share
            );
        }
        let y = Self::y(self.share);
        let _ = write!(svg, "<path d=\"M{PLOT_LEFT} {y:.1}H{right}\" stroke=\"{ORANGE}\" stroke-dasharray=\"3 3\"/>");
        for kernel in TICKS.into_iter().filter(|kernel| *kernel <= self.widest) {
            let (x, y) = (self.x(kernel), Self::y(0.0));
            let _ = write!(
                svg,
                "<path d=\"M{x:.1} {y}v4\" stroke=\"#888\"/>\
                 <text x=\"{x:.1}\" y=\"{}\" text-anchor=\"middle\" font-size=\"10\" fill=\"{GREY}\">{kernel}</text>",
                y + 15.0
            );
        }
        svg.push('\n');
    }

    fn curve(&self, svg: &mut String, curve: &Curve) {
        let mut path = String::new();
        for (distance, share) in curve.cumulative.iter().enumerate() {
            let command = if distance == 0 { 'M' } else { 'L' };
            let _ = write!(path, "{command}{:.1} {:.1}", self.x(kernel_of(distance)), Self::y(*share));
        }
        let _ = writeln!(
            svg,
            "<path d=\"{path}V{}H{PLOT_LEFT}Z\" fill=\"{BLUE}\" fill-opacity=\"0.12\"/>\
             <path d=\"{path}\" fill=\"none\" stroke=\"{BLUE}\" stroke-width=\"2\" stroke-linejoin=\"round\"/>",
            Self::y(0.0),
        );
        let at = curve.kernel_size.map(|kernel| (kernel, curve.cumulative.get(kernel as usize / 2)));
        if let Some((kernel, Some(share))) = at {
            let (x, y) = (self.x(kernel), Self::y(*share));
            let _ = writeln!(svg, "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"4\" fill=\"{ORANGE}\"/>");
        }
    }
}

/// K of the window up to a distance.
fn kernel_of(distance: usize) -> u32 {
    2 * distance as u32 + 1
}

/// A small one that points down to (x, y + 9).
fn triangle(x: f64, y: f64) -> String {
    format!("M{:.1} {y:.1}h9l-4.5 9z", x - 4.5)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_layer_has_its_panel() {
        let curve = |layer: &str, cumulative: Vec<f64>, kernel_size| Curve {
            layer: layer.to_owned(),
            map: [4, 8],
            cumulative,
            kernel_size,
            planned: 13,
        };
        let curves = [curve("up_blocks.1.<b>", vec![0.25, 0.85, 1.0], Some(3)), curve("mid_block", vec![], None)];
        let svg = svg(&curves, 0.8);
        assert_eq!(svg.matches("<g ").count(), 2);
        assert!(svg.contains("up 1.&lt;b&gt;") && !svg.contains("<b>") && !svg.contains("NaN"), "{svg}");
        // K 3 of 5, on a logarithmic axis, at 85 %.
        let x = PLOT_LEFT + PLOT_WIDTH * 3_f64.ln() / 5_f64.ln();
        let marker = format!("<circle cx=\"{x:.1}\" cy=\"{:.1}\"", PLOT_TOP + PLOT_HEIGHT * 0.15);
        assert_eq!(svg.matches(&marker).count(), 1, "{svg}");
        assert!(svg.contains("uniform"), "{svg}");
        assert!(super::svg(&[], 0.8).ends_with("</svg>\n"));
    }
}
