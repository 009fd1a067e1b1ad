//! Doors for fuzzing, as `deltaconv_proto::fuzzing` has them: files that people write.

use std::path::Path;

use deltaconv_proto::fuzzing::{check_error, ok};
use deltaconv_proto::v1::JobSpec;
use prost::Message;

use crate::{byte_size, config, duration, job_file};

/// The parsers here, by the names of their corpora.
pub(crate) const TARGETS: [(&str, deltaconv_proto::fuzzing::Target); 2] =
    [("job_file", of_job_file), ("settings", of_settings)];

/// A job, and amounts as people write them.
fn of_job_file(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    if let Ok(amount) = byte_size::parse(&text) {
        assert!(amount > 0);
    }
    if let Ok(time) = duration::parse(&text) {
        assert!(!time.is_zero() && !duration::spell(time.as_secs_f64()).is_empty());
    }
    let Some(spec) = ok(job_file::parse(&text, Path::new("/jobs/tiny.toml"))) else { return };
    // It arrives as it was written.
    assert_eq!(JobSpec::decode(&*spec.encode_to_vec()).expect("a message").encode_to_vec(), spec.encode_to_vec());
    for url in [&spec.teacher_url, &spec.output_url] {
        assert!(url.contains("://"), "{url:?} is no URL");
    }
}

/// Settings, and the commands with them.
fn of_settings(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    match config::Config::of(&text, &command()) {
        Err(reason) => check_error(&reason),
        Ok(config) => drop(config.apply(command()).try_get_matches_from(["deltaconv", "worker"])),
    }
}

#[cfg(test)]
fn command() -> clap::Command {
    use clap::CommandFactory;
    crate::args::Arguments::command()
}

/// The program's own commands bring all of it; these have settings of each kind.
#[cfg(not(test))]
fn command() -> clap::Command {
    use clap::{Arg, ArgAction, Command};
    let arg = |name: &'static str| Arg::new(name).long(name);
    Command::new("deltaconv")
        .subcommand(
            Command::new("worker")
                .arg(arg("coordinator").required(true))
                .arg(arg("threads").value_parser(clap::value_parser!(u16).range(1..)))
                .arg(arg("grace").value_parser(duration::parse).default_value("25s"))
                .arg(arg("disk-cache-size").value_parser(byte_size::parse))
                .arg(arg("device").value_parser(["auto", "cpu", "cuda"]).default_value("auto"))
                .arg(arg("allow-store").action(ArgAction::Append))
                .arg(arg("exit-with-parent").action(ArgAction::SetTrue)),
        )
        .subcommand(Command::new("bench").subcommand(Command::new("kernels").arg(arg("check").value_name("N"))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_kept_from_fuzzing_holds() {
        deltaconv_proto::fuzzing::replay(&TARGETS);
    }
}
