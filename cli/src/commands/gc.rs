//! `deltaconv gc`.

use std::process::ExitCode;

use clap::Args;
use deltaconv_proto::v1;

use crate::args::{Confirmation, Connection, Output};
use crate::client::Client;
use crate::error::Error;
use crate::{output, table};

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// The job's id, as `deltaconv jobs` lists it
    job: String,
    /// Count what would be removed, and remove nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    confirmation: Confirmation,
    #[command(flatten)]
    connection: Connection,
    #[command(flatten)]
    output: Output,
}

pub(crate) async fn run(arguments: Arguments) -> Result<ExitCode, Error> {
    let Arguments { job, dry_run, confirmation, connection, output } = arguments;
    let mut client = Client::connect(&connection).await?;
    if !dry_run {
        client.job(&job).await?;
        confirmation.ask(&format!("remove what {job} needs no more, and its logs"))?;
    }
    let collected = client.collect_garbage(&job, dry_run).await?;
    match output.data() {
        Some(data) => data.print(&collected),
        None => {
            output::print(&describe(&collected.removed));
            remarks(&collected, &job, dry_run).iter().for_each(|remark| output::say(remark));
        }
    }
    match collected.failed_objects {
        0 => Ok(ExitCode::SUCCESS),
        objects => Err(Error::NotRemoved { objects, reason: collected.failure }),
    }
}

fn describe(removed: &[v1::Garbage]) -> String {
    let mut listing = table::table(["kind", "objects", "bytes"]);
    let mut add = |kind: &str, objects: u64, bytes: u64| {
        listing.add_row([kind.to_owned(), objects.to_string(), table::bytes(bytes)]);
    };
    for v1::Garbage { kind, objects, bytes } in removed {
        add(kind, *objects, *bytes);
    }
    let sum = |of: fn(&v1::Garbage) -> u64| removed.iter().map(of).sum();
    add("total", sum(|garbage| garbage.objects), sum(|garbage| garbage.bytes));
    table::numbers(&mut listing, &[1, 2]);
    table::text(&listing)
}

/// What the figures don't say.
fn remarks(collected: &v1::CollectGarbageResponse, job: &str, dry_run: bool) -> Vec<String> {
    let mut remarks = Vec::new();
    if dry_run {
        remarks.push("nothing was removed; without --dry-run this would be".to_owned());
    }
    if collected.running {
        let stays = "what is or may be needed stays until the job is over: only orphaned attempts go";
        remarks.push(format!("a job is writing to the output of {job}; {stays}"));
    }
    match collected.unknown_objects {
        0 => {}
        1 => remarks.push("1 object that is no part of a job stays".to_owned()),
        objects => remarks.push(format!("{objects} objects that are no part of a job stay")),
    }
    remarks
}
