//! `report.html`: everything on one page that needs nothing beside it.

use std::fmt::{Display, Write};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use deltaconv_proto::shard::Contents;
use deltaconv_proto::v1::Recipe;

use super::json::{Finetune, Measures, Operations, Report};
use super::number::{grouped, seconds, significant};
use super::training::Solved;
use crate::observe::escape::escape;
use deltaconv_proto::v1::StaysAttention;

/// Puts the page together. Every text from outside is escaped.
pub(super) fn page(report: &Report, samples_png: &[u8], loss_svg: &str) -> String {
    let samples = &report.samples;
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>{0} · deltaconv</title>\n\
         <style>\n{1}</style>\n</head>\n<body>\n<main>\n<h1>{0}</h1>\n\
         <p class=\"faint\">{2} without attention: {3} layers replaced by blocks of {4} parameters</p>\n",
        escape(&report.job),
        include_str!("report.css"),
        escape(&report.teacher_class),
        report.layers.len(),
        grouped(report.layers.iter().map(|layer| layer.parameters).sum()),
    );
    page.push_str(&figures(report));
    let _ = write!(
        page,
        "<h2>Samples</h2>\n<p class=\"faint\">Teacher above student from the same noise; {} DDIM steps, guidance {}.</p>\n\
         <div class=\"scroll picture\"><img alt=\"Pictures of the teacher above those of the student\" \
         src=\"data:image/png;base64,{}\"></div>\n\
         <h2>Training</h2>\n<div class=\"scroll picture\">{loss_svg}</div>\n",
        samples.ddim_steps,
        samples.guidance,
        STANDARD.encode(samples_png),
    );
    page.push_str("<h2>Layers</h2>\n");
    page.push_str(&staying(report));
    page.push_str(&layers(report));
    page.push_str("<h2>Side by side</h2>\n");
    page.push_str(&measures(report));
    page.push_str("<h2>Samples by prompt</h2>\n");
    page.push_str(&prompts(report));
    page.push_str("<h2>What a sample costs</h2>\n");
    page.push_str(&costs(report));
    page.push_str("<h2>Stages</h2>\n");
    page.push_str(&stages(report));
    page.push_str("<h2>What this was</h2>\n");
    page.push_str(&provenance(report));
    page.push_str("</main>\n</body>\n</html>\n");
    page
}

fn figures(report: &Report) -> String {
    let (student, removed) = (&report.student, &report.attention_removed);
    let figure = |value: String, what: &str, floor: String| {
        format!("<div class=\"figure\"><b>{value}</b>{what}<br><span>attention removed: {floor}</span></div>\n")
    };
    format!(
        "<div class=\"figures\">\n{}{}{}</div>\n\
         <p class=\"faint\">Noise: squared error over the teacher's mean square, {} held-out samples, lower is better. \
         PSNR: pixels clamped to −1…1, peak to peak 2, mean over {} pictures, higher is better.</p>\n",
        figure(
            significant(student.epsilon_relative_mse),
            "error of the predicted noise",
            significant(removed.epsilon_relative_mse)
        ),
        figure(decibels(student.psnr_db), "same-seed PSNR, mean", decibels(removed.psnr_db)),
        figure(decibels(student.psnr_median_db), "same-seed PSNR, median", decibels(removed.psnr_median_db)),
        grouped(report.noise_samples),
        report.samples.prompts.len(),
    )
}

fn decibels(value: f64) -> String {
    format!("{value:.1} dB")
}

/// A table's cell: text to the left, numbers to the right.
enum Cell {
    Text(String),
    Number(String),
}

fn number(value: impl Display) -> Cell {
    Cell::Number(value.to_string())
}

fn table(head: &[Cell], rows: impl Iterator<Item = Vec<Cell>>) -> String {
    let cells = |tag: &str, cells: &[Cell]| {
        let cell = |cell: &Cell| match cell {
            Cell::Text(text) => format!("<{tag}>{}</{tag}>", escape(text)),
            Cell::Number(text) => format!("<{tag} class=\"number\">{}</{tag}>", escape(text)),
        };
        format!("<tr>{}</tr>\n", cells.iter().map(cell).collect::<String>())
    };
    let rows: String = rows.map(|row| cells("td", &row)).collect();
    format!("<div class=\"scroll\"><table>\n{}{rows}</table></div>\n", cells("th", head))
}

fn layers(report: &Report) -> String {
    let head = [
        Cell::Text("layer".to_owned()),
        number("map"),
        number("channels"),
        number("kernel"),
        number("inner width"),
        number("parameters"),
        number("steps"),
        number("held-out error"),
        number("cost alone"),
        number("by quarters of the timesteps"),
        number("drift before it"),
    ];
    let or_dash = |value: Option<f64>| number(value.map_or("–".to_owned(), significant));
    let row = |layer: &super::json::LayerEntry| {
        vec![
            Cell::Text(layer.name.clone()),
            number(format_args!("{}×{}", layer.height, layer.map_width)),
            number(layer.width),
            number(layer.kernel_size),
            number(if layer.inter_ratio > report.recipe.inter_ratio {
                format!("{} (widened)", layer.inter_ratio)
            } else {
                layer.inter_ratio.to_string()
            }),
            number(grouped(layer.parameters)),
            number(grouped(layer.steps)),
            number(held_out(layer)),
            or_dash(layer.alone.as_ref().map(|alone| alone.epsilon_relative_mse)),
            number(layer.alone.as_ref().map_or("–".to_owned(), |alone| {
                let quarters = alone.epsilon_relative_mse_by_timestep_quarter.into_iter();
                quarters.map(|error| error.map_or("–".to_owned(), significant)).collect::<Vec<_>>().join(", ")
            })),
            or_dash(layer.residual_drift),
        ]
    };
    let what = format!(
        "<p class=\"faint\">Steps: of its block's last training. Held-out error: of the layer's output, over its mean square. Cost alone: error of the predicted \
         noise when no other layer is replaced, and that by quarters of the timesteps, least noise first. Drift: squared difference of the student's residual stream from the \
         teacher's, over its mean square. Both over {} held-out samples.</p>\n",
        grouped(report.layer_samples),
    );
    what + &table(&head, report.layers.iter().map(row))
}

/// A block's held-out error, with what happened on the way.
fn held_out(layer: &super::json::LayerEntry) -> String {
    let mut text = significant(layer.relative_error);
    if layer.setbacks > 0 {
        let _ = write!(text, " (went back {}×)", layer.setbacks);
    }
    if let Some(solved) = layer.solved.filter(Solved::is_kept) {
        let _ = write!(text, " (before solving {})", significant(solved.before));
    }
    text
}

/// The layers that stay attention though they were to be replaced.
fn staying(report: &Report) -> String {
    let one = |StaysAttention { layer, reason }: &StaysAttention| {
        format!("<p><b>{} stays attention:</b> {}.</p>\n", escape(layer), escape(reason))
    };
    report.stay_attention.iter().map(one).collect()
}

/// All that was compared with the teacher, on the same held-out samples and from the same noise.
fn measures(report: &Report) -> String {
    let mut columns = vec![("attention removed".to_owned(), &report.attention_removed)];
    columns.extend(report.ridge_only.as_ref().map(|measures| ("ridge only".to_owned(), measures)));
    columns.extend(report.rounds.iter().map(|round| (format!("round {}", round.round), &round.measures)));
    let student = if report.finetune.is_some() { "student, end to end" } else { "student" };
    columns.push((student.to_owned(), &report.student));
    let mut head = vec![Cell::Text(String::new())];
    head.extend(columns.iter().map(|(name, _)| number(name)));
    let row = |name: &str, of: &dyn Fn(&Measures) -> String| {
        let cells = columns.iter().map(|(_, measures)| number(of(measures)));
        std::iter::once(Cell::Text(name.to_owned())).chain(cells).collect::<Vec<_>>()
    };
    let quarter = |i: usize| {
        move |of: &Measures| of.epsilon_relative_mse_by_timestep_quarter[i].map_or("–".to_owned(), significant)
    };
    let rows = [
        row("noise, first quarter of the timesteps, least noise", &quarter(0)),
        row("second", &quarter(1)),
        row("third", &quarter(2)),
        row("last quarter, most noise", &quarter(3)),
        row("all timesteps", &|of| significant(of.epsilon_relative_mse)),
        row("PSNR, mean", &|of| decibels(of.psnr_db)),
        row("PSNR, median", &|of| decibels(of.psnr_median_db)),
    ];
    table(&head, rows.into_iter()) + &report.finetune.as_ref().map(finetune).unwrap_or_default()
}

fn finetune(of: &Finetune) -> String {
    let Finetune { steps, error_before, error_after, story } = of;
    let kept = if error_after < error_before { "" } else { " The blocks stayed as they were." };
    let story = if story.is_empty() { String::new() } else { format!(" It ended early: {}.", escape(story)) };
    format!(
        "<p class=\"faint\">All blocks trained together in {} steps: the error of the predicted noise on the held-out samples \
         of that training went from {} to {}.{story}{kept}</p>\n",
        grouped(*steps),
        significant(*error_before),
        significant(*error_after),
    )
}

fn prompts(report: &Report) -> String {
    let head = [Cell::Text("prompt".to_owned()), number("PSNR")];
    let pictures = report.samples.prompts.iter().zip(&report.samples.psnr_db);
    table(&head, pictures.map(|(prompt, psnr)| vec![Cell::Text(prompt.clone()), number(decibels(*psnr))]))
}

fn costs(report: &Report) -> String {
    let head = [Cell::Text(String::new()), number("teacher"), number("student"), number("teacher / student")];
    let ratio = |teacher: f64, student: f64| {
        number(if student > 0.0 { significant(teacher / student) } else { "–".to_owned() })
    };
    let Operations { attention, blocks } = report.multiply_accumulates;
    let mut rows = vec![vec![
        Cell::Text("multiply-accumulates of the replaced layers".to_owned()),
        number(millions(attention)),
        number(millions(blocks)),
        ratio(attention as f64, blocks as f64),
    ]];
    if let Some(latency) = &report.latency {
        let milliseconds = |seconds: f64| number(format!("{} ms", significant(seconds * 1e3)));
        rows.push(vec![
            Cell::Text(format!("a sample's pass through the whole model, median of {} batches", latency.batches)),
            milliseconds(latency.teacher_seconds),
            milliseconds(latency.student_seconds),
            ratio(latency.teacher_seconds, latency.student_seconds),
        ]);
    }
    table(&head, rows.into_iter())
}

fn millions(count: u64) -> String {
    format!("{} M", significant(count as f64 / 1e6))
}

fn stages(report: &Report) -> String {
    let head = [
        Cell::Text("stage".to_owned()),
        number("tasks"),
        number("samples"),
        number("time"),
        number("time of all workers"),
        number("of it on GPUs"),
        number("bytes written"),
    ];
    let row = |stage: &super::StageFigures| {
        vec![
            Cell::Text(if stage.round > 0 {
                format!("{}, round {}", stage.stage, stage.round)
            } else {
                stage.stage.clone()
            }),
            number(stage.tasks),
            number(grouped(stage.samples)),
            number(seconds(stage.seconds)),
            number(seconds(stage.busy_seconds)),
            number(seconds(stage.gpu_seconds)),
            number(grouped(stage.written_bytes)),
        ]
    };
    table(&head, report.stages.iter().map(row))
}

fn rounds(recipe: &Recipe) -> String {
    if recipe.rounds == 0 {
        return "none".to_owned();
    }
    let share = recipe.teacher_share * 100.0;
    let steps = grouped(recipe.round_steps.into());
    let spread = if recipe.is_by_gain() { " on average" } else { "" };
    format!("{} of {steps} steps{spread}, {share:.0} % of the samples from the teacher", recipe.rounds)
}

fn provenance(report: &Report) -> String {
    let recipe = &report.recipe;
    let scales = recipe.scales.iter().map(f64::to_string).collect::<Vec<_>>().join(", ");
    let entries = [
        ("teacher", report.teacher_url.clone()),
        ("seed", report.seed.to_string()),
        (
            "samples",
            format!("{} and {} held out", grouped(recipe.samples.into()), grouped(recipe.held_out_samples.into())),
        ),
        ("stored of them", recipe.store.clone().unwrap_or_else(|| Contents::NAMED[0].0.to_owned())),
        ("steps", format!("{} of {} samples", grouped(recipe.steps.into()), recipe.batch)),
        ("further rounds", rounds(recipe)),
        ("start", recipe.start.clone().unwrap_or_else(|| "random".to_owned())),
        ("solved at the end", if recipe.solves() { "yes" } else { "no" }.to_owned()),
        ("learning rate", format!("{} after {} steps of warm-up", recipe.learning_rate, recipe.warmup_steps)),
        ("block", format!("inner width {} of the channels, scales {scales}", recipe.inter_ratio)),
    ];
    let digests = &report.digests;
    let digests =
        [("BLAKE3 of teacher", &digests.teacher), ("of blocks", &digests.blocks), ("of model", &digests.model)];
    let mut list = String::from("<div class=\"scroll\"><dl>\n");
    for (name, value) in entries {
        let _ = writeln!(list, "<dt>{name}</dt><dd>{}</dd>", escape(&value));
    }
    for (name, value) in digests {
        let _ = writeln!(list, "<dt>{name}</dt><dd><code>{}</code></dd>", escape(value));
    }
    list.push_str("</dl></div>\n");
    list
}
