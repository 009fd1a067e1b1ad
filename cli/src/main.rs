//! `deltaconv`: converts pre-trained diffusion models into attention-free ones.

use std::process::ExitCode;

use clap::Parser;

mod allocator;
mod args;
mod byte_size;
mod client;
mod commands;
mod demo;
mod duration;
mod ending;
mod error;
mod host;
mod job_file;
mod location;
mod logs;
mod output;
mod preset;
mod progress;
mod refresh;
mod stage;
mod table;
mod watching;

#[global_allocator]
static ALLOCATOR: allocator::BySize = allocator::BySize;

/// The command could not do what was asked; clap uses the same code for usage errors.
const ERROR: u8 = 2;

fn main() -> ExitCode {
    let arguments = args::Arguments::parse();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(source) => {
            output::report(&error::Error::Runtime { source });
            return ExitCode::from(ERROR);
        }
    };
    match runtime.block_on(commands::run(arguments.command)) {
        Ok(code) => code,
        Err(error) => {
            output::report(&error);
            ExitCode::from(ERROR)
        }
    }
}
