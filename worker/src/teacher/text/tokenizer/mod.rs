//! Tokenizers: text to ids, from the files of a model's folder, which nobody vouches for. Nothing in here knows of tensors.

mod charsmap;
mod clip;
mod files;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod t5;

use deltaconv_proto::objects;

pub(super) use clip::ClipTokenizer;
pub(super) use files::Files;
pub(super) use t5::T5Tokenizer;

/// Why a text doesn't become ids.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// A file can't be read.
    #[error(transparent)]
    Objects(#[from] objects::Error),
    /// A file, or a text, isn't what it should be.
    #[error("{what} is not as expected: {reason}")]
    Unexpected {
        /// The file, or the text.
        what: String,
        /// What is wrong.
        reason: String,
    },
}
