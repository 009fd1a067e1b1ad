//! `deltaconv submit`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use deltaconv_proto::v1;

use crate::args::{Connection, Format, Output};
use crate::client::Client;
use crate::error::Error;
use crate::{job_file, output, table};

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// The job: teacher, output, and what departs from the defaults
    #[arg(value_name = "JOB.toml")]
    job: PathBuf,
    /// Show what would be done, and do nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    connection: Connection,
    #[command(flatten)]
    output: Output,
}

pub(crate) async fn run(arguments: Arguments) -> Result<ExitCode, Error> {
    let spec = job_file::read(&arguments.job)?;
    let url = &arguments.connection.coordinator;
    let mut client = Client::connect(url).await?;
    if arguments.dry_run {
        let (teacher, destination) = (spec.teacher_url.clone(), spec.output_url.clone());
        let plan = client.plan(spec).await?;
        match arguments.output.format {
            Format::Text => output::print(&describe(&plan, &teacher, &destination)),
            Format::Json => output::print_json(&v1::PlanResponse { plan: Some(plan) }),
        }
        return Ok(ExitCode::SUCCESS);
    }
    let submitted = client.submit(spec).await?;
    match arguments.output.format {
        Format::Text => {
            output::print(&submitted.job_id);
            let found = if submitted.existed { "was there already" } else { "is accepted" };
            output::say(&format!(
                "{} {found}; follow it with `deltaconv watch {} --coordinator {url}`",
                submitted.job_id, submitted.job_id
            ));
        }
        Format::Json => output::print_json(&submitted),
    }
    Ok(ExitCode::SUCCESS)
}

fn describe(plan: &v1::JobPlan, teacher: &str, destination: &str) -> String {
    let mut layers = table::table(["layer", "map", "channels", "kernel", "gate", "parameters"]);
    for layer in &plan.layers {
        layers.add_row([
            layer.name.clone(),
            format!("{}×{}", layer.height, layer.width),
            layer.channels.to_string(),
            layer.kernel_size.to_string(),
            layer.gate.clone(),
            layer.parameters.to_string(),
        ]);
    }
    for layer in &plan.kept {
        layers.add_row([layer, "", "", "", "kept", ""]);
    }
    table::numbers(&mut layers, &[1, 2, 3, 5]);

    let mut writes = table::table(["stage", "tasks", "writes"]);
    if plan.synthesise_tasks > 0 {
        writes.add_row(["synthesise", &plan.synthesise_tasks.to_string(), &table::bytes(plan.synthesise_bytes)]);
    }
    writes.add_row(["capture", &plan.capture_tasks.to_string(), &table::bytes(plan.capture_bytes)]);
    writes.add_row(["distill", &plan.distill_tasks.to_string(), &table::bytes(plan.checkpoint_bytes)]);
    writes.add_row(["assemble", "–", &table::bytes(plan.output_bytes)]);
    writes.add_row(["evaluate", &plan.evaluate_tasks.to_string(), "–"]);
    let total = plan.synthesise_bytes + plan.capture_bytes + plan.checkpoint_bytes + plan.output_bytes;
    let tasks = plan.synthesise_tasks + plan.capture_tasks + plan.distill_tasks + plan.evaluate_tasks;
    writes.add_row(["total", &tasks.to_string(), &table::bytes(total)]);
    table::numbers(&mut writes, &[1, 2]);

    format!(
        "{} of {teacher}\n{} latents of {}×{}×{}, {} prompts\n\n{}\n\n{}\n\nEverything lies under {destination}.",
        plan.teacher_class,
        plan.latents,
        plan.latent_channels,
        plan.latent_height,
        plan.latent_width,
        plan.prompts,
        table::text(&layers),
        table::text(&writes),
    )
}
