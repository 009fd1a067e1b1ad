//! A file of prompts: text in UTF-8, a prompt on each line; empty lines are left out.

use crate::code::Code;
use crate::digest;
use crate::objects::{self, Objects, folder_of};

/// A prompt has a few hundred bytes.
const MAX_BYTES: u64 = 64 << 20;
/// Prompts that are read.
const MAX_PROMPTS: usize = 1 << 20;

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
        let bytes = Objects::open(folder)?.get(key, MAX_BYTES).await?;
        let wrong = |reason: String| Error::NoPrompts { url: url.to_owned(), reason };
        let text = std::str::from_utf8(&bytes).map_err(|e| wrong(format!("it is no text ({e})")))?;
        let lines = text.trim_start_matches('\u{feff}').lines().map(str::trim).filter(|line| !line.is_empty());
        let texts: Vec<String> = lines.map(str::to_owned).collect();
        if !(1..=MAX_PROMPTS).contains(&texts.len()) {
            return Err(wrong(format!("it holds {} prompts, and 1 to {MAX_PROMPTS} are possible", texts.len())));
        }
        Ok(Self { texts, digest: digest::of(&bytes) })
    }
}
