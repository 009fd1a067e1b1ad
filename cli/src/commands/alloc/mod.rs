//! `deltaconv alloc`: has a cluster's queue start workers.
//!
//! `decide` says how many jobs there should be, from what the coordinator and the queue say alone; so nothing is kept between
//! two looks, and a process that is started again goes on where the last one stopped.

mod decide;
mod queue;
mod script;
mod slurm;

use std::process::ExitCode;

use clap::{Args, Subcommand};

use crate::error::Error;

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    queue: Queue,
}

/// What starts workers.
#[derive(Debug, Subcommand)]
enum Queue {
    /// Keep as many jobs queued in Slurm as there is work for, each with one worker
    #[command(after_help = "Examples:\n\
        \x20 deltaconv alloc slurm --partition gpu --gpus 1 --max-workers 8 --token-file worker.token --dry-run\n\
        \x20 deltaconv alloc slurm --partition gpu --max-workers 8 --token-file worker.token --time 4:00:00 -- --nice=100")]
    Slurm(Box<slurm::Arguments>),
}

pub(crate) async fn run(arguments: Arguments) -> Result<ExitCode, Error> {
    match arguments.queue {
        Queue::Slurm(arguments) => slurm::run(*arguments).await,
    }
}
