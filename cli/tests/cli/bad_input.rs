//! What people get wrong, other than the teacher: each an error that names it, and nothing changed.

use std::fs;
use std::path::Path;
use std::process::Output;

use crate::process::{deltaconv, said};
use crate::scaled;
use crate::service::{self, Coordinator};

/// Fails unless the command failed, and said each of `values` and a code.
fn assert_refused(output: &Output, values: &[&str]) {
    let text = said(output);
    assert_eq!(output.status.code(), Some(2), "{text}");
    for value in values {
        assert!(text.contains(value), "{value:?} is not in: {text}");
    }
    assert!(text.contains("error[DC") && text.contains("\nmore: deltaconv explain-error DC"), "{text}");
    assert!(!text.contains("panicked") && !text.contains("status:"), "{text}");
}

fn coordinator_on(state: &Path, listen: &str) -> Output {
    let mut command = deltaconv();
    command.args(["coordinator", "--listen", listen]).arg("--state").arg(state).output().expect("runs")
}

#[test]
fn a_coordinator_that_cannot_serve_says_why() {
    let folder = tempfile::tempdir().expect("a folder");
    let coordinator = Coordinator::start(folder.path());
    let address = coordinator.url.trim_start_matches("http://");

    assert_refused(&coordinator_on(&folder.path().join("other"), address), &[address, "--listen", "error[DC0601]"]);
    let state = service::state(folder.path());
    assert_refused(&coordinator_on(&state, "127.0.0.1:0"), &[state.to_str().expect("UTF-8"), "error[DC0603]"]);
    let open = coordinator_on(&folder.path().join("third"), "0.0.0.0:0");
    assert_refused(&open, &["0.0.0.0:0", "certs init", "--allow-plaintext", "error[DC0602]"]);
    assert!(coordinator.run(&["jobs"]).status.success(), "the first one no longer serves");
}

#[test]
fn a_worker_with_a_wrong_token_is_sent_away() {
    let folder = tempfile::tempdir().expect("a folder");
    let coordinator = Coordinator::start(folder.path());
    let token_file = folder.path().join("wrong.token");
    let right = fs::read_to_string(coordinator.token_file()).expect("a token");
    let wrong: String = right.trim().chars().rev().collect();
    fs::write(&token_file, &wrong).expect("written");
    let mut command = deltaconv();
    command.args(["worker", "--coordinator", &coordinator.url, "--token-file"]).arg(&token_file);
    let refused = command.output().expect("runs");
    assert_refused(&refused, &["token", &coordinator.url, "error[DC0705]"]);
    assert!(!said(&refused).contains(&wrong), "a token in a log: {}", said(&refused));
    assert_eq!(coordinator.json(&["workers"])["workers"].as_array().map(Vec::len), Some(0));
}

#[test]
fn commands_without_a_coordinator_or_a_job_say_so() {
    let nobody = "http://127.0.0.1:1";
    let unreachable = deltaconv().args(["jobs", "--coordinator", nobody]).output().expect("runs");
    assert_refused(&unreachable, &[nobody, "deltaconv coordinator", "error[DC0003]"]);
    for url in ["ftp://host:1", "127.0.0.1:7433", "https://"] {
        let refused = deltaconv().args(["jobs", "--coordinator", url]).output().expect("runs");
        assert_refused(&refused, &[url, "http://", "error[DC0002]"]);
    }

    let folder = tempfile::tempdir().expect("a folder");
    let coordinator = Coordinator::start(folder.path());
    for command in ["status", "watch", "cancel", "gc"] {
        assert_refused(&coordinator.run(&[command, "nonesuch-7"]), &["nonesuch-7", "error[DC0701]"]);
    }
}

#[test]
fn a_job_file_that_is_none_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("job.toml");
    let submit = || deltaconv().args(["submit", path.to_str().expect("UTF-8")]).output().expect("runs");
    assert_refused(&submit(), &["job.toml", "No such file", "error[DC0005]"]);
    let whole = "teacher = 't'\noutput = 'o'\n";
    for (text, value) in [
        (format!("{whole}stepz = 3\n"), "stepz"),
        (format!("{whole}[recipe]\nkernel_size = 3\n"), "kernel_size"),
        (format!("{whole}[recipe]\nsteps = 'many'\n"), "many"),
        ("teacher = 't'\n".to_owned(), "output"),
        ("teacher = \n".to_owned(), "line 1"),
    ] {
        fs::write(&path, text).expect("written");
        assert_refused(&submit(), &["job.toml", value, "error[DC0101]"]);
    }
}

#[test]
fn a_folder_that_holds_something_else_stays_as_it_is() {
    let folder = tempfile::tempdir().expect("a folder");
    let output = folder.path().join("out");
    fs::create_dir(&output).expect("made");
    fs::write(output.join("thesis.txt"), "years of work").expect("written");
    let untouched = || {
        let names = fs::read_dir(&output).expect("listed").map(|entry| entry.expect("an entry").file_name());
        assert_eq!(names.collect::<Vec<_>>(), ["thesis.txt"]);
    };

    let demo = scaled::demo(&output, 1).output().expect("runs");
    assert_refused(&demo, &["thesis.txt", output.to_str().expect("UTF-8"), "--out", "error[DC0012]"]);
    untouched();

    let coordinator = Coordinator::start(folder.path());
    let job = scaled::job_file(folder.path(), &scaled::teacher(), &output);
    assert_refused(
        &coordinator.run(&["submit", job.to_str().expect("UTF-8")]),
        &["thesis.txt", "out", "error[DC0104]"],
    );
    untouched();
    assert_eq!(coordinator.json(&["jobs"])["jobs"].as_array().map(Vec::len), Some(0));
}
