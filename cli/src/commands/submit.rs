//! `deltaconv submit`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use deltaconv_proto::v1;

use crate::args::{Connection, Output, Ownership};
use crate::client::Client;
use crate::error::Error;
use crate::{job_file, output, stage, table};

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// The job: teacher, output, and what departs from the defaults
    #[arg(value_name = "JOB.toml")]
    job: PathBuf,
    /// Show what would be done, and do nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    ownership: Ownership,
    #[command(flatten)]
    connection: Connection,
    #[command(flatten)]
    output: Output,
}

pub(crate) async fn run(arguments: Arguments) -> Result<ExitCode, Error> {
    let spec = job_file::read(&arguments.job)?;
    let to = &arguments.connection;
    let mut client = Client::connect(to).await?;
    if arguments.dry_run {
        let (teacher, destination) = (spec.teacher_url.clone(), spec.output_url.clone());
        let plan = client.plan(spec).await?;
        match arguments.output.data() {
            None => output::print(&describe(&plan, &teacher, &destination)),
            Some(data) => data.print(&v1::PlanResponse { plan: Some(plan) }),
        }
        return Ok(ExitCode::SUCCESS);
    }
    let submitted = client.submit(spec, arguments.ownership.take_over).await?;
    match arguments.output.data() {
        None => {
            output::print(&submitted.job_id);
            output::say(&describe_stages(&submitted.stages, submitted.stored_bytes));
            let found = if submitted.existed { "was there already" } else { "is accepted" };
            output::say(&format!(
                "{} {found}; follow it with `deltaconv watch {} --coordinator {to}`",
                submitted.job_id, submitted.job_id
            ));
        }
        Some(data) => data.print(&submitted),
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

    format!(
        "{} of {teacher}\n{} latents of {}×{}×{}, {} prompts{}\n\n{}\n\n{}\n\nEverything lies under {destination}.",
        plan.teacher_class,
        plan.latents,
        plan.latent_channels,
        plan.latent_height,
        plan.latent_width,
        plan.prompts,
        describe_buckets(plan),
        table::text(&layers),
        describe_stages(&plan.stages, plan.stored_bytes),
    )
}

/// What each stage will do, and what that comes to.
fn describe_stages(stages: &[v1::StagePlan], stored_bytes: u64) -> String {
    let mut listing = table::table(["stage", "tasks", "writes", "reads"]);
    let mut add = |stage: &str, tasks: u32, written: u64, read: u64| {
        let tasks = if tasks > 0 { tasks.to_string() } else { "–".into() };
        listing.add_row([stage.to_owned(), tasks, table::bytes(written), table::bytes(read)]);
    };
    for stage in stages {
        add(&stage::name(&stage.stage, stage.round), stage.tasks, stage.written_bytes, stage.read_bytes);
    }
    let sum = |bytes: fn(&v1::StagePlan) -> u64| stages.iter().map(bytes).fold(0, u64::saturating_add);
    let tasks = stages.iter().map(|stage| stage.tasks).sum();
    add("total", tasks, sum(|stage| stage.written_bytes), sum(|stage| stage.read_bytes));
    table::numbers(&mut listing, &[1, 2, 3]);
    format!("{}\nat most {} are stored at a time", table::text(&listing), table::bytes(stored_bytes))
}

/// A line about the sizes of a job that has several.
fn describe_buckets(plan: &v1::JobPlan) -> String {
    if plan.buckets.is_empty() {
        return String::new();
    }
    let pixels = |bucket: &v1::Bucket| format!("{}×{}", bucket.picture_height, bucket.picture_width);
    let sizes: Vec<String> = plan.buckets.iter().map(pixels).collect();
    format!("\nbuckets of {} pixels (height×width); latents and maps are those of the first", sizes.join(", "))
}
