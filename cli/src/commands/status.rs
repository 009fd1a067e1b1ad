//! `deltaconv status`.

use std::fmt::Write;
use std::process::ExitCode;

use clap::Args;
use deltaconv_proto::v1;

use super::interrupted;
use crate::args::{OfJob, Refresh};
use crate::client::Client;
use crate::error::Error;
use crate::{duration, output, refresh, stage, table};

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    of: OfJob,
    #[command(flatten)]
    refresh: Refresh,
}

pub(crate) async fn run(arguments: Arguments) -> Result<ExitCode, Error> {
    let Arguments { of: OfJob { job, connection, output }, refresh } = arguments;
    let ask = async || Client::connect(&connection).await?.job(&job).await;
    let tell = |status: &v1::JobStatus, wide: bool| match wide {
        false => output::print(&describe(status)),
        true => output::print(&format!("{}\n\n{}", describe(status), tasks(&status.tasks))),
    };
    let shown = refresh::show(refresh, output, ask, tell);
    Ok(shown.await?.map_or_else(interrupted, |_| ExitCode::SUCCESS))
}

/// Where a job stands, for people.
pub(crate) fn describe(status: &v1::JobStatus) -> String {
    let mut parts = vec![headline(status), stages(&status.stages), layers(&status.layers)];
    parts.extend(troubles(&status.tasks));
    parts.extend(status.figures.as_ref().map(figures));
    parts.join("\n\n")
}

/// All tasks.
fn tasks(tasks: &[v1::TaskStatus]) -> String {
    let mut listing = table::table(["task", "state", "worker", "attempt", "attempts", "failures"]);
    for task in tasks {
        listing.add_row([
            task.task_id.clone(),
            task.state.clone(),
            both(&task.worker_id, &task.spare_worker_id),
            both(&task.attempt_id, &task.spare_attempt_id),
            task.attempts.to_string(),
            task.failures.to_string(),
        ]);
    }
    table::numbers(&mut listing, &[4, 5]);
    table::text(&listing)
}

/// Of an attempt, and of the spare one beside it if there is one.
fn both(first: &str, spare: &str) -> String {
    [first, spare].into_iter().filter(|id| !id.is_empty()).collect::<Vec<_>>().join(", ")
}

fn headline(status: &v1::JobStatus) -> String {
    let summary = status.summary.clone().unwrap_or_default();
    let mut text = format!("{} is {}", summary.job_id, summary.state);
    if summary.state == "running" {
        // Writing to a String cannot fail.
        let _ = write!(
            text,
            ", stage {}, {:.0} % done",
            stage::name(&summary.stage, summary.round),
            summary.fraction * 100.0
        );
    }
    if !summary.reason.is_empty() {
        let _ = write!(text, ": {}", summary.reason);
    }
    if !status.waiting_for.is_empty() {
        let _ = write!(text, "\nwaiting: {}", status.waiting_for);
    }
    let _ = write!(text, "\noutput: {}", summary.output_url);
    text
}

fn stages(stages: &[v1::StageStatus]) -> String {
    let mut listing = table::table(["stage", "done", "tasks", "running", "time", "samples", "samples/s"]);
    for stage in stages {
        let ended = stage.finished_unix_ms > 0;
        let seconds = stage.finished_unix_ms.saturating_sub(stage.started_unix_ms) as f64 / 1000.0;
        listing.add_row([
            stage::name(&stage.stage, stage.round),
            stage.committed.to_string(),
            stage.tasks.to_string(),
            stage.running.to_string(),
            if ended { duration::spell(seconds) } else { "–".into() },
            stage.samples.to_string(),
            table::figure(stage.samples_per_second, |rate| format!("{rate:.0}")),
        ]);
    }
    table::numbers(&mut listing, &[1, 2, 3, 4, 5, 6]);
    table::text(&listing)
}

fn layers(layers: &[v1::LayerStatus]) -> String {
    let mut columns = vec!["layer", "map", "channels", "kernel", "state", "step", "held-out error", "samples/s"];
    let costs_are_known = layers.iter().any(|layer| layer.alone_error.is_some());
    if costs_are_known {
        columns.push("alone");
    }
    let numbers: Vec<usize> = (1..columns.len()).filter(|column| columns[*column] != "state").collect();
    let mut listing = table::with_headings(columns.into_iter().map(str::to_uppercase));
    for layer in layers {
        let mut row = vec![
            layer.name.clone(),
            format!("{}×{}", layer.height, layer.width),
            layer.channels.to_string(),
            layer.kernel_size.to_string(),
            layer.state.clone(),
            format!("{}/{}", layer.step, layer.steps),
            table::figure(layer.held_out_error, |error| format!("{error:.5}")),
            table::figure(layer.samples_per_second, |rate| format!("{rate:.0}")),
        ];
        if costs_are_known {
            row.push(table::figure(layer.alone_error.unwrap_or(f64::NAN), |error| format!("{error:.5}")));
        }
        listing.add_row(row);
    }
    table::numbers(&mut listing, &numbers);
    table::text(&listing)
}

/// The tasks that failed at least once, and why.
fn troubles(tasks: &[v1::TaskStatus]) -> Option<String> {
    let mut listing = table::table(["task", "state", "attempts", "failures", "last failure"]);
    let troubled = tasks.iter().filter(|task| task.failures > 0 || !task.last_failure.is_empty());
    for task in troubled {
        listing.add_row([
            task.task_id.clone(),
            task.state.clone(),
            task.attempts.to_string(),
            task.failures.to_string(),
            task.last_failure.clone(),
        ]);
    }
    (!listing.is_empty()).then(|| table::text(&listing))
}

/// What the conversion achieved, beside what removing attention alone would have.
pub(crate) fn figures(figures: &v1::Figures) -> String {
    let staying =
        |v1::StaysAttention { layer, reason }: &v1::StaysAttention| format!("{layer} stays attention: {reason}\n");
    let staying: String = figures.stay_attention.iter().map(staying).collect();
    format!(
        "{staying}error of the predicted noise  {:.5}   (attention removed: {:.5})\n\
         same-seed samples             {:.2} dB  (attention removed: {:.2} dB)\n\
         blocks digest                 {}",
        figures.epsilon_relative_mse,
        figures.removed_epsilon_relative_mse,
        figures.psnr_db,
        figures.removed_psnr_db,
        figures.blocks_digest,
    )
}
