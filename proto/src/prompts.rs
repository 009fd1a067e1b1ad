//! A file of prompts: text in UTF-8, a prompt on each line; empty lines are left out.

use crate::code::Code;
use crate::digest;
use crate::objects::{self, Objects, folder_of};

/// A prompt has a few hundred bytes.
const MAX_BYTES: u64 = 64 << 20;
/// Prompts that are read.
const MAX_PROMPTS: usize = 1 << 20;
/// Of one: no encoder takes a tenth of it.
const MAX_PROMPT_BYTES: usize = 64 << 10;

/// Why prompts can't be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file is not there, or too large, or the store failed.
    #[error(transparent)]
    Objects(#[from] objects::Error),
    /// The file is no list of prompts.
    #[error("{url}: {reason}; expected text in UTF-8 with a prompt on each line")]
    NoPrompts {
        /// The file.
        url: String,
        /// What it is instead.
        reason: String,
    },
}

impl Error {
    /// Names the cause, and what helps.
    pub fn code(&self) -> Code {
        match self {
            Self::Objects(error) => error.code(),
            Self::NoPrompts { .. } => Code::PromptFile,
        }
    }
}

/// The prompts of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prompts {
    /// In order.
    pub texts: Vec<String>,
    /// BLAKE3 of the file, hex.
    pub digest: String,
}

impl Prompts {
    /// Reads the file at `url`.
    ///
    /// # Errors
    /// A file that is not there or holds no prompts.
    pub async fn read(url: &str) -> Result<Self, Error> {
        let (folder, key) = folder_of(url)?;
        Self::parse(url, &Objects::open(folder)?.get(key, MAX_BYTES).await?)
    }

    /// What is in the file at `url`.
    pub(crate) fn parse(url: &str, bytes: &[u8]) -> Result<Self, Error> {
        let wrong = |reason: String| Error::NoPrompts { url: url.to_owned(), reason };
        let text = std::str::from_utf8(bytes).map_err(|e| wrong(format!("it is no text ({e})")))?;
        let lines = text.trim_start_matches('\u{feff}').lines().map(str::trim).filter(|line| !line.is_empty());
        // Counted first: a file of short lines would take many times its size in memory.
        let count = lines.clone().count();
        if !(1..=MAX_PROMPTS).contains(&count) {
            return Err(wrong(format!("it holds {count} prompts, and 1 to {MAX_PROMPTS} are possible")));
        }
        if let Some((number, prompt)) = lines.clone().enumerate().find(|(_, prompt)| prompt.len() > MAX_PROMPT_BYTES) {
            let (number, found) = (number + 1, prompt.len());
            return Err(wrong(format!("prompt {number} has {found} bytes, and {MAX_PROMPT_BYTES} are the most")));
        }
        Ok(Self { texts: lines.map(str::to_owned).collect(), digest: digest::of(bytes) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_prompts_and_more_or_longer_ones_than_anybody_has_are_refused() {
        let parse = |text: &str| Prompts::parse("file:///p.txt", text.as_bytes());
        assert_eq!(parse("\u{feff}a dog\r\n\n  a cat \n").expect("two").texts, ["a dog", "a cat"]);
        let refused = |text: &str| parse(text).expect_err("refused").to_string();
        assert!(refused("\n \n").contains("0 prompts"));
        assert!(refused(&"a\n".repeat(MAX_PROMPTS + 1)).contains("1048577 prompts"));
        assert!(refused(&format!("a dog\n{}", "a".repeat(MAX_PROMPT_BYTES + 1))).contains("prompt 2 has 65537 bytes"));
        assert!(Prompts::parse("file:///p.txt", &[0xff]).is_err());
    }
}
