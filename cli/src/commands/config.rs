//! `deltaconv config`.

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{Args, CommandFactory, Subcommand};
use serde::Serialize;

use crate::args::{Arguments as All, Output};
use crate::config::{Config, Setting};
use crate::error::Error;
use crate::{output, table};

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Show,
}

#[derive(Debug, Subcommand)]
enum Show {
    /// Show every setting of a command, or of all of them, and where its value comes from
    #[command(after_help = "Examples:\n  deltaconv config show --changed\n  deltaconv config show worker --threads 4")]
    Show {
        #[command(flatten)]
        output: Output,
        /// Settings that the file or the environment changed, alone
        #[arg(long)]
        changed: bool,
        /// The command, and flags as it would be called with
        #[arg(value_name = "COMMAND", trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<OsString>,
    },
}

/// Everything that is set.
#[derive(Serialize, schemars::JsonSchema)]
pub(crate) struct Settings {
    /// The file that was read, if there is one.
    file: Option<String>,
    settings: Vec<Setting>,
}

pub(crate) fn run(arguments: Arguments, config: &Config) -> Result<ExitCode, Error> {
    let Show::Show { output, changed, command } = arguments.command;
    let all = All::command();
    let is_part = |part: &&OsString| !part.to_string_lossy().starts_with('-');
    let path: Vec<String> =
        command.iter().take_while(is_part).map(|part| part.to_string_lossy().into_owned()).collect();
    let given = &command[path.len()..];
    let mut settings = config.settings(&all, &path, given)?;
    if settings.is_empty() {
        return Err(Error::NoSuchCommand { name: path.join(" ") });
    }
    settings.retain(|setting| !changed || setting.source != "default");
    let file = config.path.as_ref().map(|path| path.display().to_string());
    match output.data() {
        Some(data) => data.print(&Settings { file, settings }),
        None => {
            output::say(&file.map_or_else(|| "no file of settings".to_owned(), |file| format!("settings of {file}")));
            let mut listing = table::table(["command", "setting", "value", "from"]);
            for Setting { command, setting, value, source } in settings {
                listing.add_row([command, setting, value, source]);
            }
            output::print(&table::text(&listing));
        }
    }
    Ok(ExitCode::SUCCESS)
}
