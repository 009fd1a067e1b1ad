//! `deltaconv completions` and `deltaconv man`.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Command, CommandFactory};
use clap_complete::Shell;

use crate::args::Arguments as All;
use crate::error::Error;
use crate::output;

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// The shell that completes
    shell: Shell,
}

pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode, Error> {
    let mut script = Vec::new();
    clap_complete::generate(arguments.shell, &mut All::command(), "deltaconv", &mut script);
    output::print(&String::from_utf8_lossy(&script));
    Ok(ExitCode::SUCCESS)
}

#[derive(Debug, Args)]
pub(crate) struct Manual {
    /// Folder to write a page for each command to [default: the first page, to stdout]
    #[arg(long, value_name = "FOLDER")]
    out: Option<PathBuf>,
}

pub(crate) fn manual(arguments: &Manual) -> Result<ExitCode, Error> {
    let mut command = All::command();
    command.build();
    match &arguments.out {
        None => {
            let mut page = Vec::new();
            render(&command, &mut page).map_err(Error::file("write", "stdout"))?;
            output::print(&String::from_utf8_lossy(&page));
        }
        Some(folder) => {
            std::fs::create_dir_all(folder).map_err(Error::file("make", folder))?;
            write(&command, folder)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn write(command: &Command, folder: &Path) -> Result<(), Error> {
    let path = folder.join(format!("{}.1", name(command)));
    let mut page = Vec::new();
    render(command, &mut page).and_then(|()| std::fs::write(&path, page)).map_err(Error::file("write", &path))?;
    let below = command.get_subcommands().filter(|below| !below.is_hide_set() && below.get_name() != "help");
    below.into_iter().try_for_each(|below| write(below, folder))
}

fn render(command: &Command, page: &mut impl Write) -> io::Result<()> {
    clap_mangen::Man::new(command.clone().display_name(name(command))).render(page)
}

/// As its page is called: "deltaconv-workers-drain".
fn name(command: &Command) -> String {
    command.get_bin_name().unwrap_or(command.get_name()).replace(' ', "-")
}
