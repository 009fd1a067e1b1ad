//! `deltaconv`: converts pre-trained diffusion models into attention-free ones.

use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches};

mod allocator;
mod args;
mod byte_size;
mod client;
mod commands;
mod config;
mod demo;
mod duration;
mod ending;
mod error;
#[cfg(test)]
mod fuzzing;
mod host;
mod job_file;
mod location;
mod logs;
mod output;
mod preset;
mod progress;
mod refresh;
mod said;
mod shipped;
mod stage;
mod table;
mod watching;

#[global_allocator]
static ALLOCATOR: allocator::BySize = allocator::BySize;

/// The command could not do what was asked; clap uses the same code for usage errors.
const ERROR: u8 = 2;

fn main() -> ExitCode {
    let (arguments, config) = match arguments() {
        Ok(read) => read,
        Err(error) => {
            output::report(&error);
            return ExitCode::from(ERROR);
        }
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(source) => {
            output::report(&error::Error::Runtime { source });
            return ExitCode::from(ERROR);
        }
    };
    match runtime.block_on(commands::run(arguments.command, &config)) {
        Ok(code) => code,
        Err(error) => {
            output::report(&error);
            ExitCode::from(ERROR)
        }
    }
}

/// What the command line says, where the file of settings fills in what it leaves open. Ends the process where it can't be understood.
fn arguments() -> Result<(args::Arguments, config::Config), error::Error> {
    let given: Vec<std::ffi::OsString> = std::env::args_os().collect();
    let command = args::Arguments::command();
    let config = config::Config::find(&given, &command)?;
    let matches = config.apply(command).get_matches_from(given);
    let arguments = args::Arguments::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    Ok((arguments, config))
}
