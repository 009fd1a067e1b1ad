//! `deltaconv coordinator restore`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use deltaconv_coordinator::restore::{self, Restored};
use deltaconv_proto::utc;

use crate::args::Output;
use crate::error::{Error, explain};
use crate::{host, location, output, table};

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Folder of the state that is made; may hold tokens and keys, and nothing else
    #[arg(long, value_name = "DIR")]
    state: PathBuf,
    /// A backup, or the folder or bucket where backups lie; the newest that is whole is taken
    #[arg(long, value_name = "URL", conflicts_with = "snapshots")]
    backup: Option<String>,
    /// Where the lost coordinator wrote its snapshots; the newest that is whole is taken
    #[arg(long, value_name = "URL", required_unless_present_any = ["backup", "jobs"])]
    snapshots: Option<String>,
    /// Take this snapshot, by its name there
    #[arg(long, value_name = "NAME", requires = "snapshots")]
    snapshot: Option<String>,
    /// Output of a job that is taken up as its manifests have it: for each where there is no snapshot, or one that came after it
    #[arg(long = "job", value_name = "URL")]
    jobs: Vec<String>,
    #[command(flatten)]
    output: Output,
}

pub(super) async fn run(arguments: Arguments) -> Result<ExitCode, Error> {
    let url = |named: &String| location::url(named, Path::new(""));
    let options = restore::Options {
        state: arguments.state.clone(),
        backup: arguments.backup.as_ref().map(url).transpose()?,
        snapshots: arguments.snapshots.as_ref().map(url).transpose()?,
        snapshot: arguments.snapshot,
        jobs: arguments.jobs.iter().map(url).collect::<Result<_, _>>()?,
        host: host::name(),
    };
    let restored = restore::restore(options).await;
    let restored = restored.map_err(|error| Error::Coordinator { message: explain(&error), code: error.code() })?;
    match arguments.output.data() {
        Some(data) => data.print(&restored),
        None => {
            restored.remarks.iter().for_each(|remark| output::say(remark));
            output::print(&describe(&restored));
            let state = arguments.state.display();
            output::say(&format!("start it with `deltaconv coordinator --state {state}`"));
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn describe(restored: &Restored) -> String {
    let mut listing = table::table(["job", "state", "accepted tasks", "of them from manifests", "output"]);
    for job in &restored.jobs {
        let (committed, from_manifests) = (job.committed.to_string(), job.from_manifests.to_string());
        listing.add_row([&job.job_id, &job.state, &committed, &from_manifests, &job.output_url]);
    }
    table::numbers(&mut listing, &[2, 3]);
    let taken = utc(restored.snapshot_unix_ms);
    let source = match (restored.backup.as_str(), restored.snapshot.as_str()) {
        ("", "") => "from manifests".to_owned(),
        ("", key) => format!("from {key}, as it was at {taken}"),
        (url, _) if restored.files.is_empty() => format!("from {url}, as it was at {taken}"),
        (url, _) => format!("from {url}, as it was at {taken}, with {}", restored.files.join(", ")),
    };
    format!("{source}\n\n{}", table::text(&listing))
}
