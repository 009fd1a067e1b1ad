//! The commands of README.md and docs/, as somebody runs them who reads a page from its beginning to its end.
//!
//! Blocks of `sh` are one script a page. What can't be run in a test stands in blocks of other languages, where no `deltaconv` may hide,
//! and what sentences name as `deltaconv …` must be a command with these flags.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::process::{Running, deltaconv, said};
use crate::scaled;
use crate::service::Coordinator;

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
const PAGES: [(&str, Before); 9] = [
    ("README.md", Before::Nothing),
    ("docs/cluster.md", Before::Nothing),
    ("docs/data.md", Before::Coordinator),
    ("docs/events.md", Before::Job),
    ("docs/metrics.md", Before::Coordinator),
    ("docs/recipes.md", Before::Coordinator),
    ("docs/scripting.md", Before::Cluster),
    ("docs/start.md", Before::Nothing),
    ("docs/troubleshooting.md", Before::Coordinator),
];
/// The page that has commands on what a demo leaves.
const OF_A_DEMO: (&str, Before) = ("docs/use.md", Before::Demo);

/// What blocks of `bash` may call: it takes a build, or the network.
const NOT_RUN: [&str; 1] = ["cargo"];
const LANGUAGES: [&str; 7] = ["sh", "bash", "text", "toml", "json", "python", "ini"];

const COORDINATOR: &str = "deltaconv coordinator --state before\n";
const WORKER: &str = "deltaconv worker --token-file before/worker.token\n";
const JOB: &str = "cat > sd15.toml <<'END'\nteacher = \"s3://bucket/models/sd15\"\noutput = \"s3://bucket/converted/sd15\"\n\
                   END\ndeltaconv submit sd15.toml\n";
/// Ends what the page left running; what it wrote explains why the page failed.
const PRELUDE: &str = "set -euo pipefail
exec 3<&0 </dev/null
trap 'code=$?
for alive in \"$DOCUMENTED_NOTES\"/*.alive; do
  [ ! -e \"$alive\" ] || kill -KILL \"$(cat \"${alive%.alive}.pid\")\" || true
done
[ $code -eq 0 ] || tail -n 20 \"$DOCUMENTED_NOTES\"/*.log >&2 || true
exit $code' EXIT
set -x
";

/// What makes any job of a page small.
const SMALL_RECIPE: [&str; 6] =
    ["samples = 32", "held_out_samples = 8", "shard_samples = 16", "steps = 10", "warmup_steps = 2", "batch = 8"];
const SMALL_EVALUATION: &str = "evaluation = { samples = 4, prompts = 1, ddim_steps = 2 }";

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// README.md and the pages of docs/, with their texts. What lies below docs/reference/ is made by the program.
fn pages() -> BTreeMap<String, String> {
    let listed = fs::read_dir(repository().join("docs")).expect("a folder");
    let names = listed.map(|entry| entry.expect("an entry").file_name().into_string().expect("UTF-8"));
    let pages = names.filter(|name| name.ends_with(".md")).map(|name| format!("docs/{name}"));
    let read = |page: String| {
        let text = fs::read_to_string(repository().join(&page)).unwrap_or_else(|error| panic!("{page}: {error}"));
        (page, text)
    };
    pages.chain(["README.md".to_owned()]).map(read).collect()
}

/// A page in its parts.
#[derive(Debug, Default)]
struct Parts {
    /// Languages and contents.
    blocks: Vec<(String, String)>,
    prose: String,
}

fn parts(text: &str) -> Parts {
    let mut parts = Parts::default();
    let mut block: Option<(String, String)> = None;
    for line in text.lines() {
        block = match (block, line.trim().strip_prefix("```")) {
            (None, None) => {
                parts.prose += line;
                parts.prose.push('\n');
                None
            }
            (None, Some(language)) => Some((language.to_owned(), String::new())),
            (Some((language, content)), None) => Some((language, content + line + "\n")),
            (Some(whole), Some(_)) => {
                parts.blocks.push(whole);
                None
            }
        };
    }
    assert!(block.is_none(), "a block has no end: {block:?}");
    parts
}

/// What a page has somebody run.
fn commands(text: &str) -> String {
    let blocks = parts(text).blocks;
    blocks.into_iter().filter(|(language, _)| language == "sh").map(|(_, content)| content).collect()
}

/// The same with small jobs: a file that is written between `<<'END'` and `END` and names a teacher is one.
fn with_small_jobs(commands: &str) -> String {
    let mut whole = String::new();
    let mut file: Option<Vec<&str>> = None;
    for line in commands.lines() {
        file = match file {
            None => {
                whole += &format!("{line}\n");
                line.ends_with("<<'END'").then(Vec::new)
            }
            Some(lines) if line == "END" => {
                whole += &format!("{}END\n", small(&lines));
                None
            }
            Some(mut lines) => {
                lines.push(line);
                Some(lines)
            }
        };
    }
    assert!(file.is_none(), "a file has no end: {file:?}");
    whole
}

fn small(file: &[&str]) -> String {
    let is_job = file.iter().any(|line| line.starts_with("teacher = "));
    let has_recipe = file.contains(&"[recipe]");
    let mut text = String::new();
    if is_job {
        text += &format!("{SMALL_EVALUATION}\n");
    }
    if is_job && !has_recipe {
        text += &format!("recipe = {{ {} }}\n", SMALL_RECIPE.join(", "));
    }
    for line in file {
        text += &format!("{line}\n");
        if is_job && *line == "[recipe]" {
            text += &format!("{}\n", SMALL_RECIPE.join("\n"));
        }
    }
    text
}

/// A folder that is a machine to a page, with what lies in its bucket.
struct Machine {
    // Removed with this.
    folder: tempfile::TempDir,
    address: String,
}

impl Machine {
    fn new(before: Before) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let machine = Self { folder, address: format!("127.0.0.1:{}", free_port()) };
        for made in ["bin", "work", "notes", "home", "var/lib", "etc/deltaconv", "nvme"] {
            fs::create_dir_all(machine.path(made)).expect("made");
        }
        let program = machine.path("bin/deltaconv");
        fs::write(&program, include_str!("documented/deltaconv.sh")).expect("written");
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("made executable");
        copy(&scaled::teacher(), &machine.path("bucket/models/sd15"));
        for file in ["latents.safetensors", "prompt_embeddings.safetensors", "prompts.json"] {
            fs::create_dir_all(machine.path("bucket/latents")).expect("made");
            fs::copy(scaled::teacher().join(file), machine.path("bucket/latents").join(file)).expect("copied");
        }
        machine.put_pipeline();
        if before == Before::Demo {
            copy(&scaled::quiet().out, &machine.path("work/deltaconv-demo"));
        }
        machine
    }

    /// A model with text encoders and a VAE, and pictures with captions.
    fn put_pipeline(&self) {
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../worker/tests/golden");
        for part in ["pipelines/sdxl", "teachers/sdxl"] {
            copy(&golden.join(part), &self.path("bucket/models/sdxl"));
        }
        copy(&scaled::teacher().join("scheduler"), &self.path("bucket/models/sdxl/scheduler"));
        let photos = self.path("bucket/photos");
        fs::create_dir_all(&photos).expect("made");
        for number in 0..64_u8 {
            let height = if number % 2 == 0 { 8 } else { 12 };
            let picture = fs::File::create(photos.join(format!("{number}.png"))).expect("made");
            let mut encoder = png::Encoder::new(picture, 8, height);
            encoder.set_color(png::ColorType::Rgb);
            let pixels = vec![number; 3 * 8 * height as usize];
            let written = encoder.write_header().and_then(|mut writer| writer.write_image_data(&pixels));
            written.expect("a picture");
            fs::write(photos.join(format!("{number}.txt")), format!("picture {number}")).expect("written");
        }
    }

    fn path(&self, below: &str) -> PathBuf {
        self.folder.path().join(below)
    }

    /// Places and addresses of a cluster as they are here.
    fn here(&self, commands: &str) -> String {
        let here = self.folder.path().display();
        let mut commands = with_small_jobs(commands);
        for (there, here) in [
            ("10.0.0.5:7433", self.address.clone()),
            ("127.0.0.1:7433", self.address.clone()),
            ("0.0.0.0:9101", "127.0.0.1:0".to_owned()),
            ("/var/lib/deltaconv", format!("{here}/var/lib/deltaconv")),
            ("/etc/deltaconv", format!("{here}/etc/deltaconv")),
            ("/nvme", format!("{here}/nvme")),
            ("s3://bucket", format!("file://{here}/bucket")),
        ] {
            commands = commands.replace(there, &here);
        }
        commands
    }

    fn run(&self, commands: &str) {
        let script = self.path("script.sh");
        fs::write(&script, format!("{PRELUDE}{}", self.here(commands))).expect("written");
        let path = std::env::var_os("PATH").unwrap_or_default();
        let paths = [self.path("bin")].into_iter().chain(std::env::split_paths(&path));
        let mut command = Command::new("bash");
        command.arg(&script).current_dir(self.path("work"));
        command.env("PATH", std::env::join_paths(paths).expect("a path"));
        command.env("HOME", self.path("home")).env("RUST_LOG", "info");
        for setting in ["XDG_CONFIG_HOME", "DELTACONV_CONFIG", "DELTACONV_OUTPUT", "DELTACONV_LOG_FORMAT", "NO_COLOR"] {
            command.env_remove(setting);
        }
        command.env("DELTACONV_COORDINATOR", format!("http://{}", self.address));
        command.env("DOCUMENTED_PROGRAM", env!("CARGO_BIN_EXE_deltaconv"));
        command.env("DOCUMENTED_NOTES", self.path("notes")).env("DOCUMENTED_ADDRESS", &self.address);
        let mut running = Running::start(&mut command, self.folder.path(), "page");
        let ended = running.wait();
        assert!(ended.success(), "{ended}: {}\n{}", running.stdout(), running.stderr());
    }
}

/// Below those that systems give to who asks for any, so that no other test is given it meanwhile.
fn free_port() -> u16 {
    // Processes that test at the same time begin in different places.
    let first = 20_000 + std::process::id() % 1000 * 10;
    let mut ports = (first..32_000).filter_map(|port| u16::try_from(port).ok());
    ports.find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok()).expect("a free port")
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("made");
    for entry in fs::read_dir(from).expect("a folder") {
        let entry = entry.expect("an entry");
        let to = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), to).expect("copied");
        }
    }
}

fn run((page, before): (&str, Before)) {
    let text = fs::read_to_string(repository().join(page)).expect("the page");
    let begun: &[&str] = match before {
        Before::Nothing | Before::Demo => &[],
        Before::Coordinator => &[COORDINATOR],
        Before::Cluster => &[COORDINATOR, WORKER],
        Before::Job => &[COORDINATOR, JOB],
    };
    Machine::new(before).run(&(begun.concat() + &commands(&text)));
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
        let runs = PAGES.into_iter().chain([OF_A_DEMO]).any(|(other, _)| other == page);
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

/// `deltaconv …` in sentences, each on a line.
fn named(prose: &str) -> Vec<String> {
    let spans = prose.split('`').skip(1).step_by(2).map(|span| span.split_whitespace().collect::<Vec<_>>().join(" "));
    spans.filter(|span| span.starts_with("deltaconv ")).collect()
}

/// The subcommand that a line calls, and the flags that it gives it.
fn called(line: &str) -> (Vec<String>, BTreeSet<String>) {
    let until = |word: &&str| !["|", ">", "&&", ";"].contains(word);
    let words: Vec<&str> = line.split_whitespace().skip(1).take_while(until).collect();
    let is_name = |word: &&&str| word.chars().all(|c| c.is_ascii_lowercase() || c == '-') && !word.starts_with('-');
    let has_more = |word: &str| ["bench", "config", "coordinator", "workers"].contains(&word);
    let depth = if words.first().is_some_and(|first| has_more(first)) { 2 } else { 1 };
    let path: Vec<String> = words.iter().take(depth).take_while(is_name).map(|word| (*word).to_owned()).collect();
    let rest = &words[path.len()..];
    // What follows is of the command that is looked at.
    let own = if path.first().is_some_and(|first| first == "config") {
        rest.iter().position(|word| !word.starts_with('-')).unwrap_or(rest.len())
    } else {
        rest.len()
    };
    let flags = rest[..own].iter().filter(|word| word.starts_with('-') && word.len() > 1);
    (path, flags.map(|flag| flag.split('=').next().unwrap_or_default().to_owned()).collect())
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

/// Where links of a page lead that stay in the repository: the file, and the place in it.
fn links(prose: &str) -> Vec<(String, String)> {
    let targets = prose.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    let inside = targets.filter(|target| !target.contains("://"));
    inside
        .map(|target| target.split_once('#').unwrap_or((target, "")))
        .map(|(file, place)| (file.into(), place.into()))
        .collect()
}

/// The names by which links find places in a page: those that it gives, and its headings as GitHub names them.
fn places(text: &str) -> BTreeSet<String> {
    let given = text.split("<a id=\"").skip(1).filter_map(|rest| rest.split('"').next()).map(str::to_owned);
    let prose = parts(text).prose;
    let headings = prose.lines().filter(|line| line.starts_with('#'));
    let name = |heading: &str| -> String {
        let words = heading.trim_start_matches('#').trim().to_lowercase().replace(' ', "-");
        words.chars().filter(|c| c.is_alphanumeric() || matches!(c, '-' | '_')).collect()
    };
    given.chain(headings.map(name)).collect()
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
