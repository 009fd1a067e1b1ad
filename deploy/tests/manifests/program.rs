//! What the documentation that is made from the program says of its flags and settings.

use std::collections::BTreeSet;

use crate::files::{repository, text};

fn is_part(c: char, more: &str) -> bool {
    c.is_ascii_alphanumeric() || c == '_' || more.contains(c)
}

/// The words that begin so.
pub(crate) fn words(text: &str, beginning: &str) -> BTreeSet<String> {
    words_with(text, beginning, "")
}

/// The words that begin so, where those characters are parts of words, too.
pub(crate) fn words_with(text: &str, beginning: &str, more: &str) -> BTreeSet<String> {
    let words = text.split(|c| !is_part(c, more)).filter(|word| word.starts_with(beginning));
    words.map(str::to_owned).collect()
}

/// A section of a page, by its heading.
fn section<'a>(page: &'a str, heading: &str) -> Option<&'a str> {
    let (_, rest) = page.split_once(&format!("\n## {heading}\n"))?;
    Some(rest.split("\n## ").next().unwrap_or_default())
}

/// Whether each table of a file of settings is a command's, and each key one of its settings.
pub(crate) fn check_settings(settings: &toml::Table) -> Result<(), String> {
    let page = text(&repository().join("docs/reference/config.md"));
    for (command, table) in settings {
        let table = table.as_table().ok_or(format!("{command} stands before the first table"))?;
        let known = section(&page, &format!("[{command}]")).ok_or(format!("[{command}] is no command"))?;
        for key in table.keys() {
            if !known.contains(&format!("| `{key}` |")) {
                return Err(format!("{key} is no setting of [{command}]"));
            }
        }
    }
    Ok(())
}

/// Whether a container's arguments are a command with flags that it has.
pub(crate) fn check_arguments(arguments: &[String]) -> Result<(), String> {
    let page = text(&repository().join("docs/reference/cli.md"));
    let is_flag = |word: &&String| word.starts_with('-');
    let names: Vec<&str> = arguments.iter().take_while(|word| !is_flag(word)).map(String::as_str).collect();
    // The command is as many of these words as name one; what follows is told to it.
    let named =
        (1..=names.len()).rev().find_map(|count| section(&page, &format!("deltaconv {}", names[..count].join(" "))));
    let help = named.ok_or(format!("{arguments:?} begins with no command"))?;
    let known = words_with(help, "--", "-");
    match arguments.iter().filter(is_flag).find(|flag| !known.contains(*flag)) {
        Some(flag) => Err(format!("{flag} is no flag in {arguments:?}")),
        None => Ok(()),
    }
}
