//! The commands of README.md and docs/, as somebody runs them who reads a page from its beginning to its end.
//!
//! Blocks of `sh` are one script a page, run here or, where it takes another machine, by a script of CI. What can't be run in a test
//! stands in blocks of other languages, where no `deltaconv` may hide, and what sentences name as `deltaconv …` must be a command with
//! these flags.

mod machine;
mod page;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use crate::faults::copy;
use crate::process::{deltaconv, said};
use crate::scaled;
use crate::service::Coordinator;
use machine::Machine;
use page::{called, commands, links, named, pages, parts, places, repository};

/// What a page takes to be there when it begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Before {
    Nothing,
    /// A finished demo.
    Demo,
    Coordinator,
    /// A coordinator and a worker.
    Cluster,
    /// A coordinator with a job that waits for workers.
    Job,
}

/// The pages that have commands to run.
const PAGES: [(&str, Before); 11] = [
    ("README.md", Before::Nothing),
    ("docs/cluster.md", Before::Nothing),
    ("docs/data.md", Before::Coordinator),
    ("docs/events.md", Before::Job),
    ("docs/metrics.md", Before::Coordinator),
    ("docs/recipes.md", Before::Coordinator),
    ("docs/scripting.md", Before::Cluster),
    ("docs/slurm.md", Before::Nothing),
    ("docs/start.md", Before::Nothing),
    ("docs/troubleshooting.md", Before::Coordinator),
    ("docs/upgrading.md", Before::Coordinator),
];
/// The page that has commands on what a demo leaves.
const OF_A_DEMO: (&str, Before) = ("docs/use.md", Before::Demo);
/// Pages whose commands want another machine than this test can be, and the script of CI that runs them there.
const ELSEWHERE: [(&str, &str); 3] = [
    ("docs/kubernetes.md", ".ci/kubernetes"),
    ("docs/monitoring.md", ".ci/monitoring"),
    ("docs/systemd.md", ".ci/systemd"),
];

/// What blocks of `bash` may call: it takes a build, the network, an engine for containers, a cluster, or somebody to type a
/// password.
const NOT_RUN: [&str; 5] = ["cargo", "docker", "kind", "kubectl", "openssl"];
const LANGUAGES: [&str; 7] = ["sh", "bash", "text", "toml", "json", "python", "ini"];

const COORDINATOR: &str = "deltaconv coordinator --state before\n";
const WORKER: &str = "deltaconv worker --token-file before/worker.token\n";
const JOB: &str = "cat > sd15.toml <<'END'\nteacher = \"s3://bucket/models/sd15\"\noutput = \"s3://bucket/converted/sd15\"\n\
                   END\ndeltaconv submit sd15.toml\n";

fn run((page, before): (&str, Before)) {
    let text = fs::read_to_string(repository().join(page)).expect("the page");
    let begun: &[&str] = match before {
        Before::Nothing | Before::Demo => &[],
        Before::Coordinator => &[COORDINATOR],
        Before::Cluster => &[COORDINATOR, WORKER],
        Before::Job => &[COORDINATOR, JOB],
    };
    Machine::new(before == Before::Demo).run(&(begun.concat() + &commands(&text)));
}

/// One after the other, so that what each of them starts has the machine to itself.
#[test]
fn the_commands_of_every_page_run() {
    PAGES.into_iter().for_each(run);
}

#[test]
fn the_commands_on_what_a_demo_leaves_run() {
    run(OF_A_DEMO);
}

#[test]
fn every_page_is_run_and_no_command_hides_from_it() {
    for (page, text) in pages() {
        let by = ELSEWHERE.into_iter().find(|(other, _)| *other == page).map(|(_, script)| script);
        if let Some(script) = by {
            let script = fs::read_to_string(repository().join(script)).expect("a script of CI");
            assert!(script.contains(&page), "{page}: it is not named by what runs its commands");
        }
        let runs = by.is_some() || PAGES.into_iter().chain([OF_A_DEMO]).any(|(other, _)| other == page);
        assert_eq!(runs, !commands(&text).is_empty(), "{page}: PAGES has the pages with blocks of `sh`");
        for (language, content) in parts(&text).blocks {
            assert!(
                LANGUAGES.contains(&language.as_str()),
                "{page}: a block of {language:?}, which is none of {LANGUAGES:?}"
            );
            if language == "sh" {
                continue;
            }
            for line in content.lines().map(str::trim) {
                assert!(!line.starts_with("deltaconv "), "{page}: {line:?} is not run; put it into a block of `sh`");
                let is_command = language == "bash" && !line.is_empty() && !line.starts_with('#');
                let program = line.split(' ').next().unwrap_or_default();
                assert!(!is_command || NOT_RUN.contains(&program), "{page}: {line:?} could be run in a block of `sh`");
            }
        }
    }
}

#[test]
fn commands_in_sentences_and_examples_have_the_flags_that_they_are_given() {
    let mut lines: BTreeSet<(String, String)> = BTreeSet::new();
    for (page, text) in pages() {
        lines.extend(named(&parts(&text).prose).into_iter().map(|line| (page.clone(), line)));
    }
    let help = fs::read_to_string(repository().join("docs/reference/cli.md")).expect("the page");
    let examples =
        help.lines().filter_map(|line| line.strip_prefix("  ")).filter(|line| line.starts_with("deltaconv "));
    lines.extend(examples.map(|line| ("docs/reference/cli.md".to_owned(), line.to_owned())));
    let mut helps: BTreeMap<Vec<String>, BTreeSet<String>> = BTreeMap::new();
    for (page, line) in lines {
        let (path, flags) = called(&line);
        let known = helps.entry(path.clone()).or_insert_with(|| {
            let help = deltaconv().args(&path).arg("--help").output().expect("runs");
            assert!(help.status.success(), "{page}: {line:?}: {}", said(&help));
            let is_part = |c: char| c.is_ascii_alphanumeric() || c == '-';
            said(&help).split(|c| !is_part(c)).map(str::to_owned).collect()
        });
        let unknown: Vec<&String> = flags.iter().filter(|flag| !known.contains(*flag)).collect();
        assert!(unknown.is_empty(), "{page}: {line:?}: {unknown:?} is no flag of it");
    }
}

/// The file with everything that a job may say is a job.
#[test]
fn the_job_file_of_the_docs_is_planned() {
    let folder = tempfile::tempdir().expect("a folder");
    copy(&scaled::teacher(), &folder.path().join("teachers/tiny-unet"));
    let text = fs::read_to_string(repository().join("docs/job.md")).expect("the page");
    let job = parts(&text).blocks.into_iter().find(|(language, _)| language == "toml").expect("a job").1;
    let file = folder.path().join("tiny-unet.toml");
    fs::write(&file, job).expect("written");
    let coordinator = Coordinator::start(folder.path());
    let planned = coordinator.run(&["submit", "--dry-run", file.to_str().expect("UTF-8")]);
    assert!(planned.status.success(), "{}", said(&planned));
}

/// What shows a defence is a test that there is.
#[test]
fn the_tests_that_security_names_are_there() {
    let text = fs::read_to_string(repository().join("SECURITY.md")).expect("the page");
    let prose = parts(&text).prose;
    let spans = prose.split('`').skip(1).step_by(2).filter_map(|span| span.split_once(' '));
    let named: Vec<(&str, &str)> =
        spans.filter(|(of, _)| ["cli", "coordinator", "proto", "worker"].contains(of)).collect();
    assert!(named.len() > 50, "{named:?}");
    for (of, path) in named {
        let modules: Vec<&str> = path.split("::").collect();
        let (name, modules) = modules.split_last().expect("a name");
        let inline = modules.strip_suffix(&["tests"]).unwrap_or(modules);
        let places = [modules, inline].map(|modules| modules.join("/"));
        let folders = [format!("{of}/src"), "cli/tests/cli".to_owned()];
        let files = folders.iter().flat_map(|folder| {
            places.iter().flat_map(move |place| [format!("{folder}/{place}.rs"), format!("{folder}/{place}/mod.rs")])
        });
        let texts = files.filter_map(|file| fs::read_to_string(repository().join(file)).ok());
        let test = format!("fn {name}(");
        assert!(texts.into_iter().any(|text| text.contains(&test)), "SECURITY.md: no test of {of} is {path}");
    }
}

#[test]
fn links_between_pages_lead_somewhere() {
    for (page, text) in pages() {
        let folder = repository().join(&page).parent().expect("a folder").to_path_buf();
        for (file, place) in links(&parts(&text).prose) {
            let target = if file.is_empty() { repository().join(&page) } else { folder.join(&file) };
            assert!(target.exists(), "{page}: nothing is at {file}");
            let is_there = || places(&fs::read_to_string(&target).expect("a page")).contains(&place);
            assert!(place.is_empty() || is_there(), "{page}: {file} has no #{place}");
        }
    }
}
