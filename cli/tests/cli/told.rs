//! What tasks said, and the forms in which an operator is told things.

use std::path::Path;

use serde_json::Value;

use crate::process::{Running, deltaconv, said, until};
use crate::scaled;
use crate::service::{Coordinator, tasks_in};

fn lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{line}: {error}"))).collect()
}

/// The messages of a task's log, as `-o json` has them.
fn messages(text: &str) -> Vec<String> {
    let of_log = |log: &Value| log["lines"].as_array().expect("lines").clone();
    let all = lines(text).iter().flat_map(of_log).collect::<Vec<_>>();
    all.iter().map(|line| line["message"].as_str().expect("a message").to_owned()).collect()
}

fn follow(coordinator: &Coordinator, folder: &Path, task: &str) -> Running {
    let mut command = deltaconv();
    command.args(["logs", task, "--follow", "-o", "json", "--coordinator", &coordinator.url]);
    Running::start(&mut command, folder, "followed")
}

#[test]
fn what_a_task_says_is_told_while_it_runs_and_after_its_end_and_its_worker_is_gone() {
    let folder = tempfile::tempdir().expect("a folder");
    let coordinator = Coordinator::start(folder.path());
    let out = folder.path().join("out");
    let job = coordinator.submit(&scaled::job_file_of(folder.path(), &scaled::teacher(), &out, 4000));
    let mut worker = coordinator.worker("one");
    let task = until("a block to be trained", || {
        let status = coordinator.status(&job);
        let running = tasks_in(&status, "distill", "running");
        running.first().and_then(|task| task["task_id"].as_str()).map(str::to_owned)
    });
    let mut followed = follow(&coordinator, folder.path(), &task);
    until("the worker's words to come", || {
        assert!(!followed.has_ended(), "{}", followed.stderr());
        followed.stdout().contains("attempt started").then_some(())
    });

    // Its coordinator begins anew under who follows.
    let coordinator = coordinator.start_again();
    until("the attempt to go on", || {
        let status = coordinator.status(&job);
        (!tasks_in(&status, "distill", "running").is_empty()).then_some(())
    });
    worker.signal(rustix::process::Signal::TERM);
    worker.wait();
    let stored = until("the log to be stored", || {
        let shown = coordinator.run(&["logs", &task, "-o", "json"]);
        assert!(shown.status.success(), "{}", said(&shown));
        let text = String::from_utf8_lossy(&shown.stdout).into_owned();
        messages(&text).iter().any(|message| message.starts_with("attempt handed back")).then_some(text)
    });
    assert!(messages(&stored).iter().any(|message| message.starts_with("attempt started")), "{stored}");
    until("who follows to be told the last words", || followed.stdout().contains("attempt handed back").then_some(()));
    let told = messages(&followed.stdout());
    let started = told.iter().filter(|message| message.starts_with("attempt started")).count();
    assert_eq!(started, 1, "what was told is told again: {told:?}");

    let text = said(&coordinator.run(&["logs", &task]));
    assert!(text.contains("attempt started") && text.contains("info"), "{text}");
    assert!(!text.trim_end().contains(|c: char| c.is_control() && c != '\n'), "{text:?}");
    assert!(coordinator.run(&["cancel", &job, "--yes"]).status.success());
    assert!(followed.wait().success(), "who follows a task that is over is done: {}", followed.stderr());
    let again = said(&coordinator.run(&["logs", &task]));
    assert!(again.contains("attempt started"), "a job that is over has its logs: {again}");

    // Until what the job needs no more is collected.
    let collected = coordinator.json(&["gc", &job, "--yes"]);
    let kinds = collected["removed"].as_array().expect("kinds");
    let logs = kinds.iter().find(|garbage| garbage["kind"] == "logs").expect("logs");
    assert!(logs["objects"].as_u64().is_some_and(|objects| objects > 0), "{collected:#}");
    let gone = coordinator.run(&["logs", &task]);
    assert!(gone.status.success() && gone.stdout.is_empty(), "{}", said(&gone));
    let unknown = coordinator.run(&["logs", "tiny-1/nonesuch"]);
    assert!(unknown.status.code() == Some(2) && said(&unknown).contains("error[DC0701]"), "{}", said(&unknown));
}

#[test]
fn everything_is_told_in_the_form_that_is_asked_for() {
    let folder = tempfile::tempdir().expect("a folder");
    let coordinator = Coordinator::start(folder.path());
    let job = coordinator.submit(&scaled::job_file(folder.path(), &scaled::teacher(), &folder.path().join("out")));
    let shown = |arguments: &[&str]| {
        let shown = coordinator.run(arguments);
        assert!(shown.status.success(), "{arguments:?}: {}", said(&shown));
        String::from_utf8_lossy(&shown.stdout).into_owned()
    };
    let yaml = shown(&["jobs", "-o", "yaml"]);
    assert!(yaml.starts_with("version: 1\n") && yaml.contains(&format!("job_id: {job}")), "{yaml}");
    let (narrow, wide) = (shown(&["jobs"]), shown(&["jobs", "-o", "wide"]));
    assert!(!narrow.contains("OWNER") && wide.contains("OWNER") && wide.contains(&job), "{wide}");
    assert!(shown(&["status", &job, "-o", "wide"]).contains(&format!("{job}/r0/capture/")), "tasks are not listed");
    for command in [["jobs"].as_slice(), &["status", &job], &["workers"], &["events"], &["explain", &job]] {
        let json = shown(&[command, &["-o", "json"]].concat());
        assert!(lines(&json).iter().all(|line| line["version"] == 1), "{json}");
        let text = shown(command);
        assert!(!text.contains(|c: char| c.is_control() && c != '\n'), "{text:?}");
    }

    // Again and again, where something changed.
    let mut command = deltaconv();
    command.args(["jobs", "--watch=50ms", "-o", "json", "--coordinator", &coordinator.url]);
    let mut watching = Running::start(&mut command, folder.path(), "watching");
    until("the first look", || (watching.stdout().lines().count() == 1).then_some(()));
    shown(&["pause", &job]);
    until("the change to be told", || (watching.stdout().lines().count() >= 2).then_some(()));
    assert_eq!(lines(&watching.stdout())[1]["jobs"][0]["paused"], true);
    watching.signal(rustix::process::Signal::INT);
    assert_eq!(watching.wait().code(), Some(130));

    let unsure = coordinator.run(&["cancel", &job]);
    assert!(unsure.status.code() == Some(2) && said(&unsure).contains("--yes"), "{}", said(&unsure));
    assert_eq!(coordinator.status(&job)["summary"]["state"], "running");
    shown(&["cancel", &job, "--yes"]);
    let failed = coordinator.run(&["watch", &job, "--until", "failed"]);
    assert!(failed.status.success(), "{}", said(&failed));
    assert_eq!(coordinator.run(&["watch", &job, "--until", "done"]).status.code(), Some(1));
}

#[test]
fn settings_come_from_flags_then_the_environment_then_a_file() {
    let folder = tempfile::tempdir().expect("a folder");
    let coordinator = Coordinator::start(folder.path());
    let file = folder.path().join("settings.toml");
    let config = |text: &str| std::fs::write(&file, text).expect("written");
    let run = |arguments: &[&str]| deltaconv().env("DELTACONV_CONFIG", &file).args(arguments).output().expect("runs");

    config(&format!("[defaults]\ncoordinator = '{}'\noutput = 'json'\n", coordinator.url));
    let jobs = run(&["jobs"]);
    assert!(jobs.status.success() && lines(&String::from_utf8_lossy(&jobs.stdout)).len() == 1, "{}", said(&jobs));
    let text = run(&["jobs", "-o", "table"]);
    assert!(text.status.success() && text.stdout.is_empty(), "{}", said(&text));
    let elsewhere = deltaconv()
        .env("DELTACONV_CONFIG", &file)
        .env("DELTACONV_COORDINATOR", "http://127.0.0.1:1")
        .args(["jobs"])
        .output()
        .expect("runs");
    assert!(said(&elsewhere).contains("127.0.0.1:1"), "the environment is before the file: {}", said(&elsewhere));

    let shown = run(&["config", "show", "--changed", "-o", "json", "worker"]);
    let shown: Value = serde_json::from_slice(&shown.stdout).expect("JSON");
    let settings = shown["settings"].as_array().expect("settings");
    let found = settings.iter().find(|setting| setting["setting"] == "coordinator").expect("the coordinator's URL");
    assert_eq!((&found["value"], &found["command"]), (&coordinator.url.as_str().into(), &"worker".into()));
    assert!(found["source"].as_str().is_some_and(|source| source.starts_with("file: ")), "{found}");

    config("[defaults]\ncordinator = 'http://a'\n");
    let wrong = run(&["jobs"]);
    assert_eq!(wrong.status.code(), Some(2));
    let text = said(&wrong);
    assert!(
        text.contains("cordinator") && text.contains("coordinator is one") && text.contains("settings.toml"),
        "{text}"
    );
}

#[test]
fn shells_and_man_know_every_command() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = deltaconv().args(["completions", shell]).output().expect("runs");
        let text = String::from_utf8_lossy(&script.stdout).into_owned();
        assert!(script.status.success() && text.contains("explain-error"), "{shell}: {}", said(&script));
    }
    let folder = tempfile::tempdir().expect("a folder");
    let pages = deltaconv().args(["man", "--out"]).arg(folder.path()).output().expect("runs");
    assert!(pages.status.success(), "{}", said(&pages));
    for page in ["deltaconv.1", "deltaconv-submit.1", "deltaconv-workers-drain.1"] {
        let text = std::fs::read_to_string(folder.path().join(page)).expect(page);
        assert!(text.contains(".SH SYNOPSIS"), "{page}: {text}");
    }
    let typo = deltaconv().args(["job"]).output().expect("runs");
    assert!(typo.status.code() == Some(2) && said(&typo).contains("jobs"), "{}", said(&typo));
}

#[test]
fn the_doctor_says_what_is_well_and_what_to_do_about_the_rest() {
    let folder = tempfile::tempdir().expect("a folder");
    let coordinator = Coordinator::start(folder.path());
    let store = folder.path().join("store");
    std::fs::create_dir(&store).expect("made");
    let arguments = ["doctor", "--device", "cpu", "--store", store.to_str().expect("UTF-8"), "-o", "json"];
    let look = |url: &str| {
        let looked = deltaconv().args(arguments).arg("--disk").arg(folder.path()).args(["--coordinator", url]).output();
        let looked = looked.expect("runs");
        let findings: Value = serde_json::from_slice(&looked.stdout).unwrap_or_else(|_| panic!("{}", said(&looked)));
        let of = move |check: &str| {
            let findings = findings["findings"].as_array().expect("findings");
            findings.iter().find(|finding| finding["check"] == check).unwrap_or_else(|| panic!("{findings:?}")).clone()
        };
        (looked.status.code(), of)
    };
    let (code, found) = look(&coordinator.url);
    for check in ["store", "conditional writes", "coordinator", "clock", "processor", "kernels"] {
        assert_eq!(found(check)["verdict"], "ok", "{}", found(check));
    }
    assert_eq!(code, Some(0));
    let (code, found) = look("http://127.0.0.1:1");
    let missing = found("coordinator");
    assert_eq!((code, &missing["verdict"], &missing["code"]), (Some(1), &"failed".into(), &"DC0003".into()));
    assert!(missing["remedy"].as_str().is_some_and(|remedy| remedy.contains("deltaconv coordinator")), "{missing}");
    let text = said(&coordinator.run(&["doctor", "--device", "cpu", "--disk", folder.path().to_str().expect("UTF-8")]));
    assert!(text.contains("ok       coordinator") && text.contains("0 failed"), "{text}");
}

#[test]
fn a_worker_is_invited_and_says_how_it_does() {
    let folder = tempfile::tempdir().expect("a folder");
    let coordinator = Coordinator::start(folder.path());
    let invited = coordinator.json(&["workers", "invite", "--address", "http://10.0.0.5:7433"]);
    assert_eq!(invited["addresses"][0], "http://10.0.0.5:7433");
    let here = coordinator.run(&["workers", "invite"]);
    assert!(said(&here).contains("--address"), "{}", said(&here));

    let worker = coordinator.worker_with("one", &["--listen", "127.0.0.1:0", "--log-format", "json"]);
    let address = until("the worker to serve metrics", || {
        let served = worker.stderr();
        let line = served.lines().find(|line| line.contains("metrics are served"))?.to_owned();
        let line: Value = serde_json::from_str(&line).expect("a line of JSON");
        line["address"].as_str().map(str::to_owned)
    });
    let loaded = until("the worker to say how busy it is", || {
        let workers = coordinator.json(&["workers"]);
        let load = workers["workers"][0]["load"].clone();
        load["cpu_utilisation"].is_number().then_some(load)
    });
    assert!(loaded["memory_used_bytes"].as_u64().is_some_and(|bytes| bytes > 0), "{loaded}");
    let text = crate::observed::http(&address, "/metrics").1;
    assert!(text.contains("deltaconv_worker_step_duration_seconds_bucket") && text.contains("# EOF"), "{text}");
    assert_eq!(crate::observed::http(&address, "/healthz").0, 200);
}
