//! What of `cli/src/error.rs` the modules use that are taken in here: the whole of it knows every crate's errors.

use std::io;
use std::path::PathBuf;

use deltaconv_proto::code::Code;

#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("cannot {action} {}: {source}", path.display())]
    File { action: &'static str, path: PathBuf, source: io::Error },
    #[error("{}: {reason}", path.display())]
    Config { path: PathBuf, reason: String },
    #[error("{reason}")]
    Settings { reason: String },
    #[error("{} is not a job: {reason}", path.display())]
    JobFile { path: PathBuf, reason: String },
    #[error("{path:?} can't be written as a URL")]
    Location { path: String },
    #[error("{flag} sends to {host} without encryption; {allow} allows it")]
    PlainUrl { flag: &'static str, host: String, allow: &'static str },
    #[error("{message} ({code})")]
    Stores { message: String, code: Code },
}

impl Error {
    pub(crate) fn file(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { action, path, source }
    }
}
