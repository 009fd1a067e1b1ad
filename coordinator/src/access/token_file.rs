//! The token that workers of a coordinator without TLS may join with: what its file holds.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use deltaconv_proto::code::Code;
use deltaconv_proto::tls::write_secret;

/// Why there is no token to check against.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// The file can't be read or written.
    #[error("token file {path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file is there, and holds no token.
    #[error("token file {0} holds no token: it needs at least 16 characters; remove it and a new one is made")]
    Short(PathBuf),
    /// The system has no random numbers.
    #[error("no random numbers for a new token: {0}")]
    Random(String),
}

impl TokenError {
    /// Names the cause, and what helps.
    pub fn code(&self) -> Code {
        match self {
            Self::Io { .. } | Self::Short(_) => Code::TokenFile,
            Self::Random(_) => Code::NotStarted,
        }
    }
}

/// A digest of the token; the token itself is not kept.
#[derive(Clone, Debug)]
pub(crate) struct Token(blake3::Hash);

impl Token {
    /// Reads the token in `path`; makes one, readable by its owner alone, if there is no such file.
    pub(crate) fn read_or_make(path: &Path) -> Result<Self, TokenError> {
        let io = |source| TokenError::Io { path: path.into(), source };
        let mut text = String::new();
        match File::open(path) {
            Ok(file) => {
                file.take(4096).read_to_string(&mut text).map_err(io)?;
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let mut random = [0; 32];
                getrandom::fill(&mut random).map_err(|e| TokenError::Random(e.to_string()))?;
                text = blake3::hash(&random).to_hex().to_string();
                // There whole or not at all: a worker may be waiting for the file.
                write_secret(path, &text).map_err(io)?;
            }
            Err(error) => return Err(io(error)),
        }
        let token = text.trim();
        if token.len() < 16 {
            return Err(TokenError::Short(path.into()));
        }
        Ok(Self(blake3::hash(token.as_bytes())))
    }
}

impl Token {
    /// Whether this is the token. Digests compare in constant time.
    pub(crate) fn is(&self, text: &str) -> bool {
        blake3::hash(text.as_bytes()) == self.0
    }
}
