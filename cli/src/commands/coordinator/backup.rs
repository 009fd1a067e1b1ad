//! `deltaconv coordinator backup`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use deltaconv_coordinator::backup;
use deltaconv_proto::v1;

use crate::args::{Connection, Output};
use crate::client::Client;
use crate::error::{Error, explain};
use crate::{location, output, table};

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Folder or bucket, by path or URL, in which the backup gets a folder of its own; a path is one of the machine that writes
    /// [default: where the coordinator writes its snapshots]
    #[arg(long, value_name = "URL")]
    to: Option<String>,
    /// State folder of a coordinator that does not run [default: the coordinator that runs is asked for the backup]
    #[arg(long, value_name = "DIR", requires = "to")]
    state: Option<PathBuf>,
    /// Take tokens and keys to a bucket, too: whoever reads it can join as a worker. A folder always has them, for its owner alone
    #[arg(long)]
    with_secrets: bool,
    #[command(flatten)]
    connection: Connection,
    #[command(flatten)]
    output: Output,
}

pub(super) async fn run(arguments: Arguments) -> Result<ExitCode, Error> {
    let Arguments { to, state, with_secrets, connection, output } = arguments;
    let to = to.map(|named| location::url(&named, Path::new(""))).transpose()?.unwrap_or_default();
    let written = match state {
        Some(state) => {
            let written = backup::backup(backup::Options { state, to, with_secrets }).await;
            written.map_err(|error| Error::Coordinator { message: explain(&error), code: error.code() })?
        }
        None => {
            let mut client = Client::connect(&connection).await?;
            client.backup(v1::BackupRequest { url: to, with_secrets }).await?
        }
    };
    match output.data() {
        Some(data) => data.print(&written),
        None => {
            output::print(&written.url);
            remarks(&written).iter().for_each(|remark| output::say(remark));
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn remarks(written: &v1::BackupResponse) -> Vec<String> {
    let v1::BackupResponse { url, records, bytes, files, left_out, .. } = written;
    let beside = if files.is_empty() { String::new() } else { format!(", with {}", files.join(", ")) };
    let mut remarks = vec![format!("{records} records{beside}; {} in all", table::bytes(*bytes))];
    if !left_out.is_empty() {
        let left_out = left_out.join(", ");
        remarks.push(format!(
            "without {left_out}, which whoever reads the bucket would have; --with-secrets takes them along"
        ));
    }
    remarks.push(format!("`deltaconv coordinator restore --state DIR --backup {url}` makes a state of it"));
    remarks
}
