//! `deltaconv reference`: pages of the documentation that are made from the program, so that they say what it does.

mod cli;
mod config;
mod errors;
mod schema;

use std::process::ExitCode;

use clap::{Args, ValueEnum};

use crate::output;

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Which page
    #[arg(value_enum)]
    page: Page,
}

/// Each is a file of docs/.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Page {
    /// docs/errors.md
    Errors,
    /// docs/reference/cli.md
    Cli,
    /// docs/reference/config.md
    Config,
    /// docs/reference/schema.json
    Schema,
}

pub(crate) fn run(arguments: &Arguments) -> ExitCode {
    output::print(&match arguments.page {
        Page::Errors => errors::page(),
        Page::Cli => cli::page(),
        Page::Config => config::page(),
        Page::Schema => schema::page(),
    });
    ExitCode::SUCCESS
}
