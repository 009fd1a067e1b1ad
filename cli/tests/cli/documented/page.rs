//! Pages, and what stands in them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

pub(super) fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// README.md, SECURITY.md and the pages of docs/, with their texts. What lies below docs/reference/ is made by the program.
pub(super) fn pages() -> BTreeMap<String, String> {
    let listed = fs::read_dir(repository().join("docs")).expect("a folder");
    let names = listed.map(|entry| entry.expect("an entry").file_name().into_string().expect("UTF-8"));
    let pages = names.filter(|name| name.ends_with(".md")).map(|name| format!("docs/{name}"));
    let read = |page: String| {
        let text = fs::read_to_string(repository().join(&page)).unwrap_or_else(|error| panic!("{page}: {error}"));
        (page, text)
    };
    pages.chain(["README.md", "SECURITY.md"].map(str::to_owned)).map(read).collect()
}

/// A page in its parts.
#[derive(Debug, Default)]
pub(super) struct Parts {
    /// Languages and contents.
    pub(super) blocks: Vec<(String, String)>,
    pub(super) prose: String,
}

pub(super) fn parts(text: &str) -> Parts {
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
pub(super) fn commands(text: &str) -> String {
    let blocks = parts(text).blocks;
    blocks.into_iter().filter(|(language, _)| language == "sh").map(|(_, content)| content).collect()
}

/// `deltaconv …` in sentences, each on a line.
pub(super) fn named(prose: &str) -> Vec<String> {
    let spans = prose.split('`').skip(1).step_by(2).map(|span| span.split_whitespace().collect::<Vec<_>>().join(" "));
    spans.filter(|span| span.starts_with("deltaconv ")).collect()
}

/// The subcommand that a line calls, and the flags that it gives it.
pub(super) fn called(line: &str) -> (Vec<String>, BTreeSet<String>) {
    // What follows "--" is another program's.
    let until = |word: &&str| !["|", ">", "&&", ";", "--"].contains(word);
    let words: Vec<&str> = line.split_whitespace().skip(1).take_while(until).collect();
    let is_name = |word: &&&str| word.chars().all(|c| c.is_ascii_lowercase() || c == '-') && !word.starts_with('-');
    let has_more = |word: &str| ["alloc", "bench", "certs", "config", "coordinator", "workers"].contains(&word);
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

/// Where links of a page lead that stay in the repository: the file, and the place in it.
pub(super) fn links(prose: &str) -> Vec<(String, String)> {
    let targets = prose.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    let inside = targets.filter(|target| !target.contains("://"));
    inside
        .map(|target| target.split_once('#').unwrap_or((target, "")))
        .map(|(file, place)| (file.into(), place.into()))
        .collect()
}

/// The names by which links find places in a page: those that it gives, and its headings as GitHub names them.
pub(super) fn places(text: &str) -> BTreeSet<String> {
    let given = text.split("<a id=\"").skip(1).filter_map(|rest| rest.split('"').next()).map(str::to_owned);
    let prose = parts(text).prose;
    let headings = prose.lines().filter(|line| line.starts_with('#'));
    let name = |heading: &str| -> String {
        let words = heading.trim_start_matches('#').trim().to_lowercase().replace(' ', "-");
        words.chars().filter(|c| c.is_alphanumeric() || matches!(c, '-' | '_')).collect()
    };
    given.chain(headings.map(name)).collect()
}
