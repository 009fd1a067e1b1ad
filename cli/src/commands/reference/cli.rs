//! docs/reference/cli.md.

use std::fmt::Write as _;

use clap::{Command, CommandFactory};

use crate::args::Arguments;

const ABOUT: &str = "\
# Command line

<!-- Made by `deltaconv reference cli > docs/reference/cli.md`. -->

What each command prints with `--help`. What it shows goes to stdout, everything else to stderr; `-o json` and `-o yaml` are for
programs ([schema.json](schema.json)). Any setting may also stand in a file ([config.md](config.md)).

| exit code | means |
|--:|---|
| 0 | done |
| 1 | the command ran, and what it was about did not go well: the job failed or was cancelled, a check or a comparison did not hold |
| 2 | the command could not do what was asked; stderr says why, with a code ([errors.md](../errors.md)) |
| 130 | interrupted by a signal |
";

/// Every command's help.
pub(super) fn page() -> String {
    let mut command = Arguments::command().term_width(100);
    command.build();
    let mut page = ABOUT.to_owned();
    add(&command, &mut page);
    page
}

fn add(command: &Command, page: &mut String) {
    let name = command.get_bin_name().unwrap_or(command.get_name());
    // As it is printed, but for where that differs from machine to machine.
    let help = command.clone().term_width(100).render_long_help().to_string();
    let lines: Vec<&str> = help.lines().map(str::trim_end).collect();
    // Writing to a String cannot fail.
    _ = write!(page, "\n## {name}\n\n```text\n{}\n```\n", lines.join("\n").trim_end());
    for below in command.get_subcommands().filter(|below| !below.is_hide_set() && below.get_name() != "help") {
        add(below, page);
    }
}
