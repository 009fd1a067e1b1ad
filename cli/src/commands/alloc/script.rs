//! The script of a job, in which a worker runs.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::decide;
use crate::duration;

/// With what a worker joins: a file that its machine sees, too, so that no secret is in a script or an environment.
#[derive(Clone, Debug)]
pub(super) enum Admission {
    Invitation(PathBuf),
    Token {
        file: PathBuf,
        /// Where workers reach it.
        coordinator: String,
        /// Whether they may where that is another machine, since they do so without encryption.
        allows_plaintext: bool,
    },
}

/// What a job runs.
#[derive(Clone, Debug)]
pub(super) struct Script<'a> {
    /// The jobs' name.
    pub(super) name: &'a str,
    /// Lines before the worker's.
    pub(super) setup: &'a [String],
    /// Words of the shell that start deltaconv.
    pub(super) program: &'a str,
    pub(super) admission: &'a Admission,
    pub(super) grace: Duration,
    pub(super) end_when_idle: Duration,
    /// More words of the shell for the worker.
    pub(super) options: &'a str,
}

impl Script<'_> {
    /// The script. What the user gave as the shell's words stays so.
    pub(super) fn text(&self) -> String {
        let Self { name, program, options, .. } = self;
        let name = decide::worker_name(name, "$SLURM_JOB_ID");
        let mut text = format!("#!/bin/bash\n# One worker of deltaconv, by `deltaconv alloc slurm`.\nname={name}\n");
        text += "if [ \"${SLURM_RESTART_COUNT:-0}\" -gt 0 ]; then name=$name-restart-$SLURM_RESTART_COUNT; fi\n";
        for line in self.setup {
            text += &format!("{line}\n");
        }
        let mut flags = match self.admission {
            Admission::Invitation(file) => format!("--invitation-file {}", quoted_path(file)),
            Admission::Token { file, coordinator, allows_plaintext } => {
                let allows = if *allows_plaintext { " --allow-plaintext" } else { "" };
                format!("--token-file {} --coordinator {}{allows}", quoted_path(file), quoted(coordinator))
            }
        };
        if !options.split_whitespace().any(|word| word.split('=').next() == Some("--threads")) {
            flags += " --threads \"$SLURM_CPUS_ON_NODE\"";
        }
        let (grace, idle) = (duration::flag(self.grace), duration::flag(self.end_when_idle));
        flags += &format!(" --grace {grace} --end-when-idle {idle}");
        // Its signals are to reach the worker, and no shell in between.
        text += "# The worker takes the place of the shell, which Slurm asks to end: it hands its task back then.\n";
        let command = format!("exec {program} worker --name \"$name\" --node \"$SLURMD_NODENAME\" {flags} {options}");
        text += command.trim_end();
        text.push('\n');
        text
    }
}

/// One word of a shell.
pub(super) fn quoted(word: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "_-./:=@%+,".contains(c);
    match !word.is_empty() && word.chars().all(is_plain) {
        true => word.to_owned(),
        false => format!("'{}'", word.replace('\'', r"'\''")),
    }
}

fn quoted_path(path: &Path) -> String {
    quoted(&path.to_string_lossy())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn script(admission: Admission, options: &str) -> String {
        let setup = ["module load cuda".to_owned()];
        let script = Script {
            name: "dc",
            setup: &setup,
            program: "apptainer exec --nv d.sif deltaconv",
            admission: &admission,
            grace: Duration::from_secs(10),
            end_when_idle: Duration::from_secs(300),
            options,
        };
        script.text()
    }

    #[test]
    fn the_worker_takes_the_shells_place_and_is_named_after_its_job() {
        let admission = Admission::Token {
            file: "/shared/it's/worker.token".into(),
            coordinator: "http://10.0.0.5:7433".into(),
            allows_plaintext: true,
        };
        let text = script(admission, "--disk-cache \"$TMPDIR\"");
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.first(), Some(&"#!/bin/bash"));
        assert!(lines.contains(&"name=dc-$SLURM_JOB_ID") && lines.contains(&"module load cuda"), "{text}");
        assert_eq!(
            lines.last(),
            Some(
                &"exec apptainer exec --nv d.sif deltaconv worker --name \"$name\" --node \"$SLURMD_NODENAME\" \
                  --token-file '/shared/it'\\''s/worker.token' --coordinator http://10.0.0.5:7433 --allow-plaintext \
                  --threads \"$SLURM_CPUS_ON_NODE\" --grace 10s --end-when-idle 5m --disk-cache \"$TMPDIR\""
            ),
            "{text}"
        );
    }

    #[test]
    fn an_invitation_is_all_that_a_worker_is_given_and_threads_may_be_named() {
        let text = script(Admission::Invitation("/shared/invitation".into()), "--threads=3");
        let last = text.lines().last().expect("a line");
        assert!(last.contains(" --invitation-file /shared/invitation "), "{text}");
        assert!(!last.contains("--coordinator") && last.matches("--threads").count() == 1, "{text}");
    }

    #[test]
    fn words_stay_one_word() {
        for (word, written) in
            [("a/b.c", "a/b.c"), ("", "''"), ("a b", "'a b'"), ("$HOME", "'$HOME'"), ("'", r"''\'''")]
        {
            assert_eq!(quoted(word), written);
        }
    }
}
